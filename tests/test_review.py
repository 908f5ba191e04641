"""`n2p review`: one comment of a pull request, from real runs, gates and git; a build that has to fail does."""

from __future__ import annotations

import json
import re
import subprocess
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notebooks import Project, make_project

from notebook_to_prod.display import fenced
from notebook_to_prod.errors import NotFoundError
from notebook_to_prod.package.gates.verdict import Report, Verdict
from notebook_to_prod.release.review import (
    LIMIT,
    Review,
    artifacts_address,
    comment_text,
    fitted,
    review_markdown,
)

SETTINGS = """
[tool.n2p.gates]
skip = ["robustness", "fairness", "explain", "serving"]
warn = ["quality.simple", "quality.overfit", "quality.found_slices", "quality.calibration", "data.balance", "data.drift", "data.unused"]
resamples = 100
[tool.n2p.gates.quality]
primary = "roc_auc"
metrics = { roc_auc = 0.8 }
"""
CELLS = {
    "parameters": "seed = 1\nshuffle = False",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "fit": (
        "import numpy as np\nimport pandas as pd\nfrom sklearn.linear_model import LogisticRegression\n\n"
        "draw = np.random.default_rng(seed)\nX = pd.DataFrame(draw.normal(size=(900, 3)), columns=['a|b', 'c', 'd'])\n"
        "y = (X['c'] + X['a|b'] + 0.3 * draw.normal(size=900) > 0).astype(int)\n"
        "labels = draw.permutation(y[:600]) if shuffle else y[:600]\n"
        "model = LogisticRegression().fit(X[:600], labels)"
    ),
    "evaluate": "run.metric('accuracy', model.score(X[600:], y[600:]))",
    "export": "run.export(model, X[:600], y[:600], X[600:], y[600:])",
}
IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.org")


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in git with a live champion, and a worse model from an edited notebook as the latest run."""
    project = make_project(tmp_path_factory.mktemp("review") / "project")
    (project.folder / "pyproject.toml").write_text(SETTINGS)
    project.notebook("train.ipynb", CELLS)
    assert project.run("train.ipynb").code == 0
    for command in (("init", "-q", "-b", "main"), ("add", "train.ipynb"), (*IDENTITY, "commit", "-qm", "first")):
        subprocess.run(["git", *command], cwd=project.folder, check=True)
    return project


def worse(project: Project) -> None:
    """Make a champion of what is there, and a worse model of an edited notebook."""
    for command in (("register", "latest", "--name", "churn"), ("promote", "churn", "1")):
        done = project.n2p(*command)
        assert done.code == 0, done
    project.notebook("train.ipynb", CELLS | {"parameters": "seed = 1\nshuffle = True"})
    assert project.run("train.ipynb").code == 0


def test_the_first_model_passes_without_a_champion(reviewed: Project) -> None:
    summary = reviewed.folder / "summary.md"
    summary.write_text("before\n")
    done = reviewed.n2p("review", "--markdown", "review.md", "--plots", "plots", GITHUB_STEP_SUMMARY=str(summary))
    assert done.code == 0, done
    text = (reviewed.folder / "review.md").read_text("utf-8")
    assert text.startswith("## ✅ train.ipynb: passed")
    assert "no model of this notebook is live yet" in text
    assert "### Data validation" in text
    assert "### Code checks" in text
    assert "no cell differs" in text
    assert summary.read_text("utf-8") == f"before\n{text}\n"


def test_a_worse_model_fails_the_build_and_says_by_how_much(reviewed: Project) -> None:
    worse(reviewed)
    done = reviewed.n2p("review", "latest", "--json", "--markdown", "out/review.md", "--plots", "out/plots")
    assert done.code == 1, done
    assert {"gate quality.metric", "gate quality.champion"} <= {*done.json["reasons"]}
    text = (reviewed.folder / "out/review.md").read_text("utf-8")
    assert text.startswith("## ❌ train.ipynb: not promotable")
    gate = next(line for line in text.splitlines() if "quality.metric" in line and line.startswith("| ❌"))
    assert re.search(r"\| roc_auc \| 0\.\d+ \| 0\.\d+ … 0\.\d+ \| ≥ 0\.8", gate), gate
    compared = next(line for line in text.splitlines() if line.startswith("| roc_auc |"))
    assert "worse" in compared
    assert "churn version 1" in text
    assert "parameter" in text
    assert "+shuffle = True" in text
    assert "| shuffle | False → True |" in text
    assert "(plots/metrics.svg)" in text
    for path in (reviewed.folder / "out/plots").glob("*.svg"):
        xml.dom.minidom.parse(str(path))
        assert "data:" not in text


def test_the_answer_on_record_is_used(reviewed: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in (reviewed.home / "verdicts").rglob("*.json")}
    assert before
    assert reviewed.n2p("review").code in (0, 1)
    after = {path: path.stat().st_mtime_ns for path in (reviewed.home / "verdicts").rglob("*.json")}
    assert after == before


def test_only_gates_without_an_answer_are_asked_and_old_answers_are_told(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text(SETTINGS)
    project.notebook("train.ipynb", CELLS)
    assert project.run("train.ipynb").code == 0
    some = [project.n2p("gate", "latest", "--only", each, "--json").json for each in ("quality.metric", "data")]
    first, last = (review_of(project) for _ in range(2))
    asked = {gate: report["made"] for report in some for gate in report["seconds"]}
    gates = first["gate"]
    assert {**gates["earlier"]} == asked and {*gates["seconds"]} > {*asked}
    told = [each for report in some for each in report["verdicts"]]
    assert all(each in gates["verdicts"] for each in told)
    assert last == first, "the whole answer is on record now, and still says what is old"
    line = next(each for each in first["text"].splitlines() if each.startswith("| asked earlier |"))
    assert f"quality.metric at {some[0]['made'][:19]} UTC" in line
    policy = project.folder / "stricter.toml"
    policy.write_text("resamples = 100\n[quality]\nprimary = 'roc_auc'\nmetrics = { roc_auc = 0.85 }\n")
    anew = review_of(project, "--policy", policy)
    assert not anew["gate"]["earlier"], "another policy is another question"


def review_of(project: Project, *options: str | Path) -> dict[str, Any]:
    """What a review says of the latest model, and its comment."""
    done = project.n2p("review", "--json", "--markdown", "review.md", *options)
    assert done.code in (0, 1), done
    return done.json | {"text": (project.folder / "review.md").read_text("utf-8")}


def test_plots_are_shown_where_they_can_be_and_linked_elsewhere(reviewed: Project) -> None:
    github = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "a/b", "GITHUB_RUN_ID": "7"}
    linked = reviewed.n2p("review", "--plots", "plots", **github).stdout
    assert "(https://github.com/a/b/actions/runs/7#artifacts)" in linked
    assert "![" not in linked
    shown = reviewed.n2p("review", "--plots", "plots", "--plots-url", "https://x.org/p/", **github).stdout
    assert "](https://x.org/p/metrics.svg)" in shown


def test_a_notebook_that_has_changed_since_the_run_is_told(reviewed: Project) -> None:
    (reviewed.folder / "deeper").mkdir(exist_ok=True)
    same = reviewed.n2p("review", "--json", cwd=reviewed.folder / "deeper", N2P_HOME=str(reviewed.home))
    assert same.json["stale"] == ""
    assert same.json["checks"], "seen from another folder, it is the same notebook"
    before = (reviewed.folder / "train.ipynb").read_bytes()
    reviewed.notebook("train.ipynb", CELLS | {"parameters": "seed = 2\nshuffle = True"})
    try:
        done = reviewed.n2p("review", "--json", "--markdown", "stale.md", "--base", "nowhere")
    finally:
        (reviewed.folder / "train.ipynb").write_bytes(before)
    assert done.code == 1
    assert "the notebook has changed since the run: 1 changed" in done.json["reasons"]
    assert "git has no revision 'nowhere'" in (reviewed.folder / "stale.md").read_text("utf-8")


def test_a_policy_that_asks_what_the_model_has_not_is_wrong_usage(reviewed: Project, tmp_path: Path) -> None:
    policy = tmp_path / "gates.toml"
    policy.write_text('[fairness]\nattributes = ["no_such_column"]\n')
    done = reviewed.n2p("review", "--policy", policy, "--markdown", "policy.md")
    assert done.code == 2, done
    assert "no_such_column" in (reviewed.folder / "policy.md").read_text("utf-8")


def test_a_run_that_failed_is_the_review(reviewed: Project, tmp_path: Path) -> None:
    reviewed.notebook("train.ipynb", CELLS | {"fit": CELLS["fit"] + "\nraise ValueError('no rows @alice')"})
    assert reviewed.run("train.ipynb").code == 2
    done = reviewed.n2p("review", "--markdown", "failed.md")
    assert done.code == 1, done
    text = (reviewed.folder / "failed.md").read_text("utf-8")
    assert "### Failure" in text
    assert "ValueError: no rows" in text
    assert "traceback of the cell" in text
    assert "@alice" not in text.replace("'no rows @alice'", "").split("```")[0]


def test_nothing_to_review_is_wrong_usage(project: Project) -> None:
    done = project.n2p("review", "--json")
    assert done.code == 2
    assert done.error["remedy"]


# The comment

HOSTILE = "a|b `c` <img src=x> @alice #1\nnext"


def test_nothing_in_a_comment_is_markup() -> None:
    verdicts = (Verdict("quality.metric", "fail", HOSTILE, HOSTILE, 0.5, 0.7, interval=(0.4, 0.6)),)
    text = review_markdown(Review(HOSTILE, Report("sha256:0", "p", verdicts), champion=HOSTILE))
    assert "<img" not in text
    assert "@alice" not in text
    assert "#1" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ❌")]
    assert [line.replace("\\|", "").count("|") for line in rows] == [8]


@pytest.mark.parametrize(
    "text",
    [
        "see org/repo#12",
        "by @alice",
        "https://evil.example/x",
        "www.evil.example",
        "# big",
        "- item",
        "1. item",
        "> said",
        "0123abc4",
    ],
)
def test_nothing_in_a_comment_leads_elsewhere(text: str) -> None:
    shown = comment_text(text)
    assert shown.replace("\u200b", "").replace("&gt;", ">") == text
    assert not re.search(r"[@#]\w|://\w|www\.\w|^[#>-] |^\d+\. ", shown)


def test_a_fence_is_longer_than_what_it_holds() -> None:
    lines = fenced(["`````", "text"], "diff")
    assert lines[0] == "``````diff"
    assert lines[-2] == "``````"


def test_a_comment_fits_and_says_what_is_left_out() -> None:
    verdicts = tuple(Verdict(f"quality.g{number}", "fail", "why 🎉 " * 20) for number in range(2_000))
    text = review_markdown(Review("run", Report("sha256:0", "p", verdicts)))
    assert len(text.encode("utf-16-le")) // 2 <= LIMIT
    assert "**The comment is full**" in text
    assert text.startswith("## ❌")


@given(
    st.lists(st.sampled_from(["<details>", "</details>", "```", "````diff", "text 🎉", ""]), max_size=60),
    st.integers(500, 700),
)
def test_a_cut_comment_has_an_even_number_of_fences(lines: list[str], limit: int) -> None:
    text = fitted(lines, limit)
    assert len(text.encode("utf-16-le")) // 2 <= limit or limit > sum(map(len, lines)) * 3


def test_without_github_there_is_no_address() -> None:
    assert artifacts_address({"GITHUB_SERVER_URL": "https://github.com"}) == ""
    assert comment_text("flights@production") == "flights@production"


def test_a_failure_without_a_record_has_its_reason() -> None:
    review = Review("latest", failure=NotFoundError("the run failed: disk", where="run x", remedy="free space"))
    assert review.reasons == ("the run failed: disk",)
    assert not review.passed
    assert json.dumps(review.to_dict())
