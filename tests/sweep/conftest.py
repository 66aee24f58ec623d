"""What the tests of `steppe.lab` share: a task that keeps count of its trainings, and databases."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commands import commands
from steppe import cli
from steppe.lab.crew.here import Here
from steppe.lab.plans import options as config
from steppe.lab.plans.sweep import SweepPlan, plan
from steppe.lab.sweeping.sweeping import Sweep, run

_COUNTED = itertools.count()

TASK = """
import multiprocessing, os, time
from pathlib import Path
import torch
from torch import nn
from steppe.lab import Task

class Net(nn.Sequential):
    def forward(self, x):
        time.sleep({pause})
        return super().forward(x)

def model():
    if multiprocessing.parent_process() is not None:  # a worker process
        with Path(__file__).with_name("trained.txt").open("a") as file:
            file.write(f"{{os.getpid()}}\\n")
    {also}
    return Net(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

def task():
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    y = (x ** 2).sum(1, keepdim=True)
    splits = list(zip(torch.split(x, 30), torch.split(y, 30)))
    loss = nn.functional.mse_loss
    return Task(model, *splits, loss, lambda o, t: float(loss(o, t)), "squared error", False, batch_size=10, epochs=3)
"""


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., str]:
    """Write a task, quadratic and small; every pass takes so many seconds, and making a model does something else too."""

    def write(pause: float = 0.0, also: str = "pass") -> str:
        path = tmp_path / "square.py"
        path.write_text(TASK.format(pause=pause, also=also))
        return f"{path}:task"

    return write


@pytest.fixture
def planned(tmp_path: Path, task) -> Callable[..., SweepPlan]:
    """Plan a sweep of SAM over SGD."""

    def make(grid=("rho=0.05,0.1", "lr=0.01,0.1"), **more) -> SweepPlan:
        fields = {"base": "sgd", "seeds": 1, "out": str(tmp_path / "out"), "jobs": 1}
        fields |= {key: more.pop(key) for key in list(more) if key in config.Options.model_fields}
        asked = config.from_flags(fields).model_copy(update={"methods": (more.pop("method", "sam"),)})
        source = fields["task"] if "task" in fields else task()
        return plan(source, grid, asked, **more)

    return make


@pytest.fixture
def alone() -> Callable[[SweepPlan], Sweep]:
    """Carry out a sweep in this process."""

    return lambda made: run(made, joined=Here)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; workers are real processes all the same."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``python -m steppe`` as a process group of its own, which is killed in the end."""
    with commands() as begin:
        yield begin


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server on a free port of this machine, for the tests alone."""
    pytest.importorskip("psycopg")
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(homes[-1]) if homes else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp())  # short: a socket's name has room for about a hundred letters
    before: list[str] = []
    if os.geteuid() == 0:  # the server refuses root
        shutil.chown(folder, "nobody")
        before = ["setpriv", "--reuid=nobody", "--regid=65534", "--clear-groups"]

    def call(program: str, *words: str) -> None:
        line = [*before, str(Path(found).with_name(program)), "-D", str(folder / "data"), *words]
        subprocess.run(line, check=True, timeout=60, stdout=subprocess.DEVNULL, cwd=folder)

    try:
        call("initdb", "--auth=trust", "--no-sync", "-U", "steppe")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql+psycopg://steppe@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is there for the test alone."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'copy.db'}"
    import psycopg

    server, name = request.getfixturevalue("postgres"), f"test{next(_COUNTED)}"
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres", f"/{name}")
