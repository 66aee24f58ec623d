"""How the rows of a comparison got their settings, in words: a No of rows that nobody tuned is worth little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..plans.arms import Arm
    from ..plans.comparison import Plan

_MOST_NAMES = 4

_WORDS = {
    "given": "the user's",
    "packaged": "packaged for this task",
    "default": "defaults that nobody tuned for this task",
}
_ADVICE = "compare again with --tune 12 before you believe a No"
_ADVICE_FOR_LOOPS = "compare again with --tune 12, for which run.report must be told a metric on validation data"


def how_set(plan: Plan) -> str:
    """Say in one sentence how the rows got their settings.

    Args:
        plan: Of the comparison.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from ..plans.comparison import plan
        >>> from ..plans.options import Options
        >>> with TemporaryDirectory() as folder:
        ...     how_set(plan("digits", Options(methods=("adamw", "sam")), Path(folder)))
        'Settings are packaged for this task.'
    """
    groups = _groups(plan.arms)
    if len(groups) == 1:
        return f"{_alone(plan, *groups)}{_edges(plan)}."
    largest = max(groups, key=len)
    said = []
    for rows in groups:
        others = rows is largest and len(rows) > _MOST_NAMES
        said.append(_among(rows, "all other rows" if others else _and([arm.name for arm in rows])))
    text = "; ".join(said)
    left = any(rows[0].set_by == "default" for rows in groups)
    return f"Settings: {text}{_edges(plan)}{f': {_advice(plan)}' if left else ''}."


def _groups(arms: Iterable[Arm]) -> list[list[Arm]]:
    """Put rows together of which the same is to be said; what nobody tuned comes last."""
    found: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        choice = arm.choice
        of = (choice.settings, choice.seeds) if choice is not None else ()
        found.setdefault((arm.set_by, *of), []).append(arm)
    return sorted(found.values(), key=lambda rows: rows[0].set_by == "default")


def _alone(plan: Plan, rows: Sequence[Arm]) -> str:
    how = rows[0].set_by
    if how == "chosen":
        return f"Settings: each row's {_varied(rows)} are {_best_of(rows[0])}" if len(rows) > 1 else _one(rows[0])
    text = f"Settings are {_left(rows[0])}"
    return f"{text}: {_advice(plan)}" if how == "default" else text


def _one(arm: Arm) -> str:
    return f"Settings: {_varied([arm])} of {arm.name} are {_best_of(arm)}"


def _among(rows: Sequence[Arm], names: str) -> str:
    if rows[0].set_by == "chosen":
        return f"{_varied(rows)} of {names} are {_best_of(rows[0])}"
    return f"those of {names} are {_left(rows[0])}"


def _left(arm: Arm) -> str:
    """Say what the settings are that were not chosen, also since all that were tried diverged."""
    words = _WORDS[arm.set_by]
    return words if arm.choice is None else f"{words}, since all {arm.choice.settings} that were tried diverged"


def _best_of(arm: Arm) -> str:
    assert arm.choice is not None
    seeds = arm.choice.seeds
    each = "1 seed each" if seeds == 1 else f"{seeds} seeds each"
    return f"the best of {arm.choice.settings} on validation data ({each})"


def _edges(plan: Plan) -> str:
    """Say of which rows a number is best at the edge of what was tried."""
    at: dict[str, list[str]] = {}
    for arm in plan.arms:
        for name in arm.choice.edges if arm.choice is not None else ():
            at.setdefault(name, []).append(arm.name)
    said = [f"{name} of {_and(of) if len(of) <= _MOST_NAMES else f'{len(of)} rows'}" for name, of in at.items()]
    return f"; {_and(said)} {'is' if len(said) == 1 else 'are'} at the edge of what was tried" if said else ""


def _varied(rows: Sequence[Arm]) -> str:
    """Name what was varied: of most rows, and in brackets of the others."""
    names: dict[tuple[str, ...], list[str]] = {}
    for arm in rows:
        names.setdefault(arm.choice.varied if arm.choice is not None else (), []).append(arm.name)
    most = max(names, key=lambda varied: (len(names[varied]), "rho" in varied))
    others = [f"{_and(varied)} of {_and(of)}" for varied, of in names.items() if varied != most]
    return _and(most) + (f" ({'; '.join(others)})" if others else "")


def _and(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _advice(plan: Plan) -> str:
    return _ADVICE if plan.loop is None else _ADVICE_FOR_LOOPS
