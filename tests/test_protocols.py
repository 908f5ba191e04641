"""The protocols of the service over a real socket: whatever a table is spelt in, it is the same rows, judged by the same checks."""

from __future__ import annotations

import io
import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from pipelines import fitted
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from test_scorer import bundle_of
from test_service import running

import notebook_to_prod
from notebook_to_prod.errors import DataError
from notebook_to_prod.package.bundle import Bundle, largest_difference, write_bundle
from notebook_to_prod.package.code import collect_code
from notebook_to_prod.package.contents import Tables, bundle_contents
from notebook_to_prod.package.policy import Adjusted, Policies, imputed_values
from notebook_to_prod.package.profile import Profile, profile_table
from notebook_to_prod.package.schema import Schema, columns_to_table, infer_schema, to_table
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.decode import Decoder
from notebook_to_prod.serve.export.generate import _runtime_texts
from notebook_to_prod.serve.log.compact import compact, read_predictions
from notebook_to_prod.serve.log.request_log import LogSettings
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.protocols.inference import infer_columns
from notebook_to_prod.serve.protocols.invocations import table_columns
from notebook_to_prod.serve.protocols.tables import csv_columns
from notebook_to_prod.serve.request import Refusal, refusal
from notebook_to_prod.serve.service import Service

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A forest whose rows have each kind of column, with missing values, and policies for three of them."""
    pipeline, table = fitted("RandomForestClassifier, three named classes", 200)
    schema = (
        infer_schema(table).edit("seats", policy="clip").edit("origin", policy="impute").edit("delay", policy="warn")
    )
    tables = Tables(table, said := pipeline.predict(table), table, said, schema=schema)
    contents = bundle_contents(pipeline, tables, collect_code(pipeline, []), {"seed": 0})
    return write_bundle(tmp_path_factory.mktemp("forest"), contents)


@pytest.fixture(scope="module")
def client(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the one service of this file."""
    with running(bundle, 1, tmp_path_factory.mktemp("service") / "log") as (_, url):
        yield httpx.Client(base_url=url, trust_env=False, timeout=60)


def post(client: httpx.Client, path: str, body: Any, kind: str = "application/json", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={"content-type": kind, **headers})


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    return pd.DataFrame(rows, dtype=object).to_csv(index=False).encode()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    table, made = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(made, table.schema) as stream:
        stream.write_table(table)
    return made.getvalue().to_pybytes()


