"""Batch sizes that change in training, batches in parts, and learning rates that go with batch sizes.

A batch-size schedule is a function of a count (0, 1, ...) that gives an int, always the same one for a count. Those
here take ints >= 1, and raise ValueError otherwise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from ._parts import fraction_of as fraction_of
from ._parts import hardest as hardest
from ._parts import microbatches as microbatches

BatchSize = Callable[[int], int]


def _check_int(name: str, value: object, at_least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an int >= {at_least}, got {value!r}.")


@final
@dataclass(frozen=True)
class constant:
    """Batch size ``b`` at every count.

    Example:
        >>> [constant(32)(t) for t in (0, 1, 100)]
        [32, 32, 32]
    """

    b: int

    def __post_init__(self) -> None:
        _check_int("b", self.b)

    def __call__(self, t: int) -> int:
        return self.b


@final
@dataclass(frozen=True)
class multiply:
    """Batch size ``b factor^(t // every)``, rounded, at least 1; ``factor`` is > 0.

    Example:
        >>> [multiply(16, 2, every=10)(t) for t in (0, 9, 10, 20, 30)]
        [16, 16, 32, 64, 128]

    Reference:
        Harada and Iiduka, Convergence of Sharpness-Aware Minimization Algorithms using Increasing Batch Size and
        Decaying Learning Rate, 2024 (https://arxiv.org/abs/2409.09984).
    """

    b: int
    factor: float
    every: int

    def __post_init__(self) -> None:
        _check_int("b", self.b)
        _check_int("every", self.every)
        if not 0.0 < self.factor < math.inf:
            raise ValueError(f"factor must be a finite number > 0, got {self.factor}.")

    def __call__(self, t: int) -> int:
        try:
            return max(1, round(self.b * float(self.factor) ** (t // self.every)))
        except OverflowError:
            return sys.maxsize  # for a cap to cut


@dataclass(frozen=True)
class _Ramp:
    start: int
    end: int
    over: int

    def __post_init__(self) -> None:
        for name in ("start", "end", "over"):
            _check_int(name, getattr(self, name))


@final
class linear(_Ramp):
    """Batch size ``start + (end - start) min(t / over, 1)``, rounded.

    Example:
        >>> [linear(16, 64, over=4)(t) for t in (0, 1, 2, 4, 9)]
        [16, 28, 40, 64, 64]
    """

    def __call__(self, t: int) -> int:
        return round(self.start + (self.end - self.start) * min(t / self.over, 1.0))


@final
class geometric(_Ramp):
    """Batch size ``start (end / start)^min(t / over, 1)``, rounded.

    Example:
        >>> [geometric(16, 256, over=4)(t) for t in (0, 1, 2, 4, 9)]
        [16, 32, 64, 256, 256]
    """

    def __call__(self, t: int) -> int:
        return round(self.start * math.pow(self.end / self.start, min(t / self.over, 1.0)))


@final
@dataclass(frozen=True)
class capped:
    """Batch size ``min(schedule(t), at)``.

    Example:
        >>> [capped(multiply(16, 2, every=1), at=64)(t) for t in (0, 1, 2, 3)]
        [16, 32, 64, 64]
    """

    schedule: BatchSize
    at: int

    def __post_init__(self) -> None:
        _check_schedule(self.schedule)
        _check_int("at", self.at)

    def __call__(self, t: int) -> int:
        return min(self.schedule(t), self.at)


def _check_schedule(schedule: object) -> None:
    if not callable(schedule):
        raise TypeError(f"schedule must be a function of a count, got {schedule!r}. For one size write constant(32).")


@final
class ScheduledBatchSampler(Sampler[list[int]]):
    """Batches of scheduled sizes, for ``DataLoader(dataset, batch_sampler=...)``.

    The order of an epoch is drawn from ``seed + epoch``, as in torch's `DistributedSampler`, and cut into global
    batches; ``schedule`` gives their sizes. Every rank gets the same number of batches, and of each an equal share.
    Only the last batch of an epoch may be smaller; it is filled up from the epoch's beginning to a multiple of
    ``num_replicas``, so one process fills up nothing.

    Args:
        data: a dataset, or its length.
        schedule: the global batch size at a count.
        per: what is counted: ``"epoch"``, or ``"update"``, over all epochs, so that sizes change within an epoch.
        shuffle: a new order in each epoch; else 0, 1, 2, ...
        drop_last: leave out the last batch of an epoch if it is smaller than scheduled.
        seed: of the order; the same on every rank.
        num_replicas: number of processes; None asks torch.distributed, and is 1 without it.
        rank: of this process; None asks torch.distributed, and is 0 without it.

    Raises:
        TypeError: if ``schedule`` is not a function.
        ValueError: if an argument is out of range, a size is no int >= 1 or not a multiple of ``num_replicas``, or
            ``drop_last`` leaves an epoch without a batch.

    Note:
        Call `set_epoch` before each epoch. Without it, an iteration after the epoch's last batch was handed out moves
        on to the next epoch; one that is broken off begins again where it began. A `DataLoader` with workers takes
        batches before the loop gets them, so `batch_size` and `state_dict` then run ahead of the loop.

    Example:
        >>> from steppe import ScheduledBatchSampler
        >>> from steppe.batches import multiply
        >>> sampler = ScheduledBatchSampler(6, multiply(2, 2, every=1), shuffle=False)
        >>> for epoch in range(2):
        ...     sampler.set_epoch(epoch)
        ...     print(list(sampler))
        [[0, 1], [2, 3], [4, 5]]
        [[0, 1, 2, 3], [4, 5]]
    """

    def __init__(
        self,
        data: Sized | int,
        schedule: BatchSize,
        *,
        per: Literal["epoch", "update"] = "epoch",
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        _check_schedule(schedule)
        if per not in ("epoch", "update"):
            raise ValueError(f"per must be 'epoch' or 'update', got {per!r}.")
        distributed = dist.is_available() and dist.is_initialized()
        self.length = data if isinstance(data, int) else len(data)
        self.schedule = schedule
        self.per = per
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.num_replicas = num_replicas if num_replicas is not None else dist.get_world_size() if distributed else 1
        self.rank = rank if rank is not None else dist.get_rank() if distributed else 0
        _check_int("The length of data", self.length)
        _check_int("seed", seed, at_least=0)
        _check_int("num_replicas", self.num_replicas)
        _check_int("rank", self.rank, at_least=0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"rank must be < num_replicas, got rank={self.rank} of {self.num_replicas}.")
        self._updates = [0]  # before each epoch; counted where sizes change with updates
        self._enter(0)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` (0, 1, ...) the one that the next iteration runs through.

        It begins with the first batch, unless a state from within this same epoch was loaded and is still to be
        finished.
        """
        _check_int("epoch", epoch, at_least=0)
        self._enter(epoch, self.first if epoch == self.epoch else 0)

    @property
    def batch_size(self) -> int:
        """The scheduled global size of the batch handed out last, or, before any, of the first."""
        return self._scheduled(self._count(self.epoch, max(0, self._done - 1)))

    @property
    def first(self) -> int:
        """The batch of the epoch with which an iteration begins: 0, unless a state was loaded."""
        return 0 if self._finished else self._first

    def __len__(self) -> int:
        """Return how many batches the current epoch has in all, on every rank."""
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[int]]:
        """Return the batches of this rank."""
        if self._finished:
            self._enter(self.epoch + 1)
        self._done = self._first
        return self._hand_out()

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Return the epoch and how many of its batches are finished; it is the same on every rank.

        Args:
            batches: how many the loop has finished, from the epoch's beginning on; None takes what was handed out.
                Count with ``enumerate(loader, start=sampler.first)`` where a `DataLoader` with workers runs ahead.

        Raises:
            ValueError: if the iteration has not handed out so many, or began after them.
        """
        batches = self._done if batches is None else batches
        if not self._first <= batches <= self._done:
            raise ValueError(
                f"batches must lie between {self._first} and {self._done}, the batches of epoch {self.epoch} at which "
                f"the iteration began and now is, got {batches}. Count from the epoch's beginning."
            )
        examples = sum(self._sizes[:batches])
        return {"epoch": self.epoch, "batches": batches, "examples": examples, **self._settings()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with any number of replicas.

        Raises:
            ValueError: if this sampler would not go on with the same order, or has another schedule up to there.
        """
        for name, ours in self._settings().items():
            if name not in state_dict or state_dict[name] != ours:
                raise ValueError(
                    f"The state was saved with {name}={state_dict.get(name)!r}, and this sampler has {name}={ours!r}. "
                    "Its batches would be others: build the sampler as it was built when the state was saved."
                )
        epoch, batches = state_dict["epoch"], state_dict["batches"]
        sizes = self._plan(epoch)
        if batches > len(sizes) or sum(sizes[:batches]) != state_dict["examples"]:
            raise ValueError(
                f"The state was saved after {batches} batches and {state_dict['examples']} examples of epoch {epoch}; "
                f"by this sampler's schedule they are {sum(sizes[:batches])} examples. Use the same schedule."
            )
        self._enter(epoch, batches)
        if self._finished:
            self._enter(epoch + 1)

    @property
    def _finished(self) -> bool:
        return self._done == len(self._sizes)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("length", "per", "shuffle", "drop_last", "seed")}

    def _enter(self, epoch: int, first: int = 0) -> None:
        sizes = self._plan(epoch)
        self.epoch, self._sizes, self._first, self._done = epoch, sizes, first, first

    def _hand_out(self) -> Iterator[list[int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        sizes, first, start = self._sizes, self._first, 0
        for k, size in enumerate(sizes):
            batch = order[start : start + size]
            start += size
            if k < first:
                continue
            batch += [order[i % self.length] for i in range(-size % self.num_replicas)]
            self._done = k + 1
            yield batch[self.rank :: self.num_replicas]

    def _plan(self, epoch: int) -> list[int]:
        """Return the sizes of the batches of an epoch."""
        sizes: list[int] = []
        left = self.length
        while left:
            scheduled = self._scheduled(self._count(epoch, len(sizes)))
            if scheduled > left and self.drop_last:
                break
            sizes.append(min(scheduled, left))
            left -= sizes[-1]
        if not sizes:
            raise ValueError(
                f"Epoch {epoch} has no batch: its batch size {scheduled} is larger than the data ({left}), and "
                "drop_last=True. Use drop_last=False, or capped(schedule, at) with a smaller size."
            )
        return sizes

    def _count(self, epoch: int, batch: int) -> int:
        if self.per == "epoch":
            return epoch
        while len(self._updates) <= epoch:
            self._updates.append(self._updates[-1] + len(self._plan(len(self._updates) - 1)))
        return self._updates[epoch] + batch

    def _scheduled(self, count: int) -> int:
        size = self.schedule(count)
        _check_int(f"The batch size of {self.per} {count}", size)
        if size % self.num_replicas:
            raise ValueError(
                f"The batch size of {self.per} {count} is {size}, of which {self.num_replicas} replicas cannot have "
                f"equal shares. Make every size a multiple of {self.num_replicas}."
            )
        return size


def scale_lr(lr: float, batch_size: int, reference: int, rule: Literal["sqrt", "linear"] = "sqrt") -> float:
    """Return the learning rate for a batch size, from the one that is right for a reference batch size.

    ``lr sqrt(batch_size / reference)``, or with ``rule="linear"`` ``lr batch_size / reference``.

    Args:
        lr: learning rate at the reference, >= 0.
        batch_size: an int >= 1.
        reference: the batch size for which ``lr`` was chosen, an int >= 1.
        rule: ``"sqrt"`` or ``"linear"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> scale_lr(0.1, 512, reference=128), scale_lr(0.1, 512, reference=128, rule="linear")
        (0.2, 0.4)

    Reference:
        sqrt: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014
        (https://arxiv.org/abs/1404.5997); the linear speed-up of AdaSAM has ``lr`` proportional to the root of the
        batch size (https://arxiv.org/abs/2303.00565, Corollary 3.7). linear: Goyal et al., Accurate, Large Minibatch
        SGD: Training ImageNet in 1 Hour, 2017 (https://arxiv.org/abs/1706.02677).
    """
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number >= 0, got {lr}.")
    _check_int("batch_size", batch_size)
    _check_int("reference", reference)
    if rule not in ("sqrt", "linear"):
        raise ValueError(f"rule must be 'sqrt' or 'linear', got {rule!r}.")
    ratio = batch_size / reference
    return lr * (math.sqrt(ratio) if rule == "sqrt" else ratio)
