"""Flags that commands which train have in common. Imports nothing heavy: the help shows them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Task: TypeAlias = Annotated[
    str | None,
    typer.Option(help="mnist1d, mnist1d-conv, digits, or your own as FILE.py:FUNCTION.", show_default="mnist1d"),
]
Base: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What methods wrap: an optimizer of torch.optim in small letters, or your own as FILE.py:NAME.",
        show_default="adamw",
    ),
]
Jobs: TypeAlias = Annotated[
    int | None, typer.Option(help="Trials in parallel, one thread each.", show_default="one a core, at most 8")
]
Crew: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Dask scheduler whose workers train, such as tcp://HOST:8786.", show_default="processes here"),
]
Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Seconds that a trial may take, the start of its worker included.", show_default="no limit"),
]
