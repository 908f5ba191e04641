"""What a running service tells of itself: to Prometheus, to its own page, to logs and traces; whole, whichever process is asked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pipelines import fitted
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text
from test_scorer import bundle_of

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.profile import stability_of_parts
from notebook_to_prod.package.schema import to_rows
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.measures import MEASURES
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
    command = [sys.executable, "-c", SCRIPT, str(bundle.path), str(workers), json.dumps(settings)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, log.read_text()
        yield process, url
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service of three processes, killed and asked by all tests."""
    log = tmp_path_factory.mktemp("service") / "log"
    with running(bundle, 3, log, metrics={"rows": 200, "window": 600}) as (_, url):
        yield url


Values = dict[tuple[str, ...], float]


def scraped(url: str, accept: str = "text/plain") -> Values:
    """What Prometheus would read: the value by the name and the labels, `name, label=value, ...`."""
    answer = httpx.get(f"{url}/metrics", headers={"accept": accept}, trust_env=False)
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
    parents = {pid: int((Path(f"/proc/{pid}/stat")).read_text().rpartition(")")[2].split()[1]) for pid in found}
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


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metrics": {"windw": 3}}, "did you mean 'window'"),
        ({"metrics": {"window": "1h"}}, "a number above 0"),
        ({"metrics": {"enabled": 1}}, "true or false"),
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
    with TestClient(app) as client:
        assert client.get("/metrics").status_code == 404
        assert client.post("/predict", json=bundle.golden["rows"][0]).status_code == 200
