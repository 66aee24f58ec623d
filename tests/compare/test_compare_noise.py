"""What differences vary by: seeds, test examples, splits; and how often verdicts are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from steppe.lab.judge.differences import between, paired
from steppe.lab.judge.noise import LEVEL, Noise, noise
from steppe.lab.trials.records import Final

VALUES = [0.4, 1.1, -0.3, 0.9]


def test_by_seeds_alone_it_is_students_t():
    found = paired(VALUES)
    expected = scipy_stats.ttest_1samp(VALUES, 0.0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_crossed_effects_by_hand():
    parts = np.array([[1.0, 2.0, 3.0], [2.0, 5.0, 2.0]])  # two seeds, three groups of test examples
    found = noise([2.0, 3.0], parts.tolist(), step=0.1)
    left = parts - parts.mean(1, keepdims=True) - parts.mean(0) + parts.mean()
    of_groups = np.var([1.5, 3.5, 2.5], ddof=1) / 3
    of_left = (left**2).sum() / ((2 - 1) * (3 - 1)) / 6
    assert found.seeds == pytest.approx(0.5)
    assert found.examples == pytest.approx(max(0.0, of_groups - of_left, of_groups - 0.5 / 2))
    assert (found.n, found.groups, found.step) == (2, 3, 0.1)
    squares = [
        scipy_stats.t.ppf(0.975, 1) ** 2 * 0.25,
        scipy_stats.t.ppf(0.975, 2) ** 2 * found.examples,
        scipy_stats.norm.ppf(0.975) ** 2 * 0.01,
    ]
    assert found.half_width() == pytest.approx(math.sqrt(sum(squares)))


def test_p_and_interval_are_the_same_statement():
    found = Noise(5, 2.0, 0.3, 50, 0.2)
    for value in (0.5, 2.0, 4.0):
        assert found.half_width(found.p(value)) == pytest.approx(value)
    assert found.p(0.0) == 1.0
    assert found.p(1e9) <= 1e-12


def test_splits_that_overlap_are_corrected_as_nadeau_and_bengio_do():
    found = paired(VALUES, overlap=0.25)
    error = math.sqrt(np.var(VALUES, ddof=1) * (1 / 4 + 0.25))
    assert found.high - found.value == pytest.approx(scipy_stats.t.ppf(0.975, 3) * error)
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(np.mean(VALUES) / error, 3))


def test_no_test_set_sees_less_than_one_of_its_examples():
    """Twenty trainings that all get 111 of 114 right say nothing of the next 114."""
    same = paired([0.0] * 20, [[0.0] * 100] * 20, step=100 / 114)
    assert same.p == 1.0
    assert same.high == pytest.approx(1.96 * 100 / 114, rel=1e-3)
    one = paired([100 / 114] * 20, [[100 / 114] * 100] * 20, step=100 / 114)
    assert one.p > LEVEL


def finals(values, parts=None, **more):
    return {
        seed: Final(test_metric=value, test_parts=None if parts is None else parts[seed], **more)
        for seed, value in enumerate(values)
    }


def test_rows_are_paired_by_seed_and_by_test_examples():
    base = finals(
        [25.0, 50.0, 25.0], [[0.0, 100.0, 0.0, 0.0], [100.0, 0.0, 0.0, 100.0], [0.0] * 3 + [100.0]], test_step=25.0
    )
    sam = finals([75.0, 50.0, 50.0], [[0.0] + [100.0] * 3, [100.0, 0.0] * 2, [0.0] * 2 + [100.0] * 2], test_step=25.0)
    parts = [[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, -100.0], [0.0, 0.0, 100.0, 0.0]]
    expected = paired([50.0, 0.0, 25.0], parts, step=25.0)
    assert between(sam, base) == expected
    assert expected.noise.groups == 4


def test_numbers_that_are_measured_show_any_difference():
    """Errors of a regression differ from example to example; two methods that are nearly one have nearly the same."""
    random = np.random.default_rng(0)
    errors = random.random(100) * 60
    base = finals([55.4, 55.1, 55.9], [(errors + seed).tolist() for seed in range(3)], test_step=1.7)
    little = random.standard_normal((3, 100)) * 0.01
    sam = finals(
        [55.4 + little[0].mean(), 55.1 + little[1].mean(), 55.9 + little[2].mean()],
        [(errors + seed + little[seed]).tolist() for seed in range(3)],
        test_step=1.7,
    )
    assert between(sam, base).high < 0.01
    assert between(sam, base).noise.step == 0.0


def test_measured_errors_are_covered_as_often_as_said():
    """Squared errors of two models that are as good as each other, of which half the difference is the example's."""
    random, covered, studies, examples, seeds = np.random.default_rng(0), 0, 300, 80, 5
    for _ in range(studies):
        noise_of = random.standard_normal((2, 1, examples)) + random.standard_normal((2, seeds, examples))
        errors = np.square(noise_of)
        base, sam = (finals(one.mean(-1).tolist(), one.tolist(), test_step=one.max() / examples) for one in errors)
        found = between(sam, base)
        covered += found.low <= 0 <= found.high
    assert 0.93 * studies <= covered < studies


