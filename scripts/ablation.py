"""The ablation of scripts/ablation: trains each variant with each seed and prints a table."""

import argparse
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
    "fewer_iterations": "optim.iterations=3",
}


def finished(folder: Path) -> bool:
    history = folder / "history.csv"
    return history.is_file() and len(pd.read_csv(history)) == EPOCHS


def train(folder: Path, data: str, switch: str, seed: int) -> None:
    """Start or resume a run, unless it is finished."""
    if finished(folder):
        return
    if (folder / "last.pt").is_file():
        overrides = [f"resume={folder}"]
    else:
        base = BASE.replace("curves.size.epochs=[0,5]", "") if "curves.size" in switch else BASE
        overrides = [*base.split(), *switch.split(), f"seed={seed}"]
        overrides += [f"data.path={data}", f"run={folder}", f"name={folder.name}"]
    command = [sys.executable, "-m", "fer", "train", *overrides]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code:
        sys.exit(code)  # fer train has said why


def table(out: Path) -> pd.DataFrame:
    """One row per variant, over its finished seeds.

    Columns: accuracy (mean and standard deviation), difference from the recipe in points, p of a
    paired t-test over the faces (on the number of seeds that classify each face correctly), and
    accuracy without copies.
    """
    correct, data = {}, None
    for name in SWITCHES:
        for seed in SEEDS:
            folder = out / f"{name}_{seed}"
            if not finished(folder):
                continue
            best = Checkpoint.open(folder / "best.pt")
            validation = best.contents["validation"]
            predicted = validation["logits"].argmax(1)
            correct[name, seed] = (predicted == validation["labels"]).double().numpy()
            data = data or best.data()
    assert data is not None  # main() trains before it asks for the table
    is_new = ~data.split("validation").among(data.split("train")).numpy()

    rows = []
    for name, switch in SWITCHES.items():
        seeds = [seed for seed in SEEDS if (name, seed) in correct and ("base", seed) in correct]
        if not seeds:
            continue
        variant = np.stack([correct[name, seed] for seed in seeds])
        base = np.stack([correct["base", seed] for seed in seeds])
        p = ttest_rel(variant.mean(0), base.mean(0)).pvalue if switch else 1.0
        rows.append(
            {
                "changed": switch or "(the recipe)",
                "seeds": len(seeds),
                "accuracy": spread(variant),
                "points": f"{100 * (variant.mean() - base.mean()):+.2f}",
                "p": f"{p:.2g}",
                "without copies": spread(variant[:, is_new]),
            }
        )
    return pd.DataFrame(rows)


def spread(correct: np.ndarray) -> str:
    """Mean accuracy ± standard deviation over seeds. correct: seeds × faces, 0 or 1."""
    accuracies = correct.mean(1)
    deviation = f" ± {accuracies.std(ddof=1):.4f}" if len(accuracies) > 1 else ""
    return f"{accuracies.mean():.4f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/ablation", description=__doc__)
    parser.add_argument("data", help="folder of FER2013")
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", choices=SWITCHES, default=list(SWITCHES))
    args = parser.parse_args()
    print(f"fer train {BASE}")
    for seed in SEEDS:
        for name in args.only:
            train(args.out / f"{name}_{seed}", args.data, SWITCHES[name], seed)
            print(f"{name}, seed {seed}: done", flush=True)
        print(table(args.out).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
