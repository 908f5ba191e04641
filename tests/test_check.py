"""The notebook checker: each rule with what it reports and what it leaves alone, repairs, suppression, and the command."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from notebooks import Project
from published import NOTEBOOKS

from notebook_to_prod.errors import CheckError, InputError, NotebookError
from notebook_to_prod.train.check import sklearn_table
from notebook_to_prod.train.check.config import CheckConfig, read_config
from notebook_to_prod.train.check.findings import RULES
from notebook_to_prod.train.check.fix import dumped_like, fix_notebook
from notebook_to_prod.train.check.verdict import check_notebook, require_clean
from notebook_to_prod.train.notebook import Notebook, parse_notebook, read_notebook
from notebook_to_prod.train.run import run_notebook

ROOT = Path(__file__).parents[1]
OUTPUT = [{"output_type": "stream", "name": "stdout", "text": ["shown\n"]}]
SEED = "seed = 7"


def cell(source: str, name: str, *tags: str, count: int | None = None, outputs: Iterable[Any] = ()) -> dict[str, Any]:
    """Return a code cell with its source as Jupyter stores it."""
    lines = source.splitlines(keepends=True)
    metadata = {"tags": [*tags]} if tags else {}
    return {
        "cell_type": "code",
        "execution_count": count,
        "id": name,
        "metadata": metadata,
        "outputs": [*outputs],
        "source": lines,
    }


def content(*sources: str | dict[str, Any], parameters: str | None = None) -> dict[str, Any]:
    """Return a notebook of these cells, below a parameters cell if there is one."""
    cells = [cell(parameters, "parameters", "parameters")] if parameters is not None else []
    cells += [part if isinstance(part, dict) else cell(part, f"cell-{n}") for n, part in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def notebook(*sources: str | dict[str, Any], parameters: str | None = None) -> Notebook:
    """Return such a notebook, parsed."""
    return parse_notebook(content(*sources, parameters=parameters), Path("train.ipynb"))


def written(folder: Path, *sources: str | dict[str, Any], parameters: str | None = None) -> Path:
    """Write such a notebook, as Jupyter would, into a project of its own."""
    (folder / "pyproject.toml").touch()
    path = folder / "train.ipynb"
    text = json.dumps(content(*sources, parameters=parameters), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def codes(*sources: str | dict[str, Any], parameters: str | None = SEED, only: str = "N2P") -> list[str]:
    """Return the codes that are found, those about unused parameters and missing calls of n2p aside."""
    found = check_notebook(notebook(*sources, parameters=parameters), CheckConfig()).findings
    beside = {"N2P702", "N2P801", "N2P802", "N2P803"}
    return [each.code for each in found if each.code.startswith(only) and (only != "N2P" or each.code not in beside)]


# Names


@pytest.mark.parametrize(
    "sources",
    [
        ["print(flights)", "flights = 1"],
        ["print(flights)"],
        ["flights = 1\ndel flights\nprint(flights)"],
        ["total = total + 1"],
        ["count += 1"],
        ["class Model(Base): ..."],
        ["def late(after=limit): ...", "limit = 15"],
        ["@cached\ndef late(): ..."],
        ["def late():\n    return limit", "late()", "limit = 15"],
        ["def outer():\n    return inner()\ndef inner():\n    return limit", "outer()", "limit = 15"],
        ["class Late:\n    def __init__(self):\n        self.limit = limit", "Late()", "limit = 15"],
        ["late = lambda x: x > limit", "late(1)", "limit = 15"],
        ["values = [v for v in (1, 2) if v > limit]"],
        ["[v for v in (1, 2)]\nprint(v)"],
        ["def f():\n    local = 1", "print(local)"],
        ["print(__file__)"],
        ["%matplotlib inline\nprint(flights)"],
        ["%%time\nprint(flights)"],
        ["print(f'{flights:.2f}')"],
        ["for row in rows: pass"],
        ["with path.open() as file: pass"],
        ["x: Frame = 1"],
        ["data['a'] = 1"],
        ["data.column = 1"],
    ],
)
def test_undefined_name_is_an_error(sources: list[str]) -> None:
    assert codes(*sources) == ["N2P101"]


@pytest.mark.parametrize(
    "sources",
    [
        ["flights = 1", "print(flights)"],
        ["from math import *", "print(floor(pi))"],
        ["def late():\n    return limit", "limit = 15", "late()"],
        ["def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n and even(n - 1)\neven(2)"],
        ["print([x * y for x in (1, 2) for y in range(x)], {k: v for k, v in {}.items()})"],
        ["total = sum(n for n in (1, 2) if (last := n))\nprint(last)"],
        ["display(get_ipython(), In, Out, _, _3, __name__)"],
        ["files = !ls\nprint(files)"],
        ["%time model = 1\nprint(model)"],
        ["%%capture log\nprint(1)", "print(log)"],
        ["%run helpers.ipynb", "print(helper())"],
        ["%load_ext sql", "%sql rows << select 1", "print(rows)"],
        ["%%bash\necho $undefined"],
        ["%%html\n<b>undefined</b>"],
        ["try:\n    flights\nexcept NameError:\n    flights = 1"],
        ["if 'flights' not in globals():\n    flights = 1\nflights"],
        ["exec('x = 1')\nprint(x)"],
        ["globals()['x'] = 1\nprint(x)"],
        ["try:\n    pass\nexcept ValueError as error:\n    print(error)"],
        [
            "match (1, 2):\n    case [first, *rest]:\n        print(first, rest)\n    case {'a': a, **others}:\n        print(a, others)"
        ],
        ["def count():\n    global calls\n    calls = 1\ncount()\nprint(calls)"],
        ["class Model:\n    size = 3\n    half = size // 2\n    def area(self):\n        return self.size"],
        [
            "def late(*delays, after=15, **rest):\n    def inner():\n        nonlocal after\n        after = 2\n    return delays"
        ],
        ["import os.path as path, json\nprint(path, json)"],
        ["if seed:\n    kind = 1\nelse:\n    kind = 2\nprint(kind)"],
        ["for n in range(3):\n    last = n\nprint(n, last)"],
        ["first, (second, *others) = 1, (2, 3)\nprint(first, second, others)"],
        ["if seed > 9:\n    del seed\nprint(seed)"],
        ["from __future__ import annotations\ndef late(table: Frame) -> Frame: ..."],
        ["def late(table: 'Frame') -> 'Frame': ..."],
        ["async def get(): ...\nresult = await get()\nprint(result)"],
        ["len?"],
        [
            "def timed(f):\n    def inner():\n        return unit * f()\n    return inner",
            "@timed\ndef one(): ...",
            "unit = 60\none()",
        ],
        ["def define():\n    exec('x = 1', globals())\ndefine()\nx"],
        ["class Late(dict):\n    name = __qualname__\n    def kind(self):\n        return __class__"],
        ["x = 3\n!echo {x}\nx"],
        ["ls"],
        ["cd .."],
        ["ls -la data"],
        ["time rows = 3", "print(rows)"],
        ["%%timeit rows = 3\nrows * 2"],
        ["%%timeit -n 3 -r 2\nseed * 2"],
        ["ls = 1", "ls"],
    ],
)
def test_defined_name_is_not_reported(sources: list[str]) -> None:
    assert codes(*sources, only="N2P1") == []


def test_undefined_name_is_said_once_and_tells_where_it_is_defined() -> None:
    report = check_notebook(
        notebook("print(limit)", "print(limit)", "limit = 1"), CheckConfig(ignore=frozenset({"N2P701"}))
    )
    (finding,) = report.findings
    assert (finding.cell_id, finding.line) == ("cell-0", 1) and "'cell-2'" in finding.what


def test_a_line_without_percent_is_a_magic_only_where_ipython_takes_it_for_one() -> None:
    assert codes("ls\npwd", only="N2P1") == ["N2P101", "N2P101"], "two lines are Python"
    assert codes("import time", "time rows = 3", only="N2P1") == ["N2P100"], "the name is taken"
    assert codes("pip install flights", only="N2P4") == ["N2P404"]


IN_DOUBT = {
    "import": "import sys\nif 'google.colab' in sys.modules:\n    from no_such_module_7 import drive",
    "import in a function": "def to_gpu(table):\n    import no_such_module_7\n    return no_such_module_7.from_pandas(table)",
    "import, looked for": "from importlib.util import find_spec\nif find_spec('no_such_module_7'):\n    import no_such_module_7",
    "install": "import sys\nif 'google.colab' in sys.modules:\n    !pip install flights",
    "install after a failure": "try:\n    import json\nexcept ImportError:\n    %pip install json",
    "install by a command": "import os\ndef install():\n    os.system('pip install flights')",
    "question": "INTERACTIVE = False\nif INTERACTIVE:\n    name = input('name?')",
    "question of a function": "def ask():\n    return input('name?')",
    "name": "if seed > 9:\n    print(missing)",
    "name that a call may need": "def late(debug=False):\n    if debug:\n        return LIMIT\nlate()\nLIMIT = 15",
    "rows of something unknown": "import pandas\nclass Memory:\n    def sample(self, n): ...\nMemory().sample(2)",
}


@pytest.mark.parametrize("source", IN_DOUBT.values(), ids=IN_DOUBT)
def test_what_may_never_happen_warns(source: str) -> None:
    report = check_notebook(notebook(source, parameters=SEED), CheckConfig())
    (doubtful,) = (each for each in report.findings if RULES[each.code].severity == "error")
    assert doubtful.severity == "warning" and report.errors == ()
    strict = check_notebook(notebook(source, parameters=SEED), CheckConfig(error=frozenset({doubtful.code})))
    assert [finding.code for finding in strict.errors] == [doubtful.code]


SURE = {
    "import": "if True:\n    import no_such_module_7",
    "import, also under a condition": "if seed:\n    import no_such_module_7\nimport no_such_module_7",
    "install": "for _ in range(2):\n    !pip install flights",
    "question": "with open('a') as file:\n    input('name?')",
    "name": "for row in range(3):\n    print(missing)",
    "name that a call needs": "def late():\n    return LIMIT\nlate()\nLIMIT = 15",
    "rows of a table": "import pandas as pd\ntable = pd.read_csv('a.csv')\ntable.head().sample(2)",
}


@pytest.mark.parametrize("source", SURE.values(), ids=SURE)
def test_what_surely_happens_blocks(source: str) -> None:
    assert len(check_notebook(notebook(source, parameters=SEED), CheckConfig()).errors) == 1


def test_function_that_nobody_calls_only_warns() -> None:
    assert codes("def late():\n    return limit") == ["N2P102"]


def test_broken_cell_is_reported_and_hides_nothing_else() -> None:
    assert codes("for month in months print(month)", "print(flights)") == ["N2P100"]
    assert codes("import os", parameters="%matplotlib inline\nrows = 3", only="N2P100") == ["N2P100"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 2, 3], []),
        ([None, None, None], []),
        ([1, 5, 9], []),
        ([2, 1, 3], ["N2P103"]),
        ([1, 1, 2], ["N2P103"]),
        ([1, None, 2], ["N2P103"]),
        ([1, None, None], ["N2P103"]),
    ],
)
def test_execution_counts(counts: list[int | None], expected: list[str]) -> None:
    cells = [cell("1", f"c{n}", count=count, outputs=OUTPUT) for n, count in enumerate(counts)]
    assert codes(*cells, parameters=None, only="N2P103") == expected
    without = [cell("1", f"c{n}", count=count) for n, count in enumerate(counts)]
    assert codes(*without, parameters=None, only="N2P103") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("flights = flights.dropna()", ["N2P104"]),
        ("flights['late'] = 1", ["N2P104"]),
        ("flights.dropna(inplace=True)", ["N2P104"]),
        ("flights += 1", ["N2P104"]),
        ("late = flights.dropna()", []),
        ("def f():\n    flights = 1", []),
        ("for flights in (1, 2): pass", []),
        ("import flights", []),
    ],
)
def test_changing_what_an_output_depended_on(change: str, expected: list[str]) -> None:
    cells = ["flights = load()", cell("flights.head()", "look", outputs=OUTPUT), change]
    assert codes("load = len", *cells, only="N2P104") == expected
    assert codes("load = len", "flights = load()", "flights.head()", change, only="N2P104") == []


# Randomness

IMPORTS = """import random
import uuid
import numpy as np
import pandas as pd
import sklearn.ensemble
import notebook_to_prod as n2p
from sklearn import model_selection as ms
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier as Forest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
X = y = flights = pd.DataFrame()
kwargs = {}
"""

WITHOUT_STATE = [
    "Forest()",
    "Forest(n_jobs=2)",
    "Forest(random_state=None)",
    "nothing = None\nForest(random_state=nothing)",
    "sklearn.ensemble.RandomForestRegressor()",
    "ms.train_test_split(X, y)",
    "train_test_split(X, shuffle=True)",
    "KFold(5, shuffle=True)",
    "SVC(probability=True)",
    "LogisticRegression(solver='saga')",
    "make_pipeline(StandardScaler(), Forest())",
    "models = {'forest': Forest(), 'svm': SVC()}",
    "KMeans(3)",
    "Model = Forest\nModel()",
    "def make():\n    return Forest()",
    "[Forest(depth) for depth in (1, 2)]",
    "flights.sample(10)",
    "flights.dropna().sample(frac=0.5, replace=True)",
    "from sklearn.neighbors import *\nfrom sklearn.neural_network import *\nMLPClassifier()",
    "class Own:\n    def __init__(self, random_state):\n        self.random_state = random_state\nForest()",
    "from imblearn.over_sampling import SMOTE\nSMOTE()",
]
WITH_STATE = [
    "Forest(random_state=seed)",
    "Forest(**kwargs)",
    "train_test_split(X, y, random_state=0)",
    "train_test_split(X, y, shuffle=False)",
    "KFold(5)",
    "SVC()",
    "LogisticRegression()",
    "LogisticRegression(solver='lbfgs')",
    "StandardScaler()",
    "flights.sample(10, random_state=seed)",
    "class Forest: ...\nForest()",
    "rng = np.random.default_rng(seed)\nrng.choice(3)",
    "random.Random(3).sample([1, 2], 2)",
    "from sklearn.mixture import GaussianMixture\nGaussianMixture(2, random_state=0).fit(X).sample(9)",
    "model = Forest()\nmodel.random_state = seed",
    "ms.GridSearchCV(Forest(), {'random_state': [1, 2]})",
    "from torch.utils.data import DataLoader\nDataLoader([], shuffle=False)",
]


@pytest.mark.parametrize("source", WITHOUT_STATE)
def test_missing_random_state(source: str) -> None:
    assert codes(IMPORTS, source, only="N2P2") == ["N2P201"]
    assert codes(IMPORTS, "np.random.seed(3)", source, only="N2P2") == ["N2P202"]
    assert codes(IMPORTS, "run = n2p.start(seed=seed)", source, only="N2P2") == ["N2P202"]


@pytest.mark.parametrize("source", WITH_STATE)
def test_random_state_where_it_matters(source: str) -> None:
    assert codes(IMPORTS, source, only="N2P2") == []


def test_set_params_is_believed() -> None:
    assert codes(IMPORTS, "m = make_pipeline(Forest())\nm.set_params(f__random_state=seed)", only="N2P2") == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("np.random.rand(3)", ["N2P203"]),
        ("from numpy.random import normal as draw\ndraw()", ["N2P203"]),
        ("random.shuffle([1])", ["N2P203"]),
        ("import torch\ntorch.randn(3)", ["N2P203"]),
        ("import torch\ntorch.nn.Linear(3, 1)", ["N2P203"]),
        ("from scipy import stats\nstats.norm.rvs(size=3)", ["N2P203"]),
        ("np.random.rand(3)\nnp.random.seed(1)", ["N2P203"]),
        ("np.random.seed()\nnp.random.rand(3)", ["N2P203"]),
        ("random.seed(1)\nnp.random.rand(3)", ["N2P203"]),
        ("np.random.default_rng()", ["N2P204"]),
        ("np.random.default_rng(None)", ["N2P204"]),
        ("np.random.RandomState()", ["N2P204"]),
        ("n2p.start(seed=1)\nnp.random.Generator(np.random.PCG64())", ["N2P204"]),
        ("random.Random()", ["N2P204"]),
        ("uuid.uuid4()", ["N2P205"]),
        ("import os, secrets\nos.urandom(3), secrets.token_hex()", ["N2P205", "N2P205"]),
        ("np.random.seed(1)\nnp.random.rand(3)", []),
        ("n2p.start()\nnp.random.rand(3), random.random()", []),
        ("def fix():\n    np.random.seed(1)\nfix()\nnp.random.rand(3)", []),
        ("from helpers import seed_everything\nseed_everything(1)\nnp.random.rand(3)", []),
        ("def noise():\n    return np.random.rand()\nnp.random.seed(1)\nnoise()", []),
        ("import torch\ntorch.manual_seed(1)\ntorch.randn(3)", []),
        ("from torch.utils.data import DataLoader\nDataLoader([], shuffle=True)", ["N2P203"]),
        ("from helpers import set_seed\nset_seed()\nnp.random.rand(3)", []),
        ("from helpers import get_seed\nget_seed()\nnp.random.rand(3)", ["N2P203"]),
        (
            "class Fix:\n    def seed(self):\n        np.random.seed(1)\nFix().seed()\nfix = Fix()\nfix.seed()\nnp.random.rand()",
            [],
        ),
        ("def fix():\n    np.random.seed(1)\ndef main():\n    fix()\n    return np.random.rand()\nmain()", []),
        ("def fix():\n    return main()\ndef main():\n    fix()\n    return np.random.rand()\nmain()", ["N2P203"]),
        ("import torch\ntorch.cuda.manual_seed_all(1)\nnp.random.rand()", ["N2P203"]),
        ("import keras\nkeras.utils.set_random_seed(1)\nnp.random.rand(), random.random()", []),
        ("from scipy import stats\nstats.norm.rvs(size=3, random_state=seed)", []),
        ("np.random.default_rng(seed).normal()", []),
        ("def f(random):\n    return random.random()", []),
        ("uuid.uuid5(uuid.NAMESPACE_DNS, 'a')", []),
    ],
)
def test_draws_and_generators(source: str, expected: list[str]) -> None:
    assert codes(IMPORTS, source, only="N2P2") == expected


def test_table_is_what_scikit_learn_takes() -> None:
    sklearn = pytest.importorskip("sklearn")
    importlib.import_module("sklearn.experimental.enable_halving_search_cv")
    importlib.import_module("sklearn.experimental.enable_iterative_imputer")
    found: dict[str, set[str]] = {}
    arguments: dict[str, set[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [info.name for info in pkgutil.iter_modules(sklearn.__path__) if not info.name.startswith("_")]
        modules = [n for n in names if n not in ("conftest", "tests", "experimental", "externals")]
        for module in modules:
            for name, thing in vars(importlib.import_module(f"sklearn.{module}")).items():
                own = getattr(thing, "__module__", "") or ""
                if name.startswith(("_", "Base")) or not own.startswith(f"sklearn.{module}"):
                    continue
                with contextlib.suppress(ValueError, TypeError):
                    signature = inspect.signature(thing).parameters
                    if "random_state" in signature and signature["random_state"].default is None:
                        found.setdefault(module, set()).add(name)
                        arguments[name] = set(signature)
    assert {module: set(names.split()) for module, names in sklearn_table.TABLE.items()} == found
    conditions = sklearn_table._CONDITIONS
    wrong = {name: rule[0] for name, rule in conditions.items() if rule[0] not in arguments[name] | {"subsample"}}
    assert wrong == {} and conditions.keys() <= arguments.keys()


# Places


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("pd.read_csv('/home/ada/flights.csv')", ["N2P301"]),
        ("path = '~/flights.csv'", ["N2P301"]),
        (r"path = 'C:\\data\\flights.csv'", ["N2P301"]),
        ("path = 'C:/data/flights.csv'", ["N2P301"]),
        ("pd.read_csv('/flights/flights.csv')", ["N2P301"]),
        ("open('/etc/flights')", ["N2P301"]),
        ("path = f'/Users/ada/{seed}.csv'", ["N2P301"]),
        ("from pathlib import Path\nPath.home() / 'flights.csv'", ["N2P301"]),
        ("!cp /home/ada/flights.csv .", ["N2P301"]),
        ("pd.read_csv('data/flights.csv')", []),
        ("pd.read_csv('../flights.csv')", []),
        ("route = '/predict'", []),
        ("'a/b', '/', 'https://example.org/home/x', 's://'", []),
        ("def f():\n    'Reads /home/ada/flights.csv.'", []),
        ("'''/home/ada/flights.csv'''", []),
    ],
)
def test_paths(source: str, expected: list[str]) -> None:
    assert codes("import pandas as pd", source, only="N2P3") == expected


def test_path_in_the_parameters_may_be_set() -> None:
    assert codes("print(data)", parameters="data = '/home/ada/flights.csv'", only="N2P3") == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import requests\nrequests.get('https://example.org')", ["N2P501"]),
        ("import httpx as http\nhttp.Client()", ["N2P501"]),
        ("from urllib.request import urlopen\nurlopen(url)", ["N2P501"]),
        ("import pandas as pd\npd.read_csv('https://example.org/a.csv')", ["N2P501"]),
        ("import pandas as pd\nwhere = 's3://bucket/a.parquet'\npd.read_parquet(where)", ["N2P501"]),
        ("from sklearn.datasets import fetch_openml\nfetch_openml('titanic')", ["N2P501"]),
        ("import socket\nsocket.create_connection(('example.org', 80))", ["N2P501"]),
        ("!wget https://example.org/a.csv", ["N2P501"]),
        ("import pandas as pd\nbase = 'https://example.org/'\npd.read_csv(base + 'a.csv')", ["N2P501"]),
        ("import pandas as pd\nbase = 'https://example.org/'\npd.read_csv(f'{base}/a.csv')", ["N2P501"]),
        ("home = %env HOME", ["N2P503"]),
        ("%env A=b", []),
        ("import pandas as pd\npd.read_csv('a.csv')", []),
        ("import notebook_to_prod as n2p\nn2p.load('https://example.org/a.csv')", []),
        ("print('https://example.org')", []),
        ("import requests", []),
        ("from datetime import datetime as dt\ndt.now()", ["N2P502"]),
        ("import datetime\ndatetime.date.today().year", ["N2P502"]),
        ("import time\ntime.time()", ["N2P502"]),
        ("import pandas as pd\npd.Timestamp.now(), pd.to_datetime('today')", ["N2P502", "N2P502"]),
        ("import numpy as np\nnp.datetime64('now')", ["N2P502"]),
        ("def stamp():\n    import time\n    return time.strftime('%Y')", ["N2P502"]),
        ("import time\ntime.perf_counter(), time.sleep(1), time.strftime('%Y', time.gmtime(0))", []),
        ("import pandas as pd\npd.Timestamp('2013-01-01'), pd.to_datetime(['2013'])", []),
        ("import os\nos.environ['HOME']", ["N2P503"]),
        ("from os import environ, getenv\nenviron.get('A'), getenv('B')", ["N2P503", "N2P503"]),
        ("import getpass\ngetpass.getuser()", ["N2P503"]),
        ("import os\nos.environ['OMP_NUM_THREADS'] = '1'\nos.environ.setdefault('A', 'b')", []),
        ("input('name?')", ["N2P504"]),
        ("from getpass import getpass\ngetpass()", ["N2P504"]),
        ("def input(): ...\ninput()", []),
    ],
)
def test_outside(source: str, expected: list[str]) -> None:
    assert codes("url = ''", source, only="N2P5") == expected


# Imports


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which is also the current folder."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


IMPORTING = "import json\nimport numpy as np\nfrom sklearn import svm"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("notes.txt", "numpy", []),
        ("requirements.txt", "numpy==2.4.6\nscikit_learn == 1.9.1 ; python_version>'3'\n", []),
        ("requirements.txt", "numpy==2.4.6\nscikit-learn>=1.8  # ==\n", ["N2P403"]),
        ("requirements.txt", "numpy==2.*\nscikit-learn==1.9.1\n", ["N2P403"]),
        ("requirements.txt", "numpy==2.4.6\n", ["N2P402"]),
        ("requirements.lock", "numpy==2.4.6 \\\n    --hash=sha256:0\nscikit-learn==1.9.1\n", []),
        ("uv.lock", "[[package]]\nname = 'numpy'\n[[package]]\nname = 'scikit-learn'\n", []),
        ("pyproject.toml", "[project]\nname='a'\ndependencies=['numpy', 'scikit-learn==1.9.1']", ["N2P403"]),
        ("pyproject.toml", "[project]\nname='a'\ndynamic=['dependencies']", []),
        ("pyproject.toml", "[tool.poetry.dependencies]\nnumpy='2.4.6'\nscikit-learn='^1'", ["N2P403"]),
        ("environment.yml", "dependencies: [python=3.11, numpy=2.4.6, {pip: ['scikit-learn==1.9.1']}]", []),
        ("environment.yml", "dependencies: [numpy=2.4.6]", ["N2P402"]),
        ("environment.yml", "dependencies: [", []),
    ],
)
def test_requirements(project: Path, name: str, text: str, expected: list[str]) -> None:
    path = written(project, IMPORTING)
    (project / name).write_text(text)
    found = [finding.code for finding in check_notebook(path).findings]
    assert [code for code in found if code.startswith("N2P4")] == expected


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["import no_such_module_7"], ["N2P401"]),
        (["def f():\n    from no_such_module_7.part import thing"], ["N2P401"]),
        (["try:\n    import no_such_module_7\nexcept ImportError:\n    no_such_module_7 = None"], []),
        (["try:\n    import tomllib\nexcept ImportError:\n    import no_such_module_7 as tomllib"], []),
        (["from contextlib import suppress\nwith suppress(ImportError):\n    import no_such_module_7"], []),
        (["import sys\nsys.path.append('lib')\nimport no_such_module_7"], []),
        (["import sys\nsys.path += ['lib']\nimport no_such_module_7"], []),
        (["import os\nos.chdir('..')", "import no_such_module_7"], []),
        (["%cd ..", "import no_such_module_7"], []),
        (["%%bash\n# pip install flights\nls"], []),
        (["!pip install git+https://example.org/flights#egg=flights"], ["N2P404"]),
        (["%%writefile no_such_module_7.py\nx = 1", "import no_such_module_7"], []),
        (["import beside"], []),
        (["from . import beside"], []),
        (["!pip install flights"], ["N2P404"]),
        (["%pip install -q flights"], ["N2P404"]),
        (["%conda install flights"], ["N2P404"]),
        (["!apt-get install -y graphviz"], ["N2P404"]),
        (["%%bash\ncd /\npip install flights"], ["N2P404"]),
        (["import os\nos.system('pip install flights')"], ["N2P404"]),
        (["import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'a'])"], ["N2P404"]),
        (["!pip list\n!pip freeze > requirements.txt"], []),
        (["print('pip install flights')"], []),
    ],
)
def test_modules_and_installs(project: Path, sources: list[str], expected: list[str]) -> None:
    (project / "beside.py").touch()
    found = [finding.code for finding in check_notebook(written(project, *sources)).findings]
    assert [code for code in found if code.startswith("N2P4")] == expected


# Secrets

RANDOM = "Zk9vQ2xw7Rt4Lm8sYp3NcB6h"
TOKENS = {
    "aws": "AKIA" + "Q7RX2M5LPW9TZ3KD",
    "github": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "slack": "xoxb-" + "123456789012-abcdefGHIJKL",
    "openai": "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6",
    "google": "AIza" + "SyA1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q",
    "jwt": "eyJhbGciOiJIUzI1" + ".eyJzdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2QT4",
    "url": "postgresql://ada:" + "lovelace1815@db.example.org/flights",
    "pem": "-----BEGIN RSA " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_known_tokens(token: str) -> None:
    shown = {"output_type": "execute_result", "data": {"text/plain": [f"'{token}'"], "image/png": token}}
    made = notebook(f"connect = '{token}'", cell("1", "print", outputs=[shown]), f"# {token}", parameters=SEED)
    report = check_notebook(made, CheckConfig())
    found = [each for each in report.findings if each.code.startswith("N2P6")]
    assert [each.code for each in found] == ["N2P601", "N2P602", "N2P601"]
    assert token not in repr(report) and token not in json.dumps(report.to_dict())
    assert token not in report._repr_markdown_()


@pytest.mark.parametrize(
    ("source", "is_secret"),
    [
        (f"api_key = '{RANDOM}'", True),
        (f"connect(token='{RANDOM}')", True),
        (f"config = {{'client_secret': '{RANDOM}'}}", True),
        (f"os.environ['SECRET_KEY'] = '{RANDOM}'", True),
        (f"def connect(access_token='{RANDOM}'): ...", True),
        ("password = 'h0rse-staple'", True),
        ("dbPassword: str = 'correcthorse'", True),
        ("password = ''", False),
        ("password = 'changeme'", False),
        ("password = '@env:DB_PASSWORD'", False),
        ("api_key = '<your key goes here>'", False),
        ("api_key = 'your-api-key-goes-here-1'", False),
        ("token = os.environ['TOKEN']", False),
        ("pad_token = '[PAD]'", False),
        (f"pad_token = '{RANDOM}'", False),
        ("access_key = 'departure_time_2013_utc'", False),
        ("pwd = 'data/raw-2013'", False),
        ("dtypes = {'password': 'string', 'passwd': 'float64'}", False),
        ("flights['password'] = 'missing'", False),
        ("flights.rename(columns={'Password': 'password_length'})", False),
        ("connect({'user': 'ada', 'password': 'correcthorse'})", True),
        ("key = 'customer_identifier_1'", False),
        ("vectorizer(token_pattern=r'(?u)\\b\\w\\w+\\b1')", False),
        (f"digest = '{RANDOM}'", False),
        ("url = 'postgresql://ada:{password}@db/flights'", False),
        ("url = 'https://example.org:8080/a@b'", False),
    ],
)
def test_named_secrets(source: str, is_secret: bool) -> None:
    assert codes("import os\nconnect = vectorizer = print", source, only="N2P6") == ["N2P601"] * is_secret


# Parameters and training


@pytest.mark.parametrize(
    ("sources", "parameters", "expected"),
    [
        (["print(rows)"], "rows = 3", []),
        (["print(1)"], "rows = 3", ["N2P702"]),
        (["table = print\ntable.query('hour > @rows')"], "rows = 3", []),
        (["!head -n {rows} flights.csv"], "rows = 3", []),
        (["print(f'{rows}')"], "rows = 3", []),
        ([], "rows = 3\nhalf = rows / 2", ["N2P702"]),
        (["rows = 5\nprint(rows)"], "rows = 3", ["N2P703"]),
        (["print(rows)\nrows = 5"], "rows = 3", []),
        (["rows = rows or 5\nprint(rows)"], "rows = 3", []),
        (["if rows is None:\n    rows = 5\nprint(rows)"], "rows: int = None", []),
        (["print(1)"], None, ["N2P701"]),
    ],
)
def test_parameters(sources: list[str], parameters: str | None, expected: list[str]) -> None:
    assert codes(*sources, parameters=parameters, only="N2P7") == expected


FIT = "import notebook_to_prod as n2p\nfrom sklearn.svm import SVC\nX = y = [1]\nrun = n2p.start(seed=seed)\nrun.export"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("model = SVC().fit(X, y)", ["N2P801"]),
        ("model = SVC().fit(X, y)\nmodel.score(X, y)", ["N2P801"]),
        ("model = SVC()\nmodel.fit(X=X, y=y)\nmodel.predict(X)", ["N2P801"]),
        ("model = SVC().fit(X, y)\nmodel.score(X[5:], y[5:])", []),
        ("from sklearn.model_selection import train_test_split\nSVC().fit(X, y)", []),
        ("from sklearn.model_selection import cross_val_score as cv\ncv(SVC().fit(X, y), X, y)", []),
        ("X_train, X_test = X[:9], X[9:]\nSVC().fit(X_train, y)", []),
        ("from sklearn.preprocessing import StandardScaler\nStandardScaler().fit(X)", []),
        ("class Wrapper:\n    def fit(self, X, y):\n        self.model.fit(X, y)", []),
    ],
)
def test_held_out_data(source: str, expected: list[str]) -> None:
    assert codes(FIT + "(1, 1, 1, 1, 1)", source, only="N2P8") == expected


def test_training_without_the_toolkit_warns() -> None:
    fit = "from sklearn.svm import SVC\nX_train = X_test = y = [1]\nSVC().fit(X_train, y)"
    assert codes(fit, only="N2P8") == ["N2P802"]
    assert codes("import notebook_to_prod as n2p\nrun = n2p.start(seed=seed)", fit, only="N2P8") == ["N2P803"]


# Suppression and configuration


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("input()  # n2p: allow N2P504", []),
        ("input()  # n2p: allow n2p504", []),
        ("# n2p: allow N2P504\nprint(1)\ninput()", []),
        ("# why\n\n# n2p: allow N2P502, N2P504\ninput()", []),
        ("%%time\n# n2p: allow N2P504\ninput()", []),
        ("print(\n    input(),\n    1,  # n2p: allow N2P504\n)", []),
        ("input()  # n2p: allow N2P502", ["N2P504"]),
        ("print(1)  # n2p: allow N2P504\ninput()", ["N2P504"]),
        ("print(1)\n# n2p: allow N2P504\ninput()", ["N2P504"]),
        ("if 1:  # n2p: allow N2P504\n    input()", ["N2P504"]),
        ("input()  # n2p: allow N2P5004", ["N2P001", "N2P504"]),
        ("!pip install a  # n2p: allow N2P404", []),
    ],
)
def test_comment_allows(source: str, left: list[str]) -> None:
    assert codes(source) == left


def test_unknown_code_in_a_comment_names_the_nearest() -> None:
    (finding, _) = check_notebook(notebook("input()  # n2p: allow N2P5004", parameters=""), CheckConfig()).findings
    assert finding.code == "N2P001" and "N2P504" in finding.remedy


def test_configuration(project: Path) -> None:
    path = written(project, "input()", "import time\ntime.time()", parameters="rows = 1")

    def severities(text: str) -> dict[str, str]:
        (project / "pyproject.toml").write_text(f"[tool.n2p.check]\n{text}")
        return {finding.code: finding.severity for finding in check_notebook(path).findings}

    assert severities("") == {"N2P702": "warning", "N2P504": "error", "N2P502": "warning"}
    assert severities('ignore = ["N2P504", "N2P702"]') == {"N2P502": "warning"}
    assert severities('error = ["N2P502"]\nwarn = ["N2P504"]') == {
        "N2P702": "warning",
        "N2P504": "warning",
        "N2P502": "error",
    }
    general = 'ignore = ["N2P504", "N2P702"]\n'
    assert severities(general + '[tool.n2p.check.notebooks."tr*.ipynb"]\nwarn = ["N2P504"]')["N2P504"] == "warning"
    assert "N2P504" not in severities(general + '[tool.n2p.check.notebooks."other/**"]\nwarn = ["N2P504"]')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('ignore = ["N2P5004"]', "N2P504"),
        ('ignored = ["N2P504"]', "ignore, error, warn"),
        ('ignore = "N2P504"', "ignore = ["),
        ("notebooks.a.ignore = ['X']", "the codes are"),
        ("ignore = [", "correct the file"),
    ],
)
def test_configuration_that_is_wrong_is_refused(project: Path, text: str, words: str) -> None:
    path = written(project, "1", parameters="")
    (project / "pyproject.toml").write_text(f"[tool.n2p.check]\n{text}\n")
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert words in str(caught.value) and "pyproject.toml" in str(caught.value)


# What is ordinary

N2P_START = "import notebook_to_prod as n2p\nrun = n2p.start(seed=seed)\nflights = n2p.load(data)"
N2P_END = "run.metric('score', score)\nrun.export(model, X_train, y_train, X_test, y_test)"
SPLIT = (
    "from sklearn.model_selection import train_test_split\nX, y = flights.drop(columns='late'), flights['late']\n"
    "X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=seed)"
)


def trained(imports: str, model: str) -> list[str]:
    """Return the cells of a notebook that trains `model`."""
    return [
        N2P_START,
        imports,
        SPLIT,
        f"model = {model}",
        "score = model.fit(X_train, y_train).score(X_test, y_test)",
        N2P_END,
    ]


ORDINARY = {
    "forest": trained(
        "from sklearn.ensemble import RandomForestClassifier", "RandomForestClassifier(100, random_state=seed)"
    ),
    "no state": trained("from sklearn.ensemble import RandomForestClassifier", "RandomForestClassifier(100)"),
    "pipeline": trained(
        "from sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import *\nfrom sklearn.svm import SVC",
        "make_pipeline(StandardScaler(), SVC())",
    ),
    "columns": trained(
        "from sklearn.compose import ColumnTransformer, make_column_selector as selector\n"
        "from sklearn.linear_model import LogisticRegression\nfrom sklearn.pipeline import Pipeline",
        "Pipeline([('prepare', ColumnTransformer([('n', 'passthrough', selector(dtype_include='number'))])),"
        " ('model', LogisticRegression(max_iter=500))])",
    ),
    "search": trained(
        "from sklearn.model_selection import GridSearchCV\nfrom sklearn.tree import DecisionTreeClassifier",
        "GridSearchCV(DecisionTreeClassifier(random_state=seed), {'max_depth': [2, 3]}, cv=3)",
    ),
    "stacking": trained(
        "from sklearn.ensemble import StackingClassifier\nfrom sklearn.naive_bayes import GaussianNB\n"
        "from sklearn.neighbors import KNeighborsClassifier",
        "StackingClassifier([('knn', KNeighborsClassifier()), ('nb', GaussianNB())])",
    ),
    "text": trained(
        "from sklearn.feature_extraction.text import TfidfVectorizer\nfrom sklearn.linear_model import SGDClassifier\n"
        "from sklearn.pipeline import make_pipeline",
        r"make_pipeline(TfidfVectorizer(token_pattern=r'(?u)\b\w+\b'), SGDClassifier(random_state=seed))",
    ),
    "own transformer": trained(
        "#| export\nimport numpy as np\nfrom sklearn.base import BaseEstimator, TransformerMixin\n\n"
        "class Log(TransformerMixin, BaseEstimator):\n    def fit(self, X, y=None):\n        self.n_ = X.shape[1]\n        return self\n"
        "    def transform(self, X):\n        return np.log1p(X)\n"
        "    def get_feature_names_out(self, names=None):\n        return np.array([f'log_{n}' for n in range(self.n_)])",
        "Log()",
    ),
    "plots": [
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nimport numpy as np",
        "fig, axes = plt.subplots(1, 2)\nfor ax, color in zip(axes.flat, 'rg'):\n    ax.plot(np.arange(3), color=color)\nplt.show()",
        "fig, ax = plt.subplots()\nax.hist(np.linspace(0, 1))",
    ],
    "pandas": [
        "import pandas as pd\nflights = pd.read_parquet(data)\nflights.head()",
        "flights['late'] = flights['delay'] > 15\nflights.groupby('carrier').agg(late=('late', 'mean'))",
        "flights = flights.assign(hour=lambda t: t.time // 100).query('hour > 5').pipe(lambda t: t[t.hour < limit])",
        "limit = 20\nflights.apply(lambda row: row.hour * limit, axis=1)",
    ],
    "functions": [
        "from functools import partial, lru_cache\nfrom typing import Any",
        "@lru_cache\ndef fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "def scores(*values: Any, **named: Any):\n    best = max(values, key=lambda v: v)\n    return {k: v for k, v in named.items() if v < best}",
        "print(scores(1, 2, a=fib(3)), partial(scores, 1)(2))",
    ],
    "magics": [
        "%load_ext autoreload\n%autoreload 2",
        "%%time\ntotal = sum(range(10))",
        "!ls -l\nfiles = !ls\nprint(files, total)",
    ],
    "numpy": [
        "import numpy as np\nrng = np.random.default_rng(seed)\nnoise = rng.normal(size=(3, 2))\nrng.shuffle(noise)",
        "indices = np.arange(3)\nmask = np.isin(indices, [1])\nprint(noise[mask].mean(axis=0))",
    ],
    "boosting": trained(
        "from sklearn.ensemble import HistGradientBoostingRegressor as Boosting\nfrom sklearn.metrics import mean_absolute_error",
        "Boosting(max_iter=50, random_state=seed)",
    ),
    "loops": [
        "from sklearn.dummy import DummyClassifier\nfrom sklearn.linear_model import Ridge\n"
        "models = {'dummy': DummyClassifier(), 'ridge': Ridge(alpha=0.1)}\nresults = {}",
        "X_train = X_test = [[1.0]]\nfor name, model in models.items():\n    model.fit(X_train, [1])\n    results[name] = model.score(X_test, [1])",
        "best = max(results, key=results.get)\nprint(f'{best}: {results[best]:.3f}')",
    ],
    "context": [
        "import json, tempfile\nfrom pathlib import Path\nwith tempfile.TemporaryDirectory() as folder:\n"
        "    path = Path(folder) / 'a.json'\n    path.write_text(json.dumps({'a': 1}))\n    content = json.loads(path.read_text())",
        "try:\n    value = content['b']\nexcept KeyError as error:\n    value = 0\n    print(error)\nassert value == 0",
    ],
}


@pytest.mark.parametrize("sources", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_notebooks_have_no_errors(sources: list[str]) -> None:
    report = check_notebook(notebook(*sources, parameters="data = 'flights.parquet'\nseed = 7"), CheckConfig())
    assert report.errors == ()
    assert {finding.code for finding in report.findings} <= {"N2P202", "N2P702", "N2P802"}


@pytest.mark.parametrize("sources", NOTEBOOKS.values(), ids=NOTEBOOKS)
def test_published_notebooks_have_no_errors(sources: list[str]) -> None:
    assert check_notebook(notebook(*sources), CheckConfig()).errors == ()


def test_notebook_without_code_has_nothing_to_find() -> None:
    assert check_notebook(notebook(), CheckConfig()).findings == ()


@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/**/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_of_this_project_have_no_errors(path: Path) -> None:
    assert check_notebook(path).errors == ()


def test_flights_notebook_is_clean_and_quickly_checked() -> None:
    path = ROOT / "nbs/examples/flights/train.ipynb"
    assert check_notebook(path).findings == ()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        check_notebook(path)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3


def test_checking_imports_nothing_heavy() -> None:
    program = (
        "import sys, notebook_to_prod.train.run; print({'sklearn', 'pandas', 'numpy', 'IPython'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


# Repairs


def executed(path: Path) -> dict[str, Any]:
    """Return the names after running the code cells of a notebook from top to bottom."""
    namespace: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for each in read_notebook(path).code_cells:
            exec(each.source, namespace)
    return namespace


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Forest()", "Forest(random_state=seed)"),
        ("Forest(10)", "Forest(10, random_state=seed)"),
        ("Forest((10))", "Forest((10), random_state=seed)"),
        ("Forest(10, )", "Forest(10, random_state=seed )"),
        ("Forest(random_state=None)", "Forest(random_state=seed)"),
        ("Forest(  # größer\n)", "Forest(  # größer\nrandom_state=seed)"),
        (
            "make_pipeline(\n    Forest(\n        10,  # trees (ten)\n        n_jobs=1,\n    ),\n)",
            "make_pipeline(\n    Forest(\n        10,  # trees (ten)\n        n_jobs=1, random_state=seed,\n    ),\n)",
        ),
        ("größe = 'ü', Forest(5), Forest()", "größe = 'ü', Forest(5, random_state=seed), Forest(random_state=seed)"),
        ("%time\nForest()", "%time\nForest(random_state=seed)"),
        ("%%time\nForest()", "%%time\nForest(random_state=seed)"),
        ("np.random.default_rng()", "np.random.default_rng(seed)"),
        ("np.random.RandomState(None)", "np.random.RandomState(seed)"),
        ("random.Random()", "random.Random(seed)"),
        ("flights.sample(frac=0.5)", "flights.sample(frac=0.5, random_state=seed)"),
        ("def f(seed):\n    return Forest()", "def f(seed):\n    return Forest()"),
        ("[flights.sample(frac=1) for _ in range(9)]", "[flights.sample(frac=1) for _ in range(9)]"),
        ("def f():\n    return np.random.default_rng()", "def f():\n    return np.random.default_rng()"),
        ("[Forest(n) for n in range(9)]", "[Forest(n, random_state=seed) for n in range(9)]"),
        ("#| export\nForest()", "#| export\nForest()"),
        ("Forest()  # n2p: allow N2P201", "Forest()  # n2p: allow N2P201"),
    ],
)
def test_fix_random_state(tmp_path: Path, before: str, after: str) -> None:
    path = written(tmp_path, IMPORTS, before, parameters=SEED)
    fix_notebook(path)
    assert read_notebook(path).cells[2].source == after
    assert read_notebook(path).parameters.keys() == {"seed"}


@pytest.mark.parametrize(
    ("cells", "parameters", "expected"),
    [
        (["rows = 3", IMPORTS, "Forest()"], None, "rows = 3\nseed = 0"),
        (["from sklearn.svm import SVC", "rows = 3", "SVC(probability=True)"], None, "rows = 3\nseed = 0"),
        ([IMPORTS, "Forest()"], "rows = 3", "rows = 3\nseed = 0"),
        ([IMPORTS, "Forest()"], None, "seed = 0"),
        ([IMPORTS, "SEED = 3", "Forest(SEED)\nForest()"], "rows = 3", "rows = 3"),
        ([IMPORTS, "for seed in (1, 2):\n    Forest()"], "rows = 3", "rows = 3"),
    ],
)
def test_fix_finds_or_makes_a_seed(tmp_path: Path, cells: list[str], parameters: str | None, expected: str) -> None:
    path = written(tmp_path, *cells, parameters=parameters)
    repair = fix_notebook(path)
    tagged = read_notebook(path).parameters_cell
    assert tagged is not None and tagged.source == expected
    assert not fix_notebook(path).fixed and not any(finding.fixable for finding in repair.report.findings)
    assert len({each["id"] for each in json.loads(path.read_text())["cells"]}) == len(read_notebook(path).cells)


def test_fix_makes_paths_parameters(tmp_path: Path) -> None:
    reads = "a = open('/tmp/Flight data.2013.csv', 'a').name\nb = '/tmp/Flight data.2013.csv'\nc = '~/class.csv'\nd = f'/tmp/{a}'"
    path = written(tmp_path, "import os", reads, parameters="flight_data_path2 = 1")
    assert len(fix_notebook(path).fixed) == 3
    source = "a = open(flight_data_path, 'a').name\nb = flight_data_path\nc = class_path\nd = f'/tmp/{a}'"
    assert read_notebook(path).cells[2].source == source
    parameters = {name: each.value for name, each in read_notebook(path).parameters.items()}
    assert parameters == {
        "flight_data_path2": 1,
        "flight_data_path": "/tmp/Flight data.2013.csv",
        "class_path": "~/class.csv",
    }
    assert executed(path)["b"] == "/tmp/Flight data.2013.csv"


def test_fixed_notebook_is_reported_no_more_and_runs(tmp_path: Path) -> None:
    source = (
        "from sklearn.datasets import make_classification\nfrom sklearn.ensemble import RandomForestClassifier\n"
        "from sklearn.model_selection import train_test_split\n"
    )
    fit = (
        "X, y = make_classification(rows)\nX_train, X_test, y_train, y_test = train_test_split(X, y)\n"
        "score = RandomForestClassifier(5).fit(X_train, y_train).score(X_test, y_test)"
    )
    path = written(tmp_path, source, "rows = 60", fit)
    assert [finding.code for finding in check_notebook(path).errors] == ["N2P201"] * 3
    repair = fix_notebook(path)
    assert sorted(finding.code for finding in repair.fixed) == ["N2P201"] * 3 + ["N2P701"]
    assert [finding.code for finding in check_notebook(path).findings] == ["N2P802"]
    assert executed(path)["score"] == executed(path)["score"]


STYLES = [
    {"indent": 1, "ensure_ascii": False},
    {"indent": 2, "ensure_ascii": False},
    {"indent": 1, "ensure_ascii": True, "sort_keys": True},
    {"indent": None},
]


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=repr)
def test_fix_keeps_every_other_byte(tmp_path: Path, style: dict[str, Any], end: str) -> None:
    shown = {"output_type": "execute_result", "data": {"text/plain": ["'größe'"]}, "metadata": {}, "execution_count": 2}
    prose = {"cell_type": "markdown", "id": "prose", "metadata": {"x": 1.5e-07}, "source": "# Größe"}
    made = content(
        prose,
        cell("'größe'", "look", count=2, outputs=[shown]),
        "import numpy as np\nnp.random.default_rng()",
        parameters=SEED,
    )
    text = json.dumps(made, **style) + end
    text = text.replace("\n", "\r\n") if end == "\r\n" else text
    path = tmp_path / "train.ipynb"
    path.write_bytes(text.replace("\r\r", "\r").encode())
    before = path.read_bytes().decode()
    path.chmod(0o640)
    assert len(fix_notebook(path).fixed) == 1
    assert path.read_bytes().decode() == before.replace("default_rng()", "default_rng(seed)")
    assert path.stat().st_mode & 0o777 == 0o640


def test_fix_writes_nothing_where_nothing_is_to_be_fixed(tmp_path: Path) -> None:
    path = written(tmp_path, "input()", parameters=SEED)
    stamp = path.stat().st_mtime_ns, path.stat().st_ino
    assert fix_notebook(path).fixed == () and (path.stat().st_mtime_ns, path.stat().st_ino) == stamp


def test_fix_follows_a_link_and_names_a_file_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "import random\nrandom.Random()", parameters=SEED)
    link = tmp_path / "link.ipynb"
    link.symlink_to(path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        with pytest.raises(NotebookError, match="cannot be written: Permission denied"):
            fix_notebook(link)
    assert path.read_bytes() == before and sorted(each.name for each in tmp_path.glob("*.ipynb")) == [
        "link.ipynb",
        "train.ipynb",
    ]
    assert fix_notebook(link).fixed and link.is_symlink()


def test_unknown_style_becomes_jupyters() -> None:
    assert dumped_like('{"a":\n   1e3}', {"a": 1000.0}, {"a": 2}) == '{\n "a": 2\n}\n'


def test_old_notebook_without_ids_stays_without(tmp_path: Path) -> None:
    made = content("import random\nrandom.Random()")
    for each in made["cells"]:
        del each["id"]
    made["nbformat_minor"] = 4
    path = tmp_path / "old.ipynb"
    path.write_text(json.dumps(made))
    assert len(fix_notebook(path).fixed) == 1
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["source"] == ["seed = 0"] and not any("id" in each for each in cells)


# The run and the command


def test_run_refuses_errors_unless_they_are_allowed(project: Path) -> None:
    path = written(project, "import random\nprint(random.random())", parameters="rows = 3")
    with pytest.raises(CheckError) as caught:
        run_notebook(path)
    error = caught.value
    assert error.exit_code == 1 and "cell 2 'cell-0', line 2" in error.what and "--allow N2P203" in (error.remedy or "")
    assert [finding["code"] for finding in error.to_dict()["findings"]] == ["N2P203"]
    assert not (project / ".n2p").exists()
    with pytest.raises(InputError, match="N2P203"):
        require_clean(read_notebook(path), ["N2P2003"])
    report = require_clean(read_notebook(path), ["N2P203"])
    assert [finding.code for finding in report.allowed] == ["N2P203"]


def n2p(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `n2p` in `folder`."""
    command = [sys.executable, "-m", "notebook_to_prod", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def test_run_command_allows_a_code(project: Path) -> None:
    path = written(project, "import random\nprint(random.random())", parameters="rows = 3")
    refused = Project(project).n2p("run", path.name)
    assert refused.code == 1 and "N2P203" in refused.stderr
    ran = Project(project).run(path.name, "--allow", "N2P203")
    assert ran.code == 0, ran.stderr
    assert ran.json["status"] == "finished"


def test_run_says_what_the_checker_warns_of(project: Path) -> None:
    cells = ["import time\nprint(time.time())", "if rows > 9:\n    import no_such_module_7"]
    path = written(project, *cells, parameters="rows = 3")
    done = Project(project).run(path.name)
    ran = done.json
    assert [each["code"] for each in ran["warnings"]] == ["N2P502", "N2P401"] and ran["status"] == "finished"
    assert "warning: N2P502 in cell 2 'cell-0', line 2: time.time reads the clock" in done.stderr
    kept = json.loads((Path(ran["folder"]) / "record.json").read_text(encoding="utf-8"))
    assert kept["warnings"] == ran["warnings"]
    again = Project(project).run(path.name).json
    assert again["reused"] and again["warnings"] == ran["warnings"]


def test_check_command(project: Path) -> None:
    path = written(project, "import random\nrandom.Random()", parameters="rows = 3\nprint(rows)")
    done = n2p(project, "check", path.name)
    assert done.returncode == 1
    assert "N2P204" in done.stdout and done.stdout.splitlines()[-1].endswith(
        "train.ipynb: 1 error, 0 warnings; --fix repairs 1"
    )
    report = json.loads(n2p(project, "check", path.name, "--json").stdout)
    assert not report["ok"] and report["notebooks"][0]["errors"] == 1
    finding = report["notebooks"][0]["findings"][0]
    assert finding.keys() == {"code", "severity", "cell_id", "number", "line", "what", "remedy", "fixable"}
    assert finding["number"] == 2 and f"{finding['cell_id']}:2 (cell 2)" in done.stdout
    assert n2p(project, "check", path.name, "--allow", "N2P204").returncode == 0
    fixed = json.loads(n2p(project, "check", path.name, "--fix", "--json").stdout)
    assert fixed["ok"] and [each["code"] for each in fixed["notebooks"][0]["fixed"]] == ["N2P204"]
    assert n2p(project, "check", path.name).stdout.splitlines()[-1].endswith("train.ipynb: nothing found")


def test_check_command_on_what_is_unusable(project: Path) -> None:
    good = written(project, "print(rows)", parameters="rows = 3")
    (project / "bad.ipynb").write_text("{")
    assert n2p(project, "check", "missing.ipynb").returncode == 2
    assert n2p(project, "check", good.name, "--allow", "N2P9").returncode == 2
    both = n2p(project, "check", "bad.ipynb", good.name, "--json")
    assert both.returncode == 2 and [each["ok"] for each in json.loads(both.stdout)["notebooks"]] == [False, True]


def test_every_rule_has_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [code for code in RULES if f'"{code}"' not in text] == []
