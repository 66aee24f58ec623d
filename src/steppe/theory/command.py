"""The command ``steppe theory``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .claim import Claim
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
    page: Annotated[
        Path | None,
        typer.Option(help="File for a page in Markdown; its figures go to --plots, or to a folder beside it."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes, one thread each.", show_default="one a core, at most 8")
    ] = None,
) -> None:
    """Run what theory says about the optimizers: what was predicted, what was measured, does it hold?

    Exits with 1 if a verdict is not the expected one.
    """
    from ..lab.errors import UserError, nearest
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
    outcomes = _run(list(CLAIMS) if "all" in asked else asked, json, plots, page, jobs)
    if not all(outcome.as_expected for outcome in outcomes):
        raise typer.Exit(1)


def _list(claims: Mapping[str, Claim]) -> None:
    for claim in claims.values():
        typer.echo(f"{claim.id}\n    {claim.statement}\n    source: {claim.source}\n")
    typer.echo("run them with: steppe theory ID... or steppe theory all")


def _run(
    names: Sequence[str], json: Path | None, plots: Path | None, page: Path | None, jobs: int | None
) -> Sequence[Outcome]:
    import os

    from rich.console import Console
    from rich.markup import escape

    from . import reporting
    from .parallel import carry_out

    if page is not None and plots is None:
        plots = page.with_suffix("" if page.suffix else ".figures")
    for file in (json, page):  # better now than after the runs
        if file is not None:
            with _writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    if plots is not None:
        with _writing(plots):
            plots.mkdir(parents=True, exist_ok=True)
    console, outcomes = Console(), []
    with console.status("starting") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"{done} of {total} settings done")

        for outcome in carry_out(names, jobs or min(os.cpu_count() or 1, 8), progress):
            outcomes.append(outcome)
            for line in reporting.lines(outcome):
                console.print(escape(line), highlight=False, soft_wrap=True)
    if json is not None:
        import json as writer

        with _writing(json):
            text = writer.dumps([reporting.record(one) for one in outcomes], indent=1, allow_nan=False)
            json.write_text(text + "\n", encoding="utf-8")
    drawn = {}
    if plots is not None:
        with _writing(plots):
            drawn = reporting.figures(outcomes, plots)
    if page is not None:
        from .claims import CLAIMS, PARTS

        command = f"steppe theory {'all' if len(names) == len(CLAIMS) else ' '.join(names)} --page {page.as_posix()}"
        images = {name: Path(os.path.relpath(file, page.parent)).as_posix() for name, file in drawn.items()}
        with _writing(page):
            page.write_text(reporting.page(outcomes, PARTS, images, command), encoding="utf-8")
    odd = [outcome.claim.id for outcome in outcomes if not outcome.as_expected]
    tail = f"; not as expected: {', '.join(odd)}" if odd else ""
    typer.echo(f"{len(outcomes) - len(odd)} of {len(outcomes)} verdicts are as expected{tail}")
    return outcomes


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one line."""
    from ..lab.errors import UserError

    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from error
