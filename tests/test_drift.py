"""Drift is what scipy says it is, default rules are quiet in a quiet world and loud in another, and `n2p watch` tells it of a real log."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as some
from notebooks import Project, live_predictor, once
from scipy import stats

from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.profile import profile_table
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.log.compact import compact
from notebook_to_prod.watch.columns import Reference, compare_column, take_sample
from notebook_to_prod.watch.live import open_log
from notebook_to_prod.watch.monitor import data_drift
from notebook_to_prod.watch.rules import Rules
from notebook_to_prod.watch.statistics import Numbers, kolmogorov_smirnov, wasserstein

# The numbers

NUMBERS = some.one_of(
    some.integers(-50, 50).map(float),
    some.integers(-(2**40), 2**40).map(float),
    some.floats(-1e9, 1e9, allow_subnormal=False),
)
SAMPLES = some.lists(NUMBERS, min_size=1, max_size=60)


@given(SAMPLES, SAMPLES)
def test_distances_are_scipys(before: list[float], now: list[float]) -> None:
    one, two = Numbers.of(np.array(before)), Numbers.of(np.array(now))
    area = stats.wasserstein_distance(before, now)
    assert abs(kolmogorov_smirnov(one, two) - stats.ks_2samp(before, now, method="asymp").statistic) < 1e-9
    assert abs(wasserstein(one, two) - area) <= 1e-9 * max(1.0, area)


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy"])
def test_distances_of_many_real_numbers_are_scipys(draw: str) -> None:
    random = np.random.default_rng(3)
    before, now = getattr(random, draw)(size=3_000), getattr(random, draw)(size=2_000) + 0.1
    one, two = Numbers.of(before), Numbers.of(now)
    assert abs(kolmogorov_smirnov(one, two) - stats.ks_2samp(before, now).statistic) < 1e-9
    area = stats.wasserstein_distance(before, now)
    assert abs(wasserstein(one, two) - area) <= 1e-9 * max(1.0, area)


@given(
    some.lists(some.one_of(some.none(), NUMBERS, some.just(float("inf"))), min_size=1, max_size=60),
    some.integers(0, 60),
)
def test_samples_merge_into_that_of_the_whole(values: list[float | None], cut: int) -> None:
    whole = pd.Series(values, dtype="float64")
    parts = [take_sample(each, "column", "number") for each in (whole[:cut], whole[cut:])]
    merged, at_once = parts[0].merge(parts[1]), take_sample(whole, "column", "number")
    assert (merged.rows, merged.missing, merged.infinite) == (at_once.rows, at_once.missing, at_once.infinite)
    assert merged.numbers and at_once.numbers
    assert np.array_equal(merged.numbers.values, at_once.numbers.values)
    assert np.array_equal(merged.numbers.counts, at_once.numbers.counts)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([], dtype="float64"),
        pd.Series([np.nan] * 300),
        pd.Series([np.inf, -np.inf] * 150),
        pd.Series([5] * 300),
        pd.Series([None] * 300, dtype=object),
        pd.Series(["x"] * 300, dtype="category"),
        pd.Series([True, None] * 150, dtype=object),
        pd.Series(pd.date_range("2026-01-01", periods=300, tz="Europe/Berlin")),
        pd.Series([1, None] * 150, dtype="Int64"),
        pd.Series(["1.5", "two", None] * 100),
    ],
    ids=["empty", "missing", "infinite", "constant", "none", "category", "boolean", "moment", "Int64", "text"],
)
def test_odd_columns_are_compared_or_passed_over(values: pd.Series) -> None:
    usual = pd.Series(np.random.default_rng(5).normal(size=500))
    for reference, current in ((values, values), (values, usual), (usual, values)):
        known = take_sample(reference, "column")
        found = compare_column(Reference.of_sample(known), take_sample(current, "column", known.kind), least=10)
        json.dumps(found.to_dict(), allow_nan=False)
        assert all(0 <= each.p <= 1 for each in found.checks)
        if reference is current:
            assert all(each.p > 0.1 and not max(each.effects.values()) > 0.01 for each in found.checks)


def test_a_profile_and_its_rows_agree_where_both_know() -> None:
    random = np.random.default_rng(9)
    table = pd.DataFrame({"real": random.gamma(2, 3, 4_000), "whole": random.integers(0, 400, 4_000)})
    table["text"] = random.choice([f"value {number}" for number in range(300)], 4_000)
    for column in profile_table(table):
        now = take_sample(table[column.name].sample(500, random_state=1), column.name)
        rows, known = (
            compare_column(reference, now)
            for reference in (
                Reference.of_sample(take_sample(table[column.name], column.name)),
                Reference.of_profile(column),
            )
        )
        assert np.isclose(rows.psi, known.psi) and rows.resolution == "exact" != known.resolution
        both = [each.check("distribution") for each in (rows, known)]
        assert both[0] and both[1] and np.isclose(both[0].effects["jensen_shannon"], both[1].effects["jensen_shannon"])
        assert both[1].statistic <= both[0].statistic + 1e-12
        assert abs(both[0].effects.get("wasserstein", 0) - both[1].effects.get("wasserstein", 0)) < 0.05


def test_a_large_sample_does_not_cry_wolf() -> None:
    random = np.random.default_rng(4)
    before, now = (pd.DataFrame({"x": random.normal(shift, 1, 400_000)}) for shift in (0.0, 0.02))
    report = data_drift(before, now, Rules(joint=False))
    assert report.latest and report.latest.columns[0].checks[1].q < 1e-6 and not report.drifted


# The rules


@pytest.fixture(scope="module")
def detection() -> ModuleType:
    """The benchmark, without its classifier, which takes half of its time."""
    folder = Path(__file__).parents[1] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec = importlib.util.spec_from_file_location("drift_detection", folder / "drift_detection.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    module.RULES = replace(module.RULES, joint=False)
    return module


def test_stable_histories_are_quiet_and_drift_is_found(detection: ModuleType) -> None:
    calm, moved = detection.detect(4, 1, 1, 0)
    assert [each["alarms"] for each in calm] == [[]] * 4
    missed = [kind for kind, found in moved.items() if found[0]["delay"] is None]
    assert missed == [] and len(moved) == 10


# The command


def train(project: Project) -> None:
    """A model of delays, registered and live, and a log of 1,200 requests of which the second half is later."""
    project.notebook(
        "train.ipynb",
        {
            "parameters": "seed = 1",
            "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
            "data": (
                "import numpy as np\nimport pandas as pd\n\nrandom = np.random.default_rng(seed)\n"
                "X = pd.DataFrame({'distance': random.gamma(3, 400, 3000), 'delay': random.exponential(20, 3000)})\n"
                "y = X['delay'] + random.normal(0, 8, 3000) > 20"
            ),
            "fit": "from sklearn.linear_model import LogisticRegression\n\nmodel = LogisticRegression().fit(X[:2000], y[:2000])",
            "export": "run.export(model, X[:2000], y[:2000], X[2000:], y[2000:])",
        },
    )
    predictor = live_predictor(project)
    log = {"log": {"folder": str(project.home / "predictions/flights")}}
    random = np.random.default_rng(2)
    with TestClient(create_app(predictor, settings=log)) as client:
        for number in range(24):
            late = 15 if number >= 12 else 0
            rows = [
                {"distance": float(far), "delay": float(wait) + late}
                for far, wait in zip(random.gamma(3, 400, 50), random.exponential(20, 50), strict=True)
            ]
            answer = client.post("/predict", json=rows, headers={"x-request-id": f"r{number}"})
            assert answer.status_code == 200
            true = [row["delay"] - late > 20 for row in rows]
            labels = [{"id": f"r{number}", "row": row, "label": label} for row, label in enumerate(true)]
            assert client.post("/feedback", json=labels).status_code == 200


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model has been asked; who changes it copies it."""
    return once(tmp_path_factory, "watched", train)


