"""What a comparison leaves behind: table.md, results.json, config.yaml, pictures and report.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import yaml
from matplotlib.ticker import MaxNLocator

from ...drawing.style import Look, looks
from ..errors import RunError
from ..files import write_atomically
from ..judge.setting_words import how_set
from ..judge.stats import Row, rank_correlation
from ..judge.verdict import decimals, with_error
from ..plans.arms import Arm, each
from ..trials.finding import shown
from ..trials.records import Record, all_versions
from ..trials.schedules import Constant
from . import curves, page, sharpness, table

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
        "versions": all_versions(),
    }


def html(comparison: Comparison) -> str:
    """Return the report as one page that needs nothing else: no script, no font, no address."""
    from markupsafe import Markup

    plan = comparison.plan
    chosen = looks(plan.names, plan.base)
    scale = _Scale.of(comparison.rows)
    return page.render(
        "report.html",
        plan=plan,
        headline=comparison.verdict[0],
        sentences=comparison.verdict[1:],
        headers=[*table.headers(comparison), *table.further(comparison)],
        rows=[
            _line(row, cells, chosen[row.method], scale, decimals(comparison.rows))
            for row, cells in _with_cells(comparison)
        ],
        scale=scale,
        # Drawn by matplotlib from numbers and registered names, which it escapes: safe to inline.
        panels=[(title, Markup(svg)) for title, svg in curves.panels(plan, comparison.records)],
        sharpness=[(title, Markup(svg)) for title, svg in sharpness.panels(comparison)],
        correlation=sharpness.sentence(comparison),
        looks=list(chosen.items()),
        note=table.NOTE,
        facts=[*_facts(plan), *((arm.name, _settings(arm)) for arm in plan.arms)],
        versions=_versions(comparison.records),
        command=plan.command,
    )


@dataclass(frozen=True)
class _Scale:
    """Maps the test metric to 0..100 across the picture of the seeds."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Scale:
        values = [value for row in rows for value in row.test.values()]
        if not values:
            return cls(0.0, 1.0)
        margin = 0.06 * (max(values) - min(values)) or 0.5
        return cls(min(values) - margin, max(values) + margin)

    def at(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        values = MaxNLocator(5).tick_values(self.low, self.high)
        return [(self.at(value), f"{value:g}") for value in values if self.low <= value <= self.high]


def _with_cells(comparison: Comparison) -> list[tuple[Row, list[str]]]:
    texts = zip(table.cells(comparison), table.further_cells(comparison), strict=True)
    return [(row, left + right) for row, (left, right) in zip(comparison.rows, texts, strict=True)]


def _line(row: Row, cells: list[str], look: Look, scale: _Scale, digits: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "row": row,
        "cells": cells,
        "look": look,
        "dots": [(seed, f"{value:.{digits}f}", scale.at(value)) for seed, value in row.test.items()],
        "mean": None,
    }
    if row.metric is not None:
        error = row.metric.error or 0.0
        line["mean"] = scale.at(row.metric.value)
        line["label"] = with_error(row.metric, digits)
        line["low"], line["high"] = scale.at(row.metric.value - error), scale.at(row.metric.value + error)
    return line


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


def _versions(records: Sequence[Record]) -> str:
    """Name the versions that the trials ran with, which need not be those of today."""
    found = {", ".join(f"{name} {number}" for name, number in record.versions.items()) for record in records}
    return "; ".join(sorted(found))
