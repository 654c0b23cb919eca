"""fer report: a run in, pictures, the numbers behind them and one page that holds all out.

All comes from the run folder, which keeps what the best weights said of the validation faces; only the pictures that
show faces need the data, and are left out without it. No network runs here, and how a figure looks is plots' business.
"""

import base64
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch

from fer import UserError, class_names, config, metrics, plots, tensorboard
from fer.checkpoint import Checkpoint, find_checkpoints
from fer.run import LOOKS, TIMES, make_folder, read_history, write_text
from fer.summary import build, table_text, totals


@dataclass
class Part:
    """A section of the page: lines in words; a picture, drawn by `draw(path)` as name.png and so on, and the data of
    name.csv; a table, its header first; plain text."""

    title: str
    lines: tuple[str, ...] = ()
    name: str = ""
    draw: Callable[[Path], Path] | None = None
    data: pd.DataFrame | None = None
    table: list | None = None
    text: str = ""
    folded: bool = False


def run(cfg: config.ReportConfig, typed: list[str]) -> None:
    folders = list(dict.fromkeys(path.parent for path in find_checkpoints(cfg.run)))
    if len(folders) > 1 or isinstance(cfg.run, list):
        compare(folders, make_folder(Path(cfg.out or "comparison")), cfg.format)
        return
    folder = folders[0]
    best, history = Checkpoint.open(folder / "best.pt"), read_history(folder)
    settings, found, epoch = best.settings, best.contents.get("validation"), best.contents.get("epoch")
    if not found or type(epoch) is not int:
        raise UserError(f"{best.path}: holds no validation predictions; use a best.pt written by fer train")
    logits, labels = found["logits"].float(), found["labels"].long()
    classes = class_names(logits.shape[1])
    matrix = metrics.confusion(logits.argmax(1), labels, len(classes))
    title = f"{settings.name}: {metrics.accuracy(matrix):.1%} of {len(labels)} validation faces"
    table, report = metrics.report_text(matrix, classes), metrics.classification_report(matrix, classes)
    pairs = metrics.top_confusions(matrix, classes, 5)
    mistakes = "; ".join(f"{truth} → {said} {share:.0%} ({count})" for truth, said, share, count in pairs)
    faces = faces_parts(best, cfg, logits, labels)
    out = make_folder(Path(cfg.out or folder / "report"))
    write_text(out / "classification_report.txt", table)

    recalls = history.filter(regex="^epoch$|^val_recall_")
    driven = [name for name in history if name not in TIMES and not name.startswith(("train_", "val_"))]
    parts = [
        Part("Loss and accuracy", (), "curves", partial(plots.curves, history), history),
        Part("Confusion", (mistakes,), "confusion", partial(plots.confusion, matrix, classes, title=title),
             pd.DataFrame(matrix.numpy(), classes, classes).rename_axis("truth").reset_index()),
        Part("Precision, recall and F1", (), "per_class", partial(plots.per_class_bars, report),
             pd.DataFrame(report).T.drop("accuracy").rename_axis("class").reset_index(), text=table),
        Part("Recall over time", (), "recalls", partial(plots.recalls, history, classes), recalls),
        calibration(logits, labels),
        *faces,
        *(Part(f"Explained: {file.stem}", name=f"explain_{file.stem}", draw=partial(copy, file))
          for file in sorted((folder / "explain").glob("*.png"))),
        Part("Schedules", (), "schedules", partial(plots.schedules, history, driven), history[["epoch", *driven]]),
        Part("Layers", text=table_text(settings.name, build(settings.model)), folded=True),
        Part("Settings", text=config.dump(settings), folded=True),
    ]  # fmt: skip
    if (environment := folder / "environment.yaml").is_file():
        parts.append(Part("Environment", text=environment.read_text(encoding="utf-8"), folded=True))
    macro, noted = metrics.macro_f1(matrix), folder / LOOKS
    looks = len(noted.read_text(encoding="utf-8").splitlines()) - 1 if noted.is_file() else 0
    private = f"PrivateTest was looked at {looks} time{'s' * (looks != 1)}" + (f": {noted}." if looks else ".")
    lead = (
        f"Macro F1 {macro:.4f}; best of {len(history)} epochs: {epoch}.",
        f"These faces chose the epoch too, so their accuracy is a little too good. {private}",
    )
    write_page(out, title, lead, parts, cfg.format)
    tensorboard.show(folder, [out / f"{part.name}.png" for part in parts if part.draw])
    print(f"{title}, macro F1 {macro:.4f}\n\n{table}\n{mistakes}\nopen:\n  {out / 'index.html'}")


