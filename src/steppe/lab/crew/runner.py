"""Run trials in parallel processes, skipping those whose records exist."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Protocol

from ..errors import RunError
from ..store import records
from ..tasks.sources import TaskSource
from ..trials.host import Host
from ..trials.records import Record, TrialConfig
from . import workers
from .processes import interrupt_held_back, worker_processes


class Interrupted(RunError):
    """The user pressed Ctrl-C; what was finished is kept."""

    exit_code = 130


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
        host: If given, all trials run in this process, one after the other, together with the host's other processes;
            the first of those writes.

    Returns:
        The records in the order of `trials`.

    Raises:
        RunError: A trial failed or a worker died; finished trials are kept.
        Interrupted: The user pressed Ctrl-C; finished trials are kept.
    """
    observer = observer or Silence()
    done: dict[str, Record] = {}
    for config in trials:
        record, warning = records.read(folder, config)
        if warning:
            observer.warn(warning)
        if record is not None and not (keep_weights and _lacks_weights(folder, record)):
            done[config.key] = record
    observer.begin(len(trials), len(done))
    missing = [config for config in trials if config.key not in done]
    if host is not None:  # the first process may see files that the others do not
        keys = host.agree([config.key for config in missing])
        missing = [config for config in trials if config.key in keys]
        running = _run_here(missing, source, folder, observer, keep_weights, host)
    else:
        running = _run(missing, source, folder, jobs, observer, keep_weights)
    try:
        # Closed at once also when the observer is what raises, so that no worker goes on.
        with closing(running) as found:
            for record in found:
                done[record.key] = record
                observer.finished(record)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {_kept(trials, folder)}") from None
    except BrokenProcessPool:
        raise RunError(
            f"a worker process died, perhaps for lack of memory (try fewer --jobs): {_kept(trials, folder)}"
        ) from None
    except _Failed as failed:
        raise RunError(f"{failed}; {_kept(trials, folder)}") from None
    return [done[config.key] for config in trials if config.key in done]  # all of them, in the process that writes


class _Failed(Exception):
    pass


def _kept(trials: Sequence[TrialConfig], folder: Path) -> str:
    kept = sum(records.read(folder, config)[0] is not None for config in trials)
    return f"{kept} of {len(trials)} trials are kept in {folder}; the same command continues from there"


def _lacks_weights(folder: Path, record: Record) -> bool:
    return record.final is not None and not records.weights_path(folder, record.config).is_file()


def _run(
    missing: Sequence[TrialConfig], source: TaskSource, folder: Path, jobs: int, observer: Observer, keep_weights: bool
) -> Generator[Record]:
    if not missing:
        return
    waiting = list(reversed(missing))
    running: dict[Future[Record | workers.Failure], TrialConfig] = {}
    with worker_processes(min(jobs, len(missing))) as executor:
        while waiting or running:
            # No more than one trial a worker is handed out, so that what is said to be running is running.
            while waiting and len(running) < jobs:
                config = waiting.pop()
                with interrupt_held_back():
                    running[executor.submit(workers.run, source, config, folder, keep_weights)] = config
            observer.running(list(running.values()))
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                del running[future]
                result = future.result()
                if isinstance(result, workers.Failure):
                    raise _Failed(result.message)
                yield result


def _run_here(
    missing: Sequence[TrialConfig],
    source: TaskSource,
    folder: Path,
    observer: Observer,
    keep_weights: bool,
    host: Host,
) -> Generator[Record]:
    for config in missing:
        observer.running([config])
        result = workers.run(source, config, folder if host.rank == 0 else None, keep_weights, host)
        if isinstance(result, workers.Failure):
            raise _Failed(result.message)
        yield result
