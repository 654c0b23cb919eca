"""fer report: one page about a run, with its pictures and the numbers behind them, from its run
folder. Only pictures of faces need the data. For several runs see comparison.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fer import UserError, config, metrics, plots, tensorboard
from fer.checkpoint import BUILTIN_FILE, Checkpoint, find_checkpoints
from fer.comparison import compare
from fer.data.faces import Faces
from fer.files import write, write_text
from fer.layer_table import build, table_text
from fer.page import Part, refuse_foreign_page, write_page
from fer.run import PRIVATE_LOG, TIMES, output_folders, read_history
from fer.text import counted, percent

# In a class of fewer faces, the share of a mistake says little: disgust has 56 in PublicTest.
FEW = 20
OVERFITTED = 0.15  # training accuracy minus validation accuracy that is called overfitting


def run(cfg: config.ReportConfig, given_keys: list[str]) -> None:
    checkpoints = find_checkpoints(cfg.run)
    if BUILTIN_FILE in checkpoints:
        raise UserError(
            "run=builtin: the built-in network has no run folder, and so no report; fer predict, "
            "evaluate, explain, export and app accept ckpt=builtin"
        )
    run_folders = list(dict.fromkeys(path.parent for path in checkpoints))
    if len(run_folders) > 1 or isinstance(cfg.run, list):
        out = Path(cfg.out or "comparison")
        refuse_foreign_page(out)
        with output_folders(out):
            compare(run_folders, out, cfg.format, cfg.trust)
    else:
        out = Path(cfg.out or run_folders[0] / "report")
        refuse_foreign_page(out)
        with output_folders(out):
            report(run_folders[0], out, cfg)


def report(folder: Path, out: Path, cfg: config.ReportConfig) -> None:
    """Write the page of the run in `folder` into the folder `out`, and print its main figures."""
    result = Result.open(folder, cfg.trust)
    parts = [
        *result_parts(result),
        *face_parts(result, cfg),
        *explain_parts(folder / "explain"),
        *settings_parts(result),
    ]
    write_text(out / "classification_report.txt", result.table)
    write_page(out, result.title, lead_lines(result), parts, cfg.format)
    tensorboard.show(folder, [out / f"{part.name}.png" for part in parts if part.draw])

    print(f"{result.title}, macro F1 {result.macro_f1:.4f}\n")
    print(result.table)
    print(mistakes_line(result.confusion, result.classes))
    print(f"open:\n  {out / 'index.html'}")


@dataclass(frozen=True)
class Result:
    """What a run has reached: its best checkpoint, whose logits (float32 N×C) and labels (int64 N)
    are of the validation faces, and its history.
    """

    folder: Path
    best: Checkpoint
    history: pd.DataFrame
    epoch: int  # of the best weights
    logits: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def open(cls, folder: Path, trust: list[str]) -> "Result":
        best = Checkpoint.open(folder / "best.pt", trust)
        history = read_history(folder, best.classes)
        validation, epoch = best.contents.get("validation"), best.contents.get("epoch")
        if not validation or type(epoch) is not int:
            raise UserError(
                f"{best.path}: holds no validation predictions; use a best.pt written by fer train"
            )
        logits, labels = validation["logits"].float(), validation["labels"].long()
        return cls(folder, best, history, epoch, logits, labels)

    @property
    def settings(self) -> config.TrainConfig:
        return self.best.settings

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.best.classes)

    @cached_property
    def confusion(self) -> torch.Tensor:
        return metrics.confusion(self.logits.argmax(1), self.labels, len(self.classes))

    @property
    def macro_f1(self) -> float:
        return metrics.macro_f1(self.confusion)

    @property
    def title(self) -> str:
        accuracy = metrics.accuracy(self.confusion)
        faces = counted(len(self.labels), "validation face")
        return f"{self.settings.name}: {percent(accuracy, 1)} of {faces}"

    @cached_property
    def occurring(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The confusion matrix and the names of the classes that occur as a label or a prediction,
        over which macro F1 is the mean; of all classes if only one occurs.
        """
        occurs = (self.confusion.sum(0) + self.confusion.sum(1)) > 0
        if occurs.sum() < 2:
            return self.confusion, self.classes
        names = [name for name, there in zip(self.classes, occurs, strict=True) if there]
        return self.confusion[occurs][:, occurs], tuple(names)

    @property
    def absent(self) -> list[str]:
        return [name for name in self.classes if name not in self.occurring[1]]

    @property
    def table(self) -> str:
        """Precision, recall and F1 of each class, as text."""
        return metrics.report_text(*self.occurring)


def lead_lines(result: Result) -> tuple[str, ...]:
    """The sentences below the title."""
    epochs = counted(len(result.history), "epoch")
    lines = [
        f"Macro F1 {result.macro_f1:.4f}; best of {epochs}: {result.epoch}.",
        "These faces also chose the epoch, so their accuracy is slightly optimistic.",
        private_test_line(result.folder),
        test_validation_line(result.settings),
        overfitting_line(result.history, result.epoch),
        one_class_line(result.confusion, result.classes),
    ]
    return tuple(line for line in lines if line)


