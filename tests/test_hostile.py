"""What anybody may send, in every protocol: refused or answered, never a 5xx, nothing that hangs, and no memory that stays.

`N2P_TEST_HOSTILE=100000 pytest tests/test_hostile.py` is the long form.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipelines import fitted
from test_protocols import ARROW, as_arrow, as_csv, as_split, as_tensors
from test_scorer import bundle_of
from test_service import running

from notebook_to_prod.package.bundle import Bundle

COUNT = int(os.environ.get("N2P_TEST_HOSTILE", "2000"))
CONNECTIONS, PATIENCE, GROWTH = 8, 20.0, 48 * 2**20  # Seconds for an answer; bytes that the process may grow by
JSON = "application/json"
ODD: list[Any] = [
    *(None, True, -1, 0, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324, "", " ", "\x00", "\ud800", "𝔘𝔫𝔦", "JFK\n", "1e5"),
    *("9999-99-99", "NaN", "a" * 70_000, [], {}, [[]], [None], {"rows": []}, {"": ""}, float("nan"), float("inf")),
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A forest whose rows have each kind of column."""
    return bundle_of(tmp_path_factory.mktemp("forest"), *fitted("RandomForestClassifier, three named classes", 200))


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, str]]:
    """The process of a service and its address; why the pipeline refuses is in its log once, however often it is asked."""
    with running(bundle, 1, log := tmp_path_factory.mktemp("service") / "log", traces=3) as (process, url):
        yield psutil.Process(process.pid), url
    assert log.stat().st_size < 30_000, "who asks decides how long the log is"


Request = tuple[str, str, bytes, str]  # Path, content type, body, and further lines of the head


def good_requests(rows: list[dict[str, Any]]) -> list[Request]:
    """Requests that are answered, in each spelling."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    told = {
        "/predict": [rows[0], rows, {"rows": rows}, {"columns": columns}],
        "/explain": [rows[0], rows],
        "/invocations": [{"dataframe_records": rows}, as_split(rows), {"instances": rows}],
        "/v2/models/flights/infer": [as_tensors(rows)],
    }
    said = [(path, JSON, json.dumps(body).encode(), "") for path, bodies in told.items() for body in bodies]
    tables = [("text/csv", as_csv(rows)), (ARROW, as_arrow(rows))]
    return [
        *said,
        *(("/predict", kind, body, "") for kind, body in tables),
        *((path, "text/csv", as_csv(rows), "") for path in ("/invocations", "/explain")),
    ]


def harmed(value: Any, moves: random.Random) -> Any:
    """A value of JSON with one of its parts replaced, dropped, renamed or doubled."""
    if isinstance(value, dict) and value and moves.random() < 0.9:
        name = moves.choice([*value])
        kind = moves.randrange(4)
        if kind == 0:
            return {each: part for each, part in value.items() if each != name}
        if kind == 1:
            return {
                **value,
                moves.choice(["", name.upper(), name + " ", "__class__", "\u202e" + name]): moves.choice(ODD),
            }
        return {**value, name: harmed(value[name], moves)}
    if isinstance(value, list) and value and moves.random() < 0.8:
        place = moves.randrange(len(value))
        more = value * 2 if len(value) < 500 and moves.random() < 0.1 else value
        return [*more[:place], harmed(more[place], moves), *more[place + 1 :]]
    return moves.choice(ODD)


FIELDS = ["x-request-id", "accept", "x-timeout-ms", "traceparent", "authorization", "x-api-key", "cookie", "origin", "content-type", "host", "content-encoding", "x-forwarded-for", "é", ""]  # fmt: skip
VALUES = ["", " ", "-1", "0", "nan", "1e999", "9" * 400, "a" * 9_000, "a" * 70_000, "\x00", "é", "\t,;=", "text/csv;q=9", "*/*;" * 500, "00-" + "f" * 32 + "-" + "0" * 16 + "-zz", "Basic ====", "Bearer " + "." * 300, "gzip", "a b", "'\"<>{}%00"]  # fmt: skip
FRAMES = ["transfer-encoding: chunked\r\n", "content-length: 1\r\n", "content-length: -1\r\n", "content-length: 1, 1\r\n", "no colon\r\n", " folded\r\n", "a: b\nc: d\r\n", ": nothing\r\n", "upgrade: websocket\r\nconnection: upgrade\r\n"]  # fmt: skip


def hostile_headers(moves: random.Random) -> str:
    """Lines of a head that nobody's client writes; those that lie about where a body ends come with the end of the connection."""
    way = moves.randrange(4)
    if way == 0:
        return f"{moves.choice(FIELDS)}: {moves.choice(VALUES)}\r\n"
    if way == 1:
        return "".join(
            f"x-{number}: {moves.choice(VALUES[:6])}\r\n" for number in range(moves.choice([20, 300, 3_000]))
        )
    if way == 2:
        return f"{moves.choice(FIELDS[:11])}: {moves.choice(VALUES[:8])}\r\n" * moves.choice([2, 50])
    return moves.choice(FRAMES)


