"""The command ``steppe study``."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

study = typer.Typer(
    help="Run the experiment of a paper, and say claim by claim whether it replicates.", no_args_is_help=True
)


@study.callback()
def _study() -> None:
    """Run the experiment of a paper, and say claim by claim whether it replicates."""


@study.command("gsam-batch")
def gsam_batch(
    preset: Annotated[
        str, typer.Option(help="smoke, small (two cores, about ten minutes), or paper (CIFAR-100, for GPUs).")
    ] = "small",
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and reports.", show_default="runs/gsam-batch-PRESET")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials in parallel.", show_default="one a core, at most 8")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.", show_default="the preset's")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate, to see what depends on it.", show_default="the preset's")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with CIFAR-100, for --preset paper.", show_default="the hub")
    ] = None,
) -> None:
    """SAM and GSAM with growing batches or a decaying learning rate (Harada and Iiduka, 2024).

    Nine columns, {SGD, SAM, GSAM} x {fixed batch, growing batch, cosine learning rate}, at equal epochs and at equal
    updates. The same command again skips the trials that are finished. On GPUs: accelerate launch -m steppe study
    gsam-batch --preset paper; every batch is then shared by all processes.
    """
    from rich.console import Console
    from rich.markup import escape

    from .._errors import UserError, nearest
    from ..compare import comparison
    from ..compare.console import ConsoleObserver
    from ..compare.host import AcceleratedHost, launched
    from .gsam_batch import report
    from .gsam_batch.design import PRESETS
    from .gsam_batch.run import carry_out, plans

    if preset not in PRESETS:
        raise UserError(f"--preset: unknown preset {preset!r}{nearest(preset, PRESETS)}")
    if data is not None and preset != "paper":
        raise UserError(f"--data belongs to --preset paper; {preset} makes its own")
    if data is not None:
        os.environ["STEPPE_DATA"] = str(data.resolve())  # worker processes read it too
    if lr is not None and not 0 < lr < math.inf:
        raise UserError(f"--lr must be a number above 0, got {lr:g}")
    design, console = PRESETS[preset], Console()
    design = design if lr is None else replace(design, lr=lr)
    host = AcceleratedHost() if launched() else None
    for plan in plans(design, out or Path("runs") / f"gsam-batch-{preset}", jobs, seeds, host):
        if host is not None and host.rank > 0:  # takes part in training; the first process writes and speaks
            comparison.run(plan)
            continue
        with ConsoleObserver(plan.metric_name, console) as observer:
            found = carry_out(preset, design, plan, observer)
        path = report.write(found)
        report.show(found, console)
        console.print(f"written to {escape(str(path.parent))}", highlight=False, soft_wrap=True)
