"""What a function of a notebook is: its source, and the content of everything in the notebook that it uses."""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

from ..errors import one_line, shortened
from . import modules, reading, trees

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented))
_FUNCTIONS = (FunctionType, staticmethod, classmethod, property)
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
# Of classes: what Python adds by itself, some of it when a class is first used.
_ADDED = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__slotnames__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


class Unreadable(Exception):
    """A value has no content that could be read.

    Args:
        name: Of the value.
        reason: Why.
    """

    def __init__(self, name: str, reason: str) -> None:
        """See the class."""
        super().__init__(f"{name!r}, {reason}")


def read(found: object) -> tuple[str, tuple[str, ...]]:
    """Read a function or class with everything of the notebook that it uses.

    Functions and classes count by what their source says, or by their compiled code where there is no text, as in
    Python's own console; modules of the user's by their files; all else by content.

    Args:
        found: The function, class or training loop.

    Returns:
        The hash, the same in every session, and the names of all cells that were read.

    Raises:
        Unreadable: Something that it uses has no content, such as a lock or an open file.
    """
    reader = _Reader()
    reader.read(found)
    return reader.hexdigest(), tuple(reader.cells)


class _Reader:
    """Reads values into one hash."""

    def __init__(self) -> None:
        self.cells: dict[str, None] = {}
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # as long as they live, no other value has their ids
        self._names = ["it"]

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def read(self, found: Any) -> None:
        kind = type(found)
        if kind in _PLAIN:
            self._put(kind.__name__, repr(found))
        elif kind is tuple:
            self._all("tuple", found)
        elif kind in (set, frozenset):
            self._put(kind.__name__, *sorted(self._apart(value) for value in found))
        elif id(found) in self._seen:
            self._put("again", str(self._seen[id(found)]))
        else:
            self._seen[id(found)] = len(self._seen)
            self._kept.append(found)
            self._read_once(found)

    def _read_once(self, found: Any) -> None:
        if type(found) is list:
            self._all("list", found)
        elif type(found) in (dict, MappingProxyType):
            self._all("dict", [part for pair in found.items() for part in pair])
        elif isinstance(found, ModuleType):
            self._module(found)
        elif isinstance(found, CodeType):
            self._code(found)
        elif isinstance(found, (FunctionType, type)) and _has_name(found):
            self._put("named", found.__module__, found.__qualname__)
            self._module(sys.modules[found.__module__])
        elif isinstance(found, FunctionType):
            self._function(found)
        elif isinstance(found, type):
            self._class(found)
        elif isinstance(found, BuiltinFunctionType):
            owner = found.__self__
            self._put("builtin", str(found.__module__), found.__qualname__)
            self.read(None if owner is None or isinstance(owner, (ModuleType, type)) else owner)
        elif isinstance(found, MethodType):
            self._all("method", [found.__func__, found.__self__])
        elif isinstance(found, (staticmethod, classmethod)):
            self._all(type(found).__name__, [found.__func__])
        elif isinstance(found, property):
            self._all("property", [found.fget, found.fset, found.fdel])
        elif callable(found) and hasattr(found, "__wrapped__"):
            self._all("wrapped", [type(found), found.__wrapped__])
        elif not self._numbers(found):
            self._object(found)

    def _function(self, function: FunctionType) -> None:
        code = function.__code__
        self.cells[code.co_filename] = None
        try:
            self._put("function", _said(inspect.getsource(code)))
        except (OSError, IndexError):
            self._code(code)
        self.read(function.__defaults__)
        self.read(function.__kwdefaults__)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError), self._named(name):  # a name that has no value yet
                self.read(cell.cell_contents)
        if function.__module__ != "__main__":  # what that uses belongs to its module
            return
        for name in sorted(_used(code, *_GLOBAL)):
            if name in function.__globals__:
                with self._named(name):
                    self.read(function.__globals__[name])
        for name in sorted(_used(code, "IMPORT_NAME")):
            self._put("imports", name)
            with suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(name)
                self._file(SimpleNamespace(__name__=name, __file__=None if spec is None else spec.origin))

    def _class(self, found: type) -> None:
        text = _text(found)
        self._put("class", found.__qualname__, _said(text or ""))
        self._all("bases", [type(found), *found.__bases__])
        for name, value in sorted(vars(found).items()):
            if name in _ADDED:
                continue
            self._put(name)
            try:
                with self._named(name):
                    self.read(value)
            except Unreadable:
                if text is None or isinstance(value, _FUNCTIONS):
                    raise

    def _code(self, code: CodeType) -> None:
        """Read compiled code, without its places in a file."""
        self._put("code", code.co_code, repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount)))
        self.read(code.co_consts)

    def _numbers(self, found: Any) -> bool:
        """Read an array or a tensor of numbers, if it is one."""
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(found, torch.Tensor):
            if found.layout != torch.strided or found.is_quantized or found.is_meta:
                return False
            self._put("tensor", str(found.dtype), str(tuple(found.shape)), str(found.requires_grad))
            plain = found.detach().cpu().resolve_conj().resolve_neg().contiguous()
            self._put(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
            return True
        if numpy is not None and type(found) is numpy.ndarray and not found.dtype.hasobject:
            self._put("array", str(found.dtype.descr), str(found.shape), found.tobytes())
            return True
        return False

    def _object(self, found: Any) -> None:
        """Read any other object as what it would be made again from."""
        try:
            made = found.__reduce_ex__(4)
        except Exception as error:
            raise self._unreadable(found, shortened(one_line(error))) from error
        if isinstance(made, str):
            self._put("object", type(found).__module__, made)
            return
        parts = [list(part) if isinstance(part, Iterator) else part for part in made]
        self._kept.append(parts)
        self._all("object", parts)

    def _module(self, module: ModuleType) -> None:
        self._put("module", module.__name__)
        self._file(module)

    def _file(self, module: Any) -> None:
        try:
            _, files = modules.own_files(module)
        except OSError as error:
            raise self._unreadable(module, error.strerror or "its file cannot be read") from error
        if files:
            self._put("files", reading.digest(files))

    def _all(self, kind: str, parts: Iterable[Any]) -> None:
        listed = list(parts)
        self._put(kind, str(len(listed)))
        for part in listed:
            self.read(part)

    def _apart(self, found: Any) -> str:
        """Return the hash of a value by itself."""
        reader = _Reader()
        reader._names = self._names
        reader.read(found)
        self.cells |= reader.cells
        return reader.hexdigest()

    def _put(self, *parts: str | bytes) -> None:
        for part in parts:
            text = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            self._hash.update(b"%d:" % len(text) + text)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        self._names.append(name)
        try:
            yield
        finally:
            self._names.pop()

    def _unreadable(self, found: object, reason: str) -> Unreadable:
        return Unreadable(self._names[-1], f"a {type(found).__name__}, which has no content to go by ({reason})")


def _has_name(found: FunctionType | type) -> bool:
    """Return whether a module other than that of the session has a function or class under its name."""
    module: Any = sys.modules.get(found.__module__ or "")
    if module is None or module.__name__ == "__main__":
        return False
    for name in found.__qualname__.split("."):
        module = getattr(module, name, None)
    return module is found


def _used(code: CodeType, *operations: str) -> set[str]:
    """Return the names that some operations of code use, that of functions and classes within included."""
    found = {str(one.argval) for one in dis.get_instructions(code) if one.opname in operations}
    return found.union(*(_used(part, *operations) for part in code.co_consts if isinstance(part, CodeType)))


def _said(source: str) -> bytes:
    """Return what a piece of a cell says: its comments and formatting do not count."""
    return trees.canonical(textwrap.dedent(source))


def _text(found: type) -> str | None:
    """Return the source of a class, if that of one of its functions can be found: classes do not know their cells."""
    for code in codes_of(found):
        lines = linecache.getlines(code.co_filename)
        with suppress(SyntaxError, ValueError):
            for node in ast.walk(ast.parse("".join(lines))):
                if not (isinstance(node, ast.ClassDef) and node.name == found.__name__):
                    continue
                if node.lineno <= code.co_firstlineno <= (node.end_lineno or 0):
                    return ast.get_source_segment("".join(lines), node)
    return None


def codes_of(found: type) -> list[CodeType]:
    """Return the code of the functions that a class defines itself."""
    functions: Mapping[str, object] = {name: getattr(value, "__func__", value) for name, value in vars(found).items()}
    return [one.__code__ for one in functions.values() if isinstance(one, FunctionType)]
