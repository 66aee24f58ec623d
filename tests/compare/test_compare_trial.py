from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from steppe.lab import files
from steppe.lab.errors import UserError
from steppe.lab.store import records
from steppe.lab.tasks.task import Task
from steppe.lab.trials import trial
from steppe.lab.trials.devices import name_of
from steppe.lab.trials.finding import BASES, check_base, check_methods, has_radius, is_wrapper
from steppe.lab.trials.optimizers import build, check_hyperparameters
from steppe.lab.trials.records import _BY_EPOCH, Record, TrialConfig
from steppe.lab.trials.trial import run_trial
from steppe.methods import METHODS

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Counting(Dataset):
    """Counts how often every example is read."""

    def __init__(self):
        self.reads = [0] * len(X)

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.reads[index] += 1
        return X[index], Y[index]


def task(**changes):
    given = {
        "model": lambda: nn.Linear(3, 2),
        "train": (X, Y),
        "validation": (X + 1e-3, Y),
        "test": (X - 1e-3, Y),
    }
    return Task(**{**given, **changes})


def config(method="adamw", seed=0, **changes):
    given = {"hyperparameters": {"lr": 0.1}, "epochs": 3, "batch_size": 8, "versions": {"torch": "2"}}
    base = "adamw" if is_wrapper(method) else None
    return TrialConfig(task="t", method=method, base=base, seed=seed, **{**given, **changes})


def without_times(record: Record) -> dict:
    content = record.model_dump()
    del content["seconds"], content["curve"]["seconds"]
    return content


SETTINGS = {"looksam": {"k": 3.0}, "esam": {"seed": 1.0}}
PASSES = {"msam": [4, 8, 12], "looksam": [4 + 2, 8 + 3, 12 + 4]}  # by the epoch; others climb always or never


# The first takes many passes for a step, the second matrices alone, the third sparse gradients alone.
OTHERWISE = ("lbfgs", "muon", "sparseadam")


@pytest.mark.parametrize("method", [*(base for base in BASES if base not in OTHERWISE), *METHODS])
def test_every_method_trains_and_is_deterministic(method):
    settings = {"lr": 0.1, **SETTINGS.get(method, {}), **({"rho": 0.01} if has_radius(method) else {})}
    first, second = (run_trial(config(method, hyperparameters=settings), task()) for _ in range(2))
    assert without_times(first) == without_times(second)
    assert first.status == "finished"
    assert first.final.train_loss < first.curve.train_loss[0]
    evaluations = PASSES.get(method, [8, 16, 24] if has_radius(method) else [4, 8, 12])
    assert first.curve.gradient_evaluations == evaluations
    assert first.gradient_evaluations == evaluations[-1]
    assert first.curve.seconds == sorted(first.curve.seconds)


def test_a_record_says_how_large_the_model_is_and_where_and_when_it_was_trained():
    record = run_trial(config(), task(model=lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))))
    assert record.parameters == 3 * 4 + 4 + 4 * 2
    assert record.hardware == name_of("cpu") != ""
    assert abs(date.fromisoformat(record.date) - date.today()) <= timedelta(days=1)
    elsewhere = record.model_copy(update={"hardware": "another", "date": "2020-01-31", "parameters": 1})
    assert elsewhere.config.key == record.key


def test_methods_of_one_seed_share_weights_and_batches():
    seen = []

    def spy(outputs, targets):
        seen.append((outputs.detach().clone(), targets.clone()))
        return nn.functional.cross_entropy(outputs, targets)

    def first_epoch(method, seed):
        seen.clear()
        run_trial(config(method, seed, hyperparameters={"lr": 1e-12}, epochs=1), task(loss=spy))
        return list(seen)

    plain, wrapped, other = first_epoch("sgd", 0), first_epoch("gsam", 0), first_epoch("sgd", 1)
    assert torch.equal(plain[0][0], wrapped[0][0])  # same initial weights on the same batch
    assert [t.tolist() for _, t in plain[:4]] == [t.tolist() for _, t in wrapped[0:8:2]]
    assert not torch.equal(plain[0][0], other[0][0])


