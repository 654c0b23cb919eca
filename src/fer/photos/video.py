"""Faces in a video file or a camera's pictures, followed from frame to frame."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from fer import VIDEO_ENDINGS, UserError, extra
from fer.data.faces import Faces
from fer.data.readers.names import printable
from fer.files import write
from fer.photos.detection import Box, FaceDetector, find_faces
from fer.photos.drawing import draw
from fer.run import tell_if_replaced, write_csv
from fer.text import counted, percent

CHUNK = 32  # frames of a file whose faces are labeled together
OVERLAP = 0.3  # intersection over union of a face's boxes in successive frames
FRAME_RATE = 25.0  # if a file or camera does not give its own
QUIT = {ord("q"), 27}  # 27: Escape
WINDOW = "fer predict: q ends"


@dataclass
class Track:
    """One person's face over time. probabilities: C, smoothed. last_frame: that showed it."""

    number: int
    box: Box
    probabilities: torch.Tensor
    last_frame: int


class Tracker:
    """Gives each face a number and smooths its probabilities over time.

    ema: per-frame decay of the exponential moving average; 0: none.
    """

    def __init__(self, ema: float, memory: int) -> None:
        """memory: frames for which a face may be out of sight and keep its number."""
        self.ema = ema
        self.memory = memory
        self.tracks: list[Track] = []
        self.count = 0

    def update(self, frame: int, boxes: list[Box], probabilities: torch.Tensor) -> list[Track]:
        """The track of each face of a frame. probabilities: N×C."""
        self.tracks = [t for t in self.tracks if frame - t.last_frame <= self.memory]
        free = list(self.tracks)
        updated = []
        for box, row in zip(boxes, probabilities, strict=True):
            nearest = max(free, key=lambda track: overlap(track.box, box), default=None)
            if nearest is None or overlap(nearest.box, box) < OVERLAP:
                nearest = Track(self.count, box, row, frame)
                self.count += 1
                self.tracks.append(nearest)
            else:
                free.remove(nearest)
                decay = self.ema ** (frame - nearest.last_frame)
                nearest.probabilities = decay * nearest.probabilities + (1 - decay) * row
                nearest.box, nearest.last_frame = box, frame
            updated.append(Track(nearest.number, box, nearest.probabilities, frame))
        return updated


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two squares."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] ** 2 + b[2] ** 2 - width * height)


def is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_ENDINGS


