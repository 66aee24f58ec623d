"""How many settings a budget of time has become, so that the same command goes on with as many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..files import write_atomically
from ..trials.fields import Model
from . import reading

_WHAT = "how many settings a budget of time is"
_INSTEAD = "Move it away, and that is decided again"


class Decided(Model):
    """A decision.

    Attributes:
        schema_version: Of this format.
        settings: Of each row.
    """

    schema_version: Literal[1] = 1
    settings: Annotated[int, Field(ge=2)]


def write(folder: Path, key: str, settings: int) -> None:
    """Write a decision.

    Args:
        folder: Of what is tuned.
        key: Of all that is tuned, and of the budget.
        settings: Of each row.

    Raises:
        OSError: The folder cannot be written.
    """
    write_atomically(_path(folder, key), Decided(settings=settings).model_dump_json() + "\n")


def read(folder: Path, key: str) -> int | None:
    """Read a decision if it is there.

    Raises:
        UserError: What stands in its place is none; it is left there.
    """
    path = _path(folder, key)
    return reading.read(path, Decided, _WHAT, _INSTEAD).settings if os.path.lexists(path) else None


def _path(folder: Path, key: str) -> Path:
    return folder / f"budget-{key}.json"
