"""fer train: one run, new or resumed, or the runs of a sweep resumed in turn."""

import contextlib
import shlex
from pathlib import Path

from fer import UserError, config, runtime, tensorboard
from fer.checkpoint import BUILTIN, config_of_resume
from fer.run import lock
from fer.runtime import Interrupted
from fer.text import with_prefix, wrapped
from fer.training.session import fit_in_folder
from fer.training.trainer import Trainer


@runtime.reporting_lost_processes()
def run(values: dict, overrides: dict[str, str]) -> float:
    """Train as the composed `values` say; returns the best validation accuracy, for sweeps that
    optimize it.

    overrides: each key given on the command line, with its words KEY=VALUE.
    """
    if values.get("resume"):
        values = values | {"resume": config.expand_home(str(values["resume"]))}
    resume = values.get("resume")
    if resume == BUILTIN and not Path(resume).exists():
        raise UserError(
            "resume=builtin: the built-in network has no run to resume; start=builtin starts a "
            "run from its weights"
        )
    if resume and is_sweep(Path(resume)):
        return resume_sweep(Path(resume), values, overrides)
    return run_one(values, overrides)


def is_sweep(folder: Path) -> bool:
    """Does the folder hold the runs of a sweep, which have numbers, or its multirun.yaml?"""
    if (folder / "last.pt").exists():
        return False
    if (folder / "multirun.yaml").is_file():
        return True
    return any(path.parent.name.isdecimal() for path in folder.glob("*/last.pt"))


def runs_of_sweep(sweep: Path) -> list[Path]:
    """The runs of a sweep that can be resumed, by number; a line for each that cannot.

    Raises UserError if there are none.
    """
    folders = [path for path in sweep.iterdir() if path.name.isdecimal() and path.is_dir()]
    runs = []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        if (folder / "last.pt").exists():
            runs.append(folder)
        else:
            print(f"{folder}: left out, it has no last.pt to resume from")
    if not runs:
        raise UserError(
            f"resume={sweep}: no run of this sweep has a last.pt; start the sweep again with -m"
        )
    return runs


def resume_sweep(sweep: Path, values: dict, overrides: dict[str, str]) -> float:
    """Resume each run of a sweep in turn; returns the best accuracy of all. A run that is refused
    does not stop the others; a signal stops all.
    """
    runtime.refuse_processes(f"resume={sweep}: is a sweep")
    accuracies = []
    refusals = []
    for folder in runs_of_sweep(sweep):
        try:
            accuracies.append(run_one(values | {"resume": str(folder)}, overrides))
        except Interrupted:
            print(f"to resume the whole sweep:\n  fer train resume={shlex.quote(str(sweep))}")
            raise
        except (UserError, OSError) as error:
            words = str(error)
            refusals.append(words if str(folder) in words else f"{folder}: {words}")
    if refusals:
        raise UserError("\nfer: ".join(refusals))
    return max(accuracies)


def run_one(values: dict, overrides: dict[str, str]) -> float:
    """One run, new or resumed; returns its best validation accuracy."""
    with runtime.closing_connections(), contextlib.ExitStack() as held:
        saved = None
        if values.get("resume"):
            # Locked before last.pt is read: another process may be training there.
            held.enter_context(locked_run(values["resume"]))
            values, saved = config_of_resume(values, list(overrides))
        cfg = config.check("train", values)
        device = runtime.pick_device(cfg.device)
        if cfg.tensorboard:
            tensorboard.require()
        held.enter_context(
            runtime.reporting_out_of_memory(device, f"train.batch_size={cfg.train.batch_size}")
        )
        trainer = Trainer(cfg, device, saved=saved)
        del saved  # as large as the network and the optimizer
        if trainer.rank:  # only the first process writes and prints
            trainer.fit()
        else:
            train_and_report(trainer, list(overrides.values()))
        return trainer.best["val_accuracy"]


def locked_run(resume: str) -> contextlib.AbstractContextManager[None]:
    """The lock of the run that `resume` names, held by the first of several processes."""
    named = Path(resume)
    folder = named.parent if named.is_file() else named
    if not runtime.is_first_process() or not (folder / "last.pt").is_file():
        return contextlib.nullcontext()  # the reader of last.pt reports what is missing
    return lock(folder)


def train_and_report(trainer: Trainer, overrides: list[str]) -> None:
    """Train, then print what was reached and what comes next; after a signal, how to resume."""
    try:
        folder = fit_in_folder(trainer, overrides)
    except Interrupted:
        trust = config.trust_override(trainer.cfg.model_dump())
        again = f"fer train resume={shlex.quote(trainer.cfg.run or '')}{trust}"
        print(f"stopped, and everything so far is saved; to resume:\n  {again}")
        raise
    print_result(trainer, folder)


def print_result(trainer: Trainer, folder: Path) -> None:
    accuracy, epoch = trainer.best["val_accuracy"], trainer.best["epoch"]
    files = [name for name in ("best.pt", "last.pt") if (folder / name).is_file()]
    print(f"best validation accuracy {accuracy:.4f} after epoch {epoch}")
    if "best.pt" not in files:
        print(
            wrapped(
                f"best.pt was removed after epoch {epoch}, and no later epoch was better; last.pt "
                "has the last weights"
            )
        )
    if trainer.throughput.seconds:
        images = trainer.throughput.images_per_second()
        operations = trainer.throughput.operations_per_second(trainer.network.model)
        print(
            f"trained at {images:,.0f} images/s, "
            f"{with_prefix(operations)}FLOP/s in {trainer.computed_in}"
        )
    checkpoint = shlex.quote(f"{folder}/{files[0]}")
    data = trainer.faces.data
    if data.unlabeled_split:
        sample = f" sample={shlex.quote(data.sample)}" if data.sample else ""
        use = f"predict ckpt={checkpoint}{sample} out=submission.csv"
    else:
        use = f"evaluate ckpt={checkpoint}"
    trust = config.trust_override(trainer.cfg.model_dump())
    print(f"next:\n  fer report run={shlex.quote(str(folder))}{trust}\n  fer {use}{trust}")
