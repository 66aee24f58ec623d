"""Methods without a clean pass: what they promise besides what all do."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_

import reference
from cases import BASES, CASES
from problems import Problem, same_bits, through_ascended, weights
from steppe import MSAM, SAM, AMSGrad, SharpnessAware, accumulated_step
from steppe.ascents import Adaptive, Momentum, Unnormalized
from steppe.blends import Weighted
from steppe.passes import frozen_norm_stats
from steppe.triggers import Every, LargeGradient

ALONE = [case for case in CASES if not case.clean]
over_alone = pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
over_doors = pytest.mark.parametrize("door", ["step", "ascended", "backward", "accumulated_step"])


def sgd(params, **options):
    return torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **options})


def take(door, opt, backward):
    """One step through a door."""
    if door == "step":

        def closure():
            opt.zero_grad()
            return backward()

        return opt.step(closure)
    if door == "accumulated_step":
        return accumulated_step(opt, [None], lambda _: backward())
    opt.zero_grad()
    loss = opt.backward(backward) if door == "backward" else through_ascended(opt, backward)[0]
    opt.base.step()
    return loss


def backward_of(problem, batch, calls=None):
    def backward():
        if calls is not None:
            calls.append(weights(problem.model))
        loss = problem.loss(batch)
        loss.backward()
        return loss

    return backward


# One pass, and weights at rest


@over_doors
@over_alone
def test_each_step_has_one_pass_at_w_and_delta_and_rests_at_w(case, door):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    at_rest = []
    opt.base.register_step_pre_hook(lambda *_: at_rest.append(weights(problem.model)))
    for step, batch in enumerate(problem.batches(4)):
        before, calls = weights(problem.model), []
        take(door, opt, backward_of(problem, batch, calls))
        assert len(calls) == 1
        assert same_bits(calls[0], before) == (step == 0)
        assert same_bits(at_rest[-1], before)


@over_doors
@over_alone
def test_all_doors_lead_to_the_same_weights(case, door):
    ours, theirs = Problem(), Problem()
    opt, other = (case.build(p.model.parameters()) for p in (ours, theirs))
    for batch in ours.batches(8):
        opt.step(ours.closure(opt, batch))
        take(door, other, backward_of(theirs, batch))
    assert same_bits(ours.model.parameters(), theirs.model.parameters())


@over_alone
def test_a_loop_with_two_passes_takes_the_same_steps(case):
    """A clean pass that nobody needs changes nothing, where the sharp one is left out too."""
    ours, theirs = Problem(), Problem()
    opt, host = (case.build(p.model.parameters()) for p in (ours, theirs))
    for batch in ours.batches(6):
        opt.step(ours.closure(opt, batch))
        host.zero_grad()
        theirs.loss(batch).backward()
        with host.ascended() as climbs:
            if climbs:
                theirs.loss(batch).backward()
        host.base.step()
    assert same_bits(ours.model.parameters(), theirs.model.parameters())


def test_checkpoints_and_evaluation_between_steps_see_w():
    """The weights after a step are those that the base made of ``w``, and are what the model uses."""
    problem = Problem()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.5)
    rows = reference.msam(
        problem.flat(), problem.gradient, problem.batches(6), reference.sgd(0.05, momentum=0.9), rho=0.5
    )
    again = Problem()
    for batch, w in zip(again.batches(6), rows, strict=True):
        opt.step(problem.closure(opt, batch))
        saved = torch.cat([value.flatten() for value in problem.model.state_dict().values()])
        torch.testing.assert_close(saved, w, rtol=0, atol=1e-13)
        again.model.load_state_dict(problem.model.state_dict())
        assert torch.equal(problem.model(problem.x), again.model(problem.x))


@over_alone
def test_any_number_of_groups_is_one_norm(case):
    one, many = Problem(), Problem()
    opt = case.build(one.model.parameters())
    other = case.build([{"params": [p]} for p in many.model.parameters()])
    for batch in one.batches(10):
        opt.step(one.closure(opt, batch))
        other.step(many.closure(other, batch))
    assert same_bits(one.model.parameters(), many.model.parameters())


@over_alone
def test_groups_without_a_radius_do_not_count(case):
    problem = Problem()
    first, *rest = problem.model.parameters()
    opt = case.build([{"params": [first]}, {"params": rest, "rho": 0.0}])
    for batch in problem.batches(3):
        take("step", opt, backward_of(problem, batch))
    before, moved = weights(problem.model), []
    take("step", opt, lambda: moved.append(weights(problem.model)) or backward_of(problem, batch)())
    delta = moved[0][0] - before[0]
    assert same_bits(moved[0][1:], before[1:])
    if case.kwargs.get("eta") is not None:
        delta = delta / (before[0].abs() + case.kwargs["eta"])
    assert delta.norm().item() == pytest.approx(case.kwargs["rho"], rel=1e-9)


# The base


BASES_WITH_MOMENTUM = {
    "SGD, Nesterov": lambda p: sgd(p, nesterov=True),
    "SGD, dampened": lambda p: sgd(p, dampening=0.5),
    "SGD, maximize": lambda p: sgd(p, lr=1e-3, maximize=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9),
    "AMSGrad": lambda p: AMSGrad(p, lr=0.01),
}


@pytest.mark.parametrize("name", BASES_WITH_MOMENTUM)
def test_other_bases_against_a_loop_by_hand(name):
    """The base itself steps, at ``w``, along the gradient that a plain loop found at ``w - rho m / ||m||``."""
    ours, plain = Problem(), Problem()
    opt, base = (
        make(BASES_WITH_MOMENTUM[name](p.model.parameters()))
        for make, p in ((lambda b: MSAM(b, rho=0.1), ours), (lambda b: b, plain))
    )
    params = list(plain.model.parameters())
    for step, batch in enumerate(ours.batches(8)):
        opt.step(ours.closure(opt, batch))
        w = plain.flat()
        if step:
            held = [base.state[p] for p in params]
            m = torch.cat([memory.get("momentum_buffer", memory.get("exp_avg")).flatten() for memory in held])
            w = w - 0.1 * m / m.norm()
        pieces = plain.gradient(w, batch).split([p.numel() for p in params])
        for p, g in zip(params, pieces, strict=True):
            p.grad = g.view_as(p).clone()
        base.step()
        torch.testing.assert_close(ours.flat(), plain.flat(), rtol=0, atol=1e-12)


WITHOUT = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1), "SGD is 0 in param group 0. Use for example SGD(params, lr=0.1, "),
    "a group of SGD": (
        lambda p: sgd([{"params": p[:1]}, {"params": p[1:], "momentum": 0.0}]),
        "SGD is 0 in param group 1.",
    ),
    "AdamW": (lambda p: torch.optim.AdamW(p, betas=(0.0, 0.9)), "AdamW is 0 in param group 0."),
    "RMSprop": (lambda p: torch.optim.RMSprop(p), "RMSprop is 0 in param group 0."),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_momentum_of_zero_is_refused_at_once(name):
    make, message = WITHOUT[name]
    base = make(list(Problem().model.parameters()))
    with pytest.raises(ValueError, match="The base must keep a momentum to climb along, but that of ") as error:
        MSAM(base)
    assert message in str(error.value)
    assert "rho" not in base.defaults
    SAM(base)  # it was left as it was


@pytest.mark.parametrize("door", ["step", "will_climb"])
@pytest.mark.parametrize("make", [torch.optim.Adagrad, torch.optim.ASGD])
def test_a_base_without_a_momentum_is_refused_once_it_has_a_state(door, make):
    problem = Problem()
    opt = MSAM(make(problem.model.parameters(), lr=0.01), rho=0.1)
    first, second = problem.batches(2)
    if not opt.base.state:
        opt.step(problem.closure(opt, first))
    before = weights(problem.model)
    with pytest.raises(RuntimeError) as error:
        opt.step(problem.closure(opt, second)) if door == "step" else opt.will_climb()
    assert same_bits(weights(problem.model), before)
    assert str(error.value) == (
        "The base has no momentum to climb along: its state holds neither 'momentum_buffer' nor 'exp_avg', but "
        f"{', '.join(map(repr, opt.base.state[problem.model[0].bias]))}. Use SGD with momentum, AdamW, or another base "
        "that keeps one."
    )


@pytest.mark.parametrize(
    "part",
    [{"trigger": LargeGradient(10)}, {"trigger": Every(2) & LargeGradient(10)}, {"blend": Weighted(0.5)}],
    ids=["trigger", "both", "blend"],
)
def test_parts_that_look_at_the_clean_gradient_are_refused(part):
    message = (
        f"{type(*part.values()).__name__} looks at the clean gradient, but Momentum climbs without one. Leave it out"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        SharpnessAware(sgd(Problem().model.parameters()), ascent=Momentum(), rho=0.1, **part)


def test_a_closure_of_its_own_for_the_climb_is_refused():
    problem = Problem()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.1)
    closure, before = problem.closure(opt, problem.batches(1)[0]), weights(problem.model)
    with pytest.raises(TypeError, match=re.escape("MSAM climbs without a gradient: leave ascent= out.")):
        opt.step(closure, ascent=closure)
    assert same_bits(weights(problem.model), before)


# When it climbs


def test_it_says_whether_it_will_climb():
    problem = Problem()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.1, warmup=2)
    said = []
    for batch in problem.batches(4):
        said.append(opt.will_climb())
        opt.step(problem.closure(opt, batch))
    assert said == [False, False, True, True]
    assert MSAM(sgd(Problem().model.parameters()), rho=0.1).will_climb() is False  # no momentum
    opt.param_groups[0]["rho"] = 0.0
    assert opt.will_climb() is False


def test_a_warm_up_is_the_base_and_its_count_survives_a_checkpoint():
    ours, plain = Problem(), Problem()
    opt, base = MSAM(sgd(ours.model.parameters()), rho=0.1, warmup=5), sgd(plain.model.parameters())
    batches = ours.batches(8)
    for batch in batches[:3]:
        opt.step(ours.closure(opt, batch))
        base.step(plain.closure(base, batch))
    other = MSAM(sgd(ours.model.parameters()), rho=0.1, warmup=5)
    other.load_state_dict(opt.state_dict())
    same = []
    for batch in batches[3:]:
        other.step(ours.closure(other, batch))
        base.step(plain.closure(base, batch))
        same.append(same_bits(ours.model.parameters(), plain.model.parameters()))
    assert same == [True, True, False, False, False]


@over_paths
@pytest.mark.parametrize("shape", [Unnormalized(), Adaptive(0.1)], ids=["unnormalised", "adaptive"])
def test_momentum_takes_any_shape(shape, foreach):
    problem = Problem()
    opt = SharpnessAware(sgd(problem.model.parameters()), ascent=Momentum(shape), rho=0.1, foreach=foreach)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))
    w = problem.flat()
    m = torch.cat([opt.base.state[p]["momentum_buffer"].flatten() for p in problem.model.parameters()])
    t = w.abs() + 0.1
    expected = m if isinstance(shape, Unnormalized) else t * t * m / (t * m).norm()
    with opt.ascended():
        torch.testing.assert_close(problem.flat() - w, -0.1 * expected, rtol=0, atol=1e-14)
        problem.loss(batch).backward()


def test_parameters_without_momentum_or_frozen_stay():
    problem = Problem()
    first, second, *_ = problem.model.parameters()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.1)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    second.grad = None
    opt.base.step()
    first.requires_grad_(False)
    before = weights(problem.model)
    with opt.ascended() as climbs:
        assert climbs
        moved = [not torch.equal(p, w) for p, w in zip(problem.model.parameters(), before, strict=True)]
        problem.loss(batch).backward()
    assert moved == [False, False, True, True]


# Gradients of no, and of another, step


@over_doors
@pytest.mark.parametrize("climbs", [True, False])
def test_a_pass_without_backward_is_an_error_and_takes_no_old_gradient(door, climbs):
    problem = Problem()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.1, warmup=0 if climbs else 9)
    first, second = problem.batches(2)
    take("step", opt, backward_of(problem, first))
    before = weights(problem.model)
    assert all(p.grad is not None for p in problem.model.parameters())  # they lie there still
    with pytest.raises(RuntimeError, match=r"No parameter has a gradient after the sharp pass\. Did it call"):
        # Not zeroed by the closure either.
        opt.step(lambda: problem.loss(second)) if door == "step" else take(door, opt, lambda: problem.loss(second))
    assert same_bits(weights(problem.model), before)


@pytest.mark.parametrize("climbs", [True, False])
def test_an_exception_does_not_bring_old_gradients_back(climbs):
    problem = Problem()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.1, warmup=0 if climbs else 9)
    first, second = problem.batches(2)
    take("step", opt, backward_of(problem, first))
    before = weights(problem.model)
    with pytest.raises(ZeroDivisionError), opt.ascended():
        raise ZeroDivisionError
    assert all(p.grad is None for p in problem.model.parameters())
    assert same_bits(weights(problem.model), before)
    take("ascended", opt, backward_of(problem, second))
    assert not same_bits(weights(problem.model), before)


@over_paths
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_momentum_that_is_not_finite_is_not_climbed_along(foreach, bad):
    problem = Problem()
    opt = MSAM(sgd(problem.model.parameters()), rho=0.1, foreach=foreach)
    first, second = problem.batches(2)
    take("step", opt, backward_of(problem, first))
    opt.base.state[problem.model[2].bias]["momentum_buffer"][0] = bad
    before = weights(problem.model)
    with opt.ascended() as climbs:
        assert climbs
        assert same_bits(weights(problem.model), before)
        problem.loss(second).backward()
    assert same_bits(weights(problem.model), before)
    assert all(p.grad.isfinite().all() for p in problem.model.parameters())  # they are as they were found


def test_sparse_gradients_are_the_bases_business_until_there_is_a_sparse_momentum():
    embedding = nn.Embedding(5, 2, sparse=True)
    opt = MSAM(sgd(embedding.parameters()), rho=0.1)

    def backward():
        loss = embedding(torch.tensor([1, 2])).square().sum()
        loss.backward()
        return loss

    take("step", opt, backward)
    before = weights(embedding)
    with pytest.raises(TypeError, match=r"shape \(5, 2\) has a sparse gradient"):
        take("step", opt, backward)
    assert same_bits(weights(embedding), before)


# Hosts


@over_alone
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
@pytest.mark.parametrize("max_norm", [None, 0.3], ids=["", "clip"])
def test_under_a_grad_scaler_with_clipping(case, base, max_norm):
    """The one pass is that in `ascended`; a power of two changes no bit."""
    scaled, plain = Problem(torch.float32), Problem(torch.float32)
    opt, other = (case.build(p.model.parameters(), base) for p in (scaled, plain))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for batch in scaled.batches(8):
        opt.base.zero_grad()
        with opt.ascended():
            scaler.scale(scaled.loss(batch)).backward()
        if max_norm:
            scaler.unscale_(opt.base)
            clip_grad_norm_(scaled.model.parameters(), max_norm)
        scaler.step(opt.base)
        scaler.update()
        other.base.zero_grad()
        with other.ascended():
            plain.loss(batch).backward()
        if max_norm:
            clip_grad_norm_(plain.model.parameters(), max_norm)
        other.base.step()
    assert scaler.get_scale() == 2.0**12
    assert same_bits(scaled.model.parameters(), plain.model.parameters())


@over_alone
def test_micro_batches_share_the_climb(case):
    """The momentum does not change within a step: one climb or one for each, it is the same, and one pass for each."""
    runs, calls = [], []
    for climb in ("replay", "micro"):
        problem = Problem()
        opt = case.build(problem.model.parameters())

        def backward(part, problem=problem):
            calls.append(problem.flat())
            loss = problem.loss(part) / 4
            loss.backward()
            return loss

        for batch in problem.batches(5):
            calls.clear()
            accumulated_step(opt, batch.chunk(4), backward, climb=climb)
            assert len(calls) == 4
            assert same_bits(calls, calls[:1] * 4)
        runs.append(weights(problem.model))
    assert same_bits(*runs)


@over_doors
@over_alone
def test_batch_norm_sees_each_batch_once_whatever_hosts_register(case, door):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    opt = case.build(model.parameters())
    opt.around_sharp_pass(lambda: frozen_norm_stats(model))
    entered, free = [], copy.deepcopy(model)

    class Noted:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            pass

    opt.around_sharp_pass(Noted, also_single=True)
    for step in range(4):
        x = torch.randn(6, 5)

        def backward(x=x):
            free.load_state_dict(model.state_dict())
            free(x)  # what one pass at these weights makes of the statistics
            loss = model(x).square().mean()
            loss.backward()
            return loss

        take(door, opt, backward)
        assert model[1].num_batches_tracked.item() == step + 1
        assert torch.equal(model[1].running_mean, free[1].running_mean)
        assert len(entered) == step  # not at the first step, which does not climb


def test_only_is_for_methods_with_two_passes_too():
    problem, entered = Problem(), []
    opt = SAM(sgd(problem.model.parameters()), rho=0.1)

    class Noted:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            pass

    opt.around_sharp_pass(Noted, also_single=True)
    opt.around_sharp_pass(Noted)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))
    assert len(entered) == 2


def test_one_autocast_around_the_step_uses_no_cast_of_other_weights():
    runs = []
    for around in (True, False):
        problem = Problem(torch.float32)
        opt = MSAM(sgd(problem.model.parameters()), rho=0.5)
        first, second = problem.batches(2)
        opt.step(problem.closure(opt, first))  # now there is a momentum
        half = torch.autocast("cpu", dtype=torch.bfloat16)
        if around:
            with half:
                problem.model(problem.x)  # casts of w are kept
                opt.step(problem.closure(opt, second))
                out = problem.model(problem.x)
        else:
            with half:
                problem.model(problem.x)

            def closure(opt=opt, problem=problem, second=second, half=half):
                opt.zero_grad()
                with half:
                    loss = problem.loss(second)
                loss.backward()
                return loss

            opt.step(closure)
            with half:
                out = problem.model(problem.x)
        runs.append([*weights(problem.model), out.detach()])
    assert same_bits(*runs)
