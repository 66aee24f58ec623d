from __future__ import annotations

import json
import math
import re
import signal
import struct
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml
from rich.console import Console

from steppe.lab.crew.processes import interruptible
from steppe.lab.errors import RunError
from steppe.lab.judge.points import Point, SeedResult
from steppe.lab.plans.options import from_file
from steppe.lab.show import heatmap as pictures
from steppe.lab.show.sweep_console import ConsoleObserver, show
from steppe.lab.show.sweep_report import html, write_report
from steppe.lab.show.sweep_table import summary
from steppe.lab.sweeping.sweeping import Sweep


def point(slot, setting, *values, state="finished"):
    """A setting whose seeds found these validation metrics; on test data the order is the reverse."""
    seeds = tuple(
        SeedResult(
            seed=1000 + i,
            validation_metric=value,
            validation_loss=value,
            train_loss=0.5,
            train_metric=value,
            test_metric=None if value is None else 200 - value,
            test_loss=None if value is None else 200 - value,
            diverged=2 if value is None else None,
            curve=() if value is None else (2 * value, value),
            gradient_evaluations=20,
            seconds=1.5,
        )
        for i, value in enumerate(values)
    )
    return Point(slot, setting, state, seeds, seeds[0].curve if seeds else ())


@pytest.fixture
def swept(planned):
    """Six settings: three finished, one diverged, one pruned, one given up."""
    made = planned(("rho=0.01:1:3log", "lr=0.01,0.1"), seeds=2)
    settings = made.settings
    found = [
        point(0, settings[0], 3.0, 4.0),
        point(1, settings[1], 1.0, 2.0),
        point(2, settings[2], 2.0, 2.5),
        point(3, settings[3], None, state="diverged"),
        point(4, settings[4], state="pruned"),
        point(5, settings[5], state="given up"),
    ]
    return Sweep(made, tuple(found))


def test_ties_are_settled_by_the_validation_loss_and_then_by_order(swept):
    def tied(slot, *losses):
        found = point(slot, {"rho": 0.01, "lr": 0.1}, 1.0, 2.0)
        seeds = zip(found.seeds, losses, strict=True)
        return replace(found, seeds=tuple(seed.model_copy(update={"validation_loss": loss}) for seed, loss in seeds))

    points = (tied(0, 0.4, 0.4), tied(1, 0.1, 0.5), tied(2, 0.3, 0.3), tied(3, None, None), point(4, {}, 0.9, 1.9))
    for higher, order in ((False, [4, 1, 2, 0, 3]), (True, [1, 2, 0, 3, 4])):
        found = Sweep(replace(swept.plan, higher_is_better=higher), points)
        assert [one.slot for one in found.ranked] == order


def test_the_answer(swept):
    assert swept.setting == {"rho": 0.01, "lr": 0.1}
    assert swept.edges == ["rho", "lr"]
    assert swept.verdict == [
        "Best of 6: rho 0.01, lr 0.1, validation squared error 1.500 [-4.853, 7.853].",
        "Its test squared error is 198.500 [192.147, 204.853] (n=2).",
        "The best rho and lr lie at the edge of the grid; a wider one may have better settings.",
        "Of 6 settings, 1 diverged, 1 pruned (looked bad halfway), 1 given up (workers died at it).",
    ]


