"""The documentation keeps its word: what its pages show is executed, in order, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from notebooks import CLEARED, ONE_THREAD, SCRIPTS, once

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LIMIT = 900  # Seconds; only keeps a page that hangs from blocking the suite


def loaded(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


snippets = loaded("snippets")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass(frozen=True)
class Followed:
    """A page that has been followed to its end, or as far as it goes."""

    code: int
    printed: str

    def check(self, page: Path) -> None:
        """Fail where a block has failed, or has not printed what the page says."""
        outputs = snippets.outputs(self.printed)
        assert self.code == 0, f"{page.name} ended with {self.code}:\n{self.printed[-5_000:]}"
        before = ""
        for snippet in snippets.read_page(page, DOCS):
            if "expect" in snippet.options:
                absent = snippets.missing(snippet.code, outputs[before])
                assert absent == [], f"{snippet.place}: not in the output of {before}\n{outputs[before]}"
            elif snippet.place in outputs:
                before = snippet.place


def follow(page: Path, folder: Path, variables: Mapping[str, str] | None = None) -> Followed:
    """Execute the blocks of a page in `folder`, on a port of its own where it says 8000."""
    text = snippets.script(snippets.read_page(page, DOCS), marks=True).replace("8000", str(free_port()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*CLEARED, "N2P_"))}
    path = f"{SCRIPTS}{os.pathsep}{kept['PATH']}"
    environment = kept | ONE_THREAD | {"PATH": path, "COLUMNS": "160"} | (variables or {})
    log = folder.parent / f"{folder.name}-{page.stem}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
    return Followed(done.returncode, log.read_text(errors="replace"))


def walk_the_hour(project: object) -> None:
    """Follow the tutorial in its own folder."""
    folder = project.folder  # type: ignore[attr-defined]
    (folder / "pyproject.toml").unlink()
    follow(DOCS / "tutorial.md", folder).check(DOCS / "tutorial.md")


@pytest.fixture(scope="session")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in which the tutorial has been followed to its end; who changes it copies it."""
    return once(tmp_path_factory, "hour", walk_the_hour).folder


def test_every_block_says_how_it_is_executed() -> None:
    found = [snippet for page in PAGES for snippet in snippets.read_page(page, DOCS)]
    assert {snippet.place: snippet.unclear for snippet in found if snippet.unclear} == {}
    expecting = [
        (before, snippet) for before, snippet in zip(found, found[1:], strict=False) if "expect" in snippet.options
    ]
    assert [after.place for before, after in expecting if not (before.executed or "expect" in before.options)] == []


def test_a_reader_goes_from_csv_to_rollback(hour: Path) -> None:
    assert {path.name for path in hour.iterdir()} >= {"train.ipynb", "gates.html", "drift.html", ".n2p"}


GUIDES = sorted([*DOCS.glob("guides/*.md"), *DOCS.glob("migration/*.md"), *DOCS.glob("explanation/*.md")])
LONG = {"retrain", "signing"}  # Minutes of processor time


def guides() -> list[object]:
    """A parameter for each guide that executes something."""
    able = [page for page in GUIDES if any(snippet.executed for snippet in snippets.read_page(page, DOCS))]
    return [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else []) for page in able
    ]


@pytest.mark.parametrize("page", guides())
def test_guide_does_what_it_says(page: Path, hour: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hour, tmp_path / "late", symlinks=True))
    follow(page, folder).check(page)
