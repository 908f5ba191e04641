"""What the quick decoder takes, the slow reader takes, with the same rows: whatever the columns and the body."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schema import reproducible

from notebook_to_prod.package.schema import Column, Schema
from notebook_to_prod.serve.decode import Decoder
from notebook_to_prod.serve.request import Refusal

pytest.importorskip("msgspec")

COLUMNS = (
    Column("class", "float64", "number", nullable=True),
    Column("share", "float64", "number", minimum=0.0, maximum=1.0, bounded=True),
    Column("small", "int8", "integer"),
    Column("large", "uint64", "integer"),
    Column("seats", "Int64", "integer", nullable=True, minimum=1, maximum=500, bounded=True),
    Column("a b", "bool", "boolean"),
    Column("ä:", "str", "string"),
    Column("size", "str", "category", nullable=True, categories=("big", "s:mall"), allow_unseen=False),
    Column("gate", "int64", "category", categories=(1, 2, 3), allow_unseen=False),
    Column("half", "float64", "category", nullable=True, categories=(0.5, 1.0), allow_unseen=False),
    Column("yes", "bool", "category", categories=(False, True), allow_unseen=False),
    Column("when", "datetime64[ns]", "datetime"),
    Column("seen", "datetime64[us, UTC]", "datetime", nullable=True),
    Column("term", "datetime64[s]", "datetime", minimum="2013-01-01T00:00:00", bounded=True),
)
SCHEMA = Schema("dataframe", COLUMNS)
WITHOUT_COLONS = Schema("dataframe", tuple(replace(column, name=column.name.strip(":")) for column in COLUMNS))
GOOD: dict[str, Any] = {
    "class": 1.5,
    "share": 0.25,
    "small": -3,
    "large": 2**64 - 1,
    "seats": 9,
    "a b": True,
    "ä:": "a: b",
    "size": "s:mall",
    "gate": 2,
    "half": 0.5,
    "yes": False,
    "when": "2013-01-31T17:45:00",
    "seen": "2013-01-31T17:45:00+01:00",
    "term": "2013-01-31",
}
DECODER, PLAIN = Decoder(SCHEMA, limit=6), Decoder(WITHOUT_COLONS, limit=6)


def same(decoder: Decoder, body: bytes) -> bool:
    """Whether the quick decoder took the body; fails if the slow reader says otherwise."""
    assert decoder.quickly is not None
    quick = decoder.quickly(body)
    if quick is not None:
        assert repr(quick) == repr(decoder.slowly(body)), body
    return quick is not None


def renamed(body: bytes) -> bytes:
    return body.replace('ä:"'.encode(), 'ä"'.encode()).replace(b'\\u00e4:"', b'\\u00e4"')


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("shape", ["row", "list", "rows", "columns"])
def test_what_is_right_is_taken_quickly(shape: str, ascii_only: bool) -> None:
    columns = {name: [value] * 2 for name, value in GOOD.items()}
    content = {"row": GOOD, "list": [GOOD] * 2, "rows": {"rows": [GOOD] * 2}, "columns": {"columns": columns}}[shape]
    body = json.dumps(content, ensure_ascii=ascii_only).encode()
    for decoder, written in ((DECODER, body), (PLAIN, renamed(body))):
        assert same(decoder, written)
        assert decoder(written) == [tuple(GOOD.values())] * (1 if shape == "row" else 2)


VALUES: dict[str, list[Any]] = {
    "class": [None, -0.0, 0, -1, 5e-324, 1e308, 10**400, 2**53 + 1, 1e400, "1", True, [], {}],
    "share": [0, 1, 1.0000000000000002, -5e-324, None],
    "small": [127, 128, -128, -129, 3.0, 3.5, True, None, "3"],
    "large": [0, -1, 2**64, 2.0, 2**63],
    "seats": [None, 0, 1, 500, 501, 7.0],
    "a b": [0, 1, "true", None, False],
    "ä:": ["", ":" * 5, '"', "\\", "\n", "\x00", "\u2028", "😀", "\ud800", "\\u003a", None, 1],
    "size": [None, "big", "huge", 1],
    "gate": [1, 1.0, 4, True, "1"],
    "half": [None, 1, 1.0, True, 0.75, "x"],
    "yes": [True, 1, 0.0, None],
    "when": [
        "2024-01-01",
        "2024-13-01",
        "2024-01-01T24:00:00",
        "2024-01-01 00:00",
        "2024-01-01T00:00:00Z",
        "2024-W01-1",
    ],
    "seen": [None, "2024-01-01T00:00:00", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00+25:00", "2024-01-01T00:00Z"],
    "term": ["２024-01-01", "2012-12-31", "2013-01-01", "9999-12-31", "2013-01-01T00:00:00.5"],
}
VALUES["when"] += ["0001-01-01", "1600-01-01", "1677-01-01", "2262-12-31", "2262-01-01T00:00:00.123456789", 5, None]


@pytest.mark.parametrize("column", VALUES)
def test_every_odd_value_is_read_alike(column: str) -> None:
    for value in VALUES[column]:
        same(DECODER, json.dumps(GOOD | {column: value}).encode())
        same(
            DECODER, json.dumps({"columns": {name: [each] for name, each in (GOOD | {column: value}).items()}}).encode()
        )


ROW = json.dumps(GOOD)
SPELT = {
    "twice": ROW[:-1] + ', "class": 2.0}',
    "twice-first": '{"class": 2.0, ' + ROW[1:],
    "twice-hidden-by-an-escaped-colon": ROW[:-1].replace("a: b", r"a\u003a b") + ', "class": 2.0}',
    "twice-hidden-in-capitals": ROW[:-1].replace("a: b", r"a\u003A b") + ', "class": 2.0}',
    "twice-the-text": ROW[:-1] + ', "ä:": "x"}',
    "twice-by-an-escape": ROW[:-1] + r', "cl\u0061ss": 2.0}',
    "twice-the-name-with-a-colon": ROW[:-1] + r', "ä\u003a": "x:::"}',
    "rows-twice": f'{{"rows": [{ROW}], "rows": [{ROW}]}}',
    "columns-twice": f'{{"columns": {{}}, "columns": {json.dumps({name: [value] for name, value in GOOD.items()})}}}',
    "a-row-in-rows": f'{{"rows": {ROW}}}',
    "too-many": f"[{','.join([ROW] * 7)}]",
    "none": "[]",
    "spaces": f" \n\t {ROW} \r\n",
    "byte-order-mark": "\ufeff" + ROW,
    "minus-zero": ROW.replace("1.5", "-0"),
    "minus-zero-by-exponent": ROW.replace("1.5", "-0e5"),
    "many-digits": ROW.replace("1.5", "1" * 400),
    "long-fraction": ROW.replace("1.5", "0." + "3" * 1000),
    "leading-zero": ROW.replace("1.5", "01.5"),
    "infinity": ROW.replace("1.5", "Infinity"),
    "control-character": ROW.replace("a: b", "a\nb"),
    "trailing": ROW + ",",
    "utf-16": ROW.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("name", SPELT)
def test_every_odd_spelling_is_read_alike(name: str) -> None:
    body = SPELT[name].encode("latin-1" if name == "utf-16" else "utf-8")
    taken = [same(DECODER, body), same(PLAIN, renamed(body))]
    if "twice" in name:
        assert not any(taken)
        assert isinstance(DECODER(body), Refusal)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from([":", "\ud800"])
)
ODD = st.one_of([st.tuples(st.just(name), st.sampled_from(values) | SCALARS) for name, values in VALUES.items()])
ROWS = st.lists(ODD, max_size=3).map(lambda odd: GOOD | dict(odd)) | st.dictionaries(
    st.text(max_size=3), SCALARS, max_size=3
)
BODIES = st.one_of(
    ROWS,
    st.lists(ROWS, max_size=7),
    st.lists(ROWS, max_size=3).map(lambda rows: {"rows": rows}),
    st.lists(ROWS, max_size=3).map(lambda rows: {"columns": {name: [row.get(name) for row in rows] for name in GOOD}}),
)


@given(content=BODIES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]), data=st.data())
@settings(reproducible, max_examples=300)
def test_both_read_alike(content: Any, ascii_only: bool, indent: int | None, data: st.DataObject) -> None:
    body = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode(errors="surrogatepass")
    same(DECODER, body)
    same(PLAIN, renamed(body))
    place, length = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, 3))
    piece = data.draw(
        st.sampled_from([b"", b":", b'"', b'"class":1,', b"\\u003a", b"0", b"-", b"e", b",", b"}", b"\xff"])
    )
    same(DECODER, body[:place] + piece + body[place + length :])


@pytest.mark.parametrize("name", ['a"b', "a\\b", "\x00", "rows", "columns", "", "model_config"])
def test_every_name_of_a_column_works(name: str) -> None:
    decoder = Decoder(Schema("dataframe", (Column(name, "str", "string"),)))
    for content in ({name: "x"}, [{name: "x"}], {"rows": [{name: "x"}]}, {"columns": {name: ["x"]}}):
        body = json.dumps(content).encode()
        assert decoder(body) == [("x",)]
        assert decoder.quickly is None or same(decoder, body)


def test_columns_become_the_table_that_rows_become() -> None:
    from notebook_to_prod.package.schema import columns_to_table, to_table

    columns = [list(values) for values in zip(*DECODER(json.dumps([GOOD] * 3).encode()), strict=True)]
    pd.testing.assert_frame_equal(columns_to_table(SCHEMA, columns), to_table(SCHEMA, [GOOD] * 3), check_exact=True)
