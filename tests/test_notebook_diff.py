"""In git: notebooks are compared and merged by cells, by real git with the drivers that `n2p git install` sets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from notebooks import Project, code, make_notebook

from notebook_to_prod.train.notebook_diff import cell_keys, lasting, moved_keys
from notebook_to_prod.train.notebook_merge import (
    CONFLICT,
    as_text,
    cleaned,
    merge_notebooks,
    merge_order,
    merge_sources,
    read_raw,
    written_like,
)

CELLS = {
    "parameters": "rate = 1",
    "load": "import pandas\nrows = [1, 2]",
    "fit": "model = rate * 2\n\n\n\nprint(model)",
    "plot": "print(rows)",
}
IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.org")


class Repository:
    """A repository whose notebooks have the drivers."""

    def __init__(self, project: Project):
        self.project, self.folder = project, project.folder

    def git(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            ["git", *IDENTITY, *arguments],
            cwd=self.folder,
            env=self.project.environment({}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def write(self, cells: dict[str, Any], executed: int = 0, name: str = "train.ipynb") -> Path:
        path = make_notebook(self.folder / name, cells)
        raw = json.loads(path.read_text("utf-8"))
        if executed:
            for number, cell in enumerate(raw["cells"]):
                cell["execution_count"] = executed + number
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": [f"run {executed}\n"]}]
            raw["metadata"]["papermill"] = {"start_time": str(executed)}
        path.write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
        return path

    def commit(self, cells: dict[str, Any], executed: int = 0) -> None:
        self.write(cells, executed)
        self.git("add", "-A")
        self.git("commit", "-qm", "change")

    def cells(self) -> dict[str, Any]:
        read = nbformat.read(self.folder / "train.ipynb", as_version=4)
        nbformat.validate(read)
        return {cell.id: cell for cell in read.cells}


@pytest.fixture(params=[(), ("--keep-outputs",)], ids=["filter", "keep-outputs"])
def repository(project: Project, request: pytest.FixtureRequest) -> Repository:
    made = Repository(project)
    made.git("init", "-q", "-b", "main")
    assert project.n2p("git", "status").code == 1
    assert project.n2p("git", "install", *request.param).code == 0
    assert project.n2p("git", "status").code == 0
    (project.folder / ".gitignore").write_text(".ipython\n.n2p\n")
    made.commit(CELLS, executed=1)
    return made


def branches(repository: Repository, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Leave both branches executed, with `main` checked out."""
    repository.git("checkout", "-qb", "theirs")
    repository.commit(theirs, executed=50)
    repository.git("checkout", "-q", "main")
    repository.commit(ours, executed=90)


def test_outputs_and_counters_do_not_appear_in_a_diff(repository: Repository) -> None:
    repository.write(CELLS, executed=7)
    assert repository.git("diff") == ""
    repository.write(CELLS | {"fit": "model = rate * 3\n\n\n\nprint(model)"}, executed=8)
    shown = repository.git("diff")
    assert "+model = rate * 3" in shown
    assert "execution_count" not in shown
    assert "run 8" not in shown
    assert shown.count("\n+") == 2  # the name of the file, and the line


def test_branches_that_edit_different_cells_merge_though_both_executed_all(repository: Repository) -> None:
    ours = CELLS | {"parameters": "rate = 2"}
    theirs = {name: text for name, text in CELLS.items() if name != "plot"} | {"more": "print('more')"}
    branches(repository, ours, theirs | {"load": "import pandas\nrows = [3]"})
    repository.git("merge", "-q", "theirs", "-m", "merge")
    merged = repository.cells()
    assert [*merged] == ["parameters", "load", "fit", "more"]
    assert (merged["parameters"].source, merged["load"].source) == ("rate = 2", "import pandas\nrows = [3]")
    assert repository.git("status", "--porcelain") == ""


