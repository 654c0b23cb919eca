"""fer selftrain: what unlabeled faces add. Networks learn from a share of the labels, then from
their own predictions, round by round; clusters of pixels are a baseline.
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
from fer.data.faces import Data, Faces, stratified
from fer.inference import Ensemble
from fer.run import output_folders, write_text
from fer.runtime import pick_device
from fer.text import percent
from fer.training.session import train_in

COMPONENTS = 50  # of the pixels, for the clusters
COLUMNS = ["share", "method", "accuracy", "low", "high", "predictions", "right"]


def run(cfg: config.SelftrainConfig, given_keys: list[str]) -> None:
    data, device = config.build("data", cfg.data), pick_device(cfg.device)
    train = replace(data.split("train"), targets=None)
    held_out = replace(data.split("validation"), targets=None)
    if cfg.clusters > len(train):
        raise UserError(
            f"clusters={cfg.clusters}: more than the {len(train)} faces to train on; set it lower"
        )
    out = Path(cfg.out)
    rows = []
    with output_folders(out):
        for share in cfg.shares:
            known = torch.from_numpy(stratified(train.labels.numpy(), share, cfg.seed, least=1))
            accuracy = cluster_accuracy(train, known, held_out, cfg.clusters, cfg.seed)
            rows.append(result(share, "clusters", accuracy, len(held_out)))
            rows += self_train(cfg, data, device, train, known, held_out, share, out)
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_text(out / "selftrain.csv", table.to_csv(index=False))
    picture = plots.shares(table, out / f"selftrain.{cfg.format}")
    print(f"open:\n  {picture}\n  {out / 'selftrain.csv'}")


def self_train(
    cfg: config.SelftrainConfig,
    data: Data,
    device: torch.device,
    train: Faces,
    known: Tensor,
    held_out: Faces,
    share: float,
    out: Path,
) -> list[list]:
    """Train on the faces whose labels are `known` (bool N), then in each round on these and on the
    network's surest predictions of the others; returns a row of results for each run.

    Each run has its folder in `out`: it is resumed if it was interrupted, and only read if
    it is complete.
    """
    labeled, unlabeled = train.take(known), train.take(~known)
    faces, taken, share_right = labeled, 0, np.nan
    rows = []
    for number in range(cfg.rounds + 1):
        method = f"round {number}" if number else "supervised only"
        folder = out / f"{share:g} {method}".replace(" ", "_")
        splits = data.splits | {"train": faces, "validation": held_out}
        accuracy = train_in(folder, cfg, device, replace(data, splits=splits))
        rows.append(result(share, method, accuracy, len(held_out), taken, share_right))
        if number == cfg.rounds:
            break
        trust = config.modules_named(cfg.model_dump())
        batch_size = cfg.train.batch_size
        best = Ensemble.open(str(folder / "best.pt"), device, batch_size, "none", trust)
        probabilities = best.label(unlabeled)
        positions, predicted = surest(probabilities, cfg.portion * (number + 1) / cfg.rounds)
        chosen = unlabeled.take(positions)
        taken = len(chosen)
        share_right = (predicted == chosen.labels).double().mean().item()
        faces = Faces(
            images=torch.cat([labeled.images, chosen.images]),
            labels=torch.cat([labeled.labels, predicted]),
            ids=labeled.ids + chosen.ids,
        )
    return rows


def result(
    share: float,
    method: str,
    accuracy: float,
    count: int,
    taken: int = 0,
    share_right: float = np.nan,
) -> list:
    """A row of the table, with the accuracy's 95 % interval on `count` faces; also prints it.

    taken: predictions that were used as labels. share_right: how many of them are right, 0 to 1.
    """
    low, high = metrics.interval(round(accuracy * count), count)
    line = f"{share:.3g} of the labels, {method}: {accuracy:.4f} ({low:.4f} to {high:.4f})"
    if taken:
        line += f", {taken} predictions learned, {percent(share_right, 1)} of them right"
    print(line, flush=True)
    return [share, method, accuracy, low, high, taken, share_right]


def surest(probabilities: Tensor, portion: float) -> tuple[Tensor, Tensor]:
    """Positions and classes of the most confident predictions among probabilities N×C: this portion
    of those of every class (class-balanced self-training, Zou et al. 2018, arXiv:1810.07911). By
    confidence alone, the common classes would take all.
    """
    confidence, predicted = probabilities.max(1)
    by_class = pd.Series(confidence.numpy()).groupby(predicted.numpy())
    rank = by_class.rank(method="first", ascending=False)
    wanted = (portion * by_class.transform("size")).round()
    positions = torch.from_numpy(np.flatnonzero(rank <= wanted))
    return positions, predicted[positions]


def cluster_accuracy(train: Faces, known: Tensor, held_out: Faces, count: int, seed: int) -> float:
    """Validation accuracy if every face gets the commonest known label of its cluster, by k-means
    on the principal components of the pixels. A cluster without known labels gets the commonest
    label of all.
    """
    train_pixels = train.images.flatten(1).numpy().astype(np.float32) / 255
    held_out_pixels = held_out.images.flatten(1).numpy().astype(np.float32) / 255
    components = PCA(min(COMPONENTS, len(train)), random_state=seed).fit(train_pixels)
    clusters = MiniBatchKMeans(count, random_state=seed, n_init=3)
    clusters.fit(components.transform(train_pixels))
    votes = np.zeros((count, int(train.labels.max()) + 1), int)
    np.add.at(votes, (clusters.labels_[known.numpy()], train.labels[known].numpy()), 1)
    votes[votes.sum(1) == 0] = votes.sum(0)
    cluster_labels = votes.argmax(1)
    predicted = cluster_labels[clusters.predict(components.transform(held_out_pixels))]
    return float((predicted == held_out.labels.numpy()).mean())
