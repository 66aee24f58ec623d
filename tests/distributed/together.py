"""What programs on several processes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode


def own(batch: Any) -> Any:
    """Return this rank's share of a batch."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return batch.chunk(size)[rank] if isinstance(batch, Tensor) else tuple(own(x) for x in batch)


def whole(x: Any) -> Tensor:
    """Return all of a tensor that may be spread over processes."""
    return x.full_tensor().detach() if hasattr(x, "full_tensor") else x.detach()


def distance(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> float:
    """Return the largest difference between elements; not finite if anything is not."""
    gaps = [(whole(x) - whole(y)).abs() for x, y in zip(xs, ys, strict=True)]
    return float(torch.cat([gap.reshape(-1) for gap in gaps]).max())


def same_everywhere(xs: Iterable[Tensor]) -> bool:
    """Say whether tensors are the same on all ranks, bit for bit, where NaN is NaN."""
    flat = torch.cat([whole(x).reshape(-1).double() for x in xs])
    found = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, flat)
    return all(torch.equal(x.nan_to_num(1e300), flat.nan_to_num(1e300)) for x in found)


def check_followed(results: list[dict[str, Any]]) -> None:
    """Check what `programs_ddp.followed` has found: the radii of one process, the same on all ranks."""
    assert results[0]["radii"] == results[1]["radii"]
    for found in results:
        assert found["gap"] < 1e-12
        assert all(math.isclose(alone, other, rel_tol=1e-10) for alone, other in found["radii"])
        assert len({alone for alone, _ in found["radii"]}) == 5


def message_of(kind: type[BaseException], function: Callable[[], Any]) -> str:
    """Return the message of the error that ``function`` must raise."""
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError(f"No {kind.__name__} was raised.")


class Collectives(TorchDispatchMode):
    """Note every collective operation that runs inside, as (name, number of elements)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen.append((func._schema.name.split("::")[1].strip("_"), _elements(args[0])))
        return func(*args, **(kwargs or {}))

    def all_reduces(self, at_least: int = 0, at_most: int = 1 << 60) -> int:
        """Return how many all-reduces there were of so many elements."""
        sizes = [size for name, size in self.seen if name in ("allreduce", "all_reduce")]
        return sum(at_least <= size <= at_most for size in sizes)


def _elements(x: Any) -> int:
    if isinstance(x, Tensor):
        return x.numel()
    return sum(map(_elements, x)) if isinstance(x, (list, tuple)) else 0


@lru_cache
def mesh(shape: tuple[int, ...] = (2,)) -> DeviceMesh:
    """Return the processes as a mesh; each kind is made once."""
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def shard(model: nn.Module, on: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Spread a model over processes, layer by layer, by FSDP2."""
    on = on or mesh()
    for layer in list(model.modules())[1:]:
        if next(layer.parameters(recurse=False), None) is not None:
            fully_shard(layer, mesh=on, **options)
    fully_shard(model, mesh=on, **options)
    return model
