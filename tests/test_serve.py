"""The service: what the pipeline says, exactly, over a real socket; and a reason, never a crash, for anything else."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from notebooks import SCRIPTS, Project, finish, once
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from test_registry import flights, register, run_id, train
from test_schema import reproducible

from notebook_to_prod.errors import DataError
from notebook_to_prod.package.bundle import load_pipeline, open_bundle
from notebook_to_prod.package.schema import infer_schema
from notebook_to_prod.package.session import start
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.predictor import CLOSER, load_predictor
from notebook_to_prod.serve.request import row_model

FRAME = flights()
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Service:
    """A running `n2p serve`, and the model that it serves."""

    process: subprocess.Popen[str]
    announced: dict[str, Any]
    bundle_path: Path

    @cached_property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.announced["url"], timeout=60, trust_env=False)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline itself, loaded in this process."""
        return load_pipeline(open_bundle(self.bundle_path))

    @cached_property
    def golden(self) -> dict[str, Any]:
        return open_bundle(self.bundle_path).golden

    def post(self, body: Any) -> httpx.Response:
        """Send `body` as JSON, NaN and lone surrogates included."""
        return self.send(json.dumps(body).encode())

    def send(self, content: bytes, headers: dict[str, str] = JSON) -> httpx.Response:
        return self.client.post("/predict", content=content, headers=headers)


def serve(project: Project, reference: str, log: Path) -> subprocess.Popen[str]:
    """Start `n2p serve` on a free port, its standard error in the file `log`."""
    command = [SCRIPTS / "n2p", "serve", reference, "--port", "0", "--json"]
    with log.open("w") as errors:
        return subprocess.Popen(
            command, cwd=project.folder, env=project.environment({}), stdout=subprocess.PIPE, stderr=errors, text=True
        )


