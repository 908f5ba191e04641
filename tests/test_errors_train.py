"""What the project, notebooks, parameters, datasets, locks and runs refuse: what, where, and what to do about it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from notebooks import make_notebook
from provoked import Wrong, check, each_of, on_a_full_disk, settings, without_module, written

from notebook_to_prod import errors
from notebook_to_prod.deprecation import Deprecation, parse_deprecation
from notebook_to_prod.errors import (
    CheckError,
    DataError,
    DependencyError,
    InputError,
    KernelDiedError,
    LockMismatchError,
    NotebookError,
    NotFoundError,
    ParameterError,
    RunError,
    RunInterruptedError,
    RunTimeoutError,
    ServerError,
    StoreError,
    TrackingError,
    UnavailableError,
)
from notebook_to_prod.project import (
    environment_settings,
    expanded,
    open_environment,
    open_store,
    project_settings,
    read_json_lines,
    shipped_file,
    write_atomic,
)
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.train.adopt.adopt import adopt
from notebook_to_prod.train.check.config import read_config
from notebook_to_prod.train.check.fix import fix_notebook
from notebook_to_prod.train.check.verdict import require_clean
from notebook_to_prod.train.data import add, find_format, load
from notebook_to_prod.train.datasets import checkout, collect_garbage, find_dataset, read_dataset
from notebook_to_prod.train.diff import compare_tables
from notebook_to_prod.train.dvc import fetch, find_output
from notebook_to_prod.train.environment import seed_everything, thread_count
from notebook_to_prod.train.git_setup import git_install, working_tree
from notebook_to_prod.train.lockfile import compile_requirements, find_lockfile, lock_project, require_locked
from notebook_to_prod.train.notebook import parse_notebook, read_notebook
from notebook_to_prod.train.notebook_diff import has_revision, read_revision
from notebook_to_prod.train.notebook_merge import merge_sources
from notebook_to_prod.train.parameters import check_parameters, combined_sets, read_parameter_file, secret
from notebook_to_prod.train.record import find_run, read_record
from notebook_to_prod.train.run import run_notebook
from notebook_to_prod.train.scraps import decode, encode
from notebook_to_prod.train.snapshot import keep_file, keep_stream, verify_blob, write_blob
from notebook_to_prod.train.source import find_parts
from notebook_to_prod.train.sql import query_table, sql_name
from notebook_to_prod.train.sweep import _outcome, _run_set, run_sweep
from notebook_to_prod.train.tracking import tracking_errors

# The project


def environments(text: str) -> Any:
    settings(f"[tool.n2p.environments]\n{text}")
    return environment_settings()


def locked_twice() -> None:
    with open_store().lock("gc"), open_store().lock("gc", timeout=0.01):
        pass


PROJECT = {
    "a configuration that is no TOML": Wrong(
        lambda: (settings("[tool.n2p"), project_settings()),
        InputError,
        "the configuration cannot be read",
        "pyproject.toml",
        "correct the file",
    ),
    "a configuration in Latin-1": Wrong(
        lambda: (Path("pyproject.toml").write_bytes(b'[tool.n2p]\ncard = "\xe9"'), project_settings()),
        InputError,
        "cannot be read",
        "pyproject.toml",
        "correct the file",
    ),
    "a tool that is a number": Wrong(
        lambda: (settings("tool = 3"), project_settings()),
        InputError,
        "[tool] is not a table",
        "pyproject.toml",
        "below [tool.n2p]",
    ),
    "settings that are a number": Wrong(
        lambda: (settings("[tool]\nn2p = 3"), project_settings()),
        InputError,
        "[tool.n2p] is not a table",
        "pyproject.toml",
        "below [tool.n2p]",
    ),
    "a misspelt setting": Wrong(
        lambda: (settings("[tool.n2p]\nchek = 3"), project_settings()),
        InputError,
        "unknown setting 'chek', did you mean 'check'?",
        "[tool.n2p]",
        "the settings are check",
    ),
    "environments that are a number": Wrong(
        lambda: (settings("[tool.n2p]\nenvironments = 3"), environment_settings()),
        InputError,
        "environments is not a table",
        "[tool.n2p.environments]",
        "write home =",
    ),
    "an environment called latest": Wrong(
        lambda: environments('latest = {home = "x"}'),
        InputError,
        "'latest' cannot be an environment",
        "environments.latest]",
        "a word such as",
    ),
    "an environment without a home": Wrong(
        lambda: environments("staging = {}"), InputError, "'staging' has no home", "environments.staging]", "home ="
    ),
    "an environment with a misspelt key": Wrong(
        lambda: environments('staging = {home = "x", alas = "y"}'),
        InputError,
        "'alas', did you mean 'alias'?",
        "environments.staging]",
        "the settings are home",
    ),
    "an environment whose home is a number": Wrong(
        lambda: environments("staging = {home = 3}"), InputError, "home is 3", "environments.staging]", "write a text"
    ),
    "an environment whose alias is two words": Wrong(
        lambda: environments('staging = {home = "x", alias = "a b"}'),
        InputError,
        "alias is 'a b'",
        "environments.staging]",
        "a word such as production",
    ),
    "an environment that there is not": Wrong(
        lambda: (environments('staging = {home = "x"}'), open_environment("stagng")),
        InputError,
        "'stagng', did you mean 'staging'?",
        "environments.stagng]",
        "there are staging",
    ),
    "an environment on no disk": Wrong(
        lambda: (environments('staging = {home = "/no/such/disk/x"}'), open_environment("staging")),
        StoreError,
        "the disk of the environment 'staging' is not there",
        "/no/such/disk",
        "mount it",
    ),
    "an environment at no address": Wrong(
        lambda: (
            environments('staging = {home = "x", tracking_uri = "ftp://ann:hunter2@x"}'),
            open_environment("staging"),
        ),
        InputError,
        "tracking_uri is not an address",
        "environments.staging]",
        "begin it with",
    ),
    "an environment of an unset variable": Wrong(
        lambda: (environments('staging = {home = "$NO_SUCH_VARIABLE/x"}'), open_environment("staging")),
        InputError,
        "not set: NO_SUCH_VARIABLE",
        "environments.staging]",
        "set NO_SUCH_VARIABLE",
    ),
    "a text with an unset variable": Wrong(
        lambda: expanded("${NO_SUCH_VARIABLE}", "url"),
        InputError,
        "not set: NO_SUCH_VARIABLE",
        "url",
        "set NO_SUCH_VARIABLE",
    ),
    "a store that there is not": Wrong(
        lambda: open_store("none", create=False), StoreError, "there is no store here", "none", "--env"
    ),
    "a store that is a file": Wrong(
        lambda: open_store(written("store", "")),
        StoreError,
        "the file system refuses: File exists",
        "store",
        "N2P_HOME",
    ),
    "a file below a file": Wrong(
        lambda: write_atomic(written("a", "").joinpath("b"), "x"),
        StoreError,
        "the file system refuses",
        "a",
        "check the path",
    ),
    "lines in a folder": Wrong(
        lambda: read_json_lines(Path.cwd()),
        StoreError,
        "the file system refuses: Is a directory",
        "project",
        "check the path",
    ),
    "a lock that another holds": Wrong(
        locked_twice, StoreError, "held the lock 'gc' for 0.01 s", "gc.lock", "wait for the other"
    ),
    "a file that does not ship": Wrong(
        lambda: shipped_file("none.txt"), StoreError, "a file of the package is missing", "none.txt", "install"
    ),
    "a deprecation of the same version": Wrong(
        lambda: Deprecation("f()", "0.2", "0.3", "use g()"),
        InputError,
        "f() would go in 0.3, too early",
        "removed_in",
        "two later",
    ),
    "a deprecation in other words": Wrong(
        lambda: parse_deprecation("f() is old"),
        InputError,
        "does not say what users have to know: f() is old",
        "deprecated",
        "NAME is deprecated since",
    ),
}


def test_an_address_that_is_wrong_is_not_shown(project: Any) -> None:
    assert "hunter2" not in str(check(PROJECT["an environment at no address"]))


# Notebooks and parameters


def notebook(source: str = "x = 1", **cells: str) -> Path:
    return make_notebook(Path("train.ipynb"), {"parameters": source, **cells})


def given(source: str = "x = 1", **values: Any) -> Any:
    return check_parameters(read_notebook(notebook(source)), given=values)


def configured(text: str) -> Any:
    settings(f"[tool.n2p]\n{text}")
    return read_config(notebook())


NOTEBOOKS = {
    "a notebook that there is not": Wrong(
        lambda: read_notebook("none.ipynb"), NotFoundError, "no such notebook", "none.ipynb", "an .ipynb file"
    ),
    "a notebook that is a folder": Wrong(
        lambda: read_notebook("."), NotFoundError, "a folder, not a notebook", ".", "an .ipynb file"
    ),
    "a notebook that is no JSON": Wrong(
        lambda: read_notebook(written("a.ipynb", "{")),
        NotebookError,
        "the notebook cannot be read",
        "a.ipynb",
        "restore it from git",
    ),
    "a notebook that is a list": Wrong(
        lambda: read_notebook(written("a.ipynb", "[]")),
        NotebookError,
        "not a Jupyter notebook of format 4",
        "a.ipynb",
        "an .ipynb file",
    ),
    "a notebook of format 3": Wrong(
        lambda: read_notebook(written("a.ipynb", '{"worksheets": []}')),
        NotebookError,
        "not a Jupyter notebook of format 4",
        "a.ipynb",
        "save it in Jupyter once",
    ),
    "a notebook of malformed cells": Wrong(
        lambda: read_notebook(written("a.ipynb", '{"cells": [3]}')),
        NotebookError,
        "the notebook is malformed",
        "a.ipynb",
        "restore it from git",
    ),
    "a notebook in R": Wrong(
        lambda: parse_notebook(
            {"cells": [], "metadata": {"kernelspec": {"name": "ir", "language": "R"}}}, Path("a.ipynb")
        ),
        NotebookError,
        "is written in R",
        "a.ipynb",
        "runs Python notebooks",
    ),
    "a notebook without code": Wrong(
        lambda: read_notebook(make_notebook(Path("a.ipynb"), {})),
        NotebookError,
        "no code cells",
        "a.ipynb",
        "add cells",
    ),
    "parameters that are not Python": Wrong(
        lambda: read_notebook(notebook("x = = 1")).parameters,
        NotebookError,
        "the parameters cell is not valid Python",
        "cell 'parameters', line 1",
        "plain assignments",
    ),
    "a misspelt parameter": Wrong(
        lambda: given("alpha = 1", alhpa=2), ParameterError, "'alhpa', did you mean 'alpha'?", "train.ipynb", "alpha"
    ),
    "a parameter of another type": Wrong(lambda: given(x="a"), ParameterError, "'x' must be", "train.ipynb", "x"),
    "a secret that is not set": Wrong(
        lambda: secret("NO_SUCH_SECRET"),
        ParameterError,
        "'NO_SUCH_SECRET' is not set",
        "@env:NO_SUCH_SECRET",
        "export NO_SUCH_SECRET=",
    ),
    "a secret that is too short": Wrong(
        lambda: short(), ParameterError, "too short to be kept secret", "@env:N2P_TEST_SHORT", "at least"
    ),
    "a parameter file that there is not": Wrong(
        lambda: read_parameter_file(Path("none.yml")), ParameterError, "cannot be read", "none.yml", "NAME: VALUE"
    ),
    "a parameter file that is no YAML": Wrong(
        lambda: read_parameter_file(written("p.yml", "{")), ParameterError, "cannot be read", "p.yml", "NAME: VALUE"
    ),
    "a parameter file that is a number": Wrong(
        lambda: read_parameter_file(written("p.yml", "3")),
        ParameterError,
        "does not hold NAME: VALUE pairs",
        "p.yml",
        "NAME: VALUE",
    ),
    "a grid without values": Wrong(
        lambda: combined_sets(notebook(), grid=["x="]), ParameterError, "'x=' is no grid", "--grid", "NAME=VALUE,VALUE"
    ),
    "a parameter twice": Wrong(
        lambda: combined_sets(notebook(), [("x", "1")], grid=["x=1,2"]),
        ParameterError,
        "'x' is given twice",
        "--grid",
        "one value with -p",
    ),
    "a seed that is a text": Wrong(
        lambda: seed_everything("1"), ParameterError, "the seed is '1'", "n2p.start(seed=...)", "a whole number"
    ),  # type: ignore[arg-type]
    "a sweep of nothing": Wrong(
        lambda: run_sweep(notebook(), []), ParameterError, "there is no parameter set", "train.ipynb", "--grid"
    ),
    "an output that is a folder": Wrong(
        lambda: run_notebook(notebook(), output="."), InputError, "the output is a folder", ".", "--output"
    ),
    "a notebook that cannot be reproduced": Wrong(
        lambda: require_clean(read_notebook(notebook(fit="undefined_name"))),
        CheckError,
        "the notebook cannot be reproduced",
        "train.ipynb",
        "n2p check train.ipynb",
    ),
    "a check that is a number": Wrong(
        lambda: configured("check = 3"), InputError, "this is not a table", "check", "as lists of codes"
    ),
    "a check with an unknown key": Wrong(
        lambda: configured("check = {ignroe = []}"), InputError, "unknown key 'ignroe'", "check", "the keys are"
    ),
    "a check with a text": Wrong(
        lambda: configured('check = {ignore = "N2P101"}'),
        InputError,
        "'ignore' is not a list",
        "check",
        'ignore = ["N2P101"]',
    ),
    "a check with an unknown code": Wrong(
        lambda: configured('check = {ignore = ["N2P105"]}'),
        InputError,
        "there is no code 'N2P105'",
        "check",
        "did you mean N2P",
    ),
    "a raw notebook that is not Python": Wrong(
        lambda: adopt(notebook(fit="def f(:")),
        NotebookError,
        "a cell is not valid Python",
        "train.ipynb, cell 'fit', line 1",
        "correct it in Jupyter",
    ),
    "a folder that holds something": Wrong(
        lambda: adopt(notebook(), "."), InputError, "the folder is not empty", ".", "--out"
    ),
    "a target that nobody speaks of": Wrong(
        lambda: adopt(notebook(), target="delay"),
        InputError,
        "does not speak of a column 'delay'",
        "--target",
        "the column that the model predicts",
    ),
    "a target that another is fitted to": Wrong(
        lambda: adopt(notebook("m.fit(df[['b']], df['late'])\nx = 'delay'"), target="delay"),
        InputError,
        "fitted to predict 'late', not 'delay'",
        "--target",
        "leave --target out",
    ),
    "a notebook that takes too long": Wrong(
        lambda: adopt(notebook(fit="import time\ntime.sleep(60)"), timeout=0.01),
        RunTimeoutError,
        "takes longer than the 0.01 s",
        "train.ipynb",
        "--timeout",
    ),
}


def short() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_TEST_SHORT", "ab")
        return secret("N2P_TEST_SHORT")


# Datasets


def loaded(name: str, content: str | bytes, **options: Any) -> Any:
    written(name, content)
    return load(name, **options)


def zipped(*names: str) -> bytes:
    with zipfile.ZipFile("made.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "a\n1\n")
    return Path("made.zip").read_bytes()


def folder_of(**files: str) -> str:
    for name, content in files.items():
        written(f"rows/{name.replace('_', '.')}", content)
    return "rows"


def replayed(names: dict[str, str]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_REPLAY_DATA", json.dumps(names))
        return loaded("rows.csv", "a\n1\n")


def damaged() -> Any:
    store = open_store()
    blob = keep_file(store, written("rows.csv", "a\n" + "1\n" * 9))
    path = next(each for each in (store.data / "blobs").rglob("*") if each.is_file())
    path.chmod(0o644)
    path.write_bytes(b"other")
    return verify_blob(store, blob.digest)


def garbage() -> Any:
    written(".n2p/bundles/abc/metadata.json", "{")
    return collect_garbage(open_store())


def without_git(act: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        return act()


def tracked_by_dvc(content: str) -> Path:
    written(".dvc/config", "")
    written("rows.csv.dvc", content)
    return Path("rows.csv")


OUTPUT = "outs:\n- md5: 0123456789abcdef0123456789abcdef\n  size: 4\n  path: rows.csv\n"
ONE, TWO = pd.DataFrame({"a": [1], "b": [1]}), pd.DataFrame({"a": [1, 1], "c": [1, 2]})

DATA = {
    "a format that is not read": Wrong(
        lambda: find_format("rows.sav", "rows.sav"),
        DataError,
        "the format '.sav' is not read",
        "rows.sav",
        "write format=",
    ),
    "a file without a suffix": Wrong(
        lambda: find_format("rows", "rows"), DataError, "cannot be told without a suffix", "rows", "write format="
    ),
    "a file that there is not": Wrong(lambda: load("none.csv"), DataError, "no such file", "none.csv", "looked in"),
    "a pattern that fits nothing": Wrong(
        lambda: load("none*.csv"), DataError, "no file fits the pattern", "none*.csv", "looked in"
    ),
    "a file that is empty": Wrong(lambda: loaded("rows.csv", ""), DataError, "the file is empty", "rows.csv", "check"),
    "a file that is none of its kind": Wrong(
        lambda: loaded("rows.jsonl", "{"), DataError, "cannot be read as jsonl", "rows.jsonl", "format="
    ),
    "a Parquet file that is none": Wrong(
        lambda: loaded("rows.parquet", "a\n1\n"),
        DataError,
        "cannot be read as parquet",
        "rows.parquet",
        "check that its content",
    ),
    "an archive of two files": Wrong(
        lambda: loaded("rows.csv.zip", zipped("a.csv", "b.csv")),
        DataError,
        "the archive holds 2 files",
        "rows.csv.zip",
        "pack one file",
    ),
    "a table in chunks": Wrong(
        lambda: loaded("rows.csv", "a\n1\n", chunksize=1), DataError, "not one table", "rows.csv", "leave out chunksize"
    ),
    "a table without columns": Wrong(
        lambda: loaded("rows.jsonl", "{}\n"), DataError, "the file holds no columns", "rows.jsonl", "a header"
    ),
    "a package that a format needs": Wrong(
        lambda: without_module("openpyxl", lambda: loaded("rows.xlsx", zipped("xl/workbook.xml"))),
        DependencyError,
        "reading .xlsx needs a package",
        "rows.xlsx",
        "pip install 'notebook-to-prod[excel]'",
    ),
    "files of other columns": Wrong(
        lambda: load(folder_of(a_csv="a\n1\n", b_csv="b\n1\n")),
        DataError,
        "file 2 of 2 differs in its columns: a, b",
        "rows",
        "one schema",
    ),
    "files of other formats": Wrong(
        lambda: load(folder_of(a_csv="a\n1\n", b_jsonl="{}\n")),
        DataError,
        "different formats",
        "rows: a.csv, b.jsonl",
        "a pattern",
    ),
    "a folder of nothing": Wrong(
        lambda: (Path("empty").mkdir(), load("empty")),
        DataError,
        "the folder holds no files",
        "empty",
        "files of one format",
    ),
    "a name that is too long": Wrong(
        lambda: load("x" * 300), DataError, "too long for a file", "xxx…", "the path of a file"
    ),
    "a package that is not installed": Wrong(
        lambda: load("package:no_such_package/rows.csv"),
        DependencyError,
        "'no_such_package' is not installed",
        "package:no_such_package",
        "pip install",
    ),
    "a package without the file": Wrong(
        lambda: load("package:notebook_to_prod/none.csv"),
        DataError,
        "has no file 'none.csv'",
        "package:notebook_to_prod",
        "package:NAME/path",
    ),
    "no file system": Wrong(
        lambda: load("nowhere://rows.csv"),
        DataError,
        "there is no file system 'nowhere://'",
        "nowhere://rows.csv",
        "the beginning of the address",
    ),
    "a file system whose package is not there": Wrong(
        lambda: without_module("fsspec.implementations.github", lambda: load("github://a:b@main/rows.csv")),
        DependencyError,
        "reading github:// needs a package",
        "github://",
        "pip install",
    ),
    "a file that is nowhere in memory": Wrong(
        lambda: load("memory://none.csv"), DataError, "no such file", "memory://none.csv", "check the address"
    ),
    "a pattern that fits nothing in memory": Wrong(
        lambda: load("memory://none*.csv"), DataError, "no such file", "memory://none*.csv", "check the address"
    ),
    "parts that are nowhere in memory": Wrong(
        lambda: find_parts("memory://none.csv"), DataError, "no such file", "memory://none.csv", "check the address"
    ),
    "a server that is not there": Wrong(
        lambda: load("http://127.0.0.1:1/rows.csv"),
        ServerError,
        "does not answer",
        "http://127.0.0.1:1/rows.csv",
        "the network",
    ),
    "parts on a server that is not there": Wrong(
        lambda: find_parts("ftp://127.0.0.1:1/rows.csv"),
        ServerError,
        "does not answer",
        "ftp://127.0.0.1",
        "the network",
    ),
    "what a run did not load": Wrong(
        lambda: replayed({}), DataError, "the run that is repeated did not load this", "rows.csv", "of its record"
    ),
    "a snapshot that is gone": Wrong(
        lambda: replayed({"rows.csv": "sha256:00"}),
        StoreError,
        "the snapshot of 'rows.csv' is not in the store",
        "sha256:00",
        "n2p data gc",
    ),
    "content that is damaged": Wrong(damaged, StoreError, "a snapshot is damaged", "blobs", "from a backup"),
    "content that there is not": Wrong(
        lambda: write_blob(open_store(), "sha256:" + "0" * 64, Path("x")),
        StoreError,
        "does not hold this content",
        "sha256:00",
        "use the store",
    ),
    "a file that cannot be opened": Wrong(
        lambda: keep_file(open_store(), Path("none.csv")),
        DataError,
        "the file cannot be read: No such file",
        "none.csv",
        "check the path",
    ),
    "a file that is a folder": Wrong(
        lambda: keep_file(open_store(), Path()), DataError, "the file cannot be read", ".", "check the path"
    ),
    "a snapshot that nobody made": Wrong(
        lambda: find_dataset(open_store(), "abcd"),
        NotFoundError,
        "there is no snapshot 'abcd'",
        "data",
        "n2p data add PATH",
    ),
    "a place that is taken": Wrong(
        lambda: (loaded("rows.csv", "a\n1\n"), checkout(open_store(), "rows.csv", Path("rows.csv"))),
        InputError,
        "something is there already",
        "rows.csv",
        "--force",
    ),
    "a bundle whose metadata are damaged": Wrong(
        garbage, StoreError, "the metadata of a bundle is damaged", "metadata.json", "restore the bundle"
    ),
    "two columns of one name": Wrong(
        lambda: compare_tables(TWO.set_axis(["a", "a"], axis=1), TWO),
        DataError,
        "two columns have the name 'a'",
        "the table before",
        "name them apart",
    ),
    "a key that one table lacks": Wrong(
        lambda: compare_tables(ONE, TWO, ["b"]), DataError, "no column 'b' in both tables", "key", "use one of a"
    ),
    "a key of two rows": Wrong(
        lambda: compare_tables(ONE, TWO, ["a"]), DataError, "names two rows of the table after", "a = 1", "add a column"
    ),
    "a file of DVC that is no YAML": Wrong(
        lambda: find_output(tracked_by_dvc("{")), DataError, "DVC's file cannot be read", "rows.csv.dvc", "dvc add"
    ),
    "a file that DVC has": Wrong(
        lambda: without_module("dvc", lambda: fetch(tracked_by_dvc(OUTPUT), "rows.csv")),
        DependencyError,
        "DVC, which tracks it, is not installed",
        "rows.csv, tracked by",
        "pip install",
    ),
    "an address of no database": Wrong(
        lambda: sql_name("sqlite:/x", {"table": "t"}),
        DataError,
        "no address of a database",
        "sqlite:/x",
        "dialect+driver",
    ),
    "a database without a query": Wrong(
        lambda: sql_name("sqlite:///x.db", {}),
        DataError,
        "needs a query or a table",
        "sqlite:///x.db",
        "n2p.load(ADDRESS",
    ),
    "a database that there is not": Wrong(
        lambda: query_table("sqlite:///x.db", {"table": "t"}),
        DataError,
        "no such file",
        "sqlite:///x.db",
        "sqlite:///relative.db",
    ),
    "a table that there is not": Wrong(
        lambda: queried(table="u"), DataError, "there is no table 'u'", "x.db", "check the name"
    ),
    "a query that is none": Wrong(
        lambda: queried(query="selec 1"), DataError, "the database refuses", "x.db", "check the query"
    ),
    "a query that gives nothing": Wrong(
        lambda: queried(query="delete from t"), DataError, "the query returns no rows", "x.db", "a query that selects"
    ),
    "a query of a column twice": Wrong(
        lambda: queried(query="select a, a from t"), DataError, "more than one column 'a'", "x.db", "name them apart"
    ),
    "a dialect that there is not": Wrong(
        lambda: query_table("nosuch://host/db", {"table": "t"}),
        DependencyError,
        "SQLAlchemy has no dialect 'nosuch'",
        "nosuch://host/db",
        "the package of the dialect",
    ),
    "a driver that is not installed": Wrong(
        lambda: query_table("mysql+oursql_x://host/db", {"table": "t"}),
        DependencyError,
        "SQLAlchemy has no dialect",
        "mysql",
        "install",
    ),
    "a driver that is missing": Wrong(
        lambda: without_module("psycopg", lambda: query_table("postgresql+psycopg://h/db", {"table": "t"})),
        DependencyError,
        "the driver 'psycopg' is not installed",
        "postgresql",
        "pip install",
    ),
    "a database that does not answer": Wrong(
        lambda: query_table("postgresql+psycopg://ann:hunter2@127.0.0.1:1/db", {"table": "t"}),
        ServerError,
        "the database does not answer",
        "127.0.0.1:1/db",
        "check that it runs",
    ),
    "a scrap of a model": Wrong(
        lambda: encode(object(), "model"),
        DataError,
        "a object cannot be recorded as a scrap",
        "scrap 'model'",
        "into the bundle instead",
    ),
    "a scrap of a deep index": Wrong(
        lambda: encode(pd.MultiIndex.from_tuples([(1, 2)]), "rows"),
        DataError,
        "an index of several levels",
        "scrap 'rows'",
        "index.to_frame()",
    ),
    "a scrap of mixed types": Wrong(
        lambda: encode(pd.DataFrame({"a": [1, "x"]}), "rows"),
        DataError,
        "cannot be written as Parquet",
        "scrap 'rows'",
        "each column one type",
    ),
    "a scrap of the future": Wrong(
        lambda: decode({"n2p.type": "hologram"}),
        DataError,
        "unknown scrap type 'hologram'",
        "scrap",
        "the version of notebook_to_prod",
    ),
}


def queried(**options: Any) -> Any:
    import sqlite3

    with contextlib.closing(sqlite3.connect("x.db")) as connection:
        connection.execute("create table t (a int)")
        connection.commit()
    return query_table("sqlite:///x.db", options)


# Git, locks and records


def repository() -> Path:
    subprocess.run(["git", "init", "-q"], check=True)
    return Path.cwd()


def refusing_git() -> Any:
    written(".git/config.lock", "") if repository() else None
    return git_install(Path.cwd())


def record(content: str) -> Any:
    return read_record(written(".n2p/runs/a-1/record.json", content).parent)


def threads(value: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_THREADS", value)
        return thread_count()


def mlflow(error: Exception) -> None:
    with tracking_errors(open_store()):
        raise error


def request_error(*said: str) -> Exception:
    from requests.exceptions import RequestException

    return RequestException(*said)


AROUND = {
    "no git": Wrong(
        lambda: without_git(lambda: working_tree(Path.cwd())),
        DependencyError,
        "git is not installed",
        "project",
        "install git",
    ),
    "no git to compare with": Wrong(
        lambda: without_git(lambda: has_revision("HEAD", Path.cwd())),
        DependencyError,
        "git is not installed",
        "HEAD",
        "compare two files",
    ),
    "no git to read from": Wrong(
        lambda: without_git(lambda: read_revision("HEAD", Path("a.ipynb"))),
        DependencyError,
        "git is not installed",
        "HEAD:a.ipynb",
        "compare two files",
    ),
    "no git to merge with": Wrong(
        lambda: without_git(lambda: merge_sources("a", "b", "c")),
        DependencyError,
        "git is not installed",
        "merge of a cell",
        "install git",
    ),
    "no repository": Wrong(lambda: working_tree(Path("/")), InputError, "not in a git repository", "/", "git init"),
    "a repository that cannot be set up": Wrong(
        refusing_git, StoreError, "git refuses", ".git/config", "write permission"
    ),
    "a revision that there is not": Wrong(
        lambda: (repository(), read_revision("HEAD", Path("a.ipynb"))),
        NotFoundError,
        "git has no such notebook",
        "HEAD:a.ipynb",
        "git log",
    ),
    "a notebook that git has as a text": Wrong(
        lambda: committed("not JSON"), NotebookError, "the notebook cannot be read", "HEAD:a.ipynb", "another revision"
    ),
    "a lock that is no lock": Wrong(
        lambda: find_lockfile(written("uv.lock", "[").parent),
        InputError,
        "the lock cannot be read",
        "uv.lock",
        "the tool that made it",
    ),
    "another environment": Wrong(
        lambda: require_locked(written("requirements.lock", "pandas==0.1\n").parent),
        LockMismatchError,
        "the environment is not the locked one: pandas",
        "requirements.lock",
        "pip install",
    ),
    "a project that requires nothing": Wrong(
        lambda: (Path("pyproject.toml").unlink(), lock_project(Path.cwd())),
        InputError,
        "does not say what it requires",
        "project",
        "requirements.in",
    ),
    "requirements that contradict": Wrong(
        lambda: compile_requirements(written("requirements.in", "a==1\na==2\n"), "--offline"),
        DependencyError,
        "cannot be resolved",
        "requirements.in",
        "check the network",
    ),
    "threads of nothing": Wrong(
        lambda: threads("0"), ParameterError, "N2P_THREADS is '0'", "environment", "a positive number"
    ),
    "a run that there is not": Wrong(
        lambda: find_run(open_store(), "latest"), NotFoundError, "there is no run 'latest'", "runs", "n2p run NOTEBOOK"
    ),
    "a run that fits twice": Wrong(
        lambda: [written(f".n2p/runs/a-{each}/record.json", "{}") for each in "12"] and find_run(open_store(), "a-"),
        NotFoundError,
        "'a-' fits 2 runs",
        "runs",
        "say which: a-1, a-2",
    ),
    "a record that is cut short": Wrong(
        lambda: record("{"), StoreError, "the record of a run is damaged", "record.json", "run the notebook again"
    ),
    "a record whose question is a list": Wrong(
        lambda: record('{"spec": []}'),
        StoreError,
        "the record of a run is damaged",
        "record.json",
        "run the notebook again",
    ),
    "MLflow that is not there": Wrong(
        lambda: mlflow(request_error("refused by http://ann:hunter2@x/")),
        TrackingError,
        "MLflow does not work: refused by http://***@x/",
        "sqlite:///",
        "MLFLOW_TRACKING_URI",
    ),
    "MLflow that says nothing": Wrong(
        lambda: mlflow(request_error()),
        TrackingError,
        "MLflow does not work: RequestException",
        "sqlite:///",
        "MLFLOW_TRACKING_URI",
    ),
}


def committed(text: str) -> Any:
    repository()
    written("a.ipynb", text)
    subprocess.run("git add a.ipynb && git -c user.name=a -c user.email=a@b commit -qm a", shell=True, check=True)
    return read_revision("HEAD", Path("a.ipynb"))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("content", ["outs: 3", "outs: [3]", "wdir: [3]\nouts: [{path: rows.csv}]"])
def test_a_file_of_dvc_of_another_form_tracks_nothing(content: str) -> None:
    assert find_output(tracked_by_dvc(content)) is None


# What a run and a sweep tell of in place of raising


def told(error: dict[str, Any] | None) -> None:
    """Raise what an outcome says."""
    assert error is not None
    raise getattr(errors, error["type"])(error["what"], where=error["where"], remedy=error["remedy"])


def failing() -> Any:
    raise MemoryError("no space")


def unexpected() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notebook_to_prod.train.sweep.run_notebook", lambda *some, **more: failing())
        return _run_set(open_store(), "train.ipynb", {}, {})


def by_papermill(path: Path) -> Any:
    import papermill

    return papermill.execute_notebook(str(path), "out.ipynb", engine_name="notebook_to_prod", progress_bar=False)


def lost(dataset: Any) -> Any:
    shutil.rmtree(open_store().data)
    return read_dataset(open_store(), dataset)


class Unreadable(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError("input/output error")


ODD = """
import time
from sklearn.metrics import mean_absolute_error
error = mean_absolute_error([0.0], [time.time_ns() % 1_000_003])
print(error)
"""

OUTCOMES = {
    "a set that fails unexpectedly": Wrong(
        lambda: told(unexpected().error),
        RunError,
        "unexpected MemoryError: no space",
        "train.ipynb",
        "run this set alone",
    ),
    "a worker that is gone": Wrong(
        lambda: told(_outcome(SimpleNamespace(result=failing), {}).error),
        KernelDiedError,
        "the worker is gone: MemoryError",
        "worker",
        "fewer --workers",
    ),
    "a notebook without code in papermill": Wrong(
        lambda: by_papermill(make_notebook(Path("a.ipynb"), {})),
        NotebookError,
        "no code cells",
        "a.ipynb",
        "add cells",
    ),
    "a snapshot that a list names": Wrong(
        lambda: lost(add(written("rows.csv", "a\n1\n"))),
        NotFoundError,
        "the snapshot is not in the store",
        "sha256:",
        "n2p data list",
    ),
    "two snapshots of one beginning": Wrong(
        lambda: two_alike(), NotFoundError, "fits 2 snapshots", "data", "more of the digest"
    ),
    "a footer that is none": Wrong(
        lambda: add(written("rows.parquet", "a")),
        DataError,
        "cannot be read as parquet",
        "rows.parquet",
        "its suffix",
    ),
    "a file that cannot be read on": Wrong(
        lambda: keep_stream(open_store(), Unreadable(), "rows.csv"),
        DataError,
        "the file cannot be read: input/output error",
        "rows.csv",
        "the disk",
    ),  # type: ignore[arg-type]
    "a file that DVC has no remote for": Wrong(
        lambda: fetch(tracked_by_dvc(OUTPUT), "rows.csv"),
        UnavailableError,
        "DVC cannot fetch the file: ",
        "rows.csv, tracked by",
        "the remote is not set",
    ),
    "a sweep on no scheduler": Wrong(
        lambda: run_sweep(notebook(), [{}], dask="nowhere", allow_unlocked=True),
        UnavailableError,
        "the Dask scheduler does not answer",
        "nowhere",
        "--dask local",
    ),
    "a sweep that is stopped": Wrong(
        lambda: run_sweep(notebook(), [{}, {"x": 2}], progress=stop, allow_unlocked=True),
        RunInterruptedError,
        "the sweep was stopped after 0 of 2 sets",
        "train.ipynb",
        "what is finished is answered from the record",
    ),
    "MLflow without the driver of its database": Wrong(
        lambda: no_driver(),
        DependencyError,
        "the driver of PostgreSQL is not installed",
        "127.0.0.1",
        "pip install 'notebook-to-prod[postgres]'",
    ),
    "a store of MLflow that a cell breaks": Wrong(
        lambda: run_notebook(breaking(), allow_unlocked=True),
        TrackingError,
        "MLflow does not work: ",
        "mlflow.db",
        "the run itself is recorded: ",
    ),
    "a notebook that is never the same": Wrong(
        lambda: adopt(make_notebook(Path("odd.ipynb"), {"score": ODD})),
        NotebookError,
        "the notebook does otherwise each time it is run",
        "odd.ipynb",
        "seed what n2p check names",
    ),
    "a repair on a full disk": Wrong(
        lambda: unwritten(),
        NotebookError,
        "the notebook cannot be written: ",
        "train.ipynb",
        "give this user write permission",
    ),
    "Dask that is not installed": Wrong(
        lambda: without_module("distributed", lambda: run_sweep(notebook(), [{}], dask="local")),
        DependencyError,
        "Dask is not installed",
        "--dask",
        "pip install",
    ),
}


def test_a_file_that_changes_is_not_kept(project: Any) -> None:
    with pytest.raises(DataError, match="the file changed while it was read") as caught:
        keep_stream(open_store(), io.BytesIO(b"a"), "rows.csv", lambda: False)
    assert (caught.value.where, caught.value.remedy) == ("rows.csv", "load it again when nothing writes to it")
    assert not [*(open_store().data / "blobs").rglob("*.zst")], "nothing is left of it"


def unwritten() -> Any:
    path = notebook("seed = 1", draw="import random\nrandom.Random()")
    return on_a_full_disk(lambda: fix_notebook(path))


def breaking() -> Path:
    source = "from pathlib import Path\nPath('.n2p/mlflow.db').write_bytes(b'nothing of the kind' * 999)"
    return notebook(**{"break": source})


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def no_driver() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://ann:hunter2@127.0.0.1:1/db")
        return without_module("psycopg", lambda: Registry(open_store()).names())


def two_alike() -> Any:
    """Find what begins like two snapshots."""
    known: dict[str, str] = {}
    for number in range(10_000):
        content = f"a\n{number}\n"
        start = hashlib.sha256(content.encode()).hexdigest()[:4]
        if start in known:
            break
        known[start] = content
    for name, each in (("one.csv", content), ("two.csv", known[start])):
        add(written(name, each))
    return find_dataset(open_store(), start)


@pytest.mark.usefixtures("project")
@each_of(PROJECT, NOTEBOOKS, DATA, AROUND, OUTCOMES)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)
