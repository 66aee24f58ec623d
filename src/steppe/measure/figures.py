"""Pictures of a report: the loss around the weights, and the spectral densities."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .curvature import Spectrum
from .slices import Slice

_LINE, _MARK, _SECOND = "#4477AA", "#EE6677", "#228833"


def draw(line: Slice, plane: Slice, spectrum: Spectrum, adaptive: Spectrum) -> dict[str, bytes]:
    """Return ``slices.png`` and ``spectrum.png``."""
    slices = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = slices.subplots(1, 2)
    _line(left, line)
    _plane(slices, right, plane)
    densities = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = densities.subplots(1, 2)
    _density(left, spectrum, "H")
    _density(right, adaptive, "diag|w| H diag|w|")
    return {"slices.png": _png(slices), "spectrum.png": _png(densities)}


def _line(axes: Axes, found: Slice) -> None:
    axes.plot(found.axes[0], found.losses, color=_LINE, marker=".")
    axes.axvline(0.0, color=_MARK, linewidth=0.8)
    axes.set_xlabel("step along a random direction, in lengths of each filter")
    axes.set_ylabel("loss")
    _plain(axes)


def _plane(figure: Figure, axes: Axes, found: Slice) -> None:
    losses = np.array(found.losses).T  # rows are the vertical axis
    low, high = np.nanmin(losses[np.isfinite(losses)]), np.nanmax(losses[np.isfinite(losses)])
    # Loss surfaces span decades: levels that grow from the minimum show the bottom as well as the walls.
    levels = low + max(high - low, 1e-6 * abs(low), 1e-12) * np.linspace(0.0, 1.0, 13) ** 2
    drawn = axes.contourf(*found.axes, losses, levels=levels, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label="loss", format="%.3g")
    axes.plot([0.0], [0.0], marker="x", color="white", markersize=8, markeredgewidth=2)
    axes.set_xlabel("first random direction")
    axes.set_ylabel("second random direction")


def _density(axes: Axes, found: Spectrum, of: str) -> None:
    grid, density = found.density()
    top = density.max().item()
    axes.semilogy(grid.numpy(), np.maximum(density.numpy(), top * 1e-12), color=_SECOND)
    axes.set_ylim(top * 1e-9, top * 3)
    axes.axvline(found.largest[0], color=_MARK, linewidth=0.8)
    axes.annotate(
        f"largest {found.largest[0]:.3g}",
        (found.largest[0], top),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        color=_MARK,
    )
    axes.set_xlabel(f"eigenvalues of {of}")
    axes.set_ylabel("density (share of weights)")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
