"""What a trial is and what it found: configuration and record."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from .fields import Model
from .schedules import DEFAULTS, Schedules

SCHEMA = 2

Value = float | bool | tuple[float, ...]

_LATER = ("method_digest", "base_digest", "device", "precision", "own_split")


class TrialConfig(Model):
    """Everything that changes the numbers of a trial, and nothing else.

    Attributes:
        task: The task's name.
        task_digest: For a user's task, the hash of its file, and of those of its folder that it imports.
        method: The method's name.
        method_digest: For a user's method, likewise, or the version of the package that it is from.
        arm: What the row of the table is called, unless that is the method's name.
        base: The base optimizer's name if the method wraps one.
        base_digest: For a user's base, likewise.
        hyperparameters: Of method and base together.
        seed: Determines initial weights and batch order.
        own_split: True if the task takes the seed, so that data and splits are others for each seed; else None.
        epochs: At least 1: what was asked for. It has no effect if there is a budget of updates.
        batch_size: At least 1: that of the task. It has no effect if there is a schedule of batch sizes.
        schedules: Of learning rate, batch size and radius.
        updates: The budget: parameter updates in all, however many epochs they take; None goes by epochs.
        test: Whether the test split is read at the end.
        measure: Whether sharpness is measured at the end.
        device: The kind of accelerator; None is the CPU.
        precision: Of forward passes; None is that of the weights.
        versions: Of the libraries that compute the numbers.
    """

    task: str
    task_digest: str | None = None
    method: str
    method_digest: str | None = None
    arm: str | None = None
    base: str | None = None
    base_digest: str | None = None
    hyperparameters: dict[str, Value]
    seed: int
    own_split: bool | None = None
    epochs: int
    batch_size: int
    schedules: Schedules = DEFAULTS
    updates: int | None = None
    test: bool = True
    measure: bool = False
    device: str | None = None
    precision: str | None = None
    versions: dict[str, str]

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out fields that had not always been there, unless they say something: keys stay the same."""
        content: dict[str, Any] = serialize(self)
        return {name: value for name, value in content.items() if value is not None or name not in _LATER}

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of this configuration."""
        content = {"schema": SCHEMA, **self.model_dump(mode="json")}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_by(self, name: str, digest: str | None) -> bool:
        """Return whether the user's code of this name and digest is the method or the base."""
        return (name, digest) in ((self.method, self.method_digest), (self.base, self.base_digest))

    @property
    def flat(self) -> dict[str, bool | int | float | str]:
        """All that is set, each under a name of its own, such as ``rho`` and ``schedules.lr.kind``."""
        kept = {"arm", "hyperparameters", "schedules"}
        content = {**self.model_dump(mode="json", exclude=kept), "schedules": self.schedules.changes}
        named = {"row": self.row, **_flat(content)}
        return {**named, **{name: value for name, value in _flat(self.hyperparameters).items() if name not in named}}

    @property
    def row(self) -> str:
        """The row of the table that the trial belongs to."""
        return self.arm or self.method

    @property
    def label(self) -> str:
        """How a trial is called in messages."""
        return f"{self.row}, seed {self.seed}"


class Curve(Model):
    """One number per epoch in every list but one; the last epoch may be cut short by a budget of updates.

    Attributes:
        train_loss: The mean over the epoch's batches, each at the weights before its update.
        validation_loss: Over the whole split, as all that follows is taken at the end of the epoch.
        validation_metric: Over the whole split.
        gradient_evaluations: So far.
        examples: So far, of which a gradient was computed.
        seconds: So far, spent in training steps.
        batch_loss: The mean training loss of every `batch_loss_updates` updates, at most 500 numbers; where updates are
            left over at the end, the last is of fewer.
        batch_loss_updates: At least 1.
    """

    train_loss: list[float] = []
    validation_loss: list[float] = []
    validation_metric: list[float] = []
    gradient_evaluations: list[int] = []
    examples: list[int] = []
    seconds: list[float] = []
    batch_loss: list[float] = []
    batch_loss_updates: int = 1


