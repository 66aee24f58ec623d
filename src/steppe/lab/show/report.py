"""What a comparison leaves behind: table.md, results.json, config.yaml, pictures and report.html."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from ...drawing.style import looks
from ..errors import RunError
from ..files import write_atomically
from ..judge.design import same
from ..judge.setting_words import how_set
from ..judge.stats import COSTS, Row, rank_correlation
from ..plans.arms import Arm, each
from ..trials.finding import shown
from ..trials.records import all_versions
from ..trials.schedules import Constant
from . import curves, dots, facts, page, sharpness, table

if TYPE_CHECKING:
    from ..judge.comparison import Comparison
    from ..plans.comparison import Plan


def write_report(comparison: Comparison) -> None:
    """Write all files of the report into the folder of the comparison.

    Args:
        comparison: What was found.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = comparison.plan.out
    try:
        write_atomically(folder / "table.md", table.summary(comparison).markdown)
        write_atomically(folder / "config.yaml", yaml.safe_dump(comparison.plan.options, sort_keys=False))
        write_atomically(folder / "results.json", json.dumps(results(comparison), indent=1) + "\n")
        write_atomically(folder / "curves.png", curves.png(comparison.plan, comparison.records))
        if table.measures(comparison):
            write_atomically(folder / "sharpness.png", sharpness.png(comparison))
        write_atomically(folder / "report.html", html(comparison))
    except OSError as error:
        raise RunError(f"the report cannot be written to {str(folder)!r}: {error.strerror}") from error


def results(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers of the table and where they come from, ready for JSON."""
    plan = comparison.plan
    return {
        "task": plan.source.name,
        "task_digest": plan.source.digest,
        "base": plan.base,
        "metric": plan.metric_name,
        "higher_is_better": plan.higher_is_better,
        "seeds": list(plan.seeds),
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "settings": {arm.name: arm.entry for arm in plan.arms},
        "how_set": how_set(plan),
        "tuned": plan.tuned,
        "command": plan.command,
        "verdict": comparison.verdict,
        "rows": [asdict(row) for row in comparison.rows],
        "rank_correlations": {name: rank_correlation(comparison.rows, name) for name in table.measures(comparison)},
        **{f"n_{split}": same(comparison.records, split) for split in ("train", "validation", "test")},
        "versions": all_versions(),
    }


def html(comparison: Comparison) -> str:
    """Return the report as one page that needs nothing else, and works without its script."""
    from markupsafe import Markup

    plan, records = comparison.plan, comparison.records
    chosen = looks(plan.names, plan.base)
    scale = dots.Scale.of(comparison.rows)
    drawn = curves.panels(plan, records)
    return page.render(
        "report.html",
        plan=plan,
        headline=comparison.verdict[0],
        sentences=comparison.verdict[1:],
        headers=[*table.headers(comparison), *table.further(comparison)],
        rows=[(row, chosen[row.method], cells) for row, cells in _with_cells(comparison)],
        seeds=dots.lines(comparison.rows, chosen, scale),
        scale=scale,
        # Drawn by matplotlib from numbers and registered names, which it escapes: safe to inline.
        panels=[(panel.title, Markup(panel.svg)) for panel in drawn],
        numbers=[panel.numbers for panel in drawn],
        sharpness=[(title, Markup(svg)) for title, svg in sharpness.panels(comparison)],
        correlation=sharpness.sentence(comparison),
        looks=list(chosen.items()),
        cost=COSTS[plan.cost],
        note=table.note(comparison),
        facts=[*_facts(plan), *facts.of_trials(records), *((arm.name, _settings(arm)) for arm in plan.arms)],
        versions=facts.versions(records),
        command=plan.command,
    )


def _with_cells(comparison: Comparison) -> list[tuple[Row, list[str]]]:
    texts = zip(table.cells(comparison), table.further_cells(comparison), strict=True)
    return [(row, left + right) for row, (left, right) in zip(comparison.rows, texts, strict=True)]


def _settings(arm: Arm) -> str:
    values = ", ".join(f"{name} {_number(value)}" for name, value in arm.hyperparameters.items()) or "its own defaults"
    return values if arm.name == arm.method else f"{shown(arm.method)} with {values}"


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_number(part) for part in value) + ")"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _facts(plan: Plan) -> list[tuple[str, str]]:
    task_size = str(plan.batch_size)
    sizes = {arm.name: size.words if (size := arm.schedules.batch_size) else task_size for arm in plan.arms}
    rates = {arm.name: arm.schedules.lr.words for arm in plan.arms}
    radii = [arm for arm in plan.arms if arm.schedules.rho != Constant()]
    return [
        ("task", plan.source.name),
        ("base", plan.base),
        ("seeds", ", ".join(str(seed) for seed in plan.seeds)),
        ("length", each(plan.arms, {arm.name: arm.length(plan.epochs) for arm in plan.arms})),
        *([] if plan.loop else [("batch size", each(plan.arms, sizes)), ("learning rate", each(plan.arms, rates))]),
        *([("rho", each(plan.arms, {arm.name: arm.schedules.rho.words for arm in plan.arms}))] if radii else []),
        ("metric", f"{plan.metric_name}, {'higher' if plan.higher_is_better else 'lower'} is better"),
        ("how set", how_set(plan)),
    ]
