"""FER2013 in every layout that it is handed around in: CSV files and image folders in, Data out.

A source (a CSV file, a folder of images) is parsed once into a Table and cached; splits are cut from Tables. What does
not read as faces is refused with file, line and remedy.
"""

import csv
import hashlib
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from PIL import Image

from fer import CLASSES, UserError
from fer.data.faces import SIZE, Data, Faces

USAGES = ("Training", "PublicTest", "PrivateTest")
COLUMNS = {"label": ("emotion", "label"), "pixels": ("pixels", "feature"), "usage": ("usage",), "id": ("id",)}
OTHER_NAMES = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprised": "surprise",
}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm"}
SOURCE = (
    "fer2013.csv, icml_face_data.csv, train.csv with test.csv, or folders train/<emotion>/; get FER2013 from "
    "kaggle.com (challenges-in-representation-learning-facial-expression-recognition-challenge, or msambare/fer2013), "
    "or try data=demo"
)
BLOCK = 512 << 10  # bytes of a CSV that are parsed together: what fits into the processor's cache
MAX_LINE = 64 << 10  # bytes; a face is 9,300 at the most
MAX_PIXELS = 50_000_000  # of an image, before it is decoded
FORMAT = "1"  # of the cache


@dataclass
class Table:
    """What a source holds. images: uint8 N×48×48. labels: int64 N, -1 where there are none. usage: N numbers into
    USAGES, or empty. ids: N strings, or empty. hash: SHA-256 of the source's bytes."""

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray
    ids: np.ndarray
    hash: np.ndarray


def fer2013(
    path: str,
    limit: Annotated[int, Ge(1)] | None,
    split: Literal["auto", "usage", "fraction", "from_index"],
    fraction: Annotated[float, Gt(0), Lt(1)],
    from_index: Annotated[int, Ge(1)],
    validation: Literal["auto", "test"],
    seed: Annotated[int, Ge(0)],
    normalize: Literal["none", "unit", "dataset", "image"],
) -> Data:
    """The data set at `path`, a folder or a CSV file; configs/data/fer2013.yaml explains the arguments."""
    place = Path(path).expanduser()
    test, shut, folders = None, set(), False
    if place.is_file():
        train = cached(place, place, read_csv)
    elif file := next((place / n for n in ("fer2013.csv", "icml_face_data.csv") if (place / n).is_file()), None):
        train = cached(file, place, read_csv)
    elif (place / "train.csv").is_file():
        train = cached(place / "train.csv", place, read_csv)
        test = cached(place / "test.csv", place, read_csv) if (place / "test.csv").is_file() else None
    elif (place / "train").is_dir():
        folders = True
        train = cached(place / "train", place, read_folder)
        test = cached(place / "test", place, read_folder) if (place / "test").is_dir() else None
    else:
        there = "no such folder" if not place.exists() else "no FER2013 there"
        raise UserError(f"data.path={path}: {there}; looked for {SOURCE}")
    if (train.labels < 0).any():
        raise UserError(f"data.path={path}: the faces to train on have no labels; a column emotion or label is needed")

    splits: dict[str, Faces] = {}
    if split == "usage" and not train.usage.size:
        raise UserError(f"data.split=usage: {path} has no Usage column; use data.split=fraction")
    pool = np.flatnonzero(train.usage == 0) if train.usage.size else np.arange(len(train.images))
    for number, name in ((1, "public"), (2, "private")):
        if (rows := np.flatnonzero(train.usage == number)).size:
            splits[name] = faces(train, rows)
            shut |= {name} & {"private"}
    if test is not None:
        splits["test"] = faces(test, np.arange(len(test.images)))
        shut |= {"test"} if folders and validation != "test" else set()

    if validation == "test":
        if not folders or test is None:
            raise UserError(f"data.validation=test: {path} is no image folder with a test/; use data.split instead")
        splits["validation"] = splits["test"]
    elif split in ("auto", "usage") and "public" in splits:
        splits["validation"] = splits["public"]
    elif split == "usage":
        raise UserError(f"data.split=usage: {path} has no PublicTest rows; use data.split=fraction")
    else:
        held_out = choose(train.labels[pool], split, fraction, from_index, seed)
        splits["validation"] = faces(train, pool[held_out])
        pool = pool[~held_out]
    splits = {"train": faces(train, pool), "validation": splits.pop("validation")} | splits
    if limit:
        kept = {id(f): first(f, limit, spread=folders) for f in splits.values()}
        splits = {name: kept[id(f)] for name, f in splits.items()}
    return Data(splits, normalize, frozenset(shut))


