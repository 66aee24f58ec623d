"""The table: the same cells for the terminal, for Markdown and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...drawing.summary import Summary
from ..judge.design import covers, examples
from ..judge.stats import Mean, Row
from ..judge.words import decimals, signed, with_interval
from . import facts

if TYPE_CHECKING:
    from ..judge.comparison import Comparison


def note(comparison: Comparison) -> str:
    """Say what the columns are, what the intervals are for, and on how many examples the test metric is."""
    n = examples(comparison.records, "test")
    texts = [
        "Mean over seeds [its 95 % interval for other seeds]; differences to the base are paired by seed [95 % "
        f"interval for {covers(comparison.records)}]; * means p < 0.05 after Holm's correction for all methods. Gap: "
        "how much worse the metric is on test than on training data.",
        "" if n is None else f"The test data has {facts.counted(n)} examples.",
    ]
    found = next((row.target for row in comparison.rows if row.target is not None), None)
    if found is not None:
        wanted = f"{comparison.plan.metric_name} of {found.value:.{decimals(comparison.rows)}f}"
        texts.append(
            f"To target: until a validation {wanted}, the base's final "
            "mean, was reached and kept, median over trials; n/a where half of them or more did not."
        )
    return " ".join(text for text in texts if text)


def headers(comparison: Comparison) -> list[str]:
    """Return the titles of the columns."""
    plan = comparison.plan
    titles = [
        "method",
        f"test {plan.metric_name}",
        f"difference to {plan.base}",
        "train loss",
        "gap",
        "gradient evals" if plan.cost == "gradient_evaluations" else "example grads",
        f"time / {plan.base}",
    ]
    extra = {f"memory / {plan.base}": _any_memory(comparison.rows), "diverged": _any_diverged(comparison.rows)}
    return [*titles, *(title for title, there in extra.items() if there)]


def cells(comparison: Comparison) -> list[list[str]]:
    """Return the texts of the table, row by row."""
    rows, cost = comparison.rows, comparison.plan.cost
    return [_cells(row, decimals(rows), cost, _any_memory(rows), _any_diverged(rows)) for row in rows]


def measures(comparison: Comparison) -> list[str]:
    """Return the names of the measures of sharpness."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.sharpness))


def further(comparison: Comparison) -> list[str]:
    """Return the titles of further columns: metrics that do not decide, and measures of sharpness."""
    unit = "gradients" if comparison.plan.cost == "gradient_evaluations" else "example grads"
    targets = [f"{unit} to target", "s to target"] if _targets(comparison) else []
    return [*targets, *(f"test {name}" for name in _more(comparison)), *measures(comparison)]


def further_cells(comparison: Comparison) -> list[list[str]]:
    """Return the texts of the further columns, row by row."""
    more, names = _more(comparison), measures(comparison)
    return [
        [
            *(_spent(row, name) for name in (comparison.plan.cost, "seconds") if _targets(comparison)),
            *(_mean(row.more.get(name)) for name in more),
            *(_mean(row.sharpness.get(name)) for name in names),
        ]
        for row in comparison.rows
    ]


def _targets(comparison: Comparison) -> bool:
    return any(row.target is not None for row in comparison.rows)


def _spent(row: Row, name: str) -> str:
    value = None if row.target is None else getattr(row.target, name)
    return "n/a" if value is None else f"{value:.0f}" if name != "seconds" else _three(value)


def _more(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(name for row in comparison.rows for name in row.more))


def summary(comparison: Comparison) -> Summary:
    """Return table, verdict and note; the base, and what differs from it significantly, is bold."""
    plan = comparison.plan
    titles = [*headers(comparison), *further(comparison)]
    texts = [left + right for left, right in zip(cells(comparison), further_cells(comparison), strict=True)]
    strong = [i for i, row in enumerate(comparison.rows) if stands_out(row)]
    return Summary(plan.title, [titles, *texts], comparison.verdict, note(comparison), plan.command, strong)


def stands_out(row: Row) -> bool:
    """Return whether a row is that of the base, or differs from it significantly."""
    return row.is_base or (row.difference is not None and row.difference.significant)


def _difference(row: Row, digits: int) -> str:
    if row.is_base:
        return "-"
    if row.difference is None:
        return "n/a"
    value = row.difference
    interval = f"[{signed(value.low, digits)}, {signed(value.high, digits)}]"
    return f"{signed(value.value, digits)} {interval}{'*' if value.significant else ''}"


def _cells(row: Row, digits: int, cost: str, with_memory: bool, with_diverged: bool) -> list[str]:
    spent = getattr(row, cost)
    texts = [
        row.method,
        "n/a" if row.metric is None else with_interval(row.metric, digits),
        _difference(row, digits),
        "n/a" if row.train_loss is None else f"{row.train_loss:#.3g}",
        "n/a" if row.gap is None else f"{row.gap:.{digits}f}",
        "n/a" if spent is None else f"{spent:.0f}",
        _times(row.relative_time),
    ]
    if with_memory:
        texts.append(_times(row.relative_memory))
    if with_diverged:
        texts.append(f"{row.diverged} of {row.trials}" if row.diverged else "-")
    return texts


def _times(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.2f}"


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return "n/a"
    if mean.low is None or mean.high is None:
        return _three(mean.value)
    return f"{_three(mean.value)} [{_three(mean.low)}, {_three(mean.high)}]"


def _three(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:#.3g}".rstrip(".")


def _any_memory(rows: Sequence[Row]) -> bool:
    return any(row.relative_memory is not None for row in rows)


def _any_diverged(rows: Sequence[Row]) -> bool:
    return any(row.diverged for row in rows)
