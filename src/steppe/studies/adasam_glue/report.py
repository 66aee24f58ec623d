"""What the study leaves behind, besides the reports of its comparisons: study.md, study.json and study.png."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from ...drawing.markdown import table as markdown_table
from ...lab.errors import RunError
from ...lab.files import write_atomically
from ...lab.judge.stats import mean
from ...lab.trials.records import Record, all_versions
from .. import pages
from ..verdicts import interval
from . import speedup
from .claims import Finding, scores_of
from .design import row
from .run import Study

_NAMES = {"sgd": "SGD", "sam": "SAM", "amsgrad": "AMSGrad", "adasam": "AdaSAM"}
_COLOURS = {"sgd": "#4477AA", "sam": "#EE6677", "amsgrad": "#CCBB44", "adasam": "#228833"}
_TABLES = (("AdaSAM and AMSGrad", ("amsgrad", "adasam")), ("SAM and SGD", ("sgd", "sam")))


def write(study: Study) -> Path:
    """Write the study's files into its folder; return the path of study.md.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        write_atomically(study.out / "study.md", markdown(study))
        write_atomically(study.out / "study.json", json.dumps(results(study), indent=1) + "\n")
        write_atomically(study.out / "study.png", png(study))
        for task, found in study.speedups.items():
            write_atomically(study.out / f"{task}-speed-up.png", speedup.png(found))
    except OSError as problem:
        raise RunError(f"the report cannot be written to {str(study.out)!r}: {problem.strerror}") from problem
    return study.out / "study.md"


def tables(study: Study) -> list[tuple[str, list[list[str]]]]:
    """Return the paper's tables, each with its title, the head first: methods down, tasks across."""
    found = []
    for momentum in study.momenta:
        for title, optimizers in _TABLES:
            names = [optimizer for optimizer in optimizers if optimizer in study.optimizers]
            if names:
                found.append((f"{title}, beta1 = {momentum:g}", _table(study, names, momentum)))
    return found


def _table(study: Study, optimizers: Sequence[str], momentum: float) -> list[list[str]]:
    scores = scores_of({task: run.comparison.records for task, run in study.runs.items()})
    heads = [f"{task} ({run.comparison.plan.metric_name})" for task, run in study.runs.items()]
    lines = [["", *heads, "average", "wins"]]
    means: dict[str, list[float | None]] = {}
    for optimizer in optimizers:
        of = [list(scores[task].get(row(optimizer, momentum), {}).values()) for task in study.runs]
        means[optimizer] = [fmean(values) if values else None for values in of]
    for optimizer in optimizers:
        cells = []
        for task, run in study.runs.items():
            found = scores[task].get(row(optimizer, momentum), {})
            lost = len(run.comparison.plan.seeds) - len(found)
            text = "diverged" if not found else f"{mean(list(found.values())).value:.2f}"
            error = mean(list(found.values())).error if found else None
            text += "" if error is None else f" ± {error:.2f}"
            cells.append(text + (f" ({lost} diverged)" if lost and found else ""))
        own = means[optimizer]
        known = [value for value in own if value is not None]
        average = f"{fmean(known):.2f}" if len(known) == len(own) else ""
        others = [means[other] for other in optimizers if other != optimizer]
        wins = sum(
            value is not None and all(one is None or value > one for one in column)
            for value, *column in zip(own, *others, strict=True)
        )
        lines.append([_NAMES[optimizer], *cells, average, str(wins)])
    return lines


