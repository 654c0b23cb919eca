"""The run folder, the contract between commands: config.yaml, environment.yaml, history.csv, best.pt, last.pt, report/.

Every file is written beside its name, flushed and renamed: a reader sees the old one or the new one, whole. Knows
configs and networks as far as a checkpoint holds them; training and predicting stay out.
"""

import contextlib
import csv
import glob
import io
import os
import pickle
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import torch
import yaml
from torch import nn

from fer import UserError, __version__, class_names, config
from fer.data.faces import Data
from fer.models.network import Network, Normalization, Normalize

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILES = ("config.yaml", "environment.yaml", "history.csv", "best.pt", "last.pt")  # what a training writes
FORMAT = 1  # of a checkpoint; raised when an older version could not read it
MAY_CHANGE = {"train.epochs", "train.patience", "device", "data.path"}  # on resume


def write(path: str | Path, save: Callable[[BinaryIO], object]) -> None:
    """Call `save` with a binary file that becomes `path` when all of it is on the disk; on failure nothing changes."""
    path = Path(path)
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with beside.open("xb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder may be gone too
            beside.unlink()
        cause = (
            error.__context__ if isinstance(error, RuntimeError) else error
        )  # torch.save hides that the disk is full
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{path}: cannot be written ({cause.strerror or cause}), what was there is kept; make room or choose "
            "another place"
        ) from None
    with contextlib.suppress(OSError):  # not every system opens or flushes folders, where the new name stands
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: str | Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """history.csv, a row an epoch; no file before the first."""
    if history:
        rows = ([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in history)
        write_csv(folder / "history.csv", list(history[0]), rows)


def create(path: str | None, name: str) -> Path:
    """A new, empty run folder; `path` None chooses runs/<date>_<time>_<name>. An existing run is refused."""
    stem = Path(path) if path else Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    folder, number = stem, 1
    while True:
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
        number += 1
        folder = stem.with_name(f"{stem.name}_{number}")


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Within the context no other process trains in `folder`, and what a killed save left there is gone. The kernel
    lets go of the lock when its process ends, in whatever way."""
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(Path(folder, ".lock").open("a"))
        except OSError as error:
            raise UserError(f"run folder {folder}: cannot be written in ({error.strerror}); name another") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stale in [path for name in FILES for path in Path(folder).glob(f".{name}.*.tmp")]:
                stale.unlink()
        except BlockingIOError:
            raise UserError(f"run folder {folder}: another training writes there; name another, or wait") from None
        except (AttributeError, OSError):  # Windows, or a file system without locks
            pass
        yield


def write_environment(folder: Path, device: torch.device, data_hash: str) -> None:
    """Add to environment.yaml, a document for each start, what the training rests on besides its config."""
    path, processor = folder / "environment.yaml", Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", processor.read_text()) if processor.exists() else []
    values = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.orig_argv),
        "fer": __version__,
        "git": git_commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "data_sha256": data_hash or None,  # drawn faces have none
    }
    earlier = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, f"{earlier}---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}")


def git_commit(root: Path) -> str | None:
    """The commit of the checkout at `root`, ending in -dirty where its files differ; None without a checkout."""
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run([*command, "--abbrev=40", "--exclude=*"], capture_output=True, check=True, text=True)
        return done.stdout.strip()
    return None


def make_folder(path: Path) -> Path:
    """The folder, made where it is missing: for pictures, which may replace older ones."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); choose another with out=") from None
    return path


def newest(file: str) -> Path:
    """The newest run under ./runs that holds `file`, sweeps included."""
    found = [path for pattern in (f"runs/*/{file}", f"runs/*/*/{file}") for path in Path().glob(pattern)]
    if not found:
        raise UserError(f"no run with a {file} under {Path('runs').absolute()}; train one first: fer train data=demo")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def find_checkpoints(named: str | list[str] | None) -> list[Path]:
    """The checkpoints that `ckpt=` or `run=` names, each once: files, run folders for their best.pt, sweep folders for
    those of all runs, patterns with *; none: the newest run's."""
    found: list[Path] = []
    for name in named if isinstance(named, list) else [named]:
        if name is None:
            places = [newest("best.pt")]
        elif "*" in name and not Path(name).exists():
            places = [Path(p) for p in sorted(glob.glob(name))]  # noqa: PTH207, Path.glob takes no absolute pattern
        else:
            places = [Path(name)]
        if not places:
            raise UserError(f"{name}: matches no file; patterns are as the shell's, such as runs/*/best.pt")
        for place in places:
            own = place / "best.pt" if place.is_dir() else place
            sweep = sorted(place.glob("*/best.pt"), key=lambda path: (len(path.parent.name), path))  # 2 before 10
            found += [own] if own.is_file() or not sweep else sweep
    return list(dict.fromkeys(found))


