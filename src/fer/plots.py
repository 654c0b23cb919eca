"""Every figure: data in, file out (.png, .svg or .pdf by the path's suffix, 150 dpi). Each returns
its path.

Text is drawn as it stands (`$` and `_` mean nothing), colours are Okabe and Ito's, and nothing
rests on colour alone. Knows of no config, run or tensor; pyplot, torch and pandas are never
imported.
"""

import math
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
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
from fer.files import write

if TYPE_CHECKING:
    import pandas as pd

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
BLUE, VERMILION, _, _, ORANGE, SKY, BLACK, _ = COLOURS
GRAY = "#555555"
LOOKS = {"gray": "gray", "positive": "magma", "overlay": "magma", "signed": "RdBu_r"}
MASKED = "#cfe3f5"
WRONG = "✗ "
MARKS = {True: "✓ ", False: WRONG, None: ""}  # of a prediction: None where the truth is unknown
MARKERS = (None, "o", "s", "^", "D", "v")  # tell runs apart that share a colour
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), "-")
# Of many runs, those that share a colour differ in marker and dashes.
RUNS: list[dict[str, Any]] = [
    {"color": colour, "marker": marker, "linestyle": dashes}
    for marker, dashes in zip(MARKERS[1:], DASHES, strict=True)
    for colour in COLOURS[:7]
]
GRAYS: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
PLAIN = 3.0  # gray levels of deviation, below which an image shows its brightness and no texture
FACE = 1.2  # inches of a face beside a mosaic
GRIDS = (
    (7, 7, 0.9),
    (64, 8, 0.75),
    (256, 16, 0.4),
    (np.inf, 24, 0.28),
)  # images at most, columns, inches
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
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "text.parse_math": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


def curves(history: "pd.DataFrame", path: Path) -> Path:
    """Loss and accuracy of both splits over epochs, the best epoch marked.

    `history` is history.csv as a DataFrame, a row an epoch: epoch, train_loss, train_accuracy,
    val_loss, val_accuracy (accuracies 0 to 1). What is not finite is left out.
    """
    best = history.dropna(subset="val_accuracy").nlargest(
        1, "val_accuracy"
    )  # the first of equals, as `train` has it
    with _figure(path, 7, 2.8, 1, 2) as (figure, panels):
        for axes, what in _loss_and_accuracy(panels, history):
            _line(axes, history, f"train_{what}", color=VERMILION, linestyle="--", label="train")
            _line(axes, history, f"val_{what}", color=BLUE, label="validation")
            ring: dict[str, Any] = {
                "marker": "o",
                "fillstyle": "none",
                "markersize": 7,
                "linestyle": "none",
            }
            _line(axes, best, f"val_{what}", color=BLUE, label="best epoch", **ring)
            for epoch, value in np.asarray(
                axes.lines[-1].get_xydata()
            ):  # none where it is not finite
                number = f"{value:.3f}" if what == "loss" else f"{value:.2f} %"
                axes.set_title(f"epoch {epoch:.0f}: {number}", loc="right", color=BLUE, fontsize=8)
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return path


