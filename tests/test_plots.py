"""Every figure is written completely and at the right size, whatever the run folder contains."""

import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fer import CLASSES, UserError, plots
from fer.augment import STRENGTHS

UGLY = (
    "$x_1$",
    "dis$gust",
    "<b>fear</b>",
    "_happy_x",
    "a very long name of a class",
    "\\frac{1}{2}",
    "100 %",
)
COLUMNS = [
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "seconds",
]


def history(epochs=20, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({column: np.sort(rng.random(epochs)) for column in COLUMNS})
    return frame.assign(epoch=np.arange(1, epochs + 1), lr=np.geomspace(0.1, 1e-4, epochs))


def report(names, support=5.0):
    row = {"precision": 1.0, "recall": 0.5, "f1-score": 2 / 3, "support": support}
    return dict.fromkeys(names, row) | {"accuracy": 0.5, "macro avg": row, "weighted avg": row}


def gaps():
    frame = history()
    frame.loc[5:8, "val_loss"] = np.nan
    frame.loc[12:, ["train_loss", "val_loss", "val_accuracy", "lr"]] = np.nan
    return frame


def diverged():
    return history(3).assign(train_loss=np.inf, val_loss=np.nan, val_accuracy=np.nan, lr=np.nan)


HISTORIES = {
    "twenty": history(),
    "one": history(1),
    "none": history(0),
    "gaps": gaps(),
    "diverged": diverged(),
    "long": history(500),
}
COUNTS = np.random.default_rng(0).integers(0, 500, (7, 7))
MISSING = COUNTS * (np.arange(7) != 1)[:, None]


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved during the test, to look at what they hold."""
    figures, save = [], Figure.savefig

    def savefig(self, *args, **more):
        save(self, *args, **more)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def size(path):
    with Image.open(path) as image:
        image.load()
        assert len(image.convert("L").getcolors()) > 1, "blank"
        return image.size


def texts(figure):
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


def inside(figure, texts=None):
    """No text ends beyond the picture's edge, or is read as mathematics."""
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, renderer = figure.bbox, canvas.get_renderer()
    for text in figure.findobj(matplotlib.text.Text) if texts is None else texts:
        if text.get_visible() and text.get_text():
            extent = text.get_window_extent(renderer)
            assert not text.get_parse_math(), text
            assert extent.x0 >= box.x0 - 1 and extent.x1 <= box.x1 + 1, text
            assert extent.y0 >= box.y0 - 1 and extent.y1 <= box.y1 + 1, text
    return True


@pytest.mark.parametrize("rows", HISTORIES.values(), ids=HISTORIES.keys())
def test_curves_and_schedules(rows, tmp_path, drawn):
    assert size(plots.curves(rows, tmp_path / "curves.png")) == (1050, 420)
    assert size(plots.schedules(rows, ["lr", "seconds"], tmp_path / "s.png")) == (525, 337)
    for axes in [*drawn[0].axes, *drawn[1].axes]:
        low, high = axes.get_xlim()
        assert all(tick == round(tick) for tick in axes.get_xticks() if low <= tick <= high)


@pytest.mark.parametrize("shares", [[0.1], [0.05, 0.2]])
def test_methods_at_one_share_of_labels_stay_together(shares, tmp_path, drawn):
    rows = [
        {"share": share, "method": method, "accuracy": 0.5, "low": 0.4, "high": 0.6}
        for share in shares
        for method in ("clusters", "supervised only", "round 1", "round 2")
    ]
    assert size(plots.shares(pd.DataFrame(rows), tmp_path / "shares.png")) == (675, 450)
    (axes,) = drawn[0].axes
    low, high = np.log(axes.get_xlim())
    lines = [line.get_xdata() for line in axes.lines if line.get_marker() != "_"]
    points = np.log(np.array(lines, dtype=float))
    assert np.ptp(points, axis=0).max() < 0.15 * (high - low)
    assert low < points.min() and points.max() < high
    assert not len(axes.get_xticks(minor=True))


def test_curves_mark_the_best_epoch_in_percent(tmp_path, drawn):
    rows = history(5).assign(
        val_accuracy=[0.1, 0.75, 0.3, 0.75, np.nan]
    )  # the first of equals, as train keeps it
    plots.curves(rows, tmp_path / "curves.png")
    assert {
        "epoch 2: 75.00 %",
        f"epoch 2: {rows.val_loss[1]:.3f}",
        "accuracy, %",
        "best epoch",
    } <= texts(drawn[0])
    loss, accuracy = drawn[0].axes
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), 100 * rows.train_accuracy)
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [10, 75, 30, 75])
    assert accuracy.lines[2].get_xydata().tolist() == [[2, 75]]
    assert loss.lines[0].get_marker() == "o"


