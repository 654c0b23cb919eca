"""fer report: a run in, pictures, the numbers behind them and one page that holds all out.

All comes from the run folder, which keeps what the best weights said of the validation faces; only
the pictures that show faces need the data, and are left out without it. No network runs here, and
how a figure looks is plots' business. Several runs are comparison.py's.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fer import UserError, config, metrics, plots, tensorboard
from fer.checkpoint import Checkpoint, find_checkpoints
from fer.comparison import compare
from fer.layer_table import build, table_text
from fer.page import Part, write_page
from fer.run import LOOKS, TIMES, make_folder, read_history, write_text

# Faces of a class, below which the share of a mistake says little: disgust has 56 in PublicTest.
FEW = 20
OVERFITTED = 0.15  # by how much training accuracy must be above validation's to be named


def run(cfg: config.ReportConfig, typed: list[str]) -> None:
    folders = list(dict.fromkeys(path.parent for path in find_checkpoints(cfg.run)))
    if len(folders) > 1 or isinstance(cfg.run, list):
        compare(folders, make_folder(Path(cfg.out or "comparison")), cfg.format, cfg.trust)
        return
    folder = folders[0]
    best = Checkpoint.open(folder / "best.pt", cfg.trust)
    history = read_history(folder, best.classes)
    settings, found, epoch = (
        best.settings,
        best.contents.get("validation"),
        best.contents.get("epoch"),
    )
    if not found or type(epoch) is not int:
        raise UserError(
            f"{best.path}: holds no validation predictions; use a best.pt written by fer train"
        )
    logits, labels = found["logits"].float(), found["labels"].long()
    classes = tuple(best.classes)
    matrix = metrics.confusion(logits.argmax(1), labels, len(classes))
    title = f"{settings.name}: {metrics.accuracy(matrix):.1%} of {len(labels)} validation faces"
    scored, score_names, absent = without_absent(matrix, classes)
    table, report = (
        metrics.report_text(scored, score_names),
        metrics.classification_report(scored, score_names),
    )
    mistakes = mistakes_in_words(matrix, classes)
    faces = faces_parts(best, cfg, logits, labels)
    out = make_folder(Path(cfg.out or folder / "report"))
    write_text(out / "classification_report.txt", table)

    recalls = history.filter(regex="^epoch$|^val_recall_")
    driven = [
        name for name in history if name not in TIMES and not name.startswith(("train_", "val_"))
    ]
    parts = [
        Part("Loss and accuracy", (), "curves", partial(plots.curves, history), history),
        Part(
            "Confusion",
            (mistakes,),
            "confusion",
            partial(plots.confusion, matrix, classes, title=title),
            pd.DataFrame(matrix.numpy(), classes, classes).rename_axis("truth").reset_index(),
        ),
        Part(
            "Precision, recall and F1",
            absent,
            "per_class",
            partial(plots.per_class_bars, report),
            pd.DataFrame(report).T.drop("accuracy").rename_axis("class").reset_index(),
            text=table,
        ),
        Part("Recall over time", (), "recalls", partial(plots.recalls, history, classes), recalls),
        calibration(logits, labels),
        *faces,
        *(
            Part(f"Explained: {file.stem}", name=f"explain_{file.stem}", draw=partial(copy, file))
            for file in explained(folder / "explain")
        ),
        Part(
            "Schedules",
            (),
            "schedules",
            partial(plots.schedules, history, driven),
            history[["epoch", *driven]],
        ),
        Part("Layers", text=table_text(settings.name, build(settings.model)), folded=True),
        Part("Settings", text=config.dump(settings), folded=True),
    ]
    if (environment := folder / "environment.yaml").is_file():
        parts.append(Part("Environment", text=environment.read_text(encoding="utf-8"), folded=True))
    macro = metrics.macro_f1(matrix)
    lead = (
        f"Macro F1 {macro:.4f}; best of {len(history)} epochs: {epoch}.",
        "These faces chose the epoch too, so their accuracy is a little too good.",
        *private_looks(folder),
        *validated_on_test(settings),
        *overfitting(history, epoch),
        *one_class(matrix, classes),
    )
    write_page(out, title, lead, parts, cfg.format)
    tensorboard.show(folder, [out / f"{part.name}.png" for part in parts if part.draw])
    print(f"{title}, macro F1 {macro:.4f}\n\n{table}\n{mistakes}\nopen:\n  {out / 'index.html'}")


def without_absent(
    matrix: torch.Tensor, classes: tuple[str, ...]
) -> tuple[torch.Tensor, tuple[str, ...], tuple[str, ...]]:
    """The matrix and the names of the classes that occur as label or prediction, over which macro
    F1 is the mean, and a line that names the others.
    """
    occurs = (matrix.sum(0) + matrix.sum(1)) > 0
    if occurs.all() or occurs.sum() < 2:
        return matrix, classes, ()
    missing = [name for name, there in zip(classes, occurs, strict=True) if not there]
    kept = tuple(name for name, there in zip(classes, occurs, strict=True) if there)
    line = f"Neither label nor prediction of any face, and in no mean: {', '.join(missing)}."
    return matrix[occurs][:, occurs], kept, (line,)


def mistakes_in_words(matrix: torch.Tensor, classes: tuple[str, ...]) -> str:
    """The likeliest mistakes, of classes with enough faces for a share to mean something, and which
    have not.
    """
    support = metrics.per_class(matrix)[3]
    pairs = metrics.top_confusions(matrix, classes, 5, least=FEW)
    said = "; ".join(
        f"{truth} → {taken} {share:.0%} ({count})" for truth, taken, share, count in pairs
    )
    few = [
        f"{name} {count}" for name, count in zip(classes, support, strict=True) if 0 < count < FEW
    ]
    if few:
        said += ("; " if said else "") + f"too few faces to tell: {', '.join(few)}"
    return said


def private_looks(folder: Path) -> list[str]:
    """How often PrivateTest was looked at; nothing where it was not, as with data that has none."""
    noted = folder / LOOKS
    looks = len(noted.read_text(encoding="utf-8").splitlines()) - 1 if noted.is_file() else 0
    return (
        [f"PrivateTest was looked at {looks} time{'s' * (looks != 1)}: {noted}."] if looks else []
    )


def validated_on_test(settings: config.TrainConfig) -> list[str]:
    """In words, where data.validation=test let a held-out split choose the epoch."""
    if settings.data.get("validation") != "test":
        return []
    return [
        "data.validation=test: the test faces chose the epoch, so this accuracy says nothing of "
        "new faces."
    ]


def overfitting(history: pd.DataFrame, epoch: int) -> list[str]:
    """In words, where the network knows the training faces far better than others, by the last
    epoch.
    """
    last = history.iloc[-1]
    apart = last["train_accuracy"] - last["val_accuracy"]
    if apart < OVERFITTED:
        return []
    best = history.set_index("epoch")["val_accuracy"].get(epoch, last["val_accuracy"])
    return [
        f"Overfitting: in the last epoch training accuracy is {last['train_accuracy']:.1%}, "
        "validation accuracy "
        f"{last['val_accuracy']:.1%}. Of what it learned after epoch {epoch} ({best:.1%}) little "
        "holds for other "
        "faces. More augmentation (augment=strong), dropout, weight decay or a smaller network "
        "narrow this."
    ]


def one_class(matrix: torch.Tensor, classes: tuple[str, ...]) -> list[str]:
    """In words, where all faces are given one class."""
    said = (matrix.sum(0) > 0).nonzero().flatten().tolist()
    return (
        [f"All faces are called {classes[said[0]]}: the network has learned nothing."]
        if len(said) == 1
        else []
    )


def explained(folder: Path) -> list[Path]:
    """The pictures of fer explain, in the order in which they are read: faces first, then what
    layers respond to.
    """
    first = ["saliency", "ideal_faces"]
    last = len(first)
    order = {name: place for place, name in enumerate(first)}
    return sorted(folder.glob("*.png"), key=lambda file: (order.get(file.stem, last), file.stem))


def copy(file: Path, path: Path) -> Path:
    """A picture that fer explain has made, of one kind whatever the report's is."""
    return Path(shutil.copyfile(file, path.with_suffix(file.suffix)))


