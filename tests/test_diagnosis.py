"""Detectors, health, numbers of the business and the diagnosis: what was planted is found, and `n2p diagnose` tells it of a real log."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from notebooks import Done, Project, live_predictor, once
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from notebook_to_prod.cli.diagnose import _seen
from notebook_to_prod.errors import DataError, DependencyError, InputError, N2PError, NotFoundError
from notebook_to_prod.package.session import start
from notebook_to_prod.project import open_store
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.watch.blame import diagnose, find_built
from notebook_to_prod.watch.detectors import StreamRules, detect_changes, make_detector
from notebook_to_prod.watch.diagnosis import Lossy, explain_rise, take_apart
from notebook_to_prod.watch.health import HealthRules, Scrape, check_health, read_scrape
from notebook_to_prod.watch.kpis import kpi_values, read_kpis
from notebook_to_prod.watch.ledger import open_ledger
from notebook_to_prod.watch.more_signals import detector_signals, health_signals, kpi_signals

MOMENT = "2026-03-01T00:00:00+00:00"

# Detectors


@pytest.mark.parametrize("classes", [True, False])
def test_an_injected_change_is_found_where_it_began(classes: bool) -> None:
    pytest.importorskip("river")
    for seed in (311, 312, 313):
        random = np.random.default_rng(seed)
        at = int(random.integers(1_500, 2_500))
        moved = np.arange(4_000) >= at
        errors = (
            (random.random(4_000) < np.where(moved, 0.3, 0.1)).astype(float)
            if classes
            else random.gamma(2, np.where(moved, 9, 5))
        )
        found = detect_changes(errors, model="flights")
        assert {each.detector for each in found.worse} == {"ADWIN", "Page-Hinkley"}
        assert all(abs(each.began - at) < 150 and at <= each.row + 20 for each in found.worse), (at, found)
        assert all(each.fired and "errors rose" in each.told for each in detector_signals(found, MOMENT))
        json.dumps(found.to_dict(), allow_nan=False)


def test_still_streams_are_quiet_and_a_better_model_is_no_alarm() -> None:
    pytest.importorskip("river")
    still = [detect_changes((np.random.default_rng(320 + seed).random(3_000) < 0.2).astype(float)) for seed in range(6)]
    assert sum(bool(each.worse) for each in still) <= 1
    better = np.random.default_rng(330).random(3_000) < np.where(np.arange(3_000) < 1_500, 0.4, 0.1)
    assert not detect_changes(better.astype(float)).worse
    assert not detect_changes(np.zeros(500)).worse


def test_detectors_refuse_what_they_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="too few"):
        detect_changes(np.full(500, np.nan))
    with pytest.raises(InputError, match="adwin_delta"):
        StreamRules.from_table({"adwin_deltas": 0.1})
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(DependencyError) as missing:
        make_detector("ADWIN", StreamRules())
    assert missing.value.remedy == "pip install 'notebook-to-prod[stream]'"


# Numbers of the business


def test_numbers_come_from_cells_and_modules_and_errors_name_the_cell(project: Project) -> None:
    project.notebook(
        "kpis.ipynb",
        {
            "setup": "#| export\nFEE = 2.0",
            "revenue": "#| export\ndef revenue(table):\n    return float(table.price.sum()) + FEE",
            "broken": "#| export\ndef broken(table):\n    return table.nowhere.sum()",
            "words": "#| export\ndef words(table):\n    return 'viel'",
        },
    )
    (project.folder / "shop").mkdir()
    (project.folder / "shop/kpis.py").write_text(
        "from __future__ import annotations\n\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Count:\n    rows: int\n\n\n"
        "def rows(table):\n    return Count(len(table)).rows\n",
        encoding="utf-8",
    )
    (project.folder / "pyproject.toml").write_text(
        '[tool.n2p.kpis]\nrevenue = { of = "kpis.ipynb:revenue", max = 100 }\nbroken = "kpis.ipynb:broken"\n'
        'words = "kpis.ipynb:words"\nrows = "shop/kpis.py:rows"\n',
        encoding="utf-8",
    )
    mistaken = "from dataclasses import dataclass\n\n\n@dataclass\nclass Count:\n    rows: list = []\n"
    (project.folder / "shop/mistaken.py").write_text(mistaken, encoding="utf-8")
    with pytest.raises(N2PError) as refused:
        read_kpis({"kpis": {"rows": "shop/mistaken.py:rows"}}, project.folder)
    assert refused.value.where.endswith("mistaken.py, line 4")
    report = kpi_values(read_kpis(), pd.DataFrame({"price": [50.0] * 4}), window="2", model="shop")
    values = {(each.kpi, each.window): each.value for each in report.values}
    assert values["revenue", "rows 1–2"] == 102.0 and values["rows", "rows 3–4"] == 2.0
    assert [each.kpi for each in report.fired] == ["revenue"]
    assert any("cell 'broken' of kpis.ipynb, line 3" in each for each in report.problems)
    assert any("'viel', which is no number" in each for each in report.problems)
    told = {each.measure: (each.value, each.fired) for each in kpi_signals(report, MOMENT)}
    assert told == {"revenue": (102.0, True), "broken": (None, False), "words": (None, False), "rows": (2.0, False)}
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "wish", ["kpis.ipynb:no", "nothing", "no.such.module:it", "no.ipynb:it", {"of": "kpis.ipynb:it", "least": 1}, 3]
)
def test_a_number_that_cannot_be_had_is_named(project: Project, wish: Any) -> None:
    project.notebook("kpis.ipynb", {"it": "#| export\ndef it(table):\n    return 1"})
    with pytest.raises(N2PError) as refused:
        read_kpis({"kpis": {"wanted": wish}}, project.folder)
    assert refused.value.what and refused.value.remedy


# Diagnosis


def flights(rows: int, seed: int, later: float = 0.0, strike: bool = False) -> Lossy:
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"hour": random.normal(12 + later, 4, rows), "far": random.gamma(3, 400, rows)})
    table["carrier"] = random.choice(["UA", "DL", "Bé", None], rows, p=[0.4, 0.3, 0.25, 0.05])
    wrong = 0.05 + 0.3 * (table.hour > 17) + 0.5 * (strike & (table.carrier == "Bé") & (table.far > 1_100))
    return Lossy(table, (random.random(rows) < wrong).astype(float))


@pytest.mark.parametrize("seed", [411, 412, 413])
def test_a_planted_slice_is_found_first(seed: int) -> None:
    found = explain_rise(flights(2_500, seed), flights(1_500, seed + 50, strike=True))
    assert "carrier=Bé" in found[0].name and "far>=" in found[0].name and found[0].share > 0.5, found


def test_a_quiet_world_has_nothing_to_explain() -> None:
    assert sum(bool(explain_rise(flights(1_500, 430 + seed), flights(800, 460 + seed))) for seed in range(12)) <= 1


def test_other_rows_are_told_from_another_truth() -> None:
    moved, changed = (
        take_apart(flights(2_500, 471), each) for each in (flights(1_500, 472, 3), flights(1_500, 473, strike=True))
    )
    assert moved.shift_interval[0] > 0 and moved.shift > 2 * abs(moved.concept)
    assert changed.concept_interval[0] > 0 and changed.concept > 2 * abs(changed.shift)


def test_too_little_to_diagnose_is_said() -> None:
    few = flights(20, 1)
    for before, now in (
        (few, flights(200, 2)),
        (flights(200, 2), few),
        (flights(200, 2), Lossy(pd.DataFrame({"x": range(200)}), np.ones(200))),
    ):
        with pytest.raises(DataError):
            diagnose(before, now)


def test_the_cell_that_builds_a_column_is_found_in_odd_code() -> None:
    cells = [
        ("one", "!pip list\nx = pd.read_csv('a')"),
        ("two", "x.insert(0, 'größe', 1)"),
        ("three", "x[['a', 'b']] = x[['c']]"),
    ]
    assert (
        str(find_built("größe", cells)) == "built in two, line 1"
        and str(find_built("b", cells)) == "built in three, line 1"
    )
    nested = [("one", "def prepare(x):\n    if True:\n        x['a'] = 1\n    return x\n\n\nx['a'] = 2")]
    assert str(find_built("a", nested)) == "built in one, line 7"
    assert str(find_built("c", cells)) == "loaded in one, line 2" and find_built("c", [("one", "x = [")]) is None


# The command


def train(project: Project) -> None:
    """A live model with a log of 1,200 answers; in the second half a feature that a cell builds is broken."""
    project.notebook(
        "train.ipynb",
        {
            "parameters": "seed = 1",
            "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
            "data": (
                "import numpy as np\nimport pandas as pd\n\nrandom = np.random.default_rng(seed)\n"
                "X = pd.DataFrame({'distance': random.gamma(3, 400, 3000), 'delay': random.exponential(20, 3000)})"
            ),
            "features": "X['wait'] = X['delay'] / 10\nX = X[['distance', 'wait']]",
            "target": "y = np.where(X['wait'] * 10 + random.normal(0, 8, 3000) > 20, 'late', 'on time')",
            "fit": "from sklearn.linear_model import LogisticRegression\n\nmodel = LogisticRegression(max_iter=1000).fit(X[:1500], y[:1500])",
            "export": "run.export(model, X[:1500], y[:1500], X[1500:], y[1500:])",
        },
    )
    (project.folder / "pyproject.toml").write_text(
        '[tool.n2p.owners]\nflights = ["ann"]\n\n[tool.n2p.watch.health]\nminimum = 5\n\n'
        '[tool.n2p.kpis]\nlate = { of = "kpis.ipynb:late", min = 0.2 }\n',
        encoding="utf-8",
    )
    project.notebook(
        "kpis.ipynb", {"late": "#| export\ndef late(table):\n    return (table.prediction == 'late').mean()"}
    )
    predictor = live_predictor(project)
    random, labels = np.random.default_rng(2), []
    with TestClient(
        create_app(predictor, settings={"log": {"folder": str(project.home / "predictions/flights")}})
    ) as client:
        for number in range(24):
            delays = random.exponential(20, 50)
            rows = [
                {"distance": float(far), "wait": float(wait) / 10 if number < 12 else 0.0}
                for far, wait in zip(random.gamma(3, 400, 50), delays, strict=True)
            ]
            answer = client.post("/predict", json=rows, headers={"x-request-id": f"r{number}"})
            assert answer.status_code == 200
            labels += [
                {"id": f"r{number}", "row": row, "label": "late" if delay + random.normal(0, 8) > 20 else "on time"}
                for row, delay in enumerate(delays)
            ]
        deadline = time.monotonic() + 20
        while 'n2p_request_seconds_count{route="/predict",version="1"} 24' not in (text := client.get("/metrics").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        (project.folder / "metrics.txt").write_text(text, encoding="utf-8")
    pd.DataFrame(labels).to_csv(project.folder / "labels.csv", index=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model has been asked; no test changes it."""
    return once(tmp_path_factory, "diagnosed", train)


