"""A sweep that was carried out, with its best settings and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ...drawing.summary import Summary
from ..plans.grid import Setting, words
from ..plans.sweep import SweepPlan
from . import frames
from .points import Point, in_order
from .words import decimals_of, with_interval

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        plan: What was swept.
        points: All settings and what has become of each.
        summary: The table and the verdict, as whoever made this shows them: what ``str`` returns, and notebooks show.
    """

    plan: SweepPlan
    points: tuple[Point, ...]
    summary: Summary | None = None

    @cached_property
    def ranked(self) -> list[Point]:
        """The settings all of whose seeds came to their end, the best by mean validation metric first.

        Where metrics are equal, the one with the smaller validation loss is better.
        """
        return in_order(self.points, self.plan.higher_is_better)

    @property
    def best(self) -> Point | None:
        """The first of those; None if there is none."""
        return next(iter(self.ranked), None)

    @property
    def setting(self) -> Setting | None:
        """The hyper-parameters of the best, as far as they were varied."""
        return self.best.setting if self.best is not None else None

    @property
    def edges(self) -> list[str]:
        """The hyper-parameters whose best value is the smallest or largest of the grid: better ones may lie beyond."""
        setting = self.setting or {}
        axes = {axis.name: axis.values for axis in self.plan.grid if axis.numeric and len(axis.values) > 1}
        if self.plan.sampler != "grid":
            return []
        return [name for name, values in axes.items() if setting.get(name) in (min(values), max(values))]

    @cached_property
    def digits(self) -> int:
        """How many decimals show the metric."""
        return decimals_of(point.validation.value for point in self.ranked if point.validation is not None)

    @property
    def verdict(self) -> list[str]:
        """The answer in a few sentences."""
        asked, best = self.plan, self.best
        sentences = []
        if best is None or best.validation is None:
            sentences.append("No answer: no setting came to its end with finite numbers. Try smaller learning rates.")
        else:
            value = with_interval(best.validation, self.digits)
            sentences.append(
                f"Best of {len(self.points)}: {words(best.setting)}, validation {asked.metric_name} {value}."
            )
            if best.test is not None:
                test = with_interval(best.test, self.digits)
                sentences.append(f"Its test {asked.metric_name} is {test} (n={best.test.n}).")
        if self.edges:
            names = " and ".join(self.edges)
            lies = "lies" if len(self.edges) == 1 else "lie"
            sentences.append(f"The best {names} {lies} at the edge of the grid; a wider one may have better settings.")
        sentences += _others(self.points)
        return sentences

    @property
    def command(self) -> str:
        """The command line that shows this sweep again."""
        return self.plan.command

    def to_pandas(self, what: Literal["settings", "trials"] = "settings") -> pandas.DataFrame:
        """Return what was found as a table of pandas; what is not there, or has diverged, is NaN.

        Of the test data it has the numbers of the best setting alone.

        Args:
            what: ``settings`` has a line for each setting, ``trials`` one for each training that counts, with its
                configuration and its final numbers.

        Raises:
            UserError: There is no such table, or pandas is not installed.
        """
        asked = self.plan, self.points, self.best
        return frames.frame(
            {"settings": lambda: frames.settings(*asked), "trials": lambda: frames.trainings(*asked)}, what
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


def _others(points: Sequence[Point]) -> list[str]:
    """Say what has become of settings that were not finished."""
    texts = {
        "diverged": "diverged",
        "pruned": "pruned (looked bad halfway)",
        "given up": "given up (workers died at it)",
    }
    counts = {state: sum(point.state == state for point in points) for state in texts}
    said = [f"{count} {texts[state]}" for state, count in counts.items() if count]
    return [f"Of {len(points)} settings, {', '.join(said)}."] if said else []
