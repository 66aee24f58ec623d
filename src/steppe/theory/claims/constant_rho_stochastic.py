"""SAM with a constant radius and normalised ascent, with sampled gradients: Si and Yun, arXiv 2306.09850.

The abstract says that bounds then have a term of order rho^2 which cannot be avoided. The examples of that, bounds and
constants here are derived: "same" means one sample for both passes of a step, as in practice; "independent", two.

Proofs, for ``g = grad f(x)``, the sharp gradient ``s`` at a distance ``rho``, of components that are beta-smooth with
gradients of variance sigma^2 around ``g``:

* Bounds: ``E <g, s> >= ||g||^2 - beta rho ||g|| >= ||g||^2 / 2 - beta^2 rho^2 / 2`` and ``E ||s||^2 <= 2 ||g||^2 +
  2 sigma^2 + 2 beta^2 rho^2``. If ``eta <= 1/(4 beta)``, then ``E f(x+) <= f(x) - eta ||g||^2 / 4 + eta beta^2 rho^2
  / 2 + beta eta^2 (sigma^2 + beta^2 rho^2)``. Sum over steps; or use ``||g||^2 >= 2 mu (f - f*)``.
* Shifts: near the minimum the climb is ``rho`` times the sign of the noise, whatever x. Take expectations.
* Traps: left of the trap's middle both components push right, right of it left, and jumps are too short to leave.
* Without normalisation the climb is ``rho`` times the gradient, so a step is linear in x. Take expectations.

Expectations of iterates are measured as the mean difference to SAM with a vanishing radius on the same samples: that
is SGD, starts at 0 and has expectation 0 at all times, and the difference has far less noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ... import theory
from ..claim import Bound, Claim, Equal, Numbers, Parameters, Power
from ..plots import curves, intervals
from . import setups

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from ..problems import Stochastic

_VANISHING = 1e-12


def _shift(problem: Stochastic, make: Callable[[float], Optimizer], p: Parameters, seed: int) -> float:
    """Return the mean of iterates of a run from 0 minus that of SGD, once both have forgotten their start."""
    means = []
    for rho in (p["rho"], _VANISHING):
        trace = theory.run(problem, make(rho), p["steps"], setups.seeded(seed), same_sample=p["samples"] == "same")
        means.append(float(trace.iterates[p["steps"] // 3 :].mean()))
    return means[0] - means[1]


_CURVATURE, _PROBABILITY = 1.0, 0.8


def _skewed(p: Parameters, seed: int) -> Numbers:
    problem = theory.SkewedNoise(_CURVATURE, _PROBABILITY, size=1.0)
    shift = _shift(problem, lambda rho: setups.sam(problem, p["lr"], rho), p, seed)
    return {"mean": shift, "floor": _CURVATURE / 2 * shift**2}


def _skewed_predict(p: Parameters) -> Numbers:
    mean = -p["rho"] * (2 * _PROBABILITY - 1)
    return {"mean": mean, "floor": _CURVATURE / 2 * mean**2}


_SKEWED = "f = x^2/2, gradients x + z with z = 1 with probability q = 0.8 and -4 otherwise"

SKEWED = Claim(
    id="sam-skewed-noise",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided for stochastic SAM; example and "
    "constants are ours",
    statement="Skewed noise shifts the mean of SAM's iterates away from the minimum, with the same samples in both "
    "passes and with independent ones.",
    formula=f"{_SKEWED}: E x_t -> -(2q - 1) rho",
    grid=tuple({"rho": 0.2, "lr": 0.02, "samples": samples, "steps": 1200} for samples in ("same", "independent")),
    predict=_skewed_predict,
    simulate=_skewed,
    checks=(Equal("mean", "mean", within=0.1),),
    seeds=20,
    plot=intervals("mean", "mean", ("samples",)),
)

FLOOR_IN_RHO = Claim(
    id="sam-floor-in-rho",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided for stochastic SAM; example and "
    "constants are ours",
    statement="The excess of the mean of SAM's iterates goes with the square of rho.",
    formula=f"{_SKEWED}: f(E x_t) -> (2q - 1)^2 rho^2 / 2; E f(x_t) is more",
    grid=tuple({"rho": rho, "lr": 0.02, "samples": "same", "steps": 800} for rho in (0.05, 0.1, 0.2, 0.4)),
    predict=_skewed_predict,
    simulate=_skewed,
    checks=(Power("floor", over="rho", power=2.0, within=0.1),),
    seeds=20,
    plot=curves("rho", "floor", "floor"),
)

FLOOR_IN_LR = Claim(
    id="sam-floor-in-lr",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided for stochastic SAM; example and "
    "constants are ours",
    statement="The excess of the mean of SAM's iterates does not shrink with the learning rate.",
    formula=f"{_SKEWED}: f(E x_t) -> (2q - 1)^2 rho^2 / 2 for every small eta",
    grid=tuple({"rho": 0.2, "lr": lr, "samples": "same", "steps": round(16 / lr)} for lr in (0.04, 0.02, 0.01)),
    predict=_skewed_predict,
    simulate=_skewed,
    checks=(Power("floor", over="lr", power=0.0, within=0.15), Equal("floor", "floor", within=0.2)),
    seeds=20,
    plot=intervals("floor", "floor", ("lr",)),
)

_CURVATURES, _CENTRE = (1.0, 0.2), -3.0


def _unequal(p: Parameters, seed: int) -> Numbers:
    problem = theory.UnequalCurvature(_CURVATURES, _CENTRE, p["p"])
    make = setups.usam if p.get("method") == "usam" else setups.sam
    return {"mean": _shift(problem, lambda rho: make(problem, p["lr"], rho), p, seed)}


def _unequal_predict(p: Parameters) -> Numbers:
    (a, b), q = _CURVATURES, p["p"]
    signed, mean = q * a - (1 - q) * b, q * a + (1 - q) * b
    return {"mean": -p["rho"] * (signed / mean if p["samples"] == "same" else 2 * q - 1)}


_UNEQUAL = "f = p a_1/2 (x - b_1)^2 + (1 - p) a_2/2 (x - b_2)^2 least at 0, a = (1, 0.2), b_1 = -3 < b_2"

UNEQUAL = Claim(
    id="sam-unequal-curvature",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided for stochastic SAM; example and "
    "constants are ours",
    statement="Components of unequal curvature shift the mean of SAM's iterates if both passes have the same sample; "
    "with independent samples only unequal probabilities do.",
    formula=f"{_UNEQUAL}: E x_t -> -rho (p a_1 - (1 - p) a_2) / (p a_1 + (1 - p) a_2) if same, "
    "-rho (2p - 1) if independent",
    grid=tuple(
        {"p": p, "rho": 0.5, "lr": 0.03, "samples": samples, "steps": 1200}
        for p, samples in ((0.5, "same"), (0.5, "independent"), (0.3, "independent"))
    ),
    predict=_unequal_predict,
    simulate=_unequal,
    checks=(Equal("mean", "mean", within=0.1, unit="rho"),),
    seeds=20,
    plot=intervals("mean", "mean", ("p", "samples")),
)


def _unequal_usam_predict(p: Parameters) -> Numbers:
    (a, b), q, rho = _CURVATURES, p["p"], p["rho"]
    if p["samples"] != "same":
        return {"mean": 0.0}
    right = -q * a * _CENTRE / ((1 - q) * b)
    pull = rho * (q * a**2 * _CENTRE + (1 - q) * b**2 * right)
    return {"mean": pull / (q * a * (1 + rho * a) + (1 - q) * b * (1 + rho * b))}


USAM_SHIFT = Claim(
    id="usam-unequal-curvature",
    source="ours",
    statement="Leaving out the normalisation is not enough: components of unequal curvature shift SAM without it too, "
    "if both passes have the same sample and rho is constant; independent samples do not.",
    formula=f"{_UNEQUAL}: E x_t -> rho E[a^2 b] / E[a (1 + rho a)] if same, 0 if independent",
    grid=tuple(
        {"method": "usam", "p": 0.5, "rho": 0.5, "lr": 0.03, "samples": samples, "steps": 1200}
        for samples in ("same", "independent")
    ),
    predict=_unequal_usam_predict,
    simulate=_unequal,
    checks=(Equal("mean", "mean", within=0.2, unit="rho"),),
    seeds=20,
    plot=intervals("mean", "mean", ("samples",)),
)


def _ends(problem: Any, p: Parameters, seed: int) -> Numbers:
    generator = setups.seeded(seed)
    optimizer = setups.sam(problem, p["lr"], p["rho"], problem.start(generator))
    trace = theory.run(problem, optimizer, p["steps"], generator)
    return {
        "leftmost": float(trace.iterates.min()),
        "rightmost": float(trace.iterates.max()),
        "least f": float(trace.values.min()),
        "least squared gradient": float(trace.squared_norms.min()),
    }


def _strong_trap_predict(p: Parameters) -> Numbers:
    left = p["z"] - p["rho"]
    return {"left": left, "right": p["z"] + p["rho"], "floor": p["beta"] / 10 * left**2}


STRONG_TRAP = Claim(
    id="sam-trap-strongly-convex",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided for stochastic SAM; example and "
    "constants are ours",
    statement="On a strongly convex function SAM with the same samples in both passes surely never leaves an interval "
    "around z, however small the learning rate, and never gets below a floor of order rho^2.",
    formula="f = beta/10 x^2 out of f_1 = -3/10 beta (x - z)^2 and f_2 = beta/2 (x - 0.6 z)^2, "
    "0.4 z <= (1 - eta beta) rho: z - rho <= x_t <= z + rho and f(x_t) >= beta/10 (z - rho)^2",
    grid=(
        {"beta": 1.0, "rho": 0.4, "z": 0.5, "lr": 0.5, "steps": 500},
        {"beta": 1.0, "rho": 0.4, "z": 0.7, "lr": 0.3, "steps": 500},
        {"beta": 2.0, "rho": 0.4, "z": 0.9, "lr": 0.05, "steps": 1000},
    ),
    predict=_strong_trap_predict,
    simulate=lambda p, seed: _ends(theory.StronglyConvexTrap(p["beta"], p["rho"], p["z"]), p, seed),
    checks=(
        Bound("leftmost", ">=", "left", surely=True),
        Bound("rightmost", "<=", "right", surely=True),
        Bound("least f", ">=", "floor", surely=True),
    ),
    seeds=20,
)


def _slope(p: Parameters) -> float:
    """Return f' in the trap, which is the largest that ``2 s / beta <= rho / 2`` allows, for eta <= 1/(2 beta)."""
    return float(p["beta"] * p["rho"] / 4)


