"""A comparison that was carried out, with its table and its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..plans.comparison import Plan
from ..trials.records import Record
from .stats import Row
from .verdict import verdict


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        plan: What was compared.
        records: Of all trials.
        rows: Of the table: the base first, then from best to worst.
        markdown: The table and the verdict, as whoever made this shows them; what ``str`` returns.
    """

    plan: Plan
    records: list[Record]
    rows: list[Row]
    markdown: str = field(default="", repr=False)

    @property
    def verdict(self) -> list[str]:
        """The answer in a few sentences."""
        return verdict(self.plan, self.rows, self.records)

    def __str__(self) -> str:
        """Return the table and the verdict as Markdown."""
        return self.markdown
