"""Run one trial: a function of its configuration and nothing else."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from .optimizers import build
from .records import Curve, Diverged, Final, Record, TrialConfig, all_versions
from .tasks import Split, Task, batches, size

_EVALUATION_BATCH = 1000


def run_trial(config: TrialConfig, task: Task) -> Record:
    """Train one model with one method from one seed.

    All methods start from the same weights and see the same batches in the same order for the same seed. The learning
    rate falls to zero along a cosine over all steps. The test split is read once, after the last epoch.

    Args:
        config: What to run.
        task: The task that ``config.task`` names.

    Returns:
        The record; its status is ``diverged`` if a loss was not finite.

    Raises:
        UserError: The hyper-parameters do not fit the method.
    """
    with reproducible(config.seed):
        training = _Training(config, task)
        while training.epoch < config.epochs and training.diverged is None:
            training.run_epoch()
        final = training.finish() if training.diverged is None else None
        return Record(
            key=config.key,
            config=config,
            status="finished" if training.diverged is None else "diverged",
            diverged=training.diverged,
            curve=training.curve,
            final=final,
            gradient_evaluations=training.evaluations,
            seconds=training.seconds,
            versions=all_versions(),
        )


class _Training:
    """The state of a trial between epochs."""

    def __init__(self, config: TrialConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.model = task.model()
        self.optimizer: Optimizer = build(
            config.method, config.base or "", self.model.parameters(), config.hyperparameters
        )
        steps = config.epochs * math.ceil(size(task.train) / config.batch_size)
        self.schedule = CosineAnnealingLR(self.optimizer, T_max=steps)
        self.order = torch.Generator().manual_seed(config.seed)
        self.curve = Curve()
        self.epoch = self.step = self.evaluations = 0
        self.seconds = 0.0
        self.diverged: Diverged | None = None

    def run_epoch(self) -> None:
        """Train for one epoch, then look at the validation split."""
        self.epoch += 1
        self.model.train()
        start = time.perf_counter()
        train_loss = self._train()
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
        self.curve.seconds.append(self.seconds)

    def finish(self) -> Final | None:
        """Evaluate on all splits; None if a number is not finite."""
        train, validation = self._evaluate(self.task.train), self._evaluate(self.task.validation)
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
        )

    def _train(self) -> float:
        total, count = 0.0, 0
        for x, y in batches(self.task.train, self.config.batch_size, self.order):
            self.step += 1
            loss = self._update(x, y)
            if not math.isfinite(loss):
                self._mark_diverged()
                break
            self.schedule.step()
            total, count = total + loss * len(x), count + len(x)
        return total / max(count, 1)

    def _update(self, x: Tensor, y: Tensor) -> float:
        def closure() -> Tensor:
            self.evaluations += 1
            self.optimizer.zero_grad()
            loss = self.task.loss(self.model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        clean_loss: Tensor = self.optimizer.step(closure)  # type: ignore[arg-type, assignment]
        return float(clean_loss.detach())

    def _mark_diverged(self) -> None:
        self.diverged = Diverged(epoch=self.epoch, step=self.step)

    def _evaluate(self, split: Split) -> tuple[float, float]:
        return evaluate(self.model, self.task, split)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, split: Split) -> tuple[float, float]:
    """Return loss and metric over a whole split, read once, with the model in evaluation mode.

    Args:
        model: The model.
        task: Gives loss and metric.
        split: The data.

    Returns:
        Loss and metric.
    """
    model.eval()
    read = [(model(x), y) for x, y in batches(split, _EVALUATION_BATCH)]
    outputs, targets = torch.cat([part for part, _ in read]), torch.cat([part for _, part in read])
    return float(task.loss(outputs, targets)), float(task.metric(outputs, targets))


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed every random generator, compute deterministically in one thread, and undo all of it at the end.

    Args:
        seed: At least 0.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