def compare(histories: "Mapping[str, Sequence[pd.DataFrame]]", path: Path) -> Path:
    """The panels of `curves` for several recipes, {name: a history for each seed}: the mean of
    validation solid, of train dashed where recipes are few, and a band from the lowest to the
    highest seed.
    """
    names = [name if len(name) <= 64 else f"{name[:31]}…{name[-32:]}" for name in histories]
    labels = [
        f"{name}, {_best(runs)}" for name, runs in zip(names, histories.values(), strict=True)
    ]
    few = len(labels) <= 7
    looks = [{"color": colour} for colour in COLOURS[:7]] if few else RUNS
    recipes = list(zip(histories.values(), cycle(looks), strict=False))
    longest = max(map(len, labels), default=0)
    outside = len(labels) > 4 or longest > 36
    columns = (
        max(1, 100 // (longest + 8)) if outside else 1
    )  # 7 inches hold 100 letters; 8 for the line
    rows = math.ceil(len(labels) / columns) if outside else 0
    everything = [history for runs in histories.values() for history in runs]
    with _figure(path, 7, 2.7 + 0.17 * rows, 1, 2) as (figure, panels):
        for axes, what in _loss_and_accuracy(panels, *everything):
            for runs, look in recipes:
                if few:  # of more, a tangle
                    dashed: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "alpha": 0.8}
                    _line(axes, _mean(runs, f"train_{what}"), f"train_{what}", **look, **dashed)
                if len(runs) > 1:
                    _band(axes, runs, f"val_{what}", look["color"])
                _line(axes, _mean(runs, f"val_{what}"), f"val_{what}", **look)
        splits = (
            [Line2D([], [], color=GRAY, linestyle="--", linewidth=0.8, label="train")]
            if few
            else []
        )
        panels[0].legend(handles=[*splits, Line2D([], [], color=GRAY, label="validation")])
        legend = partial(figure.legend, loc="outside lower center") if outside else panels[1].legend
        lines = [Line2D([], [], **look) for _, look in recipes]
        legend(lines, labels, ncols=columns, handlelength=3 if not few else None)
    return path


def _best(runs: "Sequence[pd.DataFrame]") -> str:
    """The best validation accuracy in words, over several seeds mean and deviation."""
    tops = [100 * history["val_accuracy"].max() for history in runs]
    if len(tops) == 1:
        return f"best {tops[0]:.2f} %"
    return f"best {np.mean(tops):.2f} ± {np.std(tops, ddof=1):.2f} % ({len(tops)} seeds)"


def _mean(runs: "Sequence[pd.DataFrame]", column: str) -> "pd.DataFrame":
    """A column by epoch, averaged over the runs that have the epoch."""
    return _over_seeds(runs, column).mean().reset_index()


def _over_seeds(runs: "Sequence[pd.DataFrame]", column: str) -> Any:
    whole = runs[0][["epoch", column]]
    for history in runs[1:]:
        whole = whole.merge(history[["epoch", column]], how="outer")
    return whole.groupby("epoch")[[column]]


def _band(axes: Axes, runs: "Sequence[pd.DataFrame]", column: str, colour: str) -> None:
    """From the lowest to the highest of several seeds."""
    scale = 100 if "accuracy" in column else 1
    groups = _over_seeds(runs, column)
    low, high = scale * groups.min()[column], scale * groups.max()[column]
    axes.fill_between(low.index, low, high, color=colour, alpha=0.15, linewidth=0)


def confusion(matrix: Any, classes: Sequence[str], path: Path, title: str | None = None) -> Path:
    """Counts C×C, rows truth, columns prediction; colour and % are shares of the row, an empty row
    is blank.
    """
    matrix = np.asarray(matrix)
    total = matrix.sum(1, keepdims=True)
    shares = matrix / np.where(total > 0, total, np.nan)
    side, margin = 0.44 * max(len(classes), 4), 0.5 + 0.065 * max(map(len, classes))
    with _figure(path, side + margin, side + margin + 0.2 * bool(title)) as (_, axes):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            if total[i] > 0:
                text = f"{100 * share:.0f} %\n({matrix[i, j]})" if matrix[i, j] else "0"
                colour = "white" if share > 0.6 else BLACK
                axes.text(
                    j, i, text, ha="center", va="center", fontsize=7, color=colour, linespacing=1.1
                )
        axes.set_xticks(
            range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="prediction", ylabel="truth", title=title)
        _bare(axes)
    return path


