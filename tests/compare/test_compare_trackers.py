"""Trials as runs of trackers: of TensorBoard, and of a stand-in for those that ask for an account or a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from commands import environment
from steppe._extras import how_to_install
from steppe.lab import UserError, compare, sweep
from steppe.lab.crew.runner import Silence
from steppe.lab.show.trackers import final

tensorboard = pytest.importorskip("tensorboard")
tracking = pytest.importorskip("accelerate.tracking")

CURVES = ("validation_metric", "validation_loss", "train_loss", "gradient_evaluations", "seconds")
FINALS = ("train_loss", "train_metric", "validation_loss", "validation_metric", "test_loss", "test_metric")
COUNTS = ("gradient_evaluations", "examples", "updates", "seconds")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard reads in the folder of a run, without what stands for its hyper-parameters."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def expected(record) -> dict[str, list[tuple[int, float]]]:
    """What a record says, as TensorBoard has it: in single precision."""
    epochs = len(record.curve.seconds)
    found = {name: list(enumerate(getattr(record.curve, name), start=1)) for name in CURVES if epochs}
    end = {name: getattr(record, name) for name in COUNTS} | {"diverged": 0.0 if record.final else 1.0}
    if record.final is not None:
        end |= {name: getattr(record.final, name) for name in FINALS}
    else:
        end |= {"diverged_epoch": record.diverged.epoch, "diverged_step": record.diverged.step}
    return {**found, **{f"final/{name}": [(epochs, value)] for name, value in end.items()}}


def check_same(got, record):
    wanted = expected(record)
    assert set(got) == set(wanted)
    for tag, points in wanted.items():
        assert [step for step, _ in got[tag]] == [step for step, _ in points], tag
        assert [value for _, value in got[tag]] == pytest.approx([value for _, value in points], rel=1e-6), tag


class Watcher(Silence):
    """Keeps the warnings."""

    def __init__(self):
        self.warnings: list[str] = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.mark.parametrize("jobs", [1, 2])
def test_tensorboard_has_every_number_of_every_record(command, tiny, tmp_path, jobs):
    (tmp_path / "c.yaml").write_text(
        "methods: [sgd, sam, wild]\nbase: sgd\nseeds: 2\nlog: tensorboard\n"
        "settings: {wild: {method: sgd, lr: 1.0e+30}}\n"
    )
    words = [
        "compare",
        "--tune",
        0,
        "--task",
        tiny,
        "--config",
        tmp_path / "c.yaml",
        "--jobs",
        jobs,
        "--out",
        tmp_path / "out",
    ]
    code, out, error = command(*words)
    assert (code, error) == (0, "")
    assert "warning" not in out
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["log"] == ["tensorboard"]
    assert "--log tensorboard" in (tmp_path / "out/table.md").read_text()
    asked = {"methods": ["sgd", "sam", "wild"], "settings": {"wild": {"method": "sgd", "lr": 1e30}}}
    found = compare(tiny, base="sgd", seeds=2, out=tmp_path / "out", **asked)
    assert [record.status for record in found.records] == ["finished", "finished", "diverged"] * 2
    runs = {path.name: path for path in (tmp_path / "out/tensorboard").iterdir()}
    assert set(runs) == {f"{row}, seed {seed}" for row in ("sgd", "sam", "wild") for seed in (0, 1)}
    for record in found.records:
        check_same(scalars(runs[record.config.label]), record)
        (file,) = runs[record.config.label].rglob("hparams.yml")
        assert yaml.safe_load(file.read_text()) == record.config.flat


def test_what_was_finished_before_is_not_logged_again(tiny, tmp_path):
    def run(seeds, log="tensorboard"):
        return compare(tiny, methods=["sgd"], base="sgd", seeds=seeds, jobs=1, out=tmp_path / "out", log=log)

    def files():
        return sorted(path for path in (tmp_path / "out").rglob("events.*"))

    run(1, log=None)
    assert files() == []
    run(2)
    first = files()
    assert {path.relative_to(tmp_path / "out/tensorboard").parts[0] for path in first} == {"sgd, seed 1"}
    run(2)
    assert files() == first


def test_trials_that_look_alike_are_not_mixed(tiny, tmp_path):
    """In one folder, of one row and seed: TensorBoard would draw them as one curve."""
    for epochs in (1, 2):
        found = compare(
            tiny, methods=["sgd"], base="sgd", seeds=1, epochs=epochs, jobs=1, out=tmp_path, log="tensorboard"
        )
    (record,) = found.records
    check_same(scalars(tmp_path / "tensorboard" / f"sgd, seed 0, {record.config.key}"), record)
    assert len(scalars(tmp_path / "tensorboard/sgd, seed 0")["seconds"]) == 1


def test_sharpness_is_logged_too(record):
    made = record("sam", 0, 80.0, sharpness={"worst-case linf": 0.25, "largest eigenvalue": None})
    assert final(made)["final/worst-case linf"] == 0.25
    assert "final/largest eigenvalue" not in final(made)
    assert None not in final(made).values()


def test_every_training_of_a_sweep_is_a_run_by_its_setting(command, tiny, tmp_path):
    words = ["sweep", "--task", tiny, "--base", "sgd", "--seeds", 2, "--jobs", 2, "--out", tmp_path / "out"]
    code, _, error = command(*words, "--grid", "rho=0.05", "lr=0.1,1e30", "--log", "tensorboard")
    assert (code, error) == (0, "")
    found = sweep(tiny, "sam", ["rho=0.05", "lr=0.1,1e30"], base="sgd", seeds=2, out=tmp_path / "out")
    good, bad = found.points
    folder = tmp_path / "out/tensorboard"
    assert {path.name for path in folder.iterdir()} == {
        "sam, seed 1000, rho 0.05, lr 0.1",
        "sam, seed 1001, rho 0.05, lr 0.1",
        "sam, seed 1000, rho 0.05, lr 1e+30",  # its other seed is not trained
    }
    for result in good.seeds:
        got = scalars(folder / f"sam, seed {result.seed}, rho 0.05, lr 0.1")
        assert [value for _, value in got["validation_metric"]] == pytest.approx(list(result.curve))
        assert got["final/test_metric"][0][1] == pytest.approx(result.test_metric)
    assert scalars(folder / "sam, seed 1000, rho 0.05, lr 1e+30")["final/diverged_epoch"][0][1] == bad.seeds[0].diverged
    assert found.plan.log == ()
    assert "--log tensorboard" not in found.command


def test_choosing_settings_is_not_logged(command, tiny, tmp_path):
    words = ["compare", "--task", tiny, "--base", "sgd", "--methods", "sgd", "--seeds", 1, "--jobs", 1, "--tune", 2]
    assert command(*words, "--log", "tensorboard", "--out", tmp_path / "out")[0] == 0
    assert {path.parent.name for path in (tmp_path / "out").rglob("tensorboard")} == {"out"}


LOOP = """
import torch
from torch import nn

