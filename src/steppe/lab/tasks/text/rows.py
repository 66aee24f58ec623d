"""Labelled texts, and what may be wrong with them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ...errors import UserError, nearest, one_line

Label: TypeAlias = "str | float | int"

_NUMBERS_SHOWN = 5
_LONGEST_LABEL = 200


@dataclass(frozen=True)
class Rows:
    """Labelled texts, each with the number that its row has in its file.

    Attributes:
        texts: One or two texts for every row.
        labels: A label for every row; numbers where the file has numbers, else texts.
        file: Where the rows come from.
        numbers: Of the line on which each row starts, as an editor counts them, or of the row itself.
        unit: What is counted: ``line`` or ``row``.
        sha256: The hash of the file's bytes.
    """

    texts: list[tuple[str, ...]]
    labels: list[Label]
    file: str
    numbers: list[int]
    unit: str
    sha256: str

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    def where(self, index: int) -> str:
        """Name a row for a message, as in ``reviews.csv, line 12``."""
        return f"{self.file}, {self.unit} {self.numbers[index]}"

    def chosen(self, indices: Sequence[int]) -> Rows:
        """Return some of the rows, in the order of `indices`."""
        texts, labels, numbers = ([part[i] for i in indices] for part in (self.texts, self.labels, self.numbers))
        return replace(self, texts=texts, labels=labels, numbers=numbers)  # type: ignore[arg-type]


@dataclass
class Table:
    """Takes rows one by one, and keeps what is wrong with them until the end."""

    file: str
    wanted: list[str]
    unit: str
    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)

    def columns(self, names: Sequence[str]) -> list[int]:
        """Return where the wanted columns are."""
        counts = Counter(names)
        for name in self.wanted:
            if counts[name] > 1:
                raise UserError(f"{self.file}: {counts[name]} columns have the name {name!r}; rename all but one")
            if not counts[name]:
                raise UserError(f"{self.file}: there is no column {name!r}{nearest(name, names)}")
        return [names.index(name) for name in self.wanted]

    def add(self, number: int, values: Sequence[object]) -> None:
        """Take a row: its texts, then its label."""
        problem = next((found for found in map(self._problem, self.wanted, values) if found), None)
        if problem:
            self.bad[number] = problem
            return
        *texts, label = values
        self.texts.append(tuple(map(str, texts)))
        self.labels.append(_label(label))
        self.numbers.append(number)

    def _problem(self, name: str, value: object) -> str | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"{name!r} is empty"
        if isinstance(value, str) and not _is_text(value):
            return f"{name!r} has half of a character (a lone surrogate)"
        if name != self.wanted[-1]:
            return None if isinstance(value, str) else f"{name!r} is not a text but {shown(value)}"
        if isinstance(value, str):
            if len(value.strip()) > _LONGEST_LABEL:
                return f"the label has {len(value.strip())} characters, and {_LONGEST_LABEL} are the most"
            return "the label is not a number (NaN)" if value.strip().lower() == "nan" else None
        if not isinstance(value, (int, float)):
            return f"the label is neither a text nor a number but {shown(value)}"
        try:
            return None if math.isfinite(value) else f"the label is not a finite number but {value}"
        except OverflowError:
            return "the label is a number that is too large"

    def refuse(self, number: int, problem: str) -> UserError:
        """Return the error for a file that cannot be read beyond a row."""
        return UserError(f"{self.file}, {self.unit} {number}: {problem}")

    def rows(self, data: bytes) -> Rows:
        """Return the rows if there are any and all are right."""
        if self.bad:
            number, problem = next(iter(self.bad.items()))
            first = ", ".join(str(one) for one in list(self.bad)[:_NUMBERS_SHOWN])
            more = ", ..." if len(self.bad) > _NUMBERS_SHOWN else ""
            several = f" ({len(self.bad)} wrong rows in all: {self.unit}s {first}{more})" if len(self.bad) > 1 else ""
            it = "them" if several else "it"
            raise self.refuse(number, f"{problem}{several}; correct or remove {it}")
        if not self.texts:
            raise UserError(f"{self.file}: there are no rows, only the names of columns; add some")
        digest = hashlib.sha256(data).hexdigest()
        return Rows(self.texts, self.labels, self.file, self.numbers, self.unit, digest)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # no tokenizer takes it
        return False
    return True


def _label(value: Any) -> Label:
    if isinstance(value, bool):
        return str(value).lower()
    return value.strip() if isinstance(value, str) else value


def shown(value: object) -> str:
    """Return the type of a value and its beginning."""
    try:
        text = one_line(repr(value))
    except ValueError:  # a number with very many digits
        text = "with very many digits"
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
