"""Comparisons whose settings are chosen by sweeps of the same size."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import yaml

from steppe.lab import UserError, compare
from steppe.lab.comparing import comparison
from steppe.lab.crew.runner import Silence
from steppe.lab.errors import RunError
from steppe.lab.judge.setting_words import how_set
from steppe.lab.plans import options as config
from steppe.lab.plans.arms import Arm
from steppe.lab.plans.budget import AUTO, Budget, budget_of
from steppe.lab.plans.choices import Choice, Tried
from steppe.lab.plans.comparison import planned
from steppe.lab.plans.grid import parse
from steppe.lab.trials.timing import Pace
from steppe.lab.tuning.estimate import Estimate
from steppe.lab.tuning.ranges import axes, ranges
from steppe.lab.tuning.tuned import SEEDS, prepare, tune

LOOP = """
import torch
from torch import nn

def train(run):
    model = nn.Linear(3, 1)
    opt = run.optimizer(model)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    for epoch in range(3):
        run.step(opt, (x, y), lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1]))
        {report}
    return {{"mse": nn.functional.mse_loss(model(x), y).item()}}
"""


@pytest.mark.parametrize(
    ("hyperparameters", "varied"),
    [
        ({"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "rho": 0.05}, ["lr=0.01:1:log", "rho=0.005:0.5:log"]),
        ({"lr": 1e-3, "weight_decay": 0.01}, ["lr=0.0001:0.01:log", "weight_decay=0.001:0.1:log"]),
        ({"lr": 0.3, "weight_decay": 0.0}, ["lr=0.03:3:log"]),
        ({"lr": 0.1, "rho": 0.0, "weight_decay": 0.1}, ["lr=0.01:1:log", "weight_decay=0.01:1:log"]),
    ],
)
def test_two_numbers_are_varied_around_what_they_would_be(hyperparameters, varied):
    assert ranges(Arm("any", "any", hyperparameters)) == varied
    assert len(parse(varied, counted=False)) == len(varied)


def test_what_a_method_refuses_within_its_range_is_not_varied(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n"
        "def careful(params, lr=0.1, rho=0.5):\n"
        "    if rho > 1:\n"
        "        raise ValueError('rho is at most 1')\n"
        "    return torch.optim.SGD(params, lr=lr)\n"
    )
    found = axes(Arm("careful", f"{path}:careful", {"lr": 0.1, "rho": 0.5}), "sgd")
    assert [axis.words for axis in found] == ["lr=0.01:1:log"]
    assert len(axes(Arm("careful", f"{path}:careful", {"lr": 0.1, "rho": 0.1}), "sgd")) == 2


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("auto", AUTO),
        (0, Budget(settings=0)),
        ("0", Budget(settings=0)),
        (12, Budget(settings=12)),
        ("90s", Budget(seconds=90)),
        ("5 min", Budget(seconds=300)),
        ("1.5h", Budget(seconds=5400)),
    ],
)
def test_a_budget_is_settings_or_a_time(text, budget):
    assert budget_of(text) == budget


@pytest.mark.parametrize("text", [1, "1", -1, True, "often", "5 parsecs", "0s", 2.5, "99999999999", "1e9"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(
        UserError, match=r"^tune: must be auto, 0, a whole number of settings from 2 to 10000, or a time"
    ):
        config.from_flags({"tune": text}, prefix="")


def asked(task, tmp_path, **more):
    fields = {"task": task(), "base": "sgd", "methods": "sgd,mine", "jobs": 1}
    own = {"mine": {"method": "sam", "momentum": 0.5, "lr": 0.02, "rho": 0.01, "updates": 7}}
    options = config.from_flags({**fields, "settings": own, **more})
    return planned(options.task, options, tmp_path / "out")


def trained(tmp_path):
    path = tmp_path / "trained.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_every_row_chooses_out_of_as_many_and_keeps_what_the_user_says(task, tmp_path):
    plan, loaded = asked(task, tmp_path)
    before = {arm.name: arm.hyperparameters for arm in plan.arms}
    made, found = tune(prepare(plan, loaded, Budget(settings=3)), Silence())
    assert list(found) == ["sgd", "mine"]
    after = {arm.name: arm for arm in made.arms}
    for name, sweep in found.items():
        assert len(sweep.points) == 3
        assert {len(point.seeds) for point in sweep.points if point.state == "finished"} == {SEEDS}
        assert {result.seed for point in sweep.points for result in point.seeds} <= {1000, 1001}  # no comparison's
        # The first is what the row would have been, so that the best is at least as good.
        assert sweep.points[0].setting.items() <= before[name].items()
        assert sweep.best.validation.value <= sweep.points[0].validation.value
        assert after[name].hyperparameters == {**before[name], **sweep.setting}
        assert after[name].choice.model_dump() == {
            "settings": 3,
            "seeds": 2,
            "varied": tuple(sweep.setting),
            "chosen": sweep.setting,
            "validation": sweep.best.validation.value,
            "tried": tuple({"setting": point.setting, "validation": point.validation.value} for point in sweep.points),
        }
    mine = after["mine"]
    assert (mine.method, mine.updates, mine.hyperparameters["momentum"], mine.set_by) == ("sam", 7, 0.5, "chosen")
    assert found["mine"].plan.arm.updates == 7
    assert trained(tmp_path) == 2 * 3 * SEEDS
    again = prepare(*asked(task, tmp_path), Budget(settings=3))
    assert again.words == ""
    assert tune(again, Silence())[0].arms == made.arms
    assert trained(tmp_path) == 2 * 3 * SEEDS
    more = prepare(*asked(task, tmp_path), Budget(settings=4))
    assert more.rows.left == {"sgd": 1, "mine": 1}


@pytest.mark.parametrize(
    ("budget", "more", "chooses"),
    [
        (AUTO, {}, ["sgd"]),
        (AUTO, {"settings": {"sgd": {"lr": 0.1, "momentum": 0.5}}, "methods": "sgd,sam"}, ["sam"]),
        (AUTO, {"name": "digits", "settings": {}, "methods": "sgd,sam"}, []),
        (Budget(settings=2), {"name": "digits", "settings": {}, "methods": "sgd,sam"}, ["sgd", "sam"]),
        (Budget(settings=0), {}, []),
    ],
)
def test_unless_asked_rows_choose_whose_settings_nobody_has_chosen(task, tmp_path, budget, more, chooses):
    more = dict(more)
    name = more.pop("name", None)
    rows = prepare(*asked(task if name is None else lambda: name, tmp_path, **more), budget).rows
    assert ([] if rows is None else list(rows.plans)) == chooses
    if rows is not None:
        assert {plan.count for plan in rows.plans.values()} == {budget.settings}


def test_the_epochs_of_a_comparison_are_those_of_its_tuning(task, tmp_path):
    _, found = tune(prepare(*asked(task, tmp_path, epochs=2, methods="sgd"), Budget(settings=2)), Silence())
    assert {len(result.curve) for point in found["sgd"].points for result in point.seeds} == {2}


def test_a_time_becomes_a_number_of_settings_that_stays(task, tmp_path, monkeypatch):
    def takes(seconds):
        def estimate(plan, *_):
            return Estimate(dict.fromkeys(plan.names, seconds), at_once=2)

        monkeypatch.setattr("steppe.lab.tuning.tuned.estimate", estimate)

    def number(seconds):
        made = prepare(*asked(task, tmp_path), Budget(seconds=seconds))
        return {plan.count for plan in made.rows.plans.values()}

    takes(2.0)  # so that one setting of both rows takes 4 seconds on two workers
    assert number(21.0) == {5}
    takes(50.0)
    assert number(21.0) == {5}  # decided once
    assert number(22.0) == {2}  # the fewest
    kept = sorted((tmp_path / "out/tuning").glob("budget-*.json"))
    assert sorted(json.loads(path.read_text())["settings"] for path in kept) == [2, 5]
    for path in kept:
        path.write_text("{}")
    with pytest.raises(UserError, match="is not how many settings a budget of time is"):
        number(21.0)


def test_nobody_knows_what_a_time_is_enough_for_elsewhere(task, tmp_path):
    made = asked(task, tmp_path)
    with ThreadPoolExecutor(1) as executor, pytest.raises(UserError, match="give --tune a number of settings"):
        prepare(*made, Budget(seconds=60), executor)
    prepared = prepare(*made, Budget(settings=2), executor)
    assert prepared.words.startswith("2 rows choose out of 2 settings (8 trainings), then ")


def test_what_will_be_done_is_said_with_its_time(task, tmp_path):
    made = prepare(*asked(task, tmp_path, seeds=5), Budget(settings=3))
    words = replace(made, time=Estimate({"sgd": 2.0, "mine": 6.0}, at_once=2)).words
    assert words == (
        "2 rows choose out of 3 settings (12 trainings, about 24 s), then 10 trainings (about 20 s); "
        "--tune 0 leaves settings as they are"
    )
    assert replace(made, time=None).words.startswith(
        "2 rows choose out of 3 settings (12 trainings), then 10 trainings;"
    )
    assert made.time.at_once == 1
    assert made.time.rows["mine"] > 0


def test_the_time_of_a_trial_is_that_of_its_steps_and_looks(task, tmp_path):
    """A pass takes 5 ms: 9 updates of one and two gradients, and looks at validation and, in the end, at all splits."""
    made = prepare(*asked(lambda: task(pause=0.005), tmp_path, methods="sgd,sam", settings={}), Budget(settings=2))
    assert 0.065 < made.time.rows["sgd"] < 0.2
    assert 0.11 < made.time.rows["sam"] < 0.4
    assert Pace(0.01, 0.1, 0.5).trial(updates=9, epochs=3, passes=2.0) == pytest.approx(0.98)


def test_a_row_that_always_diverges_stays_as_it_is(task, tmp_path):
    hopeless = asked(task, tmp_path, methods="sgd", settings={"sgd": {"lr": 1e30, "momentum": 0.0}})
    made, found = tune(prepare(*hopeless, Budget(settings=2)), Silence())
    assert found["sgd"].setting is None
    assert made.arms == hopeless[0].arms
    assert how_set(made).startswith("Settings are the user's, since all 2 that were tried diverged")


def test_all_rows_try_the_same_rates_beside_what_else_they_have(task, tmp_path):
    made = prepare(*asked(task, tmp_path, methods="sgd,sam", settings={}), Budget(settings=4))
    plan, _ = tune(made, Silence())
    for arm, own in zip(plan.arms, made.plan.arms, strict=True):
        (rate, other), *more = (tuple(one.setting.values()) for one in arm.choice.tried)
        assert (rate, other) == (own.hyperparameters["lr"], own.hyperparameters[arm.choice.varied[1]])
        assert more[:2] == [
            (pytest.approx(rate * 10**0.5, rel=1e-3), other),
            (pytest.approx(rate / 10**0.5, rel=1e-3), other),
        ]
        assert more[2][1] != other


@pytest.mark.parametrize(
    ("chosen", "edges"),
    [({"lr": 0.1, "rho": 0.2}, ("rho",)), ({"lr": 1.0, "rho": 0.1}, ("lr",)), ({"lr": 0.1, "rho": 0.1}, ())],
)
def test_what_is_best_at_the_edge_is_said(chosen, edges):
    settings = [{"lr": lr, "rho": rho} for lr, rho in ((0.01, 0.1), (0.1, 0.05), (1.0, 0.2), (0.1, 0.1))]
    tried = tuple(Tried(setting=setting, validation=1.0) for setting in settings)
    assert Choice(settings=4, seeds=2, varied=("lr", "rho"), chosen=chosen, tried=tried).edges == edges
    assert Choice(settings=4, seeds=2, varied=("lr", "rho"), chosen=chosen).edges == ()


def test_the_command_tunes_before_it_compares(task, tmp_path, command):
    words = ["compare", "--base", "sgd", "--seeds", "3", "--jobs", "1", "--out", tmp_path / "out"]
    code, out, _ = command(*words, "--task", task(), "--methods", "sgd,sam", "--tune", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("2 rows choose out of 2 settings (8 trainings, about ")
    (said,) = [line for line in lines if line.startswith("sgd, best of 2: lr ")]
    content = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    written = content["settings"]["sgd"]
    assert f"lr {written['lr']:.4g}, weight_decay {written['weight_decay']:.4g}, validation squared error " in said
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["tuned"] == content["tuned"]
    assert results["tuned"]["sam"]["chosen"].items() <= results["settings"]["sam"].items()
    assert len(results["tuned"]["sam"]["tried"]) == 2
    assert results["how_set"] == (
        "Settings: each row's lr and rho (lr and weight_decay of sgd) are the best of 2 on validation data "
        "(2 seeds each); lr of sgd and sam is at the edge of what was tried."
    )
    assert results["how_set"] in unescape((tmp_path / "out/report.html").read_text())
    # The file that it has written comes out the same, and is not tuned once more.
    before = (tmp_path / "out/table.md").read_text()
    code, out, _ = command(*words, "--config", tmp_path / "out/config.yaml")
    assert code == 0
    assert out.startswith("6 of 6 trials were finished in an earlier run\n")
    assert (tmp_path / "out/table.md").read_text() == before
    assert json.loads((tmp_path / "out/results.json").read_text())["how_set"] == results["how_set"]


def test_a_file_says_how_much_is_tuned_and_python_does_what_it_says(task, tmp_path, command):
    path = tmp_path / "c.yaml"
    path.write_text(f"task: {task()}\nbase: sgd\nmethods: sgd\nseeds: 1\njobs: 1\ntune: 2\nout: {tmp_path / 'file'}\n")
    code, out, _ = command("compare", "--config", path)
    assert (code, out.startswith("1 row chooses out of 2 settings (4 trainings")) == (0, True)
    plain = compare(task(), methods=["sgd"], base="sgd", seeds=1, jobs=0, out=tmp_path / "plain")
    assert plain.plan.arms[0].choice is None
    assert not (tmp_path / "plain/tuning").exists()
    found = compare(task(), methods=["sgd"], base="sgd", seeds=1, jobs=0, out=tmp_path / "python", tune=2)
    kept = json.loads((tmp_path / "file/results.json").read_text())["tuned"]
    assert found.plan.tuned == kept  # the same in this process as in workers


def test_the_best_setting_of_a_sweep_is_one_that_was_chosen(task, tmp_path, command):
    words = ["--task", task(), "--base", "sgd", "--jobs", "1", "--seeds", "1"]
    grid = ["rho=0.05,0.1", "lr=0.01,0.02,0.05"]
    assert command("sweep", "--grid", *grid, *words, "--out", tmp_path / "sweep")[0] == 0
    (arm,) = config_plan(tmp_path / "sweep/best.yaml", methods="sam").arms
    assert arm.set_by == "chosen"
    assert (arm.choice.settings, arm.choice.seeds, arm.choice.varied) == (6, 1, ("rho", "lr"))
    assert arm.choice.chosen.items() <= arm.hyperparameters.items()


def config_plan(path, **more):
    asked = config.merge(config.from_flags(more), config.from_file(path))
    return comparison.planned(asked.task, asked, Path(path).parent / "out")[0]


def test_a_setting_that_was_changed_by_hand_is_the_users(task, tmp_path):
    choice = {"settings": 6, "seeds": 2, "varied": ["lr"], "chosen": {"lr": 0.1}}
    for lr, by in ((0.1, "chosen"), (0.2, "given")):
        plan, _ = asked(task, tmp_path, methods="sgd", settings={"sgd": {"lr": lr}}, tuned={"sgd": choice})
        assert plan.arms[0].set_by == by


@pytest.mark.parametrize(("lr", "state"), [(0.01, "tuned"), (1e25, "diverges")])
def test_a_loop_chooses_by_what_it_reports(tmp_path, command, lr, state):
    path = tmp_path / "own.py"
    report = "run.report(epoch, mse=nn.functional.mse_loss(model(x), y))"
    path.write_text(LOOP.format(report=report))
    words = ["compare", "--task", f"{path}:train", "--base", "sgd", "--methods", "sgd", "--seeds", 1, "--jobs", 1]
    (tmp_path / "c.yaml").write_text(f"settings: {{sgd: {{lr: {lr}, momentum: 0.9}}}}\n")
    code, out, _ = command(*words, "--config", tmp_path / "c.yaml", "--tune", 3, "--out", tmp_path / "out")
    assert code == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    if state == "diverges":
        assert out.splitlines()[1] == "settings are not tuned: the first training of own.py:train diverged"
        assert found["tuned"] == {}
        return
    tried = found["tuned"]["sgd"]["tried"]
    assert tried[0]["setting"] == {"lr": 0.01, "weight_decay": 0.0005}
    # Less is better, as its name says.
    assert found["tuned"]["sgd"]["validation"] == min(one["validation"] for one in tried)
    assert found["metric"] == "mse"


def test_a_loop_that_reports_nothing_is_not_tuned_and_that_is_said(tmp_path, command):
    path = tmp_path / "own.py"
    path.write_text(LOOP.format(report="pass"))
    words = ["compare", "--task", f"{path}:train", "--base", "sgd", "--methods", "sgd,sam", "--seeds", 1, "--jobs", 1]
    code, out, _ = command(*words, "--out", tmp_path / "out")
    assert code == 0
    said = "settings are not tuned: own.py:train tells run.report no metric on validation data, by which they could be"
    first, second, *_ = out.splitlines()
    assert first == "one training tells by what own.py:train can choose settings, and how long that takes"
    assert second.startswith(said)
    assert command(*words, "--out", tmp_path / "out")[1].startswith(said)  # it was trained already
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["how_set"] == (
        "Settings are defaults that nobody tuned for this task: compare again with --tune 12, for which run.report must be "
        "told a metric on validation data."
    )


def test_a_row_of_which_settings_were_given_up_is_not_compared(task, tmp_path):
    deadly = "if multiprocessing.parent_process() and torch.initial_seed() == 1001: os.kill(os.getpid(), 9)"
    prepared = prepare(*asked(lambda: task(also=deadly), tmp_path, methods="sgd"), Budget(settings=2))
    with pytest.raises(
        RunError, match=r"^settings of sgd were given up, since workers died; the same command goes on$"
    ):
        tune(prepared, Silence())


def arm(name, set_by, *varied, settings=6):
    choice = Choice(settings=settings, seeds=2, varied=varied, chosen={"lr": 1.0}) if varied else None
    return Arm(name, name, {}, set_by=set_by, choice=choice)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (
            [arm("sam", "chosen", "lr", "rho"), arm("asam", "chosen", "lr", "rho")],
            "Settings: each row's lr and rho are the best of 6 on validation data (2 seeds each).",
        ),
        (
            [arm("sgd", "chosen", "lr", "weight_decay"), *(arm(n, "chosen", "lr", "rho") for n in ("sam", "asam"))],
            "Settings: each row's lr and rho (lr and weight_decay of sgd) are the best of 6 on validation data "
            "(2 seeds each).",
        ),
        ([arm("sam", "packaged")], "Settings are packaged for this task."),
        ([arm("sam", "given"), arm("sgd", "given")], "Settings are the user's."),
        (
            [arm("sgd", "default"), arm("sam", "default")],
            "Settings are defaults that nobody tuned for this task: compare again with --tune 12 before you believe a "
            "No.",
        ),
        (
            [arm("mine", "default"), arm("sgd", "given"), *(arm(n, "chosen", "lr") for n in "abcde")],
            "Settings: those of sgd are the user's; lr of all other rows are the best of 6 on validation data (2 seeds "
            "each); those of mine are defaults that nobody tuned for this task: compare again with --tune 12 before "
            "you believe a No.",
        ),
        (
            [arm("a", "chosen", "lr", settings=49), arm("b", "chosen", "lr")],
            "Settings: lr of a are the best of 49 on validation data (2 seeds each); lr of b are the best of 6 on "
            "validation data (2 seeds each).",
        ),
    ],
)
def test_how_rows_were_set_is_one_sentence(task, tmp_path, arms, said):
    plan, _ = asked(task, tmp_path)
    assert how_set(replace(plan, arms=tuple(arms))) == said
