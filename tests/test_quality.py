"""Quality is told of known truth only: stable histories are quiet, harm is found, and late labels are never counted as wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as some
from notebooks import Project, live_predictor, once

from notebook_to_prod.errors import DataError
from notebook_to_prod.package.bundle import Bundle
from notebook_to_prod.package.gates.policy import FairnessPolicy, Policy
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.app import create_app
from notebook_to_prod.serve.log.compact import read_predictions
from notebook_to_prod.watch.calibration import calibrated
from notebook_to_prod.watch.estimate import codes_of
from notebook_to_prod.watch.fairness import fairness_of
from notebook_to_prod.watch.figures import compare, estimate
from notebook_to_prod.watch.ledger import Arrival, Ledger, class_numbers, ledger_of, open_ledger
from notebook_to_prod.watch.live import observed_of_log, open_log, watchable
from notebook_to_prod.watch.live_quality import live_quality
from notebook_to_prod.watch.quality import QualityReport, quality_of, quality_of_ledger
from notebook_to_prod.watch.rules import Rules
from notebook_to_prod.watch.windows import Length, cut, slices_without

CLASSES = ["včas", "pozdě"]
POLICY = Policy(resamples=100)
FAST = ("accuracy", "roc_auc", "log_loss", "brier_score_loss")
DAY = 86_400.0


# Histories


def history(
    seed: int,
    days: int = 14,
    rows: int = 300,
    flipped: Any = None,  # By day, the share of labels that come out the other way
    delay: float = 0.0,  # Days, the mean
    shift: float = 0.0,
) -> Ledger:
    """A classifier that is as good as its probabilities say, and labels that come late."""
    random = np.random.default_rng(seed)
    chance = random.beta(1.2 + shift, 2, days * rows)
    share = np.repeat([0.0 if flipped is None else flipped(day) for day in range(days)], rows)
    true = (random.random(len(chance)) < chance) ^ (random.random(len(chance)) < share)
    times = pd.Series(pd.date_range("2026-01-01", periods=days, tz="UTC").repeat(rows))
    times += pd.to_timedelta(np.tile(np.arange(rows) * (DAY / rows), days), unit="s")
    came = times + pd.to_timedelta(random.exponential(delay * DAY + 1, len(times)), unit="s")
    known = (came <= times.max()).to_numpy() | (delay == 0)
    table = pd.DataFrame(
        {"carrier": random.choice(["AA", "UA"], len(chance)), "number": random.normal(size=len(chance))}
    )
    labels = [CLASSES[each] if there else None for each, there in zip(true.astype(int), known, strict=True)]
    chances = np.column_stack([1 - chance, chance])
    made = ledger_of([CLASSES[each] for each in (chance > 0.5).astype(int)], labels, CLASSES, chances.tolist(), table)
    return replace(made, times=times, asked=times, came=came.where(known))


def evaluated(seed: int, rows: int = 2_000, metrics: tuple[str, ...] = FAST) -> dict[str, Any]:
    """What a bundle says of its held-out rows."""
    held_out = history(seed, 1, rows)
    found = {name: estimate(name, held_out.answers, held_out.truth, POLICY) for name in metrics}
    told = {
        name: {"number": each.number, "interval": each.interval, "greater_is_better": not name.endswith("_loss")}
        for name, each in found.items()
    }
    return {"metrics": told, "primary": "accuracy"}


def told_of(ledger: Ledger, seed: int, rules: Rules | None = None, **more: Any) -> QualityReport:
    return quality_of_ledger(ledger, evaluated(seed + 10_000), rules, policy=POLICY, **more)


def often(few: int, many: int) -> pytest.MarkDecorator:
    """How many histories a test draws: `few` in every run, `many` among the slow ones."""
    return pytest.mark.parametrize("drawn", [few, pytest.param(many, marks=pytest.mark.slow)])


@often(15, 60)
def test_stable_histories_are_quiet(drawn: int) -> None:
    """Each with its own held-out sample, whose own error is part of what a comparison has to stand."""
    firings, windows, alarms = 0, 0, []
    for seed in range(drawn):
        report = told_of(history(seed), seed)
        windows += sum(each.judged for each in report.whole)
        firings += sum(figure.dropped for each in report.whole for figure in each.figures)
        alarms += [seed] if report.findings else []
    print(f"{len(alarms)} of {drawn} histories with an alarm; {firings} metrics dropped in {windows} windows")
    assert windows == drawn * 14 and len(alarms) <= 1 and firings <= windows * 0.02


@often(5, 10)
@pytest.mark.parametrize("kind", ["flips", "probabilities"])
def test_a_change_of_concept_is_found(kind: str, drawn: int) -> None:
    missed, delays = [], []
    for seed in range(drawn):
        ledger = history(seed, flipped=(lambda day: 0.25 * (day >= 5)) if kind == "flips" else None)
        if kind == "probabilities":  # the right answers, with probabilities that are far too sure
            assert ledger.times is not None and ledger.answers.probabilities is not None
            late = (ledger.times >= pd.Timestamp("2026-01-06", tz="UTC")).to_numpy()
            chances = ledger.answers.probabilities.copy()
            odds = (chances[late] / (1 - chances[late])) ** 4
            chances[late] = odds / (1 + odds)
            ledger = replace(ledger, answers=replace(ledger.answers, probabilities=chances))
        report = told_of(ledger, seed)
        found = [each for each in report.active if each.column == ("accuracy" if kind == "flips" else "log_loss")]
        missed += [] if found else [seed]
        delays += [int(each.noticed[-2:]) - 6 for each in found]
        assert report.dropped and all(each.began >= "2026-01-06" for each in report.findings)
        if kind == "probabilities":
            assert "calibration" in {each.column for each in report.active}
            assert "roc_auc" not in {each.column for each in report.findings}
    print(f"{len(missed)} of {drawn} not by that metric, noticed after {np.mean(delays):.1f} windows (4 at least)")
    assert len(missed) <= 0.2 * drawn and np.mean(delays) < 6


# Labels that come late


def test_late_labels_are_never_counted_as_wrong() -> None:
    whole, late = history(1), history(1, delay=4)
    assert whole.labelled.all() and 0.2 < late.labelled.mean() < 0.8
    full, part = told_of(whole, 1), told_of(late, 1)
    assert not part.findings
    for one, other in zip(full.whole, part.whole, strict=True):
        known = other.labels
        assert (
            known.labelled
            == late.at(cut(len(late), Length.parse("1d"), late.times)[part.whole.index(other)].at).labelled.sum()
        )
        figure, before = other.figure("accuracy"), one.figure("accuracy")
        if figure is not None and before is not None and before.interval:
            assert abs(figure.number - before.number) < 0.15
    counted = sum(each.labels.labelled for each in part.whole)
    assert counted == part.labelled == late.labelled.sum() < part.answers == len(late)


def test_the_same_labels_in_any_order_say_the_same() -> None:
    ledger = history(2, days=5)
    order = np.random.default_rng(0).permutation(len(ledger))
    one, other = told_of(ledger, 2).to_dict(), told_of(ledger.at(order), 2).to_dict()
    for before, after in zip(one["windows"], other["windows"], strict=True):
        accuracy = [
            next(each for each in window["metrics"] if each["metric"] == "accuracy") for window in (before, after)
        ]
        assert accuracy[0] == accuracy[1] and before["labelled"] == after["labelled"]


@pytest.mark.parametrize("delay", ["", "6d"])
def test_immature_windows_are_shown_and_not_judged(delay: str) -> None:
    """The labels that come first are of wrong answers alone, such as complaints: a window that waits must not be judged by them."""
    ledger = history(3, days=20, delay=1)
    wrong = ledger.answers.predictions != ledger.truth
    assert ledger.times is not None and ledger.asked is not None
    age = (ledger.times.max() - ledger.times).dt.total_seconds().to_numpy() / DAY
    known = wrong | (age > 5)
    taken = np.where(wrong, 3_600.0, 5 * DAY)
    came = ledger.asked + pd.to_timedelta(taken, unit="s")
    biased = replace(ledger, labelled=known, came=came.where(known))
    report = told_of(biased, 3, Rules(label_delay=delay, minimum=30))
    last = report.whole[-3]
    figure = last.figure("accuracy")
    assert figure is not None and figure.number < 0.1 and not figure.judged and not last.judged and last.labels.why
    assert not report.findings and report.whole[5].judged
    assert last.labels.selection == "" or "were predicted" in last.labels.selection
    unknown = told_of(replace(biased, came=None), 3, Rules(minimum=30))
    assert not unknown.findings and "of the oldest 100%" in unknown.whole[-1].labels.why and unknown.whole[5].judged
    assert any("when labels came is not known" in each for each in unknown.notes)
    hasty = told_of(replace(biased, came=None, asked=None, times=None), 3, Rules(minimum=30), window="300")
    assert hasty.dropped  # what it would have said without knowing of delays


def test_labels_that_may_take_longer_than_the_log_are_noted() -> None:
    """Three labels of ten come at once, and the others after a month: after ten days nobody can know, after forty the log does."""
    for days in (10, 40):
        ledger = history(7, days=days, rows=100)
        assert ledger.times is not None
        taken = np.where(np.random.default_rng(7).random(len(ledger)) < 0.3, 600.0, 30 * DAY)
        came = ledger.times + pd.to_timedelta(taken, unit="s")
        known = (came <= ledger.times.max()).to_numpy()
        late = replace(ledger, labelled=known, came=came.where(known))
        report = told_of(late, 7, Rules(minimum=20), now=ledger.times.max().to_pydatetime())
        assert any("label_delay" in each for each in report.notes) == (days == 10)
        assert days == 10 or (report.whole[0].judged and not any(each.judged for each in report.whole[15:]))
        assert not told_of(late, 7, Rules(minimum=20, label_delay="31d")).notes
    some = replace(late, labelled=np.random.default_rng(8).random(len(late)) < 0.4, came=None)
    assert all(each.judged for each in told_of(some, 7, Rules(minimum=20)).whole)  # few, and as many as ever


def test_delays_are_learned_as_they_are() -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        asked, taken = random.uniform(0, 30 * DAY, 5_000), random.gamma(3, 2 * DAY, 5_000)
        seen = np.where((asked + taken <= 30 * DAY) & (random.random(5_000) < 0.5), taken, np.nan)  # half never come
        arrival = Arrival.learn(seen, 30 * DAY - asked)
        assert arrival is not None and (np.diff(arrival.shares) >= -1e-12).all()
        for days in (2, 5, 10):
            assert abs(arrival.share(np.array([days * DAY]))[0] - np.mean(taken <= days * DAY)) < 0.06
    assert Arrival.learn(np.full(100, np.nan), np.full(100, 5.0)) is None
    at_once = Arrival.learn(np.zeros(100), np.full(100, 5.0))
    assert at_once is not None and at_once.share(np.array([0.0, 5.0])).tolist() == [1, 1]


# Odd labels

CELLS = some.one_of(
    some.none(), some.just(float("nan")), some.just(""), some.sampled_from([*CLASSES, "žádná", 1, True])
)


@given(some.lists(some.tuples(some.sampled_from(CLASSES), CELLS), max_size=30))
def test_only_cells_that_hold_something_are_labels(rows: list[tuple[str, Any]]) -> None:
    ledger = ledger_of([said for said, _ in rows], [label for _, label in rows], CLASSES)
    told = [not (label is None or label != label or label == "") for _, label in rows]
    assert ledger.labelled.tolist() == told
    right = (ledger.answers.predictions == ledger.truth)[ledger.labelled].sum() if rows else 0
    assert right == sum(said == label for said, label in rows)


def test_labels_mean_the_class_that_they_write() -> None:
    assert class_numbers(["1", 1, 1.0, True, np.int64(1), "1.0", None, "2"], [0, 1]).tolist() == [
        1,
        1,
        1,
        1,
        1,
        1,
        -1,
        2,
    ]
    assert class_numbers(["TRUE", "false", pd.NA], [False, True]).tolist() == [1, 0, -1]
    assert class_numbers(["", "b"], ["", "b"]).tolist() == [0, 1]
    odd = ["²", "1.0", -1, "-1", "NA", None, True]
    assert codes_of(odd, [-1, 1]).tolist() == [-1, 1, 0, 0, -1, -1, 1]  # of estimates, in the same way
    assert codes_of(np.array(["a", "x"]), np.array(["a", "b"])).tolist() == [0, -1]
    assert class_numbers(["NA", "NaN", "null", " ", "<NA>", "None", "b"], ["a", "b"]).tolist() == [-1] * 6 + [1]
    assert class_numbers(["NA", "null"], ["NA", "b"]).tolist() == [0, -1]  # the code of Namibia, and no label


def test_labels_without_a_value_leave_windows_alone() -> None:
    empty = replace(history(4, days=3), labelled=np.zeros(900, dtype=bool))
    report = told_of(empty, 4)
    assert not report.dropped and report.latest is None
    assert report.sentence == "no window has enough labels yet: 0 of 900 answers have one"
    json.dumps(report.to_dict(), allow_nan=False)
    one_class = history(4, days=3)
    one_class = replace(one_class, truth=np.ones(900, dtype="int64"))
    found = told_of(one_class, 4).whole[0].figure("roc_auc")
    assert found is not None and np.isnan(found.number) and not found.judged
    numbers = ledger_of([1.0, 2.0] * 100, [1.0, np.nan] * 100)
    plain = quality_of_ledger(numbers, {}, Rules(minimum=50), window=None)
    assert plain.labelled == 100 and plain.whole[0].figures[0].number == 0 and not plain.dropped
    json.dumps(plain.to_dict(), allow_nan=False)


def test_what_is_worse_in_one_slice_is_found_there() -> None:
    ledger = history(5, flipped=lambda day: 0.0)
    harmed = (ledger.table["carrier"] == "AA").to_numpy() & (np.arange(len(ledger)) >= 7 * 300)
    flipped = harmed & (np.random.default_rng(0).random(len(ledger)) < 0.35)
    ledger = replace(ledger, truth=ledger.truth ^ flipped)
    report = told_of(ledger, 5, Rules(slices=("carrier",), minimum=50), held_out=history(99, 1, 2_000))
    assert {each.slice for each in report.active if each.column == "accuracy"} >= {"carrier=AA"}
    assert not [each for each in report.findings if each.slice == "carrier=UA"]
    blind = told_of(ledger, 5, Rules(slices=("carrier",), minimum=50))
    assert not [each for each in blind.findings if each.slice] and any("slices" in each for each in blind.notes)


def test_slices_of_columns_that_the_log_does_not_keep_are_noted() -> None:
    ledger = history(6, days=2)
    asked = ("carrier", "carrier=AA", "carrier == 'AA' and number > 0", "number > 0")
    kept = replace(ledger, table=ledger.table[["number"]])
    report = told_of(kept, 6, Rules(slices=asked, minimum=50), held_out=history(99, 1, 2_000))
    assert {each.slice for each in report.windows} == {"", "number > 0"}
    assert any(all(each in note for each in asked[:3]) for note in report.notes)
    assert slices_without(("note == 'carrier'", "carriers=AA", "carrier_id > 1"), ["carrier"])[1] == ()


def test_watch_and_retraining_go_on_without_a_column_that_slices_need(live: Project) -> None:
    bundle, predictions = log_of(live)
    less = predictions.drop(columns=[each for each in predictions.columns if each.endswith("carrier")])
    rules = Rules(slices=("carrier", "delay > 0"), minimum=50, time="when")
    for store in (None, Store(live.home)):
        found = live_quality(bundle, less, rules, POLICY, store=store)
        assert found.quality is not None and {each.slice for each in found.quality.windows} == {"", "delay > 0"}
        assert any("slices carrier" in each for each in found.notes)
    usable, notes = watchable(rules, bundle, observed_of_log(bundle, less))
    assert usable.slices == ("delay > 0",) and any("slices carrier" in each for each in notes)
    assert watchable(rules, bundle, observed_of_log(bundle, predictions), ["delay"])[0].slices == ("carrier",)


# The numbers


def test_differences_cover_the_truth() -> None:
    """A window and training from one source: the interval of their difference holds 0 in about 95 of 100."""
    held = {name: 0 for name in FAST}
    for seed in range(150):
        trained, now = evaluated(seed + 500, 1_000)["metrics"], history(seed, 1, 200)
        for name in FAST:
            found = compare(name, estimate(name, now.answers, now.truth, POLICY), trained[name], Rules())
            assert found.worse_interval
            held[name] += found.worse_interval[0] <= 0 <= found.worse_interval[1]
    print({name: round(count / 150, 3) for name, count in held.items()})
    assert all(0.9 <= count / 150 <= 0.995 for count in held.values())


def test_regression_is_held_against_its_errors() -> None:
    random = np.random.default_rng(6)
    true = random.normal(20, 10, 5_600)
    noise = random.normal(0, 4, 5_600) * np.where(np.arange(5_600) >= 2_800, 1.5, 1.0)
    ledger = ledger_of((true + noise).tolist(), true.tolist())
    times = pd.Series(pd.date_range("2026-01-01", periods=14, tz="UTC").repeat(400))
    ledger = replace(ledger, times=times)
    names = ("r2", "mean_absolute_error", "root_mean_squared_error")
    trained = {}
    for name in names:
        was = estimate(name, ledger.answers.at(slice(0, 2_800)), ledger.truth[:2_800], POLICY)
        trained[name] = {"number": was.number, "interval": was.interval, "greater_is_better": name == "r2"}
    report = quality_of_ledger(ledger, {"metrics": trained, "primary": "r2"}, policy=POLICY)
    assert {each.column for each in report.active} == {"mean_absolute_error", "root_mean_squared_error"}
    assert {each.began for each in report.active} == {"2026-01-08"} and "dropped for 7 windows" in report.sentence
    asked = quality_of_ledger(ledger, {"metrics": trained}, Rules(metrics={"r2": 0.05}), policy=POLICY)
    assert "r2" in {each.column for each in asked.active}


def test_calibration_is_what_it_should_be() -> None:
    covered, false = 0, 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        chance = random.beta(2, 2, 400)
        found = calibrated(chance, random.random(400) < chance)
        assert found and found.slope and found.large
        covered += found.slope[1] <= 1 <= found.slope[2] and found.large[1] <= 0 <= found.large[2]
        false += found.p <= 0.05
    assert covered >= 33 and false <= 6
    assert calibrated(np.array([]), np.array([], dtype=bool)) is None


# Groups


def treated(seed: int, harmed: float = 0.0, days: int = 14, rows: int = 400) -> tuple[Ledger, pd.DataFrame]:
    random = np.random.default_rng(seed)
    times = pd.Series(pd.date_range("2026-01-01", periods=days, tz="UTC").repeat(rows))
    group = random.choice(["žena", "muž", "jiné"], len(times), p=[0.49, 0.49, 0.02])
    true = random.random(len(times)) < 0.5
    said = true ^ (random.random(len(times)) < 0.15)
    late = np.arange(len(times)) >= len(times) // 2
    said &= ~((group == "žena") & late & (random.random(len(times)) < harmed))
    ids = pd.DataFrame({"id": [f"{number:05}" for number in range(len(times))]})
    ledger = ledger_of(said.tolist(), true.tolist(), [False, True], others=ids)
    return replace(ledger, times=times, asked=times, came=times), ids.assign(sex=group)


FAIR = Policy(fairness=FairnessPolicy(attributes=("sex",)))


@often(6, 20)
def test_equal_groups_are_left_in_peace_and_a_harmed_one_is_found(drawn: int) -> None:
    alarms = []
    for seed in range(drawn):
        ledger, sensitive = treated(seed)
        report = fairness_of(ledger, FAIR, sensitive=sensitive)
        assert report and report.windows[0].small.keys() == {"jiné"}
        alarms += [seed] if report.findings else []
    print(f"{len(alarms)} of {drawn} fair histories with an alarm")
    assert len(alarms) <= 1
    for seed in range(drawn // 2):
        ledger, sensitive = treated(seed, 0.55)
        report = fairness_of(ledger, FAIR, sensitive=sensitive.sample(frac=1, random_state=seed))
        assert report and "true positive rate difference" in {each.check for each in report.active}
        worst = report.latest("sex", "true positive rate difference")
        assert worst and worst.lowest == "žena" and worst.interval[0] <= worst.number <= worst.interval[1]
        json.dumps(report.to_dict(), allow_nan=False)


def test_selection_needs_no_labels_and_errors_do() -> None:
    ledger, sensitive = treated(1, 0.6)
    blind = fairness_of(replace(ledger, labelled=np.zeros(len(ledger), dtype=bool)), FAIR, sensitive=sensitive)
    assert blind and {each.check for each in blind.active} == {"selection rate difference", "selection rate ratio"}
    missing = fairness_of(ledger, FAIR)
    assert missing and not missing.windows and "neither the log" in missing.sentence
    with pytest.raises(DataError, match="id"):
        fairness_of(ledger, FAIR, sensitive=pd.DataFrame({"sex": ["a"]}))


# A real log


def served(project: Project) -> None:
    """A model of delays that is live, and eight days of the past replayed into its log; from the fifth on truth has changed."""
    project.notebook(
        "train.ipynb",
        {
            "parameters": "seed = 1",
            "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
            "data": (
                "import numpy as np\nimport pandas as pd\n\nrandom = np.random.default_rng(seed)\n"
                "X = pd.DataFrame({'delay': random.normal(0, 1, 3000), 'carrier': random.choice(['AA', 'UA'], 3000)})\n"
                "X['when'] = pd.date_range('2025-01-01', periods=3000, freq='h')\n"
                "y = np.where(random.random(3000) < 1 / (1 + np.exp(-2 * X['delay'])), 'pozdě', 'včas')"
            ),
            "fit": (
                "from sklearn.compose import make_column_transformer\nfrom sklearn.linear_model import LogisticRegression\n"
                "from sklearn.pipeline import make_pipeline\n\n"
                "model = make_pipeline(make_column_transformer(('passthrough', ['delay'])), LogisticRegression()).fit(X[:1500], y[:1500])"
            ),
            "export": "run.export(model, X[:1500], y[:1500], X[1500:], y[1500:])",
        },
    )
    predictor = live_predictor(project)
    settings = {"log": {"folder": str(project.home / "predictions/flights")}}
    random, kept = np.random.default_rng(2), []
    with TestClient(create_app(predictor, settings=settings)) as client:
        for day in range(8):
            waits, carriers = random.normal(0, 1, 150), random.choice(["AA", "UA"], 150)
            when = [
                (pd.Timestamp("2026-03-01") + pd.Timedelta(days=day, minutes=minute)).isoformat()
                for minute in range(150)
            ]
            rows = [
                {"delay": float(wait), "carrier": str(carrier), "when": moment}
                for wait, carrier, moment in zip(waits, carriers, when, strict=True)
            ]
            answer = client.post("/predict", json=rows, headers={"x-request-id": f"{day:03}"})
            assert answer.status_code == 200, answer.text
            odds = 2 * waits * (-1 if day >= 4 else 1)
            true = np.where(random.random(150) < 1 / (1 + np.exp(-odds)), "pozdě", "včas")
            kept += [(f"{day:03}", row, str(label)) for row, label in enumerate(true)]
            if day < 7:  # the labels of the last day are still to come
                some = [{"id": id, "row": row, "label": label} for id, row, label in kept[-150:] if row < 120]
                assert client.post("/feedback", json=some).status_code == 200
    pd.DataFrame(kept, columns=["id", "row", "label"]).to_csv(project.folder / "labels.csv", index=False)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model has been asked and told; who changes it copies it."""
    return once(tmp_path_factory, "live-quality", served)


