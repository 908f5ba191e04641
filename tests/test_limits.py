"""What a service does when it is asked for too much, or its model fails: it refuses early, keeps its time, and lets others stand in."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pipelines import fitted
from processes import started
from test_scorer import bundle_of
from test_service import asked, connected, read_answer

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle, Prediction
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.direct import is_whole
from notebook_to_prod.serve.predictor import Predictor, load_predictor
from notebook_to_prod.serve.request import refusal
from notebook_to_prod.serve.service import Service
from notebook_to_prod.serve.steady.limits import OVERLOADED, Limiter, Limits

# A model without a plan takes as long in its thread as the row's `wind` says in milliseconds; it fails if `wind` is below 0.
SCRIPT = """
import dataclasses, json, sys, time
from notebook_to_prod.serve.predictor import Predictor, load_predictor
from notebook_to_prod.serve.server import serve
predictor = load_predictor(sys.argv[1], name="flights", version="2")
predictor = dataclasses.replace(predictor, scorer=dataclasses.replace(predictor.scorer, plan=None))
previous = load_predictor(sys.argv[1], name="flights", version="1")
scored = Predictor.score_rows
def score_rows(self, rows):
    place = self.bundle.schema.names.index(sys.argv[3])
    if self is predictor:
        wish = rows[0][place] or 0
        if wish < -1000:
            raise OSError("the disk of the model is gone")
        if wish > 1000:
            time.sleep(wish / 1e6)
    return scored(self, rows)
Predictor.score_rows = score_rows
serve(predictor, port=0, settings=json.loads(sys.argv[2]), announce=lambda url: print(url, flush=True), previous=previous)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("linear"), *fitted("LogisticRegression", 200))


@pytest.fixture(scope="module")
def wish(bundle: Bundle) -> str:
    """A column that takes any number."""
    return next(each.name for each in bundle.schema.columns if each.kind == "number")


