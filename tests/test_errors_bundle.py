"""What is refused of a model that was trained: by the registry, rollouts, its service, batches, watching and reproduction."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from notebooks import Project, make_project
from provoked import Wrong, check, each_of, settings, without_module, written

from notebook_to_prod.errors import (
    AccessError,
    BundleError,
    DataError,
    DependencyError,
    InputError,
    NotFoundError,
    RunInterruptedError,
    ServerError,
    StoreError,
    UnavailableError,
    VerdictError,
)
from notebook_to_prod.jupyter.magics import run_command
from notebook_to_prod.package.bundle import Bundle, copy_bundle, load_pipeline, open_bundle, write_bundle
from notebook_to_prod.package.compile.plan import from_bytes, part_at
from notebook_to_prod.package.gates.case import Answers, open_tables
from notebook_to_prod.package.gates.policy import make_policy
from notebook_to_prod.package.keys import new_key, trust_key
from notebook_to_prod.package.reproduce import recorded_question, reproduce
from notebook_to_prod.package.seal import Seal, lock_digest, seal_path
from notebook_to_prod.package.tokens import new_token
from notebook_to_prod.project import Store, write_json
from notebook_to_prod.release.approve import Seen
from notebook_to_prod.release.environments import promote_between
from notebook_to_prod.release.graph import find_version
from notebook_to_prod.release.moves import _require_unmoved, register
from notebook_to_prod.release.pieces import list_pieces
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.rollout import abort_rollout, advance_rollout, running_rollout, start_rollout
from notebook_to_prod.release.views import make_checkpoint
from notebook_to_prod.serve.access.guard import refuse_exposure, refuse_other_server
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.demo import running_service
from notebook_to_prod.serve.export.generate import export_service
from notebook_to_prod.serve.local import Predictor as Local
from notebook_to_prod.serve.log.feedback import read_labels
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.rollout.follow import warm
from notebook_to_prod.serve.server import open_apart, run_workers
from notebook_to_prod.train.record import find_run
from notebook_to_prod.ui.app import change_rollout
from notebook_to_prod.watch.batch import run_batch
from notebook_to_prod.watch.batch_score import score_frames
from notebook_to_prod.watch.diagnosis import Lossy, take_apart
from notebook_to_prod.watch.estimate import Said, try_estimator
from notebook_to_prod.watch.estimated import estimate_windows, live_estimator, said_of
from notebook_to_prod.watch.fairness import fairness_of
from notebook_to_prod.watch.ledger import ledger_of, open_ledger
from notebook_to_prod.watch.live import observed_of_log, observed_of_table, open_baseline
from notebook_to_prod.watch.monitor import Observed
from notebook_to_prod.watch.retrain import abort_retraining
from notebook_to_prod.watch.retrain_gate import check_attributes, model_rows
from notebook_to_prod.watch.retrain_settings import RetrainSettings
from notebook_to_prod.watch.retrain_stages import Job, rollout_rules
from notebook_to_prod.watch.retrain_state import Retraining, keep_state, only_one
from notebook_to_prod.watch.retrain_triggers import ask_triggers, make_question
from notebook_to_prod.watch.rollout import ended_decision


@pytest.fixture(scope="module")
def released(ridges: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three versions of `flights`, of which the first is live."""
    project = ridges.copy_to(make_project(tmp_path_factory.mktemp("errors") / "project"))
    with contextlib.chdir(project.folder):
        registry = Registry(Store(project.home))
        for path in sorted(registry.store.runs.iterdir()):
            registry.register(find_run(registry.store, path.name), "flights")
        registry.promote("flights", 1)
    return project


