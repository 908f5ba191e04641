"""What a running service tells of itself: to Prometheus, to its own page, to logs and traces; whole, whichever process is asked."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pipelines import fitted
from processes import started
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text
from test_scorer import bundle_of

import notebook_to_prod as n2p
from notebook_to_prod.errors import DependencyError, InputError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.profile import stability_of_parts
from notebook_to_prod.package.schema import to_rows
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.observe.board import Board
from notebook_to_prod.serve.observe.measures import MEASURES
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.train.diff import population_stability

SCRIPT = """
import json, sys
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import forkable, serve
path, workers, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
with forkable():
    predictor = load_predictor(path, name="flights", version="1")
serve(predictor, port=0, workers=workers, settings=settings, announce=lambda url: print(url, flush=True))
"""
THREE = "RandomForestClassifier, three named classes"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A forest whose rows have each kind of column."""
    return bundle_of(tmp_path_factory.mktemp("forest"), *fitted(THREE, 800))


@contextlib.contextmanager
def running(bundle: Bundle, workers: int, log: Path, **settings: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, and its address."""
    with started([sys.executable, "-c", SCRIPT, bundle.path, workers, json.dumps(settings)], log) as found:
        yield found


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of three processes, killed and asked by all tests."""
    log = tmp_path_factory.mktemp("service") / "log"
    with running(bundle, 3, log, metrics={"rows": 200, "window": 600}) as (_, url):
        yield url


Values = dict[tuple[str, ...], float]


def scraped(url: str, accept: str = "text/plain") -> Values:
    """What Prometheus would read: the value by the name and the labels, `name, label=value, ...`."""
    answer = httpx.get(f"{url}/metrics", headers={"accept": accept}, trust_env=False, timeout=30)
    assert answer.status_code == 200
    read = read_open if "openmetrics" in answer.headers["content-type"] else read_text
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in read(answer.text)
        for sample in family.samples
    }


def total(found: Values, name: str, *labels: str) -> float:
    """The sum of the series of a name that have these labels."""
    return sum(value for key, value in found.items() if key[0] == name and set(labels) <= set(key[1:]))


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def ask(url: str, body: Any, times: int = 1, path: str = "/predict") -> set[int]:
    """Each time over a connection of its own, so that every process has its share."""
    return {httpx.post(f"{url}{path}", json=body, trust_env=False, timeout=30).status_code for _ in range(times)}


# Counting


def test_a_scrape_tells_of_every_process_and_request(service: str, bundle: Bundle) -> None:
    rows = bundle.golden["rows"]
    before = scraped(service)
    assert ask(service, rows[0], 30) == {200}
    assert ask(service, rows[:4], 5) == {200}
    assert ask(service, {**rows[0], "distance": "far"}, 7) == {422}
    assert ask(service, {"dataframe_records": rows[:2]}, 3, "/invocations") == {200}
    assert ask(service, {"inputs": []}, 2, "/v2/models/other/infer") == {404}
    until(
        lambda: total(scraped(service), "n2p_request_seconds_count") >= total(before, "n2p_request_seconds_count") + 47
    )
    after = scraped(service)
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    one = "version=1"
    assert total(grown, "n2p_requests_total", "route=/predict", "status=200", one, "traffic=live") == 35
    assert total(grown, "n2p_requests_total", "route=/predict", "status=422") == 7
    assert total(grown, "n2p_requests_total", "route=/invocations", "status=200") == 3
    assert total(grown, "n2p_requests_total", "route=/v2/models/infer", "status=404") == 2
    assert total(grown, "n2p_predictions_total") == 30 + 5 * 4 + 3 * 2
    assert total(grown, "n2p_predictions_total", f"class={bundle.golden['predictions'][0]}") >= 30
    assert total(grown, "n2p_request_seconds_count", "route=/predict") == 42
    assert all(total(grown, "n2p_phase_seconds_count", f"phase={phase}") == 38 for phase in ("read", "score", "send"))
    assert after["n2p_in_flight",] == 0
    assert after["n2p_workers",] == 3
    assert total(after, "n2p_model_info", "model=flights", one, f"bundle={bundle.digest}") == 1
    assert len([key for key in after if key[0] == "n2p_worker_memory_bytes"]) == 3
    assert after["n2p_cpu_seconds_total",] > 0


