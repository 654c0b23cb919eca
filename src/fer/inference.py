"""Predictions of trained networks: test-time augmentation, ensembles and their weights.

Tensors and checkpoints; no command's config.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fer import Format, UserError
from fer.augment import ten_crops
from fer.checkpoint import Checkpoint, find_checkpoints
from fer.data.faces import Data, Faces
from fer.models.network import Network
from fer.runtime import reporting_out_of_memory
from fer.text import wrapped

ROUNDS = 50  # of greedy selection


@torch.no_grad()
def probabilities(
    network: Network, images: Tensor, batch_size: int, tta: str, computed_in: Format | None = None
) -> Tensor:
    """Mean probabilities, float64 N×C on the CPU, over the views of test-time augmentation.

    tta: `none` is the face alone, `flip` it and its mirror image, `tencrop` its ten crops (see
    ten_crop_size). computed_in: a number format; None uses the device's own. Faces of another size
    than the network was trained on are resized.
    """
    images = network.at_face_size(images)
    if tta == "flip":
        views = [images, images.flip(-1)]
    elif tta == "tencrop":
        views = list(ten_crops(images, ten_crop_size(images.shape[-1], network.model.size)))
    else:
        views = [images]
    view_probabilities = []
    with tqdm(
        total=len(views) * len(images), unit=" faces", delay=2, leave=False, disable=None
    ) as bar:
        for view in views:
            logits = []
            for part in view.split(batch_size):
                logits.append(network.logits(part, batch_size, computed_in).cpu())
                bar.update(len(part))
            # On the CPU, since MPS has no float64.
            view_probabilities.append(torch.cat(logits).double().softmax(1))
    return torch.stack(view_probabilities).mean(0)


def ten_crop_size(face_size: int, model_size: int) -> int:
    """The side of each of ten crops (Krizhevsky et al. 2012): the model's input size or, if that is
    no smaller than the face, 7/8 of the face.
    """
    if model_size < face_size:
        return model_size
    return face_size * 7 // 8


def average(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted mean of probabilities, each N×C. weights: M, of any sum."""
    return torch.einsum("mnc,m->nc", torch.stack(list(parts)), weights / weights.sum())


def greedy(parts: Sequence[Tensor], labels: Tensor) -> Tensor:
    """How often each member is chosen, with replacement (Caruana et al. 2004).

    Each round adds the member that makes the mean probabilities most accurate, the earlier of
    equals; the choices up to the best round count.
    """
    stack = torch.stack(list(parts))
    counts = torch.zeros(len(parts), dtype=torch.float64)
    total = torch.zeros_like(stack[0])
    best_accuracy, best_counts = -1.0, counts
    for _ in range(ROUNDS):
        accuracies = ((total + stack).argmax(2) == labels).double().mean(1)
        chosen = int(accuracies.argmax())
        counts[chosen] += 1
        total = total + stack[chosen]
        if accuracies[chosen] > best_accuracy:
            best_accuracy, best_counts = accuracies[chosen].item(), counts.clone()
    return best_counts


def accuracy(parts: Sequence[Tensor], weights: Tensor, labels: Tensor) -> float:
    """Of the weighted mean of probabilities."""
    predicted = average(parts, weights).argmax(1)
    return (predicted == labels).double().mean().item()


def contributions(names: list[str], parts: list[Tensor], weights: Tensor, labels: Tensor) -> str:
    """A table of what each member adds: its weight, its accuracy alone, and the ensemble's without
    it.
    """
    rows = []
    for position, name in enumerate(names):
        alone = torch.zeros_like(weights)
        alone[position] = 1
        others = weights.clone()
        others[position] = 0
        without = "-"
        if others.any():
            without = f"{accuracy(parts, others, labels):.4f}"
        share = weights[position] / weights.sum()
        rows.append([name, f"{share:.2f}", f"{accuracy(parts, alone, labels):.4f}", without])
    columns = ["member", "weight", "alone", "ensemble without it"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)


