"""What every measure is a function of: a loss over data, as a function of the weights of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .._parts import moved
from .checks import check_repeatable, fingerprint, refuse, same_buffers, same_random_state

Batch = Any
Forward = Callable[[nn.Module, Any], "tuple[Tensor, Tensor]"]

FORWARD_COST = 0.4
"""A forward pass in units of one gradient (forward and backward); 1/3 by operations, a little more on the clock."""
HVP_COST = 4.0
"""A Hessian-vector product by double backward, likewise: 3 by operations."""


@dataclass
class Spent:
    """What an objective has been asked for so far, in passes over all its data."""

    losses: float = 0.0
    gradients: float = 0.0
    hvps: float = 0.0

    @property
    def cost(self) -> float:
        """The same in units of one gradient over all the data, counted, not timed."""
        return FORWARD_COST * self.losses + self.gradients + HVP_COST * self.hvps


@final
class Objective:
    """The loss ``L(w) = (1/N) sum_b n_b L_b(w)`` of a model over batches ``b`` of ``n_b`` examples.

    Every measure takes one of these. Nothing that is done with it changes the model: weights come back bit for bit,
    gradients, buffers, modes and random states stay as they are.

    A measure is a number only if the loss is a function. So the objective is evaluated twice when it is made (unless
    ``check=False``), and refused with the reason if the two disagree: dropout or another random module, batch norm in
    training mode, a loader that shuffles, random augmentation. It never changes the model's mode by itself: sharpness
    in training mode is another quantity. You will almost always want ``model.eval()`` first.

    Args:
        model: the model, on its device.
        loss_fn: ``loss_fn(outputs, targets)`` -> the *mean* loss of a batch, as ``torch.nn.functional.cross_entropy``.
        data: a pair of tensors ``(x, y)`` or a map-style Dataset, read in order in batches of ``batch_size``; or
            batches that can be read again and again: a DataLoader (without shuffling) or a list. A batch is
            ``(inputs, targets)``, or a mapping with ``"labels"`` whose other entries the model takes by name, as
            Hugging Face models do.
        batch_size: examples in a batch, >= 1; for a DataLoader or a list, those decide. The ``m`` of m-sharpness.
        forward: ``forward(model, batch)`` -> ``(outputs, targets)`` for batches of another form.
        parameters: ``parameters(name, parameter)`` -> whether to move it; by default all that require a gradient.
        normalize_logits: see `normalized`.
        check: whether to evaluate the loss twice first, at the price of two forward passes over the data.

    Raises:
        ValueError: if the loss is not repeatable or not finite, the data is empty or can be read only once, or no
            parameter is left; or if parameters are complex, or on several devices.
        TypeError: if a batch has another form than those above, or the loss is not a scalar.

    Note:
        Memory is that of one batch, however many there are, and a few copies of the weights; every measure says how
        many. The last batch may be smaller; it counts by its examples.

    Example:
        >>> import torch
        >>> from steppe.measure import Objective
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(10, 3), torch.arange(10) % 2
        >>> objective = Objective(model, torch.nn.functional.cross_entropy, (x, y), batch_size=4)
        >>> objective.examples, objective.batches, objective.size
        (10, 3, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        *,
        batch_size: int = 128,
        forward: Forward | None = None,
        parameters: Callable[[str, nn.Parameter], bool] | None = None,
        normalize_logits: bool = False,
        check: bool = True,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.normalize_logits = normalize_logits
        self.params = _chosen(model, parameters)
        self.device = self.params[0].device
        # What vectors of weights are in: the widest of the parameters, and float32 at least.
        self.dtype = reduce(torch.promote_types, (p.dtype for p in self.params), torch.float32)
        self.spent = Spent()
        self._forward = forward or _standard_forward
        self._data = _batches(data, batch_size)
        self._sizes = [p.numel() for p in self.params]
        self._modes = self._current_modes()
        if check:
            self.examples, self.batches = check_repeatable(model, self.device, self.dtype, self._evaluations)
            self.spent.losses += 2
        else:
            self.examples, self.batches = self._count()

    @property
    def size(self) -> int:
        """How many weights there are to move."""
        return sum(self._sizes)

    def normalized(self) -> Objective:
        """Return the same objective with logits centred and scaled to norm 1 before the loss.

        ``z <- (z - mean z) / max(‖z - mean z‖, 1e-10)`` over the last dimension, which must be that of the classes. It
        takes away what a larger last layer does to the loss, which no measure scaled by the weights takes away.
        """
        twin = object.__new__(Objective)
        twin.__dict__.update(self.__dict__, normalize_logits=True)
        return twin

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch, on the device of the model."""
        for batch in self._data:
            yield moved(batch, self.device)

    def outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the model makes of a batch, and the targets."""
        return self._forward(self.model, batch)

    def batch_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the mean loss of a batch, with its graph, and how many examples it has."""
        outputs, targets = self.outputs(batch)
        if self.normalize_logits:
            outputs = outputs - outputs.mean(dim=-1, keepdim=True)
            outputs = outputs / torch.linalg.vector_norm(outputs, dim=-1, keepdim=True).clamp(min=1e-10)
        loss = self.loss_fn(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn must return the mean loss as a scalar tensor, got {got}.")
        return loss, len(targets) if targets.ndim else 1

    @torch.no_grad()
    def loss(self) -> float:
        """Return the loss over all data. Costs one forward pass over it."""
        total, count = 0.0, 0
        with same_random_state(self.device):  # a DataLoader draws a seed whenever it is read
            for batch in self:
                loss, n = self.batch_loss(batch)
                total, count = total + n * loss.item(), count + n
        self.spent.losses += 1
        return total / count

    def gradient(self) -> Tensor:
        """Return the gradient over all data as one flat vector. Costs one gradient and two copies of the weights."""
        total, count = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0
        with same_random_state(self.device):
            for batch in self:
                _, gradient, n = self.batch_gradient(batch)
                total.add_(gradient, alpha=n)
                count += n
        return total.div_(count)

    def batch_gradient(self, batch: Batch) -> tuple[float, Tensor, int]:
        """Return loss, flat gradient and examples of a batch; parameters that it does not use get zeros."""
        with torch.enable_grad():
            loss, n = self.batch_loss(batch)
            gradients = torch.autograd.grad(loss, self.params, allow_unused=True)
        self.spent.gradients += n / self.examples
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, gradients, strict=True)]
        return loss.item(), self.flat(found), n

    @torch.no_grad()
    def loss_of(self, batch: Batch) -> float:
        """Return the loss of a batch."""
        loss, n = self.batch_loss(batch)
        self.spent.losses += n / self.examples
        return loss.item()

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors shaped like the parameters as one vector, in `dtype`."""
        return torch.cat([t.detach().reshape(-1) for t in tensors]).to(self.dtype)

    def unflat(self, vector: Tensor) -> list[Tensor]:
        """Return a vector as views shaped like the parameters."""
        return [part.view(p.shape) for part, p in zip(torch.split(vector, self._sizes), self.params, strict=True)]

    @contextmanager
    def exploring(self) -> Iterator[Tensor]:
        """Let the weights be overwritten with `move` for a while; yields a flat copy of them, which comes back.

        Buffers, modes, gradients and random states are kept too. Costs one copy of weights and buffers.
        """
        if self._current_modes() != self._modes:
            refuse("the model's training modes have changed since this objective was made; make a new Objective")
        weights = self.flat(self.params)
        with same_random_state(self.device), same_buffers(self.model):
            try:
                yield weights
            finally:
                self.move(weights)

    @torch.no_grad()
    def move(self, weights: Tensor) -> None:
        """Set the model's weights, in place. Only inside of `exploring`."""
        torch._foreach_copy_(list[Tensor](self.params), self.unflat(weights))

    def _evaluations(self) -> Iterator[tuple[float, float, int]]:
        for batch in self:
            loss, n = self.batch_loss(batch)
            yield fingerprint(batch), loss.double().item(), n

    def _count(self) -> tuple[int, int]:
        with torch.no_grad(), same_random_state(self.device), same_buffers(self.model):
            sizes = [self.batch_loss(batch)[1] for batch in self]
        if not sizes:
            refuse("there is no batch in the data")
        return sum(sizes), len(sizes)

    def _current_modes(self) -> list[bool]:
        return [module.training for module in self.model.modules()]


def _chosen(model: nn.Module, wanted: Callable[[str, nn.Parameter], bool] | None) -> list[nn.Parameter]:
    chosen = [p for name, p in model.named_parameters() if p.requires_grad and (wanted is None or wanted(name, p))]
    if not chosen:
        refuse("no parameter is left to move: none requires a gradient, or `parameters` chose none")
    if any(p.is_complex() for p in chosen):
        refuse("complex parameters are not measured")
    if len({p.device for p in chosen}) > 1:
        refuse(f"the parameters are on several devices: {sorted({str(p.device) for p in chosen})}; move them to one")
    return chosen


def _batches(data: Any, batch_size: int) -> Iterable[Batch]:
    if not isinstance(batch_size, int) or batch_size < 1:
        refuse(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) and part.ndim for part in data):
        if len(data[0]) != len(data[1]):
            refuse(f"x and y must have the same first dimension, got {tuple(data[0].shape)} and {tuple(data[1].shape)}")
        if not len(data[0]):
            refuse("there is no example in the data")
        return _Pairs(*data, batch_size)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size)
    if isinstance(data, Iterator) or not hasattr(data, "__iter__"):  # iter(loader) would start its workers
        raise TypeError(
            f"data must be something that can be read more than once, got {type(data).__name__}. "
            "Pass a DataLoader, a Dataset, a pair of tensors, or list(...) of it."
        )
    batches: Iterable[Batch] = data
    return batches


@dataclass(frozen=True)
class _Pairs:
    """Batches of a pair of tensors, as views."""

    x: Tensor
    y: Tensor
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        return zip(torch.split(self.x, self.batch_size), torch.split(self.y, self.batch_size), strict=True)


def _standard_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping) and "labels" in batch:
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        targets = batch["labels"]
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        outputs, targets = model(batch[0]), batch[1]
    else:
        got = f"a mapping with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            f"A batch must be a pair (inputs, targets) or a mapping with 'labels', got {got}. "
            "For another form pass forward=lambda model, batch: (outputs, targets)."
        )
    return getattr(outputs, "logits", outputs), targets
