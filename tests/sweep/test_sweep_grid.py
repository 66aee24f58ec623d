from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from steppe.lab.errors import UserError
from steppe.lab.plans.grid import parse, probes, settings, shown, words


def test_a_log_range_has_equal_ratios_and_readable_values():
    (axis,) = parse(["rho=0.01:1:7log"], counted=True)
    assert axis.values == (0.01, 0.02154, 0.04642, 0.1, 0.2154, 0.4642, 1.0)
    assert axis.words == "rho=0.01:1:7log"


def test_a_linear_range_and_lists():
    rho, lr, when = parse(["rho=0:1:3", "lr=1e-1,1e-3", "stretched=true,false"], counted=True)
    assert rho.values == (0.0, 0.5, 1.0)
    assert (lr.values, lr.words) == ((0.001, 0.1), "lr=0.001,0.1")
    assert (when.values, when.words, when.numeric) == ((False, True), "stretched=false,true", False)


def test_values_by_name():
    rho, lr = parse({"rho": [0.1, 0.05], "lr": "1e-3:1e-1:3log"}, counted=True)
    assert (rho.values, lr.values) == ((0.05, 0.1), (0.001, 0.01, 0.1))


def test_all_settings():
    axes = parse(["rho=1,2", "lr=3,4,5"], counted=True)
    assert settings(axes) == [{"rho": rho, "lr": lr} for rho in (1.0, 2.0) for lr in (3.0, 4.0, 5.0)]


def test_samplers_need_no_count():
    (axis,) = parse(["rho=0.01:1:log"], counted=False)
    assert (axis.low, axis.high, axis.log, axis.values, axis.words) == (0.01, 1.0, True, (), "rho=0.01:1:log")
    assert {probe["rho"] for probe in probes([axis])} >= {0.01, 1.0}
    assert any(0.01 < probe["rho"] < 1 for probe in probes([axis]))


def test_close_values_are_not_rounded_into_one():
    (axis,) = parse(["rho=1:1.001:5"], counted=True)
    assert len(set(axis.values)) == 5


@given(
    low=st.floats(1e-12, 1e12),
    factor=st.floats(1.0001, 1e12),
    count=st.integers(2, 60),
    log=st.booleans(),
)
def test_any_range_ascends_from_end_to_end_and_can_be_read_again(low, factor, count, log):
    high = low * factor
    text = f"x={low!r}:{high!r}:{count}{'log' if log else ''}"
    (axis,) = parse([text], counted=True)
    assert (axis.values[0], axis.values[-1], len(axis.values)) == (low, high, count)
    assert all(a < b for a, b in itertools.pairwise(axis.values))
    assert parse([axis.words], counted=True) == (axis,)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, unique=True))
def test_any_list_can_be_read_again(values):
    (axis,) = parse({"x": values}, counted=True)
    assert axis.values == tuple(sorted(values))
    assert parse([axis.words], counted=True) == (axis,)


pieces = st.sampled_from(
    [
        "rho",
        "lr",
        "=",
        ":",
        ",",
        "log",
        "true",
        "false",
        "0",
        "1e-3",
        "-1",
        "inf",
        "nan",
        "1e999",
        "7",
        " ",
        "1_0",
        "\x1b",
        "é",
    ]
)
anything = st.one_of(
    st.lists(st.lists(pieces, max_size=9).map("".join), max_size=3),
    st.lists(st.text(max_size=20), max_size=3),
    st.dictionaries(
        st.text(max_size=5), st.text(max_size=9) | st.lists(st.floats() | st.booleans(), max_size=3), max_size=2
    ),
)


@given(anything, st.booleans())
@settings_of(max_examples=300, deadline=None, derandomize=True)
def test_anything_is_a_grid_or_refused_in_one_line(grid, counted):
    axes, said = (), ""
    try:
        axes = parse(grid, counted)
    except UserError as error:
        said = str(error)
    assert bool(axes) != bool(said)
    assert said.isprintable()
    assert len(said) < 1000
    for axis in axes:
        assert all(math.isfinite(value) for value in axis.values)
        assert len(set(axis.values)) == len(axis.values)
        assert all(axis.has(value) for value in axis.values)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["rho"], "the grid has 'rho', which names no hyper-parameter; write NAME=LOW:HIGH:COUNT"),
        (["=1,2"], "the grid has '=1,2', which names no hyper-parameter"),
        (["rho=1:2:3:4"], "the grid of 'rho' is '1:2:3:4', which is no range"),
        (["rho=1:2"], "the grid of 'rho' is '1:2', which does not say how many values"),
        (["rho=2:1:3"], "the grid of 'rho' is '2:1:3', but the lower end of a range must come first"),
        (["rho=0:1:3log"], "the grid of 'rho' is '0:1:3log', but a log range must begin above 0, got 0"),
        (["rho=0:1:1"], "the grid of 'rho' is '0:1:1', but a range has 2 to 10000 values, got 1"),
        (["rho=a:1:3"], "the grid of 'rho' is 'a:1:3', of which 'a' is no number, true or false"),
        (["rho=true:1:3"], "the grid of 'rho' is 'true:1:3', but a range needs numbers at its ends"),
        (["rho=0.1,high"], "the grid of 'rho' is '0.1,high', of which 'high' is no number, true or false"),
        (["rho=0.1,inf"], "the grid of 'rho' is '0.1,inf', of which 'inf' is no number"),
        (["rho=0.1,"], "the grid of 'rho' is '0.1,', of which '' is no number"),
        (["rho=0.1,1e-1"], "the grid of 'rho' is '0.1,1e-1', which has a value twice"),
        (["rho=0.1,true"], "the grid of 'rho' is '0.1,true', which mixes numbers with true and false"),
        (["lr=-1e308:1e308:5"], "the grid of 'lr' is '-1e308:1e308:5', whose values are too close or too far apart"),
        (["lr=1e-320:1e308:10log"], "the grid of 'lr' is '1e-320:1e308:10log', whose values are too close or too far"),
        (["lr=0:5e-324:5"], "the grid of 'lr' is '0:5e-324:5', whose values are too close or too far apart"),
        ([f"lr=0:1:{'9' * 5000}"], "the grid of 'lr' is '0:1:999"),
        ({"rho": 10**400}, "the grid of 'rho' is '1000"),
        (["rho=0.1", "rho=0.2"], "the grid names 'rho' twice; give all its values at once"),
        ({"rho": []}, "the grid of 'rho' has no value"),
        ([], "the grid is empty; give for example --grid rho=0.01:1:7log"),
        (["a=0:1:200", "b=0:1:200"], "the grid has 40000 settings, and 10000 are the most; make it coarser"),
    ],
)
def test_bad_grids(grid, message):
    with pytest.raises(UserError) as caught:
        parse(grid, counted=True)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_how_values_are_shown():
    assert words({"rho": 0.02154, "lr": 1e-5, "stretched": True}) == "rho 0.02154, lr 1e-05, stretched true"
    assert words({"rho": 0.123456789, "betas": (0.9, 0.999)}) == "rho 0.1235, betas (0.9, 0.999)"
    assert shown(0.1 + 0.2) == "0.30000000000000004"
    assert shown((0.9, 1.0)) == "(0.9, 1)"
