"""Tasks that take the seed: each trial has a split of its own, the same for all methods."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import cells
from steppe.lab import UserError, compare, sweep
from steppe.lab.crew import workers
from steppe.lab.measuring import measuring
from steppe.lab.measuring.measuring import Request
from steppe.lab.plans.comparison import load
from steppe.lab.store import records
from steppe.lab.tasks.sources import find_task, takes_seed
from steppe.lab.trials.records import Record, TrialConfig
from steppe.lab.trials.trial import run_trial
from steppe.lab.tuning.candidates import tune

FILE = """
from pathlib import Path

import torch
from torch import nn
from steppe.lab import Task

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()

def task(seed):
    with Path(__file__).with_name("seeds").open("a") as file:
        file.write(f"{seed}\\n")
    order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
    train, validation, test = ((X[i], Y[i]) for i in order.split([40, 30, 50]))
    return Task(lambda: nn.Linear(4, 2), train, validation, test, batch_size=8, epochs=1)

def fixed():
    return task(0)

def careless(seed):
    i, j, k = torch.randperm(120).split([40, 30, 50])
    return Task(lambda: nn.Linear(4, 2), (X[i], Y[i]), (X[j], Y[j]), (X[k], Y[k]), batch_size=8, epochs=1)

def number(seed):
    return 3

def failing(seed):
    return 1 / 0

def two(seed, more):
    return task(seed)

def folder(seed, where="."):
    return task(seed)

def train(run, seed=3):
    return {"accuracy": 1.0}
