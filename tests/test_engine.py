"""A run that fails says where, keeps what it has and leaves no process behind; a secret stays in the kernel."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import signal
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from notebooks import Done, Project, finish, make_project

from notebook_to_prod.train.scraps import read_scraps


def wait_for(condition: Callable[[], Any], process: Any = None, patience: float = 120) -> Any:
    """Wait until `condition` holds; `patience` only keeps a broken package from blocking the suite."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    return value


def cells(notebook: Path) -> dict[str, dict[str, Any]]:
    """The code cells of a notebook by id."""
    return {
        each["id"]: each for each in json.loads(notebook.read_text("utf-8"))["cells"] if each["cell_type"] == "code"
    }


# What fails

OPEN = """
    import os, signal, time
    import notebook_to_prod as n2p
    n2p.start(seed=1).metric("before", 1)
    print("early")
    """


@dataclass(frozen=True)
class Failure:
    """A run that has failed, by the installed command."""

    project: Project
    done: Done

    @property
    def folder(self) -> Path:
        (folder,) = self.project.run_folders
        return folder

    @property
    def record(self) -> dict[str, Any]:
        return self.project.record(self.folder.name)

    def check(self, kind: str, cell: str, status: str = "FAILED") -> None:
        """What holds for every failure of a cell: exit code, error, record, partial notebook, MLflow."""
        code = 130 if kind == "RunInterruptedError" else 2
        assert (self.done.code, self.done.error["type"], self.done.error["exit_code"]) == (code, kind, code), self.done
        assert (self.done.error["cell_id"], self.done.error["run_id"]) == (cell, self.folder.name)
        assert f"cell '{cell}'" in self.done.error["where"]
        assert self.done.error["remedy"]
        assert (self.record["status"], self.record["error"]) == ("failed", self.done.error)
        assert self.record["metrics"] == {"before": 1.0}
        assert "early" in json.dumps(cells(self.folder / "output.ipynb")["open"]["outputs"])
        tracked = self.project.tracked(self.folder.name)
        assert (tracked.info.status, tracked.data.metrics) == (status, {"before": 1.0})


def fail(project: Project, source: str, *arguments: str) -> Failure:
    """Run a notebook whose cell `work` does `source`."""
    project.notebook("train.ipynb", {"open": OPEN, "work": source, "never": "print('never')"})
    return Failure(project, project.run("train.ipynb", *arguments))


def test_a_failing_cell_keeps_the_remedy_of_our_errors(project: Project) -> None:
    failed = fail(project, "n2p.load('missing.csv')")
    failed.check("CellError", "work")
    assert failed.done.error["what"] == "cell 'work' raised DataError: no such file"
    assert "missing.csv" in failed.done.error["where"]
    assert "give the path of a file" in failed.done.error["remedy"]
    assert cells(failed.folder / "output.ipynb")["never"]["outputs"] == []
    assert not failed.done.stderr.count("Traceback")


@pytest.mark.parametrize("source", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_kernel_that_dies_is_named_with_its_cell(project: Project, source: str) -> None:
    fail(project, source).check("KernelDiedError", "work")


def test_a_cell_that_takes_too_long_is_stopped(project: Project) -> None:
    failed = fail(project, "open('kernel', 'w').write(str(os.getpid()))\nwhile True: pass", "--timeout", "10")
    failed.check("RunTimeoutError", "work")
    assert "--timeout" in failed.done.error["remedy"]
    assert not psutil.pid_exists(int((project.folder / "kernel").read_text()))


# What is stopped from outside

WORK = "open('kernel.part', 'w').write(str(os.getpid())); os.rename('kernel.part', 'kernel')\ntime.sleep(600)"


def test_a_run_that_leaves_by_itself_has_not_finished(project: Project) -> None:
    failed = fail(project, "import sys\nsys.exit(0)", "--allow", "N2P803")
    assert failed.done.error["type"] == "CellError" and "1 cells after it" in failed.done.error["what"], failed.done


def test_a_failing_cell_is_told_by_number_and_line(project: Project) -> None:
    where = fail(project, "ratio = 1\nratio / 0").done.error["where"]
    assert where.endswith("cell 'work', the 2nd code cell, line 2: ratio / 0")


def test_a_kernel_that_cannot_start_is_not_called_dead(project: Project) -> None:
    broken = project.folder / "broken" / "ipykernel_launcher.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('the launcher is broken')")
    project.notebook("train.ipynb", {"work": "1"})
    done = project.run("train.ipynb", PYTHONPATH=str(broken.parent))
    assert (done.code, done.error["type"]) == (3, "KernelStartError"), done
    assert "the launcher is broken" in done.error["what"]
    (folder,) = project.run_folders
    assert (project.record(folder.name)["status"], project.tracked(folder.name).info.status) == ("failed", "FAILED")


