"""The service over real sockets: many clients at once, hostile ones among them, and processes that stop or are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from notebooks import ONE_THREAD
from pipelines import fitted, flights, prepared, targets
from processes import started
from sklearn.ensemble import HistGradientBoostingClassifier
from test_scorer import bundle_of

from notebook_to_prod.package.bundle import Bundle, largest_difference, predict
from notebook_to_prod.package.schema import to_rows, to_table
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.request import refusal
from notebook_to_prod.serve.service import Call, Service

SCRIPT = """
import json, sys
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import forkable, serve
path, workers = sys.argv[1], int(sys.argv[2])
with forkable():
    predictor = load_predictor(path, name="flights", version="1")
serve(predictor, port=0, workers=workers, announce=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A forest whose rows have each kind of column."""
    return bundle_of(tmp_path_factory.mktemp("forest"), *fitted("RandomForestClassifier, three named classes", 200))


@contextlib.contextmanager
def running(bundle: Bundle, workers: int, log: Path, traces: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, and its address; its log may have so many tracebacks."""
    with started([sys.executable, "-c", SCRIPT, bundle.path, workers], log, traces) as found:
        yield found


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of one process."""
    with running(bundle, 1, tmp_path_factory.mktemp("service") / "log") as (_, url):
        yield url


def asked(url: str, body: bytes, **headers: str) -> bytes:
    """A request as it goes over the wire."""
    fields = {"host": url.removeprefix("http://"), "content-type": "application/json", "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"POST /predict HTTP/1.1\r\n{lines}\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """One answer: status, headers, content; `IncompleteReadError` if the connection ends before or within it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_every_answer_belongs_to_its_request(service: str, bundle: Bundle) -> None:
    rows = bundle.golden["rows"]
    expected = list(zip(bundle.golden["predictions"], bundle.golden["probabilities"], strict=True))
    wrong = {**rows[0], "distance": "far"}

    async def client(number: int) -> None:
        async with connected(service) as (reader, writer):
            for turn in range(40):
                place = (number * 7 + turn) % len(rows)
                kind = (number + turn) % 4
                sent: Any = [
                    rows[place],
                    wrong,
                    [rows[place], rows[0]],
                    {"columns": {name: [rows[place][name]] for name in rows[0]}},
                ][kind]
                writer.write(asked(service, json.dumps(sent).encode()))
                status, _, answer = await read_answer(reader)
                if kind == 1:
                    assert (status, answer["detail"][0]["loc"][-1]) == (422, "distance")
                    continue
                assert status == 200, answer
                wanted = [expected[place], expected[0]] if kind == 2 else [expected[place]]
                assert answer["predictions"] == [label for label, _ in wanted]
                largest_difference([chances for _, chances in wanted], answer["probabilities"])

    async def everyone() -> None:
        await asyncio.gather(*(client(number) for number in range(24)))

    asyncio.run(everyone())


@pytest.mark.parametrize("count", [1, 2, 31, 65, 1000])
def test_many_rows_are_the_pipelines(count: int, service: str, bundle: Bundle) -> None:
    pipeline, table = fitted("RandomForestClassifier, three named classes", 200)
    rows = (to_rows(bundle.schema, table) * 5)[:count]
    whole = predict(pipeline, to_table(bundle.schema, rows))
    answer = httpx.post(f"{service}/predict", json=rows, trust_env=False, timeout=60).json()
    assert answer["predictions"] == whole.predictions
    largest_difference(whole.probabilities, answer["probabilities"])


def test_one_row_that_the_plan_refuses_harms_no_other(bundle: Bundle) -> None:
    model = Model(load_predictor(bundle.path))
    rows = [tuple(row[name] for name in bundle.schema.names) for row in bundle.golden["rows"][:3]]
    odd = tuple(object() for _ in rows[0])  # nothing that a request can hold: whatever makes plan and pipeline raise

    async def ask() -> list[Any]:
        return await asyncio.gather(*(model.score([row]) for row in (rows[0], odd, *rows[1:])))

    first, refused, *others = asyncio.run(ask())
    assert refused.status == 422
    assert [each.predictions[0] for each in (first, *others)] == bundle.golden["predictions"][:3]


def test_a_client_that_leaves_harms_no_other(bundle: Bundle) -> None:
    model = Model(load_predictor(bundle.path))
    row = tuple(bundle.golden["rows"][0][name] for name in bundle.schema.names)

    async def ask() -> Any:
        tasks = [asyncio.ensure_future(model.score([row])) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, gone, last = asyncio.run(ask())
    assert isinstance(gone, asyncio.CancelledError)
    assert first.predictions == last.predictions == bundle.golden["predictions"][:1]


def test_without_a_plan_the_pipeline_answers(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_PLAN", "off")
    model = Model(load_predictor(bundle.path))
    assert model.at_once == 0
    row = tuple(bundle.golden["rows"][0][name] for name in bundle.schema.names)
    assert asyncio.run(model.score([row])).predictions == bundle.golden["predictions"][:1]  # type: ignore[union-attr]


# Bodies


def pieces(body: bytes, size: int) -> bytes:
    return b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + size]), body[at : at + size]) for at in range(0, len(body), size)
    )


