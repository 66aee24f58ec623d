"""What is not installed, and how it will be."""

from __future__ import annotations

from importlib import import_module


def need(module: str, extra: str | None) -> None:
    """Import a module now, not after the work.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise ImportError(how_to_install(module, extra), name=module) from error


def how_to_install(module: str, extra: str | None) -> str:
    """Return a sentence that fits a checkout as well as a package index; without an extra, the module's own name."""
    if extra is None:
        return f"the module {module!r} is not installed; install it with: pip install {module}"
    return (
        f'the module {module!r} is not installed; install it with: pip install "steppe[{extra}]", or in a checkout: '
        f'pip install ".[{extra}]"'
    )
