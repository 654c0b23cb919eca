"""fer mislabels: the training faces that are likeliest labelled wrong, by networks that have not
learned them.

Confident learning (Northcutt et al. 2021, arXiv:1911.00068), by cleanlab, on predictions out of
fold. Copies of a face stay in one fold, or a network would have seen what it is asked about. A
fold's training has its folder under `out`; how it is trained stays in train.py.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.model_selection import StratifiedGroupKFold

from fer import UserError, config, plots
from fer.checkpoint import load_checkpoint
from fer.data.copies import exact_copies
from fer.run import make_folder, write_text
from fer.runtime import pick_device
from fer.training.session import train_in

# Agreement with labels below which doubts say more of the networks; people reach about 0.65 on
# FER2013.
TRUSTED = 0.5


def run(cfg: config.MislabelsConfig, typed: list[str]) -> None:
    data, device = config.build("data", cfg.data), pick_device(cfg.device)
    faces = data.open("train")
    labels, probabilities = faces.labels.numpy(), np.zeros((len(faces), len(data.classes)))
    if (most := np.bincount(labels).max()) < cfg.folds:
        raise UserError(f"folds={cfg.folds}: no class has more than {most} faces; set it lower")
    out = make_folder(Path(cfg.out))
    folds = StratifiedGroupKFold(cfg.folds, shuffle=True, random_state=cfg.seed % 2**32)
    with warnings.catch_warnings(
        action="ignore"
    ):  # of classes with fewer faces than folds, which some then lack
        parts = list(folds.split(labels, labels, exact_copies(faces.images)))
    for number, (seen, unseen) in enumerate(parts):
        print(
            f"fold {number + 1} of {cfg.folds}: {len(seen):,} faces to train, {len(unseen):,} to "
            "judge",
            flush=True,
        )
        folder, splits = (
            out / f"fold{number}",
            {"train": faces.take(seen), "validation": faces.take(unseen)},
        )
        best = train_in(folder, cfg, device, replace(data, splits=splits))
        how = f"accuracy {best:.4f} on faces not learned, which chose the epoch"
        print(f"fold {number + 1} of {cfg.folds}: {how}", flush=True)
        logits = load_checkpoint(folder / "best.pt")["validation"]["logits"]
        probabilities[unseen] = logits.double().softmax(1).numpy()

    names = np.array(data.classes)
    table = pd.DataFrame(
        {"id": faces.ids, "label": names[labels], "prediction": names[probabilities.argmax(1)]}
    )
    table["confidence"] = probabilities.max(1).round(4)
    table["quality"] = get_label_quality_scores(labels, probabilities).round(4)
    table["suspect"] = find_label_issues(labels, probabilities, n_jobs=1)
    order = np.lexsort((table["quality"], ~table["suspect"]))
    write_text(out / "mislabels.csv", table.iloc[order].to_csv(index=False))
    count = int(table["suspect"].sum())
    shown = order[:count][: cfg.samples]
    captions = [
        f"{row.prediction} {row.confidence:.0%}\nlabel: {row.label}"
        for row in table.iloc[shown].itertuples()
    ]
    place = out / f"mislabels.{cfg.format}"
    picture = plots.faces(faces.images.numpy()[shown], captions, place, columns=7)
    print(
        f"{count:,} of {len(faces):,} labels are doubted ({count / len(faces):.1%}), the likeliest "
        "wrong first"
    )
    right = float((table["prediction"] == table["label"]).mean())
    if right < TRUSTED:
        print(
            f"do not believe this list: the networks agree with only {right:.0%} of the labels of "
            "faces that they have "
            "not learned,\nso most doubts are their own mistakes; train longer (train.epochs=) or "
            "take a better model="
        )
    print(f"open:\n  {picture}\n  {out / 'mislabels.csv'}")
