"""fer report: a run in, pictures and tables under its report/ out."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fer import CLASSES, UserError, config, metrics, plots
from fer.data.faces import Faces
from fer.run import checkpoint_config, load_checkpoint, newest, open_data, restore, write_text
from fer.runtime import pick_device
from fer.summary import totals


def run(values: dict, typed: list[str]) -> None:
    cfg = config.check("report", values)
    if isinstance(cfg.run, list):
        compare([Path(name) for name in cfg.run], Path(cfg.out or "comparison"))
        return
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

    out = make_folder(Path(cfg.out) if cfg.out else folder / "report")
    write_text(out / "classification_report.txt", table)
    plots.curves(history, out / "curves.png")
    title = f"{settings.name}: {accuracy:.1%} of {len(faces)} validation faces"
    plots.confusion(matrix.numpy(), CLASSES, out / "confusion.png", title)
    plots.per_class_bars(metrics.classification_report(matrix, CLASSES), out / "per_class.png")
    draw_samples(faces, predicted, cfg.samples, cfg.seed, out / "samples.png")

    print(f"{title}, macro F1 {metrics.macro_f1(matrix):.4f}\n\n{table}\nopen:")
    for name in ("curves.png", "confusion.png", "per_class.png", "samples.png", "classification_report.txt"):
        print(f"  {out / name}")


def compare(folders: list[Path], out: Path) -> None:
    """Several runs side by side: their curves over each other, a table, and in which settings they differ."""
    names, histories, rows, settings = [], {}, [], []
    for folder in folders:
        contents = load_checkpoint(folder / "best.pt")
        own = checkpoint_config(contents, folder / "best.pt")
        history = read_history(folder)
        best = history.loc[history["val_accuracy"].idxmax()]
        size = totals(config.build("model", own.model))
        names.append(own.name if own.name not in names else str(folder))
        histories[names[-1]] = history
        settings.append(own.model_dump(exclude={"run", "name"}))
        rows.append(
            {
                "run": names[-1],
                "parameters": size["parameters"],
                "multiply_adds": size["multiply-adds"],
                "seconds_per_epoch": round(history["seconds"].median(), 1),
                "epochs": len(history),
                "best_epoch": int(best["epoch"]),
                "val_accuracy": round(best["val_accuracy"], 4),
                "val_macro_f1": round(best["val_macro_f1"], 4),
            }
        )
    make_folder(out)
    table = pd.DataFrame(rows)
    write_text(out / "comparison.csv", table.to_csv(index=False))
    plots.compare(histories, out / "curves.png")
    print(table.to_string(index=False))
    for name, other in zip(names[1:], settings[1:], strict=True):
        keys = config.difference(settings[0], other)
        print(f"{name} differs from {names[0]} in {', '.join(keys) or 'nothing'}")
    print(f"open:\n  {out / 'curves.png'}\n  {out / 'comparison.csv'}")


def make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); choose another with out=") from None
    return path


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