def train(run):
    model = nn.Linear(3, 1)
    opt = run.optimizer(model)
    for epoch in range(2):
        run.step(opt, torch.ones(4, 3), lambda batch: model(batch).square().mean())
        run.report(epoch, accuracy=50 + epoch)
    return {"accuracy": 70.0, "F1 (%)": 0.5}
"""


def test_a_loop_of_the_users_own_has_what_it_reports(tmp_path):
    (tmp_path / "own.py").write_text(LOOP)
    found = compare(
        f"{tmp_path / 'own.py'}:train",
        methods=["sgd"],
        base="sgd",
        seeds=1,
        epochs=2,
        jobs=1,
        out=tmp_path,
        log="tensorboard",
    )
    got = scalars(tmp_path / "tensorboard/sgd, seed 0")
    assert got["validation_metric"] == [(1, 50.0), (2, 51.0)]
    assert got["final/test_metric"] == [(2, 70.0)]
    assert got["final/test F1 _"] == [(2, 0.5)]  # as all trackers take it
    assert "train_loss" not in got
    frame = found.to_pandas("trials")
    assert (frame["test_metric"][0], frame["test F1 (%)"][0]) == (70.0, 0.5)
    assert frame["train_loss"].isna().all()
    methods = found.to_pandas()
    assert methods["test F1 (%)"][0] == 0.5
    assert methods["test F1 (%)_error"].isna().all()


# Stand-ins


@pytest.fixture
def stand_in(monkeypatch):
    """Put a class in the place of trackers in accelerate's table; return the list of what they are told."""

    def put(*names: str, fails: str = "") -> list[tuple]:
        told: list[tuple] = []

        class StandIn(tracking.GeneralTracker):
            name, requires_logging_directory, tracker = "stand-in", False, None

            def __init__(self, *words, **more):
                super().__init__()
                self.said("made", words, more)

            def said(self, *what):
                told.append(what)
                if what[0] == fails:
                    raise OSError("no such host")

            @tracking.on_main_process
            def start(self):
                self.said("start")

            @tracking.on_main_process
            def store_init_configuration(self, values):
                self.said("configuration", values)

            @tracking.on_main_process
            def log(self, values, step=None):
                tracking.logger.debug("as the real ones do, which raises where accelerate knows of no process")
                self.said("log", step, values)

            @tracking.on_main_process
            def finish(self):
                self.said("finish")

        for name in names:
            monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, StandIn)
            if name != "tensorboard":
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        return told

    return put


