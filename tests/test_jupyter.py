"""In Jupyter: the magics, the checked parameters cell, what every noun shows, and errors that point to the cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from notebooks import Project, code, make_project

from notebook_to_prod import errors
from notebook_to_prod.display import Badge, Displayed, Shown, plain_markdown
from notebook_to_prod.jupyter.open_notebook import open_notebook
from notebook_to_prod.jupyter.parameters import declare, read_parameters
from notebook_to_prod.train.notebook import read_notebook
from notebook_to_prod.train.record import RunRecord

HOSTILE = "<script>alert(1)</script>|`x`"

MARKED = {
    "load": "%load_ext notebook_to_prod",
    "settings": '%%n2p parameters\nseed: int = 1\nrate = 0.5\nname = "a"',
    "use": "import notebook_to_prod as n2p\nrun = n2p.start(seed=seed)\nrun.metric('twice', seed * 2)\nrun.metric('rate', rate)",
}


def outputs(path: Path, cell_id: str) -> list[dict[str, Any]]:
    """The outputs of a cell of an executed notebook."""
    (cell,) = (each for each in nbformat.read(path, as_version=4).cells if each.id == cell_id)
    return cell.outputs


def text_of(path: Path, cell_id: str) -> str:
    """All that a cell of an executed notebook said, as text."""
    said = []
    for output in outputs(path, cell_id):
        said += [output.get("text", ""), output.get("data", {}).get("text/plain", ""), *output.get("traceback", [])]
    return "\n".join(said)


# The parameters cell


def test_the_line_counts_as_the_tag(project: Project) -> None:
    notebook = read_notebook(project.notebook("train.ipynb", MARKED))
    assert notebook.parameters_cell is not None
    assert notebook.parameters_cell.id == "settings"
    assert {name: each.value for name, each in notebook.parameters.items()} == {"seed": 1, "rate": 0.5, "name": "a"}


def test_check_accepts_the_line(project: Project) -> None:
    project.notebook("train.ipynb", MARKED)
    said = project.n2p("check", "train.ipynb", "--json")
    codes = {each["code"] for each in said.json["notebooks"][0]["findings"]}
    assert codes.isdisjoint({"N2P100", "N2P701", "N2P703"}), said.stdout


def test_a_run_sets_what_the_line_marks(project: Project) -> None:
    project.notebook("train.ipynb", MARKED)
    done = project.run("train.ipynb", "-p", "seed", "7")
    assert done.code == 0, done.stderr
    assert done.json["metrics"] == {"twice": 14.0, "rate": 0.5}
    executed = nbformat.read(done.json["output_notebook"], as_version=4)
    assert [cell.id for cell in executed.cells] == ["load", "settings", "injected-parameters", "use"]
    assert "seed" in text_of(Path(done.json["output_notebook"]), "settings")


def test_a_wrong_parameter_is_refused_before_the_run(project: Project) -> None:
    project.notebook("train.ipynb", MARKED)
    done = project.run("train.ipynb", "-p", "sed", "7")
    assert done.code == 2
    assert "did you mean 'seed'" in done.error["what"]


@pytest.mark.parametrize("engine", [(), ("--engine", "notebook_to_prod")], ids=["plain", "engine"])
def test_papermill_sets_what_the_line_marks(project: Project, engine: tuple[str, ...]) -> None:
    path = project.notebook("train.ipynb", MARKED | {"show": "print('seed is', seed, rate)"})
    done = project.papermill(path, "out.ipynb", "-p", "seed", "9", *engine)
    assert done.code == 0, done.stderr
    assert "seed is 9 0.5" in text_of(project.folder / "out.ipynb", "show")


def test_every_problem_of_the_cell_is_listed() -> None:
    with pytest.raises(errors.ParameterError) as caught:
        read_parameters("seed: int = 'one'\nimport os\nnow = len('a')\nfine = [1, 2]\nx.y = 3")
    assert [f"line {number}" in caught.value.what for number in range(2, 7)] == [True, True, True, False, True]
    with pytest.raises(errors.ParameterError, match="not Python"):
        read_parameters("seed = = 1")


def test_what_papermill_has_set_is_left_alone_and_told() -> None:
    names = {"seed": 7}
    declared = declare("seed = 1\nrate = 2", ["# Parameters\nseed = 7\n"], names)
    assert names == {"seed": 7, "rate": 2}
    assert "papermill" in declared.shown().text()
    declare("seed = 1", ["", "import os", "# Parameters\nseed = 7\n"], names)
    assert names["seed"] == 1, "a cell of somebody's own that looks like papermill's"


# The notebook that is open


def test_nothing_is_guessed(project: Project) -> None:
    project.notebook("train.ipynb", MARKED)
    with pytest.raises(errors.NotFoundError) as caught:
        open_notebook({})
    assert caught.value.remedy == "name it, as in %n2p check train.ipynb"


def test_papermill_is_believed_before_the_session_that_started_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, outer = project.notebook("inner.ipynb", MARKED), project.notebook("outer.ipynb", MARKED)
    monkeypatch.setenv("JPY_SESSION_NAME", str(outer))
    assert open_notebook({"PAPERMILL_INPUT_PATH": str(inner)}) == inner


@pytest.mark.parametrize("told", ["vscode", "jupyter", "papermill"])
def test_the_open_notebook_is_told_by(told: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.notebook("train.ipynb", MARKED)
    names: dict[str, Any] = {
        "vscode": {"__vsc_ipynb_file__": str(path)},
        "papermill": {"PAPERMILL_INPUT_PATH": str(path)},
    }.get(told, {})
    if told == "jupyter":
        monkeypatch.setenv("JPY_SESSION_NAME", str(path))
    assert open_notebook(names) == path
    path.unlink()
    with pytest.raises(errors.NotFoundError, match="is not there"):
        open_notebook(names)


def test_magics_in_a_run_are_about_its_notebook(project: Project) -> None:
    cells = MARKED | {"check": "%n2p check", "again": "%n2p run -p seed 3", "verdicts": "%n2p --version"}
    cells |= {"named": "%n2p run ./train.ipynb -p seed 5"}
    project.notebook("train.ipynb", cells)
    done = project.run("train.ipynb")
    assert done.code == 0, done.stderr
    executed = Path(done.json["output_notebook"])
    (table,) = (each for each in outputs(executed, "check") if each.output_type == "display_data")
    assert "<table" in table["data"]["text/html"] or "nothing found" in table["data"]["text/html"]
    assert "passed over" in text_of(executed, "again")
    assert "passed over" in text_of(executed, "named"), "or it would run itself without an end"
    assert len(project.run_folders) == 1


def test_a_run_started_from_a_notebook_is_recorded(project: Project) -> None:
    project.notebook("train.ipynb", MARKED)
    project.notebook("outer.ipynb", {"load": "%load_ext notebook_to_prod", "run": "%n2p run train.ipynb -p seed 4"})
    done = project.papermill("outer.ipynb", "out.ipynb")
    assert done.code == 0, done.stderr
    (folder,) = project.run_folders
    assert project.record(folder.name)["metrics"]["twice"] == 8.0
    shown = outputs(project.folder / "out.ipynb", "run")
    assert any("<progress" in each.get("data", {}).get("text/html", "") for each in shown)
    assert "train.ipynb: done" in text_of(project.folder / "out.ipynb", "run")


WRONG = {
    "a command that there is not": ("%n2p chek x.ipynb", "InputError", "did you mean 'check'"),
    "a notebook that there is not": ("%n2p check x.ipynb", "NotFoundError", "no such notebook"),
    "quotes that are open": ("%n2p check 'x", "InputError", "cannot be read"),
    "another cell magic": ("%%n2p parametres\nx = 1", "InputError", "write %%n2p parameters"),
    "no notebook that is known": ("%n2p check", "NotFoundError", "name it"),
}


def test_an_error_in_a_notebook_is_a_few_lines_and_names_the_remedy(project: Project) -> None:
    wrong = {
        f"wrong-{number}": code(source, f"wrong-{number}", ["raises-exception"])
        for number, (source, _, _) in enumerate(WRONG.values())
    }
    project.notebook("outer.ipynb", {"load": "%load_ext notebook_to_prod", **wrong})
    client = NotebookClient(
        nbformat.read("outer.ipynb", as_version=4), resources={"metadata": {"path": project.folder}}
    )
    executed = client.execute()
    for (_, kind, said), cell in zip(WRONG.values(), executed.cells[1:], strict=True):
        (error,) = (each for each in cell.outputs if each.output_type == "error")
        trace = "\n".join(error.traceback)
        assert error.ename == kind
        assert said in trace
        assert trace.count("\n") < 8, trace
        assert "site-packages" not in trace


def test_verbose_mode_shows_every_frame(project: Project) -> None:
    cells = {"mode": "%xmode Verbose", "wrong": "import notebook_to_prod as n2p\nn2p.load('nowhere.csv')"}
    project.notebook("outer.ipynb", cells)
    assert project.papermill("outer.ipynb", "out.ipynb").code != 0
    assert "Traceback (most recent call last)" in text_of(project.folder / "out.ipynb", "wrong")


# A run that fails


def test_a_failed_run_names_the_cell_and_shows_its_traceback(project: Project) -> None:
    project.notebook("train.ipynb", MARKED | {"fit": "rows = []\nfirst = rows[0]"})
    done = project.n2p("run", "train.ipynb")
    assert done.code == 2
    for said in ("cell 'fit'", "4th code cell", "line 2", "cell 4: rows = []", "IndexError", "first = rows[0]"):
        assert said in done.stderr, said
    failed = project.run("train.ipynb")
    assert failed.error["cell_number"] == 4
    assert failed.error["first_line"] == "rows = []"
    assert "IndexError" in failed.error["cell_traceback"]


def test_the_traceback_of_a_cell_hides_secrets(project: Project) -> None:
    project.notebook("train.ipynb", {"parameters": "token = 'none'", "fail": "raise ValueError('with ' + token)"})
    done = project.n2p("run", "train.ipynb", "-p", "token", "@env:TOKEN", TOKEN="hunter2hunter2")
    assert done.code == 2
    assert "ValueError" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


# What nouns show


def test_nothing_in_a_table_is_markup() -> None:
    shown = Shown(HOSTILE, (HOSTILE, ""), ((HOSTILE, "a\nb"),), (True,), Badge(HOSTILE, "bad", (HOSTILE,)))
    for form in (shown.html(), shown.markdown()):
        assert "<script" not in form
    head, _, row = shown.markdown().rpartition("\n\n")[2].strip().split("\n")
    assert row.replace("\\|", "").count("|") == head.replace("\\|", "").count("|") == 3
    assert "script>" not in plain_markdown(HOSTILE)


def test_no_style_sheet_no_script_and_no_colour_of_a_page() -> None:
    page = Shown("a", ("b",), (("c",),), badge=Badge("draft")).html()
    assert "background" not in page
    assert "class=" not in page
    assert "http" not in page


@pytest.fixture
def nouns(ridges: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, Displayed]:
    """One of each that a run makes."""
    from notebook_to_prod.package.bundle import open_bundle
    from notebook_to_prod.package.lineage import lineage_of
    from notebook_to_prod.project import open_store
    from notebook_to_prod.train.record import list_runs

    monkeypatch.chdir(ridges.folder)
    run = list_runs(open_store())[0]
    assert run.bundle_path and run.bundle
    bundle = open_bundle(run.bundle_path, run.bundle)
    return {"run": run, "bundle": bundle, "schema": bundle.schema, "lineage": lineage_of(run)}


def test_every_noun_of_a_run_shows_itself_in_three_forms(nouns: dict[str, Displayed]) -> None:
    for name, noun in nouns.items():
        bundle = noun._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/markdown", "text/html"}, name
        assert "<table" in bundle["text/html"], name
        assert bundle["text/plain"].count("\n") > 1, name


def test_a_draft_looks_other_than_what_can_be_promoted(nouns: dict[str, Displayed]) -> None:
    from notebook_to_prod.package.session import Run

    run, bundle = nouns["run"], nouns["bundle"]
    assert "✓ recorded run" in bundle._repr_html_()
    assert "! draft" in Run(seed=1)._repr_html_()
    assert "n2p run" in Run(seed=1)._repr_html_()
    assert isinstance(run, RunRecord)
    assert "✗ not promotable" in replace(run, status="failed", bundle=None)._repr_html_()
    hostile = replace(run, notebook_path=HOSTILE, metrics={HOSTILE: 0.5})
    assert "<script" not in hostile._repr_html_() + hostile._repr_markdown_()


def test_a_gate_report_says_which_gates_stand_in_the_way() -> None:
    from notebook_to_prod.package.gates.verdict import Report, Verdict

    verdicts = (Verdict("metrics.floor", "fail", HOSTILE), Verdict("data.schema", "pass", "fits"))
    failed, passed = Report("sha256:1", "p", verdicts), Report("sha256:1", "p", verdicts[1:])
    assert "✗ not promotable</b>" in failed._repr_html_()
    assert "<br>metrics.floor" in failed._repr_html_()
    assert "✓ passed" in passed._repr_html_()
    assert "! nothing proved" in Report("sha256:1", "p", ())._repr_html_()
    assert "<script" not in failed._repr_html_()


def test_a_registry_and_what_it_lists_show_themselves(
    ridges: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from notebook_to_prod.project import Store
    from notebook_to_prod.release.graph import lineage_graph
    from notebook_to_prod.release.registry import Registry
    from notebook_to_prod.release.views import list_models, show_model
    from notebook_to_prod.serve.predictor import load_predictor
    from notebook_to_prod.train.record import list_runs

    copied = ridges.copy_to(make_project(tmp_path / "copy"))
    monkeypatch.chdir(copied.folder)
    store = Store(copied.home)
    registry = Registry(store)
    version = registry.register(list_runs(store)[0], "ridge")
    registry.promote("ridge", version.version)
    live = registry.resolve("ridge")
    bundle = registry.bundle(live)
    nouns = [registry, live, *list_models(registry), show_model(registry, "ridge"), lineage_graph(registry, live)]
    for noun in [*nouns, load_predictor(bundle.path, bundle.digest, "ridge", "1")]:
        assert isinstance(noun, Displayed)
        assert "ridge" in noun._repr_html_(), noun
    assert "@production" in live._repr_html_()
    assert "@production 1" in registry._repr_html_()
