"""Writes a report: its pictures, their numbers as CSV, and one self-contained HTML page."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from fer.files import refuse_foreign, reporting_write_errors, write_text

# CSS pixels per picture pixel: text of 6.5 points at 150 dpi is then 8.4 CSS pixels high.
LEGIBLE = 0.62
MARK = b'<link rel="icon" href="data:,">'  # of every page of ours


@dataclass
class Part:
    """A section of the page.

    lines: sentences below the title. draw: draws the picture into the path that it is given.
    name: file name of picture and data, without suffix. data: written as name.csv. table: rows,
    the header first. text: preformatted text. folded: whether the section is collapsed at first.
    """

    title: str
    lines: tuple[str, ...] = ()
    name: str = ""
    draw: Callable[[Path], Path] | None = None
    data: pd.DataFrame | None = None
    table: list | None = None
    text: str = ""
    folded: bool = False


def write_page(out: Path, title: str, lead: tuple[str, ...], parts: list[Part], kind: str) -> None:
    """Write the pictures, their CSV files and index.html into the folder `out`.

    lead: sentences below the title. kind: file format of the pictures, in addition to PNG. All text
    in the page is escaped.
    """
    pictures = {}
    for part in parts:
        if part.draw:
            files = [
                part.draw(out / f"{part.name}.{suffix}") for suffix in dict.fromkeys(("png", kind))
            ]
            data = "data:image/png;base64," + base64.b64encode(files[0].read_bytes()).decode()
            pictures[part.name] = {"data": data, "legible": round(LEGIBLE * width_of(files[0]))}
        if part.data is not None:
            write_text(out / f"{part.name}.csv", part.data.to_csv(index=False))
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Template(source, autoescape=True, undefined=jinja2.StrictUndefined)
    write_text(
        out / "index.html", page.render(title=title, lead=lead, parts=parts, pictures=pictures)
    )


def refuse_foreign_page(out: Path) -> None:
    """Refuse a folder whose index.html is of another program, before any work."""
    page = out / "index.html"
    with reporting_write_errors(page):
        refuse_foreign(page, MARK, "choose another folder with out=")


def width_of(png: Path) -> int:
    """The width in pixels, read from the PNG header."""
    return int.from_bytes(png.read_bytes()[16:20], "big")
