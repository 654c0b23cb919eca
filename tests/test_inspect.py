"""fer inspect finds planted copies in drawn faces, and leaves closed splits closed."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fer import CLASSES, plots
from fer.commands import inspect
from fer.data import copies
from fer.data.demo import demo
from fer.data.faces import Data, Faces

PICTURES = {"counts.png", "mean_faces.png", "samples.png", "pixels.png", "duplicates.png"}


@pytest.fixture(scope="module")
def drawn():
    """120 drawn faces, uint8 N×1×48×48, and their labels."""
    splits = demo(106, None, 0, "none").splits
    pairs = [(splits[name].images, splits[name].labels) for name in ("train", "validation")]
    return [torch.cat(column)[:120].numpy() for column in zip(*pairs, strict=True)]


@pytest.fixture(scope="module")
def planted(drawn):
    """100 training and 20 validation faces, images and labels, with copies of every kind among
    them.
    """
    images, labels = (column.copy() for column in drawn)
    noise = np.random.default_rng(0).normal(0, 3, images[0].shape)
    for to, of in ((7, 5), (100, 3), (101, 4)):
        images[to] = images[of]
    labels[[5, 7, 3, 100, 4, 101]] = 0, 1, 2, 3, 4, 4
    images[102] = np.clip(images[10] * 0.6 + 30, 0, 255)  # darker
    images[103] = np.pad(images[11], ((0, 0), (1, 0), (0, 1)), mode="edge")[
        :, :48, 1:
    ]  # down and to the left
    images[13] = np.clip(images[12] + noise, 0, 255)
    labels[[10, 102, 11, 103, 12, 13]] = 0, 0, 1, 2, 3, 3
    images[[20, 21]], images[105] = 0, 126  # blank
    images[105, 0, 0, 0] = 130
    labels[[20, 21]] = 6
    return images, labels


@pytest.fixture(scope="module")
def faces(planted):
    images, labels = map(torch.from_numpy, planted)
    splits = {
        "train": Faces(images[:100], labels[:100], [str(i) for i in range(100)]),
        "validation": Faces(images[100:], labels[100:], [f"v{i}" for i in range(20)]),
    }
    return inspect.describe(splits, images, CLASSES, 0.8, {*splits})[0]


@pytest.fixture
def csv(planted, tmp_path):
    """Writes folder/fer2013.csv of the planted faces, with further rows (emotion, image, usage);
    returns the folder.
    """

    def write(folder, more=()):
        rows = [
            (label, image, "Training" if i < 100 else "PublicTest")
            for i, (image, label) in enumerate(zip(*planted, strict=True))
        ]
        lines = [
            f"{label},{' '.join(map(str, image.ravel()))},{usage}"
            for label, image, usage in [*rows, *more]
        ]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "fer2013.csv").write_text(
            "\n".join(["emotion,pixels,Usage", *lines, ""])
        )
        return f"data.path={folder}"

    return write


def test_exact_copies_are_those_equal_in_every_byte(planted):
    images = planted[0]
    expected = [
        next(j for j in range(i + 1) if np.array_equal(images[i], images[j]))
        for i in range(len(images))
    ]
    assert copies.exact_copies(torch.from_numpy(images)).tolist() == expected
    assert expected[7] == 5 and expected[100] == 3 and expected[21] == 20
    mirrored = torch.from_numpy(images).flip(3)  # a view whose bytes lie in another order
    assert copies.exact_copies(mirrored).tolist() == expected


def test_one_pixel_makes_another_face(drawn):
    images = torch.from_numpy(drawn[0][:3])
    changed = images.clone()
    changed[1, 0, 47, 47] ^= 1
    labels = torch.zeros(3, dtype=torch.int64)
    faces, others = (Faces(each, labels, ["a", "b", "c"]) for each in (images, changed))
    assert faces.among(others).tolist() == [True, False, True]
    assert (faces.hashes == others.hashes).tolist() == [True, False, True]


@pytest.mark.parametrize("block", [7, 256])
def test_near_copies_are_those_of_a_plain_search_over_all_pairs(planted, block, monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", block)
    monkeypatch.setattr(copies, "SIMILAR", 0.6)  # so that there are many to look at
    monkeypatch.setattr(copies, "LOWEST_IN_DISC", -2.0)
    monkeypatch.setattr(copies, "CHANGES", copies.CHANGES[:1])
    images = planted[0][:40]

    def less_mean(image, window):
        return image - sliding_window_view(
            np.pad(image, window // 2, mode="edge"), (window, window)
        ).mean((2, 3))

    def cosine(a, b):
        return (a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-8)

    thumbnails = [less_mean(image[0].reshape(8, 6, 8, 6).mean((1, 3)), 5) for image in images]
    details = [less_mean(image[0].astype(float), 7) for image in images]
    expected = set()
    for i, a in enumerate(details):
        for j in range(i + 1, len(details)):
            if cosine(thumbnails[i], thumbnails[j]) > copies.SIMILAR:
                padded = np.pad(details[j], 2, constant_values=np.nan)
                moved = [padded[y : y + 48, x : x + 48] for y in range(5) for x in range(5)]
                over = [np.isfinite(b) for b in moved]
                if max(cosine(a[m], b[m]) for b, m in zip(moved, over, strict=True)) > 0.3:
                    expected.add((i, j))
    found = copies.near_copies(torch.from_numpy(images), 0.3).positions
    assert (
        10 < len(expected) < 300
        and set(map(tuple, found.tolist())) == expected
        and len(found) == len(expected)
    )


def test_planted_near_copies_are_found_and_no_others(planted):
    images = torch.from_numpy(planted[0])
    found = set(map(tuple, copies.near_copies(images, 0.8).positions.tolist()))
    assert found == {
        (5, 7),
        (3, 100),
        (4, 101),
        (10, 102),
        (11, 103),
        (12, 13),
    }  # nor blank ones, which lack detail


def test_near_copies_may_be_displaced_by_two_pixels(drawn):
    fine = copies.detail(torch.from_numpy(drawn[0][:2]).float(), 7)[:, 0]
    for shift in ((0, 0), (1, -2), (-2, 2)):
        assert copies.correlation(fine, fine.roll(shift, (1, 2))).tolist() == pytest.approx(
            [1, 1], abs=1e-5
        )
    assert copies.correlation(fine, fine.roll(3, 2)).max() < 0.99
    assert copies.correlation(fine, 0 * fine).tolist() == [0, 0]


def test_merged_pairs_are_the_connected_components():
    rng = np.random.default_rng(0)
    for count, edges in ((30, 20), (200, 150), (50, 0), (1, 0)):
        pairs = np.sort(rng.integers(0, count, (edges, 2)))
        ones = np.ones(edges)
        _, component = connected_components(
            coo_array((ones, tuple(pairs.T)), shape=(count, count)), directed=False
        )
        expected = [np.flatnonzero(component == own)[0] for own in component]
        assert copies.merge(count, pairs).tolist() == expected
    chain = np.stack([np.arange(499), np.arange(1, 500)], 1)[::-1]
    assert not copies.merge(500, chain).any()


def test_every_face_is_described(faces, planted):
    images = planted[0].reshape(120, -1)
    np.testing.assert_allclose(faces["mean"], images.mean(1))
    np.testing.assert_allclose(faces["deviation"], images.std(1), atol=1e-9)
    assert faces["label"].tolist() == [CLASSES[label] for label in planted[1]]
    assert faces["id"].tolist()[98:102] == ["98", "99", "v0", "v1"]
    assert (
        faces["kind"].tolist().count("exact") == 8
        and faces["kind"][7] == "exact"
        and faces["kind"][13] == "near"
    )
    assert faces["group"][[100, 101, 102, 103, 13, 21, 50]].tolist() == [3, 4, 10, 11, 12, 20, 50]


def test_counts_hold_every_class_and_the_statistics_of_its_pixels(faces, planted):
    images, labels = planted
    table = inspect.count(faces, ["split", "label"])
    assert len(table) == 14 and table["faces"].sum() == 120 and table["blank"].sum() == 3
    assert table["blank"]["train", "neutral"] == 2
    own = images[:100][labels[:100] == 3]
    row = table.loc["train", "happy"]
    assert row.tolist() == pytest.approx([len(own), 0, own.mean(), own.std()])
    assert inspect.count(faces, ["split"])["deviation"]["validation"] == pytest.approx(
        images[100:].std()
    )


def test_leaks_are_counted_once_per_face(faces):
    assert inspect.leaked(faces, "same", "train", "validation") == (2, 1)
    assert inspect.leaked(faces, "group", "train", "validation") == (4, 2)
    assert inspect.leaked(faces, "same", "validation", "train") == (2, 1)


def test_disputed_groups_begin_with_a_face_of_each_label(faces):
    assert inspect.disputed(faces) == [[3, 100], [5, 7], [11, 103]]
    many = pd.DataFrame({"group": [0, 1, 0, 0, 1, 0], "label": list("aabaac")})
    assert inspect.disputed(many) == [[0, 2, 5, 3]]


def test_closed_and_unlabeled_splits_are_not_shown(planted, capsys):
    images, labels = map(torch.from_numpy, planted)
    split = Faces(images[:3], labels[:3], ["0", "1", "2"])
    unlabeled = Faces(images[:2], labels[:2] * 0 - 1, ["0", "1"])
    splits = {
        "train": split,
        "validation": split,
        "public": split.take([0]),
        "test": unlabeled,
        "private": split,
    }
    chosen = inspect.shown_splits(
        Data(splits | {"private": split.take([0, 1])}, "none", frozenset({"private"}))
    )
    assert list(chosen) == ["train", "public"]
    assert capsys.readouterr().out == (
        "test: 2 faces; it has no labels, so only copies are shown\n"
        "private: 2 faces; it holds, or may hold, PrivateTest, so only copies are shown\n"
    )


def test_the_command_writes_pictures_and_tables_and_says_what_it_found(fer, csv, tmp_path):
    code, out, err = fer("inspect", csv("data"), "out=o", "near=0.8", "samples=1")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("train: 100 faces, 2 blank, gray values ")
    assert lines[1].startswith("validation: 20 faces, 1 blank, gray values ")
    assert lines[2:6] == [
        "exact copies: 4 extra, in 4 groups, 2 of them with conflicting labels",
        "  2 of 20 validation faces are also in train, 1 of them only with another label",
        "exact and near copies: 7 extra, in 7 groups, 3 of them with conflicting labels",
        "  4 of 20 validation faces are also in train, 2 of them only with another label",
    ]
    assert {path.name for path in (tmp_path / "o").iterdir()} == PICTURES | {
        "counts.csv",
        "duplicates.csv",
        "blank.csv",
        "pairs.csv",
    }
    assert all(f"  o/{name}" in lines for name in PICTURES)
    table = pd.read_csv("o/duplicates.csv")
    assert list(table.columns) == ["group", "kind", "split", "id", "label"] and len(table) == 14
    assert table["group"].tolist() == sorted([1, 2, 3, 4, 5, 6, 7] * 2)
    assert table[:2].to_numpy().tolist() == [
        [1, "exact", "train", 3, "fear"],
        [1, "exact", "validation", 0, "happy"],
    ]
    assert pd.read_csv("o/counts.csv")["faces"].sum() == 120
    assert pd.read_csv("o/blank.csv")[["split", "id"]].to_numpy().tolist() == [
        ["train", 20],
        ["train", 21],
        ["validation", 5],
    ]


def test_only_copies_of_private_faces_are_shown(fer, csv, planted, tmp_path):
    private = [(0, planted[0][3], "PrivateTest"), (1, planted[0][50], "PrivateTest")]
    outputs = []
    for data, out in ((csv("without"), "a"), (csv("with", private), "b")):
        code, said, err = fer("inspect", data, f"out={out}", "samples=2", "near=0.8")
        assert code == 0, err
        outputs.append(said.replace("b/", "a/").splitlines())
    told = "private: 2 faces; it holds, or may hold, PrivateTest, so only copies are shown"
    assert outputs[1][0] == told and outputs[1][1:3] == outputs[0][:2]
    assert outputs[1].count("  2 of 2 private faces are also in train") == 2
    assert (
        "conflicting" in outputs[1][3]
        and "  1 of 2 private faces is also in validation" in outputs[1]
    )
    for name in ("counts.csv", "blank.csv", "samples.png", "pixels.png", "duplicates.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    table = pd.read_csv("b/duplicates.csv")
    assert table[table["split"] == "private"]["label"].isna().all()
    assert len(table) == len(pd.read_csv("a/duplicates.csv")) + 3
    fer("inspect", "data.path=with", "out=c", "samples=2", "seed=1", "near=0.8")
    changed = {
        path.name
        for path in (tmp_path / "b").iterdir()
        if (tmp_path / "c" / path.name).read_bytes() != path.read_bytes()
    }
    assert changed == {"samples.png", "duplicates.png"}


def test_mirrored_and_rotated_copies_of_training_faces_are_found(fer, tmp_path):
    images = demo(300, None, 1, "none").splits["train"].images[:, 0].numpy()
    for i, image in enumerate(images):
        place = tmp_path / "d" / "train" / CLASSES[i % 7] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    for i in range(200):
        face = Image.fromarray(images[i])
        if i < 100:
            copy = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            copy = face.rotate(10 if i % 2 else -10, Image.Resampling.BILINEAR)
        place = tmp_path / "d" / "test" / CLASSES[i % 7] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        copy.save(place)
    options = ["out=o", "near=0.8", "samples=1", "data.split=none"]
    code, _, err = fer("inspect", "data.path=d", *options)
    assert code == 0, err
    pairs = pd.read_csv("o/pairs.csv")
    number = r"(\d+)\.png"
    same = pairs["id"].str.extract(number)[0] == pairs["id_of_copy"].str.extract(number)[0]
    found = pairs[same & (pairs["split"] == "train") & (pairs["split_of_copy"] == "test")]
    assert len(found) >= 190 and found["id_of_copy"].str.startswith("test/").all()
    assert found["kind"].value_counts()["mirrored"] >= 95
    assert found["kind"].value_counts()["rotated"] >= 95
    assert len(pairs) - len(found) < 5


@pytest.mark.parametrize("kind", ["brighter", "rescaled", "compressed"])
def test_other_copies_are_found(drawn, tmp_path, kind):
    images = drawn[0][:, 0]

    def changed(image):
        face = Image.fromarray(image)
        if kind == "brighter":
            return face.point(lambda value: min(255, int(1.3 * value)))
        if kind == "rescaled":
            return face.resize((32, 32)).resize((48, 48))
        face.save(tmp_path / "x.jpg", quality=60)
        return Image.open(tmp_path / "x.jpg").convert("L")

    copied = np.stack([np.asarray(changed(image)) for image in images[:30]])
    both = torch.from_numpy(np.concatenate([images, copied])[:, None])
    found = set(map(tuple, copies.near_copies(both, 0.8).positions.tolist()))
    assert found == {(i, len(images) + i) for i in range(30)}


def test_near_null_looks_for_exact_copies_only(fer, csv, tmp_path):
    code, out, err = fer("inspect", csv("data"), "near=null", "format=svg", "samples=1")
    assert code == 0, err
    assert "exact copies: 4 extra" in out and "near" not in out
    assert set(pd.read_csv("inspection/duplicates.csv")["kind"]) == {"exact"}
    assert {path.stem for path in (tmp_path / "inspection").glob("*.svg")} == {
        name[:-4] for name in PICTURES
    }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["near=2"], "near=2: should be less than 1"),
        (["samples=0"], "samples=0"),
        (["format=gif"], "format=gif"),
        (["out=taken"], "taken"),
        (["model=vgg13"], "model: no such key here"),
        (["data.path=nowhere"], "no such folder"),
    ],
)
def test_refusals(fer, tmp_path, args, words):
    (tmp_path / "taken").write_text("")
    data = ["data=demo", "data.images=70"] if "data.path=nowhere" not in args else []
    code, _, err = fer("inspect", *data, *args)
    assert code == 2 and words in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("splits", [("train",), ("train", "validation", "public")])
def test_figures_of_counts_and_gray_values(splits, planted, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **more: (figures.append(self), save(self, *args, **more)),
    )
    counts = {name: [28709, 0, 1234, 5, 60, 700, 8999] for name in splits}
    plots.class_counts(counts, CLASSES, tmp_path / "c.png")
    images = dict.fromkeys(splits, planted[0][:, None])
    rows = pd.DataFrame({"split": np.repeat(splits, 2), "mean": 100.0, "deviation": 50.0})
    plots.gray_values(images, rows, tmp_path / "g.png")
    assert Image.open(tmp_path / "c.png").size == (525 if len(splits) == 1 else 1050, 360)
    bars, curves = figures
    assert len(bars.axes) == len(splits)
    heights = [bar.get_height() for bar in bars.axes[0].patches]
    assert sum(heights) == pytest.approx(100) and heights[1] == 0
    assert [bar.get_facecolor() for bar in bars.axes[0].patches] == [
        matplotlib.colors.to_rgba(c) for c in plots.COLORS[:7]
    ]
    assert "28,709" in {text.get_text() for text in bars.axes[0].texts}
    values = curves.axes[0].patches[0].get_data().values
    np.testing.assert_allclose(
        values, 100 * np.bincount(planted[0].ravel(), minlength=256) / planted[0].size
    )
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in curves.axes)
    for figure in figures:
        figure.set_dpi(150)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        box, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        assert (
            box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        )  # nothing is clipped


def test_empty_class_folders_are_told(fer, tmp_path):
    for name in CLASSES:
        (tmp_path / "faces" / "train" / name).mkdir(parents=True)
    for name in ("happy", "sad"):
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 256, (48, 48), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / "train" / name / f"{i}.png")
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu"]
    told = "no faces of angry, disgust, fear, surprise, neutral to train on"
    code, out, err = fer("train", "data.path=faces", *small)
    words = " ".join(out.split())
    assert code == 0 and "no training faces of angry, disgust, fear, surprise, neut" in words, err
    code, out, err = fer("inspect", "data.path=faces")
    assert code == 0 and told in out, err


@pytest.mark.parametrize(
    ("form", "split"), [("folder", "test"), ("file", "all"), ("labels that may be sealed", "all")]
)
def test_one_split_is_inspected_as_far_as_it_can_be(fer, tmp_path, form, split):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 48, 48), dtype=np.uint8)
    pixels[8], pixels[3] = pixels[0], 7
    words = ["data.path=faces"]
    if form == "folder":
        (tmp_path / "faces").mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "faces" / f"{number}.png")
    else:
        rows = [" ".join(map(str, image.ravel())) for image in pixels]
        sealed = form == "labels that may be sealed"
        table = pd.DataFrame({"emotion": ["sad", "happy", "fear"] * 3} if sealed else {})
        table.assign(pixels=rows).to_csv("faces.csv", index=False)
        words = ["data.path=faces.csv", *(["data.split=none"] if sealed else [])]
    code, out, err = fer("inspect", *words, "near=null")
    assert (code, err) == (0, "")
    assert "exact copies: 1 extra, in 1 group\n" in out
    assert len(pd.read_csv("inspection/duplicates.csv")) == 2
    if form == "labels that may be sealed":
        assert f"{split}: 9 faces; it " in out
        assert not list((tmp_path / "inspection").glob("*.png"))
        return
    assert f"{split}: 9 faces, 1 blank, gray values" in out and "no labels" not in out
    assert len(pd.read_csv("inspection/blank.csv")) == 1
    pictures = {file.stem for file in (tmp_path / "inspection").glob("*.png")}
    assert pictures == {"samples", "pixels"}
