"""One step out of several micro-batches, on one process."""

from __future__ import annotations

import copy
import inspect
import math
import re

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.distributed import HashStore

import reference
from cases import CLIMBING, COMBINATIONS, combination_id
from problems import Problem, same_bits, state_of, through_ascended, weights
from steppe import GSAM, SAM, USAM, LightSAM, SharpnessAware, accumulated_step
from steppe.ascents import L2
from steppe.triggers import Every, Trigger

over_all = pytest.mark.parametrize(("case", "base"), [c for c in COMBINATIONS if c[0].climbs], ids=combination_id)
over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
over_climbs = pytest.mark.parametrize("climb", ["replay", "micro"])

K = 4  # micro-batches


def parts_of(batch):
    return batch.chunk(K)


def backward_of(problem, calls=None):
    def backward(part):
        if calls is not None:
            calls.append(part)
        loss = problem.loss(part) / K
        loss.backward()
        return loss

    return backward


def micro_by_hand(opt, problem, parts, scale=1.0):
    """The loop of the docstring of `SharpnessAware.backward`."""
    backward = backward_of(problem)
    for part in parts:
        opt.backward(lambda part=part: backward(part), scale)
    opt.base.step()
    opt.zero_grad()


# Against plain loops


@over_all
@pytest.mark.stack("Plain loop with `step`", "accumulation")
def test_replay_is_the_big_batch(case, base):
    big, micro = Problem(), Problem()
    opts = [case.build(p.model.parameters(), base) for p in (big, micro)]
    for batch in big.batches(10):
        expected = opts[0].step(big.closure(opts[0], batch))
        loss = accumulated_step(opts[1], parts_of(batch), backward_of(micro))
        torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(big.flat(), micro.flat(), rtol=0, atol=1e-12)


def lightsam_micro(w, f, batches, lr, rho, eps, variant, betas=(0.0, 0.0)):
    """Every micro-batch adds to the memory of climbs, every batch to that of descents."""
    b1, b2 = betas
    u = v = torch.full_like(w, eps**2) if variant != "adagrad-norm" else torch.tensor(eps**2, dtype=w.dtype)
    r = m = torch.zeros_like(w)

    def remember(mean, square, g):
        if variant == "adam":
            return b1 * mean + (1 - b1) * g, b2 * square + (1 - b2) * g * g
        return g, square + (g @ g if variant == "adagrad-norm" else g * g)

    for batch in batches:
        total = torch.zeros_like(w)
        for part in parts_of(batch):
            r, u = remember(r, u, f(w, part) / K)
            total = total + f(w + rho * r / u.sqrt(), part) / K
        m, v = remember(m, v, total)
        w = w - lr * m / v.sqrt()
        yield w


def micro_rows(case, base, problem, batches):
    """Add up the plain method's gradients of the micro-batches, and let a plain base step on the sum."""
    if case.make is LightSAM:
        yield from lightsam_micro(problem.flat(), problem.gradient, batches, case.lr, **case.kwargs)
        return

    def f(w, part):
        return problem.gradient(w, part) / K

    if not case.wraps:  # AdaSAM: SAM's gradient to AMSGrad
        kwargs = dict(case.kwargs)
        rho = kwargs.pop("rho")

        def total(w, batch):
            return sum(next(reference.sam(w, f, [part], lambda w, g: g, rho)) for part in parts_of(batch))

        yield from reference.amsgrad(problem.flat(), total, batches, case.lr, **kwargs)
        return
    # The method goes from one micro-batch to the next, and the base steps at the last of each batch.
    parts = [part for batch in batches for part in parts_of(batch)]
    counts = {"parts": K} if "parts" in inspect.signature(case.reference).parameters else {}
    rows = case.rows(problem, parts, base, f, reference.added_up(base.update(), K), **counts)
    yield from list(rows)[K - 1 :: K]


@pytest.mark.parametrize(
    ("case", "base"), [c for c in COMBINATIONS if c[0].climbs and c[0].reference], ids=combination_id
)
@pytest.mark.parametrize("door", ["accumulated_step", "backward"])
@pytest.mark.stack("Plain loop with `step`", "accumulation")
def test_micro_is_the_plain_loop(case, base, door):
    problem = Problem()
    batches = problem.batches(10)
    rows = list(micro_rows(case, base, problem, batches))
    opt = case.build(problem.model.parameters(), base)
    for batch, row in zip(batches, rows, strict=True):
        if door == "backward":
            micro_by_hand(opt, problem, parts_of(batch))
        else:
            accumulated_step(opt, parts_of(batch), backward_of(problem), climb="micro")
        torch.testing.assert_close(problem.flat(), row, rtol=0, atol=1e-12)


