"""What differences say of a claim, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from ..lab.judge.differences import Difference, holm

Verdict = Literal["replicated", "in part", "not replicated", "the opposite"]


def corrected(differences: Sequence[Difference | None]) -> tuple[Difference | None, ...]:
    """Return differences with p-values that are corrected by Holm for how many they are; None stays None."""
    p_holm = iter(holm([one.p for one in differences if one is not None]))
    return tuple(None if one is None else replace(one, p_holm=next(p_holm)) for one in differences)


def verdict(differences: Sequence[Difference | None], *, above: bool) -> Verdict | None:
    """Judge a claim that all of some differences are above 0, or below.

    It is replicated if every difference goes the right way and is significant, the opposite if every one is significant
    the wrong way, in part if some significant one goes the right way and none the wrong way, and not replicated else.

    Args:
        differences: Corrected.
        above: Whether the right way is up.

    Returns:
        The verdict; None if there is no difference, or one is not known.
    """
    known = [one for one in differences if one is not None]
    if len(known) < len(differences) or not known:
        return None
    right = sum(one.significant and (one.value > 0) == above for one in known)
    wrong = sum(one.significant and (one.value > 0) != above for one in known)
    if right == len(known):
        return "replicated"
    if wrong == len(known):
        return "the opposite"
    return "in part" if right and not wrong else "not replicated"


def interval(difference: Difference | None, form: str = "{:+.2f}") -> str:
    """Write a difference with its interval, and a star if it is significant.

    Args:
        difference: The difference.
        form: Of each number.

    Example:
        >>> interval(Difference(-1.0, -2.5, 0.5, p=0.2, p_holm=0.4, n=3))
        '-1.00 [-2.50, +0.50]'
    """
    return _written(difference, form, lambda number: number, "")


def factor(difference: Difference | None) -> str:
    """Write a difference of logarithms to base 2 as the factor that it stands for.

    Example:
        >>> factor(Difference(-1.0, -2.0, 1.0, p=0.2, p_holm=0.4, n=3))
        'x 0.5 [0.25, 2]'
    """
    return _written(difference, "{:.2g}", lambda number: 2.0**number, "x ")


def _written(difference: Difference | None, form: str, scale: Callable[[float], float], sign: str) -> str:
    if difference is None:
        return "n/a"
    value, low, high = (form.format(scale(x)) for x in (difference.value, difference.low, difference.high))
    return f"{sign}{value} [{low}, {high}]{'*' if difference.significant else ''}"
