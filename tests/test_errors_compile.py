"""Every part of a pipeline that has no exact plan is named, with why; rows that scikit-learn refuses are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from provoked import Wrong, check, each_of, without_module
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score, make_scorer
from sklearn.metrics.pairwise import linear_kernel
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.naive_bayes import CategoricalNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from notebook_to_prod.errors import DependencyError
from notebook_to_prod.package.compile.plan import Plan, compile_pipeline
from notebook_to_prod.package.compile.step import NotCompiled, Refused

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

ROWS = 60
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.gamma(2.0, 1.0, (ROWS, 3)) + 0.1
TABLE = pd.DataFrame(
    {
        "distance": NUMBERS[:, 0],
        "wet": np.arange(ROWS) % 3 == 0,
        "hour": np.arange(ROWS) % 24,
        "carrier": np.array(["UA", "B6", "DL"], dtype=object)[np.arange(ROWS) % 3],
        "weekday": pd.Categorical(np.array(["Mon", "Tue"])[np.arange(ROWS) % 2]),
        "when": pd.date_range("2013-01-01", periods=ROWS),
    }
)
TEXTS = pd.Series(["storm and fog", "clear sky"] * (ROWS // 2), name="report")
TWO, THREE = np.arange(ROWS) % 2, np.arange(ROWS) % 3
BOTH = np.column_stack([TWO, THREE == 0]).astype(int)
VALUES = NUMBERS.sum(axis=1)
TREE, LINE, TALL = DecisionTreeClassifier(max_depth=2), LogisticRegression(), KNeighborsClassifier(3)


class Scaled(TransformerMixin, BaseEstimator):
    """One's own, of any table."""

    def fit(self, rows: Any, target: Any = None) -> Scaled:
        self.n_features_in_ = rows.shape[1]
        if hasattr(rows, "columns"):
            self.feature_names_in_ = np.array(rows.columns, dtype=object)
        return self

    def transform(self, rows: Any) -> Any:
        return np.asarray(rows) / 2


class Compared(Scaled):
    """One's own that one row alone is not enough for."""

    def transform(self, rows: Any) -> Any:
        if len(rows) < 2:
            raise ValueError("there is nothing to compare with")
        return np.asarray(rows) / 2


def upright(column: Any) -> Any:
    return np.asarray(column).reshape(-1, 1)


def nearest_count(distances: Any) -> Any:
    return np.ones_like(distances)


def no_plan(*parts: Any, of: Any = NUMBERS, to: Any = TWO, **about: Any) -> Callable[[], Plan]:
    """Fit a pipeline, and ask for its plan."""

    def act() -> Plan:
        table = of() if callable(of) else of
        return compile_pipeline(make_pipeline(*parts).fit(table, to, **about), table)

    return act


def refused(where: str, what: str, act: Callable[[], Any]) -> Wrong:
    """The pipeline itself goes on answering, and that is said."""
    return Wrong(act, NotCompiled, what, where, "nothing: the pipeline itself answers, only slower")


def some(part: Any, *columns: str, rest: str = "drop") -> ColumnTransformer:
    return ColumnTransformer([("some", part, list(columns))], remainder=rest, sparse_threshold=1.0)


# Transformers


def with_gaps() -> pd.DataFrame:
    """An object column in which some values are None, some NaN."""
    texts = TABLE["carrier"].astype(object).copy()
    texts[:5] = None
    texts[5:9] = np.nan
    return pd.DataFrame({"carrier": texts.astype(object), "origin": TABLE["carrier"]})


def emptied() -> pd.DataFrame:
    return TABLE.assign(origin=pd.Series([None] * ROWS, dtype=object))


def by_hand() -> Plan:
    pipeline = make_pipeline(StandardScaler(), TREE).fit(NUMBERS, TWO)
    pipeline.steps[0] = ("dbscan", DBSCAN())
    return compile_pipeline(pipeline, NUMBERS)


