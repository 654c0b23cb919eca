"""Faces in .npz files of NumPy and in parquet files as the Hugging Face hub has them."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer import FACE_SIZE, UserError, extra
from fer.data.readers.cache import available_memory
from fer.data.readers.file_types import mistaken, named
from fer.data.readers.names import plain_label
from fer.data.readers.pictures import read_all, read_image, resized
from fer.data.readers.table import MAX_LABELS, NO_STRINGS, Table, numbered

IMAGES = ("images", "image", "x", "faces", "data", "pixels")
LABELS = ("labels", "label", "y", "emotion", "emotions", "targets")
GRAY = np.array([299, 587, 114]) / 1000  # of red, green and blue, as Pillow's
MAX_NAMED = 12  # names in a message
BATCH = 256  # rows of a parquet file read at once


def read_npz(path: Path, side: int | None = None) -> dict[str, Table]:
    """The splits of an .npz file: `images` and `labels`, or `x_train`, `y_train`, `x_val`, …"""
    content = path.read_bytes()
    if not content.startswith(b"PK"):
        raise UserError(mistaken(path, "a NumPy archive"))
    digest = hashlib.sha256(content).hexdigest()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if not any(name.endswith(".npy") for name in archive.zip.namelist()):
                raise UserError(f"{path}: is a zip archive without arrays; {named(path, '.zip')}")
            members = {name.lower(): name for name in archive.files}
            if sum(info.file_size for info in archive.zip.infolist()) > available_memory() // 2:
                raise UserError(f"{path}: would not fit into memory; use a part of it")
            splits = {}
            for split, endings in (
                ("train", ("", "_train", "_training")),
                ("validation", ("_val", "_valid", "_validation", "_dev")),
                ("test", ("_test", "_testing")),
            ):
                images = pick(members, IMAGES, endings)
                if images:
                    labels = pick(members, LABELS, endings)
                    given = archive[labels] if labels else None
                    splits[split] = array_table(path, archive[images], given, side, digest)
    except UserError:
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as .npz ({reason}); save it again") from None
    if not splits:
        raise UserError(
            f"{path}: has the arrays {', '.join(members) or 'none'}; it needs images and labels"
        )
    return splits


def pick(members: dict[str, str], words: Sequence[str], endings: Sequence[str]) -> str | None:
    names = [word + ending for ending in endings for word in words]
    return next((members[name] for name in names if name in members), None)


def array_table(
    path: Path, images: np.ndarray, labels: np.ndarray | None, side: int | None, digest: str
) -> Table:
    """The table of arrays: images uint8 N×H×H, also N×1×H×H, N×H×H×1 and N×H×H×3; labels N numbers
    or words.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8:
        raise UserError(
            f"{path}: images are {images.dtype}; write them as uint8, 0 black to 255 white"
        )
    if images.ndim == 4 and images.shape[3] == 3:
        images = np.stack([(image @ GRAY).round().astype(np.uint8) for image in images])
    if images.ndim != 3 or images.shape[1] != images.shape[2] or not len(images):
        raise UserError(f"{path}: images are {images.shape}; they should be N×H×H")
    positions, names = np.full(len(images), -1), NO_STRINGS
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iuUS":
            raise UserError(
                f"{path}: {len(images)} images, but labels are {labels.dtype} {labels.shape}; "
                "they should be one whole number or word an image"
            )
        words = labels.astype(np.str_)
        positions, names = numbered([str(word) for word in words])
    if len(names) > MAX_LABELS:
        raise UserError(f"{path}: has {len(names):,} different labels, too many for classes")
    return Table(
        images=resized(images, side or images.shape[-1]),
        labels=positions,
        names=names,
        first=np.full(len(names), str(path)),
        usage=np.full(len(images), -1),
        hash=np.array(digest),
    ).note_own_side(images.shape[-1])


def read_parquet(paths: Sequence[Path], side: int = FACE_SIZE) -> Table:
    """The rows of parquet files with encoded pictures, as the hub's data sets have them: a column
    of `bytes` (or structs that hold them) and a column of labels, whose names are in the schema.
    """
    with extra("parquet", f"{paths[0]}: parquet files"):
        from pyarrow import parquet
    encoded: list[bytes] = []
    written: list[str | None] = []
    for path in paths:
        with path.open("rb") as stream:
            if stream.read(4) != b"PAR1":
                raise UserError(mistaken(path, "a parquet file"))
        try:
            file = parquet.ParquetFile(path)
            picture, label, names = columns_of(path, file.schema_arrow)
            for batch in file.iter_batches(BATCH, columns=[c for c in (picture, label) if c]):
                rows = batch.to_pydict()
                encoded += [picture_bytes(value) for value in rows[picture]]
                if label:
                    written += [written_label(path, label, value, names) for value in rows[label]]
        except UserError:
            raise
        except Exception as error:  # pyarrow raises a dozen kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: cannot be read as parquet ({reason}); get it again") from None
    labels = [name for name in written if name is not None]
    if 0 < len(labels) < len(written):
        raise UserError(f"{paths[0]}: has rows without a label; remove them")
    if not encoded or (labels and len(labels) != len(encoded)):
        raise UserError(f"{paths[0]}: has no rows, or not all of the files have labels")
    heads = [f"{label}\0".encode() for label in labels] or [b""] * len(encoded)

    sides: list[int] = []

    def read(number: int) -> np.ndarray:
        name = f"{paths[0]}, picture {number + 1}"
        return read_image(io.BytesIO(encoded[number]), side, name, sides)

    images, digest = read_all(len(encoded), read, side, heads)
    positions, found = np.full(len(images), -1), NO_STRINGS
    if labels:
        positions, found = numbered(labels)
    return Table(
        images=images,
        labels=positions,
        names=found,
        first=np.full(len(found), str(paths[0])),
        usage=np.full(len(images), -1),
        hash=np.array(digest),
        enlarged=np.array(sum(own_side < side for own_side in sides)),
    )


def written_label(path: Path, column: str, value: Any, names: Sequence[str]) -> str | None:
    """A label as its name; None where there is none, for which the hub writes -1."""
    if value is None or (names and value == -1):
        return None
    if not names:
        return plain_label(str(value))
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(
            f"{path}: {column} {value} is not one of its {len(names)} names, "
            f"{', '.join(names[:MAX_NAMED])}; correct the file"
        )
    return names[value]


def columns_of(path: Path, schema: Any) -> tuple[str, str | None, list[str]]:
    """The column of pictures, the column of labels if there is one, and the labels' names."""
    kinds = {field.name: str(field.type) for field in schema}
    picture = next((name for name, kind in kinds.items() if "binary" in kind), None)
    if picture is None:
        raise UserError(
            f"{path}: has the columns {', '.join(kinds)}, none of them pictures; it needs one of "
            "encoded pictures (PNG, JPEG)"
        )
    label = next((name for name in kinds if name.lower() in LABELS), None)
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names", []) if isinstance(feature, dict) else []
    if isinstance(names, dict):  # older data sets: {"0": "angry", …}
        names = [names[str(number)] for number in range(len(names))]
    return picture, label, names


def picture_bytes(value: Any) -> bytes:
    return (value.get("bytes") if isinstance(value, dict) else value) or b""
