"""Optional TensorBoard output: the history, the config and the pictures of the report."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fer import UserError, extra

FOLDER = "tensorboard"


def require() -> type:
    """The class SummaryWriter. UserError if TensorBoard is not installed."""
    with extra("tensorboard", "tensorboard=true"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def open_writer(run: Path, epoch: int | None = None) -> Any:
    """A writer for a run folder. It discards earlier events from `epoch` on."""
    folder = run / FOLDER
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is not a folder, where TensorBoard's events go; remove it")
    return require()(str(folder), purge_step=epoch)


def note(writer: Any, row: dict[str, Any]) -> None:
    """Write a row of the history.

    train_loss gets the tag loss/train, val_recall_happy gets recall/happy, lr gets schedule/lr.
    """
    for name, value in row.items():
        tag = re.sub(r"^(train|val)_(.+)", r"\2/\1", name.replace("val_recall_", "recall/"))
        if tag == name and name not in ("seconds", "images_per_second"):
            tag = f"schedule/{name}"
        if name != "epoch":
            writer.add_scalar(tag, value, row["epoch"])
    writer.flush()


def show(run: Path, pictures: list[Path]) -> None:
    """Add pictures, if the run was trained with tensorboard=true."""
    if (run / FOLDER).is_dir():
        with open_writer(run) as writer:
            for path in pictures:
                with Image.open(path) as image:
                    writer.add_image(
                        f"report/{path.stem}", np.asarray(image.convert("RGB")), dataformats="HWC"
                    )
