"""Labels that were compacted are of the type of what was predicted, and those of earlier releases are read as they were."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from notebook_to_prod.package.schema import Column
from notebook_to_prod.serve.log.compact import ParquetTarget
from notebook_to_prod.serve.log.predictions import (
    Answered,
    Answerer,
    Entries,
    Labelled,
    joined,
    labels_in_json,
    labels_table,
)

TIME = datetime(2026, 1, 31, 12, tzinfo=UTC)
CASES: dict[str, tuple[list[Any] | None, list[Any]]] = {
    "texts": (["günstig", "teuer"], ["günstig", "teuer", "günstig"]),
    "whole-numbers": ([0, 1], [0, 1, 1]),
    "booleans": ([False, True], [True, False, True]),
    "numbers": (None, [1.5, 2.0, 1e300]),
    "several": (None, [[1.0, 2.0], [3.0, 4.0], [0.0, 0.5]]),
}


def entries(classes: list[Any] | None, said: list[Any]) -> Entries:
    answerer = Answerer("miete", "1", "sha256:0", classes, (Column("rooms", "int64", "integer"),))
    answered = Answered(0, TIME, "a", "predict", "live", "", 20, [[1]] * len(said), said, None)
    labels = [Labelled(10 + row, TIME, "a", row, label) for row, label in enumerate(said)]
    return Entries("one", [(answerer, [answered])], labels)


@pytest.mark.parametrize("case", CASES)
def test_a_label_equals_the_prediction_that_it_confirms(case: str, tmp_path: Path) -> None:
    classes, said = CASES[case]
    target = ParquetTarget(str(tmp_path))
    target.put(entries(classes, said))
    answers, labels = (
        pq.ParquetFile(next((tmp_path / kind).rglob("*.parquet"))).read() for kind in ("answers", "labels")
    )
    assert labels["label"].type == answers["prediction"].type
    both = labels.to_pandas().merge(answers.to_pandas(), on=["id", "row"])
    assert [*map(repr, both["label"])] == [*map(repr, both["prediction"])]
    assert joined(*target.read(None, None))["label"].tolist() == said


@pytest.mark.parametrize("case", CASES)
def test_labels_of_earlier_releases_are_read_beside_todays(case: str) -> None:
    classes, said = CASES[case]
    table = labels_table("one", entries(classes, said).labels)
    earlier = labels_in_json(table)
    assert earlier["label"].to_pylist() == [json.dumps(each) for each in said]
    assert labels_in_json(earlier).equals(earlier)
    more = labels_table("two", [Labelled(1, TIME, "b", 0, said[0])])
    found = joined([], [earlier, more])
    assert isinstance(found, pd.DataFrame) and found.empty


def test_labels_of_two_types_are_kept_as_they_came(tmp_path: Path) -> None:
    target = ParquetTarget(str(tmp_path))
    said: list[Any] = ["late", 1, None]
    target.put(entries(["late"], ["late", "late", "late"]))
    target._write(
        "labels",
        date(2026, 2, 1),
        "two",
        labels_table(
            "two", [Labelled(row, TIME.replace(month=2, day=1), "a", row, label) for row, label in enumerate(said)]
        ),
    )
    assert joined(*target.read(None, None))["label"].tolist()[:2] == ["late", 1]
