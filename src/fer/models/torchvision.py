"""torchvision's classifiers by name, for gray faces: one channel in, weights by torchvision's names
or from a file.
"""

import difflib
import re
import sys
from bisect import bisect_left
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torchvision
from annotated_types import Ge, Le
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from fer import FilePath
from fer.files import regular
from fer.models.layers import on_meta

Classes = Annotated[int, Ge(1), Le(65_536)]
Side = Annotated[int, Ge(1), Le(1024)]  # pixels; FER2013's faces have 48
ENOUGH = 299  # pixels: no network of torchvision needs larger images
POSITIONS = "encoder.pos_embedding"  # of a vision transformer
State = dict[str, torch.Tensor]


def classifier(
    *,
    name: str,
    size: Side = 48,
    classes: Classes = 7,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    weights: FilePath | None = None,
) -> nn.Module:
    """Images N×1×size×size to logits N×classes. The first convolution is summed over RGB, so the
    network computes what it would for a gray face in three equal channels.

    stem: for ResNets; cifar is a 3×3 convolution with stride 1 and no pool.
    weights: one of torchvision's names for this network, such as IMAGENET1K_V1, which torchvision
    downloads into its cache, or a state-dict file. The last layer is initialized anew if its number
    of classes differs.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
        raise ValueError(
            f"name={name}: not one of torchvision's classifiers; nearest: {', '.join(nearest)}"
        )
    check_divisible(name, size)
    model = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **constructor_options(name, size)
    )
    if stem == "cifar":
        use_cifar_stem(model, name)
    sum_over_rgb(model)
    check_size(model, name, size)
    if weights is not None:
        load_weights(model, name, weights)
    model.size = size
    return model


def check_divisible(name: str, size: int) -> None:
    """Refuse a size that a transformer cannot cut into its patches or windows."""
    if name.startswith("vit_"):
        step = int(name.rpartition("_")[2])  # side of a patch
    elif name.startswith("maxvit_"):
        step = 224  # windows of 7×7 at strides up to 32
    else:
        return
    if size % step:
        raise ValueError(
            f"{name} cannot take {size}×{size}; set model.size to a multiple of {step}"
        )


def constructor_options(name: str, size: int) -> dict[str, Any]:
    """The keyword arguments that some of torchvision's networks need."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit_"):
        return {"input_size": (size, size)}
    return {}


def use_cifar_stem(model: nn.Module, name: str) -> None:
    if not isinstance(model, torchvision.models.ResNet):
        raise ValueError(
            f"stem=cifar: {name} has no such stem, only ResNets do; set model.stem=imagenet"
        )
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    # The initialization that torchvision gives its own stem.
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def sum_over_rgb(model: nn.Module) -> None:
    """Make the first convolution take one channel."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))


def check_size(model: nn.Module, name: str, size: int) -> None:
    """Refuse a size that the model cannot take; the message gives the smallest one above it that it
    can.
    """
    shapes = on_meta(model)
    reason = refusal(shapes, size)
    if not reason:
        return
    smallest = bisect_left(
        range(ENOUGH), True, key=lambda side: side > size and not refusal(shapes, side)
    )
    raise ValueError(
        f"{name} cannot take {size}×{size}: {reason}; set model.size to {smallest} or more"
    )


def refusal(shapes: nn.Module, size: int) -> str:
    """Why a model on the meta device cannot take images of this size; empty if it can."""
    try:
        shapes(torch.zeros(1, 1, size, size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        return first_line.rstrip(".") or type(error).__name__
    return ""


def load_weights(model: nn.Module, name: str, weights: str) -> None:
    """Copy torchvision's named weights, or a state-dict file, into the model. Raises ValueError if
    they do not fit.
    """
    looks_like_a_name = re.fullmatch(r"[A-Z][A-Z0-9_]*", weights) and not Path(weights).exists()
    source = named_weights(name, weights) if looks_like_a_name else read_weights(name, weights)
    state = model.state_dict()
    fitted = fitted_to(model, current_keys(source), state)
    for key in sorted(fitted.keys() | state.keys()):
        found = tuple(fitted[key].shape) if key in fitted else "missing"
        wanted = tuple(state[key].shape) if key in state else "missing"
        if found != wanted:
            raise ValueError(
                f"weights={weights}: do not fit {name}: {key} is {found} instead of {wanted}"
            )
        state[key].copy_(fitted[key])


def named_weights(name: str, weights: str) -> State:
    """torchvision's weights of a network by their name, from its cache or downloaded into it."""
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        raise ValueError(
            f"weights={weights}: no such file, and torchvision has no such weights of {name}; it "
            f"has {', '.join(known.__members__) or 'none'}"
        )
    entry = known[weights]
    try:
        return entry.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # no network, a server's refusal, a truncated file, a full disk
        reason = getattr(error, "reason", None) or str(error).partition("\n")[0]
        raise ValueError(
            f"weights={weights}: cannot be downloaded ({reason}); fetch {entry.url} on another "
            "machine and give the file, model.weights=FILE"
        ) from None


def read_weights(name: str, path: str) -> State:
    """The state dict in a file. Raises ValueError if the file has none."""
    try:
        state = torch.load(regular(path), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or untrusted file may raise nearly anything
        reason = getattr(error, "strerror", None)
        reason = reason or "damaged, or more than weights and plain values"
        raise ValueError(
            f"weights={path}: cannot be loaded ({reason}); give a state-dict file of {name}"
        ) from None
    is_state_dict = isinstance(state, dict) and all(
        isinstance(value, torch.Tensor) for value in state.values()
    )
    if not is_state_dict:
        raise ValueError(
            f"weights={path}: no state dict; save one with torch.save(model.state_dict(), path)"
        )
    return state


def current_keys(source: State) -> State:
    """A state dict with the keys of today's torchvision. Its files name some DenseNet layers norm.1
    instead of norm1, and contain auxiliary classifiers, which are left out here.
    """
    state = {}
    for key, value in source.items():
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1", str(key))
        if not key.startswith(("aux1.", "aux2.", "AuxLogits.")):
            state[key] = value
    return state


def fitted_to(model: Any, source: State, state: State) -> State:
    """The source, adapted where the model differs on purpose: one input channel, another number of
    classes, another image size. state: the model's own values.
    """
    first, last = first_and_last_layer(model)
    fitted = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):  # missing in files from before 2018
            fitted[key] = value
    fitted |= source

    kernel = fitted.get(f"{first}.weight")
    if kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 3:
        fitted[f"{first}.weight"] = kernel.sum(1, keepdim=True)

    head = fitted.get(f"{last}.weight")
    own_head = state[f"{last}.weight"]
    if head is not None and head.shape[1:] == own_head.shape[1:] and len(head) != len(own_head):
        fitted[f"{last}.weight"] = own_head
        fitted[f"{last}.bias"] = state[f"{last}.bias"]

    if POSITIONS in state and POSITIONS in fitted:
        same_width = fitted[POSITIONS].shape[-1] == state[POSITIONS].shape[-1]
        if same_width and fitted[POSITIONS].dim() == 3:
            fitted = interpolate_embeddings(model.image_size, model.patch_size, fitted)
    return fitted


def first_and_last_layer(model: nn.Module) -> tuple[str, str]:
    """The names of the first and the last convolution or dense layer."""
    names = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            names.append(name)
    return names[0], names[-1]
