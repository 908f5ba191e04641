"""The schema: a table goes through JSON text and comes back as it was, or is refused with a reason."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import sparse

from notebook_to_prod.errors import BundleError, DataError, ExportError
from notebook_to_prod.package.schema import Schema, check_schema, infer_column, infer_schema, to_rows, to_table
from notebook_to_prod.serve.request import request_type, row_model, rows_of

# The same examples every time: a failure in one run is a failure in the next.
reproducible = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ODD_NAMES = [
    "class",
    "model_config",
    "a b",
    "ä",
    "0",
    "1.5",
    "rows",
    "column_0",
    "",
    " ",
    "\n",
    "self",
    "__init__",
    "1",
]
NAMES = st.sampled_from(ODD_NAMES) | TEXTS
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "UTC+05:30"]
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def whole(dtype: str) -> st.SearchStrategy[int]:
    """Every value of a numpy integer type."""
    limits = np.iinfo(dtype)
    return st.integers(int(limits.min), int(limits.max))


def finite(bits: int, nan: bool = True) -> st.SearchStrategy[float]:
    """Floats of that many bits."""
    return st.floats(width=bits, allow_infinity=False, allow_nan=nan)  # type: ignore[arg-type]


def moments(unit: str, since: int = -8 * 10**9) -> st.SearchStrategy[Any]:
    """Moments from `since`, in seconds, that `datetime64[ns]` can hold, to the precision of `unit`; and missing ones."""
    numbers = st.none() | st.integers(since * UNITS[unit], 8 * 10**9 * UNITS[unit])
    return numbers.map(lambda number: np.datetime64("NaT" if number is None else number, unit))


def elements() -> dict[str, st.SearchStrategy[Any]]:
    """What a column of each dtype may hold, missing values included."""
    found: dict[str, st.SearchStrategy[Any]] = {dtype: whole(dtype) for dtype in INTEGERS}
    found |= {"I" + dtype[1:] if dtype[0] == "i" else "UI" + dtype[2:]: st.none() | whole(dtype) for dtype in INTEGERS}
    found |= {f"float{bits}": finite(bits) for bits in (16, 32, 64)}
    found |= {f"Float{bits}": st.none() | finite(bits, nan=False) for bits in (32, 64)}
    found |= {
        "bool": st.booleans(),
        "boolean": st.none() | st.booleans(),
        "str": st.none() | TEXTS,
        "string": st.none() | TEXTS,
    }
    return found


ELEMENTS = elements()
OBJECTS = [TEXTS, st.booleans(), st.integers(-(2**53), 2**53), finite(64, nan=False)]


@st.composite
def object_columns(draw: st.DrawFn, size: int) -> pd.Series:
    """A column of Python objects of one type, missing ones either all None or all NaN."""
    kind, missing = draw(st.sampled_from(OBJECTS)), draw(st.sampled_from([None, np.nan]))
    values = draw(st.lists(st.just(missing) | kind, min_size=size, max_size=size))
    filled = np.empty(size, dtype=object)
    filled[:] = values
    return pd.Series(filled, dtype=object)


@st.composite
def category_columns(draw: st.DrawFn, size: int) -> pd.Series:
    """A categorical column, with categories that no row has and rows that have none."""
    kind = draw(st.sampled_from([TEXTS, st.integers(-5, 300), finite(64, nan=False), moments("s")]))
    categories = pd.Index(draw(st.lists(kind, min_size=1, max_size=5, unique=True))).dropna().unique()
    codes = draw(st.lists(st.integers(-1, len(categories) - 1), min_size=size, max_size=size))
    return pd.Series(pd.Categorical.from_codes(codes, categories=categories, ordered=draw(st.booleans())))


@st.composite
def datetime_columns(draw: st.DrawFn, size: int) -> pd.Series:
    """A datetime column of any unit, with a time zone or without."""
    unit, zone = draw(st.sampled_from([*UNITS])), draw(st.sampled_from([None, *ZONES]))
    kind = moments(unit, since=0) if zone else moments(unit)
    plain = pd.Series(np.array(draw(st.lists(kind, min_size=size, max_size=size)), dtype=f"datetime64[{unit}]"))
    return plain if zone is None else plain.dt.tz_localize("UTC").astype(f"datetime64[{unit}, {zone}]")


@st.composite
def plain_columns(draw: st.DrawFn, size: int) -> pd.Series:
    """A column of one of pandas' own dtypes, sometimes with nothing in it but missing values."""
    dtype = draw(st.sampled_from([*ELEMENTS]))
    values = draw(st.lists(ELEMENTS[dtype], min_size=size, max_size=size))
    if dtype not in ("bool", *INTEGERS) and draw(st.integers(0, 4)) == 0:
        values = [np.nan if dtype.startswith("float") else None] * size
    return pd.Series(values, dtype=dtype)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """A training table with columns of every kind that a schema describes."""
    size, names = draw(st.integers(1, 6)), draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    kinds = [plain_columns, plain_columns, object_columns, category_columns, datetime_columns]
    return pd.DataFrame({name: draw(draw(st.sampled_from(kinds))(size)) for name in names})


