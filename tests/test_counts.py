"""A step of the base is one step, whatever the base is and whoever asks for it."""

from __future__ import annotations

import copy
import math
import warnings
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import SGD, AdamW, lr_scheduler

from cases import CASES, CLIMBING
from doors import DOORS, backward_of, count, over_doors, take
from problems import Problem, through_ascended
from steppe import SAM, LookSAM, UnifiedSAM, accumulated_step
from steppe.triggers import After, Every, LargeGradient, Randomly

WRAPPING = [case for case in CLIMBING if case.wraps]


class AsksItsParent(SGD):
    def step(self, closure=None):
        return super().step(closure)


class Lookahead(torch.optim.Optimizer):
    """As timm has it: it never calls the constructor of torch's optimizers, which wraps the step of a class."""

    def __init__(self, base, alpha=0.5, k=3):
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self._base_optimizer = base
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, defaultdict(dict)
        self.alpha, self.k, self.steps = alpha, k, 0
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure=None):
        loss = self._base_optimizer.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            for p, slow in self.slow.items():
                p.copy_(slow.lerp_(p, self.alpha))
        return loss

    def state_dict(self):
        return self._base_optimizer.state_dict()


def sgd(params):
    return SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3)


def scheduled(params):
    base = sgd(params)
    base.scheduler = lr_scheduler.StepLR(base, 100)  # puts a step of its own there
    return base


