"""The quantities that follow a curve during training: learning rate, dropout rate, image size and
augmentation strengths, and the full value that each curve multiplies.
"""

from typing import NamedTuple

from torch import nn

from fer import UserError, config
from fer.augment import SHARES, STRENGTHS, Augment
from fer.schedule import Curve


class Driven(NamedTuple):
    """A quantity that changes: its value is full × curve(epoch, epochs, history).

    full: the learning rate, the largest dropout rate, the image side in pixels, or a number of
    Augment. Mixings follow the curve as a share of the batches, crops as a share of the largest
    distance from the center: their full value is 1.
    """

    curve: Curve
    full: float


def build_curves(cfg: config.TrainConfig, augment: Augment, model: nn.Module) -> dict[str, Driven]:
    """The quantities that change, by name: `lr`, and those of `cfg.curves`.

    Raises UserError for a curve over a quantity that is unknown or switched off.
    """
    full_values = drivable(augment, model)
    curves = {"lr": Driven(config.build("schedule", cfg.schedule), cfg.optim["lr"])}
    for name, node in cfg.curves.items():
        if name not in full_values:
            known = ", ".join(full_values)
            raise UserError(
                f"curves.{name}: no such quantity; choose from {known} "
                "(schedule sets the learning rate)"
            )
        if not full_values[name]:
            remedy = how_to_switch_on(name, model)
            raise UserError(f"curves.{name}: {remedy}remove the curve with curves.{name}=null")
        full = 1.0 if name in SHARES else full_values[name]
        curves[name] = Driven(config.build("schedule", node or {}, f"curves.{name}"), full)
    return curves


def drivable(augment: Augment, model: nn.Module) -> dict[str, float]:
    """Every quantity that a curve may drive, with its full value; 0 where it is switched off."""
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    takes_any_size = getattr(model, "any_size", False)
    values: dict[str, float] = {
        "dropout": max(dropouts, default=0.0),
        "size": float(model.size) if takes_any_size else 0.0,  # type: ignore[arg-type]
    }
    for name in STRENGTHS:
        values[name] = getattr(augment, name)
    return values


def how_to_switch_on(name: str, model: nn.Module) -> str:
    """Why the quantity is switched off, and how to switch it on if that is possible."""
    if name == "size":
        return f"this model has a fixed input size of {model.size}×{model.size} pixels; "
    if name == "dropout":
        return "this model has no dropout, or a dropout rate of 0; set model.dropout, or "
    return f"augment.{name} is off; set it, or "
