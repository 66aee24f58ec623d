"""What would go wrong without a word is refused, and what went wrong once leaves no trace."""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from functools import partial

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD

import steppe
from cases import BASES, CLIMBING, Base
from doors import DOORS, backward_of, count, over_doors, take
from problems import Problem, same_bits, weights
from steppe import GSAM, PGN, SAM, LookSAM, accumulated_step
from steppe.triggers import Every, LargeGradient

TWO_PASSES = [case for case in CLIMBING if case.clean]
BLENDS = [case for case in CLIMBING if case.blends]

over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
over_two_passes = pytest.mark.parametrize("case", TWO_PASSES, ids=lambda case: case.name)
over_blends = pytest.mark.parametrize("case", BLENDS, ids=lambda case: case.name)
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])


def ready(case, foreach=None, base=None, **override):
    """An optimizer whose next step climbs, and a batch for it."""
    problem = Problem()
    opt = case.build(problem.model.parameters(), base, foreach, **override)
    *before, batch = problem.batches(case.first + 1)
    for each in before:
        opt.step(problem.closure(opt, each))
    opt.zero_grad()
    return problem, opt, batch


# A step of the base at w + delta


@over_climbing
@over_doors
def test_a_step_of_the_base_at_w_and_delta_is_refused(case, door):
    problem, opt, batch = ready(case)
    before, moments = weights(problem.model), copy.deepcopy(opt.base.state_dict()["state"])
    passes = []

    def backward():
        passes.append(1)
        loss = problem.loss(batch)
        loss.backward()
        if not case.clean or len(passes) == 2:
            opt.base.step()
        return loss

    with pytest.raises(RuntimeError, match=r"a step of the base would be undone.*Step after the with block"):
        take(door, opt, backward)
    assert same_bits(weights(problem.model), before)
    torch.testing.assert_close(opt.base.state_dict()["state"], moments, rtol=0, atol=0)
    take(door, opt, backward_of(problem, batch))
    assert not same_bits(weights(problem.model), before)


@over_two_passes
@pytest.mark.parametrize("rho", [0.1, 0.0])
@pytest.mark.parametrize("door", [door for door in DOORS if door != "ascended"])
def test_a_closure_that_steps_the_base_is_refused_before_anything_moves(case, rho, door):
    problem = Problem()
    opt = case.build(problem.model.parameters(), rho=rho)
    (batch,) = problem.batches(1)
    before = weights(problem.model)

    def backward():
        loss = backward_of(problem, batch)()
        opt.base.step()
        return loss

    with pytest.raises(RuntimeError, match="A closure stepped the base, which is stepped after it"):
        take(door, opt, backward)
    assert same_bits(weights(problem.model), before)
    take(door, opt, backward_of(problem, batch))
    assert opt.state["engine"]["step"] == 1


def test_a_step_in_ascended_is_refused_where_it_does_not_climb_too():
    problem = Problem()
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.0)
    problem.loss(problem.batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="a step of the base would be undone"), opt.ascended():
        opt.base.step()


@pytest.mark.parametrize("inner", ["scaler", "class", "kept"])
def test_a_step_at_w_and_delta_is_refused_however_it_is_taken(inner):
    problem = Problem()
    base = SGD(problem.model.parameters(), lr=0.1)
    kept = base.step
    opt = SAM(base, rho=0.1)
    (batch,) = problem.batches(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights(problem.model)

    def bad():
        with opt.ascended():
            scaler.scale(problem.loss(batch)).backward()
            {"scaler": lambda: scaler.step(base), "class": lambda: SGD.step(base), "kept": kept}[inner]()

    scaler.scale(problem.loss(batch)).backward()
    with pytest.raises(RuntimeError, match="a step of the base would be undone"):
        bad()
    assert same_bits(weights(problem.model), before)


@pytest.mark.parametrize("kind", ["together", "wrapper"])
@pytest.mark.parametrize("where", ["ascended", "closure"])
def test_a_step_of_a_base_that_is_inside_another_is_refused_too(kind, where):
    a, b = Parameter(torch.tensor([3.0])), Parameter(torch.tensor([4.0]))
    if kind == "together":
        inner, other = SGD([a], lr=0.1), SGD([b], lr=0.1)
        opt = SAM([inner, other], rho=0.5)
    else:
        inner = SGD([a, b], lr=0.1, momentum=0.9)
        opt = SAM(pytest.importorskip("pytorch_optimizer").Lookahead(inner), rho=0.5)

    def backward():
        loss = (a.square() + b.square()).sum()
        loss.backward()
        return loss

    def closure():
        opt.zero_grad()
        loss = backward()
        inner.step()
        return loss

    def bad():
        if where == "closure":
            opt.step(closure)
        else:
            backward()
            with opt.ascended():
                backward()
                inner.step()

    with pytest.raises(RuntimeError, match=r"a step of the base would be undone|A closure stepped the base"):
        bad()
    assert (a.item(), b.item()) == (3.0, 4.0)
    assert not any(inner.state.values())
    opt.zero_grad()
    backward()
    with opt.ascended():
        backward()
    opt.base.step()
    assert count(opt) == 1
    assert a.item() < 3.0
    assert b.item() < 4.0


def test_a_step_of_another_optimizer_in_ascended_is_its_own_business():
    problem, other = Problem(), Problem()
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1)
    second = SAM(SGD(other.model.parameters(), lr=0.1), rho=0.1)
    batch, inner = problem.batches(2)
    problem.loss(batch).backward()
    with opt.ascended():
        problem.loss(batch).backward()
        second.step(other.closure(second, inner))
    opt.base.step()


