"""States: whole or not at all, seen whole by hooks, and not half by torch.distributed.checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.nn import Parameter
from torch.optim import SGD, AdamW

from cases import CLIMBING
from problems import Problem, same_bits, weights
from steppe import SAM, FriendlySAM, LookSAM, ProportionalToLR, SharpnessAware

over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)

ERRORS = (ZeroDivisionError, KeyError, TypeError, ValueError, AttributeError, IndexError)
FOLLOWS = ProportionalToLR(0.4, 0.0, 0.1, 0.0)


def trained(case, steps=4, **override):
    problem = Problem()
    opt = case.build(problem.model.parameters(), **override)
    for batch in problem.batches(steps):
        opt.step(problem.closure(opt, batch))
    return problem, opt


def everything(opt):
    """What there is of it, by value."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
    return copy.deepcopy((opt.state_dict(), groups, opt._radii.following(opt.base.param_groups)))


def fails(*_):
    raise ZeroDivisionError("half-way")


def missing(*path):
    def spoil(opt, saved):
        place = saved
        for name in path[:-1]:
            place = place[name]
        del place[path[-1]]

    return spoil


def replaced(value, *path):
    def spoil(opt, saved):
        place = saved
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return spoil


SPOILED = {
    "the base's hook before": lambda opt, saved: opt.base.register_load_state_dict_pre_hook(fails),
    "the base's hook after": lambda opt, saved: opt.base.register_load_state_dict_post_hook(fails),
    "a hook before": lambda opt, saved: opt.register_load_state_dict_pre_hook(fails),
    "a hook after": lambda opt, saved: opt.register_load_state_dict_post_hook(fails),
    "no groups": missing("param_groups"),
    "no groups of the base": missing("base", "param_groups"),
    "no state": missing("state"),
    "no state of the base": missing("base", "state"),
    "a base of nothing": replaced(None, "base"),
    "other groups": lambda opt, saved: saved["param_groups"].append(saved["param_groups"][0]),
    "other groups of the base": missing("base", "param_groups", 0),
    "a negative radius": replaced(-1.0, "base", "param_groups", 0, "rho"),
    "a radius that is no number": replaced(float("nan"), "base", "param_groups", 0, "rho"),
    "no params": missing("base", "param_groups", 0, "params"),
    "a state that is none": replaced({0: None}, "state"),
    "counters that are none": replaced(None, "state", "engine"),
}


@over_climbing
@pytest.mark.parametrize("name", SPOILED)
def test_a_load_that_fails_has_changed_nothing(case, name):
    problem, opt = trained(case)
    _, other = trained(case, 7, rho=0.2)
    saved = copy.deepcopy(other.state_dict())
    opt.param_groups[0]["lr"] = 0.03
    before, at = everything(opt), weights(problem.model)
    memories = {p: id(memory) for p, memory in opt.base.state.items()}
    handle = SPOILED[name](opt, saved)
    with pytest.raises(ERRORS):
        opt.load_state_dict(saved)
    if handle is not None:
        handle.remove()
    torch.testing.assert_close(everything(opt), before, rtol=0, atol=0)
    assert set(memories) == set(opt.base.state)
    assert same_bits(weights(problem.model), at)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))


@over_climbing
@pytest.mark.parametrize("name", ["the base's hook before", "the base's hook after", "no groups"])
@pytest.mark.filterwarnings("ignore:This is the state of a plain optimizer")
def test_a_load_of_a_plain_state_that_fails_has_changed_nothing(case, name):
    problem, opt = trained(case)
    _, other = trained(case, 7)
    saved = copy.deepcopy(other.base.state_dict())
    for group in saved["param_groups"]:
        del group["rho"]
    before = everything(opt)
    handle = SPOILED[name](opt, saved)
    with pytest.raises(ERRORS):
        opt.load_state_dict(saved)
    if handle is not None:
        handle.remove()
    torch.testing.assert_close(everything(opt), before, rtol=0, atol=0)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))