def copy(file: Path, path: Path) -> Path:
    """A picture that fer explain has made, of one kind whatever the report's is."""
    return Path(shutil.copyfile(file, path.with_suffix(file.suffix)))


def calibration(logits: torch.Tensor, labels: torch.Tensor) -> Part:
    """How sure the network is against how right, as it is and with the temperature that mends it."""
    warmth, panels, rows = metrics.temperature(logits, labels), [], []
    for name, scale in (("as trained", 1.0), (f"temperature {warmth:.2f}", warmth)):
        probabilities = (logits / scale).softmax(1)
        bins = metrics.reliability(probabilities, labels)
        panels.append((f"{name}: ECE {100 * metrics.ece(probabilities, labels):.1f} %", *bins))
        rows += [(scale, *row) for row in zip(*bins, strict=True)]
    line = f"Divided by {warmth:.2f} the logits have the least loss on these faces, which also chose the number."
    data = pd.DataFrame(rows, columns=["temperature", "confidence", "accuracy", "count"])
    return Part("Calibration", (line,), "calibration", partial(plots.reliability, panels), data)


def faces_parts(best: Checkpoint, cfg: config.ReportConfig, logits: torch.Tensor, labels: torch.Tensor) -> list[Part]:
    """The most confident mistakes and some faces of every class; a line instead where the data is not at hand."""
    try:
        faces = best.data(cfg.data, whole=False).open("validation")
        judged_on = best.contents["validation"].get("images", faces.hash)  # earlier versions did not note it
        if not torch.equal(faces.labels, labels) or faces.hash != judged_on:
            raise UserError("the data is not what the run was validated on; name it with data.path=")
    except UserError as error:
        if cfg.data:
            raise
        return [Part("Faces", (f"left out: {error}",))]
    confidence, predicted = (column.numpy() for column in logits.softmax(1).double().max(1))
    table = pd.DataFrame({"id": faces.ids, "prediction": predicted, "truth": labels, "confidence": confidence})
    right, names = table["prediction"] == table["truth"], class_names(logits.shape[1])
    said = [f"{names[row.prediction]} {row.confidence:.0%}" for row in table.itertuples()]
    captions = np.where(right, said, [f"{said}\nis {names[label]}" for said, label in zip(said, labels, strict=True)])
    mistakes = table[~right].sort_values("confidence", ascending=False, kind="stable")[: cfg.samples]
    chosen = table.iloc[samples(right.to_numpy(), labels.numpy(), cfg.samples, cfg.seed)]
    parts = []
    for title, name, rows in (("Most confident mistakes", "mistakes", mistakes), ("Sample faces", "samples", chosen)):
        at = rows.index
        draw = partial(plots.faces, faces.images[at].numpy(), captions[at], columns=7, ok=right[at])
        parts.append(Part(title, (), name, draw, rows))
    return parts


