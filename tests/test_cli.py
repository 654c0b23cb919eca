"""The command line: commands and their errors, in this process and once as a real process."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from fer import CLASSES, choices, cli, config_dir, vocabulary
from fer.checkpoint import Checkpoint

TINY = [
    "data=demo",
    "data.images=140",
    "model=dnn",
    "model.head=[16]",
    "train.epochs=2",
    "train.batch_size=32",
]
TINY += ["device=cpu"]


@pytest.fixture
def refused(fer, tmp_path):
    """Runs `fer ARGS`, which must be refused in one line, leaving nothing; returns the line."""

    def run(*args):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = fer(*args)
        assert code == 2, out + err
        assert err.count("\n") == 1 and "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def test_help_lists_the_commands_without_heavy_imports():
    code = "import sys; from fer.cli import main; main(['--help']); print(sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert not any(
        f"'{heavy}'" in out for heavy in ("torch", "numpy", "hydra", "yaml", "pandas", "pydantic")
    )


def test_training_and_predicting_do_not_import_dynamo(tmp_path):
    """It takes a second or two, and nothing here needs it with optim=muon."""
    code = """
import sys
from fer.cli import main
train = ["train", "data=demo", "data.images=70", "model=simple_cnn"]
train += ["model.features=[4,norm,pool]", "model.head=[8,norm]", "optim=muon"]
train += ["train.epochs=1", "device=cpu", "run=r"]
assert main(train) == 0
assert main(["predict", "ckpt=r", "out=s.csv"]) == 0
assert main(["summary", "model=vgg13"]) == 0
print("imported" if "torch._dynamo" in sys.modules else "not imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "not imported", done.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_explains_every_key(fer, command):
    code, out, _ = fer(command, "--help")
    assert code == 0
    root = yaml.safe_load((config_dir() / f"{command}.yaml").read_text())
    for key in set(root) - {"defaults", "hydra"}:
        assert f"\n  {key}:" in out
    assert max(map(len, out.splitlines())) <= 100 and "\n\n\n" not in out
    order = ["usage: ", "\nExamples:\n", "\nChange first:\n", "\nOptions:\n"]
    assert sorted(order, key=out.index) == order
    examples = out.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 3 and all(line.startswith(f"  fer {command}") for line in examples)
    first = out.partition("Change first:\n")[2].partition("\n\n")[0].splitlines()
    named = [re.match(r"  ([a-z_.]+)[:=]", line) for line in first]
    assert named[0] and {line[1] for line in named if line} <= {*vocabulary.keys(command)}
    if command == "train":
        for text in ("vgg13", "plateau", "adadelta", "lr: ", "path: ", "epochs: "):
            assert text in out


@pytest.mark.parametrize("group", ["data", "model", "augment", "optim", "schedule"])
def test_help_with_a_choice_explains_the_keys_of_that_choice(fer, group):
    for name in choices("train")[group]:
        _, out, _ = fer("train", f"{group}={name}", "--help")
        _, _, keys = out.partition(f"\n  {group}:     # {group}={name}")
        node = vocabulary.read(config_dir() / group / f"{name}.yaml")
        for parent in node.pop("defaults", []):
            assert keys.startswith(f"; all other keys are those of {group}={parent}\n")
        keys = keys.partition("\n")[2]
        assert all(f"    {key}:" in keys for key in node if key != "_target_")
        assert "_target_" not in re.split(r"\n  \w", keys)[0] and "defaults:" not in keys
        assert max(map(len, out.splitlines())) <= 100


def test_help_with_a_choice_reaches_commands_that_take_the_keys_of_train(fer):
    _, out, _ = fer("selftrain", "augment=none", "--help")
    assert "\n    mixup: 0.0             # alpha of mixup; 0: off\n" in out
    _, out, _ = fer("predict", "data=ferplus", "--help")
    assert "\n    score: majority" in out


def test_train_predict_report(fer, tmp_path):
    code, out, err = fer("train", *TINY, "run=my run")
    assert code == 0, err
    assert "best validation accuracy" in out and "fer predict ckpt='my run/best.pt'" in out
    assert re.search(r"trained at [\d,]+ images/s, [\d.]+ [kMGT]FLOP/s in (bf16|fp32)", out)
    assert {p.name for p in (tmp_path / "my run").iterdir()} == {
        ".lock",
        "environment.yaml",
        "config.yaml",
        "history.csv",
        "best.pt",
        "last.pt",
    }
    history = pd.read_csv("my run/history.csv")
    columns = "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,val_macro_f1"
    columns += ",seconds,images_per_second"
    recalls = [f"val_recall_{name}" for name in CLASSES]
    assert list(history.columns) == [*columns.split(","), *recalls] and list(history["epoch"]) == [
        1,
        2,
    ]

    code, out, err = fer("predict", "ckpt=my run", "out=s.csv", "probs=p.csv")
    assert code == 0, err
    rows = list(csv.reader(Path("s.csv").read_text().splitlines()))
    assert rows[0] == ["id", "label"] and len(rows) > 20
    assert [int(r[0]) for r in rows[1:]] == list(range(len(rows) - 1))
    probabilities = pd.read_csv("p.csv")
    assert list(probabilities.columns) == ["id", *CLASSES]
    assert probabilities[list(CLASSES)].sum(axis=1).sub(1).abs().max() < 1e-4
    assert list(probabilities[list(CLASSES)].to_numpy().argmax(1)) == [int(r[1]) for r in rows[1:]]

    code, out, err = fer("report", "run=my run")
    assert code == 0, err
    assert "my run/report/index.html" in out


def test_validation_accuracy_of_predict_is_that_of_the_history(fer):
    fer("train", *TINY, "run=r")
    code, out, _ = fer("predict", "ckpt=r/best.pt", "split=validation", "out=v.csv")
    assert code == 0
    assert f"accuracy {pd.read_csv('r/history.csv')['val_accuracy'].max():.4f}" in out


def test_ckpt_and_run_default_to_the_newest_run_that_has_one(fer, tmp_path):
    code, out, _ = fer("train", *TINY)
    run = next((tmp_path / "runs").iterdir())
    assert code == 0 and run.name.endswith("_dnn")
    (tmp_path / "runs" / "9999-crashed").mkdir()
    code, out, _ = fer("predict")
    assert code == 0 and str(run.relative_to(tmp_path)) in out
    assert (tmp_path / "submission.csv").is_file()
    assert fer("report")[0] == 0
    assert (run / "report" / "curves.png").is_file()


def test_one_seed_gives_one_history_and_another_a_different_one(fer):
    columns = ["train_loss", "val_loss", "val_accuracy"]
    histories = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert fer("train", *TINY, f"run={run}", f"seed={seed}")[0] == 0
        histories.append(pd.read_csv(f"{run}/history.csv")[columns])
    assert histories[0].equals(histories[1])
    assert not histories[0].equals(histories[2])


def test_multirun_makes_a_run_for_each_choice(fer, tmp_path):
    code, _, err = fer("train", "-m", *TINY, "seed=0,1", "train.epochs=1")
    assert code == 0, err
    (sweep,) = (tmp_path / "runs").iterdir()
    assert sorted(p.name for p in sweep.iterdir()) == ["0", "1", "multirun.yaml"]
    assert (sweep / "1" / "best.pt").is_file()
    assert fer("predict")[0] == 0  # the newest run is found inside the sweep


PATHS = [
    "with space",
    "a=b",
    "a,b",
    "(x",
    "a&b",
    "#1",
    "é",
    "人脸",
    "1e5",
    "~t",
    "${oc.env:HOME}",
    "it's",
    "back\\",
    "null1",
]


@pytest.mark.parametrize("name", PATHS)
def test_paths_may_contain_any_character(fer, tmp_path, name):
    code, _, err = fer("train", *TINY, "train.epochs=1", f"run={name}")
    assert code == 0, err
    assert (tmp_path / name / "best.pt").is_file()
    code, _, err = fer("predict", f"ckpt={name}/best.pt", f"out={name}/{name}.csv")
    assert code == 0, err
    assert (tmp_path / name / f"{name}.csv").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["optim.lrr=1"], ["optim.lrr", "did you mean optim.lr?"]),
        (["++optim.x=1"], ["optim.x", "no such key"]),
        (["+train.epoch=1"], ["train.epoch", "did you mean train.epochs?"]),
        (["modle=vgg13"], ["modle", "did you mean model?"]),
        (["model=vgg31"], ["model=vgg31", "vgg13"]),
        (["train.epochs=0"], ["train.epochs=0", "greater than or equal to 1"]),
        (["train.epochs=many"], ["train.epochs=many"]),
        (["optim=adam", "optim.lr=-1"], ["optim", "learning rate"]),
        (["optim=sgd", "optim.momentum=0"], ["optim", "Nesterov"]),
        (["seed=-1"], ["seed=-1"]),
        (["device=tpu"], ["device=tpu", "should be auto, cpu, mps, cuda"]),
        (["schedule=cosine", "schedule.warmup=9"], ["schedule.warmup=9", "train.epochs=2"]),
        (["schedule=onecycle", "schedule.warmup=2"], ["schedule.warmup=2", "train.epochs=2"]),
        (["schedule=cosine", "schedule.gamma=9"], ["schedule.gamma", "no such key"]),
        (["data.fraction=0.2"], ["data.fraction", "no such key"]),
        (["model.features=[64,pol]"], ["model.features.1=pol"]),
        (["model.features=[{pool: max, kernl: 2}]"], ["did you mean model.features.0.kernel?"]),
        (
            ["model.features=[{pool: max, a: 2}]"],
            ["model.features.0.a: no such key; model.features.0 has pool, kernel"],
        ),
        (
            ["model.features=[{pool: maximum}]"],
            ["model.features.0.pool=maximum: should be 'max' or 'average'"],
        ),
        (["model.channels=3"], ["model.channels=3", "should be 1"]),
        (["augment.crop=60"], ["crop=60", "48×48"]),
        (["resume=x", "run=y"], ["x"]),
        (["data.limit=0"], ["data.limit=0"]),
        (["model.features=[{pool: max, kernel: 99, padding: 0}]"], ["model", "does not fit"]),
        (["epochs"], ["epochs", "KEY=VALUE"]),
        (["--epochs", "3"], ["--epochs"]),
        (["train.epochs=[1"], ["train.epochs"]),
        (["optim.lr=${nothing}"], ["nothing"]),
        (["--config-dir", "nowhere"], ["nowhere"]),
        (["--config-path", "nowhere"], ["--config-path", "--config-dir"]),
        (["-m", "--cfg", "job", "model=dnn,vgg13"], ["--multirun and --cfg: cannot be combined"]),
        (["train=5"], ["train=5"]),
        (["model=null"], ["model=null", "vgg13"]),
    ],
)
def test_train_refuses_what_it_cannot_do_before_any_folder_is_made(refused, args, words):
    line = refused("train", *TINY, *args)
    assert all(word in line for word in words), line


