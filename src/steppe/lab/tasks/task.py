"""A task: a model, its data in three splits, a loss and a metric."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import UserError, describe, shortened

Split: TypeAlias = "tuple[Tensor, Tensor] | Dataset[Any]"

_SPLITS = ("train", "validation", "test")


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the percentage of rows of `outputs` whose largest entry is at the index `targets`.

    Args:
        outputs: Scores of shape (n, classes).
        targets: Class indices of shape (n,).

    Returns:
        A number from 0 to 100.

    Example:
        >>> accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
        50.0
    """
    return 100.0 * float((outputs.argmax(dim=1) == targets).double().mean())


_LONGEST_NAME = 60


@dataclass(frozen=True)
class Task:
    """What is to be learned: model, data, loss and metric.

    Args:
        model: Makes a fresh model; called once a trial, after the random seed was set.
        train: Training data: a pair of tensors ``(x, y)`` with equal first dimension, or a map-style dataset of
            ``(x, y)`` pairs.
        validation: Data of the same form, read after every epoch.
        test: Data of the same form, read once, at the end of a trial.
        loss: ``loss(outputs, targets)`` -> scalar tensor.
        metric: ``metric(outputs, targets)`` -> float, over a whole split.
        metric_name: What the metric is called in tables and plots.
        higher_is_better: Whether a larger metric is better.
        batch_size: Examples in a batch, at least 1.
        epochs: Epochs of a trial, at least 1, unless the command line says otherwise.
        unaugmented: The training data without augmentation, if it has any, for training metrics and sharpness.

    Raises:
        UserError: An argument has the wrong type or shape.

    Example:
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> task = Task(model=lambda: nn.Linear(3, 2), train=(x, y), validation=(x, y), test=(x, y))
        >>> task.batch_size
        100
    """

    model: Callable[[], nn.Module]
    train: Split
    validation: Split
    test: Split
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    metric: Callable[[Tensor, Tensor], float] = accuracy
    metric_name: str = "accuracy (%)"
    higher_is_better: bool = True
    batch_size: int = 100
    epochs: int = 40
    unaugmented: Split | None = None

    @property
    def plain_train(self) -> Split:
        """The training data without augmentation."""
        return self.train if self.unaugmented is None else self.unaugmented

    def __post_init__(self) -> None:
        """Check every field, so that a mistake shows before anything is trained."""
        if isinstance(self.model, nn.Module):
            raise UserError("Task: model must be a function that makes a model, got a model; write model=lambda: ...")
        for name in ("model", "loss", "metric"):
            if not callable(getattr(self, name)):
                raise UserError(f"Task: {name} must be a function, got {_kind(getattr(self, name))}")
        for name in _SPLITS:
            _check_split(name, getattr(self, name))
        if self.unaugmented is not None:
            _check_split("unaugmented", self.unaugmented)
        _check_same_shape(self)
        if not isinstance(self.metric_name, str) or not self.metric_name.strip():
            raise UserError(f"Task: metric_name must be a text, got {self.metric_name!r}")
        if len(self.metric_name) > _LONGEST_NAME or not self.metric_name.isprintable():
            raise UserError(
                f"Task: metric_name must have at most {_LONGEST_NAME} characters, all of them printable, got "
                f"{shortened(repr(self.metric_name), 60)}"
            )
        if not isinstance(self.higher_is_better, bool):
            raise UserError(f"Task: higher_is_better must be True or False, got {self.higher_is_better!r}")
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"Task: {name} must be a whole number of at least 1, got {value!r}")


