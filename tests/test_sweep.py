"""Sweeps: every set is a run like any other, whatever the others do, and whoever runs it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from notebooks import Done, Project, make_project

from notebook_to_prod.train.parameters import combined_sets
from notebook_to_prod.train.record import RunRecord, RunSpec
from notebook_to_prod.train.sweep import Outcome, Sweep

CELLS = {
    "parameters": "trees: int = 5\nkind = 'squared'\ncolumns: list = ['a']\nseed = 1",
    "start": "import os\nimport time\n\nimport notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "data": (
        "import numpy as np\nimport pandas as pd\n\nrng = np.random.default_rng(seed)\n"
        "X = pd.DataFrame(rng.normal(size=(800, 60))).rename(columns=str)\ny = X['0'] + rng.normal(size=800)"
    ),
    "odd": "if kind == 'slow':\n    time.sleep(120)\nif kind == 'dead':\n    os.kill(os.getppid(), 9)\nif kind == 'bad':\n    raise ValueError(columns)",
    # A model only where one is exported: its libraries are most of what a set takes.
    "fit": (
        "if kind == 'more':\n    run.metric('score', 0.5)\n    run.metric('extra', trees)\nelse:\n"
        "    from sklearn.decomposition import PCA\n    from sklearn.ensemble import HistGradientBoostingRegressor\n"
        "    from sklearn.pipeline import make_pipeline\n\n"
        "    boosted = HistGradientBoostingRegressor(max_iter=trees, random_state=seed)\n"
        "    model = make_pipeline(PCA(8, svd_solver='full'), boosted).fit(X, y)\n"
        "    run.metric('score', model.score(X, y))"
    ),
    "export": "if kind == 'squared':\n    run.export(model, X, y, X, y)",
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a notebook to sweep."""
    made = make_project(tmp_path_factory.mktemp("sweep") / "project")
    made.notebook("train.ipynb", CELLS)
    return made


@pytest.fixture(scope="module")
def done(swept: Project) -> Done:
    """Six sets, two of which fail and two of which export."""
    return swept.run("train.ipynb", "--grid", "trees=2,3", "kind=squared,more,bad", 'columns=["a, b"]')


def test_one_failing_set_stops_no_other(done: Done) -> None:
    assert done.code == 2 and done.json["failed"] == 2
    sets = [each["parameters"] for each in done.json["runs"]]
    assert [(each["trees"], each["kind"]) for each in sets] == [
        (trees, kind) for trees in (2, 3) for kind in ("squared", "more", "bad")
    ]
    assert all(each["columns"] == ["a, b"] for each in sets)
    errors = [each["error"]["what"] for each in done.json["runs"] if each["error"]]
    assert errors == ["cell 'odd' raised ValueError: ['a, b']"] * 2
    extra = [each["run"]["metrics"].get("extra") for each in done.json["runs"] if each["run"]]
    assert extra == [None, 2.0, None, 3.0] and Path(done.json["plot"]).stat().st_size > 5_000
    assert "train.ipynb: 6/6" in done.stderr


@pytest.mark.slow
def test_a_set_is_the_run_that_it_would_be_alone(swept: Project, done: Done) -> None:
    first = done.json["runs"][0]["run"]
    parameters = ("-p", "trees", "2", "-p", "kind", "squared", "-p", "columns", '["a, b"]')
    reused = swept.run("train.ipynb", *parameters).json
    assert reused["reused"] and reused["run_id"] == first["run_id"]
    alone = swept.run("train.ipynb", *parameters, "--force").json
    assert not alone["reused"] and (alone["run_key"], alone["bundle"]) == (first["run_key"], first["bundle"])
    assert alone["threads"] == first["threads"] == 1
    part = swept.run("train.ipynb", "--grid", "trees=2", "kind=squared", 'columns=["a, b"]', "--workers", "1").json
    assert part["runs"][0]["run"]["reused"], "however many sets and workers there are"


@pytest.mark.slow
def test_options_of_a_run_reach_every_set(swept: Project) -> None:
    made = swept.run("train.ipynb", "--grid", "trees=2,4", "kind=slow", "--threads", "2", "--timeout", "5").json
    assert [each["error"]["type"] for each in made["runs"]] == ["RunTimeoutError"] * 2
    ended = [json.loads((folder / "record.json").read_text()) for folder in swept.run_folders]
    assert [each["threads"] for each in ended if each["error"] and each["error"]["type"] == "RunTimeoutError"] == [2, 2]
    refused = swept.n2p("run", "train.ipynb", "--grid", "trees=2,4", "--output", "out.ipynb")
    assert refused.code == 2 and "--output" in refused.stderr


