"""Every place in the package that makes an error of ours, and, when asked for, which of them the tests come to.

`make errors` runs the tests with `N2P_TEST_ERRORS=FILE`: each process then adds to FILE the places it comes to. A place is a
file, the function in it and the message; lines would change with every edit.
"""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "notebook_to_prod"
VARIABLE = "N2P_TEST_ERRORS"
USAGE = {"UsageError"}  # click's, which the commands raise themselves

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _name(node: ast.expr | None) -> str:
    """The last part of a dotted name, in quotes or not."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.rpartition(".")[2]
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def makers() -> dict[Path, frozenset[str]]:
    """The names of what returns an error of ours, by module: its classes, and the functions that say they return one."""
    trees = {path: [*ast.walk(_tree(path))] for path in sorted(PACKAGE.rglob("*.py"))}
    defined = [node for nodes in trees.values() for node in nodes if isinstance(node, ast.ClassDef)]
    classes = {"N2PError"}
    while more := {node.name for node in defined if {_name(base) for base in node.bases} & classes} - classes:
        classes |= more
    own = {
        path: {node.name for node in nodes if isinstance(node, Function) and _name(node.returns) in classes}
        for path, nodes in trees.items()
    }
    public = {name for names in own.values() for name in names if not name.startswith("_")}
    return {path: frozenset(classes | public | names | USAGE) for path, names in own.items()}


def _message(call: ast.Call) -> str:
    """What a place says, its values as the code that makes them."""
    said = call.args[0] if call.args else next((each.value for each in call.keywords if each.arg == "what"), None)
    if said is None:
        return ""
    text = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ast.unparse(said)
    return " ".join(text.split())


@cache
def places(path: Path) -> dict[int, str]:
    """The places of a module of the package, by the line that calls what makes the error."""
    found: dict[int, str] = {}
    shown = path.relative_to(PACKAGE).as_posix()

    def visit(node: ast.AST, within: tuple[str, ...]) -> None:
        if isinstance(node, ast.Call) and (name := _name(node.func)) in makers()[path]:
            found[node.lineno] = f"{shown} {'.'.join(within) or '-'}: {name}: {_message(node)}"
        inside = (*within, node.name) if isinstance(node, Function | ast.ClassDef) else within
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(_tree(path), ())
    return found


def every_place() -> set[str]:
    """All of them."""
    modules = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "errors.py"})
    return {place for path in modules for place in places(path).values()}


def _frames(depth: int) -> Iterator[str]:
    """The places on the stack, from what makes the error outwards: also who called a function that returns it."""
    frame = sys._getframe(depth)
    left = 8
    while frame is not None and left:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            left -= 1
            if place := places(path).get(frame.f_lineno):
                yield place
        frame = frame.f_back  # type: ignore[assignment]


_seen: set[str] = set()
_untold: set[str] = set()  # Of a moment at which nothing could be written, as a test has it that has no space


def _told(make: Callable[..., None], file: str) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        _untold.update(set(_frames(2)) - _seen)
        if _untold:
            with contextlib.suppress(OSError), Path(file).open("ab", buffering=0) as told:
                told.write("".join(f"{each}\n" for each in sorted(_untold)).encode())
                _seen.update(_untold)
                _untold.clear()

    return init


def record() -> None:
    """Let this process tell the places it comes to, if it is asked to."""
    if not (file := os.environ.get(VARIABLE)):
        return
    from notebook_to_prod.errors import N2PError

    if N2PError.__init__.__name__ != "init":
        os.environ |= variables()
        makers()  # Before anything forks
        N2PError.__init__ = _told(N2PError.__init__, file)  # type: ignore[method-assign]
        if "click" in sys.modules:
            from click import UsageError

            UsageError.__init__ = _told(UsageError.__init__, file)  # type: ignore[method-assign]


def variables() -> dict[str, str]:
    """What a command is started with, so that its own processes tell too."""
    file = os.environ.get(VARIABLE)
    return {VARIABLE: file, "PYTHONPATH": str(TESTS / "recorded")} if file else {}


def main(*files: str) -> None:
    """List the places that nothing in `files` has come to, or with no file all."""
    told = {line for file in files for line in Path(file).read_text("utf-8").splitlines()}
    never = sorted(every_place() - told)
    print(*never, sep="\n")
    print(f"{len(every_place())} places, {len(never)} of them not provoked", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
