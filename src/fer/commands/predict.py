"""fer predict: label the faces of a split, or of photos, and write a submission."""

from os.path import realpath  # unlike Path.resolve, it accepts links that lead in a circle
from pathlib import Path

import torch
from torch import Tensor

from fer import UserError, config, metrics, photos
from fer.checkpoint import BUILTIN, use_builtin
from fer.data.faces import Faces
from fer.data.readers.classes import listed
from fer.inference import Ensemble, may_hold_private_test, training_faces_among
from fer.run import output_folders, refuse_overwriting, tell_if_replaced, write_csv
from fer.runtime import pick_device
from fer.submission import Submission, as_sampled
from fer.text import counted, wrapped

PHOTO_KEYS = ("crop", "smallest", "ema")  # keys that are about photos and videos alone


def run(cfg: config.PredictConfig, given_keys: list[str]) -> None:
    device = pick_device(cfg.device)
    ckpt = BUILTIN if cfg.input is not None and use_builtin(cfg.ckpt) else cfg.ckpt
    ensemble = Ensemble.open(ckpt, device, cfg.batch_size, cfg.tta, cfg.trust)
    out = Path(cfg.out or ("faces.csv" if cfg.input is not None else "submission.csv"))
    check_targets(ensemble, [str(out), cfg.probs])
    with output_folders(*(Path(target).parent for target in (out, cfg.probs) if target)):
        if cfg.input is not None:
            label_photos(cfg, given_keys, ensemble, out)
            return
        for key in PHOTO_KEYS:
            if key in given_keys:
                raise UserError(
                    f"{key}: applies to photos only; name a photo or a folder with input="
                )
        label_split(cfg, ensemble, out)


def label_photos(
    cfg: config.PredictConfig, given_keys: list[str], ensemble: Ensemble, out: Path
) -> None:
    """Label the photos, the video or the camera of `input=`, and write the table `out`."""
    ensemble, table = ensemble.weighted(cfg.select)
    print_if_any(table)
    photos.run(
        str(cfg.input),
        out,
        cfg.crop,
        cfg.smallest,
        cfg.ema,
        given_keys,
        ensemble.classes,
        ensemble.label,
        ensemble.face_size,
    )


def label_split(cfg: config.PredictConfig, ensemble: Ensemble, out: Path) -> None:
    """Label the faces of a split, and write the table `out`."""
    data = ensemble.data(cfg.data, used_whole=cfg.split in (None, "all"))
    split = cfg.split or data.unlabeled_split or data.only_split
    if split is None:
        raise UserError(
            f"this data has no split without labels; choose one: split={'|'.join(data.splits)}"
        )
    faces = data.split(split)
    submission = Submission(cfg.columns, faces.ids, faces)
    if cfg.sample:
        submission = as_sampled(cfg.sample, faces, len(ensemble.classes))
    faces = submission.faces

    ensemble, table = ensemble.weighted(cfg.select, data, own_data=cfg.data is None)
    print_if_any(table)
    # A network of 8 classes leaves the last one out on data of 7.
    left_out = ensemble.classes[len(data.classes) :]
    if left_out:
        print(
            f"{', '.join(left_out)}: not predicted, since the data has {len(data.classes)} classes"
        )
    probabilities = ensemble.label(faces)[:, : len(data.classes)]
    predicted = probabilities.argmax(1)
    tell_if_replaced(out)
    if cfg.probs:
        write_probabilities(cfg.probs, submission, probabilities, ensemble.classes)
    submission.write(str(out), predicted.tolist())

    written = f"{out}, {cfg.probs}" if cfg.probs else f"{out}"
    print(f"{counted(len(faces), 'face')} of {split} labeled by {described(ensemble)}: {written}")
    print(wrapped(f"labels: {listed([f'{i} {name}' for i, name in enumerate(data.classes)])}"))
    if faces.labeled and may_hold_private_test(ensemble.members, data, split, faces):
        print(
            f"no accuracy is shown: {split} contains, or may contain, PrivateTest; fer evaluate "
            "shows and logs it"
        )
    elif faces.labeled:
        print_accuracy(ensemble, faces, predicted, split, len(data.classes))


def check_targets(ensemble: Ensemble, targets: list[str | None]) -> None:
    """Refuse to write over a checkpoint, a run's file or a folder, or twice to one file."""
    taken = {realpath(member.path) for member in ensemble.members}
    for target in targets:
        if not target:
            continue
        if realpath(target) in taken:
            raise UserError(f"{target}: is the checkpoint, or is named twice; choose another name")
        taken.add(realpath(target))
        if Path(target).is_dir():
            raise UserError(f"{target}: is a folder; name a file in it")
    refuse_overwriting(*targets)


def print_if_any(text: str) -> None:
    if text:
        print(text)


def write_probabilities(
    path: str, submission: Submission, probabilities: Tensor, classes: list[str]
) -> None:
    """Write a row for each face: its id and the probability of each class."""
    rows = []
    for face_id, row in zip(submission.ids, probabilities.tolist(), strict=True):
        rows.append([face_id, *(f"{probability:.6f}" for probability in row)])
    names = classes[: probabilities.shape[1]]
    write_csv(path, [submission.id_column, *names], rows)


def described(ensemble: Ensemble) -> str:
    """The name of the only checkpoint with a weight, or the number of such checkpoints."""
    count = int(ensemble.weights.count_nonzero())
    if count > 1:
        return f"{count} checkpoints"
    return ensemble.names[int(ensemble.weights.argmax())]


def print_accuracy(
    ensemble: Ensemble, faces: Faces, predicted: Tensor, split: str, classes: int
) -> None:
    """Accuracy and macro F1 on labeled faces; with test-time augmentation, also without it."""
    consequence = "they may be among these faces"
    training_faces_among(faces, ensemble.members, strict=False, consequence=consequence)  # prints
    matrix = metrics.confusion(predicted, faces.labels, classes)
    accuracy, macro_f1 = metrics.accuracy(matrix), metrics.macro_f1(matrix)
    print(f"accuracy {accuracy:.4f}, macro F1 {macro_f1:.4f} on {split}")
    if ensemble.tta != "none":
        plain = ensemble.with_tta("none").label(faces)[:, :classes].argmax(1)
        without: torch.Tensor = (plain == faces.labels).double().mean()
        print(f"without tta: {without.item():.4f}")
