"""Gradient norm, surrogate gap and the edge of stability against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import NETWORKS, case, exploding, normal, quadratic, symmetric
from torch import nn

from steppe.measure import Objective, gradient_norm, sam_edge, surrogate_gap


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_norm(name):
    network = case(name)
    found = gradient_norm(network.objective())
    assert found.value == pytest.approx(network.gradient().norm().item(), rel=1e-10)
    assert (found.error, found.n) == (None, 1)


@given(st.floats(-12, 3), st.floats(-6, 3))
def test_surrogate_gap_of_a_quadratic(slope, radius):
    slope, rho = 10**slope, 10**radius
    h, g = symmetric([-1.0, 0.5, 2.0]), slope * normal(3)
    exact = rho * g.norm() + 0.5 * rho**2 * (g @ h @ g) / (g @ g)
    assert surrogate_gap(quadratic(h, g), rho).value == pytest.approx(exact.item(), rel=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_surrogate_gap_of_networks(name):
    network = case(name)
    w, g = network.weights(), network.gradient()
    exact = (network.at(w + 0.1 * g / g.norm()) - network.at(w)).item()
    assert surrogate_gap(network.objective(), 0.1).value == pytest.approx(exact, rel=1e-9)


def test_no_gradient_no_gap():
    assert surrogate_gap(quadratic(symmetric([1.0, 2.0])), 0.1).value == 0
    assert gradient_norm(quadratic(symmetric([1.0, 2.0]))).value == 0


@pytest.mark.parametrize("slope", [1e-22, 1e-30, 1e-42])
def test_gradients_whose_squares_vanish(slope):
    """Float32 cannot hold the square of 1e-30."""
    objective = quadratic(torch.eye(2), torch.tensor([0.0, slope]))
    assert gradient_norm(objective).value == pytest.approx(slope, rel=1e-3)
    assert surrogate_gap(objective, 0.1).value == pytest.approx(0.005, rel=1e-3)


def test_infinite_where_the_loss_overflows():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.1)
    assert surrogate_gap(Objective(model, exploding, (torch.ones(2, 1), torch.ones(2, 1))), 10.0).value == math.inf


decades = st.floats(-10, 0).map(lambda x: 10**x)


@given(decades, decades, decades)
def test_sam_edge_is_the_root(norm, rho, lr):
    edge = sam_edge(norm, rho, lr)
    assert edge >= 0
    assert lr * edge * (1 + rho * edge / norm) == pytest.approx(2, rel=1e-12)
    assert edge <= 2 / lr * (1 + 1e-12)


@given(decades, decades)
def test_sam_edge_without_a_radius_is_plain(norm, lr):
    assert sam_edge(norm, 0.0, lr) == 2 / lr
    assert sam_edge(norm, 1e-14 * norm * lr, lr) == pytest.approx(2 / lr, rel=1e-12)


@given(decades, decades, st.floats(1e-3, 1.0))
def test_sam_edge_as_the_paper_writes_it(norm, lr, ratio):
    """Where the textbook formula is not yet the difference of equal numbers."""
    rho = ratio * lr * norm
    paper = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * norm)) - 1)
    assert sam_edge(norm, rho, lr) == pytest.approx(paper, rel=1e-9)


def test_sam_edge_falls_with_the_gradient():
    edges = [sam_edge(norm, 0.1, 0.1) for norm in (1.0, 0.1, 0.01, 0.0)]
    assert edges == sorted(edges, reverse=True)
    assert edges[-1] == 0


def test_sam_edge_of_next_to_nothing():
    assert sam_edge(1e-200, 0.1, 1e-200) >= 0
    assert sam_edge(0.0, 0.0, 0.1) == 20


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: surrogate_gap(quadratic(symmetric([1.0])), 0.0), "rho must be a finite number > 0, got 0.0"),
        (lambda: surrogate_gap(quadratic(symmetric([1.0])), math.nan), "rho must be a finite number > 0, got nan"),
        (lambda: sam_edge(-1.0, 0.1, 0.1), "gradient_norm must be a finite number >= 0, got -1.0"),
        (lambda: sam_edge(math.inf, 0.1, 0.1), "gradient_norm must be a finite number >= 0, got inf"),
        (lambda: sam_edge(1.0, -0.1, 0.1), "rho must be a finite number >= 0, got -0.1"),
        (lambda: sam_edge(1.0, math.nan, 0.1), "rho must be a finite number >= 0, got nan"),
        (lambda: sam_edge(1.0, 0.1, 0.0), "lr must be a finite number > 0, got 0.0"),
        (lambda: sam_edge(1.0, 0.1, math.inf), "lr must be a finite number > 0, got inf"),
    ],
)
def test_refuses(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()