def calibration(logits: torch.Tensor, labels: torch.Tensor) -> Part:
    """How sure the network is against how right, on half of the faces, before and after a
    temperature that the other half chose.
    """
    chooses = torch.arange(len(labels)) % 2 == 0
    if len(labels) < 2:
        chooses = torch.ones_like(chooses)
    judges = ~chooses if len(labels) >= 2 else chooses
    temperature = metrics.temperature(logits[chooses], labels[chooses])
    panels, rows, errors = [], [], []
    for name, scale in (("as trained", 1.0), (f"temperature {temperature:.2f}", temperature)):
        probabilities = (logits[judges] / scale).softmax(1)
        bins = metrics.reliability(probabilities, labels[judges])
        errors.append(100 * metrics.ece(probabilities, labels[judges]))
        panels.append((f"{name}: ECE {errors[-1]:.1f} %", *bins))
        rows += [(scale, *row) for row in zip(*bins, strict=True)]
    sure = "too sure" if temperature > 1 else "not sure enough"
    lines = [
        f"Dividing the logits by a temperature of {temperature:.2f} minimizes the loss on every "
        "other validation face: "
        f"the network is {sure}. Both panels show the {int(judges.sum())} faces between them, "
        "which did not choose it."
    ]
    if errors[1] > errors[0]:
        lines.append(
            f"The calibration error does not fall ({errors[0]:.1f} % → {errors[1]:.1f} %): the "
            "temperature is chosen "
            "for the loss, and the error of so few faces varies by chance."
        )
    data = pd.DataFrame(rows, columns=["temperature", "confidence", "accuracy", "count"])
    return Part(
        "Calibration", tuple(lines), "calibration", partial(plots.reliability, panels), data
    )


