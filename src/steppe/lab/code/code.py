"""A function or class of the user's: where it is, what it is, and how every process gets it."""

from __future__ import annotations

import ast
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import RunError, UserError, describe, nearest, one_line, shortened
from ..files import write_atomically
from . import reading
from .loading import fresh_module
from .modules import identity


@dataclass(frozen=True)
class Code:
    """A function or class in a file or module of the user's.

    Args:
        kind: What it is to be: a ``task``, a ``method`` or a ``base``.
        name: What it is called in records: ``own_task.py:two_spirals`` or ``package.module:NAME``.
        function: Its name in there.
        digest: What changes when the code does: the hash of what the file says, and those of its folder that it
            imports, or the version of the package it is from; None if that is steppe, whose version is in every record.
        root: The folder that has the files; empty if none of them counts.
        files: The file, and those of its folder that it imports, as paths in there with their contents: for workers
            that cannot see them.
        module: What it is imported from, unless it is loaded from a file.
    """

    kind: str = field(compare=False)
    name: str
    function: str
    digest: str | None
    root: str
    files: tuple[tuple[str, bytes], ...] = field(repr=False)
    module: str | None = None

    @property
    def path(self) -> str | None:
        """The user's file; None of what is imported from a module."""
        return None if self.module is not None else str(Path(self.root) / self.files[0][0])

    @property
    def words(self) -> str:
        """What to write to name it."""
        return f"{self.module or self.path}:{self.function}"

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, here and where they are brought along, to name the line where something fails."""
        return tuple(str(root / name) for root in (Path(self.root), self._elsewhere) for name, _ in self.files)

    @property
    def _elsewhere(self) -> Path:
        return Path(tempfile.gettempdir()) / f"steppe-{self.digest}"

    def load(self) -> Callable[..., Any]:
        """Return the function or class.

        Raises:
            UserError: The file is at fault, or has nothing of that name.
            RunError: A file is no longer what it was when it was found.
        """
        if self.module is not None:
            if find_module(self.words, self.kind).digest != self.digest:
                raise RunError(f"{self.module} has changed while it was in use; run the command again")
            return _from_module(self.words, self.kind)
        root, name = Path(self.root), self.files[0][0]
        if not (root / name).exists():
            root = self._brought_along()
        _check_unchanged(self, root)
        path = str(root / name)
        try:
            module = fresh_module(root, dict(self.files))
        except (Exception, SystemExit) as error:
            reason = describe(error, *self.paths)
            raise UserError(f"importing the {self.kind} file {path!r} failed with {reason}") from error
        found = vars(module).get(self.function)
        if not callable(found):
            kinds = (inspect.isfunction,) if self.kind == "task" else (inspect.isfunction, inspect.isclass)
            names = [key for key, value in vars(module).items() if any(is_one(value) for is_one in kinds)]
            raise _has_none(self.kind, name, self.function, [key for key in names if not key.startswith("_")])
        made: Callable[..., Any] = found
        return made

    def _brought_along(self) -> Path:
        """Write the files down where they are not, as on another machine."""
        root = self._elsewhere
        for name, text in reversed(self.files):  # the one that is looked for comes last
            if not (root / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(root / name, text)
        return root


def is_file(words: str) -> bool:
    """Return whether words such as ``FILE.py:NAME`` name a file, and not a module."""
    place = words.rpartition(":")[0] or words
    return place.endswith(".py") or "/" in place or "\\" in place


def find_file(words: str, kind: str) -> Code:
    """Find ``FILE.py:NAME`` without running it.

    Args:
        words: What the user wrote.
        kind: See `Code`.

    Raises:
        UserError: There is no such file, it is no Python, or surely has nothing of that name.
    """
    file, colon, function = words.rpartition(":")
    if not colon or not function or not file:
        raise UserError(f"the {kind} {words!r} names no function; write {file or words}:FUNCTION")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"the {kind} file {file!r} does not exist; name an existing one as FILE.py:FUNCTION")
    path = path.resolve()
    if path.suffix != ".py":
        raise UserError(f"the {kind} file {str(path)!r} cannot be imported; it must be a Python file that ends in .py")
    _check_defined(kind, path, function)
    files = _read(kind, path.parent, path.name)
    return Code(
        kind, f"{path.name}:{function}", function, reading.digest(files), str(path.parent), tuple(files.items())
    )


def find_module(words: str, kind: str) -> Code:
    """Find ``MODULE:NAME``, and import the module.

    Raises:
        UserError: It cannot be imported, or has nothing of that name.
    """
    _from_module(words, kind)
    name, _, function = words.rpartition(":")
    try:
        version, root, files = identity(import_module(name))
    except OSError as error:
        raise _cannot_be_read(kind, error.filename or name, error) from error
    return Code(kind, words, function, version, root, tuple(files.items()), name)


def words_of(found: object, kind: str) -> str:
    """Return the words for a function or class, by which every worker process finds it again.

    Args:
        found: At the top level of a file or module.
        kind: See `Code`.

    Raises:
        UserError: It is not.
    """
    name = getattr(found, "__qualname__", "")
    module = getattr(found, "__module__", None) or ""
    try:
        file = inspect.getsourcefile(found)  # type: ignore[arg-type]
    except TypeError:
        file = None
    if file is None or not name.isidentifier():
        what = "a function" if kind == "task" else "a function or class"
        raise UserError(
            f"the {kind} must be a name or {what} at the top level of a file, because every worker process loads it "
            f"again; got {name or type(found).__name__}"
        )
    return f"{module}:{name}" if kind != "task" and "." in module else f"{file}:{name}"


def _from_module(words: str, kind: str) -> Callable[..., Any]:
    name, _, function = words.rpartition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(name), function)
    except (Exception, SystemExit) as error:
        plain = isinstance(error, (AttributeError, ImportError, TypeError, ValueError))
        reason = shortened(one_line(error)) if plain else describe(error)
        raise UserError(f"the {kind} {words!r} cannot be imported: {reason}") from error
    return found


def _read(kind: str, root: Path, name: str) -> dict[str, bytes]:
    try:
        return reading.read(root, name)
    except OSError as error:
        raise _cannot_be_read(kind, error.filename or root / name, error) from error


def _check_unchanged(code: Code, root: Path) -> None:
    name = code.files[0][0]
    files = _read(code.kind, root, name)
    if reading.digest(files) != code.digest:
        before, now = reading.digests(dict(code.files)), reading.digests(files)
        changed = next((one for one in {**before, **now} if before.get(one) != now.get(one)), name)
        raise RunError(f"{root / changed} has changed while it was in use; run the command again")


def _check_defined(kind: str, path: Path, function: str) -> None:
    """Refuse a wrong file or a function that is surely missing before the file is run."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the {kind} file {str(path)!r} is not valid Python: {describe(error)}") from error
    except OSError as error:
        raise _cannot_be_read(kind, path, error) from error
    classes = () if kind == "task" else (ast.ClassDef,)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, *classes)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    if names and function not in names and function not in ast.dump(tree):
        raise _has_none(kind, path.name, function, names)


def _cannot_be_read(kind: str, path: str | Path, error: OSError) -> UserError:
    return UserError(f"the {kind} file {str(path)!r} cannot be read: {error.strerror}")


def _has_none(kind: str, file: str, function: str, names: list[str]) -> UserError:
    what = "function" if kind == "task" else "function or class"
    return UserError(f"{file} has no {what} {function!r}{nearest(function, names)}")