def confusions(matrices: Mapping[str, Any], classes: Sequence[str], path: Path) -> Path:
    """The matrices of several recipes, {name: C×C as for `confusion`}, side by side: shares of the
    true class, %.
    """
    columns = min(3, max(1, len(matrices)))
    rows = math.ceil(len(matrices) / columns)
    side, margin = 0.29 * len(classes), 0.3 + 0.06 * max(map(len, classes))
    size = (columns * side + margin + 0.1 * columns, rows * (side + 0.35) + margin)
    with _figure(path, *size, rows, columns, squeeze=False, sharex=True, sharey=True) as (
        figure,
        panels,
    ):
        for axes in panels.flat[len(matrices) :]:
            axes.axis("off")
        for axes, (name, matrix) in zip(panels.flat, matrices.items(), strict=False):
            total = np.asarray(matrix).sum(1, keepdims=True)
            shares = matrix / np.where(total > 0, total, np.nan)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (i, j), share in np.ndenumerate(shares):
                if share > 0:
                    colour = "white" if share > 0.6 else BLACK
                    axes.text(
                        j,
                        i,
                        f"{100 * share:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6.5,
                        color=colour,
                    )
            axes.set_title(textwrap.fill(name, int(13 * side)), fontsize=7.5)
            axes.set_xticks(
                range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor"
            )
            axes.set_yticks(range(len(classes)), classes)
            _bare(axes)
        figure.supxlabel("prediction", fontsize=8)
        figure.supylabel("truth; shares in %", fontsize=8)
    return path


