"""Governance that holds: gates at the door, one winner, nothing half-done after a kill, a way back that works."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow_tables
import pytest
from notebooks import UNSEALED, Project, make_project
from test_postgres import address  # noqa: F401 - a fixture

from notebook_to_prod.errors import BundleError, InputError, NotFoundError, StoreError, VerdictError
from notebook_to_prod.package.bundle import write_bundle
from notebook_to_prod.package.gates.verdict import read_reports
from notebook_to_prod.project import Store
from notebook_to_prod.release import moves
from notebook_to_prod.release.audit import Event, read_events, store_id
from notebook_to_prod.release.change import INTENT, make_change, recover
from notebook_to_prod.release.gated import pass_gates
from notebook_to_prod.release.graph import deployments
from notebook_to_prod.release.people import identify
from notebook_to_prod.release.registry import Registry, share_event
from notebook_to_prod.release.rows import ask_database
from notebook_to_prod.release.views import find_live, list_models, live_now, show_model, verify_audit
from notebook_to_prod.train.record import find_run

mlflow_tables.install()

WORKER = Path(__file__).with_name("release_worker.py")


@pytest.fixture(scope="module")
def trained(ridges: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with three small runs."""
    return ridges.copy_to(make_project(tmp_path_factory.mktemp("release") / "project"))


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
        assert "--against" not in (caught.value.remedy or ""), "there is no champion"
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

        staged_store = replace(registry.store, environment="staging")
        one, two = (registry.bundle(registry.read("gated", number)) for number in (1, 2))
        with pytest.raises(VerdictError, match="the gates of production") as hinted:
            pass_gates(staged_store, two, "production", lambda: one)
        question = f"n2p gate {two.digest[7:19]} --against {one.digest[7:19]} --env staging"
        assert question in (hinted.value.remedy or "")

        policy.write_text(strict + "[tool.n2p.gates.quality]\nmin_rows = 5\nover_simple = 0.0\n")
        told: list[str] = []
        event = registry.promote("gated", 2, progress=told.append)
        assert event and event.gates == "passed" and event.verdicts and told, "the policy has changed: asked anew"
        why = "version 1 was promoted against its gates: ten rows are all there are"
        assert registry.drill("gated").overruled == why
        drilled = trained.n2p("rollback", "gated", "--drill")
        assert drilled.code == 0 and why in drilled.stdout
        went = trained.n2p("rollback", "gated", "--json")
        assert (went.code, went.json["version"], went.json["overruled"]) == (0, 1, why)
        told.clear()
        assert registry.promote("gated", 2, progress=told.append) and not told, "on this bundle, policy and champion"
        assert verify_audit(registry).damage == []
    finally:
        policy.write_text("")
    lines = trained.n2p("history", "gated").stdout
    assert "gates overridden" in lines and "ten rows are all there are" in lines


def test_who_watches_a_rollout_is_told_once_that_its_last_step_is_refused(
    trained: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.folder)
    register(registry, "overruled")
    registry.promote("overruled", 1)
    policy, outcomes = trained.folder / "pyproject.toml", trained.folder / "outcomes.csv"
    skipped = '["data", "robustness", "fairness", "explain", "serving"]'
    policy.write_text(f"[tool.n2p.gates]\nskip = {skipped}\n")
    outcomes.write_text("version,value\n" + "1,0\n2,1\n" * 200)
    try:
        start = ("rollout", "start", "overruled", "2", "--ab", "50%", "--override", "--reason", "a trial")
        started = trained.n2p(*start, N2P_REQUIRE_GATE="1")
        assert started.code == 0 and "n2p rollout advance overruled --override" in started.stderr, started
        watch = ("rollout", "watch", "overruled", "--every", "0.1 s", "--outcomes", outcomes, "--json")
        refused = trained.n2p(*watch, N2P_REQUIRE_GATE="1")
    finally:
        policy.write_text("")
    assert refused.code == 1 and "the gates of production say no" in refused.error["what"], refused
    assert "n2p rollout advance overruled --override --reason" in refused.error["remedy"]
    refusals = [event for event in registry.history("overruled") if event.action == "gate-failed"]
    assert len(refusals) == 1 and registry.aliased("overruled", "production") == 1
    advance = trained.n2p("rollout", "advance", "overruled", "--override", "--reason", "a trial", N2P_REQUIRE_GATE="1")
    assert advance.code == 0 and registry.aliased("overruled", "production") == 2, advance


