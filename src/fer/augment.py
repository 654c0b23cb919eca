"""Augmentation: batched tensor functions, and Augment, which draws their parameters and applies
them.

The functions are pure: a batch N×1×H×W and one parameter an image, all on one device. Nothing reads
a value back or branches on one, so the host never waits for a GPU. Flip, rotation, shift, zoom and
crop are one affine map and one resample; flip and crop without the others move pixels and resample
nothing. When they change is the curves' matter.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fer import UserError

Share = Annotated[float, Ge(0), Le(1)]
Area = Annotated[float, Gt(0), Le(2)]  # a share of the image's
Number = float | Tensor  # a tensor of no dimensions, on the device
Fill = Literal["constant", "nearest", "reflection"]
PADDING = {"constant": "zeros", "nearest": "border", "reflection": "reflection"}
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
SHARES = ("crop", "mixup", "cutmix")  # of which a strength is not a factor, but a share by itself


def affine(
    images: Tensor,
    flip: Tensor | None,
    degrees: Tensor,
    shift: Tensor,
    scale: Tensor,
    size: tuple[int, int],
    fill: Fill,
) -> Tensor:
    """Float N×1×H×W flipped, scaled, rotated about their centre, then shifted, read bilinearly; the
    result's size is (h, w). torchvision's `affine` after `horizontal_flip`.

    flip: N, bool, or None for none. degrees: N, clockwise. shift: N×2, pixels right and down.
    scale: N×2, along the image's own x and y, above 1 enlarges.
    """
    (height, width), (h, w) = images.shape[-2:], size
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    if flip is not None:
        scale = torch.stack([scale[:, 0] * (1 - 2 * flip.float()), scale[:, 1]], dim=1)
    # From pixels of the result to those of the image, (x, y) from the centre; grid_sample counts -1
    # to 1.
    inverse = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2) / scale[:, :, None]
    # No matrix product, which rounds by the size of the batch: a part of it is changed as the
    # whole.
    back = -(inverse * shift[:, None, :]).sum(2, keepdim=True)
    theta = torch.cat([inverse, back], dim=2)
    theta = torch.stack([theta[:, 0] * 2 / width, theta[:, 1] * 2 / height], dim=1)
    # A sum of a row and a column for each image: 0.07 ms for 128 faces, where F.affine_grid takes
    # 2.6.
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
    index = (top[:, None] + span)[:, :, None] * images.shape[-1] + (left[:, None] + span)[
        :, None, :
    ]
    return images.flatten(1).gather(1, index.flatten(1)).view(-1, 1, size, size)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Float N×1×H×W, the part of each image inside its box enlarged to the whole: torchvision's
    `resized_crop`, bilinear.

    boxes: N×4, see inside.
    """
    height, width = images.shape[-2:]
    top, left, bottom, right = boxes.float()[:, :, None].unbind(1)
    y = (torch.arange(height, device=images.device) + 0.5) * (bottom - top) / height - 0.5
    x = (torch.arange(width, device=images.device) + 0.5) * (right - left) / width - 0.5
    # No pixel from outside the box is mixed in.
    y = top + y.clamp(min=0).minimum(bottom - top - 1)
    x = left + x.clamp(min=0).minimum(right - left - 1)
    rows = ((2 * y + 1) / height - 1)[:, :, None].expand(-1, height, width)
    columns = ((2 * x + 1) / width - 1)[:, None, :].expand(-1, height, width)
    grid = torch.stack([columns, rows], dim=3)
    cut = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return cut.clamp_(0, 255)


def brightness(images: Tensor, delta: Tensor) -> Tensor:
    """delta (N, grey levels) is added, within 0..255. torchvision's adjust_brightness multiplies
    instead.
    """
    return (images + delta[:, None, None, None]).clamp_(0, 255)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Distance from each image's own mean × factor (N, from 0), within 0..255: torchvision's
    adjust_contrast.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + (images - mean) * factor[:, None, None, None]).clamp_(0, 255)