def recall_dots(recalls: Mapping[str, Any], classes: Sequence[str], path: Path) -> Path:
    """The recall of each class (0 to 1) of several recipes, {name: C}: a mark each, beside each
    other.
    """
    longest = max(map(len, recalls))
    columns = max(1, 100 // (longest + 8))
    rows = math.ceil(len(recalls) / columns)
    with _figure(path, 7, 2.4 + 0.17 * rows) as (figure, axes):
        shapes = cycle(product(MARKERS[1:], COLOURS[:7]))
        wide = 0.7 / max(1, len(recalls))
        for i, (name, own) in enumerate(recalls.items()):
            marker, colour = ("osD^vPX"[i % 7], COLOURS[i]) if len(recalls) <= 7 else next(shapes)
            places = np.arange(len(classes)) + wide * (i - (len(recalls) - 1) / 2)
            axes.plot(places, 100 * np.asarray(own), marker, color=colour, markersize=5, label=name)
        for edge in np.arange(len(classes) - 1) + 0.5:
            axes.axvline(edge, color="#e6e6e6", linewidth=0.6)
        axes.set_xticks(range(len(classes)), classes)
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
    """A grid of faces, uint8 N×1×48×48, with a caption each; `ok` marks right (✓) and wrong (✗,
    bold, framed) ones.
    """
    ok = [None] * len(captions) if ok is None else ok
    lines = [
        f"{MARKS[good]}{caption}".split("\n") for good, caption in zip(ok, captions, strict=True)
    ]
    texts = ["\n".join(textwrap.fill(line, 17) for line in own) for own in lines]
    columns = max(1, min(columns, len(texts)))
    longest = [
        max(t.count("\n") + 1 for t in texts[i : i + columns])
        for i in range(0, len(texts), columns)
    ]
    tops = np.cumsum(
        [0.04, *(1.09 + 0.125 * n for n in longest)]
    )  # inches, of each row and of the end
    with _sheet(path, 1.05 * columns, max(tops[-1], 0.5)) as axes:
        if not texts:
            axes.text(0.525, 0.25, "no faces", ha="center", va="center")
        for i, (image, text, good) in enumerate(zip(np.asarray(images), texts, ok, strict=True)):
            x, y = 1.05 * (i % columns) + 0.06, tops[i // columns]
            axes.imshow(image[0], **GRAYS, extent=(x, x + 0.93, y + 0.93, y))
            if wrong := MARKS[good] == WRONG:
                axes.add_patch(
                    Rectangle((x, y), 0.93, 0.93, fill=False, edgecolor=VERMILION, linewidth=2.5)
                )
            weight = "bold" if wrong else "normal"
            axes.text(x + 0.465, y + 0.98, text, ha="center", va="top", fontsize=6.5, weight=weight)
    return path


def per_class_bars(report: Mapping[str, Any], path: Path) -> Path:
    """Precision, recall and F1 (0 to 1) a class with its support, from
    metrics.classification_report.
    """
    rows = {
        name: row
        for name, row in report.items()
        if name not in ("accuracy", "macro avg", "weighted avg")
    }
    with _figure(path, max(3.4, len(rows)), 2.4) as (figure, axes):
        looks = (
            ("precision", "precision", SKY),
            ("recall", "recall", BLUE),
            ("f1-score", "F1", ORANGE),
        )
        for i, (key, label, colour) in enumerate(looks):
            heights = [100 * row[key] for row in rows.values()]
            numbers = [f"{height:.0f}" for height in heights]
            _bars(
                axes,
                np.arange(len(rows)) + 0.27 * (i - 1),
                heights,
                numbers,
                width=0.25,
                color=colour,
                label=label,
            )
        names = [
            f"{textwrap.fill(name, 14)}\nn = {row['support']:.0f}" for name, row in rows.items()
        ]
        axes.set_xticks(range(len(rows)), names)
        axes.set(ylim=(0, 105), yticks=range(0, 101, 25), ylabel="score, %")
        figure.legend(loc="outside upper right", ncols=3)
    return path


def schedules(history: "pd.DataFrame", columns: Collection[str], path: Path) -> Path:
    """Any `columns` of the history over epochs, a small panel each; a rate (lr…) that is never 0
    and spans more than 30× has a logarithmic axis.
    """
    height = 0.35 + 0.95 * len(columns)
    with _figure(path, 3.5, height, len(columns), sharex=True, squeeze=False) as (_, panels):
        for axes, column in zip(panels[:, 0], columns, strict=True):
            _line(axes, history, column, color=BLUE)
            axes.set_title(column, loc="left", fontsize=8)
            if column.startswith("lr") and 0 < 30 * history[column].min() < history[column].max():
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(numticks=4))
                _plain(axes.yaxis)
        _epochs(panels[-1, 0], history)
    return path


def recalls(history: "pd.DataFrame", classes: Sequence[str], path: Path) -> Path:
    """The share of each class's validation faces that was labelled right, over epochs: columns
    val_recall_<class>.
    """
    with _figure(path, 7, 2.8) as (figure, axes):
        for i, name in enumerate(classes):
            _line(
                axes,
                history,
                f"val_recall_{name}",
                color=COLOURS[i % 8],
                marker=MARKERS[i % 6],
                label=name,
            )
        axes.set(ylabel="recall, %", ylim=(0, 100))
        _epochs(axes, history)
        figure.legend(loc="outside right center")
    return path


def reliability(curves: Sequence[tuple], path: Path) -> Path:
    """Accuracy against confidence (Guo et al. 2017) as it is and after scaling: two of (title,
    confidence, accuracy, count), a bin each; see metrics.reliability. Below, how many faces a bin
    holds.
    """
    with _figure(path, 7, 3.4, 2, 2, sharex=True, sharey="row", height_ratios=(3, 1)) as (
        _,
        panels,
    ):
        for (axes, below), (title, confidence, accuracy, counts) in zip(
            panels.T, curves, strict=True
        ):
            some = counts > 0
            axes.plot(
                (0, 100),
                (0, 100),
                color=GRAY,
                linestyle="--",
                linewidth=0.8,
                label="as sure as right",
            )
            axes.plot(100 * confidence[some], 100 * accuracy[some], "o-", color=BLUE, label="faces")
            axes.set_title(title, loc="left")
            edges = np.linspace(0, 100, len(counts) + 1)
            below.bar(
                edges[:-1], counts, 100 / len(counts), align="edge", color=SKY, edgecolor="white"
            )
            below.set(xlabel="confidence, %", xlim=(0, 100))
        panels[0, 0].set(ylabel="accuracy, %", ylim=(0, 100))
        panels[1, 0].set_ylabel("faces")
        panels[0, 0].legend(loc="upper left")
    return path


def explanations(
    columns: Mapping[str, tuple], captions: Sequence[tuple], title: str, path: Path
) -> Path:
    """A row a face, a column a map of it, {title: (look, N×H×W)}; wrong predictions are marked as
    in `faces`.

    look: gray is 0 to 255, NaN masked; positive and signed are scaled by each map's own largest
    size, overlay is a positive map over the first column. captions: for each face its name, its
    truth ("" if unknown), its prediction and the probability of that.
    """
    left, top, step, side = 1.7, 0.66, 0.66, 0.62
    width, height = left + step * len(columns), top + step * len(captions) + 0.24
    with _sheet(path, width, height) as axes:
        axes.text(0.08, 0.1, textwrap.fill(title, 80), va="top", fontsize=9)
        faces = next(iter(columns.values()))[1]
        for j, (name, (look, images)) in enumerate(columns.items()):
            x = left + step * j
            axes.text(
                x + side / 2,
                top - 0.05,
                textwrap.fill(name, 12),
                ha="center",
                va="bottom",
                fontsize=6.5,
            )
            colours = matplotlib.colormaps[LOOKS[look]].with_extremes(bad=MASKED)
            for i, image in enumerate(images):
                y, largest, alpha = top + step * i, np.nanmax(np.abs(image)) or 1, None
                box = (x, x + side, y + side, y)
                low, high = {"gray": (0, 255), "signed": (-largest, largest)}.get(
                    look, (0, largest)
                )
                if look == "overlay":
                    axes.imshow(faces[i], **GRAYS, extent=box)
                    alpha = 0.8 * np.sqrt(image / largest)
                axes.imshow(image, cmap=colours, vmin=low, vmax=high, extent=box, alpha=alpha)
        for i, (name, truth, predicted, probability) in enumerate(captions):
            y, mark = top + step * i, MARKS[predicted == truth if truth else None]
            name = name if len(name) < 25 else f"…{name[-23:]}"
            lines = [
                name,
                truth and f"truth: {truth}",
                f"{mark}prediction: {predicted}, {probability:.2f}",
            ]
            weight = "bold" if mark == WRONG else "normal"
            axes.text(
                0.08,
                y + side / 2,
                "\n".join(filter(None, lines)),
                va="center",
                fontsize=6.5,
                weight=weight,
            )
            if mark == WRONG:
                axes.add_patch(
                    Rectangle((left, y), side, side, fill=False, edgecolor=VERMILION, linewidth=2)
                )
        y = height - 0.12
        keys = {"positive": "0 to the map's maximum", "signed": "lowers or raises the score"}
        for (look, key), x in zip(keys.items(), (0.08, 2.3), strict=True):
            axes.imshow(
                np.linspace(0, 1, 64)[None],
                cmap=LOOKS[look],
                extent=(x, x + side, y + 0.05, y - 0.05),
            )
            axes.text(x + side + 0.06, y, key, va="center", fontsize=6.5)
    return path


def mosaic(
    images: Any,
    title: str,
    path: Path,
    texture: bool = False,
    names: Sequence[str] | None = None,
    face: Any = None,
) -> Path:
    """Every one of N×h×w images, with its name, or else numbered from 0; to the left the `face`,
    H×W, that they are of.

    texture: each, 0 to 255, is spread over gray by its own mean and deviation; a plain one stays as
    bright as it is. Without, all share one scale of colours, which the largest percent may leave.
    """
    images = np.asarray(images, dtype=float)
    count = len(images)
    columns, side = next((columns, side) for most, columns, side in GRIDS if count <= most)
    rows, grown = -(-count // columns), max(1, 48 // images.shape[-1])
    if texture:
        rim = images.shape[-1] // 12  # where padding, too, excites
        inner = images[:, rim : images.shape[1] - rim, rim : images.shape[2] - rim]
        plain = inner.std((1, 2), keepdims=True) < PLAIN
        deviation = images.std((1, 2), keepdims=True)
        spread = (images - images.mean((1, 2), keepdims=True)) / np.where(
            deviation > 0, deviation, 1
        )
        look, low, high = "gray", -2.5, 2.5
        as_it_is = low + (high - low) * images / 255
        images = np.where(plain, as_it_is, spread)
    else:
        high = np.percentile(np.abs(images), 99) or np.abs(images).max() or 1
        look, low = ("signed", -high) if images.min() < 0 else ("positive", 0)
    images = images.repeat(grown, 1).repeat(grown, 2)  # so that gaps are as wide in all layers
    cells = np.pad(images, ((0, rows * columns - count), (1, 1), (1, 1)), constant_values=np.nan)
    height, width = cells.shape[1:]
    sheet = (
        cells.reshape(rows, columns, height, width)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width)
    )
    size = (columns * side + (0.4 if texture else 1), rows * side * height / width + 0.55)
    shape: tuple[int, ...] = () if face is None else (1, 2)
    ratios: dict[str, Any] = {} if face is None else {"width_ratios": (FACE, size[0])}
    size = (size[0] + (0 if face is None else FACE), size[1])
    with _figure(path, *size, *shape, **ratios) as (figure, found):
        axes = found if face is None else found[1]
        if face is not None:
            found[0].imshow(face, **GRAYS)
            found[0].set_xticks([])
            found[0].set_yticks([])
            _bare(found[0])
        colours = matplotlib.colormaps[LOOKS[look]]
        if texture:
            colours = colours.with_extremes(bad=MASKED)  # a white image is seen between bluish gaps
        shown = axes.imshow(sheet, cmap=colours, vmin=low, vmax=high)
        across = names or [f"+{i}" for i in range(columns)]
        axes.set_xticks(np.arange(len(across)) * width + width / 2, across, fontsize=6.5)
        axes.set_yticks(
            np.arange(rows) * height + height / 2, [""] if names else np.arange(rows) * columns
        )
        _bare(axes)
        axes.set_title(textwrap.fill(title, int(13 * size[0])), loc="left")
        if not texture:
            place: dict[str, Any] = {"ax": axes, "shrink": min(1, 2 / (rows * side)), "aspect": 15}
            figure.colorbar(
                shown, **place, extend="both" if look == "signed" else "max"
            ).outline.set_visible(False)
    return path


def class_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str], path: Path) -> Path:
    """{split: C counts} as bars, a panel a split: heights are shares of the split, numbers are
    counts.
    """
    width = 3.5 if len(counts) == 1 else 7
    with _figure(path, width, 2.4, 1, len(counts), sharey=True, squeeze=False) as (_, panels):
        for axes, (split, column) in zip(panels[0], counts.items(), strict=True):
            heights = 100 * np.asarray(column) / max(1, sum(column))
            _bars(axes, range(len(classes)), heights, [f"{n:,}" for n in column], color=COLOURS)
            axes.set_xticks(
                range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor"
            )
            axes.set_title(f"{split}: {sum(column):,} faces", loc="left")
        panels[0, 0].set_ylabel("share of the split, %")
        panels[0, 0].margins(y=0.1)
    return path


