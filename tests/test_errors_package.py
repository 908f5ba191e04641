"""What features, gates, keys, bundles and exports refuse: what, where, and what to do about it."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from provoked import Wrong, check, each_of, settings, without_module, written
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeRegressor

from notebook_to_prod.errors import (
    BundleError,
    DataError,
    DependencyError,
    ExportError,
    InputError,
    NotebookError,
    NotFoundError,
    ServerError,
    StoreError,
)
from notebook_to_prod.package.bundle import predict
from notebook_to_prod.package.code import Source, collect_code, exported_module, pickle_pipeline
from notebook_to_prod.package.compile.plan import from_bytes
from notebook_to_prod.package.compress import Compression
from notebook_to_prod.package.contents import _json
from notebook_to_prod.package.elsewhere import environment_for
from notebook_to_prod.package.explain.origins import NotExplained
from notebook_to_prod.package.features.collect import load_views, project_features
from notebook_to_prod.package.features.definition import FeatureView, features, read_span
from notebook_to_prod.package.features.feast import feast_definitions
from notebook_to_prod.package.features.online import open_online
from notebook_to_prod.package.features.point_in_time import looks_ahead, point_in_time
from notebook_to_prod.package.gates.case import Case
from notebook_to_prod.package.gates.data import read_expectations
from notebook_to_prod.package.gates.evaluation import keep_table
from notebook_to_prod.package.gates.explain import require_features, require_shap
from notebook_to_prod.package.gates.fairness import group_of_rows, groups, require_attributes
from notebook_to_prod.package.gates.leakage import require_moment
from notebook_to_prod.package.gates.metrics import asked_metrics, find_metric
from notebook_to_prod.package.gates.policy import Policy, make_policy, read_policy
from notebook_to_prod.package.gates.run import choose_gates
from notebook_to_prod.package.gates.serving import certificate, running_bundle
from notebook_to_prod.package.gates.slices import named_slices
from notebook_to_prod.package.gates.verdict import Report, read_reports
from notebook_to_prod.package.keys import distrust_key, new_key, read_signatures, require_signature, sign, trust_key
from notebook_to_prod.package.lock import distributions_of, hash_lock
from notebook_to_prod.package.profile import Profile
from notebook_to_prod.package.schema import Column, Schema, infer_schema
from notebook_to_prod.package.seal import seal_required
from notebook_to_prod.package.session import Run
from notebook_to_prod.package.trust import check_pickle, load_pickle
from notebook_to_prod.package.variants import check_variants
from notebook_to_prod.project import open_store

# Features

NOW = pd.Timestamp("2013-04-01")
FLIGHTS = pd.DataFrame({"tailnum": ["a", "b"], "at": [NOW, NOW], "delay": [1.0, 2.0]})


def view(function: Any = None, **options: Any) -> FeatureView:
    def delays(flights: pd.DataFrame) -> Any:
        return flights

    return features(**{"entity": "tailnum", "time": "at", "owner": "ann", **options})(function or delays)


def framed(table: Any, **options: Any) -> Any:
    return view(**options).frame({"flights": table})


def joined(rows: pd.DataFrame, **changed: Any) -> Any:
    return point_in_time(rows.rename(columns={"at": "moment"}), view(), {"flights": FLIGHTS.assign(**changed)})


ROWS = FLIGHTS[["tailnum", "at"]]


def configured(text: str) -> Any:
    settings(f"[tool.n2p]\n{text}")
    return project_features()


MODULE = """
import notebook_to_prod as n2p

@n2p.features(entity="tailnum", time="at", owner="ann")
def delays(flights):
    return flights
