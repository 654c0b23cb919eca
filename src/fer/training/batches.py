"""The faces of a run, on its device if they fit, and the batches of each epoch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fer import UserError
from fer.augment import check_crop
from fer.data.faces import Data
from fer.models.network import Network, Normalize
from fer.runtime import Stream, has_room, seed_of
from fer.training.objective import balanced_weights


@dataclass(frozen=True)
class TrainingFaces:
    """Training and validation faces, on the device or, if they do not fit there, on the host.

    images: uint8 N×1×H×W. targets: float N×C, class probabilities. val_images: uint8 M×1×H×W.
    val_labels: int64 M, always on the device. normalize: fitted on the training faces. hashes,
    thumbnail_hashes: of the faces that the network is trained on. val_hash: SHA-256 of the
    validation images. fingerprint: SHA-256 of all faces and labels; a resumed run must have the
    same.
    """

    images: Tensor
    targets: Tensor
    val_images: Tensor
    val_labels: Tensor
    normalize: Normalize
    data: Data
    hashes: Tensor
    thumbnail_hashes: Tensor
    val_hash: str
    fingerprint: str

    @classmethod
    def load(
        cls, data: Data, device: torch.device, drop_copies: bool, crop: int | None
    ) -> "TrainingFaces":
        """Move the faces to the device, if it has room.

        drop_copies: leave out training faces that are validation faces too. crop: the side of
        augmentation's window; refused if the faces are smaller.
        """
        training, validation = data.split("train"), data.split("validation")
        if drop_copies:
            training = training.take(~training.among(validation))
        if len(training) < 2 or len(validation) == 0:
            raise UserError(
                f"{len(training)} training and {len(validation)} validation faces are too few"
            )
        if len(data.classes) < 2:
            raise UserError(
                f"all faces are of one class, {data.classes[0]}, which leaves nothing to learn; "
                "put the pictures into a folder for each class, or name several in data.classes="
            )
        if crop:
            check_crop(training.images, crop)
        targets = training.targets
        if targets is None:
            targets = F.one_hot(training.labels, len(data.classes)).float()
        digest = hashlib.sha256(validation.labels.numpy().data)
        for tensor in (validation.images, training.images, targets):
            digest.update(tensor.contiguous().numpy().data)
        home = device
        if not has_room(device, training.images.nbytes + validation.images.nbytes):
            home = torch.device("cpu")
        return cls(
            images=training.images.to(home),
            targets=targets.to(home),
            val_images=validation.images.to(home),
            val_labels=validation.labels.to(device),
            normalize=Normalize.fit(data.normalize, training.images),
            data=data,
            hashes=training.hashes,
            thumbnail_hashes=training.thumbnail_hashes,
            val_hash=validation.hash,
            fingerprint=digest.hexdigest(),
        )

    def and_those_of(self, contents: dict[str, Any]) -> "TrainingFaces":
        """With the hashes in a checkpoint, which training starts from or resumes: its network was
        trained on those faces too.
        """
        hashes = [self.hashes, contents.get("training_faces")]
        thumbnails = [self.thumbnail_hashes, contents.get("training_thumbnails")]
        return replace(
            self,
            hashes=torch.cat([part for part in hashes if part is not None]).unique(),
            thumbnail_hashes=torch.cat([part for part in thumbnails if part is not None]).unique(),
        )

    def __len__(self) -> int:
        """The number of training faces."""
        return len(self.images)

    def network(self, model: nn.Module) -> Network:
        """The model with what it needs of these faces: normalization, classes, their size."""
        return Network(model, self.normalize, self.classes, self.images.shape[-1])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes


def epoch_batches(
    faces: TrainingFaces, seed: int, epoch: int, batch_size: int, sampling: str, processes: int
) -> Sequence[Tensor]:
    """The positions of an epoch's batches, int64, on the images' device. They depend on (seed,
    epoch) alone.

    sampling: `shuffle` goes through every face once; `balanced` makes as many draws, each class
    equally likely.
    """
    generator = torch.Generator().manual_seed(seed_of(Stream.ORDER, seed, epoch))
    count, device = len(faces), faces.images.device
    if sampling == "balanced":
        targets = faces.targets.cpu()
        weights = balanced_weights(targets)[targets.argmax(1)]
        order = torch.multinomial(weights, count, replacement=True, generator=generator)
    else:
        order = torch.randperm(count, generator=generator)
    if device.type == "cuda":
        order = order.pin_memory()  # so that the copy to the GPU is asynchronous
    sizes = batch_sizes(count, batch_size, processes)
    return order.to(device, non_blocking=True).split(sizes)


def batch_sizes(count: int, batch_size: int, processes: int) -> list[int]:
    """How many faces each batch of an epoch has.

    A last batch of fewer than two faces a process joins the batch before it: BatchNorm cannot learn
    from one face.
    """
    whole, rest = divmod(count, batch_size)
    sizes = [batch_size] * whole
    if rest:
        sizes.append(rest)
    if len(sizes) > 1 and sizes[-1] < 2 * processes:
        last = sizes.pop()
        sizes[-1] += last
    return sizes
