"""The command line: rooms in order, help with examples, one result or one error, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import re
import shlex

import click
import pytest
from notebooks import Project

import notebook_to_prod
from notebook_to_prod.cli.app import ROOMS, app

NAMES = [name for names in ROOMS.values() for name in names]
HEAVY = ["pandas", "numpy", "sklearn", "mlflow", "papermill", "IPython", "fastapi", "pydantic", "nbformat"]


# Help


def found(*words: str) -> click.Command:
    """The command that `n2p WORDS` runs."""
    command: click.Command = app
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word) or pytest.fail(f"no command {word}")
    return command


def commands(*words: str) -> list[tuple[str, ...]]:
    """The words of every command below `n2p WORDS`, itself included."""
    command = found(*words)
    inner = command.list_commands(click.Context(command)) if isinstance(command, click.Group) else []
    return [words, *(below for name in inner for below in commands(*words, name))]


COMMANDS = commands()[1:]
LEAVES = [words for words in COMMANDS if not isinstance(found(*words), click.Group)]


def test_the_rooms_are_the_journey_in_order(project: Project) -> None:
    shown = project.n2p("--help")
    assert shown.code == 0
    assert re.findall(r"^([a-z]+):$", shown.stdout, re.MULTILINE) == [*ROOMS]
    journey = ["train", "package", "release", "serve", "watch", "project"]
    assert [*ROOMS] == [room for room in journey if room in ROOMS]
    places = [re.search(rf"^  {name}\s", shown.stdout, re.MULTILINE) for name in NAMES]
    assert all(places)
    assert [place.start() for place in places if place] == sorted(place.start() for place in places if place)


def test_no_command_is_help_and_wrong_usage(project: Project) -> None:
    assert project.n2p().code in (0, 2)
    assert "Traceback" not in project.n2p().stderr


def test_version(project: Project) -> None:
    assert project.n2p("--version").stdout.split()[-1] == notebook_to_prod.__version__


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_a_command_has_an_example_that_parses(words: tuple[str, ...], project: Project) -> None:
    shown = project.n2p(*words, "--help")
    assert shown.code == 0
    assert "Example: n2p" in shown.stdout
    assert project.n2p(*words, "-h").stdout == shown.stdout
    example = re.search(r"Example: n2p (.+)$", found(*words).help or "", re.MULTILINE)
    assert example
    typed = shlex.split(example[1])
    assert tuple(typed[: len(words)]) == words
    called = max((each for each in LEAVES if tuple(typed[: len(each)]) == each), key=len)
    found(*called).make_context(called[-1], typed[len(called) :])  # raises on wrong usage


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_takes_json_and_verbose(words: tuple[str, ...]) -> None:
    options = {option for parameter in found(*words).params for option in parameter.opts}
    assert {"--json", "-v", "--verbose"} <= options


@pytest.mark.parametrize("command", ["n2p", "notebook-to-prod", "python"])
def test_the_command_goes_by_three_names(command: str, project: Project) -> None:
    module = ("-m", "notebook_to_prod") if command == "python" else ()
    shown = project.command(command, *module, "--help")
    assert (shown.code, shown.stdout) == (0, project.n2p("--help").stdout)


# Nothing heavy

IMPORTS = """
import json, sys
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import notebook_to_prod",
        "import notebook_to_prod.errors, notebook_to_prod.project",
        "from notebook_to_prod.cli.app import app; app.main(['--help'], standalone_mode=False)",
        "from notebook_to_prod.cli.app import app; app.main(['run', '--help'], standalone_mode=False)",
        "from notebook_to_prod.cli.app import app; app.main(['serve', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str, project: Project) -> None:
    done = project.command("python", "-c", IMPORTS.format(statement=statement))
    assert done.code == 0, done
    imported = json.loads(done.stderr)
    assert "notebook_to_prod" in imported
    assert [module for module in HEAVY if module in imported] == []


