"""Who may call a service: keys, tokens of an issuer, scopes, rates and TLS, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Depends
from notebooks import SCRIPTS
from pipelines import fitted
from processes import started
from test_scorer import bundle_of

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.serve.access.callers import NewKey, new_key
from notebook_to_prod.serve.access.guard import OPEN, caller_of, refuse_other_server, require
from notebook_to_prod.serve.app import Application, create_app
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import docs_url, open_apart
from notebook_to_prod.serve.settings import read_settings

SCRIPT = """
import json, sys
from notebook_to_prod.errors import N2PError
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import forkable, serve
path, options = sys.argv[1], json.loads(sys.argv[2])
try:
    with forkable():
        predictor = load_predictor(path, name="flights", version="1")
    serve(predictor, port=0, announce=lambda url: print(url, flush=True), **options)
except N2PError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
VARIABLES = {name: value for name, value in os.environ.items() if not name.startswith("N2P_")} | {
    "NO_PROXY": "127.0.0.1"
}
KEYS = {scope: new_key(scope, (scope,)) for scope in ("predict", "feedback", "metrics", "admin")}


def table(*keys: NewKey) -> dict[str, Any]:
    """Keys as the settings have them."""
    return {key.name: {"digest": key.digest, "scopes": list(key.scopes)} for key in keys}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("model"), *fitted("LogisticRegression", 200))


