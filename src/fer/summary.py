"""fer summary: a network's layers, how each output size comes about, and what the whole amounts to.

Multiply-adds are those of convolutions and dense layers, counted where such a layer runs: output elements × kernel
elements × input channels / groups, for one face. Everything else counts 0: norms, pools, activations, biases, and what
a network computes outside its layers, as the attention of transformers. No weights, run or data are needed.
"""

import copy
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from fer import UserError, config, config_dir, nearest

HEADER = ["layer", "kind", "kernel", "stride", "padding", "output", "parameters", "multiply-adds"]
OUTSIDE = "(outside of these layers)"


@dataclass(frozen=True)
class Layer:
    """One run of a layer. `formula`: its output size, where a window slides."""

    name: str
    kind: str
    parameters: int
    output: tuple[int, ...] = ()
    multiply_adds: int = 0
    kernel: str = ""
    stride: str = ""
    padding: str = ""
    formula: str = ""


def run(values: dict, typed: list[str]) -> None:
    cfg = config.check("summary", values)
    if cfg.models and (cfg.match or any(key.split(".")[0] == "model" for key in typed)):
        raise UserError(f"models: not together with {'match' if cfg.match else 'model'}; leave one of them out")
    paths = sorted((config_dir() / "model").glob("*.yaml"))
    nodes = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    if cfg.models:
        if unknown := [name for name in cfg.models if name not in nodes]:
            raise UserError(f"models={unknown[0]}: no such model; {nearest(unknown[0], nodes)}")
        print(side_by_side({name: build(nodes[name]) for name in cfg.models}))
        return
    model = build(cfg.model)
    if not cfg.match:
        print(table_text(cfg.name, model))
        return
    dense = [name for name, node in nodes.items() if node.get("features") == []]
    if cfg.match not in dense:
        raise UserError(f"match={cfg.match}: not a network of dense layers; {nearest(cfg.match, dense)}")
    width, head = match(nodes[cfg.match], parameters(model))
    twin = build(nodes[cfg.match] | {"head": head})
    off = 100 * (parameters(twin) / parameters(model) - 1)
    print(side_by_side({cfg.name: model, cfg.match: twin}), end="\n\n")
    print(f"{cfg.match} with hidden layers of {width}: {parameters(twin):,} parameters, {off:+.2f} % of {cfg.name}'s")
    if abs(off) > 5:
        print("no width comes within 5 %; this is the nearest")
    text = yaml.safe_dump(head, default_flow_style=True, width=999).strip().replace(", ", ",")
    print(f"  fer train model={cfg.match} 'model.head={text}'")


def build(node: dict) -> nn.Module:
    """A network of shapes without numbers, which takes milliseconds and no memory, nor the file of its weights."""
    checked = config.check_node("model", node | ({"weights": None} if "weights" in node else {}))
    try:
        with torch.device("meta"):
            return config.build("model", checked)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        return config.build("model", checked).to("meta")


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def match(node: dict, count: int) -> tuple[int, list]:
    """The one width of all hidden layers with which the network has nearest to `count` parameters, and its head."""

    def head(width: int) -> list:
        return [width if isinstance(spec, int) else spec for spec in node["head"]]

    def size(width: int) -> int:
        return parameters(build(node | {"head": head(width)}))

    above = 1 + bisect_left(range(1, count), count, key=size)  # a layer has more parameters than units
    width = min(max(above - 1, 1), above, key=lambda width: abs(size(width) - count))
    return width, head(width)


