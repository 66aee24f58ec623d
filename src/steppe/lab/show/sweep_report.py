"""What a sweep leaves behind: table.md, sweep.json, heatmap.png, best.yaml, config.yaml and report.html."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import RunError
from ..files import write_atomically
from ..judge.points import Point
from ..plans.choices import Choice
from ..plans.grid import shown, words
from ..trials.finding import shown as shown_words
from ..trials.records import all_versions
from . import heatmap as pictures
from . import sweep_table as table
from .page import render

if TYPE_CHECKING:
    from ..judge.sweep import Sweep


def write_report(sweep: Sweep) -> None:
    """Write all files of the report into the folder of the sweep.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = sweep.plan.out
    try:
        write_atomically(folder / "table.md", table.summary(sweep).markdown)
        write_atomically(folder / "sweep.json", json.dumps(results(sweep), indent=1) + "\n")
        write_atomically(folder / "config.yaml", yaml.safe_dump(sweep.plan.options, sort_keys=False))
        if sweep.setting is not None:
            write_atomically(folder / "best.yaml", yaml.safe_dump(chosen(sweep), sort_keys=False))
        write_atomically(folder / "heatmap.png", pictures.png(sweep))
        write_atomically(folder / "report.html", html(sweep))
    except OSError as error:
        raise RunError(f"the report cannot be written to {str(folder)!r}: {error.strerror}") from error


def results(sweep: Sweep) -> dict[str, Any]:
    """Return everything that was found, ready for JSON; of the test data, the numbers of the best setting alone."""
    best = sweep.best
    return {
        "definition": sweep.plan.definition,
        "command": sweep.command,
        "verdict": sweep.verdict,
        "best": None if best is None else _json(best, test=True),
        "edges": sweep.edges,
        "points": [_json(point, test=point is best) for point in sweep.points],
        "versions": all_versions(),
    }


def chosen(sweep: Sweep) -> dict[str, Any]:
    """Return the best setting as the content of a file for ``steppe compare --config``."""
    plan = sweep.plan.at(sweep.setting or {})
    (arm,) = plan.arms
    best = sweep.best
    choice = Choice(
        settings=len(sweep.points),
        seeds=len(plan.seeds),
        varied=tuple(axis.name for axis in plan.grid),
        chosen=sweep.setting,
        validation=best.validation.value if best is not None and best.validation is not None else None,
    )
    return {
        "task": plan.options["task"],
        "base": plan.base,
        "epochs": plan.epochs,
        "settings": {arm.name: arm.entry},
        "tuned": {arm.name: choice.model_dump(mode="json", exclude_defaults=True)},
    }


def html(sweep: Sweep) -> str:
    """Return the report as one page that needs nothing else."""
    from markupsafe import Markup

    title, picture = pictures.svg(sweep)
    return render(
        "sweep.html",
        title=sweep.plan.title,
        headline=sweep.verdict[0],
        sentences=sweep.verdict[1:],
        # Drawn by matplotlib from numbers and names, which it escapes: safe to inline.
        picture=(title, Markup(picture)),
        headers=table.headers(sweep),
        rows=table.cells(sweep),
        note=table.NOTE,
        everything=[_line(sweep, point) for point in sweep.points],
        facts=_facts(sweep),
        versions=", ".join(f"{name} {number}" for name, number in all_versions().items()),
        command=sweep.command,
    )


def _json(point: Point, *, test: bool) -> dict[str, Any]:
    hidden = set() if test else {"test_metric", "test_loss"}
    return {
        "setting": point.setting,
        "state": point.state,
        "validation": None if point.validation is None else asdict(point.validation),
        **({"test": None if point.test is None else asdict(point.test)} if test else {}),
        "seeds": [result.model_dump(mode="json", exclude=hidden) for result in point.seeds],
    }


def _line(sweep: Sweep, point: Point) -> list[str]:
    digits = sweep.digits
    epochs = [result.diverged for result in point.seeds if result.diverged is not None]
    numbers = [f"{x.validation_metric:.{digits}f}" for x in point.seeds if x.validation_metric is not None]
    state = f"diverged in epoch {epochs[0]}" if epochs else point.state
    values = [shown(point.setting[axis.name]) for axis in sweep.plan.grid]
    return [*values, state, ", ".join(numbers) or "-", f"{point.seconds:.3g}"]


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    asked, arm = sweep.plan, sweep.plan.arm
    return [
        ("task", asked.source.name),
        ("method", arm.name if arm.name == arm.method else f"{arm.name}: {shown_words(arm.method)}"),
        ("base", asked.base),
        ("varied", "; ".join(axis.words for axis in asked.grid)),
        ("fixed", words(arm.hyperparameters) or "nothing"),
        ("chosen by", asked.sampler + (", with pruning by the median" if asked.prune else "")),
        ("seeds", ", ".join(map(str, asked.seeds))),
        ("length", asked.length),
        ("batch size", arm.schedules.batch_size.words if arm.schedules.batch_size else str(asked.batch_size)),
        ("learning rate", arm.schedules.lr.words),
        ("metric", f"{asked.metric_name}, {'higher' if asked.higher_is_better else 'lower'} is better"),
    ]
