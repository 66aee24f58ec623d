"""What a comparison leaves behind: table.md, results.json, config.yaml, curves.png and report.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import yaml
from matplotlib.ticker import MaxNLocator

from .curves import Look, looks, panels, png
from .errors import RunError
from .records import Record, all_versions, write_atomically
from .stats import Row
from .table import NOTE, headers, markdown
from .table import cells as table_cells
from .verdict import decimals, with_error

if TYPE_CHECKING:
    from .comparison import Comparison, Plan


def write_report(comparison: Comparison) -> None:
    """Write all files of the report into the folder of the comparison.

    Args:
        comparison: What was found.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = comparison.plan.out
    try:
        write_atomically(folder / "table.md", markdown(comparison))
        write_atomically(folder / "config.yaml", yaml.safe_dump(comparison.plan.options, sort_keys=False))
        write_atomically(folder / "results.json", json.dumps(results(comparison), indent=1) + "\n")
        write_atomically(folder / "curves.png", png(comparison.plan, comparison.records))
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
        "settings": plan.settings,
        "command": plan.command,
        "verdict": comparison.verdict,
        "rows": [asdict(row) for row in comparison.rows],
        "versions": all_versions(),
    }


def html(comparison: Comparison) -> str:
    """Return the report as one page that needs nothing else: no script, no font, no address."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    plan = comparison.plan
    environment = Environment(
        loader=PackageLoader("steppe.compare", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html")
    chosen = looks(list(plan.settings), plan.base)
    scale = _Scale.of(comparison.rows)
    return page.render(
        plan=plan,
        headline=comparison.verdict[0],
        sentences=comparison.verdict[1:],
        headers=headers(comparison),
        rows=[
            _line(row, cells, chosen[row.method], scale, decimals(comparison.rows))
            for row, cells in _with_cells(comparison)
        ],
        scale=scale,
        # Drawn by matplotlib from numbers and registered names, which it escapes: safe to inline.
        panels=[(title, Markup(svg)) for title, svg in panels(plan, comparison.records)],
        looks=[(method, look) for method, look in chosen.items()],
        note=NOTE,
        settings=[(method, _settings(values)) for method, values in plan.settings.items()],
        versions=_versions(comparison.records),
        facts=_facts(plan),
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
    return list(zip(comparison.rows, table_cells(comparison), strict=True))


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


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_number(part) for part in value) + ")"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _facts(plan: Plan) -> list[tuple[str, str]]:
    return [
        ("task", plan.source.name),
        ("base", plan.base),
        ("seeds", ", ".join(str(seed) for seed in plan.seeds)),
        ("epochs", str(plan.epochs)),
        ("batch size", str(plan.batch_size)),
        ("learning rate", "falls to zero along a cosine over all steps"),
        ("metric", f"{plan.metric_name}, {'higher' if plan.higher_is_better else 'lower'} is better"),
    ]


def _versions(records: Sequence[Record]) -> str:
    """Name the versions that the trials ran with, which need not be those of today."""
    found = {", ".join(f"{name} {number}" for name, number in record.versions.items()) for record in records}
    return "; ".join(sorted(found))
