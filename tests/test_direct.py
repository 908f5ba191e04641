"""Requests that are answered where they are parsed: the same steps, hooks and limits as the ASGI function has, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pipelines import fitted
from test_scorer import bundle_of
from test_service import read_answer

from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.serve.access.callers import new_key
from notebook_to_prod.serve.app import Application, create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.direct import direct_protocol
from notebook_to_prod.serve.log.segments import read_segments
from notebook_to_prod.serve.predictor import Predictor, load_predictor
from notebook_to_prod.serve.service import Call, Service

Asked = tuple[int, dict[str, str], Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A forest whose rows have each kind of column."""
    return bundle_of(tmp_path_factory.mktemp("direct"), *fitted("RandomForestClassifier, three named classes", 200))


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return load_predictor(bundle.path, name="flights", version="1")


def wire(row: Any, *fields: bytes) -> bytes:
    """A request for `/predict`."""
    body = json.dumps(row).encode()
    lines = [b"host: here", b"content-type: application/json", b"content-length: %d" % len(body), *fields]
    return b"POST /predict HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


class Served:
    """An application on a socket of this loop, and how many requests have gone the way of ASGI."""

    def __init__(self, app: Application):
        self.app, self.asgi, self.connections = app, 0, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asgi += scope["type"] == "http"
        await self.app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def running(self, seconds: int = 60) -> AsyncIterator[tuple[str, int]]:
        config = uvicorn.Config(self, http=direct_protocol(self.app), log_level="critical", timeout_keep_alive=seconds)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as bound:
            task = asyncio.ensure_future(server.serve([bound]))
            while not server.started:
                await asyncio.sleep(0.01)
            yield bound.getsockname()
            server.should_exit = True
            await task


def answers(app: Application, *requests: bytes, pause: float = 0.0) -> tuple[list[Asked], int]:
    """What one connection is answered, and how many requests went by ASGI; the service has nothing left of them."""
    served = Served(app)

    async def ask() -> list[Asked]:
        async with served.running() as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            got = []
            for request in requests:
                middle = len(request) - 1  # within the body
                writer.write(request[:middle] if pause else request)
                if pause:
                    await asyncio.sleep(pause)
                    writer.write(request[middle:])
                with contextlib.suppress(asyncio.IncompleteReadError):
                    got.append(await asyncio.wait_for(read_answer(reader), 30))
            writer.close()
            return got

    got = asyncio.run(ask())
    assert app.service.flying == 0
    return got, served.asgi


@pytest.fixture(params=["at once", "slowly"])
def pause(request: pytest.FixtureRequest) -> float:
    """Seconds within a request: none, and it is answered where it is parsed; some, and ASGI does it."""
    return 0.0 if request.param == "at once" else 0.3


def app_of(
    predictor: Predictor, change: Callable[[Service], None] = lambda service: None, **settings: Any
) -> Application:
    service = Service(Model(predictor))
    app = create_app(predictor, service, settings)
    change(service)
    return app


def test_both_ways_say_the_same(predictor: Predictor, bundle: Bundle, pause: float) -> None:
    rows = bundle.golden["rows"]
    name = next(iter(rows[0]))
    requests = [
        wire(rows[0]),
        wire(rows[:3]),
        wire({**rows[0], "more": 1}),
        wire([]),
        wire({key: rows[0][key] for key in rows[0] if key != name}),
    ]
    got, asgi = answers(app_of(predictor), *requests, pause=pause)
    assert [status for status, _, _ in got] == [200, 200, 422, 422, 422]
    assert got[0][2]["predictions"] == bundle.golden["predictions"][:1]
    assert got[1][2]["predictions"] == bundle.golden["predictions"][:3]
    assert {headers["cache-control"] for _, headers, _ in got} == {"no-store"}
    assert asgi == (len(requests) if pause else 0)


def test_a_body_that_is_compressed_is_refused_by_the_name_of_its_header(
    predictor: Predictor, bundle: Bundle, pause: float
) -> None:
    row = bundle.golden["rows"][0]
    requests = [wire(row, b"Content-Encoding: " + value) for value in (b"gzip", b"identity, br", b"Identity", b"")]
    got, _ = answers(app_of(predictor), wire(row), *requests, wire(row), pause=pause)
    assert [status for status, _, _ in got] == [200, 415, 415, 200, 200, 200]
    assert got[1][1]["accept-encoding"] == "identity"
    (told,) = got[1][2]["detail"]
    assert told["loc"] == ["header", "content-encoding"]
    assert "content-encoding" in told["msg"]