# GradScaler


def test_unscaling_the_method_and_stepping_its_base_is_refused():
    problem = Problem()
    opt = SAM(SGD(problem.model.parameters(), lr=0.1), rho=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(problem.loss(problem.batches(1)[0])).backward()
    grads = [p.grad.clone() for p in problem.model.parameters()]
    with pytest.raises(RuntimeError, match=r"Call scaler.unscale_\(opt.base\)"):
        scaler.unscale_(opt)
    assert same_bits([p.grad for p in problem.model.parameters()], grads)


# Closures


@over_two_passes
@pytest.mark.parametrize("steps", [0, 2])
def test_a_closure_that_never_calls_backward_does_not_climb_along_old_gradients(case, steps):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    for batch in problem.batches(steps):
        opt.step(problem.closure(opt, batch))
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    before = weights(problem.model)
    with pytest.raises(RuntimeError, match=r"has its old gradient after the closure. Did it call loss.backward"):
        opt.step(lambda: problem.loss(batch))
    assert same_bits(weights(problem.model), before)


@over_two_passes
@over_paths
def test_a_closure_that_does_not_zero_is_refused(case, foreach):
    problem = Problem()
    opt = case.build(problem.model.parameters(), foreach=foreach)
    (batch,) = problem.batches(1)
    before = weights(problem.model)
    with pytest.raises(RuntimeError, match=r"The closure does not zero the gradients.*opt.zero_grad\(\)"):
        opt.step(backward_of(problem, batch))
    assert same_bits(weights(problem.model), before)
    opt.step(problem.closure(opt, batch))


@over_two_passes
def test_another_closure_that_does_not_zero_is_refused_too(case):
    problem, opt, batch = ready(case)
    opt.step(problem.closure(opt, batch))
    while not opt.will_climb():
        opt.step(problem.closure(opt, batch))
    opt.zero_grad()
    before = weights(problem.model)
    with pytest.raises(RuntimeError, match="The closure does not zero the gradients"):
        opt.step(backward_of(problem, batch))
    assert same_bits(weights(problem.model), before)


@over_two_passes
def test_nothing_of_a_closure_is_held(case):
    """It may be a partial, which has the batch."""
    problem, opt, batch = ready(case)
    held = torch.zeros(3)
    watch = weakref.ref(held)

    def evaluate(_, batch):
        return problem.closure(opt, batch)()

    opt.step(partial(evaluate, held, batch=batch))
    del held
    assert watch() is None
    assert opt._zeroes in (None, evaluate.__code__)


@over_two_passes
@pytest.mark.parametrize("first", [0, 1])
def test_a_closure_that_zeroes_a_part_is_refused(case, first):
    """Whichever of the two comes first in the groups."""
    problem = Problem()
    layers = [m for m in problem.model.modules() if any(True for _ in m.parameters(recurse=False))]
    params = [[*layers[0].parameters()], [p for layer in layers[1:] for p in layer.parameters()]]
    opt = case.build([*params[first], *params[1 - first]])
    (batch,) = problem.batches(1)

    def closure():
        layers[0].zero_grad()
        return backward_of(problem, batch)()

    with pytest.raises(RuntimeError, match="The closure does not zero the gradients"):
        opt.step(closure)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("climb", ["replay", "micro"])
@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zero"])
def test_a_backward_that_zeroes_a_part_is_refused_too(first, climb, set_to_none):
    problem = Problem()
    layers = [m for m in problem.model.modules() if any(True for _ in m.parameters(recurse=False))]
    params = [[*layers[0].parameters()], [p for layer in layers[1:] for p in layer.parameters()]]
    opt = SAM(SGD([*params[first], *params[1 - first]], lr=0.1), rho=0.1)

    def backward(batch):
        layers[0].zero_grad(set_to_none)
        return backward_of(problem, batch)()

    with pytest.raises(RuntimeError, match="The gradients of the micro-batches before were zeroed"):
        accumulated_step(opt, problem.batches(2), backward, climb=climb)


@over_two_passes
@pytest.mark.parametrize("zeroes", [True, False], ids=["to zero", "to none"])
def test_a_closure_may_zero_as_it_likes(case, zeroes):
    runs = []
    for set_to_none in (True, not zeroes):
        problem = Problem()
        opt = case.build(problem.model.parameters())
        for batch in problem.batches(4):

            def closure(batch=batch, opt=opt, problem=problem, set_to_none=set_to_none):
                opt.zero_grad(set_to_none)
                return backward_of(problem, batch)()

            opt.step(closure)
        runs.append(problem.flat())
    torch.testing.assert_close(*runs, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("case", "climb"),
    [(case, climb) for case in CLIMBING for climb in ("replay", "micro") if climb == "replay" or not case.blends],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zero"])
def test_a_backward_that_zeroes_is_refused_in_accumulated_steps(case, climb, set_to_none):
    problem, opt, batch = ready(case)
    before = weights(problem.model)

    def backward(batch):
        opt.zero_grad(set_to_none)
        return backward_of(problem, batch)()

    with pytest.raises(
        RuntimeError, match=r"gradients of the micro-batches before were zeroed. Leave zero_grad\(\) out"
    ):
        accumulated_step(opt, [batch, batch, batch], backward, climb=climb)
    assert same_bits(weights(problem.model), before)


@pytest.mark.parametrize("case", [case for case in CLIMBING if not case.blends], ids=lambda case: case.name)
@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zero"])
def test_backward_that_zeroes_what_was_accumulated_is_refused(case, set_to_none):
    problem, opt, batch = ready(case)
    opt.backward(backward_of(problem, batch))
    before = weights(problem.model)

    def zeroing():
        opt.zero_grad(set_to_none)
        return backward_of(problem, batch)()

    with pytest.raises(RuntimeError, match="were zeroed"):
        opt.backward(zeroing)
    assert same_bits(weights(problem.model), before)


@over_blends
@pytest.mark.parametrize("set_to_none", [True, False], ids=["none", "zero"])
def test_where_each_micro_batch_is_blended_by_itself_zeroing_does_no_harm(case, set_to_none):
    runs = []
    for zeroes in (True, False):
        problem, opt, batch = ready(case)

        def backward(batch, opt=opt, problem=problem, zeroes=zeroes):
            if zeroes:
                opt.zero_grad(set_to_none)
            return backward_of(problem, batch)()

        accumulated_step(opt, [batch[:5], batch[5:]], backward, climb="micro")
        runs.append(problem.flat())
    assert torch.equal(*runs)


@over_blends
def test_what_holds_gradients_in_some_steps_hides_no_closure_that_does_not_zero(case):
    """Gradients that nobody holds are let go of before the sharp pass, so that it begins without them."""
    problem = Problem()
    opt = case.build(problem.model.parameters())
    held = []

    def train():
        for i, batch in enumerate(problem.batches(5)):
            opt.zero_grad()

            def closure(batch=batch, i=i):
                loss = backward_of(problem, batch)()
                if i >= 3:
                    held.extend(p.grad for p in problem.model.parameters())
                return loss

            opt.step(closure)

    with pytest.raises(RuntimeError, match="The closure does not zero the gradients"):
        train()


# Parameters that share memory


def tied(kind):
    """Two parameters that share memory, and those that the loss is of."""
    memory = torch.arange(1.0, 13.0, dtype=torch.float64)
    if kind == "twins":
        return [Parameter(memory.clone()), Parameter(memory)], lambda ps: ps.append(Parameter(ps[1].data))
    cuts = {
        "overlapping": (memory[:8], memory[4:]),
        "inside": (memory, memory[3:5]),
        "transposed": (memory.view(3, 4), memory.view(3, 4).t()),
        "strided": (memory[::2], memory[::3]),
    }[kind]
    return [Parameter(cut) for cut in cuts], lambda ps: None


@over_climbing
@pytest.mark.parametrize("kind", ["twins", "overlapping", "inside", "transposed", "strided"])
@pytest.mark.parametrize("apart", [True, False], ids=["groups", "group"])
@over_doors
def test_parameters_that_share_memory_are_refused_before_anything_moves(case, kind, apart, door):
    params, finish = tied(kind)
    finish(params)
    groups = [{"params": [p]} for p in params] if apart else params
    opt = case.build(groups)
    before = [p.detach().clone() for p in params]

    def backward():
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    for p in params:
        p.grad = torch.ones_like(p)
    case.warm_up(opt)
    with pytest.raises(ValueError, match=r"shares memory with one of shape.*Tie modules by one parameter"):
        take(door, opt, backward)
    assert same_bits([p.detach() for p in params], before)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_is_twice_in_a_group_is_refused():
    w = Parameter(torch.tensor([3.0, 4.0]))
    opt = SAM(SGD([w, w], lr=0.1), rho=0.5)
    w.square().sum().backward()
    with pytest.raises(ValueError, match="is there twice"), opt.ascended():
        pass
    assert w.tolist() == [3.0, 4.0]


def test_memory_that_is_shared_later_is_noticed():
    a, b = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    opt = SAM(SGD([{"params": [a]}, {"params": [b]}], lr=0.0), rho=0.1)

    def backward():
        loss = a.square().sum() + b.square().sum()
        loss.backward()
        return loss

    take("step", opt, backward)
    b.data = a.data
    with pytest.raises(ValueError, match="shares memory"):
        take("step", opt, backward)
    assert a.tolist() == [1.0] * 3


def test_views_side_by_side_do_not_share():
    memory = torch.arange(1.0, 13.0)
    params = [Parameter(memory[:4]), Parameter(memory[4:8]), Parameter(memory[8::2]), Parameter(memory[9::2])]
    opt = SAM(SGD(params, lr=0.1), rho=0.1)
    sum(p.square().sum() for p in params).backward()
    before = memory.clone()
    with opt.ascended():
        assert not same_bits([memory], [before])
        sum(p.square().sum() for p in params).backward()
    assert same_bits([memory], [before])


def test_memory_that_is_shared_with_one_that_stays_comes_back():
    a = Parameter(torch.tensor([3.0, 4.0]))
    b = Parameter(a.data)
    opt = SAM(SGD([{"params": [a]}, {"params": [b], "rho": 0.0}], lr=0.0), rho=0.5)
    for _ in range(100):
        take("step", opt, lambda: (a.square().sum() + b.square().sum()).backward())
    assert a.tolist() == [3.0, 4.0]


# After a failure the next step works


@over_climbing
@over_paths
@over_doors
@pytest.mark.parametrize("at", [0, 1, 3])
def test_no_memory_for_the_copy_once_is_no_harm(case, foreach, door, at, monkeypatch):
    problem, opt, batch = ready(case, foreach)
    other, theirs, _ = ready(case, foreach)
    opt._anchor.release()
    before = weights(problem.model)
    plain, calls = torch.empty_like, []

    def scarce(*args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            raise torch.OutOfMemoryError("no memory")
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch, "empty_like", scarce)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        take(door, opt, backward_of(problem, batch))
    monkeypatch.undo()
    assert same_bits(weights(problem.model), before)
    take(door, opt, backward_of(problem, batch))
    take(door, theirs, backward_of(other, batch))
    if not case.remembers and not case.draws:
        assert same_bits(weights(problem.model), weights(other.model))


@over_climbing
@over_doors
@pytest.mark.parametrize("where", ["norm", "copy_", "move_"])
def test_a_failing_kernel_once_is_no_harm(case, door, where, monkeypatch):
    problem, opt, batch = ready(case, True)
    before = weights(problem.model)
    with monkeypatch.context() as patch:

        def fails(self, *args, **kwargs):
            patch.undo()
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(steppe._tensors.Ops, where, fails)
        try:
            take(door, opt, backward_of(problem, batch))
        except torch.OutOfMemoryError:
            assert same_bits(weights(problem.model), before)
    take(door, opt, backward_of(problem, batch))
    assert not same_bits(weights(problem.model), before)
    assert torch.is_grad_enabled()


# Copies inside


@over_climbing
def test_a_copy_that_is_made_at_w_and_delta_works(case):
    problem, opt, batch = ready(case)
    through = []
    backward = backward_of(problem, batch)
    if case.clean:
        backward()
    with opt.ascended():
        through.append(copy.deepcopy((opt, problem)))
        backward()
    opt.base.step()
    ((other, theirs),) = through
    for each, its in ((opt, problem), (other, theirs)):
        before = weights(its.model)
        each.step(its.closure(each, batch))
        its.model.zero_grad()
        take("ascended", each, backward_of(its, batch))
        assert not same_bits(weights(its.model), before)


# Accumulation


@pytest.mark.parametrize("climb", ["replay", "micro"])
@pytest.mark.parametrize("rho", [0.1, 0.0])
@pytest.mark.parametrize(
    ("returned", "expected"),
    [(lambda loss: loss.item(), 3.0), (lambda loss: loss, 3.0), (lambda loss: None, None), (lambda loss: 1, 2)],
    ids=["float", "tensor", "none", "int"],
)
def test_a_backward_may_return_a_number_or_nothing(climb, rho, returned, expected):
    w = Parameter(torch.tensor([1.0, 2.0]))
    opt = SAM(SGD([w], lr=0.1), rho=rho)

    def backward(i):
        loss = w[i].sum()
        loss.backward()
        return returned(loss)

    loss = accumulated_step(opt, [0, 1], backward, climb=climb)
    assert loss is None if expected is None else loss.item() == expected


def test_accumulated_steps_of_a_plain_optimizer_are_refused():
    opt = SGD([Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(TypeError, match="must be a sharpness-aware optimizer, got SGD"):
        accumulated_step(opt, [0], lambda batch: None)


# The kept copy


@over_climbing
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@over_paths
def test_the_copy_is_made_once(case, dtype, foreach, monkeypatch):
    torch.manual_seed(0)
    params = [Parameter(torch.randn(4, 3).to(dtype)), Parameter(torch.randn(3).to(dtype))]
    opt = case.build(params, foreach=foreach)

    def backward():
        loss = sum((p * p.conj()).real.float().sum() if p.is_complex() else p.float().square().sum() for p in params)
        loss.backward()
        return loss

    for _ in range(case.first + 1):
        take("step", opt, backward)
    where = [x.data_ptr() for x in opt._anchor._copies]
    assert where
    for _ in range(case.every + 1):
        take("step", opt, backward)
        assert [x.data_ptr() for x in opt._anchor._copies] == where


# Gradients that lie in one memory


@over_climbing
@over_paths
@pytest.mark.parametrize("kind", ["shared", "expanded", "overlapping"])
def test_gradients_in_one_memory_are_those_in_their_own(case, foreach, kind):
    torch.manual_seed(0)
    start = torch.randn(2, 6, dtype=torch.float64)
    runs = []
    for apart in (True, False):
        params = [Parameter(x.clone()) for x in start]
        opt = case.build(params, foreach=foreach)

        def backward(params=params, apart=apart):
            with torch.no_grad():
                x = params[0] ** 3 + params[1]
                if kind == "expanded":
                    grads = [x.sum().expand(6), x.mean().expand(6)]
                elif kind == "shared":
                    grads = [x, x]
                else:
                    both = torch.cat([x, x[:2]])
                    grads = [both[:6], both[2:]]
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone() if apart else g
            return x.sum()

        for _ in range(4):
            take("ascended", opt, backward)
        runs.append(torch.cat([p.detach() for p in params]))
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", [GSAM, LookSAM, PGN])
@over_paths
def test_two_parameters_with_one_gradient(method, foreach):
    """delta = rho g / (sqrt(2) |g|) each; what is written for one must not be seen by the other."""
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    params = [Parameter(start.clone()), Parameter(start.clone())]
    opt = method(SGD(params, lr=1.0), rho=0.5, foreach=foreach)

    def backward():
        g = params[0].detach() ** 3
        for p in params:
            p.grad = g

    backward()
    with opt.ascended():
        backward()
    clean = start**3
    sharp = (start + 0.5 * clean / (math.sqrt(2) * clean.norm())) ** 3
    g, s = torch.cat([clean, clean]), torch.cat([sharp, sharp])
    expected = {
        GSAM: s - 0.4 * (g - (g @ s) / (s @ s) * s),
        LookSAM: s,
        PGN: 0.2 * g + 0.8 * s,
    }[method]
    torch.testing.assert_close(torch.cat([p.grad for p in params]), expected, rtol=1e-12, atol=1e-13)


@over_climbing
@pytest.mark.parametrize("rho", [0.1, 0.0])
def test_gradients_in_one_memory_add_up_as_those_in_their_own(case, rho):
    runs = []
    for apart in (True, False):
        params = [Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)) for _ in range(2)]
        opt = case.build(params, rho=rho)
        for _ in range(4):
            opt.zero_grad()
            for k in range(3):

                def backward(params=params, k=k, apart=apart):
                    x = params[0].detach() ** 3 + k
                    for p in params:
                        g = x.clone() if apart else x
                        p.grad = g if p.grad is None else p.grad + g

                opt.backward(backward)
            opt.base.step()
        runs.append(torch.cat([p.detach() for p in params]))
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-13)


# LookSAM and rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 1000, 100000, 3000000])
@over_paths
def test_rounding_is_no_direction(dtype, n, foreach):
    """f = |w|^2 / 2: s is parallel to g, and steps between climbs are the base's own."""
    torch.manual_seed(0)
    w = Parameter(torch.randn(n, dtype=dtype))
    opt = LookSAM(SGD([w], lr=0.1), rho=0.1, k=3, alpha=0.2, foreach=foreach)

    def backward():
        loss = w.square().sum() / 2
        loss.backward()
        return loss

    take("step", opt, backward)
    for _ in range(2):
        before = w.detach().clone()
        take("step", opt, backward)
        torch.testing.assert_close(w.detach(), 0.9 * before, rtol=1e-6, atol=1e-7)


# Blends and groups that stay


def test_a_blend_of_clean_gradients_alone_is_the_base_in_groups_that_stay_too():
    """w^2 v^2 / 2 at (1, 1) with lr 1: both gradients are 1."""
    w, v = (Parameter(torch.tensor([1.0], dtype=torch.float64)) for _ in range(2))
    opt = PGN(SGD([{"params": [w]}, {"params": [v], "rho": 0.0}], lr=1.0), rho=0.1, alpha=0.0)
    take("step", opt, lambda: ((w * v) ** 2 / 2).sum().backward())
    assert (w.item(), v.item()) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["gsam", "pgn", "looksam"])
