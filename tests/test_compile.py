"""Plans answer as their pipelines do, on rows made to tell them apart, and nothing else passes for exact."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import MORE, NAMES, arrays, categorical_boosting, fitted, flights, prepared, reports, targets
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, PowerTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from notebook_to_prod.errors import BundleError
from notebook_to_prod.package.compile import trees
from notebook_to_prod.package.compile.cells import OneHot
from notebook_to_prod.package.compile.choose import choose_engines, compile_exact, crossover, time_both
from notebook_to_prod.package.compile.ends import Largest
from notebook_to_prod.package.compile.numeric import Scale
from notebook_to_prod.package.compile.parity import Parity, prove_parity
from notebook_to_prod.package.compile.plan import Plan, columns_of, compile_pipeline
from notebook_to_prod.package.compile.scorer import Scorer
from notebook_to_prod.package.compile.step import Finite, NotCompiled, Refused, Step
from notebook_to_prod.package.compile.trees import ENGINES, Forest, LeafSum, Single
from notebook_to_prod.package.schema import infer_schema

# Some of the numbers that programs are proved by are beyond float32, which pandas says when they are cast.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning:pandas")

# Exact


def proved(pipeline: Any, table: Any, rows: int = 300) -> Plan:
    """The plan of a pipeline, written and read, with its proof."""
    plan = Plan.from_bytes(compile_pipeline(pipeline, table).to_bytes()).bind(pipeline)
    parity = prove_parity(plan, pipeline, table, rows=rows)
    assert parity.exact, parity.reason
    return plan


@pytest.mark.parametrize("name", [name for name in NAMES if ":" in name or "," not in name])
def test_plan_answers_as_the_pipeline(name: str) -> None:
    pipeline, table = fitted(name, 200)
    proved(pipeline, table, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_plan_answers_as_the_pipeline_on_many_rows(name: str) -> None:
    pipeline, table = fitted(name)
    proved(pipeline, table, 20_000)


@pytest.fixture(scope="module")
def forest() -> tuple[Any, pd.DataFrame]:
    """A forest behind an imputer, a scaler and a one-hot encoder."""
    table = flights()
    return prepared(RandomForestClassifier(30, random_state=0)).fit(table, targets(table)["three"]), table


@pytest.fixture(scope="module")
def plan(forest: tuple[Any, pd.DataFrame]) -> Plan:
    """The forest's plan."""
    return compile_pipeline(*forest)


def rows_of(plan: Plan, table: Any) -> list[list[Any]]:
    """Rows as a service has them."""
    columns = [each.tolist() if isinstance(each, np.ndarray) else each for each in columns_of(plan.schema, table)]
    return [list(row) for row in zip(*columns, strict=True)]


def test_one_row_equals_many(forest: tuple[Any, pd.DataFrame], plan: Plan) -> None:
    pipeline, table = forest
    labels, chances = plan.answer(columns_of(plan.schema, table))
    assert labels.tolist() == pipeline.predict(table).tolist()
    assert np.array_equal(chances, pipeline.predict_proba(table))  # to the last bit
    for row, label, chance in zip(rows_of(plan, table)[:50], labels, chances, strict=False):
        assert plan.answer_row(row) == (label, chance.tolist())


def test_columns_by_name_and_no_rows(forest: tuple[Any, pd.DataFrame], plan: Plan) -> None:
    columns = columns_of(plan.schema, forest[1])
    named = dict(zip(plan.schema.names, columns, strict=True))
    assert np.array_equal(plan.predict(named), plan.predict(columns))
    with pytest.raises(Refused, match="no rows"):  # as scikit-learn does
        plan.predict([each[:0] for each in columns])


def test_threads_get_the_same_answers(forest: tuple[Any, pd.DataFrame], plan: Plan) -> None:
    rows = rows_of(plan, forest[1])[:200]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(plan.answer_row, rows)) == [plan.answer_row(row) for row in rows]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree(forest: tuple[Any, pd.DataFrame], plan: Plan, engine: str) -> None:
    pipeline, table = forest
    again = Plan.from_bytes(plan.to_bytes())
    again.forests[0].use(engine)
    gaps = table.head(80).assign(hour=1e6)
    for some in (table.head(80), gaps):
        assert np.array_equal(again.predict_proba(columns_of(plan.schema, some)), pipeline.predict_proba(some))
    row = rows_of(plan, table)[0]
    assert again.answer_row(row) == plan.answer_row(row)


