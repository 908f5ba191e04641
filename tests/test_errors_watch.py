"""What watching, batches, alerts, schedules and retrainings refuse: what, where, and what to do about it."""

from __future__ import annotations

import gzip
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from notebooks import code, make_notebook
from provoked import Wrong, babbler, check, each_of, settings, without_module, written

from notebook_to_prod.errors import (
    DataError,
    DependencyError,
    InputError,
    NotebookError,
    NotFoundError,
    ServerError,
    StoreError,
)
from notebook_to_prod.project import open_store
from notebook_to_prod.watch.alert_backtest import backtest_rules, read_incidents
from notebook_to_prod.watch.alert_book import raise_signals, read_book, unsilence
from notebook_to_prod.watch.alerts import Rule, Signal, read_rules
from notebook_to_prod.watch.batch_read import open_table, plan_partitions, read_partition, require_columns
from notebook_to_prod.watch.batch_score import require_new, rows_of_frame
from notebook_to_prod.watch.batch_sql import KEY, write_parts
from notebook_to_prod.watch.batch_work import Manifest, Work, find_destination, held
from notebook_to_prod.watch.batch_write import _cast, join_parquet
from notebook_to_prod.watch.channels import read_channels
from notebook_to_prod.watch.columns import samples_of
from notebook_to_prod.watch.cron import Cron
from notebook_to_prod.watch.detectors import detect_changes, make_detector
from notebook_to_prod.watch.estimate import complete
from notebook_to_prod.watch.health import HealthRules, Scrape, check_health, read_scrape
from notebook_to_prod.watch.joint import joint_drift
from notebook_to_prod.watch.kpis import load_function, read_kpis
from notebook_to_prod.watch.ledger import join_labels, ledger_of
from notebook_to_prod.watch.live import _times, open_log, read_file, within
from notebook_to_prod.watch.live_quality import read_group_file, read_label_file
from notebook_to_prod.watch.monitor import Observed, data_drift
from notebook_to_prod.watch.retrain_data import cut_rows, fetch_rows, keep_rows, read_rows, row_times, split_rows
from notebook_to_prod.watch.retrain_gate import true_values
from notebook_to_prod.watch.retrain_settings import (
    RetrainSettings,
    check_triggers,
    parse_retrain,
    read_retrain,
    retrain_settings,
)
from notebook_to_prod.watch.retrain_state import named_state, read_states
from notebook_to_prod.watch.rollout import ask_services, read_outcomes
from notebook_to_prod.watch.rules import Rules
from notebook_to_prod.watch.schedule import Schedule, write_schedule
from notebook_to_prod.watch.windows import Length, Slice, cut

# Alerts and channels


def rules(**table: Any) -> Any:
    return read_rules({"rules": [{"name": "shifted", "on": ["drift.*"], **table}]})


def channel(**table: Any) -> Any:
    return read_channels({"channels": {"team": {"kind": "slack", "url": "$URL", **table}}})


SIGNAL = {"model": "flights", "about": "drift", "measure": "psi", "subject": "", "moment": "2013-04-01"}
SIGNALS = [Signal(**SIGNAL, value=0.4)]  # type: ignore[arg-type]

