"""What came of trials that were repeated, to see whether they depend on nothing but their configuration."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from ..files import write_atomically
from ..trials.fields import Model
from ..trials.records import Record
from . import reading

_COUNTS = ("gradient_evaluations", "examples", "updates")


class Repeat(Model):
    """The outcome for one trial.

    Attributes:
        schema_version: Of this format.
        key: The trial's.
        numbers: The hash of what its record had found: it is not that of a trial that was trained anew.
        difference: What another number was and is, the first of them; empty if all are the same, None if the trial is
            to be repeated.
    """

    schema_version: Literal[1] = 1
    key: str
    numbers: str
    difference: str | None = None


def numbers(record: Record) -> dict[str, Any]:
    """Return all that a trial has found, but for the time that it took."""
    fields = {"status", "diverged", "final", "curve", *_COUNTS}
    found = record.model_dump(mode="json", include=fields)
    del found["curve"]["seconds"]
    return found


def write(folder: Path, record: Record, difference: str | None) -> None:
    """Write what came of a trial; see `Repeat`.

    Raises:
        OSError: The folder cannot be written.
    """
    repeat = Repeat(key=record.key, numbers=_hash(record), difference=difference)
    write_atomically(_path(folder, record), repeat.model_dump_json(indent=1) + "\n")


def read(folder: Path, record: Record) -> Repeat | None:
    """Read what came of a trial; None if it was not chosen, or trained anew since.

    Raises:
        UserError: What stands in its place is no such file; it is left there.
    """
    path = _path(folder, record)
    if not os.path.lexists(path):
        return None
    found = reading.read(path, Repeat, "what came of a repeated trial", "Move it away, and it is forgotten")
    return found if (found.key, found.numbers) == (record.key, _hash(record)) else None


def _path(folder: Path, record: Record) -> Path:
    return folder / "repeats" / f"{record.key}.json"


def _hash(record: Record) -> str:
    return hashlib.sha256(json.dumps(numbers(record), sort_keys=True).encode()).hexdigest()
