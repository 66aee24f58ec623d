"""What the study leaves behind, besides the reports of its comparisons: table.md, table.json and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from ...drawing.markdown import table as markdown_table
from ...lab.errors import RunError
from ...lab.files import write_atomically
from ...lab.plans.comparison import counted
from ...lab.trials.records import all_versions
from .. import pages
from . import pictures
from .design import CANDIDATES, FRACTION, PART, SAM, row_of
from .judge import GOAL, Judged, LeftOut, helps, score
from .run import Run, Study

_TASKS_NOTE = (
    "Base and SAM have chosen out of as many settings by the validation metric; test metric as mean over seeds, and "
    "SAM's gain over the base with its 95 % interval, paired by seed; * is p < 0.05."
)
_NOTE = (
    "Each unit on each task, with the constant that was chosen on the other tasks: gain over the base in the test "
    "metric, * if it is significant (p < 0.05, paired by seed), and in brackets the share of tuned SAM's gain where "
    f"that is significant. Worst: the smallest gain of all tasks. Goal: at least {GOAL:.0%} of tuned SAM's gain on "
    "every task where SAM gains significantly, nowhere significantly below the base, and no training that diverged; "
    "open if SAM gains nowhere."
)
_RULE = (
    "The choice: on each of the other tasks a constant has as its score the gain in the validation metric, divided by "
    "tuned SAM's or by two standard errors of that if they are more, from -1.5 to 1.5; -1.5 if a training diverged. "
    "The highest mean score wins, of several the smallest constant. Trials of the choice and of the judgement have "
    "the same seeds, but not the same task."
)
_DETAILS_NOTE = (
    "Gain with its 95 % interval; share of tuned SAM's gain with Fieller's 95 % interval, n/a where that has no end."
)


def write(study: Study) -> Path:
    """Write the study's files into its folder; return the path of table.md.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        write_atomically(study.out / "table.md", markdown(study))
        write_atomically(study.out / "table.json", json.dumps(results(study), indent=1) + "\n")
        for task, run in study.runs.items():
            write_atomically(study.out / f"{task}.png", pictures.gains(study.design, task, run))
    except OSError as problem:
        raise RunError(f"the report cannot be written to {str(study.out)!r}: {problem.strerror}") from problem
    return study.out / "table.md"


def show(study: Study, console: Console) -> None:
    """Print the tables."""
    pages.show(console, tasks_table(study), title="tasks")
    if study.judged:
        pages.show(console, units_table(study), title="every unit with the constant that was chosen on the other tasks")


def tasks_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of tasks: what was chosen, and what SAM gains, the head first."""
    lines = [["task", "base", "lr", "weight decay", "test", "SAM: lr", "rho", "gain"]]
    for name, run in study.runs.items():
        tests = [final.test_metric for final in run.ran.finals[run.ran.base].values() if final.test_metric is not None]
        lines.append(
            [
                name,
                run.job.base,
                f"{run.base['lr']:g}",
                f"{run.base['weight_decay']:g}",
                f"{fmean(tests):.2f}" if tests else "diverged",
                f"{run.sam['lr']:g}",
                f"{run.sam['rho']:g}",
                _interval(_as_left_out(run)),
            ]
        )
    return lines


def units_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of units: tasks across, the head first."""
    lines = [["unit", *study.runs, "worst", "goal"]]
    for entry, found in study.judged.items():
        cells = [_cell(found.left_out[task]) if task in found.left_out else "" for task in study.runs]
        worst = "diverged" if found.worst is None else f"{found.worst:+.2f}"
        lines.append([entry, *cells, worst, _goal(found)])
    return lines


def details_table(study: Study, task: str) -> list[list[str]]:
    """Return the lines of the table of a task that was left out, the head first."""
    lines = [["unit", "constant", "score of the choice", "gain", "of SAM's gain", "diverged"]]
    for entry, found in study.judged.items():
        one = found.left_out.get(task)
        if one is not None:
            lost = f"{one.diverged} of {study.design.seeds}" if one.diverged else ""
            lines.append([entry, f"{one.constant:g}", f"{one.score:+.2f}", _interval(one), _share(one), lost])
    return lines


