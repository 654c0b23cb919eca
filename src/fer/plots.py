"""All figures: data in, file out; each function returns the path, whose suffix (.png, .svg, .pdf)
chooses the format.

This module knows no config, run or tensor, and imports neither pyplot, torch nor pandas. Text is
drawn literally: `$` and `_` have no meaning. No information is in the color alone.
"""

import math
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from fer import UserError
from fer.files import refuse_foreign, reporting_write_errors, write
from fer.text import counted, percent

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colors, which color-blind people can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
BLUE, VERMILION, _, _, ORANGE, SKY, BLACK, _ = COLORS
GRAY = "#555555"
GRID_GRAY = "#e6e6e6"
COLORMAPS = {"gray": "gray", "positive": "magma", "overlay": "magma", "signed": "RdBu_r"}
MASKED = "#cfe3f5"
WRONG = "✗ "
MARKS = {True: "✓ ", False: WRONG, None: ""}  # is the prediction right? None: unknown
MARKERS = (None, "o", "s", "^", "D", "v")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), "-")
SHAPES = "osD^vPX"  # of markers that are told apart without their color
FEW = 7  # curves need no markers up to this number: it is the number of colors without light gray
# With more curves, those of the same color differ in marker and dashes.
LOOKS_OF_MANY: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "linestyle": dashes}
    for marker, dashes in zip(MARKERS[1:], DASHES, strict=True)
    for color in COLORS[:FEW]
]
# What changes during training, in words, with its unit.
SCHEDULE_TITLES = {
    "lr": "learning rate",
    "dropout": "dropout rate",
    "size": "side of the images, pixels",
    "flip": "probability of a flip",
    "rotate": "rotation, ± degrees",
    "shift": "shift, ± share of the side",
    "zoom": "zoom, ± share of the scale",
    "crop": "distance of crops from the center, share",
    "brightness": "brightness, ± share of 255",
    "contrast": "contrast, ± share",
    "jitter": "jitter of brightness and contrast, ± share",
    "erase": "probability of an erased box",
    "mixup": "share of the batches with mixup",
    "cutmix": "share of the batches with CutMix",
}
CLASS_LETTERS = 28  # of a class's name; tables and CSV files have the whole name
LEGEND_LETTERS = 100  # letters that a legend fits into a row of 7 inches
LEGEND_ROWS = 16  # that fit beside a figure 2.8 inches high
FACE_GRAYS: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
TEXTURE = 3.0  # images whose gray levels have a lower standard deviation are plain
FACE_WIDTH = 1.2  # inches, of the face beside a mosaic
# Grids of mosaics: largest number of images, columns, width of an image in inches.
GRIDS = (
    (7, 7, 0.9),
    (64, 8, 0.75),
    (256, 16, 0.4),
    (np.inf, 24, 0.28),
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,  # at 7 inches, the width of both columns
    "axes.titlesize": 9,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_GRAY,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "text.parse_math": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


def curves(history: "pd.DataFrame", path: Path) -> Path:
    """Training and validation loss and accuracy over epochs, with the best epoch marked.

    history: history.csv, a row for each epoch, with the columns epoch, train_loss, train_accuracy,
    val_loss, val_accuracy (accuracies from 0 to 1). Values that are not finite are left out.
    """
    # Of equally good epochs the first, as in training.
    best = history.dropna(subset="val_accuracy").nlargest(1, "val_accuracy")
    ring: dict[str, Any] = {
        "marker": "o",
        "fillstyle": "none",
        "markersize": 7,
        "linestyle": "none",
    }
    with _figure(path, 7, 2.8, 1, 2) as (figure, panels):
        for axes, what in _loss_and_accuracy(panels, history):
            _line(axes, history, f"train_{what}", color=VERMILION, linestyle="--", label="train")
            _line(axes, history, f"val_{what}", color=BLUE, label="validation")
            _line(axes, best, f"val_{what}", color=BLUE, label="best epoch", **ring)
            points = np.asarray(axes.lines[-1].get_xydata())  # empty if it is not finite
            for epoch, value in points:
                number = f"{value:.3f}" if what == "loss" else f"{value:.2f} %"
                axes.set_title(f"epoch {epoch:.0f}: {number}", loc="right", color=BLUE, fontsize=8)
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return path


def compare(histories: "Mapping[str, Sequence[pd.DataFrame]]", path: Path) -> Path:
    """The panels of `curves` for several recipes, {name: a history for each seed}.

    Validation is solid; training is dashed, and shown only for a few recipes. With several seeds
    the line is the mean, and a band extends from the lowest to the highest.
    """
    labels = []
    for name, runs in histories.items():
        labels.append(f"{_shortened(name, 64)}, {_best(runs)}")
    few = len(labels) <= FEW
    looks = LOOKS_OF_MANY
    if few:
        looks = [{"color": color} for color in COLORS[:FEW]]
    recipes = list(zip(histories.values(), cycle(looks), strict=False))
    longest = max(map(len, labels), default=0)
    legend_below = len(labels) > 4 or longest > 36
    columns = _legend_columns(longest) if legend_below else 1
    legend_rows = math.ceil(len(labels) / columns) if legend_below else 0
    all_histories = [history for runs in histories.values() for history in runs]
    with _figure(path, 7, 2.7 + 0.17 * legend_rows, 1, 2) as (figure, panels):
        for axes, what in _loss_and_accuracy(panels, *all_histories):
            for runs, look in recipes:
                # The training curves of many recipes would be a tangle.
                _recipe_curves(axes, runs, what, look, training=few)
        _split_legend(panels[0], training=few)
        lines = [Line2D([], [], **look) for _, look in recipes]
        options: dict[str, Any] = {"ncols": columns, "handlelength": None if few else 3}
        if legend_below:
            figure.legend(lines, labels, loc="outside lower center", **options)
        else:
            panels[1].legend(lines, labels, **options)
    return path


def _recipe_curves(
    axes: Axes, runs: "Sequence[pd.DataFrame]", what: str, look: dict[str, Any], training: bool
) -> None:
    """The curves of one recipe: the validation loss or accuracy, and with `training` that of the
    training faces too.
    """
    if training:
        dashed: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "alpha": 0.8}
        _line(axes, _mean(runs, f"train_{what}"), f"train_{what}", **look, **dashed)
    if len(runs) > 1:
        _band(axes, runs, f"val_{what}", look["color"])
    _line(axes, _mean(runs, f"val_{what}"), f"val_{what}", **look)


