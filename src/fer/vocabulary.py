"""What may be typed after `fer`: the keys and choices of each command, as configs/ lists them, and
the key that was probably meant by an unknown one.

Reads YAML only and imports nothing heavy: Tab completion has to answer in a third of a second.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from fer import PICTURE_ENDINGS, choices, config_dir

# The word of other programs → the key here; of several, the first that the command has.
SYNONYMS = {
    "amp": ["train.precision"],
    "arch": ["model"],
    "architecture": ["model"],
    "aug": ["augment"],
    "augmentation": ["augment"],
    "backbone": ["model"],
    "batch": ["train.batch_size", "batch_size"],
    "bf16": ["train.precision"],
    "bs": ["train.batch_size", "batch_size"],
    "checkpoint": ["ckpt", "start", "run"],
    "ckpt": ["start", "run"],
    "clip_grad": ["train.clip"],
    "cuda": ["device"],
    "data_dir": ["data.path"],
    "data_path": ["data.path"],
    "dataset": ["data"],
    "early_stopping": ["train.patience"],
    "epoch": ["train.epochs"],
    "epochs": ["train.epochs"],
    "fp16": ["train.precision"],
    "gpu": ["device"],
    "gradient_clip": ["train.clip"],
    "image_size": ["model.size"],
    "img_size": ["model.size"],
    "learning_rate": ["optim.lr"],
    "max_epochs": ["train.epochs"],
    "max_norm": ["train.clip"],
    "mixed_precision": ["train.precision"],
    "network": ["model"],
    "num_epochs": ["train.epochs"],
    "opt": ["optim"],
    "optimizer": ["optim"],
    "output": ["out", "run"],
    "output_dir": ["out", "run"],
    "root": ["data.path"],
    "run": ["ckpt"],
    "save_dir": ["out", "run"],
    "scheduler": ["schedule"],
    "smoothing": ["train.label_smoothing"],
    "transforms": ["augment"],
    "val_split": ["data.fraction"],
    "wd": ["optim.weight_decay"],
}
REMARKS = {
    "pretrained": "start=CHECKPOINT takes the weights of a run, model=torchvision "
    "model.weights=FILE those of a file",
    "num_workers": "the faces are kept in memory, so no processes load them; leave it out",
    "workers": "the faces are kept in memory, so no processes load them; leave it out",
}
# Commands whose model and data come from a checkpoint.
FROM_RUN = ("predict", "evaluate", "report", "explain", "export")


def read(path: Path) -> dict:
    """The values of a YAML file; empty if it cannot be read, which Hydra reports."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def group_keys(group: str, names: Iterable[str], user_dir: str | None = None) -> list[str]:
    """Keys of the group's configs of these names, and of those that they start from."""
    keys: dict[str, None] = {}
    for name in names:
        for root in [config_dir(), *([Path(user_dir)] if user_dir else [])]:
            values = read(root / group / f"{name}.yaml")
            parents = [parent for parent in values.get("defaults") or [] if isinstance(parent, str)]
            others = [parent for parent in parents if parent != name]
            keys |= dict.fromkeys(group_keys(group, others, user_dir))
            keys |= dict.fromkeys(str(key) for key in values if key not in ("defaults", "_target_"))
    return list(keys)


def root_values(command: str) -> dict:
    """The keys of a command's config and their defaults, with those of fer train's where it takes
    them.
    """
    values = read(config_dir() / f"{command}.yaml")
    defaults = values.pop("defaults", [])
    return root_values("train") | values if "train" in defaults else values


def keys(
    command: str, user_dir: str | None = None, chosen: dict[str, str] | None = None
) -> list[str]:
    """All that may be typed before `=`, dotted. Of a group: the keys of its `chosen` config, or of
    all its configs if none is chosen.
    """
    dotted = []
    for key, value in root_values(command).items():
        if isinstance(value, dict) and value:
            dotted += [f"{key}.{inner}" for inner in value]
        else:
            dotted.append(key)
    for group, names in choices(command, user_dir).items():
        dotted.append(group)
        if group != "experiment":
            if chosen and group in chosen:
                names = [chosen[group]]
            dotted += [f"{group}.{key}" for key in group_keys(group, names, user_dir)]
    return dotted


def meant(command: str, key: str, user_dir: str | None = None) -> str | None:
    """What was probably meant by an unknown `key` of the command, or what there is instead."""
    known = keys(command, user_dir)
    if key in known:
        return f"did you mean {key}?"
    word = key.rpartition(".")[2].lower().replace("-", "_")
    if word in REMARKS:
        return REMARKS[word]
    named = [candidate for candidate in SYNONYMS.get(word, []) if candidate in known]
    named = named or [candidate for candidate in known if candidate.rpartition(".")[2] == word]
    if not named:
        last = {candidate.rpartition(".")[2]: candidate for candidate in reversed(known)}
        named = [last[near] for near in difflib.get_close_matches(word, last, n=1, cutoff=0.75)]
    return f"did you mean {' or '.join(named[:3])}?" if named else None


def meant_override(command: str, word: str, user_dir: str | None = None) -> str | None:
    """The override that was probably meant by a `word` without `=`."""
    for group, names in choices(command, user_dir).items():
        if word in names:
            return f"{group}={word}"
    known = root_values(command)
    place = Path(word)
    if not (place.exists() or "/" in word or "\\" in word or place.suffix):
        return None
    if place.suffix.lower() in PICTURE_ENDINGS:
        candidates = ["input", "image"]
    elif "train" in known and (place.suffix == ".pt" or (place / "last.pt").exists()):
        candidates = ["resume"]
    elif command in FROM_RUN:
        candidates = ["ckpt", "run"]
    else:
        candidates = ["data.path"]
        known |= {
            f"data.{key}": None for key in group_keys("data", choices(command).get("data", []))
        }
    return next((f"{key}={word}" for key in candidates if key in known), None)


def meant_choice(command: str, group: str, choice: str) -> str | None:
    """What was probably meant by a path in place of the name of a config, `group=path`."""
    place = Path(choice)
    if place.suffix in (".yaml", ".yml"):
        if place.parent.name == group:
            return f"did you mean --config-dir {place.parent.parent} {group}={place.stem}?"
        override = f"--config-dir DIR {group}={place.stem}"
        return f"put it at DIR/{group}/{place.name}, and type {override}"
    if group == "data" and ("/" in choice or "\\" in choice or place.suffix or place.exists()):
        return f"did you mean data.path={choice}?"
    if group == "model" and place.suffix in (".pt", ".pth") and "start" in root_values(command):
        return f"did you mean start={choice}, to begin with its weights?"
    return None
