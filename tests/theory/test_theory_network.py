"""The small network: values, gradients and curvature against autograd, and what is said of its constants."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.theory import TanhNetwork, run

POINTS = settings(max_examples=15, deadline=None, derandomize=True)


def points(problem, seed, n=4):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, problem.dimension, generator=generator, dtype=torch.float64)


def plain(problem, x):
    """The loss of one point, by an example at a time."""
    width = len(x) // (problem.inputs.shape[1] + 1)
    weights, outer = x[:-width].view(width, -1), x[-width:]
    errors = [outer @ torch.tanh(weights @ u) - y for u, y in zip(problem.inputs, problem.targets, strict=True)]
    return 0.5 * torch.stack(errors).square().mean()


@POINTS
@given(seed=st.integers(0, 10**6), examples=st.integers(1, 5), inputs=st.integers(1, 4), width=st.integers(1, 4))
def test_value_gradient_and_hessian(seed, examples, inputs, width):
    problem = TanhNetwork(examples, inputs, width, target=1.5, seed=seed)
    assert problem.dimension == width * (inputs + 1)
    x = points(problem, seed)
    before, gradient = x.clone(), problem.gradient(x)
    expected = torch.stack([plain(problem, one) for one in x])
    torch.testing.assert_close(problem.value(x), expected, rtol=1e-13, atol=1e-13)
    assert (expected >= problem.minimum).all()
    variable = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.value(variable).sum(), variable)
    torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-12)
    for i, one in enumerate(x):
        torch.testing.assert_close(problem.gradient(one), gradient[i], rtol=1e-13, atol=1e-13)
        exact = torch.autograd.functional.hessian(problem.value, one)
        torch.testing.assert_close(problem.hessian(one), exact, rtol=0, atol=1e-8 * (1 + exact.abs().max().item()))
    hessian = problem.hessian(x)
    assert hessian.shape == (*x.shape, problem.dimension)
    assert torch.equal(hessian, hessian.mT)
    top = torch.stack([torch.linalg.eigvalsh(h).max() for h in hessian])
    torch.testing.assert_close(problem.sharpness(x), top, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.sharpness(x[0]), top[0], rtol=1e-12, atol=1e-12)
    gradient.zero_()  # a new tensor: optimizers write into it
    assert torch.equal(x, before)


def test_what_is_said_of_it():
    problem = TanhNetwork()
    assert (problem.dimension, problem.convex, problem.noise, problem.minimisers.shape) == (60, False, 0.0, (0, 60))
    assert (problem.smoothness, problem.lipschitz, problem.gradient_bound) == (math.inf,) * 3
    assert problem.targets.abs().unique().tolist() == [2.5]
    assert 0.4 < problem.origin.abs().max() <= 0.5
    far = problem.start() * torch.logspace(0, 3, 4, dtype=torch.float64).unsqueeze(-1)
    assert problem.gradient(far).norm(dim=-1)[-1] > 100
    assert problem.sharpness(far).max() > 1000
    away = problem.start(torch.Generator().manual_seed(1)) - problem.origin
    assert 0.4 < away.abs().max() <= problem.spread
    assert torch.linalg.eigvalsh(problem.hessian(problem.start()))[0] < -0.1


def test_seeds_are_networks():
    problems = [TanhNetwork(seed=seed) for seed in (0, 1, 0)]
    for name in ("inputs", "targets", "origin"):
        first, second, again = (getattr(problem, name) for problem in problems)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)


def test_curvature_rises_by_itself():
    for seed in range(3):
        problem = TanhNetwork(seed=seed)
        trace = run(problem, torch.optim.SGD([problem.parameter()], lr=0.05), 1000, every=1000)
        before, after = problem.sharpness(trace.iterates).tolist()
        assert 2 * before < after < 2 / 0.05
        assert trace.values[-1] < 0.2 * trace.values[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_curvature_of_what_diverged_is_nan(value):
    problem = TanhNetwork(examples=4, inputs=2, width=3)
    x = points(problem, 0)
    expected = problem.sharpness(x)
    x[1] = value
    found = problem.sharpness(x)
    assert found[1].isnan()
    keep = [0, 2, 3]
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["examples", "inputs", "width", "target", "scale"])
def test_arguments_out_of_range(name):
    with pytest.raises(ValueError, match=re.escape(f"{name} must be a finite number > 0, got 0.")):
        TanhNetwork(**{name: 0})
