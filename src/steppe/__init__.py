"""Sharpness-aware training for PyTorch.

Names are loaded when they are first used, so that the command line starts without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accumulation import accumulated_step as accumulated_step
    from .batches import ScheduledBatchSampler as ScheduledBatchSampler
    from .methods import ASAM as ASAM
    from .methods import GSAM as GSAM
    from .methods import SAM as SAM
    from .methods import USAM as USAM
    from .methods import AdaSAM as AdaSAM
    from .methods import AMSGrad as AMSGrad
    from .methods import LightSAM as LightSAM
    from .optimizer import SharpnessAware as SharpnessAware
    from .schedules import ParamGroupSchedule as ParamGroupSchedule
    from .schedules import ProportionalToLR as ProportionalToLR

__version__ = "0.1.0"

_HOME = {
    "SharpnessAware": ".optimizer",
    "ParamGroupSchedule": ".schedules",
    "ProportionalToLR": ".schedules",
    "ScheduledBatchSampler": ".batches",
    "accumulated_step": ".accumulation",
    **dict.fromkeys(("SAM", "USAM", "ASAM", "GSAM", "AMSGrad", "AdaSAM", "LightSAM"), ".methods"),
}

__all__ = [
    "ASAM",
    "GSAM",
    "SAM",
    "USAM",
    "AMSGrad",
    "AdaSAM",
    "LightSAM",
    "ParamGroupSchedule",
    "ProportionalToLR",
    "ScheduledBatchSampler",
    "SharpnessAware",
    "accumulated_step",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
