"""The metric over what was varied: a heatmap, a curve with spread, or the points that a sampler chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...drawing import heatmaps as heatmaps
from ...drawing import style as drawing
from ...drawing.heatmaps import BEST, GREY, Cell
from ...drawing.style import INK, STYLE, literal
from ..judge.points import Point
from ..plans.grid import Axis, shown

if TYPE_CHECKING:
    from ..judge.sweep import Sweep

_LINE = "#4477AA"
_HATCHES = {"diverged": "xxxx", "pruned": "////", "given up": "...."}
_MARKS = {"diverged": "x", "pruned": "o", "given up": "+"}
_MOST_TEXTS = 14  # columns, for numbers in the cells to be legible


def png(sweep: Sweep) -> bytes:
    """Draw the sweep as a PNG file."""
    with rc_context({**STYLE, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=_size(sweep), layout="constrained")
        title = f"{sweep.plan.source.name}, {sweep.plan.arm.name}: {_draw(figure, sweep)}"
        figure.suptitle(literal(title), fontsize=9, wrap=True)
        return drawing.png(figure)


def svg(sweep: Sweep) -> tuple[str, str]:
    """Draw the sweep for a web page.

    Returns:
        A title and an SVG element, whose text and axes take the colour of the surrounding text.
    """
    with rc_context({**STYLE, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=_size(sweep), layout="constrained")
        title = _draw(figure, sweep)
        return title, drawing.svg(figure)


def varied(sweep: Sweep) -> list[Axis]:
    """Return the axes that have more than one value."""
    return [axis for axis in sweep.plan.grid if axis.low is not None or len(axis.values) > 1]


def _size(sweep: Sweep) -> tuple[float, float]:
    axes = varied(sweep)
    if len(axes) < 2 or sweep.plan.sampler != "grid":
        return 6.4, 4.2
    columns, rows = (len(axis.values) for axis in axes[:2])
    return min(14.0, max(5.2, 2.2 + 0.72 * columns)), min(12.0, max(3.4, 1.5 + 0.5 * rows))


def _draw(figure: Figure, sweep: Sweep) -> str:
    found = varied(sweep) or list(sweep.plan.grid[:1])
    axes = figure.subplots()
    if len(found) == 1:
        return _curve(figure, axes, sweep, found[0])
    if sweep.plan.sampler == "grid":
        return _heatmap(figure, axes, sweep, found)
    return _scatter(figure, axes, sweep, found)


def _cell(sweep: Sweep, points: Sequence[Point], written: bool) -> Cell:
    """Return the best of all points that lie at one place of the picture."""
    best = any(point is sweep.best for point in points)
    values = [point.validation.value for point in points if point.validation is not None]
    if values:
        value = (max if sweep.plan.higher_is_better else min)(values)
        return Cell(value, f"{value:.{sweep.digits}f}" if written else "", best=best)
    return Cell(None, hatch=_HATCHES[_state(points)], best=best)


def _state(points: Sequence[Point]) -> str:
    """Return what became of points without a value."""
    return next((name for name in _HATCHES if any(point.state == name for point in points)), "given up")


def _heatmap(figure: Figure, axes: Axes, sweep: Sweep, found: Sequence[Axis]) -> str:
    across, up = found[:2]
    places: dict[tuple[int, int], list[Point]] = {}
    for point in sweep.points:
        place = across.values.index(point.setting[across.name]), up.values.index(point.setting[up.name])
        places.setdefault(place, []).append(point)
    written = len(across.values) <= _MOST_TEXTS
    cells = {place: _cell(sweep, points, written) for place, points in places.items()}
    shade = _scale(figure, axes, sweep, [cell.value for cell in cells.values() if cell.value is not None])
    heatmaps.draw(axes, cells, shade)
    for axis, values, limits in ((axes.xaxis, across, axes.set_xlim), (axes.yaxis, up, axes.set_ylim)):
        axis.set_ticks(range(len(values.values)), [shown(value) for value in values.values])
        axis.set_label_text(values.name + (" (log)" if values.spread else ""))
        limits(-0.5, len(values.values) - 0.5)
    if max(len(shown(value)) for value in across.values) > 6 and len(across.values) > 5:
        axes.tick_params(axis="x", labelrotation=35)
    handles: list[Any] = [Patch(facecolor="none", edgecolor=BEST, linewidth=2, label="best")] if sweep.best else []
    states = {_state(places[place]) for place, cell in cells.items() if cell.value is None}
    hatches = [name for name in _HATCHES if name in states]
    handles += [Patch(facecolor="none", edgecolor=GREY, hatch=_HATCHES[name], label=name) for name in hatches]
    _legend(figure, handles)
    rest = ", ".join(axis.name for axis in found[2:])
    title = f"validation {sweep.plan.metric_name} over {across.name} and {up.name}"
    return f"{title}, the best over {rest}" if rest else title


def _curve(figure: Figure, axes: Axes, sweep: Sweep, axis: Axis) -> str:
    def at(point: Point) -> float:
        value = point.setting[axis.name]
        return float(value) if axis.numeric else float(axis.values.index(value))

    points = sorted(sweep.points, key=at)
    means = [(point, point.validation) for point in points if point.validation is not None]
    if means:
        x = np.array([at(point) for point, _ in means])
        middle = np.array([mean.value for _, mean in means])
        low = np.array([mean.value if mean.low is None else mean.low for _, mean in means])
        high = np.array([mean.value if mean.high is None else mean.high for _, mean in means])
        line = "solid" if axis.numeric else "none"  # between true and false there is nothing
        axes.plot(
            x, middle, color=_LINE, linestyle=line, marker="o", markersize=4, linewidth=1.5, label="mean over seeds"
        )
        if (low < high).any() and not axis.numeric:
            reach = (middle - low, high - middle)
            axes.errorbar(x, middle, reach, color=_LINE, linestyle="", capsize=4, label="95 % interval")
        elif (low < high).any():
            axes.fill_between(x, low, high, color=_LINE, alpha=0.18, linewidth=0, label="95 % interval")
        for number, (point, mean) in enumerate(means):
            values = [result.validation_metric or 0.0 for result in point.seeds]
            if mean.n > 1:
                label = "one seed" if number == 0 else None
                axes.plot([at(point)] * mean.n, values, "o", color=_LINE, markersize=2.6, alpha=0.55, label=label)
            if point is sweep.best:
                axes.plot(
                    at(point), mean.value, "o", mfc="none", mec=BEST, markersize=11, mew=2, label="best", linestyle=""
                )
    _log(axes, axis, across=True)
    if not axis.numeric:
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
    if sweep.plan.sampler == "grid" and len(axis.values) <= _MOST_TEXTS:
        ticks = [float(value) if axis.numeric else float(i) for i, value in enumerate(axis.values)]
        axes.set_xticks(ticks, [shown(value) for value in axis.values])
    for state, mark in _MARKS.items():
        places = [at(point) for point in points if point.state == state]
        if places:
            axes.plot(
                places,
                [0.03] * len(places),
                mark,
                transform=axes.get_xaxis_transform(),
                color=GREY,
                mfc="none",
                label=state,
                linestyle="",
            )
    axes.set_xlabel(axis.name + (" (log)" if axis.spread else ""))
    axes.set_ylabel(literal(f"validation {sweep.plan.metric_name}"))
    axes.grid(axis="y", linewidth=0.4, alpha=0.25, color=INK)
    _legend(figure, axes.get_legend_handles_labels()[0])
    return f"validation {sweep.plan.metric_name} over {axis.name}"


def _scatter(figure: Figure, axes: Axes, sweep: Sweep, found: Sequence[Axis]) -> str:
    across, up = found[:2]

    def at(axis: Axis, point: Point) -> float:
        value = point.setting[axis.name]
        return float(value) if axis.numeric else float(axis.values.index(value))

    points = [point for point in sweep.points if point.setting]
    means = [(point, point.validation.value) for point in points if point.validation is not None]
    shade = _scale(figure, axes, sweep, [value for _, value in means])
    for axis, is_across in ((across, True), (up, False)):
        _log(axes, axis, across=is_across)
    x, y = [at(across, point) for point, _ in means], [at(up, point) for point, _ in means]
    axes.scatter(x, y, s=64, c=list(shade.to_rgba(np.array([value for _, value in means]))), edgecolors="none")
    handles = []
    for state, mark in _MARKS.items():
        there = [point for point in points if point.state == state]
        if there:
            x, y = [at(across, point) for point in there], [at(up, point) for point in there]
            handles += axes.plot(x, y, mark, color=GREY, mfc="none", markersize=7, linestyle="", label=state)
    if sweep.best is not None:
        x, y = [at(across, sweep.best)], [at(up, sweep.best)]
        handles += axes.plot(x, y, "o", mfc="none", mec=BEST, markersize=13, mew=2, linestyle="", label="best")
    axes.set_xlabel(across.name + (" (log)" if across.spread else ""))
    axes.set_ylabel(up.name + (" (log)" if up.spread else ""))
    axes.grid(linewidth=0.4, alpha=0.25, color=INK)
    _legend(figure, handles)
    return f"validation {sweep.plan.metric_name} of the settings tried, over {across.name} and {up.name}"


def _log(axes: Axes, axis: Axis, *, across: bool) -> None:
    """Give an axis its scale, with plain numbers at its ticks."""
    one = axes.xaxis if across else axes.yaxis
    if axis.spread and axis.numeric:
        (axes.set_xscale if across else axes.set_yscale)("log")
        one.set_major_formatter("{x:g}")
        one.set_minor_formatter("")
        one.set_tick_params(which="minor", length=0)
    elif not axis.numeric:
        one.set_ticks(range(len(axis.values)), [shown(value) for value in axis.values])


def _scale(figure: Figure, axes: Axes, sweep: Sweep, values: Sequence[float]) -> ScalarMappable:
    """Choose the colours of values, and draw their bar."""
    shade, extend = heatmaps.scale(values or [0.0], higher_is_better=sweep.plan.higher_is_better)
    if values:
        heatmaps.bar(figure, axes, shade, extend, f"validation {sweep.plan.metric_name}")
    return shade


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    if handles:
        figure.legend(handles=list(handles), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
