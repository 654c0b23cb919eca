"""Every layout, every error with its file and line, splits, cache, and a fuzz test."""

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import pickle
import re
import shutil
import tarfile
import zipfile

import loading
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer import CLASSES, UserError
from fer.data.readers import csv_faces, pictures, sources
from fer.data.readers import folders as folders_module

RNG = np.random.default_rng(0)
FACES = RNG.integers(0, 256, (40, 48, 48), dtype=np.uint8)
FACES[0, 0, :3] = [0, 255, 7]
LABELS = np.arange(40) % 7


def pixels(image):
    return " ".join(map(str, image.ravel()))


def load(path, **changes):
    return loading.load(path, **({"fraction": 0.2} | changes))


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


@pytest.fixture
def archive(tmp_path):
    usage = ["Training"] * 30 + ["PublicTest"] * 6 + ["PrivateTest"] * 4
    write(
        tmp_path / "fer2013.csv",
        ["emotion", "pixels", "Usage"],
        [(y, pixels(x), u) for y, x, u in zip(LABELS, FACES, usage, strict=True)],
    )
    return tmp_path


@pytest.fixture
def challenge(tmp_path):
    write(
        tmp_path / "train.csv",
        ["emotion", "pixels"],
        [(y, pixels(x)) for y, x in zip(LABELS, FACES, strict=True)],
    )
    write(tmp_path / "test.csv", ["pixels"], [(pixels(x),) for x in FACES[:5]])
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    for split, count in (("train", 40), ("test", 14)):
        for i in range(count):
            folder = tmp_path / split / CLASSES[LABELS[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(FACES[i]).save(folder / f"{i:03}.png")
    return tmp_path


def same(faces, rows):
    assert torch.equal(faces.images[:, 0], torch.from_numpy(FACES[rows]))
    assert torch.equal(faces.labels, torch.from_numpy(LABELS[rows]))


def test_archive_splits_by_usage_and_seals_private(archive):
    data = load(archive)
    same(data.splits["train"], np.arange(30))
    same(data.splits["validation"], np.arange(30, 36))
    same(data.splits["private"], np.arange(36, 40))
    assert data.splits["public"] is data.splits["validation"]
    assert data.sealed == {"private"} and data.unlabeled_split is None and data.normalize == "unit"
    same(load(archive / "fer2013.csv").splits["train"], np.arange(30))


def test_icml_header_other_order_extra_columns_quotes_crlf_bom(tmp_path):
    rows = [f'x,Training,"{pixels(x)}",{y}' for x, y in zip(FACES[:30], LABELS, strict=False)]
    rows += [f"x,PublicTest,{pixels(FACES[30])},{LABELS[30]}", "", ""]
    text = "\ufeff" + "\r\n".join(["note, Usage, pixels,emotion ", *rows])
    (tmp_path / "icml_face_data.csv").write_bytes(text.encode())
    data = load(tmp_path)
    same(data.splits["train"], np.arange(30))
    same(data.splits["validation"], np.arange(30, 31))


def test_challenge_has_an_unlabeled_test_split_with_counted_ids(challenge):
    data = load(challenge)
    assert data.unlabeled_split == "test" and not data.sealed
    assert data.splits["test"].ids == ["0", "1", "2", "3", "4"]
    assert torch.equal(data.splits["test"].images[:, 0], torch.from_numpy(FACES[:5]))


def test_course_layout_keeps_its_ids(tmp_path):
    write(
        tmp_path / "train.csv",
        ["label", "feature"],
        [(y, pixels(x)) for y, x in zip(LABELS, FACES, strict=True)],
    )
    write(tmp_path / "test.csv", ["id", "feature"], [(f"n{i}", pixels(FACES[i])) for i in (3, 1)])
    assert load(tmp_path).splits["test"].ids == ["n3", "n1"]


def test_fraction_is_stratified_seeded_and_keeps_the_order(challenge):
    data = load(challenge, fraction=0.4)
    held_out, train = data.splits["validation"], data.splits["train"]
    assert len(held_out) + len(train) == 40
    counts = torch.bincount(held_out.labels, minlength=7)
    assert counts.tolist() == [round(0.4 * n) for n in np.bincount(LABELS)]
    position = {FACES[i].tobytes(): i for i in range(40)}
    order = [position[x.numpy().tobytes()] for x in held_out.images]
    assert order == sorted(order)
    assert torch.equal(held_out.images, load(challenge, fraction=0.4).splits["validation"].images)
    assert not torch.equal(
        held_out.images, load(challenge, fraction=0.4, seed=1).splits["validation"].images
    )


def test_from_index(challenge):
    data = load(challenge, split="from_index")
    same(data.splits["train"], np.arange(25))
    same(data.splits["validation"], np.arange(25, 40))
    with pytest.raises(UserError, match="from_index=40: leaves no validation faces; there are 40"):
        load(challenge, split="from_index", from_index=40)


def test_from_index_leaves_public_alone(archive):
    data = load(archive, split="from_index")
    same(data.splits["validation"], np.arange(25, 30))
    same(data.splits["public"], np.arange(30, 36))


def test_folders_seal_their_test_unless_it_is_asked_for(folders):
    data = load(folders)
    assert (
        data.sealed == {"test"} and len(data.splits["train"]) + len(data.splits["validation"]) == 40
    )
    assert len(load(folders, limit=9).splits["train"].labels.unique()) == 7
    data = load(folders, validation="test")
    assert (
        not data.sealed and len(data.splits["train"]) == 40 and len(data.splits["validation"]) == 14
    )


def test_folder_faces_come_by_file_name_not_class_after_class(folders):
    same(load(folders, split="from_index").splits["validation"], np.arange(25, 40))


def test_folder_images_of_any_kind(tmp_path):
    for name in ("Angry", "disgusted", "FEAR", "3_happy", "SADNESS", "surprise", "neutral"):
        (tmp_path / "train" / name).mkdir(parents=True)
    base = tmp_path / "train"
    gray = Image.fromarray(FACES[0])
    gray.save(base / "Angry" / "a.png")
    gray.convert("RGB").save(base / "disgusted" / "a.png")
    Image.fromarray(FACES[0].astype(np.uint16) * 257).save(base / "FEAR" / "a.png")
    gray.convert("CMYK").save(base / "3_happy" / "a.jpg")
    gray.resize((96, 200)).save(base / "SADNESS" / "a.jpg")
    gray.save(base / "surprise" / "a.gif", save_all=True, append_images=[Image.fromarray(FACES[1])])
    Image.new("L", (1, 1), 9).save(base / "neutral" / "a.png")
    (base / "neutral" / "Thumbs.db").write_bytes(b"not an image")
    table = folders_module.read_folder(base)
    by_class = dict(zip(table.names[table.labels].tolist(), table.images, strict=True))
    for name in ("Angry", "disgusted", "FEAR", "surprise"):
        assert np.array_equal(by_class[name], FACES[0]), name
    assert (by_class["neutral"] == 9).all() and len(by_class) == 7
    assert load(tmp_path, split="none").classes == CLASSES


def test_limit_takes_the_first_of_each_split(archive):
    data = load(archive, limit=4)
    same(data.splits["train"], np.arange(4))
    same(data.splits["validation"], np.arange(30, 34))
    assert data.splits["public"] is data.splits["validation"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace(" 7 ", " 256 ", 1), "line 2: '256' is not a gray value"),
        (lambda t: t.replace(" 7 ", " -1 ", 1), "line 2: '-1' is not a gray value"),
        (lambda t: t.replace(" 7 ", " 1e2 ", 1), "line 2: '1e2' is not a gray value"),
        (lambda t: t.replace(" 7 ", " 0007 ", 1), "line 2: '0007' is not a gray value"),
        (lambda t: t.replace(" 7 ", " ٣ ", 1), "line 2: '٣' is not a gray value"),
        (lambda t: t.replace(" 7 ", " 7\0 ", 1), "line 2: '7\\x00' is not a gray value"),
        (lambda t: t.replace(" 7 ", " ", 1), "line 2: has 2303 pixels"),
        (lambda t: t.replace(" 7 ", " 7 7 ", 1), "line 2: has 2305 pixels"),
        (lambda t: t.replace("\n1,", "\n7,", 1), "line 3: '7' is not a label"),
        (lambda t: t.replace("\n1,", "\n,", 1), "line 3: '' is not a label"),
        (lambda t: t.replace("\n1,", "\n1.5,", 1), "line 3: '1.5' is not a label"),
        (lambda t: t.replace("PublicTest", "Public", 1), "line 32: 'Public' is not a split"),
        (lambda t: t.replace("emotion,pixels", "emotion,pixel"), "line 1: no column pixels"),
        (lambda t: t.replace("emotion,pixels", "mood,pixels"), "have no labels"),
        (lambda t: t.split("\n")[0], "has a header but no rows"),
        (lambda t: "", "is empty"),
        (lambda t: t[:-700], "line 41: has 2 columns"),
        (lambda t: t.replace("\n1,", '\n1,"', 1), "line 3: its quotes do not close"),
        (lambda t: t.replace("\n1,", "\n1," + "9 " * 40_000, 1), "line 3: is over 65536 bytes"),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(archive, change, words):
    file = archive / "fer2013.csv"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError) as error:
        load(archive)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_row_that_swallowed_the_next_is_refused(challenge):
    file = challenge / "train.csv"
    lines = file.read_text().split("\n")
    lines[1] = lines[1].rsplit(" ", 1)[0] + " 1"  # with the next row's label, 1, a gray value still
    file.write_text("\n".join([lines[0], lines[1] + lines[2], *lines[3:]]))
    with pytest.raises(UserError, match="line 2: has 3 columns where the header has 2"):
        load(challenge)


@pytest.mark.parametrize("header", ["emotion,label,pixels", "pixels,emotion,pixels"])
def test_a_role_that_two_columns_play_is_refused(tmp_path, header):
    (tmp_path / "train.csv").write_text(f"\n\n{header}\n0,0,{pixels(FACES[0])}\n")
    with pytest.raises(UserError, match="line 3: 2 columns named"):
        load(tmp_path)


def test_a_labeled_test_csv_is_sealed(challenge):
    rows = [(y, pixels(x)) for y, x in zip(LABELS[:5], FACES, strict=False)]
    write(challenge / "test.csv", ["emotion", "pixels"], rows)
    assert load(challenge).sealed == {"test"}


@pytest.mark.parametrize("name", ["x" * 201, "a\0"])
def test_an_id_that_numpy_would_bloat_or_cut_is_refused(challenge, name):
    write(
        challenge / "test.csv",
        ["id", "pixels"],
        [("b", pixels(FACES[0])), (name, pixels(FACES[1]))],
    )
    with pytest.raises(UserError, match=r"line 3: .* is not a valid id"):
        load(challenge / "test.csv")
    data = load(challenge)  # a test file that cannot be read does not hinder a training
    assert "is left out" in data.description and "test" not in data.splits
    with pytest.raises(UserError, match=r"split=test: .*line 3: .* is not a valid id"):
        data.split("test")


def test_nothing_left_to_train_on_is_refused(challenge, archive):
    file = archive / "fer2013.csv"
    file.write_text(file.read_text().replace("Training", "PublicTest"))
    with pytest.raises(UserError, match="no rows are left to train on"):
        load(archive)
    write(challenge / "train.csv", ["emotion", "pixels"], [(i, pixels(FACES[i])) for i in range(7)])
    with pytest.raises(UserError, match="no rows are left to train on"):
        load(challenge / "train.csv", fraction=0.6)


def test_what_the_system_will_not_open_is_refused(folders, challenge, monkeypatch):
    for path in ("x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match=r"data\.path|cannot be read"):
            load(path)
    (challenge / "train.csv").unlink()
    link = folders / "train" / "fear" / "zz.png"
    link.symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"zz\.png: cannot be read \(No such file"):
        load(folders)
    link.unlink()

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(sources.Path, "is_file", denied)
    with pytest.raises(UserError, match="cannot be read \\(Permission denied\\)"):
        load(folders)


@pytest.mark.parametrize("kind", ["EPS", "PCX"])
def test_images_of_other_formats_are_not_decoded(folders, kind):
    Image.fromarray(FACES[0]).save(folders / "train" / "fear" / "002.png", kind)
    with pytest.raises(UserError, match=r"002\.png: not a readable image"):
        load(folders)


def test_a_32_bit_image_is_refused(folders):
    Image.fromarray(FACES[0].astype(np.int32)).save(
        folders / "train" / "fear" / "zz.tif"
    )  # 0 to 255 would turn black
    with pytest.raises(UserError, match="mode I; save it with 8 or 16 bits"):
        load(folders)


def test_the_hash_is_the_files_own(archive, folders):
    file = archive / "fer2013.csv"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load(archive).hash == expected == load(archive).hash
    file.unlink()
    assert load(folders).hash not in ("", expected)


def test_utf16_is_refused_and_double_blanks_are_not(archive):
    file = archive / "fer2013.csv"
    text = file.read_text()
    file.write_text(text.replace(" 7 ", "  7  ", 1))
    same(load(archive).splits["train"], np.arange(30))
    file.write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        load(archive)


@pytest.mark.parametrize(("start", "line"), [(b"", 1), (b"pixels\n", 2)])
def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch, start, line):
    file = tmp_path / "fer2013.csv"
    with file.open("wb") as f:
        f.write(start)
        f.truncate(1 << 30)
    read = []

    class CountedFile(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(csv_faces, "FileIO", CountedFile)
    with pytest.raises(UserError, match=f"line {line}: is over 65536 bytes"):
        csv_faces.read_csv(file)
    assert 0 < sum(read) < 2 * csv_faces.BLOCK * csv_faces.MAX_LINE


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"not an image"])
def test_a_bad_image_is_refused_by_name(folders, content):
    (folders / "train" / "fear" / "002.png").write_bytes(content)
    with pytest.raises(UserError, match=r"002\.png: not a readable image"):
        load(folders)


