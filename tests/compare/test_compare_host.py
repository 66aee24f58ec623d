"""Trials in processes that accelerate launches, against trials in one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from steppe.lab import UserError
from steppe.lab.comparing import comparison
from steppe.lab.crew import workers
from steppe.lab.plans.options import Options, from_flags
from steppe.lab.plans.workers import Workers
from steppe.lab.store import records
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.feeds import total_updates
from steppe.lab.trials.host import AcceleratedHost, Host, launched
from steppe.lab.trials.records import Record
from steppe.lab.trials.schedules import ConstantSize
from steppe.lab.trials.trial import run_trial

SOURCE = Path(__file__).parents[2] / "src"

TASK = """
import torch
from torch import nn
from steppe.lab import Task

def task(batch_size=8):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(96, generator=generator) > 0).long()
    train, validation, test = zip(torch.split(x, [64, 16, 16]), torch.split(y, [64, 16, 16]))
    model = lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    return Task(model, train, validation, test, batch_size=batch_size, epochs=3)

def odd():
    return task(batch_size=7)

def tiny():
    return task()
"""

GROWING = {"kind": "multiply", "start": 4, "factor": 2, "every": 1}
ARMS = {
    "sgd-fixed": {"method": "sgd", "schedules": {"batch_size": {"kind": "constant", "size": 8}}},
    "sam-grown": {"method": "sam", "rho": 0.1, "schedules": {"batch_size": GROWING}},
    "sam-parts": {"method": "sam", "rho": 0.1, "schedules": {"batch_size": {**GROWING, "micro": 3}}},
    "gsam-grown": {
        "method": "gsam",
        "rho": 0.1,
        "alpha": 0.02,
        "updates": 20,
        "schedules": {"batch_size": {**GROWING, "every": 5, "per": "update", "drop_last": True}},
    },
    "adamw-last": {"method": "adamw", "schedules": {"batch_size": {"kind": "constant", "size": 24, "drop_last": True}}},
}


def options(**more):
    settings = {name: {"lr": 0.1, **entry} for name, entry in ARMS.items()}
    return from_flags({"base": "sgd", "methods": list(settings), "settings": settings, "seeds": 1, "epochs": 3, **more})


# What every launched process does; it writes what it has seen into a file of its own.
SCRIPT = f"""
import json, sys
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_compare_host import observed, options
from steppe import cli
from steppe.lab import UserError
from steppe.lab.comparing import comparison
from steppe.lab.plans.workers import Workers
from steppe.lab.trials.host import AcceleratedHost, launched
from steppe.studies.gsam_batch import design, report, run

root = Path(sys.argv[1])
host = AcceleratedHost()
seen = {{"launched": launched(), "processes": host.processes, "rank": host.rank, "versions": host.versions}}
seen["mean"], seen["agree"] = host.mean(__import__("torch").tensor(float(host.rank))), host.agree([host.rank, "a"])
task, mine = f"{{root / 'tasks.py'}}:task", root / f"rank{{host.rank}}"
seen["first"] = observed(comparison.plan(task, options(keep_weights=True), mine, Workers(host=host)))
seen["again"] = observed(comparison.plan(task, options(keep_weights=True), mine, Workers(host=host)))
if host.rank == 0:
    next((mine / "trials").glob("sam-grown-*")).unlink()
seen["one is lost"] = observed(comparison.plan(task, options(keep_weights=True), mine, Workers(host=host)))
try:
    comparison.plan(f"{{root / 'tasks.py'}}:odd", options(methods=["sgd"], settings={{}}), mine, Workers(host=host))
except UserError as error:
    seen["odd"] = str(error)
run._TASKS = root / "tasks.py"
preset = design.Preset(tasks=("tiny",), epochs=2, batches=(4, 8), fixed=8, seeds=1)
design.PRESETS = report.PRESETS = {{"tiny": preset}}
words = ["study", "gsam-batch", "--preset", "tiny", "--out", str(root / "study")]
seen["study"] = cli.main(words)
if host.rank == 0:
    seen["written"] = {{path.name: path.stat().st_mtime_ns for path in (root / "study/tiny/trials").iterdir()}}
