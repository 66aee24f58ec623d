"""How pictures look: colours, lines and marks of the rows, and the way to PNG and to SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

# Paul Tol's "bright" scheme: distinguishable with every common kind of colour vision, on white and on black.
_NAMES = {
    "#4477AA": "blue",
    "#EE6677": "red",
    "#228833": "green",
    "#CCBB44": "yellow",
    "#66CCEE": "cyan",
    "#AA3377": "purple",
}
_COLOURS = tuple(_NAMES)
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
_MARKERS = ("o", "s", "^")
INK = "#010203"  # stands for the text colour until the SVG is inlined
STYLE: Any = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "steppe",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Look:
    """How a row is drawn: a colour (None is that of the text), a dash pattern and the mark of a point."""

    colour: str | None
    dashes: Any
    marker: str

    @property
    def paint(self) -> str:
        """The colour as a page writes it, which may have another one of that name in the dark."""
        return "currentColor" if self.colour is None else _paint(self.colour)

    @property
    def css(self) -> str:
        """The dash pattern for an SVG line of width 2."""
        return "none" if self.dashes == "-" else " ".join(str(2 * length) for length in self.dashes[1])


def looks(names: Sequence[str], base: str) -> dict[str, Look]:
    """Choose how every row is drawn: the base in the colour of the text, the others in colours, then dashed."""
    others = [name for name in names if name != base]
    chosen = {base: Look(None, _DASHES[0], _MARKERS[0])} if base in names else {}
    for index, name in enumerate(others):
        turn = index // len(_COLOURS) % len(_DASHES)
        chosen[name] = Look(_COLOURS[index % len(_COLOURS)], _DASHES[turn], _MARKERS[turn])
    return chosen


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element for a web page.

    Text and axes take the colour of the surrounding text, rows that of the page's variables ``--blue`` and the like, if
    it has such.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Without the XML header, and without the metadata, whose name spaces look like outside addresses.
    text = text[text.index("<svg") :]
    start, end = text.find("<metadata>"), text.find("</metadata>")
    if start >= 0:
        text = text[:start] + text[end + len("</metadata>") :]
    for colour in _COLOURS:
        text = text.replace(f": {colour.lower()}", f": {_paint(colour)}")
    return text.replace(INK, "currentColor").replace("<svg ", '<svg aria-hidden="true" ', 1)


def _paint(colour: str) -> str:
    return f"var(--{_NAMES[colour]}, {colour})"


def literal(text: str) -> str:
    """Return a text for a figure in which nothing is taken for mathematics: names of users may have a ``$``."""
    return text.replace("$", r"\$")
