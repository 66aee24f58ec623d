"""The problems for adaptive learning rates: constants, gradients, and the drift that they predict."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.theory import PseudoHuber, RareSpikes

PROBLEMS = {
    "rare spikes": RareSpikes(spike=40.0, probability=0.05),
    "narrow and stiff": RareSpikes(spike=5.0, probability=0.3, stiffness=3.0, half_width=0.5),
    "flat pseudo-huber": PseudoHuber(examples=16, dimension=3, seed=1, height=2.0, width=4.0),
    "steep pseudo-huber": PseudoHuber(examples=16, dimension=3, seed=1, height=3.0, width=0.5),
}
POINTS = settings(max_examples=15, deadline=None, derandomize=True)


def points(name, seed, n=50, scale=3.0):
    problem, generator = PROBLEMS[name], torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, problem.dimension, generator=generator, dtype=torch.float64)


def autograd(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def component_gradients(problem, x):
    return torch.stack([problem.component_gradient(x, i) for i in problem.components])


@pytest.mark.parametrize("name", PROBLEMS)
@POINTS
@given(seed=st.integers(0, 10**6))
def test_gradients_are_those_of_the_values(name, seed):
    problem, x = PROBLEMS[name], points(name, seed, scale=20.0 if seed % 2 else 2.0)
    before, gradient = x.clone(), problem.gradient(x)
    assert problem.value(x).shape == x.shape[:-1]
    torch.testing.assert_close(gradient, autograd(problem.value, x), rtol=1e-11, atol=1e-12)
    sample = problem.sample(torch.Generator().manual_seed(seed), (len(x),))
    of_component = problem.component_gradient(x, sample)
    torch.testing.assert_close(
        of_component, autograd(lambda x: problem.component_value(x, sample), x), rtol=1e-11, atol=1e-12
    )
    torch.testing.assert_close(problem.component_gradient(x[0], sample)[0], of_component[0], rtol=0, atol=0)
    gradient.zero_()  # new tensors: optimizers write into them
    of_component.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", PROBLEMS)
@POINTS
@given(seed=st.integers(0, 10**6))
def test_components_average_to_the_objective(name, seed):
    problem, x = PROBLEMS[name], points(name, seed)
    weights = problem.probabilities
    gradients = component_gradients(problem, x)
    values = torch.stack([problem.component_value(x, i) for i in problem.components])
    torch.testing.assert_close((weights @ values), problem.value(x), rtol=1e-12, atol=1e-12)
    mean = torch.einsum("c,cnd->nd", weights, gradients)
    torch.testing.assert_close(mean, problem.gradient(x), rtol=1e-12, atol=1e-12)
    variance = weights @ (gradients - mean).square().sum(-1)
    torch.testing.assert_close(variance, problem.variance(x), rtol=1e-10, atol=1e-12)
    assert variance.max() <= problem.noise * (1 + 1e-12)


def test_noise_is_attained():
    problem = PROBLEMS["rare spikes"]
    assert math.isclose(problem.variance(torch.zeros(1, dtype=torch.float64)).item(), problem.noise, rel_tol=1e-12)
    for name in ("flat pseudo-huber", "steep pseudo-huber"):
        problem = PROBLEMS[name]
        grid = torch.linspace(-4, 4, 4001, dtype=torch.float64).unsqueeze(-1).expand(-1, problem.dimension)
        gradients = component_gradients(problem, grid)
        most = gradients.var(0, correction=0).amax(0).sum().item()  # a sum over coordinates, each at its worst
        assert most <= problem.noise <= most + 2e-5 * problem.gradient_bound**2


@pytest.mark.parametrize("name", PROBLEMS)
def test_constants(name):
    problem = PROBLEMS[name]
    x = points(name, 0, n=4000)
    y = x + 10 ** (-3 * torch.rand(len(x), 1, generator=torch.Generator().manual_seed(1), dtype=x.dtype)) * points(
        name, 2, n=4000
    )
    slopes = component_gradients(problem, x) - component_gradients(problem, y)
    ratio = (slopes.norm(dim=-1) / (x - y).norm(dim=-1)).max().item()
    assert 0.9 * problem.smoothness <= ratio <= problem.smoothness * (1 + 1e-8)
    assert ((problem.gradient(x) - problem.gradient(y)) * (x - y)).sum(-1).min() >= -1e-12
    far = torch.cat([x, 1e3 * x])
    gradients = component_gradients(problem, far)
    assert 0.99 * problem.gradient_bound <= gradients.abs().max() <= problem.gradient_bound * (1 + 1e-12)
    assert 0.99 * problem.lipschitz <= gradients.norm(dim=-1).max() <= problem.lipschitz * (1 + 1e-12)
    assert problem.gradient(problem.minimisers).abs().max() < 1e-12
    assert math.isclose(problem.value(problem.minimisers[0]).item(), problem.minimum, rel_tol=1e-14)
    assert problem.value(far).min() >= problem.minimum


def test_height_and_width_are_units():
    """f = h times a function of x / r, with targets that do not scale."""
    plain, high = PseudoHuber(16, 3, 1), PseudoHuber(16, 3, 1, height=2.5)
    x = points("flat pseudo-huber", 0)
    torch.testing.assert_close(high.value(x), 2.5 * plain.value(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(high.minimisers, plain.minimisers, rtol=0, atol=1e-14)
    assert math.isclose(high.noise, 2.5**2 * plain.noise, rel_tol=1e-12)
    wide = PseudoHuber(16, 3, 1, width=50.0)  # nearly a parabola: the minimiser is nearly the mean
    torch.testing.assert_close(wide.minimisers[0], wide.targets.mean(0), rtol=0, atol=1e-3)
    assert (wide.smoothness, wide.gradient_bound) == (1 / 2500, 0.02)


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("spike", "p", "beta2"), [(10.0, 0.2, 0.5), (40.0, 0.05, 0.8), (20.0, 0.1, 0.95)])
def test_drifts_are_those_of_long_runs_of_adam(spike, p, beta1, beta2):
    problem, chains, steps = RareSpikes(spike, p), 2000, 600
    generator = torch.Generator().manual_seed(0)
    m, v = torch.zeros(chains, dtype=torch.float64), torch.ones(chains, dtype=torch.float64)
    total = torch.zeros_like(m)
    for t in range(400 + steps):
        g = torch.where(torch.rand(chains, generator=generator) < p, spike, -1.0).double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        if t >= 400:
            total += m / v.sqrt()
    means = total / steps
    assert abs(means.mean() - problem.drift((beta1, beta2))) < 4 * means.std() / chains**0.5


def test_drifts_without_memory_are_of_signs():
    assert math.isclose(RareSpikes(20.0, 0.1).drift((0.0, 0.0)), 2 * 0.1 - 1, rel_tol=1e-12)
    assert RareSpikes(20.0, 0.1).drift((0.0, 0.9)) > 0 > RareSpikes(100.0, 0.02).drift((0.0, 0.9))


BAD = {
    "no spike": (lambda: RareSpikes(spike=1.0), "spike must be a finite number > 1, got 1.0."),
    "a mean that points up": (
        lambda: RareSpikes(spike=9.0, probability=0.1),
        "probability must be in (1 / (spike + 1), 1), got 0.1.",
    ),
    "no wall": (lambda: RareSpikes(stiffness=0.0), "stiffness must be a finite number > 0, got 0.0."),
    "no room": (lambda: RareSpikes(half_width=-1.0), "half_width must be a finite number > 0, got -1.0."),
    "a frozen average": (lambda: RareSpikes().drift((0.0, 1.0)), "betas must lie in [0, 1), got (0.0, 1.0)."),
    "a flat function": (lambda: PseudoHuber(height=0.0), "height must be a finite number > 0, got 0.0."),
    "no width": (lambda: PseudoHuber(width=-1.0), "width must be a finite number > 0, got -1.0."),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make()
