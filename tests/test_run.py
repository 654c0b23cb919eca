"""The run folder: atomic saves, the lock, the environment record, damaged checkpoints."""

import errno
import os
import pickle
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fer import UserError, __version__, files, run
from fer.checkpoint import FORMAT, Checkpoint, load_checkpoint
from fer.runtime import describe

try:
    import resource
except ImportError:  # on Windows, where tests with the marker posix are left out
    resource = None

FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def full_disk(folder, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    monkeypatch.callback(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))


def full_at_the_flush(folder, monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def no_permission(folder, monkeypatch):  # root may write anywhere
    opens = Path.open

    def open_(path, mode="r", *args, **more):
        if mode == "xb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opens(path, mode, *args, **more)

    monkeypatch.setattr(Path, "open", open_)


def vanished(folder, monkeypatch):
    folder.rename(folder.with_name("kept"))


def a_file_in_its_place(folder, monkeypatch):
    vanished(folder, monkeypatch)
    folder.write_text("")


@pytest.fixture
def undoing(monkeypatch):
    """monkeypatch, with callbacks."""
    undo = []
    monkeypatch.callback = undo.append
    yield monkeypatch
    for step in undo:
        step()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        pytest.param(full_disk, "File too large", marks=pytest.mark.posix),
        (full_at_the_flush, "No space left on device"),
        (no_permission, "Permission denied"),
        (vanished, "No such file or directory"),
        (a_file_in_its_place, "Not a directory"),
    ],
)
def test_a_failed_save_is_reported_and_keeps_the_previous_checkpoint(
    tmp_path, undoing, trouble, words
):
    folder = tmp_path / "run"
    folder.mkdir()
    files.write(folder / "last.pt", lambda file: torch.save({"x": 1}, file))
    before = (folder / "last.pt").read_bytes()
    trouble(folder, undoing)
    with pytest.raises(UserError) as error:
        files.write(folder / "last.pt", lambda file: torch.save({"x": torch.ones(100_000)}, file))
    assert f"{folder / 'last.pt'}: cannot be written ({words})" in str(
        error.value
    ) and "\n" not in str(error.value)
    folder = folder if folder.is_dir() else tmp_path / "kept"
    assert [path.name for path in folder.iterdir()] == ["last.pt"] and (
        folder / "last.pt"
    ).read_bytes() == before


def test_a_bug_in_a_save_is_no_full_disk(tmp_path):
    def save(file):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        files.write(tmp_path / "x", save)
    assert not list(tmp_path.iterdir())


def test_a_save_is_on_the_disk_before_its_name_and_its_name_after(tmp_path, monkeypatch):
    path, flushed, fsync = tmp_path / "x", [], os.fsync
    path.write_text("old")

    def note(handle):
        flushed.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.read_text()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    run.write_text(path, "new")
    assert flushed == [(False, "old"), (True, "new")]


def test_a_second_training_in_a_run_folder_is_refused_until_the_first_has_ended(tmp_path):
    message = "another run is writing to it; wait, or choose another"
    with run.lock(tmp_path), pytest.raises(UserError, match=message), run.lock(tmp_path):
        pass
    with pytest.raises(KeyError), run.lock(tmp_path):
        raise KeyError
    with run.lock(tmp_path):
        pass
    with (
        pytest.raises(UserError, match="nowhere: cannot be written to"),
        run.lock(tmp_path / "nowhere"),
    ):
        pass


