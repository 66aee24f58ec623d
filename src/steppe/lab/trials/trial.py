"""Run one trial: a function of its configuration and nothing else."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...batches import fraction_of, microbatches
from ...passes import frozen_buffers, frozen_norm_stats
from ..tasks.task import Split, Task, batches, size
from .feeds import epochs, shared_sizes, total_updates
from .host import Host
from .optimizers import FRACTION, build, parameters_of
from .records import Curve, Diverged, Final, Record, TrialConfig, all_versions
from .schedules import attach

_BATCH_LOSSES = 500
_EVALUATION_BATCH = 1000
_MEASURED_EXAMPLES = 1024
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
    with reproducible(config.seed, threads=1 if host is None else None):
        training = Training(config, task, host or Host())
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
        )


class Training:
    """The state of a trial between epochs."""

    def __init__(self, config: TrialConfig, task: Task, host: Host) -> None:
        self.config, self.task, self.host = config, task, host
        self.model = task.model().to(host.device)
        self.wrapped = host.wrap(self.model)
        if host.rank:  # the same weights, but its own augmentation and dropout for its share of each batch
            torch.manual_seed(config.seed + _RANKS_APART * host.rank)
        parameters = parameters_of(self.model, config.hyperparameters)
        self.optimizer: Optimizer = build(config.method, config.base or "", parameters, config.hyperparameters)
        self.fraction: Any = config.hyperparameters.get(FRACTION)
        sizes = shared_sizes(config.schedules.batch_size, config.batch_size, host.processes)
        self.total = total_updates(
            sizes, config.updates, config.epochs, config.batch_size, size(task.train), host.processes
        )
        self.schedules = attach(config.schedules, self.optimizer, self.total)
        self.epochs = epochs(task.train, config.batch_size, sizes, config.seed, host.processes, host.rank)
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
        train_loss = self.train()
        self.seconds += time.perf_counter() - start
        if self.diverged is not None:
            return
        loss, metric = self._evaluate(self.task.validation)
        if not (math.isfinite(loss) and math.isfinite(metric)):
            self._mark_diverged()
            return
        self.curve.train_loss.append(train_loss)
        self.curve.validation_loss.append(loss)
        self.curve.validation_metric.append(metric)
        self.curve.gradient_evaluations.append(self.evaluations)
        self.curve.examples.append(self.examples)
        self.curve.seconds.append(self.seconds)

    def finish(self) -> Final | None:
        """Evaluate on all splits; None if a number is not finite."""
        train, validation = self._evaluate(self.task.plain_train), self._evaluate(self.task.validation)
        test = self._evaluate(self.task.test) if self.config.test else (None, None)
        if not all(number is None or math.isfinite(number) for number in (*train, *validation, *test)):
            self._mark_diverged()
            return None
        return Final(
            train_loss=train[0],
            train_metric=train[1],
            validation_loss=validation[0],
            validation_metric=validation[1],
            test_loss=test[0],
            test_metric=test[1],
            sharpness=self._measure() if self.config.measure else None,
        )

    def train(self) -> float:
        """Train for one epoch, or what the budget leaves of it, and return the mean loss."""
        total, examples = 0.0, 0
        for x, y in _on(self.host.device, next(self.epochs)):
            self.step += 1
            loss = self._update(x, y)
            if not math.isfinite(loss):
                self._mark_diverged()
                break
            self._note(loss)
            for schedule in self.schedules:
                schedule.step()
            total, examples = total + loss * len(x), examples + len(x)
            if self.step == self.total:
                break
        return total / max(examples, 1)

    @contextmanager
    def _without_traces(self) -> Iterator[None]:
        with frozen_norm_stats(self.model), frozen_buffers(self.model, norm_stats=False):
            yield

    def _update(self, x: Tensor, y: Tensor) -> float:
        passes = count()

        def closure() -> Tensor:
            # Buffers are those at w; where the pass at w sees a part, those of the whole batch.
            again = next(passes) > 0 and self.fraction is None
            with self._without_traces() if again else nullcontext():
                return one_pass((x, y))

        def ascent() -> Tensor:
            with self._without_traces():
                return one_pass(fraction_of((x, y), self.fraction))

        def one_pass(batch: tuple[Tensor, Tensor]) -> Tensor:
            self.evaluations += 1
            self.examples += len(batch[0]) * self.host.processes
            self.optimizer.zero_grad()
            parts = list(microbatches(batch, self.micro or len(x)))
            losses = []
            for k, ((inputs, targets), weight) in enumerate(parts):
                more = k < len(parts) - 1
                with self.host.unsynced(self.wrapped) if more else nullcontext():
                    loss = weight * self.task.loss(self.wrapped(inputs), targets)
                    self.host.backward(loss)
                losses.append(loss.detach())
            return torch.stack(losses).sum()

        options: dict[str, Any] = {}
        if self.fraction is not None:
            options["ascent"] = ascent
        clean_loss: Tensor = self.optimizer.step(closure, **options)  # type: ignore[arg-type, assignment]
        return self.host.mean(clean_loss.detach())

    def _note(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.curve.batch_loss_updates or self.step == self.total:
            self.curve.batch_loss.append(float(f"{fmean(self.losses):.6g}"))
            self.losses.clear()

    def _mark_diverged(self) -> None:
        self.diverged = Diverged(epoch=self.epoch, step=self.step)

    def _evaluate(self, split: Split) -> tuple[float, float]:
        return evaluate(self.model, self.task, split, self.host.device)

    def _measure(self) -> dict[str, float | None]:
        from ...measure.quick import quick

        train = next(_on(self.host.device, batches(self.task.plain_train, _MEASURED_EXAMPLES)))
        found = {name: float(value) for name, value in quick(self.model.eval(), self.task.loss, train).items()}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _on(device: torch.device | str, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in pairs:
        yield x.to(device), y.to(device)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, split: Split, device: torch.device | str = "cpu") -> tuple[float, float]:
    """Return loss and metric over a whole split, read once, with the model in evaluation mode.

    Args:
        model: The model.
        task: Gives loss and metric.
        split: The data.
        device: Where the model is.

    Returns:
        Loss and metric.
    """
    model.eval()
    read = [(model(x), y) for x, y in _on(device, batches(split, _EVALUATION_BATCH))]
    outputs, targets = torch.cat([part for part, _ in read]), torch.cat([part for _, part in read])
    return float(task.loss(outputs, targets)), float(task.metric(outputs, targets))


@contextmanager
def reproducible(seed: int, threads: int | None = 1) -> Iterator[None]:
    """Seed every random generator, compute deterministically, and undo all of it at the end.

    Args:
        seed: At least 0.
        threads: Of torch on the CPU; None leaves them as they are.
    """
    threads_before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(threads or threads_before)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            torch.set_num_threads(threads_before)
            torch.use_deterministic_algorithms(deterministic)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