def as_tensors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns as tensors of the Open Inference Protocol, by the type of their values."""
    kinds = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    typed = {
        name: next((type(value) for value in values if value is not None), str) for name, values in columns.items()
    }
    shape = [len(rows)]
    return {
        "inputs": [
            {"name": name, "datatype": kinds[typed[name]], "shape": shape, "data": values}
            for name, values in columns.items()
        ]
    }


def as_split(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": [*rows[0]], "data": [[*row.values()] for row in rows]}}


INFER = "/v2/models/flights/infer"
SPELT: dict[str, Any] = {
    "csv": ("/predict", as_csv, "text/csv"),
    "arrow": ("/predict", as_arrow, ARROW),
    "columns": ("/predict", lambda rows: {"columns": {name: [row[name] for row in rows] for name in rows[0]}}, ""),
    "dataframe_split": ("/invocations", as_split, ""),
    "dataframe_records": ("/invocations", lambda rows: {"dataframe_records": rows}, ""),
    "instances": ("/invocations", lambda rows: {"instances": rows}, ""),
    "inputs": ("/invocations", lambda rows: {"inputs": {name: [row[name] for row in rows] for name in rows[0]}}, ""),
    "mlflow-csv": ("/invocations", as_csv, "text/csv; charset=utf-8"),
    "infer": (INFER, as_tensors, ""),
    "infer-a-version": ("/v2/models/flights/versions/1/infer", as_tensors, ""),
}


def said(answer: httpx.Response) -> list[Any]:
    """The predictions of an answer, in whichever protocol."""
    assert answer.status_code == 200, answer.text
    content = answer.json()
    return content["predictions"] if "predictions" in content else content["outputs"][0]["data"]


def asked(client: httpx.Client, spelling: str, rows: list[dict[str, Any]]) -> httpx.Response:
    path, spell, kind = SPELT[spelling]
    return post(client, path, spell(rows), kind or "application/json")


@pytest.mark.parametrize("spelling", SPELT)
def test_every_spelling_is_answered_alike(spelling: str, client: httpx.Client, bundle: Bundle) -> None:
    rows = bundle.golden["rows"]
    assert any(value is None for row in rows for value in row.values())
    assert said(asked(client, spelling, rows)) == bundle.golden["predictions"]
    assert said(asked(client, spelling, rows * 40)) == bundle.golden["predictions"] * 40


WRONG = {
    "text-for-a-number": ("distance", "far"),
    "fraction-for-a-whole-number": ("hour", 1.5),
    "null-where-none-was-missing": ("hour", None),
    "number-for-a-boolean": ("wet", 1),
    "unknown-category": ("weekday", "Someday"),
}
# What another type in the middle of a column would make of a tensor or an Arrow column is another type of all of it.
ROWS_OF_ONE = ("arrow", "infer", "infer-a-version")


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("spelling", SPELT)
def test_a_wrong_value_is_refused_alike(spelling: str, case: str, client: httpx.Client, bundle: Bundle) -> None:
    column, value = WRONG[case]
    good = bundle.golden["rows"][0]
    rows = [good | {column: value}] if spelling in ROWS_OF_ONE else [good, good | {column: value}]
    expected = client.post("/predict", json=rows[-1]).json()["detail"]
    answer = asked(client, spelling, rows)
    assert answer.status_code == (422 if SPELT[spelling][0] == "/predict" else 400), answer.text
    (found,) = answer.json()["detail"]
    assert [(each["type"], each["msg"], each["loc"][-1]) for each in expected] == [
        (found["type"], found["msg"], column)
    ]
    assert found["loc"][-2:] == [column, len(rows) - 1]
    if spelling.startswith(("infer", "data", "in")):
        content = answer.json()
        assert f"'{column}', row {len(rows) - 1}: {found['msg']}" in content.get("message", content.get("error"))


@pytest.mark.parametrize("spelling", SPELT)
def test_a_missing_column_is_named(spelling: str, client: httpx.Client, bundle: Bundle) -> None:
    rows = [{name: value for name, value in row.items() if name != "wet"} for row in bundle.golden["rows"]]
    answer = asked(client, spelling, rows)
    assert answer.status_code in (400, 422)
    assert [(each["type"], each["loc"][-1]) for each in answer.json()["detail"]] == [("missing", "wet")]


# CSV and Arrow


@pytest.mark.parametrize("spelling", ["csv", "arrow", "columns"])
def test_an_answer_may_be_a_table(spelling: str, client: httpx.Client, bundle: Bundle) -> None:
    path, spell, kind = SPELT[spelling]
    golden = bundle.golden
    for accept in ("text/csv", ARROW):
        answer = post(client, path, spell(golden["rows"]), kind or "application/json", accept=accept)
        assert answer.headers["content-type"].startswith(accept)
        assert (answer.headers["x-n2p-model"], answer.headers["x-n2p-bundle"]) == ("flights", bundle.digest)
        table = (
            pd.read_csv(io.BytesIO(answer.content))
            if accept == "text/csv"
            else pa.ipc.open_stream(answer.content).read_all().to_pandas()
        )
        assert [*table] == ["prediction", *(f"probability {name}" for name in bundle.metadata["classes"])]
        assert table["prediction"].tolist() == golden["predictions"]
        largest_difference(golden["probabilities"], table.iloc[:, 1:].to_numpy().tolist())


CSV_BODIES = {
    "nothing": b"",
    "header-only": b"distance,delay\n",
    "twice": b"distance,distance\n1,2\n",
    "ragged": b"distance,delay\n1,2,3\n",
    "not-utf-8": b"distance\n\xff\n",
    "open-quote": b'distance\n"1\n',
    "a-long-cell": b"distance\n" + b"1" * 200_000,
    "commas": b"," * 1_000_000,
    "lines": b"distance\n" + b"1\n" * 300_000,
    "random": np.random.default_rng(0).bytes(100_000),
}


@pytest.mark.parametrize("name", CSV_BODIES)
@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_what_is_no_csv_is_refused(name: str, path: str, client: httpx.Client) -> None:
    answer = post(client, path, CSV_BODIES[name], "text/csv")
    assert answer.status_code == (422 if path == "/predict" else 400)
    assert answer.json()["detail"] and len(answer.content) < 100_000


def test_a_cell_is_read_as_the_schema_says_and_no_other_way() -> None:
    table = pd.DataFrame({"code": ["007"], "share": [0.5], "seats": [1], "wet": [True], "gate": pd.Categorical([3])})
    schema = infer_schema(table)
    decode = Decoder(schema)

    def read(line: str) -> Any:
        columns = csv_columns(f"code,share,seats,wet,gate\n{line}\n".encode(), schema)
        assert not isinstance(columns, Refusal)
        found = decode.columns(columns)
        return found if isinstance(found, list) else {each["loc"][-2] for each in found.detail}

    assert read("007,5,12.0,False,3") == [("007", 5.0, 12, False, 3)]
    assert read('"1,5",1e-3,-0,true,3') == [("1,5", 0.001, 0, True, 3)]
    for share in ("NaN", "inf", " 1", "1_0", "0x1", "+1", ".5", "1.", "01", "1e999", "1" * 5000, "１"):
        assert read(f"a,{share},1,true,3") == {"share"}
    for seats in ("1.5", "1e400", "9" * 5000, "9223372036854775808", ""):
        assert read(f"a,1,{seats},true,3") == {"seats"}
    for wet in ("1", "yes", "TRUE", ""):
        assert read(f"a,1,1,{wet},3") == {"wet"}
    assert read("a,1,1,true,4") == {"gate"}


def hostile() -> dict[str, bytes]:
    def written(table: pa.Table, **options: Any) -> bytes:
        made = pa.BufferOutputStream()
        with pa.ipc.new_stream(made, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
            stream.write_table(table)
        return made.getvalue().to_pybytes()

    good = written(pa.table({"distance": [1.0, 2.0], "origin": ["JFK", "LGA"]}))
    texts = pa.DictionaryArray.from_arrays(np.zeros(90_000, "int32"), pa.array(["U" * 2**20]))
    aliased = pa.StringArray.from_buffers(
        2, pa.py_buffer(struct.pack("<3i", 0, 2**30, 3)), pa.py_buffer(b"JFK")
    )  # offsets beyond the text
    return {
        "nothing": b"",
        "a-file": b"ARROW1\0\0" + good,
        "cut": good[: len(good) - 40],
        "zeros": b"\0" * 1000,
        "compressed": written(pa.table({"distance": np.zeros(5_000_000)}), compression="zstd"),
        "compressed-dictionary": written(pa.table({"origin": texts}), compression="lz4"),
        "a-billion-nulls": written(pa.table({"distance": pa.nulls(10**9)})),
        "many-columns-of-nulls": written(pa.table({f"c{place}": pa.nulls(90_000) for place in range(2_000)})),
        "one-long-text-many-times": written(pa.table({"origin": texts})),
        "offsets-beyond-the-text": written(pa.table({"origin": aliased})),
        "lists": written(pa.table({"distance": [[1.0]]})),
        "twice": written(pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], ["distance", "distance"])),
        **{
            f"flipped-{place}": good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]
            for place in range(0, len(good), 37)
        },
    }


def test_hostile_arrow_is_refused_and_costs_nothing(client: httpx.Client, bundle: Bundle) -> None:
    for name, body in hostile().items():
        answer = post(client, "/predict", body, ARROW)
        assert answer.status_code == 422, (name, answer.text[:500])
        assert len(answer.content) < 100_000, name
    assert said(asked(client, "arrow", bundle.golden["rows"])) == bundle.golden["predictions"]


def test_nan_is_not_a_missing_value_of_arrow(client: httpx.Client, bundle: Bundle) -> None:
    answer = post(client, "/predict", as_arrow([bundle.golden["rows"][0] | {"delay": float("nan")}]), ARROW)
    assert [each["type"] for each in answer.json()["detail"]] == ["finite_number"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-ndjson", "", "text/csvx"])
def test_another_content_type_is_refused(kind: str, client: httpx.Client) -> None:
    assert post(client, "/predict", b"{}", kind).status_code == 415
    answer = post(client, "/invocations", b"{}", kind)
    assert (answer.status_code, answer.json()["error_code"]) == (415, "BAD_REQUEST")


# MLflow


def test_a_client_of_mlflow_is_answered(client: httpx.Client, bundle: Bundle) -> None:
    scoring = pytest.importorskip("mlflow.pyfunc.scoring_server.client")
    url = client.base_url
    mine = scoring.ScoringServerClient(url.host, url.port)
    mine.ping()
    table = pd.DataFrame(bundle.golden["rows"])
    assert mine.invoke(table).get_predictions()[0].tolist() == bundle.golden["predictions"]
    assert client.get("/ping").content == b"\n"


def test_what_mlflow_is_lax_about_is_taken(client: httpx.Client, bundle: Bundle) -> None:
    rows, expected = bundle.golden["rows"], bundle.golden["predictions"]
    more = [row | {"note": {"deep": []}} for row in rows]
    fewer = [{name: value for name, value in row.items() if value is not None} for row in rows]
    nan = [{name: float("nan") if value is None else value for name, value in row.items()} for row in rows]
    for content in (more, fewer, nan):
        assert said(post(client, "/invocations", {"dataframe_records": content})) == expected
    with_index = pd.DataFrame(rows, dtype=object).to_csv().encode()
    assert said(post(client, "/invocations", with_index, "text/csv")) == expected


MALFORMED: dict[str, tuple[Any, str]] = {
    "no-json": (b"{", "BAD_REQUEST"),
    "a-list": ([], "BAD_REQUEST"),
    "no-format": ({"rows": []}, "BAD_REQUEST"),
    "two-formats": ({"instances": [], "inputs": []}, "BAD_REQUEST"),
    "params": ({"instances": [{}], "params": {"temperature": 1}}, "INVALID_PARAMETER_VALUE"),
    "split-of-a-list": ({"dataframe_split": []}, "BAD_REQUEST"),
    "split-without-data": ({"dataframe_split": {"columns": ["distance"]}}, "BAD_REQUEST"),
    "split-ragged": ({"dataframe_split": {"columns": ["distance"], "data": [[1, 2]]}}, "BAD_REQUEST"),
    "split-of-odd-names": ({"dataframe_split": {"columns": [[]], "data": [[1]]}}, "BAD_REQUEST"),
    "records-of-lists": ({"dataframe_records": [[1]]}, "BAD_REQUEST"),
    "no-records": ({"dataframe_records": []}, "BAD_REQUEST"),
    "instances-by-position": ({"instances": [[1, 2]]}, "BAD_REQUEST"),
    "a-number": ({"inputs": 1}, "BAD_REQUEST"),
    "deep": (b'{"instances": ' + b"[" * 100_000, "BAD_REQUEST"),
    "deep-value": (b'{"inputs": {"distance": ' + b"[" * 900 + b"]" * 900 + b"}}", "INVALID_PARAMETER_VALUE"),
    "no-rows": ({"inputs": {}}, "INVALID_PARAMETER_VALUE"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_mlflow_errors_have_its_shape(name: str, client: httpx.Client) -> None:
    body, code = MALFORMED[name]
    answer = post(client, "/invocations", body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, code), answer.text[:500]
    assert answer.json()["message"]


def test_a_model_without_names_takes_columns_by_position() -> None:
    schema = infer_schema(np.array([[1.0, 2.0], [3.0, 4.0]]))
    rows = [(1.0, 2.0), (3.0, 4.0)]
    for content in (
        {"inputs": [[1, 2], [3, 4]]},
        {"instances": [[1, 2], [3, 4]]},
        {"dataframe_split": {"data": [[1, 2], [3, 4]]}},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}},
        {"dataframe_split": {"columns": ["x1", "x0"], "data": [[2, 1], [4, 3]]}},
    ):
        columns = table_columns(content, schema)
        assert isinstance(columns, dict) and Decoder(schema).columns(columns) == rows
    texts = infer_schema(["late again", "on time"])
    assert table_columns({"instances": ["a", "b"]}, texts) == {"text": ["a", "b"]}


# Open Inference


def test_the_model_is_described(client: httpx.Client, bundle: Bundle) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json().keys() == {"name", "version", "extensions"}
    for path in ("/v2/models/flights", "/v2/models/flights/versions/1"):
        described = client.get(path).json()
        assert client.get(f"{path}/ready").json() == {"name": "flights", "ready": True}
        assert (described["name"], described["versions"]) == ("flights", ["1"])
        assert [each["name"] for each in described["inputs"]] == [*bundle.schema.names]
        assert {each["datatype"] for each in described["inputs"]} == {"FP64", "INT64", "BYTES", "BOOL"}
        assert [(each["name"], each["shape"]) for each in described["outputs"]] == [
            ("predictions", [-1]),
            ("probabilities", [-1, 3]),
        ]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/flights/versions/2"])
def test_another_model_or_version_is_not_found(path: str, client: httpx.Client, bundle: Bundle) -> None:
    for answer in (
        client.get(path),
        client.get(f"{path}/ready"),
        post(client, f"{path}/infer", as_tensors(bundle.golden["rows"])),
    ):
        assert (answer.status_code, "error" in answer.json()) == (404, True)


def test_outputs_are_those_asked_for(client: httpx.Client, bundle: Bundle) -> None:
    content = as_tensors(bundle.golden["rows"]) | {"id": "ask-7", "outputs": [{"name": "probabilities"}]}
    answer = post(client, INFER, content).json()
    (output,) = answer["outputs"]
    assert (answer["id"], answer["model_version"], output["datatype"]) == ("ask-7", "1", "FP64")
    assert output["shape"] == [len(bundle.golden["rows"]), 3]
    largest_difference(bundle.golden["probabilities"], np.reshape(output["data"], output["shape"]).tolist())
    unknown = post(client, INFER, content | {"outputs": [{"name": "logits"}]})
    assert unknown.status_code == 400 and "logits" in unknown.json()["error"]


def in_bytes(rows: list[dict[str, Any]]) -> tuple[bytes, int]:
    """The tensors of rows by the binary extension, and the length of the JSON."""
    kinds = {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}
    inputs, parts = as_tensors(rows)["inputs"], []
    for each in inputs:
        values = each.pop("data")
        if each["datatype"] == "BYTES":
            texts = [value.encode() for value in values]
            parts.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
        else:
            values = [np.nan if value is None else value for value in values]
            parts.append(np.array(values, kinds[each["datatype"]]).tobytes())
        each["parameters"] = {"binary_data_size": len(parts[-1])}
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(parts), len(head)


def test_tensors_may_come_and_go_in_bytes(client: httpx.Client, bundle: Bundle) -> None:
    places = [place for place, row in enumerate(bundle.golden["rows"]) if row["carrier"] is not None]
    body, length = in_bytes([bundle.golden["rows"][place] for place in places])
    header = {"inference-header-content-length": str(length)}
    answer = post(client, INFER, body, "application/octet-stream", **header)
    assert answer.status_code == 200, answer.text
    head = int(answer.headers["inference-header-content-length"])
    _, chances = json.loads(answer.content[:head])["outputs"]
    rest, texts = answer.content[head:], []
    while len(rest) > chances["parameters"]["binary_data_size"]:
        (size,) = struct.unpack_from("<I", rest)
        texts.append(rest[4 : 4 + size].decode())
        rest = rest[4 + size :]
    assert texts == [bundle.golden["predictions"][place] for place in places]
    expected = [bundle.golden["probabilities"][place] for place in places]
    largest_difference(expected, np.frombuffer(rest, "<f8").reshape(chances["shape"]).tolist())
    for wrong, told in ((body[:-1], length), (body + b"\0", length), (body, len(body) + 1), (body, length - 1)):
        header["inference-header-content-length"] = str(told)
        assert post(client, INFER, wrong, "application/octet-stream", **header).status_code == 400


TENSOR = {"name": "distance", "datatype": "FP64", "shape": [1], "data": [1.0]}
TENSORS: dict[str, Any] = {
    "no-json": b"{",
    "a-list": [],
    "no-inputs": {"inputs": []},
    "no-name": {"inputs": [{**TENSOR, "name": 1}]},
    "unknown-datatype": {"inputs": [TENSOR | {"datatype": "FP65"}]},
    "no-datatype": {"inputs": [TENSOR | {"datatype": None}]},
    "no-shape": {"inputs": [TENSOR | {"shape": 1}]},
    "negative-shape": {"inputs": [TENSOR | {"shape": [-1]}]},
    "deep-shape": {"inputs": [TENSOR | {"shape": [1, 1, 1]}]},
    "long-shape": {"inputs": [TENSOR | {"shape": [2**31 - 1]}]},
    "wide-shape": {"inputs": [TENSOR | {"shape": [1, 2], "data": [1.0, 2.0]}]},
    "no-data": {"inputs": [TENSOR | {"data": None}]},
    "text-for-a-number": {"inputs": [TENSOR | {"data": ["1"]}]},
    "true-for-a-number": {"inputs": [TENSOR | {"data": [True]}]},
    "beyond-the-datatype": {"inputs": [TENSOR | {"datatype": "INT8", "data": [128]}]},
    "nested-too-deeply": {"inputs": [TENSOR | {"shape": [1, 1], "data": [[[1.0]]]}]},
    "twice": {"inputs": [TENSOR, TENSOR]},
    "one-of-many": {"inputs": [TENSOR]},
    "unknown-input": {"inputs": [TENSOR | {"name": "input"}]},
    "bytes-that-did-not-come": {"inputs": [{**TENSOR, "data": [], "parameters": {"binary_data_size": 8}}]},
    "half-a-letter": {"inputs": [TENSOR | {"name": "\ud800", "datatype": "FP65"}]},
    "odd-id": {"inputs": [TENSOR], "id": 7},
    "odd-outputs": {"inputs": [TENSOR], "outputs": [7]},
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_no_tensor_is_refused(name: str, client: httpx.Client) -> None:
    answer = post(client, INFER, TENSORS[name])
    assert answer.status_code == 400, answer.text[:500]
    assert isinstance(answer.json()["error"], str)


def test_a_model_of_numbers_takes_one_tensor() -> None:
    schema = infer_schema(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    for data in ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]):
        content = {"inputs": [{"name": "input-0", "datatype": "FP32", "shape": [2, 3], "data": data}]}
        found = infer_columns(json.dumps(content).encode(), schema)
        assert isinstance(found, tuple)
        assert Decoder(schema).columns(found[0]) == [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="tritonclient is not installed")
def test_a_client_of_triton_is_answered(client: httpx.Client, bundle: Bundle) -> None:
    import tritonclient.http as triton

    mine = triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")
    assert mine.is_server_live() and mine.is_server_ready() and mine.is_model_ready("flights")
    row, inputs = next(row for row in bundle.golden["rows"] if None not in row.values()), []
    for each in mine.get_model_metadata("flights")["inputs"]:
        kind = {"FP64": np.float64, "INT64": np.int64, "BOOL": bool, "BYTES": object}[each["datatype"]]
        inputs.append(triton.InferInput(each["name"], [1], each["datatype"]))
        inputs[-1].set_data_from_numpy(np.array([row[each["name"]]], kind))
    answer = mine.infer("flights", inputs).as_numpy("predictions")
    expected = bundle.golden["predictions"][bundle.golden["rows"].index(row)]
    assert [value.decode() for value in answer] == [expected]


# Policies


def dealt(answer: httpx.Response) -> list[dict[str, Any]] | None:
    """What an answer says that policies have done, in whichever protocol."""
    content = answer.json()
    return json.loads(content["parameters"]["warnings"]) if "parameters" in content else content.get("warnings")


@pytest.mark.parametrize("spelling", SPELT)
def test_a_policy_deals_with_a_value_alike(spelling: str, client: httpx.Client, bundle: Bundle) -> None:
    seats = bundle.schema.columns[2]
    full = [row for row in bundle.golden["rows"] if None not in row.values()][:2]
    odd = full[1] | {"seats": 1e6, "origin": "XXX", "delay": -1000.0}
    most = next(iter(bundle.profile.columns[5].values or ()))
    meant = full[1] | {"seats": seats.maximum, "origin": most, "delay": -1000.0}
    answer = asked(client, spelling, [full[0], odd])
    assert dealt(answer) == [
        {"row": 1, "column": "delay", "what": "below the minimum, taken"},
        {"row": 1, "column": "seats", "what": "above the maximum, clipped"},
        {"row": 1, "column": "origin", "what": "unseen, imputed"},
    ]
    plainly = client.post("/predict", json=[full[0], meant]).json()
    assert said(answer) == plainly["predictions"]
    assert [each["column"] for each in plainly["warnings"]] == ["delay"]
    assert dealt(asked(client, spelling, full)) is None
    if spelling in ("csv", "arrow"):
        path, spell, kind = SPELT[spelling]
        table = pd.read_csv(io.BytesIO(post(client, path, spell([full[0], odd]), kind, accept="text/csv").content))
        assert pd.isna(table["warnings"][0]) and "seats: above the maximum, clipped" in table["warnings"][1]


def test_the_log_of_the_process_quotes_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"who": ["ann", "bob", "cid", "dee"] * 25, "hours": np.arange(100.0)})
    coded = ColumnTransformer([("who", OneHotEncoder(handle_unknown="error"), ["who"])], remainder="passthrough")
    pipeline = make_pipeline(coded, LinearRegression()).fit(table, said := table["hours"] * 2)
    tables = Tables(table, said, table, said, schema=infer_schema(table).edit("who", policy="warn"))
    bundle = write_bundle(tmp_path, bundle_contents(pipeline, tables, collect_code(pipeline, []), {"seed": 0}))
    with TestClient(create_app(load_predictor(bundle.path))) as client:
        for _ in range(2):
            refused = client.post("/predict", json={"who": "Eve Secret", "hours": 41.5})
            assert (refused.status_code, refused.json()["detail"][0]["type"]) == (422, "refused")
    said = [
        each.getMessage() + str(each.exc_info) for each in caplog.records if "pipeline refused" in each.getMessage()
    ]
    assert len(said) == 1 and "ValueError" in said[0] and "_encoders.py" in said[0]
    assert "Eve" not in caplog.text and "41.5" not in caplog.text


def test_an_explanation_is_asked_in_csv_too(client: httpx.Client, bundle: Bundle) -> None:
    rows = bundle.golden["rows"][:3]
    plainly, by_csv = post(client, "/explain", rows), post(client, "/explain", as_csv(rows), "text/csv")
    assert (plainly.status_code, by_csv.status_code) == (200, 200) and by_csv.json() == plainly.json()
    refused = post(client, "/explain", b"distance;hour\n1;2\n", "text/csv")
    assert refused.status_code == 422 and "separated by semicolons" in refused.json()["detail"][0]["msg"]
    assert post(client, "/explain", b"", "text/plain").status_code == 415


@pytest.mark.parametrize(("mark", "called"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_separator_is_named(mark: str, called: str, client: httpx.Client, bundle: Bundle) -> None:
    body = pd.DataFrame(bundle.golden["rows"], dtype=object).to_csv(index=False, sep=mark).encode()
    for path in ("/predict", "/invocations"):
        answer = post(client, path, body, "text/csv")
        assert answer.status_code in (400, 422) and f"separated by {called}" in answer.text


@pytest.mark.parametrize("name", ["dataframe_split", "dataframe_records", "instances", "inputs"])
def test_a_body_of_mlflow_is_told_its_route(name: str, client: httpx.Client, bundle: Bundle) -> None:
    refused = post(client, "/predict", {name: bundle.golden["rows"][:2]})
    (wrong,) = refused.json()["detail"]
    assert (refused.status_code, wrong["type"], wrong["loc"]) == (422, "wrong_route", ["body", name])
    assert "/invocations" in wrong["msg"]


def test_a_column_is_named_once(client: httpx.Client, bundle: Bundle) -> None:
    wrong = [{**row, "hour": "noon"} for row in bundle.golden["rows"][:2]]
    for answer in (
        post(client, "/predict", as_csv(wrong), "text/csv"),
        post(client, "/predict", as_arrow(wrong), ARROW),
    ):
        assert answer.json()["detail"][0]["loc"][:4] == ["body", "columns", "hour", 0]
    said = post(client, "/invocations", {"dataframe_records": wrong}).json()
    assert said["detail"][0]["loc"][:4] == ["body", "columns", "hour", 0]
    assert said["message"].startswith("'hour', row 0")


def test_mlflows_version_is_answered(client: httpx.Client) -> None:
    answer = client.get("/version")
    assert (answer.status_code, answer.text) == (200, notebook_to_prod.__version__)


def test_the_log_tells_what_was_changed_and_how_it_was_asked(bundle: Bundle, tmp_path: Path) -> None:
    full = next(row for row in bundle.golden["rows"] if None not in row.values())
    odd = full | {"seats": 1e6, "origin": "XXX"}
    settings = LogSettings(folder=tmp_path / "log", to=f"sqlite:///{tmp_path}/log.db")
    asked_for = {"plain": ("/predict", [full, full]), "odd": ("/predict", [full, odd]), "why": ("/explain", [odd])}

    def ask_all() -> None:
        app = create_app(
            load_predictor(bundle.path), settings={"log": {"folder": str(settings.folder), "redact": ["origin"]}}
        )
        with TestClient(app) as client:
            for id, (path, rows) in asked_for.items():
                assert client.post(path, json=rows, headers={"x-request-id": id}).status_code == 200

    def told() -> list[tuple[Any, ...]]:
        table = read_predictions(settings)
        changes = [None if each is None else [*each] for each in table["changes"]]
        return [*zip(table["id"], table["row"], table["protocol"], changes, strict=True)]

    ask_all()
    clipped = ["seats: above the maximum, clipped"]  # and nothing of a column that is redacted
    expected = [
        ("plain", 0, "predict", None),
        ("plain", 1, "predict", None),
        ("odd", 0, "predict", None),
        ("odd", 1, "predict", clipped),
        ("why", 0, "explain", clipped),
    ]
    assert told() == expected
    compact(settings)
    assert told() == expected
    with closing(sqlite3.connect(tmp_path / "log.db")) as database:  # as a release without it had made it
        database.execute("ALTER TABLE n2p_answers DROP COLUMN changes")
    ask_all()
    compact(settings)
    assert [each[3] for each in told()] == [None] * 5 + [None, None, None, clipped, clipped]


def test_the_predictor_deals_with_it_too(bundle: Bundle) -> None:
    predictor = load_predictor(bundle.path)
    with pytest.warns(UserWarning, match="row 0, 'seats': above the maximum, clipped"):
        found = predictor.predict([bundle.golden["rows"][0] | {"seats": 1e6}])
    expected = predictor.predict([bundle.golden["rows"][0] | {"seats": bundle.schema.columns[2].maximum}])
    assert found == expected


TABLE = pd.DataFrame(
    {
        "count": np.array([1, 2, 100], "int8"),
        "share": [0.1, 0.2, 0.9],
        "code": ["a", "a", "b"],
        "gate": pd.Categorical([1, 3, 3]),
        "wet": [True, True, False],
        "when": pd.to_datetime(["2013-01-01", "2013-01-03", "2013-01-31"]),
        "seen": pd.to_datetime(["2013-01-01", "2013-01-03", "2013-01-31"]).tz_localize("Europe/Berlin"),
    }
)
OK: dict[str, Any] = {
    "count": 2,
    "share": 0.2,
    "code": "a",
    "gate": 3,
    "wet": True,
    "when": "2013-01-03T00:00:00",
    "seen": "2013-01-03T00:00:00+01:00",
}


def edited(**policies: str) -> tuple[Decoder, Schema]:
    schema = infer_schema(TABLE)
    for name, policy in policies.items():
        schema = schema.edit(name, policy=policy)
    imputed = imputed_values(schema, Profile(profile_table(TABLE, schema), ()))
    return Decoder(schema, policies=Policies(schema, imputed)), schema


CASES: list[tuple[str, str, Any, Any, str]] = [
    ("count", "clip", 101, 100, "above the maximum, clipped"),
    ("count", "clip", 10**6, 100, "above the maximum, clipped"),
    ("count", "clip", -5, 1, "below the minimum, clipped"),
    ("count", "impute", 10**6, 2, "above the maximum, imputed"),
    ("count", "impute", None, 2, "missing, imputed"),
    ("count", "warn", 120, 120, "above the maximum, taken"),
    ("share", "clip", -1e300, 0.1, "below the minimum, clipped"),
    ("share", "impute", None, 0.2, "missing, imputed"),
    ("share", "warn", None, None, "missing, taken"),
    ("code", "impute", "zz", "a", "unseen, imputed"),
    ("code", "impute", None, "a", "missing, imputed"),
    ("code", "warn", "zz", "zz", "unseen, taken"),
    ("gate", "impute", 2, 3, "unseen, imputed"),
    ("gate", "impute", None, 3, "missing, imputed"),
    ("wet", "impute", None, True, "missing, imputed"),
    ("when", "clip", "2014-01-01", "2013-01-31T00:00:00", "above the maximum, clipped"),
    ("when", "impute", None, "2013-01-03T00:00:00", "missing, imputed"),
    ("when", "warn", "1999-01-01", "1999-01-01", "below the minimum, taken"),
    ("seen", "impute", "1999-01-01T00:00:00Z", "2013-01-02T23:00:00+00:00", "below the minimum, imputed"),
]


@pytest.mark.parametrize(("column", "policy", "sent", "meant", "what"), CASES)
def test_every_policy_of_every_kind(column: str, policy: str, sent: Any, meant: Any, what: str) -> None:
    decode, schema = edited(**{column: policy})
    body = json.dumps([OK, OK | {column: sent}]).encode()
    found = decode(body)
    assert isinstance(found, Adjusted), found
    assert found == [tuple(OK.values()), tuple((OK | {column: meant}).values())]
    assert [(change.row, change.column, change.what) for change in found.changes] == [(1, column, what)]
    columns_to_table(schema, [*map(list, zip(*found, strict=True))])
    good = decode(json.dumps([OK] * 2).encode())
    assert type(good) is list and good == [tuple(OK.values())] * 2
    assert decode.quickly is None or decode.quickly(json.dumps(OK).encode()) == [tuple(OK.values())]


@pytest.mark.parametrize("policy", ["clip", "impute", "warn"])
@pytest.mark.parametrize(
    ("column", "value"), [("count", "1"), ("count", 1.5), ("share", "x"), ("code", 1), ("when", "soon")]
)
def test_no_policy_takes_another_type(policy: str, column: str, value: Any) -> None:
    if (policy, column) == ("clip", "code"):
        with pytest.raises(DataError, match="no policy 'clip'"):
            infer_schema(TABLE).edit("code", policy="clip")
        return
    decode, _ = edited(**{column: policy})
    found = decode(json.dumps(OK | {column: value}).encode())
    assert isinstance(found, Refusal) and {each["loc"][-1] for each in found.detail} == {column}
    nan = decode(json.dumps(OK | {"share": float("inf")}).encode())
    assert isinstance(nan, Refusal)


def test_what_a_policy_does_not_deal_with_is_refused() -> None:
    for column, policy, value in (
        ("count", "clip", None),
        ("count", "warn", None),
        ("wet", "warn", None),
        ("count", "clip", 2**70),
    ):
        decode, _ = edited(**{column: policy})
        assert isinstance(decode(json.dumps(OK | {column: value}).encode()), Refusal)
    with pytest.raises(DataError, match="no policy 'warn'"):
        infer_schema(TABLE).edit("gate", policy="warn")
    with pytest.raises(DataError, match="no policy"):
        infer_schema(TABLE).edit("gate", policy=1)


def test_a_schema_without_policies_is_the_one_of_before() -> None:
    schema = infer_schema(TABLE)
    kept = schema.to_dict()
    assert all("policy" not in column for column in kept["columns"])
    assert Schema.from_dict(kept) == schema
    other = schema.edit("share", policy="clip")
    assert Schema.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert (other.columns[1].bounded, other.columns[1].maximum) == (True, 0.9)
    assert other.edit("share", policy="reject").columns[1].policy == "reject"
    assert not schema.edit("share", policy="impute", bounded=False).columns[1].bounded


# The document


def test_the_document_has_every_protocol_and_its_examples_work(client: httpx.Client, bundle: Bundle) -> None:
    document = client.get("/openapi.json").json()
    for path, kinds in {
        "/predict": {"application/json", "text/csv", ARROW},
        "/invocations": {"application/json", "text/csv"},
        "/v2/models/{model_name}/infer": {"application/json", "application/octet-stream"},
        "/v2/models/{model_name}/versions/{model_version}/infer": {"application/json", "application/octet-stream"},
    }.items():
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        assert content.keys() == kinds
        if path != "/predict":
            names = {each["name"]: each["example"] for each in operation.get("parameters", [])}
            answer = post(client, path.format(**names), content["application/json"]["example"])
            assert said(answer) == bundle.golden["predictions"][:2]
    assert {"/explain", "/v2", "/v2/health/live", "/v2/health/ready"} <= document["paths"].keys()


# Explanations


def test_contributions_add_up_to_what_the_model_says(tmp_path: Path) -> None:
    pipeline, table = fitted("LogisticRegression", 200)
    bundle = bundle_of(tmp_path, pipeline, table)
    predictor = load_predictor(bundle.path, name="flights", version="1")
    asked = TestClient(create_app(predictor))
    rows = bundle.golden["rows"][:4]
    answer = asked.post("/explain", json=rows).json()
    frame = to_table(bundle.schema, rows)
    assert answer["predictions"] == pipeline.predict(frame).tolist() == bundle.golden["predictions"][:4]
    sums = np.array([np.sum([values for values in row.values()], axis=0) for row in answer["contributions"]])
    largest_difference(pipeline.decision_function(frame).tolist(), (np.array(answer["base"]) + sums).tolist())
    unused = {name for name in rows[0] if all(np.all(row[name] == 0) for row in map(dict, answer["contributions"]))}
    assert unused == {"weekday"}, "the pipeline drops it, and it alone"
    wrong = asked.post("/explain", json=[rows[0] | {"distance": "far"}])
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"][-1]) == (422, "distance")
    many = asked.post("/explain", json=bundle.golden["rows"] * 40)
    assert (many.status_code, many.json()["detail"][0]["type"]) == (422, "too_long")
    assert asked.post("/explain", content=b"a,b", headers={"content-type": "text/plain"}).status_code == 415


def test_a_model_that_is_no_sum_has_no_explanation_but_a_reason(tmp_path: Path) -> None:
    pipeline, table = fitted("KNeighborsClassifier", 200)
    asked = TestClient(create_app(load_predictor(bundle_of(tmp_path, pipeline, table).path)))
    [told] = asked.post("/explain", json=[]).json()["detail"]
    assert told["type"] == "no_explanation" and "KNeighborsClassifier" in told["msg"]


def test_a_forest_is_explained_by_the_running_service(client: httpx.Client, bundle: Bundle) -> None:
    answer = client.post("/explain", json=bundle.golden["rows"][:3]).json()
    assert answer["predictions"] == bundle.golden["predictions"][:3]
    sums = np.array([np.sum([values for values in row.values()], axis=0) for row in answer["contributions"]])
    largest_difference(bundle.golden["probabilities"][:3], (np.array(answer["base"]) + sums).tolist())


def test_an_exported_service_brings_every_module_that_it_imports(tmp_path: Path) -> None:
    for name, text in _runtime_texts().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    script = "import notebook_to_prod.serve.app as app; print(app.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(str(tmp_path)), done.stderr


# Hooks


def test_hooks_see_every_protocol_and_refuse_in_its_words(bundle: Bundle) -> None:
    predictor = load_predictor(bundle.path, name="flights", version="1")
    service, told = Service(Model(predictor), body_limit=4_000), []
    closed = [refusal(401, "key", ["header"], "No key")]
    service.admit.append(lambda call: closed[0] if (b"x-key", b"wrong") in call.scope["headers"] else None)
    service.after.append(lambda call: told.append((call.wire and call.wire.name, call.status, len(call.changes))))
    mine = TestClient(create_app(predictor, service))
    rows = [bundle.golden["rows"][0] | {"seats": 1e6}]
    for spelling in ("csv", "dataframe_records", "infer"):
        path, spell, kind = SPELT[spelling]
        name = {"csv": "predict", "dataframe_records": "invocations", "infer": "infer"}[spelling]
        kind = kind or "application/json"
        assert post(mine, path, spell(rows), kind).status_code == 200  # type: ignore[arg-type]
        refused = post(mine, path, spell(rows), kind, **{"x-key": "wrong"}).json()  # type: ignore[arg-type]
        if name == "invocations":
            assert (refused["error_code"], refused["message"]) == ("UNAUTHENTICATED", "No key")
        elif name == "infer":
            assert refused["error"] == "No key"
        assert post(mine, path, spell(rows * 200), kind).status_code == 413  # type: ignore[arg-type]
        assert told == [(name, 200, 1), (None if name == "predict" else name, 401, 0), told[2]]
        assert told[2][1:] == (413, 0)
        told.clear()
