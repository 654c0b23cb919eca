"""Faces: images, labels and ids as tensors, the same whatever file or drawing they come from. Knows
of no format.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from fer import CLASSES, Normalization, UserError

SIZE = 48


@dataclass(frozen=True)
class Faces:
    """One split.

    images: uint8 N×1×48×48, 0 black to 255 white. labels: int64 N, 0 to 6 (7 is FER+'s contempt),
    -1 where unlabelled.
    ids: N strings, the file's own where it has them, else "0" … "n-1". targets: float N×classes
    that sum to 1, where training is to learn more than the labels.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    targets: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index) -> "Faces":
        """The faces at `index`: positions, in that order, or bool N."""
        index = torch.arange(len(self))[index]
        targets = None if self.targets is None else self.targets[index]
        return Faces(
            self.images[index], self.labels[index], [self.ids[i] for i in index.tolist()], targets
        )

    def among(self, others: "Faces") -> torch.Tensor:
        """Bool N: is the same image, pixel for pixel, in `others` too?"""
        there = {image.tobytes() for image in others.images.numpy()}
        return torch.tensor(
            [image.tobytes() in there for image in self.images.numpy()], dtype=torch.bool
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the images."""
        return hashlib.sha256(self.images.contiguous().numpy().data).hexdigest()

    @property
    def labelled(self) -> bool:
        return len(self) > 0 and bool((self.labels >= 0).all())


def stratified(labels: np.ndarray, share: float, seed: int, least: int = 0) -> np.ndarray:
    """Bool N: a share of the faces of every class, drawn by `seed`, but `least` of each, where it
    has as many.
    """
    drawn, generator = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        drawn[rows[: max(least, round(share * len(rows)))]] = True
    return drawn


@dataclass(frozen=True)
class Data:
    """Every split of one data set.

    splits: by name; "train" and "validation" where there are faces to train on, others as the
    source has them ("test", "private"); "all" where a single file is used whole.
    shut: names of splits that hold, or may hold, PrivateTest: they are opened only where a command
    names them, and only fer evaluate prints an accuracy on them. normalize: how the input is
    scaled, `none`, `unit`, `dataset` or `image`.
    hash: SHA-256 of what was read, the file's own where it is one file. classes: their names. mode:
    what training does with targets, FER+'s `majority`, `probability`, `crossentropy` or `multi`;
    see configs/data/ferplus.yaml. sample: path of a sample submission that lies beside the faces.
    """

    splits: dict[str, Faces]
    normalize: Normalization
    shut: frozenset[str] = frozenset()
    hash: str = ""
    classes: tuple[str, ...] = CLASSES
    mode: str = "majority"
    sample: str | None = None

    def open(self, name: str) -> Faces:
        if name == "train" and "train" not in self.splits:
            have = ", ".join(f"{len(faces)} of {key}" for key, faces in self.splits.items())
            raise UserError(
                f"data.path: has no faces to train on, only {have}; name a folder with training "
                "faces"
            )
        if name not in self.splits:
            have = ", ".join(f"{key} ({len(faces)} faces)" for key, faces in self.splits.items())
            raise UserError(f"split={name}: the data has no such split; it has {have}")
        return self.splits[name]

    @property
    def unlabelled(self) -> str | None:
        """Name of the split that a submission is made for, None where every split has labels."""
        return next((name for name, faces in self.splits.items() if not faces.labelled), None)

    @property
    def only(self) -> str | None:
        """Name of the one split, None where there are several."""
        return next(iter(self.splits)) if len(self.splits) == 1 else None

    @property
    def absent(self) -> list[str]:
        """Names of the classes of which there is no face to train on."""
        seen = {*self.open("train").labels.tolist()}
        return [name for label, name in enumerate(self.classes) if label not in seen]