def announcement(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    return json.loads(process.stdout.readline())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a classification and a regression in production."""
    project = once(tmp_path_factory, "trained", train)
    registry = Registry(Store(project.home))
    for model, run in (("classes", "five"), ("delays", "regression")):
        (version,) = register(project, model, run)
        registry.promote(model, version.version)
    return project


def running(project: Project, model: str, log: Path) -> Iterator[Service]:
    process = serve(project, f"{model}@production", log)
    try:
        announced = announcement(process)
        yield Service(process, announced, Store(project.home).bundle(announced["bundle"]))
    finally:
        process.terminate()
        process.wait(30)
    assert "Internal Server Error" not in log.read_text()


@pytest.fixture(scope="session")
def classifier(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of the classification."""
    yield from running(trained, "classes", tmp_path_factory.mktemp("service") / "log")


@pytest.fixture(scope="session")
def regressor(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of the regression."""
    yield from running(trained, "delays", tmp_path_factory.mktemp("service") / "log")


def plain(value: Any) -> Any:
    """A cell of the table as JSON, written here once more, without the package."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.isoformat() if isinstance(value, pd.Timestamp) else value.item() if hasattr(value, "item") else value


ROWS = [{name: plain(FRAME[name].iloc[position]) for name in FRAME} for position in range(len(FRAME))]
COLUMNS = {name: [row[name] for row in ROWS] for name in FRAME}
GOOD = ROWS[3]


# What it answers


def test_the_rows_cover_every_kind_of_value() -> None:
    assert {name for row in ROWS for name, value in row.items() if value is None} == {"class", "size", "seats"}
    assert None not in GOOD.values()


@pytest.mark.parametrize("shape", ["one", "list", "rows", "columns"])
def test_classes_and_probabilities_are_exactly_the_pipelines(shape: str, classifier: Service) -> None:
    table = FRAME.iloc[3:4] if shape == "one" else FRAME
    answer = classifier.post(
        {"one": GOOD, "list": ROWS, "rows": {"rows": ROWS}, "columns": {"columns": COLUMNS}}[shape]
    ).json()
    assert answer["predictions"] == classifier.pipeline.predict(table).tolist()
    assert answer["probabilities"] == classifier.pipeline.predict_proba(table).tolist()
    assert answer["classes"] == classifier.pipeline.classes_.tolist() == ["early", "late", "on time"]
    assert (answer["model"], answer["version"], answer["bundle"]) == ("classes", "1", classifier.announced["bundle"])


@pytest.mark.parametrize("shape", ["one", "list", "rows"])
def test_numbers_are_exactly_the_pipelines(shape: str, regressor: Service) -> None:
    table = FRAME.iloc[3:4] if shape == "one" else FRAME
    answer = regressor.post({"one": GOOD, "list": ROWS, "rows": {"rows": ROWS}}[shape]).json()
    assert answer["predictions"] == regressor.pipeline.predict(table).tolist()
    assert (answer["probabilities"], answer["classes"]) == (None, None)


@pytest.mark.parametrize("column", ["class", "size", "seats"])
def test_null_is_a_missing_value(column: str, regressor: Service) -> None:
    table = FRAME.iloc[3:4].copy()
    table[column] = table[column].where([False])
    assert regressor.post(GOOD | {column: None}).json()["predictions"] == regressor.pipeline.predict(table).tolist()


@pytest.mark.parametrize(
    ("column", "sent", "meant"),
    [
        ("seats", 12.0, 12),
        ("class", 2, 2.0),
        ("class", -0.0, -0.0),
        ("class", 5e-324, 5e-324),
        ("class", 0.1 + 0.2, 0.1 + 0.2),
        ("ä", "a wind that training has not seen", "a wind that training has not seen"),
        ("when", "2031-07-01T23:59:59.123456789", pd.Timestamp("2031-07-01T23:59:59.123456789")),
        ("when", "2031-07-01", pd.Timestamp("2031-07-01")),
        ("seen", "2031-07-01T23:30:00Z", pd.Timestamp("2031-07-02T01:30:00", tz="Europe/Berlin")),
        ("seen", "2031-07-01T23:30:00-05:00", pd.Timestamp("2031-07-02T06:30:00", tz="Europe/Berlin")),
    ],
)
def test_a_value_means_what_it_says(column: str, sent: Any, meant: Any, regressor: Service) -> None:
    table = FRAME.iloc[3:4].copy()
    table[column] = pd.Series([meant], index=table.index).astype(FRAME[column].dtype)
    answer = regressor.post(GOOD | {column: sent})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == regressor.pipeline.predict(table).tolist()


@pytest.mark.parametrize(("rows", "wrong"), [(0, 0), (1, 1), (3, 2)])
def test_a_prediction_that_is_no_finite_number_is_refused(rows: int, wrong: int, regressor: Service) -> None:
    overflowing = GOOD | {"class": 1.7e308}
    answer = regressor.post(
        [GOOD | {"class": 0.1}] * wrong + [overflowing] + [GOOD] * (rows - wrong) if rows else overflowing
    )
    assert answer.status_code == 422, answer.text
    said = json.loads(answer.text, parse_constant=pytest.fail)
    where = f"row {wrong}, 'class': beyond what training saw"
    msg = f"The model gave no finite number for this input ({where}): {CLOSER}"
    assert said == {"detail": [{"type": "not_finite", "loc": ["body"], "msg": msg}]}


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 5), (130, 70)])
def test_a_pipeline_that_raises_is_a_refusal_that_names_the_row(before: int, after: int, classifier: Service) -> None:
    bad = GOOD | {"ä": "", "class": 50.0}  # FirstWord raises an IndexError
    answer = classifier.post([GOOD] * before + [bad] + [GOOD] * after)
    assert answer.status_code == 422, answer.text
    where = f"row {before}, 'class': beyond what training saw"
    assert answer.json()["detail"][0]["msg"] == f"The model cannot score this input ({where}): {CLOSER}"


def test_a_row_without_odd_numbers_names_the_value_that_training_never_saw(classifier: Service) -> None:
    answer = classifier.post([GOOD, GOOD | {"ä": ""}])
    assert answer.status_code == 422, answer.text
    where = "row 1, 'ä': a value that training never saw"
    assert answer.json()["detail"][0]["msg"] == f"The model cannot score this input ({where}): {CLOSER}"


# What it refuses, field by field

