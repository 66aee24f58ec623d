"""What a command says of records that do not count any more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steppe.lab.code import reading
from steppe.lab.store import changes, codes, records
from steppe.lab.trials.records import Record

HELPED = """
from helpers import width
"""
OWN = """
import torch
from helpers import width

def mine(parameters, lr: float = 0.1):
    return torch.optim.SGD(parameters, lr)
"""


@pytest.fixture
def compare(tiny, tmp_path, command):
    """Compare SGD with SAM on a task that imports a helper, and say what was said before the trials."""
    file = Path(tiny.partition(":")[0])
    file.write_text(HELPED + file.read_text().replace("batch_size=8", "batch_size=width"))
    (tmp_path / "helpers.py").write_text("width = 8\n")
    (tmp_path / "own.py").write_text(OWN)

    def run(*words, methods="sgd,sam"):
        given = [
            "--task",
            tiny,
            "--base",
            "sgd",
            "--methods",
            methods,
            "--seeds",
            2,
            "--jobs",
            1,
            "--epochs",
            1,
            "--tune",
            0,
        ]
        code, out, error = command("compare", *given, "--out", tmp_path / "out", *words)
        assert (code, error) == (0, "")
        lines = [line for line in out.splitlines() if "before" in line]
        return lines, len(list((tmp_path / "out/trials").iterdir()))

    return run


def test_a_changed_file_is_named(compare, tmp_path):
    assert compare() == ([], 4)
    (tmp_path / "helpers.py").write_text('"""Widths."""\n\nwidth = 8  # a comment\n')
    assert compare() == ([], 4)
    (tmp_path / "helpers.py").write_text("wide = 8\nwidth = wide\n")
    said = ["helpers.py was changed: 4 trials of before do not count and stay where they are"]
    assert compare() == (said, 8)
    assert compare() == ([], 8)
    (tmp_path / "more.py").write_text("wide = 8\n")
    (tmp_path / "helpers.py").write_text("from more import wide\nwidth = wide\n")
    said = ["helpers.py was changed, more.py was added: 8 trials of before do not count and stay where they are"]
    assert compare() == (said, 12)


def test_a_changed_method_of_ones_own_is_named(compare, tmp_path):
    methods = f"sgd,{tmp_path}/own.py:mine"
    assert compare(methods=methods) == ([], 4)
    (tmp_path / "own.py").write_text(OWN.replace("parameters, lr)\n", "parameters, lr, 0.5)\n"))
    said = ["own.py was changed: 2 trials of before do not count and stay where they are"]
    assert compare(methods=methods) == (said, 6)


def test_a_changed_setting_is_said_with_its_row(compare, tmp_path):
    compare()
    (tmp_path / "c.yaml").write_text("settings: {sam: {rho: 0.4}}")
    said = ["rho 0.05 is now 0.4 (sam): 2 trials of before do not count and stay where they are"]
    assert compare("--config", tmp_path / "c.yaml") == (said, 6)
    said = ["epochs 1 is now 2: 4 trials of before do not count and stay where they are"]
    assert compare("--epochs", 2) == (said, 10)


def test_a_changed_version_is_said(compare, tmp_path):
    compare(methods="sgd")
    (path,) = (tmp_path / "out/trials").glob("sgd-1-*.json")
    content = json.loads(path.read_text())
    now = content["config"]["versions"]["torch"]
    content["config"]["versions"]["torch"] = "2.0.1"
    record = Record.model_validate({**content, "key": ""})
    record = record.model_copy(update={"key": record.config.key})
    path.unlink()
    records.write(tmp_path / "out", record)
    said = [f"torch 2.0.1 is now {now}: 1 trial of before does not count and stays where it is"]
    assert compare(methods="sgd") == (said, 3)


def test_a_sweep_says_what_it_does_not_vary(compare, tiny, tmp_path, command):
    def swept(values, *words):
        given = ["sweep", "--task", tiny, "--method", "sam", "--base", "sgd", "--grid", f"rho={values}", "--seeds", 1]
        code, out, error = command(*given, "--jobs", 1, "--out", tmp_path / "swept", *words)
        assert (code, error) == (0, "")
        return [line for line in out.splitlines() if "trials of before" in line]

    assert swept("0.1,0.2", "--epochs", 1) == swept("0.1,0.2,0.3", "--epochs", 1) == []
    (tmp_path / "helpers.py").write_text("width = 4 + 4\n")
    said = ["helpers.py was changed: 3 trials of before do not count and stay where they are"]
    assert swept("0.2", "--epochs", 1) == said
    assert swept("0.2,0.4", "--epochs", 1) == []


@pytest.fixture
def config(record):
    return record("sam", 0, 50.0).config


def test_the_nearest_is_what_is_compared_with_and_only_the_first_differences_are_said(config, record, tmp_path):
    now = config.model_copy(update={"hyperparameters": {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}})
    far = {"hyperparameters": {"a": 5.0, "b": 2.0, "c": 4.0, "d": 5.0, "e": True}, "method_digest": "some 1.0"}
    both = []
    for update in (far, {"hyperparameters": {**now.hyperparameters, "b": 3.0}}):
        before = now.model_copy(update=update)
        both.append(record("sam", 0, 50.0).model_copy(update={"config": before, "key": before.key}))
    records.write(tmp_path, both[0])
    assert changes.since(tmp_path, [now], [now]) == (
        "some 1.0 is now sam, a 5 is now 1 (sam), c 4 is now 3 (sam) and 2 more: "
        "1 trial of before does not count and stays where it is"
    )
    records.write(tmp_path, both[1])
    (tmp_path / "trials" / "sam-0-broken.json").write_text("{")
    assert changes.since(tmp_path, [now], [now]).startswith("b 3 is now 2 (sam): 1 trial")
    assert changes.since(tmp_path, [now.model_copy(update={"seed": 1})], [now]) is None
    assert changes.since(tmp_path, [now], [now, *(one.config for one in both)]) is None


def test_where_files_are_not_known_the_first_is_named(config, record, tmp_path):
    texts = [{"own.py": f"x = {number}".encode()} for number in (1, 2)]
    before, now = (
        config.model_copy(update={"task": "own.py:task", "task_digest": reading.digest(files)}) for files in texts
    )
    records.write(tmp_path, record("sam", 0, 50.0).model_copy(update={"config": before, "key": before.key}))
    assert changes.since(tmp_path, [now], [now]).startswith("own.py, or what it imports, was changed: 1 trial")
    assert codes.read(tmp_path, now.task_digest) == {}
    cell = {"task": "notebook:spirals"}
    now = now.model_copy(update=cell)
    records.write(
        tmp_path,
        record("sam", 0, 50.0).model_copy(
            update={"config": before.model_copy(update=cell), "key": before.model_copy(update=cell).key}
        ),
    )
    assert changes.since(tmp_path, [now], [now]).startswith("spirals of the notebook, or what it uses, was changed: ")