def reordered() -> Plan:
    pipeline = make_pipeline(some("passthrough", "hour", rest="passthrough"), TREE)
    return compile_pipeline(pipeline.fit(TABLE[["distance", "hour"]], TWO), TABLE[["hour", "distance"]])


FIRST = {
    "categories of float32": refused(
        "onehotencoder",
        "encodes a column of float32",
        no_plan(OneHotEncoder(), LINE, of=lambda: TABLE[["distance"]].round(0).astype("float32")),
    ),
    "categories of scaled float32": refused(
        "ordinalencoder",
        "encodes numbers of float32",
        no_plan(StandardScaler(), OrdinalEncoder(), TREE, of=NUMBERS.round(0).astype("float32")),
    ),
    "a text that stands for nothing": refused(
        "simpleimputer",
        "fills cells equal to 'B6'",
        no_plan(
            some(
                make_pipeline(SimpleImputer(missing_values="B6", strategy="most_frequent"), OneHotEncoder()), "carrier"
            ),
            TREE,
            of=TABLE,
        ),
    ),
    "a column of nothing": refused(
        "simpleimputer",
        "fills a column that was empty in training",
        no_plan(
            some(
                make_pipeline(SimpleImputer(missing_values=None, strategy="most_frequent"), OneHotEncoder()),
                "carrier",
                "origin",
            ),
            TREE,
            of=emptied,
        ),
    ),
    "moments to fill": refused(
        "simpleimputer",
        "fills datetimes or a series",
        no_plan(
            some(make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), "carrier", "when"),
            TREE,
            of=TABLE,
        ),
    ),
    "two kinds of nothing": refused(
        "simpleimputer",
        "marks missing values of another kind",
        no_plan(
            make_pipeline(SimpleImputer(strategy="most_frequent", add_indicator=True), OneHotEncoder()),
            TREE,
            of=with_gaps,
        ),
    ),
    "a number of numpy that stands for nothing": refused(
        "simpleimputer", "fills numbers equal to", no_plan(SimpleImputer(missing_values=np.int64(-1)), TREE)
    ),
    "a sparse matrix to fill": refused(
        "simpleimputer",
        "fills a sparse matrix",
        no_plan(some(OneHotEncoder(), "carrier"), SimpleImputer(), TREE, of=TABLE),
    ),
    "numbers among objects to fill": refused(
        "simpleimputer",
        "fills numbers as objects",
        no_plan(
            SimpleImputer(strategy="most_frequent"), TREE, of=TABLE[["distance", "wet"]].astype({"distance": object})
        ),
    ),
    "an indicator that may raise": refused(
        "missingindicator",
        "an indicator that may raise",
        no_plan(MissingIndicator(), TREE, of=np.where(NUMBERS > 2, np.nan, NUMBERS)),
    ),
    "no column": refused(
        "columntransformer", "drops every column", no_plan(some("drop", "hour"), DummyClassifier(), of=TABLE)
    ),
    "a column of a matrix alone": refused(
        "columntransformer",
        "gives one column of numbers as a series",
        no_plan(StandardScaler(), ColumnTransformer([("one", FunctionTransformer(upright), 0)]), TREE),
    ),
    "columns in another order": refused("columntransformer", "was fitted on other columns", reordered),
    "no transformer": refused("dbscan", "DBSCAN has no exact plan", by_hand),
    "one's own that fails on a row": refused(
        "compared", "Compared fails on an example row: ValueError", no_plan(Compared(), TREE, of=TABLE[["distance"]])
    ),
    "one's own behind tables": refused(
        "scaled",
        "Scaled of your own stands behind other transformers' tables",
        no_plan(StandardScaler().set_output(transform="pandas"), Scaled(), TREE, of=TABLE[["distance", "hour"]]),
    ),
    "quantiles of a sparse matrix": refused(
        "quantiletransformer",
        "quantiles of a sparse matrix",
        no_plan(some(OneHotEncoder(), "carrier"), QuantileTransformer(n_quantiles=5), TREE, of=TABLE),
    ),
    "bins in float32": refused(
        "kbinsdiscretizer",
        "bins in float32",
        no_plan(KBinsDiscretizer(3, encode="ordinal", dtype=np.float32, quantile_method="linear"), TREE),
    ),
    "a function of columns of several types": refused(
        "functiontransformer",
        "log1p of a sparse matrix, or of columns of several types",
        no_plan(FunctionTransformer(np.log1p), TREE, of=TABLE[["distance", "wet"]].astype("float32").assign(wet=True)),
    ),
    "powers of nothing": refused(
        "polynomialfeatures", "powers of a sparse matrix, or of degree 0", no_plan(PolynomialFeatures(0), TREE)
    ),
    "a sparse matrix to normalize": refused(
        "normalizer",
        "normalizes a sparse matrix",
        no_plan(some(OneHotEncoder(), "carrier"), Normalizer(), TREE, of=TABLE),
    ),
    "terms of a category": refused(
        "some",
        "counts terms of something else than one column of text",
        no_plan(ColumnTransformer([("some", CountVectorizer(), "weekday")]), TREE, of=TABLE),
    ),
    "texts cut by one's own function": refused(
        "countvectorizer",
        "cuts texts by a function of its own, tokenizer",
        no_plan(CountVectorizer(tokenizer=str.split, token_pattern=None), TREE, of=TEXTS),
    ),
    "terms in float32": refused(
        "tfidftransformer",
        "in float32",
        no_plan(CountVectorizer(dtype=np.float32), TfidfTransformer(), TREE, of=TEXTS),
    ),
    "numbers written as texts": refused(
        "decisiontreeclassifier",
        "takes columns of string as numbers",
        no_plan(TREE, of=TABLE[["hour"]].astype(str).astype(object)),
    ),
    "half precision": refused(
        "standardscaler",
        "takes columns of float16",
        no_plan(StandardScaler(), TREE, of=TABLE[["distance"]].astype("float16")),
    ),
}

