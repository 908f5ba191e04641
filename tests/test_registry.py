"""The registry: bundles become versions, aliases move and go back, and every move is in the log."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import mlflow.artifacts as mlflow_artifacts
import mlflow_tables
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from notebooks import Project, once
from test_bundle import HARMS, harm, make_writable
from test_postgres import address  # noqa: F401 - a fixture

from notebook_to_prod.errors import BundleError, InputError, N2PError, NotFoundError, StoreError
from notebook_to_prod.package import keys
from notebook_to_prod.package.bundle import Bundle, load_pipeline, open_bundle, remove_bundle, replay_golden
from notebook_to_prod.project import Store
from notebook_to_prod.release.audit import ACTIONS, Event, append_event, read_events
from notebook_to_prod.release.flavour import _load_pyfunc
from notebook_to_prod.release.registry import (
    ModelVersion,
    Registry,
    alias_path,
    check_alias,
    check_name,
    parse_reference,
)
from notebook_to_prod.release.versions import signature_tags
from notebook_to_prod.release.views import verify_audit
from notebook_to_prod.train.record import RunRecord, find_run

mlflow_tables.install()

# A project with three runs of one notebook, which the tests of the service use too


def flights() -> pd.DataFrame:
    """A training table with columns of every kind, some with names that Python or JSON could stumble over."""
    random, rows = np.random.default_rng(0), 90
    moments = pd.date_range("2024-01-01", periods=rows, freq="7h")
    frame = pd.DataFrame(
        {
            "class": random.normal(size=rows),
            "model_config": random.integers(-128, 127, rows).astype("int8"),
            "a b": random.random(rows) > 0.5,
            "ä": random.choice(["north wind", "south wind", "it's calm"], rows),
            "size": pd.Categorical(random.choice(["low", "mid", "high"], rows), ["low", "mid", "high"], ordered=True),
            "when": moments.astype("datetime64[ns]"),
            "seen": moments.tz_localize("UTC").tz_convert("Europe/Berlin").astype("datetime64[ms, Europe/Berlin]"),
            "seats": pd.array(random.integers(1, 400, rows), dtype="Int64"),
            "gate": pd.Categorical(random.choice([1, 2, 3], rows)),
        }
    )
    for position, column in enumerate(("class", "size", "seats")):
        frame.loc[frame.index % 7 == position, column] = None
    return frame


TRAIN = {
    "parameters": 'task = "classify"\ntrees = 5',
    "exported-imports": """
        #| export
        import pandas as pd
        from sklearn.base import BaseEstimator, TransformerMixin
    """,
    "first-word": """
        #| export
        class FirstWord(TransformerMixin, BaseEstimator):
            def fit(self, X, y=None):
                self.n_features_in_ = X.shape[1]
                return self

            def transform(self, X):
                return pd.DataFrame({name: [text.split()[0] for text in X[name]] for name in X})


        def hours(X):
            return X.apply(lambda column: column.dt.hour)
    """,
    "imports": """
        import numpy as np
        from sklearn.compose import TransformedTargetRegressor, make_column_transformer
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder

        import notebook_to_prod as n2p

        run = n2p.start(seed=1)
    """,
    "fit": """
        X = n2p.load("flights.parquet").astype({"gate": "category"})  # Parquet keeps only categories of texts
        delay = np.abs(X["class"].fillna(0)) * X["model_config"].abs()
        levels = ["low", "mid", "high"]
        prepare = make_column_transformer(
            (SimpleImputer(), ["class", "seats"]),
            ("passthrough", ["model_config", "a b"]),
            (make_pipeline(FirstWord(), OneHotEncoder(handle_unknown="ignore")), ["ä"]),
            (OrdinalEncoder(categories=[levels], handle_unknown="use_encoded_value", unknown_value=-1), ["size"]),
            (OneHotEncoder(), ["gate"]),
            (FunctionTransformer(hours), ["when", "seen"]),
            sparse_threshold=0,
        )
        if task == "classify":
            y = np.array(["early", "on time", "late"])[np.digitize(delay, [10, 60])]
            model = RandomForestClassifier(trees, max_depth=4)
        else:
            y = delay
            model = TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1)
        pipeline = make_pipeline(prepare, model).fit(X[:60], y[:60])
        run.metric("score", pipeline.score(X[60:], y[60:]))
        run.export(pipeline, X[:60], y[:60], X[60:], y[60:])
    """,
}
RUNS = {"five": ("-p", "trees", "5"), "six": ("-p", "trees", "6"), "regression": ("-p", "task", "regress")}


def train(project: Project) -> None:
    flights().to_parquet(project.folder / "flights.parquet")
    project.notebook("train.ipynb", TRAIN)
    run_ids = {}
    for name, parameters in RUNS.items():
        done = project.run("train.ipynb", *parameters)
        assert done.code == 0, done
        run_ids[name] = done.json["run_id"]
    (project.folder / "runs.json").write_text(json.dumps(run_ids))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the three runs."""
    return once(tmp_path_factory, "trained", train)


