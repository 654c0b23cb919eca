"""Turn a run's best.pt into src/fer/builtin.pt: weights in fp16, no paths of this machine, and no
labels or predictions of FER2013's faces.
"""

import argparse
import sys
from pathlib import Path

import torch

from fer.checkpoint import BUILTIN, BUILTIN_FILE, Checkpoint, save_checkpoint
from fer.models.network import Network

MOST_PARAMETERS = 1_500_000
MOST_BYTES = 3_000_000


def main(run: str, data: str) -> None:
    checkpoint = Checkpoint.open(Path(run, "best.pt"))
    network = checkpoint.network(torch.device("cpu"))
    network.half().float()  # to what fp16 holds, so that the accuracy is that of the package
    faces = checkpoint.data({"path": data}).split("validation")
    predicted = network.logits(faces.images, 512).argmax(1)
    settings = checkpoint.settings
    settings.name = BUILTIN
    settings.run = None
    settings.data["path"] = "data"
    save_checkpoint(
        BUILTIN_FILE,
        settings,
        network.half(),
        epoch=checkpoint.contents["epoch"],
        val_accuracy=(predicted == faces.labels).double().mean().item(),
        training_faces=checkpoint.contents["training_faces"].unique(),
        training_thumbnails=checkpoint.contents["training_thumbnails"].unique(),
    )
    check_size(network)


def check_size(network: Network) -> None:
    parameters = sum(p.numel() for p in network.parameters())
    size = BUILTIN_FILE.stat().st_size
    print(f"{BUILTIN_FILE}: {parameters:,} parameters, {size / 1e6:.2f} MB")
    if parameters > MOST_PARAMETERS or size > MOST_BYTES:
        sys.exit(f"more than {MOST_PARAMETERS:,} parameters or {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/make_builtin", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a finished experiment=builtin")
    parser.add_argument("data", metavar="DATA", help="FER2013, for the accuracy on PublicTest")
    args = parser.parse_args()
    main(args.run, args.data)
