"""Checkpoints, best.pt and last.pt: written self-describing, read as what anyone may have sent.
Knows configs, networks and the data that a config names; how the numbers came about stays out.
"""

import contextlib
import glob
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from fer import Normalization, UserError, __version__, class_names, config
from fer.data.faces import Data
from fer.files import write
from fer.models.network import Network, Normalize
from fer.run import newest

FORMAT = 1  # raised when an older version could not read it
MAY_CHANGE = {"train.epochs", "train.patience", "device", "data.path"}  # on resume


@dataclass(frozen=True)
class Checkpoint:
    """What a best.pt or last.pt holds, and the config that it carries, checked like one that was
    typed.
    """

    path: Path
    contents: dict
    settings: config.TrainConfig

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        contents = load_checkpoint(path)
        values = config.parse(contents["config"], str(path))
        with blame(path):
            return cls(path, contents, config.check("train", values))

    @property
    def classes(self) -> list[str]:
        return self.contents["classes"]

    def network(self, device: torch.device) -> Network:
        """Its network, in evaluation mode."""
        model = self.settings.model
        stored = sum(tensor.numel() for tensor in tensors_of(self.contents["model"]))
        if least_parameters(model) > stored:
            raise UserError(
                f"{self.path}: its weights do not fit the model of its config; the file was changed"
            )
        with blame(self.path):  # model.weights is a file to start from; the weights are here now
            built = config.build("model", model | ({"weights": None} if "weights" in model else {}))
        load_weights(built, self.contents["model"], self.path)
        network = Network(built, Normalize(**self.contents["normalization"])).to(device)
        if self.settings.train.channels_last:
            network.to(memory_format=torch.channels_last)
        return network.eval()

    def data(self, typed: dict | None = None, whole: bool = True, used_whole: bool = False) -> Data:
        """Its data, over which a typed `data` lies; `whole`: the training's `limit` does not count.
        `used_whole`: a single file that is typed as data.path is not split, since nothing is
        trained on it.
        """
        if typed and "normalize" in typed and "_target_" not in typed:
            raise UserError("data.normalize: comes from the checkpoint; leave it out")
        if typed and typed.get("validation") == "test" != self.settings.data.get("validation"):
            raise UserError(
                "data.validation=test: is for trainings; leave it out, and name the split: "
                "split=test"
            )
        own = self.settings.data | ({"limit": None} if whole else {})
        node = config.check_node("data", config.overlay(own, typed or {}))
        if (
            used_whole
            and typed
            and node.get("split") is not None
            and typed.get("split", "auto") == "auto"
        ):
            with contextlib.suppress(
                OSError, RuntimeError
            ):  # what is wrong with the path is told below
                if Path(typed.get("path") or "").expanduser().is_file():
                    data = config.build("data", node | {"split": "none"})
                    if data.only == "all":  # else its column Usage splits it
                        return data
        return config.build("data", node)


def find_checkpoints(named: str | list[str] | None) -> list[Path]:
    """The checkpoints that `ckpt=` or `run=` names, each once: files, run folders for their
    best.pt, sweep folders for those of all runs, patterns with *; none: the newest run's.
    """
    if named == []:
        raise UserError(
            "[]: names no checkpoint; name one, or leave the key out for the newest run's"
        )
    found: list[Path] = []
    for name in named if isinstance(named, list) else [named or str(newest())]:
        pattern = "*" in name and not Path(name).exists()
        matches = sorted(glob.glob(name)) if pattern else [name]  # noqa: PTH207, Path.glob takes no absolute pattern
        if not matches:
            raise UserError(
                f"{name}: matches no file; patterns are as the shell's, such as runs/*/best.pt"
            )
        for place in map(Path, matches):
            own = place / "best.pt" if place.is_dir() else place
            sweep = sorted(
                place.glob("*/best.pt"), key=lambda path: (len(path.parent.name), path)
            )  # 2 before 10
            if pattern and place.is_dir() and not own.is_file() and not sweep:
                print(f"{place}: has no best.pt yet, left out")
                continue
            found += [own] if own.is_file() or not sweep else sweep
        if not found:
            raise UserError(f"{name}: no best.pt there yet; name a run with one")
    return list(dict.fromkeys(map(existing, found)))


def find_checkpoint(named: str | None) -> Path:
    """The one checkpoint that `ckpt=` names."""
    first, *others = find_checkpoints(named)
    if others:
        raise UserError(
            f"{named}: {1 + len(others)} checkpoints, {first} and others; name one of them"
        )
    return first


def existing(path: Path) -> Path:
    if not path.is_file():
        several = "; several are named as [a,b]" if "," in str(path) else ""
        raise UserError(
            f"{path}: no such checkpoint; a run folder holds best.pt and last.pt{several}"
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
        "classes": list(class_names(settings.model.get("classes", 7))),
        "normalization": asdict(network.normalize),
        "model": network.model.state_dict(),
        **more,
    }
    write(path, lambda file: torch.save(contents, file))


def rewrite_settings(path: Path, settings: config.TrainConfig) -> None:
    """Give the checkpoint at `path` the settings with which its training goes on; one that is
    missing or damaged, which the training can do without, stays as it is.
    """
    new = {"config": config.dump(settings)}
    with contextlib.suppress(UserError):
        contents = load_checkpoint(path)
        if contents["config"] != new["config"]:
            write(path, lambda file: torch.save(contents | new, file))


