"""Hostile and malformed files (configs, CSVs, images) are refused or read correctly. The payloads
are harmless.
"""

import csv
import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fer import CLASSES, UserError, checkpoint, config
from fer.checkpoint import Checkpoint
from fer.commands import summary
from fer.data.readers import cache, csv_faces, folders, pictures

TRAIN = [
    "train",
    "data=demo",
    "data.images=70",
    "model=dnn",
    "model.head=[1]",
    "train.epochs=1",
    "device=cpu",
    "run=r",
]
FACES = np.random.default_rng(0).integers(0, 256, (4, 48, 48), dtype=np.uint8)
FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def refused(fer, *args):
    """The line in which `fer ARGS` is refused."""
    code, out, err = fer(*args)
    assert (code, out, err.count("\n")) == (2, "", 1) and "Traceback" not in err, out + err
    return err


def theirs(folder, files):
    for name, text in files.items():
        (folder / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "theirs" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--config-dir", "theirs"]


GLOBAL = "# @package _global_\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GLOBAL + "name: [${\n", "experiment/x.yaml: is not valid YAML (while parsing"),
        (
            GLOBAL + "name: !!python/object/apply:os.mkdir [ran]\n",
            "experiment/x.yaml: is not valid YAML (could not determine a constructor",
        ),
        (GLOBAL + "# @package a b\nname: x\n", "Too many components"),
        ("5\n", "experiment/x.yaml: is not a mapping of keys"),
        ("- a\n", "experiment/x.yaml: is not a mapping of keys"),
        (b"\xff\xfe\0", "experiment/x.yaml: is not valid YAML ('utf-8' codec"),
        (GLOBAL + "name: ${nowhere}\n", "nowhere"),
        (
            GLOBAL + "defaults:\n  - y\n",
            "experiment/x.yaml: starts from itself (x → y → x); change its defaults",
        ),
        (GLOBAL + "defaults:\n  - x@_here_\n", "starts from itself (x → x)"),
    ],
)
def test_a_slip_in_a_config_of_ones_own_is_one_line_with_its_file(fer, tmp_path, text, words):
    other = GLOBAL + "defaults:\n  - x\n"
    args = theirs(tmp_path, {"experiment/x.yaml": text, "experiment/y.yaml": other})
    assert words in refused(fer, *TRAIN, *args, "experiment=x")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


def test_a_config_of_ones_own_may_read_the_environment(fer, tmp_path, monkeypatch):
    monkeypatch.setenv("SEED_OF_MINE", "7")
    text = GLOBAL + "seed: ${oc.decode:${oc.env:SEED_OF_MINE}}\n"
    args = theirs(tmp_path, {"experiment/x.yaml": text})
    code, out, err = fer("train", *args, "experiment=x", "--cfg", "job", "--resolve")
    assert code == 0 and "seed: 7" in out, err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim._target_=os.system", "optim._target_=os.system: not an optimizer"),
        (
            "optim._target_=torch.optim._functional.os.system",
            "no module torch.optim._functional.os",
        ),
        ("optim._target_=torch.optim.lr_scheduler.StepLR", "not an optimizer"),
        ("++data={_target_: fer.data.readers.cache.available_memory}", "data"),
        ("name=a\x1b[2Jb", "name=a\\x1b[2Jb"),
        ("start=a\nb.pt", "a\\nb.pt: no such checkpoint"),
        ("name=" + "x" * 101, "should be 1 to 100 printable characters"),
        ("train.precision=\x9b2J", "\\x9b2J"),
        ("run=\udcff", "an argument is not valid text"),
        ("model.classes=5", "model.classes=5: the data has 7"),
        (
            "model.head=[1000000000000000]",
            "model.head.0=1000000000000000: should be less than or equal to 65536",
        ),
    ],
)
def test_what_is_typed_wrong_is_one_line_and_leaves_nothing(fer, tmp_path, override, words):
    assert words in refused(fer, *TRAIN, override)
    assert not list(tmp_path.iterdir())