def test_bodies_may_come_in_chunks_and_slowly(service: str, bundle: Bundle) -> None:
    body = json.dumps(bundle.golden["rows"][0]).encode()
    chunked = asked(service, b"", content_length="", transfer_encoding="chunked") + pieces(body, 7) + b"0\r\n\r\n"

    async def slow(wire: bytes) -> list[Any]:
        async with connected(service) as (reader, writer):
            for at in range(0, len(wire), 40):
                writer.write(wire[at : at + 40])
                await asyncio.sleep(0.01)
            return (await read_answer(reader))[2]["predictions"]

    async def everyone() -> list[Any]:
        return await asyncio.gather(slow(chunked), slow(asked(service, body)), slow(asked(service, body) * 1))

    assert asyncio.run(everyone()) == [bundle.golden["predictions"][:1]] * 3


def test_requests_may_follow_each_other_without_waiting(service: str, bundle: Bundle) -> None:
    bodies = [json.dumps(row).encode() for row in bundle.golden["rows"][:8]]

    async def ask() -> list[Any]:
        async with connected(service) as (reader, writer):
            writer.write(b"".join(asked(service, body) for body in bodies))
            return [(await read_answer(reader))[2]["predictions"][0] for _ in bodies]

    assert asyncio.run(ask()) == bundle.golden["predictions"][:8]


LIMIT = 32 * 2**20


