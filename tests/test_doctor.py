"""The doctor: it answers on whatever installation and project there is, and what it says to do mends it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from notebooks import RIDGE, SCRIPTS, Project

from notebook_to_prod.project import Store
from notebook_to_prod.scaffold.checkup import check_retrains, checkup
from notebook_to_prod.scaffold.new import new_project
from notebook_to_prod.watch.retrain_state import Retraining, keep_state, read_states

CHECKS = {
    "installation": [
        "python",
        "toolkit",
        "requirements",
        "extras",
        "programs",
        "libraries",
        "kernel",
        "disk",
        "port",
        "clock",
        "mlflow",
    ],
    "project": ["settings", "template", "notebooks", "lock", "git", "leftovers", "log", "retrains", "bundles"],
}


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, in a repository."""
    return new_project("churn", tmp_path_factory.mktemp("pattern"), lock=False, tell=lambda text: None).folder


@pytest.fixture
def made(project: Project, pattern: Path) -> Path:
    """The same, to be broken."""
    return Path(shutil.copytree(pattern, project.folder / "churn"))


def asked(project: Project, folder: Path, *options: str, **variables: str) -> dict[str, Any]:
    done = project.n2p("doctor", "--json", *options, cwd=folder, **variables)
    assert done.code == int(not done.json["ok"]), done
    return done.json


def said(answer: dict[str, Any], check: str, state: str) -> list[str]:
    return [each["what"] for each in answer["findings"] if (each["check"], each["state"]) == (check, state)]


def test_a_new_project_has_nothing_to_fix_and_every_check_says_something(project: Project, made: Path) -> None:
    answer = asked(project, made)
    assert answer["ok"], answer
    assert not (made / ".n2p").exists()  # nothing was made by looking
    for area, names in CHECKS.items():
        assert [*dict.fromkeys(each["check"] for each in answer["findings"] if each["area"] == area)] == names
    assert said(answer, "lock", "warn") == ["there is no lock: another machine gets other versions"]
    assert all(each["remedy"] for each in answer["findings"] if each["state"] != "ok")


def test_text_has_the_command_below_what_it_mends(project: Project, made: Path) -> None:
    done = project.n2p("doctor", cwd=made)
    assert done.code == 0 and "lock         warn" in done.stdout and "-> n2p lock" in done.stdout, done
    assert done.stdout.splitlines()[-1].startswith("doctor")


