"""Usual mistakes with a task of one's own: each is one line that says what to write instead, before anything is trained."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pandas
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import BinaryAUROC

from steppe.lab.errors import UserError
from steppe.lab.tasks.apart import check_apart
from steppe.lab.tasks.builtin import BUILTIN
from steppe.lab.tasks.checks import check_fit
from steppe.lab.tasks.sharing import shared_name
from steppe.lab.tasks.task import Task

PAGE = (Path(__file__).parents[2] / "docs/your-own-problem.md").read_text(encoding="utf-8")
SAID = dict(re.findall(r"^\| ([^|]+) \| `([^`]+)` \|$", PAGE, re.MULTILINE))
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
SPLITS = [(X[:30], Y[:30]), (X[30:45], Y[30:45]), (X[45:], Y[45:])]


def task(splits=SPLITS, **more) -> Task:
    train, validation, test = splits
    given = {"model": lambda: nn.Linear(3, 2), "train": train, "validation": validation, "test": test, "batch_size": 8}
    return Task(**{**given, **more})


FLOATS = [(x, y.float()) for x, y in SPLITS]
ONE = {"model": lambda: nn.Linear(3, 1)}
BINARY = nn.functional.binary_cross_entropy_with_logits


NET = nn.Linear(3, 2)
STATISTICS = torch.zeros(2)


class Named(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x):
        return {"out": super().forward(x)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (X.numpy(), Y.numpy())}, r"train has numpy arrays .*float32.* write torch.tensor\(x, dtype=torch"),
        ({"train": X.numpy()}, "train must be a pair of tensors .* got ndarray"),
        (
            {"metric": lambda o, t: 0.0, "metric_name": "mean squared error"},
            "say whether a larger 'mean squared error' is",
        ),
        ({"metric": {}}, "metric must be a function, or several by name, got an empty mapping"),
        ({"metric": {"a": 3}}, "metric must be a function, got int"),
        ({"metric": BinaryAUROC}, r"metric must be a function or an object, .* BinaryAUROC; write BinaryAUROC\(\)$"),
        ({"metric": {"a": BinaryAUROC}}, "metric must be a function or an object, got the class BinaryAUROC"),
        ({"loss": nn.BCELoss}, r"loss must be a function, got the class BCELoss; write BCELoss\(\)$"),
        ({"train": (X,)}, r"train must be a pair of tensors \(x, y\), got 1 parts: Tensor"),
        ({"train": type("DataFrame", (), {})()}, "train must be a pair of tensors .* got DataFrame"),
        ({"metric": {"a" * 61: BinaryAUROC()}}, "metric_name must have at most 60 characters"),
        ({"metric": {"a": BinaryAUROC()}, "metric_name": "b"}, "several metrics have their own names"),
        ({"collate": 3}, "collate must be a function, got int"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size must be a whole number"),
        ({"drop_last": 1}, "drop_last must be True or False, got 1"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UserError, match=f"^Task: {message}"):
        task(**changes)


@pytest.mark.parametrize(
    ("splits", "changes", "message"),
    [
        (
            [(x.double(), y) for x, y in SPLITS],
            {},
            r"the inputs are float64 and the weights float32: write x.float\(\)",
        ),
        ([(x, y.int()) for x, y in SPLITS], {}, r"the targets are torch.int32, .* write y.long\(\)"),
        (FLOATS, {**ONE, "loss": lambda o, t: (o - t).square().mean()}, "make 8 x 8 pairs in this loss; give both one"),
        (SPLITS, {**ONE, "loss": lambda o, t: (o - t).square().mean()}, "make 8 x 8 pairs in this loss; give both one"),
        (FLOATS, {**ONE, "loss": lambda o, t: nn.functional.mse_loss(o.squeeze(1), t)}, "accuracy needs whole class"),
        (
            [(X[:33], Y[:33]), *SPLITS[1:]],
            {"model": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))},
            "33 training examples in batches of 8 leave a last batch of one.*drop_last=True",
        ),
        (
            [DataLoader(TensorDataset(X[:33], Y[:33]), 8, shuffle=True), *SPLITS[1:]],
            {"model": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))},
            "33 training examples in batches of 8 leave a last batch of one.*drop_last=True",
        ),
        (FLOATS, {}, r"targets are torch.float32, and classes are counted in int64: write y.long\(\)$"),
        ([(x, y[:, None]) for x, y in SPLITS], {}, r"classes have shape \(n,\): write y.squeeze\(1\)$"),
        ([(x, y + 1) for x, y in SPLITS], {}, "the largest class is 2, .* count from 0, one for each of 2 outputs$"),
        (
            SPLITS,
            {"model": lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), "loss": BINARY},
            r"the targets are torch.int64: write y.float\(\)$",
        ),
        (
            FLOATS,
            {**ONE, "loss": BINARY},
            r"give both one shape, as in loss=lambda o, t: mse_loss\(o.squeeze\(1\), t\)$",
        ),
        (SPLITS, {"forward": lambda model, batch: model(batch[0])}, r"must return \(outputs, targets\), got a Tensor$"),
        (
            SPLITS,
            {"model": Named, "loss": lambda o, t: o["out"].sum()},
            "accuracy needs scores in a tensor .* got dict",
        ),
        ([SPLITS[0], SPLITS[0], SPLITS[2]], {}, "validation is the training data itself"),
        ([SPLITS[0], SPLITS[1], (X[:30].clone(), Y[:30].clone())], {}, "test is the training data itself"),
        (
            [SPLITS[0], (X[:30].flip(0), Y[:30].flip(0)), SPLITS[2]],
            {},
            "all examples of validation that were looked at are training data too",
        ),
        (
            [SPLITS[0], SPLITS[1], (X[31:40], Y[31:40])],
            {},
            "all examples of test that were looked at are validation data too",
        ),
        ([(X[:30] / 0, Y[:30]), *SPLITS[1:]], {}, "the loss of an untrained model on the first batch is nan"),
        (SPLITS, {"metric": lambda o, t: math.nan}, "metric on the validation split is nan, where a trial counts as"),
        ([lambda generator: 3, *SPLITS[1:]], {}, "reading a batch of training examples failed with TypeError"),
        ([[{"a": x} for x in X[:30]], *SPLITS[1:]], {}, "Task: a batch is .* got a mapping with 'a'"),
    ],
)
def test_what_does_not_fit_is_said_before_training(splits, changes, message):
    with pytest.raises(UserError, match=message):
        check_fit(task(splits, **changes))


ALL = TensorDataset(X, Y)
LISTED = [(X[i], Y[i]) for i in range(12)]
GRID = torch.cartesian_prod(*[torch.arange(2.0)] * 3)


@pytest.mark.parametrize(
    "splits",
    [
        [(X[:30], Y[:30]), (X[20:45], Y[20:45]), (X[45:], Y[45:])],  # some examples twice
        [
            (GRID.repeat(5, 1), GRID.sum(1).repeat(5).long()),
            (GRID.repeat(2, 1), GRID.sum(1).repeat(2).long()),
            (GRID, GRID.sum(1).long()),
        ],  # all there is
        [(X[:30], Y[:30]), (X[:4], Y[:4]), (X[4:8], Y[4:8])],
        [
            (GRID, GRID.sum(1).long()),
            (GRID.repeat(3, 1), GRID.sum(1).repeat(3).long()),
            SPLITS[2],
        ],  # none twice in train
        [(X[:30].mul(9).long(), Y[:30]), (X[5:20].mul(9).long(), Y[5:20]), SPLITS[2]],
        [Subset(ALL, range(30)), Subset(ALL, range(29, 45)), Subset(ALL, range(45, 60))],
        [(X[:30], Y[:30]), (X[:30], 1 - Y[:30]), SPLITS[2]],  # other targets
        [(X[:30], Y[:30]), (X[:30].int().float(), Y[:30]), SPLITS[2]],
    ],
)
def test_splits_may_hold_examples_of_another_by_chance(splits):
    check_apart(task(splits))


MISSING = X.clone()
MISSING[:, 1] = math.nan
BOTH = "of validation that were looked at are training data"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([TensorDataset(*SPLITS[0]), *[TensorDataset(*SPLITS[1])] * 2], "test is the validation data itself"),
        ([SPLITS[0], TensorDataset(*SPLITS[1]), SPLITS[1]], "test is the validation data itself"),
        ([[*zip(*SPLITS[0], strict=True)], LISTED, [*LISTED]], "test is the validation data itself"),
        ([Subset(ALL, range(30)), Subset(ALL, [7, 3]), Subset(ALL, range(45, 60))], BOTH),
        ([(MISSING[:30], Y[:30]), (MISSING[5:20], Y[5:20]), SPLITS[2]], BOTH),
        ([(MISSING[:30], Y[:30]), *[(MISSING[30:45], Y[30:45])] * 2], "test is the validation data itself"),
    ],
)
def test_splits_that_hold_each_other_are_refused_in_any_form(splits, message):
    with pytest.raises(UserError, match=message):
        check_apart(task(splits))


def test_equations_may_be_judged_where_settings_are_chosen():
    check_apart(task([SPLITS[0], SPLITS[1], SPLITS[1]], step=lambda model, batch: model(batch[0]).sum()))


def test_large_splits_of_few_values_are_looked_through():
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 50, generator=random) * (torch.rand(2000, 50, generator=random) > 0.9)
    x[:, :20] = 0
    y = torch.randint(2, (2000,), generator=random)
    check_apart(task([(x[:1000], y[:1000]), (x[1000:1500], y[1000:1500]), (x[1500:], y[1500:])]))
    with pytest.raises(UserError, match="all examples of test that were looked at are training data too"):
        check_apart(task([(x[:1000], y[:1000]), (x[1000:1500], y[1000:1500]), (x[300:700], y[300:700])]))


def slope(model, batch):
    x = batch[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return found.square().mean()


COLUMNS = [(x, y[:, None]) for x, y in FLOATS]
NORM = {"model": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))}
# What the page says of each, and how it is made.
ON_PAGE = {
    "arrays of numpy": ([(X.double().numpy(), Y.numpy()), *SPLITS[1:]], {}),
    "tables of pandas": ([(pandas.DataFrame(X.numpy()), pandas.Series(Y.numpy())), *SPLITS[1:]], {}),
    "inputs in float64": ([(x.double(), y) for x, y in SPLITS], {}),
    "classes in int32": ([(x, y.int()) for x, y in SPLITS], {}),
    "classes as decimals": (FLOATS, {}),
    "classes from 1": ([(x, y + 1) for x, y in SPLITS], {}),
    "yes and no as whole numbers": ([(x, y[:, None]) for x, y in SPLITS], {**ONE, "loss": BINARY}),
    "outputs (n, 1), targets (n,)": (FLOATS, {**ONE, "loss": lambda o, t: (o - t).square().mean()}),
    "regression without a metric": (COLUMNS, {**ONE, "loss": nn.functional.mse_loss}),
    "a metric that may be an error": (COLUMNS, {**ONE, "metric": lambda o, t: 0.0, "metric_name": "rmse"}),
    "a class in place of an object": (SPLITS, {"metric": BinaryAUROC}),
    "a model that returns a dict": (SPLITS, {"model": Named}),
    "a batch without targets": ([[{"a": x} for x in X[:30]], *SPLITS[1:]], {}),
    "validation is train": ([SPLITS[0], *SPLITS[:2]], {}),
    "validation is a part of train": ([SPLITS[0], (X[5:20].flip(0), Y[5:20].flip(0)), SPLITS[2]], {}),
    "test is validation": ([SPLITS[0], SPLITS[1], SPLITS[1]], {}),
    "one model for all trainings": (SPLITS, {"model": lambda: NET}),
    "a last batch of one": ([(X[:33], Y[:33]), *SPLITS[1:]], NORM),
    "a loss that differentiates inside": (SPLITS, {"step": slope}),
}


def test_the_page_has_all_of_them():
    assert list(SAID) == list(ON_PAGE)


@pytest.mark.parametrize("mistake", ON_PAGE)
def test_what_the_page_says_is_said(mistake):
    splits, more = ON_PAGE[mistake]
    with pytest.raises(UserError) as caught:
        check_fit(task(splits, **more))
    assert SAID[mistake] in str(caught.value)


class Counting(nn.Linear):
    """Has weights of its own, and a buffer that is everybody's."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("seen", STATISTICS)


