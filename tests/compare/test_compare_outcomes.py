"""What a record knows of its test examples: how many there are, and what groups of them say of the metric."""

from __future__ import annotations

import json
import math
import random
from statistics import fmean, variance

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAUROC

from steppe.lab.tasks import metrics, outcomes
from steppe.lab.tasks.evaluation import evaluate
from steppe.lab.tasks.metrics import Measuring, accuracy
from steppe.lab.tasks.task import Task
from steppe.lab.trials.records import Final, Record, TrialConfig
from steppe.lab.trials.trial import run_trial

GENERATOR = torch.Generator().manual_seed(0)


def scores(n):
    x = torch.rand(n, generator=GENERATOR)
    return x, (torch.rand(n, generator=GENERATOR) < x).long()


def classes(n, right=0.7):
    outputs = torch.randn(n, 4, generator=GENERATOR)
    other = torch.randint(4, (n,), generator=GENERATOR)
    return outputs, torch.where(torch.rand(n, generator=GENERATOR) < right, outputs.argmax(1), other)


def found(metric, outputs, targets, batch=64, examples=None):
    measuring = Measuring({"m": metric}, outcomes=True)
    for one, other in zip(outputs.split(batch), targets.split(batch), strict=True):
        measuring.add(one, other)
    return measuring.outcomes(measuring.results()["m"], len(targets) if examples is None else examples)


