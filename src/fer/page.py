"""A page of a report: parts in, pictures, the numbers behind them and one self-contained HTML file
out.

Knows neither runs nor networks.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from fer.files import write_text

LEGIBLE = (
    0.62  # CSS pixels a picture's pixel: at 150 dpi, text of 6.5 points is then 8.4 pixels high
)


@dataclass
class Part:
    """A section of the page: lines in words; a picture, drawn by `draw(path)` as name.png and so
    on, and the data of name.csv; a table, its header first; plain text.
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
    """The pictures, as PNG for the page and as `kind`, the CSV behind each, and index.html with all
    inside. Its texts are escaped.
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


def width_of(png: Path) -> int:
    """In pixels, as the head of the file says."""
    return int.from_bytes(png.read_bytes()[16:20], "big")
