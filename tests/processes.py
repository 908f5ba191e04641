"""Services in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from notebooks import Script, start_script


@contextlib.contextmanager
def started(
    command: Sequence[Any],  # `[sys.executable, "-c", ...]` is started by the fork server
    log: Path,  # Takes its standard error
    traces: int = 0,  # Tracebacks that its log may have
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Any, str]]:
    """A process that prints the address where it answers, and that address."""
    process: subprocess.Popen[str] | Script
    if [*command[:2]] == [sys.executable, "-c"]:
        process = start_script(command[2], command[3:], log, environment)
    else:
        with log.open("w") as errors:
            process = subprocess.Popen(
                [*map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, log.read_text()
        yield process, url
    finally:
        process.terminate()
        process.wait(30)
    told = log.read_text()
    assert told.count("Traceback") <= traces, told
    assert "Internal Server Error" not in told
