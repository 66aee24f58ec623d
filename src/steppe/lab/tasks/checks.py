"""Whether a task fits together: tried before anything is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..._parts import microbatches, moved
from ..errors import UserError, describe
from . import hints
from .apart import check_apart
from .evaluation import evaluate
from .sharing import shared_name
from .splits import batches, examples_in, length, makes_batches, size
from .task import MAKE_IT_INSIDE, Task, kind

_NO_VARIANCE = "Expected more than 1 value per channel"


def check_fit(
    task: Task,
    files: Sequence[str] = (),
    device: torch.device | str = "cpu",
    forward: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Try model and loss on a batch of training data, and the metrics on the validation split.

    Args:
        task: The task.
        files: The user's, to name the line where something fails.
        device: Where to try it.
        forward: What forward passes run in.

    Raises:
        UserError: Something does not fit together.
    """
    check_apart(task)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        batch = _first_batch(task, files)
        with _failing("making the model", files):
            model = task.model()
        if not isinstance(model, nn.Module):
            raise UserError(f"Task: model must return a torch.nn.Module, got {kind(model)}")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("Task: the model has no parameter to train")
        _check_new(task, model, files)
        model = model.to(device)
        task.move_loss(device)
        with forward():
            _check_last_batch(task, model, batch, device)
            loss = _loss(task, model, moved(batch, device), files)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else kind(loss)
            raise UserError(f"Task: the loss must be a scalar tensor, got {got} on {_shapes(batch)}")
        if not loss.requires_grad:
            raise UserError("Task: the loss does not depend on the model's parameters; do not detach it")
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"Task: the loss of an untrained model on the first batch is {value}; look for numbers that are not "
                "finite in the data"
            )
        _check_metrics(task, model, files, device, forward)


def _check_new(task: Task, model: nn.Module, files: Sequence[str]) -> None:
    """Refuse models that share weights: every trial would go on from those of the last one."""
    with torch.random.fork_rng(devices=[]), _failing("making the model a second time", files):
        shared = shared_name(model, task.model())
    if shared is not None:
        raise UserError(
            f"Task: model returns the same {shared!r} at every call, so that each trial would go on from where the "
            f"last one came to; {MAKE_IT_INSIDE}"
        )


def _first_batch(task: Task, files: Sequence[str]) -> Any:
    split = task.train
    with _failing("reading a batch of training examples", files):
        found = next(batches(split, task.batch_size, torch.Generator().manual_seed(0), collate=task.collate), None)
        if found is None:
            raise UserError("Task: train has no batch")
        if makes_batches(split):
            length(split, task.batch_size)
    return found


def _check_last_batch(task: Task, model: nn.Module, batch: Any, device: torch.device | str) -> None:
    drop_last, batch_size, examples = task.drop_last, task.batch_size, 0
    train: Any = task.train
    if isinstance(train, DataLoader):
        drop_last, batch_size = train.drop_last, train.batch_size or 1
        sampler: Any = train.sampler
        examples = len(sampler) if hasattr(sampler, "__len__") else 0
    elif not makes_batches(train):
        examples = size(train)
    if drop_last or examples % batch_size != 1:
        return
    try:
        task.loss_of(model, moved(next(microbatches(batch, 1))[0], device))
    except Exception as error:  # what else fails there fails on a whole batch too, and is said then
        if _NO_VARIANCE not in str(error):
            return
        raise UserError(
            f"Task: {examples} training examples in batches of {batch_size} leave a last batch of one, of which batch "
            "norm has no variance; say drop_last=True, or choose another batch_size"
        ) from error


def _loss(task: Task, model: nn.Module, batch: Any, files: Sequence[str]) -> Any:
    if task.step is not None:
        with _failing(f"the step on {_shapes(batch)}", files):
            return task.step(model, batch)
    with _failing(f"the model on {_shapes(batch)}", files, hints.of_inputs(batch, model), form=True):
        outputs, targets = task.outputs(model, batch)
    shapes = f"outputs of {_shape(outputs)} and targets of {_shape(targets)}"
    if isinstance(targets, Tensor):
        shapes += f" ({targets.dtype})"
    if task.forward is None and not isinstance(outputs, Tensor) and task.loss is nn.functional.cross_entropy:
        raise UserError(
            f"Task: the model must return a tensor, got {kind(outputs)}; give a loss and a metric that take it, or "
            "forward=lambda model, batch: (outputs, targets)"
        )
    with _failing(f"the loss on {shapes}", files, hints.of_targets(outputs, targets)):
        loss = task.loss(outputs, targets)
        _check_pairs(task, outputs, targets, loss)
    return loss


def _check_pairs(task: Task, outputs: Any, targets: Any, loss: Any) -> None:
    """Refuse a loss of every output with every target, as outputs of shape (n, 1) with targets of shape (n,) make."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and isinstance(loss, Tensor)) or loss.ndim:
        return
    n = len(outputs) if outputs.ndim else 0
    if n < 2 or {tuple(outputs.shape), tuple(targets.shape)} != {(n, 1), (n,)}:
        return
    # Whether the loss sees which output goes with which target: an untrained model's outputs may all be the same.
    spread = torch.linspace(0.1, 0.9, n, device=outputs.device)
    made = spread.reshape(outputs.shape).to(outputs.dtype)
    wanted = spread if targets.is_floating_point() else torch.arange(n, device=outputs.device) % 2
    wanted = wanted.reshape(targets.shape).to(targets.dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the shapes that are said below
        if not torch.allclose(task.loss(made, wanted), task.loss(made, wanted.roll(1, 0)), rtol=1e-5, atol=0):
            return
    raise UserError(
        f"Task: outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} make {n} x {n} "
        "pairs in this loss; give both one shape, as in loss=lambda o, t: mse_loss(o.squeeze(1), t)"
    )


def _check_metrics(
    task: Task,
    model: nn.Module,
    files: Sequence[str],
    device: torch.device | str,
    forward: Callable[[], AbstractContextManager[object]],
) -> None:
    names = ", ".join(task.metrics) or "loss"
    with _failing(f"the metric ({names}) on the validation split", files):
        try:
            found = evaluate(model, task, task.validation, device, forward)
        except RuntimeError as error:
            if "does not require grad" not in str(error) or task.evaluation_gradients:
                raise
            raise UserError(
                "Task: the loss differentiates inside, and evaluation computes no gradients; say "
                "evaluation_gradients=True"
            ) from error
    if not math.isfinite(found.loss):
        raise UserError(f"Task: the loss of an untrained model on the validation split is {found.loss}")
    if not math.isfinite(found.metric):
        raise UserError(
            f"Task: {task.metric_name} on the validation split is {found.metric}, where a trial counts as diverged; "
            "choose a metric that is a number there, or another split"
        )


@contextmanager
def _failing(what: str, files: Sequence[str], hint: str = "", form: bool = False) -> Iterator[None]:
    """Say what failed, with the user's line."""
    verb = "failed with"
    head, _, rest = what.partition(" on ")
    text = f"{head} failed on {rest} with" if rest else f"{head} {verb}"
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if form and isinstance(error, TypeError) and "forward=lambda" in str(error):
            raise UserError(f"Task: {error}") from error
        raise UserError(f"{text} {describe(error, *files)}{hint}") from error


def _shapes(batch: Any) -> str:
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return f"inputs of {_shape(batch[0])}"
    return f"a batch of {examples_in(batch)} examples"


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"kind {kind(value)}"