"""


def stored(act: Any) -> Any:
    store = open_online("features.db")
    store.materialise(view(), {"flights": FLIGHTS})
    return act(store)


def feast(**changed: Any) -> Any:
    return feast_definitions([view(**changed.pop("options", {}))], {"delays": FLIGHTS.assign(**changed)})


FEATURES = {
    "a span of words": Wrong(
        lambda: read_span("a while", "ttl"), InputError, "this is no span of time", "ttl", '"2 days"'
    ),
    "a span of ages": Wrong(
        lambda: read_span("999999999999999 days", "ttl"), InputError, "this is no span of time", "ttl", '"2 days"'
    ),
    "a view of a lambda": Wrong(
        lambda: view(name="a b"), InputError, "a view needs a plain name", "the view 'a b'", "with def"
    ),
    "a view of no entity": Wrong(
        lambda: view(entity=()), InputError, "entity and time name no column", "the view 'delays'", "entity="
    ),
    "a view of nobody": Wrong(lambda: view(owner=""), InputError, "nobody owns it", "the view 'delays'", "owner="),
    "a view of any sources": Wrong(
        lambda: view(lambda *some: some, name="delays"),
        InputError,
        "must name each source",
        "the view 'delays'",
        "def view(flights)",
    ),
    "a view that never holds": Wrong(
        lambda: view(ttl="1 h", delay="2 h"),
        InputError,
        "no value would ever hold",
        "the view 'delays'",
        "longer than the delay",
    ),
    "a view without its source": Wrong(
        lambda: view().frame({}), InputError, "there is no source 'flights'", "the view 'delays'", "give sources="
    ),
    "a view of a number": Wrong(
        lambda: framed(3), DataError, "the function returns a int", "the view 'delays'", "return a DataFrame"
    ),
    "a view without its time": Wrong(
        lambda: framed(FLIGHTS[["tailnum"]]),
        DataError,
        "it has no column 'at'",
        "the view 'delays'",
        "return the columns tailnum, at",
    ),
    "a view without features": Wrong(
        lambda: framed(ROWS), DataError, "it has no features", "the view 'delays'", "those of the features"
    ),
    "owners of no feature": Wrong(
        lambda: framed(FLIGHTS, owners={"delya": "bob"}),
        InputError,
        "'delya', which is no feature",
        "the view 'delays'",
        "correct the name",
    ),
    "times that are texts": Wrong(
        lambda: framed(FLIGHTS.assign(at="x")), DataError, "the times are of type", "column 'at'", "pandas.to_datetime"
    ),
    "times that are missing": Wrong(
        lambda: framed(FLIGHTS.assign(at=[NOW, pd.NaT])),
        DataError,
        "1 times are missing, the first at row 1",
        "'delays'",
        "drop these rows",
    ),
    "times of another age": Wrong(
        lambda: framed(FLIGHTS.assign(at=np.array(["0800-01-01"] * 2, dtype="datetime64[s]"))),
        DataError,
        "outside the years 1678 to 2261",
        "'delays'",
        "correct it",
    ),
    "a feature of another type": Wrong(
        lambda: framed(FLIGHTS.assign(delay=["x", "y"]), types={"delay": "Int64"}),
        DataError,
        "the values are no Int64",
        "column 'delay'",
        "types= of the view",
    ),
    "a feature of Arrow": Wrong(
        lambda: framed(FLIGHTS.assign(delay=FLIGHTS.delay.astype("double[pyarrow]"))),
        DataError,
        "a feature cannot be of type double[pyarrow]",
        "column 'delay'",
        "convert it",
    ),
    "a feature of lists": Wrong(
        lambda: framed(FLIGHTS.assign(delay=[[1], [2]])),
        DataError,
        "a feature cannot be of type object",
        "column 'delay'",
        "make it a number",
    ),
    "an entity of numbers with points": Wrong(
        lambda: framed(FLIGHTS.assign(tailnum=[0.5, 1.5])),
        DataError,
        "an entity cannot be of type float64",
        "column 'tailnum'",
        "whole numbers",
    ),
    "rows without a moment": Wrong(
        lambda: point_in_time(ROWS, view(), {"flights": FLIGHTS}),
        InputError,
        "the rows have no column 'moment'",
        "point_in_time",
        "moment=...",
    ),
    "rows with the feature": Wrong(
        lambda: joined(FLIGHTS), InputError, "have a column 'delay' already", "the view 'delays'", "rename"
    ),
    "rows without the entity": Wrong(
        lambda: joined(ROWS[["at"]]),
        InputError,
        "the rows have no column 'tailnum'",
        "the view 'delays'",
        "its entity is tailnum",
    ),
    "rows of another entity": Wrong(
        lambda: joined(ROWS.assign(tailnum=[1, 2])),
        DataError,
        "it is integer in the rows and text in the view",
        "column 'tailnum'",
        "convert one of them",
    ),
    "rows of another clock": Wrong(
        lambda: joined(ROWS, at=pd.Timestamp("2013-04-01", tz="UTC")),
        DataError,
        "of the rows has no time zone",
        "the view 'delays'",
        "tz_localize",
    ),
    "a source that does not grow": Wrong(
        lambda: looks_ahead(view(), {"flights": FLIGHTS}, {"flights": "known"}),
        InputError,
        "no column 'known' of a source 'flights'",
        "the view 'delays'",
        "name, of each source",
    ),
    "views in no file": Wrong(
        lambda: load_views("none.py"), NotFoundError, "there is no such file", "none.py", "definitions"
    ),
    "views that fail": Wrong(
        lambda: load_views(written("views.py", "1 / 0")),
        NotebookError,
        "do not run on their own: ZeroDivisionError",
        "views.py",
        "#| export",
    ),
    "views in Latin-1": Wrong(
        lambda: load_views(written("views.py", b"name = '\xe9'")),
        NotebookError,
        "do not run on their own: SyntaxError",
        "views.py",
        "#| export",
    ),
    "features that are a number": Wrong(
        lambda: configured("features = 3"),
        InputError,
        "features is not a table",
        "[tool.n2p.features]",
        "below [tool.n2p.features]",
    ),
    "features with a misspelt setting": Wrong(
        lambda: configured("features = {definition = []}"),
        InputError,
        "did you mean 'definitions'?",
        "[tool.n2p.features]",
        "the settings are",
    ),
    "definitions in a text": Wrong(
        lambda: configured('features = {definitions = "a.ipynb"}'),
        InputError,
        "definitions is no list",
        "[tool.n2p.features]",
        "definitions = [",
    ),
    "sources in a list": Wrong(
        lambda: configured("features = {sources = []}"),
        InputError,
        "sources is not a table",
        "[tool.n2p.features]",
        "NAME =",
    ),
    "a source that is a number": Wrong(
        lambda: configured("features = {sources = {flights = 3}}"),
        InputError,
        "this names no source",
        "features.sources], flights",
        "write a path",
    ),
    "two views of one name": Wrong(
        lambda: (
            written("views.py", MODULE),
            written("more.py", MODULE),
            configured('features = {definitions = ["views.py", "more.py"]}'),
        ),
        InputError,
        "two views are called 'delays'",
        "[tool.n2p.features]",
        "rename one",
    ),
    "a view that there is not": Wrong(
        lambda: (written("views.py", MODULE), configured('features = {definitions = ["views.py"]}').view("delay")),
        NotFoundError,
        "there is no view 'delay', did you mean 'delays'?",
        "definitions",
        "the views are delays",
    ),
    "a project without features": Wrong(
        lambda: configured("features = {}").chosen([]),
        NotFoundError,
        "this project defines no features",
        "[tool.n2p.features]",
        "definitions = [",
    ),
    "a source that nobody names": Wrong(
        lambda: configured("features = {}").load(view()),
        InputError,
        "needs a source 'flights'",
        "features.sources]",
        'flights = "PATH"',
    ),
    "a store of features that is none": Wrong(
        lambda: open_online("ftp://x"),
        InputError,
        "no store of features is known by 'ftp'",
        "the address of the store",
        "sqlite:///",
    ),
    "a store of features that is not there": Wrong(
        lambda: open_online("none.db").views(),
        StoreError,
        "there are no features yet",
        "none.db",
        "n2p features materialise",
    ),
    "a store of features that is none of its kind": Wrong(
        lambda: open_online(str(written("features.db", "nothing of the kind" * 99))).views(),
        StoreError,
        "the features cannot be read or written",
        "features.db",
        "the disk",
    ),
    "a store of features without its driver": Wrong(
        lambda: without_module("psycopg", lambda: open_online("postgresql://h/db").views()),
        DependencyError,
        "PostgreSQL is not installed",
        "psycopg",
        "pip install",
    ),
    "a store of features that does not answer": Wrong(
        lambda: open_online("postgresql://ann:hunter2@127.0.0.1:1/db").views(),
        StoreError,
        "the database of features refuses",
        "PostgreSQL",
        "check that it runs",
    ),
    "a Redis that does not answer": Wrong(
        lambda: open_online("redis://127.0.0.1:1").views(),
        StoreError,
        "the server of features does not answer: ConnectionError",
        "Redis",
        "check that it runs",
    ),
    "a Redis without its driver": Wrong(
        lambda: without_module("redis", lambda: open_online("redis://h").views()),
        DependencyError,
        "Redis is not installed",
        "redis",
        "pip install",
    ),
    "values that nobody stored": Wrong(
        lambda: stored(lambda store: store.view("weather")),
        NotFoundError,
        "no values of a view 'weather' are stored",
        "the store of features",
        "there are delays",
    ),
    "entities without their column": Wrong(
        lambda: stored(lambda store: store.lookup("delays", FLIGHTS[["at"]])),
        InputError,
        "the entities lack a column",
        "column 'tailnum'",
        "give tailnum",
    ),
    "entities of another type": Wrong(
        lambda: stored(lambda store: store.lookup("delays", pd.DataFrame({"tailnum": [1]}))),
        DataError,
        "it is integer here and text in the store",
        "column 'tailnum'",
        "convert it",
    ),
    "a view of other types and no rows": Wrong(
        lambda: stored(
            lambda store: store.materialise(view(), {"flights": FLIGHTS[:0].assign(delay=pd.Series(dtype="str"))})
        ),
        DataError,
        "the view has no rows, and other types",
        "the view 'delays'",
        "types=",
    ),
    "a view of no time for Feast": Wrong(
        lambda: feast(options={"ttl": "1 h", "delay": "1 h"}),
        InputError,
        "Feast cannot say that a value holds for no time",
        "the view 'delays'",
        "longer than the delay",
    ),
    "a type that Feast does not know": Wrong(
        lambda: feast(delay=FLIGHTS.delay.astype("complex128")),
        DataError,
        "Feast cannot keep 'delay'",
        "the view 'delays'",
        "leave it out",
    ),
}

# Gates

X = pd.DataFrame({"distance": [1.0, 2.0, 3.0, 4.0], "origin": [0, 1, 0, 1]})


def case(**changed: Any) -> Case:
    y = np.array([0, 1, 0, 1])
    return Case(
        **{"pipeline": LogisticRegression().fit(X, y), "X_train": X, "y_train": y, "X_test": X, "y_test": y, **changed}
    )


def policy(**sections: Any) -> Policy:
    return make_policy(sections, "policy")


def expectations(text: str) -> Any:
    return read_expectations(written("expected.yaml", text)).to_pandera()


def report(content: Any) -> Any:
    written(".n2p/verdicts/abc/r.json", json.dumps(content))
    return read_reports(open_store(), "sha256:abc")


GATES = {
    "tables of other lengths": Wrong(
        lambda: case(y_test=[1]), InputError, "X_test has 4 rows and y_test has 1", "Case", "the same split"
    ),
    "a policy in no file": Wrong(
        lambda: read_policy(Path("none.toml")),
        InputError,
        "the policy cannot be read",
        "none.toml",
        "a .toml or .yaml file",
    ),
    "a policy that is no YAML": Wrong(
        lambda: read_policy(written("p.yaml", "{")),
        InputError,
        "the policy cannot be read",
        "p.yaml",
        "a .toml or .yaml file",
    ),
    "a policy that is a list": Wrong(
        lambda: read_policy(written("p.yaml", "[1]")),
        InputError,
        "list stands where a table should",
        "p.yaml",
        "names and values",
    ),
    "a policy below a number": Wrong(
        lambda: read_policy(written("p.toml", "tool = 3")),
        InputError,
        "int stands where a table should",
        "p.toml",
        "names and values",
    ),
    "a policy with a misspelt section": Wrong(
        lambda: policy(qualty={}), InputError, "'qualty', did you mean 'quality'?", "policy", "the settings are"
    ),
    "a policy of a text": Wrong(
        lambda: policy(skip="data"), InputError, "a list of texts is needed", "policy, skip", '["one", "two"]'
    ),
    "a policy of less than nothing": Wrong(
        lambda: policy(fairness={"min_group": -1}), InputError, "-1 is below zero", "fairness, min_group", "from 0 on"
    ),
    "a policy of half a number": Wrong(
        lambda: policy(fairness={"min_group": 0.5}),
        InputError,
        "int is needed, not 0.5",
        "fairness, min_group",
        "--show-policy",
    ),
    "a policy of no number": Wrong(
        lambda: policy(data={"unexpected": float("nan")}),
        InputError,
        "nan is no number",
        "data, unexpected",
        "from 0 on",
    ),
    "a metric that there is not": Wrong(
        lambda: find_metric("acuracy"),
        InputError,
        "no metric 'acuracy'",
        "policy, quality, metrics",
        "did you mean accuracy",
    ),
    "a scorer with options": Wrong(
        lambda: find_metric("accuracy", {"normalize": True}),
        InputError,
        "takes no options",
        "policy, quality, metrics",
        "accuracy_score",
    ),
    "an option that a metric has not": Wrong(
        lambda: find_metric("accuracy_score", {"beta": 1}),
        InputError,
        "accuracy_score has no option 'beta'",
        "policy, quality, metrics",
        "it has",
    ),
    "a metric without its number": Wrong(
        lambda: asked_metrics(policy(quality={"metrics": {"accuracy": "high"}})),
        InputError,
        "'accuracy' needs a number",
        "policy, quality, metrics",
        "accuracy = 0.8",
    ),
    "a metric of no number": Wrong(
        lambda: asked_metrics(policy(quality={"metrics": {"accuracy": float("nan")}})),
        InputError,
        "'accuracy' needs a number",
        "policy, quality, metrics",
        "accuracy = 0.8",
    ),
    "a gate that there is not": Wrong(
        lambda: choose_gates(Policy(), ["fairnes"]), InputError, "there is no gate 'fairnes'", "--only", "the gates are"
    ),
    "a feature that the policy requires": Wrong(
        lambda: require_features(case(), policy(explain={"required": ["distanc"]})),
        InputError,
        "'distanc', did you mean 'distance'?",
        "explain, required",
        "the features are",
    ),
    "an attribute that no table has": Wrong(
        lambda: require_attributes(case(), policy(fairness={"attributes": ["sex"]})),
        InputError,
        "no sensitive attribute 'sex'",
        "fairness, attributes",
        "run.export",
    ),
    "groups of an attribute that no table has": Wrong(
        lambda: group_of_rows(case(), case().test_sample(Policy()), "sex"),
        InputError,
        "no sensitive attribute 'sex'",
        "fairness, attributes",
        "run.export",
    ),
    "a favourable class that there is not": Wrong(
        lambda: [*groups(case(), policy(fairness={"attributes": ["origin"], "positive": "yes"}))],
        InputError,
        "the model has no class 'yes'",
        "fairness, positive",
        "name one of 0, 1",
    ),
    "a moment that the model has not": Wrong(
        lambda: require_moment(case(), policy(data={"time": "when"})),
        InputError,
        "there is no column 'when'",
        "data, time",
        "the columns are",
    ),
    "a level that there is not": Wrong(
        lambda: [*certificate(case(), policy(serving={"certificate": "bits"}))],
        InputError,
        "there is no level 'bits'",
        "serving, certificate",
        "name one of",
    ),
    "expectations in no file": Wrong(
        lambda: read_expectations(Path("none.yaml")),
        InputError,
        "the expectations cannot be read",
        "none.yaml",
        "--write-expectations",
    ),
    "expectations of a list": Wrong(
        lambda: expectations("columns: [a]"),
        InputError,
        "the expectations cannot be read",
        "expected.yaml",
        "--write-expectations",
    ),
    "an expectation that there is not": Wrong(
        lambda: expectations("columns: {a: {mni: 1}}"), InputError, "unknown expectation 'mni'", "column 'a'", "min"
    ),
    "an expectation that is a number": Wrong(
        lambda: expectations("columns: {a: 3}"), InputError, "what is expected cannot be read", "column 'a'", "min"
    ),
    "an expectation of no moment": Wrong(
        lambda: expectations("columns: {a: {type: datetime, min: soon}}"),
        InputError,
        "what is expected cannot be read",
        "column 'a'",
        "min",
    ),
    "an expectation of a number of values": Wrong(
        lambda: expectations("columns: {a: {values: 3}}"),
        InputError,
        "what is expected cannot be read",
        "column 'a'",
        "values",
    ),
    "a table of mixed types": Wrong(
        lambda: keep_table(open_store(), pd.DataFrame({"a": [1, [2]]}), "X_test"),
        DataError,
        "the column cannot be kept",
        "X_test, column 'a'",
        "one type",
    ),
    "a table of three dimensions": Wrong(
        lambda: keep_table(open_store(), np.zeros((1, 1, 1)), "X_test"),
        DataError,
        "an array of 3 dimensions",
        "run.export",
        "give a table",
    ),
    "verdicts of another format": Wrong(
        lambda: Report.from_dict({"format": 9}), InputError, "verdicts of format 9 are unknown", "verdicts", "upgrade"
    ),
    "a report that is cut short": Wrong(
        lambda: report({"format": 1}), StoreError, "a report is damaged", "r.json", "delete the file"
    ),
    "a report that is a list": Wrong(
        lambda: report([]), StoreError, "a report is damaged", "r.json", "delete the file"
    ),
}

# Keys, exports and bundles


def schema(table: Any) -> Any:
    return infer_schema(table)


def edited(**changes: Any) -> Any:
    return Schema("dataframe", (Column("distance", "float64", "number", minimum=1.0, maximum=2.0),)).edit(
        "distance", **changes
    )


def keys_at_home(act: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(Path.cwd()))
        patch.setenv("XDG_CONFIG_HOME", str(Path.cwd() / "config"))
        patch.setenv("N2P_KEYS", str(Path.cwd() / "keys"))
        return act()


def with_variable(value: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2P_REQUIRE_SEAL", value)
        return seal_required()


def without_variable(text: str) -> Any:
    settings(f"[tool.n2p]\n{text}")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("N2P_REQUIRE_SEAL", raising=False)
        return seal_required()


def local_class() -> Any:
    class Model(LinearRegression):
        pass

    return Model()


class Holder:
    def __init__(self) -> None:
        self.some = (each for each in "ab")


EXPORTS = {
    "a key of two words": Wrong(
        lambda: new_key("a b"), InputError, "'a b' cannot be the name of a key", "NAME", "use letters"
    ),
    "a key that there is": Wrong(
        lambda: keys_at_home(lambda: [new_key("ann"), new_key("ann")]),
        InputError,
        "there is a key 'ann' already",
        "ann.pem",
        "another name",
    ),
    "a key that there is not": Wrong(
        lambda: keys_at_home(lambda: sign("sha256:0", "bob")),
        NotFoundError,
        "there is no key 'bob'",
        "bob.pem",
        "n2p keys new bob",
    ),
    "no cryptography": Wrong(
        lambda: without_module("cryptography.hazmat.primitives", lambda: new_key("ann")),
        DependencyError,
        "cryptography",
        "this environment",
        "pip install",
    ),
    "a public key that is none": Wrong(
        lambda: trust_key(open_store(), "ed25519:x", "ann"),
        InputError,
        "this is no public key",
        "ed25519:x",
        "44 letters",
    ),
    "a key that nobody trusts": Wrong(
        lambda: distrust_key(open_store(), "ann"),
        NotFoundError,
        "the store trusts no key 'ann'",
        ".n2p",
        "nothing to take back",
    ),
    "signatures that are damaged": Wrong(
        lambda: read_signatures(written("bundle/signatures.json", "{").parent),
        BundleError,
        "the signatures cannot be read",
        "signatures.json",
        "sign it again",
    ),
    "a profile of another format": Wrong(
        lambda: Profile.from_dict({"format": 99}),
        BundleError,
        "profile format 99 is unknown",
        "profile.json",
        "upgrade",
    ),
    "a schema of another format": Wrong(
        lambda: Schema.from_dict({"format": 99}), BundleError, "schema format 99 is unknown", "schema.json", "upgrade"
    ),
    "a policy that a column cannot have": Wrong(
        lambda: edited(policy="shout"), DataError, "has no policy 'shout'", "distance", "write policy="
    ),
    "a minimum that is a text": Wrong(lambda: edited(minimum="low"), DataError, "cannot be 'low'", "distance", ""),
    "a minimum above the maximum": Wrong(
        lambda: edited(minimum=9.0, maximum=2.0), DataError, "the minimum 9.0 is above the maximum 2.0", "distance", ""
    ),
    "a table of numbered columns": Wrong(
        lambda: schema(pd.DataFrame({("a", "b"): [1]})), ExportError, "X_train", "", ""
    ),
    "a seal that is half required": Wrong(
        lambda: with_variable("maybe"), InputError, "N2P_REQUIRE_SEAL is 'maybe'", "environment", "0 or 1"
    ),
    "a seal that is required somehow": Wrong(
        lambda: without_variable('require_seal = "yes"'),
        InputError,
        "require_seal is 'yes'",
        "[tool.n2p]",
        "true or false",
    ),
    "a metric that is a list": Wrong(
        lambda: Run(1).metric("auc", [1, 2]), DataError, "not list", "metric 'auc'", "one number at a time"
    ),
    "a metric that is too large": Wrong(
        lambda: Run(1).metric("auc", 10**400),
        DataError,
        "a number that a float holds, not int",
        "metric 'auc'",
        "one number at a time",
    ),
    "a metric without a name": Wrong(
        lambda: Run(1).metric(" ", 1),
        DataError,
        "a metric needs a name",
        "run.metric(' ', ...)",
        "a text that is not empty",
    ),
    "a variant that there is not": Wrong(
        lambda: check_variants(["tiny"]), InputError, "there is no kind 'tiny' of variant", "--kind", "name one of"
    ),
    "an exported cell with magic": Wrong(
        lambda: exported_module([Source("cell 'a'", "#| export\n%matplotlib inline")]),
        ExportError,
        "an exported cell is not plain Python",
        "cell 'a', line 2",
        "move magics",
    ),
    "an exported cell that shows": Wrong(
        lambda: exported_module([Source("cell 'a'", "#| export\ndisplay(1)")]),
        ExportError,
        "uses 'display', which only a notebook has",
        "cell 'a'",
        "import it",
    ),
    "a class inside a function": Wrong(
        lambda: pickle_pipeline(local_class()),
        ExportError,
        "has no name that a pickle could refer to",
        "run.export",
        "at the top level",
    ),
    "a model with a generator": Wrong(
        lambda: pickle_pipeline(Holder()), ExportError, "the pipeline cannot be pickled", "run.export", "generators"
    ),
}


# What is around a bundle


def plan(content: Any) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("plan.json", json.dumps(content))
    return made.getvalue()


def offline(act: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_OFFLINE", "1")
        return act()


def unreadable_key() -> Any:
    written("keys/ann.pem", "nothing of the kind")
    return keys_at_home(lambda: sign("sha256:0", "ann"))


def listed() -> Any:
    store = open_store()
    trust_key(store, keys_at_home(lambda: new_key("ann")), "ann")
    path = next(each for each in store.home.rglob("*.json") if "ann" in each.read_text())
    path.write_text("[]")
    return distrust_key(store, "ann")


MADE = Compression(SimpleNamespace(name="original"), (), {"pruned": "no trees"}, "accuracy", 9, Path())  # type: ignore[arg-type]
CHANGED = {**Report("sha256:0", "sha256:1", ()).to_dict(), "made": "2026-01-01"}

AROUND = {
    "a plan of another format": Wrong(
        lambda: from_bytes(plan({"format": 999})), BundleError, "plan format 999 is unknown", "plan.json", "upgrade"
    ),
    "a plan without its steps": Wrong(
        lambda: from_bytes(plan([])), BundleError, "the plan cannot be read", "plan", "export the pipeline again"
    ),
    "a variant that could not be made": Wrong(
        lambda: MADE.bundle("pruned"),
        InputError,
        "there is no variant 'pruned': no trees",
        "--keep",
        "cannot be made smaller",
    ),
    "a variant that is not smaller": Wrong(
        lambda: replace(MADE, variants=(SimpleNamespace(name="pruned 50", verdict="fails", size=9),)).bundle("pruned"),  # type: ignore[arg-type]
        InputError,
        "none of 'pruned' is smaller and certainly as good",
        "--keep",
        "name a variant of the table",
    ),
    "predictions that are no JSON": Wrong(
        lambda: _json([float("nan")]), ExportError, "cannot be written as JSON", "run.export", "finite numbers"
    ),
    "an environment that uv does not make": Wrong(
        lambda: offline(lambda: environment_for(open_store(), "3.11", "no-such-package-here==1")),
        DependencyError,
        "the environment of the lock cannot be built",
        "uv ",
        "that the index answers",
    ),
    "hashes of what no index has": Wrong(
        lambda: offline(lambda: hash_lock("no-such-package-here==1\n", "3.11")),
        DependencyError,
        "the hashes of the requirements cannot be had",
        "the package index",
        "--no-hashes",
    ),
    "a bundle that cannot be served": Wrong(
        lambda: [*_served()], ServerError, "the service did not start", "nowhere", "requirements.lock"
    ),
    "a slice of no column": Wrong(
        lambda: [*named_slices(case(), policy(quality={"slices": ["orign"]}))],
        InputError,
        "no column 'orign' to slice by, did you mean 'origin'?",
        "quality, slices",
        "the columns are",
    ),
    "a slice of one value": Wrong(
        lambda: [*named_slices(case(X_test=X.assign(origin=0)), policy(quality={"slices": ["origin"]}))],
        InputError,
        "has one value or too many",
        "quality, slices",
        "origin=VALUE",
    ),
    "verdicts that were changed": Wrong(
        lambda: Report.from_dict({**CHANGED, "bundle": "sha256:9"}),
        InputError,
        "the verdicts have been changed",
        "sha256:9",
        "gate the bundle again",
    ),
    "a module of no distribution": Wrong(
        lambda: distributions_of(["no_such_module_here"]),
        ExportError,
        "no installed distribution provides the module 'no_such_module_here'",
        "run.export",
        "install it with pip",
    ),
    "explanations without SHAP": Wrong(
        lambda: without_module("shap", require_shap),
        DependencyError,
        "SHAP is not installed",
        "explain.shap",
        "pip install",
    ),
    "groups without fairlearn": Wrong(
        lambda: without_module(
            "fairlearn",
            lambda: require_attributes(case(), policy(fairness={"attributes": ["origin"]})),
        ),
        DependencyError,
        "fairlearn is not installed",
        "policy, fairness, attributes",
        "pip install 'notebook-to-prod[fair]'",
    ),
    "a bundle that nobody has signed": Wrong(
        lambda: require_signature(Path("bundle"), "sha256:0", {"ann": "ed25519:x"}),
        BundleError,
        "nobody has signed the bundle",
        "bundle",
        "have it signed by ann: n2p bundle sign",
    ),
    "a method of a text": Wrong(
        lambda: load_pickle(pickle.dumps("late".upper), allowed("builtins.getattr"), "model.pkl"),
        BundleError,
        "it is a method of something that is no estimator",
        "model.pkl",
        "",
    ),
    "a pickle that says what it would run": Wrong(
        lambda: check_pickle(pickle.dumps(subprocess.run), allowed(), "model.pkl"),
        BundleError,
        "the model would use subprocess.run, which is refused",
        "model.pkl",
        "",
    ),
    "a model of complex numbers": Wrong(
        lambda: predict(Complex(), X),
        DataError,
        "the pipeline predicts complex numbers",
        "pipeline.predict",
        "real numbers",
    ),
    "a model that runs programs": Wrong(
        lambda: collect_code(FunctionTransformer(subprocess.run), []),
        ExportError,
        "the pipeline uses subprocess.run, which no service would load",
        "run.export",
        "do without it",
    ),
    "an exported cell that needs this package": Wrong(
        lambda: needing_us(),
        ExportError,
        "an exported cell or a module that it imports needs notebook_to_prod",
        "",
        "in a cell that is not exported",
    ),
    "a table of two types in a column": Wrong(
        lambda: keep_table(open_store(), pd.DataFrame({"a": pd.Series([b"x", "y"], dtype=object)}), "X_test"),
        DataError,
        "the table would not come back as it is",
        "X_test",
        "give every column one type",
    ),
    "a table of tuples": Wrong(
        lambda: keep_table(open_store(), pd.DataFrame({"a": [(1, 2), (3, 4)]}), "X_test"),
        DataError,
        "the table would not come back as it is",
        "X_test",
        "give every column one type",
    ),
    "an explanation of several outputs": Wrong(
        lambda: explained(RandomForestClassifier(2), np.column_stack([SIDES, SIDES])),
        NotExplained,
        "it classifies several outputs",
        "",
        "",
    ),
    "an explanation of leaves that nothing has come to": Wrong(
        lambda: explained(DecisionTreeRegressor(), SIDES, sample_weight=np.where(SIDES == 1, -2.0, 1.0)),
        NotExplained,
        "no training row has come to some of its leaves",
        "",
        "",
    ),
    "a key that is none": Wrong(unreadable_key, InputError, "the key cannot be read", "ann.pem", "restore it"),
    "a list of keys that is none": Wrong(
        listed, InputError, "the list of trusted keys cannot be read", ".json", "trust the keys again"
    ),
    "an entity of two types for Feast": Wrong(
        lambda: feast_definitions(
            [view(), view(name="weather")], {"delays": FLIGHTS, "weather": FLIGHTS.assign(tailnum=[1, 2])}
        ),
        DataError,
        "whole numbers in one view and text in another",
        "the view 'weather'",
        "one type",
    ),
    "a lambda of a notebook": Wrong(
        lambda: pickle_pipeline(of_main("lambda rows: rows"), [Source("cell 'fit'", "f = lambda rows: rows")]),
        ExportError,
        "a lambda cannot be pickled",
        "",
        "write it with def",
    ),
    "a pickle of what is refused": Wrong(
        lambda: load_pickle(pickle.dumps(subprocess.run), allowed(), "model.pkl"),
        BundleError,
        "the model would use subprocess.run, which is refused",
        "model.pkl",
        "",
    ),
}


SIDES = np.array([0, 1, 0, 1])


def explained(model: Any, target: Any, **about: Any) -> Any:
    from notebook_to_prod.package.explain.explainer import explainer_of

    return explainer_of(model.fit(X, target, **about), infer_schema(X), [(1.0, 0), (2.0, 1)])


class Complex:
    def predict(self, rows: Any) -> Any:
        return np.array([1j] * len(rows))


def needing_us() -> Any:
    """The code of a pipeline with a function of an exported cell."""
    text = "#| export\nimport notebook_to_prod\n\n\ndef halve(rows):\n    return rows / 2"
    held: dict[str, Any] = {"__name__": "__main__"}
    exec(text, held)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["__main__"], "halve", held["halve"], raising=False)
        return collect_code(FunctionTransformer(held["halve"]), [Source("cell 'own'", text)])


def allowed(*names: str) -> Any:
    from notebook_to_prod.package.trust import Allowed

    return Allowed(frozenset(names), frozenset())


def of_main(text: str) -> Any:
    """What a cell of a notebook has made."""
    made = eval(text, {"__name__": "__main__"})
    made.__module__ = "__main__"
    return made


def _served() -> Any:
    with running_bundle(SimpleNamespace(path=Path("nowhere"), digest="sha256:0", golden={})):  # type: ignore[arg-type]
        yield


@pytest.mark.usefixtures("project")
@each_of(FEATURES, GATES, EXPORTS, AROUND)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)