def _convex_trap_predict(p: Parameters) -> Numbers:
    # f is beta/4 x^2 up to |x| = rho/2, then goes up with slope s.
    s = _slope(p)
    floor = s * (p["z"] - p["rho"]) - s**2 / p["beta"]
    return {"left": p["z"] - p["rho"], "right": p["z"] + p["rho"], "floor": floor, "squared gradient": s**2}


CONVEX_TRAP = Claim(
    id="sam-trap-convex",
    source=f"{setups.SI_YUN}, abstract: a term of order rho^2 cannot be avoided for stochastic SAM; example and "
    "constants are ours",
    statement="On a smooth convex function SAM with the same samples in both passes surely never leaves an interval "
    "as far from the minimum as one likes; the gradient there is of order rho.",
    formula="f' = clip(beta x/2, s) out of f_1' = beta clip(z - x, 2 rho) and f_2' = 2 f' - f_1', s = beta rho/4, "
    "eta <= 1/(2 beta), z >= 3 rho: z - rho <= x_t <= z + rho, f(x_t) >= s (z - rho) - s^2 / beta and "
    "f'(x_t)^2 >= beta^2 rho^2 / 16",
    grid=(
        {"beta": 1.0, "rho": 0.4, "z": 5.0, "lr": 0.5, "steps": 1000},
        {"beta": 1.0, "rho": 0.4, "z": 50.0, "lr": 0.5, "steps": 1000},
        {"beta": 2.0, "rho": 0.1, "z": 1.0, "lr": 0.1, "steps": 1000},
    ),
    predict=_convex_trap_predict,
    simulate=lambda p, seed: _ends(theory.ConvexTrap(p["beta"], p["rho"], p["z"]), p, seed),
    checks=(
        Bound("leftmost", ">=", "left", surely=True),
        Bound("rightmost", "<=", "right", surely=True),
        Bound("least f", ">=", "floor", surely=True),
        Bound("least squared gradient", ">=", "squared gradient", surely=True),
    ),
    seeds=20,
)


