"""How often the default rules of `n2p watch` cry wolf, and how soon they see what is there.

    python benchmarks/drift_detection.py                     # 200 stable histories, and 20 of each of ten kinds of drift
    python benchmarks/drift_detection.py --stable 30 --drifts 4 --processes 1

A history is 28 days of a service: a few hundred requests a day, weekends with fewer and with other values, days that differ from each other a little by
themselves, answers of a model, and labels for six rows in ten. The reference is 8,000 rows of the same world, whole weeks of it. The rules are the defaults; the one
setting is a slice by carrier, in all histories alike. A history raises an alarm if a finding is ever noticed. Drift begins on day 14 and is found if a finding
is noticed from then on; the delay is in days from the first that differs, 0 for that day itself. `persist` asks for four of seven days, so three are the usual least.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from measure import table as text_table

from notebook_to_prod.watch.monitor import Baseline, Monitor, Observed
from notebook_to_prod.watch.rules import Rules, find
from notebook_to_prod.watch.sequential import Moments

DAYS, BEGINS, REFERENCE = 28, 14, 8_000
FALSE_LIMIT, FOUND_LIMIT = 0.05, 0.95
CARRIERS = np.array(["UA", "B6", "EV", "DL", "AA", "MQ", "US", "WN"])
SHARES = np.array([0.18, 0.16, 0.16, 0.14, 0.10, 0.10, 0.08, 0.08])
RULES = Rules(slices=("carrier",), minimum=30)
LABELLED, USUAL_ERROR = 0.6, 0.15

Change = Callable[[pd.DataFrame, np.ndarray, int, np.random.Generator], None]


@dataclass(frozen=True)
class Drift:
    """A kind of drift: what it does to a table and to whether its answers are wrong, so many days after its first."""

    strength: str
    change: Change
    first: int = 0  # Days after `BEGINS` on which anything differs


def rows_of(rows: int, day: int, random: np.random.Generator, noise: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Requests of one day and whether each answer is wrong."""
    weekend = day % 7 in (5, 6)
    level = random.normal(0, noise, 4)  # the day's own
    carrier = random.choice(CARRIERS, rows, p=SHARES)
    distance = random.gamma(3.0, 350.0, rows) * np.exp(0.6 * level[0]) + 100 * weekend
    delay = random.exponential(18, rows) - 6 + 18 * level[1] + 3 * weekend + 6 * (carrier == "EV")
    table = pd.DataFrame(
        {
            "distance": distance.round(),
            "dep_delay": delay.round(),
            "air_time": distance / 7.5 + random.normal(18, 6, rows) + 6 * level[2],
            "temperature": random.normal(15, 8, rows) + 8 * level[3],
            "hour": np.clip(random.normal(13, 4, rows).round(), 5, 23),
            "seats": random.choice([50.0, 80.0, 149.0, 182.0, 300.0], rows, p=[0.2, 0.15, 0.3, 0.25, 0.1]),
            "carrier": carrier,
            "origin": random.choice(["JFK", "LGA", "EWR"], rows, p=[0.33, 0.31, 0.36]),
        }
    )
    table.loc[random.random(rows) < 0.08, "seats"] = np.nan
    wrong = (random.random(rows) < USUAL_ERROR * np.exp(random.normal(0, noise))).astype(float)
    return table, wrong


