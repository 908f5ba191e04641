"""A model that is retrained: once however often it is asked for, gone on with wherever it was killed, and released only if it is no worse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import retrain_worker
from clusters import dask_cluster, wait_for
from notebooks import FORKS, SCRIPTS, Project, make_project, once, start_forks

from notebook_to_prod.errors import CellError, DataError, InputError, NotFoundError, VerdictError
from notebook_to_prod.project import open_store
from notebook_to_prod.release.audit import read_events, verify_log
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.rollout import Rollout, read_rollout, running_rollout
from notebook_to_prod.serve.log.segments import SegmentWriter
from notebook_to_prod.watch import retrain as pipeline
from notebook_to_prod.watch.retrain import Outcome, abort_retraining, retrain, watch_models, watch_once
from notebook_to_prod.watch.retrain_data import ingest, join_features, read_rows, rows_path
from notebook_to_prod.watch.retrain_settings import TRIGGERS, retrain_settings
from notebook_to_prod.watch.retrain_state import keep_state, only_one, read_notes, read_states, unfinished
from notebook_to_prod.watch.retrain_triggers import ask_triggers, make_question
from notebook_to_prod.watch.rollout import Decision

FIRED = int(os.environ.get("N2P_TEST_RETRAIN", "8"))  # Processes at once
NAME = "flights"
CELLS = {
    "parameters": "data = ''\nseed = 3",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)\nflights = n2p.load(data)",
    "fit": (
        "from sklearn.linear_model import LogisticRegression\n\n"
        "X, y = flights[['dep_delay', 'distance']], flights['late']\n"
        "model = LogisticRegression(max_iter=500).fit(X[:-300], y[:-300])"
    ),
    "export": "run.export(model, X[:-300], y[:-300], X[-300:], y[-300:])",
}
GATES = """
[tool.n2p.gates]
resamples = 60
skip = ["robustness", "fairness", "quality.found_slices"]
"""
SETTINGS = """
notebook = "train.ipynb"
ingest = "flights.parquet"
label = "late"
time = "departed"
"""
FREE = 'cooldown = "0 s"\nbudget = 50\n'


def flights(rows: int = 2_000, limit: float = 20, seed: int = 7, later: float = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    delay = random.exponential(20, rows) + later
    table = pd.DataFrame({"dep_delay": delay, "distance": random.gamma(3, 400, rows)})
    departed = pd.date_range("2013-01-01", periods=rows, freq="h", tz="UTC")
    return table.assign(late=(delay + random.normal(0, 8, rows) > limit).astype(int), departed=departed)


NEWER = flights(2_600)


def configure(project: Project, settings: str = FREE, more: str = "") -> None:
    text = f"{GATES}{more}\n[tool.n2p.retrain.{NAME}]{SETTINGS}{settings}"
    (project.folder / "pyproject.toml").write_text(text)


def first(project: Project) -> None:
    """Retrain for the first time: nothing is live yet."""
    project.notebook("train.ipynb", CELLS)
    configure(project)
    flights().to_parquet(project.folder / "flights.parquet")
    done = project.n2p("retrain", NAME, "--json")
    assert (done.code, done.json["state"]["state"]) == (0, "promoted"), done
    NEWER.to_parquet(project.folder / "flights.parquet")
    start_forks()
    died(project, "gate")  # the run of the newer rows is on record, so that not every test has to train on them
    known = {each["key"] for each in project.n2p("retrain", NAME, "--status", "--json").json["retrainings"]}
    for key in known - {done.json["key"]}:
        (project.home / "retrain" / NAME / f"{key.removeprefix('sha256:')[:32]}.json").unlink()


def died(project: Project, stage: str) -> None:
    """Have a process retrain that is killed at a stage."""
    process = FORKS.Process(
        target=retrain_worker.killed_at, args=(stage, project.folder, project.environment({}), NAME)
    )
    process.start()
    process.join(200)
    assert process.exitcode == -signal.SIGKILL, stage


@pytest.fixture(scope="session")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return once(tmp_path_factory, "retrained", first)


@pytest.fixture
def project(retrained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of one's own whose version 1 is live, and which has newer rows."""
    made = retrained.copy_to(make_project(tmp_path / "project"))
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def registry(project: Project) -> Registry:
    return Registry(open_store())


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.1)
    return found