def choose(labels: np.ndarray, split: str, fraction: float, from_index: int, seed: int) -> np.ndarray:
    """Bool per training row: does it validate?"""
    held_out = np.zeros(len(labels), bool)
    if split == "from_index":
        if from_index >= len(labels):
            raise UserError(
                f"data.from_index={from_index}: nothing would validate; there are {len(labels)} rows to train"
            )
        held_out[from_index:] = True
        return held_out
    generator = np.random.default_rng(seed)
    for label in range(len(CLASSES)):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out[rows[: round(fraction * len(rows))]] = True
    if not held_out.any():
        raise UserError(f"data.fraction={fraction}: nothing of {len(labels)} rows would validate; set it higher")
    return held_out


def faces(table: Table, rows: np.ndarray) -> Faces:
    ids = table.ids[rows].tolist() if table.ids.size else [str(i) for i in range(len(rows))]
    whole = len(rows) == len(table.images)
    images = torch.from_numpy(table.images if whole else table.images[rows])
    return Faces(images[:, None], torch.from_numpy(table.labels[rows]), ids)


def first(split: Faces, limit: int, spread: bool) -> Faces:
    """The first `limit` faces; with `spread` as evenly over the classes as they go, in their order."""
    labels = split.labels.numpy()
    rank = np.arange(len(split))
    if spread:
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            rank[rows] = np.arange(len(rows))
    return split.take(np.sort(np.argsort(rank, kind="stable")[:limit]))


def read_csv(path: Path) -> Table:
    """Parse a CSV of faces, in blocks, so that memory holds little more than the faces."""
    digest, parts, where = hashlib.sha256(), [], {}
    with open_file(path) as file, ThreadPoolExecutor(2) as pool:  # numpy and hashlib work outside Python's lock
        number = 1
        for block in blocks(file, path, digest):
            rows, number = split_rows(block, number, path)
            if not where:
                where = read_header(rows.pop(0)[1] if rows else [b""], path)
            if rows:
                parts.append(pool.submit(parse_rows, rows, where, path))
            for part in parts[:-8]:  # so that the reader does not run ahead
                part.result()
    if not parts:
        raise UserError(f"{path}: {'has a header but no rows' if where else 'is empty'}; get the file again")
    columns = [np.concatenate(column) for column in zip(*(part.result() for part in parts), strict=True)]
    return Table(*columns, hash=np.array(digest.hexdigest()))


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def blocks(file: BinaryIO, path: Path, digest) -> Iterator[bytes]:
    """Some whole lines, then some more. A line beyond MAX_LINE comes cut off, for split_rows to refuse."""
    rest = None
    while block := file.read(BLOCK):
        digest.update(block)
        if rest is None:
            if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path}: is UTF-16; save it as UTF-8")
            block, rest = block.removeprefix(b"\xef\xbb\xbf"), b""
        whole, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + whole
            rest = b""
        rest += tail
        if len(rest) > MAX_LINE:
            break
    if rest:
        yield rest


Row = tuple[int, list]  # the line's number, its fields as bytes or views of them


def split_rows(block: bytes, number: int, path: Path) -> tuple[list[Row], int]:
    """The rows of the lines from `number` on, blank ones left out, and the next line's number. Fields are found, not
    copied, where no quotes stand in the block."""
    view, plain, rows, start = memoryview(block), b'"' not in block, [], 0
    while start <= len(block):
        newline = block.find(b"\n", start)
        end = newline if newline >= 0 else len(block)
        if end - start > MAX_LINE:
            raise UserError(f"{path}, line {number}: is over {MAX_LINE} bytes long; a face has 2304 numbers")
        following = end + 1
        if block[end - 1 : end] == b"\r" and end > start:
            end -= 1
        if end - start > 100 or block[start:end].strip():
            fields = []
            while plain and (comma := block.find(b",", start, end)) >= 0:
                fields.append(view[start:comma])
                start = comma + 1
            rows.append((number, [*fields, view[start:end]] if plain else unquote(block[start:end], number, path)))
        number, start = number + 1, following
    return rows, number


