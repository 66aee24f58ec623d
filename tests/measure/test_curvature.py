"""The spectrum and the trace against dense Hessians, which are made by torch.func from all examples at once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NETWORKS, case, normal, quadratic, rescaled, symmetric
from torch import nn
from torch.nn.functional import cross_entropy

from steppe.measure import Objective, spectrum, trace

over_networks = pytest.mark.parametrize("name", [*NETWORKS, "relu"])
over_scales = pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])
METHODS = pytest.mark.parametrize(("method", "rel"), [("autograd", 1e-6), ("finite_difference", 1e-4)])


def values_of(network, adaptive=False):
    return torch.linalg.eigvalsh(network.hessian(adaptive))


@over_networks
@over_scales
@METHODS
@pytest.mark.parametrize("batch_size", [4, 10])
def test_eigenvalues_of_networks(name, adaptive, method, rel, batch_size):
    network = case(name)
    exact, objective = values_of(network, adaptive), network.objective(batch_size)
    found = spectrum(objective, k=3, steps=objective.size, adaptive=adaptive, method=method)
    scale = exact.abs().max().item()
    assert found.largest == pytest.approx(exact.flip(0)[:3].tolist(), rel=rel, abs=rel * 1e-3 * scale)
    assert found.smallest == pytest.approx(exact[0].item(), rel=rel, abs=rel * 1e-3 * scale)


@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(-4, 4))
@settings(max_examples=40, deadline=None)
def test_eigenvalues_of_quadratics(dim, seed, decade):
    values = normal(dim, seed=seed) * 10**decade
    objective = quadratic(symmetric(values, seed))
    found = spectrum(objective, k=min(dim, 3), steps=dim, seed=seed)
    exact = torch.linalg.eigvalsh(objective.model.h).flip(0)
    assert found.largest[0] == pytest.approx(exact[0].item(), rel=1e-6, abs=1e-9 * 10**decade)
    for value in found.largest:
        assert (exact - value).abs().min() <= 1e-6 * exact.abs().max()


@over_networks
@over_scales
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_errors_bound_the_distance_to_the_spectrum(name, adaptive, steps):
    network = case(name)
    exact = values_of(network, adaptive)
    for seed in range(3):
        found = spectrum(network.objective(), k=steps, steps=steps, adaptive=adaptive, seed=seed)
        assert list(found.largest) == sorted(found.largest, reverse=True)
        for value, error in zip(found.largest, found.errors, strict=True):
            assert (exact - value).abs().min().item() <= error + 1e-12
            assert exact[0] - 1e-12 <= value <= exact[-1] + 1e-12


def test_errors_are_not_just_large():
    """For a spectrum with a gap, the top has converged long before the end."""
    found = spectrum(quadratic(symmetric([10.0, *torch.linspace(-1, 1, 40).tolist()])), steps=12)
    assert found.errors[0] < 1e-8
    assert found.largest[0] == pytest.approx(10, abs=1e-9)


def test_a_multiple_eigenvalue_is_found_once():
    found = spectrum(quadratic(symmetric([2.0, 2.0, 2.0, 1.0, 1.0])), k=5, steps=5)
    assert found.largest == pytest.approx([2.0, 1.0])
    assert found.nodes.shape == (1, 2)


@over_scales
def test_a_loss_without_curvature(adaptive):
    """Linear in all weights: nothing can be differentiated twice, and zero it is."""
    objective = quadratic(torch.zeros(4, 4, dtype=torch.float64), normal(4), normal(4, seed=1))
    linear = Objective(nn.Linear(3, 1, dtype=torch.float64), lambda out, _: out.mean(), (normal(5, 3), torch.zeros(5)))
    for flat in (objective, linear):
        found = spectrum(flat, k=2, steps=4, adaptive=adaptive)
        assert (found.largest, found.smallest) == ((0.0,), 0.0)
        assert trace(flat, adaptive=adaptive).value == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(dtype):
    network = case("mlp")
    exact = values_of(network)[-1].item()
    low = network.changed(model=network.model.to(dtype), x=network.x.to(dtype)).objective()
    found = spectrum(low, steps=15).largest[0]
    assert found == pytest.approx(exact, rel=1e-4 if dtype == torch.float32 else 0.1)


@over_scales
def test_finite_differences_in_float32(adaptive):
    """However many signs a probe of the trace has: the step is as long as in Lanczos."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 200), nn.Tanh(), nn.Linear(200, 5))
    objective = Objective(model, cross_entropy, (torch.randn(40, 20), torch.arange(40) % 5))
    for measure in (lambda **o: spectrum(objective, steps=8, **o).largest[0], lambda **o: trace(objective, **o).value):
        exact = measure(adaptive=adaptive)
        assert measure(adaptive=adaptive, method="finite_difference") == pytest.approx(exact, rel=5e-4)


def test_the_best_run_counts():
    objective = case("mlp").objective()
    alone = [spectrum(objective, steps=3, seed=seed) for seed in (4, 5, 6)]
    together = spectrum(objective, steps=3, seed=4, runs=3)
    best = max(alone, key=lambda found: found.largest)
    assert (together.largest, together.errors) == (best.largest, best.errors)
    assert together.smallest == min(found.smallest for found in alone)
    assert torch.equal(together.nodes, torch.cat([found.nodes for found in alone]))


