"""Tables in notebooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape


def fragment(
    lines: Sequence[Sequence[str]],
    sentences: Sequence[str],
    note: str,
    strong: Collection[int] = (),
    columns: str = "l",
) -> str:
    """Return sentences, a table and a note as HTML that has no colours of its own: it fits light and dark pages.

    Args:
        lines: The cells of the table, the head first; nothing but the head is left out.
        sentences: Above it, the first one bold.
        note: Below it.
        strong: The numbers of the lines that are bold, from 0, the head not counted.
        columns: As in `steppe.drawing.markdown.table`.

    Example:
        >>> print(fragment([["method"], ["a<b"]], ["Yes.", "By far."], "n = 3"))
        <p><strong>Yes.</strong> By far.</p>
        <table>
        <thead><tr><th style="text-align: left">method</th></tr></thead>
        <tbody>
        <tr><td style="text-align: left">a&lt;b</td></tr>
        </tbody>
        </table>
        <p><small>n = 3</small></p>
    """
    flush = [{"l": "left", "r": "right"}[side] for side in columns.ljust(len(lines[0]), columns[-1])]

    def row(kind: str, cells: Sequence[str], weight: str = "") -> str:
        made = zip(cells, flush, strict=True)
        return "".join(f'<{kind} style="text-align: {side}{weight}">{escape(cell)}</{kind}>' for cell, side in made)

    bold = "; font-weight: bold"
    body = [f"<tr>{row('td', cells, bold if i in strong else '')}</tr>" for i, cells in enumerate(lines[1:])]
    table = ["<table>", f"<thead><tr>{row('th', lines[0])}</tr></thead>", "<tbody>", *body, "</tbody>", "</table>"]
    said = " ".join([f"<strong>{escape(sentences[0])}</strong>", *map(escape, sentences[1:])])
    return "\n".join([f"<p>{said}</p>", *(table if body else []), f"<p><small>{escape(note)}</small></p>"])
