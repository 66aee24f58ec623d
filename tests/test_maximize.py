"""A maximizer's adversary lowers what it wants high, in whole optimizers and in groups of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import Parameter

from cases import CLIMBING, COMBINATIONS, combination_id
from doors import over_doors, take
from problems import Problem
from steppe import MSAM, SAM, AdaSAM, AMSGrad, LightSAM, Together

WRAPPING = [case for case in CLIMBING if case.wraps]

over_wrapping = pytest.mark.parametrize("case", WRAPPING, ids=lambda case: case.name)


@over_doors
def test_the_adversary_of_a_maximizer_goes_down(door):
    """f = -(w - 1)^2 at w = 3 with lr 0.1 and rho 0.5: sharp pass at 3.5, where the gradient is -5."""
    w = Parameter(torch.tensor([3.0], dtype=torch.float64))
    opt = SAM(torch.optim.SGD([w], lr=0.1, maximize=True), rho=0.5)
    seen = []

    def backward():
        seen.append(w.item())
        loss = -((w - 1) ** 2).sum()
        loss.backward()
        return loss

    take(door, opt, backward)
    assert seen == [3.0, 3.5]
    assert w.item() == pytest.approx(2.5, rel=1e-15)


# The climb of what remembers gradients, or stretches them, is odd in them; that of blends too.
@pytest.mark.parametrize(("case", "base"), [c for c in COMBINATIONS if c[0] in WRAPPING], ids=combination_id)
@over_doors
def test_to_maximize_is_to_minimize_the_negative(case, base, door):
    runs = []
    for sign in (1.0, -1.0):
        problem = Problem()
        opt = case.build(problem.model.parameters(), base)
        for group in opt.param_groups:
            group["maximize"] = sign < 0
        for batch in problem.batches(6):

            def backward(batch=batch, problem=problem, sign=sign):
                loss = sign * problem.loss(batch)
                loss.backward()
                return loss

            take(door, opt, backward)
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-12)


@over_wrapping
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
def test_min_max_groups_climb_apart_by_one_norm(case, foreach):
    """min_x max_y x.A.y: the adversary raises it for x and lowers it for y."""
    torch.manual_seed(0)
    a = torch.randn(3, 3, dtype=torch.float64)
    start = torch.randn(2, 3, dtype=torch.float64)
    moves = []
    for maximize in (False, True):
        x, y = Parameter(start[0].clone()), Parameter(start[1].clone())
        groups = [{"params": [x]}, {"params": [y], "maximize": maximize}]
        opt = case.build(groups, foreach=foreach)
        (x @ a @ y).backward()
        if not opt.ascent.needs_gradient:
            opt.base.state[x]["momentum_buffer"], opt.base.state[y]["momentum_buffer"] = x.grad.clone(), y.grad.clone()
        before = x.detach().clone(), y.detach().clone()
        with opt.ascended():
            moves.append((x.detach() - before[0], y.detach() - before[1]))
            (x @ a @ y).backward()
    (x_min, y_min), (x_max, y_max) = moves
    assert x_min.any()
    assert y_min.any()
    # The momentum is the way the weights go, whatever the direction is called: MSAM's climb looks back along it.
    sign = -1.0 if case.clean else 1.0
    torch.testing.assert_close(x_max, x_min, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(y_max, sign * y_min, rtol=1e-12, atol=1e-15)


def test_bases_that_go_together_have_directions_of_their_own():
    x, y = (Parameter(torch.tensor([v], dtype=torch.float64)) for v in (3.0, 4.0))
    down, up = torch.optim.SGD([x], lr=0.1), torch.optim.SGD([y], lr=0.1, maximize=True)
    opt = SAM(Together(down, up), rho=0.5)
    (x**2 / 2 + y**2 / 2).sum().backward()
    with opt.ascended():
        moved = (x.item(), y.item())
        (x**2 / 2 + y**2 / 2).sum().backward()
    assert moved == pytest.approx((3.3, 3.6), rel=1e-15)


@pytest.mark.parametrize("base", ["Lookahead", "ScheduleFreeWrapper", "Lion", "AdaBelief"])
def test_an_attribute_that_maximizes_is_seen(base):
    """Some packages' optimizers keep it for all groups."""
    package = pytest.importorskip("pytorch_optimizer")
    w = Parameter(torch.tensor([3.0]))
    if base == "Lookahead":
        made = package.Lookahead(torch.optim.SGD([w], lr=0.1, maximize=True))
    elif base == "ScheduleFreeWrapper":
        made = package.ScheduleFreeWrapper(torch.optim.SGD([w], lr=0.1), maximize=True)
        made.train()
    else:
        made = getattr(package, base)([w], lr=0.1, maximize=True)
    opt = SAM(made, rho=0.5)
    (-((w - 1) ** 2)).sum().backward()
    with opt.ascended():
        moved = w.item()
        (-((w - 1) ** 2)).sum().backward()
    opt.base.step()
    assert moved == 3.5
    assert w.item() < 3.0


def test_an_option_that_the_base_does_not_know_changes_nothing():
    """torch takes any name in a group: Muon goes down whatever it says there, and so its adversary goes up."""
    w = Parameter(torch.tensor([[3.0, 1.0]]))
    opt = SAM(torch.optim.Muon([{"params": [w], "maximize": True}], lr=0.1), rho=0.5)
    w.square().sum().backward()
    with opt.ascended():
        assert w[0, 0] > 3.0
        w.square().sum().backward()


def test_an_attribute_beside_the_option_of_the_groups_maximizes_once():
    class Both(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            self.maximize = options["maximize"]

    w = Parameter(torch.tensor([3.0]))
    opt = SAM(Both([w], lr=0.1, maximize=True), rho=0.5)
    (-((w - 1) ** 2)).sum().backward()
    with opt.ascended():
        assert w.item() == 3.5
        (-((w - 1) ** 2)).sum().backward()
    opt.base.step()
    assert w.item() == 2.5


@pytest.mark.parametrize("make", [AMSGrad, partial(AdaSAM, rho=0.5), partial(LightSAM, lr=0.1, rho=0.5)])
def test_methods_that_are_their_own_base_refuse_to_maximize(make):
    groups = [{"params": [Parameter(torch.ones(2))], "maximize": True}]
    with pytest.raises(ValueError, match="Minimize the negated loss instead"):
        make(groups)
    opt = make([Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="Minimize the negated loss instead"):
        opt.add_param_group(groups[0])
    assert len(opt.param_groups) == 1


def test_momentum_of_a_maximizer():
    """m = -4 at w = 3, and the weights go up along it: MSAM looks back to 3 + rho, either way it is written."""
    moved = []
    for sign in (1.0, -1.0):
        w = Parameter(torch.tensor([3.0], dtype=torch.float64))
        opt = MSAM(torch.optim.SGD([w], lr=0.1, momentum=0.9, maximize=sign < 0), rho=0.5)

        def backward(w=w, sign=sign):
            loss = sign * ((w - 1) ** 2).sum()
            loss.backward()
            return loss

        take("step", opt, backward)
        w.grad = None
        at = w.item()
        with opt.ascended():
            moved.append(w.item() - at)
            backward()
    assert moved[0] == moved[1] != 0.0
