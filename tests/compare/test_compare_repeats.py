"""One trial of a comparison is repeated where nothing was trained before, and must find the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import cells
from steppe.lab import RunError, compare
from steppe.lab.comparing import comparison
from steppe.lab.crew import repeating
from steppe.lab.crew.repeating import chosen, first_difference
from steppe.lab.crew.runner import Silence
from steppe.lab.plans.options import Options
from steppe.lab.plans.workers import Workers
from steppe.lab.store import repeats

CALM = """
import random
import numpy as np
import torch
from torch import nn
from steppe.lab import Task

g = torch.Generator().manual_seed(0)
x = torch.randn(60, 4, generator=g)
y = (x[:, 0] + 0.5 * torch.randn(60, generator=g) > 0).long()

def made(model=lambda: nn.Linear(4, 2), train=None, x=x, y=y, **more):
    first, *others = zip(torch.split(x, 20), torch.split(y, 20))
    return Task(model, train or first, *others, batch_size=8, epochs=1, **more)
"""
STATEFUL = {
    "a loss with state": """
class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(())

    def forward(self, outputs, targets):
        self.scale *= 1.01
        return self.scale * nn.functional.cross_entropy(outputs, targets)

def task():
    return made(loss=Loss())
""",
    "a dataset that changes itself": """
class Fading(torch.utils.data.Dataset):
    def __init__(self):
        self.x = x[:20].clone()

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.x[index] *= 0.99
        return self.x[index].clone(), y[index]

def task():
    return made(train=Fading())
""",
    "a generator that goes on": """
def task():
    g = torch.Generator().manual_seed(0)
    return made(loss=lambda o, t: nn.functional.cross_entropy(o + torch.randn(2, generator=g), t))
""",
    "a model of a loop": """
net = nn.Linear(4, 2)

def task(run):
    opt = run.optimizer(net)
    for _ in range(3):
        run.step(opt, (x, y), lambda batch: nn.functional.cross_entropy(net(batch[0]), batch[1]))
    loss = nn.functional.cross_entropy(net(x), y).item()
    run.report(loss=loss, accuracy=loss)
    return {"accuracy": loss}
""",
}
UNSEEDED = {
    "data of torch": "def task():\n    return made(x=x + torch.randn(60, 4))\n",
    "data of numpy": "def task():\n    return made(x=x + torch.tensor(np.random.randn(60, 4)).float())\n",
    "data of Python": "def task():\n    return made(x=x + random.random())\n",
    "data of the file": "shift = torch.randn(60, 4)\n\ndef task():\n    return made(x=x + shift)\n",
    "a generator of numpy": "def task():\n    drawn = np.random.default_rng().normal(size=(60, 4))\n"
    "    return made(x=x + torch.tensor(drawn).float())\n",
    "a generator in training": "def task():\n    g = np.random.default_rng()\n"
    "    return made(loss=lambda o, t: nn.functional.cross_entropy(o * (1 + g.random()), t))\n",
}
SEEDED = """
def task():
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(60, 4, generator=g)
    return made(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)), x=x + noise)
"""


@pytest.fixture
def unrepeated():
    """Here they do."""


class Noting(Silence):
    def __init__(self):
        self.notes, self.ran, self.trained = [], [], []

    def note(self, message):
        self.notes.append(message)

    def running(self, trials):
        self.ran += trials

    def finished(self, record):
        self.trained.append(record)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Write a task, and compare SGD with SAM on it."""
    monkeypatch.chdir(tmp_path)

    def run(body, *, seeds=2, jobs=0, observer=None, **more):
        Path("own.py").write_text(CALM + body)
        given = {"methods": ["sgd", "sam"], "base": "sgd", "seeds": seeds, "jobs": jobs, "out": "out", **more}
        return compare("own.py:task", observer=observer or Noting(), **given)

    return run


def outcome():
    (path,) = Path("out/repeats").iterdir()
    return json.loads(path.read_text())["difference"]