def test_edits_of_different_lines_of_a_cell_merge(repository: Repository) -> None:
    branches(
        repository,
        CELLS | {"fit": "model = rate * 9\n\n\n\nprint(model)"},
        CELLS | {"fit": "model = rate * 2\n\n\n\nprint(model, 'ends')"},
    )
    repository.git("merge", "-q", "theirs", "-m", "merge")
    assert repository.cells()["fit"].source == "model = rate * 9\n\n\n\nprint(model, 'ends')"
    assert repository.cells()["fit"].outputs == []  # nobody has executed it


def test_a_contradiction_leaves_a_notebook_that_opens_with_the_cell_marked(repository: Repository) -> None:
    branches(repository, CELLS | {"parameters": "rate = 2"}, CELLS | {"parameters": "rate = 3", "plot": "pass"})
    repository.git("merge", "-q", "theirs", "-m", "merge", code=1)
    merged = repository.cells()
    assert "UU train.ipynb" in repository.git("status", "--porcelain")
    assert merged["parameters"].metadata.tags == ["parameters", "conflict"]
    assert merged["parameters"].source == "<<<<<<< ours\nrate = 2\n=======\nrate = 3\n>>>>>>> theirs"
    assert merged["plot"].source == "pass"
    assert repository.project.n2p("check", "train.ipynb").code != 0
    repository.commit(CELLS | {"parameters": "rate = 3", "plot": "pass"})
    assert repository.git("status", "--porcelain") == ""


def test_a_rebase_uses_the_driver_too(repository: Repository) -> None:
    branches(repository, CELLS | {"parameters": "rate = 2"}, CELLS | {"plot": "print('plot')"})
    repository.git("rebase", "-q", "theirs")
    assert (repository.cells()["parameters"].source, repository.cells()["plot"].source) == ("rate = 2", "print('plot')")


def test_the_filter_keeps_outputs_on_disk_and_out_of_commits(project: Project) -> None:
    repository = Repository(project)
    repository.git("init", "-q", "-b", "main")
    first = project.n2p("git", "install")
    assert (first.code, "git add .gitattributes" in first.stdout) == (0, True)
    repository.git("add", ".gitattributes")  # that is not committed yet
    assert "git add .gitattributes" in project.n2p("git", "install").stdout
    repository.commit(CELLS, executed=3)
    again = project.n2p("git", "install").stdout
    assert "git add" not in again and "every other clone needs n2p git install once" in again
    assert "run 3" in (project.folder / "train.ipynb").read_text("utf-8")
    committed = json.loads(repository.git("show", "HEAD:train.ipynb"))
    assert [cell["outputs"] for cell in committed["cells"]] == [[]] * 4
    assert "papermill" not in committed["metadata"]
    (project.folder / "broken.ipynb").write_text("{ not a notebook")
    repository.git("add", "broken.ipynb")
    assert repository.git("show", ":broken.ipynb") == "{ not a notebook"
    assert project.n2p("git", "uninstall").code == 0
    assert not (project.folder / ".gitattributes").exists()
    assert "n2p" not in repository.git("config", "--list", "--local")


def test_outside_of_a_repository_the_remedy_is_told(project: Project) -> None:
    done = project.n2p("git", "install", "--json", GIT_CEILING_DIRECTORIES=str(project.folder.parent))
    assert done.code == 2
    assert done.error["remedy"] == "git init, or change into the repository"


# n2p diff


def test_the_same_is_0_and_different_is_1(project: Project) -> None:
    make = Repository(project).write
    make(CELLS, 1, "a.ipynb")
    make(CELLS, 9, "b.ipynb")
    same = project.n2p("diff", "a.ipynb", "b.ipynb", "--json")
    assert (same.code, same.json["equal"], same.json["counts"]) == (0, True, {"outputs": 4})
    changed = {
        "plot": "print(rows)",
        **CELLS,
        "parameters": "rate = 5",
        "load": "import polars\nrows = [1, 2]",
        "new": "1",
    }
    del changed["fit"]
    make(changed, 1, "b.ipynb")
    found = project.n2p("diff", "a.ipynb", "b.ipynb", "--json")
    assert found.code == 1
    kinds = {each["cell_id"]: each["kinds"] for each in found.json["cells"]}
    assert kinds == {
        "plot": ["moved"],
        "parameters": ["changed"],
        "load": ["changed"],
        "fit": ["deleted"],
        "new": ["added"],
    }
    assert found.json["parameters"] == {"rate": ["1", "5"]}
    assert (found.json["imports_added"], found.json["imports_removed"]) == (["polars"], ["pandas"])
    text = project.n2p("diff", "a.ipynb", "b.ipynb").stdout
    assert "-rate = 1" in text
    assert "+rate = 5" in text
    assert "rate: 1 → 5" in text
    assert project.n2p("diff", "a.ipynb", "b.ipynb", "--exit-zero").code == 0