def test_a_name_does_not_lead_out_of_the_runs(fer, tmp_path):
    assert "would name a folder elsewhere" in refused(fer, *TRAIN[:-1], "name=../../x")
    assert not list(tmp_path.iterdir())


def test_a_path_may_look_like_an_interpolation(fer):
    assert "${oc.env:HOME}/x.pt: no such checkpoint" in refused(
        fer, "predict", "ckpt=${oc.env:HOME}/x.pt"
    )


def test_an_error_is_one_line_and_with_fer_debug_its_traceback_too(fer, monkeypatch):
    for args in (
        ["predict", "ckpt=" + "x" * 5000],
        ["predict", "ckpt=/dev/null"],
        ["report", "run=/dev/null"],
        ["train", "resume=/dev/null"],
        ["train", "data.path=" + "x" * 5000],
        ["train", "data.path=/dev/null"],
        ["curves", "schedule=cosine", "out=/dev/null/where.png"],
        ["curves", "schedule=cosine", "out=x.exe"],
        ["summary", "models=[x]"],
    ):
        refused(fer, *args)
    monkeypatch.setenv("FER_DEBUG", "1")
    code, _, err = fer("predict", "ckpt=nowhere")
    assert (
        code == 2
        and "Traceback" in err
        and err.endswith(
            "fer: nowhere: no such checkpoint; a run folder holds best.pt and last.pt\n"
        )
    )


def test_a_bug_shows_its_traceback(fer, monkeypatch):
    def broken(values, typed):
        raise ZeroDivisionError

    monkeypatch.setattr(summary, "run", broken)
    for more in ([], ["--config-dir", "."]):
        with pytest.raises(ZeroDivisionError):
            fer("summary", *more)


def test_what_the_system_refuses_is_one_line(fer, monkeypatch):
    def full(values, typed):
        raise OSError(28, "No space left on device", "x.csv")

    monkeypatch.setattr(summary, "run", full)
    assert refused(fer, "summary") == "fer: x.csv: No space left on device\n"


def pixels(image):
    return " ".join(map(str, image.ravel()))


def rows(*lines, header="emotion,pixels"):
    return "\n".join([header, *lines, ""])


FACE = pixels(FACES[0])
GOOD = rows(f"0,{FACE}", f"1,{pixels(FACES[1])}")


