"""Batch norm's running statistics and the sharp pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steppe.passes import frozen_statistics

KINDS = [
    lambda: nn.BatchNorm1d(3),
    lambda: nn.BatchNorm1d(3, momentum=None),
    lambda: nn.BatchNorm1d(3, affine=False),
    lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    lambda: nn.BatchNorm1d(3, track_running_stats=False),
]


def data(module: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 3, 5) if isinstance(module, nn.InstanceNorm1d) else torch.randn(8, 3)


@pytest.mark.parametrize("make", KINDS)
def test_outputs_are_the_same_and_buffers_stay(make):
    model = nn.Sequential(make())
    x, free = data(model[0]), copy.deepcopy(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with frozen_statistics(model):
        out = model(x)
    assert torch.equal(out, free(x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model(x)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), free.buffers(), strict=True))


def test_evaluation_mode_keeps_using_its_statistics():
    model = nn.BatchNorm1d(3).eval()
    x = data(model) + 5
    expected = model(x)
    with frozen_statistics(model):
        assert torch.equal(model(x), expected)


def test_nested_and_with_an_exception():
    model = nn.BatchNorm1d(3)
    inner = frozen_statistics(model)

    def nested():
        with frozen_statistics(model):
            with inner:
                pass
            assert not model.track_running_stats
            raise KeyError

    with pytest.raises(KeyError):
        nested()
    assert model.track_running_stats
