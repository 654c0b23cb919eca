"""Every form in which data sets come, drawn by the tests: what is taken for what, and refusals."""

import csv
import gzip
import io
import json
import os
import shlex
import shutil
import tarfile
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from loading import load
from PIL import Image
from pyarrow import parquet

from fer import CLASSES, PICTURE_ENDINGS, UserError, config
from fer.data.readers import archives, cache
from fer.inference import Ensemble

RNG = np.random.default_rng(1)
RAFDB = ["surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"]


def face(side=48):
    return RNG.integers(0, 256, (side, side), dtype=np.uint8)


def png(side=48, mode="L"):
    file = io.BytesIO()
    Image.fromarray(face(side)).convert(mode).save(file, "PNG")
    return file.getvalue()


def draw_folders(root, splits, names, count=3, side=48):
    for split in splits:
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (folder / f"{name}{i}.png").write_bytes(png(side))
    return root


def pixels(side=48):
    return " ".join(map(str, face(side).ravel()))


def usage_of(row):
    """Of ten rows the first six train, the next two are PublicTest, the last two PrivateTest."""
    if row % 10 < 6:
        return "Training"
    return "PublicTest" if row % 10 < 8 else "PrivateTest"


def write_csv(path, labels, usage=True, side=48, **more):
    """A CSV of faces. usage: with that column. more: further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", *(["Usage"] if usage else []), *more])
        for i, label in enumerate(labels):
            columns = [usage_of(i)] if usage else []
            columns += [values[i] for values in more.values()]
            writer.writerow([label, pixels(side), *columns])
    return path


def counts(data):
    return {name: len(faces) for name, faces in data.splits.items()}


@pytest.mark.parametrize("numbers", [range(1, 8), range(7)])
def test_folders_of_numbers_are_given_no_meaning(tmp_path, numbers):
    draw_folders(tmp_path, ["train", "test"], [str(number) for number in numbers])
    with pytest.raises(UserError) as error:
        load(tmp_path)
    words = str(error.value)
    assert "what do these numbers mean?" in words and "data.names=[surprise,fear," in words
    assert "RAF-DB" in words and "AffectNet" in words
    data = load(tmp_path, names=RAFDB)
    assert data.classes == CLASSES
    named = dict(zip(data.splits["train"].ids, data.splits["train"].labels.tolist(), strict=True))
    for name, label in named.items():
        number = int(name.split("/")[1])
        assert CLASSES[label] == RAFDB[number - min(numbers)]
    by_number = dict(zip(numbers, RAFDB, strict=True))
    assert torch.equal(
        load(tmp_path, names=by_number).splits["train"].labels, torch.tensor(list(named.values()))
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["happy", "sad"], "2 names for the 3 numbers 1, 2, 3"),
        ({1: "happy"}, "has names for some of the numbers, but none for 2, 3; name all of them"),
        ({1: "happy", "two": "sad"}, "no label 'two'; there are 1, 2, 3"),
        (["a", "b", "a"], r"has a twice; give each number its own name, and join classes with"),
        (["happy", "joy", "sad"], "has happy twice"),
    ],
)
def test_names_that_do_not_fit_the_numbers_are_refused(tmp_path, names, words):
    draw_folders(tmp_path, ["train"], ["1", "2", "3"])
    with pytest.raises(UserError, match=words):
        load(tmp_path, names=names)


def test_one_class_is_called_so(tmp_path):
    draw_folders(tmp_path, ["train"], ["happy"])
    assert load(tmp_path).description.endswith("; 1 class: happy")


def test_names_of_words_are_refused(tmp_path):
    draw_folders(tmp_path, ["train"], ["happy", "sad"])
    with pytest.raises(UserError, match="the labels here are words"):
        load(tmp_path, names=["happy", "sad"])


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev", "PublicTest"])
@pytest.mark.parametrize("test", ["test", "Testing", "PrivateTest"])
def test_splits_have_many_names(tmp_path, train, val, test):
    draw_folders(tmp_path, [train], ["happy", "sad"], count=2, side=8)
    draw_folders(tmp_path, [val, test], ["happy", "sad"], count=1, side=8)
    data = load(tmp_path)
    assert counts(data) == {"train": 4, "validation": 2, "test": 2} and data.sealed == {"test"}
    said = f"{train}/ trains, {val}/ validates, {test}/ stays sealed; 2 classes: happy, sad"
    assert data.description == said
    data = load(tmp_path, split="fraction", fraction=0.5)
    assert counts(data) == {"train": 2, "validation": 2, "val": 2, "test": 2}


def test_two_folders_for_one_split_are_refused(tmp_path):
    draw_folders(tmp_path, ["train", "val", "valid"], ["happy", "sad"], count=1, side=8)
    with pytest.raises(UserError, match="val/ and valid/ are both validation"):
        load(tmp_path)


def test_a_folder_with_a_longer_name_is_named_beside_that_of_its_split(tmp_path):
    draw_folders(tmp_path, ["train", "train_images", "test"], ["happy", "sad"], side=8)
    data = load(tmp_path)
    assert counts(data) == {"train": 4, "validation": 2, "test": 6}
    assert data.description.endswith("; not read: train_images/")


def test_a_table_of_anything_with_a_longer_name_is_no_split(tmp_path):
    write_csv(tmp_path / "fer2013.csv", [*range(7)] * 10)
    write_csv(tmp_path / "test.csv", [*range(7)], usage=False)
    write_csv(tmp_path / "1_test.csv", [*range(7)] * 2, usage=False)
    (tmp_path / "valid_1.csv").write_text("epoch,accuracy\n1,0.5\n")
    data = load(tmp_path)
    assert "valid_1.csv" not in data.description and counts(data)["test"] == 7


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["Neutral", "1_anger", "happiness"], ("angry", "happy", "neutral")),
        (["contempt", "fearful", "SADNESS"], ("fear", "sad", "contempt")),
        (["yawning", "asleep", "awake"], ("asleep", "awake", "yawning")),
        (["happy", "bored"], ("bored", "happy")),
    ],
)
def test_classes_come_from_the_folders(tmp_path, names, classes):
    draw_folders(tmp_path, ["train"], names)
    data = load(tmp_path, split="none")
    assert data.classes == classes and counts(data) == {"all": 3 * len(names)}


def test_class_folders_without_splits_give_a_stratified_part(tmp_path):
    draw_folders(tmp_path, ["."], ["anger", "contempt", "happy"], count=10)
    data = load(tmp_path)
    assert data.classes == ("angry", "happy", "contempt")
    assert torch.bincount(data.splits["validation"].labels).tolist() == [1, 1, 1]
    assert data.splits["train"].ids[0] == "anger/anger0.png"
    assert not (tmp_path.parent / ".fer-cache").exists()


def test_a_set_too_small_for_a_tenth_validates_on_one_face_of_each_class(tmp_path):
    draw_folders(tmp_path, ["train"], ["happy", "sad"], count=2)
    draw_folders(tmp_path, ["train"], ["fear"], count=1)
    data = load(tmp_path)
    assert torch.bincount(data.splits["validation"].labels, minlength=3).tolist() == [0, 1, 1]
    assert torch.bincount(data.splits["train"].labels).tolist() == [1, 1, 1]


def test_labels_as_words_and_numbers(tmp_path):
    words = write_csv(tmp_path / "a" / "fer2013.csv", ["Happy", "sadness"] * 10)
    assert load(words).classes == ("happy", "sad")
    numbers = write_csv(tmp_path / "b" / "faces.csv", [3, 4] * 10, usage=False)
    with pytest.raises(UserError, match=r"faces\.csv, line 2: the labels are the numbers 3, 4"):
        load(numbers)
    assert load(numbers, names=["no", "yes"]).classes == ("no", "yes")
    shown = write_csv(tmp_path / "c" / "ckextended.csv", [*range(8)] * 3)
    assert load(shown).classes == (*CLASSES, "contempt")
    assert load(tmp_path / "c").classes == (*CLASSES, "contempt")


def test_five_emotions_are_five_classes(tmp_path):
    write_csv(tmp_path / "fer2013.csv", [0, 3, 4, 5, 6] * 4)
    data = load(tmp_path)
    assert data.classes == ("angry", "happy", "sad", "surprise", "neutral")
    assert data.missing_classes == [] and data.splits["train"].labels.max() == 4
    assert load(tmp_path, classes=list(CLASSES)).missing_classes == ["disgust", "fear"]


@pytest.mark.parametrize("label", ["", "1.5", "1e2", "x" * 101, "a\x07"])
def test_what_is_no_label_is_refused_with_its_line(tmp_path, label):
    write_csv(tmp_path / "fer2013.csv", ["happy", label] * 5)
    with pytest.raises(UserError, match=r"line 3: .* is not a label"):
        load(tmp_path)


def test_classes_to_keep(tmp_path):
    write_csv(tmp_path / "fer2013.csv", [*range(7)] * 10)
    data = load(tmp_path, classes=["neutral", "anger"])
    assert data.classes == ("neutral", "angry") and len(data.splits["train"]) == 12
    kept = load(tmp_path).splits["train"]
    kept = kept.take((kept.labels == 0) | (kept.labels == 6))
    assert torch.equal(data.splits["train"].images, kept.images)
    assert torch.equal(data.splits["train"].labels == 0, kept.labels == 6)
    assert (
        "50 faces of other classes left out (disgust, fear, happy, sad, surprise)"
        in data.description
    )
    with pytest.raises(
        UserError, match=r"data\.classes: no class 'smile'; there are angry, disgust"
    ):
        load(tmp_path, classes=["smile"])
    with pytest.raises(UserError, match="names angry twice"):
        load(tmp_path, classes=["angry", "anger"])


def test_merged_classes(tmp_path):
    write_csv(tmp_path / "fer2013.csv", [*range(7)] * 10)
    data = load(tmp_path, merge={"negative": ["anger", "disgust", "fear", "sad"]})
    assert data.classes == ("negative", "happy", "surprise", "neutral")
    before = load(tmp_path).splits["train"].labels
    assert torch.equal(data.splits["train"].labels, torch.tensor([0, 0, 0, 1, 0, 2, 3])[before])
    data = load(tmp_path, merge={"bad": ["angry", "sad"]}, classes=["happy", "bad"])
    assert data.classes == ("happy", "bad")
    for merge, words in (
        ({"x": ["smile"]}, "no class 'smile'"),
        ({"x": ["sad"], "y": ["sad"]}, "sad is in x and in y"),
        ({"happy": ["sad"]}, "happy is already a class"),
    ):
        with pytest.raises(UserError, match=words):
            load(tmp_path, merge=merge)


def test_groups_stay_in_one_split(tmp_path):
    for subject in range(10):
        for i, name in enumerate(["happy", "sad"] * 3):
            folder = tmp_path / "ck" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"S{subject:03}_{i}.png").write_bytes(png(8))
    data = load(tmp_path / "ck", groups=r"(S\d+)_", fraction=0.2)
    sides = [
        {name.split("/")[-1][:4] for name in data.splits[split].ids}
        for split in ("train", "validation")
    ]
    assert not sides[0] & sides[1] and len(sides[1]) == 2
    with pytest.raises(UserError, match=r"neither a column nor found in"):
        load(tmp_path / "ck", groups="person")
    subjects = [f"p{i // 5}" for i in range(40)]
    path = write_csv(tmp_path / "train.csv", [3, 4] * 20, usage=False, subject=subjects)
    data = load(path, groups="Subject", fraction=0.25)
    assert len(data.splits["validation"]) == 10
    position = {
        image.numpy().tobytes(): i
        for i, image in enumerate(load(path, split="none").splits["all"].images)
    }
    sides = [
        {subjects[position[image.numpy().tobytes()]] for image in data.splits[split].images}
        for split in ("train", "validation")
    ]
    assert not sides[0] & sides[1]
    with pytest.raises(UserError, match="has no such column"):
        load(path, groups="person")


JUNK = [
    "__MACOSX/a/._x.png",
    ".DS_Store",
    "train/Thumbs.db",
    "train/__MACOSX/x.png",
    "train/@eaDir/x.png",
    "train/happy/desktop.ini",
    "train/.ipynb_checkpoints/x.png",
    "train/happy/._happy0.png",
]


def test_what_file_managers_leave_is_passed_over(tmp_path):
    draw_folders(tmp_path, ["train"], ["happy", "sad"])
    clean = load(tmp_path)
    for name in JUNK:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    data = load(tmp_path)
    assert data.classes == clean.classes and counts(data) == counts(clean)


def packed(root, kind):
    """An archive of a folder, with junk."""
    file = io.BytesIO()
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(root))
            archive.writestr("__MACOSX/x.png", "junk")
    else:
        mode = "w" if kind == "tar" else "w:gz"
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for path in files:
                archive.add(path, path.relative_to(root))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_archives_are_read_from_the_cache(tmp_path, kind, named):
    source = draw_folders(tmp_path / "x", ["set/train", "set/valid"], ["happy", "sad"])
    expected = load(source)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"faces.{kind}").write_bytes(packed(source, kind))
    for _ in range(2):
        data = load(tmp_path / "d" / (f"faces.{kind}" if named == "file" else ""))
        assert counts(data) == {"train": 6, "validation": 6}
        assert data.splits["train"].ids == expected.splits["train"].ids
        assert torch.equal(data.splits["train"].images, expected.splits["train"].images)
    left = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert left == [".fer-cache", f"faces.{kind}"]


def test_the_official_archive_and_a_compressed_csv(tmp_path):
    write_csv(tmp_path / "x" / "fer2013" / "fer2013.csv", [*range(7)] * 3)
    expected = load(tmp_path / "x")
    assert expected.description.startswith("fer2013/fer2013.csv: Training trains")
    (tmp_path / "fer2013.tar.gz").write_bytes(packed(tmp_path / "x", "tar.gz"))
    content = (tmp_path / "x" / "fer2013" / "fer2013.csv").read_bytes()
    (tmp_path / "fer2013.csv.gz").write_bytes(gzip.compress(content))
    for name in ("fer2013.tar.gz", "fer2013.csv.gz"):
        data = load(tmp_path / name)
        assert data.hash == expected.hash and counts(data) == counts(expected)


@pytest.mark.parametrize("name", ["../out.png", "/tmp/fer-out.png", "a/../../out.png", "C:\\o.png"])
def test_a_member_never_leaves_the_cache(tmp_path, name):
    place = tmp_path / "d"
    place.mkdir()
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        archive.writestr(name, png())
        for kind in ("happy", "sad"):
            for i in range(3):
                archive.writestr(f"{kind}/{i}.png", png())
    with tarfile.open(place / "b.tar", "w") as archive:
        for member in (name, "happy/1.png", "happy/2.png", "sad/1.png", "sad/2.png"):
            content = png()
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("sad/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for file in ("a.zip", "b.tar"):
        data = load(place / file)
        assert data.classes == ("happy", "sad")
        assert f"not read: {name}" in data.description
        assert ("sad/link.png" in data.description) == (file == "b.tar")
    outside = [path for path in tmp_path.rglob("*.png") if ".fer-cache" not in path.parts]
    assert not outside and not Path("/tmp/fer-out.png").exists()
    assert not list(tmp_path.rglob("link.png"))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALLOWED", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/happy/1.png", bytes(8 << 20))
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("faces.csv")
        info.size = 8 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    for name in ("a.zip", "b.tgz"):
        with pytest.raises(UserError, match="expands to more than 100 times its size"):
            load(tmp_path / name)
    assert not [path for path in (tmp_path / ".fer-cache").rglob("*") if path.is_file()]


def test_archives_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 nothing more")
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"x" * 2000)[:30])
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("notes.pdf", "")
    (tmp_path / "x").mkdir()
    write_csv(tmp_path / "x" / "fer2013.csv", [*range(7)])
    whole = packed(tmp_path / "x", "tar.gz")
    (tmp_path / "d.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("a.zip", "b.tar.gz", "d.tar.gz"):
        with pytest.raises(UserError, match="is a damaged archive"):
            load(tmp_path / name)
    with pytest.raises(UserError, match=r"holds no pictures or tables, only notes\.pdf"):
        load(tmp_path / "c.zip")
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.write(tmp_path / "d.tar.gz", "in/d.tar.gz")
        archive.writestr("README.txt", "")
    with pytest.raises(
        UserError, match=r"e\.zip: holds another archive, in/d\.tar\.gz; unpack it, and name that"
    ):
        load(tmp_path / "e.zip")


def test_links_in_an_archive_are_the_pictures_that_they_lead_to(tmp_path):
    names = [
        f"{split}/{name}/{i}.png"
        for split in ("a", "b")
        for name in ("happy", "sad")
        for i in range(3)
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            content = png(8)
            info = tarfile.TarInfo(f"all/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name in names:
            hard = tarfile.TarInfo(f"train/{name[2:].replace('/', f'/{name[0]}')}")
            hard.type, hard.linkname = tarfile.LNKTYPE, f"all/{name}"
            archive.addfile(hard)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in names[:6]:
            archive.writestr(f"train/{name[2:]}", png(8))
            link = zipfile.ZipInfo(f"val/{name[2:]}")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, f"../../train/{name[2:]}")
    assert counts(load(tmp_path / "a.tar")) == {"train": 10, "validation": 2}
    data = load(tmp_path / "b.zip")
    assert data.splits["train"].images.equal(data.splits["validation"].images)


@pytest.mark.parametrize("header", [True, False])
def test_a_table_of_pictures_beside_them(tmp_path, header):
    folder = tmp_path / "train"
    folder.mkdir()
    rows = [[f"face_{i}.png", i % 2 + 1] for i in range(10)]
    for name, _ in rows:
        (folder / name).write_bytes(png())
    with (tmp_path / "train_labels.csv").open("w") as file:
        csv.writer(file).writerows([["image", "label"]] * header + rows)
    with pytest.raises(UserError, match=r"train_labels\.csv, line .*what do these numbers mean"):
        load(tmp_path)
    data = load(tmp_path, names=["no", "yes"])
    assert data.classes == ("no", "yes")
    for name in ("train", "validation"):
        faces = data.splits[name]
        numbers = [int(i.removeprefix("train/face_").removesuffix(".png")) for i in faces.ids]
        assert faces.labels.tolist() == [number % 2 for number in numbers]


def test_a_table_with_splits_and_folders(tmp_path):
    rows = []
    for i in range(20):
        name = f"images/{i}.png"
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
        rows.append([name, ["happy", "sad"][i % 2], ["train", "val", "test"][i % 3]])
    with (tmp_path / "list.csv").open("w") as file:
        csv.writer(file).writerows([["path", "emotion", "split"], *rows])
    for path in (tmp_path, tmp_path / "list.csv"):
        data = load(path)
        assert data.classes == ("happy", "sad") and data.sealed == {"private"}
        assert [len(data.splits[name]) for name in ("train", "validation", "private")] == [7, 7, 6]
        assert data.splits["train"].ids[0] == "images/0.png"
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(UserError, match=r"list\.csv, line 5: no picture 'images/3\.png' in"):
        load(tmp_path)


def test_ferplus_label_csv(tmp_path):
    votes = [
        [0, 9, 0, 0, 0, 0, 0, 0, 1, 0],
        [8, 0, 0, 0, 0, 0, 0, 2, 0, 0],
        [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 9],
    ] * 3
    for split in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        (tmp_path / split).mkdir()
        with (tmp_path / split / "label.csv").open("w") as file:
            for i, counts_ in enumerate(votes):
                (tmp_path / split / f"fer{i}.png").write_bytes(png())
                csv.writer(file).writerow([f"fer{i}.png", "(0, 0, 48, 48)", *counts_])
    data = load(tmp_path)
    assert data.classes == ("happy", "neutral") and data.sealed == {"test"}
    assert counts(data) == {"train": 6, "validation": 6, "test": 6}


def test_npz(tmp_path):
    images, labels = np.stack([face() for _ in range(20)]), np.arange(20) % 2
    np.savez(tmp_path / "faces.npz", images=images, labels=labels)
    with pytest.raises(UserError, match="what do these numbers mean"):
        load(tmp_path / "faces.npz")
    data = load(tmp_path, names=["happy", "sad"])
    assert counts(data) == {"train": 18, "validation": 2}
    np.savez(
        tmp_path / "faces.npz",
        x_train=images[..., None],
        y_train=np.array(["happy", "sad"])[labels],
        x_test=images[:4, None],
        y_test=np.array(["happy", "sad"])[labels[:4]],
    )
    data = load(tmp_path / "faces.npz")
    assert data.sealed == {"test"} and torch.equal(
        data.splits["test"].images[:, 0], torch.from_numpy(images[:4])
    )
    for arrays, words in (
        ({"images": images / 255.0, "labels": labels}, "images are float64; write them as uint8"),
        ({"images": images[:, :40], "labels": labels}, "they should be N×H×H"),
        ({"images": images, "labels": labels[:3]}, "20 images, but labels are"),
        ({"pictures": images}, "has the arrays pictures; it needs images and labels"),
    ):
        np.savez(tmp_path / "faces.npz", **arrays)
        with pytest.raises(UserError, match=words):
            load(tmp_path)
    (tmp_path / "faces.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        load(tmp_path / "faces.npz")


def write_parquet(path, labels, names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(60, "RGB"), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({"image": rows, "label": labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    parquet.write_table(table, path)


def test_parquet_as_the_hub_has_it(tmp_path):
    names = ["sad", "disgust", "happy"]
    for split in ("train", "validation", "test"):
        write_parquet(
            tmp_path / "data" / f"{split}-00000-of-00001-ab.parquet", [0, 1, 2] * 2, names
        )
    for path in (tmp_path, tmp_path / "data"):
        data = load(path)
        assert data.classes == ("disgust", "happy", "sad") and data.sealed == {"test"}
        assert counts(data) == {"train": 6, "validation": 6, "test": 6}
        assert data.splits["train"].labels.tolist() == [2, 0, 1] * 2
    write_parquet(tmp_path / "one.parquet", [0, 1] * 3)
    with pytest.raises(UserError, match="what do these numbers mean"):
        load(tmp_path / "one.parquet")
    (tmp_path / "one.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load(tmp_path / "one.parquet")


def test_sizes(tmp_path):
    draw_folders(tmp_path / "a", ["train"], ["happy", "sad"], side=100)
    assert load(tmp_path / "a").splits["train"].images.shape[-1] == 48
    assert load(tmp_path / "a", size=96).splits["train"].images.shape[-1] == 96
    assert len(list((tmp_path / "a" / ".fer-cache").iterdir())) == 2  # one for each size
    path = write_csv(tmp_path / "faces.csv", [0, 1] * 10, side=64)
    assert load(path).splits["train"].images.shape[-1] == 64
    assert load(path, size=32).splits["train"].images.shape[-1] == 32
    np.savez(tmp_path / "f.npz", images=[face(64)] * 4, labels=["happy", "sad"] * 2)
    write_parquet(tmp_path / "f.parquet", ["happy", "sad"] * 5)
    Image.fromarray(face(100)).save(tmp_path / "a" / "train" / "sad" / "100.png")
    for source, size, which in (
        ("a", 64, ""),
        ("a", 96, ""),
        ("a", 101, "all"),
        ("faces.csv", 64, ""),
        ("faces.csv", 96, "all"),
        ("f.npz", 65, "all"),
        ("f.parquet", 48, ""),
        ("f.parquet", 96, "all"),
        ("f.parquet", None, ""),
    ):
        for _ in range(2):  # the second time from the cache
            said = load(tmp_path / source, size=size).enlarged
            expected = which and f"data.size={size}: {which} faces are smaller and are enlarged"
            assert said.partition(",")[0] == expected, source
    write_csv(tmp_path / "b" / "train.csv", [0, 1] * 10, usage=False, side=32)
    write_csv(tmp_path / "b" / "test.csv", [0, 1] * 10, usage=False, side=48)
    assert {f.images.shape[-1] for f in load(tmp_path / "b").splits.values()} == {32}


def test_images_beyond_the_memory_stay_on_the_disk(tmp_path, monkeypatch):
    draw_folders(tmp_path, ["train", "val"], ["happy", "sad"], count=20)
    expected = load(tmp_path, split="fraction")
    for file in (tmp_path / ".fer-cache").iterdir():
        file.unlink()
    monkeypatch.setattr(cache, "largest_in_memory", lambda: 10 * 48 * 48)
    for _ in range(2):  # parsed, and from the cache
        data = load(tmp_path, split="fraction")
        for name, faces in data.splits.items():
            assert torch.equal(faces.images, expected.splits[name].images)
            assert faces.labels.equal(expected.splits[name].labels)
    files = list((tmp_path / ".fer-cache").glob("*.npy"))
    assert len(files) == 2 and data.hash == expected.hash
    other_sizes = (b", 48, 48)", b", 40, 48)")
    last_pixel = files[0].read_bytes()[-100:]
    for old, new in (other_sizes, (last_pixel, last_pixel[:-1] + b"?")):  # neither is believed
        for file in files:
            file.write_bytes(file.read_bytes().replace(old, new, 1))
        for name, faces in load(tmp_path, split="fraction").splits.items():
            assert torch.equal(faces.images, expected.splits[name].images)


def test_what_killed_processes_left_in_the_cache_is_removed(tmp_path):
    write_csv(tmp_path / "fer2013.csv", [*range(7)] * 3)
    load(tmp_path)
    for name, age in (("tmpold", 2 * cache.ABANDONED), ("tmpnew", 60)):
        folder = tmp_path / ".fer-cache" / name
        folder.mkdir()
        (folder / "x.npz").write_bytes(b"")
        os.utime(folder, (time.time() - age,) * 2)
    load(tmp_path)  # only reads
    left = {path.name for path in (tmp_path / ".fer-cache").iterdir() if path.is_dir()}
    assert left == {"tmpnew"}


EIGHT = [*CLASSES, "contempt"]


@pytest.mark.parametrize(
    "names",
    [
        ["asleep", "awake", "yawning"],
        pytest.param(CLASSES[:5], marks=pytest.mark.slow),
        pytest.param(EIGHT, marks=pytest.mark.slow),
        [f"person {i}" for i in range(10)],
    ],
    ids=len,
)
def test_any_number_of_classes_from_training_to_report(fer, tmp_path, names):
    draw_folders(tmp_path / "d", ["train", "val", "test"], names, count=4, side=48)
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu"]
    code, out, err = fer("train", "data.path=d", "run=r", *small)
    assert code == 0 and f"{len(names)} classes: " in " ".join(out.split()), err
    contents = torch.load("r/best.pt", weights_only=True)
    order = list(names) if "happy" in names else sorted(names)
    assert contents["classes"] == order
    assert contents["validation"]["logits"].shape == (4 * len(names), len(names))
    assert "val/ validates" in Path("r/environment.yaml").read_text()
    code, out, err = fer("train", "resume=r", "train.epochs=2")
    assert code == 0, err
    code, out, err = fer("evaluate", "ckpt=r", "split=test")
    assert code == 0, err
    code, out, err = fer("predict", "ckpt=r", "split=validation", "out=p.csv", "probs=q.csv")
    assert code == 0, err
    rows = list(csv.reader(Path("q.csv").read_text().splitlines()))
    assert rows[0] == ["id", *order]
    assert rows[1][0].startswith("val/") and (tmp_path / "d" / rows[1][0]).is_file()
    draw_folders(tmp_path, ["flat"], [""])
    code, out, err = fer("predict", "ckpt=r", "data.path=flat", "out=flat.csv")
    assert code == 0, err
    left_out = "contempt: not predicted, since the data has 7 classes" in out
    assert left_out is (len(names) == 8) and "which the network also has" not in out
    code, out, err = fer("report", "run=r")
    assert code == 0, err
    page = next(Path("r").rglob("*.html")).read_text()
    assert all(name in page for name in order)
    code, out, err = fer("explain", "ckpt=r", "show=[saliency]", f"target={order[-1]}")
    assert code == 0, err


def test_a_checkpoint_on_data_of_other_classes_maps_by_name(fer, tmp_path):
    draw_folders(tmp_path / "d", ["train", "val"], ["happy", "sad", "fear"], count=4)
    draw_folders(tmp_path / "e", ["train", "val"], ["sad", "happy", "contempt"], count=4)
    draw_folders(tmp_path / "f", ["train", "val"], ["awake", "asleep"], count=4)
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu"]
    assert fer("train", "data.path=d", "run=r", *small)[0] == 0
    code, out, err = fer("evaluate", "ckpt=r", "data.path=e", "split=validation")
    assert code == 0 and "8 faces of contempt left out" in out, err
    assert "8 faces of validation" in out and "no faces of fear" in out
    code, _, err = fer("evaluate", "ckpt=r", "data.path=f", "split=validation")
    assert code == 2 and "trained on the classes fear, happy, sad" in err and "awake" in err


def test_names_of_numbers_hold_for_the_data_they_were_given_for(fer, tmp_path):
    """RAF-DB's 0 and 1 are not FER2013's: its network is often tested on other data."""
    draw_folders(tmp_path / "d", ["train", "val"], ["1", "2"], count=5)
    shutil.copytree(tmp_path / "d", tmp_path / "moved")
    write_csv(tmp_path / "fer2013.csv", [0, 3] * 10)
    draw_folders(tmp_path / "words", ["train", "val"], ["happy", "fear"], count=5)
    draw_folders(tmp_path / "other", ["train", "val"], ["0", "1"], count=5)
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu"]
    names = "data.names=[happy,fear]"
    assert fer("train", "data.path=d", names, "run=r", *small)[0] == 0
    (checkpoint,) = Ensemble.open("r", torch.device("cpu"), 64, "none").members

    def labels(place, **typed):
        faces = checkpoint.data({"path": str(tmp_path / place), **typed}).split("validation")
        return [checkpoint.classes[label] for label in faces.labels]

    assert labels("moved") == labels("d") == ["happy"] * 5 + ["fear"] * 5
    assert labels("fer2013.csv") == ["happy"] * 2  # and angry, which is left out
    assert set(labels("words")) == {"happy", "fear"}
    with pytest.raises(UserError, match="what do these numbers mean"):
        labels("other")
    assert labels("other", names=["fear", "happy"]) == ["fear"] * 5 + ["happy"] * 5


def test_one_class_is_nothing_to_learn(fer, tmp_path):
    draw_folders(tmp_path / "d", ["train", "val"], ["faces"])
    code, _, err = fer("train", "data.path=d", "model=dnn", "device=cpu")
    assert code == 2 and "all faces are of one class, faces" in err and err.count("\n") == 1
    assert not Path("runs").exists()


def test_groups_without_effect_are_told(tmp_path):
    draw_folders(tmp_path, ["train", "val"], ["happy", "sad"])
    assert "data.groups has no effect" in load(tmp_path, groups="(S[0-9]+)_").description
    assert "data.groups" not in load(tmp_path).description


def test_a_run_from_before_data_classes_keeps_its_seven(fer, tmp_path):
    draw_folders(tmp_path / "d", ["train", "test"], list(CLASSES[:5]), count=12)
    kept = f"data.classes=[{','.join(CLASSES)}]"
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu", "data.path=d"]
    assert fer("train", kept, "run=r", *small)[0] == 0
    for name in ("best.pt", "last.pt"):  # as an earlier version wrote them
        contents = torch.load(f"r/{name}", weights_only=True)
        settings = yaml.safe_load(contents["config"])
        for key in ("classes", "names", "merge", "groups", "size"):
            del settings["data"][key]
        torch.save(contents | {"config": yaml.safe_dump(settings)}, f"r/{name}")
    for command in (["evaluate", "ckpt=r"], ["train", "resume=r", "train.epochs=2"]):
        code, _, err = fer(*command)
        assert code == 0, err
    assert len(torch.load("r/best.pt", weights_only=True)["classes"]) == 7


def test_a_training_tells_of_exact_copies(fer, tmp_path):
    draw_folders(tmp_path / "d", ["train", "val", "test"], ["happy", "sad"], count=10)
    for split, count in (("val", 3), ("test", 2)):
        for i in range(count):
            content = (tmp_path / "d" / "train" / "sad" / f"sad{i}.png").read_bytes()
            (tmp_path / "d" / split / "happy" / f"happy{i}.png").write_bytes(content)
    small = ["model=dnn", "model.head=[4]", "train.epochs=1", "device=cpu", "data.path=d"]
    for copies, said in (
        ("keep", "exact copies of training faces: 3 of 20 validation faces, 2 of 20 test faces"),
        ("drop", "exact copies of training faces: 2 of 20 test faces"),
    ):
        code, out, err = fer("train", f"train.copies={copies}", *small)
        assert code == 0, err
        words = " ".join(out.split())
        assert said in words
        assert ("3 of 20" in words) == (copies == "keep")


SEVEN = [str(number) for number in range(1, 8)]


def table_of_pictures(d):
    rows = []
    (d / "train").mkdir()
    for i in range(10):
        (d / "train" / f"{i}.png").write_bytes(png())
        rows.append(f"{i}.png,{i % 2}\n")
    (d / "train_labels.csv").write_text("".join(rows))


def table_with_splits(d):
    rows = ["path,emotion,split\n"]
    (d / "pictures").mkdir()
    for i in range(12):
        (d / "pictures" / f"{i}.png").write_bytes(png())
        rows.append(f"pictures/{i}.png,{['happy', 'sad'][i // 3 % 2]},{['train', 'val'][i % 2]}\n")
    (d / "list.csv").write_text("".join(rows))


def table_for_each_split(d):
    for split in ("train", "test"):
        rows = ["file,label\n"]
        for i in range(10):
            (d / f"{split}{i}.png").write_bytes(png())
            rows.append(f"{split}{i}.png,{['happy', 'sad'][i % 2]}\n")
        (d / f"{split}.csv").write_text("".join(rows))


def one_hot_table(d):
    rows = ["filename,happy,sad\n"]
    for i in range(10):
        (d / f"{i}.png").write_bytes(png())
        rows.append(f"{i}.png,{i % 2},{1 - i % 2}\n")
    (d / "labels.csv").write_text("".join(rows))


def rafdb_as_given(d):
    rows = []
    (d / "aligned").mkdir()
    for i in range(28):
        name = f"{['train', 'train', 'train', 'test'][i // 7]}_{i:05}"
        (d / "aligned" / f"{name}_aligned.jpg").write_bytes(png())
        rows.append(f"{name}.jpg {i % 7 + 1}\n")
    (d / "list_patition_label.txt").write_text("".join(rows))


def ferplus_folders(d):
    for split in ("FER2013Train", "FER2013Valid"):
        (d / split).mkdir()
        for i in range(4):
            (d / split / f"{i}.png").write_bytes(png())
        votes = ["9,0", "0,9"] * 2
        rows = [f'{i}.png,"(0, 0, 48, 48)",{v},0,0,0,0,0,0,0,0\n' for i, v in enumerate(votes)]
        (d / split / "label.csv").write_text("".join(rows))


def an_archive(d, inner, name, kind):
    inner(d / "x")
    content = packed(d / "x", kind)
    shutil.rmtree(d / "x")
    (d / name).write_bytes(content)


def people(d):
    for name in ("happy", "sad"):
        (d / name).mkdir()
        for subject in range(10):
            (d / name / f"S{subject:03}_1.png").write_bytes(png())


def folders_of_people(d):
    draw_folders(d, ["happy", "sad"], [f"S{number}" for number in range(10)], count=1)


def votes(d):
    write_csv(d / "fer2013.csv", [*range(7)] * 10)
    columns = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    lines = [f"Usage,Image name,{columns}"]
    for i in range(70):
        counts_of_face = ["9" if emotion == i % 7 else "0" for emotion in range(10)]
        lines.append(",".join([usage_of(i), f"{i}.png", *counts_of_face]))
    (d / "fer2013new.csv").write_text("\n".join(lines) + "\n")


def compressed(d):
    write_csv(d / "fer2013.csv", [*range(7)] * 5)
    (d / "fer2013.csv.gz").write_bytes(gzip.compress((d / "fer2013.csv").read_bytes()))


def hub(d):
    for split in ("train", "test"):
        write_parquet(d / "data" / f"{split}-00000-of-00001.parquet", [0, 1] * 9, ["happy", "sad"])


def as_pandas_writes_lists(place):
    file = write_csv(place / "fer2013.csv", [*range(7)] * 5)
    faces = pd.read_csv(file)
    faces["pixels"] = [[int(number) for number in face.split()] for face in faces["pixels"]]
    faces["emotion"] = faces["emotion"].astype(float)
    faces.to_csv(file.with_name("faces.csv"), index=False)
    return file.with_name("faces.csv")


def test_lists_and_numbers_with_a_point_are_those_without(tmp_path):
    listed = load(as_pandas_writes_lists(tmp_path))
    plain = load(tmp_path / "fer2013.csv")
    for name, faces in plain.splits.items():
        assert listed.splits[name].labels.equal(faces.labels)
        assert listed.splits[name].images.equal(faces.images)


def with_a_column_for_each_pixel(path, names, target):
    """Rewrite a CSV of faces: each pixel into a column of its own, the others after them."""
    header, *lines = path.read_text().splitlines()
    label, _, *others = header.split(",")
    rows = [",".join([*names, label, *others])]
    for line in lines:
        label, pixels, *others = line.split(",")
        rows.append(",".join([*pixels.split(), label, *others]))
    target.write_text("\n".join(rows) + "\n")


def pixel_names(side=48):
    return [f"pixel{position}" for position in range(side * side)]


def a_column_for_each_pixel(place):
    narrow = write_csv(place.with_name("narrow.csv"), [0, 1] * 9, usage=False)
    place.mkdir(exist_ok=True)
    with_a_column_for_each_pixel(narrow, pixel_names(), place / "wide.csv")


@pytest.mark.parametrize("side", [48, 96])
@pytest.mark.parametrize(
    "named",
    [
        lambda x, y, side: f"pixel{y * side + x}",
        lambda x, y, side: str(y * side + x),
        lambda x, y, side: f"{y + 1}x{x + 1}",
        lambda x, y, side: f"Pixel_{y}_{x}",
    ],
)
def test_a_column_for_each_pixel(tmp_path, named, side):
    write_csv(tmp_path / "a" / "fer2013.csv", [*range(7)] * 2, side=side)
    names = [named(x, y, side) for y in range(side) for x in range(side)]
    (tmp_path / "b").mkdir()
    with_a_column_for_each_pixel(
        tmp_path / "a" / "fer2013.csv", names, tmp_path / "b" / "fer2013.csv"
    )
    plain, wide = load(tmp_path / "a"), load(tmp_path / "b")
    for name, faces in plain.splits.items():
        assert wide.splits[name].labels.equal(faces.labels)
        assert wide.splits[name].images.equal(faces.images)


def test_columns_that_are_not_pixels_are_refused(tmp_path):
    file = write_csv(tmp_path / "a.csv", [0, 1] * 5)
    names = pixel_names()
    wrong = {
        "backwards": names[::-1],
        "x": [name.replace("pixel", "x") for name in names],
        "apart": [*names[:100], "note", *names[101:]],
    }
    for what, columns in wrong.items():
        target = tmp_path / what / "b.csv"
        target.parent.mkdir()
        with_a_column_for_each_pixel(file, columns, target)
        with pytest.raises(UserError, match="no column pixels"):
            load(target)


def test_a_missing_pixel_is_told_with_its_line(tmp_path):
    file = write_csv(tmp_path / "a.csv", [0, 1] * 5)
    target = tmp_path / "b.csv"
    with_a_column_for_each_pixel(file, pixel_names(), target)
    lines = target.read_text().splitlines()
    lines[3] = "," + lines[3].partition(",")[2]
    target.write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 4: has 2303 pixels, not 2304"):
        load(target)


def test_numbers_with_a_point_in_a_list_of_pictures_and_in_parquet(tmp_path):
    table_of_pictures(tmp_path)
    table = tmp_path / "train_labels.csv"
    plain = load(tmp_path, names=["no", "yes"])
    table.write_text(table.read_text().replace(",1", ",1.0"))
    pointed = load(tmp_path, names=["no", "yes"])
    assert pointed.splits["train"].labels.equal(plain.splits["train"].labels)
    write_parquet(tmp_path / "p" / "f.parquet", [0.0, 1.0] * 10)
    assert load(tmp_path / "p", names=["no", "yes"]).classes == ("no", "yes")


# What a row of the table in docs/data.md begins with → draws a sample into a folder, and the
# classes to be found.
SAMPLES = {
    "`fer2013.csv` or": (lambda d: write_csv(d / "fer2013.csv", [*range(7)] * 5), 7),
    "`train.csv` with": (lambda d: write_csv(d / "train.csv", [*range(7)] * 9, usage=False), 7),
    "a CSV of any name with a": (lambda d: write_csv(d / "ckextended.csv", [*range(8)] * 5), 8),
    "a CSV of any name without": (lambda d: write_csv(d / "own.csv", [0, 1] * 9, usage=False), 2),
    "a CSV of faces with a column": (
        lambda d: write_csv(
            d / "words.csv", ["happy", "Sad"] * 9, usage=False, split=["train", "train", "val"] * 6
        ),
        2,
    ),
    "a CSV whose labels": (lambda d: write_csv(d / "fer2013.csv", ["happy", "Sad"] * 9), 2),
    "a CSV of larger": (lambda d: write_csv(d / "large.csv", [0, 3] * 9, side=64), 2),
    "a CSV as pandas": (as_pandas_writes_lists, 7),
    "a CSV with a column for each": (a_column_for_each_pixel, 2),
    "a compressed CSV": (compressed, 7),
    "`train/<emotion>/`, `test": (lambda d: draw_folders(d, ["train", "test"], CLASSES), 7),
    "`train/`, `val/`, `test/`": (lambda d: draw_folders(d, ["train", "val", "test"], CLASSES), 7),
    "`images/train/`": (
        lambda d: draw_folders(d / "images", ["train", "validation"], CLASSES[:5]),
        5,
    ),
    "class folders without splits, as": (
        lambda d: draw_folders(d, ["."], ["anger", "contempt", "fear"]),
        3,
    ),
    "class folders without splits, several": (people, 2),
    "class folders with a folder for each": (folders_of_people, 2),
    "numbered folders of RAF-DB": (lambda d: draw_folders(d, ["train", "test"], SEVEN), 7),
    "numbered folders of AffectNet": (
        lambda d: draw_folders(d, ["train", "test"], [str(i) for i in range(7)]),
        7,
    ),
    "your own classes": (lambda d: draw_folders(d, ["train", "val"], ["asleep", "awake"]), 2),
    "pictures in `train/`": (table_of_pictures, 2),
    "a table `path": (table_with_splits, 2),
    "a table for each split": (table_for_each_split, 2),
    "a table with a column of 0": (one_hot_table, 2),
    "RAF-DB's `list_patition": (rafdb_as_given, 7),
    "FER+'s `FER2013Train": (ferplus_folders, 2),
    "`.zip`, `.tar`": (
        lambda d: an_archive(
            d, lambda x: draw_folders(x, ["train"], ["happy", "sad"]), "archive.zip", "zip"
        ),
        2,
    ),
    "the competition's `fer2013.tar": (
        lambda d: an_archive(
            d,
            lambda x: write_csv(x / "fer2013" / "fer2013.csv", [*range(7)] * 5),
            "fer2013.tar.gz",
            "tar.gz",
        ),
        7,
    ),
    "any of these one or two": (
        lambda d: draw_folders(d / "a" / "b", ["train"], ["happy", "sad"]),
        2,
    ),
    "`.npz`: ": (
        lambda d: np.savez(
            d / "faces.npz",
            images=np.stack([face() for _ in range(20)]),
            labels=np.array(["happy", "sad"] * 10),
        ),
        2,
    ),
    "parquet files": (hub, 2),
    "`fer2013.csv` with FER+'s": (votes, 8),
}


def rows_of_the_page():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.partition("| form | command |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").rsplit(" | ", 1) for line in table.splitlines()[2:]]
    return [(form, command.strip("`")) for form, command in rows]


def test_every_form_of_the_page_has_a_sample():
    forms = [form for form, _ in rows_of_the_page()]
    assert len(forms) == len(SAMPLES)
    for start in SAMPLES:
        assert sum(form.startswith(start) for form in forms) == 1, start


@pytest.mark.parametrize("start", SAMPLES)
def test_the_command_of_every_form_reads_it(start, compose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()
    draw, classes = SAMPLES[start]
    draw(tmp_path / "faces")
    command = next(command for form, command in rows_of_the_page() if form.startswith(start))
    _, verb, *overrides = shlex.split(command)
    data = config.build("data", config.check(verb, compose(verb, *overrides)).data)
    assert len(data.classes) == classes and data.missing_classes in ([], ["contempt"])
    assert len(data.split("train")) and len(data.split("validation"))


@pytest.mark.parametrize("name", ["a\x1b[31mb", "x" * 101])
def test_a_folder_that_cannot_name_a_class_is_refused(tmp_path, name):
    draw_folders(tmp_path, ["train"], ["happy", name], count=1, side=8)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert "cannot be used as the name of a class" in str(error.value)
    assert str(error.value).isprintable()


def test_a_column_split_of_a_csv_of_faces_is_read_and_tells_nothing_of_numbers(tmp_path):
    names = ["train", "val", "test", "train", "Training"]
    path = write_csv(tmp_path / "f.csv", ["happy", "sad"] * 5, usage=False, split=names * 2)
    found = counts(load(path))
    assert (found["train"], found["validation"], found["private"]) == (6, 2, 2)
    path = write_csv(tmp_path / "n.csv", [0, 1] * 5, usage=False, split=names * 2)
    with pytest.raises(UserError, match="what do these numbers mean"):
        load(path)
    path = write_csv(tmp_path / "w.csv", ["happy", "sad"] * 5, usage=False, split=["fold1"] * 10)
    with pytest.raises(UserError, match="line 2: 'fold1' is not a split"):
        load(path)


def test_pictures_that_belong_to_no_split_are_named(tmp_path):
    root = tmp_path / "inner"
    draw_folders(root, ["train", "test", "eval"], ["happy", "sad"])
    draw_folders(root / "train", ["happy"], ["s1"])
    (root / "train" / "happy" / ".ipynb_checkpoints").mkdir()
    for name in ("a.png", "b.png"):
        (root / "train" / name).write_bytes(png())
    assert load(root).description.endswith(
        "2 classes: happy, sad; not read: eval/, train/a.png and 1 more, train/happy/s1/"
    )
    assert "not read: inner/eval/, inner/train/a.png and" in load(tmp_path).description


def test_a_class_folder_may_hold_folders_instead_of_pictures(tmp_path):
    people = [f"{name}/S{number}" for name in ("happy", "sad") for number in range(4)]
    for root in (tmp_path / "a", tmp_path / "b" / "train", tmp_path / "b" / "test"):
        for place in people:
            (root / place).mkdir(parents=True)
            for number in range(2):
                (root / place / f"{number}.png").write_bytes(png(8))
    data = load(tmp_path / "a", groups="/(S[0-9])/", fraction=0.25)
    assert data.classes == ("happy", "sad")
    assert counts(data) == {"train": 12, "validation": 4}
    assert counts(load(tmp_path / "b")) == {"train": 14, "validation": 2, "test": 16}
    (tmp_path / "a" / "sad" / "0.png").write_bytes(png(8))
    assert load(tmp_path / "a").description.endswith("sad/S0/, sad/S1/, sad/S2/, sad/S3/")


def test_folders_of_people_are_not_taken_for_classes(tmp_path):
    draw_folders(tmp_path / "a", ["S1", "S2"], ["happy", "sad"], side=8)
    with pytest.raises(UserError, match=r"2 data sets; .*; or put all pictures into folders train"):
        load(tmp_path / "a")
    draw_folders(tmp_path / "b" / "train", ["S1", "S2"], ["happy", "sad"], side=8)
    with pytest.raises(
        UserError, match=r"train: S1/ is not a class but holds class folders, such as"
    ):
        load(tmp_path / "b")


@pytest.mark.parametrize("fault", ["empty", "damaged"])
def test_a_test_folder_that_cannot_be_read_hinders_no_training(tmp_path, fault):
    draw_folders(tmp_path, ["train"], ["happy", "sad"])
    (tmp_path / "test" / "happy").mkdir(parents=True)
    if fault == "damaged":
        (tmp_path / "test" / "happy" / "a.png").write_bytes(png()[:50])
    data = load(tmp_path)
    assert [*data.splits] == ["train", "validation"] and "test is left out" in data.description
    with pytest.raises(UserError, match=r"split=test: .*(no pictures in its|a\.png: not a read)"):
        data.split("test")


def test_a_table_beside_more_than_a_thousand_pictures_is_found(tmp_path):
    picture = png()
    names = [f"face_{number:04}.png" for number in range(1100)]
    for name in names:
        (tmp_path / name).write_bytes(picture)
    rows = [f"{name},{['happy', 'sad'][number % 2]}" for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert counts(load(tmp_path)) == {"train": 990, "validation": 110}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"face_30.png,happy,more", ", line 31: has 3 columns, and the first line 2"),
        (b'"face_30.png,happy', r": cannot be read as CSV \(unexpected end of data"),
    ],
)
def test_a_damaged_row_far_down_a_list_of_pictures_is_refused(tmp_path, row, words):
    rows = [b"file,label"]
    for number in range(29):
        (tmp_path / f"face_{number}.png").write_bytes(png())
        rows.append(f"face_{number}.png,{['happy', 'sad'][number % 2]}".encode())
    (tmp_path / "labels.csv").write_bytes(b"\n".join([*rows, row]))
    with pytest.raises(UserError, match=rf"labels\.csv{words}"):
        load(tmp_path)


def test_a_damaged_xz_archive_is_refused(tmp_path):
    draw_folders(tmp_path / "x", ["train"], ["happy", "sad"])
    with tarfile.open(tmp_path / "f.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "x", "x")
    raw = bytearray((tmp_path / "f.tar.xz").read_bytes())
    raw[len(raw) // 2] ^= 255
    (tmp_path / "f.tar.xz").write_bytes(raw)
    with pytest.raises(UserError, match=r"f\.tar\.xz: is a damaged archive \(Corrupt"):
        load(tmp_path / "f.tar.xz")


@pytest.mark.parametrize("place", [0.5, 0.99, -1])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_compressed_csv_is_refused(tmp_path, place, cut):
    text = write_csv(tmp_path / "x" / "fer2013.csv", [*range(7)] * 100).read_bytes()
    raw = bytearray(gzip.compress(text))
    at = int(len(raw) * place) if place > 0 else len(raw) - 6  # the checksum
    raw[at] ^= 255
    file = tmp_path / "fer2013.csv.gz"
    file.write_bytes(raw[:at] if cut else raw)
    with pytest.raises(UserError, match=r"csv\.gz: is damaged \(.+\); get the file again"):
        load(file)
    file.write_bytes(b"")
    (tmp_path / "x" / "fer2013.csv").unlink()
    with pytest.raises(UserError, match=r"fer2013\.csv\.gz is damaged or holds no faces; name it"):
        load(tmp_path)


def test_the_hubs_minus_one_is_no_label(tmp_path):
    names = ["sad", "happy"]
    for split, labels in (("train", [0, 1] * 5), ("test", [-1] * 4)):
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", labels, names)
    data = load(tmp_path)
    assert data.unlabeled_split == "test" and data.splits["train"].labeled
    for labels, words in (
        ([0, 1, -1] * 4, "has rows without a label; remove them"),
        ([0, 1, 2] * 4, "label 2 is not one of its 2 names, sad, happy; correct the file"),
    ):
        write_parquet(tmp_path / "one.parquet", labels, names)
        with pytest.raises(UserError, match=words):
            load(tmp_path / "one.parquet")


def test_missing_labels_of_a_parquet_file_are_refused(tmp_path):
    write_parquet(tmp_path / "f.parquet", ["happy", None])
    with pytest.raises(UserError, match="has rows without a label; remove them"):
        load(tmp_path / "f.parquet")


def test_a_class_is_the_same_in_both_forms_of_unicode(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "müde") for form in ("NFC", "NFD"))
    draw_folders(tmp_path, ["train"], [composed, "wach"], side=8)
    draw_folders(tmp_path, ["val"], [decomposed, "wach"], side=8)
    assert load(tmp_path).classes == (composed, "wach")
    draw_folders(tmp_path, ["train"], [decomposed], count=5, side=8)
    data = load(tmp_path, classes=["wach", decomposed])
    assert torch.bincount(data.splits["train"].labels).tolist() == [3, 8]
    assert load(tmp_path, merge={"x": [decomposed]}).classes == ("x", "wach")
    assert load(tmp_path, names={decomposed: "sad"}, merge={"s": ["sad"]}).classes == ("s", "wach")


@pytest.mark.parametrize("name", ["{}_set", "{}-images", "{} data", "1_{}", "{}set", "FER2013_{}"])
def test_splits_are_known_among_words_that_tell_nothing(tmp_path, name):
    folders = [name.format(split) for split in ("train", "val", "test")]
    draw_folders(tmp_path / "a", folders, ["happy", "sad"], count=1, side=8)
    assert counts(load(tmp_path / "a")) == {"train": 2, "validation": 2, "test": 2}
    (tmp_path / "b").mkdir()
    for folder in folders:
        write_csv(tmp_path / "b" / f"{folder}.csv", ["happy", "sad"], usage=False)
    assert counts(load(tmp_path / "b")) == {"train": 2, "validation": 2, "test": 2}


def test_pictures_of_every_ending_are_read_or_refused(tmp_path):
    for ending in PICTURE_ENDINGS:
        draw_folders(tmp_path / ending, ["train"], ["happy", "sad"], count=2, side=8)
        for file in (tmp_path / ending).rglob("*.png"):
            kind = Image.registered_extensions().get(ending, "JPEG")
            Image.open(file).convert("1" if ending == ".pbm" else "L").save(file, kind)
            file.rename(file.with_suffix(ending))
        assert counts(load(tmp_path / ending)) == {"train": 2, "validation": 2}
    (tmp_path / ".png" / "train" / "sad" / "x.avif").write_bytes(b"\0\0\0\x1cftypavif")
    with pytest.raises(UserError, match=r"x\.avif: not .* of a kind that fer does not read"):
        load(tmp_path / ".png")
    (tmp_path / ".jpg" / "train" / "sad" / "x.jp2").write_bytes(b"\0\0\0\x0cjP  ")
    with pytest.raises(UserError, match=r"x\.jp2: not .* may be of a kind that fer does not read"):
        load(tmp_path / ".jpg")


def test_a_picture_of_too_many_pixels_is_told_as_such(tmp_path):
    draw_folders(tmp_path, ["train"], ["happy", "sad"], side=8)
    for side in (8000, 14000):
        Image.new("1", (side, side)).save(tmp_path / "train" / "sad" / "large.png")
        with pytest.raises(UserError, match=r"large\.png: has .*more than 50 million"):
            load(tmp_path)


def test_a_parquet_file_two_folders_below_is_found(tmp_path):
    place = tmp_path / "hub" / "fer2013" / "data"
    place.mkdir(parents=True)
    write_parquet(place / "train-00000-of-00001.parquet", [0, 1] * 3, ["happy", "sad"])
    assert load(tmp_path).classes == ("happy", "sad")


def test_a_damaged_csv_in_a_folder_below_is_refused_with_its_fault(tmp_path):
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013" / "fer2013.csv").write_text("version https://git-lfs.github.com/spec\n")
    with pytest.raises(UserError, match=r"fer2013/fer2013\.csv: is a Git LFS pointer"):
        load(tmp_path)


def test_class_folders_in_a_folder_named_like_an_emotion_are_the_classes(tmp_path):
    draw_folders(tmp_path, ["Joy"], ["angry", "sad"])
    assert load(tmp_path).classes == ("angry", "sad")


def test_data_beside_class_folders_is_named_with_what_else_to_do(tmp_path):
    draw_folders(tmp_path / "mine", ["."], ["happy"])
    write_csv(tmp_path / "mine" / "faces.csv", [0, 3] * 5)
    with pytest.raises(UserError) as error:
        load(tmp_path / "mine")
    one = f"holds 2 data sets; choose one: data.path={tmp_path}/mine/faces.csv; or move"
    assert one in str(error.value)


def test_a_list_beside_class_folders_below_is_not_taken_for_their_labels(tmp_path):
    draw_folders(tmp_path / "images", ["train", "val"], ["happy", "sad"])
    (tmp_path / "results").mkdir()
    rows = [f"train/{name}/{name}0.png,angry" for name in ("happy", "sad")]
    text = "\n".join(["file,label", *rows])
    (tmp_path / "results" / "predictions.csv").write_text(text)
    with pytest.raises(UserError, match=r"2 data sets; choose one: .*/images, .*/results"):
        load(tmp_path)
