"""Where a task comes from: a built-in name, or a function in the user's file or notebook."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from ..code.cells import Cell, cell_of, find_cell
from ..code.code import Code, find_file, words_of
from ..errors import UserError, describe, nearest
from .loop import Loop, takes_run
from .randomness import drawing_apart
from .task import Task


@dataclass(frozen=True)
class TaskSource:
    """Where to load a task from, in this process and again in every worker.

    Args:
        name: What the task is called in records: ``mnist1d``, ``own_task.py:two_spirals`` or
            ``notebook:two_spirals``.
        code: The function in the user's file or notebook, or None for a built-in task.
        along: The methods and bases of the user's that are to train on it.
    """

    name: str
    code: Code | None = None
    along: tuple[Code, ...] = ()

    @property
    def path(self) -> str | None:
        """The user's file; None for a built-in task, and for one of a notebook."""
        return self.code.path if self.code is not None else None

    @property
    def function(self) -> str | None:
        """The function in there, or None for a built-in task."""
        return self.code.function if self.code is not None else None

    @property
    def digest(self) -> str | None:
        """What changes when the user's code does, or None for a built-in task."""
        return self.code.digest if self.code is not None else None

    @property
    def codes(self) -> tuple[Code, ...]:
        """All code of the user's."""
        return self.along if self.code is None else (self.code, *self.along)

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the user's."""
        return tuple(path for code in self.codes for path in code.paths)

    @property
    def file_name(self) -> str:
        """What files and folders that belong to the task are called."""
        return self.name.replace(".py:", "-").replace(":", "-")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What a notebook has of it, and no file."""
        return tuple(code for code in self.codes if isinstance(code, Cell))

    @property
    def takes_seed(self) -> bool:
        """Whether the function makes a task of its own for each seed, which splits the data otherwise.

        Raises:
            UserError: As of `load`, of which this has to know nothing yet.
            RunError: Likewise.
        """
        if self.code is None:
            return False
        if self.code not in _TAKES_SEED:
            _TAKES_SEED[self.code] = takes_seed(self.code.load())
        return _TAKES_SEED[self.code]

    def pack(self) -> None:
        """Make what is sent to worker processes of a notebook's functions, as they are now.

        Raises:
            UserError: That cannot be.
        """
        for cell in self.cells:
            _ = cell.sent

    def task(self, seed: int = 0) -> Task:
        """Make the task, where a training loop will not do.

        Args:
            seed: As of `load`.

        Raises:
            UserError: As of `load`, or it is a training loop.
            RunError: As of `load`.
        """
        made = self.load(seed)
        if isinstance(made, Loop):
            raise UserError(f"{self.name} is a training loop, and this needs a steppe.lab.Task")
        return made

    def load(self, seed: int = 0) -> Task | Loop:
        """Make the task, or the training loop.

        Args:
            seed: Of the trial, for functions that take it; what is planned and checked is the task of seed 0.

        Raises:
            UserError: The user's file or function is at fault, or does not return a task.
            RunError: The file is no longer what it was when the comparison started.
        """
        made = self.make(seed)
        if not isinstance(made, (Task, Loop)):
            raise UserError(f"{self.name} must return a steppe.lab.Task, got {type(made).__name__}")
        return made

    def make(self, seed: int = 0) -> object:
        """Make whatever the function makes.

        Args:
            seed: As of `load`. What the function draws from the global generators depends on it, too.

        Raises:
            UserError: The user's file or function is at fault.
            RunError: The file is no longer what it was when the comparison started.
        """
        if self.code is None:
            from .builtin import BUILTIN

            return BUILTIN[self.name]()
        function = self.code.load()
        if isinstance(function, Loop):
            return function
        _TAKES_SEED[self.code] = takes_seed(function)
        if _TAKES_SEED[self.code]:
            with drawing_apart(seed):
                return _call(lambda: function(seed=seed), self.code)
        if not takes_run(function):
            return _call(function, self.code)
        if next(iter(inspect.signature(function).parameters)) == "seed":
            raise UserError(f"{self.name} must take the seed alone, as def {self.function}(seed): does")
        return Loop(function)


_TAKES_SEED: dict[Code, bool] = {}  # what is known since it was loaded


def takes_seed(function: object) -> bool:
    """Return whether the one parameter of a function is called ``seed``: then it makes a task for each seed.

    Example:
        >>> takes_seed(lambda seed: 0), takes_seed(lambda run: 0), takes_seed(lambda: 0)
        (True, False, False)
    """
    if isinstance(function, Loop) or not callable(function):
        return False
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters] == ["seed"] and parameters[0].kind in named


def find_task(task: str | Callable[..., Task]) -> TaskSource:
    """Find out where a task comes from, without loading it.

    Args:
        task: A built-in name, ``FILE.py:FUNCTION``, or a function at the top level of a file, or of a notebook, whose
            one parameter may be called ``seed``.

    Returns:
        The source.

    Raises:
        UserError: There is no such task, file or function, or records could not go by what it uses.

    Example:
        >>> find_task("mnist1d").name
        'mnist1d'
    """
    if not isinstance(task, str):
        cell = cell_of(task, "task", task.train if isinstance(task, Loop) else None)
        if cell is not None:
            return TaskSource(cell.name, cell)
        task = words_of(task.train if isinstance(task, Loop) else task, "task")
    from .builtin import BUILTIN

    if task in BUILTIN:
        return TaskSource(task)
    find_cell(task, "task")
    if ":" not in task and not task.endswith(".py"):
        raise UserError(f"unknown task {task!r}{nearest(task, BUILTIN)}, or FILE.py:FUNCTION")
    code = find_file(task, "task")
    return TaskSource(code.name, code)


def _call(function: Callable[[], object], code: Code) -> object:
    try:
        return function()
    except UserError as error:
        raise UserError(f"{code.name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{code.name} failed with {describe(error, *code.paths)}") from error
