"""A cache of parsed data for later starts, and images that stay on the disk because they do not fit
into memory.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fer.data.readers.table import Table
from fer.files import regular

FORMAT = "5"  # of the cache
ABANDONED = 3600  # seconds after which a folder of an unfinished write belongs to no process
CHUNK = 4096  # faces copied at once


def available_memory() -> int:
    """Bytes available before the machine swaps or a container's limit ends the process."""
    limits = [2**63]
    if hasattr(os, "sysconf"):
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s+(\d+)", 1024),
        ("/sys/fs/cgroup/memory.max", r"(\d+)", 1),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"(\d+)", 1),
    ):
        with contextlib.suppress(OSError):  # not there: no limit
            numbers = re.findall(pattern, Path(file).read_text())
            limits += [int(number) * unit for number in numbers]
    return min(limits)


def largest_in_memory() -> int:
    """Bytes of images above which they are mapped from the disk."""
    return available_memory() // 4


def empty_images(count: int, side: int) -> np.ndarray:
    """uint8 N×side×side to be filled: in memory or, if that is too small, in a file without a name,
    which vanishes with the array.
    """
    shape = (count, side, side)
    if count * side * side <= largest_in_memory():
        return np.empty(shape, np.uint8)
    place = next((place for place in cache_folders(Path()) if writable(place)), None)
    with tempfile.TemporaryFile(dir=place) as file:
        return np.memmap(file, np.uint8, mode="w+", shape=shape)


def take_rows(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """images[rows]; of mapped images a slice or, if the memory is too small, mapped ones again."""
    if not isinstance(images, np.memmap):
        return images[rows]
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return images[rows[0] : rows[0] + len(rows)]
    taken = empty_images(len(rows), images.shape[-1])
    for start in range(0, len(rows), CHUNK):
        taken[start : start + CHUNK] = images[rows[start : start + CHUNK]]
    return taken


def cache_folders(beside: Path) -> Iterator[Path]:
    """Where a cache may lie: in a folder of the data, or in the user's own cache folder."""
    yield beside / ".fer-cache"
    with contextlib.suppress(RuntimeError):  # no home folder
        yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fer"


def writable(place: Path) -> bool:
    """Can files be made in this folder? It is made if it is not there."""
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    return False


def clear_abandoned(place: Path) -> None:
    """Remove what killed processes left in a cache folder. One that changed in the last hour may
    still be in use by another process.
    """
    for folder in place.glob("tmp*"):
        with contextlib.suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def key_of(files: Sequence[Path], how: str) -> str:
    """Changes with the path, size or modification time of any file, and with how it is read."""
    stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((FORMAT, how, stats)).encode()).hexdigest()


def name_of(source: Path, how: str) -> str:
    """The name of a source's entry in a cache; there is one for each way of reading it."""
    place = os.fsencode(source.absolute()) + how.encode()
    return f"{source.name}-{hashlib.sha256(place).hexdigest()[:12]}"


def cached(
    source: Path,
    files: Sequence[Path],
    how: str,
    parse: Callable[[], Table],
    beside: Path | None = None,
) -> Table:
    """The table of `files` at `source`: parsed, or from the cache of an earlier call.

    how: what else the result depends on, such as the size of the faces. beside: the folder that
    holds the cache; None: that of the source.
    """
    key, name = key_of(files, how), name_of(source, how)
    places = list(cache_folders(beside or source.parent))
    for place in places:
        with contextlib.suppress(OSError):
            clear_abandoned(place)
        if table := load(place, name, key):
            return table
    table = parse()
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            return save(place, name, key, table)
    return table


def load(place: Path, name: str, key: str) -> Table | None:
    """The table under this name and key; None if there is none, or if it is damaged, of which
    zipfile and tokenize raise a dozen kinds.
    """
    path = place / f"{name}.npz"
    if not path.is_file():  # reading a pipe would wait for a writer
        return None
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as arrays:
        # testzip reads each array to its end, which NumPy does not where a flipped bit has made it
        # shorter.
        if str(arrays["key"]) != key or arrays.zip.testzip() is not None:
            return None
        values = {field: arrays[field] for field in Table.__dataclass_fields__}
        if not values["images"].size:  # they are in a file of their own
            shape = (len(values["labels"]), *values["images"].shape[1:])
            images = np.load(regular(place / f"{name}.npy"), mmap_mode="c")
            if (images.dtype, images.shape) != (np.uint8, shape) or not images.flags.c_contiguous:
                return None
            if checksum(images) != arrays["checksum"]:
                return None
            values["images"] = images
        if len(values["images"]) == len(values["labels"]):
            return Table(**values)
    return None


def checksum(images: np.ndarray) -> int:
    """The CRC-32 of mapped images, read piece by piece."""
    value = 0
    for start in range(0, len(images), CHUNK):
        value = zlib.crc32(images[start : start + CHUNK].data, value)
    return value


def save(place: Path, name: str, key: str, table: Table) -> Table:
    """Write the table into a cache folder; returns it, with its images mapped if they are so large
    that they lie in a file of their own.
    """
    values = table.arrays() | {"key": np.array(key)}
    mapped = isinstance(table.images, np.memmap)
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        if mapped:
            values["images"] = np.empty((0, *table.images.shape[1:]), np.uint8)
            values["checksum"] = np.array(checksum(table.images))
            np.save(Path(scratch, f"{name}.npy"), table.images)
            Path(scratch, f"{name}.npy").replace(place / f"{name}.npy")
        np.savez(Path(scratch, f"{name}.npz"), **values)
        Path(scratch, f"{name}.npz").replace(place / f"{name}.npz")
    if mapped:
        table.images = np.load(place / f"{name}.npy", mmap_mode="c")
    return table
