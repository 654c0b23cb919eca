"""A network's layers, how each output size comes about, and what the whole amounts to.

Multiply-adds are those of convolutions and dense layers for one face: output elements × kernel
elements × input channels / groups. Norms, pools, activations, biases and attention count 0.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from fer import config
from fer.text import aligned

HEADER = ["layer", "kind", "kernel", "stride", "padding", "output", "parameters", "multiply-adds"]
OUTSIDE = "(outside of these layers)"


@dataclass
class Layer:
    """One run of a layer. formula: of its output size, if a window slides over its input."""

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
    """A network of shapes without numbers: it takes milliseconds, no memory, and no file of
    weights.
    """
    checked = config.check_node("model", without_weights(node))
    try:
        with torch.device("meta"):
            return config.build("model", checked)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        return config.build("model", checked).to("meta")


def without_weights(node: dict) -> dict:
    """A model's node without the file that training starts from."""
    return node | {"weights": None} if "weights" in node else node


def count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


@torch.no_grad()
def multiply_adds(model: nn.Module, side: int) -> int:
    """Of one face of side×side pixels, which the model sees on its own device."""
    counts: list[int] = []

    def note(module: nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            counts.append(out.numel() * module.weight[0].numel())

    training = model.training
    model.eval()
    with register_module_forward_hook(note):
        model(torch.zeros(1, 1, side, side, device=next(model.parameters()).device))
    model.train(training)
    return sum(counts)


@torch.no_grad()
def layers(model: nn.Module) -> list[Layer]:
    """The layers in the order in which they run on one face. Parameters of a layer that runs twice
    count once; those of no layer that runs come last.
    """
    shapes: Any = copy.deepcopy(model).to("meta").eval()
    names = {module: name for name, module in shapes.named_modules() if not list(module.children())}
    rows: list[Layer] = []
    unseen = set(shapes.parameters())
    # The output of a padding layer: the size it was given, and its sides.
    padded: dict[torch.Tensor, tuple] = {}

    def note(module: Any, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        if module not in names:
            return
        new = unseen.intersection(module.parameters())
        unseen.difference_update(new)
        row = Layer(names[module], type(module).__name__, count(new), tuple(out.shape[1:]))
        rows.append(row)
        if isinstance(module, nn.Conv2d | nn.Linear):
            row.multiply_adds = out.numel() * module.weight[0].numel()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            sides = [(padding, padding) for padding in pair(module.padding)]
            row.kernel = by(pair(module.kernel_size))
            row.stride = by(dict.fromkeys(pair(module.stride)))
            size, outer = padded.get(given[0], (given[0].shape[-2:], [(0, 0), (0, 0)]))
            row.formula = formula(module, size, outer, out.shape[-2:])
        elif isinstance(module, nn.ZeroPad2d):
            left, right, top, bottom = module.padding
            sides = [(top, bottom), (left, right)]
            padded[out] = given[0].shape[-2:], sides
        else:
            return
        row.padding = by(dict.fromkeys(f"{a}" if a == b else f"{a}+{b}" for a, b in sides))

    with register_module_forward_hook(note):
        shapes(torch.zeros(1, 1, shapes.size, shapes.size, device="meta"))
    if unseen:
        rows.append(Layer(OUTSIDE, "", count(unseen)))
    return rows


def formula(
    module: Any, size: Iterable[int], outer: list[tuple[int, int]], out: Iterable[int]
) -> str:
    """floor((W + 2P − k) / s) + 1 with numbers, for both axes if they differ. outer: padding by a
    layer before, (before, after) for each axis; it counts as P.
    """
    options = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    rounding = "ceil" if getattr(module, "ceil_mode", False) else "floor"
    texts = []
    for w, (before, after), to, k, s, p, d in zip(
        size, outer, out, *map(pair, options), strict=True
    ):
        total = f"2·{before + p}" if before == after else f"{before + p} + {after + p}"
        texts.append(f"{rounding}(({w} + {total} − {d * (k - 1) + 1}) / {s}) + 1 = {to}")
    return ", ".join(dict.fromkeys(texts))


def pair(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def totals(model: nn.Module) -> dict[str, int]:
    """Parameters and multiply-adds. Keras counts BatchNorm's running mean and variance among the
    parameters, torch does not.
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
    """The table of layers, the formulas of their output sizes, and the totals, as text."""
    cells, formulas = [HEADER], []
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
