"""What a constant radius leaves of GSAM's gradients, with a growing batch size, a decaying learning rate, or both.

That convergence asks for a small rho is in Harada and Iiduka, arXiv 2409.09984; examples and proofs are ours. ``g``,
``s``, ``v``, ``d`` and ``u`` are those of the claims on GSAM's bound and floors. In one dimension v is 0 and GSAM is
SAM: all examples have more.

* Sine valley: ``f = beta/omega^2 sin(omega x) + beta/4 ||y||^2`` with ``omega = 5 pi / (3 rho)``. Let e be how far x is
  right of a minimum (left of it all is mirrored). A climb along x by rho is one by ``-rho/5``, up to a period: the
  x-component of s is ``S(e) = beta/omega sin(omega (e - rho/5))``, which pushes e up if below ``rho/5`` and down if
  above. As long as mini-batch noise is at most ``0.005 beta rho``, ``eta beta <= 0.29`` and ``-0.2 <= alpha <= 0.4``, a
  run that comes into ``rho/10 <= e <= 4 rho/10``, ``||y|| <= 0.04 rho`` stays there, so that ``||grad f||^2 >= (3 beta
  rho / (10 pi))^2``, a third of what SAM without noise keeps. In units of ``beta rho``: the x-component of g is between
  0.09 and 0.2, and s has along y ``K = 1 + beta rho / (2 ||g||)`` times the component of g, with K between 3.5 and 6.6.
  So v has at most 0.13 there, and y stays small. The climb then misses x by at most 0.04 rho, and v pushes x by at most
  ``0.2 |alpha|`` up and ``0.013 |alpha|`` down (if alpha is negative, down and up): together less than ``-S = 0.095``
  at the lower end, and than ``S = 0.165`` at the upper end. As ``e - eta S(e)`` grows with e, no jump leads out.
* Where s nearly vanishes v does not, unless g is parallel to s. Without noise and with a constant learning rate GSAM
  ends where x stays, ``s_x = alpha v_x``, and y becomes -y, ``eta (s_y - alpha v_y) = 2 y``. With a decaying learning
  rate and a constant batch size x ends where the mean of d is 0, with y = 0; a mean over normal noise is a sum over
  quantiles here. In both a positive alpha pushes up the slope.
* Two-cycle: on a quadratic, without noise, ``x = +-c`` along eigenvector j with ``c = eta h_j rho / (2 - eta h_j)``,
  where g is parallel to s, so that v = 0 and GSAM is SAM. Only that along the top eigenvector is stable; the proof is
  with the claims on the surrogate gap.
* Skewed noise ``z_i`` of probability ``p_i`` on a quadratic: the mean of d at x is ``H x + rho P`` to first order in
  rho, with ``P = E ((1 + alpha) H - alpha r) u``, ``r = <u, H u>``. The mean of iterates follows ``m <- m - eta_t (H m
  + rho P)``, where ``u = g / ||g||`` is that of ``g = z_i + H x`` with the covariance that x has for rho = 0, up to
  higher orders of it. The larger a mini-batch, the less skewed is its mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Point, Power
from ..plots import intervals
from . import gsam_setups as common
from . import setups

if TYPE_CHECKING:
    from ..shifted import SineValley

_NOISE = 0.15  # sigma in units of beta rho


def _valley(p: Parameters) -> SineValley:
    return theory.SineValley(beta=1.0, rho=p["rho"], sigma=_NOISE * p["rho"])


def _sine(p: Parameters, seed: int) -> Numbers:
    problem = _valley(p)
    trace = common.scheduled(problem, p, seed, problem.start(setups.seeded(seed)))
    return {"squared gradient": float(trace.squared_norms[-p["kept"] :].mean())}


_GROWING: Parameters = {"name": "growing batch", "schedule": "constant", "lr": 0.25, "batch": 1, "growth": 8}
_DECAYING: Parameters = {"name": "decaying lr", "schedule": "1/sqrt(t+1)", "lr": 0.5, "batch": 256}
_BOTH: Parameters = {**_GROWING, "name": "both", "schedule": "1/sqrt(t+1)", "lr": 0.5}

_CALM: Parameters = {"alpha": 0.4, "rho": 1.0, "every": 50, "steps": 300}


def _draw_sine(points: Sequence[Point], axes: Any) -> None:
    ways = {"growing batch": (_GROWING, "#4477AA"), "decaying lr": (_DECAYING, "#228833"), "both": (_BOTH, "#CCBB44")}
    settings = {name: ({**way, **_CALM}, colour) for name, (way, colour) in ways.items()}
    settings["growing batch, rho falls"] = ({**_GROWING, **_CALM, "rho falls": "by itself"}, "#EE6677")
    problem = _valley(_CALM)
    runs = {name: (common.scheduled(problem, p, 0, [0.1, 1.0, 1.0]), colour) for name, (p, colour) in settings.items()}
    common.courses(runs, axes)
    axes.axhline(9 / (100 * math.pi**2), linestyle="--", color="grey", linewidth=1)
    axes.set_ylim(1e-7, 3)
    axes.legend(fontsize=7, frameon=False, loc="lower left")


RHO_FLOOR = Claim(
    id="gsam-rho-floor",
    source=f"ours; that convergence asks for a small rho is in {common.HARADA}",
    statement="With a constant rho neither a growing batch size nor a decaying learning rate nor both make GSAM's "
    "gradients vanish, however long: on a sine that is made for rho the squared gradient stays of order rho^2.",
    formula="f = A sin(5 pi x / (3 rho)) + beta/4 ||y||^2, A = 9 beta rho^2 / (25 pi^2), sigma = 0.15 beta rho: "
    "||grad f(x_T)||^2 >= 9/(100 pi^2) beta^2 rho^2, and it goes with rho^2",
    grid=tuple(
        {**way, "alpha": 0.4, "rho": rho, "every": steps // 6, "steps": steps, "kept": 25}
        for way in (_GROWING, _DECAYING, _BOTH)
        for steps in (100, 200)
        for rho in (0.1, 1.0)
    ),
    predict=lambda p: {"floor": 9 / (100 * math.pi**2) * p["rho"] ** 2},
    simulate=_sine,
    checks=(
        Bound("squared gradient", ">=", "floor", surely=True),
        Power("squared gradient", over="rho", power=2.0, within=0.05, each=("name",)),
    ),
    seeds=20,
    plot=_draw_sine,
)


def _step(alpha: float, along: float, across: float, sharp: float) -> tuple[float, float]:
    """Return d on the valley in units of beta and rho, along x and across, from g and the x-component of s."""
    side = across * (1 + 0.5 / math.hypot(along, across))
    parallel = (along * sharp + across * side) / (sharp**2 + side**2)
    return sharp - alpha * (along - parallel * sharp), side - alpha * (across - parallel * side)


def _slope(e: float) -> float:
    """Return the derivative of f along x, in units of beta and rho."""
    return 3 / (5 * math.pi) * math.sin(5 * math.pi / 3 * e)


def _crossing(p: Parameters) -> Numbers:
    """Solve for the two-cycle across the valley."""
    from scipy.optimize import root

    def misses(unknown: Sequence[float]) -> tuple[float, float]:
        e, across = unknown
        along = _slope(e)
        first, second = _step(p["alpha"], along, across, _slope(e + along / math.hypot(along, across)))
        return first, p["lr"] * second - 4 * across

    e, across = root(misses, (0.2 + math.copysign(0.01, p["alpha"]), 0.005), tol=1e-12).x
    return {"squared gradient": p["rho"] ** 2 * (_slope(float(e)) ** 2 + float(across) ** 2)}


GROWING_FLOOR = Claim(
    id="gsam-rho-floor-growing-batch",
    source="ours",
    statement="On a sine that is made for rho, with a growing batch size and a constant learning rate, GSAM ends "
    "jumping to and fro across the valley; a positive alpha keeps more of the gradient than SAM, a negative one less.",
    formula="f as in gsam-rho-floor, b_T = n: ||grad f(x_T)||^2 = that of the two-cycle +-y with s_x = alpha v_x and "
    "eta (s_y - alpha v_y) = 2 y; for SAM it is 0.027357 beta^2 rho^2",
    grid=tuple(
        {**_GROWING, "lr": lr, "alpha": alpha, "rho": 1.0, "every": 50, "steps": 300, "kept": 2}
        for lr, alpha in ((0.25, -0.2), (0.25, 0.2), (0.25, 0.4), (0.15, 0.4))
    ),
    predict=_crossing,
    simulate=_sine,
    checks=(Equal("squared gradient", "squared gradient", within=1e-3, surely=True),),
    seeds=20,
    plot=intervals("squared gradient", "squared gradient", ("lr", "alpha")),
)


def _mean_step(p: Parameters, e: float) -> float:
    """Return the x-component of the mean of d at a distance e from the minimum, in units of beta and rho."""
    cells, deviation, total = 48, _NOISE / math.sqrt(3 * p["batch"]), 0.0
    for i in range(cells):
        noise = deviation * NormalDist().inv_cdf((i + 0.5) / cells)
        along = _slope(e) + noise
        for k in range(cells):
            across = deviation * math.sqrt(-2 * math.log((k + 0.5) / cells))  # the length of noise in two directions
            total += _step(p["alpha"], along, across, _slope(e + along / math.hypot(along, across)) + noise)[0]
    return total / cells**2


def _resting_place(p: Parameters) -> Numbers:
    low, high = 0.1, 0.4
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _mean_step(p, middle) < 0 else (low, middle)
    return {"squared gradient": (p["rho"] * _slope(low)) ** 2}


DECAYING_FLOOR = Claim(
    id="gsam-rho-floor-decaying-lr",
    source="ours",
    statement="On a sine that is made for rho, with a decaying learning rate and a constant batch size, GSAM ends "
    "where its mean step vanishes: the higher up the slope, the larger alpha.",
    formula="f as in gsam-rho-floor, b = 256: ||grad f(x_T)||^2 -> that of the x with E d = 0; for SAM it is "
    "0.0275 beta^2 rho^2",
    grid=tuple(
        {**_DECAYING, "lr": 0.3, "alpha": alpha, "rho": 1.0, "steps": 400, "kept": 200}
        for alpha in (-0.2, 0.0, 0.2, 0.4)
    ),
    predict=_resting_place,
    simulate=_sine,
    checks=(Equal("squared gradient", "squared gradient", within=0.02, surely=True),),
    seeds=20,
    plot=intervals("squared gradient", "squared gradient", ("alpha",)),
)


def _two_cycle(p: Parameters, seed: int) -> Numbers:
    problem = theory.NoisyQuadratic([1.0, 0.6, 0.3], sigma=1.0)
    trace = common.scheduled(problem, p, seed, problem.start(setups.seeded(seed)))
    return {"squared gradient": float(trace.squared_norms[-2:].mean())}


def _two_cycle_predict(p: Parameters) -> Numbers:
    return {"squared gradient": (p["lr"] * p["rho"] / (2 - p["lr"])) ** 2}


def _draw_two_cycles(points: Sequence[Point], axes: Any) -> None:
    problem, colours = theory.NoisyQuadratic([1.0, 0.6, 0.3], sigma=1.0), ("#4477AA", "#EE6677", "#228833")
    runs = {}
    for point, colour in zip(points, colours, strict=False):
        p = point.parameters
        runs[f"rho={p['rho']}, lr={p['lr']}"] = (common.scheduled(problem, p, 0), colour)
        axes.axhline(point.predicted["squared gradient"], linestyle="--", color=colour, linewidth=1)
    common.courses(runs, axes)
    axes.legend(fontsize=7, frameon=False)


TWO_CYCLE = Claim(
    id="gsam-growing-batch-two-cycle",
    source="ours",
    statement="On a quadratic a growing batch size with a constant learning rate takes GSAM, from noise, to the "
    "two-cycle of SAM without noise, whose squared gradient goes with rho^2.",
    formula="f = 1/2 sum_j h_j x_j^2 with largest h = 1, b_T = n: ||grad f(x_T)||^2 = (eta rho / (2 - eta))^2",
    grid=tuple(
        {**_GROWING, "alpha": alpha, "lr": lr, "rho": rho, "every": 40, "steps": 240}
        for rho, lr, alpha in ((0.1, 0.5, 0.4), (1.0, 0.5, 0.4), (0.1, 0.25, 0.4), (0.1, 0.5, -0.4))
    ),
    predict=_two_cycle_predict,
    simulate=_two_cycle,
    checks=(Equal("squared gradient", "squared gradient", within=1e-3, surely=True),),
    seeds=20,
    plot=_draw_two_cycles,
)


def _shift(p: Parameters, seed: int) -> list[float]:
    """Return the gradient at the mean of iterates near the end, less that of SGD, whose expectation is 0."""
    problem, means = theory.SkewedQuadratic(), []
    for rho in (None, 0.0):
        trace = common.scheduled(problem, p, seed, rho=rho)
        means.append(trace.iterates[-p["kept"] :].mean(0))
    found: list[float] = problem.gradient(means[0] - means[1]).tolist()
    return found


def _skewed(p: Parameters, seed: int) -> Numbers:
    first, second = _shift(p, seed)
    return {"g1": first, "g2": second}


def _skewed_predict(p: Parameters) -> Numbers:
    import torch

    problem = theory.SkewedQuadratic()
    covariance = torch.einsum("i,ij,ik->jk", problem.probabilities, problem.noises, problem.noises)
    mean, spread, gradients = torch.zeros_like(problem.origin), torch.zeros_like(covariance), []
    for t, eta in enumerate(common.rates(p)):
        slope = problem.predicted_slope(p["alpha"], spread if t else None)
        mean = mean - eta * (problem.gradient(mean) - p["rho"] * slope)
        kept = torch.diag(1 - eta * problem.eigenvalues)
        spread = kept @ spread @ kept + eta**2 * covariance
        gradients.append(problem.gradient(mean))
    first, second = torch.stack(gradients[-p["kept"] :]).mean(0).tolist()
    return {"g1": first, "g2": second}


def _draw_shifts(points: Sequence[Point], axes: Any) -> None:
    for point, colour in zip(points, ("#4477AA", "#EE6677", "#228833", "#CCBB44"), strict=False):
        p, runs = point.parameters, [[one[name] / point.parameters["rho"] for one in point.measured] for name in _PARTS]
        axes.plot(*runs, ".", color=colour, markersize=3, label=f"alpha={p['alpha']}, rho={p['rho']}")
        axes.plot(*([point.predicted[name] / p["rho"]] for name in _PARTS), "+", color=colour, markersize=14)
    axes.plot([0], [0], "x", color="grey")
    axes.set(xlabel="g1 / rho", ylabel="g2 / rho")
    axes.legend(fontsize=6, frameon=False, loc="center right")


_PARTS = ("g1", "g2")

SKEWED = Claim(
    id="gsam-skewed-noise",
    source="ours",
    statement="With a constant batch size and rho a decaying learning rate does not take GSAM to the minimum of a "
    "quadratic with skewed noise: the gradient at the mean of iterates tends to a vector that is proportional to rho "
    "and linear in alpha.",
    formula="f = (x_1^2 + x_2^2 / 2) / 2, noise (1, 1), (1, -4), (-4, 1) with p = 0.6, 0.2, 0.2, b = 1: "
    "grad f(E x_t) -> -rho E [((1 + alpha) H - alpha r) u], u = z / ||z||, r = <u, H u>",
    grid=tuple(
        {**_DECAYING, "lr": 0.2, "batch": 1, "alpha": alpha, "rho": rho, "steps": 500, "kept": 200}
        for rho, alpha in ((0.02, 0.0), (0.02, 1.0), (0.02, -0.5), (0.002, 1.0))
    ),
    predict=_skewed_predict,
    simulate=_skewed,
    checks=tuple(Equal(name, name, within=0.06, unit="rho") for name in _PARTS),
    seeds=20,
    plot=_draw_shifts,
)


def _rest(p: Parameters, seed: int) -> Numbers:
    """Return the squared gradient at the end; where noise is skewed, at the mean of iterates."""
    if p["problem"] == "skewed noise":
        return {"squared gradient": sum(g**2 for g in _shift(p, seed))}
    return _sine(p, seed) if p["problem"] == "sine" else _two_cycle(p, seed)


def _hundredth(p: Parameters) -> Numbers:
    """Return a hundredth of what the claims above say that stays."""
    if p["problem"] == "two-cycle":
        return {"bound": _two_cycle_predict(p)["squared gradient"] / 100}
    if p["problem"] == "sine":
        return {"bound": 0.09 / (100 * math.pi**2) * p["rho"] ** 2}
    return {"bound": p["rho"] ** 2 * float(theory.SkewedQuadratic().predicted_slope(p["alpha"]).square().sum()) / 100}


_LONG: Parameters = {"alpha": 0.4, "rho": 0.1, "every": 60, "steps": 300, "kept": 50}

RHO_FALLS = Claim(
    id="gsam-without-rho-floor",
    source=f"ours; that convergence asks for a small rho is in {common.HARADA}, rho in proportion to the learning rate "
    f"in {common.ZHUANG}",
    statement="The floors on a sine, by the two-cycle and by skewed noise go if rho falls: with the learning rate, or "
    "by itself while the batch size grows. The last two also go with a constant rho and the other schedule: the "
    "two-cycle if the learning rate decays, the shift by skewed noise if the batch size grows.",
    formula="rho_t = rho eta_t / eta, or 0.9^t rho: ||grad f||^2 at T is less than a hundredth of the floor",
    grid=(
        {"problem": "sine", "rho falls": "with lr", **_DECAYING, **_LONG},
        {"problem": "sine", "rho falls": "by itself", **_GROWING, **_LONG},
        {"problem": "two-cycle", "rho falls": "by itself", **_GROWING, **_LONG},
        {"problem": "skewed noise", "rho falls": "with lr", **_DECAYING, **_LONG, "batch": 1},
        {"problem": "two-cycle", "rho falls": "never", **_BOTH, **_LONG},
        {"problem": "skewed noise", "rho falls": "never", **_GROWING, **_LONG},
    ),
    predict=_hundredth,
    simulate=_rest,
    checks=(Bound("squared gradient", "<=", "bound"),),
    seeds=20,
    plot=common.levels("squared gradient", lambda p: f"{p['problem']}, {p['name']},\nrho falls {p['rho falls']}"),
)

CLAIMS = (RHO_FLOOR, GROWING_FLOOR, DECAYING_FLOOR, TWO_CYCLE, SKEWED, RHO_FALLS)
