"""fer summary matches published counts and shapes, and torch's counter."""

import math
import re
import shlex

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fer import config, config_dir, layer_table


def torchvision(name, size):
    return layer_table.build(
        {"_target_": "fer.models.torchvision.classifier", "name": name, "size": size}
    )


def value(formula: str) -> tuple[list[int], list[int]]:
    """What a printed formula computes, and what it says, for each axis."""
    said = [axis.split(" = ") for axis in formula.split(", ")]
    names = {"floor": math.floor, "ceil": math.ceil}
    computed = [eval(left.replace("·", "*").replace("−", "-"), names) for left, _ in said]
    return computed, [int(right) for _, right in said]


@pytest.mark.parametrize(
    ("name", "trainable", "with_running"),
    [
        ("leaky_bn", 15_140_551, 15_140_551 + 2 * (3 * 32 + 3 * 128 + 3 * 512 + 512)),
        ("bn_cnn_small", 2_649_225, 2_659_851),
        ("bn_cnn_deep", 16_309_065, 16_326_603),
        ("prelu_cnn", 4_845_063, 4_845_063),
    ],
)
def test_totals_are_the_published_ones(catalogue_model, name, trainable, with_running):
    totals = layer_table.totals(catalogue_model(name))
    assert (totals["parameters"], totals["trainable"]) == (trainable, trainable)
    assert totals["with running statistics"] == with_running


def test_frozen_parameters_are_not_trainable(catalogue_model):
    model = catalogue_model("compact_cnn")
    model.features.requires_grad_(False)
    dense = (4608 * 256 + 256) + (256 * 256 + 256) + (256 * 7 + 7)
    assert layer_table.totals(model)["trainable"] == dense


def test_the_rows_of_leaky_bn(catalogue_model):
    rows = {row.name: row for row in layer_table.layers(catalogue_model("leaky_bn"))}
    first = rows["features.conv1_1"]
    assert (first.kind, first.kernel, first.stride, first.padding) == ("Conv2d", "5×5", "1", "2")
    assert first.formula == "floor((48 + 2·2 − 5) / 1) + 1 = 48"
    assert (first.parameters, first.multiply_adds) == (25 * 32 + 32, 48 * 48 * 32 * 25)
    assert rows["features.pool1"].formula == "floor((48 + 2·0 − 2) / 2) + 1 = 24"
    shapes = [row.output for row in rows.values() if row.kind in ("Conv2d", "MaxPool2d", "Linear")]
    published = 3 * [(32, 48, 48)] + [(32, 24, 24)] + 3 * [(128, 24, 24)] + [(128, 12, 12)]
    assert shapes == [*published, *3 * [(512, 12, 12)], (512, 6, 6), (512,), (7,)]


def test_explicit_pads_are_rows_and_count_as_padding_in_the_formula(catalogue_model):
    rows = layer_table.layers(catalogue_model("prelu_cnn"))
    windows = [row for row in rows if row.formula]
    assert [value(row.formula)[1] for row in windows] == [
        [n] for n in (44, 22, 22, 22, 10, 10, 10, 5)
    ]
    assert windows[1].formula == "floor((44 + 2·2 − 5) / 2) + 1 = 22"
    assert [(r.padding, r.output) for r in rows if r.kind == "ZeroPad2d"] == [
        ("2", (64, 48, 48)),
        ("1", (128, 12, 12)),
    ]
    rows = {row.name: row for row in layer_table.layers(catalogue_model("bn_cnn_small"))}
    assert rows["features.pad1_1"].padding == "0+1"
    assert rows["features.conv1_1"].formula == "floor((48 + 0 + 1 − 2) / 1) + 1 = 48"
    rows = {row.name: row for row in layer_table.layers(catalogue_model("bn_cnn_deep"))}
    assert (
        rows["features.pool5"].formula == "ceil((3 + 2·0 − 2) / 2) + 1 = 2"
    )  # SAME: one cell below and to the right