def unquote(line: bytes, number: int, path: Path) -> list[bytes]:
    """The fields of a line that may have quotes."""
    try:
        (row,) = csv.reader([line.decode("utf-8", "surrogateescape")], strict=True)
    except (csv.Error, ValueError):
        raise UserError(f"{path}, line {number}: its quotes do not close; mend or remove the line") from None
    return [field.encode("utf-8", "surrogateescape") for field in row]


def text(field) -> str:
    return str(field, "utf-8", "replace").strip()


def read_header(row: list, path: Path) -> dict[str, int]:
    """Role → column, from names in any order, case and white space."""
    names = [text(field).lower() for field in row]
    where = {role: names.index(n) for role, known in COLUMNS.items() for n in known if n in names}
    if "pixels" not in where:
        raise UserError(f"{path}, line 1: no column pixels (or feature) among {', '.join(names)[:80]!r}; name one so")
    return where


def parse_rows(rows: list[Row], where: dict[str, int], path: Path) -> tuple:
    """Images, labels, usage and ids of a block's rows."""
    width = max(where.values()) + 1
    for number, fields in rows:
        if len(fields) < width:
            raise UserError(
                f"{path}, line {number}: has {len(fields)} columns where the header has {width} or more; "
                "mend or remove the line"
            )
    labels, usage, ids = np.full(len(rows), -1), np.empty(0, np.int64), np.empty(0, "U1")
    if "label" in where:
        labels = codes(rows, where["label"], [str(i) for i in range(len(CLASSES))], "a label", path)
    if "usage" in where:
        usage = codes(rows, where["usage"], USAGES, "a Usage", path)
    if "id" in where:
        ids = np.array([text(fields[where["id"]]) for _, fields in rows])
    images = parse_pixels([fields[where["pixels"]] for _, fields in rows])
    if images is None:
        raise UserError(explain(rows, where["pixels"], path))
    return images, labels, usage, ids


def codes(rows: list[Row], column: int, known: Sequence[str], what: str, path: Path) -> np.ndarray:
    """Positions of a column's values among `known`."""
    position = {value: i for i, value in enumerate(known)}
    found = [position.get(text(fields[column]), -1) for _, fields in rows]
    if -1 in found:
        number, fields = rows[found.index(-1)]
        value = text(fields[column])[:20]
        raise UserError(f"{path}, line {number}: {value!r} is not {what} ({', '.join(known)}); mend or remove the line")
    return np.array(found)


def parse_pixels(texts: list[bytes]) -> np.ndarray | None:
    """uint8 N×48×48 from fields of 2304 numbers, None where one is bad: every byte must be a digit or a blank, a run
    of digits is a number of at most three digits, up to 255.

    Each byte is looked at together with the three before it, for all bytes at once; what stands at the last digit of a
    run is the number. 3 times as fast as np.fromstring, and strict.
    """
    data = np.frombuffer(b" ".join([b"  ", *texts, b""]), np.uint8)
    digit = data - 48  # bytes below "0" wrap around to large values
    is_digit = digit < 10
    digit *= is_digit
    pair = is_digit[2:-1] & is_digit[3:]
    hundreds = digit[1:-2] * pair
    low = digit[2:-1] * 10
    low += digit[3:]
    pair &= is_digit[1:-2]
    too_long = pair & is_digit[:-3]
    if hundreds.max() > 2 or too_long.any() or not (is_digit | (data == 32)).all():
        return None
    hundreds *= 100
    low += hundreds
    if (low < hundreds).any():  # 256 and more wrap around
        return None
    last = is_digit[3:-1] > is_digit[4:]
    ends = np.cumsum([len(text) + 1 for text in texts])
    if any(
        np.count_nonzero(last[end - len(text) - 1 : end]) != SIZE * SIZE for text, end in zip(texts, ends, strict=True)
    ):
        return None
    return low[:-1][last].reshape(-1, SIZE, SIZE)


