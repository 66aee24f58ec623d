"""Splits: disjoint, stratified, reproducible, and no text in two of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.lab import UserError
from steppe.lab.tasks.text.rows import Rows
from steppe.lab.tasks.text.splits import quotas, split

NAMES = ("a", "b", "c", "d")


def rows(texts, labels, file="train.csv"):
    texts = [(text,) if isinstance(text, str) else text for text in texts]
    return Rows(texts, list(labels), file, list(range(2, len(texts) + 2)), "line", "")


def many(*counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return rows([f"text {i}" for i in range(len(labels))], labels)


def parts(found):
    return {"train": found.train, "validation": found.validation, "test": found.test}


def labels(part):
    return Counter(part.labels)


@settings(max_examples=80, deadline=None)
@given(counts=st.lists(st.integers(3, 60), min_size=2, max_size=4), seed=st.integers(0, 99), given_test=st.booleans())
def test_classes_have_the_same_part_of_every_split(counts, seed, given_test):
    everything, names = many(*counts), NAMES[: len(counts)]
    test = rows(["other 1", "other 2"], [0, 1], "test.csv") if given_test else None
    found = split(everything, test, names, seed=seed)
    lines = [number for part in parts(found).values() if part.file == "train.csv" for number in part.numbers]
    assert sorted(lines) == everything.numbers  # all of them, each once
    assert found == split(everything, test, names, seed=seed)
    assert found.left_out == 0
    remaining = Counter(everything.labels)
    if given_test:
        assert found.test == test
    else:
        wanted = quotas(dict(remaining), 0.2, 10_000)
        assert labels(found.test) == wanted
        remaining -= labels(found.test)
    assert labels(found.validation) == quotas(dict(remaining), 0.1, 2000)
    assert min(labels(found.train)[label] for label in range(len(counts))) >= 1
    for part in parts(found).values():
        assert part.numbers == sorted(part.numbers)


@settings(max_examples=80, deadline=None)
@given(counts=st.dictionaries(st.integers(0, 9), st.integers(1, 500), min_size=1), share=st.floats(0.01, 0.5), most=st.integers(10, 60))  # fmt: skip
def test_quotas_are_shares_to_within_one(counts, share, most):
    found = quotas(counts, share, most)
    everything, total = sum(counts.values()), sum(found.values())
    assert total == max(2, len(counts), min(round(share * everything), most))
    assert all(part >= 1 for part in found.values())
    if all(total * count >= everything for count in counts.values()):  # none is lifted to one
        assert all(abs(found[label] - total * count / everything) < 1 for label, count in counts.items())


@settings(max_examples=80, deadline=None)
@given(
    draws=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=30, max_size=120),
    held=st.none() | st.sets(st.integers(0, 40), min_size=2, max_size=10),
    regression=st.booleans(),
    seed=st.integers(0, 9),
)
def test_no_text_lies_in_two_splits(draws, held, regression, seed):
    everything = rows([f"Text {'  ' * (label + 1)}{text}" for text, label in draws], [label for _, label in draws])
    test = None if held is None else rows([f"text {text}" for text in sorted(held)], [0] * len(held), "test.csv")
    try:
        found = split(everything, test, () if regression else NAMES[:2], seed=seed)
    except UserError as error:
        assert "different texts" in str(error)  # noqa: PT017 - some draws are too poor
        return
    texts = [{" ".join(one.split()).lower() for (one,) in part.texts} for part in parts(found).values()]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    left_out = sum(text in (held or ()) for text, _ in draws)
    assert found.left_out == left_out
    sizes = [len(part) for part in parts(found).values() if part.file == "train.csv"]
    assert sum(sizes) + left_out == len(draws)
    assert min(map(len, parts(found).values())) >= 2


def test_pairs_are_the_same_if_both_texts_are():
    pairs = [("a", "b"), ("a", "c"), ("A ", " b"), ("b", "a")]
    everything = rows(pairs + [(f"x{i}", "y") for i in range(20)], [0, 1] * 12)
    found = split(everything, rows([("a", "b"), ("n", "n")], [0, 1], "test.csv"), NAMES[:2])
    assert found.left_out == 2
    assert {("a", "c"), ("b", "a")} <= {*found.train.texts, *found.validation.texts}


def test_texts_that_are_there_often_do_not_empty_a_split():
    everything = rows(["a", "b"] + ["c"] * 8 + [f"d{i}" for i in range(10)], [0] * 10 + [1] * 10)
    for seed in range(10):
        found = split(everything, None, NAMES[:2], seed=seed)
        assert all(set(part.labels) == {0, 1} for part in parts(found).values())
    found = split(
        rows(["a", "a", "b", "b", "c", "c", "d", "d"], [0, 0, 0, 0, 1, 1, 1, 1]), rows("xy", [0, 1]), NAMES[:2]
    )
    assert sorted(map(len, (found.train, found.validation))) == [4, 4]


def test_sizes():
    found = split(many(30_000, 10_000), many(5, 5).chosen([0, 9]), NAMES[:2])
    assert labels(found.validation) == {0: 1500, 1: 500}
    found = split(rows([f"{i}" for i in range(70_000)], [i / 7 for i in range(70_000)]), None, ())
    assert [len(part) for part in parts(found).values()] == [58_000, 2000, 10_000]


def test_few_labels_are_drawn_after_the_split():
    everything = many(40, 60, 50)
    full = split(everything, None, NAMES[:3], seed=4)
    few = split(everything, None, NAMES[:3], per_class=8, seed=4)
    assert labels(few.train) == {0: 8, 1: 8, 2: 8}
    assert (few.validation, few.test) == (full.validation, full.test)
    assert set(few.train.texts) < set(full.train.texts)
    assert few == split(everything, None, NAMES[:3], per_class=8, seed=4)
    assert few.train != split(everything, None, NAMES[:3], per_class=8, seed=5).train
    assert len(split(everything, None, NAMES[:3], per_class=1).train) == 3


@pytest.mark.parametrize(
    ("made", "more", "message"),
    [
        (
            (many(5, 2), None, NAMES[:2]),
            {},
            "train.csv: the class 'b' needs at least 3 different texts, one each for training, validation and test, "
            "got 2; add rows, or remove the class",
        ),
        (
            (rows(["a", "b", "c", "d", "D "], [0, 0, 0, 1, 1]), rows("xy", [0, 1]), NAMES[:2]),
            {},
            "train.csv: the class 'b' needs at least 2 different texts, one each for training and validation, got 1; "
            "add rows, or remove the class",
        ),
        (
            (rows("abcdef", [0, 0, 0, 1, 1, 1]), rows("bcd", [0, 0, 1]), NAMES[:2]),
            {},
            "train.csv: the class 'a' needs at least 2 different texts, one each for training and validation, got 1, "
            "after 3 rows whose texts are among the test rows were left out; add rows, or remove the class",
        ),
        (
            (rows("abcd", [0, 1, 2, 3]), None, NAMES),
            {},
            "train.csv: the class 'a' needs at least 3 different texts, one each for training, validation and test, "
            "got 1; add rows, or remove the class; if the labels are numbers to predict, say so (regression)",
        ),
        (
            (rows("abcda", [0.5] * 5), None, ()),
            {},
            "train.csv: at least 6 different texts are needed, got 4; add some",
        ),
        (
            (many(9, 9), rows("x", [0], "test.csv"), NAMES[:2]),
            {},
            "test.csv: the test split needs at least 2 rows, got 1; add some",
        ),
        (
            (many(20, 10), None, NAMES[:2]),
            {"per_class": 8},
            "train.csv: per_class=8, but the class 'b' has 7 training rows after the split; ask for fewer",
        ),
        (
            (many(20), None, ()),
            {"per_class": 8},
            "per_class is for classes, got 8 where numbers are to be predicted; leave it out",
        ),
        ((many(9, 9), None, NAMES[:2]), {"per_class": 0}, "per_class must be a whole number of at least 1, got 0"),
        ((many(9, 9), None, NAMES[:2]), {"per_class": True}, "per_class must be a whole number of at least 1, got True"),
        ((many(9, 9), None, NAMES[:2]), {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ((many(9, 9), None, NAMES[:2]), {"seed": None}, "seed must be a whole number of at least 0, got None"),
    ],
)  # fmt: skip
def test_what_is_refused(made, more, message):
    with pytest.raises(UserError) as caught:
        split(*made, **more)
    assert str(caught.value) == message
