"""Files are written completely or not at all, and never replace what is not a regular file."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import TINY
from PIL import Image

from fer import UserError, cli, plots
from fer.files import write, write_text


def test_a_link_is_followed_and_its_target_replaced(tmp_path):
    target, link = tmp_path / "there" / "target.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.csv", "target.csv", "there"]


def test_a_link_to_a_name_that_is_free_makes_that_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new").read_text() == "x"


@pytest.mark.posix
@pytest.mark.parametrize(
    "save", [lambda file: file.write(b"x" * 200_000), lambda file: torch.save([1] * 9999, file)]
)
def test_a_pipe_is_written_to_and_stays_one(tmp_path, save):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(pipe, save)
    reader.join(10)
    assert pipe.is_fifo() and len(read[0]) > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_and_a_circle_of_links_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name, said in (("folder", "is a folder"), ("a", "circular link")):
        with pytest.raises(UserError, match=said):
            write_text(tmp_path / name, "x")


def test_what_was_there_stays_where_a_save_fails(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write(path, fails)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.posix
def test_a_submission_goes_through_a_pipe(fer, tiny, tmp_path):
    path = tiny()
    os.mkfifo("ff")
    read = []
    reader = threading.Thread(
        target=lambda: read.append((tmp_path / "ff").read_text()), daemon=True
    )
    reader.start()
    code, _, err = fer("predict", f"ckpt={path}", "split=validation", "out=ff")
    reader.join(10)
    assert code == 0 and (tmp_path / "ff").is_fifo(), err
    assert read[0].startswith("id,label\n")


@pytest.mark.posix
def test_a_pipe_to_be_read_and_a_circle_of_links_do_not_hang_a_command(fer, tiny, tmp_path):
    ckpt = f"ckpt={tiny()}"
    os.mkfifo("pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    predict = ["predict", ckpt, "split=validation"]
    for words in (
        [*predict, "sample=pipe", "out=x.csv"],
        [*predict, "out=circle"],
        ["export", ckpt, "out=circle"],
    ):
        code, _, err = fer(*words)
        assert code == 2 and err.count("\n") == 1, (words, err)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").symlink_to(tmp_path / "photos" / "a.jpg")
    code, _, err = fer("predict", ckpt, "input=photos", "out=x.csv")
    assert code == 2 and "Traceback" not in err
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("words", [["predict", "split=validation"], ["export"]])
def test_a_runs_own_file_is_not_written_to_through_a_link(fer, tmp_path, tiny, words):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "history.csv").write_text("epoch\n")
    (tmp_path / "link.csv").symlink_to("r/history.csv")
    code, _, err = fer(*words, f"ckpt={tiny()}", "out=link.csv")
    assert code == 2 and "link.csv: would overwrite a run's own file" in err
    assert (tmp_path / "r" / "history.csv").read_text() == "epoch\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        assert cli.main(["train", *TINY, "train.epochs=1", "run=r"]) == 0
    return folder / "r"


@pytest.mark.posix
@pytest.mark.parametrize("name", [".lock", "config.yaml", "environment.yaml", "history.csv"])
def test_a_pipe_in_a_run_folder_does_not_hang_a_command(fer, trained, tmp_path, name):
    shutil.copytree(trained, tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    os.mkfifo(tmp_path / "r" / name)
    code, _, err = fer("train", "resume=r", "train.epochs=2")
    assert code == 2 and err.startswith(f"fer: r/{name}: is not a regular file"), err
    code, _, err = fer("report", "run=r")
    if name == "history.csv":
        assert code == 2 and "r/history.csv: cannot be read (not a regular file); fer tr" in err
    else:
        assert code == 0, err


@pytest.mark.posix
def test_a_pipe_is_told_as_what_it_is_and_not_waited_for(fer, tmp_path, fer2013_csv):
    for name in ("pipe", "pipe.mp4"):
        os.mkfifo(tmp_path / name)
    train = ["train", "data.path=archive", "model=dnn", "run=r"]
    torchvision = [*train, "model=torchvision", "model.name=squeezenet1_1", "model.weights=pipe"]
    for words, said in (
        (["predict", "ckpt=pipe"], "pipe: is not a regular file"),
        (["predict", "input=pipe"], "pipe: not a readable image"),
        (["predict", "input=pipe.mp4"], "pipe.mp4: is not a regular file"),
        (["inspect", "data.path=pipe"], "data.path=pipe: is neither a file nor a folder"),
        ([*train, "data=ferplus", "data.votes=pipe"], "pipe: cannot be read (not a regular file)"),
        (torchvision, "weights=pipe: cannot be loaded (not a regular file)"),
    ):
        code, _, err = fer(*words)
        assert code == 2 and said in err and err.count("\n") == 1, (words, err)


def test_what_a_killed_write_left_is_removed_by_the_next_one(tmp_path):
    names = [".x[1].csv.0123abcd.tmp", ".x[1].csv.9123abcd.tmp", ".y.csv.0123abcd.tmp"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / names[1]).touch()  # may be in use
    write_text(tmp_path / "x[1].csv", "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x[1].csv", *names[1:]}


def test_permissions_stay_and_the_longest_names_are_written(tmp_path):
    path = tmp_path / "private.csv"
    path.write_text("old")
    path.chmod(0o600)
    write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    longest = tmp_path / ("é" * 127)  # 254 bytes
    write_text(longest, "x")
    assert longest.read_text() == "x"


@pytest.mark.posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_is_a_place_for_a_file(name, tmp_path):
    """It is a pipe here, which has no name of its own; a shell's >> must not be replaced either."""
    code = f"from fer.files import write_text; write_text({name!r}, 'x' * 200_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"x" * 200_000
    log = tmp_path / "log"
    log.write_text("earlier ")
    with log.open("a") as appended:
        subprocess.run([sys.executable, "-c", code], stdout=appended, check=True)
    assert log.read_text() == "earlier " + "x" * 200_000


