"""fer from Python: train, load, label faces and photos in a notebook; see docs/api.md. What a user
can fix raises fer.UserError, with the message of the command line.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from PIL import Image

from fer import FACE_SIZE, UserError, config, inference, photos
from fer.checkpoint import Checkpoint, find_checkpoint
from fer.data.faces import Faces
from fer.data.readers.pictures import eight_bits
from fer.launch import call
from fer.models.network import Network
from fer.run import read_history
from fer.runtime import Interrupted, pick_device

__all__ = ["Classifier", "Faces", "UserError", "find_faces", "history", "load", "train"]

# Training seeds torch's generators, of which a process has one set.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Classifier:
    """A trained network, normalization included. `classes` names the columns of its
    probabilities.
    """

    checkpoint: Checkpoint
    network: Network

    def __repr__(self) -> str:  # a notebook shows it; the weights would fill pages
        path = str(self.checkpoint.path)
        return f"Classifier({path!r}, classes={self.classes}, face_size={self.face_size})"

    @property
    def classes(self) -> list[str]:
        return self.checkpoint.classes

    @property
    def face_size(self) -> int:
        """Pixels of a side of the faces that it was trained on."""
        return self.checkpoint.face_size

    def probabilities(
        self, images: ArrayLike, tta: config.Views = "none", batch_size: int = 512
    ) -> np.ndarray:
        """float64 N×classes; each row sums to 1.

        images: gray faces, 0 to 255 (not 0 to 1), of any real type, that fill the picture as
        FER2013's do: N×S×S, N×1×S×S, or one alone. They are resized to face_size. tta: views that
        are averaged, as in fer predict. Raises UserError for anything else.
        """
        if tta not in get_args(config.Views):
            raise UserError(f"tta={tta}: should be none, flip or tencrop")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: should be 1 or more")
        faces = checked_faces(images)
        if not len(faces):
            return np.empty((0, len(self.classes)))
        return inference.probabilities(self.network, faces, batch_size, tta).numpy()

    def faces(self, split: str = "validation") -> Faces:
        """A split of the data that it was trained on: images uint8 N×1×S×S, labels int64 N, ids."""
        return self.checkpoint.data().split(split)


def checked_faces(images: ArrayLike) -> torch.Tensor:
    """The images as float32 N×1×S×S. Raises UserError unless they are square gray faces."""
    try:
        faces = torch.as_tensor(np.asarray(images, np.float32))
    except (TypeError, ValueError):
        raise UserError("images: not numbers; should be gray values, N×S×S") from None
    one_channel = faces.ndim in (2, 3) or (faces.ndim == 4 and faces.shape[1] == 1)
    if not one_channel or faces.shape[-1] != faces.shape[-2] or faces.shape[-1] == 0:
        shape = "×".join(map(str, faces.shape))
        raise UserError(f"images: of shape {shape}; should be square gray faces, N×S×S")
    if faces.numel():
        low, high = faces.min(), faces.max()
        in_range = low >= 0 and high <= 255  # false for NaN
        if not in_range or 0 < high <= 1:
            raise UserError(f"images: from {low:g} to {high:g}; should be gray values, 0 to 255")
    return faces.reshape(-1, 1, *faces.shape[-2:])


def train(run: str | Path, *overrides: str) -> Path:
    """`fer train run=RUN OVERRIDES…`; returns the run folder, which must be new.

    It works in any thread and inside a program that uses Hydra itself: Hydra's state, torch's
    random numbers and its settings stay as they are. If two calls overlap, the second waits. Raises
    KeyboardInterrupt if training was interrupted; everything is saved then, and
    `fer train resume=` continues it.
    """
    with ONE_AT_A_TIME, preserving_torch_state():
        try:
            call("train", [*overrides, f"run={run}"])
        except Interrupted:
            raise KeyboardInterrupt from None
    return Path(run)


@contextmanager
def preserving_torch_state() -> Iterator[None]:
    """After the context, torch's random numbers and the environment are as they were before."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    environment = dict(os.environ)
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


def history(run: str | Path) -> pd.DataFrame:
    """A row for each epoch: losses, accuracies (0 to 1), recalls, seconds, the learning rate and
    whatever else a schedule changed.
    """
    return read_history(Path(run))


def load(ckpt: str | Path, device: config.Device = "auto", trust: Sequence[str] = ()) -> Classifier:
    """The network of a checkpoint, or of the best.pt in a run folder. Nothing in the file is
    executed. trust: names of modules whose code the checkpoint may name, such as your own model's.
    """
    try:
        config.device_name(device)
    except ValueError as error:
        raise UserError(f"device={device}: {error}") from None
    checkpoint = Checkpoint.open(find_checkpoint(str(ckpt)), trust)
    return Classifier(checkpoint, checkpoint.network(pick_device(device)))


def find_faces(
    photo: str | Path | Image.Image, smallest: float = photos.SHARE, face_size: int = FACE_SIZE
) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """The faces in a photo from left to right: x, y and side of their square in pixels, and its
    content as uint8 S×S, turned upright, ready for probabilities().

    smallest: side of the smallest face, 0.01 to 1, as a share of the photo's longer side.
    face_size: S, best the classifier's own. Needs pip install 'fer-trainer[photos]'.
    """
    if not 0.01 <= smallest <= 1:
        raise UserError(f"smallest={smallest}: should be from 0.01 to 1")
    if isinstance(photo, Image.Image):
        image = eight_bits(photo, "photo")
    else:
        image = photos.read_photo(Path(photo))
    detector = photos.FaceDetector()
    faces = photos.find_faces(image, detector, smallest, face_size)
    return [(box, face[0].numpy()) for box, face in faces]
