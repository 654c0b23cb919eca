"""CSV files of faces whose pixels are numbers, as FER2013's. What does not read as faces is refused
with file, line and remedy.
"""

import codecs
import csv
import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader, FileIO
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from fer import FACE_SIZE, UserError
from fer.data.readers.cache import available_memory
from fer.data.readers.file_types import foreign, mistaken
from fer.data.readers.names import plain_label, split_named
from fer.data.readers.pictures import resized
from fer.data.readers.table import MAX_LABELS, NO_STRINGS, Table, numbered

USAGES = ("Training", "PublicTest", "PrivateTest")
USAGE_OF = {name: number for number, name in enumerate(USAGES)}
COLUMNS = {
    "label": ("emotion", "label"),
    "pixels": ("pixels", "feature"),
    "usage": ("usage",),
    "id": ("id",),
}
BLOCK = 64  # rows parsed together, half a megabyte
MAX_LINE = 64 << 10  # bytes; a face of 48×48 has 9,300 at the most
LONGEST_LINE = 1 << 20  # bytes of the first face, by which the size of the others is known
# A column of one pixel: `pixel0`, `0`, or `1x1` by row and column.
PIXEL_COLUMN = re.compile(r"(?:pixel|pix|px|p|col)?[ _]?([0-9]+)(?:[x_]([0-9]+))?")
SMALLEST = 8  # pixels of a side; fewer numbers are a damaged row
MAX_ID = 200  # characters; NumPy gives every id the room of the longest
MAX_LABEL = 100  # characters
MEMORY = 0.7  # bytes that a byte of a CSV takes while it is read, measured on 286 MB of faces

Line = tuple[str, bytes]  # the file and the line's number, in words, and the line


def read_csv(path: Path, side: int | None = None, group_column: str | None = None) -> Table:
    """Parse a CSV of faces, in blocks, so that memory holds little more than the faces.

    side: pixels to which the faces are resized; None keeps their own size. group_column: name of a
    column that says which faces belong together.
    """
    size, memory = path.stat().st_size, available_memory()
    if MEMORY * size > memory:
        raise UserError(
            f"{path}: is {size / 1e9:.1f} GB and would take {MEMORY * size / 1e9:.1f} GB of "
            f"memory, where {memory / 1e9:.1f} GB are free; use a part of the file or a larger "
            "machine"
        )
    longest, own_side = first_face(path)
    digest, parts = hashlib.sha256(), []
    with open_csv(path) as file, ThreadPoolExecutor(2) as pool:
        lines = filled_lines(file, path, digest, longest)
        header = [read_header(*line, group_column) for line in islice(lines, 1)]
        while block := list(islice(lines, BLOCK)):
            # NumPy releases the GIL.
            parts.append(pool.submit(parse, block, header[0], own_side))
            if len(parts) > 8:
                parts[-9].result()  # wait, so that few blocks are in memory at once
    if not parts:
        raise UserError(
            f"{path}: {'has a header but no rows' if header else 'is empty'}; get the file again"
        )
    images, labels, usage, ids, groups, places = zip(
        *(part.result() for part in parts), strict=True
    )
    positions, names, first = np.full(sum(map(len, images)), -1), NO_STRINGS, NO_STRINGS
    if "label" in header[0]:
        positions, names = numbered([label for part in labels for label in part])
        where = {name: place for part in reversed(places) for name, place in part.items()}
        first = np.array([where[name] for name in names.tolist()])
        if len(names) > MAX_LABELS:
            raise UserError(
                f"{path}: its label column has {len(names):,} different values, too many for "
                "classes; name the column of classes emotion or label"
            )
    return Table(
        images=resized(np.concatenate(images), side or own_side),
        labels=positions,
        names=names,
        first=first,
        usage=np.concatenate(usage),
        ids=np.concatenate(ids),
        groups=np.concatenate(groups),
        hash=np.array(digest.hexdigest()),
    ).note_own_side(own_side)


def open_csv(path: Path) -> BufferedReader:
    """A CSV file as bytes, decompressed if it is named .gz."""
    if path.suffix.lower() == ".gz":
        return BufferedReader(gzip.open(path), 1 << 19)  # type: ignore[arg-type]
    return BufferedReader(FileIO(path), 1 << 19)


