"""An exported folder keeps out of version control what is private, and names categories so that they can be told apart."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pipelines import fitted
from test_scorer import bundle_of

from notebook_to_prod.serve.export.folder import CONFLICT
from notebook_to_prod.serve.export.generate import export_service
from notebook_to_prod.serve.predictor import Predictor, load_predictor

PRIVATE = (".venv/bin/python", "log/20260131T.segment", "app.py.new", "notebook_to_prod/__pycache__/errors.pyc")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    pipeline, table = fitted("LogisticRegression", 200)
    table["origin"] = table["origin"].replace("LGA", "Spandau, West")
    pipeline.fit(table, pipeline.predict(table))
    return load_predictor(
        bundle_of(tmp_path_factory.mktemp("linear"), pipeline, table).path, name="flights", version="1"
    )


def test_git_sees_the_service_and_nothing_private(predictor: Predictor, tmp_path: Path) -> None:
    service = tmp_path / "service"
    report = export_service(predictor, service, hashes=False)
    for name in PRIVATE:
        (service / name).parent.mkdir(parents=True, exist_ok=True)
        (service / name).write_text("private")
    subprocess.run(["git", "init", "-q", service], check=True)
    subprocess.run(["git", "add", "."], cwd=service, check=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=service, check=True, capture_output=True, text=True).stdout
    known = {*listed.split("\0")}
    assert known.isdisjoint(PRIVATE)
    assert known >= {path for path in report.actions if path != "bundle"} | {"bundle/manifest.json", ".n2p-export.json"}

    ignored = service / ".gitignore"
    ignored.write_text(f"{ignored.read_text()}/mine/\n")
    assert export_service(predictor, service, hashes=False).actions[".gitignore"] == "kept"
    ignored.unlink()
    assert export_service(predictor, service, hashes=False).actions[".gitignore"] == "deleted"
    assert not report.paths(CONFLICT)


def test_the_readme_tells_categories_apart(predictor: Predictor, tmp_path: Path) -> None:
    export_service(predictor, tmp_path / "service", hashes=False)
    readme = (tmp_path / "service" / "README.md").read_text(encoding="utf-8")
    assert '"Spandau, West", or another |' in readme
