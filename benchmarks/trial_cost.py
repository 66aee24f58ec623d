"""What a trial costs beyond its training: a task of one step, hundreds of times, and once more.

    python benchmarks/trial_cost.py --trials 100 1000 10000 --jobs 2

Prints for `steppe compare` and `steppe sweep` (one seed a setting) and each number of trials the seconds of the whole
call, how many of them are not training, per trial, the seconds of the same call again, which finds everything done, and
the most memory of the coordinating process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

TASK = """
import torch
from torch import nn
from steppe.lab import Task

x, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2


def task():
    train, valid, test = ((x[part], y[part]) for part in (slice(0, 4), slice(4, 8), slice(8, 12)))
    return Task(lambda: nn.Linear(3, 2), train, valid, test, batch_size=4, epochs=1)
"""


def one(what: str, folder: Path, trials: int, jobs: int) -> None:
    """Run it in this process, and print seconds, those of training, and memory in MB."""
    import resource

    from steppe.lab import compare, sweep

    task, out = f"{folder / 'task.py'}:task", folder / f"{what}-{trials}"
    begun = time.perf_counter()
    if what == "compare":
        found = compare(task, methods=["sgd", "sam"], base="sgd", seeds=trials // 2, jobs=jobs, out=out)
        training = sum(record.seconds for record in found.records) / jobs
    else:
        grid = [f"rho=0.01:1:{trials}log"]
        training = sum(
            point.seconds for point in sweep(task, "sam", grid, base="sgd", seeds=1, jobs=jobs, out=out).points
        )
        training /= jobs
    seconds = time.perf_counter() - begun
    print(seconds, training, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(what: str, folder: Path, trials: int, jobs: int) -> tuple[float, float, float]:
    words = [sys.executable, __file__, "--one", what, str(folder), str(trials), "--jobs", str(jobs)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    seconds, training, memory = map(float, done.stdout.split()[-3:])
    return seconds, training, memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        one(arguments.one[0], Path(arguments.one[1]), int(arguments.one[2]), arguments.jobs)
        return
    print("| command | trials | all (s) | beyond training, a trial (ms) | again (s) | memory (MB) |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task.py").write_text(TASK)
        for what, trials in product(("compare", "sweep"), arguments.trials):
            seconds, training, memory = measured(what, folder, trials, arguments.jobs)
            again, _, _ = measured(what, folder, trials, arguments.jobs)
            each = 1000 * (seconds - training) / trials
            print(f"| {what} | {trials} | {seconds:.1f} | {each:.1f} | {again:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
