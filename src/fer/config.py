"""What a command may be told: schemas, checks that name the key and the remedy, and build().

Types and limits stand here and in the signatures that `_target_` names; values stand in configs/.
Only build() turns a `_target_` into an object. Knows Hydra's files, not its command line, which is
launch.py's.
"""

import contextlib
import difflib
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Required, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from typing_extensions import is_typeddict

from fer import CLASSES, FilePath, Precision, UserError, config_dir, nearest

Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def device_name(name: object) -> str:
    """A name of a device, or ValueError; whether it is there, the machine knows."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError("should be auto, cpu, mps, cuda or, of several GPUs, one as cuda:1")
    return name


Device = Annotated[str, BeforeValidator(device_name)]
LARGEST_FLOAT = 3.4028234663852886e38  # of float32
Picture = Literal["png", "svg", "pdf"]
Views = Literal["none", "flip", "tencrop"]
Crop = Literal["face", "whole"]  # of a photo
FaceShare = Annotated[
    float, Field(ge=0.01, le=1)
]  # below, a photo is searched at 2,400 pixels and more
Typed = dict | None  # of `data` only what was typed; the rest comes from the checkpoint

# Where the `_target_` of each group may point: this project's own code and torch's optimizers. What
# a run folder from elsewhere names is code that someone else chose.
TARGETS = {
    "data": ("fer.data.",),
    "model": ("fer.models.",),
    "augment": ("fer.augment.",),
    "optim": ("torch.optim.", "fer.optim."),
    "schedule": ("fer.schedule.",),
}
MAKES = {
    "data": "splits",
    "model": "size",
    "augment": "zoom_axes",
    "optim": "param_groups",
    "schedule": "waits",
}
WORDS = {
    "Value error, ": "",
    "Input should be ": "should be ",
    "List should have": "should have",
    " or should be ": " or ",
    " after validation": "",
    "a valid dictionary": "a mapping, such as {_target_: …}",
    "Extra inputs are not permitted": "a mapping of other keys",
}  # pydantic's → ours


class UnknownKeyError(UserError):
    """A `key`, dotted, that there is not, and nothing near it beside it."""

    def __init__(self, key: str, remedy: str):
        super().__init__(f"{key}: no such key; {remedy}")
        self.key = key


LONGEST_CONFIG = (
    100_000  # characters; PyYAML takes half a minute for a megabyte, and a config of ours has 3,000
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Training(Strict):
    """The block `train`. A default is what the absence of the key means, in a recipe and in an old
    run: a new key's default is what was done before there was one.
    """

    epochs: Count
    batch_size: Count
    patience: Count | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision = "auto"
    cuda_graphs: bool = True
    compile: bool = False
    channels_last: bool = True
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    copies: Literal["keep", "drop"] = "keep"
    tencrop: bool = False


class TrainConfig(Strict):
    name: str
    run: FilePath | None
    resume: FilePath | None
    start: FilePath | None
    seed: Seed
    deterministic: bool
    device: Device
    tensorboard: bool
    profile: bool
    train: Training
    data: dict
    model: dict
    augment: dict
    optim: dict
    schedule: dict
    curves: dict[str, dict | None]  # once checked, without those that are off


class CurvesConfig(TrainConfig):
    out: FilePath


class SelftrainConfig(TrainConfig):
    out: FilePath
    shares: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
    rounds: Count
    portion: Annotated[float, Field(gt=0, le=1)]
    clusters: Count
    format: Picture


class MislabelsConfig(TrainConfig):
    out: FilePath
    folds: Annotated[int, Field(ge=2)]
    samples: Count
    format: Picture


class PredictConfig(Strict):
    ckpt: FilePath | list[FilePath] | None
    tta: Views
    select: Literal["uniform", "greedy"]
    split: str | None
    input: FilePath | None
    crop: Crop
    smallest: FaceShare
    out: FilePath | None
    columns: Annotated[list[str], Field(max_length=2)]
    sample: FilePath | None
    probs: FilePath | None
    device: Device
    batch_size: Count
    data: Typed = None


class EvaluateConfig(Strict):
    ckpt: FilePath | list[FilePath] | None
    split: str | None
    tta: Views
    select: Literal["uniform", "greedy"] | None
    device: Device
    batch_size: Count
    data: Typed = None


class ReportConfig(Strict):
    run: FilePath | list[FilePath] | None
    out: FilePath | None
    samples: Count
    seed: Seed
    format: Picture
    data: Typed = None


class ExplainConfig(Strict):
    ckpt: FilePath | None
    show: Annotated[
        list[Literal["saliency", "ideal_faces", "kernels", "filters"]], Field(min_length=1)
    ]
    image: FilePath | list[int | str] | None
    crop: Crop
    smallest: FaceShare
    split: str
    target: Annotated[str, BeforeValidator(lambda v: "true" if v is True else v)]
    threshold: Annotated[float, Field(ge=0, le=1)]
    layers: str | list[str] | None
    out: FilePath | None
    format: Picture
    device: Device
    seed: Seed
    data: Typed = None


class InspectConfig(Strict):
    data: dict
    out: FilePath
    samples: Count
    seed: Seed
    near: Annotated[float, Field(gt=0, lt=1)] | None
    format: Picture


class ExportConfig(Strict):
    ckpt: FilePath | None
    format: Literal["onnx", "torch_export"]
    out: FilePath | None


class DownloadConfig(Strict):
    source: str
    out: FilePath


class SummaryConfig(TrainConfig):
    models: Annotated[list[str], Field(min_length=1)] | None
    match: str | None


COMMANDS: tuple[type[Strict], ...] = (
    *(
        TrainConfig,
        CurvesConfig,
        SelftrainConfig,
        MislabelsConfig,
        PredictConfig,
        EvaluateConfig,
        ReportConfig,
    ),
    *(ExplainConfig, InspectConfig, ExportConfig, DownloadConfig, SummaryConfig),
)
SCHEMAS = {schema.__name__.removesuffix("Config").lower(): schema for schema in COMMANDS}


def check(command: str, values: dict) -> Any:
    """The composed values as the command's schema, every `_target_` node completed by its
    signature's defaults.

    Raises UserError naming the key and the remedy.
    """
    config = validate(SCHEMAS[command], values)
    for group in TARGETS:
        node = getattr(config, group, None)
        if node and "_target_" in node:
            setattr(config, group, check_node(group, node))
        elif isinstance(config, TrainConfig):
            raise UserError(f"{group}: no choice made; choose one: {group}=NAME")
    if isinstance(config, TrainConfig):
        check_training(config)
    if (
        isinstance(config, TrainConfig | SummaryConfig)
        and config.name == "torchvision"
        and "name" in config.model
    ):
        config.name = config.model["name"]  # as its network is called
    return config


def check_training(config: TrainConfig) -> None:
    """What a schema cannot say of one key alone."""
    curves = {name: node for name, node in config.curves.items() if node}
    config.curves = {
        name: check_node("schedule", node, f"curves.{name}") for name, node in curves.items()
    }
    epochs = config.train.epochs
    nodes = {"schedule": config.schedule} | {
        f"curves.{name}": node for name, node in config.curves.items()
    }
    for key, node in nodes.items():
        warmup = (node or {}).get("warmup", 0)
        if warmup > epochs:
            raise UserError(
                f"{key}.warmup={warmup}: longer than the training; set it to train.epochs={epochs} "
                "or less"
            )
    if not 0 < len(config.name) <= 100 or not config.name.isprintable():
        raise UserError(
            f"name={config.name[:100]!r}: should be 1 to 100 characters that can be printed"
        )
    if re.search(r"[/\\]", config.name) and not (config.run or config.resume):
        raise UserError(
            f"name={config.name}: would name a folder elsewhere; leave the slashes out, or set run="
        )
    if "classes" in config.model:
        classes = config.data.get("classes", len(CLASSES))
        if config.model["classes"] not in (len(CLASSES), classes):
            raise UserError(
                f"model.classes={config.model['classes']}: the data has {classes}; leave it out"
            )
        config.model["classes"] = classes
    for key in path_parameters("data", config.data):
        if place := config.data.get(key):
            with contextlib.suppress(RuntimeError):  # ~ of nobody
                config.data[key] = str(Path(place).expanduser().absolute())  # found from any folder


@dataclass(frozen=True)
class PathKey:
    """That a key's value is a path, and whether it may be a list of them, or of something else."""

    listed: bool


