"""Schedules: each file is taken by what it is for, runs once, tells a verdict from a failure, and holds no secret."""

from __future__ import annotations

import ast
import fcntl
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from notebooks import SCRIPTS, Done, Project

from notebook_to_prod.errors import InputError
from notebook_to_prod.watch.cron import Cron
from notebook_to_prod.watch.schedule import PLATFORMS, Schedule, schedule_text, secret_variables, write_schedule

COMMAND = ("watch", "flights", "--window", "1d", "--alert")
PLANTED = "hooks.slack.com/services/planted"


def made(project: Project, platform: str, *command: str, every: str = "0 6 * * mon") -> Path:
    return write_schedule(Schedule(platform, Cron.parse(every), command or COMMAND), project=project.folder).path


@pytest.fixture
def scheduled(project: Project) -> Project:
    """A project with a channel whose address is in a variable, a locked requirement that is installed, and two notebooks."""
    (project.folder / "pyproject.toml").write_text(
        '[tool.n2p.channels.team]\nkind = "slack"\nurl = "$SLACK_URL"\n\n'
        '[tool.n2p.environments.gone]\nhome = "/proc/absent/store"\n'
    )
    project.notebook("good.ipynb", {"parameters": "seed = 1", "code": "print(seed)"})
    project.notebook("bad.ipynb", {"parameters": "seed = 1", "code": "print(missing_name)\n/home/ann/x ="})
    return project


@pytest.mark.parametrize(
    ("platform", "out", "better"),
    [
        ("airflow", "dags/watch", "dags/watch.py"),
        ("github", "ci/watch.yml", ".github/workflows/watch.yml"),
        ("github", ".github/workflows/watch.yml", ""),
    ],
)
def test_a_place_where_the_platform_does_not_look_is_warned_of(
    project: Project, platform: str, out: str, better: str
) -> None:
    done = project.n2p(
        "schedule", "--on", platform, "--every", "daily", "--out", out, "--json", "--", "watch", "flights"
    )
    assert done.code == 0 and (project.folder / out).exists(), done
    assert f"--out {better}\n" in done.stderr if better else "warning" not in done.stderr, done.stderr


