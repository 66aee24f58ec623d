"""Whether trials depend on nothing but their configuration: one is repeated where nothing was trained before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..plans.workers import Workers
from ..store import repeats
from ..tasks.sources import TaskSource
from ..trials.records import Curve, Record, TrialConfig
from . import workers as work
from .carrying import carry_out
from .jobs import Job, Say
from .runner import Observer, joined, saying

_FIRST = ("status", "final.test_metric", "final.validation_metric")
_BY_EPOCH = tuple(f"curve.{name}" for name in Curve.model_fields if not name.startswith("batch_loss"))
_CAUSES = (
    "Usual causes are data or a generator that is drawn without a seed, and a loss, dataset or model that keeps "
    "something from one trial to the next; mend that, or go on without this check: --no-check, check=False in Python"
)


class Trained:
    """An observer that keeps what is trained now, and tells another one everything.

    Args:
        observer: The other one.
    """

    def __init__(self, observer: Observer) -> None:
        """See the class."""
        self.records: list[Record] = []
        self.begin, self.warn, self.note = observer.begin, observer.warn, observer.note
        self.running = observer.running
        self._finished = observer.finished

    def finished(self, found: Record) -> None:
        """Keep it."""
        self.records.append(found)
        self._finished(found)


def can_check(workers: Workers) -> bool:
    """Return whether a repeated trial must find the same to the last bit: in one process on the CPU of this machine."""
    alone = workers.host is None and workers.crew is None and workers.processes == 1
    return alone and workers.device == "cpu"


def check(
    found: Sequence[Record],
    trained: Sequence[Record],
    source: TaskSource,
    folder: Path,
    workers: Workers,
    observer: Observer,
    base: str,
    metric_name: str,
) -> None:
    """Repeat one of the trials that were trained now, in a new process, and compare all numbers.

    What came of it is kept in ``repeats`` in the folder: a finished comparison is not checked again, one that was
    interrupted meanwhile is, and one that has failed fails again.

    Args:
        found: The records of all trials, in the order in which they were to start.
        trained: Those that were trained now; if there is none, and nothing was ever repeated, all count.
        source: Where the task comes from.
        folder: Of the comparison.
        workers: Who carried them out; with ``jobs`` of 0 the trial is repeated here.
        observer: Is told of it.
        base: The row that is repeated if it is there, or else the cheapest.
        metric_name: What the metric is called.

    Raises:
        RunError: It is not the same.
        Interrupted: The user pressed Ctrl-C.
    """
    known = [(one, repeat) for one in found if (repeat := repeats.read(folder, one)) is not None]
    for one, repeat in known:
        if repeat.difference:
            raise _not_the_same(one.config, repeat.difference, folder)
    begun = [one for one, repeat in known if repeat.difference is None]
    # Nothing is known of trials whose command was killed before it came here: then any of them will do.
    keys = {one.key for one in (trained if known or trained else found)}
    record = begun[0] if begun else chosen([one for one in found if one.key in keys], workers.jobs, base)
    if record is None:
        return
    _keep(folder, record, None)
    again = _again(record.config, source, folder, workers, observer)
    difference = first_difference(record, again, metric_name)
    _keep(folder, record, difference)
    if difference:
        raise _not_the_same(record.config, difference, folder)
    where = " in a new process" if workers.apart else ""
    observer.note(f"{record.config.label}, repeated{where}: the same to the last digit")


def chosen(trained: Sequence[Record], jobs: int, base: str) -> Record | None:
    """Return the trial to repeat: the last one of the base, or of the cheapest row; not the first of its worker.

    Args:
        trained: In the order in which they started.
        jobs: So many workers there were.
        base: The base's row.
    """
    # What is not computed in a fixed order may differ, and its record says so.
    later = [record for record in trained[max(jobs, 1) :] or trained if not record.not_deterministic]
    if not later:
        return None
    rows = [record.config.row for record in later]
    row = base if base in rows else min(later, key=lambda record: record.gradient_evaluations).config.row
    return next(record for record in reversed(later) if record.config.row == row)


def first_difference(record: Record, again: Record, metric_name: str) -> str:
    """Return what the first number was and is that is not the same, the metric before all others; empty if all are."""
    before, now = (dict(_flat(repeats.numbers(one))) for one in (record, again))
    for name in dict.fromkeys([*_FIRST, *before, *now]):
        if before.get(name) != now.get(name):
            words = name.removeprefix("final.").replace("_", " ").replace(" metric", f" {metric_name}")
            return f"{words} was {before.get(name)} and is {now.get(name)} now"
    return ""


def _again(config: TrialConfig, source: TaskSource, folder: Path, workers: Workers, observer: Observer) -> Record:
    jobs = iter([Job(config.key, f"the repeated trial {config.label}", repeat, (source, config), source.paths)])
    with saying(lambda: f"all trials are kept in {folder}"), joined(workers, 1) as crew:
        found = carry_out(
            lambda: next(jobs, None), crew, running=lambda _: observer.running([config]), warn=observer.warn
        )
        with closing(found):
            record: Record = next(found)[1]
    return record


def repeat(source: TaskSource, config: TrialConfig, say: Say | None) -> Record:
    """Run a trial on a task that is made anew, as in another session."""
    with _another_session():
        work.load_anew(source, config)
    return work.run(source, config, False, None, say)[0]


@contextmanager
def _another_session() -> Iterator[None]:
    """Within this, generators stand as they may in another session; torch's is the same in every new process."""
    import random

    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed()
            np.random.seed()
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _keep(folder: Path, record: Record, difference: str | None) -> None:
    try:
        repeats.write(folder, record, difference)
    except OSError as error:
        raise RunError(
            f"what came of {record.config.label}, repeated, cannot be written to {folder}: {error.strerror}"
        ) from error


def _not_the_same(config: TrialConfig, difference: str, folder: Path) -> RunError:
    return RunError(
        f"{config.label}, repeated, is not what it was: {difference}. {_CAUSES}; all trials are kept in {folder}"
    )


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    elif isinstance(found, list):
        words, of = name.removeprefix("curve."), "of epoch " if name in _BY_EPOCH else ""
        for number, value in enumerate(found, 1):
            yield from _flat(value, f"{words} {of}{number}")
    else:
        yield name, found
