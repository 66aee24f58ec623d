"""Parts of grids."""

from __future__ import annotations


def picked(**wanted):
    """Keep the settings whose named parameters have one of these values; without names, all."""
    return lambda p: all(p[name] in values for name, values in wanted.items())
