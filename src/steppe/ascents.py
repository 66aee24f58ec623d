"""Ascents: where to climb.

An ascent answers with directions ``d`` (a tensor per parameter) and one factor ``c``. Uphill, `SharpnessAware` moves
every parameter by ``delta = rho c d`` with the radius ``rho`` of its group. Downhill, `Descent` moves it by
``-lr c d``: adaptive learning rates and adaptive radii are the same accumulators, seen from two sides. Where ``d`` is
stretched by something that depends on the parameter alone, that waits for the move, and needs no memory of its own.

Ascents are frozen settings. What they remember lives in the optimizer's ``state``, by parameter or under the key
``"shared"``, so that it is saved and loaded with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._pieces import runs, unflattened
from ._scalars import Scalar, Tensors, draw, ratio, wide
from ._shards import sharded
from ._slope import Slope as Slope
from ._tensors import Ops

Directions = tuple[Tensors, Scalar]


class Ascent(ABC):
    """Where to climb."""

    scale_free: ClassVar[bool] = False
    """Whether the climb is the same if all gradients are multiplied by one number."""

    remembers: ClassVar[bool] = False
    """Whether the climb depends on earlier gradients that are kept here."""

    needs_gradient: ClassVar[bool] = True
    """Whether there must be a gradient before the climb. Without one, a step has one pass, the sharp one."""

    group_options: ClassVar[tuple[str, ...]] = ()
    """The fields that a `Descent` keeps in its parameter groups, where schedulers can reach them."""

    def vector(self, p: Tensor, memory: Mapping[str, Any]) -> Tensor | None:
        """Return what ``p`` climbs along, or None if it stays where it is; ``memory`` is its state in the base."""
        return p.grad

    def check_base(self, base: Optimizer) -> None:  # noqa: B027 (most ask for nothing)
        """Raise if the climb asks for something that ``base`` has not."""

    @abstractmethod
    def directions(self, slope: Slope) -> Directions:
        """Return directions ``d`` before they are stretched, one per parameter, and a factor ``c``.

        The factor is a number or a 0-dim tensor; the engine takes one that is not finite for "there is nowhere to
        climb".
        """

    def stretched(self, ops: Ops, params: Tensors, directions: Tensors) -> Tensors:
        """Return the directions along which to move ``params``, some of the parameters or pieces of them."""
        return directions


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
        def scaled(params: Tensors, grads: Tensors) -> Tensors:
            return slope.ops.by_size(params, grads, self.eta)

        return slope.grads, ratio(1.0, slope.norm_of(scaled))

    def stretched(self, ops: Ops, params: Tensors, directions: Tensors) -> Tensors:
        return ops.by_size(params, directions, self.eta, twice=True)


@final
@dataclass(frozen=True)
class Mix(Ascent):
    """``d = g``, ``c = 1 - lam + lam / ||g||``: between the climb that is not normalised (0) and that which is (1).

    ``lam`` is a number, or follows the count ``t = 1, 2, ...`` of steps: ``"1/t"`` or ``"1-1/t"``.
    """

    lam: float | str = "1-1/t"

    def __post_init__(self) -> None:
        if not (self.lam in ("1/t", "1-1/t") if isinstance(self.lam, str) else 0.0 <= self.lam <= 1.0):
            raise ValueError(f"lam must be a number in [0, 1], '1/t' or '1-1/t', got {self.lam!r}.")

    def directions(self, slope: Slope) -> Directions:
        lam: Scalar
        if isinstance(self.lam, str):
            lam = 1 / (slope.step + 1) if self.lam == "1/t" else 1 - 1 / (slope.step + 1)
        else:
            lam = self.lam
        return slope.grads, 1 - lam + ratio(lam, slope.norm)


@final
@dataclass(frozen=True)
class Momentum(Ascent):
    """Move as ``shape`` does, along ``-m`` with the base's momentum ``m``, a sum of gradients: the way the weights go.

    Nesterov's acceleration looks as far ahead as the base is about to go. This looks farther, to where the next batches
    pull back. Parameters without momentum stay where they are, as all do before the first step.
    """

    shape: Ascent = L2()

    scale_free: ClassVar[bool] = True  # the base has divided by the scale
    needs_gradient: ClassVar[bool] = False

    def vector(self, p: Tensor, memory: Mapping[str, Any]) -> Tensor | None:
        for name in ("momentum_buffer", "exp_avg"):
            if isinstance(memory.get(name), Tensor):
                found: Tensor = memory[name]
                if not p.requires_grad:
                    return None
                if p.is_complex() and not found.is_complex():
                    found = torch.view_as_complex(found)  # pairs of reals
                # Momenta in few bits know how to become numbers, and as a rule nothing else.
                return found if type(found).dequantize is Tensor.dequantize else found.dequantize()
        if memory:
            raise RuntimeError(
                "The base has no momentum to climb along: its state holds neither 'momentum_buffer' nor 'exp_avg', but "
                f"{', '.join(map(repr, memory))}. Use SGD with momentum, AdamW, or another base that keeps one."
            )
        return None

    def check_base(self, base: Optimizer) -> None:
        for i, group in enumerate(base.param_groups):
            momentum = group.get("momentum", group["betas"][0] if "betas" in group else None)
            if momentum is not None and not isinstance(momentum, Tensor) and momentum == 0:
                raise ValueError(
                    f"The base must keep a momentum to climb along, but that of {type(base).__name__} is 0 in param "
                    f"group {i}. Use for example SGD(params, lr=0.1, momentum=0.9)."
                )

    def directions(self, slope: Slope) -> Directions:
        directions, factor = self.shape.directions(slope)
        return directions, -factor

    def stretched(self, ops: Ops, params: Tensors, directions: Tensors) -> Tensors:
        return self.shape.stretched(ops, params, directions)


@final
@dataclass(frozen=True)
class Filtered(Ascent):
    """Climb as ``shape`` does, along ``g - sigma m``; then ``m <- decay m + (1 - decay) g``, from ``m = 0``.

    A ``sigma > 0`` takes out of the gradient what it has in common with those before, and leaves what is this batch's
    own; a ``sigma < 0`` adds it, and climbs along an average.
    """

    sigma: float = 1.0
    decay: float = 0.9
    shape: Ascent = L2()

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_shape(self)
        if not -math.inf < self.sigma < math.inf:
            raise ValueError(f"sigma must be a finite number, got {self.sigma}.")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}.")

    def directions(self, slope: Slope) -> Directions:
        grads = [wide(g) for g in slope.grads]
        means = slope.remember("mean", 0.0)
        directions = self.shape.directions(slope.along(slope.ops.plus(grads, means, -self.sigma)))
        slope.ops.lerp_(means, slope.or_else(grads, means), 1 - self.decay)
        return directions

    def stretched(self, ops: Ops, params: Tensors, directions: Tensors) -> Tensors:
        return self.shape.stretched(ops, params, directions)


@final
@dataclass(frozen=True)
class Masked(Ascent):
    """Climb as ``shape`` does, but each weight with probability ``keep`` alone, and then ``1 / keep`` as far.

    What is drawn depends on ``seed`` and the count of steps, and on nothing else.
    """

    keep: float = 0.5
    seed: int = 0
    shape: Ascent = L2()

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.shape.remembers

    @property
    def scale_free(self) -> bool:  # type: ignore[override]
        return self.shape.scale_free

    def __post_init__(self) -> None:
        _check_shape(self)
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep must lie in (0, 1], got {self.keep}.")

    def directions(self, slope: Slope) -> Directions:
        if sharded(slope.owners):
            raise TypeError("Random masks of DTensors are not drawn: every process would draw its own. Use SAM.")
        directions, factor = self.shape.directions(slope)
        seed = draw(self.seed, slope.step).getrandbits(62)
        devices = {d.device for d in directions}
        sources = {device: torch.Generator(device).manual_seed(seed) for device in devices}
        # Into contiguous memory, which is filled in the order of the elements, whatever the strides of the weights.
        masks: list[Tensor] = []
        for some in runs(directions):
            flat = torch.empty(sum(map(Tensor.numel, some)), dtype=some[0].dtype, device=some[0].device)
            masks += unflattened(flat.bernoulli_(self.keep, generator=sources[flat.device]), some)
        return slope.ops.mul(directions, masks), factor / self.keep

    def stretched(self, ops: Ops, params: Tensors, directions: Tensors) -> Tensors:
        return self.shape.stretched(ops, params, directions)


def _check_shape(ascent: Filtered | Masked) -> None:
    if not ascent.shape.needs_gradient:
        inner = type(ascent.shape).__name__
        raise ValueError(
            f"{type(ascent).__name__} climbs along gradients, but its shape {inner} along something else. Put them the "
            f"other way round: {inner}(shape={type(ascent).__name__}())."
        )


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
        slope.shared["sum"] = slope.number_or_else(new, old)
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