def explain(rows: list[Row], column: int, path: Path) -> str:
    """What is wrong with the first bad pixel field, the slow way."""
    for number, fields in rows:
        values = str(fields[column], "utf-8", "replace").split(" ")
        values = [value for value in values if value]
        bad = next((v for v in values if not re.fullmatch("[0-9]{1,3}", v) or int(v) > 255), None)
        if bad is not None:
            return f"{path}, line {number}: {bad[:20]!r} is not a gray value from 0 to 255; mend or remove the line"
        if len(values) != SIZE * SIZE:
            return f"{path}, line {number}: has {len(values)} pixels, not 2304 (48×48); mend or remove the line"
    raise AssertionError("a refused block has a bad row")


def read_folder(path: Path) -> Table:
    """Images in folders named after their emotions, gray or colour, of any size."""
    digest, images, labels = hashlib.sha256(), [], []
    for folder in sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")):
        name = re.sub(r"^[0-6][\W_]+(?=\w)", "", folder.name.strip().lower())
        name = OTHER_NAMES.get(name, CLASSES[int(name)] if re.fullmatch("[0-6]", name) else name)
        if name not in CLASSES:
            raise UserError(f"{folder}: no emotion has this name; the folders are {', '.join(CLASSES)}")
        for file in image_files(folder):
            images.append(read_image(file))
            labels.append(CLASSES.index(name))
            digest.update(f"{name}/{file.name}\0".encode() + images[-1].tobytes())
    if not images:
        raise UserError(f"{path}: no images in folders {', '.join(CLASSES)}; put them there")
    none = np.empty(0, np.int64)
    return Table(np.stack(images), np.array(labels), none, np.empty(0, "U1"), np.array(digest.hexdigest()))


def image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def read_image(file: Path) -> np.ndarray:
    """uint8 48×48: the first frame, gray, resized."""
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{file}: has {image.width}×{image.height} pixels; make it smaller or remove it")
            if image.mode.startswith(("I", "F")):  # 16 bits and more: PIL would clip, not scale
                values = np.asarray(image, dtype=np.float64)
                if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                    raise UserError(f"{file}: pixels of mode {image.mode}; save it with 8 or 16 bits")
                image = Image.fromarray((values / 257).round().astype(np.uint8))
            gray = image.convert("L")
            return np.asarray(
                gray if gray.size == (SIZE, SIZE) else gray.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            )
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, zipfile.BadZipFile):
        raise UserError(f"{file}: not a readable image; replace or remove it") from None


def cached(source: Path, folder: Path, parse: Callable[[Path], Table]) -> Table:
    """parse(source), or what a former call left in a cache that knows the source's path, size and modification time.

    The cache lies in .fer-cache beside the data, or in the user's own cache folder where that cannot be written.
    """
    key = f"{FORMAT} {source.absolute()} {stamp(source)}"
    name = f"{source.name}-{hashlib.sha256(str(source.absolute()).encode()).hexdigest()[:12]}.npz"
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fer"
    places = [(folder if folder.is_dir() else folder.parent) / ".fer-cache", own]
    for place in places:
        try:
            with np.load(place / name, allow_pickle=False) as arrays:
                if str(arrays["key"]) == key:
                    return Table(**{name: arrays[name] for name in Table.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    table = parse(source)
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=place, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, key=np.array(key), **vars(table))
                Path(temporary).replace(place / name)
            finally:
                Path(temporary).unlink(missing_ok=True)
            break
        except OSError:
            continue
    return table


def stamp(source: Path) -> str:
    """Size and modification time of a file, or a digest of those of all images below a folder."""
    if source.is_file():
        stat = source.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.sha256()
    for folder in sorted(f for f in source.iterdir() if f.is_dir()):
        for file in image_files(folder):
            stat = file.stat()
            digest.update(f"{folder.name}/{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
