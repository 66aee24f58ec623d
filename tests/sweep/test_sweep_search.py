"""What is chosen, by whom, and what becomes of settings that diverge or look bad."""

from __future__ import annotations

import json
import os
from statistics import median

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import MedianPruner

from steppe.lab import RunError, UserError, sweep
from steppe.lab.crew.here import Here
from steppe.lab.crew.local import LocalCrew
from steppe.lab.judge.points import Point, SeedResult, point, score
from steppe.lab.judge.pruning import Medians, falls_behind
from steppe.lab.plans.options import Options
from steppe.lab.plans.sweep import plan
from steppe.lab.sweeping.search import Search
from steppe.lab.sweeping.sweeping import run
from steppe.lab.trials.records import Curve, Final, Record


def test_random_settings_depend_on_their_number_alone(planned, alone, tmp_path):
    grid = ("rho=0.01:1:log", "lr=0.01:0.1", "nesterov=true,false")
    more = {"settings": {"sam": {"momentum": 0.9}}, "sampler": "random", "trials": 9}
    first = [point.setting for point in alone(planned(grid, **more)).points]
    other = planned(grid, out=str(tmp_path / "other"), **{**more, "trials": 4})
    assert [point.setting for point in alone(other).points] == first[:4]
    assert len({setting["rho"] for setting in first}) == 9
    assert all(0.01 <= setting["rho"] <= 1 and 0.01 <= setting["lr"] <= 0.1 for setting in first)
    assert {setting["nesterov"] for setting in first} == {True, False}
    assert min(setting["rho"] for setting in first) < 0.1  # equal ratios: half of them lie below


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_drawn_has_four_digits_and_stays_within_its_range(planned, alone, sampler):
    low, high = 0.012345678, 0.012349999
    made = planned(("rho=0.01:1:log", f"lr={low}:{high}"), sampler=sampler, trials=14, epochs=1)
    for found in alone(made).points:
        assert float(f"{found.setting['rho']:.4g}") == found.setting["rho"]
        assert low <= found.setting["lr"] <= high


def test_tpe_learns(planned, alone):
    """A third of all learning rates, by their logarithm, are good; after twenty, most that are tried are."""
    found = alone(planned(("lr=1e-6:1:log",), sampler="tpe", trials=40, epochs=1, method="sgd"))
    good = [0.003 < point.setting["lr"] < 0.3 for point in found.points]
    assert len(good) == 40
    assert sum(good[:20]) < 13
    assert sum(good[20:]) > 13


def told(swept):
    """All that a sweep says but how long it took."""
    return [told_of(point) for point in swept.points]


def told_of(point):
    results = [result.model_copy(update={"seconds": 0.0}) for result in point.seeds]
    return point.setting, point.state, results, point.curve


@pytest.mark.parametrize("prune", [False, True])
def test_what_tpe_tries_and_finds_does_not_depend_on_the_crew(planned, tmp_path, prune):
    found = []
    for name, jobs in (("three", 3), ("here", 0)):
        made = planned(
            ("lr=1e-6:1e5:log", "momentum=0,0.9"),
            sampler="tpe",
            trials=16,
            epochs=4,
            seeds=2,
            method="sgd",
            prune=prune,
            out=str(tmp_path / name),
        )
        if jobs == 0:  # nobody listens there, so nothing is stopped early
            found.append(told(run(made, joined=Here)))
        else:
            with LocalCrew(jobs) as crew:
                found.append(told(run(made, joined=lambda crew=crew: crew)))
    assert found[0] == found[1]
    states = {state for _, state, _, _ in found[0]}
    assert states == {"finished", "diverged", "pruned"} if prune else states == {"finished", "diverged"}


def test_settings_that_were_chosen_are_kept_and_more_may_follow(planned, alone, tmp_path):
    few = alone(planned(("rho=0.01:1:log",), sampler="tpe", trials=6))
    names = sorted(path.name for path in (tmp_path / "out" / "settings").iterdir())
    assert [name[:6] for name in names] == [f"{slot:05d}-" for slot in range(6)]
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 6
    more = alone(planned(("rho=0.01:1:log",), sampler="tpe", trials=14))
    assert told(more)[:6] == told(few)
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 14
    at_once = alone(planned(("rho=0.01:1:log",), sampler="tpe", trials=14, out=str(tmp_path / "other")))
    assert told(more) == told(at_once)  # the last four are no random ones