def test_adaptive_does_not_see_rescaled_layers_and_plain_does():
    def value(a, adaptive):
        return spectrum(rescaled(case("relu"), a).objective(), steps=42, adaptive=adaptive).largest[0]

    assert value(4.0, True) == pytest.approx(value(1.0, True), rel=1e-6)
    assert value(4.0, False) != pytest.approx(value(1.0, False), rel=1e-2)


# Density


def first(n, seed):
    """The vector that a run begins at."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()
    return v / v.norm()


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.integers(0, 99), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_density_of_a_diagonal_hessian(values, seed, runs):
    """With as many steps as values every run knows its first vector's share of each."""
    objective = quadratic(torch.tensor(values, dtype=torch.float64).diag())
    found = spectrum(objective, steps=len(values), runs=runs, seed=seed)
    grid, phi = found.density(points=4001)
    size = max(1e-9, *map(abs, values))
    shares = [first(len(values), seed + run) ** 2 for run in range(runs)]
    means = [(share @ torch.tensor(values, dtype=torch.float64)).item() for share in shares]
    assert found.weights.sum(1).tolist() == pytest.approx([1.0] * runs)
    assert torch.trapezoid(phi, grid).item() == pytest.approx(1, abs=1e-3)
    assert torch.trapezoid(grid * phi, grid).item() == pytest.approx(sum(means) / runs, abs=1e-3 * size)
    assert (found.nodes.nan_to_num() * found.weights).sum(1).tolist() == pytest.approx(means, abs=1e-9 * size)


