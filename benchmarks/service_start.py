"""How long an exported service takes from its start to its first answer, and the memory that it has by then.

Run: python benchmarks/service_start.py DIR     with DIR written by `n2p export-service NAME@production DIR`
What requirements.lock names is installed in a fresh environment outside the folder first, which is not counted. The start
counts process, imports, verification of the bundle, replay of the golden rows and one request over HTTP.
Limit: 3 s, the median of five.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from measure import table

LIMIT, ROUNDS, PATIENCE = 3.0, 5, 120.0


def environment(folder: Path, service: Path) -> Path:
    """The Python of a fresh environment that has what the lock names."""
    python = folder / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    lock = service / "requirements.lock"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", lock], check=True)
    return python


def start(python: Path, service: Path) -> tuple[float, float, float]:
    """Seconds to the first answer, CPU seconds of them, and MiB held by then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    row = json.loads((service / "bundle/golden.json").read_text())["rows"][0]
    url, body = f"http://127.0.0.1:{port}/predict", json.dumps(row).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    command = [python, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "error"]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=service, env={"PATH": "/usr/bin:/bin"})
    try:
        while time.perf_counter() - began < PATIENCE and process.poll() is None:
            try:
                with direct.open(urllib.request.Request(url, body, {"content-type": "application/json"})) as answer:
                    answer.read()
                seconds = time.perf_counter() - began
                status, ticks = Path(f"/proc/{process.pid}/status").read_text(), os.sysconf("SC_CLK_TCK")
                times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
                return seconds, (int(times[11]) + int(times[12])) / ticks, resident / 1024
            except urllib.error.URLError:
                time.sleep(0.01)
        raise SystemExit("the service did not start")
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Measure, print and return 1 if the limit is exceeded."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    service = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder), service)
        start(python, service)  # compiles the modules of the folder
        rounds = [start(python, service) for _ in range(ROUNDS)]
    names = ("first answer, s", "of them CPU, s", "memory, MiB")
    print(
        table(
            ["", "median", "best", "worst"],
            [
                [name, f"{statistics.median(each):.2f}", f"{min(each):.2f}", f"{max(each):.2f}"]
                for name, each in zip(names, zip(*rounds, strict=True), strict=True)
            ],
        )
    )
    seconds = statistics.median(each[0] for each in rounds)
    print(f"first answer after {seconds:.2f} s, limit {LIMIT} s: {'held' if seconds <= LIMIT else 'EXCEEDED'}")
    return int(seconds > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
