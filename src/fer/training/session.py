"""A training run and its folder: created or resumed, locked, described in files, its first lines
printed.
"""

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from fer import UserError, config, runtime, tensorboard
from fer.checkpoint import load_checkpoint, saved_config
from fer.data.faces import Data
from fer.files import reporting_write_errors, write_text
from fer.optim import Muon
from fer.run import BEFORE_SAVE, create, lock, write_environment, write_history
from fer.text import counted, wrapped
from fer.training.recorder import Recorder, next_best, put_in_place
from fer.training.trainer import Trainer, fit_outputs

MOVE_AWAY = "put the run's own back or move this one away, then resume"


def train_in(folder: Path, cfg: config.TrainConfig, device: torch.device, data: Data) -> float:
    """Train on `data` in the run folder `folder`; returns the best validation accuracy. The run is
    started or resumed; a complete one is only loaded. Raises UserError if it had other settings.
    """
    keys = config.TrainConfig.model_fields  # cfg may have more, those of its command
    run_cfg = config.TrainConfig(**{key: getattr(cfg, key) for key in keys})
    run_cfg.run = str(folder)
    fit_outputs(run_cfg, data.classes)
    last = folder / "last.pt"
    with contextlib.ExitStack() as held:
        contents = None
        if last.is_file():
            held.enter_context(lock(folder))
            contents = load_checkpoint(last, f"remove {folder}, which is then trained again")
            refuse_other_settings(folder, contents, run_cfg)
            run_cfg.resume = run_cfg.run
        held.enter_context(
            runtime.reporting_out_of_memory(device, f"train.batch_size={cfg.train.batch_size}")
        )
        trainer = Trainer(run_cfg, device, data, contents)
        del contents  # as large as the network and the optimizer
        if trainer.done:
            finish_save(folder, trainer)
            refuse_other_best(folder, trainer)
        else:
            fit_in_folder(trainer)
    return trainer.best["val_accuracy"]


def refuse_other_settings(folder: Path, contents: dict, cfg: config.TrainConfig) -> None:
    values = config.parse(contents["config"], str(folder / "last.pt"))
    saved = config.check("train", values).model_dump()  # with the keys that are newer than the run
    differences = config.difference(saved, cfg.model_dump())
    places = config.places(cfg.data)
    changed = [line for key, line in differences.items() if key not in places]
    if changed:
        raise UserError(
            f"{folder}: was trained with other settings ({'; '.join(changed)}); set another out="
        )


def finish_save(folder: Path, trainer: Trainer) -> None:
    """Put a best.pt in place that waits for it since a kill: if last.pt, which the trainer resumes,
    was saved with it. Otherwise its epoch is trained again.
    """
    waiting = next_best(folder)
    if not waiting.is_file():
        return
    try:
        is_due = place_of(load_checkpoint(waiting)) == place_of_best(trainer)
    except UserError:
        is_due = False
    if is_due:
        put_in_place(waiting, folder)
    else:
        with reporting_write_errors(waiting):
            waiting.unlink()


def place_of(contents: dict) -> tuple[int, float]:
    """The epoch and the validation accuracy of a best.pt."""
    return contents.get("epoch", 0), contents.get("val_accuracy", 0.0)


def place_of_best(trainer: Trainer) -> tuple[int, float]:
    return trainer.best["epoch"], trainer.best["val_accuracy"]


