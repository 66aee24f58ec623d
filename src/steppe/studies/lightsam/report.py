"""What the study leaves behind, besides the reports of its comparisons: study.md, study.json and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rich.console import Console

from ...drawing.markdown import table as markdown_table
from ...lab.errors import RunError
from ...lab.files import write_atomically
from ...lab.judge.stats import Mean, mean
from ...lab.tasks.sources import find_task
from ...lab.trials.records import Record, all_versions
from .. import pages
from ..verdicts import factor, interval
from . import pictures
from .claims import Finding
from .design import Width
from .fading import ALONE, HELD, MEASURES, factors
from .grids import STATISTICS, summary
from .run import MIDDLE, Run, Study
from .untuned import TUNED, Untuned

NAMES = {
    "sgd": "SGD",
    "sam": "SAM",
    "amsgrad": "AMSGrad",
    "adasam": "AdaSAM",
    "lightsam-i": "LightSAM-I",
    "lightsam-ii": "LightSAM-II",
    "lightsam-iii": "LightSAM-III",
}
_FADING = "What the climbs do to flatness, and what is left of that where they fade"
_SHARPNESS = MEASURES[0]
_NOTE = (
    "Of the validation metrics of all settings of a grid, ± standard error over seeds. A training that diverged counts "
    "as guessing. SGD and AMSGrad have no radius: theirs are the learning rates alone."
)
_TEST_NOTE = (
    "Best: the setting with the best mean validation metric of the wide grid. Middle: that in the middle of the grid, "
    "which was the best of nine for each method on MNIST-1D with the MLP, and is carried over to the other tasks. "
    f"Mean ± standard error over seeds. Sharpness: {_SHARPNESS}, radius 0.5, after training with the best setting."
)
_UNTUNED_NOTE = (
    "Of each method the one setting that loses least in the mean over the tasks above. Lost: points of the validation "
    "metric below the best of all methods and settings of a task, in the mean over tasks, and on the task where it "
    "loses most. Tested on a task that had no part in the choice, beside the best of the narrow grid there by "
    "validation."
)
_FADING_NOTE = (
    "Each method with its best setting: as it is, without climbing at the same learning rate, and held, which is with "
    "climbs of one length, the mean of those of its first epoch. Length of the climbs: means of one training. "
    f"Flatness: {MEASURES[0]} of radius 0.5, and the largest eigenvalue of the Hessian; geometric means over seeds of "
    "the ratios, below 1 for a flatter end."
)
_EFFECTS_NOTE = (
    "Here: the ratio of the two, the geometric mean over tasks, paired by seed, with its 95 % interval; * and verdicts "
    "as for the claims."
)
_CLAIMS_NOTE = (
    "Here: the mean over tasks of the difference, paired by seed, with its 95 % interval. * means p < 0.05 after "
    "Holm's correction for the pairs of the claim. Replicated: every pair right and significant. In part: some are, "
    "and none significantly wrong."
)


def write(study: Study) -> Path:
    """Write the study's files into its folder; return the path of study.md.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        write_atomically(study.out / "study.md", markdown(study))
        write_atomically(study.out / "study.json", json.dumps(results(study), indent=1) + "\n")
        for task, run in study.runs.items():
            write_atomically(study.out / _file(run), pictures.grids(task, run, NAMES))
        write_atomically(study.out / "radii.png", pictures.radii(study.runs, NAMES))
    except OSError as problem:
        raise RunError(f"the report cannot be written to {str(study.out)!r}: {problem.strerror}") from problem
    return study.out / "study.md"


def show(study: Study, console: Console) -> None:
    """Print all tables."""
    for task, run in study.runs.items():
        for width in widths(study):
            pages.show(console, grid_table(study, run, width), title=_title(study, task, width))
        pages.show(console, test_table(run), title=f"{task}: {run.metric} on the test split")
    if study.untuned is not None:
        pages.show(console, untuned_table(study.untuned), title=_untuned_title(study.untuned))
    pages.show(console, claims_table(study), title="claims", numbers=False)
    pages.show(console, fading_table(study), title=_FADING)
    pages.show(console, effects_table(study), numbers=False)