def test_what_a_version_was_promoted_against() -> None:
    def event(action: str, **details: Any) -> Event:
        alias = None if action == "override" else "production"
        return Event("2026-01-01", action, "m", 1, "ada", alias, **details)

    forced = event("promote", gates="overridden", approvals="overridden, 0 of 2", reason="the fair is today")
    both = "version 1 was promoted against its gates and past missing approvals: the fair is today"
    assert moves.overruled([forced], "production", 1) == both
    assert moves.overruled([forced], "staging", 1) == moves.overruled([forced], "production", 2) == ""
    assert moves.overruled([forced, event("promote", gates="passed")], "production", 1) == ""
    overridden = event("override", reason="eve: a known leak")
    told = moves.overruled([overridden, event("promote", gates="overridden")], "production", 1)
    assert told == "version 1 was promoted against its gates: eve: a known leak"
    assert moves.overruled([overridden, event("promote", gates="not asked")], "production", 1) == ""


def test_an_alias_that_is_new_is_said_to_ask_no_gates(
    trained: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.folder)
    register(registry, "named", 2)
    registry.promote("named", 1, to="preview")
    done = trained.n2p("promote", "named", "1", "--to", "stagign", "--json")
    assert done.code == 0 and done.json["alias"] == "stagign"
    assert "warning: 'stagign' is new, and asks no gates; did you mean 'staging'?" in done.stderr
    again = trained.n2p("promote", "named", "2", "--to", "stagign", "--json")
    assert again.code == 0 and "warning" not in again.stderr
    assert moves.new_alias(registry, "named", "preveiw") == (
        "'preveiw' is new, and asks no gates; did you mean 'preview'?"
    )
    assert moves.new_alias(registry, "named", "xyz") == "'xyz' is new, and asks no gates"
    settings = trained.folder / "pyproject.toml"
    settings.write_text('[tool.n2p.stages]\nxyz = false\n[tool.n2p.environments.tryout]\nhome = "tryout"\n')
    try:
        assert [moves.new_alias(registry, "named", each) for each in ("xyz", "tryout", "production")] == [None] * 3
        assert (moves.new_alias(registry, "named", "tryuot") or "").endswith("did you mean 'tryout'?")
    finally:
        settings.write_text("")


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


def test_a_misspelt_alias_is_dropped_and_what_is_live_is_not(trained: Project, registry: Registry) -> None:
    register(registry, "typed", 2)
    registry.promote("typed", 1, "stagign")
    with pytest.raises(InputError, match="live as stagign") as stuck:
        registry.archive("typed", 1)
    assert "n2p retire typed --alias stagign" in (stuck.value.remedy or "")
    done = trained.n2p("retire", "typed", "--alias", "stagign", "--reason", "misspelt", "--json")
    assert (done.code, done.json["changed"], done.json["version"]) == (0, True, 1)
    assert "points to nothing" in trained.n2p("retire", "typed", "--alias", "stagign").stdout
    assert registry.aliased("typed", "stagign") is None and find_live(registry, "typed", "stagign") is None
    assert "@stagign dropped by" in trained.n2p("history", "typed").stdout
    assert [each.until for each in deployments(registry.history("typed"))] == [registry.history("typed")[-1].time]
    back = registry.rollback("typed", "stagign")
    assert (back.version, back.previous) == (1, None), "where it pointed to"
    registry.retire("typed", "stagign")
    assert registry.archive("typed", 1)

    registry.promote("typed", 2)
    with pytest.raises(InputError, match="what services load"):
        registry.retire("typed", "production")
    with pytest.raises(InputError, match="needs a reason"):
        registry.retire("typed", "production", override=True)
    dropped = registry.retire("typed", "production", "the service is gone", override=True)
    assert dropped and dropped.gates == "overridden" and registry.aliased("typed", "production") is None
    assert verify_audit(registry).damage == []


