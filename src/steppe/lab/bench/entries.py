"""Who takes part, on what, and which settings each may choose from: nine for everybody."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peers import installed

_FILE = Path(__file__).with_name("tasks.py")
_NORMED = Path(__file__).with_name("normed.py")
_PEER = "steppe.lab.bench.peers"


@dataclass(frozen=True)
class Bench:
    """A task, and the grids of its learning rate and radii.

    Attributes:
        title: What the task is.
        task: As `steppe compare` takes it.
        base: The name of the base.
        epochs: Of a training, whatever the task itself says.
        steps: Of an epoch.
        lr: Three learning rates.
        fixed: Hyper-parameters of the base.
        decays: Three weight decays, for the base alone, which has no radius to choose.
        rho: Three radii of SAM.
        adaptive: Three radii of the adaptive climb.
        normed: Whether the model has normalization layers.
        tuning_seeds: Of the choice, unless the user says otherwise. With few, a setting that ruins every third training
            may look like the best.
    """

    title: str
    task: str
    base: str
    epochs: int
    steps: int
    lr: tuple[float, float, float]
    fixed: Mapping[str, float]
    decays: tuple[float, float, float]
    rho: tuple[float, float, float]
    adaptive: tuple[float, float, float]
    normed: bool = False
    tuning_seeds: int = 4


BENCHES: Mapping[str, Bench] = {
    "mnist1d": Bench(
        title="mnist1d, MLP",
        task="mnist1d",
        base="adamw",
        epochs=40,
        steps=40,
        lr=(4e-3, 8e-3, 1.6e-2),
        fixed={"weight_decay": 0.01},
        decays=(0.01, 0.1, 1.0),
        rho=(0.2, 0.4, 0.8),
        adaptive=(1.0, 2.0, 4.0),
    ),
    "digits-noise": Bench(
        title="digits, convnet, 40 % of the training labels random",
        task=f"{_FILE}:digits_noise",
        base="sgd",
        epochs=80,
        steps=20,
        lr=(5e-3, 1e-2, 2e-2),
        fixed={"momentum": 0.9, "weight_decay": 5e-4},
        decays=(1e-4, 5e-4, 2e-3),
        rho=(0.1, 0.2, 0.4),
        adaptive=(1.0, 2.0, 4.0),
    ),
    "digits-noise-norm": Bench(
        title="digits, convnet with batch norm, 40 % of the training labels random",
        task=f"{_NORMED}:digits_noise_norm",
        base="sgd",
        epochs=80,
        steps=20,
        lr=(5e-3, 2e-2, 8e-2),
        fixed={"momentum": 0.9, "weight_decay": 5e-4},
        decays=(5e-4, 5e-3, 5e-2),
        rho=(0.2, 0.4, 0.8),
        adaptive=(2.0, 4.0, 8.0),
        normed=True,
        tuning_seeds=2,
    ),
    "mnist1d-conv": Bench(
        title="mnist1d, convnet",
        task="mnist1d-conv",
        base="adamw",
        epochs=40,
        steps=40,
        lr=(8e-3, 1.6e-2, 3.2e-2),
        fixed={"weight_decay": 0.01},
        decays=(0.01, 0.1, 1.0),
        rho=(0.05, 0.1, 0.2),
        adaptive=(0.5, 1.0, 2.0),
    ),
    "news": Bench(
        title="8 BBC texts per class, MiniLM fine-tuned",
        task=f"{_FILE}:news",
        base="adamw",
        epochs=2,
        steps=25,
        lr=(5e-5, 1e-4, 2e-4),
        fixed={"weight_decay": 0.01},
        decays=(0.01, 0.1, 1.0),
        rho=(0.01, 0.02, 0.05),
        adaptive=(0.1, 0.2, 0.5),
        normed=True,
        tuning_seeds=2,
    ),
}


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        method: As `steppe compare` takes it.
        radii: Which of the task's radii it chooses from, and what they are multiplied by; None without a radius.
        more: Its other hyper-parameters, the same on every task.
        share: Hyper-parameters that are a part of the training's steps.
        normed: Whether it is for models with normalization layers alone.
    """

    method: str
    radii: tuple[str, float] | None = ("rho", 1.0)
    more: Mapping[str, float] = field(default_factory=dict)
    share: Mapping[str, float] = field(default_factory=dict)
    normed: bool = False

    def settings(self, bench: Bench, epochs: int | None = None) -> list[dict[str, Any]]:
        """Return the nine settings that it may choose from."""
        total = bench.steps * (epochs or bench.epochs)
        if self.radii is None:
            grid = [{"weight_decay": decay} for decay in bench.decays]
        else:
            name, factor = self.radii
            grid = [{"rho": round(rho * factor, 10)} for rho in getattr(bench, name)]
        steps = {name: float(round(part * total)) for name, part in self.share.items()}
        fixed = {**bench.fixed, **self.more, **steps}
        return [{"lr": lr, **fixed, **other} for lr, other in itertools.product(bench.lr, grid)]


_PART = ("rho", 2.0)  # the gradient of a part is a rougher guide, and larger climbs along it do no harm

ENTRIES: Mapping[str, Entry] = {
    "sam": Entry("sam"),
    "asam": Entry("asam", ("adaptive", 1.0), {"eta": 0.01}),
    "msam": Entry("msam", ("rho", 5.0)),
    "msam-adaptive": Entry("msam", ("adaptive", 5.0), {"eta": 0.01}),
    "sam-part-25": Entry("sam", _PART, {"fraction": 0.25}),
    "sam-part-10": Entry("sam", _PART, {"fraction": 0.1}),
    "sam-part-5": Entry("sam", _PART, {"fraction": 0.05}),
    "sam-every-2-part-25": Entry("sam", _PART, {"every": 2, "fraction": 0.25}),
    "sam-every-2-part-10": Entry("sam", _PART, {"every": 2, "fraction": 0.1}),
    "sam-every-3-part-15": Entry("sam", _PART, {"every": 3, "fraction": 0.15}),
    "sam-every-5": Entry("sam", more={"every": 5}),
    "sam-every-5-stretched": Entry("sam", more={"every": 5, "stretched": True}),
    "sam-late": Entry("sam", share={"after": 0.75}),
    "looksam": Entry("looksam", more={"k": 5, "alpha": 0.2}),
    # The best radius of the few weights in normalization layers is larger than that of all.
    "sam-norm-layers": Entry("sam", ("rho", 5.0), {"norm_layers": True}, normed=True),
}

PEERS: Mapping[str, Entry] = {
    "pytorch-optimizer-SAM": Entry(f"{_PEER}:pytorch_optimizer_sam"),
    "pytorch-optimizer-LookSAM": Entry(f"{_PEER}:pytorch_optimizer_looksam", more={"k": 5, "alpha": 0.2}),
    "temperon": Entry(f"{_PEER}:temperon", more={"tail": 0.3}, share={"steps": 1.0}),
    "heavyball-SAM": Entry(f"{_PEER}:heavyball_sam", ("adaptive", 1.0)),
}


def entries(bench: Bench) -> dict[str, Entry]:
    """Return all rows of a task's table: the base, what is here, and the peers that are installed."""
    there = installed()
    peers = {name: entry for name, entry in PEERS.items() if any(name.startswith(package) for package in there)}
    ours = {name: entry for name, entry in ENTRIES.items() if bench.normed or not entry.normed}
    return {bench.base: Entry(bench.base, None), **ours, **peers}
