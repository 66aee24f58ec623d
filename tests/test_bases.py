"""Bases that are not the textbook's: what wraps another, what is refused, and what others keep in them."""

from __future__ import annotations

import copy
import typing
import warnings
from functools import partial

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, AdamW
from torch.optim.optimizer import Optimizer

from cases import CLIMBING
from doors import backward_of, count, over_doors, take
from problems import Problem, same_bits, weights
from steppe import ASAM, GSAM, MSAM, SAM, AdaSAM, AMSGrad, LightSAM, ProportionalToLR, SharpnessAware, Together
from steppe.triggers import After

WRAPPING = [case for case in CLIMBING if case.wraps]

over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
over_wrapping = pytest.mark.parametrize("case", WRAPPING, ids=lambda case: case.name)


def sgd(params):
    return SGD(params, lr=0.05, momentum=0.9)


# Optimizers that wrap others


class Averager:
    """Every third step, all weights become a tenth smaller, on the way to what other processes have."""

    def __init__(self):
        self.step = 0

    def average_parameters(self, params):
        self.step += 1
        if self.step % 3 == 0:
            with torch.no_grad():
                for group in params:
                    torch._foreach_mul_(group["params"], 0.9)


def post_local(params):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        from torch.distributed.optim import PostLocalSGDOptimizer

    return PostLocalSGDOptimizer(sgd(params), Averager())


def wrapper(name, **options):
    def make(params):
        package = pytest.importorskip("pytorch_optimizer")
        return getattr(package, name)(sgd(params), **options)

    return make


def schedule_free(params):
    base = wrapper("ScheduleFreeWrapper")(params)
    base.train()
    return base


WRAPPERS = {
    "Lookahead": wrapper("Lookahead", k=3),
    "Lookahead-reset": wrapper("Lookahead", k=3, pullback_momentum="reset"),
    "TRAC": wrapper("TRAC", s_prev=1e-2),
    "OrthoGrad": wrapper("OrthoGrad"),
    "ScheduleFree": schedule_free,
    "PostLocalSGD": post_local,
}

over_wrappers = pytest.mark.parametrize("name", WRAPPERS)


@over_wrappers
@over_doors
def test_what_wraps_another_optimizer_is_a_base(name, door):
    """The same as the wrapper with a loop by hand that climbs after the first step."""
    problem, plain = Problem(), Problem()
    opt = SAM(WRAPPERS[name](list(problem.model.parameters())), rho=0.1, trigger=After(1))
    other = WRAPPERS[name](list(plain.model.parameters()))
    for i, batch in enumerate(problem.batches(7)):
        take(door, opt, backward_of(problem, batch))
        other.zero_grad()
        plain.loss(batch).backward()
        if i >= 1:
            w = plain.flat()
            sharp = plain.gradient(w + 0.1 * (g := plain.gradient(w, batch)) / g.norm(), batch)
            parts = sharp.split([p.numel() for p in plain.model.parameters()])
            for p, part in zip(plain.model.parameters(), parts, strict=True):
                p.grad = part.view_as(p).clone()
        other.step()
        assert count(opt) == i + 1
    torch.testing.assert_close(problem.flat(), plain.flat(), rtol=1e-9, atol=1e-11)


@over_wrappers
@over_wrapping
def test_every_method_stands_on_wrappers(name, case):
    problem = Problem()
    opt = case.make(WRAPPERS[name](list(problem.model.parameters())), **case.kwargs)
    batches = problem.batches(5)
    seen = [problem.flat()]
    for batch in batches:
        take("step", opt, backward_of(problem, batch))
        seen.append(problem.flat())
    assert count(opt) == 5
    assert seen[-1].isfinite().all()
    assert any(not torch.equal(seen[0], w) for w in seen)


