"""LightSAM, SAM whose radius and learning rate adapt: Cheng et al., arXiv 2505.24399.

The paper's theorem: squared gradients fall as O(log T / sqrt(T)) on average, for every rho and eta, on smooth
functions with noise. What follows here, examples and constants are derived. `lightsam_grid` has grids of rho and eta,
`lightsam_sine` says where runs end.

Proofs, for ``s = grad f(x)`` at the iterate, ``g`` at the climbed point ``w``, and the sums of their squares u and v:

* Climbs: ``s_t^2 / u_t = 1 - u_{t-1} / u_t <= log(u_t / u_{t-1})``, and the first of them is at most 1. So ``sum ||w_t
  - x_t||^2 <= rho^2 (1 + log(u_T / u_1))``; with "adagrad" that holds in every coordinate. If gradients are noise,
  alike at all steps, each has the same share of their sum: ``E s_t^2 / u_t = 1/t``. Each climb of SAM is rho long.
* Noise of variance sigma^2: ``u_t`` and ``v_t`` tend to ``sigma^2 t``. So the climb vanishes, and what is left is SGD
  with the learning rate ``a = eta / (sigma sqrt(t))``. On a quadratic, where each of d coordinates has noise of
  variance ``tau^2 = sigma^2 / d``, ``E x_j^2`` becomes ``(1 - a h_j)^2 E x_j^2 + a^2 tau^2``. With "adagrad" the rate
  is ``eta / (tau sqrt(t))``.
* "adam" with a fixed beta2 < 1 forgets old gradients. On a quadratic each coordinate goes its own way, and none
  converges for beta1 = 0, unless it hits 0: say ``|s_t| <= k eta h / 2`` from some time on, with k < 1. Steps are then
  at most ``k eta`` long, so ``g_t^2 <= k^2 v_t``, and v falls geometrically to 0, with g and s. But ``x+ = x (1 - (eta
  h / sqrt(v)) (1 + rho h / sqrt(u)))`` more than doubles once v is small.
* Where it ends, for beta2 near 1: u and v are almost constant, so a step is linear. It neither grows nor shrinks on
  ``x_t = b cos(phi t)`` if, with ``R = (1 - beta1) / (1 - beta1 e^{-i phi})``, ``u = h^2 b^2 / 2`` and v likewise,
  ``e^{i phi} - 1 = -(sqrt(2) eta / b) R (1 + z) / |1 + z|`` where ``z = sqrt(2) rho R / b``. The modulus gives b, the
  argument phi; h cancels. In the mean square s is ``h b / sqrt(2)``, and the climb ``rho |R|``, in each coordinate.
* "adam" with ``1 - beta2 = 1/T`` forgets nothing within T steps: it is "adagrad" with ``rho sqrt(T)``, ``eta sqrt(T)``
  and momentum. On a quadratic that converges, but from first steps of order ``eta sqrt(T)``. In units of these the run
  does not depend on T, so the average of squared gradients over all T steps is of order eta^2.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Point, Power
from ..plots import Plot, curves, intervals
from . import setups

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from ..problems import Problem, Stochastic

CHENG = "Cheng et al., arXiv 2505.24399"

Variant = Literal["adagrad-norm", "adagrad", "adam"]


def lightsam(
    problem: Problem,
    variant: Variant,
    lr: float,
    rho: float,
    start: Tensor | Sequence[float] | None = None,
    beta2: float = 0.999,
) -> Optimizer:
    """Return LightSAM over a new parameter at the start; "adam" has beta1 = 0.9."""
    from ... import LightSAM

    return LightSAM([problem.parameter(start)], lr, rho=rho, variant=variant, betas=(_BETA1, beta2))


_BETA1 = 0.9


def _passes(problem: Stochastic) -> list[tuple[Tensor, Tensor]]:
    """Return a list that will hold the points of all passes, clean and sharp ones in turn, and the gradients there."""
    seen: list[tuple[Tensor, Tensor]] = []
    evaluate = problem.component_gradient

    def spy(x: Tensor, sample: Tensor) -> Tensor:
        gradient = evaluate(x, sample)
        seen.append((x.clone(), gradient))
        return gradient

    problem.component_gradient = spy  # type: ignore[method-assign]
    return seen


def _climbs(p: Parameters, seed: int) -> tuple[Tensor, Tensor]:
    """Return the climbs of a noisy run, one a row, and the sampled gradients along which they went."""
    import torch

    problem = theory.NoisyQuadratic(sigma=p["sigma"], start=p["start"])
    seen, steps = _passes(problem), p["steps"]
    optimizer = lightsam(problem, p["variant"], p["lr"], p["rho"])
    theory.run(problem, optimizer, steps, setups.seeded(seed), every=steps)
    points = torch.stack([point for point, _ in seen])
    return points[1::2] - points[::2], torch.stack([gradient for _, gradient in seen[::2]])


def _climbs_to_bound(p: Parameters, seed: int) -> Numbers:
    climbs, gradients = _climbs(p, seed)
    squares = gradients.square()
    if p["variant"] == "adagrad-norm":
        squares = squares.sum(1, keepdim=True)
    bound = p["rho"] ** 2 * float((1 + (squares.sum(0) / squares[0]).log()).sum())
    return {"sum / bound": float(climbs.square().sum()) / bound}


PERTURBATIONS_BOUND = Claim(
    id="lightsam-perturbations-bound",
    source="ours",
    statement="In every run of LightSAM-I the squares of the climbs add up to at most a logarithm of the accumulated "
    "gradients; in those of LightSAM-II so they do in every coordinate.",
    formula="sum_t ||w_t - x_t||^2 <= rho^2 (1 + log(u_T / u_1)) with u_t = eps^2 + sum ||s||^2",
    grid=tuple(
        {"variant": variant, "rho": rho, "lr": lr, "sigma": 1.0, "start": 2.0, "steps": 200}
        for variant in ("adagrad-norm", "adagrad")
        for rho, lr in ((0.1, 10.0), (1.0, 1.0), (10.0, 0.1))
    ),
    predict=lambda p: {"1": 1.0},
    simulate=_climbs_to_bound,
    checks=(Bound("sum / bound", "<=", "1", surely=True),),
    seeds=20,
)


def _climbs_sum(p: Parameters, seed: int) -> Numbers:
    return {"sum / rho^2": float(_climbs(p, seed)[0].square().sum()) / p["rho"] ** 2}


def _climbs_predict(p: Parameters) -> Numbers:
    harmonic = math.fsum(1 / t for t in range(1, p["steps"] + 1))
    return {"sum / rho^2": (8 if p["variant"] == "adagrad" else 1) * harmonic}


def over_steps(
    quantity: str, predicted: str | None, each: tuple[str, ...], legend: str = "best", bottom: float | None = None
) -> Plot:
    """Draw a measured number over the number of steps, as `curves`, with a tick at each, and room for the legend."""

    def draw(points: Sequence[Point], axes: Any) -> None:
        curves("steps", quantity, predicted, each)(points, axes)
        axes.minorticks_off()
        axes.set_xticks(sorted({point.parameters["steps"] for point in points}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(bottom=bottom)
        axes.legend(fontsize=7, frameon=False, loc=legend)

    return draw


def _draw_climbs(points: Sequence[Point], axes: Any) -> None:
    steps = sorted({point.parameters["steps"] for point in points})
    axes.plot(steps, steps, ":", color="grey", label="SAM")
    over_steps("sum / rho^2", "sum / rho^2", ("variant", "rho"))(points, axes)


PERTURBATIONS = Claim(
    id="lightsam-perturbations",
    source=f"ours; on why every rho will do for {CHENG}",
    statement="If noise outweighs the gradient, the squares of LightSAM's climbs add up to rho^2 times a harmonic "
    "number: they grow with the logarithm of T. Those of SAM add up to rho^2 T.",
    formula="E sum_{t<=T} ||w_t - x_t||^2 = rho^2 (1 + 1/2 + ... + 1/T); for II that in each of d = 8 coordinates",
    grid=tuple(
        {"variant": variant, "rho": rho, "lr": 0.1, "sigma": 1.0, "start": 0.0, "steps": steps}
        for variant in ("adagrad-norm", "adagrad")
        for rho in (0.1, 1.0)
        for steps in (10, 80, 640)
    ),
    predict=_climbs_predict,
    simulate=_climbs_sum,
    checks=(Equal("sum / rho^2", "sum / rho^2", within=0.1),),
    seeds=20,
    plot=_draw_climbs,
)


def _noise_level(p: Parameters, seed: int) -> Numbers:
    problem, steps = theory.NoisyQuadratic(sigma=p["sigma"], start=0.0), p["steps"]
    optimizer = lightsam(problem, p["variant"], p["lr"], p["rho"])
    trace = theory.run(problem, optimizer, steps, setups.seeded(seed))
    return {"average": float(trace.squared_norms[steps // 2 : steps].mean())}


def _noise_level_predict(p: Parameters) -> Numbers:
    curvatures = theory.NoisyQuadratic().eigenvalues.tolist()
    variance = p["sigma"] ** 2 / len(curvatures)
    scale = math.sqrt(variance) if p["variant"] == "adagrad" else p["sigma"]
    squares, total = [0.0] * len(curvatures), 0.0
    for t in range(p["steps"]):
        if t >= p["steps"] // 2:
            total += sum(h**2 * x for h, x in zip(curvatures, squares, strict=True))
        rate = p["lr"] / (scale * math.sqrt(t + 1))
        squares = [(1 - rate * h) ** 2 * x + rate**2 * variance for h, x in zip(curvatures, squares, strict=True)]
    return {"average": total / (p["steps"] - p["steps"] // 2)}


NOISE_LEVEL = Claim(
    id="lightsam-noise-level",
    source=f"ours; the rate 1/sqrt(T) up to logarithms is that of the theorem of {CHENG}",
    statement="With noise LightSAM ends as SGD with a learning rate that falls as 1/sqrt(t): its squared gradients are "
    "what they are there, whatever rho.",
    formula="eta_t = eta / (sigma sqrt(t)): E ||grad f(x_t)||^2 -> eta sigma h / (2 sqrt(t)) with the mean eigenvalue "
    "h, for II times sqrt(d); here the exact mean over the second half of the run",
    grid=tuple(
        {"variant": variant, "rho": rho, "lr": lr, "sigma": 1.0, "steps": 1200}
        for variant, lr, radii in (("adagrad-norm", 1.0, (0.1, 1.0)), ("adagrad", 0.3, (0.03, 0.3)))
        for rho in radii
    ),
    predict=_noise_level_predict,
    simulate=_noise_level,
    checks=(Equal("average", "average", within=0.2),),
    seeds=24,
    plot=intervals("average", "average", ("variant", "rho")),
)

_EIGENVALUES = (1.0, 0.5)


def _orbit(rho: float, lr: float) -> tuple[float, complex]:
    """Return the amplitude b of the oscillation in which "adam" ends, and the factor R of its averages."""

    def averages(phi: float) -> complex:
        return (1 - _BETA1) / (1 - _BETA1 * cmath.exp(-1j * phi))

    def amplitude(phi: float) -> float:
        return math.sqrt(2) * lr * abs(averages(phi)) / (2 * math.sin(phi / 2))

    def excess(phi: float) -> float:
        r = averages(phi)
        turned = -r * (1 + math.sqrt(2) * rho * r / amplitude(phi))
        return cmath.phase(turned / (cmath.exp(1j * phi) - 1))

    low, high = 1e-3, 3.1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return amplitude(low), averages(low)


def _orbit_predict(p: Parameters) -> Numbers:
    amplitude, averages = _orbit(p["rho"], p["lr"])
    level = math.hypot(*_EIGENVALUES) * amplitude / math.sqrt(2)
    return {"gradient": level, "climb / rho": abs(averages), "bound": level * (200 / p["steps"]) ** 2}


def forgetting(p: Parameters) -> float:
    """Return the beta2 of a setting: a number, or as close to 1 as there are steps."""
    return 1 - 1 / p["steps"] if p["beta2"] == "1 - 1/T" else float(p["beta2"])


def _third_half(p: Parameters, seed: int) -> Numbers:
    problem, steps = theory.Quadratic(_EIGENVALUES, start=1.0), p["steps"]
    optimizer = lightsam(problem, "adam", p["lr"], p["rho"], beta2=forgetting(p))
    trace = theory.run(problem, optimizer, steps)
    half = trace.squared_norms[steps // 2 : steps]
    return {"gradient": float(half.mean().sqrt())}


THIRD_FIXED = Claim(
    id="lightsam-3-fixed-beta2",
    source=f"ours; it limits what can be said of LightSAM-III of {CHENG}",
    statement="LightSAM-III with a fixed beta2, as by default, does not converge: without noise, on a quadratic, its "
    "gradient settles at a level that is known, does not fall with T, and depends on both rho and eta. So any rho and "
    "eta will not do for it.",
    formula="mean square of grad f over the second half = sum_j h_j^2 b^2 / 2, where x_t = b cos(phi t) is the orbit "
    "that neither grows nor shrinks",
    grid=tuple(
        {"rho": rho, "lr": lr, "beta2": beta2, "steps": steps}
        for beta2, steps in ((0.99, 2000), (0.99, 8000), (0.999, 12000))
        for rho, lr in ((1.0, 1.0), (1.0, 0.1), (0.1, 1.0), (0.1, 0.1))
    ),
    predict=_orbit_predict,
    simulate=_third_half,
    checks=(Equal("gradient", "gradient", within=0.05),),
    plot=intervals("gradient", "gradient", ("rho", "lr", "beta2", "steps")),
)

THIRD_GROWING = Claim(
    id="lightsam-3-growing-beta2",
    source=f"ours; on LightSAM-III of {CHENG}",
    statement="With a beta2 that goes to 1 as 1 - 1/T the same runs of LightSAM-III do converge: in their second half "
    "the gradient falls below the level of a fixed beta2, at least as 1/T^2.",
    formula="1 - beta2 = 1/T: root mean square of grad f over the second half <= (200/T)^2 times the level of fixed "
    "beta2",
    grid=tuple(
        {"rho": rho, "lr": lr, "beta2": "1 - 1/T", "steps": steps}
        for rho, lr in ((1.0, 1.0), (1.0, 0.1), (0.1, 1.0), (0.1, 0.1))
        for steps in (1000, 2000, 4000)
    ),
    predict=_orbit_predict,
    simulate=_third_half,
    checks=(Bound("gradient", "<=", "bound"),),
    plot=over_steps("gradient", "bound", ("rho", "lr"), "lower left"),
)


def _falling(p: Parameters) -> float:
    return math.sqrt(250 / p["steps"]) if p["falls"] else 1.0


def _third_average(p: Parameters, seed: int) -> Numbers:
    problem, steps, factor = theory.Quadratic(_EIGENVALUES, start=0.1), p["steps"], _falling(p)
    optimizer = lightsam(problem, "adam", factor * p["lr"], factor * p["rho"], beta2=forgetting(p))
    average = float(theory.run(problem, optimizer, steps).squared_norms[:-1].mean())
    return {"average": average, "average / lr^2": average / (factor * p["lr"]) ** 2}


THIRD_AVERAGE = Claim(
    id="lightsam-3-average",
    source=f"ours; on LightSAM-III of {CHENG}",
    statement="With 1 - beta2 = 1/T and steps that reach beyond the start, the average of LightSAM-III's squared "
    "gradients over all T steps goes with the square of eta and not with T: with fixed rho and eta it does not fall, "
    "with both falling as 1/sqrt(T) it falls as 1/T.",
    formula="(1/T) sum ||grad f(x_t)||^2 / eta^2 ~ T^0, with rho / eta fixed",
    grid=tuple(
        {"rho": rho, "lr": lr, "falls": falls, "beta2": "1 - 1/T", "steps": steps}
        for falls in (False, True)
        for rho, lr in ((1.0, 1.0), (0.1, 1.0))
        for steps in (250, 500, 1000, 2000, 4000)
    ),
    predict=lambda p: {},
    simulate=_third_average,
    checks=(Power("average / lr^2", over="steps", power=0.0, within=0.15, each=("rho", "lr", "falls")),),
    plot=over_steps("average", None, ("rho", "falls"), "lower left"),
)

CLAIMS = (PERTURBATIONS_BOUND, PERTURBATIONS, NOISE_LEVEL, THIRD_FIXED, THIRD_GROWING, THIRD_AVERAGE)