@over_paths
def test_blends_mix_groups_that_stay_with_the_numbers_of_those_that_climb(name, foreach):
    case = next(case for case in BLENDS if case.name == name)
    torch.manual_seed(0)
    start = torch.randn(2, 3, dtype=torch.float64)
    w, v = (Parameter(x.clone()) for x in start)
    opt = case.make(
        SGD([{"params": [v], "rho": 0.0}, {"params": [w]}], lr=1.0), **{**case.kwargs, "rho": 0.3}, foreach=foreach
    )

    def gradients(w, v):
        w, v = (x.detach().requires_grad_() for x in (w, v))
        return torch.autograd.grad((w**2 * v).sum() + (v**3 * w).sum(), (w, v))

    def backward():
        ((w**2 * v).sum() + (v**3 * w).sum()).backward()

    g = gradients(*start)
    s = gradients(start[0] + 0.3 * g[0] / g[0].norm(), start[1])
    backward()
    with opt.ascended():
        backward()
    alpha = case.kwargs["alpha"]
    if name == "gsam":
        parallel = (g[0] @ s[0]) / (s[0] @ s[0])
        expected = [y - alpha * (x - parallel * y) for x, y in zip(g, s, strict=True)]
    elif name == "pgn":
        expected = [(1 - alpha) * x + alpha * y for x, y in zip(g, s, strict=True)]
    else:
        expected = list(s)
    torch.testing.assert_close([w.grad, v.grad], expected, rtol=1e-11, atol=1e-13)
    if name != "looksam":
        return
    with torch.no_grad():
        for p in (w, v):
            p.sub_(p.grad)
    opt.state["engine"]["step"] = 1  # the step was taken by hand
    opt._due.forget()
    now = w.detach().clone(), v.detach().clone()
    opt.zero_grad()
    backward()
    with opt.ascended() as climbs:
        assert not climbs
    parallel = (g[0] @ s[0]) / (g[0] @ g[0])
    rest = [y - parallel * x for x, y in zip(g, s, strict=True)]
    clean = gradients(*now)
    expected = [x + alpha * clean[0].norm() / rest[0].norm() * r for x, r in zip(clean, rest, strict=True)]
    torch.testing.assert_close([w.grad, v.grad], expected, rtol=1e-10, atol=1e-12)


