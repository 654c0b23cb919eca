"""Augmentation: batched tensor functions, and Augment, which draws their parameters and applies
them.

The functions are pure. They take a batch N×1×H×W and one parameter per image, all on one device.
No code reads a value back from the device or branches on one, so the host never waits for a GPU.
Flip, rotation, shift, zoom and crop form one affine map and one resample; a flip or a crop alone
only moves pixels. Curves (fer.schedule) change the strengths during training.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fer import UserError

Share = Annotated[float, Ge(0), Le(1)]
Area = Annotated[float, Gt(0), Le(2)]  # as a share of the image's area
Number = float | Tensor  # a tensor has no dimensions and is on the device
Fill = Literal["constant", "nearest", "reflection"]
PADDING = {"constant": "zeros", "nearest": "border", "reflection": "reflection"}
# The settings of Augment whose strength a curve may change.
STRENGTHS = (
    "crop",
    "flip",
    "rotate",
    "shift",
    "zoom",
    "erase",
    "brightness",
    "contrast",
    "mixup",
    "cutmix",
    "jitter",
)
# For these a strength is not a factor of the setting's value, but a share of its own; see
# Augment.amounts.
SHARES = ("crop", "mixup", "cutmix")


def affine(
    images: Tensor,
    flip: Tensor | None,
    degrees: Tensor,
    shift: Tensor,
    scale: Tensor,
    size: tuple[int, int],
    fill: Fill,
) -> Tensor:
    """Float N×1×H×W flipped, scaled, rotated about their center, then shifted; bilinear. The result
    has the given size, (height, width). Like torchvision's `affine` after `horizontal_flip`.

    flip: bool N; None flips no image.
    degrees: N, clockwise.
    shift: N×2, pixels to the right and down.
    scale: N×2, along the image's own x and y axes; above 1 enlarges.
    """
    height, width = images.shape[-2:]
    output_height, output_width = size
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    if flip is not None:
        mirror = 1 - 2 * flip.float()  # -1 or 1
        scale = torch.stack([scale[:, 0] * mirror, scale[:, 1]], dim=1)
    # The map from pixels of the result to pixels of the image, both (x, y) from the center.
    # Not by a matrix product: its rounding depends on the batch size, and several processes that
    # share a batch must together change it as one would.
    inverse = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2) / scale[:, :, None]
    offset = -(inverse * shift[:, None, :]).sum(2, keepdim=True)
    theta = torch.cat([inverse, offset], dim=2)
    # grid_sample's coordinates go from -1 to 1.
    theta = torch.stack([theta[:, 0] * 2 / width, theta[:, 1] * 2 / height], dim=1)
    # A row plus a column for each image: 0.07 ms for 128 faces; F.affine_grid takes 2.6 ms.
    x = torch.arange(output_width, device=images.device) - (output_width - 1) / 2
    y = torch.arange(output_height, device=images.device) - (output_height - 1) / 2
    along_row = theta[:, :, :1] * x + theta[:, :, 2:]
    along_column = theta[:, :, 1:2] * y
    grid = (along_row[:, :, None, :] + along_column[:, :, :, None]).permute(0, 2, 3, 1)
    moved = F.grid_sample(images, grid, padding_mode=PADDING[fill], align_corners=False)
    return moved.clamp_(0, 255)  # the four weights may add up to 1 + 1e-7


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Left and right swapped in the images where `flip` (bool N) is true; exact."""
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """N×1×size×size windows whose upper left corners are at (top, left), int64 N each; exact."""
    span = torch.arange(size, device=images.device)
    rows = top[:, None] + span
    columns = left[:, None] + span
    index = rows[:, :, None] * images.shape[-1] + columns[:, None, :]
    return images.flatten(1).gather(1, index.flatten(1)).view(-1, 1, size, size)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """The part of each image inside its box, enlarged to the whole image, float N×1×H×W; bilinear,
    like torchvision's `resized_crop`.

    boxes: N×4, see `inside`.
    """
    height, width = images.shape[-2:]
    top, left, bottom, right = boxes.float()[:, :, None].unbind(1)
    y = (torch.arange(height, device=images.device) + 0.5) * (bottom - top) / height - 0.5
    x = (torch.arange(width, device=images.device) + 0.5) * (right - left) / width - 0.5
    # Clamped, so that no pixel outside the box takes part.
    y = top + y.clamp(min=0).minimum(bottom - top - 1)
    x = left + x.clamp(min=0).minimum(right - left - 1)
    rows = ((2 * y + 1) / height - 1)[:, :, None].expand(-1, height, width)
    columns = ((2 * x + 1) / width - 1)[:, None, :].expand(-1, height, width)
    grid = torch.stack([columns, rows], dim=3)
    cut = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return cut.clamp_(0, 255)