def refuse_other_best(folder: Path, trainer: Trainer) -> None:
    """Refuse a best.pt of another run than the one that is resumed in `folder`: other commands
    would use its weights. A best.pt of a later epoch than last.pt is accepted: it was saved after a
    failure. So is an unreadable one, which no command uses.
    """
    path = folder / "best.pt"
    if not path.is_file():
        return
    try:
        contents = load_checkpoint(path)
    except UserError:
        return
    values = saved_config(contents["config"], contents, path)
    trust = config.modules_named(trainer.cfg.model_dump())  # is trusted already
    saved = config.check("train", values, trust).model_dump()
    differences = config.difference(saved, trainer.cfg.model_dump())
    changed = [
        line for key, line in differences.items() if key not in config.resumable(saved["data"])
    ]
    epoch, accuracy = place_of(contents)
    faces = (contents.get("validation") or {}).get("images") or trainer.faces.val_hash
    best_epoch, best_accuracy = place_of_best(trainer)
    if changed or faces != trainer.faces.val_hash:
        why = changed[0] if changed else "it was validated on other faces"
        raise UserError(f"{path}: belongs to another training run ({why}); {MOVE_AWAY}")
    if epoch <= trainer.epoch and (epoch, accuracy) != (best_epoch, best_accuracy):
        raise UserError(
            f"{path}: has the weights of epoch {epoch} with an accuracy of {accuracy:.4f}, but the "
            f"best of last.pt is epoch {best_epoch} with {best_accuracy:.4f}; {MOVE_AWAY}"
        )


def fit_in_folder(trainer: Trainer, overrides: list[str] | None = None) -> Path:
    """Train in the run folder that the config names; returns it.

    A resumed run's folder is locked already, since before its last.pt was read. overrides: the
    words KEY=VALUE of the command line, for the record.
    """
    cfg = trainer.cfg
    with contextlib.ExitStack() as held:
        if cfg.resume:
            folder = Path(cfg.resume)
        else:
            folder = held.enter_context(new_folder(cfg.run, cfg.name))
        if cfg.resume:
            finish_save(folder, trainer)
            refuse_other_best(folder, trainer)
            write_history(folder, trainer.history)
            print(where_it_continues(trainer, folder), flush=True)
        cfg.run = str(folder)
        cfg.resume = None
        trainer.recorder = Recorder(folder, cfg, tensorboard_writer(trainer, folder))
        write_text(folder / "config.yaml", config.dump(cfg))
        machine = runtime.describe(trainer.device, trainer.computed_in)
        data = trainer.faces.data
        write_environment(folder, data.hash, overrides or [], machine, data.description)
        print_start(trainer, folder)
        trainer.fit()
    return folder


@contextlib.contextmanager
def new_folder(path: str | None, name: str) -> Iterator[Path]:
    """A new run folder, locked. A run that fails before its first save leaves no files there, since
    it could not be resumed from them.
    """
    was_there = path is not None and Path(path).is_dir()
    folder = create(path, name)
    with lock(folder):
        try:
            for file in BEFORE_SAVE:  # of a run that was killed
                (folder / file).unlink(missing_ok=True)
            yield folder
        except BaseException:
            if not any((folder / file).exists() for file in ("last.pt", "best.pt")):
                empty(folder)
                if not was_there:
                    with contextlib.suppress(OSError):  # runs/ holds other runs
                        folder.rmdir()
                        if path is None:
                            folder.parent.rmdir()
            raise


def empty(folder: Path) -> None:
    """Remove what the folder holds, as far as possible."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()


def tensorboard_writer(trainer: Trainer, folder: Path):
    """TensorBoard's writer, if the config asks for one, with the config as its text."""
    if not trainer.cfg.tensorboard:
        return None
    writer = tensorboard.open_writer(folder, trainer.epoch + 1)
    writer.add_text("config", f"```\n{config.dump(trainer.cfg)}```")
    return writer


def where_it_continues(trainer: Trainer, folder: Path) -> str:
    """Where a resumed training continues, or how to train longer if it is complete."""
    settings = trainer.cfg.train
    trust = config.trust_override(trainer.cfg.model_dump())
    again = f"fer train resume={shlex.quote(str(folder))}{trust}"
    if not trainer.done:
        return f"{folder}: resuming at epoch {trainer.epoch + 1}, step {trainer.step + 1}"
    if trainer.epoch >= settings.epochs:
        return (
            f"{folder}: training is complete, {trainer.epoch} of {settings.epochs} epochs; "
            f"to train longer:\n  {again} train.epochs={2 * settings.epochs}"
        )
    patience = counted(settings.patience or 0, "epoch")
    return (
        f"{folder}: training ended after epoch {trainer.epoch}, {patience} without "
        f"a better one (train.patience); to train longer:\n  {again} train.patience=null"
    )


