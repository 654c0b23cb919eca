"""ConvNet: convolutional networks and multilayer perceptrons, built from two lists in YAML.

`features` is read from left to right:

- a number, such as 64: a convolution with that many filters, its normalization and activation
- `{conv: 64, kernel: 5, padding: 0}`: the same with its own kernel, stride or padding
- `pool`, or `{pool: average, kernel: 3, padding: 1}`
- `norm`: a normalization
- `dropout`, or `{dropout: 0.1}`
- `{residual: 64}`: a residual block; `{residual: 64, squeeze: 16}` adds squeeze-and-excitation
- `{space_to_depth: 2}`: turns 2×2 pixels into 4 channels
- `global_pool`: the mean over the whole feature map

`head` follows after flattening. There a number is a dense layer with that many units, and its
activation; `norm` and `dropout` mean the same as above. With an empty `features` the network is a
multilayer perceptron. network.py fits faces to the input size and normalizes gray values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Required

import torch
from annotated_types import Ge, Le, Lt
from torch import nn
from typing_extensions import TypedDict

from fer.models.layers import PReLU, Residual, on_meta

WIDEST = 65_536  # filters or units; more is surely a typo
Width = Annotated[int, Ge(1), Le(WIDEST)]
Side = Annotated[int, Ge(1), Le(1024)]  # pixels; FER2013's faces have 48
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
Norm = Literal["none", "batch"]
Order = Literal["norm_activation", "activation_norm"]
Feature = Width | Word | Conv | Pool | ResidualBlock | SpaceToDepth | Dropout
Dense = Width | Literal["norm", "dropout"] | Dropout


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The options of all layers that do not give their own; ConvNet explains them."""

    kernel: int
    padding: Padding
    pool: Kind
    activation: Activation
    slope: float
    prelu_slope: float
    norm: Norm
    order: Order
    norm_eps: float
    norm_momentum: float
    dropout: float

    @property
    def batch_norm(self) -> dict[str, Any]:
        """The keyword arguments of every BatchNorm."""
        return {"eps": self.norm_eps, "momentum": self.norm_momentum}


class ConvNet(nn.Module):
    """Images N×1×size×size to logits N×classes.

    kernel, padding: of convolutions that do not give their own. padding is the number of zeros on
    each side, or `same` as in Keras: output = ceil(input / stride).
    pool: the kind of a plain `pool`, which is 2×2 with stride 2 and padding `same`. The padding
    that a pool gives as a number is explicit zeros, which take part in the maximum or the mean.
    order: whether a convolution's normalization comes before or after its activation.
    slope: of leaky_relu.
    prelu_slope: initial slope of prelu; Keras has 0.
    dropout: rate of a plain `dropout`.
    output_activation: applied to the logits.
    init: `he` (He et al. 2015; for the last layer, Glorot & Bengio 2010), `glorot` for all layers,
    as Keras does, or `torch`, as PyTorch does. Biases start at 0, with `torch` at random values.
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
        init: Literal["he", "glorot", "torch"] = "he",
        norm: Norm = "none",
        order: Order = "norm_activation",
        norm_eps: Annotated[float, Ge(0)] = 1e-5,
        norm_momentum: Annotated[float, Ge(0), Le(1)] = 0.1,
        dropout: Rate = 0.5,
    ):
        super().__init__()
        self.size = size
        self.any_size = "global_pool" in features
        defaults = Defaults(
            kernel=kernel,
            padding=padding,
            pool=pool,
            activation=activation,
            slope=slope,
            prelu_slope=prelu_slope,
            norm=norm,
            order=order,
            norm_eps=norm_eps,
            norm_momentum=norm_momentum,
            dropout=dropout,
        )
        feature_layers = FeatureLayers((channels, size, size), defaults)
        for feature in features:
            feature_layers.add_feature(feature)
        head_layers = HeadLayers(feature_layers.shape, defaults)
        for number, dense in enumerate(head, 1):
            head_layers.add_dense(number, dense, head_activation)
        logits = head_layers.add_logits(classes, output_activation)

        self.features = feature_layers.sequence
        self.head = head_layers.sequence
        self.initialize(init, logits)

    def initialize(self, init: str, logits: nn.Linear) -> None:
        """Draw the weights of convolutions and dense layers; set their biases to 0. With `torch`,
        they stay as PyTorch drew them. On the meta device there are none to draw.
        """
        if init == "torch" or logits.weight.is_meta:
            return
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


class Layers:
    """A sequence of layers to which layers are added.

    shape: of the sequence's output for one image, C×H×W or C.
    """

    def __init__(self, shape: tuple[int, ...], defaults: Defaults):
        self.sequence = nn.Sequential()
        self.shape = shape
        self.defaults = defaults

    def add(self, name: str, layer: nn.Module) -> None:
        if hasattr(self.sequence, name):  # as for two norms in a row
            name = f"{name}_{len(self.sequence)}"
        self.sequence.add_module(name, layer)
        self.shape = output_shape(layer, self.shape)

    def add_activation(self, name: str, kind: Activation) -> None:
        if kind != "none":
            self.add(name, activation_layer(kind, self.shape, self.defaults))

    def add_norm(self, name: str) -> None:
        kind = nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d
        self.add(name, kind(self.shape[0], **self.defaults.batch_norm))

    def add_dropout(self, rate: float | None) -> None:
        if rate is None:
            rate = self.defaults.dropout
        self.add(f"dropout{len(self.sequence)}", nn.Dropout(rate))


def output_shape(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a layer's output for one image."""
    output = on_meta(layer)(torch.zeros(1, *shape, device="meta"))
    return tuple(output.shape[1:])


