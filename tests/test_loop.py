"""The loop on real flights: what is kept of it, and the whole of it again where there is time."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from notebooks import Project

NOTEBOOK = Path(__file__).parents[1] / "nbs/examples/flights/loop.ipynb"


def told(path: Path, id: str) -> str:
    """What a cell has printed and shown, as text."""
    cell = next(each for each in json.loads(path.read_text("utf-8"))["cells"] if each["id"] == id)
    shown = [
        part
        for each in cell["outputs"]
        for part in (each.get("text", ""), *each.get("data", {}).values())
        if isinstance(part, list | str)
    ]
    return "".join("".join(part) for part in shown)


def test_the_outputs_that_are_kept_tell_the_story() -> None:
    weeks = told(NOTEBOOK, "weeks")
    assert "drift: nothing has drifted" in weeks and "promoted as version" in weeks
    assert "bad retraining" in weeks and "rejected" in weeks and NOTEBOOK.stat().st_size < 600_000


@pytest.mark.parametrize("notebook", sorted(NOTEBOOK.parents[1].rglob("*.ipynb")), ids=lambda each: each.stem)
def test_processes_of_an_example_do_not_inherit_the_store_of_the_run(notebook: Path) -> None:
    """`n2p run` names its own store in the environment of the kernel, where the project of an example has none yet."""
    cells = [each for each in json.loads(notebook.read_text("utf-8"))["cells"] if each["cell_type"] == "code"]
    calls = [
        each for cell in cells for each in ast.walk(ast.parse("".join(cell["source"]))) if isinstance(each, ast.Call)
    ]
    started = [each for each in calls if ast.unparse(each.func).startswith("subprocess.")]
    assert len(started) == (2 if notebook == NOTEBOOK else 0)
    assert all("env" in [option.arg for option in each.keywords] for each in started)


@pytest.mark.slow
def test_a_retraining_is_promoted_and_a_bad_one_is_stopped(project: Project) -> None:
    weeks = os.environ.get("N2P_TEST_LOOP_WEEKS", "7")
    ran = project.papermill(
        *("--no-progress-bar", NOTEBOOK, "loop.ipynb", "-p", "folder", project.folder / "loop"),
        *("-p", "weeks", weeks, "-p", "bad_week", weeks, "-p", "n_trees", "20"),
        limit=1800,
    )
    assert ran.code == 0, ran.stderr[-3000:]
    states = [json.loads(each.read_text()) for each in (project.folder / "loop/.n2p/retrain/flights").glob("*.json")]
    ended = sorted(each["state"] for each in states)
    assert ended == ["promoted", "rejected"], ended
    assert "live: version 2" in told(project.folder / "loop.ipynb", "gain")