def print_start(trainer: Trainer, folder: Path) -> None:
    """Print the network, the data, the device, and warnings about unlikely settings."""
    cfg, faces = trainer.cfg, trainer.faces
    parameters = sum(p.numel() for p in trainer.network.parameters())
    print(f"{folder}: {cfg.name}, {parameters:,} parameters")
    validation = counted(len(faces.val_images), "validation face")
    print(
        f"{len(faces):,} training faces, {validation}, "
        f"on {trainer.device.type} in {trainer.computed_in}"
    )
    if trainer.start:
        print(wrapped(trainer.start))
    if faces.data.description:
        print(wrapped(f"data: {faces.data.description}"))
    if faces.images.device.type != trainer.device.type:
        gigabytes = (faces.images.nbytes + faces.val_images.nbytes) / 1e9
        print(f"faces stay in main memory ({gigabytes:.1f} GB); each batch is copied to the device")
    for warning in warnings_of(trainer):
        print(wrapped(warning))


def copies_in_words(data: Data, dropped: bool) -> str:
    """How many faces of each split are exact copies of training faces; empty if none are.

    dropped: training faces that are copies of validation faces are left out.
    """
    words = []
    for name, count in data.copies_of_training().items():
        if name == "validation" and dropped:
            continue
        words.append(f"{count:,} of {len(data.splits[name]):,} {name} faces")
    if not words:
        return ""
    remedy = "" if dropped else " (train.copies=drop leaves out those of validation faces)"
    return f"exact copies of training faces: {', '.join(words)}{remedy}"


def warnings_of(trainer: Trainer) -> list[str]:
    """Warnings about settings that the user probably did not intend."""
    cfg, data = trainer.cfg, trainer.faces.data
    warnings = []
    nodes: dict[str, dict | None] = {"schedule": cfg.schedule}
    nodes |= {f"curves.{name}": node for name, node in cfg.curves.items()}
    for key, node in nodes.items():
        last_knot = (node or {}).get("epochs", [0])[-1]
        if last_knot > cfg.train.epochs:
            warnings.append(
                f"{key}.epochs extends to {last_knot:g}, but training stops at {cfg.train.epochs}"
            )
    if data.missing_classes:
        missing = ", ".join(data.missing_classes)
        warnings.append(f"no training faces of {missing}: the network cannot learn them")
    copies = copies_in_words(data, cfg.train.copies == "drop")
    if copies:
        warnings.append(copies)
    crop, size = trainer.plan.augment.crop, trainer.network.model.size
    if crop and crop < size:
        warnings.append(
            f"augment.crop={crop}: training crops are enlarged {size / crop:.2g} times to the "
            f"model's {size} pixels, but validation uses whole faces; model.size={crop} trains and "
            "validates at one scale"
        )
    if isinstance(trainer.optimizer, Muon) and not trainer.optimizer.param_groups[0]["params"]:
        warnings.append(
            "optim.lr has no effect: this network has no inner layer for Muon, so AdamW trains all "
            f"of it at optim.adam_lr={cfg.optim['adam_lr']:g}"
        )
    side = trainer.faces.images.shape[-1]
    if size < side and not crop:
        warnings.append(
            f"the model sees only the center of the faces, {size}×{size} of {side}×{side} pixels; "
            f"model.size={side} uses whole faces, data.size={size} shrinks them"
        )
    if data.enlarged:
        warnings.append(data.enlarged)
    if cfg.profile and trainer.steps <= runtime.UNTRACED_STEPS:
        warnings.append(
            f"profile=true: traces nothing, since it begins with step {runtime.UNTRACED_STEPS + 1} "
            f"and an epoch has {trainer.steps}; set a smaller train.batch_size"
        )
    if cfg.data.get("validation") == "test":
        warnings.append(
            "data.validation=test: the test faces select the epoch, so their accuracy says nothing "
            "about new faces"
        )
    return warnings
