"""Smaller variants: each answers like a model of its own kind, is a bundle like any other, and says what it was made from."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from notebooks import UNSEALED, Done, Project, once
from sklearn.base import BaseEstimator, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from notebook_to_prod.cli.app import app
from notebook_to_prod.errors import InputError, NotFoundError
from notebook_to_prod.package.bundle import open_bundle, remove_bundle
from notebook_to_prod.package.compile.choose import compile_exact
from notebook_to_prod.package.compress import Compression, Contender, judged
from notebook_to_prod.package.gates.statistics import Estimate
from notebook_to_prod.package.lineage import find_lineage
from notebook_to_prod.package.variants import make_variants
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.train.record import find_run

# Every kind of model, in this process

RANDOM = np.random.default_rng(0)
X = pd.DataFrame(RANDOM.normal(size=(400, 5)), columns=list("abcde"))
NUMBER = X["a"] * 3 + np.where(X["b"] > 0, 5, 0) + RANDOM.normal(size=400)
LABEL = np.where(NUMBER > 4, "high", np.where(NUMBER > 0, "middle", "low"))

MODELS: dict[str, tuple[BaseEstimator, set[str]]] = {
    "forest": (RandomForestClassifier(20, random_state=0, oob_score=True), {"fewer", "pruned"}),
    "forest of numbers": (RandomForestRegressor(20, random_state=0), {"fewer", "pruned"}),
    "extra trees": (ExtraTreesClassifier(20, random_state=0), {"fewer", "pruned"}),
    "tree": (DecisionTreeClassifier(random_state=0), {"pruned"}),
    "boosting": (GradientBoostingClassifier(n_estimators=20, random_state=0), {"fewer"}),
    "histogram boosting": (HistGradientBoostingRegressor(max_iter=20, random_state=0), {"fewer"}),
    "bag": (BaggingRegressor(n_estimators=10, max_features=0.6, random_state=0), {"fewer", "pruned"}),
    "ada boost": (AdaBoostClassifier(n_estimators=10, random_state=0), {"fewer"}),  # of stumps
    "logistic": (LogisticRegression(max_iter=200), {"quantised"}),
    "sgd, averaged": (SGDClassifier(loss="log_loss", average=True, random_state=0), {"quantised"}),
    "network": (MLPClassifier((16,), max_iter=60, random_state=0), {"quantised"}),
    "neighbours": (KNeighborsRegressor(), set()),
    "calibrated": (CalibratedClassifierCV(RandomForestClassifier(10, random_state=0), cv=2), {"fewer", "pruned"}),
    "search": (
        GridSearchCV(RandomForestClassifier(10, random_state=0), {"max_depth": [3, 5]}, cv=2),
        {"fewer", "pruned"},
    ),
    "transformed": (TransformedTargetRegressor(RandomForestRegressor(10, random_state=0)), {"fewer", "pruned"}),
}


def fitted(name: str) -> tuple[Any, set[str]]:
    """One of the models behind a scaler, and the kinds of variants that there are of it, besides students."""
    model, kinds = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(StandardScaler(), model).fit(
            X[:300], (LABEL if is_classifier(model) else NUMBER)[:300]
        ), kinds


def agreement(one: Any, other: Any) -> float:
    """Share of equal labels, or correlation of numbers, on rows that were held out."""
    answers = one.predict(X[300:]), other.predict(X[300:])
    return float((answers[0] == answers[1]).mean() if is_classifier(other) else np.corrcoef(*answers)[0, 1])


@pytest.mark.parametrize("name", MODELS)
def test_what_applies_is_made_and_answers(name: str) -> None:
    pipeline, kinds = fitted(name)
    before = pickle.dumps(pipeline)
    made, left_out = make_variants(pipeline, X[:300], ["fewer", "pruned", "quantised"])
    assert pickle.dumps(pipeline) == before
    assert {each.kind for each in made} == kinds
    assert {each.partition("-")[0] for each in left_out} >= {"fewer", "pruned", "quantised"} - kinds
    assert all("Error" not in why for why in left_out.values()), left_out
    for each in made:
        assert (
            getattr(each.pipeline, "classes_", np.array([])).tolist()
            == getattr(pipeline, "classes_", np.array([])).tolist()
        )
        assert agreement(each.pipeline, pipeline) > (
            0.99 if each.kind == "quantised" else 0.75 if each.name.endswith("half") else 0.3
        ), each.name
        assert len(pickle.dumps(each.pipeline)) < len(before) or "logistic sgd, averaged".count(name), (
            each.name
        )  # of few weights the rest is all


@pytest.mark.parametrize("name", ["forest", "histogram boosting", "neighbours", "calibrated"])
def test_any_model_teaches_a_smaller_one(name: str) -> None:
    pipeline, _ = fitted(name)
    made, left_out = make_variants(pipeline, X[:300], ["distilled"])
    assert left_out == {}
    assert [each.name for each in made] == ["distilled-boosting", "distilled-tree", "distilled-linear"]
    assert min(agreement(each.pipeline, pipeline) for each in made) > 0.7


@pytest.mark.parametrize("name", ["forest", "histogram boosting", "logistic", "network"])
def test_variants_have_an_exact_plan(name: str) -> None:
    pipeline, kinds = fitted(name)
    made, _ = make_variants(pipeline, X[:300], sorted(kinds))
    reasons = {each.name: compile_exact(each.pipeline, X[300:], rows=300, alone=1, sizes=()).reason for each in made}
    assert set(reasons.values()) == {None}, reasons


def test_weights_that_half_precision_cannot_hold_are_left_alone() -> None:
    pipeline = make_pipeline(LogisticRegression()).fit(X, NUMBER > 0)
    pipeline[-1].coef_ *= 1e6
    made, left_out = make_variants(pipeline, X, ["quantised"])
    assert [each.name for each in made] == ["quantised-float32"]
    assert left_out == {"quantised-float16": "a weight is too large for float16"}


def test_what_decides_by_a_threshold_of_its_own_teaches_nobody() -> None:
    pipeline = FixedThresholdClassifier(LogisticRegression(), threshold=0.15).fit(X, NUMBER > 4)
    made, left_out = make_variants(pipeline, X, ["distilled"])
    assert made == [] and left_out and all("threshold" in why for why in left_out.values())


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="there is no kind 'smaller'"):
        make_variants(DecisionTreeClassifier().fit(X, LABEL), X, ["smaller"])


# What the table says


def contender(name: str, size: int, interval: tuple[float, float]) -> Contender:
    difference = Estimate(sum(interval) / 2, interval, "")
    return Contender(
        name,
        "",
        f"sha256:{name}",
        size,
        1.0,
        True,
        Estimate(0.8, (0.7, 0.9), ""),
        difference,
        judged(difference, 0.8, 0.01),
    )


def test_the_best_is_the_smallest_that_certainly_holds(tmp_path: Path) -> None:
    tried = (
        contender("fewer-half", 50, (-0.001, 0.001)),
        contender("fewer-tenth", 10, (-0.1, 0.1)),  # nobody knows
        contender("distilled-tree", 5, (-0.3, -0.2)),
        contender("distilled-boosting", 200, (0.0, 0.1)),  # larger
    )
    assert [each.verdict for each in tried] == ["holds", "unclear", "loses", "holds"]
    found = Compression(
        contender("original", 100, (0, 0)), tried, {"quantised-float16": "no weights"}, "accuracy", 40, tmp_path
    )
    assert found.best and found.best.name == "fewer-half"
    with pytest.raises(InputError, match="none of 'distilled' is smaller and certainly as good"):
        found.bundle("distilled")
    with pytest.raises(InputError, match="no variant 'quantised-float16': no weights"):
        found.bundle("quantised-float16")


# The command, on what a notebook has exported

CELLS = {
    "parameters": "seed = 1",
    "start": "import numpy as np\nimport pandas as pd\n\nimport notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "own": "#| export\ndef longer(table):\n    return table.assign(twice=table['a'] * 2)",
    "fit": """
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer

        random = np.random.default_rng(seed)
        X = pd.DataFrame(random.normal(size=(1600, 3)), columns=["a", "b", "c"])
        y = np.where((X["a"] * X["b"] > 0) ^ (random.random(1600) < 0.1), "yes", "no")
        model = make_pipeline(FunctionTransformer(longer), RandomForestClassifier(24, min_samples_leaf=3, random_state=0))
        model.fit(X[:1000], y[:1000])
        run.metric("accuracy of the run", model.score(X[1000:], y[1000:]))
    """,
    "export": "run.export(model, X[:1000], y[:1000], X[1000:], y[1000:])",
}
POLICY = """
[tool.n2p.gates]
skip = ["data", "explain", "robustness", "serving"]
resamples = 200
[tool.n2p.gates.quality]
primary = "accuracy"
champion_margin = 0.05
"""


def train(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text(POLICY)
    project.notebook("train.ipynb", CELLS)
    done = project.run("train.ipynb")
    assert done.code == 0, done
    Registry(Store(project.home)).register(find_run(Store(project.home), "latest"), "signs")
    before = contents(project)
    table = project.n2p("compress", "signs", "--kind", "fewer", "--kind", "distilled", "--kind", "quantised", "--json")
    (project.folder / "table.json").write_text(
        json.dumps({"code": table.code, "said": table.stdout, "err": table.stderr, "same": contents(project) == before})
    )
    kept = project.n2p("compress", "signs@1", "--keep", "fewer-half", "--gate", "--json")
    (project.folder / "kept.json").write_text(json.dumps({"code": kept.code, "said": kept.stdout, "err": kept.stderr}))


def n2p(project: Project, *arguments: str, **variables: str) -> Done:
    """Run `n2p` in this process, which has imported everything."""
    with contextlib.chdir(project.folder):
        done = CliRunner().invoke(app, [*arguments], env=UNSEALED | variables)
    return Done(done.exit_code, done.stdout, done.stderr)


def contents(project: Project) -> dict[str, int]:
    """The files of the store and when they were written, but for the database that a question may open."""
    return {
        str(path.relative_to(project.home)): path.stat().st_mtime_ns
        for path in project.home.rglob("*")
        if path.is_file() and not path.name.startswith("mlflow.db")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A registered model, the table of its variants, and one of them kept, gated and registered."""
    return once(tmp_path_factory, "compress", train)


