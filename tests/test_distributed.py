"""Training in several processes over gloo matches one process.

torchrun itself takes seconds to start its processes, so that only slow tests call it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import Command, wait_for

from fer import runtime

pytestmark = pytest.mark.posix  # torchrun and signals to its processes

# 211 faces in batches of 64: the last batch is uneven, and no number of processes divides it. GELU
# and mean pooling are smooth: ReLU and maxima turn differences in rounding into others.
SETTINGS = [
    "model.activation=gelu",
    "model.head_activation=gelu",
    "model.pool=average",
    "data=demo",
    "data.images=211",
    "model=compact_cnn",
    "model.features=[4, pool, 8, pool]",
    "model.head=[16]",
    "model.dropout=0",
    "device=cpu",
    "train.precision=fp32",
    "train.batch_size=64",
    "optim=sgd",
    "optim.lr=0.01",
    "schedule=constant",
]
TWO = ["train.epochs=2"]
LOSSES = ["train_loss", "val_loss"]


def start(folder, processes, *args):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
    return subprocess.Popen([*command, "-m", "fer", "train", *args], cwd=folder, **pipes)


def torchrun(folder, processes, *args):
    process = start(folder, processes, *args)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def same(folder, *runs):
    one, other = (pd.read_csv(folder / run / "history.csv") for run in runs)
    np.testing.assert_allclose(other[LOSSES], one[LOSSES], rtol=2e-4)
    np.testing.assert_allclose(other["train_accuracy"], one["train_accuracy"], atol=1.01 / 211)
    assert len(one) == len(other) == 2


def in_two(folder, *args, before=None):
    """Runs a command in two processes that get what torchrun tells its own; returns their exit
    codes and all that they print. before: a function that each calls first.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        "TORCHELASTIC_RUN_ID": "x",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    ranks = [
        Command(folder, *args, before=before, **shared, RANK=rank, LOCAL_RANK=rank)
        for rank in ("0", "1")
    ]
    codes = [rank.wait() for rank in ranks]
    return codes, "".join(rank.out + rank.err for rank in ranks)


def test_two_processes_give_the_losses_of_one_and_one_can_resume_them(fer, tmp_path):
    assert fer("train", *SETTINGS, *TWO, "run=one")[0] == 0
    codes, out = in_two(tmp_path, "train", *SETTINGS, "run=two", "train.epochs=1")
    assert codes == [0, 0], out
    assert (
        out.count("epoch 1/1") == 1 and out.count("best validation accuracy") == 1
    )  # one process speaks
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    code, out, err = fer("train", "resume=two", "train.epochs=2")
    assert code == 0, err
    same(tmp_path, "one", "two")


@pytest.mark.slow
def test_batch_norm_in_processes_sees_its_own_part_of_a_batch(fer, tmp_path):
    """As docs/train.md says: the losses are near those of one process, not the same."""
    norm = [setting for setting in SETTINGS if not setting.startswith("model")]
    norm += ["model=dnn", "model.head=[16, norm]", *TWO]
    assert fer("train", *norm, "run=one")[0] == 0
    code, out = torchrun(tmp_path, 2, *norm, "run=two")
    assert code == 0, out
    one, two = (pd.read_csv(tmp_path / run / "history.csv")["train_loss"] for run in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=0.1)
    assert (abs(two / one - 1) > 1e-4).any()


@pytest.mark.slow
def test_four_processes_give_the_losses_of_one_and_two_can_resume_them(fer, tmp_path):
    assert fer("train", *SETTINGS, *TWO, "run=one")[0] == 0
    code, out = torchrun(tmp_path, 4, *SETTINGS, *TWO, "run=four")
    assert code == 0, out
    same(tmp_path, "one", "four")
    process = start(tmp_path, 3, *SETTINGS, "run=torn", "train.epochs=6000")
    wait_for(tmp_path / "torn" / "history.csv")
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "fer train resume=torn" in out
    done = torch.load(tmp_path / "torn" / "last.pt", weights_only=True)["training"]["epoch"]
    assert 0 < done < 6000
    code, out = torchrun(tmp_path, 2, "resume=torn", f"train.epochs={done + 1}")
    assert code == 0 and "resuming at epoch" in out
    assert len(pd.read_csv(tmp_path / "torn" / "history.csv")) == done + 1


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_is_reported(tmp_path):
    process = start(tmp_path, 2, *SETTINGS, "run=r", "train.epochs=6000")
    wait_for(tmp_path / "r" / "history.csv")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "SIGKILL" in out
    assert "training" in torch.load(tmp_path / "r" / "last.pt", weights_only=True)


def test_a_refusal_is_printed_once_and_other_commands_refuse_several_processes(tmp_path):
    train = ["train", "data=demo", "data.images=70", "model=dnn", "device=cpu", "run=r"]
    for typed, words in (
        ("train.patience=0", "should be greater"),
        ("train.batch_size=3", "too small for 2 processes; each needs two faces of a batch"),
        ("train.freeze=1", "not possible with several processes"),
        ("train.compile=true", "not possible with several processes"),
    ):
        codes, out = in_two(tmp_path, *train, typed)
        assert codes == [2, 2] and out.count("fer: ") == 1, out
        assert f"fer: {typed}: {words}" in out and not list(tmp_path.iterdir())
    codes, out = in_two(tmp_path, "report")
    assert codes == [2, 2] and "only fer train runs in several processes" in out


def connect_late():
    """The first process connects a second later than the other one, which says if it went on."""
    connect, choose_format = torch.distributed.init_process_group, runtime.choose_format

    def connect_slowly(*args, **kwargs):
        connect(*args, **kwargs)
        time.sleep(1)
        Path("connected").touch()

    def choose_format_and_tell(*args):
        if not Path("connected").exists():
            print("went on alone")
        return choose_format(*args)

    if os.environ["RANK"] == "0":
        torch.distributed.init_process_group = connect_slowly
    else:
        runtime.choose_format = choose_format_and_tell


def test_no_process_goes_on_before_all_are_connected(tmp_path):
    """It might be refused and end, and the others could not say why."""
    train = ["train", "data=demo", "data.images=70", "model=dnn", "device=cpu", "train.epochs=1"]
    codes, out = in_two(tmp_path, *train, before=connect_late)
    assert codes == [0, 0] and "went on alone" not in out, out


def fill_the_memory_of_the_second():
    """Its GPU is full."""
    from fer.training.batches import TrainingFaces

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if os.environ["RANK"] == "1":
        TrainingFaces.load = full


def test_a_process_whose_memory_runs_out_says_so_itself(tmp_path):
    train = ["train", "data=demo", "data.images=70", "model=dnn", "device=cpu", "run=r"]
    codes, out = in_two(tmp_path, *train, before=fill_the_memory_of_the_second)
    assert codes == [2, 2], out
    assert "fer: process 1: out of memory on cpu at train.batch_size=128; halve it" in out
    assert "fer: another process of this run has ended; see its message" in out


@pytest.mark.slow
def test_torchrun_ends_with_the_code_of_a_refusal(tmp_path):
    code, out = torchrun(tmp_path, 2, *SETTINGS, "run=r", "train.patience=0")
    assert code and out.count("fer: train.patience=0") == 1 and not list(tmp_path.iterdir())
