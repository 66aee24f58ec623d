"""Tables: what is read, and the line that says what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from steppe.lab import UserError
from steppe.lab.tasks.text.tables import read, read_plain_tsv

CSV = 'id,text,label\n1,"one, two\nand three",good\n\n'


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.table(content), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_bytes(str(content).encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,text,label\n1,one,good\n2,two,bad\n"),
        ("a.CSV", "\ufeffid,text,label\r\n1,one,good\r\n2,two,bad\r\n\r\n"),
        ("a.tsv", "label\ttext\ngood \tone\n bad\ttwo"),
        ("a.jsonl", '{"text": "one", "label": "good"}\n{"label": "bad", "text": "two", "more": null}\n\n'),
        ("a.parquet", {"label": ["good", "bad"], "text": ["one", "two"]}),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    path = write(tmp_path, name, content)
    rows = read(path, ["text"], "label")
    assert (rows.texts, rows.labels) == ([("one",), ("two",)], ["good", "bad"])
    assert rows.file == str(path)
    assert len(rows) == 2
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert rows.chosen([1]).texts == [("two",)]
    assert rows.chosen([1]).where(0) == rows.where(1)


def test_rows_are_named_by_the_line_on_which_they_start(tmp_path):
    text = 'text,label\r\n"two\r\nlines ""quoted""",a\r\nplain,b\r\n"three\n\nlines",c\r\nlast,d'
    rows = read(write(tmp_path, "a.csv", text), ["text"], "label")
    assert rows.numbers == [2, 4, 5, 8]
    assert rows.texts[0] == ('two\r\nlines "quoted"',)
    assert rows.where(3) == f"{tmp_path / 'a.csv'}, line 8"
    lines = '{"t": "a\u2028b", "y": 1}\r\n{"t": "c", "y": 2.5}\n'
    rows = read(write(tmp_path, "a.jsonl", lines), ["t"], "y")
    assert rows.numbers == [1, 2]
    assert rows.texts[0] == ("a\u2028b",)
    assert rows.labels == [1, 2.5]
    rows = read(write(tmp_path, "a.parquet", {"t": ["a", "b"], "y": [True, False]}), ["t"], "y")
    assert rows.where(1).endswith("a.parquet, row 2")
    assert rows.labels == ["true", "false"]


def test_pairs_and_long_texts(tmp_path):
    long = "x" * 200_000
    rows = read(write(tmp_path, "a.csv", f"y,q,a\n0,{long},b\n"), ["a", "q"], "y")
    assert rows.texts == [("b", long)]


def test_quotes_are_characters_in_a_plain_tsv(tmp_path):
    path = write(tmp_path, "a.txt", 'x\t"open\t1\ny\tcl"ose\t0\n')
    rows = read_plain_tsv(path, ["text"], "label", ["id", "text", "label"])
    assert rows.texts == [('"open',), ('cl"ose',)]
    assert rows.numbers == [1, 2]
    with pytest.raises(UserError, match="never closes"):
        read(write(tmp_path, "a.tsv", 'id\ttext\tlabel\nx\t"open\t1\ny\tz\t0\n'), ["text"], "label")


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(CELL, st.integers(0, 9)), min_size=1, max_size=5))
def test_whatever_is_written_is_read(tmp_path, cells):
    quoted = "".join('"' + text.replace('"', '""') + f'",{label}\n' for text, label in cells)
    rows = read(write(tmp_path, "a.csv", "text,label\n" + quoted), ["text"], "label")
    assert rows.texts == [(text,) for text, _ in cells]
    objects = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in cells)
    again = read(write(tmp_path, "a.jsonl", objects), ["text"], "label")
    assert again.texts == rows.texts
    assert [str(label) for label in again.labels] == rows.labels


