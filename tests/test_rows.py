"""The functions that plans derive for one row and a few answer as the steps do, to the last bit, or leave the rows to them."""

from __future__ import annotations

import gc
import io
import json
import weakref
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pipelines import categorical_boosting, flights, prepared, targets
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from notebook_to_prod.package.compile import trees
from notebook_to_prod.package.compile.adversary import border_rows, mixed_rows, special_values
from notebook_to_prod.package.compile.choose import choose_engines, compile_exact
from notebook_to_prod.package.compile.fused import FusedForest
from notebook_to_prod.package.compile.numeric import Scale
from notebook_to_prod.package.compile.parity import prove_parity
from notebook_to_prod.package.compile.plan import Plan, columns_of, compile_pipeline, rows_of
from notebook_to_prod.package.compile.step import Refused
from notebook_to_prod.package.compile.walk import has_numba

FLIGHTS = flights(200)
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "forest": (lambda: prepared(RandomForestClassifier(12, random_state=0)), "two"),
    "forest, three classes": (lambda: prepared(RandomForestClassifier(40, random_state=0)), "three"),
    "forest, number": (lambda: prepared(RandomForestRegressor(12, random_state=0)), "number"),
    "tree": (lambda: prepared(DecisionTreeClassifier(random_state=0)), "three"),
    "boosting": (lambda: prepared(GradientBoostingClassifier(n_estimators=20, random_state=0)), "two"),
    "boosting, three classes": (lambda: prepared(GradientBoostingClassifier(n_estimators=10, random_state=0)), "three"),
    "boosting, number": (lambda: prepared(GradientBoostingRegressor(n_estimators=20, random_state=0)), "number"),
    "histograms": (lambda: prepared(HistGradientBoostingClassifier(max_iter=20, random_state=0)), "two"),
    "histograms of categories": (
        lambda: categorical_boosting(
            HistGradientBoostingClassifier(max_iter=10, categorical_features=[0, 1, 2], random_state=0)
        ),
        "three",
    ),
    "histograms, positive": (
        lambda: prepared(HistGradientBoostingRegressor(loss="poisson", max_iter=20, random_state=0)),
        "positive",
    ),
    "logistic": (lambda: prepared(LogisticRegression(max_iter=300)), "two"),
    "logistic, three classes": (lambda: prepared(LogisticRegression(max_iter=300)), "three"),
    "ridge": (lambda: prepared(Ridge()), "number"),
    "neighbours": (lambda: prepared(KNeighborsClassifier()), "two"),
}


def fitted(name: str) -> Any:
    """A pipeline of `MODELS` on flights."""
    make, target = MODELS[name]
    return make().fit(FLIGHTS, targets(FLIGHTS)[target])


def by_functions(pipeline: Any, masks: bool = False) -> Plan:
    """A plan that answers every few rows by its functions."""
    plan = compile_pipeline(pipeline, FLIGHTS)
    plan.derive(masks)
    plan.lone, plan.front_until = True, 64
    return plan


def by_steps(plan: Plan, rows: Sequence[Sequence[Any]]) -> tuple[list[Any], Any]:
    """The answers of the steps as Python values."""
    if len(rows) == 1:
        label, chances = plan.answer_row_by_steps(rows[0])
        return [label], None if chances is None else [chances]
    first, chances = plan.answer([*map(list, zip(*rows, strict=True))])
    return first.tolist(), None if chances is None else chances.tolist()


def said(answer: Callable[..., Any], *arguments: Any) -> str:
    """What is answered, to the last bit, or the type of what is raised."""
    try:
        return json.dumps(answer(*arguments))
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


def rows_to_ask(plan: Plan) -> list[tuple[Any, ...]]:
    """Rows of the data, at the borders of the trees, and mixed of special values: missing, unseen, huge, not of the column's type."""
    random, columns = np.random.default_rng(7), columns_of(plan.schema, FLIGHTS)
    special = [[*safe, *risky] for safe, risky in map(special_values, plan.schema.columns)]
    near = border_rows(plan, columns, random, 62)
    tables = [
        [cells[:93] for cells in columns],
        [cells[:62] for cells in near],
        mixed_rows(plan.schema, columns, special, random, 93),
    ]
    return [row for table in tables for row in rows_of(table)]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_few_rows_are_the_steps_to_the_last_bit(name: str, masks: bool) -> None:
    plan = by_functions(fitted(name), masks)
    rows = rows_to_ask(plan)
    for size in (1, 2, 8, 31):
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            assert said(plan.answer_rows, some) == said(by_steps, plan, some), some
    assert name == "neighbours" or None not in plan.alone(rows[:93])  # the rows of the data are plain
    assert plan.front(rows[:31]) is not None


