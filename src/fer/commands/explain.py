"""fer explain: pictures of what a network looks at in faces, and of what its filters respond to."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from fer import UserError, config, explain, nearest, photos, plots
from fer.checkpoint import BUILTIN, Checkpoint, find_checkpoint, use_builtin
from fer.data.faces import Faces
from fer.data.readers.names import printable
from fer.models.network import Network, crop_or_enlarge
from fer.progress import Steps
from fer.run import output_folders, write_csv, write_text
from fer.runtime import pick_device

MAP_BATCH = 4  # faces whose maps are computed at once
ASCENT_BATCH = 32  # filters whose images are computed at once


def run(cfg: config.ExplainConfig, given_keys: list[str]) -> None:
    ckpt = BUILTIN if names_photos(cfg.image) and use_builtin(cfg.ckpt) else cfg.ckpt
    checkpoint = Checkpoint.open(find_checkpoint(ckpt), cfg.trust)
    device = pick_device(cfg.device)
    network = checkpoint.network(device).requires_grad_(False)
    if "saliency" in cfg.show:
        explain.captum_attr()  # refused before any work where it is missing
    torch.manual_seed(cfg.seed)
    faces, logits = choose_faces(cfg, checkpoint, network)
    subject = Subject(
        classes=checkpoint.classes,
        faces=faces,
        logits=logits,
        targets=target_classes(cfg.target, faces, logits, checkpoint.classes),
        images=crop_or_enlarge(faces.images, network.model.size).float().to(device),
    )
    layers = Layers(network, explain.layer_outputs(network, subject.images[:1]))
    chosen = layers.choose(cfg.layers)

    out = Path(cfg.out or checkpoint.folder / "explain")
    with output_folders(out):
        sheets = Sheets(out, cfg.format, cfg.seed, bar=Steps(6 + 2 * len(chosen)))
        draw_chosen(cfg, subject, layers, chosen, sheets)


@dataclass(frozen=True)
class Subject:
    """The faces to explain and the network's predictions for them.

    classes: names of the logits. logits: N×C, on the CPU. targets: int64 N, the class whose score
    is explained. images: float32 N×1×S×S on the network's device, the faces as it sees them.
    """

    classes: list[str]
    faces: Faces
    logits: Tensor
    targets: Tensor
    images: Tensor


def draw_chosen(
    cfg: config.ExplainConfig,
    subject: Subject,
    layers: "Layers",
    chosen: list[str],
    sheets: "Sheets",
) -> None:
    """Draw what `show=` names. chosen: the layers whose filters are drawn."""
    network = layers.network
    if "saliency" in cfg.show:
        maps = saliency_maps(subject, layers, sheets.bar)
        sheets.bar.say(draw_maps(cfg, subject, maps, sheets.out))
    if "ideal_faces" in cfg.show:
        title = "The ideal face of each class"
        count = len(subject.classes)
        sheets.draw_ascent("ideal_faces", network, network, count, title, names=subject.classes)
    if "kernels" in cfg.show:
        draw_kernels(layers, sheets)
    if "filters" in cfg.show:
        for name in chosen:
            face = subject.images[0, 0].cpu()
            draw_filters(name, layers, subject.faces.ids[0], face, cfg.filters, sheets)
    sheets.bar.close()


@dataclass(frozen=True)
class Layers:
    """The layers of a network that put out maps or units, by name, in the order in which they end.

    outputs: what each puts out for one face, 1×C×h×w or 1×C.
    """

    network: Network
    outputs: dict[str, Tensor]

    def module(self, name: str) -> Any:
        return self.network.model.get_submodule(name)

    @cached_property
    def convolutions(self) -> list[str]:
        return [name for name in self.outputs if isinstance(self.module(name), nn.Conv2d)]

    @cached_property
    def windows(self) -> list[str]:
        """Convolutions larger than 1×1 or, if there are none, all: in a residual network a 1×1
        shortcut, which sees no neighbors, may run last.
        """
        larger = [name for name in self.convolutions if max(self.module(name).kernel_size) > 1]
        return larger or self.convolutions

    @property
    def last_maps(self) -> nn.Module:
        """The last layer whose maps have the size of the last convolution's, for Grad-CAM: what is
        made of the convolution before it is pooled.
        """
        area = self.outputs[self.windows[-1]].shape[2:]
        same = [name for name, output in self.outputs.items() if output.shape[2:] == area]
        return self.module(same[-1])

    def choose(self, named: str | list[str] | None) -> list[str]:
        """The layers that `layers=` names; None: the first and the last of `windows`."""
        if named is None:
            return list(dict.fromkeys(self.windows[:1] + self.windows[-1:]))
        names = [named] if isinstance(named, str) else named
        for name in names:
            if name not in self.outputs:
                raise UserError(
                    f"layers={name}: no layer that puts out maps or units; "
                    f"{nearest(name, self.outputs)}"
                )
        return names


@dataclass(frozen=True)
class Sheets:
    """Writes pictures of many images, each with its numbers as CSV, to the folder `out`."""

    out: Path
    kind: str  # png, svg or pdf
    seed: int
    bar: Steps

    def draw(
        self,
        stem: str,
        images: Tensor,
        title: str,
        header: list[str],
        numbers: Tensor,
        names: Sequence[str] | None = None,
        **look: Any,
    ) -> None:
        """All images N×h×w as one picture, and a CSV with a row of `numbers` (N×K) for each."""
        rows = []
        for name, row in zip(names or range(len(images)), numbers.tolist(), strict=True):
            rows.append([name, *row])
        write_csv(self.out / f"{stem}.csv", header, rows)
        picture = self.out / f"{stem}.{self.kind}"
        self.bar.say(plots.mosaic(images, title, picture, names=names, **look))

    def draw_ascent(
        self,
        stem: str,
        network: Network,
        layer: nn.Module,
        count: int,
        title: str,
        names: Sequence[str] | None = None,
    ) -> None:
        """The image that excites each of the layer's first `count` filters or units, and by how
        much.
        """
        self.bar.begin(stem)
        torch.manual_seed(self.seed)  # the same whatever else is drawn
        device = next(network.parameters()).device
        images, excitations = [], []
        for units in torch.arange(count, device=device).split(ASCENT_BATCH):
            self.bar.set_description_str(f"{stem}, {count - int(units[0])} left")
            batch = explain.ascend(network, layer, units)
            images.append(batch)
            excitations.append(explain.excitation(network, layer, batch, units))
        sheet = torch.cat(images)[:, 0].cpu()
        reached = torch.cat(excitations).cpu()
        silent = reached == 0
        # A ReLU that gives 0 from the start has no gradient: not even the noise should show.
        sheet[silent] = 128
        if silent.any():
            title += f", {silent.sum()} stayed silent (plain gray)"
        header = ["unit", "excitation"]
        self.draw(stem, sheet, title, header, reached[:, None], names, texture=True)


def words_of(image: object) -> list[str]:
    """What `image=` names: pictures, or positions in a split."""
    items = image if isinstance(image, list) else [image]
    return [str(item) for item in items]


def names_photos(image: object) -> bool:
    """Does `image=` name pictures, not positions in a split?"""
    if image is None:
        return False
    positions = ",".join(words_of(image)).replace(" ", "").split(",")
    return not all(position.isdecimal() for position in positions)


def choose_faces(
    cfg: config.ExplainConfig, checkpoint: Checkpoint, network: Network
) -> tuple[Faces, Tensor]:
    """The faces to explain and their logits, on the CPU. Labels are -1 where the truth is not known
    or not shown.
    """
    if not cfg.image:
        faces = faces_of_split(cfg, checkpoint, network)
        logits = network.logits(faces.images, 512, "fp32").cpu()
        rows = right_and_wrong(faces.labels, logits.argmax(1))
        return faces.take(rows), logits[rows]
    given = words_of(cfg.image)
    if not names_photos(cfg.image):
        positions = ",".join(given).replace(" ", "").split(",")
        faces = faces_of_split(cfg, checkpoint, network)
        for position in positions:
            if int(position) >= len(faces):
                raise UserError(f"image={position}: {cfg.split} has only 0 to {len(faces) - 1}")
        faces = faces.take([int(position) for position in positions])
    else:
        for name in given:
            if not Path(name).is_file():
                raise UserError(
                    f"image={name}: no such file; name a picture, or positions in the split: "
                    "image=3,17"
                )
        files = [Path(name) for name in given]
        faces = faces_of_photos(files, cfg.crop, cfg.smallest, network.face_size)
    return faces, network.logits(faces.images, 512, "fp32").cpu()


def faces_of_split(cfg: config.ExplainConfig, checkpoint: Checkpoint, network: Network) -> Faces:
    """The split's faces, named by their positions. Labels of a sealed split are not shown."""
    data = checkpoint.data(cfg.data)
    faces = data.split(cfg.split)
    labels = torch.full_like(faces.labels, -1) if cfg.split in data.sealed else faces.labels
    images = network.at_face_size(faces.images)
    return Faces(images, labels, [f"{cfg.split} {i}" for i in range(len(faces))])