def path_key(annotation: Any) -> PathKey | None:
    """What the type of a key says of paths; nothing where it holds none."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        return PathKey(listed=False) if "path" in notes else path_key(inner)
    kinds = [path_key(kind) for kind in get_args(annotation)]
    if get_origin(annotation) is list or not any(kinds):
        return None
    return PathKey(listed=any(get_origin(kind) is list for kind in get_args(annotation)))


def path_keys(command: str, group: str = "", user_dir: str | None = None) -> dict[str, PathKey]:
    """The command's own keys that are paths, by their types in its schema, and those of `group`, by
    the signatures that its configs name. A signature is only read, of targets that are this
    project's own.
    """
    found = {}
    for key, annotation in get_type_hints(SCHEMAS[command], include_extras=True).items():
        if own := path_key(annotation):
            found[key] = own
    if group in TARGETS:
        for root in dict.fromkeys([config_dir(), Path(user_dir or config_dir())]):
            for file in sorted((root / group).glob("*.yaml")):
                node: Any = None
                with contextlib.suppress(
                    OSError, ValueError, yaml.YAMLError
                ):  # which Hydra refuses, where it is chosen
                    node = yaml.safe_load(file.read_text(encoding="utf-8"))
                if isinstance(node, dict) and "_target_" in node:
                    with contextlib.suppress(UserError):
                        own_keys = path_parameters(group, node)
                        found |= {f"{group}.{name}": key for name, key in own_keys.items()}
    return found


def path_parameters(group: str, node: dict) -> dict[str, PathKey]:
    """The keys of a `_target_` node that are paths."""
    fn, _ = target(group, node, group)
    parameters = inspect.signature(fn, eval_str=True).parameters
    found = {name: path_key(parameter.annotation) for name, parameter in parameters.items()}
    return {name: key for name, key in found.items() if key}


def check_node(group: str, node: dict, key: str = "") -> dict:
    """A `_target_` node with its keys checked against the target's signature and the defaults
    filled in. `key`: where it stands, if not at `group`.
    """
    key = key or group
    if "_target_" not in node:
        raise UserError(f"{key}: names no _target_; choose one")
    fn, given = target(group, node, key)
    parameters = dict(inspect.signature(fn, eval_str=True).parameters)
    if group == "optim" and not parameters.pop(
        "params", None
    ):  # which the program gives, not the config
        raise UserError(f"{key}._target_={node['_target_']}: refused; it takes no params")
    empty = inspect.Parameter.empty
    fields: dict[str, Any] = {
        name: (
            Any if p.annotation is empty else p.annotation,
            ... if p.default is empty else p.default,
        )
        for name, p in parameters.items()
    }
    checked = validate(
        create_model(fn.__name__, __base__=Strict, **fields), given, prefix=f"{key}."
    ).model_dump()
    return {"_target_": node["_target_"]} | json.loads(
        json.dumps(checked)
    )  # tuples become lists, as YAML has them


def target(group: str, node: dict, key: str) -> tuple[Any, dict]:
    """The class or function that a node's `_target_` names, refused unless it is one of the group's
    own, and what the node gives it.
    """
    path, own = node["_target_"], TARGETS[group]
    if not isinstance(path, str) or not path.startswith(own):
        raise UserError(f"{key}._target_={path}: refused; this project's own start with {own[0]}")
    module, _, name = path.rpartition(".")
    try:
        fn = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(f"{key}._target_={path}: there is no such class or function") from None
    if not callable(fn) or name.startswith("_") or not f"{fn.__module__}.".startswith(own):
        raise UserError(
            f"{key}._target_={path}: refused; it is not one of this project's {group} targets"
        )
    return fn, {name: value for name, value in node.items() if name != "_target_"}


def build(group: str, node: dict, key: str = "", **provided: Any) -> Any:
    """The object that a checked node describes. Values that the target itself refuses raise
    UserError, named after `key`, where the node stands, or else the group.
    """
    key = key or group
    fn, given = target(group, node, key)
    try:
        made = fn(**given, **provided)
    except NotImplementedError:  # a RuntimeError, of torch's meta device
        raise
    except (
        ValueError,
        RuntimeError,
    ) as error:  # torch refuses sizes and memory with a RuntimeError
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    if not hasattr(made, MAKES[group]):
        raise UserError(f"{key}._target_={node['_target_']}: refused; it makes no {group}")
    return made


def validate(schema: type[BaseModel], values: dict, prefix: str = "") -> Any:
    """`values` as an instance of `schema`; UserError for the first key that does not fit."""
    known(schema, values, prefix)
    try:
        checked = schema.model_validate(values)
        computable(checked.model_dump(), prefix)
        return checked
    except ValidationError as errors:
        found = [(*locate(values, error["loc"]), error) for error in errors.errors()]
    where, value, first = found[0]
    refuse_layer(schema, where, value, prefix)
    if first["type"] == "missing":
        raise UserError(f"{prefix}{where or first['loc'][-1]}: a value is missing")
    wrong = [
        error["msg"] for place, _, error in found if place == where and error["type"] != "missing"
    ]
    wrong = [
        words for words in wrong if "an instance of" not in words
    ] or wrong  # no typed value is a Tensor
    said = " or ".join(dict.fromkeys(wrong))
    for pydantics, ours in WORDS.items():
        said = said.replace(pydantics, ours)
    raise UserError(f"{prefix}{where}={value}: {said}"[:400])


def computable(values: Any, where: str) -> None:
    """Refuse numbers that the machine does not have: floats that are not finite in float32,
    integers of more than 64 bits. `where`: the key, of a mapping or list with a dot behind it.
    """
    if isinstance(values, dict | list | tuple):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            inside = "." if isinstance(value, dict | list | tuple) else ""
            computable(value, f"{where}{key}{inside}")
    elif isinstance(values, float) and not abs(values) <= LARGEST_FLOAT:  # NaN too
        raise UserError(
            f"{where}={values:g}: should be a finite float32, up to {LARGEST_FLOAT:.2g}"
        )
    elif isinstance(values, int) and abs(values) >= 2**63:
        raise UserError(
            f"{where}={values:.3g}: more than 64 bits hold; should be below {2**63:.2g}"
        )


def refuse_layer(schema: type[BaseModel], where: str, value: Any, prefix: str) -> None:
    """Refuse a `value` in a list of layers, `where` is features.3 say, with the layers that may
    stand there. Returns where no layers stand, and for a number.
    """
    name = where.partition(".")[0]
    words, mappings = (
        layers(schema.model_fields[name].annotation) if name in schema.model_fields else ([], {})
    )
    if not mappings or not isinstance(value, str | dict):
        return
    lead = next((key for key in mappings if key in value), None)
    if isinstance(value, str) or not lead:
        there = [*words, *(f"{{{key}: …}}" for key in mappings), "a number of filters or units"]
        known = nearest(value, there) if isinstance(value, str) else f"there are {', '.join(there)}"
        raise UserError(f"{prefix}{where}={value}: no such layer; {known}")
    fields: dict[str, Any] = {}
    for key, kind in get_type_hints(mappings[lead], include_extras=True).items():
        required = get_origin(kind) is Required
        fields[key] = (get_args(kind)[0], ...) if required else (kind, None)
    validate(create_model(f"{{{lead}: …}}", __base__=Strict, **fields), value, f"{prefix}{where}.")


def layers(annotation: Any) -> tuple[list[str], dict[str, Any]]:
    """The words of a list of layers, and the types of its mappings by their first key; none, of
    another list.
    """
    words: dict[str, None] = {}
    mappings: dict[str, Any] = {}
    waiting = list(get_args(annotation)) if get_origin(annotation) is list else []
    while waiting:
        kind = waiting.pop(0)
        if get_origin(kind) is Literal:
            words |= dict.fromkeys(get_args(kind))
        elif is_typeddict(kind):
            mappings[next(iter(kind.__annotations__))] = kind
        elif get_origin(kind) in (Union, UnionType):
            waiting = [*get_args(kind), *waiting]
    return list(words), mappings


def known(schema: type[BaseModel], values: dict, prefix: str) -> None:
    """Refuse a key that the schema does not have, with the nearest that stands beside it or in a
    schema within.
    """
    fields = schema.model_fields
    within: dict[str, Any] = {
        name: f.annotation for name, f in fields.items() if hasattr(f.annotation, "model_fields")
    }
    for key in values:
        if key not in fields:
            inside = [
                f"{name}.{key}" for name, inner in within.items() if key in inner.model_fields
            ]
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.7) or inside
            if near:
                raise UserError(f"{prefix}{key}: no such key; did you mean {prefix}{near[0]}?")
            raise UnknownKeyError(
                f"{prefix}{key}", f"{prefix.rstrip('.') or 'this command'} has {', '.join(fields)}"
            )
    for name, inner in within.items():
        if isinstance(values.get(name), dict):
            known(inner, values[name], f"{prefix}{name}.")


def locate(values: Any, loc: tuple) -> tuple[str, Any]:
    """The part of a pydantic location that is a path into `values` (the rest names union members),
    and its value.
    """
    path = []
    for part in loc:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        path.append(str(part))
    return ".".join(path), values


def overlay(base: Any, top: Any) -> Any:
    """`base` with the values of `top` laid over it, key by key; a `_target_` in `top` replaces the
    whole node.
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


