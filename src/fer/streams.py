"""Standard output and error that never raise, so that a closed pipe ends no command."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

KEPT = "\n\t"  # control characters that are written as they are


def escaped(text: str, kept: str = "") -> str:
    """The text with control characters, such as terminal codes, escaped, except those `kept`."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def open_closed_descriptors() -> None:
    """Open standard descriptors that the caller has closed, for example with 2>&-.

    Otherwise the next file to be opened would take their number and receive what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


class Output:
    """A text stream whose writes never fail.

    Once the stream is closed, the disk is full or the reader has gone (fer … | head), all further
    output is discarded, so that training continues. `lost` then gives the reason, except for a
    reader that has gone. Characters that the encoding lacks become question marks. clean: escape
    control characters, which file names may contain.
    """

    def __init__(self, stream: TextIO | None, clean: bool):
        self.stream = stream
        self.clean = clean
        self.gone = stream is None
        self.lost: str | None = None

    def write(self, text: str) -> int:
        if self.clean:
            text = escaped(text, KEPT)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.attempt("write", text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.attempt("flush")

    def isatty(self) -> bool:
        return not self.gone and self.stream is not None and self.stream.isatty()

    def attempt(self, method: str, *args: str) -> None:
        """Call a method of the stream. If it fails, discard all further output."""
        if self.gone:
            return
        try:
            getattr(self.stream, method)(*args)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.gone = True
            if not isinstance(error, BrokenPipeError):
                self.lost = getattr(error, "strerror", None) or str(error)
            self.discard()

    def discard(self) -> None:
        """Redirect the descriptor to /dev/null, for text that is still buffered."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def never_failing() -> Iterator[tuple[Output, Output]]:
    """Within the context, standard output and error are Outputs, which it yields."""
    output, errors = Output(sys.stdout, clean=True), Output(sys.stderr, clean=False)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):  # type: ignore[type-var]
        yield output, errors
