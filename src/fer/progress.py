"""What a person sees of a training: a bar on a terminal, a warning that it will be long, a line an
epoch.

All of it fits a terminal of 80 columns. Knows numbers and the terminal; neither networks nor the
run folder.
"""

import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

from fer.text import COLUMNS

BAR = "{desc} {percentage:3.0f}%|{bar}|"  # tqdm fills it
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400  # seconds


class Progress(tqdm):
    """An epoch's bar, where `shown` on a terminal, with the time that is left of the training.

    faces: of the whole epoch; done: before a resume. epoch_seconds: how long an earlier epoch took,
    validation included; None: this epoch's own speed predicts the others. A `with` takes the bar
    off the screen however the epoch ends.
    """

    def __init__(
        self,
        epoch: int,
        epochs: int,
        faces: int,
        done: int,
        shown: bool,
        epoch_seconds: float | None = None,
    ):
        self.epochs_after, self.epoch_seconds = epochs - epoch - 1, epoch_seconds
        super().__init__(
            total=faces,
            initial=done,
            desc=f"epoch {epoch + 1}/{epochs}",
            bar_format=BAR,
            ncols=COLUMNS - 1,  # the last column makes some terminals wrap
            leave=False,
            mininterval=0.5,  # reading loss and accuracy makes a GPU wait
            disable=None if shown else True,  # None: where there is no terminal
        )

    def note(self, faces: int, means: Callable[[], tuple[float, float]]) -> None:
        """A batch of so many faces is done; `means` gives loss and accuracy so far in the epoch."""
        if self.update(faces):
            loss, accuracy = means()
            self.bar_format = f"{BAR} {self.said(loss, accuracy, self.format_dict['elapsed'])}"
            self.refresh()

    def said(self, loss: float, accuracy: float, elapsed: float) -> str:
        """What stands behind the bar, `elapsed` seconds after the epoch began or was resumed."""
        rate = max(self.n - self.initial, 1) / max(elapsed, 1e-9)
        left = seconds_left(
            self.total - self.n, rate, self.total, self.epochs_after, self.epoch_seconds
        )
        return f"loss {loss:.3f} acc {accuracy:.3f} {rate:.0f}/s, about {lasting(left)} left"


def seconds_left(
    faces: int, rate: float, total: int, epochs: int, epoch_seconds: float | None
) -> float:
    """Until the training ends: `faces` of this epoch at `rate` a second, then so many whole
    `epochs` of `total` faces, which take `epoch_seconds` each where that is known.
    """
    return max(faces, 0) / rate + epochs * (epoch_seconds or total / rate)


def lasting(seconds: float) -> str:
    """A time as a person would say it."""
    if seconds < 1.5 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.1f} h"
    if seconds < YEAR:
        return f"{seconds / DAY:.0f} days"
    return "over a year"


def warn_if_long(faces: int, rate: float, device: torch.device) -> None:
    """faces: of all epochs together; rate: faces a second, as measured."""
    seconds = faces / rate
    if seconds > HOUR:
        faster = "a CUDA GPU, " if device.type == "cpu" else ""
        tqdm.write(
            f"this will take up to {lasting(seconds)} ({rate:.0f} images/s on {device.type}); "
            "faster:\n"
            f"  {faster}a smaller model=, fewer train.epochs, data.limit=N",
            file=sys.stderr,
        )


def epoch_line(row: dict, epochs: int, better: bool) -> str:
    """A row of the history in words; history.csv has the rest of it."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f": loss {row['train_loss']:.3f} acc {row['train_accuracy']:.3f}"
        f", val loss {row['val_loss']:.3f} acc {row['val_accuracy']:.4f}"
        f", {lasting(row['seconds'])}{', best' if better else ''}"
    )


def one_class_lines(name: str, rate: float) -> str:
    """All validation faces are predicted as `name`: why that may be. rate: the learning rate."""
    return (
        f"all validation faces are called {name}: nothing is learned so far. Usual reasons:\n"
        f"  the learning rate is too high for this network ({rate:.2g}): "
        f"optim.lr={rate / 10:.1g},\n"
        "    schedule.warmup=1 or train.clip=1\n"
        "  a deep network without normalization: optim=muon, or a model= with BatchNorm\n"
        "  too few steps so far: a smaller train.batch_size, or wait for some epochs"
    )


class Steps(tqdm):
    """A bar on a terminal over the steps of a command, each named while it runs; lines are written
    above it.
    """

    def __init__(self, total: int):
        super().__init__(
            total=total,
            bar_format=f"{BAR} {{n}}/{{total}} {{desc}}",
            ncols=COLUMNS - 1,
            leave=False,
            disable=None,
        )
        self.begun = False

    def begin(self, name: str) -> None:
        """The step before is done, this one begins."""
        if self.begun:
            self.update()
        self.begun = True
        self.set_description_str(name)

    def say(self, line: object) -> None:
        self.write(str(line), file=sys.stdout)
