"""Who takes part, on what, for how long, and the six settings that each may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

OPTIMIZERS = ("sgd", "sam", "amsgrad", "adasam")
MOMENTA = (0.9, 0.0)
RADII: Mapping[str, tuple[float, ...]] = MappingProxyType({"sam": (0.01, 0.005), "adasam": (0.01, 0.005, 0.001)})
"""The paper's grids."""


@dataclass(frozen=True)
class Budget:
    """How long a task is trained.

    Attributes:
        batch: Examples in a batch.
        updates: In all.
        warmup: Of them, those in which the learning rate rises; then it falls linearly to 0.
    """

    batch: int
    updates: int
    warmup: int


@dataclass(frozen=True)
class Preset:
    """A setting of the study.

    Attributes:
        tasks: What is trained on, unless the user says otherwise.
        model: A name or a folder; None for the encoder that installs as a package.
        rates: Six learning rates of each plain optimizer, by momentum; or, where they are relative, factors on the
            task's own.
        relative: Optimizers whose rates are factors.
        length: Tokens of a text.
        weight_decay: Of all optimizers.
        budget: Of every task; None is that of the task.
        start: What the tasks start from that the paper starts from MNLI; None is the model.
        tuned_on: The task on which settings are chosen for all; None lets each choose its own.
        speed_up: The tasks on which batch sizes are compared.
        few: Whether every row has two settings to choose from in place of six.
        seeds: Of the comparison.
        tuning_seeds: Of the choice.
    """

    tasks: tuple[str, ...]
    model: str | None
    rates: Mapping[tuple[str, float], Sequence[float]]
    relative: tuple[str, ...] = ()
    length: int = 64
    weight_decay: float = 0.01
    budget: Budget | None = None
    start: str | None = None
    tuned_on: str | None = None
    speed_up: tuple[str, ...] = ()
    few: bool = False
    seeds: int = 5
    tuning_seeds: int = 1

    def candidates(
        self, optimizers: Sequence[str], momenta: Sequence[float], budget: Budget, lr: float = 1.0
    ) -> dict[str, list[dict[str, Any]]]:
        """Return six entries for every row: six learning rates, or fewer of them with the radii of the paper.

        Args:
            optimizers: Out of `OPTIMIZERS`.
            momenta: Out of `MOMENTA`.
            budget: Of the task.
            lr: The task's own learning rate, for those whose rates are relative.
        """
        found = {
            row(optimizer, momentum): [
                self._entry(optimizer, momentum, rate, rho, budget)
                for rate in self._rates(optimizer, momentum, lr)
                for rho in RADII.get(optimizer, (None,))
            ]
            for momentum in momenta
            for optimizer in optimizers
        }
        return {name: entries[2:4] for name, entries in found.items()} if self.few else found

    def _rates(self, optimizer: str, momentum: float, lr: float) -> list[float]:
        plain = {"sam": "sgd", "adasam": "amsgrad"}.get(optimizer, optimizer)
        rates = self.rates[plain, momentum]
        # As many as leave six settings, from the middle: the range of the plain optimizer, less finely.
        few = len(rates) // len(RADII.get(optimizer, (None,)))
        start = (len(rates) - few) // 2
        return [rate * (lr if plain in self.relative else 1.0) for rate in rates[start : start + few]]

    def _entry(self, optimizer: str, momentum: float, lr: float, rho: float | None, budget: Budget) -> dict[str, Any]:
        adaptive = optimizer in ("amsgrad", "adasam")
        return {
            "method": optimizer,
            "lr": lr,
            "weight_decay": self.weight_decay,
            **({"betas": [momentum, 0.999]} if adaptive else {"momentum": momentum}),
            **({} if rho is None else {"rho": rho}),
            "updates": budget.updates,
            "schedules": {
                "lr": {"kind": "polynomial", "power": 1.0, "warmup": budget.warmup},
                "batch_size": {"kind": "constant", "size": budget.batch},
            },
        }


def row(optimizer: str, momentum: float) -> str:
    """Return the name of a row.

    Example:
        >>> row("adasam", 0.0)
        'adasam-0'
    """
    return f"{optimizer}-{momentum:g}"
