"""A project of `n2p new` runs, is gated and served at once, is there whole or not at all, and is brought up to date with every edit."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from notebooks import SCRIPTS, Done, Project

from notebook_to_prod.errors import InputError, StoreError
from notebook_to_prod.package.gates.verdict import read_reports
from notebook_to_prod.project import Store
from notebook_to_prod.scaffold import upgrade
from notebook_to_prod.scaffold.new import RECORD, check_project_name, new_project, read_record
from notebook_to_prod.scaffold.template import read_templates, template_folder
from notebook_to_prod.scaffold.upgrade import apply_upgrade, plan_upgrade

PATH = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
AUTHOR = {f"GIT_{who}_{what}": "n@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
MINUTES = 3  # From `n2p new` to a prediction over HTTP


def make(project: Project, name: str, *options: str | Path, **variables: str) -> Path:
    """A new project below `project`, without a lock: that asks the package index."""
    done = project.n2p("new", name, "--no-lock", *options, **variables)
    assert done.code == 0, done
    return project.folder / name


def shell(line: str, folder: Path, project: Project, timeout: float = 240.0, **variables: str) -> Done:
    """Run a line as a person would."""
    environment = project.environment({"PATH": PATH, **variables})
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", line]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=timeout)
    return Done(done.returncode, done.stdout, done.stderr)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"pyproject.toml"}


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text, path
    path.write_text(text.replace(before, after), "utf-8")


def quiet(text: str) -> None:
    pass


# What runs


def test_four_commands_lead_from_nothing_to_a_prediction_over_http(project: Project) -> None:
    """The very lines that are printed, with a real service on a real port, within the minutes that are promised."""
    began = time.monotonic()

    def seconds() -> float:
        return max(1.0, MINUTES * 60 - (time.monotonic() - began))

    made = shell("n2p new penguins --no-lock", project.folder, project, seconds())
    assert made.code == 0, made
    _, _, rest = made.stdout.partition("\nnext")
    run, serve, predict = (line.strip() for line in rest.strip().splitlines())
    assert run.startswith("cd penguins && n2p run ") and predict.startswith("curl ")
    ran = shell(run, project.folder, project, seconds())
    assert ran.code == 0, ran
    assert "version 1" in ran.stdout and serve in ran.stdout
    folder = project.folder / "penguins"
    assert shell("git status --porcelain", folder, project).stdout == ""  # a run leaves nothing in version control
    service = project.start("n2p", *shlex.split(serve)[1:], cwd=folder)
    try:
        answer = shell(f"until {predict} -f; do sleep 0.2; done", folder, project, seconds())
    finally:
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=60)
    said = json.loads(answer.stdout)
    assert said["model"] == "penguins" and said["predictions"] in (["male"], ["female"])


def steps(folder: Path, project: Project, *only: str) -> list[tuple[str, int, str]]:
    """Run steps of the workflow as a runner does, all by default; returns name, exit code and output of each that ran."""
    (job,) = yaml.safe_load((folder / ".github/workflows/model.yml").read_text("utf-8"))["jobs"].values()
    ran: list[tuple[str, int, str]] = []
    for step in (each for each in job["steps"] if "run" in each and (not only or each["name"] in only)):
        always = "!cancelled()" in step.get("if", "")
        if "pull_request" in step.get("if", "") or (not always and any(code for _, code, _ in ran)):
            continue
        if not only and "steps.train" in step.get("if", "") and "Training run" not in [name for name, _, _ in ran]:
            continue
        unset = {name: "" for name in job["env"]}  # what a runner makes of a secret or a variable that is not set
        summary = {"GITHUB_STEP_SUMMARY": str(folder.parent / "summary.md"), "PIP_NO_INDEX": "1"}
        done = shell(step["run"], folder, project, **unset, **summary)
        ran.append((step["name"], done.code, done.stdout + done.stderr))
    return ran


QUICK = 'skip = ["robustness", "explain", "serving"]\n'  # What takes most of the time of the gates


@pytest.mark.parametrize(
    ("template", "gates"),
    [
        ("forecasting", QUICK),
        *(pytest.param(each, "", marks=pytest.mark.slow) for each in ("classification", "regression", "forecasting")),
    ],
)
def test_every_step_of_the_workflow_runs_and_a_gate_that_fails_fails_it(
    project: Project, template: str, gates: str
) -> None:
    import importlib.metadata

    folder = make(project, "model-1", "--template", template)
    edit(folder / "pyproject.toml", "[tool.n2p.gates]\n", f"[tool.n2p.gates]\n{gates}")
    pin = importlib.metadata.version("click")  # installed: pip asks nobody for it
    (folder / "requirements.lock").write_text(f"click=={pin} --hash=sha256:{'0' * 64}\n")
    ran = steps(folder, project)
    assert [(name, code) for name, code, _ in ran] == [
        (name, 0) for name in ("Install", "Code quality", "Training run", "Gates", "Review")
    ], ran
    review = (folder / "review.md").read_text("utf-8")
    assert "### Gates" in review and "| quality.metric |" in review and "### Data validation" in review
    assert (folder.parent / "summary.md").read_text("utf-8").strip() == review.strip()
    run = json.loads((folder / "run.json").read_text("utf-8"))
    assert not run["reused"] and len(read_reports(Store(folder / ".n2p"), run["bundle"])) == 1  # asked once
    if template == "forecasting":  # trained on the past of a series
        metrics = run["metrics"]
        assert metrics["mean_absolute_error"] < metrics["mean_absolute_error_of_last_known"]
        assert "data.time_order" in review
        edit(folder / "pyproject.toml", "r2 = 0.8", "r2 = 0.999")
        if gates:  # the short form: that the review fails, too, is a test of its own
            assert [code for _, code, _ in steps(folder, project, "Gates")] == [1]
            return
        ran = steps(folder, project, "Gates", "Review")
        assert [(name, code) for name, code, _ in ran] == [("Gates", 1), ("Review", 1)], ran
        review = (folder / "review.md").read_text("utf-8")
        assert review.startswith("## ❌") and "quality.metric" in review.partition("<details>")[0]
        assert len(read_reports(Store(folder / ".n2p"), run["bundle"])) == 2


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project of penguins, in a repository."""
    return new_project("penguins", tmp_path_factory.mktemp("pattern"), lock=False, tell=quiet).folder


