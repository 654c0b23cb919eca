"""The same from Python: train, load, label faces and photos in a notebook. docs/api.md shows it in
ten lines.

Errors that a user can mend are fer.UserError, in the words of the command line.
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

from fer import UserError, config, inference, photos
from fer.checkpoint import Checkpoint, find_checkpoint
from fer.data.faces import Faces
from fer.launch import call
from fer.models.network import Network
from fer.run import read_history
from fer.runtime import Interrupted, pick_device

__all__ = ["Classifier", "Faces", "UserError", "find_faces", "history", "load", "train"]

ONE_AT_A_TIME = (
    threading.Lock()
)  # trainings: they seed torch's generators, which a process has once


@dataclass(frozen=True)
class Classifier:
    """A trained network with all it needs: normalization is inside, `classes` names the columns of
    its answers.
    """

    checkpoint: Checkpoint
    network: Network

    @property
    def classes(self) -> list[str]:
        return self.checkpoint.classes

    def probabilities(
        self, images: ArrayLike, tta: config.Views = "none", batch_size: int = 512
    ) -> np.ndarray:
        """float64 N×classes, each row sums to 1, of gray faces 0..255 (not 0..1), of any real type,
        that fill the picture as FER2013's do: N×48×48, N×1×48×48 or one alone. tta: views that are
        averaged, as in fer predict.
        """
        if tta not in get_args(config.Views) or batch_size < 1:
            raise UserError(
                f"tta={tta}, batch_size={batch_size}: should be none, flip or tencrop, and 1 or "
                "more"
            )
        try:
            found = torch.as_tensor(np.asarray(images, np.float32))
        except (TypeError, ValueError):
            raise UserError("images: are no numbers; should be gray values, N×48×48") from None
        if (
            found.ndim not in (2, 3, 4)
            or found.shape[-2:] != (48, 48)
            or (found.ndim == 4 and found.shape[1] != 1)
        ):
            raise UserError(
                f"images: of shape {'×'.join(map(str, found.shape))}; should be N×48×48"
            )
        low, high = (found.min(), found.max()) if found.numel() else (0, 255)
        if not (low >= 0 and high <= 255) or 0 < high <= 1:  # NaN too
            raise UserError(f"images: from {low:g} to {high:g}; should be gray values, 0 to 255")
        return inference.probabilities(
            self.network, found.reshape(-1, 1, 48, 48), batch_size, tta
        ).numpy()

    def faces(self, split: str = "validation") -> Faces:
        """A split of the data that it was trained with: images uint8 N×1×48×48, labels int64 N,
        ids.
        """
        return self.checkpoint.data().open(split)


def train(run: str | Path, *overrides: str) -> Path:
    """`fer train run=RUN OVERRIDES…`; returns the run folder, which must be new.

    Works in any thread and beside a program's own Hydra, whose state stays as it is, as do torch's
    random numbers and settings; of two calls at once the second waits. Raises KeyboardInterrupt
    when it was interrupted, everything saved; `resume=` continues then, on the command line.
    """
    with ONE_AT_A_TIME, torch_as_it_was():
        try:
            call("train", [*overrides, f"run={run}"])
        except Interrupted:
            raise KeyboardInterrupt from None
    return Path(run)


@contextmanager
def torch_as_it_was() -> Iterator[None]:
    """After the context torch draws the random numbers that it would have drawn, and the
    environment is the same.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    environment = dict(os.environ)
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


def history(run: str | Path) -> pd.DataFrame:
    """A row an epoch: losses, accuracies (0 to 1), recalls, seconds, the learning rate and all that
    changed.
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


def find_faces(photo: str | Path | Image.Image) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """The upright faces in a photo from left to right: x, y and side of their square in pixels, and
    what is in it as uint8 48×48, ready for probabilities(). Needs pip install
    'fer-trainer[photos]'.
    """
    image = photo if isinstance(photo, Image.Image) else photos.read_photo(Path(photo))
    return [
        (box, face[0].numpy())
        for box, face in photos.find_faces(image.convert("L"), photos.cascade())
    ]
