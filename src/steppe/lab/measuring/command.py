"""The command ``steppe measure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..flags import complete_methods


def measure(
    target: Annotated[
        str,
        typer.Argument(
            help="The folder of a comparison that was run with --keep-weights; or a task with --checkpoint: mnist1d, "
            "digits, or FILE.py:FUNCTION, which returns a Task or a steppe.measure.Objective.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The weights of a task's model: a state_dict of torch or safetensors.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Rows of the comparison, with commas between.", show_default="all", autocompletion=complete_methods
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each row of the comparison.", min=1)] = 1,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    examples: Annotated[int, typer.Option(help="At most so many, from the split's beginning.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Examples in a batch; worst cases are per batch.")] = 128,
    budget: Annotated[float, typer.Option(help="What it may cost, in gradients over the data.")] = 200.0,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of the training, for SAM's edge of stability.")
    ] = None,
    finite_differences: Annotated[
        bool, typer.Option("--finite-differences", help="For models that cannot be differentiated twice.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for table, JSON and figures.", show_default="measure, in the comparison's folder"),
    ] = None,
) -> None:
    """Measure the sharpness of a trained model in every way that steppe knows.

    Worst and average case, plain, adaptive and with normalised logits; surrogate gap, gradient norm, Hessian
    eigenvalues, trace and density, loss slices.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ...drawing.markdown import table as markdown_table
    from ..errors import UserError
    from . import measuring

    request = measuring.Request(
        split, examples, batch_size, budget, lr, "finite_difference" if finite_differences else "autograd"
    )
    console = Console()
    if Path(target).is_dir():
        if checkpoint is not None:
            raise UserError("--checkpoint belongs to a task; the folder of a comparison has its own weights")
        rows = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
        folder = out or Path(target) / "measure"
        found = measuring.measure_run(Path(target), request, rows, seeds)
        for (row, seed), one in found.items():
            measuring.save(one, folder / f"{row}-{seed}")
        lines = measuring.summary(found)
        (folder / "table.md").write_text(markdown_table(lines, "lr") + "\n", encoding="utf-8")
        grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for index, title in enumerate(lines[0]):
            grid.add_column(escape(title), justify="right" if index else "left")
        for line in lines[1:]:
            grid.add_row(*(escape(text) for text in line))
        console.print(grid)
    else:
        if methods is not None:
            raise UserError(f"--methods belongs to the folder of a comparison, and {target!r} is none")
        folder = out or Path("measure")
        one = measuring.measure_checkpoint(target, checkpoint, request)
        measuring.save(one, folder)
        console.print(escape(str(one)), highlight=False, soft_wrap=True)
    console.print(f"written to {escape(str(folder))}", highlight=False, soft_wrap=True)