@pytest.mark.parametrize("door", ["accumulated_step", "backward"])
def test_the_scale_undoes_the_division_of_the_loss(door):
    """USAM then climbs by rho times the gradient of a micro-batch's mean."""
    problem = Problem()
    opt = USAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=0.5)
    (batch,) = problem.batches(1)
    w = problem.flat()
    gradients = [problem.gradient(w + 0.5 * problem.gradient(w, part), part) for part in parts_of(batch)]
    if door == "backward":
        micro_by_hand(opt, problem, parts_of(batch), scale=1 / K)
    else:
        accumulated_step(opt, parts_of(batch), backward_of(problem), climb="micro", scale=1 / K)
    torch.testing.assert_close(problem.flat(), w - 0.1 * sum(gradients) / K, rtol=0, atol=1e-14)


# Bit for bit


@over_climbing
def test_backward_by_hand_is_accumulated_step(case):
    ours, theirs = Problem(), Problem()
    opt, hand = (case.build(p.model.parameters()) for p in (ours, theirs))
    for batch in ours.batches(6):
        loss = accumulated_step(opt, parts_of(batch), backward_of(ours), climb="micro")
        before = sum(theirs.loss(part).detach() / K for part in parts_of(batch))
        if case.clean:
            torch.testing.assert_close(loss, before, rtol=0, atol=1e-15)
        assert not loss.requires_grad
        micro_by_hand(hand, theirs, parts_of(batch))
    assert same_bits(ours.model.parameters(), theirs.model.parameters())
    torch.testing.assert_close(opt.state_dict(), hand.state_dict(), rtol=0, atol=0)


@over_climbing
@over_climbs
def test_one_micro_batch_is_a_step(case, climb):
    ours, theirs = Problem(), Problem()
    opt, other = (case.build(p.model.parameters()) for p in (ours, theirs))

    def backward(batch):
        loss = theirs.loss(batch)
        loss.backward()
        return loss

    for batch in ours.batches(6):
        expected = opt.step(ours.closure(opt, batch))
        assert torch.equal(accumulated_step(other, [batch], backward, climb=climb), expected)
    assert same_bits(ours.model.parameters(), theirs.model.parameters())
    torch.testing.assert_close(state_of(opt), state_of(other), rtol=0, atol=0)


@over_all
@pytest.mark.parametrize("door", ["replay", "micro", "backward"])
def test_rho_zero_is_the_bases_accumulation(case, base, door):
    ours, plain = Problem(), Problem()
    opt = case.build(ours.model.parameters(), base, rho=0.0)
    if case.wraps:
        other = base.make(plain.model.parameters())
    else:
        other = case.plain(plain.model.parameters(), **{"lr": case.lr, **case.kwargs})
    for batch in ours.batches(10):
        other.zero_grad()
        for part in parts_of(batch):
            (plain.loss(part) / K).backward()
        other.step()
        if door == "backward":
            micro_by_hand(opt, ours, parts_of(batch))
        else:
            accumulated_step(opt, parts_of(batch), backward_of(ours), climb=door)
    assert same_bits(ours.model.parameters(), plain.model.parameters())


# When it climbs


@pytest.mark.parametrize("door", ["replay", "micro", "backward"])
def test_triggers_count_steps_of_the_base(door):
    problem, calls, passes = Problem(), [], []
    opt = SharpnessAware(torch.optim.SGD(problem.model.parameters(), lr=0.1), ascent=L2(), trigger=Every(2), rho=0.1)
    backward = backward_of(problem, calls)
    for batch in problem.batches(4):
        calls.clear()
        if door == "backward":
            for part in parts_of(batch):
                opt.backward(lambda part=part: backward(part))
            opt.base.step()
            opt.zero_grad()
        else:
            accumulated_step(opt, parts_of(batch), backward, climb=door)
        passes.append(len(calls))
    assert passes == [2 * K, K, 2 * K, K]
    assert opt.state["engine"]["step"] == 4


class Steep(Trigger):
    """Climb where the gradient is large."""

    needs_gradient = True

    def __init__(self, least):
        self.least = least

    def due(self, step):
        return True

    def fires(self, slope):
        return slope.norm > self.least