def right_and_wrong(labels: Tensor, predicted: Tensor) -> Tensor:
    """Positions of one right and one wrong face of each class, as far as there are any, drawn at
    random. An unknown label counts as right.
    """
    order = torch.randperm(len(labels))
    truth = torch.where(labels < 0, predicted, labels)
    kinds = 2 * truth + (predicted != truth)
    first_of_each_kind = torch.from_numpy(np.unique(kinds[order], return_index=True)[1])
    return order[first_of_each_kind]


def faces_of_photos(files: list[Path], crop: str, smallest: float, face_size: int) -> Faces:
    """The faces in photos, as fer predict input= finds them; prints which."""
    faces = photos.faces_in_photos(files, crop, smallest, face_size)
    if not faces:
        raise UserError(f"image={files[0]}: no face; {photos.remedy(smallest)}")
    faces_per_file = Counter(face.file for face in faces)
    number: Counter[Path] = Counter()
    names = []
    for face in faces:
        number[face.file] += 1
        name = printable(face.file)
        if faces_per_file[face.file] > 1:
            name += f", face {number[face.file]}"
        names.append(name)
        print(f"{name}: {face.place}")
    pixels = torch.stack([face.pixels for face in faces])
    return Faces(pixels, torch.full((len(faces),), -1), names)


