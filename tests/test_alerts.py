"""Alerts: what a person is told, by which way, once, whoever observes and whatever dies meanwhile."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from notebooks import Project

from notebook_to_prod.errors import InputError, StoreError
from notebook_to_prod.project import Store
from notebook_to_prod.watch.alert_backtest import read_incidents
from notebook_to_prod.watch.alert_book import (
    deliver,
    raise_signals,
    read_book,
    read_history,
    read_signals,
    silence,
    told_of,
)
from notebook_to_prod.watch.alerts import FIRING, RESOLVED, Alert, Notice, Rule, Signal, observe, read_rules
from notebook_to_prod.watch.channels import message_text, read_channels, send

RULE = Rule("inputs have shifted", ("drift.psi",), above=0.25, windows=2, runbook="Ask the airport: <b>&Ü</b>")


def day(number: int) -> str:
    """The end of a window."""
    return f"2013-04-{number:02d}T00:00:00+00:00"


def shifted(*days: int, value: float | None = 0.4, column: str = "dep_delay") -> list[Signal]:
    return [Signal("flights", "drift", "psi", column, day(number), value) for number in days]


NOTICE = Notice(
    FIRING,
    RULE,
    "flights",
    day(2),
    (
        Alert(
            RULE.name, "flights", "drift", "psi", "dép_delay", FIRING, 2, 0, day(1), day(2), "more than a quarter", 0.41
        ),
    ),
    ("ann",),
)


def test_an_unknown_value_neither_begins_nor_ends() -> None:
    alerts, told = observe({}, [RULE], shifted(1, 2))
    assert [each.kind for each in told] == [FIRING]
    alerts, told = observe(alerts, [RULE], [*shifted(3, value=None), *shifted(4, value=float("nan"))])
    assert not told and [each.state for each in alerts.values()] == [FIRING]
    alerts, told = observe(alerts, [RULE], shifted(5, value=0.1))
    assert [each.kind for each in told] == [RESOLVED]


def test_an_alert_is_told_from_the_beginning_of_its_first_window_to_the_end_of_its_last() -> None:
    from notebook_to_prod.watch.drift import Check, ColumnDrift, DriftReport, WindowDrift
    from notebook_to_prod.watch.rules import Rules, find
    from notebook_to_prod.watch.signals import drift_signals

    check = Check("distribution", "chi-squared", 9.0, 0.0, {"jensen_shannon": 0.3}, "jensen_shannon", 0.1, 0.0, True)
    column = ColumnDrift("dep_delay", "data", "number", 900, 900, (check,))
    windows = tuple(WindowDrift(f"2013-04-{number:02d}", 900, (column,)) for number in (3, 4, 5))
    report = DriftReport("flights", "the reference", windows, find(windows, Rules(persist=2, of=3)))
    _, (notice,) = observe({}, [Rule("shift", ("drift.*",))], drift_signals(report, "2013-04-05T23:59:08+00:00"))
    text = message_text(notice)
    assert "since:    2013-04-03T00:00:00+00:00" in text and "until:    2013-04-05T23:59:08+00:00" in text
    counted = tuple(replace(each, window=f"rows {at}–{at + 9}") for at, each in enumerate(windows))
    report = replace(report, windows=counted, findings=find(counted, Rules(persist=2, of=3)))
    _, (notice,) = observe({}, [Rule("shift", ("drift.*",))], drift_signals(report, day(5)))
    assert notice.alerts[0].since == day(5)


def test_windows_that_come_late_or_again_are_passed_over() -> None:
    alerts, _ = observe({}, [RULE], shifted(5))
    again, told = observe(alerts, [RULE], shifted(5, 4, 3))
    assert again == alerts and not told


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"on": ["drift.*"]}, "name"),
        ({"name": "x", "on": []}, "on"),
        ({"name": "x", "on": ["drift.*"], "above": float("nan")}, "above"),
        ({"name": "x", "on": ["drift.*"], "above": True}, "above"),
        ({"name": "x", "on": ["drift.*"], "windows": 0}, "windows"),
        ({"name": "x", "on": ["drift.*"], "severity": "fatal"}, "severity"),
        ({"name": "x", "on": ["drift.*"], "repeat": "soon"}, "repeat"),
        ({"name": "x", "on": ["drift.*"], "widows": 2}, "windows"),
    ],
)
def test_a_wrong_rule_names_its_key(table: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match="number 1") as caught:
        read_rules({"rules": [table]})
    assert named in str(caught.value)


def test_a_drop_that_many_metrics_show_is_one_alert_unless_a_rule_names_a_metric() -> None:
    def look(number: int, *fired: str) -> list[Signal]:
        values = {"accuracy": 0.8, "f1": 0.7, "log_loss": 0.4}
        about = ("flights", "performance")
        return [
            Signal(*about, name, "", day(number), value, name in fired, f"{name} fell" * (name in fired), "accuracy")
            for name, value in values.items()
        ]

    every = Rule("every", ("performance.*",), repeat=0)
    named = Rule("named", ("performance.f1",), repeat=0)
    limited = Rule("limited", ("performance.*",), below=0.75, repeat=0)
    signals = [*look(1), *look(2, "f1", "log_loss"), *look(3, "accuracy", "f1"), *look(4)]
    alerts, notices = observe({}, [every, named, limited], signals)
    told = [(each.rule.name, each.kind, [(one.measure, one.told) for one in each.alerts]) for each in notices]
    assert told == [
        ("limited", FIRING, [("f1", ""), ("log_loss", "")]),
        ("every", FIRING, [("accuracy", "f1 fell; log_loss, too")]),
        ("named", FIRING, [("f1", "f1 fell")]),
        ("every", RESOLVED, [("accuracy", "")]),
        ("named", RESOLVED, [("f1", "")]),
    ], told
    assert {each.value for each in alerts.values() if each.rule == "every"} == {0.8}
    before, _ = observe({}, [every], [replace(each, lead="") for each in look(2, "f1", "log_loss")])
    assert sum(each.state == FIRING for each in before.values()) == 2  # as an earlier version kept them
    after, notices = observe(before, [every], look(3, "f1"))
    assert [each.measure for each in after.values() if each.state == FIRING] == ["accuracy"] and len(notices) == 1


def test_a_rule_that_tells_nobody_there_is_refused(tmp_path: Path) -> None:
    rule = Rule("x", ("drift.*",), to=("teem",))
    channels = read_channels({"channels": {"team": {"kind": "file", "path": str(tmp_path / "a")}}})
    with pytest.raises(InputError, match="did you mean 'team'"):
        raise_signals(Store(tmp_path / "store"), shifted(1), [rule], channels)
    assert not (tmp_path / "store/alerts").exists()


# Ways


@pytest.fixture
def mails() -> Iterator[tuple[int, list[Any]]]:
    """A real SMTP server, and what it was sent."""
    controller = pytest.importorskip("aiosmtpd.controller")

    class Handler:
        def __init__(self) -> None:
            self.came: list[Any] = []

        async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
            if address.startswith("nobody"):
                return "550 no such user"
            if address.startswith("later"):
                return "451 come again"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            self.came.append(envelope)
            return "250 OK"

    handler = Handler()
    running = controller.Controller(handler, hostname="127.0.0.1", port=free_port())
    running.start()
    yield running.port, handler.came
    running.stop()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def mail_channel(port: int, *to: str) -> Any:
    table = {"kind": "email", "host": "127.0.0.1", "port": port, "security": "none", "sender": "n2p@example.org"}
    return read_channels({"channels": {"mail": {**table, "to": [*to]}}})["mail"]


def test_a_mail_arrives_with_what_is_to_be_done(mails: tuple[int, list[Any]]) -> None:
    from email import message_from_bytes, policy

    port, came = mails
    assert send(mail_channel(port, "ann@example.org", "bob@example.org"), NOTICE).problem == ""
    mail = message_from_bytes(came[0].content, policy=policy.default)
    assert came[0].rcpt_tos == ["ann@example.org", "bob@example.org"]
    assert mail["subject"] == "[n2p] warning: inputs have shifted, flights: dép_delay"
    assert mail["x-n2p-alert"] == NOTICE.id and mail["message-id"].startswith(f"<{NOTICE.id}.")
    assert mail.get_content().replace("\r\n", "\n").strip() == message_text(NOTICE)


@pytest.mark.parametrize(("to", "final"), [("nobody@example.org", True), ("later@example.org", False)])
def test_a_mail_that_is_refused_says_so(mails: tuple[int, list[Any]], to: str, final: bool) -> None:
    answer = send(mail_channel(mails[0], to), NOTICE)
    assert to in answer.problem and answer.final == final and not mails[1]


def test_a_mail_server_without_encryption_is_told_with_its_setting(mails: tuple[int, list[Any]]) -> None:
    answer = send(replace(mail_channel(mails[0], "ann@example.org"), security="starttls"), NOTICE)
    assert "STARTTLS" in answer.problem and "security to tls or none" in answer.problem and not answer.final


def test_a_mail_server_that_is_away_is_asked_again() -> None:
    answer = send(mail_channel(free_port(), "ann@example.org"), NOTICE)
    assert "refused" in answer.problem.lower() and not answer.final


def test_alertmanager_takes_an_alert_and_its_end(tmp_path: Path) -> None:
    """With the real Alertmanager, where it is installed."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("alertmanager is not installed")
    (tmp_path / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    url = f"http://127.0.0.1:{free_port()}"
    command = [program, f"--config.file={tmp_path / 'am.yml'}", f"--storage.path={tmp_path / 'data'}"]
    command += [f"--web.listen-address={url.removeprefix('http://')}", "--cluster.listen-address="]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        channel = read_channels({"channels": {"pager": {"kind": "alertmanager", "url": url}}})["pager"]
        moment = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 3600))
        alert = Alert(RULE.name, "flights", "drift", "psi", "dep_delay", FIRING, 2, 0, since, moment)
        deadline = time.monotonic() + 30
        while (answer := send(channel, Notice(FIRING, RULE, "flights", moment, (alert,)))).problem:
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
        (found,) = json.load(urllib.request.urlopen(f"{url}/api/v2/alerts"))
        assert found["labels"]["alertname"] == RULE.name and found["labels"]["subject"] == "dep_delay"
        assert found["status"]["state"] in ("active", "unprocessed")
        time.sleep(1)
        over = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        assert send(channel, Notice(RESOLVED, RULE, "flights", over, (alert,))).problem == ""
        assert json.load(urllib.request.urlopen(f"{url}/api/v2/alerts")) == []
    finally:
        process.terminate()
        process.wait(10)