def test_a_gap_does_not_hide_lone_points(tmp_path, drawn):
    rows = history(40)
    rows.loc[rows.epoch % 10 != 0, "val_loss"] = np.nan
    plots.curves(rows, tmp_path / "curves.png")
    line = drawn[0].axes[0].lines[1]
    assert line.get_xdata().tolist() == [10, 20, 30, 40] and line.get_marker() == "o"


def test_a_rate_has_a_logarithmic_axis_where_it_helps(tmp_path, drawn):
    rows = history().assign(lr_flat=0.1, lr_to_zero=np.linspace(0.1, 0, 20))
    plots.schedules(rows, ["lr", "lr_flat", "lr_to_zero", "seconds"], tmp_path / "s.png")
    assert [axes.get_yscale() for axes in drawn[0].axes] == ["log", "linear", "linear", "linear"]
    assert {"0.1", "0.01"} <= texts(drawn[0])  # and no mathtext source
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["learning rate", "lr_flat", "lr_to_zero", "seconds"]


def test_every_quantity_that_a_curve_drives_has_a_title_in_words():
    assert set(plots.SCHEDULE_TITLES) == {"lr", "dropout", "size", *STRENGTHS}


def test_markers_at_0_and_100_percent_are_whole(tmp_path, drawn):
    rows = history(2).assign(val_recall_sad=[0.0, 1.0])
    plots.recalls(rows, ["sad"], tmp_path / "recalls.png")
    ends = np.array([0.0, 1.0])
    curve = ("as trained", ends, ends, np.array([3, 4]))
    plots.reliability([curve, curve], tmp_path / "calibration.png")
    for figure in drawn:
        lines = [line for axes in figure.axes for line in axes.lines]
        markers = [line for line in lines if line.get_marker() != "None"]
        assert markers and not any(line.get_clip_on() for line in markers)


@pytest.mark.parametrize("epochs", [5, 40])
def test_recalls_of_the_classes_are_told_apart_without_color(epochs, tmp_path, drawn):
    rows = history(epochs).assign(**{f"val_recall_{name}": 0.5 for name in CLASSES})
    plots.recalls(rows, CLASSES, tmp_path / "recalls.png")
    markers = [line.get_marker() for line in drawn[0].axes[0].lines]
    assert len(set(markers)) == len(CLASSES) and "None" not in markers


@pytest.mark.filterwarnings("ignore:Glyph")  # plots hides it; measuring the text here does not
@pytest.mark.parametrize("count", [0, 1, 4, 5, 20])
@pytest.mark.parametrize(
    "name", ["_run {}", "runs/2025-11-24_21-10-00_{} $x_1$ <b>" + "long" * 20, "学 {}"]
)
def test_compare(count, name, tmp_path, drawn):
    names = [name.format(i) for i in range(count)]
    runs = {n: [[*HISTORIES.values()][i % len(HISTORIES)]] for i, n in enumerate(names)}
    width, height = size(plots.compare(runs, tmp_path / "compare.png"))
    assert width == 1050 and height >= 405
    legend = (drawn[0].legends or [drawn[0].axes[1].get_legend()])[0]
    assert inside(drawn[0], legend.get_texts())
    assert all(
        text.get_text().startswith(n[:20])
        for text, n in zip(legend.get_texts(), names, strict=True)
    )
    looks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    assert len(looks) == len(set(looks)) == count
    drawn_looks = [(line.get_color(), line.get_marker()) for line in drawn[0].axes[1].lines]
    if count < 8:
        assert [line.get_linestyle() for line in drawn[0].axes[1].lines] == ["--", "-"] * count
    else:  # on the panel too, where few epochs have dots, as many looks as runs
        assert drawn_looks == looks


def test_seeds_are_one_curve_with_their_spread(tmp_path, drawn):
    first, second = (
        history(),
        history().assign(val_accuracy=lambda rows: rows["val_accuracy"] + 0.1),
    )
    plots.compare({"a": [first, second.iloc[:10]], "b": [first]}, tmp_path / "c.png")
    axes = drawn[0].axes[1]
    (band,) = axes.collections
    assert {line.get_color() for line in axes.lines} == set(plots.COLORS[:2]) and len(
        axes.lines
    ) == 4
    middle = axes.lines[1].get_ydata()
    np.testing.assert_allclose(middle[:10], 100 * first["val_accuracy"][:10] + 5)
    np.testing.assert_allclose(middle[10:], 100 * first["val_accuracy"][10:])
    low, high = np.ptp(band.get_paths()[0].vertices[:, 1]), 100 * np.ptp(first["val_accuracy"])
    assert low > high / 2
    legend = (drawn[0].legends or [axes.get_legend()])[0]
    assert (
        "(2 seeds)" in legend.get_texts()[0].get_text()
        and "seeds" not in legend.get_texts()[1].get_text()
    )


