"""Faces: images, labels and ids as tensors, the same whatever file or drawing they come from. Knows
no file format.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from fer import CLASSES, Normalization, UserError
from fer.text import counted


@dataclass(frozen=True)
class Faces:
    """One split.

    images: uint8 N×1×H×H, 0 black to 255 white; mapped from the disk if they would not fit into
    memory. labels: int64 N, positions in Data.classes, -1 without a label. ids: N strings: the
    paths of pictures, otherwise the ids in the file, or "0" … "n-1". targets: float N×classes, rows
    of which sum to 1, if training uses more than the labels, such as FER+'s votes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    targets: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.images.shape[-2:]
        return f"Faces({len(self):,} of {height}×{width})"

    def take(self, index) -> "Faces":
        """The faces at `index`: positions, in that order, or bool N."""
        index = torch.arange(len(self))[index]
        targets = None if self.targets is None else self.targets[index]
        return Faces(
            self.images[index], self.labels[index], [self.ids[i] for i in index.tolist()], targets
        )

    def relabeled(self, names: Sequence[str], classes: Sequence[str]) -> "Faces":
        """The faces with labels and targets of `classes` in place of `names`. Faces of other
        classes are left out.
        """
        left_out = -2
        position = [classes.index(name) if name in classes else left_out for name in names]
        labels = torch.tensor([*position, -1])[self.labels]  # -1, no label, stays so
        targets = None
        if self.targets is not None:
            targets = self.targets.new_zeros(len(self), len(classes))
            for column, name in enumerate(names):
                if name in classes:
                    targets[:, classes.index(name)] = self.targets[:, column]
        relabeled = Faces(self.images, labels, self.ids, targets)
        kept = labels != left_out
        return relabeled if kept.all() else relabeled.take(kept)

    def positions(self, ids: list[str]) -> dict[str, int]:
        """Id → position. File names without their folders serve as ids if they are unique and
        include all of `ids`.
        """
        names = {name.rpartition("/")[2]: i for i, name in enumerate(self.ids)}
        if len(names) == len(self.ids) and {*ids} <= {*names}:
            return names
        return {name: i for i, name in enumerate(self.ids)}

    def among(self, others: "Faces") -> torch.Tensor:
        """Bool N: is the same image, pixel for pixel, also in `others`?"""
        there = {*digests(others.images)}
        return torch.tensor([digest in there for digest in digests(self.images)], dtype=torch.bool)

    @property
    def side(self) -> int:
        """In pixels."""
        return self.images.shape[-1]

    @property
    def hash(self) -> str:
        """SHA-256 of the images."""
        return hashlib.sha256(self.images.contiguous().numpy().data).hexdigest()

    @property
    def hashes(self) -> torch.Tensor:
        """int64 N, equal for equal images and, almost certainly, different for others."""
        return first_halves(digests(self.images))

    @property
    def thumbnail_hashes(self) -> torch.Tensor:
        """int64 N, equal for most pictures that were compressed or resized, and for few others.

        Of the average hash, 8×8 pixels that are brighter than their mean or not (Krawetz 2011,
        "Looks like it"); hashed again, since it shows an outline of the face.
        """
        bits = []
        for part in self.images.split(1024):
            thumbnails = F.adaptive_avg_pool2d(part.float(), 8)
            bits.append((thumbnails > thumbnails.mean((2, 3), keepdim=True)).to(torch.uint8))
        return first_halves(digests(torch.cat(bits)))

    @property
    def labeled(self) -> bool:
        return len(self) > 0 and bool((self.labels >= 0).all())


def digests(images: torch.Tensor) -> list[bytes]:
    """16 bytes for each of uint8 N×1×H×W, equal for equal images: a set of them takes less memory
    than the images.
    """
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]


def first_halves(digests_of_images: list[bytes]) -> torch.Tensor:
    """int64 N of N digests."""
    halves = np.frombuffer(b"".join(digests_of_images), dtype="<i8").reshape(-1, 2)
    return torch.from_numpy(halves[:, 0].astype(np.int64))


def stratified(
    labels: np.ndarray, share: float, seed: int, least: int = 0, least_of_two: bool = False
) -> np.ndarray:
    """Bool N: a share of the faces of every class, drawn by `seed`. At least `least` of each class
    that has as many; with `least_of_two`, at least one of each class that has two.
    """
    drawn, generator = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        count = max(least, round(share * len(rows)))
        if least_of_two and len(rows) >= 2:
            count = max(1, count)
        drawn[rows[:count]] = True
    return drawn


