"""Heatmaps of all constants of everybody, one picture for each task."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ...drawing import heatmaps as heatmaps
from ...drawing import style as drawing
from ...drawing.style import STYLE, literal
from .design import PART, Preset, row_of

if TYPE_CHECKING:
    from .run import Run


def gains(design: Preset, task: str, run: Run) -> bytes:
    """Draw the mean gain over the base in the validation metric, a row for each unit, a column for each constant."""
    entries = design.entries(run.job)
    means = {
        row: fmean(found)
        for entry in entries
        for row in (row_of(entry, index) for index in range(design.constants))
        if (found := run.ran.validation_gains(row))
    }
    shade, extend = heatmaps.scale(list(means.values()) or [0.0])
    sides = {
        title: [entry for entry in entries if entry.endswith(PART) is part]
        for title, part in (("climbs along the batch", False), ("climbs along a tenth of it", True))
        if any(entry.endswith(PART) is part for entry in entries)
    }
    with rc_context({**STYLE, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(2.6 + 4.4 * len(sides), 1.6 + 0.32 * len(design.candidates)), layout="constrained")
        figure.suptitle(
            f"{literal(f'{task}: validation {run.comparison.plan.metric_name}')} above the base; the best constant of "
            "each unit in a frame,\nhatched where a seed diverged"
        )
        panels = list(figure.subplots(1, len(sides), squeeze=False)[0])
        for axes, (title, names) in zip(panels, sides.items(), strict=True):
            _panel(axes, design, names, run, means, shade)
            axes.set_title(title, fontsize=9)
        heatmaps.bar(figure, panels, shade, extend, "gain")
        return drawing.png(figure)


def _panel(
    axes: Axes, design: Preset, names: list[str], run: Run, means: Mapping[str, float], shade: ScalarMappable
) -> None:
    cells = {}
    for place, entry in enumerate(reversed(names)):
        rows = [row_of(entry, index) for index in range(design.constants)]
        whole = [row for row in rows if row in means and not run.ran.diverged(row)]
        top = max(whole, key=lambda row: means[row], default=None)
        for column, (row, constant) in enumerate(zip(rows, design.constants_of(entry), strict=True)):
            diverged, value = run.ran.diverged(row) > 0, means.get(row)
            text = "" if value is None else f"{value:+.1f}  ({_number(constant)})"
            cells[column, place] = heatmaps.Cell(value, text, "////" if diverged else None, row == top)
    heatmaps.draw(axes, cells, shade, size=6.0)
    axes.set_xlim(-0.5, design.constants - 0.5)
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(design.constants), [f"constant {k + 1}" for k in range(design.constants)], fontsize=7)
    axes.set_yticks(range(len(names)), [name.removesuffix(PART) for name in reversed(names)], fontsize=7)


def _number(constant: float) -> str:
    return f"{constant:.2g}" if constant < 100 else f"{constant:.0f}"