@pytest.mark.parametrize("blends", [False, True])
def test_triggers_that_look_at_gradients_look_at_each_climb(blends):
    """Micro-batches that do not climb add their clean gradients, those that do their sharp ones."""
    problem = Problem()
    (batch,) = problem.batches(1)
    w, rho, alpha = problem.flat(), 0.1, 0.4 if blends else 0.0
    cleans = [problem.gradient(w, part) / K for part in parts_of(batch)]
    least = sorted(g.norm() for g in cleans)[K // 2 - 1]
    expected = torch.zeros_like(w)
    for part, g in zip(parts_of(batch), cleans, strict=True):
        if g.norm() > least:
            s = problem.gradient(w + rho * g / g.norm(), part) / K
            g = s - alpha * (g - (g @ s) / (s @ s) * s)
        expected += g
    blend = GSAM(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)).blend if blends else None
    base = torch.optim.SGD(problem.model.parameters(), lr=1.0)
    opt = SharpnessAware(base, ascent=L2(), blend=blend, trigger=Steep(least), rho=rho)
    calls = []
    accumulated_step(opt, parts_of(batch), backward_of(problem, calls), climb="micro")
    assert len(calls) == K + K // 2
    torch.testing.assert_close(w - problem.flat(), expected, rtol=0, atol=1e-13)


@over_climbs
def test_a_scheduler_that_is_attached_here_sees_the_steps(climb):
    """torch warns of schedulers that step before their optimizer, and warnings are errors."""
    for rho in (0.1, 0.0):
        problem = Problem()
        opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=rho)
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 1)
        (batch,) = problem.batches(1)
        accumulated_step(opt, parts_of(batch), backward_of(problem), climb=climb)
        scheduler.step()


# What goes wrong


def calls_of(case, step):
    """Numbers of the calls of ``backward`` in step number ``step``."""
    return range(len(case.passes(step)) * K)


@pytest.mark.parametrize(
    ("case", "fails_at"),
    [(case, i) for case in CLIMBING for i in calls_of(case, 0)],
    ids=lambda x: getattr(x, "name", x),
)
@over_climbs
def test_an_exception_leaves_the_weights_and_the_next_step_is_right(case, climb, fails_at):
    broken, straight = Problem(), Problem()
    opt, other = (case.build(p.model.parameters()) for p in (broken, straight))
    first, second = broken.batches(2)
    before, calls = weights(broken.model), []
    backward = backward_of(broken, calls)

    def fails(part):
        if len(calls) == fails_at:
            raise KeyboardInterrupt("no more")
        return backward(part)

    with pytest.raises(KeyboardInterrupt, match="no more"):
        accumulated_step(opt, parts_of(first), fails, climb=climb)
    assert same_bits(weights(broken.model), before)
    assert not opt.base.state
    assert opt.state["engine"].get("step", 0) == 0
    assert opt.will_climb() == case.climbs_at(0)

    # What the climbs remember has seen the clean gradients that came before; all else is as if nothing had happened.
    opt.state.clear()
    for step in ((opt, broken), (other, straight)):
        accumulated_step(step[0], parts_of(second), backward_of(step[1]), climb=climb)
    assert same_bits(broken.model.parameters(), straight.model.parameters())


@pytest.mark.parametrize("case", [case for case in CLIMBING if case.clean], ids=lambda case: case.name)
@pytest.mark.parametrize("raises_after_backward", [False, True])
def test_backward_that_raises_in_the_clean_pass_keeps_what_was_accumulated(case, raises_after_backward):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    first, second, *_ = parts_of(problem.batches(1)[0])
    backward = backward_of(problem)
    opt.backward(lambda: backward(first))
    grads = [p.grad for p in problem.model.parameters()]
    values, before = [g.clone() for g in grads], weights(problem.model)

    def fails():
        if raises_after_backward:
            backward(second)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.backward(fails)
    assert all(p.grad is g for p, g in zip(problem.model.parameters(), grads, strict=True))
    assert same_bits(grads, values)
    assert same_bits(weights(problem.model), before)
    with pytest.raises(RuntimeError, match=r"No parameter has a gradient after the closure. Did it call loss.backward"):
        opt.backward(lambda: problem.loss(second))
    assert same_bits([p.grad for p in problem.model.parameters()], values)


