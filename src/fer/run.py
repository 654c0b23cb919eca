"""The run folder, the contract between commands: config.yaml, environment.yaml, history.csv,
best.pt, last.pt, report/. Knows nothing of the contents of a checkpoint.
"""

import contextlib
import itertools
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from fer import PICTURE_ENDINGS, VIDEO_ENDINGS, UserError, __version__
from fer.data.readers import archives
from fer.data.readers.pictures import UNREAD
from fer.files import refuse_face_csv, regular, write, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What fer train writes.
FILES = ("config.yaml", "environment.yaml", "history.csv", "best.pt", "last.pt")
BEFORE_SAVE = ("config.yaml", "environment.yaml")  # written when training starts
LOCK = ".lock"
# The columns of history.csv that measure time, not training.
TIMES = ("epoch", "seconds", "images_per_second")
LONGEST_RECORD = 100_000  # characters of a start in environment.yaml; PyYAML is slow
LARGEST = 1e30  # number in a history; pictures of larger ones overflow
# Of files that hold faces and are no CSV.
DATA_ENDINGS = (
    *PICTURE_ENDINGS,
    *UNREAD,
    *VIDEO_ENDINGS,
    *archives.ENDINGS,
    *archives.OTHER_ENDINGS,
    ".npz",
    ".parquet",
)
PRIVATE_LOG = "evaluations.csv"  # fer evaluate's log of PrivateTest, which the report shows


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    table = pd.DataFrame(rows, columns=list(header), dtype=object)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write history.csv, a row an epoch; no file before the first epoch."""
    if history:
        table = pd.DataFrame(history).to_csv(index=False, float_format="%.6g", na_rep="nan")
        write_text(folder / "history.csv", table)


def read_history(folder: Path, classes: Iterable[str] = ()) -> pd.DataFrame:
    """Read history.csv, a row an epoch. Raises UserError unless it has numbers in all columns that
    a report needs, among them the recalls of the `classes`.
    """
    path = folder / "history.csv"
    try:
        history = pd.read_csv(regular(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        again = f"fer train resume={shlex.quote(str(folder))} writes it again"
        raise UserError(f"{path}: cannot be read ({reason}); {again}") from None
    numbers = history.select_dtypes("number")
    if (numbers.abs() > LARGEST).any(axis=None):
        raise UserError(f"{path}: holds numbers above {LARGEST:g}; it is not the history of a run")
    needed = {*TIMES, "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    needed |= {"val_macro_f1", *(f"val_recall_{name}" for name in classes)}
    missing = needed - {*numbers}
    if missing:
        raise UserError(
            f"{path}: has no numbers in {', '.join(sorted(missing))}; it is not the history of "
            "this run"
        )
    if history["epoch"].tolist() != list(range(1, len(history) + 1)):
        raise UserError(f"{path}: its epochs should be 1, 2, 3, …; it is not the history of a run")
    if not history["val_accuracy"].between(0, 1).all():
        raise UserError(
            f"{path}: its val_accuracy should be from 0 to 1; it is not the history of a run"
        )
    return history


def refuse_overwriting(*paths: str | Path | None) -> None:
    """Refuse to overwrite a file of a run, a data set or a photo."""
    for path in [path for path in paths if path]:
        target = Path(os.path.realpath(path))  # a link is followed when it is written to
        if target.name in (*FILES, PRIVATE_LOG) and target.exists():
            raise UserError(f"{path}: would overwrite a run's own file; choose another name")
        if target.name.lower().endswith(DATA_ENDINGS) and target.is_file():
            raise UserError(f"{path}: may be a data set or a photo; choose another name")
        with reporting_os_errors(f"{path}: cannot be read", "choose another name"):
            refuse_face_csv(path)


def tell_if_replaced(path: Path) -> None:
    """Print a line if a file, or a folder that is not empty, is about to be replaced."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        print(f"{path}: replacing the one from {made}; out= sets another place")