def jitter(images: Tensor, bright: Tensor, factor: Tensor, contrast_first: Tensor) -> Tensor:
    """Float N×1×H×W × bright, and contrast by `factor` before or after it: torchvision's
    adjust_brightness and adjust_contrast, each within 0..255.

    bright, factor: N, from 0. contrast_first: N, bool.
    """

    def brightened(images: Tensor) -> Tensor:
        return (images * bright[:, None, None, None]).clamp_(0, 255)

    return torch.where(
        contrast_first[:, None, None, None],
        brightened(contrast(images, factor)),
        contrast(brightened(images), factor),
    )


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Bool N×1×height×width, true inside boxes (N×4: top, left, bottom, right in pixels, the last
    two exclusive).
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(images: Tensor, boxes: Tensor, value: Tensor) -> Tensor:
    """value (shaped as the images) inside boxes (N×4, see inside): Zhong et al. 2020."""
    return torch.where(inside(boxes, *images.shape[-2:]), value, images)


def mixup(
    images: Tensor, targets: Tensor, lam: Tensor, others: Tensor, other_targets: Tensor
) -> tuple[Tensor, Tensor]:
    """lam (one number) of each image and target, the rest from its row of `others`: Zhang et al.
    2018.
    """
    return lam * images + (1 - lam) * others, lam * targets + (1 - lam) * other_targets


