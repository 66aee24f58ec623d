"""The table of one task, as Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from ...drawing.markdown import table
from ..judge.comparison import Comparison
from ..judge.differences import MINIMUM_PAIRS
from ..judge.noise import LEVEL
from ..judge.stats import Row
from ..tuning.candidates import Tuned
from .entries import Bench


@dataclass(frozen=True)
class Share:
    """What part of SAM's gain over the base a method keeps, with Fieller's 95 % interval.

    Attributes:
        value: The ratio of the mean gains.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name: Of the row.
        setting: What was chosen for it.
        edges: Which of that lies on the edge of its grid.
        metric: Mean test metric, its standard error, and how many seeds.
        gain: Mean difference to the base, its 95 % interval, and whether it is significant after Holm's correction.
        share: Of SAM's gain; None where SAM has none that is significant.
        gradients: Per step, in gradients of a whole batch.
        time: Of a step, over that of the base: median and quartiles.
        memory: Peak beyond that of the base, in copies of the weights.
    """

    name: str
    setting: dict[str, Any]
    edges: tuple[str, ...]
    metric: tuple[float, float, int]
    gain: tuple[float, float, float, bool] | None
    share: Share | None
    gradients: float
    time: tuple[float, float, float]
    memory: float


def lines(
    found: Comparison, tuned: Mapping[str, Tuned], times: Mapping[str, Sequence[float]], memory: Mapping[str, float]
) -> list[Line]:
    """Return the rows of the table in the order in which they were asked for.

    Args:
        found: The comparison.
        tuned: What was chosen for every row.
        times: Of every row, over that of the base.
        memory: Of every row, beyond that of the base, in copies of the weights.
    """
    rows = {row.method: row for row in found.rows}
    base = found.plan.base
    sign = 1.0 if found.plan.higher_is_better else -1.0
    sam = _gains(rows, "sam", base, sign)
    helps = rows["sam"].difference is not None and rows["sam"].difference.significant and fmean(sam) > 0
    made = []
    for name in found.plan.names:
        row, gain = rows[name], rows[name].difference
        metric = row.metric
        made.append(
            Line(
                name=name,
                setting=tuned[name].setting,
                edges=tuned[name].edges,
                metric=(math.nan, math.nan, 0) if metric is None else (metric.value, metric.error or 0.0, metric.n),
                gain=None if gain is None else (gain.value, gain.low, gain.high, gain.significant),
                share=fieller(_gains(rows, name, base, sign), sam) if helps and name != base else None,
                gradients=(row.examples or math.nan) / (rows[base].examples or math.nan),
                time=_quartiles(sorted(times[name])),
                memory=memory[name],
            )
        )
    return made


def fieller(gains: Sequence[float], of: Sequence[float]) -> Share | None:
    """Return the ratio of two means of paired numbers with Fieller's 95 % interval.

    The interval is that of all ratios ``r`` for which ``gains - r of`` may have the mean 0 by Student's t.

    Args:
        gains: One number a seed.
        of: One number a seed, in the same order; their mean must differ from 0 significantly.

    Returns:
        The ratio; None with fewer than 3 pairs, with other seeds, or if the interval has no end.
    """
    from scipy import stats

    n = len(gains)
    if n < MINIMUM_PAIRS or n != len(of):
        return None
    x, y = fmean(gains), fmean(of)
    xx = sum((a - x) ** 2 for a in gains) / (n - 1) / n
    yy = sum((b - y) ** 2 for b in of) / (n - 1) / n
    xy = sum((a - x) * (b - y) for a, b in zip(gains, of, strict=True)) / (n - 1) / n
    t = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) ** 2
    leading = y * y - t * yy
    if leading <= 0:
        return None
    centre = (x * y - t * xy) / leading
    half = math.sqrt(max((x * y - t * xy) ** 2 - leading * (x * x - t * xx), 0.0)) / leading
    return Share(x / y, centre - half, centre + half)


def markdown(bench: Bench, found: Comparison, made: Sequence[Line], seeds: int) -> str:
    """Return the section of a task: what it is, how it was run, and the table."""
    n = found.plan.seeds
    head = [
        f"## {bench.title[0].upper()}{bench.title[1:]}",
        "",
        f"{found.plan.metric_name} on the test split, mean ± standard error over {len(n)} seeds, around "
        f"{bench.base}; settings chosen out of nine by the validation metric over {seeds} other seeds.",
        "",
    ]
    titles = ["method", "test", "gain over the base", "of SAM's gain", "gradients", "time", "memory", "setting"]
    return "\n".join([*head, table([titles, *(_line(line) for line in made)], "lrrrrrrl"), ""])


def summary(found: Mapping[str, Sequence[Line]]) -> str:
    """Return the table over all tasks: gains side by side, and the highest price.

    Args:
        found: The lines of every task, by its title.
    """
    longest = max(found.values(), key=len)
    names = dict.fromkeys(line.name for made in (longest, *found.values()) for line in made if line.gain is not None)
    head = ["method", *found, "gradients", "time", "memory"]
    rows = [head]
    for name in names:
        asked = [next((line for line in made if line.name == name), None) for made in found.values()]
        cells = ["" if line is None else _gain(line) + _share(line) for line in asked]
        of = [line for line in asked if line is not None]
        price = [
            f"{max(line.gradients for line in of):.2f}",
            f"{max(line.time[0] for line in of):.2f}",
            f"{max(line.memory for line in of):+.1f}",
        ]
        rows.append([name, *cells, *price])
    text = [
        "## All tasks",
        "",
        "Gain over the base, and in brackets the share of SAM's gain. Of gradients, time and memory the highest of all "
        "tasks.",
        "",
        table(rows, "lr"),
        "",
    ]
    return "\n".join(text)


def _share(line: Line) -> str:
    return "" if line.share is None else f" ({_percent(line.share.value)})"


def _gain(line: Line) -> str:
    return "" if line.gain is None else f"{line.gain[0]:+.2f}{'*' if line.gain[3] else ''}"


def _line(line: Line) -> list[str]:
    value, error, _ = line.metric
    gain = "" if line.gain is None else f"{line.gain[0]:+.2f} [{line.gain[1]:+.2f}, {line.gain[2]:+.2f}]"
    gain += "*" if line.gain is not None and line.gain[3] else ""
    share = "" if line.share is None else f"{_percent(line.share.value)} [{_percent(line.share.low)}, "
    share += "" if line.share is None else f"{_percent(line.share.high)}]"
    setting = ", ".join(
        f"{name} {value:g}{'!' if name in line.edges else ''}"
        for name, value in line.setting.items()
        if name in ("lr", "rho", "weight_decay") and (name != "weight_decay" or line.gain is None)
    )
    time = f"{line.time[0]:.2f} [{line.time[1]:.2f}, {line.time[2]:.2f}]"
    return [
        line.name,
        f"{value:.2f} ± {error:.2f}",
        gain,
        share,
        f"{line.gradients:.2f}",
        time,
        f"{line.memory:+.1f}",
        setting,
    ]


def as_json(made: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the rows as plain values."""
    return [asdict(line) for line in made]


def _gains(rows: Mapping[str, Row], name: str, base: str, sign: float) -> list[float]:
    ours, theirs = rows[name].test, rows[base].test
    return [sign * (ours[seed] - theirs[seed]) for seed in sorted(theirs) if seed in ours]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    half = len(values) // 2
    return median(values), median(values[: half or 1]), median(values[-(half or 1) :])


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