def counted(registry: Registry) -> Counter[str]:
    """Events since version 1 was promoted, by what they did."""
    return Counter(each.action for each in [*read_events(registry.store, NAME)][2:])


def test_the_first_retraining_promotes_a_version(retrained: Project) -> None:
    status = retrained.n2p("retrain", NAME, "--status", "--json")
    (state,) = status.json["retrainings"]
    assert (status.code, state["state"], state["stage"], state["version"]) == (0, "promoted", "promote", 1)
    stages = state["stages"]
    assert [*stages] == ["ingest", "features", "train", "gate", "register", "canary", "promote"]
    assert stages["gate"]["passed"] and stages["gate"]["rows"] == stages["features"]["fresh_rows"] == 400
    assert (retrained.home / stages["gate"]["report"]).is_file()
    record = retrained.record(stages["train"]["run"])
    assert str(retrained.folder) not in json.dumps(record["parameters"]), "no path of this machine is recorded"


def test_fired_many_times_at_once_it_is_one_run(project: Project, registry: Registry) -> None:
    runs = len(project.run_folders)
    flights(2_400, seed=9).to_parquet(project.folder / "flights.parquet")
    fired = project.together(*[("retrain", NAME, "--if", "new-data", "--if", "stale", "--json")] * FIRED)
    assert {each.code for each in fired} == {0}, [each.stderr for each in fired if each.code]
    said = Counter(each.json["what"] for each in fired)
    assert said["ran"] == 1 and said.keys() <= {"ran", "running", "done", "not triggered"}, said
    assert counted(registry) == {"register": 1, "promote": 1}
    assert len(project.run_folders) == runs + 1 and len(read_states(registry.store, NAME)) == 2
    assert registry.aliased(NAME, "production") == 2 and not verify_log(registry.store)
    with ThreadPoolExecutor(8) as pool:
        again = [*pool.map(lambda _: retrain(registry, NAME), range(8))]
    assert {each.what for each in again} <= {"running", "done"} and len(project.run_folders) == runs + 1


def test_killed_at_every_stage_it_ends_the_same(project: Project, registry: Registry) -> None:
    before = {each.name for each in project.run_folders}
    flights(2_400, seed=10).to_parquet(project.folder / "flights.parquet")
    start_forks()
    for stage in ("ingest", "features", "cell", "train", "gate", "register", "canary", "promote"):
        died(project, stage)
    reached = read_states(registry.store, NAME)[-1]
    assert (reached.stage, registry.aliased(NAME, "production")) == ("canary", 2), "it was promoted as it was killed"
    process = project.start("n2p", "retrain", "--watch", "--every", "0.2 s", "--json")
    try:
        until(lambda: unfinished(registry.store, NAME) is None, 90)
    finally:
        process.send_signal(signal.SIGTERM)
    said, told = process.communicate(timeout=60)
    assert (process.returncode, json.loads(said)["models"]) == (0, [NAME]), told
    assert "promoted as version 2" in told and "Traceback" not in told
    assert counted(registry) == {"register": 1, "promote": 1}
    statuses = Counter(project.record(each.name)["status"] for each in project.run_folders if each.name not in before)
    assert statuses == {"finished": 1, "failed": 1}, "the one that was killed in a cell is closed"
    assert len(registry.versions(NAME)) == 2 and len(read_states(registry.store, NAME)) == 2
    assert [*project.home.rglob("*.tmp")] == [] and not verify_log(registry.store)
    assert retrain(registry, NAME).what == "done"


def test_on_dask_it_is_the_same_retraining(project: Project, tmp_path: Path) -> None:
    here = project.copy_to(make_project(tmp_path / "here"))
    with dask_cluster(tmp_path / "dask", project.environment({})) as dask:
        dask.worker()
        configure(project, FREE + f'parameters = {{ seed = 4 }}\ndask = "{dask.address}"\n')
        there = project.n2p("retrain", NAME, "--json")
        assert (there.code, there.json["state"]["state"]) == (0, "promoted"), there
        assert f"train.ipynb: on Dask, {dask.address}" in there.stderr
    configure(here, FREE + "parameters = { seed = 4 }\n")
    local = here.n2p("retrain", NAME, "--json")
    train = [each.json["state"]["stages"]["train"] for each in (there, local)]
    assert not train[0]["reused"] and not train[1]["reused"] and there.json["key"] == local.json["key"]
    assert [train[0][each] for each in ("bundle", "metrics")] == [train[1][each] for each in ("bundle", "metrics")]
    runs = [each.record(said["run"]) for each, said in zip((project, here), train, strict=True)]
    kept = ("spec", "parameters", "threads", "question", "metrics", "experiment", "attempt")
    assert [runs[0][each] for each in kept] == [runs[1][each] for each in kept]
    configure(project, FREE + "parameters = { seed = 4 }\n")
    again = project.n2p("retrain", NAME, "--json")
    assert (again.code, again.json["what"], again.json["key"]) == (0, "done", there.json["key"])


