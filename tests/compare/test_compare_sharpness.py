"""Kept weights, and sharpness measured after training."""

from __future__ import annotations

import builtins
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from scipy import stats as scipy_stats
from torch import nn

from steppe.lab import UserError
from steppe.lab.comparing import comparison
from steppe.lab.judge.comparison import Comparison
from steppe.lab.judge.stats import rank_correlation, summarize
from steppe.lab.plans.arms import Arm
from steppe.lab.plans.comparison import Plan
from steppe.lab.plans.options import Options
from steppe.lab.plans.workers import Workers
from steppe.lab.show.console import show
from steppe.lab.show.report import html, results, write_report
from steppe.lab.show.table import summary
from steppe.lab.store import records
from steppe.lab.tasks.evaluation import Scores, evaluate
from steppe.lab.tasks.sources import TaskSource, find_task
from steppe.lab.trials.records import Record, TrialConfig
from steppe.lab.trials.schedules import Schedules
from steppe.lab.trials.trial import run_trial

NAMES = ("worst-case linf", "lambda_max", "gradient norm")


def weights(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in sorted((folder / "weights").glob("*"))}


def test_weights_are_kept_and_trained_again_when_missing(command, tiny, tmp_path):
    out = tmp_path / "out"
    words = ("compare", "--tune", 0, "--task", tiny, "--methods", "sgd,sam", "--seeds", 2, "--jobs", 1, "--out", out)
    assert command(*words)[0] == 0
    assert not (out / "weights").exists()
    without = {path.name: json.loads(path.read_text())["final"] for path in (out / "trials").iterdir()}
    code, text, error = command(*words, "--keep-weights")
    assert (code, error) == (0, "")
    assert "finished in an earlier run" not in text
    kept = weights(out)
    assert list(kept) == sorted(Path(name).stem for name in without)
    assert {path.name: json.loads(path.read_text())["final"] for path in (out / "trials").iterdir()} == without
    lost = next(iter(kept))
    (out / "weights" / f"{lost}.pt").unlink()
    assert "3 of 4 trials were finished in an earlier run" in command(*words, "--keep-weights")[1]
    again = weights(out)
    assert {stem: when for stem, when in again.items() if stem != lost} == {
        stem: when for stem, when in kept.items() if stem != lost
    }
    assert "4 of 4 trials were finished in an earlier run" in command(*words)[1]
    assert (
        "--keep-weights" in command(*words, "--keep-weights")[1] or "--keep-weights" in (out / "table.md").read_text()
    )
    assert yaml.safe_load((out / "config.yaml").read_text())["keep_weights"] is True


def test_kept_weights_are_those_that_were_evaluated(command, tiny, tmp_path):
    out = tmp_path / "out"
    command(
        "compare",
        "--tune",
        0,
        "--task",
        tiny,
        "--methods",
        "sam",
        "--seeds",
        1,
        "--jobs",
        1,
        "--out",
        out,
        "--keep-weights",
    )
    (config,) = comparison.plan(tiny, Options(methods=("sam",), seeds=1), out).trials()
    record = records.read(out, config)
    task = find_task(tiny).load()
    model = task.model()
    model.load_state_dict(torch.load(records.weights_path(out, config), weights_only=True))
    assert evaluate(model, task, task.test) == Scores(record.final.test_loss, record.final.test_metric, examples=20)


def test_weights_that_diverged_are_not_kept_nor_missed(command, task_file, tmp_path):
    name = task_file(
        "import multiprocessing\ndef loss(o, t):\n"
        "    return nn.functional.cross_entropy(o, t) * (float('nan') if multiprocessing.parent_process() else 1)\n"
        "return Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), loss, epochs=1)"
    )
    out = tmp_path / "out"
    words = (
        "compare",
        "--tune",
        0,
        "--task",
        name,
        "--methods",
        "sgd",
        "--seeds",
        1,
        "--jobs",
        1,
        "--out",
        out,
        "--keep-weights",
    )
    assert command(*words)[0] == 0
    assert not (out / "weights").exists()
    assert "1 of 1 trials were finished in an earlier run" in command(*words)[1]


