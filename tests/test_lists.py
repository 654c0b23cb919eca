"""Lists of pictures: tables with a name and a label in each row, in the forms that people have."""

import io
import unicodedata
import zipfile

import numpy as np
import pytest
from loading import load
from PIL import Image

from fer import CLASSES, UserError

RNG = np.random.default_rng(2)
NAMES = [f"f{number}.png" for number in range(20)]


def draw(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        image = Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8))
        image.save(folder / name)
    return folder


def label_of(number):
    return CLASSES[number % 7]


def lines(header, row, count=20):
    """The text of a table; row: of a number."""
    return "\n".join([*([header] if header else []), *map(row, range(count))]) + "\n"


def labels_by_name(data):
    return {
        name.rpartition("/")[2]: data.classes[label]
        for split in ("train", "validation")
        for name, label in zip(
            data.splits[split].ids, data.splits[split].labels.tolist(), strict=True
        )
    }


def one_hot(number):
    return ",".join("1" if label == number % 7 else "0" for label in range(7))


FORMS = {
    "commas": ("labels.csv", lines("file,label", lambda i: f"f{i}.png,{label_of(i)}"), "utf-8"),
    "semicolons": ("a.csv", lines("file;label", lambda i: f"f{i}.png;{label_of(i)}"), "utf-8"),
    "tabs": ("labels.tsv", lines("file\tlabel", lambda i: f"f{i}.png\t{label_of(i)}"), "utf-8"),
    "utf-16": ("labels.csv", lines("file,label", lambda i: f"f{i}.png,{label_of(i)}"), "utf-16"),
    "blanks": ("list.txt", lines("", lambda i: f"f{i}.png {label_of(i)}"), "utf-8"),
    "without endings": (
        "labels.csv",
        lines("id,emotion", lambda i: f"f{i},{label_of(i)}"),
        "utf-8",
    ),
    "one-hot": (
        "labels.csv",
        lines("filename, " + ", ".join(CLASSES), lambda i: f"f{i}.png,{one_hot(i)}"),
        "utf-8",
    ),
    "a word of two": (
        "labels.csv",
        lines("Image Name,x,label", lambda i: f"f{i}.png,a.png,{label_of(i)}"),
        "utf-8",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["images", "train"])
def test_lists_in_many_forms(tmp_path, form, place):
    draw(tmp_path / place)
    name, text, encoding = FORMS[form]
    (tmp_path / name).write_text(text, encoding)
    (tmp_path / "README.txt").write_text("About the data:\n\nf1.png is the first.\n")
    data = load(tmp_path)
    assert labels_by_name(data) == {f"f{i}.png": label_of(i) for i in range(20)}
    if place == "images":
        assert labels_by_name(load(tmp_path / name)) == labels_by_name(data)


@pytest.mark.parametrize("list_in", [".", "EmoLabel"])
def test_rafdb_as_its_authors_give_it(tmp_path, list_in):
    splits = ["train"] * 14 + ["test"] * 7
    names = [f"{split}_{number:05}" for number, split in enumerate(splits)]
    draw(tmp_path / "Image" / "aligned", [f"{name}_aligned.jpg" for name in names])
    draw(tmp_path / "Image" / "original", [f"{name}.jpg" for name in names])
    (tmp_path / list_in).mkdir(exist_ok=True)
    text = lines("", lambda i: f"{names[i]}.jpg {i % 7 + 1}", 21)
    (tmp_path / list_in / "list_patition_label.txt").write_text(text)
    rafdb = ["surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"]
    data = load(tmp_path, names=rafdb)
    assert {split: len(faces) for split, faces in data.splits.items()} == {
        "train": 7,
        "validation": 7,
        "private": 7,
    }
    assert data.sealed == {"private"} and data.classes == CLASSES
    for name, label in labels_by_name(data).items():
        assert name.startswith("train_") and name.endswith("_aligned.jpg")
        assert label == rafdb[int(name[6:11]) % 7]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.csv", b"file,label\n", "has a header but no rows; add them"),
        ("labels.csv", b"", "is empty; get it again"),
        ("labels.csv", b"file,label\nf1.png,m\xfcde\n", "is not UTF-8 text; save it as UTF-8"),
        ("labels.csv", b"file\nf1.png\n", "lists pictures without labels; add a column label"),
        ("labels.csv", b"file,x,y\nf1.png,3,4\n", "any of 2 columns may hold the labels"),
        ("labels.csv", b"a,b,c\nf1.png,1,0\nf2.png,1,1\n", "any of 2 columns may hold the labels"),
        (
            "labels.csv",
            b"file,label\nf1.png,sad\n,sad\n",
            "has '' in line 3, which is not a picture",
        ),
        (
            "labels.csv",
            b"file,label\nf1.png,sad\nf2.png\n",
            "has 1 column in line 3, and 2",
        ),
        ("labels.csv", b"subject,age\n1,30\n", "has no column with names of the pictures; add one"),
        ("labels.xlsx", b"PK\x03\x04[Content_Types].xml", "is an Excel workbook; save it as CSV"),
        ("labels.jsonl", b'{"file": "f1.png"}', "is JSON; save it as CSV"),
    ],
)
def test_a_table_that_is_not_used_is_named_with_the_reason(tmp_path, name, content, words):
    draw(tmp_path / "images")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load(tmp_path).split("train")
    said = f"has no faces to train on, only 20 of test; {name} "
    assert said in str(error.value) and words in str(error.value)
    (tmp_path / "images").rename(tmp_path / "train")
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert f"the faces to train on have no labels; {name} " in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("f3.png,1,1,0", "line 21: should have one 1 and otherwise 0 in the columns angry, sad"),
        ("f3.png,1,0,x", "line 21: should have one 1 and otherwise 0 in the columns angry, sad"),
        ("f3.png,1,0,0,0", "line 21: has 5 columns, and the first line 4"),
    ],
)
def test_a_damaged_row_of_a_one_hot_table_is_refused(tmp_path, rows, words):
    draw(tmp_path)
    flags = ["1,0,0", "0,1,0", "0,0,1"]
    text = lines("file,angry,sad,fear", lambda i: f"f{i}.png,{flags[i % 3]}", 19)
    (tmp_path / "labels.csv").write_text(text + rows + "\n")
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_bytes_that_are_no_text_far_down_a_list_are_refused(tmp_path):
    draw(tmp_path)
    text = lines("file,label", lambda i: f"f{i % 20}.png,{label_of(i % 20)}", 20_000)
    (tmp_path / "labels.csv").write_bytes(text.encode() + b"f1.png,m\xfcde\n")
    with pytest.raises(UserError, match=r"labels\.csv: cannot be read as CSV .*decode byte 0xfc"):
        load(tmp_path)


