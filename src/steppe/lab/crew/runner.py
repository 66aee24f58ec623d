"""Carry trials out, skipping those whose records exist; what came of each is written here alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Protocol

from ..errors import RunError
from ..store import records
from ..tasks.sources import TaskSource
from ..trials.host import Host
from ..trials.records import Record, TrialConfig
from . import workers
from .carrying import JobError, carry_out
from .executors import ExecutorCrew, cluster
from .here import Here
from .jobs import Crew, Interrupted, Job
from .local import LocalCrew


class Observer(Protocol):
    """Is told how a comparison proceeds."""

    def begin(self, total: int, kept: int) -> None:
        """Trials in all, and how many of them were finished in an earlier run."""

    def warn(self, message: str) -> None:
        """Something was odd, but the comparison goes on."""

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """These trials run now."""

    def finished(self, record: Record) -> None:
        """A trial has come to its end and its record is written."""


class Silence:
    """An observer that does nothing."""

    def begin(self, total: int, kept: int) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """Do nothing."""

    def finished(self, record: Record) -> None:
        """Do nothing."""


def run_trials(
    trials: Sequence[TrialConfig],
    source: TaskSource,
    folder: Path,
    jobs: int,
    observer: Observer | None = None,
    *,
    keep_weights: bool = False,
    timeout: float | None = None,
    crew: str | Executor | None = None,
    host: Host | None = None,
) -> list[Record]:
    """Run all trials that have no record yet, or no weights where they are to be kept.

    Args:
        trials: What to run; they start in this order.
        source: Where the task comes from.
        folder: Records are read from and written to ``trials`` in here.
        jobs: Worker processes, at least 1. The results do not depend on it.
        observer: Is told what happens.
        keep_weights: Whether the final weights are written to ``weights`` in the folder.
        timeout: Seconds that a trial may take in a worker process; None sets no limit.
        crew: Who carries trials out, if not processes here: the address of a Dask scheduler, or an executor.
        host: If given, all trials run in this process, one after the other, together with the host's other processes;
            the first of those writes.

    Returns:
        The records in the order of `trials`.

    Raises:
        RunError: A trial failed, or workers die at one; finished trials are kept.
        Interrupted: The user pressed Ctrl-C; finished trials are kept.
    """
    observer = observer or Silence()
    done: dict[str, Record] = {}
    for config in trials:
        record = records.read(folder, config)
        if record is not None and not (keep_weights and _lacks_weights(folder, record)):
            done[config.key] = record
    observer.begin(len(trials), len(done))
    missing = [config for config in trials if config.key not in done]
    configs = {config.key: config for config in missing}
    if host is not None:  # the first process may see files that the others do not
        keys = host.agree([config.key for config in missing])
        missing = [config for config in trials if config.key in keys]
    waiting = iter(missing)

    def following() -> Job | None:
        config = next(waiting, None)
        return None if config is None else workers.job(source, config, keep_weights, host)

    try:
        with _joined(crew, min(jobs, len(missing)), timeout, host) as joined:
            found = carry_out(
                following,
                joined,
                running=lambda now: observer.running([configs[job.key] for job in now]),
                warn=observer.warn,
            )
            # Closed at once also when the observer is what raises, so that no worker goes on.
            with closing(found):
                for _, (record, weights) in found:
                    if host is None or host.rank == 0:
                        _write(folder, record, weights)
                    done[record.key] = record
                    observer.finished(record)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {_kept(trials, folder)}") from None
    except JobError as failed:
        raise RunError(f"{failed}; {_kept(trials, folder)}") from None
    return [done[config.key] for config in trials if config.key in done]  # all of them, in the process that writes


def _joined(
    crew: str | Executor | None, jobs: int, timeout: float | None, host: Host | None
) -> AbstractContextManager[Crew]:
    if host is not None:
        return nullcontext(Here())
    if isinstance(crew, str):
        return cluster(crew)
    return LocalCrew(jobs, timeout) if crew is None else ExecutorCrew(crew, max(jobs, 1))


def _write(folder: Path, record: Record, weights: bytes | None) -> None:
    try:
        if weights is not None:  # before the record, which says that all is there
            records.write_weights(folder, record.config, weights)
        records.write(folder, record)
    except OSError as error:
        raise JobError(
            f"the record of {record.config.label} cannot be written to {folder}: {error.strerror}"
        ) from error


def _kept(trials: Sequence[TrialConfig], folder: Path) -> str:
    kept = sum(records.record_path(folder, config).is_file() for config in trials)
    return f"{kept} of {len(trials)} trials are kept in {folder}; the same command continues from there"


def _lacks_weights(folder: Path, record: Record) -> bool:
    return record.final is not None and not records.weights_path(folder, record.config).is_file()
