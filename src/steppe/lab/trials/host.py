"""Where a trial runs: in one process on any device, or in processes that accelerate has launched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .devices import count, kind

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

_LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")


WORKER = "STEPPE_WORKER"
"""The environment variable that has the number of a worker process, the smallest that no other has."""


@dataclass(frozen=True)
class Host:
    """One process.

    Attributes:
        device: Where models and batches are.
        precision: Of forward passes: ``fp32``, or ``bf16`` by autocast.
    """

    device: torch.device | str = "cpu"
    precision: str = "fp32"

    def placed(self) -> Host:
        """Return this on one device of its kind: worker processes take them in turn."""
        devices = count(str(self.device))
        if devices == 1:
            return self
        return replace(self, device=f"{self.device}:{int(os.environ.get(WORKER, 0)) % devices}")

    def forward(self) -> AbstractContextManager[Any]:
        """Return what forward passes run in."""
        if self.precision == "fp32":
            return nullcontext()
        import torch

        return torch.autocast(kind(str(self.device)), dtype=torch.bfloat16)

    @property
    def threads(self) -> int | None:
        """Of torch on the CPU; None leaves them as they are."""
        return 1

    @property
    def processes(self) -> int:
        """How many processes share every batch."""
        return 1

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0

    @property
    def versions(self) -> dict[str, str]:
        """What belongs into a trial's key, since it changes numbers; nothing for one process on the CPU."""
        return {}

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what to call in training in place of a model on the device."""
        return model

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def mean(self, loss: Tensor) -> float:
        """Return the mean of a number over the processes, the same in each of them."""
        return float(loss)

    def agree(self, values: Sequence[Any]) -> list[Any]:
        """Return the values of the first process."""
        return list(values)

    def one_by_one(self) -> AbstractContextManager[Any]:
        """Within this, the first process goes before the others: they find the files that it has written."""
        return nullcontext()


class AcceleratedHost(Host):
    """What ``accelerate launch`` has set up: any device, any number of processes with one share of each batch each.

    Raises:
        UserError: accelerate is not installed, or is to use float16, whose gradients would have to be unscaled.
    """

    _accelerator: Accelerator

    threads = None

    def __init__(self) -> None:
        """Join the other processes."""
        from ..._extras import how_to_install
        from ..errors import UserError

        # What cuBLAS needs to compute deterministically, which trials demand; read when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise UserError(how_to_install("accelerate", "studies")) from error
        accelerator = Accelerator()
        if accelerator.mixed_precision == "fp16":
            raise UserError("trials cannot run in fp16; launch with --mixed_precision bf16 or no")
        super().__init__(accelerator.device)  # its own autocast surrounds the wrapped model
        object.__setattr__(self, "_accelerator", accelerator)

    @property
    def processes(self) -> int:
        """How many processes share every batch."""
        return int(self._accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def versions(self) -> dict[str, str]:
        """Kind and number of devices, and the precision."""
        kind = self._accelerator.device.type
        return {"host": f"{self.processes} x {kind}, {self._accelerator.mixed_precision}"}

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as accelerate prepares it."""
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        self._accelerator.backward(loss)

    def mean(self, loss: Tensor) -> float:
        """Return the mean of a number over the processes, the same in each of them."""
        return float(self._accelerator.reduce(loss.detach(), reduction="mean"))

    def agree(self, values: Sequence[Any]) -> list[Any]:
        """Return the values of the first process."""
        from accelerate.utils import broadcast_object_list

        shared = [list(values)]
        broadcast_object_list(shared)
        return shared[0]

    def one_by_one(self) -> AbstractContextManager[Any]:
        """Within this, the first process goes before the others: they find the files that it has written."""
        context: AbstractContextManager[Any] = self._accelerator.main_process_first()
        return context


def launched() -> bool:
    """Return whether this process was started by ``accelerate launch`` or ``torchrun``."""
    return any(name in os.environ for name in _LAUNCHED)
