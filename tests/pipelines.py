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
from sklearn.frozen import FrozenEstimator

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


def _table(kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A table of a kind, and what to predict from it."""
    random = np.random.default_rng(12)
    mixed, matrix, texts = flights(), arrays(), reports()
    tables: dict[str, Any] = {
        "mixed": mixed,
        "numbers": mixed[NUMERIC],
        "filled numbers": mixed[NUMERIC].fillna(1.0),
        "origins": mixed[["origin", "wet"]],
        "array": matrix,
        "rounded": matrix.round(),
        "gaps": np.where(random.random(matrix.shape) < 0.1, np.nan, matrix),
        "positive column": matrix[:, [3]] + 0.1,
        "text": texts,
        "text and number": pd.DataFrame({"report": texts, "x": matrix[:, 0]}),
    }
    table = tables[kind]
    if "text" in kind:
        return table, report_targets(texts)
    return table, array_targets(matrix) if isinstance(table, np.ndarray) else targets(mixed)


_MORE: dict[str, tuple[str, str, Make]] = {
    "more: LinearSVR": ("array", "number", lambda: scaled(svm.LinearSVR())),
    "more: Lars": ("array", "number", lambda: scaled(linear_model.Lars())),
    "more: LassoLarsIC": ("array", "number", lambda: scaled(linear_model.LassoLarsIC())),
    "more: BayesianRidge": ("array", "number", lambda: scaled(linear_model.BayesianRidge())),
    "more: ARDRegression": ("array", "number", lambda: scaled(linear_model.ARDRegression())),
    "more: HuberRegressor": ("array", "number", lambda: scaled(linear_model.HuberRegressor())),
    "more: OrthogonalMatchingPursuit": ("array", "number", lambda: scaled(linear_model.OrthogonalMatchingPursuit())),
    "more: RidgeCV": ("array", "number", lambda: scaled(linear_model.RidgeCV())),
    "more: ElasticNetCV": ("array", "number", lambda: scaled(linear_model.ElasticNetCV())),
    "more: QuantileRegressor": ("array", "number", lambda: scaled(linear_model.QuantileRegressor())),
    "more: RidgeClassifier": ("array", "three", lambda: scaled(linear_model.RidgeClassifier())),
    "more: Perceptron": ("array", "three", lambda: scaled(linear_model.Perceptron())),
    "more: LogisticRegressionCV": ("array", "three", lambda: scaled(linear_model.LogisticRegressionCV())),
    "more: GammaRegressor": ("array", "positive", lambda: scaled(linear_model.GammaRegressor())),
    "more: Tweedie": ("array", "positive", lambda: scaled(linear_model.TweedieRegressor(power=0))),
    "more: SGD hinge": ("array", "two", lambda: scaled(linear_model.SGDClassifier())),
    "more: SGD huber2": ("array", "two", lambda: scaled(linear_model.SGDClassifier(loss="modified_huber"))),
    "more: NuSVC": ("array", "three", lambda: scaled(svm.NuSVC(nu=0.2))),
    "more: NuSVR": ("array", "number", lambda: scaled(svm.NuSVR())),
    "more: SVC proba": ("array", "three", lambda: scaled(svm.SVC(probability=True, random_state=0))),
    "more: SVC proba2 sigmoid": (
        "array",
        "two",
        lambda: scaled(svm.SVC(probability=True, random_state=0, kernel="sigmoid")),
    ),
    "more: SVC ovo ties": ("array", "three", lambda: scaled(svm.SVC(break_ties=True))),
    "more: CategoricalNB": (
        "origins",
        "three",
        lambda: pipeline.make_pipeline(preprocessing.OrdinalEncoder(), naive_bayes.CategoricalNB()),
    ),
    "more: ExtraTree": ("array", "three", lambda: tree.ExtraTreeClassifier(random_state=0)),
    "more: ExtraTreeR": ("array", "number", lambda: tree.ExtraTreeRegressor(random_state=0)),
    "more: BaggingR": ("array", "number", lambda: ensemble.BaggingRegressor(random_state=0)),
    "more: Bagging LR": (
        "array",
        "three",
        lambda: scaled(ensemble.BaggingClassifier(linear_model.LogisticRegression(), max_features=0.5, random_state=0)),
    ),
    "more: Bagging KNN R": (
        "array",
        "number",
        lambda: scaled(ensemble.BaggingRegressor(neighbors.KNeighborsRegressor(), random_state=0)),
    ),
    "more: TunedThreshold": (
        "array",
        "two",
        lambda: model_selection.TunedThresholdClassifierCV(scaled(linear_model.LogisticRegression()), cv=3),
    ),
    "more: Binarizer tree": ("array", "two", lambda: scaled(Tree(), preprocessing.Binarizer(threshold=0.3))),
    "more: MinMax RF": (
        "array",
        "two",
        lambda: scaled(ensemble.RandomForestClassifier(10, random_state=0), preprocessing.MinMaxScaler()),
    ),
    "more: MaxAbs RF": (
        "array",
        "two",
        lambda: scaled(ensemble.RandomForestClassifier(10, random_state=0), preprocessing.MaxAbsScaler()),
    ),
    "more: KBins ord RF": (
        "array",
        "two",
        lambda: scaled(
            ensemble.RandomForestClassifier(10, random_state=0),
            preprocessing.KBinsDiscretizer(6, encode="ordinal", strategy="uniform"),
        ),
    ),
    "more: KBins dense LR": (
        "array",
        "two",
        lambda: scaled(
            linear_model.LogisticRegression(),
            preprocessing.KBinsDiscretizer(6, encode="onehot-dense", strategy="kmeans", random_state=0),
        ),
    ),
    "more: SelectFromModel": (
        "array",
        "two",
        lambda: scaled(
            linear_model.LogisticRegression(), feature_selection.SelectFromModel(linear_model.LogisticRegression())
        ),
    ),
    "more: RFE": (
        "array",
        "two",
        lambda: scaled(
            linear_model.LogisticRegression(),
            feature_selection.RFE(linear_model.LogisticRegression(), n_features_to_select=3),
        ),
    ),
    "more: Variance": ("array", "two", lambda: scaled(Tree(), feature_selection.VarianceThreshold(0.1))),
    "more: PCA RF": (
        "array",
        "two",
        lambda: scaled(
            pipeline.make_pipeline(decomposition.PCA(4), ensemble.RandomForestClassifier(20, random_state=0))
        ),
    ),
    "more: IncPCA GB": (
        "array",
        "number",
        lambda: scaled(
            pipeline.make_pipeline(
                decomposition.IncrementalPCA(3), ensemble.GradientBoostingRegressor(n_estimators=20, random_state=0)
            )
        ),
    ),
    "more: boxcox RF": (
        "positive column",
        "two",
        lambda: scaled(ensemble.RandomForestClassifier(10, random_state=0), preprocessing.PowerTransformer("box-cox")),
    ),
    "more: yeo RF": (
        "array",
        "two",
        lambda: scaled(ensemble.RandomForestClassifier(30, random_state=0), preprocessing.PowerTransformer()),
    ),
    "more: quant RF": (
        "array",
        "two",
        lambda: scaled(
            ensemble.RandomForestClassifier(30, random_state=0), preprocessing.QuantileTransformer(n_quantiles=30)
        ),
    ),
    "more: poly RF": (
        "array",
        "two",
        lambda: scaled(ensemble.RandomForestClassifier(30, random_state=0), preprocessing.PolynomialFeatures(3)),
    ),
    "more: poly (2,3) ridge": (
        "array",
        "number",
        lambda: scaled(linear_model.Ridge(), preprocessing.PolynomialFeatures((2, 3))),
    ),
    "more: norm l1 RF": (
        "array",
        "two",
        lambda: scaled(ensemble.RandomForestClassifier(30, random_state=0), preprocessing.Normalizer("l1")),
    ),
    "more: TTR scaler": (
        "array",
        "number",
        lambda: compose.TransformedTargetRegressor(linear_model.Ridge(), transformer=preprocessing.StandardScaler()),
    ),
    "more: TTR minmax": (
        "array",
        "number",
        lambda: compose.TransformedTargetRegressor(
            ensemble.RandomForestRegressor(5), transformer=preprocessing.MinMaxScaler()
        ),
    ),
    "more: KNN-R brute": ("array", "number", lambda: scaled(neighbors.KNeighborsRegressor(algorithm="brute"))),
    "more: KNN unscaled ties": ("rounded", "three", lambda: neighbors.KNeighborsClassifier(4)),
    "more: MLP logistic": (
        "array",
        "two",
        lambda: scaled(neural_network.MLPClassifier((8,), activation="logistic", max_iter=50, random_state=0)),
    ),
    "more: HGB gamma": ("array", "positive", lambda: ensemble.HistGradientBoostingRegressor(loss="gamma", max_iter=20)),
    "more: HGB quantile": (
        "array",
        "number",
        lambda: ensemble.HistGradientBoostingRegressor(loss="quantile", quantile=0.9, max_iter=20),
    ),
    "more: HGB missing": ("gaps", "three", lambda: ensemble.HistGradientBoostingClassifier(max_iter=20)),
    "more: RF missing": ("gaps", "three", lambda: ensemble.RandomForestClassifier(20, random_state=0)),
    "more: ET missing": ("gaps", "three", lambda: ensemble.ExtraTreesClassifier(20, random_state=0)),
    "more: GB init zero": ("array", "two", lambda: ensemble.GradientBoostingClassifier(init="zero", n_estimators=10)),
    "more: GB huber": ("array", "number", lambda: ensemble.GradientBoostingRegressor(loss="huber", n_estimators=10)),
    "more: Dummy R": ("array", "number", lambda: dummy.DummyRegressor()),
    "more: Dummy mf": ("array", "three", lambda: dummy.DummyClassifier(strategy="most_frequent")),
    "more: RF entropy balanced": (
        "array",
        "three",
        lambda: ensemble.RandomForestClassifier(20, criterion="entropy", class_weight="balanced", random_state=0),
    ),
    "more: RF absolute": (
        "array",
        "number",
        lambda: ensemble.RandomForestRegressor(5, criterion="absolute_error", random_state=0),
    ),
    "more: Stacking multi": (
        "array",
        "three",
        lambda: ensemble.StackingClassifier(
            [
                ("a", ensemble.RandomForestClassifier(5, random_state=0)),
                ("b", scaled(linear_model.LogisticRegression())),
            ],
            cv=3,
        ),
    ),
    "more: Calib frozen": (
        "array",
        "two",
        lambda: calibration.CalibratedClassifierCV(
            FrozenEstimator(scaled(linear_model.LogisticRegression()).fit(arrays(), array_targets(arrays())["two"]))
        ),
    ),
    "more: Calib ensemble False": (
        "array",
        "three",
        lambda: calibration.CalibratedClassifierCV(
            ensemble.RandomForestClassifier(5, random_state=0), ensemble=False, cv=2, method="isotonic"
        ),
    ),
    "more: OHE ints/bools/cats": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("o", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["hour", "wet", "weekday", "seats"])]
            ),
            linear_model.LogisticRegression(),
        ),
    ),
    "more: Ordinal missing": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [
                    (
                        "o",
                        preprocessing.OrdinalEncoder(
                            handle_unknown="use_encoded_value",
                            unknown_value=-2,
                            encoded_missing_value=-1,
                            min_frequency=20,
                        ),
                        ["carrier", "origin", "seats"],
                    )
                ]
            ),
            Tree(random_state=0),
        ),
    ),
    "more: Target 3": (
        "mixed",
        "three",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("o", preprocessing.TargetEncoder(random_state=0), ["carrier", "origin", "hour"])]
            ),
            ensemble.RandomForestClassifier(10, random_state=0),
        ),
    ),
    "more: Target reg": (
        "mixed",
        "number",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer([("o", preprocessing.TargetEncoder(random_state=0), ["carrier", "weekday"])]),
            ensemble.RandomForestRegressor(10, random_state=0),
        ),
    ),
    "more: Impute mf numbers": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [
                    ("i", impute.SimpleImputer(strategy="most_frequent"), ["seats", "delay", "hour"]),
                    ("c", impute.SimpleImputer(strategy="constant", fill_value=-7.5, add_indicator=True), ["seats"]),
                ]
            ),
            Tree(random_state=0),
        ),
    ),
    "more: impute objects then OHE": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer([("i", impute.SimpleImputer(strategy="most_frequent"), ["carrier", "seats"])]),
            preprocessing.OneHotEncoder(handle_unknown="ignore"),
            linear_model.LogisticRegression(),
        ),
    ),
    "more: nested CT numbers": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer([("a", impute.SimpleImputer(), NUMERIC)], remainder="drop"),
            compose.ColumnTransformer(
                [("s", preprocessing.StandardScaler(), [0, 2]), ("m", preprocessing.MinMaxScaler(), [1])]
            ),
            ensemble.RandomForestClassifier(10, random_state=0),
        ),
    ),
    "more: set_output pandas": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [
                    ("a", pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler()), NUMERIC),
                    ("o", preprocessing.OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["carrier"]),
                ]
            ),
            ensemble.RandomForestClassifier(10, random_state=0),
        ).set_output(transform="pandas"),
    ),
    "more: Missing indicator union": (
        "numbers",
        "two",
        lambda: pipeline.make_pipeline(
            pipeline.FeatureUnion([("i", impute.SimpleImputer()), ("m", impute.MissingIndicator(error_on_new=False))]),
            Tree(random_state=0),
        ),
    ),
    "more: functions": (
        "filled numbers",
        "two",
        lambda: pipeline.make_pipeline(
            pipeline.FeatureUnion(
                [
                    ("s", preprocessing.FunctionTransformer(np.cbrt, validate=True)),
                    ("l", preprocessing.FunctionTransformer(np.sin)),
                ]
            ),
            Tree(random_state=0),
        ),
    ),
    "more: weights": (
        "mixed",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [
                    ("a", impute.SimpleImputer(), NUMERIC),
                    ("o", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
                ],
                transformer_weights={"a": 0.3},
            ),
            linear_model.LogisticRegression(max_iter=3000),
        ),
    ),
    "more: text in CT": (
        "text and number",
        "two",
        lambda: pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("t", text.TfidfVectorizer(), "report"), ("x", preprocessing.StandardScaler(), ["x"])]
            ),
            ensemble.RandomForestClassifier(10, random_state=0),
        ),
    ),
    "more: text char unicode": (
        "text",
        "two",
        lambda: pipeline.make_pipeline(
            text.TfidfVectorizer(analyzer="char", ngram_range=(2, 3), strip_accents="ascii", lowercase=False),
            svm.LinearSVC(),
        ),
    ),
    "more: text maxabs": (
        "text",
        "two",
        lambda: pipeline.make_pipeline(
            text.CountVectorizer(), preprocessing.MaxAbsScaler(), linear_model.LogisticRegression()
        ),
    ),
    "more: text std nomean": (
        "text",
        "two",
        lambda: pipeline.make_pipeline(
            text.CountVectorizer(),
            preprocessing.StandardScaler(with_mean=False),
            ensemble.RandomForestClassifier(10, random_state=0),
        ),
    ),
    "more: text mlp f32": (
        "text",
        "two",
        lambda: pipeline.make_pipeline(
            text.TfidfVectorizer(dtype=np.float32), neural_network.MLPClassifier((4,), max_iter=30)
        ),
    ),
    "more: KNN weights=distance": (
        "array",
        "three",
        lambda: scaled(neighbors.KNeighborsClassifier(weights="distance")),
    ),
    "more: KNN metric=manhattan": (
        "array",
        "three",
        lambda: scaled(neighbors.KNeighborsClassifier(metric="manhattan")),
    ),
    "more: KNN algorithm=ball_tree, metric=chebyshev": (
        "array",
        "three",
        lambda: scaled(neighbors.KNeighborsClassifier(algorithm="ball_tree", metric="chebyshev")),
    ),
    "more: KNN algorithm=kd_tree, p=3, n_neighbors=4": (
        "array",
        "three",
        lambda: scaled(neighbors.KNeighborsClassifier(algorithm="kd_tree", p=3, n_neighbors=4)),
    ),
    "more: KNN algorithm=brute, metric=manhattan, weights=distance": (
        "array",
        "three",
        lambda: scaled(neighbors.KNeighborsClassifier(algorithm="brute", metric="manhattan", weights="distance")),
    ),
}
MORE = tuple(_MORE)


def fitted(name: str, rows: int = ROWS) -> tuple[Any, Any]:
    """A fitted pipeline and the table that it was fitted on."""
    table: Any
    if name in _MORE:
        kind, target, make = _MORE[name]
        table, wanted = _table(kind)[0], _table(kind)[1][target]
    elif name in _MIXED:
        target, make = _MIXED[name]
        table = flights(rows)
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
