"""A trial in a loop of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tasks.loop import Loop
from ..tasks.outcomes import of_means
from ..tasks.task import Task, kind
from .devices import Memory, name_of, use
from .host import Host
from .quiet import quiet_hosts
from .records import Curve, Diverged, Final, Record, TrialConfig, all_versions
from .run import Diverging, Run
from .surroundings import reproducible


def run_loop(
    config: TrialConfig,
    loop: Loop,
    host: Host | None = None,
    keep: Callable[[dict[str, Any]], object] | None = None,
    each_epoch: Callable[[Curve], object] | None = None,
) -> Record:
    """Let a loop of the user's own train one model with one method from one seed.

    Args:
        config: What to run.
        loop: The loop.
        host: As of `run_trial`.
        keep: Likewise; of the model for which the loop has asked for an optimizer.
        each_epoch: Is given the curve so far after every report; what it raises ends the trial.

    Returns:
        The record; its status is ``diverged`` if a number that was reported or returned is not finite.

    Raises:
        UserError: The loop returns no numbers by name, or has asked for no optimizer.
    """
    host = (host or Host()).placed()
    use(str(host.device))
    inexact: set[str] = set()
    with reproducible(config.seed, host.threads, str(host.device), inexact):
        memory = Memory(str(host.device))
        run = Run(config, host, loop, each_epoch)
        try:
            with memory.watched():
                trained = _trained(loop, run)
            values = _values(trained, loop)
        except Diverging:
            values = {}
        found = {name: float(value.mean()) for name, value in values.items()}
        finite = bool(found) and all(map(math.isfinite, found.values()))
    if not run.updates and finite:
        raise UserError(
            f"{loop.__name__} has made no step of an optimizer from run.optimizer(model), so that there is nothing to "
            "compare"
        )
    if finite and keep is not None and len(run.models) == 1:
        keep(run.models[0].cpu().state_dict())
    name = next(iter(found), run.metric_name)
    if finite and run.metric_name not in ("", name):
        raise UserError(
            f"{loop.__name__} must return {run.metric_name!r} first, which run.report was told, got {name!r}"
        )
    return Record(
        key=config.key,
        config=config,
        status="finished" if finite else "diverged",
        diverged=None if finite else Diverged(epoch=len(run.curve.seconds) + 1, step=max(1, run.updates)),
        curve=run.curve,
        final=_final(run, found, values[name]) if finite else None,
        gradient_evaluations=run.gradient_evaluations,
        examples=run.examples,
        updates=run.updates,
        seconds=run.seconds,
        versions=all_versions(),
        hardware=name_of(str(host.device)),
        parameters=run.parameters,
        peak_memory=memory.most,
        date=date.today().isoformat(),
        not_deterministic=sorted(inexact),
        metric_name=name or None,
    )


def _trained(loop: Loop, run: Run) -> object:
    """Return what the loop does, unless `Run.report` has ended it, whatever libraries make of what that raises."""
    try:
        with quiet_hosts():
            found = loop.train(run)
    except Exception:
        if run.ended_by is None:
            raise
    if run.ended_by is not None:
        raise run.ended_by
    return found


def _values(found: object, loop: Loop) -> dict[str, Tensor]:
    """Return what the loop has found by name: numbers, or outcomes of test examples."""
    if isinstance(found, Task):
        raise UserError(
            f"{loop.__name__} returned a Task, and was taken for a training loop since it takes an argument; a "
            "function that makes a Task takes none, or the trial's seed by the name seed"
        )
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{loop.__name__} must return numbers by name, such as {{'accuracy': 0.9}}, got {kind(found)}")
    try:
        values = {str(name): _value(value) for name, value in found.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{loop.__name__} must return numbers by name, got {dict(found)!r}") from error
    for name, value in values.items():
        if value.ndim > 1 or not value.numel():
            raise UserError(
                f"{loop.__name__} must return {name!r} as a number, or as one number for each test example, got shape "
                f"{tuple(value.shape)}"
            )
    return values


def _value(value: Any) -> Tensor:
    if not (isinstance(value, (list, tuple)) or getattr(value, "ndim", None)):
        return torch.tensor(float(value), dtype=torch.float64)
    made = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value, dtype=np.float64))
    return (made.squeeze() if made.numel() == 1 else made).to("cpu", torch.float64)


def _final(run: Run, found: Mapping[str, float], outcomes: Tensor) -> Final:
    def last(values: list[float]) -> float | None:
        return values[-1] if values else None

    name, *others = found
    single = of_means(outcomes) if outcomes.ndim else None
    return Final(
        train_loss=last(run.curve.train_loss),
        validation_loss=last(run.curve.validation_loss),
        validation_metric=last(run.curve.validation_metric),
        test_metric=found[name],
        test_more={other: found[other] for other in others},
        test_examples=len(outcomes) if outcomes.ndim else None,
        test_parts=None if single is None else single.parts,
        test_step=None if single is None else single.step,
    )
