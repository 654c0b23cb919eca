"""Tables that are text: UTF-8, or UTF-16 as Excel writes it, with columns separated by commas,
semicolons, tabs or spaces.
"""

import codecs
import csv
import io
import re
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from fer import UserError
from fer.data.readers.csv_faces import open_csv
from fer.data.readers.file_types import foreign
from fer.text import counted

ENDINGS = (".csv", ".csv.gz", ".tsv", ".txt", ".lst")
SEPARATORS = (",", ";", "\t", "|", " ")
PEEKED = 20  # rows by which a table is known
HEAD = 256 << 10  # bytes in which they lie
MAX_LINE = 64 << 10  # characters
CONTROL_CODES = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")

Row = tuple[int, list[str]]  # the number of the row's line, and its fields


def first_rows(path: Path) -> list[Row]:
    """The first rows of a table. Raises UserError, without the path, if the file is not a table."""
    text, _ = head_of(path)
    lines = text.splitlines(keepends=True)
    separator = separator_of(lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    try:
        rows = list(islice(filled(reader), PEEKED))
    except csv.Error as error:
        raise UserError(f"cannot be read as CSV ({error}); correct it") from None
    if not rows:
        raise UserError("is empty; get it again")
    width = len(rows[0][1])
    for number, fields in rows:
        if len(fields) != width:
            raise UserError(
                f"has {counted(len(fields), 'column')} in line {number}, and {width} in the "
                "first; correct the line"
            )
    return rows


def all_rows(path: Path) -> Iterator[Row]:
    """All rows of a table, each as wide as the first."""
    head, encoding = head_of(path)
    separator = separator_of(head.splitlines(keepends=True))
    width = None
    try:
        with open_csv(path) as file:
            text = io.TextIOWrapper(file, encoding, newline="")
            lines = iter(partial(text.readline, MAX_LINE), "")
            reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
            for number, fields in filled(reader):
                width = width or len(fields)
                if len(fields) != width:
                    raise UserError(
                        f"{path}, line {number}: has {counted(len(fields), 'column')}, and the "
                        f"first line {width}; correct or remove the line"
                    )
                yield number, fields
    except (csv.Error, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); correct the file") from None


def filled(reader) -> Iterator[Row]:
    """The rows of a csv.reader that are not blank, their fields without white space around them."""
    for fields in reader:
        stripped = [field.strip() for field in fields]
        if any(stripped):
            yield reader.line_num, stripped


def head_of(path: Path) -> tuple[str, str]:
    """The first lines of a text file, whole ones, and its encoding."""
    try:
        with open_csv(path) as file:
            head = file.read(HEAD)
    except (EOFError, OSError, zlib.error):
        raise UserError("cannot be read; get it again") from None
    kind = foreign(head, path).partition(";")[0]
    encoding = "utf-16" if kind == "is UTF-16" else "utf-8-sig"
    if kind and encoding != "utf-16":
        raise UserError(f"{kind}; save it as CSV")
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text; save it as UTF-8") from None
    if CONTROL_CODES.search(text):
        raise UserError("is not UTF-8 text; save it as UTF-8")
    if len(head) == HEAD:
        text = text[: text.rfind("\n") + 1]
    return text, encoding


def separator_of(lines: list[str]) -> str:
    """The sign that divides the first lines into equally many columns, two or more; a comma if none
    does.
    """
    for sign in SEPARATORS:
        reader = csv.reader(lines, delimiter=sign, skipinitialspace=True)
        try:
            widths = {len(fields) for _, fields in islice(filled(reader), PEEKED)}
        except csv.Error:
            continue
        if len(widths) == 1 and widths != {1}:
            return sign
    return ","
