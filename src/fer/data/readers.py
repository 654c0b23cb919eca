"""FER2013 in every layout that it is handed around in: CSV files and image folders in, Data out.

A source (a CSV file, a folder of images) is parsed once into a Table and cached; splits are cut from Tables. What does
not read as faces is refused with file, line and remedy. Knows nothing of configs, devices or FER+'s votes.
"""

import codecs
import contextlib
import csv
import hashlib
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt, Lt
from PIL import Image

from fer import CLASSES, Normalization, UserError
from fer.data.faces import SIZE, Data, Faces, stratified

USAGES = ("Training", "PublicTest", "PrivateTest")
SPLITS = ("train", "public", "private", "validation")  # of USAGES, and what is held out where none of them validates
DIGITS = tuple(map(str, range(len(CLASSES))))
COLUMNS = {"label": ("emotion", "label"), "pixels": ("pixels", "feature"), "usage": ("usage",), "id": ("id",)}
OTHER_NAMES = ("anger", "disgusted", "fearful", "happiness", "sadness", "surprised")  # of CLASSES
LABELS = {name: label for names in (CLASSES, OTHER_NAMES, DIGITS) for label, name in enumerate(names)}  # of folders
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # by content; EPS, for one, would start Ghostscript
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm"}
LAYOUTS = (("", ""), ("fer2013.csv", ""), ("icml_face_data.csv", ""), ("train.csv", "test.csv"), ("train", "test"))
SOURCE = (
    "fer2013.csv, icml_face_data.csv, train.csv with test.csv, or folders train/<emotion>/; get FER2013 from "
    "kaggle.com (challenges-in-representation-learning-facial-expression-recognition-challenge, or msambare/fer2013), "
    "or try data=demo"
)
BLOCK = 64  # rows parsed together, half a megabyte
MAX_LINE = 64 << 10  # bytes; a face is 9,300 at the most
MAX_ID = 200  # characters; numpy gives every id the room of the longest
MAX_PIXELS = 50_000_000  # of an image, before it is decoded
MEMORY = 0.7  # bytes that a byte of a CSV takes while it is read, measured on 286 MB of faces
FORMAT = "3"  # of the cache


@dataclass
class Table:
    """What a source holds. images: uint8 N×48×48. labels, usage: int64 N, classes and positions in USAGES, -1 where
    there are none. ids: N strings, or empty. hash: SHA-256 of the source's bytes."""

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray
    ids: np.ndarray
    hash: np.ndarray

    def cut(self, rows: np.ndarray, limit: int | None = None, spread: bool = False) -> Faces:
        """The faces in `rows`, or the first `limit` of them; with `spread` as evenly over the classes as they go."""
        labels = self.labels[rows]
        rank = pd.Series(labels).groupby(labels).cumcount() if spread else np.arange(len(rows))
        kept = np.sort(np.argsort(rank, kind="stable")[:limit])
        ids = self.ids[rows] if self.ids.size else np.arange(len(rows)).astype(str)
        images = torch.from_numpy(self.images[rows[kept]])
        return Faces(images[:, None], torch.from_numpy(labels[kept]), ids[kept].tolist())


def fer2013(
    path: str,
    limit: Annotated[int, Ge(1)] | None,
    split: Literal["auto", "usage", "fraction", "from_index"],
    fraction: Annotated[float, Gt(0), Lt(1)],
    from_index: Annotated[int, Ge(1)],
    validation: Literal["auto", "test"],
    seed: Annotated[int, Ge(0)],
    normalize: Normalization,
) -> Data:
    """The data set at `path`, a folder or a CSV file; configs/data/fer2013.yaml explains the arguments."""
    train, test, folders = find(path)
    if (train.labels < 0).any():
        raise UserError(f"data.path={path}: the faces to train on have no labels; a column emotion or label is needed")
    if split == "usage" and (train.usage < 0).any():
        raise UserError(f"data.split=usage: {path} has no Usage column; use data.split=fraction")
    part = train.usage.clip(0)  # position in SPLITS of each row's own
    if validation == "test":
        if not folders or test is None:
            raise UserError(f"data.validation=test: {path} is no image folder with a test/; use data.split instead")
        judge = "test"
    elif split in ("auto", "usage") and 1 in part:
        judge = "public"
    elif split == "usage":
        raise UserError(f"data.split=usage: {path} has no PublicTest rows; use data.split=fraction")
    else:
        judge, pool = "validation", np.flatnonzero(part == 0)
        part[pool[choose(train.labels[pool], split, fraction, from_index, seed)]] = 3
    if 0 not in part:
        raise UserError(
            f"data.path={path}: no rows are left to train on; it needs Training rows or a lower data.fraction"
        )
    splits = {SPLITS[n]: train.cut(np.flatnonzero(part == n), limit, spread=folders) for n in np.unique(part)}
    content = str(train.hash)
    if test is not None:
        splits["test"] = test.cut(np.arange(len(test.images)), limit, spread=folders)
        content = hashlib.sha256(f"{train.hash}{test.hash}".encode()).hexdigest()
    splits = {"train": splits["train"], "validation": splits[judge]} | splits
    doubtful = {"private", "test"} & {*splits} - {judge}  # a test split with labels may hold PrivateTest
    return Data(splits, normalize, frozenset(name for name in doubtful if splits[name].labelled), content)


