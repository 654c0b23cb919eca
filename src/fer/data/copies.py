"""Finds copies among faces: exact and near ones, also mirrored or rotated. Tensors in, positions
out; this module knows no splits, labels or reports.
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

# Cosine of two thumbnails above which a pair is compared in detail. 12,081 of the 500 million pairs
# of FER2013 pass, among them 9 of 10 near copies.
SIMILAR = 0.85
SHIFT = 2  # pixels by which near copies may be displaced
BLOCK = 256  # faces or pairs compared at once: 33 MB of cosines with FER2013
CELLS = 8  # rows and columns of a thumbnail
ROTATION = 10.0  # degrees
# Lowest correlation of rotated copies. FER2013 has eleven pairs between 0.70 and 0.76 and none
# above; most of the eleven, inspected by eye, are not copies.
LOWEST_ROTATED = 0.8
RIM = 4  # outermost pixels of a disc, whose detail depends on what is outside
LOWEST_IN_DISC = 0.5  # lowest correlation without the corners


@dataclass(frozen=True)
class Change:
    """What may have been done to a copy.

    lowest: the correlation that a copy needs at least, whatever the threshold.
    """

    kind: str
    mirrored: bool = False
    degrees: float = 0.0
    lowest: float = 0.0


CHANGES = (
    Change("near"),
    Change("mirrored", mirrored=True),
    Change("rotated", degrees=ROTATION, lowest=LOWEST_ROTATED),
    Change("rotated", degrees=-ROTATION, lowest=LOWEST_ROTATED),
    Change("mirrored and rotated", mirrored=True, degrees=ROTATION, lowest=LOWEST_ROTATED),
    Change("mirrored and rotated", mirrored=True, degrees=-ROTATION, lowest=LOWEST_ROTATED),
)


class Pairs(NamedTuple):
    """Pairs of copies.

    positions: int64 P×2, i < j.
    kinds: the kind of change between the two, one of CHANGES.
    correlations: float32 P, of their fine detail.
    """

    positions: np.ndarray
    kinds: np.ndarray
    correlations: np.ndarray


def exact_copies(images: Tensor) -> np.ndarray:
    """For each image of uint8 N×1×H×W the position of the first image that is equal to it, int64 N.
    The first one gets its own position.
    """
    first: dict[bytes, int] = {}
    positions = [first.setdefault(digest, i) for i, digest in enumerate(digests(images))]
    return np.array(positions, dtype=np.int64)


def near_copies(images: Tensor, threshold: float) -> Pairs:
    """Pairs of images, uint8 N×1×H×H, that show the same photo: cropped, brightened, compressed,
    watermarked, mirrored, or rotated by about 10°.

    Different faces look alike in thumbnails of 8×8 and differ in fine detail. So thumbnails select
    the candidates; a candidate is a copy if its fine detail at full size correlates by more than
    `threshold`. Of rotated faces only a disc is compared, since a rotation fills the corners anew.
    """
    if images.shape[-1] != FACE_SIZE:
        images = at_face_size(images)
    best: dict[tuple[int, int], tuple[float, str]] = {}  # correlation and kind of each pair
    for change in CHANGES:
        candidates = similar_thumbnails(images, change)
        for start in range(0, len(candidates), BLOCK):
            pairs = candidates[start : start + BLOCK]
            correlations = compare(images[pairs[:, 0]], images[pairs[:, 1]], change)
            for (i, j), correlation_of_pair in zip(
                pairs.tolist(), correlations.tolist(), strict=True
            ):
                best_so_far, _ = best.get((i, j), (0.0, ""))
                if correlation_of_pair > max(threshold, change.lowest, best_so_far):
                    best[i, j] = (correlation_of_pair, change.kind)
    positions = sorted(best)
    return Pairs(
        np.array(positions, dtype=np.int64).reshape(-1, 2),
        np.array([best[pair][1] for pair in positions], dtype=np.str_),
        np.array([best[pair][0] for pair in positions], dtype=np.float32),
    )


def at_face_size(images: Tensor) -> Tensor:
    """uint8 images resized to FACE_SIZE."""
    size = (FACE_SIZE, FACE_SIZE)
    parts = []
    for part in images.split(BLOCK):
        parts.append(F.interpolate(part.float(), size, mode="bilinear", antialias=True))
    return torch.cat(parts).round().to(torch.uint8)


def similar_thumbnails(images: Tensor, change: Change) -> np.ndarray:
    """Pairs (i, j), i < j, int64 P×2: the thumbnail of j is like that of i after the change."""
    unchanged = []
    changed = []
    for part in images.split(BLOCK):
        compared = in_disc(part.float()) if change.degrees else part.float()
        unchanged.append(thumbnail(compared))
        changed.append(thumbnail(apply(change, part.float())))
    thumbnails = torch.cat(unchanged)
    pairs = [np.empty((0, 2), np.int64)]
    for start, part in zip(range(0, len(images), BLOCK), changed, strict=True):
        similar = (part @ thumbnails[start:].T > SIMILAR).numpy()
        # 1.4 times as fast as torch's nonzero.
        rows, columns = np.divmod(np.flatnonzero(similar), similar.shape[1])
        pairs.append(start + np.stack([rows, columns], 1)[rows < columns])
    return np.concatenate(pairs)


def apply(change: Change, images: Tensor) -> Tensor:
    """Float images N×1×H×H, mirrored and rotated about their centers as the change says."""
    if change.mirrored:
        images = images.flip(-1)
    if change.degrees:
        radians = math.radians(change.degrees)
        cos, sin = math.cos(radians), math.sin(radians)
        rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(rotation, list(images.shape), align_corners=False)
        images = in_disc(F.grid_sample(images, grid, align_corners=False))
    return images


def in_disc(images: Tensor) -> Tensor:
    """Images N×1×H×H whose corners are filled with the mean of the disc."""
    inside = disc(images.shape[-1])
    mean = (images * inside).sum((2, 3), keepdim=True) / inside.sum()
    return images * inside + mean * (1 - inside)


def disc(side: int) -> Tensor:
    """float side×side: 1 inside the largest circle, 0 outside."""
    coordinates = (torch.arange(side) + 0.5) / side * 2 - 1  # -1 to 1
    return (coordinates[:, None] ** 2 + coordinates**2 <= 1).float()


def thumbnail(images: Tensor) -> Tensor:
    """Thumbnails of 8×8 as unit vectors N×64; each cell less the mean of those around it."""
    return F.normalize(detail(F.avg_pool2d(images, FACE_SIZE // CELLS), 5).flatten(1))


def compare(a: Tensor, b: Tensor, change: Change) -> Tensor:
    """The correlation, float N, of the fine detail of a, after the change, and b; 0 if the discs do
    not correlate as well, because equal corners do not make a copy.
    """
    a, b = apply(change, a.float()), b.float()
    in_discs = correlation(detail_in_disc(a), detail_in_disc(b))
    if change.degrees:
        return in_discs
    whole = correlation(detail(a, 7)[:, 0], detail(b, 7)[:, 0])
    return torch.where(in_discs > LOWEST_IN_DISC, whole, torch.zeros_like(whole))


def detail_in_disc(images: Tensor) -> Tensor:
    """The fine detail inside the disc without its rim, N×H×W."""
    side = images.shape[-1]
    inner = F.pad(disc(side - 2 * RIM), (RIM,) * 4)
    return detail(in_disc(images), 7)[:, 0] * inner


def detail(images: Tensor, window: int) -> Tensor:
    """Images N×1×H×W less the mean of the window around each pixel."""
    padded = F.pad(images, (window // 2,) * 4, mode="replicate")
    return images - F.avg_pool2d(padded, window, stride=1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of a and b, N×H×W, over their overlap: float N, the highest over all displacements
    by up to SHIFT pixels in each direction.
    """

    def sums(moved: Tensor, still: Tensor) -> Tensor:
        """The sum of the products over the overlap, N×displacements."""
        padded = F.pad(moved, (SHIFT,) * 4)
        return F.conv2d(padded[None], still[:, None], groups=len(still)).flatten(2)[0]

    ones = torch.ones_like(a)
    squares = sums(b * b, ones) * sums(ones, a * a)
    return (sums(b, a) / squares.sqrt().clamp(1e-8)).amax(1)


def merge(count: int, pairs: np.ndarray) -> np.ndarray:
    """Groups of the positions 0 … count-1 that `pairs`, P×2, connect, directly or through others:
    for each position the lowest one of its group, int64 N.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(count, count))
    _, group_of_position = connected_components(graph, directed=False)
    _, lowest, group = np.unique(group_of_position, return_index=True, return_inverse=True)
    return lowest[group]
