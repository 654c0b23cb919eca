"""Layers that torch lacks, and the padding arithmetic of the two conventions in use."""

import torch
from torch import nn


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(before, after) zeros that make the output ceil(size / stride): TensorFlow's and Keras's SAME."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """floor((W + P - k) / s) + 1, where P counts both sides (2P of the usual formula)."""
    return (size + padding - kernel) // stride + 1


class PReLU(nn.Module):
    """Parametric ReLU (He et al. 2015) with one slope per position and channel, as Keras's default.

    shape: of one image's activations, C×H×W or C.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self.weight * x)

    def extra_repr(self) -> str:
        return "×".join(map(str, self.weight.shape))
