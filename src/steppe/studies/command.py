"""The command ``steppe study``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..lab.flags import Crew, Jobs, Timeout
from .radius.command import radius
from .words import listed, repeated

if TYPE_CHECKING:
    from ..lab.plans.workers import Workers
    from ..lab.trials.host import Host
    from .adasam_glue.design import Preset
    from .adasam_glue.run import Job

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
    jobs: Jobs = None,
    crew: Crew = None,
    timeout: Timeout = None,
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

    from ..lab.comparing import comparison
    from ..lab.errors import UserError, nearest
    from ..lab.plans.workers import workers
    from ..lab.show.console import ConsoleObserver
    from ..lab.trials.host import AcceleratedHost, launched
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
    who = workers(jobs, crew, timeout, host)
    for plan in plans(design, out or Path("runs") / f"gsam-batch-{preset}", who, seeds):
        if host is not None and host.rank > 0:  # takes part in training; the first process writes and speaks
            comparison.run(plan)
            continue
        with ConsoleObserver(plan.metric_name, console) as observer:
            found = carry_out(preset, design, plan, observer)
        path = report.write(found)
        report.show(found, console)
        console.print(f"written to {escape(str(path.parent))}", highlight=False, soft_wrap=True)


@study.command("lightsam")
def lightsam(
    preset: Annotated[
        str, typer.Option(help="smoke, small (two cores, an hour), or paper (full epochs, ten seeds).")
    ] = "small",
    task: Annotated[
        str | None,
        typer.Option(help="mnist1d, mnist1d-conv, digits or FILE.py:FUNCTION.", show_default="the preset's"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and reports.", show_default="runs/lightsam-PRESET")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of the grids.", show_default="the preset's")] = None,
    jobs: Jobs = None,
    crew: Crew = None,
    timeout: Timeout = None,
) -> None:
    """How much SAM, AdaSAM and LightSAM depend on learning rate and radius (Cheng et al., 2025).

    Every method has a grid of 7 learning rates and 7 radii over three decades each. What its climbs do to flatness is
    told from the best setting without climbing, and for LightSAM with climbs that do not fade. The setting that is the
    best for all tasks of the preset at once is then tested on another task. The same command again skips the trials
    that are finished.
    """
    from rich.console import Console
    from rich.markup import escape

    from ..lab.errors import UserError, nearest
    from ..lab.plans.workers import workers
    from ..lab.show.console import ConsoleObserver
    from .lightsam import report
    from .lightsam.design import PRESETS
    from .lightsam.run import carry_out

    if preset not in PRESETS:
        raise UserError(f"--preset: unknown preset {preset!r}{nearest(preset, PRESETS)}")
    design, console = PRESETS[preset], Console()
    design = design if seeds is None else replace(design, seeds=seeds)
    found = carry_out(
        preset,
        design,
        task,
        out or Path("runs") / f"lightsam-{preset}",
        workers(jobs, crew, timeout),
        repeated("lightsam", {"preset": preset, "task": task, "seeds": seeds}),
        lambda: ConsoleObserver("metric", console),
    )
    path = report.write(found)
    report.show(found, console)
    console.print(f"written to {escape(str(path))}", highlight=False, soft_wrap=True)


@study.command("adasam-glue")
def adasam_glue(
    task: Annotated[
        str | None,
        typer.Option(
            help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, several with commas between, or all (of GLUE).",
            show_default="the preset's",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="smoke, small (a small encoder and few news texts: two cores, 60 to 90 minutes), or paper (for GPUs)."
        ),
    ] = "small",
    model: Annotated[str | None, typer.Option(help="Name on the hub, or folder.", show_default="the preset's")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with GLUE as TSV, JSONL or Parquet.", show_default="the hub")
    ] = None,
    methods: Annotated[str, typer.Option(help="Out of sgd, sam, amsgrad, adasam.")] = "sgd,sam,amsgrad,adasam",
    beta1: Annotated[
        float | None, typer.Option(help="0.9 or 0: with momentum or without.", show_default="both")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and reports.", show_default="runs/adasam-glue-PRESET")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.", show_default="the preset's")] = None,
    jobs: Jobs = None,
    crew: Crew = None,
    timeout: Timeout = None,
) -> None:
    """Fine-tuning with SGD, SAM, AMSGrad and AdaSAM, with and without momentum (Sun et al., 2024).

    Every method chooses out of six settings on validation data. The same command again skips the trials that are
    finished. On GPUs: accelerate launch -m steppe study adasam-glue --preset paper; every batch is then shared by all
    processes.
    """
    from ..lab.errors import UserError, nearest
    from ..lab.plans.workers import workers
    from .adasam_glue import jobs as made
    from .adasam_glue.design import MOMENTA, OPTIMIZERS
    from .adasam_glue.presets import GLUE_TASKS, PRESETS

    if preset not in PRESETS:
        raise UserError(f"--preset: unknown preset {preset!r}{nearest(preset, PRESETS)}")
    design, folder = PRESETS[preset], out or Path("runs") / f"adasam-glue-{preset}"
    tasks = design.tasks if task is None else GLUE_TASKS if task == "all" else listed("--task", task)
    chosen = _optimizers(methods)
    if beta1 is not None and beta1 not in MOMENTA:
        raise UserError(f"--beta1 must be 0.9 or 0, got {beta1:g}")
    flags = {"task": task, "preset": preset, "model": model, "data": data, "beta1": beta1, "seeds": seeds}
    _fine_tune(
        design,
        lambda: made.jobs(preset, design, tasks, data, model, folder),
        title="AdaSAM's experiments",
        model=", ".join(dict.fromkeys(made.title_of(design, name, model) for name in tasks)),
        command=repeated("adasam-glue", {**flags, "methods": None if chosen == OPTIMIZERS else methods}),
        optimizers=chosen,
        momenta=MOMENTA if beta1 is None else (beta1,),
        seeds=seeds,
        workers=lambda host: workers(jobs, crew, timeout, host),
        out=folder,
    )


@study.command("text")
def text(
    data: Annotated[Path, typer.Option(help="A table: .csv, .tsv, .jsonl or .parquet.")],
    text_columns: Annotated[str, typer.Option(help="Its column of texts, or two with a comma between.")],
    label_column: Annotated[str, typer.Option(help="Its column of labels.")],
    test: Annotated[
        Path | None, typer.Option(help="A table with the test rows.", show_default="a fifth of the rows")
    ] = None,
    regression: Annotated[bool, typer.Option(help="Labels are numbers to predict.")] = False,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, f1, matthews, pearson, spearman or pearson-spearman.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name on the hub, or folder.", show_default="all-MiniLM-L6-v2 as a package")
    ] = None,
    methods: Annotated[str, typer.Option(help="Out of sgd, sam, amsgrad, adasam.")] = "amsgrad,adasam",
    beta1: Annotated[float, typer.Option(help="0.9 or 0: with momentum or without.")] = 0.9,
    epochs: Annotated[int, typer.Option(min=1, help="Of every trial.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 16,
    length: Annotated[int, typer.Option(min=4, help="Tokens of a text that are read.")] = 64,
    out: Annotated[
        Path | None, typer.Option(help="Folder for records and reports.", show_default="runs/text-NAME")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    jobs: Jobs = None,
    crew: Crew = None,
    timeout: Timeout = None,
) -> None:
    """Fine-tune a model on your own texts with the methods of AdaSAM's paper, and say which is best.

    Of the rows, a fifth is kept for the test and a tenth of the others to choose settings on: every method has six. The
    same command again skips the trials that are finished.
    """
    from ..lab.errors import UserError
    from ..lab.plans.workers import workers
    from ..lab.tasks.sources import find_task
    from ..lab.tasks.splits import size
    from ..lab.tasks.text.packaged import encoder
    from ..lab.tasks.text.task import write_task
    from .adasam_glue.design import MOMENTA, Budget
    from .adasam_glue.presets import PRESETS
    from .adasam_glue.run import Job

    chosen = _optimizers(methods)
    if beta1 not in MOMENTA:
        raise UserError(f"--beta1 must be 0.9 or 0, got {beta1:g}")
    folder = out or Path("runs") / f"text-{data.stem}"
    columns = list(listed("--text-columns", text_columns))

    def made() -> list[Job]:
        file = write_task(
            folder / data.stem,
            data=str(data),
            test=None if test is None else str(test),
            texts=columns,
            label=label_column,
            regression=regression,
            metric=metric,
            model=model or str(encoder()),
            length=length,
            batch_size=batch,
        )
        updates = epochs * -(-size(find_task(file).task().train) // batch)
        return [Job(data.stem, file, Budget(batch, updates, updates // 10))]

    flags = {
        "data": data,
        "text-columns": text_columns,
        "label-column": label_column,
        "test": test,
        "metric": metric,
        "model": model,
        "methods": methods,
        "beta1": f"{beta1:g}",
        "epochs": epochs,
        "batch": batch,
        "length": length,
        "seeds": seeds,
    }
    _fine_tune(
        replace(PRESETS["small"], tasks=(data.stem,), budget=None, tuned_on=None, speed_up=(), tuning_seeds=1),
        made,
        title=f"Fine-tuning on {data.name}",
        model=model or "all-MiniLM-L6-v2",
        command=repeated("text", flags) + (" --regression" if regression else ""),
        optimizers=chosen,
        momenta=(beta1,),
        seeds=seeds,
        workers=lambda host: workers(jobs, crew, timeout, host),
        out=folder,
    )


study.command("radius")(radius)


def _optimizers(text: str) -> tuple[str, ...]:
    from ..lab.errors import UserError, nearest
    from .adasam_glue.design import OPTIMIZERS

    names = listed("--methods", text)
    for name in names:
        if name not in OPTIMIZERS:
            raise UserError(f"--methods: unknown method {name!r}{nearest(name, OPTIMIZERS)}")
    return names


def _fine_tune(
    design: Preset,
    make: Callable[[], list[Job]],
    *,
    title: str,
    model: str,
    command: str,
    optimizers: tuple[str, ...],
    momenta: tuple[float, ...],
    seeds: int | None,
    workers: Callable[[Host | None], Workers],
    out: Path,
) -> None:
    """Run tasks of texts and write the report, in the first process if there are several."""
    from contextlib import nullcontext

    from rich.console import Console
    from rich.markup import escape

    from ..lab.crew.runner import Silence
    from ..lab.show.console import ConsoleObserver
    from ..lab.trials.host import AcceleratedHost, Host, launched
    from .adasam_glue import report
    from .adasam_glue.run import Asked, carry_out

    console, host = Console(), AcceleratedHost() if launched() else None
    first = host is None or host.rank == 0
    asked = Asked(design, optimizers, momenta, seeds or design.seeds, out, workers(host))
    with Host().one_by_one() if host is None else host.one_by_one():
        found = make()
    made = carry_out(
        asked,
        found,
        title,
        model,
        command,
        lambda metric: ConsoleObserver(metric, console) if first else nullcontext(Silence()),
    )
    if first:
        path = report.write(made)
        report.show(made, console)
        console.print(f"written to {escape(str(path))}", highlight=False, soft_wrap=True)
