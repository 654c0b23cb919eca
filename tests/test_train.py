"""The trainer: batch order, losses, curves, and exact resume."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from processes import Command, wait_for
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sklearn.utils.class_weight import compute_class_weight
from torchvision.transforms.v2.functional import ten_crop

from fer import CLASSES, UserError, config, runtime
from fer.data.demo import demo
from fer.run import lock
from fer.runtime import Interrupted
from fer.training import recorder
from fer.training.batches import TrainingFaces, epoch_batches
from fer.training.objective import balanced_weights
from fer.training.recorder import Recorder
from fer.training.trainer import Trainer


@pytest.fixture
def trainer(compose):
    """A Trainer of a tiny network, with overrides as they are typed."""

    def make(*overrides):
        tiny = [
            "data=demo",
            "data.images=141",
            "model=dnn",
            "model.head=[8, dropout]",
            "train.batch_size=20",
        ]
        return Trainer(
            config.check("train", compose("train", *tiny, *overrides)), torch.device("cpu")
        )

    return make


def test_an_epoch_sees_every_face_once_and_no_batch_of_one(trainer):
    batches = trainer().batches(0)
    assert [len(b) for b in batches] == [20] * 6 + [21]
    assert sorted(torch.cat(batches).tolist()) == list(range(141))
    assert not torch.equal(torch.cat(batches), torch.cat(trainer().batches(1)))
    assert torch.equal(torch.cat(batches), torch.cat(trainer().batches(0)))


def test_balanced_sampling_draws_each_class_equally_often(trainer):
    t = trainer("train.sampling=balanced")
    drawn = torch.zeros(7)
    for epoch in range(60):
        drawn += t.faces.targets[torch.cat(t.batches(epoch))].sum(0)
    assert drawn.sum() == 60 * 141
    assert ((drawn / drawn.sum() - 1 / 7).abs() < 0.02).all()


def test_class_weights_equal_scikit_learns():
    labels = demo(images=141, limit=None, seed=0, normalize="dataset").splits["train"].labels
    ours = balanced_weights(F.one_hot(labels, 7).float())
    assert ours.numpy() == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(7), y=labels.numpy())
    )
    missing = F.one_hot(torch.tensor([0, 0, 3]), 7).float()
    assert balanced_weights(missing).tolist() == pytest.approx([3 / 14, 0, 0, 3 / 7, 0, 0, 0])


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_loss_equals_torchs_cross_entropy(trainer, weights):
    t = trainer(
        "train.epochs=1",
        "optim=sgd",
        "optim.lr=1e-9",
        "train.batch_size=141",
        "model.dropout=0.0",
        "augment=none",
        "train.precision=fp32",
        "train.label_smoothing=0.1",
        f"train.class_weights={weights}",
    )
    logits = t.network.logits(t.faces.images, 141, "fp32")
    labels = t.faces.targets.argmax(1)
    loss = (
        F.cross_entropy(
            logits,
            labels,
            weight=t.step_function.parts.objective.class_weights,
            label_smoothing=0.1,
            reduction="sum",
        )
        / 141
    )
    t.fit()
    assert t.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert t.history[0]["train_accuracy"] == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )


def test_one_step_equals_torchs(trainer):
    t = trainer(
        "train.epochs=1",
        "optim=sgd",
        "optim.lr=0.1",
        "train.batch_size=141",
        "augment=none",
        "schedule=constant",
        "model.dropout=0.0",
        "train.precision=fp32",
    )
    twin = trainer("model.dropout=0.0")
    optimizer = torch.optim.SGD(
        twin.network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    order = t.batches(0)[0]
    F.cross_entropy(
        twin.network(t.faces.images[order]), t.faces.targets[order].argmax(1)
    ).backward()
    optimizer.step()
    t.fit()
    for ours, theirs in zip(t.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_curves_drive_dropout_and_augmentation_and_are_columns(trainer):
    step = "{_target_: fer.schedule.Knots, epochs: [0, 2], values: [0, 1], shape: step}"
    t = trainer(
        "train.epochs=3",
        f"++curves.dropout={step}",
        f"++curves.rotate={step}",
        f"++curves.crop={step}",
        "augment.crop=40",
        "++model.size=40",
    )
    seen, learn = [], t.step_function.learn

    def spy(*args):
        seen.append(t.step_function.parts.dropouts[0].rate)
        learn(*args)

    t.step_function.learn = spy
    amounts = []
    prepare = t.step_function.prepare
    t.step_function.prepare = lambda batch, given, side: (
        amounts.append(given) or prepare(batch, given, side)
    )
    t.fit()
    assert seen == [0] * 2 * t.steps + [0.5] * t.steps
    assert [given.get("rotate") for given in amounts] == [None] * 2 * t.steps + [10] * t.steps
    assert [given.get("crop") for given in amounts] == [None] * 2 * t.steps + [1] * t.steps
    history = pd.DataFrame(t.history)
    assert history["dropout"].tolist() == [0, 0, 0.5]
    assert history["rotate"].tolist() == [0, 0, 10] and history["crop"].tolist() == [0, 0, 1]


def test_images_grow_along_their_curve(trainer):
    knots = "{_target_: fer.schedule.Knots, epochs: [0, 2], values: [0.5, 1], shape: step}"
    t = trainer(
        "train.epochs=3",
        "model=resnet_fast",
        "++model.features=[2, global_pool]",
        f"++curves.size={knots}",
        "++model.head=[2]",
    )
    sides, model = [], t.step_function.parts.model
    t.step_function.parts.model = lambda inputs: sides.append(inputs.shape[-1]) or model(inputs)
    t.fit()
    assert sides == [24] * 2 * t.steps + [48] * t.steps
    assert [row["size"] for row in t.history] == [24, 24, 48]
    with pytest.raises(UserError, match=r"curves\.size=null"):
        trainer(f"++curves.size={knots}")


def test_curves_without_effect_are_refused(trainer):
    ramp = "{_target_: fer.schedule.Knots, epochs: [0, 2], values: [0, 1]}"
    with pytest.raises(UserError, match="erase is off"):
        trainer(f"++curves.erase={ramp}")
    with pytest.raises(UserError, match=r"curves\.momentum: no such quantity"):
        trainer(f"++curves.momentum={ramp}")
    with pytest.raises(UserError, match=r"curves\.flip: knots need"):
        trainer("++curves.flip={_target_: fer.schedule.Knots, epochs: [0, 2], values: [0]}")


def test_the_rate_follows_its_curve_step_by_step(trainer):
    t = trainer("train.epochs=2", "schedule=cosine", "optim.lr=0.1", "optim=sgd")
    rates, learn = [], t.step_function.learn

    def spy(*args):
        rates.append(t.optimizer.param_groups[0]["lr"])
        learn(*args)

    t.step_function.learn = spy
    t.fit()
    count = 2 * t.steps
    assert rates == pytest.approx(
        [0.05 * (1 + np.cos(np.pi * (i + 0.5) / count)) for i in range(count)]
    )


@pytest.mark.parametrize("world", [1, 2])
def test_the_bar_shows_means_over_the_faces_of_this_process(trainer, world):
    t = trainer()
    t.world, t.step = world, 2
    t.step_function.record[:2] = torch.tensor([[30.0, 5.0], [10.0, 7.0]])
    faces = 40 / world
    assert t.means() == pytest.approx((40 / faces, 12 / faces))


def test_accuracy_over_ten_crops_is_a_column(trainer):
    crops = ["train.tencrop=true", "augment.crop=40", "++model.size=40"]
    t = trainer("train.epochs=2", "train.precision=fp32", *crops)
    t.fit()
    assert t.history[-1]["val_accuracy_tencrop"] == t.tencrop_accuracy()
    # With the labels that torchvision's crops give, it is 1.
    logits = [t.network.logits(view, 64, "fp32") for view in ten_crop(t.faces.images, [40])]
    predicted = torch.stack(logits).softmax(2).mean(0).argmax(1)
    t.faces = replace(t.faces, val_images=t.faces.images, val_labels=predicted)
    assert t.tencrop_accuracy() == 1


def test_a_row_of_the_history_is_measured_on_the_validation_faces(trainer):
    t = trainer("train.epochs=1", "train.precision=fp32")
    t.fit()
    logits = t.network.logits(t.faces.val_images, 64, "fp32")
    predicted, labels = logits.argmax(1), t.faces.val_labels
    row = t.history[0]
    assert row["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert row["val_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    f1 = f1_score(labels, predicted, average="macro", zero_division=0)
    assert row["val_macro_f1"] == pytest.approx(f1)
    recalls = recall_score(labels, predicted, average=None, labels=range(7), zero_division=0)
    assert [row[f"val_recall_{name}"] for name in CLASSES] == pytest.approx(list(recalls))


def test_normalization_is_fitted_on_the_training_faces(trainer):
    t = trainer()
    images = t.faces.images.double()
    assert t.network.normalize.mean == pytest.approx(images.mean().item())
    assert t.network.normalize.std == pytest.approx(images.std(correction=0).item())


ARGS = [
    "data=demo",
    "data.images=400",
    "model=dnn",
    "model.head=[64, dropout]",
    "train.epochs=16",
    "train.patience=null",
    "device=cpu",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed, and how long it trained."""
    folder = tmp_path_factory.mktemp("runs")
    process = Command(folder, "train", *ARGS, "run=whole")
    wait_for(folder / "whole" / "last.pt")
    begin = time.monotonic()
    assert process.wait() == 0
    return folder, time.monotonic() - begin


