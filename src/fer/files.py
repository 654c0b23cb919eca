"""Writing files: whole or not at all, and never in place of what is no file."""

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fer import UserError


def write(path: str | Path, save: Callable[[BinaryIO], object]) -> None:
    """Call `save` with a binary file that becomes `path` when all of it is on the disk; on failure
    nothing changes.

    A symbolic link is followed, and its target replaced. A pipe and a character device are written
    to as they are. Raises UserError for anything else that stands there, and when the system
    refuses.
    """
    target = Path(os.path.realpath(path))
    with written(path):
        if is_stream(target):
            content = io.BytesIO()  # what is saved may seek
            save(content)
            with target.open("wb", buffering=0) as stream:
                stream.write(content.getbuffer())
            return
        refuse_other_kinds(target, path)
        replace(target, save)


def replace(target: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write beside the target, flush, and rename."""
    beside = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        with beside.open("xb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder may be gone too
            beside.unlink()
        raise
    with contextlib.suppress(
        OSError
    ):  # not every system opens or flushes folders, where the new name stands
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def is_stream(path: Path) -> bool:
    """Is it a pipe or a character device, such as a terminal?"""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def refuse_other_kinds(target: Path, path: str | Path) -> None:
    """Only a regular file, or a name that is free, is written to."""
    if target.is_symlink():  # realpath leaves a link that leads in a circle
        raise UserError(f"{path}: is a link that leads in a circle; choose another name")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: is a folder or no plain file; choose another name")


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[None]:
    """Within the context what the system refuses of a write to `path` is a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = (
            error.__context__ if isinstance(error, RuntimeError) else error
        )  # torch.save hides a full disk
        if not isinstance(cause, OSError):
            raise
        why = (
            f"({cause.strerror or cause}), what was there is kept; make room or choose another "
            "place"
        )
        raise UserError(f"{path}: cannot be written {why}") from None


def write_text(path: str | Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))
