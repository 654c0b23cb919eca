"""FER+ (Barsoum et al. 2016, arXiv:1608.01041): ten people voted on each face of FER2013.

The votes are in fer2013new.csv, whose rows correspond to those of fer2013.csv. This module turns
them into targets; fer.data.readers reads the pixels.
"""

import hashlib
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge

from fer import FACE_SIZE, FilePath, Normalization, UserError, class_names
from fer.data.faces import Data
from fer.data.readers import classes as class_rules
from fer.data.readers.classes import Wishes
from fer.data.readers.csv_faces import USAGES
from fer.data.readers.dataset import LabeledTable
from fer.data.readers.file_types import kind_of
from fer.data.readers.sources import Wanted, find
from fer.files import regular

EMOTIONS = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "sadness",
    "surprise",
    "neutral",
    "contempt",
)  # FER+'s names of class_names(8), in the same order
SOURCE = "github.com/microsoft/FERPlus"
Mode = Literal["majority", "probability", "crossentropy", "multi"]


def ferplus(
    path: FilePath,
    votes: FilePath | None,
    mode: Mode,
    classes: Literal[7, 8],
    score: Literal["majority", "original"],
    limit: Annotated[int, Ge(1)] | None,
    normalize: Normalization,
) -> Data:
    """The faces at `path` with the votes in the file `votes`. configs/data/ferplus.yaml explains
    the arguments.
    """
    source = find(path, Wanted(FACE_SIZE))
    table = source.parts.get("train")
    if table is None or (table.usage < 0).any():
        raise UserError(
            f"data.path={path}: FER+ needs fer2013.csv with its column Usage; name that file, or "
            "use data=fer2013"
        )
    wishes = Wishes(classes=class_names(classes))
    labels = class_rules.resolve([table], wishes, source.known_numbers).labels(table)
    if score == "original" and (labels < 0).any():
        raise UserError(
            f"data.score=original: {path} has faces without a label of their own; use "
            "data.score=majority"
        )
    file = votes_file(path, votes)
    counts = read_votes(file, table.usage)
    training_targets = shares(counts, mode, classes)
    if score == "majority":
        scored_targets = shares(counts, "majority", classes)
    else:
        scored_targets = np.eye(classes)[labels]
    # The likeliest class of a target; of equally likely ones, the one with more votes.
    weight_of_votes = 1 + counts[:, :classes]
    part = LabeledTable(table, labels, None, spread=False)
    splits = {}
    for usage, name in enumerate(("train", "validation", "private")):
        targets = training_targets if name == "train" else scored_targets
        rows = np.flatnonzero((table.usage == usage) & (targets.sum(1) > 0))[:limit]
        if rows.size:
            split_labels = (targets * weight_of_votes)[rows].argmax(1)
            splits[name] = replace(
                part.cut(rows),
                labels=torch.from_numpy(split_labels),
                targets=torch.from_numpy(targets[rows]).float(),
            )
        elif name != "private":
            raise UserError(
                f"data.path={path}: FER+ keeps none of its {USAGES[usage]} rows, but some are "
                "needed"
            )
    splits["public"] = splits["validation"]
    return Data(
        splits,
        normalize,
        sealed=frozenset({"private"} & splits.keys()),
        hash=hashlib.sha256(str(table.hash).encode() + file.read_bytes()).hexdigest(),
        classes=class_names(classes),
        mode=mode,
    )


def votes_file(path: str, votes: str | None) -> Path:
    """The file of votes; by default fer2013new.csv in the folder of the pixels."""
    if votes:
        return Path(votes).expanduser()
    place = Path(path).expanduser()
    folder = place.parent if place.is_file() else place
    return folder / "fer2013new.csv"


def read_votes(path: Path, usage: np.ndarray) -> np.ndarray:
    """Votes, float64 N×10: the columns EMOTIONS, unknown and NF (no face). Images without a name,
    which FER+ removed, have none.
    """
    try:
        if kind := kind_of(regular(path)):
            raise UserError(f"{path}: {kind}; get fer2013new.csv from {SOURCE}")
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read ({reason}); get fer2013new.csv from {SOURCE}"
        ) from None
    columns = [*EMOTIONS, "unknown", "NF"]
    for name in ("Usage", "Image name", *columns):
        if name not in table:
            raise UserError(f"{path}: has no column {name}; get it again from {SOURCE}")
    if len(table) != len(usage):
        raise UserError(
            f"{path}: has {len(table)} rows for {len(usage)} faces; both files must be of one data "
            "set"
        )
    other_usage = np.flatnonzero(table["Usage"].to_numpy() != np.array(USAGES)[usage])
    if other_usage.size:
        raise UserError(
            f"{line_of(path, other_usage[0])}: has another Usage than its face; use both files "
            "whole"
        )
    counts = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    is_count = (counts >= 0) & (counts <= 1000) & (counts % 1 == 0)
    bad_rows = np.flatnonzero(~is_count.all(1))
    if bad_rows.size:
        raise UserError(
            f"{line_of(path, bad_rows[0])}: its votes are not counts; correct the line, or remove "
            "it from both files"
        )
    has_name = table["Image name"].notna().to_numpy()
    return counts * has_name[:, None]


def line_of(path: Path, row: int) -> str:
    """The file and the line of a row of a CSV, in words: rows start at 0 after the header, and
    blank lines are none.
    """
    with path.open("rb") as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip())
        return f"{path}, line {next(islice(filled, row + 1, None))}"


def shares(votes: np.ndarray, mode: Mode, classes: int) -> np.ndarray:
    """Targets by FER+'s rules, float64 N×classes. A row sums to 1, or to 0 if the mode leaves the
    face out.

    A single vote for an emotion counts as none. The modes keep these emotions of a face:

    majority: the one with over half of the votes.
    probability, crossentropy: those with the most votes, until there are three of them or they
    have three quarters of the votes, and none with fewer votes than `unknown` or `no face`.
    multi: those with at least 30 % of the votes each, all with the same share.

    A face is left out if what is kept does not have over half of the votes; in `multi`, `unknown`
    and `no face` may be kept too. It is also left out if the most votes go to something that is not
    among the classes, such as contempt with 7 classes.
    """
    votes = np.where(votes > 1, votes, 0)
    total = votes.sum(1, keepdims=True)
    if mode == "majority":
        kept = votes > total / 2
    elif mode == "multi":
        kept = votes >= 0.3 * total
    else:
        kept = most_voted(votes, total)
    kept_votes = votes * kept
    has_majority = kept_votes.sum(1) > total[:, 0] / 2
    is_a_class = kept_votes.argmax(1) < classes
    target = kept_votes[:, :classes] * (has_majority & is_a_class)[:, None]
    if mode == "multi":
        target = np.sign(target)
    return target / target.sum(1, keepdims=True).clip(min=1)


def most_voted(votes: np.ndarray, total: np.ndarray) -> np.ndarray:
    """What `probability` and `crossentropy` keep, bool N×10: `unknown` and `no face` only if no
    emotion is kept.
    """
    # [face, emotion, other]: the other has more votes.
    ahead = votes[:, None, :] > votes[:, :, None]
    votes_ahead = (ahead * votes[:, None, :]).sum(2)
    kept = (votes_ahead < 0.75 * total) & (ahead.sum(2) < 3)
    unknown_or_no_face = votes[:, 8:].max(1, keepdims=True)
    kept[:, :8] &= votes[:, :8] >= unknown_or_no_face
    kept[:, 8:] &= ~kept[:, :8].any(1, keepdims=True)
    return kept