def test_a_finer_grid_trains_what_is_new(planned, alone, tmp_path):
    alone(planned(("rho=0.1,0.2",)))
    found = alone(planned(("rho=0.05,0.1,0.2,0.4",)))
    assert [point.state for point in found.points] == ["finished"] * 4
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 4


def test_equal_settings_are_trained_once(planned, alone, tmp_path):
    found = alone(planned(("nesterov=true,false",), settings={"sam": {"momentum": 0.9}}, sampler="random", trials=6))
    assert [point.state for point in found.points] == ["finished"] * 6
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 2
    with LocalCrew(3) as crew:  # also where the first of them still runs
        again = run(
            planned(("nesterov=true,false",), settings={"sam": {"momentum": 0.8}}, sampler="random", trials=6),
            joined=lambda: crew,
        )
    assert [point.state for point in again.points] == ["finished"] * 6
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 4


def test_divergence_is_a_result(planned, alone):
    found = alone(planned(("lr=0.05,1e6",), seeds=3, method="sgd"))
    good, bad = found.points
    assert (good.state, bad.state) == ("finished", "diverged")
    assert [result.diverged for result in bad.seeds] == [1]  # the other seeds would not change the choice
    assert (bad.validation, bad.test) == (None, None)
    assert found.best is good
    assert found.verdict[-1] == "Of 2 settings, 1 diverged."


def seed(number, value):
    return SeedResult(
        seed=number,
        validation_metric=value,
        diverged=3 if value is None else None,
        curve=() if value is None else (2 * value, value),
        gradient_evaluations=1,
        seconds=1.0,
    )


def test_a_setting_is_as_bad_as_its_worst_seed():
    fine, bad, more = seed(0, 0.9), seed(1, None), seed(2, 0.8)
    whole = point(0, {}, [fine, more], stopped=None, given_up=False)
    assert (whole.state, whole.curve) == ("finished", (1.8, 0.9))
    assert score(whole, higher_is_better=True) == pytest.approx(0.85)
    broken = point(0, {}, [fine, bad, more], stopped=None, given_up=False)
    assert (broken.state, broken.seeds, broken.validation) == ("diverged", (fine, bad), None)
    assert score(broken, higher_is_better=True) == float("-inf")
    assert score(broken, higher_is_better=False) == float("inf")
    assert point(0, {}, [fine], stopped=None, given_up=True).state == "given up"


def test_the_best_is_chosen_on_validation_data(planned, alone):
    found = alone(planned(("lr=0.001,0.05",), seeds=2, method="sgd"))
    assert found.setting == {"lr": 0.05}
    assert [point.setting["lr"] for point in found.ranked] == [0.05, 0.001]
    best = found.best
    assert best.validation.n == 2
    assert best.validation.value == pytest.approx(sum(result.validation_metric for result in best.seeds) / 2)
    assert best.validation.value < found.ranked[1].validation.value  # an error: lower is better
    assert found.edges == ["lr"]


def test_settings_that_look_bad_are_pruned(planned, alone, tmp_path):
    """After five that were finished, and halfway through the first seed, though this one is bad from the beginning."""
    grid = {"weight_decay": [0, 1e-5, 2e-5, 3e-5, 1e-4, 2e-4, 3e-4, 4e-4, 20.0]}
    more = {"epochs": 6, "seeds": 2, "method": "sgd"}
    found = run(planned(grid, prune=True, **more))
    *others, worst = found.points
    assert [point.state for point in others] == ["finished"] * 8
    assert (worst.state, worst.seeds, worst.validation, len(worst.curve)) == ("pruned", (), None, 3)
    assert found.verdict[-1] == "Of 9 settings, 1 pruned (looked bad halfway)."
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 16
    trained = (tmp_path / "trained.txt").read_text()
    assert told(run(planned(grid, prune=True, **more))) == told(found)
    assert (tmp_path / "trained.txt").read_text() == trained  # also what was stopped is not trained again
    kept = alone(planned(grid, **more))
    assert [point.state for point in kept.points] == ["finished"] * 9
    assert kept.ranked[-1].setting == {"weight_decay": 20.0}