def gray_values(images: Mapping[str, np.ndarray], faces: "pd.DataFrame", path: Path) -> Path:
    """How gray values are distributed: of all pixels of {split: uint8 N×1×H×W}, and the mean and
    the deviation of each of `faces`, a DataFrame with columns split, mean, deviation.
    """
    with _figure(path, 7, 2.3, 1, 3) as (figure, panels):
        for i, (split, pixels) in enumerate(images.items()):
            own = faces[faces["split"] == split]
            look = {
                "color": COLOURS[i % 7],
                "linestyle": ("-", "--", ":", "-.")[i % 4],
                "label": split,
            }
            values = (pixels, own["mean"], own["deviation"])
            for axes, column, bins, end in zip(
                panels, values, (256, 32, 32), (256, 256, 128), strict=True
            ):
                counts, edges = np.histogram(column, bins, (0, end))
                axes.stairs(100 * counts / counts.sum(), edges, **look)
        panels[0].set(
            xlabel="gray value", ylabel="pixels, %", xlim=(-5, 261)
        )  # room for the peaks at 0 and 255
        panels[1].set(xlabel="mean of a face", ylabel="faces, %", xlim=(0, 256))
        panels[2].set(xlabel="standard deviation of a face", ylabel="faces, %", xlim=(0, 128))
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(images)
        )
    return path