def log_of(project: Project) -> tuple[Bundle, pd.DataFrame]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        registry = Registry(Store(project.home))
        return registry.bundle(registry.resolve("flights")), read_predictions(
            open_log(Store(project.home), "flights")[0]
        )


def test_a_log_knows_when_labels_came(live: Project) -> None:
    bundle, predictions = log_of(live)
    ledger = open_ledger(bundle, predictions)
    assert (len(ledger), int(ledger.labelled.sum())) == (1_200, 7 * 120)
    assert np.isnan(ledger.delays[~ledger.labelled]).all() and (ledger.delays[ledger.labelled] >= 0).all()
    again = pd.concat([predictions, predictions.tail(150)], ignore_index=True)
    assert len(open_ledger(bundle, again)) == 1_200
    stood = predictions.assign(fallback=["static" if each < 300 else "" for each in range(1_200)])
    assert len(open_ledger(bundle, stood)) == 900 and "stood in" in open_ledger(bundle, stood).notes[0]
    other = predictions.assign(bundle=["sha256:other" if each < 300 else bundle.digest for each in range(1_200)])
    assert len(open_ledger(bundle, other)) == 900
    with pytest.raises(DataError):
        open_ledger(bundle, predictions.assign(bundle="sha256:other"))
    report = quality_of(bundle, predictions, Rules(time="when", minimum=50, persist=2, of=3))
    assert report.dropped and [each.window for each in report.whole] == [f"2026-03-0{day}" for day in range(1, 9)]
    assert "UTC" in str(ledger.asked.dtype) if ledger.asked is not None else False


