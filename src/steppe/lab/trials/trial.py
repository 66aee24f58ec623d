"""Run one trial: a function of its configuration and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import date
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..._parts import moved
from ...stepping import train_step
from ..tasks.evaluation import Scores, evaluate
from ..tasks.sharpness import objective
from ..tasks.splits import Split, examples_in
from ..tasks.task import Task
from .devices import Memory, name_of
from .feeds import epochs, total_updates
from .host import Host
from .optimizers import FRACTION, build, parameters_of
from .records import Curve, Diverged, Final, Record, TrialConfig, all_versions
from .schedules import attach
from .surroundings import reproducible

_BATCH_LOSSES = 500
_MEASURED_EXAMPLES = 1024
_MEASURED_BATCH = 128
_RANKS_APART = 1_000_003


def run_trial(
    config: TrialConfig,
    task: Task,
    host: Host | None = None,
    keep: Callable[[dict[str, Any]], object] | None = None,
    each_epoch: Callable[[Curve], object] | None = None,
) -> Record:
    """Train one model with one method from one seed.

    All methods start from the same weights for the same seed; those with the same batch sizes see the same batches in
    the same order. The test split is read once, after the last epoch.

    Args:
        config: What to run.
        task: The task that ``config.task`` names.
        host: Where it runs; batches are moved to its device, the data stays where it is. By default the CPU, in one
            thread.
        keep: Is given the model's final ``state_dict``, on the CPU, unless the trial diverged.
        each_epoch: Is given the curve so far after every epoch; what it raises ends the trial.

    Returns:
        The record; its status is ``diverged`` if a loss was not finite.

    Raises:
        UserError: The hyper-parameters do not fit the method.
    """
    host = (host or Host()).placed()
    inexact: set[str] = set()
    with reproducible(config.seed, host.threads, str(host.device), inexact):
        training = Training(config, task, host)
        while training.step < training.total and training.diverged is None:
            training.run_epoch()
            if each_epoch is not None and training.diverged is None:
                each_epoch(training.curve)
        final = training.finish() if training.diverged is None else None
        if final is not None and keep is not None:
            keep(training.model.cpu().state_dict())
        return Record(
            key=config.key,
            config=config,
            status="finished" if training.diverged is None else "diverged",
            diverged=training.diverged,
            curve=training.curve,
            final=final,
            gradient_evaluations=training.evaluations,
            examples=training.examples,
            updates=training.step,
            seconds=training.seconds,
            versions=all_versions(),
            hardware=name_of(str(host.device)),
            parameters=sum(parameter.numel() for parameter in training.model.parameters()),
            peak_memory=training.memory.most,
            date=date.today().isoformat(),
            not_deterministic=sorted(inexact),
        )


class Training:
    """The state of a trial between epochs."""

    def __init__(self, config: TrialConfig, task: Task, host: Host) -> None:
        self.config, self.task, self.host = config, task, host
        self.memory = Memory(str(host.device))  # before there is a model
        self.model = task.model().to(host.device)
        task.move_loss(host.device)
        self.wrapped = host.wrap(self.model)
        if host.rank:  # the same weights, but its own augmentation and dropout for its share of each batch
            torch.manual_seed(config.seed + _RANKS_APART * host.rank)
        parameters = parameters_of(self.model, config.hyperparameters)
        self.optimizer: Optimizer = build(config.method, config.base or "", parameters, config.hyperparameters)
        self.fraction: Any = config.hyperparameters.get(FRACTION)
        sizes = config.schedules.batch_size
        self.total = total_updates(sizes, config.updates, config.epochs, config.batch_size, task, host.processes)
        self.schedules = attach(config.schedules, self.optimizer, self.total)
        self.epochs = epochs(task, config.batch_size, sizes, config.seed, host.processes, host.rank)
        self.micro = sizes.micro if sizes is not None else None
        self.curve = Curve(batch_loss_updates=-(-self.total // _BATCH_LOSSES))
        self.losses: list[float] = []  # that are not in the curve yet
        self.epoch = self.step = self.evaluations = self.examples = 0
        self.seconds = 0.0
        self.diverged: Diverged | None = None

    def run_epoch(self) -> None:
        """Train for one epoch, or what the budget leaves of it, then look at the validation split."""
        self.epoch += 1
        self.model.train()
        start = time.perf_counter()
        with self.memory.watched():
            train_loss = self.train()
        self.seconds += time.perf_counter() - start
        if self.diverged is not None:
            return
        found = self._evaluate(self.task.validation)
        if not (math.isfinite(found.loss) and math.isfinite(found.metric)):
            self._mark_diverged()
            return
        self.curve.train_loss.append(train_loss)
        self.curve.validation_loss.append(found.loss)
        self.curve.validation_metric.append(found.metric)
        self.curve.gradient_evaluations.append(self.evaluations)
        self.curve.examples.append(self.examples)
        self.curve.seconds.append(self.seconds)

    def finish(self) -> Final | None:
        """Evaluate on all splits; None if a number is not finite."""
        train, validation = self._evaluate(self.task.plain_train), self._evaluate(self.task.validation)
        test = self._evaluate(self.task.test, outcomes=True) if self.config.test else None
        found = [scores for scores in (train, validation, test) if scores is not None]
        if not all(math.isfinite(number) for scores in found for number in (scores.loss, scores.metric)):
            self._mark_diverged()
            return None
        return Final(
            train_loss=train.loss,
            train_metric=train.metric,
            validation_loss=validation.loss,
            validation_metric=validation.metric,
            validation_more=_finite(validation.more),
            test_loss=None if test is None else test.loss,
            test_metric=None if test is None else test.metric,
            test_more=None if test is None else _finite(test.more),
            sharpness=self._measure() if self.config.measure else None,
            train_examples=train.examples,
            validation_examples=validation.examples,
            test_examples=None if test is None else test.examples,
            test_parts=None if test is None or test.outcomes is None else test.outcomes.parts,
            test_step=None if test is None or test.outcomes is None else test.outcomes.step,
        )

    def train(self) -> float:
        """Train for one epoch, or what the budget leaves of it, and return the mean loss."""
        total, examples = 0.0, 0
        for batch in next(self.epochs):
            self.step += 1
            n = examples_in(batch)
            loss = self.update(moved(batch, self.host.device), n)
            if not math.isfinite(loss):
                self._mark_diverged()
                break
            self._note(loss)
            for schedule in self.schedules:
                schedule.step()
            total, examples = total + loss * n, examples + n
            if self.step == self.total:
                break
        return total / max(examples, 1)

    def update(self, batch: Any, n: int) -> float:
        """Take one step on a batch of so many examples, on the device, and return its loss."""
        parts = 1 if self.micro is None else math.ceil(n / self.micro)  # of a pass over the whole batch
        forwards = 0

        def loss_of(part: Any) -> Tensor:
            nonlocal forwards
            forwards += 1
            self.examples += (n if part is batch else examples_in(part)) * self.host.processes
            with self.host.forward():
                return self.task.loss_of(self.wrapped, part)

        loss = train_step(
            self.optimizer,
            batch,
            loss_of,
            model=self.wrapped,
            fraction=self.fraction,
            micro=self.micro,
            backward=self.host.backward,
        )
        self.evaluations += math.ceil(forwards / parts)  # at most one pass sees less
        return self.host.mean(loss)

    def _note(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.curve.batch_loss_updates or self.step == self.total:
            self.curve.batch_loss.append(float(f"{fmean(self.losses):.6g}"))
            self.losses.clear()

    def _mark_diverged(self) -> None:
        self.diverged = Diverged(epoch=self.epoch, step=self.step)

    def _evaluate(self, split: Split, *, outcomes: bool = False) -> Scores:
        return evaluate(self.model, self.task, split, self.host.device, self.host.forward, outcomes=outcomes)

    def _measure(self) -> dict[str, float | None]:
        from ...measure.quick import quick

        data = objective(self.task, self.task.plain_train, _MEASURED_EXAMPLES, _MEASURED_BATCH, self.host.device)
        return _finite(quick(self.model.eval(), **data))


def _finite(found: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}
