"""A value recorded in a notebook comes back exactly, or is refused; scrapbook and this package read each other."""

from __future__ import annotations

import json
import math
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scrapbook
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from hypothesis.extra import pandas as pandas_strategies
from notebooks import Project, make_project

from notebook_to_prod.errors import DataError
from notebook_to_prod.train.scraps import Scrap, decode, encode, glue, read_scraps


def through_json(value: Any) -> Any:
    """What a notebook gives back of `value`."""
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


def plain(value: Any) -> Any:
    """The Python value that a numpy scalar stands for."""
    return value.item() if isinstance(value, np.generic) else value


def same(before: Any, after: Any) -> bool:
    """Whether two values are equal in type and content, NaN being equal to NaN."""
    before = plain(before)
    if type(before) is not type(after):
        return False
    if isinstance(before, float):
        return repr(before) == repr(after)  # tells -0.0 from 0.0, and NaN is NaN
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    if isinstance(before, dict):
        return same(list(before), list(after)) and same(list(before.values()), list(after.values()))
    if isinstance(before, np.ndarray):
        alike = before.dtype == after.dtype and before.shape == after.shape
        return alike and (
            same(before.tolist(), after.tolist()) if before.dtype.hasobject else repr(before) == repr(after)
        )
    return before == after


# Plain values

numpy_scalars = st.one_of(
    numpy_strategies.from_dtype(np.dtype(name)) for name in ("?", "i1", "u8", "i8", "f2", "f4", "f8", "U5")
)
dates = st.one_of(st.dates(), st.datetimes(), st.datetimes(timezones=st.just(UTC)))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), numpy_scalars, dates)
keys = st.recursive(st.one_of(st.text(), st.none(), st.integers(), st.floats(), st.dates()), lambda k: st.tuples(k, k))
nested = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner) | st.dictionaries(keys, inner)
    ),
    max_leaves=15,
)


@given(nested)
def test_nested_values_come_back(value: Any) -> None:
    assert same(value, through_json(value))


@given(
    st.dictionaries(st.sampled_from(["n2p.type", "value", "items"]), st.sampled_from(["none", "float", "tuple", 1.5]))
)
def test_a_mapping_that_looks_like_an_encoding_is_not_taken_for_one(value: dict[str, Any]) -> None:
    assert through_json(value) == value


@pytest.mark.parametrize("value", [pd.NA, pd.NaT])
def test_missing_values_come_back(value: Any) -> None:
    assert through_json(value) is value


@pytest.mark.parametrize("text", ["1970-01-01 00:00:00.000000001", "2020-02-29 12:00:00+05:30"])
def test_timestamps_keep_nanoseconds_and_offset(text: str) -> None:
    assert through_json(pd.Timestamp(text)) == pd.Timestamp(text)


# Arrays

dtypes = st.one_of(
    numpy_strategies.scalar_dtypes(),
    numpy_strategies.byte_string_dtypes(),
    numpy_strategies.unicode_string_dtypes(),
    numpy_strategies.datetime64_dtypes(),
    numpy_strategies.timedelta64_dtypes(),
)


