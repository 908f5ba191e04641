"""In a real JupyterLab, in a real browser: a notebook is opened and run, and what it shows is seen."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from notebooks import Project, make_project

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LACKING = [name for name in ("playwright", "jupyterlab") if importlib.util.find_spec(name) is None]
LACKING += [] if CHROMIUM else ["chromium (apt-get install chromium)"]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")

PATIENCE = 180_000  # Milliseconds; only keeps a page that hangs from blocking the suite

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


def run_all(page: Page) -> None:
    """Choose Run All Cells, again if the menu was opened before the notebook was ready."""
    for _ in range(10):
        page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        item = page.locator(".lm-Menu-item:not(.lm-mod-disabled) .lm-Menu-itemLabel:text-is('Run All Cells')")
        with contextlib.suppress(Exception):
            item.click(timeout=5_000)
            page.wait_for_selector(".jp-InputPrompt:text-matches('\\\\[(\\\\*|1)\\\\]')", timeout=15_000)
            return
        page.keyboard.press("Escape")
    pytest.fail("JupyterLab does not run the notebook")


@pytest.fixture(scope="module")
def page(lab: tuple[Project, str]) -> Iterator[Page]:
    """The notebook, all of whose cells have been run."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1200, "height": 2600})
        shown.set_default_timeout(PATIENCE)
        shown.goto(f"{lab[1]}/lab/tree/train.ipynb")
        shown.wait_for_selector(".jp-Notebook .jp-CodeCell")
        shown.wait_for_selector(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]")
        run_all(shown)
        shown.wait_for_selector(".jp-OutputArea-output:has-text('nowhere.csv')")
        shown.wait_for_timeout(500)
        if place := os.environ.get("N2P_TEST_SCREENSHOT"):
            shown.screenshot(path=place)
        yield shown
        browser.close()


def output(page: Page, number: int) -> str:
    """The text below the code cell of a number, from 0."""
    return page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-Cell-outputArea").inner_text()


def tables(page: Page, number: int) -> list[list[str]]:
    """The rows of the tables below a code cell."""
    rows = page.locator(".jp-Notebook .jp-CodeCell").nth(number).locator(".jp-Cell-outputArea tr").all()
    return [[cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in rows]


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
    page.keyboard.press("Control+s")
    for _ in range(100):
        saved = json.loads((project.folder / "train.ipynb").read_text("utf-8"))
        if saved["cells"][1]["outputs"]:
            break
        page.wait_for_timeout(100)
    del saved["cells"][-1]
    (project.folder / "saved.ipynb").write_text(json.dumps(saved), "utf-8")  # JupyterLab may still write the other
    done = project.run("saved.ipynb", "-p", "seed", "5")
    assert done.code == 0, done.stderr
    assert done.json["parameters"]["seed"] == 5
