"""The radius that follows the angle between the clean and the sharp gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD

import reference
from cases import BASES
from doors import backward_of, over_doors, take
from problems import Problem, same_bits
from steppe import (
    GSAM,
    MSAM,
    PGN,
    SAM,
    Angle,
    LookSAM,
    ParamGroupSchedule,
    SharpnessAware,
    accumulated_step,
    train_step,
)
from steppe.ascents import L2, Adaptive
from steppe.batches import fraction_of
from steppe.triggers import Every

ANGLE = {"cosine": 0.97, "start": 0.2, "gain": 0.8, "low": 0.01, "high": 3.0}
over_paths = pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])


def sgd(params, **more):
    return SGD(params, **{"lr": 0.05, "momentum": 0.9, **more})


def radius(opt, group=0):
    return opt.param_groups[group]["rho"]


def trained(opt, problem, batches, door="step"):
    for batch in batches:
        take(door, opt, backward_of(problem, batch))
    return list(problem.model.parameters())


# What it is


@over_doors
@over_paths
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_it_is_the_plain_loop(door, foreach, base):
    problem = Problem()
    batches, radii = problem.batches(25), []
    rows = list(reference.by_angle(problem.flat(), problem.gradient, batches, base.update(), ANGLE, radii=radii))
    opt = SAM(base.make(problem.model.parameters(), foreach=foreach), rho=Angle(**ANGLE), foreach=foreach)
    for batch, w, rho in zip(batches, rows, radii, strict=True):
        take(door, opt, backward_of(problem, batch))
        assert torch.allclose(problem.flat(), w, atol=1e-12, rtol=0)
        assert radius(opt) == pytest.approx(rho, rel=1e-10)
    assert max(radii) > 1.2 * min(radii)


@over_doors
@pytest.mark.parametrize(
    ("method", "hand_on"),
    [
        (lambda base, rho: PGN(base, rho=rho, alpha=0.3), lambda g, s: 0.7 * g + 0.3 * s),
        (lambda base, rho: GSAM(base, rho=rho, alpha=0.4), lambda g, s: s - 0.4 * (g - (g @ s) / (s @ s) * s)),
    ],
    ids=["PGN", "GSAM"],
)
def test_blends_hand_on_what_they_did(door, method, hand_on):
    problem = Problem()
    batches, radii = problem.batches(15), []
    update = reference.sgd(0.05, momentum=0.9)
    rows = list(reference.by_angle(problem.flat(), problem.gradient, batches, update, ANGLE, hand_on, radii))
    opt = method(sgd(problem.model.parameters()), Angle(**ANGLE))
    trained(opt, problem, batches, door)
    assert torch.allclose(problem.flat(), rows[-1], atol=1e-12, rtol=0)
    assert radius(opt) == pytest.approx(radii[-1], rel=1e-10)


@over_doors
@over_paths
@pytest.mark.parametrize("ascent", [L2(), Adaptive(0.1)], ids=["L2", "Adaptive"])
def test_between_equal_bounds_it_is_the_number(door, foreach, ascent):
    found = []
    for rho in (0.3, Angle(start=0.3, low=0.3, high=0.3)):
        problem = Problem()
        opt = SharpnessAware(sgd(problem.model.parameters()), ascent=ascent, rho=rho, foreach=foreach)
        found.append(trained(opt, problem, problem.batches(10), door))
    assert same_bits(*found)


@pytest.mark.parametrize("foreach", [True, False])
def test_the_radius_turns_the_gradient_as_far_as_it_should(foreach):
    """On quadratics whose gradients do not vanish, and go all ways, the mean cosine is what it is to be in the end."""
    noise = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    w = Parameter(torch.zeros(3, dtype=torch.float64))
    opt = SAM(SGD([w], lr=1e-9), rho=Angle(0.9, gain=0.2, start=0.1), foreach=foreach)
    cosines = []
    for _ in range(1500):
        centre = torch.randn(3, generator=noise, dtype=torch.float64) / scales
        g = scales * (w.detach() - centre)
        s = g + scales * radius(opt) * g / g.norm()
        cosines.append(float(g @ s / g.norm() / s.norm()))

        def closure(centre=centre):
            opt.zero_grad()
            loss = 0.5 * (scales * (w - centre) ** 2).sum()
            loss.backward()
            return loss

        opt.step(closure)
    assert sum(cosines[-500:]) / 500 == pytest.approx(0.9, abs=0.01)


# Where the two gradients are not what they seem


@over_doors
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_change_no_radius(door, bad):
    for broken in ((True, True), (False, True), (True, False)):  # both passes, the sharp one, the clean one
        w = Parameter(torch.tensor([1.0, 2.0]))
        opt = SAM(SGD([w], lr=0.1), rho=Angle(**ANGLE))
        passes = iter(broken)

        def backward(w=w, passes=passes):
            loss = (w**4).sum() * (bad if next(passes) else 1.0)
            loss.backward()
            return loss

        take(door, opt, backward)
        assert radius(opt) == ANGLE["start"]
        assert not w.isfinite().all()


@over_doors
def test_without_a_gradient_there_is_no_angle(door):
    w = Parameter(torch.zeros(2))
    opt = SAM(SGD([w], lr=0.1), rho=Angle(**ANGLE))

    def backward():
        loss = (w**2).sum()
        loss.backward()
        return loss

    take(door, opt, backward)
    assert radius(opt) == ANGLE["start"]


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e15])
@over_paths
def test_the_angle_is_that_of_gradients_of_any_size(size, foreach):
    w = Parameter(torch.tensor([1.0, 2.0]))
    opt = SAM(SGD([w], lr=0.0), rho=Angle(**ANGLE), foreach=foreach)

    def backward():
        loss = size * ((w**4) * torch.tensor([1.0, 3.0])).sum()
        loss.backward()
        return loss

    take("step", opt, backward)
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)
    g = w**3 * torch.tensor([1.0, 3.0])
    s = (w + ANGLE["start"] * g / g.norm()) ** 3 * torch.tensor([1.0, 3.0])
    expected = Angle(**ANGLE).after(ANGLE["start"], float(g @ s / g.norm() / s.norm()))
    assert radius(opt) == pytest.approx(expected, rel=1e-5)


def test_what_has_one_gradient_alone_does_not_count():
    a, b = Parameter(torch.tensor([1.0, 2.0])), Parameter(torch.tensor([3.0]))
    opt = SAM(SGD([a, b], lr=0.0), rho=Angle(**ANGLE))
    a.grad, b.grad = torch.tensor([1.0, 1.0]), torch.tensor([5.0])
    with opt.ascended():
        a.grad = torch.tensor([1.0, 0.0])
    assert radius(opt) == pytest.approx(Angle(**ANGLE).after(0.2, math.sqrt(0.5)))


def test_a_grad_scaler_changes_nothing():
    found = []
    for scale in (1.0, 2.0**12):
        problem = Problem(torch.float32)
        opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE))
        for batch in problem.batches(5):
            opt.zero_grad()
            (problem.loss(batch) * scale).backward()
            with opt.ascended(scale):
                (problem.loss(batch) * scale).backward()
            for p in problem.model.parameters():
                p.grad /= scale
            opt.base.step()
        found.append(radius(opt))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# Groups


def two_groups(problem, first, second):
    one, two = list(problem.model[0].parameters()), list(problem.model[2].parameters())
    return sgd([{"params": one, "rho": first}, {"params": two, "rho": second}])


def test_groups_follow_one_angle_each_from_its_own_radius():
    problem = Problem()
    opt = SAM(two_groups(problem, Angle(**ANGLE), Angle(**{**ANGLE, "start": 0.4})), rho=0.1)
    trained(opt, problem, problem.batches(5))
    assert radius(opt, 1) == pytest.approx(2 * radius(opt))
    assert radius(opt) != ANGLE["start"]


@pytest.mark.parametrize("other", [0.0, 0.3])
def test_radii_of_other_groups_stay(other):
    problem = Problem()
    opt = SAM(two_groups(problem, Angle(**ANGLE), other), rho=0.1)
    trained(opt, problem, problem.batches(5))
    assert radius(opt) != ANGLE["start"]
    assert radius(opt, 1) == other


def test_the_angle_is_that_of_what_climbs():
    found = []
    for frozen in (True, False):
        problem = Problem()
        if frozen:
            problem.model[2].requires_grad_(False)
            opt = SAM(sgd(problem.model[0].parameters()), rho=Angle(**ANGLE))
        else:
            opt = SAM(two_groups(problem, Angle(**ANGLE), 0.0), rho=0.1)
            opt.param_groups[1]["lr"] = 0.0
        trained(opt, problem, problem.batches(4))
        found.append(radius(opt))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


# Steps that do not climb, and climbs along a part


def test_steps_that_do_not_climb_keep_the_radius():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE), trigger=Every(3))
    seen = []
    for batch in problem.batches(7):
        opt.step(problem.closure(opt, batch))
        seen.append(radius(opt))
    assert seen[0] == seen[1] == seen[2] != seen[3]
    assert seen[3] == seen[4] == seen[5] != seen[6]
    assert LookSAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE)).follows_angle


@pytest.mark.parametrize("way", ["step", "train_step", "replay", "micro"])
def test_a_part_of_the_batch_tells_nothing_of_the_angle(way):
    """Every third step sees all, and follows the angle; the others climb along a part by what there is."""
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE, whole=3))
    passes, radii = [], []

    def loss_of(batch):
        passes.append(len(batch))
        return problem.loss(batch)

    def backward(batch):
        loss = loss_of(batch)
        loss.backward()
        return loss

    def along(batch, fraction=1.0):
        opt.zero_grad()
        return backward(fraction_of(batch, fraction))

    for batch in problem.batches(7):
        if way == "step":
            opt.step(lambda batch=batch: along(batch), ascent=lambda batch=batch: along(batch, 0.25))
        elif way == "train_step":
            train_step(opt, batch, loss_of, fraction=0.25)
        else:
            accumulated_step(opt, [batch], backward, climb=way, ascent=lambda part: backward(fraction_of(part, 0.25)))
        radii.append(radius(opt))
    whole, part = [16, 16], [4, 16]
    assert passes == [*whole, *part, *part, *whole, *part, *part, *whole]
    assert radii[0] == radii[1] == radii[2] != radii[3]
    assert radii[3] == radii[4] == radii[5] != radii[6]


def test_buffers_move_once_where_a_step_sees_all():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    opt = SAM(sgd(model.parameters()), rho=Angle(whole=2))
    for step in range(4):
        x = torch.randn(8, 2)
        train_step(opt, x, lambda x: model(x).square().mean(), model=model, fraction=0.5)
        assert int(model[0].num_batches_tracked) == step + 1


# What is kept, and by whom it is set


@over_doors
def test_a_resumed_run_is_the_same_run(door, tmp_path):
    finals = []
    for resumes in (False, True):
        problem = Problem()
        batches = problem.batches(12)
        opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE))
        trained(opt, problem, batches[:6], door)
        if resumes:
            torch.save(opt.state_dict(), tmp_path / "state.pt")
            opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE))
            opt.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        trained(opt, problem, batches[6:], door)
        finals.append([*problem.model.parameters(), torch.tensor(radius(opt))])
    assert same_bits(*finals)


def test_copies_follow_on_their_own():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE))
    trained(opt, problem, problem.batches(3))
    before = radius(opt)
    other = copy.deepcopy(opt)
    trained(opt, problem, problem.batches(3))
    assert radius(other) == before != radius(opt)
    assert other.follows_angle


def test_a_number_that_is_set_by_hand_ends_it():
    problem = Problem()
    opt = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE))
    trained(opt, problem, problem.batches(2))
    opt.param_groups[0]["rho"] = 0.5
    trained(opt, problem, problem.batches(2))
    assert radius(opt) == 0.5
    assert not opt.follows_angle
    again = SAM(sgd(problem.model.parameters()), rho=Angle(**ANGLE))
    again.load_state_dict(opt.state_dict())
    trained(again, problem, problem.batches(2))
    assert radius(again) == 0.5
    opt.param_groups[0]["rho"] = Angle(**ANGLE)
    trained(opt, problem, problem.batches(2))
    assert radius(opt) not in (0.5, ANGLE["start"])


def test_what_it_says_of_itself():
    opt = SAM(sgd([Parameter(torch.ones(2))]), rho=Angle(0.8, start=0.3))
    assert "rho: 0.3 (follows the angle, cosine 0.8)" in repr(opt)


# What is refused


def test_schedules_of_the_radius_would_fight_with_it():
    opt = SAM(sgd([Parameter(torch.ones(2))]), rho=Angle())
    with pytest.raises(ValueError, match=r"^The rho of param group 0 follows .* the angle of its gradients \(Angle\)"):
        ParamGroupSchedule(opt, "rho", lambda t: 1.0)


@pytest.mark.parametrize("where", ["rho", "group", "later"])
def test_there_must_be_a_clean_gradient(where):
    w = Parameter(torch.ones(2))
    message = r"^Angle looks at the clean gradient, but Momentum climbs without one"
    if where == "later":
        opt = MSAM(sgd([w]), rho=0.1)
        opt.param_groups[0]["rho"] = Angle()
        w.grad = torch.ones(2)
        with pytest.raises(ValueError, match=message):
            opt.step(lambda: w.sum().backward())
        return
    groups = [{"params": [w], "rho": Angle()}] if where == "group" else [w]
    with pytest.raises(ValueError, match=message):
        MSAM(sgd(groups), rho=Angle() if where == "rho" else 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cosine": 1.0}, r"cosine must lie in \(-1, 1\), got 1.0"),
        ({"cosine": math.nan}, r"cosine must lie in \(-1, 1\), got nan"),
        ({"gain": 0.0}, "gain must be a finite number > 0, got 0.0"),
        ({"low": 0.1}, "0 < low <= start <= high must hold, got low=0.1, start=0.05 and high=10.0"),
        ({"low": 0.0}, "0 < low <= start <= high must hold"),
        ({"high": math.inf}, "0 < low <= start <= high must hold"),
        ({"whole": 0}, "whole must be a whole number >= 1, got 0"),
        ({"whole": 1.5}, "whole must be a whole number >= 1, got 1.5"),
    ],
)
def test_what_is_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Angle(**given)


def test_tensors_are_followed_as_numbers_are():
    angle = Angle(**ANGLE)
    for rho, cosine in (
        (0.2, 0.9),
        (0.2, -1.0),
        (0.2, 1.0),
        (0.011, -1.0),
        (2.9, 1.0),
        (0.2, math.nan),
        (0.2, math.inf),
    ):
        found = angle.after(torch.tensor(rho, dtype=torch.float64), torch.tensor(cosine, dtype=torch.float64))
        assert float(found) == pytest.approx(angle.after(rho, cosine), rel=1e-12)