@pytest.mark.posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_training_leaves_no_lock(tmp_path):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with run.lock(tmp_path):
            os.write(told, b"x")
            time.sleep(60)
            os._exit(1)
    assert os.read(ready, 1) == b"x"
    with pytest.raises(UserError, match="another run"), run.lock(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with run.lock(tmp_path):
        pass


def test_what_a_killed_save_left_goes_when_the_run_goes_on(tmp_path):
    names = [".last.pt.x1.tmp", ".history.csv.x2.tmp", ".submission.csv.x3.tmp", "last.pt"]
    for name in names:
        (tmp_path / name).write_text("")
    with run.lock(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", *names[2:]}


@pytest.mark.posix
def test_training_works_on_systems_without_locks(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run.fcntl, "flock", unsupported)
    with run.lock(tmp_path), run.lock(tmp_path):
        pass
    monkeypatch.setattr(run, "fcntl", None)  # Windows
    with run.lock(tmp_path):
        pass


@pytest.mark.posix
def test_a_running_training_holds_the_lock(fer, tmp_path):
    tiny = [
        "data=demo",
        "data.images=70",
        "model=dnn",
        "model.head=[1]",
        "train.epochs=1",
        "device=cpu",
    ]
    assert fer("train", *tiny, "run=r")[0] == 0
    with run.lock(tmp_path / "r"):
        code, _, err = fer("train", "resume=r", "train.epochs=2")
    assert (
        code == 2 and "run folder r: another run is writing to it" in err and err.count("\n") == 1
    )
    assert fer("train", "resume=r", "train.epochs=2")[0] == 0
    starts = list(yaml.safe_load_all((tmp_path / "r" / "environment.yaml").read_text()))
    assert len(starts) == 2 and starts[0]["fer"] == __version__


def test_concurrent_readers_see_complete_files(tiny_contents, tmp_path):
    path, ended = tmp_path / "best.pt", threading.Event()

    def save(number):
        model = {
            name: torch.full_like(value, number) for name, value in tiny_contents["model"].items()
        }
        files.write(
            path, lambda file: torch.save(tiny_contents | {"model": model, "epoch": number}, file)
        )
        run.write_csv(tmp_path / "history.csv", ["epoch"], [[number]] * 2000)

    def keep_saving():
        number = 0
        while not ended.is_set():
            number += 1
            save(number)

    save(0)
    writer = threading.Thread(target=keep_saving)
    writer.start()
    seen = set()
    while len(seen) < 4:
        contents = load_checkpoint(path)
        seen.add(contents["epoch"])
        assert all((value == contents["epoch"]).all() for value in contents["model"].values())
        rows = (tmp_path / "history.csv").read_text().split()
        assert len(rows) == 2001 and len(set(rows[1:])) == 1
    ended.set()
    writer.join()


def test_the_record_of_a_run_has_the_machine_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    for _ in range(2):  # a start, and a resume
        run.write_environment(
            tmp_path, "ab" * 32, ["seed=1"], describe(torch.device("cpu"), "fp32")
        )
    text = (tmp_path / "environment.yaml").read_text()
    first, second = yaml.safe_load_all(text)
    assert list(first) == list(second) and "hunter2" not in text
    assert (first["torch"], first["numpy"]) == (torch.__version__, np.__version__)
    assert first["data_sha256"] == "ab" * 32 and first["device"] == "cpu" and first["cpu"]
    assert first["number_format"] == "fp32" and first["processes"] == 1 and first["instructions"]
    assert first["command"] == shlex.join(sys.orig_argv)


def test_the_record_names_commit_and_changes_of_a_checkout_alone(tmp_path):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    (tmp_path / "site-packages").mkdir()
    (tmp_path / "x").write_text("1")
    assert run.git_commit(tmp_path) is None
    git("init")
    git("add", "x")
    git("commit", "-m", "x")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD").strip()
    os.utime(tmp_path / "x", (1, 1))  # git would note the new time in its index
    index = (tmp_path / ".git" / "index").read_bytes()
    assert run.git_commit(tmp_path) == commit
    assert (tmp_path / ".git" / "index").read_bytes() == index
    (tmp_path / "x").write_text("2")
    assert run.git_commit(tmp_path) == f"{commit}-dirty"
    assert (
        run.git_commit(tmp_path / "site-packages") is None
    )  # inside a checkout, but not of this project


# Written by version 0.1.0 and never again: fer train data=demo data.images=2100 model=compact_cnn
# 'model.features=[8,pool,16,pool,16,pool]' 'model.head=[16,dropout]' ++model.norm=batch
# model.dropout=0.1 augment=flip optim.lr=0.003 train.epochs=6 train.batch_size=32
# train.precision=fp32 device=cpu name=tiny run=tiny
FIXTURE = Path(__file__).parent / "fixtures" / "tiny-1.pt"
LOGITS = [-0.508412, -3.444228, -1.036155, 1.399390, -1.156305, -1.610874, -0.867858]


def test_a_checkpoint_of_an_earlier_version_gives_the_same_predictions(fer):
    assert FIXTURE.stat().st_size < 200_000
    network = Checkpoint.open(FIXTURE).network(torch.device("cpu"))
    y, x = np.mgrid[:48, :48]
    face = torch.from_numpy(((5 * x + 3 * y) % 256).astype(np.uint8))
    assert network.logits(face[None, None], 1, "fp32")[0].tolist() == pytest.approx(
        LOGITS, abs=1e-4
    )
    code, out, err = fer(
        "predict", f"ckpt={FIXTURE}", "split=validation", "data.images=70", "device=cpu"
    )
    assert code == 0 and "accuracy 0." in out, err


class RunsCode:
    """A pickle that would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def zipped(path, name, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)


def bomb(path):
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, bytes(30 << 20) if "/data/" in name else data)


def refused(path, words):
    with pytest.raises(UserError) as error:
        Checkpoint.open(path).network(torch.device("cpu"))
    assert (
        str(error.value).startswith(f"{path}: ")
        and words in str(error.value)
        and "\n" not in str(error.value)
    )


CONVNET = {"_target_": "fer.models.convnet.ConvNet", "features": [], "head": []}
NO_CODE = "holds more than weights and plain values; not loaded, it could run code"


def nested(depth):
    """A list in a list, and so on."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.write_bytes(b""), "damaged, or not a checkpoint"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "damaged, or not a checkpoint"),
        (
            lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
            "damaged, or not a checkpoint",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[1000:]), "damaged, or not a checkpoint"),
        (lambda p: p.write_text("{}"), "damaged, or not a checkpoint"),
        (lambda p: p.write_bytes(pickle.dumps(RunsCode())), "damaged, or not a checkpoint"),
        (
            lambda p: torch.save(RunsCode(), p, _use_new_zipfile_serialization=False),
            "damaged, or not a checkpoint",
        ),
        (lambda p: torch.save({"format": 1, "model": RunsCode()}, p), NO_CODE),
        (lambda p: torch.save(torch.nn.Linear(1, 1), p), NO_CODE),
        (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), p), "not a checkpoint"),
        (lambda p: zipped(p, "x/data.pkl", b"cos\nmkdir\n(S'ran'\ntR."), "not a checkpoint"),
        (bomb, "damaged, or not a checkpoint"),
        (lambda p: torch.save([1], p), "not one of fer's checkpoints"),
        (
            lambda p: torch.save(torch.nn.Linear(1, 1).state_dict(), p),
            "not one of fer's checkpoints",
        ),
        (lambda p: torch.save({"format": 1}, p), "not one of fer's checkpoints"),
        (lambda p: p.unlink(), "no such checkpoint"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_and_foreign_checkpoints_are_refused_by_name(
    tmp_path, monkeypatch, tiny, spoil, words
):
    monkeypatch.chdir(tmp_path)
    path = tiny()
    spoil(path)
    refused(path, words)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"tiny.pt"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": FORMAT + 1, "version": "9.9"}, "written by fer 9.9, newer than this"),
        ({"format": "1"}, "not one of fer's"),
        ({"classes": ["angry", "angry", *"abcde"]}, "its classes are not distinct, short names"),
        ({"classes": ["angry", "happy"]}, "model.classes=7: the checkpoint names 2 classes"),
        ({"classes": "angry"}, "not one of fer's"),
        ({"normalization": {"kind": "dataset", "mean": 0.0}}, "not one of fer's"),
        ({"normalization": {"kind": "own", "mean": 0.0, "std": 1.0}}, "not one of fer's"),
        ({"normalization": {"kind": "unit", "mean": 0.0, "std": 0.0}}, "not one of fer's"),
        ({"normalization": {"kind": "unit", "mean": 0.0, "std": float("nan")}}, "not one of fer's"),
        ({"normalization": {"kind": "unit", "mean": "0", "std": 1.0}}, "not one of fer's"),
        ({"model": [1]}, "not one of fer's"),
        ({"model": {}}, "weights do not fit"),
        ({"model": {"x": 1}}, "weights do not fit"),
        ({"model": {1: torch.zeros(1)}}, "weights do not fit"),
        (
            {"validation": {"logits": torch.zeros(2, 7), "labels": torch.zeros(3)}},
            "not one of fer's",
        ),
        (
            {"validation": {"logits": torch.zeros(1, 7), "labels": torch.tensor([7])}},
            "not one of fer's",
        ),
        (
            {"validation": {"logits": torch.zeros(1, 7), "labels": torch.zeros(1)}},
            "not one of fer's",
        ),
        (
            {"validation": {"logits": torch.zeros(1, 7) / 0, "labels": torch.tensor([0])}},
            "not one of fer's",
        ),
        (
            {"validation": {"logits": torch.zeros(1, 7) * 1j, "labels": torch.tensor([0])}},
            "of another kind than ours",
        ),
        (
            {
                "validation": {
                    "logits": torch.zeros(1, 7).expand(10**9, 7),
                    "labels": torch.zeros(1).expand(10**9),
                }
            },
            "a tensor is larger than what the file holds",
        ),
        (
            {"model": {"x": torch.zeros(1).expand(10**10)}},
            "a tensor is larger than what the file holds",
        ),
        (
            {"model": {"x": torch.zeros(2, 2).to_sparse()}},
            "a tensor is larger than what the file holds of it, or of",
        ),
        ({"model": {"x": torch.zeros(2, device="meta")}}, "of another kind than ours"),
        ({"model": {"x": torch.zeros(2) * 1j}}, "of another kind than ours"),
        ({"model": {"x": torch.zeros(2).to(torch.float8_e4m3fn)}}, "of another kind than ours"),
        ({"model": {"x": nested(150)}}, "its values are nested too deeply"),
        ({"more": nested(150)}, "its values are nested too deeply"),
        ({"model": {"x": torch.tensor([1.0, float("nan")])}}, "its weights hold NaN or infinity"),
        ({"config": {"model": CONVNET | {"head": [65536, 65536, 65536]}}}, "weights do not fit"),
        ({"config": 5}, "not one of fer's"),
        ({"config": "5"}, "not a mapping of keys"),
        ({"config": "a: [" * 5000}, "not valid YAML"),
        ({"config": "- [" * 5000}, "not valid YAML"),
        ({"config": "[" * 50_000}, "not valid YAML (it expands"),
        ({"config": "a: " + "x" * (2 << 20)}, "not valid YAML (it expands"),
        (
            {"config": "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c]"},
            "(it expands",
        ),
        ({"config": "seed: " + "9" * 5000}, "not valid YAML"),
        ({"config": "seed: 2026-99-99"}, "not valid YAML"),
        ({"config": "seed: !!bool x"}, "not valid YAML"),
        ({"config": "seed: !!timestamp x"}, "not valid YAML"),
        ({"config": "seed: !!int ''"}, "not valid YAML"),
        ({"config": "seed: " + ":".join("1" * 9999)}, "not valid YAML"),
        ({"config": "seed: 1\n" * 20_000}, "not valid YAML (it expands"),
        ({"config": "!!python/object/apply:os.mkdir [ran]"}, "not valid YAML"),
        (
            {"config": {"model": {"_target_": "os.system", "command": "mkdir ran"}}},
            "_target_=os.system: refused",
        ),
        ({"config": {"model": {"_target_": "fer.models.convnet.os.mkdir"}}}, "no module"),
        (
            {"config": {"model": {"_target_": "fer.models.network.Normalize", "kind": "unit"}}},
            "makes a Normalize, not a torch.nn.Module",
        ),
        (
            {"config": {"optim": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1}}},
            "not an optimizer",
        ),
        ({"config": {"curves": {"x": {"_target_": "os.system"}}}}, "_target_=os.system: refused"),
        ({"config": {"seed": "${oc.env:HOME}"}}, "seed=${oc.env:HOME}: should be"),
        ({"config": {"name": "../../x"}}, "name=../../x: would name a folder elsewhere"),
        ({"config": {"name": "\x1b[2J"}}, "printable characters"),
        ({"config": {"model": CONVNET | {"head": [2]}}}, "do not fit"),
        ({"config": {"model": CONVNET | {"head": [10**15]}}}, "its config, model"),
        ({"config": {"model": CONVNET | {"classes": 9}}}, "model.classes=9"),
        ({"config": {"odd": 1}}, "odd: no such key"),
        ({"config": {1: 1}}, "1"),
    ],
)
def test_a_checkpoint_with_foreign_contents_is_refused_by_name(
    tmp_path, monkeypatch, tiny, changes, words
):
    monkeypatch.chdir(tmp_path)
    refused(tiny(**changes), words)
    assert {entry.name for entry in tmp_path.iterdir()} == {"tiny.pt"}


