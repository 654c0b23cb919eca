"""All networks of configs/model: parameter counts, layer shapes, gradients everywhere."""

from dataclasses import asdict

import pytest
import torch
import torchvision
import torchvision.transforms.v2
from torch import nn
from torchvision.models import vgg

from fer import config
from fer.models.convnet import ConvNet
from fer.models.layers import Residual, on_meta
from fer.models.network import Network, Normalize, crop_or_enlarge


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("vgg16", {"norm": "none"}, 39_916_231),  # reference system A
        ("vgg16", {}, 39_916_231 + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)),
        ("leaky_bn", {}, 15_140_551),  # B
        ("compact_cnn", {}, 1_396_871),  # D
        ("dnn", {}, 1_446_407),  # D's DNN
        ("vgg16_plain", {}, 39_916_231),  # A
        ("dnn_wide", {}, 43_032_583),  # A's DNN
        ("prelu_cnn", {}, 4_845_063),  # C
        ("prelu_dnn", {}, 4_469_767),  # C's DNN
        ("bn_cnn_small", {}, 2_649_225),  # E
        ("bn_cnn_wide", {}, 39_630_891),
        ("bn_cnn_deep", {}, 16_309_065),
        ("vgg_4x2", {}, 29_890_759),
    ],
)
def test_parameters_are_those_of_the_published_systems(catalogue_model, name, changes, count):
    with torch.device("meta"):  # without weights
        model = catalogue_model(name, **changes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("bn_cnn_small", 2_659_851), ("bn_cnn_wide", 39_782_273), ("bn_cnn_deep", 16_326_603)],
)
def test_running_statistics_make_up_keras_count(catalogue_model, name, count):
    with torch.device("meta"):
        model = catalogue_model(name)
    running = sum(b.numel() for key, b in model.named_buffers() if "running" in key)
    assert sum(p.numel() for p in model.parameters()) + running == count


def test_prelu_cnn_has_the_published_shapes(catalogue_model):
    found = [
        s[1]
        for name, s in shapes(catalogue_model("prelu_cnn")).items()
        if "conv" in name or "pool" in name
    ]
    assert found == [44, 22, 22, 22, 10, 10, 10, 5]


def shapes(model: nn.Module) -> dict[str, tuple]:
    found = {}
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda m, i, o, name=name: found.__setitem__(name, tuple(o.shape[1:]))
            )
    model.eval()(torch.zeros(1, 1, 48, 48))
    return found


def test_leaky_bn_has_the_published_shapes(catalogue_model):
    found = shapes(catalogue_model("leaky_bn"))
    convolutions = [shape for name, shape in found.items() if ".conv" in name]
    assert convolutions == [(32, 48, 48)] * 3 + [(128, 24, 24)] * 3 + [(512, 12, 12)] * 3
    assert [found[f"features.pool{i}"] for i in (1, 2, 3)] == [
        (32, 24, 24),
        (128, 12, 12),
        (512, 6, 6),
    ]
    assert (found["head.dense1"], found["head.logits"]) == ((512,), (7,))
    kinds = [type(m) for m in catalogue_model("leaky_bn").features][:3]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d]


def test_vgg_pools_have_same_padding(catalogue_model):
    found = shapes(catalogue_model("vgg16"))
    assert [found[f"features.pool{i}"][1] for i in range(1, 6)] == [24, 12, 6, 3, 2]


def test_every_parameter_of_every_model_gets_a_gradient(catalogue_model, model_name):
    torch.manual_seed(0)
    model = catalogue_model(model_name).train()
    images = torch.randn(4, 1, 1, 1) + 0.1 * torch.randn(
        4, 1, model.size, model.size
    )  # smooth, as faces are
    logits = model(images)
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6, 1])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_vgg_features_compute_what_torchvisions_do(catalogue_model):
    theirs = vgg.make_layers(vgg.cfgs["B"], batch_norm=True).eval()  # of vgg13_bn
    theirs[0] = nn.Conv2d(1, 64, 3, padding=1)
    ours = catalogue_model("vgg13").features.eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 1, 64, 64)  # torchvision's pools floor; at 64 both agree
    torch.testing.assert_close(ours(images), theirs(images))


