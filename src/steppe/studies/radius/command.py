"""``steppe study radius``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ...lab.flags import Crew, Jobs, Timeout
from ..words import listed, repeated


def radius(
    preset: Annotated[str, typer.Option(help="smoke, or small (two cores, eight hours).")] = "small",
    task: Annotated[
        str | None,
        typer.Option(
            help="mnist1d, digits-noise, digits-noise-norm, mnist1d-conv, news, diabetes, characters, images, "
            "entailment or paraphrases, several with commas between.",
            show_default="the preset's",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with cifar10 and glue, for three more tasks.", show_default="without these"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and reports.", show_default="runs/radius-PRESET")
    ] = None,
    jobs: Jobs = None,
    crew: Crew = None,
    timeout: Timeout = None,
) -> None:
    """In which units a good radius stays the same from task to task.

    Of each unit, such as the norm of the weights or the angle of the two gradients, five constants are trained on every
    task. Each task in turn is left out: the constant is chosen on the others, and compared there with the base and with
    SAM tuned on it. The same command again skips the trials that are finished.
    """
    from rich.console import Console
    from rich.markup import escape

    from ...lab.errors import UserError, nearest
    from ...lab.plans.workers import workers
    from ...lab.show.console import ConsoleObserver
    from . import report
    from .design import PRESETS
    from .run import carry_out, tasks_of

    if preset not in PRESETS:
        raise UserError(f"--preset: unknown preset {preset!r}{nearest(preset, PRESETS)}")
    design, console = PRESETS[preset], Console()
    if data is not None and not any(job.data for job in design.jobs.values()):
        raise UserError(f"--data: {preset} reads none; leave it out, or take --preset small")
    tasks = tasks_of(design, None if task is None else listed("--task", task), data)
    if data is not None:
        os.environ["STEPPE_DATA"] = str(data.resolve())  # worker processes read it too
    found = carry_out(
        preset,
        design,
        tasks,
        out or Path("runs") / f"radius-{preset}",
        workers(jobs, crew, timeout),
        repeated("radius", {"preset": preset, "task": task, "data": data}),
        lambda: ConsoleObserver("metric", console),
    )
    path = report.write(found)
    report.show(found, console)
    console.print(f"written to {escape(str(path))}", highlight=False, soft_wrap=True)