def through_json(schema: Schema, table: Any) -> tuple[Schema, list[dict[str, Any]]]:
    """The schema and the rows after both have been text."""
    text = json.dumps({"schema": schema.to_dict(), "rows": to_rows(schema, table)}, allow_nan=False)
    read = json.loads(text)
    return Schema.from_dict(read["schema"]), read["rows"]


# Tables


@given(frames())
@settings(reproducible, max_examples=200)
def test_frame_comes_back_from_json(frame: pd.DataFrame) -> None:
    schema, rows = through_json(infer_schema(frame), frame)
    back = to_table(schema, rows)
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert json.dumps(to_rows(schema, back)) == json.dumps(rows)  # the sign of zero and the kind of a missing value too


@given(frames())
@settings(reproducible, max_examples=100)
def test_request_accepts_the_rows_that_made_the_schema(frame: pd.DataFrame) -> None:
    schema, rows = through_json(infer_schema(frame), frame)
    adapter = TypeAdapter(request_type(row_model(schema), schema, limit=10))
    for request in (rows, {"rows": rows}):
        pd.testing.assert_frame_equal(
            to_table(schema, rows_of(adapter.validate_python(request))), frame, check_exact=True
        )
    one = rows_of(adapter.validate_python(rows[0]))
    pd.testing.assert_frame_equal(to_table(schema, one), frame.head(1), check_exact=True)


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=5, unique=True), st.integers(1, 4))
@settings(reproducible, max_examples=30)
def test_numbered_columns_come_back_numbered(names: list[int], size: int) -> None:
    frame = pd.DataFrame({name: np.arange(size) * 0.1 for name in names})
    schema, rows = through_json(infer_schema(frame), frame)
    assert schema.names == tuple(map(str, names))
    assert to_table(schema, rows).columns.tolist() == names


def test_the_index_is_not_an_input() -> None:
    frame = pd.DataFrame({"x": [1, 2]}, index=["a", "b"])
    schema, rows = through_json(infer_schema(frame), frame)
    assert rows == [{"x": 1}, {"x": 2}]
    pd.testing.assert_frame_equal(to_table(schema, rows), frame.reset_index(drop=True))


def test_a_moment_before_time_zones_comes_back() -> None:
    frame = pd.DataFrame({"born": pd.to_datetime(["1890-05-01T12:00:00"]).tz_localize("Europe/Berlin")})  # UTC+00:53:28
    schema, rows = through_json(infer_schema(frame), frame)
    pd.testing.assert_frame_equal(to_table(schema, rows), frame)


@pytest.mark.parametrize(
    "dtype", ["int64[pyarrow]", "double[pyarrow]", "bool[pyarrow]", "timestamp[ns][pyarrow]", "Sparse[int]"]
)
def test_extension_dtypes_come_back(dtype: str) -> None:
    frame = pd.DataFrame({"x": pd.Series([1, 0, 1]).astype(dtype)})
    schema, rows = through_json(infer_schema(frame), frame)
    pd.testing.assert_frame_equal(to_table(schema, rows), frame, check_exact=True)


# Arrays and texts