ALERTS = {
    "rules that are a table": Wrong(
        lambda: read_rules({"rules": {}}), InputError, "rules is not a list", "[[tool.n2p.rules]]", "begin each rule"
    ),
    "two rules of one name": Wrong(
        lambda: read_rules({"rules": [{"name": "shifted", "on": ["drift.*"]}] * 2}),
        InputError,
        "two rules are named 'shifted'",
        "[[tool.n2p.rules]]",
        "a name of its own",
    ),
    "a rule without a name": Wrong(lambda: rules(name=""), InputError, "a rule has no name", "number 1", "write name"),
    "a rule on nothing": Wrong(lambda: rules(on=[]), InputError, "on is []", "number 1, on", "a list of texts"),
    "a rule with a wrong limit": Wrong(
        lambda: rules(above="high"), InputError, "above is 'high'", "number 1, above", "write a number"
    ),
    "a rule of half a window": Wrong(
        lambda: rules(windows=0.5), InputError, "windows is 0.5", "number 1, windows", "from 1 to 1000"
    ),
    "a rule of unknown severity": Wrong(
        lambda: rules(severity="bad"), InputError, "severity is 'bad'", "severity", "one of info, warning, critical"
    ),
    "a rule with a number as its owner": Wrong(
        lambda: rules(owner=3), InputError, "owner is 3", "number 1, owner", "write a text"
    ),
    "a rule that repeats at no time": Wrong(
        lambda: rules(repeat="soon"), InputError, "'soon' is no time", "number 1, repeat", "write"
    ),
    "a signal without a model": Wrong(
        lambda: Signal.from_dict({"about": "drift"}, "line 3"),
        InputError,
        "this is no signal",
        "line 3",
        "write an object with model, about",
    ),
    "a signal at no moment": Wrong(
        lambda: Signal.from_dict({**SIGNAL, "moment": "today"}, "line 3"),
        InputError,
        "this is no signal",
        "line 3",
        "write an object",
    ),
    "a signal whose value is a text": Wrong(
        lambda: Signal.from_dict({**SIGNAL, "value": "high"}, "line 3"),
        InputError,
        "this is no signal: value is 'high'",
        "line 3",
        "write an object",
    ),
    "incidents in no file": Wrong(
        lambda: read_incidents(Path("none.csv")),
        InputError,
        "the incidents cannot be read",
        "none.csv",
        "give CSV or JSON lines",
    ),
    "an incident without a beginning": Wrong(
        lambda: read_incidents(written("i.csv", "ended\n2013-04-01\n")),
        InputError,
        "there is no column 'began', only ended",
        "i.csv, row 1",
        "the columns are began",
    ),
    "a line that is no incident": Wrong(
        lambda: read_incidents(written("i.jsonl", "3\n")),
        InputError,
        "this is no incident",
        "i.jsonl, row 1",
        "write began and ended",
    ),
    "nothing to try rules on": Wrong(
        lambda: backtest_rules((), ()), InputError, "there is nothing to try", "signals", "n2p watch"
    ),
    "a book that is no JSON": Wrong(
        lambda: (written(".n2p/alerts/book.json", "{"), read_book(open_store())),
        StoreError,
        "the book of alerts is damaged",
        "book.json",
        "delete the file",
    ),
    "a book of another form": Wrong(
        lambda: (written(".n2p/alerts/book.json", '{"alerts": [3]}'), read_book(open_store())),
        StoreError,
        "the book of alerts is damaged",
        "book.json",
        "delete the file",
    ),
    "a rule that tells an unknown channel": Wrong(
        lambda: raise_signals(open_store(), SIGNALS, [Rule("shifted", ("drift.*",), to=("taem",))], channel()),
        InputError,
        "'taem', which is no channel, did you mean 'team'?",
        "to",
        "the channels are team",
    ),
    "a silence that there is not": Wrong(
        lambda: unsilence(open_store(), "1f0c", "ann"),
        NotFoundError,
        "there is no silence '1f0c'",
        "alerts",
        "n2p alerts list",
    ),
    "channels that are a list": Wrong(
        lambda: read_channels({"channels": []}),
        InputError,
        "channels is not a table",
        "[tool.n2p.channels]",
        "write [tool.n2p.channels.team]",
    ),
    "a channel of no kind": Wrong(lambda: channel(kind="pigeon"), InputError, "kind is 'pigeon'", "team", "one of"),
    "a channel whose kind is a list": Wrong(
        lambda: channel(kind=["slack"]), InputError, "kind is ['slack']", "team", "one of"
    ),
    "a channel without an address": Wrong(lambda: channel(url=""), InputError, "needs url", "team", "write url ="),
    "a channel on no port": Wrong(
        lambda: channel(kind="email", port=70_000), InputError, "port is 70000", "team", "from 1 to 65535"
    ),
    "a channel that waits forever": Wrong(
        lambda: channel(timeout=0), InputError, "timeout is 0", "team", "write a number of seconds"
    ),
    "a channel to nobody": Wrong(lambda: channel(kind="email", to=[]), InputError, "to is []", "team", "write to ="),
    "a channel whose address is a number": Wrong(
        lambda: channel(url=3), InputError, "url is 3", "team", "write a text"
    ),
    "a channel with its secret": Wrong(
        lambda: channel(secret="hunter2"),
        InputError,
        "secret is not the name of a variable",
        "team] secret",
        'secret = "$NAME"',
    ),
    "a channel of unknown security": Wrong(
        lambda: channel(kind="email", security="rot13"), InputError, "security is 'rot13'", "team", "one of"
    ),
}


def test_a_secret_in_the_file_is_not_shown() -> None:
    assert "hunter2" not in str(check(ALERTS["a channel with its secret"]))


# Schedules


def cron(text: str, zone: str = "UTC") -> Any:
    return Cron.parse(text, zone)


def schedule(*command: str, platform: str = "cron", every: str = "daily", image: str = "") -> Schedule:
    return Schedule(platform, cron(every), command, image=image)


def edited(line: str) -> Any:
    """A schedule that somebody edits and that changes at the same place."""
    path = write_schedule(schedule("watch", "flights")).path
    path.write_text(path.read_text("utf-8").replace("\n0 0 * * *", f"\n{line}"), "utf-8")
    return write_schedule(schedule("watch", "flights", every="hourly"))


