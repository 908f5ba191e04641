"""Projects for the tests: small notebooks with stable cell ids, and the installed commands that run them."""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver, reduction
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, TextIO

import psutil
import pytest
from filelock import FileLock
from raised import variables as recorded

from notebook_to_prod.cli.app import main

if TYPE_CHECKING:
    from mlflow.entities import Run

PYTHON3 = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def code(source: str, id: str, tags: Iterable[str] = ()) -> dict[str, Any]:
    """Return a code cell that has not run."""
    metadata = {"tags": [*tags]} if tags else {}
    return {
        "cell_type": "code",
        "id": id,
        "metadata": metadata,
        "execution_count": None,
        "outputs": [],
        "source": dedent(source).strip(),
    }


def markdown(source: str, id: str) -> dict[str, Any]:
    """Return a markdown cell."""
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": dedent(source).strip()}


def make_notebook(
    path: Path,
    cells: Mapping[str, str | dict[str, Any]],  # Cell id to its code, or to a cell of `code` or `markdown`
    *,
    tagged: Mapping[str, Iterable[str]] | None = None,  # Cell id to its tags; the cell `parameters` has its tag anyway
    kernelspec: Mapping[str, str] | None = PYTHON3,
) -> Path:
    """Write a notebook of format 4.5 to `path`, its folders too, and return `path`."""
    tags = {"parameters": ("parameters",), **(tagged or {})}
    made = [cell if isinstance(cell, dict) else code(cell, id, tags.get(id, ())) for id, cell in cells.items()]
    metadata = {"kernelspec": dict(kernelspec), "language_info": {"name": "python"}} if kernelspec else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}), "utf-8")
    return path


SCRIPTS = Path(sysconfig.get_path("scripts"))
# What would change the meaning of a command: settings of the developer, and pytest's own mark, which ipykernel looks for.
CLEARED = ("N2P_", "MLFLOW_", "JPY_", "JUPYTER_", "PYTEST_", "PYTHONHASHSEED", "PYTHONPATH")

# What tests promote need not be sealed, nor pass the gates
UNSEALED = {"N2P_REQUIRE_SEAL": "0", "N2P_REQUIRE_GATE": "0"}

# With a process of pytest for each core, the threads of numeric libraries would wait for each other, at full speed and for
# ten times as long as the work takes. What is about threads takes these away, or asks for more.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "N2P_THREADS": "1"}
SETTINGS = UNSEALED | ONE_THREAD


LIMIT = 240  # Seconds; only keeps a command that hangs from blocking the suite
AT_START = {"PYTHONHASHSEED"}  # Variables that only a new interpreter obeys
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["preloaded"])


