"""What happens inside a worker process. Imports nothing heavy, so that the watch begins as soon as possible."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .host import Host
    from .records import Record, TrialConfig
    from .sources import TaskSource
    from .tasks import Task


@dataclass(frozen=True)
class Failure:
    """Why a trial could not be carried out, in one line."""

    message: str


def start(lifeline: Connection) -> None:
    """Prepare a worker: it ends when its parent does, or when the other end of `lifeline` is closed.

    Args:
        lifeline: The reading end of a pipe into which nothing is ever written.
    """
    # Ctrl-C reaches the whole process group; only the parent answers it, and ends the workers through the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True, name="lifeline").start()


def run(
    source: TaskSource, config: TrialConfig, folder: Path | None, keep_weights: bool = False, host: Host | None = None
) -> Record | Failure:
    """Run a trial and write its record here, so that it survives even if the parent is killed at this moment.

    Args:
        source: Where the task comes from.
        config: What to run.
        folder: The folder of the comparison; None writes nothing.
        keep_weights: Whether to write the final weights too.
        host: Where the trial runs; by default the CPU.

    Returns:
        The record, or why there is none.
    """
    from . import records
    from .errors import UserError, describe
    from .trial import run_trial

    weights: dict[str, Any] = {}
    try:
        record = run_trial(config, _task(source), host, keep=weights.update if keep_weights else None)
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


def _watch(lifeline: Connection) -> None:
    parent = multiprocessing.parent_process()
    wait([lifeline] if parent is None else [lifeline, parent.sentinel])
    os._exit(1)
