"""The tasks of the study, made from a folder, the hub, an installed package, or nothing."""

from __future__ import annotations

from pathlib import Path

from ...lab.errors import UserError, nearest
from ...lab.tasks.text.glue_tasks import GLUE
from ...lab.tasks.text.packaged import encoder
from ...lab.tasks.text.task import write_task
from . import bbc, made_up
from .design import Budget, Preset
from .presets import AFTER_MNLI
from .run import Job


def jobs(
    name: str, design: Preset, tasks: tuple[str, ...], data: Path | None, model: str | None, out: Path
) -> list[Job]:
    """Write a file for every task, by which worker processes load it, and say how long it is trained.

    Args:
        name: Of the preset.
        design: The preset.
        tasks: Names of GLUE's tasks, or those of the preset.
        data: The folder with GLUE; None is the hub, or what the preset makes.
        model: In place of the preset's.
        out: The folder of the study.

    Raises:
        UserError: A task is unknown, or data or model cannot be had.
    """
    known = dict.fromkeys([*GLUE, *design.tasks])
    for task in tasks:
        if task not in known:
            raise UserError(f"--task: unknown task {task!r}{nearest(task, known)}")
    if name == "smoke":
        data = data or made_up.write_glue(out / "data")
        model = model or str(made_up.write_model(out / "model"))
    return [_glue(design, task, data, model, out) if task in GLUE else _bbc(design, task, model, out) for task in tasks]


def model_of(design: Preset, task: str, model: str | None) -> str:
    """Return the name or the folder of what a task starts from."""
    if model is not None:
        return model
    if task in AFTER_MNLI and design.start is not None:
        return design.start
    return design.model or str(encoder())


def title_of(design: Preset, task: str, model: str | None) -> str:
    """Return what a task starts from as a report calls it."""
    if model is None and design.model is None:
        return "all-MiniLM-L6-v2" if design.start is None and not design.few else "a made-up RoBERTa"
    return model_of(design, task, model)


def _bbc(design: Preset, task: str, model: str | None, out: Path) -> Job:
    assert design.budget is not None
    train, test = bbc.write(out / "data")
    file = write_task(
        out / task,
        data=str(train),
        test=str(test),
        texts=["text"],
        label="label",
        per_class=int(task.partition("-")[2]),
        model=model_of(design, task, model),
        length=design.length,
        batch_size=design.budget.batch,
    )
    return Job(task, file, design.budget)


def _glue(design: Preset, task: str, data: Path | None, model: str | None, out: Path) -> Job:
    recipe = GLUE[task].fsam or GLUE[task].fairseq
    budget = design.budget or Budget(recipe.batch_size, recipe.updates, recipe.warmup)
    file = write_task(
        out / task,
        task=task,
        data=None if data is None else str(data),
        model=model_of(design, task, model),
        length=design.length,
        batch_size=budget.batch,
    )
    return Job(task, file, budget, recipe.lr)
