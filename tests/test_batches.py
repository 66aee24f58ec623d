"""Batch sizes that change, batches in parts, and learning rates that go with batch sizes."""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections import UserDict, UserList, deque, namedtuple
from dataclasses import InitVar, dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from itertools import chain, pairwise
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from problems import Problem
from steppe import ESAM, SAM, ScheduledBatchSampler
from steppe.batches import (
    capped,
    constant,
    fraction_of,
    geometric,
    hardest,
    linear,
    microbatches,
    multiply,
    scale_lr,
)

Pair = namedtuple("Pair", ["x", "y"])

sizes = st.integers(1, 9)
schedules = st.one_of(
    st.builds(constant, sizes),
    st.builds(multiply, sizes, st.sampled_from([0.5, 1.5, 2]), st.integers(1, 4)),
    st.builds(linear, sizes, sizes, st.integers(1, 12)),
    st.builds(geometric, sizes, sizes, st.integers(1, 12)),
)
pers = st.sampled_from(["epoch", "update"])
over_pers = pytest.mark.parametrize("per", ["epoch", "update"])
few = settings(deadline=None, max_examples=60)


def epochs(sampler, n):
    return [list(sampler) for _ in range(n)]


def flat(batches):
    return list(chain.from_iterable(batches))


# Schedules