def test_other_refusals(refused, fer, tmp_path):
    assert "did you mean train?" in refused("trian")
    assert "should be install=bash" in refused("-sc", "foo") == refused("-sc")
    assert "=3: not of the form KEY=VALUE" in refused("train", "=3")
    assert "no run with a best.pt" in refused("predict")
    assert "no such checkpoint" in refused("predict", "ckpt=nowhere.pt")
    assert "[a,b]" in refused("predict", "ckpt=a,b")
    assert "resume=: needs a path" in refused("train", "resume=")
    assert "add -m to try each, or write a list as [a,b]" in refused("train", "seed=0,1")
    assert "optim.lr=abc: should be a valid number, unable" in refused("train", "optim.lr=abc")
    assert "curves.rotate=0.5: should be a mapping, such as {_target_: …}" in refused(
        "train", "curves.rotate=0.5"
    )
    assert "data.names=5: should be a list, such as [a,b] or a mapping" in refused(
        "train", "data.names=5"
    )
    assert "data.groups=['a']: should be one value, not a list" in refused(
        "train", "data.groups=[a]"
    )
    # Runs of a sweep are called 0, 1, 2, …
    assert "3: no such checkpoint" in refused("predict", "ckpt=[3,4]")
    assert "a=b: no such checkpoint" in refused("predict", "ckpt=[ a=b , 4]")
    assert "optim=a: no such choice; name one, without brackets" in refused("train", "optim=[a]")
    assert "curves.rotate._target_=Knots: should be the dotted path" in refused(
        "train", "curves.rotate={_target_: Knots}"
    )
    assert "should have at most 2 items" in refused("predict", "columns=[id,label,more]")
    assert "source=foo: should be competition, or OWNER/NAME" in refused("download", "source=foo")
    (tmp_path / "x.pt").write_bytes(b"PK not really")
    assert "x.pt: damaged" in refused("predict", "ckpt=x.pt")
    fer("train", *TINY, "run=r")
    assert "is for training;" in refused(
        "evaluate", "ckpt=r", "data=fer2013", "data.validation=test"
    )
    assert "is the checkpoint, or is named twice" in refused(
        "predict", "ckpt=r", "out=x.csv", "probs=x.csv"
    )
    assert "is the checkpoint, or is named twice" in refused("predict", "ckpt=r", "out=r/best.pt")
    assert "is the checkpoint itself" in refused("export", "ckpt=r", "out=r/best.pt")
    assert "would overwrite a run's own file" in refused("export", "ckpt=r", "out=r/config.yaml")
    assert "would overwrite a run's own file" in refused("predict", "ckpt=r", "out=r/last.pt")
    assert "would overwrite a run's own file" in refused("predict", "ckpt=r", "probs=r/history.csv")
    assert "use resume=r" in refused("train", "resume=r/best.pt")
    for command in ("explain", "export"):
        assert "2 checkpoints" in refused(command, "ckpt=r/*.pt")
    assert "no such folder" in refused("report", "run=r", "data=fer2013", "data.path=nowhere")
    assert "already exists" in refused("train", *TINY, "run=r")
    assert "set data.normalize=dataset" in refused("train", *TINY, "start=r", "data.normalize=unit")
    assert "comes from the checkpoint" in refused("predict", "ckpt=r", "model=vgg13")
    assert "comes from the checkpoint" in refused("predict", "ckpt=r", "data.normalize=unit")
    assert "split=foo" in refused("predict", "ckpt=r", "split=foo")
    assert "did you mean columns?" in refused("predict", "ckpt=r", "colums=[a,b]")
    assert "r: is a folder; name a file in it" in refused("predict", "ckpt=r", "out=r")
    (tmp_path / "sample.csv").write_text("Id,Emotion\n7,0\n")
    assert "sample.csv" in refused("predict", "ckpt=r", "sample=sample.csv")
    refused("report", "run=nowhere")


