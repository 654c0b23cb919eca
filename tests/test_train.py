"""The trainer: order, losses, curves, and that an interrupted training goes on as if it had not been."""

import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from fer import UserError, config
from fer.data.demo import demo
from fer.train import Trainer, balanced_weights


@pytest.fixture
def trainer(compose):
    """A Trainer of a tiny network, with overrides as they are typed."""

    def make(*overrides):
        tiny = ["data=demo", "data.images=141", "model=dnn", "model.head=[8, dropout]", "train.batch_size=20"]
        return Trainer(config.check("train", compose("train", *tiny, *overrides)), torch.device("cpu"))

    return make


def test_an_epoch_sees_every_face_once_and_no_batch_of_one(trainer):
    batches = trainer().batches()
    assert [len(b) for b in batches] == [20] * 6 + [21]
    assert sorted(torch.cat(batches).tolist()) == list(range(141))
    other = trainer()
    other.start_epoch(1)
    assert not torch.equal(torch.cat(batches), torch.cat(other.batches()))
    assert torch.equal(torch.cat(batches), torch.cat(trainer().batches()))


def test_balanced_sampling_draws_each_class_alike(trainer):
    t = trainer("train.sampling=balanced")
    drawn = torch.zeros(7)
    for epoch in range(60):
        t.start_epoch(epoch)
        drawn += t.targets[torch.cat(t.batches())].sum(0)
    assert drawn.sum() == 60 * 141
    assert ((drawn / drawn.sum() - 1 / 7).abs() < 0.02).all()


def test_class_weights_are_scikit_learns():
    labels = demo(images=141, limit=None, seed=0, normalize="dataset").splits["train"].labels
    ours = balanced_weights(F.one_hot(labels, 7).float())
    assert ours.numpy() == pytest.approx(compute_class_weight("balanced", classes=np.arange(7), y=labels.numpy()))
    missing = F.one_hot(torch.tensor([0, 0, 3]), 7).float()
    assert balanced_weights(missing).tolist() == pytest.approx([3 / 14, 0, 0, 3 / 7, 0, 0, 0])


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_loss_is_torchs_cross_entropy(trainer, weights):
    t = trainer("train.epochs=1", "optim=sgd", "optim.lr=1e-9", "train.batch_size=141", "model.dropout=0.0",
                "augment=none", "train.label_smoothing=0.1", f"train.class_weights={weights}")  # fmt: skip
    logits = t.network.logits(t.images, 141)
    labels = t.targets.argmax(1)
    loss = F.cross_entropy(logits, labels, weight=t.weights, label_smoothing=0.1, reduction="sum") / 141
    t.fit()
    assert t.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert t.history[0]["train_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_one_step_is_torchs(trainer):
    t = trainer("train.epochs=1", "optim=sgd", "optim.lr=0.1", "train.batch_size=141", "augment=none",
                "schedule=constant", "model.dropout=0.0")  # fmt: skip
    twin = trainer("model.dropout=0.0")
    optimizer = torch.optim.SGD(twin.network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    order = t.batches()[0]
    F.cross_entropy(twin.network(t.images[order]), t.targets[order].argmax(1)).backward()
    optimizer.step()
    t.fit()
    for ours, theirs in zip(t.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_curves_drive_dropout_and_augmentation_and_are_columns(trainer):
    step = "{_target_: fer.schedule.Knots, epochs: [0, 2], values: [0, 1], shape: step}"
    t = trainer("train.epochs=3", f"++curves.dropout={step}", f"++curves.rotate={step}", f"++curves.crop={step}",
                "augment.crop=40", "++model.size=40")  # fmt: skip
    seen, augment = [], t.augment

    def spy(images, targets, strength):
        seen.append((strength["rotate"], strength["crop"], t.dropouts[0][0].p))
        return augment(images, targets, strength)

    t.augment = spy
    t.fit()
    assert seen == [(0, 0, 0)] * 2 * t.steps + [(1, 1, 0.5)] * t.steps
    history = pd.DataFrame(t.history)
    assert history["dropout"].tolist() == [0, 0, 0.5]
    assert history["rotate"].tolist() == [0, 0, 10] and history["crop"].tolist() == [0, 0, 1]


def test_curves_that_drive_nothing_are_refused(trainer):
    ramp = "{_target_: fer.schedule.Knots, epochs: [0, 2], values: [0, 1]}"
    with pytest.raises(UserError, match="erase is off"):
        trainer(f"++curves.erase={ramp}")
    with pytest.raises(UserError, match=r"curves\.momentum: drives nothing"):
        trainer(f"++curves.momentum={ramp}")
    with pytest.raises(UserError, match=r"curves\.flip: knots need"):
        trainer("++curves.flip={_target_: fer.schedule.Knots, epochs: [0, 2], values: [0]}")


def test_the_rate_follows_its_curve_step_by_step(trainer):
    t = trainer("train.epochs=2", "schedule=cosine", "optim.lr=0.1", "optim=sgd")
    rates, augment = [], t.augment

    def spy(*args):
        rates.append(t.optimizer.param_groups[0]["lr"])
        return augment(*args)

    t.augment = spy
    t.fit()
    count = 2 * t.steps
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * i / count)) for i in range(count)])


def test_tencrop_accuracy_is_a_column(trainer):
    t = trainer("train.epochs=1", "train.tencrop=true", "augment.crop=40", "++model.size=40")
    t.fit()
    assert 0 <= t.history[0]["val_accuracy_tencrop"] <= 1


ARGS = ["data=demo", "data.images=2000", "model=dnn", "model.head=[64, dropout]", "train.epochs=4", "device=cpu"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path, number, code):
    def fer(*args):
        command = [sys.executable, "-m", "fer", "train", *args]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = fer(*ARGS, "run=whole")
    assert whole.wait(60) == 0
    torn = fer(*ARGS, "run=torn")
    history, deadline = tmp_path / "torn" / "history.csv", time.monotonic() + 60
    while not (history.exists() and history.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.002)
    torn.send_signal(number)
    out, err = torn.communicate(timeout=60)
    assert torn.returncode == code and "Traceback" not in err
    if code > 0:
        assert "fer train resume=torn" in out
    assert len(pd.read_csv(history)) < 4
    assert fer("resume=torn").wait(60) == 0
    ours, theirs = (torch.load(tmp_path / run / "last.pt") for run in ("torn", "whole"))
    assert all(torch.equal(ours["model"][k], theirs["model"][k]) for k in theirs["model"])
    times = ["seconds", "images_per_second"]
    ours, theirs = (pd.read_csv(tmp_path / run / "history.csv").drop(columns=times) for run in ("torn", "whole"))
    assert ours.equals(theirs)


def test_no_files_are_left_beside_a_checkpoint(tmp_path, trainer):
    t = trainer("train.epochs=1")
    t.run = tmp_path
    t.fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "history.csv", "last.pt"]
    contents = torch.load(tmp_path / "best.pt", weights_only=True)
    assert contents["classes"][1] == "disgust" and contents["normalization"]["kind"] == "dataset"
    assert "fer.models.convnet.ConvNet" in contents["config"]
