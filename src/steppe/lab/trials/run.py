"""One training in a loop of the user's own: what the loop is given, and how its costs are counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...optimizer import SharpnessAware
from ...stepping import train_step
from ..errors import UserError
from ..tasks.loop import Loop
from ..tasks.splits import examples_in
from .host import Host
from .optimizers import FRACTION, build, parameters_of
from .records import Curve, TrialConfig
from .schedules import Steps, attach


class Diverging(Exception):
    """What a loop has reported is not finite."""


class Run:
    """What a training loop of the user's own is given: the trial's seed, its optimizer, and where to report.

    Gradients are counted where backward passes reach the parameters, updates where the base steps, and time from the
    first optimizer to the end, without what is `paused`; so that the columns of cost are true whoever runs the passes.

    Attributes:
        seed: Random generators are seeded with it already.
        epochs: As the command line or the loop says; None if neither does.
        device: Where to train.
        precision: ``fp32`` or ``bf16``; see `autocast`.
        method: The method's name.
        base: The base's name.
        hyperparameters: Of both together.
        fraction: Of the batch that clean passes see, or None.
        test: Whether the test data may be read.
        ended_by: What `report` has raised, or None: whoever has caught that, the trial is at its end.
    """

    def __init__(
        self, config: TrialConfig, host: Host, loop: Loop, each_epoch: Callable[[Curve], object] | None = None
    ) -> None:
        """See the class."""
        self.seed = config.seed
        self.epochs = config.epochs or None
        self.device = torch.device(host.device)
        self.precision = host.precision
        self.method, self.base = config.method, config.base or config.method
        self.hyperparameters: Mapping[str, Any] = dict(config.hyperparameters)
        self.fraction: Any = config.hyperparameters.get(FRACTION)
        self.test = config.test
        self.curve = Curve()
        self.models: list[nn.Module] = []
        self.ended_by: Exception | None = None
        self.metric_name = loop.metric_name
        self._config, self._host, self._each_epoch = config, host, each_epoch
        self._counts: list[list[int]] = []  # of backward passes, for two parameters of each optimizer
        self._sizes: dict[int, int] = {}  # of every parameter that an optimizer was given
        self._examples = self._updates = 0
        self._begun: float | None = None
        self._apart = 0.0

    def optimizer(
        self, model: nn.Module | Iterable[nn.Parameter] | Iterable[dict[str, Any]], updates: int | None = None
    ) -> Optimizer:
        """Return the optimizer of this trial: the method around its base, with the trial's hyper-parameters.

        Args:
            model: The model, or what optimizers of torch are given in its place.
            updates: How many there will be, if learning rate and radius are to follow the trial's schedules, by default
                a cosine to zero; without, they stay as they are, and a scheduler of yours may change them.

        Raises:
            UserError: Nothing would train, the method needs a model to choose parameters from, or refuses a
                hyper-parameter.
        """
        if isinstance(model, nn.Module):
            self.models.append(model)
            given: Any = parameters_of(model, self.hyperparameters)
        else:
            given = list(model)
        made = build(self._config.method, self._config.base or "", given, self.hyperparameters)
        base: Any = made.base if isinstance(made, SharpnessAware) else made
        # To the base, whose groups are the same: hosts may step it without the method.
        schedules: list[Steps] = attach(self._config.schedules, base, updates) if updates is not None else []
        self._watch(base, schedules)
        self._begun = self._begun or time.perf_counter()
        return made

    def step(self, opt: Optimizer, batch: Any, loss_of: Callable[[Any], Tensor], **more: Any) -> Tensor:
        """Take a step on a batch, by `steppe.train_step`: with the trial's fraction and precision.

        Args:
            opt: From `optimizer`.
            batch: On the device.
            loss_of: ``loss_of(batch)`` -> mean loss; called once for every pass.
            **more: As for `steppe.train_step`; ``model`` is what `optimizer` was given, if that is one.

        Returns:
            The loss before the step.
        """
        options: dict[str, Any] = {"model": self.models[0] if len(self.models) == 1 else None, **more}
        if self.fraction is not None:
            options.setdefault("fraction", self.fraction)

        def counted(part: Any) -> Tensor:
            self._examples += examples_in(part)
            with self.autocast():
                return loss_of(part)

        return train_step(opt, batch, counted, **options)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return what forward passes run in, for the trial's precision; `step` does so itself."""
        return self._host.forward()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this, time is not counted as training: for evaluation."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - begun

    def report(
        self,
        epoch: int | None = None,
        *,
        loss: float | None = None,
        validation_loss: float | None = None,
        **metrics: Any,
    ) -> None:
        """Tell how far this is: the curves of the report, and what pruning and choosing of settings go by.

        Args:
            epoch: Its number, for the reader; every call adds a point to the curves.
            loss: On training data.
            validation_loss: On validation data.
            **metrics: On validation data by name, among them the one that decides, in every call or in none.

        Raises:
            UserError: The metric that decides is missing.
        """
        if self.ended_by is not None:
            raise self.ended_by
        try:
            with self.paused():
                self._report({"loss": loss, "validation_loss": validation_loss}, metrics)
        except Exception as error:
            self.ended_by = error
            raise

    def _report(self, losses: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        numbers = {name: _number(value) for name, value in {**losses, **metrics}.items() if value is not None}
        if not all(map(math.isfinite, numbers.values())):
            raise Diverging
        if metrics and not self.metric_name:
            self.metric_name = next(iter(metrics))
        if self.metric_name not in numbers:
            raise UserError(
                f"run.report must be told {self.metric_name or 'a metric'!r}, on validation data, got "
                f"{', '.join(numbers) or 'nothing'}"
            )
        curve = self.curve
        curve.validation_metric.append(numbers[self.metric_name])
        for name, values in (("loss", curve.train_loss), ("validation_loss", curve.validation_loss)):
            if name in numbers:
                values.append(numbers[name])
            if len(values) not in (0, len(curve.validation_metric)):
                raise UserError(f"run.report must be told {name!r} in every call or in none")
        curve.gradient_evaluations.append(self.gradient_evaluations)
        curve.examples.append(self._examples)
        curve.seconds.append(self.seconds)
        if self._each_epoch is not None:
            self._each_epoch(curve)

    @property
    def gradient_evaluations(self) -> int:
        """How many backward passes there were."""
        return sum(map(max, self._counts))

    @property
    def examples(self) -> int:
        """How many examples `step` has seen in all passes."""
        return self._examples

    @property
    def updates(self) -> int:
        """How many updates the bases have made."""
        return self._updates

    @property
    def parameters(self) -> int:
        """How many numbers the optimizers were given, those that are frozen included."""
        return sum(self._sizes.values())

    @property
    def seconds(self) -> float:
        """Since the first optimizer was made, less what was paused."""
        return 0.0 if self._begun is None else max(0.0, time.perf_counter() - self._begun - self._apart)

    def _watch(self, base: Any, schedules: list[Steps]) -> None:
        def stepped(*_: object) -> None:
            self._updates += 1
            for schedule in schedules:
                schedule.step()

        base.register_step_post_hook(stepped)
        given = [p for group in base.param_groups for p in group["params"]]
        self._sizes |= {id(p): p.numel() for p in given}
        trained = [p for p in given if p.requires_grad]
        if not trained:
            raise UserError(
                "run.optimizer was given no parameter that requires a gradient, so that nothing would train"
            )
        counts = [0, 0]
        self._counts.append(counts)
        # One of them gets a gradient in every pass: which one depends on what is used.
        for index, parameter in enumerate({id(p): p for p in (trained[0], trained[-1])}.values()):

            def passed(_: Tensor, index: int = index) -> None:
                counts[index] += 1

            parameter.register_post_accumulate_grad_hook(passed)


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)
