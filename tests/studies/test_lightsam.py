"""LightSAM's sensitivity: grids and what they say, claims, radii, and the command."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, pstdev
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steppe import cli
from steppe.lab import Task
from steppe.lab.crew.runner import Silence
from steppe.lab.plans.workers import Workers
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.optimizers import build
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.trial import run_trial
from steppe.studies.lightsam import fading, held, report
from steppe.studies.lightsam.claims import CLAIMS, judged
from steppe.studies.lightsam.design import LIGHT, METHODS, PLAIN, PRESETS
from steppe.studies.lightsam.grids import Grid, grid, summary
from steppe.studies.lightsam.radii import radii
from steppe.studies.lightsam.run import carry_out
from steppe.studies.lightsam.untuned import losses, try_untuned

TINY = """
import torch
from torch import nn
from steppe.lab import Task

x = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()

def tiny():
    return Task(model=lambda: nn.Linear(3, 2), train=(x, y), validation=(x + 1e-3, y), test=(x - 1e-3, y), batch_size=8, epochs=2)
"""
SMALL = PRESETS["small"]


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return f"{file}:tiny"


# Grids


def test_grids_are_three_decades_around_the_middle():
    rates = SMALL.axis(0.004)
    assert len(rates) == 7
    assert rates[3] == 0.004
    assert rates[-1] / rates[0] == pytest.approx(1000, rel=0.01)
    assert all(b / a == pytest.approx(10**0.5, rel=0.01) for a, b in pairwise(rates))


@pytest.mark.parametrize("method", METHODS)
def test_the_narrow_grid_is_in_the_middle_of_the_wide_one(method):
    settings = SMALL.settings(method)
    lr, rho = SMALL.centre[method]
    assert (rho is None) == (method in PLAIN)
    assert len(settings) == (7 if rho is None else 49)
    assert len({tuple(sorted(setting.items())) for setting in settings}) == len(settings)
    assert SMALL.inside(method, "wide") == list(range(len(settings)))
    narrow = [settings[index] for index in SMALL.inside(method, "narrow")]
    assert {setting["lr"] for setting in narrow} == set(SMALL.axis(lr)[2:5])
    assert {setting.get("rho") for setting in narrow} == ({None} if rho is None else set(SMALL.axis(rho)[2:5]))
    assert len(narrow) == (3 if rho is None else 9)
    assert narrow[len(narrow) // 2] == settings[len(settings) // 2]


def test_what_a_grid_says(tiny):
    preset = replace(PRESETS["smoke"], guessing=50.0)
    settings = [{"lr": lr} for lr in (0.1, 3e38, 0.2)]
    trials = [
        [
            run_trial(
                TrialConfig(
                    task="t", method="sgd", base="sgd", seed=seed, hyperparameters=setting, epochs=2, batch_size=8,
                    versions={},
                ),
                find_task(tiny).load(),
            )
            for seed in (5, 6)
        ]
        for setting in settings
    ]  # fmt: skip
    found = grid(preset, settings, trials)
    finals = {
        seed: [50.0 if group[k].final is None else group[k].final.validation_metric for group in trials]
        for k, seed in enumerate((5, 6))
    }
    assert found.values == finals
    assert found.diverged == [0, 2, 0]
    assert found.best([1]) == 1  # if there is nothing else
    assert found.best([0, 1, 2]) != 1
    numbers = summary(found, replace(preset, centre={"sgd": (0.1, None)}), "sgd", "wide")
    assert numbers["best"].value == pytest.approx(sum(max(v) for v in finals.values()) / 2)
    assert numbers["worst"].value == pytest.approx(sum(min(v) for v in finals.values()) / 2)
    assert numbers["sd over the grid"].value == pytest.approx(sum(pstdev(v) for v in finals.values()) / 2)


def test_the_share_of_good_settings():
    found = Grid([{}] * 4, {0: [90.0, 89.2, 88.9, 10.0]}, [0] * 4)
    assert found.statistic("% within 1 of the best", range(4)) == {0: 50.0}
    assert found.statistic("% within 1 of the best", [2, 3]) == {0: 50.0}


def test_settings_that_are_equally_good_are_told_apart_by_their_loss():
    found = Grid([{}] * 4, {0: [90.0, 90.0, 90.0, 10.0]}, [0, 0, 1, 0], [0.3, 0.2, 0.1, 0.0])
    assert found.best(range(4)) == 1
    assert found.best([0, 2, 3]) == 0


# Claims


def spread(width, best, seeds=3):
    """Grids of 7 x 7 settings that fall off from the best by up to ``width``, a bit more for each seed."""
    values = {
        seed: [best + 0.001 * best * seed - (1 + 0.01 * seed) * width * (index % 7) / 6 for index in range(49)]
        for seed in range(seeds)
    }
    return Grid([{}] * 49, values, [0] * 49)


def verdicts(sam, adasam, light):
    grids = {"sam": sam, "adasam": adasam, **dict.fromkeys(LIGHT, light)}
    return {(f.claim.text, f.claim.width): f.verdict for f in judged(SMALL, {"one": grids, "two": grids})}


def test_claims_that_hold_and_claims_that_do_not():
    found = verdicts(spread(20.0, 90.0), spread(20.0, 95.0), spread(2.0, 91.0))
    for width in ("narrow", "wide"):
        assert found["LightSAM depends less on its setting than SAM", width] == "replicated"
        assert found["LightSAM's best setting is above SAM's", width] == "replicated"
        assert found["LightSAM's worst setting is above SAM's", width] == "replicated"
        assert found["LightSAM's median setting is above SAM's", width] == "replicated"
        assert found["LightSAM's median setting is above AdaSAM's", width] == "replicated"
    assert found["LightSAM's best setting is above AdaSAM's", "wide"] == "the opposite"
    found = verdicts(spread(2.0, 90.0), spread(2.0, 90.0), spread(2.0, 90.0))
    assert set(found.values()) == {"not replicated"}
    few = {"sam": spread(1.0, 9.0, 2), "adasam": spread(1.0, 9.0, 2), **dict.fromkeys(LIGHT, spread(1.0, 9.0, 2))}
    assert {finding.verdict for finding in judged(SMALL, {"one": few})} == {None}
    assert len(CLAIMS) == len({(claim.text, claim.width) for claim in CLAIMS})


# One setting for all tasks


def test_the_setting_for_all_tasks_is_not_the_best_of_any():
    settings = [{"lr": lr} for lr in (1, 2, 3)]
    first = {"sgd": Grid(settings, {0: [90.0, 88.0, 10.0]}, [0, 0, 0]), "sam": Grid([{}], {0: [91.0]}, [0])}
    second = {"sgd": Grid(settings, {0: [10.0, 79.0, 80.0]}, [0, 0, 0]), "sam": Grid([{}], {0: [60.0]}, [0])}
    found = losses({"first": first, "second": second})
    assert found == {"sgd": [[1.0, 70.0], [3.0, 1.0], [81.0, 0.0]], "sam": [[0.0, 20.0]]}


@pytest.mark.timeout(300)
def test_it_is_tested_on_another_task(tiny, tmp_path, capsys):
    other = tmp_path / "other.py"
    other.write_text(TINY.replace("manual_seed(0)", "manual_seed(1)").replace("tiny", "other"))
    design = replace(PRESETS["smoke"], tasks=(tiny,), held_out=f"{other}:other", epochs=None)
    found = carry_out(
        "smoke", design, None, tmp_path / "out", Workers(1), "steppe study lightsam", lambda: nullcontext(Silence())
    )
    untuned, grids = found.untuned, found.runs["tiny.py:tiny"].grids
    assert untuned.comparison.plan.source.name == "other.py:other"
    assert {r.config.row for r in untuned.comparison.records} == {m + end for m in METHODS for end in ("", "-tuned")}
    top = max(max(one.means) for one in grids.values())
    for method, one in grids.items():
        assert untuned.lost[method] == untuned.worst[method] == pytest.approx(top - max(one.means))
        assert one.means[list(one.settings).index(untuned.settings[method])] == max(one.means)
    assert untuned.lost[untuned.recommended] == 0
    run = found.runs["tiny.py:tiny"]
    rho = {arm.name: arm.hyperparameters.get("rho") for arm in run.comparison.plan.arms}
    for light in LIGHT:
        first, second = run.radii[light]
        assert rho[f"{light}-held"] == pytest.approx(fmean(first), rel=0.01)
        assert rho[f"{light}-held"] != pytest.approx(fmean([*first, *second]), rel=0.01)
    page = report.write(found).read_text()
    assert "## without tuning: accuracy (%) on other.py:other" in page
    assert f"The least is lost by {report.NAMES[untuned.recommended]}." in page
    results = json.loads((tmp_path / "out" / "study.json").read_text())
    assert results["design"]["held_out"] == "other.py:other"
    assert results["untuned"]["lost"] == untuned.lost


def test_another_task_on_which_all_diverge_is_a_result_too(tmp_path):
    file = tmp_path / "large.py"
    # While it is tried, all is well.
    head = "import multiprocessing\nfrom math import nan\n"
    file.write_text(
        head + TINY.replace("x = ", "x = (nan if multiprocessing.parent_process() else 1) * ").replace("tiny", "large")
    )
    design = replace(PRESETS["smoke"], epochs=None, seeds=1, test_seeds=1)
    settings = {method: design.settings(method) for method in METHODS}
    grids = {m: Grid(of, {0: [float(i) for i in range(len(of))]}, [0] * len(of)) for m, of in settings.items()}
    found = try_untuned(
        design, {"one": grids}, f"{file}:large", tmp_path / "out", Workers(1), lambda: nullcontext(Silence())
    )
    assert [record.final for record in found.comparison.records] == [None] * 2 * len(METHODS)
    lines = report.untuned_table(found)[1:]
    assert [line[-2:] for line in lines] == [["(1 of 1 diverged)"] * 2] * len(METHODS)


# Radii


def test_radii_are_the_lengths_of_the_climbs():
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    task = Task(model=lambda: nn.Linear(3, 2), train=(x, y), validation=(x + 1e-3, y), test=(x - 1e-3, y))

    def of(method, **hyperparameters):
        return radii(
            TrialConfig(
                task="t", method=method, base="sgd", seed=0, hyperparameters={"lr": 0.1, **hyperparameters}, epochs=2,
                batch_size=8, versions={},
            ),
            task,
        )  # fmt: skip

    assert of("sam", rho=0.2) == [pytest.approx([0.2] * 6, rel=1e-5)] * 2
    first, second = of("msam", rho=0.2, momentum=0.9)
    assert first == pytest.approx([0.2] * 5, rel=1e-5)  # none in the first step
    assert second == pytest.approx([0.2] * 6, rel=1e-5)
    first, second = of("lightsam-i", rho=0.2)
    assert len(first) == len(second) == 6
    assert first[0] == pytest.approx(0.2, rel=1e-5)
    assert max(*first[1:], *second) < 0.2


# Climbs that fade


def passes(method, rho, steps=6):
    """Where the gradients of a training are taken: in turn at the weights and uphill."""
    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    opt = build(method, "sgd", [w], {"lr": 0.1, "rho": rho})
    where = []

    def closure():
        opt.zero_grad()
        where.append(w.detach().clone())
        loss = (torch.tensor([1.0, 10.0, 3.0]) * w**2).sum() + w.prod()
        loss.backward()
        return loss

    for _ in range(steps):
        opt.step(closure)
    return where


@pytest.mark.parametrize("method", LIGHT)
def test_held_climbs_go_the_same_way_equally_far(method):
    of_one_length = f"{held.__name__}:{method.replace('-', '_')}"
    light, steady = passes(method, 0.1), passes(of_one_length, 0.3)
    way = light[1] - light[0]
    assert torch.equal(steady[0], light[0])
    assert torch.allclose(steady[1] - steady[0], 0.3 * way / way.norm(), rtol=1e-12)
    lengths = [float((up - at).norm()) for at, up in zip(steady[::2], steady[1::2], strict=True)]
    assert lengths == pytest.approx([0.3] * 6, rel=1e-6)
    faded = float((light[-1] - light[-2]).norm() / way.norm())
    assert abs(faded - 1) > 0.01  # or there would be nothing to hold
    for one, other in zip(passes(method, 0.0), passes(of_one_length, 0.0), strict=True):
        assert torch.equal(one, other)


def test_arms_beside_the_best():
    light = {"lr": 1.0, "rho": 0.5}
    chosen = {"sgd": {"method": "sgd", "lr": 0.3}, **{m: {"method": m, **light} for m in ("sam", *LIGHT)}}
    climbs = {"sam": [0.5], "lightsam-i": [0.5, 0.25], "lightsam-ii": [], "lightsam-iii": [math.nan]}
    found = fading.arms(chosen, climbs)
    assert found == {
        **{f"{m}-alone": {"method": m, "lr": 1.0, "rho": 0.0} for m in ("sam", *LIGHT)},
        "lightsam-i-held": {"method": f"{held.__name__}:lightsam_i", "lr": 1.0, "rho": 0.375},
    }


def sharp(row, seed, value):
    """The record of a training that ended with this sharpness, or of one that diverged."""
    final = None if value is None else SimpleNamespace(sharpness=dict.fromkeys(fading.MEASURES, value))
    return SimpleNamespace(config=SimpleNamespace(row=row, seed=seed), final=final)


def test_what_climbs_do_to_flatness():
    rows = {"sam-alone": 8.0, "sam": 2.0, "adasam-alone": 8.0, "adasam": 4.0}
    rows |= {light + end: value for light in LIGHT for end, value in (("-alone", 8.0), ("", 8.0), ("-held", 1.0))}
    first = [
        sharp(row, seed, value * 2 ** (0.01 * len(row) * (seed - 1.5)))
        for row, value in rows.items()
        for seed in range(4)
    ]
    second = [sharp(row, seed, 1.0 if row == "sam" else value) for row, value in rows.items() for seed in range(4)]
    found = {(effect.text, effect.measure): effect for effect in fading.effects([first, second])}
    assert len(found) == 4 * len(fading.MEASURES)
    for measure in fading.MEASURES:
        steady, fades, holds, both = (effect for (_, of), effect in found.items() if of == measure)
        assert [one.value for one in steady.differences] == pytest.approx([-2.5, -1.0])  # log2 of 2/8 and 1/8, of 4/8
        assert [one.value for one in fades.differences] == pytest.approx([0.0] * 3)
        assert [one.value for one in (*holds.differences, *both.differences)] == pytest.approx([-3.0] * 6)
        verdicts = [effect.verdict for effect in (steady, fades, holds, both)]
        assert verdicts == ["replicated", "not replicated", "replicated", "replicated"]


def test_flatness_is_compared_only_where_both_ended():
    records = [sharp("sam", 0, 1.0), sharp("sam-alone", 0, 4.0), sharp("sam", 1, 1.0), sharp("sam-alone", 1, None)]
    records += [sharp("sam", 2, None), sharp("sam-alone", 2, 4.0), sharp("sam", 3, 0.0), sharp("sam-alone", 3, 4.0)]
    assert fading.factors(records, fading.MEASURES[0], "sam", "sam-alone") == {0: -2.0}
    assert {effect.verdict for effect in fading.effects([records])} == {None}


# The command


@pytest.mark.timeout(300)
def test_the_study_of_a_task_of_ones_own(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["study", "lightsam", "--preset", "smoke", "--task", tiny, "--out", str(out), "--jobs", "1"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "LightSAM-III" in printed
    page = (out / "study.md").read_text()
    assert "| LightSAM depends less on its setting than SAM | wide |" in page
    assert "narrow |" not in page  # three values are all there are
    results = json.loads((out / "study.json").read_text())
    found = results["tasks"]["tiny.py:tiny"]
    assert {name: len(one["settings"]) for name, one in found["grids"].items()} == {
        name: 3 if name in PLAIN else 9 for name in METHODS
    }
    assert set(found["radii"]) == set(METHODS) - set(PLAIN)
    lines = page[page.index("## What the climbs do") :].splitlines()
    cells = {line.split(" | ")[1]: line.strip("| ").split(" | ")[2:] for line in lines if line.startswith("| tiny.py")}
    assert list(cells) == [report.NAMES[method] for method in METHODS if method not in PLAIN]
    assert (
        cells["SAM"][0] == cells["SAM"][1] == f"{found['grids']['sam']['settings'][found['chosen']['sam']]['rho']:.2g}"
    )
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ["radii.png", "tiny-tiny.png"]
    assert cli.main(command) == 0
    assert "153 of 153 trials were finished in an earlier run" in capsys.readouterr().out


def test_unknown_presets_are_refused(capsys):
    assert cli.main(["study", "lightsam", "--preset", "smal"]) == 2
    assert "--preset: unknown preset 'smal'; did you mean 'small'?" in capsys.readouterr().err
