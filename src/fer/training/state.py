"""What a resume needs besides the weights: collected for last.pt, and restored from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fer import UserError
from fer.checkpoint import load_weights
from fer.text import counted
from fer.training.clock import Stopwatch
from fer.training.optimizer_setup import load_optimizer, optimizer_state

if TYPE_CHECKING:
    from fer.training.trainer import Trainer


def collect(trainer: "Trainer", record: torch.Tensor) -> dict[str, Any]:
    """The state of a run. record: float64 steps×2, see Step.record, over all processes."""
    state = {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "steps": trainer.steps,
        "seconds": trainer.watch.seconds,
        "record": record,
        "history": trainer.history,
        "faces": trainer.faces.fingerprint,  # SHA-256
        "computed_in": trainer.computed_in,
        "optimizer": optimizer_state(trainer.optimizer),
        "scaler": trainer.scaler.state_dict(),
    }
    if trainer.average:
        state["average"] = trainer.average.state_dict()
    return state


def restore(trainer: "Trainer", contents: dict[str, Any], path: Path) -> None:
    """Continue where the last.pt at `path`, which has these contents, stopped. Raises UserError if
    they do not fit the run.
    """
    load_weights(trainer.network.model, contents["model"], path)
    try:
        restore_state(trainer, contents["training"], path)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError):
        raise UserError(
            f"{path}: its training state does not fit its config; the file is damaged or was "
            "changed, so start a new run"
        ) from None


def restore_state(trainer: "Trainer", state: dict[str, Any], path: Path) -> None:
    """Restore all but the weights. Checkpoints of earlier versions lack faces, steps, scaler and
    number format.
    """
    if state.get("faces", trainer.faces.fingerprint) != trainer.faces.fingerprint:
        raise UserError(
            f"{path}: was trained on other faces or labels; "
            "set data.path to those, or start a new run"
        )
    trainer.history = list(state["history"])
    trainer.step = int(state["step"])
    trainer.watch = Stopwatch(float(state["seconds"]))
    check_place(trainer, state, path)
    load_optimizer(trainer.optimizer, state["optimizer"], trainer.cfg.optim)
    if trainer.scaler.is_enabled() and state.get("scaler"):
        trainer.scaler.load_state_dict(state["scaler"])
    if trainer.average:
        trainer.average.load_state_dict(state["average"])
    before = state.get("computed_in", trainer.computed_in)
    if before != trainer.computed_in and trainer.rank == 0:
        print(f"trained in {before} so far, continues in {trainer.computed_in}", flush=True)
    if trainer.rank == 0:  # the processes' records are summed
        record = state["record"] if "record" in state else state["sums"][None, :2]
        record = record.to(trainer.device, torch.float32)
        trainer.step_function.record[: len(record)] = record


def check_place(trainer: "Trainer", state: dict[str, Any], path: Path) -> None:
    """Refuse an epoch or step that this run cannot be at; ValueError if the file was changed."""
    for row in trainer.history:
        if not all(isinstance(row[name], int | float) for name in ("epoch", "val_accuracy")):
            raise ValueError
    if state["epoch"] != trainer.epoch or trainer.best["epoch"] > trainer.epoch:
        raise ValueError
    if trainer.epoch > trainer.cfg.train.epochs:
        epochs = counted(trainer.epoch, "epoch")
        raise UserError(
            f"resume={path.parent}: the run has finished {epochs}, more than "
            f"train.epochs={trainer.cfg.train.epochs}; set it higher"
        )
    if trainer.step and state.get("steps", trainer.steps) != trainer.steps:
        steps = counted(state["steps"], "step")
        raise UserError(
            f"resume={path.parent}: it stopped inside an epoch of {steps}, but this "
            f"number of processes makes {trainer.steps}; resume with as many processes as before"
        )
    if not 0 <= trainer.step <= trainer.steps:
        raise ValueError
