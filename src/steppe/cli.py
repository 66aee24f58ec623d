"""The command line ``steppe``.

Every sub-command is one function in the ``command`` module of its sub-package. Those modules are imported to show the
help, so they import torch and the like only inside their functions.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import typer

_INTERRUPTED = 130
_IN_ASCII = {"±": "+-", "\N{MULTIPLICATION SIGN}": "x", "→": "->", "·": ".", "≤": "<=", "≥": ">="}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Whatever the user can put right is one line on standard error, never a traceback.

    Args:
        arguments: The words after ``steppe``; by default those of this process.

    Returns:
        The exit code: 0, or 1 if a trial failed, 2 if the input was wrong, 130 after Ctrl-C.
    """
    # Light: the errors of the comparison need nothing but the standard library.
    from .lab.errors import UserError, missing_extra

    try:
        return _run(arguments)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except ImportError as error:
        known = missing_extra(error)
        if known is None:
            raise
        return _fail(str(known), known.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        # Nobody takes what is printed any more, nor what the streams still hold.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _fail(f"the output cannot be written: {error.strerror}", 1)


def command() -> None:
    """Run the command line, and end this process even where a thread that a task has started would not let it."""
    from .lab.crew.processes import interruptible

    codecs.register_error("steppe", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="steppe")  # type: ignore[union-attr]
    with interruptible():
        code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        os._exit(code)
    sys.exit(code)


def build() -> typer.Typer:
    """Assemble the sub-commands."""
    import typer

    from .lab.bench.command import bench
    from .lab.comparing.command import compare
    from .lab.measuring.command import measure
    from .lab.sweeping.command import sweep
    from .studies.command import study
    from .theory.command import theory

    app = typer.Typer(
        name="steppe",
        help="Sharpness-aware training for PyTorch.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},  # of all commands
        pretty_exceptions_enable=False,
    )

    asked = typer.Option(False, "--version", help="Show the version and exit.", is_eager=True, callback=_show_version)

    @app.callback()
    def steppe(version: bool = asked) -> None:
        pass

    app.command()(compare)
    app.command()(measure)
    app.command()(theory)
    app.command()(bench)
    app.command()(sweep)
    app.add_typer(study, name="study")
    return app


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    app = build()
    # The common parent of all usage errors; where it is defined depends on the version of typer.
    usage_error = cast(
        "type[Exception]", next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    )
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        code = app(words, standalone_mode=False, prog_name="steppe")
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        return _fail("interrupted", _INTERRUPTED)
    except usage_error as error:
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        return _fail(message or "nothing to do; try: steppe --help", 2) if message else 2
    if code == _INTERRUPTED:  # pressed where no trial was running; typer has made it an exit code
        return _fail("interrupted; finished trials are kept and the same command continues", _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _show_version(asked: bool) -> None:
    if asked:
        import typer

        from . import __version__

        typer.echo(f"steppe {__version__}")
        raise typer.Exit


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Write what a terminal has no letter for with those it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_IN_ASCII.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def _fail(message: str, code: int) -> int:
    print(f"steppe: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    command()
