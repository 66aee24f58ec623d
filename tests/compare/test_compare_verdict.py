"""What verdicts name: groups that cannot be told apart, what a design can see, when the base was reached."""

from __future__ import annotations

import pytest

from steppe.lab import compare
from steppe.lab.judge.comparison import Comparison
from steppe.lab.judge.stats import summarize
from steppe.lab.judge.targets import target
from steppe.lab.plans.arms import Arm
from steppe.lab.plans.comparison import Plan
from steppe.lab.plans.workers import Workers
from steppe.lab.show.report import results
from steppe.lab.show.table import further, note, summary
from steppe.lab.tasks.sources import TaskSource
from steppe.lab.trials.records import Curve

BASE = [65.1, 66.0, 64.2, 65.9, 67.0]
SAM = [70.2, 70.9, 68.8, 71.5, 70.0]
LIKE_SAM = [69.9, 71.0, 69.0, 70.9, 70.1]
BETWEEN = [67.4, 68.3, 66.3, 68.4, 68.8]


@pytest.fixture
def compared(record, tmp_path):
    def make(methods, costs=None, **more):
        records = [
            record(method, seed, value, evaluations=(costs or {}).get(method, 20), **more)
            for method, values in methods.items()
            for seed, value in enumerate(values)
        ]
        arms = tuple(Arm(method, method, {"lr": 0.1}) for method in methods)
        seeds = tuple(range(len(next(iter(methods.values())))))
        plan = Plan(TaskSource("mnist1d"), "adamw", arms, seeds, 2, 5, Workers(1), tmp_path, "accuracy (%)", True)
        return Comparison(plan, records, summarize(records, "adamw", True))

    return make


def test_those_that_cannot_be_told_apart_are_named_together(compared):
    found = compared({"adamw": BASE, "sam": SAM, "gsam": LIKE_SAM, "usam": BETWEEN})
    first, second, *_ = found.verdict
    assert first == (
        "Yes: sam and gsam, which this design cannot tell apart, take the test accuracy (%) from 65.64 [64.34, "
        "66.94] to 70.28 [69.02, 71.54] and 70.18 [69.17, 71.19]."
    )
    assert second.startswith("The difference of sam to adamw is +4.64 (95 % interval ")
    assert second.endswith("Also significantly better, but less so: usam.")


def test_the_cheaper_of_a_group_is_recommended(compared):
    methods = {"adamw": BASE, "sam": SAM, "looksam": LIKE_SAM}
    cost = compared(methods, {"adamw": 10, "looksam": 12}).verdict[3]
    assert cost.startswith("The cheaper choice is looksam. At equal epochs looksam takes 1.2 times the gradient")
    alike = compared(methods, {"adamw": 10}).verdict[3]
    assert alike.startswith("At equal epochs sam takes 2.0 times the gradient evaluations of adamw")


def groups(value):
    """The numbers of 50 groups of test examples, of which some are right."""
    right = round(value / 2)
    return [100.0] * right + [0.0] * (50 - right)


def test_too_small_a_test_set_is_said(compared):
    methods = {"adamw": [80.0, 82.0, 80.0], "sam": [82.0, 84.0, 82.0]}
    found = compared(methods)
    records = [
        one.model_copy(
            update={
                "final": one.final.model_copy(
                    update={"test_parts": groups(one.final.test_metric), "test_step": 2.0, "test_examples": 50}
                )
            }
        )
        for one in found.records
    ]
    again = Comparison(found.plan, records, summarize(records, "adamw", True))
    first, _, sees, *_ = again.verdict
    assert first == "No: sam is not significantly better than adamw here."
    assert sees.startswith("With 3 seeds and 50 test examples (one is 2.00), a true difference of ")
    assert sees.endswith("; one of +2.00, as that of sam, takes more test examples, whatever the seeds.")
    assert "for other seeds and other test examples" in note(again)
    assert "The test data has 50 examples." in note(again)
    assert results(again)["n_test"] == 50


def test_how_many_seeds_it_would_take_is_said(compared):
    sees = compared({"adamw": BASE, "sam": [66.0, 65.9, 65.3, 65.7, 67.6]}).verdict[2]
    assert sees.startswith("With 5 seeds, a true difference of ")
    assert "; one of +0.46, as that of sam, takes about " in sees
    assert sees.endswith(" seeds.")


def test_a_design_that_can_find_nothing_says_so(compared):
    found = compared({"adamw": [10.0, 90.0, 50.0], "sam": [80.0, 40.0, 60.0]})
    assert "With 3 seeds this design can hardly find any difference: it takes more seeds." in found.verdict


def test_what_is_worse_needs_no_seeds(compared):
    sees = compared({"adamw": BASE, "sam": [65.0, 65.9, 64.3, 65.7, 66.9]}).verdict[2]
    assert sees.endswith(", and smaller ones less often.")


def test_what_the_intervals_are_for(compared):
    few = {"adamw": BASE, "sam": SAM}
    assert "for other seeds, judged by the same test examples];" in note(compared(few))
    own = compared(few, own_split=True, final={"test_examples": 20, "train_examples": 80})
    assert "for other seeds and other splits of the data" in note(own)
    row = own.rows[1]
    assert row.difference.noise.overlap == 0.25


# Time to a target


def curve(metrics, cost=10):
    n = len(metrics)
    return Curve(
        validation_metric=metrics,
        gradient_evaluations=[cost * (i + 1) for i in range(n)],
        examples=[cost * 5 * (i + 1) for i in range(n)],
        seconds=[0.5 * (i + 1) for i in range(n)],
    )


def test_a_target_counts_once_it_is_kept():
    assert target([curve([5, 7, 6, 8, 7])], 7.0, True).gradient_evaluations == 40
    assert target([curve([0.9, 0.5, 0.7, 0.4])], 0.5, False).gradient_evaluations == 40
    assert target([curve([9, 9, 9])], 7.0, True).seconds == 0.5


def test_a_target_is_the_median_over_trials_and_none_if_half_do_not_reach_it():
    good, bad = curve([7, 8, 9]), curve([1, 2, 3])
    two_of_three = target([good, good, bad], 8.0, True)
    assert (two_of_three.reached, two_of_three.trials, two_of_three.examples) == (2, 3, 100)
    assert target([good, bad], 8.0, True).seconds is None
    assert target([good, Curve()], 8.0, True) is None


def test_the_target_is_in_the_table_and_in_the_verdict(compared):
    found = compared({"adamw": BASE, "sam": SAM}, {"adamw": 10})
    assert found.verdict[-1] == (
        "It reached and kept the final validation accuracy (%) of adamw (65.64) after 2.0 times the gradient "
        "evaluations and 1.0 times the seconds that adamw had in all (5 of 5 trials, median)."
    )
    assert further(found)[:2] == ["gradients to target", "s to target"]
    assert "| 20 | 1.00 |" in summary(found).markdown
    assert "until a validation accuracy (%) of 65.64" in note(found)
    worse = compared({"adamw": SAM, "sam": BASE})
    assert worse.verdict[-1].endswith("in 0 of 5 trials only.")


def test_data_that_is_not_finite_is_no_matter_of_learning_rates(task_file, tmp_path):
    name = task_file(
        "test = x - 1e-3\ntest[0, 0] = torch.nan\n"
        "return Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (test, y), epochs=2)"
    )
    found = compare(name, methods=["sgd"], base="sgd", seeds=1, jobs=0, out=tmp_path)
    assert found.verdict == [
        "No answer: every trial came to its end, but over the whole training or test data its loss or metric is not "
        "finite. Look for numbers that are not finite there."
    ]
