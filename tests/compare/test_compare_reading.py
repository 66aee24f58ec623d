"""Files and settings of users: whatever is wrong with one is a line, before anything is trained."""

from __future__ import annotations

import json
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steppe.lab import UserError
from steppe.lab.plans.options import Options, from_file
from steppe.lab.store import records
from steppe.lab.trials.optimizers import check_hyperparameters
from steppe.lab.trials.records import Record

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = {
    "an alias bomb": (BOMB, "more than 100000 values once aliases are followed"),
    "an alias to itself": ("seeds: &a [*a]", "an alias to what it stands in"),
    "a date that is none": ("base: 2001-13-01", r":1: not valid YAML: month must be in 1..12"),
    "no number": ("epochs: 1\nseeds: !!int x", r":2: not valid YAML: invalid literal"),
    "brackets": ("[" * 3000, ":1: more than 50 levels deep"),
    "a key that cannot be one": ("? {a: 1}\n: 2", ":1: not valid YAML: "),
    "an object": ("base: !!python/object/apply:os.system ['true']", ":1: not valid YAML: could not determine"),
    "too much": ("#" * 1_000_001, "it has more than 1000000 bytes"),
    "a control character": ("base: \x07", "not valid YAML: "),
    "too many seeds": ("seeds: 1000000000", ":1: seeds: must be less than or equal to 10000, got 1000000000"),
    "too many epochs": ("epochs: 1000000000000000000", ":1: epochs: must be less than or equal to 1000000"),
    "too many updates": ("updates: 1000000000", ":1: updates: must be less than or equal to 1000000"),
    "a huge number": (f"epochs: 1{'0' * 400}", ":1: epochs: must be less than or equal to 1000000"),
    "a field with an end of line": ('"\\n": 1', r":1: \?: unknown field"),
    "no time": ("timeout: 0", ":1: timeout: must be greater than 0"),
    "an arm of dots": ("settings: {..: {method: sam}}", "the name of an arm must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_file_is_a_line(tmp_path, name):
    text, message = WRONG[name]
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        from_file(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    path = {"a pipe": tmp_path / "pipe", "a device": "/dev/zero", "a folder": tmp_path}[kind]
    if kind == "a pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read: it is no file"):
        from_file(type(tmp_path)(path))


def test_aliases_may_be_used(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("settings:\n  one: &one {method: sam, rho: 0.1}\n  two: {<<: *one, rho: 0.2}\n")
    assert {name: entry.hyperparameters for name, entry in from_file(path).settings.items()} == {
        "one": {"rho": 0.1},
        "two": {"rho": 0.2},
    }


def answer(call, *arguments):
    """Return what a call returns, or the error that it has for the user."""
    try:
        return call(*arguments)
    except UserError as error:
        return str(error)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
names = st.sampled_from([*Options.model_fields, "sam", "lr", "kind", "nonsense"]) | st.text(max_size=4)
trees = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
relaxed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(content=st.dictionaries(names, trees, max_size=5), cut=st.integers(0, 400), noise=st.text(max_size=5))
def test_any_file_is_read_or_refused_in_a_line(tmp_path, content, cut, noise):
    path = tmp_path / "options.yaml"
    text = yaml.safe_dump(content)
    for given_text in (text, text[:cut] + noise + text[cut:]):
        path.write_text(given_text, encoding="utf-8", errors="surrogatepass")
        found = answer(from_file, path)
        assert isinstance(found, Options) or ("\n" not in found and str(path) in found)


@relaxed
@given(
    changes=st.dictionaries(
        st.sampled_from([*Record.model_fields, "curve.seconds", "final.test_metric"]), trees, max_size=3
    )
)
def test_any_record_is_whole_or_refused_in_a_line(record, tmp_path, changes):
    made = record("sam", 0, 66.5)
    content = json.loads(made.model_dump_json())
    for name, value in changes.items():
        *path, last = name.split(".")
        place = content
        for part in path:
            place = place[part] if isinstance(place.get(part), dict) else {}
        place[last] = value
    file = records.record_path(tmp_path, made.config)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, default=str))
    found = answer(records.read, tmp_path, made.config)
    if isinstance(found, str):
        assert "\n" not in found
        assert str(file) in found
    else:
        assert (found.config, found.status) == (made.config, "finished")
        assert found.final is not None


REFUSED = {
    "one beta": ("adamw", {"lr": 0.1, "betas": (0.9,)}, "adamw refuses lr=0.1, betas="),
    "three betas": ("adamw", {"lr": 0.1, "betas": (0.9, 0.9, 0.9)}, "adamw refuses lr=0.1, betas="),
    "two ways at once": ("sgd", {"lr": 0.1, "foreach": True, "fused": True}, "sgd refuses "),
    "a list for a whole number": ("looksam", {"lr": 0.1, "k": (1.0,)}, "looksam needs a number for 'k', got"),
    "a list of steps": ("sam", {"lr": 0.1, "every": (1.0, 2.0)}, "sam: every must be a whole number of steps"),
    "a number for a trigger": ("sam", {"lr": 0.1, "trigger": 1.0}, "sam refuses "),
    "a switch for a number": ("sgd", {"lr": True}, "sgd needs a number for 'lr', got True"),
    "half a step": ("looksam", {"lr": 0.1, "k": 2.5}, "looksam needs a whole number for 'k', got 2.5"),
    "a class without a signature": ("builtins:dict", {}, "the method 'builtins:dict' "),
    "no module": (".:x", {}, "the method '.:x' cannot be imported: "),
    "the end of the process": ("sys:exit", {}, "sys:exit refuses its own defaults: SystemExit"),
    "the end of the process at once": ("os:_exit", {}, "os:_exit "),
    "no parameters": ("time:time", {}, "the method 'time:time' "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_is_tried_before_anything_trains(name):
    method, values, message = REFUSED[name]
    with pytest.raises(UserError) as caught:
        check_hyperparameters(method, "sgd", values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def counting(params, lr, k=3):
    assert type(k) is int
    import torch

    return torch.optim.SGD(params, lr=lr)


def test_a_whole_number_is_one_for_a_users_method():
    check_hyperparameters(f"{__name__}:counting", "sgd", {"lr": 0.1, "k": 2.0})
