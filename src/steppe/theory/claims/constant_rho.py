"""SAM with a constant radius and normalised ascent, without noise: Si and Yun, arXiv 2306.09850.

Statements are the abstract's only where the source says so. Examples, step sizes, bounds and constants are derived
here. Proofs, for ``g = grad f(x)``, ``s = grad f(x + rho g / ||g||)`` and ``x+ = x - eta s``, with ``f`` beta-smooth:

* ``f(x+) <= f(x) - eta <g, s> + beta eta^2 ||s||^2 / 2`` always.
* Non-convex: ``<g, s> = (||g||^2 + ||s||^2 - ||g - s||^2) / 2`` with ``||g - s|| <= beta rho``. If ``eta <= 1/beta``,
  that is ``f(x+) <= f(x) - eta ||g||^2 / 2 + eta beta^2 rho^2 / 2``. Sum over steps.
* Convex: ``<g, s> >= ||g||^2`` and ``||s||^2 <= 2 ||g||^2 + 2 beta^2 rho^2``. If ``eta <= 1/(2 beta)``, that is
  ``f(x+) <= f(x) - eta ||g||^2 / 2 + eta^2 beta^3 rho^2``. Sum over steps.
* Strongly convex: ``<g, s> >= ||g||^2 + mu rho ||g||``. Then the excess either shrinks by ``1 - eta mu``, or
  ``||g|| < eta beta^3 rho / mu`` and it grows to at most ``eta^2 beta^6 rho^2 / (2 mu^3) + eta^2 beta^3 rho^2``.
* Lower bound: in one dimension two iterates on different sides of 0 have ``|x+| + (1 - eta beta) |x| = eta beta rho``,
  so one of them is ``eta beta rho / 2`` or more away; with ``eta >= 1/(mu T)`` that is the first function. With a
  smaller one the second function is left where it was: ``x_T >= (x_0 + rho) (1 - eta mu)^T - rho`` and
  ``(1 - 1/T)^T >= 1/4``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Point, Power
from ..plots import curves, intervals
from . import setups

if TYPE_CHECKING:
    from ..deterministic import Sine


def _distance(p: Parameters) -> float:
    """Return the distance from the minimum at which SAM jumps to and fro on beta/2 x^2."""
    pace = p["lr"] * p["beta"]
    return float(pace * p["rho"] / (2 - pace))


def _two_cycle_predict(p: Parameters) -> Numbers:
    return {"distance": _distance(p), "jump": 2 * _distance(p)}


def _two_cycle(p: Parameters, seed: int) -> Numbers:
    problem = theory.Quadratic([p["beta"]], start=0.7)
    before, last = theory.run(problem, setups.sam(problem, p["lr"], p["rho"]), p["steps"]).iterates[-2:, 0].tolist()
    return {"distance": abs(last), "jump": abs(last - before)}


TWO_CYCLE = Claim(
    id="sam-two-cycle",
    source="ours",
    statement="On a parabola SAM never settles: it ends jumping to and fro between two points around the minimum.",
    formula="f = beta/2 x^2, eta beta < 2: x_t = +-c with c = eta beta rho / (2 - eta beta)",
    grid=(
        {"beta": 1.0, "rho": 0.1, "lr": 0.1, "steps": 300},
        {"beta": 2.0, "rho": 0.3, "lr": 0.45, "steps": 300},
        {"beta": 1.0, "rho": 1.0, "lr": 0.5, "steps": 300},
        {"beta": 10.0, "rho": 0.05, "lr": 0.02, "steps": 300},
    ),
    predict=_two_cycle_predict,
    simulate=_two_cycle,
    checks=(Equal("distance", "distance", within=1e-9), Equal("jump", "jump", within=1e-9)),
)


def _strongly_convex(p: Parameters) -> tuple[Any, float, float]:
    """Return a quadratic of condition number kappa with beta = 1, its excess at the start, and a learning rate."""
    problem = theory.Quadratic([1.0 / p["kappa"], 1.0])
    gap = float(problem.value(problem.start()))
    return problem, gap, setups.log_lr(1.0 / p["kappa"], 1.0, gap, p["rho"], p["steps"])


def _excess(p: Parameters, seed: int) -> Numbers:
    problem, _, lr = _strongly_convex(p)
    steps = p["steps"]
    excess = float(theory.run(problem, setups.sam(problem, lr, p["rho"]), steps, every=steps).values[-1])
    return {"excess": excess, "excess / (lr mu T)^2": excess / (lr * steps / p["kappa"]) ** 2}


def _upper(p: Parameters) -> Numbers:
    _, gap, lr = _strongly_convex(p)
    mu, rho = 1.0 / p["kappa"], p["rho"]
    floor = (lr * rho) ** 2 * (0.5 / mu**3 + 1)
    return {"bound": max((1 - lr * mu) ** p["steps"] * gap, floor)}


STRONGLY_CONVEX_RATE = Claim(
    id="sam-strongly-convex-rate",
    source=f"{setups.SI_YUN}, abstract: the rate 1/T^2 up to logarithms; step size and problem are ours",
    statement="On a strongly convex function, with a learning rate of order log(T)/T, the excess after T steps of SAM "
    "falls as log(T)^2/T^2, although rho is constant.",
    formula="eta = log(mu^2 (f(x_0) - f*) T^2 / (beta^3 rho^2)) / (mu T): f(x_T) - f* ~ (eta mu T)^2 T^-2",
    grid=tuple(
        {"kappa": kappa, "rho": 0.1, "steps": kappa * t} for kappa in (2, 10) for t in (100, 200, 400, 1000, 2000)
    ),
    predict=_upper,
    simulate=_excess,
    checks=(Power("excess / (lr mu T)^2", over="steps", power=-2.0, within=0.15, each=("kappa",)),),
    plot=curves("steps", "excess", "bound", each=("kappa",)),
)

STRONGLY_CONVEX_UPPER = Claim(
    id="sam-strongly-convex-bound",
    source="ours",
    statement="On a strongly convex function the excess after T steps of SAM is at most what gradient descent's rate "
    "gives, or a floor that shrinks with the square of the learning rate.",
    formula="eta <= 1/(2 beta): f(x_T) - f* <= max{(1 - eta mu)^T (f(x_0) - f*), "
    "eta^2 beta^6 rho^2 / (2 mu^3) + eta^2 beta^3 rho^2}",
    grid=tuple(
        {"kappa": kappa, "rho": rho, "steps": kappa * t} for kappa in (2, 10) for rho in (0.1, 1.0) for t in (30, 300)
    ),
    predict=_upper,
    simulate=_excess,
    checks=(Bound("excess", "<=", "bound"),),
)

_START = 1.0


def _worse_excess(p: Parameters, seed: int) -> Numbers:
    found = []
    for curvature in (1.0, 1.0 / p["kappa"]):
        problem = theory.Quadratic([curvature], start=_START)
        trace = theory.run(problem, setups.sam(problem, p["lr"], p["rho"]), p["steps"])
        found.append(float(trace.values[-2:].max()))
    return {"excess": max(found)}


def _lower(p: Parameters) -> Numbers:
    mu = 1.0 / p["kappa"]
    return {"bound": min((p["rho"] / (mu * p["steps"])) ** 2 / 8, mu / 32 * (_START - 3 * p["rho"]) ** 2)}


STRONGLY_CONVEX_LOWER = Claim(
    id="sam-strongly-convex-lower",
    source=f"{setups.SI_YUN}, abstract: the rate 1/T^2 is tight; functions and constants are ours",
    statement="No learning rate makes SAM faster than 1/T^2: for each, one of two parabolas keeps such an excess in "
    "one of the last two steps.",
    formula="any eta <= 1/(2 beta), x_0 > 3 rho: the excess on beta/2 x^2 or on mu/2 x^2 is at least "
    "min{beta^3 rho^2 / (8 mu^2 T^2), mu (x_0 - 3 rho)^2 / 32}",
    grid=tuple(
        {"kappa": 10, "rho": 0.1, "steps": steps, "lr": lr}
        for steps in (100, 1000)
        for lr in sorted({0.01 / steps, 1.0 / steps, 10 / steps, 30 / steps, 0.5})
    ),
    predict=_lower,
    simulate=_worse_excess,
    checks=(Bound("excess", ">=", "bound"),),
    plot=curves("lr", "excess", "bound", each=("steps",)),
)


def _convex(p: Parameters) -> tuple[Any, float, float]:
    problem = theory.LogCosh(p["dimension"])
    gap = float(problem.value(problem.start()))
    return problem, gap, min(0.5, math.sqrt(gap / p["steps"]) / p["rho"])


def _convex_average(p: Parameters, seed: int) -> Numbers:
    problem, _, lr = _convex(p)
    return {"average": _average(theory.run(problem, setups.sam(problem, lr, p["rho"]), p["steps"]))}


def _convex_bound(p: Parameters) -> Numbers:
    _, gap, lr = _convex(p)
    return {"bound": 2 * gap / (lr * p["steps"]) + 2 * lr * p["rho"] ** 2}


def _average(trace: Any) -> float:
    """Return the mean of the squared norms of the gradients from which steps were taken."""
    return float(trace.squared_norms[:-1].mean())


CONVEX_BOUND = Claim(
    id="sam-convex-bound",
    source="ours",
    statement="On a smooth convex function the squared gradients of SAM go to 0 on average, with a learning rate that "
    "falls with T.",
    formula="eta <= 1/(2 beta): (1/T) sum ||grad f(x_t)||^2 <= 2 (f(x_0) - f*) / (eta T) + 2 eta beta^3 rho^2; "
    "here eta = min{1/(2 beta), sqrt((f(x_0) - f*) / (beta^3 rho^2 T))}",
    grid=tuple(
        {"dimension": dimension, "rho": rho, "steps": steps}
        for dimension, rho in ((10, 0.5), (2, 2.0))
        for steps in (100, 1000, 5000)
    ),
    predict=_convex_bound,
    simulate=_convex_average,
    checks=(Bound("average", "<=", "bound"),),
    plot=curves("steps", "average", "bound", each=("dimension", "rho")),
)


def _wave(p: Parameters) -> Sine:
    return theory.Sine(p["beta"], p["width"])


def _wave_average(p: Parameters, seed: int) -> Numbers:
    problem = _wave(p)
    start = [p["start"] * problem.period]
    return {"average": _average(theory.run(problem, setups.sam(problem, p["lr"], p["rho"], start), p["steps"]))}


def _wave_bound(p: Parameters) -> Numbers:
    # From the formula of the function: f = A sin(5 pi x / (3 width)) with this amplitude.
    amplitude = 9 * p["beta"] * p["width"] ** 2 / (25 * math.pi**2)
    gap = amplitude * (1 + math.sin(2 * math.pi * p["start"]))
    return {"bound": 2 * gap / (p["lr"] * p["steps"]) + (p["beta"] * p["rho"]) ** 2}


NON_CONVEX_BOUND = Claim(
    id="sam-nonconvex-bound",
    source=f"ours; that a term of order rho^2 is needed is in the abstract of {setups.SI_YUN}",
    statement="On any smooth function the squared gradients of SAM are small on average, up to beta^2 rho^2.",
    formula="eta <= 1/beta: (1/T) sum ||grad f(x_t)||^2 <= 2 (f(x_0) - f*) / (eta T) + beta^2 rho^2; "
    "f = A sin(5 pi x / (3 width))",
    grid=tuple(
        {"beta": beta, "width": width, "rho": rho, "lr": lr, "start": 0.1, "steps": steps}
        for beta, width, rho, lr in ((1.0, 1.0, 1.0, 0.5), (1.0, 10.0, 0.1, 0.5), (2.0, 10.0, 0.1, 0.5))
        for steps in (100, 1000)
    ),
    predict=_wave_bound,
    simulate=_wave_average,
    checks=(Bound("average", "<=", "bound"),),
    plot=curves("steps", "average", "bound", each=("beta", "width", "rho")),
)


def _sine_predict(p: Parameters) -> Numbers:
    return {"distance": 0.2 * p["rho"], "squared gradient": 27 / (100 * math.pi**2) * (p["beta"] * p["rho"]) ** 2}


def _sine(p: Parameters, seed: int) -> Numbers:
    problem = theory.Sine(p["beta"], p["rho"])
    start = problem.start(setups.seeded(seed))
    steps = p["steps"]
    trace = theory.run(problem, setups.sam(problem, p["lr"], p["rho"], start), steps, every=steps)
    return {
        "distance": abs(float(problem.from_minimum(trace.iterates[-1]))),
        "squared gradient": float(trace.squared_norms[-1]),
    }


SINE = Claim(
    id="sam-sine-trap",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided on non-convex functions; "
    "proof and numbers are ours",
    statement="On a sine that is made for its radius SAM ends 0.2 rho away from a minimum, from every random start, "
    "where the gradient is not 0 and does not shrink with the learning rate.",
    formula="f = (9 beta rho^2 / (25 pi^2)) sin(5 pi x / (3 rho)): |x_T - x*| = rho/5, "
    "f'(x_T)^2 = 27/(100 pi^2) beta^2 rho^2 = 0.027357 beta^2 rho^2",
    grid=(
        {"beta": 1.0, "rho": 1.0, "lr": 0.5, "steps": 100},
        {"beta": 2.0, "rho": 0.3, "lr": 0.4, "steps": 100},
        {"beta": 1.0, "rho": 1.0, "lr": 0.1, "steps": 400},
    ),
    predict=_sine_predict,
    simulate=_sine,
    checks=(
        Equal("distance", "distance", within=1e-6, surely=True),
        Equal("squared gradient", "squared gradient", within=1e-5, surely=True),
    ),
    seeds=50,
    plot=intervals("squared gradient", "squared gradient", ("beta", "rho", "lr")),
)


def _frozen(p: Parameters, seed: int) -> Numbers:
    problem, y = theory.NonSmooth(), 0.3
    trace = theory.run(problem, setups.sam(problem, p["lr"], p["rho"], [p["c"] + 2 * y, y]), p["steps"])
    lines = problem.line(trace.iterates)
    return {
        "c": float(lines[(lines - p["c"]).abs().argmax()]),
        "least f": float(trace.values.min()),
    }


NON_SMOOTH = Claim(
    id="sam-nonsmooth-frozen",
    source="ours",
    statement="On a convex function that is not smooth SAM moves along one line for ever, which misses the minimum.",
    formula="f = max{|x|, |2x + y|}, |c| < 7/2 rho with c = x_0 - 2 y_0: x_t - 2 y_t = c and f(x_t, y_t) >= |c|/7, "
    "whatever the learning rates",
    grid=tuple({"rho": 1.0, "lr": lr, "c": c, "steps": 500} for lr in (0.1, 0.01) for c in (0.3, -1.0, 1.99, 3.4)),
    predict=lambda p: {"c": p["c"], "floor": abs(p["c"]) / 7},
    simulate=_frozen,
    checks=(Equal("c", "c", within=1e-9), Bound("least f", ">=", "floor")),
)

_VALLEY_START = (2.5, 0.1)


def _falls_slowly(t: int) -> float:
    return 1 / math.sqrt(t + 1)


def _falls(t: int) -> float:
    return float(0.98**t)


def _falls_like_lr(t: int) -> float:
    return 1 / (1 + t / 100)


def _valley(p: Parameters, seed: int) -> Numbers:
    problem, steps = theory.Valley(), p["steps"]
    optimizer, after = setups.variant(p["method"], problem, p["lr"], p["rho"], _VALLEY_START, _falls_slowly)
    trace = theory.run(problem, optimizer, steps, every=steps, after=after)
    return {"sharpness": float(problem.curvature(trace.iterates[-1])), "f": float(trace.values[-1])}


def _flow_sharpness(p: Parameters) -> Numbers:
    """Return where gradient flow ends: it conserves x^2 - y^2."""
    x, y = _VALLEY_START
    return {"sharpness": 2 * math.hypot(x**2 - y**2, 2), "f": 1e-4 * p["rho"] ** 2}


def _draw_valley(points: Sequence[Point], axes: Any) -> None:
    runs: dict[setups.Variant, str] = {"sam": "C0", "sgd": "C1", "usam": "C2", "falling rho": "C3"}
    for name, colour in runs.items():
        problem = theory.Valley()
        optimizer, after = setups.variant(name, problem, 0.01, 0.1, _VALLEY_START, _falls_slowly)
        path = theory.run(problem, optimizer, 15000 if name == "sam" else 3000, every=20, after=after).iterates
        axes.plot(path[:, 0].tolist(), path[:, 1].tolist(), color=colour, linewidth=1, label=name)
    xs = [0.9 + 0.02 * i for i in range(100)]
    axes.plot(xs, [1 / x for x in xs], ":", color="grey", linewidth=1, label="xy = 1")
    axes.set(xlabel="x", ylabel="y")
    axes.legend(fontsize=7, frameon=False)


VALLEY = Claim(
    id="sam-valley",
    source=f"{setups.SI_YUN}, Figure 1: the function; start, settings and numbers are ours",
    statement="In the valley of (xy - 1)^2 SAM drifts along the minima to the flattest one.",
    formula="f = (xy - 1)^2 from (2.5, 0.1): the sharpness 2 (x^2 + y^2) ends at 4, that of (1, 1)",
    grid=({"method": "sam", "lr": 0.01, "rho": 0.1, "steps": 15000},),
    predict=lambda p: {"sharpness": 4.0},
    simulate=_valley,
    checks=(Equal("sharpness", "sharpness", within=0.01),),
    plot=_draw_valley,
)

VALLEY_OTHERS = Claim(
    id="valley-without-constant-rho",
    source=f"{setups.SI_YUN}, abstract: SAM is different with decaying rho or without normalisation; "
    "settings and numbers are ours",
    statement="In the same valley gradient descent, SAM without normalisation and SAM with a decaying rho converge "
    "to the minimum where gradient flow ends, and stay.",
    formula="f = (xy - 1)^2: 2 (x^2 + y^2) ends near 2 sqrt((x_0^2 - y_0^2)^2 + 4) = 13.1, and f <= 1e-4 rho^2; "
    "decaying rho: rho / sqrt(t)",
    grid=tuple({"method": method, "lr": 0.01, "rho": 0.1, "steps": 5000} for method in ("sgd", "usam", "falling rho")),
    predict=_flow_sharpness,
    simulate=_valley,
    checks=(Equal("sharpness", "sharpness", within=0.05), Bound("f", "<=", "f")),
)


def _contrast(p: Parameters, seed: int) -> Numbers:
    problem = theory.Sine(p["beta"], p["width"]) if "width" in p else theory.Quadratic([p["beta"]])
    falls = _falls_like_lr if p["method"] == "rho with lr" else _falls
    optimizer, after = setups.variant(p["method"], problem, p["lr"], p["rho"], [0.4], falls)
    steps = p["steps"]
    trace = theory.run(problem, optimizer, steps, every=steps, after=after)
    return {"squared gradient": float(trace.squared_norms[-1])}


def _contrast_bound(p: Parameters) -> Numbers:
    if "width" in p:
        return {"bound": 1e-6 * _sine_predict({"beta": p["beta"], "rho": p["width"]})["squared gradient"]}
    return {"bound": 1e-6 * (p["beta"] * _distance(p)) ** 2}


USAM_CONVERGES = Claim(
    id="usam-converges",
    source=f"{setups.SI_YUN}, abstract: SAM is different without normalisation; problems and proof are ours",
    statement="Without normalisation the same runs on parabola and sine do converge: the squared gradient falls below "
    "a millionth of what SAM keeps.",
    formula="beta rho < 1: x + rho grad f(x) is one-to-one, so that the only points which do not move are stationary",
    grid=(
        {"method": "usam", "beta": 1.0, "rho": 0.1, "lr": 0.1, "steps": 400},
        {"method": "usam", "beta": 1.0, "width": 1.0, "rho": 0.9, "lr": 0.5, "steps": 400},
        {"method": "usam", "beta": 2.0, "width": 0.3, "rho": 0.3, "lr": 0.4, "steps": 400},
    ),
    predict=_contrast_bound,
    simulate=_contrast,
    checks=(Bound("squared gradient", "<=", "bound"),),
)

FALLING_RHO_CONVERGES = Claim(
    id="decaying-rho-converges",
    source=f"{setups.SI_YUN}, abstract: SAM is different with decaying rho; problems and schedules are ours",
    statement="With a decaying rho, by a schedule of its own or in proportion to the learning rate, the same runs on "
    "parabola and sine do converge: the squared gradient falls below a millionth of what SAM keeps.",
    formula="rho_t = 0.98^t rho; or eta_t = eta / (1 + t/100) and rho_t = rho eta_t / eta",
    grid=tuple(
        {"method": method, "beta": beta, **width, "rho": rho, "lr": lr, "steps": steps}
        for method, steps in (("falling rho", 1500), ("rho with lr", 6000))
        for beta, width, rho, lr in ((1.0, {}, 0.1, 0.1), (1.0, {"width": 1.0}, 1.0, 0.5))
    ),
    predict=_contrast_bound,
    simulate=_contrast,
    checks=(Bound("squared gradient", "<=", "bound"),),
)

CLAIMS = (
    TWO_CYCLE,
    STRONGLY_CONVEX_RATE,
    STRONGLY_CONVEX_UPPER,
    STRONGLY_CONVEX_LOWER,
    CONVEX_BOUND,
    NON_CONVEX_BOUND,
    SINE,
    NON_SMOOTH,
    VALLEY,
    VALLEY_OTHERS,
    USAM_CONVERGES,
    FALLING_RHO_CONVERGES,
)