def has_usage(path: Path) -> bool:
    """Does the header have a Usage column?"""
    return "usage" in [name.lower() for name in header_names(path)]


def has_pixels(path: Path) -> bool:
    """Does the header have a column of pixels, or a column for each pixel?"""
    names = [name.lower() for name in header_names(path)]
    return any(name in COLUMNS["pixels"] for name in names) or len(pixel_columns(names)) > 0


def first_lines(path: Path, count: int, longest: int = MAX_LINE) -> list[bytes]:
    """The first lines that are not blank, cut after `longest` bytes; none if it is not text."""
    try:
        with open_csv(path) as file:
            head = file.peek()
            if foreign(head, path):
                return []
            if head.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            lines = iter(partial(file.readline, longest), b"")
            return list(islice((line for line in lines if line.strip()), count))
    except (OSError, EOFError, zlib.error):
        return []


def header_names(path: Path) -> list[str]:
    """The fields of a CSV's first line, without white space; none if it is not text."""
    for line in first_lines(path, 1):
        try:
            fields = fields_of("", line.rstrip(b"\r\n"))
        except UserError:
            return []
        return [field.strip() for field in fields]
    return []


def first_face(path: Path) -> tuple[int, int]:
    """Bytes that no line of a CSV should exceed, and pixels of the side of its faces, by its first
    two lines: a square number of pixels is a size.
    """
    try:
        header, face = first_lines(path, 2, LONGEST_LINE)
        roles = read_header("", header.rstrip(b"\r\n"))
        pixels = pixel_fields([fields_of("", face)], roles)[0]
        count = len(pixels.split())
    except (UserError, IndexError, ValueError):
        return MAX_LINE, FACE_SIZE  # reported when all lines are read
    side = math.isqrt(count)
    if side**2 != count or side < SMALLEST:
        return MAX_LINE, FACE_SIZE
    return max(MAX_LINE, 8 * count, len(header)), side


def filled_lines(file: BufferedReader, path: Path, digest, longest: int) -> Iterator[Line]:
    """The lines that are not blank; all that is read goes through the digest too. No line is read
    much beyond `longest` bytes.
    """
    try:
        head = file.peek()
    except (EOFError, OSError, zlib.error) as error:
        if "Not a gzipped file" in str(error):
            raise UserError(mistaken(path, "compressed by gzip")) from None
        raise UserError(f"{path}: is damaged ({error}); get the file again") from None
    if said := foreign(head, path):
        raise UserError(f"{path}: {said}")
    if head.startswith(codecs.BOM_UTF8):
        digest.update(file.read(len(codecs.BOM_UTF8)))
    number, bounded = 0, iter(partial(file.readline, longest + 2), b"")  # with its end
    for block in blocks(bounded, path):
        for line in block:
            number += 1
            line = line.removesuffix(b"\n")
            if len(line) > longest:
                raise UserError(
                    f"{path}, line {number}: is over {longest} bytes long; a face of 48×48 pixels "
                    "has 2304 numbers"
                )
            if line.strip():
                yield f"{path}, line {number}", line.removesuffix(b"\r")
        # A digest line by line would wait for the GIL and take 1.3 times as long.
        digest.update(b"".join(block))


def blocks(lines: Iterator[bytes], path: Path) -> Iterator[list[bytes]]:
    """The lines in blocks. Raises UserError where a compressed file is cut off or damaged."""
    while True:
        try:
            block = list(islice(lines, BLOCK))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: is damaged ({error}); get the file again") from None
        if not block:
            return
        yield block