def test_every_failure_of_a_sweep_is_told_with_the_choices_of_its_job(fer):
    code, _, err = fer("train", "-m", *TINY, "optim=sgd", "optim.lr=-1", "seed=0,1")
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("fer: ")]
    assert [line.partition(": optim")[0] for line in lines] == [
        "fer: job 0 (seed=0)",
        "fer: job 1 (seed=1)",
    ]


def test_a_refused_sweep_leaves_nothing(refused, fer, tmp_path):
    assert "model=dn: no such choice; did you mean dnn?" in refused(
        "train", "-m", *TINY, "model=dnn,dn"
    )
    assert fer("train", "-m", *TINY, "seed=0,1", "optim.lr=-1")[0] == 2
    assert not (tmp_path / "runs").exists()


def test_typed_data_keys_replace_those_of_the_checkpoint(fer):
    fer("train", *TINY, "run=r", "data.limit=7")
    fer("predict", "ckpt=r", "out=whole.csv")
    fer("predict", "ckpt=r", "out=other.csv", "data.images=70")
    assert len(pd.read_csv("whole.csv")) > len(pd.read_csv("other.csv")) > 7


def test_predict_without_an_unlabeled_split_lists_the_splits(fer, refused, fer2013_csv):
    fer("train", *TINY[2:], "run=r", f"data.path={fer2013_csv.parent}")
    line = refused("predict", "ckpt=r")
    assert "split=train|validation" in line
    code, out, _ = fer("predict", "ckpt=r", "split=private", "out=p.csv")
    assert code == 0 and "no accuracy is shown" in out and "accuracy 0" not in out


