"""What the tests of `steppe.lab` share: a tiny task file, records made by hand, and the real command line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import commands
from steppe import cli
from steppe.lab.comparing import comparison
from steppe.lab.trials.records import Curve, Diverged, Final, Record, TrialConfig

TINY = """
import torch
from torch import nn
from steppe.lab import Task

def task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(60, generator=generator) > 0).long()
    train, validation, test = zip(torch.split(x, 20), torch.split(y, 20))
    return Task(lambda: nn.Linear(4, 2), train, validation, test, batch_size=8, epochs=3)
"""


@pytest.fixture(autouse=True)
def unrepeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison repeats a trial, unless the tests are of that."""
    monkeypatch.setattr(comparison, "can_check", lambda workers: False)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A task that trains in milliseconds, as FILE.py:FUNCTION."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return f"{path}:task"


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[[str], str]:
    """Write a task whose function has the given body."""

    def write(body: str) -> str:
        lines = "\n".join("    " + line for line in body.strip().splitlines())
        head = "import torch\nfrom torch import nn\nfrom steppe.lab import Task\n"
        head += "x, y = torch.randn(20, 3), torch.arange(20) % 2\n\ndef task():\n"
        path = tmp_path / "mine.py"
        path.write_text(head + lines + "\n")
        return f"{path}:task"

    return write


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; workers are real processes all the same."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``python -m steppe`` as a process group of its own, which is killed in the end."""
    with commands() as begin:
        yield begin


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    """Make a record of two epochs from a few numbers."""

    def make(
        method: str,
        seed: int,
        test: float | None,
        *,
        train: float = 90.0,
        seconds: float = 1.0,
        evaluations: int = 10,
        sharpness: dict[str, float | None] | None = None,
        final: dict[str, Any] | None = None,
        **more: Any,
    ) -> Record:
        config = TrialConfig(
            task="mnist1d", method=method, hyperparameters={}, seed=seed, epochs=2, batch_size=5, versions={}, **more
        )
        found = (
            None
            if test is None
            else Final(
                train_loss=0.5,
                train_metric=train,
                validation_loss=0.6,
                validation_metric=test,
                test_loss=0.7,
                test_metric=test,
                sharpness=sharpness,
                **(final or {}),
            )
        )
        curve = Curve(
            train_loss=[1.0, 0.5],
            validation_loss=[1.0, 0.6],
            validation_metric=[50.0, test or 0.0],
            gradient_evaluations=[evaluations // 2, evaluations],
            examples=[5 * (evaluations // 2), 5 * evaluations],
            seconds=[seconds / 2, seconds],
        )
        return Record(
            key=config.key,
            config=config,
            status="diverged" if found is None else "finished",
            diverged=Diverged(epoch=1, step=3) if found is None else None,
            curve=Curve() if found is None else curve,
            final=found,
            gradient_evaluations=evaluations,
            examples=5 * evaluations,
            updates=10,
            seconds=seconds,
            versions={"torch": "2", "steppe": "0", "python": "3"},
        )

    return make
