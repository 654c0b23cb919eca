"""Faces in photos, for fer predict input=: found by scikit-image's cascade, cropped as FER2013's, named and drawn. What
labels them is handed in; of networks and checkpoints it knows nothing."""

from collections import Counter, defaultdict
from collections.abc import Callable
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
from fer.data.readers import image_files, opened
from fer.files import write
from fer.run import make_folder, write_csv

SEARCHED = 640  # pixels of a photo's longer side that are searched; a face takes SMALLEST of them or more
SMALLEST = 24
MARGIN = 0.1  # of the shorter side, added by repeating the edge: faces that fill a photo are found only so
VOTES = 16  # windows that must agree on a face
DETAIL = 7.0  # gray levels: deviation from the local mean. 999 of 1,000 FER2013 faces have 8.6; smooth shades, on which
# the cascade sees faces too, have 6 or fewer
Box = tuple[int, int, int]  # x, y and side of a square, in pixels


def run(place: Path, out: Path, typed: list[str], classes: list[str], label: Callable[[Faces], torch.Tensor]) -> None:
    """Find the faces in the photos at `place`, have them labelled, write `out` and a picture for each photo with faces.
    typed: the keys given on the command line."""
    if other := {key.split(".")[0] for key in typed} & {"split", "sample", "columns", "probs", "data"}:
        raise UserError(f"{min(other)}: does not go with input, whose faces are of no split; leave one of the two out")
    files = image_files(place) if place.is_dir() else [place]
    if not files:
        raise UserError(f"input={place}: no images in this folder; name another, or a photo")
    folder = out.with_name(f"{out.stem}_photos")
    if realpath(out) in [realpath(file) for file in files] or realpath(folder) == realpath(files[0].parent):
        raise UserError(f"out={out}: would write over the photos of input; choose another name")
    detector, found = cascade(), []
    for file in files:
        own = find_faces(read_photo(file).convert("L"), detector)
        found += [(file, *face) for face in own]
        if not own:
            print(f"{readable(file)}: no face found")
    header = ["file", "x", "y", "width", "height", "label", *classes]
    if not found:
        write_csv(out, header, [])
        print(f"no face in {len(files)} photos: {out} has a header only; faces are found from the front and upright")
        return
    crops = torch.stack([crop for *_, crop in found])
    means = label(Faces(crops, torch.full((len(crops),), -1), [str(i) for i in range(len(crops))]))
    make_folder(folder)
    rows, texts = [], defaultdict(list)
    for (file, (x, y, side), _), mean in zip(found, means, strict=True):
        name = classes[mean.argmax()]
        rows.append([readable(file), x, y, side, side, name, *(f"{p:.6f}" for p in mean.tolist())])
        texts[file].append(((x, y, side), f"{name} {mean.max():.0%}"))
    write_csv(out, header, rows)
    stems = Counter(file.stem for file in files)
    for file in texts:
        name = file.stem if stems[file.stem] == 1 else file.name
        write(folder / f"{name}.png", partial(draw(read_photo(file), texts[file]).save, format="PNG"))
    print(f"{len(rows)} face{'s' * (len(rows) > 1)} in {len(texts)} of {len(files)} photos labelled: {out}, {folder}")


def readable(file: Path) -> str:
    return str(file).encode(errors="replace").decode()


def cascade() -> Any:
    """scikit-image's detector of frontal faces."""
    with extra("photos", "input"):
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    return Cascade(lbp_frontal_face_cascade_filename())


def read_photo(file: Path) -> Image.Image:
    """The first frame, upright as its EXIF says, in RGB."""
    if not file.is_file():
        raise UserError(f"input={readable(file)}: no such file or folder; name a photo or a folder of photos")
    with opened(file, "make it smaller") as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{readable(file)}: pixels of mode {image.mode}; save it with 8 bits")
        return ImageOps.exif_transpose(image).convert("RGB")


def find_faces(photo: Image.Image, detector: Any) -> list[tuple[Box, torch.Tensor]]:
    """The upright faces of a gray photo from left to right: boxes, and what is in them, uint8 1×48×48, as tight as
    FER2013's faces.

    The cascade sees faces in much else, but there its windows differ between a photo and its mirror image: a face is
    where VOTES of them agree.
    """
    scale = min(1, SEARCHED / max(photo.size))
    width, height = (max(1, round(side * scale)) for side in photo.size)
    if min(height, width) < SMALLEST:
        return []
    margin = round(MARGIN * min(width, height))
    small = np.pad(np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)), margin, mode="edge")
    how = {"scale_factor": 1.1, "step_ratio": 1, "min_size": (SMALLEST,) * 2, "max_size": (min(small.shape),) * 2}
    how |= {"min_neighbor_number": 1, "intersection_score_threshold": 1.01}  # single windows, none merged
    seen = [(w["c"], w["r"], w["width"]) for w in detector.detect_multi_scale(small, **how)]
    mirror = detector.detect_multi_scale(np.ascontiguousarray(small[:, ::-1]), **how)
    seen += [(small.shape[1] - w["c"] - w["width"], w["r"], w["width"]) for w in mirror]
    windows = np.array(seen, float).reshape(-1, 3) - [margin, margin, 0]
    x, y, side = windows.T
    apart = np.hypot(*(np.subtract.outer(v, v) for v in (x + side / 2, y + side / 2)))
    agree = (apart < 0.15 * np.add.outer(side, side)) & (abs(np.subtract.outer(np.log(side), np.log(side))) < 0.47)
    boxes: list[np.ndarray] = []
    while (votes := agree.sum(1)).max(initial=0) >= VOTES:
        own = agree[votes.argmax()].copy()
        agree[own], agree[:, own] = False, False
        box = np.median(windows[own], 0)
        if all(np.abs(box[:2] + box[2] / 2 - b[:2] - b[2] / 2).max() > (box[2] + b[2]) / 3 for b in boxes):
            boxes.append(box)
    found = []
    for left, top, whole in sorted((box / scale).round().astype(int).tolist() for box in boxes):
        whole = min(whole, *photo.size)
        left, top = (min(max(at, 0), room - whole) for at, room in zip((left, top), photo.size, strict=True))
        face = photo.crop((left, top, left + whole, top + whole)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(face))[None]
        if detail(pixels[None].float(), 7).std() >= DETAIL:
            found.append(((left, top, whole), pixels))
    return found


def draw(photo: Image.Image, faces: list[tuple[Box, str]]) -> Image.Image:
    """The photo, a small one enlarged, with a box and a text for each face."""
    times = max(1, 480 // max(photo.size))
    photo = ImageOps.scale(photo, times)
    pen, size = ImageDraw.Draw(photo), max(14, max(photo.size) // 40)
    font = ImageFont.load_default(size)
    for box, text in faces:
        x, y, side = (times * number for number in box)
        pen.rectangle((x, y, x + side, y + side), outline="#E69F00", width=max(2, size // 8))
        wide, high = pen.textlength(text, font) + size // 2, round(size * 1.3)
        left, top = max(0, min(x, photo.width - wide)), y - high if y >= high else min(y + side, photo.height - high)
        pen.rectangle((left, top, left + wide, top + high), fill="#E69F00")
        pen.text((left + wide / 2, top + high / 2), text, "black", font, anchor="mm")
    return photo
