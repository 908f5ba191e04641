"""A run that was killed at any moment is taken up by the next call, which finishes it."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
from mlflow import MlflowClient
from notebooks import Begun, Project

from notebook_to_prod.package.bundle import open_bundle
from notebook_to_prod.project import Store, remove_abandoned
from notebook_to_prod.train.tracking import open_client

NOTEBOOK = {
    "parameters": "seed = 3\nalpha = 1.0",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "read": "table = n2p.load('table.csv')\nX, y = table[['x']], table['y']",
    "fit": "from sklearn.linear_model import LogisticRegression\n\nmodel = LogisticRegression(C=alpha).fit(X, y)",
    "evaluate": "run.metric('accuracy', model.score(X, y))",
    "export": "run.export(model, X, y, X, y)",
}


def test_killed_at_random_moments(project: Project) -> None:
    kills = int(os.environ.get("N2P_TEST_KILLS", "2"))
    moments = random.Random(7)
    (project.folder / "table.csv").write_text("x,y\n" + "1,0\n2,1\n3,0\n4,1\n" * 10)
    project.notebook("train.ipynb", NOTEBOOK)
    started = time.monotonic()
    assert project.n2p("run", "train.ipynb").code == 0
    duration = time.monotonic() - started
    expected = {}
    for number in range(kills):
        arguments = ("run", "train.ipynb", "--json", "-p", "alpha", str(2.0 + number))
        process = project.begin(*arguments)
        time.sleep(moments.uniform(0.05, duration))
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.finish()
        done = project.n2p(*arguments)
        assert done.code == 0, done.stderr
        assert done.json["status"] == "finished" and done.json["bundle"]
        open_bundle(done.json["bundle_path"], done.json["bundle"])
        expected[str(2.0 + number)] = done.json["run_id"]
        assert psutil.wait_procs(family, timeout=30)[1] == [], "a process outlives the run"
    records = [json.loads((folder / "record.json").read_text()) for folder in project.run_folders]
    finished = {str(each["parameters"]["alpha"]): each["run_id"] for each in records if each["status"] == "finished"}
    assert finished == {**expected, "1.0": finished["1.0"]} and len(finished) == kills + 1
    assert {record["status"] for record in records} <= {"finished", "failed"}
    assert [*project.home.rglob("*.tmp")] == []
    client = MlflowClient(project.address)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    assert sum(run.info.status == "FINISHED" for run in runs) == kills + 1


def tables(path: Path) -> list[tuple[str, ...]]:
    """What a database has, and the revision of its schema."""
    with sqlite3.connect(path) as connection:
        known = connection.execute("select name, sql from sqlite_master order by name").fetchall()
        known += connection.execute("select version_num, '' from alembic_version").fetchall()
    connection.close()
    # The order of the constraints of a table is by chance.
    return [(name, *sorted((sql or "").replace(",", " ").split())) for name, sql in known]


def test_a_new_database_is_the_one_that_mlflow_makes_and_never_half_of_it(project: Project, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from alembic import command\n"
        "from notebook_to_prod.project import Store\n"
        "from notebook_to_prod.train.tracking import open_client\n"
        "command.upgrade = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_client(Store(Path(sys.argv[1])))"
    )
    project.home.mkdir()
    done = subprocess.run([sys.executable, "-c", program, project.home], env=project.environment({}), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (project.home / "mlflow.db").exists()
    open_client(Store(project.home))
    MlflowClient(f"sqlite:///{tmp_path / 'plain.db'}")
    assert tables(project.home / "mlflow.db") == tables(tmp_path / "plain.db")
    assert [each.name for each in project.home.iterdir() if each.name.startswith(".")] == []


WAITING = {"wait": "import pathlib, time\n\npathlib.Path(f'{name}.there').touch()\ntime.sleep(600)"}


def waiting(project: Project, name: str) -> Begun:
    """A run that has come to a cell in which it stays; its temporary files are in `tmp`."""
    process = project.begin("run", "wait.ipynb", "-p", "name", name, TMPDIR=str(project.folder / "tmp"))
    while not (project.folder / f"{name}.there").exists():
        assert process.poll() is None, process.finish()
        time.sleep(0.05)
    return process


def test_folder_of_a_killed_run_goes_with_the_next_start_and_of_one_at_work_stays(project: Project) -> None:
    place = project.folder / "tmp"
    place.mkdir()
    project.notebook("wait.ipynb", {"parameters": "name = 'a'", **WAITING})
    project.notebook("train.ipynb", {"parameters": "seed = 1", "say": "print(seed)"})
    killed = waiting(project, "killed")
    (left,) = place.glob("n2p-*")
    at_work = waiting(project, "work")
    (held,) = {*place.glob("n2p-*")} - {left}
    try:
        kernels = psutil.Process(killed.pid).children(recursive=True)
        killed.send_signal(signal.SIGKILL)
        killed.finish()
        psutil.wait_procs(kernels, timeout=30)
        assert {*place.glob("n2p-*")} == {left, held}
        assert project.n2p("run", "train.ipynb", TMPDIR=str(place)).code == 0
        assert [*place.glob("n2p-*")] == [held]
        assert at_work.poll() is None
    finally:
        at_work.send_signal(signal.SIGINT)
        at_work.finish()
    assert [*place.glob("n2p-*")] == []


# How often a folder was taken away while it was held.
HOLD = """
from notebook_to_prod.project import temporary_folder

lost = 0
for number in range(200):
    with temporary_folder("busy") as folder:
        (folder / str(number)).touch()
        lost += [each.name for each in folder.iterdir()] != [str(number)]
print(lost)
"""


def test_processes_that_sweep_at_the_same_time_take_no_folder_from_each_other(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert [process.communicate()[0] for process in started] == ["0\n"] * 4
    assert [*tmp_path.iterdir()] == []


def test_only_folders_that_were_held_are_swept(tmp_path: Path) -> None:
    locked = tmp_path / "n2p-sign-12345678-held"
    (locked / "within").mkdir(parents=True)
    (locked / "within").chmod(0o500)
    (tmp_path / "n2p-demo-12345678").mkdir()  # which `n2p demo` leaves for its user
    (tmp_path / "n2p-elsewhere-held").symlink_to(project_folder := tmp_path / "project")
    project_folder.mkdir()
    (tmp_path / "n2p-file-held").touch()
    assert remove_abandoned(tmp_path) == [locked]
    assert {each.name for each in tmp_path.iterdir()} == {
        "n2p-demo-12345678",
        "n2p-elsewhere-held",
        "n2p-file-held",
        "project",
    }
