"""One JSON file per finished trial in the folder of a comparison, and one of its weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..files import write_atomically
from ..trials.records import Record, TrialConfig


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


def write_weights(folder: Path, config: TrialConfig, weights: dict[str, Any]) -> None:
    """Write final weights, to be read with ``torch.load(path, weights_only=True)``.

    Args:
        folder: The folder of the comparison.
        config: The trial.
        weights: The model's ``state_dict``.

    Raises:
        OSError: The folder cannot be written.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(weights_path(folder, config), buffer.getvalue())


def read(folder: Path, config: TrialConfig) -> tuple[Record | None, str | None]:
    """Read the record of a trial if there is one.

    Args:
        folder: The folder of the comparison.
        config: The trial.

    Returns:
        The record, or None; and a warning if a file is there but cannot be used.
    """
    path = record_path(folder, config)
    try:
        record = Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None, None
    except (OSError, ValidationError, ValueError):
        return None, f"{path} is not a readable record; this trial is run again"
    if record.config != config or record.key != config.key:
        return None, f"{path} is the record of another trial; this trial is run again"
    return record, None


def trained(folder: Path) -> list[TrialConfig]:
    """Return the configurations of all readable records in the folder of a comparison, the oldest first."""
    found = []
    for path in sorted((folder / "trials").glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(Record.model_validate_json(path.read_bytes()).config)
        except (OSError, ValidationError, ValueError):
            continue  # of another version of the format, or broken: not one that this version can use
    return found


def _stem(config: TrialConfig) -> str:
    return f"{config.row}-{config.seed}-{config.key}"
