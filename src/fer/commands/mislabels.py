"""fer mislabels: the training faces whose labels are most likely wrong, by confident learning
(Northcutt et al. 2021, arXiv:1911.00068) on cross-validated predictions.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from fer import UserError, config, extra, plots
from fer.checkpoint import load_checkpoint
from fer.data.copies import exact_copies
from fer.data.faces import Data, Faces
from fer.run import output_folders, refuse_overwriting, write_text
from fer.runtime import pick_device
from fer.text import percent
from fer.training.session import train_in

# If the networks agree with a smaller share of the labels, the list says more about the networks
# than about the labels. On FER2013, people agree with about 0.65.
TRUSTED = 0.5


def run(cfg: config.MislabelsConfig, given_keys: list[str]) -> None:
    cleanlab = import_cleanlab()
    data, device = config.build("data", cfg.data), pick_device(cfg.device)
    faces = data.split("train")
    largest_class = int(faces.labels.bincount().max())
    if largest_class < cfg.folds:
        raise UserError(
            f"folds={cfg.folds}: no class has more than {largest_class} faces; set it lower"
        )
    out = Path(cfg.out)
    refuse_overwriting(out / "mislabels.csv")  # now, not after hours
    with output_folders(out):
        probabilities = cross_validated(cfg, data, faces, device, out)

    table = label_table(cleanlab, data, faces, probabilities)
    order = np.lexsort((table["quality"], ~table["suspect"]))  # suspects first
    write_text(out / "mislabels.csv", table.iloc[order].to_csv(index=False))
    count = int(table["suspect"].sum())
    shown = order[:count][: cfg.samples]
    images = faces.images.numpy()[shown]
    picture = out / f"mislabels.{cfg.format}"
    plots.faces(images, captions(table.iloc[shown]), picture, columns=7)

    print(
        f"suspect: {count:,} of {len(faces):,} labels ({percent(count / len(faces), 1)}), "
        "most likely wrong first"
    )
    agreement = float((table["prediction"] == table["label"]).mean())
    if agreement < TRUSTED:
        print(
            f"do not rely on this list: the networks agree with only {percent(agreement)} of the "
            "labels of faces\n"
            "that they were not trained on, so most suspects are their own mistakes; train longer\n"
            "(train.epochs=) or choose a better model="
        )
    print(f"open:\n  {picture}\n  {out / 'mislabels.csv'}")


def import_cleanlab() -> Any:
    """The package cleanlab. Raises UserError if it is not installed."""
    with extra("mislabels", "fer mislabels"):
        import cleanlab.filter
        import cleanlab.rank
    return cleanlab


def cross_validated(
    cfg: config.MislabelsConfig, data: Data, faces: Faces, device: torch.device, out: Path
) -> np.ndarray:
    """Probabilities, float64 N×C, for each face from a network that was not trained on it, nor on a
    copy of it. Each network has its run folder, fold0 and so on, in `out`.
    """
    probabilities = np.zeros((len(faces), len(data.classes)))
    for number, (training, held_out) in enumerate(folds(faces, cfg.folds, cfg.seed)):
        fold = f"fold {number + 1} of {cfg.folds}"
        print(f"{fold}: {len(training):,} faces to train, {len(held_out):,} to predict", flush=True)
        splits = {"train": faces.take(training), "validation": faces.take(held_out)}
        folder = out / f"fold{number}"
        best = train_in(folder, cfg, device, replace(data, splits=splits))
        print(
            f"{fold}: accuracy {best:.4f} on the held-out faces, which also chose the epoch",
            flush=True,
        )
        logits = load_checkpoint(folder / "best.pt")["validation"]["logits"]
        probabilities[held_out] = logits.double().softmax(1).numpy()
    return probabilities


def folds(faces: Faces, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions to train on and to hold out, for each fold. Copies of a face are in one fold:
    otherwise a network would be asked about a face that it was trained on.
    """
    labels = faces.labels.numpy()
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32)
    # It warns of classes with fewer faces than folds, which some folds then lack.
    with warnings.catch_warnings(action="ignore"):
        return list(splitter.split(labels, labels, exact_copies(faces.images)))


def label_table(cleanlab: Any, data: Data, faces: Faces, probabilities: np.ndarray) -> pd.DataFrame:
    """A row for each face: label, prediction and its confidence, the label's quality (0 to 1), and
    whether confident learning suspects it.
    """
    labels, names = faces.labels.numpy(), np.array(data.classes)
    quality = cleanlab.rank.get_label_quality_scores(labels, probabilities)
    return pd.DataFrame(
        {
            "id": faces.ids,
            "label": names[labels],
            "prediction": names[probabilities.argmax(1)],
            "confidence": probabilities.max(1).round(4),
            "quality": quality.round(4),
            "suspect": cleanlab.filter.find_label_issues(labels, probabilities, n_jobs=1),
        }
    )


def captions(rows: pd.DataFrame) -> list[str]:
    """For each face, what is predicted, how surely, and what its label says."""
    return [
        f"{row.prediction} {percent(row.confidence)}\nlabel: {row.label}"
        for row in rows.itertuples()
    ]