def test_labels_of_a_file_come_before_those_of_the_log_and_leave_the_others(live: Project) -> None:
    bundle, predictions = log_of(live)
    told = open_ledger(bundle, predictions)
    file = pd.DataFrame({"id": ["007", "000", "000"], "row": [0, 0, 1], "label": ["pozdě", "", "none of them"]})
    merged = open_ledger(bundle, predictions, labels=file)
    place = {(id, row): at for at, (id, row) in enumerate(zip(predictions["id"], predictions["row"], strict=True))}
    new, empty, changed = (place[each] for each in (("007", 0), ("000", 0), ("000", 1)))
    assert merged.labelled.sum() == told.labelled.sum() + 1 and merged.labelled[new]
    assert merged.truth[empty] == told.truth[empty] and merged.truth[changed] == 2
    assert np.isfinite(merged.delays).sum() == 7 * 120 - 1
    assert "839 labels are those that were known before, which the file does not have" in merged.notes


def test_watch_tells_quality_of_a_replayed_log(live: Project, project: Project) -> None:
    live.copy_to(project)
    settings = project.folder / "pyproject.toml"
    rules = '[tool.n2p.watch]\ntime = "when"\nminimum = 50\njoint = false\nignore = ["when", "delay"]\npersist = 2\nof = 3\n'
    settings.write_text(rules)
    page = project.folder / "watch.html"
    done = project.n2p("watch", "flights", "--html", page, "--json")
    found = json.loads(done.stdout)
    assert done.code == 1, done
    assert [each["window"] for each in found["windows"]] == [f"2026-03-0{day}" for day in range(1, 9)]
    quality = found["quality"]
    assert quality["dropped"] and (quality["answers"], quality["labelled"]) == (1_200, 840)
    assert {each["column"] for each in quality["findings"]} >= {"accuracy", "roc_auc", "log_loss"}
    assert {each["began"] for each in quality["findings"]} == {"2026-03-05"}
    assert quality["windows"][-1]["labelled"] == 0 and not quality["windows"][-1]["judged"]
    html = page.read_text(encoding="utf-8")
    lead = html.split('<p class="lead">')[1]
    assert "Labels by window" in html and "dropped for 3 windows" in lead[:120], lead[:300]  # the worst first
    assert "windows of 1d, by their first day (UTC)" in html and '<div class="scroll"><table>' in html
    text = project.n2p("watch", "flights").stdout.splitlines()[-1]
    assert text.startswith("quality") and "at training: dropped for 3 windows" in text, text
    assert any("label_delay" in each for each in quality["notes"])
    calm = project.n2p("watch", "flights", "--until", "2026-03-04", "--json")
    assert calm.code == 0 and "no drop in 4 windows" in json.loads(calm.stdout)["quality"]["said"], calm
    settings.write_text(rules + 'label_delay = "30d"\n')
    waiting = project.n2p("watch", "flights", "--json")
    assert waiting.code == 0, waiting
    assert json.loads(waiting.stdout)["quality"]["said"].startswith("no window has enough labels yet: 840 of 1,200")