# The book

OBSERVE = """
import sys
from pathlib import Path
from notebook_to_prod.project import Store
from notebook_to_prod.watch.alert_book import deliver, raise_signals
from notebook_to_prod.watch.alerts import Rule, Signal
from notebook_to_prod.watch.channels import read_channels
store = Store(Path(sys.argv[1]) / "store")
channels = read_channels({"channels": {"file": {"kind": "file", "path": sys.argv[1] + "/told.jsonl"}}})
rule = Rule("inputs have shifted", ("drift.psi",), above=0.25, windows=2, repeat=0)
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 9):
    moment = f"2013-04-{number:02d}T00:00:00+00:00"
    raise_signals(store, [Signal("flights", "drift", "psi", column, moment, 0.4 if number < 5 else 0.1) for column in "abc"], [rule], channels)
    deliver(store, channels, early=True)
"""


def test_processes_that_observe_the_same_tell_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OBSERVE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for each in processes:
        assert each.stdout and each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin
        each.stdin.write("go\n")
        each.stdin.close()
    assert [each.wait(60) for each in processes] == [0, 0, 0]
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [(each["kind"], each["moment"], len(each["alerts"])) for each in told] == [
        (FIRING, day(2), 3),
        (RESOLVED, day(5), 3),
    ]
    assert len(read_signals(Store(tmp_path / "store"), "flights", 100_000)) == 24