def test_even_kernels_pad_below_and_to_the_right():
    model = ConvNet(features=[{"conv": 1, "kernel": 2}], head=[], size=4, activation="none")
    with torch.no_grad():
        model.features.conv1_1.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    out = model.features(torch.ones(1, 1, 4, 4))[0, 0]
    assert out.tolist() == [[10, 10, 10, 4]] * 3 + [[3, 3, 3, 1]]


@pytest.mark.parametrize("pool", ["max", "average"])
def test_a_pool_of_an_even_kernel_and_stride_1_is_same(pool):
    model = ConvNet(features=[{"pool": pool, "kernel": 2, "stride": 1}], head=[], size=3)
    image = torch.arange(1.0, 10).view(1, 1, 3, 3)
    out = model.features(image)[0, 0]
    mean = [[3, 4, 4.5], [6, 7, 7.5], [7.5, 8.5, 9]]
    assert out.tolist() == (mean if pool == "average" else [[5, 6, 6], [8, 9, 9], [8, 9, 9]])
    assert model(image).shape == (1, 7)


@pytest.mark.parametrize("pool", ["max", "average"])
def test_a_pools_own_padding_is_explicit_zeros(pool):
    model = ConvNet(
        features=[{"pool": pool, "kernel": 3, "stride": 2, "padding": 1}], head=[], size=4
    )
    out = model.features(-torch.ones(1, 1, 4, 4))[0, 0]
    assert out[0, 0] == (0 if pool == "max" else pytest.approx(-4 / 9))


def test_prelu_has_a_slope_per_position():
    model = ConvNet(
        features=[{"conv": 64, "kernel": 5, "padding": 0}], head=[16], activation="prelu"
    )
    assert model.features.activation1_1.weight.numel() == 44 * 44 * 64
    x = torch.randn(2, 64, 44, 44)
    torch.testing.assert_close(model.features.activation1_1(x), nn.functional.leaky_relu(x, 0.25))


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="pool1: a 5×5 window does not fit into 4×4"):
        ConvNet(features=[{"pool": "max", "kernel": 5, "padding": 0}], head=[], size=4)


def test_dropout_and_norm_of_the_input():
    model = ConvNet(
        features=["norm", {"dropout": 0.3}, 8, "pool", "norm"],
        head=["norm", "dropout", 5],
        dropout=0.2,
    )
    assert isinstance(model.features[0], nn.BatchNorm2d) and model.features[0].num_features == 1
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.2]
    assert isinstance(model.head[1], nn.BatchNorm1d)