# Models


def extreme(objective: str = "reg:squarederror", booster: str = "gbtree", outputs: int = 0, **changes: Any) -> Any:
    """A model of XGBoost, which no lock of this project has, as far as a plan reads it: its JSON."""
    tree = {
        "split_type": [0, 0, 0],
        "left_children": [1, -1, -1],
        "right_children": [2, -1, -1],
        "split_conditions": [0.5, 1.0, 2.0],
        "split_indices": [0, 0, 0],
        "default_left": [0, 0, 0],
    }
    held = {"trees": [tree], "tree_info": [0], "iteration_indptr": [0, 1]} | changes
    held["trees"] = [tree | each for each in held["trees"]]
    learner = {
        "gradient_booster": {"name": booster, "model": held},
        "objective": {"name": objective},
        "learner_model_param": {"num_class": str(outputs), "base_score": "[5E-1]"},
    }

    class XGBRegressor:
        def get_booster(self) -> Any:
            return self

        def save_raw(self, raw_format: str) -> bytes:
            return json.dumps({"learner": learner}).encode()

        def predict(self, rows: Any) -> Any:
            return np.zeros(len(rows))

    XGBRegressor.__module__ = "xgboost.sklearn"
    return compile_pipeline(XGBRegressor(), NUMBERS)


def light(**settings: Any) -> Any:
    return lightgbm.LGBMRegressor(n_estimators=3, min_child_samples=2, verbose=-1, **settings)


def lacking() -> list[tuple[Any, Any]]:
    """Parts to calibrate by, of which one has not all classes."""
    rows = np.arange(ROWS)
    return [(rows[THREE < 2], rows), (rows, rows)]


def tuned() -> Any:
    names = np.array(["early", "late"])[TWO]
    scoring = make_scorer(f1_score, pos_label="early")
    return no_plan(TunedThresholdClassifierCV(TREE, scoring=scoring, cv=2), to=names)()


