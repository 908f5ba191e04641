"""Score a table of flights in one batch, beside `pipeline.predict_proba` on chunks of a DataFrame over the same cores.

    python benchmarks/batch.py                              # 10,000,000 rows by the linear pipeline, 1,000,000 by the forest
    python benchmarks/batch.py --rows 1000000 --kills 5     # a tenth of it

The rows are flights of 2013 that the models have not seen, repeated, in one Parquet file of row groups of 250,000.
The peer is what people write with joblib: a process a core, each of which reads a chunk of the file as a DataFrame, calls
`predict_proba`, and forgets the answer; it writes nothing and checks nothing. A second one adds the columns and writes them. Ours is
`n2p batch`: it checks, scores labels and probabilities, and writes one file. All in turn; the best of some rounds, of Dask the median of the rounds' ratios. Each is timed as a
whole, from the start of its process to its end, as whoever waits for it would; what the peer takes once it has started is printed too.
Limits: 2 times the rows per second of the peer; at most 1 GB of resident memory of all processes together, at any number of rows; the
same bytes after 20 kills; 1.7 times the rows per second with two Dask workers as with one.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from measure import table

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
GROUP = 250_000  # Rows of a row group
LIMITS = {"times": 2.0, "memory": 1e9, "dask": 1.7}

PEER = """
import json, pickle, sys, time
import joblib, pyarrow.parquet as pq
from notebook_to_prod.package.bundle import load_pipeline, open_bundle
pipeline = load_pipeline(open_bundle(sys.argv[1]))
def score(group):
    frame = pq.ParquetFile(sys.argv[2]).read_row_group(group).to_pandas()
    inside = 0.0
    for start in range(0, len(frame), 50_000):
        some = frame.iloc[start:start + 50_000]
        began = time.perf_counter()
        chances = pipeline.predict_proba(some)
        inside += time.perf_counter() - began
        if sys.argv[4] == "write":
            made = some.assign(prediction=pipeline.classes_[chances.argmax(axis=1)], **{f"probability {name}": chances[:, place] for place, name in enumerate(pipeline.classes_)})
            made.to_parquet(f"{sys.argv[5]}/{group}-{start}.parquet")
    return len(frame), inside
with joblib.Parallel(n_jobs=int(sys.argv[3])) as parallel:
    groups = pq.ParquetFile(sys.argv[2]).num_row_groups
    parallel(joblib.delayed(int)(each) for each in range(int(sys.argv[3])))
    began = time.perf_counter()
    found = parallel(joblib.delayed(score)(each) for each in range(groups))
    took = time.perf_counter() - began
