"""Arithmetic on plain nested values, and configs as YAML text.

A saved config is untrusted: parse() reads it without running or resolving anything.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from pydantic import BaseModel

from fer import UserError, config_dir, signatures
from fer.config.schema import NOT_RECIPE, ON_RESUME, PLACE, TrainConfig, Training, noted

# PyYAML takes half a minute for a megabyte, and as long for brackets within brackets; a config of
# ours has 3,000 characters and 40 brackets.
LONGEST_CONFIG = 100_000
MOST_BRACKETS = 1000
MOST_ALIASES = 9


def overlay(base: Any, top: Any) -> Any:
    """`base` with the values of `top` merged into it, key by key. A `_target_` in `top` replaces
    the whole node.
    """
    if not isinstance(base, dict) or not isinstance(top, dict) or "_target_" in top:
        return top
    return base | {key: overlay(base.get(key), value) for key, value in top.items()}


def pick(values: dict, keys: list[str]) -> dict:
    """Only the entries of the nested `values` that the dotted `keys` name."""
    picked: dict = {}
    for key in keys:
        *parents, last = key.split(".")
        source, into = values, picked
        for parent in parents:
            source, into = source[parent], into.setdefault(parent, {})
        into[last] = source[last]
    return picked


def without(values: dict, keys: set[str]) -> dict:
    """The nested `values` without the entries that the dotted `keys` name."""
    kept = {}
    for name, value in values.items():
        if name not in keys:
            inner = {key.partition(".")[2] for key in keys if key.startswith(f"{name}.")}
            kept[name] = without(value, inner) if inner and isinstance(value, dict) else value
    return kept


def difference(old: Any, new: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key → "key: old → new" for every value in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: dict[str, str] = {}
        for key in old | new:
            inner = f"{prefix}.{key}" if prefix else str(key)
            lines |= difference(old.get(key), new.get(key), inner)
        return lines
    return {} if old == new else {prefix: f"{prefix}: {old} → {new}"}


def places(data: dict) -> set[str]:
    """Dotted keys on which no result depends: where a run and its `data` lie, and the device."""
    paths = signatures.path_parameters(str(data.get("_target_")))
    return noted(TrainConfig, PLACE) | {f"data.{name}" for name in paths}


def resumable(data: dict) -> set[str]:
    """Dotted keys that may change when a run on this `data` is resumed."""
    return noted(TrainConfig, ON_RESUME) | places(data)


def not_of_the_recipe(data: dict) -> set[str]:
    """Dotted keys that are not part of the recipe of a run on this `data`, such as its seed."""
    return noted(TrainConfig, NOT_RECIPE) | places(data)


def over_seeds(settings: list[TrainConfig]) -> list[list[int]]:
    """Positions of runs that have the same recipe and different seeds, one of each seed: a list for
    every recipe with several.
    """
    groups: dict[str, dict[int, int]] = {}
    for position, config in enumerate(settings):
        recipe = without(config.model_dump(), not_of_the_recipe(config.data))
        groups.setdefault(yaml.safe_dump(recipe), {}).setdefault(config.seed, position)
    return [list(positions.values()) for positions in groups.values() if len(positions) > 1]


def dump(config: BaseModel) -> str:
    """A checked config as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def parse(text: str, where: str) -> dict:
    """The plain values of a saved training config, in which nothing is resolved or run. Keys that
    it lacks, because they are newer, get the value that was in force without them. Its key trust is
    ignored.
    """
    try:
        if unfolds_to_too_much(text):
            raise ValueError("it expands to more than a config")
        values = yaml.safe_load(text)
        refuse_long_numbers(values)
    except Exception as error:  # a tag such as !!timestamp makes PyYAML raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: its config is not valid YAML ({reason})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: its config is not a mapping of keys")
    values.pop("trust", None)
    in_force = yaml.safe_load((config_dir() / "train.yaml").read_text(encoding="utf-8"))
    del in_force["defaults"]
    for name, field in Training.model_fields.items():
        if not field.is_required():
            in_force["train"][name] = field.default
    return overlay(in_force, values)


def unfolds_to_too_much(text: str) -> bool:
    """Whether the YAML would take minutes to read, for its length or its brackets, or gigabytes,
    for aliases of lists of aliases.
    """
    if len(text) > LONGEST_CONFIG or len(re.findall(r"[\[{]", text)) > MOST_BRACKETS:
        return True
    if "*" not in text:
        return False
    aliases = [event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)]
    return len(aliases) > MOST_ALIASES


def refuse_long_numbers(values: Any) -> None:
    """ValueError for an integer beyond 64 bits, which YAML can write in a few characters."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            refuse_long_numbers(value)
    elif isinstance(values, int) and abs(values) >= 2**64:
        raise ValueError("a number in it is too large")


def group_nodes(group: str) -> dict[str, dict]:
    """The nodes of a group's configs by name: the program's own and, over them, those of
    --config-dir.
    """
    folders = [config_dir()]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [Path(source.path) for source in sources if source.provider == "command-line"]
    nodes: dict[str, dict] = {}
    for folder in folders:
        for file in sorted((folder / group).glob("*.yaml")):
            with reporting_yaml_errors(file):
                nodes[file.stem] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return nodes


@contextlib.contextmanager
def reporting_yaml_errors(file: Path) -> Iterator[None]:
    """Within the context, what is not YAML is refused by the name of its file."""
    try:
        yield
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
