"""A comparison that was carried out, with its table and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...drawing.summary import Summary
from ..plans.comparison import Plan
from ..trials.records import Record
from . import frames
from .stats import Row
from .verdict import verdict

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        plan: What was compared.
        records: Of all trials.
        rows: Of the table: the base first, then from best to worst.
        summary: The table and the verdict, as whoever made this shows them: what ``str`` returns, and notebooks show.
    """

    plan: Plan
    records: list[Record]
    rows: list[Row]
    summary: Summary | None = None

    @property
    def verdict(self) -> list[str]:
        """The answer in a few sentences."""
        return verdict(self.plan, self.rows, self.records)

    def to_pandas(self, what: Literal["methods", "trials"] = "methods") -> pandas.DataFrame:
        """Return what was found as a table of pandas; what is not there, or has diverged, is NaN.

        Args:
            what: ``methods`` has a line for each row of the table, ``trials`` one for each trial with its configuration
                and its final numbers.

        Raises:
            UserError: There is no such table, or pandas is not installed.
        """
        return frames.frame(
            {"methods": lambda: frames.methods(self.rows), "trials": lambda: frames.trials(self.records)},
            what,
        )

    def __repr__(self) -> str:
        """Return what it is, and the answer."""
        return f"{type(self).__name__} of {self.plan.title}\n{self.verdict[0]}"

    def __str__(self) -> str:
        """Return the table and the verdict as Markdown."""
        return repr(self) if self.summary is None else self.summary.markdown

    def _repr_html_(self) -> str | None:
        """Return the table and the verdict as notebooks show them."""
        return None if self.summary is None else self.summary.html