def test_truncated_bomb_and_float_images_are_refused(folders):
    file = folders / "train" / "fear" / "002.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable image"):
        load(folders)
    Image.new("1", (8000, 8000)).save(file)
    with pytest.raises(UserError, match="8000×8000 pixels"):
        load(folders)
    Image.fromarray(FACES[0].astype(np.float32)).save(file.with_suffix(".tiff"))
    file.write_bytes(whole)
    with pytest.raises(UserError, match="mode F"):
        load(folders)


def test_contempt_is_the_eighth_class(folders):
    (folders / "train" / "contempt").mkdir()
    assert load(folders).classes == (*CLASSES, "contempt")


def test_a_misspelt_class_folder_is_told_the_nearest_name(folders):
    (folders / "train" / "suprise").mkdir()
    with pytest.raises(UserError, match=r"suprise' is not an emotion; did you mean surprise\?"):
        load(folders)
    merge = {"surprise": ["surprise", "suprise"]}
    assert load(folders, merge=merge).classes.count("surprise") == 1
    assert "suprise" in load(folders, classes=["happy", "suprise"]).classes


@pytest.mark.parametrize("name", ["7", "10"])
def test_folders_of_another_numbering_are_asked_for(folders, name):
    (folders / "train" / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}: is labeled {name}, but .*words for all"):
        load(folders)