@few
@given(sizes, sizes, st.integers(1, 12), st.integers(0, 40))
def test_closed_forms(start, end, over, t):
    share = min(t, over) / over
    assert constant(start)(t) == start
    assert linear(start, end, over)(t) == round(start + (end - start) * share)
    assert geometric(start, end, over)(t) == pytest.approx(start * (end / start) ** share, abs=0.5 + 1e-9)
    assert multiply(start, 2, over)(t) == start * 2 ** (t // over)
    assert multiply(start, 0.5, over)(t) == max(1, round(start / 2 ** (t // over)))
    assert capped(multiply(start, 2, over), end)(t) == min(start * 2 ** (t // over), end)


@few
@given(sizes, sizes, st.integers(1, 12))
def test_ramps_begin_and_end_where_they_should(start, end, over):
    for ramp in (linear(start, end, over), geometric(start, end, over)):
        run = [ramp(t) for t in range(over + 3)]
        assert (run[0], run[over:]) == (start, [end] * 3)
        assert all((b - a) * (end - start) >= 0 for a, b in pairwise(run))


def test_growth_without_bound_can_be_capped():
    assert multiply(16, 1.5, 1)(10**6) == sys.maxsize
    assert capped(multiply(16, 1.5, 1), 512)(10**6) == 512


@few
@given(schedules)
def test_schedules_are_values(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert [again(t) for t in range(20)] == [schedule(t) for t in range(20)]


# The sampler


@few
@given(st.integers(1, 40), schedules, pers, st.integers(0, 3), st.booleans())
def test_every_index_once_per_epoch(n, schedule, per, seed, shuffle):
    sampler = ScheduledBatchSampler(n, schedule, per=per, seed=seed, shuffle=shuffle)
    update = 0
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(flat(batches)) == list(range(n))
        for batch in batches[:-1]:
            assert len(batch) == schedule(epoch if per == "epoch" else update)
            update += 1
        assert 0 < len(batches[-1]) <= schedule(epoch if per == "epoch" else update)
        update += 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_that_of_torch(shuffle):
    sampler = ScheduledBatchSampler(range(23), constant(4), shuffle=shuffle, seed=3)
    theirs = DistributedSampler(range(23), 1, 0, shuffle=shuffle, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert flat(sampler) == list(theirs)


@over_pers
def test_drop_last_leaves_out_the_smaller_batch(per):
    kept = ScheduledBatchSampler(23, constant(4), per=per)
    dropped = ScheduledBatchSampler(23, constant(4), per=per, drop_last=True)
    for ours, theirs in zip(epochs(dropped, 3), epochs(kept, 3), strict=True):
        assert ours == theirs[:5]
    assert (len(dropped), len(kept)) == (5, 6)
    assert list(ScheduledBatchSampler(8, constant(4), drop_last=True, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_drop_last_with_updates_counts_no_update_for_what_it_drops():
    sampler = ScheduledBatchSampler(10, linear(2, 9, 7), per="update", drop_last=True, shuffle=False)
    assert [[len(batch) for batch in epoch] for epoch in epochs(sampler, 3)] == [[2, 3, 4], [5], [6]]


@few
@given(st.integers(1, 40), schedules, pers, st.sampled_from([2, 3]), st.booleans())
def test_ranks_share_the_batches_of_one_process(n, schedule, per, replicas, shuffle):
    def even(t):
        return replicas * schedule(t)

    alone = epochs(ScheduledBatchSampler(n, even, per=per, shuffle=shuffle), 4)
    ranks = [
        epochs(ScheduledBatchSampler(n, even, per=per, shuffle=shuffle, num_replicas=replicas, rank=rank), 4)
        for rank in range(replicas)
    ]
    for epoch, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        order = flat(epoch)
        shares = list(zip(*parts, strict=True))
        for k, (batch, share) in enumerate(zip(epoch, shares, strict=True)):
            assert len({len(part) for part in share}) == 1
            if k < len(epoch) - 1 or len(batch) % replicas == 0:
                assert sorted(flat(share)) == sorted(batch)
        padding = -len(epoch[-1]) % replicas
        filled = epoch[-1] + [order[i % n] for i in range(padding)]
        assert sorted(flat(shares[-1])) == sorted(filled)


@few
@given(st.integers(1, 30), schedules, pers, st.booleans())
def test_set_epoch_on_a_fresh_sampler_is_iterating_through(n, schedule, per, shuffle):
    through = epochs(ScheduledBatchSampler(n, schedule, per=per, shuffle=shuffle), 5)
    for epoch in (4, 2, 3):
        fresh = ScheduledBatchSampler(n, schedule, per=per, shuffle=shuffle)
        fresh.set_epoch(epoch)
        assert list(fresh) == through[epoch]
        fresh.set_epoch(1)
        assert list(fresh) == through[1]
        assert list(fresh) == through[2]


def test_set_epoch_repeats_and_a_broken_off_iteration_begins_again():
    sampler = ScheduledBatchSampler(10, constant(3))
    first, second = epochs(ScheduledBatchSampler(10, constant(3)), 2)
    assert next(iter(sampler)) == first[0]
    assert sampler.state_dict()["batches"] == 1
    iter(sampler)
    assert sampler.state_dict()["batches"] == 0
    assert list(sampler) == first
    sampler.set_epoch(0)
    assert list(sampler) == first
    iterator = iter(sampler)
    assert [next(iterator), next(iterator)] == second[:2]
    sampler.set_epoch(1)
    assert sampler.state_dict()["batches"] == 0
    assert list(sampler) == second


def test_batch_size_follows():
    sampler = ScheduledBatchSampler(12, linear(2, 8, 3), per="update", shuffle=False)
    assert sampler.batch_size == 2
    assert [(len(batch), sampler.batch_size) for batch in sampler] == [(2, 2), (4, 4), (6, 6)]
    sampler.set_epoch(1)
    assert sampler.batch_size == 8
    by_epoch = ScheduledBatchSampler(12, multiply(3, 2, 1))
    sizes = []
    for epoch in range(3):
        by_epoch.set_epoch(epoch)
        sizes.append((by_epoch.batch_size, len(by_epoch)))
    assert sizes == [(3, 4), (6, 2), (12, 1)]


# Resuming


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("drop_last", [True, False])
@over_pers
def test_resuming_at_every_point_is_the_uninterrupted_run(per, drop_last, replicas):
    def even(t):
        return 2 * linear(1, 5, 4)(t)

    build = partial(ScheduledBatchSampler, 21, even, per=per, drop_last=drop_last, seed=5)
    saving = build()
    whole = epochs(build(num_replicas=replicas, rank=replicas - 1), 4)
    for epoch in range(3):
        saving.set_epoch(epoch)
        iterator = iter(saving)
        for done in range(len(saving) + 1):
            for state in (saving.state_dict(), saving.state_dict(batches=done)):
                resumed = build(num_replicas=replicas, rank=replicas - 1)
                resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
                rest = [whole[epoch][done:], *whole[epoch + 1 :]]
                rest = rest if rest[0] else rest[1:]
                assert resumed.first == (done if done < len(saving) else 0)
                assert resumed.epoch == (epoch if done < len(saving) else epoch + 1)
                if done < len(saving):
                    assert resumed.batch_size == saving.batch_size
                for expected in rest:
                    assert list(resumed) == expected
            if done < len(saving):
                next(iterator)


def test_a_loop_that_calls_set_epoch_resumes_too():
    build = partial(ScheduledBatchSampler, 10, constant(3))
    whole = epochs(build(), 3)
    sampler = build()
    sampler.set_epoch(1)
    iterator = iter(sampler)
    next(iterator)
    resumed = build()
    resumed.load_state_dict(sampler.state_dict())
    seen = []
    for epoch in range(resumed.epoch, 3):
        resumed.set_epoch(epoch)
        for k, batch in enumerate(resumed, start=resumed.first):
            seen.append(batch)
            assert batch == whole[epoch][k]
            assert resumed.state_dict() == resumed.state_dict(batches=k + 1)
    assert seen == whole[1][1:] + whole[2]
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(2)  # another epoch than the loaded one
    assert list(resumed) == whole[2]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork, by Python 3.12 and later
@pytest.mark.parametrize("workers", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_in_a_loader(workers):
    data = TensorDataset(torch.arange(20))

    def build():
        sampler = ScheduledBatchSampler(data, multiply(2, 2, 1), seed=1)
        return sampler, DataLoader(data, batch_sampler=sampler, **workers)

    whole = epochs(ScheduledBatchSampler(data, multiply(2, 2, 1), seed=1), 3)
    sampler, loader = build()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(loader) == len(whole[epoch])
        for k, (batch,) in enumerate(loader, start=sampler.first):
            assert batch.tolist() == whole[epoch][k]
            if (epoch, k) == (1, 1):
                state = sampler.state_dict(batches=k + 1)
    again, loader = build()
    again.load_state_dict(state)
    assert [batch.tolist() for (batch,) in loader] == whole[1][2:]
    assert [batch.tolist() for (batch,) in loader] == whole[2]


# Batches in parts


@few
@given(st.integers(1, 60), st.integers(1, 70))
def test_parts_are_equal_and_cover_the_batch(n, at_most):
    parts = list(microbatches(torch.arange(n), at_most))
    lengths = [len(part) for part, _ in parts]
    assert torch.equal(torch.cat([part for part, _ in parts]), torch.arange(n))
    assert len(parts) == math.ceil(n / at_most)
    assert max(lengths) <= at_most
    assert max(lengths) - min(lengths) <= 1
    assert [weight for _, weight in parts] == [length / n for length in lengths]


@few
@given(st.integers(1, 40), st.integers(1, 45))
def test_a_step_in_parts_is_the_step(n, at_most):
    flats = []
    for parts in (False, True):
        problem = Problem()
        opt = SAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=0.2)

        def closure(problem=problem, opt=opt, parts=parts):
            opt.zero_grad()
            if not parts:
                loss = problem.loss(torch.arange(n))
                loss.backward()
                return loss
            total = 0.0
            for part, weight in microbatches(torch.arange(n), at_most):
                loss = weight * problem.loss(part)
                loss.backward()
                total += loss.detach()
            return total

        loss = opt.step(closure)
        flats.append(torch.cat([problem.flat(), loss.detach()[None]]))
    torch.testing.assert_close(flats[0], flats[1], rtol=1e-12, atol=1e-12)


def test_nested_batches():
    x = torch.arange(10).view(5, 2)
    batch = {
        "pair": Pair(x, [x, (x[:, 0],)]),
        "texts": list("abcde"),
        "ids": tuple("abcde"),
        "scale": torch.tensor(2.0),
        "names": ["cat", "dog"],
        "train": True,
        "none": None,
    }
    (first, three), (second, two) = microbatches(batch, at_most=3)
    assert (three, two) == (3 / 5, 2 / 5)
    assert (first["texts"], second["texts"]) == (list("abc"), list("de"))
    assert (first["ids"], second["ids"]) == (tuple("abc"), tuple("de"))
    for part, rows in ((first, slice(0, 3)), (second, slice(3, 5))):
        assert isinstance(part["pair"], Pair)
        assert torch.equal(part["pair"].x, x[rows])
        assert torch.equal(part["pair"].y[0], x[rows])
        assert torch.equal(part["pair"].y[1][0], x[rows, 0])
        assert part["scale"] is batch["scale"]
        assert (part["names"], part["train"], part["none"]) == (["cat", "dog"], True, None)
    assert first["pair"].x.data_ptr() == x.data_ptr()


def test_a_list_of_tensors_is_a_batch():
    x, y = torch.rand(4, 2), torch.arange(4)
    parts = [part for part, _ in microbatches([x, y], at_most=2)]
    assert [type(part) for part in parts] == [list, list]
    assert torch.equal(parts[1][0], x[2:])


# The first examples, and the hardest


class Encoding(UserDict):
    """A mapping that is no dict, as what tokenizers return."""


@dataclass
class Record:
    x: torch.Tensor
    y: object = None
    seen: bool = field(init=False, default=False)


@dataclass(frozen=True)
class Counted:
    """Derives a number and a tensor from its fields."""

    x: torch.Tensor
    n: int = field(init=False)
    large: torch.Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "n", len(self.x))
        object.__setattr__(self, "large", self.x > 3)


X = torch.arange(10).view(5, 2)
A = X.numpy()
NESTED = {
    "a tensor": (X, lambda rows: X[rows]),
    "a tuple": ((X, X[:, 0]), lambda rows: (X[rows], X[rows, 0])),
    "a list": ([X, X[:, 0]], lambda rows: [X[rows], X[rows, 0]]),
    "a named tuple": (Pair(X, [X]), lambda rows: Pair(X[rows], [X[rows]])),
    "a dict": ({"x": X, "y": (X,)}, lambda rows: {"x": X[rows], "y": (X[rows],)}),
    "an encoding": (Encoding(x=X, y=X[:, 1]), lambda rows: {"x": X[rows], "y": X[rows, 1]}),
    "texts": (
        {"x": X, "texts": list("abcde"), "ids": tuple("abcde")},
        lambda rows: {"x": X[rows], "texts": ["abcde"[i] for i in rows], "ids": tuple("abcde"[i] for i in rows)},
    ),
    "what is no example": (
        (X, torch.tensor(2.0), ["cat", "dog"], "word", None, True, 3),
        lambda rows: (X[rows], torch.tensor(2.0), ["cat", "dog"], "word", None, True, 3),
    ),
    "what is no example, although as long": (
        (X, "abcde", b"abcde", X.new_zeros(1, 2, 3, 4, 5).shape, set(range(5)), np.array(3), np.float64(2), [], {}),
        lambda rows: (X[rows], *NESTED["what is no example, although as long"][0][1:]),
    ),
    "arrays": (
        (A, {"names": np.array(list("abcde"))}),
        lambda rows: (A[rows], {"names": np.array(list("abcde"))[rows]}),
    ),
    "a mask": ((X, X[:, 0] > 3), lambda rows: (X[rows], (X[:, 0] > 3)[rows])),
    "other sequences": (
        (X, UserList("abcde"), deque(range(5))),
        lambda rows: (X[rows], ["abcde"[i] for i in rows], rows),
    ),
    "named texts": (
        (X, Pair(list("abcde"), "abcde")),
        lambda rows: (X[rows], Pair(["abcde"[i] for i in rows], "abcde")),
    ),
    "lists of texts": (
        (X, [list("abcde"), tuple("fghij")], [["a", "b"]] * 5),
        lambda rows: (
            X[rows],
            [["abcde"[i] for i in rows], tuple("fghij"[i] for i in rows)],
            [["a", "b"] for _ in rows],
        ),
    ),
    "objects": (
        (X, [SimpleNamespace(i=i) for i in range(5)]),
        lambda rows: (X[rows], [SimpleNamespace(i=i) for i in rows]),
    ),
    "objects with tensors, in a list": (
        (X, [SimpleNamespace(edges=torch.zeros(2, i)) for i in range(5)]),
        lambda rows: (X[rows], [NESTED["objects with tensors, in a list"][0][1][i] for i in rows]),
    ),
    "a dataclass": (Record(X, {"z": Record(X)}), lambda rows: Record(X[rows], {"z": Record(X[rows])})),
    "a frozen dataclass": ((Counted(X),), lambda rows: (Counted(X[rows]),)),
    "what torch.max returns": ((X, X.max(1)), lambda rows: (X[rows], X[rows].max(1))),
    "a sparse tensor": ((X, X.to_sparse()), lambda rows: (X[rows], X[rows].to_sparse())),
    "images beside labels": (
        (IMAGES := [torch.full((3, i, 2), i) for i in range(1, 6)], X),
        lambda rows: ([IMAGES[i] for i in rows], X[rows]),
    ),
    "arrays that differ": (
        {"audio": (AUDIO := [np.ones((i, 2)) for i in range(5)]), "y": X},
        lambda rows: {"audio": [AUDIO[i] for i in rows], "y": X[rows]},
    ),
    "images and boxes": (
        (tuple(IMAGES), BOXES := tuple({"boxes": torch.full((i, 4), i)} for i in range(5))),
        lambda rows: (tuple(IMAGES[i] for i in rows), tuple(BOXES[i] for i in rows)),
    ),
    "images and boxes whose first dimensions agree": (
        (tuple(IMAGES), [{"boxes": torch.ones(3, 4)}] * 5),
        lambda rows: (tuple(IMAGES[i] for i in rows), [{"boxes": torch.ones(3, 4)} for _ in rows]),
    ),
    "samples": (
        SAMPLES := [{"x": torch.full((i, 2), i), "y": i} for i in range(1, 6)],
        lambda rows: [SAMPLES[i] for i in rows],
    ),
    "views": (([X, X], X[:, 0]), lambda rows: ([X[rows], X[rows]], X[rows, 0])),
    "dicts": (({"x": X}, {"x": X}), lambda rows: ({"x": X[rows]}, {"x": X[rows]})),
}


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.layout == b.layout and torch.equal(a.to_dense(), b.to_dense())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(alike(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return a is b or a == b


@pytest.mark.parametrize("name", NESTED)
def test_the_first_examples(name):
    batch, of = NESTED[name]
    assert alike(fraction_of(batch, 0.5), of([0, 1, 2]))  # rounded up
    assert alike(fraction_of(batch, 0.4), of([0, 1]))
    assert alike(fraction_of(batch, 1.0), of([0, 1, 2, 3, 4]))
    assert alike(fraction_of(batch, 1e-9), of([0]))
    assert alike(fraction_of(batch, 1e-12), of([0]))
    assert alike(hardest(batch, torch.arange(5.0), 1e-12), of([4]))
    parts = [part for part, _ in microbatches(batch, 2)]
    assert all(map(alike, parts, (of([0, 1]), of([2, 3]), of([4]))))


def test_ranges_stay_ranges_where_they_can():
    assert fraction_of((X, range(5)), 0.4)[1] == range(2)
    assert hardest((X, range(5)), X[:, 0], 0.4)[1] == [3, 4]


def test_dataclasses_keep_what_was_set_by_hand():
    class Sub(Record):
        @cached_property
        def n(self):
            return len(self.x)

    batch = Sub(X, "word")
    batch.seen, batch.more, batch.name = True, X, "train"
    assert batch.n == 5
    part = fraction_of(batch, 0.4)
    assert (type(part), part.n, part.seen, part.name, part.y) == (Sub, 2, True, "train", "word")
    assert torch.equal(part.more, X[:2])
    config = Record(None)
    assert fraction_of((X, config), 0.4)[1] is config


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(layout):
    rows = [torch.arange(1.0 + i).requires_grad_() for i in range(5)]
    x = torch.nested.as_nested_tensor([row[:, None] * torch.ones(2) for row in rows], layout=layout)
    first = fraction_of({"x": x, "y": 2 * x}, 0.4)
    assert [row.tolist() for row in (first["x"] + first["y"]).unbind()] == [[[0.0, 0.0]], [[0.0, 0.0], [3.0, 3.0]]]
    hard = hardest((x, 2 * x), torch.tensor([0.3, -1.0, 0.9, 0.1, 0.5]), 0.4)
    sum(row.sum() for row in (hard[0] * hard[1]).unbind()).backward()
    for i, row in enumerate(rows):
        assert torch.equal(row.grad, 8 * row if i in (2, 4) else 0 * row)


def test_weights_have_the_gradient_of_a_part_of_a_sparse_batch():
    dense = torch.randn(5, 3) * (torch.randn(5, 3) > 0)
    grads = []
    for x in (dense, dense.to_sparse()):
        w = torch.ones(3, 2, requires_grad=True)
        (fraction_of(x, 0.6) @ w).square().sum().backward()
        grads.append(w.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lists_of_fields_are_no_examples_however_few_there_are(n):
    ids, y = torch.arange(2 * n).view(n, 2), torch.arange(n)
    for batch in ([ids, y], (ids, ids), [ids, ids, ids], {"x": ids, "y": ids}, ([ids, y], y), (Pair(ids, ids), y)):
        sizes = {len(x) for x in tensors(fraction_of(batch, 0.5))}
        assert sizes == {math.ceil(n / 2)}
        assert len(tensors(fraction_of(batch, 0.5))) == len(tensors(batch))


def tensors(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    return flat(map(tensors, batch.values() if isinstance(batch, dict) else batch))


def test_as_many_images_as_channels_are_examples_beside_boxes():
    images = [torch.full((3, 4, 4), i) for i in range(3)]
    boxes = [{"boxes": torch.ones(i, 4)} for i in range(3)]
    assert alike(fraction_of((images, boxes), 0.5), (images[:2], boxes[:2]))
    assert alike(fraction_of((images[:2], boxes[2:] * 2), 0.5), (images[:1], boxes[2:]))


def test_what_can_be_read_both_ways_passes_where_nothing_is_cut():
    views = ([X[:2], X[:2]], X[:2, 0])
    ((part, weight),) = microbatches(views, 2)
    assert weight == 1
    assert alike(part, views)
    assert alike(fraction_of(views, 1.0), views)


def test_the_first_examples_are_views():
    assert fraction_of((X, X), 0.4)[1].data_ptr() == X.data_ptr()


@pytest.mark.parametrize("name", NESTED)
def test_the_hardest_examples(name):
    batch, of = NESTED[name]
    rise = torch.tensor([0.3, -1.0, 0.9, 0.1, 0.5])
    assert alike(hardest(batch, rise, 0.5), of([0, 2, 4]))  # in their order
    assert alike(hardest(batch, rise, 0.2), of([2]))
    assert alike(hardest(batch, rise, 1.0), of([0, 1, 2, 3, 4]))


def test_the_hardest_examples_are_copies_and_need_no_gradient_of_the_rise():
    rise = (X[:, 0] * torch.tensor(1.0, requires_grad=True)).clone()
    found = hardest(X, rise, 0.4)
    assert torch.equal(found, X[3:])
    found.zero_()
    assert X[3:].all()


@few
@given(st.integers(1, 200), st.integers(1, 100))
def test_fractions_round_up_but_for_the_rounding_of_floats(n, percent):
    expected = -(-n * percent // 100)
    assert len(fraction_of(torch.zeros(n), percent / 100)) == expected
    assert len(hardest(torch.zeros(n), torch.zeros(n), percent / 100)) == expected


def test_esam_in_its_two_closures_is_the_plain_loop():
    """The climb on the batch, and the descent on the half of it that rises most."""
    problem, rho = Problem(), 0.1
    opt = ESAM(torch.optim.SGD(problem.model.parameters(), lr=0.1), rho=rho, beta=1.0)
    w = problem.flat()

    def losses(batch):
        return nn.functional.cross_entropy(problem.model(problem.x[batch]), problem.y[batch], reduction="none")

    for batch in problem.batches(6):
        before = losses(batch).detach()
        g = problem.gradient(w, batch)
        seen = []

        def sharp(batch=batch, before=before, seen=seen):
            with torch.no_grad():
                rise = losses(batch) - before
            seen.append(hardest(batch, rise, 0.5))
            assert rise[(batch[:, None] != seen[0]).all(1)].max() <= rise.sort().values[len(batch) // 2]
            opt.zero_grad()
            loss = problem.loss(seen[0])
            loss.backward()
            return loss

        opt.step(sharp, ascent=problem.closure(opt, batch))
        w = w - 0.1 * problem.gradient(w + rho * g / g.norm(), seen[0])
        torch.testing.assert_close(problem.flat(), w, rtol=0, atol=1e-12)
        assert len(seen[0]) == len(batch) // 2


# Learning rates


@few
@given(st.floats(0, 10), st.integers(1, 4096), st.integers(1, 4096))
def test_learning_rates(lr, b, reference):
    assert scale_lr(lr, b, reference) == pytest.approx(lr * math.sqrt(b / reference))
    assert scale_lr(lr, b, reference, rule="linear") == pytest.approx(lr * b / reference)
    assert scale_lr(lr, b, b) == lr


# Errors


def state(**changes):
    saving = ScheduledBatchSampler(10, constant(2))
    iterator = iter(saving)
    next(iterator)
    return {**saving.state_dict(), **changes}


def load(sampler=None, **changes):
    (sampler or ScheduledBatchSampler(10, constant(2))).load_state_dict(state(**changes))


def rewound():
    sampler = ScheduledBatchSampler(10, constant(2))
    sampler.load_state_dict(state())
    next(iter(sampler))
    sampler.state_dict(batches=0)


class Graph:
    """Holds tensors two objects deep, as graphs do."""

    def __init__(self):
        self._store = SimpleNamespace(_mapping={"edge_index": torch.zeros(2, 5)})


class Slotted:
    __slots__ = ("_x", "unset")

    def __init__(self):
        self._x = [X]


class Table:
    shape = (5, 2)

    def __len__(self):
        return 5


class Column:
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return i


@dataclass
class Scaled:
    x: torch.Tensor

    def __post_init__(self):
        self.x = self.x / 255


@dataclass
class Factored:
    x: torch.Tensor
    factor: InitVar[float]


def packed():
    return nn.utils.rnn.pack_sequence([X[:, 0], X[:3, 0]])


ITSELF = "or cut the batch yourself, as in ascent=lambda: gradient(part)."
HOLDS = f"it holds tensors, of which nothing says what they have per example. Make it a dict, {ITSELF}"
ARRAY = f"it is neither a tensor nor a numpy array. Make it one, {ITSELF}"
DRY = f"whoever reads it first leaves nothing for the next. Make it a list, {ITSELF}"
REFUSED = {
    "a graph": (Graph, f"a Graph: {HOLDS}"),
    "slots": (Slotted, f"a Slotted: {HOLDS}"),
    "a namespace": (lambda: SimpleNamespace(a={"x": (A,)}), f"a SimpleNamespace: {HOLDS}"),
    "a packed sequence": (
        packed,
        "a PackedSequence: its first dimension counts steps of all sequences together. Pack the part, or cut",
    ),
    "a table": (Table, f"a Table: {ARRAY}"),
    "a memory view": (lambda: memoryview(b"abcde"), f"a memoryview: {ARRAY}"),
    "a column": (Column, f"a Column: it is as long as the batch, and no sequence. Make it a list, {ITSELF}"),
    "a view of a dict": (lambda: dict.fromkeys("abcde").values(), "a dict_values: it is as long as the batch, and no"),
    "a generator": (lambda: (x for x in X), f"a generator: {DRY}"),
    "an iterator": (lambda: map(str, X), f"a map: {DRY}"),
    "compressed rows": (
        lambda: X.to_sparse_csr(),
        "a Tensor: its layout is torch.sparse_csr, which torch does not index. Use torch.sparse_coo, or cut",
    ),
    "a sparse leaf": (
        lambda: X.float().to_sparse().requires_grad_(),
        "a Tensor: it is sparse and requires a gradient, which torch does not index. Make it dense, or cut",
    ),
    "a transposed nested tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(2, 3)] * 5, layout=torch.jagged).transpose(1, 2),
        "a NestedTensor: it is nested, and transposed. Transpose the part, or cut",
    ),
    "a dataclass that would change twice": (
        lambda: Scaled(X),
        f"a Scaled: its constructor changes its fields, and would do so twice. Make it a dict, {ITSELF}",
    ),
    "a dataclass that lacks an argument": (
        lambda: Factored(X, 2.0),
        "a Factored: it could not be made anew from its cut fields (InitVar 'factor' must be specified with replace()"
        f"). Make it a dict, {ITSELF}",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    make, message = REFUSED[name]
    for take in (
        lambda batch: fraction_of(batch, 0.4),
        lambda batch: list(microbatches(batch, 2)),
        lambda batch: hardest(batch, X[:, 0], 0.4),
    ):
        with pytest.raises(TypeError, match=re.escape(f"No part can be taken of {message}")):
            take((X, {"it": make()}))


def both(kind, length, n):
    return (
        f"A {kind} in the batch may hold one example per item, {length} in all, or fields with {n} examples each. If "
        "fields, make it a dict or a named tuple. If examples, stack them into one tensor, or cut the batch yourself, "
        "as in ascent=lambda: gradient(part)."
    )


images = partial(torch.ones, 3, 4, 4)
sampler = partial(ScheduledBatchSampler, 10, constant(2))
two = partial(ScheduledBatchSampler, 10, num_replicas=2, rank=0)

BAD = {
    "no fraction": (lambda: fraction_of(X, 0.0), ValueError, "fraction must lie in (0, 1], got 0.0."),
    "more than all": (lambda: fraction_of(X, 1.1), ValueError, "fraction must lie in (0, 1], got 1.1."),
    "a switch for a fraction": (lambda: fraction_of(X, True), ValueError, "fraction must lie in (0, 1], got True."),
    "not a number": (lambda: fraction_of(X, math.nan), ValueError, "fraction must lie in (0, 1], got nan."),
    "a word": (lambda: fraction_of(X, "half"), ValueError, "fraction must lie in (0, 1], got 'half'."),
    "no hardest": (lambda: hardest(X, X[:, 0], -0.5), ValueError, "fraction must lie in (0, 1], got -0.5."),
    "a switch for the hardest": (lambda: hardest(X, X[:, 0], True), ValueError, "fraction must lie in (0, 1], got"),
    "a fraction of parts that differ": (
        lambda: fraction_of((X, X[:3]), 0.5),
        ValueError,
        "The tensors of a batch must have one first dimension, got [3, 5]. Split them alike.",
    ),
    "an array of other length": (
        lambda: fraction_of((X, A[:3]), 0.5),
        ValueError,
        "one first dimension, got [3, 5]. Split them alike. If each is an example, cut the batch yourself, as in ascent",
    ),
    "images alone": (lambda: fraction_of([X, X[:3]], 0.5), ValueError, "must have one first dimension, got [3, 5]."),
    "as many images as channels": (
        lambda: fraction_of(([images()] * 3, torch.zeros(3)), 0.5),
        ValueError,
        both("list", 3, 3),
    ),
    "images without labels": (lambda: fraction_of({"x": [images()] * 4}, 0.5), ValueError, both("list", 4, 3)),
    "samples, or dicts": (lambda: fraction_of([{"x": images()}] * 4, 0.5), ValueError, both("list", 4, 3)),
    "two views of two": (lambda: fraction_of(((X[:2], X[2:4]), X[:2, 0]), 0.5), ValueError, both("tuple", 2, 2)),
    "two texts of two": (
        lambda: fraction_of((X[:2], [["a", "b"], ["c", "d"]]), 0.5),
        ValueError,
        both("list", 2, 2),
    ),
    "a fraction of nothing": (
        lambda: fraction_of(["a", "b"], 0.5),
        ValueError,
        "There is nothing to split: the batch, a list, has no tensor with at least one example.",
    ),
    "the hardest of nothing": (lambda: hardest(X[:0], X[:0, 0], 0.5), ValueError, "There is nothing to split: the"),
    "a mean for a rise": (
        lambda: hardest(X, torch.tensor(0.5), 0.5),
        ValueError,
        "rise must have shape (5,), one number per example, got ().",
    ),
    "a rise of another batch": (
        lambda: hardest(X, torch.zeros(4), 0.5),
        ValueError,
        "rise must have shape (5,), one number per example, got (4,).",
    ),
    "b": (lambda: constant(0), ValueError, "b must be an int >= 1, got 0."),
    "b of multiply": (lambda: multiply(1.5, 2, 1), ValueError, "b must be an int >= 1, got 1.5."),
    "every": (lambda: multiply(1, 2, 0), ValueError, "every must be an int >= 1, got 0."),
    "factor": (lambda: multiply(1, 0.0, 1), ValueError, "factor must be a finite number > 0, got 0.0."),
    "start": (lambda: linear(0, 2, 3), ValueError, "start must be an int >= 1, got 0."),
    "end": (lambda: geometric(1, -2, 3), ValueError, "end must be an int >= 1, got -2."),
    "over": (lambda: linear(1, 2, True), ValueError, "over must be an int >= 1, got True."),
    "at": (lambda: capped(constant(2), 0), ValueError, "at must be an int >= 1, got 0."),
    "a number to cap": (
        lambda: capped(2, 4),
        TypeError,
        "schedule must be a function of a count, got 2. For one size write constant(32).",
    ),
    "a number for a schedule": (
        lambda: ScheduledBatchSampler(10, 2),
        TypeError,
        "schedule must be a function of a count, got 2. For one size write constant(32).",
    ),
    "per": (lambda: sampler(per="step"), ValueError, "per must be 'epoch' or 'update', got 'step'."),
    "no data": (
        lambda: ScheduledBatchSampler([], constant(2)),
        ValueError,
        "The length of data must be an int >= 1, got 0.",
    ),
    "seed": (lambda: sampler(seed=-1), ValueError, "seed must be an int >= 0, got -1."),
    "replicas": (lambda: sampler(num_replicas=0), ValueError, "num_replicas must be an int >= 1, got 0."),
    "rank": (
        lambda: sampler(num_replicas=2, rank=2),
        ValueError,
        "rank must be < num_replicas, got rank=2 of 2.",
    ),
    "negative rank": (lambda: sampler(rank=-1), ValueError, "rank must be an int >= 0, got -1."),
    "epoch": (lambda: sampler().set_epoch(-1), ValueError, "epoch must be an int >= 0, got -1."),
    "no size": (
        lambda: ScheduledBatchSampler(10, lambda t: 2.0),
        ValueError,
        "The batch size of epoch 0 must be an int >= 1, got 2.0.",
    ),
    "no size later": (
        lambda: ScheduledBatchSampler(10, lambda t: 2 - t).set_epoch(2),
        ValueError,
        "The batch size of epoch 2 must be an int >= 1, got 0.",
    ),
    "no equal shares": (
        lambda: two(multiply(2, 1.5, 1)).set_epoch(1),
        ValueError,
        "The batch size of epoch 1 is 3, of which 2 replicas cannot have equal shares. Make every size a multiple of 2.",
    ),
    "no equal shares at an update": (
        lambda: two(linear(2, 4, 2), per="update"),
        ValueError,
        "The batch size of update 1 is 3, of which 2 replicas cannot have equal shares.",
    ),
    "no batch": (
        lambda: ScheduledBatchSampler(10, multiply(8, 2, 1), drop_last=True).set_epoch(1),
        ValueError,
        "Epoch 1 has no batch: its batch size 16 is larger than the data (10), and drop_last=True. Use "
        "drop_last=False, or capped(schedule, at) with a smaller size.",
    ),
    "more than handed out": (
        lambda: sampler().state_dict(batches=1),
        ValueError,
        "batches must lie between 0 and 0, the batches of epoch 0 at which the iteration began and now is, got 1. "
        "Count from the epoch's beginning.",
    ),
    "before it began": (rewound, ValueError, "batches must lie between 1 and 2"),
    "other data": (
        lambda: load(length=11),
        ValueError,
        "The state was saved with length=11, and this sampler has length=10. Its batches would be others: build the "
        "sampler as it was built when the state was saved.",
    ),
    "other seed": (lambda: load(sampler(seed=1)), ValueError, "saved with seed=0, and this sampler has seed=1."),
    "other order": (lambda: load(shuffle=False), ValueError, "saved with shuffle=False,"),
    "other counts": (lambda: load(per="update"), ValueError, "saved with per='update',"),
    "other end": (lambda: load(drop_last=True), ValueError, "saved with drop_last=True,"),
    "other schedule": (
        lambda: load(ScheduledBatchSampler(10, constant(3))),
        ValueError,
        "The state was saved after 1 batches and 2 examples of epoch 0; by this sampler's schedule they are 3 "
        "examples. Use the same schedule.",
    ),
    "at_most": (
        lambda: microbatches(torch.ones(3), 0),
        ValueError,
        "at_most must be an int >= 1, got 0.",
    ),
    "unequal lengths": (
        lambda: microbatches((torch.ones(3), [torch.ones(4)]), 2),
        ValueError,
        "The tensors of a batch must have one first dimension, got [3, 4]. Split them alike.",
    ),
    "nothing to split": (
        lambda: microbatches({"texts": ["a"], "scale": torch.tensor(1.0)}, 2),
        ValueError,
        "There is nothing to split: the batch, a dict, has no tensor with at least one example.",
    ),
    "no example": (
        lambda: microbatches(torch.ones(0, 2), 2),
        ValueError,
        "There is nothing to split: the batch, a Tensor",
    ),
    "lr": (lambda: scale_lr(-0.1, 1, 1), ValueError, "lr must be a finite number >= 0, got -0.1."),
    "batch_size": (lambda: scale_lr(0.1, 0, 1), ValueError, "batch_size must be an int >= 1, got 0."),
    "reference": (lambda: scale_lr(0.1, 1, 0), ValueError, "reference must be an int >= 1, got 0."),
    "rule": (lambda: scale_lr(0.1, 1, 1, rule="root"), ValueError, "rule must be 'sqrt' or 'linear', got 'root'."),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_a_refused_state_or_epoch_changes_nothing():
    sampler = ScheduledBatchSampler(10, multiply(8, 2, 1), drop_last=True)
    for change in (lambda: sampler.load_state_dict(state()), lambda: sampler.set_epoch(1)):
        with pytest.raises(ValueError, match=r"saved with|has no batch"):
            change()
        assert (sampler.epoch, len(sampler), sampler.state_dict()["batches"]) == (0, 1, 0)