def test_sample_submission_gives_header_and_order(fer, tmp_path):
    fer("train", *TINY, "run=r")
    fer("predict", "ckpt=r", "out=plain.csv")
    plain = pd.read_csv("plain.csv")
    sample = pd.DataFrame({"Id": plain["id"][::-1], "Emotion": 0})
    sample.to_csv("sample.csv", index=False)
    assert fer("predict", "ckpt=r", "sample=sample.csv", "out=s.csv")[0] == 0
    got = pd.read_csv("s.csv")
    assert list(got.columns) == ["Id", "Emotion"] and list(got["Id"]) == list(sample["Id"])
    assert list(got["Emotion"][::-1]) == list(plain["label"])
    fer("predict", "ckpt=r", "columns=[a,b]", "out=c.csv")
    assert (tmp_path / "c.csv").read_text().startswith("a,b\n")
    pd.DataFrame({"Id": range(1, len(plain) + 1), "Emotion": 0}).to_csv("own.csv", index=False)
    code, out, _ = fer("predict", "ckpt=r", "sample=own.csv", "out=o.csv")
    assert code == 0 and "the ids of own.csv, 1 to" in out
    assert list(pd.read_csv("o.csv")["Emotion"]) == list(plain.iloc[:, 1])
    pd.DataFrame({"Id": range(len(plain), 0, -1), "Emotion": 0}).to_csv("mixed.csv", index=False)
    code, _, err = fer("predict", "ckpt=r", "sample=mixed.csv", "out=m.csv")
    assert code == 2 and "only some of its ids are ids of faces" in err


