"""fer explain: what a network looks at in a face, and what its filters respond to.

The maths are functions of tensors: images are float N×1×H×W, 0..255, of the network's own input
size, classes int64 N, the network is in evaluation mode. A class's score is its logit. Randomness
comes from torch's global generator. Only run(), choose() and draw_faces() know of configs and
files.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.transforms.functional import gaussian_blur

from fer import UserError, config, nearest, photos, plots
from fer.checkpoint import Checkpoint, find_checkpoint
from fer.data.faces import Faces
from fer.models.network import Network, fit
from fer.progress import Steps
from fer.run import make_folder, write_csv, write_text
from fer.runtime import pick_device

BATCH = 128  # images in one pass with gradients


def saliency(network: Network, images: Tensor, classes: Tensor) -> Tensor:
    """N×1×H×W: size of the score's gradient, per gray level (Simonyan et al. 2014)."""
    return Saliency(network).attribute(images.detach().requires_grad_(), target=classes)


def smooth_grad(
    network: Network, images: Tensor, classes: Tensor, samples: int = 32, noise: float = 13.0
) -> Tensor:
    """N×1×H×W: mean saliency of `samples` copies with Gaussian noise, deviation in gray levels
    (Smilkov et al. 2017).

    5 % of the range by default, not the 10 to 20 published: with 15 the maps of compact_cnn no
    longer follow the face.
    """
    options = {"nt_samples": samples, "stdevs": noise, "target": classes}
    return NoiseTunnel(Saliency(network)).attribute(images.detach().requires_grad_(), **options)


def integrated_gradients(
    network: Network, images: Tensor, classes: Tensor, steps: int = 128
) -> Tensor:
    """N×1×H×W, which add up to the face's score minus black's (Sundararajan et al. 2017), to 4 % in
    compact_cnn.

    The path from black to the face is straight after normalization. Before it, it would be the same
    for constants of the data set, but not for a face normalized by itself: scaling changes nothing
    then, and all gradients are 0.
    """
    inputs, black = network.normalize(images), network.normalize(torch.zeros_like(images))
    options = {"target": classes, "n_steps": steps, "internal_batch_size": max(BATCH, len(images))}
    return IntegratedGradients(network.model).attribute(inputs, black, **options).detach().float()


