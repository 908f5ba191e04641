"""What a bundle answers through its plan is what its pipeline says, and a plan that does not work here does not serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pipelines import fitted, flights, prepared, targets
from sklearn.ensemble import BaggingClassifier, IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from notebook_to_prod.package.bundle import PLAN, Bundle, largest_difference, load_pipeline, predict, write_bundle
from notebook_to_prod.package.code import collect_code
from notebook_to_prod.package.compile.scorer import load_scorer
from notebook_to_prod.package.contents import Tables, bundle_contents
from notebook_to_prod.package.schema import to_rows, to_table
from notebook_to_prod.serve.predictor import load_predictor

MODELS = (
    "RandomForestClassifier, three named classes",
    "ExtraTreesRegressor",
    "HistGradientBoostingClassifier",
    "LogisticRegression",
    "KNeighborsClassifier",
    "MLPRegressor",
)


def contents_of(pipeline: Any, table: Any, target: Any) -> dict[str, bytes]:
    """The files of a bundle whose training rows are also its test rows."""
    return bundle_contents(pipeline, Tables(table, target, table, target), collect_code(pipeline, []), {"seed": 0})


def bundle_of(folder: Path, pipeline: Any, table: Any) -> Bundle:
    """A bundle of a fitted pipeline, whose predictions are its targets."""
    return write_bundle(folder / "bundles", contents_of(pipeline, table, pipeline.predict(table)))


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_HOME", str(tmp_path / "store"))


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_pipelines(name: str, tmp_path: Path) -> None:
    pipeline, table = fitted(name, 200)
    bundle = bundle_of(tmp_path, pipeline, table)
    assert PLAN in bundle.files and bundle.metadata["plan"]["compiled"]
    predictor = load_predictor(bundle.path)
    assert predictor.scorer.engine == "compiled plan"
    rows = to_rows(bundle.schema, table)
    whole = predict(pipeline, to_table(bundle.schema, rows))
    asked = predictor.predict(rows)
    alone = [predictor.score([row]) for row in rows[:50]]
    for expected, found in (
        (whole.predictions, asked.predictions),
        (whole.probabilities, asked.probabilities),
        (whole.predictions[:50], [each.predictions[0] for each in alone]),
    ):
        largest_difference(expected, found)


def test_a_table_goes_where_it_is_answered_sooner(tmp_path: Path) -> None:
    table = flights()
    model = prepared(KNeighborsRegressor(algorithm="kd_tree")).fit(table, targets(table)["number"])
    scorer = load_scorer(bundle := bundle_of(tmp_path, model, table), model)
    rows = bundle.golden["rows"]
    scorer.score(rows[:5])
    assert scorer._plan_wins == {}, "what is always faster was measured"
    for _ in range(2):
        largest_difference(bundle.golden["predictions"] * 10, scorer.score(rows * 10).predictions)
    assert [*scorer._plan_wins] == [10 ** round(np.log10(len(rows) * 10))]
    for wins in (True, False):
        scorer._plan_wins = dict.fromkeys(scorer._plan_wins, wins)
        largest_difference(bundle.golden["predictions"] * 10, scorer.score(rows * 10).predictions)


def test_no_plan_says_why(tmp_path: Path) -> None:
    table = flights()[["distance", "hour"]]
    model = make_pipeline(StandardScaler(), BaggingClassifier(n_estimators=3)).fit(table, targets(flights())["two"])
    odd = make_pipeline(StandardScaler(), IsolationForest(n_estimators=5, random_state=0)).fit(table)
    for pipeline in (model, odd):
        bundle = bundle_of(tmp_path, pipeline, table)
        about = bundle.metadata["plan"]
        if not about["compiled"]:
            scorer = load_scorer(bundle, pipeline)
            assert about["reason"] and about["reason"] in scorer.engine and PLAN not in bundle.files
            assert scorer.score(bundle.golden["rows"]).predictions == bundle.golden["predictions"]
            return
    pytest.fail("both have a plan: find a model that has none")


def test_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = flights()[["distance", "hour"]]
    model = make_pipeline(StandardScaler(), Ridge()).fit(table, targets(flights())["number"])
    bundle = bundle_of(tmp_path, model, table)
    monkeypatch.setenv("N2P_PLAN", "off")
    predictor = load_predictor(bundle.path)
    assert predictor.scorer.plan is None and "N2P_PLAN" in predictor.scorer.engine
    assert predictor.predict(bundle.golden["rows"]).predictions == bundle.golden["predictions"]


def test_a_plan_that_says_something_else_does_not_serve(tmp_path: Path) -> None:
    table = flights()[["distance", "hour"]]
    models = [
        make_pipeline(StandardScaler(), RandomForestRegressor(5, random_state=seed)).fit(
            table, targets(flights())["number"]
        )
        for seed in range(2)
    ]
    one, other = (contents_of(model, table, model.predict(table)) for model in models)
    bundle = write_bundle(tmp_path / "bundles", one | {PLAN: other[PLAN]})
    predictor = load_predictor(bundle.path)
    assert predictor.scorer.plan is None and "does not work here" in predictor.scorer.engine
    assert predictor.predict(bundle.golden["rows"]).predictions == bundle.golden["predictions"]
    damaged = write_bundle(tmp_path / "bundles", one | {PLAN: one[PLAN][:200]})
    assert "cannot be read" in load_predictor(damaged.path).scorer.engine


def test_what_the_pipeline_refuses_is_refused(tmp_path: Path) -> None:
    table = flights()[["carrier", "distance"]].fillna({"carrier": "??"})
    encode = OneHotEncoder(handle_unknown="error", sparse_output=False)
    model = make_pipeline(encode, RandomForestClassifier(5, random_state=0)).fit(
        table[["carrier"]], targets(flights())["two"]
    )
    bundle = bundle_of(tmp_path, model, table[["carrier"]])
    scorer = load_scorer(bundle, load_pipeline(bundle))
    assert scorer.plan is not None
    with pytest.raises(ValueError, match="unknown categories"):
        scorer.score([{"carrier": "a carrier that nobody knows"}])


def test_the_same_pipeline_has_the_same_plan(tmp_path: Path) -> None:
    pipeline, table = fitted("RandomForestClassifier", 200)
    parallel = pipeline.set_params(model__n_jobs=2)
    made = [contents_of(parallel, table, pipeline.predict(table)) for _ in range(2)]
    assert made[0] == made[1]


def test_integers_that_miss_values_and_moments(tmp_path: Path) -> None:
    table = flights()[["distance", "hour"]].astype({"hour": "Int64"})
    table.loc[::7, "hour"] = pd.NA
    model = prepared(RandomForestRegressor(5, random_state=0))
    pipeline = make_pipeline(model.named_steps["prepare"].transformers[0][1], model.named_steps["model"])
    pipeline.fit(table, targets(flights())["number"])
    bundle = bundle_of(tmp_path, pipeline, table)
    scorer = load_scorer(bundle, pipeline)
    rows = [{"distance": 100.5, "hour": None}, {"distance": 3.0, "hour": 7}]
    largest_difference(predict(pipeline, to_table(bundle.schema, rows)).predictions, scorer.score(rows).predictions)


def test_a_predictor_of_another_plan_is_another_predictor(tmp_path: Path) -> None:
    pipeline, table = fitted("LogisticRegression", 200)
    predictor = load_predictor(bundle_of(tmp_path, pipeline, table).path)
    off = replace(predictor, scorer=replace(predictor.scorer, plan=None, reason="for comparison"))
    rows = predictor.bundle.golden["rows"]
    largest_difference(off.score(rows).probabilities, predictor.score(rows).probabilities)