def bundle_of(project: Project) -> Bundle:
    registry = Registry(Store(project.home))
    return registry.bundle(registry.resolve("flights"))


def said(done: Any) -> dict[str, Any]:
    """The one object on standard output."""
    return json.loads(done.stdout)


def test_watch_reads_the_log(watched: Project, tmp_path: Path) -> None:
    page = tmp_path / "drift.html"
    done = watched.n2p("watch", "flights", "--window", "100", "--html", page, "--json")
    found = said(done)
    assert done.code == 1, done
    active = {(each["column"], each["check"]) for each in found["findings"] if each["active"]}
    assert {("delay", "distribution"), ("error", "error"), ("prediction", "distribution")} <= active
    assert not [each for each in found["findings"] if each["column"] == "distance"]
    assert [each["rows"] for each in found["windows"]] == [100] * 12 and found["reference"].startswith(
        "the training rows"
    )
    assert next(each for each in found["findings"] if each["column"] == "delay")["began"] == "rows 601–700"
    assert page.read_text(encoding="utf-8").count("<svg") > 3
    text = watched.n2p("watch", "flights@production", "--window", "100")
    told = re.search(r"^drift +(\d+) drifted(?:, by \d+ checks)?: ", text.stdout.splitlines()[-2])
    assert text.code == 1 and told, text
    assert int(told[1]) == sum(line.rstrip().endswith(" drift") for line in text.stdout.splitlines()), text.stdout
    assert re.search(r"^quality +\w+ .*: dropped for 6 windows", text.stdout.splitlines()[-1]), text