def test_a_log_that_exists_is_replayed_for_rules(live: Project, project: Project) -> None:
    live.copy_to(project)
    settings = project.folder / "pyproject.toml"
    rules = '[tool.n2p.watch]\ntime = "when"\nminimum = 50\njoint = false\nignore = ["when", "delay"]\npersist = 2\nof = 3\n'
    rules += '[[tool.n2p.rules]]\nname = "quality"\non = ["performance.accuracy"]\nrepeat = "never"\n'
    settings.write_text(rules)
    (project.folder / "incidents.csv").write_text("began,ended\n2026-03-05T00:00:00,2026-03-08T23:59:00\n")
    done = project.n2p("alerts", "backtest", "flights", "--replay", "--incidents", "incidents.csv", "--json")
    found = json.loads(done.stdout)
    (quality,) = found["rules"]
    assert (found["began"][:10], found["ended"][:10]) == ("2026-03-01", "2026-03-08")
    assert (quality["windows"], quality["messages"], quality["false_alarms"], quality["found"]) == (7, 1, 0, 1), (
        quality
    )  # the eighth day has no labels
    assert 86_400 < quality["delay"] < 2 * 86_400 and "replay: 8/8" in done.stderr  # at the end of the second bad day
    settings.write_text(rules.replace("persist = 2", 'label_delay = "1d"\npersist = 2'))
    later = project.n2p("alerts", "backtest", "flights", "--replay", "--incidents", "incidents.csv", "--json")
    assert json.loads(later.stdout)["rules"][0]["delay"] == quality["delay"] + 86_400, later