def dump(config: BaseModel) -> str:
    """A checked config as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def over_seeds(settings: list[TrainConfig]) -> list[list[int]]:
    """Positions of trainings that differ in nothing but the seed, one a seed: a list for each
    recipe with several.
    """
    groups: dict[str, dict[int, int]] = {}
    for position, own in enumerate(settings):
        recipe = dump(own.model_copy(update={"seed": 0, "run": None, "resume": None}))
        groups.setdefault(recipe, {}).setdefault(own.seed, position)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def parse(text: str, where: str) -> dict:
    """The plain values of a saved training config; nothing in it is interpolated or executed. Keys
    that it lacks, because they are newer, get the value that was in force without them.
    """
    try:
        if bloated(text):
            raise ValueError("it unfolds to more than a config")
        values = yaml.safe_load(text)
        check_numbers(values)
    except Exception as error:  # a tag such as !!timestamp makes PyYAML raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: its config is not valid YAML ({reason})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: its config is not a mapping of keys")
    root = yaml.safe_load((config_dir() / "train.yaml").read_text(encoding="utf-8"))
    in_force = {key: value for key, value in root.items() if key != "defaults"}
    for name, field in Training.model_fields.items():
        if not field.is_required():
            in_force["train"][name] = field.default
    return overlay(in_force, values)


def check_numbers(values: Any) -> None:
    """ValueError for a whole number beyond 64 bits, which YAML can write in a few characters."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            check_numbers(value)
    elif isinstance(values, int) and abs(values) >= 2**64:
        raise ValueError("a number in it is too large")


