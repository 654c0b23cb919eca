"""Lists of pictures: tables with a picture's name and its label in each row, and FER+'s own
label.csv with the votes of ten people.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from fer import UserError
from fer.data.readers.cache import cached
from fer.data.readers.csv_faces import check_label, has_pixels, usage_of
from fer.data.readers.folders import read_pictures
from fer.data.readers.names import (
    SPLITS,
    composed,
    entries,
    plain_label,
    printable,
    split_named,
)
from fer.data.readers.pictures import is_picture, pictures_below
from fer.data.readers.table import MAX_LABELS, Table
from fer.data.readers.text_tables import ENDINGS, Row, all_rows, first_rows, head_of
from fer.text import counted

FILE = (
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_name",
    "image_path",
    "img",
    "img_name",
    "path",
    "pth",
    "name",
)
ID = ("id", "image_id", "img_id")  # may be the name of a picture without its ending
LABEL = ("emotion", "label", "expression", "class", "category", "target")
SPLIT = ("usage", "split", "set", "subset")
# Columns of FER+'s label.csv, after the picture and the box of its face.
VOTES = (
    "neutral",
    "happy",
    "surprise",
    "sad",
    "angry",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "no face",
)
DEPTH = 3  # folders below the table in which pictures are looked for
ALIGNED = "_aligned"  # RAF-DB's list names train_00001.jpg, its faces are train_00001_aligned.jpg
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # of one-hot columns
SHEETS = (".xlsx", ".xls", ".ods", ".json", ".jsonl", ".xml")  # tables that are not read
MOST_LISTED = 1000  # entries of a folder that are looked through for tables
SHOWN = 60  # characters of a field in a message


@dataclass(frozen=True)
class Columns:
    """The positions of the columns in a list of pictures. one_hot: position → the class that a 1
    there means, in place of a column of labels. votes: the first of FER+'s ten.
    """

    file: int
    label: int | None = None
    split: int | None = None
    group: int | None = None
    one_hot: tuple[tuple[int, str], ...] = ()
    votes: int | None = None
    header: bool = True


@dataclass(frozen=True)
class Entry:
    """What a list says of a picture."""

    label: str
    usage: int
    group: str


def table_columns(path: Path, group_column: str | None = None) -> Columns | None:
    """The columns of a table that lists pictures with their labels; None for any other."""
    try:
        return list_columns(path, group_column)
    except UserError:
        return None


def list_columns(path: Path, group_column: str | None = None) -> Columns:
    """The columns of a table that lists pictures with their labels. Raises UserError, without the
    path, for any other.
    """
    if has_pixels(path):
        raise UserError("holds faces, not names of pictures")
    rows = first_rows(path)
    first = rows[0][1]
    header = not any(is_picture(field) for field in first)
    body = rows[1:] if header else rows
    if not body:
        raise UserError("has a header but no rows; add them")
    names = [column_name(name) if header else "" for name in first]
    file = file_column(path, names, body)
    votes = range(2, 2 + len(VOTES))
    if len(names) == votes.stop and all(is_vote(fields) for _, fields in body):
        return Columns(file, votes=votes.start, header=header)

    def find(known: Iterable[str]) -> int | None:
        return next((i for i, name in enumerate(names) if name in known and i != file), None)

    group = find([column_name(group_column)]) if group_column else None
    split, label = find(SPLIT), find(LABEL)
    others = [i for i in range(len(names)) if i not in (file, split, group)]
    if label is None and len(others) == 1:
        label = others[0]
    if label is not None:
        return Columns(file, label, split, group, header=header)
    if not others:
        raise UserError("lists pictures without labels; add a column label")
    one_hot = one_hot_columns(others, body) if header else []
    if not one_hot:
        raise UserError(
            f"lists pictures, but any of {len(others)} columns may hold the labels; name one label"
        )
    return Columns(file, None, split, group, tuple((i, first[i]) for i in one_hot))


def column_name(word: str) -> str:
    return re.sub("[ -]", "_", word.lower())


def file_column(path: Path, names: Sequence[str], body: Sequence[Row]) -> int:
    """The column with the names of the pictures: with their endings, or without if pictures of
    these names exist.
    """
    columns = range(len(names))
    pictures = [i for i in columns if all(is_picture(fields[i]) for _, fields in body)]
    if pictures:
        return next((i for i in pictures if names[i] in FILE), pictures[0])
    if {*names} & {*LABEL}:
        stems = {composed(file.stem) for file in pictures_below(path.parent, DEPTH)}
        for i in columns:
            if names[i] in (*FILE, *ID) and all(composed(row[i]) in stems for _, row in body):
                return i
    for number, fields in body:
        for i in columns:
            if not is_picture(fields[i]) and any(is_picture(row[i]) for _, row in body):
                raise UserError(
                    f"has {fields[i][:SHOWN]!r} in line {number}, which is not a picture; "
                    "correct it"
                )
    raise UserError("has no column with names of the pictures; add one named file")


def is_vote(fields: Sequence[str]) -> bool:
    """Is it a row of FER+'s label.csv: a picture, the box of its face, ten counts?"""
    return fields[1].startswith("(") and all(field.isdecimal() for field in fields[2:])