def said(done: Done) -> dict[str, Any]:
    assert done.stdout, done
    return json.loads(done.stdout)


def test_without_labels_quality_is_estimated(served: Project) -> None:
    done = served.n2p("diagnose", "flights", "--window", "600", "--json")
    found = said(done)
    assert done.code == 1 and set(found) >= {"estimate", "kpis", "diagnosis"} and "detectors" not in found, found
    first, second = found["estimate"]["windows"]
    assert not any(each["fired"] for each in first["metrics"]) and {each["metric"] for each in first["metrics"]} >= {
        "accuracy",
        "f1",
    }
    assert found["estimate"]["estimator"] and "concept drift" in found["estimate"]["notes"][0]
    assert [each["kpi"] for each in found["kpis"]["values"]] == ["late", "late"] and found["kpis"]["fired"] == ["late"]
    assert second["rows"] == 600 and "kpis" in found["fired"]


def test_what_a_function_prints_is_not_in_the_answer(served: Project, project: Project) -> None:
    served.copy_to(project)
    project.notebook(
        "kpis.ipynb", {"late": "#| export\ndef late(table):\n    print('of', len(table), 'rows')\n    return 1.0"}
    )
    done = project.n2p("diagnose", "flights", "--json")
    assert said(done)["kpis"]["values"][0]["value"] == 1.0 and "of 1200 rows" in done.stderr, done