WRONG = {
    "unknown suffix": ("a.txt", "x", "{}: unknown kind of file '.txt'; known: .csv, .tsv, .jsonl, .parquet"),
    "empty": ("a.csv", "", "{}: the file is empty; give one with rows"),
    "blank": ("a.jsonl", "\ufeff\n\n", "{}: the file is empty; give one with rows"),
    "header only": ("a.csv", "text,label\n\n", "{}: there are no rows, only the names of columns; add some"),
    "no rows": (
        "a.parquet",
        {"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())},
        "{}: there are no rows, only the names of columns; add some",
    ),
    "missing column": (
        "a.csv",
        "txt,label\na,b\n",
        "{}: there is no column 'text'; did you mean 'txt'? known: txt, label",
    ),
    "missing in parquet": (
        "a.parquet",
        {"text": ["a"], "lable": [1]},
        "{}: there is no column 'label'; did you mean 'lable'? known: text, lable",
    ),
    "missing in json": (
        "a.jsonl",
        '{"text": "a", "lable": 1}\n',
        "{}: there is no column 'label'; did you mean 'lable'? known: text, lable",
    ),
    "missing later": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "a"}\n',
        "{}, line 2: 'label' is missing; correct or remove it",
    ),
    "duplicate column": (
        "a.csv",
        "text,label,text\na,b,c\n",
        "{}: 2 columns have the name 'text'; rename all but one",
    ),
    "duplicate in json": (
        "a.jsonl",
        '{"text": "a", "label": 1, "label": 2}\n',
        "{}: 2 columns have the name 'label'; rename all but one",
    ),
    "duplicate later": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 1}\n',
        "{}, line 2: 'text' is there 2 times; correct or remove it",
    ),
    "too few fields": (
        "a.csv",
        'text,label\n"a\nb",c\nd\n',
        "{}, line 4: there are 2 columns, but fields in this row: 1; correct or remove it",
    ),
    "too many fields": (
        "a.tsv",
        "text\tlabel\na\tb\tc\nd\te\nf\n",
        "{}, line 2: there are 2 columns, but fields in this row: 3 (2 wrong rows in all: lines 2, 4); correct or remove them",
    ),
    "many wrong rows": (
        "a.csv",
        "text,label\n" + 7 * "a\n",
        "{}, line 2: there are 2 columns, but fields in this row: 1 "
        "(7 wrong rows in all: lines 2, 3, 4, 5, 6, ...); correct or remove them",
    ),
    "empty line": ("a.csv", "text,label\na,b\n\nc,d\n", "{}, line 3: the line is empty; correct or remove it"),
    "empty line of json": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n\n{"text": "b", "label": 1}',
        "{}, line 2: the line is empty; correct or remove it",
    ),
    "empty text": ("a.csv", "text,label\n  ,b\n", "{}, line 2: 'text' is empty; correct or remove it"),
    "null text": ("a.jsonl", '{"text": null, "label": 1}', "{}, line 1: 'text' is empty; correct or remove it"),
    "empty label": ("a.csv", "text,label\na,b\nc,\n", "{}, line 3: 'label' is empty; correct or remove it"),
    "missing label": (
        "a.parquet",
        {"text": ["a", "b"], "label": [1, None]},
        "{}, row 2: 'label' is empty; correct or remove it",
    ),
    "text nan": ("a.csv", "text,label\na,NaN\n", "{}, line 2: the label is not a number (NaN); correct or remove it"),
    "nan": (
        "a.parquet",
        {"text": ["a", "b"], "label": [1.0, math.nan]},
        "{}, row 2: the label is not a finite number but nan; correct or remove it",
    ),
    "infinite in json": (
        "a.jsonl",
        '{"text": "a", "label": -Infinity}',
        "{}, line 1: the label is not a finite number but -inf; correct or remove it",
    ),
    "a list for a label": (
        "a.jsonl",
        '{"text": "a", "label": [1]}',
        "{}, line 1: the label is neither a text nor a number but list [1]; correct or remove it",
    ),
    "a number for a text": (
        "a.jsonl",
        '{"text": 3, "label": 1}',
        "{}, line 1: 'text' is not a text but int 3; correct or remove it",
    ),
    "half a character": (
        "a.jsonl",
        '{"text": "\\ud83d", "label": 1}',
        "{}, line 1: 'text' has half of a character (a lone surrogate); correct or remove it",
    ),
    "a list for a text": (
        "a.parquet",
        {"text": [["a" * 60]], "label": [1]},
        "{}, row 1: 'text' is not a text but list ['" + 35 * "a" + "...; correct or remove it",
    ),
    "not an object": ("a.jsonl", '{"text": "a", "label": 1}\n[1, 2]\n', "{}, line 2: not an object but list [1, 2]; write one object a line"),
    "not json": (
        "a.jsonl",
        "{'text': 1}",
        "{}, line 1: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); "
        "write one object a line",
    ),
    "not utf-8": (
        "a.csv",
        b"text,label\r\na,b\r\nc\xe9,d\r\n",
        "{}, line 3: the byte 0xe9 is not UTF-8 text; save the file as UTF-8",
    ),
    "not utf-8 after a mark": (
        "a.jsonl",
        b"\xef\xbb\xbf{}\n\xff",
        "{}, line 2: the byte 0xff is not UTF-8 text; save the file as UTF-8",
    ),
    "utf-16": (
        "a.csv",
        "text,label\na,b\n".encode("utf-16-le"),
        "{}, line 1: the byte 0x00 is not UTF-8 text; save the file as UTF-8",
    ),
    "open quote": (
        "a.csv",
        'text,label\na,b\n"c\nd,e\n',
        "{}, line 3: a quote opens here and never closes; write a quote within a quoted text twice",
    ),
    "quotes that are plain characters": (
        "a.tsv",
        'text\tlabel\na\tb\n"He said\t1\nand left"\t0\n',
        "{}, line 3: a quote opens here and closes beyond tabs and line ends; if quotes are plain characters here, "
        "write a .csv, .jsonl or .parquet file instead",
    ),
    "text after a quote": (
        "a.csv",
        'text,label\n"a"b,c\n',
        "{}, line 2: ',' expected after '\"'; write a quote within a quoted text twice",
    ),
    "open quote in the header": (
        "a.csv",
        '"text,label\na,b\n',
        "{}, line 1: a quote opens here and never closes; write a quote within a quoted text twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        read(path, ["text"], "label")
    assert str(caught.value) == message.replace("{}", str(path))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"the file '.*no.csv' does not exist; give the path of an existing one$"):
        read(tmp_path / "no.csv", ["text"], "label")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"the file '.*folder.csv' cannot be read: Is a directory; give another one$"):
        read(tmp_path / "folder.csv", ["text"], "label")
    with pytest.raises(UserError, match=r"a.parquet: this is not a parquet file: .*; write it again$"):
        read(write(tmp_path, "a.parquet.csv", "x").rename(tmp_path / "a.parquet"), ["text"], "label")


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path, "a.parquet", {"text": ["a"], "label": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"the module 'pyarrow' is not installed; install it with: pip install \"steppe\[st"
    ):
        read(path, ["text"], "label")


