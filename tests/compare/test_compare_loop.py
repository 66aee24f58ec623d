"""Training loops of the user's own: the same numbers as the lab's, and true costs whoever runs the passes."""

from __future__ import annotations

import json
import logging
import math
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from steppe.lab import compare, loop, sweep
from steppe.lab.crew.jobs import Stopped
from steppe.lab.errors import RunError, UserError
from steppe.lab.tasks.loop import Loop, takes_run
from steppe.lab.tasks.sources import find_task
from steppe.lab.tasks.task import Task
from steppe.lab.trials.devices import name_of
from steppe.lab.trials.own_loop import run_loop
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.trial import run_trial

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=GENERATOR)
Y = (X.sum(1) > 0).long()

FILE = """
import math
import torch
from torch import nn
from steppe.lab import loop

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()

def accuracy(model, part):
    with torch.no_grad():
        return 100 * (model(X[part]).argmax(1) == Y[part]).double().mean()

def train(run):
    model = nn.Linear(3, 2)
    opt = run.optimizer(model)
    for epoch in range(run.epochs or 3):
        for index in torch.randperm(30).split(10):
            loss = run.step(opt, (X[index], Y[index]), lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
        run.report(epoch, loss=loss, accuracy=accuracy(model, slice(30, 45)))
    return {"accuracy": accuracy(model, slice(45, 60)), "bias": model.bias[0]}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return path


def config(method="sam", seed=0, epochs=2, **more) -> TrialConfig:
    own = {"rho": 0.05} if method != "sgd" else {}
    given = {
        "method": method,
        "hyperparameters": {"lr": 0.1, **own, **more},
        "base": None if method == "sgd" else "sgd",
    }
    return TrialConfig(task="t", seed=seed, epochs=epochs, batch_size=10, versions={}, **given)


def loss_of(model):
    return lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches():
    return [(X[:30][index], Y[:30][index]) for index in torch.arange(30).split(10)]


def by_step(run, model, opt):
    for batch in batches():
        run.step(opt, batch, loss_of(model))


def by_closure(run, model, opt):
    for batch in batches():

        def closure(batch=batch):
            opt.zero_grad()
            loss = loss_of(model)(batch)
            loss.backward()
            return loss

        opt.step(closure)


def by_ascended(run, model, opt):
    for batch in batches():
        opt.zero_grad()
        loss_of(model)(batch).backward()
        with opt.ascended() as climbs:
            if climbs:
                opt.zero_grad()
                loss_of(model)(batch).backward()
        opt.base.step()


def trained(way, method="sam", **more):
    kept = {}

    def train(run):
        model = nn.Linear(3, 2)
        opt = run.optimizer(model)
        for epoch in range(run.epochs):
            way(run, model, opt)
            run.report(epoch, accuracy=0.5)
        return {"accuracy": 0.5}

    record = run_loop(config(method, **more), Loop(train), keep=kept.update)
    return record, kept


@pytest.mark.parametrize("way", [by_closure, by_ascended])
def test_all_doors_count_the_same_and_give_the_same_weights(way):
    usual, weights = trained(by_step)
    record, found = trained(way)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert record.updates == usual.updates == 6
    assert record.gradient_evaluations == usual.gradient_evaluations == 12
    assert record.curve.gradient_evaluations == [6, 12]
    assert (usual.examples, record.examples) == (120, 0)  # only steps of the run see batches
    assert record.problem is usual.problem is None


def test_costs_of_methods():
    assert trained(by_step, "sgd")[0].gradient_evaluations == 6
    assert trained(by_step, "looksam", k=2, alpha=0.7)[0].gradient_evaluations == 9
    part = trained(by_step, fraction=0.2)[0]
    assert (part.gradient_evaluations, part.examples) == (12, 6 * 12)


@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_a_loop_that_does_what_the_lab_does_finds_the_same(method):
    def model():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))

    splits = [(X[a:b], Y[a:b]) for a, b in ((0, 30), (30, 45), (45, 60))]
    task = Task(model, *splits, batch_size=10)
    wanted = run_trial(config(method), task)

    def train(run):
        made, order = model(), torch.Generator().manual_seed(run.seed)
        opt = run.optimizer(made, updates=3 * run.epochs)
        for epoch in range(run.epochs):
            made.train()
            for index in torch.randperm(30, generator=order).split(10):
                run.step(opt, (X[index], Y[index]), loss_of(made))
            with run.paused(), torch.no_grad():
                made.eval()
                found = [100 * (made(x).argmax(1) == y).double().mean() for x, y in splits]
                validation = nn.functional.cross_entropy(made(splits[1][0]), splits[1][1])
            run.report(epoch, accuracy=found[1], validation_loss=validation)
        return {"accuracy": found[2]}

    record = run_loop(config(method), Loop(train))
    assert record.final.test_metric == wanted.final.test_metric
    assert record.curve.validation_loss == wanted.curve.validation_loss
    assert record.curve.validation_metric == wanted.curve.validation_metric
    assert (record.gradient_evaluations, record.examples) == (wanted.gradient_evaluations, wanted.examples)


def test_parameters_are_those_that_optimizers_were_given_each_once():
    def train(run):
        first, second = nn.Linear(3, 2), nn.Linear(2, 2)
        first.bias.requires_grad_(False)
        opt = run.optimizer(first)
        run.optimizer(second.weight for _ in range(1))
        run.optimizer(first)
        for batch in batches():
            run.step(opt, batch, loss_of(first))
        return {"accuracy": 0.5}

    record = run_loop(config("sam"), Loop(train))
    assert record.parameters == 3 * 2 + 2 + 2 * 2
    assert (record.hardware, len(record.date)) == (name_of("cpu"), len("2026-01-31"))


def test_an_optimizer_of_nothing_that_trains():
    def train(run):
        run.optimizer(nn.Linear(3, 2).requires_grad_(False))

    with pytest.raises(UserError, match="given no parameter that requires a gradient"):
        run_loop(config(), Loop(train))


def test_time_that_is_paused_is_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("steppe.lab.trials.run.time.perf_counter", lambda: now[0])

    def train(run):
        now[0] += 5  # before there is an optimizer
        model = nn.Linear(3, 2)
        opt = run.optimizer(model)
        now[0] += 2
        with run.paused():
            now[0] += 10
        by_step(run, model, opt)
        now[0] += 1
        return {"accuracy": 1.0}

    assert run_loop(config(), Loop(train)).seconds == 3.0


@pytest.mark.parametrize("where", ["report", "return"])
def test_numbers_that_are_not_finite_are_a_divergence(where):
    def train(run):
        model = nn.Linear(3, 2)
        by_step(run, model, run.optimizer(model))
        run.report(accuracy=0.1)
        run.report(accuracy=math.nan if where == "report" else 0.2)
        return {"accuracy": math.inf}

    record = run_loop(config(), Loop(train))
    assert (record.status, record.final) == ("diverged", None)
    assert record.diverged.epoch == (2 if where == "report" else 3)
    assert record.problem is None


def returning(value):
    def train(run):
        model = nn.Linear(3, 2)
        by_step(run, model, run.optimizer(model))
        return value

    return train


def reporting(*calls):
    def train(run):
        model = nn.Linear(3, 2)
        by_step(run, model, run.optimizer(model))
        for call in calls:
            run.report(**call)
        return {"accuracy": 0.1}

    return train


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (returning(None), "train must return numbers by name, such as {'accuracy': 0.9}, got NoneType"),
        (returning({}), "train must return numbers by name"),
        (returning({"a": "b"}), "train must return numbers by name, got {'a': 'b'}"),
        (lambda run: {"accuracy": 1.0}, "has made no step of an optimizer from run.optimizer"),
        (reporting({"error": 1.0}), "train must return 'error' first, which run.report was told, got 'accuracy'"),
        (
            reporting({"accuracy": 1.0}, {"loss": 2.0}),
            "run.report must be told 'accuracy', on validation data, got loss",
        ),
        (
            reporting({"accuracy": 1.0}, {"accuracy": 1.0, "loss": 2.0}),
            "run.report must be told 'loss' in every call or",
        ),
        (
            reporting({"loss": 2.0, "accuracy": 1.0}, {"accuracy": 1.0}),
            "run.report must be told 'loss' in every call or",
        ),
        (reporting({"loss": 2.0}), "run.report must be told 'a metric', on validation data, got loss"),
    ],
)
def test_loops_that_say_too_little(train, message):
    with pytest.raises(UserError, match=message):
        run_loop(config(), Loop(train))


def test_what_is_a_loop():
    assert takes_run(lambda run: 0)
    assert takes_run(lambda run, more=3: 0)
    assert not takes_run(lambda: 0)
    assert not takes_run(lambda a, b: 0)
    with pytest.raises(UserError, match="a training loop must be a function of one argument, the run, got"):
        Loop(lambda: 0)
    with pytest.raises(UserError, match="loop: epochs must be a whole number"):
        loop(epochs=-1)(lambda run: 0)


def test_a_comparison_of_a_loop(file, tmp_path):
    found = compare(f"{file}:train", methods=["adamw", "sam"], seeds=3, jobs=2, out=tmp_path / "out", keep_weights=True)
    assert found.plan.metric_name == "accuracy"
    assert [(row.method, row.gradient_evaluations, row.updates) for row in found.rows] == [
        ("adamw", 9, 9),
        ("sam", 18, 9),
    ]
    assert all(row.metric.value > 50 and row.relative_time is not None for row in found.rows)
    assert set(found.rows[1].more) == {"bias"}
    text = str(found)
    assert "| method | test accuracy | difference to adamw |" in text
    assert "test bias" in text
    assert "a loop of your own, 3 seeds" in text
    assert len(list((tmp_path / "out/weights").iterdir())) == 6
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "curves.png", "table.md"}
    again = compare(f"{file}:train", methods=["adamw", "sam"], seeds=3, jobs=1, out=tmp_path / "out", keep_weights=True)
    assert [record.seconds for record in again.records] == [record.seconds for record in found.records]
    assert str(again) == text


def test_epochs_of_the_command_line_reach_the_loop(file, tmp_path):
    found = compare(f"{file}:train", methods=["adamw"], seeds=1, epochs=2, jobs=1, out=tmp_path / "out")
    assert [record.updates for record in found.records] == [6]
    assert "2 epochs" in str(found)


def test_a_sweep_needs_to_know_what_it_goes_by(file, tmp_path):
    with pytest.raises(UserError, match=r"own.py:train must say what settings are chosen by, with @steppe.lab.loop"):
        sweep(f"{file}:train", "sam", {"rho": [0.05, 0.1]}, out=tmp_path / "out")
    decorated = FILE.replace("def train", "@loop(metric_name='accuracy', higher_is_better=True, epochs=2)\ndef train")
    file.write_text(decorated)
    found = sweep(f"{file}:train", "sam", {"rho": [0.05, 0.1]}, seeds=1, jobs=1, out=tmp_path / "out", prune=True)
    assert [point.state for point in found.points] == ["finished"] * 2
    assert all(len(point.curve) == 2 for point in found.points)
    written = json.loads((tmp_path / "out/sweep.json").read_text())
    assert written["definition"]["metric"] == "accuracy"


def test_a_loop_that_reports_nothing_cannot_be_swept(file, tmp_path):
    silent = FILE.replace("def train", "@loop(metric_name='accuracy', higher_is_better=True)\ndef train")
    file.write_text("\n".join(line for line in silent.splitlines() if "run.report" not in line))
    with pytest.raises(RunError, match=r"own.py:train has not told run.report 'accuracy' on validation data"):
        sweep(f"{file}:train", "sam", {"rho": [0.05]}, seeds=1, jobs=1, out=tmp_path / "out")
    found = compare(f"{file}:train", methods=["adamw", "sam"], seeds=1, jobs=1, out=tmp_path / "other")
    assert found.rows[0].metric is not None


def test_lower_is_better_where_the_name_says_so(file, tmp_path):
    file.write_text(FILE.replace('{"accuracy"', '{"error"').replace("accuracy=", "error="))
    found = compare(f"{file}:train", methods=["adamw", "sam"], seeds=3, jobs=2, out=tmp_path / "out")
    assert (found.plan.metric_name, found.plan.higher_is_better) == ("error", False)


def test_errors_in_a_loop_name_the_line(file, tmp_path):
    file.write_text(FILE.replace("    return {", "    1 / 0\n    return {"))
    with pytest.raises(RunError, match=r"ZeroDivisionError: division by zero \(own.py, line 21\)"):
        compare(f"{file}:train", methods=["adamw"], seeds=1, jobs=1, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": True}, "--measure needs a task, whose model it can see"),
        ({"schedules": {"batch_size": {"kind": "constant", "size": 4}}}, "a training loop makes its batches itself"),
    ],
)
def test_what_a_loop_cannot_have(file, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        compare(f"{file}:train", methods=["adamw"], seeds=1, out=tmp_path / "out", **options)


@loop(epochs=1)
def decorated(run):
    model = nn.Linear(3, 2)
    by_step(run, model, run.optimizer(model))
    return {"accuracy": 1.0}


def test_functions_may_be_given_in_python():
    source = find_task(decorated)
    assert source.name == "test_compare_loop.py:decorated"
    assert source.path == str(Path(__file__).resolve())
    with pytest.raises(UserError, match=r"is a training loop, and this needs a steppe.lab.Task"):
        source.task()


@pytest.mark.parametrize("way", ["swallowed", "wrapped"])
@pytest.mark.parametrize("kind", ["stopped", "diverging", "wrong"])
def test_what_report_raises_ends_a_trial_whatever_a_library_makes_of_it(way, kind):
    calls = []

    def each_epoch(curve):
        calls.append(len(curve.seconds))
        if kind == "stopped":
            raise Stopped

    def train(run):
        model = nn.Linear(3, 2)
        opt = run.optimizer(model)
        for epoch in range(3):
            by_step(run, model, opt)
            try:
                run.report(epoch, **({"accuracy": math.nan if kind == "diverging" else 0.5} if kind != "wrong" else {}))
            except Exception as error:
                if way == "wrapped":
                    raise RuntimeError("a callback has failed") from error
        return {"accuracy": 0.5}

    if kind == "diverging":
        record = run_loop(config(), Loop(train), each_epoch=each_epoch)
        assert (record.status, record.diverged.epoch, calls) == ("diverged", 1, [])
        return
    expected = {"stopped": (Stopped, None), "wrong": (UserError, "run.report must be told 'a metric'")}[kind]
    with pytest.raises(expected[0], match=expected[1]):
        run_loop(config(), Loop(train), each_epoch=each_epoch)
    assert calls == ([1] if kind == "stopped" else [])


def test_an_error_of_the_loop_itself_is_its_own():
    def train(run):
        run.optimizer(nn.Linear(3, 2))
        run.report(accuracy=0.5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_loop(config(), Loop(train))


@pytest.mark.parametrize("way", [by_step, by_closure, by_ascended])
def test_schedules_follow_the_base_without_a_warning(way):
    rates = []

    def train(run):
        model = nn.Linear(3, 2)
        opt = run.optimizer(model, updates=6)
        for _ in range(2):
            way(run, model, opt)
            rates.append(opt.param_groups[0]["lr"])
        return {"accuracy": 0.5}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_loop(config(), Loop(train))
    assert rates == pytest.approx([0.05, 0.0])


def test_hosts_say_nothing_within_a_trial_and_speak_again_after_it(caplog, monkeypatch, recwarn):
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    host, own = logging.getLogger("lightning"), logging.getLogger("own")
    host.setLevel(logging.INFO)
    place = {"__name__": "lightning.somewhere", "warnings": warnings}

    def train(run):
        model = nn.Linear(3, 2)
        by_step(run, model, run.optimizer(model))
        host.warning("is quiet")
        host.error("is said")
        own.warning("is said too")
        exec("warnings.warn('not shown')", place)
        warnings.warn("shown", stacklevel=1)
        return {"accuracy": 0.5}

    run_loop(config(), Loop(train))
    assert [record.getMessage() for record in caplog.records] == ["is said", "is said too"]
    assert [str(warning.message) for warning in recwarn] == ["shown"]
    assert host.level == logging.INFO


RIGHT = (torch.arange(230) % 7 < 5).double()


@pytest.mark.parametrize(
    "outcomes",
    [
        RIGHT,
        RIGHT.float().requires_grad_(),
        RIGHT.bool(),
        RIGHT.numpy(),
        RIGHT.tolist(),
        [*RIGHT],
        tuple(RIGHT.tolist()),
    ],
)
def test_outcomes_of_test_examples_in_place_of_their_mean(outcomes):
    final = run_loop(config(), Loop(returning({"accuracy": outcomes, "bias": [1.0, 2.0]}))).final
    assert final.test_metric == pytest.approx(RIGHT.mean().item())
    assert final.test_more == {"bias": 1.5}
    assert (final.train_examples, final.test_examples) == (None, 230)
    groups = [RIGHT[group::100].mean().item() for group in range(100)]
    assert final.test_parts == pytest.approx(groups, rel=1e-6)
    assert final.test_step == pytest.approx(1 / 230, rel=1e-6)


def test_outcomes_that_are_no_yes_or_no():
    values = torch.tensor([1.0, 2.0, 6.0])
    final = run_loop(config(), Loop(returning({"error": values}))).final
    assert (final.test_metric, final.test_parts, final.test_step) == (3.0, [1.0, 2.0, 6.0], 1.5)
    assert run_loop(config(), Loop(returning({"error": torch.tensor([1.0, math.nan])}))).status == "diverged"
    single = run_loop(config(), Loop(returning({"error": torch.tensor([2.0])}))).final
    assert (single.test_metric, single.test_examples, single.test_parts) == (2.0, None, None)


@pytest.mark.parametrize(
    ("value", "shape"), [(torch.zeros(2, 3), (2, 3)), ([], (0,)), (torch.zeros(0), (0,)), ([[1.0, 2.0]], (1, 2))]
)
def test_outcomes_of_another_shape(value, shape):
    message = f"train must return 'accuracy' as a number, or as one number for each test example, got shape {shape}"
    with pytest.raises(UserError) as caught:
        run_loop(config(), Loop(returning({"accuracy": value})))
    assert str(caught.value) == message


def test_a_task_is_no_loop():
    splits = [(X[a:b], Y[a:b]) for a, b in ((0, 30), (30, 45), (45, 60))]

    def made(folder):
        return Task(lambda: nn.Linear(3, 2), *splits)

    message = (
        "made returned a Task, and was taken for a training loop since it takes an argument; a function that makes"
    )
    with pytest.raises(UserError, match=message):
        run_loop(config(), Loop(made))