def assert_same(folder, torn):
    ours, theirs = (torch.load(folder / run / "last.pt") for run in (torn, "whole"))
    assert all(torch.equal(ours["model"][k], theirs["model"][k]) for k in theirs["model"])
    times = ["seconds", "images_per_second"]
    ours, theirs = (
        pd.read_csv(folder / run / "history.csv").drop(columns=times) for run in (torn, "whole")
    )
    assert ours.equals(theirs)


@pytest.mark.posix
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGINT", 130),
        pytest.param("SIGTERM", 143, marks=pytest.mark.slow),
        ("SIGHUP", 129),
        pytest.param("SIGUSR1", 75, marks=pytest.mark.slow),
        ("SIGKILL", -9),
    ],
)
def test_a_killed_training_resumes_to_the_same_weights(whole, name, code):
    folder, torn = whole[0], f"torn{name}"
    process = Command(folder, "train", *ARGS, f"run={torn}")
    wait_for(folder / torn / "history.csv", lines=2)
    process.send_signal(getattr(signal, name))
    assert process.wait() == code and "Traceback" not in process.err
    if code > 0:
        assert f"fer train resume={torn}" in process.out
    assert len(pd.read_csv(folder / torn / "history.csv")) < 16
    assert Command(folder, "train", f"resume={torn}").wait() == 0
    assert_same(folder, torn)


