"""Trials on a Dask cluster: what they find does not depend on who finds it, nor on workers that are killed."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
from storm_of_kills import CLUSTER, QUIETLY

import cells
from commands import end, started, wait_until
from steppe import cli
from steppe.lab import RunError, UserError, compare
from steppe.lab.crew import cluster
from steppe.lab.crew.jobs import Ended, Failed, Job, Lost

distributed = pytest.importorskip("distributed")
Client, KilledWorker = distributed.Client, distributed.scheduler.KilledWorker

TASK = """
import multiprocessing, os, pathlib, signal
import torch
from torch import nn
from steppe.lab import Task

counted = pathlib.Path({folder!r})
x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2


class Model(nn.Linear):
    def forward(self, x):
        if multiprocessing.parent_process() and len(list(counted.glob("*"))) < {kills}:
            (counted / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def task():
    return Task(lambda: Model(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=2, batch_size=10)
"""


def found(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    for row in rows:
        del row["seconds"], row["relative_time"], row["target"]["seconds"]
    return rows


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """That of the scheduler of two workers."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster.py").write_text(CLUSTER)
    there = started(folder / "cluster.py", folder / "address", **QUIETLY)
    try:
        wait_until((folder / "address").exists)
        yield (folder / "address").read_text()
    finally:
        end(there)


@pytest.mark.parametrize("kills", [0, 2])
def test_a_cluster_finds_what_processes_find_here(tmp_path, kills, address):
    (tmp_path / "counted").mkdir()
    (tmp_path / "own.py").write_text(TASK.format(folder=str(tmp_path / "counted"), kills=kills))
    words = [
        "compare",
        "--tune",
        "0",
        "--task",
        f"{tmp_path / 'own.py'}:task",
        "--base",
        "sgd",
        "--methods",
        "sgd,sam",
        "--seeds",
        "3",
    ]
    there, here = tmp_path / "there", tmp_path / "here"
    assert cli.main([*words, "--out", str(there), "--crew", address]) == 0
    assert len(list((tmp_path / "counted").iterdir())) == kills
    assert cli.main([*words, "--out", str(here), "--jobs", "1"]) == 0
    assert found(there) == found(here)
    assert sorted(path.name for path in (there / "trials").iterdir()) == sorted(
        path.name for path in (here / "trials").iterdir()
    )


SLOW = """
import time, torch
from torch import nn
from steppe.lab import Task

x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
y = (x ** 2).sum(1, keepdim=True)


class Model(nn.Linear):
    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)


def task():
    splits = list(zip(torch.split(x, 30), torch.split(y, 30)))
    loss = nn.functional.mse_loss
    return Task(lambda: Model(3, 1), *splits, loss, lambda o, t: float(loss(o, t)), "error", False, batch_size=10)
"""


def numbers(folder):
    """All numbers of all records, without times."""
    found = {}
    for path in folder.rglob("trials/*.json"):
        record = json.loads(path.read_text())
        del record["seconds"], record["curve"]["seconds"]
        found[str(path.relative_to(folder))] = record
    return found


def test_what_a_notebook_defines_travels_there(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = cells.run({}, TASK.format(folder=str(tmp_path), kills=0))["task"]
    there = compare(task, methods=["adamw", "sam"], seeds=1, crew=address, out="there")
    here = compare(task, methods=["adamw", "sam"], seeds=1, jobs=0, out="here")
    assert [record.final for record in there.records] == [record.final for record in here.records]


def test_sweeps_and_tuning_find_the_same_on_a_cluster(tmp_path, address):
    (tmp_path / "slow.py").write_text(SLOW)
    own = ["--task", f"{tmp_path / 'slow.py'}:task", "--base", "sgd"]
    grid = ["--method", "sgd", "--grid", "momentum=0,0.1,0.2,0.3,0.4,0.45,0.5,0.55,0.999", "--prune"]
    commands = {
        "sweep": ["sweep", *own, *grid, "--seeds", "1", "--epochs", "6"],
        "tune": ["compare", *own, "--methods", "sgd,sam", "--seeds", "2", "--tune", "3", "--epochs", "1"],
    }
    for name, words in commands.items():
        assert cli.main([*words, "--crew", address, "--out", str(tmp_path / "there" / name)]) == 0
        assert cli.main([*words, "--jobs", "2", "--out", str(tmp_path / "here" / name)]) == 0
    there, here = numbers(tmp_path / "there"), numbers(tmp_path / "here")
    assert there == here
    assert {path.split("/")[0] for path in here} == set(commands)
    # What looks bad is stopped there too, though a training goes on until it hears of it.
    stopped = [json.loads(path.read_text())["stopped"] for path in (tmp_path / "there/sweep/settings").iterdir()]
    assert 3 <= max(map(len, stopped)) < 6


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--task", "digits", "--methods", "sgd"],
        ["compare", "--task", "digits", "--methods", "sgd", "--tune", "2"],
        ["sweep", "--task", "digits", "--method", "sam"],
        ["bench", "--task", "digits-noise"],
        ["study", "gsam-batch", "--preset", "smoke"],
        ["study", "lightsam", "--preset", "smoke", "--task", "digits"],
        ["study", "adasam-glue", "--preset", "smoke"],
    ],
)
def test_every_command_that_trains_may_do_so_on_a_cluster(words, monkeypatch, tmp_path, capsys):
    def refuse(address):
        raise RunError(f"somebody joins {address}")

    monkeypatch.setattr("steppe.lab.crew.runner.cluster", refuse)
    assert cli.main([*words, "--out", str(tmp_path / "out"), "--crew", "tcp://there:1"]) == 1
    assert capsys.readouterr().err == "steppe: somebody joins tcp://there:1\n"


