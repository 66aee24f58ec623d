"""What `steppe measure` does: a report of sharpness for a checkpoint, or for the kept weights of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...measure import Objective, Report
from ...measure.curvature import Method
from ...measure.reporting import report_of
from ..errors import RunError, UserError, nearest, one_line
from ..plans import comparison
from ..plans import options as config
from ..store import records
from ..tasks.checks import check_fit
from ..tasks.sharpness import objective
from ..tasks.sources import find_task
from ..tasks.task import Task
from ..trials.records import TrialConfig

SPLITS = ("train", "validation", "test")

_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Request:
    """How to measure.

    Attributes:
        split: Of the task: ``train``, ``validation`` or ``test``.
        examples: At most so many, from the split's beginning.
        batch_size: Examples in a batch.
        budget: In gradients over all the data.
        lr: Learning rate, for the edge of stability.
        method: Of Hessian-vector products.
    """

    split: str = "train"
    examples: int = 1024
    batch_size: int = 128
    budget: float = 200.0
    lr: float | None = None
    method: Method = "autograd"

    def __post_init__(self) -> None:
        """Check what the command line passes on as it is."""
        if self.split not in SPLITS:
            raise UserError(f"--split: unknown split {self.split!r}{nearest(self.split, SPLITS)}")
        for name in ("examples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


def measure_checkpoint(task: str, checkpoint: Path | None, request: Request) -> Report:
    """Measure a model of the user's.

    Args:
        task: ``mnist1d``, ``digits`` or ``FILE.py:FUNCTION``; the function returns a `Task`, or a
            `steppe.measure.Objective` whose model and data it has made itself. One that takes the seed is given 0.
        checkpoint: The model's weights; needed unless the function returns an Objective.
        request: How to measure.

    Returns:
        The report.

    Raises:
        UserError: The input is wrong, or the loss is not repeatable.
    """
    try:
        source = find_task(task)
    except UserError as error:
        raise UserError(f"{error}{'' if ':' in task else ', or the folder of a comparison'}") from error
    made = source.make()
    if isinstance(made, Objective):
        if checkpoint is not None:
            load_weights(made.model, checkpoint)
        return _report(made, request)
    if not isinstance(made, Task):
        kinds = "a steppe.lab.Task or a steppe.measure.Objective"
        raise UserError(f"{source.name} must return {kinds}, got {type(made).__name__}")
    if checkpoint is None:
        raise UserError(
            f"{source.name} returns a task, whose models begin untrained; name the trained weights with --checkpoint, "
            "or return a steppe.measure.Objective"
        )
    try:
        check_fit(made, source.paths)
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from error
    return _report(_objective(made, checkpoint, request), request)


def measure_run(
    folder: Path, request: Request, rows: Sequence[str] | None = None, seeds: int = 1
) -> dict[tuple[str, int], Report]:
    """Measure the kept weights of a comparison, where the task takes the seed each on the data of its own.

    Args:
        folder: Of the comparison; it was run with ``--keep-weights``.
        request: How to measure.
        rows: Which rows of its table; all by default.
        seeds: How many seeds of each row, from the first.

    Returns:
        Reports by row and seed.

    Raises:
        UserError: The folder is not that of a comparison, or holds no weights.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{str(folder)!r} is not the folder of a comparison: it has no config.yaml")
    options = config.from_file(folder / "config.yaml")
    plan = comparison.plan(options.task or "mnist1d", options, folder)
    for name in rows or ():
        if name not in plan.names:
            raise UserError(f"--methods: unknown row {name!r}{nearest(name, plan.names)}")
    trials = [trial for trial in plan.trials() if trial.seed in plan.seeds[:seeds] and (not rows or trial.row in rows)]
    # Weights that another version, or a GPU, has trained count too.
    there = {_regardless(config): config for config in records.trained(folder)}
    kept = [there[_regardless(trial)] for trial in trials if _regardless(trial) in there]
    kept = [trial for trial in kept if records.weights_path(folder, trial).is_file()]
    if not kept:
        raise UserError(
            f"{str(folder)!r} holds no weights of these trials; run the comparison again with --keep-weights"
        )
    task = comparison.load(plan.source)
    if not isinstance(task, Task):
        raise UserError(f"{plan.source.name} is a training loop; measure its weights by steppe.measure, in Python")
    found, seed = {}, 0
    for trial in kept:
        if trial.own_split and trial.seed != seed:  # those of a seed come one after the other
            seed, task = trial.seed, plan.source.task(trial.seed)
        objective = _objective(task, records.weights_path(folder, trial), request)
        found[trial.row, trial.seed] = _report(objective, request)
    return found


