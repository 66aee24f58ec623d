"""Every error says what was wrong, what was got, and what to do instead."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD

from problems import Problem
from steppe import (
    ASAM,
    ESAM,
    GSAM,
    MSAM,
    PGN,
    SAM,
    USAM,
    AdaSAM,
    AMSGrad,
    FriendlySAM,
    LightSAM,
    LookSAM,
    ProportionalToLR,
    SharpnessAware,
    UnifiedSAM,
    VaSSO,
    norm_layers,
)
from steppe.ascents import L2, Filtered, Masked, Momentum
from steppe.descent import Descent
from steppe.triggers import After, Every, LargeGradient, Randomly


def param():
    return Parameter(torch.ones(2))


def sgd(**kwargs):
    return SGD([{"params": [param()], **kwargs}], lr=0.1)


BAD = {
    "a class for a base": (
        lambda: SAM(SGD, rho=0.1),
        TypeError,
        "base must be an optimizer instance, got the class SGD. Write for example SAM(torch.optim.SGD(",
    ),
    "parameters for a base": (
        lambda: SAM(iter([param()]), rho=0.1),
        TypeError,
        "base must be an instance of torch.optim.Optimizer, got list_iterator. Write for example",
    ),
    "sharpness-aware twice": (
        lambda: SAM(USAM(sgd())),
        TypeError,
        "base must be a plain optimizer, got USAM, which is sharpness-aware itself.",
    ),
    "Adadelta has another rho": (
        lambda: SAM(torch.optim.Adadelta([param()])),
        ValueError,
        "The groups of this Adadelta already have a 'rho'",
    ),
    "LBFGS needs the closure": (
        lambda: SAM(torch.optim.LBFGS([param()])),
        ValueError,
        "LBFGS.step() needs a closure of its own",
    ),
    "negative rho": (lambda: SAM(sgd(), rho=-0.1), ValueError, "rho must be a finite number >= 0, got -0.1."),
    "infinite rho": (lambda: SAM(sgd(), rho=math.inf), ValueError, "rho must be a finite number >= 0, got inf."),
    "rho is not a number": (
        lambda: SAM(sgd(), rho="0.1"),
        TypeError,
        "rho must be a number, a ProportionalToLR or an Angle, got '0.1'.",
    ),
    "rho is a switch": (
        lambda: SAM(sgd(), rho=True),
        TypeError,
        "rho must be a number, a ProportionalToLR or an Angle, got True.",
    ),
    "rho is many numbers": (
        lambda: SAM(sgd(), rho=torch.ones(2)),
        ValueError,
        "rho must be one number, got a tensor of shape (2,).",
    ),
    "negative rho in a group": (
        lambda: SAM(sgd(rho=-1.0)),
        ValueError,
        "rho must be a finite number >= 0, got -1.0 (param group 0).",
    ),
    "negative rho in an added group": (
        lambda: SAM(sgd()).add_param_group({"params": [param()], "rho": -1.0}),
        ValueError,
        "rho must be a finite number >= 0, got -1.0 (param group 1).",
    ),
    "negative eta": (lambda: ASAM(sgd(), eta=-1.0), ValueError, "eta must be a finite number >= 0, got -1.0."),
    "infinite alpha": (lambda: GSAM(sgd(), alpha=math.inf), ValueError, "alpha must be a finite number, got inf."),
    "alpha is not a number": (
        lambda: GSAM(sgd(), alpha=math.nan),
        ValueError,
        "alpha must be a finite number, got nan.",
    ),
    "negative lr": (lambda: AMSGrad([param()], -1.0), ValueError, "lr must be a finite number >= 0, got -1.0."),
    "lr is many numbers": (
        lambda: AMSGrad([param()], torch.ones(2)),
        ValueError,
        "lr must be a number or a tensor of one element, got shape (2,).",
    ),
    "negative decay": (
        lambda: AdaSAM([param()], weight_decay=-1.0),
        ValueError,
        "weight_decay must be a finite number >= 0, got -1.0.",
    ),
    "eps of zero": (
        lambda: AdaSAM([param()], eps=0.0),
        ValueError,
        "eps must be a finite number > 0: it is the floor under sqrt(v). Got 0.0.",
    ),
    "eps of zero, AdaGrad-Norm": (lambda: LightSAM([param()], 1.0, rho=0.1, eps=0.0), ValueError, "eps must be"),
    "beta1 of one": (
        lambda: AMSGrad([param()], betas=(1.0, 0.9)),
        ValueError,
        "betas must lie in [0, 1) and [0, 1], got (1.0, 0.9).",
    ),
    "beta2 above one": (
        lambda: AMSGrad([param()], betas=(0.9, 1.1)),
        ValueError,
        "betas must lie in [0, 1) and [0, 1]",
    ),
    "unknown variant": (
        lambda: LightSAM([param()], 1.0, rho=0.1, variant="adagard"),
        ValueError,
        "variant must be one of 'adagrad-norm', 'adagrad', 'adam', got 'adagard'.",
    ),
    "k of zero": (lambda: Every(0), ValueError, "k must be >= 1, got 0."),
    "k of LookSAM": (lambda: LookSAM(sgd(), k=0), ValueError, "k must be >= 1, got 0."),
    "a start before the first step": (
        lambda: After(-1),
        ValueError,
        "start must be a number of steps >= 0, got -1.",
    ),
    "a warm-up before the first step": (
        lambda: MSAM(sgd(momentum=0.9), warmup=-1),
        ValueError,
        "start must be a number of steps >= 0, got -1.",
    ),
    "a k that is no number of steps": (lambda: Every(2.5), ValueError, "k must be a whole number, got 2.5."),
    "a start that is no number": (lambda: After(math.nan), ValueError, "start must be a whole number, got nan."),
    "a seed that is none": (lambda: Randomly(0.5, seed=1.5), ValueError, "seed must be a whole number, got 1.5."),
    "a mask of a momentum": (
        lambda: Masked(shape=Momentum()),
        ValueError,
        "Masked climbs along gradients, but its shape Momentum along something else. Put them the other way round: "
        "Momentum(shape=Masked()).",
    ),
    "a part of a momentum": (lambda: Filtered(shape=Momentum()), ValueError, "Momentum(shape=Filtered())"),
    "a probability above one": (lambda: Randomly(1.5), ValueError, "p must lie in [0, 1], got 1.5."),
    "a probability that is none": (lambda: Randomly(math.nan), ValueError, "p must lie in [0, 1], got nan."),
    "a training of no steps": (
        lambda: LargeGradient(0),
        ValueError,
        "steps must be the length of the training, >= 1, got 0.",
    ),
    "statistics that never move": (
        lambda: LargeGradient(10, decay=1.0),
        ValueError,
        "decay must lie in [0, 1), got 1.0.",
    ),
    "negative eta of the momentum's climb": (
        lambda: MSAM(sgd(momentum=0.9), eta=-1.0),
        ValueError,
        "eta must be a finite number >= 0, got -1.0.",
    ),
    "no momentum": (
        lambda: MSAM(sgd()),
        ValueError,
        "The base must keep a momentum to climb along, but that of SGD is 0 in param group 0. Use for example "
        "SGD(params, lr=0.1, momentum=0.9).",
    ),
    "infinite alpha of LookSAM": (lambda: LookSAM(sgd(), alpha=math.inf), ValueError, "alpha must be a finite number"),
    "alpha of PGN": (lambda: PGN(sgd(), alpha=math.nan), ValueError, "alpha must be a finite number, got nan."),
    "infinite sigma": (
        lambda: FriendlySAM(sgd(), sigma=math.inf),
        ValueError,
        "sigma must be a finite number, got inf.",
    ),
    "a decay of one": (lambda: FriendlySAM(sgd(), decay=1.0), ValueError, "decay must lie in [0, 1), got 1.0."),
    "theta of zero": (lambda: VaSSO(sgd(), theta=0.0), ValueError, "theta must lie in (0, 1], got 0.0."),
    "theta above one": (lambda: VaSSO(sgd(), theta=1.1), ValueError, "theta must lie in (0, 1], got 1.1."),
    "lam above one": (
        lambda: UnifiedSAM(sgd(), lam=1.1),
        ValueError,
        "lam must be a number in [0, 1], '1/t' or '1-1/t', got 1.1.",
    ),
    "an unknown lam": (
        lambda: UnifiedSAM(sgd(), lam="t"),
        ValueError,
        "lam must be a number in [0, 1], '1/t' or '1-1/t', got 't'.",
    ),
    "beta of zero": (lambda: ESAM(sgd(), beta=0.0), ValueError, "beta must lie in (0, 1], got 0.0."),
    "masks that keep more than all": (lambda: Masked(1.5), ValueError, "keep must lie in (0, 1], got 1.5."),
    "no normalization layer": (
        lambda: norm_layers(
            torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2, elementwise_affine=False)), 0.1
        ),
        ValueError,
        "Sequential has no normalization layer with parameters, which is a module whose class has 'norm' in its name. "
        "Give all parameters to the base instead.",
    ),
    "a negative radius of normalization layers": (
        lambda: SAM(SGD(norm_layers(torch.nn.LayerNorm(2), -1.0), lr=0.1)),
        ValueError,
        "rho must be a finite number >= 0, got -1.0 (param group 0).",
    ),
    "negative rho_max": (
        lambda: ProportionalToLR(-0.1, 0.0, 0.1, 0.0),
        ValueError,
        "rho_max must be a finite number >= 0, got -0.1.",
    ),
    "negative rho_min": (lambda: ProportionalToLR(0.1, -1.0, 0.1, 0.0), ValueError, "rho_min must be a finite number"),
    "learning rates the wrong way round": (
        lambda: ProportionalToLR(0.1, 0.0, 0.0, 0.1),
        ValueError,
        "lr_min must be <= lr_max, got lr_min=0.1 and lr_max=0.0.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    make, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)):
        make()


def test_a_failed_construction_leaves_the_base_as_it_was():
    base = sgd(rho=-1.0)
    groups, defaults = base.param_groups, dict(base.defaults)
    with pytest.raises(ValueError, match="rho must be"):
        SAM(base)
    assert base.param_groups is groups
    assert base.defaults == defaults
    groups[0]["rho"] = 0.1
    SAM(base)


def test_a_base_that_cannot_be_watched_is_left_as_it_was():
    class Proud(SGD):
        def register_step_pre_hook(self, hook):
            raise ArithmeticError("not this one")

    base = Proud([{"params": [param()]}, {"params": [param()], "rho": 0.2}], lr=0.1)
    groups, defaults, own = base.param_groups, dict(base.defaults), [dict(group) for group in base.param_groups]
    for _ in range(2):  # the second try fails by the same reason
        with pytest.raises(ArithmeticError, match="not this one"):
            SAM(base, rho=0.1)
        assert base.param_groups is groups
        assert groups == own
        assert base.defaults == defaults
    base.step()


def test_groups_that_were_changed_as_they_were_added_are_not_added_again():
    class Counting(SGD):
        added = 0

        def add_param_group(self, param_group):
            Counting.added += 1
            super().add_param_group(param_group)

    SAM(Counting([param()], lr=0.1))
    assert Counting.added == 1


def test_a_base_is_wrapped_once():
    base = sgd()
    SAM(base, rho=0.1)
    with pytest.raises(ValueError, match="either it is wrapped by another sharpness-aware optimizer"):
        SAM(base, rho=0.2)


def test_rho_that_turns_bad_later_is_noticed_before_anything_moves():
    w = param()
    opt = SAM(SGD([w], lr=0.1))
    opt.param_groups[0]["rho"] = -0.5
    w.grad = torch.ones(2)
    with pytest.raises(ValueError, match=re.escape("got -0.5 (param group 0)")), opt.ascended():
        pass
    assert torch.equal(w, torch.ones(2))


def test_no_closure():
    with pytest.raises(RuntimeError, match=r"SAM.step\(\) needs a closure .* use \"with opt.ascended\(\):\""):
        SAM(sgd()).step()


def test_closure_without_backward():
    opt = SAM(sgd())
    with pytest.raises(RuntimeError, match=r"No parameter has a gradient after the closure. Did it call loss.backward"):
        opt.step(lambda: torch.tensor(0.0))


def test_sharp_pass_without_backward_restores():
    w = param()
    opt = SAM(SGD([w], lr=0.1))
    passes = iter([True, False])

    def closure():
        opt.zero_grad()
        loss = (w**2).sum()
        if next(passes):
            loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="No parameter has a gradient after the sharp pass"):
        opt.step(closure)
    assert torch.equal(w, torch.ones(2))


def test_ascended_without_a_clean_gradient():
    with (
        pytest.raises(RuntimeError, match=r"to climb along. Call loss.backward\(\) before ascended"),
        SAM(sgd()).ascended(),
    ):
        pass


def test_nesting():
    w = param()
    opt = SAM(SGD([w], lr=0.1))
    w.grad = torch.ones(2)
    with opt.ascended():
        w.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match=r"The weights are at w \+ delta already"), opt.ascended():
            pass
        with pytest.raises(RuntimeError, match=r"Step after the with block, with opt.base.step\(\)"):
            opt.step(lambda: None)
    assert torch.equal(w, torch.ones(2))


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.stack(
    "Plain loop with `step`",
    "AMP",
    refused="The gradients are multiplied by a GradScaler, which torch does not combine with closures.",
)
def test_grad_scaler_may_not_pass_the_closure(refusals, positional):
    problem = Problem(torch.float32)
    opt = SAM(SGD(problem.model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu")
    (batch,) = problem.batches(1)
    before = problem.flat()

    def closure():
        opt.zero_grad()
        loss = problem.loss(batch)
        scaler.scale(loss).backward()
        return loss

    closure()
    if positional:
        with pytest.raises(RuntimeError, match=r"multiplied by a GradScaler.* then scaler.step\(opt.base\)"):
            scaler.step(opt, closure)
    else:
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):  # torch's own
            scaler.step(opt, closure=closure)
    with pytest.raises(RuntimeError, match="multiplied by a GradScaler") as error:
        scaler.step(opt)
    refusals.append(str(error.value))
    assert torch.equal(problem.flat(), before)
    opt.step(problem.closure(opt, batch))  # the refusal leaves nothing behind
    assert not torch.equal(problem.flat(), before)


def test_grad_scaler_may_not_divide_for_the_method_and_for_its_base():
    problem = Problem(torch.float32)
    opt = SAM(SGD(problem.model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu")
    (batch,) = problem.batches(1)
    scaler.scale(problem.loss(batch)).backward()
    before = [p.grad.clone() for p in problem.model.parameters()]
    with pytest.raises(RuntimeError, match=r"unscale_\(\) got the SAM.* Call scaler.unscale_\(opt.base\)"):
        scaler.unscale_(opt)
    assert all(torch.equal(p.grad, g) for p, g in zip(problem.model.parameters(), before, strict=True))
    scaler.unscale_(opt.base)


def test_a_disabled_grad_scaler_is_harmless():
    problem = Problem(torch.float32)
    opt = SAM(SGD(problem.model.parameters(), lr=0.1))
    (batch,) = problem.batches(1)
    before = problem.flat()
    torch.amp.GradScaler("cpu", enabled=False).step(opt, problem.closure(opt, batch))
    assert not torch.equal(problem.flat(), before)


def test_unknown_name():
    import steppe

    with pytest.raises(AttributeError, match="module 'steppe' has no attribute 'SAMM'"):
        steppe.SAMM  # noqa: B018
    assert set(steppe.__all__) <= set(dir(steppe))


def test_a_descent_takes_a_closure_as_torch_optimizers_do():
    w = param()
    opt = Descent([w], 0.1, L2())
    assert opt.step(lambda: 7) == 7
    assert torch.equal(w, torch.ones(2))
    assert isinstance(SharpnessAware(opt, ascent=L2(), rho=0.0), torch.optim.Optimizer)