def find(path: str) -> tuple[Table, Table | None, bool]:
    """The faces to train on, those of a test file or folder, and whether they are image folders."""
    place = Path(os.path.expanduser(path))  # noqa: PTH111, Path's own raises at a ~ of nobody
    try:
        for train, test in LAYOUTS:
            there = Path.is_dir if train == "train" else Path.is_file
            if there(place / train):
                other = cached(place / test) if test and there(place / test) else None
                return cached(place / train), other, train == "train"
        looked = "no FER2013 there" if place.exists() else "no such folder"
    except OSError as error:  # permissions, a path too long, a link to nowhere, a failing disk
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror}); check data.path") from None
    raise UserError(f"data.path={path}: {looked}; looked for {SOURCE}")


def choose(labels: np.ndarray, split: str, fraction: float, from_index: int, seed: int) -> np.ndarray:
    """Bool per training row: does it validate?"""
    count = len(labels)
    if split == "from_index":
        if from_index >= count:
            raise UserError(f"data.from_index={from_index}: nothing would validate; there are {count} rows to train")
        return np.arange(count) >= from_index
    held_out = stratified(labels, fraction, seed)
    if not held_out.any():
        raise UserError(f"data.fraction={fraction}: nothing of {count} rows would validate; set it higher")
    return held_out


Line = tuple[str, bytes]  # the file and the line's number, in words, and the line


def read_csv(path: Path) -> Table:
    """Parse a CSV of faces, in blocks, so that memory holds little more than the faces."""
    size, memory = path.stat().st_size, available_memory()
    if MEMORY * size > memory:
        raise UserError(
            f"{path}: is {size / 1e9:.1f} GB large and would take {MEMORY * size / 1e9:.1f} GB of memory, where "
            f"{memory / 1e9:.1f} GB are free; take a part of the file or a larger machine"
        )
    digest, parts = hashlib.sha256(), []
    with BufferedReader(FileIO(path), 1 << 19) as file, ThreadPoolExecutor(2) as pool:
        lines = filled_lines(file, path, digest)
        header = [read_header(*line) for line in islice(lines, 1)]
        while block := list(islice(lines, BLOCK)):
            parts.append(pool.submit(parse, block, *header))  # numpy works outside Python's lock
            if len(parts) > 8:
                parts[-9].result()  # so that the reader does not run ahead
    if not parts:
        raise UserError(f"{path}: {'has a header but no rows' if header else 'is empty'}; get the file again")
    images, labels, usage, ids = map(np.concatenate, zip(*(part.result() for part in parts), strict=True))
    return Table(images, labels, usage, ids, np.array(digest.hexdigest()))