@dataclass(frozen=True)
class Ensemble:
    """Checkpoints that label faces together, one or more.

    weights: float64, one a member. tta: test-time augmentation, see probabilities. networks: those
    built so far, by path, since a camera asks for every frame.
    """

    members: list[Checkpoint]
    weights: Tensor
    device: torch.device
    batch_size: int
    tta: str
    networks: dict[Path, Network] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        ckpt: str | list[str] | None,
        device: torch.device,
        batch_size: int,
        tta: str,
        trust: Sequence[str] = (),
    ) -> "Ensemble":
        """The checkpoints that `ckpt=` names, weighted alike. trust: see Checkpoint.open. Raises
        UserError if their classes differ.
        """
        members = [Checkpoint.open(path, trust) for path in find_checkpoints(ckpt)]
        for member in members:
            if member.classes != members[0].classes:
                raise UserError(
                    f"{member.name}: has other classes ({', '.join(member.classes)}) than "
                    f"{members[0].name} ({', '.join(members[0].classes)}); leave one out"
                )
        weights = torch.ones(len(members), dtype=torch.float64)
        return cls(members, weights, device, batch_size, tta)

    @property
    def classes(self) -> list[str]:
        return self.members[0].classes

    @property
    def face_size(self) -> int:
        """Pixels of a side of the faces that it takes from photos: the largest of its members'."""
        return max(member.face_size for member in self.members)

    def data(self, overrides: dict | None = None, used_whole: bool = False) -> Data:
        """The first member's data, see Checkpoint.data, at face_size. What is not used of other
        data is printed; training printed it of its own.
        """
        data = self.members[0].data(overrides, used_whole=used_whole, size=self.face_size)
        not_used = "; ".join(filter(None, (data.left_out_classes, data.not_read)))
        if overrides and not_used:
            print(wrapped(f"data: {not_used}"))
        return data

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.members]

    def with_tta(self, tta: str) -> "Ensemble":
        return replace(self, tta=tta)

    def label(self, faces: Faces) -> Tensor:
        """Mean probabilities, float64 N×C on the CPU. Members of no weight are not run."""
        parts = []
        for member, weight in zip(self.members, self.weights, strict=True):
            if weight:
                parts.append(self.label_by(member, faces))
        return average(parts, self.weights[self.weights > 0])

    def label_by_each(self, faces: Faces) -> list[Tensor]:
        """The probabilities of every member, float64 N×C on the CPU."""
        return [self.label_by(member, faces) for member in self.members]

    def label_by(self, member: Checkpoint, faces: Faces) -> Tensor:
        saved = saved_probabilities(member, faces, self.tta)
        if saved is not None:
            return saved
        if member.path not in self.networks:
            self.networks[member.path] = member.network(self.device)
        network = self.networks[member.path]
        with reporting_out_of_memory(self.device, f"batch_size={self.batch_size}"):
            return probabilities(network, faces.images, self.batch_size, self.tta)

    def weighted(
        self, select: str, data: Data | None = None, own_data: bool = True
    ) -> tuple["Ensemble", str]:
        """This ensemble with weights chosen on the validation faces of `data`, and what to print:
        each member's contribution, or why it is not shown.

        select: `uniform` or `greedy`. own_data: the members were trained on `data`. Without
        data, as for photos, or if it has no validation faces, those of the first member are used.
        Nothing is chosen or shown if a member was validated on other faces: it may have learned
        these.
        """
        if len(self.members) == 1 or (data is None and select == "uniform"):
            return self, ""
        if data is None or "validation" not in data.splits:
            data, own_data = self.data(), True
        faces = data.split("validation")
        other = validated_on_others(self.members, faces, own_data)
        if other:
            reason = (
                f"{other.name} was validated on other faces than these, so it may have learned them"
            )
            if select == "greedy":
                raise UserError(
                    f"select=greedy: {reason}; leave out that checkpoint or data=, or set "
                    "select=uniform"
                )
            return self, f"contributions of members are not shown: {reason}"
        parts = self.label_by_each(faces)
        weights = greedy(parts, faces.labels) if select == "greedy" else self.weights
        table = contributions(self.names, parts, weights, faces.labels)
        reached = accuracy(parts, weights, faces.labels)
        chosen = "its weights" if select == "greedy" else "the epochs of its members"
        total = f"ensemble: accuracy {reached:.4f} on validation, which also chose {chosen}"
        return replace(self, weights=weights), f"{table}\n{total}"


