"""Compare methods on a task: plan the trials, carry them out, judge, and show what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..crew import runner
from ..crew.repeating import Trained, can_check
from ..crew.repeating import check as repeat_one
from ..crew.runner import Observer, Silence
from ..judge.comparison import Comparison
from ..judge.stats import summarize
from ..plans import budget
from ..plans import options as config
from ..plans.comparison import Plan, named, planned
from ..plans.comparison import plan as plan  # the door has it too
from ..plans.workers import check_crew
from ..show import table
from ..show.console import ConsoleObserver, watched
from ..show.report import write_report
from ..show.trackers import logged
from ..show.tuning_console import TuningObserver
from ..tasks.task import Task
from ..tuning import tuned


def compare(
    task: str | Callable[..., Task] = "mnist1d",
    *,
    methods: Sequence[str | Callable[..., Any]] | None = None,
    base: str | Callable[..., Any] = "adamw",
    seeds: int = 10,
    epochs: int | None = None,
    jobs: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    processes: int = 1,
    timeout: float | None = None,
    crew: str | Executor | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    schedules: Mapping[str, Any] | None = None,
    updates: int | None = None,
    keep_weights: bool = False,
    measure: bool = False,
    check: bool = True,
    tune: int | str = 0,
    log: str | Sequence[str] | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Train several methods on one task from several seeds and say which of them helps, and at what cost.

    Every finished trial is a file in ``out/trials``; the same call again skips it. The table (``table.md``,
    ``results.json``), ``curves.png``, ``report.html`` and all settings (``config.yaml``) are written to `out`. The
    trials run in processes of their own, so a script must call this under ``if __name__ == "__main__":``. In a notebook
    a line shows progress, and `task`, `methods` and `base` may be defined in a cell: they travel by cloudpickle, and
    trials count as finished as long as their code is what it was, and all of the notebook that it uses.

    Args:
        task: ``mnist1d``, ``digits``, ``FILE.py:FUNCTION``, or a function at the top level of a file, or in a notebook,
            that returns a `Task`. If its one parameter is called ``seed``, it is called with each trial's seed, and
            splits the data anew for it; intervals then hold for other splits, too.
        methods: Names from ``steppe.methods.METHODS`` and of bases, arms of `settings`, and your own: ``FILE.py:NAME``,
            ``MODULE:NAME``, or a function or class, of a file or a notebook, that takes ``base``, or parameters, and
            hyper-parameters by name, and returns an optimizer; by default the base, all methods and all arms.
        base: What the methods wrap and are compared with: an optimizer of ``torch.optim`` by its name in small letters,
            or your own, as in `methods`, that takes parameters.
        seeds: How many seeds, at least 1; fewer than 3 allow no statement about significance.
        epochs: At least 1; by default the task's own.
        jobs: Worker processes on each device, at least 1, one thread each; by default 1 on an accelerator, else one a
            core, at most 8; 0 runs one after the other in this process. No result depends on it.
        device: ``cpu``, or an accelerator of torch, such as ``cuda``, ``cuda:1`` or ``mps``, whose devices workers take
            in turn; ``auto`` takes one if there is one.
        precision: ``fp32``, or ``bf16`` by autocast, in every pass and in evaluation.
        processes: Of each trial, at least 1, which share its batches by DDP; batch sizes must be multiples of their
            number. Needs accelerate.
        timeout: Seconds that a trial may take, above 0, the start of its worker included; one that takes longer is
            ended, and the comparison with it.
        crew: Who carries trials out, if not processes here: the address of a Dask scheduler, such as
            ``tcp://HOST:8786``, or an executor of ``concurrent.futures``, which gets `jobs` trials at a time. Files are
            written here alone. Your files travel along, with what they import from
            their folders; packages must be there.
        out: Where to write; by default ``runs/TASK-BASE``.
        settings: Hyper-parameters by method, over the packaged ones, such as ``{"sam": {"rho": 0.1}}``. A name that is
            no method makes an arm, another row of the table: ``{"sam+": {"method": "sam", "rho": 0.2}}``. ``schedules``
            and ``updates`` in an entry hold for its row alone.
        schedules: How ``lr``, ``batch_size`` and ``rho`` change during a trial, such as ``{"lr": "constant"}`` or
            ``{"batch_size": {"kind": "multiply", "start": 16, "factor": 2, "every": 8}}``; by default the learning rate
            falls to zero along a cosine and the others are constant. See ``steppe.lab.trials.schedules``.
        updates: Parameter updates of every trial, at least 1, in place of `epochs`.
        keep_weights: Whether to write the final weights of every trial to ``out/weights``.
        measure: Whether to measure sharpness on up to 1024 training examples after training.
        check: Whether to repeat one of the trials in the end, in a new process, which must find the same to the last
            bit; only on the CPU of this machine, with one process a trial and without `crew`.
        tune: What each row may first choose its settings out of, on validation data: 0 trains what the call says;
            ``"auto"`` is what ``steppe compare`` does unless it is told otherwise, 6 settings on a task of your own; or
            a number of settings, or a time such as ``"5min"`` for all of it.
        log: Trackers that every trial becomes a run of once it is finished: ``tensorboard`` (in ``out/tensorboard``),
            ``mlflow``, ``wandb``, ``trackio``.
        observer: Is told how the comparison proceeds; by default a line in a notebook, and nobody elsewhere.

    Returns:
        Table, verdict and records.

    Raises:
        UserError: The input is wrong; nothing was trained.
        RunError: A trial failed, or repeated is not what it was; what was finished is kept.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     found = compare("digits", methods=["adamw", "sam"], seeds=1, epochs=1, out=folder)
        >>> [(row.method, row.gradient_evaluations) for row in found.rows]
        [('adamw', 20.0), ('sam', 40.0)]
    """
    check_crew(crew, timeout, jobs)
    options = config.of_call(
        {
            "methods": None if methods is None else list(methods),
            "base": base,
            "seeds": seeds,
            "epochs": epochs,
            "jobs": jobs,
            "device": device,
            "precision": precision,
            "processes": processes,
            "timeout": timeout,
            "crew": crew if isinstance(crew, str) else None,
            "schedules": None if schedules is None else dict(schedules),
            "updates": updates,
            "keep_weights": keep_weights,
            "measure": measure,
            "check": check,
            "log": log,
            "tune": tune,
            "settings": {name: dict(values) for name, values in (settings or {}).items()},
        }
    )
    executor = crew if isinstance(crew, Executor) else None
    asked, loaded = planned(task, options, None if out is None else Path(out))
    tuning = tuned.prepare(asked, loaded, options.tune or budget.AUTO, executor)
    with watched(None, TuningObserver) as watching:
        asked, _ = tuned.tune(tuning, watching or Silence(), executor)
    with watched(observer, lambda console: ConsoleObserver(asked.metric_name, console)) as observer:
        return run(asked, observer, executor, check=asked.check)


