"""fer evaluate: what checkpoints are worth on a labelled split, with intervals, paired tests and a record of each look
at PrivateTest."""

import csv
import io
import statistics
import time
from pathlib import Path

from fer import UserError, config, metrics
from fer.predict import average, label, open_members, weigh
from fer.run import open_data, write_text
from fer.runtime import pick_device
from fer.summary import aligned

RECORD = "evaluations.csv"  # in the run folder
HEADER = ["time", "split", "faces", "data_sha256", "checkpoint", "tta", "accuracy"]


def run(values: dict, typed: list[str]) -> None:
    cfg = config.check("evaluate", values)
    members = open_members(cfg.ckpt)
    data = open_data(members[0].settings, cfg.data)
    faces = data.open(cfg.split)
    if not faces.labelled:
        raise UserError(f"split={cfg.split}: has no labels to measure against; fer predict makes its submission")
    device = pick_device(cfg.device)
    fresh = ~faces.among(data.open("train"))
    found = {str(member.path): label(member, faces, cfg.batch_size, device, cfg.tta) for member in members}
    if cfg.select and len(members) > 1:
        weights = weigh(members, data.open("validation"), cfg)
        found[f"ensemble, {cfg.select}"] = average(list(found.values()), weights)

    rows, right = [["checkpoint", "accuracy", "95 % interval", "macro F1", "without copies"]], {}
    for name, probabilities in found.items():
        predicted = probabilities.argmax(1)
        right[name] = predicted == faces.labels
        low, high = metrics.interval(int(right[name].sum()), len(faces))
        macro = metrics.macro_f1(metrics.confusion(predicted, faces.labels, 8))
        accuracy, alone = (f"{hits.double().mean():.4f}" for hits in (right[name], right[name][fresh]))
        rows.append([name, accuracy, f"{low:.4f} to {high:.4f}", f"{macro:.4f}", alone])
    looks = [record(member.path, cfg, data.hash, len(faces), row[1]) for member, row in
             zip(members, rows[1:], strict=False)] if cfg.split in data.shut else []  # fmt: skip
    print("\n".join(aligned(rows)))
    print(f"{len(faces)} faces of {cfg.split}; {int((~fresh).sum())} are exact copies of training faces")
    for line in (*seeds(members, right), *paired(right), *looks):
        print(line)


def seeds(members, right: dict) -> list[str]:
    """Mean and deviation of the members that differ in nothing but the seed."""
    groups: dict[str, list[float]] = {}
    for member, hits in zip(members, right.values(), strict=False):
        recipe = config.dump(member.settings.model_copy(update={"seed": 0, "run": None, "resume": None}))
        groups.setdefault(recipe, []).append(hits.double().mean().item())
    return [
        f"{len(group)} seeds: {statistics.mean(group):.4f} ± {statistics.stdev(group):.4f} (sd)"
        for group in groups.values()
        if len(group) > 1
    ]


def paired(right: dict) -> list[str]:
    """Each against the first by McNemar's test."""
    (first, base), *others = right.items()
    lines = []
    for name, hits in others:
        won, lost = int((hits & ~base).sum()), int((base & ~hits).sum())
        p = metrics.mcnemar(won, lost)
        lines.append(f"{name} against {first}: right alone {won}, wrong alone {lost}, McNemar p = {p:.3g}")
    return lines


def record(path: Path, cfg, data_hash: str, faces: int, accuracy: str) -> str:
    """Add this look to the run's record, and say the how-manieth it is."""
    file = path.parent / RECORD
    earlier = file.read_text(encoding="utf-8") if file.is_file() else ",".join(HEADER) + "\n"
    line = io.StringIO()
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    csv.writer(line, lineterminator="\n").writerow([now, cfg.split, faces, data_hash, path.name, cfg.tta, accuracy])
    write_text(file, earlier + line.getvalue())
    return f"look number {earlier.count(chr(10))} at {cfg.split} with {path.parent}: noted in {file}; report the first"
