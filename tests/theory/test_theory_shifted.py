"""The problems of claims on GSAM: values, gradients, constants and noise; what is predicted of them is run elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD

from steppe import GSAM, SAM
from steppe.theory import Sine, SineValley, SkewedQuadratic, run
from steppe.theory.claims import gsam_setups

PROBLEMS = {
    "sine": SineValley(),
    "another sine": SineValley(beta=2.0, rho=0.3, curvature=0.7, sigma=0.5, dimension=5),
    "skewed": SkewedQuadratic(),
    "another skewed": SkewedQuadratic([2.0, 0.5, 1.0], [[1, 1, 0], [-3, -1, 2], [1, -1, -2]], [0.5, 0.25, 0.25]),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(problem, n=200):
    u = torch.randn(n, problem.dimension, generator=seeded(), dtype=torch.float64)
    return problem.origin + problem.spread * u


def autograd(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]


def test_gradients_are_those_of_the_values(problem):
    x = points(problem)
    assert problem.value(x).shape == x.shape[:-1]
    torch.testing.assert_close(problem.gradient(x), autograd(problem.value, x), rtol=1e-11, atol=1e-12)
    sample = problem.sample(seeded(1), (len(x),))
    expected = autograd(lambda x: problem.component_value(x, sample), x)
    torch.testing.assert_close(problem.component_gradient(x, sample), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(problem.gradient(x[0]), problem.gradient(x)[0], rtol=1e-13, atol=1e-13)
    assert problem.component_gradient(x[0], sample).shape == x.shape  # one point and a mini-batch


def test_constants_hold(problem):
    x = points(problem)
    y = x + 0.1 * problem.spread * torch.randn(x.shape, generator=seeded(2), dtype=x.dtype)
    moved = torch.linalg.vector_norm(x - y, dim=-1)
    ratios = torch.linalg.vector_norm(problem.gradient(x) - problem.gradient(y), dim=-1) / moved
    assert 0.5 * problem.smoothness < ratios.max() <= problem.smoothness * (1 + 1e-12)
    assert (problem.value(x) >= problem.minimum).all()
    for least in problem.minimisers:
        assert problem.gradient(least).abs().max() < 1e-12
        assert math.isclose(problem.value(least), problem.minimum, rel_tol=1e-12, abs_tol=1e-15)
    inner = ((problem.gradient(x) - problem.gradient(y)) * (x - y)).sum(-1) / moved.square()
    assert (inner.min() >= problem.strong_convexity - 1e-12) if problem.convex else (inner.min() < 0)


def test_noise_has_no_mean_and_the_stated_variance(problem):
    x, n = points(problem)[0], 100_000
    noise = problem.component_gradient(x, problem.sample(seeded(), (n,))) - problem.gradient(x)
    assert noise.mean(0).abs().max() < 5 * math.sqrt(problem.noise / n)
    assert abs(noise.square().sum(-1).mean() / problem.noise - 1) < 0.02
    if isinstance(problem, SkewedQuadratic):
        torch.testing.assert_close(problem.variance(points(problem)), torch.full((200,), problem.noise).double())
        components = torch.stack([problem.component_gradient(x, i) for i in problem.components])
        torch.testing.assert_close(problem.probabilities @ components, problem.gradient(x), rtol=1e-12, atol=1e-12)
    else:
        assert (noise.square().mean(0) * problem.dimension / problem.noise - 1).abs().max() < 0.05


def test_a_sine_valley_is_a_sine_and_a_bowl():
    problem, wave = SineValley(beta=2.0, rho=0.3, curvature=0.7), Sine(beta=2.0, rho=0.3)
    x = points(problem, 20)
    bowl = 0.35 * x[:, 1:].square().sum(-1)
    torch.testing.assert_close(problem.value(x), wave.value(x[:, :1]) + bowl, rtol=1e-12, atol=1e-12)
    assert (problem.trapped_gradient, problem.trapped_gap) == (wave.trapped_gradient, wave.trapped_gap)
    assert (problem.period, problem.omega, problem.minimum) == (wave.period, wave.omega, wave.minimum)


@pytest.mark.parametrize("lr", [0.29, 0.05])
def test_without_noise_sam_ends_in_the_trap_and_gsam_near_it(lr):
    problem = SineValley(beta=1.0, rho=1.0)
    for alpha, within in ((0.0, 1e-9), (0.4, 0.4 * lr), (-0.2, 0.4 * lr)):
        base = SGD([problem.parameter([0.4, 1.0, -1.0])], lr=lr)
        opt = GSAM(base, rho=1.0, alpha=alpha) if alpha else SAM(base, rho=1.0)
        squared = run(problem, opt, round(60 / lr), batch=None).squared_norms[-50:]
        assert (squared - problem.trapped_gradient**2).abs().max() <= within * problem.trapped_gradient**2
        assert squared.min() > 9 / (100 * math.pi**2)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_the_predicted_slope_is_minus_the_mean_step_of_gsam(alpha):
    problem, rho = SkewedQuadratic(), 1e-6
    steps = torch.zeros(2, dtype=torch.float64)
    for p, z in zip(problem.probabilities, problem.noises, strict=True):
        w = problem.parameter([0.0, 0.0])
        opt = GSAM(SGD([w], lr=1.0), rho=rho, alpha=alpha)

        def closure(w=w, z=z):
            w.grad = problem.gradient(w.detach()) + z

        opt.step(closure)
        steps += p * (w.detach() + z)  # what SGD would have added has the mean 0
    torch.testing.assert_close(steps / rho, problem.predicted_slope(alpha), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(  # a narrow spread changes nothing, a wide one something
        problem.predicted_slope(alpha, 1e-12 * torch.eye(2).double()),
        problem.predicted_slope(alpha),
        rtol=1e-6,
        atol=1e-6,
    )
    wide = problem.predicted_slope(alpha, 0.1 * torch.eye(2).double())
    assert (wide - problem.predicted_slope(alpha)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SineValley(sigma=0.0), "sigma must be a finite number > 0"),
        (lambda: SineValley(rho=-1.0), "rho must be a finite number > 0"),
        (lambda: SineValley(dimension=1), "dimension must be >= 2, got 1"),
        (lambda: SineValley(beta=1.0, curvature=1.5), r"curvature must be in \(0, beta\] = \(0, 1.0\], got 1.5"),
        (lambda: SkewedQuadratic(eigenvalues=[1.0, -1.0]), r"eigenvalues\[1\] must be a finite number > 0"),
        (lambda: SkewedQuadratic(noises=[[1.0]]), "noises must hold a vector of 2 numbers for every probability"),
        (lambda: SkewedQuadratic(probabilities=[0.5, 0.5]), "for 2 probabilities"),
        (lambda: SkewedQuadratic(probabilities=[0.5, 0.2, 0.2]), "probabilities must have the sum 1, got 0.8"),
        (lambda: SkewedQuadratic(probabilities=[1.2, -0.1, -0.1]), r"probabilities\[1\] must be a finite number > 0"),
        (lambda: SkewedQuadratic(probabilities=[0.5, 0.25, 0.25]), "The mean of the noises must be 0"),
        (
            lambda: SkewedQuadratic(noises=[[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], probabilities=[0.4, 0.2, 0.4]),
            "No noise may be 0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("schedule", ["constant", "1/sqrt(t+1)", "cosine", "linear"])
def test_learning_rates_are_torchs(schedule):
    p = {"schedule": schedule, "lr": 0.3, "steps": 20}
    opt = gsam_setups.gsam(PROBLEMS["skewed"], lr=0.3, rho=0.1, alpha=0.4)
    after, seen = gsam_setups.annealed(opt, schedule, 20), [0.3]

    def step():
        if after is not None:
            after()
        seen.append(opt.param_groups[0]["lr"])

    run(PROBLEMS["skewed"], opt, 20, seeded(), after=step)
    assert seen[:-1] == pytest.approx(gsam_setups.rates(p), rel=1e-12)


def test_runs_in_stages_have_the_scheduled_batches():
    p = {"batch": 1, "growth": 8, "every": 3, "steps": 15, "schedule": "constant", "lr": 0.1}
    sizes = gsam_setups.sizes(p)
    assert sizes == [1] * 3 + [8] * 3 + [64] * 3 + [512] * 3 + [4096] * 3
    problem, seen = SineValley(), []
    gradient = problem.component_gradient
    problem.component_gradient = lambda x, sample: seen.append(sample.numel() // 3) or gradient(x, sample)
    opt = gsam_setups.gsam(problem, lr=0.1, rho=0.1, alpha=0.4)
    trace = gsam_setups.staged(problem, opt, sizes, seeded())
    assert seen == [size for size in sizes[:-3] for _ in range(2)]  # two passes a step; the last ones see everything
    assert trace.iterates.shape == (16, 3)
    assert torch.equal(trace.iterates[-1], opt.param_groups[0]["params"][0].detach())
