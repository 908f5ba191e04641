"""`n2p run` end to end: the same notebook however it is run, whatever it is called, and wherever its store is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scrapbook
from notebooks import SCRIPTS, Done, Project, finish, make_project, markdown

import notebook_to_prod
from notebook_to_prod.errors import CellError, NotebookError, NotFoundError, RunError
from notebook_to_prod.train.notebook import read_notebook
from notebook_to_prod.train.record import RunRecord, read_record
from notebook_to_prod.train.scraps import decode, read_scraps

TABLE = "hour,late\n" + "".join(f"{hour},{int(hour % 7 > 3)}\n" for hour in range(60))


def outputs(notebook: str | Path) -> dict[str, str]:
    """The text that each cell of an executed notebook printed or showed, by cell id."""
    cells = json.loads(Path(notebook).read_text("utf-8"))["cells"]
    return {
        cell["id"]: "".join(
            "".join(each.get("text", each.get("data", {}).get("text/plain", ""))) for each in cell["outputs"]
        )
        for cell in cells
        if cell["cell_type"] == "code"
    }


# One notebook, run in every way

TRAINING = {
    "title": markdown("# Delays", "title"),
    "parameters": "data = 'flights.csv'\nstrength = 1.0\nseed = 3",
    "open": """
        import notebook_to_prod as n2p
        from sklearn.linear_model import LogisticRegression
        run = n2p.start(seed=seed)
        flights = n2p.load(data)
        """,
    "fit": """
        X, y = flights[["hour"]].sample(frac=1), None
        y = flights["late"].loc[X.index]
        model = LogisticRegression(C=strength).fit(X[:40], y[:40])
        run.metric("accuracy", model.score(X[40:], y[40:]))
        run.metric("weight", model.coef_[0, 0])
        run.export(model, X[:40], y[:40], X[40:], y[40:])
        """,
    "draft": "print(run.is_draft)",
}


@dataclass(frozen=True)
class Ways:
    """A project in which one notebook has been run in four ways, with the same parameters."""

    project: Project
    command: Done  # n2p run
    elsewhere: Done  # n2p run from another folder, by a caller with another hash seed
    engine: Done  # papermill --engine notebook_to_prod
    plain: Done  # papermill
    digests: dict[str, str]  # Of the bundles, by way


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Ways:
    project = make_project(tmp_path_factory.mktemp("ways"))
    notebook = project.notebook("train.ipynb", TRAINING)
    (project.folder / "flights.csv").write_text(TABLE)
    (project.folder / "elsewhere").mkdir()
    given = ("-p", "strength", "0.5")
    command = project.run("train.ipynb", *given)  # with the hash seed that the fork server has drawn
    elsewhere = project.run(notebook, "--force", *given, cwd=project.folder / "elsewhere", PYTHONHASHSEED="2")
    engine = project.command("papermill", "--engine", "notebook_to_prod", "train.ipynb", "engine.ipynb", *given)
    plain = project.papermill("train.ipynb", "plain.ipynb", *given)
    for done in (command, elsewhere, engine, plain):
        assert done.code == 0, done
    digests = {way: scraps(project.folder / f"{way}.ipynb")["n2p/bundle"] for way in ("engine", "plain")}
    return Ways(project, command, elsewhere, engine, plain, digests)


def scraps(notebook: Path) -> dict[str, Any]:
    return {name: scrap.value for name, scrap in read_scraps(json.loads(notebook.read_text("utf-8"))).items()}


def engine_record(ways: Ways) -> dict[str, Any]:
    """The record of the run that papermill's engine made."""
    others = {ways.command.json["run_id"], ways.elsewhere.json["run_id"]}
    (run_id,) = {folder.name for folder in ways.project.run_folders} - others
    return ways.project.record(run_id)


def test_four_ways_give_equal_metrics(ways: Ways) -> None:
    expected = ways.command.json["metrics"]
    assert expected.keys() == {"accuracy", "weight"}
    assert ways.elsewhere.json["metrics"] == expected
    for name in ("engine.ipynb", "plain.ipynb"):
        found = scraps(ways.project.folder / name)
        assert {metric: found[metric] for metric in expected} == expected


