"""A network's layers, the formulas of their output sizes, its parameters and its multiply-adds.

Multiply-adds are those of convolutions and dense layers for one face: output elements × kernel
elements × input channels / groups. Norms, pools, activations, biases and attention count as 0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from fer import config
from fer.models.layers import on_meta
from fer.text import aligned

HEADER = ["layer", "kind", "kernel", "stride", "padding", "output", "parameters", "multiply-adds"]
OUTSIDE = "(outside of these layers)"


@dataclass
class Layer:
    """A layer as it runs once. formula: its output size, for a convolution or a pool."""

    name: str
    kind: str
    parameters: int
    output: tuple[int, ...] = ()
    multiply_adds: int = 0
    kernel: str = ""
    stride: str = ""
    padding: str = ""
    formula: str = ""


def build(node: dict) -> nn.Module:
    """The network on the meta device, which holds shapes but no numbers: this takes milliseconds,
    no memory, and no file of weights.
    """
    checked = config.check_node("model", without_weights(node))
    try:
        with torch.device("meta"):
            return config.build("model", checked)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        return config.build("model", checked).to("meta")


def without_weights(node: dict) -> dict:
    """A model's config without the pretrained weights."""
    return node | {"weights": None} if "weights" in node else node


def count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@torch.no_grad()
def multiply_adds(model: nn.Module, side: int) -> int:
    """The multiply-adds for one face of side×side pixels; the model runs on its own device."""
    counts: list[int] = []

    def record(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            counts.append(output.numel() * module.weight[0].numel())

    training = model.training
    model.eval()
    with register_module_forward_hook(record):
        model(torch.zeros(1, 1, side, side, device=next(model.parameters()).device))
    model.train(training)
    return sum(counts)


class Padded(NamedTuple):
    """What a padding layer did. size: height and width before it. rows: added above and below;
    columns: added to the left and right.
    """

    size: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]


@torch.no_grad()
def layers(model: nn.Module) -> list[Layer]:
    """The layers in the order in which they run on one face. The parameters of a layer that runs
    twice count once. Those outside the layers that run come last.
    """
    shapes = on_meta(model)
    names = {module: name for name, module in shapes.named_modules() if not list(module.children())}
    rows: list[Layer] = []
    uncounted = set(shapes.parameters())
    padded: dict[torch.Tensor, Padded] = {}  # by the output of the padding layer

    def record(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if module not in names:
            return
        new_parameters = uncounted.intersection(module.parameters())
        uncounted.difference_update(new_parameters)
        row = Layer(
            names[module], type(module).__name__, count(new_parameters), tuple(output.shape[1:])
        )
        rows.append(row)
        if isinstance(module, nn.Conv2d | nn.Linear):
            row.multiply_adds = output.numel() * module.weight[0].numel()
        if isinstance(module, nn.ZeroPad2d):
            left, right, top, bottom = module.padding
            padded[output] = Padded(inputs[0].shape[-2:], (top, bottom), (left, right))
            row.padding = padding_text([(top, bottom), (left, right)])
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            no_padding = Padded(inputs[0].shape[-2:], (0, 0), (0, 0))
            describe_window(row, module, padded.get(inputs[0], no_padding), output.shape[-2:])

    with register_module_forward_hook(record):
        shapes(torch.zeros(1, 1, shapes.size, shapes.size, device="meta"))
    if uncounted:
        rows.append(Layer(OUTSIDE, "", count(uncounted)))
    return rows


def largest_output(model: nn.Module) -> int:
    """How many numbers the largest output of a layer, or the input, has for one face."""
    side: Any = model.size
    sizes = [math.prod(row.output) for row in layers(model)]
    return max(side * side, *sizes)


def describe_window(row: Layer, module: Any, before: Padded, output: Iterable[int]) -> None:
    """Set kernel, stride, padding and formula in the row of a convolution or pool.

    before: the padding by a layer before it. output: height and width.
    """
    row.kernel = by(pair(module.kernel_size))
    row.stride = by(dict.fromkeys(pair(module.stride)))
    row.padding = padding_text([(padding, padding) for padding in pair(module.padding)])
    row.formula = formula(module, before, output)


def padding_text(sides: list[tuple[int, int]]) -> str:
    """The padding before and after each axis: 1, or 0+1 if they differ; once if both axes agree."""
    texts = [f"{before}" if before == after else f"{before}+{after}" for before, after in sides]
    return by(dict.fromkeys(texts))


def formula(module: Any, padded: Padded, output: Iterable[int]) -> str:
    """floor((W + 2P − k) / s) + 1 with numbers; for both axes if they differ. P includes padding by
    the layer before.
    """
    rounding = "ceil" if getattr(module, "ceil_mode", False) else "floor"
    texts = []
    for side, (before, after), kernel, stride, padding, dilation, result in zip(
        padded.size,
        (padded.rows, padded.columns),
        pair(module.kernel_size),
        pair(module.stride),
        pair(module.padding),
        pair(getattr(module, "dilation", 1)),
        output,
        strict=True,
    ):
        before += padding
        after += padding
        added = f"2·{before}" if before == after else f"{before} + {after}"
        window = dilation * (kernel - 1) + 1
        texts.append(f"{rounding}(({side} + {added} − {window}) / {stride}) + 1 = {result}")
    return ", ".join(dict.fromkeys(texts))


def pair(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def totals(model: nn.Module) -> dict[str, int]:
    """Parameters and multiply-adds. Keras, unlike torch, counts BatchNorm's running mean and
    variance as parameters; `with running statistics` is its number.
    """
    parameters = count(model.parameters())
    running = 0
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            running += buffer.numel()
    return {
        "parameters": parameters,
        "trainable": count(p for p in model.parameters() if p.requires_grad),
        "with running statistics": parameters + running,
        "multiply-adds": sum(layer.multiply_adds for layer in layers(model)),
    }


def table_text(name: str, model: nn.Module) -> str:
    """The table of layers, the formulas of their output sizes and the totals."""
    cells = [HEADER]
    formulas = []
    for layer in layers(model):
        short = layer.name if len(layer.name) <= 36 else "…" + layer.name[-35:]
        cells.append(
            [
                short,
                layer.kind,
                layer.kernel,
                layer.stride,
                layer.padding,
                by(layer.output),
                f"{layer.parameters:,}",
                f"{layer.multiply_adds:,}",
            ]
        )
        if layer.formula:
            formulas.append([f"  {short}", layer.formula])
    parts = [f"{name}, input 1×{model.size}×{model.size}", "", *aligned(cells, left=2), ""]
    if formulas:
        parts += [
            "Output sizes, floor((W + 2P − k) / s) + 1 along each axis:",
            *aligned(formulas, left=2),
            "",
        ]
    parts += aligned([[key, f"{n:,}"] for key, n in totals(model).items()])
    if cells[-1][0] == OUTSIDE:
        outside = OUTSIDE.strip("()")
        parts.append(f"multiply-adds {outside}, such as those of attention, are not counted")
    return "\n".join(parts)


def side_by_side(models: dict[str, nn.Module]) -> str:
    """A row of totals for each network."""
    header: list[str] = []
    rows = []
    for name, model in models.items():
        numbers = totals(model)
        header = ["model", *numbers, "input"]
        cells = [f"{number:,}" for number in numbers.values()]
        rows.append([name, *cells, f"1×{model.size}×{model.size}"])
    return "\n".join(aligned([header, *rows]))


def by(shape: Iterable) -> str:
    return "×".join(map(str, shape))
