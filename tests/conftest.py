"""Fixtures that every test file may use: a project of one's own, and no settings of the developer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from notebooks import SETTINGS, Project, make_project, once, run_ridges
from raised import record

# As `n2p` itself does, see `notebook_to_prod.cli.app.main`: making its grammar takes seconds of every process of pytest.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# The same examples on every machine, however slow it is.
settings.register_profile("n2p", deadline=None, derandomize=True, database=None)
settings.load_profile("n2p")

record()


def pytest_configure(config: pytest.Config) -> None:
    """Let `-n` give a file to one process, so that what its tests share is made once."""
    if config.getoption("dist", "no") in ("load", "loadfile"):
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # as ordered below, and not by the number of tests


# A shell that runs this in the background has it ignore Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take minutes, so that they begin first and no process is left alone with one at the end.
LONGEST = (
    "docs",
    "service_export",
    "scaffold",
    "gates",
    "sweep",
    "compile",
    "bundle",
    "reproducibility",
    "rollout",
    "run",
    "errors_bundle",
    "environments",
    "seal",
    "registry",
    "retrain",
    "approvals",
    "killed",
    "release",
    "identical_bundles",
    "postgres",
    "schedule",
    "generated_client",
    "batch",
    "card",
    "compress",
    "house",
    "mlflow_models",
    "monitoring",
    "reads",
    "scorer",
    "limits",
    "events",
    "quality",
    "drift",
    "request_log",
    "metrics",
    "ui",
    "serve",
    "hostile",
    "adopt",
    "jupyterlab",
    "review",
    "access",
    "service",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order within a file stays. Soaks take as long as they are asked to."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))
    rank = {f"test_{name}.py": position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


# What numeric libraries read when they are loaded, which no test file has done yet, and what every command is started with.
# To build an environment for every model that a test promotes would take the time of the suite: tests/test_seal.py does it.
# Set here and not by a fixture alone, since fixtures of a whole session promote too.
os.environ |= SETTINGS


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer reaches a test that calls the package in this process; what sizes the tests does."""
    for name in os.environ:
        if name.startswith(("N2P_", "MLFLOW_")) and not name.startswith("N2P_TEST_") and name not in SETTINGS:
            monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project, which is also the current folder."""
    made = make_project(tmp_path / "project")
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture(scope="session")
def ridges(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with three runs of a small model; who changes it copies it."""
    return once(tmp_path_factory, "ridges", run_ridges)
