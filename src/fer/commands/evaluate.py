"""fer evaluate: accuracy of checkpoints on a labeled split, with intervals and paired tests, and a
log of every evaluation on PrivateTest.
"""

import statistics
import time

import pandas as pd
from filelock import FileLock
from torch import Tensor

from fer import UserError, config, metrics
from fer.checkpoint import Checkpoint
from fer.data.faces import Data, Faces
from fer.files import regular, write_text
from fer.inference import Ensemble, average, may_hold_private_test, training_faces_among
from fer.run import PRIVATE_LOG, make_folder, reporting_os_errors
from fer.runtime import pick_device
from fer.text import aligned, counted, wrapped

HEADER = ["checkpoint", "accuracy", "95 % interval", "macro F1", "without copies"]


def run(cfg: config.EvaluateConfig, given_keys: list[str]) -> None:
    ensemble = Ensemble.open(cfg.ckpt, pick_device(cfg.device), cfg.batch_size, cfg.tta, cfg.trust)
    members = ensemble.members
    data = ensemble.data(cfg.data, used_whole=cfg.split in (None, "all"))
    split = cfg.split or data.only_split or "validation"
    faces = data.split(split)
    if not faces.labeled:
        raise UserError(
            f"split={split}: has no labels, so there is no accuracy; "
            "fer predict writes a submission for it"
        )
    is_copy = copies_of_training(ensemble, data, faces, strict=not cfg.data)
    parts = [part[:, : len(data.classes)] for part in ensemble.label_by_each(faces)]
    predictions = {}
    for name, part in zip(ensemble.names, parts, strict=True):
        predictions[name] = part.argmax(1)
    if cfg.select and len(members) > 1:
        ensemble, table = ensemble.weighted(cfg.select, data, own_data=cfg.data is None)
        print(table)
        mean = average(parts, ensemble.weights)
        predictions[f"ensemble, {cfg.select}"] = mean.argmax(1)

    rows = [
        [name, *scores(predicted, faces.labels, is_copy)] for name, predicted in predictions.items()
    ]
    log_lines = []
    if may_hold_private_test(members, data, split, faces):
        for member, row in zip(members, rows[: len(members)], strict=True):
            log_lines.append(log_evaluation(member, split, cfg.tta, data, accuracy=row[1]))
    right = {name: predicted == faces.labels for name, predicted in predictions.items()}
    for line in aligned([HEADER, *rows]):
        print(line)
    print(copies_line(members, faces, split, is_copy, typed_data=bool(cfg.data)))
    for line in [*seed_lines(members, right), *paired_lines(right), *log_lines]:
        print(line)


def copies_of_training(ensemble: Ensemble, data: Data, faces: Faces, strict: bool) -> Tensor:
    """Bool N: which faces are exact copies of training faces, of this data or of a member's own."""
    consequence = "only copies of this data's training faces are counted"
    is_copy = training_faces_among(faces, ensemble.members, strict, consequence)
    if "train" in data.splits:
        is_copy |= faces.among(data.splits["train"])
    return is_copy


def scores(predicted: Tensor, labels: Tensor, is_copy: Tensor) -> list[str]:
    """Accuracy, its 95 % interval, macro F1, accuracy without copies: the cells of a row."""
    right = predicted == labels
    low, high = metrics.interval(int(right.sum()), len(right))
    classes = int(max(predicted.max(), labels.max())) + 1
    macro_f1 = metrics.macro_f1(metrics.confusion(predicted, labels, classes))
    without_copies = "-"
    if not is_copy.all():
        without_copies = f"{right[~is_copy].double().mean():.4f}"
    accuracy = f"{right.double().mean():.4f}"
    return [accuracy, f"{low:.4f} to {high:.4f}", f"{macro_f1:.4f}", without_copies]


def copies_line(
    members: list[Checkpoint], faces: Faces, split: str, is_copy: Tensor, typed_data: bool
) -> str:
    """How many faces there are, whose, and how many of them are copies."""
    sources = {str(member.settings.data) for member in members}
    whose = ""
    if len(sources) > 1 and not typed_data:
        whose = f" of {members[0].name}'s data"
    return (
        f"{counted(len(faces), 'face')} of {split}{whose}, {int(is_copy.sum()):,} of them exact "
        "copies of training faces"
    )


def seed_lines(members: list[Checkpoint], right: dict[str, Tensor]) -> list[str]:
    """Mean and standard deviation over members that differ in nothing but the seed."""
    lines = []
    groups = config.over_seeds([member.settings for member in members])
    for group in groups:
        names = [members[i].name for i in group]
        accuracies = [right[name].double().mean().item() for name in names]
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        line = f"{len(group)} seeds: {mean:.4f} ± {deviation:.4f} (sd)"
        if len(groups) > 1:
            line += f" of {', '.join(names)}"
        lines.append(wrapped(line))
    return lines


def paired_lines(right: dict[str, Tensor]) -> list[str]:
    """A line for each other row: McNemar's test against the first."""
    (first, baseline), *others = right.items()
    lines = []
    for name, hits in others:
        won = int((hits & ~baseline).sum())
        lost = int((baseline & ~hits).sum())
        p = metrics.mcnemar(won, lost)
        lines.append(
            f"{name} against {first}: right alone {won}, wrong alone {lost}, McNemar p = {p:.3g}"
        )
    return lines


def log_evaluation(member: Checkpoint, split: str, tta: str, data: Data, accuracy: str) -> str:
    """Add this evaluation to the log in the run folder; returns a line with its number."""
    folder = make_folder(member.folder)
    file = folder / PRIVATE_LOG
    evaluation = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "split": split,
        "faces": len(data.split(split)),
        "data_sha256": data.hash,
        "checkpoint": member.path.name,
        "tta": tta,
        "accuracy": accuracy,
    }
    with (
        reporting_os_errors(f"{file}: cannot be written", "make the folder writable"),
        FileLock(folder / f".{PRIVATE_LOG}.lock"),
    ):
        earlier = []
        if file.exists():
            earlier = regular(file).read_text(encoding="utf-8", errors="replace").splitlines()
        new = pd.DataFrame([evaluation]).to_csv(index=False, header=not earlier).splitlines()
        write_text(file, "\n".join([*earlier, *new, ""]))
    number = len(earlier) or 1
    return f"evaluation {number} of {folder} on {split}, logged in {file}; report the first"
