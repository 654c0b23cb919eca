"""Curves over training: pure functions of time and of the validation history so far.

A curve is called as curve(epoch, epochs, history) and returns a factor of the quantity that it
drives: the learning rate, dropout's rate, the size of an augmentation.
epoch: time in epochs since the start, a fraction inside an epoch (2.5 = halfway through the third).
epochs: the planned length. history: validation accuracies in 0..1, one an epoch, as far as known.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

Epochs = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """warmup: epochs in which the factor rises linearly from 0 to the curve. waits: whether it
    looks at history.
    """

    waits: ClassVar[bool] = False
    warmup: Epochs = 0

    def __call__(self, epoch: float, epochs: int, history: Sequence[float] = ()) -> float:
        rise = epoch / self.warmup if epoch < self.warmup else 1
        return rise * self.at(max(epoch, self.warmup), epochs, history)

    def at(self, epoch: float, epochs: int, history: Sequence[float]) -> float:
        """The factor without the warm-up."""
        return 1.0


class Constant(Curve):
    """Always 1."""


@dataclass(frozen=True, kw_only=True)
class Step(Curve):
    """× gamma after every `every` epochs."""

    every: Annotated[int, Ge(1)]
    gamma: Annotated[float, Gt(0), Lt(1)]

    def at(self, epoch, epochs, history):
        return self.gamma ** (int(epoch) // self.every)


@dataclass(frozen=True, kw_only=True)
class Cosine(Curve):
    """Half a cosine from 1 to `final` between the warm-up and the end (Loshchilov & Hutter 2017,
    without restarts).
    """

    final: Share

    def at(self, epoch, epochs, history):
        done = (epoch - self.warmup) / max(epochs - self.warmup, 1e-9)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(done, 1))) / 2


@dataclass(frozen=True, kw_only=True)
class OneCycle(Curve):
    """Up from `start` to 1 in the first `rise` of the time, then down to `final`, half cosines both
    (Smith 2018).
    """

    rise: Annotated[float, Gt(0), Lt(1)]
    start: Share
    final: Share

    def at(self, epoch, epochs, history):
        done = min(epoch / epochs, 1)
        low, part = (
            (self.start, done / self.rise)
            if done < self.rise
            else (self.final, (1 - done) / (1 - self.rise))
        )
        return low + (1 - low) * (1 - math.cos(math.pi * part)) / 2


def stalls(history: Sequence[float], patience: int, threshold: float = 0) -> int:
    """How often the accuracy has not risen by more than `threshold` for more than `patience`
    epochs.
    """
    count, best, bad = 0, -math.inf, 0
    for accuracy in history:
        best, bad = (accuracy, 0) if accuracy > best + threshold else (best, bad + 1)
        if bad > patience:
            count, bad = count + 1, 0
    return count


@dataclass(frozen=True, kw_only=True)
class Plateau(Curve):
    """× factor whenever validation accuracy has not risen by more than `threshold` for more than
    `patience` epochs.
    """

    waits: ClassVar[bool] = True
    factor: Annotated[float, Gt(0), Lt(1)]
    patience: Annotated[int, Ge(0)]
    threshold: Annotated[float, Ge(0)]
    final: Share

    def at(self, epoch, epochs, history):
        falls = stalls(history, self.patience, self.threshold)
        return max(math.prod([self.factor] * falls, start=1.0), self.final)


@dataclass(frozen=True, kw_only=True)
class Knots(Curve):
    """Through (epochs[i], values[i]): along straight lines, or (shape step) values[i] from
    epochs[i] on.
    """

    epochs: list[Epochs]
    values: list[Annotated[float, Ge(0), Le(1)]]
    shape: Literal["linear", "step"] = "linear"

    def __post_init__(self):
        if (
            not self.epochs
            or len(self.epochs) != len(self.values)
            or any(a >= b for a, b in pairwise(self.epochs))
        ):
            raise ValueError("knots need as many values as epochs, and epochs that rise")

    def at(self, epoch, epochs, history):
        if self.shape == "linear":
            return float(np.interp(epoch, self.epochs, self.values))
        return self.values[max(bisect_right(self.epochs, epoch) - 1, 0)]


@dataclass(frozen=True, kw_only=True)
class AfterPlateau(Curve):
    """`before` until validation accuracy has not risen for more than `patience` epochs, from then
    on `after`.
    """

    waits: ClassVar[bool] = True
    before: Annotated[float, Ge(0), Le(1)]
    after: Annotated[float, Ge(0), Le(1)]
    patience: Annotated[int, Ge(0)]

    def at(self, epoch, epochs, history):
        return self.after if stalls(history, self.patience) else self.before
