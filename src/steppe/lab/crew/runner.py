"""Carry trials out, skipping those whose records exist; what came of each is written here alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from ..errors import RunError
from ..plans.workers import Workers
from ..store import changes, codes, records
from ..tasks.sources import TaskSource
from ..trials.devices import kind
from ..trials.host import Host
from ..trials.records import Curve, Record, TrialConfig
from . import launching
from .carrying import JobError, carry_out
from .cluster import cluster
from .executors import ExecutorCrew
from .here import Here
from .jobs import Crew, Interrupted, Job
from .local import LocalCrew
from .workers import job as as_job

_AGAIN = "the same command continues from there"

_Found = TypeVar("_Found", contravariant=True)


class Watching(Protocol[_Found]):
    """Is told how work proceeds, of which trials are the smallest part."""

    def begin(self, total: int, kept: Sequence[_Found]) -> None:
        """How much there is in all, and what was finished in an earlier run."""

    def warn(self, message: str) -> None:
        """Something was odd, but the work goes on."""

    def note(self, message: str) -> None:
        """Something is good to know."""

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """These trials run now."""

    def finished(self, found: _Found) -> None:
        """One more has come to its end, and is kept."""


Observer: TypeAlias = Watching[Record]
"""Of a comparison."""


class Silence:
    """An observer that does nothing."""

    def begin(self, total: int, kept: Sequence[Any]) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""

    def running(self, trials: Sequence[TrialConfig]) -> None:
        """Do nothing."""

    def finished(self, found: Any) -> None:
        """Do nothing."""


def run_trials(
    trials: Sequence[TrialConfig],
    source: TaskSource,
    folder: Path,
    workers: Workers,
    observer: Observer | None = None,
    *,
    keep_weights: bool = False,
    executor: Executor | None = None,
) -> list[Record]:
    """Run all trials that have no record yet, or no weights where they are to be kept.

    Args:
        trials: What to run; they start in this order.
        source: Where the task comes from.
        folder: Records are read from and written to ``trials`` in here.
        workers: Who carries trials out. In processes that accelerate has launched, the first one writes.
        observer: Is told what happens.
        keep_weights: Whether the final weights are written to ``weights`` in the folder.
        executor: Carries them out instead.

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
    observer.begin(len(trials), list(done.values()))
    missing = [config for config in trials if config.key not in done]
    note_changes(folder, missing, trials, source, workers, observer.note)
    if workers.host is not None:  # the first process may see files that the others do not
        keys = workers.host.agree([config.key for config in missing])
        missing = [config for config in trials if config.key in keys]
    waiting = iter(missing)

    def kept() -> str:
        count = sum(records.record_path(folder, config).is_file() for config in trials)
        return f"{count} of {len(trials)} trials are kept in {folder}"

    with saying(kept), joined(workers, len(missing), executor) as crew:
        found = carry_trials(
            lambda: next(waiting, None),
            crew,
            source,
            folder,
            running=observer.running,
            warn=observer.warn,
            keep_weights=keep_weights,
            host=workers.place,
            processes=workers.processes,
        )
        with closing(found):
            for config, record in found:
                assert record is not None
                done[config.key] = record
                observer.finished(record)
    return [done[config.key] for config in trials if config.key in done]  # all of them, in the process that writes


def note_changes(
    folder: Path,
    missing: Sequence[TrialConfig],
    trials: Sequence[TrialConfig],
    source: TaskSource,
    workers: Workers,
    note: Callable[[str], object],
    varied: Collection[str] = (),
) -> None:
    """Say why records of the same rows and seeds do not count, if there are any.

    Args:
        folder: Where records are; what the user's files say now is written there too.
        missing: See `changes.since`.
        trials: All of them.
        source: Where the task comes from.
        workers: Who carries trials out.
        note: Is told.
        varied: See `changes.since`.
    """
    if workers.writes:
        codes.write(folder, source.codes)
    said = changes.since(folder, missing, trials, varied)
    if said is not None:
        note(said)


def carry_trials(
    following: Callable[[], TrialConfig | None],
    crew: Crew,
    source: TaskSource,
    folder: Path,
    *,
    running: Callable[[list[TrialConfig]], object],
    warn: Callable[[str], object],
    label: Callable[[TrialConfig], str] = lambda config: f"the trial {config.label}",
    goes_on: Callable[[TrialConfig, Curve], bool] | None = None,
    given_up: Callable[[TrialConfig], bool] | None = None,
    keep_weights: bool = False,
    host: Host,
    processes: int = 1,
) -> Generator[tuple[TrialConfig, Record | None]]:
    """Carry out trials as they come, write their records, and yield each as soon as that is done.

    Close it at once, so that no worker goes on.

    Args:
        following: Returns the next trial; None if there is none for now.
        crew: Who carries them out.
        source: Where the task comes from.
        folder: Records are written to ``trials`` in here.
        running: Is told which trials run, whenever that changes.
        warn: Is told of workers that died.
        label: Says which trial one is.
        goes_on: Is given the curve of a trial after every epoch and returns whether it goes on; the record of one that
            does not is None.
        given_up: Is given a trial at which workers die, which else is an error; see `carry_out`.
        keep_weights: Whether the final weights are written too.
        host: Where trials run.
        processes: Of each of them.

    Raises:
        JobError: A trial failed, or its record cannot be written.
    """
    configs: dict[str, TrialConfig] = {}

    def next_job() -> Job | None:
        config = following()
        if config is None:
            return None
        configs[config.key] = config
        if processes > 1:
            return launching.job(source, config, label(config), keep_weights, processes, kind(str(host.device)))
        return as_job(source, config, label(config), keep_weights, host, tells=goes_on is not None)

    found = carry_out(
        next_job,
        crew,
        running=lambda jobs: running([configs[job.key] for job in jobs]),
        said=lambda job, curve: goes_on is None or goes_on(configs[job.key], curve),
        warn=warn,
        given_up=None if given_up is None else lambda job: given_up(configs.pop(job.key)),
    )
    with closing(found):
        for job, result in found:
            config = configs.pop(job.key)
            if result is None:
                yield config, None
                continue
            record, weights = result
            if host.rank == 0:
                _write(folder, record, weights)
            yield config, record


@contextmanager
def saying(kept: Callable[[], str]) -> Iterator[None]:
    """Within this, what ends the work is said with what is kept of it.

    Raises:
        RunError: A trial failed.
        Interrupted: The user pressed Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {kept()}; {_AGAIN}") from None
    except JobError as failed:
        raise RunError(f"{failed}; {kept()}; {_AGAIN}") from None


def joined(workers: Workers, most: int | None = None, executor: Executor | None = None) -> AbstractContextManager[Crew]:
    """Return the crew of those who carry trials out.

    Args:
        workers: Who they are.
        most: So many trials there are; None if that is not known.
        executor: Carries them out instead.
    """
    jobs = workers.jobs if most is None else min(workers.jobs, most)
    if not workers.apart:
        return nullcontext(Here())
    if executor is not None:
        return ExecutorCrew(executor, max(jobs, 1))
    if workers.crew is not None and most != 0:
        return cluster(workers.crew)
    return LocalCrew(jobs, workers.timeout)


def _write(folder: Path, record: Record, weights: bytes | None) -> None:
    try:
        if weights is not None:  # before the record, which says that all is there
            records.write_weights(folder, record.config, weights)
        records.write(folder, record)
    except OSError as error:
        raise JobError(
            f"the record of {record.config.label} cannot be written to {folder}: {error.strerror}"
        ) from error


def _lacks_weights(folder: Path, record: Record) -> bool:
    return record.final is not None and not records.weights_path(folder, record.config).is_file()
