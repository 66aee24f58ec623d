"""Learning curves: one PNG for documents, four panels as SVG for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...drawing import style as drawing
from ...drawing.style import INK, STYLE, literal, looks
from ..judge.differences import MINIMUM_PAIRS
from ..judge.stats import COSTS, half_width
from ..judge.words import decimals_of

if TYPE_CHECKING:
    from ..plans.comparison import Plan
    from ..trials.records import Record


_Array: TypeAlias = "np.ndarray[Any, Any]"
_MOST_TICKS = 5


@dataclass(frozen=True)
class Panel:
    """A picture for a web page.

    Attributes:
        title: What it shows.
        svg: An SVG element; text and axes take the colour of the surrounding text.
        numbers: What is drawn, ready for JSON: ``words`` of a place on the axis, whose number stands for ``#``; the
            ``frame`` of the axes (left, top, right and bottom in parts of the picture); the ``limits`` of the lower
            one; and ``rows``, with places and texts, and the number of their ``look``.
    """

    title: str
    svg: str
    numbers: dict[str, Any]


@dataclass(frozen=True)
class _Line:
    """Means over seeds after every epoch, and how far their intervals reach to either side."""

    epochs: _Array
    cost: _Array
    train_loss: tuple[_Array, _Array]
    metric: tuple[_Array, _Array]

    def across(self, against_cost: bool) -> _Array:
        return self.cost if against_cost else self.epochs

    def up(self, metric: bool) -> tuple[_Array, _Array]:
        return self.metric if metric else self.train_loss


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
        figure.suptitle(f"mean over seeds, band: 95 % interval; {plan.length}", fontsize=9)
        return drawing.png(figure)


def panels(plan: Plan, records: Sequence[Record]) -> list[Panel]:
    """Draw the panels for a web page, without those of which there are no numbers: a loop may report as it likes.

    Args:
        plan: What was compared.
        records: Of all trials; those that diverged are left out.
    """
    lines = _lines(plan, records)
    drawn = []
    for metric in (False, True):
        if not any(np.isfinite(line.up(metric)[0]).any() for line in lines.values()):
            continue
        for against_cost in (False, True):
            with rc_context(STYLE):
                figure = Figure(figsize=(4.6, 3.1), layout="constrained")
                axes = figure.subplots()
                title = _draw(axes, plan, lines, metric=metric, against_cost=against_cost)
                svg = drawing.svg(figure)  # which also moves the axes to where they are read from
                drawn.append(Panel(title, svg, _numbers(axes, plan, lines, metric, against_cost)))
    return drawn


def _numbers(axes: Axes, plan: Plan, lines: Mapping[str, _Line], metric: bool, against_cost: bool) -> dict[str, Any]:
    frame = axes.get_position()
    digits = decimals_of(float(value) for line in lines.values() for value in line.metric[0])
    places = list(looks(plan.names, plan.base))
    return {
        "words": f"# {COSTS[plan.cost]}" if against_cost else "epoch #",
        "frame": [frame.x0, 1 - frame.y1, frame.x1, 1 - frame.y0],
        "limits": list(axes.get_xlim()),
        "rows": [
            {
                "name": name,
                "look": places.index(name),
                "x": line.across(against_cost).tolist(),
                "y": [f"{value:.{digits}f}" if metric else f"{value:#.3g}" for value in line.up(metric)[0]],
            }
            for name, line in lines.items()
            if np.isfinite(line.up(metric)[0]).all()
        ],
    }


def _draw(axes: Axes, plan: Plan, lines: Mapping[str, _Line], *, metric: bool, against_cost: bool) -> str:
    styles = looks(plan.names, plan.base)
    logarithmic = not metric and _spans_decades(lines)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    for name, line in lines.items():
        x, look = line.across(against_cost), styles[name]
        width, marker = 1.8 if look.colour is None else 1.3, "o" if len(x) == 1 else None
        axes.plot(
            x,
            line.up(metric)[0],
            color=look.colour or INK,
            linestyle=look.dashes,
            linewidth=width,
            label=name,
            marker=marker,
        )
    roomy = len(plan.seeds) >= MINIMUM_PAIRS
    if not roomy:  # intervals of two numbers are too wide to make room for
        axes.margins(y=0.1)
        axes.set_ylim(axes.get_ylim())
    bands = [line.up(metric) for line in lines.values()]
    for (name, line), (middle, reach) in zip(lines.items(), bands, strict=True):
        # A logarithmic axis has no room below zero.
        low = np.maximum(middle - reach, middle * 0.1) if logarithmic else middle - reach
        colour = styles[name].colour or INK
        axes.fill_between(line.across(against_cost), low, middle + reach, color=colour, alpha=0.12, linewidth=0)
    if metric:
        _zoom(
            axes, [(middle - reach * roomy, middle + reach * roomy) for middle, reach in bands], plan.higher_is_better
        )
    up = f"validation {plan.metric_name}" if metric else "train loss"
    across = COSTS[plan.cost] if against_cost else "epochs"
    axes.set_xlabel(literal(across))
    axes.set_ylabel(literal(up))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.grid(axis="y", linewidth=0.4, alpha=0.25, color=INK)
    return f"{up} against {across}"


def _spans_decades(lines: Mapping[str, _Line]) -> bool:
    losses = [line.train_loss[0] for line in lines.values()]
    low, high = min((loss.min() for loss in losses), default=1.0), max((loss.max() for loss in losses), default=1.0)
    return bool(0 < low < high / 10)


def _zoom(axes: Axes, bands: Sequence[tuple[_Array, _Array]], higher: bool) -> None:
    """Spend the height on where the methods differ, not on the first epochs that all share."""
    later = [(low[len(low) // 8 :], high[len(high) // 8 :]) for low, high in bands if len(low) > 3]
    if not later:
        return
    low, high = min(float(low.min()) for low, _ in later), max(float(high.max()) for _, high in later)
    margin = 0.06 * (high - low) or 1.0
    if higher:
        axes.set_ylim(bottom=low - margin)
    else:
        axes.set_ylim(top=high + margin)


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
                train_loss=_mean_and_reach(losses),
                metric=_mean_and_reach([curve.validation_metric[:shared] for curve in curves]),
            )
    return found


def _mean_and_reach(values: Sequence[Sequence[float]]) -> tuple[_Array, _Array]:
    table = np.array(values)
    middle, n = table.mean(axis=0), len(table)
    if n < 2:
        return middle, np.zeros_like(middle)
    return middle, half_width(1.0, n) * table.std(axis=0, ddof=1) / math.sqrt(n)
