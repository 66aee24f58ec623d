"""Small pictures of claims. Nothing here imports matplotlib: axes are handed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from .claim import LEVEL, Point, interval

Plot = Callable[[Sequence[Point], Any], None]

_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44")


def curves(over: str, quantity: str, predicted: str | None = None, each: tuple[str, ...] = ()) -> Plot:
    """Draw a measured number over a parameter in logarithmic axes, with what is predicted as dashed lines.

    Args:
        over: Name of the parameter.
        quantity: Name of the measured number; of many seeds it is the mean.
        predicted: Name of the predicted number.
        each: Names of parameters; the points with equal ones make one line.
    """

    def draw(points: Sequence[Point], axes: Any) -> None:
        keys = sorted({tuple(point.parameters[name] for name in each) for point in points})
        for key, colour in zip(keys, _COLOURS * len(keys), strict=False):
            line = [point for point in points if tuple(point.parameters[name] for name in each) == key]
            x = [point.parameters[over] for point in line]
            label = ", ".join(f"{name}={value}" for name, value in zip(each, key, strict=True))
            values = [fmean(point.values(quantity)) for point in line]
            axes.plot(x, values, "o-", color=colour, markersize=3, label=label or quantity)
            if predicted is not None:
                axes.plot(x, [point.predicted[predicted] for point in line], "--", color=colour, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=over, ylabel=quantity)
        xs = sorted({point.parameters[over] for point in points})
        if xs[-1] < 20 * xs[0]:  # where labels of powers of ten, and of parts of them, would overlap
            axes.minorticks_off()
            axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.legend(fontsize=7, frameon=False)

    return draw


def intervals(quantity: str, predicted: str, each: tuple[str, ...]) -> Plot:
    """Draw a measured number at every point with its interval over seeds, and the predicted one as a line across.

    Args:
        quantity: Name of the measured number.
        predicted: Name of the predicted number.
        each: Names of the parameters that tell points apart.
    """

    def draw(points: Sequence[Point], axes: Any) -> None:
        for i, point in enumerate(points):
            low, high = interval(point.values(quantity), LEVEL)
            centre = fmean(point.values(quantity))
            axes.errorbar([i], [centre], [[centre - low], [high - centre]], fmt="o", color=_COLOURS[0], markersize=3)
            axes.plot([i - 0.3, i + 0.3], [point.predicted[predicted]] * 2, "--", color=_COLOURS[1], linewidth=1)
        names = ["\n".join(f"{point.parameters[name]}" for name in each) for point in points]
        axes.set_xticks(range(len(points)), names, fontsize=6)
        axes.set(ylabel=quantity, xlabel=", ".join(each))

    return draw


def heatmap(over: str, up: str, quantity: str, where: Mapping[str, Any] | None = None, floor: float = 1e-16) -> Plot:
    """Draw a measured number over two parameters as the colours of a grid, in powers of ten, which stand in the cells.

    Args:
        over: Name of the parameter that grows to the right.
        up: Name of the one that grows upwards.
        quantity: Name of the measured number, >= 0; of many seeds it is the mean.
        where: What other parameters must be for a point to be drawn; None draws all.
        floor: Smaller numbers are drawn as this one.
    """
    wanted = where or {}

    def draw(points: Sequence[Point], axes: Any) -> None:
        chosen = [p for p in points if all(p.parameters[name] == value for name, value in wanted.items())]
        xs = sorted({point.parameters[over] for point in chosen})
        ys = sorted({point.parameters[up] for point in chosen})
        cells = [[math.nan] * len(xs) for _ in ys]
        for point in chosen:
            value = fmean(point.values(quantity))
            row, column = ys.index(point.parameters[up]), xs.index(point.parameters[over])
            cells[row][column] = math.log10(max(value, floor)) if math.isfinite(value) else math.inf
        shades = [[4.0 if cell == math.inf else cell for cell in row] for row in cells]
        axes.imshow(shades, origin="lower", aspect="auto", cmap="cividis", vmin=math.log10(floor), vmax=4.0)
        for row, line in enumerate(cells):
            for column, cell in enumerate(line):
                if not math.isnan(cell):
                    text = "inf" if cell == math.inf else f"{round(cell)}"
                    dark = cell < (math.log10(floor) + 4.0) / 2
                    axes.text(
                        column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black"
                    )
        axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs], fontsize=7)
        axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys], fontsize=7)
        axes.set(xlabel=over, ylabel=up)
        axes.set_title(f"{axes.get_title()}\nlog10 {quantity}", fontsize=8)

    return draw
