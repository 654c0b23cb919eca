"""Archives from anyone, unpacked into the cache: only pictures and tables, at safe places, and no
more bytes than faces can take.
"""

import contextlib
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fer import UserError
from fer.data.readers import text_tables
from fer.data.readers.cache import cache_folders, clear_abandoned, key_of, name_of, writable
from fer.data.readers.file_types import mistaken
from fer.data.readers.names import is_junk
from fer.data.readers.pictures import is_picture
from fer.files import regular

TABLES = (*text_tables.ENDINGS, ".npz", ".parquet")
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
EXPANSION = 100  # bytes out for a byte in: a CSV of faces expands 4 times
ALLOWED = 256 << 20  # bytes that any archive may expand to
MOST_MEMBERS = 3_000_000
CHUNK = 1 << 20
PACKED = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # first bytes of zip, gzip, bzip2 and xz
DAMAGE: tuple[type[Exception], ...] = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
)
with contextlib.suppress(ImportError):  # Python may be built without it
    import lzma

    DAMAGE += (lzma.LZMAError,)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def unpacked(path: Path) -> Path:
    """The folder in the cache that holds an archive's pictures and tables; unpacked if it is not
    there yet. Raises UserError for what is no archive, is damaged or expands without end.
    """
    key, name = key_of([path], "unpacked"), name_of(path, "unpacked")
    places = list(cache_folders(path.parent))
    for place in places:
        with contextlib.suppress(OSError):
            clear_abandoned(place)
            if regular(place / name / ".complete").read_text() == key:
                return place / name
    usable = [place for place in places if writable(place)]
    if not usable:
        raise UserError(
            f"{path}: nowhere to unpack it, neither beside it nor in your cache folder; unpack it "
            "yourself and name the folder"
        )
    place = usable[0]
    scratch = Path(tempfile.mkdtemp(dir=place))
    try:
        unpack(path, scratch)
        (scratch / ".complete").write_text(key)
        shutil.rmtree(place / name, ignore_errors=True)
        scratch.replace(place / name)
    except OSError as error:
        raise UserError(f"{path}: cannot be unpacked into {place} ({error.strerror})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place / name


def unpack(path: Path, folder: Path) -> None:
    """Write the pictures and tables of an archive into `folder`."""
    allowed = max(ALLOWED, EXPANSION * path.stat().st_size)
    found = []
    try:
        for name, stream in members(path):
            found.append(name)
            target = safe_place(folder, name)
            if len(found) > MOST_MEMBERS:
                raise UserError(f"{path}: has more than {MOST_MEMBERS:,} members")
            if target is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                allowed -= copy(stream, file, allowed)
            if allowed <= 0:
                raise UserError(
                    f"{path}: expands to more than {EXPANSION} times its size, which pictures and "
                    "tables do not; it is damaged, or made to fill the disk"
                )
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is a damaged archive ({reason}); get it again") from None
    except RuntimeError:  # of zipfile, for a password
        raise UserError(f"{path}: is encrypted; unpack it, and name the folder") from None
    if not any(folder.iterdir()):
        names = ", ".join(found[:5]) or "nothing"
        raise UserError(f"{path}: holds no pictures or tables, only {names}")


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the plain files in an archive; links and devices are passed over."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head.startswith(PACKED) and head[257:262] != b"ustar":
        raise UserError(mistaken(path, "an archive"))
    if head.startswith(b"PK"):  # a tar may hold a zip, which zipfile.is_zipfile() would find
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir() and wanted(member.filename):
                    with archive.open(member) as stream:
                        yield member.filename, stream
        return
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isreg() and wanted(entry.name):
                content = archive.extractfile(entry)
                if content is not None:
                    yield entry.name, content


def wanted(name: str) -> bool:
    """Is a member a picture or a table, and not what a file manager left?"""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or any(is_junk(part) for part in parts if part not in (".", "..")):
        return False
    return is_picture(name) or name.lower().endswith(TABLES)


def safe_place(folder: Path, name: str) -> Path | None:
    """Where a member goes below `folder`; None for a name that would lead out of it."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith(("/", "\\")) or any(":" in part for part in parts):
        return None
    if not parts or "\0" in name or len(os.fsencode(parts[-1])) > 255:
        return None
    return folder.joinpath(*parts)


def copy(stream: IO[bytes], file: IO[bytes], most: int) -> int:
    """Copy a stream to its end, or until more than `most` bytes are written; returns how many."""
    written = 0
    while written <= most and (part := stream.read(CHUNK)):
        written += file.write(part)
    return written
