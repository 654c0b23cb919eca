"""Checkpoints, best.pt and last.pt: found, written self-describing, and opened.

Knows configs, networks and the data that a config names; what a file may hold is contents.py's.
"""

import contextlib
import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fer import CLASSES, FACE_SIZE, UserError, __version__, class_names, config, layer_table
from fer.contents import FORMAT, OTHER_ONE, read_contents
from fer.data.faces import Data, Faces
from fer.data.readers.cache import available_memory
from fer.data.readers.classes import find_class
from fer.files import regular, write
from fer.models.network import CPU_BATCH, Network, Normalize
from fer.run import newest, runs

OF_ITS_CONFIG = "the model of its config; the file was changed"

BUILTIN = "builtin"  # names the network that the package carries
BUILTIN_MODEL = "resnet_fast"  # its model=
BUILTIN_FILE = Path(__file__).with_name("builtin.pt")


@dataclass(frozen=True)
class Checkpoint:
    """What a best.pt or last.pt holds, and its config, checked like one that was typed."""

    path: Path
    contents: dict[str, Any]
    settings: config.TrainConfig

    @classmethod
    def open(cls, path: Path, trust: Sequence[str] = ()) -> "Checkpoint":
        """trust: modules whose code its config may name besides this project's own."""
        contents = load_checkpoint(path)
        values = saved_config(contents["config"], contents, path)
        with reporting_config_errors(path):
            saved = config.check("train", values, trust)
            settings = settings_in_force(path, contents, saved, trust)
            check_outputs(settings.model, contents["classes"])
        return cls(path, contents, settings)

    @property
    def folder(self) -> Path:
        """The run folder, for what commands add to it; the built-in network has one of its own."""
        return Path("runs", BUILTIN) if self.path == BUILTIN_FILE else self.path.parent

    @property
    def name(self) -> str:
        return name_of(self.path)

    @property
    def classes(self) -> list[str]:
        return self.contents["classes"]

    @property
    def face_size(self) -> int:
        """Pixels of a side of the faces that it was trained on.

        Older versions did not save it, and data.size may be null. Then the faces of a CSV may have
        been larger than 48 pixels, and the model as large as they were. If they were smaller,
        enlarging them to the model's size changes nothing.
        """
        known = self.contents.get("face_size") or self.settings.data.get("size")
        return known or max(FACE_SIZE, self.settings.model.get("size", FACE_SIZE))

    def network(self, device: torch.device) -> Network:
        """Its network, in evaluation mode."""
        cpu_batch = check_fit(self.settings.model, self.contents["model"], self.path)
        with reporting_config_errors(self.path):
            model = config.build("model", layer_table.without_weights(self.settings.model))
        load_weights(model, self.contents["model"], self.path)
        normalize = Normalize(**self.contents["normalization"])
        network = Network(model, normalize, self.classes, self.face_size).to(device)
        network.cpu_batch = cpu_batch
        if self.settings.train.channels_last:
            network.to(memory_format=torch.channels_last)
        return network.eval()

    def data(
        self,
        overrides: dict | None = None,
        whole: bool = True,
        used_whole: bool = False,
        size: int | None = None,
    ) -> Data:
        """Its data, with the keys of `overrides` in place of its own.

        whole: ignore the run's `limit`. used_whole: do not split a single file, or data
        other than its own, that is given as data.path, since nothing is trained on it. size: the
        side to read its faces at, in pixels; None: that of the training.
        """
        overrides = overrides or {}
        if "normalize" in overrides and "_target_" not in overrides:
            raise UserError("data.normalize: comes from the checkpoint; leave it out")
        validated_on_test = self.settings.data.get("validation") == "test"
        if overrides.get("validation") == "test" and not validated_on_test:
            raise UserError(
                "data.validation=test: is for training; leave it out, and name the split: "
                "split=test"
            )
        base = dict(self.settings.data)
        if whole and "limit" in base:
            base["limit"] = None
        size = size or self.face_size
        # Other pictures are read at this size; a CSV has its own.
        own_size = FACE_SIZE if "path" in overrides else self.face_size
        if "size" in base and size != own_size:
            base["size"] = size
        node = config.check_node("data", config.overlay(base, overrides))
        inherits_names = base.get("names") and "path" in overrides and "names" not in overrides
        if inherits_names and not self.is_own_data(node):
            node["names"] = None  # numbers may mean something else there
        splittable = node.get("split") is not None and overrides.get("split", "auto") == "auto"
        if used_whole and splittable and overrides.get("path") and self.is_used_whole(node):
            data = config.build("data", node | {"split": "none"})
            if data.only_split == "all":  # else its column Usage splits it
                return self.with_its_classes(data)
        return self.with_its_classes(config.build("data", node))

    def with_its_classes(self, data: Data) -> Data:
        """The data for its network. Emotions are matched in any spelling: folders Happy/ and bored/
        are the classes Happy and bored, since not all of them are emotions.
        """
        names = tuple(find_class(name, self.classes) or name for name in data.classes)
        return replace(data, classes=names).for_network(self.classes)

    def was_trained_on(self, faces: Faces) -> torch.Tensor:
        """Bool N: which of the faces it was trained on. For faces of another size, and for files of
        earlier versions, only its data can tell: raises UserError if that is not available.
        """
        hashes = self.contents.get("training_faces")
        if hashes is not None and faces.side == self.face_size:
            return torch.isin(faces.hashes, hashes)
        return faces.among(self.data(size=faces.side).split("train"))

    def resembles_training(self, faces: Faces) -> bool:
        """Whether most of the faces look like training faces, as the same faces do after
        compression or in another size. False for files of earlier versions.
        """
        known = self.contents.get("training_thumbnails")
        if known is None:
            return False
        return bool(torch.isin(faces.thumbnail_hashes, known).double().mean() > 0.5)

    def is_used_whole(self, node: dict) -> bool:
        """Is the data at the `node` a single file, or other data than that of the training?"""
        return is_file(node["path"]) or not self.is_own_data(node)

    def is_own_data(self, node: dict) -> bool:
        """Is the data that it was trained on at the `node`, perhaps at another place?"""
        own_path = self.settings.data.get("path")  # drawn faces have none
        with contextlib.suppress(UserError, OSError):
            if own_path and Path(node["path"]).samefile(own_path):
                return True
        saved_hash = (self.contents.get("validation") or {}).get("images")
        with contextlib.suppress(UserError):
            limit = self.settings.data.get("limit")
            validation = config.build("data", node | {"limit": limit}).splits.get("validation")
            return validation is not None and validation.hash == saved_hash
        return False


