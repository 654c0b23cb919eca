"""fer predict: checkpoints and a split of faces in, a submission out; and what evaluate shares with
it: test-time augmentation and ensembles. Knows checkpoints and faces; training, and how faces are
found in photos, stay out.
"""

import re
from dataclasses import dataclass
from os.path import realpath  # unlike Path.resolve, it does not raise where links lead in a circle
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fer import Format, UserError, class_names, config, metrics, photos
from fer.augment import ten_crops
from fer.checkpoint import Checkpoint, find_checkpoints
from fer.data.faces import Data, Faces
from fer.models.network import Network
from fer.run import spare_runs, tell_if_replaced, write_csv, write_text
from fer.runtime import memory_named, pick_device

ROUNDS = 50  # of greedy selection
Asked = (
    config.PredictConfig | config.EvaluateConfig
)  # both tell device, batch size, views and selection


@dataclass(frozen=True)
class Submission:
    """How a submission is laid out.

    header: names of its columns, of ids and labels or of labels alone; empty for labels alone
    without a header.
    ids: one a face, also where they are not written. faces: in the order of the rows. headed: does
    it begin with its header?
    """

    header: list[str]
    ids: list[str]
    faces: Faces
    headed: bool = True

    @property
    def id_column(self) -> str:
        """Header of the ids, for a table that needs them."""
        return self.header[0] if len(self.header) == 2 and self.headed else "id"

    def write(self, path: str, labels: list[int]) -> None:
        rows: list[list[object]] = [[label] for label in labels]
        if len(self.header) == 2:
            rows = [[own, label] for own, label in zip(self.ids, labels, strict=True)]
        if self.headed and self.header:
            write_csv(path, self.header, rows)
        else:
            columns = self.header or ["label"]
            text = pd.DataFrame(rows, columns=columns, dtype=object).to_csv(
                index=False, header=False, lineterminator="\n"
            )
            write_text(path, text)


def run(cfg: config.PredictConfig, typed: list[str]) -> None:
    members = open_members(cfg.ckpt, cfg.trust)
    cfg.out = cfg.out or ("faces.csv" if cfg.input else "submission.csv")
    taken = {realpath(member.path) for member in members}
    for target in filter(None, (cfg.out, cfg.probs)):
        if realpath(target) in taken:
            raise UserError(f"{target}: is the checkpoint, or named twice; choose another name")
        taken.add(realpath(target))
        if Path(target).is_dir() or not Path(target).absolute().parent.is_dir():
            raise UserError(
                f"{target}: not a place for a file; name a file in a folder that exists"
            )
    spare_runs(cfg.out, cfg.probs)
    if cfg.input:
        ask = lambda faces: label_all(members, weigh(members, cfg), faces, cfg)  # noqa: E731
        photos.run(
            Path(cfg.input), Path(cfg.out), cfg.crop, cfg.smallest, typed, members[0].classes, ask
        )
        return
    if photo_keys := {"crop", "smallest"} & {*typed}:
        raise UserError(
            f"{min(photo_keys)}: is about photos; name one, or a folder of them, with input="
        )
    data = members[0].data(cfg.data, used_whole=cfg.split in (None, "all"))
    split = cfg.split or data.unlabelled or data.only
    if split is None:
        raise UserError(
            f"this data has no split without labels; name one: split={'|'.join(data.splits)}"
        )
    faces = data.open(split)
    submission = Submission(cfg.columns, faces.ids, faces)
    if cfg.sample:
        submission = as_sampled(cfg.sample, faces)
    faces = submission.faces

    weights, known = (
        weigh(members, cfg, data),
        len(data.classes),
    )  # of 8 classes the last is left out of data of 7
    means = label_all(members, weights, faces, cfg)[:, :known]
    labels = means.argmax(1)
    tell_if_replaced(Path(cfg.out))
    if cfg.probs:
        rows = (
            [i, *(f"{p:.6f}" for p in row)]
            for i, row in zip(submission.ids, means.tolist(), strict=True)
        )
        write_csv(cfg.probs, [submission.id_column, *class_names(means.shape[1])], rows)
    submission.write(cfg.out, labels.tolist())

    count = int(weights.count_nonzero())
    by = f"{count} checkpoints" if count > 1 else str(members[int(weights.argmax())].path)
    print(
        f"{len(faces)} faces of {split} labelled by {by}: {cfg.out}"
        + (f", {cfg.probs}" if cfg.probs else "")
    )
    if split in data.shut:
        print(f"no accuracy is shown: {split} holds, or may hold, PrivateTest")
    elif faces.labelled:
        learned_faces(members, faces, strict=False)
        matrix = metrics.confusion(labels, faces.labels, known)
        print(
            f"accuracy {metrics.accuracy(matrix):.4f}, macro F1 {metrics.macro_f1(matrix):.4f} on "
            f"{split}"
        )
        if cfg.tta != "none":
            plain = label_all(members, weights, faces, cfg.model_copy(update={"tta": "none"}))[
                :, :known
            ]
            print(f"without tta: {(plain.argmax(1) == faces.labels).double().mean():.4f}")


