"""What Python code says, however it is written down: comments, blank lines and other formatting do not count."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

_WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class _Mark(str):
    """A word of the text itself, and not a value in it."""

    __slots__ = ()


def parsed(text: bytes | str) -> ast.Module | None:
    """Return the syntax tree of a file; None if it cannot be parsed."""
    try:
        with warnings.catch_warnings():  # that of an odd escape would be an error for some, and nothing for others
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # said where it is imported
        return None


def canonical(text: bytes | str, docstrings: bool = True) -> bytes:
    """Write code down in the one form that all code of the same meaning has, in every version of Python.

    Args:
        text: The code.
        docstrings: Whether those of modules, classes and functions count.

    Returns:
        That form; of what cannot be parsed the text itself.

    Example:
        >>> canonical("x = (1)  # one") == canonical("x=1"), canonical("x = 1") == canonical("x = 2")
        (True, False)
    """
    tree = parsed(text)
    if tree is None:
        return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return " ".join(_words(tree, docstrings)).encode()


def _words(tree: ast.Module, docstrings: bool) -> Iterator[str]:
    waiting: list[object] = [tree]  # no recursion: some code is deep
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.AST):
            waiting += reversed([_Mark(f"{type(part).__name__}("), *_fields(part, docstrings), _Mark(")")])
        elif isinstance(part, list):
            waiting += reversed([_Mark("["), *part, _Mark("]")])
        elif isinstance(part, _Mark):
            yield part
        elif type(part) is int:
            yield hex(part)  # Python writes no decimal number of more than some thousand digits
        else:
            yield ascii(part)


def _fields(node: ast.AST, docstrings: bool) -> Iterator[object]:
    for name in sorted(node._fields):  # which grow in number from version to version
        value = getattr(node, name, None)
        if name == "body" and not docstrings and isinstance(node, _WITH_DOCSTRINGS) and _is_text(node.body[:1]):
            value = node.body[1:]
        if value is None or value == [] or name in ("kind", "type_comment", "type_ignores"):
            continue
        yield _Mark(f"{name}=")
        yield value


def _is_text(statements: list[ast.stmt]) -> bool:
    return any(
        isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str)
        for one in statements
    )