def test_cut_short_on_dask_it_is_gone_on_with(project: Project, registry: Registry, tmp_path: Path) -> None:
    wait = (
        f"import os, time\n\nsigns = {str(tmp_path)!r}\nopen(os.path.join(signs, 'began'), 'a').close()\n"
        "while not os.path.exists(os.path.join(signs, 'go')):\n    time.sleep(0.05)\n"
    )
    project.notebook("train.ipynb", CELLS | {"fit": wait + CELLS["fit"]})

    def states() -> list[str]:
        return [each["status"] for each in map(project.record, [path.name for path in project.run_folders])][2:]

    with dask_cluster(tmp_path / "dask", project.environment({})) as dask:
        nobody = project.n2p("retrain", NAME, "--dask", "127.0.0.1:1", "--json")
        assert (nobody.code, nobody.error["what"]) == (3, "the Dask scheduler does not answer")
        begun = unfinished(registry.store, NAME)
        assert begun is not None and begun.stage == "features" and states() == []
        dask.worker()
        stopped = project.begin("retrain", NAME, "--dask", dask.address, "--json")
        wait_for(tmp_path / "began")
        stopped.send_signal(signal.SIGTERM)
        done = stopped.finish(90)
        assert (done.code, done.error["what"]) == (130, "the training was stopped") and states() == ["failed"]
        (tmp_path / "began").unlink()
        killed = project.begin("retrain", NAME, "--dask", dask.address, "--json")
        wait_for(tmp_path / "began")
        killed.send_signal(signal.SIGKILL)
        killed.process.join(60)
        assert states() == ["failed", "running"]  # on the worker, whom nobody told
        (tmp_path / "go").touch()
        done = project.n2p("retrain", NAME, "--dask", dask.address, "--json")
    assert done.code == 0 and done.json["state"]["state"] == "promoted" and done.json["key"] == begun.key
    assert states() == ["failed", "finished"] and done.json["state"]["stages"]["train"]["reused"]
    assert counted(registry) == {"register": 1, "promote": 1}


def test_rows_that_no_retraining_needs_are_collected(project: Project, registry: Registry) -> None:
    def cli(*arguments: str) -> Any:
        return project.n2p("data", "gc", "--json", *arguments).json["retrainings"]

    def kept() -> set[str]:
        return {
            path.relative_to(project.home).as_posix() for path in (project.home / "retrain" / NAME / "data").iterdir()
        }

    def needed(*digests: str) -> set[str]:
        return {rows_path(registry.store, NAME, each).relative_to(project.home).as_posix() for each in digests}

    (done,) = read_states(registry.store, NAME)
    died(project, "train")  # its rows, and both parts of them, are there
    other = unfinished(registry.store, NAME)
    assert other is not None
    stages, parts = other.stages, {each: other.stages["features"][each] for each in ("train", "fresh")}
    going_on = needed(stages["ingest"]["digest"], stages["features"]["digest"], *parts.values())
    spare = kept() - going_on
    assert spare >= needed(done.stages["ingest"]["digest"], *(done.stages["features"][each] for each in parts))
    assert cli("--remove")["files"] == [], "written within the last hour"
    told = cli("--older-than", "0")
    assert {*told["files"]} == spare and told["size"] > 10_000 and not told["removed"] and kept() == spare | going_on
    with only_one(registry.store, NAME) as free:
        busy = cli("--older-than", "0", "--remove")
    assert free and (busy["files"], busy["busy"]) == ([], [NAME])
    gone = cli("--older-than", "0", "--remove")
    assert {*gone["files"]} == spare and gone["removed"] and kept() == going_on
    assert retrain(registry, NAME).what == "ran" and read_states(registry.store, NAME)[-1].state == "promoted"
    last = needed(stages["ingest"]["digest"])
    assert {*cli("--older-than", "0", "--remove")["files"]} == going_on - last and kept() == last
    trigger = ask_triggers(
        make_question(registry, retrain_settings(NAME), read_states(registry.store, NAME)), ["new-data"]
    )
    assert not trigger[0].fired, "the rows of the last one are compared with"
    again = project.n2p("reproduce", done.stages["train"]["run"], "--json")
    assert again.code == 0, again  # from the snapshot, although its rows are gone