def test_history_in_tables_is_replayed_as_the_log_is(live: Project, project: Project) -> None:
    live.copy_to(project)
    rules = '[tool.n2p.watch]\nminimum = 50\njoint = false\nignore = ["when", "delay"]\npersist = 2\nof = 3\n'
    rules += '[[tool.n2p.rules]]\nname = "quality"\non = ["performance.accuracy"]\nrepeat = "never"\n'
    (project.folder / "pyproject.toml").write_text(rules)
    (project.folder / "incidents.csv").write_text("began,ended\n2026-03-05T00:00:00,2026-03-08T23:59:00\n")
    _, predictions = log_of(project)
    answers = predictions[predictions["time"].notna()]
    answers.drop(columns=["label", "label_time"]).to_parquet(project.folder / "answers.parquet")
    known = answers[answers["label"].notna()]
    known[["id", "row", "label"]].to_csv(project.folder / "known.csv", index=False)
    shutil.rmtree(project.home / "predictions")

    def backtest(*arguments: Any) -> Any:
        return project.n2p("alerts", "backtest", "flights", "--incidents", "incidents.csv", "--json", *arguments)

    tables = ("--data", "answers.parquet", "--labels", "known.csv")
    done = backtest("--replay", *tables, "--time", "when")
    (quality,) = json.loads(done.stdout)["rules"]
    told = [quality[each] for each in ("windows", "messages", "false_alarms", "found")]
    assert told == [7, 1, 0, 1] and 86_400 < quality["delay"] < 2 * 86_400, quality  # as of the log
    answers.rename(columns={"label_time": "when_told"}).to_parquet(project.folder / "both.parquet")
    both = json.loads(backtest("--replay", "--data", "both.parquet", "--time", "when").stdout)
    assert both["rules"] == [quality], "labels in the table itself"
    unlabelled = json.loads(backtest("--replay", "--data", "answers.parquet", "--time", "when").stdout)
    assert unlabelled["rules"][0]["windows"] == 0
    for arguments, what in (
        (tables, "--data says what --replay looks at"),
        (("--replay", "--data", "untimed.csv"), "the times of the rows are not known"),
    ):
        pd.DataFrame({"delay": [0.1, 0.2], "carrier": "AA", "when": "2026-03-01"}).to_csv(
            project.folder / "untimed.csv"
        )
        refused = backtest(*arguments)
        assert (refused.code, refused.error["what"]) == (2, what)


