"""Methods of your own: steppe compare --task digits --methods adamw,sam,examples/own_methods.py:LinfSAM"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from steppe import SharpnessAware
from steppe.ascents import L2, Ascent, Directions, Slope


@dataclass(frozen=True)
class Linf(Ascent):
    """Climb to a corner of a box: every weight equally far, by the sign of its gradient."""

    size: float = 1.0

    def directions(self, slope: Slope) -> Directions:
        return [grad.sign() for grad in slope.grads], self.size


class LinfSAM(SharpnessAware):
    """SAM in a ball of the maximum norm."""

    def __init__(self, base: Optimizer, *, rho: float = 0.002) -> None:
        super().__init__(base, ascent=Linf(), rho=rho)


@dataclass(frozen=True)
class Mean(Ascent):
    """Climb to the middle between where two ascents lead."""

    one: Ascent
    other: Ascent

    def directions(self, slope: Slope) -> Directions:
        (xs, c), (ys, d) = self.one.directions(slope), self.other.directions(slope)
        return [(x + d / c * y) / 2 for x, y in zip(xs, ys, strict=True)], c


class MeanSAM(SharpnessAware):
    """Between SAM and LinfSAM with a hundredth of its radius."""

    def __init__(self, base: Optimizer, *, rho: float = 0.2) -> None:
        super().__init__(base, ascent=Mean(L2(), Linf(0.01)), rho=rho)


class TwoStepSAM(Optimizer):
    """Climb twice by half the radius, the second time along the gradient where the first has led."""

    def __init__(self, base: Optimizer, *, rho: float = 0.2) -> None:
        self.base, self.rho = base, rho
        super().__init__(base.param_groups, {})

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """Take one step, in three passes."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        before = [weight.detach().clone() for weight in weights]
        loss = closure()
        for _ in range(2):
            with torch.no_grad():
                norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
                for weight in weights:
                    weight += self.rho / 2 * weight.grad / norm
            closure()
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
        self.base.step()
        return loss
