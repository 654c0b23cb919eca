"""Saliency and ascent match autograd and their definitions; fer explain on small networks."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.data import astronaut
from torch import nn

from fer import CLASSES, config, explain
from fer.checkpoint import save_checkpoint
from fer.models.convnet import ConvNet
from fer.models.network import Network, Normalize

NORMALIZATIONS = {"none": (0, 1), "unit": (0, 255), "dataset": (130, 60), "image": (0, 1)}
BF16 = 0.01  # how far probabilities may be from fp32's
CONV = ["model=compact_cnn", "model.features=[4,pool,6,pool]", "model.head=[]"]


@pytest.fixture
def network():
    """Builds a small network, its ReLUs in place, for faces of 12×12."""

    def make(kind="dataset", activation="relu"):
        torch.manual_seed(0)
        model = ConvNet(features=[4, "pool", 6], head=[], size=12, activation=activation)
        return Network(model, Normalize(kind, *map(float, NORMALIZATIONS[kind]))).eval()

    return make


@pytest.fixture
def faces():
    images = torch.randint(
        0, 256, (3, 1, 12, 12), generator=torch.Generator().manual_seed(1)
    ).float()
    return images, torch.tensor([0, 3, 6])


def gradient(network, images, classes):
    images = images.clone().requires_grad_()
    network(images)[range(len(classes)), classes].sum().backward()
    return images.grad


def test_saliency_is_the_size_of_the_gradient(network, faces):
    torch.testing.assert_close(
        explain.saliency(network(), *faces), gradient(network(), *faces).abs()
    )
    assert not faces[0].requires_grad


def test_smooth_grad_is_the_mean_over_noisy_copies(network, faces):
    own, (images, classes) = network(), faces
    torch.manual_seed(5)
    found = explain.smooth_grad(own, images, classes, samples=8, noise=20.0)
    torch.manual_seed(5)
    noisy = images.repeat_interleave(8, 0) + torch.normal(0, torch.full((24, 1, 12, 12), 20.0))
    copies = gradient(own, noisy, classes.repeat_interleave(8)).abs()
    torch.testing.assert_close(found, copies.view(3, 8, 1, 12, 12).mean(1))


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_integrated_gradients_add_up_to_the_difference_from_black(network, faces, kind):
    images, classes = faces
    own = network(kind, "gelu")
    scores = own(images) - own(torch.zeros_like(images))
    found = explain.integrated_gradients(own, images, classes)
    assert found.shape == images.shape
    torch.testing.assert_close(
        found.sum((1, 2, 3)), scores[range(3), classes], rtol=0.01, atol=0.01
    )


def test_grad_cam_follows_its_definition_on_a_layer_that_a_relu_overwrites(network, faces):
    images, classes = faces
    own = network()
    features, head = own.model.features, own.model.head
    maps = F.conv2d(
        features[:3](own.normalize(images)),
        features.conv2_1.weight,
        features.conv2_1.bias,
        padding=1,
    )
    (slope,) = torch.autograd.grad(head(maps.relu())[range(3), classes].sum(), maps)
    expected = (maps * slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    found = explain.grad_cam(own, features.conv2_1, images, classes)
    torch.testing.assert_close(found, F.interpolate(expected, (12, 12), mode="bilinear"))
    assert (found > 0).any() and not found.requires_grad


def test_activations_are_those_of_the_layer_alone_and_nothing_runs_after_it(network, faces):
    own, (images, _) = network(), faces
    conv = own.model.features.conv1_1
    expected = F.conv2d(own.normalize(images), conv.weight, conv.bias, padding=1)
    own.model.head.register_forward_hook(lambda *_: pytest.fail("it ran on"))
    found = explain.activations(own, conv, images)
    torch.testing.assert_close(found, expected)
    assert (found < 0).any() and not conv._forward_hooks


def test_ascent_excites_every_unit_of_any_layer_from_a_seed(network):
    own = network().requires_grad_(False)
    for layer, count in (
        (own.model.features.conv1_1, 4),
        (own.model.features.conv2_1, 6),
        (own, 7),
    ):
        units = torch.arange(count)
        torch.manual_seed(0)
        noise, found = explain.ascend(own, layer, units, steps=0), explain.ascend(own, layer, units)
        before, after = (explain.excitation(own, layer, images, units) for images in (noise, found))
        assert (after > before).all()
        assert found.shape == (count, 1, 12, 12) and found.min() >= 0 and found.max() <= 255
        torch.manual_seed(0)
        assert torch.equal(explain.ascend(own, layer, units, steps=0), noise)


def test_excitation_is_each_images_own_unit(network, faces):
    own, (images, _) = network(), faces
    maps = F.leaky_relu(explain.activations(own, own.model.features.conv1_1, images), 0.1)
    found = explain.excitation(own, own.model.features.conv1_1, images, torch.tensor([2, 0, 3]))
    torch.testing.assert_close(
        found, torch.stack([maps[0, 2].mean(), maps[1, 0].mean(), maps[2, 3].mean()])
    )


@pytest.fixture
def saved(compose, tmp_path, monkeypatch):
    """Writes the checkpoint of an untrained network as r/best.pt. The methods take few steps, whose
    numbers the command does not offer: only so is a picture made in less than a second.
    """
    monkeypatch.setattr(explain, "ascend", partial(explain.ascend, steps=3))
    monkeypatch.setattr(
        explain, "integrated_gradients", partial(explain.integrated_gradients, steps=4)
    )
    monkeypatch.setattr(explain, "smooth_grad", partial(explain.smooth_grad, samples=2))

    def make(*overrides):
        cfg = config.check("train", compose("train", "data=demo", "data.images=140", *overrides))
        torch.manual_seed(0)
        network = Network(config.build("model", cfg.model), Normalize("dataset", 130.0, 60.0))
        (tmp_path / "r").mkdir()
        save_checkpoint(tmp_path / "r" / "best.pt", cfg, network)

    return make


def table():
    return pd.read_csv("r/explain/saliency.csv", keep_default_na=False)


def test_default_pictures_show_right_and_wrong_faces_and_the_outer_convolutions(
    fer, saved, tmp_path
):
    saved(*CONV)
    code, out, err = fer("explain", "ckpt=r", "device=cpu")
    assert code == 0, err
    stems = {"saliency", "kernels", "ideal_faces"}
    stems |= {f"features.conv{layer}{kind}" for layer in ("1_1", "2_1") for kind in ("", "_ascent")}
    made = {path.name for path in (tmp_path / "r" / "explain").iterdir()}
    assert made == {f"{stem}.{kind}" for stem in stems for kind in ("png", "csv")}
    assert all(f"{stem}.png" in out for stem in stems)
    rows = table()
    right = rows["truth"] == rows["prediction"]
    assert (
        set(rows["truth"]) == set(CLASSES)
        and not rows[["truth"]].assign(right=right).duplicated().any()
    )
    assert (
        list(rows["target"]) == list(rows["prediction"]) == list(rows[list(CLASSES)].idxmax(axis=1))
    )
    assert right.any() and (~right).any()
    assert len(pd.read_csv("r/explain/features.conv2_1.csv")) == 6
    assert pd.read_csv("r/explain/features.conv1_1_ascent.csv")["excitation"].notna().all()
    before = table()
    fer("explain", "ckpt=r", "device=cpu")
    assert table().equals(before)


@pytest.mark.parametrize("image", ["image=3,11", "image=[3,11]", "image=[3,'11']"])
def test_faces_by_position_and_a_class_by_name(fer, saved, image):
    saved(*CONV)
    code, _, err = fer(
        "explain", "ckpt=r", image, "split=train", "target=sad", "layers=[]", "device=cpu"
    )
    assert code == 0, err
    assert list(table()["face"]) == ["train 3", "train 11"] and set(table()["target"]) == {"sad"}


def test_the_true_class_in_another_format_and_place(fer, saved, tmp_path):
    saved(*CONV)
    args = [
        "image=3",
        "target=true",
        "threshold=0",
        "layers=features.pool2",
        "format=svg",
        "out=my o",
        "device=cpu",
    ]
    code, _, err = fer("explain", "ckpt=r/best.pt", *args)
    assert code == 0, err
    rows = pd.read_csv("my o/saliency.csv")
    assert list(rows["target"]) == list(rows["truth"]) and not (tmp_path / "r" / "explain").exists()
    assert {path.suffix for path in (tmp_path / "my o").iterdir()} == {".svg", ".csv"}


def test_a_picture_needs_no_data(fer, saved, tmp_path):
    saved(*CONV)
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a, 1.png")
    args = [
        "explain",
        "ckpt=r",
        "layers=features.pool1",
        "device=cpu",
        "data=fer2013",
        "data.path=nowhere",
    ]
    args.append("crop=whole")
    code, _, err = fer(*args, "image=a, 1.png")
    assert code == 0, err
    assert table()[["face", "truth"]].to_numpy().tolist() == [["a, 1.png", ""]]
    assert "is not known or not shown" in fer(*args, "image=a, 1.png", "target=true")[2]


def test_a_face_in_a_photo_is_explained_as_it_is_predicted(fer, saved, tmp_path):
    saved(*CONV)
    Image.fromarray(astronaut()).save(tmp_path / "photo.png")
    assert fer("predict", "ckpt=r", "input=photo.png", "device=cpu")[0] == 0
    code, out, err = fer("explain", "ckpt=r", "image=photo.png", "layers=[]", "device=cpu")
    predicted = pd.read_csv("faces.csv")
    x, y, side = predicted.loc[0, ["x", "y", "width"]]
    assert code == 0 and f"photo.png: the face {side} pixels wide at x={x}, y={y}" in out, err
    np.testing.assert_allclose(table()[list(CLASSES)], predicted[list(CLASSES)], atol=BF16)
    assert table()["face"].tolist() == ["photo.png"]

    assert (
        fer("explain", "ckpt=r", "image=photo.png", "crop=whole", "layers=[]", "device=cpu")[0] == 0
    )
    whole = table()
    assert (
        abs(whole[list(CLASSES)].to_numpy() - predicted[list(CLASSES)].to_numpy()).max() > 2 * BF16
    )
    assert fer("predict", "ckpt=r", "input=photo.png", "crop=whole", "device=cpu")[0] == 0
    np.testing.assert_allclose(
        whole[list(CLASSES)], pd.read_csv("faces.csv")[list(CLASSES)], atol=BF16
    )


def test_several_faces_of_a_photo_are_told_apart_and_none_is_told(fer, saved, tmp_path):
    saved(*CONV)
    both = Image.new("RGB", (1024, 512))
    both.paste(Image.fromarray(astronaut()), (0, 0))
    both.paste(Image.fromarray(astronaut()), (512, 0))
    both.save(tmp_path / "two.png")
    Image.new("L", (100, 100)).save(tmp_path / "plain.png")
    code, _, err = fer("explain", "ckpt=r", "image=[two.png,plain.png]", "layers=[]", "device=cpu")
    assert code == 0 and table()["face"].tolist() == ["two.png, face 1", "two.png, face 2"], err
    code, _, err = fer(
        "explain", "ckpt=r", "image=plain.png", "smallest=0.1", "device=cpu", "out=none"
    )
    assert (
        code == 2
        and "image=plain.png: no face" in err
        and "smallest=0.1 of" in err
        and "crop=whole" in err
    )
    assert err.count("\n") == 1 and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("overrides", "layer", "cam"),
    [
        (["model=dnn", "model.head=[16]"], "head.dense1", False),
        (
            [
                "model=resnet_fast",
                "model.features=[{space_to_depth: 2},4,{residual: 6},global_pool]",
            ],
            "features",
            True,
        ),
        (["model=torchvision"], "features.0.2", True),
        (["model=torchvision", "model.name=resnet18", "model.size=32"], "layer1.0.relu", True),
    ],
)
def test_other_kinds_of_networks(fer, saved, tmp_path, overrides, layer, cam):
    saved(*overrides)
    code, out, err = fer("explain", "ckpt=r", "image=0", f"layers=[{layer}]", "device=cpu")
    assert code == 0, err
    assert (tmp_path / "r" / "explain" / "kernels.png").is_file() == cam
    assert ("Grad-CAM is left out" in out) != cam and ("kernels are left out" in out) != cam
    assert (tmp_path / "r" / "explain" / f"{layer}_ascent.png").is_file()


def test_the_kernels_behind_space_to_depth_are_those_of_the_pixels():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 3, 3, stride=2, bias=False))
    kernels = F.pixel_shuffle(model[1].weight, math.isqrt(4))
    images = torch.randn(1, 1, 18, 18)
    torch.testing.assert_close(model(images), F.conv2d(images, kernels, stride=4))


def test_private_test_shows_no_truth(fer, saved, fer2013_csv):
    saved(*CONV)
    args = [
        "explain",
        "ckpt=r",
        "data=fer2013",
        f"data.path={fer2013_csv.parent}",
        "split=private",
        "layers=[]",
    ]
    code, _, err = fer(*args, "device=cpu")
    assert code == 0, err
    assert (
        set(table()["truth"]) == {""} and table()["prediction"].is_unique
    )  # one for each class that is predicted
    assert fer(*args, "image=1", "device=cpu")[0] == 0
    assert "target=true" in fer(*args, "target=true")[2]


def test_what_it_cannot_do_is_refused_in_a_line_before_a_folder_is_made(fer, saved, tmp_path):
    saved(*CONV)
    for args, words in (
        (
            ["layers=[features.conv1_2]"],
            ["features.conv1_2", "did you mean features.conv1_1?", "features.pool2"],
        ),
        (["image=9999"], ["image=9999", "validation has only 0 to"]),
        (["image=none.png"], ["image=none.png", "no such file"]),
        (["image=-1"], ["image=-1"]),
        (["target=joy"], ["target=joy", "there are angry, disgust"]),
        (["threshold=2"], ["threshold=2"]),
        (["format=gif"], ["format=gif"]),
        (["split=no"], ["split=no"]),
        (["model=dnn"], ["comes from the checkpoint"]),
    ):
        code, _, err = fer("explain", "ckpt=r", *args, "device=cpu")
        assert code == 2 and err.count("\n") == 1 and all(word in err for word in words), err
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["best.pt"]


def test_the_last_convolution_is_no_shortcut_and_pictures_are_a_choice(fer, saved, tmp_path):
    saved("model=resnet_fast", "model.features=[4,{residual: 6},global_pool]")
    code, out, err = fer("explain", "ckpt=r", "image=0", "show=[filters]", "device=cpu")
    assert code == 0, err
    stems = {path.stem for path in (tmp_path / "r" / "explain").iterdir()}
    checkpoint = torch.load("r/best.pt", weights_only=True)["model"]
    shown = {stem for stem in stems if not stem.endswith("_ascent")}
    assert len(shown) == 2 and all(checkpoint[f"{stem}.weight"].shape[-1] == 3 for stem in shown)
    assert not {"saliency", "kernels", "ideal_faces"} & stems and out.count("r/explain/") == 4
    code, _, err = fer("explain", "ckpt=r", "show=[faces]", "device=cpu")
    assert code == 2 and "show.0=faces" in err and err.count("\n") == 1


def test_the_first_filters_get_an_image_and_all_if_asked(fer, saved):
    saved("model=compact_cnn", "model.features=[40,pool]", "model.head=[]")
    args = ["explain", "ckpt=r", "image=0", "show=[filters]", "device=cpu"]
    code, out, err = fer(*args)
    assert code == 0, err
    assert "the first 32 of 40 filters; filters=null shows all" in out
    assert len(pd.read_csv("r/explain/features.conv1_1_ascent.csv")) == 32
    assert len(pd.read_csv("r/explain/features.conv1_1.csv")) == 40
    code, out, err = fer(*args, "filters=null")
    assert code == 0 and "filters=null" not in out, err
    assert len(pd.read_csv("r/explain/features.conv1_1_ascent.csv")) == 40
