"""The loss along lines and across planes through the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks import refuse
from .estimate import Meter, progress
from .objective import Objective


@dataclass(frozen=True)
class Slice:
    """The loss on a grid.

    Attributes:
        axes: the coordinates along each direction; one list for a line, two for a plane.
        losses: one list for a line; for a plane one list per coordinate of the first axis.
        cost: in gradients over all the data, counted.
        seconds: on this machine.
        settings: everything that the numbers depend on besides model and data.
    """

    axes: tuple[tuple[float, ...], ...]
    losses: tuple[Any, ...]
    cost: float
    seconds: float
    settings: dict[str, Any]


def filter_normalized(model_weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw a random direction whose every filter is as long as the filter of the weights that it goes with::

        d_f <- d_f ‖w_f‖ / ‖d_f‖,   d ~ N(0, I)

    A filter is one output: a slice along the first dimension of a weight with two dimensions or more. Biases and the
    gains of norms, which have one dimension, stay where they are (0): loss changes along them swamp all others.

    Args:
        model_weights: tensors shaped like the parameters.
        generator: draws it, on the device of the weights.

    Returns:
        One tensor for each weight.

    Reference:
        Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018 (https://arxiv.org/abs/1712.09913),
        section 4.
    """
    directions = []
    for w in model_weights:
        if w.ndim < 2:
            directions.append(torch.zeros_like(w))
            continue
        d = torch.empty_like(w).normal_(generator=generator)
        lengths = torch.linalg.vector_norm(w.flatten(1), dim=1) / torch.linalg.vector_norm(d.flatten(1), dim=1)
        directions.append(d * lengths.view(-1, *[1] * (w.ndim - 1)))
    return directions


def slice_1d(objective: Objective, *, radius: float = 1.0, points: int = 21, seed: int = 0) -> Slice:
    """Evaluate ``L(w + a d)`` for ``a`` from ``-radius`` to ``radius``, ``d`` random and filter-normalised.

    Args:
        objective: model, loss and data.
        radius: > 0; at 1 every filter has moved by its own length.
        points: >= 2; an odd number includes the weights themselves.
        seed: of the direction. Another direction gives another picture: look at several.

    Returns:
        The losses.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        Costs ``0.4 points`` gradients over the data, and memory for three copies of the weights.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, slice_1d
        >>> w = torch.nn.Linear(1, 1, bias=False)  # L = w**2, at w = 3, and d = +-3
        >>> _ = torch.nn.init.constant_(w.weight, 3.0)
        >>> objective = Objective(w, lambda out, y: (out**2).mean(), (torch.ones(4, 1), torch.zeros(4)))
        >>> sorted(slice_1d(objective, points=3).losses)
        [0.0, 9.0, 36.0]

    Reference:
        See `filter_normalized`.
    """
    return _grid(objective, 1, radius, points, seed)


def slice_2d(objective: Objective, *, radius: float = 1.0, points: int = 11, seed: int = 0) -> Slice:
    """Evaluate ``L(w + a d + b e)`` for ``a`` and ``b`` from ``-radius`` to ``radius``; see `slice_1d`.

    Args:
        objective: model, loss and data.
        radius: > 0.
        points: along each axis, >= 2.
        seed: of the two directions.

    Returns:
        The losses, ``losses[i][j]`` at ``a = axes[0][i]`` and ``b = axes[1][j]``.

    Raises:
        ValueError: if an argument is out of its range.

    Note:
        Costs ``0.4 points**2`` gradients over the data, and memory for four copies of the weights.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, slice_2d
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(10, 3), torch.arange(10) % 2
        >>> objective = Objective(model, torch.nn.functional.cross_entropy, (x, y))
        >>> found = slice_2d(objective, points=3)
        >>> round(found.losses[1][1], 5) == round(objective.loss(), 5)
        True

    Reference:
        See `filter_normalized`.
    """
    return _grid(objective, 2, radius, points, seed)


def line(objective: Objective, other: nn.Module, *, points: int = 21, beyond: float = 0.0) -> Slice:
    """Evaluate the loss on the line from the objective's model to another: ``L((1 - a) w + a v)``.

    Parameters that require no gradient and buffers of floating type (running statistics of batch norm) are interpolated
    too, so that both ends are the two models.

    Args:
        objective: of the first model.
        other: a model of the same architecture.
        points: >= 2.
        beyond: how far to go on past either end, >= 0: ``a`` runs from ``-beyond`` to ``1 + beyond``.

    Returns:
        The losses.

    Raises:
        ValueError: if the models differ in names or shapes, or an argument is out of its range.

    Note:
        Costs ``0.4 points`` gradients over the data, and memory for two more models.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective, line
        >>> a, b = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(a.weight, 1.0), torch.nn.init.constant_(b.weight, -1.0)
        >>> objective = Objective(a, lambda out, y: (out**2).mean(), (torch.ones(4, 1), torch.zeros(4)))
        >>> line(objective, b, points=3).losses
        (1.0, 0.0, 1.0)

    Reference:
        Goodfellow, Vinyals and Saxe, ICLR 2015 (https://arxiv.org/abs/1412.6544).
    """
    _check(1.0, points)
    if not 0 <= beyond < math.inf:
        raise ValueError(f"beyond must be a finite number >= 0, got {beyond}.")
    here, there = _floating(objective.model), _floating(other)
    different = sorted(set(here) ^ set(there)) or [name for name in here if here[name].shape != there[name].shape]
    if different:
        refuse(f"the two models differ, first in {different[0]!r}; a line needs equal names and shapes")
    meter, axis, losses = Meter(objective), _axis(-beyond, 1 + beyond, points), []
    start = {name: tensor.clone() for name, tensor in here.items()}
    with torch.no_grad(), objective.exploring(), progress("line", points) as tick:
        try:
            for a in axis:
                for name, tensor in here.items():
                    tensor.copy_(torch.lerp(start[name], there[name].to(start[name]), a))
                losses.append(objective.loss())
                tick()
        finally:
            for name, tensor in here.items():
                tensor.copy_(start[name])
    settings = {"points": points, "beyond": beyond, "normalize_logits": objective.normalize_logits}
    return Slice((axis,), tuple(losses), meter.cost, meter.seconds, settings)


def _grid(objective: Objective, dimensions: int, radius: float, points: int, seed: int) -> Slice:
    _check(radius, points)
    meter, axis = Meter(objective), _axis(-radius, radius, points)
    random = torch.Generator(objective.device).manual_seed(seed)
    with objective.exploring() as w, progress("slice", points**dimensions) as tick:
        directions = [objective.flat(filter_normalized(objective.unflat(w), random)) for _ in range(dimensions)]

        def losses(at: Tensor, rest: list[Tensor]) -> tuple[Any, ...] | float:
            if rest:
                return tuple(losses(at + a * rest[0], rest[1:]) for a in axis)
            objective.move(at)
            tick()
            return objective.loss()

        found = losses(w, directions)
    assert isinstance(found, tuple)
    settings = {"radius": radius, "points": points, "seed": seed, "normalize_logits": objective.normalize_logits}
    return Slice((axis,) * dimensions, found, meter.cost, meter.seconds, settings)


def _axis(low: float, high: float, points: int) -> tuple[float, ...]:
    shares = [i / (points - 1) for i in range(points)]
    return tuple((1 - t) * low + t * high for t in shares)  # so that ends and middle are exact


def _floating(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def _check(radius: float, points: int) -> None:
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be a finite number > 0, got {radius}.")
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be a whole number >= 2, got {points!r}.")