@given(numpy_strategies.arrays(dtypes, numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=4)))
def test_arrays_keep_dtype_shape_and_bytes(array: np.ndarray) -> None:
    after = through_json(array)
    assert (after.dtype, after.shape, after.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert after.flags.writeable


@given(
    numpy_strategies.arrays(
        object, numpy_strategies.array_shapes(max_side=3), elements=st.one_of(scalars, st.lists(scalars))
    )
)
def test_object_arrays_come_back(array: np.ndarray) -> None:
    assert same(array, through_json(array))


def test_layout_does_not_matter() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    for view in (np.asfortranarray(array), array[::-1, :, ::2], array.T):
        assert np.array_equal(through_json(view), view)


# Tables

columns = [
    pandas_strategies.column("count", dtype="int64"),
    pandas_strategies.column("share", dtype="float64"),
    pandas_strategies.column("flag", dtype="bool"),
    pandas_strategies.column("carrier", elements=st.sampled_from(["UA", "é", ""])),
]


@settings(max_examples=30)
@given(pandas_strategies.data_frames(columns, index=pandas_strategies.range_indexes(max_size=5)))
def test_tables_come_back(frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(through_json(frame), frame)
    for name in frame:
        pd.testing.assert_series_equal(through_json(frame[name]), frame[name])


TWO = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
TABLES = {
    "empty": pd.DataFrame(),
    "no rows": TWO.head(0),
    "number as column name": pd.DataFrame([[1, 2]]),
    "named index": TWO.set_index("b"),
    "index of two levels": TWO.set_index(["a", "b"]),
    "columns of two levels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "ordered categories": pd.DataFrame({"c": pd.Categorical(["lo"], ["hi", "lo"], ordered=True)}),
    "time zone": pd.DataFrame({"t": pd.to_datetime(["2020-01-01"]).tz_localize("Europe/Berlin")}),
    "nullable": pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "b": pd.array([True, None], dtype="boolean")}),
    "duration, period, interval": pd.DataFrame(
        {"d": pd.to_timedelta([1]), "p": pd.period_range("2020", periods=1, freq="M"), "i": pd.interval_range(0, 1)}
    ),
    "described": TWO.describe(),
}


@pytest.mark.parametrize("name", TABLES)
def test_table_comes_back(name: str) -> None:
    pd.testing.assert_frame_equal(through_json(TABLES[name]), TABLES[name])


@pytest.mark.parametrize("name", [None, "values", 3, ("a", 1)])
def test_series_keep_name_and_index(name: Any) -> None:
    series = pd.Series([1.5, math.nan], index=pd.Index(["u", "v"], name="values"), name=name)
    pd.testing.assert_series_equal(through_json(series), series)


@pytest.mark.parametrize(
    "index",
    [pd.Index(["a", "b"], name="n"), pd.Index([1.5]), pd.CategoricalIndex(["x"]), pd.to_datetime(["2020-01-01"])],
    ids=["text", "number", "category", "date"],
)
def test_indexes_come_back(index: pd.Index) -> None:
    pd.testing.assert_index_equal(through_json(index), index)


# What cannot be kept