"""


@pytest.fixture
def own(tmp_path):
    """A file of tasks, as FILE.py:FUNCTION."""
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return lambda name="task": f"{path}:{name}"


@pytest.fixture
def seeds(tmp_path):
    """Return the seeds that the task was made for."""
    path = tmp_path / "seeds"
    return lambda: [int(line) for line in path.read_text().splitlines()]


def options(out, **more):
    return {"methods": ["sgd", "sam"], "base": "sgd", "seeds": 2, "device": "cpu", "out": out, **more}


def plain(record):
    return record.model_copy(update={"seconds": 0.0, "curve": record.curve.model_copy(update={"seconds": []})})


def test_which_functions_take_the_seed(own):
    assert takes_seed(lambda seed: 0)
    assert takes_seed(lambda *, seed: 0)
    assert takes_seed(lambda seed=0: 0)
    assert not any(map(takes_seed, (lambda: 0, lambda run: 0, lambda seed, more: 0, lambda *seed: 0, 3)))
    assert [find_task(own(name)).takes_seed for name in ("task", "fixed", "train")] == [True, False, False]
    assert not find_task("digits").takes_seed


def test_splits_differ_by_seed_and_by_nothing_else(own):
    source = find_task(own())
    first, again, other = source.load(1), source.load(1), source.load(2)
    assert torch.equal(first.test[0], again.test[0])
    assert not torch.equal(first.test[0], other.test[0])
    assert torch.equal(source.load().test[0], source.load(0).test[0])
    assert torch.equal(find_task(own("fixed")).load(5).test[0], source.load(0).test[0])


def test_what_is_drawn_without_a_generator_goes_by_the_seed_too(own):
    source = find_task(own("careless"))
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    splits = [source.load(seed).test[0] for seed in (1, 1, 2)]
    after = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    assert after == (torch.rand(1).item(), np.random.rand(), random.random())
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


@pytest.mark.parametrize("jobs", [0, 2])
def test_all_methods_have_the_split_of_the_seed(own, jobs, tmp_path):
    found = compare(own(), **options(tmp_path / "out", jobs=jobs))
    assert [record.config.own_split for record in found.records] == [True] * 4
    source = find_task(own())
    for record in found.records:
        assert plain(run_trial(record.config, source.load(record.config.seed))) == plain(record)
    sgd = [record for record in found.records if record.config.method == "sgd"]
    assert plain(run_trial(sgd[1].config, source.load(0))) != plain(sgd[1])
    assert (sgd[0].final.train_examples, sgd[0].final.test_examples) == (40, 50)


def test_of_each_seed_a_process_makes_one_task_and_keeps_two(own, seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_of_seeds", {})
    compare(own(), **options(tmp_path / "out", seeds=3, jobs=0))
    assert seeds() == [0, 0, 1, 2]  # the first one for the plan
    assert [seed for _, seed in workers._of_seeds] == [1, 2]
    workers._task(find_task(own()), TrialConfig(**{**GIVEN, "seed": 1}, own_split=True))
    workers._task(find_task(own()), TrialConfig(**{**GIVEN, "seed": 4}, own_split=True))
    assert [seed for _, seed in workers._of_seeds] == [1, 4]


GIVEN = {"task": "t", "method": "sgd", "hyperparameters": {"lr": 0.1}, "seed": 0, "epochs": 1, "batch_size": 8}
GIVEN |= {"versions": {}}


def test_keys_of_other_tasks_are_what_they_were(own, tmp_path):
    usual = TrialConfig(**GIVEN)
    assert usual.key == "5563f592e477e035"
    assert "own_split" not in usual.model_dump()
    assert TrialConfig(**GIVEN, own_split=True).key != usual.key
    (record,) = compare(own("fixed"), **options(tmp_path / "out", methods=["sgd"], seeds=1, jobs=0)).records
    assert record.config.own_split is None
    (path,) = (tmp_path / "out/trials").iterdir()
    assert "own_split" not in path.read_text()
    assert Record.model_validate_json(path.read_text()).config == record.config


def test_a_sweep_and_a_tuning_have_other_splits_than_a_comparison(own, seeds, tmp_path):
    found = sweep(own(), "sam", {"rho": [0.05, 0.1]}, base="sgd", seeds=2, jobs=0, device="cpu", out=tmp_path / "sweep")
    assert set(seeds()) == {0, 1000, 1001}
    source = find_task(own())
    for point in found.points:
        for result in point.seeds:
            config = found.plan.trial(point.setting, result.seed)
            assert config.own_split
            wanted = run_trial(config, source.load(result.seed)).final
            assert (result.validation_metric, result.test_loss) == (wanted.validation_metric, wanted.test_loss)
    chosen = tune(own(), "sgd", {"sgd": [{"lr": 0.1}, {"lr": 0.01}]}, seeds=1, out=tmp_path / "tune")
    assert set(chosen["sgd"].setting) == {"lr"}
    assert {name.split("-")[1] for name in (path.name for path in (tmp_path / "tune/trials").iterdir())} == {"1000"}


def test_kept_weights_are_measured_on_the_data_of_their_seed(own, tmp_path):
    found = compare(own(), **options(tmp_path / "out", methods=["sgd"], jobs=0, keep_weights=True))
    source, request = find_task(own()), Request(split="test", budget=90.0)
    reports = measuring.measure_run(tmp_path / "out", request, seeds=2)
    for record in found.records:
        model = nn.Linear(4, 2)
        path = records.weights_path(tmp_path / "out", record.config)
        model.load_state_dict(torch.load(path, weights_only=True))
        x, y = source.load(record.config.seed).test
        expected = nn.functional.cross_entropy(model(x), y).item()
        assert reports["sgd", record.config.seed].loss == pytest.approx(expected, rel=1e-6)


CELL = """
import torch
from torch import nn
from steppe.lab import Task

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()

def task(seed):
    order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
    train, validation, test = ((X[i], Y[i]) for i in order.split([40, 30, 50]))
    return Task(lambda: nn.Linear(4, 2), train, validation, test, batch_size=8, epochs=1)
"""


def test_a_task_of_a_notebook_may_take_the_seed(tmp_path):
    given: dict = {"__name__": "__main__"}
    task = cells.run(given, CELL)["task"]
    found = compare(task, **options(tmp_path / "out", methods=["sgd"], jobs=1))
    for record in found.records:
        wanted = run_trial(record.config, task(record.config.seed))
        assert plain(wanted) == plain(record)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "own.py:number must return a steppe.lab.Task, got int"),
        ("failing", r"own.py:failing failed with ZeroDivisionError: division by zero \(own.py, line \d+\)"),
        ("two", "own.py:two failed with TypeError: .*missing 2 required positional arguments"),
        ("folder", r"own.py:folder must take the seed alone, as def folder\(seed\): does"),
    ],
)
def test_what_is_wrong_with_such_a_task_is_said_before_anything_is_trained(own, name, message):
    with pytest.raises(UserError, match=f"^{message}"):
        load(find_task(own(name)))
