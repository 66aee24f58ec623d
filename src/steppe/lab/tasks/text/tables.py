"""Tables of labelled texts, read strictly: what is wrong with a row is an error that names the row."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import UserError, missing_extra, one_line, shortened
from .rows import Rows, Table, shown


def read(path: str | Path, texts: Sequence[str], label: str) -> Rows:
    """Read one or two columns of texts and one of labels from a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.

    All but parquet must be UTF-8; a byte-order mark at the start is no part of the text. ``.csv`` and ``.tsv`` have a
    header line, and fields may be quoted with ``"``, which is doubled within; no field of a ``.tsv`` has both tabs and
    ends of lines. Empty lines at the end are ignored, elsewhere they are errors. Labels lose the white space around
    them; ``true`` and ``false`` of JSON and parquet become texts.

    Args:
        path: The file.
        texts: The names of one column, or of two whose texts belong together.
        label: The name of the column of labels.

    Returns:
        The rows, at least one, in the order of the file.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a wrong row.
    """
    file = Path(path)
    _check_names(str(path), texts, label)
    if file.suffix.lower() not in _READERS:
        raise UserError(f"{path}: unknown kind of file {file.suffix!r}; known: {', '.join(_READERS)}")
    data = _bytes(file)
    table = Table(str(path), [*texts, label], "row" if file.suffix.lower() == ".parquet" else "line")
    _READERS[file.suffix.lower()](table, data)
    return table.rows(data)


def read_plain_tsv(path: str | Path, texts: Sequence[str], label: str, header: Sequence[str] | None = None) -> Rows:
    """Read a tab-separated file in which a quote is a character like any other.

    Args:
        path: The file, whatever its suffix.
        texts: The names of one or two columns.
        label: The name of the column of labels.
        header: The names of the columns, if they are not the file's first line.

    Returns:
        The rows, as `read` does.

    Raises:
        UserError: As `read`.
    """
    _check_names(str(path), texts, label)
    data = _bytes(Path(path))
    table = Table(str(path), [*texts, label], "line")
    _delimited(table, data, header, delimiter="\t", quoting=csv.QUOTE_NONE)
    return table.rows(data)


def _delimited(table: Table, data: bytes, header: Sequence[str] | None = None, **dialect: Any) -> None:
    lines = csv.reader(io.StringIO(_decoded(table, data), newline=""), strict=True, **dialect)
    records = _records(table, lines)
    names = list(header) if header is not None else [name.strip() for name in next(records)[1]]
    places = table.columns(names)
    blank: int | None = None  # only the end of a file may be empty lines
    for number, fields in records:
        if not fields:
            blank = blank or number
            continue
        if blank is not None:
            table.bad[blank], blank = "the line is empty", None
        if dialect.get("delimiter") == "\t" and any("\t" in cell and "\n" in cell for cell in fields):
            problem = "a quote opens here and closes beyond tabs and line ends; if quotes are plain characters here"
            raise table.refuse(number, f"{problem}, write a .csv, .jsonl or .parquet file instead")
        if len(fields) != len(names):
            table.bad[number] = f"there are {len(names)} columns, but fields in this row: {len(fields)}"
        else:
            table.add(number, [fields[place] for place in places])


def _records(table: Table, lines: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield every record with the number of the line on which it starts."""
    with _fields_of_any_size():
        while True:
            start = lines.line_num + 1
            try:
                fields = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                problem = "a quote opens here and never closes" if "end of data" in str(error) else one_line(error)
                raise table.refuse(start, f"{problem}; write a quote within a quoted text twice") from error
            yield start, fields


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _jsonl(table: Table, data: bytes) -> None:
    lines = _decoded(table, data).split("\n")  # splitlines would also split at characters that JSON texts may hold
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            table.bad[number] = "the line is empty"
            continue
        try:
            content = json.loads(line, object_pairs_hook=Object)
        except (ValueError, RecursionError) as error:
            raise table.refuse(number, f"not JSON: {one_line(error)}; write one object a line") from error
        if not isinstance(content, Object):
            raise table.refuse(number, f"not an object but {shown(content)}; write one object a line")
        names = [name for name, _ in content]
        counts = Counter(names)
        wrong = next((name for name in table.wanted if counts[name] != 1), None)
        if wrong is not None and number == 1:
            table.columns(names)
        if wrong is not None:
            table.bad[number] = (
                f"{wrong!r} is there {counts[wrong]} times" if counts[wrong] else f"{wrong!r} is missing"
            )
        else:
            values = dict(content)
            table.add(number, [values[name] for name in table.wanted])


class Object(list[tuple[str, Any]]):
    """An object of JSON, with names that it may hold twice."""


def _parquet(table: Table, data: bytes) -> None:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing_extra(error) or error from error
    try:
        opened = parquet.ParquetFile(io.BytesIO(data))
        table.columns(opened.schema_arrow.names)
        found = opened.read(columns=table.wanted)
    except (ArrowException, OSError, NotImplementedError) as error:
        raise UserError(f"{table.file}: this is not a parquet file: {one_line(error)}; write it again") from error
    try:  # it may have times, zones and bytes that Python has not
        columns = [found.column(name).to_pylist() for name in table.wanted]
    except (ArrowException, LookupError, OverflowError, ValueError) as error:
        reason = shortened(one_line(error))
        raise UserError(f"{table.file}: a value cannot be read: {reason}; write texts and numbers") from error
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        table.add(number, values)


_READERS: dict[str, Callable[..., None]] = {
    ".csv": _delimited,
    ".tsv": lambda table, data: _delimited(table, data, delimiter="\t"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def _check_names(file: str, texts: Sequence[str], label: str) -> None:
    if isinstance(texts, str) or len(texts) not in (1, 2):
        raise UserError(f"{file}: name one or two columns of texts as a list, got {texts!r}")
    if len({*texts, label}) != len(texts) + 1:
        raise UserError(f"{file}: the columns of texts and labels must differ, got {', '.join([*texts, label])}")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"the file {str(path)!r} does not exist; give the path of an existing one") from error
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror}; give another one") from error
    if not data.strip():
        raise UserError(f"{path}: the file is empty; give one with rows")
    return data


def _decoded(table: Table, data: bytes) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    wrong = data.find(b"\0")  # UTF-16, most likely
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        line = len(re.findall(rb"\r\n|\r|\n", data[:wrong])) + 1
        raise table.refuse(line, f"the byte 0x{data[wrong]:02x} is not UTF-8 text; save the file as UTF-8")
    if not text.strip():
        raise UserError(f"{table.file}: the file is empty; give one with rows")
    return text
