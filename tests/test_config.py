"""Every YAML file composes, passes its checks and builds; every key is read by the code."""

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fer import UserError, config, config_dir
from fer.data.faces import Data
from fer.models.network import Network, Normalize
from fer.training.curves import build_curves

CONFIGS = config_dir()
GROUPS = {
    folder.name: sorted(f.stem for f in folder.glob("*.yaml"))
    for folder in CONFIGS.iterdir()
    if folder.is_dir()
}
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_checks_and_builds(compose, group, name):
    cfg = config.check("train", compose("train", f"{group}={name}"))
    with torch.device("meta"):  # millions of weights need not be drawn
        model = config.build("model", cfg.model)
        config.build("optim", cfg.optim, params=Network(model, Normalize("none")).parameters())
        build_curves(cfg, config.build("augment", cfg.augment), model)
    if cfg.data["_target_"].endswith("demo"):
        assert isinstance(config.build("data", cfg.data | {"images": 70}), Data)
    else:
        with pytest.raises(UserError, match="looked for fer2013"):
            config.build("data", cfg.data | {"path": "/nowhere"})


def said(name):
    """The groups that an experiment, or one that it starts from, chooses, and the dotted keys to
    which it gives a value.
    """
    values = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
    chosen, keys = set(), set()
    for entry in values.pop("defaults"):
        if isinstance(entry, str):
            base_chosen, base_keys = said(entry)
            chosen |= base_chosen
            keys |= base_keys
        else:
            chosen |= {key.split("/")[-1] for key in entry}
    for key, value in values.items():
        keys |= {f"{key}.{leaf}" for leaf in value} if isinstance(value, dict) else {key}
    return chosen, keys


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_an_experiment_says_all_that_differs_from_what_absence_means(compose, name):
    """So that another default of a bare `fer train` leaves every recipe as it was."""
    values = compose("train", f"experiment={name}")["train"]
    chosen, keys = said(name)
    assert chosen == {"data", "model", "augment", "optim", "schedule"}
    assert {"name", "data.normalize", "optim.lr"} <= keys
    for key, field in config.Training.model_fields.items():
        if field.is_required() or values[key] != field.default:
            assert f"train.{key}" in keys


def test_every_number_of_augmentation_is_listed_once_and_off():
    """A new one is a line in none.yaml: other files start from it and say what they change."""
    none = config.check_node("augment", {"_target_": "fer.augment.Augment"})
    assert yaml.safe_load((CONFIGS / "augment" / "none.yaml").read_text()) == none
    for name in set(GROUPS["augment"]) - {"none"}:
        values = yaml.safe_load((CONFIGS / "augment" / f"{name}.yaml").read_text())
        assert values["defaults"] and "_target_" not in values


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_recipe_uses_the_automatic_number_format(compose, name):
    assert compose("train", f"experiment={name}")["train"]["precision"] == "auto"


@pytest.mark.parametrize("command", config.SCHEMAS)
def test_the_root_yaml_has_the_keys_of_the_schema(command):
    root = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text())
    groups = {next(iter(entry)) for entry in root["defaults"] if isinstance(entry, dict)} - {
        "experiment"
    }
    if "train" in root["defaults"]:
        train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
        root |= {k: v for k, v in train.items() if k != "defaults"}
        groups |= set(config.GROUPS)
    schema = config.SCHEMAS[command]
    assert set(root) - {"defaults"} | groups == set(schema.model_fields) | (groups & {"model"})


TRAINING = ("commands/train.py", "training/*.py", "config/*.py", "checkpoint.py")


def keys_read(*patterns):
    """The keys that source files read of a config: `cfg.seed`, `self.cfg.train.epochs`.

    The source is searched since no run of a command shows that one of its keys changes nothing.
    """
    read = set()
    for pattern in patterns:
        for path in (Path(config.__file__).parents[1]).glob(pattern):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    owner = ast.unparse(node.value)
                    if re.fullmatch(r"(.*\.)?(cfg|config|settings)(\.train)?", owner):
                        read.add(node.attr)
    return read


@pytest.mark.parametrize("command", config.SCHEMAS)
def test_the_command_reads_each_of_its_keys(command):
    """Each by its own module, as `cfg.key`; keys of trainings, by those that train."""
    keys, shared = set(config.SCHEMAS[command].model_fields), set()
    if "train" in keys:
        shared = set(config.TrainConfig.model_fields) - {"trust"}  # config_of_resume() has it
        shared |= set(config.Training.model_fields)
        assert not shared - keys_read(*TRAINING)
        keys -= set(config.TrainConfig.model_fields)
    assert not keys - keys_read(f"commands/{command}.py")


def test_an_old_run_without_a_key_gets_the_default_of_its_time(compose, monkeypatch, tmp_path):
    """Also where a bare `fer train` of today would do something else."""
    old = compose("train", "experiment=compact_dnn")
    whole = config.check("train", old).model_dump()
    for key in ("erase", "cutmix", "crop"):
        del old["augment"][key]
    for key in ("ema", "class_weights", "tencrop"):
        del old["train"][key]
    del old["profile"]
    shutil.copytree(CONFIGS, tmp_path / "configs")
    today = tmp_path / "configs" / "train.yaml"
    text = today.read_text()
    today.write_text(text.replace("ema: 0.0 ", "ema: 0.9 "))
    assert today.read_text() != text
    monkeypatch.setattr(sys.modules[config.parse.__module__], "config_dir", lambda: today.parent)
    saved = config.parse(yaml.safe_dump(old), "x.pt")
    assert config.check("train", saved).model_dump() == whole


def test_a_saved_config_is_plain_and_its_new_keys_have_defaults():
    values = config.parse("seed: 3\ntrain: {epochs: 2}\nname: '${oc.env:HOME}'", "x.pt")
    assert (
        values["seed"] == 3
        and values["train"]["epochs"] == 2
        and values["train"]["class_weights"] == "none"
    )
    assert values["name"] == "${oc.env:HOME}"
    for text, words in (
        ("a: [", "not valid YAML"),
        ("5", "not a mapping"),
        ("!!python/object:os.system x", "not valid"),
    ):
        with pytest.raises(UserError, match=words):
            config.parse(text, "x.pt")


@pytest.mark.parametrize(
    ("group", "path"),
    [
        ("model", "os.system"),
        ("model", "fer.cli.main"),
        ("model", "fer.models.convnet.torch"),
        ("model", "fer.models.convnet.nn.Linear"),
        ("model", "fer.models.convnet._missing"),
        ("optim", "torch.optim.lr_scheduler.StepLR.load"),
        ("optim", "torch.load"),
        ("data", "fer.data.readers.Path"),
        ("schedule", 5),
    ],
)
def test_a_checkpoint_may_not_name_targets_of_others(group, path):
    with pytest.raises(UserError, match=f"{group}._target_"):
        config.check_node(group, {"_target_": path}, trust=[])


def test_fields_note_what_may_change_on_resume():
    data = {"_target_": "fer.data.ferplus.ferplus"}
    places = {"run", "resume", "device", "data.path", "data.votes"}
    assert config.places(data) == places
    assert config.resumable(data) == places | {"train.epochs", "train.patience"}
