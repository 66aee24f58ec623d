"""Tensors of the device over memory of the CPU, and tensors of the CPU over that of the device."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

NAME = "pretend"
_EXTERNAL = 12  # DLPack's number for devices that are not its own, which torch takes for this one
_KEY = torch._C.DispatchKey.CPU
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def there(tensor: Tensor, index: int) -> Tensor:
    """Return a tensor of the device ``index`` which has, and keeps, the memory of this one of the CPU."""
    capsule = torch._C._to_dlpack(tensor)
    # A pointer to the data, then two numbers: the kind of the device, and which one.
    device = (ctypes.c_int32 * 2).from_address(_pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))
    device[:] = _EXTERNAL, index
    return torch._C._from_dlpack(capsule)


def here(tensor: Tensor) -> Tensor:
    """Return a tensor of the CPU in the memory of this one of the device, which must outlive it."""
    storage = tensor.untyped_storage()
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    return set_to(torch.empty(0, dtype=tensor.dtype), memory, tensor)


def set_to(tensor: Tensor, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Let ``tensor`` be what ``like`` is of a storage, on whichever device both are, and return it."""
    place = like.storage_offset(), like.size(), like.stride()
    # The CPU's kernel works on every device: it touches no data.
    return torch.ops.aten.set_.source_Storage_storage_offset._op_dk(_KEY, tensor, storage, *place)


def view(base: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with the storage of ``base``, a tensor of the device, in the shape and dtype of ``like``."""
    return set_to(there(torch.empty(0, dtype=like.dtype), base.device.index), base.untyped_storage(), like)


def storage_there(storage: torch.UntypedStorage, index: int) -> torch.UntypedStorage:
    """Return one of the device which has, and keeps, the memory of this one of the CPU."""
    return there(torch.empty(0, dtype=torch.uint8).set_(storage), index).untyped_storage()
