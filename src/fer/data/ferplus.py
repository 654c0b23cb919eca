"""FER+ (Barsoum et al. 2016, arXiv:1608.01041): FER2013's faces with the votes of ten people each,
which stand in fer2013new.csv, row by row as the pixels. The pixels are the readers' matter, what is
learned from the votes train's.
"""

import hashlib
from dataclasses import replace
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
from fer.data.readers.dataset import Part
from fer.data.readers.sources import Wanted, find

EMOTIONS = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "sadness",
    "surprise",
    "neutral",
    "contempt",
)  # as class_names(8)
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
    """The pixels at `path` with the votes in the file `votes`; configs/data/ferplus.yaml explains
    the arguments.
    """
    source = find(path, Wanted(FACE_SIZE))
    table = source.parts.get("train")
    if table is None or (table.usage < 0).any():
        raise UserError(
            f"data.path={path}: FER+ goes with fer2013.csv and its column Usage; name that file, "
            "or take data=fer2013"
        )
    wishes = Wishes(classes=class_names(classes))
    labels = class_rules.resolve([table], wishes, source.known_numbers).labels(table)
    if score == "original" and (labels < 0).any():
        raise UserError(
            f"data.score=original: {path} has faces without a label of their own; take "
            "data.score=majority"
        )
    place = Path(path).expanduser()
    file = (
        Path(votes).expanduser()
        if votes
        else (place.parent if place.is_file() else place) / "fer2013new.csv"
    )
    counts = read_votes(file, table.usage)
    to_train = shares(counts, mode, classes)
    scored = shares(counts, "majority", classes) if score == "majority" else np.eye(classes)[labels]
    part, splits = Part(table, labels, None, spread=False), {}
    for number, name, targets in (
        (0, "train", to_train),
        (1, "validation", scored),
        (2, "private", scored),
    ):
        rows = np.flatnonzero((table.usage == number) & (targets.sum(1) > 0))[:limit]
        if rows.size:
            likeliest = (targets * (1 + counts[:, :classes]))[rows].argmax(
                1
            )  # of equal targets by the votes
            own = torch.from_numpy(targets[rows]).float()
            splits[name] = replace(part.cut(rows), labels=torch.from_numpy(likeliest), targets=own)
        elif name != "private":
            raise UserError(
                f"data.path={path}: FER+ keeps none of its {USAGES[number]} rows, and some are "
                "needed"
            )
    splits["public"] = splits["validation"]
    content = hashlib.sha256(str(table.hash).encode() + file.read_bytes()).hexdigest()
    return Data(
        splits, normalize, frozenset({"private"} & {*splits}), content, class_names(classes), mode
    )


def read_votes(path: Path, usage: np.ndarray) -> np.ndarray:
    """Votes, float64 N×10: EMOTIONS, unknown, no face; none at all for images without a name, which
    FER+ removed.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read ({reason}); get fer2013new.csv from {SOURCE}"
        ) from None
    columns = [*EMOTIONS, "unknown", "NF"]
    if missing := [name for name in ("Usage", "Image name", *columns) if name not in table]:
        raise UserError(f"{path}: has no column {missing[0]}; get it again from {SOURCE}")
    if len(table) != len(usage):
        raise UserError(
            f"{path}: has {len(table)} rows for {len(usage)} faces; both files must be of one data "
            "set"
        )
    if (other := np.flatnonzero(table["Usage"].to_numpy() != np.array(USAGES)[usage])).size:
        raise UserError(
            f"{path}, line {other[0] + 2}: is of another Usage than its face; use both files whole"
        )
    counts = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    if (bad := np.flatnonzero(~((counts >= 0) & (counts <= 1000) & (counts % 1 == 0)).all(1))).size:
        raise UserError(
            f"{path}, line {bad[0] + 2}: its votes are no counts; mend or remove the line in both "
            "files"
        )
    return counts * table["Image name"].notna().to_numpy()[:, None]


def shares(votes: np.ndarray, mode: Mode, classes: int) -> np.ndarray:
    """Targets, float64 N×classes that sum to 1, or 0 where the mode keeps no such face, by FER+'s
    rules.

    A single vote for anything counts as none. majority: the emotion with over half of the votes.
    probability and crossentropy: the largest ones until there are three or they have three
    quarters, none with fewer votes than `unknown` or `no face`; together over half. multi: those
    with 30 % each, together over half, `unknown` and `no face` counted. Faces that are first of all
    neither of the classes, such as contempt of 7, are left out.
    """
    votes = np.where(votes > 1, votes, 0)
    total = votes.sum(1, keepdims=True)
    if mode == "majority":
        taken = votes > total / 2
    elif mode == "multi":
        taken = votes >= 0.3 * total
    else:
        ahead = votes[:, None, :] > votes[:, :, None]  # [face, emotion, one with more votes]
        taken = ((ahead * votes[:, None, :]).sum(2) < 0.75 * total) & (ahead.sum(2) < 3)
        taken[:, :8] &= votes[:, :8] >= votes[:, 8:].max(1, keepdims=True)
        taken[:, 8:] &= ~taken[:, :8].any(1, keepdims=True)
    taken = votes * taken
    kept = (taken.sum(1) > total[:, 0] / 2) & (taken.argmax(1) < classes)
    own = taken[:, :classes] * kept[:, None]
    if mode == "multi":
        own = np.sign(own)
    return own / own.sum(1, keepdims=True).clip(min=1)