@over_climbing
def test_backward_that_raises_in_the_sharp_pass_restores_the_weights(case):
    problem, clean = Problem(), Problem()
    opt, other = (case.build(p.model.parameters()) for p in (problem, clean))
    parts = parts_of(problem.batches(1)[0])
    backward, before = backward_of(problem), weights(problem.model)
    opt.backward(lambda: backward(parts[0]))
    for error, body in ((ZeroDivisionError, lambda: 1 / 0), (RuntimeError, lambda: None)):
        passes = iter((True, False) if case.clean else (False,))
        with pytest.raises(error):
            opt.backward(lambda passes=passes, body=body: backward(parts[1]) if next(passes) else body())
        assert same_bits(weights(problem.model), before)
    opt.state.clear()
    opt.zero_grad()  # what was accumulated is lost
    micro_by_hand(opt, problem, parts)
    micro_by_hand(other, clean, parts)
    assert same_bits(problem.model.parameters(), clean.model.parameters())


# Gradients that are None


class Heads(nn.Module):
    """The second head is used where the input's first entry is positive; the third never."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return self.heads[0](h) + (self.heads[1](h) if x[0, 0] > 0 else 0.0)


@pytest.fixture
def heads():
    torch.manual_seed(0)
    batches = [torch.randn(5, 3, dtype=torch.float64).abs() * sign for sign in (1, -1, 1)]
    return Heads().double(), batches


def plain_sam_gradient(model, batches, rho):
    """The gradient of the mean loss over ``batches`` where their gradient climbs; None for what takes no part."""
    names, params = zip(*model.named_parameters(), strict=True)

    def gradient(params):
        losses = [
            torch.func.functional_call(model, dict(zip(names, params, strict=True)), x).square().mean() / 3
            for x in batches
        ]
        return torch.autograd.grad(sum(losses), params, allow_unused=True)

    clean = gradient(params)
    norm = torch.sqrt(sum(g.square().sum() for g in clean if g is not None))
    climbed = [p if g is None else (p + rho * g / norm) for p, g in zip(params, clean, strict=True)]
    return gradient([p.detach().requires_grad_() for p in climbed])


@over_climbs
def test_parameters_that_some_micro_batches_leave_out(heads, climb):
    model, batches = heads
    groups = [batches] if climb == "replay" else [[x] for x in batches]
    found = [plain_sam_gradient(model, group, 0.1) for group in groups]
    expected = [p - sum(g for g in grads if g is not None) for p, *grads in zip(weights(model), *found, strict=True)]
    opt = SAM(torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.0), rho=0.1)

    def backward(x):
        loss = model(x).square().mean() / 3
        loss.backward()
        return loss

    accumulated_step(opt, batches, backward, climb=climb)
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=1e-13)
    assert model.heads[2].weight.grad is None


# GradScaler


@over_climbing
@over_climbs
@pytest.mark.parametrize("by_hand", [True, False], ids=["loop", "accumulated_step"])
@pytest.mark.stack("Plain loop with `ascended`", "accumulation")
def test_under_a_grad_scaler(case, climb, by_hand):
    """A power of two changes no bit."""
    scaled, unscaled = Problem(torch.float32), Problem(torch.float32)
    opt, other = (case.build(p.model.parameters()) for p in (scaled, unscaled))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

    def backward(part):
        loss = scaled.loss(part) / K
        scaler.scale(loss).backward()
        return loss

    for batch in scaled.batches(8):
        scale, parts = scaler.get_scale(), parts_of(batch)
        expected = accumulated_step(other, parts, backward_of(unscaled), climb=climb)
        if by_hand:
            opt.base.zero_grad()
            if climb == "micro":
                for part in parts:
                    opt.backward(lambda part=part: backward(part), scale)
            else:
                through_ascended(opt, lambda parts=parts: [backward(part) for part in parts], scale)
            scaler.step(opt.base)
        else:
            step = lambda: scaler.step(opt.base)  # noqa: E731
            assert torch.equal(accumulated_step(opt, parts, backward, climb=climb, scale=scale, step=step), expected)
        scaler.update()
    assert scaler.get_scale() == 2.0**12
    assert same_bits(scaled.model.parameters(), unscaled.model.parameters())
    torch.testing.assert_close(state_of(opt), state_of(other), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "bad_call"),
    [(case, i) for case in CLIMBING for i in calls_of(case, 0)],
    ids=lambda x: getattr(x, "name", x),
)
def test_under_a_grad_scaler_one_bad_pass_of_one_micro_batch_skips_the_step(case, bad_call):
    problem = Problem(torch.float32)
    opt = case.build(problem.model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**10)
    first, second = problem.batches(2)
    before, calls = weights(problem.model), 0

    def backward(part):
        nonlocal calls
        scaler.scale(problem.loss(part) / K).backward()
        if calls == bad_call:
            problem.model[0].weight.grad[0, 0] = math.nan
        calls += 1

    def step(batch):
        opt.base.zero_grad()
        for part in parts_of(batch):
            opt.backward(lambda part=part: backward(part), scaler.get_scale())
        scaler.step(opt.base)
        scaler.update()

    step(first)
    assert calls == len(calls_of(case, 0))
    assert same_bits(weights(problem.model), before)
    assert (scaler.get_scale(), opt.state["engine"].get("step", 0)) == (2.0**9, 0)
    kept = copy.deepcopy([memory for key, memory in opt.state.items() if key != "engine"])
    assert all(
        value.isfinite().all() if isinstance(value, torch.Tensor) else math.isfinite(value)
        for memory in kept
        for value in memory.values()
    )
    step(second)
    assert not same_bits(weights(problem.model), before)
    assert problem.flat().isfinite().all()


# Errors


def quadratic():
    w = nn.Parameter(torch.ones(2))
    return SAM(torch.optim.SGD([w], lr=0.1)), [torch.ones(2)], lambda x: (w * x).square().sum()


BAD = {
    "no micro-batches": ({"micro_batches": []}, ValueError, "micro_batches must hold at least one, got none."),
    "a generator": (
        {"micro_batches": (x for x in [1])},
        TypeError,
        "micro_batches must be a list or another sequence, got generator, which may not give the same batches again in "
        "the sharp pass. Put as many of its batches as make a step into a list.",
    ),
    "a loader": (
        {"micro_batches": torch.utils.data.DataLoader([1, 2], shuffle=True)},
        TypeError,
        "micro_batches must be a list or another sequence, got DataLoader",
    ),
    "an unknown climb": ({"climb": "mirco"}, ValueError, "climb must be one of 'replay', 'micro', got 'mirco'."),
    "unknown replicas": ({"replicas": "all"}, ValueError, "replicas must be one of 'global', 'own', got 'all'."),
    "own climbs without a model": (
        {"replicas": "own"},
        ValueError,
        'replicas="own" needs the model in torch.nn.parallel.DistributedDataParallel, got no model. Other models have '
        'no gradient of one process alone: use replicas="global".',
    ),
    "own climbs of a plain model": (
        {"replicas": "own", "model": nn.Linear(2, 1)},
        ValueError,
        "needs the model in torch.nn.parallel.DistributedDataParallel, got Linear. Other models",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    override, kind, message = BAD[name]
    opt, micro_batches, backward = quadratic()
    before = opt.param_groups[0]["params"][0].detach().clone()
    with pytest.raises(kind, match=re.escape(message)):
        accumulated_step(opt, backward=backward, **{"micro_batches": micro_batches, **override})
    assert torch.equal(opt.param_groups[0]["params"][0], before)


@pytest.fixture
def alone():
    """A world of one process."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda params: SharpnessAware(torch.optim.SGD(params, lr=0.1), ascent=L2(), trigger=Steep(0.0), rho=0.1),
            'replicas="own" does not go with Steep, which looks at gradients: some processes would climb and others '
            'not. Use replicas="global".',
        ),
        (
            lambda params: LightSAM(params, 0.1, rho=0.1),
            'replicas="own" does not go with LightSAM, whose climbs remember gradients: each process would have a '
            'memory of its own, of which a checkpoint holds one. Use replicas="global".',
        ),
    ],
)
def test_own_climbs_that_processes_could_not_agree_on(alone, make, message):
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    opt = make(model.parameters())
    with pytest.raises(ValueError, match=re.escape(message)):
        accumulated_step(opt, [torch.ones(1, 2)], lambda x: model(x).sum(), model=model, replicas="own")


@over_climbs
def test_passes_without_backward(climb):
    opt, micro_batches, loss = quadratic()
    with pytest.raises(RuntimeError, match=r"No parameter has a gradient .*loss.backward\(\)"):
        accumulated_step(opt, micro_batches, loss, climb=climb)
    passes = iter((True, False))

    def backward(x):
        value = loss(x)
        if next(passes):
            value.backward()
        return value

    with pytest.raises(RuntimeError, match="No parameter has a gradient after the sharp pass"):
        accumulated_step(opt, micro_batches, backward, climb=climb)
    assert torch.equal(opt.param_groups[0]["params"][0], torch.ones(2))
