"""ConvNet: every plain network of the field, convolutions then dense layers, from two lists in YAML.

`features` is read from left to right. A number is a convolution with that many filters, its normalization and its
activation; `pool`, `norm` and `dropout` are what they say; a mapping gives a layer its own numbers:
`{conv: 64, kernel: 5, padding: 0}`, `{pool: average, kernel: 3, padding: 1}`, `{dropout: 0.1}`. `{residual: 64}` is a
residual block, with squeeze-and-excitation as `{residual: 64, squeeze: 16}`; `{space_to_depth: 2}` turns 2×2 pixels
into 4 channels; `global_pool` averages over the whole map. In `head`, after flattening, a number is a dense layer with
that many units and its activation. An empty `features` makes a plain multilayer perceptron. Gray values and
the faces' own size are network.py's matter.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Required

import torch
from annotated_types import Ge, Lt
from torch import nn
from typing_extensions import TypedDict

from fer.models.layers import PReLU, Residual, same_padding

Positive = Annotated[int, Ge(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
Padding = Annotated[int, Ge(0)] | Literal["same"]
Activation = Literal["none", "relu", "leaky_relu", "prelu", "gelu"]


class Conv(TypedDict, total=False):
    conv: Required[Positive]
    kernel: Positive
    stride: Positive
    padding: Padding


class Pool(TypedDict, total=False):
    pool: Required[Literal["max", "average"]]
    kernel: Positive
    stride: Positive
    padding: Padding


class ResidualBlock(TypedDict, total=False):
    residual: Required[Positive]
    squeeze: Positive


class SpaceToDepth(TypedDict):
    space_to_depth: Positive


class Dropout(TypedDict):
    dropout: Rate


Feature = (
    Positive | Literal["pool", "global_pool", "norm", "dropout"] | Conv | Pool | ResidualBlock | SpaceToDepth | Dropout
)
Dense = Positive | Literal["norm", "dropout"] | Dropout


class ConvNet(nn.Module):
    """Images N×1×size×size to logits N×classes.

    kernel, padding: of convolutions that give none; `same` is Keras's (output = ceil(input / stride)), a number is
    zeros on every side. pool: kind of a plain `pool` (2×2, stride 2, SAME). A pool's own numeric padding is explicit
    zeros, which take part in the maximum and the mean. order: where the normalization stands in a convolution block.
    slope: of leaky_relu. dropout: rate of a plain `dropout`. output_activation: applied to the logits. Weights start
    as in He et al. 2015, the last layer's as in Glorot & Bengio 2010.
    """

    def __init__(
        self,
        *,
        features: list[Feature],
        head: list[Dense],
        size: Positive = 48,
        channels: Literal[1] = 1,
        classes: Positive = 7,
        kernel: Positive = 3,
        padding: Padding = "same",
        pool: Literal["max", "average"] = "max",
        activation: Activation = "relu",
        head_activation: Activation = "relu",
        output_activation: Activation = "none",
        slope: float = 0.01,
        norm: Literal["none", "batch"] = "none",
        order: Literal["norm_activation", "activation_norm"] = "norm_activation",
        norm_eps: Annotated[float, Ge(0)] = 1e-5,
        norm_momentum: Annotated[float, Ge(0)] = 0.1,
        dropout: Rate = 0.5,
    ):
        super().__init__()
        self.size, self.any_size = size, "global_pool" in features
        self.shape: tuple[int, ...] = (channels, size, size)  # of what is built so far
        self.slope, self.norm_options = slope, dict[str, Any](eps=norm_eps, momentum=norm_momentum)
        self.features, self.head = nn.Sequential(), nn.Sequential()

        stage, number = 1, 0
        spec: Any  # mypy loses TypedDicts in a match
        for spec in features:
            match spec:
                case int() | {"conv": _}:
                    own = {"conv": spec} if isinstance(spec, int) else spec
                    number += 1
                    name = f"{stage}_{number}"
                    self._window("conv", name, {"kernel": kernel, "stride": 1, "padding": padding, **own})
                    for layer in order.split("_"):
                        if layer == "activation":
                            self._activation(self.features, activation, name)
                        elif norm == "batch":
                            self._norm(self.features, name)
                case "pool" | {"pool": _}:
                    own = {"pool": pool} if spec == "pool" else spec
                    self._window("pool", str(stage), {"kernel": 2, "stride": 2, "padding": "same", **own})
                    stage, number = stage + 1, 0
                case {"residual": filters}:
                    number += 1
                    inputs, self.shape = self.shape[0], (filters, *self.shape[1:])
                    act, squeeze = partial(self._act, activation), spec.get("squeeze", 0)
                    block = Residual(inputs, filters, act, squeeze, **self.norm_options)
                    self.features.add_module(f"residual{stage}_{number}", block)
                case {"space_to_depth": block}:
                    filters, side, _ = self.shape
                    if side % block:
                        raise ValueError(f"space_to_depth={block}: does not divide {side}×{side}")
                    self.features.add_module(f"space_to_depth{stage}", nn.PixelUnshuffle(block))
                    self.shape = (filters * block**2, side // block, side // block)
                case "global_pool":
                    self.features.add_module("global_pool", nn.AdaptiveAvgPool2d(1))
                    self.shape = (self.shape[0], 1, 1)
                case "norm":
                    self._norm(self.features, f"{stage - 1}" if number == 0 else f"{stage}_{number}b")
                case _:
                    self._dropout(self.features, spec, dropout)

        self.head.add_module("flatten", nn.Flatten())
        self.shape = (math.prod(self.shape),)
        for number, spec in enumerate(head, 1):
            match spec:
                case int():
                    self._dense(f"dense{number}", spec)
                    self._activation(self.head, head_activation, str(number))
                case "norm":
                    self._norm(self.head, str(number))
                case _:
                    self._dropout(self.head, spec, dropout)
        logits = self._dense("logits", classes)
        self._activation(self.head, output_activation, "")

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(logits.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    def _window(self, kind: str, name: str, spec: dict) -> None:
        """A convolution or a pool: layers that slide a window; follows the shape."""
        channels, side, _ = self.shape
        kernel, stride, same = spec["kernel"], spec["stride"], spec["padding"] == "same"
        before, after = same_padding(side, kernel, stride) if same else (spec["padding"],) * 2
        out = (side + before + after - kernel) // stride + 1
        if out < 1:
            raise ValueError(f"{kind}{name}: a {kernel}×{kernel} window does not fit into {side}×{side}")
        layer: nn.Module
        if kind == "conv":
            if before != after:  # an even kernel: the extra row and column go below and to the right
                self.features.add_module(f"pad{name}", nn.ZeroPad2d((before, after, before, after)))
                before = 0
            layer = nn.Conv2d(channels, spec["conv"], kernel, stride, padding=before)
            channels = spec["conv"]
        elif same:  # cells outside the map take no part; ceil_mode gives the extra row that SAME puts last
            options = {} if spec["pool"] == "max" else {"count_include_pad": False}
            layer = POOLS[spec["pool"]](kernel, stride, padding=before, ceil_mode=after > before, **options)
        else:
            if before:
                self.features.add_module(f"pad{name}", nn.ZeroPad2d(before))
            layer = POOLS[spec["pool"]](kernel, stride)
        self.features.add_module(f"{kind}{name}", layer)
        self.shape = (channels, out, out)

    def _dense(self, name: str, units: int) -> nn.Linear:
        layer = nn.Linear(self.shape[0], units)
        self.head.add_module(name, layer)
        self.shape = (units,)
        return layer

    def _norm(self, part: nn.Sequential, name: str) -> None:
        kind = nn.BatchNorm2d if part is self.features else nn.BatchNorm1d
        part.add_module(f"norm{name}", kind(self.shape[0], **self.norm_options))

    def _activation(self, part: nn.Sequential, kind: Activation, name: str) -> None:
        if kind != "none":
            part.add_module(f"activation{name}", self._act(kind))

    def _act(self, kind: Activation) -> nn.Module:
        layers: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "relu": lambda: nn.ReLU(inplace=True),
            "leaky_relu": lambda: nn.LeakyReLU(self.slope, inplace=True),
            "prelu": lambda: PReLU(self.shape),
            "gelu": nn.GELU,
        }
        return layers[kind]()

    def _dropout(self, part: nn.Sequential, spec, rate: float) -> None:
        part.add_module(f"dropout{len(part)}", nn.Dropout(rate if spec == "dropout" else spec["dropout"]))


POOLS: dict[str, Any] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
