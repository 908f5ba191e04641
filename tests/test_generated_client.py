"""A client that a generator has made of the served description: its types are those of the model, its answers those of the golden rows."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import started
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from test_request_log import SCRIPT
from test_scorer import bundle_of

from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.serve.log.compact import read_predictions
from notebook_to_prod.serve.log.request_log import LogSettings

# How the generator calls each column: a keyword, two that differ in capitals, spaces, a digit first, other letters
FIELDS = {
    "class": "class_",
    "dep delay (min)": "dep_delay_min",
    "Größe": "gr_öß_e",
    "größe": "größe",
    "self": "self_",
    "1st": "field_1st",
    "a-b": "ab",
    "a_b": "a_b",
    "weather kind": "weather_kind",
    "from": "from_",
    "出発": "出発",
}
NUMBERS = [name for name in FIELDS if name not in ("weather kind", "from", "出発")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose columns no program would call so."""
    draws = np.random.default_rng(7)
    table = pd.DataFrame({name: draws.normal(size=300) for name in NUMBERS}, columns=[*FIELDS])
    table.loc[draws.random(300) < 0.3, "Größe"] = np.nan
    table["weather kind"] = draws.choice(["sun", "rain", "snow storm"], 300)
    table["from"] = draws.choice([True, False], 300)
    table["出発"] = draws.integers(0, 9, 300)
    late = np.where(table["class"] + draws.normal(size=300) > 0, "late", "on time")
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
        (OneHotEncoder(), ["weather kind"]),
        (FunctionTransformer(), ["from", "出発"]),
    )
    return bundle_of(
        tmp_path_factory.mktemp("awkward"), make_pipeline(columns, LogisticRegression()).fit(table, late), table
    )


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a service with a log, and the log's folder."""
    folder = tmp_path_factory.mktemp("service")
    settings = json.dumps({"log": {"folder": str(folder / "log")}})
    with started([sys.executable, "-c", SCRIPT, bundle.path, 1, settings], folder / "stderr") as (_, url):
        yield url, folder / "log"


@pytest.fixture(scope="module")
def package(served: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The generated package."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "settings.yml").write_text("post_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{served[0]}/openapi.json"]
    command += ["--meta", "none", "--output-path", str(folder / "awkward_client"), "--config", "settings.yml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in (done.stdout + done.stderr).splitlines() if "nsupported" in line or "rror" in line]
    assert {*told} <= {
        "Unsupported content type text/csv",
        "Unsupported content type application/vnd.apache.arrow.stream",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("awkward_client")


@pytest.fixture(scope="module")
def ask(served: tuple[str, Path], package: ModuleType) -> Any:
    """A function that calls an operation by its name."""
    client = package.Client(base_url=served[0], httpx_args={"trust_env": False}, timeout=60)

    def call(operation: str, **arguments: Any) -> Any:
        return importlib.import_module(f"awkward_client.api.{operation}").sync_detailed(client=client, **arguments)

    return call


@pytest.fixture(scope="module")
def models(package: ModuleType) -> ModuleType:
    return importlib.import_module("awkward_client.models")


def as_typed(models: ModuleType, row: dict[str, Any]) -> Any:
    """A golden row, as who uses the client would write it."""
    values = {FIELDS[name]: value for name, value in row.items()}
    return models.Row(**values | {"weather_kind": models.RowWeatherKind(values["weather_kind"])})


def test_one_row_and_many_are_predicted_as_they_were_in_training(bundle: Bundle, ask: Any, models: ModuleType) -> None:
    golden = bundle.golden
    rows = [as_typed(models, row) for row in golden["rows"]]
    assert any(row.gr_öß_e is None for row in rows)  # a column that may be missing
    bodies = {"list": rows, "rows": models.Rows(rows=rows)}
    values = {name: [getattr(row, field) for row in rows] for name, field in FIELDS.items()}
    bodies["columns"] = models.Columns(columns=models.Values(**{FIELDS[name]: each for name, each in values.items()}))
    for body in bodies.values():
        answer = ask("default.predict", body=body).parsed
        assert isinstance(answer, models.Answer) and answer.predictions == golden["predictions"]
        assert answer.classes == ["late", "on time"] and answer.bundle == bundle.digest
        np.testing.assert_allclose(answer.probabilities, golden["probabilities"], rtol=0, atol=1e-12)
    single = ask("default.predict", body=rows[3]).parsed
    assert single.predictions == golden["predictions"][3:4] and (single.model, single.version) == ("flights", "1")


def test_what_is_wrong_comes_back_typed(bundle: Bundle, ask: Any, models: ModuleType) -> None:
    row = as_typed(models, bundle.golden["rows"][0])
    row.dep_delay_min = "late"
    refused = ask("default.predict", body=row)
    assert refused.status_code == 422 and isinstance(refused.parsed, models.HTTPValidationError)
    assert refused.parsed.detail[0].loc[-1] == "dep delay (min)" and refused.parsed.detail[0].msg


def test_health_readiness_and_feedback(served: tuple[str, Path], bundle: Bundle, ask: Any, models: ModuleType) -> None:
    assert ask("default.health").parsed == models.Status("ok", "flights", "1", bundle.digest)
    assert ask("default.ready").parsed.status == "ready"
    answered = ask("default.predict", body=as_typed(models, bundle.golden["rows"][0]))
    id = answered.headers["x-request-id"]
    label = models.Label(id=id, label=models.LabelLabel("on time"))
    assert ask("default.feedback", body=label).parsed == models.Accepted(accepted=1, pending=0)
    assert ask("default.feedback", body=[label, label]).parsed == models.Accepted(accepted=2, pending=0)
    found = read_predictions(LogSettings(folder=served[1])).set_index("id")
    assert found.loc[id, "label"] == "on time" and found.loc[id, "prediction"] == answered.parsed.predictions[0]


def test_the_open_inference_protocol_is_generated_too(ask: Any) -> None:
    assert ask("open_inference_protocol.v2_ready").status_code == 200
    assert ask("open_inference_protocol.v2_model", model_name="flights").status_code == 200