def test_the_files(swept, tmp_path):
    write_report(swept)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "best.yaml",
        "config.yaml",
        "heatmap.png",
        "report.html",
        "sweep.json",
        "table.md",
    }
    lines = [line.split("|")[1:-1] for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells[0] == ["", "rho", "lr", "validation squared error", "test squared error", "train loss", "seconds"]
    assert cells[2] == ["1", "0.01", "0.1", "1.500 [-4.853, 7.853]", "198.500 [192.147, 204.853]", "0.500", "3"]
    assert [line[4] for line in cells[3:]] == ["-", "-"]  # the test data of the others is not shown
    width, height = struct.unpack(">II", (out / "heatmap.png").read_bytes()[16:24])
    assert width > 500
    assert height > 300


def test_the_json_has_everything_but_test_numbers_of_what_was_not_chosen(swept, tmp_path):
    write_report(swept)
    content = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [p["state"] for p in content["points"]] == ["finished"] * 3 + ["diverged", "pruned", "given up"]
    assert content["points"][0]["seeds"][0]["curve"] == [6.0, 3.0]
    assert content["points"][3]["seeds"][0]["diverged"] == 2
    ends = {"low": pytest.approx(192.147, abs=1e-3), "high": pytest.approx(204.853, abs=1e-3)}
    assert content["best"]["test"] == {"value": 198.5, "error": 0.5, "n": 2, **ends}
    assert content["definition"]["grid"][0]["values"] == [0.01, 0.1, 1.0]
    text = json.dumps([p for p in content["points"] if p["setting"] != content["best"]["setting"]])
    assert "test" not in text
    assert not re.search(r"19[67]", text)


def test_the_best_setting_is_a_file_for_compare(swept, tmp_path):
    write_report(swept)
    asked = from_file(tmp_path / "out/best.yaml")
    assert asked.settings["sam"].hyperparameters == swept.plan.arm.hyperparameters | {"rho": 0.01, "lr": 0.1}
    assert (asked.base, asked.epochs, asked.task) == ("sgd", 3, f"{tmp_path / 'square.py'}:task")


def test_the_command_in_the_report_is_the_same_sweep(planned, command, tmp_path, swept):
    write_report(swept)
    assert swept.command == (
        f"steppe sweep --task {tmp_path / 'square.py'}:task --method sam --base sgd --grid rho=0.01:1:3log lr=0.01,0.1 "
        f"--seeds 2 --epochs 3 --out {tmp_path / 'out'}"
    )
    other = planned(
        ("rho=0.1:1:log",),
        settings={"sam": {"momentum": 0.5}},
        storage="postgresql+psycopg://me:secret@host/db",
        study="mine",
        sampler="tpe",
        trials=4,
        prune=True,
    )
    text = Sweep(other, ()).command
    assert text.endswith(
        "--sampler tpe --trials 4 --prune --storage 'postgresql+psycopg://me:***@host/db' --study mine "
        f"--config {tmp_path / 'out/config.yaml'}"
    )
    foreign = planned(
        method="own", settings={"own": {"method": "torch.optim:SGD", "lr": 0.1}}, grid=("momentum=0,0.9",)
    )
    assert Sweep(foreign, ()).command.endswith(f"--config {tmp_path / 'out/config.yaml'}")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(other.options))
    asked = from_file(tmp_path / "c.yaml")
    assert asked.settings["sam"].hyperparameters["momentum"] == 0.5
    assert (asked.base, asked.seeds, asked.epochs, asked.out) == ("sgd", 1, 3, str(tmp_path / "out"))


class Checked(HTMLParser):
    """Looks for what a self-contained page must not have."""

    def __init__(self):
        super().__init__()
        self.outside, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag in ("link", "iframe") or "src" in named or not named.get("href", "#").startswith("#"):
            self.outside.append((tag, attributes))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_is_self_contained_and_says_all(swept):
    page = html(swept)
    parser = Checked()
    parser.feed(page)
    assert parser.outside == []
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    text = " ".join(parser.texts)
    for part in (
        "Best of 6",
        "diverged in epoch 2",
        "pruned",
        "given up",
        "1.500 [-4.853, 7.853]",
        "rho=0.01:1:3log",
        "steppe sweep",
    ):
        assert part in text
    assert not re.search(r"19[67]", text)  # a test number of a setting that was not chosen


def test_names_are_escaped(planned):
    from dataclasses import replace

    made = planned(("rho=0.1,0.2",))
    made = replace(made, metric_name="<b>&error", source=replace(made.source, name="<i>.py:task"))
    swept = Sweep(made, (point(0, {"rho": 0.1}, 1.0), point(1, {"rho": 0.2}, 2.0)))
    page = html(swept)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;error" in page


