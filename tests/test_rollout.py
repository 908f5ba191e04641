"""A service whose versions change under load: none of it is noticed by who asks, and each answer is the named version's."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from notebooks import SCRIPTS, Project, once
from pipelines import fitted, flights, targets
from processes import started
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from test_registry import register, train
from test_scorer import bundle_of
from test_service import asked, connected, read_answer

import notebook_to_prod as n2p
from notebook_to_prod.errors import DataError, InputError, NotFoundError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.schema import to_table
from notebook_to_prod.project import Store
from notebook_to_prod.release import rollout as rollouts
from notebook_to_prod.release.audit import verify_log
from notebook_to_prod.release.registry import Registry, alias_path
from notebook_to_prod.serve.batch import Model
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.rollout.follow import RolloutSettings
from notebook_to_prod.serve.rollout.router import Router, State, column_key, share
from notebook_to_prod.serve.rollout.tally import Tally
from notebook_to_prod.serve.service import LARGE, Call, Service
from notebook_to_prod.serve.source import registry_layout
from notebook_to_prod.watch.rollout import FINE, UNKNOWN, WORSE, judge, read_decisions

SECONDS = float(os.environ.get("N2P_TEST_SECONDS", "4"))
SCRIPT = """
import json, sys
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import forkable, serve
path, workers, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
def loaded():
    with forkable():
        return load_predictor(path, name="flights", version="1")
serve(loaded(), port=0, workers=workers, announce=lambda url: print(url, flush=True), settings=settings)
"""


@dataclass(frozen=True)
class Version:
    """A version as a layout names it, and what it says of its golden rows."""

    number: str
    bundle: Bundle

    @property
    def target(self) -> dict[str, str]:
        return {
            "name": "flights",
            "version": self.number,
            "bundle": self.bundle.digest,
            "path": os.fspath(self.bundle.path),
        }


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """Three forests that take the same rows and say different things."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_HOME", str(tmp_path_factory.mktemp("store")))
        pipeline, table = fitted("RandomForestClassifier, three named classes", 200)
        for number in "123":
            steps = [
                *pipeline.steps[:-1],
                ("forest", RandomForestClassifier(30, max_depth=6, random_state=int(number))),
            ]
            forest = Pipeline(steps).fit(flights(), targets(flights())["three"])
            found.append(Version(number, bundle_of(tmp_path_factory.mktemp(f"version{number}"), forest, table)))
    said = {json.dumps(each.bundle.golden["probabilities"]) for each in found}
    assert len(said) == 3
    return found