def _split_legend(axes: Axes, training: bool) -> None:
    """A legend that says which line is validation and which is training."""
    handles = [Line2D([], [], color=GRAY, label="validation")]
    if training:
        train = Line2D([], [], color=GRAY, linestyle="--", linewidth=0.8, label="train")
        handles = [train, *handles]
    axes.legend(handles=handles)


def _best(runs: "Sequence[pd.DataFrame]") -> str:
    """The best validation accuracy as text; with several seeds, mean and standard deviation."""
    best = [100 * history["val_accuracy"].max() for history in runs]
    if len(best) == 1:
        return f"best {best[0]:.2f} %"
    return f"best {np.mean(best):.2f} ± {np.std(best, ddof=1):.2f} % ({len(best)} seeds)"


def _mean(runs: "Sequence[pd.DataFrame]", column: str) -> "pd.DataFrame":
    """A column over epochs, averaged over the runs that have the epoch."""
    return _over_seeds(runs, column).mean().reset_index()


def _over_seeds(runs: "Sequence[pd.DataFrame]", column: str) -> Any:
    """The column of all runs, grouped by epoch."""
    merged = runs[0][["epoch", column]]
    for history in runs[1:]:
        merged = merged.merge(history[["epoch", column]], how="outer")
    return merged.groupby("epoch")[[column]]


def _band(axes: Axes, runs: "Sequence[pd.DataFrame]", column: str, color: str) -> None:
    """A band from the lowest to the highest seed."""
    scale = 100 if "accuracy" in column else 1
    groups = _over_seeds(runs, column)
    low, high = scale * groups.min()[column], scale * groups.max()[column]
    axes.fill_between(low.index, low, high, color=color, alpha=0.15, linewidth=0)


def confusion(matrix: Any, classes: Sequence[str], path: Path, title: str | None = None) -> Path:
    """A confusion matrix of counts, C×C: rows are the truth, columns the prediction. Colors and
    percentages are shares of the row. A row without faces is blank.
    """
    matrix = np.asarray(matrix)
    shares = _row_shares(matrix)
    classes = [_shortened(name) for name in classes]
    side = 0.44 * max(len(classes), 4)
    margin = 0.5 + 0.065 * max(map(len, classes))
    lines = textwrap.wrap(title or "", int(14 * side))  # as many letters as fit above the matrix
    title_height = 0.2 + 0.15 * (len(lines) - 1) if lines else 0
    with _figure(path, side + margin, side + margin + title_height) as (_, axes):
        texts = {}
        for cell, share in np.ndenumerate(shares):
            if np.isfinite(share):
                texts[cell] = f"{percent(share)}\n({matrix[cell]})" if matrix[cell] else "0"
        _matrix(axes, shares, texts, classes, fontsize=7, linespacing=1.1)
        axes.set(xlabel="prediction", ylabel="truth", title="\n".join(lines))
    return path


