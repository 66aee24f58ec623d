"""The README is true: its code runs, and its table states the defaults."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch

import steppe
from steppe.methods import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_code_runs():
    example, scaled = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["loss"].item() > 0
    names |= {"scaler": torch.amp.GradScaler("cpu"), "loss_fn": torch.nn.functional.cross_entropy}
    before = names["model"].weight.detach().clone()
    exec(scaled, names)
    assert not torch.equal(names["model"].weight, before)


def test_the_table_names_every_method_and_its_defaults():
    rows = re.findall(r"^\| `(\w+)\((\w+)[^)]*?((?:, \w+=[^,)]+)*)\)`", README, re.MULTILINE)
    classes = {getattr(make, "func", make).__name__ for make in METHODS.values()}
    assert {name for name, *_ in rows} == classes
    for name, first, rest in rows:
        parameters = inspect.signature(getattr(steppe, name)).parameters
        assert next(iter(parameters)) == first
        for option in filter(None, rest.split(", ")):
            key, value = option.split("=")
            if value != "...":
                assert parameters[key].default == float(value)
