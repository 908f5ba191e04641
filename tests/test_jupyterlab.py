"""In a real JupyterLab, in a real browser: a notebook is opened and run, and what it shows is seen."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, chromium
from notebooks import Project, make_project

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="not installed: chromium (apt-get install chromium)")

PATIENCE = 180  # Seconds; only keeps a page that hangs from blocking the suite

CELLS = {
    "load": "%load_ext notebook_to_prod\nimport notebook_to_prod as n2p",
    "settings": "%%n2p parameters\nseed: int = 1\nname = '<b>bold</b>'",
    "start": "run = n2p.start(seed=seed)\nrun",
    "fit": (
        "import numpy as np\nfrom sklearn.linear_model import Ridge\n\nX = np.arange(20.0).reshape(10, 2)\nmodel = Ridge().fit(X, X[:, 0])\n"
        "run.metric('score', model.score(X, X[:, 0]))"
    ),
    "bundle": "bundle = run.export(model, X, X[:, 0], X, X[:, 0])\nbundle",
    "schema": "bundle.schema",
    "check": "%n2p check",
    "missing": "n2p.load('nowhere.csv')",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, str]]:
    """A JupyterLab with one notebook, and its address."""
    folder = tmp_path_factory.mktemp("lab")
    project = make_project(folder / "project")
    project.notebook("train.ipynb", CELLS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--LabApp.news_url=None",
        "--LabApp.expose_app_in_browser=True",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={project.folder}"],
        cwd=project.folder,
        env=project.environment(places),
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=5):
                break
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    else:
        pytest.fail((folder / "log").read_text())
    yield project, address
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def page(lab: tuple[Project, str]) -> Iterator[Page]:
    """The notebook, all of whose cells have been run."""
    with chromium(1200, 2600) as tab:
        shown = tab()
        shown.open(f"{lab[1]}/lab/tree/train.ipynb")
        shown.wait("!!document.querySelector('.jp-Notebook .jp-CodeCell')", PATIENCE)
        shown.wait(
            "!!document.querySelector('.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]')", PATIENCE
        )
        for _ in range(PATIENCE):  # until the notebook is the one that commands are about
            shown.ask("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
            time.sleep(1)
            if shown.ask("/\\[[*1]\\]/.test(document.querySelector('.jp-Notebook').innerText)"):
                break
        shown.wait("document.querySelector('.jp-Notebook').innerText.includes('remedy: ')", PATIENCE)
        if place := os.environ.get("N2P_TEST_SCREENSHOT"):
            shown.picture(Path(place))
        yield shown


def below(number: int) -> str:
    """What stands below the code cell of a number, from 0, in JavaScript."""
    return f"document.querySelectorAll('.jp-Notebook .jp-CodeCell')[{number}].querySelector('.jp-Cell-outputArea')"


def output(page: Page, number: int) -> str:
    """Its text."""
    return page.ask(f"{below(number)}.innerText")


def tables(page: Page, number: int) -> list[list[str]]:
    """The rows of its tables."""
    cells = "Array.from(row.querySelectorAll('th, td'), cell => cell.innerText.trim())"
    return page.ask(f"Array.from({below(number)}.querySelectorAll('tr'), row => {cells})")


def test_the_parameters_are_a_table_and_no_markup(page: Page) -> None:
    assert tables(page, 1) == [["parameter", "value", "type"], ["seed", "1", "int"], ["name", "'<b>bold</b>'", "str"]]


def test_a_draft_is_seen_to_be_one(page: Page) -> None:
    assert "! draft" in output(page, 2)
    assert "! draft" in output(page, 4)
    assert "n2p run" in output(page, 2)


def test_nouns_are_tables(page: Page) -> None:
    assert ["task", "regression"] in tables(page, 4)
    assert tables(page, 5)[0][:2] == ["column", "kind"]


def test_check_is_about_the_notebook_that_is_open(page: Page) -> None:
    said = output(page, 6)
    assert "train.ipynb as saved at" in said
    assert re.search(r"train\.ipynb: (nothing found|\d+ errors?|\d+ warnings?)", said), said


def test_an_error_points_to_the_cell_in_a_few_lines(page: Page) -> None:
    said = output(page, 7)
    for part in ("nowhere.csv", "where:", "remedy:", "----> 1 n2p.load('nowhere.csv')"):
        assert part in said
    assert len(said.splitlines()) < 9
    assert "site-packages" not in said


def test_the_notebook_can_be_run_from_the_file_that_jupyterlab_saves(page: Page, lab: tuple[Project, str]) -> None:
    project, _ = lab
    page.ask("Array.from(window.jupyterapp.shell.widgets('main')).find(shown => shown.context).context.save()")
    for _ in range(100):
        saved = json.loads((project.folder / "train.ipynb").read_text("utf-8"))
        if saved["cells"][1]["outputs"]:
            break
        time.sleep(0.1)
    del saved["cells"][-1]
    (project.folder / "saved.ipynb").write_text(json.dumps(saved), "utf-8")  # JupyterLab may still write the other
    done = project.run("saved.ipynb", "-p", "seed", "5")
    assert done.code == 0, done.stderr
    assert done.json["parameters"]["seed"] == 5