def many_small(moves: random.Random) -> tuple[str, bytes]:
    """A body of very many items that each cost little to send."""
    count = moves.choice([1_000, 20_000, 150_000])
    item = moves.choice(["1", "{}", "[]", '""', "null", "[[]]", '{"a":1}', "1e5", '"\\u0000"'])
    items = ",".join([item] * count)
    named = ",".join(f'"{number}":{item}' for number in range(count))
    some = ",".join(['{"name":"a","datatype":"FP64","shape":[1],"data":[1]}'] * min(count, 20_000))
    texts = [
        f"[{items}]",
        f'{{"rows":[{items}]}}',
        f'{{"columns":{{"distance":[{items}]}}}}',
        f"{{{named}}}",
        f'{{"columns":{{{named}}}}}',
    ]
    texts += [
        f'{{"instances":[{items}]}}',
        f'{{"dataframe_split":{{"columns":[{items}],"data":[[{items}]]}}}}',
        f'{{"inputs":[{some}]}}',
    ]
    tables = ["," * count, "\n" * count, "a\n" + "1\n" * count, '"",' * count, ",".join(map(str, range(count)))]
    return (JSON, moves.choice(texts).encode()) if moves.random() < 0.7 else ("text/csv", moves.choice(tables).encode())


def hostile_request(good: list[Request], moves: random.Random) -> Request:
    """A request that is wrong in some way, or, now and then, right."""
    path, kind, body, _ = moves.choice(good)
    way = moves.randrange(14)
    if way == 12:
        return path, kind, body, hostile_headers(moves)
    if way == 13 and moves.random() < 0.3:  # they are large: less often
        return (path, *many_small(moves), "")
    if way < 5 and kind == JSON:
        body = json.dumps(harmed(json.loads(body), moves)).encode("utf-8", "surrogatepass")
    elif way == 5:
        body = body[: moves.randrange(len(body))]
    elif way == 6:
        places = [moves.randrange(len(body)) for _ in range(moves.choice([1, 1, 3, 30]))]
        body = bytes(moves.randrange(256) if place in places else byte for place, byte in enumerate(body))
    elif way == 7:
        opening = moves.choice([b"[", b'{"a":', b'{"rows":[', b"[{"])
        body = opening * moves.choice([10, 1_000, 50_000])
    elif way == 8:
        body = re.sub(rb'"(\w+)": ?', lambda found: found[0] * moves.choice([1, 1, 2]), body, count=3)
    elif way == 9:
        kind = moves.choice(
            [
                "",
                "text/plain",
                "application/xml",
                "text/csv; charset=utf-16",
                ARROW,
                "text/csv",
                JSON,
                "multipart/form-data",
                "é",
            ]
        )
    elif way == 10:
        path = moves.choice(
            ["/", "/predict/", "/predict?x=%00", "/v2/models/%2e%2e/infer", "/v2/models/flights/versions/9/infer", "/x" * 900, "//predict", "/docs/../predict", "/%ff"]
        )  # fmt: skip
    elif way == 11:
        body = moves.randbytes(moves.choice([0, 1, 10, 1_000, 100_000]))
    return path, kind, body, ""


async def sent(url: str, requests: Iterator[Request], told: Counter[int], wrong: list[Any]) -> None:
    """Send requests one after another over one kept connection."""
    host, port = url.removeprefix("http://").split(":")
    reader = writer = None
    for path, kind, body, more in requests:
        if writer is None:
            reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        )
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(head.encode("latin-1") + body)
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                status = int(answer.split(b" ", 2)[1])
                length = re.search(rb"content-length: *(\d+)", answer)
                content = await reader.readexactly(int(length[1])) if length else b""
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            if not (
                more and isinstance(error, OSError | asyncio.IncompleteReadError)
            ):  # such a head may end the connection
                wrong.append((repr(error), path, kind, body[:300], more[:300]))
            writer = None
            continue
        told[status] += 1
        if not (status == 200 or 300 <= status < 500) or b"Traceback" in content or b".py" in content:
            wrong.append((status, path, kind, body[:300], content[:300], more[:300]))
        if b"connection: close" in answer or more:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


async def storm(url: str, requests: list[Request]) -> tuple[Counter[int], list[Any]]:
    shared, told, wrong = iter(requests), Counter[int](), []
    await asyncio.gather(*(sent(url, shared, told, wrong) for _ in range(CONNECTIONS)))
    return told, wrong


def test_hostile_requests_are_refused_and_leave_nothing(service: tuple[psutil.Process, str], bundle: Bundle) -> None:
    process, url = service
    good, moves = good_requests(bundle.golden["rows"][:3]), random.Random(7)
    told, sizes = Counter[int](), []
    for _ in range(parts := 10):
        some, wrong = asyncio.run(storm(url, [hostile_request(good, moves) for _ in range(COUNT // parts)]))
        assert not wrong, (len(wrong), wrong[:5])
        told += some
        sizes.append(process.memory_info().rss)
    assert sum(told.values()) == COUNT // parts * parts
    assert {200, 400, 404, 415, 422} <= told.keys(), told
    assert max(sizes[parts // 2 :]) - max(sizes[: parts // 2]) < GROWTH, sizes


HOOKS = """
import schemathesis

# No schema says which text is a table of these columns, which bytes are one of Arrow, or tensors: those are stormed above.
@schemathesis.hook
def filter_case(context, case):
    return case.media_type in (None, "application/json")
"""

# Nor does any say that columns are of one length, or that shapes and names fit the data: not all that fits it is answered.
# MLflow passes over what it does not know, and so do we.
CONFIG = """
[checks]
enabled = true

[[operations]]
include-path-regex = "^/(predict|explain|v2/.*/infer)$"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-path = "/invocations"
checks.positive_data_acceptance.enabled = false
checks.negative_data_rejection.enabled = false
"""


def test_schemathesis_finds_nothing(service: tuple[psutil.Process, str], tmp_path: Path) -> None:
    """Every check that it has, on every operation of the document."""
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service[1]}/openapi.json"]
    options = [
        "--max-examples",
        os.environ.get("N2P_TEST_EXAMPLES", "15"),
        "--seed",
        "7",
        "--no-color",
        "--workers",
        "1",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
