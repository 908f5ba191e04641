"""Bundles: made by a notebook, whole or not at all, loadable anywhere, and refused when a byte has changed."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import shutil
import site
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from joblib import Memory
from notebooks import Project, make_project, once
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from notebook_to_prod.errors import BundleError, DependencyError, ExportError, NotFoundError
from notebook_to_prod.package import keys, session
from notebook_to_prod.package.bundle import (
    Bundle,
    Prediction,
    copy_bundle,
    load_pipeline,
    open_bundle,
    remove_bundle,
    unusable_row,
    write_bundle,
)
from notebook_to_prod.package.bundle_diff import compare_bundles
from notebook_to_prod.package.code import PipelineCode, pickle_pipeline
from notebook_to_prod.package.contents import Tables, bundle_contents, without_names
from notebook_to_prod.package.gates.summary import summary_lines
from notebook_to_prod.package.lock import distributions_of, read_lock
from notebook_to_prod.package.schema import Schema, infer_schema
from notebook_to_prod.package.session import start
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.train.closure import imported_names, local_files, local_folders

# Models of every kind, exported by one notebook

ZOO = {
    "imports": """
        import json
        from pathlib import Path

        import numpy as np
        import pandas as pd
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        import notebook_to_prod as n2p

        run = n2p.start(seed=3)
        made = {}


        def export(name, model, X, y):
            bundle = run.export(model.fit(X[:40], y[:40]), X[:40], y[:40], X[40:], y[40:])
            made[name] = bundle.digest
    """,
    "data": """
        array = np.random.normal(size=(60, 3))
        frame = pd.DataFrame(array, columns=["a", "b", "c"])
        texts = pd.Series(["cheap pills", "see you at lunch", "pills for you"] * 20, name="mail")
        spam = np.array(["spam", "ham", "spam"] * 20)
        size = np.array(["small", "middle", "large"])[np.digitize(array[:, 0], [-0.5, 0.5])]
    """,
    "text": 'export("text", make_pipeline(TfidfVectorizer(), LogisticRegression()), texts, spam)',
    "list": 'export("list", make_pipeline(TfidfVectorizer(), LogisticRegression()), texts.tolist(), spam)',
    "regression": 'export("regression", make_pipeline(StandardScaler(), Ridge()), array, array @ [1.0, 2.0, 3.0])',
    "multi-class": 'export("multi-class", make_pipeline(StandardScaler(), LogisticRegression()), frame, size)',
    "svc": 'export("svc", make_pipeline(StandardScaler(), SVC()), frame, size)',
    "multi-output": """
        export("multi-output", RandomForestClassifier(5), frame, np.column_stack([size, array[:, 1] > 0]))
        export("multi-output-regression", Ridge(), frame, array[:, :2])
    """,
    "digests": 'run.metric("models", len(made))\nPath("digests.json").write_text(json.dumps(made))',
}
MODELS = ["text", "list", "regression", "multi-class", "svc", "multi-output", "multi-output-regression"]


def run_zoo(project: Project) -> None:
    project.notebook("zoo.ipynb", ZOO)
    done = project.run("zoo.ipynb")
    assert done.code == 0, done


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose notebook has exported every kind of model."""
    return once(tmp_path_factory, "zoo", run_zoo)


@pytest.fixture(scope="session")
def bundles(zoo: Project) -> dict[str, Bundle]:
    """Its bundles, opened, by the name of the model."""
    digests = json.loads((zoo.folder / "digests.json").read_text())
    folder = zoo.home / "bundles"
    return {name: open_bundle(folder / digest.removeprefix("sha256:"), digest) for name, digest in digests.items()}


REPLAY = """
import json, sys
from notebook_to_prod.package.bundle import load_pipeline, open_bundle, replay_golden
bundles = [open_bundle(path) for path in sys.argv[1:]]
pipelines = [load_pipeline(bundle) for bundle in bundles]
differences = [replay_golden(bundle, pipeline) for bundle, pipeline in zip(bundles, pipelines)]
modules = [type(pipeline[0]).__module__ for pipeline in pipelines if hasattr(pipeline, "steps")]
print(json.dumps({"differences": differences, "modules": modules, "kernel": "IPython" in sys.modules}))
"""


def replay_elsewhere(project: Project, folder: Path, *paths: Path) -> dict[str, Any]:
    """Load bundles in a fresh process in `folder`, and predict their golden rows."""
    done = project.command("python", "-c", REPLAY, *paths, cwd=folder)
    assert done.code == 0, done
    return done.json