def name_of(path: Path) -> str:
    """What messages and tables call a checkpoint: its path, or `builtin`."""
    return BUILTIN if path == BUILTIN_FILE else str(path)


def is_file(place: str | None) -> bool:
    """Whether a given path is a file. Errors of a bad path are reported where it is read."""
    with contextlib.suppress(OSError, RuntimeError):
        return bool(place) and Path(str(place)).expanduser().is_file()
    return False


def settings_in_force(
    path: Path, contents: dict, saved: config.TrainConfig, trust: Sequence[str]
) -> config.TrainConfig:
    """The settings of the run of which the checkpoint at `path` is part. A resume may have changed
    some since it was written; the config.yaml beside it has them. If there is none, or it differs
    in more than a resume may change, the checkpoint's `own` settings are used.
    """
    try:
        text = regular(path.parent / "config.yaml").read_text(encoding="utf-8")
        values = saved_config(text, contents, path.parent / "config.yaml")
        current = config.check("train", values, trust)
    except (OSError, ValueError, UserError):
        return saved
    changed = config.difference(saved.model_dump(), current.model_dump())
    return current if set(changed) <= config.resumable(saved.data) else saved


def use_builtin(named: object) -> bool:
    """Should the built-in network be used, since nothing is named and no run is there? Says so."""
    if named is not None or runs():
        return False
    print("no run here: using the built-in network (ckpt=builtin), see docs/model-card.md")
    return True


