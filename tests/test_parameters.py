"""What a user sets is checked against what the notebook declares, before anything starts."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from notebooks import Project, make_notebook

from notebook_to_prod.errors import NotebookError, ParameterError
from notebook_to_prod.train.notebook import Notebook, parse_notebook, read_notebook
from notebook_to_prod.train.parameters import check_parameters, combined_sets, hide_secrets, read_parameter_file


def declares(source: str) -> Notebook:
    """A notebook whose parameters cell is `source`."""
    cell = {"cell_type": "code", "id": "parameters", "metadata": {"tags": ["parameters"]}, "source": source}
    return parse_notebook({"cells": [cell], "metadata": {}}, Path("train.ipynb"))


def typed(source: str, text: str) -> Any:
    """The value of parameter `x`, declared by `source`, when `text` is typed for it."""
    return check_parameters(declares(source), [("x", text)])["x"]


def refusal(source: str, text: str) -> str:
    """What the error says when `text` is typed for `x`."""
    with pytest.raises(ParameterError) as caught:
        typed(source, text)
    return caught.value.what


# What is typed

ACCEPTED = [
    ("x = 3", "-5", -5),
    ("x = 0.1", "1", 1.0),
    ("x = 0.1", "1e-3", 0.001),
    ("x: float = 3", "2", 2.0),
    ("x = True", "false", False),
    ("x = True", "True", True),
    ("x = 'a'", "", ""),
    ("x = 'a'", "007", "007"),
    ("x = 'a'", "true", "true"),
    ("x = 'a'", "[1]", "[1]"),
    ("x = 'a'", "é {x} \N{SNOWMAN}", "é {x} \N{SNOWMAN}"),
    ("x: str | None = None", "abc", "abc"),
    ("x: str | None = None", "null", None),
    ("x: int | None = None", "3", 3),
    ("x: Literal['a', 'b'] = 'a'", "b", "b"),
    ("x = [1]", "[1, 2]", [1, 2]),
    ("x: list[str] = []", '["1"]', ["1"]),
    ("x: list[float] = []", "[1, 2.5]", [1, 2.5]),
    ("x = (1, 2)", "[3, 4]", [3, 4]),
    ("x: tuple[int, int] = (1, 2)", "[3, 4]", [3, 4]),
    ("x = {'a': 1}", '{"b": [null, true]}', {"b": [None, True]}),
    ("x = None", "5", 5),
    ("x = None", "abc", "abc"),
    ("x: Unknown = 3", "4", 4),
    ("x = 3\nx = 'a'", "b", "b"),
    ("y = x = 3", "4", 4),
]


@pytest.mark.parametrize(("source", "text", "value"), ACCEPTED)
def test_text_becomes_the_declared_type(source: str, text: str, value: Any) -> None:
    got = typed(source, text)
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    ("source", "text", "value"),
    [
        ("x: str | None = None", "007", "007"),
        ("x: Optional[str] = None", "5", "5"),
        ("x: Literal['1', '2'] = '1'", "2", "2"),
        ("x: 'str' = 'a'", "5", "5"),
    ],
)
def test_digits_stay_text_where_only_text_is_declared(source: str, text: str, value: str) -> None:
    assert typed(source, text) == value


REFUSED = [
    ("x = 3", "five", "'x' must be int, not str ('five')"),
    ("x = 3", "", "'x' must be int, not str ('')"),
    ("x = 3", "5.0", "'x' must be int, not float (5.0)"),
    ("x = 3", "true", "'x' must be int, not bool (True)"),
    ("x = True", "1", "'x' must be bool, not int (1)"),
    ("x = True", "yes", "'x' must be bool, not str ('yes')"),
    ("x = 0.1", "true", "'x' must be float, not bool (True)"),
    ("x = [1]", "5", "'x' must be list, not int (5)"),
    ("x = {'a': 1}", "[1]", "'x' must be dict, not list ([1])"),
    ("x: int = None", "none", "'x' must be int, not NoneType (None)"),
    ("x: int | None = None", "a", "'x' must be int | None, not str ('a')"),
    ("x: list[int] = []", '["a"]', "'x' must be list[int], not list (['a'])"),
    ("x: dict[str, int] = {}", '{"a": "b"}', "'x' must be dict[str, int], not dict ({'a': 'b'})"),
    ("x: tuple[int, int] = (1, 2)", "[3]", "'x' must be tuple[int, int], not list ([3])"),
    ("x: Literal['a', 'b'] = 'a'", "c", "'x' must be Literal['a', 'b'], not str ('c')"),
]


@pytest.mark.parametrize(("source", "text", "what"), REFUSED)
def test_the_wrong_type_is_refused(source: str, text: str, what: str) -> None:
    assert refusal(source, text) == what


@given(
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.lists(st.integers() | st.text())
)
def test_json_of_a_value_is_read_as_the_value(value: Any) -> None:
    got = typed(f"x = {value!r}", json.dumps(value))
    assert (type(got), got) == (type(value), value)


@given(st.text())
def test_any_text_is_a_text(text: str) -> None:
    if not text.startswith("@env:"):
        assert typed("x = 'a'", text) == text


@given(st.text())
def test_any_text_is_accepted_or_refused(text: str) -> None:
    if not text.startswith("@env:"):
        for source in ("x = 3", "x = 0.5", "x = True", "x = None", "x = [1]"):
            try:
                assert isinstance(typed(source, text), object)
            except ParameterError as error:
                assert error.what.startswith("'x' must be")


# Names


def test_a_misspelt_name_gets_the_nearest() -> None:
    notebook = declares("learning_rate = 0.1\nn_trees = 3\ngröße = 1")
    with pytest.raises(ParameterError) as caught:
        check_parameters(notebook, [("learing_rate", "1"), ("n_tree", "2"), ("grösse", "2"), ("zzz", "3")])
    assert caught.value.what.split("; ") == [
        "unknown parameter 'learing_rate', did you mean 'learning_rate'?",
        "unknown parameter 'n_tree', did you mean 'n_trees'?",
        "unknown parameter 'grösse', did you mean 'größe'?",
        "unknown parameter 'zzz'",
    ]
    for name in ("learning_rate", "n_trees", "größe"):
        assert name in str(caught.value.remedy)


def test_every_problem_is_in_one_error() -> None:
    with pytest.raises(ParameterError, match=r"(?s)'n' must be int.*; unknown parameter 'rat', did you mean 'rate'"):
        check_parameters(declares("n = 3\nrate = 0.1"), [("n", "a"), ("rat", "1")])


def test_without_parameters_cell_the_remedy_is_the_tag(tmp_path: Path) -> None:
    notebook = read_notebook(make_notebook(tmp_path / "a.ipynb", {"fit": "n = 3"}))
    assert check_parameters(notebook) == {}
    with pytest.raises(ParameterError) as caught:
        check_parameters(notebook, [("n", "4")])
    assert "tag the cell" in str(caught.value.remedy)


def test_a_parameters_cell_that_is_not_python_is_named() -> None:
    with pytest.raises(NotebookError) as caught:
        check_parameters(declares("x = 3\n%matplotlib inline"))
    assert caught.value.where == "train.ipynb, cell 'parameters', line 2"


def test_an_annotation_is_read_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    check_parameters(declares(f"x: open({str(trace)!r}, 'w') = 3"), [("x", "4")])
    assert not trace.exists()


# Values from Python and from files


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("x = 3", True),
        ("x = True", 1),
        ("x = 0.1", True),
        ("x = 'a'", date(2020, 1, 1)),
        ("x = 'a'", 5),
        ("x = 1", 1.0),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(source: str, value: Any) -> None:
    with pytest.raises(ParameterError, match="'x' must be"):
        check_parameters(declares(source), given={"x": value})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("n: 3\nname: é\nlist: [1, 2]\n", {"n": 3, "name": "é", "list": [1, 2]}),
        ('{"n": 3}', {"n": 3}),
    ],
)
def test_a_file_of_parameters(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text, "utf-8")
    assert read_parameter_file(path) == [values]


@pytest.mark.parametrize(
    "content", [b"a: [", b"- 1", b"3", b"1: 2", b"\ta: 1", b"a: \xff", b"a: !!python/object:os.system x"]
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ParameterError) as caught:
        read_parameter_file(path)
    assert (caught.value.where, caught.value.remedy) == (str(path), "write NAME: VALUE lines")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ParameterError, match="cannot be read"):
        read_parameter_file(tmp_path / name)


def test_typed_wins_over_given() -> None:
    assert check_parameters(declares("x = 1\ny = 1"), [("x", "3")], {"x": 2, "y": 2}) == {"x": 3, "y": 2}


# Secrets


def test_a_secret_stays_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2-horse")
    assert typed("x = ''", "@env:DB_PASSWORD") == "@env:DB_PASSWORD"
    assert typed("x = None", "@env:DB_PASSWORD") == "@env:DB_PASSWORD"
    assert typed("x: str | None = None", "@env:DB_PASSWORD") == "@env:DB_PASSWORD"


def test_a_secret_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "12345")
    assert refusal("x = 3", "@env:DB_PASSWORD") == "'x' is a secret, which is text, but the notebook declares int"


@pytest.mark.parametrize(("value", "what"), [(None, "is not set"), ("abc", "too short"), ("", "too short")])
def test_an_unusable_secret_is_refused(monkeypatch: pytest.MonkeyPatch, value: str | None, what: str) -> None:
    if value is None:
        monkeypatch.delenv("DB_PASSWORD", raising=False)
    else:
        monkeypatch.setenv("DB_PASSWORD", value)
    assert what in refusal("x = ''", "@env:DB_PASSWORD")


def test_an_unset_secret_inside_a_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    assert "is not set" in refusal("x = []", '["@env:DB_PASSWORD"]')


def test_an_error_does_not_tell_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2-horse")
    with pytest.raises(ParameterError) as caught:
        check_parameters(declares("x = 3"), [("x", "@env:DB_PASSWORD"), ("y", "@env:DB_PASSWORD")])
    assert "hunter2-horse" not in repr(caught.value.to_dict())


def test_injected_source_names_the_variable_and_not_the_value() -> None:
    source, names = hide_secrets("password = '@env:DB_PASSWORD'\nn = 3\nothers = ['@env:TOKEN']")
    assert names == ["DB_PASSWORD", "TOKEN"]
    assert "@env:" not in source
    assert hide_secrets("n = 3  # kept as it is") == ("n = 3  # kept as it is", [])


# The command


@pytest.fixture
def training(project: Project) -> Project:
    project.notebook("train.ipynb", {"parameters": "n = 3\nname = 'a'", "fit": "n"})
    (project.folder / "p.yaml").write_text("n: 4\nname: b\n")
    (project.folder / "bad.yaml").write_text("n: [")
    return project


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "nn", "4"],
        ["-p", "n", "a"],
        ["-f", "bad.yaml"],
        ["-f", "missing.yaml"],
        ["-p", "name", "@env:N2P_TEST_UNSET"],
        ["-f", "p.yaml", "-p", "n", "0.5"],
    ],
    ids=" ".join,
)
def test_refused_before_anything_starts(training: Project, arguments: list[str]) -> None:
    refused = training.run("train.ipynb", *arguments)
    assert (refused.code, refused.error["type"], refused.error["exit_code"]) == (2, "ParameterError", 2)
    assert refused.error["remedy"]
    assert training.run_folders == []


@pytest.mark.parametrize("text", ["{rate: .inf, start: 2020-01-01}", "{start: !!set {a, b}}"])
def test_what_json_cannot_hold_is_refused_or_kept(project: Project, text: str) -> None:
    project.notebook("train.ipynb", {"parameters": "rate = 0.5\nstart = None"})
    (project.folder / "p.yaml").write_text(text)
    done = project.run("train.ipynb", "-f", "p.yaml")
    if done.code:
        assert (done.code, project.run_folders) == (2, [])
    else:
        assert done.json["parameters"].keys() == {"rate", "start"}


def test_what_is_typed_wins_and_reaches_the_record(training: Project) -> None:
    done = training.run("train.ipynb", "-f", "p.yaml", "-p", "n", "-5")
    assert done.code == 0, done
    assert done.json["parameters"] == {"n": -5, "name": "b"}
    assert done.json["spec"]["parameters"] == {"n": -5, "name": "b"}


@pytest.mark.parametrize("typed, grid", [([("rate", "1")], ["rate=1,2"]), ([], ["rate=1,2", "rate=3"])])
def test_what_is_given_twice_is_refused(typed: list[tuple[str, str]], grid: list[str], tmp_path: Path) -> None:
    notebook = make_notebook(tmp_path / "train.ipynb", {"parameters": "rate = 0.1"})
    with pytest.raises(ParameterError, match="'rate' is given twice"):
        combined_sets(notebook, typed, grid=grid)