def test_a_bad_retraining_is_stopped(project: Project, registry: Registry) -> None:
    table = flights(2_600)
    random = np.random.default_rng(0)
    table.loc[:2_100, "late"] = random.permutation(table.loc[:2_100, "late"])
    table.to_parquet(project.folder / "flights.parquet")
    before = registry.history(NAME)
    done = project.n2p("retrain", NAME, "--json")
    state = done.json["state"]
    assert (done.code, state["state"], registry.aliased(NAME, "production")) == (1, "rejected", 1), done
    assert registry.history(NAME) == before and len(registry.versions(NAME)) == 1, "nothing is registered"
    assert "quality.champion" in {each["gate"] for each in state["stages"]["gate"]["failed"]}
    (event,) = [each for each in read_events(registry.store, NAME) if each.action == "gate-failed"]
    assert (event.verdicts, event.bundle) == (state["stages"]["gate"]["verdicts"], state["stages"]["train"]["bundle"])
    assert (project.home / state["stages"]["gate"]["report"]).is_file()
    shown = project.n2p("retrain", NAME)
    assert (shown.code, "was done" in shown.stdout and "rejected" in shown.stdout) == (0, True)
    state = read_states(registry.store, NAME)[-1]
    again = pipeline.go_on(  # as who was killed after the audit log was written
        pipeline.Job(registry, retrain_settings(NAME), project.folder),
        replace(state, state="running", stages={each: state.stages[each] for each in ("ingest", "features", "train")}),
    )
    assert again.state == "rejected" and counted(registry)["gate-failed"] == 1