def open_members(named: str | list[str] | None, trust: list[str]) -> list[Checkpoint]:
    """The checkpoints that `ckpt=` names, with the same classes all."""
    members = [Checkpoint.open(path, trust) for path in find_checkpoints(named)]
    for member in members:
        if member.classes != members[0].classes:
            own = f"{member.path}: has {len(member.classes)} classes"
            raise UserError(f"{own}, {members[0].path} another number; leave one out")
    return members


def learned_faces(members: list[Checkpoint], faces: Faces, strict: bool) -> list[Faces]:
    """Each member's own training faces. Tells of a member that learned most of `faces`, on which
    its accuracy is to be measured, and of training faces that are not at hand; `strict`: refuses to
    go on without them.
    """
    found = []
    for member in {str(member.settings.data): member for member in members}.values():
        try:
            own = member.data().open("train")
        except UserError as error:
            if strict:
                raise
            print(f"copies of {member.path}'s own training faces are not counted: {error}")
            continue
        found.append(own)
        learned = int(faces.among(own).sum())
        if learned > len(faces) / 2:
            print(
                f"{member.path} learned {learned} of these {len(faces)} faces: its accuracy on "
                "them says little"
            )
    return found


def label(
    member: Checkpoint, faces: Faces, batch_size: int, device: torch.device, tta: str
) -> Tensor:
    """Probabilities, float64 N×7 on the CPU. What the best weights said of these very validation
    faces in training is taken from the checkpoint.
    """
    saved = member.contents.get("validation")
    if tta == "none" and saved and saved.get("images") == faces.hash:
        return saved["logits"].double().softmax(1)
    network = member.network(device)
    with memory_named(device, f"batch_size={batch_size}"):
        return probabilities(network, faces.images, batch_size, tta)


def label_each(members: list[Checkpoint], faces: Faces, cfg: Asked) -> list[Tensor]:
    device = pick_device(cfg.device)
    return [label(member, faces, cfg.batch_size, device, cfg.tta) for member in members]


def label_all(members: list[Checkpoint], weights: Tensor, faces: Faces, cfg: Asked) -> Tensor:
    """The members' mean probabilities, as label's; those of no weight are not asked."""
    asked = [member for member, weight in zip(members, weights, strict=True) if weight]
    return average(label_each(asked, faces, cfg), weights[weights > 0])