SCHEDULES = {
    "no time zone": Wrong(
        lambda: cron("daily", "Europe/Berln"),
        InputError,
        "'Europe/Berln', did you mean 'Europe/Berlin'?",
        "--timezone",
        "such as Europe/Berlin",
    ),
    "four fields": Wrong(lambda: cron("0 0 * *"), InputError, "'0 0 * *' is not five fields", "--every", "write"),
    "a misspelt word": Wrong(lambda: cron("dayly"), InputError, "did you mean 'daily'?", "--every", "write"),
    "both days": Wrong(
        lambda: cron("0 0 */2 * 1"), InputError, "is read in two ways: both days, or either", "--every", "either"
    ),
    "a day that no month has": Wrong(
        lambda: cron("0 0 30 2 *"), InputError, "never comes", "--every", "that the month has"
    ),
    "an hour too late": Wrong(lambda: cron("0 25 * * *"), InputError, "'25' is not", "--every", "is 0 to 23"),
    "a misspelt day": Wrong(lambda: cron("0 0 * * mom"), InputError, "'mom' is not", "--every", "sun to sat"),
    "a step of nothing": Wrong(lambda: cron("*/0 * * * *"), InputError, "has no step", "--every", "*/10"),
    "a step from somewhere": Wrong(
        lambda: cron("5/10 * * * *"), InputError, "is read in two ways", "--every", "write 5-59/10"
    ),
    "a step from nowhere": Wrong(lambda: cron("/10 * * * *"), InputError, "'' is not", "--every", "is 0 to 59"),
    "a span that goes back": Wrong(
        lambda: cron("0 22-5 * * *"), InputError, "ends before it begins", "--every", "write 22-23,0-5"
    ),
    "no command": Wrong(lambda: schedule(), InputError, "there is no command", "command line", "after two hyphens"),
    "a command with an expression of GitHub": Wrong(
        lambda: schedule("watch", "${{ x }}"),
        InputError,
        "cannot be written into a file",
        "command line",
        "by a file or a setting",
    ),
    "a command with a password": Wrong(
        lambda: schedule("batch", "postgresql://ann:hunter2@db/x"),
        InputError,
        "holds a password",
        "command line",
        "write $NAME",
    ),
    "no name of an image": Wrong(
        lambda: schedule("watch", "flights", image="a b"),
        InputError,
        "'a b' is no name of an image",
        "--image",
        "such as registry",
    ),
    "too often for GitHub": Wrong(
        lambda: schedule("watch", "flights", platform="github", every="* * * * *"),
        InputError,
        "more often than GitHub",
        "--every",
        "five minutes",
    ),
    "a line too long for cron": Wrong(
        lambda: write_schedule(schedule("watch", "x" * 1200)), InputError, "cron takes", "command line", "a script"
    ),
    "a folder in its place": Wrong(
        lambda: write_schedule(schedule("watch", "flights"), Path.cwd()),
        InputError,
        "this is a folder",
        "project",
        "name a file",
    ),
    "another file in its place": Wrong(
        lambda: write_schedule(schedule("watch", "flights"), written("mine.txt", "mine")),
        InputError,
        "the file holds something else",
        "mine.txt",
        "--out",
    ),
    "edits where it changes": Wrong(
        lambda: edited("1 1 * * *"), InputError, "was edited in lines that change now", ".crontab", "--force"
    ),
}

# Numbers of the business


def kpis(**table: Any) -> Any:
    return read_kpis({"kpis": table}, Path.cwd())


def exported(source: str) -> str:
    make_notebook(Path("kpis.ipynb"), {"revenue": code(f"#| export\n{source}", "revenue")})
    return "kpis.ipynb:revenue"


KPIS = {
    "kpis that are a list": Wrong(
        lambda: read_kpis({"kpis": []}), InputError, "kpis is not a table", "[tool.n2p.kpis]", "write lines such as"
    ),
    "a kpi that is a number": Wrong(
        lambda: kpis(revenue=3), InputError, "it names no function", "kpis], revenue", 'revenue = "kpis.ipynb:revenue"'
    ),
    "a kpi between nothing": Wrong(
        lambda: kpis(revenue={"of": "a:b", "min": 2, "max": 1}),
        InputError,
        "no number lies between 2 and 1",
        "revenue",
        "let min be at most max",
    ),
    "a kpi without a name": Wrong(
        lambda: load_function("kpis", Path.cwd()), InputError, "'kpis' names no function", "[tool.n2p.kpis]", "NAME"
    ),
    "a notebook that there is not": Wrong(
        lambda: load_function("none.ipynb:f", Path.cwd()),
        NotFoundError,
        "no such notebook",
        "none.ipynb",
        "the path of an .ipynb",
    ),
    "a function that there is not": Wrong(
        lambda: load_function(exported("def revenues(rows):\n    return 1"), Path.cwd()),
        NotFoundError,
        "no function 'revenue', did you mean 'revenues'?",
        "kpis.ipynb",
        "#| export",
    ),
    "a cell that fails": Wrong(
        lambda: load_function(exported("1 / 0"), Path.cwd()),
        NotebookError,
        "does not run on its own: ZeroDivisionError",
        "cell 'revenue' of kpis.ipynb, line",
        "correct",
    ),
    "a cell that is not Python": Wrong(
        lambda: load_function(exported("def f(:"), Path.cwd()),
        NotebookError,
        "SyntaxError",
        "cell 'revenue' of kpis.ipynb, line 2",
        "correct",
    ),
    "a file that there is not": Wrong(
        lambda: load_function("none.py:f", Path.cwd()), NotFoundError, "there is no such file", "none.py", "correct it"
    ),
    "a file that fails": Wrong(
        lambda: (written("k.py", "\n1 / 0\n"), load_function("k.py:f", Path.cwd())),
        NotebookError,
        "k.py cannot be imported: ZeroDivisionError",
        "k.py, line 2",
        "correct",
    ),
    "a module that there is not": Wrong(
        lambda: load_function("no_such_module:f", Path.cwd()),
        NotFoundError,
        "there is no module 'no_such_module'",
        "[tool.n2p.kpis]",
        "a module of the project",
    ),
    "a module that fails": Wrong(
        lambda: (written("fails_on_import.py", "1 / 0"), load_function("fails_on_import:f", Path.cwd())),
        NotebookError,
        "fails_on_import cannot be imported: ZeroDivisionError",
        "fails_on_import",
        "correct it",
    ),
}