def test_what_another_is_sending_is_left_to_it_even_if_all_is_tried_now(tmp_path: Path) -> None:
    store, asked, answered = Store(tmp_path / "store"), threading.Event(), threading.Event()
    told: list[bytes] = []

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["content-length"])))
            asked.set()
            answered.wait(30)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *values: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server, ThreadPoolExecutor(2) as pool:
        pool.submit(server.serve_forever, 0.02)
        channels = read_channels(
            {"channels": {"slow/ü": {"kind": "webhook", "url": f"http://127.0.0.1:{server.server_port}"}}}
        )
        raise_signals(store, shifted(1, 2), [RULE], channels)
        first = pool.submit(deliver, store, channels, early=True)
        assert asked.wait(30)
        second = deliver(store, channels, early=True)
        assert (second.sent, second.waiting) == (0, 1)
        answered.set()
        assert first.result(30).sent == 1
        server.shutdown()
    assert len(told) == 1 and read_book(store).letters == []


def test_a_process_that_is_killed_leaves_nothing_untold(tmp_path: Path) -> None:
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", OBSERVE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stdin and process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(delay)
        process.kill()
        process.wait()
    done = subprocess.run([sys.executable, "-c", OBSERVE, str(tmp_path)], input="go\n", text=True, timeout=60)
    assert done.returncode == 0
    told = {json.loads(line)["id"]: json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()}
    assert [(each["kind"], each["moment"]) for each in told.values()] == [(FIRING, day(2)), (RESOLVED, day(5))]
    assert read_book(Store(tmp_path / "store")).letters == []