def test_the_same_spec_gives_the_same_key_and_bundle(ways: Ways) -> None:
    assert ways.command.json["run_key"] == ways.elsewhere.json["run_key"] == engine_record(ways)["run_key"]
    assert ways.command.json["bundle"] == ways.elsewhere.json["bundle"] == ways.digests["engine"]


def test_the_same_spec_gives_different_runs(ways: Ways) -> None:
    assert ways.command.json["run_id"] != ways.elsewhere.json["run_id"]
    assert ways.command.json["output_notebook"] != ways.elsewhere.json["output_notebook"]


def test_plain_papermill_makes_a_draft(ways: Ways) -> None:
    assert "True" in outputs(ways.project.folder / "plain.ipynb")["draft"]
    assert "False" in outputs(ways.project.folder / "engine.ipynb")["draft"]
    assert "False" in outputs(ways.command.json["output_notebook"])["draft"]
    assert ways.digests["plain"] != ways.digests["engine"]
    assert len(ways.project.run_folders) == 3


def test_a_folder_of_a_project_has_no_store_of_its_own(ways: Ways) -> None:
    assert [path.name for path in ways.project.folder.rglob(".n2p")] == [".n2p"]
    assert ways.elsewhere.json["folder"].startswith(str(ways.project.home))


def test_json_says_what_a_script_needs(ways: Ways) -> None:
    said = ways.command.json
    assert said["status"] == "finished"
    assert said["parameters"] == {"data": "flights.csv", "strength": 0.5, "seed": 3}
    assert said["spec"]["parameters"] == {"strength": 0.5}
    assert said["spec"]["seed"] == 3
    assert said["run_key"].startswith("sha256:")
    assert said["bundle"].startswith("sha256:")
    assert (Path(said["bundle_path"]) / "manifest.json").is_file()
    assert Path(said["output_notebook"]).is_file()
    assert [(each["source"], each["rows"], list(each["schema"])) for each in said["datasets"]] == [
        ("flights.csv", 60, ["hour", "late"])
    ]


def test_json_is_the_record(ways: Ways) -> None:
    assert ways.project.record(ways.command.json["run_id"]) == ways.command.json


def test_mlflow_has_parameters_and_metrics(ways: Ways) -> None:
    for run_id in (ways.command.json["run_id"], engine_record(ways)["run_id"]):
        tracked = ways.project.tracked(run_id)
        assert tracked.info.status == "FINISHED"
        assert tracked.data.params == {"data": "flights.csv", "strength": "0.5", "seed": "3"}
        assert tracked.data.metrics == ways.command.json["metrics"]
        assert tracked.data.tags["n2p.run_key"] == ways.command.json["run_key"]
        assert tracked.data.tags["n2p.bundle"] == ways.command.json["bundle"]


def test_scrapbook_reads_the_metrics(ways: Ways) -> None:
    found = scrapbook.read_notebook(ways.command.json["output_notebook"]).scraps
    assert found["accuracy"].data == ways.command.json["metrics"]["accuracy"]


def test_a_bundle_knows_no_place_and_no_time(ways: Ways) -> None:
    for file in Path(ways.command.json["bundle_path"]).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(ways.project.folder).encode() not in content, file
            assert ways.command.json["run_id"].encode() not in content, file


def test_the_input_is_kept_as_it_was(ways: Ways) -> None:
    kept = read_notebook(Path(ways.command.json["folder"]) / "input.ipynb")
    assert (
        kept.digest
        == read_notebook(ways.project.folder / "train.ipynb").digest
        == ways.command.json["spec"]["notebook"]
    )


