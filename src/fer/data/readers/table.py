"""Table: the faces of one source with their labels as the source writes them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

NO_STRINGS = np.array([], dtype=np.str_)
MAX_LABELS = 1000  # more different ones cannot be classes


@dataclass
class Table:
    """What a source holds.

    images: uint8 N×S×S. labels: int64 N, positions in `names`, -1 where there is no label. names:
    the labels as the source writes them; the classes of the data are made of them later. first:
    the first place of each of `names`, for messages. usage: int64 N, positions in USAGES, -1 where
    there is none. ids: N strings, or empty; of pictures their paths relative to the source. groups:
    N strings, or empty. hash: SHA-256 of the source's bytes. enlarged: how many of the images the
    source has smaller than S×S. notes: what the source holds besides and is not used, in words.
    """

    images: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    first: np.ndarray
    usage: np.ndarray
    hash: np.ndarray
    ids: np.ndarray = field(default_factory=lambda: NO_STRINGS)
    groups: np.ndarray = field(default_factory=lambda: NO_STRINGS)
    enlarged: np.ndarray = field(default_factory=lambda: np.array(0))
    notes: np.ndarray = field(default_factory=lambda: NO_STRINGS)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Pixels."""
        return self.images.shape[-1]

    def note_own_side(self, side: int) -> "Table":
        """Count all images as enlarged if they had fewer pixels than they have now."""
        self.enlarged = np.array(len(self) if side < self.side else 0)
        return self

    def arrays(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def numbered(labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """int64 N, positions of the labels among the sorted different ones, and these."""
    names, positions = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
    return positions.astype(np.int64), names
