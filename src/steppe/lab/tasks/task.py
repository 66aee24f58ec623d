"""A task: a model, its data in three splits, a loss and a metric."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import UserError, shortened
from .metrics import Metric, accuracy, direction_of, is_object, name_of
from .splits import Collate, Split, has_columns, makes_batches, size

MAKE_IT_INSIDE = (
    "make it inside the function: model=lambda: nn.Sequential(...), or of a pretrained one "
    "model=lambda: copy.deepcopy(net)"
)
"""What to do where one model would be that of all trials."""

_SPLITS = ("train", "validation", "test")
_LONGEST_NAME = 60
_PLAIN_BATCH = 1000


@dataclass(frozen=True)
class Task:
    """What is to be learned: model, data, loss and metric.

    A **split** is tensors with one first dimension, as a tuple ``(x, y)`` or by name; a map-style dataset (of torch, of
    Hugging Face, or a list of examples), from which batches are made; or a ``DataLoader``, or a function that makes one
    given a ``torch.Generator``, whose batches are taken as they are. A **batch** may be a pair ``(inputs, targets)``,
    several inputs and the targets last, or a mapping with the targets under ``"labels"``; for any other, also inputs
    alone, ``(x,)``, say with `forward` or `step` what is done with it. Tensors in it are moved to the device.

    A function that returns a task is called without arguments; or, if its one parameter is called ``seed``, with the
    seed of each trial, to split the data anew for it, or to draw it, the same for all methods.

    Args:
        model: Makes a new model; called once a trial, after the random seed was set. Of a pretrained one, a copy.
        train: Training data.
        validation: Data of the same form, read after every epoch.
        test: Data of the same form, read once, at the end of a trial.
        loss: ``loss(outputs, targets)`` -> scalar tensor, the mean over a batch. Outputs are what the model returns, or
            what it calls ``logits`` there.
        metric: ``metric(outputs, targets)`` -> number, over a whole split, on the CPU; or an object that takes batch
            after batch, of torchmetrics; or several by name, of which the first one decides. With `step` the loss, by
            default. At the end the first one is also called, up to some 200 times, on parts of the test split, to see
            what single examples do to it.
        metric_name: What the metric is called in tables and plots; by default its own name.
        higher_is_better: Whether a larger metric is better; by default what torchmetrics says, or yes.
        batch_size: Examples in a batch, at least 1; that of `train` if it is a loader.
        epochs: Epochs of a trial, at least 1, unless the command line says otherwise.
        unaugmented: The training data without augmentation, if it has any, for training metrics and sharpness.
        collate: Makes a batch of a list of examples of a dataset: pads texts, for example.
        forward: ``forward(model, batch)`` -> ``(outputs, targets)``, for batches of another form.
        step: ``step(model, batch)`` -> scalar tensor, in place of `loss`: of models that return their loss, or losses
            that differentiate inside. Metrics then need `forward` where batches have another form than those above.
        drop_last: Whether the last batch of an epoch is left out if it is smaller.
        evaluation_batch_size: Examples in a batch without gradients; by default 1000 of tensors, else `batch_size`.
        evaluation_gradients: Whether gradients may be computed in evaluation, as the losses of equations and forces do.

    Raises:
        UserError: An argument has the wrong type or shape.

    Example:
        >>> import torch
        >>> x, y = torch.randn(60, 3), torch.arange(60) % 2
        >>> train, validation, test = zip(x.split(20), y.split(20))
        >>> task = Task(model=lambda: nn.Linear(3, 2), train=train, validation=validation, test=test)
        >>> task.batch_size, task.metric_name
        (100, 'accuracy (%)')
    """

    model: Callable[[], nn.Module]
    train: Split
    validation: Split
    test: Split
    loss: Callable[[Any, Any], Tensor] = nn.functional.cross_entropy
    metric: Metric | Mapping[str, Metric] = accuracy
    metric_name: str = ""
    higher_is_better: bool = None  # type: ignore[assignment]  # what is None is filled in
    batch_size: int = 100
    epochs: int = 40
    unaugmented: Split | None = None
    collate: Collate | None = None
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None
    step: Callable[[nn.Module, Any], Tensor] | None = None
    drop_last: bool = False
    evaluation_batch_size: int | None = None
    evaluation_gradients: bool = False

    @property
    def plain_train(self) -> Split:
        """The training data without augmentation."""
        return self.train if self.unaugmented is None else self.unaugmented

    @property
    def metrics(self) -> dict[str, Metric]:
        """All metrics by name, the one that decides first; none if that is the loss."""
        if isinstance(self.metric, Mapping):
            return dict(self.metric)
        return {} if self.judged_by_loss else {self.metric_name: self.metric}

    @property
    def judged_by_loss(self) -> bool:
        """Whether the loss is the metric, since there is no other."""
        return self.step is not None and self.metric is accuracy

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return what the model makes of a batch, and the targets.

        Raises:
            TypeError: The batch has a form that needs `forward`, or that returns no pair.
        """
        if self.forward is not None:
            found = self.forward(model, batch)
            if not (isinstance(found, (tuple, list)) and len(found) == 2):
                raise TypeError(f"forward=lambda model, batch: ... must return (outputs, targets), got {_form(found)}")
            return found[0], found[1]
        if isinstance(batch, Mapping) and "labels" in batch:
            given: Any = {name: value for name, value in batch.items() if name != "labels"}
            targets = batch["labels"]
        elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
            *inputs, targets = batch
            given = inputs[0] if len(inputs) == 1 else tuple(inputs)
        else:
            raise TypeError(
                f"a batch is a pair (inputs, targets) or a mapping with 'labels', got {_form(batch)}; for another form "
                "give Task forward=lambda model, batch: (outputs, targets), or step=lambda model, batch: loss"
            )
        if isinstance(given, Mapping):
            outputs = model(**given)
        else:
            outputs = model(*given) if isinstance(given, (tuple, list)) else model(given)
        return outputs["logits"] if isinstance(outputs, Mapping) and "logits" in outputs else outputs, targets

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        return self.step(model, batch) if self.step is not None else self.loss(*self.outputs(model, batch))

    def move_loss(self, device: torch.device | str) -> None:
        """Move what the loss holds, such as weights of classes, to a device."""
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)

    def batch_size_without_gradients(self, split: Split) -> int:
        """Return how many examples of a split a batch has in evaluation."""
        return self.evaluation_batch_size or (_PLAIN_BATCH if has_columns(split) else self.batch_size)

    def __post_init__(self) -> None:
        """Check every field, so that a mistake shows before anything is trained."""
        if isinstance(self.model, nn.Module):
            raise UserError(f"Task: model must be a function that makes a new model, got a model; {MAKE_IT_INSIDE}")
        for name in ("model", "loss"):
            if not callable(getattr(self, name)):
                raise UserError(f"Task: {name} must be a function, got {kind(getattr(self, name))}")
        if inspect.isclass(self.loss):
            raise UserError(f"Task: loss must be a function, got {kind(self.loss)}; write {self.loss.__name__}()")
        for name in ("collate", "forward", "step"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise UserError(f"Task: {name} must be a function, got {kind(getattr(self, name))}")
        fewest = 2 if self.step is None and self.forward is None else 1
        for name in _SPLITS:
            _check_split(name, getattr(self, name), fewest)
        if self.unaugmented is not None:
            _check_split("unaugmented", self.unaugmented, fewest)
        if isinstance(self.train, DataLoader) and self.train.batch_size is not None:
            object.__setattr__(self, "batch_size", self.train.batch_size)
        _check_same_shape(self)
        self._check_metrics()
        for name in ("batch_size", "epochs", "evaluation_batch_size"):
            value = getattr(self, name)
            if name == "evaluation_batch_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"Task: {name} must be a whole number of at least 1, got {value!r}")
        for name in ("drop_last", "evaluation_gradients"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"Task: {name} must be True or False, got {getattr(self, name)!r}")

    def _check_metrics(self) -> None:
        several = self.metric if isinstance(self.metric, Mapping) else {"metric": self.metric}
        if not several:
            raise UserError("Task: metric must be a function, or several by name, got an empty mapping")
        for metric in several.values():
            if not (callable(metric) or is_object(metric)):
                raise UserError(f"Task: metric must be a function, got {kind(metric)}")
            if inspect.isclass(metric):
                made = f"{metric.__name__}()"
                raise UserError(f"Task: metric must be a function or an object, got {kind(metric)}; write {made}")
        if isinstance(self.metric, Mapping) and self.metric_name not in ("", next(iter(self.metric))):
            raise UserError("Task: several metrics have their own names; leave metric_name out")
        first = next(iter(several.values()))
        name = next(iter(several)) if isinstance(self.metric, Mapping) else self.metric_name
        if name == "":
            name = "loss" if self.judged_by_loss else name_of(first)
        for one in [name, *(several if isinstance(self.metric, Mapping) else ())]:
            check_name(one)
        object.__setattr__(self, "metric_name", name)
        if self.higher_is_better is None:
            better = direction_of(first, name)
            if better is None and not self.judged_by_loss:
                raise UserError(f"Task: say whether a larger {name!r} is better: higher_is_better=False, or True")
            object.__setattr__(self, "higher_is_better", bool(better))
        if not isinstance(self.higher_is_better, bool):
            raise UserError(f"Task: higher_is_better must be True or False, got {self.higher_is_better!r}")


def kind(value: object) -> str:
    """Name the type of a value; for functions and classes, their own name."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__name__}"
    return type(value).__name__


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a metric.

    Raises:
        UserError: It is no short, printable text.
    """
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"Task: metric_name must be a text, got {name!r}")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise UserError(
            f"Task: metric_name must have at most {_LONGEST_NAME} characters, all of them printable, got "
            f"{shortened(repr(name), 60)}"
        )


