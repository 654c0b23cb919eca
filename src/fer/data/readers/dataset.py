"""The target of data=fer2013: sources in, Data with classes and splits out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from fer import FilePath, Normalization, UserError
from fer.data.faces import Data, Faces
from fer.data.readers import classes as class_rules
from fer.data.readers.cache import take_rows
from fer.data.readers.classes import Meaning, Wishes, listed
from fer.data.readers.csv_faces import USAGES
from fer.data.readers.pictures import resized
from fer.data.readers.sources import Source, Wanted, find
from fer.data.readers.splits import groups_of, held_out
from fer.data.readers.table import Table
from fer.text import percent

# Positions of train.usage, and what is held out where none of them validates.
SPLIT_NAMES = ("train", "public", "private", "validation")
MOST_UNREAD = 4  # folders in a message
MOST_UNUSED = 2  # tables in a message
HELD_OUT = "held out"  # what validates where it is a part of the training faces
Name = Annotated[str, MinLen(1), MaxLen(100)]
Names = Annotated[list[Name], MinLen(1), MaxLen(1000)]


def fer2013(
    path: FilePath,
    limit: Annotated[int, Ge(1)] | None,
    split: Literal["auto", "usage", "fraction", "from_index", "none"],
    fraction: Annotated[float, Gt(0), Lt(1)],
    from_index: Annotated[int, Ge(1)],
    validation: Literal["auto", "test"],
    seed: Annotated[int, Ge(0)],
    normalize: Normalization,
    classes: Names | None = None,
    names: Names | dict[str | int, Name] | None = None,
    merge: dict[Name, Names] | None = None,
    groups: Annotated[str, MinLen(1), MaxLen(200)] | None = None,
    size: Annotated[int, Ge(8), Le(512)] | None = None,
) -> Data:
    """The data set at `path`, in any form; configs/data/fer2013.yaml explains the arguments."""
    source = find(path, Wanted(size, groups))
    meanings: list[str] | dict[str, str] | None
    if isinstance(names, dict):
        meanings = {class_rules.plain(str(number)): name for number, name in names.items()}
    else:
        meanings = names
    wishes = Wishes(classes, meanings, merge)
    tables = source.parts
    meaning = class_rules.resolve(list(tables.values()), wishes, source.known_numbers)
    class_names = meaning.classes
    parts = {
        name: LabeledTable(table, meaning.labels(table), limit, source.pictures)
        for name, table in tables.items()
    }
    resize_to_training_side(parts)
    left_out = left_out_in_words(meaning, parts)
    if left_out and all((part.labels == -2).all() for part in parts.values()):
        raise UserError(
            f"data.path={path}: {left_out}, which leaves none; choose other data.classes, or "
            "rename classes with data.merge="
        )
    notes = [note for table in tables.values() for note in table.notes.tolist()]
    passed_over = [*dict.fromkeys(notes), *source.unread]
    not_read = f"not read: {listed(passed_over, MOST_UNREAD)}" if passed_over else ""
    about = {
        "classes": class_names,
        "sample": source.sample,
        "left_out": source.left_out,
        "unused": "; ".join(source.unused[:MOST_UNUSED]),
        "not_read": not_read,
        "left_out_classes": left_out,
        "enlarged": enlarged_in_words(size, list(tables.values())),
    }
    whole = split == "none" and set(parts) == {"train"}
    if whole and not parts["train"].by_usage:
        return one_split_data("all", parts["train"], normalize, about)
    if "train" not in parts:
        if len(parts) == 1:
            name, part = next(iter(parts.items()))
            return one_split_data(name, part, normalize, about)
        raise UserError(f"data.path={path}: has no faces to train on, only {', '.join(parts)}")

    train = parts["train"]
    if (train.labels == -1).any():
        raise UserError(
            f"data.path={path}: the faces to train on have no labels; {labels_remedy(source)}"
        )
    if split == "usage" and not train.by_usage and "validation" not in parts:
        raise UserError(f"data.split=usage: {path} has no Usage column; use data.split=fraction")
    validating = choose_validating(path, source, parts, split, validation)
    if validating == "validation" and (parts["validation"].labels == -1).any():
        place = source.places["validation"]
        raise UserError(
            f"data.path={path}: the faces to validate on, {place}, have no labels; label or "
            "remove them, or hold out training faces with data.split=fraction"
        )
    split_of_row = np.where(train.labels >= 0, train.table.usage.clip(0), -1)
    if validating == HELD_OUT:
        candidates = np.flatnonzero(split_of_row == 0)
        group = groups_in(train.table, source, groups)
        chosen = held_out(
            train.labels[candidates],
            split,
            fraction,
            from_index,
            seed,
            None if group is None else group[candidates],
        )
        split_of_row[candidates[chosen]] = SPLIT_NAMES.index("validation")
    if 0 not in split_of_row and split != "none":
        raise UserError(
            f"data.path={path}: no rows are left to train on; it needs Training rows or a lower "
            "data.fraction"
        )
    splits = cut_splits(parts, split_of_row, validating)
    unused = ""
    if groups is not None and validating not in ("", HELD_OUT):
        unused = "data.groups has no effect, since no faces are held out"
    if validating == HELD_OUT:
        validating = "validation"
    sealed = sealed_splits(splits, validating)
    words = description_of(
        source, splits, sealed, validating, split, fraction, class_names, left_out
    )
    description = "; ".join(filter(None, (words, not_read, unused)))
    return Data(splits, normalize, sealed, hash_of(parts), description=description, **about)  # type: ignore[arg-type]


@dataclass
class LabeledTable:
    """A table with the class of each row: -1 without a label, -2 where the class is left out.

    limit: N keeps the first N faces of each split; with `spread` as evenly over the classes as they
    go.
    """

    table: Table
    labels: np.ndarray
    limit: int | None
    spread: bool
    ids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.ids = self.table.ids

    @property
    def by_usage(self) -> bool:
        return bool((self.table.usage >= 0).all())

    def cut(self, rows: np.ndarray | None = None) -> Faces:
        """The faces in `rows`, or all whose classes are kept."""
        if rows is None:
            rows = np.flatnonzero(self.labels > -2)
        labels = self.labels[rows]
        rank = np.arange(len(rows))
        if self.spread:
            rank = pd.Series(labels).groupby(labels).cumcount().to_numpy()
        kept = np.sort(np.argsort(rank, kind="stable")[: self.limit])
        ids = self.ids[rows] if self.ids.size else np.arange(len(rows)).astype(str)
        images = torch.from_numpy(take_rows(self.table.images, rows[kept]))
        return Faces(images[:, None], torch.from_numpy(labels[kept]), ids[kept].tolist())


def cut_splits(
    parts: dict[str, LabeledTable], split_of_row: np.ndarray, validating: str
) -> dict[str, Faces]:
    """The faces of each split, `train` and `validation` first. The split that validates is listed
    under its own name too.

    split_of_row: positions in SPLIT_NAMES for the rows of the part `train`, -1 for rows left out.
    """
    splits = {
        SPLIT_NAMES[number]: parts["train"].cut(np.flatnonzero(split_of_row == number))
        for number in np.unique(split_of_row[split_of_row >= 0])
    }
    if "validation" in parts:
        name = "val" if validating == HELD_OUT else "validation"
        splits[name] = parts["validation"].cut()
    if "test" in parts:
        splits["test"] = parts["test"].cut()
    validation = splits.get("validation" if validating == HELD_OUT else validating)
    first = {"train": splits.get("train"), "validation": validation}
    return {name: faces for name, faces in first.items() if faces is not None} | splits


def sealed_splits(splits: dict[str, Faces], validating: str) -> frozenset[str]:
    """The splits that may hold PrivateTest; a test split without labels cannot."""
    may_be_sealed = {"private", "test"} & {*splits} - {validating}
    return frozenset(name for name in may_be_sealed if splits[name].labeled)


def resize_to_training_side(parts: dict[str, LabeledTable]) -> None:
    """Resize the parts to the side of the training faces."""
    sides = {part.table.side for part in parts.values()}
    if len(sides) > 1:
        side = next(iter(parts.values())).table.side
        for part in parts.values():
            part.table.images = resized(part.table.images, side)


def one_split_data(name: str, part: LabeledTable, normalize: Normalization, about: dict) -> Data:
    """Data of one split, used whole. Nothing in it can be trained on; with labels it may hold
    PrivateTest.
    """
    faces = part.cut()
    sealed = frozenset({name} if faces.labeled else ())
    return Data({name: faces}, normalize, sealed, str(part.table.hash), **about)


def labels_remedy(source: Source) -> str:
    """What to do about training faces without labels."""
    if source.unused:
        return "; ".join(source.unused[:MOST_UNUSED])
    if source.pictures:
        return (
            f"put the pictures in {source.places['train']} into a folder for each class, or a "
            "table file,label beside them"
        )
    return "a column emotion or label is needed"


def choose_validating(
    path: str, source: Source, parts: dict[str, LabeledTable], split: str, validation: str
) -> str:
    """The name of the split that validates; HELD_OUT for a part of the training faces, empty where
    data.split=none and there is none.
    """
    by_usage = 1 in parts["train"].table.usage
    if validation == "test" and split != "none":
        if not source.pictures or "test" not in parts:
            raise UserError(
                f"data.validation=test: {path} is not an image folder with a test/; use data.split "
                "instead"
            )
        if (parts["test"].labels == -1).any():
            raise UserError(
                f"data.validation=test: the pictures in {path}/test have no labels; use data.split "
                "instead"
            )
        return "test"
    if split in ("auto", "usage", "none"):
        if by_usage:
            return "public"
        if "validation" in parts:
            return "validation"
        if split == "none":
            return ""
    if split == "usage":
        raise UserError(f"data.split=usage: {path} has no PublicTest rows; use data.split=fraction")
    return HELD_OUT


def groups_in(table: Table, source: Source, groups: str | None) -> np.ndarray | None:
    """The group of each row; None where none are asked for."""
    if groups is None:
        return None
    if table.groups.size:
        return table.groups
    if not source.pictures:
        raise UserError(
            f"data.groups={groups}: {source.places['train']} has no such column; name one"
        )
    return groups_of(table.ids.tolist(), groups)


def enlarged_in_words(size: int | None, tables: Sequence[Table]) -> str:
    """A warning that data.size enlarges most faces; empty if it does not."""
    enlarged, count = sum(int(table.enlarged) for table in tables), sum(map(len, tables))
    if size is None or enlarged <= count / 2:
        return ""
    which = "all" if enlarged == count else f"{enlarged:,} of {count:,}"
    return (
        f"data.size={size}: {which} faces are smaller and are enlarged, which takes time and adds "
        "no detail"
    )


def left_out_in_words(meaning: Meaning, parts: dict[str, LabeledTable]) -> str:
    """How many faces, of which classes, data.classes leaves out; empty if none."""
    count, labels = 0, set()
    for part in parts.values():
        rows = part.labels == -2
        count += int(rows.sum())
        labels |= {*part.table.names[np.unique(part.table.labels[rows])].tolist()}
    if not count:
        return ""
    names = sorted({meaning.named[label] for label in labels})
    return f"{count:,} faces of other classes left out ({listed(names)})"


def description_of(
    source: Source,
    splits: dict[str, Faces],
    sealed: frozenset[str],
    validating: str,
    split: str,
    fraction: float,
    classes: Sequence[str],
    left_out: str,
) -> str:
    """One line: which files are used for what, and the classes."""
    train = source.places["train"]
    if "public" in splits or "private" in splits:
        named = {"train": USAGES[0], "public": USAGES[1], "private": USAGES[2]}
        words = [f"{train}: {USAGES[0]} trains"]
    else:
        named = dict(source.places)
        named["val"] = named.get("validation", "")
        words = [f"{train} trains"]
    if validating == "validation" and "validation" not in source.parts:
        how = f"{percent(fraction)} of it"
        if split == "from_index":
            how = "the rows from data.from_index on"
        words.append(f"{how} validates")
    elif validating:
        words.append(f"{named.get(validating, validating)} validates")
    for name, faces in splits.items():
        if name in ("train", "validation", validating):
            continue
        state = "stays sealed" if name in sealed else "is not used in training"
        if not faces.labeled:
            state = "has no labels"
        words.append(f"{named.get(name) or source.places.get(name, name)} {state}")
    words += [f"{name} is left out ({why})" for name, why in source.left_out.items()]
    noun = "class" if len(classes) == 1 else "classes"
    sentence = f"{', '.join(words)}; {len(classes)} {noun}: {listed(classes)}"
    return "; ".join(filter(None, (sentence, left_out)))


def hash_of(parts: dict[str, LabeledTable]) -> str:
    """SHA-256 of the data: of the file itself if there is only one."""
    hashes = [
        str(parts[name].table.hash) for name in ("train", "validation", "test") if name in parts
    ]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
