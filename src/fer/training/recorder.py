"""What a run writes and prints: the line of an epoch, history.csv, best.pt and last.pt,
TensorBoard's scalars.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fer import config, tensorboard
from fer.checkpoint import save_checkpoint
from fer.files import rename_over, reporting_write_errors
from fer.models.network import Network
from fer.progress import epoch_line, one_class_lines
from fer.run import write_history
from fer.training.batches import TrainingFaces


class Recorder:
    """Records one run in `folder`. writer: TensorBoard's, if any."""

    def __init__(self, folder: Path, cfg: config.TrainConfig, writer: Any = None):
        self.folder = folder
        self.cfg = cfg
        self.writer = writer
        self.waiting_best: tuple[Network, dict[str, Any]] | None = None  # for best.pt
        self.only_class: str | None = None  # what the last epoch predicted for every face

    def note_epoch(self, history: list[dict[str, Any]], is_best: bool) -> None:
        """Write and print the history's last row."""
        row = history[-1]
        write_history(self.folder, history)
        if self.writer:
            tensorboard.note(self.writer, row)
        print(epoch_line(row, self.cfg.train.epochs, is_best), flush=True)

    def warn_if_one_class(self, logits: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        """Print likely causes when all validation faces are first predicted as one class."""
        predicted = logits.argmax(1).unique().tolist()
        only_class = None
        if len(predicted) == 1 and len(labels.unique()) > 1:
            only_class = classes[predicted[0]]
        if only_class and only_class != self.only_class:
            optim = self.cfg.optim
            muon = optim["_target_"] == "fer.optim.Muon"
            print(one_class_lines(only_class, optim["lr"], muon), flush=True)
        self.only_class = only_class

    def keep_best(
        self, row: dict[str, Any], network: Network, logits: Tensor, faces: TrainingFaces
    ) -> None:
        """Copy the best weights so far, for the next save. The validation faces' logits and labels
        go into best.pt too, so that a report needs no data.
        """
        weights = network.model.state_dict()
        contents = {
            "epoch": row["epoch"],
            "val_accuracy": row["val_accuracy"],
            "model": {name: tensor.detach().clone() for name, tensor in weights.items()},
            "validation": {
                "logits": logits.cpu(),
                "labels": faces.val_labels.cpu(),
                "images": faces.val_hash,
            },
            **hashes_of(faces),
        }
        self.waiting_best = (network, contents)

    def save(self, network: Network, state: dict[str, Any], faces: TrainingFaces) -> None:
        """Write last.pt and, if better weights are waiting, best.pt.

        best.pt is replaced after last.pt. Otherwise a kill between the two would leave the weights
        of an epoch that the resume trains again, perhaps with another outcome.
        """
        waiting = next_best(self.folder)
        self.write_best(waiting)
        last = self.folder / "last.pt"
        save_checkpoint(last, self.cfg, network, training=state, **hashes_of(faces))
        if self.waiting_best:
            put_in_place(waiting, self.folder)
            self.waiting_best = None

    def write_best(self, path: Path) -> None:
        """Write the weights that are waiting, if any."""
        if self.waiting_best:
            network, contents = self.waiting_best
            save_checkpoint(path, self.cfg, network, **contents)

    def save_best(self) -> None:
        """Write best.pt without last.pt."""
        waiting = next_best(self.folder)
        if self.waiting_best and waiting.is_file():  # written already, and the disk may be full
            put_in_place(waiting, self.folder)
        else:
            self.write_best(self.folder / "best.pt")
        self.waiting_best = None


def hashes_of(faces: TrainingFaces) -> dict[str, Tensor]:
    """What a checkpoint holds of the faces that its network was trained on."""
    return {"training_faces": faces.hashes, "training_thumbnails": faces.thumbnail_hashes}


def next_best(folder: Path) -> Path:
    """The file in which the next best.pt waits until last.pt is written: beside best.pt, which may
    be a link into a folder of several runs' networks.
    """
    return Path(os.path.realpath(folder / "best.pt")).with_suffix(".next.pt")


def put_in_place(waiting: Path, folder: Path) -> None:
    """Make the waiting file the best.pt of the run."""
    best = folder / "best.pt"
    with reporting_write_errors(best):
        rename_over(Path(os.path.realpath(best)), waiting)
