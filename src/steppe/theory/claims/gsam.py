"""GSAM with a growing batch size or a decaying learning rate: Harada and Iiduka, arXiv 2409.09984.

That either lets gradients shrink, up to what rho leaves, is theirs; bounds, constants, floors and proofs are ours. Let
G be the full gradient at x, g that of a mini-batch of b_t, s the same at ``x + rho u`` with ``u = g / ||g||``, and
``v = g - (<g, s> / ||s||^2) s`` the part of g that is orthogonal to s: ``x+ = x - eta_t d`` with ``d = s - alpha v``.

* Bound, for components that are L-smooth with gradients of variance sigma^2. ``||s - g|| <= L rho``. The part of
  ``s - g`` that is orthogonal to s is -v, and ``d - g`` differs from it by having ``1 + alpha`` times that: so
  ``||d - g|| <= c = L rho max{1, |1 + alpha|}``. The mean m of d is within c of G, and the standard deviation of d, a
  norm, is at most ``sd_t = sigma / sqrt(b_t) + c``. By smoothness, with ``-2 <G, m> = ||G - m||^2 - ||G||^2 - ||m||^2``
  and ``eta_t L <= 1``, ``E f(x+) <= f(x) - eta_t ||G||^2 / 2 + eta_t c^2 / 2 + L eta_t^2 sd_t^2 / 2``. Sum over steps.
* Noise floor, for ``f = 1/2 sum h_j x_j^2`` and normal noise of variance ``z^2 = sigma^2 / (n b)`` in each of n
  directions. Without a climb x_j is an AR(1) process: ``E x_j^2`` becomes ``(1 - eta_t h_j)^2 E x_j^2 + eta_t^2 z^2``;
  it stays at ``eta z^2 / (h_j (2 - eta h_j))``.
* What the climb adds. To first order in rho, ``d = g + rho phi`` with ``phi_j = ((1 + alpha) h_j - alpha r) u_j`` and
  ``r = sum h_k u_k^2``, as ``s = g + rho H u`` and ``v = -rho (H u - r u)``. In the stationary law of rho = 0 all g_j
  are independent and normal, of variance ``S_j = 2 z^2 / (2 - eta h_j)``, and ``E [x_j - eta g_j | g] = -eta g_j / 2``.
  So the variance of x_j changes by ``eta^2 rho E [g_j phi_j] / (eta h_j (2 - eta h_j))``, that is by the factor
  ``1 + rho E [g_j phi_j] / z^2``. Expectations are integrals over w, by ``1 / ||g|| = 2 / sqrt(pi) int exp(-w^2
  ||g||^2) dw`` and ``1 / ||g||^3 = 4 / sqrt(pi) int w^2 exp(-w^2 ||g||^2) dw``, from 0 on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Point, Power
from ..plots import curves, intervals
from . import gsam_setups as common

if TYPE_CHECKING:
    from ..stochastic import NoisyQuadratic


def _problem(p: Parameters) -> Any:
    if p["problem"] == "pseudo-huber":
        return theory.PseudoHuber()
    return theory.SineValley(rho=p["rho"], sigma=1.0) if p["problem"] == "sine" else theory.NoisyQuadratic(sigma=1.0)


def _average(p: Parameters, seed: int) -> Numbers:
    squared, rates = common.scheduled(_problem(p), p, seed).squared_norms[:-1].tolist(), common.rates(p)
    return {"average": sum(eta * g for eta, g in zip(rates, squared, strict=True)) / sum(rates)}


def _average_bound(p: Parameters) -> Numbers:
    problem, rates = _problem(p), common.rates(p)  # L = 1
    gap = float(problem.value(problem.start())) - problem.minimum
    off = p["rho"] * max(1.0, abs(1 + p["alpha"]))
    deviations = [math.sqrt(problem.noise / b) + off for b in common.sizes(p)]
    noise = sum((eta * sd) ** 2 for eta, sd in zip(rates, deviations, strict=True))
    return {"bound": (2 * gap + noise) / sum(rates) + off**2}


def _named(p: Parameters) -> str:
    return f"{p['problem']}, {p['schedule']}{', growing b' if 'growth' in p else ''}"


_CONSTANT = {"problem": "quadratic", "schedule": "constant", "lr": 0.25, "batch": 4, "steps": 200}
_GROWING = {**_CONSTANT, "growth": 2, "every": 40}

BOUND = Claim(
    id="gsam-bound",
    source=f"ours; that GSAM converges with either schedule, for small rho, is in {common.HARADA}",
    statement="If the components are smooth, the squared gradients of GSAM, weighted by learning rates, are small on "
    "average, up to a term of order rho^2 and what batch sizes and learning rates leave of the noise.",
    formula="eta_t <= 1/L, c = L rho max{1, |1 + alpha|}: sum eta_t E ||grad f(x_t)||^2 / sum eta_t <= "
    "[2 (f(x_0) - f*) + L sum eta_t^2 (sigma / sqrt(b_t) + c)^2] / sum eta_t + c^2",
    grid=(
        {**_CONSTANT, "alpha": 0.3, "rho": 0.1},
        {**_GROWING, "alpha": 0.3, "rho": 0.1},
        {**_CONSTANT, "alpha": 0.0, "rho": 0.1, "schedule": "1/sqrt(t+1)", "lr": 1.0},
        {**_CONSTANT, "alpha": -0.5, "rho": 0.1, "schedule": "cosine"},
        {**_GROWING, "alpha": 1.0, "rho": 0.01, "schedule": "1/sqrt(t+1)", "lr": 1.0},
        {**_CONSTANT, "alpha": 0.3, "rho": 0.1, "schedule": "cosine", "problem": "pseudo-huber", "batch": 1},
        {**_GROWING, "alpha": 0.3, "rho": 0.5, "schedule": "linear", "problem": "pseudo-huber"},
        {**_GROWING, "alpha": 0.4, "rho": 0.2, "schedule": "1/sqrt(t+1)", "problem": "sine", "lr": 1.0},
    ),
    predict=_average_bound,
    simulate=_average,
    checks=(Bound("average", "<=", "bound"),),
    seeds=20,
    plot=common.levels("average", _named),
)


def _effects(eigenvalues: Sequence[float], z: float, lr: float, alpha: float) -> list[float]:
    """Return ``E [g_j phi_j] / z^2``: a climb by rho multiplies the variance of x_j by 1 + rho times that."""
    variances = [2 / (2 - lr * h) for h in eigenvalues]  # in units of z^2
    first, second, cells = [0.0] * len(variances), [[0.0] * len(variances) for _ in variances], 40
    for i in range(cells):  # w = tan(angle) makes the rule of midpoints exact to rounding
        angle = (i + 0.5) * math.pi / 2 / cells
        w, dw = math.tan(angle), math.pi / 2 / cells / math.cos(angle) ** 2
        inner = [v / (1 + 2 * w**2 * v) for v in variances]
        weight = 2 / math.sqrt(math.pi) * dw / math.sqrt(math.prod(1 + 2 * w**2 * v for v in variances))
        for j, a in enumerate(inner):
            first[j] += weight * a
            for k, b in enumerate(inner):
                second[j][k] += 2 * w**2 * weight * a * b * (3 if j == k else 1)
    return [
        ((1 + alpha) * h * first[j] - alpha * sum(q * e for q, e in zip(eigenvalues, second[j], strict=True))) / z
        for j, h in enumerate(eigenvalues)
    ]


def _bowl(p: Parameters) -> NoisyQuadratic:
    """Return a quadratic in many dimensions: squares average out over them, and a step costs hardly more."""
    even = [0.3 + 0.7 * i / 39 for i in range(40)]
    return theory.NoisyQuadratic([1.0] * 8 + [0.1] * 16 if p.get("spectrum") == "steep" else even, sigma=1.0)


def _deviation(problem: NoisyQuadratic, batch: int) -> float:
    """Return z, the root of the variance of a mini-batch's noise in one direction."""
    return problem.sigma / math.sqrt(problem.dimension * batch)