def fields_of(place: str, line: bytes) -> list[str]:
    text = line.decode("utf-8", "replace")
    if '"' not in text:
        return text.split(",")  # faster than the csv module
    try:
        (fields,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        raise UserError(f"{place}: its quotes do not close; correct or remove the line") from None
    return fields


def read_header(place: str, line: bytes, group_column: str | None = None) -> list[str]:
    """Each column's role, "" where it has none, from names in any order, case and white space.
    Where each pixel has a column, all of these are `pixels`.
    """
    text = line.decode("utf-8", "replace")
    if "\ufffd" in text or any(not c.isprintable() and c != "\t" for c in text):
        raise UserError(
            f"{place}: is not UTF-8 text; name a CSV file with columns emotion and pixels"
        )
    names = [field.strip().lower() for field in fields_of(place, line)]
    columns = dict(COLUMNS)
    if group_column:
        columns["group"] = (group_column.lower(),)
    roles = [next((role for role, known in columns.items() if name in known), "") for name in names]
    for role, known in columns.items():
        if roles.count(role) > 1:
            raise UserError(
                f"{place}: {roles.count(role)} columns named {' or '.join(known)}; keep one"
            )
    if "usage" not in roles and names.count("split") == 1:
        position = names.index("split")
        roles[position] = roles[position] or "usage"
    if "pixels" not in roles:
        for position in pixel_columns(names):
            roles[position] = "pixels"
    if "pixels" not in roles and len(names) == 1 and (words := separated(names[0])):
        raise UserError(f"{place}: its columns are {words}; separate them by commas")
    if "pixels" not in roles and any(re.fullmatch(r"[0-9 ]{100,}", name) for name in names):
        raise UserError(
            f"{place}: holds a face where the names of the columns should be; put a line such as "
            "emotion,pixels before it"
        )
    if "pixels" not in roles:
        raise UserError(
            f"{place}: no column pixels (or feature) among {', '.join(names)[:80]!r}; rename the "
            "one that holds them"
        )
    return roles


def pixel_columns(names: Sequence[str]) -> range:
    """The columns of one pixel each: neighbors whose names count up, such as `pixel0`, `pixel1`."""
    matches = [PIXEL_COLUMN.fullmatch(name) for name in names]
    positions = [position for position, match in enumerate(matches) if match]
    if len(positions) < SMALLEST**2:
        return range(0)
    columns = range(positions[0], positions[-1] + 1)
    numbers = [[int(number or 0) for number in match.groups()] for match in matches if match]
    counts_up = all(before < after for before, after in pairwise(numbers))
    return columns if len(columns) == len(positions) and counts_up else range(0)


def separated(header: str) -> str:
    """How the columns of a line without commas are separated, in words; nothing if it is one
    column.
    """
    kinds = {";": "separated by semicolons", "\t": "separated by tabs", "|": "separated by |"}
    return next((words for sign, words in kinds.items() if sign in header), "")


Rows = tuple[np.ndarray, list[str], np.ndarray, np.ndarray, np.ndarray, dict[str, str]]


def parse(lines: list[Line], roles: list[str], side: int) -> Rows:
    """Images, labels, usage, ids and groups of some lines, and the first place of each label."""
    places, rows = [place for place, _ in lines], [fields_of(*line) for line in lines]
    for place, row in zip(places, rows, strict=True):
        width = len(row)  # more columns: two rows that lost the line end between them
        if width != len(roles):
            raise UserError(
                f"{place}: has {width} columns where the header has {len(roles)}; correct or "
                "remove the line"
            )
    columns: dict[str, list[str]] = {}
    for position, role in enumerate(roles):
        if role not in ("", "pixels"):
            columns[role] = [row[position] for row in rows]
    labels = [plain_label(field) for field in columns.get("label", ())]
    pixels = pixel_fields(rows, roles)
    first: dict[str, str] = {}
    for place, label in zip(places, labels, strict=False):
        if label not in first:
            check_label(place, label)
            first[label] = place
    usage = parse_usage(places, columns.get("usage", ()))
    ids = short_fields(places, columns.get("id", ()), "id")
    groups = short_fields(places, columns.get("group", ()), "group")
    return parse_pixels(places, pixels, side), labels, usage, ids, groups, first


def pixel_fields(rows: Sequence[Sequence[str]], roles: Sequence[str]) -> list[str]:
    """Each row's pixels as numbers separated by spaces: from one field, from a list in brackets,
    `[70, 80]`, as pandas writes one, or from a column for each pixel.
    """
    start, count = roles.index("pixels"), roles.count("pixels")
    if count > 1:
        return [" ".join(row[start : start + count]) for row in rows]
    fields = [row[start] for row in rows]
    if fields[0].startswith("["):
        return [field.strip("[]").replace(",", " ") for field in fields]
    return fields


def check_label(place: str, label: str) -> None:
    """Raise UserError for a label that is neither an integer nor a word."""
    number_like = re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", label)
    whole = re.fullmatch(r"-?[0-9]{1,9}", label)
    word = re.match(r"[\w-]", label) and label.isprintable() and "\ufffd" not in label
    if not word or len(label) > MAX_LABEL:
        problem = "is not a label"
    elif number_like and not whole:
        problem = "is not a label, a whole number or a word"
    else:
        return
    raise UserError(f"{place}: {label[:20]!r} {problem}; correct or remove the line")


def parse_usage(places: list[str], fields: Sequence[str]) -> np.ndarray:
    """int64 N: positions in USAGES; -1 if there is no such column."""
    if not fields:
        return np.full(len(places), -1)
    numbers = []
    for place, field in zip(places, fields, strict=True):
        number = USAGE_OF.get(field.strip())
        numbers.append(usage_of(place, field) if number is None else number)
    return np.array(numbers)


def usage_of(place: str, word: str) -> int:
    """The position in USAGES of the split that a word names."""
    split = split_named(word)
    if split is None:
        raise UserError(
            f"{place}: {word.strip()[:20]!r} is not a split ({', '.join(USAGES)}, or train, val, "
            "test); correct the line, or rename the column"
        )
    return ("train", "validation", "test").index(split)


def short_fields(places: list[str], fields: Sequence[str], what: str) -> np.ndarray:
    """Fields stripped of surrounding white space, otherwise unchanged, even `=1+1`: a submission
    must repeat the ids as they are.
    """
    stripped = [field.strip() for field in fields]
    for place, name in zip(places, stripped, strict=False):
        if len(name) > MAX_ID or "\0" in name:
            raise UserError(
                f"{place}: {name[:20]!r} … is not a valid {what} (up to {MAX_ID} characters); "
                "correct the line"
            )
    return np.array(stripped, dtype=np.str_)


def parse_pixels(places: list[str], fields: Sequence[str], side: int) -> np.ndarray:
    """uint8 N×side×side from fields of side² numbers: every byte must be a digit or a blank, a run
    of digits is a number of at most three digits, up to 255.

    Each byte is combined with the three before it, for all bytes at once; the value at the last
    digit of a run is the number. 2.7 times as fast as np.fromstring row by row, and
    strict.
    """
    data = np.frombuffer(" ".join(["  ", *fields, ""]).encode(), np.uint8)
    blank, is_digit = data == 32, data - 48 < 10  # bytes below "0" wrap around
    digit = data & 15  # a blank's is 0
    three = is_digit[1:-3] & is_digit[2:-2] & is_digit[3:-1]
    hundreds, low = digit[1:-3] * three, digit[2:-2] * 10 + digit[3:-1]
    numbers = low + hundreds * 100  # 256 and more wrap around
    wrong = (hundreds > 2) | (numbers < low) | (three & is_digit[:-4])
    last = np.flatnonzero(is_digit[3:-1] & blank[4:])
    ends = np.cumsum([len(field) + 1 for field in fields])
    counts = np.searchsorted(last, ends)  # of numbers up to the end of each field
    whole = (counts == np.arange(1, len(fields) + 1) * side * side).all()
    if not whole or wrong.any() or np.count_nonzero(is_digit) + np.count_nonzero(blank) < len(data):
        raise UserError(first_problem(places, fields, side))
    return numbers.take(last).reshape(-1, side, side)


def first_problem(places: list[str], fields: Sequence[str], side: int) -> str:
    """What is wrong with the first bad one of some fields of pixels."""
    for place, field in zip(places, fields, strict=True):
        problem = explain(place, field, side)
        if problem:
            return problem
    raise AssertionError("every field is good")


def explain(place: str, field: str, side: int) -> str:
    """What is wrong with a field of pixels, found value by value; empty if nothing is."""
    values = [value for value in field.split(" ") if value]
    bad = [value for value in values if not re.fullmatch("[0-9]{1,3}", value) or int(value) > 255]
    if bad:
        return (
            f"{place}: {bad[0][:20]!r} is not a gray value from 0 to 255; correct or remove the "
            "line"
        )
    if len(values) == side * side:
        return ""
    return (
        f"{place}: has {len(values)} pixels, not {side * side} ({side}×{side}); correct or remove "
        "the line"
    )
