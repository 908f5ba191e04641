"""The code blocks of the documentation: what stands in a fence is shown, and is what the tests execute.

A fence's first word is its language; what follows says how it is executed:

- `sh` is run by bash in the folder of the page's project, `python` by the interpreter.
- `file=PATH` writes the block to a file, `append=PATH` adds it to one.
- `cell=NOTEBOOK` adds the block to a notebook as a code cell; `tag=NAME` tags it.
- `exit=CODE` says with what its last command ends; 0 without.
- `expect` on a `text` block: its lines stand in the output of the block before, in this order, `…` for whatever is there.
- `norun="why"` shows the block only, and says why; `only="what"` says what it needs to be executed (`only=network`).

The blocks of one page are one bash script, so that variables and jobs in the background last to its end.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[a-z].*)\n(?P<code>(?:.*\n)*?)(?P=indent)```[ ]*$", re.MULTILINE)
SHOWN_ONLY = {"text", "mermaid", "diff"}
MARK = "\x1e"  # Begins the line of a block in what the script prints


@dataclass(frozen=True)
class Snippet:
    """One fenced block."""

    page: str
    line: int
    language: str
    code: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def executed(self) -> bool:
        """Whether the tests execute it."""
        return self.language not in SHOWN_ONLY and "norun" not in self.options

    @property
    def unclear(self) -> str:
        """What is wrong with its fence; empty if nothing is."""
        known = {"file", "append", "cell", "tag", "exit", "expect", "norun", "only"}
        if unknown := self.options.keys() - known:
            return f"unknown options {sorted(unknown)}"
        if "norun" in self.options and len(self.options["norun"].split()) < 2:
            return "norun says why it is not run"
        placed = self.options.keys() & {"file", "append", "cell"}
        if self.executed and self.language not in {"sh", "python"} and not placed:
            return f"{self.language} needs file=, append= or norun="
        return ""


def snippets(text: str, page: str = "") -> Iterator[Snippet]:
    """Read the blocks of a page."""
    for found in FENCE.finditer(text):
        language, *words = shlex.split(found["info"])
        options = dict(word.split("=", 1) if "=" in word else (word, "") for word in words)
        indent = len(found["indent"])
        code = "".join(line[indent:] if line.strip() else "\n" for line in found["code"].splitlines(keepends=True))
        yield Snippet(page, text.count("\n", 0, found.start()) + 1, language, code, options)


def read_page(path: Path, root: Path) -> list[Snippet]:
    """The blocks of the page at `path`."""
    return list(snippets(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()))


def shown(text: str) -> str:
    """The page as mkdocs takes it: options of a fence become its title, or nothing."""

    def fence(found: re.Match[str]) -> str:
        snippet = next(snippets(found[0] + "\n"))
        title = _title(snippet)
        head = f'{snippet.language} title="{title}"' if title else snippet.language
        return found[0].replace(found["info"], head, 1)

    return FENCE.sub(fence, text)


def _title(snippet: Snippet) -> str:
    options = snippet.options
    if "norun" in options:
        return f"not run by the tests: {options['norun']}".replace('"', "'")
    if "cell" in options:
        return f"{options['cell']}, a cell" + (f" tagged {options['tag']}" if "tag" in options else "")
    if "append" in options:
        return f"{options['append']}, added at the end"
    if options.get("exit", "0") != "0":
        return f"ends with exit code {options['exit']}"
    return options.get("file", "")


# How a block becomes shell. The notebook is written without a library, so that the script needs nothing but Python.
ADD_CELL = """python - {notebook} {tag} <<'{end}'
import json, pathlib, sys
path, tag = pathlib.Path(sys.argv[1]), sys.argv[2:]
source = r'''{code}'''.strip()
kernel = {{"name": "python3", "display_name": "Python 3", "language": "python"}}
empty = {{"cells": [], "metadata": {{"kernelspec": kernel}}, "nbformat": 4, "nbformat_minor": 5}}
book = json.loads(path.read_text()) if path.exists() else empty
cell = {{"cell_type": "code", "id": f"cell-{{len(book['cells']) + 1}}", "metadata": {{"tags": tag}} if tag else {{}}}}
book["cells"].append(cell | {{"execution_count": None, "outputs": [], "source": source}})
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(book, indent=1))
{end}"""
END = "END_OF_BLOCK"


def command(snippet: Snippet) -> str:
    """The shell that does what the block says."""
    options, code = snippet.options, snippet.code
    for option, arrow in (("file", ">"), ("append", ">>")):
        if option in options:
            path = shlex.quote(options[option])
            return f"mkdir -p $(dirname {path}); cat {arrow} {path} <<'{END}'\n{code}{END}"
    if "cell" in options:
        return ADD_CELL.format(notebook=options["cell"], tag=options.get("tag", ""), code=code, end=END)
    run = code.rstrip("\n") if snippet.language == "sh" else f"python - <<'{END}'\n{code}{END}"
    wanted = options.get("exit", "0")
    if wanted == "0":
        return run
    ended = f'[ "$code" = {wanted} ] || {{ echo "ended with $code, not {wanted}" >&2; exit 1; }}'
    return f"set +e\n{run}\ncode=$?; set -e\n{ended}"


def script(parts: list[Snippet], marks: bool = False, able: frozenset[str] = frozenset()) -> str:
    """One bash script of the blocks that are executed; with `marks` it prints where it is."""
    lines = ["#!/usr/bin/env bash", "set -euo pipefail", "trap 'jobs -p | xargs -r kill 2>/dev/null' EXIT", ""]
    for snippet in parts:
        if not snippet.executed or ("only" in snippet.options and snippet.options["only"] not in able):
            continue
        lines.append(f"printf '\\n{MARK}%s\\n' {snippet.place}" if marks else f"# {snippet.place}")
        lines += [command(snippet), ""]
    return "\n".join(lines)


def outputs(printed: str) -> dict[str, str]:
    """What each block has printed, by its place."""
    pieces = printed.split(f"\n{MARK}")[1:]
    return {place: output for place, _, output in (piece.partition("\n") for piece in pieces)}


def missing(wanted: str, printed: str) -> list[str]:
    """Lines of an `expect` block that the output does not have; blanks count once, `…` stands for anything."""
    rest, absent = re.sub(r"[ \t]+", " ", printed), []
    for line in filter(str.strip, wanted.splitlines()):
        pattern = ".*?".join(re.escape(part) for part in re.split("…", re.sub(r"\s+", " ", line.strip())))
        found = re.search(pattern, rest)
        if found is None:
            absent.append(line)
        else:
            rest = rest[found.end() :]
    return absent


if __name__ == "__main__":
    source = Path(sys.argv[1])
    sys.stdout.write(script(read_page(source, source.parent)))