@pytest.mark.parametrize(
    "raw",
    [
        GOOD.encode(),
        GOOD.encode("utf-8-sig"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r\n").encode("utf-8-sig"),
        GOOD.replace(FACE, f'"{FACE}"').encode(),
        GOOD.replace("emotion,pixels", '"emotion","pixels"').encode("utf-8-sig"),
        GOOD.replace("\n1", "\n\n \n1").encode(),
        b"\n" + GOOD.encode().rstrip(b"\n"),
        rows(
            f"0,=1+1,{FACE}", f"1,a\0b,{pixels(FACES[1])}", header="emotion,note,pixels"
        ).encode(),  # not looked at
    ],
)
def test_a_csv_reads_the_same_in_any_dress(tmp_path, raw):
    (tmp_path / "x.csv").write_bytes(raw)
    table = csv_faces.read_csv(tmp_path / "x.csv")
    assert np.array_equal(table.images, FACES[:2]) and table.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (GOOD.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (GOOD.encode("utf-32"), "is UTF-32; save it as UTF-8"),
        (GOOD.encode("utf-16-le"), "line 1: is not UTF-8 text"),
        (GOOD.replace("\n", "\r").encode(), "line 1: "),
        (b"\0" * 70_000, "line 1: is over 65536 bytes long"),
        (b"\0" * 7, "line 1: is not UTF-8 text"),
        (GOOD.replace("\n1,", "\n1\0,").encode(), "line 3: '1\\x00' is not a label"),
        (GOOD.replace("\n1,", "\n=1,").encode(), "line 3: '=1' is not a label"),
        (GOOD.replace(FACE, FACE + "\0").encode(), "line 2: "),
        (GOOD.replace(FACE, f'{FACE}"').encode(), "line 2: "),
        (GOOD.replace(FACE, f'"{FACE}').encode(), "line 2: its quotes do not close"),
        (GOOD.replace("pixels", "pixels\0").encode(), "line 1: is not UTF-8 text"),
        (b'"' * 1000, "line 1: "),
        (b"," * 1000, "line 1: no column pixels"),
        (b"PK\3\4" + bytes(range(256)), "is a zip archive; rename it to x.zip"),
        (b"\x1f\x8b" + bytes(range(256)), "is compressed by gzip; rename it to x.csv.gz"),
    ],
)
def test_a_csv_that_lies_is_refused_with_its_line(tmp_path, raw, words):
    (tmp_path / "x.csv").write_bytes(raw)
    with pytest.raises(UserError) as error:
        csv_faces.read_csv(tmp_path / "x.csv")
    assert str(error.value).startswith(f"{tmp_path / 'x.csv'}") and words in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_long_line_takes_no_memory(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"pixels\n" + b"7 " * (20 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match="line 2: is over 65536 bytes long"):
        csv_faces.read_csv(tmp_path / "x.csv")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_small_file_of_a_network_with_large_outputs_is_refused(tiny, monkeypatch):
    """Its 65,536 weights turn a face into 12 million times as many numbers; nothing is computed."""
    monkeypatch.setattr(checkpoint, "available_memory", lambda: int(64e9))
    node = {"_target_": "fer.models.convnet.ConvNet", "size": 1024, "kernel": 1}
    node |= {"features": [65_536, "global_pool"], "head": []}
    weights = config.build("model", config.check_node("model", node)).state_dict()
    path = tiny(config={"model": node}, model=weights)
    assert path.stat().st_size < 4e6
    opened = Checkpoint.open(path)
    with pytest.raises(UserError, match=r"takes 549.8 GB of memory for one face, where 64.0 GB"):
        opened.network(torch.device("cpu"))


def test_faces_are_computed_as_many_at_once_as_fit_into_memory(tiny, monkeypatch):
    faces = torch.randint(0, 256, (5, 1, 48, 48), dtype=torch.uint8)
    opened = Checkpoint.open(tiny())
    expected = opened.network(torch.device("cpu")).logits(faces, 64)
    monkeypatch.setattr(checkpoint, "available_memory", lambda: 2 * 4 * 4 * 48 * 48 * 3)
    network = opened.network(torch.device("cpu"))
    batches = []
    network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    torch.testing.assert_close(network.logits(faces, 64), expected)
    assert batches == [3, 2]


def test_a_csv_larger_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    assert 100e6 < cache.available_memory() < 1e15
    with (tmp_path / "fer2013.csv").open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(csv_faces, "FileIO", None)
    monkeypatch.setattr(csv_faces, "available_memory", lambda: 8e9)
    with pytest.raises(
        UserError,
        match=r"fer2013.csv: is 1099.5 GB .* take 769.7 GB of memory, where 8.0 GB are free",
    ):
        csv_faces.read_csv(tmp_path / "fer2013.csv")


@pytest.mark.parametrize(
    ("limit", "expected"), [("max\n", 4e9), ("1000000000\n", 1e9), (None, 4e9)]
)
def test_the_memory_there_is_knows_a_containers_limit(monkeypatch, limit, expected):
    def read_text(self):
        text = {
            "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    3906250 kB\n",
            "/sys/fs/cgroup/memory.max": limit,
        }
        if text.get(str(self)) is None:
            raise FileNotFoundError
        return text[str(self)]

    monkeypatch.setattr(cache.Path, "read_text", read_text)
    monkeypatch.setattr(cache.os, "sysconf", lambda name: 1 << 20)
    assert cache.available_memory() == expected


IDS = ["=cmd|' /C calc'!A1", "+1", "-1", "@SUM(1)", 'a"b', "a,b", "<b>", "é", "0"]


def test_ids_are_copied_as_they_are(fer, tmp_path, tiny):
    faces = [pixels(FACES[i % 4]) for i in range(len(IDS))]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text(
        rows(*(f"{i % 7},{face}" for i, face in enumerate(faces * 2)))
    )
    with (tmp_path / "d" / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "pixels"], *zip(IDS, faces, strict=True)])
    code, _, err = fer(
        "predict", f"ckpt={tiny()}", "data=fer2013", "data.path=d", "data.fraction=0.5"
    )
    assert code == 0, err
    written = list(csv.reader(io.StringIO((tmp_path / "submission.csv").read_text())))
    assert [row[0] for row in written] == ["id", *IDS]