def brightness(images: Tensor, delta: Tensor) -> Tensor:
    """Add delta (N, gray levels) and clamp to 0..255. torchvision's adjust_brightness multiplies
    instead.
    """
    return (images + delta[:, None, None, None]).clamp_(0, 255)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image's deviation from its mean by factor (N, at least 0) and clamp to 0..255,
    like torchvision's adjust_contrast.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + (images - mean) * factor[:, None, None, None]).clamp_(0, 255)


def jitter(images: Tensor, bright: Tensor, factor: Tensor, contrast_first: Tensor) -> Tensor:
    """Multiply float images by `bright`, and change their contrast by `factor` before or after it,
    like torchvision's adjust_brightness and adjust_contrast. Each clamps to 0..255.

    bright, factor: N, at least 0.
    contrast_first: bool N.
    """

    def brightened(images: Tensor) -> Tensor:
        return (images * bright[:, None, None, None]).clamp_(0, 255)

    return torch.where(
        contrast_first[:, None, None, None],
        brightened(contrast(images, factor)),
        contrast(brightened(images), factor),
    )


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks of boxes, bool N×1×height×width.

    boxes: N×4: top, left, bottom and right in pixels; the last two are exclusive.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    rows = (y >= top) & (y < bottom)
    columns = (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(images: Tensor, boxes: Tensor, value: Tensor) -> Tensor:
    """Random erasing (Zhong et al. 2020): `value`, of the shape of the images, replaces them inside
    the boxes (N×4, see `inside`).
    """
    return torch.where(inside(boxes, *images.shape[-2:]), value, images)


def mixup(
    images: Tensor, targets: Tensor, lam: Tensor, others: Tensor, other_targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018): lam × each image and target + (1 - lam) × its row of `others`."""
    return lam * images + (1 - lam) * others, lam * targets + (1 - lam) * other_targets


def cutmix(
    images: Tensor, targets: Tensor, box: Tensor, others: Tensor, other_targets: Tensor
) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): inside the box (4, see `inside`) each image becomes its row of
    `others`, whose target gets the box's share of the area.
    """
    share = inside(box[None], *images.shape[-2:]).float().mean()
    return erase(images, box[None], others), (1 - share) * targets + share * other_targets


def check_crop(images: Tensor, size: int) -> None:
    if size > min(images.shape[-2:]):
        raise UserError(
            f"crop={size}: the images are only {images.shape[-2]}×{images.shape[-1]}; choose a "
            "smaller crop"
        )


def ten_crops(images: Tensor, size: int) -> Tensor:
    """Ten crops of each image (Krizhevsky et al. 2012), 10×N×1×size×size: top left, top right,
    bottom left, bottom right, center, then the same of the flipped images.
    """
    from torchvision.transforms.v2.functional import ten_crop  # takes a second to import

    check_crop(images, size)
    return torch.stack(ten_crop(images, [size]))


def fixed_crops(images: Tensor, size: int, count: int) -> Tensor:
    """Fixed crops of each image, N·count×1×size×size; those of one image are adjacent.

    count: 5 (corners and center) or 10 (those of the flipped image too).
    """
    from torchvision.transforms.v2.functional import five_crop, ten_crop

    crops = five_crop(images, [size]) if count == 5 else ten_crop(images, [size])
    return torch.stack(crops, dim=1).flatten(0, 1)


class Draws:
    """Random numbers for a batch of `count` images on `device`.

    generator: None uses torch's global one.
    """

    def __init__(self, count: int, device: torch.device, generator: torch.Generator | None = None):
        self.count, self.device, self.generator = count, device, generator

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform from low to high, N×shape."""
        empty = torch.empty(self.count, *shape, device=self.device)
        return empty.uniform_(low, high, generator=self.generator)

    def spread(self, *shape: int) -> Tensor:
        """Uniform from -1 to 1, N×shape."""
        return self.uniform(*shape, low=-1)

    def some(self, probability: Number) -> Tensor:
        """Bool N, each true with this probability."""
        return self.uniform() < probability

    def window(self, room: int, share: Number) -> Tensor:
        """First rows or columns of windows, int64 N, from 0 to `room`. Their distance from the
        middle is multiplied by `share`.
        """
        start = torch.randint(room + 1, (self.count,), device=self.device, generator=self.generator)
        middle = room / 2
        return (middle + (start - middle) * share).round().long()

    def permutation(self) -> Tensor:
        """The positions 0 to N-1 in random order. Random numbers are sorted, since torch.randperm
        may wait for a GPU.
        """
        return self.uniform().argsort()

    def one(self, *shape: int) -> Tensor:
        """Uniform from 0 to 1; one draw for the whole batch."""
        return torch.rand(shape, device=self.device, generator=self.generator)

    def resized_crop_boxes(self, low: float, high: float, height: int, width: int) -> Tensor:
        """Boxes for resized_crop, N×4, drawn as torchvision's RandomResizedCrop does: `low` to
        `high` of the area, aspect ratio 3/4 to 4/3, the first of ten attempts that fits into the
        image. If none fits, the whole image.
        """
        attempts = 10
        area = self.uniform(attempts, low=low, high=high) * height * width
        ratio = (self.spread(attempts) * math.log(4 / 3)).exp()
        h = (area / ratio).sqrt().round()
        w = (area * ratio).sqrt().round()
        fits = (h <= height) & (w <= width)
        first = fits.float().argmax(1, keepdim=True)  # the first attempt that fits
        none_fits = ~fits.any(1)
        h = torch.where(none_fits, height, h.gather(1, first)[:, 0])
        w = torch.where(none_fits, width, w.gather(1, first)[:, 0])
        top = (self.uniform() * (height - h + 1)).floor()
        left = (self.uniform() * (width - w + 1)).floor()
        return torch.stack([top, left, top + h, left + w], dim=1)

    def boxes(self, probability: Number, height: int, width: int, largest: float = 0.4) -> Tensor:
        """Boxes for erase, N×4: from 2 % of the area to `largest`, with an aspect ratio of 0.3 to
        1/0.3, as published.

        The paper draws again if a box is taller or wider than the image. Here the aspect ratio is
        drawn from those that fit.
        probability: that an image has a box; otherwise the box is empty.
        """
        area = self.uniform(low=0.02, high=largest)
        log_ratio = (-area.log()).clamp(max=-math.log(0.3)) * self.spread()
        has_box = self.some(probability)
        h = ((area * log_ratio.exp()).sqrt() * height).round() * has_box
        w = ((area / log_ratio.exp()).sqrt() * width).round() * has_box
        top = (self.uniform() * (height - h + 1)).floor()
        left = (self.uniform() * (width - w + 1)).floor()
        return torch.stack([top, left, top + h, left + w], dim=1)

    def cutmix_box(self, lam: Tensor, height: int, width: int) -> Tensor:
        """A box for cutmix, 4, with a share of 1 - lam of the area. Its center is in the image, its
        edges may be outside.
        """
        half = (1 - lam).sqrt() / 2
        y, x = self.one(2)
        y, x = (y * height).floor(), (x * width).floor()
        half_height = (half * height).floor()
        half_width = (half * width).floor()
        return torch.stack([y - half_height, x - half_width, y + half_height, x + half_width])

    def beta(self, alpha: float) -> Tensor:
        """One draw from Beta(alpha, alpha), interpolated from its quantiles. torch's own Beta
        always uses the global generator.
        """
        quantiles = beta_quantiles(alpha, self.device)
        position = self.one() * (len(quantiles) - 1)
        below = position.long().clamp(max=len(quantiles) - 2)
        neighbors = quantiles.index_select(0, torch.stack([below, below + 1]))
        return torch.lerp(neighbors[0], neighbors[1], position - below)


@functools.cache
def beta_quantiles(alpha: float, device: torch.device, steps: int = 4096) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at 0, 1/steps, …, 1, float32."""
    from scipy.special import betaincinv

    quantiles = betaincinv(alpha, alpha, np.linspace(0, 1, steps + 1))
    return torch.from_numpy(quantiles).float().to(device)


class Pair(NamedTuple):
    """Images and their targets, a row each."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of the images of a batch, drawn anew for each image. By default nothing
    changes, so a new setting alters no recipe and no checkpoint.

    The order is jitter, resized_crop; then flip, zoom, rotate, shift and crop in one resample; then
    brightness, contrast, erase, and mixup or cutmix. "±" means uniform between minus and plus the
    value.

    flip: probability.
    rotate: degrees, ±.
    shift: share of the side, ±, horizontally and vertically.
    zoom: share of the scale, ±.
    zoom_axes: both axes get the same zoom, or each its own.
    crop: side of a window at a random place, which becomes the result; None: the whole image.
    fill: the pixels beyond the edge: black, the edge's own pixels, or the mirrored image.
    brightness: share of 255 that is added, ±.
    contrast: share of the contrast, ±.
    erase: probability that a box becomes noise.
    mixup, cutmix: their alpha; 0: off. If both are on, a coin decides for each batch.

    The rest reproduces published recipes:

    jitter: brightness and contrast are multiplied by factors of 1 ± this, in random order.
    jitter_probability, rotate_probability, shift_probability: for each image.
    resized_crop: smallest and largest area of a window that is enlarged to the image, as shares.
    crops: 5 or 10 fixed windows of side `crop` instead of a random one. The batch is that many
    times as large, and each crop is erased and mixed by itself.
    erase_area: largest area of an erased box, as a share; the smallest is 0.02.
    erase_value: what fills an erased box.
    """

    flip: Share = 0.0
    rotate: Annotated[float, Ge(0), Le(180)] = 0.0
    shift: Share = 0.0
    zoom: Annotated[float, Ge(0), Lt(1)] = 0.0
    zoom_axes: Literal["together", "separate"] = "together"
    crop: Annotated[int, Ge(1)] | None = None
    fill: Fill = "nearest"
    brightness: Share = 0.0
    contrast: Share = 0.0
    erase: Share = 0.0
    mixup: Annotated[float, Ge(0)] = 0.0
    cutmix: Annotated[float, Ge(0)] = 0.0
    jitter: Share = 0.0
    jitter_probability: Share = 1.0
    resized_crop: tuple[Area, Area] | None = None
    rotate_probability: Share = 1.0
    shift_probability: Share = 1.0
    crops: Literal[1, 5, 10] = 1
    erase_area: Annotated[float, Gt(0.02), Lt(1)] = 0.4
    erase_value: Literal["noise", "black"] = "noise"

    def __post_init__(self) -> None:
        if self.crops > 1 and not self.crop:
            raise ValueError(
                f"crops={self.crops}: needs the side of the crops; set augment.crop=40, for example"
            )
        if self.resized_crop and not self.resized_crop[0] <= min(self.resized_crop[1], 1):
            raise ValueError(
                f"resized_crop={list(self.resized_crop)}: should be [smallest, largest] share of "
                "the area, the smallest at most 1"
            )

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        strength: Mapping[str, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The augmented batch, float32 N×1×h×w from 0 to 255, and its targets.

        images: N×1×H×W from 0 to 255, uint8 or float.
        targets: float N×classes.
        strength: see `amounts`.
        generator: on the images' device; None uses torch's global one.
        """
        return self.apply(images, targets, self.amounts(strength), generator)

    def amounts(self, strength: Mapping[str, float] | None = None) -> dict[str, float]:
        """The amount of each change at these strengths; changes that are off are left out.

        strength: a number from 0 to 1 for any of STRENGTHS, by which the setting's value is
        multiplied. Of mixup and cutmix it is the share of batches that are mixed; of crop, how far
        windows may lie from the center.
        """
        factors = dict.fromkeys(STRENGTHS, 1.0) | dict(strength or {})
        amounts = {}
        for name, factor in factors.items():
            if name not in STRENGTHS or not 0 <= factor <= 1:
                raise UserError(
                    f"strength {name}={factor}: should be from 0 to 1, for one of "
                    f"{', '.join(STRENGTHS)}"
                )
            value = getattr(self, name) or 0.0
            if name in SHARES and value:
                value = 1.0
            if factor * value:
                amounts[name] = factor * value
        return amounts

    def apply(
        self,
        images: Tensor,
        targets: Tensor,
        amounts: Mapping[str, Number],
        generator: torch.Generator | None = None,
        part: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The batch, augmented by `amounts`, whose numbers may be tensors on the device. With
        `crops`, N × crops images and targets; those of one image are adjacent.

        part: the rows to return, if several processes share the batch. All processes draw the same
        random numbers for the whole batch, so together they change it as one process would; each
        resamples only the rows that it needs.
        """
        draws = Draws(len(images), images.device, generator)
        changes = self.draw(images, amounts, draws)
        crop_draws = Draws(self.crops * len(images), images.device, generator)
        erasures = self.draw_erasures(images, amounts, crop_draws)
        mixes = "mixup" in amounts or "cutmix" in amounts
        permutation = crop_draws.permutation() if mixes else None
        batch = Pair(images, targets)
        if part is None:
            changed, partners = self.change_batch(batch, changes, erasures, permutation)
        else:
            changed, partners = self.change_part(batch, changes, erasures, permutation, part)
        if partners is None:
            return changed
        return self.mix(changed, partners, amounts, draws)

    def change_batch(
        self,
        batch: Pair,
        changes: Mapping[str, Tensor],
        erasures: Mapping[str, Tensor],
        permutation: Tensor | None,
    ) -> tuple[Pair, Pair | None]:
        """The changed batch, and for each row the row that is mixed in, if any."""
        images = self.erase_boxes(self.change(batch.images, changes), erasures)
        targets = batch.targets
        if self.crops > 1:
            targets = targets.repeat_interleave(self.crops, dim=0)
        changed = Pair(images, targets)
        if permutation is None:
            return changed, None
        partner_images = images.index_select(0, permutation)
        return changed, Pair(partner_images, targets.index_select(0, permutation))

    def change_part(
        self,
        batch: Pair,
        changes: Mapping[str, Tensor],
        erasures: Mapping[str, Tensor],
        permutation: Tensor | None,
        part: slice,
    ) -> tuple[Pair, Pair | None]:
        """The rows of `change_batch` that belong to these images."""
        sources = torch.arange(len(batch.images), device=batch.images.device)[part]
        rows = self.crop_rows(sources)
        needed = rows if permutation is None else torch.cat([rows, permutation[rows]])
        images = self.change_some(batch.images, changes, needed)
        images = self.erase_boxes(images, pick(erasures, needed))
        targets = batch.targets[needed // self.crops]
        count = len(rows)  # behind these, their partners
        changed = Pair(images[:count], targets[:count])
        if permutation is None:
            return changed, None
        return changed, Pair(images[count:], targets[count:])

    def mix(self, batch: Pair, partners: Pair, amounts: Mapping[str, Number], draws: Draws) -> Pair:
        """The batch mixed with its partners by mixup or by CutMix, as a coin decides."""
        images, targets = batch
        coin = draws.one()
        half = 0.5 if self.mixup and self.cutmix else 1
        height, width = images.shape[-2:]
        if "mixup" in amounts:
            lam = torch.where(coin < half * amounts["mixup"], draws.beta(self.mixup), 1)
            images, targets = mixup(images, targets, lam, *partners)
        if "cutmix" in amounts:
            box = draws.cutmix_box(draws.beta(self.cutmix), height, width)
            box = box * (1 - coin <= half * amounts["cutmix"])  # an empty box changes nothing
            images, targets = cutmix(images, targets, box, *partners)
        return Pair(images, targets)

    def crop_rows(self, rows: Tensor) -> Tensor:
        """The rows that the crops of these images have in the batch."""
        crops = torch.arange(self.crops, device=rows.device)
        return (rows[:, None] * self.crops + crops).flatten()

    def change_some(self, images: Tensor, changes: Mapping[str, Tensor], needed: Tensor) -> Tensor:
        """The `needed` rows of the changed batch."""
        sources = needed // self.crops
        changed = self.change(images[sources], pick(changes, sources))
        if self.crops == 1:
            return changed
        position = torch.arange(len(needed), device=needed.device)
        return changed[position * self.crops + needed % self.crops]

    def draw(
        self, images: Tensor, amounts: Mapping[str, Number], draws: Draws
    ) -> dict[str, Tensor]:
        """The parameters of every change, by name: a row for each image."""
        height, width = images.shape[-2:]
        changes: dict[str, Tensor] = {}
        if "flip" in amounts:
            changes["flip"] = draws.some(amounts["flip"])
        if self.crop:
            check_crop(images, self.crop)
        if self.crop and self.crops == 1:
            changes["top"] = draws.window(height - self.crop, amounts.get("crop", 0.0))
            changes["left"] = draws.window(width - self.crop, amounts.get("crop", 0.0))
        if "rotate" in amounts or "shift" in amounts or "zoom" in amounts:
            changes |= self.draw_affine(amounts, draws, height, width)
        if "brightness" in amounts:
            changes["brightness"] = amounts["brightness"] * 255 * draws.spread()
        if "contrast" in amounts:
            changes["contrast"] = 1 + amounts["contrast"] * draws.spread()
        if "jitter" in amounts:
            strength = amounts["jitter"] * draws.some(self.jitter_probability)
            changes["bright"] = 1 + strength * draws.spread()
            changes["factor"] = 1 + strength * draws.spread()
            changes["contrast_first"] = draws.some(0.5)
        if self.resized_crop:
            changes["window"] = draws.resized_crop_boxes(*self.resized_crop, height, width)
        return changes

    def draw_affine(
        self, amounts: Mapping[str, Number], draws: Draws, height: int, width: int
    ) -> dict[str, Tensor]:
        """Rotation in degrees, shift in pixels, scale of each axis."""
        degrees = amounts.get("rotate", 0.0) * draws.spread()
        if self.rotate_probability < 1:
            degrees = degrees * draws.some(self.rotate_probability)
        shift = amounts.get("shift", 0.0) * draws.spread(2)
        if self.shift_probability < 1:
            shift = shift * draws.some(self.shift_probability)[:, None]
        shift = torch.stack([width * shift[:, 0], height * shift[:, 1]], dim=1)
        axes = 1 if self.zoom_axes == "together" else 2
        scale = 1 + amounts.get("zoom", 0.0) * draws.spread(axes)
        return {"degrees": degrees, "shift": shift, "scale": scale.expand(-1, 2)}

    def draw_erasures(
        self, images: Tensor, amounts: Mapping[str, Number], draws: Draws
    ) -> dict[str, Tensor]:
        """The box of each image or crop and what fills it; empty if nothing is erased."""
        if "erase" not in amounts:
            return {}
        height, width = images.shape[-2:]
        size = (self.crop, self.crop) if self.crop else (height, width)
        if self.erase_value == "black":
            value = torch.zeros(draws.count, 1, 1, 1, device=draws.device)
        else:
            value = draws.uniform(1, *size, high=255)
        boxes = draws.boxes(amounts["erase"], *size, largest=self.erase_area)
        return {"value": value, "boxes": boxes}

    def change(self, images: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
        """N × crops images, each changed by its row of `changes`."""
        if "bright" in changes:
            images = jitter(
                images.float(), changes["bright"], changes["factor"], changes["contrast_first"]
            )
        if "window" in changes:
            images = resized_crop(images, changes["window"])
        images = self.move(images, changes)
        if "brightness" in changes:
            images = brightness(images, changes["brightness"])
        if "contrast" in changes:
            images = contrast(images, changes["contrast"])
        if self.crop and self.crops > 1:
            images = fixed_crops(images, self.crop, self.crops)
        return images

    def erase_boxes(self, images: Tensor, erasures: Mapping[str, Tensor]) -> Tensor:
        """The images with their boxes erased, if there are any."""
        if not erasures:
            return images
        return erase(images, erasures["boxes"], erasures["value"])

    def move(self, images: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
        """Flip, rotation, shift, zoom and crop."""
        height, width = images.shape[-2:]
        crops_at_random = self.crop is not None and self.crops == 1
        if "degrees" not in changes:
            if "flip" in changes:
                images = horizontal_flip(images, changes["flip"])
            if self.crop and crops_at_random:
                images = crop(images, changes["top"], changes["left"], self.crop)
            return images.float()

        shift = changes["shift"]
        size = (height, width)
        if self.crop and crops_at_random:
            # A window right of the center shows the image shifted to the left.
            right = changes["left"] - (width - self.crop) / 2
            down = changes["top"] - (height - self.crop) / 2
            shift = shift - torch.stack([right, down], dim=1)
            size = (self.crop, self.crop)
        return affine(
            images.float(),
            changes.get("flip"),
            changes["degrees"],
            shift,
            changes["scale"],
            size,
            self.fill,
        )


def pick(changes: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """These rows of every change."""
    return {name: parameters[rows] for name, parameters in changes.items()}
