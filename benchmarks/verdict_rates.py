"""How often verdicts are wrong, and how often they see what is there: by simulation.

    python benchmarks/verdict_rates.py --studies 1000

Nine methods and a base whose true accuracies are known. **Fixed split**: whether a model is right on an example is a
threshold on a sum of normal effects: of the example (alike for all methods), of example and method, of the training
(the seed), and of all three together. A study draws test examples and trainings; the true accuracy is that over all
examples and trainings. **Measured**: outcomes are squared errors, as of a regression. **Own splits**: a data set is
drawn, each seed draws its split of it and trains two ridge regressions; the truth is the mean difference of their
errors over training sets of that size.

Columns: coverage of the 95 % interval of a difference (at least .95 wanted), how often any of nine methods that are no
better is called significantly better or worse (at most .05 wanted), both also for the paired t-test over seeds, as it
is used mostly; and how often a method that is better by `smallest(tests=1)` is seen alone (.80 or more wanted).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from steppe.lab.judge.differences import between, paired
from steppe.lab.judge.noise import LEVEL, Noise
from steppe.lab.trials.records import Final

METHODS = 9
GROUPS = 100
KINDS = {  # accuracy, share of the variance by example, by example and method; standard deviation of trainings
    "easy examples, equal methods": (0.97, 0.80, 0.00, 0.00),
    "methods differ by example": (0.90, 0.60, 0.15, 0.05),
    "trainings differ": (0.80, 0.50, 0.00, 0.10),
}


def right(
    random: np.random.Generator, kind: tuple[float, float, float, float], seeds: int, examples: int, better: float
) -> np.ndarray:
    """Return whether each method, the base first, is right: by method, seed and example, 0 or 100.

    All methods but the base have their accuracy raised by so many points.
    """
    accuracy, by_example, by_both, by_training = kind
    rest = 1 - by_example - by_both
    goals = np.array([accuracy] + [accuracy + better / 100] * METHODS)
    scale = np.sqrt(1 + by_training**2)
    total = np.array([NormalDist().inv_cdf(goal) * scale for goal in goals])[:, None, None]
    total = total + np.sqrt(by_example) * random.standard_normal((1, 1, examples))
    total = total + np.sqrt(by_both) * random.standard_normal((METHODS + 1, 1, examples))
    total = total + by_training * random.standard_normal((METHODS + 1, seeds, 1))
    total = total + np.sqrt(rest) * random.standard_normal((METHODS + 1, seeds, examples))
    return np.where(total > 0, 100.0, 0.0)


def in_groups(outcomes: np.ndarray) -> np.ndarray:
    """Return the means of groups of examples, as trials keep them."""
    examples = outcomes.shape[-1]
    count = min(examples, GROUPS)
    return np.stack([outcomes[..., group::count].mean(-1) for group in range(count)], axis=-1)


def noises(outcomes: np.ndarray) -> Iterator[tuple[float, Noise, Noise]]:
    """Yield of every method the difference to the base, what it varies by, and that by seeds alone."""
    examples, grouped = outcomes.shape[-1], in_groups(outcomes)
    for method in range(1, METHODS + 1):
        values = (outcomes[method] - outcomes[0]).mean(-1)
        found = paired(values.tolist(), (grouped[method] - grouped[0]).tolist(), 100 / examples)
        assert found is not None
        assert found.noise is not None
        yield found.value, found.noise, Noise(len(values), float(values.var(ddof=1)))


def fixed(kind: tuple[float, float, float, float], seeds: int, examples: int, studies: int) -> tuple[float, ...]:
    """Return coverage and errors of the verdict, the same of the t-test over seeds, and the verdict's power."""
    random = np.random.default_rng([seeds, examples])
    covered, called, seen = np.zeros(2), np.zeros(2), []
    sees = []
    for _ in range(studies):
        found = list(noises(right(random, kind, seeds, examples, better=0.0)))
        for which in (0, 1):
            value, noise = found[0][0], found[0][1 + which]
            covered[which] += abs(value) <= noise.half_width() + 1e-9
            called[which] += any(abs(one[0]) > one[1 + which].half_width(LEVEL / METHODS) + 1e-9 for one in found)
        sees.append(found[0][1].smallest())
    better = float(np.median(sees))
    if kind[0] + better / 100 < 0.995:
        for _ in range(max(studies // 4, 1)):
            value, noise, _ = next(noises(right(random, kind, seeds, examples, better)))
            seen.append(abs(value) > noise.half_width())
    power = float(np.mean(seen)) if seen else float("nan")
    return (covered[0] / studies, called[0] / studies, covered[1] / studies, called[1] / studies, power)


def measured(seeds: int, examples: int, studies: int) -> tuple[float, ...]:
    """Return coverage and errors of the verdict for squared errors, and the same of the t-test over seeds.

    A prediction is off by what is the example's, that of example and method, and that of the training there.
    """
    random = np.random.default_rng([seeds, examples])
    covered, called = np.zeros(2), np.zeros(2)
    for _ in range(studies):
        off = random.standard_normal((1, 1, examples)) + random.standard_normal((METHODS + 1, 1, examples)) / 4
        errors = np.square(off + random.standard_normal((METHODS + 1, seeds, examples)) / 2)
        grouped = in_groups(errors)
        finals = [
            {
                seed: Final(test_metric=float(row[seed].mean()), test_parts=parts[seed].tolist(), test_step=1.0)
                for seed in range(seeds)
            }
            for row, parts in zip(errors, grouped, strict=True)
        ]
        differences = [between(one, finals[0]) for one in finals[1:]]
        noises = [
            (found.value, (found.noise, Noise(seeds, float((errors[i + 1] - errors[0]).mean(-1).var(ddof=1)))))
            for i, found in enumerate(differences)
            if found is not None and found.noise is not None
        ]
        for which in (0, 1):
            covered[which] += abs(noises[0][0]) <= noises[0][1][which].half_width()
            called[which] += any(abs(value) > both[which].half_width(LEVEL / METHODS) for value, both in noises)
    return covered[0] / studies, called[0] / studies, covered[1] / studies, called[1] / studies


def ridge_errors(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """Train with much and with little weight decay, and return by how much their squared errors differ."""
    errors = []
    for decay in (30.0, 1.0):
        weights = np.linalg.solve(x.T @ x + decay * np.eye(x.shape[1]), x.T @ y)
        errors.append(float(((test_x @ weights - test_y) ** 2).mean()))
    return errors[0] - errors[1]


def own_splits(seeds: int, examples: int, studies: int) -> tuple[float, float]:
    """Return the coverage of the corrected interval, and that of the t-test over seeds."""
    random = np.random.default_rng([seeds, examples])
    features, train = 10, 4 * examples
    truth = random.standard_normal(features) / 3

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = random.standard_normal((n, features))
        return x, x @ truth + random.standard_normal(n)

    wide = draw(20_000)
    expected = float(np.mean([ridge_errors(*draw(train), *wide) for _ in range(300)]))
    covered = np.zeros(2)
    for _ in range(studies):
        x, y = draw(train + examples)
        values = []
        for _ in range(seeds):
            order = random.permutation(len(x))
            first, last = order[:train], order[train:]
            values.append(ridge_errors(x[first], y[first], x[last], y[last]))
        for which, overlap in enumerate((examples / train, None)):
            found = paired(values, overlap=overlap)
            assert found is not None
            covered[which] += found.low <= expected <= found.high
    return covered[0] / studies, covered[1] / studies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10, 20])
    parser.add_argument("--examples", type=int, nargs="+", default=[50, 500, 5000])
    asked = parser.parse_args()
    print("| fixed split | seeds | test examples | coverage | errors | t-test: coverage | errors | power |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, kind in KINDS.items():
        for seeds in asked.seeds:
            for examples in asked.examples:
                numbers = fixed(kind, seeds, examples, asked.studies)
                cells = " | ".join("n/a" if np.isnan(number) else f"{number:.3f}" for number in numbers)
                print(f"| {name} | {seeds} | {examples} | {cells} |", flush=True)
    print()
    print("| measured: seeds | test examples | coverage | errors | t-test: coverage | errors |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for seeds in asked.seeds:
        for examples in asked.examples:
            cells = " | ".join(f"{number:.3f}" for number in measured(seeds, examples, asked.studies))
            print(f"| {seeds} | {examples} | {cells} |", flush=True)
    print()
    print("| own splits: seeds | test examples | coverage | t-test: coverage |")
    print("| ---: | ---: | ---: | ---: |")
    for seeds in asked.seeds:
        for examples in (50, 500):
            cells = " | ".join(f"{number:.3f}" for number in own_splits(seeds, examples, asked.studies))
            print(f"| {seeds} | {examples} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
