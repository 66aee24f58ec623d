from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from steppe.lab.judge.differences import holm, paired
from steppe.lab.judge.stats import Mean, mean, summarize

BASE = [65.1, 66.0, 64.2, 65.9, 67.0]
SAM = [70.2, 70.9, 68.8, 71.5, 70.0]
GSAM = [65.0, 66.9, 64.0, 66.9, 66.5]


def rows(record, methods, higher=True, **more):
    records = [
        record(name, seed, value, **more) for name, values in methods.items() for seed, value in enumerate(values)
    ]
    return {row.method: row for row in summarize(records, "adamw", higher)}


def test_mean_and_standard_error_agree_with_scipy():
    found = mean(SAM)
    assert found.value == pytest.approx(np.mean(SAM))
    assert found.error == pytest.approx(scipy_stats.sem(SAM))
    assert mean([3.0]) == Mean(3.0, None, 1)


def test_paired_difference_agrees_with_scipy(record):
    found = rows(record, {"adamw": BASE, "sam": SAM})["sam"].difference
    expected = scipy_stats.ttest_rel(SAM, BASE)
    low, high = expected.confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(SAM) - np.mean(BASE))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_holm == found.p  # one method, nothing to correct
    assert found.significant


def test_differences_are_paired_by_seed_not_by_position(record):
    records = [record("adamw", seed, value) for seed, value in enumerate(BASE)]
    records += [record("sam", seed, value) for seed, value in reversed(list(enumerate(SAM)))]
    row = summarize(records, "adamw", True)[1]
    assert row.difference.p == pytest.approx(scipy_stats.ttest_rel(SAM, BASE).pvalue)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_correction_covers_all_methods(record):
    found = rows(record, {"adamw": BASE, "sam": SAM, "gsam": GSAM})
    assert found["sam"].difference.p_holm == pytest.approx(2 * found["sam"].difference.p)
    assert found["gsam"].difference.p_holm == pytest.approx(found["gsam"].difference.p)
    assert not found["gsam"].difference.significant


def test_equal_differences_need_no_division(record):
    none = paired([0.0, 0.0, 0.0])
    assert (none.value, none.low, none.high, none.p) == (0.0, 0.0, 0.0, 1.0)


def test_ties_are_no_certainty():
    """Three equal differences are no proof: their unit is all the spread that is known of them."""
    constant = paired([2.0, 2.0, 2.0])
    expected = scipy_stats.t.sf(math.sqrt(3), 2) * 2  # mean 2, standard deviation 2
    assert constant.p == pytest.approx(expected)
    assert constant.low < 0 < constant.high


def test_fewer_than_three_seeds_allow_no_test():
    assert paired([1.0, 2.0]) is None


def test_order_base_first_then_best_then_those_without_numbers(record):
    methods = {"usam": [None] * 5, "gsam": GSAM, "sam": SAM, "adamw": BASE}
    assert list(rows(record, methods)) == ["adamw", "sam", "gsam", "usam"]
    assert list(rows(record, methods, higher=False)) == ["adamw", "gsam", "sam", "usam"]


def test_gap_is_positive_where_test_is_worse(record):
    assert rows(record, {"sam": [70.0]}, train=90.0)["sam"].gap == pytest.approx(20.0)
    assert rows(record, {"sam": [0.7]}, higher=False, train=0.5)["sam"].gap == pytest.approx(0.2)


def test_diverged_trials_are_counted_and_left_out(record):
    row = rows(record, {"adamw": BASE, "sam": [70.0, None, 71.0, 72.0, None]})["sam"]
    assert (row.trials, row.diverged, row.metric.n) == (5, 2, 3)
    assert row.metric.value == pytest.approx(71.0)
    expected = scipy_stats.ttest_rel([70.0, 71.0, 72.0], [BASE[0], BASE[2], BASE[3]])
    assert row.difference.p == pytest.approx(expected.pvalue)


def test_relative_time_is_the_mean_of_paired_ratios(record):
    records = [record("adamw", 0, 60, seconds=1.0), record("adamw", 1, 61, seconds=4.0)]
    records += [record("sam", 0, 62, seconds=3.0), record("sam", 1, 63, seconds=4.0)]
    row = summarize(records, "adamw", True)[1]
    assert row.relative_time == pytest.approx((3.0 + 1.0) / 2)
    assert math.isclose(row.seconds, 3.5)


def test_without_the_base_nothing_is_compared(record):
    row = rows(record, {"sam": SAM})["sam"]
    assert row.difference is None
    assert row.relative_time is None
