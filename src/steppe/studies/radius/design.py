"""Which tasks, which units, which constants."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...lab.bench.entries import BENCHES

_HERE = Path(__file__).parent
_METHODS = f"{__package__}.methods"

SAM = "tuned-sam"
"""The row of SAM with a learning rate and a radius of its own for every task."""

FRACTION = 0.1
PART = "-part"
"""Added to the name of a candidate that climbs along a tenth of the batch."""


@dataclass(frozen=True)
class Job:
    """A task, and what the base and tuned SAM choose from on it: nine settings each.

    Attributes:
        title: What the task is.
        task: As `steppe compare` takes it.
        base: The name of the base.
        epochs: Of a training.
        lr: Three learning rates.
        decays: Three weight decays of the base.
        rho: Three radii of SAM.
        fixed: Other hyper-parameters of the base.
        parts: Whether candidates climb along a part of the batch too.
        data: The folder that it reads in the one that the user has to bring; empty if it needs none.
    """

    title: str
    task: str
    base: str
    epochs: int
    lr: tuple[float, ...]
    decays: tuple[float, ...]
    rho: tuple[float, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    parts: bool = True
    data: str = ""

    def base_settings(self) -> list[dict[str, Any]]:
        """Return what the base may choose from."""
        return [
            {"lr": lr, "weight_decay": decay, **self.fixed} for lr, decay in itertools.product(self.lr, self.decays)
        ]

    def sam_settings(self, base: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what SAM may choose from, given the setting of the base, whose weight decay it keeps."""
        return [{**base, "method": "sam", "lr": lr, "rho": rho} for lr, rho in itertools.product(self.lr, self.rho)]


def _of_bench(name: str, epochs: int, *, parts: bool = True) -> Job:
    bench = BENCHES[name]
    fixed = {key: value for key, value in bench.fixed.items() if key != "weight_decay"}
    return Job(bench.title, bench.task, bench.base, epochs, bench.lr, bench.decays, bench.rho, fixed, parts)


JOBS: Mapping[str, Job] = MappingProxyType(
    {
        "mnist1d": _of_bench("mnist1d", 40),
        "digits-noise": _of_bench("digits-noise", 30),
        "digits-noise-norm": _of_bench("digits-noise-norm", 30),
        "mnist1d-conv": _of_bench("mnist1d-conv", 16),
        "news": _of_bench("news", 1, parts=False),
        "diabetes": Job(
            title="diabetes, 120 patients, MLP",
            task=f"{_HERE / 'tasks.py'}:diabetes",
            base="adamw",
            epochs=40,
            lr=(1e-3, 3e-3, 1e-2),
            decays=(0.01, 0.1, 1.0),
            rho=(0.1, 0.2, 0.4),
        ),
        "characters": Job(
            title="next characters of BBC news, GRU",
            task=f"{_HERE / 'tasks.py'}:characters",
            base="adamw",
            epochs=10,
            lr=(4e-3, 8e-3, 1.6e-2),
            decays=(0.01, 0.1, 1.0),
            rho=(0.05, 0.1, 0.2),
        ),
        "images": Job(
            title="4000 images of CIFAR-10 with crops and flips, convnet",
            task=f"{_HERE / 'data_tasks.py'}:images",
            base="sgd",
            epochs=14,
            lr=(0.05, 0.1, 0.2),
            decays=(5e-4, 2e-3, 5e-3),
            rho=(0.05, 0.1, 0.2),
            fixed={"momentum": 0.9},
            data="cifar10",
        ),
        "entailment": Job(
            title="RTE, 48 pairs per class, MiniLM fine-tuned",
            task=f"{_HERE / 'data_tasks.py'}:entailment",
            base="adamw",
            epochs=1,
            lr=(5e-5, 1e-4, 2e-4),
            decays=(0.01, 0.1, 1.0),
            rho=(0.01, 0.02, 0.05),
            parts=False,
            data="glue",
        ),
        "paraphrases": Job(
            title="MRPC, 48 pairs per class, MiniLM fine-tuned",
            task=f"{_HERE / 'data_tasks.py'}:paraphrases",
            base="adamw",
            epochs=1,
            lr=(5e-5, 1e-4, 2e-4),
            decays=(0.01, 0.1, 1.0),
            rho=(0.01, 0.02, 0.05),
            parts=False,
            data="glue",
        ),
    }
)
"""The five of `steppe bench`, shorter where a study of hours asks for it, and five that had no part before."""