@pytest.mark.parametrize("name", ["Lookahead", "OrthoGrad", "PostLocalSGD", "TRAC"])
def test_wrappers_resume(name):
    problem = Problem()
    opt = SAM(WRAPPERS[name](list(problem.model.parameters())), rho=0.1)
    batches = problem.batches(8)
    for batch in batches[:4]:
        take("step", opt, backward_of(problem, batch))
    saved = copy.deepcopy((opt.state_dict(), problem.model.state_dict()))
    for batch in batches[4:]:
        take("step", opt, backward_of(problem, batch))
    resumed = Problem()
    other = SAM(WRAPPERS[name](list(resumed.model.parameters())), rho=0.1)
    resumed.model.load_state_dict(saved[1])
    other.load_state_dict(saved[0])
    assert count(other) == 4
    for batch in batches[4:]:
        take("step", other, backward_of(resumed, batch))
    torch.testing.assert_close(problem.flat(), resumed.flat(), rtol=1e-12, atol=1e-14)


def test_weights_for_training_and_for_evaluation_are_a_matter_of_the_base():
    problem = Problem()
    opt = SAM(schedule_free(list(problem.model.parameters())), rho=0.1)
    for batch in problem.batches(3):
        take("step", opt, backward_of(problem, batch))
    training = weights(problem.model)
    opt.eval()
    assert not opt.base.train_mode
    assert not same_bits(weights(problem.model), training)
    opt.train()
    assert opt.base.train_mode
    torch.testing.assert_close(weights(problem.model), training)
    plain = SAM(sgd(problem.model.parameters()), rho=0.1)
    assert not hasattr(plain, "train")
    assert not hasattr(plain, "eval")


@pytest.mark.parametrize("name", ["AdaHessian", "SophiaH"])
@over_wrapping
def test_second_derivatives_are_refused(name, case):
    package = pytest.importorskip("pytorch_optimizer")
    base = getattr(package, name)([Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match=f"base must step along gradients alone, got {name}"):
        case.make(base, **case.kwargs)
    assert "rho" not in base.param_groups[0]
    assert "rho" not in base.defaults


class DPOptimizer(Optimizer):
    """As Opacus has it: it shares what the original has, and reads ``grad_sample``."""

    def __init__(self, optimizer):
        self.original_optimizer = optimizer

    @property
    def param_groups(self):
        return self.original_optimizer.param_groups

    @property
    def state(self):
        return self.original_optimizer.state

    @property
    def defaults(self):
        return self.original_optimizer.defaults


class DistributedDPOptimizer(DPOptimizer):
    pass


@pytest.mark.parametrize("kind", [DPOptimizer, DistributedDPOptimizer])
@pytest.mark.parametrize("around", [lambda o: o, lambda o: Together(o), lambda o: [o]], ids=["it", "together", "list"])
def test_clipping_single_examples_is_refused(kind, around):
    base = sgd([Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match=f"got {kind.__name__} of Opacus.*Use it without a climb"):
        SAM(around(kind(base)), rho=0.1)
    assert "rho" not in base.param_groups[0]
    assert "rho" not in base.defaults


class WithoutGroups(Optimizer):
    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize("inside", [True, False])
def test_a_wrapper_without_groups_is_refused(inside):
    base = sgd([Parameter(torch.ones(2))])
    instead = r" Give the SGD inside, and step the wrapper\." if inside else ""
    with pytest.raises(
        TypeError, match=rf"must have a list of parameter groups, got WithoutGroups without one\.{instead}$"
    ):
        SAM(WithoutGroups(base if inside else None), rho=0.1)


def test_a_sharpness_aware_optimizer_inside_of_a_wrapper_is_refused():
    package = pytest.importorskip("pytorch_optimizer")
    inner = SAM(sgd([Parameter(torch.ones(2))]), rho=0.1)
    with pytest.raises(TypeError, match="got SAM, which is sharpness-aware itself"):
        SAM(package.Lookahead(inner), rho=0.1)
    assert inner.base.param_groups[0]["rho"] == 0.1


# accelerate's


def accelerator(**options):
    return pytest.importorskip("accelerate").Accelerator(cpu=True, **options)


@over_wrapping
@over_doors
def test_what_accelerate_has_prepared_is_a_base(case, door):
    runs = []
    for prepares in (True, False):
        problem = Problem()
        base = sgd(problem.model.parameters())
        opt = case.make(accelerator().prepare(base) if prepares else base, **case.kwargs)
        for i, batch in enumerate(problem.batches(4), start=1):
            take(door, opt, backward_of(problem, batch))
            assert count(opt) == i
        runs.append(problem.flat())
    assert torch.equal(*runs)


def test_steps_that_accelerate_holds_back_are_none():
    problem = Problem()
    prepared = accelerator(gradient_accumulation_steps=2)
    opt = SAM(prepared.prepare(sgd(problem.model.parameters())), rho=0.1)
    before = weights(problem.model)
    for i, batch in enumerate(problem.batches(4)):
        with prepared.accumulate(problem.model):
            opt.backward(lambda batch=batch: problem.loss(batch).backward())
            opt.base.step()
            opt.base.zero_grad()
        assert count(opt) == (i + 1) // 2
        assert same_bits(weights(problem.model), before) is (i == 0)


# Construction


FAILURES = {
    "a bad radius": lambda base: SAM(base, rho=-1.0),
    "a bad radius of a group": lambda base: base.param_groups[1].update(rho=-1.0) or SAM(base, rho=0.1),
    "a rate that a schedule cannot read": lambda base: (
        base.param_groups[1].update(lr=torch.ones(2)) or SAM(base, rho=ProportionalToLR(0.1, 0.0, 1.0, 0.0))
    ),
    "no momentum": lambda base: base.param_groups[1].update(momentum=0.0) or MSAM(base, rho=0.1),
    "a bad number of the method": lambda base: GSAM(base, rho=0.1, alpha=float("nan")),
    "another bad number": lambda base: ASAM(base, rho=0.1, eta=-1.0),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_construction_that_fails_leaves_the_base_as_it_was(name):
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(3))]
    base = SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, momentum=0.9)
    defaults, step = dict(base.defaults), base.step
    with pytest.raises((ValueError, TypeError)):
        FAILURES[name](base)
    assert base.defaults == defaults
    assert base.step == step
    assert "rho" not in base.param_groups[0]
    base.param_groups[1].update(lr=0.1, momentum=0.9)
    base.param_groups[1].pop("rho", None)
    opt = SAM(base, rho=0.1)  # not blamed for an earlier wrapping
    assert [group["rho"] for group in opt.param_groups] == [0.1, 0.1]


