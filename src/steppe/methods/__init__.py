"""The methods, one paper per file.

`METHODS` names them for everything that picks a method by name. Those whose first parameter is called ``base`` wrap an
optimizer instance; the others take parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch.optim import Optimizer

from .adasam import AdaSAM
from .amsgrad import AMSGrad
from .asam import ASAM
from .esam import ESAM
from .friendlysam import FriendlySAM
from .gsam import GSAM
from .lightsam import LightSAM
from .looksam import LookSAM
from .msam import MSAM
from .pgn import PGN
from .sam import SAM
from .unifiedsam import UnifiedSAM
from .usam import USAM
from .vasso import VaSSO

METHODS: Mapping[str, Callable[..., Optimizer]] = {
    "sam": SAM,
    "usam": USAM,
    "asam": ASAM,
    "gsam": GSAM,
    "msam": MSAM,
    "looksam": LookSAM,
    "friendlysam": FriendlySAM,
    "vasso": VaSSO,
    "pgn": PGN,
    "unifiedsam": UnifiedSAM,
    "esam": ESAM,
    "amsgrad": AMSGrad,
    "adasam": AdaSAM,
    "lightsam-i": partial(LightSAM, variant="adagrad-norm"),
    "lightsam-ii": partial(LightSAM, variant="adagrad"),
    "lightsam-iii": partial(LightSAM, variant="adam"),
}

__all__ = [
    "ASAM",
    "ESAM",
    "GSAM",
    "METHODS",
    "MSAM",
    "PGN",
    "SAM",
    "USAM",
    "AMSGrad",
    "AdaSAM",
    "FriendlySAM",
    "LightSAM",
    "LookSAM",
    "UnifiedSAM",
    "VaSSO",
]
