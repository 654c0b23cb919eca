"""Untrusted archives, unpacked into the cache: only pictures and tables, at safe places, and no
more bytes than faces can take.
"""

import contextlib
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fer import UserError
from fer.data.readers import text_tables
from fer.data.readers.cache import cache_folders, clear_abandoned, key_of, name_of, writable
from fer.data.readers.file_types import mistaken
from fer.data.readers.names import is_junk, printable
from fer.data.readers.pictures import is_picture
from fer.files import regular

TABLES = (*text_tables.ENDINGS, ".npz", ".parquet")
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OTHER_ENDINGS = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")  # of archives that are not read
LEFT_OUT = ".left-out"
LONGEST_LINK = 4096  # bytes
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
    there yet. Raises UserError if it is not an archive, is damaged or expands without end.
    """
    key, name = key_of([path], "unpacked 2"), name_of(path, "unpacked")
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
        raise UserError(
            f"{path}: cannot be unpacked into {place} ({error.strerror}); make room there, or "
            "unpack it elsewhere and name the folder"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place / name


@dataclass(frozen=True)
class Member:
    """A file in an archive: its content, or the name of the member that it is a link to."""

    name: str
    stream: IO[bytes] | None = None
    link: str = ""


def unpack(path: Path, folder: Path) -> None:
    """Write the pictures and tables of an archive into `folder`, and the names of those for which
    there is no place or no content into the file LEFT_OUT there.
    """
    allowed = max(ALLOWED, EXPANSION * path.stat().st_size)
    names: list[str] = []
    links: dict[str, str] = {}
    left_out: list[str] = []
    try:
        for member in members(path):
            names.append(member.name)
            if len(names) > MOST_MEMBERS:
                raise UserError(f"{path}: has more than {MOST_MEMBERS:,} members")
            if not wanted(member.name):
                continue
            target = safe_place(folder, member.name)
            if target is None:
                left_out.append(member.name)
            elif member.stream is None:
                links[member.name] = member.link
            else:
                allowed = write_member(path, member.stream, target, allowed)
        for name, link in links.items():
            source, target = safe_place(folder, link), safe_place(folder, name)
            if target and source and source.is_file():
                with source.open("rb") as stream:
                    allowed = write_member(path, stream, target, allowed)
            else:
                left_out.append(name)
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is a damaged archive ({reason}); get it again") from None
    except RuntimeError:  # of zipfile, for a password
        raise UserError(f"{path}: is encrypted; unpack it, and name the folder") from None
    unpacked_files = (file for file in folder.rglob("*") if file.is_file())
    if all(file.suffix.lower() == ".txt" for file in unpacked_files):
        raise UserError(f"{path}: {without_faces(names)}")
    text = "\n".join(printable(name) for name in left_out if name.isprintable())
    (folder / LEFT_OUT).write_text(text, encoding="utf-8")


def write_member(path: Path, stream: IO[bytes], target: Path, allowed: int) -> int:
    """Write a member of the archive at `path`; returns how many bytes are allowed after it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        allowed -= copy(stream, file, allowed)
    if allowed <= 0:
        raise UserError(
            f"{path}: expands to more than {EXPANSION} times its size, which pictures and tables "
            "do not; it is damaged, or made to fill the disk"
        )
    return allowed


def without_faces(names: list[str]) -> str:
    """What an archive is that holds only members of these names, and what to do."""
    packed = [name for name in names if name.lower().endswith((*ENDINGS, *OTHER_ENDINGS))]
    if packed:
        return f"holds another archive, {printable(packed[0])}; unpack it, and name that one"
    listed = printable(", ".join(names[:5])) or "nothing"
    return f"holds no pictures or tables, only {listed}"


def members_left_out(folder: Path) -> list[str]:
    """The names of pictures and tables of an archive that are not in the folder it was unpacked
    into: their names lead out of it, or they are links to what it does not hold.
    """
    return (folder / LEFT_OUT).read_text(encoding="utf-8").splitlines()


def members(path: Path) -> Iterator[Member]:
    """The files in an archive, links among them, but no folders, devices or junk."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head.startswith(PACKED) and head[257:262] != b"ustar":
        raise UserError(mistaken(path, "an archive"))
    if head.startswith(b"PK"):  # a tar may hold a zip, which zipfile.is_zipfile() would find
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.is_dir() or is_left_behind(info.filename):
                    continue
                with archive.open(info) as stream:
                    if stat.S_ISLNK(info.external_attr >> 16):
                        link = stream.read(LONGEST_LINK).decode(errors="replace")
                        yield Member(info.filename, link=beside(info.filename, link))
                    else:
                        yield Member(info.filename, stream)
        return
    with tarfile.open(path) as archive:
        for entry in archive:
            if is_left_behind(entry.name):
                continue
            if entry.isreg():
                yield Member(entry.name, archive.extractfile(entry))
            elif entry.islnk():
                yield Member(entry.name, link=entry.linkname)
            elif entry.issym():
                yield Member(entry.name, link=beside(entry.name, entry.linkname))


def beside(name: str, link: str) -> str:
    """The member that a symbolic link of this name leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def is_left_behind(name: str) -> bool:
    """Did a file manager or a system leave it?"""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not parts or any(is_junk(part) for part in parts if part not in (".", ".."))


def wanted(name: str) -> bool:
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