BLOCK = """
    import os
    executed = f"{os.environ['N2P_HOME']}/runs/{os.environ['N2P_RUN_ID']}/output.ipynb"
    os.remove(executed)
    os.mkdir(executed)
    """


def test_what_fails_outside_the_cells_ends_the_run_everywhere(project: Project) -> None:
    """The place of the executed notebook is taken by a folder."""
    project.notebook("train.ipynb", {"work": BLOCK})
    done = project.run("train.ipynb")
    assert (done.code, done.error["type"]) == (3, "StoreError"), done
    assert "output.ipynb" in done.error["where"]
    (folder,) = project.run_folders
    assert (project.record(folder.name)["status"], project.tracked(folder.name).info.status) == ("failed", "FAILED")


def stop(project: Project, number: signal.Signals, started: Callable[[], Any]) -> tuple[Failure, list[psutil.Process]]:
    """Send a signal to `n2p run` when it has started; also returns the processes that outlived it."""
    project.notebook("train.ipynb", {"open": OPEN, "work": WORK})
    process = project.start("n2p", "run", "train.ipynb", "--json")
    wait_for(started, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    done = finish(process)
    _, alive = psutil.wait_procs(children, timeout=30)
    for each in alive:
        each.kill()
    return Failure(project, done), alive


@pytest.fixture(scope="module", params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def stopped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Failure, list[psutil.Process]]:
    """A run that a signal has stopped in its second cell."""
    project = make_project(tmp_path_factory.mktemp("stopped"))
    return stop(project, request.param, (project.folder / "kernel").exists)


def test_a_signal_ends_the_run_and_its_record(stopped: tuple[Failure, list[psutil.Process]]) -> None:
    stopped[0].check("RunInterruptedError", "work", "KILLED")


def test_a_signal_leaves_no_process(stopped: tuple[Failure, list[psutil.Process]]) -> None:
    assert stopped[1] == []
    assert not psutil.pid_exists(int((stopped[0].project.folder / "kernel").read_text()))


def test_a_signal_is_no_traceback(stopped: tuple[Failure, list[psutil.Process]]) -> None:
    assert "Traceback" not in stopped[0].done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_kernel_starts(project: Project, number: signal.Signals) -> None:
    """As soon as there is a record, it is ended."""
    failed, alive = stop(project, number, lambda: [*project.home.glob("runs/*/input.ipynb")])
    assert (failed.done.code, failed.done.error["type"]) == (130, "RunInterruptedError"), failed.done
    assert failed.record["status"] == "failed"
    assert alive == []


def test_the_kernel_does_not_outlive_a_killed_command(project: Project) -> None:
    failed, alive = stop(project, signal.SIGKILL, (project.folder / "kernel").exists)
    assert failed.done.code == -signal.SIGKILL
    assert alive == []
    assert "early" in json.dumps(cells(failed.folder / "output.ipynb")["open"]["outputs"])


# What is secret

PASSWORD = "p<a&\"ß'\\w-correct horse"
TOKEN = "hunter2-battery-staple"
SECRETS = {"N2P_TEST_PASSWORD": PASSWORD, "N2P_TEST_TOKEN": TOKEN}
GIVEN = ("-p", "password", "@env:N2P_TEST_PASSWORD", "-p", "token", "@env:N2P_TEST_TOKEN")


def spellings(secret: str) -> set[str]:
    """The ways in which a secret is commonly written."""
    return {
        secret,
        repr(secret)[1:-1],
        repr(secret.encode())[2:-1],
        ascii(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        html.escape(secret),
        html.escape(secret, quote=False),
        urllib.parse.quote(secret),
        urllib.parse.quote_plus(secret),
        secret.encode().hex(),
        *(base64.b64encode(bytes(before) + secret.encode()).decode()[8:-4] for before in range(3)),
    }


SPELLINGS = {each for secret in SECRETS.values() for each in spellings(secret)}


def told_by(text: str | bytes) -> list[str]:
    """The spellings of secrets in a text, as they are or as a JSON string holds them."""
    data = text.encode() if isinstance(text, str) else text
    quoted = SPELLINGS | {json.dumps(each, ensure_ascii=ascii)[1:-1] for each in SPELLINGS for ascii in (True, False)}
    return sorted(each for each in quoted if each.encode() in data)


def told_by_files(folder: Path) -> dict[str, list[str]]:
    """The files below a folder that hold a secret."""
    told = {str(file.relative_to(folder)): told_by(file.read_bytes()) for file in folder.rglob("*") if file.is_file()}
    return {file: found for file, found in told.items() if found}


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from strings(item)


# Cell id to code: what people do with a password, by accident.
TELLING = {
    "print": "print(password, token)",
    "repr": "password, [token], {'password': password}",
    "frame": "import pandas as pd\npd.DataFrame({'password': [password], 'token': [token]})",
    "pieces": "sys.stdout.write(token[:7]); sys.stdout.flush(); time.sleep(0.2); print(token[7:])",
    "error-pieces": "sys.stderr.write(token[:7]); sys.stderr.flush(); time.sleep(0.2); print(token[7:], file=sys.stderr)",
    "base64": "base64.b64encode(password.encode()), base64.urlsafe_b64encode(token.encode()).decode()",
    "basic-auth": "base64.b64encode(f'user:{password}'.encode()), base64.b64encode(f'me:{token}'.encode()).decode()",
    "hexadecimal": "password.encode().hex(), token.encode().hex()",
    "bytes": "password.encode(), token.encode()",
    "ascii": "ascii(password)",
    "json": "json.dumps({'p': password}), json.dumps({'p': password}, ensure_ascii=False)",
    "url": "'https://user:' + urllib.parse.quote(password) + '@host', urllib.parse.quote_plus(password)",
    "html": "HTML('<b>' + html.escape(password) + '</b>')",
    "markdown": "Markdown(f'`{password}`')",
    "mime-value": "display({'application/json': {'deep': [password]}}, raw=True)",
    "mime-key": "display({'application/json': {password: 1, token: 2}}, raw=True)",
    "update": "display('', display_id='shown').update(password)",
    "warning": "warnings.warn(password)",
    "logging": "logging.error(token)",
    "traceback": "try:\n    raise ValueError(password)\nexcept ValueError:\n    traceback.print_exc()",
    "shell": "!printf '%s\\n' \"$N2P_TEST_TOKEN\"",
    "child": "_ = os.system('printenv N2P_TEST_PASSWORD N2P_TEST_TOKEN')",
    "scrap": "glue('told', [password]); glue(token, 1)",
}
SECRETIVE = {
    "parameters": "password = ''\ntoken = ''",
    "open": """
        import base64, hashlib, html, json, logging, os, sys, time, traceback, urllib.parse, warnings
        from IPython.display import HTML, Markdown, display
        from notebook_to_prod.train.scraps import glue
        """,
    "digest": "glue('digest', hashlib.sha256((password + token).encode()).hexdigest())",
    **TELLING,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done, Path]:
    """A run by `n2p run` whose cells tell its secrets in every way; also the executed notebook."""
    project = make_project(tmp_path_factory.mktemp("kept"))
    project.notebook("train.ipynb", SECRETIVE)
    done = project.n2p("run", "train.ipynb", "-v", *GIVEN, **SECRETS)
    assert done.code == 0, done
    (folder,) = project.run_folders
    return project, done, folder / "output.ipynb"


def test_a_secret_reaches_the_kernel(kept: tuple[Project, Done, Path]) -> None:
    digest = read_scraps(json.loads(kept[2].read_text("utf-8")))["digest"].value
    assert digest == hashlib.sha256((PASSWORD + TOKEN).encode()).hexdigest()


@pytest.mark.parametrize("cell", TELLING)
def test_no_output_tells_a_secret(kept: tuple[Project, Done, Path], cell: str) -> None:
    outputs = cells(kept[2])[cell]["outputs"]
    assert outputs, "the cell shows something"
    shown = [*strings(outputs), *("".join(each.get("text", "")) for each in outputs)]
    assert [told_by(each) for each in shown if told_by(each)] == []


def test_no_file_of_the_project_tells_a_secret(kept: tuple[Project, Done, Path]) -> None:
    assert (kept[0].home / "mlflow.db").is_file()
    assert told_by_files(kept[0].folder) == {}


def test_the_command_does_not_tell_a_secret(kept: tuple[Project, Done, Path]) -> None:
    assert told_by(kept[1].stdout + kept[1].stderr) == []


def test_record_and_mlflow_name_the_variable(kept: tuple[Project, Done, Path]) -> None:
    names = {"password": "@env:N2P_TEST_PASSWORD", "token": "@env:N2P_TEST_TOKEN"}
    run_id = kept[2].parent.name
    assert kept[0].record(run_id)["parameters"] == names
    assert kept[0].tracked(run_id).data.params == names


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done]:
    """The same notebook run by papermill with the engine, its output logged and written to a file."""
    project = make_project(tmp_path_factory.mktemp("logged"))
    project.notebook("train.ipynb", SECRETIVE)
    arguments = ("train.ipynb", "out.ipynb", *GIVEN, "--log-output", "--stdout-file", "out.txt")
    done = project.papermill("--engine", "notebook_to_prod", *arguments, **SECRETS)
    assert done.code == 0, done
    return project, done


def test_papermills_log_does_not_tell_a_secret(logged: tuple[Project, Done]) -> None:
    assert "Executing Cell" in logged[1].stderr
    assert told_by(logged[1].stdout + logged[1].stderr) == []


def test_papermills_notebook_and_the_store_do_not_tell_a_secret(logged: tuple[Project, Done]) -> None:
    digest = read_scraps(json.loads((logged[0].folder / "out.ipynb").read_text("utf-8")))["digest"].value
    assert digest == hashlib.sha256((PASSWORD + TOKEN).encode()).hexdigest()
    assert told_by_files(logged[0].folder).keys() <= {"out.txt"}


def test_papermills_file_of_output_does_not_tell_a_secret(logged: tuple[Project, Done]) -> None:
    assert told_by((logged[0].folder / "out.txt").read_bytes()) == []


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done]:
    """A run whose cell raises an error with its secrets in it; the kernel has read one of them by itself."""
    project = make_project(tmp_path_factory.mktemp("raised"))
    project.notebook(
        "train.ipynb",
        {
            "parameters": "password = ''",
            "open": "import notebook_to_prod as n2p\nprint(password)\ntoken = n2p.secret('N2P_TEST_TOKEN')",
            "connect": "raise ConnectionError(f'no access for user:{password}')",
        },
    )
    done = project.run(
        "train.ipynb", "-v", "-o", "executed.ipynb", "-p", "password", "@env:N2P_TEST_PASSWORD", **SECRETS
    )
    assert (done.code, done.error["type"], done.error["cell_id"]) == (2, "CellError", "connect"), done
    return project, done