def test_blank_lines_do_not_shift_the_lines_of_messages(tmp_path):
    draw(tmp_path)
    text = lines("\n\nfile,label\n", lambda i: f"f{i}.png,{label_of(i)}\n")
    (tmp_path / "labels.csv").write_text(text + "gone.png,sad\n")
    assert text.count("\n") == 44
    with pytest.raises(UserError, match=r"labels\.csv, line 45: no picture 'gone\.png' in"):
        load(tmp_path)


def test_pictures_that_a_list_leaves_out_are_counted_without_training_too(fer, tmp_path):
    draw(tmp_path / "faces", [*NAMES, "x1.png"])
    text = lines("file,label", lambda i: f"faces/f{i}.png,{label_of(i)}")
    (tmp_path / "labels.csv").write_text(text)
    commands = (["evaluate", "ckpt=builtin"], ["predict", "ckpt=builtin"], ["inspect"])
    for command in commands:
        code, out, err = fer(*command, "data.path=labels.csv")
        assert code == 0, err
        assert "not read: 1 picture that labels.csv does not list, such as faces/x1.png" in out


def test_pictures_that_a_list_leaves_out_are_counted(tmp_path):
    draw(tmp_path / "images", [*NAMES, "x1.png", "x2.png"])
    text = lines("file,label", lambda i: f"f{i}.png,{label_of(i)}")
    (tmp_path / "labels.csv").write_text(text + "f3.png,happy\n")
    assert load(tmp_path).description.endswith(
        "; not read: 2 pictures that labels.csv does not list, such as images/x1.png, "
        "1 repeated row of labels.csv"
    )
    (tmp_path / "images").rename(tmp_path / "train")
    (tmp_path / "labels.csv").write_text(text + "test/y.png,sad\ngone.png,sad\n")
    draw(tmp_path / "test", ["y.png"])
    assert load(tmp_path).description.endswith(
        "; not read: 2 pictures that labels.csv does not list, such as x1.png, "
        "1 picture named in labels.csv but not there, such as gone.png"
    )