def size(split: Split) -> int:
    """Return the number of examples in a split."""
    return len(split[0]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def batches(split: Split, batch_size: int, shuffle: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over a split, the last batch being smaller if need be.

    Args:
        split: Tensors or a dataset.
        batch_size: Examples in a batch, at least 1.
        shuffle: Draws the order; without it the order is that of the data.

    Yields:
        Pairs (x, y).
    """
    if isinstance(split, tuple):
        x, y = split
        order = torch.arange(len(x)) if shuffle is None else torch.randperm(len(x), generator=shuffle)
        for index in torch.split(order, batch_size):
            yield x[index], y[index]
        return
    # A DataLoader draws a seed even when it does not shuffle: keep the global generator out of that.
    generator = torch.Generator().manual_seed(0) if shuffle is None else shuffle
    yield from DataLoader(split, batch_size, shuffle=shuffle is not None, generator=generator)


def take(split: Split, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return some examples of a split as one batch.

    Args:
        split: Tensors or a dataset.
        indices: At least one.

    Returns:
        The pair (x, y).
    """
    if isinstance(split, tuple):
        x, y = split
        chosen = torch.tensor(indices)
        return x[chosen], y[chosen]
    x, y = default_collate([split[index] for index in indices])
    return x, y


def check_fit(task: Task, file: str | None = None) -> None:
    """Try model, loss and metric once, on two training examples.

    Args:
        task: The task.
        file: The user's file, to name the line where something fails.

    Raises:
        UserError: Something does not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            x, y = _two_examples(task.train)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"reading two training examples failed with {describe(error, file)}") from error
        _check_training(task, x, y, file)


def _two_examples(split: Split) -> tuple[Tensor, Tensor]:
    batch = next(batches(split, 2))
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise UserError("Task: every example of train must be a pair (x, y) of tensors or numbers")
    return batch[0], batch[1]


def _check_training(task: Task, x: Tensor, y: Tensor, file: str | None) -> None:
    shapes = f"inputs of shape {tuple(x.shape)}"
    try:
        model = task.model()
    except (Exception, SystemExit) as error:
        raise UserError(f"making the model failed with {describe(error, file)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"Task: model must return a torch.nn.Module, got {_kind(model)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("Task: the model has no parameter to train")
    try:
        outputs = model(x)
    except (Exception, SystemExit) as error:
        raise UserError(f"the model failed on {shapes} with {describe(error, file)}") from error
    if not isinstance(outputs, Tensor):
        raise UserError(f"Task: the model must return a tensor, got {_kind(outputs)}")
    shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(y.shape)} ({y.dtype})"
    try:
        loss = task.loss(outputs, y)
    except (Exception, SystemExit) as error:
        raise UserError(f"the loss failed on {shapes} with {describe(error, file)}") from error
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else _kind(loss)
        raise UserError(f"Task: the loss must be a scalar tensor, got {got} on {shapes}")
    if not loss.requires_grad:
        raise UserError("Task: the loss does not depend on the model's parameters; do not detach it")
    _check_metric(task, outputs.detach(), y, shapes, file)


def _check_metric(task: Task, outputs: Tensor, y: Tensor, shapes: str, file: str | None) -> None:
    try:
        value = task.metric(outputs, y)
    except (Exception, SystemExit) as error:
        raise UserError(f"the metric failed on {shapes} with {describe(error, file)}") from error
    try:
        math.isfinite(float(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"Task: the metric must return a number, got {_kind(value)} on {shapes}") from error


def _check_split(name: str, split: object) -> None:
    if isinstance(split, (tuple, list)):
        if len(split) != 2 or not all(isinstance(part, Tensor) for part in split):
            raise UserError(f"Task: {name} must be a pair of tensors (x, y), got {_parts(split)}")
        if isinstance(split, list):
            raise UserError(f"Task: {name} must be a tuple (x, y), got a list")
        x, y = split
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
            raise UserError(
                f"Task: x and y of {name} must have the same first dimension, "
                f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
            )
    elif not isinstance(split, Dataset):
        raise UserError(f"Task: {name} must be a pair of tensors (x, y) or a torch Dataset, got {_kind(split)}")
    try:
        length = size(split)
    except (TypeError, NotImplementedError) as error:
        raise UserError(f"Task: {name} must be a map-style Dataset with a length, got {_kind(split)}") from error
    if length < 2:
        raise UserError(f"Task: {name} needs at least 2 examples, got {length}")


def _check_same_shape(task: Task) -> None:
    splits = [(name, getattr(task, name)) for name in _SPLITS]
    shapes = {name: tuple(split[0].shape[1:]) for name, split in splits if isinstance(split, tuple)}
    if len(set(shapes.values())) > 1:
        raise UserError(f"Task: x must have the same shape in every split after the first dimension, got {shapes}")


def _parts(split: tuple[object, ...] | list[object]) -> str:
    return f"{len(split)} parts: {', '.join(_kind(part) for part in split)}"


def _kind(value: object) -> str:
    """Name the type of a value; for functions and classes, their own name."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__name__}"
    return type(value).__name__


FIELDS = tuple(field.name for field in fields(Task))