def test_a_notebook_is_compared_with_git(project: Project) -> None:
    repository = Repository(project)
    repository.git("init", "-q", "-b", "main")
    repository.commit(CELLS)
    repository.commit(CELLS | {"parameters": "rate = 2"})
    assert project.n2p("diff", "train.ipynb").code == 0
    assert project.n2p("diff", "HEAD~1:train.ipynb", "train.ipynb").code == 1
    assert project.n2p("diff", "HEAD~1:train.ipynb", "HEAD:train.ipynb").code == 1
    (project.folder / "sub").mkdir()
    assert project.n2p("diff", "HEAD:../train.ipynb", "../train.ipynb", cwd=project.folder / "sub").code == 0
    assert (
        project.n2p("diff", "HEAD:train.ipynb", "../train.ipynb", cwd=project.folder / "sub").code == 0
    )  # from the top
    subprocess.run(["git", "branch", "a"], cwd=project.folder, check=True)  # a name as short as a drive's
    assert project.n2p("diff", "a:train.ipynb", "train.ipynb").code == 0
    for wrong in (("nowhere:train.ipynb", "train.ipynb"), ("HEAD:other.ipynb", "train.ipynb"), ("other.ipynb",)):
        done = project.n2p("diff", *wrong, "--json")
        assert done.code == 2, wrong
        assert done.error["remedy"], wrong


# Laws of merging

KEYS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6)


@given(KEYS, KEYS, KEYS)
def test_the_merged_order_has_every_key_once(base: list[str], ours: list[str], theirs: list[str]) -> None:
    order, _ = merge_order(base, ours, theirs)
    assert sorted(order) == sorted({*ours, *theirs})


@given(KEYS, KEYS)
def test_what_does_not_move_is_in_the_same_order(before: list[str], after: list[str]) -> None:
    moved = moved_keys(before, after)
    kept = [[key for key in keys if key not in moved and key in before and key in after] for keys in (before, after)]
    assert kept[0] == kept[1]


def raw(sources: dict[str, str], ids: bool = True) -> dict[str, Any]:
    cells = [code(text, name) for name, text in sources.items()]
    if not ids:
        for cell in cells:
            del cell["id"]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5 if ids else 4}


SOURCES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["x = 1", "x = 2", ""]), max_size=4)


@given(SOURCES, SOURCES)
def test_a_branch_that_did_nothing_gives_way(base: dict[str, str], other: dict[str, str]) -> None:
    for ours, theirs in ((base, other), (other, base)):
        merged = merge_notebooks(raw(base), raw(ours), raw(theirs))
        assert not merged.conflicts
        assert {cell["id"]: cell["source"] for cell in merged.raw["cells"]} == other


# Any notebooks: what a cell may have, and three versions of it

METADATA = st.fixed_dictionaries(
    {},
    optional={
        "tags": st.lists(st.sampled_from(["parameters", "slow", "n2p"]), unique=True, max_size=2),
        "slideshow": st.dictionaries(
            st.sampled_from(["slide_type", "notes"]), st.sampled_from([1, True, "skip"]), max_size=2
        ),
        "jupyter": st.just({"source_hidden": True}),
        "vscode": st.just({"languageId": "sql"}),
        "execution": st.sampled_from([{"iopub": "1"}, {"iopub": "2"}]),
    },
)
TEXTS = st.sampled_from(["", "x = 1", "x = 2", "a\nb\nc\nd", "A\nb\nc\nd", "a\nb\nc\nD", "a\x00b", "\ud800"])
FILES = st.dictionaries(
    st.sampled_from(["a.png", "b.png"]), st.sampled_from([{"image/png": "AA"}, {"image/png": "BB"}]), max_size=2
)