@pytest.mark.parametrize("other", [None, [[1.0]] * 3, [[1.0, 2.0, 3.0]] * 3], ids=["none", "one", "other groups"])
def test_outcomes_that_do_not_pair_up_are_left_out(other):
    base = finals([50.0, 60.0, 55.0], [[0.0, 100.0]] * 3)
    found = between(finals([60.0, 65.0, 70.0], other), base)
    assert found == paired([10.0, 5.0, 15.0])


def test_fewer_groups_are_made_of_more():
    """Trials of one row were put into four groups, those of the other into two, each of two of those."""
    base = finals([50.0, 60.0, 55.0], [[0.0, 100.0], [20.0, 100.0], [10.0, 100.0]])
    sam = finals([60.0, 65.0, 70.0], [[10.0, 90.0, 30.0, 110.0], [30.0, 100.0, 30.0, 100.0], [40.0, 80.0, 40.0, 120.0]])
    assert between(sam, base) == paired([10.0, 5.0, 15.0], [[20.0, 0.0], [10.0, 0.0], [30.0, 0.0]])


def test_own_splits_vary_by_seed_and_do_not_pair_up():
    base = finals(
        [50.0, 60.0, 55.0], [[0.0, 0.0, 100.0, 100.0]] * 3, test_examples=20, train_examples=80, test_step=5.0
    )
    sam = finals([60.0, 65.0, 70.0], [[0.0, 100.0, 0.0, 100.0]] * 3, test_examples=20, train_examples=80, test_step=5.0)
    found = between(sam, base, own_split=True)
    assert found == paired([10.0, 5.0, 15.0], step=5.0, overlap=0.25)
    assert found.noise.seeds == pytest.approx(25.0 + 25.0)


# How many seeds


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_the_smallest_difference_is_seen_as_often_as_said(n):
    """The power of the t-test, from its noncentral distribution, where the variance was estimated as half the time."""
    variance = 4.0
    median = scipy_stats.chi2.median(n - 1) / (n - 1)
    value = Noise(n, variance * median).smallest(tests=3)
    bound = scipy_stats.t.isf(LEVEL / 6, n - 1)
    power = scipy_stats.nct.sf(bound, n - 1, value / math.sqrt(variance / n))
    assert power == pytest.approx(0.8, abs=1e-3)


def test_without_noise_nothing_is_too_small():
    assert Noise(3, 0.0).smallest() == 0.0


def test_seeds_to_see_a_difference():
    found = Noise(5, 4.0)
    seeds = found.seeds_to_see(1.0)
    assert found.smallest(n=seeds) <= 1.0 < found.smallest(n=seeds - 1)
    assert found.seeds_to_see(100.0) == 5
    assert found.seeds_to_see(0.001) is None


def test_no_number_of_seeds_makes_up_for_test_examples():
    found = Noise(5, 4.0, examples=1.0, groups=100)
    assert found.seeds_to_see(2.5) is None
    assert found.seeds_to_see(3.5) > 5


# How often it is wrong, by simulation; benchmarks/verdict_rates.py has more of it


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("accuracy", "by_example", "by_both", "examples"), [(0.97, 0.8, 0.0, 50), (0.9, 0.6, 0.15, 200)]
)
def test_methods_that_are_no_better_are_hardly_ever_called_so(seeds, accuracy, by_example, by_both, examples):
    """Nine methods of the base's true accuracy: any of them is called better or worse in 5 % of studies at most."""
    random = np.random.default_rng([seeds, examples])
    rest, mistakes, by_seeds, studies = 1 - by_example - by_both, 0, 0, 200
    for _ in range(studies):
        total = scipy_stats.norm.ppf(accuracy) + math.sqrt(by_example) * random.standard_normal((1, 1, examples))
        total = total + math.sqrt(by_both) * random.standard_normal((10, 1, examples))
        total = total + math.sqrt(rest) * random.standard_normal((10, seeds, examples))
        right = np.where(total > 0, 100.0, 0.0)
        groups = np.stack([right[..., group::50].mean(-1) for group in range(50)], axis=-1)
        values = (right[1:] - right[0]).mean(-1)
        found = [
            noise(values[method].tolist(), (groups[method + 1] - groups[0]).tolist(), 100 / examples)
            for method in range(9)
        ]
        mistakes += any(abs(value.mean()) > one.half_width(LEVEL / 9) for value, one in zip(values, found, strict=True))
        error = values.std(axis=1, ddof=1) / math.sqrt(seeds)
        by_seeds += bool((np.abs(values.mean(1)) > scipy_stats.t.isf(LEVEL / 18, seeds - 1) * error).any())
    assert mistakes <= LEVEL * studies
    assert by_seeds > mistakes  # which the t-test over seeds does not do