@pytest.mark.parametrize("count", [1, 2, 9])
def test_matrices_and_recalls_stand_side_by_side(count, tmp_path, drawn):
    names = [f"optim=adam optim.lr={i}" for i in range(count)]
    plots.confusions(dict.fromkeys(names, COUNTS), CLASSES, tmp_path / "c.png")
    plots.recall_dots({name: np.linspace(0, 1, 7) for name in names}, CLASSES, tmp_path / "r.png")
    matrices, recalls = drawn
    shown = [axes for axes in matrices.axes if axes.images]
    assert (
        [axes.get_title().replace("\n", " ") for axes in shown] == names
        and inside(matrices)
        and inside(recalls)
    )
    looks = {
        (line.get_color(), line.get_marker())
        for line in recalls.axes[0].lines
        if line.get_marker() != "None"
    }
    assert len(looks) == count


@pytest.mark.parametrize("classes", [CLASSES, UGLY])
@pytest.mark.parametrize("matrix", [COUNTS, MISSING, COUNTS * 0], ids=["full", "missing", "empty"])
def test_confusion(matrix, classes, tmp_path, drawn):
    width, height = size(plots.confusion(matrix, classes, tmp_path / "c.png", "a_b $title$"))
    assert abs(height - width - 30) <= 1 and inside(drawn[0])
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(classes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "truth")
    assert len(axes.texts) == 7 * (matrix.sum(1) > 0).sum()


def test_confusion_cells(tmp_path, drawn):
    matrix = np.diag([80, 3, 3, 3, 3, 3, 3])
    matrix[0, 2] = 20
    plots.confusion(matrix, CLASSES, tmp_path / "c.png")
    cells = {
        text.get_position(): (text.get_text(), text.get_color()) for text in drawn[0].axes[0].texts
    }
    assert cells[0, 0] == ("80 %\n(80)", "white")
    assert cells[2, 0] == ("20 %\n(20)", plots.BLACK)  # x is the prediction
    assert cells[0, 2][0] == "0"


@pytest.mark.parametrize(
    ("count", "columns", "expected"), [(1, 8, (157, 204)), (40, 8, (1260, 926)), (5, 3, (472, 373))]
)
def test_faces(count, columns, expected, tmp_path, drawn):
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 48, 48), dtype=np.uint8)
    captions = [f"{UGLY[i % 7]}"[:12] for i in range(count)]
    ok = ([False, True, None, np.False_] * 10)[:count]
    found = size(plots.faces(images, captions, tmp_path / "f.png", columns, ok))
    assert np.abs(np.subtract(found, expected)).max() <= 30 and inside(drawn[0])
    axes = drawn[0].axes[0]
    wrong = sum(good is not None and not good for good in ok)
    assert len(axes.images) == count and len(axes.patches) == wrong
    assert sum(text.get_text().startswith("✗") for text in axes.texts) == wrong
    assert sum(text.get_text().startswith("✓") for text in axes.texts) == ok.count(True)


def test_a_number_and_its_percent_sign_stay_in_one_line(tmp_path, drawn):
    face = np.zeros((1, 1, 48, 48), dtype=np.uint8)
    plots.faces(face, ["contentment 55 %\nlabel: sad"], tmp_path / "f.png", ok=[False])
    assert "✗ contentment\n55 %\nlabel: sad" in texts(drawn[0])


@pytest.mark.parametrize("maps", [3, 4])
def test_explanations(maps, tmp_path, drawn):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 12, 12))
    masked = np.where(images > 0.9, 128, np.nan)
    columns = {
        "face": ("gray", 99 + images),
        "gradients of it": ("signed", images),
        "none": ("positive", 0 * images),
    }
    columns |= {"$cam$": ("overlay", np.abs(images))} if maps == 4 else {}
    captions = [
        (UGLY[0], "happy", "happy", 0.5),
        ("a/long/path/" * 9, "sad", "happy", 1),
        ("x.png", "", "surprise", 0),
    ]
    plots.explanations(
        columns | {"what is left of it": ("gray", masked)}, captions, UGLY[5], tmp_path / "e.png"
    )
    assert size(tmp_path / "e.png") and inside(drawn[0])
    axes = drawn[0].axes[0]
    assert len(axes.patches) == 1 and len(axes.images) == 3 * (maps + 1) + 3 * (maps == 4) + 2
    found = "".join(texts(drawn[0]))
    assert (
        "✓ prediction: happy 50 %" in found
        and "✗ prediction: happy 100 %" in found
        and found.count("truth") == 2
    )