WRONG_FIELDS: dict[str, tuple[str, Any]] = {
    "text-for-a-number": ("class", "far"),
    "digits-for-a-number": ("class", "1"),
    "true-for-a-number": ("class", True),
    "list-for-a-number": ("class", [1.0]),
    "object-for-a-number": ("class", {"value": 1}),
    "NaN": ("class", math.nan),
    "infinity": ("class", math.inf),
    "minus-infinity": ("class", -math.inf),
    "a-number-beyond-floats": ("class", 10**400),
    "fraction-for-a-whole-number": ("model_config", 1.5),
    "digits-for-a-whole-number": ("model_config", "1"),
    "true-for-a-whole-number": ("model_config", True),
    "NaN-for-a-whole-number": ("model_config", math.nan),
    "null-where-none-was-missing": ("model_config", None),
    "beyond-int8": ("model_config", 128),
    "below-int8": ("model_config", -129),
    "huge": ("model_config", 10**30),
    "huge-float": ("seats", 1e300),
    "beyond-int64": ("seats", 2**63),
    "one-for-a-boolean": ("a b", 1),
    "text-for-a-boolean": ("a b", "true"),
    "null-for-a-boolean": ("a b", None),
    "number-for-a-text": ("ä", 1),
    "null-for-a-text": ("ä", None),
    "surrogate-for-a-number": ("class", "\ud800"),
    "unknown-category": ("size", "huge"),
    "number-for-a-category": ("size", 1),
    "unknown-number-category": ("gate", 4),
    "text-for-a-number-category": ("gate", "1"),
    "true-for-a-number-category": ("gate", True),
    "number-for-a-moment": ("when", 1704067200),
    "text-for-a-moment": ("when", "yesterday"),
    "thirteenth-month": ("when", "2024-13-01T00:00:00"),
    "week-date": ("when", "2024-W01-1"),
    "before-nanoseconds": ("when", "0001-01-01T00:00:00"),
    "offset-where-there-was-none": ("when", "2024-01-01T00:00:00Z"),
    "no-offset-where-there-was-one": ("seen", "2024-01-01T00:00:00"),
}


def wrong_fields(answer: httpx.Response) -> set[Any]:
    assert answer.status_code == 422, answer.text[:500]
    assert all({"type", "loc", "msg"} <= detail.keys() for detail in answer.json()["detail"])
    return {detail["loc"][-1] for detail in answer.json()["detail"]}


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(case: str, classifier: Service) -> None:
    column, value = WRONG_FIELDS[case]
    assert wrong_fields(classifier.post(GOOD | {column: value})) == {column}


@pytest.mark.parametrize("column", FRAME.columns)
def test_a_missing_field_is_named(column: str, classifier: Service) -> None:
    assert wrong_fields(classifier.post({name: value for name, value in GOOD.items() if name != column})) == {column}


@pytest.mark.parametrize("name", ["gates", "", "column_0", "model_config ", "\x00", "__class__", "rows"])
def test_an_extra_field_is_named(name: str, classifier: Service) -> None:
    assert wrong_fields(classifier.post(GOOD | {name: 1})) == {name}


def test_every_wrong_field_of_the_first_wrong_row_is_named(classifier: Service) -> None:
    rows = [GOOD, GOOD | {"class": "x", "size": "x"}, GOOD, GOOD | {"seats": "x"}]
    for body in (rows, {"rows": rows}):
        details = classifier.post(body).json()["detail"]
        assert [detail["loc"][-2:] for detail in details] == [[1, "class"], [1, "size"]]
    details = classifier.post({"columns": {name: [row[name] for row in rows] for name in GOOD}}).json()["detail"]
    assert sorted(detail["loc"][-2:] for detail in details) == [["class", 1], ["seats", 3], ["size", 1]]


def test_columns_of_different_lengths_are_refused(classifier: Service) -> None:
    answer = classifier.post({"columns": COLUMNS | {"class": [1.0]}})
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "lengths_differ"), answer.text


# What it refuses as a whole

ROW = json.dumps(GOOD)
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "empty-list": b"[]",
    "empty-rows": b'{"rows": []}',
    "empty-object": b"{}",
    "null": b"null",
    "number": b"1",
    "text": b'"flight"',
    "NaN": b"NaN",
    "rows-of-NaN": b'{"rows": NaN}',
    "list-of-NaN": b"[NaN]",
    "rows-as-object": f'{{"rows": {ROW}}}'.encode(),
    "rows-and-more": f'{{"rows": [{ROW}], "more": 1}}'.encode(),
    "list-of-lists": f"[[{ROW}]]".encode(),
    "cut": ROW[:-5].encode(),
    "trailing": f"{ROW} 1".encode(),
    "single-quotes": ROW.replace('"', "'").encode(),
    "comment": f"// a flight\n{ROW}".encode(),
    "duplicate-key": f'{ROW[:-1]}, "class": 5.0}}'.encode(),
    "surrogate-as-key": f'{ROW[:-1]}, "\\ud800": 1}}'.encode(),
    "many-digits": f'{ROW[:-1]}, "more": {"1" * 5000}}}'.encode(),
    "not-utf-8": b'{"class": "\xff"}',
    "deep-lists": b"[" * 100_000,
    "deep-objects": b'{"rows":' * 50_000 + b"1" + b"}" * 50_000,
    "deep-enough-to-parse": b"[" * 400 + b"]" * 400,
    "zeros": b"\x00" * 10_000_000,
    "letters": b"a" * 10_000_000,
    "random": np.random.default_rng(0).bytes(10_000_000),
    "long-text": json.dumps(GOOD | {"class": "a" * 10_000_000}).encode(),
    "many-empty-rows": json.dumps([{}] * 50_000).encode(),
    "too-many-rows": json.dumps([{}] * 100_001).encode(),
    "many-extra-fields": json.dumps(GOOD | {str(number): number for number in range(50_000)}).encode(),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_wrong_body_is_refused_in_a_few_words(case: str, classifier: Service) -> None:
    answer = classifier.send(BODIES[case])
    assert answer.status_code in (400, 413, 422), answer.text[:500]
    assert answer.json()["detail"]
    assert len(answer.content) < 100_000
    assert classifier.client.get("/health").status_code == 200


