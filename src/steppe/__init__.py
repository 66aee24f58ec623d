"""Sharpness-aware training for PyTorch.

Names are loaded when they are first used, so that the command line starts without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accumulation import accumulated_step as accumulated_step
    from .angle import Angle as Angle
    from .batches import ScheduledBatchSampler as ScheduledBatchSampler
    from .groups import norm_layers as norm_layers
    from .methods import ASAM as ASAM
    from .methods import ESAM as ESAM
    from .methods import GSAM as GSAM
    from .methods import MSAM as MSAM
    from .methods import PGN as PGN
    from .methods import SAM as SAM
    from .methods import USAM as USAM
    from .methods import AdaSAM as AdaSAM
    from .methods import AMSGrad as AMSGrad
    from .methods import FriendlySAM as FriendlySAM
    from .methods import LightSAM as LightSAM
    from .methods import LookSAM as LookSAM
    from .methods import UnifiedSAM as UnifiedSAM
    from .methods import VaSSO as VaSSO
    from .optimizer import SharpnessAware as SharpnessAware
    from .schedules import ParamGroupSchedule as ParamGroupSchedule
    from .schedules import ProportionalToLR as ProportionalToLR
    from .stepping import train_step as train_step
    from .together import Together as Together

__version__ = "0.1.0"

_HOME = {
    "SharpnessAware": ".optimizer",
    "ParamGroupSchedule": ".schedules",
    "Angle": ".angle",
    "ProportionalToLR": ".schedules",
    "ScheduledBatchSampler": ".batches",
    "accumulated_step": ".accumulation",
    **dict.fromkeys(("SAM", "USAM", "ASAM", "GSAM", "MSAM", "LookSAM", "ESAM", "PGN", "UnifiedSAM"), ".methods"),
    **dict.fromkeys(("FriendlySAM", "VaSSO", "AMSGrad", "AdaSAM", "LightSAM"), ".methods"),
    "norm_layers": ".groups",
    "Together": ".together",
    "train_step": ".stepping",
}

_ROOMS = (
    "ascents",
    "batches",
    "blends",
    "groups",
    "integrations",
    "lab",
    "measure",
    "methods",
    "passes",
    "schedules",
    "studies",
    "theory",
    "triggers",
)

__all__ = [
    "ASAM",
    "ESAM",
    "GSAM",
    "MSAM",
    "PGN",
    "SAM",
    "USAM",
    "AMSGrad",
    "AdaSAM",
    "Angle",
    "FriendlySAM",
    "LightSAM",
    "LookSAM",
    "ParamGroupSchedule",
    "ProportionalToLR",
    "ScheduledBatchSampler",
    "SharpnessAware",
    "Together",
    "UnifiedSAM",
    "VaSSO",
    "accumulated_step",
    "norm_layers",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS, "__version__"]
