"""The trainings and the table of scripts/ablation; see there."""

import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

from fer.checkpoint import load_checkpoint
from fer.metrics import mcnemar

EPOCHS, SEEDS = 8, (0, 1, 2)
BASE = f"experiment=speedrun_cpu train.epochs={EPOCHS} schedule.epochs=[0,2,{EPOCHS}] curves.size.epochs=[0,5]"
SWITCHES = {
    "base": "",
    "no_augmentation": "augment=none",
    "adam": "optim=adam optim.lr=1e-3",
    "no_smoothing": "train.label_smoothing=0",
    "whole_size": "curves.size=null",
    "mixup": "augment.mixup=0.2",
    "no_copies": "train.copies=drop",
}


def train(folder: Path, data: str, switch: str, seed: int) -> None:
    """A run, begun or gone on with; nothing where it is done."""
    history = folder / "history.csv"
    if history.is_file() and len(pd.read_csv(history)) == EPOCHS:
        return
    words = BASE.replace("curves.size.epochs=[0,5]", "") if "curves.size" in switch else BASE
    new = [*words.split(), *switch.split(), f"seed={seed}", f"data.path={data}", f"run={folder}", f"name={folder.name}"]
    begun = (folder / "last.pt").is_file()
    command = [sys.executable, "-m", "fer", "train", *([f"resume={folder}"] if begun else new)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(out: Path) -> pd.DataFrame:
    """A row a switch: mean and deviation over the seeds that are done, and McNemar's test over their faces together."""
    rows, right = [], {}
    for name, switch in SWITCHES.items():
        for seed in SEEDS:
            if (path := out / f"{name}_{seed}" / "best.pt").is_file():
                found = load_checkpoint(path)["validation"]
                right[name, seed] = found["logits"].argmax(1) == found["labels"]
        seeds = [seed for seed in SEEDS if (name, seed) in right and ("base", seed) in right]
        if seeds:
            shares = [right[name, seed].double().mean().item() for seed in seeds]
            base = [right["base", seed].double().mean().item() for seed in seeds]
            won = sum(int((right[name, seed] & ~right["base", seed]).sum()) for seed in seeds)
            lost = sum(int((right["base", seed] & ~right[name, seed]).sum()) for seed in seeds)
            deviation = f" ± {statistics.stdev(shares):.4f}" if len(seeds) > 1 else ""
            gain = f"{100 * (statistics.mean(shares) - statistics.mean(base)):+.2f}"
            rows.append([switch or "(the recipe itself)", len(seeds), f"{statistics.mean(shares):.4f}{deviation}",
                         gain, f"{mcnemar(won, lost):.2g}"])  # fmt: skip
    return pd.DataFrame(rows, columns=["changed", "seeds", "accuracy", "points", "McNemar p"])


def main() -> None:
    data, out = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs/ablation")
    print(f"fer train {BASE}")
    for seed in SEEDS:
        for name, switch in SWITCHES.items():
            train(out / f"{name}_{seed}", data, switch, seed)
            print(f"{name}, seed {seed}: done", flush=True)
        print(table(out).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
