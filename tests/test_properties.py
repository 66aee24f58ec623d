"""Properties that hold for every gradient, found or refuted by hypothesis."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import Parameter

from cases import CLIMBING
from steppe import ASAM, GSAM, SAM, LightSAM

values = st.floats(-100, 100, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
pairs = st.lists(st.tuples(values, values), min_size=1, max_size=8)
radii = st.floats(1e-4, 10)
NORMALISED = [case for case in CLIMBING if case.scale_free and case.clean and not case.draws]


def tensors(pairs, splits=1):
    """Parameters and gradients from pairs, in up to two parameters."""
    w, g = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    cut = len(pairs) // 2 if splits == 2 else len(pairs)
    return [[x[:cut], x[cut:]] for x in (w, g)]


def delta(make, ws, gs):
    params = [Parameter(w.clone()) for w in ws]
    opt = make(params)
    for p, g in zip(params, gs, strict=True):
        p.grad = g.clone()
    with opt.ascended():
        moved = torch.cat([p.detach() - w for p, w in zip(params, ws, strict=True)])
        params[0].grad = torch.zeros_like(params[0])
    assert all(torch.equal(p.detach(), w) for p, w in zip(params, ws, strict=True))
    return moved


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


@given(pairs, radii)
def test_the_climb_of_sam_is_rho_long(pairs, rho):
    ws, gs = tensors(pairs, splits=2)
    for make in (SAM, GSAM):
        length = delta(lambda p, make=make: make(sgd(p), rho=rho), ws, gs).norm()
        assert length.item() == pytest.approx(rho if any(g.any() for g in gs) else 0.0, rel=1e-6, abs=1e-12)


@given(pairs, radii)
def test_the_climb_of_asam_is_rho_long_in_units_of_the_weights(pairs, rho):
    (w, _), (g, _) = tensors(pairs)
    moved = delta(lambda p: ASAM(sgd(p), rho=rho, eta=0.01), [w], [g])
    length = (moved / (w.abs() + 0.01)).norm()
    assert length.item() == pytest.approx(rho if g.any() else 0.0, rel=1e-6, abs=1e-9)


@given(pairs, radii)
def test_the_first_climbs_of_lightsam_stay_inside_rho(pairs, rho):
    ws, gs = tensors(pairs, splits=2)
    assert delta(lambda p: LightSAM(p, 0.1, rho=rho), ws, gs).norm() <= rho * (1 + 1e-6)
    assert delta(lambda p: LightSAM(p, 0.1, rho=rho, variant="adagrad"), ws, gs).abs().max() <= rho * (1 + 1e-6)


@pytest.mark.parametrize("case", NORMALISED, ids=lambda case: case.name)
@given(pairs=pairs, power=st.integers(-20, 20))
def test_normalised_climbs_do_not_see_the_scale_of_the_loss(case, pairs, power):
    ws, gs = tensors(pairs, splits=2)
    once = delta(case.build, ws, gs)
    scaled = delta(case.build, ws, [g * 2.0**power for g in gs])
    torch.testing.assert_close(once, scaled, rtol=1e-9, atol=1e-12)


@given(pairs, st.integers(-6, 6))
def test_the_climb_of_asam_follows_a_rescaling_of_the_weights(pairs, power):
    """f(w) = h(A w) for diagonal A: weights w / a have gradients a g, and the climb must be delta / a."""
    (w, _), (g, _) = tensors(pairs)
    a = 2.0 ** torch.linspace(-power, power, len(w), dtype=torch.float64)
    once = delta(lambda p: ASAM(sgd(p), rho=0.5, eta=0.0), [w], [g])
    rescaled = delta(lambda p: ASAM(sgd(p), rho=0.5, eta=0.0), [w / a], [g * a])
    torch.testing.assert_close(rescaled * a, once, rtol=1e-9, atol=1e-9)


@given(pairs, st.floats(-2, 2))
def test_gsam_takes_away_only_what_is_orthogonal_to_the_sharp_gradient(pairs, alpha):
    """(s - out) / alpha is orthogonal to s, and with the projection of g on s it adds up to g."""
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True)]
    g, s = columns
    w = Parameter(torch.zeros_like(g))
    opt = GSAM(sgd([w]), rho=0.1, alpha=alpha)
    w.grad = g.clone()
    with opt.ascended():
        w.grad = s.clone()
    taken = s - w.grad
    projection = (g @ s) / (s @ s) * s if s.any() else torch.zeros_like(s)
    torch.testing.assert_close(taken, alpha * (g - projection), rtol=1e-7, atol=1e-7)
    assert abs((taken @ s).item()) <= 1e-8 * (1 + float(g.norm() * s.norm()))