def test_a_head_that_has_come_before_is_not_parsed_again(
    predictor: Predictor, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    parsed: list[bytes] = []
    begun = HttpToolsProtocol.on_message_begin
    monkeypatch.setattr(HttpToolsProtocol, "on_message_begin", lambda self: parsed.append(b"") or begun(self))
    key, other = new_key("one"), b"x-more: " + b"m" * 2000
    app = app_of(
        predictor,
        security={"keys": {"one": {"digest": key.digest, "scopes": ["predict"], "rate": "5/minute"}}},
        log={"folder": str(tmp_path)},
    )
    row, field = bundle.golden["rows"][0], b"x-api-key: " + key.key.encode()
    broken = wire(row, field)[:-1] + b"!"  # as long as the others
    got, asgi = answers(app, wire(row, field), wire(row, field), broken, wire(row, field), wire(row), wire(row, field))
    assert [status for status, _, _ in got] == [200, 200, 422, 200, 401, 200]
    assert len({headers["x-request-id"] for _, headers, _ in got}) == 6 and not asgi
    assert len(parsed) == 2  # one for each head
    assert answers(app, wire(row, field))[0][0][0] == 429  # who is known by the head is limited as ever
    parsed.clear()
    assert [status for status, _, _ in answers(app_of(predictor), *[wire(row, other)] * 3)[0]] == [200] * 3
    assert len(parsed) == 3  # too long to be kept


def test_a_connection_that_stays_silent_is_closed(predictor: Predictor, bundle: Bundle) -> None:
    served, row = Served(app_of(predictor)), wire(bundle.golden["rows"][0])

    async def ask() -> tuple[float, bytes]:
        async with served.running(seconds=1) as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            for _ in range(3):  # longer than a second in all
                writer.write(row)
                assert (await asyncio.wait_for(read_answer(reader), 30))[0] == 200
                await asyncio.sleep(0.6)
            began = time.monotonic()
            rest = await asyncio.wait_for(reader.read(), 30)
            return time.monotonic() - began, rest

    waited, rest = asyncio.run(ask())
    assert rest == b"" and waited < 5


def test_requests_in_a_pipeline_are_answered_in_their_order(predictor: Predictor, bundle: Bundle) -> None:
    rows = bundle.golden["rows"][:20]
    served = Served(app_of(predictor))

    async def ask() -> list[Asked]:
        async with served.running() as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"".join(map(wire, rows)))
            return [await asyncio.wait_for(read_answer(reader), 30) for _ in rows]

    assert [answer["predictions"][0] for _, _, answer in asyncio.run(ask())] == bundle.golden["predictions"][:20]


@pytest.mark.parametrize("hook", ["admit", "arrived", "before", "after"])
def test_a_hook_that_raises_is_a_500_of_its_request_alone(
    predictor: Predictor, bundle: Bundle, hook: str, pause: float
) -> None:
    def fail(call: Call) -> None:
        if any(name == b"x-fail" for name, _ in call.scope["headers"]):
            raise RuntimeError("planted")

    app = app_of(predictor, lambda service: getattr(service, hook).append(fail))
    row = bundle.golden["rows"][0]
    got, _ = answers(app, wire(row, b"x-fail: 1"), wire(row), pause=pause)
    assert [status for status, _, _ in got] == [500, 200]
    assert "planted" not in json.dumps(got[0][2])


def test_a_header_that_would_be_two_is_never_sent(predictor: Predictor, bundle: Bundle, tmp_path: Path) -> None:
    def split(call: Call) -> None:
        if any(name == b"x-fail" for name, _ in call.scope["headers"]):
            call.headers.append((b"x-said", b"a\r\nset-cookie: b"))

    app = app_of(predictor, lambda service: service.after.append(split), limits={"concurrency": 3})
    row = bundle.golden["rows"][0]
    for _ in range(4):  # more than there is room for: each leaves its place
        got, _ = answers(app, wire(row, b"x-fail: 1"))
        assert not got  # the connection is closed
    assert answers(app, wire(row))[0][0][0] == 200


def test_a_client_that_leaves_takes_nothing_along(predictor: Predictor, bundle: Bundle) -> None:
    ended: list[int] = []
    app = app_of(
        predictor,
        lambda service: service.ended.append(lambda call: ended.append(call.status)),
        limits={"concurrency": 8},
    )
    served, row = Served(app), wire(bundle.golden["rows"][0])

    async def ask() -> int:
        async with served.running() as (host, port):
            for part in (row, row[:-3], row[:40]):
                for _ in range(10):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.write(part)
                    await writer.drain()
                    writer.transport.abort()
            await asyncio.sleep(0.5)
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(row)
            return (await asyncio.wait_for(read_answer(reader), 30))[0]

    assert asyncio.run(ask()) == 200
    assert app.service.flying == 0 and ended[-1] == 200


def test_the_time_of_a_request_that_a_thread_answers_ends(
    predictor: Predictor, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(predictor, limits={"seconds": 0.2})
    model, row = app.service.model, bundle.golden["rows"][0]

    def refuses(*_: Any) -> Any:
        raise ValueError("not by the plan")

    def slow(rows: Any) -> Any:
        time.sleep(1.0)
        return predictor.score_rows(rows)

    monkeypatch.setattr(model, "_by_plan", refuses)
    monkeypatch.setattr(model, "score_alone", slow)
    got, asgi = answers(app, wire(row))
    assert (got[0][0], got[0][2]["detail"][0]["type"], asgi) == (504, "late", 0)


def test_keys_are_asked_and_the_log_is_written(
    predictor: Predictor, bundle: Bundle, tmp_path: Path, pause: float
) -> None:
    key = new_key("one")
    keys = {"one": {"digest": key.digest, "scopes": ["predict"]}}
    app = app_of(predictor, security={"keys": keys}, log={"folder": str(tmp_path)})
    row = bundle.golden["rows"][0]
    got, asgi = answers(
        app, wire(row), wire(row, b"x-api-key: " + key.key.encode()), wire(row, b"x-api-key: wrong"), pause=pause
    )
    assert [status for status, _, _ in got] == [401, 200, 401]
    assert asgi == (3 if pause else 0)
    written = [json.loads(record) for segment in read_segments(tmp_path) for _, record in segment.records]
    assert [record[0] for record in written].count("p") == 1