def result_parts(result: Result) -> list[Part]:
    """Curves, confusion, scores of classes and calibration."""
    history, classes, confusion = result.history, result.classes, result.confusion
    counts = pd.DataFrame(confusion.numpy(), classes, classes).rename_axis("truth").reset_index()
    scores = metrics.classification_report(*result.occurring)
    score_table = pd.DataFrame(scores).T.drop("accuracy").rename_axis("class").reset_index()
    absent: tuple[str, ...] = ()
    if result.absent:
        names = ", ".join(result.absent)
        absent = (f"Neither a label nor a prediction of any face, so in no mean: {names}.",)
    return [
        Part("Loss and accuracy", (), "curves", partial(plots.curves, history), history),
        Part(
            "Confusion",
            (mistakes_line(confusion, classes),),
            "confusion",
            partial(plots.confusion, confusion, classes, title=result.title),
            counts,
        ),
        Part(
            "Precision, recall and F1",
            absent,
            "per_class",
            partial(plots.per_class_bars, scores),
            score_table,
            text=result.table,
        ),
        Part(
            "Recall over time",
            (),
            "recalls",
            partial(plots.recalls, history, classes),
            history[["epoch", *(f"val_recall_{name}" for name in classes)]],
        ),
        calibration(result.logits, result.labels),
    ]


def explain_parts(folder: Path) -> list[Part]:
    """The pictures of fer explain: those of faces first, then those of layers."""
    first = ["saliency", "ideal_faces"]
    files = [folder / f"{stem}.png" for stem in first]
    others = [file for file in folder.glob("*.png") if file.stem not in first]
    files += sorted(others, key=lambda file: file.stem)
    parts = []
    for file in files:
        if file.is_file():
            draw = partial(copy_picture, file)
            parts.append(Part(f"Explained: {file.stem}", name=f"explain_{file.stem}", draw=draw))
    return parts


def copy_picture(file: Path, path: Path) -> Path:
    """Copy a picture of fer explain, which keeps its format, to `path`."""
    picture = path.with_suffix(file.suffix)
    write(picture, lambda copy: copy.write(file.read_bytes()))
    return picture


def settings_parts(result: Result) -> list[Part]:
    """Schedules, layers, settings and the machine."""
    history, settings = result.history, result.settings
    scheduled = []
    for name in history:
        if name not in TIMES and not name.startswith(("train_", "val_")):
            scheduled.append(name)
    draw = partial(plots.schedules, history, scheduled)
    layers = table_text(settings.name, build(settings.model))
    parts = [
        Part("Schedules", (), "schedules", draw, history[["epoch", *scheduled]]),
        Part("Layers", text=layers, folded=True),
        Part("Settings", text=config.dump(settings), folded=True),
    ]
    environment = result.folder / "environment.yaml"
    if environment.is_file():
        text = environment.read_text(encoding="utf-8", errors="replace")
        parts.append(Part("Environment", text=text, folded=True))
    return parts


def mistakes_line(confusion: torch.Tensor, classes: tuple[str, ...]) -> str:
    """The most frequent mistakes, and the classes with too few faces to tell."""
    phrases = []
    for truth, predicted, share, count in metrics.top_confusions(confusion, classes, 5, least=FEW):
        phrases.append(f"{truth} → {predicted} {percent(share)} ({count})")
    support = metrics.per_class(confusion)[3]
    few = []
    for name, count in zip(classes, support, strict=True):
        if 0 < count < FEW:
            few.append(f"{name} {count}")
    if few:
        phrases.append(f"too few faces to tell: {', '.join(few)}")
    return "; ".join(phrases)


def private_test_line(folder: Path) -> str:
    """How often the run was evaluated on PrivateTest; nothing if it never was."""
    log = folder / PRIVATE_LOG
    if not log.is_file():
        return ""
    count = len(log.read_text(encoding="utf-8", errors="replace").splitlines()) - 1
    if count < 1:
        return ""
    times = "once" if count == 1 else f"{count} times"
    return f"Evaluated on PrivateTest {times}: {log}."


def test_validation_line(settings: config.TrainConfig) -> str:
    if settings.data.get("validation") != "test":
        return ""
    return (
        "data.validation=test: the test faces chose the epoch, so this accuracy says nothing about "
        "new faces."
    )


def overfitting_line(history: pd.DataFrame, epoch: int) -> str:
    """A warning if training accuracy is far above validation accuracy in the last epoch."""
    training, validation = history.iloc[-1][["train_accuracy", "val_accuracy"]]
    if training - validation < OVERFITTED:
        return ""
    best = history.set_index("epoch")["val_accuracy"].get(epoch, validation)
    return (
        f"Overfitting: in the last epoch, training accuracy is {percent(training, 1)} and "
        f"validation accuracy {percent(validation, 1)}. Little of what the network learned after "
        f"epoch {epoch} ({percent(best, 1)}) holds for other faces. More augmentation "
        "(augment=strong), "
        "dropout, weight decay or a smaller network narrow the gap."
    )


