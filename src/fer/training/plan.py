"""The schedule of a run: the value of every curve and the seeds at every step. It depends on the
config and the validation history alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fer.augment import Augment
from fer.runtime import Stream, seed_of
from fer.training.curves import Driven
from fer.training.step import StepSettings


@dataclass(frozen=True)
class Plan:
    """steps: of an epoch. side: of the images at full size, in pixels. rank: of this process."""

    curves: Mapping[str, Driven]
    augment: Augment
    seed: int
    epochs: int
    steps: int
    side: int
    rank: int

    def factors(self, epoch: int, step: int, accuracies: Sequence[float]) -> dict[str, float]:
        """Every curve's factor at a step, both counted from 0.

        accuracies: validation accuracies of the epochs before. Curves are read in the middle of the
        step: at its start a warm-up has a learning rate of 0.
        """
        middle = epoch + (step + 0.5) / self.steps
        return {
            name: driven.curve(middle, self.epochs, accuracies)
            for name, driven in self.curves.items()
        }

    def values(self, epoch: int, step: int, accuracies: Sequence[float]) -> dict[str, float]:
        """What the curves drive, in its own units: the learning rate as `lr`, degrees, pixels."""
        factors = self.factors(epoch, step, accuracies)
        return {name: self.curves[name].full * factor for name, factor in factors.items()}

    def settings(self, epoch: int, accuracies: Sequence[float]) -> list[StepSettings]:
        """What is particular to each step of an epoch."""
        return [self.settings_of_step(epoch, step, accuracies) for step in range(self.steps)]

    def settings_of_step(self, epoch: int, step: int, accuracies: Sequence[float]) -> StepSettings:
        factors = self.factors(epoch, step, accuracies)
        lr_factor = factors.pop("lr")
        dropout_factor = factors.pop("dropout", 1.0)
        size_factor = factors.pop("size", 1.0)
        place = (self.seed, epoch, step)
        return StepSettings(
            step=step,
            lr_factor=lr_factor,
            dropout_factor=dropout_factor,
            side=self.shrunk(size_factor),
            amounts=self.augment.amounts(factors),
            # All processes draw alike for the whole batch.
            augmentation_seed=seed_of(Stream.AUGMENTATION, *place),
            network_seed=seed_of(Stream.NETWORK, *place, self.rank),
        )

    def shrunk(self, factor: float) -> int:
        """The image side at this factor, a multiple of 4 so that two poolings divide it."""
        if factor == 1:
            return self.side
        return max(round(factor * self.side / 4), 1) * 4