@over_networks
def test_moments_of_the_density_are_those_of_its_first_vectors(name):
    """Gauss quadrature: v'Hv, v'HHv and v'HHHv of the normalised first vectors, from a few steps."""
    network, h = case(name), case(name).hessian()
    found = spectrum(network.objective(), steps=4, runs=2)
    for run in range(2):
        v = first(len(h), run)
        for power in (1, 2, 3):
            moment = (found.nodes[run].nan_to_num() ** power * found.weights[run]).sum().item()
            assert moment == pytest.approx((v @ torch.linalg.matrix_power(h, power) @ v).item(), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("value", [1e-6, 1.0, 1e4, 1e9])
def test_density_of_one_value(value):
    grid, phi = spectrum(quadratic(value * torch.eye(3, dtype=torch.float64))).density()
    assert torch.trapezoid(phi, grid).item() == pytest.approx(1, abs=1e-3)
    assert grid[phi.argmax()].item() == pytest.approx(value, rel=1e-2)


def test_density_lies_where_the_spectrum_is():
    """Also where one run ends early: the missing nodes are nowhere, not at zero."""
    found = spectrum(quadratic(torch.diag(torch.tensor([9.0, 11.0], dtype=torch.float64))), steps=2, runs=2)
    nodes, weights = torch.tensor([[9.0, 11.0], [9.0, math.nan]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    found = replace(found, nodes=nodes.double(), weights=weights.double())
    assert found.density()[0].min() > 8
    assert found.density(width=0.5)[0].min() == pytest.approx(9 - 4 * 0.5)


# Attention, and what has no second derivative


def test_attention_has_a_spectrum():
    """The fused kernel has no second derivative; what this is about is that it is not taken."""
    network = case("attention")
    objective = network.objective(10)
    found = spectrum(objective, steps=objective.size).largest[0]
    assert found == pytest.approx(values_of(network)[-1].item(), rel=1e-6)


class Far(nn.Module):
    """Distances have a gradient, and no second derivative in torch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return torch.cdist(self.inner(x), torch.ones(3, 3))


def test_says_what_to_do_without_a_second_derivative():
    objective = Objective(Far(), cross_entropy, (case("mlp").x.float(), case("mlp").y))
    for measure in (spectrum, trace):
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice \(.*Pass method='finite_difference'"):
            measure(objective)
    assert spectrum(objective, method="finite_difference").largest[0] > 0


class Kernel(torch.autograd.Function):
    """A square whose backward pass is opaque to autograd, as a Triton kernel's is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return torch.empty_like(gradient).copy_((2 * ctx.saved_tensors[0] * gradient).detach())


class OnceKernel(Kernel):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Custom(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.first, self.kernel, self.last = nn.Linear(3, 4), kernel, nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.kernel.apply(self.first(x)))


@pytest.mark.parametrize("kernel", [Kernel, OnceKernel])
@pytest.mark.parametrize("measure", [spectrum, lambda objective: spectrum(objective, adaptive=True), trace])
def test_opaque_kernels_are_refused(kernel, measure):
    torch.manual_seed(0)
    model = Custom(kernel).double()
    weights = [p.clone() for p in model.parameters()]
    objective = case("mlp").changed(model=model).objective()
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*method='finite_difference'"):
        measure(objective)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert spectrum(objective, steps=31, method="finite_difference").largest[0] > 0


class OpenKernel(Kernel):
    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_custom_functions_with_a_second_derivative_are_taken():
    torch.manual_seed(0)
    objective = case("mlp").changed(model=Custom(OpenKernel).double()).objective()
    found = spectrum(objective, steps=31).largest[0]
    assert found == pytest.approx(spectrum(objective, steps=31, method="finite_difference").largest[0], rel=1e-4)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_no_first_vector_misses_the_top(n, seed):
    """Sign vectors do: half of them are orthogonal to the one eigenvector of a matrix of ones."""
    w = nn.Linear(n, 1, bias=False).double()
    x = torch.ones(2, n, dtype=torch.float64)
    objective = Objective(w, lambda out, y: (out**2).mean() / 2, (x, torch.zeros(2)))
    assert spectrum(objective, steps=n, seed=seed).largest[0] == pytest.approx(n)


def test_other_errors_are_passed_on():
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("out of something")
        return cross_entropy(outputs, targets)

    with pytest.raises(RuntimeError, match=r"^out of something$"):
        spectrum(case("mlp").changed(loss=loss).objective(10))


# Trace


@pytest.mark.parametrize("name", NETWORKS)
@over_scales
@METHODS
@pytest.mark.parametrize(("estimator", "products"), [("hutchinson", 30), ("hutch++", 12)])
def test_trace_of_networks(name, adaptive, method, rel, estimator, products):
    network = case(name)
    exact, options = network.hessian(adaptive).trace().item(), {"adaptive": adaptive, "method": method}
    for seed in range(3):
        found = trace(network.objective(), products=products, estimator=estimator, seed=seed, **options)
        # Hutch++ has four probes here, whose standard error is Student's with three degrees of freedom
        assert abs(found.value - exact) <= (4 if products == 30 else 9) * found.error + rel * abs(exact)
        assert found.n == (30 if estimator == "hutchinson" else 4)


@pytest.mark.parametrize(("estimator", "products"), [("hutchinson", 20), ("hutch++", 45)])
def test_the_error_is_honest(estimator, products):
    """Of 200 seeds, about 95 % (Hutch++: 93 %, of 15 probes) are within two standard errors, and the mean of all is the trace."""
    h = symmetric(normal(30))
    exact, objective = h.trace().item(), quadratic(h)
    found = [trace(objective, products=products, estimator=estimator, seed=seed) for seed in range(200)]
    within = sum(abs(f.value - exact) <= 2 * f.error for f in found) / 200
    assert 0.88 <= within <= 0.995
    values = torch.tensor([f.value for f in found])
    assert abs(values.mean() - exact) <= 4 * values.std() / 200**0.5


def test_trace_of_a_diagonal_hessian_is_exact():
    found = trace(quadratic(normal(9).diag()), products=2)
    assert found.value == pytest.approx(normal(9).sum().item(), rel=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_hutch_plus_plus_is_exact_for_a_low_rank():
    h = symmetric([5.0, -3.0, 2.0, *[0.0] * 20])
    for seed in range(5):
        found = trace(quadratic(h), products=9, estimator="hutch++", seed=seed)
        assert found.value == pytest.approx(4.0, abs=1e-9)
        assert found.error == pytest.approx(0, abs=1e-9)


def test_hutch_plus_plus_with_more_products_than_weights():
    h = symmetric([1.0, 2.0])
    assert trace(quadratic(h), products=30, estimator="hutch++").value == pytest.approx(3)


O = quadratic(symmetric([1.0, 2.0]))  # noqa: E741


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: spectrum(O, k=0), "k must be a whole number >= 1, got 0"),
        (lambda: spectrum(O, k=True), "k must be a whole number >= 1, got True"),
        (lambda: spectrum(O, steps=0), "steps must be a whole number >= 1, got 0"),
        (lambda: spectrum(O, runs=1.0), "runs must be a whole number >= 1, got 1.0"),
        (lambda: spectrum(O, k=3, steps=2), "steps must be at least k = 3, got 2"),
        (lambda: spectrum(O, method="magic"), "method must be 'autograd' or 'finite_difference', got 'magic'"),
        (lambda: spectrum(O).density(points=1), "points must be a whole number >= 2, got 1"),
        (lambda: spectrum(O).density(width=0.0), "width must be a finite number > 0, got 0.0"),
        (lambda: spectrum(O).density(width=-1.0), "width must be a finite number > 0, got -1.0"),
        (lambda: spectrum(O).density(width=math.nan), "width must be a finite number > 0, got nan"),
        (lambda: trace(O, products=0), "products must be a whole number >= 1, got 0"),
        (lambda: trace(O, products=1), "hutchinson needs products >= 2 for a standard error, got 1"),
        (
            lambda: trace(O, products=5, estimator="hutch++"),
            r"hutch\+\+ needs products >= 6 for a standard error, got 5",
        ),
        (lambda: trace(O, estimator="guess"), r"estimator must be 'hutchinson' or 'hutch\+\+', got 'guess'"),
        (lambda: trace(O, method="magic"), "method must be 'autograd' or 'finite_difference', got 'magic'"),
    ],
)
def test_refuses(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()