@pytest.mark.parametrize("count", [1, 7, 64, 100, 300])
@pytest.mark.parametrize("texture", [False, True])
def test_mosaic_shows_every_image_in_its_place(count, texture, tmp_path, drawn):
    images = np.arange(count)[:, None, None] * np.ones((count, 3, 3)) - 2
    plots.mosaic(
        images, "_a layer of $a$ name that is " + "long " * 12, tmp_path / "m.png", texture
    )
    axes = drawn[0].axes[0]
    assert size(tmp_path / "m.png")[0] <= 1160 and inside(
        drawn[0], axes.findobj(matplotlib.text.Text)
    )
    first = [int(label.get_text()) for label in axes.get_yticklabels()]
    columns = len(axes.get_xticklabels())
    assert first == list(range(0, count, columns)) and len(drawn[0].axes) == (1 if texture else 2)
    if not texture:
        (sheet,) = axes.images
        x, y = axes.get_xticks(), axes.get_yticks()
        shown = [sheet.get_array()[int(y[i // columns]), int(x[i % columns])] for i in range(count)]
        assert shown == [i - 2 for i in range(count)]
        assert np.ma.getmaskarray(sheet.get_array()).sum() > 0


def test_a_mosaic_of_named_images_and_of_nothing_but_zeros(tmp_path, drawn):
    plots.mosaic(np.zeros((7, 48, 48)), "title", tmp_path / "m.png", True, CLASSES)
    plots.mosaic(np.zeros((9, 1, 1)), "title", tmp_path / "n.png")
    assert set(CLASSES) <= texts(drawn[0]) and inside(drawn[0]) and inside(drawn[1])


@pytest.mark.parametrize("count", [9, 70, 300])
def test_a_mosaic_of_more_names_than_fit_a_row(count, tmp_path, drawn):
    names = [f"c{number}" for number in range(count)]
    plots.mosaic(np.zeros((count, 48, 48)), "title", tmp_path / "m.png", True, names)
    assert {*names} <= texts(drawn[0]) and inside(drawn[0])


def test_no_faces_and_a_caption_too_many(tmp_path):
    none = np.zeros((0, 1, 48, 48), dtype=np.uint8)
    assert size(plots.faces(none, [], tmp_path / "f.png"))
    with pytest.raises(ValueError, match="zip"):
        plots.faces(none, ["caption"], tmp_path / "g.png", ok=[])
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


@pytest.mark.parametrize("names", [CLASSES, UGLY, ["one"]])
def test_per_class_bars(names, tmp_path, drawn):
    assert size(plots.per_class_bars(report(names, 0.0), tmp_path / "b.png")) == (
        1050 if len(names) == 7 else 510,
        360,
    )
    assert inside(drawn[0]) and len(drawn[0].axes[0].patches) == 3 * len(names)
    assert {"precision", "recall", "F1", "100", "50", "67"} <= texts(drawn[0])


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".svg", ".pdf"])
def test_the_suffix_names_the_format(suffix, tmp_path):
    path = plots.confusion(COUNTS, UGLY, tmp_path / f"c{suffix}")
    heads = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(heads[suffix.lower()])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_is_reported_and_keeps_the_old_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"c\.gif.*\.png"):
        plots.confusion(COUNTS, CLASSES, tmp_path / "c.gif")
    with pytest.raises(UserError, match="cannot be written"):
        plots.confusion(COUNTS, CLASSES, tmp_path / "missing" / "c.png")
    path = tmp_path / "c.png"
    path.write_text("old Matplotlib")

    def full(self, name, **more):
        name.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match="No space"):
        plots.confusion(COUNTS, CLASSES, path)
    assert path.read_text() == "old Matplotlib" and len(list(tmp_path.iterdir())) == 1