def test_a_dropped_alias_that_was_cut_short_is_settled(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    register(registry, "cut", 1)
    registry.promote("cut", 1, "trial")
    drop = registry._client.delete_registered_model_alias
    monkeypatch.setattr(
        registry._client, "delete_registered_model_alias", lambda *names: (drop(*names), sys.exit("killed"))
    )
    with pytest.raises(SystemExit):
        registry.retire("cut", "trial")
    assert registry.history("cut")[-1].action == "retire" and verify_audit(registry).damage == []


def test_the_future_has_no_history(trained: Project, registry: Registry) -> None:
    register(registry, "tomorrow", 1)
    done = trained.n2p("live", "tomorrow", "--at", "2999-01-01", "--json")
    assert done.code == 2 and "in the future" in done.error["what"]
    registry.promote("tomorrow", 1, unsealed=True, reason="no time")
    assert trained.n2p("history", "tomorrow").stdout.rstrip().endswith("unsealed: no time")


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


LAZY = """class Lazy:
    def __init__(self, known):
        self.known = known

    def predict(self, table):
        from lazy_helper import answer

        return answer(self.known)
"""


def lazy_bundle(registry: Registry, helper: str) -> str:
    """The digest of a bundle whose code imports a module of its own as late as in `predict`."""
    bundle = registry.bundle(registry.versions("lazy")[0])
    module = types.ModuleType("lazy_model")
    exec(LAZY, module.__dict__)
    sys.modules["lazy_model"] = module
    try:
        model = pickle.dumps(module.Lazy(bundle.golden["predictions"]))
    finally:
        del sys.modules["lazy_model"]
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    code = {"code/lazy_model.py": LAZY.encode(), "code/lazy_helper.py": helper.encode()}
    metadata = json.dumps({**bundle.metadata, "uses": ["lazy_model.Lazy"]}).encode()
    made = contents | code | {"model.pkl": model, "metadata.json": metadata}
    return write_bundle(registry.store.bundles, made).digest


def test_rollback_tells_a_late_import_from_a_failure(registry: Registry) -> None:
    register(registry, "lazy")
    for version in (1, 2, 3):
        registry.promote("lazy", version)
    helpers = {
        "1": "import numpy\n\n\ndef answer(known):\n    return numpy.array(known)\n",
        "2": "def answer(known):\n    return known.missing\n",
    }
    digests = {version: lazy_bundle(registry, helper) for version, helper in helpers.items()}
    for version, digest in digests.items():
        registry._client.set_model_version_tag("lazy", version, "n2p.bundle", digest)
    drill = registry.drill("lazy")
    assert drill.version == 1 and drill.skipped[0].startswith("version 2: AttributeError: ")
    assert not {"lazy_model", "lazy_helper"} & set(sys.modules)
    registry._client.set_model_version_tag("lazy", "1", "n2p.bundle", digests["2"])
    with pytest.raises(NotFoundError, match=r"version 2: AttributeError.*version 1: AttributeError"):
        registry.drill("lazy")


def test_an_override_does_without_a_champion_and_reports(
    trained: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "lost", 2)
    registry.promote("lost", 1)
    registry._client.set_model_version_tag("lost", "1", "n2p.bundle", "sha256:" + "0" * 64)
    monkeypatch.setenv("N2P_REQUIRE_GATE", "1")
    monkeypatch.chdir(trained.folder)
    with pytest.raises(BundleError):
        registry.promote("lost", 2)
    event = registry.promote("lost", 2, override=True, reason="version 1 is lost")
    assert event and (event.gates, event.verdicts) == ("overridden", None)

    digest = registry.read("lost", 2).bundle
    report = registry.store.home / "verdicts" / digest.removeprefix("sha256:") / "damaged.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("{")
    try:
        with pytest.raises(StoreError, match="damaged") as caught:
            read_reports(registry.store, digest)
        assert caught.value.where == str(report) and (caught.value.remedy or "").startswith("delete the file")
        bundle = registry.bundle(registry.read("lost", 2))
        passed = pass_gates(registry.store, bundle, "production", lambda: None, override=True)
        assert passed.gates == "overridden"
    finally:
        report.unlink()


@pytest.mark.parametrize(
    ("moves_made", "path"),
    [
        ([("promote", 1, None), ("promote", 2, 1), ("rollback", 1, 2), ("rollback", 1, 2)], [1]),
        ([("promote", 2, None), ("rollback", 1, 2)], [1]),
    ],
)
def test_the_path_of_two_that_go_back(moves_made: list[tuple[str, int, int | None]], path: list[int]) -> None:
    events = [Event("2026-01-01", *move[:1], "m", move[1], "ada", "production", move[2]) for move in moves_made]
    assert moves.alias_path(events, "production") == path


# Asking


def test_an_address_with_options_is_the_same_database(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("create table kept (name)")
        connection.execute("insert into kept values ('flights')")
        connection.commit()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}?timeout=60"
    assert ask_database(uri, "select name from kept") == [("flights",)]
    assert ask_database(f"sqlite:///file:{tmp_path / 'mlflow.db'}?uri=true", "select name from kept") is None


def test_every_page_of_names_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an address that only MLflow's client can ask, as it asks a server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{tmp_path / 'mlflow.db'}?uri=true")
    registry = Registry(Store(tmp_path / ".n2p"))
    names = [f"model-{number:03}" for number in range(101)]  # a page holds 100
    for name in names:
        registry._client.create_registered_model(name)
    assert len(registry._client.search_registered_models()) == 100 and registry.names() == names


def test_live_is_what_the_alias_points_to(trained: Project, registry: Registry) -> None:
    register(registry, "elsewhere", 2)
    registry.promote("elsewhere", 1)
    assert not live_now(registry, "elsewhere").differs
    registry._client.set_registered_model_alias("elsewhere", "production", "2")
    found = live_now(registry, "elsewhere")
    assert found.differs and found.version == 2 and found.event and found.event.version == 1
    done = trained.n2p("live", "elsewhere")
    assert "now: version 2" in done.stdout and "says version 1" in done.stdout


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


def test_what_was_cut_short_before_a_store_was_moved_is_settled(registry: Registry) -> None:
    client, store = registry._client, registry.store
    client.create_registered_model("moved")
    client.create_model_version("moved", "/somewhere")

    def killed() -> None:
        client.set_registered_model_alias("moved", "production", "1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_change(client, store, Event("2026-01-01", "promote", "moved", 1, "ada", "production", id="cut"), killed)
    intent, tag = store.home / "intents" / "cut.json", f"{INTENT}cut"
    intent.write_text(intent.read_text().replace(store_id(store), "another"))  # named after where it was
    text = client.get_registered_model("moved").tags[tag].replace(store_id(store), "another")
    client.set_registered_model_tag("moved", tag, text)
    for _ in range(2):
        recover(client, store)
        assert [event.id for event in registry.history("moved")] == ["cut"] and not intent.exists()
        assert [event.id for event in read_events(store, "moved")] == ["cut"]
    assert verify_audit(registry).damage == []


def test_a_log_is_sound_while_it_is_written(registry: Registry) -> None:
    entries = int(os.environ.get("N2P_TEST_ENTRIES", "5"))
    registry._client.create_registered_model("busy")
    other = Registry(registry.store)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [share_event(other, "override", "busy", 1, reason="why") for _ in range(entries)])
        while not writing.done():
            assert verify_audit(registry).damage == []
    assert len(writing.result()) == entries


def test_a_damaged_intent_is_named(registry: Registry) -> None:
    intent = registry.store.home / "intents" / "half.json"
    intent.parent.mkdir(exist_ok=True)
    intent.write_text('{"time": ')
    try:
        with pytest.raises(StoreError, match="damaged") as caught:
            recover(registry._client, registry.store)
        assert caught.value.where == str(intent) and "delete the file" in (caught.value.remedy or "")
    finally:
        intent.unlink()
    registry._client.create_registered_model("half")
    registry._client.set_registered_model_tag("half", f"{INTENT}x", f'{{"store": "{store_id(registry.store)}"')
    with pytest.raises(StoreError, match="damaged") as caught:
        registry.history("half")
    assert caught.value.where == f"tag {INTENT}x of 'half'"
    registry._client.delete_registered_model_tag("half", f"{INTENT}x")


def test_killed_at_random_moments(trained: Project, tmp_path: Path) -> None:
    kills = int(os.environ.get("N2P_TEST_KILLS", "3"))
    home = make_project(tmp_path / "killed").home
    home.mkdir()
    told = worker(trained, do="kill", trained=str(trained.home), home=str(home), kills=kills)
    assert told["done"] == kills


@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_eight_processes_leave_one_story(
    where: str, trained: Project, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = float(os.environ.get("N2P_TEST_SECONDS", "2"))
    homes = [tmp_path / name / ".n2p" for name in (("one",) if where == "sqlite" else ("one", "other"))]
    for home in homes:
        home.mkdir(parents=True)
    uri = {} if where == "sqlite" else {"MLFLOW_TRACKING_URI": request.getfixturevalue("address")}
    project = Project(trained.folder, uri)
    told = worker(
        project, do="soak", trained=str(trained.home), homes=[str(home) for home in homes], seconds=seconds, processes=8
    )
    assert told["stores"][0]["versions"] >= 1 and sum(told["told"].values()) >= 8


def test_who_answers_users_has_passed_the_gates_of_production(
    trained: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.folder)
    register(registry, "eased")
    registry.promote("eased", 1)
    policy = trained.folder / "pyproject.toml"
    policy.write_text('[tool.n2p.gates]\nskip = ["data", "robustness", "fairness", "explain", "serving"]\n')

    def rollout(*arguments: str) -> Any:
        return trained.n2p("rollout", *arguments, "--json", N2P_REQUIRE_GATE="1")

    try:
        for kind in (("--canary", "10%"), ("--ab", "50%")):
            refused = rollout("start", "eased", "2", *kind)
            assert (refused.code, refused.error["type"]) == (1, "VerdictError")
            assert "the gates of production say no" in refused.error["what"]
            assert registry.aliased("eased", "canary") is None
        assert rollout("start", "eased", "2", "--shadow").code == 0, "a shadow answers nobody"
        assert rollout("abort", "eased").code == 0
        assert rollout("start", "eased", "2", "--override").error["what"].endswith("needs a reason")
        assert rollout("start", "eased", "2", "--override", "--reason", "rows are few").code == 0
        started = [each for each in registry.history("eased") if each.action == "rollout" and each.gates][-1]
        assert (started.gates, started.user) == ("overridden", identify().user) and "rows are few" in (
            started.why or ""
        )
        assert rollout("advance", "eased").code == 1, "its override was for the canary alone"
        assert registry.aliased("eased", "production") == 1
        done = rollout("advance", "eased", "--override", "--reason", "the canary did well")
        assert (done.code, done.json["state"]) == (0, "done") and registry.aliased("eased", "production") == 2
        promoted = [each for each in registry.history("eased") if each.alias == "production"][-1]
        assert promoted.gates == "overridden" and "the canary did well" in (promoted.why or "")
    finally:
        policy.unlink()
