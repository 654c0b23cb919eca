"""How long a run takes, and how fast it trains."""

import time
from collections import Counter

from torch import nn

from fer.layer_table import multiply_adds


class Stopwatch:
    """The seconds of an epoch. In a resumed epoch, those before the interruption count too."""

    def __init__(self, before: float = 0.0):
        self.before = before
        self.began: float | None = None

    def start(self) -> None:
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        if self.began is None:
            return self.before
        return self.before + time.perf_counter() - self.began


class Throughput:
    """What this process has trained so far: faces by the side of their images, and seconds.

    crops: images that the network sees of each face.
    """

    def __init__(self, crops: int = 1) -> None:
        self.crops = crops
        self.faces: Counter[int] = Counter()
        self.seconds = 0.0

    def images_per_second(self) -> float:
        return self.faces.total() / self.seconds

    def operations_per_second(self, model: nn.Module) -> float:
        """Floating-point operations of convolutions and dense layers: two for each multiply-add,
        and the backward pass takes two of the forward pass's.
        """
        passes, per_multiply_add = 3, 2
        operations = 0
        for side, faces in self.faces.items():
            images = faces * self.crops
            operations += passes * per_multiply_add * multiply_adds(model, side) * images
        return operations / self.seconds