def test_what_is_too_long_is_refused_before_it_is_read(service: str) -> None:
    async def ask() -> tuple[int, dict[str, str], Any]:
        async with connected(service) as (reader, writer):
            writer.write(asked(service, b"", content_length=str(10 * LIMIT), expect="100-continue"))
            return await read_answer(reader)

    async def chunked() -> tuple[int, dict[str, str], Any]:
        async with connected(service) as (reader, writer):
            writer.write(asked(service, b"", content_length="", transfer_encoding="chunked"))
            block = pieces(b" " * 2**20, 2**20)
            for _ in range(LIMIT // 2**20 + 2):
                writer.write(block)
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            return await read_answer(reader)

    status, _, answer = asyncio.run(chunked())
    assert (status, answer["detail"][0]["type"]) == (413, "too_large")
    status, headers, _ = asyncio.run(ask())
    assert (status, headers["connection"]) == (413, "close")
    assert httpx.get(f"{service}/ready", trust_env=False).status_code == 200


def test_a_slow_body_has_a_time(bundle: Bundle) -> None:
    app = create_app(predictor := load_predictor(bundle.path), Service(Model(predictor), body_seconds=0.05))
    got: list[Any] = []

    async def receive() -> dict[str, Any]:
        if got_first.is_set():
            await asyncio.sleep(60)
        got_first.set()
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Any) -> None:
        got.append(message)

    async def ask() -> None:
        await app.predict({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive, send)

    got_first = asyncio.Event()
    asyncio.run(ask())
    assert (got[0]["status"], (b"connection", b"close") in got[0]["headers"]) == (408, True)


# Hooks


def test_hooks_are_called_in_order_and_may_refuse(bundle: Bundle) -> None:
    from fastapi.testclient import TestClient

    predictor = load_predictor(bundle.path)
    told: list[Any] = []
    service = Service(Model(predictor))
    other = Model(load_predictor(bundle.path, name="other"))

    def admit(call: Call) -> Any:
        told.append("admit")
        return refusal(401, "key", ["header"], "No key") if (b"x-key", b"wrong") in call.scope["headers"] else None

    def log(call: Call) -> None:
        told.append(("after", call.status, call.rows and len(call.rows)))
        call.headers.append((b"x-version", b"7"))
        if (b"x-key", b"full") in call.scope["headers"]:
            raise OSError("the disk is full")

    service.admit.append(admit)
    service.route = lambda call: other
    service.before.append(lambda call: told.append("before"))  # type: ignore[func-returns-value]
    service.after.append(log)
    service.sent.append(lambda call: told.append("sent"))
    client = TestClient(create_app(predictor, service))
    row = bundle.golden["rows"][0]
    answer = client.post("/predict", json=row)
    assert (answer.json()["model"], answer.headers["x-version"]) == ("other", "7")
    assert told == ["admit", "before", ("after", 200, 1), "sent"]
    told.clear()
    assert client.post("/predict", json=row, headers={"x-key": "wrong"}).status_code == 401
    assert told == ["admit", ("after", 401, None), "sent"]
    failed = client.post("/predict", json=row, headers={"x-key": "full"})
    assert (failed.status_code, failed.json()["detail"][0]["type"]) == (500, "internal")
    assert "disk" not in failed.text


def test_middleware_of_a_team_sees_every_request(bundle: Bundle) -> None:
    from fastapi.testclient import TestClient

    app = create_app(load_predictor(bundle.path))
    seen: list[str] = []

    @app.fastapi.middleware("http")
    async def watch(request: Any, call_next: Any) -> Any:
        seen.append(request.url.path)
        return await call_next(request)

    client = TestClient(app)
    for _ in range(2):
        assert client.post("/predict", json=bundle.golden["rows"][0]).status_code == 200
    assert seen == ["/predict"] * 2


# Processes


async def load(url: str, body: bytes, until: asyncio.Event, counts: dict[str, int]) -> None:
    """One client after another on kept connections; each request that was written and not answered is counted as dropped."""
    while not until.is_set():
        try:
            async with connected(url) as (reader, writer):
                served = False
                while not until.is_set():
                    writer.write(asked(url, body))
                    try:
                        status, headers, _ = await read_answer(reader)
                    except (asyncio.IncompleteReadError, ConnectionError) as error:
                        fresh = (
                            isinstance(error, ConnectionResetError) and not served
                        )  # nobody had taken the connection
                        counts["reset" if fresh else "dropped"] += 1
                        break
                    served = True
                    counts["answered" if status == 200 else "failed"] += 1
                    if headers.get("connection") == "close":
                        break
        except ConnectionRefusedError:
            return
        except ConnectionError:
            counts["reset"] += 1
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_drops_nothing(workers: int, bundle: Bundle, tmp_path: Path) -> None:
    counts = dict.fromkeys(("answered", "failed", "dropped", "reset"), 0)
    body = json.dumps(bundle.golden["rows"][0]).encode()

    async def stop(process: subprocess.Popen[str], url: str) -> None:
        clients = [asyncio.ensure_future(load(url, body, asyncio.Event(), counts)) for _ in range(8)]
        while counts["answered"] < 200:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    with running(bundle, workers, tmp_path / "log") as (process, url):
        asyncio.run(stop(process, url))
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert (counts["failed"], counts["dropped"]) == (0, 0), counts


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_worker_is_replaced_and_none_outlives_the_parent(bundle: Bundle, tmp_path: Path) -> None:
    body = json.dumps(bundle.golden["rows"][0]).encode()
    counts = dict.fromkeys(("answered", "failed", "dropped", "reset"), 0)

    async def kill(process: subprocess.Popen[str], url: str) -> None:
        done = asyncio.Event()
        clients = [asyncio.ensure_future(load(url, body, done, counts)) for _ in range(8)]
        for _ in range(4):
            before = counts["answered"]
            victim = children(process.pid)[0]
            os.kill(victim, signal.SIGKILL)
            while victim in children(process.pid) or len(children(process.pid)) < 2 or counts["answered"] < before + 50:
                await asyncio.sleep(0.02)
        done.set()
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    with running(bundle, 2, tmp_path / "log") as (process, url):
        while len(children(process.pid)) < 2:
            time.sleep(0.02)
        asyncio.run(kill(process, url))
        assert counts["failed"] == 0
        assert counts["dropped"] <= 4 * 8
        workers = children(process.pid)
        process.kill()
        process.wait(30)
        deadline = time.monotonic() + 30
        while any(
            Path(f"/proc/{each}").exists() and "Z" not in Path(f"/proc/{each}/stat").read_text().split()[2]
            for each in workers
        ):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.05)


def test_workers_that_end_at_once_are_given_up(tmp_path: Path) -> None:
    script = """
from notebook_to_prod.errors import ServerError
from notebook_to_prod.serve.server import run_workers
try:
    run_workers(lambda parent, began: 1 / 0, 2)
except ServerError as error:
    print(error.what)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "the workers end as soon as they begin\n", done.stderr


def test_models_that_use_threads_answer_in_forked_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    table = flights()
    pipeline = prepared(HistGradientBoostingClassifier(max_iter=5, random_state=0)).fit(table, targets(table)["two"])
    bundle = bundle_of(tmp_path, pipeline, table)
    with running(bundle, 2, tmp_path / "log") as (_, url):
        rows = bundle.golden["rows"] * 200  # so many that the pipeline with its threads may answer
        for sent in (rows[:1], rows):
            answer = httpx.post(f"{url}/predict", json=sent, trust_env=False, timeout=60).json()
            assert answer["predictions"] == (bundle.golden["predictions"] * 200)[: len(sent)]


def test_an_idle_connection_does_not_keep_a_service_from_stopping(bundle: Bundle, tmp_path: Path) -> None:
    with running(bundle, 1, tmp_path / "log") as (process, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))):
            process.terminate()
            process.wait(30)