def test_missing_values_in_trees_by_every_engine() -> None:
    matrix = arrays().copy()
    matrix[::3, 0] = matrix[::5, 3] = np.nan
    model = RandomForestClassifier(20, random_state=0).fit(matrix, matrix[:, 1] + np.nan_to_num(matrix[:, 0]) > 0)
    plan = compile_pipeline(model, matrix)
    for engine in ENGINES:
        plan.forests[0].use(engine)
        assert prove_parity(plan, model, matrix, rows=300).exact


def test_without_onnxruntime(forest: tuple[Any, pd.DataFrame], plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "has_onnxruntime", lambda: False)
    again = Plan.from_bytes(plan.to_bytes())
    assert {again.forests[0].engine, again.forests[0].engine_many} == {"numpy"}
    assert prove_parity(again, *forest, rows=200).exact
    again.forests[0].use("onnxruntime")
    assert again.forests[0].engine == "numpy"


# Tables of every kind


def object_table() -> pd.DataFrame:
    """Columns of objects, with None for what is missing."""
    table = flights().drop(columns="weekday").astype(object)
    return table.where(table.notna(), None)


@pytest.mark.parametrize("kind", ["float32", "integers", "Int64", "objects", "numbered", "boolean", "strings", "list"])
def test_table_kinds(kind: str) -> None:
    matrix, table = arrays(), flights()
    wanted = (matrix[:, 0] > 0).astype(int)
    tree, codes = RandomForestClassifier(10, random_state=0), OneHotEncoder(handle_unknown="ignore")
    if kind == "float32":
        proved(
            make_pipeline(StandardScaler(), PowerTransformer(), tree).fit(matrix.astype("float32"), wanted),
            matrix.astype("float32"),
        )
    elif kind == "integers":
        whole = (matrix * 1000).astype("int64")
        proved(make_pipeline(StandardScaler(), tree).fit(whole, wanted), whole)
        proved(tree.fit(whole.astype("int32"), wanted), whole.astype("int32"))
    elif kind == "Int64":
        frame = pd.DataFrame(
            {
                "a": pd.array([1, None, 3] * 200, "Int64"),
                "b": pd.array([0.5, None, 2] * 200, "Float64"),
                "c": matrix[:, 0],
            }
        )
        proved(HistGradientBoostingClassifier(max_iter=5).fit(frame, wanted), frame)
    elif kind == "objects":
        frame = object_table()[["carrier", "origin", "hour"]]
        proved(
            make_pipeline(
                ColumnTransformer([("codes", codes, ["carrier", "origin"])], remainder="passthrough"), tree
            ).fit(frame, wanted),
            frame,
        )
    elif kind == "numbered":
        frame = pd.DataFrame(matrix)
        proved(
            make_pipeline(ColumnTransformer([("scale", StandardScaler(), [0, 2])], remainder="passthrough"), tree).fit(
                frame, wanted
            ),
            frame,
        )
    elif kind == "boolean":
        frame = pd.DataFrame({"a": matrix[:, 0] > 0, "b": matrix[:, 1] > 0.5})
        proved(make_pipeline(OneHotEncoder(drop="if_binary"), tree).fit(frame, wanted), frame)
    elif kind == "strings":
        frame = np.array(table[["origin", "carrier"]].fillna("none"), dtype=str)
        proved(make_pipeline(codes, tree).fit(frame, wanted), frame)
    else:
        texts = reports().tolist()
        proved(make_pipeline(CountVectorizer(), MultinomialNB()).fit(texts, wanted), texts)


