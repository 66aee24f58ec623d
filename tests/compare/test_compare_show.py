"""What a comparison shows: the picture of the seeds, the curves, and what trials tell of themselves."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats as scipy_stats

from steppe.drawing.style import looks
from steppe.lab.judge.comparison import Comparison
from steppe.lab.judge.stats import summarize
from steppe.lab.plans.arms import Arm
from steppe.lab.plans.comparison import Plan
from steppe.lab.plans.workers import Workers
from steppe.lab.show import curves, dots, facts
from steppe.lab.show.console import show
from steppe.lab.show.report import html, results
from steppe.lab.show.table import cells, headers, note, summary
from steppe.lab.tasks.sources import TaskSource
from steppe.lab.trials.records import Curve

TESTS = {"adamw": [60.0, 61.0, 62.5], "sam": [70.0, None, 71.0], "gsam": [None, None, None], "asam": [65.0, 65.5, 64.0]}


@pytest.fixture
def compared(record, tmp_path):
    def make(tests=TESTS, change=lambda record: record, epochs=2):
        found = [
            change(record(name, seed, value)) for name, values in tests.items() for seed, value in enumerate(values)
        ]
        arms = tuple(Arm(name, name, {"lr": 0.1}) for name in tests)
        seeds = tuple(range(max(map(len, tests.values()))))
        plan = Plan(TaskSource("mnist1d"), "adamw", arms, seeds, epochs, 5, Workers(1), tmp_path, "accuracy (%)", True)
        return Comparison(plan, found, summarize(found, "adamw", True))

    return make


def drawn(found):
    scale = dots.Scale.of(found.rows)
    return scale, {line.name: line for line in dots.lines(found.rows, looks(found.plan.names, "adamw"), scale)}


# Seeds


def test_bars_are_the_intervals_that_the_table_shows(compared):
    scale, lines = drawn(compared())
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(TESTS["asam"]), scipy_stats.sem(TESTS["asam"]))
    assert lines["asam"].label == f"64.83 [{low:.2f}, {high:.2f}]"
    assert f"| asam | {lines['asam'].label} |" in summary(compared()).markdown
    assert lines["asam"].bar == (scale.at(low), scale.at(high))
    assert lines["asam"].mean == pytest.approx((scale.at(low) + scale.at(high)) / 2, abs=0.01)
    assert (lines["gsam"].mean, lines["gsam"].bar, lines["gsam"].label) == (None, None, "diverged")


def test_one_seed_has_no_bar(compared):
    found = compared({"adamw": [60.0], "sam": [61.0]})
    _, lines = drawn(found)
    assert [line.bar for line in lines.values()] == [None, None]
    assert [line.label for line in lines.values()] == ["60.00", "61.00"]
    page = html(found)
    assert "95 % interval, " not in page
    assert "joins the dots" not in page


def test_ways_join_the_same_seed_of_neighbours_and_meet_at_the_border(compared):
    scale, lines = drawn(compared())
    assert list(lines) == ["adamw", "sam", "asam", "gsam"]
    assert [seed for seed, *_ in lines["adamw"].down] == [0, 2]  # the second of sam has diverged
    assert [seed for seed, *_ in lines["sam"].up] == [seed for seed, *_ in lines["sam"].down] == [0, 2]
    assert (lines["adamw"].up, lines["asam"].down, lines["gsam"].up) == ([], [], [])
    for (_, here, border), (_, there, same) in zip(lines["adamw"].down, lines["sam"].up, strict=True):
        assert border == same == pytest.approx((here + there) / 2, abs=0.01)
    assert [here for _, here, _ in lines["adamw"].down] == [scale.at(60.0), scale.at(62.5)]


def test_intervals_of_two_seeds_do_not_squeeze_the_seeds(compared):
    found = compared({"adamw": [60.0, 61.0], "sam": [60.2, 60.4]})
    scale, lines = drawn(found)
    assert lines["adamw"].cut
    assert lines["adamw"].bar == (0.0, 100.0)
    assert scale.at(61.0) - scale.at(60.0) == pytest.approx(100 / 3 / 1.12, abs=0.01)
    assert "which may go on beyond the picture" in html(found)
    assert not any(line.cut for line in drawn(compared())[1].values() if line.name == "asam")


# Curves


def with_curve(epochs):
    def change(one):
        numbers = [float(number) for number in range(1, epochs + 1)]
        spent = [10 * number for number in range(1, epochs + 1)]
        shift = one.config.seed
        curve = Curve(
            train_loss=[1 / number for number in numbers],
            validation_loss=numbers,
            validation_metric=[50 + number + shift for number in numbers],
            gradient_evaluations=spent,
            examples=spent,
            seconds=numbers,
        )
        return one.model_copy(update={"curve": curve})

    return change


def ticks(svg):
    """The numbers below the axis."""
    texts = re.findall(r'id="xtick_\d+".*?<text[^>]*>([^<]*)</text>', svg, re.DOTALL)
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts]


@pytest.mark.parametrize(
    ("epochs", "wanted"), [(3, [0, 1, 2, 3]), (12, [0, 5, 10]), (40, [0, 10, 20, 30, 40]), (150, [0, 50, 100, 150])]
)
def test_ticks_are_at_round_epochs(compared, epochs, wanted):
    found = compared(change=with_curve(epochs), epochs=epochs)
    panel = curves.panels(found.plan, found.records)[0]
    ElementTree.fromstring(panel.svg.replace("xlink:", ""))
    assert ticks(panel.svg) == wanted


def test_numbers_of_a_panel_are_means_at_their_places(compared):
    found = compared(change=with_curve(4), epochs=4)
    panels = curves.panels(found.plan, found.records)
    assert [panel.title for panel in panels] == [
        "train loss against epochs",
        "train loss against gradient evaluations",
        "validation accuracy (%) against epochs",
        "validation accuracy (%) against gradient evaluations",
    ]
    rows = {row["name"]: row for row in panels[3].numbers["rows"]}
    assert set(rows) == {"adamw", "sam", "asam"}
    assert (rows["sam"]["x"], rows["sam"]["y"]) == ([10, 20, 30, 40], ["52.00", "53.00", "54.00", "55.00"])
    assert panels[0].numbers["rows"][0]["y"] == ["1.00", "0.500", "0.333", "0.250"]
    assert [rows[name]["look"] for name in rows] == [
        list(looks(found.plan.names, "adamw")).index(name) for name in rows
    ]
    left, top, right, bottom = panels[0].numbers["frame"]
    assert 0 < left < right <= 1
    assert 0 <= top < bottom < 1
    low, high = panels[0].numbers["limits"]
    assert (low, high > 4) == (0, True)
    json.dumps([panel.numbers for panel in panels], allow_nan=False)


def test_bands_are_intervals_of_the_mean():
    values = [[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]]
    middle, reach = curves._mean_and_reach(values)
    low, high = scipy_stats.t.interval(0.95, 2, np.mean([1, 2, 4]), scipy_stats.sem([1, 2, 4]))
    assert (middle[0] - reach[0], middle[0] + reach[0]) == (pytest.approx(low), pytest.approx(high))
    assert reach[1] == 0
    assert curves._mean_and_reach(values[:1])[1].tolist() == [0, 0]


@pytest.mark.parametrize(("seeds", "room"), [(2, False), (3, True)])
def test_bands_have_room_unless_they_are_of_two_seeds(compared, seeds, room):
    found = compared({"adamw": [60.0] * seeds, "sam": [70.0] * seeds}, change=with_curve(12), epochs=12)
    middle, reach = curves._lines(found.plan, found.records)["sam"].metric
    axes = Figure().subplots()
    curves._draw(axes, found.plan, curves._lines(found.plan, found.records), metric=True, against_cost=False)
    low, high = axes.get_ylim()
    assert bool(high > (middle + reach)[-1]) is room
    assert bool(low < (middle - reach)[1]) is room
    assert high > middle[-1]
    assert low < middle[1]


def test_a_loop_that_reports_no_losses_has_no_empty_panels(compared):
    def without_loss(one):
        return one.model_copy(update={"curve": one.curve.model_copy(update={"train_loss": [], "validation_loss": []})})

    found = compared(change=without_loss)
    panels = curves.panels(found.plan, found.records)
    assert [panel.title.split(" against")[0] for panel in panels] == ["validation accuracy (%)"] * 2
    nothing = compared(change=lambda one: one.model_copy(update={"curve": Curve()}))
    assert curves.panels(nothing.plan, nothing.records) == []
    assert "How they got there" not in html(nothing)


# What trials tell


def told(one):
    if one.final is None:
        return one
    examples = {"train_examples": 4000, "validation_examples": 1000, "test_examples": 1000}
    return one.model_copy(
        update={
            "final": one.final.model_copy(update=examples),
            "parameters": 6210,
            "hardware": f"Chip {one.config.seed % 2}",
            "date": f"2026-01-{31 - one.config.seed}",
        }
    )


def test_what_is_known_is_said(compared):
    found = compared(change=told)
    assert facts.of_trials(found.records) == [
        ("examples", "4,000 training, 1,000 validation, 1,000 test"),
        ("model", "6,210 parameters"),
        ("hardware", "Chip 0; Chip 1"),
        ("date", "2026-01-31"),
    ]
    page = html(found)
    for name, words in facts.of_trials(found.records):
        assert f"<dt>{name}</dt><dd>{words}</dd>" in page
    assert {name: results(found)[name] for name in ("n_train", "n_validation", "n_test")} == {
        "n_train": 4000,
        "n_validation": 1000,
        "n_test": 1000,
    }


def test_the_number_of_test_examples_stands_below_every_table(compared):
    found = compared(change=told)
    sentence = "The test data has 1,000 examples."
    console = Console(file=io.StringIO(), width=300)
    show(found, console)
    assert all(sentence in text for text in (summary(found).markdown, console.file.getvalue(), html(found)))


def test_memory_has_a_column_where_a_device_counts_it(compared):
    def spent(one):
        peak = {"adamw": 1_000_000, "sam": 1_250_000}[one.config.row]
        return one.model_copy(update={"peak_memory": peak})

    found = compared({name: TESTS[name] for name in ("adamw", "sam")}, change=spent)
    column = headers(found).index("memory / adamw")
    assert [line[column] for line in cells(found)] == ["1.00", "1.25"]
    assert " times its training time, with 1.2 times its memory" in " ".join(found.verdict)
    assert "memory / adamw" in html(found)
    assert found.to_pandas()["relative_memory"].to_list() == [1.0, 1.25]
    assert set(found.to_pandas("trials")["peak_memory"]) == {1_000_000, 1_250_000}
    assert not any("memory" in title for title in headers(compared()))


def test_what_is_not_known_is_left_out(compared):
    found = compared()
    assert facts.of_trials(found.records) == []
    assert "The test data has" not in note(found)
    assert results(found)["n_test"] is None


def test_splits_that_differ_are_a_range(compared):
    def own_split(one):
        if one.final is None:
            return one
        return one.model_copy(
            update={"final": one.final.model_copy(update={"test_examples": 1000 - one.config.seed}), "parameters": 7}
        )

    found = compared(change=own_split)
    assert "The test data has 998 to 1,000 examples." in note(found)
    assert results(found)["n_test"] is None
    assert facts.of_trials(found.records) == [("examples", "998 to 1,000 test"), ("model", "7 parameters")]


def test_a_narrow_terminal_gets_every_column_whole(compared):
    found = compared(change=told)
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    show(found, console)
    text = console.file.getvalue()
    assert "…" not in text
    for title, *column in zip(*summary(found).lines, strict=True):
        assert title.rsplit(" ", 1)[-1] in text
        assert all(cell in text for cell in column)
    assert max(len(line) for line in text.splitlines() if not line.startswith("report:")) <= 60
