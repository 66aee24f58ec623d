"""How much a comparison tunes before it begins, as the user asks for it."""

from __future__ import annotations

import math
import re

from ..trials.fields import Model
from .grid import MOST_SETTINGS

USUAL_SETTINGS = 6
FEWEST = 2
"""Settings of a row: with one there is nothing to choose, since the first is what the row has anyway."""

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_FORMS = f"auto, 0, a whole number of settings from {FEWEST} to {MOST_SETTINGS}, or a time such as 90s, 5min or 1h"


class Budget(Model):
    """What tuning may cost: as much for every row.

    Attributes:
        settings: Of each row; 0 leaves all as they are, None goes by `seconds`.
        seconds: Of all of tuning; None goes by `settings`.
        auto: Whether nobody asked for it, so that only rows are tuned whose settings nobody has chosen.
    """

    settings: int | None = None
    seconds: float | None = None
    auto: bool = False


AUTO = Budget(settings=USUAL_SETTINGS, auto=True)


def budget_of(value: object) -> Budget:
    """Read what the user writes.

    Raises:
        ValueError: It is nothing of that kind.

    Example:
        >>> budget_of("5min").seconds, budget_of(12).settings, budget_of("auto").settings
        (300.0, 12, 6)
    """
    if isinstance(value, Budget):
        return value
    text = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if text == "auto":
        return AUTO
    if re.fullmatch(r"\d{1,9}", text) and (int(text) == 0 or FEWEST <= int(text) <= MOST_SETTINGS):
        return Budget(settings=int(text))
    time = _TIME.fullmatch(text)
    seconds = float(time.group(1)) * _SECONDS[time.group(2)] if time else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be {_FORMS}, got {value!r}")
    return Budget(seconds=seconds)
