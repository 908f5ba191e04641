"""A run is answered from the record only while what it has read is the same, however it read it; and it is read again from the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from notebooks import Project, make_project

from notebook_to_prod.package.why import Difference

ONE, OTHER = "flight,delay\n1,5\n2,40\n", "flight,delay\n1,5\n2,41\n"
READERS = {
    "built path": "import pandas as pd\nname = 'delays'\nprint(pd.read_csv(f'../data/{name}.csv'))",
    "pattern": "from pathlib import Path\nprint([each.read_text() for each in Path('../data').glob('*.csv')])",
    "listed folder": "import os\nfolder = '../data'\nprint([open(os.path.join(folder, each)).read() for each in os.listdir(folder)])",
    "helper": "import helper\nprint(helper.delays())",
    "helper, by its own file": "import helper\nprint(helper.beside())",
    "numpy": "import numpy as np\nprint(np.genfromtxt('../data/' + 'delays.csv', delimiter=','))",
    "another working folder": "import os\nos.chdir('../data')\nprint(open('delays' + '.csv').read())",
    "a script": "%run read.py",
    "the shell": "!cat ../data/delays.csv",
    "the shell, its output kept": "lines = !cat ../data/delays.csv\nprint(lines)",
    "a forked process": (
        "import multiprocessing as mp\nname = 'delays'\n\ndef read(n):\n    return open(f'../data/{name}.csv').read()\n\n"
        "with mp.get_context('fork').Pool(1) as pool:\n    print(pool.map(read, [1]))"
    ),
}
OFTEN = {"helper", "listed folder", "the shell, its output kept", "a forked process"}
HELPER = """
from pathlib import Path

import pandas as pd

NAME = "delays"


def delays():
    return pd.read_csv(f"../data/{NAME}.csv")


def beside():
    return (Path(__file__).parents[1] / "data" / f"{NAME}.csv").read_text()
"""


@pytest.fixture
def reading(project: Project) -> Project:
    """A project with data beside its notebooks."""
    return lay_out(project)


def lay_out(project: Project) -> Project:
    for name, content in {
        "data/delays.csv": ONE,
        "notebooks/helper.py": HELPER,
        "notebooks/read.py": "name = 'delays'\nprint(open(f'../data/{name}.csv').read())\n",
    }.items():
        (project.folder / name).parent.mkdir(exist_ok=True)
        (project.folder / name).write_text(content)
    return project


def run(project: Project) -> dict:
    done = project.run("notebooks/train.ipynb")
    assert done.code == 0, done.stderr
    return done.json


@pytest.mark.parametrize("how", [pytest.param(how, marks=() if how in OFTEN else pytest.mark.slow) for how in READERS])
def test_what_was_read_decides_whether_the_record_answers(reading: Project, how: str) -> None:
    reading.notebook("notebooks/train.ipynb", {"work": READERS[how]})
    first = run(reading)
    assert run(reading)["reused"]
    (reading.folder / "data/delays.csv").write_text(OTHER)
    second = run(reading)
    assert not second["reused"]
    if "shell" not in how:
        assert second["run_key"] != first["run_key"]
    (reading.folder / "data/delays.csv").write_text(ONE)
    assert run(reading)["run_id"] == first["run_id"]


def test_a_new_file_in_a_listed_folder_is_another_question(reading: Project) -> None:
    reading.notebook("notebooks/train.ipynb", {"work": READERS["pattern"]})
    run(reading)
    (reading.folder / "data/more.csv").write_text(ONE)
    assert not run(reading)["reused"]


def test_a_changed_variable_is_another_question(reading: Project) -> None:
    reading.notebook("notebooks/train.ipynb", {"work": "import os\nprint(os.environ.get('SLOPE'), os.environ['HOME'])"})
    answers = [reading.run("notebooks/train.ipynb", SLOPE=slope).json["reused"] for slope in ("1", "1", "2")]
    assert answers == [False, True, False]


def test_a_file_outside_the_project_is_heard_too(reading: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text(ONE)
    source = f"folder = {str(tmp_path)!r}\nprint(open(folder + '/out' + 'side.csv').read())"
    reading.notebook("notebooks/train.ipynb", {"work": source})
    first = reading.run("notebooks/train.ipynb", "--allow", "N2P301")
    assert [(each["path"], each["kept"]) for each in first.json["reads"]] == [(str(outside), False)], first
    assert reading.run("notebooks/train.ipynb", "--allow", "N2P301").json["reused"]
    outside.write_text(OTHER)
    assert not reading.run("notebooks/train.ipynb", "--allow", "N2P301").json["reused"]


def test_temporary_files_of_the_run_are_no_data(reading: Project) -> None:
    source = (
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    import os\n    print(os.listdir(folder))"
    )
    reading.notebook("notebooks/train.ipynb", {"work": source})
    assert run(reading)["reads"] == []


def test_what_the_notebook_writes_itself_is_no_input(reading: Project) -> None:
    source = "name = 'made'\nopen(f'{name}.txt', 'w').write('1')\nprint(open(f'{name}.txt').read())"
    reading.notebook("notebooks/train.ipynb", {"work": source})
    assert run(reading)["reads"] == []
    assert run(reading)["reused"]


def test_a_file_that_the_run_has_changed_is_never_an_answer(reading: Project) -> None:
    source = "name = 'count'\nn = int(open(f'{name}.txt').read())\nopen(f'{name}.txt', 'w').write(str(n + 1))\nprint(n)"
    (reading.folder / "notebooks/count.txt").write_text("1")
    reading.notebook("notebooks/train.ipynb", {"work": source})
    assert [run(reading)["reused"] for _ in range(2)] == [False, False]


def test_imports_and_libraries_are_no_data(reading: Project) -> None:
    source = "import matplotlib\nmatplotlib.use('agg')\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('x.png')"
    reading.notebook("notebooks/train.ipynb", {"work": source + "\nimport sklearn.datasets as d\nd.load_iris()"})
    assert run(reading)["reads"] == []


TRAIN = {
    "parameters": "seed = 3",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "read": "import transform\nimport pandas as pd\n\nname = 'delays'\ntable = pd.read_csv(f'../data/{name}.csv')",
    "fit": (
        "from sklearn.linear_model import LinearRegression\nfrom sklearn.pipeline import make_pipeline\n\n"
        "X, y = table[['flight']], table['delay']\nmodel = make_pipeline(transform.Shift(), LinearRegression()).fit(X, y)"
    ),
    "export": "run.metric('slope', model[-1].coef_[0])\nrun.export(model, X, y, X, y)",
}
SHIFT = """
from sklearn.base import BaseEstimator, TransformerMixin
from steps import BY