def png(width, height, depth=8, color=0, data=b""):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GRAY = Image.fromarray(FACES[0])
GRADIENT = Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1)))


@pytest.mark.parametrize(
    ("raw", "expected", "within"),
    [
        (saved(GRAY, "PNG"), FACES[0], 0),
        (saved(GRAY.convert("RGB"), "PNG"), FACES[0], 0),
        (saved(GRAY.convert("RGBA"), "PNG"), FACES[0], 0),
        (saved(GRAY.convert("LA"), "PNG"), FACES[0], 0),
        (saved(GRAY.convert("P"), "PNG"), FACES[0], 0),
        (saved(Image.fromarray(FACES[0].astype(np.uint16) * 257), "PNG"), FACES[0], 0),
        (saved(Image.fromarray(FACES[0].astype(np.uint16) * 257), "TIFF"), FACES[0], 0),
        (saved(Image.fromarray(FACES[0].astype(np.uint16) * 257), "PPM"), FACES[0], 0),
        (
            png(48, 48, 16, 2, b"".join(b"\0" + bytes(np.repeat(row, 6)) for row in FACES[0])),
            FACES[0],
            0,
        ),  # 16-bit RGB
        (saved(GRAY.convert("CMYK"), "TIFF"), FACES[0], 0),
        (saved(GRADIENT.convert("CMYK"), "JPEG", quality=95), np.asarray(GRADIENT), 4),
        (saved(GRAY, "GIF", save_all=True, append_images=[GRAY.rotate(90)] * 9), FACES[0], 0),
        (
            saved(GRAY, "WEBP", lossless=True, save_all=True, append_images=[GRAY.rotate(90)]),
            FACES[0],
            1,
        ),
        (saved(GRAY, "PNG", save_all=True, append_images=[GRAY.rotate(90)]), FACES[0], 0),
        (saved(Image.new("L", (1, 1), 9), "PNG"), np.full((48, 48), 9), 0),
        (saved(Image.new("L", (7000, 7000), 9), "PNG"), np.full((48, 48), 9), 0),
        (saved(Image.new("1", (1, 4000), 1), "PNG"), np.full((48, 48), 255), 0),
    ],
)
def test_an_image_of_any_kind_is_read_right(tmp_path, raw, expected, within):
    (tmp_path / "x.png").write_bytes(raw)
    read = pictures.read_image(tmp_path / "x.png")
    assert read.dtype == np.uint8 and np.abs(read.astype(int) - expected).max() <= within


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (png(8000, 8000), "has 8000×8000 pixels, more than 50 million; make it smaller"),
        (png(100_000, 100_000), "more than 50 million"),
        (png(2**31 - 1, 1), "more than 50 million"),
        (png(0, 0), "not a readable image"),
        (png(48, 48), "not a readable image"),
        (png(48, 48, data=bytes(100)), "not a readable image"),
        (saved(GRAY, "PNG")[:-500], "not a readable image"),
        (saved(GRAY, "JPEG")[:-500], "not a readable image"),
        (saved(GRAY, "GIF")[:-500], "not a readable image"),
        (saved(GRAY, "BMP")[:-500], "not a readable image"),
        (saved(GRAY, "WEBP")[:-500], "not a readable image"),
        (saved(GRAY, "TIFF")[:-500], "not a readable image"),
        (saved(GRAY, "PPM")[:-500], "not a readable image"),
        (
            saved(Image.fromarray(FACES[0].astype(np.float32)), "TIFF"),
            "mode F; save it with 8 or 16 bits",
        ),
        (saved(GRAY, "EPS"), "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable image"),
        (b"", "not a readable image"),
    ],
)
def test_an_image_that_lies_is_refused_by_name(tmp_path, raw, words):
    (tmp_path / "x.png").write_bytes(raw)
    with pytest.raises(UserError) as error:
        pictures.read_image(tmp_path / "x.png")
    assert str(error.value).startswith(f"{tmp_path / 'x.png'}: ") and words in str(error.value)