def faces_parts(
    best: Checkpoint, cfg: config.ReportConfig, logits: torch.Tensor, labels: torch.Tensor
) -> list[Part]:
    """The most confident mistakes and some faces of every class; a line instead where the data is
    not at hand.
    """
    try:
        faces = best.data(cfg.data, whole=False).open("validation")
        judged_on = best.contents["validation"].get(
            "images", faces.hash
        )  # earlier versions did not note it
        if not torch.equal(faces.labels, labels) or faces.hash != judged_on:
            raise UserError(
                "the data is not what the run was validated on; name it with data.path="
            )
    except UserError as error:
        if cfg.data:
            raise
        return [Part("Faces", (f"left out: {error}",))]
    confidence, predicted = (column.numpy() for column in logits.softmax(1).double().max(1))
    table = pd.DataFrame(
        {"id": faces.ids, "prediction": predicted, "truth": labels, "confidence": confidence}
    )
    right, names = table["prediction"] == table["truth"], best.classes
    said = [f"{names[row.prediction]} {row.confidence:.0%}" for row in table.itertuples()]
    captions = np.where(
        right,
        said,
        [f"{name}\nlabel: {names[own]}" for name, own in zip(said, labels, strict=True)],
    )
    mistakes = table[~right].sort_values("confidence", ascending=False, kind="stable")[
        : cfg.samples
    ]
    chosen = table.iloc[samples(right.to_numpy(), labels.numpy(), cfg.samples, cfg.seed)]
    parts = []
    for title, name, rows in (
        ("Most confident mistakes", "mistakes", mistakes),
        ("Sample faces", "samples", chosen),
    ):
        at = rows.index
        draw = partial(plots.faces, faces.images[at].numpy(), captions[at], columns=7, ok=right[at])
        parts.append(Part(title, (), name, draw, rows))
    return parts


def samples(right: np.ndarray, truth: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` faces, half of them mistakes as far as there are any, ordered by their
    true class.
    """
    generator = np.random.default_rng(seed)
    wrong, good = (generator.permutation(np.flatnonzero(mask)) for mask in (~right, right))
    half = max(count // 2, count - len(good))
    chosen = np.concatenate([wrong[:half], good[: count - min(half, len(wrong))]])
    return chosen[np.argsort(truth[chosen], kind="stable")]