def test_a_picture_with_two_labels_is_refused_with_both_rows(tmp_path):
    draw(tmp_path)
    text = lines("file,label", lambda i: f"f{i}.png,{label_of(i)}")
    (tmp_path / "labels.csv").write_text(text + "./f3.png,sad\n")
    with pytest.raises(
        UserError, match=r"line 22: '\./f3\.png' is labeled sad, but happy in line 5; remove one"
    ):
        load(tmp_path)
    text = lines("file,label,split", lambda i: f"f{i}.png,{label_of(i)},train")
    (tmp_path / "labels.csv").write_text(text + "f3.png,happy,test\n")
    with pytest.raises(UserError, match=r"line 22: 'f3\.png' is also in line 5, with"):
        load(tmp_path)


def test_a_name_that_two_pictures_have_needs_its_path(tmp_path):
    draw(tmp_path / "a")
    draw(tmp_path / "b")
    (tmp_path / "labels.csv").write_text(lines("file,label", lambda i: f"b/f{i}.png,{label_of(i)}"))
    assert {name.partition("/")[0] for name in load(tmp_path).splits["train"].ids} == {"b"}
    (tmp_path / "labels.csv").write_text("file,label\nf1.png,sad\n")
    with pytest.raises(UserError, match=r"line 2: several pictures in .* are named 'f1\.png'"):
        load(tmp_path)


def test_names_are_the_same_in_both_forms_of_unicode(tmp_path):
    names = [f"ü{number}.png" for number in range(20)]
    draw(tmp_path / "images", [unicodedata.normalize("NFD", name) for name in names])
    text = lines("file,label", lambda i: f"{names[i]},{label_of(i)}")
    (tmp_path / "labels.csv").write_text(unicodedata.normalize("NFC", text), "utf-8")
    assert len(load(tmp_path).splits["train"]) == 13


def test_pictures_without_a_clear_vote_are_counted(tmp_path):
    draw(tmp_path / "FER2013Train")
    box = '"(0, 0, 48, 48)"'
    votes = ["9,0,0", "0,9,0", "5,5,0", "0,0,9"]
    text = lines("", lambda i: f"f{i}.png,{box},{votes[i % 4]},0,0,0,0,0,0,0")
    (tmp_path / "FER2013Train" / "label.csv").write_text(text)
    assert load(tmp_path).description.endswith(
        "not read: 5 pictures of label.csv without a clear vote"
    )
    (tmp_path / "FER2013Train" / "label.csv").write_text(text.replace(",9,", f",{'9' * 5000},", 1))
    with pytest.raises(UserError, match=r"label\.csv, line 1: its votes are not counts"):
        load(tmp_path)


def test_a_list_that_is_not_read_is_named_beside_class_folders(tmp_path):
    for name in ("happy", "sad"):
        draw(tmp_path / name)
    (tmp_path / "list.csv").write_text("file,x,y\nf1.png,3,4\n")
    assert load(tmp_path).description.endswith("2 classes: happy, sad; not read: list.csv")


def test_a_list_named_alone_says_what_it_lacks(tmp_path):
    draw(tmp_path)
    (tmp_path / "labels.csv").write_text("file,x,y\nf1.png,3,4\n")
    with pytest.raises(UserError, match=r"labels\.csv: lists pictures, but any of 2 columns"):
        load(tmp_path / "labels.csv")


