"""Why a body is refused is said in the words of who sent it: the row, the field, the limit and what to do."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from pipelines import fitted
from test_protocols import ARROW, SPELT, asked
from test_scorer import bundle_of

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.schema import Column, Schema
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.decode import Decoder
from notebook_to_prod.serve.predictor import Predictor, load_predictor
from notebook_to_prod.serve.request import TEXT_LIMIT, Refusal
from notebook_to_prod.serve.rollout.follow import ready_model

Serve = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("linear"), *fitted("LogisticRegression", 200))


@pytest.fixture(scope="module")
def serve(bundle: Bundle) -> Serve:
    def start(predictor: Predictor | None = None, **settings: Any) -> httpx.Client:
        return TestClient(
            create_app(predictor or load_predictor(bundle.path, name="flights", version="1"), settings=settings)
        )

    return start


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[httpx.Client]:
    with serve() as client:
        yield client


@pytest.fixture(scope="module")
def row(bundle: Bundle) -> dict[str, Any]:
    return next(row for row in bundle.golden["rows"] if None not in row.values())


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> str:
    """A column that takes any text."""
    return next(each.name for each in bundle.schema.columns if each.kind == "string" and each.allow_unseen)


# Texts that are too long


@pytest.mark.parametrize("spelling", SPELT)
def test_a_text_beyond_the_limit_is_refused_in_every_spelling(
    spelling: str, client: httpx.Client, row: dict[str, Any], text: str
) -> None:
    assert asked(client, spelling, [row, row | {text: "ä" * TEXT_LIMIT}]).status_code == 200
    answer = asked(client, spelling, [row, row | {text: "ä" * (TEXT_LIMIT + 1)}])
    assert answer.status_code in (400, 422), answer.text
    assert text in answer.text
    assert f"must not be longer than {TEXT_LIMIT} characters" in answer.text


def test_the_limit_of_texts_is_a_setting(serve: Serve, row: dict[str, Any], text: str) -> None:
    longest = max(map(len, filter(lambda value: isinstance(value, str), row.values())), default=0)
    with serve(limits={"text_characters": longest + 40}) as client:
        assert client.post("/predict", json=row | {text: "a" * longest}).status_code == 200
        (wrong,) = client.post("/predict", json=row | {text: "a" * 10_000}).json()["detail"]
        assert wrong["type"] == "string_too_long"
        assert wrong["loc"] == ["body", "row", text]
        assert f'"maxLength":{longest + 40}' in client.get("/openapi.json").text
    with pytest.raises(InputError, match="text_characters"):
        serve(limits={"text_characters": 0})


def test_golden_rows_are_taken_however_long_their_texts(bundle: Bundle, text: str) -> None:
    model = ready_model(None, lambda _: load_predictor(bundle.path), texts=1)  # type: ignore[arg-type]
    rows = model.predictor.bundle.golden["rows"]
    assert type(model.decode(json.dumps(rows).encode())) is list
    assert type(model.decode(json.dumps([rows[0] | {text: "a" * 1000}]).encode())) is Refusal


# The words of a refusal

COLUMNS = (
    Column("rooms", "int64", "integer"),
    Column("größe", "float64", "number"),
    Column("lift", "bool", "boolean", nullable=True),
    Column("area", "str", "string", categories=("Mitte", "Spandau, West"), allow_unseen=False),
)
FLAT = {"rooms": 3, "größe": 70.5, "lift": None, "area": "Mitte"}
DECODE = Decoder(Schema("dataframe", COLUMNS))
DECOMPOSED = unicodedata.normalize("NFD", "größe")
REFUSED: dict[str, tuple[Any, list[Any], str]] = {
    "null": (FLAT | {"rooms": None}, ["row", "rooms"], "May not be null"),
    "null-for-a-category": (FLAT | {"area": None}, ["row", "area"], "May not be null"),
    "null-in-a-column": (
        {"columns": {name: [value, value] for name, value in FLAT.items()} | {"rooms": [1, None]}},
        ["columns", "rooms", 1],
        "May not be null",
    ),
    "columns-of-different-lengths": (
        {"columns": {name: [value] * 2 for name, value in FLAT.items()} | {"rooms": [1, 2, 3]}},
        ["columns"],
        "as many values each: 'größe' has 2, and 'rooms' 3",
    ),
    "a-row-of-rows": ({"rows": [FLAT, FLAT | {"rooms": "three"}]}, ["rows", 1, "rooms"], "valid integer"),
    "no-object": ([1], ["list", 0], "an object with the model's fields"),
    "null-for-a-row": (None, ["row"], "an object with the model's fields"),
    "no-rows": ([], ["list"], "There must be at least one"),
    "rows-and-columns": ({"rows": [FLAT], "columns": {}}, ["columns"], "nothing beside it"),
    "rows-and-something": ({"rows": [FLAT], "id": 7}, ["id"], "nothing beside it: leave out 'id'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_was_wrong_in_the_words_of_json(case: str) -> None:
    body, where, said = REFUSED[case]
    refused = DECODE(json.dumps(body).encode())
    assert isinstance(refused, Refusal)
    assert refused.detail[0]["loc"] == ["body", *where]
    assert said in refused.detail[0]["msg"]


def test_a_field_that_is_given_twice_is_named() -> None:
    refused = DECODE(json.dumps(FLAT).replace("{", '{"rooms": 2, ', 1).encode())
    assert isinstance(refused, Refusal)
    assert (refused.detail[0]["loc"], refused.message) == (
        ["body"],
        "The body is not valid JSON: the field 'rooms' is given twice",
    )


def test_a_name_in_another_form_of_unicode_is_told_from_one_that_is_not_known() -> None:
    sent = {DECOMPOSED if name == "größe" else name: value for name, value in FLAT.items()}
    refused = DECODE(json.dumps(sent).encode())
    assert isinstance(refused, Refusal)
    told = {each["loc"][-1]: each["msg"] for each in refused.detail}
    assert told["größe"] == "Field required"
    assert "'größe' looks the same" in told[DECOMPOSED]
    unknown = DECODE(json.dumps(FLAT | {"floor": 1}).encode())
    assert isinstance(unknown, Refusal)
    assert unknown.detail[0]["msg"] == "Extra inputs are not permitted"


def nothing(names: list[str]) -> bytes:
    """A stream of Arrow with columns and no rows."""
    table, made = pa.table({name: pa.array([], pa.float64()) for name in names}), pa.BufferOutputStream()
    with pa.ipc.new_stream(made, table.schema) as stream:
        stream.write_table(table)
    return made.getvalue().to_pybytes()


def test_a_table_without_rows_and_a_column_twice_are_said(client: httpx.Client, row: dict[str, Any]) -> None:
    def wrong(body: str | bytes, kind: str = "text/csv") -> str:
        return client.post("/predict", content=body, headers={"content-type": kind}).json()["detail"][0]["msg"]

    assert wrong(",".join(row)) == "The body is not valid CSV: it has a line of names and no rows"
    assert wrong("delay,hour,delay\n1,2,3") == "The body is not valid CSV: the column 'delay' is given twice"
    assert wrong(nothing([*row]), ARROW).endswith("it has no rows")