# Names and places


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done]:
    """A run in which every name is unusual and every path relative to something else."""
    project = make_project(tmp_path_factory.mktemp("odd é {x}"))
    project.notebook(
        "dir ü {0}/train {y} \N{SNOWMAN}.ipynb",
        {
            "parameters": "theirs = ''",
            "première cellule {é}": """
                import os, pathlib
                import notebook_to_prod as n2p
                run = n2p.start(seed=1)
                rows = len(n2p.load("beside.csv")) * 10 + len(n2p.load(theirs))
                """,
            "measure": """
                run.metric("rows", rows)
                run.metric("nan", float("nan"))
                run.metric("inf", float("-inf"))
                run.metric("a name / with é: {x}", 1)
                print(pathlib.Path.cwd().name, os.environ["TZ"], os.environ["PYTHONHASHSEED"])
                """,
            "below Python": """
                import subprocess, sys
                _ = os.write(1, b"written to the descriptor\\n")
                _ = os.write(2, b"written to the descriptor\\n")
                _ = subprocess.run([sys.executable, "-c", "print('by a child')"])
                """,
        },
    )
    (project.folder / "dir ü {0}" / "beside.csv").write_text("a\n1\n2\n")
    caller = project.folder / "caller {z}"
    caller.mkdir()
    (caller / "mine.csv").write_text("a\n1\n2\n3\n")
    done = project.run(
        "../dir ü {0}/train {y} \N{SNOWMAN}.ipynb", "-p", "theirs", "mine.csv", "-o", "out {o}/é.ipynb", cwd=caller
    )
    return project, done


def test_standard_output_is_one_json_object_whatever_the_notebook_writes(odd: tuple[Project, Done]) -> None:
    _, done = odd
    assert done.code == 0, done
    assert done.stdout.startswith("{")
    assert done.json["status"] == "finished"
    assert "by a child" in outputs(done.json["output_notebook"])["below Python"]


@pytest.fixture(scope="module")
def odd_record(odd: tuple[Project, Done]) -> dict[str, Any]:
    project, done = odd
    assert done.code == 0, done
    (folder,) = project.run_folders
    return project.record(folder.name)


def test_data_is_found_beside_the_notebook_and_beside_the_caller(odd_record: dict[str, Any]) -> None:
    assert odd_record["metrics"]["rows"] == 23
    assert [each["source"] for each in odd_record["datasets"]] == ["beside.csv", "mine.csv"]


def test_the_kernel_works_in_the_notebooks_folder_in_a_fixed_environment(odd_record: dict[str, Any]) -> None:
    assert outputs(odd_record["output_notebook"])["measure"].count("dir ü {0} UTC 0") == 1


def test_nan_and_infinity_are_text_in_json(odd_record: dict[str, Any]) -> None:
    assert (odd_record["metrics"]["nan"], odd_record["metrics"]["inf"]) == ("nan", "-inf")
    assert odd_record["metrics"]["a name / with é: {x}"] == 1.0


def test_cells_keep_their_ids(odd_record: dict[str, Any]) -> None:
    assert "première cellule {é}" in outputs(odd_record["output_notebook"])


def test_the_output_is_also_where_it_was_asked_for(odd: tuple[Project, Done], odd_record: dict[str, Any]) -> None:
    copy = odd[0].folder / "caller {z}" / "out {o}" / "é.ipynb"
    assert copy.read_bytes() == Path(odd_record["output_notebook"]).read_bytes()


def test_an_output_that_cannot_be_written_is_refused_before_the_run(project: Project) -> None:
    project.notebook("train.ipynb", {"fit": "1"})
    done = project.run("train.ipynb", "-o", ".")
    assert done.code == done.error["exit_code"] in (2, 3)
    assert "N2P_HOME" not in done.error["remedy"]
    assert project.run_folders == []


# Notebooks of every make, run in this process


def run_here(project: Project, name: str = "train.ipynb", **options: Any) -> RunRecord:
    """Run a notebook of the project by the Python API."""
    return notebook_to_prod.run_notebook(project.folder / name, **options)


def write(project: Project, content: Any, name: str = "train.ipynb") -> None:
    """Write JSON, text or bytes as a notebook."""
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    (project.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def old_cell(source: Any = "1 + 1", **changes: Any) -> dict[str, Any]:
    """A cell of format 4.2, which has no id."""
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
    return {name: value for name, value in (cell | changes).items() if value != "absent"}


def old_notebook(*cells: Any, **changes: Any) -> dict[str, Any]:
    """A notebook of format 4.2 without kernelspec."""
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 2} | changes