def trained(tiny, tmp_path, log, observer=None, **more):
    asked = {"methods": ["sgd"], "base": "sgd", "seeds": 2, "jobs": 1, "out": tmp_path / "out", **more}
    return compare(tiny, log=log, observer=observer, **asked)


@pytest.mark.parametrize(
    ("name", "words", "more"),
    [
        ("mlflow", ("tiny-task-sgd",), {"run_name": "sgd, seed 0", "nested_run": True}),
        ("wandb", ("tiny-task-sgd",), {"name": "sgd, seed 0"}),
        ("trackio", ("tiny-task-sgd",), {"name": "sgd, seed 0"}),
    ],
)
def test_the_others_are_told_the_same(stand_in, tiny, tmp_path, name, words, more):
    told = stand_in(name)
    (record,) = trained(tiny, tmp_path, name, seeds=1).records
    curve = record.curve
    assert told[:3] == [("made", words, more), ("start",), ("configuration", record.config.flat)]
    assert told[3:-2] == [("log", i + 1, {field: getattr(curve, field)[i] for field in CURVES}) for i in range(3)]
    assert told[-2:] == [("log", 3, final(record)), ("finish",)]


def test_a_configuration_is_flat(tiny, tmp_path):
    settings = {"mine": {"method": "sam", "betas": [0.9, 0.99], "schedules": {"lr": "constant"}}}
    made = trained(tiny, tmp_path, None, methods=["mine"], base="adamw", seeds=1, epochs=1, settings=settings)
    flat = made.records[0].config.flat
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}
    assert (flat["row"], flat["method"], flat["seed"], flat["epochs"]) == ("mine", "sam", 0, 1)
    assert (flat["betas"], flat["schedules.lr.kind"]) == ("0.9, 0.99", "constant")
    assert flat["rho"] == made.plan.arms[0].hyperparameters["rho"]
    assert "updates" not in flat


@pytest.mark.parametrize("fails", ["made", "start", "configuration", "log", "finish"])
def test_a_tracker_that_fails_costs_one_warning_and_no_training(stand_in, tiny, tmp_path, fails):
    told, watcher = stand_in("wandb", fails=fails), Watcher()
    found = trained(tiny, tmp_path, ["wandb", "tensorboard"], watcher)
    assert len(found.records) == 2
    (warning,) = watcher.warnings
    assert warning.startswith("wandb failed, and trials are not logged there any more: OSError: no such host (")
    assert sum(what[0] == "made" for what in told) == 1
    assert told[-1][0] == ("finish" if fails not in ("made", "start") else fails)
    assert len(list((tmp_path / "out/tensorboard").iterdir())) == 2  # the other one goes on


