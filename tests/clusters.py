"""Dask over TCP: a scheduler and its workers, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def wait_for(path: Path, seconds: float = 60) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.1)


@dataclass
class Dask:
    """A scheduler at `address`."""

    folder: Path
    environment: Mapping[str, str]
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(json.loads((self.folder / "scheduler.json").read_text())["address"])

    def worker(self, cwd: Path | None = None, threads: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker that nobody starts again; it is there when this returns."""
        from distributed import Client

        command = ["worker", self.address, "--nthreads", str(threads), "--no-nanny", "--no-dashboard"]
        self.workers.append(_started(command, cwd or self.folder, self.environment, self.folder / "worker.log"))
        with Client(self.address) as client:
            client.wait_for_workers(sum(each.poll() is None for each in self.workers), timeout=60)
        return self.workers[-1]


def _started(arguments: list[str], cwd: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "dask", *arguments]
        return subprocess.Popen(command, cwd=cwd, env=dict(environment), stdout=file, stderr=file)


@contextlib.contextmanager
def dask_cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[Dask]:
    """A scheduler without workers, whose files are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scheduler.json"
    where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = _started(["scheduler", *where], folder, environment, folder / "scheduler.log")
    made = Dask(folder, environment, scheduler)
    try:
        wait_for(file)
        yield made
    finally:
        for process in (*made.workers, scheduler):
            process.kill()
            process.wait(30)