def test_a_base_whose_hooks_cannot_be_had_is_left_as_it_was():
    base = sgd([Parameter(torch.ones(2))])
    defaults, step = dict(base.defaults), base.step
    base._optimizer_step_pre_hooks = {}  # to which nobody can refer weakly
    with pytest.raises(TypeError):
        SAM(base, rho=0.1)
    assert base.defaults == defaults
    assert "rho" not in base.param_groups[0]
    assert base.step == step


HABITS = {
    "positional": lambda cls, params, kind: cls(params, kind, rho=0.05),
    "keyword": lambda cls, params, kind: cls(params, base_optimizer=kind, rho=0.05, lr=0.1),
    "alone": lambda cls, params, kind: cls(kind),
    "named": lambda cls, params, kind: cls(base=kind, rho=0.05),
}


@pytest.mark.parametrize("case", [case for case in WRAPPING if isinstance(case.make, type)], ids=lambda case: case.name)
@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_class_is_answered_with_how_to_write_it(case, habit, kind):
    with pytest.raises(TypeError, match=f"must be an optimizer instance, got the class {kind.__name__}.*Write for"):
        HABITS[habit](case.make, [Parameter(torch.ones(2))], kind)


def test_a_class_among_several():
    with pytest.raises(TypeError, match="must be an optimizer instance, got the class AdamW"):
        SAM([sgd([Parameter(torch.ones(2))]), AdamW], rho=0.1)