def test_buckets_add_up_and_both_spellings_say_the_same(service: str) -> None:
    text, openly = scraped(service), scraped(service, "application/openmetrics-text")
    counted = ("n2p_requests_total", "n2p_request_seconds_bucket", "n2p_predictions_total")
    assert {key: value for key, value in text.items() if key[0] in counted} == {
        key: value for key, value in openly.items() if key[0] in counted
    }
    buckets = {key: value for key, value in text.items() if key[0] == "n2p_request_seconds_bucket"}
    for key in {tuple(label for label in each if not label.startswith("le=")) for each in buckets}:
        mine = {
            next(label[3:] for label in each if label.startswith("le=")): value
            for each, value in buckets.items()
            if set(key) <= set(each)
        }
        ascending = [mine[bound] for bound in sorted(mine, key=float)]
        assert ascending == sorted(ascending)
        assert ascending[-1] == text["n2p_request_seconds_count", *key[1:]]
    known = {name for measure in MEASURES for name in measure.series}
    assert {key[0] for key in text} <= known


def test_counters_outlive_killed_processes(service: str, bundle: Bundle) -> None:
    row = bundle.golden["rows"][0]
    workers = lambda: {pid for pid in children(service) if pid}  # noqa: E731
    stop, seen = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                ask(service, row)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(4):
            before = scraped(service)
            seen.append(before)
            victim = sorted(workers())[0]
            os.kill(victim, signal.SIGKILL)
            until(lambda gone=victim: gone not in workers() and len(workers()) == 3)
            time.sleep(0.2)
    finally:
        stop.set()
        thread.join()
    until(lambda: is_answered(service) and scraped(service)["n2p_workers",] == 3)
    seen.append(scraped(service))
    for earlier, later in pairwise(seen):
        rising = {key for key in earlier if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}
        assert all(later[key] >= earlier[key] for key in rising)
    assert total(seen[-1], "n2p_requests_total") > total(seen[0], "n2p_requests_total")
    assert seen[-1]["n2p_in_flight",] == 0


def test_the_newest_of_many_versions_are_told(bundle: Bundle) -> None:
    from fastapi.testclient import TestClient

    app = create_app(
        load_predictor(bundle.path, name="flights", version="0"), settings={"dashboard": {"enabled": False}}
    )
    row, service = bundle.golden["rows"][0], app.service
    loaded = service.model.predictor
    with TestClient(app) as client:
        for number in range(120):
            service.model = Model(replace(loaded, version=str(number)))
            assert client.post("/predict", json=row).json()["version"] == str(number)
            service.metrics._each(time.time())
        text = client.get("/metrics").text
    found = [
        (sample.labels["version"], sample.value)
        for family in read_text(text)
        for sample in family.samples
        if sample.name == "n2p_requests_total"
    ]
    told = {int(version) for version, _ in found}
    assert told >= set(range(96, 120)) and len(told) <= 33
    assert {value for _, value in found} == {1.0}


def test_a_reader_never_takes_one_name_for_another() -> None:
    board = Board(numbers=64, slots=4, letters=4_096)
    pid = os.fork()
    if not pid:
        board.claim()
        for number in range(1, 1_000_000):
            board.numbers[board.place("version", (str(number),), 5).start] = number
            if not number % 3:
                board.retire(lambda name, labels, least=number - 4: int(labels[0]) < least)  # type: ignore[misc]
        os._exit(0)
    try:
        seen, end = set[int](), time.monotonic() + 2
        while time.monotonic() < end:
            found = {int(labels[0]): numbers[0] for (_, labels), (numbers, _) in board.totals().items()}
            assert len(found) <= 8
            assert all(number in (0.0, version) for version, number in found.items())
            seen |= set(found)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(seen) > 100


