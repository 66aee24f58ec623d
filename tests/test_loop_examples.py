"""The recipes for loops of one's own: true costs, the same batches for every method, and an end where one is due."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest

from commands import started
from steppe.lab import compare, sweep
from steppe.lab.crew.jobs import Stopped
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.own_loop import run_loop
from steppe.lab.trials.records import TrialConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"amp": [], "accelerate": ["accelerate"], "lightning": ["lightning"], "trainer_lora": ["transformers", "peft"]}
UPDATES = {"amp": 8, "accelerate": 16, "lightning": 16, "trainer_lora": 50}
MICRO_BATCHES = {"amp": 32}
"""Where an update has several: each of them is a backward pass."""

LEFT = {"trainer_lora": ["runs"]}
"""Folders besides that of the comparison."""

ARMS = {"flat": {"method": "sam", "rho": 1e-30}, "part": {"method": "sam", "fraction": 0.25}}


def path(name):
    with warnings.catch_warnings():  # of hosts, when they are imported
        warnings.simplefilter("ignore")
        for package in NEEDS[name]:
            pytest.importorskip(package)
    return f"{EXAMPLES}/loop_{name}.py:train"


def trained(name, each_epoch=None, **hyperparameters):
    task = path(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = find_task(task).load()
    given = {"method": "sam", "base": "adamw", "hyperparameters": {"lr": 1e-3, "rho": 0.05, **hyperparameters}}
    config = TrialConfig(task="t", seed=0, epochs=2, batch_size=1, versions={}, **given)
    return run_loop(config, loop, each_epoch=each_epoch)


@pytest.mark.parametrize("name", NEEDS)
def test_a_comparison_knows_what_methods_cost(name, tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"settings": ARMS}))
    words = ["-m", "steppe", "compare", "--task", path(name), "--methods", "adamw,sam,flat,part", "--seeds", "1"]
    words += ["--epochs", "1", "--tune", "0", "--no-check", "--jobs", "1", "--device", "cpu", "--out", tmp_path / "out"]
    process = started(*words, "--config", tmp_path / "config.yaml", cwd=tmp_path)
    out, error = process.communicate(timeout=200)
    assert (process.returncode, error) == (0, "")
    assert len(out.partition("\n\n")[0].splitlines()) == 4  # hosts have said nothing
    assert "nan" not in out
    assert {entry.name for entry in tmp_path.iterdir()} == {"config.yaml", "out", *LEFT.get(name, [])}
    records = [json.loads(file.read_text()) for file in (tmp_path / "out/trials").iterdir()]
    found = {record["config"]["arm"] or record["config"]["method"]: record for record in records}
    passes = MICRO_BATCHES.get(name, UPDATES[name])
    assert {row: (record["gradient_evaluations"], record["updates"]) for row, record in found.items()} == {
        "adamw": (passes, UPDATES[name]),
        "sam": (2 * passes, UPDATES[name]),
        "flat": (2 * passes, UPDATES[name]),
        # A quarter of a batch has fewer micro-batches.
        "part": ((passes + UPDATES[name] if name == "amp" else 2 * passes), UPDATES[name]),
    }
    assert all(record["seconds"] > 0 and math.isfinite(record["final"]["test_metric"]) for record in records)
    # A climb that is lost in rounding ends where it begins: the same numbers show that the batches were the same, too.
    for key in ("validation_metric", "validation_loss", "train_loss"):
        assert found["flat"]["curve"][key] == found["adamw"]["curve"][key]
    assert found["flat"]["final"] == found["adamw"]["final"]


@pytest.mark.parametrize("name", NEEDS)
def test_a_trial_that_is_stopped_ends_there(name):
    curves = []

    def stop(curve):
        curves.append(list(curve.validation_metric))
        raise Stopped

    with pytest.raises(Stopped):
        trained(name, stop)
    assert [len(values) for values in curves] == [1]


@pytest.mark.parametrize("name", NEEDS)
def test_a_trial_that_diverges_ends_there(name):
    record = trained(name, lr=1e30)
    assert (record.status, record.diverged.epoch, record.final) == ("diverged", 1, None)
    assert record.updates == UPDATES[name]


def test_a_sweep_prunes_what_lightning_trains(tmp_path):
    grid = {"rho": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 1000]}
    found = sweep(path("lightning"), "sam", grid, seeds=1, epochs=2, jobs=2, prune=True, device="cpu", out=tmp_path)
    states = [point.state for point in found.points]
    assert states[:5] == ["finished"] * 5  # with which others are compared
    assert states[-1] == "pruned"
    assert len(found.points[-1].curve) == 1


def test_processes_share_what_accelerate_loads(tmp_path):
    given = {"seeds": 1, "epochs": 1, "jobs": 1, "processes": 2, "device": "cpu", "out": tmp_path}
    rows = compare(path("accelerate"), methods=["adamw", "sam"], **given).rows
    assert [(row.gradient_evaluations, row.updates) for row in rows] == [(8, 8), (16, 8)]
