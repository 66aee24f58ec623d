"""One pool of processes for each test module, and a new one after a failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from pool import Pool

if sys.platform == "win32" or not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    collect_ignore_glob = ["test_*.py"]  # processes are connected by gloo, and looked into by a signal


@pytest.fixture(scope="module")
def _pools() -> Iterator[list[Pool]]:
    pools: list[Pool] = []
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(_pools: list[Pool]) -> Pool:
    if not _pools or not _pools[-1].open:
        _pools.append(Pool())
    return _pools[-1]
