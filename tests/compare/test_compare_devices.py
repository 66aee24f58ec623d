"""Trials on accelerators: which one is taken, what is said of it, and that its numbers are those of the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from commands import with_pretend_device
from steppe.lab import compare
from steppe.lab.errors import UserError
from steppe.lab.plans.options import from_flags
from steppe.lab.plans.workers import Workers, workers_of
from steppe.lab.tasks.task import Task
from steppe.lab.trials import devices, trial
from steppe.lab.trials.host import WORKER, Host
from steppe.lab.trials.records import Record, TrialConfig
from steppe.lab.trials.surroundings import reproducible
from steppe.lab.trials.trial import run_trial

TASK = """
import torch
from torch import nn
from steppe.lab import Task

def task():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    splits = list(zip(x.split(20), y.split(20)))
    model = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    # Weights of classes go where the outputs are.
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    return Task(model, *splits, loss=loss, batch_size=10, epochs=2)
"""
GIVEN = {"methods": ["sgd", "sam"], "base": "sgd", "seeds": 2}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(TASK)
    return path


def command(*words, **env):
    done = subprocess.run(
        [sys.executable, "-m", "steppe", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=250,
        env=with_pretend_device(**env),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def records(folder):
    return [Record.model_validate_json(path.read_text()) for path in sorted((folder / "trials").iterdir())]


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this torch knows no devices in Python")
def test_an_accelerator_is_taken_without_a_flag(file, tmp_path):
    log = tmp_path / "devices.log"
    words = [
        "compare",
        "--tune",
        "0",
        "--task",
        f"{file}:task",
        "--methods",
        "sgd,sam",
        "--base",
        "sgd",
        "--seeds",
        "2",
    ]
    command(*words, "--out", tmp_path / "out", PRETEND_DEVICE_LOG=str(log))
    found = records(tmp_path / "out")
    assert {(record.config.device, record.hardware) for record in found} == {("pretend", "pretend")}
    used = [line.split() for line in log.read_text().splitlines()]
    assert {index for _, index in used} == {"0", "1"}
    assert all(len({index for owner, index in used if owner == process}) == 1 for process, _ in used)
    on_cpu = {record.config.label: record for record in compare(f"{file}:task", **GIVEN, out=tmp_path / "cpu").records}
    for record in found:
        wanted = on_cpu[record.config.label]
        assert record.curve.train_loss == pytest.approx(wanted.curve.train_loss, rel=1e-5)
        assert record.final.test_metric == wanted.final.test_metric
        assert record.key != wanted.key
    assert "--device pretend" in (tmp_path / "out/table.md").read_text()
    # What was found there counts again; on the CPU, or in another precision, it is something else.
    command(*words, "--out", tmp_path / "out", "--device", "pretend:1", "--precision", "bf16")
    both = records(tmp_path / "out")
    assert len(both) == 8
    assert {record.config.precision for record in both} == {None, "bf16"}
    half, full = (
        [record.curve.train_loss for record in both if record.config.precision == precision]
        for precision in ("bf16", None)
    )
    assert half != full
    assert half == [pytest.approx(losses, rel=0.05) for losses in full]


@pytest.fixture
def two(monkeypatch):
    """Two devices called fake."""
    monkeypatch.setattr(devices, "accelerator", lambda: "fake")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "device", Fake)
    return "fake"


class Fake:
    def __init__(self, words):
        self.type, _, index = str(words).partition(":")
        self.index = int(index) if index else None
        if self.type not in ("fake", "cpu", "cuda"):
            raise RuntimeError


def test_devices_are_taken_in_turn(two, monkeypatch):
    assert devices.find_device("auto") == "fake"
    assert devices.count("fake") == 2
    assert devices.count("fake:1") == devices.count("cpu") == 1
    for worker, device in ((None, "fake:0"), ("0", "fake:0"), ("1", "fake:1"), ("4", "fake:0")):
        monkeypatch.delenv(WORKER, raising=False)
        if worker is not None:
            monkeypatch.setenv(WORKER, worker)
        assert Host("fake").placed().device == device
    assert Host("fake:1").placed().device == "fake:1"
    assert Host().placed().device == "cpu"


def test_libraries_that_ask_for_an_accelerator_get_that_of_the_worker(two, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "fake", SimpleNamespace(set_device=seen.append), raising=False)
    for device in ("fake:1", "fake", "cpu", "cpu:1", "other:1"):
        devices.use(device)
    assert seen == [1]


def test_memory_is_what_a_device_counts_beyond_what_it_had(two, monkeypatch):
    now, most = {"fake:1": 50}, {"fake:1": 900}
    counters = SimpleNamespace(
        reset_peak_memory_stats=lambda device: most.update({device: now[device]}),
        memory_allocated=now.get,
        max_memory_allocated=most.get,
    )
    monkeypatch.setattr(torch, "fake", counters, raising=False)
    memory = devices.Memory("fake:1")
    for at in (170, 160):
        with memory.watched():
            most["fake:1"] = at
        most["fake:1"] = 500  # between what is watched
        assert memory.most == 120
    for device in ("cpu", "other"):
        memory = devices.Memory(device)
        with memory.watched():
            pass
        assert memory.most is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda", "the device 'cuda' is not here, but 'fake' is; leave --device out"),
        ("fake:2", "the device 'fake:2' is not here: there are 2 of this kind, counted from 0"),
        ("gpu", "unknown device 'gpu'; name auto, cpu, cuda"),
    ],
)
def test_devices_that_are_not_there(two, asked, message):
    with pytest.raises(UserError, match=f"^{message}"):
        devices.find_device(asked)
    assert devices.find_device("cuda", elsewhere=True) == "cuda"


def test_without_an_accelerator(monkeypatch):
    monkeypatch.setattr(devices, "accelerator", lambda: None)
    assert devices.find_device("auto") == "cpu"
    with pytest.raises(UserError, match=r"^the device 'cuda' is not here, and no other accelerator that torch can use"):
        devices.find_device("cuda")


def test_jobs_are_of_each_device(two, monkeypatch):
    for module in ("accelerator", "count", "find_device"):
        monkeypatch.setattr(f"steppe.lab.plans.workers.{module}", getattr(devices, module))
    assert workers_of(from_flags({})).jobs == 2
    assert workers_of(from_flags({"jobs": 3})).jobs == 6
    assert workers_of(from_flags({"jobs": 3, "device": "fake:1"})).jobs == 3
    # All of a trial's processes take devices from the first on: two such trials would be on the same.
    assert workers_of(from_flags({"processes": 2})).jobs == 1
    assert workers_of(from_flags({"device": "fake:1"})).asked == {"device": "fake:1"}
    assert workers_of(from_flags({"device": "cpu"})).asked == {"device": "cpu"}
    assert workers_of(from_flags({"device": "fake:1"})).marks["device"] == "fake"


def config(**more):
    given = {"task": "t", "method": "sam", "base": "sgd", "hyperparameters": {"lr": 0.1, "rho": 0.05}, "seed": 0}
    return TrialConfig(**given, epochs=2, batch_size=10, versions={}, **more)


def test_records_have_the_memory_of_training_alone(monkeypatch):
    taken = []

    class Counting(devices.Memory):
        @contextmanager
        def watched(self):
            yield
            self.most = 7 + len(taken)

    monkeypatch.setattr(trial, "Memory", Counting)
    evaluate = trial.evaluate
    monkeypatch.setattr(trial, "evaluate", lambda *given, **more: taken.append(0) or evaluate(*given, **more))
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    splits = list(zip(x.split(20), (x.sum(1) > 0).long().split(20), strict=True))
    record = run_trial(config(), Task(lambda: nn.Linear(4, 2), *splits, batch_size=10))
    assert record.peak_memory == 8  # one look at validation data came before the second epoch, others after it
    assert len(taken) == 5
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_bf16_is_that_of_autocast_in_every_pass():
    seen = []

    class Looking(nn.Linear):
        def forward(self, x):
            found = super().forward(x)
            seen.append((found.dtype, self.training))
            return found

    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    splits = list(zip(x.split(20), (x.sum(1) > 0).long().split(20), strict=True))
    task = Task(lambda: Looking(4, 2), *splits, batch_size=10)
    record = run_trial(config(precision="bf16"), task, Host(precision="bf16"))
    assert {kind for kind, _ in seen} == {torch.bfloat16}
    assert sum(training for _, training in seen) == 8
    assert record.status == "finished"
    assert Workers(precision="bf16").marks["precision"] == "bf16"


def test_keys_of_the_cpu_are_what_they_were():
    content = json.loads(config().model_dump_json())
    assert not {"device", "precision", "method_digest", "base_digest"} & set(content)
    assert config().key == "e1b266de492ba655"
    assert len({config(**more).key for more in ({}, {"device": "cuda"}, {"precision": "bf16"})}) == 3


def test_operations_in_no_fixed_order_are_taken_down(recwarn):
    inexact: set[str] = set()
    with reproducible(0, device="meta", inexact=inexact):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        for _ in range(2):
            warnings.warn("cumsum_cuda does not have a deterministic implementation, but you set ...", stacklevel=1)
        warnings.warn("another thing", UserWarning, stacklevel=1)
    assert inexact == {"cumsum_cuda"}
    assert [str(one.message) for one in recwarn.list] == ["another thing"]
    with reproducible(0):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()


PROCESSORS = """processor\t: 0
model name\t: Some Processor @ 2.10GHz
processor\t: 1
model name\t: Some Processor @ 2.10GHz
"""


@pytest.mark.parametrize(
    ("content", "name"),
    [(PROCESSORS, "Some Processor @ 2.10GHz"), ("processor\t: 0\n", "of the platform"), (None, "of the platform")],
)
def test_what_the_processor_is_called(tmp_path, monkeypatch, content, name):
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(devices, "_PROCESSORS", file)
    monkeypatch.setattr(devices.platform, "processor", lambda: "of the platform")
    assert devices.name_of("cpu") == name
