"""Choose the hyper-parameters of `steppe compare`: 9 settings for every method, judged on the validation split.

python benchmarks/tune.py --task mnist1d --base adamw

The test split is not read, and the seeds are not those of the comparison. Finished trials are kept in --out, so the
same command continues where it was stopped. It writes a fragment for settings.yaml and a table of everything tried.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from steppe.lab import UserError
from steppe.lab.crew import runner
from steppe.lab.judge.stats import mean
from steppe.lab.plans import comparison
from steppe.lab.plans import options as config
from steppe.lab.plans.workers import cores
from steppe.lab.trials.records import Record, TrialConfig
from steppe.methods import METHODS

FIRST_SEED = 1000  # `steppe compare` counts its seeds from 0


@dataclass(frozen=True)
class Grid:
    """Nine settings: every learning rate with every value of one other hyper-parameter, the rest fixed."""

    lr: tuple[float, float, float]
    other: str
    values: tuple[float, float, float]
    fixed: dict[str, float]

    def settings(self) -> list[dict[str, float]]:
        return [{"lr": lr, **self.fixed, self.other: value} for lr, value in itertools.product(self.lr, self.values)]

    def edges(self, chosen: dict[str, float]) -> list[str]:
        """Name the hyper-parameters whose best value is the first or the last that was tried."""
        grids = {"lr": self.lr, self.other: self.values}
        return [name for name, grid in grids.items() if chosen[name] in (min(grid), max(grid))]


# Where the grids lie was found by coarse looks at the same validation split, so that few best values lie on an edge;
# the script says which do. Every method that wraps a base has the learning rates of that base.
ADAM_LR = {"mnist1d": (4e-3, 8e-3, 1.6e-2), "digits": (2e-3, 4e-3, 8e-3)}
ADAM_FIXED = {"weight_decay": 0.01}  # AdamW's default
ADAM_DECAYS = (1e-2, 1e-1, 1.0)  # times the learning rate, AdamW's default hardly acts in short runs
AMSGRAD_LR = (1e-3, 2e-3, 4e-3)  # without bias correction its first steps are three times as long
SGD_LR = {"mnist1d": (0.1, 0.2, 0.4), "digits": (0.05, 0.1, 0.2)}
SGD_FIXED = {"momentum": 0.9, "weight_decay": 5e-4}
SGD_DECAYS = (1e-4, 5e-4, 2e-3)
# AdaGrad-Norm divides both steps by the norm of all gradients so far, so both may be large.
NORM_LR = {"mnist1d": (10.0, 20.0, 40.0), "digits": (0.3, 1.0, 3.0)}
NORM_RHO = {"mnist1d": (0.5, 1.0, 2.0), "digits": (0.05, 0.1, 0.2)}
# The climb of the normalised methods is rho long. The digits are learned almost perfectly: smaller climbs only.
RHO = {"mnist1d": (0.2, 0.4, 0.8), "digits": (0.05, 0.1, 0.2)}
# The part that GSAM subtracts is as long as the gradient: with SAM's largest rho and alpha 0.4 it does not learn.
GSAM_RHO = {"mnist1d": (0.1, 0.2, 0.4), "digits": (0.025, 0.05, 0.1)}
# Not normalised: rho times the gradient's norm, which is about 1 early and 0.2 late.
USAM_RHO = {"mnist1d": (0.5, 1.0, 2.0), "digits": (0.1, 0.2, 0.4)}
# In units of |w|.
ASAM_RHO = {"mnist1d": (1.0, 2.0, 4.0), "digits": (0.5, 1.0, 2.0)}


def grids(task: str, base: str) -> dict[str, Grid]:
    """Return the grid of every method; other tasks use the grids of the digits."""
    key = task if task in RHO else "digits"
    adam, sgd = (ADAM_LR[key], ADAM_FIXED, ADAM_DECAYS), (SGD_LR[key], SGD_FIXED, SGD_DECAYS)
    lr, fixed, decays = adam if base == "adamw" else sgd
    plain = {name: value for name, value in fixed.items() if name != "weight_decay"}
    return {
        base: Grid(lr, "weight_decay", decays, plain),
        "sam": Grid(lr, "rho", RHO[key], fixed),
        "usam": Grid(lr, "rho", USAM_RHO[key], fixed),
        "asam": Grid(lr, "rho", ASAM_RHO[key], {**fixed, "eta": 0.01}),
        "gsam": Grid(lr, "rho", GSAM_RHO[key], {**fixed, "alpha": 0.4}),
        "amsgrad": Grid(AMSGRAD_LR, "weight_decay", ADAM_DECAYS, {}),
        "adasam": Grid(AMSGRAD_LR, "rho", RHO[key], ADAM_FIXED),
        "lightsam-i": Grid(NORM_LR[key], "rho", NORM_RHO[key], {}),
        # Element by element every weight moves by about rho / sqrt(steps) or by rho.
        "lightsam-ii": Grid((0.05, 0.1, 0.2), "rho", (3e-4, 1e-3, 3e-3), {}),
        "lightsam-iii": Grid((5e-4, 1e-3, 2e-3), "rho", (2e-4, 5e-4, 1e-3), {}),
    }


class Lines:
    """One line per finished trial."""

    def begin(self, total: int, kept: Sequence[Record]) -> None:
        self.done, self.total = len(kept), total
        print(f"{total} trials, {self.done} of them finished earlier", flush=True)

    def warn(self, message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)

    def note(self, message: str) -> None:
        print(message, flush=True)

    def running(self, trials: Sequence[TrialConfig]) -> None:
        pass

    def finished(self, found: Record) -> None:
        self.done += 1
        result = "diverged" if found.final is None else f"validation {found.final.validation_metric:.2f}"
        values = text(dict(found.config.hyperparameters))
        print(f"{self.done}/{self.total}  {found.config.label}: {values}: {result}", flush=True)


def text(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value:g}" for name, value in setting.items())


def trials_of(plan: comparison.Plan, setting: dict[str, float], method: str) -> list[TrialConfig]:
    return [
        trial.model_copy(update={"hyperparameters": setting})
        for trial in plan.trials(test=False)
        if trial.row == method
    ]


def tune(task: str, base: str, methods: Sequence[str], seeds: int, epochs: int | None, jobs: int, out: Path) -> None:
    """Try all settings, print what is best, write fragment.yaml and tuning.md to `out`."""
    asked = config.Options(methods=tuple(methods), base=base, seeds=seeds, epochs=epochs, jobs=jobs)
    plan = comparison.plan(task, asked, out)
    plan = replace(plan, seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)))
    tried = {method: grids(task, base)[method].settings() for method in methods}
    trials = {
        (method, index): trials_of(plan, setting, method)
        for method, settings in tried.items()
        for index, setting in enumerate(settings)
    }
    found = runner.run_trials([t for group in trials.values() for t in group], plan.source, out, plan.workers, Lines())
    by_key = {record.key: record for record in found}
    fragment, table = (
        [],
        ["| method | setting | validation | train loss | chosen |", "| --- | --- | ---: | ---: | --- |"],
    )
    for method, settings in tried.items():
        groups = [[by_key[trial.key] for trial in trials[method, index]] for index in range(len(settings))]
        best = choose(groups, plan.higher_is_better)
        for index, (setting, group) in enumerate(zip(settings, groups, strict=True)):
            table.append(f"| {method} | {text(setting)} | {score(group)} | {'**chosen**' if index == best else ''} |")
        if best is None:
            print(f"warning: every setting of {method} diverged in some trial", file=sys.stderr)
            continue
        fragment.append(f"    {method}: {{{text(settings[best])}}}")
        edges = grids(task, base)[method].edges(settings[best])
        if edges:
            print(f"warning: the best {' and '.join(edges)} of {method} is on the edge of its grid", file=sys.stderr)
    name = plan.source.name if plan.source.path is None else "default"
    (out / "fragment.yaml").write_text("\n".join([f"{name}:", f"  {base}:", *fragment, ""]), encoding="utf-8")
    command = f"python benchmarks/tune.py --task {task} --base {base} --seeds {seeds} --epochs {plan.epochs}"
    if list(methods) != [base, *METHODS]:
        command += f" --methods {','.join(methods)}"
    head = (
        f"Mean ± standard error over {seeds} seeds, {plan.metric_name} on the validation split, from\n\n    {command}\n"
    )
    (out / "tuning.md").write_text("\n".join([head, *table, ""]), encoding="utf-8")
    print("\n".join([*table, "", f"{name}:", f"  {base}:", *fragment]))


def choose(groups: Sequence[Sequence[Record]], higher_is_better: bool) -> int | None:
    """Return the index of the setting with the best mean validation metric among those that never diverged.

    Ties are settled by the validation loss, then by order.
    """
    sign = -1.0 if higher_is_better else 1.0
    ranks = {
        index: (
            sign * fmean(record.final.validation_metric for record in group if record.final),
            fmean(record.final.validation_loss for record in group if record.final),
        )
        for index, group in enumerate(groups)
        if all(record.final for record in group)
    }
    return min(ranks, key=lambda index: ranks[index]) if ranks else None


def score(group: Sequence[Record]) -> str:
    finals = [record.final for record in group if record.final]
    if len(finals) < len(group):
        return f"diverged {len(group) - len(finals)} of {len(group)} | "
    metric = mean([final.validation_metric for final in finals])
    error = "" if metric.error is None else f" ± {metric.error:.2f}"
    return f"{metric.value:.2f}{error} | {fmean(final.train_loss for final in finals):.4g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist1d")
    parser.add_argument("--base", default="adamw", choices=["adamw", "sgd"])
    parser.add_argument("--methods", help="names with commas between; default: the base and all methods")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    methods = asked.methods.split(",") if asked.methods else [asked.base, *METHODS]
    unknown = [method for method in methods if method not in grids(asked.task, asked.base)]
    if unknown:
        parser.error(f"no grid for {unknown[0]!r}; known: {', '.join(grids(asked.task, asked.base))}")
    if min(asked.seeds, asked.jobs, asked.epochs or 1) < 1:
        parser.error("--seeds, --epochs and --jobs must be at least 1")
    out = asked.out or Path("runs") / f"tune-{Path(asked.task.partition(':')[0]).stem}-{asked.base}"
    try:
        tune(asked.task, asked.base, methods, asked.seeds, asked.epochs, asked.jobs, out)
    except UserError as error:
        print(f"tune: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
