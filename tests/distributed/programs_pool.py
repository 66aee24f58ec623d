"""What the tests of the pool run in it."""

from __future__ import annotations

import os
import time

import torch
from torch import distributed


def add_up(x: float) -> float:
    total = torch.tensor(x * (distributed.get_rank() + 1))
    distributed.all_reduce(total)
    return total.item()


def fail_on_one() -> None:
    if distributed.get_rank() == 1:
        raise ZeroDivisionError("only here")
    distributed.barrier()


def die_on_one() -> None:
    if distributed.get_rank() == 1:
        os._exit(3)
    distributed.barrier()


def where_it_hangs() -> None:
    if distributed.get_rank() == 0:
        time.sleep(60)


def process() -> int:
    return os.getpid()