def find_checkpoints(named: str | list[str] | None) -> list[Path]:
    """The checkpoints that `ckpt=` or `run=` names, each once: files, run folders for their
    best.pt, sweep folders for those of all runs, patterns with *, `builtin` for the network that
    the package carries; None: the newest run's.
    """
    if named == []:
        raise UserError(
            "[]: names no checkpoint; name one, or leave the key out for the newest run's"
        )
    if named is None:
        named = str(newest())
    checkpoints: list[Path] = []
    for name in named if isinstance(named, list) else [named]:
        if name == BUILTIN:
            checkpoints.append(BUILTIN_FILE)
            continue
        is_pattern = "*" in name and not Path(name).exists()
        matches = sorted(glob.glob(name)) if is_pattern else [name]  # noqa: PTH207, Path.glob takes no absolute pattern
        if not matches:
            raise UserError(f"{name}: matches no file; use a shell pattern such as runs/*/best.pt")
        for place in map(Path, matches):
            best = checkpoints_at(place)
            if is_pattern and best == [place / "best.pt"] and not best[0].is_file():
                print(f"{place}: has no best.pt yet, left out")
            else:
                checkpoints += best
        if not checkpoints:
            raise UserError(f"{name}: no best.pt there yet; name a run with one")
    return list(dict.fromkeys(map(require_checkpoint, checkpoints)))


def checkpoints_at(place: Path) -> list[Path]:
    """A file itself; of a run folder its best.pt, which may not exist yet; of a sweep folder those
    of its runs, 2 before 10.
    """
    if not place.is_dir():
        return [place]
    of_sweep = sorted(place.glob("*/best.pt"), key=lambda path: (len(path.parent.name), path))
    if of_sweep and not (place / "best.pt").is_file():
        return of_sweep
    return [place / "best.pt"]


def find_checkpoint(named: str | None) -> Path:
    """The one checkpoint that `ckpt=` names."""
    first, *others = find_checkpoints(named)
    if others:
        raise UserError(
            f"{named}: {1 + len(others)} checkpoints, {first} and others; name one of them"
        )
    return first


def require_checkpoint(path: Path) -> Path:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a regular file; name a run folder, its best.pt or last.pt")
    if path.name == "best.pt" and not path.is_file() and path.with_name("last.pt").is_file():
        raise UserError(
            f"{path}: no such checkpoint; no epoch of this run was finished, or the file was "
            f"removed. {path.with_name('last.pt')} has its latest weights"
        )
    if not path.is_file():
        listed = "; write several as [a,b]" if "," in str(path) else ""
        raise UserError(
            f"{path}: no such checkpoint; a run folder holds best.pt and last.pt{listed}"
        )
    return path


def save_checkpoint(
    path: Path, settings: config.TrainConfig, network: Network, **more: object
) -> None:
    """A self-describing checkpoint that torch.load(weights_only=True) reads: plain values and
    tensors only.
    """
    contents = {
        "format": FORMAT,
        "version": __version__,
        "config": config.dump(settings),
        "classes": list(network.classes or class_names(settings.model.get("classes", 7))),
        "normalization": asdict(network.normalize),
        "face_size": network.face_size,
        "model": network.model.state_dict(),
        **more,
    }
    write(path, lambda file: torch.save(contents, file))


def load_checkpoint(path: str | Path, if_damaged: str = OTHER_ONE) -> dict[str, Any]:
    """The contents of a checkpoint written by save_checkpoint, checked, on the CPU. Raises
    UserError for anything else. if_damaged: what to do then.
    """
    return read_contents(require_checkpoint(Path(path)), if_damaged)


def check_outputs(model: dict, classes: list[str]) -> None:
    """Refuse a checkpoint whose classes are not those of its model."""
    outputs = model.get("classes", len(classes))
    if outputs != len(classes):
        raise UserError(f"model.classes={outputs}: the checkpoint names {len(classes)} classes")


