"""The same inputs give the same bytes, and a certificate says so or names what broke them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from notebooks import Project, make_project

from notebook_to_prod.package.reproduce import Certificate, compare
from notebook_to_prod.project import Store
from notebook_to_prod.train.record import find_run

DATA = "flight,delay\n" + "1,5\n2,40\n3,12\n4,70\n" * 20
TABLE = {
    "parameters": "data = 'delays.csv'\nseed = 3\nalpha = 1.0",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "load": "table = n2p.load(data)",
    "features": "import helpers\n\nX, y = table[['flight']], helpers.late(table['delay'])",
    "fit": "from sklearn.linear_model import LogisticRegression\n\nmodel = LogisticRegression(C=alpha).fit(X, y)",
    "evaluate": "run.metric('accuracy', model.score(X, y))",
    "export": "run.export(model, X, y, X, y)",
}
# What asks whether a question is answered needs no model.
COUNT = {
    "parameters": "data = 'delays.csv'\nseed = 3\nalpha = 1.0",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "load": "import helpers\n\ntable = n2p.load(data)",
    "count": "assert alpha > 0\nrun.metric('late', alpha * alpha * helpers.late(table['delay']).mean())",
}
HELPERS = "LIMIT = 15\n\n\ndef late(delay):\n    return (delay > LIMIT).astype(int)\n"


@pytest.fixture(scope="module")
def asked_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a notebook, its data and a module, run once."""
    project = make_project(tmp_path_factory.mktemp("asked-once") / "project")
    (project.folder / "delays.csv").write_text(DATA)
    (project.folder / "helpers.py").write_text(HELPERS)
    project.notebook("train.ipynb", TABLE)
    assert project.run("train.ipynb").code == 0
    return project


@pytest.fixture
def table_project(asked_once: Project, project: Project) -> Project:
    """A copy of that project with its store, as somebody else would check it out."""
    return asked_once.copy_to(project)


