"""The study of radii: the choice, leave one task out, the goal, the command."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
import torch

from steppe import cli
from steppe.lab import Task
from steppe.lab.crew.runner import Silence
from steppe.lab.errors import UserError
from steppe.lab.plans.workers import Workers
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.records import Final, Record
from steppe.studies.radius import data_tasks, pictures, report, run
from steppe.studies.radius.design import CANDIDATES, JOBS, PART, PRESETS, SAM, Job
from steppe.studies.radius.judge import Ran, choose, helps, judge, score
from steppe.studies.radius.tasks import CHARACTERS, characters, diabetes

TINY = """
import torch
from torch import nn
from steppe.lab import Task

x = torch.randn(96, 3, generator=torch.Generator().manual_seed({seed}))
y = (x[:, 0] > 0).long()

def tiny():
    return Task(model=lambda: nn.Linear(3, 2), train=(x[:32], y[:32]), validation=(x[32:64], y[32:64]),
        test=(x[64:], y[64:]), batch_size=8)
"""


def ran(validation, test=None, **more):
    """A task on which rows end that much above the base, which is at 50; one number a seed, None where it diverged."""
    test = test or validation

    def finals(row):
        pairs = enumerate(zip(validation[row], test[row], strict=True))
        return {
            seed: Final(validation_metric=50.0 + v, test_metric=70.0 + t)
            for seed, (v, t) in pairs
            if v is not None and t is not None
        }

    seeds = len(validation[SAM])
    rows = {row: finals(row) for row in validation}
    rows["sgd"] = {seed: Final(validation_metric=50.0, test_metric=70.0) for seed in range(seeds)}
    return Ran("sgd", seeds, rows, **more)


STEADY = [2.0, 2.1, 1.9]
SPREAD = [-3.0, 0.0, 6.0]  # its mean is 1, and two standard errors are 5.29


# The score and the choice


def test_the_score_is_the_part_of_sams_gain():
    one = ran({SAM: STEADY, "a@0": [1.0, 1.0, 1.0], "a@1": [-1.0, -1.0, -1.0], "a@2": [9.0, 9.0, 9.0]})
    assert [score(one, f"a@{k}") for k in range(3)] == pytest.approx([0.5, -0.5, 1.5])
    assert score(one, SAM) == pytest.approx(1.0)
    other = ran({SAM: STEADY, "a@0": [-9.0, -9.0, -9.0]})
    assert score(other, "a@0") == -1.5


def test_where_sams_gain_is_noise_the_noise_is_the_measure():
    noise = 2 * math.sqrt(21.0 / 3)  # variance 21
    assert score(ran({SAM: SPREAD, "a@0": [noise / 2] * 3}), "a@0") == pytest.approx(0.5)
    loses = [-2.0, -2.1, -1.9]  # two standard errors of it
    assert score(ran({SAM: loses, "a@0": [0.1] * 3}), "a@0") == pytest.approx(0.1 / (2 * 0.1 / math.sqrt(3)))


def test_without_any_noise_the_sign_is_left():
    for gain, right in ((0.5, 1.5), (0.0, 0.0), (-0.5, -1.5)):
        assert score(ran({SAM: [0.0] * 3, "a@0": [gain] * 3}), "a@0") == right


def test_what_diverges_has_the_least_score():
    assert score(ran({SAM: STEADY, "a@0": [9.0, None, 9.0]}), "a@0") == -1.5


def test_smaller_is_better_turns_all_signs():
    one = ran({SAM: [-2.0, -2.1, -1.9], "a@0": [-1.0] * 3}, higher_is_better=False)
    assert score(one, "a@0") == pytest.approx(0.5)
    assert one.tested(SAM).value == pytest.approx(2.0)
    assert one.test_gains("a@0") == pytest.approx([1.0] * 3)
    assert helps(one)


def test_the_best_mean_score_wins_and_of_equals_the_smallest_constant():
    first = ran({SAM: STEADY, "a@0": [0.0] * 3, "a@1": [2.0] * 3, "a@2": [1.0] * 3})
    second = ran({SAM: STEADY, "a@0": [2.0] * 3, "a@1": [0.0] * 3, "a@2": [1.5] * 3})
    assert choose([first], "a", 3) == (1, pytest.approx(1.0))
    assert choose([second], "a", 3) == (0, pytest.approx(1.0))
    assert choose([first, second], "a", 3) == (2, pytest.approx(0.625))
    assert choose([first, second], "a", 2) == (0, pytest.approx(0.5))


def test_a_large_gain_on_one_task_does_not_outvote_the_others():
    """Both constants gain 12 points in all; 1.5 is the most that a task can say."""
    large = ran({SAM: STEADY, "a@0": [12.0] * 3, "a@1": [4.0] * 3})
    small = ran({SAM: STEADY, "a@0": [0.0] * 3, "a@1": [2.0] * 3})
    assert choose([large, small, small], "a", 2) == (1, pytest.approx((1.5 + 1 + 1) / 3))


# Leave one task out


def three():
    """Constant 1 is the best on the first two tasks, constant 0 on the third; test metrics say something else."""
    good, bad = [2.0, 2.2, 2.1], [-2.0, -2.2, -2.1]
    flat = {SAM: STEADY, "a@0": [0.0] * 3, "a@1": [2.0] * 3}
    turned = {SAM: STEADY, "a@0": [2.0] * 3, "a@1": [1.0] * 3}
    return {
        "one": ran(flat, {SAM: STEADY, "a@0": bad, "a@1": good}),
        "two": ran(flat, {SAM: STEADY, "a@0": good, "a@1": [1.0, 1.2, 1.1]}),
        "three": ran(turned, {SAM: STEADY, "a@0": good, "a@1": bad}),
    }


def test_the_constant_is_chosen_on_the_other_tasks_by_validation_and_judged_by_test():
    found = judge(three(), "a", [0.1, 0.3])
    assert {task: one.index for task, one in found.left_out.items()} == {"one": 1, "two": 1, "three": 1}
    assert {task: one.constant for task, one in found.left_out.items()} == dict.fromkeys(("one", "two", "three"), 0.3)
    # Without the first, two says 0 and 1, three says 1 and 0.5; without the third, both say 0 and 1.
    assert [one.score for one in found.left_out.values()] == pytest.approx([0.75, 0.75, 1.0])
    assert [one.mean for one in found.left_out.values()] == pytest.approx([2.1, 1.1, -2.1])
    assert [one.part for one in found.left_out.values()] == pytest.approx([1.05, 0.55, -1.05])
    assert found.worst == pytest.approx(-2.1)
    assert [one.below for one in found.left_out.values()] == [False, False, True]
    assert found.goal is False


def test_the_left_out_task_has_no_part_in_the_choice():
    runs = three()
    changed = {**runs, "three": ran({SAM: [9.0] * 3, "a@0": [9.0] * 3, "a@1": [-9.0] * 3})}
    assert judge(changed, "a", [0.1, 0.3]).left_out["three"].index == 1
    assert judge(changed, "a", [0.1, 0.3]).left_out["one"].index == 0


def test_the_share_has_fiellers_interval():
    one = judge(three(), "a", [0.1, 0.3]).left_out["one"]
    assert one.share.value == pytest.approx(1.05)
    assert one.share.low < 1.05 < one.share.high
    # Both ends solve mean(gain - r sam)^2 = t^2 var(gain - r sam) / n.
    for end in (one.share.low, one.share.high):
        rest = [g - end * s for g, s in zip([2.0, 2.2, 2.1], STEADY, strict=True)]
        mean = fmean(rest)
        variance = sum((x - mean) ** 2 for x in rest) / 2
        assert mean**2 == pytest.approx(4.302652729911275**2 * variance / 3, rel=1e-6)


def goal(*tasks):
    """Whether the goal is met by one constant with these test gains, next to those of SAM."""
    runs = {str(k): ran({SAM: sam, "a@0": gains}) for k, (sam, gains) in enumerate(tasks)}
    return judge(runs, "a", [0.1]).goal


def test_the_goal():
    most, less = [1.7, 1.6, 1.8], [1.5, 1.4, 1.6]
    nothing, below = [0.1, -0.1, 0.0], [-0.5, -0.6, -0.4]
    assert goal((STEADY, most), (STEADY, most)) is True
    assert goal((STEADY, most), (STEADY, less)) is False  # 75 %
    assert goal((STEADY, most), (SPREAD, nothing)) is True  # where SAM gains nothing, nothing is to be kept
    assert goal((STEADY, most), (SPREAD, below)) is False
    assert goal((STEADY, most), (SPREAD, [-3.0, 2.0, 0.0])) is True  # below, but not significantly
    assert goal((STEADY, most), (SPREAD, [5.0, None, 5.0])) is False
    assert goal((SPREAD, nothing), (SPREAD, nothing)) is None
    assert goal((SPREAD, nothing), (SPREAD, below)) is False


def test_a_training_that_diverged_leaves_no_worst():
    runs = {str(k): ran({SAM: STEADY, "a@0": [1.0, None, 1.0][: 3 - k] + [1.0] * k}) for k in range(2)}
    found = judge(runs, "a", [0.1])
    assert found.worst is None
    assert [one.diverged for one in found.left_out.values()] == [1, 1]
    gone = judge({str(k): ran({SAM: STEADY, "a@0": [None] * 3}) for k in range(2)}, "a", [0.1])
    assert [(one.mean, one.gain, one.below) for one in gone.left_out.values()] == [(None, None, True)] * 2


def test_one_task_is_not_enough_and_who_was_not_trained_is_not_judged_there():
    runs = three()
    assert judge({"one": runs["one"]}, "a", [0.1, 0.3]) is None
    runs["four"] = ran({SAM: STEADY, "b@0": [1.0] * 3})
    assert set(judge(runs, "a", [0.1, 0.3]).left_out) == {"one", "two", "three"}
    assert judge(runs, "b", [0.1]) is None


# What is trained


def test_constants_are_two_decades_around_the_middle():
    for candidate in CANDIDATES.values():
        found = candidate.constants(5)
        assert found[2] == candidate.centre
        assert found[-1] / found[0] == pytest.approx(100, rel=0.01)
        assert all(b / a == pytest.approx(10**0.5, rel=0.01) for a, b in pairwise(found))


def test_everybody_has_as_many_settings():
    small = PRESETS["small"]
    for job in JOBS.values():
        base = job.base_settings()
        assert len(base) == len(job.sam_settings(base[0])) == 9
        assert len({tuple(setting.items()) for setting in [*base, *job.sam_settings(base[0])]}) == 18
        assert all(setting["weight_decay"] == base[1]["weight_decay"] for setting in job.sam_settings(base[1]))
        arms = small.arms(job, base[0])
        assert len(arms) == len(CANDIDATES) * 5 * (1 + job.parts)
        assert all(arm["lr"] == base[0]["lr"] for arm in arms.values())
        assert {row.partition("@")[0].endswith(PART) for row, arm in arms.items() if "fraction" in arm} <= {True}
        assert sum("fraction" in arm for arm in arms.values()) == job.parts * len(CANDIDATES) * 5


def test_parts_of_tasks():
    def sizes(task):
        return [len(split[1]) for split in (task.train, task.validation, task.test)]

    task = diabetes()
    assert sizes(task) == [120, 130, 192]
    assert task.train[0].mean(0).abs().max() < 1e-6
    task = characters()
    assert sizes(task) == [480, 240, 240]
    x, y = task.train
    assert torch.equal(x[:, 1:], y[:, :-1])
    rows = {tuple(row.tolist()) for split in (task.train, task.validation, task.test) for row in split[0]}
    assert len(rows) == 960  # no piece is there twice
    assert int(x.max()) < len(CHARACTERS)
    assert task.model()(x[:2]).shape == (2, len(CHARACTERS), x.shape[1])


def test_tasks_with_data_say_what_they_need(monkeypatch, capsys, tmp_path):
    small = PRESETS["small"]
    assert run.tasks_of(small, None, None) == [name for name, job in JOBS.items() if not job.data]
    (tmp_path / "glue").mkdir()
    assert run.tasks_of(small, ["paraphrases", "news"], tmp_path) == ["news", "paraphrases"]
    assert cli.main(["study", "radius", "--data", str(tmp_path)]) == 2
    assert f"--data: images needs a folder 'cifar10' in '{tmp_path}'; there is none" in capsys.readouterr().err
    (tmp_path / "cifar10").mkdir()
    assert run.tasks_of(small, None, tmp_path) == list(JOBS)
    assert cli.main(["study", "radius", "--task", "images"]) == 2
    assert "--task: images needs data; give --data a folder with cifar10 in it" in capsys.readouterr().err
    assert cli.main(["study", "radius", "--task", "diabete"]) == 2
    assert "--task: unknown task 'diabete'; did you mean 'diabetes'?" in capsys.readouterr().err
    assert cli.main(["study", "radius", "--preset", "smoke", "--data", str(tmp_path)]) == 2
    assert "--data: smoke reads none; leave it out, or take --preset small" in capsys.readouterr().err
    assert cli.main(["study", "radius", "--preset", "smal"]) == 2
    assert "--preset: unknown preset 'smal'; did you mean 'small'?" in capsys.readouterr().err
    monkeypatch.delenv("STEPPE_DATA", raising=False)
    with pytest.raises(UserError, match=r"^no data: give --data a folder with cifar10 in it"):
        data_tasks.images()


# From the first trial to the last picture


@pytest.fixture
def design(tmp_path):
    jobs = {}
    for seed, name in enumerate(("left", "right")):
        file = tmp_path / f"{name}.py"
        file.write_text(TINY.format(seed=seed))
        jobs[name] = Job(name, f"{file}:tiny", "sgd", 1, (0.1, 0.2), (0.0, 0.1), (0.1, 0.2), parts=name == "left")
    return replace(PRESETS["smoke"], jobs=jobs, candidates=("absolute", "edge"), seeds=3, tuning_seeds=1)


def carried_out(design, out, tasks=("left", "right")):
    return run.carry_out("smoke", design, tasks, out, Workers(0), "steppe study radius", lambda: nullcontext(Silence()))


def trials(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("trials/*.json")}


@pytest.mark.timeout(300)
def test_the_whole_study(design, tmp_path):
    out = tmp_path / "out"
    found = carried_out(design, out)
    # Nothing with a part was trained on two tasks.
    assert list(found.judged) == ["absolute", "edge"]
    assert found.entries == ["absolute", "edge", "absolute-part", "edge-part"]
    kept = trials(out)
    records = [Record.model_validate_json(path.read_text()) for path in kept]
    # Left: 4 + 4 settings once, then base, SAM, and 2 constants of 4 with 3 seeds; right likewise without parts.
    assert len(records) == (8 + 10 * 3) + (8 + 6 * 3)
    chosen_on = {record.config.seed for record in records if not record.config.test}
    judged_on = {record.config.seed for record in records if record.config.test}
    assert chosen_on.isdisjoint(judged_on)
    for task in ("left", "right"):
        one = found.runs[task]
        arms = {arm.name: arm.hyperparameters for arm in one.comparison.plan.arms}
        assert arms["absolute@1"] == {**arms["sgd"], "rho": 0.1}
        assert arms["absolute@0"]["rho"] == pytest.approx(0.0316)
        assert arms["sgd"] == {**arms["sgd"], **one.base}
        ours = {r.config.seed: r.final.test_metric for r in one.comparison.records if r.config.row == "edge@0"}
        base = {r.config.seed: r.final.test_metric for r in one.comparison.records if r.config.row == "sgd"}
        assert one.ran.test_gains("edge@0") == [ours[seed] - base[seed] for seed in range(3)]
    path = report.write(found)
    page = path.read_text()
    assert path == out / "table.md"
    assert "## Leave one task out" in page
    lines = [line for line in page.splitlines() if line.startswith(("| absolute |", "| edge |"))]
    assert len(lines) == 2 * 4  # the units, two tasks, what they are
    results = json.loads((out / "table.json").read_text())
    assert results["tasks"]["left"]["units"]["edge"][0]["test"] == found.runs["left"].ran.test_gains("edge@0")
    assert results["units"]["edge"]["left_out"]["right"]["constant"] in design.constants_of("edge")
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("left", "right"))
    again = carried_out(design, out)
    assert trials(out) == kept
    assert again.judged == found.judged
    assert report.markdown(again) == page


@pytest.mark.timeout(300)
def test_it_goes_on_where_it_was_stopped(design, tmp_path):
    design, out = replace(design, candidates=("absolute",)), tmp_path / "out"
    alone = carried_out(design, out, ["left"])
    assert alone.judged == {}
    assert "nothing is judged" in report.markdown(alone)
    kept = trials(out)
    lost = next(path for path in kept if path.parent.parent.name == "left")
    content = json.loads(lost.read_text())
    lost.unlink()
    both = carried_out(design, out)
    assert {path: when for path, when in trials(out).items() if path in kept and path != lost} == {
        path: when for path, when in kept.items() if path != lost
    }
    assert json.loads(lost.read_text())["final"] == content["final"]
    assert both.runs["left"].ran == alone.runs["left"].ran


def test_what_diverged_is_hatched_and_has_no_frame(design, tmp_path, monkeypatch):
    found = carried_out(replace(design, candidates=("absolute",)), tmp_path / "out", ["left"])
    run_ = found.runs["left"]
    finals = {**run_.ran.finals, "absolute@0": {}, "absolute@1": {0: run_.ran.finals["absolute@1"][0]}}
    broken = replace(run_, ran=replace(run_.ran, finals=finals))
    drawn = []
    monkeypatch.setattr(pictures.heatmaps, "draw", lambda axes, cells, shade, size: drawn.append(cells))
    pictures.gains(found.design, "left", broken)
    assert [(cell.value is None, cell.hatch, cell.best) for cell in drawn[0].values()] == [
        (True, "////", False),
        (False, "////", False),
    ]
    assert [cell.hatch for cell in drawn[1].values()] == [None, None]
    assert any(cell.best for cell in drawn[1].values())
    broken_study = replace(found, runs={"left": broken})
    assert report.results(broken_study)["tasks"]["left"]["units"]["absolute"][0]["diverged"] == 3


def test_the_tasks_of_the_bench_are_the_benchs():
    for name in ("mnist1d", "digits-noise", "digits-noise-norm", "mnist1d-conv", "news"):
        assert JOBS[name].task.rpartition("/")[2] == find_task(JOBS[name].task).name


def test_images_are_in_one_part_each(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPPE_DATA", str(tmp_path))
    asked = []

    def load(name, folder):
        asked.append((name, folder))
        x = torch.zeros(7000, 3, 32, 32, dtype=torch.uint8)
        x[:, 0, 0, :2] = torch.stack([torch.arange(7000) // 256, torch.arange(7000) % 256], 1).to(torch.uint8)
        return x, torch.arange(7000) % 10, x[:3000], torch.arange(3000) % 10

    monkeypatch.setattr(data_tasks, "load_cifar", load)
    task = data_tasks.images()
    assert asked == [("cifar10", tmp_path / "cifar10")]
    parts = [{tuple(image) for image in split.x[:, 0, 0, :2].tolist()} for split in (task.train, task.validation)]
    assert [len(part) for part in parts] == [4000, 2000]
    assert parts[0].isdisjoint(parts[1])
    assert len(task.test.x) == 2000
    assert task.train.train
    assert not task.unaugmented.train
    assert task.model()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_an_epoch_sees_few_pairs_twice(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPPE_DATA", str(tmp_path))
    asked = {}

    def text_task(model, **arguments):
        asked.update(arguments)

        def split(n):
            return torch.arange(3 * n).view(n, 3), torch.arange(n) % 2

        return Task(model=lambda: torch.nn.Linear(3, 2), train=split(96), validation=split(249), test=split(277))

    monkeypatch.setattr(data_tasks, "text_task", text_task)
    monkeypatch.setattr(data_tasks, "encoder", lambda: "model")
    for make, name in ((data_tasks.entailment, "rte"), (data_tasks.paraphrases, "mrpc")):
        task = make()
        assert (asked["task"], asked["per_class"], asked["data"]) == (name, 48, str(tmp_path / "glue"))
        assert torch.equal(task.train[0], torch.cat([task.unaugmented[0]] * 2))
        assert [len(split[1]) for split in (task.train, task.plain_train, task.validation, task.test)] == [
            192, 96, 100, 200,
        ]  # fmt: skip
