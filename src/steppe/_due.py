"""The step that a base is to take with the gradient that was prepared for it, and whether what it does is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from ._checks import called_by_checkpoint
from ._scalars import PLAIN, free_to_read
from ._shards import local


@final
class Due:
    """A step that a base is to take: an object, for hosts make copies of optimizers that share all they hold."""

    def __init__(self) -> None:
        self._weight: tuple[Tensor, int] | None = None  # one that it has not changed yet, and how often that has been
        self._begun = False
        self._seen = False  # whether steps of the base are seen: then what else changes the weights is none

    @property
    def waiting(self) -> bool:
        """Whether a gradient was prepared for a step that has not ended."""
        return self._weight is not None or self._begun

    def prepared(self, params: Sequence[Tensor]) -> None:
        """Note that the gradients of ``params`` are those for the next step."""
        self._weight = None
        for p in params:
            if p.grad is not None:
                self._weight = p, (p if type(p) in PLAIN else local(p))._version
                return

    def forget(self) -> None:
        """Note that no step is waited for."""
        self._weight, self._begun = None, False

    def taken_unseen(self) -> bool:
        """Say whether the weights have changed, as by a step, and steps are nowhere seen."""
        weight = None if self._seen else self._weight
        return weight is not None and local(weight[0])._version != weight[1]

    def begin(self, base: Optimizer) -> None:
        """Note that the base begins to step: if that is broken off, it is no step that nobody saw."""
        if not (_stands(base) and called_by_checkpoint()):
            self._begun = self._begun or self._weight is not None
            self._weight = None

    def end(self, base: Optimizer, params: Callable[[], Sequence[Tensor]], *, surely: bool) -> bool:
        """Note that the base has stepped, and say whether that counts; if not ``surely``, only what was prepared."""
        stands = _stands(base)
        if stands and called_by_checkpoint():  # which steps to see what state there is, whatever was prepared
            if self._weight is not None:
                self.prepared(params())  # it has written to the weights what they are
            return False
        if not (self._begun or self._weight is not None) and (stands or not surely):
            return False
        self.forget()
        self._seen = self._seen or surely
        return True


def _stands(base: Any) -> bool:
    """Say whether every learning rate is 0: then a step nobody prepared is how others make a base's state."""
    for group in base.param_groups:
        lr = group.get("lr", 1.0)
        if (isinstance(lr, Tensor) and not free_to_read(lr)) or lr != 0:
            return False
    return True
