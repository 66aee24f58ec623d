"""The table: the same cells for the terminal, for Markdown and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .stats import Row
from .verdict import decimals, signed, with_error

if TYPE_CHECKING:
    from .comparison import Comparison

NOTE = (
    "Mean ± standard error over seeds; differences to the base are paired by seed, with the 95 % interval of "
    "Student's t; * means p < 0.05 after Holm's correction for all methods. Gap: how much worse the metric is on test "
    "than on training data."
)


def headers(comparison: Comparison) -> list[str]:
    """Return the titles of the columns."""
    plan = comparison.plan
    titles = [
        "method",
        f"test {plan.metric_name}",
        f"difference to {plan.base}",
        "train loss",
        "gap",
        "gradient evals",
        f"time / {plan.base}",
    ]
    return [*titles, "diverged"] if _any_diverged(comparison.rows) else titles


def cells(comparison: Comparison) -> list[list[str]]:
    """Return the texts of the table, row by row."""
    rows = comparison.rows
    return [_cells(row, decimals(rows), _any_diverged(rows)) for row in rows]


def markdown(comparison: Comparison) -> str:
    """Return table, verdict and note as Markdown."""
    plan = comparison.plan
    rows = [headers(comparison), ["---"] + ["---:"] * (len(headers(comparison)) - 1), *cells(comparison)]
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    title = f"# {_escaped(plan.source.name)}, base {plan.base}, {plan.epochs} epochs, {_seeds(len(plan.seeds))}"
    return "\n".join([title, "", *lines, "", *comparison.verdict, "", NOTE, "", f"    {plan.command}", ""])


def _difference(row: Row, digits: int) -> str:
    if row.is_base:
        return "-"
    if row.difference is None:
        return "n/a"
    value = row.difference
    interval = f"[{signed(value.low, digits)}, {signed(value.high, digits)}]"
    return f"{signed(value.value, digits)} {interval}{'*' if value.significant else ''}"


def _cells(row: Row, digits: int, with_diverged: bool) -> list[str]:
    texts = [
        row.method,
        "n/a" if row.metric is None else with_error(row.metric, digits),
        _difference(row, digits),
        "n/a" if row.train_loss is None else f"{row.train_loss:#.3g}",
        "n/a" if row.gap is None else f"{row.gap:.{digits}f}",
        "n/a" if row.gradient_evaluations is None else f"{row.gradient_evaluations:.0f}",
        "n/a" if row.relative_time is None else f"{row.relative_time:.2f}",
    ]
    return [*texts, f"{row.diverged} of {row.trials}" if row.diverged else "-"] if with_diverged else texts


def _any_diverged(rows: Sequence[Row]) -> bool:
    return any(row.diverged for row in rows)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
