"""How learning rate, radius and batch size change during a trial."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeAlias, get_args

from pydantic import BeforeValidator, Field, StrictBool

from ..errors import UserError
from .fields import Count, Fraction, Model, Number

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from ...batches import BatchSize, ScheduledBatchSampler


class _Factor(Model):
    """A factor on the value that a trial starts with: a rise from 0 if there is a warm-up, then a fall from 1.

    Attributes:
        warmup: Updates of the rise, at least 0.
    """

    fall: ClassVar[str]
    kind: str
    warmup: Annotated[int, Field(ge=0, strict=True)] = 0

    @property
    def floor(self) -> float:
        """The smallest factor after the warm-up."""
        return 0.0

    @property
    def words(self) -> str:
        """What it does, for the report."""
        rise = f"rises from zero over {self.warmup} updates, then " if self.warmup else ""
        end = f"{self.floor:g} of its start" if self.floor else "zero"
        return rise + self.fall.format(end=end, **self.model_dump())

    def at(self, update: int, total: int) -> float:
        """Return the factor at an update.

        Args:
            update: From 0.
            total: Updates of the whole trial.
        """
        if update < self.warmup:
            return update / self.warmup
        since, span = update - self.warmup, max(1, total - self.warmup)
        return self.floor + (1 - self.floor) * self._left(since, min(since / span, 1.0))

    @abstractmethod
    def _left(self, update: int, done: float) -> float:
        """Return what is left of the way from 1 to the floor."""


class Constant(_Factor):
    """Always 1."""

    fall = "stays constant"
    kind: Literal["constant"] = "constant"

    @property
    def floor(self) -> float:
        """The smallest factor after the warm-up."""
        return 1.0

    def _left(self, update: int, done: float) -> float:
        return 0.0


class Diminishing(_Factor):
    """``1 / sqrt(t + 1)`` at update ``t``."""

    fall = "falls as one over the root of the count of updates"
    kind: Literal["diminishing"] = "diminishing"

    def _left(self, update: int, done: float) -> float:
        return 1 / math.sqrt(update + 1)


class _Falling(_Factor):
    """A fall to ``final`` at the end of the trial.

    Attributes:
        final: From 0 to 1.
    """

    final: Fraction = 0.0

    @property
    def floor(self) -> float:
        """The smallest factor after the warm-up."""
        return self.final


class Cosine(_Falling):
    """Half a cosine."""

    fall = "falls to {end} along a cosine over all updates"
    kind: Literal["cosine"] = "cosine"

    def _left(self, update: int, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


class Linear(_Falling):
    """A straight line."""

    fall = "falls to {end} along a line over all updates"
    kind: Literal["linear"] = "linear"

    def _left(self, update: int, done: float) -> float:
        return 1 - done


class Polynomial(_Falling):
    """``(1 - t / total)^power``.

    Attributes:
        power: Above 0.
    """

    fall = "falls to {end} along a polynomial of power {power:g} over all updates"
    kind: Literal["polynomial"] = "polynomial"
    power: Annotated[Number, Field(gt=0)] = 2.0

    def _left(self, update: int, done: float) -> float:
        return math.pow(1 - done, self.power)


class Proportional(Model):
    """A radius that follows the learning rate: the method's own at the largest, ``min`` at the smallest.

    Attributes:
        min: At least 0.
    """

    kind: Literal["proportional"] = "proportional"
    min: Annotated[Number, Field(ge=0)] = 0.0

    @property
    def words(self) -> str:
        """What it does, for the report."""
        return f"follows the learning rate, at its smallest {self.min:g}"


class _Sizes(Model):
    """Batch sizes.

    Attributes:
        cap: No batch is larger.
        per: What the size is a function of: epochs so far, or updates so far.
        micro: Batches are worked through in parts of at most this many examples, which adds up to the same gradient.
        drop_last: Whether the last batch of an epoch is left out if it is smaller than scheduled.
    """

    sizes: ClassVar[str]
    kind: str
    cap: Count | None = None
    per: Literal["epoch", "update"] = "epoch"
    micro: Count | None = None
    drop_last: StrictBool = False

    @property
    def words(self) -> str:
        """What they are, for the report."""
        most = f", at most {self.cap}" if self.cap else ""
        parts = f", in parts of at most {self.micro}" if self.micro else ""
        last = ", last batches that are smaller left out" if self.drop_last else ""
        return self.sizes.format(**self.model_dump()) + most + parts + last

    def sampler(self, examples: int, seed: int = 0, processes: int = 1, rank: int = 0) -> ScheduledBatchSampler:
        """Make what draws the batches.

        Args:
            examples: In the training split.
            seed: Of the order.
            processes: How many share every batch.
            rank: Of this process.

        Raises:
            ValueError: The first epoch has no batch.
        """
        from ...batches import ScheduledBatchSampler, capped

        schedule = self._schedule() if self.cap is None else capped(self._schedule(), self.cap)
        drop_last = self.drop_last
        return ScheduledBatchSampler(
            examples, schedule, per=self.per, drop_last=drop_last, seed=seed, num_replicas=processes, rank=rank
        )

    @abstractmethod
    def _schedule(self) -> BatchSize:
        """Return the size as a function of the count."""


class ConstantSize(_Sizes):
    """One size."""

    sizes = "{size}"
    kind: Literal["constant"] = "constant"
    size: Count

    def _schedule(self) -> BatchSize:
        from ...batches import constant

        return constant(self.size)


class MultipliedSize(_Sizes):
    """``start``, times ``factor`` after ``every`` so many."""

    sizes = "{start}, times {factor:g} every {every} {per}s"
    kind: Literal["multiply"] = "multiply"
    start: Count
    factor: Annotated[Number, Field(gt=0)]
    every: Count

    def _schedule(self) -> BatchSize:
        from ...batches import multiply

        return multiply(self.start, self.factor, self.every)


class LinearSize(_Sizes):
    """From ``start`` to ``end`` by equal differences."""

    sizes = "from {start} to {end} by equal differences over {over} {per}s"
    kind: Literal["linear"] = "linear"
    start: Count
    end: Count
    over: Count

    def _schedule(self) -> BatchSize:
        from ...batches import linear

        return linear(self.start, self.end, self.over)


class GeometricSize(_Sizes):
    """From ``start`` to ``end`` by equal ratios."""

    sizes = "from {start} to {end} by equal ratios over {over} {per}s"
    kind: Literal["geometric"] = "geometric"
    start: Count
    end: Count
    over: Count

    def _schedule(self) -> BatchSize:
        from ...batches import geometric

        return geometric(self.start, self.end, self.over)


def _kind(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


Factor: TypeAlias = Constant | Cosine | Linear | Polynomial | Diminishing
Sizes: TypeAlias = ConstantSize | MultipliedSize | LinearSize | GeometricSize
_ByKind = Field(discriminator="kind")


class Schedules(Model):
    """All schedules of a trial; a kind's name alone stands for that kind with its defaults.

    Attributes:
        lr: A factor on the learning rate, update by update.
        batch_size: None is the task's batch size.
        rho: A factor on the radius, update by update, or a radius that follows the learning rate; of methods that have
            one.
    """

    lr: Annotated[Factor, _ByKind, BeforeValidator(_kind)] = Cosine()
    batch_size: Annotated[Annotated[Sizes, _ByKind] | None, BeforeValidator(_kind)] = None
    rho: Annotated[Factor | Proportional, _ByKind, BeforeValidator(_kind)] = Constant()

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the defaults, ready for YAML."""
        content = self.model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in content.items() if getattr(self, name) != getattr(DEFAULTS, name)}


