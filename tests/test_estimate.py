"""Quality without labels: within what it states while only the rows move, honest about what it cannot see, and clear about bad input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor

from notebook_to_prod.errors import DataError, InputError
from notebook_to_prod.package.gates.case import Answers
from notebook_to_prod.watch.estimate import Said, codes_of, complete, try_estimator
from notebook_to_prod.watch.estimated import EstimateRules, estimate_windows
from notebook_to_prod.watch.more_signals import estimate_signals

CLASSES = {2: ["early", "späte"], 3: ["early", "on time", "späte"]}


def world(rows: int, seed: int, classes: int, move: float = 0.0, flip: float = 0.0) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows whose truth depends on two columns; `move` moves rows, `flip` changes what is true."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"hour": random.normal(move, 1, rows), "place": random.choice(["a", "b", None], rows)})
    score = 1.5 * table.hour + (table.place == "b") + random.logistic(0, 1, rows)
    names = np.array(CLASSES[classes], dtype=object)
    true = names[np.digitize(score, [0] if classes == 2 else [-0.7, 0.9])]
    return table, np.where(random.random(rows) < flip, names[0], true)


def say(model: Any, table: pd.DataFrame, labels: np.ndarray | None = None) -> Said:
    matrix = table.assign(place=table.place.map({"a": 0, "b": 1}))
    return Said(table, Answers(model.predict(matrix), model.predict_proba(matrix), None, model.classes_), labels)


def fitted(classes: int, seed: int) -> Any:
    table, labels = world(2_000, seed, classes)
    return HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(
        table.assign(place=table.place.map({"a": 0, "b": 1})), labels
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_estimates_hold_while_only_rows_move(classes: int) -> None:
    model = fitted(classes, 811)
    tried = try_estimator(say(model, *world(1_600, 812, classes)), halvings=2, windows=10)
    held = []
    for number, move in enumerate(np.linspace(-1, 1, 9)):
        window = say(model, *world(500, 900 + number, classes, move))
        realised = tried.estimator.realised(window)
        held += [low <= realised[name] <= high for name, (_, low, high) in tried.estimate(window).items()]
    assert np.mean(held) >= 0.85, held
    assert all(each.coverage >= 0.8 and each.windows == 40 for each in tried.trials.values())


def test_a_change_of_the_truth_is_not_seen_and_that_is_said() -> None:
    model = fitted(2, 821)
    tried = try_estimator(say(model, *world(1_500, 822, 2)), halvings=2, windows=8)
    table, labels = world(1_000, 823, 2, flip=0.6)
    report = estimate_windows(tried, say(model, table))
    assert not report.dropped and "concept drift" in report.notes[0] and "concept drift" in report.shown().said.lower()
    assert tried.estimator.realised(say(model, table, labels))["accuracy"] < report.windows[0].metrics[0].interval[0]


def test_the_error_of_numbers_follows_the_rows() -> None:
    def delays(rows: int, seed: int, far: float = 0.0) -> tuple[pd.DataFrame, np.ndarray]:
        random = np.random.default_rng(seed)
        table = pd.DataFrame({"far": random.beta(2 + far, 4, rows), "hour": random.uniform(0, 24, rows)})
        return table, (10 * table.hour + random.normal(0, 1 + 20 * table.far)).to_numpy()

    table, target = delays(1_500, 831)
    model = RandomForestRegressor(30, min_samples_leaf=10, random_state=0).fit(table, target)
    tried = try_estimator(Said((other := delays(1_500, 832))[0], Answers(model.predict(other[0])), other[1]))
    report = []
    for number in range(6):
        table, target = delays(500, 840 + number, number / 2)
        realised = tried.estimator.realised(Said(table, Answers(model.predict(table)), target))
        said = tried.estimate(Said(table, Answers(model.predict(table))))
        report += [low <= realised[name] <= high for name, (_, low, high) in said.items()]
    assert np.mean(report) >= 0.8 and set(said) == {"mean_absolute_error", "root_mean_squared_error"}


def test_without_probabilities_accuracy_is_estimated_from_the_columns() -> None:
    model = fitted(3, 851)
    held, now = say(model, *world(1_500, 852, 3)), say(model, *world(600, 853, 3, 0.7))
    bare = [
        Said(each.table, Answers(each.answers.predictions, None, None, each.answers.classes), each.labels)
        for each in (held, now)
    ]
    tried = try_estimator(bare[0])
    _, low, high = tried.estimate(bare[1])["accuracy"]
    assert low <= tried.estimator.realised(bare[1])["accuracy"] <= high and [*tried.trials] == ["accuracy"]


def test_windows_signals_and_json() -> None:
    model = fitted(2, 861)
    tried = try_estimator(say(model, *world(1_200, 862, 2)), halvings=2, windows=8)
    parts = [world(300, 870 + day, 2, -0.2 if day < 3 else 0.0) for day in range(4)]
    times = pd.Series(pd.date_range("2026-03-01", periods=4, tz="UTC").repeat(300))
    said = say(model, pd.concat([each for each, _ in parts], ignore_index=True))
    report = estimate_windows(tried, said, times, "1d", EstimateRules(minimum=50), "flüge")
    assert [each.window for each in report.windows] == [f"2026-03-0{day}" for day in range(1, 5)]
    json.dumps(report.to_dict(), allow_nan=False)
    signals = estimate_signals(report, "2026-03-04T00:00:00+00:00")
    assert {each.kind for each in signals} >= {"performance.estimated_accuracy", "performance.estimated_roc_auc"}
    assert report.terminal_table().row_count == len(signals)
    few = estimate_windows(tried, said.at(np.arange(20)), None, None, EstimateRules(), "flüge")
    assert few.latest is None and not estimate_signals(few, "2026-03-04T00:00:00+00:00") and not few.dropped


def test_what_cannot_be_used_is_left_out_or_refused() -> None:
    classes = np.array([0, 1])
    assert codes_of(["0", 1.0, "1.0", None, "zwei"], classes).tolist() == [0, 1, 1, -1, -1]
    table = pd.DataFrame({"x": range(4)})
    chances = np.array([[0.5, 0.5], [np.nan, np.nan], [1, 0], [0, 1]])
    some = complete(Said(table, Answers(np.array([0, 1, 0, 1]), chances, None, classes), np.array([0, 1, 7, 1])))
    assert (some.rows, some.passed_over) == (2, 2)
    with pytest.raises(DataError, match="no row has an answer"):
        complete(Said(table, Answers(np.full(4, np.nan))))
    with pytest.raises(DataError, match="several outputs"):
        complete(Said(table, Answers(np.zeros((4, 2)))))
    with pytest.raises(DataError, match="too few"):
        try_estimator(Said(table, Answers(np.zeros(4)), np.zeros(4)))
    with pytest.raises(InputError, match="tolerance"):
        EstimateRules.from_table({"tolerence": 0.1})
    with pytest.raises(InputError):
        EstimateRules.from_table({"confidence": 2})


def test_the_same_rows_give_the_same_estimate() -> None:
    model = fitted(2, 881)
    held, now = say(model, *world(800, 882, 2)), say(model, *world(400, 883, 2))
    one, other = (try_estimator(held, seed=3, halvings=1, windows=6).estimate(now) for _ in range(2))
    assert one == other