def widths(study: Study) -> tuple[Width, ...]:
    """Return the grids that differ."""
    return ("narrow", "wide") if study.design.size > 3 else ("wide",)


def grid_table(study: Study, run: Run, width: Width) -> list[list[str]]:
    """Return the lines of a table: methods down, statistics across, the head first."""
    lines = [["method", *STATISTICS, "diverged"]]
    for method, found in run.grids.items():
        inside = study.design.inside(method, width)
        numbers = summary(found, study.design, method, width)
        lost = sum(found.diverged[index] for index in inside)
        trials = len(inside) * len(found.values)
        lines.append([NAMES[method], *map(_mean, numbers.values()), f"{lost} of {trials}" if lost else ""])
    return lines


def test_table(run: Run) -> list[list[str]]:
    """Return the lines of the table of the best and the middle settings, the head first."""
    by_row: dict[str, list[Record]] = {}
    for record in run.comparison.records:
        by_row.setdefault(record.config.row, []).append(record)
    lines = [["method", "lr", "rho", "best", "middle", "sharpness"]]
    for method, index in run.chosen.items():
        setting = run.grids[method].settings[index]
        lines.append(
            [
                NAMES[method],
                f"{setting['lr']:g}",
                f"{setting['rho']:g}" if "rho" in setting else "",
                _test(by_row[method]),
                _test(by_row[method + MIDDLE]),
                _sharpness(by_row[method]),
            ]
        )
    return lines


def untuned_table(found: Untuned) -> list[list[str]]:
    """Return the lines of the table of settings for all tasks, from the least to the most lost, the head first."""
    by_row: dict[str, list[Record]] = {}
    for record in found.comparison.records:
        by_row.setdefault(record.config.row, []).append(record)
    lines = [["method", "lr", "rho", "lost", "lost at worst", "tested untuned", "tuned there"]]
    for method in sorted(found.lost, key=lambda method: found.lost[method]):
        setting = found.settings[method]
        lines.append(
            [
                NAMES[method],
                f"{setting['lr']:g}",
                f"{setting['rho']:g}" if "rho" in setting else "",
                f"{found.lost[method]:.1f}",
                f"{found.worst[method]:.1f}",
                _test(by_row[method]),
                _test(by_row[method + TUNED]),
            ]
        )
    return lines


def claims_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of claims, the head first."""
    lines = [["claim", "grid", "published", "here", "verdict"]]
    for found in study.findings:
        if found.claim.width in widths(study):
            claim = found.claim
            lines.append([claim.text, claim.width, claim.published, _here(found), found.verdict or "too few seeds"])
    return lines


def fading_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of climbs and what they do, task by task, the head first."""
    lines = [["task", "method", "first epoch's climbs", "last epoch's", "test: alone", "as it is", "held"]]
    lines[0] += [f"{measure}: {ratio}" for measure in MEASURES for ratio in ("as it is / alone", "held / alone")]
    for task, run in study.runs.items():
        records = run.comparison.records
        for method, epochs in run.radii.items():
            alone, held = method + ALONE, method + HELD
            lines.append(
                [
                    task,
                    NAMES[method],
                    *(f"{fmean(climbs):.2g}" if climbs else "" for climbs in (epochs[0], epochs[-1])),
                    *(_test([r for r in records if r.config.row == row]) for row in (alone, method, held)),
                    *(_factor(records, m, row, alone) for m in MEASURES for row in (method, held)),
                ]
            )
    return lines