def test_watch_takes_labels_and_groups_from_files(live: Project, project: Project) -> None:
    live.copy_to(project)
    rules = '[tool.n2p.watch]\ntime = "when"\nminimum = 50\njoint = false\npersist = 2\nof = 3\n'
    gates = '[tool.n2p.gates.fairness]\nattributes = ["carrier", "sex"]\nmin_group = 40\n'
    (project.folder / "pyproject.toml").write_text(rules + gates, encoding="utf-8")
    sex = ["žena" if row % 2 else "muž" for _ in range(8) for row in range(150)]
    ids = pd.read_csv(project.folder / "labels.csv", dtype={"id": str})[["id", "row"]]
    ids.assign(sex=sex).to_csv(project.folder / "groups.csv", index=False)
    done = project.n2p("watch", "flights", "--labels", "labels.csv", "--groups", "groups.csv", "--json")
    found = json.loads(done.stdout)
    assert done.code == 1 and found["quality"]["labelled"] == 1_200, done
    assert {each["attribute"] for each in found["fairness"]["windows"]} == {"carrier", "sex"}
    assert not found["fairness"]["unfair"]
    _, predictions = log_of(project)
    predictions[predictions["time"].notna()].drop(columns=["label", "label_time"]).to_parquet(
        project.folder / "answers.parquet"
    )
    table = project.n2p(
        "watch", "flights", "--data", "answers.parquet", "--labels", "labels.csv", "--time", "when", "--json"
    )
    assert table.code == 1 and json.loads(table.stdout)["quality"]["dropped"], table
    plain = project.n2p("watch", "flights", "--data", "answers.parquet", "--time", "when", "--json")
    assert json.loads(plain.stdout)["quality"] is None
    (project.folder / "wrong.csv").write_text("id,truth\n1,2\n")
    for arguments, what in (
        (("--labels", "wrong.csv"), "no column 'label'"),
        (("--time", "wen"), "no column 'wen'"),
        (("--time", "delay"), "numbers, not times"),
    ):
        wrong = project.n2p("watch", "flights", *arguments, "--json")
        assert wrong.code == 2 and what in json.loads(wrong.stdout)["error"]["what"], wrong