# Rules, windows and what is compared


def watch(**table: Any) -> Any:
    return Rules.from_table(table)


NOW = pd.Timestamp("2013-04-01", tz="UTC")
TABLE = pd.DataFrame({"distance": [1.0, 2.0], "when": ["2013-04-01", "soon"]})
HEALTH = 'n2p_requests_total{route="/predict"} 3\nn2p_start_time_seconds 1\n'

WATCHING = {
    "a joint that is a number": Wrong(
        lambda: watch(joint=1), InputError, "'joint' is 1", "[tool.n2p.watch]", "true or false"
    ),
    "a delay in rows": Wrong(
        lambda: watch(label_delay="100"), InputError, "'100' is no span of time", "label_delay", "such as 6h"
    ),
    "more windows than there are": Wrong(
        lambda: watch(persist=3, of=2), InputError, "3 of 2 windows can never be", "persist", "at most of"
    ),
    "a time that is a number": Wrong(lambda: watch(time=3), InputError, "'time' is 3", "[tool.n2p.watch]", "a text"),
    "tolerances that are a number": Wrong(
        lambda: watch(metrics=3), InputError, "tolerances of metrics are a table", "watch.metrics]", "accuracy = 0.03"
    ),
    "slices that are a text": Wrong(
        lambda: watch(slices="origin"), InputError, "'slices' is 'origin'", "[tool.n2p.watch]", '["one", "two"]'
    ),
    "columns that are a number": Wrong(
        lambda: watch(columns=3), InputError, "limits of columns are tables", "watch.columns]", "wasserstein"
    ),
    "a limit of no measure": Wrong(
        lambda: watch(columns={"distance": {"mising": 1}}),
        InputError,
        "unknown setting 'mising', did you mean 'missing'?",
        "columns.distance]",
        "the settings are",
    ),
    "a window of a fortnight": Wrong(
        lambda: Length.parse("fortnight"), InputError, "'fortnight' is no length", "window", "such as 1d"
    ),
    "a window of ages": Wrong(
        lambda: Length.parse("99999999999w"), InputError, "is no length of a window", "window", "such as 1d"
    ),
    "a window of time without times": Wrong(
        lambda: cut(3, Length(seconds=60)), InputError, "needs the times of the rows", "window", "--time"
    ),
    "a window of rows without a time": Wrong(
        lambda: cut(2, Length(seconds=60), pd.Series([NOW, pd.NaT])),
        InputError,
        "1 rows have no time",
        "window",
        "drop them",
    ),
    "a slice that is not Python": Wrong(
        lambda: Slice("distance >").rows(TABLE), InputError, "the slice cannot be read", "distance >", "COLUMN=VALUE"
    ),
    "a slice that is a number": Wrong(
        lambda: Slice("distance + 1").rows(TABLE),
        InputError,
        "the slice is no condition",
        "distance + 1",
        "COLUMN=VALUE",
    ),
    "a column that the table lacks": Wrong(
        lambda: samples_of(TABLE, {"origin": ""}), DataError, "the table lacks origin", "columns", "ignore these"
    ),
    "a reference without rows": Wrong(
        lambda: data_drift(TABLE[:0], TABLE), DataError, "the reference has no rows", "reference", "a table with rows"
    ),
    "nothing to compare": Wrong(
        lambda: data_drift(TABLE, TABLE[:0]), DataError, "there are no rows to compare", "two tables", "another table"
    ),
    "slices of a profile": Wrong(
        lambda: profiled().report(Observed(TABLE[["distance"]]), None),
        DataError,
        "a profile cannot be cut into slices",
        "the profile",
        "--reference",
    ),
    "two tables of few rows": Wrong(
        lambda: joint_drift(TABLE, TABLE), DataError, "too few rows", "joint_drift", "four rows"
    ),
    "two tables of moments": Wrong(
        lambda: joint_drift(*[pd.DataFrame({"at": [NOW] * 5})] * 2),
        DataError,
        "no column to tell two tables apart",
        "joint_drift",
        "no datetime",
    ),
    "a detector that there is not": Wrong(
        lambda: make_detector("CUSUM", stream()), InputError, "there is no detector 'CUSUM'", "detectors", "ADWIN"
    ),
    "detectors without river": Wrong(
        lambda: without_module("river", lambda: make_detector("ADWIN", stream())),
        DependencyError,
        "river is not installed",
        "detectors",
        "pip install 'notebook-to-prod[stream]'",
    ),
    "a stream of few labels": Wrong(
        lambda: detect_changes(np.zeros(3)), DataError, "3 labels are too few", "the model", "wait for"
    ),
    "an estimate of several outputs": Wrong(
        lambda: complete(said(np.zeros((3, 2)))),
        DataError,
        "the model has several outputs",
        "estimate",
        "compare with labels",
    ),
    "an estimate of nothing": Wrong(
        lambda: complete(said(np.array([np.nan]))), DataError, "no row has an answer", "estimate", "keep probabilities"
    ),
    "metrics that are a page": Wrong(
        lambda: Scrape.of_text("<html>", 0.0, "a.html"), DataError, "these are no metrics", "a.html", "what /metrics"
    ),
    "metrics of another program": Wrong(
        lambda: Scrape.of_text("up 1\n", 0.0, "a.txt"),
        DataError,
        "no metrics of a service made by n2p",
        "a.txt",
        "what /metrics",
    ),
    "metrics of no file": Wrong(
        lambda: read_scrape("none.txt"), NotFoundError, "the metrics cannot be read", "none.txt", "give a URL"
    ),
    "metrics of a service that is not there": Wrong(
        lambda: read_scrape("http://127.0.0.1:1"),
        NotFoundError,
        "does not tell its metrics",
        "http://127.0.0.1:1",
        "check the address",
    ),
    "a route that is a number": Wrong(
        lambda: HealthRules.from_table({"route": 3}), InputError, "'route' is 3", "watch.health]", "such as /predict"
    ),
    "scrapes in the wrong order": Wrong(
        lambda: check_health(Scrape.of_text(HEALTH, 1.0), Scrape.of_text(HEALTH, 2.0)),
        InputError,
        "the first scrape is later",
        "check_health",
        "the earlier one first",
    ),
}