@dataclass(frozen=True)
class Candidate:
    """A unit of the radius.

    Attributes:
        title: The unit in a few words.
        method: The name in `methods`.
        centre: The constant in the middle of the grid.
    """

    title: str
    method: str
    centre: float

    def constants(self, size: int) -> list[float]:
        """Return so many constants around the middle, each 3.16 times the one before; of two the first is below it.

        Example:
            >>> Candidate("radius", "absolute", 0.1).constants(5)
            [0.01, 0.0316, 0.1, 0.316, 1.0]
        """
        return [float(f"{self.centre * 10 ** ((k - size // 2) / 2):.3g}") for k in range(size)]


# In the middle: near what good radii of SAM come to in these units, in short trainings on tasks of the bench.
CANDIDATES: Mapping[str, Candidate] = MappingProxyType(
    {
        "absolute": Candidate("radius (SAM)", "absolute", 0.1),
        "adaptive": Candidate("radius, weights as scale (ASAM)", "adaptive", 1.0),
        "angle": Candidate("1 - cosine of clean and sharp gradient", "angle", 0.1),
        "loss-budget": Candidate("rise of the loss by the tangent", "loss_budget", 0.1),
        "relative-loss-budget": Candidate("the same in parts of the loss", "relative_loss_budget", 0.03),
        "loss-gap": Candidate("rise of the loss, measured, in parts of it", "loss_gap", 0.1),
        "weights": Candidate("norm of the weights", "weights", 0.003),
        "each-tensor": Candidate("norm of each tensor of weights", "each_tensor", 0.003),
        "last-update": Candidate("length of the last step", "last_update", 3.0),
        "learning-rate": Candidate("learning rate", "learning_rate", 50.0),
        "noise": Candidate("noise over signal of the gradient", "noise", 0.03),
        "adagrad-norm": Candidate("climb of LightSAM-I", "adagrad_norm", 1.0),
        "adagrad": Candidate("climb of LightSAM-II", "adagrad", 0.002),
        "adam": Candidate("climb of LightSAM-III", "adam", 5e-4),
        "edge": Candidate("1 / (learning rate x curvature)", "edge", 5e-4),
    }
)


@dataclass(frozen=True)
class Preset:
    """A setting of the study.

    Attributes:
        jobs: The tasks by name; those that need data take part where there is some.
        candidates: Out of `CANDIDATES`.
        constants: Of each candidate.
        tuning_seeds: Of the choices of the base and of SAM.
        seeds: Of all else.
    """

    jobs: Mapping[str, Job]
    candidates: tuple[str, ...]
    constants: int = 5
    tuning_seeds: int = 2
    seeds: int = 3

    def entries(self, job: Job) -> list[str]:
        """Return who is judged on a task: candidates, and those that climb along a part."""
        return [name + end for end in ("", PART)[: 1 + job.parts] for name in self.candidates]

    def constants_of(self, entry: str) -> list[float]:
        """Return the constants of one who is judged."""
        return CANDIDATES[entry.removesuffix(PART)].constants(self.constants)

    def arms(self, job: Job, base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return a row for every constant of everybody, at the setting of the base."""
        return {
            row_of(entry, index): {
                "method": f"{_METHODS}:{CANDIDATES[entry.removesuffix(PART)].method}",
                **base,
                "rho": constant,
                **({"fraction": FRACTION} if entry.endswith(PART) else {}),
            }
            for entry in self.entries(job)
            for index, constant in enumerate(self.constants_of(entry))
        }


def row_of(entry: str, index: int) -> str:
    """Return the name of the row of a constant.

    Example:
        >>> row_of("angle-part", 2)
        'angle-part@2'
    """
    return f"{entry}@{index}"


def _short(name: str, epochs: int) -> Job:
    job = JOBS[name]
    return replace(job, epochs=epochs, lr=job.lr[1:2], decays=job.decays[:2], rho=job.rho[:2])


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(
            {"diabetes": _short("diabetes", 5), "mnist1d": _short("mnist1d", 1)},
            ("absolute", "angle", "weights"),
            constants=2,
        ),
        "small": Preset(JOBS, tuple(CANDIDATES)),
    }
)
"""``smoke`` shows that it runs."""
