"""Fitted pipelines of every kind that plans cover, on small data, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from sklearn import (
    calibration,
    compose,
    decomposition,
    discriminant_analysis,
    dummy,
    ensemble,
    feature_selection,
    impute,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)
from sklearn.feature_extraction import text

ROWS = 600
NUMERIC = ["distance", "delay", "seats"]
TEXTS = ["carrier", "origin"]


@cache
def flights(rows: int = ROWS) -> pd.DataFrame:
    """Columns of every kind, with values missing."""
    random = np.random.default_rng(7)
    table = pd.DataFrame(
        {
            "distance": random.gamma(3, 400, rows).round(1),
            "delay": np.where(random.random(rows) < 0.1, np.nan, random.exponential(12, rows).round(2) - 5),
            "seats": np.where(random.random(rows) < 0.2, np.nan, random.integers(20, 380, rows).astype(float)),
            "hour": random.integers(5, 24, rows),
            "carrier": random.choice(["UA", "B6", "DL", "EV", "OO", "YV"], rows, p=[0.3, 0.3, 0.2, 0.17, 0.02, 0.01]),
            "origin": random.choice(["JFK", "LGA", "EWR"], rows),
            "weekday": pd.Categorical(random.choice(["Mon", "Tue", "Wed", "Sat"], rows)),
            "wet": random.random(rows) < 0.3,
        }
    )
    table.loc[random.random(rows) < 0.08, "carrier"] = None
    return table


def targets(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What to predict: two classes, three named ones, a number, a positive number."""
    random = np.random.default_rng(8)
    rows = len(table)
    score = table["delay"].fillna(3) + 6 * (table["carrier"] == "EV") + 4 * table["wet"] + (table["hour"] - 12) / 3
    score = score.to_numpy(dtype=float) + random.normal(0, 4, rows) - table["distance"].to_numpy() / 500
    three = np.array(["early", "on time", "late"], dtype=object)[np.digitize(score, np.quantile(score, [0.3, 0.7]))]
    code = np.unique(three, return_inverse=True)[1]
    numbers = {"code": code, "number": score, "positive": np.exp(score / 10)}
    return {"two": (score > np.median(score)).astype(int), "three": three, **numbers}


@cache
def arrays(rows: int = ROWS) -> np.ndarray:
    """Numbers without gaps, some of them rounded so that ties are common."""
    random = np.random.default_rng(9)
    matrix = random.normal(size=(rows, 6))
    matrix[:, 1] = matrix[:, 1].round(1)
    matrix[:, 2] = random.integers(0, 4, rows)
    matrix[:, 3] = random.exponential(2, rows)
    return matrix


def array_targets(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """What to predict from the array."""
    random = np.random.default_rng(10)
    score = matrix[:, 0] + matrix[:, 1] * matrix[:, 2] / 2 + random.normal(0, 0.7, len(matrix))
    three = np.array(["a", "b", "c"])[np.digitize(score, np.quantile(score, [0.35, 0.7]))]
    return {"two": (score > 0).astype(int), "three": three, "number": score, "positive": np.exp(score / 4)}


@cache
def reports(rows: int = ROWS) -> pd.Series:
    """Short texts."""
    random = np.random.default_rng(11)
    words = [
        "late",
        "early",
        "Storm",
        "clear",
        "delay",
        "gate",
        "fog",
        "wind",
        "café",
        "naïve",
        "27L",
        "on-time,",
        "the",
        "of",
    ]
    return pd.Series([" ".join(random.choice(words, random.integers(1, 12))) for _ in range(rows)], name="report")


def report_targets(texts: pd.Series) -> dict[str, np.ndarray]:
    """What to predict from the texts."""
    late = texts.str.contains("Storm|fog").to_numpy()
    return {
        "two": late.astype(int),
        "three": np.where(late, "late", np.where(texts.str.len() > 40, "long", "fine")).astype(object),
        "number": texts.str.len().to_numpy(dtype=float),
    }


def prepared(model: Any, *, sparse: bool = False, scale: Any = None, encode: Any = None) -> pipeline.Pipeline:
    """A model behind an imputer, a scaler and a one-hot encoder."""
    scale = preprocessing.StandardScaler() if scale is None else scale
    encode = encode or preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=sparse)
    prepare = compose.ColumnTransformer(
        [
            ("numbers", pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), scale), NUMERIC),
            ("texts", encode, TEXTS),
            ("rest", "passthrough", ["hour", "wet"]),
        ]
    )
    return pipeline.Pipeline([("prepare", prepare), ("model", model)])


