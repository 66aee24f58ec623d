"""`steppe measure`: kept weights of a comparison, checkpoints, and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from steppe import measure
from steppe.lab import UserError
from steppe.lab.comparing import comparison
from steppe.lab.measuring import measuring
from steppe.lab.measuring.measuring import Request, load_weights
from steppe.lab.plans.options import Options, from_flags
from steppe.lab.plans.workers import Workers
from steppe.lab.store import records
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.host import Host
from steppe.lab.trials.records import Record

FILES = {"report.md", "report.json", "slices.png", "spectrum.png"}
FAST = ("--budget", 90)

OBJECTIVE = """
import torch
from torch import nn
from steppe.measure import Objective

torch.manual_seed(3)
x, y = torch.randn(20, 3), torch.arange(20) % 2

def made(mode=False):
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train(mode)
    return Objective(model, nn.functional.cross_entropy, (x, y), batch_size=8)

def objective():
    return made()

def training():
    return made(True)

def number():
    return 3

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * 3 * ctx.saved_tensors[0] ** 2

class Once(nn.Linear):
    def forward(self, x):
        return Cube.apply(super().forward(x))

def once():
    return Objective(Once(3, 2), nn.functional.cross_entropy, (x, y))
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A comparison whose weights were kept: two rows of two seeds."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.py").write_text(
        "import torch\nfrom torch import nn\nfrom steppe.lab import Task\n\n"
        "def task():\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    x = torch.randn(60, 4, generator=generator)\n"
        "    y = (x[:, 0] > 0).long()\n"
        "    train, validation, test = zip(torch.split(x, 20), torch.split(y, 20))\n"
        "    return Task(lambda: nn.Linear(4, 2), train, validation, test, batch_size=8, epochs=2)\n"
    )
    settings = {"sam+wide": {"method": "sam", "lr": 0.1, "rho": 0.2}}
    options = {"base": "sgd", "methods": ["sgd", "sam+wide"], "settings": settings, "seeds": 2, "keep_weights": True}
    plan = comparison.plan(f"{folder / 'tiny.py'}:task", from_flags(options), folder / "out", Workers(host=Host()))
    comparison.run(plan)
    return plan


@pytest.fixture
def checkpoint(tmp_path):
    """Weights of a linear model, in a file."""

    def write(content=None, name="w.pt"):
        torch.manual_seed(5)
        path = tmp_path / name
        torch.save(nn.Linear(4, 2).state_dict() if content is None else content, path)
        return path

    return write


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OBJECTIVE)
    return lambda name: f"{path}:{name}"


def values(folder):
    return {name: one["value"] for name, one in json.loads((folder / "report.json").read_text())["measures"].items()}


# Kept weights


def test_the_weights_of_a_run(kept, command):
    code, text, error = command(
        "measure", kept.out, *FAST, "--seeds", 2, "--examples", 12, "--batch-size", 5, "--lr", 0.1
    )
    assert (code, error) == (0, "")
    folder = kept.out / "measure"
    names = ["sgd-0", "sam+wide-0", "sgd-1", "sam+wide-1"]
    assert {path.name for path in folder.iterdir()} == {*names, "table.md"}
    assert all({path.name for path in (folder / name).iterdir()} == FILES for name in names)
    assert f"written to {folder}" in text
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (folder / "table.md").read_text().splitlines()
    ]
    assert table[0] == ["measure", "sgd, seed 0", "sam+wide, seed 0", "sgd, seed 1", "sam+wide, seed 1"]
    task = kept.source.load()
    x, y = task.train
    for column, trial in enumerate(kept.trials(), start=1):
        model = task.model()
        model.load_state_dict(torch.load(records.weights_path(kept.out, trial), weights_only=True))
        expected = measure.report(model.eval(), task.loss, (x[:12], y[:12]), batch_size=5, budget=90, lr=0.1)
        found = values(folder / f"{trial.row}-{trial.seed}")
        assert found == {name: one.value for name, one in expected.measures.items()}
        assert [line[column] for line in table[2:]] == [
            f"{expected.loss:.4g}", *(f"{one.value:.4g}" for one in expected.measures.values())
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], {"sgd-0", "sam+wide-0"}),
        (["--methods", "sam+wide"], {"sam+wide-0"}),
        (["--methods", "sam+wide, sgd", "--seeds", 1], {"sgd-0", "sam+wide-0"}),
        (["--methods", "sgd", "--seeds", 9], {"sgd-0", "sgd-1"}),
    ],
)
def test_rows_and_seeds_of_a_run(words, names, kept, command, tmp_path):
    code, _, error = command("measure", kept.out, *FAST, *words, "--out", tmp_path / "o")
    assert (code, error) == (0, "")
    assert {path.name for path in (tmp_path / "o").iterdir() if path.is_dir()} == names