def confusions(matrices: Mapping[str, Any], classes: Sequence[str], path: Path) -> Path:
    """The confusion matrices of several recipes side by side, {name: counts as for `confusion`}, as
    percentages of the true class.
    """
    classes = [_shortened(name) for name in classes]
    columns = min(3, max(1, len(matrices)))
    rows = math.ceil(len(matrices) / columns)
    side = 0.29 * len(classes)
    longest = max(map(len, classes))
    margin = 0.3 + 0.06 * longest
    gap = 0.1 + 0.05 * max(0, longest - 10)  # slanted names extend to the left of their matrix
    size = (columns * (side + gap) + margin, rows * (side + 0.35) + margin)
    shape: dict[str, Any] = {"squeeze": False, "sharex": True, "sharey": True}
    with _figure(path, *size, rows, columns, **shape) as (figure, panels):
        for axes in panels.flat[len(matrices) :]:
            axes.axis("off")
        for axes, (name, matrix) in zip(panels.flat, matrices.items(), strict=False):
            shares = _row_shares(np.asarray(matrix))
            texts = {}
            for cell, share in np.ndenumerate(shares):
                if share > 0:
                    texts[cell] = f"{100 * share:.0f}"
            axes.set_title(textwrap.fill(name, int(13 * side)), fontsize=7.5)
            _matrix(axes, shares, texts, classes, fontsize=6.5)
        figure.supxlabel("prediction", fontsize=8)
        figure.supylabel("truth; shares in %", fontsize=8)
    return path