def filled(model: Any) -> pipeline.Pipeline:
    """A model behind indicators, most frequent and constant fillings, dropped and infrequent categories."""
    frequent = pipeline.make_pipeline(
        impute.SimpleImputer(strategy="most_frequent", missing_values=np.nan, add_indicator=True),
        preprocessing.OneHotEncoder(min_frequency=20, handle_unknown="infrequent_if_exist", drop="first"),
    )
    constant = pipeline.make_pipeline(
        impute.SimpleImputer(strategy="constant", fill_value="?"),
        preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    )
    prepare = compose.ColumnTransformer(
        [
            ("marked", impute.SimpleImputer(strategy="mean", add_indicator=True), ["delay", "distance", "seats"]),
            ("frequent", frequent, ["carrier"]),
            ("constant", constant, ["origin", "weekday"]),
        ],
        remainder="passthrough",
    )
    return pipeline.make_pipeline(prepare, preprocessing.RobustScaler(), model)


def binned(model: Any) -> pipeline.Pipeline:
    """A model behind powers, bins, target encoding, polynomials and a union."""
    fill = impute.SimpleImputer(strategy="median")
    power = pipeline.make_pipeline(fill, preprocessing.PowerTransformer())
    bins = pipeline.make_pipeline(
        impute.SimpleImputer(), preprocessing.KBinsDiscretizer(5, quantile_method="averaged_inverted_cdf")
    )
    products = pipeline.make_pipeline(
        impute.SimpleImputer(), preprocessing.MinMaxScaler(clip=True), preprocessing.PolynomialFeatures(3)
    )
    prepare = compose.ColumnTransformer(
        [
            ("power", power, ["distance"]),
            ("bins", bins, ["delay", "seats"]),
            ("products", products, ["distance", "hour"]),
            ("target", preprocessing.TargetEncoder(random_state=0), ["carrier", "origin"]),
            (
                "union",
                pipeline.FeatureUnion([("log", preprocessing.FunctionTransformer(np.log1p)), ("raw", "passthrough")]),
                ["hour"],
            ),
        ]
    )
    return pipeline.make_pipeline(prepare, feature_selection.SelectKBest(k=12), model)


def scaled(model: Any, scale: Any = None) -> pipeline.Pipeline:
    """A model of an array, behind a scaler."""
    return pipeline.make_pipeline(preprocessing.StandardScaler() if scale is None else scale, model)


def categorical_boosting(kind: Any) -> pipeline.Pipeline:
    """Histogram boosting that reads text columns as categories."""
    encode = compose.ColumnTransformer(
        [
            (
                "codes",
                preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan),
                ["carrier", "origin", "weekday"],
            )
        ],
        remainder="passthrough",
    )
    return pipeline.make_pipeline(encode, kind)