class Final(Model):
    """Loss and metrics over whole splits after the last epoch, all metrics but the first by name, and sharpness.

    What is not asked for is None, as what is not finite, and what is not known of a loop of the user's own.

    Attributes:
        train_examples: How many there are, without augmentation; likewise of the other splits.
        test_parts: What groups of test examples say of `test_metric`: pseudo-values of the jackknife, to seven digits.
            Example i, in the order of evaluation, belongs to group i % G, the same one in all trials on the same split;
            there are G = 100 groups, of metrics that take long 20, but no more than examples. Of a metric that is a
            mean over examples they are the means of the groups. Where only the losses of batches are known, batches
            take the place of examples.
        test_step: What one test example can change `test_metric` by.
    """

    train_loss: float | None = None
    train_metric: float | None = None
    validation_loss: float | None = None
    validation_metric: float | None = None
    test_loss: float | None = None
    test_metric: float | None = None
    validation_more: dict[str, float | None] = {}
    test_more: dict[str, float | None] | None = None
    sharpness: dict[str, float | None] | None = None
    train_examples: int | None = None
    validation_examples: int | None = None
    test_examples: int | None = None
    test_parts: list[float] | None = None
    test_step: float | None = None

    @property
    def flat(self) -> dict[str, float | None]:
        """All losses, metrics and measures, each under a name of its own: further metrics as ``test NAME``."""
        more = {"validation": self.validation_more, "test": self.test_more or {}}
        return {
            **self.model_dump(include=_NUMBERS),
            **{f"{split} {name}": value for split, found in more.items() for name, value in found.items()},
            **(self.sharpness or {}),
        }


_NUMBERS = {f"{split}_{name}" for split in ("train", "validation", "test") for name in ("loss", "metric")}


class Diverged(Model):
    """Where the loss stopped being finite; both counts begin at 1."""

    epoch: int
    step: int


class Record(Model):
    """The result of one trial.

    Attributes:
        schema_version: Of this format.
        key: The key of `config`.
        config: What was run.
        status: Whether the trial came to its end.
        diverged: Where the loss stopped being finite, if it did.
        curve: What was measured after every epoch.
        final: What was measured at the end, unless the trial diverged.
        gradient_evaluations: How often the closure was called in all.
        examples: Of how many examples a gradient was computed in all, every pass counted.
        updates: Parameter updates in all.
        seconds: Spent in training steps, evaluation excluded.
        versions: Of torch, steppe and Python.
        hardware: What the accelerator is called, or without one the processor.
        parameters: How many numbers the model's parameters are, frozen ones included; in a loop of the user's own
            those that its optimizers were given.
        peak_memory: The most bytes that tensors took on an accelerator in training, where that counts them; of several
            processes in the first, and of a loop of the user's own in all that it does.
        date: The day on which the trial ended, such as ``2026-01-31``.
        metric_name: As a loop of the user's own calls it, which reports as often as it likes; None for a task.
        not_deterministic: Operations that it has computed in no fixed order, so that the numbers may differ next time.
    """

    schema_version: Literal[2] = 2
    key: str
    config: TrialConfig
    status: Literal["finished", "diverged"]
    diverged: Diverged | None = None
    curve: Curve
    final: Final | None = None
    gradient_evaluations: int
    examples: int
    updates: int
    seconds: float
    versions: dict[str, str]
    hardware: str | None = None
    parameters: int | None = None
    peak_memory: int | None = None
    date: str | None = None
    not_deterministic: list[str] = []
    metric_name: str | None = None

    @property
    def problem(self) -> str | None:
        """What contradicts itself in this record, if something does."""
        finished = self.status == "finished"
        if (self.final is not None) != finished or (self.diverged is None) != finished:
            return f"a trial that has {self.status} has {'final numbers' if finished else 'a place of that'}"
        lengths = {name: len(getattr(self.curve, name)) for name in _BY_EPOCH}
        epochs = lengths["seconds"]
        whole = epochs > 0 if self.config.updates is not None else epochs == self.config.epochs
        if self.metric_name is not None:
            lengths = {name: length for name, length in lengths.items() if length or not name.endswith("_loss")}
            whole = True
        elif finished and self.final is not None and None in (self.final.train_loss, self.final.validation_metric):
            return "it lacks final numbers"
        if len(set(lengths.values())) > 1 or (finished and not whole):
            return f"the lists of its curve must have a number for each epoch, got {lengths}"
        counts = (self.gradient_evaluations, self.examples, self.updates, self.peak_memory or 0)
        numbers = (self.seconds, *counts, *self.curve.seconds)
        if min(numbers) < 0:
            return f"counts and seconds must not be negative, got {min(numbers)}"
        if finished and self.config.test and self.final is not None and self.final.test_metric is None:
            return "it has read the test data, but has no test_metric"
        return None


_BY_EPOCH = ("train_loss", "validation_loss", "validation_metric", "gradient_evaluations", "examples", "seconds")


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    found: dict[str, bool | int | float | str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value if isinstance(value, (bool, int, float, str)) else ", ".join(map(str, value))
    return found


def library_versions() -> dict[str, str]:
    """Return the versions of torch and steppe, as part of a configuration."""
    import torch

    from ... import __version__

    return {"torch": str(torch.__version__), "steppe": __version__}


def all_versions() -> dict[str, str]:
    """Return the versions of torch, steppe and Python, for the record."""
    return {**library_versions(), "python": platform.python_version()}