def _row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each count as a share of its row, from 0 to 1; NaN in rows without faces."""
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total > 0, total, np.nan)


def _matrix(
    axes: Axes,
    shares: np.ndarray,
    texts: Mapping[tuple[int, ...], str],
    classes: Sequence[str],
    **font: Any,
) -> None:
    """Shares C×C as colors, with a text in each cell of `texts`."""
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), text in texts.items():
        color = "white" if shares[row, column] > 0.6 else BLACK
        axes.text(column, row, text, ha="center", va="center", color=color, **font)
    _class_ticks(axes, classes)
    axes.set_yticks(range(len(classes)), classes)
    _bare(axes)


def recall_dots(recalls: Mapping[str, Any], classes: Sequence[str], path: Path) -> Path:
    """The recall of each class for several recipes, {name: C values from 0 to 1}: a marker for each
    recipe, side by side.
    """
    columns = _legend_columns(max(map(len, recalls)))
    rows = math.ceil(len(recalls) / columns)
    looks: list[Any] = list(zip(SHAPES, COLORS, strict=False))
    if len(recalls) > FEW:
        looks = list(product(MARKERS[1:], COLORS[:FEW]))
    step = 0.7 / max(1, len(recalls))
    width = max(7, 0.75 * len(classes))
    with _figure(path, width, 2.4 + 0.17 * rows) as (figure, axes):
        for i, ((name, shares), (marker, color)) in enumerate(
            zip(recalls.items(), cycle(looks), strict=False)
        ):
            x = np.arange(len(classes)) + step * (i - (len(recalls) - 1) / 2)
            axes.plot(x, 100 * np.asarray(shares), marker, color=color, markersize=5, label=name)
        for edge in np.arange(len(classes) - 1) + 0.5:
            axes.axvline(edge, color=GRID_GRAY, linewidth=0.6)
        axes.set_xticks(range(len(classes)), [_folded(name, 11) for name in classes])
        axes.tick_params(axis="x", length=0)
        axes.grid(False, axis="x")
        axes.set(ylim=(-3, 103), yticks=range(0, 101, 20), ylabel="recall, %")
        figure.legend(loc="outside lower center", ncols=columns)
    return path


def faces(
    images: Any,
    captions: Sequence[str],
    path: Path,
    columns: int = 8,
    ok: Sequence[bool | None] | None = None,
) -> Path:
    """A grid of faces, uint8 N×1×H×H, each with its caption.

    ok: whether each prediction is right. Right ones are marked ✓; wrong ones ✗, in bold and with a
    frame.
    """
    ok = [None] * len(captions) if ok is None else ok
    texts = []
    for good, caption in zip(ok, captions, strict=True):
        lines = f"{MARKS[good]}{caption}".split("\n")
        texts.append("\n".join(_filled(line, 17) for line in lines))
    columns = max(1, min(columns, len(texts)))
    step, side, gap = 1.05, 0.93, 0.06  # inches
    tops = [0.04]  # inches, of each row, and last of the end
    for first in range(0, len(texts), columns):
        lines_of_text = max(text.count("\n") + 1 for text in texts[first : first + columns])
        tops.append(tops[-1] + (1.09 + 0.125 * lines_of_text))
    with _sheet(path, step * columns, max(tops[-1], 0.5)) as axes:
        if not texts:
            axes.text(0.525, 0.25, "no faces", ha="center", va="center")
        for i, (image, text, good) in enumerate(zip(np.asarray(images), texts, ok, strict=True)):
            x, y = step * (i % columns) + gap, tops[i // columns]
            wrong = MARKS[good] == WRONG
            axes.imshow(image[0], **FACE_GRAYS, extent=(x, x + side, y + side, y))
            if wrong:
                _frame(axes, x, y, side, 2.5)
            weight = "bold" if wrong else "normal"
            middle, below = x + side / 2, y + 0.98
            axes.text(middle, below, text, ha="center", va="top", fontsize=6.5, weight=weight)
    return path


def per_class_bars(report: Mapping[str, Any], path: Path) -> Path:
    """Precision, recall and F1 of each class with its support.

    report: as from metrics.classification_report, with scores from 0 to 1.
    """
    averages = ("accuracy", "macro avg", "weighted avg")
    rows = {name: row for name, row in report.items() if name not in averages}
    scores = (
        ("precision", "precision", SKY),
        ("recall", "recall", BLUE),
        ("f1-score", "F1", ORANGE),
    )
    with _figure(path, max(3.4, len(rows)), 2.4) as (figure, axes):
        for i, (key, label, color) in enumerate(scores):
            heights = [100 * row[key] for row in rows.values()]
            numbers = [f"{height:.0f}" for height in heights]
            x = np.arange(len(rows)) + 0.27 * (i - 1)
            _bars(axes, x, heights, numbers, width=0.25, color=color, label=label)
        names = []
        for name, row in rows.items():
            names.append(f"{_folded(name, 11)}\nn = {row['support']:.0f}")
        axes.set_xticks(range(len(rows)), names)
        axes.set(ylim=(0, 105), yticks=range(0, 101, 25), ylabel="score, %")
        figure.legend(loc="outside upper right", ncols=3)
    return path


def schedules(history: "pd.DataFrame", columns: Collection[str], path: Path) -> Path:
    """These columns of the history over epochs, each in a small panel. A learning rate (lr…) that
    is never 0 and varies by more than a factor of 30 has a logarithmic axis.
    """
    height = 0.35 + 0.95 * len(columns)
    with _figure(path, 3.5, height, len(columns), sharex=True, squeeze=False) as (_, panels):
        for axes, column in zip(panels[:, 0], columns, strict=True):
            _line(axes, history, column, color=BLUE)
            axes.set_title(SCHEDULE_TITLES.get(column, column), loc="left", fontsize=8)
            if column.startswith("lr") and 0 < 30 * history[column].min() < history[column].max():
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(numticks=4))
                _plain(axes.yaxis)
        _epochs(panels[-1, 0], history)
    return path


def recalls(history: "pd.DataFrame", classes: Sequence[str], path: Path) -> Path:
    """The recall of each class over epochs: columns val_recall_<class>. Up to seven classes differ
    in their markers alone.
    """
    with _figure(path, 7, 2.8) as (figure, axes):
        for i, name in enumerate(classes):
            look: dict[str, Any] = {
                "color": COLORS[i % len(COLORS)],
                "linestyle": DASHES[i % 4],
                "clip_on": False,  # whole markers at 0 and 100 %
            }
            marker = SHAPES[i % len(SHAPES)]
            label = _shortened(name)
            _line(axes, history, f"val_recall_{name}", marker, label=label, **look)
        axes.set(ylabel="recall, %", ylim=(0, 100))
        _epochs(axes, history)
        columns = max(1, math.ceil(len(classes) / LEGEND_ROWS))
        figure.legend(loc="outside right center", ncols=columns)
    return path


def reliability(curves: Sequence[tuple], path: Path) -> Path:
    """Reliability diagrams (Guo et al. 2017): accuracy over confidence; below, the number of faces
    in each bin.

    curves: two of (title, confidence, accuracy, count), before and after temperature scaling, with
    a value for each bin as from metrics.reliability.
    """
    shape: dict[str, Any] = {"sharex": True, "sharey": "row", "height_ratios": (3, 1)}
    with _figure(path, 7, 3.4, 2, 2, **shape) as (_, panels):
        for (axes, below), curve in zip(panels.T, curves, strict=True):
            title, confidence, accuracy, counts = curve
            filled = counts > 0
            diagonal: dict[str, Any] = {"color": GRAY, "linestyle": "--", "linewidth": 0.8}
            axes.plot((0, 100), (0, 100), label="perfect calibration", **diagonal)
            x, y = 100 * confidence[filled], 100 * accuracy[filled]
            axes.plot(x, y, "o-", color=BLUE, label="faces", clip_on=False)
            axes.set_title(title, loc="left")
            edges = np.linspace(0, 100, len(counts) + 1)
            width = 100 / len(counts)
            below.bar(edges[:-1], counts, width, align="edge", color=SKY, edgecolor="white")
            below.set(xlabel="confidence, %", xlim=(0, 100))
        panels[0, 0].set(ylabel="accuracy, %", ylim=(0, 100))
        panels[1, 0].set_ylabel("faces")
        panels[0, 0].legend(loc="lower right")
    return path


def explanations(
    columns: Mapping[str, tuple], captions: Sequence[tuple], title: str, path: Path
) -> Path:
    """Maps of faces: a row for each face, a column for each kind of map, {title: (look, N×H×W)}.
    Wrong predictions are marked as in `faces`.

    look: `gray` is from 0 to 255, and NaN is masked; `positive` and `signed` are scaled by the
    largest magnitude of each map; `overlay` is a positive map over the face in the first column.
    captions: for each face its name, truth ("" if unknown), prediction and the prediction's
    probability.
    """
    left, top, step, side = 1.7, 0.66, 0.66, 0.62  # inches
    width, height = left + step * len(columns), top + step * len(captions) + 0.24
    with _sheet(path, width, height) as axes:
        axes.text(0.08, 0.1, textwrap.fill(title, 80), va="top", fontsize=9)
        faces = next(iter(columns.values()))[1]
        heading: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6.5}
        for column, (name, (look, images)) in enumerate(columns.items()):
            x = left + step * column
            axes.text(x + side / 2, top - 0.05, textwrap.fill(name, 12), **heading)
            for row, image in enumerate(images):
                y = top + step * row
                _map(axes, image, look, faces[row], (x, x + side, y + side, y))
        for row, caption in enumerate(captions):
            y = top + step * row
            text, wrong = _explanation_caption(*caption)
            weight = "bold" if wrong else "normal"
            axes.text(0.08, y + side / 2, text, va="center", fontsize=6.5, weight=weight)
            if wrong:
                _frame(axes, left, y, side, 2)
        y = height - 0.12
        _color_key(axes, "positive", "0 to the map's maximum", 0.08, y, side)
        _color_key(axes, "signed", "lowers or raises the score", 2.3, y, side)
    return path


def _map(axes: Axes, image: np.ndarray, look: str, face: np.ndarray, box: tuple) -> None:
    """A map H×W in the box (left, right, bottom, top)."""
    largest = np.nanmax(np.abs(image)) or 1
    low, high = 0, largest
    if look == "gray":
        high = 255
    elif look == "signed":
        low = -largest
    alpha = None
    if look == "overlay":
        axes.imshow(face, **FACE_GRAYS, extent=box)
        alpha = 0.8 * np.sqrt(image / largest)
    colors = matplotlib.colormaps[COLORMAPS[look]].with_extremes(bad=MASKED)
    axes.imshow(image, cmap=colors, vmin=low, vmax=high, extent=box, alpha=alpha)


def _explanation_caption(
    name: str, truth: str, predicted: str, probability: float
) -> tuple[str, bool]:
    """The text beside a face, and whether its prediction is wrong."""
    mark = MARKS[predicted == truth if truth else None]
    lines = [name if len(name) < 25 else f"…{name[-23:]}"]
    if truth:
        lines.append(f"truth: {_shortened(truth, 20)}")
    prediction = f"{mark}prediction: {_shortened(predicted, 20)} {percent(probability)}"
    lines.append(_filled(prediction, 28))
    return "\n".join(lines), mark == WRONG


def _color_key(axes: Axes, look: str, text: str, x: float, y: float, width: float) -> None:
    box = (x, x + width, y + 0.05, y - 0.05)
    axes.imshow(np.linspace(0, 1, 64)[None], cmap=COLORMAPS[look], extent=box)
    axes.text(x + width + 0.06, y, text, va="center", fontsize=6.5)


def mosaic(
    images: Any,
    title: str,
    path: Path,
    texture: bool = False,
    names: Sequence[str] | None = None,
    face: Any = None,
) -> Path:
    """A mosaic of N×h×w images, each with its name, or numbered from 0.

    texture: the images are gray, from 0 to 255, and are standardized one by one, except plain ones.
    Otherwise they share one color scale, which the largest percent of the values may exceed.
    face: the face H×W that the images belong to, shown to their left.
    """
    images = np.asarray(images, dtype=float)
    count = len(images)
    columns, side = next((columns, side) for most, columns, side in GRIDS if count <= most)
    if names:
        columns = min(columns, count)
    rows = math.ceil(count / columns)
    if texture:
        images = _standardized(images, -2.5, 2.5)
        look, low, high = "gray", -2.5, 2.5
    else:
        look, low, high = _color_scale(images)
    sheet, cell_height, cell_width = _tiled(images, rows, columns)
    width = columns * side + (0.4 if texture else 1)
    height = rows * side * cell_height / cell_width + 0.55
    shape: tuple[int, ...] = ()
    ratios: dict[str, Any] = {}
    if face is not None:
        shape, ratios = (1, 2), {"width_ratios": (FACE_WIDTH, width)}
        width += FACE_WIDTH
    with _figure(path, width, height, *shape, **ratios) as (figure, panels):
        axes = panels
        if face is not None:
            face_axes, axes = panels
            _show_face(face_axes, face)
        colors = matplotlib.colormaps[COLORMAPS[look]]
        if texture:
            colors = colors.with_extremes(bad=MASKED)  # bluish gaps set off a white image
        shown = axes.imshow(sheet, cmap=colors, vmin=low, vmax=high)
        # Each column's name, or number to be added to that of the row's first image.
        across: Sequence[str] = [f"+{i}" for i in range(columns)]
        down: Sequence[Any] = range(0, rows * columns, columns)
        if names:
            across, down = [_folded(name, 15) for name in names[:columns]], [""] * rows
        if names and rows > 1:  # the names of one row cannot stand below it
            across = [""] * columns
            _name_cells(axes, names, columns, int(22 * side), (cell_height, cell_width))
        axes.set_xticks(_centers(columns, cell_width), across, fontsize=6.5)
        axes.set_yticks(_centers(rows, cell_height), down)
        _bare(axes)
        axes.set_title(textwrap.fill(title, int(13 * width)), loc="left")
        if not texture:
            extend = "both" if look == "signed" else "max"
            place: dict[str, Any] = {"ax": axes, "shrink": min(1, 2 / (rows * side)), "aspect": 15}
            figure.colorbar(shown, **place, extend=extend).outline.set_visible(False)
    return path


def _name_cells(
    axes: Axes, names: Sequence[str], columns: int, most: int, cell: tuple[int, int]
) -> None:
    """The name of each cell of a sheet in its upper left corner, at most so many letters of it.
    cell: height and width.
    """
    height, width = cell
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for number, name in enumerate(names):
        row, column = divmod(number, columns)
        shown = _shortened(name, most)
        axes.text(column * width + 2, row * height + 2, shown, va="top", fontsize=5, bbox=box)


def _show_face(axes: Axes, face: Any) -> None:
    """A gray face H×W without a frame or numbers."""
    axes.imshow(face, **FACE_GRAYS)
    axes.set_xticks([])
    axes.set_yticks([])
    _bare(axes)


def _centers(count: int, size: int) -> np.ndarray:
    """The middles of `count` cells of this size side by side, in pixels."""
    return np.arange(count) * size + size / 2


def _color_scale(images: np.ndarray) -> tuple[str, float, float]:
    """The look of images that share a scale, and its lowest and highest value."""
    high = np.percentile(np.abs(images), 99) or np.abs(images).max() or 1
    if images.min() < 0:
        return "signed", -high, high
    return "positive", 0, high


def _standardized(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images N×h×w from 0 to 255, each minus its mean and divided by its standard deviation. Plain
    images are scaled from 0..255 to low..high instead.
    """
    rim = images.shape[-1] // 12  # left out, since padding shows there even in a plain image
    inner = images[:, rim : images.shape[1] - rim, rim : images.shape[2] - rim]
    plain = inner.std((1, 2), keepdims=True) < TEXTURE
    mean = images.mean((1, 2), keepdims=True)
    deviation = images.std((1, 2), keepdims=True)
    standardized = (images - mean) / np.where(deviation > 0, deviation, 1)
    return np.where(plain, low + (high - low) * images / 255, standardized)