def test_global_style_stays(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.curves(history(), tmp_path / "c.png")
    assert dict(matplotlib.rcParams) == before


def test_imports_neither_pyplot_nor_torch():
    code = (
        "import sys, pathlib, tempfile, numpy; from fer import plots, CLASSES\n"
        "plots.confusion(numpy.eye(7, dtype=int), CLASSES, pathlib.Path(tempfile.mkdtemp()) / "
        "'c.png')\n"
        "assert not {'matplotlib.pyplot', 'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plain_images_of_a_mosaic_are_as_bright_as_they_are_and_a_face_stands_beside(
    tmp_path, drawn
):
    stripes = np.tile([100.0, 140.0], (48, 24))
    sheet = np.stack(
        [np.full((48, 48), 255.0), np.zeros((48, 48)), np.full((48, 48), 128.0), stripes]
    )
    sheet[0, :2] = 0  # what padding excites at the rim
    plots.mosaic(sheet, "t", tmp_path / "m.png", texture=True)
    shown = np.ma.getdata(drawn[0].axes[0].images[0].get_array())
    middles = [float(shown[25, 50 * i + 25]) for i in range(4)]
    assert middles[0] == pytest.approx(2.5) and middles[1] == pytest.approx(-2.5)
    assert abs(middles[2]) < 0.05 and abs(middles[3]) == pytest.approx(1)
    plots.mosaic(sheet, "t", tmp_path / "m.png", face=stripes)
    assert (drawn[1].axes[0].images[0].get_array() == stripes).all()


def test_figures_fit_any_number_of_classes(tmp_path, drawn):
    classes = [f"feeling {number}" for number in range(30)]
    frame = history()
    for name in classes:
        frame[f"val_recall_{name}"] = np.linspace(0, 1, len(frame))
    counts = np.arange(900).reshape(30, 30)
    plots.recalls(frame, classes, tmp_path / "recalls.png")
    plots.class_counts({"train": counts[0], "test": counts[1]}, classes, tmp_path / "counts.png")
    plots.recall_dots({"a": counts[0] / 30, "b": counts[1] / 60}, classes, tmp_path / "dots.png")
    plots.per_class_bars(report(classes), tmp_path / "bars.png")
    # To measure the texts of 900 cells takes half a minute.
    some, cells = classes[:11], counts[:11, :11]
    plots.confusions({"a": cells, "b": cells}, some, tmp_path / "confusions.png")
    plots.confusion(cells, some, tmp_path / "confusion.png")
    for figure in drawn:
        assert inside(figure)
        names = {text.partition("\n")[0] for text in texts(figure)}
        assert set(classes) <= names or (figure in drawn[-2:] and set(some) <= names)
    recalls = drawn[0].axes[0]
    looks = {(line.get_color(), line.get_marker()) for line in recalls.lines}
    assert len(looks) >= 24 and recalls.get_window_extent().width > 200


@pytest.mark.filterwarnings("error")  # as of a layout that does not fit
def test_long_names_of_classes_are_shortened_where_they_would_overlap(tmp_path, drawn):
    classes = [f"{number} people {'who_frown_' * 8}{number}" for number in range(5)]
    frame = history()
    for name in classes:
        frame[f"val_recall_{name}"] = 0.5
    counts = np.arange(25).reshape(5, 5)
    plots.class_counts({"train": counts[0], "test": counts[1]}, classes, tmp_path / "counts.png")
    plots.confusion(counts, classes, tmp_path / "confusion.png")
    plots.confusions({"a": counts, "b": counts}, classes, tmp_path / "confusions.png")
    plots.mosaic(np.zeros((5, 9, 9)), "title", tmp_path / "ideal.png", True, classes)
    maps = dict.fromkeys("abcde", ("gray", np.zeros((1, 9, 9))))
    plots.explanations(maps, [("id", classes[0], classes[1], 1)], "title", tmp_path / "maps.png")
    plots.per_class_bars(report(classes), tmp_path / "bars.png")
    plots.recall_dots({"a": counts[0] / 30}, classes, tmp_path / "dots.png")
    plots.recalls(frame, classes, tmp_path / "recalls.png")
    *_, maps_figure, bars, dots, recalls = drawn
    for figure in drawn:
        texts = figure.findobj(matplotlib.text.Text)
        assert inside(figure, [text for text in texts if "people" in text.get_text()])
    for figure in (bars, dots):
        boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert recalls.axes[0].get_window_extent().width > 400
    axes = maps_figure.axes[0]
    left_of_maps = axes.images[0].get_window_extent().x0
    caption = next(text for text in axes.texts if text.get_text().startswith("id"))
    assert caption.get_window_extent().x1 <= left_of_maps


def test_figures_of_few_classes_are_as_wide_as_these(tmp_path, drawn):
    title = "a network with a long name: 34.8 % of 23 validation faces"
    plots.confusion(np.eye(2, dtype=int), ["no", "yes"], tmp_path / "confusion.png", title)
    assert inside(drawn[0]) and title in {" ".join(text.split("\n")) for text in texts(drawn[0])}
    images = np.random.default_rng(0).random((3, 48, 48))
    plots.mosaic(images, "three faces", tmp_path / "mosaic.png", names=["a", "b", "c"])
    assert drawn[1].axes[0].images[0].get_array().shape == (50, 150)
