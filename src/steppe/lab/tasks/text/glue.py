"""The eight tasks of GLUE: their training and development rows from a folder or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import UserError, missing_extra, nearest, one_line
from .glue_tasks import GLUE, GlueTask
from .rows import Label, Rows, shown
from .tables import read, read_plain_tsv

__all__ = ["GLUE", "HUB", "load"]

HUB = "nyu-mll/glue"


def load(task: str, folder: str | Path | None = None, mismatched: bool = False) -> dict[str, Rows]:
    """Read the training and development rows of a task; those of its test split have no labels.

    A folder holds the files, or a folder of the task's name with the files, such as ``CoLA``, ``cola``, ``SST-2`` or
    ``sst2``:

    * GLUE's own ``train.tsv`` and ``dev.tsv``, for MNLI ``dev_matched.tsv`` and ``dev_mismatched.tsv``. A quote in them
      is a character like any other. For MRPC also ``msr_paraphrase_train.txt`` and ``msr_paraphrase_test.txt``, whose
      labelled test rows then are the development rows;
    * ``train.jsonl`` and ``validation.jsonl``, or ``.parquet``, with the hub's columns and classes as numbers; for MNLI
      ``validation_matched`` and ``validation_mismatched``. Parquet may be called ``train-00000-of-00001.parquet``.

    Some copies of QQP have rows with missing fields: they are an error that counts them. From the hub, rows are taken
    as they are.

    Args:
        task: A key of `GLUE`.
        folder: The folder; without it the hub is asked for ``nyu-mll/glue``.
        mismatched: Of MNLI, whether to take the development rows of other genres than the training rows.

    Returns:
        ``train`` and ``dev``; labels are the numbers of classes, or for STS-B scores from 0 to 5.

    Raises:
        UserError: The task is unknown, or its files cannot be found or read or have a wrong row.
    """
    if task not in GLUE:
        raise UserError(f"unknown task of GLUE {task!r}{nearest(str(task), GLUE)}")
    if mismatched and task != "mnli":
        raise UserError(f"mismatched development rows are there for mnli alone, got the task {task!r}")
    suffix = "" if task != "mnli" else "_mismatched" if mismatched else "_matched"
    return _from_hub(task, suffix) if folder is None else _from_folder(task, Path(folder), suffix)


def _from_folder(task: str, folder: Path, suffix: str) -> dict[str, Rows]:
    glue = GLUE[task]
    if not folder.is_dir():
        raise UserError(
            f"{glue.title}: the folder {str(folder)!r} does not exist; give one with {_names(task, suffix)}"
        )
    inside = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _plain(entry.name) == task]
    for place in (*inside, folder):
        for train, dev, reader in _layouts(task, suffix):
            paths = {name: _only(glue, place, name) for name in (train, dev)}
            missing = [name for name, path in paths.items() if path is None]
            if len(missing) == 1:
                raise UserError(f"{glue.title}: the folder {str(place)!r} lacks {missing[0]}; put it there")
            if not missing:
                first, second = (reader(glue, path) for path in paths.values() if path is not None)
                return {"train": first, "dev": second}
    names = sorted(entry.name for entry in folder.iterdir())
    got = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
    raise UserError(
        f"{glue.title}: the folder {str(folder)!r}, or {glue.title} in it, must hold {_names(task, suffix)}; "
        f"it holds {got}"
    )


def _layouts(task: str, suffix: str) -> list[tuple[str, str, Callable[[GlueTask, Path], Rows]]]:
    """Return the names of both files in each layout, and what reads them."""
    found: list[tuple[str, str, Callable[[GlueTask, Path], Rows]]] = [("train.tsv", f"dev{suffix}.tsv", _from_tsv)]
    if task == "mrpc":
        found.append(("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", _from_tsv))
    for kind in ("jsonl", "parquet"):
        found.append((f"train.{kind}", f"validation{suffix}.{kind}", _from_columns))
    found.append(("train-*-of-*.parquet", f"validation{suffix}-*-of-*.parquet", _from_columns))
    return found


def _names(task: str, suffix: str) -> str:
    return " or ".join(f"{train} and {dev}" for train, dev, _ in _layouts(task, suffix))


def _only(glue: GlueTask, place: Path, pattern: str) -> Path | None:
    found = sorted(place.glob(pattern))
    if len(found) > 1:
        raise UserError(f"{glue.title}: {str(place)!r} has {len(found)} files {pattern}; write one file of them")
    return found[0] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def _from_tsv(glue: GlueTask, path: Path) -> Rows:
    rows = read_plain_tsv(path, glue.tsv_texts, glue.tsv_label, glue.tsv_header)
    if not glue.classes:
        return _checked(glue, rows, [_number(label) for label in rows.labels])
    names = [str(number) for number in range(len(glue.classes))] if glue.tsv_numbers else list(glue.classes)
    return _checked(glue, rows, [names.index(label) if label in names else label for label in rows.labels], names)


def _from_columns(glue: GlueTask, path: Path) -> Rows:
    return _checked(glue, rows := read(path, glue.texts, "label"), rows.labels)


def _from_hub(task: str, suffix: str) -> dict[str, Rows]:
    glue, splits = GLUE[task], {}
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise missing_extra(error) or error from error
    shown_before = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        found = datasets.load_dataset(HUB, task)
        for split, name in (("train", "train"), ("dev", f"validation{suffix}")):
            columns = [list(found[name][column]) for column in (*glue.texts, "label")]
            texts = list(zip(*columns[:-1], strict=True))
            content = repr((texts, columns[-1])).encode()
            numbers, digest = list(range(1, len(texts) + 1)), hashlib.sha256(content).hexdigest()
            splits[split] = Rows(texts, columns[-1], f"{HUB}:{task}:{name}", numbers, "row", digest)
    except Exception as error:  # whatever the many layers below raise, the remedy is the same
        raise UserError(
            f"{glue.title}: datasets.load_dataset({HUB!r}, {task!r}) failed with {type(error).__name__}: "
            f"{one_line(error)}; connect to the hub, or give a folder with the data (--data)"
        ) from error
    finally:
        if shown_before:
            datasets.utils.enable_progress_bars()
    return {split: _checked(glue, rows, rows.labels) for split, rows in splits.items()}


def _checked(glue: GlueTask, rows: Rows, labels: list[Any], names: list[str] | None = None) -> Rows:
    """Put labels in place of those of the file, once all of them are right."""
    low, high = glue.bounds
    for index, label in enumerate(labels):
        if glue.classes:
            right = isinstance(label, int) and 0 <= label < len(glue.classes)
            known = ", ".join(names or [f"{number} ({name})" for number, name in enumerate(glue.classes)])
        else:
            right = isinstance(label, (int, float)) and low <= label <= high
            known = f"numbers from {low:g} to {high:g}"
        if not right:
            raise UserError(
                f"{rows.where(index)}: the label is {shown(rows.labels[index])}; labels of {glue.title} are {known}"
            )
    final: list[Label] = [label if glue.classes else float(label) for label in labels]
    return replace(rows, labels=final)


def _number(label: Label) -> Label:
    try:
        return float(label)
    except ValueError:
        return label