def bloated(text: str) -> bool:
    """Would the YAML take minutes to read, for its brackets, or gigabytes, for aliases of lists of
    aliases?
    """
    if len(text) > LONGEST_CONFIG or len(re.findall(r"[\[{]", text)) > 1000:
        return True
    return "*" in text and sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > 9


def group_nodes(group: str) -> dict[str, dict]:
    """The nodes of a group's configs by name: the program's own and, over them, those of
    --config-dir.
    """
    folders = [config_dir()]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders += [Path(source.path) for source in sources if source.provider == "command-line"]
    files = [file for folder in folders for file in sorted((folder / group).glob("*.yaml"))]
    nodes: dict[str, dict] = {}
    for file in files:
        with blame_yaml(file):
            nodes[file.stem] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return nodes


@contextlib.contextmanager
def blame_yaml(file: Path) -> Iterator[None]:
    """Within the context what is no YAML is refused by the name of its file."""
    try:
        yield
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read as YAML ({str(error).splitlines()[0]})") from None


def vet(folder: Path) -> None:
    """Refuse configs from others that would do more than choose values: Hydra's own settings can
    run code, a defaults list or a link can leave the folder.
    """
    for file in sorted(folder.rglob("*")):
        text, values, doubtful = "", None, file.is_symlink() and file.is_dir()
        with contextlib.suppress(
            Exception
        ):  # what is no YAML, Hydra will refuse too, where it is chosen
            text = file.read_text(encoding="utf-8") if file.suffix == ".yaml" else ""
            doubtful |= bloated(text)
            values = (
                OmegaConf.to_container(OmegaConf.load(file), resolve=False)
                if text and not doubtful
                else None
            )
        values = values if isinstance(values, dict) else {}
        places = str([*re.findall(r"@package.*", text), values.get("defaults")])
        if doubtful or "hydra" in values or re.search(r"hydra|\.\.|\$", places):
            raise UserError(
                f"{file}: refused; it sets Hydra's own keys, has .. or $ in its defaults, links to "
                "a folder or unfolds "
                "to more than a config; type the keys, or move it away"
            )


def difference(old: Any, new: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key → "key: old → new" for every value in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in old | new:
            found |= difference(
                old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key)
            )
        return found
    return {} if old == new else {prefix: f"{prefix}: {old} → {new}"}
