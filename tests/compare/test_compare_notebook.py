"""Tasks, loops, methods and bases that a notebook has, and no file."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import cells
from steppe.lab import Task, UserError, compare, sweep
from steppe.lab.code.cells import cell_of
from steppe.lab.crew.jobs import Interrupted
from steppe.lab.tasks.sources import find_task

TASK = """
import torch
from torch import nn
from steppe.lab import Task, loop
from steppe import SAM

size = 20

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    return x, (x[:, 0] + 0.5 * torch.randn(60, generator=generator) > 0).long()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)

def tiny():
    x, y = data()
    train, validation, test = zip(torch.split(x, size), torch.split(y, size))
    return Task(Net, train, validation, test, batch_size=8, epochs=3)
"""

METHOD = """
class Wide(SAM):
    def __init__(self, base, rho: float = 0.1):
        super().__init__(base, rho=rho * factor)

factor = 2
"""

LOOP = """
@loop(metric_name="accuracy", higher_is_better=True)
def train(run):
    x, y = data()
    model = Net()
    optimizer = run.optimizer(model)
    for _ in range(5):
        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss
        optimizer.step(closure)
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    run.report(accuracy=accuracy)
    return {"accuracy": accuracy}
"""

USES = """
import dataclasses, enum, functools, math
import numpy as np
import torch
import near

number, words, pair, names = 0.1, "text", (1, (2.0, None)), {"b", "a", "c"}
table = {"one": [1, 2], "two": np.arange(3.0)}
weights = torch.arange(4, dtype=torch.bfloat16)
unused = threading_lock = object()

@dataclasses.dataclass(frozen=True)
class Setting:
    width: int = 3
    tags: dict = dataclasses.field(default_factory=dict)

class Kind(enum.Enum):
    WARM = 1

class Plain:
    "Of no method."
    width = 3

def around(value):
    def inner(x, most=5, *, least=0):
        return x + value + near.shift()
    return inner

added = around(7)
halved = functools.partial(around, value=2)

@functools.lru_cache
def kept():
    return math.pi

def even(n):
    return True if n == 0 else odd(n - 1)

def odd(n):
    return False if n == 0 else even(n - 1)

setting = Setting(4)

def uses():
    return (number, words, pair, names, table, weights, setting, Kind.WARM, Plain, added, halved, kept, odd, np.pi)