def test_lists_in_an_archive(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in NAMES:
            archive.writestr(f"images/{name}", buffer.getvalue())
        archive.writestr("list.txt", lines("", lambda i: f"f{i}.png {label_of(i)}"))
    assert len(load(tmp_path / "a.zip").splits["train"]) == 13


def test_a_list_for_each_split(tmp_path):
    draw(tmp_path / "images", [*NAMES, "x.png"])
    for split, numbers in (("train", range(14)), ("test", range(14, 20))):
        rows = [f"f{i}.png,{label_of(i)}\n" for i in numbers]
        (tmp_path / f"{split}_labels.csv").write_text("".join(["image,label\n", *rows]))
    data = load(tmp_path)
    assert [len(data.splits[name]) for name in ("train", "validation", "test")] == [7, 7, 6]
    assert data.sealed == {"test"} and data.description.startswith(
        "train_labels.csv trains, 10 % of it validates, test_labels.csv stays sealed"
    )
    assert data.description.endswith("not read: 1 picture in no list, such as images/x.png")


def test_the_list_of_one_split_does_not_label_another(tmp_path):
    draw(tmp_path / "train")
    draw(tmp_path / "test", ["x1.png", "x2.png"])
    text = lines("id,label", lambda i: f"f{i},{label_of(i)}")
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text("id\nx1\nx2\n")
    data = load(tmp_path)
    assert not data.left_out and data.splits["test"].ids == ["test/x1.png", "test/x2.png"]


def test_pictures_with_boxes_beside_them_are_not_taken_for_classes(tmp_path):
    for split in ("train", "val"):
        for place in (f"a/{split}/images", f"b/images/{split}"):
            draw(tmp_path / place)
            labels = tmp_path / place.replace("images", "labels")
            labels.mkdir(parents=True)
            (labels / "f1.txt").write_text("3 0.5 0.5 1 1\n")
    with pytest.raises(UserError, match="images/ and labels/ are not classes; put the pictures"):
        load(tmp_path / "a")
    with pytest.raises(UserError, match=r"no labels; labels/ is not read; write a table file,lab"):
        load(tmp_path / "b")


def test_class_folders_below_are_named_once(tmp_path):
    for name in ("happy", "sad"):
        draw(tmp_path / "in" / name)
    assert load(tmp_path).description.startswith("in/ trains, 10 % of it validates; 2 classes")


def test_a_name_without_an_ending_that_two_pictures_have_needs_its_path(tmp_path):
    draw(tmp_path / "a")
    draw(tmp_path / "b")
    (tmp_path / "labels.csv").write_text(lines("id,label", lambda i: f"f{i},{label_of(i)}"))
    with pytest.raises(UserError, match=r"line 2: several pictures in .* are named 'f0'"):
        load(tmp_path)


def test_the_faces_and_their_aligned_forms_in_one_folder_are_all_read(tmp_path):
    names = [f"f{i}{ending}.png" for i in range(10) for ending in ("", "_aligned")]
    draw(tmp_path / "images", names)
    text = lines("file,label", lambda i: f"{names[i]},{label_of(i // 2)}")
    (tmp_path / "labels.csv").write_text(text)
    data = load(tmp_path)
    assert {*labels_by_name(data)} == {*names} and "not read" not in data.description


def test_names_of_pictures_tell_no_splits_if_none_is_for_training(tmp_path):
    names = [f"{'val' if i % 2 else 'test'}_{i}.png" for i in range(20)]
    draw(tmp_path / "images", names)
    text = lines("file,label", lambda i: f"{names[i]},{label_of(i)}")
    (tmp_path / "labels.csv").write_text(text)
    assert {*load(tmp_path).splits} == {"train", "validation"}


def test_names_with_letters_that_have_no_width_are_read(tmp_path):
    names = [f"چهره\u200cها{i}.png" for i in range(20)]
    draw(tmp_path / "images", names)
    text = lines("file,label", lambda i: f"{names[i]},{label_of(i)}")
    (tmp_path / "labels.csv").write_text(text, "utf-8")
    assert len(load(tmp_path).splits["train"]) == 13


def test_what_lists_of_splits_leave_out_is_told_of_each(tmp_path):
    draw(tmp_path / "images", [*NAMES, "x.png"])
    for split, numbers in (("train", range(14)), ("test", range(14, 20))):
        rows = [f"f{i}.png,{label_of(i)}\n" for i in [*numbers, numbers[0]]]
        (tmp_path / f"{split}_labels.csv").write_text("".join(["image,label\n", *rows]))
    assert load(tmp_path).description.endswith(
        "not read: 1 repeated row of train_labels.csv, 1 picture in no list, such as "
        "images/x.png, 1 repeated row of test_labels.csv"
    )
