"""The rows of a task of GLUE or of a table, in three splits, with classes as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from ...errors import UserError, nearest
from . import glue, tables
from .metrics import METRICS, Metric
from .rows import Label, Rows
from .splits import Splits, split


@dataclass(frozen=True)
class Data:
    """What a task is made of, before anything is encoded.

    Attributes:
        splits: The rows; labels are the numbers of classes, or numbers to predict.
        classes: The names of the classes; none means that numbers are to be predicted.
        metric: How outputs are judged.
        sha256: The hash of every file, by its name.
    """

    splits: Splits
    classes: tuple[str, ...]
    metric: Metric
    sha256: dict[str, str]


def read_data(
    *,
    task: str | None = None,
    data: str | None = None,
    test: str | None = None,
    texts: Sequence[str] = (),
    label: str = "",
    regression: bool = False,
    mismatched: bool = False,
    metric: str | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Data:
    """Read the rows of a task of GLUE or of a table, and split them.

    GLUE's development rows are the test rows. Of a table the classes are its different labels in the order of their
    names, or of their numbers if all are whole numbers; 1, 1.0 and the text 1 are one label.

    Args:
        task: A key of `glue.GLUE`, or None for a table.
        data: Of a task of GLUE the folder, None for the hub; else the file of the table.
        test: A second file, with the test rows of the table; without it they are drawn from the first.
        texts: The table's one or two columns of texts.
        label: The table's column of labels.
        regression: Whether the table's labels are numbers to predict.
        mismatched: As for `glue.load`.
        metric: A key of `metrics.METRICS`; by default GLUE's own, or accuracy, or for numbers pearson-spearman.
        per_class: As for `splits.split`.
        seed: As for `splits.split`.

    Returns:
        The data.

    Raises:
        UserError: An argument or a file is wrong.
    """
    if task is not None:
        if test is not None or texts or label or regression:
            raise UserError(
                f"the task {task!r} of GLUE has columns and test rows of its own; leave out test, texts, label"
            )
        found = glue.load(task, data, mismatched)
        rows, classes = found["train"], glue.GLUE[task].classes
        held: Rows | None = found["dev"]
        metric = metric or glue.GLUE[task].metric
    else:
        if data is None:
            raise UserError(f"name a task of GLUE, or a table as data; tasks: {', '.join(glue.GLUE)}")
        if mismatched:
            raise UserError("mismatched is for the task mnli of GLUE; leave it out")
        rows, held, classes = _from_table(data, test, texts, label, regression)
    judged = _metric(metric or ("accuracy" if classes else "pearson-spearman"), regression=not classes)
    digests = {part.file: part.sha256 for part in (rows, held) if part is not None}
    return Data(split(rows, held, classes, per_class, seed), classes, judged, digests)


def _metric(name: str, regression: bool) -> Metric:
    suitable = [key for key, metric in METRICS.items() if metric.regression == regression]
    if name not in suitable:
        raise UserError(
            f"unknown metric {name!r} for {'numbers' if regression else 'classes'}{nearest(name, suitable)}"
        )
    return METRICS[name]


def _from_table(
    data: str, test: str | None, texts: Sequence[str], label: str, regression: bool
) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    rows = tables.read(data, texts, label)
    held = None if test is None else tables.read(test, texts, label)
    if regression:
        return _with_numbers(rows), None if held is None else _with_numbers(held), ()
    names = sorted({_name(value) for value in rows.labels})
    if all(re.fullmatch("-?[0-9]+", name) for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise UserError(f"{rows.file}: all labels are {names[0]!r}; at least 2 classes are needed")
    return _with_classes(rows, names), None if held is None else _with_classes(held, names), tuple(names)


def _with_numbers(rows: Rows) -> Rows:
    def refuse(index: int) -> NoReturn:
        raise UserError(f"{rows.where(index)}: the label {rows.labels[index]!r} is not a finite number; correct it")

    numbers: list[Label] = []
    for index, value in enumerate(rows.labels):
        try:
            number = float(value)
        except ValueError:
            refuse(index)
        if not math.isfinite(number):
            refuse(index)
        numbers.append(number)
    return replace(rows, labels=numbers)


def _with_classes(rows: Rows, names: Sequence[str]) -> Rows:
    places = {name: place for place, name in enumerate(names)}
    for index, value in enumerate(rows.labels):
        if _name(value) not in places:
            raise UserError(
                f"{rows.where(index)}: no training row has the label {_name(value)!r}{nearest(_name(value), names)}"
            )
    return replace(rows, labels=[places[_name(value)] for value in rows.labels])


def _name(label: Label) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