def test_a_users_own_configs(fer, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    text = "_target_: fer.models.convnet.ConvNet\nfeatures: [4, pool]\nhead: []\n"
    (tmp_path / "mine" / "model" / "little.yaml").write_text(text)
    code, out, err = fer(
        "train", *TINY[:2], *TINY[4:], "--config-dir", "mine", "model=little", "run=r"
    )
    assert code == 0 and out.startswith("r: little, "), err


def test_a_typed_group_replaces_that_of_the_experiment(fer):
    args = [
        "model=dnn",
        "model.head=[4]",
        "optim=sgd",
        "augment=flip",
        "augment.zoom=0.2",
        "train.epochs=1",
        *TINY[:2],
    ]
    code, _, err = fer("train", "experiment=compact_cnn", "run=r", *args)
    assert code == 0, err
    saved = yaml.safe_load(Path("r/config.yaml").read_text())
    assert saved["optim"]["momentum"] == 0.9 and saved["optim"]["lr"] == 0.01
    assert (saved["augment"]["rotate"], saved["augment"]["flip"], saved["augment"]["zoom"]) == (
        0,
        0.5,
        0.2,
    )
    assert saved["schedule"]["rise"] == 0.3 and saved["name"] == "compact_cnn"  # the experiment's


def test_reports_of_several_runs_stand_side_by_side(fer, tmp_path):
    fer("train", *TINY, "run=a")
    fer("train", *TINY, "run=b", "model.head=[8]", "name=narrow", "optim.lr=0.01")
    code, out, err = fer("report", "run=[a,b]")
    assert code == 0, err
    assert "they differ in model.head, optim.lr\n" in out
    table = pd.read_csv("comparison/comparison.csv")
    assert list(table["run"]) == ["model.head=[16]", "narrow model.head=[8] optim.lr=0.01"]
    assert table["parameters"][1] == 2304 * 8 + 8 + 8 * 7 + 7
    assert list(table["val_accuracy"]) == [
        pytest.approx(pd.read_csv(f"{r}/history.csv")["val_accuracy"].max(), abs=1e-4)
        for r in ("a", "b")
    ]
    assert (tmp_path / "comparison" / "curves.png").is_file()


def test_curves_plots_what_depends_on_time_alone(fer, tmp_path):
    code, out, err = fer("curves", "experiment=vgg16_staged", "out=c.png")
    assert code == 0, err
    assert (
        "crop, rotate, flip over 120 epochs: c.png" in out
        and "not shown (depends on validation accuracy): dropout, lr; see history" in out
    )
    assert (tmp_path / "c.png").is_file()
    for model in ("model.name=regnet_y_400mf", "model.weights=nofile"):
        code, _, err = fer("curves", "model=torchvision", model, "schedule=cosine")
        assert code == 0, err


def test_a_training_that_will_take_hours_says_so(fer):
    endless = ["train.epochs=1000000000000", "train.patience=1"]
    code, _, err = fer("train", *TINY, *STALLED, *endless, "run=r")
    assert code == 0 and "this will take up to over a year" in err and "data.limit=N" in err
    assert fer("train", *TINY, "run=s")[2] == ""


@pytest.mark.posix
def test_commands_work_in_an_ascii_locale(tmp_path):
    env = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for args in (["train", "--help"], ["summary", "model=dnn"]):
        done = subprocess.run(
            [sys.executable, "-m", "fer", *args],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "dnn" in done.stdout, done.stderr


def test_knots_beyond_the_last_epoch_are_reported(fer):
    late = ["schedule=knots", "schedule.epochs=[0,9]", "schedule.values=[1,0]"]
    code, out, err = fer("train", *TINY, *late, "run=r")
    assert code == 0 and "schedule.epochs extends to 9, but training stops at 2" in out, err
    knots = "curves.dropout={_target_: fer.schedule.Knots, epochs: [0, 9], values: [0, 1]}"
    code, out, err = fer("train", *TINY, "model.head=[16,dropout]", "model.dropout=0.5", knots)
    assert code == 0 and "\ncurves.dropout.epochs extends to 9" in out, err
    assert "extends to" not in fer("train", *TINY, *late, "schedule.epochs=[0,2]", "run=s")[1]


STALLED = ["optim=sgd", "optim.lr=1e-12"]  # the accuracy stays that of the first epoch


def test_training_ends_after_as_many_epochs_without_a_better_one_as_patience_says(fer):
    code, _, _ = fer("train", *TINY, *STALLED, "run=r", "train.epochs=9", "train.patience=2")
    assert code == 0 and len(pd.read_csv("r/history.csv")) == 1 + 2


def test_resume_goes_on_and_refuses_another_training(fer, refused):
    tiny = [*TINY, "schedule=plateau"]  # which does not know the end
    fer("train", *tiny, "run=r")
    code, out, err = fer("train", "resume=r", "train.epochs=4")
    assert code == 0 and "resuming at epoch 3" in out, err
    fer("train", *tiny, "run=whole", "train.epochs=4")
    columns = ["lr", "train_loss", "val_loss", "val_accuracy", "val_macro_f1"]
    ours, whole = (pd.read_csv(f"{run}/history.csv")[columns] for run in ("r", "whole"))
    assert ours.equals(whole)
    ours, whole = (torch.load(f"{run}/last.pt")["model"] for run in ("r", "whole"))
    assert all(torch.equal(ours[k], whole[k]) for k in whole)
    assert Checkpoint.open(Path("r/best.pt")).settings.train.epochs == 4  # whichever was best
    before = Path("r/config.yaml").read_text()
    assert "resume=r: the run has finished 4 epochs, more than train.epochs=3" in refused(
        "train", "resume=r", "train.epochs=3"
    )
    assert Path("r/config.yaml").read_text() == before
    Path("r/best.pt").write_bytes(b"torn")  # of no matter to the training
    assert fer("train", "resume=r", "train.epochs=5")[0] == 0
    assert "optim.lr: 0.02 → 0.5" in refused("train", "resume=r", "optim.lr=0.5")
    assert "model" in refused("train", "resume=r", "model=vgg13")
    assert "epochs: no such key; did you mean train.epochs?" in refused(
        "train", "resume=r", "epochs=3"
    )
    assert "run: cannot be set with resume" in refused("train", "resume=r", "run=elsewhere")


def test_resuming_a_finished_training_says_so_and_how_to_train_longer(fer):
    for run, typed, words in (
        ("my run", ["train.epochs=1"], "training is complete, 1 of 1 epochs"),
        (
            "r",
            ["train.epochs=9", "train.patience=2", *STALLED],
            "2 epochs without a better one",
        ),
    ):
        assert fer("train", *TINY, "schedule=constant", *typed, f"run={run}")[0] == 0
        epochs = len(pd.read_csv(f"{run}/history.csv"))
        code, out, err = fer("train", f"resume={run}")
        assert code == 0 and words in out and "goes on" not in out, err
        assert len(pd.read_csv(f"{run}/history.csv")) == epochs
        (longer,) = [line for line in out.splitlines() if line.startswith("  fer train resume=")]
        code, out, err = fer(*shlex.split(longer)[1:])
        assert code == 0 and f"resuming at epoch {epochs + 1}" in out, err


def test_pypis_package_of_the_same_name_is_noticed(fer, tmp_path, monkeypatch):
    assert fer("summary", "model=dnn")[2] == ""
    (tmp_path / "site" / "fer-22.5.1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "fer-22.5.1.dist-info" / "METADATA").write_text(
        "Name: fer\nVersion: 22.5.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    code, out, err = fer("summary", "model=dnn")
    assert code == 0 and "dnn" in out and err.count("\n") == 1
    assert "PyPI's package fer 22.5.1 is installed too" in err and "pip uninstall fer" in err


def test_files_replaced_by_pypis_package_are_told(tmp_path):
    (tmp_path / "fer").mkdir()
    (tmp_path / "fer" / "__init__.py").write_text(
        "FER = None\n"
    )  # as theirs, without what ours holds
    shutil.copy(cli.__file__, tmp_path / "fer" / "cli.py")
    done = subprocess.run(
        [sys.executable, "-c", "from fer.cli import main"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith(
        "fer: PyPI's package fer has replaced files"
    )
    assert done.stderr.count("\n") == 1


def test_a_resume_reads_last_pt_once(fer, monkeypatch):
    assert fer("train", *TINY, "run=r")[0] == 0
    read, load = [], torch.load

    def noted(path, **options):
        read.append(Path(path).name)
        return load(path, **options)

    monkeypatch.setattr(torch, "load", noted)
    assert fer("train", "resume=r", "train.epochs=3")[0] == 0
    assert read.count("last.pt") == 1


def test_resume_takes_the_old_command_with_its_experiment(fer, refused):
    old = ["experiment=compact_dnn", "data=demo", "data.images=70", "device=cpu", "train.epochs=1"]
    assert fer("train", *old, "run=r")[0] == 0
    code, out, err = fer("train", *old[:-1], "train.epochs=2", "resume=r/last.pt")
    assert code == 0 and "resuming at epoch 2" in out, err
    out = fer("train", *old[:-1], "resume=r")[1]
    assert (
        "training is complete, 2 of 2 epochs" in out
    )  # of 2: the experiment's own are not asked for
    assert "name: compact_dnn → compact_cnn" in refused(
        "train", "resume=r", "experiment=compact_cnn", "data=demo"
    )


def test_resume_refuses_data_that_have_changed(fer, refused, fer2013_csv):
    args = ["model=dnn", "model.head=[16]", "device=cpu", "train.epochs=1"]
    assert fer("train", f"data.path={fer2013_csv}", *args, "run=r")[0] == 0
    moved = fer2013_csv.with_name("moved.csv")
    moved.write_bytes(fer2013_csv.read_bytes())
    assert fer("train", "resume=r", f"data.path={moved}", "train.epochs=2")[0] == 0
    header, first, *others = fer2013_csv.read_text().splitlines()
    fer2013_csv.write_text("\n".join([header, "6" + first[1:], *others]))  # another label
    assert "other faces or labels" in refused(
        "train", "resume=r", f"data.path={fer2013_csv}", "train.epochs=3"
    )


def test_what_to_do_next_is_a_command_that_works(fer, fer2013_csv):
    for data, command in (
        (["data=demo", "data.images=141"], "predict"),
        ([f"data.path={fer2013_csv}"], "evaluate"),
    ):
        limit = ["data.limit=70", "model=dnn", "model.head=[4]", "device=cpu", "train.epochs=1"]
        code, out, _ = fer("train", *data, *limit, f"run={command}")
        last = out.splitlines()[-1].split()
        assert code == 0 and last[:2] == ["fer", command] and fer(*last[1:])[0] == 0


def test_a_nan_loss_stops_training_and_keeps_good_weights(fer):
    code, _, err = fer("train", *TINY, "run=r", "optim=sgd", "optim.lr=1e30")
    assert code == 2 and "epoch 1, step" in err and "optim.lr" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [([sys.executable, "-m", "fer", "trian"], "trian"), (["fer", "train", "optim.lrr=1"], "optim")],
)
def test_a_real_process_exits_2_without_a_traceback(command, words, tmp_path):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"fer: {words}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["optim.lr=1e39"], "optim.lr=1e+39: should be a finite float32"),
        (["optim=sgd", "optim.momentum=1e39"], "optim.momentum=1e+39: should be a finite float32"),
        (["optim=adam", "optim.eps=1" + "0" * 30], "optim.eps=1e+30: needs more than 64 bits"),
        (["optim=adam", "optim.betas=[0.9,nan]"], "optim.betas.1=nan: should be a finite float32"),
        (["train.clip=inf"], "train.clip=inf: should be a finite float32"),
        (["schedule=cosine", "schedule.warmup=nan"], "schedule.warmup=nan"),
        (["model.slope=-1"], "model.slope=-1: should be greater than or equal to 0"),
        (["model.slope=nan"], "model.slope=nan: should be a finite float32"),
        (
            ["data.images=1000000000000"],
            "data.images=1000000000000: should be less than or equal to 1000000",
        ),
        (["model.head=[1" + "0" * 30 + "]"], "model.head.0=1"),
        (
            ["model.features=[{conv: 2, padding: 1000000000}]"],
            "model.features.0.padding=1000000000: should be less",
        ),
        (["model.size=100000000"], "model.size=100000000: should be less than or equal to 1024"),
        (["device=cuda:x"], "device=cuda:x: should be auto, cpu, mps, cuda, or"),
        (["device=5"], "device=5: should be auto"),
    ],
)
def test_impossible_numbers_are_refused(refused, args, words):
    assert words in refused("train", *TINY, *args)


def test_the_remedy_for_a_curve_that_an_experiment_brought_works(fer):
    other = ["experiment=speedrun_cpu", "model=dnn", "schedule=constant", *TINY]
    code, _, err = fer("train", *other, "run=r")
    assert (
        code == 2
        and "fixed input size of 48×48 pixels; remove the curve with curves.size=null" in err
    )
    code, _, err = fer("train", *other, "run=r", "curves.size=null")
    assert code == 0, err
    knots = "={_target_: fer.schedule.Knots, epochs: [0, 2], values: [0, 1]}"
    for curve, words in (
        ("dropout", "this model has no dropout"),
        ("erase", "augment.erase is off; set it"),
    ):
        _, _, err = fer("train", *TINY, "model.head=[4]", f"curves.{curve}{knots}", "run=s")
        assert words in err and f"or remove the curve with curves.{curve}=null" in err


def test_a_folder_that_holds_no_training_is_not_offered_to_resume(refused, fer, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    assert "resume" not in refused("train", *TINY, "run=photos")
    fer("train", *TINY, "run=my run")
    line = refused("train", *TINY, "run=my run")
    assert "or resume it: fer train resume='my run'" in line
