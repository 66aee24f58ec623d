from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from steppe.lab.errors import RunError, UserError
from steppe.lab.plans.comparison import load
from steppe.lab.tasks import builtin
from steppe.lab.tasks.builtin import digits, mnist1d
from steppe.lab.tasks.checks import check_fit
from steppe.lab.tasks.evaluation import evaluate
from steppe.lab.tasks.sources import find_task
from steppe.lab.tasks.splits import batches, size
from steppe.lab.tasks.task import Task

X, Y = torch.randn(20, 3), torch.arange(20) % 2


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


class Lengthless(Dataset):
    def __len__(self):
        raise NotImplementedError

    def __getitem__(self, index):
        return X[index], Y[index]


class Broken(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise KeyError("no such file")


class Single(Broken):
    def __getitem__(self, index):
        return torch.zeros(3)


def task(**changes):
    given = {
        "model": lambda: nn.Linear(3, 2),
        "train": (X, Y),
        "validation": (X + 1e-3, Y),
        "test": (X - 1e-3, Y),
    }
    return Task(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": nn.Linear(3, 2)},
            r"model must be a function that makes a new model, got a model; make it inside the function: "
            r"model=lambda: nn.Sequential\(...\), or of a pretrained one model=lambda: copy.deepcopy\(net\)",
        ),
        ({"model": 3}, "model must be a function, got int"),
        ({"loss": "mse"}, "loss must be a function, got str"),
        ({"metric": None}, "metric must be a function, got NoneType"),
        ({"train": X}, r"train must be a pair of tensors \(x, y\) or a torch Dataset, got Tensor"),
        ({"train": (X, [1, 2])}, r"train must be a pair of tensors \(x, y\), got 2 parts: Tensor, list"),
        ({"train": [X, Y]}, r"train must be a tuple \(x, y\), got a list"),
        ({"test": (X, Y[:7])}, r"x and y of test must have the same first dimension, got shapes \(20, 3\) and \(7,\)"),
        ({"validation": Endless()}, "validation must be a map-style Dataset with a length, got Endless"),
        ({"validation": Lengthless()}, "validation must be a map-style Dataset with a length, got Lengthless"),
        ({"train": (X[:1], Y[:1])}, "train needs at least 2 examples, got 1"),
        ({"test": (X[:, :2], Y)}, "x must have the same shape in every split .* 'test': .2,."),
        ({"metric_name": " "}, "metric_name must be a text, got ' '"),
        ({"higher_is_better": "yes"}, "higher_is_better must be True or False, got 'yes'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
    ],
)
def test_wrong_tasks(changes, message):
    with pytest.raises(UserError, match=f"^Task: {message}"):
        task(**changes)