@over_climbing
@pytest.mark.parametrize(("there", "here"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_state_of_another_precision_goes_on(case, there, here):
    """As states of torch's own optimizers do."""
    runs = []
    for dtypes in ((there, here), (here, here)):
        problem, saved = Problem(), None
        batches = problem.batches(6)
        for dtype, some in zip(dtypes, (batches[:3], batches[3:]), strict=True):
            problem.model.to(dtype)
            problem.x = problem.x.to(dtype)
            opt = case.build(problem.model.parameters())
            if saved is not None:
                opt.load_state_dict(saved)
            for batch in some:
                opt.step(problem.closure(opt, batch))
            saved = copy.deepcopy(opt.state_dict())
        runs.append(problem.flat().double())
    torch.testing.assert_close(*runs, rtol=1e-3, atol=1e-4)


def test_the_memory_of_a_group_that_was_removed_is_no_part_of_the_state():
    params = [Parameter(torch.ones(2)) for _ in range(2)]
    opt = FriendlySAM(SGD([{"params": [p]} for p in params], lr=0.1), rho=0.1)

    def closure():
        opt.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    opt.step(closure)
    removed = opt.base.param_groups.pop()
    saved = opt.state_dict()
    assert [key for key in saved["state"] if isinstance(key, int)] == [0]
    opt.base.param_groups.append(removed)
    assert "mean" in opt.state_dict()["state"][1]


def test_a_load_that_fails_keeps_what_follows():
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(2))]
    opt = SAM(SGD([{"params": params[:1]}, {"params": params[1:], "rho": 0.1}], lr=0.1), rho=FOLLOWS)
    saved = copy.deepcopy(opt.state_dict())
    opt.param_groups[0]["lr"] = 0.05
    handle = opt.register_load_state_dict_post_hook(fails)
    with pytest.raises(ZeroDivisionError):
        opt.load_state_dict(saved)
    handle.remove()
    opt.will_climb()
    assert [group["rho"] for group in opt.param_groups] == [pytest.approx(0.2), 0.1]


@over_climbing
def test_hooks_of_users_see_and_change_all_of_a_state(case):
    _, opt = trained(case)
    seen = []

    def after(o, found):
        seen.append(set(found))
        return {**found, "mine": 1}

    opt.register_state_dict_post_hook(after)
    saved = opt.state_dict()
    assert seen == [{"state", "param_groups", "base"}]
    assert saved["mine"] == 1

    def before(o, found):
        seen.append(set(found))
        return {key: value for key, value in found.items() if key != "mine"}

    _, other = trained(case, 1)
    other.register_load_state_dict_pre_hook(before)
    other.load_state_dict(saved)
    assert seen[1] == {"state", "param_groups", "base", "mine"}
    torch.testing.assert_close(other.state_dict(), {k: v for k, v in saved.items() if k != "mine"}, rtol=0, atol=0)


def test_a_hook_that_was_there_first_sees_the_base_too():
    """Also one that asked to be the first."""
    _, opt = trained(CLIMBING[0])
    seen = []
    opt.register_state_dict_post_hook(lambda o, found: seen.append("base" in found), prepend=True)
    opt.state_dict()
    assert seen == [True]


def test_what_a_hook_leaves_out_stays_out():
    _, opt = trained(CLIMBING[0])
    opt.register_state_dict_post_hook(lambda o, found: {k: v for k, v in found.items() if k != "base"})
    assert set(opt.state_dict()) == {"state", "param_groups"}


ASKING = {
    "get": lambda model, opt: checkpoint.get_optimizer_state_dict(model, opt),
    "both": lambda model, opt: checkpoint.get_state_dict(model, opt),
}


@over_climbing
@pytest.mark.parametrize("how", ASKING)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("frozen", [True, False])
def test_torch_distributed_checkpoint_is_told_whom_to_ask(case, how, steps, frozen):
    problem, opt = trained(case, steps)
    if frozen and steps:
        problem.model[0].bias.requires_grad_(False)
    before, count = weights(problem.model), int(opt.state["engine"].get("step", 0))
    with pytest.raises(TypeError, match=r"Give it steppe.integrations.distributed.SharpnessAwareState\(model, opt\)"):
        ASKING[how](problem.model, opt)
    assert same_bits(weights(problem.model), before)
    assert int(opt.state["engine"].get("step", 0)) == count
    problem.model.zero_grad()
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.1)])
def test_the_base_alone_is_saved_and_loaded_by_torch_distributed_checkpoint(make):
    problem = Problem()
    opt = LookSAM(make(problem.model.parameters()), rho=0.1)
    for batch in problem.batches(3):
        opt.step(problem.closure(opt, batch))
    saved = copy.deepcopy(checkpoint.get_optimizer_state_dict(problem.model, opt.base))
    resumed = Problem()
    other = LookSAM(make(resumed.model.parameters()), rho=0.1)
    checkpoint.set_optimizer_state_dict(resumed.model, other.base, saved)
    assert other.state["engine"].get("step", 0) == 0
    torch.testing.assert_close(other.base.state_dict(), opt.base.state_dict(), rtol=0, atol=0)


def test_a_state_survives_being_loaded_at_w_and_delta():
    """Memories of the base may be read back inside; the weights are the climb's own matter."""
    problem, opt = trained(CLIMBING[0])
    saved = copy.deepcopy(opt.state_dict())
    problem.model.zero_grad()
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    problem.loss(batch).backward()
    with opt.ascended():
        problem.loss(batch).backward()
        opt.load_state_dict(saved)
    assert same_bits(weights(problem.model), before)
    assert isinstance(opt, SharpnessAware)
