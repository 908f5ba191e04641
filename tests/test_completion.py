"""Completion in the shells themselves: commands, options, and names that the registry knows."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess

import pytest
from notebooks import SCRIPTS, Project

SHELLS = {
    "bash": """
source ./script
COMP_WORDS=({words} "{last}"); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1))
_n2p_completion n2p "{last}" "" 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """
autoload -U compinit; compinit -D -u
source ./script
compadd() {{ print -l -- $completions }}
_describe() {{ print -l -- ${{completions_with_descriptions%%:*}} }}
words=({words} "{last}"); CURRENT=${{#words}}
_n2p_completion
""",
    "fish": """
source ./script
complete -C "{words} {last}"
""",
}


@pytest.fixture
def known(project: Project) -> Project:
    """A project with the script of each shell and a registry of two models."""
    project.home.mkdir()
    with contextlib.closing(sqlite3.connect(project.home / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE registered_models (name TEXT)")
        database.execute("CREATE TABLE registered_model_aliases (name TEXT, alias TEXT)")
        database.execute("CREATE TABLE model_versions (name TEXT, version INTEGER, current_stage TEXT)")
        database.execute("INSERT INTO registered_models VALUES ('flights'), ('flats')")
        database.execute("INSERT INTO registered_model_aliases VALUES ('flights', 'production')")
        database.execute("INSERT INTO model_versions VALUES ('flights', 7, 'None')")
    return project


def completed(project: Project, shell: str, words: str, last: str) -> set[str]:
    program = shutil.which(shell) or pytest.skip(f"{shell} is not installed")
    script = project.n2p("completion", shell)
    assert script.code == 0, script
    (project.folder / "script").write_text(script.stdout)
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    environment = project.environment(
        {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "HOME": str(project.folder)}
    )
    text = SHELLS[shell].format(words=words, last=last)
    done = subprocess.run(
        [program, *options, "-c", text],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_and_names(known: Project, shell: str) -> None:
    assert completed(known, shell, "n2p", "re") == {"reproduce", "register", "retire", "retrain", "review"}
    assert {"--certfile"} == completed(known, shell, "n2p serve", "--ce")
    assert completed(known, shell, "n2p bundle", "ve") == {"verify"}
    assert completed(known, shell, "n2p serve", "fl") == {"flats", "flights", "flights@production", "flights@7"}
    assert completed(known, shell, "n2p history", "fli") == {"flights"}
    assert completed(known, shell, "n2p completion", "z") == {"zsh"}
    assert completed(known, shell, "n2p keys new", "fl") == set()  # that is no model


def test_a_name_with_an_alias_is_one_word_in_bash(known: Project) -> None:
    assert "COMP_WORDBREAKS=${COMP_WORDBREAKS//@}" in known.n2p("completion", "bash").stdout
    assert completed(known, "bash", "n2p serve", "flights@p") == {"flights@production"}


def test_names_are_those_of_the_environment_that_is_asked_for(known: Project) -> None:
    home = known.folder / "stores" / "dev"
    (home / "runs" / "20260101-000000-aaaaaaaa").mkdir(parents=True)
    shutil.move(known.home / "mlflow.db", home / "mlflow.db")
    (known.folder / "pyproject.toml").write_text('[tool.n2p.environments.dev]\nhome = "stores/dev"\n')
    variables = {"_N2P_COMPLETE": "bash_complete"}

    def offered(line: str, at: int, **more: str) -> set[str]:
        done = known.command("n2p", **variables, **more, COMP_WORDS=line, COMP_CWORD=str(at))
        assert (done.code, done.stderr) == (0, ""), done
        return {each.partition(",")[2] for each in done.stdout.split()}

    names = {"flats", "flights", "flights@production", "flights@7"}
    assert offered("n2p serve fl", 2) == set()
    assert offered("n2p serve fl", 2, N2P_ENV="dev") == names
    assert offered("n2p serve --env dev fl", 4) == names
    assert offered("n2p bundle show --env dev 2", 5) == {"20260101-000000-aaaaaaaa"}
    assert offered("n2p serve fl", 2, N2P_ENV="absent") == set()
    assert offered("n2p serve --env d", 3) == {"dev"}
    assert offered("n2p promote flights --from d", 4) == {"dev"}
    uri = f"sqlite:///{home / 'mlflow.db'}?timeout=5"
    assert offered("n2p serve fl", 2, MLFLOW_TRACKING_URI=uri) == names
    assert offered("n2p serve fl", 2, MLFLOW_TRACKING_URI="http://10.255.255.1:9/", MLFLOW_REGISTRY_URI=uri) == names


def test_where_a_version_is_promoted_to_is_completed_to_aliases_and_between_environments_to_these(
    known: Project,
) -> None:
    (known.folder / "pyproject.toml").write_text(
        '[tool.n2p.stages]\nstaging = true\n[tool.n2p.environments.live]\nhome = "stores/live"\nalias = "blue"\n'
    )

    def offered(line: str) -> set[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = known.command("n2p", _N2P_COMPLETE="bash_complete", **words)
        assert (done.code, done.stderr) == (0, ""), done
        return {each.partition(",")[2] for each in done.stdout.split()}

    assert offered("n2p promote flights 7 --to ") == {"production", "staging"}
    assert offered("n2p approve flights@7 --to ") == {"production", "staging"}
    assert offered("n2p promote flights 7 --env live --to ") == {"blue", "staging"}
    assert offered("n2p promote flights --from dev --to ") == {"live"}


@pytest.mark.parametrize("database", ["absent", "torn", "elsewhere"])
def test_a_registry_that_cannot_be_asked_completes_to_nothing(known: Project, database: str) -> None:
    path, variables = known.home / "mlflow.db", {"_N2P_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    path.unlink()
    if database == "torn":
        path.write_bytes(b"torn" * 300)
    if database == "elsewhere":  # nobody answers there, and nobody is asked
        variables["MLFLOW_TRACKING_URI"] = "http://10.255.255.1:9/"
    done = known.command("n2p", **variables, COMP_WORDS="n2p serve fl")
    assert (done.code, done.stdout.strip(), done.stderr) == (0, "", "")


def test_nothing_heavy_is_imported_to_complete(known: Project) -> None:
    code = "import sys; from notebook_to_prod.cli.app import main\ntry: main([])\nexcept SystemExit: pass\nprint(*sys.modules)"
    variables = {"_N2P_COMPLETE": "bash_complete", "COMP_CWORD": "2", "COMP_WORDS": "n2p serve fl"}
    environment = known.environment(variables)
    done = subprocess.run(
        [SCRIPTS / "python", "-c", code], cwd=known.folder, env=environment, capture_output=True, text=True, check=True
    )
    assert "plain,flights@production" in done.stdout
    assert not {"pandas", "numpy", "sklearn", "mlflow", "fastapi", "pydantic"} & {*done.stdout.split()}
