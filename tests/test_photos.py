"""Faces in photos: scikit-image's astronaut, whose face is at (173, 68), 100 pixels wide."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from fer import CLASSES
from fer.checkpoint import Checkpoint
from fer.photos import cascade, find_faces

FACE = (173, 68, 100)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(astronaut())


def near(box, expected=FACE, by=6):
    return all(abs(a - b) <= by for a, b in zip(box, expected, strict=True))


def boxes(image):
    return [box for box, _ in find_faces(image.convert("L"), cascade())]


def test_a_face_is_found_at_any_size_and_in_poor_jpegs_and_nothing_else_is(photo):
    for scale in (0.3, 0.5, 2):
        (box,) = boxes(photo.resize((round(512 * scale),) * 2, Image.Resampling.LANCZOS))
        assert near([side / scale for side in box])
    for quality in (50, 75, 95):  # the visor's smooth shades look like a face to the cascade
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=quality)
        (box,) = boxes(Image.open(file))
        assert near(box)
    for turned in (-5, 5):
        assert len(boxes(photo.rotate(turned, Image.Resampling.BILINEAR))) == 1


def test_several_faces_come_from_left_to_right_and_what_has_none_has_none(photo):
    both = Image.new("RGB", (1024, 512))
    both.paste(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (0, 0))
    both.paste(photo, (512, 0))
    left, right = boxes(both)
    assert near(left, (512 - 173 - 100, 68, 100)) and near(right, (512 + 173, 68, 100))
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    assert not boxes(Image.fromarray(noise)) and not boxes(Image.new("RGB", (300, 200), "white"))
    assert not boxes(Image.new("L", (20, 20)))


def test_a_face_that_fills_the_photo_is_cut_out_whole(photo):
    (((x, y, side), face),) = find_faces(photo.crop((168, 64, 276, 170)).convert("L"), cascade())
    assert (
        x >= 0 and y >= 0 and x + side <= 108 and y + side <= 106 and near((x + 168, y + 64, side))
    )
    assert face.shape == (1, 48, 48) and face.dtype == torch.uint8


def test_photos_are_labelled_by_what_stands_in_their_boxes_and_drawn(fer, tmp_path, photo, tiny):
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "a.png")
    turned = photo.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90°
    turned.save(tmp_path / "in" / "b.jpg", exif=exif, quality=95)
    Image.new("RGB", (300, 300), "gray").save(tmp_path / "in" / "none.png")
    path = tiny()
    code, out, err = fer("predict", f"ckpt={path}", "input=in", "device=cpu")
    assert code == 0, err
    assert "in/none.png: no face found" in out and "2 faces in 2 of 3 photos" in out
    table = pd.read_csv("faces.csv")
    assert list(table) == ["file", "x", "y", "width", "height", "label", *CLASSES]
    assert table["file"].tolist() == ["in/a.png", "in/b.jpg"]
    assert all(near(box) for box in table[["x", "y", "width"]].to_numpy())
    assert (table["width"] == table["height"]).all()

    x, y, side = table.loc[0, ["x", "y", "width"]].astype(int)
    crop = (
        photo.convert("L")
        .crop((x, y, x + side, y + side))
        .resize((48, 48), Image.Resampling.BILINEAR)
    )
    network = Checkpoint.open(path).network(torch.device("cpu"))
    expected = (
        network.logits(torch.from_numpy(np.array(crop))[None, None], 1)
        .double()
        .softmax(1)[0]
        .numpy()
    )
    assert abs(table.loc[0, list(CLASSES)].to_numpy(float) - expected).max() < 2e-6
    assert table.loc[0, "label"] == CLASSES[expected.argmax()]

    drawn = np.asarray(Image.open("faces_photos/a.png").convert("RGB")).astype(int)
    changed = np.argwhere(abs(drawn - astronaut()).sum(2) > 0)
    assert (
        drawn.shape == (512, 512, 3)
        and len(changed)
        and not (tmp_path / "faces_photos" / "none.png").exists()
    )
    assert (drawn[y + side // 2, x] == (230, 159, 0)).all()  # the box's left edge
    assert Image.open("faces_photos/b.png").size == (512, 512)


def test_faces_that_are_cropped_already_are_taken_whole(fer, tmp_path, tiny):
    tiny()
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(0)
    for name in "ab":
        noise = generator.integers(0, 256, (48, 48), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"{name}.png")
    code, out, err = fer("predict", "ckpt=tiny.pt", "input=in", "device=cpu")
    assert code == 0 and "2 pictures of 48×48 pixels taken whole" in out, err
    assert pd.read_csv("faces.csv")["file"].tolist() == ["in/a.png", "in/b.png"]
    assert not (tmp_path / "faces_photos").exists()

    Image.new("L", (60, 90), "gray").save(tmp_path / "in" / "c.png")
    code, out, err = fer("predict", "ckpt=tiny.pt", "input=in", "crop=whole", "device=cpu")
    table = pd.read_csv("faces.csv")
    assert code == 0 and table[["x", "y", "width", "height"]].to_numpy()[2].tolist() == [
        0,
        0,
        60,
        90,
    ], err
    assert f"in/c.png, the whole picture: {table['label'][2]}" in out
    assert "faces.csv: replaces the one of" in out
    code, _, err = fer("predict", "ckpt=tiny.pt", "split=validation", "crop=whole", "device=cpu")
    assert code == 2 and "crop: is about photos" in err


def test_how_small_a_face_is_looked_for_is_a_choice(fer, tmp_path, tiny, photo):
    group = Image.new("RGB", (1200, 200), "gray")
    group.paste(photo.resize((154, 154), Image.Resampling.LANCZOS), (600, 20))
    group.save(tmp_path / "group.png")
    gray = group.convert("L")
    assert not find_faces(gray, cascade())
    (((x, y, side), _),) = find_faces(gray, cascade(), smallest=0.02)
    assert near((x, y, side), (600 + 173 * 0.3, 20 + 68 * 0.3, 30))
    assert not find_faces(photo.convert("L"), cascade(), smallest=0.5)
    code, out, _ = fer("predict", f"ckpt={tiny()}", "input=group.png", "device=cpu")
    assert (
        code == 0
        and "group.png: no face found of 45 pixels or more" in out
        and "try smallest=0.01875" in out
    )
    assert (
        "labelled"
        in fer("predict", "ckpt=tiny.pt", "input=group.png", "smallest=0.02", "device=cpu")[1]
    )


def test_without_a_face_the_table_has_a_header_only(fer, tmp_path, tiny):
    Image.new("L", (100, 100)).save("plain.png")
    code, out, _ = fer("predict", f"ckpt={tiny()}", "input=plain.png", "out=faces.csv")
    assert code == 0 and "no face" in out
    assert (tmp_path / "faces.csv").read_text().splitlines() == [",".join(pd.read_csv("faces.csv"))]
    assert not (tmp_path / "faces_photos").exists()


def test_what_is_no_photo_or_would_be_overwritten_is_refused(fer, tmp_path, tiny, monkeypatch):
    tiny()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (100, 100)).save("plain.png")
    for words, message in {
        ("input=missing.jpg",): "no such file",
        ("input=empty",): "no images",
        ("input=text.png",): "not a readable image",
        ("input=plain.png", "out=plain.png"): "would write over",
        ("input=plain.png", "split=validation"): "split: does not go with input",
    }.items():
        code, _, err = fer("predict", "ckpt=tiny.pt", *words)
        assert code == 2 and message in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    code, _, err = fer("predict", "ckpt=tiny.pt", "input=plain.png")
    assert code == 2 and "pip install 'fer-trainer[photos]'" in err
    assert {file.name for file in tmp_path.iterdir()} == {
        "tiny.pt",
        "empty",
        "text.png",
        "plain.png",
    }


def test_heic_photos_are_refused_by_name(fer, tmp_path, tiny):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for place in ("in", "in/IMG_1.HEIC"):
        code, _, err = fer("predict", f"ckpt={tiny()}", f"input={place}")
        assert code == 2 and "IMG_1.HEIC: is HEIC" in err and "save it as JPEG" in err