@pytest.mark.parametrize(
    ("command", "writes"),
    [
        (["predict", "ckpt=tiny.pt", "data.path=FACES", "split=validation"], "out=FACES"),
        (["predict", "ckpt=tiny.pt", "data.path=FACES", "split=validation"], "probs=FACES"),
        (["export", "ckpt=tiny.pt"], "out=FACES"),
        (["inspect", "data.path=FACES", "near=null"], "out=."),
    ],
)
def test_no_output_replaces_a_data_set(fer, tiny, fer2013_csv, tmp_path, command, writes):
    tiny()
    faces = tmp_path / "pairs.csv"  # as inspect calls a table
    fer2013_csv.rename(faces)
    before = faces.read_bytes()
    words = [word.replace("FACES", "pairs.csv") for word in [*command, writes]]
    code, _, err = fer(*words)
    assert code == 2 and "pairs.csv: holds faces, which this would overwrite" in err
    assert faces.read_bytes() == before
    assert not (tmp_path / "counts.csv").exists()  # nor anything half-written


@pytest.mark.parametrize("name", ["faces.zip", "f.7z", "me.JPG", "a.webp", "b.heic", "c.mp4"])
def test_submissions_replace_no_file_of_another_kind(fer, tiny, tmp_path, name):
    (tmp_path / name).write_bytes(b"faces")
    code, _, err = fer("predict", f"ckpt={tiny()}", "data=demo", f"out={name}")
    assert code == 2 and "may be a data set" in err
    assert (tmp_path / name).read_bytes() == b"faces"


def test_outputs_make_their_folder_and_a_refusal_leaves_none(fer, tiny, tmp_path):
    ckpt = f"ckpt={tiny()}"
    Image.new("L", (48, 48)).save("face.png")
    before = set(tmp_path.rglob("*"))
    for words, message in {
        ("predict", ckpt, "split=none", "out=a/b/s.csv"): "the data has no such split",
        ("predict", ckpt, "input=no.png", "out=a/s.csv"): "no such file",
        ("predict", ckpt, "input=face.png", "out=face.png/s.csv"): "face.png: cannot be made",
        ("predict", ckpt, "input=face.png", "out=tiny.pt/a/s.csv"): "tiny.pt/a: cannot be made",
        ("curves", "out=a/b.txt"): "must end in .png, .svg or .pdf",
    }.items():
        code, _, err = fer(*words)
        assert code == 2 and message in err and err.count("\n") == 1, words
        assert set(tmp_path.rglob("*")) == before
    made = ["a/b/s.csv", "a/p.csv", "c/lr.svg"]
    words = ["input=face.png", "out=a/b/s.csv"]
    assert fer("predict", ckpt, *words)[0] == 0
    assert fer("predict", ckpt, "split=train", "out=a/p.csv")[0] == 0
    assert fer("curves", "train.epochs=2", "out=c/lr.svg")[0] == 0
    assert {
        file.relative_to(tmp_path).as_posix() for file in set(tmp_path.rglob("*.*")) - before
    } == {*made}


def test_pages_and_pictures_replace_only_those_of_fer(fer, tmp_path, tiny):
    Image.new("L", (48, 48)).save("mine.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<!doctype html>\n<p>mine</p>")
    content = {file: file.read_bytes() for file in (Path("mine.png"), Path("site/index.html"))}
    tiny()
    for words in (
        ["curves", "train.epochs=2", "out=mine.png"],
        ["report", "run=tiny.pt", "out=site"],
        ["report", "run=[tiny.pt]", "out=site"],
    ):
        code, _, err = fer(*words)
        assert code == 2 and "was not written by fer, and would be replaced; choose another" in err
    assert content == {file: file.read_bytes() for file in content}
    for name in 2 * ["a.png", "a.svg", "a.pdf"]:
        with plots._figure(tmp_path / name, 1, 1):
            pass


def test_a_tilde_is_the_home_folder_and_makes_none_of_that_name(fer, tiny, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))  # on Windows
    tiny().rename(home / "tiny.pt")
    for _ in range(2):
        code, out, err = fer("curves", "train.epochs=2", "out=~/a/c.png")
        assert code == 0 and f"lr over 2 epochs: {home}/a/c.png" in out, err
    assert f"{home}/a/c.png: replacing the one from " in out
    code, _, err = fer("predict", "ckpt=[~/tiny.pt]", "split=train", "out=~/a/s.csv", "device=cpu")
    assert code == 0 and (home / "a" / "s.csv").is_file(), err
    code, _, err = fer("train", "resume=~/a")
    assert code == 2 and f"{home}/a/last.pt: no such checkpoint" in err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
