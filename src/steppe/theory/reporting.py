"""What is shown of claims that were run: lines for a terminal, records for JSON, figures, and a page of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..drawing.markdown import table
from .claim import LEVEL, Finding
from .parallel import Outcome


def lines(outcome: Outcome) -> list[str]:
    """Return a few lines for a terminal: statement, predicted, measured, verdict."""
    claim, found = outcome.claim, outcome.judgement.nearest
    where = _where(found)
    return [
        f"{claim.id}  ({claim.source})",
        f"  {claim.statement}",
        f"  {claim.formula}",
        f"  predicted  {_predicted(found)}{f'  at {where}' if where else ''}",
        f"  measured   {_measured(found)}  ({_basis(outcome)}, {outcome.seconds:.1f} s)",
        f"  verdict    {_verdict(outcome)}, margin {found.margin:.3g}",
        "",
    ]


def record(outcome: Outcome) -> dict[str, Any]:
    """Return what JSON holds of a claim. Numbers that are not finite are None."""
    claim, found = outcome.claim, _numbers(outcome.judgement.nearest)
    return {
        "id": claim.id,
        "source": claim.source,
        "statement": claim.statement,
        "formula": claim.formula,
        **found,
        "verdict": outcome.judgement.verdict,
        "expected": claim.expected,
        "seeds": claim.seeds,
        "seconds": round(outcome.seconds, 3),
        "findings": [_numbers(finding) for finding in outcome.judgement.findings],
    }


def figures(outcomes: Iterable[Outcome], folder: Path) -> dict[str, Path]:
    """Draw every claim that has a figure into a folder, and return the files by id."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from ..drawing.style import STYLE, png

    drawn = {}
    for outcome in outcomes:
        claim = outcome.claim
        if claim.plot is None:
            continue
        with rc_context(STYLE):
            figure = Figure(figsize=(4.2, 3.0), layout="constrained")
            axes = figure.add_subplot()
            axes.set_title(f"{claim.id}: {outcome.judgement.verdict}", fontsize=9)
            claim.plot(outcome.points, axes)
            drawn[claim.id] = folder / f"{claim.id}.png"
            drawn[claim.id].write_bytes(png(figure))
    return drawn


def page(
    outcomes: Sequence[Outcome], parts: Mapping[str, Sequence[str]], images: Mapping[str, str], command: str
) -> str:
    """Return a page in Markdown on all claims that were run.

    Args:
        outcomes: What became of them.
        parts: Ids under the headings that they stand under.
        images: Addresses of figures, as seen from the page.
        command: What writes the page.
    """
    known = {outcome.claim.id: outcome for outcome in outcomes}
    out = [
        "# What theory says",
        "",
        "Statements on the methods, next to what runs of this library's own optimizers gave. Each number is the one "
        f"that came nearest to the border of its statement. In brackets are {LEVEL:.0%} intervals over seeds, which "
        "hold together for all numbers of a claim; or the least and the largest, where every run must obey. A source "
        '"ours" is a statement that is derived here, with a proof at the top of the file of its claim.',
        "",
        "This page and its figures are written by",
        "",
        f"    {command}",
        "",
    ]
    for title, ids in parts.items():
        here = [known[name] for name in ids if name in known]
        if not here:
            continue
        lines = [["claim", "predicted", "measured", "verdict"]]
        for one in here:
            found, name = one.judgement.nearest, one.claim.id
            lines.append([f"[{name}](#{name})", _predicted(found), _measured(found), _verdict(one)])
        out += [f"## {title}", "", table(lines), ""]
        for one in here:
            out += _section(one, images.get(one.claim.id))
    return "\n".join(out).rstrip() + "\n"


def _section(outcome: Outcome, image: str | None) -> list[str]:
    claim, found = outcome.claim, outcome.judgement.nearest
    where = _where(found)
    out = [
        f"### {claim.id}",
        "",
        claim.statement,
        "",
        f"`{claim.formula}`",
        "",
        f"* source: {claim.source}",
        f"* predicted: {_predicted(found)}{f', at {where}' if where else ''}",
        f"* measured: {_measured(found)} ({_basis(outcome)})",
        f"* verdict: **{_verdict(outcome)}**, margin {found.margin:.3g}",
        "",
    ]
    return [*out, f"![{claim.id}]({image})", ""] if image else out


def _predicted(found: Finding) -> str:
    return f"{found.quantity} {found.relation} {found.predicted:.6g}"


def _measured(found: Finding) -> str:
    return f"{found.measured:.6g}" + (f" [{found.low:.6g}, {found.high:.6g}]" if found.low != found.high else "")


def _where(found: Finding) -> str:
    return ", ".join(f"{name}={value}" for name, value in found.parameters.items())


def _basis(outcome: Outcome) -> str:
    count, seeds = len(outcome.judgement.findings), outcome.claim.seeds
    numbers = "1 number" if count == 1 else f"nearest to the border of {count}"
    return f"{numbers}, {seeds} seeds" if seeds > 1 else numbers


def _verdict(outcome: Outcome) -> str:
    if not outcome.as_expected:
        return f"{outcome.judgement.verdict} (expected: {outcome.claim.expected})"
    return outcome.judgement.verdict


def _numbers(finding: Finding) -> dict[str, Any]:
    numbers = asdict(finding)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
