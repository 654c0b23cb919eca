"""torchvision's classifiers by name: shapes, refusals, weights from a file."""

import re
import urllib.error

import pytest
import torch
import torchvision

from fer import UserError, config
from fer.models.torchvision import classifier, load_weights


@pytest.fixture(scope="module", params=["resnet18", "densenet121"])
def saved(request, tmp_path_factory):
    """A three-channel, 1000-class network of torchvision, and the file of its state dict."""
    theirs = torchvision.models.get_model(request.param, weights=None)
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save(theirs.state_dict(), path)
    return request.param, theirs, path


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 64),
        ("convnext_tiny", 48),
        ("densenet121", 48),
        ("efficientnet_b0", 48),
        ("googlenet", 48),
        ("inception_v3", 75),
        ("mnasnet0_5", 48),
        ("mobilenet_v3_small", 64),
        ("resnet18", 48),
        ("shufflenet_v2_x0_5", 48),
        ("squeezenet1_1", 48),
        ("swin_t", 44),
        ("vgg11_bn", 48),
        ("vit_b_16", 48),
    ],
)
def test_one_channel_in_seven_classes_out(name, size):
    with torch.device("meta"):  # shapes without arithmetic
        model = classifier(name=name, size=size)
        assert model.training and model.size == size
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)
        theirs = torchvision.models.get_model(
            name, weights=None, num_classes=7, **OPTIONS.get(name, {})
        )
    first = next(m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d)).weight
    count = sum(p.numel() for p in theirs.parameters()) - first.numel() * 2 // 3
    assert sum(p.numel() for p in model.parameters()) == count


OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 48},
}


# Torchvision reads numbers out of tensors: not on the meta device.
def test_regnets_are_built_too():
    assert classifier(name="regnet_y_400mf").eval()(torch.zeros(1, 1, 48, 48)).shape == (1, 7)


def test_one_gray_channel_gives_the_output_of_three_equal_ones():
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(weights=None, num_classes=7).eval()
    torch.manual_seed(0)
    ours = classifier(name="squeezenet1_1").eval()
    faces = torch.rand(2, 1, 48, 48)
    torch.testing.assert_close(ours(faces), theirs(faces.expand(-1, 3, -1, -1)))


def test_resnet18_has_the_cifar_stem_and_its_parameters(catalogue_model):
    model = catalogue_model("resnet18")
    # Convolutions without bias, two numbers a channel in each BatchNorm. The same sum with 3
    # channels and 10 classes is the 11,173,962 known from CIFAR-10.
    stem = 9 * 1 * 64 + 2 * 64
    stages = 4 * (9 * 64 * 64 + 2 * 64)
    for width in (
        128,
        256,
        512,
    ):  # the first convolution and the shortcut's 1×1 come from half the channels
        stages += (
            9 * width * width // 2 + 3 * 9 * width * width + width * width // 2 + 5 * 2 * width
        )
    assert stem + stages + 512 * 7 + 7 == 11_171_271
    assert sum(p.numel() for p in model.parameters()) == 11_171_271
    assert model.layer1(model.maxpool(model.conv1(torch.zeros(1, 1, 48, 48)))).shape == (
        1,
        64,
        48,
        48,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "resnet_18"},
            "name=resnet_18: not one of torchvision's classifiers; nearest: resnet18",
        ),
        ({"name": "fcn_resnet50"}, "not one of torchvision's classifiers; nearest: "),
        ({"name": "vit_b_32"}, "vit_b_32 cannot take 48×48; set model.size to a multiple of 32"),
        ({"name": "vit_h_14"}, "vit_h_14 cannot take 48×48; set model.size to a multiple of 14"),
        ({"name": "maxvit_t"}, "maxvit_t cannot take 48×48; set model.size to a multiple of 224"),
        (
            {"name": "squeezenet1_1", "stem": "cifar"},
            "stem=cifar: squeezenet1_1 .* set model.stem=imagenet",
        ),
    ],
)
def test_impossible_networks_are_refused_with_a_reason(options, words):
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        classifier(**options)


@pytest.mark.parametrize(
    ("name", "least", "reason"),
    [("inception_v3", 75, "Kernel size"), ("alexnet", 63, "Output size is too small")],
)
def test_a_refused_size_names_the_smallest_that_works(name, least, reason):
    with torch.device("meta"):
        assert classifier(name=name, size=least).size == least
        with pytest.raises(
            ValueError,
            match=f"{least - 1}×{least - 1}: .*{reason}.*; set model.size to {least} or more",
        ):
            classifier(name=name, size=least - 1)


def test_the_signature_is_the_schema():
    node = {"_target_": "fer.models.torchvision.classifier", "name": "resnet18"}
    assert config.check_node("model", node)["stem"] == "imagenet"
    for change, words in (
        ({"stem": "tiny"}, "model.stem=tiny: should be"),
        ({"size": 0}, "model.size=0: should be"),
        ({"pretrained": True}, "model.pretrained: no such key"),
    ):
        with pytest.raises(UserError, match=words):
            config.check_node("model", node | change)
    with pytest.raises(UserError, match=r"model\.name=resnet1: not one of"):
        config.build("model", config.check_node("model", node | {"name": "resnet1"}))


