"""Code of one's own: a model, optimizer, curve, augmentation or data by dotted path, with the same
checks of keys; and a checkpoint that names such code, which is imported only where it is trusted.
"""

import sys
from pathlib import Path

import pytest
import torch

from fer import UserError, api, config
from fer.checkpoint import Checkpoint

NETS = """
import torch
from torch import nn

open("imported", "w").close()


class MyNet(nn.Module):
    def __init__(self, width: int, activation=nn.ReLU, classes: int = 7):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(2304, width), activation(),
                                    nn.Linear(width, classes))

    def forward(self, faces):
        return self.layers(faces)


class Wide(MyNet):
    def forward(self, faces):
        return super().forward(faces).repeat(1, 2)


class Clumsy(MyNet):
    def forward(self, faces):
        return self.nowhere(faces)


class Empty(nn.Module):
    def forward(self, faces):
        return faces


def breaks(*, width: int = 3):
    return {}["width"]


def number():
    return 3


class Sgd(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.01, **others):
        super().__init__(params, lr=lr, **others)


class Remembering(Sgd):
    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["gram"] = torch.eye(3)


class NoRate(torch.optim.SGD):
    def __init__(self, params, momentum: float = 0.0):
        super().__init__(params, lr=0.1, momentum=momentum)
"""
CURVES = """
from dataclasses import dataclass

from fer.schedule import Curve


@dataclass(frozen=True, kw_only=True)
class Half(Curve):
    factor: float = 0.5

    def at(self, epoch, epochs, history):
        return self.factor
"""
DATA = """
import torch

from fer import FilePath
from fer.data.faces import Data, Faces


def noise(*, folder: FilePath, faces: int = 70):
    generator = torch.Generator().manual_seed(len(open(folder + "/seed").read()))
    images = torch.randint(256, (faces, 1, 48, 48), generator=generator).to(torch.uint8)
    labels = torch.arange(faces) % 7
    split = Faces(images, labels, [str(i) for i in range(faces)])
    return Data({"train": split, "validation": split.take(range(14))}, "dataset")
"""
TINY = ["data=demo", "data.images=70", "augment=none", "train.epochs=1", "device=cpu", "run=r"]
MODEL = ["model._target_=mylab.nets.MyNet", "model.width=4"]


