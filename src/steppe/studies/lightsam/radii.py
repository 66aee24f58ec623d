"""How far a method climbs, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...lab.tasks.task import Task
from ...lab.trials.host import Host
from ...lab.trials.records import TrialConfig
from ...lab.trials.surroundings import reproducible
from ...lab.trials.trial import Training
from ...optimizer import SharpnessAware


def radii(config: TrialConfig, task: Task) -> list[list[float]]:
    """Repeat a trial and return ``‖delta‖`` at every step of every epoch, until it ends or diverges.

    Args:
        config: Of a method that climbs.
        task: The task that ``config.task`` names.
    """
    found: list[list[float]] = []
    with reproducible(config.seed):
        training = Training(config, task, Host())
        opt = training.optimizer
        assert isinstance(opt, SharpnessAware)
        params = [p for group in opt.param_groups for p in group["params"]]
        before: list[Tensor] = []

        @contextmanager
        def measured() -> Iterator[None]:
            with torch.no_grad():
                moved = torch._foreach_sub(params, before)
                found[-1].append(float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(moved)))))
            yield

        def note(*_: object) -> None:
            before[:] = [p.detach().clone() for p in params]

        opt.register_step_pre_hook(note)
        opt.around_sharp_pass(measured, also_single=True)
        while training.step < training.total and training.diverged is None:
            found.append([])
            training.run_epoch()
    return found