def one_hot_columns(columns: Sequence[int], body: Sequence[Row]) -> list[int]:
    """Those of the columns that hold 0 or 1, if every row has one 1 in them; else none."""
    flags = [i for i in columns if all(fields[i] in FLAGS for _, fields in body)]
    for _, fields in body:
        if sum(FLAGS[fields[i]] for i in flags) != 1:
            return []
    return flags if len(flags) > 1 else []


@dataclass
class Listing:
    """What a list says, and what of it is not used.

    entries: by picture. lines: the line of each picture. first: label → the place where it first
    occurs. undecided: pictures on which FER+'s votes do not agree. repeated: rows that repeat an
    earlier one. absent: names of pictures that are not there.
    """

    entries: dict[Path, Entry] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    undecided: set[Path] = field(default_factory=set)
    repeated: int = 0
    absent: list[str] = field(default_factory=list)

    def notes(self, table: str, unlisted: Sequence[str]) -> list[str]:
        """What is not used, in words. unlisted: the pictures there that the `table` leaves out."""
        notes = []
        if unlisted:
            count = counted(len(unlisted), "picture")
            notes.append(f"{count} that {table} does not list, such as {unlisted[0][:SHOWN]}")
        if self.absent:
            count = counted(len(self.absent), "picture")
            notes.append(
                f"{count} named in {table} but not there, such as {self.absent[0][:SHOWN]}"
            )
        if self.undecided:
            count = counted(len(self.undecided), "picture")
            notes.append(f"{count} of {table} without a clear vote")
        if self.repeated:
            notes.append(f"{counted(self.repeated, 'repeated row')} of {table}")
        return notes


def listing_of(path: Path, columns: Columns, places: "Places") -> Listing:
    """What the table at `path` says of the pictures in the places."""
    listing = Listing()
    rows = all_rows(path)
    if columns.header:
        next(rows)
    for number, fields in rows:
        place = f"{path}, line {number}"
        name = fields[columns.file]
        file = places.find(name, place)
        if file is None:
            if places.nowhere(name):
                listing.absent.append(name)
            continue
        label = label_in(place, fields, columns)
        if label is None:
            listing.undecided.add(file)
            continue
        check_label(place, label)
        usage = -1 if columns.split is None else usage_of(place, fields[columns.split])
        entry = Entry(label, usage, "" if columns.group is None else fields[columns.group])
        if file not in listing.entries:
            listing.entries[file], listing.lines[file] = entry, number
            listing.first.setdefault(label, place)
        elif listing.entries[file] == entry:
            listing.repeated += 1
        else:
            earlier, line = listing.entries[file], listing.lines[file]
            how = f"is labeled {label}, but {earlier.label} in line {line}"
            if label == earlier.label:
                how = f"is also in line {line}, with another split or group"
            raise UserError(f"{place}: {name[:SHOWN]!r} {how}; remove one of the two")
    return listing


def read_listed(
    path: Path, columns: Columns, root: Path, folders: Sequence[Path], side: int, alone: bool = True
) -> Table:
    """The pictures that the table at `path` lists and that lie in `folders`; ids are relative to
    `root`. alone: whether it should list all of them.
    """
    places = Places(path.parent, folders)
    listing = listing_of(path, columns, places)
    if not listing.entries:
        raise UserError(
            f"{path}: none of the pictures that it lists is in {places.where}; put them there"
        )
    names = [*listing.first]
    if len(names) > MAX_LABELS:
        raise UserError(
            f"{path}: its label column has {len(names):,} different values, too many for classes; "
            "name the column of classes label"
        )
    files, entries = [*listing.entries], listing.entries.values()
    labels = [entry.label for entry in entries]
    table = read_pictures(root, files, labels, names, side, listing.first)
    if columns.split is None:
        table.usage = usage_by_name(files)
    else:
        table.usage = np.array([entry.usage for entry in entries])
    if columns.group is not None:
        table.groups = np.array([entry.group for entry in entries], dtype=np.str_)
    known = {*files, *listing.undecided}
    unlisted = []
    if alone:
        pictures = (file for file in places.pictures if file not in known)
        unlisted = [file.relative_to(root).as_posix() for file in pictures]
    notes = listing.notes(path.name, unlisted)
    table.notes = np.array([printable(note) for note in notes], dtype=np.str_)
    return table


def usage_by_name(files: Sequence[Path]) -> np.ndarray:
    """int64 N: positions in USAGES where the names of the pictures begin with their split, as
    RAF-DB's train_00001.jpg and test_0001.jpg do; -1 where one does not, or where all or none are
    for training.
    """
    splits = [split_named(re.split(r"[\W_\d]", file.name)[0]) for file in files]
    if None in splits or "train" not in splits or len({*splits}) == 1:
        return np.full(len(files), -1)
    return np.array([[*SPLITS].index(str(split)) for split in splits])


