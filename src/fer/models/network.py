"""Network: from gray values to logits, normalization included, for any model that has a `size`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fer import FACE_SIZE, Format, Normalization
from fer.runtime import autocast, number_format

# Faces at once. More leave the caches: on 2 cores three networks were 1.1 to 1.5 times as fast as
# at 512.
CPU_BATCH = 64
PART = 4096  # images whose gray levels are counted at once


@dataclass(frozen=True)
class Normalize:
    """Gray values 0..255 to a network's input.

    none: as they are. unit: to 0..1. dataset: by the training set's mean and deviation. image: each
    face by its own.
    """

    kind: Normalization
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fit(cls, kind: Normalization, images: torch.Tensor) -> "Normalize":
        """With the constants of uint8 `images` (the training split), as far as `kind` needs any."""
        if kind != "dataset":
            return cls(kind, std=255.0 if kind == "unit" else 1.0)
        # In parts: bincount makes int64 of what it counts.
        counts = torch.zeros(256, dtype=torch.float64)
        for part in images.split(PART):
            counts += torch.bincount(part.flatten(), minlength=256)
        levels = torch.arange(256, dtype=torch.float64)
        mean = (counts @ levels / counts.sum()).item()
        return cls(
            kind, mean, max((counts @ (levels - mean) ** 2 / counts.sum()).sqrt().item(), 1.0)
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = images.float()
        if self.kind == "image":
            std, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True, correction=0)
            return (images - mean) / std.clamp(min=1.0)
        return (images - self.mean) / self.std


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """N×1×H×H as N×1×side×side; as they are if they have that side already."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)


def fit(images: torch.Tensor, size: int) -> torch.Tensor:
    """N×1×H×H as float N×1×size×size: the centre, or bilinear enlargement."""
    side = images.shape[-1]
    if side < size:
        return F.interpolate(images.float(), size=(size, size), mode="bilinear")
    start = (side - size) // 2
    return images[..., start : start + size, start : start + size]


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and the module of a model's last layer with weights: the one that tells the classes.
    All others together are the backbone.
    """
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return layers[-1]


def backbone(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all layers but the last."""
    head = {id(parameter) for parameter in last_layer(model)[1].parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


class Network(nn.Module):
    """uint8 or float faces N×1×H×H, 0..255, to logits N×classes. Faces larger than the model's own
    `size` are cropped at the centre, smaller ones enlarged.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: Normalize,
        classes: Sequence[str] | None = None,
        face_size: int = FACE_SIZE,
    ):
        """classes: names of the logits; None: FER2013's, or FER+'s eight. face_size: pixels of a
        side of the faces that it is trained on; others are resized to that, see at_face_size.
        """
        super().__init__()
        self.face_size = face_size
        self.classes = None if classes is None else tuple(classes)
        self.model: Any = model  # a module and its own numbers, which mypy takes for modules too
        self.normalize = normalize

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(self.prepare(images))

    def prepare(self, images: torch.Tensor, side: int | None = None) -> torch.Tensor:
        """The model's input, float32 N×1×side×side. side: pixels to which the faces are shrunk, for
        a model whose `any_size` says that it takes them; None: the model's own size.
        """
        images = fit(images, self.model.size)
        return self.normalize(resized(images, side or self.model.size))

    def at_face_size(self, images: torch.Tensor) -> torch.Tensor:
        """Faces of any side, N×1×H×H, at the side of those that it was trained on."""
        return resized(images, self.face_size)

    @torch.inference_mode()
    def logits(
        self, images: torch.Tensor, batch_size: int, computed_in: Format | None = None
    ) -> torch.Tensor:
        """float32 logits of faces anywhere, on the network's device, in evaluation mode.

        computed_in: a number format; None takes the device's own, whatever the network was trained
        in.
        """
        device = next(self.parameters()).device
        if device.type == "cpu":
            batch_size = min(batch_size, CPU_BATCH)
        training = self.training
        self.eval()
        with autocast(device, computed_in or number_format(device)):
            parts = [self(part.to(device)).float() for part in images.split(batch_size)]
        self.train(training)
        return torch.cat(parts)
