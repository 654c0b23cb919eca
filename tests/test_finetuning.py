"""Fine-tuning: a learning rate of the backbone's own, frozen layers, exact resume."""

import pytest
import torch

from fer import config
from fer.models.torchvision import classifier
from fer.training.trainer import Trainer

CPU = torch.device("cpu")
TINY = ["data=demo", "data.images=70", "train.batch_size=70", "train.precision=fp32"]
NETWORK = ["model=simple_cnn", "model.features=[4, norm, pool]", "model.head=[8]", "augment=none"]
PLAIN_SGD = ["optim=sgd", "optim.momentum=0", "optim.nesterov=false", "optim.weight_decay=0"]


@pytest.fixture
def trainer(compose):
    def make(*overrides):
        words = [*TINY, *NETWORK, "schedule=constant", *overrides]
        return Trainer(config.check("train", compose("train", *words)), CPU)

    return make


def changes(trainer):
    """By name, how much a training changed each parameter and buffer."""
    before = {name: t.clone() for name, t in trainer.network.model.state_dict().items()}
    trainer.fit()
    after = trainer.network.model.state_dict()
    return {name: after[name] - before[name] for name in before}


def is_head(trainer, name):
    last = [m for m in trainer.network.model.modules() if isinstance(m, torch.nn.Linear)][-1]
    own = dict(trainer.network.model.named_parameters())
    return any(own.get(name) is p for p in last.parameters())


def test_the_backbone_has_its_own_learning_rate(trainer):
    """One step: its change is proportional to its own rate, that of the last layer to optim.lr."""
    recipe = [*PLAIN_SGD, "optim.lr=0.1", "train.epochs=1"]
    same = trainer(*recipe, "train.backbone_lr=0.1")
    slower = trainer(*recipe, "train.backbone_lr=0.01")
    plain = trainer(*recipe)
    one, other, third = changes(same), changes(slower), changes(plain)
    for name, _ in same.network.model.named_parameters():
        torch.testing.assert_close(one[name], third[name])
        factor = 1 if is_head(same, name) else 0.1
        torch.testing.assert_close(other[name], factor * one[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", [["optim=adamw"], ["optim=sgd", "train.clip=1"]])
def test_frozen_layers_keep_their_weights_and_then_learn(trainer, optimizer):
    frozen = trainer(*optimizer, "train.epochs=2", "train.freeze=2")
    differences = changes(frozen)
    for name, _ in frozen.network.model.named_parameters():
        assert bool(differences[name].any()) == is_head(frozen, name), name
    assert any(d.any() for name, d in differences.items() if "running_mean" in name)
    thawed = trainer(*optimizer, "train.epochs=3", "train.freeze=2")
    differences = changes(thawed)
    assert all(differences[name].any() for name, _ in thawed.network.model.named_parameters())


def test_fine_tuning_resumes_to_the_same_weights_without_the_file_it_started_from(fer, tmp_path):
    weights = tmp_path / "squeezenet.pth"
    torch.save(classifier(name="squeezenet1_1").state_dict(), weights)
    recipe = ["data=demo", "data.images=70", "device=cpu", "schedule=constant", "augment=flip"]
    recipe += ["model=torchvision", "model.name=squeezenet1_1", f"model.weights={weights}"]
    recipe += ["optim=adamw", "optim.lr=1e-3", "train.backbone_lr=1e-4", "train.freeze=1"]
    assert fer("train", *recipe, "train.epochs=3", "run=whole")[0] == 0
    for epochs in (1, 2):
        run = f"torn{epochs}"
        assert fer("train", *recipe, f"train.epochs={epochs}", f"run={run}")[0] == 0
    weights.unlink()
    whole = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["model"]
    for epochs in (1, 2):
        code, _, err = fer("train", f"resume=torn{epochs}", "train.epochs=3")
        assert code == 0, err
        torn = torch.load(tmp_path / f"torn{epochs}" / "last.pt", weights_only=True)["model"]
        assert all(torch.equal(torn[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim=muon", "train.backbone_lr=1e-4"], "not possible with optim=muon"),
        (["train.backbone_lr=0"], "train.backbone_lr=0"),
        (["train.freeze=-1"], "train.freeze=-1"),
    ],
)
def test_what_cannot_be_done_is_refused(fer, words, message):
    code, _, err = fer("train", "data=demo", "data.images=70", *words)
    assert code == 2 and message in err and len(err.splitlines()) <= 2