def _tiled(images: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int, int]:
    """Images N×h×w side by side on one sheet, with NaN in the gaps; height and width of a cell."""
    # Small images are enlarged, so that the gaps of all layers look equally wide.
    enlargement = max(1, 48 // images.shape[-1])
    images = images.repeat(enlargement, 1).repeat(enlargement, 2)
    missing = rows * columns - len(images)
    cells = np.pad(images, ((0, missing), (1, 1), (1, 1)), constant_values=np.nan)
    height, width = cells.shape[1:]
    grid = cells.reshape(rows, columns, height, width).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width), height, width


def class_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str], path: Path) -> Path:
    """Bars of {split: C counts}, a panel for each split. Heights are shares of the split, numbers
    are counts.
    """
    width = max(7, 0.29 * len(classes) * len(counts))
    if len(counts) == 1:
        width = max(3.5, 0.29 * len(classes))
    longest = max(len(_shortened(name)) for name in classes)
    height = 2.4 + 0.045 * max(0, longest - 10)  # slanted names take the space of the bars
    with _figure(path, width, height, 1, len(counts), sharey=True, squeeze=False) as (_, panels):
        for axes, (split, column) in zip(panels[0], counts.items(), strict=True):
            heights = 100 * np.asarray(column) / max(1, sum(column))
            numbers = [f"{number:,}" for number in column]
            _bars(axes, range(len(classes)), heights, numbers, color=COLORS)
            _class_ticks(axes, classes)
            axes.set_title(f"{split}: {counted(sum(column), 'face')}", loc="left")
        panels[0, 0].set_ylabel("share of the split, %")
        panels[0, 0].margins(y=0.1)
    return path