def target_classes(named: str, faces: Faces, logits: Tensor, classes: Sequence[str]) -> Tensor:
    """int64 N: the class of each face whose score is explained."""
    if named == "predicted":
        return logits.argmax(1)
    if named == "true":
        if (faces.labels < 0).any():
            raise UserError(
                f"target=true: the true class of {faces.ids[0]} is not known or not shown; "
                "name a class or use target=predicted"
            )
        return faces.labels
    if named not in classes:
        raise UserError(f"target={named}: not a class of this network; {nearest(named, classes)}")
    return torch.full_like(faces.labels, list(classes).index(named))


def saliency_maps(subject: Subject, layers: Layers, bar: Steps) -> dict[str, Tensor]:
    """Name → maps N×1×H×W: the faces themselves, then the maps of each method."""
    methods: dict[str, Callable[..., Tensor]] = {
        "saliency": explain.saliency,
        "SmoothGrad": explain.smooth_grad,
        "integrated gradients": explain.integrated_gradients,
    }
    if layers.convolutions:

        def grad_cam(network: Network, images: Tensor, classes: Tensor) -> Tensor:
            return explain.grad_cam(network, layers.last_maps, images, classes)

        methods["Grad-CAM"] = grad_cam
    else:
        bar.say("no convolution: Grad-CAM is left out")
    images = subject.images
    targets = subject.targets.to(images.device)
    batches = list(zip(images.split(MAP_BATCH), targets.split(MAP_BATCH), strict=True))
    maps = {"face": images}
    for name, method in methods.items():
        bar.begin(name)
        maps[name] = torch.cat([method(layers.network, *batch) for batch in batches])
    return maps


