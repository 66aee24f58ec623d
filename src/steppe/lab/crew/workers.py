"""A trial as a job. Heavy imports wait until one runs, so that the command starts quickly."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..tasks.sources import TaskSource
from ..trials.records import Record, TrialConfig
from .jobs import Job, Say

if TYPE_CHECKING:
    from ..tasks.loop import Loop
    from ..tasks.task import Task
    from ..trials.host import Host


def job(
    source: TaskSource,
    config: TrialConfig,
    label: str,
    keep_weights: bool = False,
    host: Host | None = None,
    tells: bool = False,
) -> Job:
    """Return the job that runs a trial; its result is the record, and the final weights if they are to be kept."""
    return Job(config.key, label, run, (source, config, keep_weights, host), source.paths, tells)


def run(
    source: TaskSource, config: TrialConfig, keep_weights: bool, host: Host | None, say: Say | None
) -> tuple[Record, bytes | None]:
    """Run a trial.

    Args:
        source: Where the task comes from.
        config: What to run.
        keep_weights: Whether to return the final weights too, as ``torch.save`` writes them.
        host: Where the trial runs; by default the CPU.
        say: Is given the curve so far after every epoch, and may raise `Stopped`; None if nobody listens.
    """
    from ..tasks.loop import Loop
    from ..trials.finding import brought
    from ..trials.own_loop import run_loop
    from ..trials.trial import run_trial

    weights: dict[str, Any] = {}
    keep = weights.update if keep_weights else None
    task = _task(source, config)
    with brought(code for code in source.along if config.is_by(code.name, code.digest)):
        if isinstance(task, Loop):
            record = run_loop(config, task, host, keep, say)
        else:
            record = run_trial(config, task, host, keep, say)
    return record, _saved(weights) if weights else None


def _saved(weights: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


_KEPT = 2  # tasks of seeds of their own, each of which may hold the data

_loaded: dict[TaskSource, Task | Loop] = {}
_of_seeds: dict[tuple[TaskSource, int], Task | Loop] = {}  # the one that was used last comes last


def _task(source: TaskSource, config: TrialConfig) -> Task | Loop:
    if config.own_split:
        return _of_seed(source, config.seed)
    if source not in _loaded:
        _loaded[source] = source.load()
        _warm_up()
    return _loaded[source]


def load_anew(source: TaskSource, config: TrialConfig) -> None:
    """Make the task of a trial once more, whatever was made of it before."""
    _loaded.pop(source, None)
    _of_seeds.pop((source, config.seed), None)
    _task(source, config)


def _of_seed(source: TaskSource, seed: int) -> Task | Loop:
    known = _of_seeds.pop((source, seed), None)
    if known is None:
        while len(_of_seeds) >= _KEPT:
            del _of_seeds[next(iter(_of_seeds))]
        known = source.load(seed)
        _warm_up()
    _of_seeds[source, seed] = known
    return known


def _warm_up() -> None:
    """Let torch import what it imports at the first step, so that no trial's time contains it."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    (weight @ weight).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
