"""Errors that tests provoke, each in one line: what is done, and what is said of it."""

from __future__ import annotations

import re
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    assert not re.search(r"(?<!\.\.)\.$", error.remedy), "what to do is no whole sentence"
    assert not re.search(r"<\w[^>]* at 0x|\bNone\b|<lambda>", f"{error.what} {error.where}"), (
        "what Python calls things is nobody's business"
    )
    return error


def written(name: str, content: str | bytes) -> Path:
    """Write a file of the project."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def without_module(name: str, act: Callable[[], Any]) -> Any:
    """What is done where a package is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, None)
        return act()


def on_a_full_disk(act: Callable[[], Any]) -> Any:
    """What is done where no file may have a byte more."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, kept[1]))
    try:
        return act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


@contextmanager
def babbler() -> Iterator[str]:
    """The address of a server that does not speak HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.org ready\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def settings(text: str) -> Path:
    """Write what stands in the configuration of the project."""
    return written("pyproject.toml", text)
