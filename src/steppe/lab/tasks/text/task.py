"""A task of texts from plain values, and the file by which worker processes load it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RunError, UserError
from ...files import write_atomically
from ..task import Task
from . import hub
from .classifier import Classifier
from .data import read_data
from .encoding import encode_splits, load_tokenizer
from .rows import Rows
from .splits import Splits

_NOT_DATA = ("model", "length", "batch_size", "epochs", "sha256")
_PART = 2**20


def text_task(
    model: str,
    *,
    length: int = 128,
    batch_size: int = 16,
    epochs: int = 3,
    sha256: Mapping[str, str] | None = None,
    **data: Any,
) -> Task:
    """Make a task of texts.

    Args:
        model: A model of the Hugging Face hub, or a folder, as for `classifier.Classifier`.
        length: How many tokens of a text, or of a pair of texts, are read, special ones included.
        batch_size: Examples in a batch.
        epochs: Of a trial.
        sha256: The hashes that data files, and the folder of the model, must have, by their names.
        **data: As for `read_data`.

    Returns:
        The task: ids, attention masks and token types as inputs; cross-entropy, or the squared error of numbers.

    Raises:
        RunError: A file is no longer what `sha256` says.
        UserError: An argument or a file is wrong.
    """
    wanted = dict(sha256 or {})
    _check_unchanged({**_files_sha256(wanted), **_folder_sha256(model)}, wanted)  # first: they may be broken by now
    made = read_data(**data)
    _check_unchanged(made.sha256, wanted)
    length = _within(length, model)
    x = encode_splits(load_tokenizer(model), _by_name(made.splits), length)
    kind = torch.int64 if made.classes else torch.float32
    y = {name: torch.tensor(rows.labels, dtype=kind) for name, rows in _by_name(made.splits).items()}
    return Task(
        model=partial(Classifier, model, len(made.classes) or 1),
        train=(x["train"], y["train"]),
        validation=(x["validation"], y["validation"]),
        test=(x["test"], y["test"]),
        loss=nn.functional.cross_entropy if made.classes else squared_error,
        metric=made.metric.function,
        metric_name=made.metric.title,
        batch_size=batch_size,
        epochs=epochs,
    )


def write_task(folder: str | Path, **arguments: Any) -> str:
    """Write a file ``task.py`` whose function ``task`` calls `text_task` with these arguments.

    It holds the SHA-256 of every data file, and of the model if that is a folder: a study whose data has changed has
    other records, and one whose data changes while it runs stops. Paths become absolute. The file is the same, byte
    for byte, for the same arguments and data.

    Args:
        folder: Where to write it.
        **arguments: As for `text_task`.

    Returns:
        ``FOLDER/task.py:task``, as `steppe compare` names a task.

    Raises:
        UserError: An argument or a file is wrong, or the folder cannot be written.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if "model" not in given:
        raise UserError("name a model: one of the Hugging Face hub, or a folder")
    for name in ("data", "test", "model"):
        if name in given:
            path = Path(given[name]).expanduser()
            given[name] = str(path.resolve() if name != "model" or path.is_dir() else given[name])
    if "texts" in given and not isinstance(given["texts"], str):
        given["texts"] = list(given["texts"])
    made = read_data(**{name: value for name, value in given.items() if name not in _NOT_DATA})
    given["sha256"] = {**made.sha256, **_folder_sha256(given["model"])}
    path = Path(folder) / "task.py"
    try:
        write_atomically(path, _source(given, made.splits))
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be written: {error.strerror}; choose another folder") from error
    return f"{path}:task"


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of outputs of shape (n, 1) and targets of shape (n,)."""
    return nn.functional.mse_loss(outputs.squeeze(1), targets)


def _source(arguments: Mapping[str, Any], splits: Splits) -> str:
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in _by_name(splits).items())
    lines = [
        f'"""Texts. Rows: {sizes}; {splits.left_out} left out of train, whose texts are in test."""',
        "",
        "from steppe.lab.tasks.text.task import text_task",
        "",
        "",
        "def task():",
        "    return text_task(",
        *(f"        {name}={arguments[name]!r}," for name in sorted(arguments)),
        "    )",
    ]
    return "\n".join(lines) + "\n"


def _by_name(splits: Splits) -> dict[str, Rows]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def _within(length: int, model: str) -> int:
    """Return the length, if the model has so many positions; not every tokenizer knows."""
    most = getattr(hub.load("AutoConfig", model), "max_position_embeddings", None)
    if isinstance(most, int) and isinstance(length, int) and length > most > 0:
        raise UserError(f"length must be at most {most}, which {model!r} can read, got {length}")
    return length


def _check_unchanged(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name, digest in found.items():
        if wanted and wanted.get(name) != digest:
            raise RunError(f"{name} has changed since the study was set up; start it again with the same command")


def _folder_sha256(model: str) -> dict[str, str]:
    """Return one hash of all files that lie in a model's folder; none for a model of the hub."""
    if not Path(model).is_dir():
        return {}
    found = hashlib.sha256()
    for path in sorted(path for path in Path(model).iterdir() if path.is_file()):
        found.update(path.name.encode() + b"\0" + bytes.fromhex(_sha256(path)))
    return {model: found.hexdigest()}


def _files_sha256(names: Iterable[str]) -> dict[str, str]:
    return {name: _sha256(Path(name)) for name in names if Path(name).is_file()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()
