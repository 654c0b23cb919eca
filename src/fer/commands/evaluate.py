"""fer evaluate: what checkpoints are worth on a labelled split, with intervals, paired tests and a
record of each look at PrivateTest. Knows predictions and labels; networks stay in predict.py.
"""

import statistics
import time

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from fer import UserError, config, metrics
from fer.checkpoint import Checkpoint
from fer.commands.predict import average, label_each, learned_faces, open_members, weigh
from fer.commands.summary import aligned
from fer.data.faces import Data
from fer.files import write_text
from fer.run import LOOKS, told


def run(cfg: config.EvaluateConfig, typed: list[str]) -> None:
    members = open_members(cfg.ckpt, cfg.trust)
    data = members[0].data(cfg.data, used_whole=cfg.split in (None, "all"))
    cfg.split = cfg.split or data.only or "validation"
    faces = data.open(cfg.split)
    if not faces.labelled:
        raise UserError(
            f"split={cfg.split}: has no labels to measure against; fer predict makes its submission"
        )
    training = learned_faces(members, faces, strict=not cfg.data)
    if "train" in data.splits:
        training = [data.open("train"), *training]
    fresh = torch.ones(len(faces), dtype=torch.bool)
    for learned in training:
        fresh &= ~faces.among(learned)
    own = [
        probabilities[:, : len(data.classes)] for probabilities in label_each(members, faces, cfg)
    ]
    found = dict(zip([str(member.path) for member in members], own, strict=True))
    if cfg.select and len(members) > 1:
        found[f"ensemble, {cfg.select}"] = average(own, weigh(members, cfg, data))

    rows, right = [["checkpoint", "accuracy", "95 % interval", "macro F1", "without copies"]], {}
    for name, probabilities in found.items():
        predicted = probabilities.argmax(1)
        right[name] = hits = predicted == faces.labels
        low, high = metrics.interval(int(hits.sum()), len(faces))
        macro = metrics.macro_f1(metrics.confusion(predicted, faces.labels, 8))
        alone = f"{hits[fresh].double().mean():.4f}" if fresh.any() else "-"
        rows.append(
            [name, f"{hits.double().mean():.4f}", f"{low:.4f} to {high:.4f}", f"{macro:.4f}", alone]
        )
    looks = []
    if cfg.split in data.shut:
        looks = [
            record(member, cfg, data, row[1])
            for member, row in zip(members, rows[1:], strict=False)
        ]
    several = len({str(member.settings.data) for member in members}) > 1 and not cfg.data
    whose = f" of {members[0].path}'s data" * several
    copies = (
        f"{len(faces)} faces of {cfg.split}{whose}; {int((~fresh).sum())} are exact copies of "
        "training faces"
    )
    print(*aligned(rows), copies, *seeds(members, right), *paired(right), *looks, sep="\n")


def seeds(members: list[Checkpoint], right: dict[str, Tensor]) -> list[str]:
    """Mean and deviation of the members that differ in nothing but the seed."""
    groups = config.over_seeds([member.settings for member in members])
    found = [
        [right[str(members[i].path)].double().mean().item() for i in group] for group in groups
    ]
    return [
        f"{len(own)} seeds: {statistics.mean(own):.4f} ± {statistics.stdev(own):.4f} (sd)"
        for own in found
    ]


def paired(right: dict[str, Tensor]) -> list[str]:
    """Each against the first by McNemar's test."""
    (first, base), *others = right.items()
    counts = [(name, int((hits & ~base).sum()), int((base & ~hits).sum())) for name, hits in others]
    return [
        f"{name} against {first}: right alone {won}, wrong alone {lost}, McNemar p = "
        f"{metrics.mcnemar(won, lost):.3g}"
        for name, won, lost in counts
    ]


def record(member: Checkpoint, cfg: config.EvaluateConfig, data: Data, accuracy: str) -> str:
    """Add this look to the run's record, and say the how-manieth it is."""
    folder, file = member.path.parent, member.path.parent / LOOKS
    look = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "split": cfg.split,
        "faces": len(data.open(str(cfg.split))),
    }
    look |= {
        "data_sha256": data.hash,
        "checkpoint": member.path.name,
        "tta": cfg.tta,
        "accuracy": accuracy,
    }
    with (
        told(f"{file}: cannot be written", "make the folder writable"),
        FileLock(folder / f".{LOOKS}.lock"),
    ):
        earlier = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        new = pd.DataFrame([look]).to_csv(index=False, header=not earlier).splitlines()
        write_text(file, "\n".join([*earlier, *new, ""]))
    return (
        f"look number {len(earlier) or 1} at {cfg.split} with {folder}: noted in {file}; report "
        "the first"
    )
