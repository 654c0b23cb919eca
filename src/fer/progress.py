"""What a person sees of a training: a bar on a terminal, a warning that it will be long, a line an epoch.

Knows numbers and the terminal; neither networks nor the run folder.
"""

import sys
from collections.abc import Callable

import torch
from tqdm import tqdm


class Progress(tqdm):
    """An epoch's bar, where `shown` on a terminal. faces: of the whole epoch; done: before a resume."""

    def __init__(self, epoch: int, epochs: int, faces: int, done: int, shown: bool):
        more = {"initial": done, "leave": False, "mininterval": 0.5}  # reading the sums makes a GPU wait
        hidden = None if shown else True  # None: where there is no terminal
        super().__init__(total=faces, desc=f"epoch {epoch + 1}/{epochs}", unit=" images", disable=hidden, **more)

    def note(self, faces: int, means: Callable[[], tuple[float, float]]) -> None:
        """A batch of so many faces is done; `means` gives loss and accuracy so far in the epoch."""
        if self.update(faces):
            loss, accuracy = means()
            self.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")


def warn_if_long(faces: int, rate: float, device: torch.device) -> None:
    """faces: of all epochs together; rate: faces a second, as measured."""
    hours = faces / rate / 3600
    if hours > 1:
        faster = "a CUDA GPU, " if device.type == "cpu" else ""
        tqdm.write(
            f"this will take up to {hours:.1f} hours ({rate:.0f} images/s on {device.type}); faster: "
            f"{faster}a smaller model (see fer train --help), fewer train.epochs, data.limit=N",
            file=sys.stderr,
        )


def epoch_line(row: dict, epochs: int, better: bool) -> str:
    """A row of the history in words."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:.4f} accuracy "
        f"{row['train_accuracy']:.4f}  validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f} "
        f"macro F1 {row['val_macro_f1']:.4f}  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
        f"{'  best' if better else ''}"
    )
