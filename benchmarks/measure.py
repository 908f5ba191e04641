"""Time whole processes against each other, in turn, so that a machine that slows down slows all of them."""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

Command = Sequence[str]


def _found(command: Command) -> list[str]:
    """The command with its program as installed beside this interpreter, else from PATH."""
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.exists() else shutil.which(command[0])
    if program is None:
        raise SystemExit(f"{command[0]} is not installed beside {sys.executable}: make setup")
    return [program, *command[1:]]


def once(command: Command, folder: Path | None, environment: Mapping[str, str] | None) -> tuple[float, float]:
    """Wall and CPU seconds, children included, of one run; its output is read and thrown away."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        _found(command),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} exited with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(
    commands: Mapping[str, Command],
    rounds: int,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Run the commands in turn, one warm-up round first; (wall, CPU) seconds of each round by name."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds = once(command, folder, environment)
            if number:
                measured[name].append(seconds)
    return measured


def cpu_seconds(commands: Mapping[str, Command], rounds: int) -> dict[str, float]:
    """Median CPU seconds by name."""
    return {name: statistics.median(cpu for _, cpu in runs) for name, runs in in_turn(commands, rounds).items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the first to the left and the others to the right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [
        [
            f"{cell:<{width}}" if not column else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [header, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