class Shift(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return X * BY
"""


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run whose model uses a module beside the notebook, and which read a file by pandas alone."""
    project = lay_out(make_project(tmp_path_factory.mktemp("trained-once") / "project"))
    (project.folder / "notebooks/transform.py").write_text(SHIFT)
    (project.folder / "notebooks/steps.py").write_text("BY = 2\n")
    project.notebook("notebooks/train.ipynb", TRAIN)
    run(project)
    return project


@pytest.fixture
def trained(trained_once: Project, project: Project) -> Project:
    """A copy of that project with its store."""
    return trained_once.copy_to(project)


def test_a_run_is_reproduced_when_its_files_and_modules_are_gone(trained: Project) -> None:
    for name in ("data/delays.csv", "notebooks/transform.py", "notebooks/steps.py"):
        (trained.folder / name).unlink()
    done = trained.n2p("reproduce", "latest", "--json")
    assert (done.code, done.json["level"]) == (0, "bytes"), done


def test_why_tells_data_and_modules_apart(reading: Project) -> None:
    slope = "slope = np.polyfit(table['flight'] * steps.BY, table['delay'], 1)[0]"
    cells = {name: TRAIN[name] for name in ("parameters", "start")} | {
        "read": "import numpy as np\nimport pandas as pd\nimport steps\n\nname = 'delays'\ntable = pd.read_csv(f'../data/{name}.csv')",
        "fit": f"{slope}\nrun.metric('slope', slope)",
    }
    reading.notebook("notebooks/train.ipynb", cells)
    (reading.folder / "notebooks/steps.py").write_text("BY = 2\n")
    before = run(reading)["run_id"]
    (reading.folder / "data/delays.csv").write_text(OTHER)
    (reading.folder / "notebooks/steps.py").write_text("BY = 5\n")
    after = run(reading)["run_id"]
    found = reading.n2p("why", before, after, "--attribute", "--json").json
    assert found["causes"] == ["code", "data"] and not found["left_out"], json.dumps(found)
    moved, (start, end) = found["attribution"]["slope"], found["metrics"]["slope"]
    assert moved["data"] == pytest.approx(0.5) and moved["code"] == pytest.approx(35 / 5 - 35 / 2)
    assert sum(moved.values()) == pytest.approx(end - start)


def test_why_says_which_cell_of_the_notebook_it_means() -> None:
    first, second = (f"cell '{each}'" for each in ("fit", "gone"))
    found = Difference("a", "b", {first: "-x", second: "-y"}, {}, {}, [], None, {}, numbers={first: 7})
    assert (found.place(first), found.place(second)) == ("cell 7 'fit'", "cell 'gone'")


@pytest.mark.slow
def test_why_counts_the_place_of_data_among_the_data(reading: Project) -> None:
    (reading.folder / "data/other.csv").write_text(OTHER)
    cells = TRAIN | {
        "parameters": "seed = 3\ndata = '../data/delays.csv'\nscale = 1.0",
        "read": "import pandas as pd\n\ntable = n2p.load(data)",
        "fit": "from sklearn.linear_model import LinearRegression\n\nX, y = table[['flight']], scale * table['delay']\nmodel = LinearRegression().fit(X, y)",
        "export": "run.metric('slope', model.coef_[0])",
    }
    reading.notebook("notebooks/train.ipynb", cells)
    before = run(reading)["run_id"]
    after = reading.run("notebooks/train.ipynb", "-p", "data", "../data/other.csv", "-p", "scale", "3").json["run_id"]
    moved = reading.n2p("why", before, after, "--attribute", "--json").json["attribution"]["slope"]
    assert {name: round(value, 6) for name, value in moved.items()} == {
        "data": 1.0,
        "parameters": 70.0,
        "interactions": 2.0,
    }


def test_a_store_that_has_been_moved_is_whole(trained: Project, tmp_path: Path) -> None:
    first = run(trained)
    trained.home.rename(tmp_path / "moved")
    moved = trained.n2p("bundle", "show", "latest", "--json", N2P_HOME=str(tmp_path / "moved"))
    assert moved.code == 0 and moved.json["bundle"] == first["bundle"]
    assert moved.json["bundle_path"].startswith(str(tmp_path / "moved"))
