"""The example and the tuning script, as a user runs them but smaller."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tune(monkeypatch):
    spec = importlib.util.spec_from_file_location("tune_script", ROOT / "benchmarks/tune.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tune_script", module)
    spec.loader.exec_module(module)
    return module


def test_the_example(command, tmp_path):
    task = f"{ROOT / 'examples/own_task.py'}:spirals"
    words = ("--methods", "adamw,sam", "--seeds", 1, "--epochs", 2, "--out", tmp_path / "out")
    code, out, error = command("compare", "--task", task, *words)
    assert (code, error) == (0, "")
    assert "No answer yet" in out


def test_the_example_of_schedules(command, tmp_path):
    words = ("--config", ROOT / "examples/schedules.yaml", "--seeds", 1, "--epochs", 2, "--out", tmp_path)
    code, out, error = command("compare", *words)
    assert (code, error) == (0, "")
    assert "sam+grow" in out
    rows = {row["method"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert rows["sam+grow"]["updates"] == 2 * rows["sam"]["updates"] == 80


def test_tuning_uses_other_seeds_and_leaves_the_test_split_alone(tune, tiny, tmp_path, capsys):
    tune.tune(tiny, "sgd", ["sgd", "sam"], 1, 1, 1, tmp_path)
    records = [json.loads(path.read_text()) for path in (tmp_path / "trials").glob("*.json")]
    assert len(records) == 18
    assert {record["config"]["seed"] for record in records} == {1000}
    assert {record["final"]["test_metric"] for record in records} == {None}
    chosen = yaml.safe_load((tmp_path / "fragment.yaml").read_text())["default"]["sgd"]
    best = max(records, key=lambda record: (record["config"]["method"] == "sam", record["final"]["validation_metric"]))
    scores = {
        json.dumps(record["config"]["hyperparameters"], sort_keys=True): record["final"]["validation_metric"]
        for record in records
        if record["config"]["method"] == "sam"
    }
    setting = {name: float(value) for name, value in chosen["sam"].items()}
    assert scores[json.dumps(setting, sort_keys=True)] == best["final"]["validation_metric"]
    assert (tmp_path / "tuning.md").read_text().count("**chosen**") == 2
    assert "--base sgd --seeds 1 --epochs 1 --methods sgd,sam\n" in (tmp_path / "tuning.md").read_text()
    assert "18 trials, 0 of them finished earlier" in capsys.readouterr().out


def test_every_method_has_a_grid_of_nine_around_its_choice(tune):
    for task in ("mnist1d", "digits"):
        for base in ("adamw", "sgd"):
            for grid in tune.grids(task, base).values():
                assert len({tuple(sorted(setting.items())) for setting in grid.settings()}) == 9
                assert grid.lr == tuple(sorted(grid.lr))
    grid = tune.grids("digits", "adamw")["sam"]
    assert grid.edges({"lr": 4e-3, "rho": 0.1}) == []
    assert grid.edges({"lr": 8e-3, "rho": 0.05}) == ["lr", "rho"]


def test_a_setting_that_diverged_once_is_not_chosen(tune, record):
    good, better = [record("sam", 0, 60.0)], [record("sam", 0, 90.0), record("sam", 1, None)]
    assert tune.choose([good, better], True) == 0
    assert tune.choose([[record("sam", 0, 0.2)], [record("sam", 0, 0.1)]], False) == 1
    assert tune.choose([better], True) is None


def test_ties_of_the_metric_are_settled_by_the_loss(tune, record):
    def tied(loss):
        found = record("sam", 0, 60.0)
        return [found.model_copy(update={"final": found.final.model_copy(update={"validation_loss": loss})})]

    for higher in (True, False):
        assert tune.choose([tied(0.5), tied(0.4), tied(0.4)], higher) == 1
