"""The catalogue: every YAML composes, checks and builds; every key reaches code."""

import ast
from pathlib import Path

import pytest
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
OWN = {
    g: {k for n in GROUPS[g] for k in yaml.safe_load((CONFIGS / g / f"{n}.yaml").read_text())}
    - {"_target_"}
    for g in ("augment", "optim", "schedule")
}
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_checks_and_builds(compose, group, name):
    cfg = config.check("train", compose("train", f"{group}={name}"))
    model = config.build("model", cfg.model)
    config.build("optim", cfg.optim, params=Network(model, Normalize("none")).parameters())
    build_curves(cfg, config.build("augment", cfg.augment), model)
    if cfg.data["_target_"].endswith("demo"):
        assert isinstance(config.build("data", cfg.data | {"images": 70}), Data)
    else:
        with pytest.raises(UserError, match="looked for fer2013"):
            config.build("data", cfg.data | {"path": "/nowhere"})


def pinned(name):
    """Dotted keys that an experiment, or one that it starts from, gives a value."""
    values, keys = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text()), set()
    for entry in values.pop("defaults"):
        keys |= pinned(entry) if isinstance(entry, str) else {key.split("/")[-1] for key in entry}
    return keys | {f"{k}.{leaf}" for k, v in values.items() if isinstance(v, dict) for leaf in v}


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_an_experiment_pins_what_its_result_depends_on(compose, name):
    cfg = config.check("train", compose("train", f"experiment={name}"))
    needed = {"data", "model", "augment", "optim", "schedule", "data.normalize"}
    needed |= {
        f"{g}.{key}"
        for g in ("augment", "optim", "schedule")
        for key in getattr(cfg, g)
        if key in OWN[g]
    }
    needed |= {f"train.{key}" for key in config.Training.model_fields}
    needed -= {f"train.{key}" for key in ("precision", "channels_last", "cuda_graphs", "compile")}
    assert not needed - pinned(name)


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_no_recipe_asks_for_a_number_format_that_a_machine_may_lack(compose, name):
    assert compose("train", f"experiment={name}")["train"]["precision"] == "auto"


@pytest.mark.parametrize("command", config.SCHEMAS)
def test_the_root_yaml_has_the_keys_of_the_schema_and_code_reads_each(command):
    root = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text())
    groups = {next(iter(entry)) for entry in root["defaults"] if isinstance(entry, dict)} - {
        "experiment"
    }
    if "train" in root["defaults"]:
        train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
        root |= {k: v for k, v in train.items() if k != "defaults"}
        groups |= set(config.TARGETS)
    schema = config.SCHEMAS[command]
    assert set(root) - {"defaults"} | groups == set(schema.model_fields) | (groups & {"model"})
    read = set()
    for path in Path(config.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
    keys = set(schema.model_fields) | (
        set(config.Training.model_fields) if "train" in schema.model_fields else set()
    )
    assert not keys - read


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
def test_targets_of_others_are_refused(group, path):
    with pytest.raises(UserError, match=f"{group}._target_"):
        config.check_node(group, {"_target_": path})