def start_forks() -> None:
    """Start the fork server, if it does not run, with this folder on its path: it passes over what it cannot import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # Python 3.11 gives it no `sys.path`
        forkserver.ensure_running()


def become(arguments: list[str], variables: dict[str, str]) -> None:
    """Take on the arguments and variables of another process, in one of the fork server."""
    assert "preloaded" in sys.modules, "the fork server could not import it, which it does not say"
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # as the variables say, not those of the fork server
    sys.argv = arguments


def forked(program: str, arguments: list[str], folder: Path, variables: dict[str, str], *outputs: Path) -> None:
    """What a process of the fork server does: become `n2p` or `papermill` in that folder, with those variables and outputs."""
    for path, descriptor in zip(outputs, (1, 2), strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    become([program, *arguments], variables)
    try:
        if program == "papermill":
            from papermill.cli import papermill

            papermill()
        main()
    finally:
        atexit._run_exitfuncs()


def scripted(source: str, arguments: list[str], variables: dict[str, str], said: int, log: Path) -> None:
    """What a process of the fork server does: become `python -c SOURCE`, with those variables and outputs."""
    with log.open("wb") as file:
        for descriptor, given in ((1, said), (2, os.dup(file.fileno()))):
            os.dup2(given, descriptor)
            os.close(given)
    become(["-c", *arguments], variables)
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    try:
        exec(compile(source, "<string>", "exec"), module.__dict__)
    finally:
        atexit._run_exitfuncs()


@dataclass(frozen=True)
class Inherited:
    """A descriptor that a process of the fork server takes over: there, the number that it has is in it."""

    descriptor: int

    def __reduce__(self) -> Any:
        return reduction.DupFd(self.descriptor).detach, ()


@dataclass(frozen=True)
class Forked:
    """A process of the fork server, with what tests use of `subprocess.Popen`."""

    process: Any

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@dataclass(frozen=True)
class Script(Forked):
    """A program in a process that does not have to import what every service needs."""

    stdout: TextIO

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.is_alive():
            raise subprocess.TimeoutExpired("python -c", timeout or 0)
        return self.process.exitcode

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_script(
    source: str,
    arguments: Iterable[Any],
    log: Path,  # Takes its standard error
    environment: Mapping[str, str] | None = None,
) -> Script:
    """Start `python -c SOURCE ARGUMENTS` by the fork server."""
    start_forks()
    reading, writing = os.pipe()
    variables = dict(os.environ if environment is None else environment)
    process = FORKS.Process(target=scripted, args=(source, [*map(str, arguments)], variables, Inherited(writing), log))
    process.start()
    os.close(writing)
    return Script(process, os.fdopen(reading, encoding="utf-8"))


@dataclass(frozen=True)
class Done:
    """What a command that has ended said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; fails if there is more or less than one."""
        return json.loads(self.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON:\n{self.stdout}"))

    @property
    def error(self) -> dict[str, Any]:
        """The error that `--json` printed."""
        assert self.json["status"] == "failed", self
        return self.json["error"]


@dataclass(frozen=True)
class Begun(Forked):
    """A command at work in a process of the fork server."""

    folder: tempfile.TemporaryDirectory[str]  # Takes what it says
    asked: str

    def finish(self, limit: float = LIMIT) -> Done:
        """Wait for its end."""
        outputs = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        with self.folder:
            self.process.join(limit)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
                pytest.fail(f"{self.asked} did not end within {limit} s\n{outputs[1].read_text()}")
            said = [output.read_text("utf-8") if output.exists() else "" for output in outputs]  # killed at once
            return Done(self.process.exitcode or 0, *said)


@dataclass(frozen=True)
class Project:
    """A user's project, its store in `.n2p`, and the installed commands run in it."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / ".n2p"

    @property
    def run_folders(self) -> list[Path]:
        return sorted((self.home / "runs").glob("*")) if self.home.exists() else []

    def notebook(self, name: str, cells: Mapping[str, str | dict[str, Any]], **options: Any) -> Path:
        """Write a notebook, see `make_notebook`."""
        return make_notebook(self.folder / name, cells, **options)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLEARED)}
        ours = {"IPYTHONDIR": str(self.folder / ".ipython"), "COLUMNS": "120", **SETTINGS}
        return kept | ours | recorded() | self.variables | variables

    def start(
        self, command: str, *arguments: str | Path, cwd: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Start an installed command, with environment `variables` added."""
        return subprocess.Popen(
            [SCRIPTS / command, *map(str, arguments)],
            cwd=cwd or self.folder,
            env=self.environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, command: str, *arguments: str | Path, cwd: Path | None = None, **variables: str) -> Done:
        """Run an installed command to its end."""
        return finish(self.start(command, *arguments, cwd=cwd, **variables))

    def n2p(self, *arguments: str | Path, cwd: Path | None = None, **variables: str) -> Done:
        """Run `n2p` to its end, in a process of its own that does not have to import what every command needs."""
        if variables.keys() & AT_START:
            return self.command("n2p", *arguments, cwd=cwd, **variables)
        return self.fork(*arguments, cwd=cwd, **variables)()

    def papermill(self, *arguments: str | Path, limit: float = LIMIT, **variables: str) -> Done:
        """Run `papermill` to its end, in such a process."""
        return self.fork(*arguments, program="papermill", limit=limit, **variables)()

    def begin(self, *arguments: str | Path, program: str = "n2p", cwd: Path | None = None, **variables: str) -> Begun:
        """Start `n2p` in such a process, which is at work at once."""
        folder = tempfile.TemporaryDirectory()
        outputs = (Path(folder.name) / "stdout", Path(folder.name) / "stderr")
        given = (program, [*map(str, arguments)], cwd or self.folder, self.environment(variables), *outputs)
        start_forks()
        process = FORKS.Process(target=forked, args=given)
        process.start()
        return Begun(process, folder, f"{program} {arguments}")

    def fork(self, *arguments: str | Path, limit: float = LIMIT, **options: Any) -> Callable[[], Done]:
        """Start `n2p` in such a process; what is returned waits for its end."""
        begun = self.begin(*arguments, **options)
        return lambda: begun.finish(limit)

    def together(self, *commands: Iterable[str | Path], **variables: str) -> list[Done]:
        """Run several commands of `n2p` at the same time."""
        return [wait() for wait in [self.fork(*command, **variables) for command in commands]]

    def run(self, notebook: str | Path, *arguments: str | Path, cwd: Path | None = None, **variables: str) -> Done:
        """Run `n2p run NOTEBOOK --json ...` to its end."""
        return self.n2p("run", notebook, "--json", *arguments, cwd=cwd, **variables)

    def copy_to(self, other: Project) -> Project:
        """Copy the project with its store into the empty project `other`, which is returned."""
        shutil.copytree(self.folder, other.folder, symlinks=True, dirs_exist_ok=True)
        return other

    @property
    def address(self) -> str:
        """MLflow's address of the store."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    def tracked(self, run_id: str) -> Run:
        """The run in MLflow that belongs to a run of the store, as MLflow's own client finds it."""
        from mlflow import MlflowClient

        client = MlflowClient(self.address)
        experiments = [each.experiment_id for each in client.search_experiments()]
        (found,) = client.search_runs(experiments, f"tags.`n2p.run_id` = '{run_id}'")
        return found

    def record(self, run_id: str) -> dict[str, Any]:
        """The record on disk."""
        return json.loads((self.home / "runs" / run_id / "record.json").read_text("utf-8"))


def finish(process: subprocess.Popen[str], timeout: float = LIMIT) -> Done:
    """Wait for a started command."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        stdout, stderr = process.communicate(timeout=60)  # one that has left the family may hold the pipes
        pytest.fail(f"{process.args} did not end within {timeout} s\n{stdout}\n{stderr}")
    return Done(process.returncode, stdout, stderr)


def make_project(folder: Path) -> Project:
    """Make an empty project at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").touch()
    return Project(folder)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Project], None]) -> Project:
    """The project `name`, filled by the first of pytest-xdist's workers that needs it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(base / f"{name}.lock"):
        project = make_project(base / name)
        if not (base / f"{name}.made").exists():
            make(project)
            (base / f"{name}.made").touch()
    return project


# A small model, of which many tests need a run or some

RIDGE = {
    "parameters": "seed = 1\nalpha = 1.0",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "fit": (
        "import numpy as np\nfrom sklearn.linear_model import Ridge\n\n"
        "X = np.arange(20.0).reshape(10, 2)\nmodel = Ridge(alpha).fit(X, X[:, 0])"
    ),
    "evaluate": "run.metric('score', model.score(X, X[:, 0]))",
    "export": "run.export(model, X, X[:, 0], X, X[:, 0])",
}


def run_ridges(project: Project) -> None:
    """Run it with three parameters."""
    project.notebook("train.ipynb", RIDGE)
    for alpha in ("1.0", "2.0", "3.0"):
        done = project.run("train.ipynb", "-p", "alpha", alpha)
        assert done.code == 0, done


def live_predictor(project: Project) -> Any:
    """Run `train.ipynb` of a project, make its model version 1 of `flights`, live; the predictor of it."""
    from notebook_to_prod.project import Store
    from notebook_to_prod.release.registry import Registry
    from notebook_to_prod.serve.predictor import load_predictor

    for arguments in (("run", "train.ipynb"), ("register", "latest", "--name", "flights")):
        done = project.n2p(*arguments)
        assert done.code == 0, done
    registry = Registry(Store(project.home))
    registry.promote("flights", 1)
    bundle = registry.bundle(registry.resolve("flights"))
    return load_predictor(bundle.path, bundle.digest, "flights", "1")
