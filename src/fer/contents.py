"""What a checkpoint file holds: its schema, and checks of the tensors in it.

A file may have been edited, or made to do harm: every fault is one line that names the file.
"""

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fer import Normalization, UserError, __version__

FORMAT = 1  # raised when an older version could not read it
OTHER_ONE = "use the run's other one (best.pt, last.pt)"  # in place of a damaged one
NUMBERS = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
}
DEEPEST = 100  # mappings and lists in one another
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Part of a checkpoint. Keys of newer versions are let through."""

    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True)


class NormalizationPart(Part):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Normalization
    mean: Finite
    std: Annotated[Finite, Field(gt=0)]


class ValidationPart(Part):
    """The predictions of the best weights: logits N×classes and labels N of the validation faces,
    and the hash of their images, which earlier versions did not save.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    images: str | None = None


class HistoryRow(Part):
    """An epoch. It also has recalls and the quantities that curves drive."""

    epoch: Whole
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: Share
    val_macro_f1: float
    seconds: Finite
    images_per_second: float


class OptimizerPart(Part):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class TrainingPart(Part):
    """What a resume needs besides weights. steps: of an epoch. faces: SHA-256 of the training and
    validation faces. Earlier versions saved no faces, steps, scaler and format, and sums in place
    of a record.
    """

    epoch: Whole
    step: Whole
    steps: Whole | None = None
    seconds: Annotated[Finite, Field(ge=0)]
    history: list[HistoryRow]
    optimizer: OptimizerPart
    record: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    faces: str | None = None
    computed_in: str | None = None
    scaler: dict | None = None
    average: dict | None = None


class Contents(Part):
    """A checkpoint. Only last.pt has training; only best.pt has epoch, val_accuracy and validation.
    face_size: pixels of a side of the training faces. training_faces, training_thumbnails: their
    hashes, and those in the checkpoint that training started from. Earlier versions did not save
    these three.
    """

    format: int
    config: str
    classes: list[str]
    normalization: NormalizationPart
    model: dict
    version: str = ""
    face_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    epoch: Whole | None = None
    val_accuracy: Share | None = None
    validation: ValidationPart | None = None
    training_faces: torch.Tensor | None = None
    training_thumbnails: torch.Tensor | None = None
    training: TrainingPart | None = None


def read_contents(path: Path, if_damaged: str = OTHER_ONE) -> dict:
    """The contents of a checkpoint file, checked, on the CPU; UserError for anything else.

    if_damaged: what to do then.
    """
    contents = unpickle(path, if_damaged)
    if not isinstance(contents, dict):
        contents = {}
    number = contents.get("format")
    if type(number) is int and number > FORMAT:
        raise UserError(
            f"{path}: written by fer {contents.get('version')}, newer than this {__version__}; "
            "upgrade fer"
        )
    check_schema(path, contents)
    try:
        tensors = list(tensors_of(contents))
    except RecursionError:
        raise UserError(f"{path}: damaged or changed, its values are nested too deeply") from None
    if not all(is_stored(tensor) for tensor in tensors):
        raise UserError(
            f"{path}: damaged, a tensor is larger than what the file holds of it, or of another "
            "kind than ours"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors_of(contents["model"])):
        raise UserError(
            f"{path}: its weights hold NaN or infinity, so it cannot label anything; use another "
            "checkpoint, or train again with a lower optim.lr"
        )
    if not are_classes(contents["classes"]):
        raise UserError(f"{path}: damaged or changed, its classes are not distinct, short names")
    if "validation" in contents:
        check_validation(path, contents["validation"], len(contents["classes"]))
    if "training" in contents:
        check_training(path, contents["training"])
    for key in ("training_faces", "training_thumbnails"):
        hashes = contents.get(key)
        if hashes is not None and (hashes.dtype != torch.int64 or hashes.ndim != 1):
            raise UserError(f"{path}: damaged or changed, its {key} are not hashes")
    return contents


def unpickle(path: Path, if_damaged: str) -> Any:
    """What torch reads from the file, plain values and tensors only."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch compresses nothing, so a file that unpacks to more than its size is a bomb.
            bomb = sum(entry.file_size for entry in entries) > path.stat().st_size
            # Of an entry that claims to be a folder torch leaves the tensor unset.
            hollow = any(entry.external_attr & 0x10 for entry in entries)
            if bomb or hollow or archive.testzip():
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):  # about what a foreign file holds
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than weights and plain values; not loaded, it could run code"
        ) from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # zipfile and torch raise a dozen kinds
        raise UserError(f"{path}: damaged, or not a checkpoint; {if_damaged}") from None


def check_schema(path: Path, contents: dict) -> None:
    try:
        Contents.model_validate(contents)
    except ValidationError as errors:
        first = errors.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].replace("Input should", "should")
        if first["type"] == "missing":
            said = "is missing"
        if first["loc"][0] == "training":
            what = "its training state does not fit its config; the file was changed"
        else:
            what = "a torch file, but not one of fer's checkpoints, or the file was changed"
        raise UserError(f"{path}: {what} ({key}: {said})") from None


def are_classes(names: list[str]) -> bool:
    """Are they different names that can be printed?"""
    short = all(0 < len(name) <= 100 and name.isprintable() for name in names)
    return short and 1 <= len(names) <= 1000 and len(set(names)) == len(names)


def check_validation(path: Path, validation: dict, classes: int) -> None:
    logits, labels = validation["logits"], validation["labels"]
    fit = logits.is_floating_point() and labels.dtype == torch.int64
    fit = fit and logits.ndim == 2 and labels.ndim == 1 and len(logits) == len(labels)
    fit = fit and bool(logits.isfinite().all())
    if fit and len(logits):
        fit = logits.shape[1] == classes and set(labels.tolist()) <= set(range(classes))
    if not fit:
        raise UserError(
            f"{path}: not one of fer's checkpoints, or the file was changed (validation: logits "
            "and labels do not fit)"
        )


def check_training(path: Path, training: dict) -> None:
    history = training["history"]
    numbers = [row["epoch"] for row in history]
    if numbers != list(range(1, training["epoch"] + 1)):
        raise UserError(
            f"{path}: its training state does not fit its config; the file was changed "
            f"(training.history: its epochs should be 1 to {training['epoch']})"
        )


def tensors_of(contents: object, depth: int = 0) -> Iterator[torch.Tensor]:
    """All tensors within nested mappings and lists. Raises RecursionError where these are nested
    deeper than in any checkpoint of ours.
    """
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(contents, torch.Tensor):
        yield contents
    elif isinstance(contents, Mapping):
        for value in contents.values():
            yield from tensors_of(value, depth + 1)
    elif isinstance(contents, list | tuple):
        for value in contents:
            yield from tensors_of(value, depth + 1)


def is_stored(tensor: torch.Tensor) -> bool:
    """Whether it is a plain tensor whose every element the file holds. Strides of 0 repeat one
    10^10 times, which fills the memory once it is used; no checkpoint of ours has sparse, quantized
    or complex tensors, floats of 8 bits, or tensors without data.
    """
    if tensor.dtype not in NUMBERS:
        return False
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