def _check_split(name: str, split: object, fewest: int) -> None:
    if makes_batches(split):
        return  # read when the task is tried
    _check_columns(name, split, fewest)
    if not has_columns(split) and not (hasattr(split, "__getitem__") and hasattr(split, "__len__")):
        if hasattr(split, "__iter__") and not isinstance(split, Tensor):
            raise UserError(f"Task: {name} must be a map-style Dataset with a length, got {kind(split)}")
        raise UserError(f"Task: {name} must be a pair of tensors (x, y) or a torch Dataset, got {kind(split)}")
    try:
        length = size(split)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError) as error:
        raise UserError(f"Task: {name} must be a map-style Dataset with a length, got {kind(split)}") from error
    if length < 2:
        raise UserError(f"Task: {name} needs at least 2 examples, got {length}")


def _check_columns(name: str, split: object, fewest: int) -> None:
    parts: Any = list(split.values()) if isinstance(split, Mapping) else split
    if isinstance(split, Tensor) or type(split).__name__ in ("ndarray", "DataFrame"):
        raise UserError(f"Task: {name} must be a pair of tensors (x, y) or a torch Dataset, got {kind(split)}")
    if not isinstance(parts, (tuple, list)):
        return
    frames = [part for part in parts if type(part).__module__.partition(".")[0] in ("pandas", "polars")]
    if frames and isinstance(split, (tuple, Mapping)):
        raise UserError(
            f"Task: {name} has a {kind(frames[0])}, and batches are of tensors; write "
            "torch.tensor(x.to_numpy(), dtype=torch.float32), torch.tensor(y.to_numpy())"
        )
    arrays = [part for part in parts if type(part).__module__ == "numpy" and type(part).__name__ == "ndarray"]
    if arrays and len(arrays) < _SEVERAL and isinstance(split, (tuple, Mapping)):
        raise UserError(
            f"Task: {name} has numpy arrays (the first of {arrays[0].dtype}), and batches are of tensors; write "
            "torch.tensor(x, dtype=torch.float32), torch.tensor(y)"
        )
    if isinstance(split, list) and not all(isinstance(part, Tensor) for part in parts):
        return  # of examples
    if len(parts) < fewest or not all(isinstance(part, Tensor) for part in parts):
        raise UserError(f"Task: {name} must be a pair of tensors (x, y), got {_parts(parts)}")
    if isinstance(split, list):
        raise UserError(f"Task: {name} must be a tuple (x, y), got a list")
    if any(part.ndim == 0 for part in parts) or len({len(part) for part in parts}) > 1:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        what = "x and y" if isinstance(split, tuple) and len(parts) == 2 else "the tensors"
        raise UserError(f"Task: {what} of {name} must have the same first dimension, got shapes {shapes}")


_SEVERAL = 10  # more than the fields of a batch: a tuple of examples


def _check_same_shape(task: Task) -> None:
    splits = [(name, getattr(task, name)) for name in _SPLITS]
    shapes = {name: tuple(split[0].shape[1:]) for name, split in splits if isinstance(split, tuple) and split}
    if len(set(shapes.values())) > 1:
        raise UserError(f"Task: x must have the same shape in every split after the first dimension, got {shapes}")


def _parts(split: tuple[object, ...] | list[object]) -> str:
    return f"{len(split)} parts: {', '.join(kind(part) for part in split)}"


def _form(batch: object) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(repr, batch))}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
