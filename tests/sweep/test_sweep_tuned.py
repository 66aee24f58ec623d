"""Comparisons whose settings are chosen by sweeps of the same size."""

from __future__ import annotations

import pytest
import yaml

from steppe.lab.comparing import comparison
from steppe.lab.errors import RunError
from steppe.lab.plans import options as config
from steppe.lab.plans.arms import Arm
from steppe.lab.plans.grid import parse
from steppe.lab.tuning.tuned import SEEDS, ranges, tune


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


def asked(task, tmp_path, **more):
    fields = {"task": task(), "base": "sgd", "methods": "sgd,mine", "jobs": 1, "out": str(tmp_path / "out")}
    own = {"mine": {"method": "sam", "momentum": 0.5, "lr": 0.02, "rho": 0.01, "updates": 7}}
    return config.from_flags({**fields, "settings": own, **more})


def test_every_row_chooses_out_of_as_many_and_keeps_what_the_user_says(task, tmp_path):
    seen = []
    options, found = tune(asked(task, tmp_path), 3, lambda plan: seen.append(plan) or Looking())
    assert [plan.arm.name for plan in seen] == list(found) == ["sgd", "mine"]
    for name, sweep in found.items():
        assert len(sweep.points) == 3
        assert {len(point.seeds) for point in sweep.points if point.state == "finished"} == {SEEDS}
        assert {result.seed for point in sweep.points for result in point.seeds} <= {1000, 1001}  # no comparison's
        chosen = options.settings[name].hyperparameters
        assert sweep.setting.items() <= chosen.items()
    mine = options.settings["mine"]
    assert (mine.method, mine.updates, mine.hyperparameters["momentum"]) == ("sam", 7, 0.5)
    assert 0.002 <= mine.hyperparameters["lr"] <= 0.2
    assert 0.001 <= mine.hyperparameters["rho"] <= 0.1
    assert found["mine"].plan.arm.updates == 7
    plan = comparison.plan(options.task, options)
    assert {arm.name: arm.hyperparameters["lr"] for arm in plan.arms} == {
        name: sweep.setting["lr"] for name, sweep in found.items()
    }
    before = len((tmp_path / "trained.txt").read_text().splitlines())
    assert before == 2 * 3 * SEEDS
    again, _ = tune(asked(task, tmp_path), 3)
    assert again == options
    assert len((tmp_path / "trained.txt").read_text().splitlines()) == before


class Looking:
    """An observer that looks at nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def begin(self, total, kept):
        pass

    def note(self, message):
        pass

    def running(self, trials):
        pass

    def finished(self, point):
        pass

    def warn(self, message):
        pass


def test_a_row_that_always_diverges_has_no_setting(task, tmp_path):
    hopeless = asked(task, tmp_path, methods="sgd", settings={"sgd": {"lr": 1e30, "momentum": 0.0}})
    with pytest.raises(RunError, match="all 1 settings of sgd diverged; give it a smaller lr in the settings"):
        tune(hopeless, 1)


def test_the_command_tunes_before_it_compares(task, tmp_path, command):
    words = ["compare", "--task", task(), "--base", "sgd", "--methods", "sgd", "--seeds", "3", "--jobs", "1"]
    code, out, _ = command(*words, "--tune", "2", "--out", tmp_path / "out")
    assert code == 0
    (said,) = [line for line in out.splitlines() if line.startswith("sgd, best of 2: lr ")]
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["settings"]["sgd"]
    assert f"lr {written['lr']:.4g}, weight_decay {written['weight_decay']:.4g}, validation squared error " in said
    assert (tmp_path / "out" / "tuning" / "sgd" / "heatmap.png").exists()


def test_a_row_of_which_settings_were_given_up_is_not_compared(task, tmp_path):
    deadly = "if multiprocessing.parent_process() and torch.initial_seed() == 1001: os.kill(os.getpid(), 9)"
    options = asked(lambda: task(also=deadly), tmp_path, methods="sgd")
    with pytest.raises(
        RunError, match=r"^settings of sgd were given up, since workers died; the same command goes on$"
    ):
        tune(options, 2)
