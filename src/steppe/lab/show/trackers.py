"""Trials as runs of experiment trackers, which accelerate writes to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..crew.runner import Observer
from ..errors import describe
from ..plans.grid import words
from ..plans.sweep import SweepPlan
from ..trials.records import Record, TrialConfig

if TYPE_CHECKING:
    from ..plans.comparison import Plan

_BY_EPOCH = ("validation_metric", "validation_loss", "train_loss", "gradient_evaluations", "seconds")
_NOT_IN_NAMES = re.compile(r"[^\w./ -]+")  # MLflow refuses them
_IN_ALL = ("gradient_evaluations", "examples", "updates", "seconds")


class Trackers:
    """Makes a run of every trial that it is given, in each tracker of a plan.

    One that fails is warned of and gets nothing more; no training is lost for it.

    Args:
        plan: What is carried out.
        warn: Is told of a failure.
    """

    def __init__(self, plan: Plan, warn: Callable[[str], object]) -> None:
        """See the class."""
        self._plan, self._warn = plan, warn
        self._left = list(plan.log) if plan.workers.writes else []

    def log(self, record: Record) -> None:
        """Write a trial that was finished in this run."""
        for name in tuple(self._left):
            try:
                with _one_process():
                    self._write(name, record)
            except Exception as error:
                self._left.remove(name)
                self._warn(f"{name} failed, and trials are not logged there any more: {describe(error)}")

    def _write(self, name: str, record: Record) -> None:
        tracker = self._run(name, record.config)
        if hasattr(tracker, "start"):  # of older versions of accelerate, one starts when it is made
            tracker.start()
        try:
            tracker.store_init_configuration(record.config.flat)
            curve = record.curve
            epochs = len(curve.seconds)
            fields = [field for field in _BY_EPOCH if getattr(curve, field)]  # a loop may report no losses
            for epoch in range(epochs):
                tracker.log({field: getattr(curve, field)[epoch] for field in fields}, step=epoch + 1)
            tracker.log(final(record), step=epochs)
        finally:
            tracker.finish()

    def _run(self, name: str, config: TrialConfig) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind, title = LOGGER_TYPE_TO_CLASS[name], self._title(config)
        if name == "tensorboard":  # whose runs are folders, and must not be mixed
            folder = self._plan.out / "tensorboard"
            return kind(f"{title}, {config.key}" if (folder / title).exists() else title, folder)
        if name == "mlflow":  # nested: somebody who calls this may have a run of their own
            return kind(self._plan.project, run_name=title, nested_run=True)
        return kind(self._plan.project, name=title)

    def _title(self, config: TrialConfig) -> str:
        grid = self._plan.grid if isinstance(self._plan, SweepPlan) else ()
        varied = {axis.name: config.hyperparameters[axis.name] for axis in grid}
        return ", ".join([config.label, *([words(varied)] if varied else [])])


def final(record: Record) -> dict[str, float]:
    """Return what is logged at the end of a run: final numbers, or where the trial diverged."""
    found = {name: getattr(record, name) for name in _IN_ALL}
    if record.diverged is not None:
        found |= {"diverged_epoch": record.diverged.epoch, "diverged_step": record.diverged.step}
    if record.final is not None:
        found |= {_NOT_IN_NAMES.sub("_", name): value for name, value in record.final.flat.items() if value is not None}
    return {f"final/{name}": value for name, value in {"diverged": int(record.final is None), **found}.items()}


class _Logged:
    """An observer of a comparison that gives what is finished to trackers, and to another observer."""

    def __init__(self, observer: Observer, trackers: Trackers) -> None:
        self._trackers = trackers
        self.begin, self.warn, self.note = observer.begin, observer.warn, observer.note
        self.running = observer.running
        self._finished = observer.finished

    def finished(self, found: Record) -> None:
        self._trackers.log(found)
        self._finished(found)


def logged(plan: Plan, observer: Observer) -> Observer:
    """Return an observer that also logs what is finished to the trackers of a plan, if it has any."""
    return _Logged(observer, Trackers(plan, observer.warn)) if plan.log else observer


@contextmanager
def _one_process() -> Iterator[None]:
    """Within this, accelerate knows of one process on the CPU, unless it knows more already.

    Its trackers ask it. What this tells it is forgotten in the end, so that whoever starts it later may have a GPU.
    """
    from accelerate import PartialState
    from accelerate.utils import clear_environment

    if PartialState._shared_state != {}:
        yield
        return
    with clear_environment():  # what a cluster says there of other processes would make it wait for them
        PartialState(cpu=True)
    try:
        yield
    finally:
        PartialState._reset_state()
