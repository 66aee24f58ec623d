"""Errors of commands that a user can act on: one line that says what was wrong, what was got, what to do instead."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from .._extras import how_to_install

_EXTRA_OF: dict[str, str | None] = {  # None where no extra has it
    "jinja2": "compare",
    "markupsafe": "compare",
    "matplotlib": "compare",
    "mnist1d": "compare",
    "numpy": "compare",
    "pydantic": "compare",
    "pydantic_core": "compare",
    "rich": "compare",
    "scipy": "compare",
    "sklearn": "compare",
    "typer": "compare",
    "yaml": "compare",
    "cloudpickle": "compare",
    "distributed": "cluster",
    "optuna": "compare",
    "sqlalchemy": "sweep",
    "hessian_eigenthings": "compare,measure",
    "datasets": "studies,text",
    "pyarrow": "studies,text",
    "transformers": "studies,text",
    "accelerate": "log",
    "tensorboard": "log",
    "mlflow": None,
    "pandas": None,
    "trackio": None,
    "wandb": None,
}


_LONGEST = 2000  # characters


class UserError(Exception):
    """Something in the input is wrong; the message is one line and complete in itself.

    Whatever names and libraries' texts are in it, no terminal obeys them.

    Args:
        message: What is said.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        """See the class."""
        super().__init__(shortened(message.replace("\n", " "), _LONGEST))


class RunError(UserError):
    """The input was accepted, but a trial could not be carried out."""

    exit_code = 1


@contextmanager
def exits_raise() -> Iterator[None]:
    """Within this, ``os._exit`` raises SystemExit, as ``sys.exit`` does: else the process would end without a word."""
    here, leave = os.getpid(), os._exit

    def refuse(code: int = 0) -> None:
        if os.getpid() != here:  # a process that was forked here ends so
            leave(code)
        raise SystemExit(f"os._exit({code})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = leave


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'? known: x, y`` for an unknown `name`.

    Args:
        name: What the user wrote.
        known: All valid names.

    Returns:
        A clause to append to an error message.

    Example:
        >>> nearest("sma", ["sam", "gsam"])
        "; did you mean 'sam'? known: sam, gsam"
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name.lower(), names, n=2, cutoff=0.6)
    guess = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ";"
    return f"{guess} known: {', '.join(names)}" if names else ""


def one_line(text: object) -> str:
    """Return the text of an error with every run of white space made one blank."""
    return " ".join(str(text).split())


def shortened(text: str, most: int = 200) -> str:
    """Return a text of libraries or users in at most so many characters, without any that a terminal would obey."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


def describe(error: BaseException, *files: str | Path | None) -> str:
    """Describe an exception in one line, with the last line of `files` that it passed through.

    Args:
        error: The exception, with its traceback.
        files: The user's, or the cells of a notebook; without one, or if none was involved, the innermost frame is
            named.

    Returns:
        For example ``ValueError: bad shape (own_task.py, line 12)``.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}, line {error.lineno})"
    message = shortened(one_line(error), _LONGEST // 2)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in map(str, files)]
    for frame in (own or frames)[-1:]:
        # Where a notebook calls its cells by numbers, as no user does.
        is_cell = frame in own and not Path(frame.filename).exists()
        text += f" ({frame.name if is_cell else Path(frame.filename).name}, line {frame.lineno}"
        text += " of its cell)" if is_cell else ")"
    return text


def require(*modules: str) -> None:
    """Import what will be needed now, not after the first training.

    Raises:
        UserError: One is not installed; says which extra has it.
    """
    try:
        for name in modules:
            import_module(name)
    except ImportError as error:
        raise missing_extra(error) or error from error


def missing_extra(error: ImportError) -> UserError | None:
    """Turn a failed import of an optional dependency into the line that says how to install it.

    Args:
        error: What an import statement raised.

    Returns:
        The error to show, or None if the module is not one that an extra installs.
    """
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRA_OF:
        return None
    return UserError(how_to_install(name, _EXTRA_OF[name]))