@given(
    seen=st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]) | st.none(), min_size=8, max_size=40),
    asked=st.lists(st.sampled_from(["a", "b", "c", "z", "", "nan"]) | st.none(), min_size=1, max_size=8),
    settings=st.fixed_dictionaries(
        {
            "drop": st.sampled_from([None, "first", "if_binary"]),
            "min_frequency": st.sampled_from([None, 3, 0.2]),
            "max_categories": st.sampled_from([None, 2, 3]),
            "handle_unknown": st.sampled_from(["ignore", "infrequent_if_exist", "error", "warn"]),
            "sparse_output": st.just(False),
        }
    ),
)
@pytest.mark.filterwarnings("ignore")
def test_one_hot_is_scikit_learns(seen: list[str | None], asked: list[str | None], settings: dict[str, Any]) -> None:
    table = pd.DataFrame({"letter": pd.Series(seen, dtype="str")})
    pipeline = make_pipeline(OneHotEncoder(**settings), LinearRegression())
    try:
        pipeline.fit(table, np.arange(len(table)))
    except ValueError:
        return  # scikit-learn cannot drop an infrequent category
    plan = compile_pipeline(pipeline, table)
    asked_table = pd.DataFrame({"letter": pd.Series(asked, dtype="str")})
    place = next(place for place, (step, _) in enumerate(plan.steps, 1) if isinstance(step, OneHot))
    try:
        expected = pipeline[0].transform(asked_table)
    except ValueError:
        with pytest.raises(Refused):
            plan.predict([asked])
        return
    assert np.array_equal(plan.hold(place, [asked]), expected)
    assert np.array_equal(np.concatenate([plan.hold(place, [[each]]) for each in asked]), expected)


@given(st.lists(st.floats(width=64, allow_nan=False), min_size=1), st.lists(st.floats(width=32), min_size=1))
def test_thresholds_rounded_down_decide_alike(thresholds: list[float], values: list[float]) -> None:
    rounded = trees.rounded_down(np.array(thresholds))
    rows = np.array(values, dtype=np.float32)[:, None]
    assert np.array_equal(rows <= rounded, rows.astype(float) <= np.array(thresholds))


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", ["together", "in turns"])
def test_leaves_are_added_one_after_the_other(outputs: int, rows: int, kind: str) -> None:
    random = np.random.default_rng(rows)
    values = random.normal(size=(50, outputs if kind == "together" else 1)) * 10.0 ** random.integers(-9, 9, (50, 1))
    leaves, base = random.integers(0, 50, (rows, 60)), random.normal(size=outputs)
    for start in (base, np.zeros(outputs)):
        expected = np.repeat(start[None], rows, axis=0)
        for tree in range(60):
            if kind == "together":
                expected += values[leaves[:, tree]]
            else:
                expected[:, tree % outputs] += values[leaves[:, tree], 0]
        assert np.array_equal(LeafSum(values, start, 7.0)(leaves), expected / 7.0)


# Refused


def test_refuses_what_the_pipeline_refuses(plan: Plan, forest: tuple[Any, pd.DataFrame]) -> None:
    row = rows_of(plan, forest[1])[0]
    place = plan.schema.names.index("distance")
    assert plan.answer_row([None if at == place else each for at, each in enumerate(row)])  # is filled
    for value in (float("inf"), 1e300, "far"):
        with pytest.raises(Refused):
            plan.answer_row([value if at == place else each for at, each in enumerate(row)])


def test_unknown_category_that_is_an_error() -> None:
    table = flights()[["origin"]]
    pipeline = make_pipeline(OrdinalEncoder(), DecisionTreeClassifier()).fit(table, table["origin"])
    plan = proved(pipeline, table)
    assert plan.answer_row(["JFK"])[0] == "JFK"
    for value in ("BOS", None):
        with pytest.raises(Refused, match="unknown category"):
            plan.answer_row([value])


def test_infinite_number_where_only_encoders_look_for_it() -> None:
    pipeline, table = fitted("HistGradientBoostingClassifier, from dtype", 200)  # passes numbers beside categories
    plan = compile_pipeline(pipeline, table)
    asked = table.head(4).assign(delay=[np.inf, -np.inf, 1e300, np.nan])
    assert plan.predict(columns_of(plan.schema, asked)).tolist() == pipeline.predict(asked).tolist()
    encoded = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    plan = proved(encoded.fit(table[["seats"]], targets(table)["two"]), table[["seats"]])
    with pytest.raises(Refused):
        plan.answer_row([float("inf")])


