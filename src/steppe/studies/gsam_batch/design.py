"""Which columns, for how long: {SGD, SAM, GSAM} x {fixed batch, growing batch (+B), cosine learning rate (+C)}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

OPTIMIZERS = ("sgd", "sam", "gsam")
COLUMNS = tuple(optimizer + suffix for suffix in ("", "+B", "+C") for optimizer in OPTIMIZERS)

AT_EQUAL_UPDATES = "@updates"
"""Added to the name of a +B column that makes as many updates as the others, equally many with each batch size.

Growing batches of 16 to 256 for equal numbers of epochs make three times the updates of batches of 128. The paper
leaves this confound in; the second budget takes it out."""


@dataclass(frozen=True)
class Preset:
    """A setting of the study.

    Attributes:
        tasks: What is trained, as `steppe compare` names it.
        epochs: A multiple of the number of batch sizes.
        batches: The growing batch sizes, each for an equal number of epochs, or of updates.
        fixed: The batch size of the other columns.
        lr: Learning rate of SGD, without momentum and weight decay; +C ends at a hundredth of it.
        rho: Radius of SAM and GSAM, constant.
        alpha: Of GSAM.
        seeds: How many.
    """

    tasks: tuple[str, ...]
    epochs: int
    batches: tuple[int, ...] = (16, 32, 64, 128, 256)
    fixed: int = 128
    lr: float = 0.1
    rho: float = 0.05
    alpha: float = 0.02
    seeds: int = 5

    def settings(self, examples: int) -> dict[str, dict[str, Any]]:
        """Return the columns as ``settings`` of a comparison.

        Args:
            examples: In the training split.
        """
        fixed = {"kind": "constant", "size": self.fixed, "drop_last": True}
        growing = {"kind": "multiply", "start": self.batches[0], "factor": self.batches[1] / self.batches[0]}
        stages = len(self.batches)
        updates = self.updates(examples)
        by_epoch = {**growing, "every": self.epochs // stages, "drop_last": True}
        by_update = {**growing, "every": -(-updates // stages), "per": "update", "drop_last": True}
        found = {}
        for name, method in self.arms().items():
            if name.endswith(AT_EQUAL_UPDATES):
                more: dict[str, Any] = {"schedules": {"lr": "constant", "batch_size": by_update}, "updates": updates}
            elif name.endswith("+B"):
                more = {"schedules": {"lr": "constant", "batch_size": by_epoch}}
            elif name.endswith("+C"):
                more = {"schedules": {"lr": {"kind": "cosine", "final": 0.01}, "batch_size": fixed}}
            else:
                more = {"schedules": {"lr": "constant", "batch_size": fixed}}
            found[name] = {**({} if name == method else {"method": method}), **self._hyperparameters(method), **more}
        return found

    def arms(self) -> dict[str, str]:
        """Return the method of every column, those at equal updates after the nine."""
        names = [*COLUMNS, *(f"{optimizer}+B{AT_EQUAL_UPDATES}" for optimizer in OPTIMIZERS)]
        return {name: name.partition("+")[0] for name in names}

    def updates(self, examples: int) -> int:
        """Return how many updates the columns with the fixed batch size make."""
        return self.epochs * (examples // self.fixed)

    def _hyperparameters(self, method: str) -> dict[str, float]:
        found = {"lr": self.lr, "momentum": 0.0, "weight_decay": 0.0}
        if method != "sgd":
            found["rho"] = self.rho
        if method == "gsam":
            found["alpha"] = self.alpha
        return found


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(tasks=("mnist1d-conv",), epochs=5, seeds=3),
        "small": Preset(tasks=("mnist1d-conv",), epochs=200, seeds=5),
        "paper": Preset(tasks=("cifar100-resnet18", "cifar100-wrn-28-10"), epochs=200, seeds=3),
    }
)
"""``paper`` is the published setting; ``small`` the same design for two cores; ``smoke`` shows that it runs."""
