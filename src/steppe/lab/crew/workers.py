"""What happens inside a worker process. Heavy imports wait until a trial runs, so that the parent starts quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tasks.sources import TaskSource
    from ..tasks.task import Task
    from ..trials.host import Host
    from ..trials.records import Curve, Record, TrialConfig


@dataclass(frozen=True)
class Failure:
    """Why a trial could not be carried out, in one line."""

    message: str


def run(
    source: TaskSource,
    config: TrialConfig,
    folder: Path | None,
    keep_weights: bool = False,
    host: Host | None = None,
    each_epoch: Callable[[Curve], object] | None = None,
) -> Record | Failure:
    """Run a trial and write its record here, so that it survives even if the parent is killed at this moment.

    Args:
        source: Where the task comes from.
        config: What to run.
        folder: The folder of the comparison; None writes nothing.
        keep_weights: Whether to write the final weights too.
        host: Where the trial runs; by default the CPU.
        each_epoch: Is given the curve so far after every epoch, and may raise `trial.Stopped`.

    Returns:
        The record, or why there is none.

    Raises:
        Stopped: If `each_epoch` does.
    """
    from ..errors import UserError, describe
    from ..store import records
    from ..trials.trial import Stopped, run_trial

    weights: dict[str, Any] = {}
    try:
        record = run_trial(config, _task(source), host, weights.update if keep_weights else None, each_epoch)
    except Stopped:
        raise
    except UserError as error:
        return Failure(f"the trial {config.label} failed: {error}")
    except Exception as error:
        return Failure(f"the trial {config.label} failed with {describe(error, source.path)}")
    if folder is None:
        return record
    try:
        if weights:  # before the record, which says that all is there
            records.write_weights(folder, config, weights)
        records.write(folder, record)
    except OSError as error:
        return Failure(f"the record of {config.label} cannot be written to {folder}: {error.strerror}")
    return record


_loaded: dict[TaskSource, Task] = {}


def _task(source: TaskSource) -> Task:
    if source not in _loaded:
        _loaded[source] = source.load()
        _warm_up()
    return _loaded[source]


def _warm_up() -> None:
    """Let torch import what it imports at the first step, so that no trial's time contains it."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