DEFAULTS = Schedules()


def known_fields(*path: str) -> list[str]:
    """Return the names of all fields at a place below ``schedules``.

    Args:
        path: Nothing, or the name of a schedule and its kind.

    Example:
        >>> known_fields("lr", "linear")
        ['kind', 'warmup', 'final']
    """
    if not path:
        return list(Schedules.model_fields)
    name, kind = path
    models = get_args(Sizes) if name == "batch_size" else (*get_args(Factor), Proportional)
    return next(list(model.model_fields) for model in models if model.model_fields["kind"].default == kind)


class Steps(Protocol):
    """A schedule that is bound to an optimizer."""

    def step(self) -> None:
        """Go on to the next update."""


def attach(schedules: Schedules, optimizer: Optimizer, total: int) -> list[Steps]:
    """Let the learning rate and the radius of an optimizer follow their schedules.

    Args:
        schedules: The schedules.
        optimizer: Just built.
        total: Updates of the whole trial.

    Returns:
        What has to be stepped after every update.

    Raises:
        UserError: A radius would have to rise where the learning rate falls.
    """
    return [*_radius(schedules, optimizer, total), _rate(schedules.lr, optimizer, total)]


def _radius(schedules: Schedules, optimizer: Optimizer, total: int) -> list[Steps]:
    from ...schedules import ParamGroupSchedule, ProportionalToLR

    rho, lr = schedules.rho, schedules.lr
    if rho == Constant():
        return []
    if not isinstance(rho, Proportional):
        return [ParamGroupSchedule(optimizer, "rho", _function(rho, total))]
    for group in optimizer.param_groups:
        if rho.min > group["rho"]:
            raise UserError(
                f"the rho schedule has min {rho.min:g}, above the method's own rho {group['rho']:g}; make it smaller"
            )
        group["rho"] = ProportionalToLR(group["rho"], rho.min, group["lr"], lr.floor * group["lr"])
    return []


def _rate(lr: Factor, optimizer: Optimizer, total: int) -> Steps:
    from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

    if lr == Cosine():  # torch's own rounds otherwise than the closed form, and published numbers hang on it
        return CosineAnnealingLR(optimizer, T_max=total)
    return LambdaLR(optimizer, _function(lr, total))


def _function(factor: Factor, total: int) -> Callable[[int], float]:
    return lambda update: factor.at(update, total)
