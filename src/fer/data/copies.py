"""Copies among faces, exact and near, also mirrored and rotated ones: tensors in, positions out. Of
splits, labels and reports it knows nothing.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fer import FACE_SIZE
from fer.data.faces import digests

# Cosine of two outlines: 12,081 of FER2013's 500 million pairs pass, 9 of 10 near copies among
# them.
SIMILAR = 0.85
SHIFT = 2  # pixels by which near copies may be displaced
BLOCK = 256  # faces or pairs compared at once: 33 MB of cosines with FER2013
CELLS = 8  # of an outline, each way
TURN = 10.0  # degrees
# Least correlation of turned faces. FER2013 has eleven pairs between 0.70 and 0.76, most of which,
# looked at, are no copies, and none above.
TURNED = 0.8
RIM = 4  # pixels of a disc whose detail depends on what is outside it
IN_DISC = 0.5  # least correlation of what is not in the corners


@dataclass(frozen=True)
class Change:
    """What may have been done to a copy."""

    kind: str
    mirrored: bool = False
    degrees: float = 0.0
    least: float = 0.0  # correlation, whatever the threshold


CHANGES = (
    Change("near"),
    Change("mirrored", mirrored=True),
    Change("rotated", degrees=TURN, least=TURNED),
    Change("rotated", degrees=-TURN, least=TURNED),
    Change("mirrored and rotated", mirrored=True, degrees=TURN, least=TURNED),
    Change("mirrored and rotated", mirrored=True, degrees=-TURN, least=TURNED),
)


class Pairs(NamedTuple):
    """positions: int64 P×2, i < j. kinds: what was done to one to make the other, of CHANGES.
    correlations: float32 P, of their details.
    """

    positions: np.ndarray
    kinds: np.ndarray
    correlations: np.ndarray


def exact_copies(images: Tensor) -> np.ndarray:
    """int64 N: the position of the first image equal to each of uint8 N×1×H×W, its own where it is
    the first.
    """
    first: dict[bytes, int] = {}
    positions = [first.setdefault(digest, i) for i, digest in enumerate(digests(images))]
    return np.array(positions, dtype=np.int64)


def near_copies(images: Tensor, threshold: float) -> Pairs:
    """Pairs of uint8 N×1×H×H that are one photo: cropped, lit, compressed or marked anew, mirrored,
    or rotated by about 10°.

    Faces are alike in outline and differ in detail. So outlines, 8×8, find the pairs that are worth
    a look, and those are copies whose detail at full size correlates by more than `threshold`. Of
    turned faces only a disc is compared: what is outside it was not in the picture before.
    """
    if images.shape[-1] != FACE_SIZE:
        parts = [
            F.interpolate(part.float(), (FACE_SIZE, FACE_SIZE), mode="bilinear", antialias=True)
            for part in images.split(BLOCK)
        ]
        images = torch.cat(parts).round().to(torch.uint8)
    found: dict[tuple[int, int], tuple[float, str]] = {}
    for change in CHANGES:
        pairs = alike_in_outline(images, change)
        for start in range(0, len(pairs), BLOCK):
            part = pairs[start : start + BLOCK]
            correlations = compare(images[part[:, 0]], images[part[:, 1]], change)
            for (i, j), value in zip(part.tolist(), correlations.tolist(), strict=True):
                if value > max(threshold, change.least) and value > found.get((i, j), (0.0, ""))[0]:
                    found[i, j] = (value, change.kind)
    order = sorted(found)
    return Pairs(
        np.array(order, dtype=np.int64).reshape(-1, 2),
        np.array([found[pair][1] for pair in order], dtype=np.str_),
        np.array([found[pair][0] for pair in order], dtype=np.float32),
    )


def alike_in_outline(images: Tensor, change: Change) -> np.ndarray:
    """Pairs, int64 P×2, i < j, of which the outline of j is like that of i after the change."""
    plain, changed = [], []
    for part in images.split(BLOCK):
        plain.append(outline(in_disc(part.float()) if change.degrees else part.float()))
        changed.append(outline(changed_as(part.float(), change)))
    others, close = torch.cat(plain), []
    for start, part in zip(range(0, len(images), BLOCK), changed, strict=True):
        similar = (part @ others[start:].T > SIMILAR).numpy()
        # 1.4 times as fast as torch's nonzero.
        rows, columns = np.divmod(np.flatnonzero(similar), similar.shape[1])
        close.append(start + np.stack([rows, columns], 1)[rows < columns])
    return np.concatenate(close) if close else np.empty((0, 2), np.int64)


def changed_as(images: Tensor, change: Change) -> Tensor:
    """float N×1×H×H, mirrored and turned about their centres."""
    if change.mirrored:
        images = images.flip(-1)
    if change.degrees:
        cos, sin = math.cos(math.radians(change.degrees)), math.sin(math.radians(change.degrees))
        turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(turn, list(images.shape), align_corners=False)
        images = in_disc(F.grid_sample(images, grid, align_corners=False))
    return images


def in_disc(images: Tensor) -> Tensor:
    """Images N×1×H×H whose corners, which a turn replaces, have the mean of what is in the disc."""
    inside = disc(images.shape[-1])
    mean = (images * inside).sum((2, 3), keepdim=True) / inside.sum()
    return images * inside + mean * (1 - inside)


def disc(side: int) -> Tensor:
    """float side×side: 1 inside the largest circle, 0 outside."""
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    return (places[:, None] ** 2 + places**2 <= 1).float()


def outline(images: Tensor) -> Tensor:
    """Unit vectors N×64: the means of cells less those around them."""
    return F.normalize(detail(F.avg_pool2d(images, FACE_SIZE // CELLS), 5).flatten(1))


def compare(a: Tensor, b: Tensor, change: Change) -> Tensor:
    """float N: how far the details of a, after the change, and of b correlate. They must do so in
    the disc too, if less: corners that are alike do not make a copy.
    """
    a, b = changed_as(a.float(), change), b.float()
    discs = correlation(inner_detail(a), inner_detail(b))
    if change.degrees:
        return discs
    whole = correlation(detail(a, 7)[:, 0], detail(b, 7)[:, 0])
    return torch.where(discs > IN_DISC, whole, torch.zeros_like(whole))


def inner_detail(images: Tensor) -> Tensor:
    """The detail, N×H×W, of what is in the disc, without its rim."""
    side = images.shape[-1]
    inner = F.pad(disc(side - 2 * RIM), (RIM,) * 4)
    return detail(in_disc(images), 7)[:, 0] * inner


def detail(images: Tensor, window: int) -> Tensor:
    """Images N×1×H×W less the mean of the window around each pixel."""
    return images - F.avg_pool2d(F.pad(images, (window // 2,) * 4, mode="replicate"), window, 1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Cosine, N, of a and b, N×H×W, where they overlap, at the best of the displacements up to
    SHIFT each way.
    """

    def sums(moved: Tensor, still: Tensor) -> Tensor:
        """N×displacements: the sum of the products where the two overlap."""
        padded = F.pad(moved, (SHIFT,) * 4)
        return F.conv2d(padded[None], still[:, None], groups=len(still)).flatten(2)[0]

    ones = torch.ones_like(a)
    squares = sums(b * b, ones) * sums(ones, a * a)
    return (sums(b, a) / squares.sqrt().clamp(1e-8)).amax(1)


def merge(count: int, pairs: np.ndarray) -> np.ndarray:
    """int64 N: the lowest of the positions 0 … count-1 that each is joined to by `pairs`, P×2,
    directly or not.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(count, count))
    _, lowest, group = np.unique(
        connected_components(graph, directed=False)[1], return_index=True, return_inverse=True
    )
    return lowest[group]