def run(
    comparison_plan: Plan, observer: Observer | None = None, executor: Executor | None = None, *, check: bool = False
) -> Comparison:
    """Carry out a plan and write its report.

    Args:
        comparison_plan: The plan.
        observer: Is told how the comparison proceeds.
        executor: Carries trials out, if not processes here or a cluster that the plan names.
        check: Whether one of them is repeated, where it must find the same to the last bit.

    Returns:
        Table, verdict and records.

    Raises:
        RunError: A trial failed, or repeated is not what it was; what was finished is kept.
    """
    watching = Trained(logged(comparison_plan, observer or Silence()))
    given = comparison_plan.source, comparison_plan.out, comparison_plan.workers, watching
    found = runner.run_trials(
        comparison_plan.trials(), *given, keep_weights=comparison_plan.keep_weights, executor=executor
    )
    comparison_plan = named(comparison_plan, found)
    if check and executor is None and can_check(comparison_plan.workers):
        repeat_one(found, watching.records, *given, comparison_plan.base, comparison_plan.metric_name)
    rows = summarize(found, comparison_plan.base, comparison_plan.higher_is_better)
    comparison = Comparison(comparison_plan, found, rows)
    comparison = replace(comparison, summary=table.summary(comparison))
    if comparison_plan.workers.writes:
        write_report(comparison)
    return comparison
