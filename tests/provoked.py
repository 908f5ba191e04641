"""Errors that tests provoke, each in one line: what is done, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from notebook_to_prod.errors import N2PError


class Wrong(NamedTuple):
    """Something that cannot be done, in an empty project which is the current folder."""

    act: Callable[[], Any]
    kind: type[N2PError]
    what: str  # Part of the sentence
    where: str  # Part of the file, cell, column or name
    remedy: str  # Part of what to do


def each_of(*groups: Mapping[str, Wrong]) -> pytest.MarkDecorator:
    """Parametrise a test by what is wrong."""
    return pytest.mark.parametrize(
        "wrong", [pytest.param(wrong, id=name) for group in groups for name, wrong in group.items()]
    )


def check(wrong: Wrong) -> N2PError:
    """Provoke the error; it says what, where and what to do about it, in the form that all of them have."""
    with pytest.raises(N2PError) as caught:
        wrong.act()
    error = caught.value
    assert type(error) is wrong.kind, repr(error)
    assert wrong.what in error.what and wrong.where in (error.where or "") and wrong.remedy in (error.remedy or ""), (
        str(error)
    )
    assert error.where and error.remedy, "an error says where, and what to do"
    assert not error.what.endswith(".") and not error.remedy.endswith("."), "neither is a whole sentence"
    assert not re.search(r"<\w[^>]* at 0x|\bNone\b|<lambda>", str(error)), (
        "what Python calls things is nobody's business"
    )
    return error


def settings(text: str) -> None:
    """Write what stands in the configuration of the project."""
    Path("pyproject.toml").write_text(text, "utf-8")