@pytest.mark.parametrize(
    ("grid", "more"),
    [
        (("rho=0.01:1:3log",), {}),
        (("stretched=true,false",), {"settings": {"sam": {"every": 2}}}),
        (("rho=0.1",), {}),
        (("rho=0.01,0.1", "lr=0.01,0.1", "momentum=0,0.9"), {}),
        (("rho=0.01:1:3log", "stretched=true,false"), {"settings": {"sam": {"every": 2}}}),
        (("rho=0.01:1:log", "lr=0.01:0.1"), {"sampler": "random", "trials": 5}),
    ],
)
@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_pictures_of_all_kinds(planned, grid, more, state):
    """They name what they show; the tests of how they look are made by eye."""
    made = planned(grid, seeds=2, **more)
    settings = made.settings or [{"rho": 0.1 * (k + 1), "lr": 0.01 * (k + 1)} for k in range(5)]
    values = [(None,) if state == "diverged" else (k + 1.0, k + 2.0) for k in range(len(settings))]
    found = Sweep(made, tuple(point(k, setting, *values[k], state=state) for k, setting in enumerate(settings)))
    title, svg = pictures.svg(found)
    names = [axis.name for axis in pictures.varied(found)] or ["rho"]
    assert title.startswith("validation squared error ")
    assert all(name in title for name in names)
    assert ("best" in re.findall(r"<text[^>]*>([^<]*)</text>", svg)) == (state == "finished")
    assert ("diverged" in svg) == (state == "diverged")
    assert pictures.png(found)[:4] == b"\x89PNG"
    if len(names) == 3:
        assert title.endswith("over rho and lr, the best over momentum")


