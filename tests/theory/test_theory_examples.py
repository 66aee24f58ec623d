"""Worked examples: what is predicted for a problem happens to the library's optimizers on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import SGD

from steppe import GSAM, SAM, USAM, AdaSAM, LightSAM, ParamGroupSchedule
from steppe.theory import (
    ConvexTrap,
    LogCosh,
    NoisyQuadratic,
    NonSmooth,
    PseudoHuber,
    Quadratic,
    Sine,
    SkewedNoise,
    StronglyConvexTrap,
    UnequalCurvature,
    Valley,
    run,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sam(problem, lr, rho, x=None):
    return SAM(SGD([problem.parameter(x)], lr=lr), rho=rho)


def sgd(problem, lr, x=None):
    return SGD([problem.parameter(x)], lr=lr)


@pytest.mark.parametrize(
    ("beta", "rho", "lr"), [(1.0, 0.1, 0.1), (2.0, 0.3, 0.45), (1.0, 1.0, 1.5), (10.0, 0.05, 0.02)]
)
def test_sam_jumps_to_and_fro_around_the_minimum_of_a_quadratic(beta, rho, lr):
    problem = Quadratic([beta])
    c = problem.two_cycle(lr, rho).item()
    assert math.isclose(c, lr * beta * rho / (2 - lr * beta), rel_tol=1e-12)
    ends = run(problem, sam(problem, lr, rho, [0.7]), 250).iterates[-2:, 0]
    assert abs(ends.abs() - c).max() < 1e-9
    assert ends.prod() < 0
    lowest = lr**2 * beta**3 * rho**2 / 8
    assert problem.value(ends[-1:]) >= lowest


def test_the_two_cycles_of_many_dimensions():
    """SAM ends on the sharpest eigenvector; on another only once rounding has made that coordinate exactly 0."""
    problem = Quadratic([1.0, 10.0, 0.1], start=2.0)
    for lr, h, steps in ((0.05, 1, 2000), (0.01, 0, 5000)):
        end = run(problem, sam(problem, lr, 0.1), steps, every=steps).iterates[-1]
        expected = torch.zeros(3, dtype=torch.float64)
        expected[h] = problem.two_cycle(lr, 0.1)[h]
        torch.testing.assert_close(end.abs(), expected, rtol=0, atol=3e-3 * expected[h].item())
    assert problem.two_cycle(0.25, 0.1)[1] == math.inf
    assert run(problem, LightSAM([problem.parameter()], lr=1.0, rho=0.1), 5000).squared_norms[-1] < 1e-16


@pytest.mark.parametrize(
    ("problem", "lr", "starts"),
    [(Sine(1.0, 1.0), 0.5, 200), (Sine(2.0, 0.3), 0.2, 20), (Sine(1.0, 1.0, delta=0.5), 1.0, 20)],
)
def test_sam_ends_at_a_distance_from_the_minima_of_the_sine(problem, lr, starts):
    generator, sides = seeded(), set()
    for _ in range(starts):
        trace = run(problem, sam(problem, lr, problem.rho, problem.start(generator)), 50, every=50)
        away = problem.from_minimum(trace.iterates[-1]).item()
        assert abs(abs(away) - problem.delta) < 1e-6 * problem.rho
        assert math.isclose(trace.squared_norms[-1], problem.trapped_gradient**2, rel_tol=1e-4)
        assert math.isclose(trace.values[-1] - problem.minimum, problem.trapped_gap, rel_tol=1e-4)
        climbed = trace.iterates[-1] + problem.rho * problem.gradient(trace.iterates[-1]).sign()
        assert abs(problem.from_minimum(climbed)) < 1e-6 * problem.rho
        sides.add(away > 0)
    assert sides == {True, False}


def test_the_numbers_of_the_sine():
    problem = Sine(beta=2.0, rho=0.3)
    x = torch.linspace(-1, 1, 50, dtype=torch.float64).unsqueeze(-1)
    amplitude = 9 * 2 * 0.3**2 / (25 * math.pi**2)
    torch.testing.assert_close(problem.value(x), amplitude * torch.sin(5 * math.pi * x[:, 0] / (3 * 0.3)))
    assert math.isclose(problem.minimum, -amplitude, rel_tol=1e-12)
    assert math.isclose(problem.trapped_gradient**2, 27 / (100 * math.pi**2) * (2 * 0.3) ** 2, rel_tol=1e-12)
    assert math.isclose(problem.trapped_gap, 9 / (50 * math.pi**2) * 2 * 0.3**2, rel_tol=1e-12)
    torch.testing.assert_close(problem.minimisers[:, 0].tolist(), [-0.3 * 0.3, 0.9 * 0.3])
    torch.testing.assert_close(problem.from_minimum(problem.minimisers + 0.01), torch.full((2, 1), 0.01).double())


def test_a_radius_that_falls_with_the_gradients_gets_through_the_sine():
    problem = Sine(1.0, 1.0)
    for x in (0.37, -2.2, 4.0):
        lightsam = LightSAM([problem.parameter([x])], lr=1.0, rho=1.0)
        assert run(problem, lightsam, 1500, every=1500).squared_norms[-1] < 1e-15


@pytest.mark.parametrize("lr", [0.1, 0.01])
@pytest.mark.parametrize("c", [0.3, -1.0, 1.99, 3.4])
def test_sam_stays_on_a_line_of_the_non_smooth_problem(c, lr):
    problem, generator = NonSmooth(), seeded(int(100 * abs(c)))
    for _ in range(2):
        y = 2 * torch.rand(1, generator=generator).item() - 1
        trace = run(problem, sam(problem, lr, 1.0, [c + 2 * y, y]), 400)
        assert (problem.line(trace.iterates) - c).abs().max() < 1e-12
        assert (trace.values >= abs(c) / 7 * (1 - 1e-12)).all()
        assert math.isclose(problem.floor(trace.iterates[0]), abs(c) / 7, rel_tol=1e-12)
        assert trace.values[-100:].min() < abs(c) / 7 + 5 * lr


@pytest.mark.parametrize("lr", [0.1, 0.02])
def test_far_lines_of_the_non_smooth_problem_are_left_for_the_nearest_that_holds(lr):
    problem = NonSmooth()
    trace = run(problem, sam(problem, lr, 1.0, [5.0, -0.5]), int(20 / lr))
    line = problem.line(trace.iterates).abs()
    assert line[0] == 6.0
    assert abs(line[-1] - 3.5) < 10 * lr
    assert abs(trace.values[-100:].min() - 0.5) < 3 * lr


def test_only_sam_with_a_constant_radius_goes_down_the_valley():
    problem, ends = Valley(), {}
    schedules = {"falling": lambda t: 1 / math.sqrt(t + 1), "constant": None}
    for name, schedule in schedules.items():
        optimizer = sam(problem, 0.01, 0.1)
        after = None if schedule is None else ParamGroupSchedule(optimizer, "rho", schedule).step
        steps = 15000 if name == "constant" else 2000
        ends[name] = run(problem, optimizer, steps, every=steps, after=after).iterates[-1]
    ends["gd"] = run(problem, sgd(problem, 0.01), 2000, every=2000).iterates[-1]
    usam = USAM(SGD([problem.parameter()], lr=0.01), rho=0.1)
    ends["usam"] = run(problem, usam, 2000, every=2000).iterates[-1]
    expected = {"gd": (2.528, 0.396), "usam": (2.501, 0.400), "falling": (2.518, 0.397), "constant": (1.002, 0.997)}
    for name, (x, y) in expected.items():
        torch.testing.assert_close(ends[name].tolist(), [x, y], rtol=0, atol=1e-3, msg=f"{name}: {ends[name]}")
    curvature = {name: problem.curvature(end).item() for name, end in ends.items()}
    assert abs(curvature.pop("constant") - 4) < 0.01  # given longer, it ends at (1, 1)
    assert min(curvature.values()) > 12.8
    assert problem.value(ends["gd"]) < 1e-25
    assert 1e-8 < problem.value(ends["constant"]) < 1e-5  # it never settles


def replayed(problem, lr, steps, seed, optimizer, same_sample=True):
    """Return a run, and SGD in plain numbers on the samples of its sharp passes: most of the noise is in both."""
    seen, gradient = [], problem.component_gradient

    def spying(x, sample):
        seen.append(sample)
        return gradient(x, sample)

    problem.component_gradient = spying
    trace = run(problem, optimizer, steps, seeded(seed), same_sample=same_sample)
    del problem.component_gradient
    curvatures, tilts = problem.curvatures.flatten().tolist(), problem.tilts.flatten().tolist()
    plain = [trace.iterates[0].item()]
    for i in torch.stack(seen[1::2]).tolist():
        plain.append(plain[-1] - lr * (curvatures[i] * plain[-1] - tilts[i]))
    return trace.iterates[:, 0], torch.tensor(plain, dtype=torch.float64)


def mean_and_error(rows, block=750):
    """Return the mean, and its standard error from means over blocks that are many autocorrelation times long."""
    means = torch.cat([row.unfold(0, block, block).mean(-1) for row in rows])
    return means.mean().item(), means.std().item() / math.sqrt(len(means))


@pytest.mark.parametrize(
    ("problem", "rho", "same", "predicted"),
    [
        (SkewedNoise(curvature=1.0, probability=0.9, size=1.0), 0.1, True, -0.08),
        (SkewedNoise(curvature=1.0, probability=0.9, size=1.0), 0.1, False, -0.08),
        (UnequalCurvature(curvatures=(1.0, 0.2), centre=-3.0, probability=0.5), 0.5, True, -1 / 3),
        (UnequalCurvature(curvatures=(1.0, 0.2), centre=-3.0, probability=0.5), 0.5, False, 0.0),
    ],
    ids=["skewed noise", "skewed noise, independent", "unequal curvature", "unequal curvature, independent"],
)
def test_the_mean_of_stochastic_sam_is_shifted(problem, rho, same, predicted):
    assert math.isclose(problem.predicted_mean(rho, same), predicted, abs_tol=1e-12)
    rows, differences = [], []
    for seed in range(2):
        ours, plain = replayed(problem, 0.01, 5250, seed, sam(problem, 0.01, rho), same)
        rows.append(ours[751:])
        differences.append((ours - plain)[751:])
    mean, error = mean_and_error(rows)
    assert abs(mean - predicted) < 4 * error
    mean, error = mean_and_error(differences)  # the mean of SGD is 0
    assert error < 0.05 * rho
    assert abs(mean - predicted) < 4 * error


@pytest.mark.parametrize(
    ("problem", "lr"),
    [
        (StronglyConvexTrap(beta=1.0, rho=0.4, z=0.5), 0.5),
        (StronglyConvexTrap(beta=1.0, rho=0.4, z=0.7), 0.3),
        (StronglyConvexTrap(beta=2.0, rho=0.4, z=0.6), 0.1),
        (ConvexTrap(beta=1.0, rho=0.4, z=5.0), 0.5),
        (ConvexTrap(beta=1.0, rho=0.4, z=50.0), 0.5),
        (ConvexTrap(beta=2.0, rho=0.1, z=0.3, slope=0.09), 0.05),
    ],
)
def test_stochastic_sam_never_leaves_the_traps(problem, lr):
    assert lr <= problem.largest_lr * (1 + 1e-12)
    low, high = problem.trap
    for seed in range(3):
        trace = run(problem, sam(problem, lr, problem.rho, problem.start(seeded(seed))), 500, seeded(seed))
        assert low - 1e-12 <= trace.iterates.min() <= trace.iterates.max() <= high + 1e-12
        assert trace.values.min() >= problem.floor - 1e-12
        if isinstance(problem, ConvexTrap):
            assert (trace.squared_norms - problem.trapped_gradient**2).abs().max() < 1e-12
        plain = run(problem, sgd(problem, lr, trace.iterates[0]), 500, seeded(seed)).iterates
        assert plain.min() < low


def test_the_traps_are_as_deep_as_stated():
    for lr, z, lowest in ((0.5, 1.25, 1 / 160), (0.3, 1.75, 0.056)):
        problem = StronglyConvexTrap(beta=1.0, rho=1.0, z=z)
        assert math.isclose(problem.largest_lr, lr, rel_tol=1e-12)
        assert problem.floor >= lowest * (1 - 1e-12)
        assert math.isclose(problem.floor, (z - 1) ** 2 / 10, rel_tol=1e-12)
    far = [ConvexTrap(beta=1.0, rho=0.4, z=z) for z in (5.0, 50.0)]
    assert far[1].floor > 9 * far[0].floor
    assert math.isclose(far[0].trapped_gradient ** 2, (1.0 * 0.4) ** 2 / 16, rel_tol=1e-12)


def test_the_trap_needs_its_conditions():
    """One sample in both passes, and a learning rate that is not too large."""
    problem = StronglyConvexTrap(beta=1.0, rho=0.4, z=0.5)
    trace = run(problem, sam(problem, 0.9, 0.4), 2000, seeded())
    assert trace.iterates.min() < problem.trap[0] - 1e-3


@pytest.mark.parametrize("z", [5.0, 50.0])
def test_independent_samples_leave_the_convex_trap(z):
    problem = ConvexTrap(beta=1.0, rho=0.4, z=z)
    steps = 600 + int(20 * z)
    for optimizer, same in ((sam(problem, 0.5, 0.4), False), (sgd(problem, 0.5), True)):
        end = run(problem, optimizer, steps, seeded(), same_sample=same).iterates[-300:]
        assert end.abs().mean() < 4
    stays = run(problem, sam(problem, 0.5, 0.4), steps, seeded()).iterates[-300:]
    assert (stays - z).abs().max() <= problem.rho


def test_gradients_on_average_over_a_run_on_a_smooth_convex_problem():
    problem, rho, steps = LogCosh(10), 0.5, 10000
    gap = problem.value(problem.start()).item() - problem.minimum
    lr = min(0.5, math.sqrt(gap / (rho**2 * steps)))
    average = run(problem, sam(problem, lr, rho), steps).squared_norms[:-1].mean().item()
    assert math.isclose(average, 0.0239, abs_tol=1e-4)
    assert average <= 2 * gap / (lr * steps) + 2 * lr * rho**2


def test_gradients_on_average_over_runs_of_adasam():
    problem, steps, eps = PseudoHuber(examples=64, dimension=5), 1000, 0.1
    for beta1, typical in ((0.0, 0.276), (0.9, 0.330)):
        lr, rho = eps / 16, 1 / math.sqrt(4 * steps)
        optimizer = AdaSAM([problem.parameter()], lr, rho=rho, betas=(beta1, 0.999), eps=eps)
        average = run(problem, optimizer, steps, seeded(), batch=4).squared_norms[:-1].mean().item()
        assert math.isclose(average, typical, rel_tol=0.05)


def test_a_growing_batch_shrinks_what_is_left_of_gsam():
    problem = NoisyQuadratic(sigma=1.0)
    rest = {}
    for rho, grows in ((0.1, False), (0.1, True), (0.01, True)):
        optimizer = GSAM(SGD([problem.parameter()], lr=0.25), rho=rho, alpha=0.3)
        generator = seeded()
        parts = [run(problem, optimizer, 200, generator, batch=4 * 2 ** (k * grows)).squared_norms for k in range(10)]
        average = torch.cat([part[:-1] for part in parts]).mean().item()
        assert average < 0.12
        rest[rho, grows] = parts[-1][-100:].mean().item()
    assert 1e-2 < rest[0.1, False] < 4e-2
    assert 1e-4 < rest[0.1, True] < 4e-4
    assert 2e-5 < rest[0.01, True] < 1e-4