# What gives each exit code, with the real command
ENDS = {
    0: ("check", "good.ipynb"),
    1: ("check", "bad.ipynb"),
    2: ("check", "absent.ipynb"),
    3: ("alerts", "list", "--env", "gone"),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_secrets_are_named_and_never_written(
    scheduled: Project, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_URL", f"https://{PLANTED}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:{PLANTED}@mlflow")
    text = made(scheduled, platform).read_text()
    assert "SLACK_URL" in text and "MLFLOW_TRACKING_URI" in text and "planted" not in text
    with pytest.raises(InputError) as error:
        Schedule(platform, Cron.parse("daily"), ("batch", "postgresql://ann:planted@db/x"))  # n2p: allow N2P601
    assert "planted" not in str(error.value)


def test_variables_are_found_at_any_depth() -> None:
    assert secret_variables({"one": ["$B", {"two": "x${A}y", "three": 1}], "four": None}) == ["A", "B"]


def test_a_command_that_there_is_not_is_refused_with_the_nearest(scheduled: Project) -> None:
    def refused(*words: str) -> dict[str, Any]:
        done = scheduled.n2p("schedule", "--json", "--on", "cron", "--every", "daily", "--", *words)
        assert done.code == 2, done
        return done.error

    assert refused("wacth", "flights")["what"] == "there is no command 'wacth', did you mean 'watch'?"
    option = refused("watch", "flights", "--windw", "1d")["what"]
    assert option == "n2p watch has no option '--windw', did you mean '--window'?"
    assert refused("serve", "flights")["what"] == "n2p serve is not for a schedule"
    assert not [*scheduled.folder.glob("*.crontab")]


def test_the_command_tells_when_it_runs_and_writes_where_the_platform_looks(scheduled: Project) -> None:
    given = ("--on", "github", "--every", "0 6 * * mon", "--timezone", "Europe/Berlin", "--", *COMMAND)
    done = scheduled.n2p("schedule", "--json", *given).json
    assert Path(done["schedule"]) == scheduled.folder / ".github/workflows/n2p-watch-flights.yml"
    assert done["action"] == "written" and all(each.startswith("Mon ") and " 06:00 CE" in each for each in done["next"])
    Path(done["schedule"]).write_text("name: mine\n")
    again = scheduled.n2p("schedule", "--json", *given)
    assert again.code == 2 and "something else" in again.error["what"]
    assert scheduled.n2p("schedule", "--json", "--force", *given).json["action"] == "replaced"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_edits_are_kept_merged_or_told(scheduled: Project, platform: str) -> None:
    path = made(scheduled, platform)
    original = path.read_text()
    path.write_text(f"{original}# by hand: ü\n")
    weekly, daily = (Schedule(platform, Cron.parse(every), COMMAND) for every in ("0 6 * * mon", "daily"))
    assert write_schedule(weekly, project=scheduled.folder).action == "kept"
    if platform != "cron":  # whose only line is next to the edit
        assert write_schedule(daily, project=scheduled.folder).action == "merged"
        assert path.read_text() == f"{schedule_text(daily, scheduled.folder)}# by hand: ü\n"
    path.write_text(original.replace("0 6 * * 1", "1 6 * * 1"))
    with pytest.raises(InputError, match="edited"):
        write_schedule(daily, project=scheduled.folder)
    assert "1 6 * * 1" in path.read_text()
    assert write_schedule(daily, force=True, project=scheduled.folder).action == "replaced"
    damaged = path.read_text().replace('{"command"', '{"commnad"')
    path.write_text(f"{damaged}# by hand\n")
    with pytest.raises(InputError, match="another version"):
        write_schedule(weekly, project=scheduled.folder)


@pytest.mark.parametrize("image", ["x\nevil: 1", "x; rm -rf ~", "a b", "ü"])
def test_what_is_no_image_is_refused(image: str) -> None:
    with pytest.raises(InputError, match="no name of an image"):
        Schedule("kubernetes", Cron.parse("daily"), COMMAND, image=image)


@pytest.mark.parametrize("text", ["0 0 *,15 * 1", "0 0 */2 * 1", "0 0 1 * */2"])
def test_days_that_schedulers_read_in_two_ways_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="two ways"):
        Cron.parse(text)


def test_words_of_the_command_reach_it_as_they_were(scheduled: Project) -> None:
    """What a shell, YAML, Python or cron could take for its own."""
    command = (
        "batch",
        "a'b\"c",
        "--where",
        "x > 5 && $(touch planted) `touch planted` 100% a\\%b a$$b \\ # : ü",
        "{{ x }}",
        "<< y >>",
    )
    workflow = yaml.safe_load(made(scheduled, "github", *command).read_text())
    (step,) = [
        each for each in workflow["jobs"]["batch"]["steps"] if each["name" if "name" in each else "uses"] == "Run"
    ]
    echo = step["run"].replace("n2p batch", "printf '%s\\n' batch")
    shown = subprocess.run(
        ["bash", "-c", echo],
        cwd=scheduled.folder,
        env={**os.environ, "GITHUB_OUTPUT": "out"},
        text=True,
        capture_output=True,
    )
    assert shown.stdout.splitlines() == list(command)
    cron_job = yaml.safe_load(made(scheduled, "kubernetes", *command).read_text())
    (container,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert [each.replace("$$", "$") for each in container["args"]] == list(command)
    for platform in ("airflow", "prefect"):
        module = ast.parse(made(scheduled, platform, *command).read_text())
        values = [
            each.value
            for each in module.body
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "ARGUMENTS"
        ]
        assert [ast.literal_eval(each) for each in values] == [list(command)]
    assert not (scheduled.folder / "planted").exists()


def test_kubernetes_takes_the_cron_job(scheduled: Project) -> None:
    path = made(scheduled, "kubernetes")
    done = subprocess.run([SCRIPTS / "kubernetes-validate", "--strict", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    job = yaml.safe_load(path.read_text())["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    rules = job["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert [each["onExitCodes"]["values"] for each in rules if each["action"] == "FailJob"] == [[1], [2]]


# GitHub: every step that runs something, by bash as a runner calls it


def github(project: Project, path: Path, tmp_path: Path) -> list[tuple[str, int, str]]:
    """Run the steps of a workflow; returns name, exit code and output of each that ran."""
    (job,) = yaml.safe_load(path.read_text())["jobs"].values()
    environment = project.environment(
        {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "GITHUB_OUTPUT": str(tmp_path / "out")}
    )
    environment |= {name: "" for name in job["env"]}  # what a runner makes of a secret that is not set
    environment |= {"PIP_NO_INDEX": "1", "N2P_RETRY_SECONDS": "0"}
    ran: list[tuple[str, int, str]] = []
    for step in (each for each in job["steps"] if "run" in each):
        outputs = (
            dict(line.split("=", 1) for line in (tmp_path / "out").read_text().split())
            if ran and (tmp_path / "out").exists()
            else {}
        )
        if ran and ran[-1][1] != 0:
            break  # as a runner does, unless a step asks for always()
        if "if" in step and step["if"] != f"steps.n2p.outputs.code == '{outputs['code']}'":
            continue
        script = tmp_path / "step.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=project.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        ran.append((step["name"], done.returncode, done.stdout + done.stderr))
    return ran


@pytest.mark.parametrize("code", ENDS)
def test_every_step_of_the_workflow_runs(scheduled: Project, tmp_path: Path, code: int) -> None:
    import importlib.metadata

    pin = (
        f"click=={importlib.metadata.version('click')} --hash=sha256:{'0' * 64}\n"  # installed: pip asks nobody for it
    )
    (scheduled.folder / "requirements.lock").write_text(pin)
    ran = github(scheduled, made(scheduled, "github", *ENDS[code]), tmp_path)
    assert ran[0][:2] == ("Install", 0), ran
    failed = [name for name, ended, _ in ran if ended]
    assert failed == {0: [], 1: ["The verdict is no"], 2: ["Run"], 3: ["Run"]}[code], ran
    assert ran[1][2].count("attempt ") == (2 if code == 3 else 0)
    said = "".join(output for _, _, output in ran)
    assert ("::warning" in said, "::error" in said) == (code == 1, code > 1), said


def test_a_workflow_of_a_project_below_the_repository_runs_in_its_folder(tmp_path: Path) -> None:
    project = tmp_path / "models" / "flights"
    project.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (project / "pyproject.toml").touch()
    (project / "requirements.lock").write_text("click==8\n")
    path = write_schedule(Schedule("github", Cron.parse("daily"), COMMAND), project=project).path
    job = yaml.safe_load(path.read_text())["jobs"]["watch"]
    assert path.parents[2] == tmp_path and job["defaults"]["run"]["working-directory"] == "models/flights"
    assert "--require-hashes" not in path.read_text() and "models/flights/requirements.lock" in path.read_text()


# cron: the line, as cron gives it to a shell


def cron_line(path: Path) -> str:
    text = path.read_text()
    assert text.endswith("\n")  # or cron passes the last line over
    line = text.splitlines()[-1].split(maxsplit=5)[5]
    assert len(line) < 998 and "%" not in line.replace("\\%", "")
    return line.replace("\\%", "%")


def run_line(project: Project, line: str, **given: str) -> Done:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(project.folder), "N2P_RETRY_SECONDS": "0", **given}
    done = subprocess.run(["/bin/sh", "-c", line], cwd="/", env=environment, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("code", ENDS)
def test_the_line_of_the_crontab_runs(scheduled: Project, code: int) -> None:
    (scheduled.folder / "n2p.env").write_text(f"N2P_REQUIRE_GATE=0\nSLACK_URL='https://{PLANTED}'\n")
    done = run_line(scheduled, cron_line(made(scheduled, "cron", *ENDS[code])))
    assert done.code == code, done
    said = {0: "", 1: "the verdict is no", 2: "failed, exit code 2", 3: "failed, exit code 3"}[code]
    assert said in done.stdout and bool(done.stdout) == bool(code)
    assert PLANTED not in done.stdout


def test_a_run_of_cron_that_comes_too_early_is_passed_over(scheduled: Project) -> None:
    line = cron_line(made(scheduled, "cron", *ENDS[0]))
    locks = scheduled.home / "locks"
    locks.mkdir(parents=True)
    with (locks / "n2p-check-good-ipynb").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run_line(scheduled, line).code == 75
    assert run_line(scheduled, line).code == 0


def test_a_line_that_cron_would_cut_is_refused(scheduled: Project) -> None:
    with pytest.raises(InputError, match="cron takes"):
        made(scheduled, "cron", "check", "x" * 900)


# With the real things, in environments of their own


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an environment with packages from the index; `N2P_TEST_PEERS` is a folder that keeps them."""
    kept = os.environ.get("N2P_TEST_PEERS")
    root = Path(kept) if kept else tmp_path_factory.mktemp("peers")

    def make(name: str, *packages: str) -> Path:
        folder = root / name
        if not (folder / "made").exists():
            subprocess.run([SCRIPTS / "uv", "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
            subprocess.run(
                [SCRIPTS / "uv", "pip", "install", "-q", "--python", folder / "bin/python", *packages], check=True
            )
            (folder / "made").touch()
        return folder / "bin"

    return make


SPOKEN = (
    "0 6 * * mon",
    "daily",
    "*/15 9-17 * * mon-fri",
    "30 5 1,15 jan 5-7",
    "0 0 13 * 5",
    "0 0 29 2 *",
    "5 4 1-31/3 * 2",
)


@pytest.mark.slow
def test_real_parsers_take_the_workflow_and_the_crontab(scheduled: Project, peer: Callable[..., Path]) -> None:
    tools = peer("lint", "check-jsonschema", "python-crontab", "croniter")
    for every in SPOKEN:
        workflow = made(scheduled, "github", every=every)
        checked = [tools / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow]
        done = subprocess.run(checked, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        table, begin = made(scheduled, "cron", every=every), datetime(2026, 1, 1, tzinfo=UTC)
        program = """
import json, sys; from datetime import datetime, UTC; from crontab import CronTab; from croniter import croniter
(job,) = [each for each in CronTab(tabfile=sys.argv[1]) if each.is_enabled()]
assert job.is_valid()
times = croniter(str(job.slices), datetime(2026, 1, 1, tzinfo=UTC))
print(json.dumps([str(job.command), [times.get_next(datetime).isoformat() for _ in range(40)]]))"""
        done = subprocess.run([tools / "python", "-c", program, table], capture_output=True, text=True, check=True)
        command, times = json.loads(done.stdout)
        assert command.replace("\\%", "%") == cron_line(table)
        ours = [each.isoformat() for each in itertools.islice(Cron.parse(every).times(begin, years=200), 40)]
        assert ours == times


OUTCOMES = {0: ("success", "Completed"), 1: ("verdict", "VerdictNo"), 2: ("check", "Failed"), 3: ("alerts", "Failed")}


@pytest.mark.slow
def test_real_airflow_runs_the_dag(scheduled: Project, peer: Callable[..., Path], tmp_path: Path) -> None:
    tools = peer("airflow", "apache-airflow>=3", "apache-airflow-providers-standard")
    for command in ENDS.values():
        made(scheduled, "airflow", *command)
    environment = scheduled.environment({"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"})
    environment |= {"AIRFLOW__CORE__DAGS_FOLDER": str(scheduled.folder / "dags"), "N2P_PROGRAM": str(SCRIPTS / "n2p")}
    subprocess.run([tools / "airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    program = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
found = {}
for name, dag in sorted(bag.dags.items()):
    assert dag.max_active_runs == 1 and not dag.catchup
    run = dag.test()
    found[name] = {each.task_id: each.state for each in run.get_task_instances()}
print("FOUND", json.dumps(found))"""
    done = subprocess.run(
        [tools / "python", "-c", program, scheduled.folder / "dags"], env=environment, capture_output=True, text=True
    )
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("FOUND ")] or pytest.fail(
        done.stdout[-3000:] + done.stderr[-3000:]
    )
    found = json.loads(line.removeprefix("FOUND "))
    assert found["n2p-check-good-ipynb"] == {"check": "success", "verdict": "success"}
    assert found["n2p-check-bad-ipynb"] == {"check": "success", "verdict": "failed"}
    assert found["n2p-check-absent-ipynb"] == {"check": "failed", "verdict": "upstream_failed"}
    assert found["n2p-alerts-list"]["check" if "check" in found["n2p-alerts-list"] else "alerts"] in (
        "up_for_retry",
        "failed",
    )


@pytest.mark.slow
@pytest.mark.parametrize("code", ENDS)
def test_real_prefect_runs_the_flow(scheduled: Project, peer: Callable[..., Path], tmp_path: Path, code: int) -> None:
    tools = peer("prefect", "prefect>=3")
    path = made(scheduled, "prefect", *ENDS[code])
    ours = {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "200",
        "DO_NOT_TRACK": "1",
    }
    environment = scheduled.environment({"N2P_PROGRAM": str(SCRIPTS / "n2p"), "N2P_RETRY_SECONDS": "0.1", **ours})
    program = "import runpy, sys; state = runpy.run_path(sys.argv[1])['schedule'](return_state=True); print('STATE', state.name)"
    done = subprocess.run([tools / "python", "-c", program, path], env=environment, capture_output=True, text=True)
    assert f"STATE {OUTCOMES[code][1]}" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert (done.stdout + done.stderr).count("Retry ") == (2 if code == 3 else 0)