def cutmix(
    images: Tensor, targets: Tensor, box: Tensor, others: Tensor, other_targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The box (4, see inside) of its row of `others`, and the box's share of that one's target: Yun
    et al. 2019.
    """
    share = inside(box[None], *images.shape[-2:]).float().mean()
    return erase(images, box[None], others), (1 - share) * targets + share * other_targets


def check_crop(images: Tensor, size: int) -> None:
    if size > min(images.shape[-2:]):
        raise UserError(
            f"crop={size}: the images are only {images.shape[-2]}×{images.shape[-1]}; choose no "
            "more"
        )


def ten_crops(images: Tensor, size: int) -> Tensor:
    """10×N×1×size×size: the corners, top left, top right, bottom left, bottom right, and the
    centre, then those of the flipped images (Krizhevsky et al. 2012).
    """
    from torchvision.transforms.v2.functional import ten_crop  # takes a second to import

    check_crop(images, size)
    return torch.stack(ten_crop(images, [size]))


def fixed_crops(images: Tensor, size: int, count: int) -> Tensor:
    """N·count×1×size×size, the crops of one image one after another.

    count: 5, the corners and the centre, or 10, those of the flipped image too.
    """
    from torchvision.transforms.v2.functional import five_crop, ten_crop

    cut = five_crop if count == 5 else ten_crop
    return torch.stack(cut(images, [size]), dim=1).flatten(0, 1)


class Draws:
    """Random numbers for a batch of `count` images on `device`, from `generator` or else torch's
    global one.
    """

    def __init__(self, count: int, device: torch.device, generator: torch.Generator | None = None):
        self.count, self.device, self.generator = count, device, generator

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Even draws from low to high, N×shape."""
        empty = torch.empty(self.count, *shape, device=self.device)
        return empty.uniform_(low, high, generator=self.generator)

    def spread(self, *shape: int) -> Tensor:
        """Even draws from -1 to 1, N×shape."""
        return self.uniform(*shape, low=-1)

    def some(self, probability: Number) -> Tensor:
        """Bool N, each true with the probability."""
        return self.uniform() < probability

    def window(self, room: int, share: Number) -> Tensor:
        """Starts of windows, N, int64, anywhere from 0 to `room`, drawn to its middle by a share
        below 1.
        """
        start = torch.randint(room + 1, (self.count,), device=self.device, generator=self.generator)
        return (room / 2 + (start - room / 2) * share).round().long()

    def permutation(self) -> Tensor:
        """The positions 0 to N-1 in a random order. A sort of draws, since randperm may wait for a
        GPU.
        """
        return self.uniform().argsort()

    def one(self, *shape: int) -> Tensor:
        """Even draws from 0 to 1 for the whole batch."""
        return torch.rand(shape, device=self.device, generator=self.generator)

    def resized_crop_boxes(self, low: float, high: float, height: int, width: int) -> Tensor:
        """Boxes for resized_crop, N×4, as torchvision's RandomResizedCrop draws them: low to high
        of the area, sides 3/4 to 4/3, the first of ten attempts that lies inside the image; after
        ten the whole image.
        """
        attempts = 10
        area = self.uniform(attempts, low=low, high=high) * height * width
        ratio = (self.spread(attempts) * math.log(4 / 3)).exp()
        h = (area / ratio).sqrt().round()
        w = (area * ratio).sqrt().round()
        fits = (h <= height) & (w <= width)
        first = fits.float().argmax(1, keepdim=True)
        none_fits = ~fits.any(1)
        h = torch.where(none_fits, height, h.gather(1, first)[:, 0])
        w = torch.where(none_fits, width, w.gather(1, first)[:, 0])
        top = (self.uniform() * (height - h + 1)).floor()
        left = (self.uniform() * (width - w + 1)).floor()
        return torch.stack([top, left, top + h, left + w], dim=1)

    def boxes(self, probability: Number, height: int, width: int, largest: float = 0.4) -> Tensor:
        """Boxes for erase, N×4: 2 % of the area to `largest`, sides 0.3 to 1/0.3, as published.

        The paper draws again when a box is taller or wider than the image; here the ratio is drawn
        among those that fit. probability: that an image has a box, and not an empty one.
        """
        area = self.uniform(low=0.02, high=largest)
        stretch = (-area.log()).clamp(max=-math.log(0.3)) * self.spread()
        some = self.some(probability)
        h = ((area * stretch.exp()).sqrt() * height).round() * some
        w = ((area / stretch.exp()).sqrt() * width).round() * some
        top = (self.uniform() * (height - h + 1)).floor()
        left = (self.uniform() * (width - w + 1)).floor()
        return torch.stack([top, left, top + h, left + w], dim=1)

    def cutmix_box(self, lam: Tensor, height: int, width: int) -> Tensor:
        """A box for cutmix, 4: 1 - lam (one number) of the area. Its centre is in the image; it may
        reach beyond.
        """
        half = (1 - lam).sqrt() / 2
        y, x = self.one(2)
        y, x = (y * height).floor(), (x * width).floor()
        up, along = (half * height).floor(), (half * width).floor()
        return torch.stack([y - up, x - along, y + up, x + along])

    def beta(self, alpha: float) -> Tensor:
        """One draw of Beta(alpha, alpha), read off its quantiles: torch draws Gamma from its global
        generator only.
        """
        quantiles = beta_quantiles(alpha, self.device)
        place = self.one() * (len(quantiles) - 1)
        below = place.long().clamp(max=len(quantiles) - 2)
        ends = quantiles.index_select(0, torch.stack([below, below + 1]))
        return torch.lerp(ends[0], ends[1], place - below)


@functools.cache
def beta_quantiles(alpha: float, device: torch.device, steps: int = 4096) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at 0, 1/steps … 1, float32."""
    from scipy.special import betaincinv

    return (
        torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, steps + 1))).float().to(device)
    )


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of a batch, for each image its own, in the order of the arguments; the first
    six in one resample. By default nothing is changed, so a new number leaves every recipe and
    checkpoint as it was.

    flip, erase: probabilities, for each image. rotate: degrees, shift: share of the side, right or
    left and down or up, zoom: share of the scale, on both axes the same or each its own; all three
    drawn evenly from ± their value. crop: side of a window anywhere in the image, which is the
    result's size; None leaves the image whole. fill: what lies beyond the edge, black, the edge's
    own pixels or the image mirrored. brightness: share of 255 that is added, contrast: share of the
    factor, both drawn from ±. erase paints a box with noise. mixup, cutmix: alpha, 0 is off; with
    both on, a coin gives every batch one of them.

    What follows is for recipes of others. jitter: factors of brightness and of contrast are drawn
    from 1 ± its value, in either order, before anything moves. resized_crop: smallest and largest
    share of the area of a window that is enlarged to the image, before it moves. rotate_, shift_,
    jitter_probability: for each image. crops: 5 or 10 fixed windows of side `crop` of each image
    take the place of the random one, each erased by itself and mixed by itself; the batch is as
    many times as large. erase_area: largest share of the area; erase_value: of the box.
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
            raise ValueError(f"crops={self.crops}: needs their side; set augment.crop=40, say")
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
        """The batch, changed: float32 N×1×h×w in 0..255, and its targets.

        images: N×1×H×W, 0..255, uint8 or float. targets: float N×classes. strength: see amounts.
        generator: on the images' device; None draws from torch's global one.
        """
        return self.apply(images, targets, self.amounts(strength), generator)

    def amounts(self, strength: Mapping[str, float] | None = None) -> dict[str, float]:
        """How much of each change is made, without those that are off.

        strength: for any of STRENGTHS a factor from 0 to 1 of its value; of mixup and cutmix, the
        share of batches mixed; of crop, how far windows lie from the centre.
        """
        factors = dict.fromkeys(STRENGTHS, 1.0) | dict(strength or {})
        amounts = {}
        for name, factor in factors.items():
            if name not in STRENGTHS or not 0 <= factor <= 1:
                raise UserError(
                    f"strength {name}={factor}: should be 0 to 1, of one of {', '.join(STRENGTHS)}"
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
        """The batch, changed by `amounts`, whose numbers may be tensors on the device. With
        `crops`, N × crops images and targets, those of one image one after another.

        part: the rows to return, of a batch that several processes share. The random numbers are
        those of the whole batch, so that all processes together change it as one would; only the
        rows that are needed are resampled.
        """
        draws = Draws(len(images), images.device, generator)
        changes = self.draw(images, amounts, draws)
        crop_draws = Draws(self.crops * len(images), images.device, generator)
        erasures = self.draw_erasures(images, amounts, crop_draws)
        mixes = "mixup" in amounts or "cutmix" in amounts
        perm = crop_draws.permutation() if mixes else None
        if part is None:
            images = self.erase_boxes(self.change(images, changes), erasures)
            targets = self.repeat(targets)
            if perm is None:
                return images, targets
            others, other_targets = images.index_select(0, perm), targets.index_select(0, perm)
        else:
            rows = self.crop_rows(torch.arange(len(images), device=images.device)[part])
            partners = rows.new_empty(0) if perm is None else perm[rows]
            needed = torch.cat([rows, partners])
            changed = self.change_some(images, changes, needed)
            changed = self.erase_boxes(changed, pick(erasures, needed))
            images, others = changed.split([len(rows), len(partners)])
            targets, other_targets = targets[rows // self.crops], targets[partners // self.crops]
            if perm is None:
                return images, targets
        coin = draws.one()
        half = 0.5 if self.mixup and self.cutmix else 1
        height, width = images.shape[-2:]
        if "mixup" in amounts:
            lam = torch.where(coin < half * amounts["mixup"], draws.beta(self.mixup), 1)
            images, targets = mixup(images, targets, lam, others, other_targets)
        if "cutmix" in amounts:
            box = draws.cutmix_box(draws.beta(self.cutmix), height, width)
            box = box * (1 - coin <= half * amounts["cutmix"])
            images, targets = cutmix(images, targets, box, others, other_targets)
        return images, targets

    def repeat(self, targets: Tensor) -> Tensor:
        """A row for each crop."""
        return targets.repeat_interleave(self.crops, dim=0) if self.crops > 1 else targets

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
        """What changes each image, by name: a row an image."""
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
            changes["degrees"] = amounts.get("rotate", 0.0) * draws.spread()
            if self.rotate_probability < 1:
                changes["degrees"] = changes["degrees"] * draws.some(self.rotate_probability)
            shift = amounts.get("shift", 0.0) * draws.spread(2)
            if self.shift_probability < 1:
                shift = shift * draws.some(self.shift_probability)[:, None]
            changes["shift"] = torch.stack([width * shift[:, 0], height * shift[:, 1]], dim=1)
            axes = 1 if self.zoom_axes == "together" else 2
            changes["scale"] = (1 + amounts.get("zoom", 0.0) * draws.spread(axes)).expand(-1, 2)
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

    def draw_erasures(
        self, images: Tensor, amounts: Mapping[str, Number], draws: Draws
    ) -> dict[str, Tensor]:
        """The box of each image or crop, and what is painted into it; nothing if none is erased."""
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
        """The images, each changed by its row of `changes`; N × crops of them."""
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
        """The images with their boxes erased, if any are."""
        if not erasures:
            return images
        return erase(images, erasures["boxes"], erasures["value"])

    def move(self, images: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
        """Flip, rotation, shift, zoom and crop."""
        height, width = images.shape[-2:]
        size = self.crop if self.crops == 1 else None
        flip = changes.get("flip")
        if "degrees" in changes:
            shift = changes["shift"]
            if size:  # a window off the centre is the image shifted the other way
                offset = [
                    changes["left"] - (width - size) / 2,
                    changes["top"] - (height - size) / 2,
                ]
                shift = shift - torch.stack(offset, dim=1)
            to = (size, size) if size else (height, width)
            return affine(
                images.float(), flip, changes["degrees"], shift, changes["scale"], to, self.fill
            )
        if flip is not None:
            images = horizontal_flip(images, flip)
        if size:
            images = crop(images, changes["top"], changes["left"], size)
        return images.float()


def pick(changes: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Those rows of every change."""
    return {name: drawn[rows] for name, drawn in changes.items()}