@pytest.fixture(scope="module")
def table(made: Project) -> dict[str, Any]:
    """What `n2p compress --json` said."""
    told = json.loads((made.folder / "table.json").read_text())
    assert told["code"] == 0, told
    return json.loads(told["said"])


@pytest.fixture(scope="module")
def kept(made: Project) -> dict[str, Any]:
    """What `n2p compress --keep fewer-half --gate --json` said."""
    told = json.loads((made.folder / "kept.json").read_text())
    assert told["code"] == 0, told
    return json.loads(told["said"])


def test_the_table_has_every_variant_with_its_interval_and_its_price(made: Project, table: dict[str, Any]) -> None:
    assert (table["metric"], table["rows"]) == ("accuracy", 600)
    assert {each["name"].partition("-")[0] for each in table["variants"]} == {"fewer", "distilled"}
    assert set(table["left_out"]) == {"quantised-float32", "quantised-float16"}
    for each in (table["original"], *table["variants"]):
        low, high = each["metric"]["interval"]
        assert low < each["metric"]["number"] < high
        assert each["compiled"] and each["microseconds"] > 0 and each["bundle"].startswith("sha256:")
    linear = next(each for each in table["variants"] if each["name"] == "distilled-linear")
    assert linear["verdict"] == "loses"  # the sign of a product is no line
    assert linear["difference"]["number"] == pytest.approx(
        linear["metric"]["number"] - table["original"]["metric"]["number"]
    )
    assert {each["name"]: each["size"] for each in table["variants"]}["fewer-half"] < 0.7 * table["original"]["size"]
    assert table["best"] in {each["name"] for each in table["variants"] if each["verdict"] == "holds"}


