"""Which methods, over which grids of learning rates and radii."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ...lab.bench.entries import BENCHES

Width = Literal["narrow", "wide"]

METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sgd": {"momentum": 0.9, "weight_decay": 5e-4},
        "sam": {"momentum": 0.9, "weight_decay": 5e-4},
        "amsgrad": {"weight_decay": 0.01},
        "adasam": {"weight_decay": 0.01},
        "lightsam-i": {},
        "lightsam-ii": {},
        "lightsam-iii": {},
    }
)
"""Who takes part, and what is the same in all of its settings."""

LIGHT = ("lightsam-i", "lightsam-ii", "lightsam-iii")
PLAIN = ("sgd", "amsgrad")
"""Without a radius: of their grids only the learning rates are left."""


@dataclass(frozen=True)
class Preset:
    """A setting of the study.

    Attributes:
        tasks: As `steppe compare` names them.
        centre: Learning rate and radius in the middle of each method's grid.
        step: Factor from one value to the next.
        size: Values of each axis of the wide grid, an odd number; the narrow one is the middle three.
        epochs: Of every trial; None is the task's own.
        seeds: Of the grids.
        test_seeds: Of the comparison of the best.
        guessing: The metric of a model that guesses, which a diverged training is given.
        held_out: The task, as `steppe compare` takes it, on which one setting for all tasks is tested.
    """

    tasks: tuple[str, ...]
    centre: Mapping[str, tuple[float, float | None]]
    step: float
    size: int
    epochs: int | None = None
    seeds: int = 3
    test_seeds: int = 5
    guessing: float = 10.0
    held_out: str = BENCHES["digits-noise-norm"].task

    def settings(self, method: str) -> list[dict[str, Any]]:
        """Return the wide grid of a method, radii in rows, learning rates in columns."""
        lr, rho = self.centre[method]
        rates, radii = self.axis(lr), [None] if rho is None else self.axis(rho)
        return [
            {"method": method, "lr": rate, **({} if radius is None else {"rho": radius}), **METHODS[method]}
            for radius in radii
            for rate in rates
        ]

    def axis(self, centre: float) -> list[float]:
        """Return the values of an axis of the wide grid."""
        half = self.size // 2
        return [float(f"{centre * self.step**k:.3g}") for k in range(-half, half + 1)]

    def inside(self, method: str, width: Width) -> list[int]:
        """Return which settings of a method lie in a grid."""
        columns, rows = self.size, self.size if self.centre[method][1] is not None else 1
        if width == "wide":
            return list(range(rows * columns))
        middle = range(self.size // 2 - 1, self.size // 2 + 2)
        return [row * columns + column for row in (middle if rows > 1 else [0]) for column in middle]


# The best of nine settings that were tried for each on MNIST-1D with the MLP (docs/tuning).
_CENTRES: Mapping[str, tuple[float, float | None]] = MappingProxyType(
    {
        "sgd": (0.4, None),
        "sam": (0.4, 0.4),
        "amsgrad": (0.004, None),
        "adasam": (0.001, 0.4),
        "lightsam-i": (20.0, 1.0),
        "lightsam-ii": (0.1, 1e-3),
        "lightsam-iii": (1e-3, 5e-4),
    }
)
_DECADES = 10**0.5

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(("mnist1d-conv",), _CENTRES, _DECADES, 3, epochs=1, seeds=3, test_seeds=3),
        "small": Preset(("mnist1d", "mnist1d-conv", "digits"), _CENTRES, _DECADES, 7, epochs=20),
        "paper": Preset(("mnist1d", "mnist1d-conv", "digits"), _CENTRES, _DECADES, 7, seeds=10, test_seeds=10),
    }
)
"""``small`` has grids over three decades and nine settings in their middle; ``paper`` is the same with the tasks' full
epochs and ten seeds, for the paper's own data (MNIST, ImageNet) and settings are not published; ``smoke`` shows that it
runs."""