def stream() -> Any:
    from notebook_to_prod.watch.detectors import StreamRules

    return StreamRules()


def said(predictions: np.ndarray) -> Any:
    from notebook_to_prod.package.gates.case import Answers
    from notebook_to_prod.watch.estimate import Said

    return Said(pd.DataFrame(index=range(len(predictions))), Answers(predictions))


def profiled() -> Any:
    from notebook_to_prod.watch.live import Baseline
    from notebook_to_prod.watch.monitor import Monitor

    found = Baseline.of_table(TABLE[["distance"]])
    return Monitor(Baseline(found.columns, name="the profile"), Rules(slices=("distance > 1",)))


# Tables that are read


def excel() -> bytes:
    return b"PK\x03\x04" + bytes(40)


def labels(text: str) -> Any:
    return read_label_file(written("labels.csv", text))


TABLES = {
    "a kind that is not read": Wrong(
        lambda: read_file(Path("rows.sav")), DataError, "the kind of the file is unknown", "rows.sav", ".parquet, .csv"
    ),
    "a table that there is not": Wrong(
        lambda: read_file(Path("rows.csv")), DataError, "the table cannot be read", "rows.csv", "one line a row"
    ),
    "a table that is cut short": Wrong(
        lambda: read_file(written("rows.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:-9])),
        DataError,
        "the table cannot be read",
        "rows.csv.gz",
        "one line a row",
    ),
    "a workbook that is damaged": Wrong(
        lambda: read_file(written("rows.xlsx", excel())),
        DataError,
        "the table cannot be read",
        "rows.xlsx",
        "one line a row",
    ),
    "labels that there are not": Wrong(
        lambda: read_label_file(Path("none.csv")), DataError, "the table cannot be read", "none.csv", "one line a row"
    ),
    "labels without a label": Wrong(
        lambda: labels("id,lable\na,1\n"), DataError, "no column 'label'", "labels.csv", "the columns are id, label"
    ),
    "labels of half a row": Wrong(
        lambda: labels("id,label,row\na,1,0.5\n"), DataError, "a row is no whole number", "column 'row'", "from 0 on"
    ),
    "labels of an infinite row": Wrong(
        lambda: labels("id,label,row\na,1,inf\n"), DataError, "a row is no whole number", "column 'row'", "from 0 on"
    ),
    "groups that there are not": Wrong(
        lambda: read_group_file(Path("none.csv")), DataError, "the table cannot be read", "none.csv", "one line a row"
    ),
    "groups without an id": Wrong(
        lambda: read_group_file(written("g.csv", "sex\nf\n")),
        DataError,
        "no column 'id'",
        "g.csv",
        "the columns are id",
    ),
    "times in no column": Wrong(
        lambda: _times(TABLE, "wen", "the table"), DataError, "no column 'wen'", "--time", "name 'when'"
    ),
    "times that are numbers": Wrong(
        lambda: _times(TABLE, "distance", "the table"),
        DataError,
        "its values are numbers, not times",
        "column 'distance'",
        "dates or times",
    ),
    "times that are words": Wrong(
        lambda: _times(TABLE, "when", "the table"), DataError, "1 rows have no time", "column 'when'", "ISO 8601"
    ),
    "a span of rows without times": Wrong(
        lambda: within(Observed(TABLE), datetime.now(UTC)),
        DataError,
        "the times of the rows are not known",
        "--since",
        "--time",
    ),
    "a span without rows": Wrong(
        lambda: within(Observed(TABLE[:1], times=pd.Series([NOW])), datetime(2020, 1, 1)),
        DataError,
        "nothing was asked in that time",
        "--since",
        "2013-04-01",
    ),
    "a log that there is not": Wrong(
        lambda: open_log(open_store(), "flights"), NotFoundError, "no predictions of 'flights'", "flights", "n2p serve"
    ),
    "labels without ids": Wrong(
        lambda: join_labels(TABLE, pd.DataFrame({"label": [1]}), "label"),
        DataError,
        "there is no column 'id'",
        "the labels",
        "id and label",
    ),
    "answers without ids": Wrong(
        lambda: join_labels(TABLE, pd.DataFrame({"id": ["a"], "label": [1]}), "label"),
        DataError,
        "there is no column 'id'",
        "the labels",
        "the answers have ids in the log",
    ),
    "classes of several targets": Wrong(
        lambda: ledger_of([["a", "b"]], [["a", "b"]], [["a"], ["b"]]),
        DataError,
        "a classifier of several targets",
        "the bundle",
        "a model for each target",
    ),
    "outcomes in no file": Wrong(
        lambda: read_outcomes(Path("none.csv"), 1),
        InputError,
        "the outcomes cannot be read",
        "none.csv",
        "version and value",
    ),
    "outcomes without a version": Wrong(
        lambda: read_outcomes(written("o.csv", "value\n1\n"), 1),
        InputError,
        "KeyError 'version'",
        "o.csv",
        "version and value",
    ),
}


def test_a_service_that_is_none() -> None:
    check(
        Wrong(
            lambda: ask_services(["http://127.0.0.1:1"]),
            ServerError,
            "does not tell its counters",
            "http://127.0.0.1:1",
            "see that it runs",
        )
    )
    with babbler() as address:
        check(
            Wrong(
                lambda: ask_services([address]), ServerError, "does not tell its counters", address, "see that it runs"
            )
        )


# Batches


def parquet(**columns: list[Any]) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table(columns), made)
    return made.getvalue()


def two(one: str, other: str, suffix: str = "csv") -> Any:
    written(f"rows/a.{suffix}", one)
    written(f"rows/b.{suffix}", other)
    return open_table("rows")


def replaced() -> Any:
    table = open_table(written("rows.parquet", parquet(a=[1])))
    written("rows.parquet", "nothing of the kind")
    return table


def joined(*parts: bytes) -> None:
    join_parquet([written(f"part{number}.parquet", part) for number, part in enumerate(parts)], io.BytesIO())


def partitions(name: str, content: str | bytes) -> list[Any]:
    table = open_table(written(name, content))
    return [row for each in plan_partitions(table) for row in read_partition(table, each)]


MANIFEST = {
    "format": 1,
    "bundle": "b",
    "input": {},
    "output": {},
    "options": {},
    "partitions": [],
    "engine": "plan",
    "publishing": False,
    "model": "m",
    "version": "1",
}

BATCHES = {
    "a format that is not read": Wrong(
        lambda: open_table(written("rows.xlsx", "x")),
        DataError,
        "a batch does not read .xlsx",
        "rows.xlsx",
        "give one of",
    ),
    "files of several formats": Wrong(
        lambda: (written("rows/a.csv", "a\n1\n"), written("rows/b.jsonl", '{"a": 1}\n'), open_table("rows")),
        DataError,
        "different formats",
        "a.csv and b.jsonl",
        "a pattern",
    ),
    "folders that name other columns": Wrong(
        lambda: (
            written("rows/day=1/a.csv", "a\n1\n"),
            written("rows/month=1/b.csv", "a\n1\n"),
            open_table("rows/*/*.csv"),
        ),
        DataError,
        "do not all name the same columns",
        "rows",
        "column=value",
    ),
    "a column twice": Wrong(
        lambda: open_table(written("rows.csv", "a,a\n1,2\n")),
        DataError,
        "more than one column 'a'",
        "rows.csv",
        "name them apart",
    ),
    "an empty file": Wrong(
        lambda: open_table(written("rows.parquet", "")),
        DataError,
        "the file is empty",
        "rows.parquet",
        "check that its content",
    ),
    "a file that is none of its kind": Wrong(
        lambda: open_table(written("rows.parquet", "a\n1\n")),
        DataError,
        "cannot be read as parquet",
        "rows.parquet",
        "--format",
    ),
    "a file that ends too soon": Wrong(
        lambda: partitions(
            "rows.csv.gz",
            gzip.compress(b"a,b\n" + "".join(f"{each},{each * 7919 % 1000}\n" for each in range(9000)).encode())[:-9],
        ),
        DataError,
        "cannot be read as csv.gz",
        "rows.csv.gz",
        "check",
    ),
    "files of other columns": Wrong(
        lambda: plan_partitions(two("a,b\n1,2\n", "a\n1\n")),
        DataError,
        "the file lacks the column 'b'",
        "rows, b.csv",
        "the same columns",
    ),
    "files of one more column": Wrong(
        lambda: plan_partitions(two("a\n1\n", "a,b\n1,2\n")),
        DataError,
        "the file has one more column, 'b'",
        "rows, b.csv",
        "the same columns",
    ),
    "a column that the model needs": Wrong(
        lambda: require_columns(open_table(written("rows.csv", "distanc,b\n1,2\n")), ["distance"]),
        DataError,
        "lacks the column 'distance'",
        "rows.csv",
        "did you mean 'distanc'?",
    ),
    "another separator": Wrong(
        lambda: require_columns(open_table(written("rows.csv", "distance;b\n1;2\n")), ["distance"]),
        DataError,
        "lacks the column 'distance'",
        "rows.csv",
        "--separator ';'",
    ),
    "a column called like the prediction": Wrong(
        lambda: require_new(["prediction"], pa.schema([("prediction", pa.string())]), "rows.csv"),
        DataError,
        "has a column 'prediction' already",
        "rows.csv",
        "--prefix",
    ),
    "a frame without a column": Wrong(
        lambda: rows_of_frame(TABLE, ["distance", "origin"]),
        DataError,
        "the table lacks the column 'origin'",
        "a frame",
        "give all of",
    ),
    "a column called like the key": Wrong(
        lambda: write_parts("sqlite:///out.db", "out.db", "t", [], pa.schema([(KEY, pa.int64())]), []),
        DataError,
        "as the key of the output is called",
        "out.db",
        "rename it",
    ),
    "a table that is there": Wrong(
        lambda: [
            write_parts("sqlite:///out.db", "out.db", "t", [], pa.schema([("a", pa.int64())]), []) for _ in range(2)
        ],
        DataError,
        "there is a table 't' already",
        "out.db",
        "--force",
    ),
    "a database without a table": Wrong(
        lambda: find_destination("sqlite:///out.db"), InputError, "a database needs a table", "out.db", "--to-table"
    ),
    "a table of a file": Wrong(
        lambda: find_destination("out.csv", table="t"),
        InputError,
        "only a database has tables",
        "out.csv",
        "--to-table",
    ),
    "a format that is not written": Wrong(
        lambda: find_destination("out.xlsx"), DataError, "a batch does not write .xlsx", "out.xlsx", "give one of"
    ),
    "a manifest of another format": Wrong(
        lambda: Manifest.from_dict({"format": 99}),
        StoreError,
        "manifest format 99 is unknown",
        "manifest.json",
        "upgrade",
    ),
    "a manifest that is cut short": Wrong(
        lambda: Work.read(written("work/manifest.json", "{").parent),
        StoreError,
        "cannot be read",
        "manifest.json",
        "--force",
    ),
    "a manifest that is a list": Wrong(
        lambda: Work.read(written("work/manifest.json", "[]").parent),
        StoreError,
        "cannot be read",
        "manifest.json",
        "--force",
    ),
    "another process at work": Wrong(
        lambda: at_once(), StoreError, "another process is writing this output", "out.csv", "wait for it"
    ),
    "a type that does not fit": Wrong(
        lambda: _cast(pa.array(["x"]), pa.field("a", pa.int64())),
        DataError,
        "a part has string where the first file has int64",
        "column 'a'",
        "CSV or JSON lines",
    ),
    "a file that is replaced": Wrong(
        lambda: plan_partitions(replaced()), DataError, "the file cannot be read", "rows.parquet", ""
    ),
    "a part that is no Parquet": Wrong(
        lambda: joined(b"nothing of the kind"), StoreError, "a part is no Parquet file", "part0.parquet", "--force"
    ),
    "a part that is empty": Wrong(
        lambda: joined(b""), StoreError, "a part is no Parquet file", "part0.parquet", "--force"
    ),
    "parts of different schemas": Wrong(
        lambda: joined(parquet(a=[1]), parquet(b=[1])),
        StoreError,
        "the parts have different schemas",
        "part1.parquet",
        "--force",
    ),
}


def at_once() -> None:
    with held(Path("work"), "out.csv"), held(Path("work"), "out.csv"):
        pass


# Retraining


def retrain(**table: Any) -> Any:
    return parse_retrain("flights", {"notebook": "train.ipynb", **table}, "[tool.n2p.retrain.flights]")


FROM = RetrainSettings("flights", "train.ipynb", ingest="rows_of_project:fetch", time="when", label="delay")


def fetched(source: str, ingest: str = "rows_of_project:fetch") -> Any:
    written("rows_of_project.py", source)
    return fetch_rows(open_store(), RetrainSettings("flights", "train.ipynb", ingest=ingest), Path.cwd())


def kept(table: pd.DataFrame) -> str:
    return keep_rows(open_store(), "flights", table)


RETRAINING = {
    "a canary that is a number": Wrong(
        lambda: retrain(canary=3), InputError, "canary is 3", "retrain.flights]", 'write "none"'
    ),
    "a canary by weight and steps": Wrong(
        lambda: retrain(canary={"weight": "1%", "steps": "1%"}),
        InputError,
        "weight is one step",
        "canary",
        "leave weight out",
    ),
    "a notebook that is empty": Wrong(
        lambda: retrain(notebook=" "), InputError, "notebook is ' '", "retrain.flights]", "write a text"
    ),
    "a budget of nothing": Wrong(lambda: retrain(budget=0), InputError, "budget is 0", "retrain.flights]", "from 1 on"),
    "a grain of nothing": Wrong(
        lambda: retrain(grain="0 days"), InputError, "grain is '0 days'", "retrain.flights]", "a longer one"
    ),
    "a part that is all": Wrong(
        lambda: retrain(fresh=1.0), InputError, "fresh is 1.0", "retrain.flights]", "between 0 and 1"
    ),
    "features that are a text": Wrong(
        lambda: retrain(features="a"), InputError, "features is 'a'", "retrain.flights]", "a list of different names"
    ),
    "a trigger that there is not": Wrong(
        lambda: check_triggers(("drfit",), "--if"),
        InputError,
        "no trigger 'drfit', did you mean 'drift'?",
        "--if",
        "the triggers are",
    ),
    "a model that is a text": Wrong(
        lambda: parse_retrain("flights", "train.ipynb", "x"),
        InputError,
        "'flights' is not a table",
        "x",
        "write notebook",
    ),
    "no notebook": Wrong(
        lambda: parse_retrain("flights", {}, "x"), InputError, "there is no notebook to run", "x", "write notebook"
    ),
    "parameters that are a list": Wrong(
        lambda: retrain(parameters=[]), InputError, "parameters are no table", "retrain.flights]", "parameters = {"
    ),
    "a span without times": Wrong(
        lambda: retrain(ingest="rows.csv", window="30 days"),
        InputError,
        "window needs the times of the rows",
        "retrain.flights]",
        "time =",
    ),
    "the rows as a parameter": Wrong(
        lambda: retrain(parameters={"data": "x"}),
        InputError,
        "the parameter 'data' is the path",
        "retrain.flights]",
        "leave it out",
    ),
    "fresh rows that are all": Wrong(
        lambda: retrain(window="7 days", fresh="8 days"),
        InputError,
        "leave none of the window",
        "retrain.flights]",
        "window longer",
    ),
    "retrain that is a number": Wrong(
        lambda: (settings("[tool.n2p]\nretrain = 3"), read_retrain()),
        InputError,
        "retrain is not a table",
        "pyproject.toml, [tool.n2p.retrain]",
        "write notebook",
    ),
    "a model that nobody retrains": Wrong(
        lambda: (settings('[tool.n2p.retrain.flights]\nnotebook = "a.ipynb"'), retrain_settings("flihgts")),
        NotFoundError,
        "'flihgts' is retrained, did you mean 'flights'?",
        "[tool.n2p.retrain]",
        "write notebook",
    ),
    "rows of no type": Wrong(
        lambda: kept(pd.DataFrame({"a": [1, "x"]})), DataError, "the rows cannot be kept", "flights", "one type"
    ),
    "rows that are gone": Wrong(
        lambda: read_rows(open_store(), "flights", "sha256:0"),
        DataError,
        "gone, or changed",
        ".parquet",
        "n2p retrain flights",
    ),
    "a module without the function": Wrong(
        lambda: fetched("def fetched(a, b): ..."),
        InputError,
        "no function 'fetch', did you mean 'fetched'?",
        "retrain.flights] ingest",
        "the start and the end",
    ),
    "no module": Wrong(
        lambda: fetched("", "no_such_module:f"),
        InputError,
        "there is no module 'no_such_module'",
        "retrain.flights] ingest",
        "write it below",
    ),
    "a log of hashes": Wrong(
        lambda: (
            settings('[tool.n2p.serve.log]\nhash = ["distance"]\nsalt = "$N2P_TEST_SALT"'),
            (open_store().home / "predictions" / "flights").mkdir(parents=True),
            fetched("", ingest="log"),
        ),
        DataError,
        "the log keeps a hash of distance",
        "retrain.flights] ingest",
        "a table or a function that has the values",
    ),
    "a function that fails": Wrong(
        lambda: fetched("def fetch(a, b): 1 / 0"),
        DataError,
        "rows_of_project:fetch raised ZeroDivisionError",
        "retrain.flights] ingest",
        "mend it",
    ),
    "a function that gives a number": Wrong(
        lambda: fetched("def fetch(a, b): return 3"),
        InputError,
        "rows_of_project:fetch returned int",
        "retrain.flights] ingest",
        "return a DataFrame",
    ),
    "rows without the time": Wrong(
        lambda: row_times(FROM, pd.DataFrame({"wen": [1]})),
        DataError,
        "no column 'when', did you mean 'wen'?",
        "retrain.flights] time",
        "the columns are wen",
    ),
    "rows at no time": Wrong(
        lambda: row_times(FROM, TABLE), DataError, "1 of 2 rows have no time", "column 'when'", "such as 2026"
    ),
    "rows without the label": Wrong(
        lambda: cut_rows(FROM, TABLE),
        DataError,
        "no column 'delay'",
        "retrain.flights] label",
        "the columns are distance, when",
    ),
    "rows of which none is fresh": Wrong(
        lambda: split_rows(open_store(), FROM, kept(TABLE[:1])),
        DataError,
        "of 1 rows",
        "retrain.flights] fresh",
        "give more rows",
    ),
    "labels of another type": Wrong(
        lambda: true_values(pd.Series(["late"]), np.zeros(1), "label"),
        DataError,
        "the labels are no float64: could not convert",
        "label",
        "as the notebook has it",
    ),
    "labels that lose something": Wrong(
        lambda: true_values(pd.Series([0.5]), np.zeros(1, dtype=int), "label"),
        DataError,
        "the labels are no int64",
        "label",
        "as the notebook has it",
    ),
    "a state that is damaged": Wrong(
        lambda: (written(".n2p/retrain/flights/a.json", "{"), read_states(open_store(), "flights")),
        StoreError,
        "the state of a retraining is damaged",
        "a.json",
        "delete the file",
    ),
    "a retraining that there is not": Wrong(
        lambda: named_state(open_store(), "flights", "3f"),
        NotFoundError,
        "'3f' fits 0 retrainings",
        "flights",
        "--status",
    ),
}


@pytest.mark.usefixtures("project")
@each_of(ALERTS, SCHEDULES, KPIS, WATCHING, TABLES, BATCHES, RETRAINING)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)
