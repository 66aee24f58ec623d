"""Heatmaps of all methods side by side, and how far they climb."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ...drawing import heatmaps as heatmaps
from ...drawing import style as drawing
from ...drawing.style import INK, STYLE, literal
from .grids import Grid

if TYPE_CHECKING:
    from .run import Run


def grids(task: str, run: Run, names: Mapping[str, str]) -> bytes:
    """Draw the mean validation metric over learning rates and radii, one panel for each method, one scale for all."""
    shade, extend = heatmaps.scale([value for found in run.grids.values() for value in found.means])
    with rc_context({**STYLE, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(12.8, 6.0), layout="constrained")
        figure.suptitle(
            f"{literal(f'{task}: validation {run.metric}')} over learning rates and radii; "
            "the best of each in a frame, hatched where a seed diverged"
        )
        panels = list(figure.subplots(2, -(-len(run.grids) // 2)).flat)
        for axes, (method, found) in zip(panels, run.grids.items(), strict=False):
            _grid(axes, found, run.chosen[method], shade)
            axes.set_title(names[method], fontsize=9)
        for axes in panels[len(run.grids) :]:
            axes.set_visible(False)
        heatmaps.bar(figure, panels, shade, extend, f"validation {run.metric}")
        return drawing.png(figure)


def _grid(axes: Axes, found: Grid, best: int, shade: ScalarMappable) -> None:
    rates = list(dict.fromkeys(setting["lr"] for setting in found.settings))
    radii = list(dict.fromkeys(setting.get("rho") for setting in found.settings))
    cells = {}
    for index, value in enumerate(found.means):
        row, column = divmod(index, len(rates))
        hatch = "////" if found.diverged[index] else None
        cells[column, row] = heatmaps.Cell(value, f"{value:.0f}", hatch, index == best)
    heatmaps.draw(axes, cells, shade, size=6.5)
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(-0.5, len(radii) - 0.5)
    axes.set_xticks(range(len(rates)), [_number(rate) for rate in rates], fontsize=7, rotation=35)
    axes.set_xlabel("lr", fontsize=8)
    if radii[0] is None:
        axes.set_yticks([])
        axes.set_aspect(1)
    else:
        axes.set_yticks(range(len(radii)), [_number(radius) for radius in radii], fontsize=7)
        axes.set_ylabel("rho", fontsize=8)


def _number(value: Any) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def radii(runs: Mapping[str, Run], names: Mapping[str, str]) -> bytes:
    """Draw ``‖delta‖`` over the steps of a training with each method's best setting, one panel for each task."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(runs), 3.4), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, (task, run) in zip(panels, runs.items(), strict=True):
            looks = drawing.looks(list(run.radii), "")
            for method, by_epoch in run.radii.items():
                found = list(chain.from_iterable(by_epoch))
                look, width = looks[method], 3.0 if method == "sam" else 1.2  # AdaSAM's may lie upon SAM's
                axes.plot(
                    range(1, len(found) + 1), found, label=names[method], color=look.colour or INK, linewidth=width,
                    linestyle=look.dashes,
                )  # fmt: skip
            axes.set_yscale("log")
            axes.set_title(literal(task), fontsize=9)
            axes.set_xlabel("step")
        panels[0].set_ylabel("length of the climb")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        return drawing.png(figure)
