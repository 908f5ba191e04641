"""What a certificate compares: outputs, pictures, metrics; and what differs in every execution, which is no difference."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from notebook_to_prod.package.reproduce import Certificate, Comparison, differing_cells, metric_differences
from notebook_to_prod.package.why import difference
from notebook_to_prod.train.record import RunRecord, RunSpec


def record(folder: Path, cells: dict[str, list[dict[str, Any]]], **fields: Any) -> RunRecord:
    """A finished run whose cells have shown `cells`."""
    folder.mkdir()
    made = [{"cell_type": "code", "id": id, "source": "1", "outputs": outputs} for id, outputs in cells.items()]
    for name in ("input.ipynb", "output.ipynb"):
        notebook = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / name).write_text(json.dumps(notebook))
    return RunRecord(folder.name, "train.ipynb", RunSpec("sha256:0"), "finished", "2026", str(folder), **fields)


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)}


def shown(**data: str) -> dict[str, Any]:
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {key.replace("_", "/"): each for key, each in data.items()},
    }


def metric(name: str, value: float) -> list[dict[str, Any]]:
    """What a cell shows that ends in `run.metric(name, value)`."""
    data = {
        "application/scrapbook.scrap.json+json": {"name": name, "data": value},
        "text/plain": f"{name} = {value:.6g}",
    }
    returned = {"output_type": "execute_result", "metadata": {}, "data": {"text/plain": repr(value)}}
    return [{"output_type": "display_data", "metadata": {"scrapbook": {"name": name}}, "data": data}, returned]


def as_list(outputs: Any) -> list[dict[str, Any]]:
    return outputs if isinstance(outputs, list) else [outputs]


def png(colour: tuple[int, int, int], comment: str = "", level: int = 6) -> str:
    """A picture of some pixels of one colour."""
    file, notes = io.BytesIO(), PngInfo()
    notes.add_text("Software", comment)
    Image.new("RGB", (40, 30), colour).save(file, "PNG", pnginfo=notes, compress_level=level)
    return base64.b64encode(file.getvalue()).decode()


SAME = {
    "equal": (printed("1"), printed("1")),
    "addresses": (printed("<A at 0x7f01>"), printed("<A at 0x55aa>")),
    "complaints": (printed("took 3 s", "stderr"), printed("took 4 s", "stderr")),
    "folder": (printed("in /home/ada/p/out.csv"), printed("in /tmp/n2p-reproduce-a_b1/out.csv")),
    "moment-in-a-path": (printed("saved runs/20260301-101502/roc.png"), printed("saved runs/20260302-090000/roc.png")),
    "day-in-a-path": (printed("'logs/2026-03-01T10:15:02.123.txt'"), printed("'logs/2026-03-02T09:00:00.456.txt'")),
    "seconds-in-a-path": (printed("model/1772359200/x"), printed("model/1772445600/x")),
    "folder-and-moment": (printed("/home/ada/p/20260301-101502"), printed("/tmp/n2p-reproduce-ab12/20260302-090000")),
    "styled-table": (shown(text_html='<table id="T_0a1b2">'), shown(text_html='<table id="T_ffff0">')),
    "random-id": (
        shown(text_html='<div id="0a1b2c3d-0000-4000-8000-0a1b2c3d4e5f">'),
        shown(text_html='<div id="ffffffff-0000-4000-8000-0a1b2c3d4e5f">'),
    ),
    "picture-with-other-notes": (
        shown(image_png=png((1, 2, 3), "made today")),
        shown(image_png=png((1, 2, 3), "made yesterday", 0)),
    ),
    "ignored-metric": (metric("seconds", 1.5), metric("seconds", 2.5)),
}
OTHER = {
    "number": (printed("1"), printed("2")),
    "clock": (printed("1772359200"), printed("1772445600")),
    "moment": (printed("at 2026-03-01 10:15"), printed("at 2026-03-02 09:00")),
    "path": (printed("runs/20260301/roc.png"), printed("runs/20260301/pr.png")),
    "folder-of-another-name": (printed("in /home/ada/p/out.csv"), printed("in /tmp/n2p-reproduce-a_b1/other.csv")),
    "text-around-the-folder": (printed("2 in /home/ada"), printed("3 in /tmp/n2p-reproduce-ab12")),
    "stream": (printed("1"), shown(text_plain="1")),
    "picture": (shown(image_png=png((1, 2, 3))), shown(image_png=png((1, 2, 4)))),
    "no-picture": (shown(image_png=png((1, 2, 3))), shown(image_png="AAAA")),
    "picture-is-gone": (shown(image_png=png((1, 2, 3)), text_plain="<Figure>"), shown(text_plain="<Figure>")),
    "metric": (metric("accuracy", 0.5), metric("accuracy", 0.6)),
}


@pytest.mark.parametrize("case", [*SAME, *OTHER])
def test_a_cell_differs_only_if_what_it_shows_does(case: str, tmp_path: Path) -> None:
    one, other = (SAME | OTHER)[case]
    first = record(tmp_path / "first", {"a": [printed("start")], "b": as_list(one), "c": []})
    second = record(tmp_path / "second", {"a": [printed("start")], "b": as_list(other), "c": []})
    assert differing_cells(first, second, ["seconds"]) == ([] if case in SAME else ["b"])


def test_an_output_more_or_less_is_a_difference(tmp_path: Path) -> None:
    first = record(tmp_path / "first", {"a": [printed("x")], "b": [printed("x")]})
    second = record(tmp_path / "second", {"a": [printed("x"), shown(text_plain="y")], "b": []})
    assert differing_cells(first, second) == ["a", "b"]


@pytest.mark.parametrize(
    ("recorded", "reproduced", "names"),
    [
        ({"auc": 0.9}, {"auc": 0.9}, []),
        ({"auc": 0.900}, {"auc": 0.901}, []),
        ({"auc": 0.90}, {"auc": 0.95}, ["auc"]),
        ({"loss": 0.0}, {"loss": 1e-17}, []),
        ({"loss": 0.0}, {"loss": 0.001}, ["loss"]),
        ({"a": math.nan, "b": math.inf}, {"a": math.nan, "b": math.inf}, []),
        ({"a": math.nan, "b": math.inf}, {"a": 1.0, "b": -math.inf}, ["a", "b"]),
        ({"a": 1.0, "old": 1.0}, {"a": 1.0, "new": 1.0}, ["old", "new"]),
    ],
)
def test_metrics_that_differ(recorded: dict[str, float], reproduced: dict[str, float], names: list[str]) -> None:
    assert [*metric_differences(recorded, reproduced, 0.01)] == names


def test_numbers_that_are_none_are_written_as_text(tmp_path: Path) -> None:
    metrics = {"a": math.nan, "b": math.inf}
    comparison = Comparison("metrics", metrics, metrics, True)
    said = Certificate("1", "key", "2", False, "bytes", "bytes", (comparison,), None, "2026").to_dict()
    assert json.loads(json.dumps(said, allow_nan=False))["comparisons"][0]["recorded"] == {"a": "nan", "b": "inf"}
    first, second = (
        record(tmp_path / "1", {"a": []}, metrics=metrics),
        record(tmp_path / "2", {"a": []}, metrics={"b": 1.0, "c": 2.0}),
    )
    said = json.loads(json.dumps(difference(first, second).to_dict(), allow_nan=False))
    assert said["metrics"] == {"a": ["nan", None], "b": ["inf", 1.0], "c": [None, 2.0]}