def run_id(project: Project, name: str) -> str:
    """The id of one of its runs."""
    return json.loads((project.folder / "runs.json").read_text())[name]


def register(project: Project, model: str, *runs: str) -> list[ModelVersion]:
    """Register runs under the name `model`, which no other test uses."""
    store = Store(project.home)
    return [Registry(store).register(find_run(store, run_id(project, run)), model) for run in runs]


def in_production(factory: pytest.TempPathFactory, model: str) -> Project:
    """The project with the three runs, with one of them in production under a name that no other test uses."""
    project = once(factory, "trained", train)
    (version,) = register(project, model, "five")
    Registry(Store(project.home)).promote(model, version.version)
    return project


def copied(project: Project, version: ModelVersion) -> tuple[str, str]:
    """The run in MLflow and the path of the bundle among its artifacts."""
    return project.record(version.run_id)["mlflow_run_id"], f"versions/{version.bundle[7:19]}/bundle"


@pytest.fixture(scope="session")
def registry(trained: Project) -> Registry:
    """The registry of the trained project."""
    return Registry(Store(trained.home))


@pytest.fixture(scope="session")
def mlflow(trained: Project) -> MlflowClient:
    """MLflow's own client of the same store."""
    return MlflowClient(tracking_uri=Store(trained.home).tracking_uri)


# The commands


def test_the_journey_of_a_model_on_the_command_line(trained: Project, registry: Registry) -> None:
    record = trained.record(run_id(trained, "five"))
    registered = trained.n2p("register", record["run_id"][-8:], "--name", "journey", "--json")
    assert registered.code == 0, registered
    assert (registered.json["version"], registered.json["bundle"], registered.json["run_id"]) == (
        1,
        record["bundle"],
        record["run_id"],
    )
    register(trained, "journey", "six")

    first = trained.n2p("promote", "journey", "1", "--json")
    who = {"user": getpass.getuser(), "identity": "os"}
    assert first.json == {
        "name": "journey",
        "version": 1,
        "alias": "production",
        "changed": True,
        "previous": None,
        "gates": "not asked",
        "verdicts": None,
        "unsealed": True,
        "approvals": None,
        **who,
    }
    second = trained.n2p("promote", "journey", "2", "--to", "production", "--reason", "meilleur à l’épreuve", "--json")
    assert second.json == {
        "name": "journey",
        "version": 2,
        "alias": "production",
        "changed": True,
        "previous": 1,
        "gates": "not asked",
        "verdicts": None,
        "unsealed": True,
        "approvals": None,
        **who,
    }
    back = trained.n2p("rollback", "journey", "--reason", "it's late", "--json")
    untold = dict.fromkeys(("skipped", "approvals", "overruled"))
    assert back.json == {"name": "journey", "version": 1, "alias": "production", "previous": 2, **untold}
    assert registry.aliased("journey", "production") == 1

    events = trained.n2p("history", "journey", "--json").json["events"]
    moves = [(event["action"], event["version"], event["previous"], event["reason"]) for event in events]
    assert moves == [
        ("register", 1, None, None),
        ("register", 2, None, None),
        ("promote", 1, None, None),
        ("promote", 2, 1, "meilleur à l’épreuve"),
        ("rollback", 1, 2, "it's late"),
    ]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert all(event["user"] for event in events)


