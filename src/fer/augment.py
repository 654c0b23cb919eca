"""Augmentation: batched tensor functions, and Augment, which draws their parameters and applies them.

The functions are pure: a batch N×1×H×W and one parameter an image, all on one device. Nothing reads a value back or
branches on one, so the host never waits for a GPU. Flip, rotation, shift, zoom and crop are one affine map and one
resample; flip and crop without the others move pixels and resample nothing. When they change is the curves' matter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from fer import UserError

Share = Annotated[float, Ge(0), Le(1)]
Fill = Literal["constant", "nearest", "reflection"]
PADDING = {"constant": "zeros", "nearest": "border", "reflection": "reflection"}
STRENGTHS = ("crop", "flip", "rotate", "shift", "zoom", "erase", "brightness", "contrast", "mixup", "cutmix")
SHARES = ("crop", "mixup", "cutmix")  # of which a strength is not a factor, but a share by itself


def affine(
    images: Tensor, flip: Tensor, degrees: Tensor, shift: Tensor, scale: Tensor, size: tuple[int, int], fill: Fill
) -> Tensor:
    """Float N×1×H×W flipped, scaled, rotated about their centre, then shifted, read bilinearly; the result's size is
    (h, w). torchvision's `affine` after `horizontal_flip`.

    flip: N, bool. degrees: N, clockwise. shift: N×2, pixels right and down. scale: N×2, along the image's own x and y,
    above 1 enlarges.
    """
    (height, width), (h, w) = images.shape[-2:], size
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    mirror = torch.stack([1 - 2 * flip.float(), torch.ones_like(degrees)], dim=1)
    # From pixels of the result to those of the image, (x, y) from the centre; grid_sample counts -1 to 1.
    inverse = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2) / (scale * mirror)[:, :, None]
    theta = torch.cat([inverse, -inverse @ shift[:, :, None]], dim=2)
    theta = torch.stack([theta[:, 0] * 2 / width, theta[:, 1] * 2 / height], dim=1)
    # A sum of a row and a column for each image: 0.07 ms for 128 faces, where F.affine_grid takes 2.6.
    x = torch.arange(w, device=images.device) - (w - 1) / 2
    y = torch.arange(h, device=images.device) - (h - 1) / 2
    across, down = theta[:, :, :1] * x + theta[:, :, 2:], theta[:, :, 1:2] * y
    grid = (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)
    moved = F.grid_sample(images, grid, padding_mode=PADDING[fill], align_corners=False)
    return moved.clamp_(0, 255)  # the four weights add up to 1 + 1e-7 at times


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Left and right swapped where flip (N, bool) says so; exact."""
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """N×1×size×size windows whose corners are at top and left (N, int64, pixels); exact."""
    span = torch.arange(size, device=images.device)
    index = (top[:, None] + span)[:, :, None] * images.shape[-1] + (left[:, None] + span)[:, None, :]
    return images.flatten(1).gather(1, index.flatten(1)).view(-1, 1, size, size)


def brightness(images: Tensor, delta: Tensor) -> Tensor:
    """delta (N, grey levels) is added, within 0..255. torchvision's adjust_brightness multiplies instead."""
    return (images + delta[:, None, None, None]).clamp_(0, 255)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Distance from each image's own mean × factor (N, from 0), within 0..255: torchvision's adjust_contrast."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + (images - mean) * factor[:, None, None, None]).clamp_(0, 255)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Bool N×1×height×width, true inside boxes (N×4: top, left, bottom, right in pixels, the last two exclusive)."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(images: Tensor, boxes: Tensor, value: Tensor) -> Tensor:
    """value (shaped as the images) inside boxes (N×4, see inside): Zhong et al. 2020."""
    return torch.where(inside(boxes, *images.shape[-2:]), value, images)