@st.composite
def any_cell(draw: st.DrawFn, name: str) -> dict[str, Any]:
    kind = draw(st.sampled_from(["code", "markdown", "raw"]))
    made: dict[str, Any] = {"cell_type": kind, "id": name, "metadata": draw(METADATA), "source": draw(TEXTS)}
    if kind == "code":
        count = draw(st.sampled_from([None, 1, 2]))
        made |= {"outputs": [], "execution_count": count}
    elif files := draw(FILES):
        made["attachments"] = files
    return made


@st.composite
def any_notebook(draw: st.DrawFn, ids: bool = True) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4))
    cells = [draw(any_cell(name)) for name in names]
    if not ids:
        for cell in cells:
            del cell["id"]
    metadata = draw(st.fixed_dictionaries({}, optional={"title": st.sampled_from(["A", "B"])}))
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5 if ids else 4}


def lasting_of(raw: dict[str, Any]) -> list[str]:
    """What lasts of each cell, as text, for 1 is not true."""
    names = ("id", "cell_type", "source", "attachments")
    kept = [[cell.get(name) for name in names] + [lasting(cell["metadata"])] for cell in raw["cells"]]
    return sorted(json.dumps(each, sort_keys=True) for each in kept)


def assert_valid(raw: dict[str, Any]) -> None:
    text = json.loads(json.dumps(raw).replace("\\ud800", "?"))  # which no file in UTF-8 can have
    nbformat.validate(text)


@given(any_notebook(), any_notebook())
def test_merging_with_a_side_that_did_nothing_gives_the_other(base: dict[str, Any], other: dict[str, Any]) -> None:
    for ours, theirs in ((base, other), (other, base)):
        merged = merge_notebooks(base, ours, theirs)
        assert not merged.conflicts
        assert lasting_of(merged.raw) == lasting_of(other)
        assert merged.raw["metadata"] == other["metadata"]
        assert_valid(merged.raw)


@given(any_notebook(), any_notebook())
def test_what_both_changed_alike_is_no_contradiction(base: dict[str, Any], both: dict[str, Any]) -> None:
    merged = merge_notebooks(base, both, both)
    assert not merged.conflicts
    assert lasting_of(merged.raw) == lasting_of(both)


@settings(max_examples=30)  # each asks git about some cells
@given(any_notebook(), any_notebook(), any_notebook(), st.booleans())
def test_a_merge_is_a_valid_notebook_and_contradictions_are_marked(
    base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any], ids: bool
) -> None:
    if not ids:
        for each in (base, ours):
            each["nbformat_minor"] = 4
            for cell in each["cells"]:
                del cell["id"]
    merged = merge_notebooks(base, ours, theirs)
    assert_valid(merged.raw)
    marked = [cell for cell in merged.raw["cells"] if CONFLICT in cell["metadata"].get("tags", ())]
    assert bool(merged.conflicts) == bool(marked)


