"""Text for people: aligned columns, lines that fit a terminal, numbers with their units."""

import textwrap

COLUMNS = 80


def aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    """The rows as lines with equal column widths. The first `left` columns are flush left, the
    others flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for position, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if position < left else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def wrapped(text: str) -> str:
    """The text in lines that fit the terminal, later ones indented; paths are not broken."""
    return textwrap.fill(
        text, COLUMNS - 1, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def counted(count: int, noun: str) -> str:
    """A number and its noun: `1 face`, `1,200 faces`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 in percent: `63 %`, or `63.4 %` with one digit after the point."""
    return f"{100 * share:.{digits}f} %"


def with_prefix(value: float) -> str:
    """The value to three digits with an SI prefix, from k to T: `257 T`, `32.1 M`."""
    prefixes = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}
    for factor, prefix in prefixes.items():
        if value >= 0.9995 * factor:  # which rounds up to it
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
