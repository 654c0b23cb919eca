"""fer predict: a checkpoint and a split of faces in, a submission out."""

from pathlib import Path

import pandas as pd
import torch

from fer import CLASSES, UserError, config, metrics
from fer.data.faces import Data, Faces
from fer.run import checkpoint_config, find_checkpoint, load_checkpoint, open_data, restore, write_csv
from fer.runtime import memory_named, pick_device


def run(values: dict, typed: list[str]) -> None:
    cfg = config.check("predict", values)
    path = find_checkpoint(cfg.ckpt)
    contents = load_checkpoint(path)
    settings = checkpoint_config(contents, path)
    for target in filter(None, (cfg.out, cfg.probs)):
        if Path(target).is_dir() or not Path(target).absolute().parent.is_dir():
            raise UserError(f"{target}: not a place for a file; name a file in a folder that exists")
    device = pick_device(cfg.device)
    network = restore(contents, settings, path, device)
    data = open_data(settings, cfg.data)
    split, faces = choose_split(data, cfg.split)
    header, ids, order = sample_order(cfg.sample, faces) if cfg.sample else (cfg.columns, faces.ids, None)
    faces = faces if order is None else faces.take(order)

    with memory_named(device, f"batch_size={cfg.batch_size}"):
        probabilities = network.logits(faces.images, cfg.batch_size, settings.train.precision).softmax(1).cpu()
    labels = probabilities.argmax(1)
    if cfg.probs:
        rows = ([i, *(f"{p:.6f}" for p in row)] for i, row in zip(ids, probabilities.tolist(), strict=True))
        write_csv(cfg.probs, [header[0], *CLASSES], rows)
    write_csv(cfg.out, header, zip(ids, labels.tolist(), strict=True))

    print(f"{len(faces)} faces of {split} labelled by {path}: {cfg.out}" + (f", {cfg.probs}" if cfg.probs else ""))
    if split in data.shut:
        print(f"no accuracy is shown: {split} holds, or may hold, PrivateTest")
    elif faces.labelled:
        matrix = metrics.confusion(labels, faces.labels)
        print(f"accuracy {metrics.accuracy(matrix):.4f}, macro F1 {metrics.macro_f1(matrix):.4f} on {split}")


def choose_split(data: Data, named: str | None) -> tuple[str, Faces]:
    """The split that was named, else the one without labels."""
    name = named or data.unlabelled
    if name is None:
        raise UserError(f"this data has no split without labels; name one: split={'|'.join(data.splits)}")
    return name, data.open(name)


def sample_order(path: str, faces: Faces) -> tuple[list[str], list[str], torch.Tensor | None]:
    """Header and ids of a sample submission, and the positions of `faces` in its order (None: as they come, where the
    sample counts in its own way)."""
    try:
        sample = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"sample={path}: cannot be read as CSV ({str(error).splitlines()[0]})") from None
    if sample.shape[1] < 2 or len(sample) != len(faces):
        raise UserError(
            f"sample={path}: has {sample.shape[1]} columns and {len(sample)} rows; needed are 2 columns and a row for "
            f"each of the {len(faces)} faces"
        )
    ids = sample.iloc[:, 0].tolist()
    position = {name: i for i, name in enumerate(faces.ids)}
    same = len(position) == len(ids) and set(position) == set(ids)
    return list(sample.columns[:2]), ids, torch.tensor([position[i] for i in ids]) if same else None
