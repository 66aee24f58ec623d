"""Where a task comes from: a built-in name or a function in the user's file."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import RunError, UserError, describe, nearest
from ..files import write_atomically
from .loop import Loop, takes_run
from .task import Task


@dataclass(frozen=True)
class TaskSource:
    """Where to load a task from, in this process and again in every worker.

    Args:
        name: What the task is called in records: ``mnist1d`` or ``own_task.py:two_spirals``.
        path: The user's file, or None for a built-in task.
        function: The function in that file, or None for a built-in task.
        digest: The hash of the file's bytes, or None for a built-in task.
        text: The file's bytes, for workers that cannot see it.
    """

    name: str
    path: str | None = None
    function: str | None = None
    digest: str | None = None
    text: bytes | None = field(default=None, repr=False)

    @property
    def file_name(self) -> str:
        """What files and folders that belong to the task are called."""
        return self.name.replace(".py:", "-")

    def task(self) -> Task:
        """Make the task, where a training loop will not do.

        Raises:
            UserError: As of `load`, or it is a training loop.
            RunError: As of `load`.
        """
        made = self.load()
        if isinstance(made, Loop):
            raise UserError(f"{self.name} is a training loop, and this needs a steppe.lab.Task")
        return made

    def load(self) -> Task | Loop:
        """Make the task, or the training loop.

        Raises:
            UserError: The user's file or function is at fault, or does not return a task.
            RunError: The file is no longer what it was when the comparison started.
        """
        made = self.make()
        if not isinstance(made, (Task, Loop)):
            raise UserError(f"{self.name} must return a steppe.lab.Task, got {type(made).__name__}")
        return made

    def make(self) -> object:
        """Make whatever the function makes.

        Raises:
            UserError: The user's file or function is at fault.
            RunError: The file is no longer what it was when the comparison started.
        """
        if self.path is None or self.function is None:
            from .builtin import BUILTIN

            return BUILTIN[self.name]()
        path = self.path if self.text is None or Path(self.path).exists() else self._brought_along(self.text)
        if _digest(Path(path)) != self.digest:
            raise RunError(f"{path} has changed while it was in use; run the command again")
        function = _function(_module(path), self.function, path)
        if isinstance(function, Loop):
            return function
        return Loop(function) if takes_run(function) else _call(function, path)

    def _brought_along(self, text: bytes) -> str:
        """Write the file down where it is not, as on another machine."""
        assert self.path is not None
        path = Path(tempfile.gettempdir()) / f"steppe-{self.digest}" / Path(self.path).name
        if not path.is_file():
            write_atomically(path, text)
        return str(path)


def find_task(task: str | Callable[[], Task]) -> TaskSource:
    """Find out where a task comes from, without loading it.

    Args:
        task: A built-in name, ``FILE.py:FUNCTION``, or a function at the top level of a file.

    Returns:
        The source.

    Raises:
        UserError: There is no such task, file or function.

    Example:
        >>> find_task("mnist1d").name
        'mnist1d'
    """
    if not isinstance(task, str):
        return _source_of(task.train if isinstance(task, Loop) else task)
    from .builtin import BUILTIN

    if task in BUILTIN:
        return TaskSource(task)
    file, colon, function = task.rpartition(":")
    if not colon and not task.endswith(".py"):
        raise UserError(f"unknown task {task!r}{nearest(task, BUILTIN)}, or FILE.py:FUNCTION")
    if not colon or not function or not file:
        raise UserError(f"the task {task!r} names no function; write {file or task}:FUNCTION")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"the task file {file!r} does not exist; name an existing one as FILE.py:FUNCTION")
    path = path.resolve()
    _check_defined(path, function)
    return TaskSource(f"{path.name}:{function}", str(path), function, _digest(path), path.read_bytes())


def _source_of(function: Callable[[], Task]) -> TaskSource:
    name = getattr(function, "__qualname__", "")
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or not name.isidentifier():
        raise UserError(
            f"the task must be a name or a function at the top level of a file, because every worker process "
            f"loads it again; got {name or type(function).__name__}"
        )
    return find_task(f"{file}:{name}")


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"the task file {str(path)!r} cannot be read: {error.strerror}") from error


def _check_defined(path: Path, function: str) -> None:
    """Refuse a wrong file or a function that is surely missing before the file is run."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the task file {str(path)!r} is not valid Python: {describe(error)}") from error
    except OSError as error:
        raise UserError(f"the task file {str(path)!r} cannot be read: {error.strerror}") from error
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if names and function not in names and function not in ast.dump(tree):
        raise UserError(f"{path.name} has no function {function!r}{nearest(function, names)}")


class _Fresh(SourceFileLoader):
    """Reads the file itself: cached bytecode goes by seconds and size, and a file may change without either."""

    def path_stats(self, path: Any) -> Any:
        """Refuse what the cache asks for."""
        raise OSError


def _module(path: str) -> ModuleType:
    # The name depends on the path alone, so that whatever the file defines can be pickled between equal processes.
    name = f"steppe_task_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    loader = _Fresh(name, path) if path.endswith(".py") else None
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None or spec.loader is None:
        raise UserError(f"the task file {path!r} cannot be imported; it must be a Python file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"importing the task file {path!r} failed with {describe(error, path)}") from error
    return module


def _function(module: ModuleType, name: str, path: str) -> Callable[[], object] | Loop:
    function = vars(module).get(name)
    if not (callable(function) or isinstance(function, Loop)):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UserError(f"{Path(path).name} has no function {name!r}{nearest(name, names)}")
    found: Callable[[], object] | Loop = function
    return found


def _call(function: Callable[[], object], path: str) -> object:
    where = f"{Path(path).name}:{getattr(function, '__name__', 'function')}"
    try:
        return function()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} failed with {describe(error, path)}") from error
