"""Files: written whole or not at all, never in place of a folder; pipes are not read."""

import contextlib
import errno
import glob
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fer import UserError

LONGEST_NAME = 200  # bytes of a file's name that the name of its temporary file repeats
# In the first line of a CSV of faces; no table of ours has such a column.
FACE_COLUMN = re.compile(rb"\b(pixels|feature)\b", re.IGNORECASE)
ABANDONED = 3600  # seconds after which a file of an unfinished write is nobody's


def write(path: str | Path, save: Callable[[BinaryIO], object]) -> None:
    """Call `save` with a binary file that becomes `path` once all of it is on the disk; on failure
    nothing changes.

    A symbolic link is followed, and its target replaced; permissions stay. A pipe, a character
    device and an open descriptor such as /dev/stdout are written to directly. Raises UserError for
    anything else there, such as a folder, for a CSV of faces, and if the system refuses.
    """
    with reporting_write_errors(path):
        descriptor = own_descriptor(path)
        if descriptor is not None or is_stream(Path(path)):
            content = io.BytesIO()  # what is saved may seek
            save(content)
            with open(path if descriptor is None else descriptor, "wb", buffering=0) as stream:  # noqa: PTH123
                write_all(stream, content.getbuffer())
            return
        target = Path(os.path.realpath(path))
        refuse_other_kinds(target, path)
        refuse_face_csv(path)
        replace(target, save)


def write_all(stream: io.FileIO, content: memoryview) -> None:
    """Write all of the content: one write to a pipe takes only what the pipe has room for."""
    while content:
        content = content[stream.write(content) :]


def replace(target: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file beside the target, flush it, and rename it. Temporary files that
    killed writes of the same target left are removed.
    """
    name = target.name.encode()[:LONGEST_NAME].decode(errors="ignore")
    clear_abandoned(target.parent, name)
    beside = target.parent / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        with beside.open("xb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        rename_over(target, beside)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder may be gone too
            beside.unlink()
        raise
    flush_folder(target.parent)


def rename_over(target: Path, source: Path) -> None:
    """Put the file `source` in the place of the target, with the target's permissions."""
    if target.exists():
        shutil.copymode(target, source)
    source.replace(target)


def clear_abandoned(folder: Path, name: str) -> None:
    """Remove temporary files of `name` that are older than any write takes."""
    with contextlib.suppress(OSError):
        for file in folder.glob(f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp"):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()


def flush_folder(folder: Path) -> None:
    """Flush the folder, which holds the new name; not every system opens or flushes folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def own_descriptor(path: str | Path) -> int | None:
    """A duplicate of the open descriptor that the path names, as /dev/stdout does. Opening the path
    instead would begin its file anew, which a shell may be appending to.
    """
    named = re.fullmatch(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/(\d+)", str(path))
    if not named:
        return None
    number = {"stdout": 1, "stderr": 2}.get(named[1]) or int(named[2])
    return os.dup(number)


def is_stream(path: Path) -> bool:
    """Is it a pipe, or a character device such as a terminal?"""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def refuse_other_kinds(target: Path, path: str | Path) -> None:
    """Only a regular file, or a name that is free, is written to."""
    if target.is_symlink():  # realpath leaves a link that leads in a circle
        raise UserError(f"{path}: is a circular link; choose another name")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: is a folder or a special file; choose another name")


def refuse_face_csv(path: str | Path) -> None:
    """Refuse to overwrite a CSV of faces: it is someone's data set, and may be their only copy."""
    target = Path(os.path.realpath(path))
    if not target.is_file():
        return
    with target.open("rb") as file:
        header = file.readline(4096)
    if FACE_COLUMN.search(header):
        raise UserError(f"{path}: holds faces, which this would overwrite; choose another name")


def refuse_foreign(path: str | Path, mark: bytes, remedy: str) -> None:
    """Refuse to overwrite a file that does not hold the mark of those that fer writes there."""
    target = Path(os.path.realpath(path))
    if target.is_file() and mark not in target.read_bytes():
        raise UserError(f"{path}: was not written by fer, and would be replaced; {remedy}")


@contextlib.contextmanager
def reporting_write_errors(path: str | Path) -> Iterator[None]:
    """Within the context an OSError of a write to `path` becomes a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk behind a RuntimeError.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{path}: cannot be written ({cause.strerror or cause}); what was there is kept; "
            "free some space or choose another place"
        ) from None


def regular(path: str | Path) -> Path:
    """The path, to be read. Raises OSError for a pipe or a device, on which a read would wait for a
    writer. A missing file or a folder is left for the read to report.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def write_text(path: str | Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))