def test_a_folder_that_is_no_project_and_one_that_is_not_there(project: Project, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert asked(project, project.folder, str(tmp_path / "empty"))["ok"]
    absent = project.n2p("doctor", "--json", "absent")
    assert absent.code == 2 and absent.error["remedy"]


# What breaks a project, the check that says it and a word of it


def broken_json(folder: Path) -> None:
    (folder / "nbs/torn.ipynb").write_text('{"cells": [')


def unknown_name(folder: Path) -> None:
    path = folder / "nbs/train.ipynb"
    path.write_text(path.read_text("utf-8").replace("random_state=seed)", "random_state=sed)"), "utf-8")


def setting(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with (folder / "pyproject.toml").open("a") as file:
            file.write(text)

    return write


def unlocked(folder: Path) -> None:
    (folder / "requirements.lock").write_text("pandas==1.0\nno-such-distribution==1\n")


def no_driver(folder: Path) -> None:
    subprocess.run(["git", "config", "--unset", "diff.n2p.textconv"], cwd=folder, check=True)


def database(folder: Path) -> None:
    (folder / ".n2p").mkdir()
    (folder / ".n2p/mlflow.db").write_bytes(b"torn" * 300)


def newer_database(folder: Path) -> None:
    (folder / ".n2p").mkdir()
    with contextlib.closing(sqlite3.connect(folder / ".n2p/mlflow.db")) as opened, opened:
        opened.execute("CREATE TABLE alembic_version (version_num TEXT)")
        opened.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")


def no_manifest(folder: Path) -> None:
    (folder / ".n2p/bundles" / ("b" * 64)).mkdir(parents=True)


def broken_log(folder: Path) -> None:
    (folder / ".n2p").mkdir()
    (folder / ".n2p/audit.jsonl").write_text("no entry\n")


BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "json": (broken_json, "notebooks", "torn.ipynb"),
    "notebook": (unknown_name, "notebooks", "sed"),
    "toml": (setting("[tool.n2p\n"), "settings", "cannot be read"),
    "table": (setting("[tool.n2p.gats]\n"), "settings", "unknown setting 'gats'"),
    "environment": (setting('[tool.n2p.environments.dev]\nhom = "x"\n'), "settings", "dev"),
    "retrain": (setting('[tool.n2p.retrain.churn]\nnotebok = "x"\n'), "settings", "notebok"),
    "channel": (setting('[tool.n2p.channels.team]\nkind = "pigeon"\n'), "settings", "pigeon"),
    "lock": (unlocked, "lock", "the lock says ==1.0"),
    "driver": (no_driver, "git", "diff.n2p.textconv"),
    "database": (database, "mlflow", "cannot be read"),
    "newer": (newer_database, "mlflow", "newer MLflow"),
    "bundle": (no_manifest, "bundles", "bbbbbbbbbbbb"),
    "log": (broken_log, "log", "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_found_by_its_check_and_by_no_other(project: Project, made: Path, case: str) -> None:
    breaks, check, word = BROKEN[case]
    breaks(made)
    found = [each for each in checkup(made, Store(made / ".n2p")) if each.state == "fix"]
    assert any(each.check == check and word in each.what for each in found), found
    also = (
        {"template", "notebooks", "git"} if case in ("toml", "table") else set()
    )  # a notebook's settings are the project's
    assert {each.check for each in found} - also == {check}, found
    assert all(each.remedy for each in found)


def test_what_it_says_to_do_mends_it(project: Project, made: Path) -> None:
    no_driver(made)
    path = made / "nbs/train.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    notebook["cells"][1]["execution_count"] = 1
    path.write_text(json.dumps(notebook), "utf-8")
    answer = asked(project, made)
    remedies = [each["remedy"] for each in answer["findings"] if each["check"] in ("git", "notebooks")]
    assert remedies == ["n2p git install"] * 2 and not answer["ok"]
    for line in remedies:
        environment = project.environment({"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"})
        subprocess.run(["bash", "-c", line], cwd=made, env=environment, check=True, capture_output=True)
    mended = asked(project, made)
    assert mended["ok"] and not [
        each for each in mended["findings"] if each["check"] in ("git", "notebooks") and each["remedy"]
    ]


def test_deep_starts_a_kernel_and_reads_every_byte_of_the_bundles(ridges: Project, project: Project) -> None:
    ridges.copy_to(project)
    answer = asked(project, project.folder, "--deep")
    assert answer["ok"], answer
    assert any("a kernel starts and answers 'ok'" in each for each in said(answer, "kernel", "ok"))
    assert any("every byte" in each for each in said(answer, "bundles", "ok"))
    bundle = next(path for path in sorted((project.home / "bundles").iterdir()) if path.is_dir())
    bundle.chmod(0o755)
    (bundle / "model.pkl").chmod(0o644)
    with (bundle / "model.pkl").open("ab") as file:
        file.write(b"x")
    (found,) = [each for each in checkup(project.folder, Store(project.home), deep=True) if each.state == "fix"]
    assert found.check == "bundles" and bundle.name[:12] in found.what and str(bundle) in found.remedy


def test_what_dead_processes_left_is_told(project: Project) -> None:
    project.notebook("train.ipynb", RIDGE | {"start": f"{RIDGE['start']}\nimport time\ntime.sleep(600)"})
    process = project.start("n2p", "run", "train.ipynb")
    while not any((project.home / "runs").glob("*/record.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    held = asked(project, project.folder)
    assert any("locks that a process holds" in each for each in said(held, "leftovers", "warn"))
    process.kill()
    process.communicate()
    answer = asked(project, project.folder)
    assert answer["ok"] and any("its process is gone" in each for each in said(answer, "leftovers", "warn")), answer


def test_a_run_of_another_machine_is_not_called_dead(ridges: Project, project: Project) -> None:
    ridges.copy_to(project)
    (gone,) = (each.pid for each in [subprocess.Popen(["true"])] if each.wait() == 0)
    for folder, host in zip(project.run_folders, ("another-machine", platform.node(), None), strict=False):
        record = json.loads((folder / "record.json").read_text()) | {"status": "running", "process": gone, "host": host}
        (folder / "record.json").write_text(
            json.dumps({key: each for key, each in record.items() if (key, each) != ("host", None)})
        )
    answer = asked(project, project.folder)
    (told,) = said(answer, "leftovers", "warn")
    assert project.run_folders[1].name in told and "its process is gone" in told
    (elsewhere,) = [each for each in said(answer, "leftovers", "ok") if "another machine" in each]
    assert f"{project.run_folders[0].name} on another-machine" in elsewhere and project.run_folders[2].name in elsewhere


def test_it_looks_at_the_store_that_a_command_would_open(project: Project, made: Path) -> None:
    setting('[tool.n2p.environments.dev]\nhome = "stores/dev"\n')(made)
    broken = Store(made / "stores/dev")
    assert not said(asked(project, made, "--env", "dev"), "log", "fix") and not broken.home.exists()
    broken.home.mkdir(parents=True)
    broken.audit.write_text("no entry\n")
    assert not said(asked(project, made), "log", "fix")
    for answer in (
        asked(project, made, "--env", "dev"),
        asked(project, made, N2P_ENV="dev"),
        asked(project, project.folder, str(made), "--env", "dev"),
        asked(project, made, N2P_HOME=str(broken.home)),
    ):
        assert said(answer, "log", "fix") and answer["store"] == str(broken.home), answer
    absent = project.n2p("doctor", "--json", "--env", "dve", cwd=made)
    assert absent.code == 2 and "did you mean 'dev'" in absent.error["what"]


def test_what_a_project_has_is_never_mended_by_installing_again(project: Project, made: Path) -> None:
    """Whatever is unreadable or of another kind than was thought of."""
    record = made / ".n2p-template.json"
    record.unlink()
    record.symlink_to(record)
    (made / "requirements.in").write_bytes(b"\xff\xfe")
    (made / "requirements.lock").write_text("pandas==1.0\n")
    (made / "nbs/list.ipynb").write_text('{"cells": [3], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    found = [each for each in asked(project, made)["findings"] if each["area"] == "project" and each["state"] == "fix"]
    assert any(each["what"].startswith("this could not be looked at") for each in found), found
    assert all(each["remedy"] and "force-reinstall" not in each["remedy"] for each in found), found


def test_a_retraining_that_has_not_ended_is_told(project: Project) -> None:
    store = Store(project.home)
    state = Retraining("sha256:" + "a" * 64, "flights", "by hand", "ann", "2026-01-01T00:00:00+00:00", "", "")
    keep_state(store, state)
    (found,) = check_retrains(store)
    assert found.state == "warn" and "n2p retrain flights" in found.remedy
    keep_state(store, read_states(store, "flights")[0].became("promoted"))
    assert [each.state for each in check_retrains(store)] == ["ok"]


def test_a_port_that_is_taken_is_a_warning(project: Project) -> None:
    from notebook_to_prod.scaffold.installation import check_port

    with socket.create_server(("127.0.0.1", 0)) as server:
        (found,) = check_port(server.getsockname()[1])
    assert found.state == "warn" and "--port 0" in found.remedy


# An installation that is broken


BROKEN_MODULES = ["packaging", "sqlite3", "jupyter_core", "filelock", "numpy", "yaml", "jinja2"]


@pytest.mark.parametrize(
    ("module", "how"),
    [
        *((each, "raise ImportError('broken')") for each in BROKEN_MODULES),
        ("packaging", "raise SystemExit(5)"),  # by which the command line itself could end
        *(pytest.param(each, "raise SystemExit(5)", marks=pytest.mark.slow) for each in BROKEN_MODULES[1:]),
    ],
)
def test_no_broken_module_ends_it(project: Project, made: Path, module: str, how: str) -> None:
    shadow = project.folder / "shadow"
    shadow.mkdir()
    (shadow / f"{module}.py").write_text(f"{how}\n")
    environment = project.environment({"PYTHONPATH": str(shadow)})
    done = subprocess.run(
        [SCRIPTS / "n2p", "doctor", "--json"], cwd=made, env=environment, capture_output=True, text=True
    )
    answer = json.loads(done.stdout)
    assert {each["area"] for each in answer["findings"]} == {*CHECKS}
    assert done.returncode == int(not answer["ok"]) and "Traceback" not in done.stderr, done


def test_a_missing_requirement_comes_with_the_line_that_installs_it(project: Project, tmp_path: Path) -> None:
    """In an environment that has the package and nothing that it requires but what its command line imports."""
    target = tmp_path / "bare"
    package = Path(__import__("notebook_to_prod").__file__).parent
    site = Path(__import__("click").__file__).parents[1]
    shutil.copytree(package, target / "notebook_to_prod", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("click", "packaging"):
        shutil.copytree(site / name, target / name)
    (info,) = (
        Path(each)
        for each in [*site.glob("notebook_to_prod-*.dist-info"), *package.parent.glob("notebook_to_prod-*.dist-info")][
            :1
        ]
    )
    shutil.copytree(info, target / info.name)
    program = f"import sys; sys.path[:] = [{str(target)!r}, *(p for p in sys.path if 'site-packages' not in p)]; sys.argv = ['n2p', 'doctor', '--json']; from notebook_to_prod.cli.app import main; main()"
    python = [os.path.realpath(os.sys.executable), "-S", "-c", program]  # type: ignore[attr-defined]
    done = subprocess.run(
        python, cwd=tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    answer = json.loads(done.stdout or "{}")
    assert done.returncode == 1, done
    (lacking,) = (each for each in answer["findings"] if each["check"] == "requirements")
    assert lacking["state"] == "fix" and "pip install" in lacking["remedy"] and "scikit-learn" in lacking["remedy"]