def test_every_public_name_is_there_and_is_what_it_says() -> None:
    assert set(notebook_to_prod.__all__) <= set(dir(notebook_to_prod))
    for name in notebook_to_prod.__all__:
        assert getattr(notebook_to_prod, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        notebook_to_prod.nothing  # noqa: B018 - the access is the test


# Wrong usage

WRONG_USAGE: dict[str, list[str]] = {
    "unknown-command": ["rum"],
    "missing-argument": ["run"],
    "missing-option": ["register", "latest"],
    "unknown-option": ["history", "flights", "--verbos"],
    "extra-argument": ["history", "flights", "more"],
    "version-is-no-number": ["promote", "flights", "two"],
    "version-zero": ["promote", "flights", "0"],
    "version-negative": ["promote", "flights", "--", "-1"],
    "port-beyond": ["serve", "flights@1", "--port", "70000"],
    "no-value": ["run", "train.ipynb", "-p", "n_trees"],
    "no-folder": ["run", "train.ipynb", "--cwd", "nowhere"],
    "threads-zero": ["run", "train.ipynb", "--threads", "0"],
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_ends_with_2_and_says_it_as_json_if_asked(case: str, project: Project) -> None:
    arguments = WRONG_USAGE[case]
    plain = project.n2p(*arguments)
    assert (plain.code, plain.stdout) == (2, "")
    assert "error" in plain.stderr.lower()
    spoken = project.n2p(*arguments[:1], "--json", *arguments[1:])
    assert spoken.code == spoken.error["exit_code"] == 2
    assert {"type", "what", "where", "remedy"} <= spoken.error.keys()
    assert "Traceback" not in plain.stderr + spoken.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rum", "run"), ("promot", "promote"), ("export_service", "export-service"), ("servr", "serve")],
)
def test_an_unknown_command_is_answered_with_the_nearest(typed: str, meant: str, project: Project) -> None:
    said = project.n2p(typed, "--json")
    assert f"did you mean '{meant}'?" in said.error["what"]
    assert f"did you mean '{meant}'?" in said.stderr


def test_an_unknown_command_without_a_near_one_suggests_none(project: Project) -> None:
    assert "did you mean" not in project.n2p("xyzzy").stderr


# Errors

FAILURES: dict[str, tuple[list[str], str, int]] = {
    "no-notebook": (["run", "missing.ipynb"], "NotFoundError", 2),
    "no-bundle": (["bundle", "show", "missing"], "NotFoundError", 2),
    "no-bundle-in-folder": (["bundle", "show", "."], "NotFoundError", 2),
    "no-run": (["register", "latest", "--name", "flights"], "NotFoundError", 2),
    "no-history": (["history", "flights"], "NotFoundError", 2),
    "bad-name": (["history", "a/b"], "InputError", 2),
    "bad-alias": (["promote", "flights", "1", "--to", "v1"], "InputError", 2),
    "bad-alias-of-rollback": (["rollback", "flights", "--alias", "Production"], "InputError", 2),
    "nothing-to-roll-back": (["rollback", "flights"], "NotFoundError", 2),
    "no-version-named": (["serve", "flights"], "NotFoundError", 2),
    "no-version-to-export": (["export-service", "flights", "service"], "NotFoundError", 2),
    "no-demo-in-a-file": (["demo", "pyproject.toml"], "UsageError", 2),
}


@pytest.mark.parametrize("case", FAILURES)
def test_every_error_says_what_where_and_the_remedy(case: str, project: Project) -> None:
    arguments, kind, code = FAILURES[case]
    done = project.n2p(*arguments, "--json")
    assert (done.code, done.error["type"], done.error["exit_code"]) == (code, kind, code), done
    assert all(done.error[part] for part in ("what", "where", "remedy"))
    assert done.error["what"] in done.stderr
    assert "Traceback" not in done.stderr


def test_verbose_shows_the_traceback_of_an_error(project: Project) -> None:
    assert "Traceback" not in project.n2p("history", "flights").stderr
    shown = project.n2p("history", "flights", "-v")
    assert "Traceback (most recent call last)" in shown.stderr
    assert "NotFoundError" in shown.stderr


def test_a_store_that_cannot_be_written_ends_with_3(project: Project) -> None:
    done = project.n2p("history", "flights", "--json", N2P_HOME="/dev/null/store")
    assert (done.code, done.error["type"]) == (3, "StoreError")
    assert "N2P_HOME" in done.error["remedy"]


def test_a_tracking_server_that_does_not_answer_ends_with_3(project: Project) -> None:
    done = project.n2p("serve", "flights@1", "--json", MLFLOW_TRACKING_URI="http://user:hunter2@127.0.0.1:9")
    assert (done.code, done.error["type"]) == (3, "TrackingError")
    assert "hunter2" not in done.stdout + done.stderr


def test_text_for_people_and_json_for_programs_say_the_same(project: Project) -> None:
    plain, spoken = project.n2p("history", "flights"), project.n2p("history", "flights", "--json")
    assert plain.stdout == ""
    assert plain.stderr == spoken.stderr
    assert [part for part in ("what", "where", "remedy") if spoken.error[part] not in plain.stderr] == []


def test_no_color_where_nobody_looks(project: Project) -> None:
    assert "\x1b" not in project.n2p("history", "flights").stderr