@pytest.mark.posix
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "y.png").mkdir()
    for name in ("x.png", "y.png"):
        with pytest.raises(UserError, match="not a readable image"):
            pictures.read_image(tmp_path / name)


def changed(raw, changes):
    raw = bytearray(raw)
    for at, cut, put in changes:
        at %= len(raw) or 1
        raw[at : at + cut] = put
    return bytes(raw)


CHANGES = st.lists(
    st.tuples(st.integers(0, 5000) | st.integers(0, 80), st.integers(0, 8), st.binary(max_size=8)),
    min_size=1,
    max_size=5,
)
IMAGES = [saved(GRAY, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")]
IMAGES += [
    saved(GRAY, "TIFF", compression="tiff_lzw"),
    saved(Image.fromarray(FACES[0].astype(np.uint16)), "PNG"),
]


@settings(max_examples=200, **FUZZ)
@given(image=st.sampled_from(IMAGES), changes=CHANGES)
def test_a_changed_image_is_read_or_refused(tmp_path, image, changes):
    file = tmp_path / "x.png"
    file.write_bytes(changed(image, changes))
    try:
        read = pictures.read_image(file)
    except UserError as error:
        assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
    else:
        assert read.shape == (48, 48) and read.dtype == np.uint8


@settings(max_examples=120, **FUZZ)
@given(raw=st.binary(max_size=300) | CHANGES.map(lambda changes: changed(GOOD.encode(), changes)))
def test_noise_and_changed_csvs_give_whole_faces_or_a_line(tmp_path, raw):
    file = tmp_path / "x.csv"
    file.write_bytes(raw)
    try:
        table = csv_faces.read_csv(file)
    except UserError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
    else:
        assert table.images.shape == (len(table.labels), 48, 48) and set(table.labels) <= {
            -1,
            *range(7),
        }


@settings(max_examples=20, **FUZZ)
@given(names=st.lists(st.text(max_size=8), max_size=3), raw=st.binary(max_size=60))
def test_a_folder_of_anything_is_read_or_refused(tmp_path_factory, names, raw):
    folder = tmp_path_factory.mktemp("d") / "train"
    for number, name in enumerate([*CLASSES[:2], *names]):
        place = folder / name.replace("/", "_").replace("\0", "_")
        if place.name in ("", ".", ".."):
            continue
        place.mkdir(parents=True, exist_ok=True)
        (place / "1.png").write_bytes(saved(GRAY, "PNG") if number < 4 else raw)
    try:
        table = folders.read_folder(folder)
    except UserError as error:
        assert str(folder) in str(error)
    else:
        assert len(table.images) >= 2  # those of the two classes
        assert all(np.array_equal(image, FACES[0]) for image in table.images)


def test_bad_yaml_in_a_later_choice_of_a_sweep_is_refused_before_the_first_runs(fer, tmp_path):
    args = theirs(tmp_path, {"augment/bad.yaml": "x: [\n"})
    code, _, err = fer(*TRAIN[:-1], "-m", "hydra.sweep.dir=s", *args, "augment=none,bad")
    assert (
        code == 2 and "theirs/augment/bad.yaml: is not valid YAML" in err and err.count("\n") == 1
    )
    assert not list(tmp_path.glob("s/*/*"))