def test_splits_of_a_run(kept):
    task = kept.source.load()
    found = {}
    for split in measuring.SPLITS:
        (report,) = measuring.measure_run(kept.out, Request(split=split, budget=90.0), ["sgd"]).values()
        trial = kept.trials()[0]
        model = task.model()
        model.load_state_dict(torch.load(records.weights_path(kept.out, trial), weights_only=True))
        x, y = getattr(task, split)
        assert report.loss == pytest.approx(task.loss(model(x), y).item(), rel=1e-6)
        found[split] = report.loss
    assert len(set(found.values())) == 3
    assert report.examples == 20


def test_a_run_with_weights_lost_on_the_way(kept, tmp_path):
    folder = shutil.copytree(kept.out, tmp_path / "copy")
    next((folder / "weights").glob("sgd-0-*")).unlink()
    assert list(measuring.measure_run(folder, Request(budget=90.0))) == [("sam+wide", 0)]
    with pytest.raises(
        UserError, match="holds no weights of these trials; run the comparison again with --keep-weights"
    ):
        measuring.measure_run(folder, Request(budget=90.0), ["sgd"])


# Checkpoints


def test_a_checkpoint_of_a_built_in(command, tmp_path):
    model = find_task("digits").load().model()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    words = ("--checkpoint", tmp_path / "w.pt", "--examples", 30, "--split", "test", "--out", tmp_path / "o")
    code, text, error = command("measure", "digits", *FAST, *words)
    assert (code, error) == (0, "")
    x, y = find_task("digits").load().test
    expected = measure.report(model.eval(), nn.functional.cross_entropy, (x[:30], y[:30]), budget=90)
    assert values(tmp_path / "o") == {name: one.value for name, one in expected.measures.items()}
    assert f"loss {expected.loss:.5g} over 30 examples in 1 batches" in text
    assert {path.name for path in (tmp_path / "o").iterdir()} == FILES