def test_nothing_is_written_before_one_is_kept(made: Project, table: dict[str, Any]) -> None:
    assert json.loads((made.folder / "table.json").read_text())["same"]


def test_what_is_kept_is_the_bundle_of_the_table_in_another_process(
    table: dict[str, Any], kept: dict[str, Any]
) -> None:
    digests = {each["name"]: each["bundle"] for each in table["variants"]}
    assert kept["kept"] == digests["fewer-half"]
    assert all(each["bundle"] == digests[each["name"]] for each in kept["variants"])


def test_a_variant_is_a_bundle_like_its_original(made: Project, table: dict[str, Any], kept: dict[str, Any]) -> None:
    store = Store(made.home)
    original, variant = (open_bundle(store.bundle(digest)) for digest in (table["original"]["bundle"], kept["kept"]))
    assert [*variant.files] == [*original.files] and any(name.startswith("code/") for name in variant.files)
    assert (variant.schema, variant.lock, variant.golden["rows"]) == (
        original.schema,
        original.lock,
        original.golden["rows"],
    )
    same = ("seed", "notebook", "datasets", "draft", "parameters", "code", "evaluation", "rows", "task", "classes")
    assert {name: variant.metadata[name] for name in same} == {name: original.metadata[name] for name in same}
    assert variant.metadata["derived_from"] == {
        "bundle": original.digest,
        "variant": "fewer-half",
        "how": "the first 12 of 24 members",
    }
    assert "derived_from" not in original.metadata
    verified = n2p(made, "bundle", "verify", "signs@2", "--json")
    assert (verified.code, verified.json["largest_difference"]) == (0, 0)