def test_a_message_that_is_never_taken_is_given_up_and_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    channels = read_channels({"channels": {"hub": {"kind": "webhook", "url": f"http://127.0.0.1:{free_port()}"}}})
    raise_signals(store, shifted(1, 2), [RULE], channels)
    moment = [time.time()]
    for _ in range(12):
        came = deliver(store, channels, clock=lambda: moment[0])
        moment[0] += 100_000
    assert came.waiting == 0 and read_book(store).letters == []
    last = read_history(store)[-1]
    assert last["channel"] == "hub" and last["problem"]


def test_a_damaged_book_is_told_and_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    silence(store, 60, "ann", "because")
    path = tmp_path / "store/alerts/book.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(StoreError, match="book of alerts"):
        raise_signals(store, shifted(1), [RULE], {})
    assert len(path.read_text()) == 20


def test_what_a_silence_keeps_back_is_said_and_what_was_always_quiet_is_no_history(project: Project) -> None:
    store = Store(project.home)
    quiet = raise_signals(store, shifted(1, value=0.01), [RULE], {})
    assert quiet == [] and read_history(store) == [] and told_of(store, quiet) == "nothing new"
    silence(store, 7_200, "ann", "moved")
    kept = raise_signals(store, shifted(2, 3), [RULE], {})
    assert kept == [] and "1 that fires is kept back by a silence" in told_of(store, kept)
    assert "kept back by a silence" in project.n2p("alerts", "list").stdout
    (listed,) = json.loads(project.n2p("alerts", "list", "--json").stdout)["alerts"]
    assert listed["silenced"] is True
    raise_signals(store, shifted(4, 5, 6, value=0.01), [RULE], {})
    shown = project.n2p("alerts", "history", "--last", "1").stdout
    assert "2 changes: --last 3" in shown and "resolved" in shown and RULE.name in shown


# The command