def test_an_error_does_not_tell_a_secret(raised: tuple[Project, Done]) -> None:
    project, done = raised
    assert told_by(done.stdout + done.stderr) == []
    assert told_by_files(project.folder) == {}
    assert "no access for user:[secret]" in done.error["what"]


def test_an_executed_notebook_run_again_does_not_tell_a_secret(raised: tuple[Project, Done], project: Project) -> None:
    executed = project.folder / "again.ipynb"
    executed.write_bytes((raised[0].folder / "executed.ipynb").read_bytes())
    done = project.run(executed, **SECRETS)
    assert told_by(done.stdout + done.stderr) == []
    assert told_by_files(project.folder) == {}


def test_a_secret_that_the_notebook_reads_itself_is_not_told(project: Project) -> None:
    source = "import notebook_to_prod as n2p\nname = 'N2P_TEST_TOKEN'\nprint(n2p.secret(name))"
    project.notebook("train.ipynb", {"read": source, "later": "print(n2p.secret(name))"})
    assert project.run("train.ipynb", **SECRETS).code == 0
    assert told_by_files(project.folder) == {}


# papermill's own command


def test_papermill_with_the_engine_fails_and_records(project: Project) -> None:
    project.notebook("train.ipynb", {"open": OPEN, "work": "1/0"})
    done = project.papermill("--engine", "notebook_to_prod", "train.ipynb", "out.ipynb")
    (folder,) = project.run_folders
    record = project.record(folder.name)
    assert done.code != 0
    assert (record["status"], record["error"]["type"], record["error"]["cell_id"]) == ("failed", "CellError", "work")
    assert (folder / "output.ipynb").is_file()
    assert project.tracked(folder.name).info.status == "FAILED"


