"""AdaSAM, Sun et al., arXiv 2303.00565: at ``beta2 = 1``, without its max, and what a constant radius leaves.

* ``beta2 = 1`` keeps ``sqrt(v_hat)`` at ``eps``. The momentum ``m`` from 0 is ``1 - beta1`` times a sum of gradients
  with weights ``beta1^k``. So is that of torch's SGD without dampening, up to the factor. With dampening it is not: the
  first gradient comes into it undamped.
* Without the max (the paper's remark refers to Reddi et al.): gradients are C with probability p and -1 otherwise, with
  mean ``s = p (C + 1) - 1 > 0``, so f is least at the left end. The spike is divided by the root of a ``v`` to which it
  has just added ``(1 - beta2) C^2``: its part of the mean of ``g / sqrt(v)`` is at most ``p / sqrt(1 - beta2)``,
  however large C is. The other part is at most ``-(1 - p)^(n+1) / sqrt(1 + beta2^n C^2)`` for every n, as there may
  have been no spike for n steps: nearly -1 if spikes are rarer than ``v`` remembers. So x goes right, up the slope.
  With the max ``v_hat`` only grows, and has a bound: in the end all gradients are divided by the same number, and their
  mean is s. It is 0 at ``-1 - s + (1 - 2 p) rho``: left of the walls SAM climbs to the right with probability p only.
* Constant radius on ``f = h/2 x^2``, with ``beta1 = 0`` and a ``v_hat`` that stays: ``|x+| = |s rho - (1 - s) |x||``
  with the pace ``s = gamma h / sqrt(v_hat)``. For ``s < 2`` that leads to ``s rho / (2 - s)`` from everywhere.
  The first gradient, ``h (|x_0| + rho)``, is the largest. If ``eps`` is no less, ``sqrt(v_hat) = eps``; if it is less
  and ``beta2 = 0``, the first gradient stays in the max for ever.
* Momentum: while x has one sign, ``(x, m)`` moves by a linear map ``z+ = A z + u``. Orbits with ``x_{t+n} = -x_t``
  start at ``z = -(I + A^n)^(-1) (I + A + ... + A^(n-1)) u``. For n = 1 that is ``s rho / (2 (1 + beta1) - s)`` with
  ``s = gamma h (1 - beta1) / sqrt(v_hat)``. Nearby runs have the same signs, so differences shrink like powers of A.
* All of this is proportional to rho if neither start nor ``v_hat`` matter, and follows a rho that falls slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Point, Power
from ..plots import curves, intervals
from . import adasam_setups, setups


@cache
def _noisy(name: str) -> Any:
    return theory.NoisyQuadratic(sigma=0.5) if name == "quadratic" else theory.PseudoHuber()


def _frozen(p: Parameters, seed: int) -> Numbers:
    problem, lr, beta1, eps = _noisy(p["problem"]), p["lr"], p["beta1"], p["eps"]
    damped = lr / eps  # of SGD whose momentum is an average of gradients
    same = adasam_setups.momentum_sam(problem, (1 - beta1) * damped, p["rho"], beta1)
    ours, theirs = (
        theory.run(problem, optimizer, p["steps"], setups.seeded(seed), batch=p["batch"]).iterates
        for optimizer in (adasam_setups.adasam(problem, lr, p["rho"], (beta1, 1.0), eps), same)
    )
    first, damped_first = (
        float((theory.run(problem, optimizer, 1, batch=None).iterates[1] - ours[0]).norm())
        for optimizer in (
            adasam_setups.adasam(problem, lr, p["rho"], (beta1, 1.0), eps),
            adasam_setups.momentum_sam(problem, damped, p["rho"], beta1, dampening=beta1),
        )
    )
    return {
        "difference": float((ours - theirs).abs().max() / ours.abs().max()),
        "first step": damped_first / first,
    }


BETA2_ONE = Claim(
    id="adasam-beta2-one",
    source=f"{adasam_setups.SUN}, Remark 3.1: beta2 = 1 gives SAM with the learning rate gamma/eps; momentum is ours",
    statement="With beta2 = 1 AdaSAM is SAM around SGD with momentum beta1, without dampening, and learning rate "
    "(1 - beta1) gamma / eps, up to rounding; with dampening beta1 and gamma / eps SGD's first step is 1 / (1 - beta1) "
    "times as long.",
    formula="beta2 = 1: max |x_t - x'_t| <= 1e-12 max |x_t| for the same samples; "
    "|x'_1 - x_0| / |x_1 - x_0| = 1 / (1 - beta1) with dampening",
    grid=tuple(
        {"problem": name, "beta1": beta1, "eps": eps, "lr": lr, "rho": rho, "batch": batch, "steps": 200}
        for name, beta1, eps, lr, rho, batch in (
            ("pseudo-huber", 0.0, 0.1, 1e-2, 0.05, 1),
            ("pseudo-huber", 0.9, 1e-3, 3e-4, 0.2, 4),
            ("quadratic", 0.0, 1e-8, 5e-9, 0.05, 4),
            ("quadratic", 0.5, 0.3, 3e-2, 0.5, 1),
            ("quadratic", 0.9, 1.0, 0.3, 0.05, 1),
        )
    ),
    predict=lambda p: {"rounding": 1e-12, "first step": 1 / (1 - p["beta1"])},
    simulate=_frozen,
    checks=(
        Bound("difference", "<=", "rounding", surely=True),
        Equal("first step", "first step", within=1e-9, surely=True),
    ),
    seeds=20,
)


def _drift(p: Parameters, seed: int) -> Numbers:
    # With a step this small the walls are out of reach.
    problem, lr = theory.RareSpikes(p["spike"], p["p"]), 1e-5
    optimizer = adasam_setups.without_max(problem, lr, 0.1, (p["beta1"], p["beta2"]), 1e-8)
    iterates = theory.run(problem, optimizer, p["steps"], setups.seeded(seed)).iterates
    settled = min(round(20 / (1 - p["beta2"])), p["steps"] // 2)
    return {"drift": float(iterates[settled] - iterates[-1]) / (lr * (p["steps"] - settled))}


def _drift_predict(p: Parameters) -> Numbers:
    problem = theory.RareSpikes(p["spike"], p["p"])
    return {"drift": problem.drift((p["beta1"], p["beta2"]))}


def _draw_drift(points: Sequence[Point], axes: Any) -> None:
    intervals("drift", "drift", ("p", "beta1", "beta2"))(points, axes)
    axes.axhline(0.0, color="grey", linewidth=0.5)
    axes.set_ylabel("mean of m / sqrt(v)")


WITHOUT_MAX_DRIFT = Claim(
    id="adasam-without-max-drift",
    source="ours; gradients as in Reddi et al., On the Convergence of Adam and Beyond",
    statement="Without its max AdaSAM goes up a slope whose mean gradient is about 1, if gradients are C seldom and -1 "
    "otherwise and beta2 forgets fast enough; at which speed, and that it goes down if not, is predicted.",
    formula="g = C with probability p, -1 otherwise: the mean of m / sqrt(v) in the stationary law of v, "
    "where v+ = beta2 v + (1 - beta2) g^2; 2 p - 1 for beta2 = 0",
    grid=tuple(
        {"spike": spike, "p": p, "beta1": beta1, "beta2": beta2, "steps": 1000}
        for spike, p, beta1, beta2 in (
            (20.0, 0.1, 0.0, 0.0),
            (20.0, 0.1, 0.0, 0.5),
            (20.0, 0.1, 0.5, 0.5),
            (40.0, 0.05, 0.0, 0.7),
            (40.0, 0.05, 0.7, 0.5),
            (10.0, 0.2, 0.0, 0.95),
        )
    ),
    predict=_drift_predict,
    simulate=_drift,
    checks=(Equal("drift", "drift", within=0.25),),
    seeds=20,
    plot=_draw_drift,
)


def _near_minimum(p: Parameters) -> float:
    """Return where the mean sharp gradient is 0; left of the walls climbs go right by rho with probability p."""
    return float(-1 - (p["p"] * (p["spike"] + 1) - 1) + (1 - 2 * p["p"]) * p["rho"])


def _path(make: Any, p: Parameters, seed: int) -> list[float]:
    problem = theory.RareSpikes(p["spike"], p["p"])
    optimizer = make(problem, p["lr"], p["rho"], (p["beta1"], p["beta2"]), 1e-8)
    path: list[float] = theory.run(problem, optimizer, p["steps"], setups.seeded(seed)).iterates[:, 0].tolist()
    return path


def _last(path: Sequence[float]) -> float:
    return fmean(path[-len(path) // 4 :])


def _draw_ends(points: Sequence[Point], axes: Any) -> None:
    p = points[0].parameters
    for make, colour, label in (
        (adasam_setups.adasam, "C0", "AdaSAM"),
        (adasam_setups.without_max, "C1", "without max"),
    ):
        for seed in range(3):
            path = _path(make, p, seed)
            axes.plot(path[::5], color=colour, linewidth=0.8, label="" if seed else label)
    axes.axhspan(-1, 1, color="grey", alpha=0.15, linewidth=0)
    axes.axhline(_near_minimum(p), color="grey", linestyle=":", linewidth=1)
    ticks = range(0, p["steps"] // 5 + 1, max(1, p["steps"] // 20))
    axes.set_xticks(ticks, [f"{5 * tick}" for tick in ticks], fontsize=7)
    axes.set(xlabel="step", ylabel="x; grey: between the walls")
    axes.legend(fontsize=7, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.56))


_WALLS = (
    "f' = s = p (C + 1) - 1 between -1 and 1 out of f_1' = C with probability p and f_2' = -1; beyond, the distance "
    "to there is added"
)
_ENDS_GRID = tuple(
    {"spike": c, "p": p, "beta1": beta1, "beta2": beta2, "lr": 0.1, "rho": rho, "steps": steps}
    for c, p, beta1, beta2, rho, steps in ((10.0, 0.2, 0.0, 0.2, 0.05, 1000), (20.0, 0.1, 0.5, 0.5, 0.2, 1600))
)

WITHOUT_MAX = Claim(
    id="adasam-without-max",
    source=f"{adasam_setups.SUN}, Remark 3.1: the example of Reddi et al. applies; walls and numbers are ours",
    statement="Without its max, as SAM around Adam, AdaSAM ends at the wrong end of a smooth convex function.",
    formula=f"{_WALLS}: E x_t >= 1 near T, although f is least at -1 - s",
    grid=_ENDS_GRID,
    predict=lambda p: {"wrong end": 1.0},
    simulate=lambda p, seed: {"x": _last(_path(adasam_setups.without_max, p, seed))},
    checks=(Bound("x", ">=", "wrong end"),),
    seeds=20,
    plot=_draw_ends,
)

WITH_MAX = Claim(
    id="adasam-with-max",
    source=f"{adasam_setups.SUN}, Theorem 3.6: AdaSAM converges; example and numbers are ours",
    statement="On the same function with the same samples, learning rate and betas AdaSAM ends around the minimum, but "
    "for what a constant rho shifts it.",
    formula=f"{_WALLS}: E x_t -> argmin f + (1 - 2 p) rho, argmin f = -1 - s",
    grid=_ENDS_GRID,
    predict=lambda p: {"mean": _near_minimum(p)},
    simulate=lambda p, seed: {"x": _last(_path(adasam_setups.adasam, p, seed))},
    checks=(Equal("x", "mean", within=0.15),),
    seeds=20,
)


def _pace(p: Parameters) -> float:
    """Return the learning rate over the root of v_hat, which is eps unless that is less than the first gradient."""
    first = p["h"] * (p["start"] + p["rho"])
    if p["eps"] < first:
        assert p["beta2"] == 0
    return float(p["lr"] / max(p["eps"], first))


def _residual_predict(p: Parameters) -> Numbers:
    s = _pace(p) * p["h"]
    return {"distance": s * p["rho"] / (2 - s)}


def _residual_path(p: Parameters) -> list[float]:
    problem = theory.Quadratic([p["h"]])
    optimizer = adasam_setups.adasam(problem, p["lr"], p["rho"], (0.0, p["beta2"]), p["eps"], [p["start"]])
    path: list[float] = theory.run(problem, optimizer, p["steps"]).iterates[:, 0].tolist()
    return path


def _residual(p: Parameters, seed: int) -> Numbers:
    before, last = _residual_path(p)[-2:]
    return {"distance": abs(last), "jump": abs(last - before) / 2}


def _draw_residual(points: Sequence[Point], axes: Any) -> None:
    wanted = [point for point in points if point.parameters["beta2"] == 0 and point.parameters["eps"] < 1e-6]
    for i, point in enumerate(wanted):
        p = point.parameters
        path = [abs(x) for x in _residual_path(p)[::10]]
        axes.plot([10 * t for t in range(len(path))], path, color=f"C{i}", linewidth=1, label=f"x_0 = {p['start']:g}")
        axes.axhline(point.predicted["distance"], color=f"C{i}", linestyle="--", linewidth=1)
    axes.set(yscale="log", xlabel="step", ylabel="|x|; dashed: predicted")
    axes.legend(fontsize=7, frameon=False)


RESIDUAL = Claim(
    id="adasam-residual",
    source="ours",
    statement="With a constant rho and beta1 = 0 AdaSAM ends jumping to and fro around the minimum of a parabola. If "
    "beta2 = 0 it remembers its start: the further away that was, the nearer it ends.",
    formula="f = h/2 x^2, s = gamma h / sqrt(v_hat): x_t = +-s rho / (2 - s); sqrt(v_hat) = eps if eps >= "
    "h (|x_0| + rho), and h (|x_0| + rho) if beta2 = 0 and eps is less",
    grid=tuple(
        {"h": h, "rho": rho, "start": start, "lr": lr, "beta2": beta2, "eps": eps, "steps": 1200}
        for h, rho, start, lr, beta2, eps in (
            (1.0, 0.1, 1.0, 0.1, 0.999, 2.0),
            (1.0, 0.5, 1.0, 0.2, 0.9, 2.0),
            (4.0, 0.1, 1.0, 0.5, 0.999, 5.0),
            (1.0, 0.1, 0.5, 0.05, 0.0, 1e-8),
            (1.0, 0.1, 1.0, 0.05, 0.0, 1e-8),
            (9.0, 0.1, 2.0, 0.05, 0.0, 1e-8),
            (9.0, 0.5, 2.0, 0.05, 0.0, 1e-3),
        )
    ),
    predict=_residual_predict,
    simulate=_residual,
    checks=(Equal("distance", "distance", within=1e-6), Equal("jump", "distance", within=1e-6)),
    plot=_draw_residual,
)

Pair = tuple[float, float]


def _orbit(h: float, pace: float, rho: float, beta1: float, n: int) -> list[Pair]:
    """Return ``x`` and the ``m`` of the step before along half of the orbit ``x_{t+n} = -x_t``, on which x > 0."""

    def ahead(z: Pair, climb: float) -> Pair:
        m = beta1 * z[1] + (1 - beta1) * h * (z[0] + climb)
        return z[0] - pace * m, m

    def far(z: Pair, climb: float) -> Pair:
        for _ in range(n):
            z = ahead(z, climb)
        return z

    # -z = A^n z + u_n, with the columns of A^n.
    (a, c), (b, d), (u, w) = far((1.0, 0.0), 0.0), far((0.0, 1.0), 0.0), far((0.0, 0.0), rho)
    determinant = (a + 1) * (d + 1) - b * c
    z, found = ((b * w - (d + 1) * u) / determinant, (c * u - (a + 1) * w) / determinant), []
    for _ in range(n):
        found.append(z)
        z = ahead(z, rho)
    return found


def _orbit_of(p: Parameters) -> list[Pair]:
    return _orbit(p["h"], p["lr"] / p["eps"], p["rho"], p["beta1"], p["n"])


def _orbit_predict(p: Parameters) -> Numbers:
    s = p["lr"] * p["h"] * (1 - p["beta1"]) / p["eps"]
    shortest = s * p["rho"] / (2 * (1 + p["beta1"]) - s)
    return {"distance": shortest if p["n"] == 1 else max(x for x, _ in _orbit_of(p)), "return": 1e-6}


def _orbit_path(p: Parameters) -> list[float]:
    """Return the last 100 iterates of a run that begins on the orbit or a bit off it."""
    import torch

    orbit, problem = _orbit_of(p), theory.Quadratic([p["h"]])
    (x, m), least = orbit[0], min(x for x, _ in orbit)
    start = [x + p["off"] * least]
    optimizer = adasam_setups.adasam(problem, p["lr"], p["rho"], (p["beta1"], 0.999), p["eps"], start)
    parameter = optimizer.param_groups[0]["params"][0]
    optimizer.base.state[parameter]["exp_avg"] = torch.tensor([m], dtype=torch.float64)
    path: list[float] = theory.run(problem, optimizer, p["steps"]).iterates[-100:, 0].tolist()
    return path


def _orbit_run(p: Parameters, seed: int) -> Numbers:
    path, n = _orbit_path(p), p["n"]
    distance = max(abs(x) for x in path)
    return {
        "distance": distance,
        "return": max(abs(x + y) for x, y in zip(path, path[n:], strict=False)) / distance,
    }


def _draw_orbits(points: Sequence[Point], axes: Any) -> None:
    wanted = [point for point in points if point.parameters["rho"] == 0.1 and point.parameters["off"] > 0]
    for i, point in enumerate(wanted):
        p = point.parameters
        axes.plot(_orbit_path(p)[-16:], "o-", color=f"C{i}", markersize=3, linewidth=1, alpha=0.8)
        label, place = f"beta1 {p['beta1']:g}\nn = {p['n']}", (0.86, 0.9 - 0.2 * i)
        axes.text(*place, label, color=f"C{i}", fontsize=6, va="center", transform=axes.transAxes)
    axes.set_xlim(-0.5, 18.5)
    axes.set_xticks(range(0, 16, 4))
    axes.set(xlabel="last steps, from a start near each orbit", ylabel="x, rho = 0.1")


MOMENTUM = Claim(
    id="adasam-residual-momentum",
    source="ours",
    statement="With momentum there are several orbits around the minimum of a parabola, of different periods and "
    "sizes, all in proportion to a constant rho; a run that starts on one of them stays, and one that starts near it "
    "comes back to it.",
    formula="f = h/2 x^2, eps >= every gradient, s = gamma h (1 - beta1) / eps: x_{t+n} = -x_t; for n = 1 "
    "x_t = +-s rho / (2 (1 + beta1) - s), for n > 1 the fixed point of n steps and a change of sign",
    grid=tuple(
        {"h": 1.0, "lr": lr, "eps": 2.0, "beta1": beta1, "n": n, "rho": rho, "off": off, "steps": 800}
        for beta1, lr, n in ((0.0, 0.2, 1), (0.5, 0.4, 1), (0.5, 0.4, 2), (0.9, 0.2, 1), (0.9, 0.2, 4))
        for rho in (0.03, 0.1, 0.3)
        for off in (0.0, 0.1)
    ),
    predict=_orbit_predict,
    simulate=_orbit_run,
    checks=(
        Equal("distance", "distance", within=1e-6),
        Bound("return", "<=", "return"),
        Power("distance", over="rho", power=1.0, within=1e-6, each=("beta1", "n", "off")),
    ),
    plot=_draw_orbits,
)


def falls(t: int) -> float:
    """Return what rho is multiplied by after so many steps."""
    return 1 / math.sqrt(t + 1)


def _falling(p: Parameters, seed: int) -> Numbers:
    from ... import ParamGroupSchedule

    problem = theory.Quadratic([p["h"]])
    optimizer = adasam_setups.adasam(problem, p["lr"], p["rho"], (p["beta1"], 0.999), p["eps"])
    after = ParamGroupSchedule(optimizer, "rho", falls).step
    iterates = theory.run(problem, optimizer, p["steps"], after=after).iterates
    return {"distance": abs(float(iterates[-1]))}


def _falling_predict(p: Parameters) -> Numbers:
    return {"distance": _orbit_predict({**p, "n": 1})["distance"] / math.sqrt(p["steps"])}


FALLING = Claim(
    id="adasam-decaying-rho",
    source="ours",
    statement="With a rho that falls as 1/sqrt(t) AdaSAM does converge: its distance from the minimum of the parabola "
    "falls as 1/sqrt(T), on the orbit of the rho of the moment.",
    formula="f = h/2 x^2, eps >= every gradient, rho_t = rho / sqrt(t): |x_T| ~ s rho / ((2 - s) sqrt(T)), "
    "s = gamma h / eps",
    grid=tuple(
        {"h": 1.0, "lr": 0.4, "eps": 2.0, "beta1": 0.0, "rho": rho, "steps": steps}
        for rho in (0.1, 0.5)
        for steps in (400, 800, 1600, 3200)
    ),
    predict=_falling_predict,
    simulate=_falling,
    checks=(
        Power("distance", over="steps", power=-0.5, within=0.01, each=("rho",)),
        Equal("distance", "distance", within=0.02),
    ),
    plot=curves("steps", "distance", "distance", each=("rho",)),
)

CLAIMS = (BETA2_ONE, WITHOUT_MAX_DRIFT, WITHOUT_MAX, WITH_MAX, RESIDUAL, MOMENTUM, FALLING)
