"""``steppe bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..flags import Crew, Jobs, Timeout


def bench(
    task: Annotated[
        str | None, typer.Option(help="mnist1d, digits-noise, digits-noise-norm, mnist1d-conv or news; default: all")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="rows of the table with commas between; default: all")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="of the comparison")] = 10,
    tuning_seeds: Annotated[
        int | None, typer.Option(min=1, help="of the tuning; default: the task's own, 4 or 2")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="of every trial; default: the task's own")] = None,
    jobs: Jobs = None,
    crew: Crew = None,
    timeout: Timeout = None,
    out: Annotated[Path, typer.Option(help="folder for everything that is written")] = Path("runs/bench"),
    page: Annotated[Path | None, typer.Option(help="a Markdown file to write the tables to")] = None,
) -> None:
    """What methods keep of SAM's gain, and at which price.

    On each task every method chooses out of nine settings on validation data and is then compared on test data: metric,
    share of SAM's gain, gradients, time. Other packages take part where they are installed. Finished trials are kept,
    so the same command goes on where it was stopped.
    """
    from rich.console import Console

    from ..plans.workers import workers
    from .run import run

    run(task, methods, seeds, tuning_seeds, epochs, workers(jobs, crew, timeout), out, page, Console())