def test_the_lineage_of_a_variant_names_the_run_and_says_that_it_made_the_original(
    made: Project, table: dict[str, Any], kept: dict[str, Any]
) -> None:
    shown = n2p(made, "bundle", "show", kept["kept"][7:19])
    assert f"made from  {table['original']['bundle'][:19]}: the first 12 of 24 members (fewer-half)" in shown.stdout
    assert ", which made the original" in shown.stdout
    lineage = find_lineage(Store(made.home), kept["kept"])
    assert lineage and lineage.run_id == made.run_folders[0].name
    original = find_lineage(Store(made.home), table["original"]["bundle"])
    assert original and original.derived == () and original.run_id == lineage.run_id


def test_a_variant_is_gated_against_its_original_and_becomes_the_next_version(
    made: Project, table: dict[str, Any], kept: dict[str, Any]
) -> None:
    champion = [each for each in kept["gates"]["verdicts"] if each["gate"] == "quality.champion"]
    assert [each["status"] for each in champion] == ["pass"] and kept["gates"]["against"] == table["original"]["bundle"]
    assert (kept["registered"]["version"], kept["registered"]["derived_from"]) == (2, table["original"]["bundle"])
    registry = Registry(Store(made.home))
    one, two = registry.versions("signs")[:2]
    assert "accuracy of the run" in registry.metrics(one)
    measured = registry.metrics(two)  # the run has measured another model
    assert "accuracy of the run" not in measured and measured["accuracy"] == pytest.approx(
        kept["variants"][0]["metric"]["number"], abs=1e-6
    )
    again = n2p(made, "register", kept["kept"][7:19], "--name", "signs", "--json")
    assert (again.code, again.json["version"]) == (0, 2)
    promoted = n2p(made, "promote", "signs", "2", "--to", "staging")
    assert promoted.code == 0, promoted


def test_original_and_variant_are_fetched_from_mlflow_each_as_it_was(made: Project, kept: dict[str, Any]) -> None:
    store = Store(made.home)
    registry = Registry(store)
    for version in registry.versions("signs")[:2]:
        remove_bundle(store.bundle(version.bundle))
        assert registry.bundle(version).digest == version.bundle


def test_a_variant_that_a_gate_refuses_is_kept_and_not_registered(made: Project, table: dict[str, Any]) -> None:
    versions = len(Registry(Store(made.home)).versions("signs"))
    done = n2p(made, "compress", "signs@1", "--keep", "distilled-linear", "--gate", "--json")
    assert done.code == 1, done
    assert "quality.champion" in {each["gate"] for each in done.json["gates"]["verdicts"] if each["status"] == "fail"}
    assert done.json["registered"] is None and Store(made.home).bundle(done.json["kept"]).exists()
    assert len(Registry(Store(made.home)).versions("signs")) == versions


def test_the_certificate_of_a_variant_is_that_of_its_original(made: Project, kept: dict[str, Any]) -> None:
    (made.folder / "policy.toml").write_text("[gates.serving]\ncertificate = 'bytes'\n")
    asked = ("gate", kept["kept"][7:19], "--only", "serving.certificate", "--policy", "policy.toml", "--json")
    assert n2p(made, *asked).code == 1
    certificate = made.run_folders[0] / "certificate.json"
    certificate.write_text('{"level": "bytes"}')
    try:
        assert n2p(made, *asked).code == 0
    finally:
        certificate.unlink()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("signs", "--kind", "smaller"), "there is no kind 'smaller'"),
        (("signs", "--keep", "smaller-half"), "there is no kind 'smaller-half' of variant"),
        (
            ("signs", "--keep", "quantised-float16"),
            "there is no variant 'quantised-float16': RandomForestClassifier has no weights",
        ),
        (("signs", "--gate"), "nothing to gate"),
        (("signs", "--name", "other"), "nothing to gate or to register"),
        (("sings",), "there is no run 'sings'"),
    ],
)
def test_wrong_usage(made: Project, arguments: tuple[str, ...], what: str) -> None:
    done: Done = n2p(made, "compress", *arguments, "--json")
    assert done.code == 2 and what in done.error["what"], done


def test_lost_tables_are_told_by_exit_code(made: Project, tmp_path: Path) -> None:
    shutil.copytree(made.home, tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "data")
    done = n2p(made, "compress", "signs@1", "--json", N2P_HOME=str(tmp_path / "lost"))
    assert done.code == 3 and done.error["type"] == "StoreError", done


def test_a_bundle_that_no_run_made_cannot_be_registered(made: Project, tmp_path: Path, kept: dict[str, Any]) -> None:
    store = Store(made.home)
    with pytest.raises(NotFoundError, match="no run of this store made the bundle"):
        Registry(Store(tmp_path / "other")).register_bundle(open_bundle(store.bundle(kept["kept"])), "signs")
