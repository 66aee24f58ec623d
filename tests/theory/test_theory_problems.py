"""Values, gradients and constants of the problems: by autograd, finite differences, direct sums and sampled pairs."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from steppe import theory
from steppe.theory import (
    ConvexTrap,
    LogCosh,
    Mixture,
    NoisyQuadratic,
    NonSmooth,
    PseudoHuber,
    Quadratic,
    Sine,
    SkewedNoise,
    Stochastic,
    StronglyConvexTrap,
    UnequalCurvature,
    Valley,
)

PROBLEMS = {
    "quadratic": Quadratic([0.1, 10.0, 1.0]),
    "log cosh": LogCosh(4),
    "sine": Sine(beta=2.0, rho=0.3),
    "sine, another delta": Sine(beta=1.0, rho=1.0, delta=0.6),
    "non-smooth": NonSmooth(),
    "valley": Valley(),
    "skewed noise": SkewedNoise(curvature=0.7, probability=0.8, size=1.5),
    "unequal curvature": UnequalCurvature(curvatures=(1.0, 0.2), centre=-3.0, probability=0.4),
    "strongly convex trap": StronglyConvexTrap(beta=2.0, rho=0.4, z=0.7),
    "convex trap": ConvexTrap(beta=2.0, rho=0.4, z=5.0, slope=0.3),
    "pseudo-huber": PseudoHuber(examples=16, dimension=3, seed=1),
    "noisy quadratic": NoisyQuadratic(sigma=0.5),
}
SAMPLED = [name for name, problem in PROBLEMS.items() if isinstance(problem, Stochastic)]
MIXTURES = [name for name, problem in PROBLEMS.items() if isinstance(problem, Mixture)]
POINTS = settings(max_examples=15, deadline=None, derandomize=True)


def points(name, seed, n=20, stretch=2.0):
    problem, generator = PROBLEMS[name], torch.Generator().manual_seed(seed)
    u = torch.rand(n, problem.dimension, generator=generator, dtype=torch.float64)
    return problem.origin * (2 * u - 1) * stretch + problem.spread * torch.randn(
        u.shape, generator=generator, dtype=u.dtype
    )


def autograd(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@pytest.mark.parametrize("name", PROBLEMS)
@POINTS
@given(seed=st.integers(0, 10**6))
def test_gradients_are_those_of_the_values(name, seed):
    problem, x = PROBLEMS[name], points(name, seed)
    before, gradient = x.clone(), problem.gradient(x)
    assert problem.value(x).shape == x.shape[:-1]
    torch.testing.assert_close(gradient, autograd(problem.value, x), rtol=1e-11, atol=1e-12)
    h, axes = 1e-5, torch.eye(problem.dimension, dtype=x.dtype)
    right, left = (x.unsqueeze(-2) + step * axes for step in (h, -h))
    slope = (problem.value(right) - problem.value(left)) / (2 * h)
    smooth = (problem.gradient(right) - problem.gradient(left)).abs().amax((-1, -2)) < 0.1
    assert smooth.sum() > len(x) / 2
    torch.testing.assert_close(slope[smooth], gradient[smooth], rtol=1e-5, atol=1e-5)
    for i in range(3):
        torch.testing.assert_close(problem.value(x[i]), problem.value(x)[i], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(problem.gradient(x[i]), gradient[i], rtol=1e-13, atol=1e-13)
    gradient.zero_()  # a new tensor: optimizers write into it
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", SAMPLED)
@POINTS
@given(seed=st.integers(0, 10**6))
def test_component_gradients_are_those_of_the_component_values(name, seed):
    problem, x = PROBLEMS[name], points(name, seed)
    sample = problem.sample(torch.Generator().manual_seed(seed), (len(x),))
    gradient = problem.component_gradient(x, sample)
    expected = autograd(lambda x: problem.component_value(x, sample), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-12)
    for i in range(3):  # one point and one sample; one point and a mini-batch
        torch.testing.assert_close(problem.component_gradient(x[i], sample[i]), gradient[i], rtol=1e-13, atol=1e-13)
    assert problem.component_gradient(x[0], sample).shape == x.shape
    assert problem.component_value(x[0], sample).shape == x.shape[:1]


@pytest.mark.parametrize("name", MIXTURES)
@POINTS
@given(seed=st.integers(0, 10**6))
def test_components_average_to_the_objective(name, seed):
    problem, x = PROBLEMS[name], points(name, seed, stretch=1.0)
    p = problem.probabilities.tolist()
    assert math.isclose(sum(p), 1.0, rel_tol=1e-15)
    values = [problem.component_value(x, i) for i in problem.components]
    gradients = [problem.component_gradient(x, i) for i in problem.components]
    value = sum(w * v for w, v in zip(p, values, strict=True))
    gradient = sum(w * g for w, g in zip(p, gradients, strict=True))
    torch.testing.assert_close(problem.value(x), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.gradient(x), gradient, rtol=1e-12, atol=1e-12)
    variance = sum(w * (g - gradient).square().sum(-1) for w, g in zip(p, gradients, strict=True))
    torch.testing.assert_close(problem.variance(x), variance, rtol=1e-11, atol=1e-12)
    assert variance.max() <= problem.noise * (1 + 1e-12)


def test_noise_is_the_largest_variance():
    far = torch.tensor([[-100.0], [0.0], [100.0]], dtype=torch.float64)
    alike = UnequalCurvature(curvatures=(0.5, 0.5), centre=-2.0, probability=0.2)
    assert math.isclose(alike.noise, 0.2 * 1.0**2 + 0.8 * 0.25**2, rel_tol=1e-12)
    for problem in (PROBLEMS["skewed noise"], PROBLEMS["convex trap"], alike):
        assert math.isclose(problem.variance(far).max(), problem.noise, rel_tol=1e-12)
    for problem in (PROBLEMS["unequal curvature"], PROBLEMS["strongly convex trap"]):
        assert problem.noise == math.inf
        assert problem.variance(far * 1e6).min(dim=0).values < 1e9 < problem.variance(far * 1e6).max()


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_the_finite_sum(seed):
    """The variance is a sum over coordinates: each is maximised on its own, from several starts."""
    problem = PseudoHuber(examples=64, dimension=5, seed=seed)
    total = 0.0
    for column in problem.targets.T:

        def negative(t, column=column):
            away = float(t[0]) - column
            return -float((away / (1 + away**2).sqrt()).var(correction=0))

        total -= min(minimize(negative, [t], method="Nelder-Mead", tol=1e-10).fun for t in (-1.0, 0.0, 1.0))
    assert total <= problem.noise <= total + 1e-5


def test_noise_of_the_noisy_quadratic():
    problem, n = PROBLEMS["noisy quadratic"], 40000
    x = problem.start()
    noise = problem.component_gradient(x, problem.sample(torch.Generator().manual_seed(0), (n,))) - problem.gradient(x)
    assert abs(noise.square().sum(-1).mean() / problem.noise - 1) < 0.02
    assert noise.mean(0).abs().max() < 4 * problem.sigma / math.sqrt(problem.dimension * n)
    of_each = noise.square().mean(0) * problem.dimension / problem.noise
    assert (of_each - 1).abs().max() < 0.05


def pairs(name):
    """Pairs of points: near and far, along axes and in any direction."""
    x = points(name, 0, n=4000, stretch=1.2)
    generator = torch.Generator().manual_seed(1)
    length = 10 ** (-4 * torch.rand(len(x), 1, generator=generator, dtype=x.dtype)) * PROBLEMS[name].spread
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    axis = torch.eye(x.shape[-1], dtype=x.dtype)[torch.arange(len(x)) % x.shape[-1]]
    direction[: len(x) // 2] = axis[: len(x) // 2]
    return x, x + length * direction / direction.norm(dim=-1, keepdim=True)


def component_gradients(problem, x):
    if isinstance(problem, Mixture):
        return problem.component_gradient(x.unsqueeze(-2), problem.components).movedim(-2, 0)
    return problem.gradient(x).unsqueeze(0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_smoothness_and_convexity(name):
    problem, (x, y) = PROBLEMS[name], pairs(name)
    apart = x - y
    slopes = component_gradients(problem, x) - component_gradients(problem, y)
    ratio = (slopes.norm(dim=-1) / apart.norm(dim=-1)).max().item()
    if problem.smoothness < math.inf:
        assert 0.99 * problem.smoothness <= ratio <= problem.smoothness * (1 + 1e-8)
    else:
        assert ratio > 50
    monotone = ((problem.gradient(x) - problem.gradient(y)) * apart).sum(-1) / apart.square().sum(-1)
    lowest = monotone.min().item()
    if problem.convex:
        assert lowest >= problem.strong_convexity * (1 - 1e-8) - 1e-9
    else:
        assert lowest < -0.1
    if problem.strong_convexity > 0:
        assert lowest <= 1.01 * problem.strong_convexity
    elif problem.convex:
        far = PROBLEMS[name].origin * 1e3, PROBLEMS[name].origin * 1e3 + 1
        assert ((problem.gradient(far[0]) - problem.gradient(far[1])).norm()) < 1e-3


@pytest.mark.parametrize("name", PROBLEMS)
def test_bounds_of_gradients(name):
    problem = PROBLEMS[name]
    x = torch.cat([points(name, 2, n=2000), points(name, 3, n=2000, stretch=1.0) * 100])
    gradients = component_gradients(problem, x)
    for bound, most in ((problem.lipschitz, gradients.norm(dim=-1)), (problem.gradient_bound, gradients.abs())):
        if bound < math.inf:
            assert 0.99 * bound <= most.max() <= bound * (1 + 1e-12)
        else:
            assert most.max() > 10


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimum(name):
    problem = PROBLEMS[name]
    at = problem.value(problem.minimisers)
    torch.testing.assert_close(at, torch.full_like(at, problem.minimum), rtol=1e-14, atol=1e-14)
    assert problem.gradient(problem.minimisers).abs().max() < 1e-12
    assert problem.value(points(name, 4, n=2000)).min() >= problem.minimum


def test_minimiser_of_the_finite_sum():
    problem = PseudoHuber()
    assert (problem.dimension, len(problem.probabilities)) == (5, 64)
    x = problem.targets.median(0).values
    for _ in range(20):  # Newton; the Hessian is diagonal
        x = x - problem.gradient(x) / (1 + (x - problem.targets).square()).pow(-1.5).mean(0)
    torch.testing.assert_close(problem.minimisers[0], x, rtol=0, atol=1e-12)
    assert torch.equal(PseudoHuber(seed=0).targets, problem.targets)
    assert not torch.equal(PseudoHuber(seed=1).targets, problem.targets)


def test_the_valley_is_sharper_away_from_the_middle():
    problem = Valley()
    for t in (-3.0, 0.5, 1.0, 2.5):
        x = torch.tensor([t, 1 / t], dtype=torch.float64)
        assert problem.value(x) < 1e-30
        matrix = torch.autograd.functional.hessian(problem.value, x)
        assert math.isclose(torch.linalg.eigvalsh(matrix)[-1], problem.curvature(x), rel_tol=1e-12)


def test_sampling():
    problem = UnequalCurvature(probability=0.25)
    draw = problem.sample(torch.Generator().manual_seed(0), (20000,))
    assert abs((draw == 0).double().mean() - 0.25) < 0.01
    assert problem.sample(torch.Generator().manual_seed(0)).shape == ()
    assert problem.sample(torch.Generator().manual_seed(0), (2, 3)).shape == (2, 3)
    assert NoisyQuadratic().sample(torch.Generator().manual_seed(0), (2, 3)).shape == (2, 3, 8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_starts(name):
    problem = PROBLEMS[name]
    w = problem.parameter()
    assert isinstance(w, torch.nn.Parameter)
    assert w.dtype == torch.float64
    assert torch.equal(w, problem.start())
    with torch.no_grad():
        w.zero_()
    assert problem.start().equal(problem.origin)
    one, two = (problem.start(torch.Generator().manual_seed(s)) for s in (0, 1))
    assert not torch.equal(one, two)
    assert (one - problem.origin).abs().max() <= problem.spread
    assert torch.equal(one, problem.start(torch.Generator().manual_seed(0)))
    assert problem.parameter([0.5] * problem.dimension).tolist() == [0.5] * problem.dimension


BAD = {
    "no eigenvalue": (lambda: Quadratic([]), "eigenvalues must hold one number per dimension, got none."),
    "a flat eigenvalue": (lambda: Quadratic([1.0, 0.0]), "eigenvalues[1] must be a finite number > 0, got 0.0."),
    "no dimension": (lambda: LogCosh(0), "dimension must be a finite number > 0, got 0."),
    "a negative beta": (lambda: Sine(beta=-1.0), "beta must be a finite number > 0, got -1.0."),
    "delta = rho": (lambda: Sine(rho=0.5, delta=0.5), "delta must be in (0, rho) = (0, 0.5), got 0.5."),
    "a sure thing": (lambda: SkewedNoise(probability=1.0), "probability must be in (0, 1), got 1.0."),
    "centres on one side": (lambda: UnequalCurvature(centre=1.0), "centre must be a finite number < 0, got 1.0."),
    "a trap with 0 in it": (
        lambda: StronglyConvexTrap(rho=1.0, z=1.0),
        "z must be in (rho, 2.5 rho) = (1.0, 2.5), got 1.0.",
    ),
    "a trap too near": (lambda: ConvexTrap(rho=1.0, z=2.0), "z must be a finite number >= 3 rho = 3.0, got 2.0."),
    "a trap too steep": (
        lambda: ConvexTrap(rho=1.0, slope=0.5),
        "slope must be in (0, beta rho / 2) = (0, 0.5), got 0.5.",
    ),
    "one example": (lambda: PseudoHuber(examples=1), "examples must be >= 2, got 1."),
    "no noise": (lambda: NoisyQuadratic(sigma=0.0), "sigma must be a finite number > 0, got 0.0."),
    "a point of another shape": (
        lambda: Valley().parameter([1.0]),
        "A point of this problem has shape (2,), got (1,).",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make()


def test_names():
    assert set(theory.__all__) <= set(dir(theory))
    assert all(getattr(getattr(theory, name), "__name__", name) == name for name in theory.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = theory.nothing