def grad_cam(network: Network, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """N×1×H×W, from 0: the layer's maps, each times the mean of the score's gradient on it, summed,
    rectified, enlarged (Selvaraju et al. 2017).
    """
    options = {"target": classes, "relu_attributions": True}
    maps = LayerGradCam(network, layer).attribute(images.detach().requires_grad_(), **options)
    return F.interpolate(maps.detach(), images.shape[-2:], mode="bilinear")


class Reached(BaseException):
    """A layer has run; the rest need not. No error, so nothing else catches it."""


def activations(network: Network, layer: nn.Module, images: Tensor) -> Tensor:
    """N×C×h×w or N×C: what the layer puts out (Zeiler & Fergus 2014), the first time where it runs
    more than once. The network runs no further.
    """
    outputs: list[Tensor] = []

    def stop(module: nn.Module, given: tuple, output: Tensor) -> None:
        outputs.append(output)
        raise Reached

    with layer.register_forward_hook(stop), suppress(Reached):
        network(images)
    return outputs[0]


def excitation(network: Network, layer: nn.Module, images: Tensor, units: Tensor) -> Tensor:
    """N: on the i-th image the mean activation of the layer's units[i], a filter or a dense unit.
    Negative ones count a tenth: where a convolution's outputs cancel out, its mean would be the
    same on every image, save for the edges.
    """
    own = activations(network, layer, images)[torch.arange(len(units)), units]
    return F.leaky_relu(own, 0.1).reshape(len(own), -1).mean(1)


def ascend(
    network: Network, layer: nn.Module, units: Tensor, steps: int = 90, rate: float = 8.0
) -> Tensor:
    """N×1×H×W: for each of `units` (int64 N) the image that excites it, by gradient ascent from
    white noise (Erhan et al. 2009), all in one batch.

    A step is `rate` gray levels (root mean square) along the gradient of images moved by up to 2
    pixels. Contrast then decays by 2 %, and a 3×3 blur makes up 80 % of the first step's image,
    less of each later one, none of the last: without these, deep layers and classes show
    checkerboards.
    """
    side = network.model.size
    images = 128 + 20 * torch.randn(len(units), 1, side, side, device=units.device)
    for step in range(steps):
        y, x = torch.randint(-2, 3, (2,)).tolist()
        moved = images.roll((y, x), (2, 3)).requires_grad_()
        (gradient,) = torch.autograd.grad(excitation(network, layer, moved, units).sum(), moved)
        norm = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        images = images + rate * (gradient / norm).roll((-y, -x), (2, 3))
        images = 128 + 0.98 * (images - 128)
        images = images.lerp(gaussian_blur(images, 3, 0.85), 0.8 * (1 - (step + 1) / steps)).clamp(
            0, 255
        )
    return images


@torch.no_grad()
def layer_outputs(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Name → what it puts out of every layer of maps N×C×h×w or units N×C, in the order in which
    they end.
    """
    outputs: dict[str, Tensor] = {}
    names = {module: name for name, module in network.model.named_modules() if name}

    def note(module: nn.Module, given: tuple, output: object) -> None:
        if module in names and isinstance(output, Tensor) and output.ndim in (2, 4):
            outputs.setdefault(names[module], output.clone())  # a ReLU may overwrite it

    with register_module_forward_hook(note):
        network(images)
    return outputs


def choose(
    cfg: config.ExplainConfig, checkpoint: Checkpoint, network: Network
) -> tuple[Faces, Tensor]:
    """The faces to explain, labelled -1 where the truth is not known or not shown, and their
    logits, on the CPU.
    """
    given = [
        str(item) for item in (cfg.image if isinstance(cfg.image, list) else [cfg.image or ""])
    ]
    positions = ",".join(given).replace(" ", "").split(",")
    if cfg.image and not all(map(str.isdecimal, positions)):
        if missing := [name for name in given if not Path(name).is_file()]:
            raise UserError(
                f"image={missing[0]}: no such file; name a picture, or positions in the split: "
                "image=3,17"
            )
        faces = faces_of_photos([Path(name) for name in given], cfg.crop, cfg.smallest)
    else:
        data = checkpoint.data(cfg.data)
        faces = data.open(cfg.split)
        labels = torch.full_like(faces.labels, -1) if cfg.split in data.shut else faces.labels
        faces = Faces(faces.images, labels, [f"{cfg.split} {i}" for i in range(len(faces))])
        if cfg.image:
            if beyond := [i for i in positions if int(i) >= len(faces)]:
                raise UserError(f"image={beyond[0]}: {cfg.split} has only 0 to {len(faces) - 1}")
            faces = faces.take([int(i) for i in positions])
    logits = network.logits(faces.images, 512, "fp32").cpu()
    if cfg.image:
        return faces, logits
    order, predicted = torch.randperm(len(faces)), logits.argmax(1)
    truth = torch.where(faces.labels < 0, predicted, faces.labels)
    kinds = 2 * truth + (predicted != truth)  # a right and a wrong face of each class
    chosen = order[np.unique(kinds[order], return_index=True)[1]]
    return faces.take(chosen), logits[chosen]


def faces_of_photos(files: list[Path], crop: str, smallest: float) -> Faces:
    """The faces in photos, as fer predict input= finds them; says which."""
    found = photos.find_in(files, crop, smallest)
    if not found:
        raise UserError(f"image={files[0]}: no face; {photos.remedy(smallest)}")
    several = Counter(face.file for face in found)
    numbers: Counter[Path] = Counter()
    names = []
    for face in found:
        numbers[face.file] += 1
        number = f", face {numbers[face.file]}" if several[face.file] > 1 else ""
        names.append(f"{photos.readable(face.file)}{number}")
        print(f"{names[-1]}: {face.place}")
    pixels = torch.stack([face.pixels for face in found])
    return Faces(pixels, torch.full((len(found),), -1), names)


def targets(named: str, faces: Faces, logits: Tensor, names: Sequence[str]) -> Tensor:
    """int64 N: the class of each face whose score is explained. names: of the classes."""
    known = {"predicted": logits.argmax(1), "true": faces.labels}
    known |= {name: torch.full_like(faces.labels, number) for number, name in enumerate(names)}
    if named not in known:
        raise UserError(f"target={named}: not a class of this network; {nearest(named, names)}")
    if (known[named] < 0).any():
        raise UserError(
            f"target=true: of {faces.ids[0]} no truth is known or shown; name a class or "
            "target=predicted"
        )
    return known[named]


def run(cfg: config.ExplainConfig, typed: list[str]) -> None:
    checkpoint, device = (
        Checkpoint.open(find_checkpoint(cfg.ckpt), cfg.trust),
        pick_device(cfg.device),
    )
    network = checkpoint.network(device).requires_grad_(False)
    torch.manual_seed(cfg.seed)
    faces, logits = choose(cfg, checkpoint, network)
    names = checkpoint.classes
    classes = targets(cfg.target, faces, logits, names)
    images = (
        fit(faces.images, network.model.size).float().to(device)
    )  # what the network sees of them
    outputs = layer_outputs(network, images[:1])
    modules = {name: network.model.get_submodule(name) for name in outputs}
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    # Of residual networks a shortcut of 1×1 may run last, which sees no neighbours.
    windows = [name for name in convolutions if max(modules[name].kernel_size) > 1] or convolutions
    first_and_last = list(dict.fromkeys(windows[:1] + windows[-1:]))
    layers = (
        [cfg.layers]
        if isinstance(cfg.layers, str)
        else first_and_last
        if cfg.layers is None
        else cfg.layers
    )
    if unknown := [name for name in layers if name not in outputs]:
        raise UserError(
            f"layers={unknown[0]}: no layer that puts out maps or units; "
            f"{nearest(unknown[0], outputs)}"
        )
    out = make_folder(Path(cfg.out or checkpoint.path.parent / "explain"))
    bar = Steps(6 + 2 * len(layers))

    def show(
        stem: str, images: Tensor, title: str, header: list[str], numbers: Tensor, **look: Any
    ) -> None:
        """All images N×h×w as a picture, and in a CSV a row of numbers for each."""
        units = look.get("names") or range(len(images))
        write_csv(
            out / f"{stem}.csv",
            header,
            ([u, *row] for u, row in zip(units, numbers.tolist(), strict=True)),
        )
        bar.say(plots.mosaic(images, title, out / f"{stem}.{cfg.format}", **look))

    def show_ascent(stem: str, layer: nn.Module, count: int, title: str, **look: Any) -> None:
        """What excites each of the layer's filters or units, and how much."""
        torch.manual_seed(cfg.seed)  # the same whatever else is drawn
        batches = torch.arange(count, device=device).split(BATCH)
        images = [ascend(network, layer, units) for units in batches]
        reached = torch.cat(
            [excitation(network, layer, *pair) for pair in zip(images, batches, strict=True)]
        ).cpu()
        sheet, silent = torch.cat(images)[:, 0].cpu(), reached == 0
        sheet[silent] = (
            128  # a ReLU that gives 0 from the start has no gradient: not even noise should show
        )
        title += f", {silent.sum()} stayed silent (plain gray)" if silent.any() else ""
        show(stem, sheet, title, ["unit", "excitation"], reached[:, None], texture=True, **look)

    if "saliency" in cfg.show:
        methods = {
            "saliency": saliency,
            "SmoothGrad": smooth_grad,
            "integrated gradients": integrated_gradients,
        }
        if convolutions:
            area = outputs[windows[-1]].shape[2:]
            # Grad-CAM takes what is made of the last convolution before it is pooled
            last = modules[[name for name, found in outputs.items() if found.shape[2:] == area][-1]]
            methods["Grad-CAM"] = lambda network, *batch: grad_cam(network, last, *batch)
        else:
            bar.say("no convolution: Grad-CAM is left out")
        batches = list(zip(images.split(4), classes.to(device).split(4), strict=True))
        maps = {}
        for name, method in methods.items():
            bar.begin(name)
            maps[name] = torch.cat([method(network, *batch) for batch in batches])
        bar.say(draw_faces(cfg, faces, logits, classes, names, {"face": images} | maps, out))
    if "ideal_faces" in cfg.show:
        bar.begin("ideal faces")
        show_ascent("ideal_faces", network, len(names), "The ideal face of each class", names=names)
    if "kernels" in cfg.show and convolutions:
        bar.begin("kernels")
        weight: Any = modules[convolutions[0]].weight
        kernels = F.pixel_shuffle(weight, isqrt(weight.shape[1]))[
            :, 0
        ].cpu()  # space_to_depth's channels are pixels
        title, header = (
            f"{convolutions[0]}, all {len(kernels)} kernels",
            ["filter", "weights, row by row"],
        )
        show("kernels", kernels, title, header, kernels.flatten(1)[:, None])
    elif "kernels" in cfg.show:
        bar.say("no convolution: kernels are left out")
    for name in layers if "filters" in cfg.show else ():
        bar.begin(name)
        found = outputs[name][0].cpu()
        found = found.view(len(found), *found.shape[1:] or (1, 1))
        title, header = (
            f"{name}, all {len(found)} outputs on {faces.ids[0]}",
            ["unit", "minimum", "mean", "maximum"],
        )
        numbers = torch.stack([f((1, 2)) for f in (found.amin, found.mean, found.amax)], 1)
        show(name, found, title, header, numbers, face=images[0, 0].cpu())
        bar.begin(f"what excites {name}")
        show_ascent(
            f"{name}_ascent",
            modules[name],
            len(found),
            f"{name}, all {len(found)}: what excites each",
        )
    bar.close()


def draw_faces(
    cfg: config.ExplainConfig,
    faces: Faces,
    logits: Tensor,
    classes: Tensor,
    class_names: Sequence[str],
    maps: dict[str, Tensor],
    out: Path,
) -> Path:
    """saliency.png and its CSV: a row a face, a column a map, and the face where saliency reaches
    the threshold.
    """
    names, shares = (
        np.array([*class_names, ""]),
        logits.softmax(1),
    )  # -1 is no truth
    truth, predicted, target = (
        names[own.numpy()] for own in (faces.labels, logits.argmax(1), classes)
    )
    table = pd.DataFrame(
        {"face": faces.ids, "truth": truth, "prediction": predicted, "target": target}
    )
    table[names[:-1]] = shares.numpy()
    write_text(out / "saliency.csv", table.to_csv(index=False, float_format="%.6f"))
    captions = list(zip(faces.ids, truth, predicted, shares.amax(1).tolist(), strict=True))
    near = gaussian_blur(maps["saliency"], 9, 2.0)  # of single pixels, hardly any would be left
    rest = f"blurred saliency ≥ {cfg.threshold:g} max"
    maps |= {
        rest: maps["face"].where(
            near >= cfg.threshold * near.amax((1, 2, 3), keepdim=True), torch.nan
        )
    }
    looks = {"face": "gray", "integrated gradients": "signed", "Grad-CAM": "overlay", rest: "gray"}
    columns = {
        name: (looks.get(name, "positive"), found[:, 0].cpu().numpy())
        for name, found in maps.items()
    }
    score = {"predicted": "the predicted class", "true": "the true class"}.get(
        cfg.target, cfg.target
    )
    return plots.explanations(
        columns, captions, f"What the score of {score} rests on", out / f"saliency.{cfg.format}"
    )
