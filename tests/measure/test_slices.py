"""Slices against direct evaluation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import NETWORKS, case, neighbour, quadratic, seeded, symmetric
from torch import nn
from torch.nn.functional import cross_entropy

from steppe.measure import Objective, line, slice_1d, slice_2d
from steppe.measure.slices import filter_normalized

over_networks = pytest.mark.parametrize("name", NETWORKS)


def directions(network, seed, n):
    """The directions that a seed stands for, flat."""
    generator, params = seeded(seed), [p.detach() for p in network.model.parameters()]
    return [torch.cat([d.flatten() for d in filter_normalized(params, generator)]) for _ in range(n)]


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2), (1, 7), (5, 1)])
def test_filters_keep_their_length(shape):
    w = torch.randn(shape, dtype=torch.float64, generator=seeded(0))
    w[1:2] = 0
    (d,) = filter_normalized([w], seeded(1))
    assert d.shape == w.shape
    torch.testing.assert_close(d.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    assert not torch.equal(d, w)


def test_biases_and_gains_stay():
    found = filter_normalized([torch.ones(5), torch.tensor(2.0), torch.ones(2, 2)], seeded(0))
    assert [d.any().item() for d in found] == [False, False, True]


@over_networks
def test_a_line_through_the_weights(name):
    network = case(name)
    found = slice_1d(network.objective(), radius=0.5, points=5, seed=3)
    (d,) = directions(network, 3, 1)
    assert found.axes == ((-0.5, -0.25, 0.0, 0.25, 0.5),)
    exact = [network.at(network.weights() + a * d).item() for a in found.axes[0]]
    assert list(found.losses) == pytest.approx(exact, rel=1e-10)
    assert found.losses[2] == network.objective().loss()


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_plane_through_the_weights(name):
    """``losses[i][j]`` is at the i-th coordinate along the first direction and the j-th along the second."""
    network = case(name)
    found = slice_2d(network.objective(), radius=0.7, points=3, seed=3)
    d, e = directions(network, 3, 2)
    for i, a in enumerate(found.axes[0]):
        for j, b in enumerate(found.axes[1]):
            exact = network.at(network.weights() + a * d + b * e).item()
            assert found.losses[i][j] == pytest.approx(exact, rel=1e-10)
    assert found.losses[1][1] == network.objective().loss()
    assert found.losses[0][2] != pytest.approx(found.losses[2][0], rel=1e-3)
    assert not torch.allclose(d, e)


@given(st.floats(1e-6, 1e6), st.integers(1, 50))
def test_odd_numbers_of_points_include_the_weights(radius, half):
    axis = slice_1d(quadratic(symmetric([1.0])), radius=radius, points=2 * half + 1).axes[0]
    assert (axis[0], axis[half], axis[-1]) == (-radius, 0.0, radius)
    assert list(axis) == sorted(axis)


def test_another_seed_is_another_direction():
    objective = case("mlp").objective()
    assert slice_1d(objective, points=3, seed=0).losses != slice_1d(objective, points=3, seed=1).losses


# Lines from model to model


def normed(seed):
    """A network with frozen weights and batch norm whose statistics are its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    for _ in range(seed + 3):
        model(3 * torch.randn(20, 3, dtype=torch.float64) + seed)
    model[0].bias.requires_grad_(False)
    return model.eval()


def loss_of(model):
    return Objective(model, cross_entropy, (case("mlp").x, case("mlp").y), batch_size=4).loss()


def test_both_ends_of_a_line_are_the_models():
    a, b = normed(0), normed(5)
    objective = Objective(a, cross_entropy, (case("mlp").x, case("mlp").y), batch_size=4)
    found = line(objective, b, points=5)
    assert found.axes == ((0.0, 0.25, 0.5, 0.75, 1.0),)
    assert (found.losses[0], found.losses[-1]) == (loss_of(a), loss_of(b))
    between = copy.deepcopy(a)
    with torch.no_grad():
        for tensor, other in zip(
            [*between.parameters(), *between.buffers()], [*b.parameters(), *b.buffers()], strict=True
        ):
            if tensor.is_floating_point():
                tensor.mul_(0.25).add_(other, alpha=0.75)
    assert found.losses[3] == pytest.approx(loss_of(between), rel=1e-12)


def test_a_line_leaves_the_other_model_alone():
    a, b = normed(0), normed(5)
    before = copy.deepcopy(b.state_dict())
    line(Objective(a, cross_entropy, (case("mlp").x, case("mlp").y)), b, points=3, beyond=0.5)
    assert all(torch.equal(x, y) for x, y in zip(before.values(), b.state_dict().values(), strict=True))


def test_a_line_goes_on_beyond_its_ends():
    objective = quadratic(symmetric([2.0]), w=torch.ones(1, dtype=torch.float64))
    other = quadratic(symmetric([2.0]), w=-torch.ones(1, dtype=torch.float64)).model
    found = line(objective, other, points=5, beyond=0.5)
    assert found.axes == ((-0.5, 0.0, 0.5, 1.0, 1.5),)
    assert found.losses == pytest.approx([4.0, 1.0, 0.0, 1.0, 4.0])


def test_a_line_to_another_precision():
    network = case("mlp")
    found = line(network.objective(), neighbour(network.model).float(), points=2)
    assert found.losses[1] == pytest.approx(
        network.changed(model=neighbour(network.model)).objective().loss(), rel=1e-5
    )


class Two(nn.Module):
    """Two weights, registered in either order."""

    def __init__(self, order, a, b):
        super().__init__()
        for name in order:
            self.register_parameter(name, nn.Parameter(torch.tensor([{"a": a, "b": b}[name]])))

    def forward(self, x):
        return x * self.a * self.b**2


def test_parameters_go_by_name():
    here, there = Two("ab", 1.0, 2.0), Two("ba", 2.0, 3.0)
    objective = Objective(here, lambda out, _: out.mean(), (torch.ones(2, 1), torch.zeros(2)))
    assert line(objective, there, points=2).losses == pytest.approx([4.0, 18.0])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda o: slice_1d(o, radius=0.0), "radius must be a finite number > 0, got 0.0"),
        (lambda o: slice_2d(o, radius=math.inf), "radius must be a finite number > 0, got inf"),
        (lambda o: slice_1d(o, points=1), "points must be a whole number >= 2, got 1"),
        (lambda o: slice_2d(o, points=2.5), "points must be a whole number >= 2, got 2.5"),
        (lambda o: line(o, o.model, points=1), "points must be a whole number >= 2, got 1"),
        (lambda o: line(o, o.model, beyond=-0.1), "beyond must be a finite number >= 0, got -0.1"),
        (lambda o: line(o, o.model, beyond=math.nan), "beyond must be a finite number >= 0, got nan"),
        (lambda o: line(o, nn.Linear(3, 4)), r"the two models differ, first in '0\.bias'; a line needs equal names"),
        (
            lambda o: line(o, nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))),
            r"differ, first in '0\.weight'",
        ),
    ],
)
def test_refuses(measure, message):
    with pytest.raises(ValueError, match=message):
        measure(case("mlp").objective())
