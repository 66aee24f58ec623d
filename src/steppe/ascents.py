"""Ascents: where to climb.

An ascent answers with directions ``d`` (a tensor per parameter) and one factor ``c``. Uphill, `SharpnessAware` moves
every parameter by ``delta = rho c d`` with the radius ``rho`` of its group. Downhill, `Descent` moves it by
``-lr c d``: adaptive learning rates and adaptive radii are the same accumulators, seen from two sides.

Ascents are frozen settings. What they remember lives in the optimizer's ``state``, by parameter or under the key
``"shared"``, so that it is saved and loaded with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ._shards import like
from ._tensors import Ops, Scalar, Tensors, filled, on, ratio, wide

State = MutableMapping[Any, dict[str, Any]]
Directions = tuple[Tensors, Scalar]


@final
class Slope:
    """The parameters that move together, their gradients, the one norm over them all, and their memory.

    Args:
        owners: the parameters as the optimizer knows them; each has a gradient.
        state: the optimizer's state.
        ops: arithmetic for them.
        guarded: whether accumulators must stay as they are when the gradient is not finite.
        scale: what the gradients are multiplied by already; they are divided by it.

    Raises:
        TypeError: if a gradient is sparse.
    """

    def __init__(self, owners: list[Tensor], state: State, ops: Ops, *, guarded: bool, scale: Scalar = 1.0) -> None:
        self.owners, self.state, self.ops, self.guarded = owners, state, ops, guarded
        self.params = ops.real(owners)
        grads = _dense_gradients(owners)
        if not ops.foreach:
            grads = [like(g, p) for g, p in zip(grads, owners, strict=True)]
        if isinstance(scale, Tensor) or scale != 1.0:
            grads = [wide(g) / (on(scale, g.device) if isinstance(scale, Tensor) else scale) for g in grads]
        self.grads = ops.real(grads)
        self._norm: Scalar | None = None

    @property
    def norm(self) -> Scalar:
        """The l2 norm over all gradients: a number on the CPU, a 0-dim tensor on an accelerator."""
        if self._norm is None:
            self._norm = self.ops.norm(self.grads)
        return self._norm

    def or_else(self, new: Tensors, old: Tensors) -> Tensors:
        """Return ``new`` if the gradient is finite and ``old`` if it is not."""
        finite = not self.guarded or self.norm < math.inf
        if isinstance(finite, Tensor):
            return [torch.where(on(finite, n.device), n, o) for n, o in zip(new, old, strict=True)]
        return new if finite else old

    def remember(self, name: str, start: float) -> list[Tensor]:
        """Return the accumulator ``name`` of every parameter, filled with ``start`` where it is new.

        Accumulators of half-precision parameters are float32.
        """
        found = []
        for owner, p in zip(self.owners, self.params, strict=True):
            memory = self.state[owner]
            if name not in memory:
                memory[name] = filled(p, start)
            found.append(memory[name])
        return found

    @property
    def shared(self) -> dict[str, Any]:
        """What is remembered for all parameters together."""
        return self.state["shared"]


def _dense_gradients(owners: list[Tensor]) -> list[Tensor]:
    grads = [p.grad for p in owners if p.grad is not None]
    if {g.layout for g in grads} != {torch.strided}:
        shape = next(tuple(g.shape) for g in grads if g.layout is not torch.strided)
        raise TypeError(
            f"A parameter of shape {shape} has a sparse gradient, which cannot be climbed. Use sparse=False in its "
            "embedding, or give its group rho=0 and a base that takes sparse gradients."
        )
    return grads


class Ascent(ABC):
    """Where to climb."""

    scale_free: ClassVar[bool] = False
    """Whether the climb is the same if all gradients are multiplied by one number."""

    remembers: ClassVar[bool] = False
    """Whether the climb depends on earlier gradients."""

    group_options: ClassVar[tuple[str, ...]] = ()
    """The fields that a `Descent` keeps in its parameter groups, where schedulers can reach them."""

    @abstractmethod
    def directions(self, slope: Slope) -> Directions:
        """Return directions ``d``, one per parameter, and a factor ``c``, a number or a 0-dim tensor.

        The engine takes a factor that is not finite for "there is nowhere to climb".
        """


@final
@dataclass(frozen=True)
class L2(Ascent):
    """``d = g``, ``c = 1 / ||g||``: the steepest climb in an l2 ball."""

    scale_free: ClassVar[bool] = True

    def directions(self, slope: Slope) -> Directions:
        return slope.grads, ratio(1.0, slope.norm)


@final
@dataclass(frozen=True)
class Unnormalized(Ascent):
    """``d = g``, ``c = 1``."""

    def directions(self, slope: Slope) -> Directions:
        return slope.grads, 1.0


@final
@dataclass(frozen=True)
class Adaptive(Ascent):
    """``d = T^2 g``, ``c = 1 / ||T g||`` with ``T = |w| + eta``: the steepest climb in a ball scaled by the weights."""

    eta: float = 0.01

    scale_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta < float("inf"):
            raise ValueError(f"eta must be a finite number >= 0, got {self.eta}.")

    def directions(self, slope: Slope) -> Directions:
        scales = slope.ops.abs_plus(slope.params, self.eta)
        scaled = slope.ops.mul(scales, slope.grads)
        return slope.ops.mul(scales, scaled), ratio(1.0, slope.ops.norm(scaled))


def _check_eps(eps: float) -> None:
    if not 0.0 < eps < float("inf"):
        raise ValueError(f"eps must be a finite number > 0: it is the floor under sqrt(v). Got {eps}.")


@final
@dataclass(frozen=True)
class AdaGradNorm(Ascent):
    """``u <- u + ||g||^2``, ``d = g``, ``c = 1 / sqrt(u)``, from ``u = eps^2``: one rate for all, which only falls."""

    eps: float = 1e-8

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def directions(self, slope: Slope) -> Directions:
        old = slope.shared.get("sum", self.eps**2)
        new = old + slope.norm * slope.norm
        finite = not slope.guarded or slope.norm < math.inf
        slope.shared["sum"] = torch.where(finite, new, old) if isinstance(finite, Tensor) else new if finite else old
        return slope.grads, slope.shared["sum"] ** -0.5


@final
@dataclass(frozen=True)
class AdaGrad(Ascent):
    """``u <- u + g^2``, ``d = g / sqrt(u)``, ``c = 1``, element-wise, from ``u = eps^2``."""

    eps: float = 1e-8

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def directions(self, slope: Slope) -> Directions:
        grads = [wide(g) for g in slope.grads]
        sums = slope.remember("sum", self.eps**2)
        added = slope.ops.mul(grads, grads)
        slope.ops.add_(added, sums)
        slope.ops.copy_(sums, slope.or_else(added, sums))
        return slope.ops.over_sqrt(grads, sums), 1.0


@final
@dataclass(frozen=True)
class Adam(Ascent):
    """``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g^2``, ``d = m / sqrt(v)``, ``c = 1``, from ``v = eps^2``.

    With ``amsgrad``, ``v_hat <- max(v_hat, v)`` stands in for ``v`` in ``d``. As in the papers there is no bias
    correction, and ``eps`` enters through the initial ``v`` alone.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False

    remembers: ClassVar[bool] = True
    group_options: ClassVar[tuple[str, ...]] = ("betas", "eps")

    def __post_init__(self) -> None:
        _check_eps(self.eps)
        beta1, beta2 = self.betas
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 <= 1.0):
            raise ValueError(f"betas must lie in [0, 1) and [0, 1], got {self.betas}.")

    def directions(self, slope: Slope) -> Directions:
        beta1, beta2 = self.betas
        grads = [wide(g) for g in slope.grads]
        means = slope.remember("exp_avg", 0.0)
        squares = slope.remember("exp_avg_sq", self.eps**2)
        slope.ops.lerp_(means, slope.or_else(grads, means), 1 - beta1)
        slope.ops.lerp_(squares, slope.or_else(slope.ops.mul(grads, grads), squares), 1 - beta2)
        if self.amsgrad:
            tops = slope.remember("max_exp_avg_sq", self.eps**2)
            slope.ops.maximum_(tops, squares)
            squares = tops
        return slope.ops.over_sqrt(means, squares), 1.0