@pytest.fixture(scope="module")
def counted_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Such a project whose notebook has no model, run once."""
    project = make_project(tmp_path_factory.mktemp("counted-once") / "project")
    (project.folder / "delays.csv").write_text(DATA)
    (project.folder / "helpers.py").write_text(HELPERS)
    project.notebook("train.ipynb", COUNT)
    assert project.run("train.ipynb").code == 0
    return project


@pytest.fixture
def counted(counted_once: Project, project: Project) -> Project:
    """A copy of that project with its store."""
    return counted_once.copy_to(project)


def certificate(project: Project, *arguments: str) -> tuple[int, dict]:
    done = project.n2p("reproduce", "latest", "--json", *arguments)
    return done.code, done.json


def test_reproduces_after_everything_changed(table_project: Project) -> None:
    (table_project.folder / "delays.csv").write_text(DATA.replace("5", "90"))
    (table_project.folder / "helpers.py").unlink()
    table_project.notebook("train.ipynb", {**TABLE, "fit": "raise SystemError"})
    code, found = certificate(table_project)
    assert code == 0 and found["level"] == "bytes" and found["holds"]
    on_disk = json.loads((table_project.home / "runs" / found["run_id"] / "certificate.json").read_text())
    assert on_disk == found


def test_reproduces_after_the_data_is_gone(counted: Project) -> None:
    (counted.folder / "delays.csv").unlink()
    code, found = certificate(counted, "--level", "metrics")
    assert code == 0 and found["cause"] is None, found


def test_a_swapped_library_is_named(table_project: Project) -> None:
    run_id = table_project.n2p("run", "train.ipynb", "--json").json["run_id"]
    path = table_project.home / "runs" / run_id / "record.json"
    record = json.loads(path.read_text())
    record["environment"]["distributions"]["scikit-learn"] = "1.0.2"
    path.write_text(json.dumps(record))
    code, found = certificate(table_project)
    assert code == 1 and found["cause"]["kind"] == "dependency" and "scikit-learn was 1.0.2" in found["cause"]["what"]
    assert (found["level"], found["holds"]) == ("predictions", False)
    asked = {name: value for name, value in found.items() if name not in ("format", "holds")} | {"asked": "predictions"}
    assert Certificate(**asked).holds, "what was asked decides"


@pytest.mark.parametrize(
    "source",
    [
        "import time\nprint(time.time_ns())",
        pytest.param("import numpy as np\nprint(np.random.default_rng().random())", marks=pytest.mark.slow),
    ],
)
def test_the_first_cell_that_differs_is_named(project: Project, source: str) -> None:
    cells = {
        "parameters": "seed = 1",
        "start": "import notebook_to_prod as n2p\nrun = n2p.start(seed)",
        "noisy": source,
        "end": "print(1)",
    }
    project.notebook("train.ipynb", cells)
    findings = project.n2p("check", "train.ipynb", "--json").json["notebooks"][0]["findings"]
    codes = {finding["code"] for finding in findings if finding["cell_id"] == "noisy"}
    assert codes & {"N2P203", "N2P204", "N2P502"}, findings
    done = project.run("train.ipynb", *(part for code in codes for part in ("--allow", code)))
    assert done.code == 0, done.stderr
    found = certificate(project)[1]
    cells_compared = next(each for each in found["comparisons"] if each["what"] == "cells")
    assert cells_compared["reproduced"] == ["noisy"] and found["cause"]["cell_id"] == "noisy"


def test_reproduces_in_an_environment_of_its_own(table_project: Project) -> None:
    code, found = certificate(table_project, "--fresh-env")
    assert code == 0 and found["fresh_environment"] and found["level"] == "bytes", found


def test_the_same_question_is_answered_once(counted: Project) -> None:
    first = counted.run("train.ipynb").json
    assert first["reused"] and len(counted.run_folders) == 1
    assert not counted.run("train.ipynb", "--force").json["reused"]


@pytest.mark.parametrize(
    "change", ["data", "module", *(pytest.param(each, marks=pytest.mark.slow) for each in ("parameter", "notebook"))]
)
def test_a_changed_question_is_asked_anew(counted: Project, change: str) -> None:
    arguments = ["-p", "alpha", "2.0"] if change == "parameter" else []
    if change == "data":
        (counted.folder / "delays.csv").write_text(DATA + "5,6\n")
    elif change == "module":
        (counted.folder / "helpers.py").write_text(HELPERS.replace("15", "30"))
    elif change == "notebook":
        counted.notebook("train.ipynb", {**COUNT, "more": "run.metric('precision', 1)"})
    assert not counted.run("train.ipynb", *arguments).json["reused"]


def test_an_environment_off_its_lock_is_refused(counted: Project) -> None:
    (counted.folder / "requirements.lock").write_text("scikit-learn==1.0.2\n")
    done = counted.run("train.ipynb")
    assert done.code == 3 and "scikit-learn" in done.error["what"] and "--allow-unlocked" in done.error["remedy"]
    assert counted.run("train.ipynb", "--allow-unlocked").code == 0


def test_two_processes_ask_the_same_question(project: Project) -> None:
    project.notebook("train.ipynb", {"parameters": "seed = 1", "work": "import time\ntime.sleep(1)\nprint(seed)"})
    answers = [done.json for done in project.together(*[("run", "train.ipynb", "--json")] * 2)]
    assert len({answer["run_id"] for answer in answers}) == 1 and sorted(answer["reused"] for answer in answers) == [
        False,
        True,
    ]


def test_why_names_and_attributes_the_cause(counted: Project) -> None:
    before = counted.run("train.ipynb").json["run_id"]
    (counted.folder / "helpers.py").write_text(HELPERS.replace("15", "50"))
    after = counted.run("train.ipynb", "-p", "alpha", "0.5").json["run_id"]
    found = counted.n2p("why", before, after, "--attribute", "--json").json
    assert found["causes"] == ["code", "parameters"] and list(found["code"]) == ["helpers.py"]
    moved = found["attribution"]["late"]
    start, end = found["metrics"]["late"]
    assert [*moved] == ["code", "parameters", "interactions"] and sum(moved.values()) == pytest.approx(end - start)
    assert found["left_out"] == {}
    said = counted.n2p("why", before, after, "--attribute").stdout
    assert "plus interactions" in said


@pytest.mark.slow
def test_why_tells_the_seed_from_other_parameters(table_project: Project) -> None:
    before = table_project.run("train.ipynb").json["run_id"]
    changed = TABLE | {"evaluate": f"{TABLE['evaluate']}\nrun.metric('draw', __import__('numpy').random.rand())"}
    table_project.notebook("train.ipynb", changed)
    allowed = ("--allow", "N2P104")
    before = table_project.run("train.ipynb", *allowed).json["run_id"]
    after = table_project.run("train.ipynb", "-p", "seed", "9", "-p", "alpha", "2.0", *allowed).json["run_id"]
    found = table_project.n2p("why", before, after, "--attribute", "--json").json
    assert found["causes"] == ["parameters", "seed"]
    start, end = found["metrics"]["draw"]
    assert found["attribution"]["draw"] == {"parameters": 0.0, "seed": pytest.approx(end - start)}


ODD = {
    "start": TABLE["start"].replace("seed=seed", "seed=3"),
    "fit": "import helpers\nimport numpy as np\nfrom sklearn.linear_model import Ridge\nfrom sklearn.pipeline import make_pipeline\n"
    "from sklearn.preprocessing import FunctionTransformer\n\nX = np.random.normal(size=(40, 2))\n"
    "model = make_pipeline(FunctionTransformer(helpers.scale), Ridge()).fit(X, X[:, 0])",
    "evaluate": "import time\n\nrun.metric('nan', float('nan'))\nrun.metric('seconds', time.perf_counter())",
    "flag": "import os\n\nassert 'BROKEN' not in os.environ, 'it is broken'",
    "export": "run.export(model, X, X[:, 0], X, X[:, 0])",
}


def test_odd_metrics_local_modules_and_failures_are_certified(project: Project) -> None:
    scale = "from pathlib import Path\n\n\ndef scale(X):\n    return X * float((Path(__file__).parent / 'factor.txt').read_text())\n"
    (project.folder / "helpers.py").write_text(scale)
    (project.folder / "factor.txt").write_text("2.5")
    project.notebook("train.ipynb", ODD)
    done = project.run("train.ipynb", *(part for code in ("N2P204", "N2P502") for part in ("--allow", code)))
    assert done.code == 0, done
    for name in ("helpers.py", "factor.txt", "train.ipynb"):
        (project.folder / name).unlink()
    code, found = certificate(project, "--ignore", "seconds")
    assert (code, found["level"], found["cause"]) == (0, "bytes", None), found
    store = Store(project.home)
    runs = [find_run(store, found[name]) for name in ("run_id", "reproduction")]
    compared = {each.what: each for each in compare(store, *runs, 0.0)}
    assert compared["cells"].reproduced == ["evaluate"] and not compared["metrics"].same
    assert compared["model"].same and compared["bundle"].same
    done = project.n2p("reproduce", "latest", "--json", BROKEN="1")
    assert (done.code, done.json["level"], done.json["cause"]["cell_id"]) == (1, None, "flag")
    assert "it is broken" in done.json["cause"]["what"]
    assert project.n2p("reproduce", "latest", "--json", "--ignore", "minutes").code == 2


def test_a_grid_and_a_file_of_sets_run_every_set_once(counted: Project) -> None:
    first = counted.run("train.ipynb", "--grid", "alpha=0.5,1.0", "--grid", "seed=3").json
    assert first["failed"] == 0 and len(first["runs"]) == 2 and Path(first["plot"]).is_file()
    (counted.folder / "sets.yaml").write_text("- alpha: 0.5\n  seed: 3\n- alpha: -1.0\n- alpha: 1.0\n  seed: 3\n")
    done = counted.run("train.ipynb", "-f", "sets.yaml", "--workers", "1")
    assert done.code == 2 and [each["error"] is None for each in done.json["runs"]] == [True, False, True]
    for known, again in zip(first["runs"], done.json["runs"][::2], strict=True):
        assert again["run"]["reused"] and again["run"]["run_id"] == known["run"]["run_id"]