def _floor(p: Parameters) -> Numbers:
    """Return the stationary mean of the squared gradient, and what part of it the climb adds."""
    problem, lr = _bowl(p), p["lr"]
    eigenvalues, z = problem.eigenvalues.tolist(), _deviation(problem, p["batch"])
    plain = [lr * h * z**2 / (2 - lr * h) for h in eigenvalues]
    effects = _effects(eigenvalues, z, lr, p["alpha"])
    added = p["rho"] * sum(value * effect for value, effect in zip(plain, effects, strict=True))
    return {"squared gradient": sum(plain) + added, "rise": added / sum(plain)}


def _exact(p: Parameters) -> list[float]:
    """Return ``E ||grad f(x_t)||^2`` for rho = 0, from the minimum, at the start and after every step."""
    problem = _bowl(p)
    eigenvalues = problem.eigenvalues.tolist()
    moments, found = [0.0] * len(eigenvalues), [0.0]
    for eta, b in zip(common.rates(p), common.sizes(p), strict=True):
        added = (eta * _deviation(problem, b)) ** 2
        moments = [(1 - eta * h) ** 2 * moment + added for h, moment in zip(eigenvalues, moments, strict=True)]
        found.append(sum(h**2 * moment for h, moment in zip(eigenvalues, moments, strict=True)))
    return found