class Tied(nn.Sequential):
    """Has one weight twice, and one tensor that stands for many, and a view of another."""

    def __init__(self):
        super().__init__(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
        self[1].weight = self[0].weight
        self.register_buffer("wide", torch.zeros(1).expand(5))
        self.register_buffer("part", self.wide[:2])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: NET, "weight"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), NET), "2.weight"),
        (Counting, "seen"),
        (lambda: copied_but_for_data(NET), "weight"),
    ],
)
def test_models_that_share_weights_are_refused(model, name):
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=rf"^Task: model returns the same '{name}' at every call, .* copy.deepcopy"):
        check_fit(task(model=model))
    assert torch.equal(torch.get_rng_state(), before)


def copied_but_for_data(net):
    copied = copy.deepcopy(net)
    copied.weight = nn.Parameter(net.weight.detach())  # another parameter, of the same memory
    return copied


@pytest.mark.parametrize(
    "model",
    [
        Tied,
        lambda: copy.deepcopy(NET),
        lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)),
    ],
)
def test_models_whose_own_parts_are_tied_or_lazy_fit(model):
    check_fit(task(model=model))


def test_what_has_no_memory_is_not_shared():
    with torch.device("meta"):
        assert shared_name(nn.Linear(3, 2), nn.Linear(3, 2)) is None
    sparse = [nn.Linear(3, 2) for _ in range(2)]
    for net in sparse:
        net.register_buffer("sparse", torch.eye(2).to_sparse())
        net.register_buffer("empty", torch.empty(0))
    assert shared_name(*sparse) is None


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_models_share_nothing(name):
    make = BUILTIN[name]().model
    assert shared_name(make(), make()) is None


def test_the_second_model_may_fail():
    models = iter([nn.Linear(3, 2)])
    with pytest.raises(UserError, match=r"^making the model a second time failed with StopIteration"):
        check_fit(task(model=lambda: next(models)))


def test_a_last_batch_of_one_image_has_a_variance():
    images = [(x[:, :, None, None].repeat(1, 1, 2, 2), y) for x, y in [(X[:33], Y[:33]), *SPLITS[1:]]]

    def model():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

    check_fit(task(images, model=model))
