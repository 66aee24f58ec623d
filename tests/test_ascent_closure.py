"""``opt.step(closure, ascent=...)``: a climb along the gradient of something else than the batch."""

from __future__ import annotations

import pytest
import torch

import reference
from cases import BASES, CASES
from problems import Problem, same_bits, weights
from steppe import MSAM, SAM, accumulated_step
from steppe.batches import fraction_of
from steppe.triggers import Every, LargeGradient

TWO = [case for case in CASES if case.climbs and case.clean and case.wraps]
over_two = pytest.mark.parametrize("case", TWO, ids=lambda case: case.name)


def sam(problem, **options):
    return SAM(torch.optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9), **{"rho": 0.1, **options})


@pytest.mark.parametrize("case", [case for case in CASES if not case.climbs or case.wraps], ids=lambda case: case.name)
def test_the_same_closure_is_no_closure(case):
    ours, theirs = Problem(), Problem()
    opt, other = (case.build(p.model.parameters()) for p in (ours, theirs))
    for batch in ours.batches(7):
        closure = ours.closure(opt, batch)
        expected = other.step(theirs.closure(other, batch))
        if case.climbs and case.clean:
            assert torch.equal(opt.step(closure, ascent=closure), expected)
        else:  # there is no such argument, or nothing to use it for
            with pytest.raises(TypeError, match="ascent"):
                opt.step(closure, ascent=closure)
            opt.step(closure)
    assert same_bits(ours.model.parameters(), theirs.model.parameters())


@pytest.mark.parametrize("case", [case for case in TWO if case.reference], ids=lambda case: case.name)
def test_a_climb_along_a_part_is_the_plain_loop(case):
    """The clean gradient is that of the part, the sharp one that of the batch; without a climb there is one of all."""
    problem, base = Problem(), BASES[0]
    batches = problem.batches(9)
    passes = iter([(step, name) for step in range(9) for name in case.passes(step)])

    def gradient(w, batch):
        step, name = next(passes)
        part = name == "clean" and case.climbs_at(step)
        return problem.gradient(w, fraction_of(batch, 0.25) if part else batch)

    rows = list(case.rows(problem, batches, base, gradient))
    opt = case.build(problem.model.parameters(), base)
    for step, (batch, w) in enumerate(zip(batches, rows, strict=True)):
        part = fraction_of(batch, 0.25)
        expected = problem.loss(part if case.climbs_at(step) else batch).item()
        loss = opt.step(problem.closure(opt, batch), ascent=problem.closure(opt, part))
        assert loss.item() == expected  # what the clean pass returned
        torch.testing.assert_close(problem.flat(), w, rtol=0, atol=1e-12)


# Micro-batches

K = 4


def backward_of(problem):
    def backward(part):
        loss = problem.loss(part) / K
        loss.backward()
        return loss

    return backward


def parts_of(batch):
    return batch.chunk(K)


@over_two
def test_a_climb_along_parts_of_micro_batches_is_that_of_one_batch(case):
    big, small = Problem(), Problem()
    opts = [case.build(problem.model.parameters()) for problem in (big, small)]
    backwards = [backward_of(problem) for problem in (big, small)]
    for batch in big.batches(6):
        parts = parts_of(batch)

        def together(parts, backward=backwards[0]):
            opts[0].zero_grad()
            return torch.stack([backward(part).detach() for part in parts]).sum()

        expected = opts[0].step(
            lambda parts=parts, together=together: together(parts),
            ascent=lambda parts=parts, together=together: together([fraction_of(part, 0.5) for part in parts]),
        )
        loss = accumulated_step(opts[1], parts, backwards[1], ascent=lambda part: backwards[1](fraction_of(part, 0.5)))
        assert torch.equal(loss, expected)
    assert same_bits(big.model.parameters(), small.model.parameters())


def test_every_micro_batch_climbs_along_its_part():
    problem = Problem()
    opt, w, update = sam(problem), problem.flat(), reference.sgd(0.05, 0.9)
    backward = backward_of(problem)
    for batch in problem.batches(6):
        parts, total = parts_of(batch), torch.zeros_like(w)
        for part in parts:
            g = problem.gradient(w, fraction_of(part, 0.5))
            total += problem.gradient(w + 0.1 * g / g.norm(), part) / K
        expected = sum(problem.loss(fraction_of(part, 0.5)).item() / K for part in parts)
        w = update(w, total)
        loss = accumulated_step(
            opt, parts, backward, climb="micro", ascent=lambda part: backward(fraction_of(part, 0.5))
        )
        assert loss.item() == pytest.approx(expected, abs=1e-14)
        torch.testing.assert_close(problem.flat(), w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("climb", ["replay", "micro"])
def test_micro_batches_of_steps_without_a_climb_are_whole(climb):
    problem, seen = Problem(), []
    opt, backward = sam(problem, trigger=Every(2)), backward_of(problem)

    def counted(part):
        seen[-1] += len(part)
        return backward(part)

    for batch in problem.batches(4):
        seen.append(0)
        accumulated_step(
            opt, parts_of(batch), counted, climb=climb, ascent=lambda part: counted(fraction_of(part, 0.5))
        )
    n = len(batch)
    assert seen == [1.5 * n, n, 1.5 * n, n]


def test_micro_batches_refuse_what_cannot_be():
    problem = Problem()
    (batch,) = problem.batches(1)
    base = torch.optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9)
    with pytest.raises(TypeError, match="MSAM climbs without a gradient: leave ascent= out"):
        accumulated_step(MSAM(base), parts_of(batch), backward_of(problem), ascent=backward_of(problem))
    opt = sam(problem, trigger=LargeGradient(steps=9))
    with pytest.raises(ValueError, match="ascent= does not go with LargeGradient"):
        accumulated_step(opt, parts_of(batch), backward_of(problem), ascent=backward_of(problem))


