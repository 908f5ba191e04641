"""The page of `n2p ui`: the same records and the same rules as the commands, in a real browser, and closed to everybody else."""

from __future__ import annotations

import contextlib
import html
import http.server
import json
import re
import shlex
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import nbformat
import pytest
from browser import CHROMIUM, Page, chromium
from notebooks import Project, make_project
from processes import started
from starlette.testclient import TestClient

from notebook_to_prod.package.tokens import new_token
from notebook_to_prod.project import Store, looked_store
from notebook_to_prod.release.audit import read_events
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.rollout import read_rollout, start_rollout
from notebook_to_prod.ui.app import make_app
from notebook_to_prod.ui.desk import Desk
from notebook_to_prod.ui.door import Door, own_token
from notebook_to_prod.ui.entrance import entrance_file
from notebook_to_prod.ui.rendered import harmless
from notebook_to_prod.watch.alert_book import raise_signals
from notebook_to_prod.watch.alerts import DEFAULT_RULES, Signal

TOKENS = {user: new_token() for user in ("ann", "bob", "cat")}
SETTINGS = "[tool.n2p.tokens]\n" + "".join(f'{user} = "{digest}"\n' for user, (_, digest) in TOKENS.items())
SETTINGS += '[tool.n2p.stages.production]\napprovals = 1\napprovers = ["ann", "bob", "cat"]\n'
NAME = "Flüge 2026_sehr-langer.Name"  # of letters that an address does not take as they are
SECRET = "a-token-that-nobody-guesses"
START = "what-this-start-alone-knows"
HERE = "http://127.0.0.1:8790"
PAGES = ("/", "/runs", "/compare", "/models", "/gates", "/lineage", "/rollouts", "/watch", "/approvals", "/audit")
HOSTILE = "<script>parent.document.title = 'taken'; document.title = 'taken'</script><b>kept</b>"


