"""Photos read from files, and boxes with labels drawn into them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fer import UserError
from fer.data.readers.pictures import opened

SHOWN_SIDE = 192  # pixels of a face beside its saliency map
ORANGE = "#E69F00"
SMALLEST_FONT = 12  # pixels
SMALLEST_DRAWING = 480  # pixels of the longer side: smaller photos are enlarged, by whole factors


def readable(file: Path) -> str:
    """The path as text, also if it is not valid Unicode."""
    return str(file).encode(errors="replace").decode()


def read_photo(file: Path) -> Image.Image:
    """The first frame in RGB, upright as its EXIF data says. Raises UserError if it is no image."""
    if not file.is_file():
        raise UserError(
            f"{readable(file)}: no such file or folder; name a photo or a folder of photos"
        )
    with opened(file, "make it smaller") as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{readable(file)}: pixels of mode {image.mode}; save it with 8 bits")
        return ImageOps.exif_transpose(image).convert("RGB")


def draw(photo: Image.Image, faces: list[tuple[tuple[int, int, int, int], str]]) -> Image.Image:
    """A copy of the photo with a box (x, y, width, height) and a text for each face.

    The texts are about as wide as their faces, whatever the size of the photo.
    """
    enlargement = max(1, SMALLEST_DRAWING // max(photo.size))
    drawing = ImageOps.scale(photo, enlargement)
    pen = ImageDraw.Draw(drawing)
    for box, text in faces:
        x, y, width, height = (enlargement * number for number in box)
        font_size = max(SMALLEST_FONT, round(width / 6))
        font = ImageFont.load_default(font_size)
        line_width = max(2, width // 40)
        pen.rectangle((x, y, x + width, y + height), outline=ORANGE, width=line_width)
        label_width = pen.textlength(text, font) + font_size // 2
        label_height = round(font_size * 1.3)
        left = max(0, min(x, drawing.width - label_width))
        if y >= label_height:
            top = y - label_height
        else:
            top = min(y + height, drawing.height - label_height)
        pen.rectangle((left, top, left + label_width, top + label_height), fill=ORANGE)
        middle = (left + label_width / 2, top + label_height / 2)
        pen.text(middle, text, "black", font, anchor="mm")
    return drawing


def beside(face: np.ndarray, heat: np.ndarray) -> Image.Image:
    """A face, uint8 S×S, beside its map, in color."""
    import matplotlib  # here, since no other use of photos needs it

    colored = matplotlib.colormaps["magma"](heat / max(heat.max(), 1e-12))[..., :3]
    gray = np.repeat(face[..., None], 3, 2)
    map_picture = Image.fromarray((255 * colored).astype(np.uint8)).resize(face.shape[::-1])
    both = Image.fromarray(np.concatenate([gray, np.asarray(map_picture)], 1))
    return both.resize((2 * SHOWN_SIDE, SHOWN_SIDE))