def effects_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of what climbs do to flatness, the head first."""
    lines = [["measure", "what would be flatter", "here", "verdict"]]
    for found in study.effects:
        pairs = zip(found.pairs, found.differences, strict=True)
        here = "; ".join(f"{_row_name(first)} / {_row_name(second)}: {factor(one)}" for (first, second), one in pairs)
        lines.append([found.measure, found.text, here, found.verdict or "too few seeds"])
    return lines


def markdown(study: Study) -> str:
    """Return all tables as Markdown, with what they mean."""
    design = study.design
    wide, factor = design.size, f"{design.step:.3g}"
    parts = [
        "# How much LightSAM depends on its learning rate and radius",
        f"    {study.command}",
        f"Learning rates and radii stand {factor} times apart: {wide} x {wide} of them are the wide grid, the middle "
        f"3 x 3 the narrow one. n = {design.seeds} seeds of the grids, {design.test_seeds} of the test.",
    ]
    for task, run in study.runs.items():
        epochs = run.comparison.plan.epochs
        parts.append(f"## {task}, {epochs} epochs")
        for width in widths(study):
            parts += [f"### {_title(study, task, width)}", markdown_table(grid_table(study, run, width), "lr")]
        parts += [_NOTE, f"### {run.metric} on the test split", markdown_table(test_table(run), "lr"), _TEST_NOTE]
        parts.append(f"![{run.metric} over learning rates and radii]({_file(run)})")
    if study.untuned is not None:
        parts += [
            f"## {_untuned_title(study.untuned)}",
            markdown_table(untuned_table(study.untuned), "lr"),
            _UNTUNED_NOTE,
            f"The least is lost by {NAMES[study.untuned.recommended]}.",
        ]
    parts += [
        "## Claim by claim",
        markdown_table(claims_table(study)),
        _CLAIMS_NOTE,
        f"## {_FADING}",
        markdown_table(fading_table(study), "llr"),
        _FADING_NOTE,
        markdown_table(effects_table(study)),
        _EFFECTS_NOTE,
        "![How far each method climbs, step by step](radii.png)",
    ]
    return "\n\n".join(parts) + "\n"


def results(study: Study) -> dict[str, object]:
    """Return everything as numbers, ready for JSON."""
    return {
        "preset": study.preset,
        "design": {
            **vars(study.design),
            "centre": dict(study.design.centre),
            "held_out": find_task(study.design.held_out).name,
        },
        "tasks": {
            task: {
                "grids": {
                    method: {
                        "settings": list(found.settings),
                        "validation": found.values,
                        "diverged": found.diverged,
                    }
                    for method, found in run.grids.items()
                },
                "chosen": run.chosen,
                "radii": run.radii,
            }
            for task, run in study.runs.items()
        },
        "untuned": study.untuned
        and {
            "settings": study.untuned.settings,
            "lost": study.untuned.lost,
            "worst": study.untuned.worst,
            "recommended": study.untuned.recommended,
        },
        "claims": [asdict(found) for found in study.findings],
        "effects": [asdict(found) for found in study.effects],
        "versions": all_versions(),
    }


def _title(study: Study, task: str, width: Width) -> str:
    size = 3 if width == "narrow" else study.design.size
    return f"{task}, {size} x {size} settings"


def _untuned_title(found: Untuned) -> str:
    return f"without tuning: {found.metric} on {found.comparison.plan.source.name}"


def _file(run: Run) -> str:
    return f"{run.comparison.plan.source.file_name}.png"


def _mean(found: Mean) -> str:
    return f"{found.value:.1f}" + ("" if found.error is None else f" ± {found.error:.1f}")


def _test(records: Sequence[Record]) -> str:
    values = [r.final.test_metric for r in records if r.final is not None and r.final.test_metric is not None]
    lost = len(records) - len(values)
    text = _mean(mean(values)) if values else ""
    return f"{text} ({lost} of {len(records)} diverged)".strip() if lost else text


def _sharpness(records: Sequence[Record]) -> str:
    found = [(record.final.sharpness or {}).get(_SHARPNESS) for record in records if record.final is not None]
    values = [value for value in found if value is not None]
    if not values:
        return ""
    one = mean(values)
    return f"{one.value:.2g}" + ("" if one.error is None else f" ± {one.error:.1g}")


def _here(found: Finding) -> str:
    pairs = zip(found.claim.pairs, found.differences, strict=True)
    return "; ".join(f"{NAMES[first]} - {NAMES[second]}: {interval(one, '{:+.1f}')}" for (first, second), one in pairs)


def _factor(records: Sequence[Record], measure: str, first: str, second: str) -> str:
    found = factors(records, measure, first, second)
    return f"{2 ** fmean(found.values()):.2g}" if found else ""


def _row_name(row: str) -> str:
    for end, meaning in ((ALONE, " without climbing"), (HELD, " held")):
        if row.endswith(end):
            return NAMES[row.removesuffix(end)] + meaning
    return NAMES[row]
