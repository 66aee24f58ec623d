"""Learning rates, radii and batch sizes that change during a trial."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from steppe.lab.tasks.splits import batches
from steppe.lab.tasks.task import Task
from steppe.lab.trials.feeds import total_updates
from steppe.lab.trials.finding import BASES
from steppe.lab.trials.host import Host
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.schedules import Constant, Schedules
from steppe.lab.trials.trial import evaluate, run_trial

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
LR, RHO = 0.1, 0.05
TOTAL = 12  # updates of three epochs of 30 examples in batches of 8


def task(**changes):
    given = {
        "model": lambda: nn.Linear(3, 2),
        "train": (X, Y),
        "validation": (X + 1e-3, Y),
        "test": (X - 1e-3, Y),
    }
    return Task(**{**given, **changes})


def config(method="sgd", schedules=None, **changes):
    settings = {"lr": LR} if method == "sgd" else {"lr": LR, "rho": RHO}
    given = {"hyperparameters": settings, "epochs": 3, "batch_size": 8, "versions": {}, "seed": 0, **changes}
    base = None if method == "sgd" else "sgd"
    return TrialConfig(task="t", method=method, base=base, schedules=Schedules.model_validate(schedules or {}), **given)


def without_times(record):
    content = record.model_dump(exclude={"config", "key"})
    del content["seconds"], content["curve"]["seconds"]
    return content


@pytest.fixture
def groups(monkeypatch):
    """Learning rate and radius at every update."""
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append((self.param_groups[0]["lr"], self.param_groups[0].get("rho")))
            return super().step(closure)

    monkeypatch.setitem(BASES, "sgd", Watched)
    return seen


@pytest.fixture
def sizes():
    """The task of these tests, and how many examples every call of its loss gets."""
    seen = []

    def loss(outputs, targets):
        if outputs.requires_grad:
            seen.append(len(targets))
        return nn.functional.cross_entropy(outputs, targets)

    return task(loss=loss), seen


FACTORS = {
    "constant": lambda t, total: 1.0,
    "cosine": lambda t, total: 0.5 * (1 + math.cos(math.pi * t / total)),
    "linear": lambda t, total: 1 - t / total,
    "polynomial": lambda t, total: (1 - t / total) ** 2,
    "diminishing": lambda t, total: 1 / math.sqrt(t + 1),
}


@pytest.mark.parametrize("kind", FACTORS)
def test_the_learning_rate(groups, kind):
    run_trial(config(schedules={"lr": kind}), task())
    assert [lr for lr, _ in groups] == pytest.approx([LR * FACTORS[kind](t, TOTAL) for t in range(TOTAL)])


@pytest.mark.parametrize("kind", FACTORS)
def test_the_learning_rate_after_a_warm_up(groups, kind):
    run_trial(config(schedules={"lr": {"kind": kind, "warmup": 4}}), task())
    rise = [LR * t / 4 for t in range(4)]
    assert [lr for lr, _ in groups] == pytest.approx([*rise, *(LR * FACTORS[kind](t, 8) for t in range(8))])


@pytest.mark.parametrize("kind", ["cosine", "linear", "polynomial"])
def test_the_learning_rate_down_to_a_fraction(groups, kind):
    run_trial(config(schedules={"lr": {"kind": kind, "final": 0.2}}), task())
    expected = [LR * (0.2 + 0.8 * FACTORS[kind](t, TOTAL)) for t in range(TOTAL)]
    assert [lr for lr, _ in groups] == pytest.approx(expected)


def test_the_power_of_a_polynomial(groups):
    run_trial(config(schedules={"lr": {"kind": "polynomial", "power": 0.5}}), task())
    assert [lr for lr, _ in groups] == pytest.approx([LR * (1 - t / TOTAL) ** 0.5 for t in range(TOTAL)])


@pytest.mark.parametrize("kind", FACTORS)
def test_the_radius(groups, kind):
    run_trial(config("sam", schedules={"lr": "constant", "rho": {"kind": kind, "warmup": 4}}), task())
    rise = [RHO * t / 4 for t in range(4)]
    assert [rho for _, rho in groups] == pytest.approx([*rise, *(RHO * FACTORS[kind](t, 8) for t in range(8))])
    assert {lr for lr, _ in groups} == {LR}


@pytest.mark.parametrize(
    ("lr", "lowest"),
    [("cosine", 0.0), ({"kind": "linear", "final": 0.2}, 0.2 * LR), ("diminishing", 0.0)],
)
def test_a_radius_that_follows_the_learning_rate(groups, lr, lowest):
    run_trial(config("gsam", schedules={"lr": lr, "rho": {"kind": "proportional", "min": 0.01}}), task())
    assert len(groups) == TOTAL
    assert groups[0][1] == pytest.approx(RHO)
    assert groups[-1][1] < RHO / 2
    for rate, rho in groups:
        assert rho == pytest.approx(0.01 + (RHO - 0.01) * (rate - lowest) / (LR - lowest))


def test_a_radius_that_follows_a_constant_learning_rate_is_constant(groups):
    run_trial(config("sam", schedules={"lr": "constant", "rho": "proportional"}), task())
    assert groups == [(LR, RHO)] * TOTAL


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant", "size": 12}, [12, 12, 6] * 3),
        ({"kind": "constant", "size": 12, "drop_last": True}, [12, 12] * 3),
        ({"kind": "multiply", "start": 8, "factor": 2, "every": 1}, [8, 8, 8, 6, 16, 14, 30]),
        ({"kind": "multiply", "start": 8, "factor": 2, "every": 1, "cap": 15}, [8, 8, 8, 6, 15, 15, 15, 15]),
        ({"kind": "multiply", "start": 8, "factor": 1.5, "every": 2}, [8, 8, 8, 6] * 2 + [12, 12, 6]),
        ({"kind": "linear", "start": 8, "end": 16, "over": 2}, [8, 8, 8, 6, 12, 12, 6, 16, 14]),
        ({"kind": "geometric", "start": 4, "end": 16, "over": 2}, [4] * 7 + [2] + [8] * 3 + [6, 16, 14]),
        (
            {"kind": "multiply", "start": 4, "factor": 2, "every": 3, "per": "update"},
            [4, 4, 4, 8, 8, 2, 16, 14, 16, 14],
        ),
    ],
)
def test_batch_sizes(sizes, groups, schedule, expected):
    watched, seen = sizes
    record = run_trial(config(schedules={"batch_size": schedule}), watched)
    assert seen == expected
    assert record.updates == record.gradient_evaluations == len(expected)
    assert record.examples == sum(expected)
    assert record.curve.examples[-1] == sum(expected)
    # The learning rate knows exactly how many updates there will be.
    total = len(expected)
    assert [lr for lr, _ in groups] == pytest.approx([LR * FACTORS["cosine"](t, total) for t in range(total)])


def test_scheduled_batches_hold_every_example_once_an_epoch():
    inputs = []

    class Seen(nn.Linear):
        def forward(self, x):
            if self.training:
                inputs.append(x[:, 0].clone())
            return super().forward(x)

    schedules = {"batch_size": {"kind": "constant", "size": 7}}
    run_trial(config(schedules=schedules, epochs=2), task(model=lambda: Seen(3, 2)))
    first, second = torch.cat(inputs[:5]), torch.cat(inputs[5:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == X[:, 0].sort().values.tolist()
    assert first.tolist() != second.tolist()


def test_a_dataset_gives_the_same_scheduled_batches_as_tensors():
    scheduled = config("sam", schedules={"batch_size": {"kind": "constant", "size": 7, "micro": 3}})
    found = [without_times(run_trial(scheduled, task(train=train))) for train in ((X, Y), TensorDataset(X, Y))]
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["sgd", "sam", "gsam"])
def test_parts_of_a_batch_add_up_to_the_batch(sizes, method):
    watched, seen = sizes
    whole, parts = (
        run_trial(config(method, schedules={"batch_size": {"kind": "constant", "size": 16, "micro": micro}}), watched)
        for micro in (None, 5)
    )
    assert max(seen[whole.gradient_evaluations :]) == 5
    assert parts.gradient_evaluations == whole.gradient_evaluations == (1 if method == "sgd" else 2) * 6
    assert parts.examples == whole.examples
    for name in ("train_loss", "validation_loss", "test_loss"):
        assert getattr(parts.final, name) == pytest.approx(getattr(whole.final, name), abs=1e-5)
    assert parts.curve.train_loss == pytest.approx(whole.curve.train_loss, abs=1e-5)


def test_the_default_is_one_cosine_with_the_batches_of_the_task():
    explicit = {"lr": {"kind": "cosine", "final": 0.0, "warmup": 0}, "rho": "constant", "batch_size": None}
    plain = run_trial(config("sam"), task())
    assert config("sam", schedules=explicit).key == plain.key
    assert without_times(run_trial(config("sam", schedules={"lr": "cosine"}), task())) == without_times(plain)


def test_a_trial_equals_a_loop_written_by_hand():
    record = run_trial(config(), task())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL)
    order = torch.Generator().manual_seed(0)
    for _ in range(3):
        for x, y in batches((X, Y), 8, order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    found = evaluate(model, task(), (X, Y))
    assert (record.final.train_loss, record.final.train_metric) == (found.loss, found.metric)  # bit for bit


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_a_budget_of_updates_is_met_exactly(groups, sizes, kind):
    watched, seen = sizes
    record = run_trial(config(updates=7, schedules={"lr": kind}), watched)
    assert record.updates == record.gradient_evaluations == 7
    assert seen == [8, 8, 8, 6, 8, 8, 8]
    assert record.examples == sum(seen)
    assert record.curve.gradient_evaluations == [4, 7]
    assert record.curve.examples == [30, 54]
    assert len(record.curve.validation_metric) == 2
    assert [lr for lr, _ in groups] == pytest.approx([LR * FACTORS[kind](t, 7) for t in range(7)])


def test_a_budget_with_growing_batches_counts_updates_not_epochs():
    schedules = {"batch_size": {"kind": "multiply", "start": 10, "factor": 3, "every": 1}}
    record = run_trial(config("sam", schedules=schedules, updates=6, epochs=1), task())
    assert (record.updates, record.gradient_evaluations, record.examples) == (6, 12, 2 * (30 + 3 * 30))
    assert len(record.curve.seconds) == 4


@pytest.mark.parametrize("per", ["epoch", "update"])
def test_updates_are_counted_before_the_trial(per):
    schedules = {"batch_size": {"kind": "linear", "start": 3, "end": 17, "over": 5, "per": per}}
    sizes = Schedules.model_validate(schedules).batch_size
    for epochs in (1, 2, 7):
        record = run_trial(config(schedules=schedules, epochs=epochs), task())
        assert record.updates == total_updates(sizes, None, epochs, 8, task())


def test_a_trial_on_another_device():
    seen = []

    def stop(outputs, targets):
        seen.append((outputs.device.type, targets.device.type))
        raise RuntimeError("far enough")

    with pytest.raises(RuntimeError, match="far enough"):
        run_trial(config(), task(loss=stop), host=Host("meta"))
    with pytest.raises(RuntimeError, match="far enough"):
        evaluate(nn.Linear(3, 2, device="meta"), task(loss=stop), (X, Y), "meta")
    assert seen == [("meta", "meta")] * 2


def test_the_key_depends_on_schedules_and_budget():
    changes = [{}, {"schedules": {"lr": "constant"}}, {"schedules": {"rho": "cosine"}}, {"updates": 3}]
    changes += [{"schedules": {"batch_size": {"kind": "constant", "size": 8}}}, {"arm": "other"}, {"measure": True}]
    assert len({config(**change).key for change in changes}) == len(changes)
    scheduled = config(schedules={"batch_size": {"kind": "multiply", "start": 2, "factor": 2, "every": 1}})
    assert TrialConfig.model_validate_json(scheduled.model_dump_json()) == scheduled


def test_schedules_in_words():
    given = {
        "lr": {"kind": "cosine", "final": 0.1, "warmup": 5},
        "rho": {"kind": "proportional", "min": 0.01},
        "batch_size": {"kind": "multiply", "start": 16, "factor": 2, "every": 8, "cap": 256, "micro": 64},
    }
    found = Schedules.model_validate(given)
    assert found.lr.words == (
        "rises from zero over 5 updates, then falls to 0.1 of its start along a cosine over all updates"
    )
    assert found.rho.words == "follows the learning rate, at its smallest 0.01"
    assert found.batch_size.words == "16, times 2 every 8 epochs, at most 256, in parts of at most 64"
    assert Constant().words == "stays constant"
    last = {"kind": "linear", "start": 2, "end": 9, "over": 30, "per": "update", "drop_last": True}
    words = Schedules.model_validate({"batch_size": last}).batch_size.words
    assert words == "from 2 to 9 by equal differences over 30 updates, last batches that are smaller left out"
