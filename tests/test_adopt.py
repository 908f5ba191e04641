"""`n2p adopt`: raw notebooks as people write them become projects that run, or say precisely what is in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from notebooks import Project

from notebook_to_prod.errors import InputError, NotebookError, NotFoundError
from notebook_to_prod.train.adopt.adopt import Adoption, Draft, adopt, drafts, files_of
from notebook_to_prod.train.adopt.choice import target_column
from notebook_to_prod.train.adopt.proof import Execution, difference, shown_again, told_otherwise
from notebook_to_prod.train.adopt.reading import read_raw
from notebook_to_prod.train.check.verdict import check_notebook
from notebook_to_prod.train.notebook import parse_notebook, read_notebook

RAW = Path(__file__).parent / "fixtures" / "raw"

# What ends in TODOs, with the words that the TODO must hold; everything else is adopted and proved with nothing left to do.
LEFT = {
    "passengers_submission": ("pipeline", "in a loop, and none is chosen"),
    "wine_no_holdout": ("pipeline", "no rows are held out"),
    "sales_missing_file": ("load", "sales_2019_final.csv"),
    "diabetes_hidden_state": ("proof", "X_selected"),
}
QUICK = ("diabetes_poly",)  # The command itself is tried on `sales_missing_file`
NAMES = sorted(path.stem for path in RAW.glob("*.ipynb"))


def adopted_or_slow(names: list[str]) -> list[Any]:
    """Return the fixtures, all but a few of them marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Copy the raw notebooks and their data to a folder of one's own."""
    return Path(shutil.copytree(RAW, tmp_path / "raw"))


