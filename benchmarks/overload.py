"""Ask one process for ten times what it can answer: what it takes must be answered nearly as fast as in quiet times, the rest refused, and all forgotten soon after.

    python benchmarks/overload.py
    python benchmarks/overload.py --cases batch --seconds 4

Four phases in one run, by one client process: capacity (as many requests as are answered), quiet (a tenth of it, at random moments), overload (ten times as many,
at random moments, whether or not there were answers) and after it (half of it). The client keeps some hundred connections; what finds none free is not sent, and told.

Cases: `pipeline` is answered by scikit-learn in threads; `batch` has 1,000 rows in each request; `row`, on request, is one row by the compiled plan, of which no client here
can send ten times as many: it sends what it can, over 64 connections, which wait for less than a burst may. What others do on the machine makes a round slower, never faster:
a round that misses a limit is printed and repeated.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import table
from serving import OURS, bundle_of, free_port

TIMES, RECOVERY = 10, 5.0
CASES = {
    "pipeline": (1, 8, 256),
    "batch": (1000, 8, 256),
    "row": (1, 32, 64),
}  # Rows of a request, connections that find the capacity, and all
NO_PLAN = """
import dataclasses
from notebook_to_prod.serve import predictor as module
loaded = module.load_predictor
def without_plan(*args, **kwargs):
    found = loaded(*args, **kwargs)
    return dataclasses.replace(found, scorer=dataclasses.replace(found.scorer, plan=None))