def without_activation() -> Any:
    pipeline = make_pipeline(MLPClassifier((2,), max_iter=2)).fit(NUMBERS, TWO)
    pipeline[-1].set_params(activation="softplus")
    return compile_pipeline(pipeline, NUMBERS)


FROZEN = FrozenEstimator(DecisionTreeClassifier(max_depth=2).fit(NUMBERS[THREE < 2], THREE[THREE < 2]))

MODELS = {
    "LightGBM's categories": refused(
        "lgbmregressor",
        "trees with categories or linear leaves",
        no_plan(light(linear_tree=True), to=VALUES),
    ),
    "LightGBM's zeros": refused(
        "lgbmregressor", "zero as a missing value", no_plan(light(zero_as_missing=True), to=VALUES)
    ),
    "LightGBM's forest": refused(
        "lgbmregressor",
        "an average of trees, or none",
        no_plan(light(boosting_type="rf", subsample=0.5, subsample_freq=1), to=VALUES),
    ),
    "LightGBM's other losses": refused(
        "lgbmregressor", "LightGBM's objective mape", no_plan(light(objective="mape"), to=VALUES)
    ),
    "XGBoost's categories": refused(
        "the pipeline", "trees with categories", lambda: extreme(trees=[{"split_type": [1, 0, 0]}])
    ),
    "XGBoost's dropped trees": refused("the pipeline", "boosts by dart", lambda: extreme(booster="dart")),
    "XGBoost's several trees": refused(
        "the pipeline",
        "classes with several trees a round",
        lambda: extreme("multi:softprob", outputs=3, trees=[{}, {}], tree_info=[0, 0]),
    ),
    "XGBoost's other losses": refused(
        "the pipeline", "XGBoost's objective reg:quantileerror", lambda: extreme("reg:quantileerror")
    ),
    "neighbours of several outputs": refused(
        "kneighborsclassifier", "classifies several outputs", no_plan(TALL, to=BOTH)
    ),
    "neighbours among whole numbers": refused(
        "kneighborsclassifier",
        "neighbours among rows of int64",
        no_plan(TALL, of=TABLE[["hour"]]),
    ),
    "neighbours by angle": refused(
        "kneighborsclassifier", "neighbours by cosine", no_plan(KNeighborsClassifier(3, metric="cosine"))
    ),
    "neighbours by one's own function": refused(
        "kneighborsclassifier",
        "neighbours by a function of your own",
        no_plan(KNeighborsClassifier(3, weights=nearest_count)),
    ),
    "vectors by one's own kernel": refused("svc", "a kernel of its own", no_plan(SVC(kernel=linear_kernel))),
    "trees that know other classes": refused(
        "baggingclassifier",
        "members know other classes, or have no probabilities",
        no_plan(BaggingClassifier(KNeighborsClassifier(1), 20, max_samples=3, random_state=0), to=THREE),
    ),
    "a boosted line": refused(
        "adaboostclassifier", "boosts something else than trees", no_plan(AdaBoostClassifier(LINE, n_estimators=2))
    ),
    "a calibrated member of fewer classes": refused(
        "calibratedclassifiercv",
        "a member knows other classes",
        no_plan(CalibratedClassifierCV(TREE, cv=lacking()), to=THREE),
    ),
    "a temperature": refused(
        "calibratedclassifiercv",
        "calibrates by temperature",
        no_plan(CalibratedClassifierCV(LINE, method="temperature", cv=2)),
    ),
    "a stack of several outputs": refused(
        "stackingclassifier",
        "classifies several outputs",
        no_plan(StackingClassifier([("a", RidgeClassifier())], RidgeClassifier(), cv=2), to=BOTH),
    ),
    "a stack of labels": refused(
        "stackingclassifier",
        "a member gives labels only",
        no_plan(StackingClassifier([("a", TREE)], LINE, stack_method="predict", cv=2)),
    ),
    "votes on other classes": refused(
        "votingclassifier",
        "members vote on other classes",
        no_plan(VotingClassifier([("a", FROZEN), ("b", TREE)]), to=THREE),
    ),
    "votes without probabilities": refused(
        "votingclassifier",
        "a member has no probabilities",
        no_plan(VotingClassifier([("a", RidgeClassifier())], voting="soft")),
    ),
    "a guess by chance": refused(
        "dummyclassifier", "guesses by 'stratified'", no_plan(DummyClassifier(strategy="stratified"))
    ),
    "a network of another curve": refused("mlpclassifier", "a network with softplus and logistic", without_activation),
    "a network of several outputs": refused(
        "mlpclassifier", "classifies several outputs", no_plan(MLPClassifier((2,), max_iter=2), to=BOTH)
    ),
    "a forest of several outputs": refused(
        "randomforestclassifier", "classifies several outputs", no_plan(RandomForestClassifier(2), to=BOTH)
    ),
    "boosting that begins with a line": refused(
        "gradientboostingclassifier",
        "begins with a model of its own",
        no_plan(GradientBoostingClassifier(n_estimators=2, init=LINE)),
    ),
    "a threshold on scores": refused(
        "fixedthresholdclassifier",
        "a threshold on something else than the second class's probability",
        no_plan(FixedThresholdClassifier(LINE, response_method="decision_function")),
    ),
    "a threshold on the first class": refused("tunedthresholdclassifiercv", "a threshold on the first class", tuned),
    "a target by quantiles": refused(
        "transformedtargetregressor",
        "turns the target back by QuantileTransformer",
        no_plan(
            TransformedTargetRegressor(LinearRegression(), transformer=QuantileTransformer(n_quantiles=5)), to=VALUES
        ),
    ),
    "a plan of numbers asked for probabilities": refused(
        "the pipeline",
        "the plan gives no probabilities",
        lambda: no_plan(LinearRegression(), to=VALUES)().predict_proba([[1.0]] * 3),
    ),
    "a pipeline that is not fitted": refused(
        "the pipeline",
        "a fitted part is not as expected: AttributeError",
        lambda: compile_pipeline(make_pipeline(StandardScaler(), TREE), NUMBERS),
    ),
    "probabilities that break ties": refused(
        "the pipeline",
        "its probabilities have no exact plan",
        no_plan(SVC(probability=True, break_ties=True), to=THREE),
    ),
}


