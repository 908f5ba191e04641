"""Tables of every format come back whole and in order with their predictions, however often the batch is killed."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sql
from notebooks import Begun, Project
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from notebook_to_prod.errors import DataError, InputError, N2PError, StoreError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.keys import new_key, trust_key
from notebook_to_prod.package.schema import infer_schema
from notebook_to_prod.package.session import start
from notebook_to_prod.project import Store
from notebook_to_prod.serve.log.compact import read_predictions
from notebook_to_prod.serve.log.request_log import LogSettings
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.watch.batch import BatchResult, run_batch
from notebook_to_prod.watch.batch_score import score_frames
from notebook_to_prod.watch.batch_work import held

ROWS = 6_000
NUMBERS, TEXTS = ["hour", "délai", "seats"], ["carrier", "weekday"]
MODEL = [*NUMBERS, *TEXTS, "wet", "left"]


def flights(rows: int = ROWS) -> pd.DataFrame:
    """Columns of every kind, with values missing, and one that no model asks for."""
    rng = np.random.default_rng(7)
    table = pd.DataFrame(
        {
            "hour": rng.integers(5, 24, rows),
            "délai": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(5, 30, rows).round(1)),
            "seats": pd.array(rng.integers(20, 400, rows), dtype="Int64"),
            "carrier": rng.choice(["UA", "B6", "Ä, “q”", 'a"b'], rows),
            "weekday": pd.Categorical(rng.choice(["Mon", "Tue", "Wed"], rows)),
            "wet": rng.random(rows) < 0.3,
            "left": pd.date_range("2013-01-01", periods=rows, freq="h", tz="America/New_York"),
            "note": [f"note {number}" for number in range(rows)],
        }
    )
    table.loc[rng.random(rows) < 0.1, "seats"] = pd.NA
    table.loc[rng.random(rows) < 0.05, "carrier"] = None
    return table


def exported(folder: Path, pipeline: Any, table: pd.DataFrame, target: Any, **edits: dict[str, Any]) -> Bundle:
    """A bundle of a pipeline that is fitted here."""
    schema = infer_schema(table[:2000])
    for name, changes in edits.items():
        schema = schema.edit(name, **changes)
    fitted = pipeline.fit(table[:2000], target[:2000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_HOME", str(folder))
        patch.chdir(folder)
        options = {"schema": schema} if edits else {}
        return start(seed=7).export(fitted, table[:2000], target[:2000], table[2000:2500], target[2000:2500], **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classifier with texts for labels that takes every kind of column."""
    table = flights()
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    prepare = make_column_transformer(
        (numbers, NUMBERS), (OneHotEncoder(handle_unknown="ignore"), TEXTS), ("passthrough", ["wet"])
    )
    late = np.where(table["délai"].fillna(0) + table["hour"] > 25, "late", "on time")
    return exported(tmp_path_factory.mktemp("bundle"), make_pipeline(prepare, LogisticRegression()), table[MODEL], late)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("N2P_HOME", str(tmp_path / "store"))


def score(bundle: Bundle, source: Any, output: Any, **options: Any) -> BatchResult:
    """A batch in small parts."""
    return run_batch(
        bundle.path, source, output, **{"partition_rows": 1_000, "workers": 2, "pool": "threads", **options}
    )


def expected(bundle: Bundle, table: pd.DataFrame) -> tuple[list[Any], Any]:
    """What the pipeline says."""
    pipeline = load_predictor(bundle.path).pipeline
    return pipeline.predict(table[MODEL]).tolist(), pipeline.predict_proba(table[MODEL])


def as_typed(table: pd.DataFrame, path: Path) -> Path:
    """The table in the format of the path's suffix."""
    match path.suffix:
        case ".parquet":
            table.to_parquet(path, row_group_size=1_700)
        case ".feather":
            feather.write_feather(pa.Table.from_pandas(table, preserve_index=False), str(path), chunksize=900)
        case ".jsonl":
            table.assign(left=[each.isoformat() for each in table["left"]]).to_json(
                path, orient="records", lines=True, double_precision=15
            )
        case _:
            table.assign(left=[each.isoformat() for each in table["left"]]).to_csv(path, index=False)
    return path


# Formats