def test_four_processes_move_one_model_at_a_time(trained: Project, registry: Registry) -> None:
    register(trained, "crowd", "five")
    commands = [
        ("register", run_id(trained, "six"), "--name", "crowd", "--json"),
        ("register", run_id(trained, "six"), "--name", "crowd", "--json"),
        ("promote", "crowd", "1", "--to", "production", "--json"),
        ("promote", "crowd", "1", "--to", "staging", "--json"),
    ]
    ended = trained.together(*commands)
    assert [done.code for done in ended] == [0, 0, 0, 0], ended
    assert [done.json["version"] for done in ended] == [2, 2, 1, 1]
    events = sorted((event.action, event.version, event.alias or "") for event in registry.history("crowd"))
    assert events == [("promote", 1, "production"), ("promote", 1, "staging"), ("register", 1, ""), ("register", 2, "")]
    assert [version.aliases for version in registry.versions("crowd")] == [("production", "staging"), ()]


# Registering


def test_the_same_bundle_is_the_same_version(trained: Project, registry: Registry) -> None:
    versions = register(trained, "same", "five", "six", "five", "six")
    assert [version.version for version in versions] == [1, 2, 1, 2]
    assert versions[0].bundle != versions[1].bundle
    assert [event.version for event in registry.history("same")] == [1, 2]


def refused_runs(project: Project) -> None:
    project.notebook("nothing.ipynb", {"cell": "1 + 1"})
    project.notebook("failed.ipynb", {"cell": "1 / 0"})
    draft = {
        "head": """
            import os

            import numpy as np
            from sklearn.linear_model import LinearRegression

            import notebook_to_prod as n2p

            del os.environ["N2P_RUN_ID"]
            X, y = np.eye(3), np.arange(3.0)
        """,
        "save": "n2p.start(seed=1).export(LinearRegression().fit(X, y), X, y, X, y)",
    }
    project.notebook("draft.ipynb", draft)
    ended = {name: project.run(f"{name}.ipynb") for name in ("nothing", "failed", "draft")}
    assert [done.code for done in ended.values()] == [0, 2, 0], ended
    run_ids = {name: done.json["run_id"] for name, done in ended.items() if done.code == 0}
    (project.folder / "runs.json").write_text(json.dumps(run_ids | {"failed": ended["failed"].error["run_id"]}))


