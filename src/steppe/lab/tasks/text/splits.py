"""Training, validation and test rows, no text of which lies in two of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import UserError
from .rows import Rows

VALIDATION, MOST_VALIDATION = 0.1, 2000
TEST, MOST_TEST = 0.2, 10_000


@dataclass(frozen=True)
class Splits:
    """Three parts of the rows.

    Attributes:
        train: What is trained on.
        validation: What hyper-parameters are chosen on.
        test: What is read once.
        left_out: How many training rows are in none of them, because the test rows hold the same texts.
    """

    train: Rows
    validation: Rows
    test: Rows
    left_out: int


def split(rows: Rows, test: Rows | None, classes: Sequence[str], per_class: int | None = None, seed: int = 0) -> Splits:
    """Split rows at random, and stratified if they have classes.

    Test rows, if there are none yet, are 20 % of the rows, at most 10,000; validation rows are then 10 % of those that
    remain, at most 2000. Of every class they have as large a part as of all, and at least one row. Rows that have the
    same texts, but for white space and capitals, stay together, and count for the class of their first. Training rows
    whose texts are among given test rows are left out.

    Args:
        rows: To be split; labels are the numbers of classes, or numbers to predict.
        test: The test rows, if they are given.
        classes: The names of the classes; none means that numbers are to be predicted.
        per_class: How many training rows of every class are kept at the end, drawn at random; None keeps all.
        seed: Of all draws.

    Returns:
        The parts, each in the order of its file.

    Raises:
        UserError: There are too few rows, or too few of a class.
    """
    _check_counts(per_class, seed, classes)
    draw = torch.Generator().manual_seed(seed)
    groups = _groups(rows)
    left_out = 0
    if test is not None:
        held = {_plain(texts) for texts in test.texts}
        left_out = sum(len(group) for key, group in groups.items() if key in held)
        groups = {key: group for key, group in groups.items() if key not in held}
        if len(test) < 2:
            raise UserError(f"{test.file}: the test split needs at least 2 rows, got {len(test)}; add some")
    together = list(groups.values())
    _check_enough(rows, together, classes, 2 if test is not None else 3, left_out)
    if test is None:
        together, chosen = _aside(rows, together, classes, (TEST, MOST_TEST), parts_left=2, draw=draw)
        test = rows.chosen(chosen)
    together, chosen = _aside(rows, together, classes, (VALIDATION, MOST_VALIDATION), parts_left=1, draw=draw)
    kept = sorted(index for group in together for index in group)
    if per_class is not None:
        kept = _few(rows, kept, classes, per_class, draw)
    return Splits(rows.chosen(kept), rows.chosen(chosen), test, left_out)


def _plain(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).casefold() for text in texts)


def _groups(rows: Rows) -> dict[Hashable, list[int]]:
    """Return the rows of each text."""
    found: dict[Hashable, list[int]] = {}
    for index, texts in enumerate(rows.texts):
        found.setdefault(_plain(texts), []).append(index)
    return found


def _strata(rows: Rows, groups: Sequence[list[int]], classes: Sequence[str]) -> dict[int, list[list[int]]]:
    """Return the groups of every class, or all of them in one."""
    found: dict[int, list[list[int]]] = {number: [] for number in range(len(classes) or 1)}
    for group in groups:
        found[int(rows.labels[group[0]]) if classes else 0].append(group)
    return found


def _aside(
    rows: Rows,
    groups: list[list[int]],
    classes: Sequence[str],
    share: tuple[float, int],
    parts_left: int,
    draw: torch.Generator,
) -> tuple[list[list[int]], list[int]]:
    """Return the groups that stay, of which `parts_left` parts can be made, and the rows of those set aside."""
    least = 1 if classes else 2  # rows that every part needs: of each class, or in all
    strata = _strata(rows, groups, classes)
    wanted = quotas({number: sum(map(len, found)) for number, found in strata.items()}, *share)
    stay, chosen = [], []
    for number, found in strata.items():
        order = [found[i] for i in torch.randperm(len(found), generator=draw).tolist()]
        spare, size = len(found) - least * parts_left, 0
        taken: dict[int, list[int]] = {}
        for group in order:
            if len(taken) < spare and size + len(group) <= wanted[number]:
                taken[group[0]] = group
                size += len(group)
        for group in sorted(order, key=len):  # where each text has more rows than are wanted
            if size < least and group[0] not in taken:
                taken[group[0]] = group
                size += len(group)
        stay += [group for group in found if group[0] not in taken]
        chosen += [index for group in taken.values() for index in group]
    return stay, sorted(chosen)


def quotas(counts: Mapping[int, int], share: float, most: int) -> dict[int, int]:
    """Return how many rows of every class are a share of all, at least one of each and two in all.

    Args:
        counts: The rows of every class.
        share: Between 0 and 1.
        most: The greatest number in all, unless there are more classes.

    Example:
        >>> quotas({0: 70, 1: 25, 2: 5}, share=0.1, most=2000)
        {0: 7, 1: 2, 2: 1}
    """
    everything = sum(counts.values())
    total = max(2, len(counts), min(round(share * everything), most))
    exact = {number: total * count / everything for number, count in counts.items()}
    found = {number: max(1, int(part)) for number, part in exact.items()}
    while sum(found.values()) < total:
        found[max(found, key=lambda number: exact[number] - found[number])] += 1
    while sum(found.values()) > total:
        large = [number for number in found if found[number] > 1]
        found[min(large, key=lambda number: exact[number] - found[number])] -= 1
    return found


def _few(rows: Rows, kept: Sequence[int], classes: Sequence[str], per_class: int, draw: torch.Generator) -> list[int]:
    chosen = []
    for number, name in enumerate(classes):
        found = [index for index in kept if rows.labels[index] == number]
        if len(found) < per_class:
            raise UserError(
                f"{rows.file}: per_class={per_class}, but the class {name!r} has {len(found)} training rows after the "
                "split; ask for fewer"
            )
        chosen += [found[i] for i in torch.randperm(len(found), generator=draw)[:per_class].tolist()]
    return sorted(chosen)


def _check_enough(rows: Rows, groups: list[list[int]], classes: Sequence[str], parts: int, left_out: int) -> None:
    why = "one each for training, validation and test" if parts == 3 else "one each for training and validation"
    lost = f", after {left_out} rows whose texts are among the test rows were left out" if left_out else ""
    if not classes and len(groups) < 2 * parts:
        raise UserError(
            f"{rows.file}: at least {2 * parts} different texts are needed, got {len(groups)}{lost}; add some"
        )
    for number, found in _strata(rows, groups, classes).items():
        if classes and len(found) < parts:
            several = len(set(rows.labels)) > len(rows) / 2
            hint = "; if the labels are numbers to predict, say so (regression)" if several else ""
            raise UserError(
                f"{rows.file}: the class {classes[number]!r} needs at least {parts} different texts, {why}, "
                f"got {len(found)}{lost}; add rows, or remove the class{hint}"
            )


def _check_counts(per_class: int | None, seed: int, classes: Sequence[str]) -> None:
    if per_class is not None and not classes:
        raise UserError(f"per_class is for classes, got {per_class!r} where numbers are to be predicted; leave it out")
    for name, value, least in (("per_class", 1 if per_class is None else per_class, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
