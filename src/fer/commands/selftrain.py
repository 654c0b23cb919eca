"""fer selftrain: what unlabelled faces add. Keeps the labels of a share of the training faces, and
compares a network trained on these alone with one that learns its own predictions too, round by
round, and with clusters of pixels.

Every training has a folder of its own under `out`; one that was interrupted goes on, one that is
done is only read. Knows trainings and predictions by their commands; how they are made stays in
train.py and predict.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from torch import Tensor

from fer import UserError, config, metrics, plots
from fer.checkpoint import Checkpoint
from fer.data.faces import Faces, stratified
from fer.inference import label
from fer.run import make_folder, write_text
from fer.runtime import pick_device
from fer.training.session import train_in

COMPONENTS = 50  # of the pixels, for the clusters


def run(cfg: config.SelftrainConfig, typed: list[str]) -> None:
    data, device = config.build("data", cfg.data), pick_device(cfg.device)
    train, held_out = (replace(data.open(name), targets=None) for name in ("train", "validation"))
    if cfg.clusters > len(train):
        raise UserError(
            f"clusters={cfg.clusters}: more than the {len(train)} faces to train on; set it lower"
        )
    out = make_folder(Path(cfg.out))
    rows = []

    def note(
        share: float, method: str, accuracy: float, taken: int = 0, right: float = np.nan
    ) -> None:
        low, high = metrics.interval(round(accuracy * len(held_out)), len(held_out))
        rows.append([share, method, accuracy, low, high, taken, right])
        extra = f", {taken} predictions learned, {right:.1%} of them right" if taken else ""
        print(
            f"{share:.3g} of the labels, {method}: {accuracy:.4f} ({low:.4f} to {high:.4f}){extra}",
            flush=True,
        )

    for share in cfg.shares:
        known = torch.from_numpy(stratified(train.labels.numpy(), share, cfg.seed, least=1))
        note(share, "clusters", clusters(train, known, held_out, cfg.clusters, cfg.seed))
        labelled, others = train.take(known), train.take(~known)
        faces, taken, right = labelled, 0, np.nan
        for number in range(cfg.rounds + 1):
            name = f"round {number}" if number else "supervised only"
            folder = out / f"{share:g} {name}".replace(" ", "_")
            seen = replace(data, splits=data.splits | {"train": faces, "validation": held_out})
            note(share, name, train_in(folder, cfg, device, seen), taken, right)
            if number < cfg.rounds:
                found = label(
                    Checkpoint.open(folder / "best.pt", config.modules_named(cfg)),
                    others,
                    cfg.train.batch_size,
                    device,
                    "none",
                )
                chosen, said = choose(found, cfg.portion * (number + 1) / cfg.rounds)
                own = others.take(chosen)
                taken, right = len(own), (said == own.labels).double().mean().item()
                images, labels = (
                    torch.cat([labelled.images, own.images]),
                    torch.cat([labelled.labels, said]),
                )
                faces = Faces(images, labels, labelled.ids + own.ids)
    table = pd.DataFrame(
        rows, columns=["share", "method", "accuracy", "low", "high", "predictions", "right"]
    )
    write_text(out / "selftrain.csv", table.to_csv(index=False))
    print(
        f"open:\n  {plots.shares(table, out / f'selftrain.{cfg.format}')}\n  "
        f"{out / 'selftrain.csv'}"
    )


def choose(probabilities: Tensor, portion: float) -> tuple[Tensor, Tensor]:
    """Positions and labels of the surest predictions, float N×C, that portion of those of every
    class (class-balanced self-training, Zou et al. 2018, arXiv:1810.07911): by confidence alone,
    the common classes would take all.
    """
    confidence, said = probabilities.max(1)
    classes = pd.Series(confidence.numpy()).groupby(said.numpy())
    sure = (
        classes.rank(method="first", ascending=False)
        <= (portion * classes.transform("size")).round()
    )
    chosen = torch.from_numpy(np.flatnonzero(sure))
    return chosen, said[chosen]


def clusters(train: Faces, known: Tensor, held_out: Faces, count: int, seed: int) -> float:
    """Validation accuracy when every face gets the commonest known label of its cluster, by k-means
    on the principal components of all pixels; that of all known labels where a cluster has none.
    """
    pixels = [
        faces.images.flatten(1).numpy().astype(np.float32) / 255 for faces in (train, held_out)
    ]
    components = PCA(min(COMPONENTS, len(train)), random_state=seed).fit(pixels[0])
    points, others = (components.transform(part) for part in pixels)
    found = MiniBatchKMeans(count, random_state=seed, n_init=3).fit(points)
    votes = np.zeros((count, int(train.labels.max()) + 1), int)
    np.add.at(votes, (found.labels_[known.numpy()], train.labels[known].numpy()), 1)
    votes[votes.sum(1) == 0] = votes.sum(0)
    return float((votes.argmax(1)[found.predict(others)] == held_out.labels.numpy()).mean())