BASES = {
    "plain": sgd,
    "asks its parent": lambda params: AsksItsParent(params, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "fused": lambda params: AdamW(params, lr=0.05, fused=True),
    "scheduled": scheduled,
}

over_bases = pytest.mark.parametrize("base", BASES)


@pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
@over_doors
def test_every_door_counts_one(case, door):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    for i, batch in enumerate(problem.batches(4), start=1):
        take(door, opt, backward_of(problem, batch))
        assert count(opt) == i


@over_bases
@over_doors
def test_every_base_counts_one(base, door):
    problem = Problem()
    sgd(Problem().model.parameters())  # torch wraps the step of a class when the first of it is made
    opt = SAM(BASES[base](problem.model.parameters()), rho=0.05)
    for i, batch in enumerate(problem.batches(4), start=1):
        take(door, opt, backward_of(problem, batch))
        assert count(opt) == i


TRIGGERS = {
    "after": (After(3), [1, 1, 1, 2, 2, 2]),
    "every": (Every(3), [2, 1, 1, 2, 1, 1]),
    "randomly": (Randomly(0.5, seed=3), [1, 2, 2, 2, 1, 1]),
    "both": (Every(2) & After(2), [1, 1, 2, 1, 2, 1]),
    "large": (Every(2) & LargeGradient(6, early=-99.0, late=-99.0), [2, 1, 2, 1, 2, 1]),
}


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("base", [*BASES, "lookahead"])
@over_doors
def test_triggers_count_the_steps_of_any_base(name, base, door):
    problem = Problem()
    trigger, expected = TRIGGERS[name]
    params = list(problem.model.parameters())
    made = Lookahead(sgd(params)) if base == "lookahead" else BASES[base](params)
    opt = SAM(made, rho=0.05, trigger=trigger)
    assert [take(door, opt, backward_of(problem, batch)) for batch in problem.batches(6)] == expected


@over_bases
@over_doors
def test_looksam_counts_the_steps_of_any_base(base, door):
    problem = Problem()
    opt = LookSAM(BASES[base](problem.model.parameters()), rho=0.05, k=3)
    assert [take(door, opt, backward_of(problem, batch)) for batch in problem.batches(7)] == [2, 1, 1, 2, 1, 1, 2]


@pytest.mark.parametrize("base", ["plain", "asks its parent", "scheduled"])
@over_doors
def test_the_mix_of_unifiedsam_follows_the_count(base, door):
    """delta = rho (1 - lam + lam / ||g||) g with lam = 1 - 1/t, t = 1, 2, ..."""
    problem = Problem()
    opt = UnifiedSAM(BASES[base](problem.model.parameters()), rho=0.1, lam="1-1/t")
    for t, batch in enumerate(problem.batches(4), start=1):
        w = problem.flat()
        g = problem.gradient(w, batch)
        seen = []
        handle = opt.around_sharp_pass(lambda: seen.append(problem.flat()) or torch.enable_grad())  # noqa: B023
        take(door, opt, backward_of(problem, batch))
        handle.remove()
        lam = 1 - 1 / t
        torch.testing.assert_close(seen[0] - w, 0.1 * (1 - lam + lam / g.norm()) * g, rtol=1e-9, atol=1e-12)


@over_doors
def test_lookahead_that_torch_never_heard_of_is_counted_and_right(door):
    """The same as its own inner base under SAM, pulled back every third step."""
    problem, plain = Problem(), Problem()
    opt = SAM(Lookahead(sgd(list(problem.model.parameters()))), rho=0.05, trigger=After(2))
    other = SAM(sgd(plain.model.parameters()), rho=0.05, trigger=After(2))
    slow = plain.flat()
    for i, batch in enumerate(problem.batches(7), start=1):
        take(door, opt, backward_of(problem, batch))
        take("step", other, backward_of(plain, batch))
        if i % 3 == 0:
            slow = slow.lerp(plain.flat(), 0.5)
            torch.nn.utils.vector_to_parameters(slow.clone(), plain.model.parameters())
    assert count(opt) == 7
    torch.testing.assert_close(problem.flat(), plain.flat(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", WRAPPING, ids=lambda case: case.name)
def test_shallow_copies_count_together(case):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    other = copy.copy(opt)
    for i, batch in enumerate(problem.batches(4), start=1):
        take("step", opt if i % 2 else other, backward_of(problem, batch))
        assert count(opt) == count(other) == i


def test_a_shallow_copy_knows_where_the_weights_are():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05)
    other, before = copy.copy(opt), problem.flat()
    problem.loss(problem.batches(1)[0]).backward()
    with opt.ascended():
        problem.loss(problem.batches(1)[0]).backward()
        with pytest.raises(RuntimeError, match="The weights are at w \\+ delta already"):
            other.ascended().__enter__()
    assert torch.equal(problem.flat(), before)


@pytest.mark.parametrize("case", WRAPPING, ids=lambda case: case.name)
def test_a_deep_copy_counts_alone(case):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    other, theirs = copy.deepcopy((opt, problem))
    for batch in problem.batches(3):
        take("step", opt, backward_of(problem, batch))
    take("ascended", other, backward_of(theirs, problem.batches(1)[0]))
    assert (count(opt), count(other)) == (3, 1)


@pytest.mark.parametrize("make", [sgd, lambda params: AdamW(params, lr=0.05)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("of", [SAM, LookSAM], ids=lambda method: method.__name__)
def test_who_makes_the_state_of_a_fresh_base_takes_no_step(make, of):
    problem = Problem()
    opt = of(make(problem.model.parameters()), rho=0.05)
    get_optimizer_state_dict(problem.model, opt.base)
    assert count(opt) == 0
    take("step", opt, backward_of(problem, problem.batches(1)[0]))
    get_optimizer_state_dict(problem.model, opt.base)
    assert count(opt) == 1


def test_who_makes_the_state_of_a_base_whose_first_step_was_skipped_takes_none():
    """A checkpoint right after the first step, which found infinities, as it often does."""
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05)
    first, second = problem.batches(2)
    through_ascended(opt, lambda: (problem.loss(first) * math.inf).backward())
    opt.zero_grad()
    get_optimizer_state_dict(problem.model, opt.base)
    assert count(opt) == 0
    take("ascended", opt, backward_of(problem, second))
    assert count(opt) == 1


def test_weights_that_are_clipped_after_a_skipped_step_are_no_step():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05)
    first, second, third = problem.batches(3)
    take("ascended", opt, backward_of(problem, first))
    opt.zero_grad()
    through_ascended(opt, lambda: (problem.loss(second) * math.inf).backward())
    with torch.no_grad():
        for p in problem.model.parameters():
            p.clamp_(-1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take("ascended", opt, backward_of(problem, third))
    assert count(opt) == 2


def test_a_step_with_a_learning_rate_of_zero_that_was_prepared_is_one():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05)
    opt.param_groups[0]["lr"] = 0.0
    take("step", opt, backward_of(problem, problem.batches(1)[0]))
    assert count(opt) == 1


@over_doors
def test_steps_that_a_grad_scaler_skips_are_none(door):
    """A fused base is told what was found, and skips by itself; others are not called."""
    for make in (sgd, BASES["fused"], BASES["asks its parent"], lambda p: Lookahead(sgd(p))):
        problem = Problem()
        opt = SAM(make(list(problem.model.parameters())), rho=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        batches = problem.batches(4)
        for i, batch in enumerate(batches):
            bad = float("inf") if i == 1 else 1.0

            def backward(batch=batch, bad=bad, problem=problem, scaler=scaler):
                loss = problem.loss(batch)
                scaler.scale(loss * bad).backward()
                return loss

            opt.zero_grad()
            if door in ("replay", "micro"):
                scale = scaler.get_scale() if scaler._scale is not None else 4.0
                scaler.scale(torch.ones(()))
                accumulated_step(
                    opt,
                    [batch],
                    backward,
                    climb=door,
                    scale=scale,
                    step=lambda opt=opt, scaler=scaler: scaler.step(opt.base),
                )
            else:
                if door == "backward":
                    opt.backward(backward)
                else:
                    through_ascended(opt, backward)
                scaler.step(opt.base)
            scaler.update()
        assert count(opt) == 3


@pytest.mark.parametrize("attached", ["before", "base", "opt"])
def test_a_scheduler_changes_no_count(attached):
    problem = Problem()
    base = sgd(problem.model.parameters())
    scheduler = lr_scheduler.ExponentialLR(base, 0.9) if attached == "before" else None
    opt = SAM(base, rho=0.05)
    if scheduler is None:
        scheduler = lr_scheduler.ExponentialLR({"base": base, "opt": opt}[attached], 0.9)
    for i, batch in enumerate(problem.batches(4), start=1):
        take(DOORS[i % 3], opt, backward_of(problem, batch))
        scheduler.step()  # which warns if it saw no step before its own
        assert count(opt) == i
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**4)


@pytest.mark.parametrize("prepared", ["base", "base before", "method"])
def test_what_accelerate_prepares_is_counted(prepared):
    accelerate = pytest.importorskip("accelerate")
    problem = Problem()
    accelerator = accelerate.Accelerator(cpu=True)
    base = sgd(problem.model.parameters())
    if prepared == "base before":
        opt = SAM(accelerator.prepare(base), rho=0.05)
        stepping = opt.base
    else:
        opt = SAM(base, rho=0.05)
        stepping = accelerator.prepare(base if prepared == "base" else opt.base)
    for i, batch in enumerate(problem.batches(3), start=1):
        problem.loss(batch).backward()
        with opt.ascended():
            problem.loss(batch).backward()
        stepping.step()
        opt.zero_grad()
        assert count(opt) == i


@pytest.mark.parametrize("make", ["plain", "fused", "asks its parent"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_steps_that_the_scaler_of_accelerate_skips_are_none(make, before):
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True)
    problem = Problem()
    base = BASES[make](problem.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    opt = None if before else SAM(base, rho=0.05)
    prepared = accelerate.optimizer.AcceleratedOptimizer(base, scaler=scaler)
    opt = opt or SAM(prepared, rho=0.05)
    counts = []
    for batch, bad in zip(problem.batches(4), [math.inf, 1.0, math.inf, 1.0], strict=True):
        prepared.zero_grad()
        through_ascended(opt, lambda batch=batch, bad=bad: scaler.scale(problem.loss(batch) * bad).backward())
        prepared.step()
        counts.append(count(opt))
    assert counts == [0, 1, 1, 2]


def hidden(opt):
    """Whoever has kept the function of the class goes past the instance, here past its hooks too."""
    unhooked = getattr(SGD.step, "__wrapped__", SGD.step)
    return lambda: unhooked(opt.base)


@pytest.mark.parametrize("case", [c for c in WRAPPING if c.name != "looksam"], ids=lambda case: case.name)
@pytest.mark.parametrize("door", ["step", "ascended", "backward"])
def test_a_step_that_nobody_saw_is_noticed_and_counted(case, door):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    first, second = problem.batches(2)

    def backward():
        loss = problem.loss(first)
        loss.backward()
        return loss

    through_ascended(opt, backward)
    hidden(opt)()
    opt.zero_grad()
    assert count(opt) == 0
    with pytest.warns(UserWarning, match="no step of its base was seen; it is counted as one"):
        take(door, opt, backward_of(problem, second))
    assert count(opt) == 2


def test_a_step_of_the_class_is_seen_by_its_hooks():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05)
    for i, batch in enumerate(problem.batches(3), start=1):
        opt.zero_grad()
        through_ascended(opt, lambda batch=batch: problem.loss(batch).backward())
        type(opt.base).step(opt.base)
        assert count(opt) == i


def test_one_who_kept_the_step_before_is_seen():
    problem = Problem()
    for make in (sgd, BASES["asks its parent"]):
        base = make(problem.model.parameters())
        kept = base.step
        opt = SAM(base, rho=0.05)
        for i, batch in enumerate(problem.batches(3), start=1):
            opt.zero_grad()
            through_ascended(opt, lambda batch=batch: problem.loss(batch).backward())
            kept()
            assert count(opt) == i


class KeepsAll(SGD):
    def __getstate__(self):
        return self.__dict__


def test_the_step_of_a_copy_is_the_copys():
    """Also where a base lets all of its attributes be copied, the step that is watched among them."""
    problem = Problem()
    opt = SAM(KeepsAll(problem.model.parameters(), lr=0.1), rho=0.1)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))
    before = copy.deepcopy(problem.model)
    other = copy.deepcopy(opt)
    for p in other._params():
        p.grad = torch.ones_like(p)
    ones = [p.detach().clone() for p in other._params()]
    other.base.step()
    assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before.parameters(), strict=True))
    assert all(torch.equal(p, q - 0.1) for p, q in zip(other._params(), ones, strict=True))
    assert (count(opt), count(other)) == (1, 2)