def test_missing_value_where_none_may_be() -> None:
    matrix = arrays()
    plan = proved(make_pipeline(StandardScaler(), LogisticRegression()).fit(matrix, matrix[:, 0] > 0), matrix)
    with pytest.raises(Refused, match="missing"):
        plan.answer_row([None, *matrix[0, 1:]])


# Whatever is not exact is found


def sabotage(plan: Plan, kind: type[Step], replacement: Any) -> Plan:
    """The plan with a step of a kind done by another function."""
    steps = [(replacement(step) if isinstance(step, kind) else step, inputs) for step, inputs in plan.steps]
    assert any(isinstance(step, kind) for step, _ in plan.steps)
    return Plan(plan.schema, steps, plan.ends, plan.classes, plan.width)


class Otherwise(Step):
    """A step that is another function."""

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def nearest(step: Forest) -> Forest:
    """Thresholds as another engine would round them."""
    raw = nearest.thresholds  # type: ignore[attr-defined]
    return Forest(
        step.feature, raw.astype(np.float32), step.left, step.right, step.missing_left, step.roots, step.width
    )


SABOTAGE = {
    "thresholds rounded to nearest": (Forest, nearest),
    "scaling folded into one product": (
        Scale,
        lambda step: Otherwise(
            lambda x: x * (1 / step.operations[1][1]) - step.operations[0][1] / step.operations[1][1]
        ),
    ),
    "scaling in float32": (
        Scale,
        lambda step: Otherwise(
            lambda x: (x.astype("f4") - step.operations[0][1].astype("f4")) / step.operations[1][1].astype("f4")
        ),
    ),
    "a threshold that is not met by its own value": (
        Forest,
        lambda step: Otherwise(lambda x: step(np.nextafter(x, np.float32(np.inf)))),
    ),
    "the last of equals": (Largest, lambda _: Otherwise(lambda x: x.shape[1] - 1 - x[:, ::-1].argmax(axis=1))),
    "sums in float16": (LeafSum, lambda step: Otherwise(lambda x: step(x).astype("f2"))),
    "unknown categories as the first": (
        OneHot,
        lambda step: OneHot(step.columns, step.tables, [0] * len(step.unknown), step.width),
    ),
    "no look for infinity": (Finite, lambda _: Otherwise(lambda x: x)),
    "missing values as zero": (
        Single,
        lambda _: Otherwise(lambda x: np.nan_to_num(x, posinf=np.inf, neginf=-np.inf).astype("f4") + 0),
    ),
}


@cache
def honest(gaps: bool) -> tuple[Plan, Any, pd.DataFrame]:
    """An exact plan, its pipeline and their table, with or without missing numbers."""
    table = flights().drop(columns="weekday")
    numbers = ["distance", "delay", "seats"]
    prepare = ColumnTransformer(
        [
            ("numbers", StandardScaler(), numbers),
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier"]),
        ]
    )
    table = table if gaps else table.fillna({name: 0 for name in numbers})
    model = RandomForestClassifier(10, random_state=0)
    pipeline = make_pipeline(prepare, model).fit(table, targets(flights())["two"])
    plan = compile_pipeline(pipeline, table)
    forests = [each.tree_ for each in model.fit(pipeline[0].transform(table), targets(flights())["two"]).estimators_]
    nearest.thresholds = np.concatenate([each.threshold for each in forests])  # type: ignore[attr-defined]
    assert prove_parity(plan, pipeline, table, rows=800).exact
    return plan, pipeline, table


@pytest.mark.parametrize("what", SABOTAGE)
def test_parity_finds(what: str) -> None:
    kind, replacement = SABOTAGE[what]
    plan, pipeline, table = honest(what == "missing values as zero")
    parity = prove_parity(sabotage(plan, kind, replacement), pipeline, table, rows=800)
    assert not parity.exact and parity.reason and parity.example


