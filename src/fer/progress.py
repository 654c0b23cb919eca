"""What `fer train` prints, within 80 columns: a progress bar, one line per epoch, warnings."""

import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

from fer.text import COLUMNS

BAR = "{desc} {percentage:3.0f}%|{bar}|"  # tqdm fills it
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400  # seconds


class Progress(tqdm):
    """The progress bar of an epoch, with the time left until training ends.

    faces: number in the whole epoch. done: number already seen before a resume. shown: False
    disables the bar, as does an output that is not a terminal. epoch_seconds: duration of an
    earlier epoch, validation included; if None, the speed of this epoch predicts the others. Use it
    in a `with`, which removes the bar however the epoch ends.
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
        """Advance by a batch of `faces`. `means` returns the epoch's loss and accuracy so far."""
        if self.update(faces):
            loss, accuracy = means()
            self.bar_format = f"{BAR} {self.status(loss, accuracy, self.format_dict['elapsed'])}"
            self.refresh()

    def status(self, loss: float, accuracy: float, elapsed: float) -> str:
        """The text after the bar, `elapsed` seconds after the epoch started or was resumed."""
        rate = max(self.n - self.initial, 1) / max(elapsed, 1e-9)
        left = seconds_left(
            self.total - self.n, rate, self.total, self.epochs_after, self.epoch_seconds
        )
        return f"loss {loss:.3f} acc {accuracy:.3f} {rate:.0f}/s, about {duration(left)} left"


def seconds_left(
    faces: int, rate: float, total: int, epochs: int, epoch_seconds: float | None
) -> float:
    """The time until training ends: `faces` of this epoch at `rate` per second, then `epochs` whole
    epochs of `total` faces. These take `epoch_seconds` each, if that is known.
    """
    return max(faces, 0) / rate + epochs * (epoch_seconds or total / rate)


def duration(seconds: float) -> str:
    """A duration in words, rounded."""
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
    """Warn if training takes over an hour. faces: of all epochs. rate: faces per second."""
    seconds = faces / rate
    if seconds > HOUR:
        faster = "a CUDA GPU, " if device.type == "cpu" else ""
        tqdm.write(
            f"this will take up to {duration(seconds)} ({rate:.0f} images/s on {device.type}); "
            "faster:\n"
            f"  {faster}a smaller model=, fewer train.epochs, or data.limit=N",
            file=sys.stderr,
        )


def epoch_line(row: dict, epochs: int, better: bool) -> str:
    """The line printed after an epoch, from its row of the history."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f": loss {row['train_loss']:.3f} acc {row['train_accuracy']:.3f}"
        f", val loss {row['val_loss']:.3f} acc {row['val_accuracy']:.4f}"
        f", {duration(row['seconds'])}{', best' if better else ''}"
    )


def one_class_lines(name: str, peak: float, muon: bool) -> str:
    """The warning that all validation faces are predicted as `name`.

    peak: optim.lr. muon: the optimizer is Muon already.
    """
    remedy = "a model= with BatchNorm" if muon else "optim=muon, or a model= with BatchNorm"
    return (
        f"all validation faces are predicted as {name}. Common causes:\n"
        f"  optim.lr={peak:.2g} is too high for this network: try optim.lr={peak / 10:.2g},\n"
        "    schedule.warmup=1 or train.clip=1\n"
        f"  deep network without normalization: try {remedy}\n"
        "  too few steps so far: try a smaller train.batch_size, or wait a few epochs"
    )


class Steps(tqdm):
    """A progress bar over the steps of a command. It names the current step."""

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
        """Finish the previous step and start this one."""
        if self.begun:
            self.update()
        self.begun = True
        self.set_description_str(name)

    def say(self, line: object) -> None:
        """Print a line above the bar."""
        self.write(str(line), file=sys.stdout)
