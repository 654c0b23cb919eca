"""A wrong key is answered with the nearest valid key of any group."""

import functools
from pathlib import Path

import pytest

from fer import vocabulary
from fer.cli import COMMANDS, main


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "lr=0.1"], "lr: no such key; did you mean optim.lr?"),
        (["train", "train.lr=0.1"], "train.lr: no such key; did you mean optim.lr?"),
        (["train", "optim.learning_rate=0.1"], "did you mean optim.lr?"),
        (["train", "dropout=0.3"], "did you mean model.dropout?"),
        (["train", "rotat=5"], "did you mean augment.rotate?"),
        (["train", "pretrained=true"], "start=CHECKPOINT takes the weights of a run"),
        (["train", "model.pretrained=true"], "start=CHECKPOINT takes the weights of a run"),
        (["train", "train.amp=true"], "did you mean train.precision?"),
        (["train", "--epochs", "5"], "--epochs: no such option; did you mean train.epochs=5?"),
        (["train", "--epochs=5"], "did you mean train.epochs=5?"),
        (["train", "--batch-size", "64"], "did you mean train.batch_size=64?"),
        (["predict", "--batch-size", "64"], "did you mean batch_size=64?"),
        (["train", "--verbose"], "--verbose: no such option; see fer train --help"),
        (
            ["train", "epochs"],
            "epochs: not of the form KEY=VALUE; did you mean train.epochs=VALUE?",
        ),
        (["train", "vgg13"], "did you mean model=vgg13?"),
        (["train", "fer2013.csv"], "did you mean data.path=fer2013.csv?"),
        (["train", "runs/x/last.pt"], "did you mean resume=runs/x/last.pt?"),
        (["report", "runs/x"], "runs/x: not of the form KEY=VALUE; did you mean run=runs/x?"),
        (["evaluate", "runs/x"], "did you mean ckpt=runs/x?"),
        (["predict", "me.jpg"], "did you mean input=me.jpg?"),
        (["explain", "me.jpg"], "did you mean image=me.jpg?"),
        (["predict", "run=runs/x"], "did you mean ckpt?"),
        (["report", "ckpt=runs/x"], "did you mean run?"),
        (["train", "data=/tmp/x"], "data=/tmp/x: no such choice; did you mean data.path=/tmp/x?"),
        (["train", "model=mine/model/little.yaml"], "did you mean --config-dir mine model=little?"),
        (["train", "model=little.yaml"], "--config-dir DIR model=little"),
        (["train", "model=runs/x/best.pt"], "did you mean start=runs/x/best.pt"),
        (
            ["train", "seed=1", "seed=2"],
            "seed: typed twice, seed=1 and seed=2; leave one of them out",
        ),
        (["train", "optim.lr=1", "++optim.lr=2"], "optim.lr: typed twice"),
        (["train", "-m", "model=dnn", "model=vgg13,vgg16"], "model: typed twice"),
        (
            ["train", "model.features=[64,pol]"],
            "model.features.1=pol: no such layer; did you mean pool? there are",
        ),
        (
            ["train", "model.features=[{pol: 2}]"],
            "no such layer; there are pool, global_pool, norm,",
        ),
        (
            ["train", "model.head=[64,drpout]"],
            "did you mean dropout? there are norm, dropout, {dropout: …}, a number",
        ),
    ],
)
def test_wrong_keys_get_a_suggestion(fer, capsys, args, words):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_no_key_is_suggested_that_the_command_lacks(monkeypatch):
    # It reads some forty YAML files for each word.
    monkeypatch.setattr(vocabulary, "keys", functools.cache(vocabulary.keys))
    for command in COMMANDS:
        known = vocabulary.keys(command)
        for word in [*vocabulary.SYNONYMS, "lr", "epochs", "dropout", "size"]:
            meant = vocabulary.meant(command, word)
            named = meant.removeprefix("did you mean ").rstrip("?").split(" or ") if meant else []
            assert set(named) <= set(known), (command, word)


def test_synonyms_name_keys_that_there_are():
    known = {key for command in COMMANDS for key in vocabulary.keys(command)}
    assert {key for keys in vocabulary.SYNONYMS.values() for key in keys} <= known


def test_summary_shows_the_network_of_an_experiment(fer):
    code, out, err = fer("summary", "experiment=vgg_4x2", "train.epochs=3")
    assert code == 0 and "input 1×40×40" in out, err
    assert "vgg_4x2" in out and not Path("runs").exists()