"""

CHANGES = {
    "number": "number = 0.2",
    "words": "words = 'texts'",
    "a value within": "pair = (1, (2.5, None))",
    "a set": "names = {'b', 'a'}",
    "an array": "table['two'][1] = 7",
    "a tensor": "weights[0] = 1",
    "the type of a tensor": "weights = weights.float()",
    "an object": "setting = Setting(5)",
    "a class": USES[USES.index("@dataclasses") : USES.index("class Kind")].replace("= 3", "= 2")
    + "setting = Setting(4)",
    "a class without functions": "class Plain:\n    width = 4\n",
    "what a function has around it": "added = around(8)",
    "a default": "added.__defaults__ = (6,)",
    "a default by name": "added.__kwdefaults__ = {'least': 1}",
    "half of a call": "halved = functools.partial(around, value=3)",
    "a helper": "def even(n):\n    return True if n == 0 else not odd(n - 1)",
    "a helper behind a decorator": "@functools.lru_cache\ndef kept():\n    return math.e",
}


@pytest.fixture
def near(tmp_path, monkeypatch):
    """A module of the user's own, beside the notebook."""
    file = tmp_path / "near.py"
    file.write_text("def shift():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("near", None)


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """What a notebook has defined, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return cells.run({}, TASK, METHOD)


def digest(namespace, name="uses"):
    return find_task(namespace[name]).digest


def numbers(found):
    return [(record.config.row, record.config.seed, record.final) for record in found.records]


def test_what_a_notebook_defines_is_the_same_in_every_session(near, tmp_path):
    say = "from steppe.lab.tasks.sources import find_task\nprint(find_task(uses).digest)"
    sessions = [cells.in_a_fresh_session(tmp_path, USES, say, PYTHONHASHSEED=str(seed)) for seed in (1, 2)]
    namespace = cells.run({}, USES)
    assert {text.strip() for text in sessions} == {digest(namespace)}
    cells.run(namespace, USES, "unused = 3")
    assert {text.strip() for text in sessions} == {digest(namespace)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_anything_that_it_uses_makes_it_another(near, change):
    namespace = cells.run({}, USES)
    before = digest(namespace)
    cells.run(namespace, CHANGES[change])
    assert digest(namespace) != before


def test_comments_and_formatting_of_its_cells_do_not_count(near):
    before = digest(cells.run({}, USES))
    commented = "\n".join(f"{line}  # {number}" if line else "# here" for number, line in enumerate(USES.splitlines()))
    assert digest(cells.run({}, commented + "\n")) == before


def test_modules_of_its_folder_count_by_their_content(near):
    namespace = cells.run({}, USES, "def late():\n    import near\n    return near.shift()\n")
    before = digest(namespace), digest(namespace, "late")
    near.write_text("def shift():\n    return 2\n")
    after = digest(namespace), digest(namespace, "late")
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_code_without_text_counts_as_it_was_compiled():
    def session(text):
        namespace = {"__name__": "__main__"}
        exec(compile(text, "<stdin>", "exec"), namespace)
        return namespace

    text = "def help():\n    return 1\ndef uses():\n    return [help() for _ in range(2)]\n"
    assert digest(session(text)) == digest(session("\n\n" + text))
    assert digest(session(text)) != digest(session(text.replace("return 1", "return 2")))


def test_workers_this_process_and_a_file_find_the_same(notebook, tmp_path, capsys):
    asked = {"methods": ["adamw", "sam"], "seeds": 1, "epochs": 2}
    here = compare(notebook["tiny"], jobs=0, out="here", **asked)
    there = compare(notebook["tiny"], jobs=2, out="there", **asked)
    Path("own.py").write_text(TASK)
    of_file = compare("own.py:tiny", jobs=2, out="file", **asked)
    assert numbers(here) == numbers(there) == numbers(of_file)
    assert [record.key for record in here.records] == [record.key for record in there.records]
    assert here.plan.source.name == "notebook:tiny"
    assert capsys.readouterr() == ("", "")


def test_an_executor_carries_it_out_too(notebook):
    asked = {"methods": ["adamw", notebook["Wide"]], "seeds": 1}
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as executor:
        there = compare(notebook["tiny"], crew=executor, out="there", **asked)
    assert numbers(there) == numbers(compare(notebook["tiny"], jobs=0, out="here", **asked))


def test_methods_and_bases_of_cells(notebook):
    cells.run(notebook, "def plain(parameters, lr: float = 0.1):\n    return torch.optim.SGD(parameters, lr)\n")
    asked = {
        "base": notebook["plain"],
        "seeds": 1,
        "settings": {"sam": {"rho": 0.2}, "w": {"method": notebook["Wide"]}},
    }
    found = compare(notebook["tiny"], methods=[notebook["plain"], "sam", notebook["Wide"], "w"], jobs=2, **asked)
    by_row = {record.config.row: record for record in found.records}
    assert by_row["Wide"].final == by_row["sam"].final == by_row["w"].final != by_row["plain"].final
    assert (by_row["Wide"].config.method, by_row["Wide"].config.base) == ("notebook:Wide", "notebook:plain")
    before = by_row["Wide"].key
    cells.run(notebook, METHOD.replace("= 2", "= 3"))
    again = compare(notebook["tiny"], methods=[notebook["plain"], "sam", notebook["Wide"]], jobs=0, **asked)
    changed = {record.config.row: record for record in again.records}
    assert changed["sam"] == by_row["sam"]
    assert changed["Wide"].key != before
    assert changed["Wide"].final != by_row["Wide"].final


def test_a_loop_of_a_cell_is_compared_and_swept(notebook):
    cells.run(notebook, LOOP)
    there = compare(notebook["train"], methods=["sgd", "sam"], seeds=1, jobs=1, out="there")
    here = compare(notebook["train"], methods=["sgd", "sam"], seeds=1, jobs=0, out="here")
    assert numbers(there) == numbers(here)
    assert (there.plan.metric_name, there.plan.source.name) == ("accuracy", "notebook:train")
    found = sweep(notebook["train"], notebook["Wide"], {"rho": [0.05, 0.1]}, seeds=1, jobs=0)
    assert [point.state for point in found.points] == ["finished", "finished"]
    assert found.command == (
        "steppe.lab.sweep(train, Wide, ['rho=0.05,0.1'], base='adamw', seeds=1, "
        "out='runs/sweep-notebook-train-adamw-Wide-rho')"
    )


def test_the_table_says_how_to_call_it_again(notebook):
    found = compare(notebook["tiny"], methods=["adamw", notebook["Wide"]], seeds=1, epochs=1, jobs=0, keep_weights=True)
    call = "steppe.lab.compare(tiny, methods=['adamw', Wide], base='adamw', seeds=1, epochs=1, keep_weights=True, "
    assert found.plan.command == f"{call}out='runs/notebook-tiny-adamw')"
    assert f"    {found.plan.command}\n" in Path("runs/notebook-tiny-adamw/table.md").read_text()
    wide = {"w": {"method": notebook["Wide"], "rho": 0.3, "schedules": {"lr": "constant"}}}
    found = compare(notebook["tiny"], methods=["adamw", "w"], settings=wide, seeds=1, epochs=1, jobs=0)
    assert "'method': Wide" in found.plan.command
    again = eval(found.plan.command, {**notebook, "steppe": __import__("steppe.lab")})
    assert again.records == found.records


def test_ctrl_c_keeps_what_was_finished(notebook):
    stops = """
import os, pathlib, signal

class Stops(SAM):
    def __init__(self, base, rho: float = 0.05):
        super().__init__(base, rho=rho)
        if any(pathlib.Path("out/trials").glob("*.json")) and not pathlib.Path("pressed").exists():
            pathlib.Path("pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)
"""
    cells.run(notebook, stops)
    asked = {"methods": ["adamw", notebook["Stops"]], "seeds": 2, "jobs": 0, "out": "out"}
    with pytest.raises(Interrupted, match=r"^interrupted: 1 of 4 trials are kept in out; the same command continues"):
        compare(notebook["tiny"], **asked)
    (kept,) = Path("out/trials").glob("*.json")
    written = kept.stat().st_mtime_ns
    assert len(compare(notebook["tiny"], **asked).records) == 4
    assert kept.stat().st_mtime_ns == written


def test_without_cloudpickle_it_says_what_to_do(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    remedy = (
        r"^the module 'cloudpickle' is not installed; install it with: pip install \"steppe\[compare\]\", or in a "
        r"checkout: pip install \"\.\[compare\]\"; or train in this process, with jobs=0$"
    )
    with pytest.raises(UserError, match=remedy):
        compare(notebook["tiny"], methods=["adamw"], seeds=1, jobs=1)
    assert len(compare(notebook["tiny"], methods=["adamw"], seeds=1, jobs=0).records) == 1


def test_what_cannot_be_sent_can_be_trained_here(notebook):
    cells.run(
        notebook, "import threading\nclass Held(Net):\n    lock = threading.Lock()\n    def held(self):\n        pass\n"
    )
    cells.run(notebook, "def seen():\n    Held()\n    return tiny()\n")
    said = (
        r"^the task seen cannot be sent to worker processes \(TypeError: cannot pickle '_thread.lock' object\); make "
        r"what it uses within it, or train in this process, with jobs=0$"
    )
    with pytest.raises(UserError, match=said):
        compare(notebook["seen"], methods=["adamw"], seeds=1, jobs=1)
    assert len(compare(notebook["seen"], methods=["adamw"], seeds=1, jobs=0).records) == 1


def test_what_has_no_content_is_named(notebook):
    notebook["lock"] = threading.Lock()
    cells.run(notebook, "def inner():\n    with lock:\n        return tiny()\ndef outer():\n    return inner()\n")
    said = (
        r"^the task outer uses 'lock', a lock, which has no content to go by \(cannot pickle '_thread.lock' object\); "
        r"make that within it, or put both into a file and give FILE.py:NAME$"
    )
    with pytest.raises(UserError, match=said):
        compare(notebook["outer"], jobs=0)
    cells.run(notebook, "class Locked(SAM):\n    def __init__(self, base):\n        lock\n")
    with pytest.raises(UserError, match=r"^methods\.0: the method Locked uses 'lock', a lock"):
        compare(notebook["tiny"], methods=[notebook["Locked"]], jobs=0)


def test_failures_name_the_line_of_the_cell(notebook):
    cells.run(notebook, "def fails():\n    task = tiny()\n    return task.nothing\n")
    with pytest.raises(
        UserError, match=r"^notebook:fails failed with AttributeError: .*\(fails, line 3 of its cell\)$"
    ):
        compare(notebook["fails"], jobs=0)
    cells.run(notebook, "def train(run):\n    optimizer = run.optimizer(Net())\n    return 1 / 0\n")
    for jobs in (0, 1):
        with pytest.raises(
            UserError, match=r"ZeroDivisionError: division by zero \(train, line 3 of its cell\); 0 of 1"
        ):
            compare(notebook["train"], methods=["adamw"], seeds=1, jobs=jobs)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"crew": "tcp://nowhere:1"}, "jobs=0 trains in this process: leave crew, timeout and processes out, or jobs"),
        ({"timeout": 3}, "jobs=0 trains in this process: leave crew, timeout and processes out, or jobs"),
        ({"processes": 2}, "jobs=0 trains in this process: leave crew, timeout and processes out, or jobs"),
        ({"methods": ["notebook:never"]}, "the method 'notebook:never' was a function or class of a notebook; give"),
        (
            {"task": "notebook:tiny"},
            "the task 'notebook:tiny' was a function or class of a notebook; give that itself, in",
        ),
        ({"jobs": -1}, "jobs: must be greater than or equal to 1, got -1"),
        ({"jobs": False}, "jobs: must be a valid integer, got False"),
    ],
)
def test_what_is_refused(notebook, asked, message):
    with pytest.raises(UserError, match=f"^{message}"):
        compare(**{"task": notebook["tiny"], "jobs": 0, **asked})


def test_an_executor_has_nothing_to_do_with_no_jobs(notebook):
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(UserError, match=r"^jobs=0 trains in this process, without crew"),
    ):
        compare(notebook["tiny"], jobs=0, crew=executor)


def test_a_function_needs_a_name(notebook):
    cells.run(notebook, "unnamed = lambda: tiny()")
    with pytest.raises(
        UserError, match=r"^the task must have a name, by which records call it; write def, got <lambda>$"
    ):
        compare(notebook["unnamed"], jobs=0)


def test_what_a_worker_process_cannot_make(notebook, near, monkeypatch):
    cells.run(notebook, "import near\ndef moved():\n    return near.shift()\n")
    sent = pickle.dumps(find_task(notebook["moved"]))
    assert pickle.loads(pickle.dumps(pickle.loads(sent))).make() == 1
    sys.modules.pop("near")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(near.parent)])
    near.unlink()
    said = (
        r"^a worker process cannot make the task moved: ModuleNotFoundError: No module named 'near' .*; train in this"
    )
    with pytest.raises(UserError, match=said):
        pickle.loads(sent).make()


def test_what_a_file_has_is_no_cell(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("class Held:\n    def work(self):\n        pass\n\ndef task():\n    pass\n")
    namespace = {"__name__": "__main__"}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    assert cell_of(namespace["task"], "task") is None
    assert cell_of(namespace["Held"], "method") is None
    assert cell_of(Task, "method") is None
    assert find_task(namespace["task"]).path == str(script)
    assert json.dumps(find_task(namespace["task"]).name) == '"script.py:task"'