def gray_values(images: Mapping[str, np.ndarray], faces: "pd.DataFrame", path: Path) -> Path:
    """Distributions of gray values: those of all pixels, and the mean and standard deviation of
    each face.

    images: {split: uint8 N×1×H×W}. faces: columns split, mean, deviation.
    """
    dashes = ("-", "--", ":", "-.")
    with _figure(path, 7, 2.3, 1, 3) as (figure, panels):
        for i, (split, pixels) in enumerate(images.items()):
            rows = faces[faces["split"] == split]
            color, linestyle = COLORS[i % FEW], dashes[i % len(dashes)]
            for axes, values, bins, end in (
                (panels[0], pixels, 256, 256),
                (panels[1], rows["mean"], 32, 256),
                (panels[2], rows["deviation"], 32, 128),
            ):
                counts, edges = np.histogram(values, bins, (0, end))
                shares = 100 * counts / counts.sum()
                axes.stairs(shares, edges, color=color, linestyle=linestyle, label=split)
        # Room for the peaks at 0 and 255.
        panels[0].set(xlabel="gray value", ylabel="pixels, %", xlim=(-5, 261))
        panels[1].set(xlabel="mean of a face", ylabel="faces, %", xlim=(0, 256))
        panels[2].set(xlabel="standard deviation of a face", ylabel="faces, %", xlim=(0, 128))
        legend = panels[0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=len(images))
    return path


