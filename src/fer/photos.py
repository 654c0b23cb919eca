"""Faces in photos, for fer predict input= and fer explain image=: found by scikit-image's cascade
and cropped as FER2013's, or taken whole; named and drawn. What labels them is handed in; of
networks and checkpoints it knows nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os.path import realpath  # unlike Path.resolve, it does not raise where links lead in a circle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fer import UserError, extra
from fer.data.copies import detail
from fer.data.faces import SIZE, Faces
from fer.data.readers.pictures import image_files, opened
from fer.files import write
from fer.run import make_folder, tell_if_replaced, write_csv

# Pixels of a photo's longer side that are searched, more where smaller faces are looked for.
SEARCHED = 640
WINDOW = 24  # pixels of the cascade's own window: no smaller face is found
SHARE = (
    WINDOW / SEARCHED
)  # of the photo's longer side: the smallest face, unless another is asked for
# Of the shorter side, added by repeating the edge: faces that fill a photo are found only so.
MARGIN = 0.1
VOTES = 16  # windows that must agree on a face
# Gray levels: deviation from the local mean. 999 of 1,000 FER2013 faces have 8.6; smooth shades, on
# which.
DETAIL = 7.0
# the cascade sees faces too, have 6 or fewer
TOLD = 10  # faces: of more, the table is read
Box = tuple[int, int, int]  # x, y and side of a square, in pixels


@dataclass(frozen=True)
class Found:
    """A face of a photo: where it is, in pixels of the upright photo, and what is in there, uint8
    1×48×48.
    """

    file: Path
    x: int
    y: int
    width: int
    height: int
    pixels: torch.Tensor
    whole: bool  # the picture is the face

    @property
    def place(self) -> str:
        if self.whole:
            return "the whole picture"
        return f"the face {self.width} pixels wide at x={self.x}, y={self.y}"


def run(
    place: Path,
    out: Path,
    crop: str,
    smallest: float,
    typed: list[str],
    classes: list[str],
    label: Callable[[Faces], torch.Tensor],
) -> None:
    """Find the faces in the photos at `place`, have them labelled, write `out` and a picture for
    each photo with faces.

    crop, smallest: as for find_in. typed: the keys given on the command line.
    """
    if other := {key.split(".")[0] for key in typed} & {
        "split",
        "sample",
        "columns",
        "probs",
        "data",
    }:
        raise UserError(
            f"{min(other)}: does not go with input, whose faces are of no split; leave one of the "
            "two out"
        )
    files = image_files(place) if place.is_dir() else [place]
    if not files:
        raise UserError(f"input={place}: no images in this folder; name another, or a photo")
    folder = out.with_name(f"{out.stem}_photos")
    if realpath(out) in [realpath(file) for file in files] or realpath(folder) == realpath(
        files[0].parent
    ):
        raise UserError(f"out={out}: would write over the photos of input; choose another name")
    found = find_in(files, crop, smallest)
    header = ["file", "x", "y", "width", "height", "label", *classes]
    tell_if_replaced(out)
    if not found:
        write_csv(out, header, [])
        print(f"no face in {len(files)} photos, so {out} has a header only; {remedy(smallest)}")
        return
    pixels = torch.stack([face.pixels for face in found])
    means = label(Faces(pixels, torch.full((len(found),), -1), [str(i) for i in range(len(found))]))
    rows, texts = [], defaultdict(list)
    for face, mean in zip(found, means, strict=True):
        name = classes[mean.argmax()]
        box = (face.x, face.y, face.width, face.height)
        rows.append([readable(face.file), *box, name, *(f"{p:.6f}" for p in mean.tolist())])
        texts[face.file].append((box, f"{name} {mean.max():.0%}"))
        if len(found) <= TOLD:
            print(f"{readable(face.file)}, {face.place}: {name} {mean.max():.0%}")
    write_csv(out, header, rows)
    stems = Counter(file.stem for file in files)
    boxed = {face.file for face in found if not face.whole}
    if boxed:
        make_folder(folder)
    for file in texts.keys() & boxed:
        name = file.stem if stems[file.stem] == 1 else file.name
        write(
            folder / f"{name}.png", partial(draw(read_photo(file), texts[file]).save, format="PNG")
        )
    written = f"{out}, {folder}" if boxed else f"{out}"
    print(
        f"{len(rows)} face{'s' * (len(rows) > 1)} in {len(texts)} of {len(files)} photos labelled: "
        f"{written}"
    )


def find_in(files: list[Path], crop: str, smallest: float) -> list[Found]:
    """The faces of all photos, in order; prints how each photo without any was searched.

    crop: `face` looks for the faces that are at least `smallest` of the photo's longer side, and
    takes a picture of 48×48 pixels, the size of FER2013's faces, as one; `whole` takes every
    picture as one.
    """
    found, taken, detector = [], 0, None
    for file in files:
        photo = read_photo(file).convert("L")
        if crop == "whole" or photo.size == (SIZE, SIZE):
            face = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            found.append(
                Found(file, 0, 0, *photo.size, torch.from_numpy(np.array(face))[None], True)
            )
            taken += 1
            continue
        detector = detector or cascade()
        faces = find_faces(photo, detector, smallest)
        found += [Found(file, x, y, side, side, pixels, False) for (x, y, side), pixels in faces]
        if not faces:
            print(
                f"{readable(file)}: no face found of {smallest_side(photo, smallest)} pixels or "
                "more"
            )
    if taken and crop == "face":
        several = f"{taken} pictures" if taken > 1 else "one picture"
        print(f"{several} of {SIZE}×{SIZE} pixels taken whole, as faces that are cropped already")
    return found


def smallest_side(photo: Image.Image, smallest: float) -> int:
    """Pixels of the photo that the smallest face takes."""
    return max(WINDOW, round(smallest * max(photo.size)))


def remedy(smallest: float) -> str:
    """What to do where no face was found."""
    smaller = f"smallest={max(smallest / 2, 0.01):g}, or " if smallest > 0.01 else ""
    return (
        f"faces are found from the front, upright, and from smallest={smallest:g} of the photo's "
        "longer side on; "
        f"try {smaller}crop=whole for pictures that are one face each"
    )


def readable(file: Path) -> str:
    return str(file).encode(errors="replace").decode()


def cascade() -> Any:
    """scikit-image's detector of frontal faces."""
    with extra("photos", "faces in photos (crop=whole does without)"):
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    return Cascade(lbp_frontal_face_cascade_filename())


