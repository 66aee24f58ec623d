"""The command ``steppe sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..flags import Base, Crew, Device, Jobs, Log, Precision, Processes, Task, Timeout, complete_method


def sweep(
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="What is varied: NAME=LOW:HIGH:COUNT, NAME=LOW:HIGH:COUNTlog or NAME=A,B,C. More of them may follow.",
            metavar="NAME=VALUES...",
            show_default="rho=0.01:1:7log",
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUES", hidden=True)] = None,
    task: Task = None,
    method: Annotated[
        str,
        typer.Option(
            help="The method, your own as FILE.py:NAME, or an arm of the file for --config.",
            autocompletion=complete_method,
        ),
    ] = "sam",
    base: Base = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of every setting.", show_default="3")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a training.", show_default="the task's")] = None,
    sampler: Annotated[
        str, typer.Option(help="grid: all settings; random or tpe: --trials of them, from within the ranges.")
    ] = "grid",
    trials: Annotated[int | None, typer.Option(help="Settings that random and tpe try.", show_default=False)] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Give up settings that look bad halfway.")] = False,
    jobs: Jobs = None,
    device: Device = None,
    precision: Precision = None,
    processes: Processes = None,
    crew: Crew = None,
    timeout: Timeout = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for records and report.", show_default="runs/sweep-TASK-BASE-METHOD-NAMES"),
    ] = None,
    log: Log = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database that gets a copy as a study of Optuna, such as sqlite:///FILE.db, for optuna-dashboard.",
            show_default="none",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="The sweep's name in the database.", show_default="from task, base and method")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file as of steppe compare: settings, schedules, updates and the like.")
    ] = None,
) -> None:
    """Try many settings of a method: heatmap, best settings, report.

    The same command again skips the trials that are finished, also after Ctrl-C.
    """
    flags = locals()
    from rich.console import Console

    from ..errors import RunError, UserError
    from ..plans.options import of_command
    from ..plans.sweep import plan
    from ..show.sweep_console import ConsoleObserver, show
    from . import sweeping

    asked, console = of_command(flags, config), Console()
    name = next((name for name in ("measure", "keep_weights") if getattr(asked, name)), None)
    if name is not None:
        raise UserError(f"a sweep cannot {name.replace('_', ' ')}; remove {name!r} from the file for --config")
    made = plan(
        asked.task or "mnist1d",
        [*(grid or []), *(more or [])] or ["rho=0.01:1:7log"],
        asked.model_copy(update={"methods": (method,)}),
        sampler=sampler,
        trials=trials,
        prune=prune,
        storage=storage,
        study=study,
    )
    with ConsoleObserver(made, console) as observer:
        found = sweeping.run(made, observer)
    show(found, console)
    given_up = sum(point.state == "given up" for point in found.points)
    if given_up:
        raise RunError(f"{given_up} of {len(found.points)} settings were given up, since workers died at them")
