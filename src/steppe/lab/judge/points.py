"""The settings of a sweep, and what has become of each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from ..plans.grid import Setting
from ..trials.fields import Model
from ..trials.records import Record
from .stats import Mean, mean

State: TypeAlias = Literal["finished", "diverged", "pruned", "given up"]


class SeedResult(Model):
    """What one training found.

    Attributes:
        seed: The seed.
        validation_metric: At the end, like the numbers below; None if the training diverged.
        validation_loss: The loss there.
        train_metric: On training data.
        train_loss: The loss there.
        test_metric: On test data; not looked at before the best setting is chosen.
        test_loss: The loss there.
        diverged: The epoch in which a number stopped being finite.
        curve: The validation metric after every epoch.
        gradient_evaluations: In all.
        seconds: Of training.
    """

    seed: int
    validation_metric: float | None = None
    validation_loss: float | None = None
    train_metric: float | None = None
    train_loss: float | None = None
    test_metric: float | None = None
    test_loss: float | None = None
    diverged: int | None = None
    curve: tuple[float, ...] = ()
    gradient_evaluations: int
    seconds: float

    @classmethod
    def of(cls, record: Record) -> SeedResult:
        """Keep of a record what a sweep needs."""
        numbers = record.final.model_dump(include=set(cls.model_fields)) if record.final is not None else {}
        return cls(
            seed=record.config.seed,
            diverged=record.diverged.epoch if record.diverged is not None else None,
            curve=tuple(record.curve.validation_metric),
            gradient_evaluations=record.gradient_evaluations,
            seconds=record.seconds,
            **numbers,
        )


@dataclass(frozen=True)
class Point:
    """One setting and what has become of it.

    Attributes:
        slot: Its number, from 0.
        setting: The values.
        state: How it has ended.
        seeds: The results that count: of all seeds, or up to the first that diverged.
        curve: The validation metric of the first seed after every epoch, up to where it was stopped.
    """

    slot: int
    setting: Setting
    state: State
    seeds: tuple[SeedResult, ...] = ()
    curve: tuple[float, ...] = ()

    @cached_property
    def validation(self) -> Mean | None:
        """Mean of the validation metric over all seeds; None unless all of them came to their end."""
        return self._mean("validation_metric")

    @cached_property
    def test(self) -> Mean | None:
        """Likewise of the test metric. Only for a setting that was chosen already."""
        return self._mean("test_metric")

    @cached_property
    def validation_loss(self) -> Mean | None:
        """Likewise of the validation loss; None also if a loop of the user's own does not tell it."""
        return self._mean("validation_loss")

    @property
    def seconds(self) -> float:
        """Spent in training."""
        return sum(result.seconds for result in self.seeds)

    def _mean(self, name: str) -> Mean | None:
        values = [getattr(result, name) for result in self.seeds]
        if self.state != "finished" or not values or None in values:
            return None
        return mean(values)


def point(
    slot: int, setting: Setting, results: list[SeedResult], *, stopped: tuple[float, ...] | None, given_up: bool
) -> Point:
    """Judge a setting of which nothing runs any more.

    Args:
        slot: Its number.
        setting: The values.
        results: Of its seeds, in their order.
        stopped: The curve of the first seed if that was worse than most.
        given_up: Whether workers died at it.
    """
    if stopped is not None:
        return Point(slot, setting, "pruned", curve=stopped)
    curve = results[0].curve if results else ()
    diverged = [index for index, result in enumerate(results) if result.diverged is not None]
    if diverged:  # whether later seeds were trained is a matter of chance
        return Point(slot, setting, "diverged", tuple(results[: diverged[0] + 1]), curve)
    return Point(slot, setting, "given up" if given_up else "finished", tuple(results), curve)


def in_order(points: Iterable[Point], higher_is_better: bool) -> list[Point]:
    """Return the settings that came to their end, the best first; ties go by the validation loss, then by order.

    Args:
        points: All.
        higher_is_better: Whether a larger metric is better.
    """

    def rank(point: Point) -> tuple[float, float, int]:
        metric, loss = score(point, higher_is_better), point.validation_loss
        return -metric if higher_is_better else metric, math.inf if loss is None else loss.value, point.slot

    return sorted((point for point in points if point.validation is not None), key=rank)


def score(found: Point, higher_is_better: bool) -> float:
    """Return what a sampler learns of a setting: the mean validation metric, or the worst if a seed diverged."""
    if found.validation is None:
        return float("-inf") if higher_is_better else float("inf")
    return found.validation.value
