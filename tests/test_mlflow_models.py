"""A promoted version is a model that plain MLflow loads and serves, in processes that know nothing of this toolkit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from mlflow.utils.virtualenv import _get_python_env
from notebooks import SCRIPTS, Project, finish
from test_registry import mlflow, register, registry, trained  # noqa: F401 - fixtures

from notebook_to_prod.errors import BundleError, DataError
from notebook_to_prod.package import keys
from notebook_to_prod.package.bundle import Bundle, copy_bundle, load_pipeline, open_bundle
from notebook_to_prod.package.lock import read_lock
from notebook_to_prod.package.schema import Column, Schema
from notebook_to_prod.project import Store
from notebook_to_prod.release.flavour import _load_pyfunc, bundle_within, restored_table, signature_of, write_model
from notebook_to_prod.release.registry import ModelVersion, Registry

NAME = "plain"


@pytest.fixture(scope="module")
def version(trained: Project, registry: Registry) -> ModelVersion:  # noqa: F811
    """A version in production, of a pipeline with a class of its notebook and columns of every kind."""
    (made,) = register(trained, NAME, "five")
    registry.promote(NAME, made.version)
    return registry.read(NAME, made.version)


@pytest.fixture(scope="module")
def bundle(version: ModelVersion, registry: Registry) -> Bundle:  # noqa: F811
    return registry.bundle(version)


@pytest.fixture(scope="module")
def flights(trained: Project, bundle: Bundle) -> pd.DataFrame:  # noqa: F811
    """The table that the notebook read, as it trained on it."""
    return pd.read_parquet(trained.folder / "flights.parquet").astype({"gate": "category"})


@pytest.fixture(scope="module")
def expected(bundle: Bundle, flights: pd.DataFrame) -> dict[str, Any]:
    """What the pipeline of the bundle says of that table."""
    pipeline = load_pipeline(bundle)
    return {"labels": pipeline.predict(flights).tolist(), "probabilities": pipeline.predict_proba(flights).tolist()}


def said(project: Project, folder: Path, script: str, *options: str, **variables: str) -> dict[str, Any]:
    """The JSON that a script prints in a process and a folder of its own."""
    variables |= {"MLFLOW_TRACKING_URI": project.address, "PYTHONDONTWRITEBYTECODE": ""}
    process = subprocess.Popen(
        [sys.executable, *options, "-c", script, str(project.folder / "flights.parquet")],
        cwd=folder,
        env=project.environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    done = finish(process)
    assert done.code == 0, done
    return done.json


READ = """
import json, sys
import mlflow
import pandas as pd

