"""Is the loss a function of the weights? The check that every objective goes through, and its reasons to refuse."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

_REMEDY = "Call model.eval() first."


def refuse(reason: str) -> NoReturn:
    """Raise a ValueError that says why there is nothing to measure."""
    raise ValueError(f"Cannot measure: {reason}.")


def check_repeatable(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    evaluate: Callable[[], Iterable[tuple[float, float, int]]],
) -> tuple[int, int]:
    """Evaluate the loss of every batch twice and compare; return how many examples and batches there are.

    Args:
        model: whose loss it is.
        device: where it is.
        dtype: that it is computed in.
        evaluate: yields the `fingerprint` of every batch, its loss, and how many examples it has.

    Raises:
        ValueError: if the two evaluations disagree, change a buffer, or are not finite; it says why.
    """
    _refuse_training_modules(model)
    with torch.no_grad(), same_random_state(device), same_buffers(model) as buffers:
        first, second = list(evaluate()), list(evaluate())
        now = dict(model.named_buffers())
        changed = [name for name, before in buffers.items() if name in now and not _same(now[name], before)]
    if not first:
        refuse("there is no batch in the data")
    if changed:
        refuse(f"a forward pass changes the model's buffer {changed[0]!r}, so every evaluation is of another model")
    _compare(first, second, dtype)
    return sum(n for _, _, n in first), len(first)


def _compare(first: list[tuple[float, float, int]], second: list[tuple[float, float, int]], dtype: torch.dtype) -> None:
    data = (
        "the data is not the same in two passes: {}. Use a DataLoader with shuffle=False and no random augmentation, "
        "or list(loader) to keep one pass"
    )
    if len(first) != len(second):
        refuse(data.format(f"{len(first)} batches, then {len(second)}"))
    tolerance = 64 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for i, ((x, a, n), (z, b, k)) in enumerate(zip(first, second, strict=True)):
        if (x != z and not math.isnan(x + z)) or n != k:
            refuse(data.format(f"batch {i} differs"))
        if not (math.isfinite(a) and math.isfinite(b)):
            refuse(f"the loss of batch {i} is {a}, not a finite number")
        if abs(a - b) > tolerance * max(abs(a), abs(b), 1e-3):
            refuse(
                f"the loss of batch {i} was {a:.6g} and then {b:.6g} on the same data and weights: something in the "
                f"model or the loss is random. {_REMEDY[:-1]}, or give it a fixed seed"
            )


def _refuse_training_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            refuse(
                f"{kind} {name!r} is in training mode: its loss depends on who else is in the batch, and every forward "
                f"pass moves its running statistics. {_REMEDY[:-1]}"
            )
        if module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            refuse(f"{kind} {name!r} is in training mode, so the loss is random. {_REMEDY[:-1]}")


def fingerprint(batch: Any) -> float:
    """Return a number that changes, almost surely, when the batch holds other data."""
    if isinstance(batch, Tensor):
        x = batch.detach()
        return float(torch.view_as_real(x).double().sum() if x.is_complex() else x.double().sum())
    if isinstance(batch, Mapping):
        return sum(fingerprint(value) for value in batch.values())
    if isinstance(batch, (tuple, list)):
        return sum((k + 1) * fingerprint(value) for k, value in enumerate(batch))
    return 0.0


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.all((a == b) | (torch.isnan(a) & torch.isnan(b))))


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put back every buffer that there is now; yields copies of them."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield buffers
    finally:
        for name, buffer in model.named_buffers():
            if name not in buffers:  # made by the first forward pass
                continue
            if buffer.shape == buffers[name].shape:
                with torch.no_grad():
                    buffer.copy_(buffers[name])
            else:  # replaced by the forward pass
                buffer.data = buffers[name]


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Put back every random generator that data or model may draw from."""
    devices = [] if device.type == "cpu" else [device]
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    array_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(array_state)