@contextlib.contextmanager
def running(
    bundle: Bundle, settings: dict[str, Any], wish: str, log: Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with started([sys.executable, "-c", SCRIPT, bundle.path, json.dumps(settings), wish], log, traces=9) as found:
        yield found


def taking(bundle: Bundle, wish: str, milliseconds: float) -> bytes:
    """A row that the model takes so long for."""
    return json.dumps(bundle.golden["rows"][0] | {wish: milliseconds * 1000.0}).encode()


@pytest.fixture(scope="module")
def limited(bundle: Bundle, wish: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a short time and a short line."""
    settings = {"limits": {"seconds": 1.0, "wait": 0.05}}
    with running(bundle, settings, wish, tmp_path_factory.mktemp("limited") / "log") as (_, url):
        yield url


@pytest.fixture(scope="module")
def standing(bundle: Bundle, wish: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with everything that can stand in."""
    settings = {
        "limits": {"seconds": 0.5},
        "fallback": {"chain": ["cache", "previous", "default"], "default": late(bundle), "failures": 3, "pause": 0.5},
        "cache": {"entries": 100},
    }
    with running(bundle, settings, wish, tmp_path_factory.mktemp("standing") / "log") as (_, url):
        yield url


def late(bundle: Bundle) -> Any:
    return bundle.metadata["classes"][0]


def post(url: str, body: bytes, **headers: str) -> httpx.Response:
    fields = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{url}/predict", content=body, headers=fields, timeout=30, trust_env=False)


# Time


def test_what_is_not_done_in_time_is_answered_504(limited: str, bundle: Bundle, wish: str) -> None:
    answer = post(limited, taking(bundle, wish, 2000))
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (504, "late")
    time.sleep(1.2)  # the thread ends what it has begun
    assert post(limited, taking(bundle, wish, 0)).status_code == 200


def test_a_client_may_have_less_time(limited: str, bundle: Bundle, wish: str) -> None:
    assert post(limited, taking(bundle, wish, 300), x_timeout_ms="50").status_code == 504
    time.sleep(0.3)
    assert post(limited, taking(bundle, wish, 100), x_timeout_ms="900").status_code == 200
    assert post(limited, taking(bundle, wish, 1500), x_timeout_ms="60000").status_code == 504, "but not more"
    time.sleep(0.6)


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1e3", "9" * 40, ""])
def test_a_time_that_is_none_is_refused(value: str, limited: str, bundle: Bundle, wish: str) -> None:
    answer = post(limited, taking(bundle, wish, 0), x_timeout_ms=value)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["header", "x-timeout-ms"])


# Load


async def flood(url: str, body: bytes, clients: int, seconds: float) -> collections.Counter[int]:
    """Clients that ask again as soon as they were answered: the statuses of the answers."""
    statuses: collections.Counter[int] = collections.Counter()
    end = time.monotonic() + seconds

    async def client() -> None:
        async with connected(url) as (reader, writer):
            while time.monotonic() < end:
                writer.write(asked(url, body))
                status, headers, content = await read_answer(reader)
                statuses[status] += 1
                if status == 503:
                    assert headers["retry-after"] == "1" and content == {"detail": OVERLOADED.detail}
                    await asyncio.sleep(0.01)

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


def test_too_much_is_refused_and_forgotten(limited: str, bundle: Bundle, wish: str) -> None:
    body = taking(bundle, wish, 20)
    for _ in range(10):
        assert post(limited, body).status_code == 200
    statuses = asyncio.run(flood(limited, body, 40, 2))
    assert {*statuses} == {200, 503}, statuses
    assert statuses[200] >= 5, "it goes on answering"
    time.sleep(0.5)
    assert [post(limited, body).status_code for _ in range(10)] == [200] * 10


def test_a_first_answer_that_was_slow_is_no_reason_to_refuse_the_next_ones() -> None:
    now, gate = 0.0, Limiter(Limits()).loop_gate
    gate.inside += 1
    gate.leave(now, 0.5)  # cold
    now += 5.0  # and nobody has asked for long
    gate.inside += 1
    gate.leave(now, 0.03)  # still cold, alone
    for _ in range(3):
        for _ in range(32):
            assert not gate.full
            gate.inside += 1
        now += 0.02
        for company in range(1, 33):
            gate.leave(now, 0.02, company)
    assert gate.limit > 100


def test_long_batches_leave_room_for_single_rows(bundle: Bundle, tmp_path: Path, wish: str) -> None:
    """The plan answers single rows while more batches than there are threads wait for each other."""
    rows = bundle.golden["rows"]
    batch = json.dumps({"rows": (rows * 3000)[:3000]}).encode()
    single = json.dumps(rows[0]).encode()
    script = SCRIPT.replace(
        "predictor = dataclasses.replace(predictor, scorer=dataclasses.replace(predictor.scorer, plan=None))", ""
    )
    assert script != SCRIPT
    command = [sys.executable, "-c", script, str(bundle.path), "{}", wish]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout

    async def both(url: str) -> tuple[collections.Counter[int], collections.Counter[int]]:
        return tuple(await asyncio.gather(flood(url, batch, 6, 2), flood(url, single, 1, 2)))  # type: ignore[return-value]

    try:
        large, small = asyncio.run(both(process.stdout.readline().strip()))
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
    assert large[200] and {*small} == {200}
    assert small[200] > 2 * large[200], (large, small)


def test_what_is_turned_away_is_counted(bundle: Bundle, tmp_path: Path, wish: str) -> None:
    """Refusals before a request is parsed and after it are one number of the metrics: what the clients saw."""
    script = SCRIPT.replace(
        "predictor = dataclasses.replace(predictor, scorer=dataclasses.replace(predictor.scorer, plan=None))", ""
    )
    command = [sys.executable, "-c", script, bundle.path, json.dumps({"limits": {"concurrency": 1}}), wish]

    def counted(url: str) -> tuple[float, float]:
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        turned_away = re.search(r'^n2p_refused_total{reason="overloaded"} (.+)$', text, re.MULTILINE)
        parsed = re.findall(r'^n2p_requests_total{.*status="503".*} (.+)$', text, re.MULTILINE)
        return float(turned_away[1]) if turned_away else 0.0, sum(map(float, parsed))

    with started(command, tmp_path / "log") as (_, url):
        statuses = asyncio.run(flood(url, json.dumps(bundle.golden["rows"][0]).encode(), 8, 1.5))
        assert {*statuses} == {200, 503}, statuses
        end = time.monotonic() + 20
        while (found := counted(url)) != (statuses[503], 0.0):
            assert time.monotonic() < end, (found, statuses)
            time.sleep(0.1)


def test_a_stop_under_load_drops_nothing(bundle: Bundle, wish: str, tmp_path: Path) -> None:
    """Every request that was written is answered, with 200 or 503, until the connection says that it is closed."""
    counts: collections.Counter[Any] = collections.Counter()
    body = taking(bundle, wish, 5)

    async def client(url: str) -> None:
        while True:
            try:
                async with connected(url) as (reader, writer):
                    served = False
                    while True:
                        writer.write(asked(url, body))
                        try:
                            status, headers, _ = await read_answer(reader)
                        except (asyncio.IncompleteReadError, ConnectionError) as error:
                            counts["dropped" if served or not isinstance(error, ConnectionResetError) else "reset"] += 1
                            break
                        served = True
                        counts[status] += 1
                        if headers.get("connection") == "close":
                            break
            except ConnectionRefusedError:
                return
            except ConnectionError:
                await asyncio.sleep(0.01)

    async def stop(process: subprocess.Popen[str], url: str) -> None:
        clients = [asyncio.ensure_future(client(url)) for _ in range(24)]
        while counts[200] < 50 or not counts[503]:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    with running(bundle, {"limits": {"wait": 0.01}}, wish, tmp_path / "log") as (process, url):
        asyncio.run(stop(process, url))
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert {*counts} - {"reset"} == {200, 503}, counts


ONE = asked("http://here", b"{}")


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (ONE, True),
        (ONE[:-1], False),
        (ONE + b"x", False),
        (ONE + ONE, False),
        (ONE.replace(b"/predict", b"/explain"), False),
        (ONE.replace(b"content-length: 2", b"Content-Length: 2"), True),
        (ONE.replace(b"content-length: 2", b"content-length: +2"), False),
        (ONE.replace(b"content-length: 2", b"content-length: 2\r\ncontent-length: 2"), False),
        (ONE.replace(b"content-length: 2", b"x-content-length: 2"), False),
        (ONE.replace(b"content-length: 2", b"content-length: 2\r\ntransfer-encoding: chunked"), False),
        (ONE.replace(b"content-length: 2", b"content-length: 2\r\nConnection: close"), False),
        (ONE.replace(b"content-length: 2", b"content-length: 2\r\nexpect: 100-continue"), False),
        (b"POST /predict HTTP/1.1\r\n", False),
        (b"", False),
    ],
)
def test_only_what_is_plainly_one_request_is_turned_away_unparsed(data: bytes, whole: bool) -> None:
    assert is_whole(data) is whole


