"""What a comparison can see with its seeds and test examples, and what it would take to see more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..plans.comparison import counted
from ..trials.records import Record
from .differences import grouped
from .noise import MOST_SEEDS
from .stats import Row
from .words import signed

Counts = tuple[int, int]
"""The smallest and the largest."""

_WITHOUT_END = 10**9


def examples(records: Sequence[Record], split: str) -> Counts | None:
    """Return how many examples a split has.

    Args:
        records: Of trials, which may have split the data each in its own way.
        split: ``train``, ``validation`` or ``test``.

    Returns:
        The smallest and the largest number; None if no trial knows it.
    """
    return span(getattr(record.final, f"{split}_examples") for record in records if record.final is not None)


def same(records: Sequence[Record], split: str) -> int | None:
    """Return how many examples a split has in all trials; None if that is not known, or not the same in all."""
    found = examples(records, split)
    return found[0] if found is not None and found[0] == found[1] else None


def span(numbers: Iterable[int | None]) -> Counts | None:
    """Return what known numbers lie between."""
    known = [number for number in numbers if number is not None]
    return (min(known), max(known)) if known else None


def covers(records: Sequence[Record]) -> str:
    """Say what intervals of differences are for."""
    finals = [record.final for record in records if record.final is not None]
    if any(record.config.own_split for record in records):
        return "other seeds and other splits of the data (corrected for their overlap, Nadeau and Bengio)"
    if grouped(finals) is not None:
        return "other seeds and other test examples"
    return "other seeds, judged by the same test examples"


def sight(row: Row, tests: int, records: Sequence[Record], digits: int, higher_is_better: bool) -> str | None:
    """Say what difference this design could have seen, and what it takes to see the one that was observed.

    Args:
        row: Whose difference is most favourable.
        tests: So many are tested.
        records: Of all trials.
        digits: Decimals of the metric.
        higher_is_better: Whether a larger metric is better.

    Returns:
        One sentence; None if nothing varies, so that nothing can be said.
    """
    found = row.difference
    if found is None or found.noise is None or found.noise.error == 0:
        return None
    noise, n_test = found.noise, same(records, "test")
    smallest = noise.smallest(tests)
    if row.metric is not None and smallest > max(abs(row.metric.value), abs(row.metric.value - found.value)):
        few = "more seeds" if noise.examples + noise.step**2 < noise.error**2 / 2 else "more test examples"
        return f"With {counted(found.n, 'seed')} this design can hardly find any difference: it takes {few}."
    on = "" if n_test is None else f" and {n_test} test examples"
    one = f" (one is {noise.step:.{digits}f})" if n_test is not None and noise.step else ""
    text = (
        f"With {found.n} seeds{on}{one}, a true difference of {smallest:.{digits}f} is found about four times in five"
    )
    if (found.value > 0) != higher_is_better or found.value == 0:
        return f"{text}, and smaller ones less often."
    seeds = noise.seeds_to_see(found.value, tests)
    observed = f"one of {signed(found.value, digits)}, as that of {row.method},"
    if seeds is None and noise.smallest(tests, _WITHOUT_END) > abs(found.value):
        more = "more data" if noise.overlap else "more test examples"
        return f"{text}; {observed} takes {more}, whatever the seeds."
    if seeds is None:
        return f"{text}; {observed} takes more than {MOST_SEEDS} seeds."
    if seeds <= found.n:
        return f"{text}; {observed} is at the limit of what it can see."
    return f"{text}; {observed} takes about {seeds} seeds."