ROW = {
    "epoch": 1,
    "lr": 0.1,
    "train_loss": 1.0,
    "train_accuracy": 0.5,
    "val_loss": 1.0,
    "val_accuracy": 0.5,
    "val_macro_f1": 0.4,
    "seconds": 1.0,
    "images_per_second": 1.0,
}
STATE = {
    "epoch": 1,
    "step": 0,
    "seconds": 0.0,
    "record": torch.zeros(0, 2),
    "history": [ROW],
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": [{"params": [0]}]},
}
INFINITE = float("inf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_accuracy": "high"}, "val_accuracy: should be a valid number"),
        ({"val_accuracy": INFINITE}, "val_accuracy: should be less than or equal to 1"),
        ({"epoch": "last"}, "epoch: should be a valid integer"),
        ({"training": 5}, "training: should be a valid dictionary"),
        ({"training": STATE | {"step": INFINITE}}, "training.step: should be a valid integer"),
        ({"training": STATE | {"step": -1}}, "training.step: should be greater than or equal to 0"),
        ({"training": STATE | {"seconds": INFINITE}}, "training.seconds: should be a finite"),
        ({"training": STATE | {"history": [{}]}}, "training.history.0.epoch: is missing"),
        (
            {"training": STATE | {"history": [ROW | {"val_accuracy": "high"}]}},
            "training.history.0.val_accuracy: should be a valid number",
        ),
        ({"training": STATE | {"epoch": 2}}, "its epochs should be 1 to 2"),
        ({"training": STATE | {"history": [ROW, ROW], "epoch": 2}}, "its epochs should be 1 to 2"),
        ({"training": STATE | {"optimizer": {}}}, "training.optimizer.state: is missing"),
        ({"training": STATE | {"record": "none"}}, "training.record: should be an instance of"),
    ],
)
def test_a_checkpoint_whose_numbers_were_edited_is_refused_with_the_place(tiny, changes, words):
    assert load_checkpoint(tiny(training=STATE))["training"]["history"] == [ROW]
    path = tiny(**changes)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
    assert "the file was changed (" in str(error.value) and "\n" not in str(error.value)


