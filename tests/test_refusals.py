"""Why a body is refused is said in the words of who sent it: the row, the field, the limit and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pipelines import fitted
from test_protocols import SPELT, asked
from test_scorer import bundle_of

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.serve.app import create_app
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