def test_what_is_interrupted_ends_there_too(tmp_path, address):
    (tmp_path / "slow.py").write_text(SLOW)
    words = [
        "compare",
        "--tune",
        "0",
        "--task",
        f"{tmp_path / 'slow.py'}:task",
        "--base",
        "sgd",
        "--methods",
        "sgd,sam",
        "--seeds",
        "9",
    ]
    command = started("-m", "steppe", *words, "--epochs", "9999", "--out", tmp_path / "out", "--crew", address)
    with Client(address, set_as_default=False) as client:
        try:
            wait_until(lambda: sum(map(len, client.processing().values())) >= 2)
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=60)
        finally:
            end(command)
        assert (command.returncode, said.count("\n")) == (130, 1)
        wait_until(lambda: not any(client.processing().values()))  # else for half an hour
        wait_until(lambda: not any(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n_workers": 0}, r"has no worker; start: dask worker \S+ --nthreads 1$"),
        ({"n_workers": 1, "threads_per_worker": 2}, r"have several threads, .*; start them with --nthreads 1$"),
    ],
)
def test_clusters_that_cannot_be_used(more, message, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    there = distributed.LocalCluster(
        processes=False, protocol="tcp", dashboard_address="127.0.0.1:0", host="127.0.0.1", **more
    )
    with there, pytest.raises((RunError, UserError), match=message), cluster.cluster(there.scheduler_address):
        pass


def future(status, error=None):
    return SimpleNamespace(status=status, exception=lambda: error, result=lambda: ("ended", 7))


@pytest.mark.parametrize(
    ("what", "event"),
    [
        (future("finished"), lambda job: Ended(job, 7)),
        (future("error", KilledWorker("task", None, 3)), lambda job: Lost(job, "KilledWorker", for_good=True)),
        (
            future("error", TypeError("no\npickle")),
            lambda job: Failed(job, "the job could not be sent to a worker: TypeError: no pickle"),
        ),
        (future("lost"), lambda job: Failed(job, "the Dask scheduler is no more, which had the job")),
    ],
)
def test_what_becomes_of_a_job(what, event):
    job = Job("key", "the job", len)
    assert cluster._end(job, what) == event(job)


def test_a_scheduler_that_dies_is_one_line(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.replace("sleep(0.02)", "sleep(0.5)"))
    (tmp_path / "cluster.py").write_text(CLUSTER)
    address, trials = tmp_path / "address", tmp_path / "out" / "trials"
    there = started(tmp_path / "cluster.py", address, **QUIETLY)
    try:
        wait_until(address.exists)
        words = ["sweep", "--task", f"{tmp_path / 'slow.py'}:task", "--base", "sgd", "--grid", "lr=0.01,0.02,0.03,0.04"]
        words += ["--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "out"), "--crew", address.read_text()]
        asked = started("-m", "steppe", *words)
        wait_until(lambda: list(trials.glob("*.json")))
    finally:
        end(there)
    _, said = asked.communicate(timeout=60)
    assert asked.returncode == 1
    assert said.startswith("steppe: the Dask scheduler is no more, which had the trial sam, seed 1000, lr 0.0")
    assert said.count("\n") == 1
