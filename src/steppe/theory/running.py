"""Runs of the library's own optimizers, or of any other of torch, on problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from .problems import Problem, Stochastic

_AT_ONCE = 2**15  # samples drawn in one call


@final
@dataclass(frozen=True)
class Trace:
    """Where a run went.

    Attributes:
        problem: what it ran on.
        iterates: the start and the recorded iterates, one a row.
    """

    problem: Problem
    iterates: Tensor

    @property
    def values(self) -> Tensor:
        """``f`` at the iterates."""
        return self.problem.value(self.iterates)

    @property
    def squared_norms(self) -> Tensor:
        """``||grad f||^2``, of the full gradient, at the iterates."""
        return self.problem.gradient(self.iterates).square().sum(-1)


def run(
    problem: Problem,
    optimizer: Optimizer,
    steps: int,
    generator: torch.Generator | None = None,
    *,
    batch: int | None = 1,
    same_sample: bool = True,
    every: int = 1,
    after: Callable[[], object] | None = None,
) -> Trace:
    """Let an optimizer take steps on a problem, and return where it went.

    It starts at the value of the optimizer's parameter and leaves the last iterate there, so that a run can go on with
    another batch size or learning rate. Gradients are closed forms, without autograd; the closure returns no loss.

    Args:
        problem: the problem.
        optimizer: over one parameter, made with ``problem.parameter()``.
        steps: how many, >= 0.
        generator: of the samples, for a `Stochastic` problem; others ignore it, ``batch`` and ``same_sample``.
        batch: independent samples in a mini-batch, >= 1; None is the full gradient.
        same_sample: whether both passes of a step have the same mini-batch, as in practice, or independent ones.
        every: record the start and each ``every``-th iterate after it, >= 1.
        after: called after each step, as ``scheduler.step``.

    Raises:
        ValueError: if the optimizer has not just one parameter, in the problem's shape and float64; if a number is
            out of its range; or without a generator where one is needed.

    Note:
        The same seed gives the same samples to all optimizers: the difference of two runs has much less noise than
        either. With ``same_sample=False`` an optimizer of one pass sees the samples of the clean pass.

    Example:
        >>> from steppe import SAM
        >>> from steppe.theory import ConvexTrap, run
        >>> problem = ConvexTrap(beta=1.0, rho=0.4, z=5.0)
        >>> for same in (True, False):
        ...     opt = SAM(torch.optim.SGD([problem.parameter()], lr=0.5), rho=0.4)
        ...     trace = run(problem, opt, 1000, torch.Generator().manual_seed(0), same_sample=same)
        ...     print(bool(trace.iterates[-500:].mean() > 4.6), trace.values.shape)
        True torch.Size([1001])
        False torch.Size([1001])
    """
    w = _only_parameter(optimizer, problem)
    for name, number, least in (("steps", steps, 0), ("batch", batch, 1), ("every", every, 1)):
        if number is not None and number < least:
            raise ValueError(f"{name} must be >= {least}, got {number}.")
    x = w.detach()  # the same memory: it moves along
    coming: list[Tensor] = []  # samples of the passes of this step; the last of them serves all that are left
    samples: Iterable[Sequence[Tensor]]
    if isinstance(problem, Stochastic) and batch is not None:
        if generator is None:
            raise ValueError("This problem is sampled: pass a torch.Generator, or batch=None for the full gradient.")
        sampled, one = problem.component_gradient, batch == 1
        samples = _draws(problem, generator, steps, batch, passes=1 if same_sample else 2)

        def evaluate() -> None:
            gradient = sampled(x, coming.pop() if len(coming) > 1 else coming[0])
            w.grad = gradient if one else gradient.mean(0)
    else:
        samples = repeat((), steps)

        def evaluate() -> None:
            w.grad = problem.gradient(x)

    iterates = torch.empty(1 + steps // every, problem.dimension, dtype=torch.float64)
    rows = iter(iterates.unbind(0))
    step: Callable[[Callable[[], Any]], Any] = optimizer.step
    next(rows).copy_(x)
    before = w.requires_grad
    w.requires_grad_(False)  # no backward pass comes, so that nobody need look for what it leaves
    try:
        for t, coming[:] in enumerate(samples, 1):
            step(evaluate)
            if t % every == 0:
                next(rows).copy_(x)
            if after is not None:
                after()
    finally:
        w.requires_grad_(before)
    return Trace(problem, iterates)


def _draws(
    problem: Stochastic, generator: torch.Generator, steps: int, batch: int, passes: int
) -> Iterator[Sequence[Tensor]]:
    """Yield, for every step, a sample (a mini-batch of them, if ``batch > 1``) for each pass."""
    inner = () if batch == 1 else (batch,)
    block = max(1, _AT_ONCE // (passes * batch))
    for done in range(0, steps, block):
        n = passes * min(block, steps - done)
        drawn = problem.sample(generator, (n, *inner)).unbind(0)
        for i in range(0, n, passes):
            yield drawn[i : i + passes]


def _only_parameter(optimizer: Optimizer, problem: Problem) -> Tensor:
    params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    shape = (problem.dimension,)
    if len(params) != 1 or params[0].shape != shape or params[0].dtype != torch.float64:
        got = ", ".join(f"{tuple(p.shape)} in {p.dtype}" for p in params)
        raise ValueError(
            f"The optimizer must have one parameter, of shape {shape} in torch.float64, got {got}. "
            "Make it with problem.parameter()."
        )
    return params[0]
