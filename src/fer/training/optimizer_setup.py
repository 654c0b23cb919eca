"""Sets up the optimizer of a run: builds it for a device, saves and restores its state.

The optimizers themselves are classes of torch.optim and fer.optim.
"""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from fer import UserError, config
from fer.models.network import backbone, last_layer


def build_optimizer(
    node: dict, model: nn.Module, device: torch.device, backbone_lr: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer that a checked config node describes.

    backbone_lr: the learning rate of all layers but the last, if they have their own.

    Raises UserError, before any work, for an optimizer whose step() needs more than gradients.
    """
    trial = take_trial_step(node)
    options = {}
    if device.type == "cuda":
        if "capturable" in node:
            options["capturable"] = True
        unset = node.get("fused", False) is None and node.get("foreach") is None
        dampened = node.get("dampening", 0) != 0  # start_momentum() would shrink its first step
        if unset and not dampened and isinstance(trial, torch.optim.SGD | torch.optim.Adam):
            options["fused"] = True
    params: Any = model.parameters()
    if backbone_lr is not None:
        params = in_two_groups(node, model, backbone_lr)
    optimizer = config.build("optim", node | options, params=params)
    start_momentum(optimizer)
    return optimizer


def in_two_groups(node: dict, model: nn.Module, backbone_lr: float) -> list[dict[str, Any]]:
    """The model's parameters: the backbone with its own learning rate, and the last layer."""
    if node["_target_"].startswith("fer.optim."):
        raise UserError(
            f"train.backbone_lr={backbone_lr:g}: not possible with optim=muon, which has its own "
            "groups of layers; choose optim=adamw or optim=sgd"
        )
    return [
        {"params": backbone(model), "lr": backbone_lr},
        {"params": list(last_layer(model)[1].parameters())},
    ]


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter of a fused SGD a momentum of 0, unless it has one.

    torch allocates the momenta in the first step, uninitialized. If that step overflows fp16 it is
    skipped, and the next one reads them. Layers that are frozen in the first step never get theirs,
    which is a TypeError.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"]:
            continue
        for parameter in group["params"]:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def take_trial_step(node: dict) -> torch.optim.Optimizer:
    """An optimizer of this kind after one step on three small matrices and a vector: Muon treats
    the first and the last matrix differently.
    """
    shapes = [(2, 2), (2, 2), (2, 2), (2,)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    trial = config.build("optim", node, params=parameters)
    try:
        trial.step()
    except Exception as error:  # of any kind, if it needs a closure or sparse gradients
        reason = str(error).splitlines()[0]
        raise UserError(
            f"optim._target_={node['_target_']}: cannot train these networks ({reason}); "
            "choose optim=adam, sgd or muon"
        ) from None
    return trial


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state. Learning rates are tensors while steps are captured; here they are
    plain numbers.
    """
    state = optimizer.state_dict()
    groups = []
    for group in state["param_groups"]:
        groups.append(group | {"lr": float(group["lr"])})
    return {"state": state["state"], "param_groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], node: dict) -> None:
    """Restore the moments of a saved state. The options are those of the config's `node`, and how a
    step is computed is this device's choice: neither is taken from the file.

    Raises ValueError if the state does not fit the parameters.
    """
    present = optimizer.state_dict()["param_groups"]
    saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    if saved_sizes != [len(group["params"]) for group in present]:
        raise ValueError("the saved state is one of other parameters")
    if node["_target_"].startswith(("torch.optim.", "fer.optim.")):  # others may keep any state
        check_state(optimizer, saved["state"])
    optimizer.load_state_dict({"state": saved["state"], "param_groups": present})
    start_momentum(optimizer)  # the saved training may have frozen some layers


def check_state(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Any]]) -> None:
    """Raises ValueError for a state that this optimizer cannot have produced: other moments than it
    keeps, text, or tensors of another shape.
    """
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    with warnings.catch_warnings(action="ignore"):  # about a step that no CUDA graph captures
        trial.step()
    kept = trial.state_dict()["state"]
    for index, state in saved.items():
        expected = kept.get(index, {})
        if set(state) != set(expected):
            raise ValueError("the saved moments are others than this optimizer keeps")
        for name, value in state.items():
            if not is_alike(value, expected[name]):
                raise ValueError(f"the saved {name} does not fit its parameter")


def is_alike(value: object, expected: object) -> bool:
    """Whether a saved moment could be this one after more steps."""
    if isinstance(expected, torch.Tensor):
        return isinstance(value, torch.Tensor) and value.shape == expected.shape
    return value is None or isinstance(value, int | float)