def hostile_notebook(path: Path) -> None:
    """Write an output notebook that tries to act."""
    output = nbformat.v4.new_output("display_data", data={"text/html": HOSTILE})
    cells = [nbformat.v4.new_code_cell("1", outputs=[output]), nbformat.v4.new_markdown_cell(HOSTILE)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def released(ridges: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three runs, two of them versions, and a request that waits: bob asked for version 2."""
    project = ridges.copy_to(make_project(tmp_path_factory.mktemp("ui") / "Projekt ü"))
    (project.folder / "pyproject.toml").write_text(SETTINGS, "utf-8")
    bob = {"N2P_TOKEN": TOKENS["bob"][0]}
    runs = [each.name for each in project.run_folders]
    for run in runs[:2]:
        assert project.n2p("register", run, "--name", NAME, **bob).code == 0
    assert project.n2p("promote", NAME, "2", "--reason", "more trees", **bob).code == 1
    signals = [
        Signal(NAME, "drift", "psi", "alpha", f"2026-11-{day:02d}T00:00:00+00:00", day / 30, day > 20)
        for day in range(1, 28)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        raise_signals(Store(project.home), signals, DEFAULT_RULES, {})
    hostile_notebook(project.home / "runs" / runs[0] / "output.ipynb")
    return project


@pytest.fixture
def copied(released: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it to change, which is also the current folder, as cat."""
    project = released.copy_to(make_project(tmp_path / "project"))
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("N2P_TOKEN", TOKENS["cat"][0])
    return project


def visit(token: str | None = SECRET, **door: Any) -> TestClient:
    """A browser without scripts, in the project of the current folder."""
    desk = Desk(looked_store(), Path.cwd(), Door(SECRET, start=START, **door))
    client = TestClient(make_app(desk), HERE, follow_redirects=True)
    if token is not None:
        client.post("/enter", data={"token": token}, headers={"origin": HERE})
    return client


def send(client: TestClient, path: str, origin: str | None = HERE, **fields: str) -> httpx.Response:
    """Send a form as the page would, which tells what it has shown."""
    headers = {} if origin is None else {"origin": origin}
    if path == "/approvals":
        fields = dict(re.findall(r'name="(bundle|asked)" value="([^"]*)"', client.get(path).text)) | fields
    return client.post(path, data={"key": Door(SECRET, start=START).form_key, **fields}, headers=headers)


def bare(page: httpx.Response) -> str:
    """The text of a page."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


# What is shown


def test_each_page_answers_and_loads_nothing_from_elsewhere(copied: Project) -> None:
    client, run = visit(), copied.run_folders[0].name
    model = f"/models/{quote(NAME)}"
    for path in (*PAGES, f"/runs/{run}", model, f"{model}/2", f"/lineage?of={quote(NAME)}%401", "/audit?whole=1"):
        page = client.get(path)
        assert page.status_code == 200, page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert not re.search(r"(src|href|action)=\"?(https?:)?//", page.text), path
        assert page.text.count("<h1") == 1 and "<style" not in page.text and " style=" not in page.text
    assert "bob" in bare(client.get("/approvals")) and "sound" in bare(client.get("/audit"))


def test_runs_are_searched_sorted_and_compared_by_the_server_alone(copied: Project) -> None:
    client, runs = visit(), [each.name for each in copied.run_folders]
    shown = re.findall(r'name="run" value="([^"]+)"', client.get("/runs?sort=parameter.alpha&order=up").text)
    assert shown == runs
    assert re.findall(r'name="run" value="([^"]+)"', client.get("/runs?q=alpha=2").text) == [runs[1]]
    page = client.get("/compare", params={"run": runs[:2]})
    assert re.search(
        r'class="differs"><th[^>]*><span[^>]*>≠.{,60}alpha.{,20}<td class="wrap">1</td><td class="wrap">2', page.text
    )
    assert "there is no run" in bare(client.get("/compare?run=nothing"))


def test_five_thousand_runs_come_in_pages(copied: Project) -> None:
    record = json.loads((copied.run_folders[1] / "record.json").read_text())
    record |= {"environment": {}, "code": {}, "reads": []}
    for at in range(5_000):
        folder = copied.home / "runs" / f"2025{at:04d}-000000-aaaaaaaa"
        folder.mkdir()
        text = json.dumps(record | {"run_id": folder.name, "metrics": {"score": at / 5_000}})
        (folder / "record.json").write_text(text)
    client = visit()
    page = client.get("/runs?sort=metric.score&order=up&page=2")
    shown = re.findall(r'name="run" value="([^"]+)"', page.text)
    assert len(shown) == 100 and shown[0] == "20250100-000000-aaaaaaaa"
    assert "5,003 runs" in bare(page) and "page 2 of 51" in bare(page)
    unknown = client.get("/runs?sort=metric.nope&order=up").text
    assert (
        "No run has “metric.nope”: sorted by started." in unknown
        and 'aria-sort="ascending"><a class="sort" title="run"' in unknown
    )
    assert client.get("/runs?page=99999999999999").status_code == 200


def test_what_is_damaged_is_shown_as_such(copied: Project) -> None:
    home, runs = copied.home, copied.run_folders
    (runs[0] / "record.json").write_text('{"run_id"')
    (runs[1] / "record.json").write_text("[]")
    (runs[2] / "output.ipynb").write_text('{"cells": 3}')
    (home / "verdicts" / "ab").mkdir(parents=True)
    (home / "verdicts" / "ab" / "cd.json").write_text('{"format": 1}')
    (home / "alerts" / "signals" / "x.jsonl").write_text('{"half\n[1]\n')
    audit = home / "audit.jsonl"
    audit.write_text(audit.read_text().replace('"version": 1', '"version": 7').replace('"register"', '"régister', 1))
    client = visit()
    for path in (*PAGES, f"/runs/{runs[2].name}", "/gates/ab"):
        assert client.get(path).status_code == 200, path
    assert bare(client.get("/runs")).count("damaged") >= 2
    assert "damaged" in bare(client.get("/gates")) and "damaged" in bare(client.get("/audit"))
    assert "cannot be shown" in bare(client.get(f"/runs/{runs[2].name}/notebook"))
    assert client.get(f"/runs/{runs[0].name}").status_code == 503
    (home / "alerts" / "book.json").write_text("nothing")
    assert "the book of alerts is damaged" in bare(visit().get("/"))
    (copied.folder / "pyproject.toml").write_text("[tool.n2p.stages.production]\naprovals = 1\n")
    page = client.get("/approvals")
    assert page.status_code == 422 and "did you mean" in bare(page)
    assert client.get("/").status_code == 200


def test_numbers_of_any_length_are_sorted_and_shown(copied: Project) -> None:
    values = ("1" + "0" * 400, "1e999", "-1" + "0" * 400, "NaN")
    for folder, value in zip(copied.run_folders, values, strict=False):
        path = folder / "record.json"
        record = json.loads(path.read_text()) | {"duration": "here"}
        record["parameters"]["alpha"] = "here"
        path.write_text(json.dumps(record).replace('"here"', value))
    runs = [each.name for each in copied.run_folders]
    broken = copied.home / "runs" / "20250101-000000-aaaaaaaa"
    broken.mkdir()
    text = (copied.home / "runs" / runs[0] / "record.json").read_text()
    text = re.sub(r'"metrics": \{[^}]*\}', '"metrics": {"score": 1' + "0" * 400 + "}", text)
    (broken / "record.json").write_text(text)
    signals = copied.home / "alerts" / "signals" / "huge.jsonl"
    signal = {"model": NAME, "about": "kpi", "measure": "sum", "subject": "", "moment": "2026-11-01T00:00:00+00:00"}
    signals.write_text(json.dumps(signal | {"value": 10**400}) + "\n" + json.dumps(signal | {"value": 1}) + "\n")
    client = visit()
    for path in (*PAGES, "/runs?sort=parameter.alpha", "/runs?sort=duration", *(f"/runs/{run}" for run in runs)):
        assert client.get(path).status_code == 200, path
    shown = re.findall(r'name="run" value="([^"]+)"', client.get("/runs?sort=parameter.alpha&order=up&q=finished").text)
    assert shown.index(runs[2]) < shown.index(runs[0]) < shown.index(runs[1])


def test_commands_that_are_shown_can_be_pasted(copied: Project) -> None:
    beside = copied.folder.parent / "it's; echo taken"
    (beside / ".n2p" / "runs").mkdir(parents=True)
    client = visit()
    pages = ("/", "/approvals", f"/models/{quote(NAME)}/1")
    shown = [
        html.unescape(each) for path in pages for each in re.findall(r'class="command">([^<]+)<', client.get(path).text)
    ]
    assert ["cd", str(beside), "&&", "n2p", "ui"] in [shlex.split(each) for each in shown]
    named = [shlex.split(each) for each in shown if "Flüge" in each]
    assert named and all(any(word.partition("@")[0] == NAME for word in words) for words in named)


@pytest.fixture
def stuck() -> Iterator[SimpleNamespace]:
    """A server that takes every request and holds it."""
    released, counted = threading.Event(), Counter[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            counted["asked"] += 1
            released.wait(90)  # longer than any page may take
            counted["answered"] += 1
            with contextlib.suppress(OSError):
                body = b'{"registered_models": [{"name": "there"}]}'
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", counted=counted, release=released.set)
    released.set()
    server.shutdown()
    server.server_close()


def test_a_registry_that_does_not_answer_stalls_no_page(
    copied: Project, stuck: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stuck.url)
    client, run = visit(), copied.run_folders[0].name
    for path in ("/", "/runs", "/gates", "/watch", "/audit", "/compare"):
        page = client.get(path)
        assert page.status_code == 200 and "This did not work" not in page.text, path
    assert "are still being read" in bare(client.get("/")) and run in client.get("/runs").text
    models = client.get("/models")
    assert models.status_code == 503 and "are still being read" in bare(models)
    mark = client.get("/mark").json()
    assert stuck.counted["asked"] >= 1 and stuck.counted["answered"] == 0, "no page has waited for it"
    stuck.release()
    end = time.monotonic() + 60
    while client.get("/mark").json() == mark and time.monotonic() < end:
        time.sleep(0.1)
    assert client.get("/mark").json() != mark, "the page is told to look again"


def test_a_store_nearby_that_does_not_answer_stalls_no_page(copied: Project, stuck: SimpleNamespace) -> None:
    home = copied.folder / "far"
    home.mkdir()
    settings = f'[tool.n2p.environments.far]\nhome = "far"\nregistry_uri = "{stuck.url}"\n'
    (copied.folder / "pyproject.toml").write_text(SETTINGS + settings, "utf-8")
    client = visit()
    page = client.get("/")
    assert page.status_code == 200 and NAME in page.text and stuck.counted["answered"] == 0
    assert stuck.counted["asked"] >= 1
    end = time.monotonic() + 60
    while "MLflow does not answer" not in page.text and time.monotonic() < end:
        page = client.get("/")
    assert "MLflow does not answer" in page.text and stuck.counted["answered"] == 0, "it is not waited for"


def test_an_empty_project_is_told_the_next_command_and_stays_empty(project: Project) -> None:
    client = visit()
    texts = {path: bare(client.get(path)) for path in PAGES}
    assert "n2p run NOTEBOOK.ipynb" in texts["/runs"] and "n2p register latest" in texts["/models"]
    assert "n2p gate latest" in texts["/gates"] and "n2p watch NAME --alert" in texts["/watch"]
    assert [each.name for each in project.folder.iterdir()] == ["pyproject.toml"]


def test_what_there_is_not_is_a_page_that_says_so(copied: Project) -> None:
    client = visit()
    for path in ("/nothing", "/runs/nothing", "/models/nothing", f"/models/{quote(NAME)}/9", "/gates/nothing"):
        page = client.get(path)
        assert page.status_code == 404 and "→" in page.text, path
    odd = ("/runs/..%2F..%2Fetc", "/gates/..%2F..", "/static/..%2Fbase.html", "/lineage?of=%00", "/models/%ff/1")
    assert {client.get(path).status_code for path in odd} == {404}


def test_bundles_without_a_version_are_shown_with_their_state(copied: Project) -> None:
    draft = copied.home / "bundles" / ("d" * 64)
    draft.mkdir()
    (draft / "metadata.json").write_text('{"draft": true, "task": "regression"}')
    (copied.home / "bundles" / ("e" * 64)).mkdir()
    shown = bare(visit().get("/models"))
    assert "unregistered" in shown and f"n2p register {copied.run_folders[2].name} --name NAME" in shown
    assert "dddddddddddd draft" in shown and "eeeeeeeeeeee damaged" in shown


def test_a_run_leads_to_its_page_in_mlflow(copied: Project) -> None:
    run = copied.run_folders[0].name
    tracked = copied.record(run)["mlflow_run_id"]
    assert "mlflow ui --backend-store-uri" in bare(visit().get(f"/runs/{run}"))
    desk = Desk(looked_store(), Path.cwd(), Door(SECRET), "http://127.0.0.1:5000/")
    client = TestClient(make_app(desk), HERE)
    client.get(f"/enter/{desk.door.tickets.issue()}")
    page = client.get(f"/runs/{run}")
    assert re.search(rf'href="http://127\.0\.0\.1:5000/#/experiments/\d+/runs/{tracked}"', page.text)


# What a notebook may


def test_an_output_notebook_can_do_nothing(copied: Project) -> None:
    page = visit().get(f"/runs/{copied.run_folders[0].name}/notebook")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("sandbox;") and "default-src 'none'" in policy and "script" not in policy
    assert "<script" not in page.text and "<b>kept</b>" in page.text


def test_the_text_of_scripts_and_styles_is_not_shown() -> None:
    said = harmless("<style>#T_1 td { color: red }</style><p>kept</p><script src=x>alert(1)</script >")
    assert said == "<p>kept</p>"


# Who may


def test_who_has_no_token_sees_nothing(copied: Project) -> None:
    for client in (visit(None), visit("another-token-of-somebody")):
        for path in (*PAGES, "/mark", f"/runs/{copied.run_folders[0].name}/notebook"):
            page = client.get(path)
            told = page.text.replace(f'value="{path}"', "")  # where the form leads back to
            assert page.status_code == 401 and NAME not in told and copied.run_folders[0].name not in told
        assert send(client, "/approvals", action="approve", name=NAME, version="2").status_code == 401


def test_an_address_never_lets_in_by_the_token_and_by_a_ticket_once(copied: Project) -> None:
    client = visit(None)
    assert client.get("/", params={"token": SECRET}).status_code == 401
    door = Door(SECRET)
    first, second = (TestClient(make_app(Desk(looked_store(), Path.cwd(), door)), HERE) for _ in range(2))
    ticket = door.tickets.issue()
    assert first.head(f"/enter/{ticket}").status_code == 401, "a look does not use it up"
    entered = first.get(f"/enter/{ticket}")
    assert entered.status_code == 200 and 'content="0; url=/"' in entered.text and first.get("/").status_code == 200
    again = second.get(f"/enter/{ticket}")
    assert again.status_code == 401 and "opens the page once" in bare(again) and second.get("/").status_code == 401
    cookie = entered.headers["set-cookie"].casefold()
    assert "httponly" in cookie and "samesite=strict" in cookie and SECRET not in cookie
    assert "max-age" not in cookie and "expires" not in cookie, "it ends with the browser"


def test_the_token_is_only_sent_in_a_form_of_the_page(copied: Project) -> None:
    client = visit(None)
    asked = {"token": SECRET, "to": "/models"}
    for origin in ("https://evil.example", "null", None):
        headers = {} if origin is None else {"origin": origin}
        assert client.post("/enter", data=asked, headers=headers).status_code == 401
    assert client.post("/enter", data={"token": "x" * 30_000}, headers={"origin": HERE}).status_code == 401
    form = client.get(f"/models/{quote(NAME)}?q=%C3%BC").text
    assert 'method="post" action="/enter"' in form and f'name="to" value="/models/{quote(NAME)}?q=%C3%BC"' in form
    for to in ("//evil.example", "/\\evil.example", "/\t/evil.example", "https://evil.example"):
        answer = client.post("/enter", data=asked | {"to": to}, headers={"origin": HERE}, follow_redirects=False)
        assert answer.headers["location"] == "/", to
    assert client.post("/enter", data=asked, headers={"origin": HERE}).url.path == "/models"


def test_who_is_not_known_learns_nothing_of_the_project_from_what_is_wrong(copied: Project) -> None:
    client = visit(None)
    for path in ("/static/nothing/at/all", "/static/nothing", "/enter/a/b", "/nothing", "/enter/x"):
        page = client.get(path)
        assert page.status_code in (401, 404) and "project" not in page.text and "cat" not in page.text, path


def test_what_a_start_gave_out_opens_no_later_one(copied: Project) -> None:
    before = visit()
    cookies = dict(before.cookies)
    later = TestClient(make_app(Desk(looked_store(), Path.cwd(), Door(SECRET))), HERE, cookies=cookies)
    assert before.get("/").status_code == 200 and later.get("/").status_code == 401
    assert Door(SECRET).form_key != Door(SECRET).form_key


def test_two_pages_on_two_ports_do_not_sign_each_other_out() -> None:
    names = {Door(SECRET).cookie({"host": host}) for host in ("127.0.0.1:8790", "127.0.0.1:8791", "[::1]:8792", "")}
    assert len(names) == 4


def test_a_name_that_is_pointed_at_this_machine_is_refused(copied: Project) -> None:
    client = visit()
    for host in ("evil.example", "127.0.0.1.evil.example:8790", "", "\x7f", "[::1"):
        assert client.get("/", headers={"host": host}).status_code == 421
    for host in ("localhost:8790", "127.0.0.1:1", "[::1]:8790"):
        assert client.get("/static/ui.css", headers={"host": host}).status_code == 200


def test_a_form_of_another_page_changes_nothing(copied: Project) -> None:
    client, before = visit(), (copied.home / "audit.jsonl").read_bytes()
    approve = {"action": "approve", "name": NAME, "version": "2", "stage": "production"}
    for origin in ("https://evil.example", "http://127.0.0.1:8000", "null", "http://[::1", None):
        assert send(client, "/approvals", origin, **approve).status_code == 403, origin
    assert send(client, "/approvals", **approve | {"key": "guessed"}).status_code == 403
    assert send(client, "/approvals", **approve, reason="x" * 30_000).status_code == 422
    assert client.get("/approvals?action=approve").status_code == 200
    assert (copied.home / "audit.jsonl").read_bytes() == before


def test_who_asked_cannot_approve_by_the_button_either(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_TOKEN", TOKENS["bob"][0])
    client = visit()
    assert 'value="approve"' not in client.get("/approvals").text
    page = send(client, "/approvals", action="approve", name=NAME, version="2", stage="production")
    assert page.status_code == 403 and "somebody else has to approve" in bare(page)
    assert "withdrew the request" in bare(send(client, "/approvals", action="withdraw", name=NAME, version="2"))
    monkeypatch.setenv("N2P_TOKEN", "n2p_nobody")
    assert "not one of this project's" in bare(client.get("/approvals"))


def test_a_request_is_rejected_with_a_reason(copied: Project) -> None:
    client, asked = visit(), {"action": "reject", "name": NAME, "version": "2", "stage": "production"}
    assert 'value="reject"' in client.get("/approvals").text
    assert "needs a reason" in bare(send(client, "/approvals", **asked))
    page = send(client, "/approvals", **asked, reason="  the slices are missing ")
    assert "cat rejected" in bare(page) and "Nothing waits" in bare(page)
    last = [*read_events(Store(copied.home), NAME)][-1]
    assert (last.action, last.user, last.reason) == ("reject", "cat", "the slices are missing")


def test_what_makes_no_sense_is_told_and_changes_nothing(copied: Project) -> None:
    client, before = visit(), (copied.home / "audit.jsonl").read_bytes()
    for fields in ({"version": "two"}, {"version": "9"}, {"action": "promote"}, {"name": "../x"}, {"stage": "nowhere"}):
        asked = {"action": "approve", "name": NAME, "version": "2", "stage": "production"} | fields
        assert send(client, "/approvals", **asked).status_code in (404, 422), fields
    assert (copied.home / "audit.jsonl").read_bytes() == before


def test_a_click_decides_only_about_what_was_shown(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    client, store = visit(), Store(copied.home)
    shown = dict(re.findall(r'name="(bundle|asked)" value="([^"]*)"', client.get("/approvals").text))
    assert shown["bundle"].startswith("sha256:") and shown["asked"]
    asked = {"name": NAME, "version": "2", "stage": "production", "reason": "seen"}
    before = (copied.home / "audit.jsonl").read_bytes()
    for action in ("approve", "reject"):
        for other in ({"bundle": "sha256:" + "0" * 64}, {"bundle": ""}, {"asked": "another"}, {"asked": ""}):
            page = send(client, "/approvals", action=action, **asked | shown | other)
            assert page.status_code == 409 and "changed since it was shown" in bare(page), (action, other)
    assert (copied.home / "audit.jsonl").read_bytes() == before
    bob = {"N2P_TOKEN": TOKENS["bob"][0]}
    assert copied.n2p("approve", f"{NAME}@2", "--withdraw", **bob).code == 0
    assert "stands no more" in bare(send(client, "/approvals", action="approve", **asked | shown))
    assert copied.n2p("promote", NAME, "2", **bob).code == 1
    page = send(client, "/approvals", action="approve", **asked | shown)
    assert page.status_code == 409 and "bob has asked anew" in bare(page)
    assert Registry(store).approvals(NAME, 2).given == ()
    assert "cat approved" in bare(send(client, "/approvals", action="approve", **asked))


def test_what_was_done_is_said_once(copied: Project) -> None:
    client = visit()
    asked = {"action": "approve", "name": NAME, "version": "2", "stage": "production"}
    page = send(client, "/approvals", **asked)
    assert "cat approved" in bare(page)
    assert 'class="said"' not in client.get(str(page.url)).text, "a reload says it no more"


def test_read_only_and_beyond_this_machine_there_is_no_button(copied: Project) -> None:
    approve = {"action": "approve", "name": NAME, "version": "2", "stage": "production"}
    for door in ({"read_only": True}, {"host": "0.0.0.0"}):
        client = visit(**door)
        assert "<button" in client.get("/approvals").text and 'value="approve"' not in client.get("/approvals").text
        assert send(client, "/approvals", **approve).status_code == 403
    assert Registry(Store(copied.home)).approvals(NAME, 2).given == ()


def test_others_are_not_let_in_without_a_token_that_was_said(project: Project) -> None:
    refused = project.n2p("ui", "--host", "0.0.0.0", "--no-browser", "--json")
    assert refused.code == 2 and "N2P_UI_TOKEN" in refused.error["remedy"]
    short = project.n2p("ui", "--host", "0.0.0.0", "--no-browser", "--json", N2P_UI_TOKEN="short")
    assert short.code == 2 and "needs 20" in short.error["what"]


def test_the_token_is_kept_where_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    token, path = own_token(), tmp_path / "n2p" / "ui.token"
    assert own_token() == token == path.read_text() and path.stat().st_mode & 0o077 == 0
    path.chmod(0o644)
    assert own_token() != token, "others may have read it"


# What is changed


def test_a_rollout_is_changed_only_as_it_was_shown(ridges: Project, project: Project) -> None:
    ridges.copy_to(project)
    for run in project.run_folders[:2]:
        assert project.n2p("register", run.name, "--name", "ridge").code == 0
    registry = Registry(Store(project.home))
    registry.promote("ridge", 1)
    begun = start_rollout(registry, "ridge", 2, steps=(1.0, 10.0, 100.0))
    client, before = visit(), read_rollout(registry, "ridge")
    assert before and "Advance to 10%" in bare(client.get("/rollouts"))
    asked = {"name": "ridge", "change": begun.change}
    assert "10%" in bare(send(client, "/rollouts", action="advance", **asked))
    page = send(client, "/rollouts", action="abort", **asked)
    assert page.status_code == 409 and "changed meanwhile" in bare(page)
    now = {"name": "ridge", "change": read_rollout(registry, "ridge").change}
    page = send(client, "/rollouts", action="advance", **now)
    assert page.status_code == 422 and "n2p rollout advance ridge" in bare(page)
    assert "aborted" in bare(send(client, "/rollouts", action="abort", reason="enough", **now))
    assert [each.reason for each in read_events(registry.store, "ridge") if each.action == "rollout"][-1].endswith(
        "enough"
    )


# In a browser


@pytest.fixture(scope="module")
def served(released: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`n2p ui` of a project of its own, as cat."""
    folder = tmp_path_factory.mktemp("served")
    project = released.copy_to(make_project(folder / "Projekt ü"))
    variables = {"N2P_TOKEN": TOKENS["cat"][0], "XDG_CONFIG_HOME": str(folder / "config")}
    command = [shutil.which("n2p") or "n2p", "ui", "--port", "0", "--no-browser", "--json"]
    started_in = ["env", "-C", str(project.folder), *command]
    with started(started_in, folder / "log", environment=project.environment(variables)) as (_, line):
        told = json.loads(line)
        token = (folder / "config" / "n2p" / "ui.token").read_text()
        yield SimpleNamespace(project=project, url=told["url"].rstrip("/"), entrance=told["entrance"], token=token)


@pytest.fixture(scope="module")
def browser() -> Iterator[Callable[[], Page]]:
    """Chromium, which Debian has as `chromium`."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install --no-install-recommends chromium")
    with chromium() as tab:
        yield tab


@pytest.fixture
def page(served: SimpleNamespace, browser: Callable[[], Page]) -> Iterator[Page]:
    """A tab that has entered; whatever a test does, the console stays silent."""
    made = browser()
    made.open(f"{served.url}/")
    if made.ask("document.querySelector('[name=token]') !== null"):
        made.ask(f"document.querySelector('[name=token]').value = {json.dumps(served.token)}")
        made.ask("document.querySelector('button.primary').click()")
        made.wait("document.querySelector('#page') !== null")
    made.errors = [each for each in made.errors if "401" not in each]
    yield made
    assert made.errors == []
    made.send("Page.close")


def live(page: Page) -> None:
    """Wait until the page has looked once whether something has changed."""
    page.wait("document.querySelector('#live').classList.contains('on')")


# Names, labels and colours as WCAG asks for them, by hand
BASICS = """(() => {
  const wrong = [], name = (each) => (each.getAttribute('aria-label') || each.innerText || each.title || '').trim();
  const all = (selector) => [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility());
  if (!document.documentElement.lang || !document.title) wrong.push('no language or title');
  if (all('h1').length !== 1) wrong.push('not one h1');
  if (!document.querySelector('main') || !document.querySelector('nav[aria-label]')) wrong.push('no landmarks');
  for (const each of document.querySelectorAll('table')) if (!each.caption) wrong.push('a table without a caption');
  for (const each of document.querySelectorAll('th')) if (!each.scope) wrong.push('a head without a scope');
  for (const each of all('a,button')) if (!name(each)) wrong.push('no name: ' + each.outerHTML.slice(0, 90));
  for (const each of all('input,select')) {
    if (each.type !== 'hidden' && !each.labels.length && !name(each)) wrong.push('no label: ' + each.outerHTML);
  }
  for (const each of document.querySelectorAll('iframe')) if (!each.title) wrong.push('a frame without a title');
  const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
  if (new Set(ids).size < ids.length) wrong.push('an id twice');
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [red, green, blue] = colour.map((each) => each / 255).map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255, 255];
  };
  for (const each of all('body *')) {
    if (![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || each.closest('svg,.away,.skip')) continue;
    const [one, other] = [light(rgb(getComputedStyle(each).color)), light(behind(each))].sort((a, b) => b - a);
    if ((one + 0.05) / (other + 0.05) < 4.5) wrong.push(`contrast ${((one + 0.05) / (other + 0.05)).toFixed(2)}: ${each.outerHTML.slice(0, 90)}`);
  }
  return wrong;
})()"""


# Whatever takes the focus shows it, by a ring or a bar, and no edge cuts the ring off
FOCUS = """(() => {
  const wrong = [];
  for (const each of document.querySelectorAll('a[href],button,input:not([type=hidden]),select,summary,iframe,[tabindex="0"]')) {
    if (!each.checkVisibility() || each.closest('dialog:not([open]),.skip')) continue;
    each.focus();
    if (document.activeElement !== each) continue;
    each.scrollIntoView({ block: 'center', inline: 'nearest' });
    const style = getComputedStyle(each), ring = style.outlineStyle !== 'none' ? parseFloat(style.outlineWidth) : 0;
    if (!ring && style.boxShadow === 'none') wrong.push('no sign of focus: ' + each.outerHTML.slice(0, 90));
    const box = each.getBoundingClientRect(), reach = ring + parseFloat(style.outlineOffset);
    for (let at = each.parentElement; ring && at !== document.body; at = at.parentElement) {
      const place = at.getBoundingClientRect();
      if (getComputedStyle(at).overflowX !== 'visible' && box.left - reach < place.left - 0.5) wrong.push('cut off: ' + each.outerHTML.slice(0, 90));
    }
  }
  document.activeElement?.blur();
  return wrong;
})()"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_read_by_everybody(served: SimpleNamespace, page: Page, scheme: str, width: int) -> None:
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.send("Emulation.setFocusEmulationEnabled", enabled=True)
    page.resize(width, 844)
    run, model = served.project.run_folders[0].name, f"/models/{quote(NAME)}"
    for path in (*PAGES, f"/runs/{run}", model, f"{model}/2", "/nothing"):
        page.open(served.url + path)
        page.wait("document.querySelector('#theme').hidden === false")
        assert page.ask(BASICS) == [], path
        assert page.ask("document.documentElement.scrollWidth <= innerWidth"), path
        page.press("Tab")  # who uses keys is shown where they are
        assert page.ask(FOCUS) == [], path
        page.errors = [each for each in page.errors if "404" not in each]  # of the page that there is not


def test_a_file_lets_a_browser_in_without_the_ticket_on_its_command_line(
    served: SimpleNamespace, browser: Callable[[], Page]
) -> None:
    made = browser()
    made.send("Network.clearBrowserCookies")
    with entrance_file(served.entrance) as path:
        made.open(path.as_uri())
        made.wait("location.pathname === '/' && document.querySelector('#page') !== null")
    assert made.errors == [] and "enter" not in made.ask("location.href")
    made.open(served.entrance)
    assert "opens the page once" in made.ask("document.querySelector('[role=alert]').innerText")
    made.send("Page.close")


def test_keys_alone_search_choose_compare_and_leave(served: SimpleNamespace, page: Page) -> None:
    page.open(f"{served.url}/")
    page.press("g", "2")
    page.wait("location.pathname === '/runs'")
    live(page)
    page.press("/")
    assert page.ask("document.activeElement.id") == "search"
    page.press(*"alpha=")
    page.wait("location.search.includes('alpha')")
    page.press("Escape")
    page.wait("!location.search.includes('alpha')")
    page.press("Escape", "j", "x", "ArrowDown", "x")
    assert page.ask("document.querySelectorAll('input:checked').length") == 2
    page.press("c")
    page.wait("location.pathname === '/compare'")
    assert page.wait("document.querySelector('tr.differs').innerText").startswith(
        "≠"
    )  # a new address may have no page yet
    page.open(f"{served.url}/models")
    live(page)
    page.press("j", "Enter")
    page.wait(f"decodeURIComponent(location.pathname) === {json.dumps(f'/models/{NAME}')}")
    live(page)
    page.press("?")
    assert page.ask("document.querySelector('#keys').open")
    page.press("Escape")
    page.wait("!document.querySelector('#keys').open")
    for _ in range(40):  # everything can be reached, and what has the focus shows it
        page.press("Tab")
        if page.ask("document.activeElement.matches('#page tbody a')"):
            break
    assert page.ask("document.activeElement.matches('#page tbody a, #page tbody tr')")
    assert page.ask("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_tables_are_sorted_without_a_reload(served: SimpleNamespace, page: Page) -> None:
    page.open(f"{served.url}/runs")
    page.ask("window.same = true")
    shown = "[...document.querySelectorAll('input[name=run]')].map((each) => each.value)"
    newest = page.ask(shown)
    page.ask("[...document.querySelectorAll('th a.sort')].find((each) => each.textContent === 'alpha').click()")
    page.wait("document.querySelector('th[aria-sort]').textContent.includes('alpha')")
    assert page.ask(shown) == newest
    page.ask("document.querySelector('th[aria-sort] a').click()")
    page.wait("document.querySelector('th[aria-sort]').getAttribute('aria-sort') === 'ascending'")
    assert page.ask(shown) == newest[::-1] and page.ask("window.same")
    page.open(f"{served.url}/models/{quote(NAME)}")
    page.ask("document.querySelector('th button.sort').click()")
    assert page.ask("document.querySelector('tbody th').innerText") == "1"


def test_dark_and_light_by_the_system_and_by_hand(served: SimpleNamespace, page: Page) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.open(f"{served.url}/runs")
    dark = page.ask(paper)
    page.press("t")
    page.wait(f"{paper} !== {json.dumps(dark)}")
    page.open(f"{served.url}/runs/{served.project.run_folders[0].name}")
    assert page.ask(paper) != dark and page.ask("document.documentElement.dataset.theme") == "light"
    page.ask("document.cookie = 'n2p_theme=; path=/; max-age=0'")


def test_the_frame_of_a_notebook_stays_in_its_frame(served: SimpleNamespace, page: Page) -> None:
    page.open(f"{served.url}/runs/{served.project.run_folders[0].name}")
    page.ask("document.querySelector('iframe').scrollIntoView()")
    page.wait("performance.getEntriesByType('resource').some((each) => each.name.endsWith('/notebook'))")
    assert page.ask("document.querySelector('iframe').contentDocument") is None, "it has no origin"
    assert "taken" not in page.ask("document.title")


def test_what_a_command_changes_appears_without_a_reload(served: SimpleNamespace, page: Page) -> None:
    page.open(f"{served.url}/models")
    live(page)
    page.press("j")
    page.ask("window.same = true")
    run = served.project.run_folders[2].name
    done = served.project.n2p("register", run, "--name", "later", N2P_TOKEN=TOKENS["ann"][0])
    assert done.code == 0, done
    page.wait("document.querySelector('#page').innerText.includes('later')")
    assert page.ask("window.same") and page.ask("document.activeElement.closest('tr') !== null")
    page.wait("document.querySelector('#live').innerText.includes('changed')")


def test_an_approval_by_the_button_is_one_for_the_command_line(served: SimpleNamespace, page: Page) -> None:
    page.open(f"{served.url}/approvals")
    page.ask("document.querySelector('input[name=reason]').focus()")
    page.press(*"read it")
    page.ask("document.querySelector('button[value=approve]').click()")
    page.wait("document.querySelector('.said')?.innerText.includes('cat approved')")
    page.wait("location.search === ''")
    shown = served.project.n2p("show", f"{NAME}@2", "--json").json
    assert shown["approvals"][0]["given"] == ["cat"]
    last = shown["events"][-1]
    assert (last["action"], last["user"], last["reason"], last["identity"]) == ("approve", "cat", "read it", "token")
    page.ask("document.querySelector('button[value=revoke]').click()")
    page.wait("document.querySelector('.said')?.innerText.includes('revoked')")
    assert served.project.n2p("show", f"{NAME}@2", "--json").json["approvals"][0]["given"] == []


@pytest.mark.parametrize("held", ["focus", "pointer"])
def test_nothing_moves_under_a_hand_that_is_about_to_decide(served: SimpleNamespace, page: Page, held: str) -> None:
    page.open(f"{served.url}/approvals")
    live(page)
    field = "document.querySelector('form.act input[name=reason]')"
    if held == "focus":
        page.ask(f"{field}.focus()")
    else:
        page.move(field)
        page.wait("document.querySelector('form.act:hover') !== null")
    page.ask("window.before = document.querySelector('form.act')")
    run, name = served.project.run_folders[2].name, f"waits-{held}"
    ann = {"N2P_TOKEN": TOKENS["ann"][0]}
    assert served.project.n2p("register", run, "--name", name, **ann).code == 0
    assert served.project.n2p("promote", name, "1", **ann).code == 1
    page.wait("document.querySelector('#live').innerText.includes('when you leave')")
    assert page.ask("document.contains(window.before)") and name not in page.ask(
        "document.querySelector('#page').innerText"
    )
    page.ask("document.activeElement.blur()") if held == "focus" else page.move("document.querySelector('h1')")
    page.wait(f"document.querySelector('#page').innerText.includes({json.dumps(name)})")
    assert served.project.n2p("approve", f"{name}@1", "--withdraw", **ann).code == 0
    page.wait(f"!document.querySelector('#page').innerText.includes({json.dumps(name)})")


def test_a_port_that_is_taken_is_told(served: SimpleNamespace) -> None:
    port = served.url.rpartition(":")[2]
    refused = served.project.n2p("ui", "--port", port, "--no-browser", "--json")
    assert refused.code == 3 and "another process" in refused.error["what"]


def test_the_browser_is_started_with_a_file_that_only_its_owner_reads(released: Project, tmp_path: Path) -> None:
    told, script = tmp_path / "told", tmp_path / "browser"
    script.write_text(
        f"""#!/bin/sh
page=$(printf %s "$1" | sed s,^file://,,)
{{ printf '%s\\n' "$1"; stat -c %a "$page" "$(dirname "$page")"; sed 's/.*url=\\([^"]*\\).*/\\1/' "$page"; }} > {told}.new
mv {told}.new {told}
"""
    )
    script.chmod(0o755)
    variables = {"XDG_CONFIG_HOME": str(tmp_path), "DISPLAY": ":0", "BROWSER": f"{script} %s", "TMPDIR": str(tmp_path)}
    process = released.start("n2p", "ui", "--port", "0", **variables)
    try:
        end = time.monotonic() + 60
        while not told.exists() and time.monotonic() < end:
            time.sleep(0.1)
        seen, mode, folder, entrance = told.read_text().split()
        token = (tmp_path / "n2p" / "ui.token").read_text()
        assert (mode, folder) == ("600", "700") and seen.startswith("file://")
        assert token not in seen and entrance.rpartition("/")[2] not in seen and token not in entrance
        assert httpx.get(entrance).status_code == 200
        page = Path(seen.removeprefix("file://"))
        while page.exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not page.exists(), "it is gone once the browser has come"
    finally:
        process.terminate()
        shown, _ = process.communicate(timeout=30)
    assert token not in shown


def test_the_page_ends_with_its_command(released: Project, tmp_path: Path) -> None:
    variables = {"XDG_CONFIG_HOME": str(tmp_path)}
    process = released.start("n2p", "ui", "--port", "0", "--no-browser", "--json", **variables)
    assert process.stdout
    told = json.loads(process.stdout.readline())
    with httpx.Client() as client:  # which stays connected
        assert client.get(told["entrance"], follow_redirects=True).status_code == 200
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
