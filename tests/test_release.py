"""Governance that holds: gates at the door, one winner, nothing half-done after a kill, a way back that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from notebooks import UNSEALED, Project, finish, make_project
from test_postgres import CELLS, address  # noqa: F401 - a fixture

from notebook_to_prod.errors import InputError, NotFoundError, VerdictError
from notebook_to_prod.project import Store
from notebook_to_prod.release import moves
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.views import find_live, list_models, show_model, verify_audit
from notebook_to_prod.train.record import find_run

WORKER = Path(__file__).with_name("release_worker.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with three small runs."""
    project = make_project(tmp_path_factory.mktemp("release") / "project")
    project.notebook("train.ipynb", CELLS)
    assert project.run("train.ipynb").code == 0
    started = [project.start("n2p", "run", "train.ipynb", "--json", "-p", "alpha", alpha) for alpha in ("2.0", "3.0")]
    assert [finish(process).code for process in started] == [0, 0]
    return project


@pytest.fixture(scope="module")
def registry(trained: Project) -> Registry:
    return Registry(Store(trained.home))


def register(registry: Registry, name: str, count: int = 3) -> None:
    for path in sorted(registry.store.runs.iterdir())[:count]:
        registry.register(find_run(registry.store, path.name), name)


def worker(project: Project, **task: Any) -> dict[str, Any]:
    """What `release_worker.py` found."""
    command = [sys.executable, str(WORKER), json.dumps(task)]
    environment = project.environment({}) | UNSEALED
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The gates