@each_of(FIRST, MODELS)
def test_the_part_without_a_plan_is_named(wrong: Wrong) -> None:
    check(wrong)


# Rows


def rows_refused(what: str, remedy: str, value: float, *parts: Any, of: Any = NUMBERS) -> Wrong:
    return Wrong(lambda: no_plan(*parts, of=of)().predict([[value]] * of.shape[1]), Refused, what, "the rows", remedy)


ASKED = {
    "a power of nothing": rows_refused(
        "a value is not positive", "send positive numbers", 0.0, PowerTransformer(method="box-cox"), TREE
    ),
    "a row beyond all": rows_refused(
        "a row is too far from every training row",
        "the size the model was trained on",
        1e200,
        KNeighborsClassifier(3, weights="distance"),
    ),
    "a category of no training row": rows_refused(
        "an unknown category", "a value seen in training", 9.0, CategoricalNB(), of=NUMBERS.round(0) % 2
    ),
}


@each_of(ASKED)
def test_a_row_that_scikit_learn_refuses_is_refused(wrong: Wrong) -> None:
    check(wrong)


def test_a_plan_whose_routine_is_not_installed_says_what_is() -> None:
    content = no_plan(TALL)().to_bytes()
    with pytest.raises(DependencyError, match="a step of the plan needs what is not installed") as caught:
        without_module("sklearn.neighbors", lambda: Plan.from_bytes(content))
    assert caught.value.where == "plan.json"
    assert "the versions in the bundle's requirements.lock" in (caught.value.remedy or "")