def test_papermill_with_the_engine_says_what_cannot_be_reproduced(project: Project) -> None:
    project.notebook(
        "train.ipynb", {"parameters": "seed = 1", "draw": "import numpy as np\nprint(seed, np.random.rand())"}
    )
    done = project.papermill("--engine", "notebook_to_prod", "train.ipynb", "out.ipynb")
    assert done.code == 0, done
    assert "N2P" in done.stderr and "'draw'" in done.stderr


@pytest.mark.parametrize("first", ["papermill", "notebook_to_prod.train.engine"])
def test_papermill_and_the_engine_are_imported_in_any_order(project: Project, first: str) -> None:
    ask = f"import {first}, papermill.engines as e; print(e.papermill_engines.get_engine('notebook_to_prod').nb_kernel_name)"
    done = project.command("python", "-c", ask)
    assert done.code == 0 and "NotebookToProdEngine" in done.stdout, done


@pytest.mark.parametrize(
    "given", [("-p", "rat", "0.5"), ("-p", "rate", "fast"), ("-p", "password", "@env:N2P_TEST_UNSET")], ids=" ".join
)
def test_papermill_with_the_engine_refuses_what_n2p_refuses(project: Project, given: tuple[str, ...]) -> None:
    project.notebook("train.ipynb", {"parameters": "rate = 0.1\npassword = ''", "work": "rate"})
    done = project.papermill("--engine", "notebook_to_prod", "train.ipynb", "out.ipynb", *given)
    assert done.code != 0
    assert "ParameterError" in done.stderr
    assert project.run_folders == []