def test_dropped_with_the_reason(monkeypatch: pytest.MonkeyPatch, forest: tuple[Any, pd.DataFrame]) -> None:
    pipeline, table = forest
    monkeypatch.setattr(Largest, "__call__", lambda _, x: x.argmin(axis=1))
    compiled = compile_exact(pipeline, table, rows=200, sizes=())
    assert compiled.plan is None and not compiled.uses_plan(1)
    assert compiled.reason and "labels differ" in compiled.reason
    assert json.loads(json.dumps(compiled.to_dict()))["reason"] == compiled.reason


def test_an_empty_proof_is_none() -> None:
    assert not Parity().exact and Parity().reason


# No exact plan


class Halve(TransformerMixin, BaseEstimator):
    """A transformer of one's own."""

    def fit(self, X: Any, y: Any = None) -> Halve:
        self.names_ = list(X.columns) if hasattr(X, "columns") else None
        return self

    def transform(self, X: Any) -> np.ndarray:
        return np.asarray(X, dtype=float) / 2

    def get_feature_names_out(self, names: Any = None) -> np.ndarray:
        return np.array([f"half{each}" for each in names])


class Scaler(StandardScaler):
    """Not scikit-learn's."""


@pytest.mark.parametrize("own", [Halve(), Scaler(), FunctionTransformer(lambda x: x * 2)])
def test_transformer_of_ones_own_stays_python(own: Any) -> None:
    table = flights()
    numbers = ["distance", "hour"]
    prepare = ColumnTransformer([("own", own, numbers), ("codes", OneHotEncoder(handle_unknown="ignore"), ["carrier"])])
    pipeline = make_pipeline(prepare, StandardScaler(with_mean=False), RandomForestClassifier(5, random_state=0))
    pipeline.fit(table, targets(table)["two"])
    plan = proved(pipeline, table)
    assert plan.outside == ["columntransformer/own"]
    assert "columntransformer/own stays Python" in Scorer(None, pipeline, plan).engine  # type: ignore[arg-type]  # no bundle is read
    with pytest.raises(BundleError, match="stays Python"):
        Plan.from_bytes(plan.to_bytes()).predict(columns_of(plan.schema, table))
    with pytest.raises(BundleError, match="has no"):
        Plan.from_bytes(plan.to_bytes()).bind(make_pipeline(StandardScaler()))


def test_transformer_of_ones_own_between_others() -> None:
    matrix = arrays()
    pipeline = make_pipeline(StandardScaler(), Halve(), RandomForestClassifier(5, random_state=0))
    plan = proved(pipeline.fit(matrix, matrix[:, 0] > 0), matrix)
    assert plan.outside == ["halve"]


@pytest.mark.parametrize(
    ("pipeline", "what", "where"),
    [
        (make_pipeline(StandardScaler(), IsolationForest(n_estimators=3)), "IsolationForest", "isolationforest"),
        (make_pipeline(StandardScaler()), "StandardScaler", "standardscaler"),
        (make_pipeline(StandardScaler(), "passthrough"), "without a model", "the pipeline"),
        (
            make_pipeline(FunctionTransformer(lambda x: [["a"]] * len(x)), DecisionTreeClassifier()),
            "matrix of numbers",
            "functiontransformer",
        ),
    ],
)
def test_no_plan_says_which_part(pipeline: Any, what: str, where: str) -> None:
    matrix = arrays()[:50]
    if where != "functiontransformer":
        pipeline.fit(matrix, matrix[:, 0] > 0)
    with pytest.raises(NotCompiled) as raised:
        compile_pipeline(pipeline, matrix)
    assert what in raised.value.what
    assert where in (raised.value.where or "")
    assert compile_exact(pipeline, matrix).reason


# Kept as numbers


def rewritten(plan: Plan, change: Any) -> bytes:
    """A plan's bytes with a changed `plan.json`."""
    with zipfile.ZipFile(io.BytesIO(plan.to_bytes())) as file:
        held = {name: file.read(name) for name in file.namelist()}
    content = json.loads(held["plan.json"])
    change(content)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, each in {**held, "plan.json": json.dumps(content).encode()}.items():
            file.writestr(name, each)
    return written.getvalue()


def test_same_pipeline_same_bytes(forest: tuple[Any, pd.DataFrame], plan: Plan) -> None:
    content = plan.to_bytes()
    assert compile_pipeline(*forest).to_bytes() == content == Plan.from_bytes(content).to_bytes()
    choose_engines(plan, columns_of(plan.schema, forest[1]), 50)
    assert plan.to_bytes() == content


