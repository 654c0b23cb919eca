"""Turn a run's best.pt into src/fer/builtin.pt: weights in fp16, no paths of this machine."""

import sys
from pathlib import Path

import torch

from fer.checkpoint import BUILTIN, BUILTIN_FILE, Checkpoint, save_checkpoint
from fer.data.faces import Faces
from fer.models.network import Network

MOST_PARAMETERS = 1_500_000
MOST_BYTES = 3_000_000


def main(run: str, data: str) -> None:
    checkpoint = Checkpoint.open(Path(run, "best.pt"))
    network = checkpoint.network(torch.device("cpu"))
    round_weights(network)
    faces = checkpoint.data({"path": data}).open("validation")
    settings = checkpoint.settings
    settings.name = BUILTIN
    settings.run = None
    settings.data["path"] = "data"
    validation = predictions(network, faces)
    right = validation["logits"].argmax(1) == validation["labels"]
    save_checkpoint(
        BUILTIN_FILE,
        settings,
        network.half(),
        epoch=checkpoint.contents["epoch"],
        val_accuracy=right.double().mean().item(),
        validation=validation,
    )
    check_size(network)


def round_weights(network: Network) -> None:
    """To what fp16 holds, so that every figure is that of the weights in the package."""
    network.half().float()


def predictions(network: Network, faces: Faces) -> dict:
    """What best.pt saves of the validation faces: a report needs no data."""
    logits = network.logits(faces.images, 512, "fp32")
    return {"logits": logits, "labels": faces.labels, "images": faces.hash}


def check_size(network: Network) -> None:
    parameters = sum(p.numel() for p in network.parameters())
    size = BUILTIN_FILE.stat().st_size
    print(f"{BUILTIN_FILE}: {parameters:,} parameters, {size / 1e6:.2f} MB")
    if parameters > MOST_PARAMETERS or size > MOST_BYTES:
        sys.exit(f"more than {MOST_PARAMETERS:,} parameters or {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