def _shift(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table["temperature"] += 0.35 * 8


def _scale(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table["temperature"] = 15 + (table["temperature"] - 15) * 1.5


def _category(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table.loc[random.random(len(table)) < 0.04, "origin"] = "SWF"


def _missing(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table.loc[random.random(len(table)) < 0.08, "seats"] = np.nan


def _units(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    swapped = random.random(len(table)) < 0.4  # one of the clients sends kilometres
    table.loc[swapped, "distance"] *= 1.609


def _flip(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    flipped = random.random(len(table)) < 0.25
    wrong[flipped] = 1 - wrong[flipped]


def _subgroup(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table.loc[table["carrier"] == "WN", "dep_delay"] += 18


def _gradual(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table["temperature"] += 8 * 0.06 * (after + 1)


def _sudden(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    if after >= 5:
        table["dep_delay"] += 12


def _seasonal(table: pd.DataFrame, wrong: np.ndarray, after: int, random: np.random.Generator) -> None:
    table["temperature"] += 8 * 0.6 * np.sin(2 * np.pi * after / 14)


KINDS = {
    "shift": Drift("0.35 standard deviations of one column", _shift),
    "scale": Drift("one column 1.5 times as wide", _scale),
    "new category": Drift("4% of the rows have a value that was not there", _category),
    "missing": Drift("8 points more missing values in one column", _missing),
    "swapped units": Drift("kilometres for miles in 40% of the rows", _units),
    "concept flip": Drift("a quarter of the truths turned round, no input moves", _flip),
    "subgroup": Drift("one standard deviation in 8% of the rows", _subgroup),
    "gradual": Drift("0.06 standard deviations more each day", _gradual),
    "sudden": Drift("two thirds of a standard deviation, after five days", _sudden, first=5),
    "seasonal": Drift("a wave of 0.6 standard deviations and fourteen days", _seasonal, first=1),
}


@cache
def monitor() -> Monitor:
    """The default rules with the reference of this world."""
    random = np.random.default_rng(1)
    parts = [rows_of(REFERENCE // 56, day, random, 0.02) for day in range(56)]
    rows = pd.concat([table for table, _ in parts], ignore_index=True)
    wrong = np.concatenate([each for _, each in parts])
    return Monitor(Baseline.of_table(rows, errors=Moments.of_rate(int(wrong.sum()), len(wrong))), RULES)


def history(seed: int, kind: str = "") -> dict[str, Any]:
    """Watch one history to its end, or until its drift is noticed."""
    random, windows = np.random.default_rng((seed, 7)), []
    drift = KINDS.get(kind)
    single_windows = 0
    for day in range(BEGINS - RULES.of + 1 if drift else 0, DAYS):
        rows = int(random.integers(450, 750) * (0.6 if day % 7 in (5, 6) else 1.0))
        table, wrong = rows_of(rows, day, random, 0.02)
        if drift and day >= BEGINS:
            drift.change(table, wrong, day - BEGINS, random)
        wrong[random.random(rows) >= LABELLED] = np.nan
        judged = monitor().window(f"{day:02d}", Observed(table, errors=wrong))
        windows += judged
        single_windows += any(each.fired for each in judged)
        findings = find(windows, RULES)
        if drift and any(int(each.noticed) >= BEGINS + drift.first for each in findings):
            first = min(
                (each for each in findings if int(each.noticed) >= BEGINS + drift.first), key=lambda each: each.noticed
            )
            early = any(int(each.noticed) < BEGINS + drift.first for each in findings)
            by = f"{first.column}: {first.check}" + (f" where {first.slice}" if first.slice else "")
            return {"delay": day - BEGINS - drift.first, "early": early, "by": by}
    return {
        "delay": None,
        "early": False,
        "alarms": [str(each) for each in findings],
        "fired": single_windows,
        "by": "",
    }


def stable(seed: int) -> dict[str, Any]:
    """A history without drift."""
    return history(seed)


def drifted(job: tuple[str, int]) -> dict[str, Any]:
    """A history with drift."""
    return history(10_000 + job[1], job[0])


def detect(
    histories: int, each: int, processes: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """What became of stable histories, and of drifted ones by kind."""
    jobs = [(kind, seed + number) for kind in KINDS for number in range(each)]
    seeds = range(seed, seed + histories)
    if processes == 1:
        calm, moved = [*map(stable, seeds)], [*map(drifted, jobs)]
    else:
        with ProcessPoolExecutor(processes) as pool:
            calm = [*pool.map(stable, seeds, chunksize=4)]
            moved = [*pool.map(drifted, jobs, chunksize=4)]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for (kind, _), found in zip(jobs, moved, strict=True):
        by_kind.setdefault(kind, []).append(found)
    return calm, by_kind


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stable", type=int, default=200)
    parser.add_argument("--drifts", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first history; the others follow")
    chosen = parser.parse_args()
    calm, moved = detect(chosen.stable, chosen.drifts, chosen.processes, chosen.seed)
    alarmed = [each for each in calm if each["alarms"]]
    rows = []
    for kind, found in moved.items():
        delays = sorted(each["delay"] for each in found if each["delay"] is not None)
        seen = len(delays) / len(found)
        late = f"{statistics.median(delays):.0f}, {delays[int(0.9 * (len(delays) - 1))]}" if delays else ""
        by = statistics.mode(each["by"] for each in found)
        rows.append([kind, KINDS[kind].strength, f"{seen:.0%}", late, by])
    print(text_table(["drift", "strength", "found", "delay: median, 90%", "mostly by"], rows))
    for each in alarmed:
        print(f"false alarm: {'; '.join(each['alarms'])}")
    found = sum(each["delay"] is not None for some in moved.values() for each in some) / max(
        1, sum(map(len, moved.values()))
    )
    least = min(sum(each["delay"] is not None for each in some) / len(some) for some in moved.values())
    alone = sum(each["fired"] for each in calm)
    print(f"single days that fired in stable histories, which persistence keeps quiet: {alone} of {len(calm) * DAYS}")
    share = len(alarmed) / len(calm)
    good = share < FALSE_LIMIT and found >= FOUND_LIMIT and least >= FOUND_LIMIT
    print(
        f"{len(alarmed)} of {len(calm)} stable histories raised an alarm, {share:.1%}, limit below {FALSE_LIMIT:.0%}: {'held' if share < FALSE_LIMIT else 'MISSED'}"
    )
    print(
        f"{found:.1%} of the drifts were found, of the hardest kind {least:.0%}, limit {FOUND_LIMIT:.0%}: {'held' if min(found, least) >= FOUND_LIMIT else 'MISSED'}"
    )
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