def pickled() -> bytes:
    """An array that would run code when it is read."""

    class Runs:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('ran')",)

    held = io.BytesIO()
    np.save(held, np.array([Runs()], dtype=object), allow_pickle=True)
    return held.getvalue()


def test_reading_runs_nothing(plan: Plan) -> None:
    with zipfile.ZipFile(io.BytesIO(plan.to_bytes())) as file:
        held = {name: file.read(name) for name in file.namelist()}
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, each in {**held, "0.npy": pickled()}.items():
            file.writestr(name, each)
    with pytest.raises(BundleError, match="cannot be read"):
        Plan.from_bytes(written.getvalue())


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=99),
        lambda content: content["steps"][0].__setitem__(0, "Popen"),
        lambda content: content["steps"].append(["Elementwise", [1], {"function": "load"}]),
        lambda content: content["steps"].append(["Elementwise", [1], {"function": "fromfile"}]),
        lambda content: content["steps"][0].__setitem__(2, {"surprise": 1}),
        lambda content: content.pop("ends"),
    ],
)
def test_damaged_plan_is_refused(plan: Plan, change: Any) -> None:
    with pytest.raises(BundleError):
        Plan.from_bytes(rewritten(plan, change))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04."])
def test_not_a_plan_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError):
        Plan.from_bytes(content)


def test_service_needs_neither_pandas_nor_scikit_learn(
    plan: Plan, forest: tuple[Any, pd.DataFrame], tmp_path: Path
) -> None:
    row = rows_of(plan, forest[1])[0]
    (tmp_path / "plan").write_bytes(plan.to_bytes())
    (tmp_path / "row.json").write_text(json.dumps(row))
    code = """
import json, sys
from pathlib import Path
from notebook_to_prod.package.compile.plan import Plan
plan = Plan.from_bytes(Path("plan").read_bytes())
answer = plan.answer_row(json.loads(Path("row.json").read_text()))
heavy = {"pandas", "sklearn", "mlflow", "papermill", "IPython", "notebook_to_prod.train"} & set(sys.modules)
print(json.dumps([answer, sorted(heavy)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer, heavy = json.loads(done.stdout)
    assert heavy == []
    assert answer == json.loads(json.dumps(plan.answer_row(row)))


# Measured


def test_engines_and_times_are_measured(forest: tuple[Any, pd.DataFrame]) -> None:
    compiled = compile_exact(*forest, rows=100, sizes=(1, 20))
    assert compiled.plan is not None and compiled.reason is None
    assert set(compiled.times or {}) == {1, 20} and len(compiled.engines or {}) == 1
    assert compiled.uses_plan(1) == (compiled.pipeline_from is None or compiled.pipeline_from > 1)
    assert set(time_both(compiled.plan, forest[0], columns_of(compiled.plan.schema, forest[1]), (3,))) == {3}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({}, None),
        ({1: (1.0, 9.0), 10: (1.0, 2.0)}, None),
        ({1: (1.0, 9.0), 10: (2.0, 1.0), 100: (1.0, 2.0)}, None),
        ({1: (1.0, 9.0), 10: (1.0, 2.0), 100: (2.0, 1.0), 1000: (2.0, 1.0)}, 100),
        ({1: (9.0, 1.0)}, 1),
    ],
)
def test_crossover(times: dict[int, tuple[float, float]], expected: int | None) -> None:
    assert crossover(times) == expected


def test_categories_of_histogram_boosting() -> None:
    table = flights()
    pipeline = categorical_boosting(HistGradientBoostingClassifier(max_iter=20, categorical_features=[0, 1, 2]))
    plan = compile_pipeline(pipeline.fit(table, targets(table)["two"]), infer_schema(table))
    asked = table.assign(carrier=table["carrier"].where(table["hour"] > 9, "never seen"))
    for engine in ENGINES:
        plan.forests[0].use(engine)
        assert np.array_equal(plan.predict_proba(columns_of(plan.schema, asked)), pipeline.predict_proba(asked))