@pytest.fixture
def mylab(tmp_path, monkeypatch):
    """A package in the current directory, and nothing of it imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mylab").mkdir()
    for name, text in (("nets", NETS), ("curves", CURVES), ("faces", DATA), ("broken", "1 / 0")):
        (tmp_path / "mylab" / f"{name}.py").write_text(text)
    (tmp_path / "mylab" / "needy.py").write_text("import no_such_package")

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
            del sys.modules[name]

    forget()
    yield forget
    forget()


def refused(fer, *args):
    code, _, err = fer(*args)
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    return err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            [*MODEL, "model.depth=3"],
            "model.depth: no such key; model has width, activation, classes",
        ),
        ([MODEL[0]], "model.width: a value is missing"),
        ([MODEL[0], "model.width=wide"], "model.width=wide: should be a valid integer"),
        (["model._target_=mylab.nets.MyNett", "model.width=4"], "did you mean MyNet?"),
        (["model._target_=mylab.nest.MyNet"], "no module mylab.nest; it should be in the current"),
        (["model._target_=mylab.broken.X"], "importing mylab.broken raised ZeroDivisionError"),
        (
            ["model._target_=mylab.needy.X"],
            "mylab.needy imports no_such_package, which is not installed; install its package",
        ),
        (["model._target_=MyNet"], "should be the dotted path of a class or function"),
        (["model._target_=mylab.nets.breaks"], "mylab.nets.breaks raised KeyError: 'width'"),
        (["model._target_=mylab.nets.number"], "makes a int, not a torch.nn.Module"),
        (["model._target_=mylab.nets.Empty"], "has no parameters to train"),
        (["model._target_=mylab.nets.Wide", "model.width=4"], "turns faces of 2×1×48×48 into 2×14"),
        (["model._target_=mylab.nets.Clumsy", "model.width=4"], "it raised AttributeError"),
        (["optim._target_=mylab.nets.NoRate"], "has no number lr, which the schedule multiplies"),
        (["optim._target_=mylab.nets.MyNet"], "not an optimizer; it has no parameter params"),
        (["schedule._target_=mylab.nets.number"], "makes a int, not a fer.schedule.Curve"),
        (["optim._target_=torch.optim.ASGD", "optim.momentum=0.9"], "optim.momentum: no such key"),
    ],
)
def test_a_key_or_target_that_does_not_fit_is_one_line(fer, mylab, typed, words):
    err = refused(fer, "train", *TINY, *typed)
    assert words in err and not Path("r").exists()
    assert "did you mean optim.momentum" not in err


def test_a_target_that_is_typed_starts_from_nothing_but_a_choice_typed_beside_it(fer, mylab):
    code, out, err = fer("train", *TINY, *MODEL, "optim._target_=mylab.nets.Sgd", "optim.lr=0.1")
    assert code == 0 and "MyNet, " in out, err
    values = config.parse(Path("r/config.yaml").read_text(), "r")
    assert values["model"] == {"_target_": "mylab.nets.MyNet", "width": 4, "classes": 7}
    assert values["optim"] == {"_target_": "mylab.nets.Sgd", "lr": 0.1}
    assert "trust" not in Path("r/config.yaml").read_text()
    args = [*TINY[:-1], "run=s", "optim=sgd", "optim._target_=mylab.nets.Sgd", "model=dnn"]
    assert fer("train", *args, "model.head=[1]")[0] == 0
    values = config.parse(Path("s/config.yaml").read_text(), "s")
    assert values["optim"]["momentum"] == 0.9 and values["name"] == "dnn"


def test_own_curves_and_data_train(fer, mylab, tmp_path):
    (tmp_path / "my faces").mkdir()
    (tmp_path / "my faces" / "seed").write_text("x")
    data = ["data._target_=mylab.faces.noise", "data.folder=my faces"]
    curve = ["schedule._target_=mylab.curves.Half", "schedule.factor=0.25"]
    code, out, err = fer("train", *data, *curve, *TINY[2:], "model=dnn", "model.head=[1]")
    assert code == 0, err
    assert api.history("r")["lr"].tolist() == pytest.approx([0.25 * 0.02])
    saved = config.parse(Path("r/config.yaml").read_text(), "r")["data"]
    assert saved["folder"] == str(tmp_path / "my faces")
    code, out, err = fer("evaluate", "ckpt=r", "trust=mylab", "device=cpu")
    assert code == 0 and "14 faces of validation" in out, err


def test_own_code_is_resumed_and_used_with_trust_only(fer, mylab):
    code, out, _ = fer("train", *TINY, *MODEL, "optim._target_=mylab.nets.Remembering")
    assert code == 0 and "fer report run=r trust=mylab\n" in out
    assert "fer predict ckpt=r/best.pt out=submission.csv trust=mylab\n" in out
    again = ["resume=r", "train.epochs=2", "device=cpu"]
    commands = [
        ["evaluate", "ckpt=r", "device=cpu"],
        ["predict", "ckpt=r", "device=cpu"],
        ["report", "run=r"],
        ["report", "run=[r]"],
        ["explain", "ckpt=r", "show=[saliency]", "image=3", "device=cpu"],
        ["export", "ckpt=r", "format=torch_export"],
        ["train", *again],
    ]
    mylab()
    for command in commands:
        Path("imported").unlink(missing_ok=True)
        err = refused(fer, *command)
        assert "model._target_=mylab.nets.MyNet: refused" in err and "type trust=mylab" in err
        assert not Path("imported").exists()
    for command in commands:
        code, _, err = fer(*command, "trust=[mylab]")
        assert code == 0, (command, err)
    with pytest.raises(UserError, match="trust="):
        api.load("r")
    assert api.load("r", trust=["mylab"]).probabilities(torch.zeros(48, 48)).shape == (1, 7)
    assert fer("train", *again, "train.epochs=3", "trust=[mylab.nets]")[0] == 0
    assert "train.epochs" not in refused(fer, "train", *again, "train.epochs=4", "trust=[mylab.n]")
    assert "trust=5: should be" in refused(fer, "predict", "ckpt=r", "trust=5")


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "mylab.nets.MyNet", "width": 4},
        {"_target_": "os.system", "command": "touch imported"},
        {"_target_": "fer.cli.main", "argv": ["train"]},
        {"_target_": "builtins.eval", "source": "open('imported', 'w')"},
        {"_target_": "torch.hub.load", "repo_or_dir": "."},
    ],
)
@pytest.mark.parametrize("group", config.GROUPS)
def test_a_checkpoint_that_is_not_trusted_imports_nothing(mylab, tiny, group, node):
    for trust in ([], ["other"], ["my"]):
        with pytest.raises(UserError, match="refused"):
            Checkpoint.open(tiny(config={group: node, "trust": ["mylab", "os"]}), trust)
    assert "mylab" not in sys.modules and not Path("imported").exists()
    if not node["_target_"].startswith(("mylab", "torch")):  # trust covers no part of Python
        with pytest.raises(UserError, match="a checkpoint may not name it"):
            package = node["_target_"].partition(".")[0]
            Checkpoint.open(tiny(config={group: node}), [package])


def test_a_config_beside_a_checkpoint_is_no_more_trusted_than_it(mylab, tiny):
    path = tiny()
    values = config.parse(torch.load(path)["config"], "x")
    values["model"] = {"_target_": "mylab.nets.MyNet", "width": 4}
    (path.parent / "config.yaml").write_text(config.dump(config.TrainConfig(**values)))
    assert Checkpoint.open(path).settings.model["_target_"].startswith("fer.models.")
    assert not Path("imported").exists()
