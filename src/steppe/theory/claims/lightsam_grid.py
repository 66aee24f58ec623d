"""LightSAM and others on the same grid of rho and eta, each over four decades: Cheng et al., arXiv 2505.24399.

The paper's theorem says O(log T / sqrt(T)) for the average of squared gradients, at every rho and eta. Its constants
depend on both: with an eta that is small for the distance to the minimum, it takes (distance / eta)^2 steps to get
there. The start is at a distance of 0.087, so that all settings, the smallest eta is 0.01, are through within a run.

Proof for LightSAM without noise. Let f be L-smooth, ``s = grad f(x)``, ``g = grad f(w)``, ``D = f(x_1) - f*``. Sums
are over steps and, with "adagrad", over coordinates, each of which has its own u and v: m of each, where
"adagrad-norm" has m = 1. Then:

* ``f(x+) <= f(x) - eta <s, g / sqrt(v)> + L eta^2 ||g / sqrt(v)||^2 / 2`` and ``||s - g|| <= L ||w - x||``. So ``eta
  sum g^2 / sqrt(v_t) <= D + eta L sum ||w - x|| ||g / sqrt(v_t)|| + L eta^2 / 2 sum g^2 / v_t``.
* ``sum g^2 / v_t <= N_v = sum_j (1 + log(v_T / v_1))`` (or ``log(v_T / eps^2)``, if that is less), and ``sum ||w -
  x||^2 <= rho^2 N_u`` likewise. With ``A = sum_j sqrt(v_T)``, ``sum g^2 / sqrt(v_t) >= A - m eps``. By Cauchy and
  Schwarz, and as log is concave, ``A <= m eps + D / eta + L rho sqrt(N_u N_v) + L eta N_v / 2`` and ``N_v <= m + 2 m
  log(A / m) - sum_j log v_1``.
* ``S = sqrt(sum ||s||^2) <= sqrt(sum ||g||^2) + L sqrt(sum ||w - x||^2) <= A + L rho sqrt(N_u)``, and ``N_u <= m + m
  log(S^2 / m + eps^2) - sum_j log u_1``.

The right sides grow with A and S, but only as logarithms: there is a largest solution, which bounds S for all T, so
that the average is at most S^2 / T. It is loose where rho is large, but has no 1/eps, although 1/sqrt(v_1) may be
that.

Proofs for the others, on quadratics with eigenvalues h_j:

* SAM: ``s_j+ = s_j (1 - eta h_j - eta rho h_j^2 / ||s||)``. Along eigenvector i it has the orbit ``||s|| = eta h_i^2
  rho / (2 - eta h_i)``. Near that s_j is multiplied by ``1 - eta h_j - (h_j / h_i)^2 (2 - eta h_i)`` in every step,
  which is in (-1, 1) if h_j < h_i and below -1 if h_j > h_i: only the orbit of the largest attracts. If that has ``eta
  h_i > 2``, SAM diverges.
* AdaSAM: ``||g|| >= rho ||H s|| / ||s|| >= h_min rho``, and ``(1 - beta1) g_t = m_t - beta1 m_{t-1}`` with ``||m_t||
  <= sqrt(v) ||x_{t+1} - x_t|| / eta``, where v is the largest v-hat. So of three gradients in a row one is at least
  ``(1 - beta1) / (2 (1 + beta1)) h_min^2 eta rho / sqrt(v)``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters
from ..plots import heatmap
from . import lightsam, setups

if TYPE_CHECKING:
    from torch import Tensor

    from ...optimizer import SharpnessAware
    from ..problems import Problem
    from ..running import Trace

_DECADES = (0.01, 0.1, 1.0, 10.0, 100.0)
_EIGENVALUES, _START, _EPS, _BETA1 = (1.0, 0.75, 0.5), 0.05, 1e-8, 0.9
_TOLERANCE = 1e-4 * _START * math.hypot(*_EIGENVALUES)  # of the gradient at the start
_DIVERGED = 1e12
_WHERE = "f = (x_1^2 + 3/4 x_2^2 + 1/2 x_3^2) / 2 from (0.05, 0.05, 0.05), rho and eta in {0.01, 0.1, 1, 10, 100}"

_GRID = tuple({"rho": rho, "lr": lr, "steps": 2000} for rho in _DECADES for lr in _DECADES)


def adasam(problem: Problem, lr: float, rho: float) -> SharpnessAware:
    """Return AdaSAM over a new parameter at the default start."""
    from ... import AdaSAM

    return AdaSAM([problem.parameter()], lr, rho=rho, betas=(_BETA1, 0.999))


def _bound_of_sum(problem: Problem, variant: lightsam.Variant, lr: float, rho: float) -> float:
    """Return a bound of the sum of LightSAM's squared gradients over any number of steps."""

    def first(gradient: Tensor) -> Tensor:
        squares = gradient.square()
        return _EPS**2 + (squares if variant == "adagrad" else squares.sum(-1, keepdim=True))

    def added(sums: Tensor) -> float:
        return sum(min(1 - math.log(one), -2 * math.log(_EPS)) for one in sums.tolist())

    start = problem.start()
    clean = problem.gradient(start)
    u = first(clean)
    v = first(problem.gradient(start + rho * clean / u.sqrt()))
    smoothness, gap, m = problem.smoothness, float(problem.value(start)) - problem.minimum, len(u)
    a = s = 1e9 * (_EPS + gap / lr + smoothness * (rho + lr))
    for _ in range(200):
        n_v = added(v) + 2 * m * math.log(a / m)
        n_u = added(u) + m * math.log(s**2 / m + _EPS**2)
        a = m * _EPS + gap / lr + smoothness * (rho * math.sqrt(n_u * n_v) + lr * n_v / 2)
        s = a + smoothness * rho * math.sqrt(n_u)
    return s**2