@settings(max_examples=50)
@given(any_cell("a"), any_cell("a"), any_cell("a"))
def test_what_only_one_side_changed_of_a_cell_is_in_the_result(
    base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    def whole(cell: dict[str, Any]) -> dict[str, Any]:
        return {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}

    (made,) = merge_notebooks(whole(base), whole(ours), whole(theirs)).raw["cells"]
    sides = [(each, other) for each, other in ((ours, theirs), (theirs, ours))]
    for one, other in sides:
        if other["cell_type"] == base["cell_type"]:
            assert made["cell_type"] == one["cell_type"]
        if other["source"] == base["source"]:
            assert made["source"] == one["source"]
        for name in {*one["metadata"], *base["metadata"]} - {"tags", "slideshow"}:
            if json.dumps(other["metadata"].get(name)) == json.dumps(base["metadata"].get(name)):
                assert made["metadata"].get(name) == one["metadata"].get(name)
        files = [each.get("attachments", {}) for each in (made, one, other, base)]
        for name in {*files[1], *files[3]} if made["cell_type"] != "code" else ():
            if files[2].get(name) == files[3].get(name):
                assert files[0].get(name) == files[1].get(name)


def test_a_text_that_git_cannot_merge_keeps_both_sides() -> None:
    for text in ("a\x00b", "\ud800"):
        merged, contradict = merge_sources(f"{text} ours", text, f"{text} theirs")
        assert contradict
        assert f"{text} ours" in merged
        assert f"{text} theirs" in merged


def test_a_tag_of_one_keeps_what_the_other_deletes() -> None:
    tagged = code("1", "a") | {"metadata": {"tags": ["slow"]}}
    merged = merge_notebooks(raw({"a": "1"}), raw({}), raw({}) | {"cells": [tagged]})
    assert [cell["id"] for cell in merged.raw["cells"]] == ["a"]
    assert "deleted it, the other changed it" in merged.conflicts[0]
    merged = merge_notebooks(raw({"a": "1"}), raw({}), raw({}) | {"cells": [code("1", "a") | {"execution_count": 9}]})
    assert not merged.raw["cells"], "that it was executed is no change"


def test_attached_files_are_told_of_and_kept(project: Project) -> None:
    def picture(content: str) -> dict[str, Any]:
        cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "![](attachment:a.png)"}
        cells = [cell | {"attachments": {"a.png": {"image/png": content}}}]
        return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}

    before, after = as_text(picture("AA")), as_text(picture("BB"))
    assert before != after
    assert "attachment a.png: image/png" in before
    for name, content in (("before.ipynb", "AA"), ("after.ipynb", "BB")):
        (project.folder / name).write_text(json.dumps(picture(content)))
    done = project.n2p("diff", "before.ipynb", "after.ipynb", "--json")
    assert done.code == 1
    assert done.json["cells"][0]["kinds"] == ["attachments"]
    assert done.json["cells"][0]["attachments"] == ["a.png"]


@pytest.mark.parametrize("language", ["R", "julia", "python"])
def test_the_filter_treats_notebooks_of_every_language_alike(language: str) -> None:
    cell = code("1", "a") | {
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
        "execution_count": 3,
    }
    kept = {"jupyter": {"source_hidden": True}, "collapsed": True, "vscode": {"languageId": "sql"}}
    cell["metadata"] = kept | {"scrolled": True, "execution": {"iopub": "1"}}
    made = {
        "cells": [cell],
        "metadata": {"kernelspec": {"name": "k", "language": language}, "vscode": {"interpreter": {"hash": "1"}}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    read = read_raw(json.dumps(made).encode())
    assert read is not None
    clean = cleaned(read)
    assert clean["cells"][0]["outputs"] == []
    assert clean["cells"][0]["execution_count"] is None
    assert clean["cells"][0]["metadata"] == kept
    assert clean["metadata"] == {"kernelspec": {"name": "k", "language": language}}


def test_notebooks_without_ids_are_merged_by_place() -> None:
    base = {"a": "x = 1", "b": "y = 1", "c": "z = 1"}
    merged = merge_notebooks(raw(base, False), raw(base | {"a": "x = 2"}, False), raw(base | {"c": "z = 2"}, False))
    assert [cell["source"] for cell in merged.raw["cells"]] == ["x = 2", "y = 1", "z = 2"]
    assert not merged.conflicts


def test_a_copied_id_is_another_cell() -> None:
    cells = [code("1", "a"), code("2", "a")]
    assert cell_keys(cells, cells) == (["a", "a#2"], ["a", "a#2"])


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
@pytest.mark.parametrize("indent", [1, 2, None])
def test_a_clean_notebook_is_left_byte_for_byte(end: str, indent: int | None) -> None:
    text = json.dumps(raw({"a": "é = '\\u00e9'"}), indent=indent, ensure_ascii=False).replace("\n", end or "\n")
    content = (text + end).encode()
    read = read_raw(content)
    assert read is not None
    assert written_like(content, cleaned(read)) == content
