"""The keys of every command: their types, their limits, and notes on what a key means.

configs/ has the values. The keys of a `_target_` are in its signature.
"""

import contextlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fer import Precision


def expand_home(path: str) -> str:
    """The path with its `~` expanded: shells do not expand it within quotes, nor does zsh after an
    equals sign. Otherwise a folder named ~ would be made.
    """
    if path == "~" or path.startswith("~/"):
        with contextlib.suppress(RuntimeError):  # no home
            return str(Path(path).expanduser())
    return path


FilePath = Annotated[str, "path", AfterValidator(expand_home)]  # see fer.FilePath

# Notes on a field, next to its type.
PLACE = "where a run is stored, or what it runs on; the result does not depend on it"
ON_RESUME = "may change when a run is resumed"
NOT_RECIPE = "runs that differ only in it have the same recipe"
LABEL = "what the user calls a run"


def device_name(name: object) -> str:
    """Check the form of a device name. Whether the machine has the device is checked later."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError("should be auto, cpu, mps, cuda, or one of several GPUs, such as cuda:1")
    return name


def true_as_word(value: object) -> object:
    """Turn YAML's boolean `true` back into the word."""
    return "true" if value is True else value


def module_names(value: object) -> object:
    """`trust=mylab` means `trust=[mylab]`."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list):
        for name in names:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", name):
                raise ValueError("should be names of Python modules, such as [mylab]")
    return names


Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Annotated[str, BeforeValidator(device_name)]
Picture = Literal["png", "svg", "pdf"]
Views = Literal["none", "flip", "tencrop"]
Selection = Literal["uniform", "greedy"]  # of the weights of an ensemble
Crop = Literal["face", "whole"]  # of a photo
FaceShare = Annotated[float, Field(ge=0.01, le=1)]  # below, photos are searched at 3,200 pixels
DataNode = dict | None  # what was typed for `data`; the rest comes from the checkpoint
# Modules whose code a checkpoint may use. Never saved: only the user at the command line can trust.
Trust = Annotated[list[str], BeforeValidator(module_names), Field(exclude=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())


class Training(Strict):
    """The block `train`. Where a recipe or an old run lacks a key, the default applies, so the
    default of a new key must be the behaviour from before it existed.
    """

    epochs: Annotated[Count, ON_RESUME]
    batch_size: Count
    patience: Annotated[Count | None, ON_RESUME] = None
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
    backbone_lr: Annotated[float, Field(gt=0)] | None = None
    freeze: Annotated[int, Field(ge=0, lt=2**63)] = 0


class TrainConfig(Strict):
    name: Annotated[str, LABEL]
    run: Annotated[FilePath | None, PLACE]
    resume: Annotated[FilePath | None, PLACE]
    start: FilePath | None
    trust: Trust = []
    seed: Annotated[Seed, NOT_RECIPE]
    deterministic: Annotated[bool, NOT_RECIPE]
    device: Annotated[Device, PLACE]
    tensorboard: Annotated[bool, NOT_RECIPE]
    profile: Annotated[bool, NOT_RECIPE]
    train: Training
    data: dict
    model: dict
    augment: dict
    optim: dict
    schedule: dict
    curves: dict[str, dict | None]  # after the checks, without those that are off


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


class InferenceConfig(Strict):
    """The keys of commands that label a split with one or several networks."""

    ckpt: FilePath | list[FilePath] | None
    trust: Trust = []
    split: str | None
    tta: Views
    device: Device
    batch_size: Count
    data: DataNode = None


class PredictConfig(InferenceConfig):
    select: Selection
    input: FilePath | Annotated[int, Field(ge=0)] | None  # the number of a camera
    crop: Crop
    smallest: FaceShare
    ema: Annotated[float, Field(ge=0, lt=1)]
    out: FilePath | None
    columns: Annotated[list[str], Field(max_length=2)]
    sample: FilePath | None
    probs: FilePath | None


class EvaluateConfig(InferenceConfig):
    select: Selection | None


class ReportConfig(Strict):
    run: FilePath | list[FilePath] | None
    trust: Trust = []
    out: FilePath | None
    samples: Count
    seed: Seed
    format: Picture
    data: DataNode = None


class ExplainConfig(Strict):
    ckpt: FilePath | None
    trust: Trust = []
    show: Annotated[
        list[Literal["saliency", "ideal_faces", "kernels", "filters"]], Field(min_length=1)
    ]
    image: FilePath | list[int | str] | None
    crop: Crop
    smallest: FaceShare
    split: str
    target: Annotated[str, BeforeValidator(true_as_word)]
    threshold: Annotated[float, Field(ge=0, le=1)]
    layers: str | list[str] | None
    filters: Count | None
    out: FilePath | None
    format: Picture
    device: Device
    seed: Seed
    data: DataNode = None


class InspectConfig(Strict):
    data: dict
    out: FilePath
    samples: Count
    seed: Seed
    near: Annotated[float, Field(gt=0, lt=1)] | None
    format: Picture


class ExportConfig(Strict):
    ckpt: FilePath | None
    trust: Trust = []
    format: Literal["onnx", "torch_export"]
    out: FilePath | None


class AppConfig(Strict):
    ckpt: FilePath | list[FilePath] | None
    trust: Trust = []
    smallest: FaceShare
    port: Annotated[int, Field(ge=1024, le=65535)]
    device: Device


class DownloadConfig(Strict):
    source: str
    out: FilePath


class SummaryConfig(TrainConfig):
    models: Annotated[list[str], Field(min_length=1)] | None
    match: str | None


SCHEMAS: dict[str, type[Strict]] = {
    "train": TrainConfig,
    "curves": CurvesConfig,
    "selftrain": SelftrainConfig,
    "mislabels": MislabelsConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "explain": ExplainConfig,
    "inspect": InspectConfig,
    "app": AppConfig,
    "export": ExportConfig,
    "download": DownloadConfig,
    "summary": SummaryConfig,
}


def noted(schema: type[BaseModel], *notes: str) -> set[str]:
    """Dotted keys of the schema, and of nested schemas, whose field has one of the notes."""
    keys: set[str] = set()
    hints: dict[str, Any] = get_type_hints(schema, include_extras=True)
    for name, field in schema.model_fields.items():
        if set(notes) & set(getattr(hints[name], "__metadata__", ())):
            keys.add(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= {f"{name}.{inner}" for inner in noted(field.annotation, *notes)}
    return keys
