"""Schedules of numbers in the parameter groups, and torch's own learning rate schedulers around a climbing optimizer."""

from __future__ import annotations

import copy
import io
import math
import re
from functools import partial

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, PolynomialLR

from problems import Problem, same_bits, weights
from steppe import ASAM, SAM, ParamGroupSchedule, ProportionalToLR

STEPS = 8
BASES = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: AdamW(params, lr=1e-2),
}
over_bases = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
over_ends = pytest.mark.parametrize("end", ["opt", "base"])


class Fade:
    """A schedule that is an object."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t):
        return self.rate**t


def fade(t):
    return 0.7**t


def two_groups(problem):
    first, *rest = problem.model.parameters()
    return [{"params": [first]}, {"params": rest}]


def through_disk(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def sgd(lr=0.1, **group):
    return SGD([{"params": [Parameter(torch.ones(2))], **group}], lr=lr)


def values(optimizer, key):
    return [group[key] for group in optimizer.param_groups]


# ParamGroupSchedule


@over_ends
@pytest.mark.parametrize("schedules", [fade, [fade, lambda t: 1 / (t + 1)]], ids=["one", "list"])
def test_on_lr_it_is_lambda_lr_bit_for_bit(end, schedules):
    runs = []
    for make in (lambda o, f: ParamGroupSchedule(o, "lr", f), LambdaLR):
        problem = Problem()
        opt = SAM(SGD(two_groups(problem), lr=0.05), rho=0.1)
        scheduler = make(opt if end == "opt" else opt.base, schedules)
        rates = [values(opt, "lr")]
        for batch in problem.batches(STEPS):
            opt.step(problem.closure(opt, batch))
            scheduler.step()
            rates.append(values(opt, "lr"))
        runs.append((rates, values(opt, "initial_lr"), weights(problem.model)))
    assert runs[0][:2] == runs[1][:2]
    assert same_bits(runs[0][2], runs[1][2])


@over_bases
@over_ends
@pytest.mark.parametrize("method", [SAM, ASAM])
def test_the_radius_of_each_step_is_what_the_schedule_says(method, base, end):
    runs = []
    for scheduled in (True, False):
        problem = Problem()
        opt = method(base(problem.model.parameters()), rho=0.2)
        if scheduled:
            schedule = ParamGroupSchedule(opt if end == "opt" else opt.base, "rho", fade)
        radii = []
        for t, batch in enumerate(problem.batches(STEPS)):
            if not scheduled:
                opt.param_groups[0]["rho"] = 0.2 * 0.7**t
            radii.append(opt.param_groups[0]["rho"])
            opt.step(problem.closure(opt, batch))
            if scheduled:
                schedule.step()
        runs.append((radii, weights(problem.model)))
    assert runs[0][0] == runs[1][0]
    assert len(set(runs[0][0])) == STEPS
    assert same_bits(runs[0][1], runs[1][1])


@pytest.mark.parametrize("key", ["lr", "momentum", "weight_decay", "dampening"])
def test_any_number_of_any_optimizer(key):
    opt = SGD([Parameter(torch.ones(2))], lr=0.1, momentum=0.9, weight_decay=1e-2, dampening=0.5)
    initial = opt.param_groups[0][key]
    schedule = ParamGroupSchedule(opt, key, fade)
    for t in range(4):
        assert opt.param_groups[0][key] == initial * 0.7**t
        assert schedule.get_last_value() == [initial * 0.7**t]
        assert opt.param_groups[0][f"initial_{key}"] == initial
        schedule.step()


def test_none_and_added_groups_are_left_alone():
    problem = Problem()
    opt = SAM(SGD(two_groups(problem), lr=0.1), rho=0.4)
    schedule = ParamGroupSchedule(opt, "rho", [None, fade])
    opt.add_param_group({"params": [Parameter(torch.ones(1))], "rho": 0.3})
    schedule.step()
    assert values(opt, "rho") == [0.4, 0.4 * 0.7, 0.3]
    assert schedule.get_last_value() == [0.4, 0.4 * 0.7]
    assert "initial_rho" not in opt.param_groups[0]
    second = ParamGroupSchedule(opt, "rho", [None, None, fade])
    second.step()
    assert values(opt, "rho") == [0.4, 0.4 * 0.7, 0.3 * 0.7]


def test_none_leaves_a_group_alone_that_follows_its_learning_rate():
    follow = ProportionalToLR(0.5, 0.0, 0.1, 0.0)
    first, *rest = Problem().model.parameters()
    opt = SAM(SGD([{"params": [first], "rho": follow}, {"params": rest}], lr=0.1), rho=0.2)
    ParamGroupSchedule(opt, "rho", [None, fade]).step()
    assert values(opt, "rho") == [0.5, 0.2 * 0.7]


@pytest.mark.parametrize("key", ["lr", "rho"])
def test_tensors_are_filled_in_place(key):
    opt = SAM(sgd(lr=torch.tensor(0.1)), rho=torch.tensor(0.1))
    held = opt.param_groups[0][key]
    schedule = ParamGroupSchedule(opt, key, fade)
    (before,) = schedule.get_last_value()
    schedule.step()
    assert opt.param_groups[0][key] is held
    assert held.item() == pytest.approx(0.07)
    assert before.item() == pytest.approx(0.1)
    assert opt.param_groups[0][f"initial_{key}"].item() == pytest.approx(0.1)


def test_values_stay_plain_numbers():
    class Numpyish(float):
        pass

    opt = sgd()
    ParamGroupSchedule(opt, "lr", lambda t: Numpyish(0.5))
    assert type(opt.param_groups[0]["lr"]) is float


@over_bases
@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("again", ["state", "last_epoch"])
def test_a_resumed_run_is_the_same_run(base, at, again):
    problem = Problem()
    batches = problem.batches(STEPS)
    opt = SAM(base(problem.model.parameters()), rho=0.2)
    schedule = ParamGroupSchedule(opt, "rho", fade)
    for t, batch in enumerate(batches):
        if t == at:
            saved = through_disk([problem.model.state_dict(), opt.state_dict(), schedule.state_dict()])
        opt.step(problem.closure(opt, batch))
        schedule.step()

    resumed = Problem(seed=1)
    resumed.x, resumed.y = problem.x, problem.y
    resumed.model.load_state_dict(saved[0])
    other = SAM(base(resumed.model.parameters()), rho=0.7)
    if again == "state":
        goes_on = ParamGroupSchedule(other, "rho", fade)
        goes_on.load_state_dict(saved[2])
        assert other.param_groups[0]["rho"] == 0.2 * 0.7**at
        other.load_state_dict(saved[1])
    else:
        other.load_state_dict(saved[1])
        goes_on = ParamGroupSchedule(other, "rho", fade, last_epoch=at - 1)
    assert goes_on.last_epoch == at
    assert goes_on.get_last_value() == saved[2]["last_values"]
    for batch in batches[at:]:
        other.step(resumed.closure(other, batch))
        goes_on.step()
    assert same_bits(weights(problem.model), weights(resumed.model))
    assert opt.param_groups[0]["rho"] == other.param_groups[0]["rho"]


def test_objects_are_saved_by_their_dict_and_functions_are_not():
    def build(rate):
        return ParamGroupSchedule(SGD(two_groups(Problem()), lr=1.0), "lr", [Fade(rate), partial(pow, 0.5)])

    one, other = build(0.5), build(0.9)
    one.step()
    state = through_disk(one.state_dict())
    assert state["schedules"] == [{"rate": 0.5}, {}]
    assert ParamGroupSchedule(sgd(), "lr", fade).state_dict()["schedules"] == [None]
    other.load_state_dict(state)
    other.step()
    assert values(other.optimizer, "lr") == [0.25, 0.25]
    assert state["schedules"] == [{"rate": 0.5}, {}]


@pytest.mark.parametrize("missing", ["schedules", "last_epoch", "initial_values", "last_values"])
def test_a_state_that_lacks_something_changes_nothing(missing):
    one, other = (ParamGroupSchedule(SGD(two_groups(Problem()), lr=1.0), "lr", [Fade(r), fade]) for r in (0.5, 0.9))
    one.step()
    state = one.state_dict()
    del state[missing]
    before = other.state_dict(), values(other.optimizer, "lr")
    with pytest.raises((KeyError, ValueError)):
        other.load_state_dict(state)
    assert (other.state_dict(), values(other.optimizer, "lr")) == before


def test_the_state_does_not_alias():
    opt = sgd(lr=torch.tensor(1.0))
    schedule = ParamGroupSchedule(opt, "lr", fade)
    state = schedule.state_dict()
    before = copy.deepcopy(state)
    schedule.step()
    schedule.load_state_dict(state)
    schedule.step()
    assert state == before
    assert schedule.get_last_value() == [torch.tensor(0.7)]


def shared():
    opt = SAM(SGD(two_groups(Problem()), lr=0.1), rho=torch.tensor(0.1))
    return ParamGroupSchedule(opt, "rho", [fade, None])


BAD = {
    "no optimizer": (
        lambda: ParamGroupSchedule([Parameter(torch.ones(1))], "lr", fade),
        TypeError,
        "optimizer must be an instance of torch.optim.Optimizer, got list.",
    ),
    "unknown key": (
        lambda: ParamGroupSchedule(AdamW([Parameter(torch.ones(1))]), "momentum", fade),
        KeyError,
        "param group 0 has no 'momentum'. It has: amsgrad, betas,",
    ),
    "not a number": (
        lambda: ParamGroupSchedule(AdamW([Parameter(torch.ones(1))]), "betas", fade),
        TypeError,
        "betas must be a number to be scheduled, got (0.9, 0.999) (param group 0).",
    ),
    "a switch": (
        lambda: ParamGroupSchedule(sgd(), "nesterov", fade),
        TypeError,
        "nesterov must be a number to be scheduled, got False (param group 0).",
    ),
    "rho follows lr": (
        lambda: ParamGroupSchedule(SAM(sgd(), rho=ProportionalToLR(0.5, 0.1, 0.1, 0.0)), "rho", fade),
        ValueError,
        "The rho of param group 0 follows its learning rate (ProportionalToLR) or the angle of its gradients (Angle); a second schedule would fight with it. "
        "Construct the optimizer with a number for rho, or leave this group alone with None.",
    ),
    "wrong length": (
        lambda: ParamGroupSchedule(sgd(), "lr", [fade, fade]),
        ValueError,
        "schedule must be one function, or a list with one per parameter group: got 2 for 1 groups. None in the list "
        "leaves a group alone.",
    ),
    "no function": (
        lambda: ParamGroupSchedule(sgd(), "lr", 0.5),
        TypeError,
        "schedule must be a function of t, or a list of functions and None, got 0.5.",
    ),
    "no function in the list": (
        lambda: ParamGroupSchedule(sgd(), "lr", [0.5]),
        TypeError,
        "schedule must be a function of t, or a list of functions and None, got 0.5.",
    ),
    "last_epoch": (
        lambda: ParamGroupSchedule(sgd(), "lr", fade, last_epoch=-2),
        ValueError,
        "last_epoch must be an int >= -1, got -2.",
    ),
    "nothing to go on from": (
        lambda: ParamGroupSchedule(SAM(sgd()), "rho", fade, last_epoch=3),
        KeyError,
        "param group 0 has no 'initial_rho', from which to go on at last_epoch=3. Load the optimizer's state first, or "
        "begin with last_epoch=-1.",
    ),
    "one tensor, two schedules": (
        shared,
        ValueError,
        'param groups 0 and 1 share one tensor as rho, but not one schedule. Give each its own: group["rho"] = '
        'group["rho"].clone().',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        make()


BAD_VALUES = {
    "negative rho": (
        "rho",
        -1.0,
        ValueError,
        "rho must be a finite number >= 0, but the schedule gives -1.0 times 0.1",
    ),
    "nan": ("lr", math.nan, ValueError, "lr must be a finite number, but the schedule gives nan times 0.1"),
    "infinite": ("rho", math.inf, ValueError, "rho must be a finite number >= 0, but the schedule gives inf times 0.1"),
    "not a number": ("lr", "half", TypeError, "schedule must return a number, got 'half'"),
    "nothing": ("lr", None, TypeError, "schedule must return a number, got None"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("at", [0, 2])
def test_a_bad_value_is_an_error_before_anything_changes(name, at):
    key, value, error, message = BAD_VALUES[name]
    opt = SAM(SGD(two_groups(Problem()), lr=0.1), rho=0.1)

    def goes_bad(t):
        return value if t == at else fade(t)

    message = re.escape(message) + f".* at t={at} " + re.escape("(param group 1).")
    before = copy.deepcopy([{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups])
    if at == 0:
        with pytest.raises(error, match=message):
            ParamGroupSchedule(opt, key, [fade, goes_bad])
    else:
        schedule = ParamGroupSchedule(opt, key, [fade, goes_bad])
        schedule.step()
        for group in before:
            group |= {key: 0.1 * 0.7, f"initial_{key}": 0.1}
        for _ in range(2):
            with pytest.raises(error, match=message):
                schedule.step()
        assert schedule.last_epoch == 1
        assert schedule.get_last_value() == [0.1 * 0.7] * 2
    assert [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups] == before


def test_a_factor_for_a_tensor_is_looked_at_too():
    with pytest.raises(ValueError, match=re.escape("rho must be a finite number >= 0, but the schedule gives -1")):
        ParamGroupSchedule(SAM(sgd(), rho=torch.tensor(0.1)), "rho", lambda t: -1)


def test_a_radius_that_follows_the_learning_rate_later_is_refused_too():
    opt = SAM(sgd(), rho=0.1)
    schedule = ParamGroupSchedule(opt, "rho", fade)
    opt.param_groups[0]["rho"] = ProportionalToLR(0.5, 0.1, 0.1, 0.0)
    with pytest.raises(ValueError, match="follows its learning rate"):
        schedule.step()


@pytest.mark.parametrize("key", ["lr", "momentum"])
def test_the_state_of_another_schedule_is_refused(key):
    schedule = ParamGroupSchedule(sgd(), "lr", fade)
    other = ParamGroupSchedule(SGD(two_groups(Problem()), lr=0.3, momentum=0.9), key, [None, fade])
    message = (
        f"This is the state of a schedule of '{key}' with scheduled groups [False, True], and not of 'lr' with [True]"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule.load_state_dict(other.state_dict())
    assert schedule.get_last_value() == [0.1]


# Torch's learning rate schedulers

TORCH = {
    "constant": (lambda o: ConstantLR(o, factor=1.0), lambda t: 1.0),
    "cosine": (lambda o: CosineAnnealingLR(o, STEPS), lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2),
    "linear": (lambda o: LinearLR(o, 1.0, 0.1, STEPS), lambda t: 1 - 0.9 * t / STEPS),
    "polynomial": (lambda o: PolynomialLR(o, STEPS, power=2.0), lambda t: (1 - t / STEPS) ** 2),
    "diminishing": (lambda o: LambdaLR(o, lambda t: 1 / math.sqrt(t + 1)), lambda t: 1 / math.sqrt(t + 1)),
}


@over_ends
@over_bases
@pytest.mark.parametrize("name", TORCH)
def test_torch_schedulers_are_plain_loops_over_lr(name, base, end):
    make, factor = TORCH[name]
    problem, plain = Problem(), Problem()
    opt, other = (SAM(base(p.model.parameters()), rho=0.1) for p in (problem, plain))
    lr = opt.param_groups[0]["lr"]
    scheduler = make(opt if end == "opt" else opt.base)
    for t, (batch, same) in enumerate(zip(problem.batches(STEPS), plain.batches(STEPS), strict=True)):
        other.param_groups[0]["lr"] = lr * factor(t)
        assert opt.param_groups[0]["lr"] == pytest.approx(lr * factor(t), rel=1e-12)
        opt.step(problem.closure(opt, batch))
        other.step(plain.closure(other, same))
        scheduler.step()
    # Torch chains products where the loop has a closed form: they differ by rounding.
    torch.testing.assert_close(problem.flat(), plain.flat(), rtol=1e-10, atol=1e-12)


@over_bases
@over_ends
def test_a_plain_loop_over_the_same_rates_is_the_same_bit_for_bit(base, end):
    runs = []
    for scheduled in (True, False):
        problem = Problem()
        opt = SAM(base(problem.model.parameters()), rho=0.1)
        lr = opt.param_groups[0]["lr"]
        if scheduled:
            scheduler = LambdaLR(opt if end == "opt" else opt.base, lambda t: 1 / math.sqrt(t + 1))
        for t, batch in enumerate(problem.batches(STEPS)):
            if not scheduled:
                opt.param_groups[0]["lr"] = lr * (1 / math.sqrt(t + 1))
            opt.step(problem.closure(opt, batch))
            if scheduled:
                scheduler.step()
        runs.append(weights(problem.model))
    assert same_bits(*runs)