def test_random_settings_may_be_pruned_and_the_same_command_goes_on(planned, alone, tmp_path):
    asked = {"grid": ("lr=1e-6:0.1:7log",), "sampler": "random", "trials": 14, "prune": True, "method": "sgd"}
    found = alone(planned(**asked, epochs=4))  # the count of the range is for a grid
    assert {point.state for point in found.points} == {"finished", "pruned"}
    assert told(alone(planned(**asked, epochs=4))) == told(found)


def test_a_seed_that_was_lost_beside_one_that_diverged_is_trained_again(planned, task, tmp_path):
    bad = task(also="if torch.initial_seed() == 1002: return Net(nn.Linear(3, 8), nn.Linear(8, 1)).fill()")
    text = (tmp_path / "square.py").read_text()
    (tmp_path / "square.py").write_text(
        text.replace(
            "    def forward(self, x):",
            "    def fill(self):\n        torch.nn.init.constant_(self[0].weight, 1e38)\n        return self\n\n"
            "    def forward(self, x):",
        )
    )
    made = planned(("rho=0.1",), seeds=4, task=bad)
    (point,) = run(made, joined=Here).points
    assert (point.state, [result.seed for result in point.seeds]) == ("diverged", [1000, 1001, 1002])
    (lost,) = (tmp_path / "out" / "trials").glob("sam-1001-*")
    lost.unlink()
    (again,) = run(made, joined=Here).points
    assert told_of(again) == told_of(point)


def test_what_depends_on_a_setting_that_was_given_up_is_not_kept(planned, tmp_path):
    made = planned(("lr=0.001:0.1:log",), sampler="tpe", trials=9)
    search, tried = Search(made), []
    while (config := search.following()) is not None:
        tried.append(config.hyperparameters["lr"])
        if len(tried) == 2:
            assert search.given_up(config)
        else:
            search.ended(config, recorded(config, 1.0))
    assert len(tried) == 9
    assert search.done
    kept = sorted(path.name[:5] for path in (tmp_path / "out" / "settings").iterdir())
    assert kept == [f"{number:05d}" for number in range(5)]  # it may come to its end in another run


def test_settings_that_cannot_be_written(planned, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings").write_text("")
    with pytest.raises(UserError, match=r"^the output folder '\S+/out' cannot be written: File exists; choose another"):
        planned(sampler="random", trials=2)
    (tmp_path / "out" / "settings").unlink()
    made = planned(sampler="random", trials=2)
    (tmp_path / "out" / "settings").rmdir()
    (tmp_path / "out" / "settings").write_text("")
    with pytest.raises(RunError, match=r"^a setting cannot be written to \S+/out: (File exists|Not a directory)$"):
        Search(made).following()


def recorded(config, metric):
    final = Final(
        train_loss=1.0, train_metric=1.0, validation_loss=1.0, validation_metric=metric, test_loss=1.0, test_metric=1.0
    )
    curve = {name: [1.0] for name in ("train_loss", "validation_loss", "seconds")}
    counts = {"gradient_evaluations": [1], "examples": [1]}
    return Record(
        key=config.key, config=config, status="finished", final=final, gradient_evaluations=1, examples=1, updates=1,
        seconds=1.0, versions={}, curve=Curve(**curve, **counts, validation_metric=[metric]),
    )  # fmt: skip


curves = st.lists(st.floats(-10, 10).map(lambda x: round(x, 1)), min_size=4, max_size=4)


@given(others=st.lists(curves, max_size=9), curve=curves, higher=st.booleans())
@settings(max_examples=60, deadline=None)
def test_pruning_is_that_by_the_median_of_optuna(others, curve, higher):
    points = [Point(i, {}, "finished", (), tuple(other)) for i, other in enumerate(others)]
    points.append(Point(99, {}, "diverged", (), (1.0,)))
    medians = Medians()
    for one in points:
        medians.add(one)
    bars = medians.bars
    assert (bars is None) == (len(others) < 5)
    assert bars is None or list(bars) == [median(column) for column in zip(*others, strict=True)]
    ours = None if bars is None else falls_behind(curve, bars, higher)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if higher else "minimize", pruner=MedianPruner(5, 2))
    for other in others:
        study.add_trial(optuna.create_trial(value=0.0, intermediate_values=dict(enumerate(other, start=1))))
    trial, theirs = study.ask(), None
    for epoch, value in enumerate(curve, start=1):
        trial.report(value, epoch)
        if trial.should_prune():
            theirs = epoch
            break
    assert ours == theirs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Invalid JSON: EOF while parsing a value"),
        ("[]", "Input should be an object"),
        ('{"setting": {"rho": "0.1"}}', "setting.rho."),
        ('{"setting": {"rho": NaN}}', "setting.rho."),
        ('{"setting": {"rho": 7.0}}', "its values are not of the grid"),
        ('{"setting": {"rho": true}}', "its values are not of the grid"),
        ('{"setting": {"lr": 0.1}}', "its values are not of the grid"),
        ('{"setting": {"rho": 0.1}, "more": 1}', "more: Extra inputs are not permitted"),
        ('{"setting": {"rho": 0.1}, "stopped": [1e999]}', "stopped."),
        (None, "it is no file"),
    ],
)
def test_settings_are_read_strictly_and_left_where_they_are(planned, alone, tmp_path, content, message):
    asked = {"grid": ("rho=0.01:1:log",), "sampler": "random", "trials": 2}
    alone(planned(**asked))
    path = min((tmp_path / "out" / "settings").iterdir())
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        alone(planned(**asked))
    assert str(caught.value).startswith(f"{path} is not a setting of this sweep: {message}")
    assert str(caught.value).endswith(". Move it away, and the setting is chosen again")
    assert content is None or path.read_text() == content


