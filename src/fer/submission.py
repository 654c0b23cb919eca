"""The layout of a submission: its header, its ids, its rows' order, and a sample that sets them."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fer import UserError
from fer.data.faces import Faces
from fer.files import write_text
from fer.run import write_csv


@dataclass(frozen=True)
class Submission:
    """How a submission is laid out.

    header: names of its columns, of ids and labels or of labels alone; empty for labels alone
    without a header.
    ids: one a face, also where they are not written. faces: in the order of the rows. headed: does
    it begin with its header?
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
            rows = [[own, label] for own, label in zip(self.ids, labels, strict=True)]
        if self.headed and self.header:
            write_csv(path, self.header, rows)
        else:
            columns = self.header or ["label"]
            text = pd.DataFrame(rows, columns=columns, dtype=object).to_csv(
                index=False, header=False, lineterminator="\n"
            )
            write_text(path, text)


def as_sampled(path: str, faces: Faces, classes: int = 8) -> Submission:
    """The layout of a sample submission: two columns or more, of which ids and labels are the first
    two, or one column of labels; a first row that ends in a number is no header. The faces come in
    the order of its ids or, where these are its own or there are none, in the data's order.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise UserError(f"sample={path}: is no plain file; name a CSV")
    try:
        sample = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    except (OSError, ValueError) as error:
        raise UserError(
            f"sample={path}: cannot be read as CSV ({str(error).splitlines()[0]})"
        ) from None
    columns = min(sample.shape[1], 2)
    sample = sample.iloc[:, :columns]
    header = sample.iloc[0].tolist()
    headed = not re.fullmatch(r"\s*-?[0-9]+(\.[0-9]*)?\s*", header[-1])
    if headed:
        sample = sample.iloc[1:]
    if len(sample) != len(faces):
        raise UserError(
            f"sample={path}: has {len(sample)} rows for {len(faces)} faces; it should have one for "
            "each"
        )
    ids = sample.iloc[:, 0].tolist()
    if columns == 1:
        no_labels = [
            value for value in ids if not value.strip().isdecimal() or int(value) >= max(classes, 8)
        ]
        if no_labels:
            raise UserError(
                f"sample={path}: {no_labels[0][:20]!r} in its one column is no label; "
                "it should have labels alone, or ids and labels"
            )
        print(f"{path} has labels alone: written in the order of the faces")
        return Submission(header, faces.ids, faces, headed)
    position = faces.positions(ids)
    if len(position) == len(ids) and set(position) == set(ids):
        return Submission(header, ids, faces.take([position[i] for i in ids]), headed)
    first = int(ids[0]) if ids[0].isdecimal() else 0
    if set(position) & set(ids) and ids != [str(first + i) for i in range(len(ids))]:
        raise UserError(
            f"sample={path}: only some of its ids are faces' ids, so their order is not sure; mend "
            "them"
        )
    print(
        f"the ids of {path} are its own, from {ids[0]} to {ids[-1]}: taken in the order of the "
        "faces"
    )
    return Submission(header, ids, faces, headed)