def test_a_notebook_of_format_4_2_without_kernelspec_runs(project: Project) -> None:
    write(project, old_notebook(old_cell(["a = 1\n", "a + 1"]), old_cell("a + 2")))
    record = run_here(project)
    assert record.status == "finished"
    assert outputs(record.output_notebook) == {"cell-0": "2", "cell-1": "3"}


def test_a_notebook_of_another_kernels_name_runs_and_takes_parameters(project: Project) -> None:
    kernelspec = {"name": "my-environment", "display_name": "mine"}
    project.notebook("train.ipynb", {"parameters": "n = 3", "show": "n"}, kernelspec=kernelspec)
    assert outputs(run_here(project, parameters={"n": 4}).output_notebook)["show"] == "4"


def test_magics_shell_await_and_20_megabytes_of_output(project: Project) -> None:
    project.notebook(
        "train.ipynb",
        {
            "shell": "%env N2P_TEST=5\n!echo shell",
            "await": "import asyncio\nawait asyncio.sleep(0)",
            "cell-magic": "%%bash\necho bash",
            "surrogate": "print('a\\udcffb')",
            "flood": "for line in range(200_000): print('y' * 99)",
        },
    )
    record = run_here(project)
    shown = outputs(record.output_notebook)
    assert "shell" in shown["shell"]
    assert "bash" in shown["cell-magic"]
    assert len(shown["flood"]) == 20_000_000


def test_an_executed_notebook_can_be_run_again_and_records_what_it_ran_with(project: Project) -> None:
    project.notebook("train.ipynb", {"parameters": "n = 3", "show": "n"})
    first = run_here(project, parameters={"n": 5}, output="executed.ipynb")
    again = run_here(project, "executed.ipynb")
    assert first.parameters == {"n": 5}
    assert str(again.parameters["n"]) == outputs(again.output_notebook)["show"]


@pytest.mark.parametrize(
    "content",
    ["", "hello", "[]", "null", "{}", '{"cells": {}}', b"\xff\xfe", json.dumps(old_notebook(old_cell()))[:-20]],
    ids=["empty", "text", "list", "null", "no cells", "cells no list", "no utf-8", "cut off"],
)
def test_what_is_no_notebook_is_refused(project: Project, content: str | bytes) -> None:
    write(project, content)
    with pytest.raises(NotebookError) as caught:
        run_here(project)
    assert "train.ipynb" in str(caught.value.where)
    assert project.run_folders == []