def shares(table: "pd.DataFrame", path: Path) -> Path:
    """Accuracy, with its 95 % interval, against the share of labels, a line a method: columns
    share, method, accuracy, low, high.
    """
    with _figure(path, 4.5, 3) as (_, axes):
        for i, (method, rows) in enumerate(table.groupby("method", sort=False)):
            x, middle = (
                100 * rows["share"] * 1.02**i,
                100 * rows["accuracy"],
            )  # beside each other, not over
            spread = abs(100 * rows[["low", "high"]].T.to_numpy() - middle.to_numpy())
            axes.errorbar(
                x,
                middle,
                spread,
                color=COLOURS[i % 7],
                marker=MARKERS[1 + i % 5],
                capsize=2,
                label=method,
            )
        axes.set(xlabel="training faces with labels, %", ylabel="accuracy, %", xscale="log")
        _plain(axes.xaxis)
        axes.set_xticks(sorted(100 * table["share"].unique()))
        axes.legend()
    return path


@contextmanager
def _figure(
    path: Path, width: float, height: float, *shape: int, **how: Any
) -> Iterator[tuple[Figure, Any]]:
    """A styled Figure of so many inches and its Axes, as pyplot's subplots(*shape, **how), which
    becomes `path` when the block ends: whole, or not at all.
    """
    kind = path.suffix[1:].lower()
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: a picture's name ends in .png, .svg or .pdf; choose one of them")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # a name in a script that the font lacks: boxes will do
        # no pyplot: nothing stays open, no backend is chosen
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(*shape, **how)
        write(path, lambda file: figure.savefig(file, format=kind, dpi=150))


