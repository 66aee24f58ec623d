"""The metrics of GLUE, each in percent, as functions of a model's outputs and the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..metrics import accuracy


@dataclass(frozen=True)
class Metric:
    """How outputs are judged.

    Attributes:
        title: What it is called in tables.
        function: ``function(outputs, targets)`` -> float, larger is better.
        regression: Whether targets are numbers rather than classes.
    """

    title: str
    function: Callable[[Tensor, Tensor], float]
    regression: bool = False


def matthews(outputs: Tensor, targets: Tensor) -> float:
    """Return Matthews' correlation of predicted and true classes, times 100.

    If one class is always predicted, or always true, the coefficient is 0 / 0. It is 0 here, as the prediction then
    says as much of the truth as a constant does; NaN would look like a training that diverged.

    Args:
        outputs: Scores of shape (n, classes).
        targets: Class indices of shape (n,).

    Returns:
        A number from -100 to 100.

    Example:
        >>> matthews(torch.eye(2), torch.tensor([0, 1]))
        100.0
        >>> matthews(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        0.0
    """
    from sklearn.metrics import matthews_corrcoef

    return 100.0 * float(matthews_corrcoef(*_classes(outputs, targets)))


def f1(outputs: Tensor, targets: Tensor) -> float:
    """Return the F1 score times 100: that of class 1 if there are two classes, else the mean over all classes.

    A class that is neither predicted nor true has 0 / 0. Its score is 0 here, as after a single wrong guess; NaN would
    look like a training that diverged.

    Args:
        outputs: Scores of shape (n, classes).
        targets: Class indices of shape (n,).

    Returns:
        A number from 0 to 100.

    Example:
        >>> f1(torch.eye(2), torch.tensor([0, 1]))
        100.0
    """
    from sklearn.metrics import f1_score

    true, predicted = _classes(outputs, targets)
    classes = outputs.shape[1]
    more = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": list(range(classes))}
    return 100.0 * float(f1_score(true, predicted, zero_division=0, **more))


def pearson(outputs: Tensor, targets: Tensor) -> float:
    """Return Pearson's correlation of scores and targets, times 100.

    Without any spread in scores or targets it is 0 / 0. It is 0 here, as constant scores say nothing of the targets;
    NaN would look like a training that diverged. Scores that are not finite do give NaN.

    Args:
        outputs: Scores of shape (n,) or (n, 1).
        targets: Numbers of shape (n,).

    Returns:
        A number from -100 to 100.

    Example:
        >>> pearson(torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, 5.0]))
        0.0
    """
    return _correlation("pearsonr", outputs, targets)


def spearman(outputs: Tensor, targets: Tensor) -> float:
    """Return Spearman's rank correlation of scores and targets, times 100; 0 without any spread, as `pearson`.

    Args:
        outputs: Scores of shape (n,) or (n, 1).
        targets: Numbers of shape (n,).

    Returns:
        A number from -100 to 100.
    """
    return _correlation("spearmanr", outputs, targets)


def pearson_spearman(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean of `pearson` and `spearman`.

    Args:
        outputs: Scores of shape (n,) or (n, 1).
        targets: Numbers of shape (n,).

    Returns:
        A number from -100 to 100.
    """
    return (pearson(outputs, targets) + spearman(outputs, targets)) / 2


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("accuracy (%)", accuracy),
        "matthews": Metric("Matthews' correlation x 100", matthews),
        "f1": Metric("F1 x 100", f1),
        "pearson-spearman": Metric("mean of Pearson's and Spearman's correlation x 100", pearson_spearman, True),
        "pearson": Metric("Pearson's correlation x 100", pearson, True),
        "spearman": Metric("Spearman's correlation x 100", spearman, True),
    }
)


def _classes(outputs: Tensor, targets: Tensor) -> tuple[Any, Any]:
    return targets.cpu().numpy(), outputs.detach().argmax(dim=1).cpu().numpy()


def _correlation(name: str, outputs: Tensor, targets: Tensor) -> float:
    from scipy import stats

    scores, true = (part.detach().double().flatten().cpu() for part in (outputs, targets))
    if not bool(torch.isfinite(scores).all()):
        return float("nan")
    # The smallest spreads drown in rounding, where scipy warns: they are none.
    if any(float(part.std(correction=0)) <= 1e-12 * float(part.abs().max()) for part in (scores, true)):
        return 0.0
    return 100.0 * float(getattr(stats, name)(scores.numpy(), true.numpy()).statistic)