def shares(table: "pd.DataFrame", path: Path) -> Path:
    """Accuracy with its 95 % interval over the share of labels, a line for each method.

    table: columns share, method, accuracy, low, high.
    """
    percents = sorted(100 * table["share"].unique())
    methods = list(table.groupby("method", sort=False))
    with _figure(path, 4.5, 3) as (_, axes):
        for i, (method, rows) in enumerate(methods):
            # Side by side, so that intervals do not overlap.
            x = 100 * rows["share"] * 1.02 ** (i - (len(methods) - 1) / 2)
            y = 100 * rows["accuracy"]
            spread = abs(100 * rows[["low", "high"]].T.to_numpy() - y.to_numpy())
            look: dict[str, Any] = {"color": COLORS[i % FEW], "marker": MARKERS[1 + i % 5]}
            axes.errorbar(x, y, spread, capsize=2, label=method, **look)
        axes.set(xlabel="training faces with labels, %", ylabel="accuracy, %", xscale="log")
        # With one share, the distances between methods would otherwise fill the axis.
        axes.set_xlim(percents[0] / 1.3, percents[-1] * 1.3)
        _plain(axes.xaxis)
        axes.set_xticks(percents)
        axes.minorticks_off()
        axes.legend()
    return path


@contextmanager
def _figure(
    path: Path, width: float, height: float, *shape: int, **how: Any
) -> Iterator[tuple[Figure, Any]]:
    """A styled Figure of this size in inches and its Axes, as from pyplot's subplots(*shape,
    **how). At the end of the block it is written to `path` atomically.
    """
    kind = path.suffix[1:].lower()
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: the name of a picture must end in .png, .svg or .pdf")
    with reporting_write_errors(path):
        refuse_foreign(path, b"Matplotlib", "choose another place for it with out=")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A class name may be in a script that the font lacks; matplotlib then draws boxes.
        warnings.filterwarnings("ignore", "Glyph")
        # pyplot would keep the figure open and choose a backend.
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(*shape, **how)
        write(path, lambda file: figure.savefig(file, format=kind, dpi=150))


