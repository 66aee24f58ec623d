"""What the claims on GSAM share: the optimizer, schedules of batch sizes and learning rates, and runs in stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import Parameters, Point
from . import setups

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from ...schedules import Radius
    from ..problems import Problem
    from ..running import Trace

HARADA = "Harada and Iiduka, arXiv 2409.09984"
ZHUANG = "Zhuang et al., arXiv 2203.08065"

FULL = 4096
"""A batch that has grown to this size is the full gradient."""

LEAST = 0.01
"""What cosine and linear annealing leave of the learning rate."""


def gsam(
    problem: Problem, lr: float, rho: Radius, alpha: float, start: Tensor | Sequence[float] | None = None
) -> Optimizer:
    """Return GSAM around SGD."""
    from ... import GSAM

    return GSAM(setups.sgd(problem, lr, start), rho=rho, alpha=alpha)


def factor(schedule: str, t: int, steps: int) -> float:
    """Return what a schedule multiplies the learning rate by in step t = 0, 1, ..."""
    if schedule == "1/sqrt(t+1)":
        return 1 / math.sqrt(t + 1)
    if schedule == "cosine":
        return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * t / steps)) / 2
    if schedule == "linear":
        return 1 - (1 - LEAST) * t / steps
    return 1.0


def annealed(optimizer: Optimizer, schedule: str, steps: int) -> Callable[[], object] | None:
    """Return what to call after each step, one of torch's schedulers, or None if the learning rate is constant."""
    from torch.optim import lr_scheduler

    if schedule == "1/sqrt(t+1)":
        return lr_scheduler.LambdaLR(optimizer, lambda t: factor(schedule, t, steps)).step
    if schedule == "cosine":
        lr = optimizer.param_groups[0]["lr"]
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=LEAST * lr).step
    if schedule == "linear":
        return lr_scheduler.LinearLR(optimizer, 1.0, LEAST, total_iters=steps).step
    return None


def sizes(p: Parameters) -> list[int]:
    """Return the batch size of every step: ``batch``, or ``growth`` times as much every ``every`` steps."""
    from ...batches import capped, constant, multiply

    grows = "growth" in p
    size = capped(multiply(p["batch"], p["growth"], every=p["every"]), at=FULL) if grows else constant(p["batch"])
    return [size(t) for t in range(p["steps"])]


def rates(p: Parameters) -> list[float]:
    """Return the learning rate of every step."""
    return [p["lr"] * factor(p["schedule"], t, p["steps"]) for t in range(p["steps"])]


def staged(
    problem: Problem,
    optimizer: Optimizer,
    batches: Sequence[int],
    generator: torch.Generator,
    after: Callable[[], Any] | None = None,
) -> Trace:
    """Run as many steps as there are batch sizes, and return the whole way."""
    import torch

    parts: list[Tensor] = []
    for size, members in groupby(batches):
        batch = None if size >= FULL else size
        trace = theory.run(problem, optimizer, len(list(members)), generator, batch=batch, after=after)
        parts.append(trace.iterates if not parts else trace.iterates[1:])
    return theory.Trace(problem, torch.cat(parts))


def scheduled(problem: Problem, p: Parameters, seed: int, start: Any = None, rho: float | None = None) -> Trace:
    """Run GSAM with the batch sizes and learning rates of a setting; its rho is constant, falls, or is another one."""
    from ... import ParamGroupSchedule, ProportionalToLR

    radius: Radius = p["rho"] if rho is None else rho
    falls = p.get("rho falls") if rho is None else None
    if falls == "with lr":
        radius = ProportionalToLR(rho_max=p["rho"], rho_min=0.0, lr_max=p["lr"], lr_min=0.0)
    optimizer = gsam(problem, p["lr"], radius, p["alpha"], start)
    after = annealed(optimizer, p["schedule"], p["steps"])
    if falls == "by itself":
        after = ParamGroupSchedule(optimizer, "rho", lambda t: 0.9**t).step
    return staged(problem, optimizer, sizes(p), setups.seeded(seed), after)


def levels(quantity: str, name: Callable[[Parameters], str]) -> Callable[[Sequence[Point], Any], None]:
    """Return what draws the means of a measured number below its bounds, one setting a row."""

    def draw(points: Sequence[Point], axes: Any) -> None:
        rows = range(len(points))
        means, bounds = [fmean(point.values(quantity)) for point in points], [p.predicted["bound"] for p in points]
        axes.plot(means, rows, "o", color="#4477AA", markersize=4, label=quantity)
        axes.plot(bounds, rows, "|", color="#EE6677", markersize=12, markeredgewidth=2, label="bound")
        axes.set_yticks(rows, [name(point.parameters) for point in points], fontsize=6)
        axes.set(xscale="log", xlabel=quantity)
        axes.legend(fontsize=7, frameon=False, loc="center left")

    return draw


def courses(runs: Mapping[str, tuple[Trace, str]], axes: Any) -> None:
    """Draw the squared gradients along runs, each with its colour."""
    for label, (trace, colour) in runs.items():
        axes.plot(trace.squared_norms.tolist(), color=colour, linewidth=0.8, label=label)
    axes.set(yscale="log", xlabel="steps", ylabel="squared gradient")