class Places:
    """The pictures that rows of a table can mean, by their paths relative to the table's folder or
    to a folder of pictures and, where that is clear, by their names alone.
    """

    def __init__(self, beside: Path, folders: Sequence[Path]):
        self.beside = beside
        # Every row should have its picture.
        self.everywhere = any(beside.is_relative_to(folder) for folder in folders)
        self.where = ", ".join(map(str, folders))
        self.pictures: list[Path] = []
        self.files: dict[str, Path | None] = {}
        self.stems: dict[str, Path | None] = {}
        self.aligned: dict[str, Path | None] = {}
        for folder in folders:
            for file in pictures_below(folder, DEPTH):
                self.pictures.append(file)
                names = {file.name, file.relative_to(folder).as_posix()}
                if file.is_relative_to(beside):
                    names.add(file.relative_to(beside).as_posix())
                for name in map(composed, names):
                    self.files[name] = None if name in self.files else file
                stem = composed(file.stem)
                self.stems[stem] = None if stem in self.stems else file
                if stem.endswith(ALIGNED):
                    stem = stem.removesuffix(ALIGNED)
                    self.aligned[stem] = None if stem in self.aligned else file

    def find(self, name: str, place: str) -> Path | None:
        """The picture that the row at `place` names; None if it may lie elsewhere."""
        path = composed(name).replace("\\", "/").removeprefix("./")
        base = path.rpartition("/")[2]
        file = self.files.get(path) or self.files.get(base)
        if is_picture(base):
            aligned = self.aligned.get(base.rpartition(".")[0])
            if aligned and (file is None or file.parent != aligned.parent):
                file = aligned
        else:
            file = file or self.stems.get(base)
        if file is None and (base in self.files or base in self.stems):
            raise UserError(
                f"{place}: several pictures in {self.where} are named {base[:SHOWN]!r}; write its "
                "path"
            )
        if file is None and self.everywhere:
            raise UserError(
                f"{place}: no picture {name[:SHOWN]!r} in {self.where}; correct or remove the line"
            )
        return file

    def nowhere(self, name: str) -> bool:
        """Is there no such picture, not even in other folders beside the table?"""
        base = composed(name).replace("\\", "/").rpartition("/")[2]
        return base not in self.all_names

    @cached_property
    def all_names(self) -> set[str]:
        """Names of all pictures beside the table, with their endings and without."""
        files = pictures_below(self.beside, DEPTH)
        return {composed(name) for file in files for name in (file.name, file.stem)}


def label_in(place: str, row: Sequence[str], columns: Columns) -> str | None:
    if columns.votes is not None:
        return voted(place, row[columns.votes :])
    if columns.label is not None:
        return plain_label(row[columns.label])
    names = [name for position, name in columns.one_hot if FLAGS.get(row[position]) == 1]
    others = [row[position] for position, _ in columns.one_hot if row[position] not in FLAGS]
    if others or len(names) != 1:
        raise UserError(
            f"{place}: should have one 1 and otherwise 0 in the columns "
            f"{', '.join(name for _, name in columns.one_hot)}; correct or remove the line"
        )
    return names[0]


def voted(place: str, votes: Sequence[str]) -> str | None:
    """The emotion that alone has the most of FER+'s votes; None if that is none."""
    if not all(re.fullmatch(r"[0-9]{1,9}", vote) for vote in votes):
        raise UserError(f"{place}: its votes are not counts; correct or remove the line")
    counts = [int(vote) for vote in votes]
    most = max(counts)
    name = VOTES[counts.index(most)]
    if counts.count(most) > 1 or name in ("unknown", "no face"):
        return None
    return name


def cached_listed(
    path: Path, columns: Columns, root: Path, folders: Sequence[Path], side: int, alone: bool = True
) -> Table:
    """read_listed(), with its cache beside the table."""
    files = [path, *(file for folder in folders for file in pictures_below(folder, DEPTH))]
    how = f"listed {side} {columns} {root.absolute()} {re.escape(str(folders))} {alone}"
    return cached(path, files, how, lambda: read_listed(path, columns, root, folders, side, alone))


def unused_tables(folder: Path, depth: int) -> list[str]:
    """The tables in a folder and in those below it, and why they do not label its pictures."""
    reasons = []
    others = (entry for entry in entries(folder) if not is_picture(entry.name))
    for entry in islice(others, MOST_LISTED):
        if entry.is_dir():
            if entry.name.lower() == "labels" and not pictures_below(entry, 1):
                reasons.append("labels/ is not read; write a table file,label")
            elif depth:
                reasons += unused_tables(entry, depth - 1)
        elif why := why_unused(entry):
            reasons.append(f"{printable(entry.name)} {why}")
    return reasons


def why_unused(file: Path) -> str:
    """Why a file does not label pictures; empty if it is not a table."""
    name = file.name.lower()
    if not name.endswith((*ENDINGS, *SHEETS)) or not file.is_file():
        return ""
    try:
        list_columns(file)
    except UserError as error:
        is_note = name.endswith(".txt") and not names_pictures(file)
        return "" if is_note or has_pixels(file) else str(error)
    return "lists pictures of which none is there, or is not the only list"


def names_pictures(file: Path) -> bool:
    """Is there the name of a picture in the first lines of a text?"""
    with contextlib.suppress(UserError):
        return any(is_picture(word) for word in re.split(r"[\s,;]+", head_of(file)[0]))
    return False
