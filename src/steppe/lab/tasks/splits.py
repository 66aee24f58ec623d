"""Splits of data, and how batches come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..._examples import Examples

Split: TypeAlias = (
    "tuple[Tensor, ...] | Mapping[str, Tensor] | Dataset[Any] | Sequence[Any] | DataLoader[Any] | "
    "Callable[[torch.Generator], Iterable[Any]]"
)
"""Tensors with one first dimension; a map-style dataset; a loader; or what makes a loader, given a generator."""

Collate: TypeAlias = Callable[[list[Any]], Any]


def has_columns(split: object) -> bool:
    """Return whether a split is tensors, in a tuple or by name, with an example in each row."""
    parts = list(split.values()) if isinstance(split, Mapping) else split
    return isinstance(parts, (tuple, list)) and bool(parts) and all(isinstance(part, Tensor) for part in parts)


def makes_batches(split: object) -> bool:
    """Return whether a split makes batches itself: a loader, or a function that makes one."""
    return isinstance(split, DataLoader) or (callable(split) and not hasattr(split, "__getitem__"))


def size(split: Split) -> int:
    """Return the number of examples in a split; of batches, if it makes them itself and its examples are not known."""
    if has_columns(split):
        return len(_columns(split)[0])
    if makes_batches(split):
        loader: Any = loader_of(split, torch.Generator().manual_seed(0))
        dataset: Any = getattr(loader, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else len(loader)
    return len(split)  # type: ignore[arg-type]


def length(split: Split, batch_size: int, *, drop_last: bool = False) -> int:
    """Return the number of batches in an epoch.

    Args:
        split: Any.
        batch_size: Examples in a batch, unless the split makes batches itself.
        drop_last: Whether a last batch that is smaller is left out, likewise.
    """
    if makes_batches(split):
        loader: Any = loader_of(split, torch.Generator().manual_seed(0))
        return len(loader)
    whole, rest = divmod(size(split), batch_size)
    return whole + bool(rest and not drop_last)


def batches(
    split: Split,
    batch_size: int,
    shuffle: torch.Generator | None = None,
    *,
    collate: Collate | None = None,
    drop_last: bool = False,
) -> Iterator[Any]:
    """Iterate once over a split, the last batch being smaller if need be.

    What is drawn meanwhile, by a dataset or a loader, is drawn from torch's global generator as anything else; a split
    that makes batches itself has a random state of its own.

    Args:
        split: Any; one that makes batches itself decides on all that follows but the generator.
        batch_size: Examples in a batch, at least 1.
        shuffle: Draws the order; without it the order is that of the data.
        collate: Makes a batch of a list of examples of a dataset; by default torch's `default_collate`.
        drop_last: Whether a last batch that is smaller is left out.

    Yields:
        The batches: of tensors, likewise tensors in a tuple or by name.
    """
    if makes_batches(split):
        seed = 0 if shuffle is None else int(torch.randint(2**62, (), generator=shuffle))
        yield from apart(lambda: loader_of(split, torch.Generator().manual_seed(seed)), seed)
    elif has_columns(split):
        n = size(split)
        order = torch.arange(n) if shuffle is None else torch.randperm(n, generator=shuffle)
        for index in torch.split(order, batch_size):
            if not (drop_last and len(index) < batch_size):
                yield _rows(split, index)
    else:
        # A DataLoader draws a seed even when it does not shuffle: keep the global generator out of that.
        generator = torch.Generator().manual_seed(0) if shuffle is None else shuffle
        data: Any = split
        yield from DataLoader(
            data,
            batch_size,
            shuffle=shuffle is not None,
            generator=generator,
            collate_fn=collate,
            drop_last=drop_last,
        )


def take(split: Split, indices: Sequence[int], collate: Collate | None = None) -> Any:
    """Return some examples of a split, that does not make batches itself, as one batch.

    Args:
        split: Tensors or a dataset.
        indices: At least one.
        collate: As in `batches`.
    """
    if has_columns(split):
        return _rows(split, torch.tensor(indices))
    data: Any = split
    return (collate or default_collate)([data[index] for index in indices])


def loader_of(split: Split, generator: torch.Generator) -> Iterable[Any]:
    """Return what a split that makes batches itself is read from.

    Generators that a loader has of its own begin anew, so that no trial goes on where another one ended.
    """
    if not isinstance(split, DataLoader):
        make: Any = split
        made: Iterable[Any] = make(generator)
        return made
    for holder in (split, split.sampler, split.batch_sampler, getattr(split.batch_sampler, "sampler", None)):
        own = getattr(holder, "generator", None)
        if isinstance(own, torch.Generator):
            own.set_state(generator.get_state())
    return split


def apart(make: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """Iterate with a random state apart: what is drawn here depends on the seed, and changes nothing elsewhere."""
    inside = torch.Generator().manual_seed(seed).get_state()

    def within(call: Callable[[], Any]) -> Any:
        nonlocal inside
        outside = torch.get_rng_state()
        torch.set_rng_state(inside)
        try:
            return call()
        finally:
            inside = torch.get_rng_state()
            torch.set_rng_state(outside)

    reading, end = within(lambda: iter(make())), object()
    while (batch := within(lambda: next(reading, end))) is not end:
        yield batch


def examples_in(batch: Any) -> int:
    """Return how many examples a batch has; 1 if nothing says it."""
    return known_examples_in(batch) or 1


def known_examples_in(batch: Any) -> int | None:
    """Return how many examples a batch has; None if nothing says it."""
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor) and batch[0].ndim:
        return len(batch[0])
    try:
        return Examples(batch).n
    except (TypeError, ValueError):
        return None


def _columns(split: Any) -> list[Tensor]:
    return list(split.values()) if isinstance(split, Mapping) else list(split)


def _rows(split: Any, index: Tensor) -> Any:
    if isinstance(split, Mapping):
        return {name: column[index] for name, column in split.items()}
    return tuple(column[index] for column in split)