@torch.no_grad()
def layers(model: nn.Module) -> list[Layer]:
    """The layers in the order in which they run on one face. Parameters of a layer that runs twice count once; those
    of no layer that runs come last."""
    model = copy.deepcopy(model).to("meta").eval()
    names = {module: name for name, module in model.named_modules() if not list(module.children())}
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    with register_module_forward_hook(lambda m, given, out: calls.append((m, given[0], out)) if m in names else None):
        model(torch.zeros(1, *input_shape(model), device="meta"))

    rows: list[Layer] = []
    seen: set[nn.Parameter] = set()
    explicit: dict[torch.Tensor, tuple] = {}  # what a padding of its own put out: what it was given, and its sides
    for module, given, out in calls:
        new = set(module.parameters()) - seen
        seen |= new
        row: dict[str, Any] = {"parameters": sum(p.numel() for p in new), "output": tuple(out.shape[1:])}
        if isinstance(module, nn.Conv2d | nn.Linear):
            row["multiply_adds"] = out.numel() * module.weight[0].numel()
        if isinstance(module, nn.ZeroPad2d | nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            row["padding"] = per_axis(a if a == b else f"{a}+{b}" for a, b in sides(module))
        if isinstance(module, nn.ZeroPad2d):
            explicit[out] = given, sides(module)
        elif isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            start, outer = explicit.get(given, (given, [(0, 0), (0, 0)]))  # explicit ones count as P
            row["kernel"], row["stride"] = by(pair(module.kernel_size)), per_axis(pair(module.stride))
            row["formula"] = formulas(module, start.shape[-2:], outer, out.shape[-2:])
        rows.append(Layer(names[module], type(module).__name__, **row))
    if rest := parameters(model) - sum(p.numel() for p in seen):
        rows.append(Layer(OUTSIDE, "", rest))
    return rows


def formulas(module: Any, size: Iterable[int], outer: list[tuple[int, int]], out: Iterable[int]) -> str:
    """floor((W + 2P − k) / s) + 1 with its numbers, for both axes where they differ."""
    options = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    rounding = "ceil" if getattr(module, "ceil_mode", False) else "floor"
    texts = []
    for w, (before, after), to, k, s, p, d in zip(size, outer, out, *map(pair, options), strict=True):
        total = f"2·{before + p}" if before == after else f"{before + p} + {after + p}"
        texts.append(f"{rounding}(({w} + {total} − {d * (k - 1) + 1}) / {s}) + 1 = {to}")
    return per_axis(texts, ", ")


def sides(module: Any) -> list[tuple[int, int]]:
    """Padding (before, after) of height and width."""
    if isinstance(module, nn.ZeroPad2d):
        left, right, top, bottom = module.padding
        return [(top, bottom), (left, right)]
    return [(p, p) for p in pair(module.padding)]


def pair(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value, value)


def per_axis(texts: Iterable, between: str = "×") -> str:
    return between.join(dict.fromkeys(map(str, texts)))


def totals(model: nn.Module) -> dict[str, int]:
    """Running statistics are BatchNorm's mean and variance, which Keras counts among the parameters."""
    running = sum(b.numel() for key, b in model.named_buffers() if key.endswith(("running_mean", "running_var")))
    return {
        "parameters": parameters(model),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "with running statistics": parameters(model) + running,
        "multiply-adds": sum(layer.multiply_adds for layer in layers(model)),
    }


def table_text(name: str, model: nn.Module) -> str:
    """The layer table, the formulas, the totals."""
    rows = layers(model)
    short = [r.name if len(r.name) <= 36 else "…" + r.name[-35:] for r in rows]
    cells = [
        [n, r.kind, r.kernel, r.stride, r.padding, by(r.output), f"{r.parameters:,}", f"{r.multiply_adds:,}"]
        for n, r in zip(short, rows, strict=True)
    ]
    formulas = [[f"  {n}", r.formula] for n, r in zip(short, rows, strict=True) if r.formula]
    parts = [f"{name}, input {by(input_shape(model))}", "", *aligned([HEADER, *cells], left=2), ""]
    if formulas:
        parts += ["Output sizes, floor((W + 2P − k) / s) + 1 along each axis:", *aligned(formulas, left=2), ""]
    parts += aligned([[key, f"{n:,}"] for key, n in totals(model).items()])
    if rows[-1].name == OUTSIDE:
        parts.append(f"multiply-adds {OUTSIDE.strip('()')}, those of attention say, are not counted")
    return "\n".join(parts)


def side_by_side(models: dict[str, nn.Module]) -> str:
    found = {name: totals(model) for name, model in models.items()}
    cells = [[name, *(f"{n:,}" for n in row.values()), by(input_shape(models[name]))] for name, row in found.items()]
    return "\n".join(aligned([["model", *next(iter(found.values())), "input"], *cells]))


def input_shape(model: Any) -> tuple[int, int, int]:
    return 1, model.size, model.size


def by(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))


def aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    """Rows as lines of equal columns, the first `left` of them flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return ["  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths, strict=True)).rstrip() for row in rows]