CONTENT_TYPES = ["text/plain", "application/xml", "application/octet-stream", "multipart/form-data", None]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("content", [ROW.encode(), b"\xff\xfe\x00"], ids=["row", "bytes"])
def test_a_wrong_content_type_is_refused(content: bytes, content_type: str | None, classifier: Service) -> None:
    answer = classifier.send(content, {"content-type": content_type} if content_type else {})
    assert answer.status_code in (415, 422), answer.text


def test_who_forgets_the_content_type_with_curl_is_told(classifier: Service) -> None:
    answer = classifier.send(ROW.encode(), {"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code in (415, 422)
    assert "application/json" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/health", 405), ("GET", "/nothing", 404)]
)
def test_other_requests_are_refused(method: str, path: str, status: int, classifier: Service) -> None:
    assert classifier.client.request(method, path).status_code == status


# Whatever comes

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["\ud800", 10**400, "1"])
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
ALMOST = st.dictionaries(st.sampled_from([*FRAME.columns]), ANYTHING, max_size=3).map(lambda wrong: GOOD | wrong)
REQUESTS = st.one_of(
    ANYTHING, ALMOST, st.lists(ALMOST, max_size=3), st.fixed_dictionaries({"rows": st.lists(ALMOST, max_size=3)})
)


def assert_answered(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text[:500]
    json.loads(answer.text, parse_constant=pytest.fail)


@given(body=REQUESTS)
@settings(reproducible, max_examples=150)
def test_no_json_crashes_the_service(body: Any, classifier: Service) -> None:
    assert_answered(classifier.post(body))


@given(content=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: f'{ROW[:-1]},"{text}":1}}'.encode()))
@settings(reproducible, max_examples=60)
def test_no_bytes_crash_the_service(content: bytes, classifier: Service) -> None:
    for headers in (JSON, {}, {"content-type": "text/plain"}):
        assert_answered(classifier.send(content, headers))