@over_blends
@over_paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_groups_that_stay_may_be_of_another_kind(case, foreach, dtype):
    """Blended as by themselves: what is blended in a group that stays is the same with the same numbers."""
    found = []
    for kind in (dtype, torch.complex128 if dtype.is_complex else torch.float64):
        torch.manual_seed(0)
        w, v = (Parameter(torch.randn(5, dtype=torch.float64)) for _ in range(2))
        w = Parameter(w.detach().float())
        v = Parameter(v.detach().bfloat16().to(kind))
        opt = case.make(
            SGD([{"params": [v], "rho": 0.0}, {"params": [w]}], lr=0.1), **{**case.kwargs, "rho": 0.3}, foreach=foreach
        )
        for _ in range(3):

            def closure(v=v, w=w, opt=opt):
                opt.zero_grad()
                real = torch.view_as_real(v).sum(-1) if v.is_complex() else v
                loss = (w**2 * real.float()).sum() + (real.float() ** 3 * w).sum()
                loss.backward()
                return loss

            opt.step(closure)
        found.append([w.detach(), v.detach().to(torch.complex128)])
    near = 0.1 if dtype is torch.bfloat16 else 1e-5
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=near, atol=near)


@over_blends
def test_sparse_gradients_of_groups_that_stay_are_not_blended(case):
    table = torch.nn.Embedding(5, 3, sparse=True)
    w = Parameter(torch.ones(3))
    opt = case.make(
        SGD([{"params": table.parameters(), "rho": 0.0}, {"params": [w]}], lr=0.1), **{**case.kwargs, "rho": 0.3}
    )

    def closure():
        opt.zero_grad()
        loss = (table(torch.tensor([1, 3])) @ w).square().sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"has a sparse gradient, which cannot be blended.*a method without a blend"):
        opt.step(closure)
    assert w.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("door", "scales"),
    [
        *[(door, (1, 1, 1, 1)) for door in DOORS],
        # Where the host knows the scale of the loss.
        *[("ascended", scales) for scales in ((1024, 1024, 256, 256), (2.0**16, 2.0**16, 1, 1))],
    ],
    ids=str,
)
def test_looksam_remembers_of_its_last_climb_alone(door, scales):
    """A parameter without a gradient there has no part in it, whatever was remembered of it before."""
    torch.manual_seed(0)
    a, b = (Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
    opt = LookSAM(SGD([a, b], lr=0.1), rho=0.3, k=2, alpha=0.5)

    def f(a, b, both):
        return (a**2 + a**4 / 4).sum() + (((a * b) ** 2).sum() + (b**4).sum() if both else 0 * a.sum())

    def gradients(x, y, both):
        x, y = (z.detach().clone().requires_grad_() for z in (x, y))
        used = [x, y] if both else [x]
        return [*torch.autograd.grad(f(x, y, both), used), torch.zeros(3, dtype=torch.float64)][:2]

    plain, v, size = [a.detach().clone(), b.detach().clone()], None, 0.0
    for step, (scale, both) in enumerate(zip(scales, (True, True, False, True), strict=True)):
        g = gradients(*plain, both)
        norm = torch.cat(g).norm()
        if step % 2 == 0:
            s = gradients(*[w + 0.3 * x / norm for w, x in zip(plain, g, strict=True)], both)
            flat, clean = torch.cat(s), torch.cat(g)
            v = [y - (flat @ clean) / (clean @ clean) * x for x, y in zip(g, s, strict=True)]
            size, used = torch.cat(v).norm(), s
        else:
            used = [x + 0.5 * norm / size * r for x, r in zip(g, v, strict=True)]
        plain = [w - 0.1 * x for w, x in zip(plain, used, strict=True)]

        def backward(both=both, scale=scale):
            loss = f(a, b, both) * scale
            loss.backward()
            return loss

        if door == "ascended":
            opt.zero_grad()
            backward()
            with opt.ascended(scale):
                backward()
            for p in (a, b):
                p.grad = None if p.grad is None else p.grad / scale
            opt.base.step()
        else:
            take(door, opt, backward)
    torch.testing.assert_close([a.detach(), b.detach()], plain, rtol=1e-10, atol=1e-12)


# One rule for triggers that look at gradients


TRIGGERS = {
    "every": lambda: Every(2) & LargeGradient(8, early=0.3, late=-0.3, decay=0.6),
    "other way round": lambda: LargeGradient(8, early=0.3, late=-0.3, decay=0.6) & Every(2),
    "alone": lambda: LargeGradient(8, early=0.3, late=-0.3, decay=0.6),
}


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("case", [c for c in TWO_PASSES if c.wraps and c.every == 1], ids=lambda case: case.name)
def test_triggers_that_look_at_gradients_decide_alike_through_every_door(name, case):
    runs = []
    for door in DOORS:
        problem = Problem()
        opt = case.make(BASES[0].make(problem.model.parameters()), **case.kwargs)
        opt.trigger = TRIGGERS[name]()
        decided = []
        for batch in problem.batches(10):
            passes = []

            def backward(batch=batch, problem=problem, passes=passes):
                passes.append(1)
                return backward_of(problem, batch)()

            take(door, opt, backward)
            decided.append(len(passes))
        runs.append((decided, opt.state["shared"]["norms"]))
    assert len(set(runs[0][0])) == 2
    for run in runs[1:]:
        assert run[0] == runs[0][0]
        assert run[1] == pytest.approx(runs[0][1], rel=1e-12)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_part_for_the_climb_is_compared_with_parts(name):
    """The statistics are of ascent's gradients in every step, whether it climbs or not."""
    problem = Problem()
    opt = SAM(BASES[0].make(problem.model.parameters()), rho=0.1, trigger=TRIGGERS[name]())
    mean = 0.0
    for batch in problem.batches(8):
        w = problem.flat()

        def ascent(batch=batch):
            opt.zero_grad()
            return backward_of(problem, batch[:3])()

        opt.step(problem.closure(opt, batch), ascent=ascent)
        mean = 0.6 * mean + 0.4 * problem.gradient(w, batch[:3]).norm().item() ** 2
        assert opt.state["shared"]["norms"][0] == pytest.approx(mean, rel=1e-9)


# The range of gradients


@pytest.mark.parametrize("case", [c for c in CLIMBING if c.scale_free and not c.draws], ids=lambda case: case.name)
@over_paths
@pytest.mark.parametrize("size", [3e19, 1e30, 1e-25, 1e-30])
def test_large_and_small_gradients_climb_as_others_do(case, foreach, size):
    """A climb that does not depend on the scale of the loss is the same; the base is SGD, whose momentum does."""
    climbs = []
    for scale in (1.0, size):
        torch.manual_seed(0)
        params = [Parameter(torch.randn(4, 3)), Parameter(torch.randn(3))]
        opt = case.build(params, Base("sgd", lambda params, foreach: SGD(params, lr=0.1, momentum=0.9), None), foreach)
        start = [torch.randn_like(p) for p in params]

        def backward(params=params, start=start, scale=scale):
            for p, g in zip(params, start, strict=True):
                p.grad = g * scale

        if case.first:
            backward()
            case.warm_up(opt)
            opt.zero_grad()
        before = [p.detach().clone() for p in params]
        if case.clean:
            backward()
        with opt.ascended() as up:
            assert up
            climbs.append([p.detach() - w for p, w in zip(params, before, strict=True)])
            backward()
        assert same_bits([p.detach() for p in params], before)
        assert all(p.grad.isfinite().all() for p in params)
        if case.blends:
            torch.testing.assert_close([p.grad / scale for p in params], start, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(climbs[0], climbs[1], rtol=1e-3, atol=1e-6)
    assert all(x.any() for x in climbs[1])


@pytest.mark.parametrize("case", [c for c in CLIMBING if not c.scale_free], ids=lambda case: case.name)
@over_paths
@pytest.mark.parametrize("size", [3e19, 1e-25])
def test_large_and_small_gradients_are_no_nan(case, foreach, size):
    torch.manual_seed(0)
    params = [Parameter(torch.randn(4, 3)), Parameter(torch.randn(3))]
    opt = case.build(params, foreach=foreach, **({"lam": 1.0} if "lam" in case.kwargs else {}))
    for _ in range(3):

        def backward():
            for p in params:
                p.grad = torch.full_like(p, size)

        before = [p.detach().clone() for p in params]
        backward()
        with opt.ascended():
            backward()
        assert same_bits([p.detach() for p in params], before)
        assert all((p.grad == size).all() for p in params)


@over_two_passes
@pytest.mark.parametrize("grad_dtype", [torch.float16, torch.bfloat16])
@over_paths
def test_half_precision_gradients_of_full_weights_have_a_full_norm(case, grad_dtype, foreach):
    """4096 entries of 100: their squares do not fit into float16, nor does their sum."""
    climbs = []
    for dtype in (grad_dtype, torch.float32):
        w = Parameter(torch.linspace(0.5, 1.0, 4096))
        w.grad_dtype = dtype
        opt = case.build([w], foreach=foreach)

        def backward(w=w, dtype=dtype):
            w.grad = torch.linspace(64.0, 127.0, 4096).to(grad_dtype).to(dtype)

        before = w.detach().clone()
        backward()
        with opt.ascended():
            climbs.append(w.detach() - before)
            backward()
        assert w.grad.dtype is dtype
    torch.testing.assert_close(climbs[0], climbs[1], rtol=1e-4, atol=2e-7)
    assert climbs[0].any()


# Weights in half precision


@over_climbing
@over_doors
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_warned_of_once(case, door, dtype):
    torch.manual_seed(0)
    w = Parameter(torch.randn(64).to(dtype))
    opt = case.build([w])

    def backward():
        loss = w.float().square().sum()
        loss.backward()
        return loss

    for _ in range(case.first):
        take(door, opt, backward)
    with pytest.warns(UserWarning, match=rf"half precision \({dtype}\).*Keep them in float32"):
        take(door, opt, backward)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(door, opt, backward)


@over_climbing
def test_weights_in_half_precision_that_do_not_climb_are_nobodys_business(case):
    w = Parameter(torch.randn(64).bfloat16())
    opt = case.build([w], rho=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(case.first + 1):
            take("step", opt, lambda: w.float().square().sum().backward())


@over_blends
@pytest.mark.parametrize("hold", [torch.utils.dlpack.to_dlpack, lambda g: (g, g.requires_grad), lambda g: g.view(-1)])
def test_clean_gradients_that_others_hold_stay_as_they_are(case, hold):
    torch.manual_seed(0)
    w = Parameter(torch.randn(5000))
    opt, held, copies = case.build([w]), [], []

    def closure():
        opt.zero_grad()
        loss = (w**4).sum()
        loss.backward()
        held.append(hold(w.grad))
        copies.append(w.grad.clone())
        return loss

    opt.step(closure)  # only then it is known that the closure zeroes
    for _ in range(6):
        held.clear()
        copies.clear()
        opt.step(closure)
        if len(held) == 2:  # the first is clean, and the last is that which is handed on
            clean = held[0]
            clean = clean[0] if isinstance(clean, tuple) else clean
            clean = clean if isinstance(clean, torch.Tensor) else torch.utils.dlpack.from_dlpack(clean)
            assert torch.equal(clean.view(-1), copies[0])
            break
    else:
        pytest.fail("it never climbed")


@over_climbing
@pytest.mark.parametrize("climb", ["step", "replay"])
def test_a_sharp_pass_begins_without_the_memory_of_gradients_that_nobody_needs(case, climb):
    problem, opt, batch = ready(case)
    left = []

    def backward(_=None):
        if climb == "step":
            opt.zero_grad()
        left.append([gradient() is not None for gradient in made])
        loss = problem.loss(batch)
        loss.backward()
        made[:] = [weakref.ref(p.grad) for p in problem.model.parameters()]
        return loss

    made = []
    opt.step(backward) if climb == "step" else accumulated_step(opt, [batch], backward)
    assert len(left) == (2 if case.clean else 1)
    assert not any(left[-1]) or case.blends
