"""Run the tasks one after the other, and write what was found."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from ... import __version__
from ..errors import UserError, nearest
from ..files import write_atomically
from ..plans.workers import Workers
from ..show.console import ConsoleObserver
from . import memory, report, timing, tuning
from .entries import BENCHES, Bench, Entry, entries
from .peers import installed


def run(
    task: str | None,
    methods: str | None,
    seeds: int,
    tuning_seeds: int | None,
    epochs: int | None,
    workers: Workers,
    out: Path,
    page: Path | None,
    console: Console,
) -> None:
    """See `command.bench`.

    Raises:
        UserError: A task or a method is unknown.
        RunError: A trial failed; what was finished is kept.
    """
    if task is not None and task not in BENCHES:
        raise UserError(f"unknown task {task!r}{nearest(task, BENCHES)}")
    names = [task] if task is not None else list(BENCHES)
    chosen = {name: rows(BENCHES[name], methods) for name in names}
    sections, found = [], {}
    for name, asked in chosen.items():
        section, found[name] = _one(name, asked, seeds, tuning_seeds, epochs, workers, out / name, console)
        console.print(Markdown(section))
        sections.append(section)
    if len(found) > 1:
        sections.insert(0, report.summary(found))
        console.print(Markdown(sections[0]))
    text = "\n".join([_head(seeds, tuning_seeds, epochs, task, methods), *sections])
    for path in (out / "bench.md", page):
        if path is not None:
            write_atomically(path, text)
    console.print(f"written to {out / 'bench.md'}", highlight=False, soft_wrap=True)


def rows(bench: Bench, methods: str | None) -> dict[str, Entry]:
    """Return the rows that were asked for, always with the base and SAM, which all others are measured by."""
    known = entries(bench)
    if methods is None:
        return known
    asked = [name.strip() for name in methods.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise UserError(f"unknown method {name!r}{nearest(name, known)}")
    return {name: entry for name, entry in known.items() if name in (bench.base, "sam", *asked)}


def _one(
    name: str,
    asked: dict[str, Entry],
    seeds: int,
    tuning_seeds: int | None,
    epochs: int | None,
    workers: Workers,
    out: Path,
    console: Console,
) -> tuple[str, list[report.Line]]:
    bench = BENCHES[name]
    tuning_seeds = tuning_seeds or bench.tuning_seeds
    with ConsoleObserver("metric", console) as observer:
        tuned = tuning.tune(bench, asked, tuning_seeds, out / "tuning", workers, observer, epochs)
    with ConsoleObserver("metric", console) as observer:
        found = tuning.compare(bench, tuned, seeds, out, workers, observer, epochs)
    times = timing.over_the_base(bench, asked, found, out)
    made = report.lines(found, tuned, times, memory.beyond_the_base(bench, asked, found))
    write_atomically(out / "bench.json", json.dumps(report.as_json(made), indent=1) + "\n")
    return report.markdown(bench, found, made, tuning_seeds), made


def _head(seeds: int, tuning_seeds: int | None, epochs: int | None, task: str | None, methods: str | None) -> str:
    given = (("tuning-seeds", tuning_seeds), ("epochs", epochs), ("task", task), ("methods", methods))
    words = ["steppe bench", f"--seeds {seeds}", *(f"--{name} {value}" for name, value in given if value)]
    peers = ", ".join(f"{name} {version}" for name, version in installed().items()) or "no other packages"
    return "\n".join(
        [
            "# What is kept of SAM's gain, at which price",
            "",
            f"    {' '.join(words)}",
            "",
            f"steppe {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()}, one thread per trial; {peers}.",
            "",
            "Gain: difference to the base, paired by seed, with the 95 % interval of Student's t; * is p < 0.05 by "
            "Holm's correction. Of SAM's gain: ratio of the means with Fieller's 95 % interval, where SAM's own gain "
            "is significant. Gradients: per step, in gradients of a whole batch. Time: of "
            f"{timing.UPDATES} steps over those of the base, trained in turn, median and quartiles of {timing.ROUNDS} "
            "rounds. Memory: the peak of a short training beyond that of the base, in copies of the weights. A ! marks "
            "a value at the edge of its grid.",
            "",
        ]
    )