module.load_predictor = without_plan
"""


# The client: a process of its own


class Connection(asyncio.Protocol):
    """One connection, which has one request on its way or is free."""

    def __init__(self, pool: "Pool"):
        self.pool, self.transport, self.sent, self.got = pool, None, 0.0, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, wire: bytes) -> None:
        self.sent = time.perf_counter()
        self.transport.write(wire)

    def data_received(self, data: bytes) -> None:
        self.got = data = self.got + data if self.got else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        at = data.lower().find(b"content-length:", 0, end)
        if len(data) < end + 4 + int(data[at + 15 : data.index(b"\r", at)]):
            return
        self.got = b""
        self.pool.answered(int(data[9:12]), self.sent, self)

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.every.discard(self)
        if self in self.pool.free:
            self.pool.free.remove(self)  # nothing was asked for a while
        else:
            self.pool.lost += 1


class Pool:
    """Connections, and what came over them: moment, seconds and status of each answer."""

    def __init__(self, host: str, port: int, count: int, wire: bytes):
        self.host, self.port, self.count, self.wire = host, port, count, wire
        self.every: set[Connection] = set()
        self.free: collections.deque[Connection] = collections.deque()
        self.answers: list[tuple[float, float, int]] = []
        self.again = False
        self.unsent = self.lost = 0

    async def fill(self) -> None:
        """Open as many connections as there may be."""
        loop = asyncio.get_running_loop()
        while len(self.every) < self.count:
            connection = (await loop.create_connection(lambda: Connection(self), self.host, self.port))[1]
            self.every.add(connection)
            self.free.append(connection)

    def answered(self, status: int, sent: float, connection: Connection) -> None:
        now = time.perf_counter()
        self.answers.append((now, now - sent, status))
        if self.again:
            connection.send(self.wire)
        else:
            self.free.append(connection)

    def take(self) -> list[tuple[float, float, int]]:
        found, self.answers = self.answers, []
        return found

    async def closed(self, count: int, seconds: float) -> list[tuple[float, float, int]]:
        """So many connections, each of which sends as soon as it was answered."""
        self.again = True
        for _ in range(count):
            self.free.popleft().send(self.wire)
        await asyncio.sleep(seconds)
        self.again = False
        await self.settled()
        return self.take()

    async def open_loop(self, rate: float, seconds: float) -> tuple[list[tuple[float, float, int]], int, float]:
        """Requests at random moments, at so many a second: the answers, how many were sent, and how late the client was at worst of a hundred times."""
        due = start = time.perf_counter()
        sent, delays = 0, []
        while (now := time.perf_counter()) < start + seconds:
            delays.append(now - due)
            while due <= now:
                due += random.expovariate(rate)
                if self.free:
                    self.free.pop().send(self.wire)
                    sent += 1
                else:
                    self.unsent += 1
            await asyncio.sleep(max(0.001, min(due - time.perf_counter(), 0.05)))
        delays.sort()
        return self.take(), sent, delays[int(0.99 * len(delays))]

    async def settled(self) -> None:
        """Wait until nothing is on its way."""
        end = time.perf_counter() + 15
        while len(self.free) < len(self.every) and time.perf_counter() < end:
            await asyncio.sleep(0.005)


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return sorted(times)[int(0.99 * len(times))] if times else float("nan")


async def _client(url: str, body: str, connections: int, most: int, seconds: float) -> dict[str, Any]:
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    pool = Pool(host, int(port), most, (head + body).encode())
    await pool.fill()
    await pool.closed(connections, 1.0)
    capacity = sum(status == 200 for _, _, status in await pool.closed(connections, seconds)) / seconds
    quiet, _, _ = await pool.open_loop(capacity / 10, max(seconds, 300 / capacity))
    await pool.settled()
    await pool.fill()
    pool.take()
    pool.unsent = 0
    loaded, sent, late = await pool.open_loop(capacity * TIMES, 2 * seconds)
    unsent, over = pool.unsent, time.perf_counter()
    after, _, _ = await pool.open_loop(capacity / 2, RECOVERY + 1)
    usual = p99([spent for _, spent, status in quiet if status == 200])
    windows = [
        [(spent, status) for moment, spent, status in after if start / 4 <= moment - over < start / 4 + 1]
        for start in range(int(RECOVERY * 4))
    ]
    good = [
        {status for _, status in window} == {200} and p99([spent for spent, _ in window]) <= 2 * usual
        for window in windows
    ]
    statuses = collections.Counter(status for _, _, status in loaded)
    return {
        "capacity": capacity,
        "offered": (sent + unsent) / (2 * seconds),
        "sent": sent / (2 * seconds),
        "accepted": statuses.pop(200, 0) / (2 * seconds),
        "refused": statuses.pop(503, 0) / (2 * seconds),
        "other": dict(statuses),
        "lost": pool.lost,
        "usual": usual,
        "loaded": p99([spent for _, spent, status in loaded if status == 200]),
        "refusal": p99([spent for _, spent, status in loaded if status == 503]),
        "late": late,
        "recovery": good.index(True) / 4 if True in good else float("inf"),
    }


def client(job: str) -> None:
    """Run one job from a file and print what it measured."""
    if find_spec("uvloop"):
        import uvloop

        uvloop.install()
    print(json.dumps(asyncio.run(_client(**json.loads(Path(job).read_text())))))


# The measurement


def measure(case: str, bundle: Any, seconds: float, folder: Path) -> tuple[list[str], bool]:
    """One line of the table, and whether the limits are kept."""
    count, connections, most = CASES[case]
    rows = (bundle.golden["rows"] * count)[:count]
    body = rows[0] if count == 1 else {"columns": {name: [row[name] for row in rows] for name in bundle.schema.names}}
    port = free_port()
    script = (NO_PLAN if case == "pipeline" else "") + OURS
    with (folder / f"{case}.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", script, str(port), str(bundle.path)], stdout=log, stderr=log, env=os.environ
        )
    try:
        import socket

        while socket.socket().connect_ex(("127.0.0.1", port)):
            if server.poll() is not None:
                raise SystemExit((folder / f"{case}.log").read_text()[-1500:])
            time.sleep(0.1)
        job = folder / "job.json"
        job.write_text(
            json.dumps(
                {
                    "url": f"http://127.0.0.1:{port}",
                    "body": json.dumps(body),
                    "connections": connections,
                    "most": most,
                    "seconds": seconds,
                }
            )
        )
        done = subprocess.run(
            [sys.executable, __file__, "--client", str(job)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(done.stdout)
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()
    in_time = found["loaded"] <= 2 * found["usual"]
    recovered = found["recovery"] <= RECOVERY
    whole = not found["other"] and not found["lost"]
    rows = [
        case,
        f"{found['capacity']:,.0f}",
        f"{found['offered']:,.0f} ({found['sent']:,.0f} sent)",
        f"{found['accepted']:,.0f}",
        f"{found['refused']:,.0f}",
        f"{found['usual'] * 1e3:.1f}",
        f"{found['loaded'] * 1e3:.1f} ({found['loaded'] / found['usual']:.2f}x{'' if in_time else ': MISSED'})",
        f"{found['refusal'] * 1e3:.1f}",
        f"{found['recovery']:.2f}{'' if recovered else ' MISSED'}",
        "" if whole else f"MISSED: {found['other']}, {found['lost']} lost",
    ]
    return rows, in_time and recovered and whole


def kept(case: str, bundle: Any, options: argparse.Namespace, folder: Path) -> tuple[list[str], bool]:
    """The first round that keeps the limits, or the last."""
    for left in reversed(range(options.rounds)):
        line, good = measure(case, bundle, options.seconds, folder)
        if good or not left:
            break
        print("again:", *line, flush=True)
    return line, good


def main() -> None:
    """Measure, print, and exit with 1 if a limit is missed."""
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["pipeline", "batch"], choices=[*CASES])
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of capacity and quiet; overload takes twice as long"
    )
    parser.add_argument("--rounds", type=int, default=3, help="at most: until the limits are kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        bundle, _ = bundle_of("forest", Path(folder))
        found = [kept(case, bundle, options, Path(folder)) for case in options.cases]
    header = ["case", "capacity/s", "offered/s", "accepted/s", "refused/s"]
    header += [
        "p99 ms quiet",
        "p99 ms accepted (at most 2x)",
        "p99 ms refused",
        f"s to recover (at most {RECOVERY:g})",
        "",
    ]
    print(table(header, [line for line, _ in found]))
    raise SystemExit(0 if all(good for _, good in found) else 1)


if __name__ == "__main__":
    main()