def test_limits_refuse_and_force_is_audited(
    project: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(project, "", "[tool.n2p.stages.production]\napprovals = 1\ngates = false\n")
    cooling = project.n2p("retrain", NAME, "--if", "new-data", "--json")
    assert (cooling.code, cooling.json["what"], cooling.json["told"][:8]) == (0, "refused", "cooldown")
    by_hand = project.n2p("retrain", NAME, "--json")
    assert (by_hand.code, by_hand.json["what"]) == (1, "refused")
    configure(project, 'cooldown = "0 s"\nbudget = 1\n')
    assert retrain(registry, NAME, ["new-data"]).told.startswith("budget: 1 in 30 days, of 1")
    configure(project, FREE + "minimum_labels = 5000\n")
    assert [retrain(registry, NAME, when).exit_code for when in ((), ("new-data",))] == [1, 0]
    assert read_notes(registry.store, NAME)[-1]["why"] == "labels: 2600 labelled rows, of 5000"
    assert not counted(registry) and len(read_states(registry.store, NAME)) == 1

    configure(project, "", "[tool.n2p.stages.production]\napprovals = 1\ngates = false\n")
    forced = retrain(registry, NAME, force=True, reason="a holiday")
    assert forced.state is not None and (forced.state.state, forced.exit_code) == ("waiting", 1)
    (event,) = [each for each in read_events(registry.store, NAME) if each.action == "override"]
    assert "cooldown" in event.why and "a holiday" in event.why
    waiting = project.n2p("retrain", NAME, "--json")
    assert (waiting.code, waiting.json["state"]["state"], registry.aliased(NAME, "production")) == (1, "waiting", 1)
    with monkeypatch.context() as patch:
        patch.setenv("LOGNAME", "somebody-else")
        registry.approve(NAME, 2, "production")
    done = project.n2p("retrain", NAME, "--json")
    assert (done.code, done.json["state"]["state"], registry.aliased(NAME, "production")) == (0, "promoted", 2), done
    assert done.json["state"]["stages"]["promote"]["approvals"].startswith("1 of 1")


def test_what_fails_or_waits_does_not_block(
    project: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = CELLS | {"fit": CELLS["fit"] + "\nraise RuntimeError('the fit is broken')"}
    project.notebook("train.ipynb", broken)
    done = project.n2p("retrain", NAME, "--json")
    assert (done.code, done.error["type"]) == (2, "CellError")
    state = read_states(registry.store, NAME)[-1]
    assert (state.state, state.stage) == ("failed", "features") and "the fit is broken" in state.why
    assert registry.aliased(NAME, "production") == 1 and unfinished(registry.store, NAME) is None
    with pytest.raises(CellError):
        retrain(registry, NAME)
    assert read_states(registry.store, NAME)[-1].attempt == 2, "what has failed is tried again"
    with pytest.raises(NotFoundError):
        abort_retraining(registry, NAME)
    project.notebook("train.ipynb", CELLS)
    keep_state(registry.store, replace(state, state="running"))
    changed = retrain(registry, NAME).state
    assert changed is not None and changed.state == "failed" and "have changed" in changed.why
    rows_path(registry.store, NAME, state.stages["ingest"]["digest"]).unlink()
    keep_state(registry.store, replace(state.undone("features"), state="running"))
    with pytest.raises(DataError, match="rows of the retraining are gone"):
        retrain(registry, NAME, force=True)
    assert read_states(registry.store, NAME)[-1].state == "failed", "the next one fetches them"
    keep_state(registry.store, replace(state, state="waiting"))
    with only_one(registry.store, NAME), pytest.raises(VerdictError):
        abort_retraining(registry, NAME)
    given_up = project.n2p("retrain", NAME, "--abort", "--reason", "nobody approves", "--json")
    assert (given_up.code, given_up.json["state"]) == (0, "aborted") and "nobody approves" in given_up.json["why"]
    told: list[str] = []
    configure(project, FREE + 'if = ["new-data"]\n')
    (project.folder / "flights.parquet").write_bytes(b"no table")
    assert watch_once(registry, told.append) == [] and "cannot be read" in told[0]
    with (project.folder / "pyproject.toml").open("a") as file:
        file.write(f'[tool.n2p.retrain.fares]{SETTINGS}if = ["schedule"]\n')

    def broken(registry: Registry, name: str, *_: Any, **__: Any) -> Outcome:
        if name == NAME:
            raise ZeroDivisionError("division by zero")
        return Outcome(name, "not triggered", "")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "retrain", broken)
        assert [each.name for each in watch_once(registry, told.append)] == ["fares"]
    assert told.pop() == "flights: ZeroDivisionError: division by zero"
    (project.folder / "pyproject.toml").write_text("[tool.n2p.retrain.flights]\nnotebok = 'x'\n")
    assert watch_once(registry, told.append) == [] and "did you mean 'notebook'" in told[1]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "which model"),
        (("fares",), "nothing says how"),
        ((NAME, "--if", "drfit"), "Invalid value"),
        ((NAME, "--status", "--force"), "stand alone"),
        ((NAME, "--status", "--dask", "local"), "nothing is trained"),
        ((NAME, "--watch", "--every", "soon"), "is no time"),
    ],
)
def test_wrong_usage_is_exit_code_2(retrained: Project, arguments: tuple[str, ...], what: str) -> None:
    done = retrained.n2p("retrain", *arguments, "--json")
    assert done.code == 2 and what in done.error["what"]


