"""Whether trials depend on nothing but their configuration: one of them is repeated where nothing was trained before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from ..plans.workers import Workers
from ..store import repeats
from ..tasks.sources import TaskSource
from ..trials.records import Record, TrialConfig
from . import workers as work
from .carrying import carry_out
from .jobs import Job, Say
from .runner import Observer, joined, saying

if TYPE_CHECKING:
    from ..trials.host import Host

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
        trained: Those that were trained now.
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
    known = [(record, repeat) for record in found if (repeat := repeats.read(folder, record)) is not None]
    for record, repeat in known:
        if repeat.difference:
            raise _not_the_same(record.config, repeat.difference, folder)
    record = next((record for record, repeat in known if repeat.difference is None), None)
    if record is None:
        keys = {one.key for one in trained}
        record = chosen([one for one in found if one.key in keys], workers.jobs, base)
        if record is None:
            return
        _keep(folder, record, None)
    again = _again(record.config, source, folder, workers, observer)
    difference = first_difference(record, again, metric_name)
    _keep(folder, record, difference)
    if difference:
        raise _not_the_same(record.config, difference, folder)
    observer.note(f"{record.config.label}, repeated{_where(workers)}: the same to the last digit")


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
    first = ["final.test_metric", "final.validation_metric", "status"]
    for name in dict.fromkeys([*first, *before, *now]):
        one, other = before.get(name), now.get(name)
        if one != other:
            _, _, words = name.rpartition("curve." if name.startswith("curve.") else "final.")
            words = words.replace("_metric", f" {metric_name}").replace("_", " ") if "metric" in words else words
            return f"{words.replace('_', ' ')} was {one} and is now {other}"
    return ""


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    elif isinstance(found, list):
        for number, value in enumerate(found, 1):
            yield from _flat(value, f"{name} {number}")
    else:
        yield name, found