@pytest.mark.parametrize("name", ["forest", "histograms of categories", "logistic"])
def test_the_proof_compares_the_functions(name: str) -> None:
    pipeline = fitted(name)
    parity = prove_parity(compile_pipeline(pipeline, FLIGHTS), pipeline, FLIGHTS, rows=200)
    assert parity.exact
    assert parity.row_differences == 0


def test_no_rows_are_refused() -> None:
    plan = by_functions(fitted("forest"))
    for rows in ([], ()):
        with pytest.raises(Refused, match="no rows"):
            plan.answer_rows(rows)


ODD = [
    "text",
    "7",
    "é\u0301\U0001f6eb",
    "",
    [],
    {},
    b"x",
    10**400,
    -(10**400),
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    -0.0,
    5e-324,
    True,
    None,
    3 + 4j,
    object(),
]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", ["forest", "histograms", "logistic"])
def test_values_of_any_type_do_what_they_do_by_the_steps(name: str, masks: bool) -> None:
    plan = by_functions(fitted(name), masks)
    plain = next(rows_of(columns_of(plan.schema, FLIGHTS)))
    for place in range(len(plain)):
        for odd in ODD:
            row = (*plain[:place], odd, *plain[place + 1 :])
            for some in ([row], [plain, row], [row] * 8):
                assert said(plan.answer_rows, some) == said(by_steps, plan, some), (place, odd)
    for row in (plain[:-1], (*plain, 1), ()):
        assert said(plan.answer_row, row) == said(plan.answer_row_by_steps, row) or len(row) != len(plain)


def test_categories_are_values_and_never_code() -> None:
    names = ["'); raise SystemExit('", 'c0"\n  return 1', "日本", "{x}", "\\"]
    table = pd.DataFrame({"name": names * 20})
    pipeline = make_pipeline(OneHotEncoder(handle_unknown="ignore"), DecisionTreeClassifier(random_state=0)).fit(
        table, names * 20
    )
    plan = compile_pipeline(pipeline, table)
    assert [plan.alone([(name,)])[0] is not None for name in names] == [True] * 5
    assert plan.answer_rows([(name,) for name in names])[0] == names
    assert all(name not in plan.programs.alone.source for name in names)


def test_threads_share_the_functions() -> None:
    plan = by_functions(fitted("forest"), masks=True)
    rows = [*rows_of(columns_of(plan.schema, FLIGHTS))]
    groups = [rows[start : start + 7] for start in range(0, 140, 7)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(plan.answer_rows, groups * 3)) == [by_steps(plan, group) for group in groups] * 3


def test_a_forest_too_large_for_masks_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST_BYTES", 10)
    plan = by_functions(fitted("forest"), masks=True)
    assert plan.forests[0].masked() is None
    rows = [*rows_of(columns_of(plan.schema, FLIGHTS))][:8]
    assert plan.answer_rows(rows) == by_steps(plan, rows)


def test_what_is_measured_changes_no_answer() -> None:
    plan = compile_pipeline(fitted("forest"), FLIGHTS)
    columns = columns_of(plan.schema, FLIGHTS)
    choose_engines(plan, columns)
    rows = [*rows_of(columns)]
    for size in (1, 2, 8, 31):
        assert plan.answer_rows(rows[:size]) == by_steps(plan, rows[:size])


def test_a_row_form_that_is_wrong_is_found_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Scale.row

    def wrong(self: Scale, code: Any, value: Any) -> Any:
        made = right(self, code, value)
        code.lines[-1] += " * 1.0000000000000002"  # by the last bit
        return made

    monkeypatch.setattr(Scale, "row", wrong)
    table = pd.DataFrame({"number": np.random.default_rng(7).normal(size=300)})
    pipeline = make_pipeline(StandardScaler(), Ridge()).fit(table, table["number"] * 3)
    compiled = compile_exact(pipeline, table, rows=100, sizes=())
    assert compiled.plan is not None
    assert compiled.parity is not None
    assert compiled.parity.row_differences
    for plan in (compiled.plan, Plan.from_bytes(compiled.plan.to_bytes())):
        assert "differ" in plan.stepwise
        assert plan.programs.alone is None
        assert plan.programs.front is None
        assert plan.answer_rows([(0.5,), (0.25,)])[0] == plan.predict([[0.5, 0.25]]).tolist()


