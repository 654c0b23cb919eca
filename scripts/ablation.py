"""The trainings and the table of scripts/ablation; see there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from fer.checkpoint import Checkpoint

EPOCHS, SEEDS = 8, (0, 1, 2)
BASE = (
    f"experiment=speedrun_cpu train.epochs={EPOCHS} schedule.epochs=[0,2,{EPOCHS}] "
    "curves.size.epochs=[0,5]"
)
SWITCHES = {
    "base": "",
    "no_augmentation": "augment=none",
    "adam": "optim=adam optim.lr=1e-3",
    "no_smoothing": "train.label_smoothing=0",
    "whole_size": "curves.size=null",
    "mixup": "augment.mixup=0.2",
    "no_copies": "train.copies=drop",
}


def done(folder: Path) -> bool:
    return (folder / "history.csv").is_file() and len(pd.read_csv(folder / "history.csv")) == EPOCHS


def train(folder: Path, data: str, switch: str, seed: int) -> None:
    """A run, begun or gone on with; nothing where it is done."""
    if done(folder):
        return
    words = BASE.replace("curves.size.epochs=[0,5]", "") if "curves.size" in switch else BASE
    new = [
        *words.split(),
        *switch.split(),
        f"seed={seed}",
        f"data.path={data}",
        f"run={folder}",
        f"name={folder.name}",
    ]
    begun = (folder / "last.pt").is_file()
    command = [sys.executable, "-m", "fer", "train", *([f"resume={folder}"] if begun else new)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(out: Path) -> pd.DataFrame:
    """A row a switch, over the seeds that are done: mean and deviation of the accuracy, points
    against the recipe, p of a paired t-test over the faces (how many seeds have each right), and
    the accuracy without copies.
    """
    folders = {(name, seed): out / f"{name}_{seed}" for name in SWITCHES for seed in SEEDS}
    best = {
        key: Checkpoint.open(folder / "best.pt") for key, folder in folders.items() if done(folder)
    }
    found = {key: own.contents["validation"] for key, own in best.items()}
    right = {
        key: (own["logits"].argmax(1) == own["labels"]).double().numpy()
        for key, own in found.items()
    }
    data = next(iter(best.values())).data()
    fresh, rows = ~data.open("validation").among(data.open("train")).numpy(), []
    for name, switch in SWITCHES.items():
        seeds = [seed for seed in SEEDS if (name, seed) in right and ("base", seed) in right]
        if seeds:
            own, base = (
                np.stack([right[which, seed] for seed in seeds]) for which in (name, "base")
            )
            p = ttest_rel(own.mean(0), base.mean(0)).pvalue if switch else 1.0
            gain = f"{100 * (own.mean() - base.mean()):+.2f}"
            rows.append(
                [
                    switch or "(the recipe)",
                    len(seeds),
                    spread(own),
                    gain,
                    f"{p:.2g}",
                    spread(own[:, fresh]),
                ]
            )
    return pd.DataFrame(
        rows, columns=["changed", "seeds", "accuracy", "points", "p", "without copies"]
    )


def spread(right: np.ndarray) -> str:
    shares = right.mean(1)
    return f"{shares.mean():.4f}" + (f" ± {shares.std(ddof=1):.4f}" if len(shares) > 1 else "")


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