def test_a_trial_has_one_thread_and_leaves_the_number_as_it_was():
    seen = set()

    def spy(outputs, targets):
        seen.add((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return nn.functional.cross_entropy(outputs, targets)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_trial(config("sgd", epochs=1), task(loss=spy))
        assert seen == {(1, True)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_learning_rate_falls_to_zero_along_a_cosine(monkeypatch):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setitem(BASES, "sgd", Watched)
    run_trial(config("sgd"), task())
    assert seen == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])


def test_the_test_split_is_read_exactly_once():
    counting = Counting()
    record = run_trial(config("sam"), task(test=counting))
    assert counting.reads == [1] * len(X)
    assert record.final.test_metric is not None


def test_tuning_does_not_read_the_test_split():
    counting = Counting()
    record = run_trial(config(test=False), task(test=counting))
    assert counting.reads == [0] * len(X)
    assert (record.final.test_loss, record.final.test_metric) == (None, None)


def test_a_dataset_is_trained_on_like_tensors():
    record = run_trial(config(), task(train=Counting()))
    assert record.final.train_metric > 80


def test_a_trial_leaves_the_process_as_it_was():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    threads = torch.get_num_threads()
    run_trial(config(), task())
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_not_finite_ends_the_trial():
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        value = nn.functional.cross_entropy(outputs, targets)
        return value * math.nan if len(calls) == 6 else value  # the second step of the second epoch, after evaluating

    counting = Counting()
    record = run_trial(config(), task(loss=loss, test=counting))
    assert record.status == "diverged"
    assert (record.diverged.epoch, record.diverged.step) == (2, 5)
    assert record.final is None
    assert len(record.curve.train_loss) == 1
    assert counting.reads == [0] * len(X)
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_the_loss_of_every_batch_is_noted(monkeypatch):
    record = run_trial(config(), task())
    losses = record.curve.batch_loss
    assert (len(losses), record.curve.batch_loss_updates) == (record.updates, 1) == (12, 1)
    means = [sum(n * loss for n, loss in zip((8, 8, 8, 6), losses[i : i + 4], strict=True)) / 30 for i in (0, 4, 8)]
    assert means == pytest.approx(record.curve.train_loss, rel=1e-5)
    every = run_trial(config(updates=11), task()).curve.batch_loss
    monkeypatch.setattr(trial, "_BATCH_LOSSES", 5)
    fewer = run_trial(config(updates=11), task()).curve
    assert fewer.batch_loss_updates == 3
    means = [*(sum(every[i : i + 3]) / 3 for i in (0, 3, 6)), sum(every[9:]) / 2]
    assert fewer.batch_loss == pytest.approx(means, rel=1e-5)  # they are kept with six digits


def test_too_large_a_learning_rate_diverges():
    task_ = task(loss=lambda o, t: (o[:, 0] - t).pow(2).mean(), metric=lambda o, t: 0.0)
    assert run_trial(config("sgd", hyperparameters={"lr": 1e30}), task_).status == "diverged"


def test_weights_that_are_lost_in_the_last_step_count_as_diverged():
    record = run_trial(config(), task(metric=lambda o, t: math.nan))
    assert record.status == "diverged"
    only_at_the_end = task(test=(X * math.inf, Y))
    assert run_trial(config(), only_at_the_end).status == "diverged"


def test_the_key_depends_on_what_changes_the_numbers():
    base = config()
    changes = [{"seed": 1}, {"hyperparameters": {"lr": 0.2}}, {"epochs": 4}, {"batch_size": 9}, {"test": False}]
    changes += [{"method": "sgd"}, {"base": "sgd"}, {"task": "u"}, {"task_digest": "a"}, {"versions": {"torch": "3"}}]
    keys = {base.model_copy(update=change).key for change in changes}
    assert len(keys | {base.key}) == len(changes) + 1
    assert config().key == base.key
    assert len(base.key) == 16


def test_the_key_does_not_depend_on_the_order_of_hyperparameters():
    first = config(hyperparameters={"lr": 0.1, "weight_decay": 0.2})
    assert first.key == config(hyperparameters={"weight_decay": 0.2, "lr": 0.1}).key


def test_records_survive_a_round_trip(tmp_path):
    record = run_trial(config(hyperparameters={"lr": 0.1, "betas": (0.9, 0.99), "amsgrad": True}), task())
    records.write(tmp_path, record)
    assert records.read(tmp_path, record.config) == record
    (path,) = (tmp_path / "trials").iterdir()
    assert path.name == f"adamw-0-{record.key}.json"


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1}', "[]", "\x00\x01", "[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = records.record_path(tmp_path, config())
    path.parent.mkdir()
    path.write_text(text)
    refused(tmp_path, config(), "")
    assert path.read_text() == text


def refused(folder, asked, reason):
    with pytest.raises(UserError) as caught:
        records.read(folder, asked)
    message = str(caught.value)
    assert message.startswith(f"{records.record_path(folder, asked)} is not the record of a finished trial: ")
    assert message.endswith(". Move it away, and the trial is run again")
    assert re.search(reason, message), message
    assert "\n" not in message