def one_class_line(confusion: torch.Tensor, classes: tuple[str, ...]) -> str:
    """A warning if all faces are given one class."""
    predicted = (confusion.sum(0) > 0).nonzero().flatten().tolist()
    if len(predicted) != 1:
        return ""
    return f"All faces are labeled {classes[predicted[0]]}: the network has learned nothing."


def calibration(logits: torch.Tensor, labels: torch.Tensor) -> Part:
    """Confidence against accuracy on half of the faces, before and after scaling by the temperature
    that fits the other half best.
    """
    fitted = torch.arange(len(labels)) % 2 == 0
    shown = ~fitted
    if len(labels) < 2:
        shown = fitted = torch.ones_like(fitted)
    temperature = metrics.temperature(logits[fitted], labels[fitted])
    panels, rows, errors = [], [], []
    for name, scale in (("as trained", 1.0), (f"temperature {temperature:.2f}", temperature)):
        probabilities = (logits[shown] / scale).softmax(1)
        bins = metrics.reliability(probabilities, labels[shown])
        error = 100 * metrics.ece(probabilities, labels[shown])
        panels.append((f"{name}: ECE {error:.1f} %", *bins))
        rows += [(scale, *row) for row in zip(*bins, strict=True)]
        errors.append(error)
    confidence = "overconfident" if temperature > 1 else "underconfident"
    lines = [
        f"The network is {confidence}: dividing its logits by a temperature of {temperature:.2f} "
        "minimizes the loss on every second validation face. Both panels show the other "
        f"{counted(int(shown.sum()), 'face')}."
    ]
    before, after = errors
    if after > before:
        lines.append(
            f"The calibration error does not fall ({before:.1f} % → {after:.1f} %): the "
            "temperature minimizes the loss, and the error of so few faces varies by chance."
        )
    data = pd.DataFrame(rows, columns=["temperature", "confidence", "accuracy", "count"])
    draw = partial(plots.reliability, panels)
    return Part("Calibration", tuple(lines), "calibration", draw, data)


def face_parts(result: Result, cfg: config.ReportConfig) -> list[Part]:
    """The most confident mistakes and a sample of faces; instead of them a line if the data is not
    available.
    """
    try:
        faces = validation_faces(result, cfg)
    except UserError as error:
        if cfg.data:
            raise
        return [Part("Faces", (f"left out: {error}",))]
    confidence, predicted = result.logits.softmax(1).double().max(1)
    table = pd.DataFrame(
        {
            "id": faces.ids,
            "prediction": predicted.numpy(),
            "truth": result.labels,
            "confidence": confidence.numpy(),
        }
    )
    right = table["prediction"] == table["truth"]
    mistakes = table[~right].sort_values("confidence", ascending=False, kind="stable")
    positions = sample(right.to_numpy(), result.labels.numpy(), cfg.samples, cfg.seed)
    return [
        face_part("Most confident mistakes", "mistakes", mistakes[: cfg.samples], faces, result),
        face_part("Sample faces", "samples", table.iloc[positions], faces, result),
    ]


def validation_faces(result: Result, cfg: config.ReportConfig) -> Faces:
    """The faces that the run was validated on. Raises UserError if the data has others."""
    faces = result.best.data(cfg.data, whole=False).split("validation")
    # Earlier versions saved no hash.
    saved_hash = result.best.contents["validation"].get("images", faces.hash)
    if not torch.equal(faces.labels, result.labels) or faces.hash != saved_hash:
        raise UserError("the data is not what the run was validated on; name it with data.path=")
    return faces


def face_part(title: str, name: str, rows: pd.DataFrame, faces: Faces, result: Result) -> Part:
    """The faces in `rows` with their predictions, and with their labels where these differ."""
    captions, marks = [], []
    for row in rows.itertuples():
        caption = f"{result.classes[row.prediction]} {percent(row.confidence)}"
        right = row.prediction == row.truth
        if not right:
            caption += f"\nlabel: {result.classes[row.truth]}"
        captions.append(caption)
        marks.append(right)
    images = faces.images[rows.index].numpy()
    draw = partial(plots.faces, images, captions, columns=7, ok=marks)
    return Part(title, (), name, draw, rows)


def sample(right: np.ndarray, truth: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` faces, half of them mistakes as far as there are any, ordered by their
    true class.
    """
    generator = np.random.default_rng(seed)
    mistakes = generator.permutation(np.flatnonzero(~right))
    others = generator.permutation(np.flatnonzero(right))
    half = max(count // 2, count - len(others))
    mistakes = mistakes[:half]
    chosen = np.concatenate([mistakes, others[: count - len(mistakes)]])
    return chosen[np.argsort(truth[chosen], kind="stable")]