def save_checkpoint(path: Path, settings: config.TrainConfig, network: Network, **more: object) -> None:
    """A self-describing checkpoint that torch.load(weights_only=True) reads: plain values and tensors only."""
    contents = {
        "format": FORMAT,
        "version": __version__,
        "config": config.dump(settings),
        "classes": list(class_names(settings.model.get("classes", 7))),
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
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size or archive.testzip():
                raise zipfile.BadZipFile  # one that unpacks to more than itself is a bomb; torch packs nothing
        with warnings.catch_warnings(action="ignore"):  # of what a foreign file holds
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than weights and plain values; not loaded, it could run code") from None
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # zipfile and torch raise a dozen kinds
        raise UserError(f"{path}: damaged or no checkpoint; use the run's other one (best.pt, last.pt)") from None
    contents = contents if isinstance(contents, dict) else {}
    if type(contents.get("format")) is int and contents["format"] > FORMAT:
        raise UserError(f"{path}: written by fer {contents.get('version')}, newer than this {__version__}; upgrade fer")
    match {"validation": {"logits": torch.empty(0, 7), "labels": torch.empty(0)}} | contents:  # only best.pt has any
        case {
            "format": int(),
            "config": str(),
            "classes": list(classes),
            "normalization": {"kind": kind, "mean": float(), "std": float(std), **more},
            "model": dict(),
            "validation": {"logits": torch.Tensor(shape=(n, c)), "labels": torch.Tensor(shape=(m,)) as labels},
        } if kind in get_args(Normalization) and std > 0 and not more and n == m:  # type: ignore[has-type]
            if classes not in (list(class_names(7)), list(class_names(8))):
                raise UserError(f"{path}: trained for other classes than {', '.join(class_names(8))}; of no use here")
            if n == 0 or (c == len(classes) and {*labels.tolist()} <= {*range(c)}):
                return contents
    raise UserError(f"{path}: a torch file, but not one of fer's checkpoints")


def checkpoint_config(contents: dict, path: str | Path) -> config.TrainConfig:
    """The training config that a checkpoint carries, checked like one that was typed."""
    values = config.parse(contents["config"], str(path))
    with blame(path):
        return config.check("train", values)


@contextlib.contextmanager
def blame(path: str | Path) -> Iterator[None]:
    """Within the context what is refused is told as a fault of the config in the file `path`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: its config, {error}") from None


def resumed(contents: dict, values: dict, typed: list[str], folder: Path) -> dict:
    """The config of the run in `folder`, whose last.pt holds `contents`, the `typed` keys of `values` laid over it;
    what would make it another training is refused."""
    if "training" not in contents:
        raise UserError(f"{folder / 'last.pt'}: holds weights only; resume needs a last.pt written by fer train")
    saved = config.parse(contents["config"], str(folder / "last.pt"))
    merged = config.overlay(saved, config.pick(values, [key for key in typed if key not in ("resume", "run")]))
    changed = [line for key, line in config.difference(saved, merged).items() if key not in MAY_CHANGE]
    if changed:
        raise UserError(f"resume={folder}: cannot change {'; '.join(changed)}; start a new run for that")
    return merged | {"run": None, "resume": str(folder)}


def restore(contents: dict, settings: config.TrainConfig, path: str | Path, device: torch.device) -> Network:
    """The network of a checkpoint, in evaluation mode."""
    own = {"weights": None} if "weights" in settings.model else {}  # a file to start from; the weights are here now
    with blame(path):
        model = config.build("model", settings.model | own)
    load_weights(model, contents["model"], path)
    network = Network(model, Normalize(**contents["normalization"])).to(device)
    if settings.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network.eval()


def load_weights(
    model: nn.Module, weights: dict, path: str | Path, to: str = "the model of its config; the file was changed"
) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: its weights do not fit {to}") from None


def open_data(settings: config.TrainConfig, typed: dict | None) -> Data:
    """The data of a checkpoint, whole: a typed `data` lies over it, a training's `limit` does not count."""
    if typed and "normalize" in typed and "_target_" not in typed:
        raise UserError("data.normalize: comes from the checkpoint; leave it out")
    base = settings.data | {"limit": None}
    node = config.check_node("data", config.overlay(base, typed or {}))
    return config.build("data", node)
