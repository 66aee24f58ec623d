"""Sweeps over hyper-parameters, on one or many machines.

Names are loaded when they are first used, so that the command line starts without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .points import Point as Point
    from .points import SeedResult as SeedResult
    from .sweeping import Sweep as Sweep
    from .sweeping import sweep as sweep

_HOME = {"Point": ".points", "SeedResult": ".points", "Sweep": ".sweeping", "sweep": ".sweeping"}

__all__ = ["Point", "SeedResult", "Sweep", "sweep"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from .._errors import missing_extra

        try:
            return getattr(import_module(_HOME[name], __name__), name)
        except ImportError as error:
            known = missing_extra(error)
            if known is None:
                raise
            raise known from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