@pytest.mark.parametrize(
    "value", [{1}, b"x", 1j, object(), len, np.void(b"x"), pd.Timedelta(1), pd.DataFrame({"s": [1, "a"]})]
)
def test_what_is_not_known_is_refused_by_name(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        encode({"inner": [value]}, "mine")
    assert caught.value.where == "scrap 'mine'"
    assert caught.value.remedy


class OwnFrame(pd.DataFrame):
    """A table of another library."""


LOSSY = {
    "long double": np.longdouble(1),
    "masked array, as cv_results_ holds": np.ma.masked_array([1, 2], mask=[False, True]),
    "masked objects, as cv_results_ holds": np.ma.masked_array(["a", None], mask=[False, True], dtype=object),
    "structured array": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "whole numbers as categories": pd.DataFrame({"c": pd.Categorical([1, 2])}),
    "yes and no as column names": pd.DataFrame([[1, 2]], columns=[True, False]),
    "mixed column names": pd.DataFrame([[1, 2]], columns=[1, "a"]),
    "dicts in a column": pd.DataFrame({"x": [{"a": 1}, {"b": 2}]}),
    "subclass of DataFrame": OwnFrame({"a": [1]}),
    "index of two levels": pd.MultiIndex.from_tuples([(1, "a"), (2, "b")]),
}


@pytest.mark.filterwarnings("ignore:The DataFrame has column names of mixed type:UserWarning:pandas")
@pytest.mark.parametrize("name", LOSSY)
def test_what_would_lose_something_comes_back_or_is_refused(name: str) -> None:
    before = LOSSY[name]
    try:
        after = through_json(before)
    except DataError:
        return
    if isinstance(before, pd.DataFrame):
        pd.testing.assert_frame_equal(after, before)
    elif isinstance(before, pd.Index):
        pd.testing.assert_index_equal(after, before)
    else:
        assert type(after) is type(before)
        assert after.dtype == before.dtype
        assert repr(after) == repr(before)


def test_an_encoding_of_a_later_version_is_refused() -> None:
    with pytest.raises(DataError, match="unknown scrap type 'tensor'"):
        decode({"n2p.type": "tensor"})


def test_outside_a_kernel_glue_only_checks() -> None:
    glue("number", 1)
    with pytest.raises(DataError):
        glue("model", object())


# In a notebook

VALUES = """
import datetime, math
import numpy as np, pandas as pd
VALUES = {
    "number": 3, "share": 0.1 + 0.2, "text": "é \\N{SNOWMAN} {x}", "flag": True, "list": [1, "a", [2.5]], "dict": {"a": {"b": 1}},
    "none": None, "nan": math.nan, "inf": -math.inf, "tuple": (1, (2,)), "keys": {1: "a", (2, None): "b"},
    "np int": np.int64(7), "np float": np.float32(0.5), "array": np.arange(6, dtype=">i2").reshape(2, 3), "big": 2**100,
    "date": datetime.date(2020, 2, 29), "table": pd.DataFrame({"a": [1, 2]}, index=["x", "y"]), "/ {odd} name": 1,
}
"""
PLAIN = ["number", "share", "text", "flag", "list", "dict", "/ {odd} name"]
EXPECTED: dict[str, Any] = {}
exec(VALUES, EXPECTED)
EXPECTED = EXPECTED["VALUES"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook that a real kernel has run, under plain papermill."""
    project: Project = make_project(tmp_path_factory.mktemp("scraps"))
    project.notebook(
        "in.ipynb",
        {
            "define": VALUES,
            "ours": """
                from notebook_to_prod.train.scraps import glue
                for name, value in VALUES.items():
                    glue(name, value)
                """,
            "again": "glue('last', 1); glue('last', 2)",
            "session": """
                import notebook_to_prod as n2p
                run = n2p.start(seed=7)
                run.metric("auc", np.float32(0.5))
                """,
            "theirs": """
                import scrapbook
                scrapbook.glue("theirs", {"a": [1, 2.5, None]})
                scrapbook.glue("their text", "plain", "text")
                scrapbook.glue("their table", VALUES["table"], "pandas")
                """,
        },
    )
    done = project.papermill("in.ipynb", "out.ipynb")
    assert done.code == 0, done.stderr
    return project.folder / "out.ipynb"


@pytest.fixture(scope="module")
def scraps(executed: Path) -> dict[str, Scrap]:
    return read_scraps(json.loads(executed.read_text("utf-8")))


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "table"])
def test_survives_a_kernel(scraps: dict[str, Scrap], name: str) -> None:
    assert same(EXPECTED[name], scraps[name].value)


def test_a_table_survives_a_kernel(scraps: dict[str, Scrap]) -> None:
    pd.testing.assert_frame_equal(scraps["table"].value, EXPECTED["table"])


def test_a_scrap_knows_its_cell_and_kind(scraps: dict[str, Scrap]) -> None:
    assert (scraps["number"].cell_id, scraps["number"].kind) == ("ours", "scrap")
    assert (scraps["auc"].cell_id, scraps["auc"].kind, scraps["auc"].value) == ("session", "metric", 0.5)
    assert (scraps["n2p/seed"].kind, scraps["n2p/seed"].value) == ("seed", 7)


def test_the_last_of_a_name_wins(scraps: dict[str, Scrap]) -> None:
    assert scraps["last"].value == 2


@pytest.mark.parametrize("name", PLAIN)
def test_scrapbook_reads_ours(executed: Path, name: str) -> None:
    assert scrapbook.read_notebook(str(executed)).scraps[name].data == EXPECTED[name]


def test_we_read_scrapbooks(scraps: dict[str, Scrap]) -> None:
    assert scraps["theirs"].value == {"a": [1, 2.5, None]}
    assert scraps["their text"].value == "plain"


def test_we_read_scrapbooks_tables(scraps: dict[str, Scrap]) -> None:
    pd.testing.assert_frame_equal(scraps["their table"].value, EXPECTED["table"])
