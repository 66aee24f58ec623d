"""What was found, as tables of pandas: one line for each method, setting or trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError, nearest, require
from ..plans.grid import shown
from ..plans.sweep import SweepPlan
from ..trials.records import Record
from .stats import Mean, Row

if TYPE_CHECKING:
    import pandas

    from .points import Point, SeedResult

_FINAL = ("train_loss", "train_metric", "validation_loss", "validation_metric", "test_loss", "test_metric")
_SPENT = ("gradient_evaluations", "examples", "updates", "seconds")
_OF_ROWS = ("train_loss", "gap", *_SPENT, "relative_time", "relative_memory")
_TEST = ("test_metric", "test_loss")


def frame(lines: Mapping[str, Callable[[], list[dict[str, Any]]]], what: str) -> pandas.DataFrame:
    """Return one of several tables; what is not there is NaN.

    Args:
        lines: By name, what makes the lines of a table.
        what: The name of the one to return.

    Raises:
        UserError: There is no such table, or pandas is not installed.
    """
    if what not in lines:
        raise UserError(f"unknown table {what!r}{nearest(what, lines)}")
    require("pandas")
    import pandas

    return pandas.DataFrame(lines[what]())


def methods(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a line for each row of a comparison's table."""
    return [_method(row) for row in rows]


def trials(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return a line for each trial of a comparison: its configuration, and what came of it."""
    names = dict.fromkeys(name for record in records for name in record.config.flat)
    return [{**dict.fromkeys(names, math.nan), **_trial(record)} for record in records]


def settings(plan: SweepPlan, points: Sequence[Point], best: Point | None) -> list[dict[str, Any]]:
    """Return a line for each setting of a sweep; of the test data, the number of the best one alone."""
    return [
        {
            **{axis.name: _plain(point.setting[axis.name]) for axis in plan.grid},
            "state": point.state,
            "seeds": len(point.seeds),
            **_mean("validation_metric", point.validation),
            **_mean("test_metric", point.test if point is best else None),
            "seconds": point.seconds,
        }
        for point in points
    ]


def trainings(plan: SweepPlan, points: Sequence[Point], best: Point | None) -> list[dict[str, Any]]:
    """Return a line for each training of a sweep that came to its end: its configuration, and what came of it."""
    return [_training(plan, point, result, point is best) for point in points for result in point.seeds]


def _method(row: Row) -> dict[str, Any]:
    difference = row.difference
    return {
        "method": row.method,
        "is_base": row.is_base,
        "trials": row.trials,
        "diverged": row.diverged,
        **_mean("test_metric", row.metric),
        "difference": math.nan if difference is None else difference.value,
        "difference_low": math.nan if difference is None else difference.low,
        "difference_high": math.nan if difference is None else difference.high,
        "p": math.nan if difference is None else difference.p,
        "p_holm": math.nan if difference is None else difference.p_holm,
        "significant": difference is not None and difference.significant,
        **{name: _number(getattr(row, name)) for name in _OF_ROWS},
        **{key: value for name, mean in row.more.items() for key, value in _mean(f"test {name}", mean).items()},
        **{key: value for name, mean in row.sharpness.items() for key, value in _mean(name, mean).items()},
    }


def _trial(record: Record) -> dict[str, Any]:
    final = {} if record.final is None else record.final.flat
    return {
        **record.config.flat,
        "status": record.status,
        "diverged_epoch": math.nan if record.diverged is None else record.diverged.epoch,
        "diverged_step": math.nan if record.diverged is None else record.diverged.step,
        **{name: _number(final.get(name)) for name in [*_FINAL, *final]},
        **{name: getattr(record, name) for name in _SPENT},
        "peak_memory": _number(record.peak_memory),
    }


def _training(plan: SweepPlan, point: Point, result: SeedResult, test: bool) -> dict[str, Any]:
    hidden = () if test else _TEST
    return {
        **plan.trial(point.setting, result.seed).flat,
        "status": "finished" if result.diverged is None else "diverged",
        "diverged_epoch": _number(result.diverged),
        **{name: math.nan if name in hidden else _number(getattr(result, name)) for name in _FINAL},
        "gradient_evaluations": result.gradient_evaluations,
        "seconds": result.seconds,
    }


def _mean(name: str, mean: Mean | None) -> dict[str, float]:
    found = mean or Mean(math.nan, None, 0)
    ends = {f"{name}_{end}": _number(getattr(found, end)) for end in ("error", "low", "high")}
    return {name: found.value, **ends}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    return shown(value) if isinstance(value, tuple) else value
