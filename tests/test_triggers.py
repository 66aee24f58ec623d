"""Whether a step climbs, what that costs, and that a run which is resumed climbs at the same steps."""

from __future__ import annotations

import copy
import io
import math
import random
from itertools import pairwise

import pytest
import torch

import reference
from problems import Problem, same_bits, weights
from steppe import GSAM, MSAM, SAM, LookSAM, SharpnessAware
from steppe.ascents import L2
from steppe.blends import Reuse
from steppe.triggers import After, Always, Every, LargeGradient, Randomly, Trigger

STEPS = 24


def sgd(params, **options):
    return torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **options})


def sam(problem, trigger, rho=0.1, **options):
    return SAM(sgd(problem.model.parameters()), rho=rho, trigger=trigger, **options)


def calls_of(opt, problem, batches, *, part=False):
    """Take steps; return how often the closure was called in each, or that and how often the one of the climb was."""
    found = []
    for batch in batches:
        counts = [0, 0]

        def closure(which=0, batch=batch, counts=counts):
            counts[which] += 1
            return problem.closure(opt, batch)()

        opt.step(closure, **({"ascent": lambda closure=closure: closure(1)} if part else {}))
        found.append(tuple(counts) if part else counts[0])
    return found


def through_disk(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


TRIGGERS = {
    "always": (Always(), lambda t: True),
    "every 3": (Every(3), lambda t: t % 3 == 0),
    "every 3, stretched": (Every(3, stretched=True), lambda t: t % 3 == 0),
    "after 5": (After(5), lambda t: t >= 5),
    "after 5 & every 3": (After(5) & Every(3), lambda t: t >= 5 and t % 3 == 0),
    "every 2 & after 4 & every 3": (Every(2) & After(4) & Every(3), lambda t: t >= 4 and t % 6 == 0),
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_steps_and_their_cost(name):
    """Two passes where it climbs, and else one, which is the base's own."""
    trigger, climbs = TRIGGERS[name]
    problem = Problem()
    opt = sam(problem, trigger)
    said = []
    for t, batch in enumerate(problem.batches(STEPS)):
        said.append(opt.will_climb())
        assert calls_of(opt, problem, [batch]) == [2 if climbs(t) else 1]
    assert said == [climbs(t) for t in range(STEPS)]


RESUMED = {
    "every 3": lambda p: SAM(sgd(p), rho=0.1, trigger=Every(3, stretched=True)),
    "after 9": lambda p: SAM(sgd(p), rho=0.1, trigger=After(9)),
    "randomly": lambda p: SAM(sgd(p), rho=0.1, trigger=Randomly(0.5, seed=3)),
    "large gradient": lambda p: SAM(sgd(p), rho=0.1, trigger=LargeGradient(STEPS)),
    "large gradient, every 2": lambda p: GSAM(sgd(p), rho=0.1, trigger=Every(2) & LargeGradient(STEPS)),
    "looksam": lambda p: LookSAM(sgd(p), rho=0.1, k=5),
    "ae-looksam": lambda p: SharpnessAware(
        sgd(p), ascent=L2(), blend=Reuse(0.3), trigger=LargeGradient(STEPS), rho=0.1
    ),
    "msam, after 9": lambda p: MSAM(sgd(p), rho=0.1, warmup=9),
}


@pytest.mark.parametrize("saved_after", [1, 7, 10])
@pytest.mark.parametrize("name", RESUMED)
def test_resuming_in_the_middle_of_a_phase_is_the_uninterrupted_run(name, saved_after):
    problem, resumed = Problem(), Problem(seed=1)
    resumed.x, resumed.y = problem.x, problem.y
    opt, other = (RESUMED[name](p.model.parameters()) for p in (problem, resumed))
    batches = problem.batches(STEPS)
    calls_of(opt, problem, batches[:saved_after])
    model, state = through_disk([problem.model.state_dict(), opt.state_dict()])
    expected = calls_of(opt, problem, batches[saved_after:])
    calls_of(other, resumed, batches[:2])  # leftovers
    resumed.model.load_state_dict(model)
    other.load_state_dict(state)
    assert calls_of(other, resumed, batches[saved_after:]) == expected
    assert same_bits(resumed.model.parameters(), problem.model.parameters())
    torch.testing.assert_close(other.state_dict(), opt.state_dict(), rtol=0, atol=0)


# Randomly


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_how_often(p):
    n = 4000
    for seed in (0, 1, 12345):
        climbs = [Randomly(p, seed).due(t) for t in range(n)]
        assert sum(climbs) / n == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))
        # No step knows of the one before.
        both = sum(a and b for a, b in pairwise(climbs))
        assert both / n == pytest.approx(p * p, abs=4 * math.sqrt(p * p * (1 - p * p) / n) + 0.01)


def test_what_is_drawn_depends_on_seed_and_step_alone():
    climbs = [Randomly(0.5, seed=7).due(t) for t in range(200)]
    random.seed(0)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate()
    backwards = [Randomly(0.5, seed=7).due(torch.tensor(t)) for t in reversed(range(200))]
    assert backwards[::-1] == climbs
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert [Randomly(0.5, seed=8).due(t) for t in range(200)] != climbs


# LargeGradient