def load_checkpoint(path: str | Path) -> dict:
    """The contents of a checkpoint written by save_checkpoint, on the CPU. Raises UserError for
    anything else.
    """
    path = existing(Path(path))
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            bomb = (
                sum(entry.file_size for entry in entries) > path.stat().st_size
            )  # torch packs nothing
            hollow = any(
                entry.external_attr & 0x10 for entry in entries
            )  # a folder: torch leaves its tensor unset
            if bomb or hollow or archive.testzip():
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):  # of what a foreign file holds
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than weights and plain values; not loaded, it could run code"
        ) from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # zipfile and torch raise a dozen kinds
        raise UserError(
            f"{path}: damaged or no checkpoint; use the run's other one (best.pt, last.pt)"
        ) from None
    contents = contents if isinstance(contents, dict) else {}
    if type(contents.get("format")) is int and contents["format"] > FORMAT:
        raise UserError(
            f"{path}: written by fer {contents.get('version')}, newer than this {__version__}; "
            "upgrade fer"
        )
    match {
        "validation": {"logits": torch.empty(0, 7), "labels": torch.empty(0)}
    } | contents:  # only best.pt has any
        case {
            "format": int(),
            "config": str(),
            "classes": list(classes),
            "normalization": {"kind": kind, "mean": float(), "std": float(std), **more},
            "model": dict(),
            "validation": {
                "logits": torch.Tensor(shape=(n, c)),
                "labels": torch.Tensor(shape=(m,)) as labels,
            },
        } if kind in get_args(Normalization) and std > 0 and not more and n == m:  # type: ignore[has-type]
            if not all(is_stored(tensor) for tensor in tensors_of(contents)):
                raise UserError(
                    f"{path}: damaged, a tensor is larger than what the file holds of it, or of "
                    "another kind than ours"
                )
            if any(not bool(tensor.isfinite().all()) for tensor in tensors_of(contents["model"])):
                raise UserError(
                    f"{path}: its weights hold NaN or infinity, so it can label nothing; take "
                    "another checkpoint, or "
                    "train again with a lower optim.lr"
                )
            if classes not in (list(class_names(7)), list(class_names(8))):
                raise UserError(
                    f"{path}: trained for other classes than {', '.join(class_names(8))}; of no "
                    "use here"
                )
            if n == 0 or (c == len(classes) and {*labels.tolist()} <= {*range(c)}):
                return contents
    raise UserError(f"{path}: a torch file, but not one of fer's checkpoints")


def tensors_of(contents: object) -> Iterator[torch.Tensor]:
    """All tensors within nested mappings and lists."""
    if isinstance(contents, torch.Tensor):
        yield contents
    elif isinstance(contents, Mapping):
        for value in contents.values():
            yield from tensors_of(value)
    elif isinstance(contents, list | tuple):
        for value in contents:
            yield from tensors_of(value)


def is_stored(tensor: torch.Tensor) -> bool:
    """Is it a plain tensor whose every element the file holds? Strides of 0 repeat one 10^10 times,
    which fills the memory when it is used; sparse and quantized tensors, and those without data, no
    checkpoint of ours has.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def least_parameters(node: dict) -> int:
    """At least so many parameters has the network of a config, as far as its lists of layers tell;
    nothing is built.
    """
    widths = []
    for layer in [*node.get("features", []), *node.get("head", [])]:
        if isinstance(layer, dict):
            layer = layer.get("conv", layer.get("residual"))
        if isinstance(layer, int):
            widths.append(layer)
    return sum(before * after for before, after in pairwise(widths))


def load_weights(
    model: nn.Module,
    weights: dict,
    path: str | Path,
    to: str = "the model of its config; the file was changed",
) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: its weights do not fit {to}") from None


@contextlib.contextmanager
def blame(path: str | Path) -> Iterator[None]:
    """Within the context what is refused is told as a fault of the config in the file `path`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: its config, {error}") from None


def resumed(values: dict, typed: list[str]) -> tuple[dict, dict]:
    """The config of the run that `resume` names, the `typed` keys of `values` laid over it, and the
    contents of its last.pt; what would make it another training is refused.
    """
    named = Path(values["resume"])
    if named.is_file() and named.name != "last.pt":
        raise UserError(
            f"resume={named}: a training goes on from its last.pt; take resume={named.parent}"
        )
    folder = named.parent if named.is_file() else named
    contents = load_checkpoint(folder / "last.pt")
    if "training" not in contents:
        raise UserError(
            f"{folder / 'last.pt'}: holds weights only; resume needs a last.pt written by fer train"
        )
    if "run" in typed:
        raise UserError(
            "run: not together with resume, which goes on in its own folder; leave run= out"
        )
    saved = config.parse(contents["config"], str(folder / "last.pt"))

    def merged(keys: Iterable[str]) -> dict:
        keys = [key for key in keys if key not in ("resume", "run", "experiment")]
        return config.check("train", config.overlay(saved, config.pick(values, keys))).model_dump()

    new = merged(
        values if "experiment" in typed else typed
    )  # an experiment says something of every key
    if changed := [
        line for key, line in config.difference(merged(()), new).items() if key not in MAY_CHANGE
    ]:
        raise UserError(
            f"resume={folder}: cannot change {'; '.join(changed)}; start a new run for that"
        )
    return merged(typed) | {"run": None, "resume": str(folder)}, contents
