"""Runs: the optimizer sees what a training loop would show it, and nothing else."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from steppe import GSAM, SAM, AdaSAM, LightSAM
from steppe.theory import (
    ConvexTrap,
    LogCosh,
    NoisyQuadratic,
    NonSmooth,
    PseudoHuber,
    Quadratic,
    Sine,
    SkewedNoise,
    UnequalCurvature,
    Valley,
    run,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sam(problem, rho=0.1, lr=0.1, x=None, **kwargs):
    return SAM(SGD([problem.parameter(x)], lr=lr, **kwargs), rho=rho)


def parameter(optimizer):
    return optimizer.param_groups[0]["params"][0]


def spy(problem):
    """Return the problem, and a list that will hold every sample it is asked about."""
    seen, gradient = [], problem.component_gradient

    def spying(x, sample):
        seen.append(sample)
        return gradient(x, sample)

    problem.component_gradient = spying
    return problem, seen


METHODS = {
    "sgd": lambda w: SGD([w], lr=0.1, momentum=0.9),
    "sam": lambda w: SAM(SGD([w], lr=0.1), rho=0.2),
    "gsam": lambda w: GSAM(SGD([w], lr=0.1), rho=0.2, alpha=0.3),
    "adasam": lambda w: AdaSAM([w], lr=0.01, rho=0.2, eps=0.1),
    "lightsam": lambda w: LightSAM([w], lr=0.5, rho=0.2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "problem", [Quadratic([1.0, 3.0]), LogCosh(3), Sine(), NonSmooth(), Valley()], ids=lambda p: type(p).__name__
)
def test_runs_are_training_loops(method, problem):
    x = problem.start(seeded())
    ours, theirs = problem.parameter(x), problem.parameter(x)
    trace = run(problem, METHODS[method](ours), 20)
    optimizer = METHODS[method](theirs)

    def closure():
        optimizer.zero_grad()
        loss = problem.value(theirs)
        loss.backward()
        return loss

    for row in trace.iterates:
        torch.testing.assert_close(row, theirs.detach(), rtol=1e-9, atol=1e-11)
        optimizer.step(closure)
    assert torch.equal(trace.iterates[-1], ours)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 3])
def test_stochastic_runs_are_training_loops(method, batch):
    problem, seen = spy(PseudoHuber(examples=10, dimension=2))
    ours, theirs = problem.parameter(), problem.parameter()
    trace = run(problem, METHODS[method](ours), 20, seeded(), batch=batch)
    passes = 1 if method == "sgd" else 2
    assert len(seen) == 20 * passes
    assert all(s.shape == (() if batch == 1 else (batch,)) for s in seen)
    optimizer, samples = METHODS[method](theirs), iter(seen)

    def closure():
        optimizer.zero_grad()
        loss = problem.component_value(theirs, next(samples)).mean()
        loss.backward()
        return loss

    for row in trace.iterates[:-1]:
        torch.testing.assert_close(row, theirs.detach(), rtol=1e-9, atol=1e-11)
        optimizer.step(closure)
    torch.testing.assert_close(trace.iterates[-1], theirs.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 4])
def test_samples_of_the_two_passes(batch):
    problem, seen = spy(PseudoHuber(examples=1000, dimension=1))
    run(problem, sam(problem), 30, seeded(), batch=batch)
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen[::2], seen[2::2], strict=False))
    same = list(seen)
    seen.clear()
    run(problem, SGD([problem.parameter()], lr=0.1), 30, seeded(), batch=batch)
    assert all(torch.equal(a, b) for a, b in zip(seen, same[::2], strict=True))  # common random numbers
    seen.clear()
    run(problem, sam(problem), 30, seeded(), batch=batch, same_sample=False)
    independent = list(seen)
    assert not any(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    seen.clear()
    run(problem, SGD([problem.parameter()], lr=0.1), 30, seeded(), batch=batch, same_sample=False)
    assert all(torch.equal(a, b) for a, b in zip(seen, independent[::2], strict=True))


def test_samples_follow_their_probabilities_over_many_blocks():
    problem, seen = spy(SkewedNoise(probability=0.9))
    run(problem, SGD([problem.parameter()], lr=0.0), 300, seeded(), batch=256)
    share = (torch.stack(seen) == 0).double().mean(1)
    assert len(share) == 300
    assert abs(share.mean() - 0.9) < 4 * 0.3 / math.sqrt(300 * 256)
    assert len(set(share[-100:].tolist())) > 10


def test_noise_falls_with_the_batch():
    problem = NoisyQuadratic(sigma=2.0)
    for batch in (1, 16):
        optimizer = SGD([problem.parameter([0.0] * 8)], lr=1.0)
        w, moves = parameter(optimizer).detach(), []

        def back(w=w, moves=moves):
            moves.append(w.clone())
            w.zero_()

        run(problem, optimizer, 3000, seeded(), batch=batch, after=back)
        variance = torch.stack(moves).square().sum(-1).mean().item()
        assert abs(variance * batch / problem.noise - 1) < 0.05


def test_the_full_gradient_of_a_stochastic_problem():
    problem = SkewedNoise(curvature=1.0)
    trace = run(problem, sam(problem, x=[1.0]), 300, batch=None)
    cycle = Quadratic([1.0]).two_cycle(lr=0.1, rho=0.1)
    assert abs(trace.iterates[-1].abs() - cycle) < 1e-9


def test_what_is_recorded():
    problem = Valley()
    every = run(problem, sam(problem, lr=0.01), 10)
    assert every.problem is problem
    assert every.iterates.shape == (11, 2)
    assert torch.equal(every.iterates[0], problem.start())
    assert torch.equal(every.values, problem.value(every.iterates))
    x = every.iterates[7].clone().requires_grad_()
    assert math.isclose(
        every.squared_norms[7], torch.autograd.grad(problem.value(x), x)[0].square().sum(), rel_tol=1e-12
    )
    some = run(problem, sam(problem, lr=0.01), 10, every=4)
    assert torch.equal(some.iterates, every.iterates[::4])
    none = run(problem, sam(problem, lr=0.01), 0)
    assert torch.equal(none.iterates, every.iterates[:1])


def test_runs_go_on():
    problem = ConvexTrap()
    optimizer, generator = sam(problem, lr=0.5), seeded()
    first = run(problem, optimizer, 5, generator)
    second = run(problem, optimizer, 5, generator, batch=8)
    assert torch.equal(first.iterates[-1], second.iterates[0])
    assert torch.equal(second.iterates[-1], parameter(optimizer))
    again = sam(problem, lr=0.5)
    assert torch.equal(run(problem, again, 5, seeded()).iterates, first.iterates)


def test_after_each_step():
    problem = Quadratic([1.0])
    optimizer = SGD([problem.parameter()], lr=0.5)
    schedule = LambdaLR(optimizer, lambda t: 1 / (t + 1))
    trace = run(problem, optimizer, 3, after=schedule.step)
    torch.testing.assert_close(trace.iterates[:, 0].tolist(), [1.0, 0.5, 0.375, 0.3125])
    assert parameter(optimizer).grad is not None


BAD = {
    "two parameters": (
        lambda p: run(p, SGD([p.parameter(), p.parameter()], lr=0.1), 1),
        "The optimizer must have one parameter, of shape (1,) in torch.float64, got (1,) in torch.float64, (1,) in "
        "torch.float64. Make it with problem.parameter().",
    ),
    "another shape": (
        lambda p: run(p, SGD([Valley().parameter()], lr=0.1), 1),
        "The optimizer must have one parameter, of shape (1,) in torch.float64, got (2,) in torch.float64.",
    ),
    "single precision": (
        lambda p: run(p, SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 1),
        "The optimizer must have one parameter, of shape (1,) in torch.float64, got (1,) in torch.float32.",
    ),
    "no generator": (
        lambda p: run(p, sam(p), 1),
        "This problem is sampled: pass a torch.Generator, or batch=None for the full gradient.",
    ),
    "no steps": (lambda p: run(p, sam(p), -1, seeded()), "steps must be >= 0, got -1."),
    "no batch": (lambda p: run(p, sam(p), 1, seeded(), batch=0), "batch must be >= 1, got 0."),
    "never": (lambda p: run(p, sam(p), 1, seeded(), every=0), "every must be >= 1, got 0."),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make(UnequalCurvature())
