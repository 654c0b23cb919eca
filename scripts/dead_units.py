"""Measure how Adam's learning rate kills units of vgg13; docs/train.md has the results.

    python scripts/dead_units.py FER2013_FOLDER

Prints, for two learning rates, the highest loss of the first steps, the share of units of the first
dense layer that are 0 for every face of a batch, and the accuracy on some validation faces.
"""

import argparse

import torch
import yaml
from torch.nn import functional as F

from fer import CLASSES, config, config_dir
from fer.data.faces import Faces
from fer.models.network import Network, Normalize
from fer.runtime import autocast, number_format

RATES = (1e-3, 1e-4)
STEPS, FIRST_STEPS, BATCH = 200, 20, 64
TRAINING_FACES, VALIDATION_FACES = 8000, 500
CPU = torch.device("cpu")


def config_of(name: str) -> dict:
    return yaml.safe_load((config_dir() / f"{name}.yaml").read_text(encoding="utf-8"))


def new_network(training: Faces) -> Network:
    """vgg13 with the weights of seed 0, normalized by the training faces."""
    torch.manual_seed(0)
    model = config.build("model", config.check_node("model", config_of("model/vgg13")))
    deviation, mean = torch.std_mean(training.images.float())
    return Network(model, Normalize("dataset", mean.item(), deviation.item()))


def measure(lr: float, training: Faces, validation: Faces) -> None:
    """Train with Adam at this learning rate, and print what became of the network."""
    network = new_network(training)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    outputs: list[torch.Tensor] = []
    first_dense = network.model.head.activation1
    first_dense.register_forward_hook(lambda _, inputs, output: outputs.append(output.detach()))
    losses, dead_shares = [], []
    batches = torch.randint(len(training.labels), (STEPS, BATCH))
    for batch in batches:
        outputs.clear()
        with autocast(CPU, number_format(CPU)):
            logits = network(training.images[batch])
            loss = F.cross_entropy(logits.float(), training.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        dead_shares.append((outputs[0] == 0).all(0).float().mean().item())
    predicted = network.logits(validation.images, BATCH).argmax(1)
    print(f"Adam at {lr:g}")
    print(f"  highest loss of the first {FIRST_STEPS} steps: {max(losses[:FIRST_STEPS]):.1f}")
    for step in (FIRST_STEPS, STEPS):
        print(f"  units that are 0 for a whole batch, step {step}: {dead_shares[step - 1]:.0%}")
    accuracy = (predicted == validation.labels).float().mean()
    kinds = ", ".join(CLASSES[number] for number in predicted.unique())
    print(f"  accuracy on {len(predicted)} validation faces: {accuracy:.3f}; predicted: {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="FER2013_FOLDER")
    node = config_of("data/fer2013") | {"path": parser.parse_args().data}
    data = config.build("data", config.check_node("data", node))
    torch.manual_seed(0)
    chosen = torch.randperm(len(data.splits["train"]))[:TRAINING_FACES]
    training = data.splits["train"].take(chosen)
    validation = data.splits["validation"].take(torch.arange(VALIDATION_FACES))
    for lr in RATES:
        measure(lr, training, validation)


if __name__ == "__main__":
    main()