class FeatureLayers(Layers):
    """The layers of `features`. Their names end in the stage, which is the number of pools before
    them plus one, and in the number of the convolution or block within the stage: conv2_1.
    """

    def __init__(self, shape: tuple[int, ...], defaults: Defaults):
        super().__init__(shape, defaults)
        self.stage = 1
        self.number = 0

    def add_feature(self, feature: Feature) -> None:
        match spelled_out(feature, "conv"):
            case {"conv": filters, **options}:
                self.add_convolution(filters, **options)
            case {"pool": kind, **options}:
                self.add_pool(kind or self.defaults.pool, **options)
            case {"residual": filters, **options}:
                self.add_residual(filters, **options)
            case {"space_to_depth": factor}:
                self.add_space_to_depth(factor)
            case {"global_pool": _}:
                self.add("global_pool", nn.AdaptiveAvgPool2d(1))
            case {"norm": _}:
                after_pool = self.number == 0
                place = f"{self.stage - 1}" if after_pool else f"{self.stage}_{self.number}b"
                self.add_norm(f"norm{place}")
            case {"dropout": rate}:
                self.add_dropout(rate)

    def add_convolution(
        self,
        filters: int,
        kernel: int | None = None,
        stride: int = 1,
        padding: Padding | None = None,
    ) -> None:
        """A convolution, its normalization and its activation."""
        kernel = self.defaults.kernel if kernel is None else kernel
        padding = self.defaults.padding if padding is None else padding
        self.number += 1
        place = f"{self.stage}_{self.number}"
        before, after = self.padding_rows(f"conv{place}", kernel, stride, padding)
        if before != after:  # an even kernel: the extra row and column go below and to the right
            self.add(f"pad{place}", nn.ZeroPad2d((before, after, before, after)))
            before = 0
        convolution = nn.Conv2d(self.shape[0], filters, kernel, stride, before)
        self.add(f"conv{place}", convolution)
        for layer in self.defaults.order.split("_"):
            if layer == "activation":
                self.add_activation(f"activation{place}", self.defaults.activation)
            elif self.defaults.norm == "batch":
                self.add_norm(f"norm{place}")

    def add_pool(
        self, kind: Kind, kernel: int = 2, stride: int = 2, padding: Padding = "same"
    ) -> None:
        """A pool, which ends the stage."""
        before, after = self.padding_rows(f"pool{self.stage}", kernel, stride, padding)
        if padding not in ("same", 0):
            self.add(f"pad{self.stage}", nn.ZeroPad2d(before))
            before = after = 0
        pool = partial(POOLS[kind], kernel, stride)
        if before == after or stride > 1:  # ceil_mode gives the extra row that `same` puts last
            self.add(f"pool{self.stage}", pool(before, ceil_mode=after > before))
        else:  # at stride 1 it does not: pad all sides, then cut off the extra first row and column
            self.add(f"pool{self.stage}", pool(after))
            self.add(f"cut{self.stage}", nn.ZeroPad2d((-1, 0, -1, 0)))
        self.stage += 1
        self.number = 0

    def add_residual(self, filters: int, squeeze: int = 0) -> None:
        self.number += 1
        shape = (filters, *self.shape[1:])
        activation = partial(activation_layer, self.defaults.activation, shape, self.defaults)
        block = Residual(self.shape[0], filters, activation, squeeze, **self.defaults.batch_norm)
        self.add(f"residual{self.stage}_{self.number}", block)

    def add_space_to_depth(self, factor: int) -> None:
        side = self.shape[1]
        if side % factor:
            raise ValueError(
                f"space_to_depth={factor}: does not divide the feature map of {side}×{side}"
            )
        self.add(f"space_to_depth{self.stage}", nn.PixelUnshuffle(factor))

    def padding_rows(
        self, layer: str, kernel: int, stride: int, padding: Padding
    ) -> tuple[int, int]:
        """Rows of zeros above and below the input of a convolution or pool, and columns to its left
        and right. layer: its name, for the error message.
        """
        side = self.shape[1]
        if padding == "same":
            output_side = math.ceil(side / stride)
            total = max((output_side - 1) * stride + kernel - side, 0)
        else:
            total = 2 * padding
        if kernel > side + total:
            raise ValueError(f"{layer}: a {kernel}×{kernel} window does not fit into {side}×{side}")
        return total // 2, total - total // 2