def test_a_resume_inside_an_epoch_gives_the_weights_and_history_of_one_training(
    trainer, train_until, tmp_path
):
    settings = ["train.epochs=3", "optim=adam", "train.ema=0.9"]
    whole = trainer(*settings)
    whole.fit()
    train_until(trainer(*settings), epoch=1, step=3)
    again = trainer(*settings, f"resume={tmp_path}")
    assert (again.epoch, again.step) == (1, 3)
    again.fit()
    for network in ("network", "eval_network"):
        weights = getattr(again, network).state_dict()
        for name, expected in getattr(whole, network).state_dict().items():
            assert torch.equal(weights[name], expected), name
    times = ["seconds", "images_per_second"]
    ours, theirs = (pd.DataFrame(each.history).drop(columns=times) for each in (again, whole))
    assert ours.equals(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_training_killed_at_any_moment_resumes_to_the_same_weights(whole, moment):
    folder, length = whole
    torn = f"random{moment}"
    process = Command(folder, "train", *ARGS, f"run={torn}")
    wait_for(folder / torn / "last.pt")
    time.sleep(np.random.default_rng(moment).uniform(0, length))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Command(folder, "train", f"resume={torn}").wait() == 0
    assert_same(folder, torn)


def kill_in_the_third_save():
    """Every epoch saves, and torch.save ends its process."""
    from fer.training import trainer

    save, saves = torch.save, []

    def torn(contents, file):
        saves.extend(["last.pt"] if "training" in contents else [])
        if len(saves) == 3:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(contents, file)

    trainer.SAVE_PAUSE = 0
    torch.save = torn


def kill_before_best_is_in_place():
    """Every epoch saves, and the process ends between last.pt and best.pt."""
    from fer.training import recorder, trainer

    trainer.SAVE_PAUSE = 0
    recorder.put_in_place = lambda waiting, folder: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.posix
@pytest.mark.parametrize("kill", [kill_in_the_third_save, kill_before_best_is_in_place])
def test_a_training_killed_inside_a_save_keeps_the_previous_checkpoint(whole, kill):
    run = whole[0] / kill.__name__
    process = Command(run.parent, "train", *ARGS, f"run={run.name}", before=kill)
    assert process.wait() == -signal.SIGKILL
    assert list(run.glob(".*.tmp")) or kill is kill_before_best_is_in_place
    assert torch.load(run / "last.pt")["training"]["epoch"] > 0
    assert_best_is_not_newer(run)
    assert Command(run.parent, "train", f"resume={run.name}").wait() == 0
    assert not list(run.glob(".*.tmp")) and not (run / "best.next.pt").exists()
    assert_best_is_not_newer(run)
    assert_same(run.parent, run.name)


def assert_best_is_not_newer(run):
    """A resume trains anew what last.pt does not know, perhaps with another outcome."""
    if (run / "best.pt").exists():
        epochs = pd.DataFrame(torch.load(run / "last.pt")["training"]["history"])
        best = epochs[epochs["epoch"] == torch.load(run / "best.pt")["epoch"]]
        assert len(best) == 1
        if not (run / "best.next.pt").exists():
            assert best["val_accuracy"].item() == epochs["val_accuracy"].max()


def test_copies_of_validation_faces_can_be_left_out_of_training(compose, fer2013_csv):
    header, *rows = fer2013_csv.read_text().splitlines()
    fields = [row.split(",") for row in rows]
    validation = [pixels for _, pixels, usage in fields if usage == "PublicTest"]
    for row, copy in ((3, 1), (8, 1), (20, 0)):
        fields[row][1] = validation[copy]
    fer2013_csv.write_text("\n".join([header, *(",".join(row) for row in fields)]) + "\n")

    def faces(copies):
        data = ["data=fer2013", f"data.path={fer2013_csv}", f"train.copies={copies}"]
        cfg = config.check("train", compose("train", *data, "model=dnn", "model.head=[8]"))
        return Trainer(cfg, torch.device("cpu")).faces.images

    kept, left = faces("keep"), faces("drop")
    assert len(kept) == 70
    remaining = [row for row in range(70) if row not in (3, 8, 20)]
    assert torch.equal(left, kept[remaining])


def test_the_gradient_is_clipped_to_the_given_norm(trainer):
    few = [
        "train.epochs=1",
        "optim=sgd",
        "optim.lr=1",
        "optim.momentum=0",
        "optim.nesterov=false",
        "optim.weight_decay=0",
        "schedule=constant",
        "train.batch_size=141",
    ]
    norms = {}
    for clip in ("null", "0.01"):
        t = trainer(*few, f"train.clip={clip}")
        before = torch.nn.utils.parameters_to_vector(t.network.parameters()).clone()
        t.fit()
        norms[clip] = (
            (torch.nn.utils.parameters_to_vector(t.network.parameters()) - before).norm().item()
        )
    assert norms["null"] > 0.1 and norms["0.01"] == pytest.approx(0.01, rel=1e-3)


def test_the_average_of_the_weights_is_validated_and_kept(trainer, tmp_path):
    t = trainer("train.epochs=2", "train.ema=0.9", "optim=sgd")
    t.recorder = Recorder(tmp_path, t.cfg)
    seen, step = [], t.optimizer.step
    t.optimizer.step = lambda: (
        step(),
        seen.append([p.detach().clone() for p in t.network.parameters()]),
    )
    t.fit()
    expected = seen[0]
    for weights in seen[1:]:
        expected = [0.9 * a + 0.1 * w for a, w in zip(expected, weights, strict=True)]
    for ours, theirs in zip(t.eval_network.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    accuracy = (
        (t.eval_network.logits(t.faces.val_images, 64).argmax(1) == t.faces.val_labels)
        .float()
        .mean()
        .item()
    )
    assert t.history[-1]["val_accuracy"] == pytest.approx(accuracy)
    again = trainer("train.epochs=2", "train.ema=0.9", "optim=sgd", f"resume={tmp_path}")
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.eval_network.parameters(), t.eval_network.parameters(), strict=True)
    )