Make = Callable[[], Any]
Tree = tree.DecisionTreeClassifier
_MIXED: dict[str, tuple[str, Make]] = {
    "RandomForestClassifier": ("two", lambda: prepared(ensemble.RandomForestClassifier(60, random_state=0))),
    "RandomForestClassifier, three named classes": (
        "three",
        lambda: prepared(ensemble.RandomForestClassifier(40, max_depth=8, random_state=0), sparse=True),
    ),
    "RandomForestRegressor": ("number", lambda: filled(ensemble.RandomForestRegressor(40, random_state=0))),
    "ExtraTreesClassifier": ("three", lambda: filled(ensemble.ExtraTreesClassifier(40, random_state=0))),
    "ExtraTreesRegressor": ("number", lambda: prepared(ensemble.ExtraTreesRegressor(30, random_state=0))),
    "DecisionTreeClassifier": ("three", lambda: filled(tree.DecisionTreeClassifier(random_state=0))),
    "DecisionTreeRegressor": (
        "number",
        lambda: prepared(tree.DecisionTreeRegressor(random_state=0), scale=preprocessing.RobustScaler()),
    ),
    "GradientBoostingClassifier": ("two", lambda: filled(ensemble.GradientBoostingClassifier(random_state=0))),
    "GradientBoostingClassifier, three classes": (
        "three",
        lambda: binned(ensemble.GradientBoostingClassifier(n_estimators=30, random_state=0)),
    ),
    "GradientBoostingRegressor": (
        "number",
        lambda: prepared(ensemble.GradientBoostingRegressor(random_state=0), scale=preprocessing.PowerTransformer()),
    ),
    "HistGradientBoostingClassifier": (
        "two",
        lambda: categorical_boosting(
            ensemble.HistGradientBoostingClassifier(max_iter=60, categorical_features=[0, 1, 2], random_state=0)
        ),
    ),
    "HistGradientBoostingClassifier, from dtype": (
        "three",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("kept", "passthrough", ["weekday", "delay", "hour"])], verbose_feature_names_out=False
            ).set_output(transform="pandas"),
            ensemble.HistGradientBoostingClassifier(max_iter=30, random_state=0),
        ),
    ),
    "HistGradientBoostingRegressor": (
        "number",
        lambda: categorical_boosting(ensemble.HistGradientBoostingRegressor(max_iter=60, random_state=0)),
    ),
    "HistGradientBoostingRegressor, Poisson": (
        "positive",
        lambda: categorical_boosting(
            ensemble.HistGradientBoostingRegressor(
                max_iter=30, loss="poisson", categorical_features=[0, 2], random_state=0
            )
        ),
    ),
    "LogisticRegression": ("two", lambda: prepared(linear_model.LogisticRegression(max_iter=2000))),
    "LogisticRegression, three classes": (
        "three",
        lambda: binned(linear_model.LogisticRegression(max_iter=2000)),
    ),
    "LinearRegression": ("number", lambda: prepared(linear_model.LinearRegression(), sparse=True)),
    "Ridge": ("number", lambda: filled(linear_model.Ridge())),
    "Lasso": ("number", lambda: binned(linear_model.Lasso(0.01))),
    "PoissonRegressor": ("positive", lambda: prepared(linear_model.PoissonRegressor())),
    "SGDClassifier": ("three", lambda: prepared(linear_model.SGDClassifier(loss="log_loss", random_state=0))),
    "SGDClassifier, modified Huber": (
        "three",
        lambda: prepared(linear_model.SGDClassifier(loss="modified_huber", random_state=0)),
    ),
    "SGDRegressor": ("number", lambda: prepared(linear_model.SGDRegressor(random_state=0))),
    "LinearSVC": ("three", lambda: filled(svm.LinearSVC())),
    "SVC": ("two", lambda: prepared(svm.SVC())),
    "GaussianNB": ("three", lambda: filled(naive_bayes.GaussianNB())),
    "MLPClassifier": (
        "three",
        lambda: prepared(neural_network.MLPClassifier((16, 8), max_iter=60, random_state=0)),
    ),
    "MLPClassifier, two classes": (
        "two",
        lambda: prepared(neural_network.MLPClassifier((16,), activation="tanh", max_iter=60, random_state=0)),
    ),
    "MLPRegressor": (
        "number",
        lambda: prepared(neural_network.MLPRegressor(hidden_layer_sizes=(16,), max_iter=60, random_state=0)),
    ),
    "KNeighborsClassifier": ("three", lambda: prepared(neighbors.KNeighborsClassifier())),
    "KNeighborsRegressor": ("number", lambda: prepared(neighbors.KNeighborsRegressor(weights="distance"))),
    "VotingClassifier": (
        "three",
        lambda: prepared(
            ensemble.VotingClassifier(
                [
                    ("forest", ensemble.RandomForestClassifier(10, random_state=0)),
                    ("linear", linear_model.LogisticRegression(max_iter=1000)),
                ],
                voting="soft",
                weights=[2, 1],
            )
        ),
    ),
    "VotingClassifier, hard": (
        "two",
        lambda: prepared(
            ensemble.VotingClassifier(
                [
                    ("tree", Tree(max_depth=3)),
                    ("linear", linear_model.LogisticRegression(max_iter=1000)),
                    ("bayes", naive_bayes.GaussianNB()),
                ]
            )
        ),
    ),
    "VotingRegressor": (
        "number",
        lambda: prepared(
            ensemble.VotingRegressor(
                [("trees", ensemble.ExtraTreesRegressor(10, random_state=0)), ("linear", linear_model.Ridge())]
            )
        ),
    ),
    "StackingClassifier": (
        "two",
        lambda: prepared(
            ensemble.StackingClassifier(
                [("forest", ensemble.RandomForestClassifier(10, random_state=0)), ("svc", svm.LinearSVC())],
                linear_model.LogisticRegression(),
                passthrough=True,
                cv=3,
            )
        ),
    ),
    "StackingRegressor": (
        "number",
        lambda: prepared(
            ensemble.StackingRegressor(
                [("forest", ensemble.RandomForestRegressor(10, random_state=0)), ("ridge", linear_model.Ridge())],
                linear_model.Ridge(),
                cv=3,
            )
        ),
    ),
    "CalibratedClassifierCV, sigmoid": (
        "three",
        lambda: calibration.CalibratedClassifierCV(prepared(svm.LinearSVC()), cv=3),
    ),
    "CalibratedClassifierCV, isotonic": (
        "two",
        lambda: prepared(
            calibration.CalibratedClassifierCV(
                ensemble.RandomForestClassifier(10, random_state=0), method="isotonic", cv=3
            )
        ),
    ),
    "BaggingClassifier": ("three", lambda: prepared(ensemble.BaggingClassifier(random_state=0, max_features=0.6))),
    "AdaBoostClassifier": ("two", lambda: filled(ensemble.AdaBoostClassifier(random_state=0))),
    "AdaBoostClassifier, three classes": ("three", lambda: filled(ensemble.AdaBoostClassifier(random_state=0))),
    "GridSearchCV": (
        "two",
        lambda: model_selection.GridSearchCV(
            prepared(linear_model.LogisticRegression(max_iter=500)), {"model__C": [0.1, 1.0]}, cv=2
        ),
    ),
    "TransformedTargetRegressor": (
        "positive",
        lambda: compose.TransformedTargetRegressor(
            prepared(linear_model.Ridge()), func=np.log1p, inverse_func=np.expm1
        ),
    ),
    "FixedThresholdClassifier": (
        "two",
        lambda: model_selection.FixedThresholdClassifier(
            prepared(ensemble.RandomForestClassifier(20, random_state=0)), threshold=0.3
        ),
    ),
    "DummyClassifier": ("two", lambda: prepared(dummy.DummyClassifier())),
}
_ARRAY: dict[str, tuple[str, Make]] = {
    "array: RandomForestClassifier": ("two", lambda: ensemble.RandomForestClassifier(30, random_state=0)),
    "array: QuantileTransformer, ExtraTrees": (
        "three",
        lambda: scaled(
            ensemble.ExtraTreesClassifier(20, random_state=0),
            preprocessing.QuantileTransformer(n_quantiles=50, random_state=0),
        ),
    ),
    "array: normal quantiles, linear": (
        "two",
        lambda: scaled(
            linear_model.LogisticRegression(),
            preprocessing.QuantileTransformer(n_quantiles=50, output_distribution="normal", random_state=0),
        ),
    ),
    "array: PCA, LogisticRegression": (
        "three",
        lambda: scaled(pipeline.make_pipeline(decomposition.PCA(3, whiten=True), linear_model.LogisticRegression())),
    ),
    "array: Normalizer, KNN": ("three", lambda: scaled(neighbors.KNeighborsClassifier(7), preprocessing.Normalizer())),
    "array: brute KNN": ("three", lambda: scaled(neighbors.KNeighborsClassifier(algorithm="brute"))),
    "array: SVC, three classes": ("three", lambda: scaled(svm.SVC(kernel="poly"))),
    "array: SVR": ("number", lambda: scaled(svm.SVR())),
    "array: discriminants": ("three", lambda: scaled(discriminant_analysis.LinearDiscriminantAnalysis())),
    "array: quadratic discriminants": ("two", lambda: scaled(discriminant_analysis.QuadraticDiscriminantAnalysis())),
    "array: BernoulliNB": ("three", lambda: scaled(naive_bayes.BernoulliNB(), preprocessing.MaxAbsScaler())),
    "array: HistGradientBoosting": ("three", lambda: ensemble.HistGradientBoostingClassifier(max_iter=20)),
    "array: GradientBoosting, exponential": (
        "two",
        lambda: ensemble.GradientBoostingClassifier(loss="exponential", n_estimators=20, random_state=0),
    ),
    "array: interactions": (
        "number",
        lambda: scaled(
            pipeline.make_pipeline(
                preprocessing.PolynomialFeatures(3, interaction_only=True, include_bias=False), linear_model.Ridge()
            )
        ),
    ),
    "array: trees of two numbers": (
        "pair",
        lambda: ensemble.RandomForestRegressor(10, random_state=0),
    ),
}
_TEXT: dict[str, tuple[str, Make]] = {
    "text: tf–idf, LogisticRegression": (
        "three",
        lambda: pipeline.make_pipeline(text.TfidfVectorizer(), linear_model.LogisticRegression()),
    ),
    "text: counts, MultinomialNB": (
        "two",
        lambda: pipeline.make_pipeline(
            text.CountVectorizer(ngram_range=(1, 2), stop_words="english", strip_accents="unicode"),
            naive_bayes.MultinomialNB(),
        ),
    ),
    "text: counts, ComplementNB": (
        "three",
        lambda: pipeline.make_pipeline(text.CountVectorizer(binary=True), naive_bayes.ComplementNB()),
    ),
    "text: letters, SGDClassifier": (
        "two",
        lambda: pipeline.make_pipeline(
            text.TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=300),
            feature_selection.SelectKBest(feature_selection.chi2, k=100),
            linear_model.SGDClassifier(loss="log_loss", random_state=0),
        ),
    ),
    "text: tf–idf, forest": (
        "three",
        lambda: pipeline.make_pipeline(
            text.CountVectorizer(analyzer="char", ngram_range=(1, 2)),
            text.TfidfTransformer(),
            ensemble.RandomForestClassifier(20, random_state=0),
        ),
    ),
    "text: SVD, Ridge": (
        "number",
        lambda: pipeline.make_pipeline(
            text.TfidfVectorizer(norm="l1"), decomposition.TruncatedSVD(5, random_state=0), linear_model.Ridge()
        ),
    ),
}
if find_spec("lightgbm"):
    import lightgbm

    _MIXED["LGBMClassifier"] = ("two", lambda: prepared(lightgbm.LGBMClassifier(n_estimators=40, verbose=-1)))
    _MIXED["LGBMClassifier, three classes"] = (
        "three",
        lambda: categorical_boosting(lightgbm.LGBMClassifier(n_estimators=20, verbose=-1)),
    )
    _MIXED["LGBMRegressor"] = ("number", lambda: filled(lightgbm.LGBMRegressor(n_estimators=40, verbose=-1)))
if find_spec("xgboost"):
    import xgboost

    _MIXED["XGBClassifier"] = ("two", lambda: prepared(xgboost.XGBClassifier(n_estimators=40)))
    _MIXED["XGBClassifier, three classes"] = (
        "code",
        lambda: categorical_boosting(xgboost.XGBClassifier(n_estimators=20)),
    )
    _MIXED["XGBRegressor"] = ("number", lambda: filled(xgboost.XGBRegressor(n_estimators=40)))
NAMES = (*_MIXED, *_ARRAY, *_TEXT)


def fitted(name: str, rows: int = ROWS) -> tuple[Any, Any]:
    """A fitted pipeline and the table that it was fitted on."""
    if name in _MIXED:
        target, make = _MIXED[name]
        table: Any = flights(rows)
        wanted = targets(table)[target]
    elif name in _ARRAY:
        target, make = _ARRAY[name]
        table = arrays(rows)
        found = array_targets(table)
        wanted = np.stack([found["number"], found["positive"]], axis=1) if target == "pair" else found[target]
    else:
        target, make = _TEXT[name]
        table = reports(rows)
        wanted = report_targets(table)[target]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make().fit(table, wanted), table