@contextmanager
def _sheet(path: Path, width: float, height: float) -> Iterator[Axes]:
    """A figure of one Axes whose coordinates are inches from the upper left corner. 40 Axes, one
    for each picture, would take seconds.
    """
    with _figure(path, width, height) as (figure, axes):
        figure.set_layout_engine("none")
        axes.set(position=(0, 0, 1, 1))
        axes.axis("off")
        yield axes
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")


def _loss_and_accuracy(
    panels: Sequence[Axes], *histories: "pd.DataFrame"
) -> Iterator[tuple[Axes, str]]:
    """The panel of the loss and that of the accuracy, each with the end of its columns' names."""
    for axes, what, label in (
        (panels[0], "loss", "loss"),
        (panels[1], "accuracy", "accuracy, %"),
    ):
        axes.set_ylabel(label)
        _epochs(axes, *histories)
        yield axes, what


def _legend_columns(longest: int) -> int:
    """The number of columns of a legend whose longest label has this many letters."""
    return max(1, LEGEND_LETTERS // (longest + 8))  # 8 for the line


def _class_ticks(axes: Axes, classes: Sequence[str]) -> None:
    """The names of the classes, slanted, along the x axis."""
    names = [_shortened(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")


def _shortened(name: str, most: int = CLASS_LETTERS) -> str:
    """A name of at most `most` letters: a longer one loses its middle."""
    if len(name) <= most:
        return name
    end = most // 2
    start = most - 1 - end
    return f"{name[:start]}…{name[-end:]}"


def _filled(caption: str, letters: int) -> str:
    """A caption in lines of so many letters, in which a number and its % stay together."""
    joined = caption.replace(" %", "\N{NO-BREAK SPACE}%")
    return textwrap.fill(joined, letters).replace("\N{NO-BREAK SPACE}", " ")


def _folded(name: str, letters: int) -> str:
    """The name of a class, shortened, in lines of so many letters."""
    return textwrap.fill(_shortened(name), letters)


def _frame(axes: Axes, x: float, y: float, side: float, linewidth: float) -> None:
    """A frame around a wrongly labeled face."""
    look: dict[str, Any] = {"fill": False, "edgecolor": VERMILION, "linewidth": linewidth}
    axes.add_patch(Rectangle((x, y), side, side, **look))


def _bars(axes: Axes, places: Any, heights: Any, numbers: Sequence[str], **look: Any) -> None:
    """Bars with numbers above them, without tick marks below."""
    bars = axes.bar(places, heights, **look)
    axes.bar_label(bars, numbers, fontsize=6.5, padding=1)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")


def _bare(axes: Axes) -> None:
    """Remove everything around a picture but the names of its rows and columns."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _plain(axis: Axis) -> None:
    """Plain numbers; a logarithmic axis would use mathtext."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter("")


def _epochs(axes: Axes, *histories: "pd.DataFrame") -> None:
    """An x axis of epochs, from the first to the last of all histories."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    epochs = np.concatenate([[], *(history["epoch"] for history in histories)])
    if len(epochs):
        pad = max(0.5, 0.03 * np.ptp(epochs))
        axes.set_xlim(epochs.min() - pad, epochs.max() + pad)


def _line(
    axes: Axes, history: "pd.DataFrame", column: str, marker: str | None = None, **look: Any
) -> None:
    """A column over the epochs where it is finite; accuracies and recalls in percent. A few values
    get dots as well, since a single one draws no line.
    """
    rows = history[np.isfinite(history[column].astype(float))]
    scale = 100 if "accuracy" in column or "recall" in column else 1
    marker = marker or ("o" if len(rows) <= 10 else None)
    axes.plot(
        rows["epoch"],
        scale * rows[column],
        marker=marker,
        markevery=max(1, len(rows) // 10),
        **look,
    )
