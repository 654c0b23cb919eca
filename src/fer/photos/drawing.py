"""Photos read from files, and boxes with labels drawn into them."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fer import UserError
from fer.data.readers.names import printable
from fer.data.readers.pictures import eight_bits, opened

SHOWN_SIDE = 192  # pixels of a face beside its saliency map
ORANGE = "#E69F00"
SMALLEST_FONT = 12  # pixels
FURTHEST = 5  # heights of a label between it and its box, at most
SMALLEST_DRAWING = 480  # pixels of the longer side: smaller photos are enlarged, by whole factors
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom


def read_photo(file: Path) -> Image.Image:
    """The first frame in RGB, upright as its EXIF data says. UserError if it is not an image."""
    if not file.exists():
        raise UserError(
            f"{printable(file)}: no such file or folder; name a photo or a folder of photos"
        )
    with opened(file, "make it smaller") as image:
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format
        return eight_bits(upright, printable(file)).convert("RGB")


def draw(photo: Image.Image, faces: list[tuple[tuple[int, int, int, int], str]]) -> Image.Image:
    """A copy of the photo with a box (x, y, width, height) and a text for each face.

    The texts are about as wide as their faces, whatever the size of the photo, but never too small
    to read.
    """
    enlargement = max(1, SMALLEST_DRAWING // max(photo.size))
    drawing = ImageOps.scale(photo, enlargement)
    pen = ImageDraw.Draw(drawing)
    boxes, fonts, sizes = [], [], []
    for box, text in faces:
        x, y, width, height = (enlargement * number for number in box)
        boxes.append((x, y, x + width, y + height))
        pen.rectangle(boxes[-1], outline=ORANGE, width=max(2, width // 40))
        font_size = max(SMALLEST_FONT, round(width / 6))
        fonts.append(ImageFont.load_default(font_size))
        label_width = math.ceil(pen.textlength(text, fonts[-1])) + font_size // 2
        sizes.append((label_width, round(font_size * 1.3)))
    places = label_places(boxes, sizes, drawing.size)
    for (_, text), font, (left, top, right, bottom) in zip(faces, fonts, places, strict=True):
        pen.rectangle((left, top, right, bottom), ORANGE, outline="black")
        pen.text(((left + right) / 2, (top + bottom) / 2), text, "black", font, anchor="mm")
    return drawing


def label_places(
    boxes: list[Rectangle], sizes: list[tuple[int, int]], picture_size: tuple[int, int]
) -> list[Rectangle]:
    """Where labels of these sizes (width, height) go: above their boxes, or below, or further away
    where another label or box is in the way.
    """
    picture_width, picture_height = picture_size
    places: list[Rectangle] = []
    for (x, y, _, bottom), (width, height) in zip(boxes, sizes, strict=True):
        left = max(0, min(x, picture_width - width))
        tops = []
        for step in range(FURTHEST):
            tops += [y - (step + 1) * height, bottom + step * height]
        inside = [
            (left, top, left + width, top + height)
            for top in tops
            if 0 <= top <= picture_height - height
        ]
        free = [
            place for place in inside if not any(meet(place, other) for other in [*boxes, *places])
        ]
        within_box = (left, y, left + width, y + height)  # of a face that fills the picture
        places.append([*free, *inside, within_box][0])
    return places


def meet(a: Rectangle, b: Rectangle) -> bool:
    """Do they share more than an edge?"""
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def beside(face: np.ndarray, heat: np.ndarray) -> Image.Image:
    """A face, uint8 S×S, beside its map, in color."""
    import matplotlib  # here, since no other use of photos needs it

    colored = matplotlib.colormaps["magma"](heat / max(heat.max(), 1e-12))[..., :3]
    gray = np.repeat(face[..., None], 3, 2)
    map_picture = Image.fromarray((255 * colored).astype(np.uint8)).resize(face.shape[::-1])
    both = Image.fromarray(np.concatenate([gray, np.asarray(map_picture)], 1))
    return both.resize((2 * SHOWN_SIDE, SHOWN_SIDE))