def samples(right: np.ndarray, truth: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` faces, half of them mistakes as far as there are any, ordered by their true class."""
    generator = np.random.default_rng(seed)
    wrong, good = (generator.permutation(np.flatnonzero(mask)) for mask in (~right, right))
    half = max(count // 2, count - len(good))
    chosen = np.concatenate([wrong[:half], good[: count - min(half, len(wrong))]])
    return chosen[np.argsort(truth[chosen], kind="stable")]


def compare(folders: list[Path], out: Path, kind: str) -> None:
    """Several runs side by side: their curves over each other, a table, and in which settings they differ."""
    checkpoints = [Checkpoint.open(folder / "best.pt") for folder in folders]
    found = [checkpoint.settings for checkpoint in checkpoints]
    judged = [checkpoint.contents.get("validation", {}) for checkpoint in checkpoints]
    judges = {(own.get("images"), str(own.get("labels", torch.empty(0)).tolist())) for own in judged}
    same = len(judges) == 1
    apart = () if same else ("Not all have the same validation faces and labels: their accuracies do not compare.",)
    settings = [own.model_dump(exclude={"run", "resume"}) for own in found]
    keys = sorted({key for other in settings[1:] for key in config.difference(settings[0], other)} - {"name"})
    differing = [{key: str(pick(own, key)) for key in keys} for own in settings]
    names = labels(folders, [own["name"] for own in settings], differing)
    histories = [read_history(folder) for folder in folders]
    best = pd.DataFrame([history.loc[history["val_accuracy"].idxmax()] for history in histories], index=names)
    sizes = [totals(build(own["model"])) for own in settings]
    table = pd.DataFrame({
        "run": names,
        "val_accuracy": best["val_accuracy"].round(4),
        "val_macro_f1": best["val_macro_f1"].round(4),
        "best_epoch": best["epoch"].astype(int),
        "epochs": [len(history) for history in histories],
        "seconds_per_epoch": [round(history["seconds"].median(), 1) for history in histories],
        "parameters": [size["parameters"] for size in sizes],
        "multiply_adds": [size["multiply-adds"] for size in sizes],
    })  # fmt: skip
    write_text(out / "comparison.csv", table.to_csv(index=False))
    several = [best["val_accuracy"].iloc[group] for group in config.over_seeds(found)]
    seeds = [[", ".join(own.index), str(len(own)), f"{mean(own):.4f}", f"{stdev(own):.4f}"] for own in several]
    looks = {name: "{}" if name == "run" else "{:.4f}" if name.startswith("val_") else "{:,}" for name in table}
    cells = [[looks[name].format(cell) for name, cell in row.items()] for row in table.to_dict("records")]
    parts = [
        Part("Runs", table=[list(table), *cells]),
        Part("Loss and accuracy", (), "curves", partial(plots.compare, dict(zip(names, histories, strict=True)))),
        Part("Where their settings differ",
             table=[["run", *keys], *([name, *own.values()] for name, own in zip(names, differing, strict=True))]),
    ]  # fmt: skip
    if seeds:
        header = ["runs that differ in nothing else", "seeds", "mean val_accuracy", "standard deviation"]
        parts.insert(1, Part("Over seeds", table=[header, *seeds]))
    write_page(out, f"{len(names)} runs", apart, parts, kind)
    print(table.to_string(index=False), *apart, sep="\n")
    for group, count, middle, deviation in seeds:
        print(f"{count} seeds: {middle} ± {deviation} (sd) of {group}")
    print(f"they differ in {', '.join(keys) or 'nothing'}")
    print(f"open:\n  {out / 'index.html'}\n  {out / 'comparison.csv'}")


def labels(folders: list[Path], names: list[str], differing: list[dict]) -> list[str]:
    """A run's name, where it is its own; else, as in a sweep, its folder's and the few settings that set it apart."""
    if len({*names}) == len(names):
        return names
    places = [folder.name for folder in folders]
    places = places if len({*places}) == len(places) else [str(folder) for folder in folders]
    keys = [key for key in differing[0] if not key.startswith("model.")] or list(differing[0])  # its name says enough
    found = []
    for place, name, own in zip(places, names, differing, strict=True):
        text = ", ".join([name, *(f"{key.rpartition('.')[2]}={own[key]}" for key in keys)])
        short = textwrap.shorten(text, 60, placeholder=" …")
        found.append(f"{place}: {short if short.startswith(name) else name}")
    return found


def pick(settings: Any, key: str) -> Any:
    """The value at a dotted key; nothing where a part of the way is missing."""
    for part in key.split("."):
        settings = settings.get(part, "") if isinstance(settings, dict) else ""
    return settings


def write_page(out: Path, title: str, lead: tuple[str, ...], parts: list[Part], kind: str) -> None:
    """The pictures, as PNG for the page and as `kind`, the CSV behind each, and index.html with all inside. Its texts
    are escaped."""
    pictures = {}
    for part in parts:
        if part.draw:
            files = [part.draw(out / f"{part.name}.{suffix}") for suffix in dict.fromkeys(("png", kind))]
            pictures[part.name] = "data:image/png;base64," + base64.b64encode(files[0].read_bytes()).decode()
        if part.data is not None:
            write_text(out / f"{part.name}.csv", part.data.to_csv(index=False))
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Template(source, autoescape=True, undefined=jinja2.StrictUndefined)
    write_text(out / "index.html", page.render(title=title, lead=lead, parts=parts, pictures=pictures))
