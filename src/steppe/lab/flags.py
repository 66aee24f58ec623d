"""Flags that commands which train have in common. Imports nothing heavy: the help shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

import typer

from .plans.trackers import TRACKERS

TASKS = ("mnist1d", "mnist1d-conv", "digits")
USUAL = ("adamw", "sgd")
# Those of torch.optim that can be wrapped; the oldest versions lack some.
BASES = (*USUAL, "adafactor", "adagrad", "adam", "adamax", "asgd", "muon", "nadam", "radam", "rmsprop", "rprop")


def complete_task(incomplete: str) -> list[str]:
    """Complete the name of a built-in task; shells complete those of files."""
    return _beginning(incomplete, TASKS)


def complete_base(incomplete: str) -> list[str]:
    """Complete the name of a base."""
    return _beginning(incomplete, BASES)


def complete_method(incomplete: str) -> list[str]:
    """Complete the name of a method or a base."""
    return _beginning(incomplete, _methods())


def complete_methods(incomplete: str) -> list[str]:
    """Complete the last of several names with commas between."""
    return _last(incomplete, _methods())


def complete_trackers(incomplete: str) -> list[str]:
    """Complete the last of several names with commas between."""
    return _last(incomplete, TRACKERS)


def _methods() -> list[str]:
    """Read them where they can be read without torch: settings are packaged for every method."""
    from .plans.options import packaged_settings

    packaged = (name for base in USUAL for name in packaged_settings()["default"][base])
    return list(dict.fromkeys([*packaged, *BASES]))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _last(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, begun = incomplete.rpartition(",")
    there = before.split(",")
    return [f"{before}{comma}{name}" for name in _beginning(begun, names) if name not in there]


Task: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(TASKS)}, or your own as FILE.py:FUNCTION.",
        show_default="mnist1d",
        autocompletion=complete_task,
    ),
]
Base: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What methods wrap: an optimizer of torch.optim in small letters, or your own as FILE.py:NAME.",
        show_default="adamw",
        autocompletion=complete_base,
    ),
]
Jobs: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Trials in parallel on each device, one thread each.",
        show_default="one a core, at most 8; 1 on an accelerator",
    ),
]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, mps ...: where to train.", show_default="auto: an accelerator if there is one"
    ),
]
Precision: TypeAlias = Annotated[
    str | None, typer.Option(help="fp32, or bf16 by autocast in every pass.", show_default="fp32")
]
Processes: TypeAlias = Annotated[
    int | None, typer.Option(help="Processes of each trial, which share its batches by DDP.", show_default="1")
]
Crew: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Dask scheduler whose workers train, such as tcp://HOST:8786.", show_default="processes here"),
]
Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Seconds that a trial may take, the start of its worker included.", show_default="no limit"),
]
Log: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"Trackers that every trial becomes a run of: {', '.join(TRACKERS)}, with commas between.",
        show_default="none",
        autocompletion=complete_trackers,
    ),
]