@dataclass
class Served:
    """A running service."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    row: dict[str, Any]
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=30, verify=False)

    def get(self, path: str, key: str = "") -> httpx.Response:
        return self.client.get(path, headers={"x-api-key": key} if key else {}, follow_redirects=False)

    def predict(self, key: str = "", path: str = "/predict", **headers: str) -> httpx.Response:
        shown = {"authorization": f"Bearer {key}"} if key else {}
        return self.client.post(path, json=self.row, headers=shown | headers)


def command(bundle: Bundle, **options: Any) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(bundle.path), json.dumps(options)]


@contextlib.contextmanager
def running(bundle: Bundle, log: Path, **options: Any) -> Iterator[Served]:
    """A service in a process of its own."""
    with started(command(bundle, **options), log, environment=VARIABLES) as (process, url):
        yield Served(url, process, log, bundle.golden["rows"][0])


def comes(wanted: Callable[[], bool]) -> bool:
    """Whether something comes true while one may wait for it."""
    ends = time.monotonic() + 20
    while not (found := wanted()) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


# Keys


@pytest.fixture(scope="module")
def keyed(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that asks for keys, on all addresses of this machine: half of them in the table, half in a file."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys.toml").write_text("\n".join(KEYS[scope].line for scope in ("metrics", "admin")))
    keys, limited = table(KEYS["predict"], KEYS["feedback"]), table(LIMITED)
    limited["limited"]["rate"] = "3/hour"
    security = {
        "keys": keys | limited,
        "keys_file": str(folder / "keys.toml"),
        "anonymous_rate": "1000/second",
        "cors": ["https://app.example.com"],
    }
    with running(bundle, folder / "log", settings={"security": security}, host="0.0.0.0") as served:
        served.url = served.url.replace("0.0.0.0", "127.0.0.1")
        served.__post_init__()
        yield served


OVER, LIMITED = new_key("over"), new_key("limited")


def routes() -> list[tuple[str, str]]:
    """Every method and path that the service answers, the undocumented among them, and some that it does not."""
    found = [("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/static-offline-docs/swagger-ui.css")]
    found += [
        ("POST", path) for path in ("/predict", "/explain", "/invocations", "/v2/models/flights/infer", "/feedback")
    ]
    found += [("POST", "/v2/models/flights/versions/1/infer"), ("GET", "/v2"), ("GET", "/v2/models/flights")]
    found += [
        ("GET", "/v2/models/flights/ready"),
        ("GET", "/metrics"),
        ("GET", "/dashboard"),
        ("POST", "/admin/rollout"),
    ]
    found += [("GET", "/predict"), ("DELETE", "/predict"), ("OPTIONS", "/predict"), ("GET", "/none"), ("HEAD", "/docs")]
    return [*found, ("POST", "/predict/"), ("POST", "//predict"), ("POST", "/health/../predict"), ("GET", "/%61dmin/x")]


@pytest.mark.parametrize(("method", "path"), routes(), ids=lambda part: part)
def test_every_route_asks_for_a_key(method: str, path: str, keyed: Served) -> None:
    for headers in ({}, {"x-api-key": OVER.key}, {"authorization": f"Bearer {KEYS['predict'].digest}"}):
        answer = keyed.client.request(method, path, headers=headers)
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"].startswith('Bearer realm="')
        if method != "HEAD":
            assert answer.json()["detail"][0]["type"] == "unauthorized"


def test_what_is_refused_at_the_door_is_counted(keyed: Served) -> None:
    def refused() -> float:
        text = keyed.get("/metrics", KEYS["metrics"].key).text
        found = re.search(r'^n2p_refused_total{reason="unauthorized"} (.+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = refused()
    assert [keyed.get("/dashboard").status_code for _ in range(3)] == [401] * 3
    assert refused() == before + 3


def test_probes_ask_for_none(keyed: Served) -> None:
    assert {path: keyed.get(path).status_code for path in OPEN} == dict.fromkeys(OPEN, 200)


def test_a_key_opens_what_its_scope_says(keyed: Served) -> None:
    wanted = {"/docs": {*KEYS}, "/openapi.json": {*KEYS}, "/v2": {"predict", "admin"}, "/metrics": {"metrics", "admin"}}
    wanted |= {"/admin/rollout": {"admin"}, "/dashboard": {"admin"}, "/feedback": {"feedback", "admin"}}
    for path, scopes in wanted.items():
        answers = {scope: keyed.get(path, key.key) for scope, key in KEYS.items()}
        assert {scope for scope, answer in answers.items() if answer.status_code != 403} == scopes, path
        for answer in answers.values():
            assert answer.status_code != 403 or 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert keyed.predict(KEYS["metrics"].key).status_code == 403


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/explain"])
def test_either_header_opens(path: str, keyed: Served) -> None:
    key = KEYS["predict"].key
    body = {"dataframe_records": [keyed.row]} if path == "/invocations" else keyed.row
    ways = ({"authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"x-api-key": key})
    ways += ({"x-api-key": key, "authorization": "Basic cHJveHk6c2VjcmV0"},)
    for headers in ways * 2:  # the second time from memory
        assert keyed.client.post(path, json=body, headers=headers).status_code == 200, headers
    for wrong in (
        f"Bearer {key}x",
        f"Bearer {key[:-1]}",
        f"Token {key}",
        "Bearer",
        "Bearer \xe9".encode("latin-1"),
        "",
    ):
        assert keyed.client.post(path, json=body, headers={"authorization": wrong}).status_code == 401, wrong


def test_a_browser_may_read_pages_by_password_and_change_nothing(keyed: Served) -> None:
    for path in ("/docs", "/dashboard"):
        assert 'Basic realm="' in keyed.get(path).headers.get_list("www-authenticate")[-1]
    login = httpx.BasicAuth("anybody", KEYS["admin"].key)
    assert keyed.client.get("/docs", auth=login).status_code == 200
    assert keyed.client.get("/dashboard", auth=login).status_code == 200
    assert keyed.client.post("/admin/rollout", auth=login).status_code == 401
    assert keyed.client.post("/predict", json=keyed.row, auth=login).status_code == 401


def test_answers_have_safe_headers(keyed: Served) -> None:
    key = KEYS["admin"].key
    answers = [
        keyed.predict(key),
        keyed.predict(),
        keyed.get("/docs", key),
        keyed.get("/docs"),
        keyed.get("/health"),
        keyed.predict(key, "/explain"),
    ]
    for answer in answers:
        assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")
        assert "server" not in answer.headers and "strict-transport-security" not in answer.headers
    assert keyed.get("/docs", key).headers["x-frame-options"] == "DENY"


def test_pages_of_other_sites_ask_where_they_are_named(keyed: Served) -> None:
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, status in (("https://app.example.com", 200), ("https://evil.example.com", 400)):
        answer = keyed.client.options("/predict", headers=wanted | {"origin": origin})
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
    mine = keyed.predict(KEYS["predict"].key, origin="https://app.example.com")
    assert (mine.status_code, mine.headers["access-control-allow-origin"]) == (200, "https://app.example.com")
    assert keyed.predict(origin="https://app.example.com").headers["access-control-allow-origin"], (
        "a page can read why not"
    )


def test_workers_share_what_a_caller_may(bundle: Bundle, tmp_path: Path) -> None:
    limited = table(LIMITED)
    limited["limited"]["rate"] = "40/hour"
    with running(bundle, tmp_path / "log", workers=2, settings={"security": {"keys": limited}}) as served:

        def ask(_: int) -> int:
            # a connection of its own, so either worker may answer
            with httpx.Client(trust_env=False, timeout=60) as client:
                return client.post(
                    f"{served.url}/predict", json=served.row, headers={"x-api-key": LIMITED.key}
                ).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(ask, range(160)))
    assert statuses == {200: 40, 429: 120}


def test_a_caller_has_a_rate(keyed: Served) -> None:
    answers = [
        keyed.predict(LIMITED.key, path) for path in ("/predict", "/explain", "/predict", "/predict", "/explain")
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[0].headers["ratelimit-policy"] == '"default";q=3;w=3600'
    assert answers[0].headers["ratelimit"].startswith('"default";r=2;t=')
    assert 0 < int(answers[3].headers["retry-after"]) <= 1200
    assert answers[3].json()["detail"][0]["type"] == "too_many_requests"
    assert keyed.predict(KEYS["predict"].key).status_code == 200, "another caller is not concerned"


def test_the_description_names_how_one_is_let_in(keyed: Served) -> None:
    document = keyed.get("/openapi.json", KEYS["predict"].key).json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
    assert document["security"] == [{"bearer": []}, {"apiKey": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert {"401", "403", "429"} <= document["paths"]["/predict"]["post"]["responses"].keys()


def test_keys_come_and_go_without_a_new_start(bundle: Bundle, tmp_path: Path) -> None:
    first, second = new_key("first"), new_key("second")
    path = tmp_path / "keys.toml"
    path.write_text(first.line)
    security = {"keys_file": str(path), "anonymous_rate": "1000/second"}
    with running(bundle, tmp_path / "log", settings={"security": security}, workers=2) as served:
        address, body = served.url.removeprefix("http://"), json.dumps(served.row)

        def status(key: NewKey) -> int:
            """What one of the workers says: each request has a connection of its own."""
            with contextlib.closing(HTTPConnection(address)) as connection:
                headers = {"x-api-key": key.key, "content-type": "application/json"}
                connection.request("POST", "/predict", body, headers)
                return connection.getresponse().status

        def statuses() -> tuple[set[int], set[int]]:
            return {status(first) for _ in range(8)}, {status(second) for _ in range(8)}

        assert statuses() == ({200}, {401})
        path.write_text(f"{first.line}\n{second.line}")
        assert comes(lambda: statuses() == ({200}, {200}))
        path.write_text("half of")
        assert comes(lambda: "what was known stays" in served.log.read_text())
        assert statuses() == ({200}, {200})
        other = tmp_path / "other"
        other.write_text(second.line)
        other.replace(path)
        assert comes(lambda: statuses() == ({401}, {200}))
        path.write_text("")
        assert comes(lambda: statuses() == ({401}, {401}))
    for key in (first, second):
        assert key.key not in served.log.read_text()


def test_a_key_ends(bundle: Bundle) -> None:
    predictor = load_predictor(bundle.path)
    ends = datetime.now(UTC) + timedelta(seconds=3)
    app = create_app(
        predictor,
        settings={"security": {"keys": {"short": {"digest": OVER.digest, "expires": ends}}}},
    )

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:  # type: ignore[arg-type]
            return (await client.get("/openapi.json", headers={"x-api-key": OVER.key})).status_code

    assert asyncio.run(ask()) == 200
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.01)
    assert asyncio.run(ask()) == 401, "also where it is remembered"


def test_routes_that_are_added_are_asked_too(bundle: Bundle) -> None:
    made = create_app(load_predictor(bundle.path), settings={"security": {"keys": table(*KEYS.values())}})

    @made.fastapi.get("/extra")
    def extra() -> str:
        return "extra"

    @made.fastapi.get("/operate")
    def operate(who: Any = Depends(require("admin"))) -> str:  # noqa: B008
        return who.name

    @made.fastapi.websocket("/talk")
    async def talk(socket: Any) -> None:
        await socket.accept()

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        refused = require("feedback").refuses(scope)
        body = refused.body if refused else caller_of(scope).name.encode()
        await send({"type": "http.response.start", "status": refused.status if refused else 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    made.fastapi.mount("/plain", plain)

    async def ask(path: str, scope: str) -> int:
        headers = {"x-api-key": KEYS[scope].key} if scope else {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://test") as client:  # type: ignore[arg-type]
            return (await client.get(path, headers=headers)).status_code

    wanted = {("/extra", ""): 401, ("/extra", "predict"): 200, ("/operate", "predict"): 403, ("/operate", "admin"): 200}
    wanted |= {("/plain/", ""): 401, ("/plain/", "predict"): 403, ("/plain/", "admin"): 200}
    assert {case: asyncio.run(ask(*case)) for case in wanted} == wanted
    assert asyncio.run(closed(made, "/talk")) == "websocket.close"
    made.fastapi.root_path = "/behind"
    assert asyncio.run(ask("/behind/admin/rollout", "predict")) == 403


async def closed(app: Application, path: str) -> str:
    """The first that a service says to a client that wants to talk."""
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append(message)

    await app(
        {"type": "websocket", "path": path, "headers": [], "query_string": b"", "root_path": "", "scheme": "ws"},
        receive,
        send,
    )
    return said[0]["type"]


# Without keys


def refused(bundle: Bundle, variables: dict[str, str] | None = None, **options: Any) -> str:
    """What a service says that does not start, with exit code 2."""
    done = subprocess.run(
        command(bundle, **options),
        env=VARIABLES | (variables or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert not done.stdout, "it never listened"
    return done.stderr


def test_without_keys_it_does_not_listen_beyond_this_machine(bundle: Bundle) -> None:
    said = refused(bundle, host="0.0.0.0")
    assert "n2p apikey new NAME" in said and "--without-authentication" in said and "--host 0.0.0.0" in said


def test_without_keys_it_listens_beyond_this_machine_if_told_to(bundle: Bundle, tmp_path: Path) -> None:
    with running(
        bundle,
        tmp_path / "log",
        host="0.0.0.0",
        without_authentication=True,
        settings={"security": {"anonymous_rate": "20/hour"}},
    ) as served:
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(f"{url}/predict", json=served.row, trust_env=False).status_code == 200
        document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
        assert "security" not in document
        there = {
            httpx.post(f"{url}/admin/rollout", headers=headers, trust_env=False).status_code
            for headers in ({}, {"sec-fetch-site": "same-origin"})
        }
        assert there == {404}, "administration is for this machine"
        for headers in (
            {"host": "evil.example"},
            {"origin": "https://evil.example"},
            {"sec-fetch-site": "cross-site"},
            {"host": "[::1"},
        ):
            assert httpx.post(f"{url}/admin/rollout", headers=headers, trust_env=False).status_code == 403, headers
        statuses = [httpx.get(f"{url}/v2", trust_env=False).status_code for _ in range(20)]
        assert statuses[-1] == 429 and httpx.get(f"{url}/health", trust_env=False).status_code == 200


def test_under_another_server_it_answers_this_machine_only(bundle: Bundle) -> None:
    app = create_app(load_predictor(bundle.path))

    async def ask(address: str, path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{address}") as client:  # type: ignore[arg-type]
            answer = (
                await client.post(path, json=bundle.golden["rows"][0]) if path == "/predict" else await client.get(path)
            )
            return answer.status_code

    found = {
        address: [asyncio.run(ask(address, path)) for path in ("/predict", "/v2", "/health")]
        for address in ("127.0.0.1", "172.17.0.2", "[2001:db8::1]", "[::1]")
    }
    assert found == {
        "127.0.0.1": [200] * 3,
        "172.17.0.2": [403, 403, 200],
        "[2001:db8::1]": [403, 403, 200],
        "[::1]": [200] * 3,
    }


def test_the_description_can_be_closed_and_opened(bundle: Bundle) -> None:
    def statuses(docs: str, **more: Any) -> list[int]:
        app = create_app(load_predictor(bundle.path), settings={"security": {"docs": docs, **more}})

        async def ask() -> list[int]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:  # type: ignore[arg-type]
                return [(await client.get(path)).status_code for path in ("/docs", "/openapi.json", "/v2")]

        return asyncio.run(ask())

    keys = {"keys": table(KEYS["predict"])}
    assert [statuses("off"), statuses("off", **keys), statuses("open", **keys)] == [
        [404, 404, 200],
        [404, 404, 401],
        [200, 200, 401],
    ]


WRONG = {
    "a setting": ({"security": {"key": {}}}, "unknown setting 'key', did you mean 'keys'?"),
    "a key itself": ({"security": {"keys": {"scorer": KEYS["predict"].key}}}, "itself stands in the configuration"),
    "no file of keys": ({"security": {"keys_file": "none.toml"}}, "the keys cannot be read: No such file"),
    "a scope": (
        {"security": {"keys": {"scorer": {"digest": OVER.digest, "scopes": ["all"]}}}},
        "there is no scope 'all'",
    ),
    "a rate": ({"security": {"rate": "fast"}}, "'fast' is no rate"),
    "a shared secret": (
        {"security": {"jwt": {"issuer": "https://a.example", "audience": "a", "algorithms": ["HS256"]}}},
        "HS256",
    ),
    "a listener": ({"security": {"admin": "9000"}}, "admin is '9000', which is no address"),
    "any port": ({"security": {"admin": "127.0.0.1:0"}}, "admin is '127.0.0.1:0', which is no address"),
    "no certificate": ({"tls": {"certfile": "none.pem"}}, "cannot be read: No such file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_found_before_it_listens(case: str, bundle: Bundle) -> None:
    settings, told = WRONG[case]
    with pytest.raises(InputError) as error:
        create_app(load_predictor(bundle.path), settings=settings)
    assert told in str(error.value) and error.value.remedy


def test_paths_in_a_file_are_relative_to_its_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started from elsewhere, a folder is the same service."""
    folder, elsewhere = tmp_path / "exported", tmp_path / "elsewhere"
    for each in (folder, folder / "tls", elsewhere):
        each.mkdir()
    (folder / "keys.toml").write_text(KEYS["predict"].line)
    certfile, keyfile = certificate(folder / "tls")
    shutil.copytree(bundle.path, folder / "previous")
    tls = f'certfile = "tls/{certfile.name}"\nkeyfile = "$N2P_TEST_TLS/{keyfile.name}"'
    log = 'folder = "kept"\nto = "sqlite:///kept.db"'
    (folder / "service.toml").write_text(
        f'[security]\nkeys_file = "keys.toml"\n[tls]\n{tls}\n[log]\n{log}\n'
        '[fallback]\nchain = ["previous"]\nprevious = "previous"\n[rollout]\nfollow = false\nreports = "reports"\n'
    )
    monkeypatch.setenv("N2P_TEST_TLS", "tls")
    monkeypatch.chdir(folder.parent)
    settings = read_settings(Path("exported", "service.toml"))
    monkeypatch.chdir(elsewhere)
    app = create_app(load_predictor(bundle.path), settings=settings)
    assert app.service.tls == (str(certfile), str(keyfile)) and app.service.previous
    assert app.service.guard.settings.keys_file == folder / "keys.toml"
    assert (folder / "kept").is_dir() and [*elsewhere.iterdir()] == []
    assert settings["log"]["to"] == f"sqlite:///{folder}/kept.db"
    assert settings["rollout"]["reports"] == str(folder / "reports")
    monkeypatch.delenv("N2P_TEST_TLS")
    with pytest.raises(InputError, match="not set: N2P_TEST_TLS") as error:
        read_settings(folder / "service.toml")
    assert error.value.where == "[tool.n2p.serve] tls.keyfile"