def markdown(study: Study) -> str:
    """Return all tables as Markdown, with what they mean."""
    return "\n\n".join(_parts(study)) + "\n"


def _parts(study: Study) -> Iterator[str]:
    design = study.design
    yield "# In which units a good radius stays the same from task to task"
    yield f"    {study.command}"
    yield (
        f"{counted(len(study.runs), 'task')}, {design.constants} constants of each unit, n = {design.seeds} seeds, "
        f"{design.tuning_seeds} other ones for the choices of base and SAM. Names that end in {PART} climb along "
        f"{FRACTION:.0%} of the batch."
    )
    yield markdown_table(tasks_table(study), "llr")
    yield _TASKS_NOTE
    if study.judged:
        yield "## Leave one task out"
        yield markdown_table(units_table(study), "lr")
        yield _NOTE
        yield _RULE
    else:
        yield "With one task alone there is no other one to choose a constant on: nothing is judged."
    for task, run in study.runs.items():
        yield f"## {run.job.title[0].upper()}{run.job.title[1:]}"
        if any(task in found.left_out for found in study.judged.values()):
            yield markdown_table(details_table(study, task), "lr")
            yield _DETAILS_NOTE
        yield f"![Gain over the base on {task}, units down, constants across]({task}.png)"
    yield "## Units"
    yield markdown_table(_titles(study))


def results(study: Study) -> dict[str, Any]:
    """Return everything as numbers, ready for JSON."""
    return {
        "preset": study.preset,
        "command": study.command,
        "seeds": study.design.seeds,
        "tuning_seeds": study.design.tuning_seeds,
        "tasks": {name: _task_results(study, run) for name, run in study.runs.items()},
        "units": {entry: asdict(found) for entry, found in study.judged.items()},
        "versions": all_versions(),
    }


def _task_results(study: Study, run: Run) -> dict[str, Any]:
    return {
        "title": run.job.title,
        "metric": run.comparison.plan.metric_name,
        "base": {"method": run.job.base, **run.base},
        "sam": {
            **run.sam,
            "validation": run.ran.validation_gains(SAM),
            "test": run.ran.test_gains(SAM),
            "gains": helps(run.ran),
        },
        "units": {
            entry: [
                {
                    "constant": constant,
                    "diverged": run.ran.diverged(row),
                    "validation": run.ran.validation_gains(row),
                    "test": run.ran.test_gains(row),
                    "score": score(run.ran, row),
                }
                for index, constant in enumerate(study.design.constants_of(entry))
                for row in [row_of(entry, index)]
            ]
            for entry in study.design.entries(run.job)
        },
    }


def _titles(study: Study) -> list[list[str]]:
    lines = [["unit", "the radius is a multiple of, or keeps", "constants"]]
    for name in study.design.candidates:
        constants = ", ".join(f"{constant:g}" for constant in study.design.constants_of(name))
        lines.append([name, CANDIDATES[name].title, constants])
    return lines


def _as_left_out(run: Run) -> LeftOut:
    gains = run.ran.test_gains(SAM)
    return LeftOut(0, run.sam["rho"], 0.0, run.ran.diverged(SAM), run.ran.tested(SAM), fmean(gains) if gains else None)


def _cell(one: LeftOut) -> str:
    if one.diverged:
        return "diverged"
    if one.mean is None:
        return "n/a"
    star = "*" if one.gain is not None and one.gain.significant else ""
    return f"{one.mean:+.2f}{star}" + ("" if one.part is None else f" ({one.part:.0%})")


def _interval(one: LeftOut) -> str:
    if one.gain is None:
        return "n/a" if one.mean is None else f"{one.mean:+.2f}"
    star = "*" if one.gain.significant else ""
    return f"{one.gain.value:+.2f} [{one.gain.low:+.2f}, {one.gain.high:+.2f}]{star}"


def _share(one: LeftOut) -> str:
    if one.part is None:
        return ""
    ends = "n/a" if one.share is None else f"{one.share.low:.0%}, {one.share.high:.0%}"
    return f"{one.part:.0%} [{ends}]"


def _goal(found: Judged) -> str:
    return "open" if found.goal is None else "met" if found.goal else "not met"
