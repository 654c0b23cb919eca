"""Network: a model together with what precedes it, fitting faces to its size and normalization."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fer import FACE_SIZE, Format, Normalization
from fer.runtime import autocast, number_format

# Larger batches do not fit the caches. On 2 cores three networks were 1.1 to 1.5 times as fast as
# with batches of 512.
CPU_BATCH = 64
COUNTED_AT_ONCE = 4096  # images whose gray levels are counted at once; bincount makes them int64


@dataclass(frozen=True)
class Normalize:
    """Scales gray values from 0..255.

    kind: none leaves them as they are; unit maps them to 0..1; dataset standardizes them by the
    mean and the standard deviation of the training faces; image standardizes each face by its own.
    """

    kind: Normalization
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fit(cls, kind: Normalization, images: torch.Tensor) -> "Normalize":
        """The normalization for these training faces, uint8 N×1×H×W."""
        if kind == "unit":
            return cls(kind, std=255.0)
        if kind != "dataset":
            return cls(kind)
        counts = torch.zeros(256, dtype=torch.float64)
        for part in images.split(COUNTED_AT_ONCE):
            counts += torch.bincount(part.flatten(), minlength=256)
        levels = torch.arange(256, dtype=torch.float64)
        mean = (counts @ levels / counts.sum()).item()
        variance = counts @ (levels - mean) ** 2 / counts.sum()
        return cls(kind, mean, max(variance.sqrt().item(), 1.0))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.float32:  # an export would hold a cast that changes nothing
            images = images.float()
        if self.kind == "image":
            std, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True, correction=0)
            return (images - mean) / std.clamp(min=1.0)
        return (images - self.mean) / self.std


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """N×1×H×H resized to N×1×side×side; unchanged if they have that side already."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)


def crop_or_enlarge(images: torch.Tensor, size: int) -> torch.Tensor:
    """Faces N×1×H×H cropped at the center, or enlarged bilinearly, to N×1×size×size."""
    side = images.shape[-1]
    if side < size:
        return F.interpolate(images.float(), size=(size, size), mode="bilinear")
    if side == size:
        return images
    start = (side - size) // 2
    return images[..., start : start + size, start : start + size]


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and the module of a model's last dense or convolutional layer, which computes the
    logits. All other layers are the backbone.
    """
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            layers.append((name, module))
    return layers[-1]


def backbone(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all layers but the last."""
    head = {id(parameter) for parameter in last_layer(model)[1].parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


class Network(nn.Module):
    """Faces N×1×H×H, uint8 or float from 0 to 255, to logits N×classes.

    Faces larger than the model's `size` are cropped at the center; smaller ones are enlarged.
    """

    def __init__(
        self,
        model: nn.Module,
        normalize: Normalize,
        classes: Sequence[str] | None = None,
        face_size: int = FACE_SIZE,
    ):
        """classes: name of each logit; None: the seven of FER2013 or the eight of FER+.
        face_size: side, in pixels, of the training faces; see at_face_size.
        """
        super().__init__()
        self.face_size = face_size
        self.cpu_batch = CPU_BATCH
        self.classes = None if classes is None else tuple(classes)
        self.model: Any = model  # Any: mypy takes a module's attributes, as `size`, for modules
        self.normalize = normalize

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(self.prepare(images))

    def prepare(self, images: torch.Tensor, side: int | None = None) -> torch.Tensor:
        """The model's input, float32 N×1×side×side.

        side: pixels to which faces are shrunk; only for a model that takes images of `any_size`.
        None: the model's own size.
        """
        images = crop_or_enlarge(images, self.model.size)
        return self.normalize(resized(images, side or self.model.size))

    def at_face_size(self, images: torch.Tensor) -> torch.Tensor:
        """Faces of any side, N×1×H×H, resized to that of the training faces."""
        return resized(images, self.face_size)

    @torch.inference_mode()
    def logits(
        self, images: torch.Tensor, batch_size: int, computed_in: Format | None = None
    ) -> torch.Tensor:
        """float32 logits in evaluation mode, on the network's device. The faces may be on another.

        computed_in: a number format; None: the device's default, whatever the network was trained
        in.
        """
        device = next(self.parameters()).device
        if device.type == "cpu":
            batch_size = min(batch_size, self.cpu_batch)
        training = self.training
        self.eval()
        parts = []
        with autocast(device, computed_in or number_format(device)):
            for part in images.split(batch_size):
                parts.append(self(part.to(device)).float())
        self.train(training)
        return torch.cat(parts)