def test_a_wrong_setting_ends_the_process_with_2(bundle: Bundle) -> None:
    assert "the keys cannot be read" in refused(bundle, {"N2P_API_KEYS": "none.toml"})


def test_the_command_makes_a_key(tmp_path: Path) -> None:
    options = ["apikey", "new", "scorer", "--scope", "predict", "--scope", "metrics", "--expires", "90 days", "--json"]
    made = json.loads(
        subprocess.run([SCRIPTS / "n2p", *options], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    )
    assert made["key"].startswith("n2p_key_") and made["key"] not in made["line"]
    assert made["line"].startswith(
        f'scorer = {{digest = "{made["digest"]}", scopes = ["predict", "metrics"], expires = 2'
    )
    wrong = subprocess.run(
        [SCRIPTS / "n2p", "apikey", "new", "scorer", "--expires", "soon"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2 and "90 days" in wrong.stderr


# TLS


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that signs itself, and its key."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]),
    )
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    paths = folder / "service.pem", folder / "service.key"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_tls(bundle: Bundle, tmp_path: Path) -> None:
    certfile, keyfile = certificate(tmp_path)
    with running(
        bundle,
        tmp_path / "log",
        certfile=str(certfile),
        keyfile=str(keyfile),
        settings={"security": {"keys": table(KEYS["predict"])}},
    ) as served:
        assert served.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certfile))
        url = served.url.replace("127.0.0.1", "localhost")
        headers = {"x-api-key": KEYS["predict"].key}
        assert (
            httpx.post(f"{url}/predict", json=served.row, headers=headers, verify=trusting, trust_env=False).status_code
            == 200
        )
        for answer in (served.predict(), served.predict(KEYS["predict"].key), served.get("/health"), served.get("/v2")):
            assert answer.headers["strict-transport-security"] == "max-age=31536000", answer.url
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
            httpx.get(f"{url}/health", trust_env=False)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health".replace("https", "http"), trust_env=False)
    assert "there is a key and no certificate" in refused(bundle, keyfile=str(keyfile))


