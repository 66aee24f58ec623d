"""The metrics against sklearn and scipy, called by hand, and where those have no answer."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from sklearn import metrics as by_hand

from steppe.lab.tasks.text.metrics import METRICS, f1, matthews, pearson, pearson_spearman, spearman


@pytest.mark.parametrize("classes", [2, 3])
def test_classes(classes):
    generator = torch.Generator().manual_seed(classes)
    outputs = torch.randn(200, classes, generator=generator)
    y = torch.randint(classes, (200,), generator=generator)
    outputs[torch.arange(100), y[:100]] += 2
    predicted = outputs.argmax(1).numpy()
    average = "binary" if classes == 2 else "macro"
    assert matthews(outputs, y) == pytest.approx(100 * by_hand.matthews_corrcoef(y.numpy(), predicted))
    assert f1(outputs, y) == pytest.approx(100 * by_hand.f1_score(y.numpy(), predicted, average=average))
    assert METRICS["accuracy"].function(outputs, y) == pytest.approx(100 * by_hand.accuracy_score(y, predicted))
    assert 20 < matthews(outputs, y) < 90


def test_matthews_of_two_classes_by_its_formula():
    outputs = torch.eye(2)[[1] * 6 + [0] * 4]
    y = torch.tensor([1, 1, 1, 1, 0, 0, 1, 0, 0, 0])
    tp, fp, fn, tn = 4, 2, 1, 3
    formula = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(outputs, y) == pytest.approx(100 * formula)
    assert f1(outputs, y) == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
def test_correlations(shape):
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(50, generator=generator) * 5
    outputs = (y.exp() + torch.randn(50, generator=generator)).view(shape).requires_grad_()
    flat = outputs.detach().flatten().double().numpy()
    first, second = (100 * function(flat, y.double().numpy())[0] for function in (stats.pearsonr, stats.spearmanr))
    assert pearson(outputs, y) == pytest.approx(first)
    assert spearman(outputs, y) == pytest.approx(second)
    assert pearson_spearman(outputs, y) == pytest.approx((first + second) / 2)
    assert first != pytest.approx(second, abs=1)
    assert all(isinstance(METRICS[name].function(outputs, y), float) for name in METRICS if METRICS[name].regression)


def test_what_is_undefined_is_zero():
    always, y = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([0, 1, 1, 0])
    assert matthews(always, y) == 0
    assert f1(always, y) == 0
    assert f1(always, torch.zeros(4, dtype=torch.long)) == 0
    assert matthews(torch.eye(2)[[0, 1, 0, 1]], torch.zeros(4, dtype=torch.long)) == 0
    assert f1(torch.eye(3)[[0, 0]], torch.tensor([0, 0])) == pytest.approx(100 / 3)
    numbers = torch.tensor([0.0, 1.0, 2.0, 3.0])
    for function in (pearson, spearman, pearson_spearman):
        for constant in (torch.zeros(4, 1), torch.full((4,), 0.1), torch.full((4,), 1e30)):
            assert function(constant, numbers) == 0
            assert function(numbers, constant.flatten()) == 0
        assert function(1e6 + 1e-9 * numbers.double(), numbers) == 0
        assert function(numbers[:2], numbers[:2]) == pytest.approx(100)
        assert math.isnan(function(torch.tensor([0.0, math.nan, 1.0, 2.0]), numbers))
        assert math.isnan(function(torch.tensor([0.0, math.inf, 1.0, 2.0]), numbers))
