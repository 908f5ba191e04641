"""Twenty notebooks that train twenty kinds of model, with the four calls and nothing else of the package."""

from textwrap import dedent

_DATA = {
    "classification": "from sklearn.datasets import load_breast_cancer as load\nX, y = load(return_X_y=True, as_frame=True)",
    "multiclass": "from sklearn.datasets import load_wine as load\nX, y = load(return_X_y=True, as_frame=True)",
    "named classes": (
        "from sklearn.datasets import load_iris\niris = load_iris(as_frame=True)\nX, y = iris.data, iris.target_names[iris.target]"
    ),
    "regression": "from sklearn.datasets import load_diabetes as load\nX, y = load(return_X_y=True, as_frame=True)",
    "arrays": "from sklearn.datasets import load_diabetes as load\nX, y = load(return_X_y=True)",
    "text": """
        import numpy as np
        import pandas as pd

        random = np.random.default_rng(seed)
        words = np.array("late early storm clear delay gate crew fog wind sun".split())
        X = pd.Series([" ".join(random.choice(words, 6)) for _ in range(300)], name="report")
        y = X.str.contains("storm|fog").map({True: "late", False: "on time"})
    """,
    "mixed": """
        import numpy as np
        import pandas as pd

        random = np.random.default_rng(seed)
        X = pd.DataFrame({
            "carrier": random.choice(["UA", "B6", "DL", None], 400),
            "distance": random.normal(1000, 300, 400).round(),
            "delay": np.where(random.random(400) < 0.1, np.nan, random.exponential(12, 400)),
        })
        y = (X["delay"].fillna(0) > 12).astype(int)
    """,
}
_MIXED = """
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), ["carrier"]),
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["distance", "delay"]),
    )
"""
_CUSTOM = """
    #| export
    import numpy as np
    from sklearn.base import BaseEstimator, TransformerMixin


    class Clip(TransformerMixin, BaseEstimator):
        "Clip each column to quantiles of training."

        def __init__(self, share=0.05):
            self.share = share

        def fit(self, X, y=None):
            self.low_, self.high_ = np.quantile(X, [self.share, 1 - self.share], axis=0)
            return self

        def transform(self, X):
            return np.clip(X, self.low_, self.high_)
"""
_SCALED = "from sklearn.preprocessing import StandardScaler\nmodel = make_pipeline(StandardScaler(), {})"

# Name: data, cells before the model, the model.
_MODELS: dict[str, tuple[str, str, str]] = {
    "RandomForestClassifier": (
        "classification",
        "",
        "from sklearn.ensemble import RandomForestClassifier\nmodel = RandomForestClassifier(30, random_state=seed)",
    ),
    "RandomForestClassifier, n_jobs=2": (
        "classification",
        "",
        "from sklearn.ensemble import RandomForestClassifier\nmodel = RandomForestClassifier(30, n_jobs=2, random_state=seed)",
    ),
    "RandomForestRegressor": (
        "regression",
        "",
        "from sklearn.ensemble import RandomForestRegressor\nmodel = RandomForestRegressor(30, random_state=seed)",
    ),
    "ExtraTreesClassifier": (
        "multiclass",
        "",
        "from sklearn.ensemble import ExtraTreesClassifier\nmodel = ExtraTreesClassifier(30, random_state=seed)",
    ),
    "HistGradientBoostingClassifier": (
        "classification",
        "",
        "from sklearn.ensemble import HistGradientBoostingClassifier\nmodel = HistGradientBoostingClassifier(max_iter=30, random_state=seed)",
    ),
    "HistGradientBoostingRegressor": (
        "arrays",
        "",
        "from sklearn.ensemble import HistGradientBoostingRegressor\nmodel = HistGradientBoostingRegressor(max_iter=30, random_state=seed)",
    ),
    "GradientBoostingClassifier": (
        "multiclass",
        "",
        "from sklearn.ensemble import GradientBoostingClassifier\nmodel = GradientBoostingClassifier(n_estimators=20, random_state=seed)",
    ),
    "GradientBoostingRegressor": (
        "regression",
        "",
        "from sklearn.ensemble import GradientBoostingRegressor\nmodel = GradientBoostingRegressor(n_estimators=20, random_state=seed)",
    ),
    "LogisticRegression": (
        "classification",
        "",
        "from sklearn.linear_model import LogisticRegression\n" + _SCALED.format("LogisticRegression()"),
    ),
    "LogisticRegression, classes as text": (
        "named classes",
        "",
        "from sklearn.linear_model import LogisticRegression\n" + _SCALED.format("LogisticRegression()"),
    ),
    "Ridge on arrays": ("arrays", "", "from sklearn.linear_model import Ridge\n" + _SCALED.format("Ridge()")),
    "MLPClassifier": (
        "multiclass",
        "",
        "from sklearn.neural_network import MLPClassifier\n"
        + _SCALED.format("MLPClassifier(hidden_layer_sizes=(16,), max_iter=60, random_state=seed)"),
    ),
    "MLPRegressor": (
        "regression",
        "",
        "from sklearn.neural_network import MLPRegressor\n"
        + _SCALED.format("MLPRegressor(hidden_layer_sizes=(16,), max_iter=60, random_state=seed)"),
    ),
    "SVC": ("classification", "", "from sklearn.svm import SVC\n" + _SCALED.format("SVC(random_state=seed)")),
    "KNeighborsClassifier": (
        "multiclass",
        "",
        "from sklearn.neighbors import KNeighborsClassifier\n" + _SCALED.format("KNeighborsClassifier()"),
    ),
    "stacking": (
        "classification",
        "",
        "from sklearn.ensemble import RandomForestClassifier, StackingClassifier\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.naive_bayes import GaussianNB\n"
        "forest = RandomForestClassifier(10, random_state=seed)\n"
        "model = StackingClassifier([('forest', forest), ('bayes', GaussianNB())], LogisticRegression(max_iter=500), cv=3)",
    ),
    "text, TF-IDF": (
        "text",
        "",
        "from sklearn.feature_extraction.text import TfidfVectorizer\nfrom sklearn.linear_model import SGDClassifier\n"
        "model = make_pipeline(TfidfVectorizer(), SGDClassifier(loss='log_loss', random_state=seed))",
    ),
    "text, counts": (
        "text",
        "",
        "from sklearn.feature_extraction.text import CountVectorizer\nfrom sklearn.naive_bayes import MultinomialNB\n"
        "model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), MultinomialNB())",
    ),
    "mixed columns with missing values": (
        "mixed",
        _MIXED,
        "from sklearn.ensemble import RandomForestClassifier\nmodel = make_pipeline(prepare, RandomForestClassifier(20, random_state=seed))",
    ),
    "custom transformer": (
        "regression",
        _CUSTOM,
        "from sklearn.linear_model import LinearRegression\nmodel = make_pipeline(Clip(), LinearRegression())",
    ),
}


def cells_of(name: str) -> dict[str, str]:
    """The cells of one notebook, by id."""
    data, before, model = _MODELS[name]
    cells = {
        "parameters": "seed = 7",
        "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
        "load": dedent(_DATA[data]).strip(),
        "split": (
            "from sklearn.model_selection import train_test_split\n\n"
            "X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=seed)"
        ),
        "imports": "from sklearn.pipeline import make_pipeline",
        "prepare": dedent(before).strip(),
        "fit": f"{model}\nmodel.fit(X_train, y_train)",
        "evaluate": 'run.metric("score", model.score(X_test, y_test))',
        "export": "run.export(model, X_train, y_train, X_test, y_test)",
    }
    return {cell_id: source for cell_id, source in cells.items() if source}


NAMES = tuple(_MODELS)
