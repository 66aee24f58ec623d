"""Compare methods on a task: does sharpness-aware training help here, with which method, at what cost?

Names are loaded when they are first used, so that the command line starts without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._errors import RunError as RunError
    from .._errors import UserError as UserError
    from .comparison import Comparison as Comparison
    from .comparison import compare as compare
    from .tasks import Task as Task

_HOME = {
    "Comparison": ".comparison",
    "RunError": ".._errors",
    "Task": ".tasks",
    "UserError": ".._errors",
    "compare": ".comparison",
}

__all__ = ["Comparison", "RunError", "Task", "UserError", "compare"]


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
