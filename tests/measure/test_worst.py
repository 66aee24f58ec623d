"""Worst-case sharpness against maxima that are known, or that nobody finds at random."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NETWORKS, case, exploding, normal, quadratic, rescaled, seeded, symmetric
from torch import nn

from steppe.measure import M_APGD_LINF, Objective, worst_case

over_balls = pytest.mark.parametrize("norm", ["l2", "linf"])
over_scales = pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])


def ball_maximum(h, g, rho):
    """``max g'd + d'Hd/2`` over ``‖d‖ <= rho``, by the secular equation ``‖(lambda - H)^-1 g‖ = rho``."""
    values, vectors = torch.linalg.eigh(h)
    b, low = vectors.T @ g, max(values[-1].item(), 0.0)

    def rise(d):
        return (b @ d + 0.5 * d @ (values * d)).item()

    top = low - values <= 1e-10 * values.abs().max()
    if b[top].norm() <= 1e-12 * b.norm():  # inside of the ball, or the hard case: the rest goes along the top
        d = torch.where(top, 0.0, b / (low - values).where(~top, 1.0))
        if d.norm() <= rho:
            return rise(d) + 0.5 * low * (rho**2 - d.norm().item() ** 2)
    high = low + b.norm().item() / rho
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (b / (middle - values)).norm() > rho else (low, middle)
    d = b / (high - values)
    return rise(d * (rho / d.norm()))


@given(st.integers(1, 3), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=25, deadline=None)
def test_the_reference_is_the_maximum(dim, seed, slope):
    """No point of a fine net of the ball is higher, and some point is nearly as high."""
    h, g = symmetric(normal(dim, seed=seed), seed), slope * normal(dim, seed=seed + 1)
    d = normal(20_000, dim, seed=seed + 2)
    d = d / d.norm(dim=1, keepdim=True) * torch.rand(20_000, 1, generator=seeded(seed)).mul(1.3).clamp(max=1)
    net = (d @ g + 0.5 * ((d @ h) * d).sum(1)).max().item()
    assert net <= ball_maximum(h, g, 1.0) + 1e-12
    assert net >= ball_maximum(h, g, 1.0) - 0.05 * (1 + g.norm().item())


def with_values(kind, dim, seed):
    values = normal(dim, seed=seed)
    if kind == "definite":
        return values.abs()
    values[0] = 0.5  # or two normal numbers could both be negative
    return values


@pytest.mark.parametrize("dim", [2, 3, 5, 10, 30, 100])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_quadratics_in_a_ball(dim, kind, slope, rho):
    for seed in range(2):
        h, g = symmetric(with_values(kind, dim, seed), seed), slope * normal(dim, seed=seed + 50)
        found, exact = worst_case(quadratic(h, g), rho, restarts=3).value, ball_maximum(h, g, rho)
        assert 0.99 * exact <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("dim", [2, 5, 30])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
def test_quadratics_in_an_adaptive_ball(dim, slope):
    """Which is the ball for ``|w| H |w|`` and ``|w| grad``."""
    h, g, w = symmetric(with_values("indefinite", dim, 1), 1), slope * normal(dim), normal(dim, seed=3)
    c = w.abs()
    exact = ball_maximum(c[:, None] * h * c, c * (g + h @ w), 0.3)
    found = worst_case(quadratic(h, g, w), 0.3, adaptive=True, restarts=3).value
    assert 0.99 * exact <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("dim", [2, 10])
def test_maxima_inside_of_the_ball(dim):
    """Steps begin at twice the radius, so a maximum well inside is met to a hundredth of what the ball spans."""
    h, g = symmetric(-normal(dim).abs() - 0.5, 0), 0.2 * normal(dim, seed=1)
    exact = ball_maximum(h, g, 1.0)
    found = worst_case(quadratic(h, g), 1.0, iterations=100).value
    assert exact - 0.01 * 0.5 * h.norm() <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("momentum", ["heavy-ball", "average"])
@over_scales
def test_a_linear_loss_rises_to_a_corner(momentum, adaptive):
    g, w = normal(7), normal(7, seed=1)
    exact = 0.2 * (g * w if adaptive else g).abs().sum().item()
    objective = quadratic(torch.zeros(7, 7, dtype=torch.float64), g, w)
    found = worst_case(objective, 0.2, norm="linf", adaptive=adaptive, momentum=momentum).value
    assert found == pytest.approx(exact, rel=1e-12 if momentum == "heavy-ball" else 1e-3)
    assert found <= exact * (1 + 1e-12)


@pytest.mark.parametrize(("iterations", "share"), [(1, 3 / 4), (2, 3 / 4), (3, 15 / 16)])
def test_average_momentum_as_the_code_of_harada_and_iiduka(iterations, share):
    """``u <- 3/4 z + 1/4 u_previous``, with z on the border, gets to it from the inside."""
    g = normal(7)
    objective = quadratic(torch.zeros(7, 7, dtype=torch.float64), g)
    options = {"norm": "linf", "momentum": "average", "iterations": iterations}
    assert worst_case(objective, 0.2, **options).value == pytest.approx(0.2 * share * g.abs().sum().item(), rel=1e-12)


@over_scales
def test_a_linear_loss_rises_along_the_gradient(adaptive):
    g, w = normal(7), normal(7, seed=1)
    exact = 0.2 * (g * w if adaptive else g).norm().item()
    objective = quadratic(torch.zeros(7, 7, dtype=torch.float64), g, w)
    assert worst_case(objective, 0.2, adaptive=adaptive).value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("dim", range(1, 9))
@over_scales
def test_convex_quadratics_against_all_corners(dim, adaptive):
    h, g, w = symmetric(normal(dim).abs()), normal(dim, seed=1), normal(dim, seed=2)
    corners = torch.tensor(list(itertools.product([-0.5, 0.5], repeat=dim)), dtype=torch.float64)
    corners = corners * w.abs() if adaptive else corners
    exact = (corners @ (g + h @ w) + 0.5 * ((corners @ h) * corners).sum(1)).max().item()
    found = worst_case(quadratic(h, g, w), 0.5, norm="linf", adaptive=adaptive, restarts=5).value
    assert 0.99 * exact <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
@over_balls
@over_scales
@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_no_random_point_is_higher(name, norm, adaptive, rho):
    network = case(name)
    w = network.weights()
    u = normal(1000, len(w), seed=7)
    if norm == "l2":
        u = rho * u / u.norm(dim=1, keepdim=True) * torch.rand(1000, 1, generator=seeded(1)).pow(1 / len(w))
    else:
        u = rho * torch.where(torch.arange(1000)[:, None] % 2 == 0, u.sign(), u / u.abs().max())
    with torch.no_grad():
        rises = torch.stack([network.at(w + (d * w.abs() if adaptive else d)) for d in u]) - network.at(w)
    found = worst_case(network.objective(10), rho, norm=norm, adaptive=adaptive).value
    assert found >= rises.max().item()


def auto_pgd(f, u, rho, norm, iterations, momentum):
    """One ascent as a plain loop."""

    def project(u):
        return u.clamp(-rho, rho) if norm == "linf" else u * min(1, rho / u.norm().item())

    marks = [0, 0.22]
    while marks[-1] < 1:
        marks.append(marks[-1] + max(marks[-1] - marks[-2] - 0.03, 0.06))
    before, step, halved, values, points, last, best_then, ups = u, 2 * rho, True, [f(u)], [u], 0, -math.inf, []
    for n in range(1, iterations + 1):
        g = torch.func.grad(f)(u)
        z = project(u + step * (g.sign() if norm == "linf" else g / g.norm()))
        u, before = (0.75 * z + 0.25 * before if momentum == "average" else project(z + 0.75 * (u - before))), u
        values, points = [*values, f(u)], [*points, u]
        ups.append(values[-1] > f(before))
        if n in {math.ceil(p * iterations) for p in marks[1:]}:
            best, helped = max(values), sum(ups[last:n])
            halved = helped < 0.75 * (n - last) or (not halved and best == best_then)
            if halved:
                step, u = step / 2, points[values.index(best)]
                before = u
            last, best_then = n, best
    return (max(values) - values[0]).item()


@pytest.mark.parametrize("name", ["mlp", "conv", "relu"])
@over_balls
@pytest.mark.parametrize("momentum", ["heavy-ball", "average"])
@pytest.mark.parametrize(("rho", "iterations"), [(0.3, 20), (1.0, 20), (1.0, 40)])
def test_one_ascent_is_the_plain_loop(name, norm, momentum, rho, iterations):
    network = case(name)
    w = network.weights()
    plain = auto_pgd(lambda d: network.at(w + d), torch.zeros_like(w), rho, norm, iterations, momentum)
    options = {"norm": norm, "iterations": iterations, "momentum": momentum}
    assert worst_case(network.objective(10), rho, **options).value == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_batch_has_its_own_worst_case(name):
    """The mean over batches of 4, 4 and 2, weighted by examples; and its standard error."""
    network = case(name)
    parts = [network.changed(x=network.x[i : i + 4], y=network.y[i : i + 4]) for i in (0, 4, 8)]
    values = [worst_case(part.objective(), 0.1).value for part in parts]
    mean = (4 * values[0] + 4 * values[1] + 2 * values[2]) / 10
    found = worst_case(network.objective(), 0.1)
    assert found.value == pytest.approx(mean, rel=1e-12)
    squares = sum((n * (x - mean)) ** 2 for n, x in zip((4, 4, 2), values, strict=True))
    assert found.error == pytest.approx(math.sqrt(3 / 2 * squares) / 10)
    assert found.n == 3
    assert worst_case(network.objective(10), 0.1).error is None


@over_balls
@pytest.mark.parametrize("momentum", ["heavy-ball", "average"])
def test_zero_weights_stay_in_an_adaptive_ball(norm, momentum):
    network, moved = case("mlp"), []
    with torch.no_grad():
        network.model[0].weight.zero_()
        network.model[2].bias[0] = 0

    def forward(model, batch):
        moved.append(model[0].weight.any() or model[2].bias[0] != 0)
        return model(batch[0]), batch[1]

    found = worst_case(
        network.objective(forward=forward), 0.5, norm=norm, adaptive=True, restarts=2, momentum=momentum
    ).value
    assert not any(moved)
    assert 0 < found < math.inf


@over_balls
def test_where_nothing_can_move_nothing_rises(norm):
    h = symmetric([1.0, 2.0, 3.0])
    assert worst_case(quadratic(h, normal(3)), 0.5, norm=norm, adaptive=True, restarts=2).value == 0


@over_balls
@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
def test_a_maximum_has_no_worse(norm, values):
    assert worst_case(quadratic(symmetric(values)), 0.5, norm=norm, restarts=3).value == 0


@over_balls
@pytest.mark.parametrize("slope", [1e-22, 1e-30, 1e-42])
def test_gradients_whose_squares_vanish(norm, slope):
    """In float32, at the bottom of a bowl: what rises is the bowl."""
    objective = quadratic(torch.eye(2), torch.tensor([slope, -slope]))
    value = worst_case(objective, 0.1, norm=norm).value
    assert value == pytest.approx(0.005 if norm == "l2" else 0.01, rel=1e-3)


@over_balls
def test_infinite_where_the_loss_overflows(norm):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.1)
    y = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None]
    found = worst_case(Objective(model, exploding, (torch.ones(4, 1), y), batch_size=2), 10.0, norm=norm)
    assert (found.value, found.error, found.n) == (math.inf, None, 2)
    assert str(found) == "inf"


def test_one_seed_one_value():
    objective = case("mlp").objective()
    values = [worst_case(objective, 0.5, norm="linf", restarts=2, iterations=3, seed=seed).value for seed in (0, 0, 1)]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_more_restarts_are_never_worse():
    objective = case("mlp").objective(10)
    values = [worst_case(objective, 1.0, norm="linf", restarts=n, iterations=3).value for n in (1, 2, 4)]
    assert values == sorted(values)


def test_the_setting_of_harada_and_iiduka():
    assert M_APGD_LINF == {
        "rho": 2e-4,
        "norm": "linf",
        "adaptive": False,
        "iterations": 20,
        "restarts": 1,
        "momentum": "average",
    }
    found = worst_case(case("mlp").objective(), **M_APGD_LINF)
    assert M_APGD_LINF.items() <= found.settings.items()
    assert 20 < found.cost <= 25


@over_balls
def test_adaptive_does_not_see_rescaled_layers_and_plain_does(norm):
    def value(a, adaptive):
        return worst_case(rescaled(case("relu"), a).objective(), 0.05, norm=norm, adaptive=adaptive).value

    assert value(4.0, True) == pytest.approx(value(1.0, True), rel=1e-6)
    assert value(4.0, False) != pytest.approx(value(1.0, False), rel=1e-2)


@pytest.mark.parametrize("factor", [2.0, 10.0])
def test_normalised_and_adaptive_does_not_see_a_larger_last_layer(factor):
    network = case("mlp")
    before = worst_case(network.objective(normalize_logits=True), 0.1, adaptive=True).value
    with torch.no_grad():
        for p in network.model[2].parameters():
            p.mul_(factor)
    assert worst_case(network.objective(normalize_logits=True), 0.1, adaptive=True).value == pytest.approx(before, 1e-6)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"rho": 0}, "rho must be a finite number > 0, got 0"),
        ({"rho": -1.0}, "rho must be a finite number > 0, got -1.0"),
        ({"rho": math.nan}, "rho must be a finite number > 0, got nan"),
        ({"rho": math.inf}, "rho must be a finite number > 0, got inf"),
        ({"norm": "l1"}, "norm must be 'l2' or 'linf', got 'l1'"),
        ({"momentum": "none"}, "momentum must be 'heavy-ball' or 'average', got 'none'"),
        ({"iterations": 0}, "iterations must be a whole number >= 1, got 0"),
        ({"iterations": 2.0}, "iterations must be a whole number >= 1, got 2.0"),
        ({"restarts": 0}, "restarts must be a whole number >= 1, got 0"),
    ],
)
def test_refuses(argument, message):
    with pytest.raises(ValueError, match=message):
        worst_case(quadratic(symmetric([1.0])), **{"rho": 0.1, **argument})