def test_weights_that_cannot_be_written(command, tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights").write_text("")
    words = ("--methods", "sgd", "--seeds", 1, "--jobs", 1, "--out", out, "--keep-weights")
    code, _, error = command("compare", "--tune", 0, "--task", tiny, *words)
    assert code == 1
    assert error.startswith(f"steppe: the record of sgd, seed 0 cannot be written to {out}: ")
    assert not list((out / "trials").iterdir())


@pytest.fixture
def quick(monkeypatch):
    """A stand-in for the measures, and what it was called with."""
    calls = []

    def measured(model, loss_fn, data, batch_size, forward):
        calls.append((model.training, loss_fn, data))
        return {"first": 2.0, "second": torch.tensor(0.5), "third": math.inf}

    monkeypatch.setitem(sys.modules, "hessian_eigenthings", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "steppe.measure.quick", SimpleNamespace(quick=measured))
    return calls


def test_sharpness_is_measured_after_training(quick, tiny, tmp_path):
    plan = comparison.plan(tiny, Options(methods=("sam",), seeds=1, measure=True), tmp_path / "o")
    task = plan.source.load()
    record = run_trial(plan.trials()[0], task)
    assert record.final.sharpness == {"first": 2.0, "second": 0.5, "third": None}
    ((training, loss, (x, y)),) = quick
    assert (training, loss) == (False, task.loss)
    assert torch.equal(x, task.train[0])
    assert torch.equal(y, task.train[1])
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_sharpness_is_measured_on_at_most_1024_examples(quick):
    from steppe.lab.tasks.task import Task

    x = torch.randn(1100, 2)
    split = (x, (x[:, 0] > 0).long())
    other = tuple(part.flip(0) for part in split)
    task = Task(lambda: nn.Linear(2, 2), split, other, other)
    settings = {"hyperparameters": {"lr": 0.1}, "seed": 0, "epochs": 1, "batch_size": 100, "versions": {}}
    run_trial(TrialConfig(task="t", method="sgd", measure=True, **settings), task)
    assert torch.equal(quick[0][2][0], x[:1024])
    unmeasured = run_trial(TrialConfig(task="t", method="sgd", **settings), task)
    assert unmeasured.final.sharpness is None
    assert len(quick) == 1


def test_the_real_measures(command, tiny, tmp_path):
    pytest.importorskip("hessian_eigenthings")
    pytest.importorskip("steppe.measure.quick")
    out = tmp_path / "out"
    words = ("--methods", "sgd,sam,gsam", "--seeds", 1, "--jobs", 1, "--out", out, "--measure")
    code, _, error = command("compare", "--tune", 0, "--task", tiny, *words)
    assert (code, error) == (0, "")
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert all(set(row["sharpness"]) == set(rows[0]["sharpness"]) for row in rows)
    assert all(mean["n"] == 1 for row in rows for mean in row["sharpness"].values() if mean)
    assert (out / "sharpness.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "config.yaml").read_text())["measure"] is True
    assert "--measure" in (out / "table.md").read_text()


def test_what_measures_is_imported_before_training(monkeypatch, tiny, tmp_path):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "hessian_eigenthings":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr("steppe.lab.errors.import_module", refuse)
    with pytest.raises(UserError, match=r'or in a checkout: pip install "\.\[compare,measure\]"$'):
        comparison.plan(tiny, Options(measure=True), tmp_path / "o")


@pytest.fixture
def measured(record, tmp_path):
    """A comparison with three measures; the first falls and the second rises with the test metric."""

    def make(tests, schedules=None, **more):
        found = [
            record(name, seed, value, sharpness=value and dict(zip(NAMES, (1000 / value, value, None), strict=True)))
            for name, values in tests.items()
            for seed, value in enumerate(values)
        ]
        arms = tuple(Arm(name, name, {"lr": 0.1}, (schedules or {}).get(name, Schedules())) for name in tests)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        plan = Plan(
            TaskSource("mnist1d"), "sgd", arms, (0, 1, 2), 2, 5, Workers(1), out, "accuracy (%)", True, measure=True
        )
        return Comparison(replace(plan, **more), found, summarize(found, "sgd", True))

    return make


TESTS = {"sgd": [60.0, 61.0, 62.0], "sam": [70.0, 71.0, 72.0], "gsam": [65.0, 66.0, 67.0]}


def test_columns_for_sharpness(measured):
    text = summary(measured(TESTS)).markdown
    assert "| gradient evals | time / sgd | gradients to target | s to target | worst-case linf | lambda_max |" in text
    assert (
        "| sam | 71.00 [68.52, 73.48] | +10.00 [+7.52, +12.48]* | 0.500 | 19.00 | 10 | 1.00 | 10 | 1.00 | "
        "14.1 [13.6, 14.6] |" in text
    )
    assert "| 71.0 [68.5, 73.5] | n/a |" in text


def test_rank_correlation_agrees_with_scipy(measured):
    found = measured({**TESTS, "usam": [50.0, 90.0, 70.0], "asam": [None, None, None]})
    rows = [row for row in found.rows if row.metric]
    for name in NAMES[:2]:
        pairs = [(row.sharpness[name].value, row.metric.value) for row in rows]
        assert rank_correlation(found.rows, name) == pytest.approx(scipy_stats.spearmanr(pairs).statistic)
    assert rank_correlation(found.rows, "lambda_max") == pytest.approx(1.0)
    assert rank_correlation(found.rows, "gradient norm") is None
    assert rank_correlation(found.rows[:2], "lambda_max") is None
    assert results(found)["rank_correlations"]["lambda_max"] == pytest.approx(1.0)


def test_a_measure_that_is_the_same_everywhere_has_no_rank(measured):
    found = measured(TESTS)
    same = replace(found.rows[0], sharpness={"s": found.rows[0].metric})
    assert rank_correlation([same, same, same], "s") is None


def test_pictures_and_words_of_sharpness(measured):
    found = measured({**TESTS, "usam": [None, None, None]})
    write_report(found)
    assert (found.plan.out / "sharpness.png").read_bytes().startswith(b"\x89PNG")
    page = html(found)
    assert page.count("<figure") == 4 + len(NAMES)
    assert "Sharpness and the test accuracy (%)" in page
    assert (
        "Spearman&#39;s rank correlation with the test accuracy (%), over the means of n rows: worst-case linf -1.00 "
        "(n=3), lambda_max +1.00 (n=3), gradient norm n/a (n=0). It describes these rows; it is no test"
    ) in page


def test_without_measures_nothing_of_it_is_shown(measured):
    found = measured(TESTS)
    plain = [
        one.model_copy(update={"final": one.final.model_copy(update={"sharpness": None})}) for one in found.records
    ]
    found = Comparison(found.plan, plain, summarize(plain, "sgd", True))
    write_report(found)
    assert not (found.plan.out / "sharpness.png").exists()
    assert "Spearman" not in html(found)


@pytest.mark.parametrize(("width", "count", "tables"), [(200, 3, 1), (80, 3, 3), (80, 12, 5), (500, 12, 1)])
def test_sharpness_that_does_not_fit_into_the_terminal_is_in_tables_of_its_own(measured, record, width, count, tables):
    plan = measured(TESTS).plan
    found = [
        record(name, seed, value, sharpness={f"measure {index}": index + value / 100 for index in range(count)})
        for name, values in TESTS.items()
        for seed, value in enumerate(values)
    ]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(Comparison(plan, found, summarize(found, "sgd", True)), console)
    text = console.file.getvalue()
    assert sum(line.startswith("method ") for line in text.splitlines()) == tables
    assert [text.count(f"{index}.71 [{index}.69, {index}.73]") for index in range(1, min(count, 10))] == [1] * (
        min(count, 10) - 1
    )
    assert "…" not in text


def test_arms_that_differ_are_told_apart_in_the_report(measured):
    grown = Schedules.model_validate({"batch_size": {"kind": "multiply", "start": 2, "factor": 2, "every": 1}})
    page = html(measured(TESTS, {"gsam": grown}))
    assert "<dt>batch size</dt><dd>5 (sgd, sam); 2, times 2 every 1 epochs (gsam)</dd>" in page
    assert "<dt>learning rate</dt><dd>falls to zero along a cosine over all updates</dd>" in page
    assert "<dt>length</dt><dd>2 epochs</dd>" in page
    assert "<dt>rho</dt>" not in page
    assert "example grads" in page
    assert "train loss against example gradients" in page
    sharp = Schedules.model_validate({"rho": "linear", "lr": "constant"})
    page = html(measured(TESTS, {"gsam": sharp}))
    assert "<dt>rho</dt><dd>stays constant (sgd, sam); falls to zero along a line over all updates (gsam)</dd>" in page


def test_the_cost_of_arms_of_different_length(measured):
    found = measured(TESTS)
    arms = tuple(replace(arm, updates=30 if arm.name == "sam" else None) for arm in found.plan.arms)
    costly = [
        one.model_copy(update={"gradient_evaluations": 30}) if one.config.row == "sam" else one for one in found.records
    ]
    again = Comparison(replace(found.plan, arms=arms), costly, summarize(costly, "sgd", True))
    assert again.verdict[-2].startswith(
        "In 30 updates, against 2 epochs, sam takes 3.0 times the gradient evaluations of sgd and 1.0 times its "
        "training time; after as many evaluations as sgd had in all (epoch 2 of 2, its learning rate still high)"
    )
    assert "# mnist1d, base sgd, 2 epochs or 30 updates, 3 seeds" in summary(again).markdown


def test_rows_are_keyed_by_arm(record):
    found = [record("sam", seed, 60.0 + seed) for seed in range(3)]
    found += [record("sam", seed, 70.0 + seed, arm="sam+") for seed in range(3)]
    base, other = summarize(found, "sam", True)
    assert (base.method, base.is_base, other.method, other.is_base) == ("sam", True, "sam+", False)
    assert other.difference.value == pytest.approx(10.0)