def test_another_server_is_not_left_to_pass_over_a_certificate(bundle: Bundle, tmp_path: Path) -> None:
    certfile, keyfile = certificate(tmp_path)
    predictor = load_predictor(bundle.path)
    settings = {"tls": {"certfile": str(certfile), "keyfile": str(keyfile)}}
    for unread, told in ((settings, "[tls]"), ({"security": {"admin": "127.0.0.1:9000"}}, "[security] admin")):
        with pytest.raises(InputError) as error:
            refuse_other_server(create_app(predictor, settings=unread).service)
        assert told in error.value.what and "python app.py" in str(error.value.remedy)
    refuse_other_server(create_app(predictor, settings={"security": {"keys": table(KEYS["predict"])}}).service)


# A listener apart


@pytest.mark.parametrize("workers", [1, 2])
def test_administration_answers_on_its_own_listener_only(workers: int, bundle: Bundle, tmp_path: Path) -> None:
    port = free_port()
    keys = {scope: KEYS[scope] for scope in ("predict", "metrics", "admin")}
    security = {"keys": table(*keys.values()), "admin": f"127.0.0.1:{port}"}
    needs = {"/metrics": "metrics", "/dashboard": "admin", "/docs": "admin", "/openapi.json": "predict", "/": "admin"}
    with running(bundle, tmp_path / "log", settings={"security": security}, workers=workers) as served:
        apart = Served(f"http://127.0.0.1:{port}", served.process, served.log, served.row)
        for path, scope in needs.items():
            for key in ("", keys[scope].key):
                assert served.get(path, key).status_code == 404, path
            assert apart.get(path).status_code == 401, path
            assert apart.get(path, keys[scope].key).status_code in (200, 307), path
        for path in ("/rollout", "/admin/x", "/metrics/", "/static-offline-docs/swagger-ui.css"):
            assert served.client.request("POST", path, headers={"x-api-key": keys["admin"].key}).status_code == 404
        assert {each.get("/health").status_code for each in (served, apart)} == {200}
        for each in range(20):  # by a connection of its own each, so that several processes answer
            answer = httpx.post(
                f"{served.url}/predict", json=served.row, headers={"x-api-key": keys["predict"].key}, trust_env=False
            )
            assert answer.status_code == 200, each

        def counted() -> bool:
            told = apart.get("/metrics", keys["metrics"].key).text.splitlines()
            ok = [line for line in told if line.startswith("n2p_requests_total{") and 'status="200"' in line]
            return sum(float(line.rpartition(" ")[2]) for line in ok) >= 20

        assert comes(counted)
    with pytest.raises(httpx.ConnectError):
        apart.get("/health")


