"""What each measure of sharpness costs, in units of one gradient of the loss over the same data.

    python benchmarks/measure_cost.py [--encoder] [--only WORDS] [--repeats 3]

A gradient is zero_grad, forward and backward over all batches, as in training. Gradient and measure take turns, and
every ratio is that of the two medians, so that a machine that is busy for a while does not decide. One thread, unless
OMP_NUM_THREADS says otherwise. `counted` is what the measure itself says; the report's budget is kept in that unit.
`--encoder` takes the 22.7-million-weight encoder of examples/measure_encoder.py instead; one measure takes minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from steppe import measure
from steppe.measure import Objective

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

MEASURES: dict[str, Callable[[Objective], object]] = {
    "worst-case l2, 20 iterations": lambda o: measure.worst_case(o, 0.05),
    "worst-case linf, 20 iterations": lambda o: measure.worst_case(o, 2e-4, norm="linf"),
    "worst-case l2 adaptive, 20 iterations": lambda o: measure.worst_case(o, 0.5, adaptive=True),
    "average-case, 10 pairs": lambda o: measure.average_case(o, 5e-3, pairs=10),
    "surrogate gap": lambda o: measure.surrogate_gap(o, 0.05),
    "gradient norm": measure.gradient_norm,
    "spectrum, 10 steps": lambda o: measure.spectrum(o, steps=10),
    "spectrum by differences, 10 steps": lambda o: measure.spectrum(o, steps=10, method="finite_difference"),
    "trace, 10 products": lambda o: measure.trace(o, products=10),
    "1-D slice, 21 points": measure.slice_1d,
    "2-D slice, 7 x 7 points": lambda o: measure.slice_2d(o, points=7),
    "report, default budget": measure.report_of,
}


def objectives(encoder: bool) -> dict[str, Objective]:
    """Make the models, untrained but for the encoder: the cost does not depend on it."""
    from steppe.lab.tasks.builtin import digits, mnist1d

    if encoder:
        sys.path.insert(0, str(EXAMPLES))
        from measure_encoder import objective

        return {"encoder, 256 texts, 22.7M weights": objective(batch_size=128)}
    found = {}
    for name, task in (("MLP, mnist1d, 79k weights", mnist1d()), ("convnet, digits, 38k weights", digits())):
        torch.manual_seed(0)
        x, y = task.train
        found[name] = Objective(task.model().eval(), nn.functional.cross_entropy, (x[:1000], y[:1000]))
    return found


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--only", default="", help="measures whose title has these words")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name, objective in objectives(arguments.encoder).items():

        def gradient(objective: Objective = objective) -> None:
            for batch in objective:
                objective.model.zero_grad()
                objective.batch_loss(batch)[0].backward()

        gradient()
        print(f"\n## {name}, {objective.batches} batches\n\n| measure | gradients | counted |\n| --- | ---: | ---: |")
        for title, run in MEASURES.items():
            if arguments.only not in title:
                continue
            units, times = [], []
            before = objective.spent.cost
            for _ in range(arguments.repeats):
                units += [seconds(gradient) for _ in range(3)]
                times.append(seconds(lambda run=run, objective=objective: run(objective)))
            counted = (objective.spent.cost - before) / arguments.repeats
            print(f"| {title} | {median(times) / median(units):.1f} | {counted:.1f} |", flush=True)


if __name__ == "__main__":
    main()