def test_a_record_of_something_else_is_refused(planned, alone, tmp_path):
    alone(planned(("rho=0.1,0.2",)))
    one, other = sorted((tmp_path / "out" / "trials").iterdir())
    content = json.loads(one.read_text())
    one.write_text(json.dumps({**content, "seconds": -1.0}))
    with pytest.raises(UserError, match=r"is not the record of a finished trial: counts and seconds must not be neg"):
        alone(planned(("rho=0.1,0.2",)))
    one.write_text(other.read_text())
    with pytest.raises(UserError, match=r"it is the record of another trial"):
        alone(planned(("rho=0.1,0.2",)))


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
        ({"sampler": "tpe", "trials": 0}, "--trials must be a whole number in 1..10000, got 0"),
        ({"study": "mine"}, "--study is a name in the database of --storage; give that too"),
        ({"crew": "tcp://h:1", "timeout": 9}, "--timeout is of worker processes here; a Dask cluster has limits"),
        ({"timeout": 0}, "timeout: must be greater than 0, got 0"),
        ({"method": "smm"}, "unknown method 'smm'; did you mean 'sam'"),
        ({"settings": {"sam": {"rho": 0.1}}}, "'rho' is in the grid and in the settings of sam; remove it from one"),
        ({"prune": True, "updates": 9}, "--prune goes by epochs and cannot be used with a budget of updates"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_runs(planned, change, message, tmp_path):
    with pytest.raises(UserError) as caught:
        planned(**change)
    assert str(caught.value).removeprefix("--").startswith(message.removeprefix("--"))
    assert not (tmp_path / "out" / "trials").exists()


def test_a_sweep_is_of_one_method(task):
    with pytest.raises(UserError, match=r"^a sweep is of one method, got 2; give one with --method"):
        plan(task(), ["rho=0.1"], Options(methods=("sam", "usam")))


def test_an_arm_of_ones_own(planned, alone):
    made = planned(("rho=0.05,0.1",), method="late", settings={"late": {"method": "sam", "after": 2, "lr": 0.05}})
    found = alone(made)
    assert (made.arm.name, made.arm.method) == ("late", "sam")
    assert made.arm.hyperparameters["after"] == 2
    assert [point.state for point in found.points] == ["finished"] * 2


def test_from_python(task, tmp_path):
    found = sweep(task(), "sam", {"rho": [0.05, 0.1]}, base="sgd", seeds=2, epochs=2, jobs=1, out=tmp_path / "o")
    assert found.setting["rho"] in (0.05, 0.1)
    assert found.plan.seeds == (1000, 1001)
    assert str(found) == (tmp_path / "o/table.md").read_text()
    with pytest.raises(UserError, match=r"^seeds: must be greater than or equal to 1, got 0"):
        sweep(task(), "sam", {"rho": [0.05]}, seeds=0)
