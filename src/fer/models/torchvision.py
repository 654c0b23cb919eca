"""torchvision's classifiers by name, for gray faces: one channel in, weights by torchvision's names
or from a file.
"""

import copy
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

Classes = Annotated[int, Ge(1), Le(65_536)]
Side = Annotated[int, Ge(1), Le(1024)]  # pixels: faces have 48


def classifier(
    *,
    name: str,
    size: Side = 48,
    classes: Classes = 7,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    weights: FilePath | None = None,
) -> nn.Module:
    """Images N×1×size×size to logits N×classes. The first convolution is summed over RGB: what the
    network computes for a gray face given thrice.

    stem: of ResNets; cifar is a 3×3 convolution of stride 1 and no pool. weights: one of
    torchvision's names for this network, such as IMAGENET1K_V1, which torchvision downloads into
    its cache, or a state-dict file. The last layer is initialized anew if its classes differ.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
        raise ValueError(
            f"name={name}: not one of torchvision's classifiers; nearest: {', '.join(near)}"
        )
    options: dict[str, Any] = {}
    step = 1
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options, step = {"image_size": size}, int(name.rpartition("_")[2])  # its patches
    elif name.startswith("maxvit_"):
        options, step = {"input_size": (size, size)}, 224  # 7×7 windows at strides up to 32
    if size % step:
        raise ValueError(
            f"{name} cannot take {size}×{size}; set model.size to a multiple of {step}"
        )

    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    if stem == "cifar":
        if not isinstance(model, torchvision.models.ResNet):
            raise ValueError(
                f"stem=cifar: {name} has no such stem, only ResNets do; set model.stem=imagenet"
            )
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        nn.init.kaiming_normal_(
            model.conv1.weight, mode="fan_out", nonlinearity="relu"
        )  # as torchvision's own
    conv = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    conv.in_channels, conv.weight = 1, nn.Parameter(conv.weight.detach().sum(1, keepdim=True))
    shapes = copy.deepcopy(model).to("meta").eval()
    if reason := _refusal(shapes, size):
        least = bisect_left(
            range(299), True, key=lambda side: side > size and not _refusal(shapes, side)
        )
        raise ValueError(
            f"{name} cannot take {size}×{size}: {reason}; set model.size to {least} or more"
        )
    if weights is not None:
        _load(model, name, weights)
    model.size = size
    return model


def _refusal(shapes: nn.Module, size: int) -> str:
    """Why a model, on the device meta (no arithmetic, no memory), cannot take images of this size,
    or nothing.
    """
    try:
        shapes(torch.zeros(1, 1, size, size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return ""


def _named(name: str, weights: str) -> dict[str, torch.Tensor]:
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
    except Exception as error:  # no network, a server's refusal, a torn file, a full disk
        reason = getattr(error, "reason", None) or str(error).partition("\n")[0]
        raise ValueError(
            f"weights={weights}: cannot be downloaded ({reason}); fetch {entry.url} on another "
            "machine and give the file, model.weights=FILE"
        ) from None


def _load(model: nn.Module, name: str, path: str) -> None:
    """Copy named weights or a state-dict file into the model; ValueError if they do not fit."""
    looks_like_a_name = re.fullmatch(r"[A-Z][A-Z0-9_]*", path) and not Path(path).exists()
    given = _named(name, path) if looks_like_a_name else _read(name, path)
    own = model.state_dict()
    first, *_, last = (
        key for key, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    )
    kernel, head, places = f"{first}.weight", f"{last}.weight", "encoder.pos_embedding"
    # torchvision's files name some DenseNet layers norm.1, hold the auxiliary classifiers that are
    # left out here, and older ones count no batches.
    given = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)", r"\1", str(key)): value
        for key, value in given.items()
    }
    given = {
        key: value
        for key, value in given.items()
        if not key.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    given = {key: own[key] for key in own if key.endswith("num_batches_tracked")} | given
    if kernel in given and given[kernel].dim() == 4 and given[kernel].shape[1] == 3:
        given[kernel] = given[kernel].sum(1, keepdim=True)
    if (
        head in given
        and given[head].shape[1:] == own[head].shape[1:]
        and len(given[head]) != len(own[head])
    ):
        given |= {key: own[key] for key in (head, f"{last}.bias")}
    if places in own and places in given and given[places].shape[::2] == own[places].shape[::2]:
        given = interpolate_embeddings(model.image_size, model.patch_size, given)
    for key in sorted(given | own):
        found, wanted = (
            tuple(state[key].shape) if key in state else "missing" for state in (given, own)
        )
        if found != wanted:
            raise ValueError(
                f"weights={path}: do not fit {name}: {key} is {found} instead of {wanted}"
            )
        own[key].copy_(given[key])


def _read(name: str, path: str) -> dict[str, torch.Tensor]:
    """The state dict in a file; ValueError if it holds none."""
    try:
        given = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        reason = (
            getattr(error, "strerror", None) or "damaged, or more than weights and plain values"
        )
        raise ValueError(
            f"weights={path}: cannot be loaded ({reason}); give a state-dict file of {name}"
        ) from None
    if not isinstance(given, dict) or not all(
        isinstance(value, torch.Tensor) for value in given.values()
    ):
        raise ValueError(
            f"weights={path}: no state dict; save one with torch.save(model.state_dict(), path)"
        )
    return given