def _tail(p: Parameters, seed: int, first: int, rho: float | None = None) -> float:
    """Return the mean squared gradient from iterate ``first`` on, of a run from the minimum."""
    problem = _bowl(p)
    return float(common.scheduled(problem, p, seed, problem.minimisers[0], rho).squared_norms[first:].mean())


NOISE_FLOOR = Claim(
    id="gsam-noise-floor",
    source="ours",
    statement="With a constant batch size and learning rate GSAM's squared gradients stop falling at a noise floor, "
    "which goes with one over the batch size and, for small learning rates, with the learning rate.",
    formula="f = 1/2 sum_j h_j x_j^2 in n directions, rho -> 0: E ||grad f||^2 -> (sigma^2 / (n b)) sum_j eta h_j / "
    "(2 - eta h_j)",
    grid=tuple(
        {"alpha": 0.4, "rho": 0.001, "schedule": "constant", "lr": lr, "batch": batch, "steps": steps}
        for lr, steps in ((0.5, 120), (0.1, 400))
        for batch in (1, 8, 64)
    ),
    predict=_floor,
    simulate=lambda p, seed: {"squared gradient": _tail(p, seed, first=p["steps"] // 5)},
    checks=(
        Equal("squared gradient", "squared gradient", within=0.1),
        Power("squared gradient", over="batch", power=-1.0, within=0.05, each=("lr",)),
    ),
    seeds=20,
    plot=curves("batch", "squared gradient", "squared gradient", each=("lr",)),
)


def _rise(p: Parameters, seed: int) -> Numbers:
    first = p["steps"] // 5
    plain = _exact({**p, "steps": 1000})[-1]
    return {"rise": (_tail(p, seed, first) - _tail(p, seed, first, rho=0.0)) / plain}


CLIMB = Claim(
    id="gsam-noise-floor-rises",
    source="ours",
    statement="The climb raises the noise floor, by a part that is proportional to rho over the noise and linear in "
    "alpha: a positive alpha raises it more, a negative one less.",
    formula="E ||grad f||^2 - that of SGD = rho sum_j eta h_j / (2 - eta h_j) E [g_j phi_j] to first order, "
    "phi_j = ((1 + alpha) h_j - alpha r) g_j / ||g||, r = sum_k h_k g_k^2 / ||g||^2",
    grid=tuple(
        {"spectrum": "steep", "alpha": alpha, "rho": 0.003, **_CONSTANT, "lr": 0.4, "batch": 1, "steps": 240}
        for alpha in (-0.8, 0.0, 0.8, 1.6)
    ),
    predict=_floor,
    simulate=_rise,
    checks=(Equal("rise", "rise", within=0.2),),
    seeds=20,
    plot=intervals("rise", "rise", ("alpha",)),
)


def _both(over: str, name: str) -> Callable[[Sequence[Point], Any], None]:
    """Return what draws the tails with a schedule and without it over a parameter, with what is predicted as lines."""

    def draw(points: Sequence[Point], axes: Any) -> None:
        x = [point.parameters[over] for point in points]
        for quantity, colour in ((name, "#4477AA"), ("constant", "#EE6677")):
            axes.plot(x, [fmean(point.values(quantity)) for point in points], "o", color=colour, label=quantity)
            axes.plot(x, [point.predicted[quantity] for point in points], "--", color=colour, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=over, ylabel="squared gradient")
        axes.legend(fontsize=7, frameon=False)

    return draw


def _without_growth(p: Parameters) -> Parameters:
    return {name: value for name, value in p.items() if name != "growth"}


def _growing(p: Parameters, seed: int) -> Numbers:
    first = p["steps"] - p["every"] // 2
    return {"growing": _tail(p, seed, first), "constant": _tail(_without_growth(p), seed, first)}


def _growing_predict(p: Parameters) -> Numbers:
    first = p["steps"] - p["every"] // 2
    return {"growing": fmean(_exact(p)[first:]), "constant": fmean(_exact(_without_growth(p))[first:])}


GROWING = Claim(
    id="gsam-growing-batch",
    source=f"ours; that a growing batch size makes GSAM converge, for small rho, is in {common.HARADA}",
    statement="With a growing batch size and a constant learning rate the noise floor goes: the squared gradient falls "
    "like one over the batch size, while a constant batch size stays at its floor.",
    formula="b doubles every 60 steps, rho -> 0: E ||grad f(x_T)||^2 ~ 1/b_T; both exactly by E x_j^2 <- "
    "(1 - eta h_j)^2 E x_j^2 + eta^2 sigma^2 / (n b_t)",
    grid=tuple(
        {**_GROWING, "alpha": 0.4, "rho": 0.001, "lr": 0.5, "every": 60, "steps": 60 * (k + 1), "last batch": 4 * 2**k}
        for k in (1, 3, 5)
    ),
    predict=_growing_predict,
    simulate=_growing,
    checks=(
        Equal("growing", "growing", within=0.15),
        Equal("constant", "constant", within=0.15),
        Power("growing", over="last batch", power=-1.0, within=0.1),
    ),
    seeds=20,
    plot=_both("last batch", "growing"),
)


def _decaying(p: Parameters, seed: int) -> Numbers:
    first = p["steps"] // 2
    return {"decaying": _tail(p, seed, first), "constant": _tail({**p, "schedule": "constant"}, seed, first)}


def _decaying_predict(p: Parameters) -> Numbers:
    first = p["steps"] // 2
    constant = _exact({**p, "schedule": "constant"})
    return {"decaying": fmean(_exact(p)[first:]), "constant": fmean(constant[first:])}


_DECAYS = {**_CONSTANT, "schedule": "1/sqrt(t+1)", "lr": 1.0, "alpha": 0.4, "rho": 0.0005, "rho falls": "with lr"}

DECAYING = Claim(
    id="gsam-decaying-lr",
    source=f"ours; that a decaying learning rate makes GSAM converge, for small rho, is in {common.HARADA}, and rho in "
    f"proportion to it in {common.ZHUANG}",
    statement="With a decaying learning rate, rho in proportion to it, and a constant batch size the noise floor goes: "
    "the squared gradient falls like the learning rate, while a constant one stays at its floor.",
    formula="eta_t = eta / sqrt(t+1): E ||grad f(x_T)||^2 ~ eta_T; both exactly by "
    "E x_j^2 <- (1 - eta_t h_j)^2 E x_j^2 + eta_t^2 sigma^2 / (n b)",
    grid=tuple({**_DECAYS, "steps": t, "last lr": t**-0.5} for t in (50, 200, 800)),
    predict=_decaying_predict,
    simulate=_decaying,
    checks=(Equal("decaying", "decaying", within=0.2), Equal("constant", "constant", within=0.2)),
    seeds=20,
    plot=_both("last lr", "decaying"),
)

CLAIMS = (BOUND, NOISE_FLOOR, CLIMB, GROWING, DECAYING)
