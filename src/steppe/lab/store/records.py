"""One JSON file per finished trial in the folder of a comparison, and one of its weights."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import UserError
from ..files import write_atomically
from ..trials.records import Record, TrialConfig
from . import reading

_WHAT = "the record of a finished trial"
_INSTEAD = "Move it away, and the trial is run again"


def record_path(folder: Path, config: TrialConfig) -> Path:
    """Return the file of a trial's record in the folder of a comparison."""
    return folder / "trials" / f"{_stem(config)}.json"


def weights_path(folder: Path, config: TrialConfig) -> Path:
    """Return the file of a trial's final weights in the folder of a comparison."""
    return folder / "weights" / f"{_stem(config)}.pt"


def write(folder: Path, record: Record) -> None:
    """Write a record so that at any moment its file is either absent or complete.

    Args:
        folder: The folder of the comparison.
        record: What to write.

    Raises:
        OSError: The folder cannot be written.
    """
    write_atomically(record_path(folder, record.config), record.model_dump_json(indent=1) + "\n")


def write_weights(folder: Path, config: TrialConfig, weights: bytes) -> None:
    """Write final weights, to be read with ``torch.load(path, weights_only=True)``.

    Args:
        folder: The folder of the comparison.
        config: The trial.
        weights: The model's ``state_dict``, as ``torch.save`` writes it.

    Raises:
        OSError: The folder cannot be written.
    """
    write_atomically(weights_path(folder, config), weights)


def read(folder: Path, config: TrialConfig) -> Record | None:
    """Read the record of a trial if there is one.

    Args:
        folder: The folder of the comparison.
        config: The trial.

    Raises:
        UserError: What stands in its place is no such record; it is left there.
    """
    path = record_path(folder, config)
    record = _read(path) if os.path.lexists(path) else None
    if record is None or (record.config == config and record.key == config.key):
        return record
    raise reading.refused(path, "it is the record of another trial", _WHAT, _INSTEAD)


def trained(folder: Path) -> list[TrialConfig]:
    """Return the configurations of all readable records in the folder of a comparison, the oldest first."""
    found = []
    for path in sorted((folder / "trials").glob("*.json"), key=lambda path: path.stat().st_mtime):
        with suppress(UserError):  # of another version of the format, or broken: not one that this version can use
            found.append(_read(path).config)
    return found


def others(
    folder: Path, configs: Iterable[TrialConfig], keys: Container[str]
) -> dict[tuple[str, int], list[TrialConfig]]:
    """Return what was trained of the same rows and seeds, but otherwise; the newest first.

    Args:
        folder: The folder of the comparison.
        configs: The trials.
        keys: Those of records that are left out.
    """
    asked = {f"{config.row}-{config.seed}": (config.row, config.seed) for config in configs}
    found: dict[tuple[str, int], list[TrialConfig]] = {}
    for path in sorted((folder / "trials").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        stem, _, key = path.stem.rpartition("-")
        if stem in asked and key not in keys:
            with suppress(UserError):
                config = _read(path).config
                if (config.row, config.seed) == asked[stem]:
                    found.setdefault(asked[stem], []).append(config)
    return found


def _read(path: Path) -> Record:
    record = reading.read(path, Record, _WHAT, _INSTEAD)
    if record.problem is not None:
        raise reading.refused(path, record.problem, _WHAT, _INSTEAD)
    return record


def _stem(config: TrialConfig) -> str:
    return f"{config.row}-{config.seed}-{config.key}"
