"""Does a measure of sharpness go with the test metric? One PNG for documents, panels as SVG for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from ...drawing import style as drawing
from ...drawing.style import INK, STYLE, literal, looks
from ..judge.stats import rank_correlation, sharpness_and_metric
from .table import measures

if TYPE_CHECKING:
    from ..judge.comparison import Comparison

_COLUMNS = 3


def png(comparison: Comparison) -> bytes:
    """Draw a panel for every measure into one PNG, with one legend.

    Args:
        comparison: What was found, with at least one measure.

    Returns:
        The file's bytes.
    """
    names = measures(comparison)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 * columns + 1.6, 3.0 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        for name, axes in zip(names, grid[: len(names)], strict=True):
            _draw(axes, comparison, name)
        handles, labels = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
        figure.suptitle("small: one seed, large: mean over seeds", fontsize=9)
        return drawing.png(figure)


def panels(comparison: Comparison) -> list[tuple[str, str]]:
    """Draw a panel for every measure for a web page; text and axes take the colour of the surrounding text.

    Args:
        comparison: What was found.

    Returns:
        Pairs of a title and an SVG element.
    """
    drawn = []
    for name in measures(comparison):
        with rc_context(STYLE):
            figure = Figure(figsize=(4.6, 3.1), layout="constrained")
            _draw(figure.subplots(), comparison, name)
            drawn.append((f"test {comparison.plan.metric_name} against {name}", drawing.svg(figure)))
    return drawn


def sentence(comparison: Comparison) -> str:
    """Say how the measures and the test metric go together, and no more."""
    texts = []
    for name in measures(comparison):
        value, n = rank_correlation(comparison.rows, name), len(sharpness_and_metric(comparison.rows, name))
        texts.append(f"{name} {'n/a' if value is None else f'{value:+.2f}'} (n={n})")
    return (
        f"Spearman's rank correlation with the test {comparison.plan.metric_name}, over the means of n rows: "
        f"{', '.join(texts)}. It describes these rows; it is no test, and no statement about other methods or tasks."
    )


def _draw(axes: Axes, comparison: Comparison, name: str) -> None:
    plan = comparison.plan
    styles = looks(plan.names, plan.base)
    seen: list[float] = []
    for row in comparison.rows:
        finals = [record.final for record in comparison.records if record.config.row == row.method and record.final]
        points = [
            (value, final.test_metric)
            for final in finals
            if final.test_metric is not None and (value := (final.sharpness or {}).get(name)) is not None
        ]
        middle = row.sharpness.get(name)
        if middle is None or row.metric is None:
            continue
        look = styles[row.method]
        colour = look.colour or INK
        across, up = zip(*points, strict=True)
        axes.plot(across, up, look.marker, color=colour, markersize=4, alpha=0.45, markeredgewidth=0)
        axes.plot(
            [middle.value],
            [row.metric.value],
            look.marker,
            color=colour,
            markersize=8,
            markeredgecolor=INK,
            markeredgewidth=0.8,
            label=row.method,
        )
        seen += [*across, middle.value]
    if _spans_a_decade(seen):
        axes.set_xscale("log")
        # Labels between the powers of ten, and written out, only where there is room for them.
        few = max(seen) <= 300 * min(seen)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if few else (1.0,)))
        axes.xaxis.set_major_formatter("{x:g}" if few else LogFormatterSciNotation())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(name)
    axes.set_ylabel(literal(f"test {plan.metric_name}"))
    axes.grid(linewidth=0.4, alpha=0.25, color=INK)


def _spans_a_decade(values: Sequence[float]) -> bool:
    return bool(values) and 0 < 10 * min(values) <= max(values)
