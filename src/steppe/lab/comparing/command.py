"""The command ``steppe compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..flags import Base, Crew, Device, Jobs, Log, Precision, Processes, Task, Timeout, complete_methods


def compare(
    task: Task = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between; your own as FILE.py:NAME, see docs/bring-your-own-method.md.",
            show_default="the base and all methods",
            autocompletion=complete_methods,
        ),
    ] = None,
    base: Base = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; 3 or more.", show_default="10")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial.", show_default="the task's")] = None,
    jobs: Jobs = None,
    device: Device = None,
    precision: Precision = None,
    processes: Processes = None,
    crew: Crew = None,
    timeout: Timeout = None,
    keep_weights: Annotated[
        bool | None, typer.Option("--keep-weights", help="Write the final weights of every trial.", show_default=False)
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N|TIME",
            help="Let each row first choose out of N settings on validation data, or of what a time such as 5min is "
            "enough for; 0 leaves settings as they are.",
            show_default="auto: 6 settings on a task of your own, for rows whose settings you have not given",
        ),
    ] = None,
    measure: Annotated[
        bool | None, typer.Option("--measure", help="Measure sharpness after training.", show_default=False)
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Repeat one trial in the end: it must find the same to the last bit.",
            show_default="check, on the CPU",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for records and report.", show_default="runs/TASK-BASE")
    ] = None,
    log: Log = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with any of these, settings: {METHOD: {NAME: VALUE}}, schedules and updates."),
    ] = None,
) -> None:
    """Train several methods on one task: does sharpness-aware training help, which method, at what cost?

    The same command again skips the trials that are finished, also after Ctrl-C.
    """
    flags = locals()
    from rich.console import Console

    from ..plans.budget import AUTO
    from ..plans.comparison import planned
    from ..plans.options import of_command
    from ..show.console import ConsoleObserver, show
    from ..tuning.command import tuned
    from . import comparison

    asked, console = of_command(flags, config), Console()
    plan, loaded = planned(asked.task or "mnist1d", asked, None if asked.out is None else Path(asked.out))
    plan = tuned(plan, loaded, asked.tune or AUTO, console)
    with ConsoleObserver(plan.metric_name, console) as observer:
        found = comparison.run(plan, observer, check=plan.check)
    show(found, console)
