"""Batches of any form: what a task may give, and that the numbers are those of a loop written by hand."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

from steppe.lab.errors import UserError
from steppe.lab.tasks.checks import check_fit
from steppe.lab.tasks.evaluation import evaluate
from steppe.lab.tasks.splits import batches, examples_in, length, size
from steppe.lab.tasks.task import Task
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.trial import run_trial

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=GENERATOR)
Y = (X.sum(1) > 0).long()
SPLITS = [(X[:30], Y[:30]), (X[30:45], Y[30:45]), (X[45:], Y[45:])]
NAMES = ("train", "validation", "test")


def linear() -> nn.Module:
    return nn.Linear(3, 2)


def task(splits=SPLITS, **more) -> Task:
    given = {"model": linear, "batch_size": 8, "epochs": 2}
    return Task(**{**given, **dict(zip(NAMES, splits, strict=True)), **more})


def config(method="sam", seed=0, **more) -> TrialConfig:
    hyperparameters = {"lr": 0.1, **({"rho": 0.05} if method != "sgd" else {})}
    given = {"method": method, "hyperparameters": hyperparameters, "base": None if method == "sgd" else "sgd"}
    return TrialConfig(**{"task": "t", "seed": seed, "epochs": 2, "batch_size": 8, "versions": {}, **given, **more})


def numbers(found: Task, **more):
    check_fit(found)
    record = run_trial(config(**more), found)
    assert record.status == "finished"
    curve = record.curve.model_dump(exclude={"seconds"})
    return (
        curve,
        record.final.model_dump(exclude={"validation_more", "test_more", "sharpness"}),
        record.gradient_evaluations,
    )


class Rows(Dataset):
    def __init__(self, x, y, make):
        self.x, self.y, self.make = x, y, make

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.make(self.x[index], self.y[index])


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class ByName(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, features, **more):
        assert not more
        return {"logits": super().forward(features)}


class Two(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, left, right):
        return super().forward(torch.cat([left, right], dim=1))


def reading(model, batch):
    return model(batch.x), batch.y


SAME = {
    "tensors by name": (
        [{"features": x, "labels": y} for x, y in SPLITS],
        {"model": ByName},
    ),
    "several inputs": ([(x[:, :1], x[:, 1:], y) for x, y in SPLITS], {"model": Two}),
    "dataset": ([TensorDataset(*split) for split in SPLITS], {}),
    "dataset of dicts": (
        [Rows(*split, lambda x, y: {"features": x, "labels": y}) for split in SPLITS],
        {"model": ByName},
    ),
    "list of examples": ([list(zip(*split, strict=True)) for split in SPLITS], {}),
    "named tuples": ([Rows(*split, Pair) for split in SPLITS], {"forward": reading}),
    "collate": (
        [Rows(*split, lambda x, y: (x.tolist(), int(y))) for split in SPLITS],
        {"collate": lambda rows: (torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))},
    ),
    "step": (
        SPLITS,
        {
            "step": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            "metric": {"accuracy (%)": lambda o, t: 100.0 * (o.argmax(1) == t).double().mean()},
        },
    ),
    "torchmetrics": (SPLITS, {"metric": MulticlassAccuracy(2, average="micro"), "metric_name": "accuracy"}),
}


@pytest.mark.parametrize("method", ["sgd", "sam"])
@pytest.mark.parametrize("form", SAME)
def test_the_same_examples_in_another_form_give_the_same_numbers(form, method):
    splits, more = SAME[form]
    columns = form in ("tensors by name", "several inputs", "step", "torchmetrics")
    # A loader of torch draws the order of a dataset otherwise than that of tensors is drawn.
    plain = task() if columns else task([TensorDataset(*split) for split in SPLITS])
    usual, found = numbers(plain, method=method), numbers(task(splits, **more), method=method)
    if form == "torchmetrics":  # between 0 and 1
        assert found[0].pop("validation_metric") == pytest.approx([v / 100 for v in usual[0].pop("validation_metric")])
        for name in ("train_metric", "validation_metric", "test_metric"):
            assert found[1].pop(name) == pytest.approx(usual[1].pop(name) / 100)
        assert found[1].pop("test_step") == pytest.approx(usual[1].pop("test_step") / 100)
        parts = [part / 100 for part in usual[1].pop("test_parts")]
        assert found[1].pop("test_parts") == pytest.approx(parts, abs=1e-6)  # in single precision
    assert found[0].keys() == usual[0].keys()
    for one, other in zip(found[:2], usual[:2], strict=True):
        for name in other:
            assert one[name] == pytest.approx(other[name], rel=1e-6), name
    assert found[2] == usual[2]


def by_hand(loader_of, epochs=2):
    """Train by SAM on the batches of a loader, without the lab."""
    torch.manual_seed(0)
    model = linear()
    w, b = model.weight, model.bias
    for epoch in range(epochs):
        for x, y in loader_of(epoch):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), (w, b))
            norm = torch.sqrt(sum(g.square().sum() for g in gradients))
            with torch.no_grad():
                kept = w.clone(), b.clone()
                w += 0.05 / norm * gradients[0]
                b += 0.05 / norm * gradients[1]
            sharp = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), (w, b))
            with torch.no_grad():
                w.copy_(kept[0] - 0.1 * sharp[0])
                b.copy_(kept[1] - 0.1 * sharp[1])
    return model


def weights(found: Task, **more):
    kept = {}
    run_trial(config(schedules={"lr": {"kind": "constant"}}, **more), found, keep=kept.update)
    return kept


def test_a_loader_is_read_as_it_is():
    train = DataLoader(TensorDataset(*SPLITS[0]), batch_size=7, shuffle=False, drop_last=True)
    assert (size(train), length(train, 99)) == (30, 4)
    found = task([train, DataLoader(TensorDataset(*SPLITS[1]), batch_size=4), SPLITS[2]])
    assert found.batch_size == 7
    check_fit(found)
    expected = by_hand(lambda epoch: list(train))
    assert torch.allclose(weights(found)["weight"], expected.weight, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_shuffles_depends_on_the_seed_alone(workers):
    def loader():
        options = {"multiprocessing_context": "fork"} if workers else {}
        return DataLoader(TensorDataset(*SPLITS[0]), batch_size=7, shuffle=True, num_workers=workers, **options)

    one, same = task([loader(), *SPLITS[1:]]), task([loader(), *SPLITS[1:]])
    first, other = weights(one)["weight"], weights(one, seed=1)["weight"]
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(weights(one)["weight"], first)  # after another trial on the same loader
    assert torch.equal(weights(same)["weight"], first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("where", ["sampler", "loader", "function"])
def test_generators_of_loaders_begin_anew_in_each_trial(where):
    data = TensorDataset(*SPLITS[0])
    made = {
        "sampler": lambda: DataLoader(data, 7, sampler=RandomSampler(data, generator=torch.Generator())),
        "loader": lambda: DataLoader(data, 7, shuffle=True, generator=torch.Generator()),
        "function": lambda: lambda generator: DataLoader(data, 7, shuffle=True, generator=generator),
    }[where]
    found = task([made(), *SPLITS[1:]])
    first = weights(found)["weight"]
    assert torch.equal(weights(found)["weight"], first)
    assert torch.equal(weights(task([made(), *SPLITS[1:]]))["weight"], first)
    assert not torch.equal(weights(found, seed=1)["weight"], first)


def test_methods_see_the_same_batches_of_a_loader_whatever_they_draw():
    seen: dict[str, list] = {"sgd": [], "sam": []}

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            if self.training:
                seen[now].append(x.tolist())
            return self.linear(nn.functional.dropout(x, 0.5, self.training))

    train = DataLoader(TensorDataset(*SPLITS[0]), batch_size=10, shuffle=True)
    found = task([train, *SPLITS[1:]], model=Dropping)
    for now in seen:
        run_trial(config(now), found)
    assert seen["sam"][::2] == seen["sam"][1::2] == seen["sgd"]


def test_samplers_of_ones_own():
    sampler = WeightedRandomSampler([0.0] * 29 + [1.0], num_samples=30)
    seen = set()

    class Looking(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.update(map(tuple, x.tolist()))
            return super().forward(x)

    found = task([DataLoader(TensorDataset(*SPLITS[0]), 10, sampler=sampler), *SPLITS[1:]], model=lambda: Looking(3, 2))
    run_trial(config(), found)
    assert seen == {tuple(X[29].tolist())}


def test_the_last_batch_may_be_left_out():
    assert [len(y) for _, y in batches(SPLITS[0], 8, drop_last=True)] == [8, 8, 8]
    assert length(SPLITS[0], 8, drop_last=True) == 3
    record = run_trial(config("sgd"), task(drop_last=True))
    assert (record.updates, record.examples) == (6, 48)


def test_several_metrics_of_which_the_first_decides():
    def false_alarms(outputs, targets):
        return (outputs.argmax(1) > targets).sum()

    metrics = {"AUC": BinaryAUROC(), "false alarms": false_alarms}

    def scores(model, batch):
        outputs = model(batch[0])
        return outputs[:, 1] - outputs[:, 0], batch[1]

    found = task(metric={"AUC": metrics["AUC"]}, forward=scores, loss=nn.functional.binary_cross_entropy_with_logits)
    assert (found.metric_name, found.higher_is_better) == ("AUC", True)
    both = task(
        metric={"accuracy": lambda o, t: (o.argmax(1) == t).double().mean(), "false alarms": false_alarms},
        higher_is_better=True,
    )
    record = run_trial(config(), both)
    assert set(record.final.test_more) == set(record.final.validation_more) == {"false alarms"}
    model = linear()
    outputs = model(SPLITS[1][0])
    expected = (outputs.argmax(1) == SPLITS[1][1]).double().mean()
    assert evaluate(model, both, SPLITS[1]).metric == pytest.approx(float(expected))
    assert evaluate(model, both, SPLITS[1]).more["false alarms"] == float(false_alarms(outputs, SPLITS[1][1]))


def test_a_model_that_returns_its_loss():
    class Own(nn.Linear):
        def forward(self, x, y):
            return {"loss": nn.functional.cross_entropy(super().forward(x), y)}

    found = task(model=lambda: Own(3, 2), step=lambda model, batch: model(*batch)["loss"])
    assert (found.metric_name, found.higher_is_better) == ("loss", False)
    usual, own = numbers(task()), numbers(found)
    assert own[0]["validation_metric"] == own[0]["validation_loss"] == pytest.approx(usual[0]["validation_loss"])


def test_a_loss_that_differentiates_inside():
    def slope(model, batch):
        x = batch[0].clone().requires_grad_()
        (found,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (found - 1).square().mean()

    splits = [(x, y.float()) for x, y in SPLITS]
    model = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))  # noqa: E731
    with pytest.raises(UserError, match=r"^Task: the loss differentiates inside, .* say evaluation_gradients=True$"):
        check_fit(task(splits, model=model, step=slope))
    found = task(splits, model=model, step=slope, evaluation_gradients=True)
    curve, final, _ = numbers(found)
    assert final["validation_loss"] < curve["train_loss"][0]
    made = model()
    assert evaluate(made, found, splits[0]).loss == pytest.approx(slope(made, splits[0]).item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_inputs_alone():
    def step(model, batch):
        (x,) = batch
        return (model(x) - x).square().mean()

    found = task([(x,) for x, _ in SPLITS], model=lambda: nn.Linear(3, 3), step=step)
    curve, final, _ = numbers(found)
    assert final["validation_loss"] == final["validation_metric"] < curve["train_loss"][0]
    assert evaluate(nn.Identity(), found, (X,)).loss == 0


def test_losses_of_splits_are_means_over_examples():
    data = DataLoader(TensorDataset(*SPLITS[0]), batch_size=7)
    model = linear()
    expected = nn.functional.cross_entropy(model(SPLITS[0][0]), SPLITS[0][1]).item()
    assert evaluate(model, task(), data).loss == pytest.approx(expected, rel=1e-6)


def test_outputs_by_name_reach_metrics_by_name():
    def named(model, batch):
        return Pair(model(batch[0]), batch[0]), batch[1]

    def own(outputs, targets):
        assert (len(outputs.x), outputs.x.requires_grad) == (len(targets), False)
        return (outputs.x.argmax(1) == targets).double().mean()

    found = task(forward=named, loss=lambda o, t: nn.functional.cross_entropy(o.x, t), metric={"share": own})
    model, large = linear(), (torch.cat([X] * 20), torch.cat([Y] * 20))  # two batches of evaluation
    wanted = (model(X).argmax(1) == Y).double().mean().item()
    assert evaluate(model, found, large).metric == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("batch", "count"),
    [((X, Y), 60), ({"a": X, "b": "text"}, 60), ([X, Y], 60), (Pair(X, Y), 60), (object(), 1), ({"sum": 3}, 1)],
)
def test_how_many_examples_a_batch_has(batch, count):
    assert examples_in(batch) == count


def test_ragged_outputs_need_a_metric_that_takes_batches():
    texts = [[(torch.arange(n + 1) % 5, n % 2) for n in range(start, start + 9)] for start in (3, 4, 5)]

    def padded(rows):
        return nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True), torch.tensor(
            [row[1] for row in rows]
        )

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 2)

        def forward(self, ids):
            return self.embedding(ids)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs.mean(1), targets)

    given = {"model": Tagger, "collate": padded, "loss": loss, "batch_size": 4}
    with pytest.raises(UserError, match=r"batches differ in shape, .* takes batch after batch"):
        check_fit(task(texts, **given, metric=lambda o, t: 0.0))
    pooled = {"forward": lambda model, batch: (model(batch[0]).mean(1), batch[1]), "loss": nn.functional.cross_entropy}
    numbers(task(texts, **{**given, **pooled}))


def test_schedules_of_batch_sizes_need_the_examples():
    from steppe.lab.trials.feeds import total_updates
    from steppe.lab.trials.schedules import ConstantSize

    found = task([DataLoader(TensorDataset(*SPLITS[0]), 7), *SPLITS[1:]])
    with pytest.raises(UserError, match="the task's train makes batches itself"):
        total_updates(ConstantSize(size=4), None, 2, 8, found)
    assert total_updates(None, None, 2, 8, found) == 10
