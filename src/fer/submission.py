"""The layout of a submission: its header, its ids, its rows' order, and a sample that sets them."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fer import UserError
from fer.data.faces import Faces
from fer.data.readers.csv_faces import separated
from fer.data.readers.file_types import kind_of
from fer.files import write_text
from fer.run import write_csv

NUMBER = r"\s*-?[0-9]+(\.[0-9]*)?\s*"


@dataclass(frozen=True)
class Submission:
    """How a submission is laid out.

    header: names of its columns: of ids and labels, or of labels alone; empty for labels alone
    without a header. ids: one for each face, even if they are not written. faces: in the order of
    the rows. headed: whether the file begins with the header.
    """

    header: list[str]
    ids: list[str]
    faces: Faces
    headed: bool = True

    @property
    def id_column(self) -> str:
        """Header of the ids, for a table that needs them."""
        return self.header[0] if len(self.header) == 2 and self.headed else "id"

    def write(self, path: str, labels: list[int]) -> None:
        rows: list[list[object]] = [[label] for label in labels]
        if len(self.header) == 2:
            rows = [[face_id, label] for face_id, label in zip(self.ids, labels, strict=True)]
        if self.headed and self.header:
            write_csv(path, self.header, rows)
        else:
            columns = self.header or ["label"]
            text = pd.DataFrame(rows, columns=columns, dtype=object).to_csv(
                index=False, header=False, lineterminator="\n"
            )
            write_text(path, text)


def as_sampled(path: str, faces: Faces, classes: int = 8) -> Submission:
    """The layout of a sample submission, which has ids and labels in its first two columns, or
    labels alone in its only one. A first row that ends in a number is not a header.

    The faces are in the order of the sample's ids or, if these are not the faces' ids or there are
    none, in the data's order. classes: how many the network has, so that labels are below it.
    """
    sample = read_sample(path)
    header = sample.iloc[0].tolist()
    headed = not re.fullmatch(NUMBER, header[-1])
    if headed:
        sample = sample.iloc[1:]
    if len(sample) != len(faces):
        raise UserError(
            f"sample={path}: has {len(sample)} rows for {len(faces)} faces; it should have one for "
            "each"
        )
    first_column = sample.iloc[:, 0].tolist()
    if sample.shape[1] == 1:
        check_labels(path, first_column, max(classes, 8))
        print(f"{path} has labels alone: written in the order of the faces")
        return Submission(header, faces.ids, faces, headed)

    ids = first_column
    position = faces.positions(ids)
    if len(position) == len(ids) and set(position) == set(ids):
        return Submission(header, ids, faces.take([position[i] for i in ids]), headed)
    if set(position) & set(ids) and not counts_up(ids):
        raise UserError(
            f"sample={path}: only some of its ids are ids of faces, so the order is unclear; "
            "correct them"
        )
    print(
        f"the ids of {path}, {ids[0]} to {ids[-1]}, are not those of the faces: "
        "used in the order of the faces"
    )
    return Submission(header, ids, faces, headed)


def read_sample(path: str) -> pd.DataFrame:
    """The first two columns of a CSV, or its only one, as text and without a header."""
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for a writer
        raise UserError(f"sample={path}: not a regular file; name a CSV")
    try:
        if kind := kind_of(Path(path)):
            raise UserError(f"sample={path}: {kind}; name a CSV file in UTF-8")
        sample = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"sample={path}: cannot be read as CSV ({reason})") from None
    if sample.shape[1] == 1 and (words := separated(sample.iat[0, 0])):
        raise UserError(f"sample={path}: its columns are {words}; separate them by commas")
    return sample.iloc[:, :2]


def check_labels(path: str, values: list[str], classes: int) -> None:
    """Refuse a column with anything but labels from 0 to classes - 1."""
    for value in values:
        if not value.strip().isdecimal() or int(value) >= classes:
            raise UserError(
                f"sample={path}: {value[:20]!r} in its only column is not a label; "
                "it should have labels alone, or ids and labels"
            )


def counts_up(ids: list[str]) -> bool:
    """Whether the ids are whole numbers in a row, from any first one; 0 is assumed if the first is
    no number.
    """
    first = int(ids[0]) if ids[0].isdecimal() else 0
    return ids == [str(first + i) for i in range(len(ids))]
