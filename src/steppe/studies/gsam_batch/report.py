"""What the study leaves behind, besides the report of the comparison: study.md, study.json and study.png."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
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
from ..verdicts import factor, interval
from .claims import SHARPNESS, Finding, error, sharpness
from .design import AT_EQUAL_UPDATES, COLUMNS, PRESETS
from .run import Study

_BUDGETS = {"": "equal epochs", AT_EQUAL_UPDATES: "equal updates"}
_COLOURS = {"sgd": "#4477AA", "sam": "#EE6677", "gsam": "#228833"}
_MARKERS = {"": "o", "B": "^", "C": "s"}


def write(study: Study) -> Path:
    """Write the study's files into the folder of its comparison; return the path of study.md.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = study.comparison.plan.out
    try:
        write_atomically(folder / "study.md", markdown(study))
        write_atomically(folder / "study.json", json.dumps(results(study), indent=1) + "\n")
        write_atomically(folder / "study.png", png(study))
    except OSError as problem:
        raise RunError(f"the report cannot be written to {str(folder)!r}: {problem.strerror}") from problem
    return folder / "study.md"


def table(study: Study) -> list[list[str]]:
    """Return the lines of the table: nine columns at both budgets, the head first."""
    by_row = rows(study.comparison.records)
    lines = [["", *(_title(name) for name in COLUMNS)]]
    for budget, words in _BUDGETS.items():
        names = [name + budget if name.endswith("+B") else name for name in COLUMNS]
        lines.append([f"{words}: test error (%)", *(_cell(by_row[name], error, "{:.2f}") for name in names)])
        lines.append([f"{words}: sharpness", *(_cell(by_row[name], sharpness, "{:.3g}") for name in names)])
        lines.append([f"{words}: updates", *(_mean(by_row[name], lambda record: record.updates) for name in names)])
    return lines


def claims_table(study: Study) -> list[list[str]]:
    """Return the lines of the table of claims, the head first."""
    lines = [["claim", "budget", "published", "here", "verdict"]]
    for budget, findings in study.findings.items():
        for found in findings:
            claim = found.claim
            lines.append(
                [claim.text, _BUDGETS[budget], claim.published, _here(found), found.verdict or "too few seeds"]
            )
    return lines


def markdown(study: Study) -> str:
    """Return both tables as Markdown, with what they mean."""
    plan, design = study.comparison.plan, study.design
    sizes = ", ".join(str(size) for size in design.batches)
    setting = (
        f"{plan.source.name}, SGD without momentum and weight decay, learning rate {design.lr:g}, rho {design.rho:g}, "
        f"alpha {design.alpha:g}, {plan.epochs} epochs, n = {len(plan.seeds)} seeds; fixed batch {design.fixed}; +B: "
        f"{sizes}; +C: cosine to a hundredth of the learning rate."
    )
    lr = "" if design.lr == PRESETS[study.preset].lr else f" --lr {design.lr:g}"
    command = f"    steppe study gsam-batch --preset {study.preset} --seeds {len(plan.seeds)}{lr}"
    parts = [
        "# SAM and GSAM with growing batches or a decaying learning rate",
        setting,
        markdown_table(table(study)),
        NOTE,
        "## Claim by claim",
        markdown_table(claims_table(study)),
        CLAIMS_NOTE,
        command,
    ]
    return "\n\n".join(parts) + "\n"


NOTE = (
    f"Mean ± standard error over seeds. Sharpness: {SHARPNESS} (Auto-PGD, radius 2e-4, 20 iterations) on 1024 training "
    "examples in batches of 128, in units of the loss. Equal epochs: each batch size of +B lasts equally many epochs, "
    "as published. Equal updates: each lasts equally many updates, as many in all as with the fixed batch; the columns "
    "without +B are the same runs in both."
)
CLAIMS_NOTE = (
    "Here: the difference of each pair, paired by seed, with its 95 % interval; of errors in percentage points, of "
    "sharpness as the factor between the two. * means p < 0.05 after Holm's correction for the pairs of the claim. "
    "Replicated: every pair right and significant. In part: some are, and none significantly wrong."
)


def results(study: Study) -> dict[str, object]:
    """Return everything as numbers, ready for JSON."""
    plan = study.comparison.plan
    by_row = rows(study.comparison.records)
    return {
        "preset": study.preset,
        "design": asdict(study.design),
        "task": plan.source.name,
        "seeds": list(plan.seeds),
        "columns": {
            name: {
                "error": {record.config.seed: error(record) for record in records},
                "sharpness": {record.config.seed: sharpness(record) for record in records},
                "updates": [record.updates for record in records],
                "examples": [record.examples for record in records],
            }
            for name, records in by_row.items()
        },
        "claims": {_BUDGETS[budget]: [asdict(one) for one in found] for budget, found in study.findings.items()},
        "versions": all_versions(),
    }


def png(study: Study) -> bytes:
    """Draw error against sharpness for every column, a panel for each budget."""
    by_row = rows(study.comparison.records)
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (budget, words) in zip(panels, _BUDGETS.items(), strict=True):
        for name in COLUMNS:
            records = by_row[name + budget if name.endswith("+B") else name]
            _draw(axes, name, records)
        axes.set_xscale("log")
        axes.set_title(words, fontsize=10)
        axes.set_xlabel("sharpness")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test error (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def rows(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of every column."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.config.row, []).append(record)
    return found


def _draw(axes: Axes, name: str, records: Sequence[Record]) -> None:
    optimizer, _, suffix = name.partition("+")
    points = [(sharpness(record), error(record)) for record in records]
    known = [(x, y) for x, y in points if x and y is not None]
    if not known:
        return
    look: dict[str, Any] = {"color": _COLOURS[optimizer], "marker": _MARKERS[suffix]}
    axes.plot(*zip(*known, strict=True), linestyle="none", markersize=3.5, alpha=0.5, **look)
    middle = math.exp(fmean(math.log(x) for x, _ in known)), fmean(y for _, y in known)
    axes.plot([middle[0]], [middle[1]], linestyle="none", markersize=9, label=_title(name), **look)


def _title(name: str) -> str:
    optimizer, plus, suffix = name.partition("+")
    return optimizer.upper() + plus + suffix


def _cell(records: Sequence[Record], quantity: Callable[[Record], float | None], form: str) -> str:
    values = [value for value in map(quantity, records) if value is not None]
    if not values:
        return "not finite"
    found = mean(values)
    text = form.format(found.value) + ("" if found.error is None else f" ± {form.format(found.error)}")
    lost = len(records) - len(values)
    return f"{text} ({lost} of {len(records)} not finite)" if lost else text


def _mean(records: Sequence[Record], quantity: Callable[[Record], float]) -> str:
    return f"{fmean(map(quantity, records)):.0f}"


def _here(found: Finding) -> str:
    texts = []
    for (less, more), difference in zip(found.claim.pairs, found.differences, strict=True):
        pair = f"{_title(less).replace(AT_EQUAL_UPDATES, '')} - {_title(more)}"
        if found.claim.quantity == "error":
            texts.append(f"{pair}: {interval(difference)}")
        else:
            texts.append(f"{pair.replace(' - ', ' / ')}: {factor(difference)}")
    return "; ".join(texts)


def show(study: Study, console: Console) -> None:
    """Print both tables."""
    # Nine columns are too wide for a terminal.
    pages.show(console, [list(column) for column in zip(*table(study), strict=True)])
    pages.show(console, claims_table(study), numbers=False)