@pytest.mark.parametrize(
    "make", [AMSGrad, partial(AdaSAM, rho=0.1), partial(LightSAM, lr=0.1, rho=0.1, variant="adam")]
)
def test_options_may_come_as_lists(make):
    """As those of YAML and JSON do."""
    found = []
    for kind in (tuple, list):
        w = Parameter(torch.tensor([1.0, -2.0]))
        opt = make([w], betas=kind((0.5, 0.9)))
        opt.add_param_group({"params": [Parameter(torch.ones(1))], "betas": kind((0.8, 0.9))})
        for _ in range(3):
            take("step", opt, lambda w=w: w.square().sum().backward())
        found.append(w.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("foreach", [True, False])
def test_momenta_of_complex_weights_are_climbed_along(foreach):
    """Those of a base that keeps pairs of reals, and those of one that keeps complex numbers."""
    for make in (AMSGrad, partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.AdamW):
        w = Parameter(torch.tensor([1.0 + 1.0j, -2.0 + 0.5j]))
        opt = MSAM(make([w]), rho=0.5, foreach=foreach)

        def backward(w=w):
            loss = torch.view_as_real(w).square().sum()
            loss.backward()
            return loss

        take("step", opt, backward)
        before = w.detach().clone()
        with opt.ascended():
            delta = w.detach() - before
            backward()
        assert delta.abs().square().sum().sqrt().item() == pytest.approx(0.5, rel=1e-5)


# What is shown and typed


@over_wrapping
def test_repr_shows_base_parts_and_radii(case):
    groups = [{"params": [Parameter(torch.ones(2))]}, {"params": [Parameter(torch.ones(2))], "rho": 0.0}]
    follows = ProportionalToLR(0.3, 0.0, 0.1, 0.0)
    groups.append({"params": [Parameter(torch.ones(2))], "rho": follows})
    opt = case.make(SGD(groups, lr=0.1, momentum=0.9), **case.kwargs)
    shown = repr(opt)
    assert shown.startswith(f"{type(opt).__name__} (")
    for part in (opt.ascent, opt.blend, opt.trigger):
        assert part is None or f": {part}" in shown
    assert f"rho: {case.kwargs['rho']}, 0.0, 0.3" in shown
    assert "follows lr" in shown
    assert "base: SGD (" in shown
    assert "momentum: 0.9" in shown


def test_repr_shows_a_radius_that_is_none_and_writes_nothing():
    opt = SAM(SGD([Parameter(torch.ones(2))], lr=0.5), rho=ProportionalToLR(1.0, 0.0, 0.5, 0.0))
    opt.param_groups[0]["lr"] = 0.25
    assert "rho: 0.5 (follows lr)" in repr(opt)
    assert opt.param_groups[0]["rho"] == 1.0
    opt.param_groups[0]["rho"] = -1.0
    assert "rho: -1.0\n" in repr(opt)
    del opt.param_groups[0]["rho"]
    assert "rho: None\n" in repr(opt)


@over_wrappers
def test_repr_of_wrappers(name):
    assert "rho: 0.1" in repr(SAM(WRAPPERS[name]([Parameter(torch.ones(2))]), rho=0.1))


def test_a_step_is_typed_by_its_closure():
    hints = typing.get_type_hints(SharpnessAware.step)
    result = hints["return"]
    assert isinstance(result, typing.TypeVar)
    for name in ("closure", "ascent"):
        assert any(typing.get_args(kind)[1:] == (result,) for kind in typing.get_args(hints[name]))


@over_climbing
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_is_that_of_the_base(case, set_to_none):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    opt.zero_grad(set_to_none)
    for p in problem.model.parameters():
        assert (p.grad is None) if set_to_none else not p.grad.any()


def test_zero_grad_reaches_a_base_that_does_more():
    class Says(SGD):
        zeroed = 0

        def zero_grad(self, set_to_none=True):
            self.zeroed += 1
            super().zero_grad(set_to_none)

    problem = Problem()
    opt = SAM(Says(problem.model.parameters(), lr=0.1), rho=0.1)
    (batch,) = problem.batches(1)
    opt.step(problem.closure(opt, batch))
    assert opt.base.zeroed == 2


def test_zero_grad_of_a_base_that_takes_no_argument():
    class Takes(SGD):
        def zero_grad(self):
            super().zero_grad()

    opt = SAM(Takes([p := Parameter(torch.ones(2))], lr=0.1), rho=0.1)
    p.sum().backward()
    opt.zero_grad()
    assert p.grad is None


# Gradients of another precision than their weights


class Both(torch.autograd.Function):
    """The same loss, with gradients in another precision."""

    @staticmethod
    def forward(ctx, w, dtype):
        ctx.save_for_backward(w)
        ctx.dtype = dtype
        return (w.double() ** 4).sum() / 4 + (w.double() * torch.arange(1, len(w) + 1)).sum()

    @staticmethod
    def backward(ctx, out):
        (w,) = ctx.saved_tensors
        return (out * (w.double() ** 3 + torch.arange(1, len(w) + 1))).to(ctx.dtype), None


@over_climbing
@over_doors
@pytest.mark.parametrize("foreach", [True, False, None], ids=["foreach", "loop", "chosen"])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=["wider", "narrower"]
)
def test_gradients_of_another_precision(case, door, foreach, dtype, grad_dtype):
    """As with gradients of the weights' own precision, to what the narrower of the two can tell."""
    runs = []
    for own, kind in ((dtype, grad_dtype), (torch.float64, torch.float64)):
        w = Parameter(torch.tensor([0.5, -1.0, 1.5], dtype=own))
        w.grad_dtype = kind
        opt = case.build([w], foreach=False if case.wraps and foreach is None else foreach)
        opt.foreach = foreach
        problem = type("Loss", (), {"loss": lambda self, _, w=w, kind=kind: Both.apply(w, kind)})()
        for _ in range(4):
            if case.wraps:
                # torch's own steps want gradients of the weights' precision
                handle = opt.base.register_step_pre_hook(lambda *_, w=w: _cast(w))
            take(door, opt, backward_of(problem, None))
            w.grad_dtype = None
            w.grad = None
            w.grad_dtype = kind
            if case.wraps:
                handle.remove()
        runs.append(w.detach().double())
    torch.testing.assert_close(*runs, rtol=2e-5, atol=2e-5)


