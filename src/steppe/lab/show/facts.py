"""What trials tell of themselves: data, model, hardware, date and versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..judge.design import Counts, examples, span
from ..trials.records import Record

_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


def of_trials(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return what is known, each under its name; what is not known is left out.

    Args:
        records: Of all trials, also of earlier days and of other machines.
    """
    sizes = {words: examples(records, split) for split, words in _SPLITS.items()}
    data = [f"{counted(n)} {words}" for words, n in sizes.items() if n is not None]
    parameters = span(record.parameters for record in records)
    found = {
        "examples": ", ".join(data),
        "model": "" if parameters is None else f"{counted(parameters)} parameters",
        "hardware": _all(record.hardware for record in records),
        "date": max((record.date for record in records if record.date is not None), default=""),
    }
    return [(name, words) for name, words in found.items() if words]


def versions(records: Sequence[Record]) -> str:
    """Name the versions that the trials ran with, which need not be those of today."""
    return _all(", ".join(f"{name} {number}" for name, number in record.versions.items()) for record in records)


def counted(n: Counts) -> str:
    """Write a number, or what it lies between.

    Example:
        >>> counted((1000, 1000)), counted((999, 1000))
        ('1,000', '999 to 1,000')
    """
    low, high = n
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _all(words: Iterable[str | None]) -> str:
    return "; ".join(sorted({word for word in words if word}))
