"""Every operation on tensors of the device: the CPU's, in their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from . import memory, randomness, state

aten = torch.ops.aten
# As on GPUs, these take indices of the CPU.
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_COMPOSITE = ("ExplicitAutograd", "ExplicitAutogradNonFunctional", "ImplicitAutograd")


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation of the device on the CPU."""
    flat = [*_flat([args, [*kwargs.values()]])]
    index = _index_of(op, flat, kwargs.get("device"))
    state.use(index)
    with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
        # These may get another size.
        outs = {id(x) for a in op._schema.arguments if a.is_out for x in _flat([kwargs.get(a.name)])}
        pairs = [(x, _stand_in(x, id(x) in outs)) for x in flat if _is_there(x)]
        stand_ins = {id(x): y for x, y in pairs}
        moved, named = _mapped((args, [*kwargs.values()]), lambda x: stand_ins.get(id(x), _device_here(x)))
        seeded = torch.Tag.nondeterministic_seeded in op.tags and kwargs.get("generator") is None
        with randomness.drawing_from(index) if seeded else nullcontext():
            found = op(*moved, **dict(zip(kwargs, named, strict=True)))
        for x, y in pairs:
            if id(x) in outs:
                _write(x, y, index)
        # torch.empty_like(x, device="cpu") stays on the CPU.
        stays = kwargs.get("device") is not None and kwargs["device"].type != memory.NAME
        return found if stays else _mapped(found, lambda y: _back(y, pairs, index) if isinstance(y, Tensor) else y)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for x in values:
        if isinstance(x, list | tuple):
            yield from _flat(x)
        else:
            yield x


def _mapped(x: Any, f: Callable[[Any], Any]) -> Any:
    return type(x)([_mapped(y, f) for y in x]) if isinstance(x, list | tuple) else f(x)


def _is_there(x: object) -> bool:
    return isinstance(x, Tensor) and x.device.type == memory.NAME


def _device_here(x: Any) -> Any:
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == memory.NAME else x


def _index_of(op: Any, flat: list[Any], device: torch.device | None) -> int:
    """Return the index of the one device that all are on, or raise what torch raises on a GPU."""
    tensors = [x for x in flat if isinstance(x, Tensor)]
    on = {x.device for x in tensors if _is_there(x) or (x.dim() > 0 and op._schema.name not in _INDEXING)}
    if len(on) > 1:
        names = " and ".join(sorted(map(str, on)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {names}! ({op})"
        )
    for x in flat:
        if isinstance(x, torch._C.Generator) and not randomness.is_of_device(x):
            raise RuntimeError(f"Expected a '{memory.NAME}' device type for generator but found '{x.device.type}'")
    found = [x.device for x in tensors if _is_there(x)]
    return found[0].index if found else state.index_of(device)


def _stand_in(x: Tensor, out: bool) -> Tensor:
    """Return a tensor of the CPU in the same memory, or, since that cannot grow, a copy."""
    same = _here(x)
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype).copy_(same) if out else same


def _here(x: Tensor) -> Tensor:
    return _with_signs(memory.here(x), x)


def _with_signs(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` as ``x`` stands for its memory: conjugated, or negative."""
    y = torch._conj(y) if x.is_conj() else y
    return torch._neg_view(y) if x.is_neg() else y


def _write(x: Tensor, y: Tensor, index: int) -> None:
    """Give ``x`` of the device what was written to its stand-in."""
    if x.size() == y.size():
        _here(x).copy_(y)
    else:
        memory.set_to(x, memory.storage_there(y.untyped_storage(), index), y)


def _back(y: Tensor, pairs: list[tuple[Tensor, Tensor]], index: int) -> Tensor:
    """Return what a tensor of the CPU is on the device: an argument, a view of one, or a new one."""
    for x, stand_in in pairs:
        if y is stand_in:
            return x
    for x, stand_in in pairs:
        if y.data_ptr() and y.untyped_storage().data_ptr() == stand_in.untyped_storage().data_ptr():
            return _with_signs(memory.view(x, y), y)
    return memory.there(y, index)


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between the CPU and a device, or between two, into another shape or dtype too."""
    for x in (source, target):
        if _is_there(x):
            state.use(x.device.index)
    if not _is_there(source):
        state.count("moved", target.device.index)
    elif not _is_there(target):
        state.count("fetched", source.device.index)
    with torch._C._AutoDispatchBelowAutograd():
        to, what = (_here(x) if _is_there(x) else x for x in (target, source))
        to.copy_(what)
    return target


def copy_from_and_resize(source: Tensor, target: Tensor) -> Tensor:
    """The same, into a target that gets the size of the source."""
    return copy_from(source, target.resize_(source.size()))


def item(x: Tensor) -> Any:
    """Return the one number of a tensor, for which a GPU is waited for."""
    state.count("fetched", x.device.index)
    return run(aten._local_scalar_dense.default, x)


def resize(x: Tensor, size: list[int], *, memory_format: torch.memory_format | None = None) -> Tensor:
    """Give a tensor another size, and a larger memory with what it had if it needs that."""
    index, storage = x.device.index, x.untyped_storage()
    state.use(index)
    copy = memory.here(x).untyped_storage().clone()
    own = memory.set_to(torch.empty(0, dtype=x.dtype), copy, x).resize_(size, memory_format=memory_format)
    return memory.set_to(x, memory.storage_there(copy, index) if copy.nbytes() > storage.nbytes() else storage, own)


def set_storage(x: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """Let a tensor be all of a storage."""
    size = storage.nbytes() // x.element_size()
    return memory.set_to(x, storage, torch.empty(size, dtype=x.dtype, device="meta"))


def set_storage_part(
    x: Tensor, storage: torch.UntypedStorage, offset: int, size: list[int], stride: list[int] = ()
) -> Tensor:
    """Let a tensor be a part of a storage."""
    return aten.set_.source_Storage_storage_offset._op_dk(torch._C.DispatchKey.CPU, x, storage, offset, size, stride)


def set_tensor(x: Tensor, source: Tensor) -> Tensor:
    """Let a tensor be the same as another one."""
    return memory.set_to(x, source.untyped_storage(), source)


def convolution(*args: Any) -> Any:
    """torch asks devices that are not its own for convolutions by another name."""
    return run(aten.convolution.default, *args)


def convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    """The same, of which only the CPU's takes the size of the bias."""
    *how, mask = args
    transposed, groups = how[3], how[5]
    outputs = weight.size(1) * groups if transposed else weight.size(0)
    return run(aten.convolution_backward.default, gradient, x, weight, [outputs], *how, mask)


def pin_memory(x: Tensor, device: torch.device | None = None) -> Tensor:
    """Return a copy of a tensor of the CPU, in memory that is not pinned: of that the device has none."""
    return x.clone()


def of_the_cpu() -> Iterator[tuple[str, Any]]:
    """Yield the operations, by their names, that every device has in parts, but the CPU as a whole."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and has(name, "CPU") and any(has(name, f"Composite{kind}") for kind in _COMPOSITE):
            packet, _, overload = name.removeprefix("aten::").partition(".")
            yield name, getattr(getattr(aten, packet), overload or "default")


KERNELS = {
    "_copy_from": copy_from,
    "_copy_from_and_resize": copy_from_and_resize,
    "_local_scalar_dense": item,
    "convolution_backward_overrideable": convolution_backward,
    "convolution_overrideable": convolution,
    "resize_": resize,
    "set_.source_Storage": set_storage,
    "set_.source_Storage_storage_offset": set_storage_part,
    "set_.source_Tensor": set_tensor,
}