print(json.dumps({"rows": sum(rows for rows, _ in found), "seconds": took, "inside": sum(inside for _, inside in found) / int(sys.argv[3])}))
"""


def write_rows(frame: Any, path: Path, rows: int) -> Path:
    """The frame, again and again, as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    once = pa.Table.from_pandas(frame, preserve_index=False)
    many = pa.concat_tables([once] * (GROUP // len(once) + 2))
    with pq.ParquetWriter(path, once.schema) as writer:
        for start in range(0, rows, GROUP):
            writer.write_table(many.slice(start % len(once), min(GROUP, rows - start)), row_group_size=GROUP)
    return path


def command(bundle: Any, source: Path, output: Path, *options: Any) -> list[str]:
    """How a batch is started."""
    return [
        sys.executable,
        "-m",
        "notebook_to_prod",
        "batch",
        *map(str, (bundle.path, source, output, "--json", *options)),
    ]


def watched(call: list[str]) -> tuple[dict[str, Any], float]:
    """What a batch prints, and the most bytes that it and its children had resident at a time."""
    import psutil

    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    most, over = [0], threading.Event()

    def look() -> None:
        root = psutil.Process(process.pid)
        while not over.wait(0.02):
            total = 0
            try:
                for each in (root, *root.children(recursive=True)):
                    total += each.memory_info().rss
            except psutil.Error:
                continue
            most[0] = max(most[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    out, errors = process.communicate()
    over.set()
    thread.join()
    if process.returncode:
        raise SystemExit(errors[-3000:])
    return json.loads(out), most[0]


def digest(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verdict(what: str, found: float, limit: float, most: bool = False) -> bool:
    """Print a figure beside its limit; whether it is held."""
    held = found <= limit if most else found >= limit
    print(f"{what}: {found:,.2f}, limit {limit:,.2f}: {'held' if held else 'MISSED'}", flush=True)
    return held


def rates(name: str, bundle: Any, source: Path, folder: Path, cores: int, rounds: int) -> bool:
    """Rows per second of the peers and ours, in turn."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for way in ("forget", "write"):
            (folder / "peer").mkdir(exist_ok=True)
            call = [sys.executable, "-c", PEER, str(bundle.path), str(source), str(cores), way, str(folder / "peer")]
            began = time.perf_counter()
            done = subprocess.run(call, capture_output=True, text=True, check=False, env=ENVIRONMENT)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            took, told = time.perf_counter() - began, json.loads(done.stdout)
            best[way] = max(best.get(way, 0), told["rows"] / took)
            if way == "forget":
                best["started"] = max(best.get("started", 0), told["rows"] / told["seconds"])
                best["inside"] = max(best.get("inside", 0), told["rows"] / told["inside"])
        began = time.perf_counter()
        told, _ = watched(command(bundle, source, folder / "out.parquet", "--force", "--workers", cores))
        best["ours"] = max(best.get("ours", 0), told["rows"] / (time.perf_counter() - began))
    lines = [
        [
            "predict_proba on chunks, read and forgotten",
            f"{best['forget']:,.0f}",
            f"{best['ours'] / best['forget']:.2f}",
        ],
        ["  of which predict_proba alone", f"{best['inside']:,.0f}", f"{best['ours'] / best['inside']:.2f}"],
        ["the same, written", f"{best['write']:,.0f}", f"{best['ours'] / best['write']:.2f}"],
        [f"n2p batch, by the {told['engine']}, {told['workers']}", f"{best['ours']:,.0f}", ""],
    ]
    print(f"\n{name}, {told['rows']:,} rows, {cores} cores\n{table(['', 'rows/s', 'ours is, times'], lines)}")
    return verdict("ours is, times predict_proba on chunks", best["ours"] / best["forget"], LIMITS["times"])


def memory(bundle: Any, sources: list[Path], folder: Path) -> bool:
    """The most memory of a batch, of a tenth of the rows and of all."""
    found = [watched(command(bundle, source, folder / "out.parquet", "--force")) for source in sources]
    print(
        table(
            ["rows", "peak of resident memory, MB", "workers"],
            [[f"{told['rows']:,}", f"{most / 1e6:,.0f}", told["workers"]] for told, most in found],
        )
    )
    return verdict(
        "peak of resident memory, MB", max(most for _, most in found) / 1e6, LIMITS["memory"] / 1e6, most=True
    )


def killed(bundle: Any, source: Path, folder: Path, kills: int) -> bool:
    """Whether a batch that is killed at random moments writes the same bytes."""
    began = time.perf_counter()
    watched(command(bundle, source, folder / "whole.parquet", "--force"))
    took, moments, hit, ended, resumed = time.perf_counter() - began, random.Random(7), 0, 0, 0
    output, whole, same = folder / "killed.parquet", digest(folder / "whole.parquet"), True
    call = command(bundle, source, output, "--resume")
    while hit < kills:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.1, 1) * min(took, 8))
        hit += process.poll() is None
        process.kill()
        process.wait()
        if process.returncode == 0:  # it came to its end before: the next one begins anew
            ended, same = ended + 1, same and digest(output) == whole
            output.unlink()
    told, _ = watched(call)
    same, resumed = same and digest(output) == whole, told["resumed"]
    print(
        f"killed {hit} times, {ended + 1} came to their end, the last with {resumed} of {told['partitions']} parts done before; the bytes are {'the same: held' if same else 'OTHERS: MISSED'}",
        flush=True,
    )
    return same


def dask(bundle: Any, source: Path, folder: Path, rounds: int) -> bool:
    """Rows per second of one Dask worker and of two, both warm and in turn, and whether they write what the local way does."""
    from distributed import LocalCluster

    from notebook_to_prod.watch.batch import run_batch

    rates: dict[int, list[float]] = {1: [], 2: []}
    with contextlib.ExitStack() as stack:
        clusters = {
            workers: stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None))
            for workers in rates
        }
        for number in range(rounds + 1):
            for workers, cluster in clusters.items():
                done = run_batch(
                    bundle.path,
                    source,
                    folder / f"dask{workers}.parquet",
                    dask=cluster.scheduler_address,
                    workers=workers,
                    force=True,
                    engine="plan",
                )
                if number:
                    rates[workers].append(done.rows / done.seconds)
    run_batch(bundle.path, source, folder / "local.parquet", force=True, engine="plan", pool="threads")
    same = len({digest(folder / f"{name}.parquet") for name in ("dask1", "dask2", "local")}) == 1
    lines = [[str(each), f"{statistics.median(found):,.0f}"] for each, found in rates.items()]
    print(table(["Dask workers", "rows/s"], lines))
    print(f"the bytes of one worker, two and the local way are {'the same: held' if same else 'OTHERS: MISSED'}")
    times = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    return verdict("two workers are, times one", times, LIMITS["dask"]) and same


def main() -> int:
    """Measure, print and return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--forest-rows", type=int, help="a tenth of the rows by default")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--only", nargs="*", default=["rates", "memory", "kills", "dask"], choices=["rates", "memory", "kills", "dask"]
    )
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    from serving import bundle_of, fitted_model

    held = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, frame = fitted_model("linear")
        whole = write_rows(frame, folder / "flights.parquet", options.rows)
        tenth = write_rows(frame, folder / "tenth.parquet", max(1, options.rows // 10))
        linear, _ = bundle_of("linear", folder)
        forest, _ = bundle_of("forest", folder)
        ENVIRONMENT["N2P_HOME"] = str(folder / "store")
        if "memory" in options.only:
            held.append(memory(linear, [tenth, whole], folder))
        if "rates" in options.only:
            held.append(
                rates("the linear pipeline of the flights", linear, whole, folder, options.cores, options.rounds)
            )
            some = write_rows(frame, folder / "some.parquet", options.forest_rows or max(1, options.rows // 10))
            held.append(
                rates("the forest of 100 trees of the flights", forest, some, folder, options.cores, options.rounds)
            )
        if "kills" in options.only:
            held.append(killed(linear, whole, folder, options.kills))
        if "dask" in options.only:
            held.append(dask(linear, whole, folder, options.rounds))
    return int(not all(held))


if __name__ == "__main__":
    raise SystemExit(main())
