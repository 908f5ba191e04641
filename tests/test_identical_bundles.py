"""Twenty notebooks, run twice each in other folders and with other hash seeds, make the same bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
from estimators import NAMES, cells_of
from notebooks import make_project

# In every run; all twenty with `pytest -m slow` and in benchmarks/reproducibility.py.
OFTEN = {"RandomForestClassifier, n_jobs=2", "custom transformer"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in NAMES]
)
def test_two_runs_give_the_same_bundle(name: str, tmp_path: Path) -> None:
    digests = []
    for number in ("1", "2"):
        project = make_project(tmp_path / f"project {number}")
        notebook = project.notebook("notebooks/train.ipynb" if number == "1" else "train.ipynb", cells_of(name))
        elsewhere = tmp_path / f"elsewhere {number}"
        elsewhere.mkdir()
        home = str(project.home)
        seed = {"PYTHONHASHSEED": number} if number == "2" else {}  # the fork server has drawn one
        done = project.run(notebook, cwd=elsewhere, N2P_HOME=home, **seed)
        assert done.code == 0, done.stderr
        digests.append(done.json["bundle"])
    assert digests[0] == digests[1]


def test_what_runs_often_is_there() -> None:
    assert set(NAMES) >= OFTEN and len(NAMES) == 20