@pytest.fixture
def here(released: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """That project in a copy that may be damaged; MLflow's database is shared, since its address is."""
    made = make_project(tmp_path / "project")
    shutil.copytree(released.folder, made.folder, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(made.folder)
    monkeypatch.delenv("N2P_TOKEN", raising=False)
    yield made


def store() -> Store:
    return Store(Path(".n2p").resolve())


def registry() -> Registry:
    return Registry(store())


def record() -> Any:
    return find_run(store(), sorted(each.name for each in store().runs.iterdir())[0])


def bundle() -> Bundle:
    found = record()
    return open_bundle(store().bundle(found.bundle), found.bundle)


def predictor(**options: Any) -> Any:
    return load_predictor(bundle().path, name="flights", version="1", **options)


def damaged(name: str, content: str | bytes | None = None) -> Path:
    """A file of the first bundle, changed or removed."""
    path = bundle().path / name
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.unlink() if content is None else path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Versions and their approvals

TOKENS = {user: new_token() for user in ("ann", "bob", "cat")}
PEOPLE = "[tool.n2p.tokens]\n" + "".join(f'{user} = "{digest}"\n' for user, (_, digest) in TOKENS.items())


def acting(user: str, act: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_TOKEN", TOKENS[user][0])
        return act()


def asked(act: Callable[[], Any], user: str = "bob") -> Any:
    """What somebody does when ann has asked for two approvals of version 2."""
    settings(f'{PEOPLE}\n[tool.n2p.stages.production]\napprovals = 2\napprovers = ["ann", "bob", "cat"]')
    with contextlib.suppress(VerdictError):
        acting("ann", lambda: registry().promote("flights", 2))
    return acting(user, act)


def moved(act: Callable[[Registry], Any], *versions: int) -> Any:
    """What is done once some versions were live."""
    made = registry()
    for version in versions:
        made.promote("flights", version)
    return act(made)


def archived(act: Callable[[Registry], Any]) -> Any:
    made = registry()
    made.archive("flights", 3)
    return act(made)


VERSIONS = {
    "a run that failed": Wrong(
        lambda: registry().register(replace(record(), status="failed", error={"what": "cell 'fit' raised"}), "x"),
        InputError,
        "the run is failed: cell 'fit' raised",
        "run ",
        "a run that has finished",
    ),
    "a run without a bundle": Wrong(
        lambda: registry().register(replace(record(), bundle=None), "x"),
        InputError,
        "exported no bundle",
        "run ",
        "run.export",
    ),
    "a bundle that nobody made": Wrong(
        lambda: (shutil.rmtree(store().runs), registry().register_bundle(bundle_alone(), "x")),
        NotFoundError,
        "no run of this store made the bundle",
        "bundles",
        "where its notebook ran",
    ),
    "an alias of no version": Wrong(
        lambda: registry().resolve("flights@staging"),
        NotFoundError,
        "no version of 'flights' is 'staging'",
        "flights@staging",
        "n2p promote flights 3 --to staging",
    ),
    "an alias that is nearly another": Wrong(
        lambda: registry().resolve("flights@prod"),
        NotFoundError,
        "no version of 'flights' is 'prod', did you mean 'production'?",
        "flights@prod",
        "write flights@production",
    ),
    "a version by its letter": Wrong(
        lambda: registry().resolve("flights@v2"),
        NotFoundError,
        "no version of 'flights' is 'v2'",
        "flights@v2",
        "flights@2",
    ),
    "a version that there is not": Wrong(
        lambda: registry().read("flights", 9),
        NotFoundError,
        "no version 9 of 'flights'",
        "flights",
        "its versions are 1, 2, 3",
    ),
    "the lineage of no model": Wrong(
        lambda: find_version(registry(), "hotels"),
        NotFoundError,
        "there is no model 'hotels'",
        ".n2p",
        "n2p register RUN",
    ),
    "a version that is archived": Wrong(
        lambda: archived(lambda made: made.promote("flights", 3)),
        InputError,
        "version 3 of 'flights' is archived",
        "flights@3",
        "another version",
    ),
    "the archive of what is live": Wrong(
        lambda: registry().archive("flights", 1),
        InputError,
        "version 1 of 'flights' is live as production",
        "flights@1",
        "n2p promote flights VERSION",
    ),
    "the end of what is live": Wrong(
        lambda: registry().retire("flights", "production"),
        InputError,
        "flights@production is what services load",
        "flights@production",
        "n2p rollback flights",
    ),
    "a way back to nothing": Wrong(
        lambda: registry().drill("flights"),
        NotFoundError,
        "'flights' has no earlier version in production",
        "flights@production",
        "n2p promote flights",
    ),
    "a change that is damaged": Wrong(
        lambda: (written(".n2p/intents/1.json", "{"), registry().promote("flights", 2)),
        StoreError,
        "what a change was going to do is damaged",
        "1.json",
        "delete the file, then see whether the change was made: n2p audit verify",
    ),
    "an alias that has moved": Wrong(
        lambda: _require_unmoved("flights", "production", 1, 2),
        VerdictError,
        "has moved meanwhile: from version 1 to version 2",
        "flights@production",
        "n2p history flights",
    ),
    "approvals that nobody asks for": Wrong(
        lambda: asked(lambda: registry().approve("flights", 2, "canary")),
        InputError,
        "canary asks for no approvals",
        "stages.canary]",
        "the stages that ask are production",
    ),
    "approvals that are missing": Wrong(
        lambda: asked(lambda: registry().promote("flights", 2), "ann"),
        VerdictError,
        "production asks for 2 approvals of flights@2, and there are 0",
        "flights@2",
        "bob, cat may still approve",
    ),
    "approvals but for one's own": Wrong(
        lambda: asked(lambda: (registry().approve("flights", 3), registry().promote("flights", 3))),
        VerdictError,
        "without your own there are 0",
        "flights@3",
        "let somebody else promote it",
    ),
    "an approval of one's own request": Wrong(
        lambda: asked(lambda: registry().approve("flights", 2), "ann"),
        AccessError,
        "so somebody else has to approve",
        "flights@2",
        "ask bob, cat",
    ),
    "an override of approvals": Wrong(
        lambda: asked(lambda: registry().promote("flights", 2, reason="now", override=True), "ann"),
        AccessError,
        "may not go past missing approvals",
        "[tool.n2p.roles] override",
        "whom the role names",
    ),
    "a rejection without a reason": Wrong(
        lambda: asked(lambda: registry().reject("flights", 2, reason=" ")),
        InputError,
        "a rejection needs a reason",
        "--reason",
        "what has to be different",
    ),
    "a rejection of one's own request": Wrong(
        lambda: asked(lambda: registry().reject("flights", 2, reason="no"), "ann"),
        AccessError,
        "takes it back rather than rejects it",
        "flights@2",
        "--withdraw",
    ),
    "somebody else's request": Wrong(
        lambda: asked(lambda: registry().withdraw("flights", 2)),
        AccessError,
        "ann asked for it, not",
        "flights@2",
        "ask ann to withdraw it",
    ),
    "what was rejected": Wrong(
        lambda: asked(lambda: (registry().reject("flights", 2, reason="no data"), registry().approve("flights", 2))),
        AccessError,
        "bob rejected it: no data",
        "flights@2",
        "ask for it anew",
    ),
    "what was shown otherwise": Wrong(
        lambda: asked(lambda: registry().approve("flights", 2, seen=Seen("sha256:0", ""))),
        VerdictError,
        "it has changed since it was shown",
        "flights@2",
        "decide again",
    ),
    "somebody who may not approve": Wrong(
        lambda: (
            settings(f'{PEOPLE}\n[tool.n2p.stages.production]\napprovals = 1\napprovers = ["ann"]'),
            acting("bob", lambda: registry().approve("flights", 2)),
        ),
        AccessError,
        "is not an approver of production",
        "stages.production]",
        "ask ann",
    ),
    "a request that nobody could grant": Wrong(
        lambda: (
            settings(f'{PEOPLE}\n[tool.n2p.stages.production]\napprovals = 2\napprovers = ["ann", "bob"]'),
            acting("ann", lambda: registry().promote("flights", 2)),
        ),
        VerdictError,
        "1 can be had if ann asks for it",
        "flights@2",
        "who is no approver",
    ),
}


def bundle_alone() -> Bundle:
    return open_bundle(next(each for each in sorted(store().bundles.iterdir()) if not each.name.startswith(".")))


# Rollouts


def rolled(act: Callable[[Registry], Any], kind: str = "canary", steps: tuple[float, ...] = (10.0, 100.0)) -> Any:
    made = registry()
    start_rollout(made, "flights", 2, kind, steps)
    return act(made)


def aborted(made: Registry) -> Any:
    abort_rollout(made, "flights")
    return running_rollout(made, "flights")


def changed(made: Registry) -> Any:
    before = running_rollout(made, "flights")
    advance_rollout(made, "flights")
    return advance_rollout(made, "flights", expected=before)


def stuck(state: str) -> Callable[[Registry], Any]:
    def act(made: Registry) -> Any:
        return (advance_rollout if state == "starting" else abort_rollout)(
            made, "flights", expected=replace(running_rollout(made, "flights"), state=state)
        )

    return act


ROLLOUTS = {
    "a rollout beside nothing": Wrong(
        lambda: start_rollout(registry(), "flights", 2, alias="staging"),
        NotFoundError,
        "no version of 'flights' is 'staging'",
        "flights@staging",
        "promote one first",
    ),
    "a rollout of what is live": Wrong(
        lambda: start_rollout(registry(), "flights", 1),
        InputError,
        "version 1 of 'flights' is production already",
        "flights@1",
        "another one",
    ),
    "a rollout of a version twice": Wrong(
        lambda: start_rollout(registry(), "flights", 2, "ab", (10.0,), also=((2, 10.0),)),
        InputError,
        "a version is named twice",
        "--also",
        "once",
    ),
    "a canary of two": Wrong(
        lambda: start_rollout(registry(), "flights", 2, also=((3, 10.0),)),
        InputError,
        "several versions are for an A/B test",
        "--also",
        "--ab",
    ),
    "a test of all requests": Wrong(
        lambda: start_rollout(registry(), "flights", 2, "ab", (60.0,), also=((3, 40.0),)),
        InputError,
        "100% together, and the live one nothing",
        "--ab, --also",
        "leave some requests",
    ),
    "two rollouts": Wrong(
        lambda: rolled(lambda made: start_rollout(made, "flights", 3)),
        InputError,
        "there is a rollout of 'flights'",
        "flights",
        "end it first",
    ),
    "a rollout that has ended": Wrong(
        lambda: rolled(aborted),
        NotFoundError,
        "no rollout of 'flights'; the last one is aborted",
        "flights",
        "n2p rollout start flights",
    ),
    "a rollout of another version": Wrong(
        lambda: rolled(lambda made: advance_rollout(made, "flights", version=3)),
        InputError,
        "version 3 is not in the rollout",
        "flights",
        "name one of 2",
    ),
    "a rollout that has changed": Wrong(
        lambda: rolled(changed, steps=(10.0, 20.0, 100.0)),
        VerdictError,
        "the rollout of 'flights' has changed meanwhile",
        "flights",
        "n2p rollout status flights",
    ),
    "a shadow with steps": Wrong(
        lambda: rolled(lambda made: advance_rollout(made, "flights"), "shadow"),
        InputError,
        "a shadow has no steps",
        "flights",
        "n2p rollout abort flights",
    ),
    "a version that is being let in": Wrong(
        lambda: rolled(stuck("starting")),
        VerdictError,
        "version 2 of 'flights' is being let in",
        "flights",
        "n2p rollout abort flights",
    ),
    "a version that is being promoted": Wrong(
        lambda: rolled(stuck("promoting")),
        VerdictError,
        "version 2 of 'flights' is being promoted",
        "flights",
        "n2p rollout advance flights",
    ),
    "a live version that has moved": Wrong(
        lambda: rolled(lambda made: (made.promote("flights", 3), advance_rollout(made, "flights"))),
        VerdictError,
        "'flights' is version 3 now",
        "flights@production",
        "start again",
    ),
    "a rollout that nobody knows": Wrong(
        lambda: rolled(lambda made: ended_decision(made, running_rollout(made, "flights"))),
        NotFoundError,
        "the rollout of 'flights' is not known any more",
        "flights",
        "n2p history flights",
    ),
}

# From one store to another


def sent(reference: str) -> Any:
    return promote_between(replace(store(), environment="staging"), Store(Path("other").resolve()), reference)


def pieces() -> Any:
    return list_pieces(store(), (bundle(),), record(), Store(Path("other").resolve()))


def audit_damaged() -> Any:
    path = store().audit
    path.write_text(path.read_text().replace('"register"', '"promote"', 1))
    return sent("flights@1")


def tables_lost() -> Any:
    shutil.rmtree(store().data)
    return pieces()


def question_changed() -> Any:
    found = record()
    path = Path(found.folder) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_key": "sha256:0"}))
    return list_pieces(store(), (bundle(),), found, Store(Path("other").resolve()))


def runs_lost() -> Any:
    shutil.rmtree(store().runs)
    return sent("flights@1")


STORES = {
    "an archived version": Wrong(
        lambda: archived(lambda made: sent("flights@3")),
        InputError,
        "version 3 of 'flights' is archived in staging",
        "flights@3",
        "another version",
    ),
    "a log that was changed": Wrong(
        audit_damaged,
        StoreError,
        "the audit log of staging is not what was written",
        "audit.jsonl, line",
        "n2p audit verify --env staging",
    ),
    "a run that is lost": Wrong(
        runs_lost, NotFoundError, "is not in the store of staging", "runs", "that the notebook ran in"
    ),
    "tables that are lost": Wrong(
        tables_lost, StoreError, "which the gates judge by, cannot go with the bundle", "data", "from a backup"
    ),
    "a record of another question": Wrong(
        question_changed, StoreError, "not the question that was asked", "record.json", "from a backup"
    ),
}

# Its service and its predictions


def application(**tables: Any) -> Any:
    return create_app(predictor(), settings=tables)


def exported(name: str) -> Any:
    Path("service").mkdir(exist_ok=True)
    written("service/.n2p-export.json", json.dumps({"format": 1, "model": "hotels", "files": {}}))
    return export_service(predictor(), "service")


def labels(text: str) -> Any:
    return read_labels(written("labels.csv", text), bundle())


def local(rows: Any) -> Any:
    return Local("flights", store()).predict(rows)


def no_fork() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("os.fork")
        return run_workers(lambda *some: None, 2)


SERVICE = {
    "a network without keys": Wrong(
        lambda: refuse_exposure(application().service, "192.0.2.1", "--host 192.0.2.1"),
        InputError,
        "no keys are configured",
        "--host 192.0.2.1",
        "n2p apikey new NAME",
    ),
    "another server beside a listener apart": Wrong(
        lambda: refuse_other_server(application(security={"admin": "127.0.0.1:9000"}).service),
        InputError,
        "does not do what [security] admin says",
        "service.toml",
        "python app.py",
    ),
    "administration on the port of everything": Wrong(
        lambda: open_apart(application(security={"admin": "127.0.0.1:9000"}).service, 9000),
        InputError,
        "administration has the port of everything else",
        "security] admin",
        "another port",
    ),
    "a dashboard without metrics": Wrong(
        lambda: application(metrics={"enabled": False}, dashboard={"enabled": True}),
        InputError,
        "which are switched off",
        "dashboard]",
        "enabled = true",
    ),
    "a fallback to nothing": Wrong(
        lambda: application(fallback={"chain": ["previous"]}),
        InputError,
        "there is no previous version",
        "fallback]",
        'previous = "FOLDER"',
    ),
    "workers without forks": Wrong(no_fork, ServerError, "this system cannot fork", sys.platform, "--workers 1"),
    "the folder of another service": Wrong(
        lambda: exported("hotels"), InputError, "holds the service of the model 'hotels'", "service", "another folder"
    ),
    "a service that does not start": Wrong(
        lambda: running("nothing@9"),
        ServerError,
        "the service did not start: there is no",
        "nothing@9",
        "n2p serve nothing@9",
    ),
    "a row that is a number": Wrong(
        lambda: predictor().predict([3]), DataError, "a row is int, not a mapping", "row 0", "a mapping of columns"
    ),
    "a row without a column": Wrong(
        lambda: predictor().predict([{"column_0": 1.0}]), DataError, "required", "row 0", "the model's schema"
    ),
    "rows in a text": Wrong(lambda: local("1,2"), DataError, "this is str, not rows", "rows", "a mapping"),
    "a table without a column": Wrong(
        lambda: local(pd.DataFrame({"x": [1.0]})), DataError, "the table lacks the column", "rows", "give all of"
    ),
    "labels of other columns": Wrong(
        lambda: labels("id\na\n"), DataError, "the columns are id", "labels.csv, line 1", "id, label"
    ),
    "labels of too many cells": Wrong(
        lambda: labels("id,label\na,1,2\n"), DataError, "more or fewer cells", "labels.csv, line 2", "correct the line"
    ),
    "labels that are words": Wrong(
        lambda: labels("id,label\na,late\n"), DataError, "'late'", "labels.csv, line 2, label", "none of the file"
    ),
    "labels in Latin-1": Wrong(
        lambda: read_labels(written("labels.csv", b"id,label\n\xe9,1\n"), bundle()),
        DataError,
        "the labels cannot be read",
        "labels.csv",
        "CSV and UTF-8",
    ),
    "labels of several outputs": Wrong(
        lambda: read_labels(Path("x.csv"), SimpleNamespace(golden={"predictions": [[1, 2]]})),
        DataError,
        "several outputs has no labels in CSV",
        "x.csv",
        "/feedback",
    ),  # type: ignore[arg-type]
    "a plan that is none": Wrong(
        lambda: from_bytes(b"x"), BundleError, "the plan cannot be read", "plan", "export the pipeline again"
    ),
    "a part that there is not": Wrong(
        lambda: part_at(object(), "scale"),
        BundleError,
        "the pipeline has no 'scale'",
        "scale",
        "export the pipeline again",
    ),
    "a file that changes when it is used": Wrong(
        lambda: changing(), BundleError, "'model.pkl' has been changed", "model.pkl", ""
    ),
    "a bundle without a lock": Wrong(
        lambda: lock_digest(replace(bundle(), files={})),
        BundleError,
        "has no requirements.lock",
        "bundles",
        "run the notebook again",
    ),
    "a bundle without tables": Wrong(
        lambda: open_tables(store(), untabled()),
        NotFoundError,
        "names no tables to judge it by",
        "bundles",
        "run the notebook again",
    ),
}


def changing() -> Any:
    late = bundle()
    late.files  # noqa: B018 - opened before
    damaged("model.pkl", b"other")
    return late.pipeline if hasattr(late, "pipeline") else load(late)


def load(found: Bundle) -> Any:
    from notebook_to_prod.package.bundle import load_pipeline

    return load_pipeline(found)


def untabled() -> Any:
    found = bundle()
    return SimpleNamespace(metadata={}, path=found.path)


def running(reference: str) -> Any:
    with running_service(reference, store().home, Path("service.log")) as url:
        return url


# Batches, watching and reproduction


def batch(source: str = "x0,x1\n1,2\n", **options: Any) -> Any:
    return run_batch(
        bundle().path, written("rows.csv", source), options.pop("output", "out.csv"), store=store(), **options
    )


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def begun(source: str = "x0,x1\n1,2\n", **options: Any) -> Any:
    """A batch that was stopped, and is asked for again."""
    with contextlib.suppress(RunInterruptedError):
        batch(progress=stop)
    return batch(source, **options)


def observed(**changed: Any) -> Observed:
    return Observed(pd.DataFrame({"x0": [1.0], "x1": [2.0]}), **changed)


def answered(*bundles: str) -> pd.DataFrame:
    return pd.DataFrame({"bundle": [*bundles], "version": ["9"] * len(bundles), "fallback": [""] * len(bundles)})


def lossy(rows: int, *columns: str) -> Lossy:
    return Lossy(pd.DataFrame({name: np.arange(float(rows)) for name in columns}, index=range(rows)), np.ones(rows))


def classes(**sensitive: Any) -> Any:
    ledger = ledger_of(["a", "b"], ["a", "b"], ["a", "b"], table=pd.DataFrame({"sex": ["f", "m"]}))
    policy = make_policy({"fairness": {"attributes": ["sex"], **sensitive.pop("fairness", {})}}, "policy")
    return fairness_of(ledger, policy, window=None, **sensitive)


def unrecorded(name: str) -> Any:
    path = Path(record().folder) / name
    path.write_text(path.read_text().replace("alpha", "alhpa"))
    return recorded_question(record())


WORK = {
    "a batch of no rows": Wrong(
        lambda: batch(partition_rows=0), InputError, "a number is out of range", "partition_rows", "at least one row"
    ),
    "a batch by nothing": Wrong(
        lambda: run_batch("no/bundle", "rows.csv", "out.csv", store=store()),
        NotFoundError,
        "neither a model nor the folder of a bundle",
        "no/bundle",
        "NAME@production",
    ),
    "a batch of a file with a query": Wrong(
        lambda: batch(query="select 1"), InputError, "only a database takes a query", "rows.csv", "leave out --query"
    ),
    "a batch that is stopped": Wrong(
        lambda: batch(progress=stop), RunInterruptedError, "the batch was stopped", "out.csv", "--resume"
    ),
    "a batch that was begun": Wrong(begun, DataError, "was begun and not finished", "out.csv", "--resume"),
    "a batch that goes on with other rows": Wrong(
        lambda: begun("x0,x1\n5,2\n", resume=True), DataError, "rows.csv", "out.csv", "begin anew with --force"
    ),
    "a batch with a refused row": Wrong(
        lambda: batch("x0,x1\nx,2\n"), DataError, "", "rows.csv, row 0, 'x0'", "--reject FILE"
    ),
    "a batch that is there": Wrong(
        lambda: [batch(), batch()], DataError, "there is an output already", "out.csv", "--force"
    ),
    "a batch that would lose its refusals": Wrong(
        lambda: batch(reject="out.xlsx"), InputError, "rejects are not written as '.xlsx'", "out.xlsx", ".csv or .jsonl"
    ),
    "a batch without Dask": Wrong(
        lambda: without_module("distributed", lambda: batch(dask="local")),
        DependencyError,
        "Dask is not installed",
        "--dask",
        "pip install",
    ),
    "a frame with a refused row": Wrong(
        lambda: [*score_frames([pd.DataFrame({"x0": ["x"], "x1": [2.0]})], bundle().path)],
        DataError,
        "",
        "row 0, 'x0'",
        "refused='refused'",
    ),
    "a table that the model cannot take": Wrong(
        lambda: model_rows(bundle().schema, pd.DataFrame({"x0": ["x"], "x1": [2.0]}), "the rows"),
        DataError,
        "the column is no",
        "the rows, column 'x0'",
        "the type that the notebook gives",
    ),
    "a table that lacks a column": Wrong(
        lambda: observed_of_table(bundle(), pd.DataFrame({"x0": [1.0]})),
        DataError,
        "the table lacks x1",
        "--data",
        "give",
    ),
    "a baseline that is nowhere": Wrong(
        lambda: open_baseline(replace(bundle(), files={})),
        DataError,
        "neither a profile nor training rows",
        "bundles",
        "--reference FILE",
    ),
    "a log of another version": Wrong(
        lambda: observed_of_log(bundle(), answered("sha256:0")),
        DataError,
        "the log has no answers of this bundle",
        "sha256:",
        "it has those of version 9",
    ),
    "a log of nothing": Wrong(
        lambda: observed_of_log(bundle(), answered()),
        DataError,
        "the log has no answers of this bundle",
        "sha256:",
        "serve the model first",
    ),
    "a ledger of nothing": Wrong(
        lambda: open_ledger(bundle(), pd.DataFrame()),
        DataError,
        "the table is empty",
        "sha256:",
        "the column prediction",
    ),
    "a ledger without its time": Wrong(
        lambda: open_ledger(bundle(), pd.DataFrame({"prediction": [1.0], "when": ["x"]}), "wen"),
        DataError,
        "there is no column 'wen'",
        "--time",
        "name",
    ),
    "a ledger with numbers as times": Wrong(
        lambda: open_ledger(bundle(), pd.DataFrame({"prediction": [1.0], "when": [3]}), "when"),
        DataError,
        "its values are numbers, not times",
        "column 'when'",
        "dates or times",
    ),
    "a ledger with words as times": Wrong(
        lambda: open_ledger(bundle(), pd.DataFrame({"prediction": [1.0], "when": ["soon"]}), "when"),
        DataError,
        "1 rows have no time",
        "column 'when'",
        "ISO 8601",
    ),
    "an estimate of nothing said": Wrong(
        lambda: said_of(bundle(), observed()),
        DataError,
        "there are no predictions to judge",
        "bundles",
        "a column 'prediction'",
    ),
    "an estimate of several outputs": Wrong(
        lambda: said_of(bundle(), observed(predictions=pd.DataFrame({"prediction 0": [1.0]}))),
        DataError,
        "several outputs",
        "bundles",
        "compare with labels",
    ),
    "an estimate from few rows": Wrong(
        lambda: try_estimator(Said(pd.DataFrame(index=range(3)), Answers(np.ones(3)), np.ones(3))),
        DataError,
        "3 labelled rows are too few",
        "held-out rows",
        "test rows or more",
    ),
    "an estimate of other columns": Wrong(
        lambda: live_estimator(
            store(), bundle(), Observed(pd.DataFrame({"x": [1.0]}), predictions=pd.DataFrame({"prediction": [1.0]}))
        ),
        DataError,
        "no column that the model takes",
        "bundles",
        "let the log keep",
    ),
    "a diagnosis of few rows": Wrong(
        lambda: take_apart(lossy(3, "a"), lossy(60, "a")), DataError, "3 rows of before", "diagnosis", "50 rows"
    ),
    "a diagnosis of other columns": Wrong(
        lambda: take_apart(lossy(60, "a"), lossy(60, "b")),
        DataError,
        "no column in common",
        "diagnosis",
        "the columns that the model takes",
    ),
    "a favourable class that there is not": Wrong(
        lambda: classes(fairness={"positive": "yes"}),
        InputError,
        "the model has no class 'yes'",
        "fairness, positive",
        "name one of a, b",
    ),
    "groups that cannot be joined": Wrong(
        lambda: classes(sensitive=pd.DataFrame({"sex": ["f"]})),
        DataError,
        "no column 'id' to join groups by",
        "the table of groups",
        "the column id",
    ),
    "a run that did not finish": Wrong(
        lambda: reproduce(store(), replace(record(), status="failed")),
        InputError,
        "the run is failed, not finished",
        "run ",
        "a finished run",
    ),
    "a level that there is not": Wrong(
        lambda: reproduce(store(), record(), "bits"), InputError, "there is no level 'bits'", "--level", "bytes"
    ),
    "a metric that the run has not": Wrong(
        lambda: reproduce(store(), record(), ignore=["seconds"]),
        InputError,
        "the run has no metric 'seconds'",
        "--ignore",
        "it has score",
    ),
    "a notebook that is not the one that ran": Wrong(
        lambda: unrecorded("input.ipynb"),
        InputError,
        "the stored notebook is not the one that ran",
        "input.ipynb",
        "from a backup",
    ),
}


# Commands about it


def n2p(*arguments: str) -> Callable[[], None]:
    return lambda: run_command([str(bundle().path) if each == "BUNDLE" else each for each in arguments])


def recorded(**changes: Any) -> str:
    """A run whose record says something else."""
    path = Path(record().folder) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return record().run_id


def with_rows(*arguments: str) -> Callable[[], None]:
    def act() -> None:
        written("rows.csv", "x0,x1,prediction\n1,2,3\n")
        written("labels.csv", "label\n1\n2\n")
        n2p("diagnose", "BUNDLE", "--data", "rows.csv", *arguments)()

    return act


ABOUT = {
    "a bundle alone without a log": Wrong(
        n2p("watch", "BUNDLE"), InputError, "a bundle alone has no request log", "bundles", "--data FILE"
    ),
    "a diagnosis of a bundle alone": Wrong(
        n2p("diagnose", "BUNDLE"), InputError, "a bundle alone has no request log", "bundles", "--data FILE"
    ),
    "a diagnosis of a time without times": Wrong(
        with_rows("--since", "2026-01-01"), InputError, "the times of the rows are not known", "--since", "--time"
    ),
    "a diagnosis with labels that do not fit": Wrong(
        with_rows("--labels", "labels.csv"),
        DataError,
        "there are 2 labels of 1 rows",
        "labels.csv",
        "an id to join them by",
    ),
    "a run that has failed": Wrong(
        lambda: run_command(["gate", recorded(status="failed", error={"what": "cell 'fit' raised"})]),
        NotFoundError,
        "the run failed: cell 'fit' raised",
        "run ",
        "that has finished",
    ),
    "a run that made no bundle": Wrong(
        lambda: run_command(["gate", recorded(bundle=None, bundle_path=None)]),
        NotFoundError,
        "the run made no bundle",
        "run ",
        "run.export",
    ),
    "expectations that are there": Wrong(
        lambda: (written("e.yaml", "mine"), n2p("gate", "BUNDLE", "--write-expectations", "e.yaml")()),
        InputError,
        "the file is there already",
        "e.yaml",
        "name another",
    ),
    "an estimate of no rows": Wrong(
        lambda: estimate_windows(None, Said(pd.DataFrame(), Answers(np.ones(0)))),
        DataError,
        "there are no rows to estimate",
        "estimate",
        "another time",
    ),  # type: ignore[arg-type]
    "an attribute that the rows lack": Wrong(
        lambda: check_attributes(
            SimpleNamespace(ingest="log", name="flights"),
            make_policy({"fairness": {"attributes": ["sex"]}}, "policy"),
            ["x0"],
        ),
        DataError,
        "no column 'sex'",
        "retrain.flights] ingest",
        "a table or a function",
    ),  # type: ignore[arg-type]
}


# A bundle of which something is otherwise, whole as it is


def rewritten(name: str, content: bytes | Callable[[Any], Any]) -> Bundle:
    """The first bundle with another file, and a manifest that says so."""
    found = bundle()
    files = {each: (found.path / each).read_bytes() for each in found.files}
    files[name] = content if isinstance(content, bytes) else json.dumps(content(json.loads(files[name]))).encode()
    return write_bundle(store().bundles, files)


def unknown_module() -> Any:
    made = rewritten("metadata.json", lambda content: content | {"uses": [*content["uses"], "no_such_module.Thing"]})
    files = {each: (made.path / each).read_bytes() for each in made.files} | {"model.pkl": b"cno_such_module\nThing\n."}
    return load_pipeline(write_bundle(store().bundles, files), ["no_such_module"])


def sealed_otherwise() -> Any:
    found = bundle()
    seal = Seal(found.digest, "sha256:0", "3.11", "linux", {}, 1, 0.0, "2026-01-31T00:00:00+00:00", 1.0, False)
    write_json(seal_path(store(), found.digest), asdict(seal))
    return pieces()


def changed_on_its_way() -> Any:
    def change(text: str) -> None:
        if text.startswith("send run"):
            for path in Path(record().folder).glob("*.ipynb"):
                path.write_text("{}")

    target = replace(Store(Path("other").resolve()), environment="production")
    return promote_between(replace(store(), environment="staging"), target, "flights@1", progress=change)


def exported_anew() -> Any:
    copy_bundle(bundle(), Path("service/bundle"))
    written("service/app.py.new", "")
    return load_predictor(Path("service/bundle").resolve(), "sha256:" + "0" * 64)


def signed_by_nobody() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_KEYS", str(Path.cwd() / "keys"))
        trust_key(store(), new_key("ann"), "ann")
        return make_checkpoint(registry())


def log_damaged() -> Any:
    path = store().audit
    path.write_text(path.read_text().replace('"register"', '"promote"', 1))
    return make_checkpoint(registry())


def retraining(**stages: Any) -> Any:
    return keep_state(
        store(),
        Retraining("sha256:12", "flights", "by hand", "ann", "2026-01-31T00:00:00+00:00", "", "", stages=stages),
    )


def retrained_meanwhile() -> Any:
    retraining()
    with only_one(store(), "flights"):
        return abort_retraining(registry(), "flights")


def narrow() -> Any:
    """A model whose own golden rows are beyond what its schema allows."""
    name = bundle().schema.names[0]
    edited = bundle().schema.edit(name, maximum=-1e9, minimum=-2e9, policy="reject").to_dict()
    return warm(Model(load_predictor(rewritten("schema.json", lambda content: edited).path)))


def desk() -> Any:
    return SimpleNamespace(store=store(), registry=registry())


def form(**fields: str) -> Callable[[Registry], Any]:
    """A form of the page about the rollout that goes on."""

    def act(made: Registry) -> Any:
        change = running_rollout(made, "flights").change
        return change_rollout(desk(), {"name": "flights", "change": change, **fields})

    return act


OTHERWISE = {
    "a model that is no pickle": Wrong(
        lambda: load_pipeline(rewritten("model.pkl", b"nothing of the kind")),
        BundleError,
        "the model cannot be loaded: ",
        "bundles",
        "the versions in the bundle's requirements.lock",
    ),
    "a model of a module that is not there": Wrong(
        unknown_module,
        DependencyError,
        "the model needs the module 'no_such_module'",
        "bundles",
        "pip install -r requirements.lock of the bundle",
    ),
    "a draft to register": Wrong(
        lambda: register(
            registry(), record(), "flights", rewritten("metadata.json", lambda content: content | {"draft": True})
        ),
        InputError,
        "the bundle is a draft",
        "run ",
        "n2p run",
    ),
    "a seal of another lock": Wrong(
        sealed_otherwise, StoreError, "the seal is of another lock", "seals", "n2p bundle seal"
    ),
    "a run that changes on its way": Wrong(
        changed_on_its_way,
        StoreError,
        "is not in production what it was when it left: nothing was registered there",
        "runs",
        "promote again",
    ),
    "a bundle that app.py does not name": Wrong(
        exported_anew, BundleError, "app.py names the bundle sha256:000000000000", "bundle", "into app.py"
    ),
    "a checkpoint that nobody signs": Wrong(
        signed_by_nobody, InputError, "a checkpoint has to be signed", "--key", "n2p audit checkpoint --key NAME"
    ),
    "a checkpoint of a damaged log": Wrong(
        log_damaged, StoreError, "the audit log is damaged", "audit.jsonl", "n2p audit verify"
    ),
    "a run of other modules": Wrong(
        lambda: recorded_question(replace(record(), code={"helper.py": "sha256:0"})),
        InputError,
        "the stored modules are not those that ran",
        "runs",
        "from a backup",
    ),
    "a run whose lock has lost its hashes": Wrong(
        lambda: recorded_question(replace(record(), spec=replace(record().spec, hashes="sha256:00"))),
        InputError,
        "the store has lost the hashes of the project's lock",
        ".n2p",
        "from a backup",
    ),
    "a retraining that a process is at": Wrong(
        retrained_meanwhile, VerdictError, "a process is retraining 'flights'", "12", "stop it first"
    ),
    "a retraining that has become live": Wrong(
        lambda: (retraining(register={"version": 1}), abort_retraining(registry(), "flights")),
        VerdictError,
        "version 1 of 'flights' is production already",
        "12",
        "n2p rollback flights",
    ),
    "rules of a canary that are a number": Wrong(
        lambda: (
            settings("[tool.n2p.serve]\nrollout = 3"),
            rollout_rules(Job(registry(), RetrainSettings("flights", "train.ipynb"), Path.cwd())),
        ),
        InputError,
        "'rollout' is not a table",
        "serve]",
        "[tool.n2p.serve.rollout]",
    ),
    "a model that refuses its own rows": Wrong(
        narrow, InputError, "the model refuses its own golden rows", "bundles", "n2p bundle verify"
    ),
    "a batch on no scheduler": Wrong(
        lambda: batch(dask="nowhere"), UnavailableError, "the Dask scheduler does not answer", "nowhere", "--dask local"
    ),
    "a form of another rollout": Wrong(
        lambda: rolled(form(change="another", action="abort")),
        VerdictError,
        "the rollout of 'flights' has changed meanwhile",
        "flights",
        "look, and decide again",
    ),
    "a form that does nothing with a rollout": Wrong(
        lambda: rolled(form(action="applaud")),
        InputError,
        "'applaud' is nothing that can be done",
        "action",
        "advance, abort",
    ),
    "a form that would promote": Wrong(
        lambda: rolled(form(action="advance")),
        InputError,
        "the next step promotes the version, or there is none",
        "flights",
        "n2p rollout advance flights",
    ),
}


@pytest.mark.usefixtures("here")
@each_of(VERSIONS, ROLLOUTS, STORES, SERVICE, WORK, ABOUT, OTHERWISE)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)


@pytest.mark.parametrize(
    ("alias", "why"), [("nobody", "no version is live"), ("elsewhere", "nobody knows since when version 3 is live")]
)
def test_a_trigger_that_cannot_be_asked_does_not_fire_and_says_why(alias: str, why: str, here: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store().tracking_uri, store().registry_uri)
    client.set_registered_model_alias("flights", "elsewhere", "3")  # not by this package, which keeps when
    asked = make_question(registry(), RetrainSettings("flights", "train.ipynb", to=alias), ())
    (found,) = ask_triggers(asked, ("stale",))
    assert (found.fired, found.why) == (False, why)