def test_pictures_to_train_on_need_folders(folders):
    shutil.rmtree(folders / "train")
    (folders / "train").mkdir()
    Image.fromarray(FACES[0]).save(folders / "train" / "0.png")
    with pytest.raises(
        UserError, match=r"have no labels; put the pictures in train/ into a folder for each class"
    ):
        load(folders)


def test_numbers_and_words_in_one_column_are_refused(challenge):
    file = challenge / "train.csv"
    file.write_text(file.read_text().replace("\n1,", "\nDisgust,", 1))
    with pytest.raises(UserError, match=r"line 2: is labeled 0, but .*line 3 is labeled 'Disg"):
        load(challenge)


def test_a_flat_test_folder_is_the_split_to_label(folders):
    shutil.rmtree(folders / "test")
    (folders / "test").mkdir()
    names = [f"im_{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        Image.fromarray(FACES[i]).save(folders / "test" / name)
    for _ in range(2):  # the second time from the cache
        data = load(folders)
        assert data.unlabeled_split == "test" and not data.sealed
        assert data.splits["test"].ids == [f"test/{name}" for name in names]
        assert torch.equal(data.splits["test"].images[:, 0], torch.from_numpy(FACES[:3]))
    with pytest.raises(UserError, match=r"validation=test: the pictures in .* have no labels"):
        load(folders, validation="test")
    for place, prefix in ((folders / "test", ""), (folders, "test/")):
        shutil.rmtree(folders / "train", ignore_errors=True)
        data = load(place)
        assert [*data.splits] == ["test"]
        assert data.splits["test"].ids == [prefix + name for name in names]
        with pytest.raises(UserError, match=r"no faces to train on, only 3 of test"):
            data.split("train")


def test_a_flat_validation_folder_cannot_validate(folders):
    (folders / "val").mkdir()
    Image.fromarray(FACES[0]).save(folders / "val" / "a.png")
    with pytest.raises(UserError, match=r"faces to validate on, val/, have no labels; label or"):
        load(folders)
    assert load(folders, split="fraction").splits["val"].ids == ["val/a.png"]


@pytest.mark.parametrize("name", ["unknown", "test"])
def test_one_folder_in_test_that_is_no_class_holds_the_pictures_to_label(folders, name):
    shutil.rmtree(folders / "test")
    (folders / "test" / name).mkdir(parents=True)
    Image.fromarray(FACES[0]).save(folders / "test" / name / "a.png")
    data = load(folders)
    assert data.unlabeled_split == "test" and data.classes == CLASSES
    assert data.splits["test"].ids == [f"test/{name}/a.png"]
    (folders / "test" / name).rename(folders / "test" / "Happy")
    assert load(folders).sealed == {"test"}


def test_a_single_file_can_be_one_split(challenge, archive):
    data = load(challenge / "train.csv", split="none")
    assert [*data.splits] == ["all"] and data.sealed == {"all"} and data.only_split == "all"
    same(data.splits["all"], np.arange(40))
    data = load(challenge / "test.csv", split="none")
    assert data.unlabeled_split == "all" and not data.sealed
    assert {"train", "validation", "private"} <= {
        *load(archive / "fer2013.csv", split="none").splits
    }


def test_classes_without_a_face_to_train_on_are_known(folders):
    assert load(folders).missing_classes == []
    for name in ("fear", "sad"):
        for file in (folders / "train" / name).iterdir():
            file.unlink()
    assert load(folders).missing_classes == ["fear", "sad"]


def test_labels_from_1_are_asked_for_where_eight_classes_would_fit_too(tmp_path):
    rows = [(1 + y, pixels(x), "Training") for y, x in zip(LABELS, FACES, strict=True)]
    write(tmp_path / "faces.csv", ["emotion", "pixels", "Usage"], rows)
    with pytest.raises(UserError, match="1, 2, 3, 4, 5, 6, 7, but FER2013 begins with 0, angry; "):
        load(tmp_path)
    assert load(tmp_path, names=[*CLASSES]).classes == CLASSES


@pytest.mark.parametrize("label", ["7", "-1", "12"])
def test_labels_of_another_numbering_are_asked_for(challenge, label):
    file = challenge / "train.csv"
    file.write_text(file.read_text().replace("\n1,", f"\n{label},", 1))
    with pytest.raises(UserError) as error:
        load(challenge)
    words = str(error.value)
    assert "line 3: " in words and f"'{label}' is not a label of FER2013 (0 angry, 1" in words
    assert "what do these numbers mean?" in words and "data.names=[surprise," in words


def packed(kind):
    """The first bytes of a file that is no CSV."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("train.csv", "emotion,pixels")
    elif kind == "tar":
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("train.csv"))
    elif kind == "npz":
        np.savez(out, images=FACES[:1])
    elif kind == "npy":
        np.save(out, FACES[:1])
    elif kind == "png":
        Image.fromarray(FACES[0]).save(out, "PNG")
    return out.getvalue()


ARRAYS = "save its faces as .npz with the arrays images and labels, or as CSV"
NO_TEXT = {
    "zip": (packed("zip"), "is a zip archive; rename it to train.zip"),
    "tar": (packed("tar"), "is a tar archive; rename it to train.tar"),
    "tar.gz": (gzip.compress(packed("tar")), "is compressed by gzip; rename it to train.tar.gz"),
    "npz": (packed("npz"), "is a NumPy archive; rename it to train.npz"),
    "npy": (packed("npy"), f"is a NumPy array; {ARRAYS}"),
    "png": (packed("png"), "is a picture; put pictures into folders"),
    "gzip": (
        gzip.compress(b"emotion,pixels"),
        "is compressed by gzip; rename it to train.csv.gz",
    ),
    "bzip2": (bz2.compress(b"emotion,pixels"), "is compressed by bzip2; unpack it"),
    "xz": (lzma.compress(b"emotion,pixels"), "is compressed by xz; unpack it"),
    "pickle": (pickle.dumps([1]), f"is a Python pickle; {ARRAYS}"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0", f"is an HDF5 file; {ARRAYS}"),
    "matlab": (b"MATLAB 5.0 MAT-file, Platform", f"is a MATLAB file; {ARRAYS}"),
    "parquet": (b"PAR1\x15\x04", "is a parquet file; rename it to train.parquet"),
    "bmp": (b"BM\x36\0\0\0\0\0\0\0\x36\0", "is a picture; put pictures into folders"),
    "webp": (b"RIFF\x24\0\0\0WEBPVP8 ", "is a picture; put pictures into folders"),
    "heic": (b"\0\0\0\x18ftypheic", "is a video or a HEIC picture; put pictures"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document; name a CSV file"),
    "xlsx": (
        b"PK\x03\x04\x14\0_rels/.rels\0xl/workbook.xml",
        "is an Excel workbook; save it as CSV",
    ),
    "html": (b"<!DOCTYPE html><html>", "is a web page; get the file again"),
    "blank html": (b"\n\n <html>", "is a web page; get the file again"),
    "json": (b'{"error": "403"}', "is JSON; name a CSV file of faces"),
    "control characters": (b"\x1b[31m\x07,pixels\n", "is not UTF-8 text"),
    "latin-1": (b"\xff\xfa\x80,pixels\n", "is not UTF-8 text"),
    "semicolons": (b"emotion;pixels;Usage\n", "its columns are separated by semicolons"),
    "no header": (b"0," + b"17 " * 2304, "holds a face where the names of the columns should be"),
}
MISNAMED = {
    "a.zip": (b"emotion,pixels\n", "is text, not an archive; if it is CSV, rename it to a.csv"),
    "a.tar.gz": (b"<html>", "is a web page; get the file again"),
    "a.csv.gz": (b"emotion,pixels\n", "is text, not compressed by gzip; if it is CSV, rename it"),
    "b.csv.gz": (gzip.compress(packed("tar")), "is a tar archive; rename it to b.tar.gz"),
    "a.npz": (packed("npy"), f"is a NumPy array; {ARRAYS}"),
    "b.npz": (packed("zip"), "is a zip archive without arrays; rename it to b.zip"),
    "c.npz": (b"", "is empty; get the file again"),
    "a.parquet": (b"\x89\xff\0", "is damaged, or not a parquet file; get the file again"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_a_file_that_is_not_what_its_name_says_is_told_as_what_it_is(tmp_path, name):
    content, words = MISNAMED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load(tmp_path / name)
    assert f"{name}: {words}" in str(error.value) and str(error.value).isprintable()


# Named by their kinds: gzip's bytes hold the time, and each process of pytest must collect the same
# names.
@pytest.mark.parametrize("kind", NO_TEXT)
def test_a_file_that_is_no_text_is_told_as_what_it_is(tmp_path, kind):
    content, words = NO_TEXT[kind]
    file = tmp_path / "train.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    said = str(error.value)
    assert words in said and said.isprintable() and "\ufffd" not in said


def test_several_data_sets_in_a_folder_are_listed(challenge):
    for name in ("a", "b"):
        (challenge / name).mkdir()
        shutil.copy(challenge / "train.csv", challenge / name / "train.csv")
    (challenge / "train.csv").unlink()
    (challenge / "test.csv").unlink()
    with pytest.raises(UserError) as error:
        load(challenge)
    said = f"holds 2 data sets; choose one: data.path={challenge}/a, data.path={challenge}/b"
    assert said in str(error.value)
    (challenge / "b" / "train.csv").rename(challenge / "one.csv")
    shutil.copy(challenge / "one.csv", challenge / "two.csv")
    with pytest.raises(UserError, match=r"choose one: data\.path=.*/one\.csv, data\.path=.*/two"):
        load(challenge)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_is_refused_by_name(folders):
    file = folders / "train" / "fear" / "IMG_1.HEIC"
    file.write_bytes(HEIC)
    with pytest.raises(
        UserError, match=r"IMG_1\.HEIC: is HEIC, which phones write and fer does not read; save it"
    ):
        load(folders)


def test_nothing_there_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "old").mkdir()
    for path, words in (
        (tmp_path, "no data set there, only notes.txt, old/; looked"),
        (tmp_path / "x", "no such folder"),
    ):
        with pytest.raises(UserError) as error:
            load(path)
        assert words in str(error.value)
        for word in ("fer2013.csv", "icml_face_data.csv", "train/", "kaggle.com", "data=demo"):
            assert word in str(error.value)


def test_what_lies_deeper_or_beside_or_in_another_form_is_named(challenge, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    beside = (
        f"beside it there is data.path={tmp_path}/a.zip, data.path={tmp_path}/test.csv, "
        f"data.path={tmp_path}/train.csv; looked"
    )
    (tmp_path / "a.zip").write_bytes(packed("zip"))
    for path, words in ((place, "is an empty folder"), (tmp_path / "x", "no such folder or file")):
        with pytest.raises(UserError, match=re.escape(f"{words}; {beside}")):
            load(path)
    for name, content, words in (
        ("faces.h5", b"\x89HDF\r\n\x1a\n", f"is an HDF5 file; {ARRAYS}"),
        ("faces.csv.txt", b"emotion,pixels\n", "is a CSV file; rename it to faces.csv"),
        ("faces.zip.part", b"PK", "is an unfinished download"),
    ):
        (place / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"{name}; {name} {words}; looked for")):
            load(place)
        (place / name).unlink()
    deep = place / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    shutil.move(challenge / "train.csv", deep)
    with pytest.raises(UserError, match=re.escape(f"only a/; did you mean data.path={deep}? look")):
        load(place)


def test_what_a_layout_cannot_do_is_refused(challenge):
    with pytest.raises(UserError, match="no Usage column"):
        load(challenge, split="usage")
    with pytest.raises(UserError, match="not an image folder with a test/"):
        load(challenge, validation="test")


def count_parses(monkeypatch):
    calls, real = [], csv_faces.read_csv
    monkeypatch.setattr(sources, "read_csv", lambda *args: calls.append(1) or real(*args))
    return calls


def test_a_source_is_parsed_once_and_again_when_it_changes(archive, monkeypatch):
    calls = count_parses(monkeypatch)
    first = load(archive)
    assert len(calls) == 1
    second = load(archive)
    assert len(calls) == 1
    for name, split in first.splits.items():
        assert (
            torch.equal(split.images, second.splits[name].images)
            and split.ids == second.splits[name].ids
        )
    file = archive / "fer2013.csv"
    file.write_text(file.read_text().replace(" 7 ", " 8 ", 1))
    assert load(archive).splits["train"].images[0, 0, 0, 2] == 8
    assert len(calls) == 2 and len(list((archive / ".fer-cache").iterdir())) == 1


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:5000] + b"\1" + b[5001:]]
)
def test_a_damaged_cache_is_parsed_again(archive, damage):
    load(archive)
    (cache,) = (archive / ".fer-cache").iterdir()
    cache.write_bytes(damage(cache.read_bytes()))
    same(load(archive).splits["train"], np.arange(30))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(near=st.integers(0, 50), at=st.integers(0, 160), put=st.integers(0, 255))
def test_a_cache_damaged_anywhere_is_parsed_again(tmp_path, near, at, put):
    file = tmp_path / "train.csv"
    file.write_bytes(SMALL)
    sources.cached_csv(file, sources.Wanted())
    (cache,) = (tmp_path / ".fer-cache").iterdir()
    raw = bytearray(cache.read_bytes())
    records = [i for i in range(len(raw)) if raw[i : i + 2] == b"PK"]
    raw[min(records[near % len(records)] + at, len(raw) - 1)] = put
    cache.write_bytes(raw)
    assert np.array_equal(sources.cached_csv(file, sources.Wanted()).images, FACES[:3])


def test_a_flipped_bit_in_the_headers_of_a_cache_changes_nothing(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes(SMALL)
    good = sources.cached_csv(file, sources.Wanted()).arrays()
    (entry,) = (tmp_path / ".fer-cache").iterdir()
    raw = entry.read_bytes()
    pixels = raw.index(FACES[:3].tobytes())
    headers = [*range(pixels), *range(pixels + FACES[:3].nbytes, len(raw))]
    assert len(headers) > 1000
    for bit in range(0, 8 * len(headers), 97):
        changed = bytearray(raw)
        changed[headers[bit // 8]] ^= 1 << bit % 8
        entry.write_bytes(changed)
        again = sources.cached_csv(file, sources.Wanted()).arrays()
        for name, values in good.items():
            assert again[name].dtype == values.dtype and np.array_equal(again[name], values)


def test_the_cache_goes_elsewhere_where_the_folder_cannot_be_written(
    archive, monkeypatch, tmp_path
):
    (archive / ".fer-cache").write_text(
        "in the way"
    )  # root may write anywhere, but not below a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = count_parses(monkeypatch)
    load(archive)
    load(archive)
    assert len(calls) == 1 and len(list((tmp_path / "cache" / "fer").iterdir())) == 1
    (tmp_path / "cache" / "fer").rename(tmp_path / "gone")
    (tmp_path / "cache" / "fer").write_text("in the way too")
    same(load(archive).splits["train"], np.arange(30))


def test_a_file_of_many_blocks_is_read_whole(archive, monkeypatch):
    monkeypatch.setattr(csv_faces, "BLOCK", 2)
    same(load(archive).splits["train"], np.arange(30))


SMALL = "\n".join(
    ["emotion,pixels", *(f"{y},{pixels(x)}" for y, x in zip(LABELS[:3], FACES, strict=False))]
).encode()


def slow_parse(raw):
    """The faces that the file holds by Python's csv and int, or None where it should be refused."""
    try:
        text = raw.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r", "")
        header, *body = [
            row for row in csv.reader(io.StringIO(text), strict=True) if "".join(row).strip()
        ]
        names = [name.strip().lower() for name in header]
        assert all(len(row) == len(names) for row in body)
        images = [[int(v) for v in row[names.index("pixels")].split(" ") if v] for row in body]
        assert images and all(len(i) == 2304 and 0 <= min(i) and max(i) <= 255 for i in images)  # noqa: SIM300
        return np.array(images)
    except (ValueError, AssertionError, IndexError, csv.Error):
        return None


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    at=st.integers(0, len(SMALL)),
    cut=st.integers(0, 4),
    put=st.one_of(
        st.binary(max_size=4), st.text('0123456789 ,"\r\n-+.eE\0', max_size=4).map(str.encode)
    ),
)
def test_a_changed_file_reads_as_python_reads_it_or_is_refused(tmp_path, at, cut, put):
    raw = SMALL[:at] + put + SMALL[at + cut :]
    file = tmp_path / "train.csv"
    file.write_bytes(raw)
    try:
        images = csv_faces.read_csv(file).images.reshape(-1, 2304)
    except UserError as error:
        assert "\n" not in str(error)
        return
    expected = slow_parse(raw)
    assert expected is not None and np.array_equal(images, expected)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=200))
def test_noise_is_refused(tmp_path, raw):
    for file, read in (
        (tmp_path / "x.csv", csv_faces.read_csv),
        (tmp_path / "x.png", pictures.read_image),
    ):
        file.write_bytes(raw)
        with pytest.raises(UserError):
            read(file)
