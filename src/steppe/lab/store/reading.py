"""Read what was written: strictly, as a whole, and nothing is changed where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ..errors import UserError, one_line, shortened
from ..trials.fields import Model

_AnyModel = TypeVar("_AnyModel", bound=Model)


def read(path: Path, model: type[_AnyModel], what: str, instead: str) -> _AnyModel:
    """Read a JSON file.

    Args:
        path: Of the file.
        model: What is in it.
        what: That in words, such as ``the record of a finished trial``.
        instead: What the user can do where it is none.

    Raises:
        UserError: It is no such file; it is left there.
    """
    if not path.is_file():  # a pipe would be waited for
        raise refused(path, "it is no file", what, instead)
    try:
        return model.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = one_line(first["msg"])
        raise refused(path, f"{where}: {reason}" if where else reason, what, instead) from error
    except OSError as error:
        raise refused(path, error.strerror or "it cannot be read", what, instead) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise refused(path, one_line(error), what, instead) from error


def refused(path: Path, reason: str, what: str, instead: str) -> UserError:
    """Return the error that says why a file is not what stands in its place."""
    return UserError(f"{path} is not {what}: {shortened(reason)}. {instead}")
