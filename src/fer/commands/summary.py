"""fer summary: networks layer by layer, side by side, or matched in size."""

from bisect import bisect_left

import yaml
from torch import nn

from fer import UserError, config, nearest
from fer.layer_table import build, count, side_by_side, table_text
from fer.models.convnet import WIDEST


def run(cfg: config.SummaryConfig, given_keys: list[str]) -> None:
    if cfg.models and cfg.match:
        raise UserError("models: cannot be combined with match; leave one of them out")
    if cfg.models and any(key.split(".")[0] == "model" for key in given_keys):
        raise UserError("models: cannot be combined with model; leave one of them out")
    nodes = config.group_nodes("model")
    if cfg.models:
        for name in cfg.models:
            if name not in nodes:
                raise UserError(f"models={name}: no such model; {nearest(name, nodes)}")
        print(side_by_side({name: build(nodes[name]) for name in cfg.models}))
    elif cfg.match:
        dense = [name for name, node in nodes.items() if node.get("features") == []]
        if cfg.match not in dense:
            raise UserError(
                f"match={cfg.match}: not a network of dense layers; {nearest(cfg.match, dense)}"
            )
        match(cfg.name, build(cfg.model), cfg.match, nodes[cfg.match])
    else:
        print(table_text(cfg.name, build(cfg.model)))


def match(name: str, model: nn.Module, dense: str, node: dict) -> None:
    """Print the width of all hidden layers at which the network `dense` comes nearest to the
    model's number of parameters.
    """
    wanted = count(model.parameters())

    def head(width: int) -> list:
        return [width if isinstance(spec, int) else spec for spec in node["head"]]

    def size(width: int) -> int:
        return count(build(node | {"head": head(width)}).parameters())

    widths = range(1, min(wanted, WIDEST))  # a layer has more parameters than units
    above = 1 + bisect_left(widths, wanted, key=size)
    below = max(above - 1, 1)
    width = min(below, above, key=lambda width: abs(size(width) - wanted))
    print(side_by_side({name: model, dense: build(node | {"head": head(width)})}), end="\n\n")
    percent = 100 * (size(width) / wanted - 1)
    compared = f"{abs(percent):.2f} % {'more' if percent > 0 else 'fewer'} than {name}"
    print(f"{dense} with hidden layers of {width}: {size(width):,} parameters, {compared}")
    if abs(percent) > 5:
        print("no width comes within 5 %; this is the nearest")
    text = yaml.safe_dump(head(width), default_flow_style=True, width=999)
    print(f"  fer train model={dense} 'model.head={text.strip().replace(', ', ',')}'")