def summary(found: Mapping[tuple[str, int], Report]) -> list[list[str]]:
    """Return the lines of a table: a column for every model, a line for every measure, the head first."""
    head = ["measure", *(f"{row}, seed {seed}" for row, seed in found)]
    names = list(next(iter(found.values())).measures)
    loss = ["loss", *(f"{one.loss:.4g}" for one in found.values())]
    return [head, loss, *([name, *(f"{one.measures[name].value:.4g}" for one in found.values())] for name in names)]


def save(one: Report, folder: Path) -> None:
    """Write a report's files.

    Raises:
        RunError: The folder cannot be written.
    """
    try:
        one.save(folder)
    except OSError as error:
        raise RunError(f"the report cannot be written to {str(folder)!r}: {error.strerror}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model: a ``state_dict``, alone or under ``"model"``, ``"state_dict"`` or the like.

    Args:
        model: Of the same architecture.
        path: Written by ``torch.save`` (read with ``weights_only=True``) or by safetensors.

    Raises:
        UserError: The file cannot be read, or does not fit the model; the model is not changed then.
    """
    found = _read(path)
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"the checkpoint {str(path)!r} holds no state_dict, but {_kind(found)}")
    own = model.state_dict()
    state = _unwrapped({str(name): value for name, value in found.items()}, own)
    missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    shapes = [name for name in own if name in state and _shape(own[name]) != _shape(state[name])]
    if missing or unknown or shapes:
        reason = (
            f"it lacks {missing[0]!r}"
            if missing
            else f"it has {unknown[0]!r}, which the model has not"
            if unknown
            else f"{shapes[0]!r} is {_shape(state[shapes[0]])} there and {_shape(own[shapes[0]])} here"
        )
        count = len(missing) + len(unknown) + len(shapes)
        raise UserError(f"the checkpoint {str(path)!r} does not fit the model in {count} places; the first: {reason}")
    for name, value in state.items():
        if isinstance(value, Tensor) and (odd := _odd(value, own[name])):
            raise UserError(f"the checkpoint {str(path)!r} does not fit the model: {name!r} is {odd} there")
    model.load_state_dict(state)


def _unwrapped(state: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Take off the words that DistributedDataParallel and torch.compile put before every name."""
    for word in ("module.", "_orig_mod.", "module."):
        if not set(state) & set(own) and all(name.startswith(word) for name in state):
            state = {name.removeprefix(word): value for name, value in state.items()}
    return state


def _shape(value: object) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _odd(value: Tensor, own: object) -> str | None:
    """Say why a tensor cannot be copied into the model's, if so."""
    if value.is_meta:
        return "without data (on the meta device)"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse" if not value.is_quantized else "quantized"
    if value.is_complex() and isinstance(own, Tensor) and not own.is_complex():
        return "complex"
    return None


def _regardless(trial: TrialConfig) -> str:
    """Return what a trial is, whatever it ran on."""
    return trial.model_copy(update={"versions": {}}).key


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"the checkpoint {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"reading {str(path)!r} needs the package safetensors: pip install safetensors") from error
    except Exception as error:
        raise UserError(f"the checkpoint {str(path)!r} cannot be read: {one_line(error)[:200]}") from error


def _objective(task: Task, checkpoint: Path, request: Request) -> Objective:
    split = task.plain_train if request.split == "train" else getattr(task, request.split)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of augmentation, if the data has any
        model = task.model()
        data = objective(task, split, request.examples, request.batch_size, "cpu")
    load_weights(model, checkpoint)
    try:
        return Objective(model.eval(), **data)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error


def _report(objective: Objective, request: Request) -> Report:
    try:
        return report_of(objective, budget=request.budget, lr=request.lr, method=request.method)
    except (ValueError, RuntimeError) as error:
        raise UserError(one_line(error)) from error


def _kind(found: object) -> str:
    if isinstance(found, Mapping):
        return f"a dict with {', '.join(map(repr, list(found)[:4]))}"
    return f"a {type(found).__name__}"