def _leaves(p: Parameters, seed: int) -> Numbers:
    problem = theory.ConvexTrap(p["beta"], p["rho"], p["z"])
    generator = setups.seeded(seed)
    start = problem.start(generator)
    steps = p["steps"]
    optimizer, after = setups.variant(p["method"], problem, p["lr"], p["rho"], start, lambda t: 1 / (1 + t / 20))
    same = p["samples"] == "same"
    values = theory.run(problem, optimizer, steps, generator, same_sample=same, after=after).values
    return {"f": float(values[-(steps // 4) :].mean())}


LEAVES_TRAP = Claim(
    id="trap-without-constant-rho",
    source=f"{setups.SI_YUN}, abstract: SAM is different with decaying rho; example and numbers are ours",
    statement="SGD, SAM with independent samples and SAM with a decaying rho leave the interval that holds SAM with "
    "the same samples, and end below a quarter of its floor.",
    formula="as in sam-trap-convex, which they leave by eta s per step on average; rho_t = rho / (1 + t/20)",
    grid=tuple(
        {"method": method, "samples": samples, "beta": 1.0, "rho": 0.4, "z": 20.0, "lr": 0.5, "steps": 800}
        for method, samples in (("sgd", "same"), ("sam", "independent"), ("falling rho", "same"))
    ),
    predict=lambda p: {"bound": _convex_trap_predict(p)["floor"] / 4},
    simulate=_leaves,
    checks=(Bound("f", "<=", "bound"),),
    seeds=20,
    plot=intervals("f", "bound", ("method", "samples")),
)


def _falling(p: Parameters, seed: int) -> Numbers:
    problem = theory.SkewedNoise(_CURVATURE, _PROBABILITY, size=1.0)
    steps, means = p["steps"], []
    for rho in (p["rho"], _VANISHING):
        optimizer, after = setups.variant(p["method"], problem, p["lr"], rho, None, lambda t: 1 / (1 + t / 100))
        trace = theory.run(problem, optimizer, steps, setups.seeded(seed), after=after)
        means.append(float(trace.iterates[-steps // 4 :].mean()))
    return {"distance": abs(means[0] - means[1])}


FALLING_RHO_SHIFT = Claim(
    id="skewed-noise-without-constant-rho",
    source=f"{setups.SI_YUN}, abstract: SAM is different with decaying rho or without normalisation; example and "
    "numbers are ours",
    statement="With a decaying rho, by itself or with the learning rate, or without normalisation, skewed noise "
    "shifts the mean of the iterates by less than a fifth of what it does to SAM.",
    formula=f"{_SKEWED}: |E x_t| <= (2q - 1) rho / 5 for t near T; rho_t = rho / (1 + t/100), alone or with eta_t",
    grid=tuple(
        {"method": method, "rho": 0.2, "lr": lr, "steps": 1000}
        for method, lr in (("falling rho", 0.02), ("rho with lr", 0.1), ("usam", 0.02))
    ),
    predict=lambda p: {"bound": abs(_skewed_predict(p)["mean"]) / 5},
    simulate=_falling,
    checks=(Bound("distance", "<=", "bound"),),
    seeds=20,
)


def _noisy(p: Parameters) -> Any:
    return theory.NoisyQuadratic(sigma=p["sigma"]) if p["problem"] == "quadratic" else theory.PseudoHuber()


def _noisy_run(p: Parameters, seed: int) -> Any:
    problem = _noisy(p)
    optimizer = setups.sam(problem, p["lr"], p["rho"])
    return theory.run(problem, optimizer, p["steps"], setups.seeded(seed), same_sample=p["samples"] == "same")


def _noisy_average(p: Parameters, seed: int) -> Numbers:
    return {"average": float(_noisy_run(p, seed).squared_norms[:-1].mean())}


def _average_bound(p: Parameters) -> Numbers:
    problem, lr, rho, steps = _noisy(p), p["lr"], p["rho"], p["steps"]
    gap = float(problem.value(problem.start())) - problem.minimum
    return {"bound": 4 * gap / (lr * steps) + 2 * rho**2 + 4 * lr * (problem.noise + rho**2)}  # beta = 1


AVERAGE_BOUND = Claim(
    id="sam-stochastic-bound",
    source=f"ours; a term of order rho^2 is in the abstract of {setups.SI_YUN}",
    statement="If the components are smooth, the squared gradients of stochastic SAM are small on average, up to terms "
    "of order rho^2 and of the order of the learning rate; with the same samples or independent ones.",
    formula="eta <= 1/(4 beta): (1/T) sum E ||grad f(x_t)||^2 <= 4 (f(x_0) - f*) / (eta T) + 2 beta^2 rho^2 "
    "+ 4 beta eta (sigma^2 + beta^2 rho^2)",
    grid=(
        *(
            {"problem": "quadratic", "sigma": 0.5, "rho": rho, "lr": lr, "samples": samples, "steps": steps}
            for rho, lr, steps in ((0.1, 0.25, 200), (0.5, 0.05, 500))
            for samples in ("same", "independent")
        ),
        {"problem": "pseudo-huber", "rho": 0.5, "lr": 0.05, "samples": "same", "steps": 500},
    ),
    predict=_average_bound,
    simulate=_noisy_average,
    checks=(Bound("average", "<=", "bound"),),
    seeds=20,
    plot=intervals("average", "bound", ("problem", "rho", "lr", "samples")),
)


def _noisy_excess(p: Parameters, seed: int) -> Numbers:
    return {"excess": float(_noisy_run(p, seed).values[-1])}


def _excess_bound(p: Parameters) -> Numbers:
    problem, lr, rho = _noisy(p), p["lr"], p["rho"]
    mu = problem.strong_convexity
    gap = float(problem.value(problem.start()))
    floor = rho**2 / mu + 2 * lr * (problem.noise + rho**2) / mu  # beta = 1
    return {"bound": (1 - lr * mu / 2) ** p["steps"] * gap + floor}


EXCESS_BOUND = Claim(
    id="sam-stochastic-strongly-convex-bound",
    source=f"ours; a term of order rho^2 is in the abstract of {setups.SI_YUN}",
    statement="If the components are smooth, stochastic SAM goes down geometrically on a strongly convex function, up "
    "to terms of order rho^2 and of the order of the learning rate.",
    formula="eta <= 1/(4 beta): E f(x_T) - f* <= (1 - eta mu/2)^T (f(x_0) - f*) + beta^2 rho^2 / mu "
    "+ 2 beta eta (sigma^2 + beta^2 rho^2) / mu",
    grid=tuple(
        {"problem": "quadratic", "sigma": 0.2, "rho": 0.1, "lr": 0.25, "samples": samples, "steps": steps}
        for samples in ("same", "independent")
        for steps in (100, 400)
    ),
    predict=_excess_bound,
    simulate=_noisy_excess,
    checks=(Bound("excess", "<=", "bound"),),
    seeds=20,
    plot=intervals("excess", "bound", ("samples", "steps")),
)

CLAIMS = (
    SKEWED,
    FLOOR_IN_RHO,
    FLOOR_IN_LR,
    UNEQUAL,
    USAM_SHIFT,
    STRONG_TRAP,
    CONVEX_TRAP,
    LEAVES_TRAP,
    FALLING_RHO_SHIFT,
    AVERAGE_BOUND,
    EXCESS_BOUND,
)
