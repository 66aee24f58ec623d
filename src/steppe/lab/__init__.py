"""Does it help? Comparisons, sweeps and tuning: plans of trials, who carries them out, records, verdicts, reports.

Names are loaded when they are first used, so that the command line starts without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparing.comparison import compare as compare
    from .errors import RunError as RunError
    from .errors import UserError as UserError
    from .judge.comparison import Comparison as Comparison
    from .judge.points import Point as Point
    from .judge.points import SeedResult as SeedResult
    from .judge.sweep import Sweep as Sweep
    from .sweeping.sweeping import sweep as sweep
    from .tasks.loop import loop as loop
    from .tasks.task import Task as Task
    from .trials.run import Run as Run

_HOME = {
    "Comparison": ".judge.comparison",
    "Point": ".judge.points",
    "Run": ".trials.run",
    "RunError": ".errors",
    "SeedResult": ".judge.points",
    "Sweep": ".judge.sweep",
    "Task": ".tasks.task",
    "UserError": ".errors",
    "compare": ".comparing.comparison",
    "loop": ".tasks.loop",
    "sweep": ".sweeping.sweeping",
}

__all__ = [
    "Comparison",
    "Point",
    "Run",
    "RunError",
    "SeedResult",
    "Sweep",
    "Task",
    "UserError",
    "compare",
    "loop",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from .errors import missing_extra

        try:
            return getattr(import_module(_HOME[name], __name__), name)
        except ImportError as error:
            known = missing_extra(error)
            if known is None:
                raise
            raise known from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
