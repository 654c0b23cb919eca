"""Schedules: curves that scale a quantity during training.

curve(epoch, epochs, history) returns the factor by which the learning rate, the dropout rate or the
strength of an augmentation is multiplied. All curves are pure functions of these arguments:

epoch: time since the start, in epochs; 2.5 is halfway through the third epoch.
epochs: planned length of the run.
history: validation accuracies (0 to 1) of the finished epochs.
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
    """The base class: a constant factor of 1, after an optional warm-up.

    warmup: number of epochs in which the factor rises linearly from 0 to the curve's own value.
    needs_history: whether the curve depends on the validation history.
    """

    needs_history: ClassVar[bool] = False
    warmup: Epochs = 0

    def __call__(self, epoch: float, epochs: int, history: Sequence[float] = ()) -> float:
        if epoch < self.warmup:
            return epoch / self.warmup * self.at(self.warmup, epochs, history)
        return self.at(epoch, epochs, history)

    def at(self, epoch: float, epochs: int, history: Sequence[float]) -> float:
        """The factor at a time when the warm-up is over."""
        return 1.0


class Constant(Curve):
    """Always 1."""


@dataclass(frozen=True, kw_only=True)
class Step(Curve):
    """Multiplied by `gamma` after every `every` epochs."""

    every: Annotated[int, Ge(1)]
    gamma: Annotated[float, Gt(0), Lt(1)]

    def at(self, epoch, epochs, history):
        return self.gamma ** (int(epoch) // self.every)


@dataclass(frozen=True, kw_only=True)
class Cosine(Curve):
    """Half a cosine from 1, after the warm-up, to `final` at the end (Loshchilov & Hutter 2017,
    without restarts).
    """

    final: Share

    def at(self, epoch, epochs, history):
        progress = min((epoch - self.warmup) / max(epochs - self.warmup, 1e-9), 1)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class OneCycle(Curve):
    """From `start` up to 1 during the first `rise` of the epochs, then down to `final`: two half
    cosines (Smith 2018).
    """

    rise: Annotated[float, Gt(0), Lt(1)]
    start: Share
    final: Share

    def at(self, epoch, epochs, history):
        progress = min(epoch / epochs, 1)
        if progress < self.rise:
            low, height = self.start, progress / self.rise
        else:
            low, height = self.final, (1 - progress) / (1 - self.rise)
        return low + (1 - low) * (1 - math.cos(math.pi * height)) / 2


def stalls(history: Sequence[float], patience: int, threshold: float = 0) -> int:
    """How many times more than `patience` epochs in a row did not improve on the best accuracy by
    more than `threshold`. After each stall, counting starts again.
    """
    count = 0
    best = -math.inf
    epochs_without_gain = 0
    for accuracy in history:
        if accuracy > best + threshold:
            best = accuracy
            epochs_without_gain = 0
        else:
            epochs_without_gain += 1
        if epochs_without_gain > patience:
            count += 1
            epochs_without_gain = 0
    return count


@dataclass(frozen=True, kw_only=True)
class Plateau(Curve):
    """Multiplied by `factor` whenever validation accuracy has not improved by more than `threshold`
    for more than `patience` epochs, down to `final`.
    """

    needs_history: ClassVar[bool] = True
    factor: Annotated[float, Gt(0), Lt(1)]
    patience: Annotated[int, Ge(0)]
    threshold: Annotated[float, Ge(0)]
    final: Share

    def at(self, epoch, epochs, history):
        value = 1.0
        for _ in range(stalls(history, self.patience, self.threshold)):
            value *= self.factor
        return max(value, self.final)


@dataclass(frozen=True, kw_only=True)
class Knots(Curve):
    """Passes through the points (epochs[i], values[i]).

    shape: `linear` interpolates between them; `step` keeps values[i] from epochs[i] on. Before the
    first point the value is values[0].
    """

    epochs: list[Epochs]
    values: list[Annotated[float, Ge(0), Le(1)]]
    shape: Literal["linear", "step"] = "linear"

    def __post_init__(self):
        if not self.epochs:
            raise ValueError("knots need at least one epoch and its value")
        if len(self.epochs) != len(self.values):
            raise ValueError(
                f"knots need one value for each epoch, not {len(self.values)} for "
                f"{len(self.epochs)}"
            )
        if any(earlier >= later for earlier, later in pairwise(self.epochs)):
            raise ValueError("the epochs of knots must increase")

    def at(self, epoch, epochs, history):
        if self.shape == "linear":
            return float(np.interp(epoch, self.epochs, self.values))
        reached = bisect_right(self.epochs, epoch)
        return self.values[max(reached - 1, 0)]


@dataclass(frozen=True, kw_only=True)
class AfterPlateau(Curve):
    """`before` until validation accuracy has not improved for more than `patience` epochs, then
    `after`.
    """

    needs_history: ClassVar[bool] = True
    before: Annotated[float, Ge(0), Le(1)]
    after: Annotated[float, Ge(0), Le(1)]
    patience: Annotated[int, Ge(0)]

    def at(self, epoch, epochs, history):
        return self.after if stalls(history, self.patience) else self.before
