"""Calls from Python, where no command line could name what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..code.cells import Cell


def call(function: str, given: Iterable[Any], named: Mapping[str, Any], cells: Iterable[Cell]) -> str:
    """Write a call down, as one would type it in the notebook.

    Args:
        function: What is called.
        given: Its first arguments.
        named: Those that have their names; what is None is left out.
        cells: What stands there itself, in place of the words for it.

    Example:
        >>> call("compare", ["digits"], {"methods": ["sam"], "measure": None}, [])
        "compare('digits', methods=['sam'])"
    """
    functions = {cell.words: cell.function for cell in cells}
    parts = [_shown(value, functions) for value in given]
    parts += [f"{name}={_shown(value, functions)}" for name, value in named.items() if value is not None]
    return f"{function}({', '.join(parts)})"


def _shown(value: Any, functions: Mapping[str, str]) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_shown(one, functions)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_shown(one, functions) for one in value) + "]"
    return functions.get(value, repr(value)) if isinstance(value, str) else repr(value)