def test_the_command_lists_silences_resolves_and_tries(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text(
        '[tool.n2p.channels.file]\nkind = "file"\npath = "told.jsonl"\n'
        '[[tool.n2p.rules]]\nname = "shift"\non = ["drift.psi"]\nabove = 0.25\n'
        '[[tool.n2p.rules]]\nname = "patient"\non = ["drift.psi"]\nabove = 0.25\nwindows = 3\n'
    )
    store = Store(project.home)
    settings = {"rules": [{"name": "shift", "on": ["drift.psi"], "above": 0.25}]}
    channels = read_channels({"channels": {"file": {"kind": "file", "path": str(project.folder / "told.jsonl")}}})
    raise_signals(store, shifted(3, 9, 10, 11), read_rules(settings), channels)
    listed = json.loads(project.n2p("alerts", "list", "--json").stdout)
    assert [each["state"] for each in listed["alerts"]] == [FIRING] and len(listed["letters"]) == 4
    sent = json.loads(project.n2p("alerts", "deliver", "--json").stdout)
    assert (sent["sent"], sent["waiting"]) == (4, 0)  # it lasted: told each day
    tested = project.n2p("alerts", "test", "--json")
    assert tested.code == 0 and len((project.folder / "told.jsonl").read_text().splitlines()) == 5
    silent = project.n2p("alerts", "silence", "--for", "2 hours", "--reason", "moved", "--json")
    assert json.loads(silent.stdout)["until"] and "moved" in project.n2p("alerts", "list").stdout
    ended = project.n2p("alerts", "resolve", listed["alerts"][0]["id"][:6], "--reason", "gone", "--json")
    assert json.loads(ended.stdout)["state"] == RESOLVED
    assert project.n2p("alerts", "resolve", "ffffff", "--reason", "gone").code == 2
    (project.folder / "incidents.csv").write_text(f"began,ended\n{day(9)},{day(12)}\n")
    tried = project.n2p("alerts", "backtest", "flights", "--incidents", "incidents.csv", "--days", "100000", "--json")
    rules = {each["rule"]: each for each in json.loads(tried.stdout)["rules"]}
    assert (rules["shift"]["false_alarms"], rules["shift"]["found"]) == (1, 1)
    assert (rules["patient"]["false_alarms"], rules["patient"]["delay"]) == (
        0,
        86_400,
    )  # the third window, of the day after
    strict = project.n2p("alerts", "backtest", "flights", "--days", "100000", "--most", "0")
    assert strict.code == 1 and "too many" in strict.stdout
    assert "resolved" in project.n2p("alerts", "history").stdout


def test_a_silence_of_one_column_keeps_no_other_back(project: Project) -> None:
    store = Store(project.home)
    silent = ("alerts", "silence", "--for", "2 hours", "--reason", "moved", "--model", "fl*", "--subject", "seat*")
    assert project.n2p(*silent).code == 0
    signals = [*shifted(2, 3, column="seats"), *shifted(2, 3, column="distance")]
    told = raise_signals(store, signals, [RULE], {})
    assert {alert.subject for each in told for alert in each.alerts} == {"distance"}


def test_a_message_after_an_incident_is_about_it_for_as_long_as_is_asked(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text(
        '[[tool.n2p.rules]]\nname = "shift"\non = ["drift.psi"]\nabove = 0.25\n'
    )
    raise_signals(Store(project.home), shifted(9), [RULE], {})
    (project.folder / "incidents.csv").write_text(f"began,ended\n{day(5)},{day(7)}\n")
    replay = ("alerts", "backtest", "flights", "--incidents", "incidents.csv", "--days", "100000", "--json")
    for grace, false_alarms in (("1 hour", 1), ("3 days", 0)):
        (rule, *_) = json.loads(project.n2p(*replay, "--grace", grace).stdout)["rules"]
        assert rule["false_alarms"] == false_alarms, grace


def test_incidents_with_other_columns_are_told_which_are_needed(tmp_path: Path) -> None:
    (tmp_path / "incidents.csv").write_text("start,end\n2013-04-01,2013-04-02\n")
    with pytest.raises(InputError, match="no column 'began', only start, end") as told:
        read_incidents(tmp_path / "incidents.csv")
    assert "began and, as far as you like, ended, model and subject" in (told.value.remedy or "")


def test_wrong_usage_names_the_remedy(project: Project) -> None:
    none = project.n2p("alerts", "test")
    assert none.code == 2 and "[tool.n2p.channels" in none.stderr
    nothing = project.n2p("alerts", "backtest", "flights")
    assert nothing.code == 2 and "n2p watch" in nothing.stderr
    assert project.n2p("alerts", "silence", "--for", "soon", "--reason", "x").code == 2