def test_the_key_of_a_large_body_is_read_beside_the_loop(versions: list[Version]) -> None:
    models = [
        Model(load_predictor(each.bundle.path, version=number)) for number, each in zip("12", versions[:2], strict=True)
    ]
    rows, name = versions[0].bundle.golden["rows"], versions[0].bundle.schema.names[0]
    read, threads = column_key(name), []

    def noted(call: Call) -> bytes | None:
        threads.append(threading.current_thread() is threading.main_thread())
        return read(call)

    served = Service(models[0])
    served.route = router = Router(models[0], noted)
    served.prepare = router.read_key
    router.state = State(models[0], ((0.5, "canary", models[1]),), None, b"salt")

    async def ask(body: bytes) -> str:
        said: list[Any] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": [(b"content-type", b"application/json")],
        }
        receive = lambda: answered({"type": "http.request", "body": body})  # noqa: E731
        await served.handler()(scope, receive, lambda message: answered(said.append(message)))
        return json.loads(said[-1]["body"])["version"]

    for row in rows[:10]:
        small, large = ([row] * count for count in (1, 1 + 2 * LARGE // len(json.dumps(row))))
        wanted = "2" if share(read(SimpleNamespace(body=json.dumps(small).encode())), b"salt") < 0.5 else "1"  # type: ignore[arg-type]
        assert [asyncio.run(ask(json.dumps(each).encode())) for each in (small, large)] == [wanted] * 2
    assert threads == [True, False] * 10, "once for each request, and only a small body by the loop"
    router.state = State(models[0])
    assert asyncio.run(ask(json.dumps(rows[:1] * LARGE).encode())) == "1" and len(threads) == 20, "nobody asks for it"


async def answered(value: Any) -> Any:
    return value


class Layouts:
    """The file that a service follows."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, live: Version, arms: Any = (), shadow: Version | None = None, rollout: str = "") -> None:
        listed = [{"route": route, "target": arm.target, "weight": weight} for route, arm, weight in arms]
        content = {"live": live.target, "arms": listed, "shadow": shadow and shadow.target, "rollout": rollout}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(self.path)


@contextlib.contextmanager
def running(
    first: Version,
    folder: Path,
    workers: int = 1,
    parts: dict[str, Any] | None = None,  # Other tables of settings
    traces: int = 0,  # Tracebacks that its log may have
    **settings: Any,
) -> Iterator[tuple[str, Layouts]]:
    """A service that follows a file, in a process of its own."""
    layouts = Layouts(folder / "rollout.json")
    layouts.write(first)
    table = {"file": str(layouts.path), "seconds": 0.1, "reports": str(folder / "reports"), **settings}
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        first.bundle.path,
        workers,
        json.dumps({"rollout": table, **(parts or {})}),
    ]
    with started(command, folder / "log", traces) as (_, url):
        yield url, layouts


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def service(
    versions: list[Version], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Layouts, Path]]:
    """A service of one process, its layouts and its log."""
    folder = tmp_path_factory.mktemp("service")
    with (
        running(versions[0], folder, key="header:x-user", room=50) as (url, layouts),
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        yield client, layouts, folder


def test_the_service_goes_along_with_its_model(
    service: tuple[httpx.Client, Layouts, Path], versions: list[Version]
) -> None:
    client, layouts, _ = service
    first, second, _ = versions
    for each in (second, first):
        layouts.write(each)
        until(lambda each=each: client.get("/ready").json()["version"] == each.number)
        assert client.get("/ready").json()["bundle"] == each.bundle.digest
        assert client.get("/openapi.json").json()["info"]["version"] == each.number
        assert client.get("/v2/models/flights").json()["versions"] == [each.number]
        answer = client.post("/predict", json=each.bundle.golden["rows"]).json()
        assert answer["probabilities"] == each.bundle.golden["probabilities"]


def test_a_version_that_cannot_be_loaded_changes_nothing(
    service: tuple[httpx.Client, Layouts, Path], versions: list[Version], tmp_path: Path
) -> None:
    client, layouts, folder = service
    first, second, _ = versions
    layouts.write(first)
    until(lambda: client.get("/ready").json()["version"] == "1" and not client.get("/rollout").json()["problems"])
    wrong = Version("2", Bundle(second.bundle.path, first.bundle.digest, second.bundle.files))
    layouts.write(wrong)
    problems = until(lambda: client.get("/rollout").json()["problems"])
    assert "flights version 2" in problems
    layouts.path.write_text("{")
    until(lambda: "source" in client.get("/rollout").json()["problems"])
    assert client.post("/predict", json=first.bundle.golden["rows"][0]).json()["version"] == "1"
    layouts.write(first)
    until(lambda: not client.get("/rollout").json()["problems"])
    log = (folder / "log").read_text()
    assert log.count("flights version 2: ") == 2, log  # the problem once, and once that it is over


def test_a_layout_names_the_libraries_that_a_version_may_use(
    service: tuple[httpx.Client, Layouts, Path],
    versions: list[Version],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, layouts, _ = service
    copying = ("copy", FunctionTransformer(copy.copy))  # of a library that models are not known to be made of
    pipeline = Pipeline([copying, *fitted("RandomForestClassifier, three named classes", 200)[0].steps])
    monkeypatch.setenv("N2P_TRUSTED", "copy")
    known = Version("5", bundle_of(tmp_path, pipeline.fit(flights(), targets(flights())["three"]), flights(200)))
    layouts.write(known)
    problems = until(lambda: client.get("/rollout").json()["problems"])
    assert "copy.copy" in problems["flights version 5"], problems
    content = json.loads(layouts.path.read_text())
    for trusted, told in (("copy", '"trusted" is no list'), (["copy"], "")):
        content["live"]["trusted"] = trusted
        layouts.path.write_text(json.dumps(content))
        if told:
            until(lambda told=told: told in client.get("/rollout").json()["problems"].get("source", ""))
    until(lambda: client.get("/ready").json()["version"] == "5")
    assert not client.get("/rollout").json()["problems"]
    layouts.write(versions[0])
    until(lambda: client.get("/ready").json()["version"] == "1")


def test_a_client_stays_with_its_version(service: tuple[httpx.Client, Layouts, Path], versions: list[Version]) -> None:
    client, layouts, _ = service
    first, second, _ = versions
    row = first.bundle.golden["rows"][0]

    def version_of(user: int) -> str:
        return client.post("/predict", json=row, headers={"x-user": f"user {user}"}).json()["version"]

    canaries = []
    for weight in (0.2, 0.6):
        layouts.write(first, [("canary", second, weight)], rollout="sticky")
        until(lambda weight=weight: [arm["weight"] for arm in client.get("/rollout").json()["arms"]] == [weight])
        seen = [version_of(user) for user in range(60)]
        assert seen == [version_of(user) for user in range(60)]
        canaries.append({user for user, version in enumerate(seen) if version == "2"})
    assert canaries[0] < canaries[1] and 2 < len(canaries[0]) < 25 < len(canaries[1]) < 50
    (report,) = client.get("/rollout").json()["reports"]
    counted = {route: tally["requests"] for route, tally in report["tallies"].items()}
    assert counted == {
        "canary": 2 * (len(canaries[0]) + len(canaries[1])),
        "live": 240 - 2 * (len(canaries[0]) + len(canaries[1])),
    }


def test_a_shadow_is_asked_behind_the_answer(
    service: tuple[httpx.Client, Layouts, Path], versions: list[Version]
) -> None:
    client, layouts, _ = service
    first, _, third = versions
    golden = first.bundle.golden
    layouts.write(first, shadow=third, rollout="shadow")
    until(lambda: client.get("/rollout").json()["shadow"])
    for row in golden["rows"][:40]:
        assert client.post("/predict", json=row).json()["version"] == "1"
        time.sleep(0.005)
    differ = sum(
        one != two for one, two in zip(golden["predictions"][:40], third.bundle.golden["predictions"][:40], strict=True)
    )

    def report() -> Any:
        return client.get("/rollout").json()["reports"][0]

    until(lambda: report()["shadow"]["compared"] == min(40, len(golden["rows"])))
    found = report()
    assert (found["shadow"]["differed"], found["shadow"]["failed"], found["shadow"]["dropped"]) == (differ, 0, 0)
    client.post("/predict", json=[golden["rows"][0]] * 60)  # more than there is room for
    until(lambda: report()["shadow"]["dropped"] == 60)
    assert found["tallies"]["shadow"]["rows"] == found["tallies"]["live"]["rows"]


def test_metrics_and_page_tell_of_a_rollout(
    service: tuple[httpx.Client, Layouts, Path], versions: list[Version]
) -> None:
    client, layouts, _ = service
    first, second, third = versions

    def numbers(name: str) -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        found = (line.rpartition(" ") for line in lines if line.startswith(f"{name}{{"))
        return {labels.partition("{")[2].rstrip("}"): float(value) for labels, _, value in found}

    swaps, failed = numbers("n2p_swaps_total")['result="done"'], numbers("n2p_swaps_total")['result="failed"']
    layouts.write(second)
    until(lambda: client.get("/ready").json()["version"] == "2")
    wrong = Version("4", Bundle(third.bundle.path, first.bundle.digest, third.bundle.files))
    layouts.write(second, [("canary", first, 0.25), ("b", wrong, 0.25)], shadow=third, rollout="told")
    until(lambda: client.get("/rollout").json()["arms"])
    weights = {
        'version="2",traffic="live"': 0.75,
        'version="1",traffic="canary"': 0.25,
        'version="3",traffic="shadow"': 0,
    }
    assert numbers("n2p_traffic_weight") == weights, "who cannot be loaded has none"
    golden = second.bundle.golden
    for row in golden["rows"][:30]:
        client.post("/predict", json=row)
    until(
        lambda: (
            numbers("n2p_swaps_total")
            == {'result="done"': swaps + 1, 'result="failed"': failed + 1, 'result="refused"': 0}
        )
    )

    def mirrored() -> dict[str, Any]:
        (found,) = client.get("/rollout").json()["reports"]
        return found["shadow"]

    answered = {
        result: numbers("n2p_shadow_rows_total")[f'version="3",result="{result}"'] for result in ("same", "different")
    }
    until(
        lambda: (
            (told := numbers("n2p_shadow_rows_total"))
            and told['version="3",result="same"'] + told['version="3",result="different"'] >= mirrored()["compared"] > 5
        )
    )
    page = client.get("/dashboard/data").json()
    assert [(each["version"], each["traffic"], each["weight"]) for each in page["weights"]] == [
        ("2", "live", 0.75),
        ("1", "canary", 0.25),
        ("3", "shadow", 0),
    ]
    assert page["swaps"]["failed"] == failed + 1
    (shadow,) = (each for each in page["shadows"] if each["version"] == "3")
    assert shadow["same"] >= answered["same"] and shadow["different"] >= answered["different"]
    layouts.write(first)
    until(lambda: client.get("/ready").json()["version"] == "1" and not client.get("/rollout").json()["problems"])


def test_what_was_live_before_stands_in_for_a_model_that_fails(versions: list[Version], tmp_path: Path) -> None:
    first, second, third = versions
    logarithm = ColumnTransformer([("log", FunctionTransformer(np.log), ["distance"])])  # fails of what is below 0
    failing = Pipeline([("log", logarithm), ("linear", LogisticRegression())]).fit(
        flights(), targets(flights())["three"]
    )
    bad = Version("4", bundle_of(tmp_path / "failing", failing, flights(200)))
    row = {**first.bundle.golden["rows"][0], "distance": -5.0}
    chain = {"fallback": {"chain": ["previous"], "previous": str(third.bundle.path), "failures": 1000}}
    with (
        running(first, tmp_path, parts=chain, traces=2) as (url, layouts),
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):

        def answer() -> tuple[str, str | None]:
            said = client.post("/predict", json=row).json()
            return said["version"], said.get("fallback")

        assert answer() == ("1", None) and client.get("/rollout").json()["previous"]["version"] == "previous"
        layouts.write(second)
        until(lambda: answer() == ("2", None))
        layouts.write(bad)
        until(lambda: client.get("/ready").json()["version"] == "4")
        assert answer() == ("2", "previous")
        assert client.get("/rollout").json()["previous"]["bundle"] == second.bundle.digest
        assert client.post("/predict", json=first.bundle.golden["rows"][0]).json()["version"] == "4"
        layouts.write(first, [("canary", bad, 1.0)], rollout="failing")
        until(lambda: client.get("/rollout").json()["arms"])
        assert [answer() for _ in range(5)] == [("1", "previous")] * 5, "of a canary the live version"
        (report,) = client.get("/rollout").json()["reports"]
        assert (report["tallies"]["canary"]["requests"], report["tallies"]["canary"]["failures"]) == (5, 5)


def assert_a_new_worker_is_up_to_date(url: str, layouts: Layouts, live: Version) -> None:
    """A worker that takes the place of a dead one never answers with what the service began with."""
    layouts.write(live, rollout="restarted")

    def statuses() -> dict[str, Any]:
        found = [httpx.get(f"{url}/rollout", trust_env=False).json() for _ in range(20)]
        return {each["process"]: each for each in found if each["rollout"] == "restarted"}

    before = until(lambda: len(found := statuses()) == 2 and found)
    os.kill(int(next(iter(before)).split("-")[-2]), signal.SIGKILL)
    versions: set[str] = set()

    def replaced() -> bool:
        with contextlib.suppress(httpx.TransportError):
            versions.update(httpx.get(f"{url}/ready", trust_env=False).json()["version"] for _ in range(20))
            return bool(statuses().keys() - before.keys())
        return False

    until(replaced)
    assert versions == {live.number}


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_fails_while_versions_change(workers: int, versions: list[Version], tmp_path: Path) -> None:
    expected = {
        each.number: (each.bundle.digest, each.bundle.golden["predictions"], each.bundle.golden["probabilities"])
        for each in versions
    }
    rows = [json.dumps(row).encode() for row in versions[0].bundle.golden["rows"]]
    seen: Counter[str] = Counter()
    failed: list[Any] = []
    swaps = 0

    def goes_on(end: float) -> bool:  # a machine may be so busy that a version has its turn later
        return time.monotonic() < end or (len(seen) < 3 and time.monotonic() < end + 60)

    async def client(url: str, number: int, end: float) -> None:
        chance = random.Random(number)
        async with connected(url) as (reader, writer):
            while goes_on(end):
                places = [chance.randrange(len(rows)) for _ in range(1 if chance.random() < 0.9 else 3)]
                body = rows[places[0]] if len(places) == 1 else b"[" + b",".join(rows[place] for place in places) + b"]"
                writer.write(asked(url, body))
                status, _, answer = await read_answer(reader)
                if status != 200:
                    failed.append((status, answer))
                    continue
                digest, predictions, probabilities = expected[answer["version"]]
                if (answer["bundle"], answer["predictions"], answer["probabilities"]) != (
                    digest,
                    [predictions[place] for place in places],
                    [probabilities[place] for place in places],
                ):
                    failed.append((answer["version"], places, answer))
                seen[answer["version"]] += 1

    async def mover(layouts: Layouts, end: float) -> None:
        nonlocal swaps
        while goes_on(end):
            swaps += 1
            layouts.write(versions[swaps % 2], [("canary", versions[2], 0.1)], rollout="swap")
            await asyncio.sleep(1)

    async def load(url: str, layouts: Layouts) -> None:
        end = time.monotonic() + SECONDS
        await asyncio.gather(mover(layouts, end), *(client(url, number, end) for number in range(16)))

    def told(url: str) -> Any:  # by either process; on a busy machine one may have come to the last move only
        found = httpx.get(f"{url}/rollout", trust_env=False, timeout=30).json()
        assert not found["problems"], found
        return found["swaps"] >= 2 and found

    with running(versions[0], tmp_path, workers) as (url, layouts):
        asyncio.run(load(url, layouts))
        status = until(lambda: told(url))
        if workers == 2:
            assert_a_new_worker_is_up_to_date(url, layouts, versions[1])
    assert not failed, failed[:3]
    total = sum(seen.values())
    assert {*seen} == {"1", "2", "3"} and seen["3"] / total < 0.15, seen  # the canary comes a little later
    print(f"{workers} processes: {total} answers, {swaps} moves, {status['swaps']} swaps, {dict(seen)}")


# From the registry, by the command line


@dataclass(frozen=True)
class Rolled:
    """A service of a model with three versions, of which the first is live, and the commands that move it."""

    project: Project
    folder: Path
    client: httpx.Client
    name: str

    def n2p(self, *arguments: str) -> Any:
        done = self.project.n2p(*arguments, "--json", cwd=self.folder, N2P_HOME=str(self.project.home))
        return done.code, done.json

    def rollout(self, verb: str, *arguments: str) -> Any:
        code, said = self.n2p("rollout", verb, self.name, *arguments)
        assert code == 0, said
        return said

    def answered(self, requests: int = 40) -> Counter[str]:
        row = bundle_row(self.project, self.name)
        return Counter(self.client.post("/predict", json=row).json()["version"] for _ in range(requests))

    def until_counted(self, route: str, least: int) -> None:
        def counted() -> int:
            found = self.n2p("rollout", "status", self.name)[1]["decision"]
            return found is not None and found["requests"] >= least

        until(counted)


def bundle_row(project: Project, name: str) -> Any:
    registry = Registry(Store(project.home))
    return registry.bundle(registry.read(name, 1)).golden["rows"][3]


SETTINGS = """
[tool.n2p.serve.rollout]
seconds = 0.1
least = 10
latency = 1000
shift = 100
[tool.n2p.serve.fallback]
chain = ["previous"]
"""


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolled]:
    project = once(tmp_path_factory, "trained", train)
    folder, name = tmp_path_factory.mktemp("rolled"), "rolled"
    (folder / "pyproject.toml").write_text(SETTINGS)
    register(project, name, "five", "six", "regression")
    Registry(Store(project.home)).promote(name, 1)
    command = [SCRIPTS / "n2p", "serve", f"{name}@production", "--port", "0", "--json"]
    environment = project.environment({"N2P_HOME": str(project.home)})
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            yield Rolled(project, folder, client, name)
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


def test_a_canary_goes_through_its_steps(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    assert {*rolled.answered(5)} == {"1"}
    assert rolled.client.get("/rollout").json()["previous"] is None, "it is the first"
    started = rolled.rollout(
        "start", "2", "--steps", "50,90", "--every", "0.1 s", "--reason", "fewer late flights missed"
    )
    assert (started["steps"], started["state"]) == ([50.0, 90.0, 100.0], "running")
    assert registry.aliased(rolled.name, "canary") == 2
    until(lambda: rolled.client.get("/rollout").json()["arms"])
    code, said = rolled.n2p("rollout", "watch", rolled.name, "--once")
    assert (code, said["action"]) == (0, "hold"), said
    assert {*rolled.answered(60)} == {"1", "2"}
    rolled.until_counted("canary", 10)
    assert rolled.rollout("watch", "--once")["action"] == "advance"
    until(lambda: rolled.client.get("/rollout").json()["arms"][0]["weight"] == 0.9)
    rolled.rollout("advance")
    until(lambda: rolled.answered(5) == {"2": 5})
    assert rolled.client.get("/rollout").json()["previous"]["version"] == "1"
    status = rolled.rollout("status")
    assert (status["rollout"]["state"], registry.aliased(rolled.name, "canary")) == ("done", None)
    assert [each["action"] for each in status["decisions"]] == ["hold", "advance"]
    events = [(event.action, event.alias) for event in registry.history(rolled.name)][-7:]
    assert events == [
        ("promote", "canary"),
        ("rollout", None),
        ("rollout", None),
        ("rollout", None),  # being promoted: from now on nobody else moves it
        ("promote", "production"),
        ("rollout", None),
        ("retire", "canary"),
    ]
    assert not verify_log(registry.store)


def test_a_rollout_that_does_badly_is_aborted(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    live = registry.aliased(rolled.name, "production")
    registry.promote(rolled.name, 1)
    until(lambda: rolled.answered(3) == {"1": 3})
    rolled.rollout("start", "2", "--ab", "50%")
    until(lambda: rolled.client.get("/rollout").json()["arms"])
    outcomes = rolled.folder / "outcomes.csv"
    outcomes.write_text("version,value\n" + "1,1\n2,0\n" * 100)
    code, said = rolled.n2p("rollout", "watch", rolled.name, "--outcomes", str(outcomes))
    assert (code, said["action"], said["state"]) == (1, "abort", "aborted"), said
    until(lambda: not rolled.client.get("/rollout").json()["arms"])
    assert registry.aliased(rolled.name, "canary") is None and live == 2
    code, said = rolled.n2p("rollout", "advance", rolled.name)
    assert (code, said["error"]["type"]) == (2, "NotFoundError")


def test_who_watches_is_told_that_somebody_has_aborted(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    registry.promote(rolled.name, 1)
    rolled.rollout("start", "2", "--shadow")
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(rolled.n2p, "rollout", "watch", rolled.name, "--every", "0.2 s")
        try:
            until(lambda: any("ended by hand" in each["why"] for each in read_decisions(registry, rolled.name)))
        finally:  # or the other would watch for ever
            rollouts.abort_rollout(registry, rolled.name, "customers complain")
        code, said = watching.result(60)
    assert (code, said["action"], said["state"]) == (1, "abort", "aborted"), said
    assert "customers complain" in said["why"]
    assert rolled.n2p("rollout", "watch", rolled.name)[0] == 2, "there is nothing to watch"


@pytest.mark.parametrize("better", [False, True])
def test_labels_of_logged_predictions_decide(better: bool, rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    registry.promote(rolled.name, 1)
    until(lambda: rolled.answered(3) == {"1": 3})
    rolled.rollout("start", "2", "--steps", "50,90", "--every", "0.1 s")
    until(lambda: rolled.client.get("/rollout").json()["arms"])
    bundle = registry.bundle(registry.read(rolled.name, 1))
    classes = bundle.metadata["classes"]
    wrong = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    labels: list[Any] = []
    right: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for number in range(140):
        headers = {"x-request-id": f"{better}-{number}"}
        said = rolled.client.post("/predict", json=bundle.golden["rows"][number % 20], headers=headers).json()
        good = (said["version"] == "2") == better or number % 5 == 0
        answered[said["version"]] += 1
        right[said["version"]] += good
        labels.append(
            {"id": f"{better}-{number}", "label": said["predictions"][0] if good else wrong[said["predictions"][0]]}
        )
    rolled.until_counted("canary", 35)
    assert rolled.client.post("/feedback", json=labels).json() == {"accepted": 140, "pending": 0}
    code, said = rolled.n2p("rollout", "watch", rolled.name, "--once")
    assert (code, said["action"]) == ((0, "advance") if better else (1, "abort")), said
    figures = [f"{right[version] / answered[version]:.4g} of {answered[version]}" for version in "21"]
    assert f"quality: {figures[0]}, against {figures[1]}" in said["why"]
    status = rolled.rollout("status")
    last = status["decisions"][-1]
    (quality,) = (each for each in last["findings"] if each["about"] == "quality")
    assert (last["action"], quality["verdict"]) == (("advance", "fine") if better else ("abort", "worse"))
    assert quality["number"] == pytest.approx(right["2"] / answered["2"] - right["1"] / answered["1"])
    assert {each["about"] for each in last["findings"]} == {"failures", "latency", "predictions", "quality"}
    if better:
        rolled.rollout("abort")
    until(lambda: not rolled.client.get("/rollout").json()["arms"])


def test_a_rollout_ends_when_somebody_moves_the_live_alias(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    registry.promote(rolled.name, 1)
    rolled.rollout("start", "2", "--shadow")
    until(lambda: rolled.client.get("/rollout").json()["shadow"])
    rolled.answered(3)
    until(lambda: rolled.n2p("rollout", "status", rolled.name)[1]["shadow"]["compared"] == 3)
    assert rolled.n2p("rollout", "start", rolled.name, "2")[0] == 2
    registry.promote(rolled.name, 2)
    until(lambda: rolled.answered(3) == {"2": 3})
    assert rolled.n2p("rollout", "watch", rolled.name, "--once")[1]["action"] == "abort"


def test_who_starts_while_another_is_let_in_moves_nothing(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(Store(rolled.project.home))
    registry.promote(rolled.name, 1)
    promoted, refused = rollouts.promote, []

    def promote(*given: Any) -> Any:
        if not refused:
            with pytest.raises(InputError) as error:
                rollouts.start_rollout(registry, rolled.name, 3)
            refused.append(error.value.what)
            assert rollouts.read_rollout(registry, rolled.name).weight == 0
        return promoted(*given)

    monkeypatch.setattr(rollouts, "promote", promote)
    rollouts.start_rollout(registry, rolled.name, 2)
    assert "there is a rollout" in refused[0] and registry.aliased(rolled.name, "canary") == 2
    rollouts.abort_rollout(registry, rolled.name)
    assert registry.aliased(rolled.name, "canary") is None

    monkeypatch.setattr(rollouts, "promote", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rollouts.start_rollout(registry, rolled.name, 2)
    assert rollouts.read_rollout(registry, rolled.name).state == "aborted"


def test_what_clients_would_notice_is_not_swapped_in(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    before = {*rolled.answered(2)}
    registry.promote(rolled.name, 3)
    problems = until(lambda: rolled.client.get("/rollout").json()["problems"])
    assert "the task is regression, not classification" in problems["rolled version 3"]
    assert {*rolled.answered(3)} == before
    registry.rollback(rolled.name)
    until(lambda: not rolled.client.get("/rollout").json()["problems"])


def test_after_going_back_a_version_before_that_stands_in(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    for version in "12":
        registry.promote(rolled.name, int(version))
        until(lambda version=version: rolled.answered(2) == {version: 2})
    assert rolled.client.get("/rollout").json()["previous"]["version"] == "1"
    registry.rollback(rolled.name)
    until(lambda: rolled.answered(2) == {"1": 2})
    standing = rolled.client.get("/rollout").json()["previous"]
    path = alias_path(registry.history(rolled.name), "production")
    assert standing["version"] == next((str(each) for each in reversed(path) if each != 1), None), path


def test_a_row_is_scored_in_this_process(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_HOME", str(rolled.project.home))
    predictor = n2p.Predictor(f"{rolled.name}@1")
    golden = predictor.bundle.golden
    assert predictor.predict(golden["rows"][0]).predictions == golden["predictions"][:1]
    table = to_table(predictor.bundle.schema, golden["rows"])
    assert predictor.predict(table).probabilities == golden["probabilities"]
    assert (predictor.identity["model"], predictor.version, predictor.stale) == (rolled.name, "1", False)
    with pytest.raises(DataError, match="Input should be"):
        predictor.predict({**golden["rows"][0], "class": "far"})
    with pytest.raises(NotFoundError):
        n2p.Predictor(f"{rolled.name}@9")


def test_of_several_challengers_one_is_promoted(rolled: Rolled) -> None:
    registry = Registry(Store(rolled.project.home))
    registry.promote(rolled.name, 1)
    start = ("rollout", "start", rolled.name, "2")
    wrong = (
        ("--ab", "50%", "--also", "3:50%"),  # nothing is left for the live one
        ("--ab", "20%", "--also", "2:20%"),
        ("--ab", "20%", "--also", "1:20%"),
        ("--ab", "20%", "--also", "three"),
        ("--canary", "20%", "--also", "3:20%"),
    )
    assert [rolled.n2p(*start, *each)[0] for each in wrong] == [2] * len(wrong)
    started = rolled.rollout("start", "2", "--ab", "20%", "--also", "3:30%")
    assert started["also"] == [[3, 30.0]] and registry.aliased(rolled.name, "canary") == 2
    entered = [each.version for each in registry.history(rolled.name) if each.alias == "canary"][-2:]
    assert entered == [3, 2], "each has passed what the stage asks"
    layout = registry_layout(registry.store, f"{rolled.name}@production", RolloutSettings())
    assert [(arm.route, arm.target.version, arm.weight) for arm in layout.arms] == [("b", "2", 0.2), ("c", "3", 0.3)]
    keys = [f"customer {number}".encode() for number in range(2_000)]
    groups = Counter(
        "b" if drawn < 0.2 else "c" if drawn < 0.5 else "live"
        for drawn in (share(key, layout.rollout.encode()) for key in keys)
    )
    assert all(abs(groups[route] / 2_000 - part) < 0.04 for route, part in (("b", 0.2), ("c", 0.3), ("live", 0.5)))
    outcomes = rolled.folder / "several.csv"
    outcomes.write_text("version,value\n" + "1,0\n2,0\n3,0\n1,1\n2,1\n3,1\n" * 20)
    code, said = rolled.n2p("rollout", "watch", rolled.name, "--once", "--outcomes", str(outcomes))
    assert (code, said["action"]) == (0, "hold") and said["why"].startswith("no difference yet"), said
    outcomes.write_text("version,value\n" + "1,0\n2,0\n3,1\n" * 200)
    code, said = rolled.n2p("rollout", "watch", rolled.name, "--once", "--outcomes", str(outcomes))
    assert (code, said["action"], said["version"], said["state"]) == (0, "advance", 3, "done"), said
    assert (registry.aliased(rolled.name, "production"), registry.aliased(rolled.name, "canary")) == (3, None)
    registry.promote(rolled.name, 1)
    rolled.rollout("start", "2", "--ab", "20%", "--also", "3:30%")
    assert rolled.n2p("rollout", "advance", rolled.name, "7")[0] == 2
    rolled.rollout("advance", "2")
    assert registry.aliased(rolled.name, "production") == 2
    registry.promote(rolled.name, 1)


# Latency

Draw = Callable[[np.random.Generator, int], np.ndarray]  # Seconds of so many requests
LOOKS = 200


def cached(generator: np.random.Generator, count: int) -> np.ndarray:
    """One request in twenty-five misses a cache."""
    return np.where(generator.random(count) < 0.04, 0.05, 0.002) * generator.lognormal(0, 0.3, count)


def heavy(generator: np.random.Generator, count: int) -> np.ndarray:
    """A few requests take a thousand times as long as most."""
    return 0.001 * generator.lognormal(0, 2.0, count)


def verdicts(draw: Draw, slower: float, seed: int, limit: float, looks: int = LOOKS) -> Iterator[tuple[str, bool]]:
    """What is said of the latency of a canary, look by look, and whether its 95% are measured beyond the limit."""
    generator, settings = np.random.default_rng(seed), RolloutSettings(latency=limit)
    live, canary = Tally("1"), Tally("2")
    for _ in range(looks):
        for part, count, factor in ((live, 90, 1.0), (canary, 10, slower)):
            part.requests += count
            part.times = dict(
                Counter(part.times) + Counter((4 * np.log2(1e6 * factor * draw(generator, count))).astype(int).tolist())
            )
        found = next(each for each in judge(live, canary, settings) if each.about == "latency")
        yield found.verdict, canary.requests >= settings.least and found.number is not None and found.number > limit


@pytest.mark.parametrize("draw", [cached, heavy])
@pytest.mark.parametrize(("slower", "limit"), [(1.0, 1.2), (2.0, 2.0)], ids=["equal", "at-the-limit"])
def test_chance_does_not_stop_a_canary_that_is_looked_at_all_the_time(draw: Draw, slower: float, limit: float) -> None:
    histories = [[*verdicts(draw, slower, seed, limit)] for seed in range(20)]
    stopped = sum(any(said == WORSE for said, _ in each) for each in histories)
    naive = sum(any(beyond for _, beyond in each) for each in histories)
    assert stopped < 0.05 * len(histories) < 0.2 * len(histories) < naive


@pytest.mark.parametrize("draw", [cached, heavy])
def test_a_canary_that_is_slow_is_stopped(draw: Draw) -> None:
    for seed in range(10):
        assert any(said == WORSE for said, _ in verdicts(draw, 8.0, seed, 2.0)), seed


def test_a_latency_that_may_be_chance_neither_stops_nor_goes_on() -> None:
    live = Tally("1", 10_000, times={40: 9_600, 60: 400})
    found = {
        slow: next(
            each
            for each in judge(live, Tally("2", 300, times={40: 300 - slow, 60: slow}), RolloutSettings())
            if each.about == "latency"
        )
        for slow in (14, 20, 60)
    }
    assert [each.verdict for each in found.values()] == [FINE, UNKNOWN, WORSE]
    assert "may be chance" in found[20].told and "chance" not in found[60].told
    few = judge(live, Tally("2", 20, times={60: 20}), RolloutSettings())
    assert {each.about: each.verdict for each in few}["latency"] == WORSE, "what is plain needs no 200 requests"