def kept_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook with their sources as text."""
    return [cell | {"source": "".join(cell["source"])} for cell in json.loads(path.read_text("utf-8"))["cells"]]


def assert_prose_and_outputs_kept(before: Path, after: Path) -> None:
    """Every cell is there, in order, prose to the letter and outputs to the byte."""
    new = {cell["id"]: cell for cell in kept_cells(after)}
    old = kept_cells(before)
    assert [cell["id"] for cell in kept_cells(after) if cell["id"] in {each["id"] for each in old}] == [
        each["id"] for each in old
    ]
    for cell in old:
        if cell["cell_type"] == "markdown":
            assert new[cell["id"]] == cell
        else:
            assert new[cell["id"]]["outputs"] == cell["outputs"]
            comments = [
                line.strip() for line in cell["source"].splitlines() if line.startswith("#") and "#|" not in line
            ]
            assert all(line in new[cell["id"]]["source"] for line in comments)


@pytest.mark.parametrize("name", adopted_or_slow([name for name in NAMES if name not in LEFT]))
def test_a_raw_notebook_becomes_a_project_whose_run_gives_the_metric_it_had(raw: Path, name: str) -> None:
    source = raw / f"{name}.ipynb"
    untouched = source.read_bytes()
    adoption = adopt(source, raw / "out")
    assert adoption.ok, adoption.report()
    assert adoption.original
    assert adoption.adopted == adoption.original
    assert source.read_bytes() == untouched
    made = raw / "out" / f"{name}.ipynb"
    assert_prose_and_outputs_kept(source, made)
    assert not check_notebook(made).errors
    assert read_notebook(made).parameters
    assert "run.export(" in "".join(cell.source for cell in read_notebook(made).code_cells)
    assert "n2p.load(" in made.read_text() or "read_csv" not in source.read_text()
    assert all(each.diff and each.reason for each in adoption.done)


@pytest.mark.parametrize("name", adopted_or_slow(sorted(set(LEFT) & set(NAMES))))
def test_what_cannot_be_adopted_ends_in_a_todo_at_its_cell_and_in_no_bundle(raw: Path, name: str) -> None:
    kind, words = LEFT[name]
    adoption = adopt(raw / f"{name}.ipynb", raw / "out")
    assert not adoption.ok
    fitting = [todo for todo in adoption.todos if todo.kind == kind and words in todo.what]
    assert fitting, adoption.report()
    assert all(todo.remedy for todo in adoption.todos)
    made = raw / "out" / f"{name}.ipynb"
    cells = kept_cells(made)
    places = [number for number, cell in enumerate(cells) if "**TODO" in cell["source"]]
    assert places
    assert any(
        cells[number + 1]["id"] == fitting[0].cell_id or "**TODO" in cells[number + 1]["source"] for number in places
    )
    if kind == "pipeline":
        assert "run.export(" not in "".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    assert_prose_and_outputs_kept(raw / f"{name}.ipynb", made)


def written(folder: Path, content: object) -> Path:
    """Write `content` as the file of a notebook."""
    path = folder / "bad.ipynb"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def notebook(*sources: str, language: str = "python") -> dict[str, Any]:
    """Return a notebook of these code cells."""
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
        for n, source in enumerate(sources)
    ]
    kernel = {"name": "x", "display_name": "x", "language": language}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no JSON at all", "cannot be read"),
        ({"worksheets": []}, "format 4"),
        (notebook("x <- 3", language="R"), "written in R"),
        (notebook(), "no code cells"),
        (notebook("   "), "no code cells"),
        (notebook("x = 1", "def broken(:\n    pass"), "not valid Python"),
        (notebook("print 'python 2'"), "not valid Python"),
    ],
)
def test_what_is_no_python_notebook_is_refused_and_nothing_is_written(
    tmp_path: Path, content: object, says: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(NotebookError, match=says):
        adopt(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["bad.ipynb"]


def test_a_folder_that_holds_something_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = written(tmp_path, notebook("x = 1"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        adopt(path, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(NotFoundError):
        adopt(tmp_path / "absent.ipynb", tmp_path / "other")
    with pytest.raises(InputError, match="does not speak of a column 'price'"):
        adopt(path, tmp_path / "other", target="price")


def test_the_command_ends_with_1_where_something_is_left_to_do_and_with_2_on_bad_input(project: Project) -> None:
    shutil.copy(RAW / "sales_missing_file.ipynb", project.folder)
    done = project.n2p("adopt", "sales_missing_file.ipynb", "--out", "sales", "--json")
    assert done.code == 1
    assert done.json["proved"] is False
    assert any("sales_2019_final.csv" in todo["what"] for todo in done.json["todos"])
    assert any(
        "**TODO (load)**" in cell["source"]
        for cell in kept_cells(project.folder / "sales" / "sales_missing_file.ipynb")
    )
    again = project.n2p("adopt", "sales_missing_file.ipynb", "--out", "sales", "--json")
    assert again.code == 2
    assert "not empty" in again.error["what"]


def stages(folder: Path, *sources: str, skipped: dict[str, str] | None = None) -> dict[str, Draft]:
    """Return what the stages make of these cells, by stage; nothing is executed."""
    raw = parse_notebook(notebook(*sources), folder / "raw.ipynb")
    return dict(drafts(raw, folder, skipped or {}))


def text_of(draft: Draft) -> str:
    """Return the source of all code cells."""
    return "\n\n".join(cell.source for cell in draft.notebook.code_cells)


def put(path: Path, text: str = "a,b\n1,2\n") -> Path:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_two_files_of_one_name_keep_their_own_places(tmp_path: Path) -> None:
    first, second = put(tmp_path / "data" / "2023" / "sales.csv"), put(tmp_path / "data" / "2024" / "sales.csv")
    home = tmp_path / "work"
    home.mkdir()
    cells = "import pandas as pd\na = pd.read_csv('../data/2023/sales.csv')\nb = pd.read_csv('../data/2024/sales.csv')"
    raw = read_raw(parse_notebook(notebook(cells), home / "raw.ipynb"))
    files = files_of(raw, home)
    assert sorted(files.values()) == [first.resolve(), second.resolve()]
    loaded = stages(home, cells)["load"]
    assert "a = n2p.load(sales_path)" in text_of(loaded)
    assert "b = n2p.load(sales_path2)" in text_of(loaded)
    assert all(f"'{place}'" in text_of(loaded) for place in files)


def test_a_third_file_without_a_place_of_its_own_is_left_to_the_author(tmp_path: Path) -> None:
    for place in ("one/x", "two/x", "three/x"):
        put(tmp_path / place / "s.csv")
    home = tmp_path / "work"
    home.mkdir()
    reads = (f"pd.read_csv('../{place}/x/s.csv')" for place in ("one", "two", "three"))
    loaded = stages(home, "import pandas as pd\n" + "\n".join(reads))["load"]
    assert [todo.what for todo in loaded.todos if "belongs to another file" in todo.what]
    assert "'../three/x/s.csv'" in text_of(loaded)


def test_a_file_that_only_its_name_tells_is_said_and_never_two_paths_at_once(tmp_path: Path) -> None:
    put(tmp_path / "data" / "s.csv")
    for hidden in (".venv/s.csv", "old-adopted/s.csv", "mine/s.csv"):
        put(tmp_path / hidden)
    put(tmp_path / "old-adopted" / "ADOPTED.md")
    put(tmp_path / "mine" / "pyvenv.cfg")
    loaded = stages(tmp_path, "import pandas as pd\na = pd.read_csv('/home/me/s.csv')")["load"]
    assert "'/home/me/s.csv' is not there, and 'data/s.csv' has its name" in [todo.what for todo in loaded.todos]
    assert "n2p.load(s_path)" in text_of(loaded)
    two = stages(tmp_path, "import pandas as pd\na = pd.read_csv('/me/1/s.csv')\nb = pd.read_csv('/me/2/s.csv')")[
        "load"
    ]
    assert len([todo for todo in two.todos if "is what another path means" in todo.what]) == 2
    assert "n2p.load(" not in text_of(two)


def test_a_block_that_does_more_than_to_store_is_kept(tmp_path: Path) -> None:
    head = "import joblib, mlflow\nfrom sklearn.svm import SVC\nmodel = SVC()"
    both = "with mlflow.start_run():\n    model.fit(X, y)\n    joblib.dump(model, 'm.pkl')"
    fitted = "joblib.dump(model.fit(X, y), 'm.pkl')"
    plain = "with open('m.pkl', 'wb') as file:\n    joblib.dump(model, file)\n    print('kept')"
    sources = text_of(stages(tmp_path, head, both, fitted, plain)["original"])
    assert both in sources
    assert f"\n{fitted}" in sources
    assert "# with open('m.pkl', 'wb') as file:" in sources


def test_an_installation_inside_a_block_leaves_a_block(tmp_path: Path) -> None:
    cell = "import sys\nif 'google.colab' in sys.modules:\n    !pip install seaborn\ntry:\n    import a\nexcept ImportError:\n    %pip install a"
    original = stages(tmp_path, cell)["original"]
    assert text_of(original).count("    pass  # n2p adopt:") == 2
    long = text_of(stages(tmp_path, "!pip install a \\\n    b\nx = 1")["original"])
    assert "install a \\\n# b\nx = 1" in long
    assert all(each.problem is None for each in read_raw(original.notebook).analysis.cells)


def test_without_the_loads_the_files_are_read_where_the_project_keeps_them(tmp_path: Path) -> None:
    put(tmp_path / "s.csv")
    home = tmp_path / "work"
    home.mkdir()
    wrong = "the metric 'score' is 1.0, and was 0.5"
    made = stages(home, "import pandas as pd\na = pd.read_csv('../s.csv')", skipped={"load:c0": wrong})
    for draft in made.values():
        assert "pd.read_csv('data/s.csv')" in text_of(draft)
    assert [todo.what for todo in made["load"].todos if todo.kind == "load"] == [f"left out, since with it {wrong}"]


SCORED = "from sklearn.metrics import accuracy_score\nfrom sklearn.model_selection import cross_val_score\nmodels = {'a': one, 'b': two}"


@pytest.mark.parametrize(
    ("cell", "recorded"),
    [
        (
            "for name, m in models.items():\n    for k in range(3):\n        accuracy_score(y, m)",
            'f"accuracy_{name}_{k}"',
        ),
        ("for name, m in [('a', one), ('b', two)]:\n    accuracy_score(y, m)", 'f"accuracy_{name}"'),
        ("for i, m in enumerate(found):\n    accuracy_score(y, m)", 'f"accuracy_{i}"'),
        ("for m in [one, two]:\n    accuracy_score(y, m)", None),
        ("for m in models.values():\n    for k in range(3):\n        accuracy_score(y, m)", None),
        ("while True:\n    for k in range(3):\n        accuracy_score(y, m)", None),
        ("for name in ['a', 'a']:\n    accuracy_score(y, m)", None),
        ("for k in range(3):\n    k = 1\n    accuracy_score(y, m)", None),
        ("models[SVC()] = three\nfor name, m in models.items():\n    accuracy_score(y, m)", None),
        ("for k in range(3):\n    print(f'{accuracy_score(y, k)}')", 'f"accuracy_{k}"'),
        ("for k in range(3): print(f'{accuracy_score(y, k)}')", None),
        ("print(f'{accuracy_score(y, p)}'); p = 3", '"accuracy"'),
        ("print(f'{cross_val_score(m, X, y).mean()}')", None),
        ("print(f'{m.fit(X, y).score(X, y)}')", None),
    ],
)
def test_a_score_is_recorded_where_no_pass_overwrites_another_and_else_left(
    tmp_path: Path, cell: str, recorded: str | None
) -> None:
    original = stages(tmp_path, SCORED, cell)["original"]
    source = text_of(original)
    assert all(each.problem is None for each in read_raw(original.notebook).analysis.cells)
    if recorded is None:
        assert "run.metric(" not in source
        assert [todo for todo in original.todos if todo.kind == "metric" and todo.cell_id == "c1"]
    else:
        assert f"run.metric({recorded}, " in source
        assert not [todo for todo in original.todos if todo.kind == "metric"]


@pytest.mark.parametrize(
    ("cell", "column"),
    [
        ("y = df['price']", "price"),
        ("X, y = df.drop(columns='price'), df.price.values", "price"),
        ("y = np.log1p(df[['price']]).values.ravel()", "price"),
        ("y = df.pop('price').astype(int)", "price"),
        ("y = pd.concat([df['price'], df['price'].loc[df.index]])", "price"),
        ("name = 'price'\ny = df[name]", "price"),
        ("y = read()", None),
        ("y = df['price']\ny = df['area']", None),
    ],
)
def test_the_target_is_the_column_that_the_model_is_fitted_on(tmp_path: Path, cell: str, column: str | None) -> None:
    head = "import numpy as np\nimport pandas as pd\nfrom sklearn.svm import SVR\nfrom sklearn.model_selection import train_test_split"
    fit = "a, b, y_train, y_test = train_test_split(X, y)\nmodel = SVR()\nmodel.fit(a, y_train)"
    assert target_column(read_raw(parse_notebook(notebook(head, cell, fit), tmp_path / "raw.ipynb"))) == column
    if column:
        path = written(tmp_path, notebook(head, cell, fit, "'area'"))
        with pytest.raises(InputError, match="'price', not 'area'"):
            adopt(path, tmp_path / "out", target="area")
        assert not (tmp_path / "out").exists()


def test_a_target_that_the_source_does_not_show_is_taken_at_the_users_word(tmp_path: Path) -> None:
    cell = "import numpy as np\nfrom sklearn.svm import SVC\nX = np.arange(8.0).reshape(4, 2)\ny = [0, 1, 0, 1]  # late\n'late'"
    fit = "model = SVC()\nmodel.fit(X, y)\nprint(model.score(X, y))"
    said: list[str] = []
    adopt(written(tmp_path, notebook(cell, fit)), tmp_path / "out", target="late", note=said.append)
    assert "'late' is taken at your word" in said[0]
    assert (tmp_path / "out" / "ADOPTED.md").is_file()


def test_a_metric_is_compared_in_every_value_that_was_recorded_and_not_only_the_last() -> None:
    several = Execution({"accuracy": 0.9}, {}, None, {"accuracy": [0.7, 0.9]})
    assert several.overwritten == ["accuracy"]
    assert "recorded as" in (difference(several, Execution({"accuracy": 0.9}, {}, None, {"accuracy": [0.9]})) or "")
    assert difference(several, several) is None


def test_what_is_printed_otherwise_stands_in_the_report() -> None:
    made = Adoption(Path("raw.ipynb"), None, (), (), {"r2": 0.5}, {"r2": 0.5}, proved=True, printed=("c3",))
    assert "## Printed otherwise\n\n- c3" in made.report()
    assert made.to_dict()["printed_otherwise"] == ["c3"]


def test_what_is_done_to_features_by_hand_is_said_and_what_makes_the_target_is_not(tmp_path: Path) -> None:
    head = "from sklearn.svm import SVC\nfrom sklearn.model_selection import train_test_split"
    made = "df['x'] = df['a'] / df['b']\ndf['y'] = df['y'].map({'no': 0})\ndf['c'] = df['c'].fillna(df['c'].median())"
    split = (
        "X_train, X_test, y_train, y_test = train_test_split(df[['x', 'c']], df['y'])\nX_train = X_train.apply(scaled)"
    )
    fit = "m = SVC()\nm.fit(X_train, y_train)\nprint(m.score(X_test, y_test))"
    todos = stages(tmp_path, head, made, split, fit)["pipeline"].todos
    said = [todo.what.partition(" in front")[0] for todo in todos if "in front of the pipeline" in todo.what]
    assert said == ["df['x'] is computed", "X_train.apply is applied"]


PREPARED = "import numpy as np\nimport pandas as pd\nfrom sklearn.svm import SVC\nfrom sklearn.preprocessing import StandardScaler\nfrom sklearn.model_selection import train_test_split\ndf = pd.DataFrame(rows)"
SPLIT = "X = df.drop(columns='y')\ny = df['y']\nX_train, X_test, y_train, y_test = train_test_split(X, y)"
FIT = "m = SVC()\nm.fit(X_train, y_train)\nprint(m.score(X_test, y_test))"


def test_columns_computed_by_hand_become_an_exported_function_that_the_notebook_calls(tmp_path: Path) -> None:
    made = "LIMIT = 3\ndf['x'] = np.log(df['a'])  # skewed\ndf['large'] = df['b'] > LIMIT\ndf['y'] = df['y'].map({'no': 0})"
    draft = stages(tmp_path, PREPARED, made, SPLIT, FIT)["pipeline"]
    source = text_of(draft)
    assert not [todo for todo in draft.todos if todo.kind == "pipeline"]
    assert '#| export\nimport numpy as np\n\n\ndef df_columns(df, LIMIT):\n    "What' in source
    assert "df_raw = df.copy()\ndf = df_columns(df, LIMIT)  # skewed\n# large: see df_columns\ndf['y'] = " in source
    assert "and column != 'y']]" in source
    assert "for rows on their own" in source
    assert all(cell.problem is None for cell in read_raw(draft.notebook).analysis.cells)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ("df['x'] = df['k'].map(other)", "it takes 'other' from the notebook"),
        ("rates = df.max(axis=1)\ndf['x'] = df['a'] / rates", "it takes 'rates' from the notebook"),
        ("target = df['y']\ndf['x'] = df['a'] * target", "it takes 'target' from the notebook"),
        ("mean = df['a'].mean()\ndf['x'] = df['a'] - mean\nmean = 0", "it takes 'mean' from the notebook"),
        ("def near(row):\n    return model.predict(row)\ndf['x'] = df['a'].apply(near)", "'near' uses variables"),
    ],
)
def test_a_step_that_takes_more_than_constants_from_the_notebook_stays_with_the_author(
    tmp_path: Path, made: str, why: str
) -> None:
    draft = stages(tmp_path, PREPARED, made, SPLIT, FIT)["pipeline"]
    said = [todo.what for todo in draft.todos if "in front of the pipeline" in todo.what]
    assert said
    assert all(why in each for each in said)
    assert "FunctionTransformer" not in text_of(draft)


@pytest.mark.parametrize(
    ("test_side", "joined"),
    [
        ("X_test[cols] = sc.transform(X_test[cols])", True),
        ("X_test[cols] = sc.fit_transform(X_test[cols])", False),
        ("X_test[cols] = sc.transform(X_test[['a']])", False),
    ],
)
def test_columns_scaled_in_place_are_a_step_where_the_test_rows_are_given_what_the_training_rows_taught(
    tmp_path: Path, test_side: str, joined: bool
) -> None:
    scaled = f"cols = ['a', 'b']\nsc = StandardScaler()\nX_train[cols] = sc.fit_transform(X_train[cols])\n{test_side}"
    draft = stages(tmp_path, PREPARED, SPLIT, scaled, FIT)["pipeline"]
    exports = "run.export(pipeline, X_train_raw, y_train, X_test_raw, y_test)" in text_of(draft)
    assert exports == joined
    assert any(todo.kind == "pipeline" for todo in draft.todos) != joined
    if joined:
        assert "X_train_raw = X_train.copy()" in text_of(draft)
        assert 'ColumnTransformer([("sc_columns", clone(sc), cols)]' in text_of(draft)


def test_missing_values_filled_with_the_training_mean_are_a_step_and_with_the_test_mean_are_not(tmp_path: Path) -> None:
    train = "X_train = X_train.fillna(X_train.mean())"
    good = stages(tmp_path, PREPARED, SPLIT, f"{train}\nX_test = X_test.fillna(X_train.mean())", FIT)["pipeline"]
    assert 'SimpleImputer(strategy="mean")' in text_of(good)
    assert not [todo for todo in good.todos if todo.kind == "pipeline"]
    bad = stages(tmp_path, PREPARED, SPLIT, f"{train}\nX_test = X_test.fillna(X_test.mean())", FIT)["pipeline"]
    assert [todo for todo in bad.todos if todo.kind == "pipeline"]


SCORING = "from sklearn.metrics import accuracy_score, mean_squared_error\nfrom sklearn.model_selection import GridSearchCV\nfrom sklearn.svm import SVC"
PRINTS = "def judge(model, X):\n    score = accuracy_score(y, model.predict(X))\n    print(score)"


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (
            ("import numpy as np\ndef off(a, b):\n    return np.sqrt(mean_squared_error(a, b))", "print(off(y, p))"),
            'print(run.metric("rmse", off(y, p)))',
        ),
        (
            ("def judge(m):\n    s = accuracy_score(y, m.predict(X))\n    return s", "judge(one)"),
            'run.metric("accuracy", judge(one))',
        ),
        ((PRINTS, "judge(one, X)"), 'score = run.metric("accuracy", accuracy_score(y, model.predict(X)))'),
        (
            (PRINTS, "judge(one, X)\njudge(two, X)"),
            'run.metric(f"accuracy_{type(model).__name__}", accuracy_score(',
        ),
        (
            ("def judge(name, p):\n    print(name, accuracy_score(y, p))", "judge('a', p)\njudge('b', p)"),
            'run.metric(f"accuracy_{name}", accuracy_score(y, p))',
        ),
        (("def judge(p):\n    print(accuracy_score(y, p))", "judge(p)\njudge(q)"), None),
        (
            ("grid = GridSearchCV(SVC(), {})\ngrid.fit(X, y)", "print(grid.best_score_)"),
            'metric("best_score", grid.best',
        ),
    ],
)
def test_scores_of_functions_and_searches_are_recorded_under_names_of_their_own(
    tmp_path: Path, cells: tuple[str, str], line: str | None
) -> None:
    original = stages(tmp_path, SCORING, *cells)["original"]
    todos = [todo for todo in original.todos if todo.kind == "metric"]
    if line is None:
        assert "run.metric(" not in text_of(original)
        assert any("more than once" in todo.what for todo in todos)
    else:
        assert line in text_of(original)
        assert not todos


def test_the_model_that_is_taken_out_of_a_dict_of_fitted_ones_is_the_one_exported(tmp_path: Path) -> None:
    loop = "models = {'a': SVC(), 'b': SVC(C=3)}\nfor name, each in models.items():\n    each.fit(X_train, y_train)\n    print(name, each.score(X_test, y_test))"
    picked = stages(tmp_path, PREPARED, SPLIT, loop, "best = models['b']\nprint(best.score(X_test, y_test))")[
        "pipeline"
    ]
    assert "run.export(best, X_train, y_train, X_test, y_test)" in text_of(picked)
    assert any("'best' is what the notebook takes" in each.reason for each in picked.done)
    left = stages(tmp_path, PREPARED, SPLIT, loop, "best = models['b']")["pipeline"]
    assert "run.export(" not in text_of(left)
    assert [todo for todo in left.todos if "none is chosen" in todo.what]


def test_the_model_that_the_raw_notebook_pickles_is_exported_though_another_is_fitted_later(tmp_path: Path) -> None:
    fits = "a = SVC().fit(X_train, y_train)\nb = SVC(C=2).fit(X_train, y_train)\nprint(a.score(X_test, y_test))"
    stored = "import joblib\njoblib.dump(a, 'a.pkl')"
    assert "run.export(a, " in text_of(stages(tmp_path, PREPARED, SPLIT, fits, stored)["pipeline"])
    assert "run.export(b, " in text_of(
        stages(tmp_path, PREPARED, SPLIT, fits + "\nprint(b.score(X_test, y_test))")["pipeline"]
    )


def test_a_function_that_an_estimator_is_given_moves_to_an_exported_cell_with_what_it_needs(tmp_path: Path) -> None:
    head = "import re\nfrom sklearn.feature_extraction.text import TfidfVectorizer"
    cell = "word = re.compile('[a-z]+')\ndef words(text):\n    return word.findall(text)\nvec = TfidfVectorizer(tokenizer=words)"
    source = text_of(stages(tmp_path, head, cell)["pipeline"])
    assert "#| export\nimport re\n\n\nword = re.compile('[a-z]+')\n\n\ndef words(text):" in source
    assert "# words: see the exported cell above\nvec = TfidfVectorizer(tokenizer=words)" in source


def test_saved_outputs_confirm_a_file_only_by_a_number_that_the_source_does_not_hold(tmp_path: Path) -> None:
    content = notebook("print(0.123)\nprint(score)")
    content["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["0.123\n", "0.8125\n"]}]
    raw = parse_notebook(content, tmp_path / "raw.ipynb")
    assert shown_again(raw, Execution({}, {"c0": "0.123\n0.8125\n"})) == {"c0": "0.8125"}
    assert shown_again(raw, Execution({}, {"c0": "0.123\n0.8126\n"})) == {}


@pytest.mark.slow
def test_columns_that_need_other_rows_are_named_and_are_no_part_of_the_model(raw: Path) -> None:
    cells = (
        "import pandas as pd\nfrom sklearn.svm import SVC\nfrom sklearn.model_selection import train_test_split",
        "df = pd.read_csv('passengers.csv')[['Survived', 'Pclass', 'Fare']]\ndf['rank'] = df['Fare'].rank()",
        "X_train, X_test, y_train, y_test = train_test_split(df[['Pclass', 'rank']], df['Survived'], random_state=0)",
        "m = SVC()\nm.fit(X_train, y_train)\nprint(m.score(X_test, y_test))",
    )
    adoption = adopt(written(raw, notebook(*cells)), raw / "out")
    assert adoption.proved
    assert [todo.what for todo in adoption.todos] == [
        "df['rank'] is computed in front of the pipeline and is no part of the exported model"
        " (what is computed for a row in 'rank' depends on other rows or on its place in the table)"
    ]


PIPELINE = PREPARED + "\nfrom sklearn.pipeline import make_pipeline\nfrom sklearn.impute import SimpleImputer"
FITTED = "m = SVC()\nm.fit(A, y_train)\nprint(m.score(B, y_test))"


@pytest.mark.parametrize(
    ("imports", "made", "step"),
    [
        (PIPELINE, "prep = make_pipeline(SimpleImputer(), StandardScaler())", "prep"),
        (PREPARED + "\nfrom feature_engine.creation import CyclicalFeatures", "prep = CyclicalFeatures()", "prep"),
        (PREPARED.replace("import StandardScaler", "import *"), "prep = MinMaxScaler().fit(X_train)", "prep"),
    ],
    ids=["a pipeline", "of another library", "imported by a star"],
)
def test_whatever_the_notebook_has_transform_is_a_step_and_never_left_behind(
    tmp_path: Path, imports: str, made: str, step: str
) -> None:
    transformed = f"{made}\nA = prep.fit_transform(X_train)\nB = prep.transform(X_test)"
    draft = stages(tmp_path, imports, SPLIT, transformed, FITTED)["pipeline"]
    assert f'Pipeline([("{step}", {step}), ("model", m)])' in text_of(draft)
    assert "run.export(pipeline, X_train, y_train, X_test, y_test)" in text_of(draft)
    assert not [todo for todo in draft.todos if todo.kind == "pipeline"]


def test_what_transforms_and_cannot_be_named_is_left_to_the_author(tmp_path: Path) -> None:
    transformed = "A = scaler_of(3).fit_transform(X_train)\nB = scaler_of(3).transform(X_test)"
    draft = stages(tmp_path, PREPARED + "\nfrom helpers import scaler_of", SPLIT, transformed, FITTED)["pipeline"]
    (said,) = [todo.what for todo in draft.todos if todo.kind == "pipeline"]
    assert said.startswith("scaler_of(3).fit_transform is applied to X_train in front of the pipeline")


def test_a_step_that_has_seen_the_rows_of_the_test_is_told(tmp_path: Path) -> None:
    before = "X = StandardScaler().fit_transform(df.drop(columns='y'))\ny = df['y']"
    split = "X_train, X_test, y_train, y_test = train_test_split(X, y)"
    draft = stages(tmp_path, PREPARED, before, split, FIT)["pipeline"]
    assert any("standard_scaler had seen the rows of the test as well" in change.reason for change in draft.done)


LOOP = (
    PREPARED + "\nfrom sklearn.linear_model import LogisticRegression\nfrom sklearn.model_selection import GridSearchCV"
)
BEST = """best, best_model = 0, None
for name, m in {'a': SVC(), 'b': LogisticRegression()}.items():
    search = GridSearchCV(m, {})
    search.fit(X_train, y_train)
    if search.best_score_ > best:
        best, best_model = search.best_score_, search.best_estimator_"""
FITTED_DICT = """fitted = {}
for name, m in [('a', SVC()), ('b', LogisticRegression())]:
    m.fit(X_train, y_train)
    fitted[name] = m"""


@pytest.mark.parametrize(
    ("loop", "after"),
    [(BEST, "best_model"), (FITTED_DICT, "best_model = fitted['b']\nbest_model")],
    ids=["kept where it is better", "kept in a dict"],
)
def test_the_model_that_a_loop_keeps_is_the_one_exported(tmp_path: Path, loop: str, after: str) -> None:
    draft = stages(tmp_path, LOOP, SPLIT, loop, f"{after}.score(X_test, y_test)")["pipeline"]
    assert "run.export(best_model, X_train, y_train, X_test, y_test)" in text_of(draft)
    assert not [todo for todo in draft.todos if todo.kind == "pipeline"]


def test_what_is_written_at_a_place_of_one_machine_is_written_beside_the_notebook(tmp_path: Path) -> None:
    plots = "import matplotlib.pyplot as plt\nplt.savefig('/home/ann/plots/roc.png')\nplt.savefig('figures/roc.png')"
    tables = "df.to_csv(r'C:\\Users\\ann\\rows.csv')\ndf.to_csv('/tmp/kept.csv')\nagain = pd.read_csv('/tmp/kept.csv')"
    source = text_of(stages(tmp_path, PREPARED, plots, tables, SPLIT, FIT)["original"])
    assert "plt.savefig('roc.png')\nplt.savefig('figures/roc.png')" in source
    assert "df.to_csv('rows.csv')\ndf.to_csv('/tmp/kept.csv')" in source


def test_statements_of_one_line_are_told_apart_and_scores_of_a_star_import_recorded(tmp_path: Path) -> None:
    scaled = "sc = StandardScaler(); X_train = sc.fit_transform(X_train); X_test = sc.transform(X_test); plot = 1;"
    score = "m = SVC()\nm.fit(X_train, y_train)\nprint(f1_score(y_test, m.predict(X_test)))"
    draft = stages(tmp_path, PREPARED + "\nfrom sklearn.metrics import *", SPLIT, scaled, score)["pipeline"]
    source = text_of(draft)
    assert "sc = StandardScaler()\nX_train_raw = X_train\nX_train = sc.fit_transform(X_train)\n" in source
    assert "plot = 1;" in source
    assert 'run.metric("f1", f1_score(' in source
    assert "run.export(pipeline, X_train_raw, y_train, X_test_raw, y_test)" in source


OVERSAMPLED = "Xb = pd.concat([X_train, X_train[y_train == 1]])\nyb = pd.concat([y_train, y_train[y_train == 1]])"
SMOTE = "from imblearn.over_sampling import SMOTE\nXb, yb = SMOTE().fit_resample(X_train, y_train)"


@pytest.mark.parametrize("resampled", [OVERSAMPLED, SMOTE], ids=["by hand", "by a library"])
def test_a_model_of_resampled_rows_is_exported_with_the_rows_it_judges(tmp_path: Path, resampled: str) -> None:
    fit = "m = SVC()\nm.fit(Xb, yb)\nprint(m.score(X_test, y_test))"
    draft = stages(tmp_path, PREPARED, "df['y'] = df['y'].map({'no': 0})", SPLIT, resampled, fit)["pipeline"]
    assert "run.export(m, Xb, yb, X_test, y_test)" in text_of(draft)
    assert not [todo for todo in draft.todos if todo.kind == "pipeline"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("X = scale(df.drop(columns='y'))\ny = df['y']\nX_train, X_test, y_train, y_test = train_test_split(X, y)\nA, B = X_train, X_test", "scale is applied to df"),
        (SPLIT + "\nsc = StandardScaler()\nA = np.concatenate([sc.fit_transform(X_train)])\nB = sc.transform(X_test)", "how those that it was fitted on came about cannot be followed"),
    ],
    ids=["a function of scikit-learn", "joined behind a transformer"],
)  # fmt: skip
def test_what_is_scaled_where_nobody_can_follow_is_a_todo(tmp_path: Path, made: str, said: str) -> None:
    draft = stages(tmp_path, PREPARED + "\nfrom sklearn.preprocessing import scale", made, FITTED)["pipeline"]
    assert any(said in todo.what for todo in draft.todos if todo.kind == "pipeline"), draft.todos


def test_what_a_timing_magic_prints_is_never_compared() -> None:
    before, after = (
        Execution(
            {},
            told={
                "a": f"CPU times: user {number} us, total: {number} us\nWall time: {number} µs\n",
                "b": f"{number}\n",
            },
        )
        for number in (3, 4)
    )
    assert told_otherwise(before, after) == ["b"]


ENCODED = PREPARED + "\nfrom sklearn.preprocessing import LabelEncoder, MinMaxScaler"


@pytest.mark.parametrize(
    ("made", "entry"),
    [
        ("kept = {}\nfor c in ['a', 'b', 'y']:\n    le = LabelEncoder()\n    df[c] = le.fit_transform(df[c].astype(str))\n    kept[c] = le", "X.columns.intersection(['a', 'b'], sort=False)"),
        ("for c in df.columns:\n    if df[c].dtype == 'object':\n        df[c] = LabelEncoder().fit_transform(df[c])", "intersection([c for c in df_raw.columns if df_raw[c].dtype == 'object'], sort=False)"),
        ("cols = ['a', 'b']\nsc = MinMaxScaler()\ndf[cols] = sc.fit_transform(df[cols])", '("scaled", clone(sc), scaled),'),
        ("df['a'] = MinMaxScaler().fit_transform(df[['a']])", '("scaled", MinMaxScaler(), scaled),'),
        ("df[['a', 'b']] = df[['a', 'b']].apply(LabelEncoder().fit_transform)", "intersection(['a', 'b'], sort=False)"),
        ("df['a'] = df['a'].fillna(df['a'].median())\ndf['b'] = df['b'].fillna(df['b'].median())", 'filled = list(X.columns.intersection([\'a\', \'b\'], sort=False))'),
        ("df['a'] = df['a'].fillna(0)\ndf['b'] = df['b'].fillna(0)", '*[(column, SimpleImputer(strategy="constant", fill_value=0), [column]) for column in filled],'),
        ("for c in ['a', 'b']:\n    df[c] = df[c].fillna(df[c].mean())\nsc = StandardScaler()\ndf['a'] = sc.fit_transform(df[['a']])", '("scaled", make_pipeline(SimpleImputer(strategy="mean"), clone(sc)), scaled),'),
    ],
    ids=["kept encoders", "by type", "scaled", "scaled alone", "applied", "filled", "filled by a constant", "filled and scaled"],
)  # fmt: skip
def test_columns_encoded_one_way_are_one_entry_of_a_column_transformer(tmp_path: Path, made: str, entry: str) -> None:
    draft = stages(tmp_path, ENCODED, made, SPLIT, FIT)["pipeline"]
    assert entry in text_of(draft)
    assert "assert_frame_equal(same_features, X, " in text_of(draft)
    assert "run.export(pipeline, features_train, y_train, features_test, y_test)" in text_of(draft)
    assert not [todo for todo in draft.todos if todo.kind == "pipeline"]
    assert all(cell.problem is None for cell in read_raw(draft.notebook).analysis.cells)
    leaked = "had seen the rows of the test" in "".join(each.reason for each in draft.done)
    assert leaked == ("scaled" in entry)


def test_a_column_that_is_named_like_a_dummy_and_was_there_before_is_kept(tmp_path: Path) -> None:
    made = "df = pd.get_dummies(df, columns=['town'])"
    source = text_of(stages(tmp_path, PREPARED, made, SPLIT, FIT)["pipeline"])
    assert "for column in one_hot),)) and column not in df_raw.columns]" in source


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("df = pd.concat([df, pd.get_dummies(df['a'])], axis=1)", "what pd.concat puts beside df is computed"),
        ("df = pd.get_dummies(df, prefix='is')", "pd.get_dummies is applied to df"),
        ("from tools import add_age\ndf = add_age(df)", "add_age is applied to df"),
        ("import tools as t\ndf = t.add_age(table=df)", "t.add_age is applied to df"),
        ("df = df.rolling(7).mean()", "df.rolling is applied"),
        ("df.insert(0, 'n', df['a'] * 2)", "df.insert is applied"),
        ("df = pd.merge(df, other, on='a')", "pd.merge is applied to df"),
    ],
)  # fmt: skip
def test_columns_that_nobody_follows_are_told_and_never_left_behind(tmp_path: Path, made: str, said: str) -> None:
    todos = stages(tmp_path, PREPARED, made, SPLIT, FIT)["pipeline"].todos
    assert [todo.what for todo in todos if todo.what.startswith(said)], todos


def test_what_a_transformer_is_given_by_another_is_named_by_the_table_it_comes_from(tmp_path: Path) -> None:
    made = "one = StandardScaler()\ntwo = StandardScaler()\nA = np.hstack([two.fit_transform(one.fit_transform(X_train[['a']]))])\nB = np.hstack([two.transform(one.transform(X_test[['a']]))])"
    todos = stages(tmp_path, PREPARED, SPLIT, made, FITTED)["pipeline"].todos
    assert any("two.fit_transform is applied to one.fit_transform(X_train[['a']])" in todo.what for todo in todos), (
        todos
    )


def test_a_vectorizer_of_one_column_of_both_sides_is_joined(tmp_path: Path) -> None:
    head = (
        PREPARED
        + "\nfrom sklearn.feature_extraction.text import TfidfVectorizer\nfrom sklearn.metrics import accuracy_score"
    )
    split = "train, test = train_test_split(df)\nvec = TfidfVectorizer()\nA = vec.fit_transform(train['text'])\nB = vec.transform(test['text'])"
    fit = "m = SVC().fit(A, train['y'])\np = m.predict(B)\nprint(accuracy_score(test['y'], p))"
    draft = stages(tmp_path, head, split, fit)["pipeline"]
    assert "run.export(pipeline, train['text'].to_frame(), train['y'], test['text'].to_frame(), test['y'])" in text_of(
        draft
    )
    assert "np.testing.assert_array_equal(pipeline.predict(test['text'].to_frame()), m.predict(B))" in text_of(draft)


def test_a_file_that_only_a_text_names_is_taken_along_and_what_is_written_is_not(tmp_path: Path) -> None:
    for name in ("tools.py", "flats.csv", "map.json", "made.csv", "pkg/__init__.py", "pkg/inner.py"):
        put(tmp_path / name, "import json\nTABLE = 'map.json'\n" if name == "tools.py" else "")
    cells = "from tools import load\nfrom pkg import inner\nflats = load('flats.csv')\nflats.to_csv('made.csv')"
    raw = read_raw(parse_notebook(notebook(cells), tmp_path / "raw.ipynb"))
    assert sorted(files_of(raw, tmp_path)) == ["flats.csv", "map.json", "pkg/__init__.py", "pkg/inner.py", "tools.py"]