class HeadLayers(Layers):
    """The layers of `head`, after flattening."""

    def __init__(self, shape: tuple[int, ...], defaults: Defaults):
        super().__init__(shape, defaults)
        self.add("flatten", nn.Flatten())

    def add_dense(self, number: int, dense: Dense, activation: Activation) -> None:
        match spelled_out(dense, "dense"):
            case {"dense": units}:
                self.add(f"dense{number}", nn.Linear(self.shape[0], units))
                self.add_activation(f"activation{number}", activation)
            case {"norm": _}:
                self.add_norm(f"norm{number}")
            case {"dropout": rate}:
                self.add_dropout(rate)

    def add_logits(self, classes: int, activation: Activation) -> nn.Linear:
        logits = nn.Linear(self.shape[0], classes)
        self.add("logits", logits)
        self.add_activation("activation", activation)
        return logits


POOLS: dict[str, Any] = {
    "max": nn.MaxPool2d,
    "average": partial(nn.AvgPool2d, count_include_pad=False),
}


def activation_layer(kind: Activation, shape: tuple[int, ...], defaults: Defaults) -> nn.Module:
    """An activation for values of this shape, C×H×W or C."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "relu": lambda: nn.ReLU(inplace=True),
        "leaky_relu": lambda: nn.LeakyReLU(defaults.slope, inplace=True),
        "prelu": lambda: PReLU(shape, defaults.prelu_slope),
        "gelu": nn.GELU,
    }
    return layers[kind]()


def spelled_out(layer: Any, kind_of_number: str) -> dict[str, Any]:
    """The mapping that a number or a word is short for: 64 is {conv: 64}, or {dense: 64} in the
    head, and pool is {pool: None}. None stands for the default.
    """
    if isinstance(layer, int):
        return {kind_of_number: layer}
    if isinstance(layer, str):
        return {layer: None}
    return layer
