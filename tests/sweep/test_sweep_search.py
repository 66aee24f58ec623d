"""What is chosen, by whom, and what becomes of settings that diverge or look bad."""

from __future__ import annotations

import math

import pytest

from steppe.lab import sweep
from steppe.lab.errors import UserError
from steppe.lab.judge.points import Point, SeedResult, score
from steppe.lab.plans.options import Options
from steppe.lab.plans.sweep import plan
from steppe.lab.sweeping.queue import Queue


def test_random_settings_depend_on_their_number_alone(planned, alone):
    grid = ("rho=0.01:1:log", "lr=0.01:0.1", "nesterov=true,false")
    more = {"settings": {"sam": {"momentum": 0.9}}, "sampler": "random", "trials": 9}
    first = [point.setting for point in alone(planned(grid, "first", **more)).points]
    again = [point.setting for point in alone(planned(grid, "again", **more)).points]
    assert first == again
    assert len({setting["rho"] for setting in first}) == 9
    assert all(0.01 <= setting["rho"] <= 1 and 0.01 <= setting["lr"] <= 0.1 for setting in first)
    assert {setting["nesterov"] for setting in first} == {True, False}
    assert min(setting["rho"] for setting in first) < 0.1  # equal ratios: half of them lie below


def test_tpe_learns(planned, alone):
    """A third of all learning rates, by their logarithm, are good; after twenty, most that are tried are."""
    found = alone(planned(("lr=1e-6:1:log",), sampler="tpe", trials=40, epochs=1, method="sgd"))
    good = [0.003 < point.setting["lr"] < 0.3 for point in found.points]
    assert len(good) == 40
    assert sum(good[:20]) < 13
    assert sum(good[20:]) > 13


def test_a_setting_that_a_sampler_chose_is_kept_when_its_worker_dies(planned):
    made = planned(("rho=0.01:1:log",), sampler="random", trials=1)
    queue = Queue(made)
    queue.fill()
    claim = queue.claim("s", "w")
    assert queue.points()[0].setting is None
    setting = claim.choose()
    queue.release("s", reason="died")
    assert queue.claim("s", "w").choose() == setting == queue.points()[0].setting
    queue.close()


def test_divergence_is_a_result(planned, alone):
    found = alone(planned(("lr=0.05,1e6",), seeds=3, method="sgd"))
    good, bad = found.points
    assert (good.state, bad.state) == ("finished", "diverged")
    assert [result.diverged for result in bad.seeds] == [1]  # the other seeds would not change the choice
    assert (bad.validation, bad.test) == (None, None)
    assert found.best is good
    assert found.verdict[-1] == "Of 2 settings, 1 diverged."
    queue = Queue(found.plan)
    assert [trial.value for trial in queue._trials()[1:]] == [pytest.approx(good.validation.value), math.inf]
    queue.close()


def test_a_setting_is_as_bad_as_its_worst_seed():
    fine = SeedResult(seed=0, validation_metric=0.9, gradient_evaluations=1, seconds=1.0)
    bad = SeedResult(seed=1, diverged=3, gradient_evaluations=1, seconds=1.0)
    assert score([fine, fine], higher_is_better=True) == 0.9
    assert score([fine, bad], higher_is_better=True) == -math.inf
    assert score([fine, bad], higher_is_better=False) == math.inf
    assert Point(0, {}, "diverged", (fine, bad)).validation is None


def test_the_best_is_chosen_on_validation_data(planned, alone):
    found = alone(planned(("lr=0.001,0.05",), seeds=2, method="sgd"))
    assert found.setting == {"lr": 0.05}
    assert [point.setting["lr"] for point in found.ranked] == [0.05, 0.001]
    best = found.best
    assert best.validation.n == 2
    assert best.validation.value == pytest.approx(sum(result.validation_metric for result in best.seeds) / 2)
    assert best.validation.value < found.ranked[1].validation.value  # an error: lower is better
    assert found.edges == ["lr"]


def test_settings_that_look_bad_are_pruned(planned, alone):
    """After five that were finished, and halfway through the first seed, though this one is bad from the beginning."""
    grid = {"weight_decay": [0, 0.001, 0.002, 0.003, 0.004, 20.0]}
    found = alone(planned(grid, prune=True, epochs=6, seeds=2, method="sgd"))
    *others, worst = found.points
    assert [point.state for point in others] == ["finished"] * 5
    assert (worst.state, worst.seeds, worst.validation) == ("pruned", (), None)
    queue = Queue(found.plan)
    last = queue._trials()[-1]
    assert (last.user_attrs["slot"], sorted(last.intermediate_values)) == (5, [1, 2, 3])
    queue.close()
    assert found.verdict[-1] == "Of 6 settings, 1 pruned (looked bad halfway)."
    kept = alone(planned(grid, "kept", epochs=6, seeds=2, method="sgd"))
    assert [point.state for point in kept.points] == ["finished"] * 6
    assert kept.ranked[-1].setting == {"weight_decay": 20.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": ("roh=0.1",)}, "sam over sgd has no hyper-parameter 'roh'; did you mean 'rho'?"),
        ({"grid": ("rho=-0.1,0.1",)}, "sam refuses rho=-0.1: "),
        ({"grid": ("every=1:4:log",), "sampler": "random", "trials": 3}, "sam: every must be a whole number of steps"),
        ({"grid": ("rho=1:2",)}, "the grid of 'rho' is '1:2', which does not say how many values"),
        ({"sampler": "best"}, "unknown sampler 'best'; known: grid, tpe, random"),
        ({"sampler": "tpe"}, "the sampler tpe needs --trials, the number of settings to try"),
        ({"trials": 3}, "--trials goes with the samplers tpe and random; a grid has as many settings"),
        ({"sampler": "tpe", "trials": 0}, "--trials must lie in 1..10000, got 0"),
        ({"heartbeat": 0}, "--heartbeat must be at least 1 second, got 0"),
        ({"method": "smm"}, "unknown method 'smm'; did you mean 'sam'"),
        ({"settings": {"sam": {"rho": 0.1}}}, "'rho' is in the grid and in the settings of sam; remove it from one"),
        ({"prune": True, "updates": 9}, "--prune goes by epochs and cannot be used with a budget of updates"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_runs(planned, change, message, tmp_path):
    with pytest.raises(UserError) as caught:
        planned(**change)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out" / "sweep.db").exists()


def test_a_sweep_is_of_one_method(task):
    with pytest.raises(UserError, match=r"^a sweep is of one method, got 2; give one with --method"):
        plan(task(), ["rho=0.1"], Options(methods=("sam", "usam")))


def test_an_arm_of_ones_own(planned, alone):
    made = planned(("rho=0.05,0.1",), method="late", settings={"late": {"method": "sam", "after": 2, "lr": 0.05}})
    found = alone(made)
    assert (made.definition.name, made.definition.method) == ("late", "sam")
    assert made.definition.hyperparameters["after"] == 2
    assert [point.state for point in found.points] == ["finished"] * 2


def test_from_python(task, tmp_path):
    found = sweep(
        task(), "sam", {"rho": [0.05, 0.1]}, base="sgd", seeds=2, epochs=2, jobs=1, out=tmp_path / "o", heartbeat=1
    )
    assert found.setting["rho"] in (0.05, 0.1)
    assert found.plan.definition.seeds == (1000, 1001)
    assert str(found) == (tmp_path / "o/table.md").read_text()
    with pytest.raises(UserError, match=r"^seeds: must be greater than or equal to 1, got 0"):
        sweep(task(), "sam", {"rho": [0.05]}, seeds=0)
