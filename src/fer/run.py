"""The run folder, the contract between commands: config.yaml, history.csv, best.pt, last.pt, report/.

Every file is written beside its name, flushed and renamed: a reader sees the old one or the new one, whole.
"""

import csv
import io
import os
import pickle
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fer import CLASSES, UserError, __version__, config
from fer.models.network import Network, Normalize

FORMAT = 1  # of a checkpoint; raised when an older version could not read it


def write(path: str | Path, save: Callable[[io.BufferedWriter], None]) -> None:
    """Call `save` with a binary file that becomes `path` when all of it is on the disk; on failure nothing changes."""
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                save(file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~UMASK)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from None


def write_text(path: str | Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))


def write_csv(path: str | Path, header: list[str], rows) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def create(path: str | None, name: str) -> Path:
    """A new, empty run folder; `path` None chooses runs/<date>_<time>_<name>. An existing run is refused."""
    stem = Path(path) if path else Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    for suffix in range(1000):
        folder = stem if suffix == 0 else stem.with_name(f"{stem.name}_{suffix + 1}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if path and folder.is_dir() and not any(folder.iterdir()):
                return folder
            if path:
                raise UserError(
                    f"run={path}: exists already; choose another name, or go on with it: fer train resume={path}"
                ) from None
        except OSError as error:
            raise UserError(f"run={folder}: cannot be made ({error.strerror}); choose another place") from None
    raise UserError(f"{stem}: a thousand runs of this name; choose run=")


def newest(file: str) -> Path:
    """The newest run under ./runs that holds `file`, sweeps included."""
    found = [path for pattern in (f"runs/*/{file}", f"runs/*/*/{file}") for path in Path().glob(pattern)]
    if not found:
        raise UserError(f"no run with a {file} under {Path('runs').absolute()}; train one first: fer train data=demo")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def find_checkpoint(path: str | None) -> Path:
    """The checkpoint file that `ckpt=` names: a file, a run folder's best.pt, or the newest run's."""
    if path is None:
        return newest("best.pt") / "best.pt"
    return Path(path) / "best.pt" if Path(path).is_dir() else Path(path)


def save_checkpoint(path: Path, settings: str, network: Network, **more) -> None:
    """A self-describing checkpoint that torch.load(weights_only=True) reads: plain values and tensors only."""
    contents = {
        "format": FORMAT,
        "version": __version__,
        "config": settings,
        "classes": list(CLASSES),
        "normalization": network.normalize.state(),
        "model": network.model.state_dict(),
        **more,
    }
    write(path, lambda file: torch.save(contents, file))


def load_checkpoint(path: str | Path) -> dict:
    """The contents of a checkpoint written by save_checkpoint, on the CPU. Raises UserError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; a run folder holds best.pt and last.pt")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise zipfile.BadZipFile(broken)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than weights and plain values; not loaded, it could run code") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError, OSError):
        raise UserError(f"{path}: damaged or no checkpoint; use the run's other one (best.pt, last.pt)") from None
    if not isinstance(contents, dict) or not isinstance(contents.get("format"), int):
        raise UserError(f"{path}: a torch file, but not one of fer's checkpoints")
    if contents["format"] > FORMAT:
        raise UserError(f"{path}: written by fer {contents.get('version')}, newer than this {__version__}; upgrade fer")
    return contents


def checkpoint_config(contents: dict, path: str | Path) -> config.TrainConfig:
    """The training config that a checkpoint carries, checked like one that was typed."""
    return config.check("train", config.parse(contents["config"], str(path)))


def restore(contents: dict, settings: config.TrainConfig, path: str | Path, device: torch.device) -> Network:
    """The network of a checkpoint, in evaluation mode."""
    own = {"weights": None} if "weights" in settings.model else {}  # a file to start from; the weights are here now
    model = config.build("model", settings.model | own)
    load_weights(model, contents["model"], path)
    network = Network(model, Normalize(**contents["normalization"])).to(device)
    if settings.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network.eval()


def load_weights(model: nn.Module, weights: dict, path: str | Path) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: its weights do not fit the model of its config; the file was changed") from None


def open_data(settings: config.TrainConfig, typed: dict | None):
    """The data of a checkpoint, whole: a typed `data` lies over it, a training's `limit` does not count."""
    if typed and "normalize" in typed and "_target_" not in typed:
        raise UserError("data.normalize: comes from the checkpoint; leave it out")
    base = settings.data | {"limit": None}
    node = config.check_node("data", config.overlay(base, typed or {}))
    return config.build("data", node)


UMASK = os.umask(0)
os.umask(UMASK)