@torch.no_grad()
def probabilities(
    network: Network, images: Tensor, batch_size: int, tta: str, computed_in: Format | None = None
) -> Tensor:
    """Mean probabilities, float64 N×7 on the CPU, over the views of test-time augmentation.

    computed_in: a number format; None takes the device's own.

    none: the face alone. flip: it and its mirror image. tencrop: ten_crops at the model's size
    (Krizhevsky et al. 2012) or, where that is no smaller than the face, at 7/8 of the face,
    enlarged.
    """
    views = [images, images.flip(-1)] if tta == "flip" else [images]
    if tta == "tencrop":
        side, own = images.shape[-1], network.model.size
        views = list(ten_crops(images, own if own < side else side * 7 // 8))
    found = []
    with tqdm(
        total=len(views) * len(images), unit=" faces", delay=2, leave=False, disable=None
    ) as bar:
        for view in views:
            parts = []
            for part in view.split(batch_size):
                parts.append(network.logits(part, batch_size, computed_in).cpu())
                bar.update(len(part))
            found.append(torch.cat(parts).double().softmax(1))  # on the CPU: MPS has no float64
    return torch.stack(found).mean(0)


def average(parts: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted mean of probabilities, each N×7."""
    return torch.einsum("mnc,m->nc", torch.stack(parts), weights / weights.sum())


def weigh(members: list[Checkpoint], cfg: Asked, data: Data | None = None) -> Tensor:
    """How much each member counts, float64, chosen on the validation faces of `data`, and a table
    of what each adds.

    Without data, as for photos, or where it has no validation faces, those of the first member are
    taken if there is a choice to make. Where a member was validated on other faces nothing is
    chosen or shown: it may have learned these.
    """
    uniform = torch.ones(len(members), dtype=torch.float64)
    if len(members) == 1 or (data is None and cfg.select == "uniform"):
        return uniform
    data_is_own = cfg.data is None
    if data is None or "validation" not in data.splits:
        data, data_is_own = members[0].data(), True
    faces = data.open("validation")
    shown = faces.hash
    for member in members:
        seen = member.contents.get("validation", {}).get(
            "images"
        )  # a last.pt does not tell, nor of all one with limit
        if seen == shown or (data_is_own and member.data().open("validation").hash == shown):
            continue
        why = f"{member.path} was validated on other faces than these, so it may have learned them"
        if cfg.select == "greedy":
            raise UserError(f"select=greedy: {why}; leave it or data= out, or take select=uniform")
        print(f"what each member adds is not shown: {why}")
        return uniform
    parts = label_each(members, faces, cfg)
    weights = greedy(parts, faces.labels) if cfg.select == "greedy" else uniform

    def right(weights: Tensor) -> float:
        return (average(parts, weights).argmax(1) == faces.labels).double().mean().item()

    rows = []
    for member, weight, alone in zip(
        members, weights, torch.eye(len(members), dtype=torch.float64), strict=True
    ):
        others = weights * (1 - alone)
        without = f"{right(others):.4f}" if others.any() else "-"
        rows.append(
            [str(member.path), f"{weight / weights.sum():.2f}", f"{right(alone):.4f}", without]
        )
    print(
        pd.DataFrame(rows, columns=["member", "weight", "alone", "ensemble without it"]).to_string(
            index=False
        )
    )
    print(f"ensemble: accuracy {right(weights):.4f} on validation, which also chose it")
    return weights


def greedy(parts: list[Tensor], labels: Tensor) -> Tensor:
    """How often each member is taken, with replacement, when each round adds the one that makes the
    mean probabilities most accurate, the earlier of equals, and the best round counts (Caruana et
    al. 2004).
    """
    stack, counts = torch.stack(parts), torch.zeros(len(parts), dtype=torch.float64)
    total, best = torch.zeros_like(parts[0]), (-1.0, counts)
    for _ in range(ROUNDS):
        accuracies = ((total + stack).argmax(2) == labels).double().mean(1)
        chosen = int(accuracies.argmax())
        counts[chosen] += 1
        total = total + stack[chosen]
        if accuracies[chosen] > best[0]:
            best = (accuracies[chosen].item(), counts.clone())
    return best[1]


def as_sampled(path: str, faces: Faces) -> Submission:
    """The layout of a sample submission: two columns or more, of which ids and labels are the first
    two, or one column of labels; a first row that ends in a number is no header. The faces come in
    the order of its ids or, where these are its own or there are none, in the data's order.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise UserError(f"sample={path}: is no plain file; name a CSV")
    try:
        sample = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    except (OSError, ValueError) as error:
        raise UserError(
            f"sample={path}: cannot be read as CSV ({str(error).splitlines()[0]})"
        ) from None
    columns = min(sample.shape[1], 2)
    sample = sample.iloc[:, :columns]
    header = sample.iloc[0].tolist()
    headed = not re.fullmatch(r"\s*-?[0-9]+(\.[0-9]*)?\s*", header[-1])
    if headed:
        sample = sample.iloc[1:]
    if len(sample) != len(faces):
        raise UserError(
            f"sample={path}: has {len(sample)} rows for {len(faces)} faces; it should have one for "
            "each"
        )
    ids = sample.iloc[:, 0].tolist()
    if columns == 1:
        no_labels = [
            value
            for value in ids
            if not value.strip().isdecimal() or int(value) >= len(class_names(8))
        ]
        if no_labels:
            raise UserError(
                f"sample={path}: {no_labels[0][:20]!r} in its one column is no label; "
                "it should have labels alone, or ids and labels"
            )
        print(f"{path} has labels alone: written in the order of the faces")
        return Submission(header, faces.ids, faces, headed)
    position = {name: i for i, name in enumerate(faces.ids)}
    if len(position) == len(ids) and set(position) == set(ids):
        return Submission(header, ids, faces.take([position[i] for i in ids]), headed)
    first = int(ids[0]) if ids[0].isdecimal() else 0
    if set(position) & set(ids) and ids != [str(first + i) for i in range(len(ids))]:
        raise UserError(
            f"sample={path}: only some of its ids are faces' ids, so their order is not sure; mend "
            "them"
        )
    print(
        f"the ids of {path} are its own, from {ids[0]} to {ids[-1]}: taken in the order of the "
        "faces"
    )
    return Submission(header, ids, faces, headed)