def test_watch_sees_the_same_once_the_log_is_compacted(watched: Project, project: Project) -> None:
    watched.copy_to(project)
    before = said(project.n2p("watch", "flights", "--window", "100", "--json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        assert compact(open_log(Store(project.home), "flights")[0]).predictions == 1_200
    assert said(project.n2p("watch", "flights", "--window", "100", "--json")) == before


def test_watch_tells_what_is_new_once(watched: Project, project: Project) -> None:
    watched.copy_to(project)
    (project.folder / "pyproject.toml").write_text(
        '[tool.n2p.channels.file]\nkind = "file"\npath = "told.jsonl"\n'
        '[[tool.n2p.rules]]\nname = "shift"\non = ["drift.*"]\nrepeat = "never"\n'
        '[[tool.n2p.rules]]\nname = "worse"\non = ["performance.*"]\nseverity = "critical"\nrepeat = "never"\n'
    )
    first = said(project.n2p("watch", "flights", "--window", "100", "--alert", "--json"))["alerts"]
    assert {each["rule"] for each in first["told"]} == {"shift", "worse"} and first["sent"] == 2
    again = said(project.n2p("watch", "flights", "--window", "100", "--alert", "--json"))["alerts"]
    assert again["told"] == [] and again["sent"] == 0
    told = [json.loads(line) for line in (project.folder / "told.jsonl").read_text().splitlines()]
    shifted = next(each for each in told if each["rule"] == "shift")
    assert "delay" in {each["subject"] for each in shifted["alerts"]}
    assert "distance" not in {each["subject"] for each in shifted["alerts"]}
    assert "shift" in project.n2p("alerts", "list").stdout


def test_watch_takes_a_table_and_rules(watched: Project, project: Project) -> None:
    watched.copy_to(project)
    random = np.random.default_rng(6)
    days = pd.date_range("2026-03-01", periods=10, tz="UTC").repeat(200)
    table = pd.DataFrame(
        {"distance": random.gamma(3, 400, 2_000), "delay": random.exponential(20, 2_000), "when": days}
    )
    table.to_csv(project.folder / "calm.csv", index=False)
    table.assign(delay=table["delay"] + 12 * (table["when"] > "2026-03-05")).to_parquet(project.folder / "late.parquet")
    bundle = bundle_of(project).path
    assert project.n2p("watch", "flights", "--data", "calm.csv").code == 0
    late = ("watch", bundle, "--data", "late.parquet", "--time", "when", "--json")
    done = project.n2p(*late)
    assert done.code == 1 and len(said(done)["windows"]) == 10
    assert project.n2p(*late, "--until", "2026-03-05").code == 0
    sliced = said(project.n2p(*late, "--slice", "distance > 1200"))
    assert {each["slice"] for each in sliced["windows"]} == {"", "distance > 1200"}
    (project.folder / "pyproject.toml").write_text("[tool.n2p.watch]\nignore = ['delay']\njoint = false\n")
    assert project.n2p(*late).code == 0
    (project.folder / "pyproject.toml").write_text("[tool.n2p.watch]\npersits = 3\n")
    wrong = project.n2p(*late)
    assert wrong.code == 2 and "did you mean 'persist'" in said(wrong)["error"]["what"]


def test_watch_says_what_is_wrong(watched: Project, tmp_path: Path) -> None:
    pd.DataFrame({"distance": [1.0], "dealy": [2.0]}).to_csv(tmp_path / "typo.csv", index=False)
    bundle = bundle_of(watched).path
    for arguments, what in (
        (("nothing",), "nothing"),
        ((bundle,), "no request log"),
        (("flights", "--data", tmp_path / "typo.csv"), "lacks delay"),
        (("flights", "--window", "soon"), "no length"),
        (("flights", "--slice", "dist > 2"), "slice"),
        (("flights", "--since", "2001-01-01", "--until", "2001-01-02"), ""),
        (("flights", "--time", "when"), "no column 'when'"),
        (("flights", "--data", tmp_path / "gone.csv"), "does not exist"),
    ):
        done = watched.n2p("watch", *arguments, "--json")
        assert done.code == 2 and what in said(done)["error"]["what"], done


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(watched: Project, tmp_path: Path) -> None:
    assert CHROMIUM
    page, picture = tmp_path / "drift.html", tmp_path / "page.png"
    watched.n2p("watch", "flights", "--window", "100", "--html", page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--window-size=1000,1400"]
    command += [
        f"--user-data-dir={tmp_path / 'browser'}",
        "--enable-logging=stderr",
        f"--screenshot={picture}",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert picture.stat().st_size > 20_000, done.stderr[-2000:]
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