def test_every_model_predicts_the_same_in_another_process(
    zoo: Project, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    assert [*bundles] == MODELS
    said = replay_elsewhere(zoo, tmp_path, *(bundle.path for bundle in bundles.values()))
    assert said["differences"] == [0.0] * len(MODELS)
    assert not said["kernel"]


@pytest.mark.slow
def test_a_run_in_another_folder_makes_the_same_bundles(zoo: Project, tmp_path: Path) -> None:
    other = make_project(tmp_path / "a rather different place")
    shutil.copy(zoo.folder / "zoo.ipynb", other.folder / "renamed.ipynb")
    done = other.run(other.folder / "renamed.ipynb", cwd=tmp_path, N2P_HOME=str(tmp_path / "store"))
    assert done.code == 0, done
    assert (other.folder / "digests.json").read_text() == (zoo.folder / "digests.json").read_text()
    assert done.json["bundle"] == zoo.record(zoo.run_folders[0].name)["bundle"]


EXPECTED = {
    "text": ("series", "classification", ["ham", "spam"]),
    "list": ("list", "classification", ["ham", "spam"]),
    "regression": ("array", "regression", None),
    "multi-class": ("dataframe", "classification", ["large", "middle", "small"]),
    "svc": ("dataframe", "classification", ["large", "middle", "small"]),
    "multi-output": ("dataframe", "classification", [["large", "middle", "small"], ["False", "True"]]),
    "multi-output-regression": ("dataframe", "regression", None),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_says_what_its_model_is(name: str, bundles: dict[str, Bundle]) -> None:
    metadata = bundles[name].metadata
    assert (bundles[name].schema.container, metadata["task"], metadata["classes"]) == EXPECTED[name]
    assert (metadata["draft"], metadata["seed"], metadata["rows"]) == (False, 3, {"train": 40, "test": 20})


@pytest.mark.parametrize("name", MODELS)
def test_golden_predictions_have_one_entry_a_row(name: str, bundles: dict[str, Bundle]) -> None:
    golden, classes = bundles[name].golden, bundles[name].metadata["classes"]
    assert len(golden["rows"]) == len(golden["predictions"]) == 20
    if classes is None or name == "svc":
        assert golden["probabilities"] is None
    elif name == "multi-output":
        assert [len(each) for row in golden["probabilities"] for each in row] == [3, 2] * 20
        assert all(len(row) == 2 for row in golden["predictions"])
    else:
        assert {len(row) for row in golden["probabilities"]} == {len(classes)}


# A notebook with code of its own

CUSTOM = {
    "title": "#| default_exp features",
    "exported-imports": """
        #| export
        import units
        from sklearn.base import BaseEstimator, TransformerMixin, clone
    """,
    "imports": """
        import charts
        import numpy as np
        import pandas as pd
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer

        import notebook_to_prod as n2p

        run = n2p.start(seed=1)
    """,
    "exported-constant": "#| export\nOFFSET = 1.0",
    "scale": """
        #| export
        class Scale(TransformerMixin, BaseEstimator):
            def __init__(self, factor=2.0):
                self.factor = factor

            def fit(self, X, y=None):
                self.n_features_in_ = X.shape[1]
                return self

            def transform(self, X):
                return X.apply(units.to_hours) * self.factor + OFFSET


        def double(X):
            return X * 2
    """,
    "fit": """
        X = pd.DataFrame({"minutes": np.linspace(0, 600, 30)})
        y = np.sin(X["minutes"])
        pipeline = make_pipeline(Scale(), FunctionTransformer(double), LinearRegression()).fit(X, y)
        run.export(pipeline, X[:20], y[:20], X[20:], y[20:])
        assert Scale.__module__ == "__main__"
    """,
}


def run_custom(project: Project) -> None:
    (project.folder / "units.py").write_text(
        "from constants import HOUR\n\n\ndef to_hours(minutes):\n    return minutes / HOUR\n"
    )
    (project.folder / "constants.py").write_text("HOUR = 60\n")
    (project.folder / "charts.py").write_text("# Only the notebook needs this one.\n")
    project.notebook("old.ipynb", CUSTOM)
    project.notebook("new.ipynb", CUSTOM | {"exported-constant": "#| export\nOFFSET = 1000.0"})
    for notebook in ("old.ipynb", "new.ipynb"):
        done = project.run(notebook)
        assert done.code == 0, done
        (project.folder / notebook).with_suffix(".bundle").write_text(done.json["bundle_path"])


@pytest.fixture(scope="session")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with two notebooks, which hold two versions of the same class."""
    return once(tmp_path_factory, "custom", run_custom)


@pytest.fixture(scope="session")
def versions(custom: Project) -> list[Path]:
    """The folders of the bundles of the old and the new code."""
    return [Path((custom.folder / f"{name}.bundle").read_text()) for name in ("old", "new")]


def test_exported_cells_and_helper_modules_travel_in_the_bundle(versions: list[Path]) -> None:
    names = sorted(path.name for path in (versions[0] / "code").iterdir())
    module = names.pop(1)
    assert re.fullmatch(r"features_[0-9a-f]{8}\.py", module)
    assert names == ["constants.py", "units.py"]
    source = (versions[0] / "code" / module).read_text()
    assert [source.index(text) for text in ("import units", "OFFSET = 1.0", "class Scale")] == sorted(
        source.index(text) for text in ("import units", "OFFSET = 1.0", "class Scale")
    )
    assert "charts" not in source


def test_two_versions_of_a_class_work_in_one_process(custom: Project, versions: list[Path], tmp_path: Path) -> None:
    said = replay_elsewhere(custom, tmp_path, *versions)
    assert said["differences"] == [0.0, 0.0]
    assert len(set(said["modules"])) == 2


def test_two_helper_modules_of_one_name_are_a_conflict_and_no_guess(
    custom: Project, versions: list[Path], tmp_path: Path
) -> None:
    whole = open_bundle(versions[0])
    contents = {name: (whole.path / name).read_bytes() for name in whole.files}
    other = write_bundle(tmp_path / "bundles", contents | {"code/units.py": contents["code/units.py"] + b"# changed"})
    done = custom.command("python", "-c", REPLAY, whole.path, other.path, cwd=tmp_path)
    assert "BundleError: another module called 'units' is already loaded" in done.stderr


def test_the_lock_names_what_the_model_imports_and_nothing_of_the_notebook(versions: list[Path]) -> None:
    lock = open_bundle(versions[0]).lock
    assert {"numpy", "pandas", "scikit-learn", "scipy"} <= set(re.findall(r"^([\w-]+)==", lock, re.MULTILINE))
    assert not re.search(r"notebook-to-prod|mlflow|papermill|jupyter|ipython", lock)


def test_nothing_in_a_bundle_tells_where_or_when(
    bundles: dict[str, Bundle], versions: list[Path], zoo: Project, custom: Project
) -> None:
    places = [str(zoo.folder), str(custom.folder), str(Path.home()), "ipykernel"]
    telling = re.compile("|".join([*map(re.escape, places), r"20\d\d-\d\d-\d\d"]).encode())
    files = [
        path
        for folder in (*versions, *(bundle.path for bundle in bundles.values()))
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert len(files) > 40
    assert [path for path in files if telling.search(path.read_bytes())] == []


FORMS = {
    "exported": """
        #| export
        import enum
        import functools
        from collections import namedtuple
        from dataclasses import dataclass

        import shapes.square
        from sklearn.base import BaseEstimator, TransformerMixin, clone

        Size = namedtuple("Size", ["width", "height"])


        class Colour(enum.Enum):
            RED = 1


        @dataclass
        class Options:
            class Depth:
                pass

            level: int = 1


        @functools.lru_cache
        def cached(number):
            return number


        if Size:

            class Carry(TransformerMixin, BaseEstimator):
                def __init__(self, *, options=()):
                    self.options = options

                def fit(self, X, y=None):
                    return self

                def transform(self, X):
                    return X * cached(1) * shapes.square.area(1)
    """,
    "fit": """
        import numpy as np
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline

        import notebook_to_prod as n2p

        X, y = np.eye(4), np.arange(4.0)
        forms = (Size(1, 2), Colour.RED, Options(3), Options.Depth(), Options.Depth, cached)
        pipeline = make_pipeline(Carry(options=forms), LinearRegression()).fit(X, y)
        n2p.start(seed=1).export(pipeline, X, y, X, y)
    """,
}


def test_whatever_an_exported_cell_defines_travels(project: Project, tmp_path: Path) -> None:
    modules = {"__init__": "", "square": "from .side import side\n\n\ndef area(x):\n    return side(x) ** 2\n"}
    (project.folder / "shapes").mkdir()
    for name, source in (modules | {"side": "def side(x):\n    return x\n"}).items():
        (project.folder / "shapes" / f"{name}.py").write_text(source)
    project.notebook("forms.ipynb", FORMS)
    done = project.run("forms.ipynb")
    assert done.code == 0, done.error
    bundle = Path(done.json["bundle_path"])
    assert {path.name for path in (bundle / "code/shapes").iterdir()} == {"__init__.py", "square.py", "side.py"}
    assert replay_elsewhere(project, tmp_path, bundle)["differences"] == [0.0]


LOCAL = {
    "head": """
        #| export
        import contextlib
        import typing
        from typing import TYPE_CHECKING

        import units.convert
        from nearby import BESIDE
        from tools.steps import clean

        try:
            import absent_accelerator
        except ImportError:
            absent_accelerator = None
        with contextlib.suppress(ImportError):
            from absent_package import nothing
        if TYPE_CHECKING:
            import absent_types
        if typing.TYPE_CHECKING:
            import absent_stubs


        def prepare(X):
            return clean(X) * units.convert.factor() * BESIDE
    """,
    "fit": """
        import numpy as np
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer

        import notebook_to_prod as n2p

        X, y = np.eye(4), np.arange(4.0)
        pipeline = make_pipeline(FunctionTransformer(prepare), LinearRegression()).fit(X, y)
        n2p.start(seed=1).export(pipeline, X, y, X, y)
    """,
}
LOCAL_FILES = {
    "units/__init__.py": "",
    "units/convert.py": """
from importlib.resources import files
from pathlib import Path
import pkgutil

def factor():
    first = float((Path(__file__).parent / "tables" / "factor.txt").read_text())
    second = float(files("units").joinpath("tables/shift.txt").read_text())
    years = [float(pkgutil.get_data("units", f"tables/of_{year}.txt")) for year in (2013, 2014)]
    return first + second + sum(years)
""",
    "units/tables/factor.txt": "2",
    "units/tables/shift.txt": "3",
    "units/tables/of_2013.txt": "1",
    "units/tables/of_2014.txt": "1",
    "units/tables/training.csv": "never,named",
    "units/tables/figure.ipynb": "{}",
    "nearby.py": "from pathlib import Path\nBESIDE = float(Path(__file__).with_name('beside.txt').read_text())\n",
    "beside.txt": "0.5",
    "unnamed.txt": "x",
    "tools/steps.py": "from . import names\nfrom .deep.er import one\n\n\ndef clean(X):\n    return X * one * len(names.WORD)\n",
    "tools/deep/er.py": "one = 1\n",
    "tools/unused.py": "import absent_everywhere\n",
    "tools/data.csv": "training,data",
}
CARRIED = {
    "nearby.py",
    "beside.txt",
    "tools/steps.py",
    "tools/names.py",
    "tools/deep/er.py",
    *(name for name in LOCAL_FILES if name.startswith("units/") and not name.endswith((".csv", ".ipynb"))),
}


def test_local_packages_travel_with_the_data_files_that_they_name(project: Project, tmp_path: Path) -> None:
    for name, content in LOCAL_FILES.items():
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).write_text(content)
    word = "# -*- coding: latin-1 -*-\nWORD = 'é'\n".encode("latin-1")  # one letter, two bytes in UTF-8
    (project.folder / "tools/names.py").write_bytes(word)
    project.notebook("train.ipynb", LOCAL)
    done = project.run("train.ipynb", "--allow", "N2P401")
    assert done.code == 0, done.error
    bundle = Path(done.json["bundle_path"])
    code = {path.relative_to(bundle / "code").as_posix() for path in (bundle / "code").rglob("*") if path.is_file()}
    assert {name for name in code if not name.startswith("notebook_code")} == CARRIED
    assert (bundle / "code/tools/names.py").read_bytes() == word
    assert {*project.record(done.json["run_id"])["code"]} == CARRIED
    project.folder.rename(tmp_path / "moved")
    elsewhere = make_project(tmp_path / "elsewhere")
    moved = tmp_path / "moved" / bundle.relative_to(project.folder)
    assert replay_elsewhere(elsewhere, elsewhere.folder, moved)["differences"] == [0.0]


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        ("import a.b, c as d", "", {"a.b", "c"}),
        ("from a import b, c", "", {"a", "a.b", "a.c"}),
        ("from a import *", "", {"a"}),
        ("from . import b\nfrom ..c import d", "top.sub", {"top.sub", "top.sub.b", "top.c", "top.c.d"}),
        ("from ... import beyond", "top", set()),
        ("def later():\n    import a", "", {"a"}),
        ("try:\n    import absent_one\nexcept ImportError:\n    import absent_two as absent_one", "", set()),
        ("try:\n    import absent_one\nexcept (ValueError, ModuleNotFoundError):\n    pass", "", set()),
        ("try:\n    import absent_one\nexcept ValueError:\n    pass", "", {"absent_one"}),
        ("try:\n    import absent_one\nexcept ImportError:\n    pass\nimport absent_one", "", {"absent_one"}),
        ("try:\n    import json\nexcept ImportError:\n    json = None", "", {"json"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", "", {"b"}),
        ("%matplotlib inline\nimport a", "", {"a"}),
        ("this is not Python", "", set()),
        ("# coding: latin-1\nimport a  # é".encode("latin-1"), "", {"a"}),
    ],
)
def test_names_that_a_source_imports(source: str | bytes, package: str, names: set[str]) -> None:
    assert imported_names(source, package=package) == names


def test_what_is_installed_is_not_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"user": tmp_path / "user", "other": tmp_path / ".env/lib/python3.11/site-packages", "own": tmp_path}
    for name, folder in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"module_{name}.py").touch()
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(places["user"]))
    assert [*local_files([f"module_{name}" for name in places], [tmp_path])] == ["module_own.py"]


def test_folders_of_local_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notebooks", "src", "lib"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    cells = [
        "import sys\nfrom pathlib import Path",
        "sys.path.insert(0, str(Path('..') / 'src'))\nsys.path.append('gone')",
    ]
    found = local_folders(tmp_path / "notebooks", tmp_path, cells)
    assert found == [tmp_path / "notebooks", tmp_path / "src", tmp_path, tmp_path / "lib"]


def test_distributions_are_found_as_the_standard_library_finds_them() -> None:
    known = packages_distributions()
    for module in ("sklearn", "yaml", "numpy", "pandas", "dateutil", "google", "_pytest"):
        assert distributions_of([module]) == sorted(set(known[module]))
    with pytest.raises(ExportError, match="'absent_one'"):
        distributions_of(["numpy", "absent_one"])


# What a notebook cannot export

HEAD = """
    import numpy as np
    import pandas as pd
    from sklearn.base import BaseEstimator, TransformerMixin, clone
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    import notebook_to_prod as n2p

    run = n2p.start(seed=1)
    X, y = pd.DataFrame({"a": np.linspace(0, 1, 20)}), np.linspace(0, 2, 20)
"""
EXPORT = "run.export(make_pipeline(step, LinearRegression()).fit(X, y), X, y, X, y)"
NOISE = """
    class Noise(TransformerMixin, BaseEstimator):
        def fit(self, X, y=None):
            return self

        def transform(self, X):
            return X
"""
REFUSED_CELLS = {
    "class-that-is-not-exported": (
        {"noise": NOISE, "fit": "step = Noise()", "save": EXPORT},
        ["'Noise'", "cell 'noise'", "#| export"],
    ),
    "lambda": (
        {
            "shift": "step = FunctionTransformer(lambda X: X + 1)",
            "unrelated": "order = sorted([3, 1], key=lambda number: -number)",
            "save": EXPORT,
        },
        ["lambda", "cell 'shift'", "def"],
    ),
    "name-of-a-cell-that-is-not-exported": (
        {
            "limit": "LIMIT = 0.5",
            "clip": "#| export\ndef clip(X):\n    return X.clip(upper=LIMIT)",
            "step": "step = FunctionTransformer(clip)",
            "save": EXPORT,
        },
        ["LIMIT", "#| export"],
    ),
    "magic-in-an-exported-cell": (
        {
            "plots": "#| export\n%matplotlib inline\n\n\ndef keep(X):\n    return X",
            "step": "step = FunctionTransformer(keep)",
            "save": EXPORT,
        },
        ["not plain Python", "cell 'plots'", "magics"],
    ),
    "name-that-only-a-notebook-has": (
        {
            "show": "#| export\ndef show(X):\n    display(len(X))\n    return X",
            "step": "step = FunctionTransformer(show)",
            "save": EXPORT,
        },
        ["display", "#| export"],
    ),
    "helper-edited-while-the-notebook-trained": (
        {
            "edit": """
                from pathlib import Path

                Path("edited.py").write_text("def scale(X):\\n    return X * 2\\n")
                from edited import scale

                step = FunctionTransformer(scale)
                Path("edited.py").write_text("def scale(X):\\n    return X * 3\\n")
            """,
            "save": EXPORT,
        },
        ["does not predict what it recorded", "golden.json"],
    ),
    "module-imported-by-a-computed-name": (
        {
            "side": "from pathlib import Path\n\nPath('sideways.py').write_text('SHIFT = 1')",
            "shift": "#| export\nimport importlib\n\n\ndef shift(X):\n    return X + importlib.import_module('side' + 'ways').SHIFT",
            "step": "step = FunctionTransformer(shift)",
            "save": EXPORT,
        },
        ["ModuleNotFoundError", "sideways", "#| export"],
    ),
    "file-of-the-project": (
        {
            "write": "from pathlib import Path\n\nPath('limit.txt').write_text('0.5')",
            "clip": "#| export\ndef clip(X):\n    return X.clip(upper=float(open('limit.txt').read()))",
            "step": "step = FunctionTransformer(clip)",
            "save": EXPORT,
        },
        ["FileNotFoundError", "limit.txt", "__file__"],
    ),
    "attribute-that-an-import-of-the-notebook-made": (
        {
            "xml": "#| export\nimport xml\n\n\ndef shift(X):\n    return X + len(xml.sax.handler.version)",
            "other": "import xml.sax\n\nstep = FunctionTransformer(shift)",
            "save": EXPORT,
        },
        ["AttributeError", "sax", "#| export"],
    ),
    "process-that-ends": (
        {
            "end": "#| export\nimport os\nimport sys\n\n\ndef end(X):\n    return X if 'IPython' in sys.modules else os._exit(7)",
            "step": "step = FunctionTransformer(end)",
            "save": EXPORT,
        },
        ["ends the process", "exit code 7"],
    ),
    "predictions-that-are-drawn": (
        {
            "dice": "#| export\nimport numpy as np\n\n\ndef shake(X):\n    return X + np.random.default_rng().normal(size=X.shape)",
            "step": "step = FunctionTransformer(shake)",
            "save": EXPORT,
        },
        ["predict", "random"],
    ),
}


REFUSED_OFTEN = {
    "class-that-is-not-exported",
    "process-that-ends",
    "predictions-that-are-drawn",
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in REFUSED_OFTEN else pytest.mark.slow) for case in REFUSED_CELLS],
)
def test_export_is_refused_with_the_cell_to_mend(case: str, project: Project) -> None:
    cells, said = REFUSED_CELLS[case]
    project.notebook("train.ipynb", {"head": HEAD, **cells})
    done = project.run(
        "train.ipynb", *(part for code in ("N2P100", "N2P101", "N2P204", "N2P401") for part in ("--allow", code))
    )
    assert (done.code, done.error["type"], done.error["cell_id"]) == (2, "CellError", "save")
    text = " ".join((done.error["what"], done.error["where"], done.error["remedy"]))
    assert [part for part in said if part not in text] == []
    assert [*project.home.glob("bundles/*")] == []


def test_a_secret_in_the_pipeline_is_refused(project: Project) -> None:
    cells = {
        "parameters": 'token = ""',
        "head": HEAD,
        "step": "step = FunctionTransformer(np.log1p)\nstep.token = token",
        "save": EXPORT,
    }
    project.notebook("train.ipynb", cells)
    done = project.run("train.ipynb", "-p", "token", "@env:API_TOKEN", API_TOKEN="correct-horse-battery")
    assert (done.code, done.error["cell_id"]) == (2, "save")
    assert "secret of API_TOKEN" in done.error["what"]
    written = [path for path in project.folder.rglob("*") if path.is_file()]
    assert [path for path in written if b"correct-horse-battery" in path.read_bytes()] == []
    assert "correct-horse-battery" not in done.stdout + done.stderr


# What run.export checks, in this process

NUMBERS = pd.DataFrame({"a": np.linspace(0, 1, 30), "b": np.arange(30)})
TARGET = NUMBERS["a"] * 2
FITTED = make_pipeline(StandardScaler(), LinearRegression()).fit(NUMBERS, TARGET)
CARRIERS = pd.DataFrame({"carrier": ["UA", "B6", "DL"] * 10})
ON_CARRIERS = make_pipeline(OneHotEncoder(), LinearRegression()).fit(CARRIERS, TARGET)
ON_CODES = LinearRegression().fit(OneHotEncoder(sparse_output=False).fit_transform(CARRIERS), TARGET)
WORDS = ["late flight", "early flight", "flight"] * 10
ON_WORDS = LogisticRegression().fit(TfidfVectorizer().fit_transform(WORDS), [word[:1] for word in WORDS])
COUNTS = pd.DataFrame({"n": np.arange(30)})
ON_COUNTS = LinearRegression().fit(COUNTS, TARGET)
POWER = TransformedTargetRegressor(LinearRegression(), func=np.log1p, inverse_func=np.expm1).fit(NUMBERS, TARGET)
WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "not-fitted": (
        (make_pipeline(StandardScaler(), LinearRegression()), NUMBERS, TARGET, NUMBERS, TARGET),
        "not fitted",
    ),
    "no-predict": ((StandardScaler().fit(NUMBERS), NUMBERS, TARGET, NUMBERS, TARGET), "no predict"),
    "lengths-of-train": ((FITTED, NUMBERS, TARGET[:5], NUMBERS, TARGET), "X_train has 30 rows and y_train has 5"),
    "lengths-of-test": ((FITTED, NUMBERS, TARGET, NUMBERS[:7], TARGET), "X_test has 7 rows and y_test has 30"),
    "no-rows": ((FITTED, NUMBERS, TARGET, NUMBERS[:0], TARGET[:0]), "X_test has no rows"),
    "sparse": ((ON_WORDS, sparse.csr_matrix(np.eye(30)), TARGET, sparse.csr_matrix(np.eye(30)), TARGET), "sparse"),
    "encoding-outside": ((ON_CODES, CARRIERS, TARGET, CARRIERS, TARGET), "cannot predict a row of X_test"),
    "vectorizing-outside": ((ON_WORDS, WORDS, TARGET, WORDS, TARGET), "cannot predict a row of X_test"),
    "test-lacks-a-column": ((FITTED, NUMBERS, TARGET, NUMBERS[["a"]], TARGET), "'b'"),
    "test-is-an-array": ((FITTED, NUMBERS, TARGET, NUMBERS.to_numpy(), TARGET), "X_test"),
    "test-of-another-type": ((ON_COUNTS, COUNTS, TARGET, COUNTS + 0.5, TARGET), "'n'"),
    "test-misses-a-whole-number": ((ON_COUNTS, COUNTS, TARGET, COUNTS.where(COUNTS["n"] > 3), TARGET), "'n'"),
    "infinite-rows": ((FITTED, NUMBERS, TARGET, NUMBERS.assign(a=np.inf), TARGET), "infinite"),
    "infinite-predictions": (
        (POWER, NUMBERS, TARGET, NUMBERS.assign(a=NUMBERS["a"] * 1e6), TARGET),
        "no finite number",
    ),
    "targets-missing": ((FITTED, NUMBERS, None, NUMBERS, TARGET), "y_train"),
}
WRONG_SCHEMA: dict[str, tuple[Any, Any, Schema, str]] = {
    "no-schema": (FITTED, NUMBERS, {"a": "float64"}, "no schema"),  # type: ignore[dict-item]
    "of-another-table": (FITTED, NUMBERS, infer_schema(NUMBERS[["b", "a"]]), "another order"),
    "a-missing-value": (FITTED, NUMBERS, infer_schema(NUMBERS).edit("a", nullable=True), "allows a missing value"),
    "a-missing-whole-number": (FITTED, NUMBERS, infer_schema(NUMBERS).edit("b", nullable=True), "missing value"),
    "no-row-within-the-bounds": (FITTED, NUMBERS, infer_schema(NUMBERS).edit("b", minimum=99), "no row of X_test fits"),
    "an-unknown-category": (
        ON_CARRIERS,
        CARRIERS,
        infer_schema(CARRIERS).edit("carrier", categories=("UA", "B6", "DL", "YV", "AA")),
        "allows 'AA', and the pipeline refuses",
    ),
    "unseen-texts": (
        ON_CARRIERS,
        CARRIERS,
        infer_schema(CARRIERS).edit("carrier", allow_unseen=True),
        "allows 'a text",
    ),
}


@pytest.mark.parametrize("case", WRONG_SCHEMA)
def test_export_refuses_a_schema_that_the_model_does_not_keep(case: str, project: Project) -> None:
    pipeline, table, schema, said = WRONG_SCHEMA[case]
    with pytest.raises(ExportError, match=said) as caught:
        start().export(pipeline, table, TARGET, table, TARGET, schema=schema)
    assert caught.value.where
    assert caught.value.remedy
    assert [*project.home.glob("bundles/*")] == []


def test_a_bundle_has_the_schema_that_the_notebook_has_edited(project: Project) -> None:
    table = NUMBERS.assign(carrier=CARRIERS["carrier"])
    encode = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["carrier"]), remainder="passthrough")
    pipeline = make_pipeline(encode, LinearRegression()).fit(table, TARGET)
    plain = start().export(pipeline, table, TARGET, table, TARGET)
    assert plain.schema.columns[2].allow_unseen
    edited = infer_schema(table).edit("b", minimum=0, maximum=20)
    edited = edited.edit("carrier", categories=("UA", "B6", "DL", "AA"), allow_unseen=False)
    bundle = start().export(pipeline, table, TARGET, table, TARGET, schema=edited)
    assert bundle.schema == edited
    assert [row["b"] for row in bundle.golden["rows"]] == [*range(21)]  # the others are no requests
    lines = dict(compare_bundles(plain, bundle).lines())
    assert lines["column"].endswith("4 categories and no others")
    assert plain.schema == infer_schema(table), "what is given is what would be inferred"


@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning:sklearn")  # what the cases are wrong about
@pytest.mark.filterwarnings("ignore:overflow encountered in expm1:RuntimeWarning:sklearn")
@pytest.mark.parametrize("case", WRONG)
def test_export_refuses(case: str, project: Project) -> None:
    given, said = WRONG[case]
    with pytest.raises(ExportError, match=said) as caught:
        start().export(*given)
    assert caught.value.where
    assert caught.value.remedy
    assert [*project.home.glob("bundles/*")] == []


@pytest.mark.parametrize(
    ("said", "classes", "row"),
    [
        (Prediction([1.0, 2]), None, None),
        (Prediction([1.0, None]), None, 1),
        (Prediction([1.0, math.inf]), None, 1),
        (Prediction([[1.0, 2.0], [-math.inf, 1.0]]), None, 1),
        (Prediction(["late", True]), None, None),
        (Prediction(["late", None], [[1.0, 0.0], [0.5, 0.5]]), ["late", None], None),  # a class may be missing
        (Prediction(["late", "late"], [[1.0, 0.0], [None, None]]), ["late", "early"], 1),
        (Prediction([]), None, None),
    ],
)
def test_a_row_without_a_finite_number_is_found(said: Prediction, classes: Any, row: int | None) -> None:
    assert unusable_row(said, classes) == row


def test_rows_with_infinite_numbers_are_not_golden(project: Project) -> None:
    bundle = start().export(FITTED, NUMBERS, TARGET, NUMBERS.replace({"a": 0.0}, np.inf), TARGET)
    assert [row["b"] for row in bundle.golden["rows"]] == [*range(1, 30)]


def test_every_golden_row_is_a_request_that_the_service_accepts(project: Project) -> None:
    seats = pd.DataFrame({"seat": pd.Categorical(["window", "aisle"] * 15), "delay": NUMBERS["a"]})
    test = pd.DataFrame({"seat": pd.Categorical(["window", "crew"]), "delay": [0.5, np.nan]})
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["seat"]), remainder="passthrough", sparse_threshold=0
    )
    pipeline = make_pipeline(encode, HistGradientBoostingRegressor(max_iter=3)).fit(seats, TARGET)
    try:
        bundle = start().export(pipeline, seats, TARGET, test, TARGET[:2])
    except ExportError as refusal:
        assert "X_test" in refusal.what
    else:
        predictor = load_predictor(bundle.path)
        assert predictor.predict(bundle.golden["rows"]).predictions == bundle.golden["predictions"]


# The same spec, the same digest


def test_a_metric_is_no_part_of_the_bundle(project: Project) -> None:
    digests = set()
    for seconds in (1.25, 2.5):
        run = start()
        run.metric("seconds", seconds)
        digests.add(run.export(FITTED, NUMBERS, TARGET, NUMBERS, TARGET).digest)
    assert len(digests) == 1


class Recall(BaseEstimator, TransformerMixin):
    """An estimator of the user's whose `memory` is no cache."""

    def __init__(self, memory: Any = None):
        self.memory = memory


def test_the_folder_of_a_cache_is_not_pickled(tmp_path: Path) -> None:
    pickled = set()
    for memory in (str(tmp_path / "text"), Memory(tmp_path / "object", verbose=0)):
        cached = make_pipeline(make_pipeline(StandardScaler(), memory=memory), LinearRegression(), memory=memory)
        cached.fit(NUMBERS, TARGET)
        pickled.add(pickle_pipeline(cached))
        assert cached.memory is memory and cached[0].memory is not None
    (data,) = pickled
    assert str(tmp_path).encode() not in data
    assert pickle.loads(data).memory is None and pickle.loads(data)[0].memory is None


def test_only_a_cache_is_left_out(tmp_path: Path) -> None:
    kept = pickle.loads(pickle_pipeline([Recall("a long time"), Recall(7), Recall(Memory(tmp_path, verbose=0))]))
    assert [each.memory for each in kept[:2]] == ["a long time", 7]
    assert kept[2].memory.location is None
    assert kept[2].memory.cache(len)([1]) == 1


# A bundle that was changed


class Marks:
    """Unpickling one of these makes a folder, which shows that it was unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


FILES = [
    "code/helper.py",
    "golden.json",
    "metadata.json",
    "model.pkl",
    "profile.json",
    "requirements.lock",
    "sbom.json",
    "schema.json",
]


def make_writable(folder: Path) -> None:
    """Let the tests change a bundle, whoever runs them."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def harm(path: Path, how: str) -> None:
    """Damage a bundle."""
    make_writable(path)
    if how == "flipped":
        data = bytearray((path / "model.pkl").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "model.pkl").write_bytes(data)
    elif how == "added":
        (path / "added.txt").touch()
    else:
        (path / how).unlink()


HARMS = ["flipped", "added", "golden.json", "manifest.json"]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "unpickled"


@pytest.fixture
def marked(tmp_path: Path, marker: Path, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that leaves a mark when its model is unpickled, by a function that is trusted here."""
    monkeypatch.setenv("N2P_TRUSTED", os.mkdir.__module__)
    contents = {name: (bundles["regression"].path / name).read_bytes() for name in FILES[1:]}
    uses = {"uses": [f"{os.mkdir.__module__}.mkdir"]}
    metadata = json.dumps(json.loads(contents["metadata.json"]) | uses).encode()
    extra = {"model.pkl": pickle.dumps(Marks(marker)), "code/helper.py": b"HOUR = 60\n", "metadata.json": metadata}
    bundle = write_bundle(tmp_path / "bundles", contents | extra)
    make_writable(bundle.path)
    return bundle


def assert_refused(path: Path, digest: str | None, marker: Path, kind: type[Exception] = BundleError) -> None:
    with pytest.raises(kind) as caught:
        load_predictor(path, digest)
    assert str(path) in str(caught.value)
    assert not marker.exists()


def test_an_unchanged_bundle_is_unpickled(marked: Bundle, marker: Path) -> None:
    load_pipeline(open_bundle(marked.path, marked.digest))
    assert marker.exists()


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_flipped_byte_is_refused(name: str, marked: Bundle, marker: Path) -> None:
    path = marked.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_refused(marked.path, marked.digest, marker)


def test_a_whole_bundle_in_the_place_of_another_is_refused(
    marked: Bundle, marker: Path, bundles: dict[str, Bundle]
) -> None:
    assert_refused(marked.path, bundles["regression"].digest, marker)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, marked: Bundle, marker: Path) -> None:
    (marked.path / name).unlink()
    assert_refused(marked.path, marked.digest, marker)


def test_a_missing_manifest_is_refused(marked: Bundle, marker: Path) -> None:
    (marked.path / "manifest.json").unlink()
    assert_refused(marked.path, marked.digest, marker, NotFoundError)


@pytest.mark.parametrize(
    "name", ["extra.txt", "code/evil.py", "code/__pycache__/helper.cpython-311.pyc", ".hidden", "deep/er/x"]
)
def test_an_added_file_is_refused(name: str, marked: Bundle, marker: Path) -> None:
    (marked.path / name).parent.mkdir(parents=True, exist_ok=True)
    (marked.path / name).write_text("x")
    assert_refused(marked.path, marked.digest, marker)


@pytest.mark.parametrize("name", ["code/helper.py", "model.pkl", "code", "extra"])
def test_a_symbolic_link_is_refused_even_to_the_same_content(
    name: str, marked: Bundle, marker: Path, tmp_path: Path
) -> None:
    inside, outside = marked.path / name, tmp_path / "outside"
    outside.mkdir()
    target = outside / "target"
    shutil.move(inside, target) if inside.exists() else target.mkdir()
    inside.symlink_to(target)
    assert_refused(marked.path, marked.digest, marker)


MANIFESTS = {
    "empty": "",
    "cut": '{"files": {"model.pkl": {"sha',
    "not-utf-8": "\udcff",
    "list": "[]",
    "null": "null",
    "no-files": '{"format": 1}',
    "files-as-list": '{"format": 1, "files": []}',
    "files-as-names": '{"format": 1, "files": ["model.pkl"]}',
    "unknown-format": '{"format": 99, "files": {}}',
    "format-as-text": '{"format": "1", "files": {}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_none_is_refused(case: str, marked: Bundle, marker: Path) -> None:
    (marked.path / "manifest.json").write_text(MANIFESTS[case], encoding="utf-8", errors="surrogateescape")
    assert_refused(marked.path, None, marker)


@pytest.mark.parametrize("entry", [{}, {"size": 1}, {"sha256": None}, "sha256", None, 1])
def test_a_manifest_with_a_strange_entry_is_refused(entry: Any, marked: Bundle, marker: Path) -> None:
    path = marked.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"files": dict.fromkeys(manifest["files"], entry)}))
    assert_refused(marked.path, None, marker)


@pytest.mark.parametrize("name", ["model.pkl", "schema.json", "golden.json", "metadata.json"])
def test_a_bundle_without_a_part_is_refused(name: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    whole = bundles["regression"]
    contents = {file: (whole.path / file).read_bytes() for file in whole.files if file != name}
    with pytest.raises(BundleError, match=name):
        load_predictor(write_bundle(tmp_path, contents).path)


@pytest.mark.parametrize(("shift", "accepted"), [(1e-9, True), (1e-3, False), (None, False)])
def test_only_a_bundle_that_predicts_what_it_recorded_is_ready(
    shift: float | None, accepted: bool, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    whole = bundles["regression"]
    recorded = whole.golden["predictions"]
    changed = recorded[1:] if shift is None else [recorded[0] + shift, *recorded[1:]]
    contents = {name: (whole.path / name).read_bytes() for name in whole.files}
    golden = json.dumps(whole.golden | {"predictions": changed}).encode()
    bundle = write_bundle(tmp_path, contents | {"golden.json": golden})
    if accepted:
        assert load_predictor(bundle.path).bundle.digest == bundle.digest
    else:
        with pytest.raises(BundleError, match="does not predict what it recorded"):
            load_predictor(bundle.path)


# A pipeline may come later than its plan


@pytest.fixture
def whole(project: Project) -> Bundle:
    """A bundle of a model that a plan answers for."""
    return start().export(FITTED, NUMBERS, TARGET, NUMBERS, TARGET)


def test_a_plan_answers_before_the_pipeline_is_loaded(whole: Bundle) -> None:
    predictor = load_predictor(whole.path, late=True)
    said = predictor.predict(whole.golden["rows"])
    assert said.predictions == pytest.approx(whole.golden["predictions"]) and not predictor.source.is_loaded
    assert predictor.pipeline is predictor.scorer.pipeline and predictor.source.is_loaded


def test_what_answers_without_a_plan_is_loaded_at_once(whole: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_PLAN", "off")
    assert load_predictor(whole.path, late=True).source.is_loaded


@pytest.mark.parametrize(
    ("uses", "error", "what"),
    [("os.system", BundleError, "os.system"), ("nowhere.Model", DependencyError, "'nowhere'")],
)
def test_what_a_late_pipeline_says_openly_is_refused_at_once(
    uses: str, error: type[Exception], what: str, whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_TRUSTED", "nowhere")
    contents = {name: (whole.path / name).read_bytes() for name in whole.files}
    metadata = json.dumps(whole.metadata | {"uses": [uses]}).encode()
    model = b"c" + uses.replace(".", "\n").encode() + b"\n."
    changed = write_bundle(tmp_path / "changed", contents | {"metadata.json": metadata, "model.pkl": model})
    with pytest.raises(error, match=what):
        load_predictor(changed.path, late=True)


def test_a_service_whose_late_pipeline_is_broken_answers_and_is_not_ready(
    whole: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = {name: (whole.path / name).read_bytes() for name in whole.files}
    changed = write_bundle(tmp_path / "changed", contents | {"model.pkl": pickle.dumps([1, 2])})
    predictor = load_predictor(changed.path, late=True)
    said: list[str] = []
    with TestClient(create_app(predictor)) as client:
        deadline = time.monotonic() + 20
        while said[-1:] != ["broken"] and time.monotonic() < deadline:
            answer = client.get("/ready")
            assert answer.status_code == 503
            said.append(answer.json()["status"])
        assert set(said) <= {"loading", "broken"} and said[-1] == "broken"
        assert client.get("/v2/health/ready").status_code == 503
        asked = client.post("/predict", json=whole.golden["rows"][0]).json()
        assert asked["predictions"] == pytest.approx(whole.golden["predictions"][:1])
        refused = Model(predictor)
        predictor.scorer.plan = None  # as if it refused the row
        rows = refused.decode(json.dumps(whole.golden["rows"][0]).encode())
        assert [refused.score_alone(rows).status for _ in range(3)] == [503] * 3
        assert len(traceback.extract_tb(predictor.source.error.__traceback__)) < 12
    assert "cannot be loaded, the service is not ready" in caplog.text


# A damaged bundle is replaced


@pytest.mark.parametrize("how", HARMS)
def test_what_is_damaged_is_written_again(how: str, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    contents = {name: (bundles["regression"].path / name).read_bytes() for name in bundles["regression"].files}
    first = write_bundle(tmp_path, contents)
    harm(first.path, how)
    again = write_bundle(tmp_path, contents)
    assert (again.path, open_bundle(first.path, first.digest).files) == (first.path, first.files)
    assert [*tmp_path.iterdir()] == [first.path]


def test_a_run_whose_bundle_is_damaged_is_no_answer(project: Project) -> None:
    project.notebook("train.ipynb", {"head": HEAD, "step": "step = FunctionTransformer(np.log1p)", "save": EXPORT})
    first = project.run("train.ipynb").json
    assert project.run("train.ipynb").json["reused"]
    harm(Path(first["bundle_path"]), "flipped")
    again = project.run("train.ipynb").json
    assert not again["reused"] and again["bundle"] == first["bundle"]
    open_bundle(first["bundle_path"], first["bundle"])


def test_an_export_that_takes_long_says_what_it_does_to_who_waits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with session.told_late(patience=0.0) as tell:
        tell("unheard")
    assert capsys.readouterr().err == "", "nobody watches"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = ""
    with session.told_late(patience=0.0) as tell:
        tell("collecting")
        for _ in range(6000):
            said += capsys.readouterr().err
            if said:
                break
            time.sleep(0.01)
        tell("proving the plan on 1,000 test rows")
        said += capsys.readouterr().err
    assert said == "export: collecting …\nexport: proving the plan on 1,000 test rows …\n"
    with session.told_late(patience=600.0) as tell:
        tell("quick")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("N2P_NOTEBOOK", "train.ipynb")
    with session.told_late(patience=0.0) as tell:
        tell("kept")
    assert capsys.readouterr().err == "", "a run keeps what it prints"


def test_a_pipeline_that_knows_no_names_is_told() -> None:
    frame = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 3.0]})
    named, nameless = Ridge().fit(frame, frame["a"]), Ridge().fit(frame.to_numpy(), frame["a"])
    assert without_names(named, frame) is None
    assert "fit it on the DataFrame" in (without_names(nameless, frame) or "")
    assert "x0 to x1, by position" in (without_names(nameless, frame.to_numpy()) or "")
    assert without_names(nameless, frame.set_axis([0, 1], axis=1)) is None, "its columns are numbered"
    assert without_names(nameless, ["a text", "another"]) is None


def as_normal_user(act: Callable[[Path], None]) -> None:
    """Call `act` with an empty folder, in a process that is not root's."""
    folder = Path(tempfile.mkdtemp())
    process = os.fork()
    if process == 0:
        try:
            if os.geteuid() == 0:
                os.chown(folder, 65534, 65534)
                os.setgid(65534)
                os.setuid(65534)
            act(folder)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    shutil.rmtree(folder)
    assert code == 0


def test_a_bundle_is_read_only_and_can_be_replaced_copied_and_removed(bundles: dict[str, Bundle]) -> None:
    contents = {name: (bundles["regression"].path / name).read_bytes() for name in bundles["regression"].files}
    contents["code/deep/er.py"] = b"ONE = 1"

    def act(folder: Path) -> None:
        bundle = write_bundle(folder / "bundles", contents)
        modes = {path.stat().st_mode & 0o777 for path in bundle.path.rglob("*") if path.is_file()}
        assert modes == {0o444}
        for forbidden in (bundle.path / "model.pkl", bundle.path / "added.txt", bundle.path / "code/deep/added.py"):
            with pytest.raises(PermissionError):
                forbidden.write_bytes(b"x")
        assert write_bundle(folder / "bundles", contents).digest == bundle.digest
        harm(bundle.path, "flipped")
        assert load_pipeline(write_bundle(folder / "bundles", contents)).predict(np.zeros((1, 3))).shape == (1,)
        copy_bundle(bundle, folder / "copy")
        assert open_bundle(folder / "copy", bundle.digest)
        (folder / "copy/code/deep/er.py").write_bytes(b"x")
        shutil.rmtree(folder / "copy")
        remove_bundle(bundle.path)
        assert [*(folder / "bundles").iterdir()] == []

    as_normal_user(act)


def test_the_command_shows_the_bundle_of_a_run(zoo: Project, bundles: dict[str, Bundle]) -> None:
    shown = zoo.n2p("bundle", "show", "latest", "--json").json
    assert shown["bundle"] == bundles[MODELS[-1]].digest
    assert shown["metadata"] == bundles[MODELS[-1]].metadata
    assert zoo.n2p("bundle", "show", zoo.run_folders[0].name).stdout.startswith(f"bundle     {shown['bundle']}")


def test_the_command_refuses_a_changed_bundle(marked: Bundle, marker: Path, project: Project) -> None:
    assert project.n2p("bundle", "show", marked.path, "--json").json["bundle"] == marked.digest
    (marked.path / "golden.json").write_text("{}")
    done = project.n2p("bundle", "show", marked.path, "--json")
    assert (done.code, done.error["type"]) == (2, "BundleError")
    assert done.error["where"].endswith("golden.json")
    assert not marker.exists()


def test_a_bundle_with_a_correct_manifest_that_runs_programs_is_refused_by_name(
    tmp_path: Path, marker: Path, bundles: dict[str, Bundle]
) -> None:
    contents = {name: (bundles["regression"].path / name).read_bytes() for name in FILES[1:]}
    uses = {"uses": ["posix.system", "posix.mkdir"]}
    metadata = json.dumps(json.loads(contents["metadata.json"]) | uses).encode()
    bundle = write_bundle(
        tmp_path / "bundles", contents | {"model.pkl": pickle.dumps(Marks(marker)), "metadata.json": metadata}
    )
    with pytest.raises(BundleError, match=r"posix\.mkdir.*is refused"):
        load_predictor(bundle.path, bundle.digest)
    assert not marker.exists()


def test_only_bundles_that_a_trusted_key_has_signed_are_served(
    tmp_path: Path, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    ours, theirs = keys.new_key("ours"), keys.new_key("theirs")
    original = bundles["regression"]
    bundle = write_bundle(tmp_path / "bundles", {name: (original.path / name).read_bytes() for name in original.files})
    assert load_predictor(bundle.path, bundle.digest).bundle.digest == bundle.digest
    monkeypatch.setenv("N2P_TRUSTED_KEYS", ours)
    with pytest.raises(BundleError, match="nobody has signed"):
        load_predictor(bundle.path, bundle.digest)
    keys.add_signature(bundle.path, keys.sign(bundle.digest, "theirs"))
    with pytest.raises(BundleError, match="nobody who is trusted"):
        load_predictor(bundle.path, bundle.digest)
    forged = keys.Signature(ours, keys.sign(bundle.digest, "theirs").signature)
    keys.add_signature(bundle.path, forged)
    with pytest.raises(BundleError, match="nobody who is trusted"):
        load_predictor(bundle.path, bundle.digest)
    keys.add_signature(bundle.path, keys.sign(bundle.digest, "ours"))
    assert load_predictor(bundle.path, bundle.digest).bundle.digest == bundle.digest
    monkeypatch.setenv("N2P_TRUSTED_KEYS", theirs)
    assert load_predictor(bundle.path, bundle.digest).bundle.digest == bundle.digest


def test_a_bundle_that_is_being_signed_is_whole_for_all_who_look(
    tmp_path: Path, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    original = bundles["regression"]
    bundle = write_bundle(tmp_path / "bundles", {name: (original.path / name).read_bytes() for name in original.files})
    names = [f"key{number}" for number in range(8)]
    public = {keys.new_key(name) for name in names}

    def sign(name: str) -> None:
        for _ in range(25):
            keys.add_signature(bundle.path, keys.sign(bundle.digest, name))

    with ThreadPoolExecutor(len(names)) as executor:
        signing = [executor.submit(sign, name) for name in names]
        looked = 0
        while not all(each.done() for each in signing) or looked < 10:
            open_bundle(bundle.path, bundle.digest)
            looked += 1
        for each in signing:
            each.result()
    assert {each.key for each in keys.read_signatures(bundle.path)} == public, "none of them overwrites another's"
    assert not bundle.path.stat().st_mode & 0o222 and list(bundle.path.parent.iterdir()) == [bundle.path]


# What a bundle says of its model


EVALUATED = {
    "text": ("roc_auc", {"roc_auc", "average_precision", "accuracy", "log_loss", "brier_score_loss"}),
    "list": ("roc_auc", {"roc_auc", "accuracy"}),
    "regression": ("r2", {"r2", "mean_absolute_error", "root_mean_squared_error"}),
    "multi-class": ("accuracy", {"accuracy", "balanced_accuracy", "f1_macro", "log_loss"}),
    "svc": ("accuracy", {"accuracy", "balanced_accuracy", "f1_macro"}),
    "multi-output-regression": ("r2", {"r2", "mean_absolute_error", "root_mean_squared_error"}),
    "multi-output": (None, set()),
}


@pytest.mark.parametrize("name", EVALUATED)
def test_a_bundle_says_how_good_its_model_is(name: str, bundles: dict[str, Bundle]) -> None:
    primary, metrics = EVALUATED[name]
    found = bundles[name].evaluation
    assert found
    assert (found["primary"], found["rows"], found["of"]) == (primary, 20, 20)
    assert metrics <= (found["metrics"] or {}).keys()
    assert {part for part in ("metrics", "slices", "importances") if found[part] is None} == found["missing"].keys()
    for each in (found["metrics"] or {}).values():
        assert each["interval"] is None or each["interval"][0] <= each["number"] <= each["interval"][1]
    if "output" in name:
        assert "several targets" in found["missing"]["importances"]
    else:
        told = [each["feature"] for each in found["importances"]["features"]]
        assert sorted(told) == sorted(bundles[name].schema.names)
    if primary:
        assert f"| {primary} |" in bundles[name]._repr_markdown_()


class Median(BaseEstimator):
    """What predicts without being a classifier or a regressor."""

    def fit(self, X: Any, y: Any) -> Median:
        self.median_ = float(np.median(y))
        return self

    def predict(self, X: Any) -> np.ndarray:
        return np.full(len(X), self.median_)


class Refusing(LinearRegression):
    """A model that refuses more rows than are golden."""

    def predict(self, X: Any) -> np.ndarray:
        if len(X) > 32:
            raise ValueError(f"row of {id(X)}")  # another text every time
        return super().predict(X)


POSSIBLE: dict[str, tuple[Any, Any, Any, slice, str]] = {
    "one-row": (FITTED, NUMBERS, TARGET, slice(7, 8), "r2"),
    "one-class": (LogisticRegression(), NUMBERS, TARGET > 1, slice(20, 30), "roc_auc"),
    "a-column-of-targets": (LinearRegression(), NUMBERS, TARGET.to_frame(), slice(0, 30), "r2"),
    "text-series": (
        make_pipeline(TfidfVectorizer(), LogisticRegression()),
        pd.Series(WORDS),
        WORDS,
        slice(0, 30),
        "accuracy",
    ),
    "array": (LinearRegression(), NUMBERS.to_numpy(), TARGET, slice(0, 30), "r2"),
    "several-numbers": (LinearRegression(), NUMBERS, NUMBERS, slice(0, 30), "r2"),
    "neither": (Median(), NUMBERS, TARGET, slice(0, 30), "neither a classifier nor a regressor"),
    "refusing": (
        Refusing(),
        pd.concat([NUMBERS] * 2, ignore_index=True),
        pd.concat([TARGET] * 2, ignore_index=True),
        slice(0, 60),
        "the pipeline refuses rows of X_test: ValueError",
    ),
}


@pytest.mark.parametrize("case", POSSIBLE)
def test_whatever_can_be_exported_has_an_evaluation_or_a_reason(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_HOME", str(tmp_path))
    model, table, target, test, said = POSSIBLE[case]
    model = clone(model).fit(table, target)
    tables = Tables(table, target, table[test], target[test])
    code = PipelineCode(b"")
    first, second = (bundle_contents(model, tables, code, {})["evaluation.json"] for _ in range(2))
    assert first == second
    found = json.loads(first)
    assert found["primary"] == said or (found["missing"] and all(said in why for why in found["missing"].values()))
    assert summary_lines(found)


def test_a_bundle_from_before_evaluations_has_none(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    before = bundles["svc"]
    kept = {name: (before.path / name).read_bytes() for name in before.files if name != "evaluation.json"}
    older = write_bundle(tmp_path, kept)
    assert older.evaluation is None
    assert "accuracy" not in older._repr_markdown_()
    assert compare_bundles(older, before).evaluation["accuracy"][0] is None
    assert ("removed", "evaluation.json") in compare_bundles(before, older).lines()


def test_the_command_shows_how_good_a_model_is_and_where_it_comes_from(
    zoo: Project, bundles: dict[str, Bundle]
) -> None:
    bundle = bundles["multi-class"]
    shown = zoo.n2p("bundle", "show", bundle.digest[7:27]).stdout
    assert f"held out   accuracy {bundle.evaluation['metrics']['accuracy']['number']:.4g}" in shown  # type: ignore[index]
    assert "rests on   a " in shown
    told = zoo.n2p("bundle", "show", "latest", "--json").json
    assert told["evaluation"] == bundles[MODELS[-1]].evaluation
    assert told["lineage"]["run_id"] == zoo.run_folders[0].name
    assert told["lineage"]["notebook"] == "zoo.ipynb"


ASKED = {
    "parameters": 'table = "numbers.csv"\npassword = None\nlimits = (1, 2)',
    "train": """
        from sklearn.linear_model import LinearRegression

        import helper
        import notebook_to_prod as n2p

        run = n2p.start(seed=3)
        numbers = n2p.load(table)
        model = LinearRegression().fit(numbers[["a"]], numbers["b"])
        schema = n2p.infer_schema(numbers[["a"]]).edit("a", minimum=0, maximum=2)
        run.export(model, numbers[["a"]], numbers["b"], numbers[["a"]], numbers["b"], schema=schema)
    """,
}


def test_a_bundle_says_what_its_run_was_asked_and_the_store_where_it_was(project: Project) -> None:
    project.notebook("train.ipynb", ASKED)
    (project.folder / "helper.py").write_text("LIMIT = 3\n")
    NUMBERS.to_csv(project.folder / "numbers.csv", index=False)
    for line in ("init -q", "add .", "-c user.name=n -c user.email=n@n commit -q -m first"):
        subprocess.run(["git", *line.split()], cwd=project.folder, check=True)
    asked_git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project.folder, capture_output=True, text=True, check=True
    )
    commit = asked_git.stdout.strip()
    done = project.run("train.ipynb", "-p", "password", "@env:DB_PASSWORD", DB_PASSWORD="correct-horse-battery")
    assert done.code == 0, done
    shown = project.n2p("bundle", "show", done.json["bundle"][7:20], "--json").json
    asked = {"table": "numbers.csv", "password": "@env:DB_PASSWORD", "limits": [1, 2]}
    assert shown["metadata"]["parameters"] == asked
    assert [shown["schema"]["columns"][0][name] for name in ("minimum", "maximum", "bounded")] == [0.0, 2.0, True]
    assert shown["metadata"]["code"] == project.record(done.json["run_id"])["spec"]["code"]
    lineage = shown["lineage"]
    assert (lineage["commit"], lineage["run_id"], lineage["notebook"]) == (commit, done.json["run_id"], "train.ipynb")
    assert [each["source"] for each in lineage["datasets"]] == ["numbers.csv"]
    told = project.n2p("bundle", "show", "latest").stdout
    assert f"commit     {commit}" in told
    assert "data       numbers.csv sha256:" in told


def test_profile_and_bill_of_materials_travel_with_the_model(bundles: dict[str, Bundle]) -> None:
    for name, bundle in bundles.items():
        assert [each.name for each in bundle.profile.columns] == list(bundle.schema.names), name
        assert bundle.profile.predictions, name
        named = {(each["name"], each["version"]) for each in bundle.sbom["components"]}
        assert named == set(read_lock(bundle.lock).items())


@pytest.mark.parametrize("seed", range(int(os.environ.get("N2P_TEST_FLIPS", "40"))))
def test_any_flipped_byte_of_any_file_is_refused_before_unpickling(seed: int, marked: Bundle, marker: Path) -> None:
    random_numbers = random.Random(seed)
    path = random_numbers.choice(sorted(each for each in marked.path.rglob("*") if each.is_file()))
    data = bytearray(path.read_bytes())
    data[random_numbers.randrange(len(data))] ^= 1 << random_numbers.randrange(8)
    path.chmod(0o644)
    path.write_bytes(data)
    assert_refused(marked.path, marked.digest, marker)


def test_a_prediction_is_an_array_and_short_to_read() -> None:
    said = Prediction([1.5, None, *range(10_000)], None)
    assert np.asarray(said, dtype=float).shape == (10_002,) and len(repr(said)) < 200
    with pytest.raises(NotFoundError) as error:
        open_bundle("flights@production")
    assert "n2p.Predictor('flights@production')" in (error.value.remedy or "")
