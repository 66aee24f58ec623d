"""The surrogate gap of GSAM and its decomposition of the gradient: Zhuang et al., arXiv 2203.08065.

That the gap tells the top eigenvalue of the Hessian H near a minimum, for small rho, is the paper's; numbers and proofs
are ours, for f whose gradient and Hessian have the Lipschitz constants L and M. ``u = g / ||g||`` for the gradient g at
x, the climb is ``delta = rho u``, s is the gradient at its end, and v the part of g that is orthogonal to s.

* At a minimum, for the largest rise h over the ball: ``|f(x + d) - f(x) - <d, H d> / 2| <= M ||d||^3 / 6``, so that
  ``|2 h / rho^2 - lambda_max| <= M rho / 3``. If f is a sum over coordinates with fourth derivatives up to F, t is the
  third along the top coordinate, and the next eigenvalue is ``M rho / 3`` or more below, it pays not to leave that
  coordinate's axis but for fourth derivatives: ``2 h / rho^2 = lambda_max + |t| rho / 3`` up to ``F rho^2 / 12``.
* After one climb, ``h = f(x + delta) - f(x)``: ``2 (h - rho ||g||) / rho^2`` is a mean of ``<u, H u>`` over the points
  of the climb, hence at most L, and within ``M rho / 3`` of ``<u, H u>`` at x. ``2 h / rho^2`` is larger, by ``2 ||g||
  / rho``.
* Two-cycles: on ``f = 1/2 sum h_j x_j^2`` let ``x = c e_j``, ``c = eta h_j rho / (2 - eta h_j)``, moved by a small y
  along k; ``q = rho / c`` and ``r = h_k / h_j``. To first order g has ``h_k y`` there, s has ``h_k y (1 + q r)`` and v
  has ``h_k y q (1 - r) / (1 + q)`` with ``q / (1 + q) = 1 - eta h_j / 2``. So a step multiplies y by
  ``1 - eta h_k [1 + q r - alpha (1 - r) (1 - eta h_j / 2)]``. For alpha = 0 this is less than 1 in absolute value just
  if ``eta h_j r + (2 - eta h_j) r^2 < 2``, so if ``r < 1``: only the two-cycle along the top eigenvector is stable. An
  alpha in (0, 1] makes the bracket smaller, but not negative, if ``r < 1``, and larger if ``r > 1``: nothing changes.
* Decomposition: v is orthogonal to s, so that ``||v|| <= min{||g||, ||g - s||}`` and ``||g - s|| <= L rho``. SAM goes
  to ``a = x - eta s`` and GSAM to ``a + eta alpha v``. Gradients between the two are within ``e = L eta (||s|| +
  |alpha| ||v||)`` of g, or of s, where both points are moved by delta. So f differs by ``eta alpha <g, v> = eta alpha
  ||v||^2`` and ``f(. + delta)`` by ``eta alpha <s, v> = 0``, up to ``e eta |alpha| ||v||``. Here delta stays as it was
  at x; to first order that is right for the worst value of a ball, whose gradient is that at its worst point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Point
from . import gsam_setups as common
from . import setups

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from ..problems import Problem

_BEND = 48 / (25 * math.sqrt(5))  # M of sqrt(1 + x^2), which is more than that of log cosh x


_QUADRATIC: Parameters = {"problem": "quadratic", "eigenvalues": (1.0, 0.5, 0.2)}
_PROBLEMS: tuple[Parameters, ...] = (_QUADRATIC, {"problem": "pseudo-huber", "seed": 0}, {"problem": "log-cosh"})


def _problem(p: Parameters) -> Any:
    if p["problem"] == "pseudo-huber":
        return theory.PseudoHuber(examples=32, seed=p["seed"])
    return theory.LogCosh(5) if p["problem"] == "log-cosh" else theory.Quadratic(p["eigenvalues"])


def _derivatives(problem: Any) -> tuple[float, float]:
    """Return the top eigenvalue at the minimum, and the third derivative in its direction."""
    x = problem.minimisers[0]
    if not hasattr(problem, "targets"):
        return problem.smoothness, 0.0
    away = x - problem.targets
    second, third = (1 + away.square()) ** -1.5, -3 * away * (1 + away.square()) ** -2.5
    top = int(second.mean(0).argmax())
    return float(second.mean(0)[top]), float(third.mean(0)[top])


def _largest_gap(problem: Problem, x: Tensor, rho: float) -> float:
    """Return the largest rise of f in the ball around a point."""
    import torch

    from ...measure import Objective, worst_case

    objective = Objective(
        torch.nn.ParameterList([problem.parameter(x)]),
        lambda value, _: value,
        (torch.zeros(1), torch.zeros(1)),
        forward=lambda model, batch: (problem.value(next(model.parameters())), batch[1]),
    )
    return worst_case(objective, rho, iterations=40, restarts=8).value


_ENDS: Parameters = {"schedule": "constant", "lr": 0.5, "batch": common.FULL, "rho falls": "by itself", "steps": 250}


def _at_minimum(p: Parameters, seed: int) -> Numbers:
    problem = _problem(p)
    end = common.scheduled(problem, {**p, "rho": 0.1}, seed).iterates[-1]
    estimate = 2 * _largest_gap(problem, end, p["rho"]) / p["rho"] ** 2
    return {"2 h / rho^2": estimate, "slope": (estimate - _derivatives(problem)[0]) / p["rho"]}


def _at_minimum_predict(p: Parameters) -> Numbers:
    top, third = _derivatives(_problem(p))
    return {"2 h / rho^2": top, "slope": abs(third) / 3}


def _draw_gaps(points: Sequence[Point], axes: Any) -> None:
    hubers = [point for point in points if point.parameters["problem"] == "pseudo-huber"]
    for seed, colour in zip((1, 2, 4), ("#4477AA", "#228833", "#CCBB44"), strict=True):
        line = [(p.parameters["rho"], p.values("slope")[0]) for p in hubers if p.parameters["seed"] == seed]
        x, y = [rho for rho, _ in line], [abs(slope) * rho for rho, slope in line]
        axes.plot(x, y, "o-", color=colour, markersize=3, label=f"pseudo-huber, data {seed}")
    axes.plot(x, [_BEND / 3 * rho for rho in x], "--", color="#EE6677", linewidth=1, label="M rho / 3")
    axes.set(xscale="log", yscale="log", xlabel="rho", ylabel="|2 h / rho^2 - lambda_max|")
    axes.legend(fontsize=7, frameon=False)


SURROGATE_GAP = Claim(
    id="gsam-surrogate-gap",
    source=f"ours; that the gap tells the top eigenvalue near a minimum is in {common.ZHUANG}, abstract",
    statement="Where GSAM with a falling rho ends, at a minimum, twice the largest rise in a ball over its squared "
    "radius tends to the top eigenvalue.",
    formula="h = max {f(x + d) - f(x): ||d|| <= rho}, M bounds third derivatives: |2 h / rho^2 - lambda_max| <= "
    "M rho / 3; in separable f, of third derivative t at the top, 2 h / rho^2 = lambda_max + |t| rho / 3 + O(rho^2)",
    grid=tuple(
        {**problem, **_ENDS, "alpha": 0.4, "rho": rho}
        for problem in (_QUADRATIC, *({"problem": "pseudo-huber", "seed": seed} for seed in (1, 2, 4)))
        for rho in (0.1, 0.03, 0.01)
    ),
    predict=_at_minimum_predict,
    simulate=_at_minimum,
    checks=(Equal("2 h / rho^2", "2 h / rho^2", within=_BEND / 3, unit="rho"), Equal("slope", "slope", 0.25, "rho")),
    plot=_draw_gaps,
)


def _one_climb(problem: Problem, optimizer: Any, rho: float) -> dict[str, float]:
    """Return what one climb by rho from where an optimizer is tells of curvature, and what is true there."""
    import torch

    w = optimizer.param_groups[0]["params"][0]
    x = w.detach().clone()
    gradient = problem.gradient(x)
    w.grad = gradient.clone()
    with optimizer.ascended():
        gap = float(problem.value(w.detach()) - problem.value(x))
        w.grad = problem.gradient(w.detach())
    norm = float(torch.linalg.vector_norm(gradient))
    along = torch.autograd.functional.hvp(problem.value, x, gradient)[1]  # type: ignore[no-untyped-call]
    return {
        "2 h / rho^2": 2 * gap / rho**2,
        "2 (h - rho |g|) / rho^2": 2 * (gap - rho * norm) / rho**2,
        "<u, H u>": float(gradient @ along) / norm**2,
    }


def _along(p: Parameters, seed: int) -> dict[str, float]:
    """Return what a climb tells after a run from a random start."""
    problem = _problem(p)
    optimizer = common.gsam(problem, p["lr"], p["rho"], p["alpha"], problem.start(setups.seeded(seed)))
    theory.run(problem, optimizer, p["steps"], batch=None, every=max(1, p["steps"]))
    return _one_climb(problem, optimizer, p["rho"])


def _one_step(p: Parameters, seed: int) -> Numbers:
    found = _along(p, seed)
    return {**found, "error": abs(found["2 (h - rho |g|) / rho^2"] - found["<u, H u>"])}


def _draw_climbs(points: Sequence[Point], axes: Any) -> None:
    told, true = "2 (h - rho |g|) / rho^2", "<u, H u>"
    for rho, colour in ((0.5, "#EE6677"), (0.05, "#4477AA")):
        runs = [one for point in points if point.parameters["rho"] == rho for one in point.measured]
        x, y = [one[true] for one in runs], [one[told] for one in runs]
        axes.plot(x, y, ".", color=colour, markersize=3, label=f"rho={rho}")
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axes.set(xlabel=true, ylabel=told)
    axes.legend(fontsize=7, frameon=False)


ONE_STEP_GAP = Claim(
    id="gsam-one-step-gap",
    source="ours",
    statement="All along GSAM's way the gap of its own climb, less rho ||g||, tells the curvature along the gradient, "
    "which is at most the top eigenvalue.",
    formula="h = f(x + rho u) - f(x), u = g / ||g||, M bounds third derivatives: |2 (h - rho ||g||) / rho^2 - "
    "<u, H u>| <= M rho / 3, and 2 (h - rho ||g||) / rho^2 <= L",
    grid=tuple(
        {**problem, "alpha": 0.4, "lr": 0.5, "rho": rho, "steps": steps}
        for problem in _PROBLEMS
        for rho in (0.5, 0.05)
        for steps in (0, 10, 60)
    ),
    predict=lambda p: {"allowed": 1e-9 + (0 if p["problem"] == "quadratic" else _BEND * p["rho"] / 3), "L": 1.0},
    simulate=_one_step,
    checks=(
        Bound("error", "<=", "allowed", surely=True),
        Bound("2 (h - rho |g|) / rho^2", "<=", "L", surely=True),
    ),
    seeds=20,
    plot=_draw_climbs,
)


def _circling_predict(p: Parameters) -> Numbers:
    top = max(p["eigenvalues"])
    pace = p["lr"] * top
    return {"top eigenvalue": top, "more": top * (2 + pace) / (2 - pace)}


def _draw_circling(points: Sequence[Point], axes: Any) -> None:
    problem = theory.Quadratic((1.0, 0.9))
    for alpha, colour in ((0.0, "#4477AA"), (1.0, "#EE6677")):
        path = theory.run(problem, common.gsam(problem, 0.5, 0.1, alpha, [0.001, 0.05]), 40).iterates
        axes.plot(path[:, 0].tolist(), path[:, 1].tolist(), ".-", color=colour, linewidth=0.6, label=f"alpha={alpha}")
    axes.set(xlabel="along the top eigenvector, 1.0", ylabel="along the other one, 0.9")
    axes.legend(fontsize=7, frameon=False)


CIRCLING = Claim(
    id="gsam-circles-on-top",
    source="ours",
    statement="On a quadratic GSAM ends circling along the top eigenvector, whose eigenvalue the gap of its climb "
    "then tells, less rho ||g||; with rho ||g|| it tells more.",
    formula="2 (h - rho ||g||) / rho^2 = lambda_max and 2 h / rho^2 = lambda_max (2 + eta lambda_max) / (2 - eta "
    "lambda_max) at x_T",
    grid=tuple(
        {"problem": "quadratic", "eigenvalues": eigenvalues, "alpha": alpha, "lr": lr, "rho": rho, "steps": 300}
        for eigenvalues, lr, rho in (((1.0, 0.9, 0.3), 0.5, 0.1), ((4.0, 2.0, 1.0, 0.5), 0.1, 1.0))
        for alpha in (0.0, 0.4, 1.0)
    ),
    predict=_circling_predict,
    simulate=_along,
    checks=(
        Equal("2 (h - rho |g|) / rho^2", "top eigenvalue", within=1e-6, surely=True),
        Equal("2 h / rho^2", "more", within=1e-6, surely=True),
    ),
    seeds=20,
    plot=_draw_circling,
)


def _draw_naive(points: Sequence[Point], axes: Any) -> None:
    x = [max(1, point.parameters["steps"]) for point in points]
    for name, colour in (("2 h / rho^2", "#EE6677"), ("2 (h - rho |g|) / rho^2", "#4477AA")):
        for i in range(len(points[0].measured)):
            line = [point.measured[i][name] for point in points]
            axes.plot(x, line, color=colour, linewidth=0.7, label=None if i else name)
    axes.axhline(points[0].predicted["top eigenvalue"], linestyle="--", color="grey", linewidth=1, label="lambda_max")
    axes.set(xscale="log", yscale="log", xlabel="steps")
    axes.legend(fontsize=6, frameon=False)


NAIVE = Claim(
    id="gsam-one-step-gap-is-curvature",
    source=f"ours; that the surrogate gap tells the top eigenvalue near a minimum is in {common.ZHUANG}, abstract, and "
    "is not refuted by this",
    statement="Along GSAM's way twice the gap of its own climb, over rho^2, is the top eigenvalue.",
    formula="h = f(x_t + rho g / ||g||) - f(x_t): 2 h / rho^2 = lambda_max",
    grid=tuple({**_QUADRATIC, "alpha": 0.4, "lr": 0.5, "rho": 0.1, "steps": steps} for steps in (0, 10, 20, 50, 100)),
    predict=_circling_predict,
    simulate=_along,
    checks=(Equal("2 h / rho^2", "top eigenvalue", within=0.1, surely=True),),
    seeds=20,
    expected="refuted",
    plot=_draw_naive,
)


def _step(problem: Problem, optimizer: Optimizer) -> Tensor:
    """Return where one step with the full gradient goes."""
    return theory.run(problem, optimizer, 1, batch=None).iterates[-1]


def _decomposed(p: Parameters, seed: int) -> Numbers:
    import torch

    problem, lr, alpha = _problem(p), p["lr"], p["alpha"]
    x = problem.start(setups.seeded(seed))
    plain, sharp = _step(problem, setups.sgd(problem, lr, x)), _step(problem, setups.sam(problem, lr, p["rho"], x))
    optimizer: Any = common.gsam(problem, lr, p["rho"], alpha, x)
    w = optimizer.param_groups[0]["params"][0]
    w.grad = problem.gradient(x)
    with optimizer.ascended():
        delta = w.detach() - x
        w.grad = problem.gradient(w.detach())
    blended = _step(problem, optimizer)
    g, s, v = (x - plain) / lr, (x - sharp) / lr, (blended - sharp) / (lr * alpha)
    lengths = [float(torch.linalg.vector_norm(vector)) for vector in (g, s, v)]
    allowed = (lengths[1] + abs(alpha) * lengths[2]) * lengths[2] * abs(alpha) * lr**2  # L = 1
    rise = float(problem.value(blended) - problem.value(sharp))
    rise_above = float(problem.value(blended + delta) - problem.value(sharp + delta))
    return {
        "cosine": abs(float(v @ s)) / (lengths[1] * lengths[2]),
        "|v| / min(|g|, L rho)": lengths[2] / min(lengths[0], p["rho"]),
        "f": abs(rise - lr * alpha * lengths[2] ** 2) / allowed,
        "f above": abs(rise_above) / allowed,
    }


DECOMPOSITION = Claim(
    id="gsam-decomposition",
    source=f"ours; the decomposition is the algorithm's in {common.ZHUANG}",
    statement="What GSAM's step has more than SAM's is orthogonal to the sharp gradient and no longer than the clean "
    "one or L rho; to first order it leaves the perturbed loss as it is and, if alpha is positive, raises the loss, "
    "which narrows the gap.",
    formula="x_GSAM - x_SAM = eta alpha v: <v, s> = 0, ||v|| <= min{||g||, L rho}; f(x + .) differs by eta alpha "
    "||v||^2, f(x + delta + .) by 0, both up to L eta^2 |alpha| ||v|| (||s|| + |alpha| ||v||)",
    grid=tuple(
        {**problem, "alpha": alpha, "lr": lr, "rho": rho, "steps": 1}
        for problem in _PROBLEMS
        for alpha, lr, rho in ((0.4, 1e-3, 0.1), (-0.4, 1e-3, 1.0), (1.0, 0.1, 0.1))
    ),
    predict=lambda p: {"rounding": 1e-6, "one": 1.0},
    simulate=_decomposed,
    checks=(
        Bound("cosine", "<=", "rounding", surely=True),
        Bound("|v| / min(|g|, L rho)", "<=", "one", surely=True),
        Bound("f", "<=", "one", surely=True),
        Bound("f above", "<=", "one", surely=True),
    ),
    seeds=50,
)

CLAIMS = (SURROGATE_GAP, ONE_STEP_GAP, CIRCLING, NAIVE, DECOMPOSITION)
