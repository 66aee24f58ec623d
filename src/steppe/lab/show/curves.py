"""Learning curves: one PNG for documents, four panels as SVG for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...drawing import style as drawing
from ...drawing.style import INK, STYLE, literal, looks
from ..judge.stats import COSTS

if TYPE_CHECKING:
    from ..plans.comparison import Plan
    from ..trials.records import Record


@dataclass(frozen=True)
class _Line:
    """Mean and standard error over seeds, after every epoch."""

    epochs: np.ndarray[Any, Any]
    cost: np.ndarray[Any, Any]
    train_loss: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
    metric: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def png(plan: Plan, records: Sequence[Record]) -> bytes:
    """Draw all four panels into one PNG, with one legend.

    Args:
        plan: What was compared.
        records: Of all trials; those that diverged are left out.

    Returns:
        The file's bytes.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        lines = _lines(plan, records)
        axes = figure.subplots(2, 2, squeeze=False)
        for row in range(2):
            for column in range(2):
                _draw(axes[row][column], plan, lines, metric=row == 1, against_cost=column == 1)
        handles, labels = axes[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper", frameon=False, handlelength=2.6)
        figure.suptitle(f"mean over seeds, band: standard error; {plan.length}", fontsize=9)
        return drawing.png(figure)


def panels(plan: Plan, records: Sequence[Record]) -> list[tuple[str, str]]:
    """Draw the four panels for a web page; text and axes take the colour of the surrounding text.

    Args:
        plan: What was compared.
        records: Of all trials; those that diverged are left out.

    Returns:
        Pairs of a title and an SVG element.
    """
    lines = _lines(plan, records)
    drawn = []
    for metric in (False, True):
        for against_cost in (False, True):
            with rc_context(STYLE):
                figure = Figure(figsize=(4.6, 3.1), layout="constrained")
                title = _draw(figure.subplots(), plan, lines, metric=metric, against_cost=against_cost)
                drawn.append((title, drawing.svg(figure)))
    return drawn


def _draw(axes: Axes, plan: Plan, lines: Mapping[str, _Line], *, metric: bool, against_cost: bool) -> str:
    styles = looks(plan.names, plan.base)
    logarithmic = not metric and _spans_decades(lines)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    for name, line in lines.items():
        x = line.cost if against_cost else line.epochs
        middle, error = line.metric if metric else line.train_loss
        look = styles[name]
        colour, width = look.colour or INK, 1.8 if look.colour is None else 1.3
        marker = "o" if len(x) == 1 else None
        axes.plot(x, middle, color=colour, linestyle=look.dashes, linewidth=width, label=name, marker=marker)
        low = middle - error
        if logarithmic:
            low = np.maximum(low, middle * 0.1)  # a logarithmic axis has no room below zero
        axes.fill_between(x, low, middle + error, color=colour, alpha=0.12, linewidth=0)
    if metric:
        _zoom(axes, lines, plan.higher_is_better)
    up = f"validation {plan.metric_name}" if metric else "train loss"
    across = COSTS[plan.cost] if against_cost else "epochs"
    axes.set_xlabel(literal(across))
    axes.set_ylabel(literal(up))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", linewidth=0.4, alpha=0.25, color=INK)
    return f"{up} against {across}"


def _spans_decades(lines: Mapping[str, _Line]) -> bool:
    losses = [line.train_loss[0] for line in lines.values()]
    low, high = min((loss.min() for loss in losses), default=1.0), max((loss.max() for loss in losses), default=1.0)
    return bool(0 < low < high / 10)


def _zoom(axes: Axes, lines: Mapping[str, _Line], higher: bool) -> None:
    """Spend the height on where the methods differ, not on the first epochs that all share."""
    values = [line.metric[0] for line in lines.values() if len(line.metric[0]) > 3]
    if not values:
        return
    later = np.concatenate([value[len(value) // 8 :] for value in values])
    margin = 0.06 * float(later.max() - later.min()) or 1.0
    if higher:
        axes.set_ylim(bottom=float(later.min()) - margin)
    else:
        axes.set_ylim(top=float(later.max()) + margin)


def _lines(plan: Plan, records: Sequence[Record]) -> dict[str, _Line]:
    found = {}
    for name in plan.names:
        curves = [record.curve for record in records if record.config.row == name and record.final is not None]
        shared = min((len(curve.seconds) for curve in curves), default=0)  # a loop of the user's own may end early
        if shared:
            cost = np.mean([getattr(curve, plan.cost)[:shared] for curve in curves], axis=0)
            losses = [curve.train_loss[:shared] or [math.nan] * shared for curve in curves]
            found[name] = _Line(
                epochs=np.arange(1, len(cost) + 1),
                cost=cost,
                train_loss=_mean_and_error(losses),
                metric=_mean_and_error([curve.validation_metric[:shared] for curve in curves]),
            )
    return found


def _mean_and_error(values: Sequence[Sequence[float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    table = np.array(values)
    middle = table.mean(axis=0)
    if len(table) < 2:
        return middle, np.zeros_like(middle)
    return middle, table.std(axis=0, ddof=1) / math.sqrt(len(table))