def log_days(registry: Registry, later: float, limit: float) -> None:
    """Write six days of requests to version 1 and what was true of them, the delays of the last four longer."""
    version = registry.read(NAME, 1)
    bundle = registry.bundle(version)
    folder = registry.store.predictions(NAME)
    folder.mkdir(parents=True)
    columns = [
        {"name": each.name, "dtype": each.dtype, "kind": each.kind, "missing": each.missing}
        for each in bundle.schema.columns
    ]
    who = {"model": NAME, "version": "1", "bundle": bundle.digest, "classes": [0, 1], "columns": columns}
    from notebook_to_prod.package.gates.case import load_apart

    model, writer = load_apart(bundle), SegmentWriter(folder)
    writer.begin()
    writer.append(json.dumps(("m", who)).encode())
    for day in range(6):
        table = flights(200, limit if day > 1 else 20, seed=day, later=later if day > 1 else 0)
        rows = table[["dep_delay", "distance"]]
        moment = int(datetime(2026, 3, 1 + day, tzinfo=UTC).timestamp() * 1e6)
        said, odds = model.predict(rows).tolist(), model.predict_proba(rows).tolist()
        values = rows.to_numpy().tolist()
        again = [*range(len(values)), 0, 1]  # one is asked for again, of another something else answers
        for place, number in enumerate(again):
            row = values[number]
            told = (
                "p",
                moment + place,
                f"{day}-{number}",
                0,
                "predict",
                "",
                "rules" if number == 1 else "",
                900,
                [row],
                [said[number]],
                [odds[number]],
            )
            writer.append(json.dumps(told).encode())
        labels = [[f"{day}-{number}", 0, each] for number, each in enumerate(table["late"].tolist())]
        writer.append(json.dumps(("l", moment + 10**9, labels)).encode())
    writer.end()


def test_triggers_fire_on_what_they_are_about(project: Project, registry: Registry) -> None:
    def fires(*names: str, **changes: Any) -> dict[str, bool]:
        settings = replace(retrain_settings(NAME), **changes)
        asked = make_question(registry, settings, read_states(registry.store, NAME), project=project.folder)
        return {each.name: each.fired for each in ask_triggers(asked, names or TRIGGERS)}

    served = {"drift": False, "performance": False}
    assert fires() == {**served, "stale": True, "new-data": True, "schedule": False}, "nothing was served"
    assert fires("stale", stale=timedelta(days=10_000)) == {"stale": False}
    assert fires("new-data", new_labels=2_601) == {"new-data": False}
    assert fires("schedule", every=timedelta(0)) == {"schedule": True}
    log_days(registry, later=25, limit=70)
    configure(project, FREE, "[tool.n2p.watch]\nminimum = 50\n")
    assert fires("drift", "performance") == {"drift": True, "performance": True}
    quiet = project.n2p("retrain", NAME, "--if", "schedule", "--json")
    assert (quiet.code, quiet.json["what"], quiet.json["triggers"][0]["fired"]) == (0, "not triggered", False)
    assert read_notes(registry.store, NAME)[-1]["what"] == "not triggered"

    logged = replace(retrain_settings(NAME), ingest="log", time="", window=timedelta(days=3))
    rows = ingest(registry.store, logged, project.folder, datetime(2026, 3, 20))
    assert (rows.rows, rows.unlabelled, rows.start[:10], rows.end[:10]) == (597, 0, "2026-03-04", "2026-03-06")
    some = ingest(registry.store, logged, project.folder, datetime(2026, 3, 5))
    assert some.rows == 597 and some.end[:10] == "2026-03-04", "rows from `until` on are left out"


def test_another_live_version_is_held_against_too(project: Project, registry: Registry) -> None:
    died(project, "canary")
    state = read_states(registry.store, NAME)[-1]
    assert (state.stage, state.version, state.stages["gate"]["champion_version"]) == ("register", 2, 1)
    configure(project, FREE, "[tool.n2p.stages.production]\napprovals = 1\ngates = false\n")
    waiting = retrain(registry, NAME).state
    assert waiting is not None and (waiting.state, waiting.stages["canary"]["state"]) == ("waiting", "none")
    configure(project)
    registry.retire(NAME, "production", "it was a mistake", override=True)
    done = retrain(registry, NAME)
    assert done.state is not None and done.state.stages["gate"]["champion"] == ""
    assert (done.state.state, registry.aliased(NAME, "production")) == ("promoted", 2)
    flights(2_600).to_parquet(project.folder / "flights.parquet")
    assert retrain(registry, NAME).what == "done"
    forced = project.n2p("retrain", NAME, "--force", "--json").json["state"]
    assert (forced["state"], forced["attempt"]) == ("unchanged", 2), "its bundle is the live one"


FEATURES = """
import notebook_to_prod as n2p

@n2p.features(entity="tail", time="known", ttl="2 days", owner="ann")
def aircraft(maintenance):
    return maintenance
"""