def saved_probabilities(member: Checkpoint, faces: Faces, tta: str) -> Tensor | None:
    """The probabilities of validation faces from best.pt, float64 N×C. None for other faces or with
    test-time augmentation: then the network has to run.
    """
    saved = member.contents.get("validation")
    if tta == "none" and saved and saved.get("images") == faces.hash:
        return saved["logits"].double().softmax(1)
    return None


def validated_on_others(
    members: list[Checkpoint], faces: Faces, own_data: bool
) -> Checkpoint | None:
    """The first member that was validated on other faces than these; None if there is none.

    own_data: `faces` are of the members' own data, so reading it may show that they are the same.
    """
    for member in members:
        # last.pt has no hash, and a run with data.limit has that of a part.
        if member.contents.get("validation", {}).get("images") == faces.hash:
            continue
        side = faces.side
        if own_data and member.data(size=side).split("validation").hash == faces.hash:
            continue
        return member
    return None


def training_faces_among(
    faces: Faces, members: list[Checkpoint], strict: bool, consequence: str
) -> Tensor:
    """Bool N: which of the faces any member was trained on.

    Prints a line for a member that was trained on most of them, as they are or compressed, since
    its accuracy is to be measured on them, and one for a member of which this is not known: why,
    and the `consequence`. strict: raises UserError in that case instead.
    """
    trained_on = torch.zeros(len(faces), dtype=torch.bool)
    for member in one_for_each_training_set(members):
        count = 0
        try:
            trained_on_by_member = member.was_trained_on(faces)
            trained_on |= trained_on_by_member
            count = int(trained_on_by_member.sum())
        except UserError as error:
            if strict:
                raise
            why = str(error).partition(";")[0]
            print(f"{member.name}: its training faces are not available ({why}); {consequence}")
        if count > len(faces) / 2:
            print(
                f"{member.name} was trained on {count:,} of these {len(faces):,} faces: "
                "its accuracy on them says little"
            )
        elif member.resembles_training(faces):
            print(
                f"{member.name} was trained on most of these faces, which were compressed or "
                "resized since: its accuracy on them says little"
            )
    return trained_on


def one_for_each_training_set(members: list[Checkpoint]) -> list[Checkpoint]:
    """Members that were trained on different faces. Those of one data set may be: the folds of fer
    mislabels are.
    """
    distinct: dict[object, Checkpoint] = {}
    for member in members:
        hashes = member.contents.get("training_faces")
        training_set = str(member.settings.data) if hashes is None else hashes.numpy().tobytes()
        distinct[training_set] = member
    return list(distinct.values())


def may_hold_private_test(members: list[Checkpoint], data: Data, split: str, faces: Faces) -> bool:
    """Whether faces of PrivateTest may be among `faces`, a split of `data`: the split is sealed,
    and not all of its faces are in open splits of the members' own data, as those of a train.csv
    are.
    """
    if split not in data.sealed:
        return False
    is_open = torch.zeros(len(faces), dtype=torch.bool)
    for member in {str(member.settings.data): member for member in members}.values():
        try:
            member_data = member.data(size=faces.side)
        except UserError:  # not available
            continue
        sealed = [
            split_faces
            for name, split_faces in member_data.splits.items()
            if name in member_data.sealed
        ]
        for split_faces in member_data.splits.values():
            if not any(split_faces is other for other in sealed):  # data.validation=test
                is_open |= faces.among(split_faces)
    return not bool(is_open.all())