@pytest.mark.parametrize(
    ("texts", "label", "message"),
    [
        ("text", "label", "a.csv: name one or two columns of texts as a list, got 'text'"),
        ([], "label", r"a.csv: name one or two columns of texts as a list, got \[\]"),
        (["a", "b", "c"], "label", "a.csv: name one or two columns of texts as a list, got"),
        (["a", "a"], "label", "a.csv: the columns of texts and labels must differ, got a, a, label"),
        (["a"], "a", "a.csv: the columns of texts and labels must differ, got a, a"),
    ],
)
def test_wrong_columns(texts, label, message):
    with pytest.raises(UserError, match=message):
        read("a.csv", texts, label)


def test_labels_beyond_all_bounds_are_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(f"text,label\ngood,1\nbad,{'9' * 5000}\n")
    with pytest.raises(UserError, match=r"a\.csv, line 3: the label has 5000 characters, and 200 are the most"):
        read(file, ["text"], "label")
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "good", "label": 1}}\n{{"text": "bad", "label": {10**400}}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the label is a number that is too large"):
        read(file, ["text"], "label")
    file.write_text(f'{{"text": "good", "label": 1}}\n{{"text": "bad", "label": 1{"0" * 5000}}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not JSON: "):
        read(file, ["text"], "label")


def test_what_parquet_has_and_python_has_not(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    late = pyarrow.array([2**62], type=pyarrow.timestamp("us"))
    nowhere = pyarrow.array([0], type=pyarrow.timestamp("us", tz="Nowhere/Land"))
    for k, column in enumerate((late, nowhere)):
        file = tmp_path / f"{k}.parquet"
        parquet.write_table(pyarrow.table({"text": ["a"], "label": column}), file)
        with pytest.raises(UserError) as caught:
            read(file, ["text"], "label")
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


whatever = st.one_of(
    st.binary(max_size=60),
    st.text('textlabel,\t\n\r"{}[]:0189eE.+- truefalsnu\x00\u2028\ud7ff', max_size=60).map(str.encode),
    st.text(max_size=40).map(lambda text: f"text,label\n{text},good\n".encode("utf-8", "replace")),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(10**40), 10**40), st.floats(), st.text(max_size=5)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ).map(lambda value: json.dumps({"text": "one", "label": value}).encode()),
)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@given(content=whatever)
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_a_table_or_refused_in_one_line(tmp_path, ending, content):
    path = tmp_path / f"any.{ending}"
    path.write_bytes(content)
    found, said = None, ""
    try:
        found = read(path, ["text"], "label")
    except UserError as error:
        said = str(error)
    assert found is None or len(found.texts) == len(found.labels) >= 1
    assert found is not None or (said.isprintable() and 0 < len(said) < 1000)