SPOILED = {
    "no curve": (lambda r: r.update(curve={}), "a number for each epoch"),
    "an epoch too few": (
        lambda r: [r["curve"][name].pop() for name in _BY_EPOCH],
        "a number for each epoch",
    ),
    "half a curve": (lambda r: r["curve"]["seconds"].pop(), "a number for each epoch"),
    "no test metric": (lambda r: r["final"].update(test_metric=None), "has no test_metric"),
    "no final numbers": (lambda r: r.update(final=None), "finished has final numbers"),
    "diverged and finished": (lambda r: r.update(diverged={"epoch": 1, "step": 1}), "finished has final numbers"),
    "a text": (lambda r: r["final"].update(test_metric="66.5"), r"final\.test_metric: "),
    "a switch": (lambda r: r["final"].update(test_metric=True), r"final\.test_metric: "),
    "a huge number": (lambda r: r["final"].update(test_metric=10**400), r"final\.test_metric: "),
    "a negative time": (lambda r: r.update(seconds=-1.0), "must not be negative"),
    "an unknown field": (lambda r: r.update(more=1), "more: "),
    "another version": (lambda r: r.update(schema_version=3), "schema_version: "),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_record_that_is_not_whole_is_refused(tmp_path, name):
    record = run_trial(config(), task())
    records.write(tmp_path, record)
    path = records.record_path(tmp_path, record.config)
    content = json.loads(path.read_text())
    spoil, reason = SPOILED[name]
    spoil(content)
    path.write_text(json.dumps(content))
    refused(tmp_path, record.config, reason)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link to nowhere"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = records.record_path(tmp_path, config())
    path.parent.mkdir()
    {"a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path), "a link to nowhere": lambda: path.symlink_to("no")}[
        kind
    ]()
    refused(tmp_path, config(), "it is no file")


def test_records_of_another_trial_are_refused(tmp_path):
    record = run_trial(config(), task())
    path = records.record_path(tmp_path, config(seed=1))
    path.parent.mkdir()
    path.write_text(record.model_dump_json())
    refused(tmp_path, config(seed=1), "it is the record of another trial")


def test_what_broken_off_writes_have_left_is_swept_up(tmp_path):
    """But never what somebody is writing, here or on another machine."""
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    names = {
        f".{files._HERE}.{done.stdout.strip()}.abc.tmp": False,
        f".{files._HERE}.{os.getpid()}.abc.tmp": True,
        f".another.{done.stdout.strip()}.abc.tmp": True,
        ".mine.tmp": True,
    }
    for name in names:
        (tmp_path / name).touch()
    files.check_writable(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(tmp_path / "a.json", json.dumps({}))
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_go_to_method_or_base():
    parameters = [nn.Parameter(torch.zeros(2))]
    optimizer = build("gsam", "sgd", parameters, {"lr": 0.3, "momentum": 0.8, "rho": 0.2, "alpha": 0.1})
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["rho"]) == (0.3, 0.8, 0.2)
    assert isinstance(optimizer.base, torch.optim.SGD)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "sam",
            {"lr": 0.1, "roh": 0.1},
            "sam over adamw has no hyper-parameter 'roh'; did you mean 'rho'. known: rho,",
        ),
        ("adamw", {"lr": 0.1, "rho": 0.1}, "adamw has no hyper-parameter 'rho'"),
        ("sam", {"lr": 0.1, "rho": -1.0}, "sam refuses rho=-1.0: "),
        ("sam", {"lr": -0.1, "rho": 1.0}, "sam over adamw refuses lr=-0.1: Invalid learning rate"),
        ("adamw", {"betas": 0.9}, "adamw refuses betas=0.9: "),
        ("looksam", {"k": 2.5}, "looksam needs a whole number for 'k', got 2.5"),
        (
            "lightsam-i",
            {"rho": 0.1},
            "lightsam-i needs a value for 'lr'; give it in a file for --config, under settings",
        ),
    ],
)
def test_wrong_hyperparameters(method, settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_hyperparameters(method, "adamw", settings)


@pytest.mark.parametrize(
    ("check", "given", "message"),
    [
        (
            check_base,
            "adm",
            "unknown base 'adm'; did you mean 'adam'.*known: adamw, sgd, .*rprop, or your own as FILE.py",
        ),
        (check_methods, ["sma"], "unknown method 'sma'; did you mean 'sam'"),
        (check_methods, ["sam", "sam"], "the method 'sam' is listed twice; list every method once"),
        (check_methods, [], "no method to compare; list at least one of adamw, sgd, sam"),
    ],
)
def test_wrong_names(check, given, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check(given)


def test_a_folder_whose_name_is_no_utf8(tmp_path):
    with pytest.raises(UserError, match=r"^the name of the output folder '.*\\udcff' is no UTF-8; choose another with"):
        files.check_writable(tmp_path / os.fsdecode(b"\xff"))