def agrees(model):
    """Formulas agree with rows, rows with totals, multiply-adds with torch's counter."""
    rows = layer_table.layers(model)
    for row in rows:
        if row.formula:
            computed, said = value(row.formula)
            assert computed == said == list(
                dict.fromkeys(row.output[1:])
            ) or computed == said == list(row.output[1:])
    totals = layer_table.totals(model)
    assert (
        sum(row.parameters for row in rows)
        == totals["parameters"]
        == sum(p.numel() for p in model.parameters())
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(
            torch.zeros(1, 1, model.size, model.size, device=next(model.parameters()).device)
        )
    assert (
        sum(row.multiply_adds for row in rows)
        == totals["multiply-adds"]
        == counter.get_total_flops() / 2
    )


def test_the_catalogue_agrees_with_torchs_counter_and_its_own_formulas(model_name):
    root = config_dir() / "model" / f"{model_name}.yaml"
    agrees(layer_table.build(config.parse(root.read_text(), model_name)))


@pytest.mark.parametrize(
    ("name", "size"),
    # groups; reused layers; pools of ceil_mode; kernels that are not square; no build on the meta
    # device
    [
        ("mobilenet_v3_small", 48),
        ("resnet18", 40),
        ("googlenet", 48),
        ("inception_v3", 80),
        ("regnet_y_400mf", 48),
    ],
)
def test_torchvisions_agree_too(name, size):
    agrees(torchvision(name, size))


def test_parameters_outside_of_the_layers_have_a_row_of_their_own():
    model = torchvision("vit_b_16", 48)
    rows = layer_table.layers(model)
    assert rows[-1].name == layer_table.OUTSIDE and rows[-1].parameters > 0
    assert sum(row.parameters for row in rows) == layer_table.totals(model)["parameters"]
    assert layer_table.table_text("vit", model).endswith(
        "such as those of attention, are not counted"
    )


def test_the_table_leaves_the_model_as_it_was(catalogue_model):
    model = catalogue_model("bn_cnn_small").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    text = layer_table.table_text("small", model)
    assert model.training and model.head.dropout2.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    real = layer_table.table_text(
        "small", layer_table.build(config.parse(SMALL.read_text(), "small"))
    )
    assert text == real and max(map(len, text.splitlines())) <= 120


SMALL = config_dir() / "model" / "bn_cnn_small.yaml"


def test_one_dimensional_rows_and_shared_layers():
    class Twice(nn.Module):
        size = 4

        def __init__(self):
            super().__init__()
            self.conv, self.flatten, self.dense = (
                nn.Conv2d(1, 1, 3, padding=(1, 0)),
                nn.Flatten(),
                nn.Linear(8, 8),
            )

        def forward(self, x):
            return self.dense(self.dense(self.flatten(self.conv(x))))

    conv, _, first, second = layer_table.layers(Twice())
    assert conv.formula == "floor((4 + 2·1 − 3) / 1) + 1 = 4, floor((4 + 2·0 − 3) / 1) + 1 = 2"
    assert (conv.padding, conv.output) == ("1×0", (1, 4, 2))
    assert [(r.parameters, r.multiply_adds) for r in (first, second)] == [(72, 64), (0, 64)]


def test_the_command_prints_table_formulas_and_totals(fer):
    code, out, err = fer("summary", "model=leaky_bn")
    assert code == 0, err
    assert out.startswith("leaky_bn, input 1×48×48\n")
    assert re.search(r"^features\.conv1_1 +Conv2d +5×5 +1 +2 +32×48×48 +832 +1,843,200$", out, re.M)
    assert "features.conv1_1  floor((48 + 2·2 − 5) / 1) + 1 = 48" in out
    assert re.search(r"^trainable +15,140,551$", out, re.M)
    assert re.search(r"^with running statistics +15,145,607$", out, re.M)
    assert re.search(r"^multiply-adds +1,084,763,648$", out, re.M)
    code, out, err = fer("summary", "model=compact_cnn", "model.size=40")
    assert code == 0 and "input 1×40×40" in out, err


def test_side_by_side(fer):
    code, out, err = fer("summary", "models=[compact_cnn,dnn,bn_cnn_small]")
    assert code == 0, err
    header, *lines = [re.split(r"  +", line) for line in out.splitlines()]
    assert header == [
        "model",
        "parameters",
        "trainable",
        "with running statistics",
        "multiply-adds",
        "input",
    ]
    assert [line[0] for line in lines] == ["compact_cnn", "dnn", "bn_cnn_small"]
    assert lines[1][1:] == ["1,446,407"] * 3 + ["1,445,376", "1×48×48"]
    assert lines[2][1:4] == ["2,649,225", "2,649,225", "2,659,851"]


@pytest.mark.parametrize(
    ("cnn", "dnn"), [("compact_cnn", "dnn"), ("vgg13", "dnn"), ("prelu_cnn", "prelu_dnn")]
)
def test_a_dnn_of_a_cnns_size(fer, cnn, dnn):
    code, out, err = fer("summary", f"model={cnn}", f"match={dnn}")
    assert code == 0 and "no width" not in out, err
    found = re.search(
        rf"{dnn} with hidden layers of (\d+): ([\d,]+) parameters, "
        rf"([\d.]+) % (more|fewer) than {cnn}",
        out,
    )
    width, count = int(found[1]), int(found[2].replace(",", ""))
    nodes = {
        n: config.parse((config_dir() / "model" / f"{n}.yaml").read_text(), n) for n in (cnn, dnn)
    }
    target = layer_table.count(layer_table.build(nodes[cnn]).parameters())
    assert float(found[3]) == round(100 * abs(count / target - 1), 2) < 5
    assert found[4] == ("more" if count > target else "fewer")

    def head(width):
        return [width if isinstance(spec, int) else spec for spec in nodes[dnn]["head"]]

    off = [
        abs(
            layer_table.count(layer_table.build(nodes[dnn] | {"head": head(w)}).parameters())
            - target
        )
        for w in range(width - 2, width + 3)
    ]
    assert min(off) == off[2] == abs(count - target)
    typed = shlex.split(out.splitlines()[-1])
    assert typed[:3] == ["fer", "train", f"model={dnn}"]
    code, out, err = fer(*typed[1:], "--cfg", "job", "--package", "model")
    assert code == 0, err
    assert config.parse(out, "job")["head"] == head(width)


def test_a_match_that_is_too_far_off_says_so(fer):
    little = [
        "model.size=20",
        "model.features=[]",
        "model.head=[]",
    ]  # 2,807 parameters, between one unit and two
    code, out, err = fer("summary", *little, "match=dnn")
    assert (
        code == 0 and "hidden layers of 1: 2,321" in out and "no width comes within 5 %" in out
    ), err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["models=[dnn,compat_cnn]"], ["models=compat_cnn", "did you mean compact_cnn?", "vgg13"]),
        (["models=[]"], ["models=[]"]),
        (["models=dnn"], ["models=dnn", "list"]),
        (["models=[dnn]", "model=vgg13"], ["models", "cannot be combined with model"]),
        (["models=[dnn]", "model.size=40"], ["models", "cannot be combined with model"]),
        (["models=[dnn]", "match=dnn"], ["models", "cannot be combined with match"]),
        (["match=vgg13"], ["match=vgg13", "dnn_wide"]),
        (["match=dn"], ["match=dn", "did you mean dnn?"]),
        (["matsch=dnn"], ["matsch", "did you mean match?"]),
        (["model.sise=4"], ["model.sise", "did you mean model.size?"]),
        (["model=vgg31"], ["model=vgg31", "vgg13"]),
        (["model=vgg13", "model.padding=0"], ["model", "does not fit"]),
    ],
)
def test_refusals(fer, args, words):
    code, out, err = fer("summary", *args)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_it_writes_nothing(fer, tmp_path):
    assert fer("summary", "model=dnn")[0] == 0
    assert not list(tmp_path.iterdir())


def test_networks_of_ones_own_stand_beside_the_others(fer, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    text = "_target_: fer.models.convnet.ConvNet\nfeatures: []\nhead: [4]\n"
    (tmp_path / "mine" / "model" / "little.yaml").write_text(text)
    code, out, err = fer("summary", "--config-dir", "mine", "models=[little,dnn]")
    assert code == 0 and out.splitlines()[1].split()[:2] == [
        "little",
        f"{2304 * 4 + 4 + 4 * 7 + 7:,}",
    ], err
    code, out, err = fer("summary", "--config-dir", "mine", "model=compact_cnn", "match=little")
    assert code == 0 and "little with hidden layers of" in out, err
    code, _, err = fer("summary", "models=[little,dnn]")  # the folder of a call before is forgotten
    assert code == 2 and "models=little: no such model" in err