MALFORMED = {
    "cells are numbers": old_notebook(1, 2),
    "metadata is null": old_notebook(old_cell(), metadata=None),
    "kernelspec is null": old_notebook(old_cell(), metadata={"kernelspec": None}),
    "minor is text": old_notebook(old_cell(), nbformat_minor="5"),
    "source is null": old_notebook(old_cell(None)),
    "tags are null": old_notebook(old_cell(metadata={"tags": None})),
    "metadata of a cell is a list": old_notebook(old_cell(metadata=[])),
    "outputs are absent": old_notebook(old_cell(outputs="absent")),
    "a lone surrogate in a cell": old_notebook(old_cell("'\ud800'")),
    "NaN in an old output": old_notebook(
        old_cell(outputs=[{"output_type": "display_data", "metadata": {}, "data": {"application/json": float("nan")}}])
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_runs_or_is_refused(project: Project, name: str) -> None:
    write(project, MALFORMED[name])
    try:
        assert run_here(project).status == "finished"
    except NotebookError as error:
        assert not isinstance(error, RunError)
        assert project.run_folders == []


def test_nesting_without_end_is_refused(project: Project) -> None:
    write(project, "[" * 100_000)
    with pytest.raises(NotebookError):
        run_here(project)


@pytest.mark.parametrize(
    "cells", [{"a": markdown("# only prose", "a")}, {"a": "   \n"}, {}], ids=["markdown", "blank", "none"]
)
def test_without_code_it_is_refused(project: Project, cells: dict[str, Any]) -> None:
    project.notebook("train.ipynb", cells)
    with pytest.raises(NotebookError, match="no code cells"):
        run_here(project)
    assert project.run_folders == []


@pytest.mark.parametrize(
    "metadata",
    [{"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}, {"language_info": {"name": "R"}}],
    ids=["kernelspec", "language_info"],
)
def test_a_notebook_of_another_language_is_refused(project: Project, metadata: dict[str, Any]) -> None:
    write(project, old_notebook(old_cell("x <- 1"), metadata=metadata))
    with pytest.raises(NotebookError, match="written in R"):
        run_here(project)
    assert project.run_folders == []


@pytest.mark.parametrize("name", ["missing.ipynb", "."])
def test_a_missing_notebook_is_refused(project: Project, name: str) -> None:
    with pytest.raises(NotFoundError):
        run_here(project, name)


@pytest.mark.parametrize("variables", [{"N2P_THREADS": "all"}, {"N2P_THREADS": "0"}])
def test_bad_settings_leave_no_run_behind(project: Project, variables: dict[str, str]) -> None:
    project.notebook("train.ipynb", {"fit": "1"})
    done = project.run("train.ipynb", **variables)
    assert (done.code, done.error["type"]) == (2, "ParameterError")
    assert project.run_folders == []


# Cells that fail, run in this process


def failure(project: Project, cells: dict[str, Any], **options: Any) -> CellError:
    """The error that a notebook ends with; its record says the same."""
    project.notebook("train.ipynb", cells, **options)
    with pytest.raises(CellError) as caught:
        run_here(project)
    (folder,) = project.run_folders
    record = project.record(folder.name)
    assert record["status"] == "failed"
    assert record["error"] == json.loads(json.dumps(caught.value.to_dict()))
    assert caught.value.run_id == folder.name
    assert project.tracked(folder.name).info.status == "FAILED"
    return caught.value


def test_a_cell_that_may_raise_fails_the_run_and_the_rest_still_runs(project: Project) -> None:
    error = failure(project, {"may": "1/0", "later": "print('later')"}, tagged={"may": ["raises-exception"]})
    assert (error.cell_id, error.what) == ("may", "cell 'may' raised ZeroDivisionError: division by zero")
    assert outputs(project.run_folders[0] / "output.ipynb")["later"] == "later\n"


@pytest.mark.parametrize("cell", ["%no_such_magic", "print(1)\n%%time\n2"])
def test_a_misused_magic_fails_the_run(project: Project, cell: str) -> None:
    assert failure(project, {"magic": cell, "later": "1"}).cell_id == "magic"


def test_an_error_that_cannot_be_shown_fails_the_run(project: Project) -> None:
    source = "class Odd(Exception):\n    def __str__(self): raise RuntimeError('no text')\nraise Odd"
    assert failure(project, {"odd": source}).cell_id == "odd"


def test_exit_0_in_the_last_cell_ends_the_notebook_well(project: Project) -> None:
    project.notebook("train.ipynb", {"end": "import sys; sys.exit(0)", "nothing": ""})
    assert run_here(project).status == "finished"


def test_exit_0_before_the_last_cell_fails_the_run(project: Project) -> None:
    raised = failure(project, {"end": "import sys; sys.exit(0)", "never": "1/0"})
    assert raised.cell_id == "end" and "1 cells after it were not run" in raised.what


def test_exit_3_in_a_cell_fails_the_run(project: Project) -> None:
    assert "SystemExit: 3" in failure(project, {"end": "import sys; sys.exit(3)"}).what


# Stores and MLflow


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_file_where_the_store_should_be(project: Project, home: str) -> None:
    project.notebook("train.ipynb", {"fit": "1"})
    (project.folder / "file").touch()
    done = project.run("train.ipynb", N2P_HOME=home)
    assert (done.code, done.error["type"]) == (3, "StoreError")
    assert done.error["where"].startswith(str(project.folder / "file"))
    assert "N2P_HOME" in done.error["remedy"]


def run_limited(project: Project, size: int) -> Done:
    """Run `train.ipynb` with no file growing larger than `size` bytes, as on a full disk."""
    limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", limit, SCRIPTS / "n2p", "run", "train.ipynb", "--json"]
    done = subprocess.run(command, cwd=project.folder, env=project.environment({}), capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def test_no_room_for_the_record(project: Project) -> None:
    project.notebook("train.ipynb", {"fit": "1"})
    done = run_limited(project, 100)
    assert (done.code, done.error["type"]) == (3, "StoreError")


def test_no_room_for_the_output(project: Project) -> None:
    project.notebook("train.ipynb", {"flood": "for line in range(30_000): print('y' * 99)"})
    done = run_limited(project, 2_000_000)
    assert (done.code, done.error["type"]) == (3, "StoreError")
    (folder,) = project.run_folders
    assert project.record(folder.name)["status"] == "failed"


@pytest.mark.parametrize(
    ("cell", "code", "kind", "status"), [("1", 3, "TrackingError", "finished"), ("1/0", 2, "CellError", "failed")]
)
def test_without_mlflows_server_the_record_is_kept(
    project: Project, cell: str, code: int, kind: str, status: str
) -> None:
    project.notebook("train.ipynb", {"open": "import notebook_to_prod as n2p\nn2p.start().metric('m', 1)", "fit": cell})
    done = project.run("train.ipynb", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    (folder,) = project.run_folders
    record = project.record(folder.name)
    assert (done.code, done.error["type"]) == (code, kind)
    assert (record["status"], record["metrics"]) == (status, {"m": 1.0})
    assert "http://127.0.0.1:9" in done.stderr  # said even when the cell's failure is the greater news
    assert folder.name in done.stdout + done.stderr  # the record can be found


def test_mlflow_is_told_no_path_of_this_machine(project: Project) -> None:
    notebook = project.notebook("models/train.ipynb", {"fit": "1"})
    done = project.run(notebook.resolve())
    assert done.code == 0, done
    assert project.tracked(done.json["run_id"]).data.tags["n2p.notebook"] == "models/train.ipynb"
    assert done.json["notebook_path"] == str(notebook.resolve())


def test_a_damaged_database_is_a_tracking_error(project: Project) -> None:
    project.notebook("train.ipynb", {"fit": "1"})
    project.home.mkdir()
    (project.home / "mlflow.db").write_text("no database" * 100)
    done = project.run("train.ipynb")
    assert (done.code, done.error["type"]) == (3, "TrackingError")


@pytest.mark.parametrize("runs", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_runs_at_once_on_a_fresh_store(project: Project, runs: int) -> None:
    project.notebook(
        "train.ipynb", {"parameters": "n = 0", "fit": "import notebook_to_prod as n2p\nn2p.start().metric('m', n)"}
    )
    processes = [project.start("n2p", "run", "train.ipynb", "--json", "-p", "n", str(n)) for n in range(runs)]
    done = [finish(process) for process in processes]
    assert [each.code for each in done] == [0] * runs, done
    tracked = [project.tracked(each.json["run_id"]) for each in done]
    assert [each.data.metrics for each in tracked] == [{"m": float(n)} for n in range(runs)]
    assert {each.info.status for each in tracked} == {"FINISHED"}
    assert len(project.run_folders) == runs


def test_json_shows_parameters_as_json_and_the_record_keeps_them_as_they_were(project: Project) -> None:
    project.notebook(
        "train.ipynb", {"parameters": "until = None\nshape = (3, 2)\nlimits = [1.5]", "show": "until, shape"}
    )
    said = project.run("train.ipynb", "-p", "limits", "[NaN, 2]").json
    assert said["parameters"] == {"until": None, "shape": [3, 2], "limits": ["nan", 2]}
    assert said["spec"]["parameters"] == {"limits": ["nan", 2]}
    kept = read_record(project.run_folders[0]).parameters
    assert decode(kept["until"]) is None and decode(kept["shape"]) == (3, 2)
