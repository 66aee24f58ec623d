"""Functions and classes of a notebook, or of an interactive session: no file has them, so they travel by value."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

from ..._extras import how_to_install
from ..errors import UserError, describe, one_line, shortened
from . import contents
from .code import Code

PREFIX = "notebook:"

_HERE = "train in this process, with jobs=0"
_SENT = "<dynamic-code>"  # as cloudpickle calls all cells


@dataclass(frozen=True)
class Cell(Code):
    """A function or class that this session has, and no file.

    Args:
        held: What it is; None in another process, which makes it of what was sent.
        cells: The names of the cells that it is from, to name the line where something fails.
    """

    held: Any = field(default=None, compare=False, repr=False)
    cells: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def path(self) -> str | None:
        """None: there is no file."""
        return None

    @property
    def words(self) -> str:
        """What it is called in this session."""
        return self.name

    @property
    def paths(self) -> tuple[str, ...]:
        """The names of its cells, here and where they were sent."""
        return (*self.cells, _SENT)

    @cached_property
    def sent(self) -> bytes:
        """What another process makes it of: as it was when this was first asked for.

        Raises:
            UserError: cloudpickle is not installed, or something that it uses cannot be sent.
        """
        try:
            import cloudpickle
        except ImportError as error:
            raise UserError(f"{how_to_install('cloudpickle', 'compare')}; or {_HERE}") from error
        try:
            return bytes(cloudpickle.dumps(self.held))
        except Exception as error:
            reason = shortened(f"{type(error).__name__}: {one_line(error)}")
            raise UserError(
                f"the {self.kind} {self.function} cannot be sent to worker processes ({reason}); make what it uses "
                f"within it, or {_HERE}"
            ) from error

    def load(self) -> Callable[..., Any]:
        """Return the function or class.

        Raises:
            UserError: This process cannot make it, as where a module is missing that it uses.
        """
        found: Callable[..., Any] = self._made if self.held is None else self.held
        return found

    @cached_property
    def _made(self) -> Any:
        import cloudpickle

        try:
            return cloudpickle.loads(self.sent)
        except Exception as error:
            raise UserError(
                f"a worker process cannot make the {self.kind} {self.function}: {describe(error)}; {_HERE}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process."""
        kept = {name: value for name, value in vars(self).items() if name != "_made"}
        return {**kept, "sent": self.sent, "held": None}


def cell_of(found: object, kind: str, train: object | None = None) -> Cell | None:
    """Return a function or class as one of this session; None if a file or a module has it.

    Args:
        found: What to look at.
        kind: See `Code`.
        train: The function of which this is made, if it is a training loop.

    Raises:
        UserError: It has no name, or uses something that has no content, by which records could go.
    """
    function = found if train is None else train
    if not isinstance(function, (FunctionType, type)) or function.__module__ != "__main__" or _has_file(function):
        return None
    name = function.__name__
    if not name.isidentifier():
        raise UserError(f"the {kind} must have a name, by which records call it; write def, got {name}")
    try:
        digest, cells = contents.read(found)
    except contents.Unreadable as error:
        raise UserError(
            f"the {kind} {name} uses {error}; make that within it, or put both into a file and give FILE.py:NAME"
        ) from error
    return Cell(kind, f"{PREFIX}{name}", name, digest, "", (), None, found, cells)


def words_for(found: object, kind: str) -> str | None:
    """Return words that `find_cell` knows from now on, for a function or class of this session; None for any other.

    Raises:
        UserError: As of `cell_of`.
    """
    cell = cell_of(found, kind)
    if cell is None:
        return None
    _cells[cell.name] = cell
    return cell.name


def find_cell(words: str, kind: str) -> Cell | None:
    """Return what `words_for` gave words to; None if they do not name a cell.

    Raises:
        UserError: This session has nothing of the kind.
    """
    if not words.startswith(PREFIX):
        return None
    if words not in _cells:
        raise UserError(
            f"the {kind} {words!r} was a function or class of a notebook; give that itself, in Python, or put it into "
            "a file and give FILE.py:NAME"
        )
    return _cells[words]


_cells: dict[str, Cell] = {}


def _has_file(found: FunctionType | type) -> bool:
    """Return whether a script or module has it, from which worker processes can load it again."""
    plain = inspect.unwrap(found)
    if isinstance(plain, FunctionType):
        return Path(plain.__code__.co_filename).is_file()
    codes = contents.codes_of(plain) if isinstance(plain, type) else []
    file = codes[0].co_filename if codes else getattr(sys.modules["__main__"], "__file__", None)
    return file is not None and Path(file).is_file()