@contextlib.contextmanager
def reporting_os_errors(what: str, remedy: str) -> Iterator[None]:
    """Within the context an OSError becomes a UserError: `what`, the reason, the `remedy`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} ({error.strerror}); {remedy}") from None


def create(path: str | None, name: str) -> Path:
    """A new run folder; runs/<date>_<time>_<name> if `path` is None. Raises UserError for one that
    holds something, other than what a killed run left before its first save.
    """
    stem = f"runs/{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    numbered = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    for folder in map(Path, [path] if path else numbered):
        with (
            reporting_os_errors(f"run={folder}: cannot be made", "choose another place"),
            contextlib.suppress(FileExistsError),
        ):
            folder.mkdir(parents=True)
            return folder
    if folder.is_dir() and is_unused(folder):
        return folder
    resume = ""
    if (folder / "last.pt").is_file():
        resume = f", or resume it: fer train resume={shlex.quote(str(folder))}"
    raise UserError(f"run={path}: already exists; choose another name{resume}")


def is_unused(folder: Path) -> bool:
    """Is the folder empty, or holds only what a run left that was killed before its first save?
    Without locks, on Windows, that run may still be going on.
    """
    names = {entry.name for entry in folder.iterdir() if not entry.name.endswith(".tmp")}
    left = fcntl is not None and LOCK in names and names <= {LOCK, *BEFORE_SAVE}
    return left or not any(folder.iterdir())


@contextlib.contextmanager
def output_folders(*paths: Path) -> Iterator[None]:
    """Within the context the folders are there, made with those above them where they are missing.
    If it ends by a refusal or a signal, those that were made and are still empty are removed.
    """
    made: list[Path] = []
    try:
        for path in paths:
            made += [place for place in (path, *path.parents) if not os.path.lexists(place)]
            make_folder(path)
        yield
    except BaseException:
        for place in sorted(made, key=lambda place: len(place.parts), reverse=True):
            with contextlib.suppress(OSError):  # it holds something by now
                place.rmdir()
        raise


def make_folder(path: Path) -> Path:
    """The folder, made if it is missing: for pictures, which may replace older ones."""
    with reporting_os_errors(f"{path}: cannot be made", "choose another place"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Within the context no other process trains in `folder`. What a killed save left there is
    removed. The kernel releases the lock when its process ends, however that happens.
    """
    for name in (LOCK, *FILES):
        file = Path(folder, name)
        if file.exists() and not file.is_file():
            raise UserError(f"{file}: is not a regular file, so no run can use it; remove it")
    with contextlib.ExitStack() as held:
        with reporting_os_errors(f"run folder {folder}: cannot be written to", "choose another"):
            opened = held.enter_context(Path(folder, LOCK).open("a"))
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in FILES:
                for stale in Path(folder).glob(f".{name}.*.tmp"):
                    stale.unlink()
        except BlockingIOError:
            raise UserError(
                f"run folder {folder}: another run is writing to it; wait, or choose another"
            ) from None
        except (AttributeError, OSError):  # Windows, or a file system without locks
            pass
        yield


def write_environment(
    folder: Path, data_hash: str, overrides: list[str], machine: dict[str, Any], data: str = ""
) -> None:
    """Append to environment.yaml what the run depends on besides its config, a document for each
    start.

    overrides: the words KEY=VALUE of the command line; of a sweep, those of this job. machine:
    device, number format and the like, see runtime.describe. data: what was taken for what, in
    words.
    """
    path = folder / "environment.yaml"
    values = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.orig_argv),
        "typed": overrides,
        "fer": __version__,
        "git": git_commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        **machine,
        "data_sha256": data_hash or None,  # drawn faces have none
        "data": data or None,
    }
    earlier = path.read_bytes() if path.exists() else b""  # as it is, even if it is not text
    document = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    write(path, lambda file: file.write(earlier + f"---\n{document}".encode()))


def processor_name() -> str:
    """The processor's model name on Linux, what Python knows of it elsewhere."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        names = re.findall(r"model name\s*:\s*(.+)", listing.read_text())
        if names:
            return names[0]
    return platform.processor()


def overrides_of_run(folder: Path) -> list[str] | None:
    """The words KEY=VALUE with which the run in `folder` began. None if they are unknown, as for a
    sweep's job of an earlier version.
    """
    try:
        text = regular(folder / "environment.yaml").read_text(encoding="utf-8")
        first = text.removeprefix("---\n").partition("\n---\n")[0]
        if len(first) > LONGEST_RECORD:
            return None
        started = yaml.safe_load(first)
        command = shlex.split(str(started["command"]))
        overrides = started.get("typed")
    except Exception:  # a tag such as !!timestamp makes PyYAML raise anything
        return None
    if overrides is None and "train" in command and not {"-m", "--multirun"} & {*command}:
        overrides = [word for word in command if "=" in word and not word.startswith("-")]
    if isinstance(overrides, list) and all(
        isinstance(word, str) and "=" in word for word in overrides
    ):
        return overrides
    return None


def git_commit(root: Path) -> str | None:
    """The commit checked out at `root`, with -dirty if files differ; None without a checkout.

    Nothing is written: describe --dirty would write the index, and where that fails, as on a full
    disk, leave a lock that stops the user's next commit.
    """
    git = ["git", "--no-optional-locks", f"--git-dir={root / '.git'}", f"--work-tree={root}"]

    def output(*words: str) -> str:
        done = subprocess.run([*git, *words], capture_output=True, check=True, text=True)
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = output("rev-parse", "HEAD")
        changed = output("status", "--porcelain", "--untracked-files=no")
        return f"{commit}-dirty" if changed else commit
    return None


def runs() -> list[Path]:
    """The best.pt of every run under ./runs, sweeps included."""
    folder = Path("runs")
    return [*folder.glob("*/best.pt"), *folder.glob("*/*/best.pt")]


def newest() -> Path:
    """The newest best.pt of the runs under ./runs."""
    checkpoints = runs()
    if not checkpoints:
        raise UserError(
            f"no run with a best.pt under {Path('runs').absolute()}; "
            "train one first: fer train data=demo; predict, evaluate, explain and export also "
            "accept ckpt=builtin"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime)
