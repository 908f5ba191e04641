"""Events reach who wants to know: signed, in order, at least once, and never in the way of a change."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from notebooks import Project, finish, make_project

import notebook_to_prod
from notebook_to_prod.errors import InputError, NotFoundError, StoreError, VerdictError
from notebook_to_prod.project import Store
from notebook_to_prod.release.announce import deliver_all, on_event
from notebook_to_prod.release.audit import ACTIONS, Event, read_events, record_event
from notebook_to_prod.release.change import make_change
from notebook_to_prod.release.outbox import (
    Delivered,
    deliver,
    read_dead,
    read_outboxes,
    read_place,
    send_again,
    take_places,
)
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.views import verify_audit
from notebook_to_prod.release.webhook import Webhook, message, post, read_webhooks, verify_webhook
from notebook_to_prod.train.record import find_run

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass
class Receiver:
    """A receiver on a port of its own, and what it was sent."""

    script: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # Answers to give; then 200
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)  # Cleared, it keeps who asks waiting
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    url: str = ""

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        self.got.append(({name.lower(): value for name, value in handler.headers.items()}, body))
        self.arrived.release()
        self.open.wait(60)
        status, headers = self.script.pop(0) if self.script else (200, {})
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(f"no such path: {handler.path}".encode())
        except OSError:
            pass  # nobody waits for the answer any more


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    made.open.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.answer(self)

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield made
    made.open.set()
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Clock:
    """A clock that moves when somebody sleeps."""

    now: float = 1_772_359_200.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def deliver(self, store: Store, webhook: Webhook, budget: float = 60.0, **options: Any) -> Delivered:
        (came,) = deliver(store, [webhook], budget, clock=lambda: self.now, sleep=self.sleep, **options)
        return came


def filled(home: Path, webhook: Webhook, events: int = 1) -> Store:
    """A store that has events for a webhook."""
    home.mkdir(parents=True, exist_ok=True)
    store = Store(home)
    take_places(store, [webhook])
    for number in range(1, events + 1):
        record_event(store, "promote", "flights", number, alias="production")
    return store


# Configuration


WRONG = {
    "a key": ("urls = 'https://h'", "urls", "no key 'urls'"),
    "no url": ("name = 'a'", "url", "no url"),
    "a scheme": ("url = 'ftp://h/x'", "url", "http"),
    "a password": ("url = 'https://me:hunter2@h/x'", "url", "password"),
    "a literal": ("url = 'https://h'\nsecret = 'hunter2'", "secret", "name of a variable"),
    "a literal with a dollar": ("url = 'https://h'\nsecret = 'hunter2$X'", "secret", "name of a variable"),
    "an event": ("url = 'https://h'\nevents = ['promoted']", "events", "no event 'promoted'"),
    "a text for a list": ("url = 'https://h'\nmodels = 'flights'", "models", "'flights'"),
    "an empty list": ("url = 'https://h'\nevents = []", "events", "[]"),
    "a timeout": ("url = 'https://h'\ntimeout = 0", "timeout", "0"),
    "attempts": ("url = 'https://h'\nattempts = 1.5", "attempts", "1.5"),
    "twice": ("url = 'https://h'\n[[tool.n2p.webhooks]]\nurl = 'https://h'", "name", "two webhooks"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_the_configuration_is_named(project: Project, case: str) -> None:
    written, key, told = WRONG[case]
    (project.folder / "pyproject.toml").write_text(f"[[tool.n2p.webhooks]]\n{written}\n")
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        read_webhooks()
    assert (caught.value.where or "").endswith(f", {key}") and caught.value.remedy
    assert "hunter2" not in str(caught.value)


def test_a_webhook_is_told_of_what_it_asks_for() -> None:
    event = Event("2026-01-01", "promote", "flights-eu", 1, "ada")
    assert Webhook("https://h").wants(event)
    assert Webhook("https://h", models=("flights*",), events=("promote",)).wants(event)
    assert not Webhook("https://h", models=("trains*",)).wants(event)
    assert not Webhook("https://h", events=("rollback",)).wants(event)


def test_every_action_of_the_package_can_be_asked_for() -> None:
    package = Path(notebook_to_prod.__file__).parent
    made = re.compile(r"""(?:Event\(now\(\), |_move\(registry, |(?:share|keep|record)_event\([^"\n]*?)"([a-z-]+)\"""")
    found = {action for path in package.rglob("*.py") for action in made.findall(path.read_text("utf-8"))}
    assert {"register", "promote", "rollback", "archive", "override", "gate-failed"} <= found
    assert found - set(ACTIONS) == set(), "add it to ACTIONS of nbs/release/00_audit.ipynb"


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, receiver: Receiver) -> None:
    monkeypatch.setenv("HOOK", receiver.url.replace("//", "//me:hunter2@") + "/s3cret-path?token=s3cret-query")
    hook = Webhook("$HOOK", attempts=1)
    receiver.script += [(404, {})]
    came = Clock().deliver(filled(tmp_path, hook), hook)
    expected = base64.b64encode(b"me:hunter2").decode()
    assert receiver.got[0][0]["authorization"] == f"Basic {expected}" and came.dead == 1
    kept = [path.read_text("utf-8") for path in tmp_path.rglob("*.json*")]
    for text in (repr(hook), hook.label, *came.warnings, *kept):
        assert "hunter2" not in text and "s3cret" not in text, text
    for nonsense in ("hunter2 hunter2", "https://[hunter2", "https://host/hunter2 hunter2", "https://host:hunter2/"):
        monkeypatch.setenv("HOOK", nonsense)
        with pytest.raises(InputError) as caught:
            hook.address()
        assert "hunter2" not in str(caught.value) + hook.label


# The signature


def test_the_signature_is_that_of_standard_webhooks(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    event = Event("2026-01-01", "promote", "späte Flüge", 2, "ada", "production", 1, "why", id="ab12")
    assert post(Webhook(receiver.url, secret="$HOOK_SECRET"), *message(event, 7)).problem == ""
    ((headers, body),) = receiver.got
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    digest = hmac.new(base64.b64decode(SECRET[6:]), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert headers["webhook-id"] == "ab12" and headers["content-type"] == "application/json"
    told = json.loads(body)
    assert (told["id"], told["type"], told["model"], told["version"]) == ("ab12", "promote", "späte Flüge", 2)
    assert (told["alias"], told["previous"], told["reason"], told["sequence"]) == ("production", 1, "why", 7)
    assert notebook_to_prod.verify_webhook(headers, body, SECRET) == told


def test_a_known_signature_of_the_specification_is_valid() -> None:
    headers = {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": "v2,other v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body, secret = b'{"test": 2432232314}', "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert verify_webhook(headers, body, secret, moment=1614265340) == {"test": 2432232314}
    for wrong in ({**headers, "Webhook-Id": "x"}, {**headers, "Webhook-Signature": "v1,"}, {}):
        with pytest.raises(InputError, match="not valid"):
            verify_webhook(wrong, body, secret, moment=1614265340)
    with pytest.raises(InputError, match="not valid"):
        verify_webhook(headers, body + b" ", secret, moment=1614265340)
    for moment in (1614265330 + 301, 1614265330 - 301):
        with pytest.raises(InputError, match="was signed 301 s"):
            verify_webhook(headers, body, secret, moment=moment)
    with pytest.raises(InputError, match="24 to 64 bytes"):
        verify_webhook(headers, body, "whsec_c2hvcnQ=")


# Receivers that are not well


def test_a_receiver_that_fails_is_tried_again_in_order(tmp_path: Path, receiver: Receiver) -> None:
    hook, clock = Webhook(receiver.url), Clock()
    store = filled(tmp_path, hook, 3)
    receiver.script += [(500, {}), (200, {}), (503, {})]
    came = clock.deliver(store, hook)
    assert (came.sent, came.waiting, came.problem) == (3, 0, "")
    assert [each["version"] for each in receiver.events] == [1, 1, 2, 2, 3]
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert ids[0] == ids[1] and len(set(ids)) == 3
    assert clock.deliver(store, hook).sent == 0 and len(receiver.got) == 5


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_receiver_that_asks_for_time_is_given_it(tmp_path: Path, receiver: Receiver, form: str) -> None:
    hook, clock = Webhook(receiver.url), Clock()
    store = filled(tmp_path, hook)
    receiver.script += [(429, {"retry-after": "600" if form == "seconds" else formatdate(time.time() + 3600)})]
    came = clock.deliver(store, hook)
    assert (came.sent, came.waiting) == (0, 1) and "HTTP 429" in came.problem
    clock.now += 400
    assert clock.deliver(store, hook).waiting == 1 and len(receiver.got) == 1
    clock.now += 3600
    assert clock.deliver(store, hook).sent == 1 and len(receiver.got) == 2


def test_a_receiver_that_does_not_answer_waits(tmp_path: Path, receiver: Receiver) -> None:
    hook, clock = Webhook(receiver.url, timeout=0.2), Clock()
    store = filled(tmp_path, hook)
    receiver.open.clear()
    came = clock.deliver(store, hook)
    assert (came.sent, came.waiting, came.problem) == (0, 1, "no answer within 0.2 s")
    receiver.open.set()
    patient = Webhook(receiver.url, timeout=60.0)
    assert clock.deliver(store, patient, early=True).sent == 1


def test_what_hangs_longer_than_the_budget_is_left_alone(tmp_path: Path, receiver: Receiver) -> None:
    hook, clock = Webhook(receiver.url, timeout=60.0), Clock()
    store = filled(tmp_path, hook)
    receiver.open.clear()
    (came,) = deliver(store, [hook], 0.1, clock=lambda: clock.now, sleep=clock.sleep)
    assert (came.sent, came.waiting) == (0, 1)
    assert receiver.arrived.acquire(timeout=60)
    place = read_place(store, hook)
    assert place and (place.attempts, place.problem) == (1, "no answer yet") and place.due > clock.now
    assert clock.deliver(store, hook).warnings == [], "the thread that hangs has it"


def test_a_closed_port_and_a_redirect(tmp_path: Path, receiver: Receiver) -> None:
    away, clock = Webhook(f"http://127.0.0.1:{closed_port()}/"), Clock()
    came = clock.deliver(filled(tmp_path / "closed", away), away)
    assert came.waiting == 1 and came.problem == "Connection refused"
    assert came.warnings == [
        f"1 event could not be delivered to {away.label} (Connection refused): will be tried again"
    ]
    hook = Webhook(receiver.url)
    receiver.script += [(302, {"location": receiver.url + "/elsewhere"}), (307, {"location": receiver.url})] * 9
    came = clock.deliver(filled(tmp_path / "redirect", hook), hook)
    assert came.waiting == 1 and came.problem.endswith("redirects, which are not followed")
    assert all(json.loads(body)["type"] == "promote" for _, body in receiver.got), "each is a POST of ours"


def test_an_unset_variable_is_no_attempt(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, clock = Webhook(receiver.url, secret="$HOOK_SECRET", attempts=1), Clock()
    store = filled(tmp_path, hook)
    for _ in range(3):
        came = clock.deliver(store, hook)
        assert (came.sent, came.waiting, came.dead, came.problem) == (0, 1, 0, "not set: HOOK_SECRET")
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    assert clock.deliver(store, hook).sent == 1
    monkeypatch.setenv("HOOK_SECRET", "hunter2")
    record_event(store, "promote", "flights", 9)
    assert "hunter2" not in (came := clock.deliver(store, hook)).problem and came.waiting == 1


# Given up


def test_what_is_refused_or_fails_too_often_is_kept(tmp_path: Path, receiver: Receiver) -> None:
    hook, clock = Webhook(receiver.url, attempts=3), Clock()
    store = filled(tmp_path, hook, 4)
    receiver.script += [(410, {}), (500, {}), (500, {}), (500, {}), (400, {})]
    came = clock.deliver(store, hook, budget=120.0)
    assert (came.sent, came.dead, came.waiting) == (1, 3, 0)
    letters = read_dead(store)
    assert [(each.event["version"], each.attempts) for each in letters] == [(1, 1), (2, 3), (3, 1)]
    assert [each.reason.partition(":")[0] for each in letters] == ["HTTP 410", "HTTP 500", "HTTP 400"]
    assert all(len(each.reason) < 300 and "/hook" not in each.reason for each in letters)

    receiver.script += [(500, {})]
    tried = send_again(store, [hook])
    assert [bool(problem) for _, problem in tried] == [True, False, False]
    (left,) = read_dead(store)
    assert left.attempts == 2 and left.event["version"] == 1
    with pytest.raises(NotFoundError):
        send_again(store, [hook], "nothing")
    ((_, problem),) = send_again(store, [], left.id[:6])
    assert "no such webhook" in problem
    assert send_again(store, [hook], left.id[:6])[0][1] == "" and read_dead(store) == []


# Places


def test_a_new_webhook_is_told_of_nothing_before(tmp_path: Path, receiver: Receiver) -> None:
    first, clock = Webhook(receiver.url, name="first"), Clock()
    store = filled(tmp_path, first, 2)
    assert clock.deliver(store, first).sent == 2
    second = Webhook(receiver.url, name="second", events=("rollback",))
    assert read_outboxes(store, [second])[0].place is None
    take_places(store, [first, second])
    for action in ("promote", "rollback"):
        record_event(store, action, "flights", 1)
    assert [len(each.waiting) for each in read_outboxes(store, [first, second])] == [2, 1]
    assert clock.deliver(store, second).sent == 1
    for _ in range(2):
        record_event(store, "promote", "flights", 1)
    assert clock.deliver(store, second).sent == 0
    place = read_place(store, second)
    assert place and place.sequence == 6, "what it is not told of is not read again"
    # half a line, as a process leaves that is killed while it appends
    with store.audit.open("ab") as file:
        file.write(b'{"time": "2026')
    record_event(store, "rollback", "flights", 2)
    assert clock.deliver(store, second).sent == 1
    # a log that has been restored from a backup
    store.audit.write_bytes(b"\n".join(store.audit.read_bytes().split(b"\n")[:2]) + b"\n")
    (store.home / "audit.head.json").unlink()
    take_places(store, [second])
    record_event(store, "rollback", "flights", 3)
    assert clock.deliver(store, second).sent == 1 and receiver.events[-1]["version"] == 3


def test_a_damaged_place_is_named(tmp_path: Path) -> None:
    hook = Webhook("https://example.com")
    store = filled(tmp_path, hook)
    (path,) = (tmp_path / "events").glob("*.json")
    path.write_text("{")
    with pytest.raises(StoreError, match="damaged") as caught:
        deliver(store, [hook])
    assert caught.value.where == str(path)


def test_of_two_that_deliver_one_does(tmp_path: Path, receiver: Receiver) -> None:
    hook = Webhook(receiver.url)
    store = filled(tmp_path, hook, 5)
    receiver.open.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(deliver, store, [hook], 30.0)
        assert receiver.arrived.acquire(timeout=30)
        (second,) = deliver(store, [hook])
        assert (second.sent, second.waiting, second.warnings) == (0, 5, [])
        record_event(store, "promote", "flights", 6)  # while the first one delivers
        receiver.open.set()
        assert first.result()[0].sent == 6
    assert [each["version"] for each in receiver.events] == [1, 2, 3, 4, 5, 6]


# With a registry


@pytest.fixture(scope="module")
def trained(ridges: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with two versions of a model."""
    project = ridges.copy_to(make_project(tmp_path_factory.mktemp("events") / "project"))
    registry = Registry(Store(project.home))
    for folder in project.run_folders[:2]:
        registry.register(find_run(registry.store, folder.name), "flights")
    return project


@pytest.fixture
def configured(trained: Project, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project, with a webhook to the receiver and one to nobody."""
    file = trained.folder / "pyproject.toml"
    file.write_text(
        f'[[tool.n2p.webhooks]]\nurl = "{receiver.url}/$HOOK_TOKEN"\nsecret = "$HOOK_SECRET"\n'
        f'[[tool.n2p.webhooks]]\nurl = "http://127.0.0.1:{closed_port()}/"\nevents = ["archive"]\nattempts = 1\n'
    )
    monkeypatch.chdir(trained.folder)
    known = {"HOOK_SECRET": SECRET, "HOOK_TOKEN": "s3cret", "no_proxy": "127.0.0.1"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    yield Project(trained.folder, known)
    file.write_text("")


def last(project: Project) -> Event:
    return list(read_events(Store(project.home)))[-1]


def move(project: Project) -> int:
    """A version of the model that is not in production."""
    live = Registry(Store(project.home)).aliased("flights", "production")
    return 2 if live == 1 else 1


def test_a_promotion_is_told_and_a_dead_end_does_not_stop_it(configured: Project, receiver: Receiver) -> None:
    done = configured.n2p("promote", "flights", str(move(configured)), "--reason", "better", "--json")
    assert done.code == 0 and done.json["changed"] and done.stderr == ""
    ((headers, body),) = receiver.got
    told = verify_webhook(headers, body, SECRET)
    assert (told["type"], told["model"], told["reason"], told["id"]) == (
        "promote",
        "flights",
        "better",
        last(configured).id,
    )
    receiver.script += [(500, {})] * 9
    done = configured.n2p("promote", "flights", str(move(configured)), "--json")
    assert done.code == 0 and done.json["changed"]
    assert "1 event could not be delivered to 127.0.0.1" in done.stderr and "will be tried again" in done.stderr
    assert "s3cret" not in done.stderr + configured.n2p("events", "list").stdout
    listed = configured.n2p("events", "list", "--json").json
    assert [len(each["waiting"]) for each in listed["webhooks"]] == [1, 0]
    receiver.script.clear()
    delivered = configured.n2p("events", "deliver", "--now", "--json")
    assert delivered.code == 0 and [each["sent"] for each in delivered.json["webhooks"]] == [1, 0]
    assert receiver.events[-1]["id"] == last(configured).id


def test_a_mistake_in_the_file_comes_before_the_change(configured: Project) -> None:
    events = len(list(read_events(Store(configured.home))))
    with (configured.folder / "pyproject.toml").open("a") as file:
        file.write("secrets = '$X'\n")
    done = configured.n2p("promote", "flights", str(move(configured)), "--json")
    assert done.code == 2 and "secrets" in done.error["what"]
    assert len(list(read_events(Store(configured.home)))) == events


def test_gates_that_say_no_are_told(configured: Project, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with (configured.folder / "pyproject.toml").open("a") as file:
        file.write('[tool.n2p.gates]\nskip = ["data", "robustness", "fairness", "explain", "serving"]\n')
    monkeypatch.setenv("N2P_REQUIRE_GATE", "1")
    registry, version = Registry(Store(configured.home)), move(configured)
    before = registry.aliased("flights", "production")
    with pytest.raises(VerdictError):
        registry.promote("flights", version)
    (told,) = receiver.events
    assert (told["type"], told["version"], told["gates"], told["alias"]) == ("gate-failed", version, "failed", None)
    assert told["reason"].startswith("production: ") and "quality.support" in told["reason"]
    event = registry.history("flights")[-1]
    assert (event.action, event.id, event.verdicts) == ("gate-failed", told["id"], told["verdicts"]) and event.verdicts
    assert registry.aliased("flights", "production") == before and verify_audit(registry).damage == []

    done = configured.n2p(
        "gate", "latest", "--only", "quality.support", "--json"
    )  # a run's bundle, which has no version
    assert done.code == 1
    told = receiver.events[-1]
    assert (told["type"], told["version"], told["bundle"]) == ("gate-failed", None, done.json["bundle"])
    assert last(configured).verdicts == done.json["digest"]
    assert configured.n2p("gate", f"flights@{version}", "--only", "quality.support", "--json").code == 1
    assert receiver.events[-1]["version"] == version and len(receiver.got) == 3
    assert verify_audit(registry).damage == []


def test_given_up_and_sent_again_by_hand(configured: Project, receiver: Receiver) -> None:
    receiver.script += [(404, {})]
    done = configured.n2p("promote", "flights", str(move(configured)))
    assert done.code == 0 and "1 event to 127.0.0.1" in done.stderr and "given up" in done.stderr
    (dead,) = configured.n2p("events", "list", "--dead", "--json").json["dead"]
    assert dead["reason"].startswith("HTTP 404") and "s3cret" not in json.dumps(dead)
    assert configured.n2p("events", "retry").code == 2
    again = configured.n2p("events", "retry", dead["id"][:6], "--json")
    assert again.code == 0 and again.json["events"] == [
        {"id": dead["id"], "to": dead["to"], "delivered": True, "problem": None}
    ]
    assert configured.n2p("events", "list", "--dead", "--json").json == {"dead": []}


KILLED = """
import os, signal, sys
from notebook_to_prod import Registry, on_event
from notebook_to_prod.project import open_store

on_event(lambda event: os.kill(os.getpid(), signal.SIGKILL))  # the change is made, nothing is delivered
Registry(open_store()).promote("flights", int(sys.argv[1]), reason="killed")
"""


def test_a_kill_between_change_and_delivery_loses_nothing(configured: Project, receiver: Receiver) -> None:
    version = move(configured)
    command = [sys.executable, "-c", KILLED, str(version)]
    environment = configured.environment({})
    done = subprocess.run(command, cwd=configured.folder, env=environment, capture_output=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Registry(Store(configured.home)).aliased("flights", "production") == version and receiver.got == []
    assert configured.n2p("rollback", "flights").code == 0
    assert [(each["type"], each["reason"]) for each in receiver.events] == [("promote", "killed"), ("rollback", None)]


def test_a_kill_in_the_middle_of_a_delivery_sends_it_again(configured: Project, receiver: Receiver) -> None:
    receiver.open.clear()
    process = configured.start("n2p", "promote", "flights", str(move(configured)))
    assert receiver.arrived.acquire(timeout=240)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    receiver.open.set()
    assert configured.n2p("events", "deliver", "--now").code == 0
    first, second = (headers["webhook-id"] for headers, _ in receiver.got)
    assert first == second == last(configured).id


def test_a_change_that_was_cut_short_is_told_once_it_is_settled(configured: Project, receiver: Receiver) -> None:
    registry, version = Registry(Store(configured.home)), move(configured)
    take_places(registry.store, read_webhooks())
    client = registry._client

    def killed() -> None:
        client.set_registered_model_alias("flights", "production", str(version))
        raise KeyboardInterrupt

    event = Event("2026-01-01T00:00:00+00:00", "promote", "flights", version, "ada", "production", 3 - version)
    with pytest.raises(KeyboardInterrupt):
        make_change(client, registry.store, event, killed)
    assert [each.sent for each in deliver_all(registry)] == [1, 0]
    assert (receiver.events[0]["user"], receiver.events[0]["version"]) == ("ada", version)


def test_two_commands_deliver_each_event_once(configured: Project, receiver: Receiver) -> None:
    store = Store(configured.home)
    take_places(store, read_webhooks())
    for number in range(8):
        record_event(store, "override", "flights", 1, reason=str(number))
    ended = configured.together(*[("events", "deliver", "--json")] * 3)
    assert [each.code for each in ended] == [0, 0, 0], ended
    assert [each["reason"] for each in receiver.events] == [str(number) for number in range(8)]
    assert sum(each.json["webhooks"][0]["sent"] for each in ended) == 8


# In Python


def distribution(folder: Path) -> None:
    """An installed package, as pip leaves it, with two entry points."""
    (folder / "chat.py").write_text(
        "from pathlib import Path\n\n\ndef tell(event):\n"
        "    with Path('told.txt').open('a') as file:\n        print(event.action, event.version, file=file)\n\n\n"
        "def fail(event):\n    raise ConnectionError('the chat is down')\n"
    )
    info = folder / "chat-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chat\nVersion: 1.0\n")
    points = "a-failing = chat:fail\nb-telling = chat:tell\nc-missing = chat:missing\n"
    (info / "entry_points.txt").write_text(f"[notebook_to_prod.events]\n{points}")


def test_an_installed_package_is_told(trained: Project, tmp_path: Path) -> None:
    distribution(tmp_path)
    version = move(trained)
    done = trained.command("n2p", "promote", "flights", str(version), "--json", PYTHONPATH=str(tmp_path))
    assert done.code == 0 and done.json["changed"], done
    assert (trained.folder / "told.txt").read_text() == f"promote {version}\n"
    failed = "the entry point 'a-failing' failed when told of promote of 'flights': ConnectionError: the chat is down"
    assert failed in done.stderr and "the entry point 'c-missing' cannot be loaded: AttributeError" in done.stderr


def test_a_function_is_told_outside_the_lock(
    trained: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained.folder)
    registry, heard = Registry(Store(trained.home)), list[str]()

    def listener(event: Event) -> None:
        with registry.store.lock("registry", timeout=0):
            heard.append(event.action)
        raise SystemExit(7)

    stop = on_event(listener)
    try:
        registry.promote("flights", move(trained))
        registry.rollback("flights")
        with pytest.raises(NotFoundError):
            registry.promote("flights", 99)
    finally:
        stop()
    registry.promote("flights", move(trained))
    assert heard == ["promote", "rollback"] and capsys.readouterr().err.count("SystemExit: 7") == 2
    assert os.environ.get("N2P_REQUIRE_GATE") == "0"
