"""A span of time means the same wherever one is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.features.definition import read_span
from notebook_to_prod.release.rollout import parse_period
from notebook_to_prod.release.stages import read_stages
from notebook_to_prod.serve.access.callers import new_key
from notebook_to_prod.serve.log.request_log import LogSettings

SPANS = {
    "30 minutes": timedelta(minutes=30),
    "90 min": timedelta(minutes=90),
    "1 h 30 min": timedelta(minutes=90),
    "12 hours": timedelta(hours=12),
    "14 days": timedelta(days=14),
    "2 weeks": timedelta(days=14),
    "1 year": timedelta(days=365),
}


def stage_expires(text: str, project: Path) -> timedelta | None:
    """As a stage of a project reads it."""
    (project / "pyproject.toml").write_text(
        f'[tool.n2p.stages.production]\napprovals = 1\nexpires = "{text}"\n', encoding="utf-8"
    )
    return read_stages(project)["production"].expires


@pytest.mark.parametrize("text", SPANS)
def test_everybody_reads_a_span_alike(text: str, tmp_path: Path) -> None:
    meant = SPANS[text]
    assert read_span(text, "ttl") == meant
    assert parse_period(text) == meant.total_seconds()
    assert stage_expires(text, tmp_path) == meant
    assert LogSettings.from_table({"segment_age": text}).segment_age == meant.total_seconds()
    before = datetime.now(UTC).replace(microsecond=0)
    ends = datetime.fromisoformat(new_key("app", expires=text).expires or "")
    assert before + meant <= ends <= datetime.now(UTC) + meant


@pytest.mark.parametrize("text", ["soon", "3", "-1 day", "5 moons", "1 day or so", "9999999 years", ""])
def test_nobody_reads_what_is_no_span(text: str, tmp_path: Path) -> None:
    for read in (
        lambda: read_span(text, "ttl"),
        lambda: parse_period(text),
        lambda: stage_expires(text, tmp_path),
        lambda: LogSettings.from_table({"segment_age": text}),
        lambda: new_key("app", expires=text or "none"),
    ):
        with pytest.raises(InputError):
            read()