@pytest.mark.parametrize("name", ["in.parquet", "in.feather", "in.csv", "in.csv.gz", "in.jsonl"])
def test_every_format_comes_back_in_order(bundle: Bundle, tmp_path: Path, name: str) -> None:
    table = flights()
    labels, chances = expected(bundle, table)
    source = as_typed(table, tmp_path / name)
    for output in (
        ("out.parquet", "out.csv", "out.jsonl", "out.feather", "parts")
        if name == "in.parquet"
        else ("out.parquet", name.removesuffix(".gz").replace("in", "out"))
    ):
        done = score(bundle, source, tmp_path / output)
        assert (done.rows, done.predicted, done.rejected) == (ROWS, ROWS, 0)
        read = {
            ".csv": pd.read_csv,
            ".jsonl": partial(pd.read_json, lines=True, precise_float=True),
            ".feather": pd.read_feather,
        }
        back = read.get(Path(output).suffix, pd.read_parquet)(tmp_path / output)
        assert list(back) == [*table, "prediction", "probability late", "probability on time"]
        assert back["prediction"].tolist() == labels and back["note"].tolist() == table["note"].tolist()
        assert (back[["probability late", "probability on time"]].to_numpy() == chances).all()
        assert back["carrier"].isna().tolist() == table["carrier"].isna().tolist()
        assert back["seats"].isna().sum() == table["seats"].isna().sum()
        if name == "in.parquet" and output in ("out.parquet", "parts"):
            pd.testing.assert_frame_equal(back[list(table)], table)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_texts_of_parquet_keep_their_type_whether_they_repeat_or_not(
    bundle: Bundle, tmp_path: Path, kind: pa.DataType
) -> None:
    table = pa.Table.from_pandas(flights(3_000), preserve_index=False)
    for name in ("carrier", "note"):  # four values and none, and as many values as rows
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=1_000)
    score(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", partition_rows=1_000, workers=2)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.field("carrier").type == written.schema.field("note").type == kind
    assert written.select(table.column_names).to_pylist() == table.to_pylist()
    predicted, _ = expected(bundle, flights(3_000))
    assert written["prediction"].to_pylist() == predicted


def test_text_stays_the_text_that_it_was(bundle: Bundle, tmp_path: Path) -> None:
    as_typed(flights(50).assign(note='0012, "x"\ny'), tmp_path / "in.csv")
    score(bundle, tmp_path / "in.csv", tmp_path / "out.csv", partition_rows=7)
    before, after = (pd.read_csv(tmp_path / name, dtype=str) for name in ("in.csv", "out.csv"))
    pd.testing.assert_frame_equal(after[list(before)], before)
    lines = [
        '{"odd": [1, {"a": null}], ' + line[1:]
        for line in as_typed(flights(50), tmp_path / "in.jsonl").read_text().splitlines()
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    score(bundle, tmp_path / "in.jsonl", tmp_path / "out.jsonl", partition_rows=7)
    assert [
        line.startswith(was[:-1])
        for line, was in zip((tmp_path / "out.jsonl").read_text().splitlines(), lines, strict=True)
    ] == [True] * 50


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one(bundle: Bundle, tmp_path: Path, rows: int) -> None:
    for name in ("in.parquet", "in.csv", "in.feather"):
        source = as_typed(flights(3)[:rows], tmp_path / name)
        for output in ("out.parquet", "out.csv", "out"):
            assert score(bundle, source, tmp_path / output, force=True).rows == rows
            back = (pd.read_csv if output == "out.csv" else pd.read_parquet)(tmp_path / output)
            assert len(back) == rows and list(back)[-1] == "probability on time"


def test_partitioned_folders_and_other_file_systems(bundle: Bundle, tmp_path: Path) -> None:
    import fsspec

    table = flights()
    labels, _ = expected(bundle, table)
    for weekday, some in table.groupby("weekday", observed=True):
        (tmp_path / f"in/weekday={weekday}").mkdir(parents=True)
        some.drop(columns="weekday").to_parquet(tmp_path / f"in/weekday={weekday}/part.parquet")
    score(bundle, tmp_path / "in", tmp_path / "out")
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.parquet")} == {
        f"weekday={day}" for day in ("Mon", "Tue", "Wed")
    }
    back = pd.read_parquet(tmp_path / "out").sort_values("note", key=lambda notes: notes.str[5:].astype(int))
    assert (
        back["prediction"].tolist() == labels
        and back["weekday"].astype(str).tolist() == table["weekday"].astype(str).tolist()
    )

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tables/in.parquet", as_typed(table, tmp_path / "in.parquet").read_bytes())
    for output in ("memory://tables/out.parquet", "memory://tables/parts/"):
        score(bundle, "memory://tables/in.parquet", output)
        with pytest.raises(DataError, match="an output already"):
            score(bundle, "memory://tables/in.parquet", output)
    with memory.open("/tables/out.parquet") as file:
        assert pd.read_parquet(file)["prediction"].tolist() == labels
    assert len(memory.glob("/tables/parts/part-*.parquet")) == 4 and memory.exists("/tables/parts/_n2p_batch.json")


def test_databases(bundle: Bundle, tmp_path: Path) -> None:
    table = flights().assign(left=lambda frame: [each.isoformat() for each in frame["left"]])
    address = f"sqlite:///{tmp_path}/flights.db"
    engine = sql.create_engine(address)
    table.astype({"weekday": str}).rename_axis("id").to_sql("flights", engine, dtype={"wet": sql.Boolean()})
    score(bundle, address, address, query="select * from flights order by id", to_table="late")
    with pytest.raises(DataError, match="an output already"):
        score(bundle, address, address, query="select * from flights order by id", to_table="late")
    score(bundle, address, address, table="flights", to_table="late", force=True)
    back = pd.read_sql("select * from late order by n2p_row", engine)
    assert back["prediction"].tolist() == expected(bundle, flights())[0] and back["n2p_row"].tolist() == list(
        range(ROWS)
    )
    assert sorted(sql.inspect(engine).get_table_names()) == ["flights", "late"]
    engine.dispose()


# What is wrong with an input


def test_refused_rows_are_told_by_row_column_and_reason(bundle: Bundle, tmp_path: Path) -> None:
    table = flights(3_000)
    labels, _ = expected(bundle, table)
    as_typed(table, tmp_path / "in.csv")
    lines = (tmp_path / "in.csv").read_text().splitlines()
    wrong = {
        5: ("hour", "soon"),
        1_500: ("hour", ""),
        2_700: ("wet", "maybe"),
        2_999: ("left", "yesterday"),
        42: ("weekday", "Sun"),
    }
    for row, (column, value) in wrong.items():
        cells = next(csv.reader([lines[row + 1]]))
        cells[list(table).index(column)] = value
        lines[row + 1] = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    lines[1_000 + 1] += ",one more"
    (tmp_path / "in.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        score(bundle, tmp_path / "in.csv", tmp_path / "out.csv", workers=1)
    assert "row 5, 'hour'" in error.value.where and not (tmp_path / "out.csv").exists()
    done = score(bundle, tmp_path / "in.csv", tmp_path / "out.csv", reject=tmp_path / "why.csv")
    why, back = pd.read_csv(tmp_path / "why.csv").fillna(""), pd.read_csv(tmp_path / "out.csv")
    assert done.rejected == 6 and dict(zip(why["row"], why["column"], strict=True)) == {
        row: column for row, (column, _) in wrong.items()
    } | {1_000: ""}
    assert "9 cells" in why.loc[why["row"] == 1_000, "reason"].item() and why["reason"].str.len().min() > 5
    values = dict(zip(why["row"], map(json.loads, why["values"]), strict=True))
    assert {row: values[row][column] for row, (column, _) in wrong.items()} == {
        row: value for row, (_, value) in wrong.items()
    }
    assert [*values[5]] == [*table]
    assert len(back) == 3_000 and back.index[back["prediction"].isna()].tolist() == sorted([*wrong, 1_000])
    kept = back["prediction"].notna()
    assert back["prediction"][kept].tolist() == [label for label, keep in zip(labels, kept, strict=True) if keep]


def test_policies_are_applied_and_told(tmp_path: Path) -> None:
    table = flights()[["hour", "délai"]].fillna(0.0)
    clipping = exported(
        tmp_path, make_pipeline(StandardScaler(), Ridge()), table, table["hour"] * 2.0, hour={"policy": "clip"}
    )
    given = table[:40].assign(hour=[99, *table["hour"][1:40]])
    given.to_parquet(tmp_path / "in.parquet")
    done = run_batch(clipping.path, tmp_path / "in.parquet", tmp_path / "out.parquet")
    back = pd.read_parquet(tmp_path / "out.parquet")
    service = load_predictor(clipping.path)
    with pytest.warns(UserWarning, match="clipped"):
        assert back["prediction"].tolist() == service.predict(given.to_dict("records")).predictions
    assert (
        done.adjusted == 1
        and back["warnings"][0] == "hour: above the maximum, clipped"
        and back["warnings"].isna().sum() == 39
    )


def test_what_is_no_such_table(bundle: Bundle, tmp_path: Path) -> None:
    table = flights(20)
    as_typed(table, tmp_path / "in.csv")
    table.to_csv(tmp_path / "semicolons.csv", sep=";", index=False)
    table.drop(columns="seats").to_parquet(tmp_path / "lacks.parquet")
    table.assign(prediction=1).to_parquet(tmp_path / "taken.parquet")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    told = {
        "semicolons.csv": "separator seems to be ';'",
        "lacks.parquet": "lacks the column 'seats'",
        "taken.parquet": "a column 'prediction' already",
        "empty.csv": "lacks the column|is empty",
        "broken.parquet": "cannot be read as parquet",
        "gone.csv": "no such file",
    }
    for name, message in told.items():
        with pytest.raises(DataError, match=message):
            score(bundle, tmp_path / name, tmp_path / "out.parquet")
    assert score(bundle, tmp_path / "semicolons.csv", tmp_path / "out.parquet", separator=";").rows == 20
    score(bundle, tmp_path / "taken.parquet", tmp_path / "named.parquet", prefix="n2p ")
    assert {"prediction", "n2p prediction", "n2p probability late"} < {*pd.read_parquet(tmp_path / "named.parquet")}
    with pytest.raises(InputError, match="rejects are not written"):
        score(bundle, tmp_path / "in.csv", tmp_path / "out2.parquet", reject="why.xlsx")


def test_a_row_that_the_pipeline_refuses_is_found_among_others(tmp_path: Path) -> None:
    table = flights()[["hour", "délai"]].fillna(0.0)
    pipeline = make_pipeline(FunctionTransformer(np.sqrt), RandomForestClassifier(5, random_state=7))
    numbers = exported(tmp_path, pipeline, table.abs(), (table["hour"] > 12).to_numpy())
    given = table[:500].abs()
    given.loc[[7, 300], "délai"] = -4.0  # whose root is no number, and a forest takes that: so infinity
    given.loc[[8, 301], "délai"] = 1e300
    given.to_parquet(tmp_path / "in.parquet")
    done = run_batch(
        numbers.path,
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        reject=tmp_path / "why.jsonl",
        engine="pipeline",
    )
    told = [json.loads(line) for line in (tmp_path / "why.jsonl").read_text().splitlines()]
    refused = [each["row"] for each in told]
    assert [each["values"]["délai"] for each in told] == given["délai"][refused].tolist()
    service = load_predictor(numbers.path)
    one_by_one = []
    for row, cells in enumerate(given.to_dict("records")):
        try:
            service.predict([cells])
        except Exception:  # noqa: BLE001
            one_by_one.append(row)
    assert refused == one_by_one and done.rejected == len(refused) and refused


# Once, and whole


def begun(*arguments: Any) -> Begun:
    """`n2p batch` at work in a process of its own."""
    return Project(Path.cwd()).begin("batch", *arguments, N2P_HOME=os.environ["N2P_HOME"])


def parts_done(folder: Path) -> int:
    """How many parts of the batch have been written."""
    return len([*folder.glob(".out.csv.n2p-batch/*/*.json")])


def test_killed_at_random_moments_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    kills = int(os.environ.get("N2P_TEST_KILLS", "4"))
    as_typed(flights(60_000), tmp_path / "in.csv")
    options = ("--reject", "why.csv", "--partition-rows", 1_500, "--workers", 2, "--log", "--log-share", 0.02)
    whole = begun(bundle.path, "in.csv", "whole.csv", *options).finish()
    assert whole.code == 0, whole
    why = (tmp_path / "why.csv").read_bytes()
    moments, killed = random.Random(7), 0
    for number in range(kills):
        pool = ("--pool", "processes") if number == 1 else ()
        process = begun(bundle.path, "in.csv", "out.csv", "--resume", *options, *pool)
        before = parts_done(tmp_path)
        while parts_done(tmp_path) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.finish()
    told = begun(bundle.path, "in.csv", "out.csv", "--resume", "--json", *options).finish().json
    assert killed == kills and told["rows"] == 60_000 and told["resumed"] >= kills
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "why.csv").read_bytes() == why
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    logged = read_predictions(LogSettings(folder=tmp_path / "store/predictions/model"))
    assert len(logged) == 2 * told["logged"] > 0 and {*logged["protocol"]} == {"batch"}
    assert logged["feature.carrier"].isin(flights(60_000)["carrier"]).all()


def test_threads_processes_and_dask_write_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    as_typed(flights(), tmp_path / "in.parquet")
    ways: tuple[tuple[Any, ...], ...] = (
        ("--workers", 1),
        ("--pool", "threads"),
        ("--pool", "processes"),
        ("--dask", "local"),
    )
    for number, way in enumerate(ways):
        arguments = (bundle.path, "in.parquet", f"{number}.parquet", "--partition-rows", 1_000, "--workers", 2, *way)
        done = begun(*arguments).finish()
        assert done.code == 0, done.stderr
        assert done.stderr.splitlines()[-1].startswith("6,000 rows in ")
    assert len({(tmp_path / f"{number}.parquet").read_bytes() for number in range(len(ways))}) == 1


def test_what_has_changed_is_refused_by_name(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from notebook_to_prod.watch import batch as module

    source = as_typed(flights(), tmp_path / "in.csv")
    (tmp_path / "other").mkdir()
    table = flights()
    other = exported(tmp_path / "other", make_pipeline(StandardScaler(), Ridge()), table[["hour"]], table["hour"] * 1.0)

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(N2PError, match="was stopped"):
        patch.setattr(module, "_publish", stopped)
        score(bundle, source, tmp_path / "out.csv")
    with pytest.raises(DataError, match="begun and not finished"):
        score(bundle, source, tmp_path / "out.csv")
    with pytest.raises(DataError, match="by another model"):
        score(other, source, tmp_path / "out.csv", resume=True)
    with pytest.raises(DataError, match="prefix was '', now 'n2p'"):
        score(bundle, source, tmp_path / "out.csv", resume=True, prefix="n2p")
    kept = source.read_bytes(), source.stat()
    source.write_bytes(kept[0] + kept[0].splitlines(keepends=True)[-1])
    with pytest.raises(DataError, match=r"the input has changed: 'in.csv' \(size"):
        score(bundle, source, tmp_path / "out.csv", resume=True)
    source.write_bytes(kept[0])
    os.utime(source, ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
    done = score(bundle, source, tmp_path / "out.csv", resume=True)
    assert done.resumed == done.partitions == 6 and len(pd.read_csv(tmp_path / "out.csv")) == ROWS
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(DataError, match="an output already"):
        score(bundle, source, tmp_path / "out.csv")
    assert score(bundle, source, tmp_path / "out.csv", resume=True).workers.startswith("nobody")
    assert (tmp_path / "out.csv").read_bytes() == before


def test_the_second_writer_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    as_typed(flights(50), tmp_path / "in.csv")
    with (
        held(tmp_path / ".out.csv.n2p-batch", "out.csv"),
        pytest.raises(StoreError, match="another process is writing"),
    ):
        score(bundle, tmp_path / "in.csv", tmp_path / "out.csv")
    assert score(bundle, tmp_path / "in.csv", tmp_path / "out.csv").rows == 50


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from notebook_to_prod.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_leaves_nothing_half_written(bundle: Bundle, tmp_path: Path) -> None:
    as_typed(flights(20_000), tmp_path / "in.csv")
    call = ["batch", str(bundle.path), "in.csv", "out.csv", "--partition-rows", "4000"]
    full = subprocess.run(
        [sys.executable, "-c", FULL, "1_200_000".replace("_", ""), *call], capture_output=True, text=True, check=False
    )
    assert full.returncode == 3 and "the file system refuses" in full.stderr, full.stderr
    assert not (tmp_path / "out.csv").exists() and [*tmp_path.rglob("*.tmp")] == []
    subprocess.run([sys.executable, "-m", "notebook_to_prod", *call, "--resume"], check=True, capture_output=True)
    score(bundle, tmp_path / "in.csv", tmp_path / "whole.csv", partition_rows=4_000)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


# Elsewhere


def test_frames_are_scored_as_spark_would_have_it(bundle: Bundle) -> None:
    table = flights()
    function = pickle.loads(pickle.dumps(partial(score_frames, bundle=str(bundle.path), refused="why")))
    made = pd.concat(function(iter([table[:100], table[100:2_000], table[2_000:]])))
    assert made["prediction"].tolist() == expected(bundle, table)[0] and made["why"].isna().all()
    assert made.index.tolist() == table.index.tolist()
    with pytest.raises(DataError, match="valid"):
        list(score_frames([table[:9].astype({"hour": object}).assign(hour="soon")], bundle.path))


def test_an_unsigned_bundle_is_refused_where_keys_are_trusted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_typed(flights(10), tmp_path / "in.csv")
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    trust_key(Store(tmp_path / "store"), new_key("ada"), "ada")
    with pytest.raises(N2PError, match="sign"):
        score(bundle, tmp_path / "in.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