def fraction(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def rmse(outputs, targets):
    return (outputs - targets).square().double().mean().sqrt()


def auc(outputs, targets):
    """Of all pairs of a positive and a negative example, how many are in order."""
    positive, negative = outputs[targets == 1], outputs[targets == 0]
    return (positive[:, None] > negative[None, :]).double().mean()


@pytest.mark.parametrize("n", [7, 100, 250, 1000])
def test_parts_of_accuracy_are_the_means_of_groups(n):
    outputs, targets = classes(n)
    groups = min(n, 100)
    right = 100 * (outputs.argmax(1) == targets).double()
    expected = [float(f"{right[group::groups].mean():.7g}") for group in range(groups)]
    made = found(accuracy, outputs, targets)
    assert made.parts == expected
    assert made.step == 100 / n
    other = found(fraction, outputs, targets)  # by leaving out
    assert other.parts == pytest.approx([part / 100 for part in expected], abs=1e-9)
    assert other.step == pytest.approx(1 / n, rel=1e-6)


@pytest.mark.parametrize("n", [40, 230])
@pytest.mark.parametrize("metric", [auc, lambda o, t: rmse(o, t.float())])
def test_parts_of_other_metrics_are_those_of_a_jackknife_by_hand(metric, n):
    outputs, targets = scores(n)
    groups, whole = min(n, 100), float(metric(outputs, targets))
    expected = []
    for group in range(groups):
        kept = [i for i in range(n) if i % groups != group]
        share = n / (n - len(kept))
        expected.append(share * whole - (share - 1) * float(metric(outputs[kept], targets[kept])))
    made = found(metric, outputs, targets)
    assert made.parts == pytest.approx(expected, rel=1e-6)
    without = [whole - float(metric(*(torch.cat([v[:i], v[i + 1 :]]) for v in (outputs, targets)))) for i in range(n)]
    largest = max(map(abs, without))
    assert made.step <= largest * (1 + 1e-6)
    if n == groups:
        assert made.step == pytest.approx(largest, rel=1e-6)
    else:  # of the examples that were tried, whose groups are the extreme ones
        assert made.step > sorted(map(abs, without))[n // 2]


def test_their_variance_is_that_of_the_metric_over_draws_of_examples():
    drawn, said = [], []
    for _ in range(200):
        outputs, targets = scores(300)
        drawn.append(float(auc(outputs, targets)))
        if len(said) < 10:
            parts = found(auc, outputs, targets).parts
            said.append(variance(parts) / len(parts))
            assert fmean(parts) == pytest.approx(drawn[-1], abs=0.002)
    assert math.sqrt(fmean(said)) == pytest.approx(math.sqrt(variance(drawn)), rel=0.25)


def test_an_object_has_the_parts_of_the_function(monkeypatch):
    outputs, targets = scores(230)
    metric = BinaryAUROC()
    metric.update(torch.tensor([0.1, 0.9]), torch.tensor([1, 0]))
    before = metric.compute()
    by_object, by_function = found(metric, outputs, targets), found(auc, outputs, targets)
    assert by_object.parts == pytest.approx(by_function.parts, abs=1e-3)  # in single precision
    assert by_object.step == pytest.approx(by_function.step, rel=1e-2)
    assert metric.compute() == before  # the user's own has seen nothing
    monkeypatch.setattr(metrics, "_MOST_KEPT", 230 * 12)  # bytes: of float32 and int64
    assert found(metric, outputs, targets) is None
    monkeypatch.setattr(metrics, "_MOST_KEPT", 230 * 12 + 1)
    assert found(metric, outputs, targets) == by_object


class Averaging:
    """Of batches, however many examples they have: all at once it is another number."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.values = []

    def update(self, outputs, targets):
        self.values.append(rmse(outputs, targets.float()))

    def compute(self):
        return torch.stack(self.values).mean()


def one_class_fails(outputs, targets):
    if targets.sum() == 0:
        raise ValueError("only one class")
    return auc(outputs, targets)


@pytest.mark.parametrize("metric", [auc, one_class_fails])  # auc is not finite then
def test_a_metric_that_cannot_do_without_an_example_has_no_parts(metric):
    outputs, targets = torch.linspace(0, 1, 50), torch.zeros(50, dtype=torch.int64)
    targets[20] = 1
    assert found(metric, outputs, targets) is None
    targets[30] = 1
    assert len(found(metric, outputs, targets).parts) == 50


def test_what_has_no_parts():
    outputs, targets = scores(230)
    assert found(Averaging(), outputs, targets) is None
    assert found(lambda o, t: float(auc(o, t)) + random.random(), outputs, targets) is None
    assert found(auc, outputs, targets, examples=115) is None  # two rows for each example
    assert found(accuracy, *classes(20), examples=10) is None
    assert found(accuracy, *classes(1)) is None
    assert found(auc, torch.tensor([0.5]), torch.tensor([1])) is None


@pytest.mark.parametrize(("metric", "n"), [(fraction, 50), (fraction, 500), (accuracy, 50)])
def test_where_all_are_right_only_accuracy_knows_what_one_can_change(metric, n):
    outputs, _ = classes(n)
    made = found(metric, outputs, outputs.argmax(1))
    assert set(made.parts) == {100.0 if metric is accuracy else 1.0}
    assert made.step == (100 / n if metric is accuracy else None)


def test_one_that_is_wrong_among_many_is_found():
    outputs, _ = classes(5000)
    targets = outputs.argmax(1)
    targets[1234] = (targets[1234] + 1) % 4
    assert found(fraction, outputs, targets).step == pytest.approx(1 / 5000, rel=1e-6)


def test_metrics_that_take_long_have_fewer_groups(monkeypatch):
    outputs, targets = scores(230)
    monkeypatch.setattr(outcomes, "_LONG", 0.0)
    assert len(found(auc, outputs, targets).parts) == 20
    parts = found(lambda o, t: t.double().mean(), outputs, targets).parts
    assert parts == pytest.approx([float(targets[group::20].double().mean()) for group in range(20)], abs=1e-7)


def test_metrics_that_draw_change_no_number_that_is_drawn_later():
    def drawing(outputs, targets):
        torch.rand(1), np.random.rand(), random.random()
        return auc(outputs, targets)

    def next_numbers(asked):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        measuring = Measuring({"m": drawing}, outcomes=True)
        measuring.add(*given)
        whole = measuring.results()["m"]
        assert not asked or measuring.outcomes(whole, 50).parts
        return torch.rand(1).item(), np.random.rand(), random.random()

    given = scores(50)
    assert next_numbers(True) == next_numbers(False)


def task(n_test=30, **more):
    x = torch.randn(60 + n_test, 3, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    sizes = [40, 20, n_test]
    splits = dict(zip(("train", "validation", "test"), zip(x.split(sizes), y.split(sizes), strict=True), strict=True))
    return Task(**{"model": lambda: nn.Linear(3, 2), "batch_size": 8, "epochs": 2, **splits, **more})


def config(**more) -> TrialConfig:
    given = {"method": "sgd", "hyperparameters": {"lr": 0.1}, "seed": 0, "epochs": 2, "batch_size": 8, "versions": {}}
    return TrialConfig(task="t", **{**given, **more})


def test_records_have_counts_and_parts_and_the_numbers_that_they_had():
    kept = {}
    record = run_trial(config(), task(), keep=kept.update)
    final = record.final
    assert (final.train_examples, final.validation_examples, final.test_examples) == (40, 20, 30)
    model = nn.Linear(3, 2)
    model.load_state_dict(kept)
    x, y = task().test
    right = 100.0 * (model(x).argmax(1) == y).double()
    assert final.test_parts == right.tolist()
    assert final.test_step == 100 / 30
    plain = evaluate(model, task(), (x, y))
    assert (plain.loss, plain.metric, plain.outcomes) == (final.test_loss, final.test_metric, None)
    assert fmean(final.test_parts) == pytest.approx(final.test_metric)
    assert Record.model_validate_json(record.model_dump_json()) == record
    unread = run_trial(config(test=False), task()).final
    assert (unread.train_examples, unread.test_examples, unread.test_parts, unread.test_step) == (40, None, None, None)


def test_records_without_them_are_read():
    record = run_trial(config(), task())
    content = json.loads(record.model_dump_json())
    for name in ("train_examples", "validation_examples", "test_examples", "test_parts", "test_step"):
        del content["final"][name]
    read = Record.model_validate_json(json.dumps(content))
    assert (read.final.test_metric, read.final.test_parts) == (record.final.test_metric, None)
    assert read.problem is None
    assert set(Final().flat) == set(read.final.flat) - set(read.final.test_more or ())


def test_examples_of_loaders_are_counted():
    loader = DataLoader(TensorDataset(*task().test), batch_size=7, drop_last=True)
    final = run_trial(config(), task(test=loader)).final
    assert final.test_examples == len(final.test_parts) == 28
    unknown = DataLoader(TensorDataset(*task().test), batch_size=7, collate_fn=lambda rows: rows[0][0].sum())
    odd = {"forward": lambda model, batch: (model(batch.repeat(1, 3)), torch.zeros(1, dtype=torch.int64))}
    made = evaluate(nn.Linear(3, 2), task(**odd), unknown, outcomes=True)
    assert (made.examples, made.outcomes) == (None, None)  # numbers of which nothing says of how many examples


@pytest.mark.parametrize("size", [10, 9, 1, 12])
def test_a_loss_that_decides_has_the_losses_of_batches_as_parts(size):
    def step(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model, asked = nn.Linear(3, 2), task(200 if size == 1 else 100, step=step, evaluation_batch_size=size)
    made = evaluate(model, asked, asked.test, outcomes=True)
    assert made.examples == len(asked.test[1])
    if size == 12:  # nine batches
        assert made.outcomes is None
        return
    losses = [step(model, batch).item() for batch in zip(*(part.split(size) for part in asked.test), strict=True)]
    if size == 1:  # 200 of them, in 100 groups
        losses = [(one + other) / 2 for one, other in zip(losses[:100], losses[100:], strict=True)]
    assert made.outcomes.parts == pytest.approx(losses, rel=1e-6)
    assert made.outcomes.step is None
