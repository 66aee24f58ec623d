"""A training loop of the user's own, in place of a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, overload

from ..errors import UserError
from .task import check_name, kind

Train = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Loop:
    """A function that trains by itself, given a `steppe.lab.Run`, and returns what came of it.

    Args:
        train: ``train(run)`` -> numbers on test data by name, of which the first decides; in place of a mean, a tensor,
            an array or a list with one number for each test example.
        metric_name: What the first of them is called; by default as the function says it.
        higher_is_better: Whether a larger one is better; by default as its name says it. Both must be said here for
            `steppe sweep`.
        epochs: What ``run.epochs`` is, unless the command line says otherwise; 0 if the function decides.
    """

    train: Train
    metric_name: str = ""
    higher_is_better: bool | None = None
    epochs: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if not takes_run(self.train):
            raise UserError(f"a training loop must be a function of one argument, the run, got {kind(self.train)}")
        if self.metric_name != "":
            check_name(self.metric_name)
        if self.higher_is_better not in (None, True, False):
            raise UserError(f"loop: higher_is_better must be True or False, got {self.higher_is_better!r}")
        if not isinstance(self.epochs, int) or isinstance(self.epochs, bool) or self.epochs < 0:
            raise UserError(f"loop: epochs must be a whole number of at least 0, got {self.epochs!r}")

    def __call__(self, run: Any) -> Mapping[str, Any]:
        """Train."""
        return self.train(run)

    @property
    def batch_size(self) -> int:
        """Of no meaning: the function makes its batches itself."""
        return 1

    @property
    def __name__(self) -> str:
        """That of the function."""
        return getattr(self.train, "__name__", "train")


@overload
def loop(train: Train, /) -> Loop: ...


@overload
def loop(
    *, metric_name: str = ..., higher_is_better: bool | None = ..., epochs: int = ...
) -> Callable[[Train], Loop]: ...


def loop(
    train: Train | None = None, /, *, metric_name: str = "", higher_is_better: bool | None = None, epochs: int = 0
) -> Loop | Callable[[Train], Loop]:
    """Say of a function that it is a training loop, and what it returns first.

    A plain function of one argument is one too; this says more about it.

    Args:
        train: See `Loop`.
        metric_name: See `Loop`.
        higher_is_better: See `Loop`.
        epochs: See `Loop`.

    Example:
        >>> @loop(metric_name="perplexity", higher_is_better=False, epochs=5)
        ... def train(run):
        ...     return {"perplexity": 12.0}
        >>> train.epochs
        5
    """
    if train is not None:
        return Loop(train)
    return lambda function: Loop(function, metric_name, higher_is_better, epochs)


def takes_run(function: object) -> TypeGuard[Train]:
    """Return whether a function needs one argument, as training loops do, and tasks do not."""
    if not callable(function):
        return False
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [
        parameter
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 1
