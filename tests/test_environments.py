"""From one environment to the next: the same bundle with its evidence, whole or not at all, through the gates of there."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from notebooks import RIDGE, SCRIPTS, Project, finish, make_project
from test_bundle import make_writable
from test_postgres import address  # noqa: F401 - a fixture

from notebook_to_prod.errors import InputError, N2PError, NotFoundError, StoreError, VerdictError
from notebook_to_prod.package import keys
from notebook_to_prod.package.bundle import Bundle, open_bundle, write_bundle
from notebook_to_prod.package.gates.evaluation import Evaluation, load_evaluation
from notebook_to_prod.package.gates.verdict import Override, read_reports, save_report
from notebook_to_prod.package.seal import Seal, lock_digest, read_seal, seal_path
from notebook_to_prod.project import Store, open_environment, open_store, write_json
from notebook_to_prod.release import environments
from notebook_to_prod.release.environments import list_environments, promote_between
from notebook_to_prod.release.graph import find_version, lineage_graph
from notebook_to_prod.release.records import gather
from notebook_to_prod.release.registry import Registry, share_event
from notebook_to_prod.release.views import live_now, verify_audit
from notebook_to_prod.train.record import find_run
from notebook_to_prod.train.snapshot import find_blob

NAME = "ridge"
SETTINGS = """
[tool.n2p.stages]
staging = true

[tool.n2p.gates]
skip = ["data", "robustness", "fairness", "explain", "serving"]

[tool.n2p.gates.quality]
min_rows = 5
over_simple = 0.0

[tool.n2p.environments.staging]
home = "stores/staging"

[tool.n2p.environments.production]
home = "stores/production"
"""


@pytest.fixture(scope="module")
def trained(ridges: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose runs are in staging; the second is live there: gated, sealed, signed and approved."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("environments")
        project = make_project(root / "project")
        (project.folder / "pyproject.toml").write_text(SETTINGS)
        project.notebook("train.ipynb", RIDGE)
        shutil.copytree(ridges.home, project.folder / "stores/staging")
        ran = project.run("train.ipynb", "-p", "alpha", "2.0", "--env", "staging")
        assert ran.code == 0 and ran.json["env"] == "staging" and not project.home.exists(), ran
        assert ran.json["reused"], "its store is the one with the runs"
        patch.chdir(project.folder)
        patch.setenv("N2P_REQUIRE_GATE", "1")
        patch.setenv("N2P_KEYS", str(root / "keys"))
        registry = Registry(open_environment("staging"))
        store = registry.store
        for folder in sorted(store.runs.iterdir())[:2]:
            registry.register(find_run(store, folder.name), NAME)
        version = registry.read(NAME, 2)
        bundle = registry.bundle(version)
        keys.new_key("team")
        keys.add_signature(bundle.path, keys.sign(bundle.digest, "team"))
        made = Seal(bundle.digest, lock_digest(bundle), "3.11", "Linux", {}, 8, 0.0, "2026-03-01T09:00:00", 1.0, False)
        write_json(seal_path(store, bundle.digest), made.to_dict())
        write_json(store.runs / version.run_id / "certificate.json", {"level": "bytes"})
        share_event(registry, "approve", NAME, 2, alias="production", reason="looks right", bundle=bundle.digest)
        event = registry.promote(NAME, 2, reason="tried")
        assert event and event.gates == "passed" and event.alias == "staging"
    return project


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of an empty registry, which takes seconds to make."""
    store = Store(tmp_path_factory.mktemp("empty"))
    Registry(store)._client  # noqa: B018 - makes it
    return store.home / "mlflow.db"


