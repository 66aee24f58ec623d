"""LightSAM on the sine that is made for SAM's radius: Cheng et al., arXiv 2505.24399.

The paper's theorem is about gradients: they vanish. Which stationary points are found is another matter. Proof, for a
maximum x* with the curvature -h: near it ``s = -h (x - x*)`` and ``w - x* = (1 - rho h / sqrt(u)) (x - x*)``, so ``x+
- x* = (1 + (eta h / sqrt(v)) (1 - rho h / sqrt(u))) (x - x*)``. With ``sqrt(u) > rho h`` the distance grows; with
``sqrt(u) < rho h`` it shrinks, once v is large. So a maximum attracts LightSAM as long as gradients have not added up
to the square of what a climb by rho changes, and where gradients vanish they need not add up to that.

Why runs get there on the sine: while climbs are about rho long they go to where SAM ends, with the climbed point in
the next minimum. As climbs shrink that point falls short of it, and the iterate follows, away from its own minimum. A
start in thousands jumps about for long enough to end at a minimum. In one dimension LightSAM-I and
LightSAM-II are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ... import theory
from ..claim import Bound, Claim, Numbers, Parameters, Point
from . import lightsam, setups


def _run(p: Parameters, seed: int) -> Numbers:
    problem = theory.Sine(p["beta"], p["width"])
    start = problem.start(setups.seeded(seed))
    trace = theory.run(problem, lightsam.lightsam(problem, "adagrad-norm", p["lr"], p["rho"], start), p["steps"])
    trapped = 27 / (100 * math.pi**2) * (p["beta"] * p["width"]) ** 2  # what SAM keeps if its radius is the width
    at_maximum = bool(problem.from_minimum(trace.iterates[-1]).abs() > problem.period / 4)
    added = float(trace.squared_norms[:-1].sum().sqrt()) / (p["beta"] * p["rho"])
    return {
        "squared gradient / SAM's": float(trace.squared_norms[-1]) / trapped,
        "share of maxima": float(at_maximum),
        "sqrt(u) / (beta rho) at maxima": added if at_maximum else 0.0,
    }


def _predict(p: Parameters) -> Numbers:
    return {"vanishes": 1e-6, "nearly all": 0.9, "1": 1.0}


def _grid(steps: int) -> tuple[Parameters, ...]:
    settings = ((1.0, 1.0, 0.5), (2.0, 0.3, 0.4), (1.0, 1.0, 0.1))
    return tuple({"beta": beta, "width": rho, "rho": rho, "lr": lr, "steps": steps} for beta, rho, lr in settings)


def _draw_gradients(points: Sequence[Point], axes: Any) -> None:
    problem, steps, start = theory.Sine(), 100, [0.5]
    for name, optimizer in (
        ("SAM", setups.sam(problem, 0.5, 1.0, start)),
        ("LightSAM-I", lightsam.lightsam(problem, "adagrad-norm", 0.5, 1.0, start)),
    ):
        squares = theory.run(problem, optimizer, steps).squared_norms.clamp(min=1e-32)
        axes.plot(range(steps + 1), squares.tolist(), linewidth=1, label=name)
    axes.set(yscale="log", xlabel="steps", ylabel="squared gradient")
    axes.legend(fontsize=7, frameon=False)


GRADIENT = Claim(
    id="lightsam-sine",
    source=f"{lightsam.CHENG}, theorem: gradients vanish for every rho and eta; the function and numbers are ours",
    statement="On the sine that traps SAM the gradient of LightSAM with the same radius vanishes, from every random "
    "start: its square falls below a millionth of what SAM keeps.",
    formula="f = (9 beta rho^2 / (25 pi^2)) sin(5 pi x / (3 rho)): f'(x_T)^2 <= 1e-6 * 27/(100 pi^2) beta^2 rho^2",
    grid=_grid(400),
    predict=_predict,
    simulate=_run,
    checks=(Bound("squared gradient / SAM's", "<=", "vanishes", surely=True),),
    seeds=50,
    plot=_draw_gradients,
)


def _draw_ends(points: Sequence[Point], axes: Any) -> None:
    import torch

    problem = theory.Sine()
    xs = torch.linspace(0.0, problem.period, 121, dtype=torch.float64)
    axes.plot(xs.tolist(), problem.value(xs.unsqueeze(-1)).tolist(), color="grey", linewidth=1, label="f")
    for seed in range(12):
        start = problem.start(setups.seeded(seed))
        for name, optimizer, marker in (
            ("SAM ends", setups.sam(problem, 0.5, 1.0, start), "C3x"),
            ("LightSAM-I ends", lightsam.lightsam(problem, "adagrad-norm", 0.5, 1.0, start), "C0o"),
        ):
            end = theory.run(problem, optimizer, 200).iterates[-1] % problem.period
            label = {} if seed else {"label": name}
            axes.plot(float(end), float(problem.value(end)), marker, markersize=5, **label)
    axes.set(xlabel="x, up to a period", ylabel="f")
    axes.legend(fontsize=7, frameon=False)


MAXIMUM = Claim(
    id="lightsam-sine-maximum",
    source="ours",
    statement="That point is not a minimum: on the sine that is made for its radius LightSAM ends at a maximum, from "
    "nearly every random start.",
    formula="P(x_T is near a maximum) >= 0.9; there sqrt(u_T) <= beta rho with u_T = eps^2 + sum f'(x_t)^2",
    grid=_grid(200),
    predict=_predict,
    simulate=_run,
    checks=(
        Bound("share of maxima", ">=", "nearly all"),
        Bound("sqrt(u) / (beta rho) at maxima", "<=", "1", surely=True),
    ),
    seeds=50,
    plot=_draw_ends,
)

MAXIMA = Claim(
    id="lightsam-maxima",
    source="ours",
    statement="With a smaller radius LightSAM-I ends at minima, or at maxima from some starts; at a maximum only in "
    "runs whose gradients have not added up to the square of what a climb changes.",
    formula="x_T at a maximum: sqrt(u_T) <= beta rho",
    grid=tuple({"beta": 1.0, "width": 1.0, "rho": rho, "lr": lr, "steps": 300} for rho, lr in ((0.3, 0.5), (0.1, 0.1))),
    predict=_predict,
    simulate=_run,
    checks=(
        Bound("sqrt(u) / (beta rho) at maxima", "<=", "1", surely=True),
        Bound("squared gradient / SAM's", "<=", "vanishes", surely=True),
    ),
    seeds=50,
)

CLAIMS = (GRADIENT, MAXIMUM, MAXIMA)
