"""What a sweep's sampler has chosen, and how far a setting went that was not worth its training: a file for each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..files import write_atomically
from ..trials.fields import Model
from . import reading

_WHAT = "a setting of this sweep"
_INSTEAD = "Move it away, and the setting is chosen again"


class Kept(Model):
    """A setting of a sweep.

    Attributes:
        schema_version: Of this format.
        setting: What is varied, by name.
        stopped: The validation metric of its first seed after every epoch, up to where it was not worth more.
    """

    schema_version: Literal[1] = 1
    setting: dict[str, bool | float]
    stopped: tuple[float, ...] | None = None


def write(folder: Path, sweep: str, slot: int, kept: Kept) -> None:
    """Write a setting.

    Args:
        folder: Of the sweep.
        sweep: The key of all that its choices depend on.
        slot: The setting's number.
        kept: The setting.

    Raises:
        OSError: The folder cannot be written.
    """
    write_atomically(_path(folder, sweep, slot), kept.model_dump_json() + "\n")


def read(folder: Path, sweep: str, slot: int, fits: Callable[[dict[str, bool | float]], bool]) -> Kept | None:
    """Read a setting if it is there.

    Args:
        folder: Of the sweep.
        sweep: See `write`.
        slot: See `write`.
        fits: Whether that is a setting of the sweep.

    Raises:
        UserError: What stands in its place is none of this sweep; it is left there.
    """
    path = _path(folder, sweep, slot)
    if not os.path.lexists(path):
        return None
    kept = reading.read(path, Kept, _WHAT, _INSTEAD)
    if not fits(kept.setting):
        raise reading.refused(path, "its values are not of the grid", _WHAT, _INSTEAD)
    return kept


def _path(folder: Path, sweep: str, slot: int) -> Path:
    return folder / "settings" / f"{slot:05d}-{sweep}.json"
