"""Tell torch of the device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from . import attention, kernels, memory, mixed, module, randomness, state
from .memory import NAME

_libraries: list[torch.library.Library] = []  # what is registered is gone when its library is


def register() -> None:
    """Make the device known in this process; torch calls this once, when it is imported."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    every, each = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([every, each])
    every.fallback(kernels.run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, mixed.KEY)
    for name, kernel in {**kernels.KERNELS, **attention.KERNELS}.items():
        each.impl(name, kernel, "PrivateUse1")
    for key in ("AutogradPrivateUse1", "PrivateUse1"):  # its parts have gradients
        each.impl("scaled_dot_product_attention", attention.attention, key)
    for key in ("Conjugate", "Negative"):
        each.impl("_copy_from", torch.library.fallthrough_kernel, key)
    each.impl("_pin_memory", kernels.pin_memory, "CPU")
    for name, op in kernels.of_the_cpu():
        each.impl(name, partial(kernels.run, op), "PrivateUse1")
    for name, kernel in mixed.kernels().items():
        each.impl(name, kernel, mixed.KEY)
    _complete()


def _complete() -> None:
    """Put functions in the place of those of torch's that a device in Python cannot have, or that know one device."""
    torch._C._accelerator_getDeviceIndex = state.current
    torch._C._accelerator_setDeviceIndex = state.set_current
    torch._C._accelerator_exchangeDevice = torch._C._accelerator_maybeExchangeDevice = state.set_current
    torch._C._accelerator_isAllocatorInitialized = lambda: False  # no statistics are kept
    torch._C._accelerator_synchronizeDevice = module.synchronize
    torch.UntypedStorage.__new__ = partial(_storage, torch.UntypedStorage.__new__)
    torch.Generator = randomness.Generator


def _storage(make: Any, cls: type, *args: Any, **kwargs: Any) -> Any:
    device = kwargs.get("device")
    if device is None or torch.device(device).type != NAME:
        return make(cls, *args, **kwargs)
    memory_of_cpu = make(cls, *args, **{**kwargs, "device": "cpu"})
    return memory.storage_there(memory_of_cpu, state.index_of(device))
