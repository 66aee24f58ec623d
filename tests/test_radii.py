"""The radius of every group: what it counts for, and that it belongs to its group."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, AdamW

from cases import CLIMBING
from problems import Problem, everywhere, same_bits, weights
from steppe import SAM, ProportionalToLR, accumulated_step

over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])


@pytest.fixture(params=[True, False], ids=["host", "device"])
def free(request, monkeypatch):
    """Run a test where looking is free, and where nobody looks."""
    if not request.param:
        everywhere(monkeypatch, "free_to_read", lambda x: False)
    return request.param


def double(*values):
    return Parameter(torch.tensor(values, dtype=torch.float64))


# A radius of 0 that is a tensor


@pytest.mark.parametrize("zero", [0.0, torch.tensor(0.0), torch.tensor([0.0])], ids=["number", "tensor", "one"])
@over_paths
def test_a_group_that_stays_counts_in_no_norm_however_its_zero_is_written(zero, foreach, free):
    """Groups of .1 with |g| 1.7 and of 0 with |g| 173: the climb is .1 long."""
    x, y = double(1.0, 1.0, 1.0), double(100.0, 100.0, 100.0)
    opt = SAM(SGD([{"params": [x]}, {"params": [y], "rho": zero}], lr=0.1), rho=0.1, foreach=foreach)
    (x.square().sum() / 2 + y.square().sum() / 2).backward()
    before = x.detach().clone()
    with opt.ascended():
        assert torch.linalg.vector_norm(x.detach() - before).item() == pytest.approx(0.1, rel=1e-12)
        assert y.tolist() == [100.0] * 3
        (x.square().sum() / 2 + y.square().sum() / 2).backward()


@pytest.mark.parametrize("case", [case for case in CLIMBING if not case.draws], ids=lambda case: case.name)
@over_paths
def test_zeros_that_are_tensors_are_zeros_in_every_method(case, foreach, free):
    runs = []
    for zero in (0.0, torch.tensor(0.0, dtype=torch.float64)):
        problem = Problem()
        first, second, third, fourth = problem.model.parameters()
        groups = [{"params": [first, second]}, {"params": [third], "rho": zero}, {"params": [fourth]}]
        opt = case.build(groups, foreach=foreach)
        for batch in problem.batches(4):
            opt.step(problem.closure(opt, batch))
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


@over_climbing
def test_all_zeros_that_are_tensors_are_the_base(case, free):
    runs = []
    for zero in (0.0, torch.tensor(0.0, dtype=torch.float64)):
        problem = Problem()
        opt = case.build(problem.model.parameters(), rho=zero)
        for batch in problem.batches(4):
            opt.step(problem.closure(opt, batch))
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_radius_that_follows_a_rate_of_zero_counts_in_no_norm(lr, free):
    x, y = double(3.0, 4.0), double(300.0)
    follows = ProportionalToLR(0.1, 0.0, 1.0, 0.0)
    opt = SAM(AdamW([{"params": [x], "lr": 1.0}, {"params": [y], "lr": lr}], lr=1.0), rho=follows)
    (x.square().sum() / 2 + y.square().sum() / 2).backward()
    with opt.ascended():
        assert x.tolist() == pytest.approx([3.06, 4.08], rel=1e-6)
        assert y.item() == 300.0
        (x.square().sum() / 2 + y.square().sum() / 2).backward()


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_bad_tensors_are_refused_where_looking_is_free(bad):
    x = double(3.0, 4.0)
    with pytest.raises(ValueError, match=r"rho must be a finite number >= 0, got .*"):
        SAM(SGD([x], lr=0.1), rho=torch.tensor(bad))
    opt = SAM(SGD([x], lr=0.1), rho=torch.tensor(0.5))
    opt.param_groups[0]["rho"] = torch.tensor(bad)
    x.square().sum().backward()
    with pytest.raises(ValueError, match=r"rho must be a finite number >= 0, got .*param group 0"), opt.ascended():
        pass
    assert x.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_bad_tensors_never_descend_where_nobody_looks(bad, monkeypatch):
    everywhere(monkeypatch, "free_to_read", lambda x: False)
    x, y = double(3.0, 4.0), double(6.0, 8.0)
    opt = SAM(SGD([{"params": [x], "rho": torch.tensor(bad)}, {"params": [y]}], lr=0.1), rho=0.5)
    (x.square().sum() + y.square().sum()).backward()
    with opt.ascended():
        assert x.tolist() == [3.0, 4.0]
        assert y.tolist() == pytest.approx([6.3, 8.4])
        (x.square().sum() + y.square().sum()).backward()


# A radius belongs to its group


def three(rhos, **options):
    params = [Parameter(torch.full((2,), float(i + 1))) for i in range(3)]
    groups = [{"params": [p], **({} if rho is None else {"rho": rho})} for p, rho in zip(params, rhos, strict=True)]
    return SAM(SGD(groups, lr=0.1), **options)


def radii(opt):
    opt.will_climb()  # brings them up to date
    return [group["rho"] for group in opt.param_groups]


FOLLOWS = ProportionalToLR(0.4, 0.0, 0.1, 0.0)


def test_groups_keep_their_schedule_when_another_goes():
    opt = three([FOLLOWS, 0.2, 0.3], rho=0.05)
    del opt.param_groups[0]
    opt.param_groups[0]["lr"] = 0.05
    assert radii(opt) == [0.2, 0.3]


def test_groups_keep_their_schedule_when_they_change_places():
    opt = three([0.2, FOLLOWS, 0.3], rho=0.05)
    opt.base.param_groups = opt.base.param_groups[::-1]
    opt.param_groups[1]["lr"] = 0.05
    assert radii(opt) == [0.3, pytest.approx(0.2), 0.2]
    opt.param_groups.insert(0, opt.param_groups.pop())
    opt.param_groups[2]["lr"] = 0.025
    assert radii(opt) == [0.2, 0.3, pytest.approx(0.1)]


@pytest.mark.parametrize("through", ["opt", "base"])
@pytest.mark.parametrize(("given", "expected"), [(0.0, 0.0), (None, 0.5), (0.2, 0.2)])
def test_an_added_group_has_the_radius_it_brings(through, given, expected):
    opt = SAM(SGD([double(1.0)], lr=0.1), rho=0.5)
    brings = {} if given is None else {"rho": given}
    (opt if through == "opt" else opt.base).add_param_group({"params": [double(2.0)], **brings})
    assert radii(opt) == [0.5, expected]


@pytest.mark.parametrize("through", ["opt", "base"])
def test_an_added_group_follows_if_none_is_given_where_all_follow(through):
    opt = SAM(SGD([double(1.0)], lr=0.1), rho=FOLLOWS)
    for brings in ({"rho": 0.0}, {}, {"rho": 0.2}):
        (opt if through == "opt" else opt.base).add_param_group({"params": [double(2.0)], **brings})
    for group in opt.param_groups:
        group["lr"] = 0.05
    assert radii(opt) == [pytest.approx(0.2), 0.0, pytest.approx(0.2), 0.2]


@pytest.mark.parametrize("value", [0.0, 0.3, torch.tensor(0.0)], ids=["zero", "number", "tensor"])
@pytest.mark.parametrize("rho", [0.5, FOLLOWS], ids=["number", "follows"])
def test_a_radius_that_is_set_by_hand_stays(value, rho):
    opt = SAM(SGD([double(1.0), double(2.0)], lr=0.1), rho=rho)
    opt.will_climb()
    opt.param_groups[0]["rho"] = value
    for lr in (0.1, 0.05):
        opt.param_groups[0]["lr"] = lr
        assert radii(opt) == [value]
    assert opt.will_climb() is (isinstance(value, float) and value > 0)


def test_a_radius_that_is_set_by_hand_stays_in_a_checkpoint():
    opt = three([None, None, 0.3], rho=FOLLOWS)
    opt.param_groups[0]["rho"] = 0.0
    saved = copy.deepcopy(opt.state_dict())
    other = three([None, None, 0.3], rho=FOLLOWS)
    other.load_state_dict(saved)
    for group in other.param_groups:
        group["lr"] = 0.05
    assert radii(other) == [0.0, pytest.approx(0.2), 0.3]


def test_a_schedule_that_is_set_by_hand_is_followed():
    opt = three([0.1, 0.2, 0.3], rho=0.05)
    opt.param_groups[1]["rho"] = FOLLOWS
    assert radii(opt) == [0.1, pytest.approx(0.4), 0.3]
    opt.param_groups[1]["lr"] = 0.05
    assert radii(opt) == [0.1, pytest.approx(0.2), 0.3]


@over_climbing
@pytest.mark.parametrize("how", ["load_state_dict", "param_groups"])
def test_a_base_whose_groups_are_replaced_keeps_its_radii(case, how):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    first, *rest = problem.batches(case.first + 2)
    opt.step(problem.closure(opt, first))
    plain = copy.deepcopy(opt.base.state_dict())
    for group in plain["param_groups"]:
        del group["rho"]
    if how == "load_state_dict":
        opt.base.load_state_dict(plain)
    else:
        opt.base.param_groups = [
            {key: value for key, value in group.items() if key != "rho"} for group in opt.base.param_groups
        ]
    before = weights(problem.model)
    for batch in rest:
        opt.step(problem.closure(opt, batch))
    assert radii(opt) == [case.kwargs["rho"]]
    assert not same_bits(weights(problem.model), before)


def test_replaced_groups_keep_radii_and_schedules_of_their_own():
    opt = three([FOLLOWS, 0.2, None], rho=0.05)
    plain = copy.deepcopy(opt.base.state_dict())
    for group in plain["param_groups"]:
        del group["rho"]
    opt.base.load_state_dict(plain)
    opt.param_groups[0]["lr"] = 0.05
    assert radii(opt) == [pytest.approx(0.2), 0.2, 0.05]


def test_groups_of_new_parameters_get_the_radius_of_the_method():
    """As when pruning or freezing makes all groups anew."""
    opt = SAM(SGD([double(1.0)], lr=0.1), rho=0.5)
    opt.base.param_groups = [{**opt.base.param_groups[0], "params": [double(2.0)]}]
    del opt.base.param_groups[0]["rho"]
    assert radii(opt) == [0.5]


def test_a_schedule_is_not_written_into_a_base_that_is_alone():
    """Whoever looks at a group sees a number."""
    opt = three([FOLLOWS, None, 0.1], rho=FOLLOWS)
    assert all(isinstance(group["rho"], float) for group in opt.param_groups)


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_a_plain_state_of_the_base_in_the_middle_of_accumulation(climb):
    problem = Problem()
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.05)
    plain = opt.base.state_dict()
    for group in plain["param_groups"]:
        del group["rho"]
    opt.base.load_state_dict(plain)
    calls = []

    def backward(batch):
        calls.append(1)
        loss = problem.loss(batch) / 2
        loss.backward()
        return loss

    accumulated_step(opt, problem.batches(2), backward, climb=climb)
    assert len(calls) == 4


def test_a_group_without_parameters_keeps_its_radius_when_its_dict_is_replaced():
    p = double(1.0, 2.0)
    base = SGD([{"params": [p]}, {"params": [], "rho": 0.3}], lr=0.1)
    opt = SAM(base, rho=0.1)
    base.load_state_dict(SGD([{"params": [p]}, {"params": []}], lr=0.2).state_dict())
    opt.climbing_groups()
    assert [group["rho"] for group in opt.param_groups] == [0.1, 0.3]


@pytest.mark.parametrize("case", [case for case in CLIMBING if case.wraps], ids=lambda case: case.name)
def test_radii_of_numpy_are_numbers(case):
    runs = []
    for number in (float, np.float64):
        problem = Problem()
        opt = case.build(problem.model.parameters())
        for batch in problem.batches(6):
            for group in opt.param_groups:
                group["rho"] = number(0.05)
            opt.step(problem.closure(opt, batch))
        runs.append(problem.flat())
    assert torch.equal(*runs)