def peak_memory():
    """Of this process so far, in kB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else peak


@pytest.mark.posix
def test_a_network_that_does_not_fit_its_weights_is_refused_before_it_is_built(tiny):
    """Whatever the config names: layers that no memory holds, or a classifier of torchvision."""
    giants = (
        CONVNET | {"features": ["global_pool"], "head": [65536] * 9},
        CONVNET | {"features": [65536] * 3},
        {"_target_": "fer.models.torchvision.classifier", "name": "vgg19", "size": 224},
    )
    for node in giants:
        path = tiny(config={"model": node})
        checkpoint = Checkpoint.open(path)
        before = peak_memory()
        with pytest.raises(UserError, match="its weights do not fit the model of its config"):
            checkpoint.network(torch.device("cpu"))
        assert peak_memory() - before < 200_000


def test_a_command_refuses_a_foreign_checkpoint_in_one_line_and_writes_nothing(fer, tmp_path, tiny):
    for changes in (
        {"config": {"name": "\x1b[2J"}},
        {"config": {"optim": {"_target_": "os.system"}}},
        {"format": 99},
    ):
        code, out, err = fer("predict", f"ckpt={tiny(**changes)}", "split=validation")
        assert (
            (code, out, err.count("\n")) == (2, "", 1) and "tiny.pt: " in err and "\x1b" not in err
        )
    assert {entry.name for entry in tmp_path.iterdir()} == {"tiny.pt"}


def test_a_checkpoints_config_is_text_and_nothing_in_it_is_looked_up(tiny):
    path = tiny(config={"name": "${oc.env:HOME} <b>"})
    assert Checkpoint.open(path).settings.name == "${oc.env:HOME} <b>"


@settings(max_examples=150, **FUZZ)
@given(at=st.integers(0), near_the_end=st.booleans(), bit=st.integers(0, 7))
@example(at=304, near_the_end=True, bit=4)  # makes a folder of a tensor
def test_a_flipped_bit_is_refused_or_changes_nothing(tiny, at, near_the_end, bit):
    path = tiny()
    whole, raw = load_checkpoint(path), bytearray(path.read_bytes())
    at = (
        len(raw) - 1 - at % 1500 if near_the_end else at % len(raw)
    )  # the directory of the archive is at the end
    raw[at] ^= 1 << bit
    path.write_bytes(raw)
    try:
        contents = load_checkpoint(path)
    except UserError:
        return
    assert all(
        torch.equal(contents["model"][name], value) for name, value in whole["model"].items()
    )
    assert {k: v for k, v in contents.items() if k != "model"} == {
        k: v for k, v in whole.items() if k != "model"
    }


@settings(max_examples=100, **FUZZ)
@given(at=st.integers(0), cut=st.integers(0, 6), put=st.binary(max_size=6))
def test_a_changed_pickle_is_refused_or_restored(tiny, at, cut, put):
    path = tiny()
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    at %= len(entries[name])
    entries[name] = entries[name][:at] + put + entries[name][at + cut :]
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    try:
        network = Checkpoint.open(path).network(torch.device("cpu"))
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert network.logits(torch.zeros(1, 1, 48, 48, dtype=torch.uint8), 1).shape == (1, 7)


def test_a_history_with_huge_numbers_is_refused(tmp_path):
    row = {"epoch": 1, "seconds": 1.0, "train_loss": 1e308}
    pd.DataFrame([row]).to_csv(tmp_path / "history.csv", index=False)
    with pytest.raises(UserError, match="numbers above 1e"):
        run.read_history(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epoch": [1, float("nan")]}, "its epochs should be 1, 2, 3"),
        ({"epoch": [1, 2.5]}, "its epochs should be 1, 2, 3"),
        ({"epoch": [1, -2]}, "its epochs should be 1, 2, 3"),
        ({"epoch": [1, 10**18]}, "its epochs should be 1, 2, 3"),
        ({"val_accuracy": [0.5, float("nan")]}, "its val_accuracy should be from 0 to 1"),
        ({"val_accuracy": [0.5, -3]}, "its val_accuracy should be from 0 to 1"),
        ({"lr": [0.1, float("inf")]}, "numbers above 1e"),
    ],
)
def test_a_history_that_no_training_writes_is_refused(tmp_path, change, words):
    names = ["lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1"]
    names += ["seconds", "images_per_second"]
    table = {name: [0.5, 0.5] for name in names} | {"epoch": [1, 2]}
    pd.DataFrame(table).to_csv(tmp_path / "history.csv", index=False)
    assert len(run.read_history(tmp_path)) == 2
    pd.DataFrame(table | change).to_csv(tmp_path / "history.csv", index=False)
    with pytest.raises(UserError, match=words):
        run.read_history(tmp_path)


@pytest.mark.posix
def test_a_training_killed_before_its_first_save_does_not_block_its_folder(fer, tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    for name in (".lock", "config.yaml", "environment.yaml", ".config.yaml.0123abcd.tmp"):
        (folder / name).write_text("---\ntyped: [seed=1]\n")
    assert fer("train", *TINY, "train.epochs=1", "run=r")[0] == 0
    assert "seed=1" not in (folder / "environment.yaml").read_text()
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


def test_a_folder_of_the_users_own_is_no_run_folder(fer, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("mine: 1\n")
    code, _, err = fer("train", *TINY, "train.epochs=1", "run=r")
    assert code == 2 and "run=r: already exists" in err
    assert (tmp_path / "r" / "config.yaml").read_text() == "mine: 1\n"


def test_a_run_folder_that_was_never_saved_does_not_stay(fer, tmp_path, monkeypatch):
    full_at_the_flush(tmp_path, monkeypatch)
    code, _, err = fer(
        "train", "data=demo", "data.images=141", "model=dnn", "model.head=[8]", "run=runs/r"
    )
    assert code == 2 and "No space left" in err and not (tmp_path / "runs" / "r").exists()
    (tmp_path / "runs").rmdir()
    code, _, err = fer("train", *TINY)
    assert code == 2 and not (tmp_path / "runs").exists()


def test_a_resume_refuses_another_best_pt_and_does_without_one(fer, tmp_path):
    tiny = [*TINY, "train.epochs=2", "run=r"]
    assert fer("train", *tiny, "optim=sgd", "optim.lr=1e-12")[0] == 0
    best = tmp_path / "r" / "best.pt"
    contents = torch.load(best, weights_only=True)
    other_seed = contents["config"].replace("seed: 0", "seed: 1")
    other_faces = contents["validation"] | {"images": "0"}
    for changes, message in [
        ({"epoch": 2}, "weights of epoch 2 with an accuracy of "),
        ({"val_accuracy": 0.99}, "weights of epoch 1 with an accuracy of 0.9900, but the best of"),
        ({"config": other_seed}, "belongs to another training run (seed: 1 → 0)"),
        (
            {"validation": other_faces},
            "belongs to another training run (it was validated on other faces)",
        ),
    ]:
        torch.save(contents | changes, best)
        code, _, err = fer("train", "resume=r", "train.epochs=3")
        assert code == 2 and "fer: r/best.pt: " in err and message in err and "move this" in err
    torch.save(contents | {"epoch": 3}, best)  # saved before a kill, and last.pt was not
    assert fer("train", "resume=r")[0] == 0
    best.unlink()
    code, out, err = fer("train", "resume=r", "train.epochs=3")
    assert code == 0 and "best.pt was removed" in out, err
    assert "ckpt=r/last.pt" in out


def test_a_best_pt_that_waits_since_a_kill_is_kept_until_it_is_in_place(fer, tmp_path, monkeypatch):
    assert fer("train", *TINY, "train.epochs=1", "run=r")[0] == 0
    best, waiting = tmp_path / "r" / "best.pt", tmp_path / "r" / "best.next.pt"
    best.rename(waiting)

    def refused(target, source):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("fer.training.recorder.rename_over", refused)
        code, _, err = fer("train", "resume=r", "train.epochs=2")
    assert code == 2 and err.startswith("fer: r/best.pt: cannot be written (Permission denied)")
    assert waiting.is_file() and not best.exists()
    assert fer("train", "resume=r", "train.epochs=2")[0] == 0
    assert best.is_file() and not waiting.exists()


def test_whole_numbers_in_place_of_weights_are_refused(tiny, tiny_contents):
    weights = {name: value.to(torch.int8) for name, value in tiny_contents["model"].items()}
    refused(tiny(model=weights), "weights do not fit")


def test_a_resume_from_a_damaged_last_pt_says_how_to_go_on(fer, tmp_path):
    assert fer("train", *TINY, "train.epochs=1", "run=r")[0] == 0
    (tmp_path / "r" / "last.pt").write_bytes(b"PK")
    code, _, err = fer("train", "resume=r")
    assert code == 2 and err == (
        "fer: r/last.pt: damaged, or not a checkpoint; training cannot resume from it; start a new "
        "run, from the best weights of this one: start=r/best.pt\n"
    )
    (tmp_path / "r" / "best.pt").unlink()
    assert fer("train", "resume=r")[2].endswith("cannot resume from it; start a new run\n")


@pytest.mark.parametrize(
    "names", [{"LOCAL_RANK": "0"}, {"WORLD_SIZE": "4"}, {"RANK": "1", "WORLD_SIZE": "2"}]
)
def test_environment_variables_of_a_cluster_start_no_processes(fer, monkeypatch, names):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    tiny = [*TINY, "train.epochs=1", "run=r"]
    code, _, err = fer("train", *tiny)
    assert code == 0, err
    code, _, err = fer("predict", "ckpt=r", "out=x.csv")
    assert code == 0, err
    code, _, err = fer("predict", "ckpt=nowhere")
    assert code == 2 and err.startswith("fer: ")


def test_a_run_that_loses_its_last_pt_keeps_its_best(fer, tmp_path, monkeypatch, slow_clock):
    save, saved = torch.save, []

    def failing(contents, file):
        if "training" in contents:
            saved.append(contents)
        if len(saved) == 3:  # after the second epoch
            (tmp_path / "r" / "last.pt").unlink()
            raise OSError(28, "No space left on device")
        save(contents, file)

    monkeypatch.setattr(torch, "save", failing)
    code, _, err = fer(
        "train", "data=demo", "data.images=141", "model=dnn", "model.head=[8]", "run=r"
    )
    assert code == 2 and "No space left" in err and (tmp_path / "r" / "best.pt").is_file()