def test_best_pt_holds_the_average_of_the_weights_and_last_pt_the_weights(trainer, tmp_path):
    t = trainer("train.epochs=1", "train.ema=0.9")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    for name, network in (("best.pt", t.eval_network), ("last.pt", t.network)):
        saved = torch.load(tmp_path / name, weights_only=True)["model"]
        weights = network.model.state_dict()
        assert saved.keys() == weights.keys()
        assert all(torch.equal(saved[key], weights[key]) for key in saved), name
    pairs = zip(t.eval_network.parameters(), t.network.parameters(), strict=True)
    assert not any(torch.equal(average, weight) for average, weight in pairs)


@pytest.mark.parametrize(
    "changed",
    [
        {"step": -1},
        {"step": 99},
        {"seconds": "x"},
        {"history": 5},
        {"history": [{}]},
        {"epoch": 7},
        {"record": 1},
        {"optimizer": {}},
    ],
)
def test_a_changed_training_state_is_refused_by_name(trainer, tmp_path, changed):
    t = trainer("train.epochs=1")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    contents = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save(contents | {"training": contents["training"] | changed}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt: its training state does not fit its config"):
        trainer("train.epochs=1", f"resume={tmp_path}")


def test_a_nan_loss_is_reported_with_its_step(trainer, tmp_path, slow_clock):
    t = trainer("train.epochs=2", "optim=sgd", "optim.lr=0.01", "schedule=constant")
    t.recorder = Recorder(tmp_path, t.cfg)
    prepare = t.step_function.prepare

    def spoiled(*args):
        inputs, targets = prepare(*args)
        return inputs * (float("nan") if (t.epoch, t.step) == (1, 3) else 1), targets

    t.step_function.prepare = spoiled
    with pytest.raises(
        UserError,
        match=r"epoch 2, step 4 of 7: .* \(learning rate 0\.01\), and last\.pt is from before",
    ):
        t.fit()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["training"]["epoch"] == 1 and all(
        v.isfinite().all() for v in last["model"].values()
    )


@pytest.mark.parametrize("batch", [20, 1000])
def test_weights_that_are_not_finite_are_never_saved_or_called_best(
    trainer, tmp_path, batch, capsys
):
    """With one step an epoch the loss before the update is finite."""
    t = trainer(
        "train.epochs=3",
        "optim=sgd",
        "optim.lr=1e30",
        "schedule=constant",
        f"train.batch_size={batch}",
        "train.precision=fp32",
    )
    t.recorder = Recorder(tmp_path, t.cfg)
    with pytest.raises(
        UserError,
        match=r"epoch 1, step \d of \d: .* became NaN or infinite.* \(learning rate 1e\+30\)",
    ):
        t.fit()
    assert not (tmp_path / "best.pt").exists() and "best" not in capsys.readouterr().out
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["training"]["epoch"] == 0 and all(
        v.isfinite().all() for v in last["model"].values()
    )


def test_weights_that_validation_does_not_show_are_checked_too(trainer, tmp_path):
    t = trainer("train.epochs=1")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.network.model.register_parameter("unused", torch.nn.Parameter(torch.tensor([float("inf")])))
    with pytest.raises(UserError, match="NaN or infinite before the first step"):
        t.fit()
    assert not list(tmp_path.iterdir())


def test_weights_that_diverge_in_an_epoch_are_told_by_its_last_step(trainer):
    t = trainer("train.epochs=3", "train.patience=null", "schedule=cosine", "train.precision=fp32")
    train_epoch = t.train_epoch

    def diverging(signals):
        train_epoch(signals)
        if t.epoch == 1:
            t.network.model.register_buffer("unused", torch.tensor([torch.inf]))

    t.train_epoch = diverging
    rate = t.plan.values(1, t.steps - 1, [])["lr"]
    with pytest.raises(UserError, match=f"epoch 2, step {t.steps} of {t.steps}: weights") as error:
        t.fit()
    assert f"learning rate {rate:.3g})" in str(error.value)


def test_a_signal_during_the_last_validation_ends_the_command(trainer, tmp_path):
    t = trainer("train.epochs=2")
    t.recorder = Recorder(tmp_path, t.cfg)
    measure = t.measure

    def interrupted():
        if t.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return measure()

    t.measure = interrupted
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        t.fit()
    assert caught.value.code == 130
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["training"]["epoch"] == 2  # all is saved
    assert signal.getsignal(signal.SIGINT) is before


def test_order_augmentation_and_dropout_draw_from_streams_of_their_own(trainer):
    """And anew in every step of every epoch."""
    t = trainer("seed=7")
    seeds = [runtime.seed_of(runtime.Stream.WEIGHTS, 7)]
    for epoch in (0, 1):
        seeds.append(runtime.seed_of(runtime.Stream.ORDER, 7, epoch))
        for settings in t.plan.settings(epoch, []):
            seeds += [settings.augmentation_seed, settings.network_seed]
    assert len(set(seeds)) == len(seeds) == 1 + 2 * (1 + 2 * t.steps)


@pytest.mark.parametrize(
    "warmup", [["schedule=cosine", "schedule.warmup=1"], ["++schedule.epochs=[0,1]"]]
)
def test_no_step_has_a_rate_of_zero(trainer, warmup):
    knots = ["schedule=knots", "schedule.values=[0,1]"] if "epochs" in warmup[0] else []
    t = trainer("train.epochs=2", *knots, *warmup)
    rates = [settings.lr_factor for settings in t.plan.settings(0, [])]
    assert rates[0] > 0 and rates == sorted(rates)


def test_a_warm_up_longer_than_the_training_is_refused_of_every_curve(trainer):
    curve = "{_target_: fer.schedule.Constant, warmup: 9}"
    with pytest.raises(UserError, match=r"curves\.rotate\.warmup=9: lasts as long as the run"):
        trainer("train.epochs=2", f"++curves.rotate={curve}")


def test_likely_mistakes_are_reported(fer):
    tiny = [*TINY, "train.epochs=1"]
    code, out, err = fer("train", *tiny, "augment.crop=40", "run=a")
    assert code == 0, err
    said = " ".join(out.split())
    assert "augment.crop=40: training crops are enlarged 1.2 times to the model's 48 pixels" in said
    code, out, err = fer("train", *tiny, "augment.crop=40", "++model.size=40", "run=b")
    assert code == 0 and "enlarged" not in out, err


def test_last_pt_is_written_every_few_seconds_and_at_the_end(trainer, tmp_path, request):
    saves, t = [], trainer("train.epochs=6", "train.patience=null")
    t.recorder, save = Recorder(tmp_path, t.cfg), t.save
    t.save = lambda: saves.append(t.epoch) or save()
    t.fit()
    assert saves == [0, 6]  # epochs of milliseconds
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["epoch"] == t.best["epoch"]
    request.getfixturevalue("slow_clock")
    saves.clear()
    again = trainer("train.epochs=9", f"resume={tmp_path}")
    again.recorder, save = Recorder(tmp_path, again.cfg), again.save
    again.save = lambda: saves.append(again.epoch) or save()
    again.fit()
    assert saves == [6, 7, 8, 9]


def test_the_best_weights_are_those_of_their_epoch(trainer, tmp_path):
    """They are written later, when the network has gone on."""
    t = trainer("train.epochs=8")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    short = trainer("train.epochs=8")
    short.cfg.train.patience = None
    seen = {}
    validate = short.validate
    short.validate = lambda: (
        validate()
        or seen.update(
            {short.epoch: {name: w.clone() for name, w in short.network.model.state_dict().items()}}
        )
    )
    short.fit()
    for name, weights in seen[best["epoch"]].items():
        assert torch.equal(best["model"][name], weights)


def test_a_state_of_another_device_or_an_earlier_version_is_taken_over(trainer, tmp_path):
    t = trainer("train.epochs=1", "optim=adam")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    contents = torch.load(tmp_path / "last.pt", weights_only=True)
    state = contents["training"]
    for group in state["optimizer"]["param_groups"]:  # as saved on CUDA
        group |= {"capturable": True, "fused": True, "lr": torch.tensor(0.001)}
    record = state.pop("record")
    state["sums"] = torch.tensor([*record.sum(0).tolist(), float(len(record))])
    for key in ("computed_in", "scaler", "faces"):
        del state[key]
    torch.save(contents, tmp_path / "last.pt")
    again = trainer("train.epochs=2", "optim=adam", f"resume={tmp_path}")
    assert not any(group["capturable"] or group["fused"] for group in again.optimizer.param_groups)
    again.fit()
    assert again.epoch == 2


def test_a_profile_is_a_trace_of_ten_steps(trainer, tmp_path):
    t = trainer("train.epochs=2", "profile=true", "train.batch_size=8")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep")}
    assert len(steps) == 10


def test_an_epoch_that_is_too_short_for_a_profile_is_told(fer):
    code, out, _ = fer("train", *TINY, "train.epochs=1", "profile=true", "run=r")
    assert code == 0 and not Path("r", "trace.json").exists()
    assert "profile=true: traces nothing" in out


def test_a_resume_in_another_number_format_says_so(trainer, tmp_path, capsys):
    t = trainer("train.epochs=1", "train.precision=fp32")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    contents = torch.load(tmp_path / "last.pt", weights_only=True)
    contents["training"]["computed_in"] = "bf16"
    torch.save(contents, tmp_path / "last.pt")
    trainer("train.epochs=2", "train.precision=fp32", f"resume={tmp_path}")
    assert "trained in bf16 so far, continues in fp32" in capsys.readouterr().out


def test_memory_that_runs_out_is_told_wherever_it_happens(fer, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny = [*TINY, "train.epochs=1"]
    assert fer("train", *tiny, "run=r")[0] == 0
    for name, command in (
        ("fer.training.batches.TrainingFaces.load", ["train", *tiny, "run=s"]),  # moving the data
        ("torch.nn.Module.to", ["train", *tiny, "run=s"]),  # moving the model
        ("torch.nn.Module.to", ["predict", "ckpt=r"]),
        ("torch.nn.Module.to", ["explain", "ckpt=r", "out=e"]),
        ("torch.nn.Module.to", ["evaluate", "ckpt=r", "tta=flip"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            code, _, err = fer(*command)
        assert code == 2 and "out of memory" in err and "Traceback" not in err, (command, err)


def test_a_deterministic_training_asks_torch_for_it(trainer):
    seen = []
    t = trainer("deterministic=true", "train.epochs=1")
    t.step_function.learn = lambda *args: seen.append(torch.are_deterministic_algorithms_enabled())
    t.fit()
    assert (
        seen and all(seen) and not torch.are_deterministic_algorithms_enabled()
    )  # as it was before


def test_no_files_are_left_beside_a_checkpoint(tmp_path, trainer):
    t = trainer("train.epochs=1")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "history.csv", "last.pt"]
    contents = torch.load(tmp_path / "best.pt", weights_only=True)
    found = contents["validation"]
    assert (found["logits"].argmax(1) == found["labels"]).float().mean().item() == pytest.approx(
        t.best["val_accuracy"]
    )
    assert contents["classes"][1] == "disgust" and contents["normalization"]["kind"] == "dataset"
    assert "fer.models.convnet.ConvNet" in contents["config"]


def test_one_class_for_all_faces_is_told_after_the_epoch_in_which_it_begins(trainer, capsys):
    t = trainer()
    recorder = Recorder(Path("unused"), t.cfg)
    labels = t.faces.val_labels
    count = len(labels)
    told = []
    for given in ([3] * count, [3] * count, [i % 7 for i in range(count)], [0] * count):
        recorder.warn_if_one_class(torch.eye(7)[given], labels, t.faces.classes)
        told.append(capsys.readouterr().out[:45])
    assert told[0].startswith("all validation faces are predicted as happy")
    assert told[1:3] == ["", ""]
    assert told[3].startswith("all validation faces are predicted as angry")


def test_a_training_that_predicts_one_class_says_so_once(trainer, tmp_path, capsys):
    t = trainer("train.epochs=2", "optim=sgd", "optim.lr=1e-12")
    t.recorder = Recorder(tmp_path, t.cfg)
    with torch.no_grad():
        t.network.model.head.logits.bias[3] = 1e4
    t.fit()
    assert capsys.readouterr().out.count("all validation faces are predicted as happy") == 1


@pytest.mark.parametrize(("optim", "advice"), [("muon", False), ("adam", True)])
def test_the_reasons_for_one_class_fit_the_optimizer_and_a_terminal(trainer, capsys, optim, advice):
    """The remedy starts from optim.lr, not from the scheduled rate, and names another optimizer."""
    t = trainer(f"optim={optim}", "optim.lr=0.03")
    labels = t.faces.val_labels
    Recorder(Path("unused"), t.cfg).warn_if_one_class(
        torch.eye(7)[[5] * len(labels)], labels, t.faces.classes
    )
    text = capsys.readouterr().out
    assert text.startswith("all validation faces are predicted as surprise.")
    assert "optim.lr=0.03 is too high" in text and "try optim.lr=0.003," in text
    assert ("try optim=muon" in text) == advice
    assert max(map(len, text.splitlines())) <= 80


def test_the_best_weights_are_written_when_a_later_epoch_fails(trainer, tmp_path):
    """They wait for the next save of last.pt, which then does not come."""
    t = trainer("train.epochs=8")
    t.recorder = Recorder(tmp_path, t.cfg)
    train_epoch = t.train_epoch

    def diverging(signals):
        train_epoch(signals)
        if t.epoch == 3:
            t.step_function.record[0, 0] = torch.nan

    t.train_epoch = diverging
    with pytest.raises(UserError, match="epoch 4, step 1 of 7: loss became NaN"):
        t.fit()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert (best["epoch"], best["val_accuracy"]) == (t.best["epoch"], t.best["val_accuracy"])


def test_best_weights_on_a_full_disk_are_put_in_place_without_another_copy(
    trainer, tmp_path, monkeypatch
):
    save = recorder.save_checkpoint

    def save_until_best_waits(path, *args, **contents):
        if path.name == "best.pt" or (tmp_path / "best.next.pt").exists():
            raise UserError(f"{path}: cannot be written (No space left on device)")
        save(path, *args, **contents)

    t = trainer("train.epochs=1")
    t.recorder = Recorder(tmp_path, t.cfg)
    monkeypatch.setattr(recorder, "save_checkpoint", save_until_best_waits)
    with pytest.raises(UserError, match=r"last\.pt: cannot be written"):
        t.fit()
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == 1
    assert not (tmp_path / "best.next.pt").exists()


@pytest.mark.posix
def test_links_to_networks_in_one_folder_wait_under_names_of_their_own(tmp_path):
    waiting = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pt").symlink_to(tmp_path / f"{name}.pt")
        waiting.add(recorder.next_best(tmp_path / name).relative_to(tmp_path))
    assert waiting == {Path("a.next.pt"), Path("b.next.pt")}


def test_the_options_of_an_optimizer_come_from_the_config_not_from_a_file(trainer, tmp_path):
    settings = ["optim=adam", "train.epochs=1"]
    t = trainer(*settings)
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    path = tmp_path / "last.pt"
    contents = torch.load(path, weights_only=True)
    group = contents["training"]["optimizer"]["param_groups"][0]
    group["maximize"] = True
    group["betas"] = "many"
    torch.save(contents, path)
    again = trainer(*settings, f"resume={tmp_path}")
    kept = again.optimizer.param_groups[0]
    assert kept["maximize"] is False and kept["betas"] == t.optimizer.param_groups[0]["betas"]


@pytest.mark.parametrize("name", ["Adafactor", "ASGD", "Rprop", "SGD"])
def test_torchs_other_optimizers_are_resumed(trainer, tmp_path, name):
    """Whatever their moments look like: Adafactor keeps a row and a column of a matrix."""
    node = f"{{_target_: torch.optim.{name}, lr: 0.001}}"
    settings = ["~optim", f"+optim={node}", "train.epochs=1"]
    t = trainer(*settings)
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    again = trainer(*settings, f"resume={tmp_path}")
    saved, restored = (each.optimizer.state_dict()["state"] for each in (t, again))
    assert saved.keys() == restored.keys()
    for index, state in saved.items():
        assert {name: str(value) for name, value in state.items()} == {
            name: str(value) for name, value in restored[index].items()
        }


def spoil_shape(training):
    training["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)


def spoil_text(training):
    training["optimizer"]["state"][0]["exp_avg"] = "zeros"


def spoil_moment(training):
    del training["optimizer"]["state"][0]["exp_avg"]


def spoil_step(training):
    training["step"] = float("inf")


def spoil_history(training):
    del training["history"][0]["val_accuracy"]


def spoil_accuracy(training):
    training["history"][0]["val_accuracy"] = "high"


@pytest.mark.parametrize(
    "spoil", [spoil_shape, spoil_text, spoil_moment, spoil_step, spoil_history, spoil_accuracy]
)
def test_a_changed_training_state_is_refused(trainer, tmp_path, spoil):
    settings = ["optim=adam", "train.epochs=1"]
    t = trainer(*settings)
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    contents = torch.load(tmp_path / "last.pt", weights_only=True)
    spoil(contents["training"])
    torch.save(contents, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt: "):
        trainer(*settings, "train.epochs=2", f"resume={tmp_path}")


def test_resuming_inside_an_epoch_needs_the_same_number_of_steps(trainer, tmp_path):
    t = trainer("train.epochs=1")
    t.recorder = Recorder(tmp_path, t.cfg)
    t.fit()
    contents = torch.load(tmp_path / "last.pt", weights_only=True)
    training = contents["training"]
    training |= {"epoch": 0, "history": [], "step": 3, "steps": 8}
    torch.save(contents, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"an epoch of 8 steps.* makes 7; resume with as many"):
        trainer("train.epochs=1", f"resume={tmp_path}")


@pytest.mark.posix
def test_a_run_is_locked_before_it_is_read(fer, tmp_path):
    """Otherwise a resume may undo what another process saves meanwhile."""
    assert fer("train", *TINY, "train.epochs=1", "run=r")[0] == 0
    (tmp_path / "r" / "last.pt").write_bytes(b"half of a checkpoint")
    with lock("r"):
        code, _, err = fer("train", "resume=r", "train.epochs=2")
    assert code == 2 and "another run is writing to it" in err


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_training_that_ends_before_its_first_save_leaves_nothing(
    fer, tmp_path, monkeypatch, error
):
    """Save for a folder that was there before, which stays, as does a link to one."""

    def failing(contents, file):
        raise error

    monkeypatch.setattr(torch, "save", failing)
    (tmp_path / "mine").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("new", "mine", "link"):
        assert fer("train", *TINY, "train.epochs=1", f"run={name}")[0] in (2, 130)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "link").is_symlink()
    assert not [*(tmp_path / "mine").iterdir(), *(tmp_path / "target").iterdir()]


@pytest.mark.parametrize("args", [["-m", "seed=0,1", *TINY], ["resume=s"]])
def test_a_sweep_in_several_processes_is_refused(fer, tmp_path, monkeypatch, args):
    """Each process would make the sweep's folders, and leave the others after the first run."""
    (tmp_path / "s" / "0").mkdir(parents=True)
    (tmp_path / "s" / "0" / "last.pt").touch()
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code, _, err = fer("train", *args)
    assert code == 2 and "leave torchrun out" in err and "Traceback" not in err


@pytest.mark.posix
def test_a_signal_that_the_caller_ignores_stays_ignored():
    """A shell script starts its jobs in the background so."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with runtime.Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught == 0
    finally:
        signal.signal(signal.SIGINT, previous)


def test_faces_that_do_not_fit_on_the_device_stay_on_the_host(monkeypatch):
    """The meta device stands for a small GPU: batches move there, the faces do not. It has no
    memory to be asked for, so the answer is replaced; test_runtime.py has the question.
    """
    data = demo(images=141, limit=None, seed=0, normalize="dataset")
    gpu = torch.device("meta")
    monkeypatch.setattr("fer.training.batches.has_room", lambda device, size: size < 141 * 48 * 48)
    faces = TrainingFaces.load(data, gpu, drop_copies=False, crop=None)
    assert {faces.images.device.type, faces.targets.device.type} == {"cpu"}
    assert faces.val_labels.device.type == "meta"
    batch, *_ = epoch_batches(faces, 0, 0, 20, "shuffle", 1)
    assert batch.device.type == "cpu" and faces.images[batch].to(gpu).shape == (20, 1, 48, 48)
    monkeypatch.setattr("fer.training.batches.has_room", lambda device, size: True)
    faces = TrainingFaces.load(data, gpu, drop_copies=False, crop=None)
    assert faces.images.device.type == "meta"


def test_what_a_training_prints_fits_80_columns(fer):
    """In its default folder, with warnings; commands to copy are as long as their paths."""
    code, out, err = fer(
        "train",
        "data=demo",
        "data.images=141",
        "model=resnet_fast",
        "model.features=[4, global_pool]",
        "train.epochs=2",
        "device=cpu",
        "augment.crop=40",
        "schedule=knots",
        "schedule.epochs=[0, 9]",
        "schedule.values=[1, 0]",
    )
    assert code == 0, err
    folder = out.partition(":")[0]
    code, again, err = fer("train", f"resume={folder}", "train.epochs=3")
    assert code == 0 and "resuming at epoch 3" in again, err
    lines = [line for line in (out + again).splitlines() if not line.startswith("  fer ")]
    assert len(lines) > 15 and max(map(len, lines)) <= 80, lines


def test_a_learning_rate_that_reaches_no_layer_is_told(fer):
    few = ["train", "data=demo", "data.images=70", "model=dnn", "device=cpu", "train.epochs=1"]
    _, out, _ = fer(*few, "model.head=[4]", "run=small")
    assert "optim.lr has no effect" in out and "optim.adam_lr=0.001" in " ".join(out.split())
    for words in (["model.head=[4,4,4]"], ["model.head=[4]", "optim=adam"]):
        _, out, _ = fer(*few, *words, f"run=r{len(words)}")
        assert "has no effect" not in out
