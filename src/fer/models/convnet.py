"""ConvNet: every plain network of the field, convolutions then dense layers, from two lists in
YAML.

`features` is read from left to right. A number is a convolution with that many filters, its
normalization and its activation; `pool`, `norm` and `dropout` are what they say; a mapping gives a
layer its own numbers: `{conv: 64, kernel: 5, padding: 0}`, `{pool: average, kernel: 3, padding:
1}`, `{dropout: 0.1}`. `{residual: 64}` is a residual block, with squeeze-and-excitation as
`{residual: 64, squeeze: 16}`; `{space_to_depth: 2}` turns 2×2 pixels into 4 channels; `global_pool`
averages over the whole map. In `head`, after flattening, a number is a dense layer with that many
units and its activation. An empty `features` makes a plain multilayer perceptron. Gray values and
the faces' own size are network.py's matter.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, Required

import torch
from annotated_types import Ge, Le, Lt
from torch import nn
from typing_extensions import TypedDict

from fer.models.layers import PReLU, Residual

WIDEST = 65_536  # filters or units: more is a slip of the finger
Width = Annotated[int, Ge(1), Le(WIDEST)]
Side = Annotated[int, Ge(1), Le(1024)]  # pixels: faces have 48
Rate = Annotated[float, Ge(0), Lt(1)]
Padding = Annotated[int, Ge(0), Le(1024)] | Literal["same"]
Kind = Literal["max", "average"]
Activation = Literal["none", "relu", "leaky_relu", "prelu", "gelu"]


class Conv(TypedDict, total=False):
    conv: Required[Width]
    kernel: Side
    stride: Side
    padding: Padding


class Pool(TypedDict, total=False):
    pool: Required[Kind]
    kernel: Side
    stride: Side
    padding: Padding


class ResidualBlock(TypedDict, total=False):
    residual: Required[Width]
    squeeze: Width


class SpaceToDepth(TypedDict):
    space_to_depth: Side


class Dropout(TypedDict):
    dropout: Rate


Word = Literal["pool", "global_pool", "norm", "dropout"]
Feature = Width | Word | Conv | Pool | ResidualBlock | SpaceToDepth | Dropout
Dense = Width | Literal["norm", "dropout"] | Dropout


class ConvNet(nn.Module):
    """Images N×1×size×size to logits N×classes.

    kernel, padding: of convolutions that give none; `same` is Keras's (output = ceil(input /
    stride)), a number is zeros on every side. pool: kind of a plain `pool` (2×2, stride 2, SAME). A
    pool's own numeric padding is explicit zeros, which take part in the maximum and the mean.
    order: where the normalization stands in a convolution block.
    slope: of leaky_relu. prelu_slope: with which prelu starts, 0 in Keras. dropout: rate of a plain
    `dropout`.
    output_activation: applied to the logits. init: how weights start, `he` (He et al. 2015, the
    last layer's as in Glorot & Bengio 2010) or `glorot`, Keras's default for all layers. Biases
    start at 0.
    """

    def __init__(
        self,
        *,
        features: list[Feature],
        head: list[Dense],
        size: Side = 48,
        channels: Literal[1] = 1,
        classes: Width = 7,
        kernel: Side = 3,
        padding: Padding = "same",
        pool: Kind = "max",
        activation: Activation = "relu",
        head_activation: Activation = "relu",
        output_activation: Activation = "none",
        slope: Annotated[float, Ge(0)] = 0.01,
        prelu_slope: float = 0.25,
        init: Literal["he", "glorot"] = "he",
        norm: Literal["none", "batch"] = "none",
        order: Literal["norm_activation", "activation_norm"] = "norm_activation",
        norm_eps: Annotated[float, Ge(0)] = 1e-5,
        norm_momentum: Annotated[float, Ge(0), Le(1)] = 0.1,
        dropout: Rate = 0.5,
    ):
        super().__init__()
        self.size, self.any_size = size, "global_pool" in features
        self.slope, self.prelu_slope = slope, prelu_slope
        self.norm_options = dict[str, Any](eps=norm_eps, momentum=norm_momentum)
        self.features, self.head = nn.Sequential(), nn.Sequential()
        self.shape = torch.Size(
            [channels, size, size]
        )  # of what the last layer puts out, without the batch

        words = {"pool": pool, "dropout": dropout}
        block = {"norm": norm, "activation": activation}
        stage, number = 1, 0
        for feature in features:
            match spelled_out(feature, "conv", words):
                case {"conv": filters, **own}:
                    number += 1
                    name = f"{stage}_{number}"
                    self._convolution(name, filters, **{"kernel": kernel, "padding": padding} | own)
                    for layer in order.split("_"):
                        self._add(self.features, f"{layer}{name}", block[layer])
                case {"pool": kind, **own}:
                    self._pool(str(stage), kind, **own)
                    stage, number = stage + 1, 0
                case {"residual": filters, **own}:
                    number += 1
                    act = partial(self._layer, activation, (filters, *self.shape[1:]))
                    residual = Residual(self.shape[0], filters, act, **own, **self.norm_options)
                    self._add(self.features, f"residual{stage}_{number}", residual)
                case {"space_to_depth": factor}:
                    side = self.shape[1]
                    if side % factor:
                        raise ValueError(f"space_to_depth={factor}: does not divide {side}×{side}")
                    self._add(self.features, f"space_to_depth{stage}", nn.PixelUnshuffle(factor))
                case {"global_pool": _}:
                    self._add(self.features, "global_pool", nn.AdaptiveAvgPool2d(1))
                case {"norm": _}:
                    self._add(
                        self.features,
                        f"norm{stage}_{number}b" if number else f"norm{stage - 1}",
                        "batch",
                    )
                case {"dropout": rate}:
                    self._add(self.features, f"dropout{len(self.features)}", nn.Dropout(rate))

        self._add(self.head, "flatten", nn.Flatten())
        for number, dense in enumerate(head, 1):
            match spelled_out(dense, "dense", words):
                case {"dense": units}:
                    self._add(self.head, f"dense{number}", nn.Linear(self.shape[0], units))
                    self._add(self.head, f"activation{number}", head_activation)
                case {"norm": _}:
                    self._add(self.head, f"norm{number}", "batch")
                case {"dropout": rate}:
                    self._add(self.head, f"dropout{len(self.head)}", nn.Dropout(rate))
        logits = nn.Linear(self.shape[0], classes)
        self._add(self.head, "logits", logits)
        self._add(self.head, "activation", output_activation)

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if init == "glorot":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(logits.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    def _add(self, part: nn.Sequential, name: str, layer: nn.Module | str) -> None:
        """A layer, or one of that kind, for what the layer before it puts out."""
        if layer == "none":
            return
        if hasattr(part, name):  # as of two norms in a row
            name = f"{name}_{len(part)}"
        layer = self._layer(layer, self.shape) if isinstance(layer, str) else layer
        part.add_module(name, layer)
        self.shape = layer.eval()(torch.zeros(1, *self.shape)).shape[1:]
        layer.train()

    def _layer(self, kind: str, shape: tuple[int, ...]) -> nn.Module:
        """The activation or the normalization of that kind, for values of that shape."""
        batch_norm = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
        layers: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "relu": lambda: nn.ReLU(inplace=True),
            "leaky_relu": lambda: nn.LeakyReLU(self.slope, inplace=True),
            "prelu": lambda: PReLU(shape, self.prelu_slope),
            "gelu": nn.GELU,
            "batch": lambda: batch_norm(shape[0], **self.norm_options),
        }
        return layers[kind]()

    def _convolution(
        self, name: str, filters: int, kernel: int, padding: Padding, stride: int = 1
    ) -> None:
        before, after = self._sides(f"conv{name}", kernel, stride, padding)
        if before != after:  # an even kernel: the extra row and column go below and to the right
            self._add(self.features, f"pad{name}", nn.ZeroPad2d((before, after, before, after)))
            before = 0
        self._add(
            self.features, f"conv{name}", nn.Conv2d(self.shape[0], filters, kernel, stride, before)
        )

    def _pool(
        self, name: str, kind: Kind, kernel: int = 2, stride: int = 2, padding: Padding = "same"
    ) -> None:
        before, after = self._sides(f"pool{name}", kernel, stride, padding)
        if padding not in ("same", 0):
            self._add(self.features, f"pad{name}", nn.ZeroPad2d(before))
            before = after = 0
        pool = partial(POOLS[kind], kernel, stride)
        if before == after or stride > 1:  # ceil_mode gives the extra row that SAME puts last
            self._add(self.features, f"pool{name}", pool(before, ceil_mode=after > before))
        else:  # but not at stride 1: padded by it on all sides, the first of too many is cut off
            self._add(self.features, f"pool{name}", pool(after))
            self._add(self.features, f"cut{name}", nn.ZeroPad2d((-1, 0, -1, 0)))

    def _sides(self, name: str, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
        """Rows of padding above and below a window's map, columns to its left and right."""
        side = self.shape[1]
        total = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            if padding == "same"
            else 2 * padding
        )
        if kernel > side + total:
            raise ValueError(f"{name}: a {kernel}×{kernel} window does not fit into {side}×{side}")
        return total // 2, total - total // 2


POOLS: dict[str, Any] = {
    "max": nn.MaxPool2d,
    "average": partial(nn.AvgPool2d, count_include_pad=False),
}


def spelled_out(layer: Any, number: str, words: dict[str, Any]) -> dict[str, Any]:
    """A layer's mapping, also where a number or a word is short for it."""
    if isinstance(layer, int):
        return {number: layer}
    return {layer: words.get(layer)} if isinstance(layer, str) else layer