seen["study again"] = cli.main(words)
(root / f"{{host.rank}}.json").write_text(json.dumps(seen))
"""


class Watch:
    """What an observer is told."""

    def __init__(self):
        self.total = self.kept = None
        self.trained = []

    def begin(self, total, kept):
        self.total, self.kept = total, len(kept)

    def warn(self, message):
        raise AssertionError(message)

    def note(self, message):
        pass

    def running(self, trials):
        pass

    def finished(self, record):
        self.trained.append(record.config.row)


def observed(plan):
    """Run a plan; return what was trained and found."""
    watch = Watch()
    found = comparison.run(plan, watch)
    return {"kept": watch.kept, "trained": watch.trained, "records": [r.model_dump(mode="json") for r in found.records]}


@dataclass
class Launched:
    ranks: list[dict]
    root: Path
    out: str
    error: str


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes that share their batches, on the loopback."""
    pytest.importorskip("accelerate")
    root = tmp_path_factory.mktemp("two")
    (root / "tasks.py").write_text(TASK)
    (root / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On CPUs accelerate launch starts one process, however many it is asked for; torchrun is what it calls for GPUs.
    words = ["--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port, root / "script.py", root]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    try:
        out, error = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, error[-3000:]
    return Launched([json.loads((root / f"{rank}.json").read_text()) for rank in (0, 1)], root, out, error)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "tasks.py"
    path.write_text(TASK)
    return f"{path}:task"


@pytest.fixture
def one_thread():
    """What workers compute with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_know_each_other(two):
    for rank, seen in enumerate(two.ranks):
        assert (seen["launched"], seen["processes"], seen["rank"]) == (True, 2, rank)
        assert seen["versions"] == {"host": "2 x cpu, no"}
        assert seen["mean"] == 0.5
        assert seen["agree"] == [0, "a"]


@pytest.mark.parametrize("host", ["plain", "accelerated"])
def test_two_processes_train_as_one(host, two, task, tmp_path, monkeypatch, request):
    if host == "accelerated":
        request.getfixturevalue("accelerated")
    alone = Host() if host == "plain" else AcceleratedHost()
    plan = comparison.plan(task, options(keep_weights=True), tmp_path / "out", Workers(host=alone))
    expected = comparison.run(plan)
    both = comparison.plan(task, options(keep_weights=True), two.root / "rank0")
    for mine, other in zip(expected.records, two.ranks[0]["first"]["records"], strict=True):
        one = mine.model_dump(mode="json")
        for name in ("status", "gradient_evaluations", "examples", "updates"):
            assert other[name] == one[name], (mine.config.row, name)
        assert other["curve"]["examples"] == one["curve"]["examples"]
        for part, names in (("curve", ("train_loss", "validation_loss")), ("final", ("train_loss", "test_loss"))):
            for name in names:
                assert other[part][name] == pytest.approx(one[part][name], abs=1e-4), (mine.config.row, name)
        ours, theirs = (
            torch.load(records.weights_path(folder, config), weights_only=True)
            for folder, config in (
                (plan.out, mine.config),
                (both.out, Record.model_validate(other).config),
            )
        )
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0.0)
        assert any((ours[name] - start).abs().max() > 0.01 for name, start in _start(task, mine.config.seed).items())


def _start(task, seed):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return find_task(task).load().model().state_dict()


def test_batches_in_parts_are_the_same_batches(two):
    by_row = {one["config"]["arm"]: one for one in two.ranks[0]["first"]["records"]}
    whole, parts = by_row["sam-grown"], by_row["sam-parts"]
    assert parts["gradient_evaluations"] == whole["gradient_evaluations"] == 2 * (16 + 8 + 4)
    assert parts["examples"] == whole["examples"] == 2 * 3 * 64
    assert parts["curve"]["train_loss"] == pytest.approx(whole["curve"]["train_loss"], abs=1e-5)


def test_only_the_first_process_writes(two):
    first, second = (sorted(path.name for path in (two.root / f"rank{rank}").iterdir()) for rank in (0, 1))
    assert {"table.md", "results.json", "trials", "weights"} <= set(first)
    assert second == ["trials"]
    assert not list((two.root / "rank1" / "trials").iterdir())
    assert len(list((two.root / "rank0" / "trials").iterdir())) == len(ARMS)
    assert [one["config"] for one in two.ranks[1]["first"]["records"]] == [
        one["config"] for one in two.ranks[0]["first"]["records"]
    ]


def test_what_is_finished_is_skipped_in_all_processes(two):
    # The second process sees no record in its folder; what is missing is for the first to say.
    first, second = two.ranks
    assert (first["first"]["kept"], first["first"]["trained"]) == (0, list(ARMS))
    assert (first["again"]["kept"], first["again"]["trained"]) == (len(ARMS), [])
    assert (second["again"]["kept"], second["again"]["trained"]) == (0, [])
    assert first["again"]["records"] == first["first"]["records"]
    assert first["one is lost"]["trained"] == second["one is lost"]["trained"] == ["sam-grown"]
    again = {one["key"]: one["final"] for one in first["one is lost"]["records"]}
    assert again == {one["key"]: one["final"] for one in first["first"]["records"]}


def test_a_batch_that_cannot_be_shared(two):
    for seen in two.ranks:
        assert seen["odd"].startswith(
            "sgd: the batch size is 7, of which 2 processes cannot have equal shares; make it a multiple"
        )
        assert "\n" not in seen["odd"]
    with pytest.raises(UserError, match="is 7, of which 2 replicas cannot have equal shares"):
        total_updates(ConstantSize(size=7), None, 1, 8, SimpleNamespace(train=range(64)), processes=2)


def test_a_study_in_two_processes(two):
    assert [(seen["study"], seen["study again"]) for seen in two.ranks] == [(0, 0)] * 2
    assert {path.name: path.stat().st_mtime_ns for path in (two.root / "study/tiny/trials").iterdir()} == two.ranks[0]["written"]  # fmt: skip
    columns = json.loads((two.root / "study" / "tiny" / "study.json").read_text())["columns"]
    assert len(columns) == 12
    assert all(found["sharpness"]["0"] > 0 for found in columns.values())
    assert two.out.count("written to") == 2  # by one process, twice
    assert two.out.count("12 of 12 trials were finished in an earlier run") == 1
    assert "Traceback" not in two.error
    assert "Warning" not in two.error


# In this process


@pytest.fixture
def accelerated(monkeypatch):
    """A process as accelerate sets it up, and nothing of it afterwards."""
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, PartialState

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.parametrize("accelerate", [False, True])
def test_one_process_computes_what_a_worker_does(accelerate, task, tmp_path, one_thread, request):
    host = Host("cpu")
    if accelerate:
        request.getfixturevalue("accelerated")
        host = AcceleratedHost()
        assert (host.processes, host.rank, str(host.device)) == (1, 0, "cpu")
        assert host.versions == {"host": "1 x cpu, no"}
        assert (host.mean(torch.tensor(2.0)), host.agree(["a", 1])) == (2.0, ["a", 1])
    asked = options(methods=["sgd-fixed", "sam-parts"], jobs=1, keep_weights=True)
    here = comparison.plan(task, asked, tmp_path / "here", Workers(host=host))
    there = comparison.plan(task, asked, tmp_path / "there")
    if accelerate:  # the numbers of a worker are above
        there = replace(there, workers=Workers(host=Host("cpu")))
    pairs = zip(comparison.run(here).records, comparison.run(there).records, strict=True)
    for mine, other in pairs:
        assert mine.final == other.final
        assert mine.curve.model_copy(update={"seconds": []}) == other.curve.model_copy(update={"seconds": []})
        assert (mine.key == other.key) is not accelerate
        ours = torch.load(records.weights_path(here.out, mine.config), weights_only=True)
        theirs = torch.load(records.weights_path(there.out, other.config), weights_only=True)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_task_s_own_batches_do_not_depend_on_the_host(task, one_thread):
    (trial,) = comparison.plan(
        task, Options(methods=("sam",), seeds=1), Path(find_task(task).path).parent / "o"
    ).trials()
    default, host = run_trial(trial, find_task(task).load()), run_trial(trial, find_task(task).load(), Host())
    assert default.final == host.final


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", None])
def test_a_launch_shows_in_the_environment(name, monkeypatch):
    for known in ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(known, raising=False)
    if name:
        monkeypatch.setenv(name, "1")
    assert launched() is (name is not None)


def test_half_precision_is_refused(accelerated, monkeypatch):
    monkeypatch.setattr(accelerated, "Accelerator", lambda: SimpleNamespace(mixed_precision="fp16", device="cpu"))
    with pytest.raises(UserError, match=r"^trials cannot run in fp16; launch with --mixed_precision bf16 or no$"):
        AcceleratedHost()


def test_bfloat16_trains(accelerated, monkeypatch, task, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    host = AcceleratedHost()
    assert host.versions == {"host": "1 x cpu, bf16"}
    plan = comparison.plan(task, options(methods=["sam-parts"]), tmp_path / "out", Workers(host=host))
    (record,) = comparison.run(plan).records
    assert record.status == "finished"
    assert record.final.train_loss < 0.6


def test_without_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    with pytest.raises(UserError, match=r"the module 'accelerate' is not installed; install it with: pip install"):
        AcceleratedHost()


def test_hosts_have_keys_of_their_own(task, tmp_path):
    class Two(Host):
        versions = {"host": "2 x cpu, no"}

    plain, here, two = (comparison.plan(task, Options(seeds=1, methods=("sam",)), tmp_path / "o", Workers(host=h)) for h in (None, Host(), Two()))  # fmt: skip
    keys = [plan.trials()[0].key for plan in (plain, here, two)]
    assert keys[0] == keys[1] != keys[2]


def test_a_failing_trial_in_this_process(task, tmp_path, monkeypatch):
    plan = comparison.plan(task, options(methods=["sgd-fixed", "sam-grown"]), tmp_path / "out", Workers(host=Host()))
    real = workers.run

    def fail(source, config, *rest):
        if config.row == "sam-grown":
            raise UserError("no")
        return real(source, config, *rest)

    monkeypatch.setattr(workers, "run", fail)
    with pytest.raises(UserError, match=r"^the trial sam-grown, seed 0 failed: no; 1 of 2 trials are kept in "):
        comparison.run(plan)