def test_production_is_entered_through_the_gates(
    trained: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_REQUIRE_GATE", "1")
    monkeypatch.chdir(trained.folder)
    register(registry, "gated")
    policy, strict = (
        trained.folder / "pyproject.toml",
        '[tool.n2p.gates]\nskip = ["data", "robustness", "fairness", "explain", "serving"]\n',
    )
    policy.write_text(strict)
    try:
        with pytest.raises(VerdictError, match=r"the gates of production say no: .*quality\.support") as caught:
            registry.promote("gated", 1)
        assert "--override --reason" in (caught.value.remedy or "") and registry.aliased("gated", "production") is None
        with pytest.raises(InputError, match="needs a reason"):
            registry.promote("gated", 1, override=True)
        staged = registry.promote("gated", 1, to="staging")
        assert staged and staged.gates == "not asked"

        refused = trained.n2p("promote", "gated", "1", "--json", N2P_REQUIRE_GATE="1")
        assert (refused.code, refused.error["type"]) == (1, "VerdictError")
        arguments = ("--override", "--reason", "ten rows are all there are", "--json")
        overruled = trained.n2p("promote", "gated", "1", *arguments, N2P_REQUIRE_GATE="1")
        assert overruled.code == 0 and overruled.json["gates"] == "overridden"
        assert overruled.json["verdicts"].startswith("sha256:")

        policy.write_text(strict + "[tool.n2p.gates.quality]\nmin_rows = 5\nover_simple = 0.0\n")
        told: list[str] = []
        event = registry.promote("gated", 2, progress=told.append)
        assert event and event.gates == "passed" and event.verdicts and told, "the policy has changed: asked anew"
        assert registry.rollback("gated").version == 1
        told.clear()
        assert registry.promote("gated", 2, progress=told.append) and not told, "on this bundle, policy and champion"
        assert verify_audit(registry).damage == []
    finally:
        policy.write_text("")
    lines = trained.n2p("history", "gated").stdout
    assert "gates overridden" in lines and "ten rows are all there are" in lines


# Two at once, and what may not be promoted


def test_who_comes_too_late_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    register(registry, "late")
    registry.promote("late", 1)
    sealed = moves._sealed

    def meanwhile(*arguments: Any) -> bool:
        monkeypatch.setattr(moves, "_sealed", sealed)
        registry.promote("late", 2, reason="faster")
        return sealed(*arguments)

    monkeypatch.setattr(moves, "_sealed", meanwhile)
    with pytest.raises(VerdictError, match="from version 1 to version 2") as caught:
        registry.promote("late", 3)
    assert caught.value.exit_code == 1 and "n2p history late" in (caught.value.remedy or "")
    assert registry.aliased("late", "production") == 2
    assert [event.version for event in registry.history("late") if event.alias] == [1, 2]


def test_an_archived_version_is_kept_out(trained: Project, registry: Registry) -> None:
    register(registry, "old")
    registry.promote("old", 1)
    with pytest.raises(InputError, match="live as production"):
        registry.archive("old", 1)
    registry.promote("old", 2)
    done = trained.n2p("archive", "old@1", "--reason", "too old", "--json")
    assert done.code == 0 and done.json["changed"] is True
    assert registry.archive("old", 1) is None
    with pytest.raises(InputError, match="archived"):
        registry.promote("old", 1, "canary")
    with pytest.raises(NotFoundError, match=r"no earlier version in production that is healthy: version 1.*archived"):
        registry.rollback("old")
    assert trained.n2p("archive", "old@production").code == 2
    assert registry.history("old")[-1].action == "archive" and registry.versions("old")[0].archived


# Going back


def test_rollback_passes_over_what_is_not_healthy(trained: Project, registry: Registry, tmp_path: Path) -> None:
    register(registry, "sick")
    for version in (1, 2, 3):
        registry.promote("sick", version)
    drill = trained.n2p("rollback", "sick", "--drill", "--json")
    assert (drill.code, drill.json["version"], drill.json["skipped"]) == (0, 2, []) and drill.json["seconds"] > 0
    assert registry.aliased("sick", "production") == 3
    # a version whose bundle is another than its tag says, in the store and in MLflow
    registry._client.set_model_version_tag("sick", "2", "n2p.bundle", "sha256:" + "0" * 64)
    event = registry.rollback("sick", reason="late flights missed")
    assert event.version == 1 and event.previous == 3 and "version 2: " in (event.gates or "")
    assert registry.history("sick")[-1] == event


# Asking


def test_what_is_and_was_live(trained: Project, registry: Registry) -> None:
    register(registry, "asked", 2)
    first, second = registry.promote("asked", 1), registry.promote("asked", 2, reason="better")
    assert first and second
    assert find_live(registry, "asked") == second and find_live(registry, "asked", at=first.time) == first
    assert find_live(registry, "asked", at="2020-01-01") is None and find_live(registry, "asked", "canary") is None
    live = trained.n2p("live", "asked", "--at", first.time, "--json").json
    assert (live["version"], live["event"]["id"]) == (1, first.id)
    assert trained.n2p("live", "asked", "--at", "yesterday").code == 2
    shown = trained.n2p("show", "asked@production", "--json").json
    assert shown["versions"][0]["aliases"] == ["production"] and shown["metrics"]["score"] > 0.5
    assert [event["version"] for event in shown["events"]] == [2, 2]
    assert [each.version for each in show_model(registry, "asked").versions] == [2, 1]
    (listed,) = (each for each in list_models(registry) if each.name == "asked")
    assert (listed.versions, listed.aliases) == (2, {"production": 2})
    assert "asked" in trained.n2p("list").stdout and trained.n2p("show", "nothing").code == 2


# Killed, and many at once


def test_killed_at_random_moments(trained: Project, tmp_path: Path) -> None:
    kills = int(os.environ.get("N2P_TEST_KILLS", "5"))
    home = make_project(tmp_path / "killed").home
    home.mkdir()
    told = worker(trained, do="kill", trained=str(trained.home), home=str(home), kills=kills)
    assert told["done"] == kills


@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_eight_processes_leave_one_story(
    where: str, trained: Project, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = float(os.environ.get("N2P_TEST_SECONDS", "4"))
    homes = [tmp_path / name / ".n2p" for name in (("one",) if where == "sqlite" else ("one", "other"))]
    for home in homes:
        home.mkdir(parents=True)
    uri = {} if where == "sqlite" else {"MLFLOW_TRACKING_URI": request.getfixturevalue("address")}
    project = Project(trained.folder, uri)
    told = worker(
        project, do="soak", trained=str(trained.home), homes=[str(home) for home in homes], seconds=seconds, processes=8
    )
    assert told["stores"][0]["versions"] >= 1 and sum(told["told"].values()) >= 8