def saved_config(text: str, contents: dict, path: Path) -> dict:
    """The values of a saved config. Runs older than data.classes get the classes and the numbering
    of that time, from the `contents` of their checkpoint.
    """
    values = config.parse(text, str(path))
    data = values.get("data")
    if not isinstance(data, dict) or data.get("_target_") != "fer.data.readers.fer2013":
        return values
    if "classes" not in data:
        numbers = {str(number): name for number, name in enumerate(CLASSES)}
        values["data"] = {**data, "classes": contents["classes"], "names": numbers}
    return values


def check_fit(node: dict, weights: dict, path: Path) -> int:
    """Refuse weights that are not those of a model of this project, and a model whose outputs fill
    the memory, before it takes any: a small file may name a network of any size.

    Returns how many faces a CPU should compute at once. Other models may not run without weights,
    so their outputs are unknown.
    """
    if not node["_target_"].startswith("fer."):
        return CPU_BATCH
    with reporting_config_errors(path):
        model = layer_table.build(node)
    expected = {name: shape_and_kind(tensor) for name, tensor in model.state_dict().items()}
    stored = {name: shape_and_kind(tensor) for name, tensor in weights.items()}
    if expected != stored:
        raise UserError(f"{path}: its weights do not fit {OF_ITS_CONFIG}")
    return batch_that_fits(model, path)


def shape_and_kind(value: object) -> tuple[torch.Size, bool] | None:
    """A tensor's shape, and whether it holds floats; None for anything else."""
    return (value.shape, value.is_floating_point()) if isinstance(value, torch.Tensor) else None


def batch_that_fits(model: nn.Module, path: Path) -> int:
    """How many faces a CPU should compute at once: a layer's input and output are in memory."""
    bytes_of_face = 2 * 4 * layer_table.largest_output(model)
    memory = available_memory()
    batch = memory // 4 // bytes_of_face
    if not batch:
        raise UserError(
            f"{path}: its network takes {bytes_of_face / 1e9:.1f} GB of memory for one face, where "
            f"{memory / 1e9:.1f} GB are free; use a smaller model"
        )
    return min(batch, CPU_BATCH)


def load_weights(
    model: nn.Module,
    weights: dict,
    path: str | Path,
    to: str = OF_ITS_CONFIG,
) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: its weights do not fit {to}") from None


@contextlib.contextmanager
def reporting_config_errors(path: str | Path) -> Iterator[None]:
    """Within the context, UserErrors blame the config in the file `path`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: its config, {error}") from None


def config_of_resume(values: dict, given_keys: list[str]) -> tuple[dict, dict]:
    """The config of the run that `resume` names with the `given_keys` of `values` merged into it,
    and the contents of its last.pt. Raises UserError for keys that would make it another run.
    """
    named = Path(values["resume"])
    if named.is_file() and named.name != "last.pt":
        raise UserError(
            f"resume={named}: training continues from last.pt; use resume={named.parent}"
        )
    folder = named.parent if named.is_file() else named
    path = folder / "last.pt"
    instead = "start a new run"
    if (folder / "best.pt").is_file():
        instead += f", from the best weights of this one: start={folder / 'best.pt'}"
    contents = load_checkpoint(path, f"training cannot resume from it; {instead}")
    if "training" not in contents:
        raise UserError(f"{path}: holds weights only; resume needs a last.pt written by fer train")
    if "run" in given_keys:
        raise UserError(
            "run: cannot be set with resume, which uses the run's own folder; leave it out"
        )
    saved = saved_config(contents["config"], contents, path)
    trust = config.trusted(values)

    def merged(keys: Iterable[str]) -> dict:
        keys = [key for key in keys if key not in ("resume", "run", "experiment", "trust")]
        changed = config.overlay(saved, config.pick(values, keys))
        return config.check("train", changed, trust).model_dump()

    before = merged(())
    # An experiment sets every key.
    after = merged(values if "experiment" in given_keys else given_keys)
    may_change = config.resumable(before["data"])
    lines = config.difference(before, after)
    changed = [line for key, line in lines.items() if key not in may_change]
    if changed:
        raise UserError(
            f"resume={folder}: cannot change {'; '.join(changed)}; start a new run for that"
        )
    check_fit(before["model"], contents["model"], path)
    return merged(given_keys) | {"run": None, "resume": str(folder)}, contents
