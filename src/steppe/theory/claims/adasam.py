"""AdaSAM: Sun et al., arXiv 2303.00565. Its bound, and what comes of a batch that is ``b`` times larger.

The bound, again and sharper. Every ``f_i`` is L-smooth with partial derivatives in [-G, G]; mini-batches of ``b`` have
gradients ``s`` at ``x`` and ``g`` at the climbed point, so ``||g - s|| <= L rho`` surely. Let ``h = v_hat^(-1/2)``
element-wise, which only falls, from ``1/eps`` and never below ``1/G`` (for ``eps <= G``); ``h'`` is that of the step
before; ``k = beta1 / (1 - beta1)``; ``z = x + k (x - x')``, equal to ``x`` at first; and ``N = sum h' (grad f(x))^2``,
which is ``||grad f(x)||^2 / G`` or more.

* ``z+ - z = gamma k m' (h' - h) - gamma g h``, and ``f(z+) <= f(z) + <grad f(z), z+ - z> + L/2 ||z+ - z||^2``.
* Terms in ``h' - h``: at most ``gamma (1 + k) G^2 sum (h' - h)`` in the product, whose sum over steps is at most
  ``gamma G^2 d (1/eps - 1/G) / (1 - beta1)``; and ``L gamma^2 k^2 G^2 sum (h' - h)^2`` in the square, where
  ``(h' - h)^2 <= h'^2 - h^2``.
* ``-gamma <grad f(z), g h'>`` is on average, as ``h'`` is known before the samples, at most ``-gamma (1 - 3/8) N +
  gamma (4/3 + 1/2) (L^2 rho^2 / eps + ||grad f(z) - grad f(x)||^2 / eps)``: besides N it has products of ``grad f(x)``
  with the two differences ``g - s`` and ``grad f(z) - grad f(x)``, and of these (Young's inequality with the weights
  3/8, 3/8 and 1); and ``||grad f(z) - grad f(x)|| <= L k gamma sqrt(d) G / eps``.
* ``L gamma^2 ||g h||^2`` is on average at most ``2 L gamma^2 (N/eps + sigma^2/(b eps^2) + L^2 rho^2 / eps^2)``, where
  ``2 L gamma / eps <= 1/8``. So ``gamma N / 2`` is left, and ``2 G / gamma`` times the sum over steps is the bound.

Its two terms in ``rho`` make up ``(11/3 + 1/4) G L^2 rho^2 / eps``. The paper has 45 for the first; its second term is
printed with ``L rho^2`` where units and proof ask for ``L^2 rho^2``, but the first has room for both.

Linear speed-up: as long as steps are small, a run is nearly that of a stochastic differential equation in the time
``gamma t``, whose noise goes with ``gamma / b``. With ``gamma`` proportional to ``b`` it is the same one for all ``b``,
if ``v_hat`` is: so runs begin with full gradients from far away, which settles ``v_hat`` for good, and radii are small,
as the climb goes along the full gradient the more, the larger the batch. When ``gamma`` may not grow any more, all that
a larger batch takes away is noise, of which there is little in these runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import LEVEL, Bound, Claim, Equal, Numbers, Parameters, Point, Power, interval
from . import adasam_setups, setups

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from ..stochastic import PseudoHuber


@cache
def _problem(height: float, width: float) -> PseudoHuber:
    return theory.PseudoHuber(height=height, width=width)


def _smoothness(p: Parameters) -> float:
    return float(p["height"] / p["width"] ** 2)


def _largest_lr(p: Parameters) -> float:
    """Return the largest learning rate that the theorem allows."""
    return float(p["eps"] / (16 * _smoothness(p)))


def _average(p: Parameters, seed: int) -> Numbers:
    problem = _problem(p["height"], p["width"])
    optimizer = adasam_setups.adasam(problem, p["pace"] * _largest_lr(p), p["rho"], (p["beta1"], 0.999), p["eps"])
    trace = theory.run(problem, optimizer, p["steps"], setups.seeded(seed), batch=p["batch"])
    return {"average": float(trace.squared_norms[:-1].mean())}


def _bounds(p: Parameters) -> Numbers:
    problem, beta1, eps, rho, steps = _problem(p["height"], p["width"]), p["beta1"], p["eps"], p["rho"], p["steps"]
    lr, smooth, most, d = p["pace"] * _largest_lr(p), _smoothness(p), p["height"] / p["width"], problem.dimension
    gap, k = float(problem.value(problem.start())) - problem.minimum, beta1 / (1 - beta1)
    fall = 2 * most * gap / (lr * steps) + 2 * most**3 / ((1 - beta1) * steps) * d * (1 / eps - 1 / most)
    noise = most * lr * smooth / eps * problem.noise / (p["batch"] * eps)
    climb = most * smooth**2 * rho**2 / eps
    drift = lr * smooth * most**3 / steps * d * (eps**-2 - most**-2)
    slip = (lr * smooth * k) ** 2 * d * most**3 / eps**3
    squares = 8 * lr * smooth / eps * climb
    return {
        "theorem": fall + 8 * noise + 45 * climb + squares + 2 * (4 + k**2) * drift + 6 * slip,
        "bound": fall + 4 * noise + 4 * climb + 2 * k**2 * drift + 4 * slip,
    }


_BASE = {
    "height": 1.0,
    "width": 1.0,
    "beta1": 0.0,
    "eps": 0.5,
    "batch": 4,
    "rho": 0.05,
    "pace": 1.0,
    "steps": 200,
}


def _other(p: Parameters) -> str:
    """Return what a setting has that the base has not."""
    if p["height"] != 1 or p["width"] != 1:
        return f"L {_smoothness(p):g}, G {p['height'] / p['width']:g}"
    return ", ".join(f"{name} {value:g}" for name, value in p.items() if value != _BASE[name]) or "base"


def _draw_bounds(points: Sequence[Point], axes: Any) -> None:
    for i, point in enumerate(points):
        values = point.values("average")
        low, high = interval(values, LEVEL)
        axes.vlines(i, low, high, color="C0")
        axes.plot(i, fmean(values), "o", color="C0", markersize=3, label="" if i else "measured")
        for name, colour, whose in (("bound", "C1", "ours"), ("theorem", "C2", "paper")):
            label = "" if i else f"bound, {whose}"
            axes.plot([i - 0.3, i + 0.3], [point.predicted[name]] * 2, colour, linewidth=1, label=label)
    axes.set_xticks(range(len(points)), [_other(point.parameters) for point in points], fontsize=6, rotation=90)
    axes.set(yscale="log", ylabel="average of |grad f|^2")
    axes.legend(fontsize=7, frameon=False, loc="lower left")


BOUND = Claim(
    id="adasam-bound",
    source=f"{adasam_setups.SUN}, Theorem 3.6, with L^2 for L in the third term of Phi; the sharper bound is ours",
    statement="The squared gradients of AdaSAM with a constant learning rate up to eps/(16 L) are on average at most "
    "what the paper's theorem says, once its term (8 G gamma L / eps) L rho^2 / eps is corrected to L^2 rho^2, and at "
    "most the sharper bound here.",
    formula="gamma <= eps/(16 L), k = beta1/(1 - beta1): (1/T) sum E ||grad f(x_t)||^2 <= 2 G (f(x_0) - f*) / (gamma T)"
    " + 2 G^3 d (1/eps - 1/G) / ((1 - beta1) T) + 4 G gamma L sigma^2 / (b eps^2) + 4 G L^2 rho^2 / eps "
    "+ 2 k^2 gamma L G^3 d (1/eps^2 - 1/G^2) / T + 4 gamma^2 L^2 k^2 d G^3 / eps^3; "
    "in the paper 8, 45, 2 (4 + k^2) and 6 for 4, 4, 2 k^2 and 4, and the term (8 G gamma L / eps) L^2 rho^2 / eps",
    grid=tuple(
        {**_BASE, **other}
        for other in (
            {},
            {"beta1": 0.5},
            {"beta1": 0.9},
            {"eps": 0.1},
            {"eps": 1.0},
            {"batch": 1},
            {"batch": 16},
            {"rho": 0.005},
            {"rho": 0.5},
            {"pace": 0.3},
            {"steps": 50},
            {"steps": 1000},
            {"height": 2.0, "width": 2.0},  # L = 1/2, G = 1
            {"height": 3.0, "width": 0.5, "eps": 4.0},  # L = 12, G = 6
            {"height": 0.5, "width": 2.0, "eps": 0.1},  # L = 1/8, G = 1/4
        )
    ),
    predict=_bounds,
    simulate=_average,
    checks=(Bound("average", "<=", "theorem"), Bound("average", "<=", "bound")),
    seeds=20,
    plot=_draw_bounds,
)


def _settled(p: Parameters, lr: float, rho: float) -> tuple[PseudoHuber, Optimizer, float]:
    """Return an optimizer whose ``v_hat`` will stay as it is, and the squared gradient where it is now.

    It has taken ``warm`` steps with full gradients at the largest learning rate, from far away. As ``beta2 = 0.9``,
    they made ``v_hat`` larger than any average of squared gradients near the minimum, noise and all.
    """
    problem = _problem(p["height"], p["width"])
    optimizer = adasam_setups.adasam(problem, _largest_lr(p), rho, (0.0, 0.9), p["eps"])
    theory.run(problem, optimizer, p["warm"], batch=None)
    (group,) = optimizer.param_groups
    group["lr"] = adasam_setups.capped(lr, _largest_lr(p))
    return problem, optimizer, float(problem.gradient(group["params"][0].detach()).square().sum())


def _steps(p: Parameters, batch: int, samples: int, seed: int) -> float:
    """Return after how many steps the running average of squared gradients is half the first, by interpolation."""
    import torch

    problem, optimizer, first = _settled(p, *adasam_setups.schedules(p["c"], batch, samples))
    generator, total, before, done = setups.seeded(seed), 0.0, first, 0
    while done < p["steps"]:
        block = min(50 if batch > 4 else 400, p["steps"] - done)
        norms = theory.run(problem, optimizer, block, generator, batch=batch).squared_norms[:-1]
        averages: Tensor = (total + norms.cumsum(0)) / torch.arange(done + 1, done + block + 1)
        for i, average in enumerate(averages.tolist(), done):
            if average <= first / 2:
                return float(i + (before - first / 2) / (before - average))
            before = average
        total, done = total + float(norms.sum()), done + block
    return math.inf


_SAMPLES = 2**14
_SPEED_UP = {"height": 2.0, "width": 2.0, "eps": 0.4, "c": 0.05, "warm": 120}
_SPEED_UP_SCHEDULES = "bT = 2^14, gamma = 0.05 sqrt(b/T), which is eps/(32 L) at b = 64, rho = 1 / sqrt(bT)"


def _draw_speed_up(points: Sequence[Point], axes: Any) -> None:
    batches = [point.parameters["batch"] for point in points]
    runs = [point.values("steps") for point in points]
    for batch, steps in zip(batches, runs, strict=True):
        axes.plot([batch] * len(steps), steps, "o", color="C0", markersize=2, alpha=0.3)
    product = fmean(batch * fmean(steps) for batch, steps in zip(batches, runs, strict=True))
    axes.plot(batches, [product / batch for batch in batches], "--", color="C1", linewidth=1, label="1/b")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="steps, of all runs")
    axes.set_xticks(batches, [f"{batch}" for batch in batches], fontsize=8)
    axes.minorticks_off()
    axes.legend(fontsize=7, frameon=False)


SPEED_UP = Claim(
    id="adasam-linear-speed-up",
    source=f"{adasam_setups.SUN}, Corollary 3.7: schedules and the order 1/sqrt(bT); constants and problem are ours",
    statement="With a learning rate of sqrt(b/T) and a radius of 1/sqrt(bT), up to constants, the steps in which AdaSAM"
    " brings the running average of squared gradients down to half of the first go with 1/b, from b = 1 to 64.",
    formula=f"{_SPEED_UP_SCHEDULES}: steps until (1/t) sum ||grad f(x_s)||^2 is half of the first ~ 1/b",
    grid=tuple({**_SPEED_UP, "batch": 2**i, "steps": _SAMPLES // 2**i} for i in range(7)),
    predict=lambda p: {},
    simulate=lambda p, seed: {"steps": _steps(p, p["batch"], p["batch"] * p["steps"], seed)},
    checks=(Power("steps", over="batch", power=-1.0, within=0.1),),
    seeds=20,
    plot=_draw_speed_up,
)


def _too_large(p: Parameters, seed: int) -> Numbers:
    problem, optimizer, first = _settled(p, *adasam_setups.schedules(p["c"], 64, _SAMPLES))
    trace = theory.run(problem, optimizer, p["steps"], setups.seeded(seed), batch=p["batch"])
    return {"average": float(trace.squared_norms[:-1].mean()) / first}


NEEDS_SCHEDULE = Claim(
    id="adasam-speed-up-needs-schedule",
    source="ours",
    statement="The speed-up comes from the learning rate, which small batches cannot have: with that of b = 64 a batch "
    "of one has not brought the running average of squared gradients down to half of the first in 30 times the steps.",
    formula=f"{_SPEED_UP_SCHEDULES}; with gamma and rho of b = 64 and samples of b = 1: "
    "(1/t) sum ||grad f(x_s)||^2 >= ||grad f(x_0)||^2 / 2 at t = 1600; b = 64 takes 54 steps or so",
    grid=({**_SPEED_UP, "batch": 1, "steps": 1600},),
    predict=lambda p: {"half": 0.5},
    simulate=_too_large,
    checks=(Bound("average", ">=", "half"),),
    seeds=20,
)


def _end(p: Parameters) -> float:
    """Return the batch size at which the learning rate is the largest."""
    return float(_largest_lr(p) * math.sqrt(p["samples"]) / p["c"])


def _around_end(p: Parameters, seed: int) -> Numbers:
    end = round(_end(p))
    before, at, beyond = (_steps(p, b, p["samples"], seed) for b in (end // 8, end, 4 * end))
    return {"end": end // 8 * before / beyond, "gain": at / beyond}


def _draw_end(points: Sequence[Point], axes: Any) -> None:
    p = points[0].parameters
    end = round(_end(p))
    batches = [end * 2**i // 16 for i in range(8)]
    steps = [[_steps(p, b, p["samples"], seed) for b in batches] for seed in range(2)]
    for i, run in enumerate(steps):
        axes.plot(batches, run, "o", color="C0", markersize=3, label="" if i else "measured, 2 runs")
    last = fmean(run[-1] for run in steps)
    axes.plot(batches, [last * max(1, end / b) for b in batches], "--", color="C1", linewidth=1, label="1/b, then flat")
    axes.axvline(end, color="grey", linewidth=1, linestyle=":", label=f"predicted end, b = {end}")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="steps")
    axes.set_xticks(batches, [f"{b}" for b in batches], fontsize=8)
    axes.minorticks_off()
    axes.legend(fontsize=7, frameon=False)


SPEED_UP_ENDS = Claim(
    id="adasam-speed-up-ends",
    source=f"{adasam_setups.SUN}: schedules of Corollary 3.7, condition of Theorem 3.6; where the end is, is ours",
    statement="If the learning rate is held at the theorem's largest, eps/(16 L), the linear speed-up ends at the "
    "batch size B = eps sqrt(bT) / (16 L c), here 16, 32, 64 and 96, in every run: B/8 needs 8 times as many steps as "
    "4 B, and B as many.",
    formula="gamma = min{c sqrt(b/T), eps/(16 L)}, bT = N, B = eps sqrt(N) / (16 L c): "
    "(B/8) steps(B/8) / steps(4 B) = B, and steps(B) / steps(4 B) = 1",
    grid=tuple(
        {"height": h, "width": w, "eps": e, "c": c, "samples": n, "warm": warm, "steps": 4000}
        for h, w, e, c, n, warm in (
            (2.0, 2.0, 0.2, 0.05, 2**14, 140),  # 64
            (2.0, 2.0, 0.2, 0.2, 2**14, 120),  # 16
            (4.0, 2.0, 0.4, 0.05, 2**12, 140),  # 32, L = 1, G = 2
            (3.0, 3.0, 0.2, 0.05, 2**14, 100),  # 96, L = 1/3
        )
    ),
    predict=lambda p: {"end": _end(p), "gain": 1.0},
    simulate=_around_end,
    checks=(Equal("end", "end", within=0.15, surely=True), Equal("gain", "gain", within=0.15, surely=True)),
    seeds=20,
    plot=_draw_end,
)

CLAIMS = (BOUND, SPEED_UP, NEEDS_SCHEDULE, SPEED_UP_ENDS)