def test_diagnose_and_the_report_cut_windows_as_watch_does(live: Project, project: Project) -> None:
    live.copy_to(project)
    (project.folder / "kpis.py").write_text("def rows(table):\n    return len(table)\n")
    settings = '[tool.n2p.watch]\ntime = "when"\nminimum = 50\n[tool.n2p.kpis]\nrows = "kpis.py:rows"\n'
    (project.folder / "pyproject.toml").write_text(settings)
    done = project.n2p("diagnose", "flights", "--window", "1d", "--json")
    told = {each["window"]: each["rows"] for each in json.loads(done.stdout)["kpis"]["values"]}
    assert told == {f"2026-03-0{day}": 150 for day in range(1, 9)}, done
    some = project.n2p("diagnose", "flights", "--since", "2026-03-02", "--until", "2026-03-03", "--json")
    assert [each["rows"] for each in json.loads(some.stdout)["kpis"]["values"]] == [300], some
    notebook = Path(__file__).parents[1] / "nbs/examples/monitoring.ipynb"
    options = ("-p", "model", "flights", "-p", "since", "2026-03-02", "-p", "until", "2026-03-07")
    ran = project.papermill("--no-progress-bar", notebook, "report.ipynb", *options)
    assert ran.code == 0, ran.stderr[-3000:]
    report = (project.folder / "report.ipynb").read_text("utf-8")
    assert "6 of 1d" in report and "900" in report
    (project.folder / "pyproject.toml").write_text(settings.replace("minimum = 50", 'minimum = 50\nlabel_delay = "3d"'))
    ran = project.papermill("--no-progress-bar", notebook, "report.ipynb", *options)
    cells = json.loads((project.folder / "report.ipynb").read_text("utf-8"))["cells"]
    (quality,) = (json.dumps(each["outputs"]) for each in cells if each["id"] == "quality")
    waiting = [f"2026-03-0{day} is not judged: its answers are younger than 3d" in quality for day in range(2, 8)]
    assert waiting == [False, False, False, True, True, True], quality[:2000]


def test_watch_takes_what_batch_has_written(live: Project, project: Project) -> None:
    live.copy_to(project)
    random = np.random.default_rng(5)
    rows = pd.DataFrame({"delay": random.normal(0, 1, 300), "carrier": "AA", "when": "2026-03-01T00:00:00"})
    rows.to_csv(project.folder / "rows.csv", index=False)
    done = project.n2p("batch", "flights", "rows.csv", "scored.csv", "--json")
    assert done.code == 0, done
    scored = pd.read_csv(project.folder / "scored.csv")
    assert {"prediction", "probability pozdě", "probability včas"} <= {*scored.columns}
    true = np.where(random.random(300) < scored["probability pozdě"], "pozdě", "včas")
    scored.assign(label=true).to_csv(project.folder / "true.csv", index=False)
    found = json.loads(project.n2p("watch", "flights", "--data", "true.csv", "--window", "all", "--json").stdout)
    told = {each["metric"]: each["number"] for each in found["quality"]["windows"][0]["metrics"]}
    assert all(told[each] is not None for each in ("roc_auc", "log_loss")), told
    watched = {each["column"] for each in found["windows"][0]["columns"]}
    assert {"probability pozdě", "probability včas"} <= watched, watched