@pytest.mark.parametrize("what", STATEFUL)
def test_what_trials_share_is_found(asked, what):
    with pytest.raises(
        RunError, match=r"^sgd, seed 1, repeated, is not what it was: [^:]+ was [^ ]+ and is "
    ) as caught:
        asked(STATEFUL[what])
    assert "a loss, dataset or model that keeps something" in str(caught.value)
    assert "--no-check, check=False" in str(caught.value)
    assert len(list(Path("out/trials").iterdir())) == 4
    assert not Path("out/report.html").exists()


@pytest.mark.parametrize("what", UNSEEDED)
def test_what_is_drawn_without_a_seed_is_found(asked, what):
    with pytest.raises(RunError, match=r"^sgd, seed 1, repeated, is not what it was: .* is drawn without a seed"):
        asked(UNSEEDED[what])


@pytest.mark.parametrize("what", ["a loss with state", "a model of a loop", "data of numpy"])
def test_it_is_found_in_worker_processes_too(asked, what):
    with pytest.raises(RunError, match=r"^sgd, seed 1, repeated, is not what it was: "):
        asked((STATEFUL | UNSEEDED)[what], jobs=1)


def test_what_every_new_process_draws_alike_is_the_same(asked):
    noting = Noting()
    asked(UNSEEDED["data of torch"], jobs=1, observer=noting)
    assert noting.notes == ["sgd, seed 1, repeated in a new process: the same to the last digit"]


@pytest.mark.parametrize(("jobs", "where", "then"), [(0, "", "sam"), (2, " in a new process", "sgd")])
def test_a_finished_comparison_is_checked_once(asked, jobs, where, then):
    first, second = Noting(), Noting()
    asked(SEEDED, jobs=jobs, observer=first)
    assert first.notes == [f"sgd, seed 1, repeated{where}: the same to the last digit"]
    assert (first.ran[-1].label, len(first.trained), outcome()) == ("sgd, seed 1", 4, "")
    asked(SEEDED, jobs=jobs, observer=second)
    assert (second.notes, second.ran, second.trained) == ([], [], [])
    asked(SEEDED, jobs=jobs, observer=second, seeds=3)
    assert len(second.trained) == 2
    assert second.notes == [f"{then}, seed 2, repeated{where}: the same to the last digit"]


def test_what_was_found_is_said_again_and_not_without_the_check(asked):
    with pytest.raises(RunError) as first:
        asked(STATEFUL["a loss with state"])
    again = Noting()
    with pytest.raises(RunError) as second:
        asked(STATEFUL["a loss with state"], observer=again)
    assert str(first.value) == str(second.value)
    assert again.ran == []
    found = asked(STATEFUL["a loss with state"], check=False)
    assert len(found.records) == 4
    assert found.plan.command.count("--no-check") == 1
    assert yaml.safe_load(Path("out/config.yaml").read_text())["check"] is False


def test_a_trial_that_is_trained_anew_is_not_what_was_checked(asked):
    with pytest.raises(RunError):
        asked(UNSEEDED["data of numpy"])
    for path in Path("out/trials").iterdir():
        path.unlink()
    anew = Noting()
    with pytest.raises(RunError):
        asked(UNSEEDED["data of numpy"], observer=anew)
    assert [trial.label for trial in anew.ran] == [*(record.config.label for record in anew.trained), "sgd, seed 1"]


def test_a_check_that_was_interrupted_is_made_by_the_same_command(asked, monkeypatch):
    class Impatient(Noting):
        def running(self, trials):
            if len(self.trained) == 4:
                raise KeyboardInterrupt

    with pytest.raises(RunError, match=r"^interrupted: all trials are kept in out; the same command continues"):
        asked(SEEDED, observer=Impatient())
    assert outcome() is None
    later = Noting()
    asked(SEEDED, observer=later)
    assert (len(later.trained), len(later.notes), outcome()) == (0, 1, "")


def test_a_comparison_that_was_interrupted_is_checked_in_the_end(asked):
    class Impatient(Noting):
        def finished(self, record):
            raise KeyboardInterrupt

    with pytest.raises(RunError, match=r"^interrupted: 1 of 4"):
        asked(STATEFUL["a loss with state"], observer=Impatient())
    assert not Path("out/repeats").exists()
    with pytest.raises(RunError, match=r"^sgd, seed 1, repeated, is not what it was"):
        asked(STATEFUL["a loss with state"])


