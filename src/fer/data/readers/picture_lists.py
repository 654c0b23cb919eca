"""Lists of pictures: CSV files with a picture's name and its label in each row, and FER+'s own
label.csv with the votes of ten people.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fer import UserError
from fer.data.readers.cache import cached
from fer.data.readers.csv_faces import check_label, first_lines, has_pixels, usage_of
from fer.data.readers.folders import read_pictures
from fer.data.readers.names import entries, plain_label
from fer.data.readers.pictures import image_files, is_picture
from fer.data.readers.table import MAX_LABELS, Table

FILE = ("file", "filename", "file_name", "image", "img", "path", "image_path", "pth", "name")
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
PEEKED = 20  # rows
DEPTH = 3  # folders below the table in which pictures are looked for


@dataclass(frozen=True)
class Columns:
    """Where the columns of a table of pictures stand. votes: the first of FER+'s ten."""

    file: int
    label: int | None
    split: int | None = None
    group: int | None = None
    votes: int | None = None
    header: bool = True


def table_columns(path: Path, group_column: str | None = None) -> Columns | None:
    """The columns of a CSV that lists pictures with their labels; None for any other."""
    if has_pixels(path):
        return None
    peeked = io.BytesIO(b"".join(first_lines(path, PEEKED)))
    try:
        rows = pd.read_csv(peeked, header=None, dtype=str, keep_default_na=False)
    except ValueError:
        return None
    header = not any(is_picture(str(value)) for value in rows.iloc[0])
    body = rows.iloc[1:] if header else rows
    pictures = [
        column for column in rows if len(body) and body[column].map(lambda v: is_picture(v)).all()
    ]
    if not pictures:
        return None
    names = [name.strip().lower() for name in rows.iloc[0]] if header else [""] * rows.shape[1]
    file = next((column for column in pictures if names[column] in FILE), pictures[0])
    if rows.shape[1] == 2 + len(VOTES) and body.iloc[:, 2:].map(str.isdecimal).all(axis=None):
        return Columns(file, None, votes=2, header=header)

    def find(known: Sequence[str]) -> int | None:
        return next((i for i, name in enumerate(names) if name in known and i != file), None)

    group = find([group_column.lower()]) if group_column else None
    split, label = find(SPLIT), find(LABEL)
    others = [i for i in range(rows.shape[1]) if i not in (file, split, group)]
    if label is None and len(others) == 1:
        label = others[0]
    return None if label is None else Columns(file, label, split, group, header=header)


def read_listed(
    path: Path, columns: Columns, root: Path, folders: Sequence[Path], side: int
) -> Table:
    """The pictures that the table at `path` lists and that lie in `folders`; ids are relative to
    `root`.
    """
    header = 0 if columns.header else None
    try:
        rows = pd.read_csv(path, header=header, dtype=str, keep_default_na=False)
    except ValueError as error:  # columns too many, quotes left open, bytes that are no UTF-8
        reason = str(error).strip().rpartition("C error: ")[2]
        raise UserError(f"{path}: cannot be read as CSV ({reason}); correct the file") from None
    places = Places(path.parent, folders)
    files, labels, usage, groups = [], [], [], []
    first: dict[str, str] = {}
    for number, row in enumerate(rows.itertuples(index=False), start=1 + columns.header):
        place = f"{path}, line {number}"
        file = places.find(row[columns.file])
        if file is None:
            if places.everywhere:
                raise UserError(
                    f"{place}: no picture {row[columns.file]!r} in {places.where}; correct or "
                    "remove the line"
                )
            continue
        label = label_in(place, row, columns)
        if label is None:
            continue
        check_label(place, label)
        first.setdefault(label, place)
        files.append(file)
        labels.append(label)
        groups.append("" if columns.group is None else row[columns.group])
        if columns.split is not None:
            usage.append(usage_of(place, row[columns.split]))
    if not files:
        raise UserError(
            f"{path}: none of the pictures that it lists is in {places.where}; put them there"
        )
    if len(first) > MAX_LABELS:
        raise UserError(
            f"{path}: its label column has {len(first):,} different values, too many for classes; "
            "name the column of classes label"
        )
    table = read_pictures(root, files, labels, [*first], side, first)
    if usage:
        table.usage = np.array(usage)
    if columns.group is not None:
        table.groups = np.array(groups, dtype=np.str_)
    return table


class Places:
    """The pictures that rows of a table can mean, by their paths relative to the table's folder or
    to a folder of pictures and, where that is clear, by their names alone.
    """

    def __init__(self, beside: Path, folders: Sequence[Path]):
        self.everywhere = beside in folders  # every row should have its picture
        self.where = ", ".join(map(str, folders))
        self.files: dict[str, Path | None] = {}
        for folder in folders:
            for file in pictures_below(folder, DEPTH):
                names = {file.name, file.relative_to(folder).as_posix()}
                if file.is_relative_to(beside):
                    names.add(file.relative_to(beside).as_posix())
                for name in names:
                    self.files[name] = None if name in self.files else file

    def find(self, name: str) -> Path | None:
        name = name.strip().replace("\\", "/").removeprefix("./")
        return self.files.get(name) or self.files.get(name.rpartition("/")[2])


def pictures_below(folder: Path, depth: int) -> list[Path]:
    files = image_files(folder)
    if depth:
        for entry in entries(folder):
            if entry.is_dir():
                files += pictures_below(entry, depth - 1)
    return files


def label_in(place: str, row: Sequence[str], columns: Columns) -> str | None:
    if columns.label is None:
        return voted(place, row[columns.votes :])
    return plain_label(row[columns.label])


def voted(place: str, votes: Sequence[str]) -> str | None:
    """The emotion that alone has the most of FER+'s votes; None if that is none."""
    if not all(vote.isdecimal() for vote in votes):
        raise UserError(f"{place}: its votes are not counts; correct or remove the line")
    counts = [int(vote) for vote in votes]
    most = max(counts)
    name = VOTES[counts.index(most)]
    if counts.count(most) > 1 or name in ("unknown", "no face"):
        return None
    return name


def cached_listed(
    path: Path, columns: Columns, root: Path, folders: Sequence[Path], side: int
) -> Table:
    files = [path, *(file for folder in folders for file in pictures_below(folder, DEPTH))]
    how = f"listed {side} {columns} {root.absolute()} {re.escape(str(folders))}"
    return cached(path, files, how, lambda: read_listed(path, columns, root, folders, side))
