"""What it costs to train on batches of other forms than a pair of tensors: seconds of training, as ratios.

    python benchmarks/batch_forms.py --rounds 7

Every form has the same examples, model and number of updates. Forms take turns; a ratio is to the pair in the same
round, and the table has the median and the quartiles of the rounds. Of datasets and loaders torch fetches and collates
example by example, which is in their ratio.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steppe.lab.tasks.task import Task
from steppe.lab.trials.records import TrialConfig
from steppe.lab.trials.trial import run_trial

X = torch.randn(4000, 40, generator=torch.Generator().manual_seed(0))
Y = (X[:, :10].argmax(1)).long()
PARTS = (slice(0, 2000), slice(2000, 3000), slice(3000, 4000))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.layers(features)}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([left, right], dim=1))


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def forms() -> dict[str, Task]:
    pairs = [(X[part], Y[part]) for part in PARTS]
    by_name = [{"features": x, "labels": y} for x, y in pairs]
    several = [(x[:, :20], x[:, 20:], y) for x, y in pairs]
    datasets = [TensorDataset(*pair) for pair in pairs]
    loaders = [DataLoader(data, 100, shuffle=index == 0) for index, data in enumerate(datasets)]
    return {
        "a pair of tensors": Task(mlp, *pairs),
        "tensors by name": Task(ByName, *by_name),
        "several inputs": Task(Two, *several),
        "step(model, batch)": Task(mlp, *pairs, step=cross_entropy),
        "a dataset": Task(mlp, *datasets),
        "a DataLoader": Task(mlp, *loaders),
    }


def seconds(task: Task, method: str, epochs: int) -> float:
    own = {"rho": 0.05} if method == "sam" else {}
    config = TrialConfig(
        task="batch forms",
        method=method,
        base="adamw",
        hyperparameters={"lr": 1e-3, **own},
        seed=0,
        epochs=epochs,
        batch_size=100,
        versions={},
    )
    return run_trial(config, task).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    tasks = forms()
    for task in tasks.values():
        seconds(task, "sam", 1)
    print("| form | adamw | sam |", "| --- | ---: | ---: |", sep="\n")
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(asked.rounds):
        for method in ("adamw", "sam"):
            times = {name: seconds(task, method, asked.epochs) for name, task in tasks.items()}
            for name, time in times.items():
                found.setdefault((name, method), []).append(time / times["a pair of tensors"])
    for name in tasks:
        cells = []
        for method in ("adamw", "sam"):
            low, middle, high = statistics.quantiles(found[name, method], n=4)
            cells.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