def is_answered(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def children(url: str) -> list[int]:
    """The processes that listen at the address, besides the first: it forked them."""
    port = f"{int(url.rpartition(':')[2]):04X}"
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    }
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(f"socket:[{inode}]" == str(each.readlink()) for each in (path / "fd").iterdir() for inode in inodes):
                found.append(int(path.name))
    parents = {}
    for pid in found:
        with contextlib.suppress(OSError):  # one that was killed may be gone by now
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent in parents]


# Drift


def test_the_index_is_that_of_training(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    parts = [(random.integers(0, 50, size), random.integers(0, 50, size)) for size in (2, 7, 1, 20)]
    starts = np.cumsum([0, *(len(before) for before, _ in parts)])[:-1]
    found = stability_of_parts(*(np.concatenate(side) for side in zip(*parts, strict=True)), starts)
    assert found == pytest.approx([population_stability(*each) for each in parts])


def test_drift_of_a_column_is_told_by_every_process(service: str, bundle: Bundle) -> None:
    _, table = fitted(THREE, 800)
    rows = to_rows(bundle.schema, table)
    for start in range(0, 800, 40):
        assert ask(service, [{**row, "hour": 23} for row in rows[start : start + 40]]) == {200}
    time.sleep(1.2)  # the timer folds once a second
    for _ in range(6):  # whichever answers
        found = scraped(service)
        drift = {
            key[1].removeprefix("feature="): value for key, value in found.items() if key[0] == "n2p_feature_drift"
        }
        assert set(drift) == set(bundle.schema.names)
        assert drift["hour"] > 1
        assert max(drift[name] for name in ("distance", "origin", "weekday")) < 0.2
        assert found["n2p_drift_rows", "version=1"] >= 800
        outputs = {key[1] for key in found if key[0] == "n2p_prediction_drift"}
        assert outputs == {"output=prediction", *(f"output=probability {name}" for name in bundle.metadata["classes"])}
    missing = {key[1]: value for key, value in found.items() if key[0] == "n2p_feature_missing_ratio"}
    assert missing["feature=seats"] == pytest.approx(table["seats"].isna().mean(), abs=0.08)


# The page


def test_the_page_is_told_what_happened(service: str, bundle: Bundle) -> None:
    seen: list[dict[str, Any]] = []
    ask(service, bundle.golden["rows"][0], 10)
    ask(service, {}, 10)
    until(
        lambda: (
            (found := data(service))["minute"]["refused"] >= 10 and bool(found["drift"]) and seen.append(found) is None
        )
    )
    told = seen[-1]
    assert told["model"] == {"model": "flights", "version": "1", "bundle": bundle.digest}
    assert (told["workers"], told["in_flight"], told["watched"]) == (3, 0, True)
    assert told["minute"]["refused"] >= 10
    assert [each["version"] for each in told["minute"]["versions"]] == ["1"]
    assert {each["phase"] for each in told["minute"]["phases"]} == {"read", "decode", "score", "encode", "send"}
    assert sum(point["requests"] for point in told["points"]) > 0
    assert all(point["time"] % told["every"] == 0 for point in told["points"])
    assert data(service, since=told["points"][-1]["time"] + 60)["points"] == []
    (drift,) = told["drift"]
    assert {each["name"] for each in drift["features"]} == set(bundle.schema.names)
    for part in (*drift["features"], *drift["outputs"]):
        assert sum(part["then"]) == pytest.approx(1, abs=0.01)
        assert len(part["labels"]) == len(part["then"]) == len(part["now"])


def data(url: str, since: float = 0) -> dict[str, Any]:
    return httpx.get(f"{url}/dashboard/data", params={"since": since}, trust_env=False).json()


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(service: str, bundle: Bundle, tmp_path: Path) -> None:
    assert CHROMIUM
    ask(service, bundle.golden["rows"], 10)
    until(lambda: data(service)["minute"]["requests"] > 0 and bool(data(service)["drift"]))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path}",
    ]
    command += ["--enable-logging=stderr", "--virtual-time-budget=6000", "--dump-dom", f"{service}/dashboard"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    dom = re.sub(r"<script>.*</script>", "", done.stdout, flags=re.DOTALL)
    assert re.search(r'<span id="state"[^>]*>live</span>', dom), done.stderr[-2000:]
    assert '<h1 id="model">flights</h1>' in dom
    assert all(f">{name}</td>" in dom for name in (*bundle.schema.names, "prediction", "score"))
    assert re.search(r'<canvas id="latency"[^>]* aria-label="p50 [^"]+', dom)
    assert dom.count("<svg") >= len(bundle.schema.names)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_lets_a_browser_load_nothing_else(service: str) -> None:
    answer = httpx.get(f"{service}/dashboard", trust_env=False)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert not re.search(r"\b(?:src|href)=[\"'](?!data:)", answer.text)


# Rules


def test_rules_and_dashboard_ask_for_what_a_service_tells(service: str, bundle: Bundle) -> None:
    ask(service, bundle.golden["rows"][:20] * 40)  # from some rows on it tells of drift
    until(lambda: total(scraped(service), "n2p_feature_drift") > 0)
    told = {key[0] for key in scraped(service)}
    labels = {label.partition("=")[0] for key in scraped(service) for label in key[1:]}
    absent = {
        "n2p_fallbacks_total",
        "n2p_swaps_total",
        "n2p_shadow_rows_total",
    }  # until something falls back, or follows
    templates = Path(n2p.__file__).parent / "serve/templates/service/monitoring"
    texts = [path.read_text() for path in templates.rglob("*.jinja")]
    asked = {name for text in texts for name in re.findall(r"\bn2p_\w+", text)}
    assert len(asked) > 8
    assert asked <= told | absent
    grouped = {
        name
        for text in texts
        for found in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", text)
        for name in found.split(", ")
    }
    assert grouped <= labels | {"kind", "result"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules_and_the_metrics(service: str, bundle: Bundle, tmp_path: Path) -> None:
    from jinja2 import Environment

    ask(service, bundle.golden["rows"][0])
    environment = Environment(autoescape=False)
    environment.filters["yaml"] = json.dumps
    templates = Path(n2p.__file__).parent / "serve/templates/service/monitoring"
    rules = tmp_path / "rules.yml"
    rules.write_text(
        environment.from_string((templates / "rules.yml.jinja").read_text()).render(slug="flights", model="flights")
    )
    subprocess.run(["promtool", "check", "rules", rules], check=True, capture_output=True)
    text = httpx.get(f"{service}/metrics", trust_env=False).content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


# Logs and traces


def test_logs_and_traces_name_the_request(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    log, row = tmp_path / "log", bundle.golden["rows"][0]
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    settings = {
        "logging": {"format": "json", "access": True},
        "traces": {"enabled": True, "exporter": "console", "share": 1e-9},
    }
    with running(bundle, 1, log, **settings) as (_, url), httpx.Client(trust_env=False) as client:
        client.post(f"{url}/predict", json=row, headers={"x-request-id": "order-7"})
        client.post(f"{url}/predict", json=[row] * 3, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        client.post(f"{url}/predict", json={}, headers={"x-request-id": "two"})
    said = [json.loads(line) for line in log.read_text().splitlines()]
    lines = {each["request"]: each for each in said if each.get("logger") == "notebook_to_prod.access"}
    assert set(lines) == {"order-7", trace, "two"}
    assert {key: lines[trace][key] for key in ("path", "status", "rows", "version", "traffic")} == {
        "path": "/predict",
        "status": 200,
        "rows": 3,
        "version": "1",
        "traffic": "live",
    }
    assert lines["two"]["status"] == 422
    spans = {each["name"]: each for each in said if "context" in each}
    assert set(spans) == {"POST /predict", "read", "decode", "score", "encode", "send"}
    whole = spans["POST /predict"]
    assert (whole["context"]["trace_id"], whole["parent_id"]) == (f"0x{trace}", "0x00f067aa0ba902b7")
    assert whole["attributes"]["n2p.rows"] == 3
    assert spans["score"]["parent_id"] == whole["context"]["span_id"]
    assert whole["start_time"] <= spans["score"]["start_time"] <= spans["score"]["end_time"] <= whole["end_time"]


def test_an_error_is_one_line_with_its_request(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    from fastapi.testclient import TestClient

    app = create_app(load_predictor(bundle.path), settings={"logging": {"format": "json"}})
    app.service.after.append(lambda call: 1 / 0)  # type: ignore[arg-type, return-value]
    loggers = [logging.getLogger(name) for name in ("notebook_to_prod", "")]
    before = [
        (each, each.handlers[:], each.propagate, [handler.formatter for handler in each.handlers]) for each in loggers
    ]
    try:
        with TestClient(app) as client:
            assert (
                client.post("/predict", json=bundle.golden["rows"][0], headers={"x-request-id": "order-8"}).status_code
                == 500
            )
    finally:
        for logger, handlers, propagate, formatters in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            for handler, formatter in zip(handlers, formatters, strict=True):
                handler.setFormatter(formatter)
    (line,) = [json.loads(text) for text in capfd.readouterr().err.splitlines() if "not answered" in text]
    assert (line["request"], line["level"]) == ("order-8", "error")
    assert "ZeroDivisionError" in line["exception"]


def test_a_collector_gets_the_spans(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *said: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
        with running(bundle, 1, tmp_path / "log", traces={"enabled": True, "share": 1, "endpoint": endpoint}) as (
            _,
            url,
        ):
            ask(url, bundle.golden["rows"][0])
        server.shutdown()
    assert {path for path, _ in got} == {"/v1/traces"}
    (resource,) = got[0][1].resource_spans
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == "flights"
    assert {span.name for span in resource.scope_spans[0].spans} >= {"POST /predict", "score"}


@pytest.mark.skipif(importlib.util.find_spec("opentelemetry.exporter") is not None, reason="the exporter is installed")
def test_traces_need_their_extra(bundle: Bundle) -> None:
    with pytest.raises(DependencyError, match=re.escape("notebook-to-prod[otel]")):
        create_app(load_predictor(bundle.path), settings={"traces": {"enabled": True}})


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metrics": {"windw": 3}}, "did you mean 'window'"),
        ({"metrics": {"window": "1h"}}, "a number above 0"),
        ({"metrics": {"enabled": 1}}, "true or false"),
        ({"logging": {"format": "xml"}}, "'text' or 'json'"),
        ({"logging": {"access": True, "share": 2}}, "at most 1"),
        ({"traces": {"exporter": "jaeger"}}, "'otlp' or 'console'"),
        ({"dashboard": {"minutes": 10_000}}, "at most 1440"),
        ({"metrics": {"enabled": False}, "dashboard": {"enabled": True}}, "metrics, which are switched off"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], said: str, bundle: Bundle) -> None:
    predictor = load_predictor(bundle.path)
    with pytest.raises(InputError, match=re.escape(said)):
        create_app(predictor, settings=settings)


def test_what_is_switched_off_is_not_there(bundle: Bundle) -> None:
    from fastapi.testclient import TestClient

    app = create_app(load_predictor(bundle.path), settings={"metrics": {"enabled": False}})
    assert app.service.metrics is None
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 50_000)) as client:
        assert [client.get(path).status_code for path in ("/metrics", "/dashboard")] == [404, 404]
        assert client.post("/predict", json=bundle.golden["rows"][0]).status_code == 200
