"""Layers that torch lacks. convnet.py builds networks from them."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A residual block (He et al. 2016): the input plus the output of two 3×3 convolutions, each
    with BatchNorm. A 1×1 convolution adapts the input if the number of channels changes.
    Convolutions have no bias, since BatchNorm has one.

    activation: creates the layer after the first BatchNorm and the one after the sum.
    squeeze: reduction ratio of squeeze-and-excitation (Hu et al. 2018) before the sum; 0: none.
    norm: keyword arguments of BatchNorm.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        activation: Callable[[], nn.Module],
        squeeze: int = 0,
        **norm: Any,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters, **norm)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters, **norm)
        self.squeeze = nn.Identity()
        if squeeze:
            from torchvision.ops import SqueezeExcitation  # takes a second to import

            self.squeeze = SqueezeExcitation(filters, max(filters // squeeze, 1))
        self.skip: nn.Module = nn.Identity()
        if channels != filters:
            self.skip = nn.Conv2d(channels, filters, 1, bias=False)
        self.activation2 = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.activation1(self.norm1(self.conv1(x)))
        residual = self.squeeze(self.norm2(self.conv2(residual)))
        return self.activation2(residual + self.skip(x))


class PReLU(nn.Module):
    """Parametric ReLU (He et al. 2015) with one slope per position and channel, Keras's default.

    shape: of one image's activations, C×H×W or C.
    slope: initial value; 0.25 in the paper and in torch, 0 in Keras.
    """

    def __init__(self, shape: tuple[int, ...], slope: float = 0.25):
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, slope))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self.weight * x)


class ScheduledDropout(nn.Dropout):
    """Dropout whose rate can change from step to step.

    p: the maximum rate.
    rate: the current rate, a number; or a tensor, if a CUDA graph replays the layer.
    """

    def __init__(self, p: float):
        super().__init__(p)
        self.rate: float | torch.Tensor = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape, device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


def schedule_dropout(model: nn.Module) -> list[ScheduledDropout]:
    """Replace every nn.Dropout in the model by a ScheduledDropout; returns all of them."""
    scheduled = []
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                child = ScheduledDropout(child.p)
                setattr(module, name, child)
            if isinstance(child, ScheduledDropout):
                scheduled.append(child)
    return scheduled


def on_meta(model: nn.Module) -> Any:
    """A copy of the model in evaluation mode on the meta device, which holds shapes but no numbers:
    to make and run it takes milliseconds and no memory.

    Its dense layers and BatchNorm only check and make shapes. To compute these there, torch imports
    torch._dynamo, which takes a second.
    """
    moved: dict[int, Any] = {}
    for parameter in model.parameters():
        moved[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        moved[id(buffer)] = buffer.to("meta")
    shapes = copy.deepcopy(model, moved).eval()
    outputs: dict[type, Callable[..., Tensor]] = {
        nn.Linear: dense_output,
        nn.BatchNorm1d: norm_output,
        nn.BatchNorm2d: norm_output,
    }
    for layer in shapes.modules():
        output = outputs.get(type(layer))
        if output:
            layer.forward = partial(output, layer)  # type: ignore[method-assign]
    return shapes


def dense_output(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """An empty tensor of the shape of a dense layer's output. Raises RuntimeError if the inputs do
    not fit.
    """
    *shape, features = inputs.shape
    if features != layer.in_features:
        raise RuntimeError(f"a dense layer of {layer.in_features} inputs is given {features}")
    return inputs.new_empty(*shape, layer.out_features)


def norm_output(layer: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """An empty tensor of the shape of BatchNorm's output. Raises RuntimeError if the inputs do not
    fit.
    """
    channels = inputs.shape[1]
    if channels != layer.num_features:
        raise RuntimeError(f"BatchNorm of {layer.num_features} channels is given {channels}")
    return torch.empty_like(inputs)
