"""Explanations: they add up to what the model says, are those of shap, and are refused with a reason where there are none."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as some
from pipelines import NUMERIC, TEXTS, fitted, flights, prepared, targets
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeRegressor
from test_scorer import bundle_of

from notebook_to_prod.errors import DataError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.explain import explainer as explainers
from notebook_to_prod.package.explain.explainer import Explainer, TreeExplainer, explainer_of
from notebook_to_prod.package.explain.origins import NotExplained, feature_columns, transformers_and_model
from notebook_to_prod.package.explain.shapley import TreeShapley
from notebook_to_prod.package.explain.trees import tree_model
from notebook_to_prod.package.schema import infer_schema, to_rows, to_table
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.export.generate import _runtime_texts
from notebook_to_prod.serve.predictor import Predictor, load_predictor

FEW = 12  # Rows to explain


def asked(pipeline: Any, table: Any) -> tuple[Explainer, list[tuple[Any, ...]]]:
    """What explains a pipeline, and the first rows of its table."""
    schema = infer_schema(table)
    rows = [tuple(row[name] for name in schema.names) for row in to_rows(schema, table[:40])]
    return explainer_of(pipeline, schema, rows), rows[:FEW]


def says(pipeline: Any, table: Any, output: str) -> np.ndarray:
    """What the whole pipeline says of rows, (rows, outputs)."""
    if output == "probability":
        found = pipeline.predict_proba(table)
        return found[:, 1:] if found.shape[1] == 2 else found
    found = pipeline.decision_function(table) if output == "decision_function" else pipeline.predict(table)
    return np.reshape(np.log(found) if output == "log_prediction" else found, (len(found), -1))


def require_sum(pipeline: Any, table: Any) -> np.ndarray:
    """Explain rows; the contributions, which add up to what the pipeline says."""
    explainer, rows = asked(pipeline, table)
    assert isinstance(explainer, TreeExplainer)
    found = explainer(rows)
    said = says(pipeline, to_table(explainer.schema, to_rows(explainer.schema, table[:FEW])), found.output)
    assert found.contributions.shape == (FEW, len(explainer.schema.names), said.shape[1])
    np.testing.assert_allclose(found.base + found.contributions.sum(axis=1), said, rtol=1e-12, atol=1e-12)
    return found.contributions


# What contributions are


def column_of(feature: str, names: list[str]) -> int:
    """The column of a feature, by the name that scikit-learn gives it."""
    plain = feature.rpartition("__")[2].removeprefix("missingindicator_")
    return names.index(max((name for name in names if plain.startswith(name)), key=len))


TREES = [
    "RandomForestClassifier",
    "RandomForestClassifier, three named classes",
    "RandomForestRegressor",
    "ExtraTreesClassifier",
    "ExtraTreesRegressor",
    "DecisionTreeClassifier",
    "DecisionTreeRegressor",
    "GradientBoostingClassifier",
    "GradientBoostingRegressor",
    "HistGradientBoostingRegressor",
    "FixedThresholdClassifier",
]


@pytest.mark.parametrize("name", TREES)
def test_contributions_are_those_of_shap(name: str) -> None:
    shap = pytest.importorskip("shap")
    pipeline, table = fitted(name, 200)
    found = require_sum(pipeline, table)
    before, last = transformers_and_model(pipeline)
    made: Any = table[:FEW]
    features = np.asarray(table.columns)
    for _, part in before:
        made, features = part.transform(made), part.get_feature_names_out(features)
    made = made.toarray() if hasattr(made, "toarray") else np.asarray(made, dtype=float)
    explainer = shap.TreeExplainer(last, feature_perturbation="tree_path_dependent")
    values = np.reshape(explainer.shap_values(made, check_additivity=False), (FEW, len(features), -1))
    values = values[:, :, 1:] if values.shape[2] == 2 else values
    expected = np.zeros_like(found)
    for place, feature in enumerate(features):
        expected[:, column_of(feature, list(table.columns))] += values[:, place]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    assert np.abs(found).max() > 1e-3


OTHERS = [
    "HistGradientBoostingClassifier",
    "HistGradientBoostingClassifier, from dtype",
    "HistGradientBoostingRegressor, Poisson",
    "array: RandomForestClassifier",
    "array: QuantileTransformer, ExtraTrees",
    "array: HistGradientBoosting",
    "array: GradientBoosting, exponential",
    "array: trees of two numbers",
]


@pytest.mark.parametrize("name", OTHERS)
def test_contributions_add_up(name: str) -> None:
    found = require_sum(*fitted(name, 200))
    assert np.abs(found).max() > 1e-3


def by_definition(trees: Any, matrix: np.ndarray, width: int) -> np.ndarray:
    """Shapley values of each feature for the game of path-dependent expectations, subset by subset."""
    from itertools import combinations
    from math import factorial

    def expected(node: int, values: np.ndarray, known: frozenset[int]) -> float:
        if (feature := int(trees.feature[node])) < 0:
            return float(trees.value[node, 0])
        ways = int(trees.left[node]), int(trees.right[node])
        if feature in known:
            value = values[feature]
            left = trees.missing_left[node] if np.isnan(value) else value <= trees.threshold[node]
            return expected(ways[0] if left else ways[1], values, known)
        return sum(trees.cover[way] * expected(way, values, known) for way in ways) / trees.cover[node]

    found = np.zeros((len(matrix), width))
    for row, values in enumerate(matrix):
        said = {
            frozenset(subset): sum(expected(int(root), values, frozenset(subset)) for root in trees.roots)
            for size in range(width + 1)
            for subset in combinations(range(width), size)
        }
        for subset, number in said.items():
            for feature in set(range(width)) - subset:
                weight = factorial(len(subset)) * factorial(width - len(subset) - 1) / factorial(width)
                found[row, feature] += weight * (said[subset | {feature}] - number)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_categories_and_missing_values_are_explained_by_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(150, 4))
    matrix[:, 0], matrix[:, 3] = random.integers(0, 6, 150), random.integers(0, 4, 150)
    matrix[random.random(matrix.shape) < 0.15] = np.nan
    target = np.nan_to_num(matrix[:, 0] % 2 * matrix[:, 1] + matrix[:, 2] * (matrix[:, 3] == 1)) + np.isnan(
        matrix[:, 1]
    )
    boosted = HistGradientBoostingRegressor(
        max_iter=4, max_leaf_nodes=9, min_samples_leaf=5, categorical_features=[3, 0], random_state=0
    ).fit(matrix, target)
    model = tree_model(boosted)
    [(trees, _)] = model.trees
    rows = model.matrix(matrix[:6])
    width, found = rows.shape[1], TreeShapley(trees, np.arange(rows.shape[1]), rows.shape[1])(rows)[:, :, 0]
    by_feature = np.stack([found[:, model.origins == each].sum(axis=1) for each in range(4)], axis=1)
    np.testing.assert_allclose(
        found.sum(axis=1) + TreeShapley(trees, np.arange(width), width).base + model.base, boosted.predict(matrix[:6])
    )
    plain = tree_model(DecisionTreeRegressor(max_leaf_nodes=12, random_state=seed).fit(matrix, target))
    [(trees, _)] = plain.trees
    rows = plain.matrix(matrix[:6])
    np.testing.assert_allclose(
        TreeShapley(trees, np.arange(4), 4)(rows)[:, :, 0], by_definition(trees, rows, 4), rtol=0, atol=1e-12
    )
    require_sum(boosted, matrix)
    own = asked(boosted, matrix)
    np.testing.assert_allclose(own[0](own[1][:6]).contributions[:, :, 0], by_feature, rtol=0, atol=1e-12)


def test_deep_trees_lose_nothing() -> None:
    """Each feature sets one row apart, so that a path has some sixty features, which weights of subsets do not survive."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(300, 300)) * 0.01 + 10 * np.eye(300)
    target = 2.0 ** (np.arange(300) % 7) * np.arange(300)
    tree = DecisionTreeRegressor(splitter="random", max_features=1, random_state=0).fit(matrix, target)
    model = tree_model(tree)
    shapley = TreeShapley(model.trees[0][0], np.arange(300), 300)
    assert len(shapley.blocks[0].points) > 20
    found = shapley(model.matrix(matrix))[:, :, 0]
    np.testing.assert_allclose(shapley.base + found.sum(axis=1), tree.predict(matrix), rtol=1e-12, atol=1e-9)