def test_a_checkpoint_of_the_users_task(kept, checkpoint, command, tmp_path):
    task, path = kept.source.load(), checkpoint()
    code, _, error = command(
        "measure", f"{kept.source.path}:task", *FAST, "--checkpoint", path, "--out", tmp_path / "o"
    )
    assert (code, error) == (0, "")
    model = task.model()
    model.load_state_dict(torch.load(path, weights_only=True))
    expected = measure.report(model.eval(), task.loss, task.train, budget=90)
    assert values(tmp_path / "o") == {name: one.value for name, one in expected.measures.items()}


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_an_objective_of_the_user(with_checkpoint, own, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = find_task(own("objective")).make()
    words = []
    if with_checkpoint:
        with torch.no_grad():
            made.model[0].weight.mul_(2.0)
        torch.save(made.model.state_dict(), tmp_path / "w.pt")
        words = ["--checkpoint", "w.pt"]
    code, text, error = command("measure", own("objective"), *FAST, *words)
    assert (code, error) == (0, "")
    assert "in 3 batches" in text  # the objective's own
    if with_checkpoint:
        expected = measure.report_of(made, budget=90)
        assert values(tmp_path / "measure") == {name: one.value for name, one in expected.measures.items()}


def test_measuring_twice_gives_the_same(kept, checkpoint):
    path, task = checkpoint(), f"{kept.source.path}:task"
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = measuring.measure_checkpoint(task, path, Request(budget=90.0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = measuring.measure_checkpoint(task, path, Request(budget=90.0))
    assert {n: e.value for n, e in one.measures.items()} == {n: e.value for n, e in other.measures.items()}


def test_training_data_is_measured_without_augmentation(task_file, tmp_path):
    name = task_file(
        "plain = torch.arange(60.).view(20, 3) / 60\n"
        "class Noisy(torch.utils.data.TensorDataset):\n"
        "    def __getitem__(self, i):\n"
        "        return torch.randn(3), y[i]\n"
        "data, other = (plain, y), (plain + 1e-3, y)\n"
        "return Task(lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), Noisy(plain, y), other, data, unaugmented=data)"
    )
    torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), tmp_path / "w.pt")
    train, test = (
        measuring.measure_checkpoint(name, tmp_path / "w.pt", Request(split=split, budget=90.0))
        for split in ("train", "test")
    )
    assert train.loss == test.loss


def test_random_data_is_measured_alike_each_time(task_file, tmp_path):
    name = task_file(
        "class Noisy(torch.utils.data.TensorDataset):\n"
        "    def __getitem__(self, i):\n"
        "        return torch.randn(3), y[i]\n"
        "return Task(lambda: nn.Linear(3, 2), Noisy(y), Noisy(y), Noisy(y))"
    )
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    one, other = (measuring.measure_checkpoint(name, tmp_path / "w.pt", Request(budget=90.0)) for _ in range(2))
    assert one.loss == other.loss


# How weights are put into files

STATE = {"weight": torch.full((2, 4), 0.5), "bias": torch.tensor([1.0, 2.0])}


def worded(word, state=STATE):
    return OrderedDict((word + name, value) for name, value in state.items())


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(STATE, id="alone"),
        *(pytest.param({name: STATE, "epoch": 3}, id=name) for name in ("model", "state_dict", "model_state_dict")),
        *(pytest.param(worded(word), id=word) for word in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")),
        pytest.param({"model": worded("module."), "optimizer": {"state": {}}}, id="model, module."),
        pytest.param({name: value.double() for name, value in STATE.items()}, id="doubles"),
        pytest.param({name: nn.Parameter(value) for name, value in STATE.items()}, id="parameters"),
    ],
)  # fmt: skip
def test_how_checkpoints_are_nested(content, checkpoint):
    model = nn.Linear(4, 2)
    load_weights(model, checkpoint(content))
    assert torch.equal(model.weight, STATE["weight"])
    assert torch.equal(model.bias, STATE["bias"])


@pytest.mark.parametrize("word", ["module.", "module.module.", "_orig_mod.module."])
def test_a_model_whose_own_names_begin_like_that(word, checkpoint):
    model = nn.Module()
    model.module = nn.Linear(4, 2)
    load_weights(model, checkpoint(worded(word)))
    assert torch.equal(model.module.bias, STATE["bias"])