def test_with_labels_the_broken_feature_is_named_with_its_cell_and_owner(served: Project) -> None:
    pytest.importorskip("river")
    done = served.n2p("diagnose", "flights", "--labels", "labels.csv", "--metrics", "metrics.txt", "--json")
    found = said(done)
    assert done.code == 1 and {"detectors", "diagnosis"} <= set(found["fired"]) and "estimate" not in found, found
    broken = found["diagnosis"]["columns"][0]
    assert broken["column"] == "wait" and broken["owner"] == "ann"
    assert (
        broken["built"]["where"].startswith("cell 'features' (number 4) of train.ipynb")
        and not broken["built"]["loaded"]
    )
    assert "wait" in found["diagnosis"]["slices"][0]["name"]
    assert found["diagnosis"]["go_on"][0].startswith("n2p why ")
    assert all(abs(each[-1]["began"] - 600) < 150 for each in found["detectors"]["changes"].values())
    assert found["health"]["requests"] >= 24 and found["health"]["well"] and found["health"]["versions"] == {"1": 1.0}
    text = served.n2p("diagnose", "flights", "--labels", "labels.csv")
    assert text.code == 1 and "built in cell 'features'" in text.stdout.replace("\n", " ")


def test_labels_of_a_file_mean_what_they_mean_to_watch(project: Project) -> None:
    """Ids that are numbers, classes "0" and "1" that a file reads as numbers, requests of two rows, cells without a value, and labels that are still to come."""
    random = np.random.default_rng(1)
    X = pd.DataFrame({"x": random.normal(size=400)})
    y = np.where(X["x"] > 0, "1", "0")
    bundle = start(seed=1).export(LogisticRegression().fit(X, y), X, y, X, y)
    (project.folder / "pyproject.toml").write_text('[tool.n2p.watch]\nlabel_delay = "2d"\n', encoding="utf-8")
    when = pd.Series(pd.date_range("2026-01-01", periods=10, tz="UTC").repeat(20)).astype(str)
    asked = pd.DataFrame({"id": np.arange(200) // 2, "row": np.arange(200) % 2, "when": when, "x": X["x"][:200]})
    asked.assign(prediction=y[:200]).to_csv("answers.csv", index=False)
    labels = pd.DataFrame({"id": np.arange(100), "label": y[:200:2]})
    labels["label"] = labels["label"].where(labels["id"] >= 10, "NA")
    labels.to_csv("labels.csv", index=False)
    files = Path("answers.csv"), "when", Path("labels.csv")
    observed, table, notes = _seen(open_store(), bundle, "flights", False, *files, None, None)
    assert observed.errors is not None
    told = np.isfinite(observed.errors).nonzero()[0]
    assert told.tolist() == [*range(20, 160, 2)] and not observed.errors[told].any()  # the first rows, of old answers
    known = table["__label"].notna()
    assert known.sum() == 90 and (table["__label"] == table["prediction"])[known].all()
    assert any("2 windows of 1d wait for labels" in each for each in notes)
    pd.DataFrame({"label": y[:200]}).to_csv("lines.csv", index=False)
    observed, _, _ = _seen(open_store(), bundle, "flights", False, *files[:2], Path("lines.csv"), None, None)
    assert observed.errors is not None and np.isfinite(observed.errors).sum() == 160 and not np.nansum(observed.errors)


def test_a_column_label_of_the_model_is_no_label(project: Project) -> None:
    random = np.random.default_rng(1)
    X = pd.DataFrame({"label": random.integers(0, 2, 200).astype(str), "x": random.normal(size=200)})
    y = np.where(X["x"] > 0, "1", "0")
    encode = make_column_transformer((OneHotEncoder(), ["label"]), remainder="passthrough")
    bundle = start(seed=1).export(make_pipeline(encode, LogisticRegression()).fit(X, y), X, y, X, y)
    answers = X.assign(prediction=y, id=np.arange(200).astype(str))
    assert not open_ledger(bundle, answers).labelled.any()
    answers.to_csv("answers.csv", index=False)
    files, ends = (open_store(), bundle, "flights", False, Path("answers.csv"), ""), (None, None)
    pd.DataFrame({"label": y}).to_csv("lines.csv", index=False)
    with pytest.raises(DataError, match="cannot stand line by line"):
        _seen(*files, Path("lines.csv"), *ends)
    pd.DataFrame({"label": y[:150], "id": np.arange(150)}).to_csv("labels.csv", index=False)
    observed, table, _ = _seen(*files, Path("labels.csv"), *ends)
    assert observed.errors is not None and np.isfinite(observed.errors).sum() == 150
    assert table["__label"].notna().sum() == 150 and (table["__label"] == table["prediction"])[:150].all()


def test_bad_questions_end_with_their_codes(served: Project, tmp_path: Path) -> None:
    assert served.n2p("diagnose", "nothing").code in (2, 3)
    assert served.n2p("diagnose", "flights", "--metrics", "http://127.0.0.1:9").code in (0, 1)
    assert served.n2p("diagnose", "flights", "--since", "2099-01-01", "--metrics", "no.txt").code in (2, 3)
    (tmp_path / "labels.csv").write_text("id,truth\nr1,late\n", encoding="utf-8")
    lacking = served.n2p("diagnose", "flights", "--labels", tmp_path / "labels.csv")
    assert lacking.code == 2 and "label" in lacking.stderr, lacking
    three = served.n2p("diagnose", "flights", "--metrics", "a", "--metrics", "b", "--metrics", "c")
    assert three.code == 2


def test_metrics_of_a_service_are_read_and_others_refused(served: Project, tmp_path: Path) -> None:
    scrape = read_scrape(str(served.folder / "metrics.txt"))
    found = check_health(scrape, rules=HealthRules(minimum=5))
    assert (
        found.model == "flights"
        and not found.fired
        and {each.name for each in found.vitals} >= {"p99_seconds", "error_share"}
    )
    assert all(each.kind.startswith("service.") for each in health_signals(found, MOMENT))
    slow = check_health(scrape, rules=HealthRules(minimum=5, p50_seconds=1e-9))
    assert [each.name for each in slow.fired] == ["p50_seconds"]
    again = check_health(Scrape(scrape.moment + 60, scrape.samples), scrape)
    assert again.requests == 0 and not again.fired and again.seconds == 60
    json.dumps(again.to_dict(), allow_nan=False)
    (tmp_path / "other.txt").write_text("up 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="no metrics of a service"):
        read_scrape(str(tmp_path / "other.txt"))
    with pytest.raises(NotFoundError):
        read_scrape(str(tmp_path / "none.txt"))
    with pytest.raises(NotFoundError):
        read_scrape("http://127.0.0.1:9/metrics")
    with pytest.raises(InputError):
        check_health(scrape, Scrape(scrape.moment + 5, scrape.samples))


def test_bounds_are_told_in_words() -> None:
    from notebook_to_prod.watch.kpis import KpiReport, KpiValue

    most = KpiValue("rooms", "2026-03-01", 10, 3.0, -np.inf, 2.0, True)
    both = KpiValue("rooms", "2026-03-01", 10, 3.0, 0.0, 2.0, True)
    assert str(most).endswith("not at most 2") and str(both).endswith("not within 0 to 2")
    assert KpiReport("hotel", (most,)).shown().rows[0][-1] == "at most 2"