KINDS = {
    "two": [DecisionTreeClassifier, RandomForestClassifier, ExtraTreesClassifier, GradientBoostingClassifier],
    "three": [RandomForestClassifier, GradientBoostingClassifier, HistGradientBoostingClassifier],
    "number": [ExtraTreeRegressor, RandomForestRegressor, ExtraTreesRegressor, GradientBoostingRegressor],
    "positive": [HistGradientBoostingRegressor, DecisionTreeRegressor],
}
NUMBERS = [
    lambda: SimpleImputer(add_indicator=True),
    lambda: make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
    lambda: make_pipeline(SimpleImputer(), KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf")),
    lambda: make_pipeline(SimpleImputer(), SplineTransformer(4)),
    lambda: make_pipeline(SimpleImputer(), FunctionTransformer(np.cbrt)),
]
WORDS = [
    lambda: OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    lambda: OneHotEncoder(min_frequency=20, handle_unknown="infrequent_if_exist", drop="first", sparse_output=False),
    lambda: OrdinalEncoder(encoded_missing_value=-2),
    lambda: TargetEncoder(random_state=0),
]


@given(
    some.sampled_from([(target, kind) for target, kinds in KINDS.items() for kind in kinds]),
    some.sampled_from(NUMBERS),
    some.sampled_from(WORDS),
    some.integers(1, 7),
    some.booleans(),
    some.booleans(),
    some.integers(0, 2**32 - 1),
)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_random_pipelines_add_up(
    kind: Any, numbers: Any, words: Any, depth: int, chosen: bool, weighed: bool, seed: int
) -> None:
    target, made = kind
    table = flights(160).sample(160, random_state=seed % 1000).reset_index(drop=True)
    options = {"max_iter": 6, "min_samples_leaf": 8} if made.__name__.startswith("Hist") else {"n_estimators": 6}
    options = {} if made in (DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeRegressor) else options
    prepare = make_column_transformer((numbers(), NUMERIC), (words(), TEXTS), ("passthrough", ["hour", "wet"]))
    steps = [SelectKBest(k=5)] if chosen else []
    pipeline = make_pipeline(prepare, *steps, made(max_depth=depth, random_state=seed, **options))
    weights = np.random.default_rng(seed).integers(0, 3, 160) if weighed else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = targets(table)["code" if target == "three" else target]
        pipeline.fit(table, wanted, **{} if weights is None else {f"{pipeline.steps[-1][0]}__sample_weight": weights})
        require_sum(pipeline, table)


def test_trees_that_never_split_say_their_base() -> None:
    table = flights(60)
    stump = prepared(RandomForestRegressor(3, max_leaf_nodes=2, min_samples_leaf=40)).fit(table, np.arange(60.0))
    explainer, rows = asked(stump, table)
    found = explainer(rows)
    assert not found.contributions.any() and np.allclose(found.base, stump.predict(table)[0])


def test_a_column_of_its_own_branch_needs_no_knowledge() -> None:
    table = flights(120)
    own = make_pipeline(FunctionTransformer(lambda hours: np.c_[np.sin(hours), np.cos(hours)]), PCA(2))
    prepare = make_column_transformer((own, ["hour"]), (StandardScaler(), ["distance"]), ("drop", ["seats"]))
    pipeline = GridSearchCV(
        Pipeline(
            [("outer", make_pipeline(prepare, "passthrough")), ("model", RandomForestRegressor(8, random_state=0))]
        ),
        {"model__max_depth": [3]},
        cv=2,
    ).fit(table, table["hour"] % 7 + table["distance"] / 500)
    found = require_sum(pipeline, table)
    used = [name for name, values in zip(table.columns, found.transpose(1, 0, 2), strict=True) if values.any()]
    assert used == ["distance", "hour"]


# What has none


def mixed(part: Any) -> Any:
    return make_pipeline(make_column_transformer((part, NUMERIC)), RandomForestRegressor(3, random_state=0))


def squared(values: Any) -> Any:
    return values**2


REFUSED: dict[str, tuple[Any, str, str]] = {
    "components": (mixed(make_pipeline(SimpleImputer(), PCA(2))), "PCA is not known", "columntransformer/pipeline/pca"),
    "neighbours": (mixed(KNNImputer()), "KNNImputer is not known", "columntransformer/knnimputer"),
    "lengths": (mixed(make_pipeline(SimpleImputer(), Normalizer())), "Normalizer is not known", "normalizer"),
    "products": (
        mixed(make_pipeline(SimpleImputer(), PolynomialFeatures())),
        "products of columns",
        "polynomialfeatures",
    ),
    "a-function": (
        mixed(make_pipeline(SimpleImputer(), FunctionTransformer(squared))),
        "FunctionTransformer calls squared",
        "functiontransformer",
    ),
    "another-model": (prepared(DummyClassifier()), "DummyClassifier is neither a sum", "the pipeline"),
    "begins-with-a-model": (
        prepared(GradientBoostingRegressor(n_estimators=2, init=RandomForestRegressor(2))),
        "begins with a RandomForestRegressor",
        "the pipeline",
    ),
    "linear-with-products": (
        make_pipeline(mixed(SimpleImputer())[0], PolynomialFeatures(2), StandardScaler(), LogisticRegression()),
        "LogisticRegression is not a sum over its columns",
        "the pipeline",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_without_exact_contributions_has_a_reason(case: str) -> None:
    pipeline, what, where = REFUSED[case]
    table = flights(80)
    pipeline.fit(table, targets(table)["two"])
    with pytest.raises(NotExplained, match=what) as caught:
        asked(pipeline, table)
    assert str(caught.value.where).endswith(where) and caught.value.remedy and caught.value.exit_code == 2


def test_a_forest_that_says_something_else_than_its_trees_is_found_out() -> None:
    said = {
        "predict": lambda self, rows: 2 * RandomForestRegressor.predict(self, rows),
        "__module__": "sklearn.ensemble",
    }
    forest = type("RandomForestRegressor", (RandomForestRegressor,), said)
    table = flights(80)
    doubled = prepared(forest(5, random_state=0)).fit(table, targets(table)["number"])
    with pytest.raises(NotExplained, match="not a sum") as caught:
        asked(doubled, table)
    assert "do not add up" in str(caught.value.__cause__)


def test_trees_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, table = fitted("RandomForestRegressor", 200)
    explainer, _ = asked(pipeline, table)
    nodes = sum(tree.tree_.node_count for tree in pipeline[-1].estimators_)
    for most, what in ((nodes - 1, "more than"), (nodes + 1, "of at most")):
        monkeypatch.setattr(explainers, "_MOST_CELLS", most)
        with pytest.raises(NotExplained, match=f"too large: .*{what}"):
            asked(pipeline, table)
    monkeypatch.undo()
    assert 1 < explainer.rows < 25_000_000 // nodes


def test_features_keep_their_columns_however_columns_are_ordered() -> None:
    table = flights(100)
    prepare = make_column_transformer((StandardScaler(), ["hour", "distance"]), remainder="drop").fit(table)
    assert feature_columns(prepare, np.arange(len(table.columns))).tolist() == [3, 0]


# In your own process, and over HTTP


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pipeline, table = fitted("RandomForestClassifier", 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_HOME", str(tmp_path_factory.mktemp("store")))
        return bundle_of(tmp_path_factory.mktemp("forest"), pipeline, table)


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return load_predictor(bundle.path, name="flights", version="1")


def test_a_predictor_explains_rows_and_as_many_as_are_asked(predictor: Predictor, bundle: Bundle) -> None:
    rows = bundle.golden["rows"]
    found = predictor.explain(rows)
    assert predictor.explainer is predictor.explainer
    probabilities = np.array(predictor.predict(rows).probabilities)[:, 1:]
    np.testing.assert_allclose(found.base + found.contributions.sum(axis=1), probabilities, rtol=0, atol=1e-12)
    assert predictor.explain([]).contributions.shape == (0, 8, 1)
    with pytest.raises(DataError, match="valid number") as caught:
        predictor.explain([rows[0], rows[0] | {"distance": "far"}])
    assert caught.value.where == "row 1, 'distance'"
    held, predictor.explainer.rows = predictor.explainer.rows, 7
    try:
        again = predictor.explain(rows)
    finally:
        predictor.explainer.rows = held
    np.testing.assert_array_equal(again.contributions, found.contributions)
    assert found._repr_markdown_().count("\n") == len(rows) + 1


def test_a_forest_is_explained_over_http(predictor: Predictor, bundle: Bundle) -> None:
    client, rows = TestClient(create_app(predictor)), bundle.golden["rows"]
    answer = client.post("/explain", json=rows[:3]).json()
    assert (answer["output"], answer["predictions"]) == ("probability", bundle.golden["predictions"][:3])
    assert answer["contributions"] == predictor.explain(rows[:3]).to_list()
    assert answer["contributions"][0].keys() == rows[0].keys()
    assert answer["contributions"][0]["weekday"] == 0, "the pipeline drops it"
    assert client.post("/explain", json=[]).json() == client.post("/predict", json=[]).json()
    many = client.post("/explain", json=rows[:1] * (predictor.explainer.rows + 1))
    assert (many.status_code, many.json()["detail"][0]["type"]) == (422, "too_long")
    assert f"{predictor.explainer.rows} rows" in many.json()["detail"][0]["msg"]


def test_the_service_needs_no_shap(bundle: Bundle, tmp_path: Path) -> None:
    for name, text in _runtime_texts().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    script = f"""
import sys
sys.modules["shap"] = None
from notebook_to_prod.serve.predictor import load_predictor
predictor = load_predictor({str(bundle.path)!r})
found = predictor.explain(predictor.bundle.golden["rows"][:2])
print(found.output, sys.modules["notebook_to_prod.package.explain.trees"].__file__)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["probability", str(tmp_path / "notebook_to_prod/package/explain/trees.py")], (
        done.stderr
    )


def test_an_explanation_of_several_outputs_has_a_list_a_column() -> None:
    explainer, rows = asked(*fitted("RandomForestClassifier, three named classes", 200))
    told = explainer(rows[:1]).to_dict()
    assert len(told["base"]) == 3 == len(told["contributions"][0]["distance"])
    assert abs(sum(told["base"]) - 1) < 1e-12
    assert abs(sum(sum(values) for values in told["contributions"][0].values())) < 1e-12, (
        "a class wins what others lose"
    )


def test_tables_keep_the_type_that_the_pipeline_was_fitted_on() -> None:
    table = pd.DataFrame({"one": np.arange(60, dtype="float32") / 7, "two": np.arange(60) % 5})
    require_sum(RandomForestRegressor(5, random_state=0).fit(table, table["one"] * table["two"]), table)
