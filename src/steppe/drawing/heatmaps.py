"""Heatmaps: coloured squares with their numbers, hatched where there is none, and a frame around the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BEST = "#EE6677"
GREY = "#8A8F94"
_COLOURS = colormaps["viridis"]


@dataclass(frozen=True)
class Cell:
    """A square.

    Attributes:
        value: Its number; None leaves it without a colour.
        text: What stands in it.
        hatch: Matplotlib's pattern over it.
        best: Whether it has a frame.
    """

    value: float | None
    text: str = ""
    hatch: str | None = None
    best: bool = False


def draw(axes: Axes, cells: Mapping[tuple[int, int], Cell], shade: ScalarMappable, size: float = 7.5) -> None:
    """Draw squares at their columns and rows, counted from the lower left; texts have that many points."""
    for (x, y), cell in cells.items():
        face: Any = "none" if cell.value is None else shade.to_rgba(np.array([cell.value]))[0]
        line = GREY if cell.value is None else "white"
        corner = (x - 0.5, y - 0.5)
        axes.add_patch(
            Rectangle(
                corner, 1, 1, facecolor=face, edgecolor=line if cell.hatch else "none", hatch=cell.hatch, linewidth=0
            )
        )
        if cell.text and cell.value is not None:
            axes.text(x, y, cell.text, ha="center", va="center", fontsize=size, color=_on(face))
        if cell.best:
            inner = (x - 0.47, y - 0.47)
            axes.add_patch(Rectangle(inner, 0.94, 0.94, fill=False, edgecolor=BEST, linewidth=2.2, zorder=3))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def scale(values: Sequence[float], *, higher_is_better: bool = True) -> tuple[ScalarMappable, str]:
    """Choose colours so that good settings can be told apart; all that are far worse than half of them look alike.

    Returns:
        What has the colours, and which end of its bar has an arrow, as matplotlib's ``extend`` says it.
    """
    best, worst = (max(values), min(values)) if higher_is_better else (min(values), max(values))
    limit = best + 2.5 * (median(values) - best)
    cut = abs(limit - best) < abs(worst - best) and limit != best
    low, high = sorted((best, limit if cut else worst))
    if low == high:
        low, high = low - 0.5, high + 0.5
    shade = ScalarMappable(Normalize(low, high, clip=True), _COLOURS if higher_is_better else _COLOURS.reversed())
    return shade, "neither" if not cut else "min" if higher_is_better else "max"


def bar(figure: Figure, axes: Axes | Sequence[Axes], shade: ScalarMappable, extend: str, label: str) -> None:
    """Show what the colours mean."""
    drawn = figure.colorbar(shade, ax=axes, extend=extend, pad=0.02)
    drawn.set_label(label)
    drawn.outline.set_visible(False)


def _on(face: Sequence[float]) -> str:
    """Return the colour of text that is legible on another."""
    red, green, blue = face[:3]
    return "#000000" if math.sqrt(0.3 * red**2 + 0.59 * green**2 + 0.11 * blue**2) > 0.55 else "#FFFFFF"