@pytest.mark.parametrize(
    ("zone", "right", "wrong"),
    [
        (None, ("2013-01-31T17:45:00", "2013-01-31", "2013-01-31 17:45"), ("2013-01-31T17:45:00Z", "31.1.2013")),
        ("UTC", ("2013-01-31T17:45:00Z", "2013-01-31T17:45:00+01:00"), ("2013-01-31T17:45:00",)),
    ],
)
def test_what_is_said_of_moments_is_what_is_taken(
    zone: str | None, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    table = pd.DataFrame({"day": pd.date_range("2013-01-01", periods=3, tz=zone)})
    model = row_model(infer_schema(table))
    told = model.model_json_schema()["properties"]["day"]
    assert ("format" in told) == (zone is not None) and "offset from UTC" in told["description"]
    for text in right:
        assert model.model_validate({"day": text}) and re.fullmatch(told.get("pattern", ".*"), text)
    for text in wrong:
        with pytest.raises(ValueError, match="day"):
            model.model_validate({"day": text})
        assert zone or not re.fullmatch(told["pattern"], text), "the description is as strict as the check"


def described(schema: dict[str, Any], components: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Whatever a schema of OpenAPI allows."""
    if "$ref" in schema:
        return described(components[schema["$ref"].rpartition("/")[2]], components)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([described(option, components) for option in options])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    if schema.get("format") == "date-time":
        return st.datetimes().map(lambda moment: moment.isoformat()) | st.datetimes().map(
            lambda moment: f"{moment.isoformat()}Z"
        )
    match schema.get("type"):
        case "object":
            return st.fixed_dictionaries(
                {name: described(inner, components) for name, inner in schema["properties"].items()}
            )
        case "array":
            return st.lists(described(schema["items"], components), min_size=1, max_size=3)
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
    return {
        "null": st.none(),
        "boolean": st.booleans(),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "string": st.text(),
    }[schema["type"]]


@given(data=st.data())
@settings(reproducible, max_examples=80)
def test_what_the_description_allows_is_answered(data: st.DataObject, classifier: Service) -> None:
    description = classifier.client.get("/openapi.json").json()
    body = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    answer = classifier.post(data.draw(described(body, description["components"]["schemas"])))
    assert_answered(answer)
    if answer.status_code == 422:  # what OpenAPI cannot say: an offset or none, what the pipeline itself refuses
        places = [detail["loc"] for detail in answer.json()["detail"]]
        fields = {next(part for part in reversed(place) if isinstance(part, str)) for place in places}
        assert fields <= {"when", "seen", "ä", "class", "body", "columns"}  # columns of different lengths


def test_the_description_is_the_schema(classifier: Service) -> None:
    description = classifier.client.get("/openapi.json").json()
    row = description["components"]["schemas"]["Row"]
    assert set(row["properties"]) == set(row["required"]) == set(FRAME.columns)
    assert row["additionalProperties"] is False
    assert (row["properties"]["model_config"]["minimum"], row["properties"]["model_config"]["maximum"]) == (-128, 127)
    examples = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = classifier.post(example["value"])
        assert answer.status_code == 200
        count = len(answer.json()["predictions"])
        assert answer.json()["predictions"] == classifier.golden["predictions"][:count]


@pytest.mark.parametrize("path", ["/predict", "/explain", "/invocations", "/v2/models/{model_name}/infer"])
def test_the_description_names_every_status(classifier: Service, path: str) -> None:
    document = classifier.client.get("/openapi.json").json()
    assert {"200", "408", "413", "415", "500", "503", "504"} <= {*document["paths"][path]["post"]["responses"]}


def test_the_description_shows_the_metrics_of_the_run(classifier: Service, trained: Project) -> None:
    said = classifier.client.get("/openapi.json").json()["info"]["description"]
    score = trained.record(run_id(trained, "five"))["metrics"]["score"]
    assert f"Metrics: score {score:.4g}." in said


@pytest.mark.parametrize(("path", "status"), [("/health", "ok"), ("/ready", "ready")])
def test_probes_say_who_answers(path: str, status: str, classifier: Service) -> None:
    identity = {name: classifier.announced[name] for name in ("model", "version", "bundle")}
    assert classifier.client.get(path).json() == {"status": status, **identity}


def test_the_documentation_needs_no_other_site(classifier: Service) -> None:
    page = classifier.client.get("/docs")
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert "swagger" in page.text.lower()
    assert "https://" not in page.text
    assert classifier.client.get("/").headers["location"] == "/docs"


# The process


def test_a_port_that_is_taken_ends_with_3(classifier: Service, trained: Project) -> None:
    port = classifier.announced["url"].rpartition(":")[2]
    done = trained.n2p("serve", "classes@production", "--port", port, "--json")
    assert (done.code, done.error["type"], done.error["where"]) == (3, "ServerError", f"127.0.0.1:{port}")
    assert "--port" in done.error["remedy"]


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [("nobody@production", "n2p register"), ("nobody", "n2p register"), ("classes@staging", "n2p promote classes")],
)
def test_an_unknown_reference_ends_with_2(reference: str, remedy: str, trained: Project) -> None:
    done = trained.n2p("serve", reference, "--port", "0", "--json")
    assert (done.code, done.error["type"]) == (2, "NotFoundError")
    assert remedy in done.error["remedy"]


@pytest.mark.parametrize(("stop", "codes"), [(signal.SIGINT, {0, 130}), (signal.SIGTERM, {0, 143, -15})])
def test_a_signal_stops_the_service_without_a_traceback(
    stop: signal.Signals, codes: set[int], trained: Project, tmp_path: Path
) -> None:
    process = serve(trained, "delays@1", tmp_path / "log")
    announced = announcement(process)
    assert httpx.get(f"{announced['url']}/ready", trust_env=False).json()["version"] == "1"
    process.send_signal(stop)
    done = finish(process)
    assert done.code in codes
    assert done.stdout == ""
    assert "Traceback" not in (tmp_path / "log").read_text()


# The log, which is on unless a project says otherwise


def test_what_was_answered_is_read_labelled_and_compacted(
    classifier: Service, trained: Project, tmp_path: Path
) -> None:
    sent = classifier.client.post("/predict", json=ROWS, headers={"x-request-id": "all-rows"})
    assert (sent.status_code, sent.headers["x-request-id"]) == (200, "all-rows")
    last = trained.n2p("predictions", "show", "classes", "--last", str(len(ROWS)), "--json").json["predictions"]
    assert [row["prediction"] for row in last] == sent.json()["predictions"]
    assert {name: last[3][f"feature.{name}"] for name in GOOD} == GOOD
    (tmp_path / "labels.csv").write_text("id,row,label\nall-rows,0,late\nall-rows,3,on time\nnobody,0,late\n")
    taken = trained.n2p("predictions", "feedback", "classes", str(tmp_path / "labels.csv"), "--json")
    assert taken.json["labels"] == 3, taken.stderr
    (tmp_path / "wrong.csv").write_text("id,label\nall-rows,never\n")
    refused = trained.n2p("predictions", "feedback", "classes", str(tmp_path / "wrong.csv"), "--json")
    assert (refused.code, refused.error["where"]) == (2, f"{tmp_path / 'wrong.csv'}, line 2, label")
    before = trained.n2p("predictions", "count", "classes", "--json").json
    assert (before["labels"], before["versions"]) == (2, {"1": before["predictions"]})
    assert before["labels_without_prediction"] == 1
    compacted = trained.n2p("predictions", "compact", "classes", "--json").json
    assert compacted["labels"] == 3 and compacted["waiting"] == 1  # the service still writes
    assert trained.n2p("predictions", "count", "classes", "--json").json == before
    for of_version in ("classes@1", "classes@production"):
        alone = trained.n2p("predictions", "count", of_version, "--json").json
        assert (alone["predictions"], alone["labels_without_prediction"]) == (before["predictions"], None)
    assert "late" in trained.n2p("predictions", "show", "classes").stdout
    unknown = trained.n2p("predictions", "show", "clases", "--json")
    assert (unknown.code, unknown.error["type"]) == (2, "NotFoundError")


# The predictor in a process of one's own


def test_a_predictor_answers_like_the_service(classifier: Service) -> None:
    predictor = load_predictor(classifier.bundle_path)
    said = predictor.predict(ROWS)
    answer = classifier.post(ROWS).json()
    assert (said.predictions, said.probabilities) == (answer["predictions"], answer["probabilities"])
    assert predictor.predict([]).predictions == []
    with pytest.raises(DataError, match="row 1, 'class'"):
        predictor.predict([GOOD, GOOD | {"class": "x"}])


# What the notebook has edited


def test_a_service_asks_what_the_notebook_has_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_HOME", str(tmp_path))
    table = pd.DataFrame({"age": range(20, 60), "fare": np.linspace(1, 9, 40), "port": ["JFK", "EWR"] * 20})
    table["at"] = pd.date_range("2013-01-01", periods=40)
    prepare = make_column_transformer(
        ("passthrough", ["age", "fare"]), (OneHotEncoder(handle_unknown="ignore"), ["port"])
    )
    model = make_pipeline(prepare, LinearRegression()).fit(table, table["fare"])
    schema = infer_schema(table).edit("age", minimum=18, maximum=120).edit("fare", minimum=0)
    schema = schema.edit("port", allow_unseen=False).edit("at", maximum="2013-12-31")
    bundle = start().export(model, table, table["fare"], table, table["fare"], schema=schema)
    client = TestClient(create_app(load_predictor(bundle.path)))
    good = bundle.golden["rows"][0]
    for fine in ({"age": 120}, {"age": 18}, {"fare": 1e6}, {"at": "1970-01-01T00:00:00"}):
        assert client.post("/predict", json=good | fine).status_code == 200
    for name, wrong in (("age", 17), ("age", 121), ("fare", -0.5), ("port", "LGA"), ("at", "2014-01-01T00:00:00")):
        assert wrong_fields(client.post("/predict", json=good | {name: wrong})) == {name}
    described = client.get("/openapi.json").json()["components"]["schemas"]["Row"]["properties"]
    assert (described["age"]["minimum"], described["age"]["maximum"], described["fare"]["minimum"]) == (18, 120, 0)
    assert "maximum" not in described["fare"]
