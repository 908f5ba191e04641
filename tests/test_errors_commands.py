"""What commands, magics, pages and templates refuse: what, where, and what to do about it."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from notebooks import make_notebook
from provoked import Wrong, check, each_of, settings, written
from starlette.testclient import TestClient

from notebook_to_prod.cli.app import app
from notebook_to_prod.cli.output import command
from notebook_to_prod.cli.schedule import check_command
from notebook_to_prod.errors import (
    AccessError,
    DataError,
    InputError,
    NotFoundError,
    ParameterError,
    ServerError,
    StoreError,
)
from notebook_to_prod.jupyter.magics import N2PMagics, run_command
from notebook_to_prod.jupyter.open_notebook import open_notebook
from notebook_to_prod.jupyter.parameters import read_parameters
from notebook_to_prod.package.gates.policy import find_policy
from notebook_to_prod.package.trust import trusted_libraries
from notebook_to_prod.project import open_store
from notebook_to_prod.release.people import read_people
from notebook_to_prod.release.records import card_settings
from notebook_to_prod.release.score import declared_evidence
from notebook_to_prod.release.stages import read_stages
from notebook_to_prod.release.webhook import read_webhooks
from notebook_to_prod.scaffold.checkup import check_bundles
from notebook_to_prod.scaffold.new import check_project_name, git, new_project, read_record
from notebook_to_prod.scaffold.template import Answers, find_template, notebook_text, read_templates, render
from notebook_to_prod.scaffold.upgrade import apply_upgrade, plan_upgrade
from notebook_to_prod.ui.app import change_approval, make_app
from notebook_to_prod.ui.desk import Desk
from notebook_to_prod.ui.door import Door, own_token, require_loopback
from notebook_to_prod.ui.released import ask_server, attempt, environments
from notebook_to_prod.ui.rendered import render_notebook
from notebook_to_prod.ui.start import start_ui

# Commands, as `%n2p` runs them in a notebook


def n2p(*arguments: str | Path) -> Callable[[], None]:
    return lambda: run_command([str(each) for each in arguments])


def train() -> Path:
    return make_notebook(Path("train.ipynb"), {"parameters": "x = 1"})


def of(*arguments: str) -> Callable[[], None]:
    return lambda: (train(), run_command(["run", "train.ipynb", *arguments]))[1]


COMMANDS = {
    "a rule that there is not": Wrong(
        n2p("alerts", "backtest", "flights", "--rule", "drift"),
        InputError,
        "there is no rule 'drift'",
        "--rule",
        "the rules are",
    ),
    "signals in no file": Wrong(
        n2p("alerts", "backtest", "flights", "--signals", "none.jsonl"),
        InputError,
        "the signals cannot be read",
        "none.jsonl",
        "JSON lines",
    ),
    "no channel": Wrong(
        n2p("alerts", "test"),
        InputError,
        "there are no channels",
        "[tool.n2p.channels]",
        "write [tool.n2p.channels.team]",
    ),
    "a channel that there is not": Wrong(
        lambda: (
            settings('[tool.n2p.channels.team]\nkind = "slack"\nurl = "$URL"'),
            run_command(["alerts", "test", "taem"]),
        ),
        InputError,
        "no channel 'taem', did you mean 'team'?",
        "[tool.n2p.channels]",
        "the channels are team",
    ),
    "nothing to register": Wrong(
        n2p("compress", "flights", "--gate"),
        InputError,
        "there is nothing to gate or to register",
        "--gate, --name",
        "--keep VARIANT",
    ),
    "three scrapes": Wrong(
        n2p("diagnose", "flights", *["--metrics", "a"] * 3),
        InputError,
        "3 scrapes are given",
        "--metrics",
        "the earlier one first",
    ),
    "a folder that there is not": Wrong(
        n2p("doctor", "none"), NotFoundError, "there is no such folder", "none", "the folder of a project"
    ),
    "no event": Wrong(n2p("events", "retry"), InputError, "it is not said which event", "n2p events retry", "--all"),
    "a bundle that there is not": Wrong(
        n2p("gate", "abcdef"), NotFoundError, "there is no run 'abcdef'", "runs", "n2p run NOTEBOOK"
    ),
    "no bundle": Wrong(n2p("gate"), InputError, "there is no bundle to judge", "BUNDLE", ""),
    "an override of nobody": Wrong(
        n2p("gate", "abcdef", "--override", "because"), InputError, "an override needs a reason and a name", "--by", ""
    ),
    "past versions of no model": Wrong(
        n2p("gate", "--backtest", "flights"), NotFoundError, "there is no model 'flights'", ".n2p", "n2p register RUN"
    ),
    "an approval of an alias": Wrong(
        n2p("approve", "flights@canary"),
        InputError,
        "'flights@canary' names an alias",
        "NAME@VERSION",
        "n2p show flights",
    ),
    "two changes of mind": Wrong(
        n2p("approve", "flights@1", "--revoke", "--withdraw"),
        InputError,
        "one by one",
        "--revoke, --withdraw, --reject",
        "one of the three",
    ),
    "a token of nobody": Wrong(n2p("token", "new", " "), InputError, "' ' cannot be a person", "USER", "use a name"),
    "predictions that there are not": Wrong(
        n2p("predictions", "compact", "flights"),
        NotFoundError,
        "there are no predictions of 'flights'",
        "flights",
        "n2p serve",
    ),
    "a log of one version": Wrong(
        n2p("predictions", "compact", "flights@1"),
        NotFoundError,
        "there are no predictions of 'flights@1'",
        "flights",
        "write flights",
    ),
    "no environment": Wrong(
        n2p("promote", "flights", "--from", "staging"),
        InputError,
        "to which environment?",
        "--to",
        "--from staging --to production",
    ),
    "no version": Wrong(n2p("promote", "flights"), InputError, "which version?", "VERSION", "n2p promote flights 2"),
    "two versions": Wrong(
        n2p("promote", "flights@1", "2"),
        InputError,
        "'flights@1' and 2 both name a version",
        "VERSION",
        "n2p promote flights 2",
    ),
    "an archive of an alias": Wrong(
        n2p("archive", "flights@canary"),
        InputError,
        "'flights@canary' names an alias",
        "NAME@VERSION",
        "n2p show flights",
    ),
    "a time to come": Wrong(
        n2p("live", "flights", "--at", "9000-01-01"), InputError, "is in the future", "--at", "leave --at out"
    ),
    "no audit log": Wrong(
        lambda: (open_store(), run_command(["audit", "verify"])),
        StoreError,
        "there is no audit log here yet",
        "audit",
        "",
    ),
    "a retraining of two minds": Wrong(
        n2p("retrain", "flights", "--status", "--abort"),
        InputError,
        "stand alone",
        "command line",
        "leave the other options out",
    ),
    "a retraining of no model": Wrong(n2p("retrain"), InputError, "which model?", "NAME", "n2p retrain NAME"),
    "a watch over no models": Wrong(
        n2p("retrain", "--watch"),
        InputError,
        "nothing says which models are retrained",
        "[tool.n2p.retrain]",
        "write notebook",
    ),
    "a retraining that does not go on": Wrong(
        n2p("retrain", "flights", "--abort"), NotFoundError, "no retraining of 'flights' goes on", "flights", "--status"
    ),
    "a rollout of two kinds": Wrong(
        n2p("rollout", "start", "flights", "2", "--shadow", "--ab", "10%"),
        InputError,
        "one of canary, shadow and A/B test",
        "--canary",
        "name one",
    ),
    "a rollout of one step and all": Wrong(
        n2p("rollout", "start", "flights", "2", "--canary", "1%", "--steps", "1,10"),
        InputError,
        "--canary is one step",
        "--steps",
        "leave --canary out",
    ),
    "a rollout of no model": Wrong(
        n2p("rollout", "status", "flights"), NotFoundError, "there is no model 'flights'", ".n2p", "n2p register RUN"
    ),
    "the end of no rollout": Wrong(
        n2p("rollout", "abort", "flights"),
        NotFoundError,
        "there is no rollout of 'flights'",
        "flights",
        "n2p rollout start flights",
    ),
    "settings of a rollout that are a number": Wrong(
        lambda: (settings("[tool.n2p.serve]\nrollout = 3"), run_command(["rollout", "watch", "flights"])),
        InputError,
        "'rollout' is not a table",
        "[tool.n2p.serve]",
        "below [tool.n2p.serve.rollout]",
    ),
    "a sealed grid": Wrong(of("--grid", "x=1,2", "--seal"), InputError, "--seal is for one run", "%n2p run", "--help"),
    "a registered grid": Wrong(
        of("--grid", "x=1,2", "--register", "a"), InputError, "--register is for one run", "%n2p run", "--help"
    ),
    "a grid in one notebook": Wrong(
        of("--grid", "x=1,2", "--output", "o.ipynb"), InputError, "--output is for one run", "%n2p run", "--help"
    ),
    "words too many": Wrong(of(" "), InputError, "unexpected extra argument", "%n2p run", "--help"),
    "a command that there is not": Wrong(n2p("rum"), InputError, "rum", "%n2p rum", "--help"),
    "a scheduled command that there is not": Wrong(
        lambda: check_command(app, ["wach"]),
        InputError,
        "there is no command 'wach', did you mean 'watch'?",
        "wach",
        "the commands are",
    ),
    "a scheduled service": Wrong(
        lambda: check_command(app, ["serve", "flights"]),
        InputError,
        "n2p serve is not for a schedule",
        "serve",
        "the commands are",
    ),
    "a scheduled option that there is not": Wrong(
        lambda: check_command(app, ["watch", "flights", "--windw", "1d"]),
        InputError,
        "no option '--windw', did you mean '--window'?",
        "watch flights",
        "n2p watch --help",
    ),
    "a scheduled command without its name": Wrong(
        lambda: check_command(app, ["watch"]), InputError, "Missing argument", "watch", "n2p watch --help"
    ),
    "scheduled words too many": Wrong(
        lambda: check_command(app, ["watch", "flights", "hotels"]),
        InputError,
        "unexpected: hotels",
        "watch flights hotels",
        "n2p watch --help",
    ),
}

# Notebooks


def magic(line: str, cell: str | None = None) -> Any:
    from IPython.core.interactiveshell import InteractiveShell

    return N2PMagics(InteractiveShell()).n2p(line, cell)


def opened(variable: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("N2P_RUN_ID", raising=False)
        patch.delenv("JPY_SESSION_NAME", raising=False)
        return open_notebook({"__vsc_ipynb_file__": variable} if variable else {})


JUPYTER = {
    "quotes that do not close": Wrong(
        lambda: magic("run 'a"),
        InputError,
        "the line cannot be read: No closing quotation",
        "%n2p run 'a",
        "close the quotes",
    ),
    "a magic that there is not": Wrong(
        lambda: magic("params", "x = 1"),
        InputError,
        "there is no cell magic '%%n2p params'",
        "the first line",
        "%%n2p parameters",
    ),
    "a notebook that nobody tells of": Wrong(
        lambda: opened(""), NotFoundError, "", "VS Code", "as in %n2p check train.ipynb"
    ),
    "a notebook that has moved": Wrong(
        lambda: opened("/none/train.ipynb"),
        NotFoundError,
        "the notebook that is open is not there",
        "/none/train.ipynb",
        "save it",
    ),
    "parameters that are not Python": Wrong(
        lambda: read_parameters("x = = 1"), ParameterError, "is not Python", "line 2", "NAME = VALUE"
    ),
    "parameters that are computed": Wrong(
        lambda: read_parameters("x = 1\ny = x + 1"), ParameterError, "y", "the parameters cell", "NAME = LITERAL"
    ),
}

# Templates


def made(name: str = "flights", **options: Any) -> Any:
    return new_project(name, Path.cwd(), **{"lock": False, "repository": False, **options})


def learnt(table: dict[str, Any], template: str, time: str = "") -> None:
    pd.DataFrame(table).to_csv("rows.csv", index=False)
    made(template=template, data=Path("rows.csv"), target="y", time=time)


def csv(text: str) -> Path:
    return written("rows.csv", text)


def templates(text: str) -> Any:
    return read_templates(written("templates/template.toml", text).parent)


MANY = [*range(240)]

SCAFFOLD = {
    "a project of two words": Wrong(
        lambda: check_project_name("mein schönes Modell"),
        InputError,
        "cannot be the name of a project",
        "NAME",
        "such as mein-schones-Modell",
    ),
    "a project called like a module": Wrong(
        lambda: check_project_name("tests"),
        InputError,
        "'tests' cannot be the name of a project",
        "NAME",
        "tests-model",
    ),
    "a table that is no CSV": Wrong(
        lambda: made(data=Path("rows.xlsx"), target="y"),
        InputError,
        "only tables in .csv files",
        "rows.xlsx",
        "write it as CSV",
    ),
    "a table that there is not": Wrong(
        lambda: made(data=Path("none.csv"), target="y"),
        DataError,
        "the table cannot be read",
        "none.csv",
        "UTF-8",
    ),
    "a target that there is not": Wrong(
        lambda: made(data=csv("delya,b\n1,2\n"), target="delay"),
        InputError,
        "no column 'delay', did you mean 'delya'?",
        "--target, rows.csv",
        "the columns are",
    ),
    "a table of two rows": Wrong(
        lambda: learnt({"y": [1, 2], "x": [1, 2]}, "regression"),
        DataError,
        "2 rows of 2 columns have 'y'",
        "rows.csv",
        "at least",
    ),
    "a number that is none": Wrong(
        lambda: learnt({"y": [f"{each} s" for each in MANY], "x": MANY}, "regression"),
        DataError,
        "'y' is no number",
        "rows.csv",
        "--target",
    ),
    "classes of one row": Wrong(
        lambda: learnt({"y": MANY, "x": MANY}, "classification"),
        DataError,
        "'y' has 240 values, the rarest in 1 rows",
        "rows.csv",
        "classes of",
    ),
    "moments that are none": Wrong(
        lambda: learnt({"y": MANY, "when": ["soon"] * 240}, "forecasting", time="when"),
        DataError,
        "'when' holds no moments",
        "rows.csv",
        "--time",
    ),
    "a project that was not made": Wrong(
        lambda: read_record(Path.cwd()), InputError, "was not made by n2p new", "project", "n2p new"
    ),
    "a folder that there is not": Wrong(
        lambda: new_project("flights", Path("none"), lock=False),
        InputError,
        "the folder to make it in is not there",
        "none",
        "--into",
    ),
    "a name that is taken": Wrong(
        lambda: (written("flights", ""), made()),
        InputError,
        "there is something of that name",
        "flights",
        "another name",
    ),
    "a moment of no series": Wrong(
        lambda: made(time="when"),
        InputError,
        "only a series has a column of the moment",
        "--time",
        "--template forecasting",
    ),
    "a table without a target": Wrong(
        lambda: made(data=csv("a,b\n1,2\n")),
        InputError,
        "which column of the table is predicted?",
        "rows.csv",
        "--target",
    ),
    "a template that there is not": Wrong(
        lambda: find_template("regresion"),
        NotFoundError,
        "did you mean 'regression'?",
        "--template",
        "the templates are",
    ),
    "templates that are no TOML": Wrong(
        lambda: templates("["), InputError, "the templates cannot be read", "template.toml", "notebook_to_prod/scaffold"
    ),
    "templates of no version": Wrong(
        lambda: templates("version = 0"), InputError, "version is 0", "template.toml", "notebook_to_prod/scaffold"
    ),
    "a template without cells": Wrong(
        lambda: notebook_text("x = 1"), InputError, "has no cells, or two of one name", "x = 1", "begin each cell"
    ),
    "git that refuses": Wrong(
        lambda: git(Path("/"), "rev-parse", "HEAD"), StoreError, "git rev-parse: ", "/", "by hand"
    ),
    "git that is not there": Wrong(lambda: without_git(), StoreError, "git status does not end", "project", "by hand"),
}


def without_git() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        return git(Path.cwd(), "status")


# Pages


def with_token(value: str, act: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_UI_TOKEN", value)
        return act()


def damaged() -> None:
    error = attempt(lambda: {}["name"])[1]
    assert error is not None
    raise error


UI = {
    "a token that is short": Wrong(
        lambda: with_token("abc", own_token), InputError, "the token has 3 letters", "N2P_UI_TOKEN", "make one"
    ),
    "an address of others": Wrong(
        lambda: with_token("", lambda: require_loopback("0.0.0.0")),
        AccessError,
        "others can reach 0.0.0.0",
        "--host",
        "N2P_UI_TOKEN",
    ),
    "pages of MLflow nowhere": Wrong(
        lambda: start_ui(mlflow="localhost:5000"),
        InputError,
        "'localhost:5000' is no address of a page",
        "--mlflow",
        "http://127.0.0.1:5000",
    ),
    "a port that there is not": Wrong(
        lambda: start_ui(port=99_999), ServerError, "the address", "127.0.0.1:99999", "port"
    ),
    "a server of MLflow that does not answer": Wrong(
        lambda: ask_server("http://ann:hunter2@127.0.0.1:1", "x"),
        StoreError,
        "MLflow does not answer: ConnectError",
        "http://***@127.0.0.1:1",
        "that the server runs",
    ),
    "a record that is damaged": Wrong(
        damaged, StoreError, "a record is damaged: KeyError: 'name'", "the store", "from a backup"
    ),
    "a run without its notebook": Wrong(
        lambda: render_notebook(Path("none.ipynb")),
        NotFoundError,
        "has no output notebook",
        "none.ipynb",
        "n2p run NOTEBOOK",
    ),
    "a notebook that is damaged": Wrong(
        lambda: render_notebook(written("a.ipynb", "{")),
        StoreError,
        "the notebook cannot be shown",
        "a.ipynb",
        "open it in Jupyter",
    ),
}


# Projects that are upgraded, and forms


def project_made() -> Path:
    made()
    return Path("flights").resolve()


def of_the_future() -> Any:
    path = next(each for each in project_made().rglob("*.json") if "template_version" in each.read_text("utf-8"))
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | {"template_version": 999}), "utf-8")
    return plan_upgrade(Path("flights"))


def cut_short() -> Any:
    path = next(each for each in project_made().rglob("*.json") if "template_version" in each.read_text("utf-8"))
    path.write_text("{", "utf-8")
    return plan_upgrade(Path("flights"))


def linked() -> Any:
    place = project_made() / "README.md"
    place.unlink()
    place.symlink_to("/etc/hostname")
    return plan_upgrade(Path("flights"))


def beside_all() -> Any:
    project = project_made()
    record = project / ".n2p-template.json"
    content = json.loads(record.read_text("utf-8"))
    del content["files"]["README.md"]
    record.write_text(json.dumps(content), "utf-8")
    for number in range(1000):
        written(f"flights/README.md{f'.new{number if number > 1 else str()}' if number else ''}", f"mine {number}")
    return plan_upgrade(project)


def changed_meanwhile() -> Any:
    project = project_made()
    record = project / ".n2p-template.json"
    content = json.loads(record.read_text("utf-8"))
    del content["files"]["README.md"]
    record.write_text(json.dumps(content), "utf-8")
    (project / "README.md").unlink()
    upgrade = plan_upgrade(project)
    written("flights/README.md", "mine")
    return apply_upgrade(upgrade)


def wrong_mark() -> Any:
    template = find_template("regression")
    written("templates/common/a.jinja", "<< nothing >>")
    Path("templates/regression").mkdir(parents=True)
    return render(
        replace(template, folder=Path("templates").resolve()), Answers("a", "regression", "y", "rows.csv", "3.11", "1")
    )


FORMS = {
    "a record that is cut short": Wrong(
        cut_short, InputError, "the record of the template cannot be read", "flights", "from version control"
    ),
    "a project of newer templates": Wrong(
        of_the_future, InputError, "from version 999 of the templates", "flights", ""
    ),
    "a file that leads out of the project": Wrong(
        linked, InputError, "this is no file of the project any more", "README.md", "upgrade again"
    ),
    "a file that changes meanwhile": Wrong(
        changed_meanwhile, InputError, "the file changed while the upgrade was decided", "README.md", "upgrade again"
    ),
    "no name beside a file": Wrong(
        beside_all,
        InputError,
        "there is no name left to put the template's file beside it",
        "README.md",
        "remove README.md.new and those like it",
    ),
    "a folder that takes nothing": Wrong(
        lambda: new_project("flights", Path("/proc"), lock=False, repository=False),
        StoreError,
        "",
        "/proc",
        "with --into",
    ),
    "a template with a wrong mark": Wrong(
        wrong_mark, InputError, "the template cannot be rendered: 'nothing' is undefined", "a.jinja", "<< name >>"
    ),
    "a form without a version": Wrong(
        lambda: change_approval(desk(), {"action": "approve", "name": "flights", "version": "two"}),
        InputError,
        "'two' is no version",
        "version",
        "the form of the page",
    ),
    "a form that does nothing": Wrong(
        lambda: change_approval(desk(), {"action": "applaud", "version": "1", "stage": "production"}),
        InputError,
        "'applaud' is nothing that can be done",
        "action",
        "use one of approve",
    ),
}


def desk() -> Any:
    from notebook_to_prod.release.registry import Registry

    store = open_store()
    return SimpleNamespace(store=store, registry=Registry(store))


@pytest.mark.usefixtures("project")
@each_of(COMMANDS, JUPYTER, SCAFFOLD, UI, FORMS)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)


# What is the same for all


def watch_rules() -> Any:
    from notebook_to_prod.watch.rules import project_rules

    return project_rules()


READERS: dict[str, Callable[[], Any]] = {
    "check": lambda: run_command(["check", str(train())]),
    "gates": lambda: find_policy(Path.cwd()),
    "trusted": trusted_libraries,
    "stages": read_stages,
    **dict.fromkeys(("owners", "teams", "roles", "alerts", "tokens"), read_people),
    "webhooks": read_webhooks,
    "card": card_settings,
    "score": lambda: declared_evidence(Path.cwd()),
    "watch": watch_rules,
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("value", ["3", '["a", 3]', "true", "2026-01-01"])
def test_a_setting_of_another_type_is_refused(name: str, value: str) -> None:
    settings(f"[tool.n2p]\n{name} = {value}")
    with pytest.raises(InputError) as caught:
        READERS[name]()
    assert "pyproject.toml" in str(caught.value) and name in str(caught.value) and caught.value.remedy


def test_a_mistake_of_this_package_ends_with_3_and_asks_for_the_traceback() -> None:
    from click.testing import CliRunner

    @command("broken")
    def broken(terminal: Any) -> None:
        """Fail."""
        raise ZeroDivisionError("division by zero")

    done = CliRunner().invoke(broken, [])
    assert done.exit_code == 3
    assert done.stderr.splitlines()[0] == "error: unexpected ZeroDivisionError: division by zero"
    assert "-v" in done.stderr


# What a browser is told


SECRET, HERE = "a-token-that-nobody-guesses", "http://127.0.0.1:8790"


def browser(**door: Any) -> TestClient:
    """A browser that has entered the page of the project in the current folder."""
    client = TestClient(
        make_app(Desk(open_store(), Path.cwd(), Door(SECRET, start="start", **door))),
        HERE,
        raise_server_exceptions=False,
    )
    assert client.post("/enter", data={"token": SECRET}, headers={"origin": HERE}).status_code < 400
    return client


def posted(path: str, **fields: str) -> Any:
    form = {"key": Door(SECRET, start="start").form_key, **fields}
    return browser().post(path, data=form, headers={"origin": HERE})


def ended() -> Any:
    """A form about a rollout, of which there is none any more."""
    return posted("/rollouts", name="flights", action="abort", change="x")


def broken_page() -> Any:
    client = browser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notebook_to_prod.ui.app.find_runs", lambda *some: 1 / 0)  # no mistake of ours is known
        return client.get("/runs")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("ask", "status", "what", "where", "remedy"),
    [
        pytest.param(*each, id=each[2])
        for each in (
            (lambda: browser().get("/nowhere"), 404, "there is no such page", "/nowhere", "choose one of the menu"),
            (lambda: browser().get("/models/flights"), 404, "there is no model 'flights'", ".n2p", "n2p register RUN"),
            (
                lambda: browser().get("/gates/abc"),
                404,
                "no gate was asked about the bundle abc",
                ".n2p",
                "n2p gate abc",
            ),
            (
                lambda: browser().get("/lineage?of=flights@9"),
                404,
                "there is no version 'flights@9'",
                "lineage",
                "choose one of the list",
            ),
            (lambda: posted("/approvals", reason="x" * 20_001), 422, "the form is too long", "/approvals", "shorter"),
            (
                lambda: posted("/approvals", key="another"),
                403,
                "the form is not one of this page",
                "/approvals",
                "use the form of the page, opened on this machine",
            ),
            (
                lambda: posted("/approvals", version="two", action="approve"),
                422,
                "'two' is no version",
                "version",
                "use the form of the page",
            ),
            (ended, 404, "rollout", "flights", ""),
            (broken_page, 500, "unexpected ZeroDivisionError", "/runs", "where n2p ui was started"),
        )
    ],
)
def test_a_page_says_what_where_and_what_to_do(
    ask: Callable[[], Any], status: int, what: str, where: str, remedy: str
) -> None:
    page = ask()
    said = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))
    assert page.status_code == status, said
    assert what in said and where in said and remedy in said, said


def test_a_notebook_that_is_too_large_for_a_page(project: Any) -> None:
    path = written("large.ipynb", "")
    os.truncate(path, 65 * 2**20)  # of nothing
    check(
        Wrong(lambda: render_notebook(path), StoreError, "has 68 MB, too much for a page", "large.ipynb", "in Jupyter")
    )


def test_a_bundle_without_its_manifest_is_found(project: Any) -> None:
    (open_store().bundles / "abc").mkdir(parents=True)
    (found,) = check_bundles(open_store(), False)
    assert found.what == "bundle abc is damaged: it has no manifest"
    assert "from a backup" in found.remedy


def test_an_environment_whose_registry_is_damaged_is_shown_with_the_reason(project: Any) -> None:
    written("other/mlflow.db", "nothing of the kind" * 999)
    settings('[tool.n2p.environments.staging]\nhome = "other"')
    (look,) = environments(Path.cwd())
    problem = look().problem
    assert problem is not None and problem.what == "its registry cannot be read now"
    assert "mlflow.db" in (problem.where or "") and problem.remedy == "open it to see why"


def test_a_run_that_makes_no_bundle_is_not_sealed_and_says_why(project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    train()
    run_command(["run", "train.ipynb", "--seal", "--allow-unlocked"])
    said = "".join(capfd.readouterr())
    assert "its bundle is not sealed: the run made no bundle to seal" in said
    assert "where:  run " in said and "remedy: end the notebook with run.export(...)" in said