def _problem(p: Parameters) -> Problem:
    if p.get("problem") == "sine":
        return theory.Sine()
    return theory.Quadratic(_EIGENVALUES, start=p.get("start", _START))


def _run(p: Parameters, variant: lightsam.Variant) -> Trace:
    problem = _problem(p)
    return theory.run(problem, lightsam.lightsam(problem, variant, p["lr"], p["rho"]), p["steps"])


def _average(trace: Trace, steps: int) -> float:
    """Return the mean of the squared gradients from which so many first steps were taken."""
    return float(trace.squared_norms[:steps].mean())


def _last(trace: Trace, count: int = 2) -> float:
    """Return the largest of the last gradients; of a run that diverged, 1e12."""
    last = float(trace.squared_norms[-count:].max().sqrt())
    return min(last, _DIVERGED) if math.isfinite(last) else _DIVERGED


def _any_setting(p: Parameters, variant: lightsam.Variant) -> Numbers:
    trace, steps = _run(p, variant), p["steps"]
    average = _average(trace, steps)
    ratio = average / _average(trace, steps // 4)
    return {"last gradient": _last(trace), "average": average, "average over T / over T/4": ratio}


def _any_setting_predict(p: Parameters, variant: lightsam.Variant) -> Numbers:
    bound = _bound_of_sum(_problem(p), variant, p["lr"], p["rho"]) / p["steps"]
    return {"tolerance": _TOLERANCE, "average": bound, "1/4": 0.25}


_ANY_SETTING = (
    Bound("last gradient", "<=", "tolerance"),
    Equal("average over T / over T/4", "1/4", within=0.02),
    Bound("average", "<=", "average"),
)
_FORMULA = (
    f"{_WHERE}: (1/T) sum ||grad f(x_t)||^2 <= S^2 / T, with S from L, f(x_1) - f*, rho, eta, eps and the first "
    "gradients; ||grad f(x_T)|| <= 1e-4 ||grad f(x_1)||"
)

FIRST = Claim(
    id="lightsam-1-any-setting",
    source=f"{lightsam.CHENG}, theorem: O(log T / sqrt(T)) for every rho and eta; without noise O(1/T), bound and "
    "constants are ours",
    statement="Without noise LightSAM-I converges at every rho and eta over four decades: its squared gradients have "
    "a sum, for which there is a bound, and all 25 runs reach a ten-thousandth of the gradient at the start.",
    formula=_FORMULA,
    grid=_GRID,
    predict=lambda p: _any_setting_predict(p, "adagrad-norm"),
    simulate=lambda p, seed: _any_setting(p, "adagrad-norm"),
    checks=_ANY_SETTING,
    plot=heatmap("lr", "rho", "last gradient"),
)

SECOND = Claim(
    id="lightsam-2-any-setting",
    source=f"{lightsam.CHENG}, theorem: O(log T / sqrt(T)) for every rho and eta; without noise O(1/T), bound and "
    "constants are ours",
    statement="Without noise LightSAM-II converges at every rho and eta over four decades: its squared gradients have "
    "a sum, for which there is a bound, and all 25 runs reach a ten-thousandth of the gradient at the start.",
    formula=_FORMULA,
    grid=_GRID,
    predict=lambda p: _any_setting_predict(p, "adagrad"),
    simulate=lambda p, seed: _any_setting(p, "adagrad"),
    checks=_ANY_SETTING,
    plot=heatmap("lr", "rho", "last gradient"),
)

BOUND = Claim(
    id="lightsam-bound",
    source=f"ours; the rate with noise is that of the theorem of {lightsam.CHENG}",
    statement="Without noise the average of LightSAM's squared gradients is O(1/T) on any smooth function, with a "
    "bound that needs no bounded gradients.",
    formula="(1/T) sum ||grad f(x_t)||^2 <= S^2 / T with S = A + L rho sqrt(N_u), "
    "A = m eps + (f(x_1) - f*) / eta + L rho sqrt(N_u N_v) + L eta N_v / 2, "
    "N_v = m + 2 m log(A/m) - sum log v_1, N_u = m + m log(S^2/m + eps^2) - sum log u_1",
    grid=tuple(
        {"problem": problem, "variant": variant, "rho": 0.1, "lr": 0.1, "start": 1.0, "steps": steps}
        for problem, variant in (("quadratic", "adagrad-norm"), ("quadratic", "adagrad"), ("sine", "adagrad-norm"))
        for steps in (100, 1000, 5000)
    ),
    predict=lambda p: {"average": _bound_of_sum(_problem(p), p["variant"], p["lr"], p["rho"]) / p["steps"]},
    simulate=lambda p, seed: {"average": _average(_run(p, p["variant"]), p["steps"])},
    checks=(Bound("average", "<=", "average"),),
    plot=lightsam.over_steps("average", "average", ("problem", "variant"), "lower left", bottom=1e-7),
)

_SHORTER = 16


def _noisy(p: Parameters, seed: int) -> Numbers:
    problem, steps = theory.NoisyQuadratic(_EIGENVALUES, p["sigma"], _START), p["steps"]
    optimizer = lightsam.lightsam(problem, p["variant"], p["lr"], p["rho"])
    trace = theory.run(problem, optimizer, steps, setups.seeded(seed))
    short, long = (_average(trace, n) * math.sqrt(n) / math.log(n) for n in (max(2, steps // _SHORTER), steps))
    return {"average": _average(trace, steps), "growth": long / short}


NOISY_FIRST, NOISY_SECOND = (
    Claim(
        id=f"lightsam-{number}-any-setting-noise",
        source=f"{lightsam.CHENG}, theorem: O(log T / sqrt(T)) for every rho and eta; problem and test are ours",
        statement=f"With noise the average of the squared gradients of LightSAM-{name} falls at least as "
        "log(T) / sqrt(T), at every rho and eta over four decades.",
        formula=f"{_WHERE}: avg(T) = (1/T) sum ||grad f(x_t)||^2, growth = (avg(T) sqrt(T) / log(T)) / "
        "(avg(T/16) sqrt(T/16) / log(T/16)): E growth <= 1",
        grid=tuple(
            {"variant": variant, "rho": rho, "lr": lr, "sigma": 0.05, "steps": 256}
            for rho in _DECADES
            for lr in _DECADES
        ),
        predict=lambda p: {"1": 1.0},
        simulate=_noisy,
        checks=(Bound("growth", "<=", "1"),),
        seeds=20,
        plot=heatmap("lr", "rho", "average", floor=1e-6),
    )
    for number, name, variant in ((1, "I", "adagrad-norm"), (2, "II", "adagrad"))
)

THIRD = Claim(
    id="lightsam-3-any-setting",
    source=f"ours; not said by the theorem of {lightsam.CHENG}",
    statement="LightSAM-III with the default betas, too, reaches a ten-thousandth of the gradient at the start at "
    "every rho and eta. It does not, so that any rho and eta will do must not be said of it.",
    formula=f"{_WHERE}: ||grad f(x_T)|| <= 1e-4 ||grad f(x_1)||",
    grid=_GRID,
    predict=lambda p: {"tolerance": _TOLERANCE},
    simulate=lambda p, seed: {"last gradient": _last(_run(p, "adam"))},
    checks=(Bound("last gradient", "<=", "tolerance"),),
    expected="refuted",
    plot=heatmap("lr", "rho", "last gradient"),
)


def _sam(p: Parameters, seed: int) -> Numbers:
    problem = _problem(p)
    return {"last gradient": _last(theory.run(problem, setups.sam(problem, p["lr"], p["rho"]), p["steps"]))}


def _sam_predict(p: Parameters) -> Numbers:
    h, lr = max(_EIGENVALUES), p["lr"]
    level = lr * h**2 * p["rho"] / (2 - lr * h) if lr * h < 2 else _DIVERGED
    return {"last gradient": min(level, _DIVERGED), "tolerance": _TOLERANCE}


SAM_GRID = Claim(
    id="sam-same-grid",
    source="ours",
    statement="On the same grid SAM reaches a ten-thousandth of the gradient at the start in none of the 25 settings: "
    "with the larger learning rates it diverges, with the others it ends on an orbit along the largest eigenvalue.",
    formula=f"{_WHERE}: ||grad f(x_T)|| = eta h^2 rho / (2 - eta h) with h = 1 if eta h < 2; 1e12 stands for runs that "
    "diverge",
    grid=_GRID,
    predict=_sam_predict,
    simulate=_sam,
    checks=(
        Equal("last gradient", "last gradient", within=1e-6),
        Bound("last gradient", ">=", "tolerance"),
    ),
    plot=heatmap("lr", "rho", "last gradient"),
)


def _adasam(p: Parameters, seed: int) -> Numbers:
    problem = _problem(p)
    optimizer = adasam(problem, p["lr"], p["rho"])
    last = _last(theory.run(problem, optimizer, p["steps"]), 3)
    (w,) = optimizer.param_groups[0]["params"]
    v = float(optimizer.base.state[w]["max_exp_avg_sq"].max())
    return {"last gradient": last, "last gradient * sqrt(v) / (lr rho)": last * math.sqrt(v) / (p["lr"] * p["rho"])}


ADASAM_GRID = Claim(
    id="adasam-same-grid",
    source="ours",
    statement="On the same grid AdaSAM with a constant rho reaches a ten-thousandth of the gradient at the start in "
    "none of the 25 settings: one of any three gradients in a row is above a floor in proportion to rho.",
    formula=f"{_WHERE}: max ||grad f|| over the last three iterates >= "
    "(1 - beta1) / (2 (1 + beta1)) h_min^2 eta rho / sqrt(max v-hat)",
    grid=_GRID,
    predict=lambda p: {
        "floor": (1 - _BETA1) / (2 * (1 + _BETA1)) * min(_EIGENVALUES) ** 2,
        "tolerance": _TOLERANCE,
    },
    simulate=_adasam,
    checks=(
        Bound("last gradient", ">=", "tolerance"),
        Bound("last gradient * sqrt(v) / (lr rho)", ">=", "floor"),
    ),
    plot=heatmap("lr", "rho", "last gradient"),
)

CLAIMS = (FIRST, SECOND, BOUND, NOISY_FIRST, NOISY_SECOND, THIRD, SAM_GRID, ADASAM_GRID)