def test_a_folder_that_cannot_be_written_any_more(swept, monkeypatch):
    def refuse(*rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steppe.lab.show.sweep_report.write_atomically", refuse)
    with pytest.raises(RunError, match=r"the report cannot be written to '\S+': No space left on device"):
        write_report(swept)


def test_progress_without_a_terminal(planned, capsys):
    made = planned(("rho=0.1,0.2,0.3,0.4",), seeds=2)
    settings = made.settings
    with ConsoleObserver(made, Console(width=200)) as observer:
        observer.begin(4, [point(0, settings[0], 1.0, 2.0)])
        observer.running([made.trial(settings[1], 1000)])
        observer.finished(point(1, settings[1], None, state="diverged"))
        observer.finished(point(3, settings[3], state="pruned"))
        observer.warn("odd")
        observer.finished(point(2, settings[2], 1.0, 1.0))
    assert capsys.readouterr().out.strip().splitlines() == [
        "1 of 4 settings were done before",
        "2/4  rho 0.2: diverged in epoch 2",
        "3/4  rho 0.4: pruned",
        "warning: odd",
        "4/4  rho 0.3: validation squared error 1.000 [1.000, 1.000], 3.0 s",
    ]


def test_the_live_line(planned):
    made = planned(("rho=0.1,0.2,0.3",))
    settings = made.settings
    console = Console(force_terminal=True, width=140, record=True)
    with ConsoleObserver(made, console) as observer:
        observer.begin(3, [point(0, settings[0], 1.0)])
        observer.finished(point(1, settings[1], 2.0))
        observer.running([made.trial(settings[2], 1000)])
        line = "".join(segment.text for segment in console.render(observer._progress.get_renderable()))
    assert "2/3 about 0:00 left best 1.000: rho 0.1 1 training" in " ".join(line.split())


def test_the_end_on_the_console(swept, capsys):
    show(swept, Console())
    out = capsys.readouterr().out
    assert "square.py:task, sam, base sgd, 3 epochs, 6 settings, 2 seeds" in out
    assert re.search(r"1 +0\.01 +0\.1 +1\.500 \[-4\.853, 7\.853\] +198\.500 \[192\.147, 204\.853\]", out)
    assert out.splitlines()[-1].startswith("report: ")


def test_batch_systems_end_jobs_with_another_signal_than_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "rho=0.1", "lr"], "the grid has 'lr', which names no hyper-parameter; write NAME="),
        (["lr=0.1", "--grid", "lr=0.2"], "the grid names 'lr' twice"),
        (["--seeds", "0"], "--seeds: must be greater than or equal to 1, got 0"),
        (["--task", "digit"], "unknown task 'digit'; did you mean 'digits'?"),
        (["--sampler", "gird"], "unknown sampler 'gird'; did you mean 'grid'?"),
        (["--config", "measure.yaml"], "a sweep cannot measure; remove 'measure' from the file for --config"),
    ],
)
def test_bad_flags_are_one_line(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measure.yaml").write_text("measure: true\n")
    code, out, error = command("sweep", *words)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {message}")
    assert error.count("\n") == 1


def test_the_whole_command_line(command, task, tmp_path):
    """Several grids may follow one flag, and the flag may be repeated; settings come from a file."""
    (tmp_path / "c.yaml").write_text("base: sgd\nseeds: 9\nsettings: {sam: {momentum: 0.5}}\n")
    words = ["sweep", "--task", task(), "--method", "sam", "--grid", "rho=0.05:0.1:2log", "lr=1e-2:1e-1:2log"]
    words += ["--grid", "every=1,2", "--seeds", 1, "--epochs", 1, "--jobs", 1]
    words += ["--config", tmp_path / "c.yaml", "--out", tmp_path / "out"]
    code, out, error = command(*words)
    assert (code, error) == (0, "")
    assert "8/8  rho " in out
    content = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [axis["name"] for axis in content["definition"]["grid"]] == ["rho", "every", "lr"]
    assert content["definition"]["hyperparameters"]["momentum"] == 0.5
    assert content["definition"]["seeds"] == [1000]
    before = (tmp_path / "out/sweep.json").read_text()
    code, out, error = command(*words)  # nothing is left to do
    assert (code, error) == (0, "")
    assert out.startswith("8 of 8 settings were done before\n")
    assert (tmp_path / "out/sweep.json").read_text() == before


def test_a_result_in_scripts_and_notebooks(swept):
    title = "square.py:task, sam, base sgd, 3 epochs, 6 settings, 2 seeds"
    assert repr(swept) == str(swept) == f"Sweep of {title}\n{swept.verdict[0]}"
    made = replace(swept, summary=summary(swept))
    assert str(made) == summary(swept).markdown
    page = made._repr_html_()
    assert f"<strong>{swept.verdict[0]}</strong>" in page
    assert page.count("<tr>") == 4  # the head, and what was finished
    assert page.count("bold") == len(summary(swept).lines[0])  # the best


def test_pandas_has_a_line_for_each_setting(swept):
    frame = swept.to_pandas()
    assert list(frame["rho"]) == [0.01, 0.01, 0.1, 0.1, 1.0, 1.0]
    assert list(frame["lr"]) == [0.01, 0.1] * 3
    assert list(frame["state"]) == ["finished"] * 3 + ["diverged", "pruned", "given up"]
    assert frame["validation_metric"].to_list() == pytest.approx([3.5, 1.5, 2.25] + [math.nan] * 3, nan_ok=True)
    assert frame["validation_metric_error"].to_list()[:3] == pytest.approx([0.5, 0.5, 0.25])
    assert frame["test_metric"].notna().to_list() == [False, True] + [False] * 4  # of the best alone
    assert frame["test_metric"][1] == 198.5
    assert [str(frame[name].dtype) for name in ("seeds", "seconds", "test_metric")] == ["int64", "float64", "float64"]


def test_pandas_has_a_line_for_each_training(swept):
    frame = swept.to_pandas("trials")
    assert list(zip(frame["rho"], frame["lr"], frame["seed"], strict=True)) == [
        (point.setting["rho"], point.setting["lr"], result.seed) for point in swept.points for result in point.seeds
    ]
    assert frame["validation_metric"].to_list() == pytest.approx([3, 4, 1, 2, 2, 2.5, math.nan], nan_ok=True)
    assert frame["test_metric"].to_list() == pytest.approx([math.nan] * 2 + [199, 198] + [math.nan] * 3, nan_ok=True)
    assert list(frame["status"]) == ["finished"] * 6 + ["diverged"]
    assert frame["diverged_epoch"].to_list() == pytest.approx([math.nan] * 6 + [2], nan_ok=True)
    assert set(frame["method"]) == {"sam"}
