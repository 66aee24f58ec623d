"""Learning curves: one PNG for documents, four panels as SVG for the report."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from .comparison import Plan
    from .records import Record

# Paul Tol's "bright" scheme: distinguishable with every common kind of colour vision, on white and on black.
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
_INK = "#010203"  # stands for the text colour until the SVG is inlined
_STYLE: Any = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "steppe",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class Look:
    """How the lines of a method are drawn: a colour (None is that of the text) and a dash pattern."""

    colour: str | None
    dashes: Any

    @property
    def css(self) -> str:
        """The dash pattern for an SVG line of width 2."""
        return "none" if self.dashes == "-" else " ".join(str(2 * length) for length in self.dashes[1])


@dataclass(frozen=True)
class _Line:
    """Mean and standard error over seeds, after every epoch."""

    epochs: np.ndarray[Any, Any]
    evaluations: np.ndarray[Any, Any]
    train_loss: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
    metric: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def looks(methods: Sequence[str], base: str) -> dict[str, Look]:
    """Choose how every method is drawn: the base in the colour of the text, the others in colours, then dashed."""
    others = [method for method in methods if method != base]
    chosen = {base: Look(None, "-")} if base in methods else {}
    for index, method in enumerate(others):
        dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        chosen[method] = Look(_COLOURS[index % len(_COLOURS)], dashes)
    return chosen


def png(plan: Plan, records: Sequence[Record]) -> bytes:
    """Draw all four panels into one PNG, with one legend.

    Args:
        plan: What was compared.
        records: Of all trials; those that diverged are left out.

    Returns:
        The file's bytes.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        lines = _lines(plan, records)
        axes = figure.subplots(2, 2, squeeze=False)
        for row in range(2):
            for column in range(2):
                _draw(axes[row][column], plan, lines, metric=row == 1, evaluations=column == 1)
        handles, labels = axes[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper", frameon=False, handlelength=2.6)
        figure.suptitle(f"mean over seeds, band: standard error; {plan.epochs} epochs", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


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
        for evaluations in (False, True):
            with rc_context(_STYLE):
                figure = Figure(figsize=(4.6, 3.1), layout="constrained")
                title = _draw(figure.subplots(), plan, lines, metric=metric, evaluations=evaluations)
                drawn.append((title, _svg(figure)))
    return drawn


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Without the XML header, and without the metadata, whose name spaces look like outside addresses.
    text = text[text.index("<svg") :]
    start, end = text.find("<metadata>"), text.find("</metadata>")
    if start >= 0:
        text = text[:start] + text[end + len("</metadata>") :]
    return text.replace(_INK, "currentColor").replace("<svg ", '<svg aria-hidden="true" ', 1)


def _draw(axes: Axes, plan: Plan, lines: Mapping[str, _Line], *, metric: bool, evaluations: bool) -> str:
    styles = looks(list(plan.settings), plan.base)
    logarithmic = not metric and _spans_decades(lines)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    for method, line in lines.items():
        x = line.evaluations if evaluations else line.epochs
        middle, error = line.metric if metric else line.train_loss
        look = styles[method]
        colour, width = look.colour or _INK, 1.8 if look.colour is None else 1.3
        marker = "o" if len(x) == 1 else None
        axes.plot(x, middle, color=colour, linestyle=look.dashes, linewidth=width, label=method, marker=marker)
        low = middle - error
        if logarithmic:
            low = np.maximum(low, middle * 0.1)  # a logarithmic axis has no room below zero
        axes.fill_between(x, low, middle + error, color=colour, alpha=0.12, linewidth=0)
    if metric:
        _zoom(axes, lines, plan.higher_is_better)
    name = f"validation {plan.metric_name}" if metric else "train loss"
    across = "gradient evaluations" if evaluations else "epochs"
    axes.set_xlabel(across)
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", linewidth=0.4, alpha=0.25, color=_INK)
    return f"{name} against {across}"


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
    for method in plan.settings:
        curves = [record.curve for record in records if record.config.method == method and record.final is not None]
        if curves:
            evaluations = np.mean([curve.gradient_evaluations for curve in curves], axis=0)
            found[method] = _Line(
                epochs=np.arange(1, len(evaluations) + 1),
                evaluations=evaluations,
                train_loss=_mean_and_error([curve.train_loss for curve in curves]),
                metric=_mean_and_error([curve.validation_metric for curve in curves]),
            )
    return found


def _mean_and_error(values: Sequence[Sequence[float]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    table = np.array(values)
    middle = table.mean(axis=0)
    if len(table) < 2:
        return middle, np.zeros_like(middle)
    return middle, table.std(axis=0, ddof=1) / math.sqrt(len(table))
