"""Text for a terminal: aligned columns, and lines that fit its width."""

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