def test_features_are_joined_as_they_were_known(project: Project, registry: Registry) -> None:
    days = pd.date_range("2013-01-01", periods=4, freq="D", tz="UTC")
    maintenance = pd.DataFrame({"tail": "N1", "known": days, "repairs": [0.0, 1.0, 2.0, 3.0]})
    maintenance.to_parquet(project.folder / "maintenance.parquet")
    (project.folder / "views.py").write_text(FEATURES)
    more = '[tool.n2p.features]\ndefinitions = ["views.py"]\n[tool.n2p.features.sources]\nmaintenance = "maintenance.parquet"\n'
    configure(project, FREE + 'features = ["aircraft"]\nwindow = "30 rows"\n', more)
    flights(60).assign(tail="N1").to_parquet(project.folder / "flights.parquet")
    settings = retrain_settings(NAME)
    rows = ingest(registry.store, settings, project.folder)
    joined = join_features(registry.store, settings, rows.digest, project.folder)
    assert joined == join_features(registry.store, settings, rows.digest, project.folder)
    table = read_rows(registry.store, NAME, joined)
    assert rows.rows == 30 and table["departed"].iloc[0] == pd.Timestamp("2013-01-02T06:00Z")
    assert table["repairs"].tolist() == [1.0] * 18 + [2.0] * 12


CANARY = FREE + 'canary = { weight = "50%", period = "0.1 s", minimum = 10, labels = 20 }\n'
ROLLOUT = "[tool.n2p.serve.rollout]\nseconds = 0.1\nlatency = 1000\nshift = 100\n"