@pytest.mark.parametrize("climb", ["step", "replay", "micro"])
def test_where_all_that_would_climb_is_frozen_the_whole_batch_counts(climb):
    ours, plain = Problem(), Problem()
    for problem in (ours, plain):
        problem.model[0].requires_grad_(False)
    first, last = ours.model[0].parameters(), ours.model[2].parameters()
    opt = SAM(torch.optim.SGD([{"params": first}, {"params": last, "rho": 0.0}], lr=0.05), rho=0.1)
    assert opt.will_climb() is False
    base = torch.optim.SGD(plain.model[2].parameters(), lr=0.05)
    for batch in ours.batches(3):
        expected = base.step(plain.closure(base, batch))
        if climb == "step":
            loss = opt.step(ours.closure(opt, batch), ascent=lambda: pytest.fail("called"))
        else:

            def backward(batch):
                loss = ours.loss(batch)
                loss.backward()
                return loss

            loss = accumulated_step(opt, [batch], backward, climb=climb, ascent=lambda _: pytest.fail("called"))
        assert torch.equal(loss, expected)
    assert same_bits(ours.model.parameters(), plain.model.parameters())
    ours.model[0].requires_grad_(True)
    assert opt.will_climb() is True


# Triggers


def test_a_trigger_looks_at_the_gradient_of_the_part():
    """Where it says no, the base gets the gradient of the batch, at the price of the part."""
    problem = Problem()
    settings = {"steps": 12, "early": 0.2, "late": 0.4, "decay": 0.5}
    opt, w, update = sam(problem, trigger=LargeGradient(**settings)), problem.flat(), reference.sgd(0.05, 0.9)
    mean = variance = 0.0
    climbed = []
    for t, batch in enumerate(problem.batches(12)):
        part = fraction_of(batch, 0.5)
        g = problem.gradient(w, part)
        mean = 0.5 * mean + 0.5 * g @ g
        variance = 0.5 * variance + 0.5 * (g @ g - mean) ** 2
        climbed.append(bool(g @ g >= mean + (0.4 * t / 12 + 0.2 * (1 - t / 12)) * variance.sqrt()))
        w = update(w, problem.gradient(w + 0.1 * g / g.norm() if climbed[-1] else w, batch))
        expected = problem.loss(part if climbed[-1] else batch).item()
        assert opt.step(problem.closure(opt, batch), ascent=problem.closure(opt, part)).item() == expected
        torch.testing.assert_close(problem.flat(), w, rtol=0, atol=1e-12)
    assert set(climbed) == {True, False}


@over_two
@pytest.mark.parametrize("fails_in", ["ascent", "closure"])
def test_an_exception_in_either_closure_leaves_w(case, fails_in):
    problem = Problem()
    opt = case.build(problem.model.parameters())
    (batch,) = problem.batches(1)
    before, closure = weights(problem.model), problem.closure(opt, batch)

    def fails():
        assert same_bits(weights(problem.model), before) == (fails_in == "ascent")
        raise KeyboardInterrupt("no more")

    with pytest.raises(KeyboardInterrupt, match="no more"):
        opt.step(fails if fails_in == "closure" else closure, ascent=fails if fails_in == "ascent" else closure)
    assert same_bits(weights(problem.model), before)
    assert not opt.base.state
    opt.step(closure, ascent=closure)  # and it goes on
    assert not same_bits(weights(problem.model), before)


@pytest.mark.parametrize("trigger", [None, LargeGradient(9, early=9.0)], ids=["climbs", "stays"])
@pytest.mark.parametrize("without", ["ascent", "closure"])
def test_a_closure_without_backward_is_an_error(trigger, without):
    problem = Problem()
    opt = sam(problem, trigger=trigger)
    (batch,) = problem.batches(1)
    before, closure = weights(problem.model), problem.closure(opt, batch)

    def forgets():
        opt.zero_grad()
        return problem.loss(batch)

    with pytest.raises(RuntimeError, match=r"No parameter has a gradient after the .*Did it call loss\.backward\(\)\?"):
        opt.step(forgets if without == "closure" else closure, ascent=forgets if without == "ascent" else closure)
    assert same_bits(weights(problem.model), before)
    assert not opt.base.state


def test_steps_that_do_not_climb_are_the_bases_bit_for_bit():
    ours, plain = Problem(), Problem()
    opt, base = sam(ours, rho=0.0), torch.optim.SGD(plain.model.parameters(), lr=0.05, momentum=0.9)
    for batch in ours.batches(5):
        assert torch.equal(
            opt.step(ours.closure(opt, batch), ascent=lambda: pytest.fail("called")),
            base.step(plain.closure(base, batch)),
        )
    assert same_bits(ours.model.parameters(), plain.model.parameters())


def test_each_closure_may_have_a_batch_of_its_own():
    """Nothing asks that the climb's examples are among those of the batch."""
    problem = Problem()
    opt, w, update = sam(problem, trigger=Every(2)), problem.flat(), reference.sgd(0.05, 0.9)
    for t, batch in enumerate(problem.batches(6)):
        other = (batch + 1) % 128
        if t % 2 == 0:
            g = problem.gradient(w, other)
            w = update(w, problem.gradient(w + 0.1 * g / g.norm(), batch))
        else:
            w = update(w, problem.gradient(w, batch))
        opt.step(problem.closure(opt, batch), ascent=problem.closure(opt, other))
        torch.testing.assert_close(problem.flat(), w, rtol=0, atol=1e-12)
