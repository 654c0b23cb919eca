"""fer predict input=: photos, videos and cameras in, a table and annotated pictures out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os.path import realpath  # unlike Path.resolve, it accepts links that lead in a circle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from fer import FACE_SIZE, UserError
from fer.data.faces import Faces
from fer.data.readers.names import printable
from fer.data.readers.pictures import image_files
from fer.files import write
from fer.photos import video
from fer.photos.detection import FaceDetector, find_faces, smallest_side
from fer.photos.drawing import draw, read_photo
from fer.run import make_folder, tell_if_replaced, write_csv
from fer.text import counted, percent

MOST_PRINTED = 10  # faces: if there are more, they are in the table only
SPLIT_KEYS = {"split", "sample", "columns", "probs", "data"}
Labeler = Callable[[Faces], torch.Tensor]  # faces to probabilities, N×C


@dataclass(frozen=True)
class PhotoFace:
    """A face in a photo: its box, in pixels of the upright photo, and its crop, uint8 1×S×S.

    whole: the picture is the face.
    """

    file: Path
    x: int
    y: int
    width: int
    height: int
    pixels: torch.Tensor
    whole: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.width, self.height

    @property
    def place(self) -> str:
        if self.whole:
            return "the whole picture"
        return f"the face {self.width} pixels wide at x={self.x}, y={self.y}"


def run(
    source: str,
    out: Path,
    crop: str,
    smallest: float,
    ema: float,
    given_keys: list[str],
    classes: list[str],
    label: Labeler,
    face_size: int,
) -> None:
    """Find the faces at `source`, label them, and write the table `out` and annotated pictures.

    source: a photo, a folder of photos, a video file, or the number of a camera. crop, smallest:
    see faces_in_photos. ema: see video.annotate. given_keys: those given on the command line.
    face_size: the side of the faces that `label` takes, in pixels.
    """
    refuse_keys(given_keys, SPLIT_KEYS, "does not go with input, whose faces belong to no split")
    if source.isdecimal() or video.is_video(Path(source)):
        refuse_keys(given_keys, {"crop"}, "applies to photos only, and input is a video")
        video.annotate(source, out, smallest, ema, classes, label, face_size)
        return
    refuse_keys(given_keys, {"ema"}, "is about videos and cameras, and input is neither")
    label_photos(Path(source), out, crop, smallest, classes, label, face_size)


def refuse_keys(given_keys: list[str], refused: set[str], why: str) -> None:
    for key in sorted({key.split(".")[0] for key in given_keys} & refused):
        raise UserError(f"{key}: {why}; leave it out")


def label_photos(
    place: Path,
    out: Path,
    crop: str,
    smallest: float,
    classes: list[str],
    label: Labeler,
    face_size: int,
) -> None:
    """Label the faces in a photo or in a folder of photos, all in one go."""
    files = image_files(place) if place.is_dir() else [place]
    videos = [file for file in place.iterdir() if video.is_video(file)] if place.is_dir() else []
    if not files:
        remedy_here = "name one of its videos" if videos else "name another, or a photo"
        raise UserError(f"input={place}: no images in this folder; {remedy_here}")
    folder = out.with_name(f"{out.stem}_photos")
    overwrites_photo = realpath(out) in [realpath(file) for file in files]
    if overwrites_photo or realpath(folder) == realpath(files[0].parent):
        raise UserError(f"out={out}: would write over the photos of input; choose another name")
    left_out: list[Path] | None = [] if place.is_dir() else None
    faces = faces_in_photos(files, crop, smallest, face_size, left_out)
    files = [file for file in files if file not in (left_out or [])]
    header = ["file", "x", "y", "width", "height", "label", *classes]
    if videos:
        print(f"left out: {counted(len(videos), 'video')} in {place}; name each with input=")
    tell_if_replaced(out)
    if not faces:
        write_csv(out, header, [])
        photos = counted(len(files), "photo")
        print(f"no face in {photos}, so {out} has a header only; {remedy(smallest)}")
        return

    pixels = torch.stack([face.pixels for face in faces])
    names = [str(number) for number in range(len(faces))]
    probabilities = label(Faces(pixels, torch.full((len(faces),), -1), names))
    rows = []
    texts: dict[Path, list[tuple[tuple[int, int, int, int], str]]] = {}
    for face, row in zip(faces, probabilities, strict=True):
        name = classes[int(row.argmax())]
        text = f"{name} {percent(row.max())}"
        rows.append([printable(face.file), *face.box, name, *(f"{p:.6f}" for p in row.tolist())])
        texts.setdefault(face.file, []).append((face.box, text))
        if len(faces) <= MOST_PRINTED:
            print(f"{printable(face.file)}, {face.place}: {text}")
    write_csv(out, header, rows)

    with_boxes = {face.file for face in faces if not face.whole}
    written = f"{out}, {folder}" if with_boxes else f"{out}"
    if with_boxes:
        make_folder(folder)
    stems = Counter(file.stem for file in files)
    for file in texts:
        if file in with_boxes:
            name = file.stem if stems[file.stem] == 1 else file.name
            drawing = draw(read_photo(file), texts[file])
            write(folder / f"{name}.png", partial(drawing.save, format="PNG"))
    where = "1 photo" if len(files) == 1 else f"{len(texts)} of {len(files)} photos"
    print(f"{counted(len(rows), 'face')} in {where} labeled: {written}")


def faces_in_photos(
    files: list[Path],
    crop: str,
    smallest: float,
    face_size: int,
    left_out: list[Path] | None = None,
) -> list[PhotoFace]:
    """The faces in all photos, in order, at `face_size` pixels. Prints which photos have none.

    left_out: if given, photos that cannot be read are printed and added to it. Raises UserError for
    the first of them if it is not given or no photo can be read.

    crop: `face` looks for faces of at least `smallest` of the photo's longer side, and treats a
    picture of 48×48 pixels, the size of FER2013's faces, or of `face_size` as one face; `whole`
    treats every picture as one face.
    """
    cropped_sizes = {(FACE_SIZE, FACE_SIZE), (face_size, face_size)}
    faces: list[PhotoFace] = []
    taken_whole, detector = 0, None
    refusals: list[UserError] = []
    for file in tqdm(files, unit=" photos", delay=2, leave=False, disable=None):
        try:
            photo = read_photo(file)
        except UserError as error:
            if left_out is None:
                raise
            left_out.append(file)
            refusals.append(error)
            continue
        if crop == "whole" or photo.size in cropped_sizes:
            resized = photo.convert("L").resize((face_size, face_size), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(resized))[None]
            faces.append(PhotoFace(file, 0, 0, *photo.size, pixels, whole=True))
            taken_whole += 1
            continue
        detector = detector or FaceDetector()
        detected = find_faces(photo, detector, smallest, face_size)
        for (x, y, side), pixels in detected:
            faces.append(PhotoFace(file, x, y, side, side, pixels, whole=False))
        if not detected:
            least = smallest_side(photo, smallest)
            tqdm.write(f"{printable(file)}: no face found of {counted(least, 'pixel')} or more")
    if refusals and len(refusals) == len(files):
        raise refusals[0]
    for refusal in refusals:
        print(f"left out: {refusal}")
    if taken_whole and crop == "face":
        sizes = " or ".join(f"{width}×{height}" for width, height in sorted(cropped_sizes))
        pictures = counted(taken_whole, "picture")
        print(f"{pictures} of {sizes} pixels taken whole, as faces that are cropped already")
    return faces


def remedy(smallest: float) -> str:
    """What to do if no face was found."""
    smaller = ""
    if smallest > 0.01:
        smaller = f"smallest={max(smallest / 2, 0.01):g}, or "
    return (
        f"faces from smallest={smallest:g} of the photo's longer side on are found; "
        f"try {smaller}crop=whole for pictures that are one face each"
    )