def test_what_concerns_all_sets_is_said_once_before_anything_starts(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    project.notebook("train.ipynb", {"parameters": "trees = 1", "draw": "import random\nrandom.random()"})
    refused = project.run("train.ipynb", "--grid", "trees=1,2")
    assert refused.code == 1 and refused.error["type"] == "CheckError"
    (project.folder / "requirements.txt").write_text("numpy==0.1\n")
    refused = project.run("train.ipynb", "--grid", "trees=1,2", "--allow", "N2P203")
    assert refused.code == 3 and refused.error["type"] == "LockMismatchError" and project.run_folders == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_ends_what_is_under_way_and_starts_no_more(swept: Project, number: signal.Signals) -> None:
    def running() -> list[Path]:
        records = [folder / "record.json" for folder in set(swept.run_folders) - before]
        return [
            path.parent for path in records if path.exists() and json.loads(path.read_text())["status"] == "running"
        ]

    before = set(swept.run_folders)
    grid = ("--grid", f"seed={number}", "trees=2,3,4,5,6,7", "kind=slow", "--workers", "2", "--json")
    process = swept.begin("run", "train.ipynb", *grid)
    deadline = time.monotonic() + 120
    while len(running()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    children = _children(process.pid)
    for pid in (process.pid, *(children if number == signal.SIGINT else ())):  # a terminal sends Ctrl-C to all of them
        os.kill(pid, number)
    stopped = process.finish(90)
    assert stopped.code == 130 and stopped.error["what"] == "the sweep was stopped after 0 of 6 sets"
    records = [json.loads((folder / "record.json").read_text()) for folder in set(swept.run_folders) - before]
    assert [(each["status"], each["error"]["type"]) for each in records] == [("failed", "RunInterruptedError")] * 2
    while any(map(_lives, children)) and time.monotonic() < deadline + 60:
        time.sleep(0.1)
    assert not any(map(_lives, children))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found = [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]
    return [*found, *(each for child in found for each in _children(child))]


def test_a_worker_that_dies_leaves_the_other_sets_their_answers(swept: Project) -> None:
    made = swept.run("train.ipynb", "--grid", "kind=more,dead", "--workers", "1", "seed=5")
    assert made.code == 2
    first, dead = made.json["runs"]
    assert first["run"]["status"] == "finished" and dead["error"]["type"] == "KernelDiedError"
    assert "worker is gone" in dead["error"]["what"] and "--workers" in dead["error"]["remedy"]


def test_the_threads_of_a_set_keep_to_their_share(swept: Project) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core cannot be shared")
    look = (
        "import os\nimport numpy as np\nimport time\n\na = np.ones((300, 300))\ntime.sleep(2)\na @ a\n"
        "tasks = [int(task) for task in os.listdir('/proc/self/task') if int(task) != os.getpid()]\n"
        "cores = set().union(*(os.sched_getaffinity(task) for task in tasks))\n"
        "run.metric('cores', len(cores))\nrun.metric('counted', len(os.sched_getaffinity(0)))\n"
        "run.metric('threads', int(os.environ['OMP_NUM_THREADS']))"
    )
    cells = {
        "parameters": "seed = 1",
        "start": "import notebook_to_prod as n2p\nrun = n2p.start(seed=seed)",
        "look": look,
    }
    swept.notebook("look.ipynb", cells)
    made = swept.run("look.ipynb", "--grid", "seed=1,2", "--workers", "2", N2P_THREADS="").json
    found = [each["run"]["metrics"] for each in made["runs"]]
    assert [each["cores"] for each in found] == [len(cores[number::2]) for number in (0, 1)]
    assert all(each["counted"] == len(cores) and each["threads"] == os.cpu_count() for each in found)


def test_dask_gives_the_same(swept: Project, done: Done) -> None:
    pytest.importorskip("distributed")
    grid = ("--grid", "trees=2", "kind=squared,bad", 'columns=["a, b"]', "--force", "--dask", "local")
    made = swept.run("train.ipynb", *grid).json

    def answers(said: dict[str, Any]) -> list[tuple[str, str] | None]:
        return [each["run"] and (each["run"]["run_key"], each["run"]["bundle"]) for each in said["runs"]]

    every = answers(done.json)
    assert answers(made) == [every[0], every[2]] and made["failed"] == 1


@pytest.mark.parametrize(
    ("grid", "values"),
    [
        ("kind=a,b", ["a", "b"]),
        ("kind=New York,Boston", ["New York", "Boston"]),
        ("kind='a,b',c", ["a,b", "c"]),
        ("kind=O'Hara,it's", ["O'Hara", "it's"]),
        ("columns=[[1, 2], [3]],[]", [[[1, 2], [3]], []]),
        ('columns=["a, b"],["(", "c"]', [["a, b"], ["(", "c"]]),
        ("trees=1,2", [1, 2]),
    ],
)
def test_values_of_a_grid(swept: Project, grid: str, values: list[Any]) -> None:
    name = grid.partition("=")[0]
    assert [each[name] for each in combined_sets(swept.folder / "train.ipynb", grid=[grid])] == values


def test_a_plot_takes_whatever_metrics_and_sets_there_are(tmp_path: Path) -> None:
    def outcome(given: dict[str, Any], **metrics: float) -> Outcome:
        declared = {"trees": 5, "kind": "squared"} | given
        return Outcome(
            given, RunRecord("r", "n", RunSpec("d"), "finished", "", "", metrics=metrics, parameters=declared)
        )

    failed = Outcome({"trees": 9}, None, {"what": "no"})
    sweep = Sweep(
        "n", (outcome({"trees": 1}, score=0.5), outcome({"kind": "x"}, score=float("inf"), extra=float("nan")), failed)
    )
    path = sweep.plot(tmp_path / "plot.png")
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")
    assert Sweep("n", (failed,)).plot(tmp_path / "none.png") is None
    assert list(sweep.table["error"].fillna("")) == ["", "", "no"]
