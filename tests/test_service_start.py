"""How an exported service starts and stops: what it says to who started it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipelines import fitted
from test_scorer import bundle_of

from notebook_to_prod.package.bundle import Bundle, write_bundle
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


def test_a_log_in_json_has_the_banner_and_the_warnings(folder: Path) -> None:
    (folder / "service.toml").write_text('[logging]\nformat = "json"\n')
    app = folder / "app.py"
    app.write_text(
        app.read_text().replace(
            "    return load_predictor(", '    __import__("warnings").warn("old")\n    return load_predictor('
        )
    )
    process = begun(folder)
    assert process.stderr
    said = []
    while not said or not said[-1]["message"].startswith("running on http"):
        said.append(json.loads(process.stderr.readline()))
    process.send_signal(signal.SIGINT)
    plain, _ = process.communicate(timeout=60)
    assert plain == ""
    assert said[-1]["level"] == "info"
    assert [each["level"] for each in said if each["logger"] == "py.warnings" and "old" in each["message"]] == [
        "warning"
    ]


def test_an_export_that_could_not_merge_says_so_when_it_is_started(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    app = folder / "app.py"
    app.write_text(re.sub(r"^BUNDLE = .*$", lambda found: f"{found[0]}  # ours", app.read_text(), flags=re.MULTILINE))
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    contents["metadata.json"] = json.dumps({**json.loads(contents["metadata.json"]), "seed": 12345}).encode()
    (tmp_path / "other").mkdir()
    other = write_bundle(tmp_path / "other", contents)
    report = export_service(load_predictor(other.path, name="flights", version="2"), folder, hashes=False)
    assert report.paths("conflict") == ("app.py",)
    process = begun(folder)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert bundle.digest[:19] in said and other.digest[:19] in said
    assert re.search(r"merge \S*app\.py\.new into app\.py", said)