def _cast(w):
    g = w.grad
    w.grad_dtype = None
    w.grad = None if g is None else g.to(w.dtype)


# Momenta in few bits


class EightBit(torch.Tensor):
    """As torchao's: codes with a scale, which know no arithmetic but to become numbers again."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], []

    @classmethod
    def of(cls, x):
        scale = x.abs().max() / 127
        return cls((x / scale).round().to(torch.int8), scale)

    def dequantize(self, output_dtype=None):
        return (self.codes * self.scale).to(output_dtype or torch.float32)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{cls.__name__} dispatch: attempting to run {func}, this is not supported")


class EightBitSGD(Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                old = self.state[p].get("momentum_buffer")
                m = p.grad if old is None else old.dequantize() * 0.9 + p.grad
                self.state[p]["momentum_buffer"] = EightBit.of(m)
                p.add_(m, alpha=-group["lr"])


@pytest.mark.parametrize("eta", [None, 0.01], ids=["l2", "adaptive"])
@pytest.mark.parametrize("foreach", [True, False, None], ids=["foreach", "loop", "chosen"])
@over_doors
def test_a_momentum_in_eight_bits_is_climbed_along(eta, foreach, door):
    problem = Problem(torch.float32)
    opt = MSAM(EightBitSGD(problem.model.parameters(), lr=0.05), rho=0.1, eta=eta, foreach=foreach)
    first, *others = problem.batches(3)
    take(door, opt, backward_of(problem, first))
    for batch in others:
        w = weights(problem.model)
        m = [opt.base.state[p]["momentum_buffer"].dequantize() for p in problem.model.parameters()]
        sizes = [1.0 if eta is None else x.abs() + eta for x in w]
        norm = torch.linalg.vector_norm(torch.cat([(t * x).flatten() for t, x in zip(sizes, m, strict=True)]))
        expected = [x - 0.1 * t * t * y / norm for x, t, y in zip(w, sizes, m, strict=True)]
        seen = []

        def note(seen=seen):
            seen.extend(weights(problem.model))
            return torch.enable_grad()

        handle = opt.around_sharp_pass(note, also_single=True)
        take(door, opt, backward_of(problem, batch))
        handle.remove()
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
