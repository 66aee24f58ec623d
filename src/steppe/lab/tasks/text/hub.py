"""What `transformers` loads by the name of a model on the hub or from a folder, without a word on the console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import UserError, missing_extra, one_line

_LONGEST_REASON = 200
_MODULES = "modules.json"


def load(kind: str, name: str | Path, **options: Any) -> Any:
    """Call ``from_pretrained`` of a class of `transformers`.

    Args:
        kind: The class, for example ``AutoModel``.
        name: A model of the Hugging Face hub, or a folder that ``save_pretrained`` wrote.
        **options: For ``from_pretrained``.

    Raises:
        UserError: The package is missing, or there is no such model or nothing of this class in it.
    """
    transformers = package("transformers")
    if _is_path(name) and not Path(name).is_dir():
        raise UserError(f"the model folder {str(name)!r} does not exist; name an existing one, or a model of the hub")
    with quiet():
        try:
            return getattr(transformers, kind).from_pretrained(str(name), **options)
        except Exception as error:  # whatever the many layers below raise, the remedy is the same
            reason = f"{type(error).__name__}: {one_line(error)}"
            reason = reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 3] + "..."
            raise UserError(
                f"the model {str(name)!r} cannot be loaded ({kind}): {reason}; name a model of the Hugging Face hub "
                "that can be reached, or a folder that save_pretrained wrote"
            ) from error


def is_sentence_encoder(name: str | Path) -> bool:
    """Return whether a model was written by sentence-transformers, whose file ``modules.json`` then lies with it."""
    return (Path(name) / _MODULES).is_file() if Path(name).is_dir() else _lies_on_hub(str(name))


@cache  # asked for every model that is made
def _lies_on_hub(name: str) -> bool:
    hub = package("transformers.utils.hub")
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with quiet():
        try:
            return hub.cached_file(name, _MODULES, **missing) is not None
        except (OSError, ValueError):  # there is no such model: whoever loads it says so
            return False


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars, tries to reach the hub again, and the remark that a new head is not trained yet."""
    logging = package("transformers.utils.logging")
    loggers, bars = (logging, package("huggingface_hub.utils.logging")), logging.is_progress_bar_enabled()
    levels = [one.get_verbosity() for one in loggers]
    for one in loggers:
        one.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def package(name: str) -> Any:
    """Import a module.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise missing_extra(error) or error from error


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1