def draw_maps(
    cfg: config.ExplainConfig, subject: Subject, maps: dict[str, Tensor], out: Path
) -> Path:
    """The picture saliency and its CSV: a row for each face, a column for each map, and the face
    masked where its saliency is below the threshold.
    """
    faces = subject.faces
    names = np.array([*subject.classes, ""])  # label -1, an unknown truth, has the last name
    probabilities = subject.logits.softmax(1)
    truth, predicted = names[faces.labels.numpy()], names[subject.logits.argmax(1).numpy()]
    table = pd.DataFrame(
        {
            "face": faces.ids,
            "truth": truth,
            "prediction": predicted,
            "target": names[subject.targets.numpy()],
        }
    )
    table[subject.classes] = probabilities.numpy()
    write_text(out / "saliency.csv", table.to_csv(index=False, float_format="%.6f"))

    # A mask of single pixels would show almost nothing.
    blurred = gaussian_blur(maps["saliency"], 9, 2.0)
    salient = blurred >= cfg.threshold * blurred.amax((1, 2, 3), keepdim=True)
    masked = f"blurred saliency ≥ {cfg.threshold:g} max"
    maps = maps | {masked: maps["face"].where(salient, torch.nan)}
    looks = {
        "face": "gray",
        "integrated gradients": "signed",
        "Grad-CAM": "overlay",
        masked: "gray",
    }
    columns = {}
    for name, values in maps.items():
        columns[name] = (looks.get(name, "positive"), values[:, 0].cpu().numpy())
    captions = list(zip(faces.ids, truth, predicted, probabilities.amax(1).tolist(), strict=True))
    scores = {"predicted": "the predicted class", "true": "the true class"}
    title = f"What the score of {scores.get(cfg.target, cfg.target)} depends on"
    return plots.explanations(columns, captions, title, out / f"saliency.{cfg.format}")


def draw_kernels(layers: Layers, sheets: Sheets) -> None:
    """The weights of the first convolution."""
    if not layers.convolutions:
        sheets.bar.say("no convolution: kernels are left out")
        return
    sheets.bar.begin("kernels")
    name = layers.convolutions[0]
    weight = layers.module(name).weight
    # The input channels after space_to_depth are pixels of one image.
    kernels = F.pixel_shuffle(weight, isqrt(weight.shape[1]))[:, 0].cpu()
    title = f"{name}, all {len(kernels)} kernels"
    header = ["filter", "weights, row by row"]
    sheets.draw("kernels", kernels, title, header, kernels.flatten(1)[:, None])


def draw_filters(
    name: str, layers: Layers, face_id: str, face: Tensor, most: int | None, sheets: Sheets
) -> None:
    """What a layer puts out for a face, and what excites its filters, the first `most` of them."""
    sheets.bar.begin(name)
    output = layers.outputs[name][0].cpu()
    maps = output if output.ndim == 3 else output.view(len(output), 1, 1)
    title = f"{name}, all {len(maps)} outputs on {face_id}"
    header = ["unit", "minimum", "mean", "maximum"]
    numbers = torch.stack([maps.amin((1, 2)), maps.mean((1, 2)), maps.amax((1, 2))], 1)
    sheets.draw(name, maps, title, header, numbers, face=face)

    count = min(len(maps), most or len(maps))
    which = f"all {count}"
    if count < len(maps):
        which = f"the first {count} of {len(maps)}"
        sheets.bar.say(f"{name}: what excites {which} filters; filters=null shows all")
    title = f"{name}, {which}: what excites each"
    sheets.draw_ascent(f"{name}_ascent", layers.network, layers.module(name), count, title)