@contextmanager
def _sheet(path: Path, width: float, height: float) -> Iterator[Axes]:
    """A figure that is one Axes, in inches from its upper left corner: Axes for 40 pictures would
    take seconds.
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
    """Each of the two panels, and what the names of its columns end in."""
    for axes, what, label in zip(
        panels, ("loss", "accuracy"), ("loss", "accuracy, %"), strict=True
    ):
        axes.set_ylabel(label)
        _epochs(axes, *histories)
        yield axes, what


def _bars(axes: Axes, places: Any, heights: Any, numbers: Sequence[str], **look: Any) -> None:
    """Bars with numbers above them and names, which need no ticks, below."""
    axes.bar_label(axes.bar(places, heights, **look), numbers, fontsize=6.5, padding=1)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")


def _bare(axes: Axes) -> None:
    """Names beside a picture, and nothing around it."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _plain(axis: Axis) -> None:
    """Numbers as they are; a logarithmic axis would have mathtext."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter("")


def _epochs(axes: Axes, *histories: "pd.DataFrame") -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if len(epochs := np.concatenate([[], *(history["epoch"] for history in histories)])):
        pad = max(0.5, 0.03 * np.ptp(epochs))
        axes.set_xlim(epochs.min() - pad, epochs.max() + pad)


def _line(
    axes: Axes, history: "pd.DataFrame", column: str, marker: str | None = None, **look: Any
) -> None:
    """A column over the epochs that have it, shares in percent; few are dots as well, since one
    alone draws no line.
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