def read_photo(file: Path) -> Image.Image:
    """The first frame, upright as its EXIF says, in RGB."""
    if not file.is_file():
        raise UserError(
            f"{readable(file)}: no such file or folder; name a photo or a folder of photos"
        )
    with opened(file, "make it smaller") as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{readable(file)}: pixels of mode {image.mode}; save it with 8 bits")
        return ImageOps.exif_transpose(image).convert("RGB")


def find_faces(
    photo: Image.Image, detector: Any, smallest: float = SHARE
) -> list[tuple[Box, torch.Tensor]]:
    """The upright faces of a gray photo from left to right: boxes, and what is in them, uint8
    1×48×48, as tight as FER2013's faces. smallest: side of the smallest, as a share of the photo's
    longer side.

    The cascade sees faces in much else, but there its windows differ between a photo and its mirror
    image: a face is where VOTES of them agree.
    """
    longer = max(photo.size)
    scale = min(1, max(SEARCHED, WINDOW / smallest) / longer)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    # A little below the share that is asked for: the windows grow in steps of a tenth.
    least = max(WINDOW, int(0.95 * smallest * longer * scale))
    if min(height, width) < least:
        return []
    margin = round(MARGIN * min(width, height))
    small = np.pad(
        np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)), margin, mode="edge"
    )
    how = {
        "scale_factor": 1.1,
        "step_ratio": 1,
        "min_size": (least, least),
        "max_size": (min(small.shape), min(small.shape)),
        # single windows, none merged
        "min_neighbor_number": 1,
        "intersection_score_threshold": 1.01,
    }
    seen = [(w["c"], w["r"], w["width"]) for w in detector.detect_multi_scale(small, **how)]
    mirror = detector.detect_multi_scale(np.ascontiguousarray(small[:, ::-1]), **how)
    seen += [(small.shape[1] - w["c"] - w["width"], w["r"], w["width"]) for w in mirror]
    windows = np.array(seen, float).reshape(-1, 3) - [margin, margin, 0]
    found = []
    for box in agreed(windows):
        left, top, whole = (box / scale).round().astype(int).tolist()
        whole = min(whole, *photo.size)
        left, top = (
            min(max(at, 0), room - whole) for at, room in zip((left, top), photo.size, strict=True)
        )
        face = photo.crop((left, top, left + whole, top + whole)).resize(
            (SIZE, SIZE), Image.Resampling.BILINEAR
        )
        pixels = torch.from_numpy(np.array(face))[None]
        if detail(pixels[None].float(), 7).std() >= DETAIL:
            found.append(((left, top, whole), pixels))
    return sorted(found, key=lambda face: face[0])


def agreed(windows: np.ndarray) -> list[np.ndarray]:
    """The median x, y and side of each group of at least VOTES windows, M×3, about one face; of
    groups that overlap by much, the one with most votes.
    """
    x, y, side = windows.T
    apart = np.hypot(*(np.subtract.outer(v, v) for v in (x + side / 2, y + side / 2)))
    near = apart < 0.15 * np.add.outer(side, side)
    alike = abs(np.subtract.outer(np.log(side), np.log(side))) < 0.47
    agree = near & alike
    boxes: list[np.ndarray] = []
    while (votes := agree.sum(1)).max(initial=0) >= VOTES:
        group = agree[votes.argmax()].copy()
        agree[group], agree[:, group] = False, False
        box = np.median(windows[group], 0)
        if all(
            np.abs(box[:2] + box[2] / 2 - b[:2] - b[2] / 2).max() > (box[2] + b[2]) / 3
            for b in boxes
        ):
            boxes.append(box)
    return boxes


def draw(photo: Image.Image, faces: list[tuple[tuple[int, int, int, int], str]]) -> Image.Image:
    """The photo, a small one enlarged, with a box and a text for each face."""
    times = max(1, 480 // max(photo.size))
    photo = ImageOps.scale(photo, times)
    pen, size = ImageDraw.Draw(photo), max(14, max(photo.size) // 40)
    font = ImageFont.load_default(size)
    for box, text in faces:
        x, y, width, height = (times * number for number in box)
        pen.rectangle((x, y, x + width, y + height), outline="#E69F00", width=max(2, size // 8))
        wide, high = pen.textlength(text, font) + size // 2, round(size * 1.3)
        left, top = (
            max(0, min(x, photo.width - wide)),
            y - high if y >= high else min(y + height, photo.height - high),
        )
        pen.rectangle((left, top, left + wide, top + high), fill="#E69F00")
        pen.text((left + wide / 2, top + high / 2), text, "black", font, anchor="mm")
    return photo