SETTINGS = [
    {"steps": STEPS, "early": 1.0, "late": -1.0, "decay": 0.9},
    {"steps": STEPS, "early": 0.2, "late": 0.4, "decay": 0.5},
    {"steps": STEPS // 2, "early": -2.0, "late": 0.5, "decay": 0.0},
]


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("settings", SETTINGS[:2], ids=["paper", "other"])
def test_large_gradients_against_a_plain_loop(settings, foreach):
    problem, climbs = Problem(), []
    opt = sam(problem, LargeGradient(**settings), foreach=foreach)
    batches = problem.batches(STEPS)
    rows = reference.aesam(
        problem.flat(), problem.gradient, batches, reference.sgd(0.05, 0.9), 0.1, **settings, climbs=climbs
    )
    calls = []
    for batch, w in zip(batches, rows, strict=True):
        calls += calls_of(opt, problem, [batch])
        torch.testing.assert_close(problem.flat(), w, rtol=0, atol=1e-12)
    assert calls == [2 if each else 1 for each in climbs]
    assert set(calls) == {1, 2}


def fires(trigger, norms, start=0):
    """Whether it climbs at gradients of such norms, one step each."""
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    opt = SAM(torch.optim.SGD([w], lr=0.0), rho=0.1, trigger=trigger)
    opt.state["engine"]["step"] = start
    found = []
    for norm in norms:
        w.grad = torch.full_like(w, norm)
        with opt.ascended() as climbs:
            w.grad = torch.ones_like(w)
        found.append(climbs)
        opt.base.step()
    return found, opt.state["shared"]["norms"]


def test_statistics_of_large_gradients():
    trigger = LargeGradient(10, early=1.0, late=1.0, decay=0.5)
    climbs, (mean, variance) = fires(trigger, [2.0, 1.0, 3.0])
    # g^2 = 4: mean 2, variance 2; 1: 1.5, 1.125; 9: 5.25, 7.59375
    assert (mean, variance) == (5.25, 7.59375)
    assert climbs == [4 >= 2 + 2**0.5, 1 >= 1.5 + 1.125**0.5, 9 >= 5.25 + 7.59375**0.5] == [True, False, True]


def test_the_threshold_moves_from_early_to_late_and_stays_there():
    trigger = LargeGradient(10, early=9.0, late=-9.0, decay=0.9)
    assert [fires(trigger, [1.0], start)[0][0] for start in (0, 3, 5, 10, 10**6)] == [False, False, True, True, True]
    # The first g^2 = 1 lies 3.16 standard deviations above the mean.
    for late, climbs in ((3.1, True), (3.2, False)):
        assert fires(LargeGradient(10, early=-9.0, late=late), [1.0], start=10**6)[0] == [climbs]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_not_climbed_along_nor_counted(bad):
    trigger = LargeGradient(10, early=-9.0, late=-9.0)
    climbs, norms = fires(trigger, [1.0, 2.0, bad, 2.0])
    assert climbs == [True, True, False, True]
    assert norms == fires(trigger, [1.0, 2.0, 2.0])[1]
    problem = Problem()
    opt = sam(problem, trigger)
    before = weights(problem.model)
    (batch,) = problem.batches(1)
    problem.loss(batch).backward()
    problem.model[2].bias.grad[0] = bad
    with opt.ascended() as climbs:
        problem.loss(batch).backward()
    assert climbs is False
    assert same_bits(weights(problem.model), before)
    assert not problem.model[2].bias.grad.isfinite().all()  # whoever checks still notices


class Noting(Trigger):
    """Climb never; count who asks."""

    needs_gradient = True

    def __init__(self):
        self.asked = 0

    def due(self, step):
        return True

    def fires(self, slope):
        self.asked += 1
        return False


def test_both_let_neither_miss_a_gradient():
    first, second, problem = Noting(), Noting(), Problem()
    opt = sam(problem, first & second)
    assert (first & second).needs_gradient
    assert (first & Always()).needs_gradient
    assert (Always() & first).needs_gradient
    assert not (Always() & Every(2)).needs_gradient
    calls_of(opt, problem, problem.batches(3))
    assert (first.asked, second.asked) == (3, 3)


def test_every_other_large_gradient_knows_all_of_them():
    """Gradients of steps at which it would not climb count too."""
    norms = [1.0, 5.0, 2.0, 4.0, 3.0]
    large = LargeGradient(10, early=0.1, late=0.1)
    alone, (mean, variance) = fires(large, norms)
    for both in (Every(2) & large, large & Every(2)):
        climbs, found = fires(both, norms)
        assert found == (mean, variance)
        assert climbs == [each and t % 2 == 0 for t, each in enumerate(alone)]


# A closure of its own for the climb: what a step that does not climb costs

PARTS = {
    "always": (Always(), [(1, 1)] * 6),
    "every 3": (Every(3), [(1, 1), (1, 0), (1, 0)] * 2),
    "after 4": (After(4), [(1, 0)] * 4 + [(1, 1)] * 2),
    "looks at gradients": (Noting(), [(1, 1)] * 6),
    "every 3, and looks": (Every(3) & Noting(), [(1, 1)] * 6),
}


@pytest.mark.parametrize("name", PARTS)
def test_calls_of_both_closures(name):
    trigger, expected = PARTS[name]
    problem = Problem()
    assert calls_of(sam(problem, trigger), problem, problem.batches(6), part=True) == expected
    assert calls_of(sam(problem, trigger, rho=0.0), problem, problem.batches(6), part=True) == [(1, 0)] * 6


def test_a_trigger_is_a_value():
    assert After(3) & Every(2) == After(3) & Every(2)
    assert copy.deepcopy(LargeGradient(5)) == LargeGradient(5)
    assert (Every(2, stretched=True) & Every(3, stretched=True)).stretch == 6.0