@pytest.fixture
def staging(trained: Project, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(trained.folder)
    return open_environment("staging")


@pytest.fixture
def production(empty: Path, tmp_path: Path) -> Store:
    """An empty environment."""
    return made_store(tmp_path / "production", empty)


def made_store(home: Path, empty: Path, name: str = "production") -> Store:
    home.mkdir()
    shutil.copy(empty, home / "mlflow.db")
    return Store(open_store(home).home, name, name)


def copied(staging: Store, home: Path) -> Store:
    """Staging, to be damaged."""
    shutil.copytree(staging.home, home)
    return replace(staging, home=home)


def names(store: Store) -> list[str]:
    return Registry(store).names()


def flip(path: Path, at: int = -20) -> None:
    """Change one byte."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    path.chmod(mode)


# What arrives


def test_the_journey_from_staging_to_production(
    trained: Project, staging: Store, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = trained.copy_to(make_project(tmp_path / "project"))
    made_store(project.folder / "stores/production", empty)
    command = ("promote", NAME, "--from", "staging", "--to", "production", "--json")
    done = project.n2p(*command, "--reason", "two quiet weeks", N2P_REQUIRE_GATE="1")
    assert done.code == 0, done
    said = done.json
    assert (said["version"], said["alias"], said["changed"]) == (1, "production", True)
    assert said["event"]["gates"] == "passed" and "gate: " not in done.stderr, "the report has travelled"
    assert said["origin"]["environment"] == "staging" and said["origin"]["version"] == 2
    kinds = {each["kind"] for each in said["pieces"]}
    assert (
        kinds == {"bundle", "signatures", "table", "verdicts", "seal", "run"}
        and said["sent"] == len(said["pieces"]) - 2
    )
    again = project.n2p(*command, N2P_REQUIRE_GATE="1").json
    assert (again["changed"], again["sent"], again["version"]) == (False, 0, 1)

    events = project.n2p("history", NAME, "--env", "production", "--json").json
    assert events["env"] == "production"
    told = [(each["action"], each["version"], each["alias"], each["origin"]["version"]) for each in events["events"]]
    arrived = [("register", 1, None, 2), ("approve", 1, "production", 2), ("promote", 1, None, 2)]
    assert told == [("register", 1, None, 2), *arrived, ("promote", 1, "production", 2)]
    listed = project.n2p("environments", "--json").json["environments"]
    live = {each["name"]: (each["models"][0]["version"], each["models"][0]["bundle"]) for each in listed}
    assert live == {"staging": (2, said["bundle"]), "production": (1, said["bundle"])}
    alone = project.n2p("environments", "--env", "production", "--json").json["environments"]
    assert [each["name"] for each in alone] == ["production"]
    wrong = project.n2p("environments", "--env", "productoin", "--json")
    assert wrong.code == 2 and "did you mean 'production'" in wrong.error["what"]
    assert project.n2p("promote", NAME, "1", "--to", "canary", "--env", "production").code == 0
    assert "; @canary version 1" in project.n2p("environments").stdout
    shown = project.n2p("live", NAME, N2P_ENV="production").stdout
    assert shown.startswith("env        production") and f"{NAME}@production now: version 1" in shown
    assert "from staging version 2" in shown

    monkeypatch.chdir(project.folder)
    registry = Registry(open_environment("production"))
    version = registry.resolve(f"{NAME}@production")
    bundle, store = registry.bundle(version), registry.store
    tables = load_evaluation(store, Evaluation.from_dict(bundle.metadata["evaluation"]))
    assert tables["X_test"].shape == (10, 2) and registry.metrics(version) == {"score": pytest.approx(1.0, abs=0.1)}
    assert registry.lineage(version) == Registry(staging).lineage(Registry(staging).read(NAME, 2))
    assert read_seal(store, bundle.digest) == read_seal(staging, bundle.digest) and version.sealed == lock_digest(
        bundle
    )
    assert [each.digest for each in read_reports(store, bundle.digest)] == [said["event"]["verdicts"]]
    records = gather(registry, find_version(registry, NAME))
    assert records.certificate == {"level": "bytes"} and records.signers and records.seal
    assert any("from staging version 2" in edge.why for edge in lineage_graph(registry, version).edges)
    assert verify_audit(registry).damage == []

    loaded = "import mlflow; print(mlflow.pyfunc.load_model('models:/ridge@production').predict([[1.0, 2.0]]).shape)"
    variables = {"MLFLOW_TRACKING_URI": store.tracking_uri, "MLFLOW_REGISTRY_URI": store.registry_uri}
    plain = subprocess.Popen(
        [sys.executable, "-c", loaded],
        cwd=tmp_path,
        env=project.environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert finish(plain).stdout.strip() == "(1,)"


def test_an_older_version_and_one_that_is_not_there(staging: Store, production: Store) -> None:
    done = promote_between(staging, production, f"{NAME}@1")
    assert (done.origin.version, done.origin.alias, done.version) == (1, None, 1)
    assert promote_between(staging, production, NAME).version == 2
    assert Registry(production).rollback(NAME).version == 1, "along its own path"
    for reference, what in (
        (f"{NAME}@7", "no version 7"),
        (f"{NAME}@canary", "is 'canary'"),
        ("wine", "no model 'wine'"),
    ):
        with pytest.raises(NotFoundError, match=what):
            promote_between(staging, production, reference)
    with pytest.raises(InputError, match="the same store"):
        promote_between(staging, replace(staging, environment="other"), NAME)


def test_an_alias_that_is_dropped_there_is_not_dropped_here(staging: Store, production: Store, tmp_path: Path) -> None:
    source = copied(staging, tmp_path / "staging")
    promote_between(source, production, f"{NAME}@1")
    there, here = Registry(source), Registry(production)
    there.promote(NAME, 1, "production")
    there.retire(NAME, "production", "meant for production's own store", override=True)
    promote_between(source, production, f"{NAME}@1")
    told = [(each.action, each.alias) for each in here.history(NAME)]
    assert ("retire", None) in told, "it is told of"
    assert not live_now(here, NAME).differs and here.aliased(NAME, "production") == 1


def test_a_variant_brings_what_it_was_made_from(staging: Store, production: Store, tmp_path: Path) -> None:
    source = copied(staging, tmp_path / "staging")
    registry = Registry(source)
    bundle = registry.bundle(registry.read(NAME, 2))
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    step = {"bundle": bundle.digest, "how": "fewer trees", "variant": "small"}
    contents["metadata.json"] = json.dumps({**bundle.metadata, "derived_from": step}).encode()
    small = write_bundle(source.bundles, contents)
    version, _ = registry.register_bundle(small, "small")
    done = promote_between(source, production, "small@1")
    there = Registry(production)
    assert done.bundle == small.digest and {bundle.digest, small.digest} <= {each.digest for each in opened(production)}
    assert there.lineage(there.read("small", 1)) == registry.lineage(version)
    assert there.read("small", 1).derived_from == bundle.digest


def opened(store: Store) -> list[Bundle]:
    return [open_bundle(path) for path in store.bundles.iterdir()]


def test_environments_may_share_a_registry(staging: Store, tmp_path: Path) -> None:
    source = copied(staging, tmp_path / "staging")
    shared = f"sqlite:///{source.home / 'mlflow.db'}"
    target = Store(open_store(tmp_path / "production").home, "production", "production", shared)
    before = len(Registry(source).history(NAME))
    done = promote_between(source, target, NAME)
    assert done.version == 2 and len(Registry(source).history(NAME)) == before + 1, "it has the events already"
    assert Registry(source).read(NAME, 2).aliases == ("production", "staging")


# What is refused


def damage_of(kind: str, store: Store) -> Path:
    """Damage or remove a piece of evidence; returns where it was."""
    registry = Registry(store)
    version = registry.read(NAME, 2)
    table = find_blob(store, registry.bundle(version).metadata["evaluation"]["digests"]["y_test"]) or Path()
    run = store.runs / version.run_id
    (report,) = (store.home / "verdicts" / version.bundle.removeprefix("sha256:")).glob("*.json")
    if kind == "table":
        flip(table)
    elif kind == "no table":
        table.unlink()
    elif kind == "no run":
        shutil.rmtree(run)
        return store.runs
    elif kind == "record":
        record = (run / "record.json").read_text()
        (run / "record.json").write_text(record.replace('"seed": 1', '"seed": 2'))
    elif kind == "report":
        report.write_text(report.read_text().replace('"pass"', '"warn"', 1))
    elif kind == "seal":
        content = json.loads(seal_path(store, version.bundle).read_text())
        write_json(seal_path(store, version.bundle), content | {"lock": "sha256:" + "0" * 64})
    elif kind == "audit":
        store.audit.write_text(store.audit.read_text().replace("looks right", "looks wrong"))
    places = {"record": run / "record.json", "report": report, "seal": seal_path(store, version.bundle)}
    return places.get(kind, store.audit if kind == "audit" else table)


@pytest.mark.parametrize("kind", ["table", "no table", "no run", "record", "report", "seal", "audit"])
def test_what_is_damaged_or_missing_is_named_and_nothing_is_registered(
    kind: str, staging: Store, production: Store, tmp_path: Path
) -> None:
    source = copied(staging, tmp_path / "staging")
    path = damage_of(kind, source)
    before = sorted(production.home.rglob("*"))
    with pytest.raises(N2PError) as caught:
        promote_between(source, production, NAME)
    named = str(path) if kind != "no table" else str(source.data)
    assert named in (caught.value.where or "") and caught.value.remedy and caught.value.exit_code in (2, 3)
    left = {path for path in set(production.home.rglob("*")) - set(before) if "locks" not in path.parts}
    assert names(production) == [] and not left


def arrived(kind: str, staging: Store, production: Store) -> Path:
    """Where a piece of evidence has arrived."""
    registry = Registry(staging)
    version = registry.read(NAME, 2)
    digest = version.bundle.removeprefix("sha256:")
    if kind == "y_test":
        tables = registry.bundle(version).metadata["evaluation"]["digests"]
        return find_blob(production, tables["y_test"]) or Path()
    if kind == "verdicts":
        return next((production.home / f"verdicts/{digest}").glob("*.json"))
    places = {"bundle": f"bundles/{digest}/model.pkl", "seal": f"seals/{digest}.json"}
    return production.home / places.get(kind, f"runs/{version.run_id}/{kind}")


@pytest.mark.parametrize("kind", ["bundle", "y_test", "seal", "verdicts", "output.ipynb", "record.json"])
def test_a_byte_that_flips_on_the_way_is_found_on_arrival(kind: str, staging: Store, production: Store) -> None:
    def harm(text: str) -> None:
        if text.startswith("verify"):
            flip(arrived(kind, staging, production))

    with pytest.raises(StoreError, match=f"{kind}.* is not in production what it was when it left") as caught:
        promote_between(staging, production, NAME, progress=harm)
    assert caught.value.exit_code == 3 and names(production) == []
    done = promote_between(staging, production, NAME)
    assert done.event and done.sent == 1 + (kind == "bundle"), (
        "what was wrong is sent again; signatures go with a bundle"
    )


# Killed, and two at once


FORK = multiprocessing.get_context("fork")


def killed_at(staging: Store, production: Store, at: int) -> int:
    """Promote in a process that kills itself at the step `at`; returns its exit code."""

    def work() -> None:
        steps = 0

        def step(*_: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                step()
                done = function(*arguments, **options)
                step()
                return done

            return call

        for name in ("register", "make_change", "promote"):
            setattr(environments, name, stepping(getattr(environments, name)))
        promote_between(staging, production, NAME, "after a kill", progress=step)

    process = FORK.Process(target=work)
    process.start()
    process.join()
    return process.exitcode or 0


def test_killed_half_way_the_next_call_finishes(staging: Store, production: Store) -> None:
    codes = [killed_at(staging, production, at) for at in (2, 7, 3, 1, 2, 3, 4, 5, 6, 8, 9)]
    assert codes.count(-signal.SIGKILL) >= 8, codes
    last = promote_between(staging, production, NAME, "after a kill")
    registry = Registry(production)
    assert last.sent == 0 and verify_audit(registry).damage == []
    told = [(each.action, each.alias) for each in registry.history(NAME)]
    assert told == [
        ("register", None),
        ("register", None),
        ("approve", "production"),
        ("promote", None),
        ("promote", "production"),
    ]
    assert registry.aliased(NAME, "production") == 1 and len(registry.versions(NAME)) == 1


def test_two_at_once_make_one_move(staging: Store, production: Store) -> None:
    with ThreadPoolExecutor(2) as executor:
        both = list(executor.map(lambda _: promote_between(staging, production, NAME), range(2)))
    assert sorted(each.event is None for each in both) == [False, True] and {each.version for each in both} == {1}
    registry = Registry(production)
    assert [each.alias for each in registry.history(NAME) if each.action == "promote"] == [None, "production"]
    assert verify_audit(registry).damage == []


# The gates of there


def test_reports_count_where_they_arrive_and_overrides_do_not(
    staging: Store, production: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copied(staging, tmp_path / "staging")
    monkeypatch.setenv("N2P_REQUIRE_GATE", "1")
    digest = Registry(source).read(NAME, 2).bundle
    (report,) = read_reports(source, digest)
    failed = replace(report.verdicts[0], status="fail")
    overruled = replace(report, verdicts=(failed, *report.verdicts[1:]), override=Override("ada", "for a test", "2026"))
    save_report(source, overruled)
    with pytest.raises(InputError, match="needs a reason"):
        promote_between(source, production, NAME, override=True)
    assert Registry(production).names() == [], "nothing was sent for a call that lacks a reason"
    with pytest.raises(VerdictError, match="the gates of production say no") as caught:
        promote_between(source, production, NAME)
    assert caught.value.exit_code == 1 and Registry(production).aliased(NAME, "production") is None
    assert [each.override for each in read_reports(production, digest)] == [None]
    done = promote_between(source, production, NAME, "the champion is on fire", override=True)
    assert done.event and (done.event.gates, done.event.reason) == ("overridden", "the champion is on fire")
    assert len(Registry(production).versions(NAME)) == 1

    told: list[str] = []
    older = promote_between(staging, production, f"{NAME}@1", progress=told.append)
    assert older.event and older.event.gates == "passed", "asked there, with the tables that have travelled"
    assert any(each.startswith("gate: ") for each in told), "since nobody has asked in staging"


# Other databases, and a server


def test_to_postgresql(staging: Store, address: str, tmp_path: Path) -> None:  # noqa: F811
    target = Store(open_store(tmp_path / "production").home, "production", "production", address)
    done = promote_between(staging, target, NAME, "to the database")
    registry = Registry(target)
    assert done.event and live_now(registry, NAME).version == done.version == 1
    assert [each.alias for each in registry.history(NAME)][-1] == "production"
    assert promote_between(staging, target, NAME).event is None and verify_audit(registry).damage == []
    assert address not in repr(target)


@pytest.fixture
def server(empty: Path, tmp_path: Path) -> Iterator[str]:
    """A tracking server with a registry and artifacts of its own."""
    shutil.copy(empty, tmp_path / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [SCRIPTS / "mlflow", "server", "--port", str(port), "--workers", "1", *places],
            stdout=log,
            stderr=log,
            text=True,
            env=kept,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_to_a_server(staging: Store, server: str, tmp_path: Path) -> None:
    target = Store(open_store(tmp_path / "production").home, "production", "production", server)
    done = promote_between(staging, target, NAME)
    registry = Registry(target)
    assert done.event and registry.resolve(f"{NAME}@production").bundle == done.bundle
    assert promote_between(staging, target, NAME).event is None
    make_writable(target.bundle(done.bundle))
    shutil.rmtree(target.bundles)
    assert registry.bundle(registry.resolve(f"{NAME}@production")).digest == done.bundle, "fetched from the server"


def test_a_server_that_is_down_costs_nothing(trained: Project, tmp_path: Path) -> None:
    project = trained.copy_to(make_project(tmp_path / "project"))
    settings = project.folder / "pyproject.toml"
    settings.write_text(SETTINGS + 'tracking_uri = "http://user:$SECRET@127.0.0.1:9"\n')
    command = ("promote", NAME, "--from", "staging", "--to", "production", "--json")
    down = project.n2p(*command, SECRET="hunter2")
    assert (down.code, down.error["type"]) == (3, "TrackingError") and "hunter2" not in down.stdout + down.stderr
    assert "[tool.n2p.environments.production]" in down.error["remedy"]
    assert not (project.folder / "stores/production/bundles").exists(), "asked before anything was sent"
    missing = project.n2p(*command)
    assert (missing.code, missing.error["what"]) == (2, "not set: SECRET")
    seen = project.n2p("environments", "--json", SECRET="hunter2")
    states = {each["name"]: bool(each["error"]) for each in seen.json["environments"]}
    assert seen.code == 3 and states == {"staging": False, "production": True}


# Which store a command uses


def test_a_command_uses_the_environment_that_was_asked_for(
    trained: Project, staging: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert open_store().tracking_uri == "http://127.0.0.1:9"
    monkeypatch.setenv("N2P_ENV", "staging")
    assert open_store() == staging and open_store(tmp_path / "given").environment == ""
    assert staging.tracking_uri == staging.registry_uri == f"sqlite:///{staging.home / 'mlflow.db'}"
    wrong = trained.n2p("list", "--env", "stagin", "--json")
    assert (wrong.code, wrong.error["type"]) == (2, "InputError") and "staging, production" in wrong.error["remedy"]
    asked = trained.n2p("promote", NAME, "--from", "staging", "--json")
    assert (asked.code, asked.error["where"]) == (2, "--to")
    assert trained.n2p("promote", NAME, "--json").error["what"] == "which version?"
    shown = trained.n2p("promote", f"{NAME}@2", "--env", "staging")
    assert shown.code == 0 and "it pointed there already" in shown.stdout
    assert f"n2p serve {NAME}@staging --env staging" in shown.stdout
    assert [each.name for each in list_environments(trained.folder)] == ["staging", "production"]


def test_a_disk_that_is_not_mounted_is_not_made(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text(
        SETTINGS.replace("stores/production", "/srv/no-such-disk/production")
    )
    done = project.n2p("list", "--env", "production", "--json")
    assert (done.code, done.error["type"]) == (3, "StoreError") and done.error["where"] == "/srv/no-such-disk"