def test_the_description_is_told_where_it_is(bundle: Bundle) -> None:
    port, url = free_port(), "https://here:8443"
    cases = {"": f"{url}/docs", 'docs = "off"': "", f'admin = "127.0.0.1:{port}"': f"https://127.0.0.1:{port}/docs"}
    for more, shown in cases.items():
        security = {"keys": table(KEYS["predict"]), **tomllib.loads(more)}
        service = create_app(load_predictor(bundle.path), settings={"security": security}).service
        apart = open_apart(service, 8443)
        assert docs_url(service, url, apart) == shown
        for each in apart:
            each.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_listener_apart_that_cannot_be_had_is_found_before_it_listens(bundle: Bundle) -> None:
    port = free_port()
    said = refused(bundle, settings={"security": {"admin": f"0.0.0.0:{port}"}})
    assert "no keys are configured" in said and "[tool.n2p.serve.security] admin" in said
    app = create_app(load_predictor(bundle.path), settings={"security": {"admin": "127.0.0.1:9000"}})
    with pytest.raises(InputError, match="has the port of everything else"):
        open_apart(app.service, 9000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = {"settings": {"security": {"admin": f"127.0.0.1:{taken.getsockname()[1]}"}}}
        done = subprocess.run(command(bundle, **options), env=VARIABLES, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "is taken by another process" in done.stderr and not done.stdout


# Tokens of an issuer


class Company:
    """An OpenID Connect issuer over HTTP, with keys that change."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.asked = 0
        self.new_key("one")
        company = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                company.asked += 1
                there = {
                    "/.well-known/openid-configuration": {"issuer": company.url, "jwks_uri": f"{company.url}/keys"},
                    "/keys": company.jwks(),
                }
                body = json.dumps(there.get(self.path)).encode()
                self.send_response(200 if self.path in there else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def new_key(self, name: str) -> None:
        self.keys[name] = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        import jwt

        written = jwt.algorithms.ECAlgorithm.to_jwk
        return {
            "keys": [
                {**written(key.public_key(), as_dict=True), "kid": name, "use": "sig", "alg": "ES256"}
                for name, key in self.keys.items()
            ]
        }

    def token(self, key: str = "one", private: Any = None, algorithm: str = "ES256", **other: Any) -> str:
        import jwt

        claims = {
            "iss": self.url,
            "aud": "flights",
            "sub": "ann",
            "exp": int(time.time()) + 300,
            "scope": "openid flights:predict",
        } | other
        return jwt.encode(
            {name: value for name, value in claims.items() if value is not None},
            private or self.keys[key],
            algorithm,
            {"kid": key},
        )


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    pytest.importorskip("jwt", reason="PyJWT is not installed")
    made = Company()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def tokened(company: Company, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that believes the issuer, and has a key besides."""
    jwt = {"issuer": company.url, "audience": "flights", "scope_prefix": "flights:"}
    security = {"jwt": jwt, "keys": table(KEYS["metrics"]), "anonymous_rate": "1000/second"}
    with running(bundle, tmp_path_factory.mktemp("tokened") / "log", settings={"security": security}) as served:
        yield served


def test_a_token_opens_what_its_scopes_say(company: Company, tokened: Served) -> None:
    token = company.token()
    assert [tokened.predict(token).status_code for _ in range(3)] == [200] * 3
    assert tokened.get("/metrics", token).status_code == 403
    admin = company.token(scope=["flights:admin"])
    assert [tokened.predict(admin).status_code, tokened.get("/dashboard", admin).status_code] == [200, 200]
    assert tokened.predict(company.token(scope="predict")).status_code == 403, "a scope of something else"
    assert tokened.get("/metrics", KEYS["metrics"].key).status_code == 200, "keys go on"


def test_a_token_that_is_not_what_it_must_be_opens_nothing(company: Company, tokened: Served) -> None:
    import jwt

    now = int(time.time())
    wrong = {
        "ended": company.token(exp=now - 60),
        "of no end": company.token(exp=None),
        "not begun": company.token(nbf=now + 600),
        "of another issuer": company.token(iss="https://other.example.com"),
        "for another": company.token(aud="trains"),
        "for nobody": company.token(aud=None),
        "signed by another": company.token(private=ec.generate_private_key(ec.SECP256R1())),
        "unsigned": jwt.encode(
            jwt.decode(company.token(), options={"verify_signature": False}), None, "none", {"kid": "one"}
        ),
        "signed with the public key": company.token(private=b"k" * 32, algorithm="HS256"),
        "cut": company.token()[:-2],
        "empty": "..",
        "no JSON": "e30.e30.e30",
    }
    assert {case: tokened.predict(token).status_code for case, token in wrong.items()} == dict.fromkeys(wrong, 401)
    assert tokened.predict(company.token(exp=now - 10)).status_code == 200, "clocks may differ by a little"


def test_the_issuers_keys_change_without_a_new_start(company: Company, tokened: Served) -> None:
    before = company.token()
    assert tokened.predict(before).status_code == 200
    company.new_key("two")
    del company.keys["one"]
    after, seen = company.token("two"), []
    assert comes(lambda: seen.append(tokened.predict(after).status_code) or seen[-1] == 200)  # type: ignore[func-returns-value]
    assert {*seen} <= {200, 401, 503}
    assert tokened.predict(before).status_code == 401, "also where it is remembered"
    fetched = company.asked
    company.keys["three"] = company.keys["two"]
    unknown = company.token("three")
    del company.keys["three"]
    assert {tokened.predict(unknown).status_code for _ in range(30)} == {401}, (
        "who invents ids does not make it ask each time"
    )
    assert company.asked == fetched