def available_memory() -> int:
    """Bytes to be had before the machine swaps or a container's limit ends the process."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63]
    for file, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s+(\d+)", 1024),
        ("/sys/fs/cgroup/memory.max", r"(\d+)", 1),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"(\d+)", 1),
    ):
        with contextlib.suppress(OSError):  # not there: no limit
            found += [int(number) * unit for number in re.findall(pattern, Path(file).read_text())]
    return min(found)


def filled_lines(file: "BufferedReader[FileIO]", path: Path, digest) -> Iterator[Line]:
    """The lines that are not blank, none read much beyond MAX_LINE; all that is read goes through the digest too."""
    if file.peek().startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16; save it as UTF-8")
    if file.peek().startswith(codecs.BOM_UTF8):
        digest.update(file.read(len(codecs.BOM_UTF8)))
    number, bounded = 0, iter(partial(file.readline, MAX_LINE + 2), b"")  # with its end
    while block := list(islice(bounded, BLOCK)):
        for line in block:
            number += 1
            line = line.removesuffix(b"\n")
            if len(line) > MAX_LINE:
                raise UserError(f"{path}, line {number}: is over {MAX_LINE} bytes long; a face has 2304 numbers")
            if line.strip():
                yield f"{path}, line {number}", line.removesuffix(b"\r")
        digest.update(b"".join(block))  # line by line, it would wait for Python's lock: 1.3 times as long


def fields_of(place: str, line: bytes) -> list[str]:
    text = line.decode("utf-8", "replace")
    try:
        (fields,) = csv.reader([text], strict=True) if '"' in text else [text.split(",")]  # which is faster
    except (csv.Error, ValueError):
        raise UserError(f"{place}: its quotes do not close; mend or remove the line") from None
    return fields


def read_header(place: str, line: bytes) -> list[str]:
    """Each column's role, "" where it has none, from names in any order, case and white space."""
    names = [field.strip().lower() for field in fields_of(place, line)]
    roles = [next((role for role, known in COLUMNS.items() if name in known), "") for name in names]
    for role, known in COLUMNS.items():
        if roles.count(role) > 1:
            raise UserError(f"{place}: {roles.count(role)} columns named {' or '.join(known)}; keep one")
    if "pixels" not in roles:
        raise UserError(f"{place}: no column pixels (or feature) among {', '.join(names)[:80]!r}; name one so")
    return roles


def parse(lines: list[Line], roles: list[str]) -> tuple[np.ndarray, ...]:
    """Images, labels, usage and ids of some lines."""
    places, rows = [place for place, _ in lines], [fields_of(*line) for line in lines]
    for place, row in zip(places, rows, strict=True):
        if (width := len(row)) != len(roles):  # more of them: two rows that lost the line end between them
            raise UserError(f"{place}: has {width} columns where the header has {len(roles)}; mend or remove the line")
    columns = dict(zip(roles, zip(*rows, strict=True), strict=True))
    labels = codes(places, columns.get("label", ()), "a label", DIGITS)
    usage = codes(places, columns.get("usage", ()), "a Usage", USAGES)
    ids = [field.strip() for field in columns.get("id", ())]  # `=1+1` too: a submission gives back what it was asked
    for place, name in zip(places, ids, strict=False):
        if len(name) > MAX_ID or "\0" in name:
            raise UserError(f"{place}: {name[:20]!r} … is no id, up to {MAX_ID} characters; mend the line")
    return parse_pixels(places, columns["pixels"]), labels, usage, np.array(ids, dtype=np.str_)


def codes(places: list[str], fields: Sequence[str], what: str, known: tuple[str, ...]) -> np.ndarray:
    """Positions of a column's fields among `known`, -1 where there is no such column."""
    values = [field.strip() for field in fields]
    for place, value in zip(places, values, strict=False):
        if value not in known:
            raise UserError(f"{place}: {value[:20]!r} is not {what} ({', '.join(known)}); mend or remove the line")
    return np.array([known.index(value) for value in values] or [-1] * len(places))


def parse_pixels(places: list[str], fields: Sequence[str]) -> np.ndarray:
    """uint8 N×48×48 from fields of 2304 numbers: every byte must be a digit or a blank, a run of digits is a number of
    at most three digits, up to 255.

    Each byte is looked at together with the three before it, for all bytes at once; what stands at the last digit of a
    run is the number. 2.7 times as fast as np.fromstring row by row, and strict.
    """
    data = np.frombuffer(" ".join(["  ", *fields, ""]).encode(), np.uint8)
    blank, is_digit, digit = data == 32, data - 48 < 10, data & 15  # bytes below "0" wrap around; a blank's digit is 0
    three = is_digit[1:-3] & is_digit[2:-2] & is_digit[3:-1]
    hundreds, low = digit[1:-3] * three, digit[2:-2] * 10 + digit[3:-1]
    numbers = low + hundreds * 100  # 256 and more wrap around
    wrong = (hundreds > 2) | (numbers < low) | (three & is_digit[:-4])
    last = np.flatnonzero(is_digit[3:-1] & blank[4:])
    found = np.searchsorted(last, np.cumsum([len(field) + 1 for field in fields]))  # up to the end of each field
    whole = (found == np.arange(1, len(fields) + 1) * SIZE * SIZE).all()
    if not whole or wrong.any() or np.count_nonzero(is_digit) + np.count_nonzero(blank) < len(data):
        raise UserError(next(filter(None, map(explain, places, fields))))
    return numbers.take(last).reshape(-1, SIZE, SIZE)