def has_display() -> bool:
    """Can a window be shown?"""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def opened_capture(source: str) -> Iterator[Any]:
    """OpenCV's reader of a video file, or of the camera with the number `source`."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: errors are reported below
    with extra("photos", "videos and cameras"):
        import cv2
    with contextlib.suppress(AttributeError):  # builds without it
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if not source.isdecimal() and not Path(source).is_file():
        what = "is not a regular file" if Path(source).exists() else "no such file"
        raise UserError(f"input={printable(source)}: {what}; name a video")
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        if not capture.isOpened():
            what = f"no camera {source}" if source.isdecimal() else "not a readable video"
            other = "another camera, such as input=1" if source.isdecimal() else "another file"
            raise UserError(f"input={source}: {what}; name {other}")
        yield capture
    finally:
        capture.release()


class DrawnVideo:
    """A video file that drawn frames are written to, and a window that shows them if `shown`."""

    def __init__(self, file: Path, frame_rate: float, shown: bool) -> None:
        self.file = file
        self.frame_rate = frame_rate
        self.shown = shown
        self.writer: Any = None  # opened for the first frame, whose size all have

    def add(self, picture: Image.Image) -> None:
        import cv2

        pixels = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
        if self.writer is None:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self.writer = cv2.VideoWriter(str(self.file), codec, self.frame_rate, picture.size)
        self.writer.write(pixels)
        if self.shown:
            cv2.imshow(WINDOW, pixels)

    def asked_to_quit(self) -> bool:
        """Was q or Escape pressed in the window?"""
        import cv2

        return self.shown and cv2.waitKey(1) & 0xFF in QUIT

    def close(self) -> None:
        import cv2

        if self.writer is not None:
            self.writer.release()
        if self.shown:
            cv2.destroyAllWindows()


def frames(capture: Any) -> Iterator[Image.Image]:
    """RGB, in order, until the end."""
    while True:
        there_is_one, frame = capture.read()
        if not there_is_one:
            return
        yield Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))


def chunked(pictures: Iterator[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    chunk = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def annotate(
    source: str,
    out: Path,
    smallest: float,
    ema: float,
    classes: list[str],
    label: Callable[[Faces], torch.Tensor],
    face_size: int,
) -> None:
    """Label the faces of each frame; write a table and an annotated video beside it.

    A camera is read until the window is closed with q or Escape, or until Ctrl-C. ema: per-frame
    decay of the moving average of each face's probabilities. face_size: the side of the faces that
    `label` takes, in pixels.
    """
    camera = source.isdecimal()
    target = out.with_name(f"{out.stem}_video.mp4")
    if not camera and target.exists() and target.samefile(source):
        raise UserError(f"out={out}: would write over the video of input; choose another name")
    with opened_capture(source) as capture, tempfile.TemporaryDirectory() as folder:
        import cv2

        detector = FaceDetector()
        frame_rate = capture.get(cv2.CAP_PROP_FPS) or FRAME_RATE
        frame_count = 0 if camera else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        tracker = Tracker(ema, memory=round(frame_rate))
        window = camera and has_display()
        if camera:
            print(f"reading camera {source}; end with {'q' if window else 'Ctrl-C'}")
        drawn = Path(folder) / "drawn.mp4"
        output = DrawnVideo(drawn, frame_rate, shown=window)
        rows: list[list[object]] = []
        frame = 0
        bar = tqdm(total=frame_count or None, unit=" frames", delay=2, leave=False, disable=None)
        try:
            for pictures in chunked(frames(capture), 1 if camera else CHUNK):
                found = [find_faces(picture, detector, smallest, face_size) for picture in pictures]
                labeled = label_frames(found, len(classes), label)
                for picture, faces, probabilities in zip(pictures, found, labeled, strict=True):
                    tracks = tracker.update(frame, [box for box, _ in faces], probabilities)
                    for track in tracks:
                        rows.append(table_row(frame, frame_rate, track, classes))
                    output.add(draw_tracks(picture, tracks, classes))
                    frame += 1
                    bar.update()
                if output.asked_to_quit():
                    break
        except KeyboardInterrupt:
            if not camera:
                raise
        finally:
            bar.close()
            output.close()
        if not frame:
            raise UserError(f"input={source}: no frames; name another video")
        tell_if_replaced(out)
        header = ["frame", "seconds", "face", "x", "y", "width", "height", "label", *classes]
        write_csv(out, header, rows)
        write(target, lambda file: file.write(drawn.read_bytes()))
    followed = f"{counted(tracker.count, 'face')} followed through {counted(frame, 'frame')}"
    print(f"{followed}: {out}, {target}")


def label_frames(
    faces_of_frames: list[list[tuple[Box, torch.Tensor]]],
    class_count: int,
    label: Callable[[Faces], torch.Tensor],
) -> list[torch.Tensor]:
    """The probabilities of each frame's faces, N×C, labeled in one batch."""
    counts = [len(faces) for faces in faces_of_frames]
    if not sum(counts):
        return [torch.empty(0, class_count) for _ in faces_of_frames]
    pixels = torch.stack([pixels for faces in faces_of_frames for _, pixels in faces])
    names = [str(number) for number in range(len(pixels))]
    probabilities = label(Faces(pixels, torch.full((len(pixels),), -1), names))
    return list(probabilities.split(counts))


def table_row(frame: int, frame_rate: float, track: Track, classes: list[str]) -> list[object]:
    x, y, side = track.box
    name = classes[int(track.probabilities.argmax())]
    numbers = [f"{p:.6f}" for p in track.probabilities.tolist()]
    return [frame, f"{frame / frame_rate:.3f}", track.number, x, y, side, side, name, *numbers]


def draw_tracks(picture: Image.Image, tracks: list[Track], classes: list[str]) -> Image.Image:
    """The frame with a box, number and label for each face, at the frame's own size."""
    texts = []
    for track in tracks:
        x, y, side = track.box
        name = classes[int(track.probabilities.argmax())]
        text = f"{track.number} {name} {percent(float(track.probabilities.max()))}"
        texts.append(((x, y, side, side), text))
    return draw(picture, texts).resize(picture.size)
