"""Who is better than the base, and which of them cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..trials.records import Record
from .differences import between, holm
from .noise import LEVEL
from .stats import Row, finals_of

_CHEAPER = 0.95


@dataclass(frozen=True)
class Answer:
    """What the differences to the base say.

    Attributes:
        best: The significantly better rows that cannot be told apart from the best of them, the best mean first.
        also_better: Significantly better, and significantly less so than the best.
        worse: Significantly worse.
        tested: All rows that were tested, from the most favourable difference to the least.
        choice: That of the best that costs least; the first, unless another is clearly cheaper.
    """

    best: list[Row]
    also_better: list[Row]
    worse: list[Row]
    tested: list[Row]
    choice: Row | None


def answer(rows: Sequence[Row], records: Sequence[Record], cost: str, higher_is_better: bool) -> Answer:
    """Group the rows of a table by what can be told of them.

    The best row is compared with every other better one, paired as with the base; those whose p, corrected by Holm for
    the number of these tests, is not below 0.05 cannot be told apart from it.

    Args:
        rows: Of the table.
        records: Of all trials.
        cost: The field of rows that tells what a trial costs.
        higher_is_better: Whether a larger metric is better.
    """

    def gain(row: Row) -> float:
        value = row.difference.value if row.difference else 0.0
        return value if higher_is_better else -value

    tested = sorted((row for row in rows if row.difference is not None), key=gain, reverse=True)
    sure = [row for row in tested if row.difference is not None and row.difference.significant]
    better = sorted((row for row in sure if gain(row) > 0), key=lambda row: (bool(row.diverged), -gain(row)))
    worse = [row for row in sure if gain(row) < 0]
    best = _like_the_first(better, records)
    less = [row for row in better if row not in best]
    return Answer(best, less, worse, tested, _cheapest(best, cost))


def _like_the_first(rows: Sequence[Row], records: Sequence[Record]) -> list[Row]:
    if len(rows) < 2:
        return list(rows)
    first = finals_of(records, rows[0].method)
    own_split = any(record.config.own_split for record in records)
    found = [between(first, finals_of(records, row.method), own_split) for row in rows[1:]]
    apart = iter(holm([one.p for one in found if one is not None]))
    return [rows[0], *(row for row, one in zip(rows[1:], found, strict=True) if one is None or next(apart) >= LEVEL)]


def _cheapest(rows: Sequence[Row], cost: str) -> Row | None:
    """Return the first row that costs least, or takes least time where all cost the same."""
    if not rows:
        return None
    for field in (cost, "seconds"):
        spent = {row.method: getattr(row, field) for row in rows}
        least = min(rows, key=lambda row: spent[row.method] or 0.0)
        if spent[rows[0].method] and (spent[least.method] or 0.0) < _CHEAPER * spent[rows[0].method]:
            return least
    return rows[0]