def test_a_folder_that_cannot_be_written_costs_no_training(command, tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tensorboard").write_text("a file")
    words = ["compare", "--tune", 0, "--task", tiny, "--methods", "sgd", "--base", "sgd", "--seeds", 2, "--jobs", 1]
    code, out, error = command(*words, "--log", "tensorboard", "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    assert out.count("warning: tensorboard failed, and trials are not logged there any more: ") == 1
    assert "2/2  sgd, seed 1: " in out


def test_a_sweep_goes_on_too(stand_in, tiny, tmp_path):
    stand_in("mlflow", fails="start")
    watcher = Watcher()
    found = sweep(
        tiny, "sam", ["rho=0.05,0.1"], base="sgd", seeds=1, jobs=1, out=tmp_path, log="mlflow", observer=watcher
    )
    assert [point.state for point in found.points] == ["finished"] * 2
    assert len(watcher.warnings) == 1


def test_the_name_of_a_sweep(stand_in, tiny, tmp_path):
    told = stand_in("wandb")
    sweep(tiny, "sam", ["rho=0.05"], base="sgd", seeds=1, jobs=1, out=tmp_path, log="wandb")
    assert told[0] == ("made", ("sweep-tiny-task-sgd-sam",), {"name": "sam, seed 1000, rho 0.05"})


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("wandbb", "--log: unknown tracker 'wandbb'; did you mean 'wandb'? known: tensorboard, mlflow, wandb, trackio"),
        ("mlflow", how_to_install("mlflow", None)),
        ("tensorboard,trackio", how_to_install("trackio", None)),
        ("tensorboard", how_to_install("tensorboard", "log")),
        ("wandb,tensorboard", how_to_install("accelerate", "log")),
    ],
)
@pytest.mark.parametrize("name", ["compare", "sweep"])
def test_what_is_not_installed_is_said_before_anything_is_trained(
    command, monkeypatch, tiny, tmp_path, name, log, message
):
    missing = message.split("'")[1]
    for module in list(sys.modules):
        if module.partition(".")[0] == missing:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, error = command(name, "--task", tiny, "--log", log, "--out", tmp_path / "out")
    assert (code, out, error) == (2, "", f"steppe: {message}\n")
    assert not (tmp_path / "out").exists()


def test_an_accelerate_that_does_not_know_a_tracker(command, stand_in, monkeypatch, tiny):
    stand_in("trackio")
    monkeypatch.delitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio")
    code, _, error = command("compare", "--task", tiny, "--log", "trackio")
    message = "accelerate is too old for trackio; update it with: pip install --upgrade accelerate"
    assert (code, error) == (2, f"steppe: {message}\n")


def test_trackers_from_python_and_in_a_file(tiny, tmp_path, command):
    with pytest.raises(UserError, match=r"^log: unknown tracker 'tb'; known: tensorboard, "):
        compare(tiny, log=["tb"])
    (tmp_path / "c.yaml").write_text("seeds: 3\nlog: [tensorbord]\n")
    code, _, error = command("compare", "--config", tmp_path / "c.yaml")
    assert code == 2
    assert error.startswith(
        f"steppe: {tmp_path}/c.yaml:2: log: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"
    )


def test_accelerate_is_left_as_it_was_and_waits_for_no_other_process(tiny, tmp_path):
    """Whoever starts it afterwards may have a GPU; and a cluster's environment names processes that do not answer."""
    script = (
        "import sys, torch\nfrom steppe.lab import compare\nfrom accelerate import PartialState\n"
        "if __name__ == '__main__':\n"
        "    found = compare(sys.argv[1], methods=['sgd'], base='sgd', seeds=1, jobs=1, out=sys.argv[2], log='tensorboard')\n"
        "    print(torch.distributed.is_initialized(), torch.cuda.is_initialized(), dict(PartialState._shared_state))\n"
    )
    (tmp_path / "script.py").write_text(script)
    cluster = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tiny, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
        env=environment(**cluster),  # not with the folders of all tasks that were loaded here
    )
    assert done.stdout == "False False {}\n"
    assert (tmp_path / "out/tensorboard/sgd, seed 0").is_dir()