def claims_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of claims, the head first."""
    lines = [["claim", "published", "here", "verdict"]]
    for found in study.findings:
        lines.append([found.claim.text, found.claim.published, _here(found), found.verdict or "too few seeds"])
    return lines


def settings_table(study: Study) -> list[list[str]]:
    """Return what was chosen for every row of every task, the head first."""
    lines = [["", *study.runs]]
    names = next(iter(study.runs.values())).tuned
    for name in names:
        cells = []
        for run in study.runs.values():
            choice = run.tuned[name]
            values = {key: choice.setting[key] for key in ("lr", "rho") if key in choice.setting}
            cells.append(
                ", ".join(f"{key} {value:g}{'!' if key in choice.edges else ''}" for key, value in values.items())
            )
        lines.append([name, *cells])
    return lines


def markdown(study: Study) -> str:
    """Return all tables as Markdown, with what they mean."""
    first = next(iter(study.runs.values()))
    budgets = "; ".join(
        f"{task}: {run.budget.updates} updates with batches of {run.budget.batch}, {run.budget.warmup} of them warm-up"
        for task, run in study.runs.items()
    )
    tried = len(next(iter(first.tuned.values())).tried)
    where = "" if study.tuned_on is None else f" on {study.tuned_on}, for all tasks,"
    setting = (
        f"{study.model}, n = {len(first.comparison.plan.seeds)} seeds. {budgets}. The learning rate falls linearly to "
        f"0. Every row chose out of {tried} settings{where} by the validation metric of {study.tuning_seeds} other "
        f"{'seed' if study.tuning_seeds == 1 else 'seeds'}; the test split was read once."
    )
    parts = [f"# {study.title}", setting]
    for title, lines in tables(study):
        parts += [f"## {title}", markdown_table(lines)]
    parts.append(TABLE_NOTE)
    if study.findings:
        parts += ["## Claim by claim", markdown_table(claims_table(study)), CLAIMS_NOTE]
    for task, found in study.speedups.items():
        parts += [
            f"## Larger batches, fewer steps: {task}",
            markdown_table(speedup.table(found)),
            speedup.verdict(found),
        ]
    edges = "A ! marks a value at the edge of what was tried."
    parts += ["## What was chosen", markdown_table(settings_table(study)), edges]
    return "\n\n".join([*parts, f"    {study.command}"]) + "\n"


TABLE_NOTE = "Mean ± standard error over seeds, on the test split. Wins: on how many tasks a method is above the other."
CLAIMS_NOTE = (
    "Here: the difference, averaged over tasks and paired by seed, with its 95 % interval, and on how many tasks it is "
    "above 0. * means p < 0.05 after Holm's correction within the claim. Replicated: every difference right and "
    "significant. In part: some are, and none significantly wrong."
)


def results(study: Study) -> dict[str, object]:
    """Return everything as numbers, ready for JSON."""
    return {
        "title": study.title,
        "model": study.model,
        "command": study.command,
        "scores": scores_of({task: run.comparison.records for task, run in study.runs.items()}),
        "chosen": {
            task: {name: choice.setting for name, choice in run.tuned.items()} for task, run in study.runs.items()
        },
        "claims": [asdict(found) for found in study.findings],
        "speed-up": {
            task: {"level": found.level, "steps": found.steps, "slope": found.slope and asdict(found.slope)}
            for task, found in study.speedups.items()
        },
        "versions": all_versions(),
    }


def png(study: Study) -> bytes:
    """Draw training loss and validation metric against updates: a line of panels for every task."""
    figure = Figure(figsize=(6.4 * len(study.momenta), 2.7 * len(study.runs) + 0.4), layout="constrained")
    panels = figure.subplots(len(study.runs), 2 * len(study.momenta), squeeze=False)
    for line, (task, run) in zip(panels, study.runs.items(), strict=True):
        for k, momentum in enumerate(study.momenta):
            left, right = line[2 * k : 2 * k + 2]
            for optimizer in study.optimizers:
                records = [record for record in run.comparison.records if record.config.row == row(optimizer, momentum)]
                finished = [record for record in records if record.final is not None]
                look: dict[str, Any] = {"color": _COLOURS[optimizer], "linewidth": 1.5, "label": _NAMES[optimizer]}
                if finished:
                    _draw(left, [speedup.curve(record, run.budget.batch) for record in finished], look)
                    _draw(right, [_metrics(record) for record in finished], {**look, "marker": "."})
            left.set_yscale("log")
            left.set_ylabel("training loss")
            right.set_ylabel("validation metric")
            for axes in (left, right):
                axes.set_title(f"{task}, beta1 = {momentum:g}", fontsize=9)
                axes.set_xlabel("updates")
                axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _metrics(record: Record) -> list[tuple[float, float]]:
    """Return updates and the validation metric after them."""
    per_update = record.gradient_evaluations / record.updates
    updates = [evaluations / per_update for evaluations in record.curve.gradient_evaluations]
    return list(zip(updates, record.curve.validation_metric, strict=True))


def _draw(axes: Axes, curves: Sequence[Sequence[tuple[float, float]]], look: dict[str, Any]) -> None:
    """Draw the mean of curves over the same updates."""
    axes.plot([x for x, _ in curves[0]], [fmean(y for _, y in points) for points in zip(*curves, strict=True)], **look)


def _here(found: Finding) -> str:
    texts = []
    for part, difference, (wins, tasks) in zip(found.claim.parts, found.differences, found.wins, strict=True):
        names = "".join(f" {'+' if sign > 0 else '-'} {name}" for sign, name in part).removeprefix(" + ")
        texts.append(f"{names}: {interval(difference)} ({wins} of {tasks})")
    return "; ".join(texts)


def show(study: Study, console: Console) -> None:
    """Print the tables."""
    for title, lines in tables(study):
        pages.show(console, lines, title=title)
    if study.findings:
        pages.show(console, claims_table(study), title="Claim by claim", numbers=False)
