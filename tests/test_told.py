"""What takes its time is told of, in one way; the last line of a log of JSON is JSON, too."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from notebook_to_prod.cli import output
from notebook_to_prod.cli.output import Terminal
from notebook_to_prod.project import Store, write_json
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.rollout import RUNNING, Rollout
from notebook_to_prod.serve.source import reports_folder
from notebook_to_prod.watch.rollout import compared_rows


def test_what_takes_long_is_told_of_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "_REMIND", 0.05)
    with Terminal(json=True, verbose=False).steps() as step:
        step("replay 32 golden rows")
        said, end = "", time.monotonic() + 20
        while ", for " not in said and time.monotonic() < end:
            time.sleep(0.02)
            said += capsys.readouterr().err
    assert said.startswith("replay 32 golden rows\n")
    assert "replay 32 golden rows, for 0 s" in said
    after = capsys.readouterr()
    assert after.out == ""


@pytest.mark.parametrize("in_json", [False, True])
def test_stopped_is_a_line_of_the_log(in_json: bool) -> None:
    script = "from notebook_to_prod.serve.observe import journal\nfrom notebook_to_prod.cli import app\n"
    script += (
        "journal.speak_json()\n" * in_json
        + "app.app.main = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)\napp.main([])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    said = done.stderr.strip()
    assert (json.loads(said)["message"] if in_json else said) == "stopped"


def test_what_a_shadow_answered_differently_is_counted_over_all_processes(tmp_path: Path) -> None:
    registry = Registry(Store(tmp_path))
    rollout = Rollout(
        "one",
        "flights",
        "shadow",
        2,
        1,
        "production",
        (),
        0,
        0.0,
        RUNNING,
        "2026-01-31T10:00:00+00:00",
        "2026-01-31T10:00:00+00:00",
    )
    assert set(compared_rows(registry, rollout).values()) == {0}
    folder = reports_folder(registry.store, "flights") / rollout.id
    counted = {"compared": 100, "differed": 3, "failed": 1, "dropped": 0, "latest": []}
    for process, (of, shadow) in enumerate((("one", counted), ("one", counted), ("another", counted), ("one", None))):
        write_json(folder / f"{process}.json", {"process": process, "rollout": of, "tallies": {}, "shadow": shadow})
    assert compared_rows(registry, rollout) == {"compared": 200, "differed": 6, "failed": 2, "dropped": 0}