def test_what_is_turned_away_in_the_middle_of_another_request_is_not_mistaken_for_one(bundle: Bundle) -> None:
    """A body that looks like a request, sent on its own, must not be answered as one."""
    script = """
import sys
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import open_socket, run_server
app = create_app(load_predictor(sys.argv[1]))
app.service.crowded = lambda: True
bound = open_socket("127.0.0.1", 0)
bound.listen()
print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
run_server(app, bound)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(bundle.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    url = process.stdout.readline().strip()

    async def ask() -> list[int]:
        statuses = []
        async with connected(url) as (reader, writer):
            writer.write(ONE)
            statuses.append((await read_answer(reader))[0])

            writer.write(asked(url, ONE)[: -len(ONE)])
            await asyncio.sleep(0.1)
            writer.write(ONE)  # the body of the request whose head was sent before
            statuses.append((await read_answer(reader))[0])
            writer.write(ONE)
            statuses.append((await read_answer(reader))[0])
            writer.write(b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n")
            statuses.append((await read_answer(reader))[0])
        return statuses

    try:
        assert asyncio.run(ask()) == [503, 422, 503, 200]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


# What stands in


def test_what_fails_is_answered_by_the_previous_version(standing: str, bundle: Bundle, wish: str) -> None:
    answer = post(standing, taking(bundle, wish, -2))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["fallback"], said["version"], answer.headers["x-fallback"]) == ("previous", "1", "previous")
    predictor = load_predictor(bundle.path)
    assert said["predictions"] == predictor.predict([json.loads(taking(bundle, wish, -2))]).predictions
    time.sleep(0.6)


def test_what_is_late_is_answered_by_the_default(standing: str, bundle: Bundle, wish: str) -> None:
    answer = post(standing, taking(bundle, wish, 700))
    assert (answer.status_code, answer.headers["x-fallback"]) == (200, "default")
    said = answer.json()
    assert (said["predictions"], said["probabilities"], said["version"]) == ([late(bundle)], None, "2")
    time.sleep(0.3)


def test_a_model_that_keeps_failing_is_left_alone_for_a_while(standing: str, bundle: Bundle, wish: str) -> None:
    good, known = taking(bundle, wish, 0.5), taking(bundle, wish, 0.6)
    time.sleep(0.6)
    first = post(standing, known)
    assert "x-fallback" not in first.headers
    for number in range(40):
        assert post(standing, taking(bundle, wish, -3 - number)).headers["x-fallback"] == "previous"
        resting = post(standing, good)
        if "x-fallback" in resting.headers:
            break
    else:
        pytest.fail("the breaker never opened")
    assert resting.json()["version"] == "1", "the model itself is not asked"
    kept = post(standing, known)
    assert kept.headers.get("x-cache") == "hit" and "x-fallback" not in kept.headers
    time.sleep(0.6)
    assert "x-fallback" not in post(standing, taking(bundle, wish, 0.7)).headers, "it may try again"


def test_rows_that_come_again_are_answered_from_memory(standing: str, bundle: Bundle, wish: str) -> None:
    body = taking(bundle, wish, 0.25)
    first, again = post(standing, body), post(standing, body)
    assert "x-cache" not in first.headers and again.headers["x-cache"] == "hit"
    assert first.content == again.content
    rows = json.dumps({"rows": [json.loads(body)] * 2}).encode()
    assert len(post(standing, rows).json()["predictions"]) == 2


def test_a_new_model_begins_with_an_empty_cache(bundle: Bundle) -> None:
    from fastapi.testclient import TestClient

    service = Service(Model(load_predictor(bundle.path, version="1")))
    client = TestClient(create_app(service.model.predictor, service, {"cache": {"entries": 10}}))
    row = bundle.golden["rows"][0]
    assert [client.post("/predict", json=row).headers.get("x-cache") for _ in range(2)] == [None, "hit"]
    service.model = Model(load_predictor(bundle.path, version="2"))
    answers = [client.post("/predict", json=row) for _ in range(2)]
    assert [answer.headers.get("x-cache") for answer in answers] == [None, "hit"]
    assert {answer.json()["version"] for answer in answers} == {"2"}


def test_other_protocols_have_fallbacks_too(bundle: Bundle) -> None:
    from fastapi.testclient import TestClient

    async def broken(call: Any, model: Any) -> Any:
        return refusal(422, "refused", ["body"], "The model cannot score this input")

    predictor = load_predictor(bundle.path, name="flights", version="2")
    service = Service(Model(predictor), score=broken)
    settings = {"fallback": {"chain": ["previous"]}}
    client = TestClient(create_app(predictor, service, settings, load_predictor(bundle.path, version="1")))
    rows = bundle.golden["rows"][:3]
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert (answer.status_code, answer.headers["x-fallback"]) == (200, "previous")
    assert len(answer.json()["predictions"]) == 3
    csv = client.post("/predict", json=rows, headers={"accept": "text/csv"})
    assert (csv.status_code, csv.headers["x-fallback"]) == (200, "previous")
    assert "x-fallback" not in client.post("/explain", json=rows[0]).headers


def test_without_settings_nothing_stands_in(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    def broken(self: Predictor, rows: Any) -> Prediction:
        raise OSError("the disk of the model is gone")

    predictor = load_predictor(bundle.path)
    app = create_app(predictor)
    app.service.model.at_once = 0
    monkeypatch.setattr(Predictor, "score_rows", broken)
    answer = TestClient(app).post("/predict", json=bundle.golden["rows"][0])
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "refused")
    assert app.service.score is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"limits": {"second": 1}}, "did you mean 'seconds'"),
        ({"limits": {"seconds": 0}}, "'seconds' is 0"),
        ({"limits": {"threads": 2.5}}, "'threads' is 2.5"),
        ({"cache": {"entries": 0}}, "'entries' is 0"),
        ({"cache": {"size": 1}}, "unknown setting 'size'"),
        ({"fallback": {"chain": "default"}}, "'chain' is 'default'"),
        ({"fallback": {"chain": ["previous"]}}, "there is no previous version"),
        ({"fallback": {"chain": ["default"], "default": "never heard of"}}, "is not a class of the model"),
        ({"fallback": {"chain": ["default"]}}, "there is no default prediction"),
        ({"fallback": {"default": 1}}, "is not in the chain"),
        ({"fallback": {"chain": ["cache"], "failures": True}}, "'failures' is True"),
    ],
)
def test_a_wrong_setting_is_told_before_the_service_listens(settings: Any, told: str, bundle: Bundle) -> None:
    with pytest.raises(InputError, match=told):
        create_app(load_predictor(bundle.path), settings=settings)