def failing(*_):
    raise ValueError("out of luck")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": Broken()},
            r"reading a batch of training examples failed with KeyError: 'no such file' \(.*line \d+\)",
        ),
        (
            {"train": Single()},
            r"Task: a batch is a pair \(inputs, targets\) or a mapping with 'labels', got a Tensor; .* forward=lambda",
        ),
        ({"model": failing}, "making the model failed with ValueError: out of luck"),
        ({"model": lambda: 3}, "Task: model must return a torch.nn.Module, got int"),
        ({"model": nn.ReLU}, "Task: the model has no parameter to train"),
        ({"model": lambda: nn.Linear(4, 2)}, r"the model failed on inputs of shape \(20, 3\) with RuntimeError: mat1"),
        ({"model": lambda: nn.LSTM(3, 2)}, "Task: the model must return a tensor, got tuple"),
        (
            {"model": lambda: nn.Linear(3, 1)},
            r"the loss failed on outputs of shape \(20, 1\) and targets of shape \(20,\)",
        ),
        ({"loss": failing}, "the loss failed on .* with ValueError: out of luck"),
        ({"loss": lambda o, t: o.sum(1)}, r"Task: the loss must be a scalar tensor, got shape \(20,\) on inputs"),
        ({"loss": lambda o, t: 1.0}, "Task: the loss must be a scalar tensor, got float"),
        ({"loss": lambda o, t: o.detach().sum()}, "Task: the loss does not depend on the model's parameters"),
        ({"metric": failing}, "the metric .failing. failed on the validation split with ValueError: out of luck"),
        ({"metric": lambda o, t: "good"}, "the metric .metric. failed .* it must return a number, got str"),
        ({"metric": lambda o, t: o}, "the metric .metric. failed .* it must return a number, got Tensor"),
    ],
)
def test_tasks_that_do_not_fit_together(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_fit(task(**changes))


def test_checking_the_fit_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_fit(task())
    assert torch.equal(torch.rand(3), expected)


def test_tensors_and_datasets_give_the_same_examples():
    for split in ((X, Y), TensorDataset(X, Y)):
        assert size(split) == 20
        read = list(batches(split, 8, torch.Generator().manual_seed(1)))
        assert [len(x) for x, _ in read] == [8, 8, 4]
        assert sorted(torch.cat([x for x, _ in read])[:, 0].tolist()) == sorted(X[:, 0].tolist())
        plain = list(batches(split, 8))
        assert torch.equal(torch.cat([y for _, y in plain]), Y)
    model = nn.Linear(3, 2)
    assert evaluate(model, task(), (X, Y)) == pytest.approx(evaluate(model, task(), TensorDataset(X, Y)))


def test_mnist1d():
    from mnist1d.data import get_dataset_args, make_dataset

    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    found = mnist1d()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert [size(split) for split in (found.train, found.validation, found.test)] == [4000, 1000, 1000]
    usual = make_dataset(get_dataset_args())
    assert np.allclose(found.train[0], usual["x"], atol=1e-6)
    assert found.test[1].tolist() == usual["y_test"].tolist()
    assert abs(float(found.validation[0].std()) - 1) < 0.05
    known = {tuple(row) for split in (found.train, found.test) for row in split[0].tolist()}
    assert not any(tuple(row) in known for row in found.validation[0].tolist())
    check_fit(found)


@pytest.fixture
def drawing(monkeypatch):
    """How often examples were drawn, which are few here, and kept nowhere yet."""
    drawn = []
    arrays = {"x": np.ones((4, 40)), "y": np.arange(4), "x_test": np.zeros((2, 40)), "y_test": np.arange(2)}
    monkeypatch.setattr("mnist1d.data.make_dataset", lambda arguments: drawn.append(arguments.seed) or arrays)
    builtin._draw.cache_clear()
    yield drawn
    builtin._draw.cache_clear()


def test_mnist1d_is_drawn_once(drawing, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = mnist1d()
    assert drawing == [42, 43]
    builtin._draw.cache_clear()
    again = mnist1d()
    assert drawing == [42, 43]
    assert all(torch.equal(one, two) for one, two in zip(first.train, again.train, strict=True))
    for path in (tmp_path / "steppe").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    builtin._draw.cache_clear()
    mnist1d()
    assert drawing == [42, 43, 42, 43]


def test_mnist1d_is_drawn_where_nothing_can_be_kept(drawing, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert size(mnist1d().train) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    builtin._draw.cache_clear()
    assert size(mnist1d().train) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_digits():
    found = digits()
    splits = (found.train, found.validation, found.test)
    assert [size(split) for split in splits] == [1000, 297, 500]
    assert all(float(x.min()) >= 0 and float(x.max()) == 1 for x, _ in splits)
    assert all(int(torch.bincount(y).min()) >= 0.08 * len(y) for _, y in splits)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in found.model().modules())
    check_fit(found)


def test_a_task_of_the_users_own(tiny):
    source = find_task(tiny)
    assert source.name == "tiny.py:task"
    assert load(source).batch_size == 8
    assert load(find_task(str(Path(__file__).parents[2] / "examples/own_task.py") + ":spirals")).metric_name


def top_level_task() -> Task:
    return task()


def test_a_function_of_the_callers_file():
    assert find_task(top_level_task).name == "test_compare_tasks.py:top_level_task"


@pytest.mark.parametrize("function", [lambda: task(), len, Task.__post_init__])
def test_a_function_that_workers_cannot_find(function):
    with pytest.raises(UserError, match=r"^the task must be a name or a function at the top level of a file"):
        find_task(function)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist", "unknown task 'mnist'; did you mean 'mnist1d'. known: mnist1d, .*digits, or FILE.py:FUNCTION"),
        ("a.py", "the task 'a.py' names no function; write a.py:FUNCTION"),
        ("a.py:", "the task 'a.py:' names no function; write a.py:FUNCTION"),
        ("no/such/file.py:task", "the task file 'no/such/file.py' does not exist; name an existing one"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UserError, match=f"^{message}"):
        find_task(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def task(:\n", r"the task file '.*mine.py' is not valid Python: SyntaxError: .*\(mine.py, line 1\)"),
        (
            "import torch\nimport no_such_thing\ndef task(): pass",
            r"importing .* No module named .* \(mine.py, line 2\)",
        ),
        (
            "\nraise SystemExit('stop')\ndef task(): pass",
            r"importing .* failed with SystemExit: stop \(mine.py, line 2\)",
        ),
        (
            "def tasks(): pass\ndef other(): pass",
            "mine.py has no function 'task'; did you mean 'tasks'. known: tasks, other",
        ),
        ("task = 3\ndef made(): pass", "mine.py has no function 'task'; known: made"),
        ("def task():\n    return 3", "mine.py:task must return a steppe.lab.Task, got int"),
        ("def task():\n\n    return 1 / 0", r"mine.py:task failed with ZeroDivisionError: .* \(mine.py, line 3\)"),
        (
            "def task(a, b):\n    return a",
            "mine.py:task failed with TypeError: .*missing 2 required positional arguments",
        ),
        (
            "from steppe.lab import Task\ndef task():\n    return Task(1, 2, 3, 4)",
            "mine.py:task: Task: model must be a function, got int",
        ),
    ],
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        load(find_task(f"{tmp_path / 'mine.py'}:task"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 100_000, "a\nb", "\x1b[31mred", "\ud800"])
def test_a_metric_has_a_name_that_can_be_shown(name):
    x, y = torch.randn(4, 3), torch.arange(4) % 2
    with pytest.raises(UserError, match="metric_name must have at most 60 characters, all of them printable") as caught:
        Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), metric_name=name)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_a_task_that_does_not_fit_names_the_line_of_the_file(task_file):
    name = task_file(
        "def loss(o, t):\n    return o[:, 9].sum()\nreturn Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), loss)"
    )
    with pytest.raises(
        UserError, match=r"^mine.py:task: the loss failed on .* with IndexError: .* \(mine.py, line 8\)$"
    ):
        load(find_task(name))


def test_a_file_that_is_not_python(tmp_path):
    (tmp_path / "mine.txt").write_text("def task(): pass")
    with pytest.raises(UserError, match=r"cannot be imported; it must be a Python file that ends in .py"):
        load(find_task(f"{tmp_path / 'mine.txt'}:task"))


def test_a_file_is_read_anew_however_soon_and_little_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "own.py"
    for value in (1, 2, 3):  # within a second, and of one length
        file.write_text(f"def made():\n    return {value}\n")
        assert find_task(f"{file}:made").make() == value
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_that_cannot_be_read(tiny, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    source = find_task(tiny)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for attempt in (lambda: find_task(tiny), source.load):
        with pytest.raises(UserError, match=r"^the task file '.*tiny.py' cannot be read: Permission denied"):
            attempt()


def test_a_file_that_changes_while_it_is_in_use(tiny):
    source = find_task(tiny)
    path = Path(source.path)
    path.write_text(path.read_text() + "\nchanged = True\n")
    with pytest.raises(RunError, match=r"tiny.py has changed while it was in use; run the command again"):
        source.load()