def test_a_step_whose_optimizer_has_gone_says_so():
    problem = Problem()
    step = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1).base.step
    with pytest.raises(RuntimeError, match="The optimizer whose step this is has gone"):
        step()


def test_a_plain_step_of_the_base_is_counted_too():
    """A warm-up may be the base's own steps."""
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05, trigger=After(2))
    passes = []
    for i, batch in enumerate(problem.batches(4)):
        if i < 2:
            opt.zero_grad()
            problem.loss(batch).backward()
            opt.base.step()
        else:
            passes.append(take("step", opt, backward_of(problem, batch)))
    assert passes == [2, 2]


def test_weights_that_are_loaded_between_steps_are_no_step():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=0.05)
    saved = copy.deepcopy(problem.model.state_dict())
    first, second = problem.batches(2)
    take("step", opt, backward_of(problem, first))
    problem.model.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take("step", opt, backward_of(problem, second))
    assert count(opt) == 2


def test_methods_that_own_their_base_are_counted_by_it():
    for case in (c for c in CASES if c.climbs and not c.wraps):
        problem = Problem()
        opt = case.build(problem.model.parameters())
        for i, batch in enumerate(problem.batches(3), start=1):
            opt.zero_grad()
            through_ascended(opt, lambda batch=batch, problem=problem: problem.loss(batch).backward())
            opt.base.step()
            assert count(opt) == i