def test_normalizations():
    images = torch.randint(0, 256, (6, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(Normalize.fit("none", images)(images), images.float())
    torch.testing.assert_close(Normalize.fit("unit", images)(images), images / 255)
    dataset = Normalize.fit("dataset", images)
    assert dataset.mean == pytest.approx(images.float().mean().item(), rel=1e-5)
    assert dataset.std == pytest.approx(images.float().std(correction=0).item(), rel=1e-5)
    own = Normalize.fit("image", images)(images)
    torch.testing.assert_close(own.mean((1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(own.std((1, 2, 3), correction=0), torch.ones(6))
    assert Normalize.fit("image", images)(torch.zeros(1, 1, 48, 48)).isfinite().all()
    assert Normalize(**asdict(dataset))(images).equal(dataset(images))


def test_faces_are_cropped_or_enlarged_to_the_models_size(catalogue_model):
    image = torch.arange(48.0).expand(1, 1, 48, 48)
    assert torch.equal(crop_or_enlarge(image, 40), image[..., 4:44, 4:44])
    expected = torchvision.transforms.v2.functional.resize(image, [64, 64])
    torch.testing.assert_close(crop_or_enlarge(image, 64), expected)
    for name in ("vgg_4x2", "ferplus_vgg13"):
        assert Network(catalogue_model(name), Normalize("none")).logits(image, 1).shape == (1, 7)


def test_logits_do_not_depend_on_the_batch_size_and_leave_the_mode(catalogue_model):
    images = torch.randint(0, 256, (5, 1, 48, 48), dtype=torch.uint8)
    network = Network(catalogue_model("compact_cnn"), Normalize("unit", 0.0, 255.0)).train()
    torch.testing.assert_close(network.logits(images, 2), network.logits(images, 5))
    assert network.training


def test_a_residual_block_equals_torchvisions_basic_block():
    theirs = torchvision.models.resnet.BasicBlock(6, 6)
    ours = Residual(6, 6, nn.ReLU)
    ours.load_state_dict(
        {key.replace("bn", "norm"): value for key, value in theirs.state_dict().items()},
        strict=True,
    )
    x = torch.randn(3, 6, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    assert Residual(6, 9, nn.ReLU)(x).shape == (3, 9, 8, 8)
    weighed = Residual(6, 6, nn.ReLU, squeeze=3)
    assert weighed.squeeze.fc1.weight.shape == (2, 6, 1, 1) and weighed(x).shape == x.shape


def test_a_network_with_global_pool_takes_any_size():
    model = ConvNet(
        features=[{"space_to_depth": 2}, 4, {"residual": 8}, "pool", "global_pool"],
        head=[],
        norm="batch",
    )
    network = Network(model, Normalize("unit"))
    images = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8)
    seen = []
    model.features.conv1_1.register_forward_hook(lambda m, i, o: seen.append(o.shape[-1]))
    assert all(
        network.model(network.prepare(images, side)).shape == (3, 7) for side in (48, 24, 36)
    )
    assert seen == [24, 12, 18] and model.any_size
    with pytest.raises(ValueError, match="does not divide the feature map of 48×48"):
        ConvNet(features=[{"space_to_depth": 5}], head=[])


def test_layers_of_one_kind_may_follow_each_other():
    model = ConvNet(
        features=["norm", "norm", {"space_to_depth": 2}, {"space_to_depth": 2}, 4], head=[], size=8
    )
    kinds = [nn.BatchNorm2d] * 2 + [nn.PixelUnshuffle] * 2 + [nn.Conv2d, nn.ReLU]
    assert [type(layer) for layer in model.features] == kinds
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_training_starts_as_keras_does_where_a_recipe_says_so():
    torch.manual_seed(0)
    glorot = ConvNet(features=[32], head=[256], activation="prelu", init="glorot", prelu_slope=0.0)
    for layer in (glorot.features.conv1_1, glorot.head.dense1, glorot.head.logits):
        shape = layer.weight.shape
        field = shape[2:].numel()
        limit = (6 / (field * (shape[0] + shape[1]))) ** 0.5  # Keras's GlorotUniform
        assert 0.9 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()
    assert not glorot.features.activation1_1.weight.any()
    he = ConvNet(features=[32], head=[256], activation="prelu")
    assert he.head.dense1.weight.std().item() == pytest.approx(
        (2 / he.head.dense1.in_features) ** 0.5, rel=0.02
    )
    assert (he.features.activation1_1.weight == 0.25).all()


def test_training_starts_as_pytorch_does_where_a_recipe_says_so():
    torch.manual_seed(0)
    network = ConvNet(features=[8, "pool"], head=[16], size=12, init="torch")
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.Linear(8 * 6 * 6, 16), nn.Linear(16, 7)]
    drawn = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, expected in zip(drawn, layers, strict=True):
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.bias, expected.bias)


def test_the_recipe_of_vgg_4x2_starts_as_pytorch_does(compose):
    assert config.check("train", compose("train", "experiment=vgg_4x2")).model["init"] == "torch"


@pytest.mark.parametrize("name", ["prelu_cnn", "prelu_cnn_plain", "prelu_dnn_plain"])
def test_the_recipes_of_system_c_start_as_keras_does(compose, name):
    model = config.check("train", compose("train", f"experiment={name}")).model
    assert (model["init"], model["prelu_slope"]) == ("glorot", 0.0)


def test_layers_on_meta_make_and_check_shapes():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    images = torch.zeros(2, 1, 4, 4)
    shapes = on_meta(model)
    assert shapes(images.to("meta")).shape == model(images).shape == (2, 3)
    assert all(tensor.is_meta for tensor in shapes.state_dict().values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    with pytest.raises(RuntimeError, match="a dense layer of 16 inputs is given 36"):
        shapes(torch.zeros(2, 1, 5, 5, device="meta"))
    with pytest.raises(RuntimeError, match="BatchNorm of 4 channels is given 3"):
        shapes[1](torch.zeros(2, 3, 4, 4, device="meta"))


def test_parameters_that_layers_share_are_shared_on_meta():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert len(list(on_meta(nn.Sequential(first, second)).parameters())) == 3