def test_safetensors(tmp_path, monkeypatch):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(STATE, tmp_path / "w.safetensors")
    model = nn.Linear(4, 2)
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.bias, STATE["bias"])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"broken.safetensors' cannot be read: "):
        load_weights(model, tmp_path / "broken.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"needs the package safetensors: pip install safetensors$"):
        load_weights(model, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": STATE["weight"]}, "does not fit the model in 1 places; the first: it lacks 'bias'"),
        ({**STATE, "more": torch.zeros(1)}, "in 1 places; the first: it has 'more', which the model has not"),
        ({**STATE, "bias": torch.zeros(3)}, r"1 places; the first: 'bias' is of shape \(3,\) there and of shape \(2,\) here"),
        ({**STATE, "bias": 3}, r"1 places; the first: 'bias' is a int there and of shape \(2,\) here"),
        (worded("head."), "in 4 places; the first: it lacks 'weight'"),
        ({"module.weight": STATE["weight"], "bias": STATE["bias"]}, "in 2 places; the first: it lacks 'weight'"),
        ({**STATE, "bias": torch.zeros(2, device="meta")}, r"'bias' is without data \(on the meta device\) there$"),
        ({**STATE, "weight": STATE["weight"].to_sparse()}, "fit the model: 'weight' is sparse there$"),
        ({**STATE, "bias": STATE["bias"] + 1j}, "fit the model: 'bias' is complex there$"),
        ({"epoch": 3, "lr": 0.1}, "holds no state_dict, but a dict with 'epoch', 'lr'"),
        ({"model": {}}, "holds no state_dict, but a dict with $"),
        ([1, 2], "holds no state_dict, but a list"),
        (torch.zeros(3), "holds no state_dict, but a Tensor"),
        (nn.Linear(4, 2), "cannot be read: Weights only load failed"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit(content, message, checkpoint):
    model = nn.Linear(4, 2)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=message) as raised:
        load_weights(model, checkpoint(content))
    assert "\n" not in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# What is wrong


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("empty", [], "'empty' is not the folder of a comparison: it has no config.yaml"),
        ("out", ["--methods", "asm"], "--methods: unknown row 'asm'; did you mean 'sam'? known: sgd, sam"),
        ("out", [], "'out' holds no weights of these trials; run the comparison again with --keep-weights"),
        ("out", ["--checkpoint", "w.pt"], "--checkpoint belongs to a task; the folder of a comparison has its own weights"),
        ("out", ["--split", "tran"], "--split: unknown split 'tran'; did you mean 'train'? known: train, validation, test"),
        ("out", ["--examples", "0"], "--examples must be at least 1, got 0"),
        ("out", ["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        ("out", ["--seeds", "0"], "Invalid value for '--seeds': Input should be greater than or equal to 1"),
        ("no/such", [], "unknown task 'no/such'; known: mnist1d, mnist1d-conv, digits, or FILE.py:FUNCTION, or the folder of a comparison"),
        ("no.py:such", [], "the task file 'no.py' does not exist; name "),
        ("own.py:objectiv", [], "own.py has no function 'objectiv'; did you mean 'objective'?"),
        ("own.py:number", [], "own.py:number must return a steppe.lab.Task or a steppe.measure.Objective, got int"),
        ("own.py:training", [], "own.py:training failed with ValueError: Cannot measure: Dropout '1' is in training mode, so the loss is random. Call model.eval() first."),
        ("own.py:objective", ["--budget", "81"], "budget must be at least 82 gradients, got 81.0."),
        ("own.py:objective", ["--budget", "nan"], "budget must be at least 82 gradients, got nan."),
        ("own.py:objective", ["--lr", "0"], "lr must be a finite number > 0, got 0.0."),
        ("own.py:objective", ["--checkpoint", "no.pt"], "the checkpoint 'no.pt' does not exist"),
        ("own.py:objective", ["--checkpoint", "own.py"], "the checkpoint 'own.py' cannot be read: "),
        ("own.py:objective", ["--checkpoint", "w.pt"], "the checkpoint 'w.pt' does not fit the model in 6 places; the first: it lacks '0.weight'"),
        ("own.py:objective", ["--checkpoint", "nan.pt"], "Cannot measure: the loss is nan, not a finite number."),
        ("own.py:objective", ["--methods", "sam"], "--methods belongs to the folder of a comparison, and 'own.py:objective' is none"),
        ("own.py:once", [], "This model cannot be differentiated twice"),
        ("tiny.py:task", [], "tiny.py:task returns a task, whose models begin untrained; name the trained weights with --checkpoint, or return a steppe.measure.Objective"),
        ("tiny.py:task", ["--checkpoint", "nan.pt"], "the checkpoint 'nan.pt' does not fit the model in 6 places; the first: it lacks 'weight'"),
        ("tiny.py:task", ["--checkpoint", "nans.pt"], "Cannot measure: the loss of batch 0 is nan, not a finite number."),
        ("wrong.py:task", ["--checkpoint", "w.pt"], "wrong.py:task: the model failed on inputs of shape (20, 3) with RuntimeError: "),
        ("digits", [], "digits returns a task, whose models begin untrained; "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(target, words, message, command, tmp_path, monkeypatch, checkpoint, own, record):
    monkeypatch.chdir(tmp_path)
    checkpoint()
    checkpoint({name: torch.full(shape, float("nan")) for name, shape in {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}.items()}, "nan.pt")  # fmt: skip
    checkpoint({name: value * float("nan") for name, value in STATE.items()}, "nans.pt")
    own("objective")
    head = "import torch\nfrom torch import nn\nfrom steppe.lab import Task\ny = torch.arange(20) % 2\n\ndef task():\n"
    for name, width in (("tiny", 4), ("wrong", 3)):
        lines = f"    splits = [(torch.randn(20, {width}), y) for _ in range(3)]\n    return Task(lambda: nn.Linear(4, 2), *splits)\n"
        Path(f"{name}.py").write_text(head + lines)
    Path("empty").mkdir()
    Path("out").mkdir()
    Path("out/config.yaml").write_text("task: digits\nbase: sgd\nmethods: [sgd, sam]\nseeds: 1\n")
    code, out, error = command("measure", target, *words)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {message}")
    assert error.count("\n") == 1
    assert not Path("measure").exists()


def test_a_folder_that_cannot_be_written(command, own, tmp_path):
    (tmp_path / "o").write_text("")
    code, _, error = command("measure", own("objective"), *FAST, "--out", tmp_path / "o")
    assert code == 1
    assert error.startswith(f"steppe: the report cannot be written to '{tmp_path / 'o'}': ")
    assert error.count("\n") == 1


def test_finite_differences(own, command, tmp_path):
    code, _, error = command("measure", own("once"), *FAST, "--finite-differences", "--out", tmp_path / "o")
    assert (code, error) == (0, "")
    content = json.loads((tmp_path / "o" / "report.json").read_text())
    assert content["spectrum"]["settings"]["method"] == "finite_difference"
    made = find_task(own("once")).make()
    expected = measure.spectrum(made, steps=content["spectrum"]["settings"]["steps"], method="finite_difference")
    again = content["measures"]["largest eigenvalue"]["value"]
    assert again == pytest.approx(content["spectrum"]["largest"][0])
    assert expected.settings == content["spectrum"]["settings"]
    smooth = measure.report_of(find_task(own("objective")).make(), budget=90)
    rough = measure.report_of(find_task(own("objective")).make(), budget=90, method="finite_difference")
    for name, one in smooth.measures.items():
        assert rough.measures[name].value == pytest.approx(one.value, rel=1e-2), name


def test_a_user_can_measure_without_the_command(kept):
    options = Options(methods=("sgd",), seeds=1)
    assert options.task is None
    found = measuring.measure_run(kept.out, Request(budget=90.0), seeds=2)
    assert list(found) == [(trial.row, trial.seed) for trial in kept.trials()]
    lines = measuring.summary(found)
    assert lines[0] == ["measure", *(f"{trial.row}, seed {trial.seed}" for trial in kept.trials())]
    assert {len(line) for line in lines} == {5}


def test_weights_of_another_host_or_version_are_found(kept, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(kept.out, folder)
    for path in (folder / "trials").glob("*.json"):
        record = Record.model_validate_json(path.read_bytes())
        config = record.config.model_copy(update={"versions": {"torch": "2.6", "host": "4 x cuda, no"}})
        records.weights_path(folder, record.config).rename(records.weights_path(folder, config))
        path.unlink()
        records.write(folder, record.model_copy(update={"config": config, "key": config.key}))
    (folder / "trials" / "broken.json").write_text("{")
    theirs, ours = (
        measuring.measure_run(folder, Request(budget=90)),
        measuring.measure_run(kept.out, Request(budget=90)),
    )
    assert {name: found.loss for name, found in theirs.items()} == {name: found.loss for name, found in ours.items()}
