"""The command ``steppe theory``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .claim import Claim, Finding
    from .parallel import Outcome


def theory(
    claims: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID... | all]", help="Claims to run. Without one, all are listed.", show_default=False),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="File for a list of what was predicted, measured and found.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for a figure of every claim that has one.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes, one thread each.", show_default="one a core, at most 8")
    ] = None,
) -> None:
    """Run what theory says about the optimizers: what was predicted, what was measured, does it hold?

    Exits with 1 if a verdict is not the expected one.
    """
    from .._errors import UserError, nearest
    from .claims import CLAIMS

    asked = list(dict.fromkeys(claims or []))
    for name in asked:
        if name not in CLAIMS and name != "all":
            raise UserError(f"unknown claim {name!r}{nearest(name, [*CLAIMS, 'all'])}")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: must be greater than or equal to 1, got {jobs}")
    if not asked:
        _list(CLAIMS)
        return
    outcomes = _run(list(CLAIMS) if "all" in asked else asked, json, plots, jobs)
    if not all(outcome.as_expected for outcome in outcomes):
        raise typer.Exit(1)


def _list(claims: Mapping[str, Claim]) -> None:
    for claim in claims.values():
        typer.echo(f"{claim.id}\n    {claim.statement}\n    source: {claim.source}\n")
    typer.echo("run them with: steppe theory ID... or steppe theory all")


def _run(names: Sequence[str], json: Path | None, plots: Path | None, jobs: int | None) -> Sequence[Outcome]:
    import os

    from rich.console import Console
    from rich.markup import escape

    from .parallel import carry_out

    if json is not None:  # better now than after the runs
        with _writing(json):
            json.parent.mkdir(parents=True, exist_ok=True)
            json.touch()
    if plots is not None:
        with _writing(plots):
            plots.mkdir(parents=True, exist_ok=True)
    console, outcomes = Console(), []
    with console.status("starting") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"{done} of {total} settings done")

        for outcome in carry_out(names, jobs or min(os.cpu_count() or 1, 8), progress):
            outcomes.append(outcome)
            for line in _lines(outcome):
                console.print(escape(line), highlight=False, soft_wrap=True)
    if json is not None:
        import json as writer

        with _writing(json):
            text = writer.dumps([_record(one) for one in outcomes], indent=1, allow_nan=False)
            json.write_text(text + "\n", encoding="utf-8")
    if plots is not None:
        with _writing(plots):
            _draw(outcomes, plots)
    odd = [outcome.claim.id for outcome in outcomes if not outcome.as_expected]
    tail = f"; not as expected: {', '.join(odd)}" if odd else ""
    typer.echo(f"{len(outcomes) - len(odd)} of {len(outcomes)} verdicts are as expected{tail}")
    return outcomes


def _lines(outcome: Outcome) -> list[str]:
    claim, judgement, found = outcome.claim, outcome.judgement, outcome.judgement.nearest
    settings = "1 number" if len(judgement.findings) == 1 else f"nearest to the border of {len(judgement.findings)}"
    where = ", ".join(f"{name}={value}" for name, value in found.parameters.items())
    number = f"{found.measured:.6g}"
    if found.low != found.high:
        number += f" [{found.low:.6g}, {found.high:.6g}]"
    unexpected = "" if outcome.as_expected else f" (expected: {claim.expected})"
    return [
        f"{claim.id}  ({claim.source})",
        f"  {claim.statement}",
        f"  {claim.formula}",
        f"  predicted  {found.quantity} {found.relation} {found.predicted:.6g}{f'  at {where}' if where else ''}",
        f"  measured   {number}  ({settings}{_runs(claim)}, {outcome.seconds:.1f} s)",
        f"  verdict    {judgement.verdict}{unexpected}, margin {found.margin:.3g}",
        "",
    ]


def _runs(claim: Claim) -> str:
    return f", {claim.seeds} seeds" if claim.seeds > 1 else ""


def _record(outcome: Outcome) -> dict[str, Any]:
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


def _numbers(finding: Finding) -> dict[str, Any]:
    import math
    from dataclasses import asdict

    numbers = asdict(finding)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


def _draw(outcomes: Sequence[Outcome], folder: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from .._drawing import STYLE, png

    for outcome in outcomes:
        if outcome.claim.plot is None:
            continue
        with rc_context(STYLE):
            figure = Figure(figsize=(4.2, 3.0), layout="constrained")
            axes = figure.add_subplot()
            axes.set_title(f"{outcome.claim.id}: {outcome.judgement.verdict}", fontsize=9)
            outcome.claim.plot(outcome.points, axes)
            (folder / f"{outcome.claim.id}.png").write_bytes(png(figure))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one line."""
    from .._errors import UserError

    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from error