@pytest.fixture
def penguins(project: Project, pattern: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(pattern, project.folder / "penguins"))


def with_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    for number, cell in enumerate(each for each in notebook["cells"] if each["cell_type"] == "code"):
        cell |= {
            "execution_count": number + 1,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["a row\n"]}],
        }
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def test_outputs_stay_in_the_file_and_out_of_commits_and_the_hook_downloads_nothing(
    project: Project, penguins: Path
) -> None:
    (repository,) = yaml.safe_load((penguins / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repository["repo"] == "local" and {each["language"] for each in repository["hooks"]} == {"system"}
    path = penguins / "nbs/train.ipynb"
    clean = path.read_bytes()
    with_outputs(path)
    run = path.read_bytes()
    for hook in repository["hooks"]:
        done = shell(f"{hook['entry']} nbs/train.ipynb", penguins, project)
        assert done.code == 0, done
    assert (
        shell("git add -A && git diff --cached --quiet && python -m pytest -q -k outputs", penguins, project).code == 0
    )
    assert (
        shell("git show :nbs/train.ipynb", penguins, project).stdout.encode() == clean
    )  # the tag of the parameters, too
    assert path.read_bytes() == run
    before = (penguins / ".gitattributes").read_bytes()
    assert project.n2p("git", "install", cwd=penguins).code == 0  # what the README asks of a clone changes no file
    assert (penguins / ".gitattributes").read_bytes() == before


def test_notebooks_are_merged_by_the_driver_that_the_clone_has(project: Project, penguins: Path) -> None:
    """Two branches that run and change the same notebook; each has other outputs."""
    folder = penguins

    def change(branch: str, before: str, after: str, number: int) -> None:
        path = folder / "nbs/train.ipynb"
        assert shell(f"git checkout -q -B {branch} main", folder, project).code == 0
        edit(path, before, after)
        notebook = json.loads(path.read_text("utf-8"))
        notebook["cells"][1]["execution_count"] = number
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        assert shell("git -c user.name=n -c user.email=n@n commit -qam change", folder, project).code == 0

    change("one", "C=strength, max_iter=2_000", "C=strength, max_iter=3_000", 3)
    change("two", "stratify=known[target], ", "", 7)
    merged = shell("git -c user.name=n -c user.email=n@n merge -q one -m both", folder, project)
    text = (folder / "nbs/train.ipynb").read_text("utf-8")
    json.loads(text)
    assert "3_000" in text and "stratify" not in text, merged


def test_a_table_of_ones_own(project: Project) -> None:
    """With names that need quotes everywhere: blanks, letters with accents, a quote."""
    import numpy as np
    import pandas as pd

    draw = np.random.default_rng(3)
    table = pd.DataFrame({"größe (cm)": draw.normal(170, 9, 400), 'the "town"': draw.choice(["Łódź", "Nîmes"], 400)})
    table["weg?"] = np.where(table["größe (cm)"] + draw.normal(0, 4, 400) > 170, "ja", "nein")
    path = project.folder / "meine tabelle.csv"
    table.to_csv(path, index=False)
    made = project.n2p("new", "own", "--no-lock", "--json", "--data", path, "--target", "weg?", **AUTHOR)
    assert made.code == 0 and "your data is in it: data/meine_tabelle.csv" in made.json["git"], made
    folder = project.folder / "own"
    assert "data/meine_tabelle.csv" in shell("git ls-files", folder, project).stdout
    assert (folder / "data/meine_tabelle.csv").read_bytes() == path.read_bytes()
    assert json.loads((folder / "request.json").read_text("utf-8")).keys() == {"größe (cm)", 'the "town"'}
    done = project.n2p("run", "nbs/train.ipynb", "--register", "own", "--json", cwd=folder)
    assert done.code == 0 and (done.json["model"], done.json["version"]) == ("own", 1), done
    assert shell("python -m pytest -q -k data", folder, project).code == 0
    assert [each.action for each in plan_upgrade(folder).written] == []


WRONG = {
    "target": (("--target", "sx"), "there is no column 'sx', did you mean 'sex'?"),
    "kind": (("--target", "island", "--template", "regression"), "there is no column 'island'"),
    "classes": (("--target", "flipper_length_mm"), "'flipper_length_mm' has "),
    "template": (("--template", "forcasting"), "there is no template 'forcasting', did you mean 'forecasting'?"),
    "time": (("--time", "year"), "only a series has a column of the moment"),
    "unnamed": (("--data", "empty.csv"), "which column of the table is predicted?"),
    "empty": (("--data", "empty.csv", "--target", "a"), "the table cannot be read"),
    "binary": (("--data", "binary.csv", "--target", "a"), "the table cannot be read"),
    "small": (("--data", "small.csv", "--target", "a"), "2 rows of 2 columns have 'a'"),
    "form": (("--data", "small.parquet", "--target", "a"), "only tables in .csv files are taken"),
    "into": (("--into", "absent"), "the folder to make it in is not there"),
    "templates": (("--templates", "."), "the templates cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_made_is_told_before_anything_is_written(project: Project, case: str) -> None:
    (project.folder / "empty.csv").touch()
    (project.folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    for name in ("small.csv", "small.parquet"):
        (project.folder / name).write_text("a,b\n1,2\n3,4\n")
    before = left(project.folder)
    options, what = WRONG[case]
    given: dict[str, Any] = dict(zip((each.removeprefix("--") for each in options[::2]), options[1::2], strict=True))
    given |= {name: Path(given[name]) for name in ("data", "into", "templates") if name in given}
    with pytest.raises(InputError) as error:
        new_project("churn", lock=False, tell=quiet, **given)
    assert error.value.what.startswith(what) and error.value.where and error.value.remedy
    assert left(project.folder) == before


NAMES = ["", "..", "../up", "/tmp/absolute", "my model", "überraschung", "2nd", "-x", "a" * 60, "latest", "a\nb", "x'y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_needs_quotes_anywhere_is_refused_with_a_near_one(project: Project, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a project") as error:
        new_project(name, lock=False, tell=quiet)
    assert left(project.folder) == set() and left(project.folder.parent) == {"project"}
    _, _, near = (error.value.remedy or "").partition("such as ")
    if near:
        assert check_project_name(near.partition(";")[0])


def test_what_is_there_stays_as_it_is(project: Project) -> None:
    (project.folder / "folder").mkdir()
    (project.folder / "file").write_text("mine")
    (project.folder / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        done = project.n2p("new", name, "--no-lock", "--json")
        assert done.code == 2 and done.error["what"] == "there is something of that name", done
    assert left(project.folder) == {"folder", "file", "link"} and not any((project.folder / "folder").iterdir())
    made = make(project, "churn")
    (made / "requirements.in").write_text("mine\n")
    assert "n2p upgrade" in project.n2p("new", "churn", "--json").error["remedy"]
    assert (made / "requirements.in").read_text() == "mine\n"


def test_a_place_that_cannot_be_written_ends_with_3(project: Project) -> None:
    done = project.n2p("new", "churn", "--no-lock", "--json", "--into", "/proc")
    assert done.code == 3 and "--into" in done.error["remedy"], done


@pytest.fixture
def silent_index() -> Iterator[str]:
    """A package index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def test_a_killed_one_leaves_nothing_that_looks_like_a_project(project: Project, silent_index: str) -> None:
    process = project.start(
        "n2p", "new", "churn", UV_DEFAULT_INDEX=silent_index, UV_CACHE_DIR=str(project.folder / "c")
    )
    while not any(project.folder.glob(".*.churn.*.tmp/requirements.in")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (project.folder / "churn").exists()
    shutil.rmtree(project.folder / "c", ignore_errors=True)
    make(project, "churn")
    assert left(project.folder) == {"churn"}  # what was half made is gone


def test_without_an_index_there_is_a_project_without_a_lock(project: Project) -> None:
    offline = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(project.folder / "cache")}
    done = project.n2p("new", "churn", "--json", **offline)
    assert done.code == 0 and done.json["lock"].startswith("none: ") and "n2p lock" in done.json["lock"], done
    assert not (project.folder / "churn/requirements.lock").exists()


def test_of_two_at_the_same_time_one_makes_it(project: Project) -> None:
    command = ("new", "churn", "--no-lock", "--no-git", "--json")
    done = project.together(command, command, command)
    assert sorted(each.code for each in done) == [0, 2, 2], done
    assert left(project.folder) == {"churn"}
    assert not [path for path in (project.folder / "churn").iterdir() if path.name.endswith(".tmp")]


def test_it_says_what_becomes_of_version_control(project: Project, tmp_path: Path) -> None:
    without = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "EMAIL": ""}

    def said(name: str, *options: str, **variables: str) -> str:
        done = project.n2p("new", name, "--no-lock", "--json", *options, **variables)
        assert done.code == 0, done
        return done.json["git"]

    assert said("one", **without, **AUTHOR) == "a repository with a first commit"
    log = shell("git log --format=%s && git status --porcelain", project.folder / "one", project)
    assert log.stdout == "Start one with n2p new\n"
    assert said(
        "two", **without, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="user.useConfigOnly", GIT_CONFIG_VALUE_0="true"
    ).startswith("a repository without a commit: ")
    assert said("three", PATH=str(SCRIPTS)) == "none: git is not installed"
    assert said("four", "--no-git") == "none: --no-git" and not (project.folder / "four/.git").exists()
    assert said("five", "--into", str(project.folder / "one")).startswith("not touched: ")
    assert not (project.folder / "one/five/.git").exists()


# What is brought up to date


@pytest.fixture
def older(tmp_path: Path) -> tuple[Path, Path]:
    """Templates of version 1, and of version 2 with changes of four files, a new one and one less."""
    old, new = (Path(shutil.copytree(template_folder(), tmp_path / name)) for name in ("old", "new"))
    (old / "common/NOTES.md").write_text("old notes\n")
    edit(old / "common/pyproject.toml.jinja", "p99_ms = 300", "p99_ms = 900")
    edit(old / "common/requirements.in.jinja", "pytest\n", "")
    edit(old / "common/_dot_github/workflows/model.yml.jinja", "timeout-minutes: 30", "timeout-minutes: 90")
    edit(old / "classification/nbs/train.ipynb.jinja", "max_iter=2_000", "max_iter=100")
    edit(new / "template.toml", "version = 1", "version = 2")
    (new / "common/CODEOWNERS.jinja").write_text("* @<< name >>\n")
    return old, new


def from_older(older: tuple[Path, Path], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return new_project("churn", folder, templates=older[0], lock=False, repository=False, tell=quiet).folder


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_edits_are_kept_and_what_is_untouched_is_new(project: Project, older: tuple[Path, Path]) -> None:
    folder = from_older(older, project.folder)
    edit(folder / "pyproject.toml", 'window = "1d"', 'window = "6h"  # ü')
    edit(folder / "nbs/train.ipynb", "test_share = 0.35", "test_share = 0.25")
    edit(folder / "README.md", "# churn\n", "# Ours\n")
    (folder / ".pre-commit-config.yaml").unlink()
    (folder / "mine.txt").write_text("mine")
    before = everything(folder)
    dry = project.n2p("upgrade", "--dry-run", "--templates", older[1], cwd=folder)
    assert dry.code == 0 and "-p99_ms = 900" in dry.stdout and "+p99_ms = 300" in dry.stdout, dry
    assert everything(folder) == before
    done = project.n2p("upgrade", "--json", "--templates", older[1], cwd=folder)
    actions = {each["path"]: each["action"] for each in done.json["changes"]}
    assert done.code == 0 and (done.json["from"], done.json["to"]) == (1, 2), done
    assert actions == {
        ".github/workflows/model.yml": "replaced",
        ".pre-commit-config.yaml": "deleted",
        "CODEOWNERS": "written",
        "NOTES.md": "removed",
        "README.md": "kept",
        "nbs/train.ipynb": "merged",
        "pyproject.toml": "merged",
        "requirements.in": "replaced",
    }
    notebook = (folder / "nbs/train.ipynb").read_text("utf-8")
    assert "test_share = 0.25" in notebook and "max_iter=2_000" in notebook
    settings = (folder / "pyproject.toml").read_text("utf-8")
    assert 'window = "6h"  # ü' in settings and "p99_ms = 300" in settings
    assert (folder / "CODEOWNERS").read_text() == "* @churn\n" and (folder / "mine.txt").read_text() == "mine"
    assert project.n2p("check", "nbs/train.ipynb", cwd=folder).code == 0
    after = everything(folder)
    again = project.n2p("upgrade", "--json", "--templates", older[1], cwd=folder)
    assert again.code == 0 and everything(folder) == after  # nothing is left to do, and what was deleted stays so


def test_conflicts_are_marked_told_and_left_until_somebody_decides(project: Project, older: tuple[Path, Path]) -> None:
    folder = from_older(older, project.folder)
    edit(folder / "pyproject.toml", "p99_ms = 900", "p99_ms = 50")
    edit(folder / "nbs/train.ipynb", "max_iter=100", "max_iter=999")
    (folder / "CODEOWNERS").write_text("* @us\n")
    done = project.n2p("upgrade", "--json", "--templates", older[1], cwd=folder)
    assert done.code == 1 and done.json["conflicts"] == ["CODEOWNERS", "nbs/train.ipynb", "pyproject.toml"], done
    text = (folder / "pyproject.toml").read_text("utf-8")
    assert "<<<<<<< yours\np99_ms = 50" in text and ">>>>>>> template 2" in text
    assert "max_iter=999" in (folder / "nbs/train.ipynb").read_text("utf-8")  # a notebook that opens
    assert "max_iter=2_000" in (folder / "nbs/train.ipynb.new").read_text("utf-8")
    assert (folder / "CODEOWNERS").read_text() == "* @us\n" and (folder / "CODEOWNERS.new").is_file()
    marked = everything(folder)
    again = project.n2p("upgrade", "--json", "--templates", older[1], cwd=folder)
    assert again.code == 1 and again.json["unresolved"] == ["pyproject.toml"] and everything(folder) == marked
    told = project.n2p("doctor", "--json", cwd=folder)
    assert told.code == 1 and any(
        "marks of a conflict stand in pyproject.toml" in each["what"] for each in told.json["findings"]
    )
    lines = [
        line for line in text.splitlines() if not line.startswith(("<<<<<<<", "=======", ">>>>>>>", "p99_ms = 300"))
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n")
    assert project.n2p("upgrade", "--templates", older[1], cwd=folder).code == 0
    assert "p99_ms = 50" in (folder / "pyproject.toml").read_text("utf-8")


def test_an_upgrade_that_was_interrupted_goes_on(older: tuple[Path, Path], tmp_path: Path) -> None:
    """At every file: what is written before the end is what the whole would have written."""
    folder = from_older(older, tmp_path / "once")
    edit(folder / "pyproject.toml", 'window = "1d"', 'window = "6h"')
    copies = [Path(shutil.copytree(folder, tmp_path / f"copy{number}")) for number in range(5)]
    apply_upgrade(plan_upgrade(folder, older[1]))
    wanted = everything(folder)
    for number, copy in enumerate(copies):
        planned = plan_upgrade(copy, older[1])
        kept = (copy / RECORD).read_bytes()
        partial = type(planned)(**{**vars(planned), "changes": planned.written[: number + 1]})
        apply_upgrade(partial)
        (copy / RECORD).write_bytes(kept)  # the last that is written
        apply_upgrade(plan_upgrade(copy, older[1]))
        assert everything(copy) == wanted


def test_an_upgrade_writes_nothing_outside_of_the_project(older: tuple[Path, Path], tmp_path: Path) -> None:
    folder = from_older(older, tmp_path / "once")
    outside = tmp_path / "outside.toml"
    outside.write_text((folder / "pyproject.toml").read_text())
    (folder / "pyproject.toml").unlink()
    (folder / "pyproject.toml").symlink_to(outside)
    before = everything(folder), outside.read_text()
    with pytest.raises(InputError, match="no file of the project"):
        plan_upgrade(folder, older[1])
    assert (everything(folder), outside.read_text()) == before


def test_a_file_that_changes_meanwhile_is_not_overwritten(older: tuple[Path, Path], tmp_path: Path) -> None:
    folder = from_older(older, tmp_path / "once")
    planned = plan_upgrade(folder, older[1])
    (folder / "requirements.in").write_text("mine\n")
    with pytest.raises(InputError, match="changed while"):
        apply_upgrade(planned)
    assert (folder / "requirements.in").read_text() == "mine\n"


def test_an_upgrade_that_fails_leaves_everything_as_it_was(older: tuple[Path, Path], tmp_path: Path) -> None:
    """Whichever file is the one: changed since, or with another thing in its place."""
    folder = from_older(older, tmp_path / "once")
    edit(folder / "nbs/train.ipynb", "max_iter=100", "max_iter=999")
    planned = plan_upgrade(folder, older[1])
    for each in planned.written:
        path = folder / each.path
        path.write_bytes((each.before or b"") + b"mine\n")
        before = everything(folder)
        with pytest.raises(InputError, match="changed while"):
            apply_upgrade(planned)
        assert everything(folder) == before, each.path
        path.unlink() if each.before is None else path.write_bytes(each.before)
    before = everything(folder)
    for each in planned.written:
        for name in filter(None, (each.path if each.after != each.before else "", each.beside_path)):
            blocked = replace(planned, changes=tuple(sorted(planned.changes, key=lambda one: one.path == each.path)))
            (folder / name).unlink(missing_ok=True)
            with pytest.MonkeyPatch.context() as patch, pytest.raises((InputError, StoreError)):
                patch.setattr(upgrade, "_present", lambda _, path: before.get(path))  # it comes after the look
                (folder / name / "inside").mkdir(parents=True)
                apply_upgrade(blocked)
            shutil.rmtree(folder / name)
            assert everything(folder) == {path: text for path, text in before.items() if path != name}, name
            if name in before:
                (folder / name).write_bytes(before[name])
    assert everything(folder) == before
    apply_upgrade(planned)
    assert everything(folder) != before


def test_what_is_beside_a_file_is_never_overwritten(older: tuple[Path, Path], tmp_path: Path) -> None:
    folder = from_older(older, tmp_path / "once")
    edit(folder / "nbs/train.ipynb", "max_iter=100", "max_iter=999")
    (folder / "nbs/train.ipynb.new").write_text("mine\n")
    planned = plan_upgrade(folder, older[1])
    assert {each.path: each.beside_path for each in planned.conflicts} == {"nbs/train.ipynb": "nbs/train.ipynb.new2"}
    apply_upgrade(planned)
    assert (folder / "nbs/train.ipynb.new").read_text() == "mine\n"
    assert "max_iter=2_000" in (folder / "nbs/train.ipynb.new2").read_text("utf-8")
    edit(older[1] / "template.toml", "version = 2", "version = 3")
    edit(older[1] / "classification/nbs/train.ipynb.jinja", "max_iter=2_000", "max_iter=3_000")
    again = plan_upgrade(folder, older[1])
    assert [each.beside_path for each in again.conflicts] == ["nbs/train.ipynb.new2"], "what n2p has put there may go"
    apply_upgrade(again)
    assert "max_iter=3_000" in (folder / "nbs/train.ipynb.new2").read_text("utf-8")


def test_a_folder_that_is_a_link_out_of_the_project_is_not_followed(older: tuple[Path, Path], tmp_path: Path) -> None:
    """Not even for a file that is not there yet."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (older[1] / "common/extra").mkdir()
    (older[1] / "common/extra/new.md").write_text("new\n")
    folder = from_older(older, tmp_path / "once")
    (folder / "extra").symlink_to(outside, target_is_directory=True)
    before = everything(folder)
    with pytest.raises(InputError, match="no file of the project"):
        plan_upgrade(folder, older[1])
    assert everything(folder) == before and [*outside.iterdir()] == []
    (folder / "extra").unlink()
    planned = plan_upgrade(folder, older[1])
    (folder / "extra").symlink_to(outside, target_is_directory=True)
    with pytest.raises(InputError, match="no file of the project"):
        apply_upgrade(planned)
    assert everything(folder) == before and [*outside.iterdir()] == []


DAMAGE: dict[str, Any] = {
    "absent": None,
    "torn": '{"format": 1, ',
    "foreign": '{"format": 9}',
    "list": "[]",
    "forged": lambda text: text.replace("notebook-to-prod\\n", "something-else\\n"),
    "outside": lambda text: text.replace('"README.md"', '"../README.md"'),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_record_that_cannot_be_believed_is_told(project: Project, case: str) -> None:
    folder, damage = new_project("churn", lock=False, repository=False, tell=quiet).folder, DAMAGE[case]
    path = folder / RECORD
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text("utf-8")) if callable(damage) else damage, "utf-8")
    before = everything(folder)
    with pytest.raises(InputError) as error:
        plan_upgrade(folder)
    assert RECORD in (error.value.where or "") and error.value.remedy
    assert everything(folder) == before


def test_a_project_of_newer_templates_is_left_alone(project: Project, older: tuple[Path, Path]) -> None:
    folder = new_project("churn", templates=older[1], lock=False, repository=False, tell=quiet).folder
    with pytest.raises(InputError, match="version 2 of the templates"):
        plan_upgrade(folder)


def test_the_record_is_what_was_written(project: Project) -> None:
    for name in read_templates():
        folder = new_project(name[:5], template=name, lock=False, repository=False, tell=quiet).folder
        record = read_record(folder)
        assert everything(folder).keys() == {*record.files, RECORD}
        assert plan_upgrade(folder).written == ()


# With the real things, in an environment of their own


@pytest.mark.slow
def test_real_parsers_take_the_workflow_and_the_hooks_run_when_one_commits(project: Project, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    subprocess.run([SCRIPTS / "uv", "venv", "-q", "--python", sys.executable, tools], check=True)
    install = [
        SCRIPTS / "uv",
        "pip",
        "install",
        "-q",
        "--python",
        tools / "bin/python",
        "check-jsonschema",
        "pre-commit",
    ]
    subprocess.run(install, check=True)
    for template in read_templates():
        folder = make(project, template[:5], "--template", template)
        for line in (
            "check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/model.yml",
            "pre-commit validate-config",
            "pre-commit install && pre-commit run --all-files",
        ):
            done = shell(line, folder, project, PATH=f"{tools / 'bin'}{os.pathsep}{PATH}")
            assert done.code == 0, done
    path = folder / "nbs/train.ipynb"
    edit(path, "seed = ", "seed = 1")
    with_outputs(path)
    offline = {"PATH": f"{tools / 'bin'}{os.pathsep}{PATH}", "HTTPS_PROXY": "http://127.0.0.1:9", "PIP_NO_INDEX": "1"}
    commit = "git -c user.name=n -c user.email=n@n commit -qam change"
    assert shell(commit, folder, project, **offline).code == 0  # the hook has checked it
    assert "a row\\n" not in shell("git show HEAD:nbs/train.ipynb", folder, project).stdout
    assert "a row\\n" in path.read_text("utf-8")


@pytest.mark.slow
def test_a_new_project_has_a_lock_with_which_it_runs(project: Project) -> None:
    """Needs the package index."""
    done = project.n2p("new", "churn", "--json")
    assert done.code == 0 and done.json["lock"].startswith("requirements.lock, "), done
    assert "--hash=sha256:" in (project.folder / "churn/requirements.lock").read_text()
    assert project.n2p("run", "nbs/train.ipynb", "--json", cwd=project.folder / "churn").code == 0
