"""Several bases under one climb, against plain loops, one base, and two methods around two bases."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

import reference
from cases import CASES, _descent
from problems import Problem, same_bits, through_ascended, weights
from steppe import (
    GSAM,
    MSAM,
    SAM,
    USAM,
    AMSGrad,
    LookSAM,
    ParamGroupSchedule,
    ProportionalToLR,
    Together,
)

WRAPPING = [case for case in CASES if case.wraps]
BY_NAME = {case.name: case for case in CASES}
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon yet")


def split(model):
    """Matrices, and the rest."""
    params = list(model.parameters())
    return [p for p in params if p.ndim == 2], [p for p in params if p.ndim < 2]


def sgd(params, **kwargs):
    return SGD(params, lr=0.05, **{"momentum": 0.9, "weight_decay": 1e-3, **kwargs})


def adamw(params, **kwargs):
    return AdamW(params, lr=1e-2, **kwargs)


def pair(problem, first=sgd, second=adamw):
    matrices, rest = split(problem.model)
    return [first(matrices), second(rest)]


def descents(problem, variant="adagrad-norm"):
    return [_descent(variant, params, lr=0.1) for params in split(problem.model)]


PAIRS = {
    "sgd, adamw": pair,
    "two that keep a number each": descents,
    "amsgrad, sgd": lambda problem: pair(problem, lambda params: AMSGrad(params, 1e-2), sgd),
    "three groups": lambda problem: pair(problem, lambda params: sgd([{"params": [p]} for p in params]), adamw),
    "fused, not fused": lambda problem: pair(problem, lambda params: adamw(params, fused=True), sgd),
}
over_pairs = pytest.mark.parametrize("pair_of", PAIRS.values(), ids=PAIRS)


def train(opt, problem, batches):
    return [opt.step(problem.closure(opt, batch)).item() for batch in batches]


def through_disk(obj, path):
    torch.save(obj, path)
    return torch.load(path, weights_only=True)


# What a step is


def side_by_side(problem):
    """SGD on the matrices and AdamW on the rest, as an update of one flat vector."""
    matrix = torch.cat([torch.full((p.numel(),), p.ndim == 2) for p in problem.model.parameters()])
    parts = {
        True: (matrix, reference.sgd(0.05, momentum=0.9, weight_decay=1e-3)),
        False: (~matrix, reference.adamw(1e-2)),
    }

    def update(w, g):
        after, update.momentum = torch.empty_like(w), torch.empty_like(w)
        for mask, own in parts.values():
            after[mask] = own(w[mask], g[mask])
            update.momentum[mask] = own.momentum
        return after

    update.momentum = None
    return update


@pytest.mark.parametrize("name", ["sam", "usam", "asam", "gsam", "msam", "msam-adaptive", "looksam", "pgn"])
def test_against_a_plain_loop_over_one_vector(name):
    problem, case = Problem(), BY_NAME[name]
    batches = problem.batches(50)
    expected = list(case.rows(problem, batches, None, update=side_by_side(problem)))
    opt = case.make(pair(problem), **case.kwargs)
    for batch, w in zip(batches, expected, strict=True):
        opt.step(problem.closure(opt, batch))
        torch.testing.assert_close(problem.flat(), w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", WRAPPING, ids=lambda case: case.name)
@pytest.mark.parametrize("door", ["step", "ascended"])
def test_two_of_a_kind_are_one_with_two_groups(case, door):
    one, two = Problem(), Problem()
    matrices, rest = split(one.model)
    opts = [
        case.make(sgd([{"params": matrices, "rho": 0.2}, {"params": rest}]), **case.kwargs),
        case.make(
            Together(sgd([{"params": split(two.model)[0], "rho": 0.2}]), sgd(split(two.model)[1])), **case.kwargs
        ),
    ]
    for batch in one.batches(12):
        for opt, problem in zip(opts, (one, two), strict=True):
            if door == "step":
                opt.step(problem.closure(opt, batch))
            else:
                opt.zero_grad()
                through_ascended(opt, lambda problem=problem, batch=batch: problem.loss(batch).backward())
                opt.base.step()
        assert same_bits(one.model.parameters(), two.model.parameters())
    torch.testing.assert_close(opts[0].state_dict()["state"], opts[1].state_dict()["state"], rtol=0, atol=0)
    assert [group["rho"] for group in opts[1].param_groups] == [0.2, case.kwargs["rho"]]


def test_a_climb_is_as_long_as_rho_where_two_methods_climb_farther():
    problem = Problem()
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    start, gradient = problem.flat(), torch.cat([p.grad.flatten() for p in problem.model.parameters()])
    with SAM(pair(problem), rho=0.1).ascended():
        torch.testing.assert_close(problem.flat() - start, 0.1 * gradient / gradient.norm())
        problem.loss(batch).backward()
    problem.loss(batch).backward()
    first, second = (SAM(base, rho=0.1) for base in pair(problem))
    with first.ascended(), second.ascended():
        assert (problem.flat() - start).norm().item() == pytest.approx(0.1 * math.sqrt(2))
        problem.loss(batch).backward()
        second.base.zero_grad()
        problem.loss(batch).backward()


def test_groups_that_do_not_climb_do_not_count_in_any_base():
    problem = Problem()
    opt = SAM(pair(problem), rho=0.1)
    opt.param_groups[1]["rho"] = 0.0
    matrices, _ = split(problem.model)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    start = weights(problem.model)
    norm = torch.cat([p.grad.flatten() for p in matrices]).norm()
    expected = [p + 0.1 * p.grad / norm if p.ndim == 2 else p.clone() for p in problem.model.parameters()]
    with opt.ascended():
        torch.testing.assert_close(weights(problem.model), [e.detach() for e in expected])
        problem.loss(batch).backward()
    assert same_bits(problem.model.parameters(), start)


@needs_muon
def test_muon_and_adamw():
    ours, plain = Problem(torch.float32), Problem(torch.float32)
    make = lambda problem: pair(problem, lambda params: torch.optim.Muon(params, lr=0.02), adamw)  # noqa: E731
    opt, bases, params = SAM(make(ours), rho=0.1), make(plain), list(plain.model.parameters())
    everything = slice(None)
    at_first = ours.loss(everything).item()
    for batch in ours.batches(30):
        opt.step(ours.closure(opt, batch))
        grads = torch.autograd.grad(plain.loss(batch), params)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        before = weights(plain.model)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p += 0.1 * g / norm
        plain.model.zero_grad()
        plain.loss(batch).backward()
        with torch.no_grad():
            for p, w in zip(params, before, strict=True):
                p.copy_(w)
        for base in bases:
            base.step()
        torch.testing.assert_close(ours.flat(), plain.flat(), rtol=1e-4, atol=1e-5)
    assert ours.loss(everything).item() < at_first - 0.1
    opt = MSAM(make(ours), rho=0.1)
    train(opt, ours, ours.batches(3))
    assert {name for memory in opt.base.state.values() for name in memory} == {
        "momentum_buffer", "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip


def test_a_plain_step_is_that_of_every_base_and_its_closure_runs_once():
    ours, plain = Problem(), Problem()
    opt, bases, calls = Together(*pair(ours)), pair(plain), []
    for batch in ours.batches(3):
        inner = ours.closure(opt, batch)
        with torch.no_grad():
            loss = opt.step(lambda inner=inner: (calls.append(1), inner())[1])
        plain.model.zero_grad()
        expected = plain.loss(batch)
        expected.backward()
        for base in bases:
            base.step()
        assert torch.equal(loss, expected)
    assert opt.step() is None
    for base in bases:
        base.step()
    assert len(calls) == 3
    assert same_bits(ours.model.parameters(), plain.model.parameters())
    opt.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in ours.model.parameters())
    opt.zero_grad()
    assert all(p.grad is None for p in ours.model.parameters())


def test_hooks_fire_once_here_and_once_on_each_base():
    problem, fired = Problem(), []
    opt = SAM(pair(problem))
    hooked = {"method": opt, "all": opt.base, "sgd": opt.base.bases[0], "adamw": opt.base.bases[1]}
    for name, each in hooked.items():
        each.register_step_pre_hook(lambda *_, name=name: fired.append(name))
        each.register_step_post_hook(lambda *_, name=name: fired.append(f"{name} done"))
    everywhere = register_optimizer_step_post_hook(lambda optimizer, *_: fired.append(type(optimizer).__name__))
    train(opt, problem, problem.batches(1))
    everywhere.remove()
    assert fired == [
        *("method", "all", "sgd", "sgd done", "SGD", "adamw", "adamw done", "AdamW"),
        *("all done", "Together", "method done", "SAM"),
    ]
    assert opt.state["engine"]["step"] == 1


# Groups, states, defaults


def test_groups_are_the_bases_own_whoever_replaces_them():
    problem = Problem()
    first, second = pair(problem)
    opt = SAM([first, second])
    assert isinstance(opt.base, Optimizer)
    for change in (
        lambda: None,
        lambda: second.load_state_dict(second.state_dict()),
        lambda: opt.base.load_state_dict(opt.base.state_dict()),
        lambda: opt.load_state_dict(opt.state_dict()),
        lambda: setattr(opt.base, "param_groups", opt.base.param_groups[::-1]),
        lambda: setattr(opt, "param_groups", copy.copy([dict(group) for group in opt.param_groups])),
    ):
        change()
        own = [*first.param_groups, *second.param_groups]
        found = opt.param_groups
        assert {id(group) for group in found} == {id(group) for group in own}
        assert [group.get("momentum") for group in own] == [0.9, None]
    assert [group["lr"] for group in opt.param_groups] == [1e-2, 0.05]  # the order that was asked for
    groups, opt.base.param_groups = opt.base.param_groups, []
    for group in groups:
        opt.base.add_param_group(group)
    assert all(x is y for x, y in zip(opt.base.param_groups, groups, strict=True))
    first.param_groups = []  # a base without groups takes steps to nowhere
    before = weights(problem.model)
    train(opt, problem, problem.batches(1))
    assert [torch.equal(p, w) for p, w in zip(problem.model.parameters(), before, strict=True)] == [True, False] * 2


@pytest.mark.parametrize("rho", [0.1, ProportionalToLR(0.1, 0.0, 0.1, 0.0)], ids=["number", "schedule"])
def test_a_group_that_is_added_to_a_base_comes_last_and_climbs_by_its_own_radius(rho):
    problem = Problem()
    matrices, rest = split(problem.model)
    opt = SAM([SGD(matrices[:1], lr=0.1), AdamW(rest, lr=0.05)], rho=rho)
    schedule = ParamGroupSchedule(opt, "lr", [lambda t: 1.0, lambda t: 0.5])
    opt.base.bases[0].add_param_group({"params": matrices[1:], "lr": 0.02})
    train(opt, problem, problem.batches(1))
    schedule.step()
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.025, 0.02]
    train(opt, problem, problem.batches(1))
    radii = [0.1, 0.025, 0.02] if isinstance(rho, ProportionalToLR) else [0.1] * 3
    assert [group["rho"] for group in opt.param_groups] == pytest.approx(radii)
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    torch.testing.assert_close(opt.state_dict(), saved, rtol=0, atol=0)
    assert [group["lr"] for group in copy.deepcopy((problem, opt))[1].param_groups] == [0.1, 0.025, 0.02]
    opt.base.bases[1].add_param_group({"params": [param()], "lr": 0.07})
    assert [group.get("in_base") for group in opt.base.state_dict()["param_groups"]] == [0, 1, 0, 1]  # unread before


def test_the_state_is_that_of_the_bases():
    problem = Problem()
    opt = SAM(descents(problem))
    state, (first, second) = opt.base.state, opt.base.bases
    matrix, bias = list(problem.model.parameters())[:2]
    assert not state
    assert matrix not in state
    assert state.get(matrix, 7) == state.pop(matrix, 7) == 7
    assert not state  # reading so makes nothing
    train(opt, problem, problem.batches(2))
    assert list(state) == ["bases[0].shared", "bases[1].shared"]
    assert state["bases[0].shared"] is first.state["shared"]
    assert state["bases[1].shared"] != state["bases[0].shared"]
    state[bias]["made"] = 1
    state[matrix] = {"set": 2}
    assert first.state[matrix] == {"set": 2}
    assert second.state[bias] == {"made": 1}
    assert len(state) == 4
    assert repr(state).startswith("{'bases[0].shared': ")
    before = dict(state)
    state.clear()
    assert not first.state
    assert not second.state
    opt.base.state = before
    assert dict(state) == before
    opt.base.state = opt.base.state
    assert dict(state) == before
    del state[matrix]
    assert state.pop(bias) == {"made": 1}
    assert state.setdefault(matrix, {"new": 3}) == state.setdefault(matrix, {}) == {"new": 3}
    assert "shared" not in state
    assert "bases[2].shared" not in state
    with pytest.raises(KeyError, match="'shared' is neither a parameter nor a name like"):
        state["shared"]
    with pytest.raises(KeyError, match=re.escape("No base has the parameter of shape (3,).")):
        state[torch.ones(3)] = {}


def test_defaults_are_what_all_bases_have():
    problem = Problem()
    both = Together(*pair(problem))
    assert {"betas", "momentum"}.isdisjoint(both.defaults)
    assert both.defaults["lr"] == 0.05
    before = [dict(base.defaults) for base in both.bases]
    both.defaults = {**both.defaults, "rho": 0.3}
    assert [base.defaults for base in both.bases] == [{**each, "rho": 0.3} for each in before]
    both.defaults = {name: value for name, value in both.defaults.items() if name != "rho"}
    assert [base.defaults for base in both.bases] == before
    with pytest.raises(ValueError, match="must support momentum or beta1"):  # torch's own
        lr_scheduler.OneCycleLR(both, 0.1, total_steps=5)
    alike = Together(*pair(problem, adamw, adamw))
    lr_scheduler.OneCycleLR(alike, 0.1, total_steps=5)
    assert [group["betas"] for group in alike.param_groups] == [(0.95, 0.999)] * 2


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, [0.1] * len(o.param_groups), total_steps=9, cycle_momentum=False
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=False),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_attach_anywhere(name):
    runs = []
    for owners in (lambda o: [o], lambda o: [o.base], lambda o: o.base.bases):
        problem, rates = Problem(), []
        opt = SAM(pair(problem))
        schedulers = [SCHEDULERS[name](each) for each in owners(opt)]
        for batch in problem.batches(6):
            opt.step(problem.closure(opt, batch))
            for scheduler in schedulers:
                scheduler.step()
            rates.append([group["lr"] for group in opt.param_groups])
        runs.append((rates, problem.flat().tolist()))
    assert runs[0] == runs[1] == runs[2]
    assert len(set(map(tuple, runs[0][0]))) > 1


# Checkpoints and copies


@over_pairs
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", [SAM, LookSAM, None])
def test_resumes_bit_for_bit(pair_of, dtype, method, tmp_path):
    problem, resumed = Problem(dtype), Problem(dtype, seed=1)
    make = (lambda bases: method(bases, rho=0.1)) if method else (lambda bases: Together(*bases))
    opt, other = make(pair_of(problem)), make(pair_of(resumed))
    batches = problem.batches(9)
    train(opt, problem, batches[:4])
    opt.param_groups[1]["lr"] = 0.003
    train(other, resumed, resumed.batches(2))
    model, state = through_disk([problem.model.state_dict(), opt.state_dict()], tmp_path / "state.pt")
    resumed.x, resumed.y = problem.x, problem.y
    resumed.model.load_state_dict(model)
    other.load_state_dict(state)
    torch.testing.assert_close(other.state_dict(), opt.state_dict(), rtol=0, atol=0)
    assert train(opt, problem, batches[4:]) == train(other, resumed, batches[4:])
    assert same_bits(problem.model.parameters(), resumed.model.parameters())


def test_the_state_is_in_torchs_format():
    one, two = Problem(), Problem()
    single = sgd([{"params": params} for params in split(one.model)])
    both = Together(*pair(two, sgd, sgd))
    for batch in one.batches(2):
        train(single, one, [batch])
        train(both, two, [batch])
    found = both.state_dict()
    assert [group.pop("in_base") for group in found["param_groups"]] == [0, 1]
    torch.testing.assert_close(found, single.state_dict(), rtol=0, atol=0)


def test_what_a_base_saves_of_its_own_comes_back():
    class Noting(SGD):
        note = 0

        def state_dict(self):
            return {**super().state_dict(), "note": self.note}

        def load_state_dict(self, state_dict):
            self.note = state_dict["note"]
            super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})

    opts = [Together(*pair(Problem(), sgd, lambda params: Noting(params, lr=0.1))) for _ in range(2)]
    opts[0].bases[1].note = 5
    opts[1].load_state_dict(opts[0].state_dict())
    assert opts[1].bases[1].note == 5


def test_state_dict_hooks_fire_and_may_replace():
    opt, fired = Together(*pair(Problem())), []
    opt.register_state_dict_pre_hook(lambda *_: fired.append("pre"))
    opt.register_state_dict_post_hook(lambda _, found: {**found, "more": 1})
    opt.register_load_state_dict_pre_hook(lambda _, saved: (fired.append(saved.pop("more")), saved)[1])
    opt.register_load_state_dict_post_hook(lambda *_: fired.append("post"))
    opt.load_state_dict(opt.state_dict())
    assert fired == ["pre", 1, "post"]


class Refusing(AdamW):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        raise ArithmeticError("not this one")


def other_sizes(problem):
    first, *rest = split(problem.model)[0]
    return Together(sgd([first]), adamw([*rest, *split(problem.model)[1]])).state_dict()


def other_division(problem):
    matrices, rest = split(problem.model)
    return Together(sgd(matrices), sgd([{"params": rest[:1]}, {"params": rest[1:]}])).state_dict()


def swapped(problem):
    matrices, rest = split(problem.model)
    found = Together(sgd(matrices), adamw(rest)).state_dict()
    for group in found["param_groups"]:
        group["in_base"] = 1 - group["in_base"]
    return found


def unknown_name(problem):
    found = Together(*pair(problem)).state_dict()
    return {**found, "state": {"bases[2].shared": {}}}


REFUSED = {
    "other order": (
        swapped,
        "This is the state of other groups: with [2, 2] parameters, of bases [1, 0], where here are [2, 2], of bases "
        "[0, 1]. Give the same bases with the same groups, in the same order.",
    ),
    "other sizes": (other_sizes, "with [1, 3] parameters, of bases [0, 1], where here are [2, 2], of bases [0, 1]."),
    "other division": (
        other_division,
        "with [2, 1, 1] parameters, of bases [0, 1, 1], where here are [2, 2], of bases",
    ),
    "one plain base": (
        lambda problem: adamw([{"params": params} for params in split(problem.model)]).state_dict(),
        "This is the state of one plain optimizer, not of several together. Load it into the base that it belongs to: "
        "opt.base.bases[i].load_state_dict(...).",
    ),
    "a name of no base": (
        unknown_name,
        "This state has something of 'bases[2].shared', which is in no group and no name of a base.",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, "the second base"])
@pytest.mark.parametrize("around", [False, True], ids=["base", "method"])
def test_what_is_refused_changes_nothing(name, around):
    problem = Problem()
    refusing = name == "the second base"
    opt = SAM(pair(problem, sgd, lambda params: Refusing(params) if refusing else adamw(params)))
    other = SAM(pair(Problem(), lambda params: sgd(params, momentum=0.5)))
    train(opt, problem, problem.batches(2))
    before, groups, state = copy.deepcopy(opt.state_dict()), opt.param_groups, dict(opt.base.state)
    make, message = (lambda _: other.base.state_dict(), "not this one") if refusing else REFUSED[name]
    saved = make(problem)
    with pytest.raises(ArithmeticError if refusing else ValueError, match=re.escape(message)):
        (opt if around else opt.base).load_state_dict({**opt.state_dict(), "base": saved} if around else saved)
    torch.testing.assert_close(opt.state_dict(), before, rtol=0, atol=0)
    assert all(a is b for a, b in zip(opt.param_groups, groups, strict=True))
    assert all(opt.base.state[key] is memory for key, memory in state.items())


def test_a_checkpoint_without_a_climb_loads_with_a_warning():
    problem, other = Problem(), Problem()
    plain, opt = Together(*pair(problem)), SAM(pair(other), rho=0.3)
    train(plain, problem, problem.batches(3))
    with pytest.warns(UserWarning, match="state of a plain optimizer"):
        opt.load_state_dict(plain.state_dict())
    assert [group["rho"] for group in opt.param_groups] == [0.3, 0.3]
    assert torch.equal(opt.base.state[other.model[0].bias]["exp_avg"], plain.state[problem.model[0].bias]["exp_avg"])


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deep", "pickle"])
@over_pairs
def test_copies_go_their_own_way(pair_of, copier):
    problem = Problem()
    opt = GSAM(pair_of(problem), rho=0.1)
    batches = problem.batches(8)
    train(opt, problem, batches[:3])
    before = weights(problem.model)
    other, other_opt = copier((problem, opt))
    assert repr(other_opt.base) == repr(opt.base)
    losses = train(other_opt, other, batches[3:])
    assert same_bits(problem.model.parameters(), before)
    assert train(opt, problem, batches[3:]) == losses
    assert same_bits(problem.model.parameters(), other.model.parameters())
    assert other_opt.state["engine"]["step"] == 8


def test_repr_names_the_bases():
    assert re.fullmatch(r"Together \(SGD \(.*\), AdamW \(.*\)\)", repr(Together(*pair(Problem()))), re.DOTALL)


# Hosts


@pytest.mark.parametrize("clips", [False, True], ids=["", "unscaled before"])
@pytest.mark.parametrize("fused", [(False, True), (True, False), (True, True), (False, False)], ids=str)
def test_a_grad_scaler_divides_once_and_skips_all_or_none(fused, clips):
    scaled, straight = Problem(torch.float32), Problem(torch.float32)
    opts = [SAM(pair(p, *(lambda x, f=f: adamw(x, fused=f) for f in fused)), rho=0.1) for p in (scaled, straight)]
    scaler = GradScaler("cpu", init_scale=2.0**10)
    batches = scaled.batches(6)
    for step, batch in enumerate(batches):
        before, state = weights(scaled.model), copy.deepcopy(opts[0].base.state_dict())
        opts[0].base.zero_grad()
        scaler.scale(scaled.loss(batch)).backward()
        with opts[0].ascended(scaler.get_scale()):
            scaler.scale(scaled.loss(batch)).backward()
        if step == 3:  # in a gradient of the second base alone
            scaled.model[2].bias.grad[0] = math.inf
        if clips:
            scaler.unscale_(opts[0].base)
        scaler.step(opts[0].base)
        scaler.update()
        if step == 3:
            assert same_bits(scaled.model.parameters(), before)
            torch.testing.assert_close(opts[0].base.state_dict(), state, rtol=0, atol=0)
        else:
            opts[1].step(straight.closure(opts[1], batch))
    assert same_bits(scaled.model.parameters(), straight.model.parameters())
    assert [opt.state["engine"]["step"] for opt in opts] == [5, 5]
    assert scaler.get_scale() == 2.0**9


def test_accelerate_prepares_it():
    accelerate = pytest.importorskip("accelerate")
    try:
        accelerator = accelerate.Accelerator(cpu=True)
        ours, plain = Problem(), Problem()
        opt, other = (SAM(pair(problem), rho=0.1) for problem in (ours, plain))
        model, base = accelerator.prepare(ours.model, opt.base)
        accelerator.register_for_checkpointing(opt)
        for batch in ours.batches(4):
            base.zero_grad()
            accelerator.backward(ours.loss(batch, model))
            with opt.ascended():
                accelerator.backward(ours.loss(batch, model))
            base.step()
            other.step(plain.closure(other, batch))
        assert same_bits(ours.model.parameters(), plain.model.parameters())
        torch.testing.assert_close(base.state_dict(), other.base.state_dict(), rtol=0, atol=0)
        base.load_state_dict(base.state_dict())
        assert opt.state["engine"]["step"] == 4
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()


@over_pairs
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_checkpoints_of_torch_distributed(pair_of, steps, tmp_path):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    from steppe.integrations.distributed import SharpnessAwareState

    problem, resumed = Problem(), Problem(seed=1)
    opt, other = (SAM(pair_of(each), rho=0.1) for each in (problem, resumed))
    batches = problem.batches(steps + 3)
    train(opt, problem, batches[:steps])
    before = copy.deepcopy(opt.state_dict())
    checkpoint.save({"opt": SharpnessAwareState(problem.model, opt)}, checkpoint_id=tmp_path, no_dist=True)
    torch.testing.assert_close(opt.state_dict(), before, rtol=0, atol=0)
    train(other, resumed, resumed.batches(2))
    checkpoint.load({"opt": SharpnessAwareState(resumed.model, other)}, checkpoint_id=tmp_path, no_dist=True)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)
    resumed.x, resumed.y = problem.x, problem.y
    resumed.model.load_state_dict(problem.model.state_dict())
    assert train(opt, problem, batches[steps:]) == train(other, resumed, batches[steps:])
    assert same_bits(problem.model.parameters(), resumed.model.parameters())


# Errors


def param():
    return nn.Parameter(torch.ones(2))


def same_twice():
    base = sgd([param()])
    return SAM([base, base])


def in_two():
    w = param()
    return SAM([sgd([w]), adamw([param(), w])])


def wrapped_before():
    base = sgd([param()])
    SAM(base)
    return SAM([adamw([param()]), base])


def wrapped_meanwhile():
    both = Together(sgd([param()]), adamw([param()]))
    SAM(both.bases[1])
    return SAM(both)


def shared_later():
    opt, w = SAM([sgd([param()]), adamw([param()])]), param()
    for base in opt.base.bases:
        base.add_param_group({"params": [w]})
    return opt.step(lambda: None)


BAD = {
    "no base": (
        lambda: SAM([]),
        ValueError,
        "Together needs a base optimizer, got none. Write for example SAM([torch.optim.SGD(matrices, lr=0.1), "
        "torch.optim.AdamW(others)], rho=0.05).",
    ),
    "a class": (
        lambda: SAM([sgd([param()]), AdamW]),
        TypeError,
        "bases[1] must be an optimizer instance, got the class AdamW. Write for example SAM(torch.optim.SGD(",
    ),
    "parameters": (
        lambda: SAM([param()]),
        TypeError,
        "bases[0] must be an instance of torch.optim.Optimizer, got Parameter. Write for example",
    ),
    "a list in it": (lambda: Together([sgd([param()])]), TypeError, "bases[0] must be an instance of torch.optim."),
    "the same twice": (
        same_twice,
        ValueError,
        "bases[0] and bases[1] are the same SGD, which would step twice. Give it once.",
    ),
    "a parameter in two": (
        in_two,
        ValueError,
        "bases[0] (SGD) and bases[1] (AdamW) both have the parameter of shape (2,), which would climb and step twice. "
        "Give it to one of them.",
    ),
    "a parameter in two, later": (shared_later, ValueError, "both have the parameter of shape (2,)"),
    "sharpness-aware": (
        lambda: SAM([USAM(sgd([param()])), adamw([param()])]),
        TypeError,
        "bases[0] must be a plain optimizer, got USAM, which is sharpness-aware itself.",
    ),
    "wrapped before": (wrapped_before, ValueError, "The groups of this SGD already have a 'rho'"),
    "wrapped meanwhile": (wrapped_meanwhile, ValueError, "The groups of this AdamW already have a 'rho'"),
    "Adadelta": (
        lambda: SAM([torch.optim.Adadelta([param()]), sgd([param()])]),
        ValueError,
        "The groups of this Adadelta already have a 'rho'",
    ),
    "a closure of its own": (
        lambda: SAM([sgd([param()]), torch.optim.LBFGS([param()])]),
        ValueError,
        "LBFGS.step() needs a closure of its own",
    ),
    "one in the other": (
        lambda: Together(Together(sgd([param()])), adamw([param()])),
        ValueError,
        "bases[0] is a Together itself. Give its bases instead: Together(*it.bases, ...).",
    ),
    "no momentum in one": (
        lambda: MSAM([sgd([param()]), adamw([param()], betas=(0.0, 0.9))]),
        ValueError,
        "The base must keep a momentum to climb along, but that of Together is 0 in param group 1.",
    ),
    "a group for nobody": (
        lambda: SAM([sgd([param()]), adamw([param()])]).add_param_group({"params": [param()]}),
        ValueError,
        "Together cannot know which base the group is for. Add it there: opt.base.bases[i].add_param_group(...), where "
        "0 is SGD, 1 is AdamW.",
    ),
    "groups of nobody": (
        lambda: setattr(SAM([sgd([param()]), adamw([param()])]), "param_groups", [{"params": [param()], "lr": 0.1}]),
        ValueError,
        "param group 0 is not of one of the bases, by its parameters. Give it to its base: "
        "opt.base.bases[i].param_groups = ...",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    make, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)):
        make()


def test_a_failed_construction_leaves_the_bases_as_they_were():
    class Proud(AdamW):
        def __setattr__(self, name, value):
            if name == "defaults" and "rho" in value:
                raise ArithmeticError("not again")
            super().__setattr__(name, value)

    first, second = sgd([param()]), Proud([{"params": [param()]}, {"params": [param()]}], lr=0.1)
    groups, defaults = [base.param_groups[:] for base in (first, second)], [dict(b.defaults) for b in (first, second)]
    with pytest.raises(ArithmeticError, match="not again"):
        SAM([first, second])
    assert [base.defaults for base in (first, second)] == defaults
    for base, before in zip((first, second), groups, strict=True):
        assert all(a is b for a, b in zip(base.param_groups, before, strict=True))
    assert SAM([first]).base.bases == (first,)
