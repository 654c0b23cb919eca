"""Standard output and error, such that nothing which happens to them ends a command."""

import contextlib
import os
from typing import Any, TextIO

KEPT = "\n\t\r"  # of the characters that cannot be printed


def open_closed_descriptors() -> None:
    """Open the standard descriptors that the caller has closed, as 2>&- does: otherwise the next
    file that is opened becomes standard output or error, and is written to as such.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


class Output:
    """A text stream that always takes what is written.

    Where the reader has gone (fer … | head), the stream is closed or the disk is full, the rest
    goes nowhere: a training does not end for want of a reader. `lost` then says why, unless the
    reader chose to go. What the terminal has no letter for becomes a question mark. clean: show
    control characters as their codes, since names of files may hold some.
    """

    def __init__(self, stream: TextIO | None, clean: bool):
        self.stream = stream
        self.clean = clean
        self.gone = stream is None
        self.lost: str | None = None

    def write(self, text: str) -> int:
        if self.clean:
            text = "".join(c if c.isprintable() or c in KEPT else repr(c)[1:-1] for c in text)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.attempt("write", text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.attempt("flush")

    def isatty(self) -> bool:
        return not self.gone and self.stream is not None and self.stream.isatty()

    def attempt(self, method: str, *args: str) -> None:
        """Call the stream's method; give the stream up if it fails."""
        if self.gone:
            return
        try:
            getattr(self.stream, method)(*args)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.gone = True
            if not isinstance(error, BrokenPipeError):
                self.lost = getattr(error, "strerror", None) or str(error)
            self.discard()

    def discard(self) -> None:
        """Let what is still buffered, and what Python flushes at its end, go nowhere."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