@pytest.fixture
def client(project: Project) -> Iterator[httpx.Client]:
    """A client of a service that follows the live version."""
    configure(project, CANARY, ROLLOUT)
    command = [SCRIPTS / "n2p", "serve", f"{NAME}@production", "--port", "0", "--json"]
    with (project.folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=project.folder, env=project.environment({}), stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout
        with httpx.Client(base_url=json.loads(process.stdout.readline())["url"], trust_env=False) as made:
            yield made
    finally:
        process.terminate()
        process.wait(30)


def serve(client: httpx.Client, canary: str, right: bool, about: str) -> None:
    """Ask until both versions have answered, and tell what was true: the canary is right or wrong, the other half and half."""
    until(lambda: client.get("/rollout").json()["arms"])
    labels = []
    for number in range(120):
        row, id = {"dep_delay": float(number % 60), "distance": 500.0}, f"{about}-{number}"
        said = client.post("/predict", json=row, headers={"x-request-id": id}).json()
        good = right if said["version"] == canary else number % 4 < 2
        labels.append({"id": id, "label": said["predictions"][0] if good else 1 - said["predictions"][0]})
    assert client.post("/feedback", json=labels).json() == {"accepted": 120, "pending": 0}


def test_a_canary_is_promoted_and_another_aborted(
    project: Project, registry: Registry, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class Killed(BaseException):
        """As a process that dies here would leave it."""

    def keep(store: Any, found: Any) -> Any:
        if found.stage == "canary" and not started:
            started.append(found.stages["canary"]["rollout"])
            raise Killed
        return keep_state(store, found)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("notebook_to_prod.watch.retrain_stages.keep_state", keep)
        retrain(registry, NAME)
    held = retrain(registry, NAME)
    assert held.state is not None and (held.state.state, held.exit_code) == ("canary", 0)
    rollout = read_rollout(registry, NAME)
    assert rollout is not None and [rollout.id] == started, "the one that was started is gone on with"
    assert (registry.aliased(NAME, "production"), registry.aliased(NAME, "canary")) == (1, 2)
    serve(client, "2", True, "good")
    ended = until(lambda: ended_of(retrain(registry, NAME)))
    assert (ended.state, registry.aliased(NAME, "production"), registry.aliased(NAME, "canary")) == (
        "promoted",
        2,
        None,
    )
    moves = [(each.action, each.alias) for each in registry.history(NAME) if each.action == "promote"]
    assert moves == [("promote", "production"), ("promote", "canary"), ("promote", "production")]

    until(lambda: client.post("/predict", json={"dep_delay": 3.0, "distance": 500.0}).json()["version"] == "2")
    flights(3_000, seed=8).to_parquet(project.folder / "flights.parquet")
    begun = project.n2p("retrain", NAME, "--json")
    assert (begun.code, begun.json["state"]["state"]) == (0, "canary"), begun
    serve(client, "3", False, "bad")
    ended = until(lambda: ended_of(retrain(registry, NAME)))
    assert (ended.state, registry.aliased(NAME, "production"), registry.aliased(NAME, "canary")) == ("aborted", 2, None)
    assert "quality" in ended.why and not verify_log(registry.store)
    shown = project.n2p("retrain", NAME, "--status")
    assert shown.code == 0 and "aborted as version 3" in shown.stdout and "promoted as version 2" in shown.stdout


def test_what_a_person_has_given_up_or_taken_back_stays_so(project: Project, registry: Registry) -> None:
    configure(project, CANARY, ROLLOUT)
    died(project, "canary")  # the rollout is running, and the state does not know of it
    assert registry.aliased(NAME, "canary") == 2
    given_up, rollout = abort_retraining(registry, NAME), read_rollout(registry, NAME)
    assert rollout is not None and (given_up.state, rollout.state) == ("aborted", "aborted")
    assert registry.aliased(NAME, "canary") is None

    configure(project)
    keep_state(registry.store, replace(given_up, state="running", why=""))
    died(project, "promote")
    with pytest.raises(VerdictError, match="version 2 of 'flights' is production already"):
        abort_retraining(registry, NAME)
    registry.rollback(NAME, reason="late flights missed")
    done = retrain(registry, NAME)
    assert done.state is not None and (done.state.state, done.exit_code) == ("aborted", 1)
    assert "taken back" in done.state.why and registry.aliased(NAME, "production") == 1


def test_a_canary_is_begun_anew_if_cut_short_and_ended_if_its_last_step_is_refused(
    project: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def enough(*_: Any, **__: Any) -> tuple[Rollout, Decision]:
        found = running_rollout(registry, NAME)
        return found, Decision("", NAME, found.id, 2, 1, 50, "advance", "it is fine")

    configure(project, CANARY, ROLLOUT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("notebook_to_prod.release.rollout.promote", stopped)  # as by Ctrl-C while it is let in
        retrain(registry, NAME)
    cut_short, begun = read_rollout(registry, NAME), retrain(registry, NAME).state
    assert cut_short is not None and (cut_short.state, cut_short.cut_short) == ("aborted", True)
    assert begun is not None and (begun.state, registry.aliased(NAME, "canary")) == ("canary", 2)

    monkeypatch.setattr("notebook_to_prod.watch.retrain_stages.look", enough)
    running = read_rollout(registry, NAME)
    configure(project, CANARY, ROLLOUT + "[tool.n2p.stages.production]\napprovals = 1\ngates = false\n")
    with monkeypatch.context() as patch:
        patch.setenv("LOGNAME", "somebody-else")
        for asked in (lambda: None, lambda: registry.approve(NAME, 2, "production")):
            asked()
            waiting = retrain(registry, NAME)  # who promotes does not count among those who approve
            assert waiting.state is not None and (waiting.state.state, waiting.exit_code) == ("waiting", 1)
    assert read_rollout(registry, NAME) == running, "nothing is tried that cannot be"

    (project.folder / "strict.toml").write_text("[quality]\nmin_rows = 100000\n")
    configure(project, CANARY, ROLLOUT + '[tool.n2p.stages]\nproduction = "strict.toml"\n')
    monkeypatch.setenv("N2P_REQUIRE_GATE", "1")
    done, rollout = retrain(registry, NAME).state, read_rollout(registry, NAME)
    assert done is not None and rollout is not None and (done.state, rollout.state) == ("rejected", "aborted")
    assert (registry.aliased(NAME, "production"), registry.aliased(NAME, "canary")) == (1, None)


def ended_of(done: Outcome) -> Any:
    return done.state if done.state is not None and not done.state.goes_on else None


def test_two_models_do_not_wait_for_each_other(project: Project, registry: Registry) -> None:
    with (project.folder / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.n2p.retrain.fares]{SETTINGS}")
    with only_one(registry.store, NAME):
        assert retrain(registry, NAME).what == "running"
        assert retrain(registry, "fares", ["drift"]).what == "not triggered"
    with pytest.raises(InputError):
        retrain(registry, "fares", ["drfit"])
    assert watch_models(registry, 0, print, _ended()) == 0


def _ended() -> Any:
    import threading

    found = threading.Event()
    found.set()
    return found
