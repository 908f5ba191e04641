"""How an exported service starts and stops: what it says to who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import fitted
from test_scorer import bundle_of

from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.serve.export.generate import export_service
from notebook_to_prod.serve.predictor import load_predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("start"), *fitted("RandomForestClassifier, three named classes", 200))


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """An exported service."""
    return export_service(
        load_predictor(bundle.path, name="flights", version="1"), tmp_path / "service", hashes=False
    ).folder


def begun(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "app.py", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_an_interrupt_ends_it_without_a_traceback(folder: Path) -> None:
    process = begun(folder)
    assert process.stdout and "running on" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped" and "Traceback" not in said
