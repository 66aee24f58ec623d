"""Half precision: GradScaler and autocast in plain loops."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch.amp import GradScaler, autocast
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import reference
from cases import BASES, CLIMBING, COMBINATIONS, combination_id
from problems import Problem, everywhere, same_bits, state_of, through_ascended, weights
from steppe import SAM, SharpnessAware
from steppe.ascents import L2, Filtered, Unnormalized
from steppe.blends import Reuse, SurrogateGap, Weighted
from steppe.triggers import After, LargeGradient

over_climbing = pytest.mark.parametrize("case", CLIMBING, ids=lambda case: case.name)
over_all = pytest.mark.parametrize(("case", "base"), [c for c in COMBINATIONS if c[0].climbs], ids=combination_id)
over_referenced = pytest.mark.parametrize(
    ("case", "base"), [c for c in COMBINATIONS if c[0].climbs and c[0].reference], ids=combination_id
)
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
over_halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

FUSED = BASES[2]


def bad_passes(case):
    """Which passes may go wrong, in a step that climbs."""
    return [bad for bad in (("clean",), ("sharp",), ("clean", "sharp")) if set(bad) <= set(case.passes(case.first))]


def name_of(value):
    return "+".join(value) if isinstance(value, tuple) else combination_id(value)


def spoil(model):
    model[2].bias.grad[0] = math.inf


def scaled_step(opt, scaler, problem, batch, *, bad=(), as_tensor=False, max_norm=None):
    """One step as the README writes it."""
    opt.base.zero_grad()
    passes = iter(("clean", "sharp") if opt.ascent.needs_gradient else ("sharp",))

    def backward():
        scaler.scale(problem.loss(batch)).backward()
        if next(passes) in bad:
            spoil(problem.model)

    _, climbing = through_ascended(opt, backward, scaler.scale(torch.ones(())) if as_tensor else scaler.get_scale())
    if max_norm is not None:
        scaler.unscale_(opt.base)
        clip_grad_norm_(problem.model.parameters(), max_norm)
    scaler.step(opt.base)
    scaler.update()
    return climbing


# GradScaler


@over_all
@over_paths
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_scale_that_is_a_power_of_two_changes_no_bit(case, base, foreach, as_tensor):
    scaled, unscaled = Problem(torch.float32), Problem(torch.float32)
    opt, other = (case.build(p.model.parameters(), base, foreach) for p in (scaled, unscaled))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for batch in scaled.batches(10):
        scaled_step(opt, scaler, scaled, batch, as_tensor=as_tensor)
        other.step(unscaled.closure(other, batch))
    assert scaler.get_scale() == 2.0**12  # and it grew meanwhile
    assert same_bits(scaled.model.parameters(), unscaled.model.parameters())
    torch.testing.assert_close(state_of(opt), state_of(other), rtol=0, atol=0)


# name: parts that no method combines, of which one needs the scale
PARTS = {
    "USAM with the surrogate gap": {"ascent": Unnormalized(), "blend": SurrogateGap(0.4)},
    "VaSSO with both gradients": {"ascent": Filtered(-0.5, 0.6), "blend": Weighted(0.7)},
    "AE-SAM": {"ascent": L2(), "trigger": LargeGradient(10, late=1.0)},
    "AE-LookSAM": {"ascent": L2(), "blend": Reuse(0.3), "trigger": LargeGradient(10, late=0.5) & After(1)},
    "USAM where gradients are large": {"ascent": Unnormalized(), "trigger": LargeGradient(10)},
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("on_host", [True, False], ids=["host", "device"])
def test_a_scale_changes_no_bit_of_combinations(name, as_tensor, on_host, monkeypatch):
    everywhere(monkeypatch, "free_to_read", lambda x: on_host)
    scaled, unscaled = Problem(torch.float32), Problem(torch.float32)
    opt, other = (
        SharpnessAware(torch.optim.SGD(p.model.parameters(), lr=0.1, momentum=0.9), rho=0.1, **PARTS[name])
        for p in (scaled, unscaled)
    )
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    climbs = []
    for batch in scaled.batches(10):
        climbs.append(scaled_step(opt, scaler, scaled, batch, as_tensor=as_tensor))
        other.step(unscaled.closure(other, batch))
    assert scaler.get_scale() == 2.0**12
    assert True in climbs
    assert (False in climbs) == ("trigger" in PARTS[name])
    assert same_bits(scaled.model.parameters(), unscaled.model.parameters())
    torch.testing.assert_close(state_of(opt), state_of(other), rtol=0, atol=0)


@over_climbing
def test_any_scale_changes_nothing_beyond_rounding(case):
    scaled, unscaled = Problem(torch.float32), Problem(torch.float32)
    opt, other = (case.build(p.model.parameters()) for p in (scaled, unscaled))
    scaler = GradScaler("cpu", init_scale=1000.0)
    for batch in scaled.batches(10):
        scaled_step(opt, scaler, scaled, batch)
        other.step(unscaled.closure(other, batch))
    torch.testing.assert_close(scaled.flat(), unscaled.flat(), rtol=0, atol=1e-5)


def clipped(g, max_norm):
    return g * min(1.0, max_norm / (g.norm().item() + 1e-6))


@over_referenced
@pytest.mark.stack("Plain loop with `ascended`", "AMP", "clip")
def test_clipping_is_of_the_unscaled_gradient_that_is_handed_on(case, base):
    problem = Problem()
    batches, max_norm, norms = problem.batches(15), 0.3, []

    def clip(g):
        norms.append(g.norm().item())
        return clipped(g, max_norm)

    if case.wraps:
        *_, expected = case.rows(problem, batches, base, update=reference.changed(base.update(), clip))
    else:
        passes = iter(range(2 * len(batches)))

        def gradient(w, batch):
            g = problem.gradient(w, batch)
            return clip(g) if next(passes) % 2 else g

        *_, expected = case.rows(problem, batches, base, gradient)
    assert min(norms) < max_norm < max(norms)

    opt = case.build(problem.model.parameters(), base)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for batch in batches:
        scaled_step(opt, scaler, problem, batch, max_norm=max_norm)
    torch.testing.assert_close(problem.flat(), expected, rtol=0, atol=1e-12)


@over_climbing
@pytest.mark.stack("Plain loop with `step`", "clip")
def test_a_hook_of_the_base_clips_what_is_handed_on(case):
    ours, theirs = Problem(), Problem()
    opt, host = (case.build(p.model.parameters()) for p in (ours, theirs))

    def clip(*_):
        clip_grad_norm_(ours.model.parameters(), 0.3)

    opt.base.register_step_pre_hook(clip)
    norms = []
    for batch in ours.batches(10):
        opt.step(ours.closure(opt, batch))
        host.zero_grad()
        through_ascended(host, lambda batch=batch: theirs.loss(batch).backward())
        norms.append(clip_grad_norm_(theirs.model.parameters(), 0.3))
        host.base.step()
    assert max(norms) > 0.3
    assert same_bits(weights(ours.model), weights(theirs.model))


@pytest.mark.parametrize(
    ("case", "base", "bad"),
    [(case, base, bad) for case, base in COMBINATIONS if case.climbs for bad in bad_passes(case)],
    ids=name_of,
)
@pytest.mark.parametrize("on_host", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("clips", [True, False], ids=["clip", ""])
def test_a_gradient_that_is_not_finite_skips_the_step(case, base, bad, on_host, clips, monkeypatch):
    everywhere(monkeypatch, "free_to_read", lambda x: on_host)
    spoilt, straight = Problem(torch.float32), Problem(torch.float32)
    opt, other = (case.build(p.model.parameters(), base) for p in (spoilt, straight))
    scaler, same = (GradScaler("cpu", init_scale=2.0**10) for _ in range(2))
    batches = spoilt.batches(8)
    max_norm = 10.0 if clips else None
    for batch in batches[:3]:
        scaled_step(opt, scaler, spoilt, batch, max_norm=max_norm)
        scaled_step(other, same, straight, batch, max_norm=max_norm)
    before, state = weights(spoilt.model), state_of(opt)

    assert scaled_step(opt, scaler, spoilt, batches[3], bad=bad, max_norm=max_norm)
    assert scaler.get_scale() == 2.0**9
    assert same_bits(weights(spoilt.model), before)
    if not (case.remembers and bad == ("sharp",)):
        torch.testing.assert_close(state_of(opt), state, rtol=0, atol=0)
    else:  # the memory of a climb saw a finite gradient, whatever came of it; the base did not
        torch.testing.assert_close(opt.state_dict()["base"], state["base"], rtol=0, atol=0)
        other.base.zero_grad()
        straight.loss(batches[3]).backward()
        with other.ascended():
            straight.loss(batches[3]).backward()
    assert int(opt.state["engine"]["step"]) == 3

    for batch in batches[4:]:  # as if nothing had happened
        assert scaled_step(opt, scaler, spoilt, batch) == scaled_step(other, same, straight, batch)
    assert same_bits(spoilt.model.parameters(), straight.model.parameters())
    torch.testing.assert_close(state_of(opt), state_of(other), rtol=0, atol=0)


def test_a_fused_base_on_an_accelerator_is_counted_by_the_device(monkeypatch):
    """GradScaler steps it always, and it stays where it is by itself: only the device knows."""
    everywhere(monkeypatch, "free_to_read", lambda x: False)
    problem = Problem(torch.float32)
    opt = SAM(FUSED.make(problem.model.parameters()), rho=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    bads = [(), ("clean",), ("sharp",), ()]
    for batch, bad in zip(problem.batches(4), bads, strict=True):
        scaled_step(opt, scaler, problem, batch, bad=bad)
    step = opt.state["engine"]["step"]
    assert isinstance(step, torch.Tensor)
    assert step.item() == 2
    opt.load_state_dict(opt.state_dict())
    assert opt.will_climb() is True


@pytest.mark.parametrize(("case", "bad"), [(case, bad) for case in CLIMBING for bad in bad_passes(case)], ids=name_of)
def test_without_a_scaler_the_base_sees_what_is_not_finite(case, bad):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    before, seen = weights(problem.model), []

    def look(*_):
        seen.append(all(p.grad.isfinite().all() for p in problem.model.parameters()))
        assert same_bits(weights(problem.model), before)

    opt.base.register_step_pre_hook(look)
    (batch,) = problem.batches(1)
    passes = iter(case.passes(0))

    def closure():
        loss = problem.closure(opt, batch)()
        if next(passes) in bad:
            spoil(problem.model)
        return loss

    opt.step(closure)
    assert seen == [False]


# Autocast


def loss_under(dtype, problem, batch):
    with autocast("cpu", dtype=dtype):
        return problem.loss(batch)


@over_referenced
@over_halves
@pytest.mark.stack("Plain loop with `step`", "AMP")
def test_under_autocast_a_step_is_the_papers(case, base, dtype):
    """Against plain loops whose gradient is that of half-precision passes."""
    problem = Problem(torch.float32)
    named = dict(problem.model.named_parameters())
    batches = problem.batches(5)

    def gradient(w, batch):
        w = w.detach().requires_grad_()
        pieces = w.split([p.numel() for p in named.values()])
        params = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        with autocast("cpu", dtype=dtype):
            loss = cross_entropy(functional_call(problem.model, params, problem.x[batch]), problem.y[batch])
        return torch.autograd.grad(loss, w)[0]

    *_, expected = case.rows(problem, batches, base, gradient)
    if case.wraps:
        *_, climbless = reference.usam(problem.flat(), gradient, batches, base.update(), rho=0.0)
    else:
        *_, climbless = case.rows(problem, batches, base, gradient, rho=0.0)

    opt = case.build(problem.model.parameters(), base)
    for batch in batches:

        def closure(batch=batch):
            opt.zero_grad()
            loss = loss_under(dtype, problem, batch)
            loss.backward()
            return loss

        opt.step(closure)
    # A cast may round the other way where w + delta is a hair off.
    assert (problem.flat() - expected).norm() < 0.05 * (climbless - expected).norm()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in problem.model.parameters())


@over_climbing
@pytest.mark.stack("Plain loop with `ascended`", "AMP")
def test_float16_with_a_scaler_from_a_scale_that_is_too_high(case):
    """Real overflows in float16: steps are skipped until the scale fits, and then it is as if it had fitted at once."""
    runs = []
    scale = 2.0**26
    for _ in range(2):
        problem = Problem(torch.float32)
        opt = case.build(problem.model.parameters())
        scaler = GradScaler("cpu", init_scale=scale)
        (batch,) = problem.batches(1)
        before = weights(problem.model)
        losses = []
        while len(losses) < 30:
            at = scaler.get_scale()
            opt.base.zero_grad()

            def backward(problem=problem, scaler=scaler, batch=batch):
                loss = loss_under(torch.float16, problem, batch)
                scaler.scale(loss).backward()
                return loss

            loss, _ = through_ascended(opt, backward, at)
            scaler.unscale_(opt.base)
            clip_grad_norm_(problem.model.parameters(), 1.0)
            scaler.step(opt.base)
            scaler.update()
            if scaler.get_scale() < at:
                assert not losses
                assert same_bits(weights(problem.model), before)
                assert not opt.base.state
                assert opt.state["engine"].get("step", 0) == 0
            else:
                losses.append(loss.item())
        scale = scaler.get_scale()
        runs.append((losses, problem.flat()))
    assert scale < 2.0**26
    assert runs[0][0][-1] < 0.9 * runs[0][0][0]
    if not case.remembers:  # a memory of climbs has seen the skipped steps' clean gradients, where those were finite
        assert runs[0][0] == runs[1][0]
        assert torch.equal(runs[0][1], runs[1][1])


@over_climbing
@over_halves
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaler"])
@pytest.mark.stack("Plain loop with `ascended`", "AMP")
def test_both_doors_are_one_under_autocast(case, dtype, scaled):
    ours, theirs = Problem(torch.float32), Problem(torch.float32)
    opt, host = (case.build(p.model.parameters()) for p in (ours, theirs))
    scaler = GradScaler("cpu", init_scale=4.0, enabled=scaled)
    for batch in ours.batches(5):

        def closure(batch=batch):
            opt.zero_grad()
            loss = loss_under(dtype, ours, batch)
            (loss * scaler.get_scale()).backward()
            for p in ours.model.parameters():
                p.grad /= scaler.get_scale()
            return loss

        opt.step(closure)
        host.base.zero_grad()
        through_ascended(
            host,
            lambda batch=batch: scaler.scale(loss_under(dtype, theirs, batch)).backward(),
            scaler.get_scale(),
        )
        scaler.step(host.base)
        scaler.update()
    assert same_bits(ours.model.parameters(), theirs.model.parameters())


DOORS = ["step", "ascended", "backward"]


def run_under_autocast(case, dtype, door, *, around):
    """Losses, weights and outputs, with one autocast around each step or with one in each pass."""
    problem = Problem(torch.float32)
    opt = case.build(problem.model.parameters())
    seen = []
    for batch in problem.batches(4):
        half = autocast("cpu", dtype=dtype)
        outside, inside = (half, nullcontext()) if around else (nullcontext(), half)

        def backward(batch=batch, inside=inside):
            with inside:
                loss = problem.loss(batch)
                loss.backward()
            return loss

        opt.base.zero_grad()
        with outside:
            if door == "step":

                def closure(backward=backward):
                    opt.zero_grad()
                    return backward()

                opt.step(closure)
            elif door == "backward":
                opt.backward(backward)
                opt.base.step()
            else:
                through_ascended(opt, backward)
                opt.base.step()
            with inside:
                seen.append(problem.model(problem.x).detach())  # in the same region, after the step
    return seen + weights(problem.model)


@pytest.mark.parametrize(
    "case", [case for case in CLIMBING if case.every == 1 and not case.first], ids=lambda case: case.name
)
@over_halves
@pytest.mark.parametrize("door", DOORS)
def test_one_autocast_around_both_passes_is_one_in_each(case, dtype, door, monkeypatch):
    each = run_under_autocast(case, dtype, door, around=False)
    assert same_bits(run_under_autocast(case, dtype, door, around=True), each)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    assert not same_bits(run_under_autocast(case, dtype, door, around=True), each)  # the trap is there


@pytest.mark.parametrize("door", DOORS)
def test_inside_of_one_autocast_weights_are_w_after_an_exception(door):
    problem = Problem(torch.float32)
    opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=0.5)
    (batch,) = problem.batches(1)
    fails = iter((False, True))

    def closure():
        loss = problem.loss(batch)
        if next(fails):
            raise KeyError
        loss.backward()
        return loss

    def through_ascended():
        closure()
        with opt.ascended():
            closure()

    with autocast("cpu", dtype=torch.bfloat16):
        expected = problem.model(problem.x)
        with pytest.raises(KeyError):
            {"step": lambda: opt.step(closure), "backward": lambda: opt.backward(closure)}.get(door, through_ascended)()
        assert torch.equal(problem.model(problem.x), expected)
