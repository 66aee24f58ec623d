"""Average-case sharpness against its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import case, exploding, normal, quadratic, rescaled, symmetric

from steppe.measure import Objective, average_case
from steppe.measure.estimate import mean_and_error

over_distributions = pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
over_scales = pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])


@over_distributions
@over_scales
@pytest.mark.parametrize("dim", [1, 3, 20])
@pytest.mark.parametrize("seed", range(3))
def test_quadratics(distribution, adaptive, dim, seed):
    h, g, w = symmetric(normal(dim, seed=seed), seed), normal(dim, seed=4), normal(dim, seed=5)
    c = w.abs() if adaptive else torch.ones(dim)
    exact = 0.5 * 0.3**2 * (c**2 * h.diagonal()).sum().item() / (3 if distribution == "uniform" else 1)
    options = {"distribution": distribution, "adaptive": adaptive, "pairs": 400, "seed": seed}
    found = average_case(quadratic(h, g, w), 0.3, **options)
    assert abs(found.value - exact) <= 4 * found.error
    assert found.error <= 0.3 * abs(0.5 * 0.3**2 * (c[:, None] * h * c).norm().item())
    assert found.n == 400


def test_the_error_is_honest():
    """Of 200 seeds, about 95 % are within two standard errors."""
    h = symmetric(normal(6))
    exact, within = 0.5 * 0.1**2 * h.trace().item(), 0
    for seed in range(200):
        found = average_case(quadratic(h, normal(6)), 0.1, pairs=20, seed=seed)
        within += abs(found.value - exact) <= 2 * found.error
    assert 0.88 <= within / 200 <= 0.995


@over_distributions
@over_scales
def test_pairs_cancel_odd_orders(distribution, adaptive):
    objective = quadratic(torch.zeros(5, 5, dtype=torch.float64), normal(5), normal(5, seed=1))
    found = average_case(objective, 0.5, distribution=distribution, adaptive=adaptive)
    assert abs(found.value) <= 1e-12
    assert found.error <= 1e-12


def test_a_ridge_is_negative():
    assert average_case(quadratic(symmetric([-1.0, -2.0])), 0.1).value < 0


def test_zero_weights_stay_if_adaptive():
    assert average_case(quadratic(symmetric([1.0, 2.0]), normal(2)), 0.1, adaptive=True).value == 0


def test_adaptive_does_not_see_rescaled_layers_and_plain_does():
    def value(a, adaptive):
        return average_case(rescaled(case("relu"), a).objective(), 0.05, adaptive=adaptive).value

    assert value(4.0, True) == pytest.approx(value(1.0, True), rel=1e-6)
    assert value(4.0, False) != pytest.approx(value(1.0, False), rel=1e-2)


def test_batches_do_not_matter():
    values = [average_case(case("mlp").objective(n), 0.1).value for n in (1, 4, 10)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert values[0] == pytest.approx(values[2], rel=1e-9)


def test_infinite_where_the_loss_overflows():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.1)
    found = average_case(Objective(model, exploding, (torch.ones(4, 1), torch.ones(4, 1))), 10.0)
    assert (found.value, found.error) == (math.inf, None)


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 9)), min_size=2, max_size=9))
@settings(max_examples=50, deadline=None)
def test_weighted_mean_and_error(pairs):
    values, weights = [x for x, _ in pairs], [float(w) for _, w in pairs]
    mean, error = mean_and_error(values, weights)
    repeated = torch.tensor([x for x, w in pairs for _ in range(w)], dtype=torch.float64)
    assert mean == pytest.approx(repeated.mean().item(), abs=1e-9)
    same, usual = mean_and_error(values)
    assert usual == pytest.approx(torch.tensor(values, dtype=torch.float64).std().item() / len(values) ** 0.5, abs=1e-9)
    assert mean_and_error(values, [3.0] * len(values)) == pytest.approx((same, usual), abs=1e-9)
    assert error >= 0


def test_the_weighted_error_is_honest():
    """Batches of 4, 4, 4 and 2, of noise whose variance falls with the batch."""
    weights = [4.0, 4.0, 4.0, 2.0] * 10
    noise = normal(400, 40) / torch.tensor(weights, dtype=torch.float64).sqrt()
    found = [mean_and_error(row.tolist(), weights) for row in noise]
    spread = torch.tensor([mean for mean, _ in found]).std().item()
    assert sum(error for _, error in found) / 400 == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"rho": 0}, "rho must be a finite number > 0, got 0"),
        ({"rho": math.nan}, "rho must be a finite number > 0, got nan"),
        ({"distribution": "cauchy"}, "distribution must be 'gaussian' or 'uniform', got 'cauchy'"),
        ({"pairs": 0}, "pairs must be a whole number >= 1, got 0"),
        ({"pairs": 1.5}, "pairs must be a whole number >= 1, got 1.5"),
    ],
)
def test_refuses(argument, message):
    with pytest.raises(ValueError, match=message):
        average_case(quadratic(symmetric([1.0])), **{"rho": 0.1, **argument})


def test_one_pair_has_no_error():
    assert average_case(quadratic(symmetric([1.0])), 0.1, pairs=1).error is None
