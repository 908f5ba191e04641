"""Dask: what is asked ends with who has asked, whoever goes away, and no worker begins that looks into another folder."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Dask, dask_cluster
from notebooks import Project, make_project

from notebook_to_prod.errors import KernelDiedError, UnavailableError
from notebook_to_prod.project import Store
from notebook_to_prod.train import cluster as module
from notebook_to_prod.train.cluster import connected
from notebook_to_prod.train.sweep import run_sweep

pytest.importorskip("distributed")
CELLS = {
    "parameters": "number = 1\nfolder = ''\nseed = 1",
    "start": "import os\nimport time\n\nimport notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "wait": "open(os.path.join(folder, f'began-{number}'), 'w').close()\nwhile not os.path.exists(os.path.join(folder, 'go')):\n    time.sleep(0.05)",
    "end": "run.metric('number', number)",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose notebook says that it has begun, and waits until it may end."""
    made = make_project(tmp_path / "project")
    made.notebook("wait.ipynb", CELLS)
    (tmp_path / "signs").mkdir()
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def dask(project: Project, tmp_path: Path) -> Iterator[Dask]:
    with dask_cluster(tmp_path / "dask", project.environment({})) as made:
        yield made


def begun(signs: Path, count: int) -> None:
    """Wait until so many notebooks are in their middle."""
    until(lambda: len([*signs.glob("began-*")]) >= count, f"{count} notebooks do not begin")


def until(true: Callable[[], Any], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def records(project: Project) -> list[tuple[str, str | None]]:
    """How each run has ended, and by what."""
    found = [json.loads((folder / "record.json").read_text()) for folder in project.run_folders]
    return sorted((each["status"], each["error"] and each["error"]["type"]) for each in found)


@pytest.mark.parametrize(("where", "number"), [("local", signal.SIGINT), ("tcp", signal.SIGTERM)])
def test_a_stopped_sweep_leaves_no_run_that_goes_on(
    project: Project, tmp_path: Path, where: str, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    import psutil

    signs = tmp_path / "signs"
    address = "local"
    if where == "tcp":
        dask: Dask = request.getfixturevalue("dask")
        dask.worker(), dask.worker(threads=2)
        address = dask.address
    grid = ("--grid", "number=1,2,3,4,5", f"folder={signs}", "--workers", "2", "--dask", address, "--json")
    process = project.begin("run", "wait.ipynb", *grid)
    begun(signs, 2)
    children = psutil.Process(process.pid).children(recursive=True) if where == "local" else []
    for pid in (process.pid, *(each.pid for each in children)):  # a terminal sends Ctrl-C to all of them
        os.kill(pid, number)
    stopped = process.finish(90)
    assert stopped.code == 130 and stopped.error["what"] == "the sweep was stopped after 0 of 5 sets"
    assert records(project) == [("failed", "RunInterruptedError")] * 2
    assert not psutil.wait_procs(children, timeout=60)[1]
    (signs / "go").touch()
    again = project.run("wait.ipynb", *grid)
    assert (again.code, again.json["failed"]) == (0, 0)  # the same workers run others
    assert records(project)[2:] == [("finished", None)] * 5


def test_another_worker_takes_over_and_none_is_no_wait_for_ever(
    project: Project, dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 3.0)
    signs, lost, store = tmp_path / "signs", dask.worker(), Store(project.home)

    def sweep() -> Any:
        return run_sweep("wait.ipynb", [{"folder": str(signs)}], store=store, dask=dask.address, allow_unlocked=True)

    def goes_away(position: int, total: int, told: str) -> None:
        import threading

        threading.Thread(target=lambda: (begun(signs, 1), lost.kill())).start()

    with pytest.raises(UnavailableError, match="Dask has had no worker for 3 s") as caught:
        run_sweep(
            "wait.ipynb",
            [{"folder": str(signs)}],
            store=store,
            dask=dask.address,
            allow_unlocked=True,
            progress=goes_away,
        )
    assert dask.address in caught.value.where and "start workers" in caught.value.remedy
    (signs / "go").touch()
    dask.worker()
    (outcome,) = sweep().outcomes
    assert outcome.record is not None and outcome.record.attempt == 2
    assert records(project) == [("failed", "RunCrashedError"), ("finished", None)]


def test_a_scheduler_that_goes_away_ends_the_wait(project: Project, dask: Dask) -> None:
    dask.worker()
    with (
        pytest.raises(UnavailableError, match="the Dask scheduler is gone"),
        connected(dask.address, project.folder) as cluster,
    ):
        futures = [cluster.submit(time.sleep, 600)]
        dask.scheduler.kill()
        [*cluster.completed(futures)]


def test_what_costs_dask_its_workers_is_given_up(project: Project) -> None:
    with (
        connected("local", project.folder) as cluster,
        pytest.raises(KernelDiedError, match="the worker is gone: KilledWorker") as caught,
    ):
        cluster.call(os._exit, 1)
    assert caught.value.where == "local" and "memory" in caught.value.remedy


def test_a_worker_that_looks_into_another_folder_begins_nothing(project: Project, dask: Dask, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    worker = dask.worker(cwd=tmp_path / "other")
    elsewhere = Path("/proc/self/cwd")  # the same path, and another folder in each process
    if not elsewhere.exists():
        pytest.skip("needs /proc")
    (tmp_path / "other" / ".n2p" / "dask").mkdir(parents=True)
    with pytest.raises(UnavailableError, match=r"does not see /proc/self/cwd/\.n2p\n") as caught:
        run_sweep("wait.ipynb", [{}], store=Store(elsewhere / ".n2p"), dask=dask.address, allow_unlocked=True)
    assert caught.value.where.startswith("tcp://127.0.0.1:") and "share it with every worker" in caught.value.remedy
    assert [*(project.home / "dask").iterdir()] == [], "its mark is gone, too"
    with (
        pytest.raises(UnavailableError, match=r"does not see /proc/self/cwd/wait\.ipynb"),
        connected(dask.address, project.home, [elsewhere / "wait.ipynb"]),
    ):
        pass
    worker.terminate()
    worker.wait(30)
    dask.worker(cwd=project.folder)
    with connected(dask.address, elsewhere) as cluster:
        dask.workers[-1].terminate()
        dask.workers[-1].wait(30)
        dask.worker(cwd=tmp_path / "other")  # one that has come since
        with pytest.raises(UnavailableError, match="does not see /proc/self/cwd"):
            cluster.call(os.getpid)
