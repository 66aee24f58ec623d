"""Trials on a Dask cluster: what they find does not depend on who finds it, nor on workers that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steppe import cli

pytest.importorskip("distributed")

HERE = Path(__file__).parent
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
    return Task(lambda: Model(3, 2), (x, y), (x, y), (x, y), epochs=2, batch_size=10)
"""


def found(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    timed = ("seconds", "relative_time")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


@pytest.mark.parametrize("kills", [0, 2])
def test_a_cluster_finds_what_processes_find_here(tmp_path, kills):
    (tmp_path / "counted").mkdir()
    (tmp_path / "own.py").write_text(TASK.format(folder=str(tmp_path / "counted"), kills=kills))
    words = [
        "compare",
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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "on_a_cluster.py"), *words, "--out", str(there)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "counted").iterdir())) == kills
    assert cli.main([*words, "--out", str(here), "--jobs", "1"]) == 0
    assert found(there) == found(here)
    assert sorted(path.name for path in (there / "trials").iterdir()) == sorted(
        path.name for path in (here / "trials").iterdir()
    )
