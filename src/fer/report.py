"""fer report: a run in, pictures and tables under its report/ out."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fer import CLASSES, UserError, config, metrics, plots
from fer.data.faces import Faces
from fer.run import checkpoint_config, load_checkpoint, newest, open_data, restore, write_text
from fer.runtime import pick_device


def run(values: dict, typed: list[str]) -> None:
    cfg = config.check("report", values)
    folder = Path(cfg.run) if cfg.run else newest("best.pt")
    contents = load_checkpoint(folder / "best.pt")
    settings = checkpoint_config(contents, folder / "best.pt")
    network = restore(contents, settings, folder / "best.pt", pick_device(cfg.device))
    faces = open_data(settings, cfg.data).open("validation")
    history = read_history(folder)

    predicted = network.logits(faces.images, cfg.batch_size, settings.train.precision).argmax(1).cpu()
    matrix = metrics.confusion(predicted, faces.labels)
    table = metrics.report_text(matrix, CLASSES)
    accuracy = metrics.accuracy(matrix)

    out = folder / "report"
    out.mkdir(exist_ok=True)
    write_text(out / "classification_report.txt", table)
    plots.curves(history, out / "curves.png")
    title = f"{settings.name}: {accuracy:.1%} of {len(faces)} validation faces"
    plots.confusion(matrix.numpy(), CLASSES, out / "confusion.png", title)
    plots.per_class_bars(metrics.classification_report(matrix, CLASSES), out / "per_class.png")
    draw_samples(faces, predicted, cfg.samples, cfg.seed, out / "samples.png")

    print(f"{title}, macro F1 {metrics.macro_f1(matrix):.4f}\n\n{table}\nopen:")
    for name in ("curves.png", "confusion.png", "per_class.png", "samples.png", "classification_report.txt"):
        print(f"  {out / name}")


def read_history(folder: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(folder / "history.csv")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'history.csv'}: cannot be read ({str(error).splitlines()[0]})") from None


def draw_samples(faces: Faces, predicted: torch.Tensor, count: int, seed: int, path: Path) -> None:
    """`count` faces, half of them mistakes as far as there are any, ordered by their true class."""
    right = (predicted == faces.labels).numpy()
    generator = np.random.default_rng(seed)
    wrong, good = (generator.permutation(np.flatnonzero(mask)) for mask in (~right, right))
    half = max(count // 2, count - len(good))
    chosen = np.concatenate([wrong[:half], good[: count - min(half, len(wrong))]])
    chosen = chosen[np.argsort(faces.labels.numpy()[chosen], kind="stable")]
    captions = [
        CLASSES[p] if p == t else f"{CLASSES[p]}\nis {CLASSES[t]}"
        for p, t in zip(predicted[chosen].tolist(), faces.labels[chosen].tolist(), strict=True)
    ]
    plots.faces(faces.images[chosen].numpy(), captions, right[chosen].tolist(), path, columns=7)