def explain(place: str, field: str) -> str:
    """What is wrong with a field of pixels, the slow way; nothing if it is good."""
    values = [value for value in field.split(" ") if value]
    bad = [value for value in values if not re.fullmatch("[0-9]{1,3}", value) or int(value) > 255]
    if bad:
        return f"{place}: {bad[0][:20]!r} is not a gray value from 0 to 255; mend or remove the line"
    good = len(values) == SIZE * SIZE
    return "" if good else f"{place}: has {len(values)} pixels, not 2304 (48×48); mend or remove the line"


def read_folder(path: Path) -> Table:
    """Images in folders named after their emotions, gray or colour, of any size; by file name over all folders, so
    that no stretch of rows is of one class."""
    found = []
    for folder in class_folders(path):
        name = re.sub(r"^[0-6][\W_]+(?=\w)", "", folder.name.strip().lower())
        if name not in LABELS:
            raise UserError(f"{folder}: no emotion has this name; the folders are {', '.join(CLASSES)}")
        found += [(file.name, LABELS[name], file) for file in image_files(folder)]
    if not found:
        raise UserError(f"{path}: no images in folders {', '.join(CLASSES)}; put them there")
    names, labels, files = zip(*sorted(found), strict=True)
    images, digest = np.stack([read_image(file) for file in files]), hashlib.sha256()
    for name, label, image in zip(names, labels, images, strict=True):
        digest.update(f"{CLASSES[label]}/{name}\0".encode("utf-8", "surrogateescape") + image.tobytes())
    no_usage, no_ids = np.full(len(images), -1), np.empty(0, np.str_)
    return Table(images, np.array(labels), no_usage, no_ids, np.array(digest.hexdigest()))


def class_folders(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


@contextlib.contextmanager
def opened(file: Path, too_large: str) -> Iterator[Image.Image]:
    """The image in a file from anyone, of bounded size; within the context whatever its decoder says is a UserError."""
    try:
        if not file.is_file():
            raise OSError  # a pipe would be waited for
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{file}: has {image.width}×{image.height} pixels; {too_large}")
            yield image
    except UserError:
        raise
    except Exception:  # Pillow raises a dozen kinds, for damaged EXIF too
        raise UserError(f"{file}: not a readable image; replace or remove it") from None


def read_image(file: Path) -> np.ndarray:
    """uint8 48×48: the first frame, gray, resized."""
    with opened(file, "make it smaller or remove it") as image:
        if not image.mode.startswith(("I", "F")):
            gray = image.convert("L")
        else:  # 16 bits and more: PIL would clip, not scale
            values = np.asarray(image, dtype=np.float64)
            wide = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")  # 32 bits of unknown range
            if wide or values.min() < 0 or values.max() > 65535:
                raise UserError(f"{file}: pixels of mode {image.mode}; save it with 8 or 16 bits")
            gray = Image.fromarray((values / 257).round().astype(np.uint8))
        return np.asarray(gray.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def clear_abandoned(place: Path) -> None:
    """Remove what killed processes left in a cache folder; another one may be writing for less than an hour."""
    for folder in place.glob("tmp*"):
        with contextlib.suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > 3600:
                shutil.rmtree(folder, ignore_errors=True)


def cached(source: Path) -> Table:
    """The faces of a CSV file or of a folder of images: parsed, or as a former call left them in a cache that knows the
    path, and size and modification time of the file or of every image.

    The cache lies in .fer-cache beside the source, or in the user's own cache folder where that cannot be written.
    """
    if source.is_file():
        parse, files = read_csv, [source]
    else:
        parse, files = read_folder, [file for folder in class_folders(source) for file in image_files(folder)]
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((FORMAT, stats)).encode()).hexdigest()
    name = f"{source.name}-{hashlib.sha256(os.fsencode(source.absolute())).hexdigest()[:12]}.npz"
    places = [source.parent / ".fer-cache"]
    with contextlib.suppress(RuntimeError):  # nobody's home
        places.append(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fer")
    for place in places:  # none there, or damaged: zipfile and tokenize raise a dozen kinds, checksums catch the rest
        if not (place / name).is_file():  # a pipe would be waited for
            continue
        with contextlib.suppress(Exception), np.load(place / name, allow_pickle=False) as arrays:
            # testzip reads each array to its end, which NumPy does not where a flipped bit has made it shorter.
            if str(arrays["key"]) == key and arrays.zip.testzip() is None:
                return Table(**{field: arrays[field] for field in Table.__dataclass_fields__})
    table = parse(source)
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            clear_abandoned(place)
            with tempfile.TemporaryDirectory(dir=place) as scratch:
                np.savez(Path(scratch, name), key=np.array(key), **vars(table))
                Path(scratch, name).replace(place / name)
            break
    return table
