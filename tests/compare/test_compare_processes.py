"""Trials of two processes, which torch's launcher starts, against the same in one."""

from __future__ import annotations

import pytest
from test_compare_host import TASK, options

from steppe.lab import compare
from steppe.lab.comparing import comparison
from steppe.lab.errors import RunError, UserError
from steppe.lab.plans.options import from_flags
from steppe.lab.plans.workers import Workers, workers_of

SETTINGS = {"sam": {"lr": 0.1, "rho": 0.1}, "sgd": {"lr": 0.1}}


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "tasks.py"
    path.write_text(TASK)
    return f"{path}:task"


def curves(found):
    return {
        record.config.label: (record.curve.train_loss, record.curve.validation_loss, record.gradient_evaluations)
        for record in found.records
    }


def test_two_processes_find_what_one_does(task, tmp_path):
    given = {"base": "sgd", "methods": ["sam"], "seeds": 2, "epochs": 3, "jobs": 1, "settings": SETTINGS}
    one = compare(task, **given, out=tmp_path / "one")
    two = compare(task, **given, out=tmp_path / "two", processes=2, keep_weights=True)
    for name, (losses, validation, evaluations) in curves(one).items():
        found = curves(two)[name]
        assert found[0] == pytest.approx(losses, abs=1e-5), name
        assert found[1] == pytest.approx(validation, abs=1e-5), name
        assert found[2] == evaluations
    assert {record.config.versions["host"] for record in two.records} == {"2 x cpu, no"}
    assert "--processes 2" in two.plan.command
    assert len(list((tmp_path / "two/weights").iterdir())) == 2
    again = compare(task, **given, out=tmp_path / "two", processes=2, keep_weights=True)
    assert [record.seconds for record in again.records] == [record.seconds for record in two.records]


def test_an_error_in_one_of_the_processes_is_that_of_the_trial(tmp_path):
    path = tmp_path / "tasks.py"
    path.write_text(
        TASK.replace(
            "model = lambda: nn.Sequential(",
            "import os\n    if os.environ.get('RANK') == '1':\n        raise ValueError('out of luck')\n"
            "    model = lambda: nn.Sequential(",
        )
    )
    with pytest.raises(
        RunError, match=r"trial sam, seed 0 failed: .*tasks.py:task failed with ValueError: out of luck"
    ):
        compare(
            f"{path}:task",
            methods=["sam"],
            base="sgd",
            seeds=1,
            jobs=1,
            processes=2,
            out=tmp_path / "out",
            settings=SETTINGS,
        )


def test_how_many_trials_at_a_time():
    assert workers_of(from_flags({"processes": 1000})).jobs == 1
    assert workers_of(from_flags({"processes": 2, "jobs": 3})).jobs == 3
    assert Workers(processes=2, precision="bf16").marks == {"versions": {"host": "2 x cpu, bf16"}}
    assert Workers(processes=2).sharing == 2


def test_what_does_not_go_together(task, tmp_path):
    with pytest.raises(UserError, match="--processes are of this machine, and --crew has others"):
        workers_of(from_flags({"processes": 2, "crew": "tcp://a:1"}))
    odd = options(methods=["sgd"], settings={"sgd": {"lr": 0.1}}, processes=2)
    with pytest.raises(UserError, match="the batch size is 7, of which 2 processes cannot have equal shares"):
        comparison.plan(task.replace(":task", ":odd"), odd, tmp_path / "out")
