"""Folders of pictures: one folder a class, or pictures without labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fer import UserError
from fer.data.readers.cache import cached
from fer.data.readers.classes import in_order
from fer.data.readers.names import composed, emotion, entries, printable, subfolders
from fer.data.readers.pictures import image_files, pictures_below, read_all, read_image
from fer.data.readers.table import NO_STRINGS, Table

DEPTH = 3  # folders below a class folder in which its pictures are looked for
MOST_NAMED = 8  # entries of a folder in a message


def read_folder(path: Path, side: int = 48) -> Table:
    """Pictures in folders named after their classes, of any kind and size; by file name over all
    folders, so that no stretch of rows is of one class. A class folder may hold folders instead, as
    one of each person. Pictures that lie in `path` itself, without class folders, have no labels.
    """
    folders = subfolders(path)
    if not folders:
        return read_pictures(path, image_files(path), None, NO_STRINGS, side)
    # Empty folders too: their classes are known, and fer train says that it has no face of them.
    named = {folder.name: class_of(folder) for folder in folders}
    order = {name: number for number, name in enumerate(in_order({*named.values()}))}
    pictures = []
    for folder in folders:
        label = order[named[folder.name]]
        pictures += [(file.name, label, file) for file in class_pictures(folder)]
    refuse_parts(path, folders)
    if not pictures:
        raise UserError(
            f"{path}: no pictures in its folders {listing(folders)}; put one folder of pictures "
            "for each class there"
        )
    files = [file for _, _, file in sorted(pictures)]
    labels = [file.relative_to(path).parts[0] for file in files]
    return read_pictures(path, files, labels, [*named], side)


def class_pictures(folder: Path) -> list[Path]:
    """The pictures in a class folder or, if it has none, in the folders in it."""
    return image_files(folder) or pictures_below(folder, DEPTH)


def refuse_parts(path: Path, folders: Sequence[Path]) -> None:
    """Refuse folders that are not classes: those that hold class folders, and YOLO's."""
    if {"images", "labels"} <= {folder.name.lower() for folder in folders}:
        raise UserError(
            f"{path}: images/ and labels/ are not classes; put the pictures into folders "
            f"{path}/<class>/, or write a table file,label"
        )
    for folder in folders:
        classes = [inner for inner in subfolders(folder) if emotion(inner.name)]
        if classes and not emotion(folder.name) and not image_files(folder):
            raise UserError(
                f"{path}: {printable(folder.name)}/ is not a class but holds class folders, such "
                f"as {classes[0].name}/; put all pictures into {path}/<class>/"
            )


def class_of(folder: Path) -> str:
    return emotion(folder.name) or composed(folder.name)


def read_pictures(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[str] | None,
    names: Sequence[str] | np.ndarray,
    side: int,
    first: dict[str, str] | None = None,
) -> Table:
    """The table of some pictures below `root`.

    labels: of each picture; None: they have none. names: all the labels that there are. first:
    the first place of each; None: in the folder of that name.
    """
    if not files:
        raise UserError(f"{root}: no pictures there, only {listing(entries(root)) or 'nothing'}")
    heads = []
    for number, file in enumerate(files):
        label = "" if labels is None else emotion(labels[number]) or labels[number]
        heads.append(f"{label}/{file.name}\0".encode("utf-8", "surrogateescape"))
    sides: list[int] = []
    images, digest = read_all(
        len(files), lambda i: read_image(files[i], side, sides=sides), side, heads
    )
    names = sorted(names)
    position = {name: number for number, name in enumerate(names)}
    positions = [-1 if labels is None else position[labels[i]] for i in range(len(files))]
    first = first or {name: str(root / name) for name in names}
    ids = [printable(file.relative_to(root).as_posix()) for file in files]
    return Table(
        images=images,
        labels=np.array(positions, dtype=np.int64),
        names=np.array([printable(name) for name in names], dtype=np.str_),
        first=np.array([printable(first[name]) for name in names], dtype=np.str_),
        usage=np.full(len(files), -1),
        ids=np.array(ids, dtype=np.str_),
        hash=np.array(digest),
        enlarged=np.array(sum(own_side < side for own_side in sides)),
    )


def listing(found: Sequence[Path]) -> str:
    """The names of some entries of a folder, folders with a slash."""
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in found[:MOST_NAMED]]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return printable(", ".join(names)) + more


def cached_folder(path: Path, side: int, beside: Path) -> Table:
    """read_folder(), with its cache in the folder `beside`."""
    folders = subfolders(path) or [path]
    files = [file for folder in folders for file in class_pictures(folder)]
    # The folders too, by name: an empty one is a class.
    how = f"pictures {side} {[folder.name for folder in folders]!r}"
    return cached(path, files, how, lambda: read_folder(path, side), beside)