def test_a_command_that_is_killed_before_the_check_is_checked_the_next_time(asked, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "repeat_one", killed)
        with pytest.raises((RunError, KeyboardInterrupt)):
            asked(UNSEEDED["data of numpy"])
    assert not Path("out/repeats").exists()
    with pytest.raises(RunError, match=r"repeated, is not what it was"):
        asked(UNSEEDED["data of numpy"])


def test_the_command_says_it(tiny, tmp_path, command):
    words = ["compare", "--task", tiny, "--methods", "sgd", "--base", "sgd", "--seeds", 2, "--jobs", 1, "--epochs", 1]
    code, out, _ = command(*words, "--out", tmp_path / "out", "--check")
    assert code == 0
    assert "\nsgd, seed 1, repeated in a new process: the same to the last digit\n" in out
    code, out, _ = command(*words, "--out", tmp_path / "other", "--no-check")
    assert (code, "repeated" in out) == (0, False)
    (tmp_path / "c.yaml").write_text("check: false")
    assert command(*words, "--out", tmp_path / "other", "--config", tmp_path / "c.yaml")[0] == 0
    assert not (tmp_path / "other/repeats").exists()


def test_what_a_notebook_keeps_between_trials_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = cells.run({}, CALM + STATEFUL["a model of a loop"])
    with pytest.raises(RunError, match=r"^sgd, seed 1, repeated, is not what it was: test accuracy was "):
        compare(namespace["task"], methods=["sgd"], base="sgd", seeds=2, jobs=0, out="out")


@pytest.mark.parametrize(
    ("workers", "can"),
    [
        (Workers(0), True),
        (Workers(3), True),
        (Workers(2, processes=2), False),
        (Workers(2, crew="tcp://h:1"), False),
        (Workers(1, device="cuda"), False),
    ],
)
def test_where_it_must_be_the_same(workers, can):
    assert repeating.can_check(workers) is can


def test_the_last_of_the_base_that_was_not_the_first_of_its_worker(record):
    trials = [record(row, seed, 50.0, evaluations=n) for seed in (0, 1) for row, n in (("a", 9), ("b", 5), ("c", 7))]
    assert chosen(trials, 2, "a") is trials[3]
    assert chosen(trials, 4, "a") is trials[4]
    assert chosen(trials[:1], 2, "a") is trials[0]
    assert chosen(trials, 2, "no row") is trials[4]
    assert chosen([], 2, "a") is None
    assert chosen([trials[0].model_copy(update={"not_deterministic": ["put_"]})], 0, "a") is None


def test_the_first_difference_is_that_of_the_metric(record):
    one = record("sgd", 0, 50.0)
    assert first_difference(one, record("sgd", 0, 50.0, seconds=7.0), "F1_score") == ""
    other = record("sgd", 0, 50.5, evaluations=12)
    assert first_difference(one, other, "F1_score") == "test F1_score was 50.0 and is 50.5 now"
    assert first_difference(one, record("sgd", 0, None), "F1") == "status was finished and is diverged now"
    curve = one.curve.model_copy(update={"train_loss": [1.0, 0.25], "batch_loss": [1.0]})
    changed = one.model_copy(update={"curve": curve})
    assert first_difference(one, changed, "F1") == "train loss of epoch 2 was 0.5 and is 0.25 now"
    curve = one.curve.model_copy(update={"validation_metric": [50.0, 50.00000000000001]})
    changed = one.model_copy(update={"curve": curve})
    assert first_difference(one, changed, "F1") == "validation F1 of epoch 2 was 50.0 and is 50.00000000000001 now"


def test_what_is_no_outcome_is_named_and_left(record, tmp_path):
    one = record("sgd", 0, 50.0)
    repeats.write(tmp_path, one, "")
    (path,) = (tmp_path / "repeats").iterdir()
    path.write_text("{}")
    with pytest.raises(Exception, match=rf"^{re.escape(str(path))} is not what came of a repeated trial: key: "):
        repeats.read(tmp_path, one)
    assert Options(check=True).check is True