def test_a_plan_that_was_never_proved_by_rows_answers_by_steps() -> None:
    content = by_functions(fitted("forest")).to_bytes()
    old = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as read, zipfile.ZipFile(old, "w") as written:
        for name in read.namelist():
            plan = json.loads(read.read(name)) if name == "plan.json" else None
            written.writestr(
                name,
                read.read(name)
                if plan is None
                else json.dumps({key: value for key, value in plan.items() if key != "stepwise"}),
            )
    plan = Plan.from_bytes(old.getvalue())
    assert plan.programs.alone is None
    rows = [*rows_of(columns_of(plan.schema, FLIGHTS))][:3]
    assert plan.answer_rows(rows) == by_steps(plan, rows)


# Many rows walk through the trees by machine code


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
@pytest.mark.parametrize(
    "name", [name for name in MODELS if name.split(",")[0].split()[0] in ("forest", "tree", "boosting", "histograms")]
)
def test_compiled_walks_add_what_the_steps_do(name: str) -> None:
    pipeline = fitted(name)
    plan = compile_pipeline(pipeline, FLIGHTS)
    columns = columns_of(plan.schema, pd.concat([FLIGHTS] * 5, ignore_index=True))
    steps = plan.answer(columns)
    assert plan.compile_walks()
    compiled = plan.answer(columns)
    assert any(isinstance(step, FusedForest) for step, *_ in plan._answer_many)
    for before, after in zip(steps, compiled, strict=True):
        assert (before is None) == (after is None)
        if before is not None:
            assert np.array_equal(before, after)


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
@pytest.mark.parametrize(
    "name", [name for name in MODELS if name.split(",")[0].split()[0] in ("forest", "boosting", "histograms")]
)
def test_masks_by_machine_code_answer_as_the_steps_do(name: str) -> None:
    plan = compile_pipeline(fitted(name), FLIGHTS)
    columns = columns_of(plan.schema, FLIGHTS)
    rows = [*rows_of(columns)]
    plan.derive(masks=True)
    before = [plan.alone(rows), plan.front(rows), plan.answer(columns)]
    assert plan.compile_masks() or name == "histograms of categories"  # whose sets of categories have no row form
    after = [plan.alone(rows), plan.front(rows), plan.answer(columns)]
    assert before[0] == after[0]
    for some, others in zip(before[1:], after[1:], strict=True):
        for one, other in zip(some or (), others or (), strict=True):
            assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))


@pytest.mark.skipif(not has_numba(), reason="numba is not installed")
def test_machine_code_that_says_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from notebook_to_prod.package.compile import masked

    plan = compile_pipeline(fitted("forest"), FLIGHTS)
    columns = columns_of(plan.schema, FLIGHTS)
    plan.derive(masks=True)
    right = plan.answer(columns)

    def wrong(*arrays: Any) -> None:
        arrays[-1][:] = 7.0

    monkeypatch.setattr(masked, "compiled_masked_sum", lambda: wrong)
    assert not plan.compile_masks()
    assert all(np.array_equal(one, other) for one, other in zip(right, plan.answer(columns), strict=True))
    assert plan.compile_walks()
    assert all(np.array_equal(one, other) for one, other in zip(right, plan.answer(columns), strict=True))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_plan_that_nobody_holds_any_longer_is_out_of_memory_at_once(name: str) -> None:
    plan = by_functions(fitted(name), masks=True)
    plan.answer_rows(rows_to_ask(plan)[:3])
    plan.compile_masks()
    plan.answer_rows(rows_to_ask(plan)[:3])
    held = [
        weakref.ref(each) for each in (plan, plan.programs.alone, *(step for step, _ in plan.steps)) if each is not None
    ]
    gc.collect()
    gc.disable()
    try:
        del plan
        assert [each() for each in held if each() is not None] == []
    finally:
        gc.enable()
