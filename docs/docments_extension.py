"""Parameters are documented by comments beside them (docments): put them where mkdocstrings looks, in the docstring."""

from __future__ import annotations

import importlib
from typing import Any

import griffe
from fastcore.docments import docments


class Docments(griffe.Extension):
    """Add a table of parameters, and what is returned, to the docstring of every function that comments them."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Extend the docstring of a function."""
        told = _comments(func.path)
        returned = told.pop("return", "")
        lines = [f"    {name}: {text}" for name, text in told.items() if text and name in func.parameters]
        added = ["Args:", *lines] if lines else []
        added += ["", "Returns:", f"    {returned}"] if returned else []
        if added:
            before = func.docstring.value if func.docstring else ""
            func.docstring = griffe.Docstring("\n".join([before, "", *added]), parent=func, parser="google")

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Document the fields of a dataclass by the comments beside them."""
        for name, text in _comments(cls.path).items():
            field = cls.members.get(name)
            if text and isinstance(field, griffe.Attribute) and field.docstring is None:
                field.docstring = griffe.Docstring(text, parent=field)


def _comments(path: str) -> dict[str, str]:
    """The comments of the function at a dotted path, by parameter; none where there is no such function."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            for name in parts[length:]:
                found = getattr(found, name)
            return {name: text for name, text in docments(found, returns=True).items() if isinstance(text, str)}
        except (AttributeError, TypeError, OSError, ValueError):
            return {}
    return {}