@pytest.mark.parametrize(
    ("run", "said"), [("nothing", "exported no bundle"), ("failed", "the run is failed"), ("draft", "draft")]
)
def test_a_run_without_a_recorded_bundle_is_refused(
    run: str, said: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = once(tmp_path_factory, "refused", refused_runs)
    with pytest.raises(InputError, match=said) as caught:
        register(project, "never", run)
    assert run_id(project, run) in (caught.value.where or "")
    assert caught.value.remedy
    with pytest.raises(NotFoundError, match="there is no model 'never'"):
        Registry(Store(project.home)).history("never")


# Moving an alias


def test_rollback_goes_back_along_the_path(trained: Project, registry: Registry) -> None:
    register(trained, "path", "five", "six", "regression")
    for version in (1, 2, 3):
        registry.promote("path", version)
    registry.promote("path", 3, "canary")
    assert [registry.rollback("path").version, registry.rollback("path").version] == [2, 1]
    with pytest.raises(NotFoundError, match="no earlier version in production"):
        registry.rollback("path")
    assert (registry.aliased("path", "production"), registry.aliased("path", "canary")) == (1, 3)
    registry.promote("path", 3)
    assert registry.rollback("path").version == 1


def test_rollback_returns_to_a_version_that_was_there_twice(trained: Project, registry: Registry) -> None:
    register(trained, "twice", "five", "six")
    for version in (1, 2, 1):
        registry.promote("twice", version)
    assert [registry.rollback("twice").version, registry.rollback("twice").version] == [2, 1]


def test_rollback_undoes_a_promotion_over_a_move_made_with_mlflow(
    trained: Project, registry: Registry, mlflow: MlflowClient
) -> None:
    register(trained, "moved", "five", "six")
    registry.promote("moved", 1)
    mlflow.set_registered_model_alias("moved", "production", "2")
    event = registry.promote("moved", 1)
    assert event and event.previous == 2
    assert registry.rollback("moved").version == 2


def test_rollback_undoes_a_move_made_with_mlflow(trained: Project, registry: Registry, mlflow: MlflowClient) -> None:
    register(trained, "strayed", "five", "six")
    registry.promote("strayed", 1)
    mlflow.set_registered_model_alias("strayed", "production", "2")
    assert registry.rollback("strayed").version == 1


def test_promoting_what_is_there_already_is_no_event(trained: Project, registry: Registry) -> None:
    register(trained, "still", "five")
    assert registry.promote("still", 1) is not None
    assert registry.promote("still", 1) is None
    assert [event.action for event in registry.history("still")] == ["register", "promote"]


def test_a_version_whose_bundle_is_damaged_is_not_promoted(
    trained: Project, registry: Registry, mlflow: MlflowClient, tmp_path: Path
) -> None:
    (version,) = register(trained, "damaged", "five")
    copy = Path(mlflow.download_artifacts(*copied(trained, version), str(tmp_path)))
    make_writable(copy)
    (copy / "model.pkl").write_bytes(b"something else")
    tags = {"n2p.bundle": "sha256:" + "0" * 64, "n2p.run_id": version.run_id}
    mlflow.create_model_version("damaged", copy.as_uri(), tags=tags)
    with pytest.raises(BundleError):
        registry.promote("damaged", 2)
    assert registry.aliased("damaged", "production") is None
    assert not registry.store.bundle(tags["n2p.bundle"]).exists()


@pytest.mark.parametrize(
    ("actions", "path"),
    [
        ([], []),
        ([("promote", 1), ("promote", 2)], [1, 2]),
        ([("promote", 1), ("promote", 2), ("rollback", 1), ("promote", 3)], [1, 3]),
        ([("promote", 2), ("promote", 1), ("promote", 2), ("rollback", 1)], [2, 1]),
        ([("promote", 1), ("register", 2), ("promote", 2)], [1, 2]),
    ],
)
def test_path_of_an_alias(actions: list[tuple[str, int]], path: list[int]) -> None:
    events = [
        Event("2026-01-01", action, "m", version, "ada", None if action == "register" else "production")
        for action, version in actions
    ]
    assert alias_path(events, "production") == path
    assert alias_path(events, "staging") == []


# Names


@pytest.mark.parametrize("alias", ["production", "canary", "blue-2", "a_b"])
def test_an_alias_is_a_word(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize(
    "alias", ["", "latest", "v1", "v23", "Production", "two words", "1", "-x", "ä", "a/b", "a" * 51, "x\n"]
)
def test_what_cannot_be_an_alias_is_refused(alias: str, registry: Registry) -> None:
    with pytest.raises(InputError, match="cannot be an alias") as caught:
        registry.promote("path", 1, alias)
    assert "production" in (caught.value.remedy or "")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x'; drop", 'x"', "a@b", "-a", " a", "a" * 101, "x\n", "a:b"])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be a model's name"):
        check_name(name)


@pytest.mark.parametrize("reference", ["flights", "@production", "flights@", "", "@"])
def test_a_reference_says_which_version(reference: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_reference(reference)
    assert caught.value.remedy
    if reference != "flights":
        with pytest.raises(InputError):
            parse_reference(reference, "production")


@pytest.mark.parametrize("name", ["flights", "Late flights 2", "a.b-c_d"])
def test_a_version_is_found_by_number_and_by_alias(name: str, trained: Project, registry: Registry) -> None:
    register(trained, name, "five", "six")
    registry.promote(name, 2)
    assert registry.resolve(f"{name}@1").version == 1
    assert registry.resolve(f"{name}@production").version == registry.resolve(name).version == 2
    assert [version.aliases for version in registry.versions(name)] == [(), ("production",)]


def test_a_name_alone_means_what_is_live(trained: Project, registry: Registry) -> None:
    register(trained, "alone", "five", "six")
    registry.promote("alone", 1)
    live = registry.read("alone", 1)
    assert trained.n2p("bundle", "verify", "alone", "--json").json["bundle"] == live.bundle
    said = trained.n2p("compare", "alone", "alone@2", "--json").json
    assert (said["before"], said["after"]) == ("alone version 1", "alone version 2")
    signed = trained.n2p("bundle", "sign", "alone", "--key", "nobody", "--json")
    assert (signed.code, signed.error["type"]) == (2, "NotFoundError") and "no run" in signed.error["what"]
    nobody = trained.n2p("bundle", "verify", "nobody", "--json")
    assert nobody.code == 2 and nobody.error["what"] == "there is no run 'nobody'"
    for command in (("archive", "alone"), ("approve", "alone")):
        assert trained.n2p(*command, "--json").error["what"] == "'alone' does not say which version"


UNKNOWN: dict[str, tuple[Callable[[Registry], object], str]] = {
    "model": (lambda registry: registry.resolve("nobody@production"), "n2p register"),
    "nothing-live": (lambda registry: registry.resolve("known"), "n2p promote known 2 --to production"),
    "alias": (lambda registry: registry.resolve("known@staging"), "n2p promote known 2 --to staging"),
    "version": (lambda registry: registry.resolve("known@7"), "its versions are 1, 2"),
    "version-zero": (lambda registry: registry.resolve("known@0"), "its versions are 1, 2"),
    "version-beyond": (lambda registry: registry.promote("known", 10**20), "its versions are 1, 2"),
    "promoted-model": (lambda registry: registry.promote("nobody", 1), "n2p register"),
    "history": (lambda registry: registry.history("nobody"), "known"),
    "rollback": (lambda registry: registry.rollback("nobody"), "known"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_unknown_is_answered_with_what_there_is(case: str, trained: Project, registry: Registry) -> None:
    register(trained, "known", "five", "six")
    act, said = UNKNOWN[case]
    with pytest.raises(NotFoundError) as caught:
        act(registry)
    assert said in (caught.value.remedy or "")


def test_an_unknown_run_is_answered_with_the_newest(trained: Project) -> None:
    done = trained.n2p("register", "nope", "--name", "flights", "--json")
    assert (done.code, done.error["type"]) == (2, "NotFoundError")
    assert run_id(trained, "regression") in done.error["remedy"]


# MLflow sees the same


def test_mlflow_sees_version_alias_tags_and_artifacts(
    trained: Project, registry: Registry, mlflow: MlflowClient, tmp_path: Path
) -> None:
    (version,) = register(trained, "seen", "five")
    registry.promote("seen", 1, "canary")
    found = mlflow.get_model_version_by_alias("seen", "canary")
    record = trained.record(version.run_id)
    assert (int(found.version), found.run_id, found.status) == (1, record["mlflow_run_id"], "READY")
    assert found.tags == {
        "n2p.bundle": record["bundle"],
        "n2p.run_id": record["run_id"],
        "n2p.run_key": record["run_key"],
        "n2p.notebook": "train.ipynb",
    }
    fetched = mlflow.download_artifacts(*copied(trained, version), str(tmp_path))
    bundle = open_bundle(fetched, record["bundle"])
    assert replay_golden(bundle, load_pipeline(bundle)) == 0.0


@pytest.fixture
def elsewhere(trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The same registry seen from a machine whose store has no bundles."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Store(trained.home).tracking_uri)
    return Registry(Store(tmp_path / "store"))


def test_a_bundle_that_the_store_lacks_is_fetched_and_verified(trained: Project, elsewhere: Registry) -> None:
    (version,) = register(trained, "fetched", "five")
    bundle = elsewhere.bundle(elsewhere.resolve("fetched@1"))
    assert bundle.path == elsewhere.store.bundle(version.bundle)
    assert bundle.digest == version.bundle
    assert {path.name for path in elsewhere.store.bundles.iterdir()} == {bundle.path.name}
    assert replay_golden(bundle, load_pipeline(bundle)) == 0.0


def test_a_version_of_another_store_tells_where_it_comes_from(
    trained: Project, registry: Registry, elsewhere: Registry, mlflow: MlflowClient
) -> None:
    (version,) = register(trained, "from afar", "five")
    mlflow.set_model_version_tag("from afar", "1", "n2p.commit", "2ee93f3")  # the project is not in git
    at_home, afar = (each.lineage(each.resolve("from afar@1")) for each in (registry, elsewhere))
    assert (at_home.notebook, at_home.run_id, at_home.commit) == ("train.ipynb", version.run_id, "")
    assert (afar.notebook, afar.run_id, afar.commit) == ("train.ipynb", version.run_id, "2ee93f3")
    assert [source for source, _ in at_home.datasets] == ["flights.parquet"]
    assert [digest for _, digest in at_home.datasets] == [digest for _, digest in afar.datasets]


@pytest.mark.parametrize("how", HARMS)
def test_a_bundle_that_is_damaged_in_the_store_is_fetched_again(
    how: str, trained: Project, elsewhere: Registry
) -> None:
    (version,) = register(trained, "damaged here", "five")
    path = elsewhere.bundle(version).path
    harm(path, how)
    assert open_bundle(elsewhere.bundle(version).path, version.bundle).path == path
    assert [*elsewhere.store.bundles.iterdir()] == [path]


def tamper(bundle: Bundle) -> None:
    """Change a byte of the golden rows in a store."""
    path = bundle.path / "golden.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))


def test_a_repair_is_told_and_kept_once(
    trained: Project, elsewhere: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    (version,) = register(trained, "repaired", "five")
    bundle = elsewhere.bundle(version)
    assert (capfd.readouterr().err, [*read_events(elsewhere.store)]) == ("", []), "what was not there is no repair"
    tamper(bundle)
    with ThreadPoolExecutor() as pool:
        assert {each.digest for each in pool.map(elsewhere.bundle, [version] * 4)} == {version.bundle}
    told = f"warning: golden.json of bundle {version.bundle[:19]} was changed in this store; fetched again from the registry\n"
    assert capfd.readouterr().err == told, "nor a bar of MLflow's"
    (event,) = read_events(elsewhere.store)
    assert (event.action, event.name, event.version, event.bundle) == ("repair", "repaired", 1, version.bundle)
    assert event.reason == "golden.json was changed in this store" and event.action in ACTIONS
    assert verify_audit(elsewhere).damage == [] and "repair" not in {
        each.action for each in elsewhere.history("repaired")
    }


def test_what_cannot_be_fetched_again_is_no_repair(
    trained: Project, elsewhere: Registry, mlflow: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    (version,) = register(trained, "beyond repair", "five")
    tamper(elsewhere.bundle(version))
    gone = replace(version, source="/nowhere/at/all")
    with pytest.raises(N2PError):
        elsewhere.bundle(gone)
    assert "fetched again" not in capfd.readouterr().err and not [*read_events(elsewhere.store)]


@pytest.mark.parametrize("when", ["before it is registered", "after that", "by another store, after it was fetched"])
def test_a_signature_travels_with_the_version(
    when: str,
    trained: Project,
    elsewhere: Registry,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"signed {when.split()[0]}"
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("N2P_TRUSTED_KEYS", keys.new_key("team"))
    record = find_run(registry.store, run_id(trained, "six"))
    own = open_bundle(record.bundle_path or "", record.bundle)
    if when.startswith("before"):
        signature, versions = registry.sign(own, "team")
        assert name not in {each.name for each in versions}
    (version,) = register(trained, name, "six")
    bundle = elsewhere.bundle(elsewhere.resolve(f"{name}@1"))
    if when.startswith("after"):
        signature, versions = registry.sign(own, "team")
        assert f"{name}@1" in {f"{each.name}@{each.version}" for each in versions}
    if when.startswith("by"):
        signature, _ = elsewhere.sign(bundle, "team")
    for each in (elsewhere, registry):
        version = each.resolve(f"{name}@1")
        bundle = each.bundle(version)
        assert signature in version.signatures and signature in keys.read_signatures(bundle.path)
        assert keys.require_signature(bundle.path, bundle.digest, keys.trusted_keys())
        assert version.to_dict()["signatures"] == [asdict(one) for one in version.signatures]
    for harm_it in (tamper, lambda bundle: remove_bundle(bundle.path)):
        harm_it(elsewhere.bundle(version))
        again = elsewhere.bundle(version)
        assert signature in keys.read_signatures(again.path)
    by_mlflow = _load_pyfunc(
        mlflow_artifacts.download_artifacts(version.source, tracking_uri=registry.store.tracking_uri) + "/bundle"
    )
    assert by_mlflow.bundle.digest == bundle.digest, "MLflow's own loader finds it, too"


def test_a_signature_in_the_registry_that_is_wrong_replaces_none(
    trained: Project, elsewhere: Registry, mlflow: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    team, _ = keys.new_key("team"), keys.new_key("stranger")
    (version,) = register(trained, "wrongly signed", "regression")
    bundle = elsewhere.bundle(version)
    right, _ = elsewhere.sign(bundle, "team")
    forged = keys.Signature(team, keys.sign(bundle.digest, "stranger").signature)
    for tag, value in signature_tags([forged]).items():
        mlflow.set_model_version_tag("wrongly signed", "1", tag, value)
    mlflow.set_model_version_tag("wrongly signed", "1", "n2p.signature.0", "by hand")
    version = elsewhere.resolve("wrongly signed@1")
    assert version.signatures == (forged,)
    assert keys.read_signatures(elsewhere.bundle(version).path) == [right]
    (bundle.path / keys.SIGNATURES).chmod(0o644)
    (bundle.path / keys.SIGNATURES).write_text("no JSON")
    tamper(bundle)
    assert keys.read_signatures(elsewhere.bundle(version).path) == [right], "as it stands beside what MLflow keeps"


def test_only_what_a_service_would_load_is_promoted(
    trained: Project, elsewhere: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained, "signed", "five")
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    keys.trust_key(elsewhere.store, keys.new_key("team"), "team")
    with pytest.raises(BundleError, match="nobody has signed"):
        elsewhere.promote("signed", 1)
    assert elsewhere.aliased("signed", "production") is None
    bundle = elsewhere.bundle(elsewhere.resolve("signed@1"))
    keys.add_signature(bundle.path, keys.sign(bundle.digest, "team"))
    elsewhere.promote("signed", 1)
    assert elsewhere.aliased("signed", "production") == 1


def stores(tmp_path: Path, record: RunRecord, *names: str) -> list[Registry]:
    """Registries of stores on different machines, with one MLflow that knows none of their runs."""
    registries = [Registry(Store(tmp_path / name)) for name in names]
    for registry in registries:
        registry.store.home.mkdir()
    (tmp_path / "run").mkdir()
    untracked = replace(record, mlflow_run_id=None, folder=str(tmp_path / "run"))
    registries[0].register(untracked, "shared")
    return registries


@pytest.fixture(params=["sqlite", "postgres"])
def mlflow_address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = request.getfixturevalue("address") if request.param == "postgres" else f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found)
    monkeypatch.chdir(tmp_path)
    return found


def test_two_stores_have_one_history(trained: Project, mlflow_address: str, tmp_path: Path) -> None:
    records = [find_run(Store(trained.home), run_id(trained, name)) for name in ("five", "six", "regression")]
    here, there = stores(tmp_path, records[0], "here", "there")
    for number, record in enumerate(records[1:]):
        (tmp_path / f"run{number}").mkdir()
        there.register(replace(record, mlflow_run_id=None, folder=str(tmp_path / f"run{number}")), "shared")
    here.promote("shared", 1)
    there.promote("shared", 2, reason="besser")
    assert [event.reason for event in here.history("shared")][-1] == "besser"
    assert here.rollback("shared").version == 1
    there.promote("shared", 3, reason="x" * 9000)
    assert there.rollback("shared").version == 1
    told = [(event.action, event.version, event.previous) for event in here.history("shared")]
    assert told == [
        ("register", 1, None),
        ("register", 2, None),
        ("register", 3, None),
        ("promote", 1, None),
        ("promote", 2, 1),
        ("rollback", 1, 2),
        ("promote", 3, 1),
        ("rollback", 1, 3),
    ]
    assert there.history("shared") == here.history("shared")
    with pytest.raises(NotFoundError, match="no earlier version"):
        there.rollback("shared")
    own = [(event.action, event.version) for event in read_events(here.store)]
    assert own == [("register", 1), ("promote", 1), ("rollback", 1)]

    # what two processes of different stores write at the same moment
    def move(registry: Registry, alias: str) -> list[str]:
        moved = [registry.promote("shared", version, alias) for version in (1, 2, 3, 1, 2, 3)]
        return [event.time for event in moved if event]

    with ThreadPoolExecutor() as pool:
        times = [*pool.map(move, (here, there), ("canary", "shadow"))]
    for alias, made in zip(("canary", "shadow"), times, strict=True):
        events = [event for event in there.history("shared") if event.alias == alias]
        assert [event.time for event in events] == made and len(made) == 6
        assert alias_path(events, alias) == [1, 2, 3, 1, 2, 3]
    assert there.rollback("shared", "canary").version == 2


def test_the_order_of_events_that_know_of_each_other_is_not_the_clocks(
    trained: Project, elsewhere: Registry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained, "clocks", "five", "six")
    registry.promote("clocks", 1)
    monkeypatch.setattr("notebook_to_prod.release.moves.now", lambda: "2001-01-01T00:00:00.000+00:00")
    elsewhere.promote("clocks", 2)
    assert [event.version for event in registry.history("clocks")] == [1, 2, 1, 2]


def test_a_damaged_event_is_named(trained: Project, registry: Registry, mlflow: MlflowClient) -> None:
    register(trained, "broken", "five")
    mlflow.set_registered_model_tag("broken", "n2p.event.00000007.abc", "{}")
    with pytest.raises(StoreError) as caught:
        registry.history("broken")
    assert "n2p.event.00000007.abc" in (caught.value.where or "")


def test_a_fetched_bundle_that_was_changed_is_refused(
    trained: Project, elsewhere: Registry, mlflow: MlflowClient, tmp_path: Path
) -> None:
    (version,) = register(trained, "forged", "five")
    copy = Path(mlflow.download_artifacts(*copied(trained, version), str(tmp_path)))
    make_writable(copy)
    (copy / "golden.json").write_text("{}")
    mlflow.create_model_version("forged", copy.as_uri(), tags={"n2p.bundle": version.bundle})
    with pytest.raises(BundleError, match=r"golden\.json"):
        elsewhere.bundle(elsewhere.resolve("forged@2"))
    assert [*elsewhere.store.bundles.glob("*")] == []


# The log


def log(project: Project, *lines: str) -> Store:
    store = Store(project.home)
    store.home.mkdir()
    store.audit.write_text("".join(lines), encoding="utf-8")
    return store


LINE = json.dumps(Event("2026-01-01", "register", "flights", 1, "ada").to_dict()) + "\n"


@pytest.mark.parametrize("damage", ["{}\n", "garbage\n", '{"time": "now"}\n', "{'time': 1}\n"])
def test_a_damaged_line_is_reported_with_its_number(damage: str, project: Project) -> None:
    log(project, LINE, damage, LINE)
    done = project.n2p("history", "flights", "--json")
    assert (done.code, done.error["type"]) == (3, "StoreError")
    assert done.error["where"].endswith("audit.jsonl, line 2")


def test_a_line_that_is_not_text_is_reported(project: Project) -> None:
    log(project, LINE).audit.write_bytes(LINE.encode() + b"\xff\xfe}\n")
    with pytest.raises(StoreError, match="damaged"):
        [*read_events(Store(project.home))]


def test_an_unfinished_line_is_no_event_and_is_not_in_the_way(project: Project) -> None:
    store = log(project, LINE, LINE[: len(LINE) // 2])
    assert [event.version for event in read_events(store)] == [1]
    append_event(store, Event("2026-01-02", "promote", "flights", 1, "ada", "production"))
    assert [event.action for event in read_events(store)] == ["register", "promote"]
