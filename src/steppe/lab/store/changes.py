"""Why records in a folder do not count: what has changed since."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..trials.records import TrialConfig
from . import codes, records

_MOST = 3  # differences that are said, and rows of each
_HASH = re.compile(r"[0-9a-f]{64}")
_OF_ALL = ("batch_size", "device", "epochs", "measure", "precision", "test")  # rows
_UNSAID = {"device": "cpu", "precision": "fp32"}


def since(
    folder: Path, missing: Sequence[TrialConfig], wanted: Collection[TrialConfig], varied: Collection[str] = ()
) -> str | None:
    """Say what has changed since trials of the same rows and seeds were run.

    Args:
        folder: Where records are; what files say now is known there.
        missing: Trials that have no record; of a sweep one of each seed.
        wanted: All trials.
        varied: What a sweep varies, which does not count.

    Returns:
        One line, or None if there are no such records.
    """
    there = records.others(folder, missing, {config.key for config in wanted})
    found: dict[str, dict[str, None]] = {}  # rows by what is said of them
    old: set[str] = set()
    for config in missing:
        before = there.get((config.row, config.seed), [])
        if not before:
            continue
        nearest = min(before, key=lambda one: len(_different(one, config, varied)))
        said = list(_said(folder, nearest, config, varied))
        for words, of_row in said:
            found.setdefault(words, {}).update({config.row: None} if of_row else {})
        old.update(one.key for one in before if said and list(_said(folder, one, config, varied)) == said)
    if not found:
        return None
    shown = [f"{words} ({_some(list(rows))})" if rows else words for words, rows in found.items()]
    trials = "1 trial of before does not count and stays where it is"
    if len(old) > 1:
        trials = f"{len(old)} trials of before do not count and stay where they are"
    return f"{_some(shown)}: {trials}"


def _some(parts: Sequence[str]) -> str:
    more = len(parts) - _MOST
    return ", ".join(parts) if more < 1 else f"{', '.join(parts[:_MOST])} and {more} more"


def _different(before: TrialConfig, now: TrialConfig, varied: Collection[str]) -> list[str]:
    one, other = before.flat, now.flat
    return [name for name in {**one, **other} if one.get(name) != other.get(name) and name not in varied]


def _said(folder: Path, before: TrialConfig, now: TrialConfig, varied: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Say what differs, and whether that is a matter of the row."""
    one, other = before.flat, now.flat
    for name in _different(before, now, varied):
        if name.endswith("_digest"):
            whose = getattr(now, name.removesuffix("_digest")) or ""
            yield from ((said, False) for said in _of_code(folder, whose, one.get(name), other.get(name)))
            continue
        shown = name.removeprefix("versions.").removeprefix("schedules.")
        of_row = name not in _OF_ALL and not name.startswith("versions.")
        yield f"{shown} {_value(name, one.get(name))} is now {_value(name, other.get(name))}", of_row


def _of_code(folder: Path, name: str, before: object, now: object) -> Iterator[str]:
    """Say which files were changed, of a task, method or base of the user's."""
    place, _, function = name.rpartition(":")
    if not all(isinstance(digest, str) and _HASH.fullmatch(digest) for digest in (before, now)):
        yield f"{before or name} is now {now or name}"  # the version of a package
        return
    one, other = (codes.read(folder, str(digest)) for digest in (before, now))
    if place == "notebook":
        yield f"{function} of the notebook, or what it uses, was changed"
    elif not one or not other:
        yield f"{place}, or what it imports, was changed"
    else:
        for file in {**one, **other}:
            if one.get(file) != other.get(file):
                yield f"{file} was {'added' if file not in one else 'changed' if file in other else 'left out'}"


def _value(name: str, value: object) -> str:
    if value is None:
        return _UNSAID.get(name, "as usual")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