def mixup(images: Tensor, targets: Tensor, lam: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """lam (one number) of each image and target, the rest from the one that perm (N) names: Zhang et al. 2018."""
    other = images.index_select(0, perm)  # six times as fast as images[perm] on a CPU
    return lam * images + (1 - lam) * other, lam * targets + (1 - lam) * targets[perm]


def cutmix(images: Tensor, targets: Tensor, box: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """The box (4, see inside) of the image that perm (N) names, and its area's share of the target: Yun et al. 2019."""
    share = inside(box[None], *images.shape[-2:]).float().mean()
    return erase(images, box[None], images.index_select(0, perm)), (1 - share) * targets + share * targets[perm]


def check_crop(images: Tensor, size: int) -> None:
    if size > min(images.shape[-2:]):
        raise UserError(f"crop={size}: the images are only {images.shape[-2]}×{images.shape[-1]}; choose no more")


def ten_crops(images: Tensor, size: int) -> Tensor:
    """10×N×1×size×size: the corners, top left, top right, bottom left, bottom right, and the centre, then those of the
    flipped images (Krizhevsky et al. 2012)."""
    from torchvision.transforms.v2.functional import ten_crop  # takes a second to import

    check_crop(images, size)
    return torch.stack(ten_crop(images, [size]))


def spread(images: Tensor, *more: int) -> Tensor:
    """Even draws from -1 to 1, N or N×more."""
    return torch.empty(len(images), *more, device=images.device).uniform_(-1, 1)


def window(images: Tensor, room: int, share: float) -> Tensor:
    """Starts of windows, N, int64, anywhere from 0 to `room`, drawn to its middle by a share below 1."""
    start = torch.randint(room + 1, (len(images),), device=images.device)
    return (room / 2 + (start - room / 2) * share).round().long()


def draw_erase(images: Tensor, probability: float) -> Tensor:
    """Boxes for erase, N×4: 2 to 40 % of the area, sides 0.3 to 1/0.3, as published; empty for 1 - probability of N.

    The paper draws again when a box is taller or wider than the image; here the ratio is drawn among those that fit.
    """
    (count, _, height, width), device = images.shape, images.device
    area = torch.empty(count, device=device).uniform_(0.02, 0.4)
    stretch = (-area.log()).clamp(max=-math.log(0.3)) * spread(images)
    some = torch.rand(count, device=device) < probability
    h = ((area * stretch.exp()).sqrt() * height).round() * some
    w = ((area / stretch.exp()).sqrt() * width).round() * some
    top = (torch.rand(count, device=device) * (height - h + 1)).floor()
    left = (torch.rand(count, device=device) * (width - w + 1)).floor()
    return torch.stack([top, left, top + h, left + w], dim=1)


def draw_cutmix(images: Tensor, lam: Tensor) -> Tensor:
    """A box for cutmix, 4: 1 - lam (one number) of the area, its centre anywhere in the image; it may reach beyond."""
    height, width = images.shape[-2:]
    half = (1 - lam).sqrt() / 2
    y, x = torch.rand(2, device=lam.device)
    y, x, up, along = (y * height).floor(), (x * width).floor(), (half * height).floor(), (half * width).floor()
    return torch.stack([y - up, x - along, y + up, x + along])


def draw_beta(alpha: float, device: torch.device) -> Tensor:
    """One draw of Beta(alpha, alpha), through logarithms: as a ratio of Gamma draws it is 0 / 0 for small alpha."""
    ones = torch.ones(2, device=device)
    gamma = torch.distributions.Gamma(ones * (alpha + 1), ones, validate_args=False).sample()
    log = gamma.log() + (1 - torch.rand(2, device=device)).log() / alpha
    return (log[0] - log[1]).sigmoid()


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of a batch, for each image its own, in the order of the arguments; the first six in one resample.

    flip, erase: probabilities, for each image. rotate: degrees, shift: share of the side, right or left and down or up,
    zoom: share of the scale, on both axes the same or each its own; all three drawn evenly from ± their value. crop:
    side of a window anywhere in the image, which is the result's size; None leaves the image whole. fill: what lies
    beyond the edge, black, the edge's own pixels or the image mirrored. brightness: share of 255 that is added,
    contrast: share of the factor, both drawn from ±. erase paints a box with noise. mixup, cutmix: alpha, 0 is off;
    with both on, a coin gives every batch one of them.
    """

    flip: Share
    rotate: Annotated[float, Ge(0), Le(180)]
    shift: Share
    zoom: Annotated[float, Ge(0), Lt(1)]
    zoom_axes: Literal["together", "separate"]
    crop: Annotated[int, Ge(1)] | None
    fill: Fill
    brightness: Share
    contrast: Share
    erase: Share
    mixup: Annotated[float, Ge(0)]
    cutmix: Annotated[float, Ge(0)]

    def __call__(
        self, images: Tensor, targets: Tensor, strength: Mapping[str, float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch, changed: float32 N×1×h×w in 0..255, and its targets.

        images: N×1×H×W, 0..255, uint8 or float. targets: float N×classes. strength: for any of STRENGTHS a factor from
        0 to 1 of its value; of mixup and cutmix, the share of batches mixed; of crop, how far windows lie from the
        centre. Draws from torch's global generator.
        """
        at = dict.fromkeys(STRENGTHS, 1.0) | dict(strength or {})
        for name, factor in at.items():
            if name not in STRENGTHS or not 0 <= factor <= 1:
                raise UserError(f"strength {name}={factor}: should be 0 to 1, of one of {', '.join(STRENGTHS)}")
            value = getattr(self, name)
            at[name] = factor * (bool(value) if name in SHARES else value)
        images = self.move(images, at)
        if at["brightness"]:
            images = brightness(images, at["brightness"] * 255 * spread(images))
        if at["contrast"]:
            images = contrast(images, 1 + at["contrast"] * spread(images))
        if at["erase"]:
            noise = 255 * torch.rand(images.shape, device=images.device)
            images = erase(images, draw_erase(images, at["erase"]), noise)
        if not (at["mixup"] or at["cutmix"]):
            return images, targets
        half = 0.5 if self.mixup and self.cutmix else 1
        coin, perm = torch.rand((), device=images.device), torch.randperm(len(images), device=images.device)
        if at["mixup"]:
            lam = torch.where(coin < half * at["mixup"], draw_beta(self.mixup, images.device), 1)
            images, targets = mixup(images, targets, lam, perm)
        if at["cutmix"]:
            box = draw_cutmix(images, draw_beta(self.cutmix, images.device)) * (1 - coin <= half * at["cutmix"])
            images, targets = cutmix(images, targets, box, perm)
        return images, targets

    def move(self, images: Tensor, at: Mapping[str, float]) -> Tensor:
        """Flip, rotation, shift, zoom and crop by the values in `at`."""
        (height, width), size = images.shape[-2:], self.crop
        flip = torch.rand(len(images), device=images.device) < at["flip"]
        if size:
            check_crop(images, size)
            top, left = (window(images, side - size, at["crop"]) for side in (height, width))
        if at["rotate"] or at["shift"] or at["zoom"]:
            degrees = at["rotate"] * spread(images)
            shift = at["shift"] * torch.stack([width * spread(images), height * spread(images)], dim=1)
            if size:  # a window off the centre is the image shifted the other way
                shift = shift - torch.stack([left - (width - size) / 2, top - (height - size) / 2], dim=1)
            scale = 1 + at["zoom"] * spread(images, 1 if self.zoom_axes == "together" else 2).expand(-1, 2)
            to = (size, size) if size else (height, width)
            return affine(images.float(), flip, degrees, shift, scale, to, self.fill)
        if at["flip"]:
            images = horizontal_flip(images, flip)
        return (crop(images, top, left, size) if size else images).float()