NUMBERS = ["f2", "f4", "f8", ">f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def extremes(dtype: np.dtype[Any]) -> list[Any]:
    """The values of a number type that are the easiest to lose."""
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return [limits.max, limits.min, limits.smallest_subnormal, -0.0, np.nan]
    return [True, False] if dtype.kind == "b" else [np.iinfo(dtype).max, np.iinfo(dtype).min, 0]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_array_comes_back_from_json(dtype: str) -> None:
    values = extremes(np.dtype(dtype))
    array = np.array([values, values[::-1]], dtype=dtype)
    schema, rows = through_json(infer_schema(array), array)
    back = to_table(schema, rows)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert schema.names == tuple(f"x{position}" for position in range(len(values)))


@pytest.mark.parametrize("missing", [None, np.nan])
def test_object_array_keeps_its_kind_of_missing_value(missing: float | None) -> None:
    array = np.array([["a", 1.5], [missing, 2.0]], dtype=object)
    schema, rows = through_json(infer_schema(array), array)
    back = to_table(schema, rows)
    assert back.dtype == object
    assert (back[1, 0] is None) == (missing is None)
    assert [back[0, 0], *back[:, 1]] == ["a", 1.5, 2.0]


@given(st.lists(TEXTS, min_size=1, max_size=6), st.sampled_from(["str", "object"]), st.sampled_from(["text", "ä"]))
@settings(reproducible, max_examples=30)
def test_series_of_texts_comes_back(texts: list[str], dtype: str, name: str) -> None:
    series = pd.Series(texts, dtype=dtype, name=name)
    schema, rows = through_json(infer_schema(series), series)
    pd.testing.assert_series_equal(to_table(schema, rows), series)


@given(st.lists(TEXTS, min_size=1, max_size=6))
@settings(reproducible, max_examples=30)
def test_list_of_texts_comes_back(texts: list[str]) -> None:
    schema, rows = through_json(infer_schema(texts), texts)
    assert to_table(schema, rows) == texts


# What is written down


def test_a_column_says_what_training_saw() -> None:
    number = infer_column(pd.Series([3.5, None, -1.0]), "delay")
    assert (number.kind, number.nullable, number.minimum, number.maximum) == ("number", True, -1.0, 3.5)
    text = infer_column(pd.Series(["UA", "B6", "UA"]), "carrier")
    assert (text.kind, text.nullable, text.categories, text.allow_unseen) == ("string", False, ("B6", "UA"), True)
    size = infer_column(pd.Series(pd.Categorical(["m"], categories=["s", "m", "l"], ordered=True)), "size")
    assert (size.kind, size.categories, size.ordered, size.allow_unseen) == ("category", ("s", "m", "l"), True, False)
    free = infer_column(pd.Series([str(number) for number in range(1000)]), "comment")
    assert (free.kind, free.categories) == ("string", None)


def test_infinity_is_not_a_range() -> None:
    column = infer_column(pd.Series([1.0, np.inf, 2.0, -np.inf]), "x")
    assert (column.minimum, column.maximum) == (1.0, 2.0)


def test_an_unknown_format_is_refused() -> None:
    content = infer_schema(pd.DataFrame({"x": [1]})).to_dict() | {"format": 99}
    with pytest.raises(BundleError, match="schema format 99"):
        Schema.from_dict(content)


def test_a_schema_from_before_bounds_is_read() -> None:
    schema = infer_schema(pd.DataFrame({"x": [1.0, 2.0], "y": ["a", None]}))
    content = schema.to_dict()
    for column in content["columns"]:
        del column["bounded"], column["edited"]
    assert Schema.from_dict(content) == schema


# What a notebook edits

TRIPS = pd.DataFrame(
    {
        "age": [30, 41],
        "fare": [1.5, None],
        "at": pd.to_datetime(["2013-01-01", "2013-02-01"]),
        "seen": pd.to_datetime(["2013-01-01", "2013-02-01"], utc=True),
        "port": ["JFK", "EWR"],
        "size": pd.Categorical(["s", "m"]),
        "first": [True, False],
        "note": ["a", "b"],
    }
)
CONTRADICTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "misspelt-column": ("agee", {"minimum": 0}, "no column 'agee'"),
    "misspelt-field": ("age", {"minimun": 0}, "no field 'minimun'"),
    "kind": ("age", {"kind": "number"}, "a fact of the training table"),
    "dtype": ("age", {"dtype": "float64"}, "a fact of the training table"),
    "name": ("age", {"name": "years"}, "a fact of the training table"),
    "ends-the-wrong-way": ("age", {"minimum": 5, "maximum": 1}, "the minimum 5 is above the maximum 1"),
    "moments-the-wrong-way": ("at", {"minimum": "2014-01-01", "maximum": "2013-01-01"}, "is above"),
    "text-for-a-number": ("age", {"minimum": "0"}, "cannot be '0'"),
    "fraction-for-a-whole-number": ("age", {"minimum": 0.5}, "cannot be 0.5"),
    "true-for-a-number": ("age", {"minimum": True}, "cannot be True"),
    "infinite": ("fare", {"maximum": np.inf}, "cannot be inf"),
    "no-moment": ("at", {"minimum": "later"}, "no moment"),
    "a-number-for-a-moment": ("at", {"minimum": 2013}, "no moment"),
    "offset-where-there-is-none": ("at", {"minimum": "2013-01-01T00:00:00Z"}, "without an offset"),
    "no-offset-where-there-is-one": ("seen", {"minimum": "2013-01-01"}, "with an offset"),
    "range-of-a-text": ("port", {"minimum": 1}, "no 'minimum' to edit"),
    "range-of-a-boolean": ("first", {"bounded": True}, "no 'bounded' to edit"),
    "categories-of-a-number": ("age", {"categories": ("1",)}, "no 'categories' to edit"),
    "categories-that-are-a-type": ("size", {"categories": ("s", "m", "l")}, "no 'categories' to edit"),
    "one-text-for-categories": ("port", {"categories": "JFK"}, "categories are texts"),
    "no-categories": ("port", {"categories": ()}, "categories are texts"),
    "numbers-for-categories": ("port", {"categories": (1, 2)}, "categories are texts"),
    "one-for-true": ("port", {"allow_unseen": 1}, "True or False"),
    "nothing-allowed": ("note", {"categories": None, "allow_unseen": False}, "nothing would be allowed"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_an_edit_that_cannot_be_is_refused(case: str) -> None:
    name, changes, said = CONTRADICTIONS[case]
    with pytest.raises(DataError) as caught:
        infer_schema(TRIPS).edit(name, **changes)
    assert said in caught.value.what
    assert caught.value.where
    assert caught.value.remedy


def test_an_edit_makes_another_schema() -> None:
    inferred = infer_schema(TRIPS)
    edited = inferred.edit("age", minimum=0, maximum=120).edit("fare", minimum=0).edit("at", maximum=TRIPS["at"][1])
    edited = edited.edit("port", categories=["LGA", "JFK", "EWR"], allow_unseen=False)
    assert through_json(edited, TRIPS)[0] == edited != inferred == infer_schema(TRIPS)
    age, fare, at, _, port, *_ = edited.columns
    assert (age.minimum, age.maximum, age.bounded, age.edited) == (0, 120, True, ("maximum", "minimum"))
    assert (fare.minimum, fare.maximum, at.minimum, at.maximum) == (0.0, None, None, "2013-02-01T00:00:00")
    assert (port.categories, port.allow_unseen) == (("EWR", "JFK", "LGA"), False)
    assert edited.edit("age", maximum=99).columns[0].minimum == 0  # a bound stays
    assert inferred.edit("age", bounded=True).columns[0].maximum == 41  # what training saw becomes the bound
    check_schema(edited, TRIPS, inferred)
    shown = edited._repr_markdown_()
    assert "| age | integer | False | 0 … 120 | refused, edited |" in shown
    assert "| note | string | False | a, b | taken |" in shown


UNTRUE: dict[str, tuple[Any, str]] = {
    "no-schema": ({}, "no schema"),
    "columns-in-another-order": (infer_schema(TRIPS[[*TRIPS.columns[::-1]]]), "another order"),
    "fewer-columns": (infer_schema(TRIPS[["age"]]), "other columns"),
    "another-container": (infer_schema(np.zeros((2, 8))), "kind of table"),
    "another-type": (infer_schema(TRIPS.astype({"age": "float64"})), "kind is number, and integer in X_train"),
    "another-width": (infer_schema(TRIPS.astype({"age": "int8"})), "dtype is int8"),
    "missing-values-forbidden": (infer_schema(TRIPS).edit("fare", nullable=False), "misses values"),
    "a-category-forgotten": (infer_schema(TRIPS).edit("port", categories=("LGA", "EWR")), "training has seen: JFK"),
}


@pytest.mark.parametrize("case", UNTRUE)
def test_a_schema_that_is_not_of_the_table_is_refused(case: str) -> None:
    schema, said = UNTRUE[case]
    with pytest.raises(ExportError) as caught:
        check_schema(schema, TRIPS, infer_schema(TRIPS))
    assert said in caught.value.what
    assert caught.value.remedy


def test_a_category_of_free_text_that_is_forgotten_is_named() -> None:
    texts = [f"comment {number}" for number in range(300)]
    for table in (pd.DataFrame({"comment": texts}), pd.Series(texts, name="comment"), np.array(texts, dtype=object)):
        inferred = infer_schema(table)
        check_schema(inferred.edit(inferred.names[0], categories=texts, allow_unseen=False), table, inferred)
        with pytest.raises(ExportError, match="comment 7"):
            check_schema(inferred.edit(inferred.names[0], categories=[*texts[:7], *texts[8:]]), table, inferred)


BOUNDED = {
    "age": st.integers(-50, 200),
    "fare": st.floats(-50, 200),
    "at": st.datetimes(pd.Timestamp("2012-01-01"), pd.Timestamp("2014-01-01")).map(lambda moment: moment.isoformat()),
}


@given(st.sampled_from([*BOUNDED]), st.data())
@settings(reproducible, max_examples=150)
def test_a_request_keeps_to_the_bounds_and_a_range_is_none(name: str, data: st.DataObject) -> None:
    low, high = sorted((data.draw(BOUNDED[name]), data.draw(BOUNDED[name])))
    value = data.draw(BOUNDED[name])
    inferred = infer_schema(TRIPS[[name]])
    edited = inferred.edit(name, minimum=low, maximum=high)
    accepted = []
    for schema in (inferred, edited, edited.edit(name, bounded=False)):
        try:
            TypeAdapter(request_type(row_model(schema), schema, limit=1)).validate_python({name: value})
            accepted.append(True)
        except ValidationError as error:
            assert name in error.errors()[0]["loc"] or "column_0" in error.errors()[0]["loc"]
            accepted.append(False)
    assert accepted == [True, low <= value <= high, True]
    assert edited.columns[0].outside(value) == (not accepted[1])


# What is refused

REFUSED = {
    "numbers-and-texts": (pd.DataFrame({"gate": [1, "B2"]}), "'gate'"),
    "lists": (pd.DataFrame({"gate": [[1], [2]]}), "'gate'"),
    "bytes": (pd.DataFrame({"gate": [b"a", b"b"]}), "'gate'"),
    "dates-as-objects": (pd.DataFrame({"gate": [pd.Timestamp("2024-01-01").date()]}), "'gate'"),
    "decimals": (pd.DataFrame({"gate": [Decimal("1.5"), Decimal(2)]}), "'gate'"),
    "timedeltas": (pd.DataFrame({"gate": pd.to_timedelta([1, 2], unit="s")}), "'gate'"),
    "periods": (pd.DataFrame({"gate": pd.period_range("2024", periods=2, freq="M")}), "'gate'"),
    "intervals": (pd.DataFrame({"gate": pd.cut([1, 5, 9], 3)}), "'gate'"),
    "complex": (pd.DataFrame({"gate": [1j, 2j]}), "'gate'"),
    "duplicate-names": (pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]), "called a"),
    "names-of-two-levels": (
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
        "levels",
    ),
    "names-of-two-kinds": (pd.DataFrame([[1, 2]], columns=["a", 1]), "names"),
    "names-that-are-booleans": (pd.DataFrame([[1, 2]], columns=[True, False]), "names"),
    "no-columns": (pd.DataFrame(index=[1, 2]), "names"),
    "sparse-matrix": (sparse.csr_matrix(np.eye(2)), "sparse"),
    "sparse-array": (sparse.coo_array(np.eye(2)), "sparse"),
    "one-dimension": (np.arange(3.0), "1 dimension"),
    "three-dimensions": (np.zeros((2, 2, 2)), "3 dimensions"),
    "array-of-datetimes": (np.array([["2024-01-01"]], dtype="datetime64[ns]"), "datetime"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_service_could_not_rebuild_is_refused(case: str) -> None:
    table, said = REFUSED[case]
    with pytest.raises(ExportError, match=said) as caught:
        infer_schema(table)
    assert caught.value.where
    assert caught.value.remedy