@dataclass(frozen=True)
class Data:
    """Every split of one data set.

    splits: by name; "train" and "validation" if there are faces to train on, others as the source
    names them ("test", "private"); "all" if a single file is used whole.
    normalize: how the input is scaled, `none`, `unit`, `dataset` or `image`.
    sealed: names of splits that contain, or may contain, PrivateTest. They are used only if a
    command names them, and only fer evaluate prints an accuracy on them.
    hash: SHA-256 of what was read; of a single file, that of the file.
    classes: their names.
    mode: what training does with targets, FER+'s `majority`, `probability`, `crossentropy` or
    `multi`; see configs/data/ferplus.yaml.
    sample: path of a sample submission beside the faces.
    description: which files are used for what, in words.
    left_out: split → why it could not be read.
    enlarged: what data.size does to smaller faces, in words.
    unused: tables that could contain labels, and why they are not used.
    not_read: pictures and folders that are in no split, in words; the description says it too.
    left_out_classes: how many faces, of which classes, data.classes leaves out; as not_read.
    """

    splits: dict[str, Faces]
    normalize: Normalization
    sealed: frozenset[str] = frozenset()
    hash: str = ""
    classes: tuple[str, ...] = CLASSES
    mode: str = "majority"
    sample: str | None = None
    description: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    enlarged: str = ""
    unused: str = ""
    not_read: str = ""
    left_out_classes: str = ""

    def split(self, name: str) -> Faces:
        if name == "train" and "train" not in self.splits:
            have = ", ".join(f"{len(faces)} of {key}" for key, faces in self.splits.items())
            remedy = self.unused or "name a folder with training faces"
            raise UserError(f"data.path: has no faces to train on, only {have}; {remedy}")
        if name in self.left_out:
            raise UserError(f"split={name}: {self.left_out[name]}")
        if name not in self.splits:
            sizes = {key: counted(len(faces), "face") for key, faces in self.splits.items()}
            have = ", ".join(f"{key} ({size})" for key, size in sizes.items())
            raise UserError(f"split={name}: the data has no such split; it has {have}")
        if not len(self.splits[name]):
            raise UserError(
                f"split={name}: has no faces of the classes {', '.join(self.classes)}; choose "
                "another split"
            )
        return self.splits[name]

    def for_network(self, classes: Sequence[str]) -> "Data":
        """The data for a network of other `classes`, matched by name: faces of classes that the
        network does not have are left out, which is printed. Unchanged if the network's classes
        begin with the data's.

        Raises UserError if no class is in both. Without any label, the classes are the network's.
        """
        names = list(self.classes)
        if list(classes)[: len(names)] == names:
            return self
        if all((faces.labels < 0).all() for faces in self.splits.values()):
            return replace(self, classes=tuple(classes))
        shared = [name for name in names if name in classes]
        if not shared:
            raise UserError(
                f"the network was trained on the classes {', '.join(classes)}, and the data has "
                f"none of them, only {', '.join(names)}; name other data, or the data's labels "
                "with data.names= or data.merge="
            )
        splits = {}
        seen: dict[int, Faces] = {}  # PublicTest has two names
        for split, faces in self.splits.items():
            if id(faces) not in seen:
                seen[id(faces)] = faces.relabeled(names, classes)
            splits[split] = seen[id(faces)]
        count = sum(len(faces) for faces in {id(f): f for f in self.splits.values()}.values())
        lost = count - sum(len(faces) for faces in seen.values())
        if lost:
            strange = ", ".join(name for name in names if name not in classes)
            print(
                f"{counted(lost, 'face')} of {strange} left out: the network does not have these "
                "classes"
            )
        if missing := [name for name in classes if name not in names]:
            print(f"the data has no faces of {', '.join(missing)}, which the network also has")
        return replace(self, splits=splits, classes=tuple(classes))

    @property
    def unlabeled_split(self) -> str | None:
        """Name of the split that a submission is made for; None if every split has labels."""
        return next((name for name, faces in self.splits.items() if not faces.labeled), None)

    @property
    def only_split(self) -> str | None:
        """Name of the only split; None if there are several."""
        return next(iter(self.splits)) if len(self.splits) == 1 else None

    def copies_of_training(self) -> dict[str, int]:
        """Split → how many of its faces are training faces too, pixel for pixel; splits without
        any are left out.
        """
        training = self.split("train")
        counts: dict[str, int] = {}
        seen = {id(training)}  # PublicTest has two names
        for name, faces in self.splits.items():
            if id(faces) not in seen:
                seen.add(id(faces))
                count = int(faces.among(training).sum())
                if count:
                    counts[name] = count
        return counts

    @property
    def missing_classes(self) -> list[str]:
        """Names of the classes without a training face."""
        seen = {*self.split("train").labels.tolist()}
        return [name for label, name in enumerate(self.classes) if label not in seen]