def test_weights_come_from_a_file(saved):
    name, theirs, path = saved
    ours, theirs = classifier(name=name, weights=str(path)).state_dict(), theirs.state_dict()
    (first, kernel), *rest = theirs.items()
    assert torch.equal(ours[first], kernel.sum(1, keepdim=True))
    head = {key for key, _ in rest[-2:]}
    assert all(torch.equal(ours[key], value) for key, value in rest if key not in head)
    assert all(len(ours[key]) == 7 for key in head)


def test_weights_of_seven_classes_keep_the_last_layer_and_one_channel_stays(tmp_path):
    theirs = classifier(name="squeezenet1_1").state_dict()
    torch.save(theirs, tmp_path / "own.pth")
    ours = classifier(name="squeezenet1_1", weights=str(tmp_path / "own.pth")).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_weights_with_torchvisions_older_keys(saved, tmp_path):
    name, theirs, _ = saved
    # its DenseNet files say norm.1 for norm1; all files before 2018 lack num_batches_tracked
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "old.pth")
    ours = classifier(name=name, weights=str(tmp_path / "old.pth")).state_dict()
    wanted = theirs.state_dict()
    differing = {key for key in wanted if ours[key].shape != wanted[key].shape}
    assert len(differing) == 3  # the first kernel; weight and bias of the last layer
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted.keys() - differing)


def filled(state: dict, value: float) -> dict:
    return {key: torch.full(tensor.shape, value) for key, tensor in state.items()}


def test_weights_of_auxiliary_classifiers_are_left_out(tmp_path):
    with torch.device("meta"):
        theirs = torchvision.models.googlenet(
            weights=None, aux_logits=True, init_weights=False
        ).state_dict()
    torch.save(filled(theirs, 2.0), tmp_path / "theirs.pth")
    ours = classifier(name="googlenet", weights=str(tmp_path / "theirs.pth"))
    assert (ours.inception5b.branch1.conv.weight == 2).all() and (ours.conv1.conv.weight == 6).all()


def test_position_embeddings_are_fitted_to_the_size(tmp_path):
    small = {
        "patch_size": 32,
        "num_layers": 1,
        "num_heads": 1,
        "hidden_dim": 8,
        "mlp_dim": 8,
        "num_classes": 7,
    }
    theirs, ours = (
        torchvision.models.VisionTransformer(image_size=size, **small) for size in (224, 64)
    )
    torch.save(filled(theirs.state_dict(), 2.0), tmp_path / "theirs.pth")
    ours.conv_proj = torch.nn.Conv2d(1, 8, 32, 32)
    load_weights(ours, "vit", str(tmp_path / "theirs.pth"))
    assert ours.encoder.pos_embedding.shape == (1, 1 + 2 * 2, 8)
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(
            tensor, torch.full_like(tensor, 6.0 if key == "conv_proj.weight" else 2.0)
        )


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        (
            "squeezenet1_1",
            None,
            "cannot be loaded .No such file or directory.; give a state-dict file of squeezenet1_1",
        ),
        ("squeezenet1_1", b"", "cannot be loaded .damaged"),
        ("squeezenet1_1", b"<html>404</html>", "cannot be loaded .damaged"),
        ("squeezenet1_1", "cut", "cannot be loaded .damaged"),
        ("squeezenet1_1", {"model": {}}, "no state dict"),
        ("squeezenet1_1", [torch.zeros(1)], "no state dict"),
        (
            "squeezenet1_1",
            {1: torch.zeros(1)},
            "do not fit squeezenet1_1: 1 is .1,. instead of missing",
        ),
        (
            "squeezenet1_1",
            {},
            "do not fit squeezenet1_1: classifier.1.bias is missing instead of .7,.",
        ),
        ("squeezenet1_0", "whole", r"do not fit squeezenet1_0: .* is .* instead of"),
        (
            "squeezenet1_1",
            torchvision.models.SqueezeNet,
            "cannot be loaded .*more than weights and plain values",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, name, contents, words):
    path = tmp_path / "weights.pth"
    if contents in ("cut", "whole"):
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
        if contents == "cut":
            path.write_bytes(path.read_bytes()[:-1000])
    elif isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    with pytest.raises(ValueError, match=f"weights=.*: {words}"):
        classifier(name=name, weights=str(path))


def test_weights_by_name_come_from_torchvisions_cache(tmp_path, monkeypatch):
    """As they would after a download, with three channels and 1000 classes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.squeezenet1_1(weights=None).state_dict()
    url = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(theirs, cache / url.rpartition("/")[2])
    for weights in ("IMAGENET1K_V1", "DEFAULT"):
        ours = classifier(name="squeezenet1_1", weights=weights).state_dict()
        kernel = theirs["features.0.weight"].sum(1, keepdim=True)
        assert torch.equal(ours["features.0.weight"], kernel)
        assert torch.equal(ours["features.3.squeeze.weight"], theirs["features.3.squeeze.weight"])
        assert len(ours["classifier.1.weight"]) == 7


def test_a_failed_download_of_weights_gives_the_address(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    words = r"cannot be downloaded \(no route to host\); fetch https://.*squeezenet1_1-.* and give"
    with pytest.raises(ValueError, match=words):
        classifier(name="squeezenet1_1", weights="IMAGENET1K_V1")


def test_weights_with_an_unknown_name_are_refused():
    words = "weights=IMAGENET1K_V7: no such file, .* squeezenet1_1; it has IMAGENET1K_V1, DEFAULT"
    with pytest.raises(ValueError, match=words):
        classifier(name="squeezenet1_1", weights="IMAGENET1K_V7")
