"""Heatmaps of all methods side by side, and how far they climb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ... import _drawing as drawing
from ..._drawing import INK, STYLE
from .grids import Grid

if TYPE_CHECKING:
    from .run import Run

_BEST = "#EE6677"


def grids(task: str, run: Run, names: Mapping[str, str]) -> bytes:
    """Draw the mean validation metric over learning rates and radii, one panel for each method, one scale for all."""
    means = [value for found in run.grids.values() for value in found.means]
    scale = Normalize(min(means), max(means))
    with rc_context(STYLE):
        figure = Figure(figsize=(12.8, 6.0), layout="constrained")
        figure.suptitle(f"{task}: validation {run.metric} over learning rates and radii; the best of each in a frame")
        panels = list(figure.subplots(2, -(-len(run.grids) // 2)).flat)
        for axes, (method, found) in zip(panels, run.grids.items(), strict=False):
            _grid(axes, found, run.chosen[method], scale)
            axes.set_title(names[method], fontsize=9)
        for axes in panels[len(run.grids) :]:
            axes.set_visible(False)
        return drawing.png(figure)


def _grid(axes: Axes, found: Grid, best: int, scale: Normalize) -> None:
    rates = list(dict.fromkeys(setting["lr"] for setting in found.settings))
    radii = list(dict.fromkeys(setting.get("rho") for setting in found.settings))
    colours = colormaps["viridis"]
    for index, value in enumerate(found.means):
        y, x = divmod(index, len(rates))
        face = colours(scale(value))
        lost = found.diverged[index]
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white" if lost else "none",
                      hatch="////" if lost else None, linewidth=0)
        )  # fmt: skip
        dark = 0.299 * face[0] + 0.587 * face[1] + 0.114 * face[2] < 0.5
        axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    y, x = divmod(best, len(rates))
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=_BEST, linewidth=2, zorder=3))
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(-0.5, len(radii) - 0.5)
    axes.set_xticks(range(len(rates)), [f"{rate:.2g}" for rate in rates], fontsize=7, rotation=35)
    axes.set_xlabel("lr", fontsize=8)
    if radii[0] is None:
        axes.set_yticks([])
        axes.set_aspect(1)
    else:
        axes.set_yticks(range(len(radii)), [f"{radius:.2g}" for radius in radii], fontsize=7)
        axes.set_ylabel("rho", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def radii(runs: Mapping[str, Run], names: Mapping[str, str]) -> bytes:
    """Draw ``‖delta‖`` over the steps of a training with each method's best setting, one panel for each task."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(runs), 3.4), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, (task, run) in zip(panels, runs.items(), strict=True):
            looks = drawing.looks(list(run.radii), "")
            for method, found in run.radii.items():
                look = looks[method]
                axes.plot(
                    range(1, len(found) + 1), found, label=names[method], color=look.colour or INK, linewidth=1.2,
                    linestyle=look.dashes,
                )  # fmt: skip
            axes.set_yscale("log")
            axes.set_title(task, fontsize=9)
            axes.set_xlabel("step")
        panels[0].set_ylabel("length of the climb")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        return drawing.png(figure)