flights = pd.read_parquet(sys.argv[1]).astype({"gate": "category"})
answers = {}
"""
SKLEARN = """
by_sklearn = mlflow.sklearn.load_model("models:/plain@production")
answers |= {"labels": by_sklearn.predict(flights).tolist(), "probabilities": by_sklearn.predict_proba(flights).tolist()}
"""
PYFUNC = """
by_pyfunc = mlflow.pyfunc.load_model("models:/plain@production")
answers |= {"pyfunc": by_pyfunc.predict(flights).tolist(), "bundle": by_pyfunc.metadata.metadata["n2p.bundle"]}
answers |= {"example": by_pyfunc.predict(by_pyfunc.input_example).tolist(), "home": sys.modules["notebook_to_prod"].__file__}
"""
PRINT = "print(json.dumps(answers))"


def test_plain_mlflow_loads_what_is_in_production(
    trained: Project,  # noqa: F811
    version: ModelVersion,
    bundle: Bundle,
    expected: dict[str, Any],
    tmp_path: Path,
) -> None:
    answers = said(trained, tmp_path, READ + SKLEARN + PYFUNC + PRINT)
    assert (answers["pyfunc"], answers["labels"]) == (expected["labels"], expected["labels"])
    assert answers["probabilities"] == expected["probabilities"]
    assert answers["example"] == bundle.golden["predictions"][:5]
    assert answers["bundle"] == version.bundle
    home = Path(version.source.removeprefix("file://"))
    assert open_bundle(home / "bundle", version.bundle).files == bundle.files, "loading left something in the bundle"


def test_mlflow_loads_a_version_where_the_package_is_not_installed(
    trained: Project,  # noqa: F811
    version: ModelVersion,
    expected: dict[str, Any],
    tmp_path: Path,
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("notebook_to_prod", "__editable__")):
            (site / entry.name).symlink_to(entry)
    answers = said(trained, tmp_path, READ + PYFUNC + PRINT, "-S", PYTHONPATH=str(site))
    assert answers["pyfunc"] == expected["labels"]
    assert "/loader/notebook_to_prod.zip/" in answers["home"]


@contextlib.contextmanager
def served(project: Project, folder: Path) -> Iterator[str]:
    """The address of `mlflow models serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SCRIPTS / "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@production"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port), "--workers", "1"],
            cwd=folder,
            env=project.environment({"MLFLOW_TRACKING_URI": project.address}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.3)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, content: dict[str, Any]) -> tuple[int, Any]:
    """Status and answer of a request."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", json.dumps(content).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_mlflow_serves_what_is_in_production(
    trained: Project,  # noqa: F811
    version: ModelVersion,
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    rows, predictions = bundle.golden["rows"], bundle.golden["predictions"]
    with served(trained, tmp_path) as address:
        assert ask(address, {"dataframe_records": rows}) == (200, {"predictions": predictions})
        example = (Path(version.source.removeprefix("file://")) / "serving_input_example.json").read_text("utf-8")
        assert ask(address, json.loads(example)) == (200, {"predictions": predictions[:5]})
        without = [{name: value for name, value in row.items() if name != "size"} for row in rows]
        status, answer = ask(address, {"dataframe_records": without})
        assert status == 400 and "size" in answer["message"]


def test_mlflow_knows_what_to_install_for_a_version(version: ModelVersion, bundle: Bundle) -> None:
    home = Path(version.source.removeprefix("file://"))
    pins = {f"{name}=={number}" for name, number in read_lock(bundle.lock).items()}
    assert {*(home / "requirements.txt").read_text("utf-8").split()} == pins | {f"mlflow=={metadata.version('mlflow')}"}
    python = f"{_get_python_env(home).python}."
    assert python.startswith(f"{bundle.metadata['python']}.")
    (home / "conda.yaml").read_text("utf-8").index(f'"python={python[:-1]}"')


def test_a_key_that_is_trusted_must_have_signed_what_mlflow_loads(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("N2P_TRUSTED_KEYS", keys.new_key("release"))
    mine = tmp_path / "bundle"
    copy_bundle(bundle, mine)
    for name in ("unsigned", "signed"):
        (tmp_path / name).mkdir()
        write_model(open_bundle(mine), tmp_path / name)
        keys.add_signature(mine, keys.sign(bundle.digest, "release"))
    assert _load_pyfunc(str(tmp_path / "signed/bundle")).bundle.digest == bundle.digest
    with pytest.raises(BundleError, match="nobody has signed"):
        _load_pyfunc(str(tmp_path / "unsigned/bundle"))


# Versions of before


def test_a_version_that_is_the_bundle_itself_is_still_read(
    trained: Project,  # noqa: F811
    mlflow: MlflowClient,  # noqa: F811
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow.create_registered_model("older")
    mlflow.create_model_version("older", bundle.path.as_uri(), tags={"n2p.bundle": bundle.digest})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.address)
    elsewhere = Registry(Store(tmp_path / "store"))
    assert elsewhere.bundle(elsewhere.resolve("older@1")).digest == bundle.digest


def test_a_version_is_fetched_as_the_bundle_that_was_registered(
    trained: Project,  # noqa: F811
    version: ModelVersion,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.address)
    elsewhere = Registry(Store(tmp_path / "store"))
    fetched = elsewhere.bundle(elsewhere.resolve(f"{NAME}@production"))
    assert fetched.path.is_relative_to(tmp_path) and fetched.files == bundle.files
    assert bundle_within(version.source.removeprefix("file://")).name == "bundle"


# Tables


def test_a_table_becomes_what_the_pipeline_was_fitted_on(bundle: Bundle, flights: pd.DataFrame) -> None:
    widened = flights.astype({"model_config": "int64", "size": "object", "gate": "float64", "seats": "float64"})
    restored = restored_table(bundle.schema, widened[[*reversed(widened.columns)]])
    pd.testing.assert_frame_equal(restored, flights, check_column_type=False)
    with pytest.raises(DataError, match="'size' is missing"):
        restored_table(bundle.schema, flights.drop(columns="size"))


@pytest.mark.parametrize("container", ["array", "series", "list"])
def test_what_is_no_dataframe_is_told_by_position(container: str) -> None:
    columns = tuple(Column(name, "float64", "number") for name in (("x0", "x1") if container == "array" else ("x0",)))
    schema = Schema(container, columns, dtype="float64" if container == "array" else None)
    given = [[1.0, 2.0], [3.0, 4.0]] if container == "array" else [1.0, 3.0]
    for table in (given, pd.DataFrame(given)):
        restored = restored_table(schema, table)
        assert (restored if isinstance(restored, list) else restored.tolist()) == given
    assert signature_of(schema) is None
    with pytest.raises(DataError, match="has 3 columns"):
        restored_table(schema, [[1.0, 2.0, 3.0]])
