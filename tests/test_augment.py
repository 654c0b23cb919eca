"""Augmentation functions match torchvision and scipy.ndimage; Augment draws what it should."""

import functools
import inspect
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torch.nn.functional as F
import yaml
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as theirs

from fer import UserError, augment, config
from fer.augment import Augment

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "augment").glob("*.yaml"))


def values(path):
    """The numbers of a YAML, over those of the one that it starts from."""
    own = yaml.safe_load(path.read_text())
    base = {}
    for name in own.pop("defaults", []):
        base |= values(path.with_stem(name))
    return base | own


OFF = values(CONFIGS[0].with_stem("none"))
ON = {
    "flip": 1.0,
    "rotate": 30.0,
    "shift": 0.2,
    "zoom": 0.2,
    "brightness": 0.3,
    "contrast": 0.3,
    "erase": 1.0,
}
ON |= {"mixup": 1.0, "cutmix": 1.0, "jitter": 0.5}
MORE = ON | {"resized_crop": (0.8, 1.2), "rotate_probability": 0.5}
MORE |= {"crop": 40, "crops": 5, "erase_value": "black"}


@functools.cache
def make(**changes):
    return config.build("augment", config.check_node("augment", OFF | changes))


def apply(images, targets=None, seed=0, strength=None, **changes):
    torch.manual_seed(seed)
    targets = torch.eye(7)[torch.arange(len(images)) % 7] if targets is None else targets
    return make(**changes)(images, targets, strength)


def draws(count, seed=0):
    return augment.Draws(count, torch.device("cpu"), torch.Generator().manual_seed(seed))


@pytest.fixture
def faces():
    """40 smooth pictures that fill the range, so that a slip of half a pixel shows."""
    noise = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, 48, mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def parameters(count, seed=0):
    generator = np.random.default_rng(seed)
    flip, degrees = generator.random(count) < 0.5, generator.uniform(-180, 180, count)
    return (
        flip,
        degrees,
        generator.uniform(-12, 12, (count, 2)),
        generator.uniform(0.6, 1.5, (count, 2)),
    )


def tensors(*arrays):
    return [torch.from_numpy(a) if a.dtype == bool else torch.from_numpy(a).float() for a in arrays]


# Geometry


@pytest.mark.parametrize("size", [(48, 48), (48, 36)])
def test_affine_equals_torchvision(faces, size):
    images = faces[..., : size[0], : size[1]].float()
    flip, degrees, shift, scale = parameters(len(images))
    shift, scale[:, 1] = shift.round(), scale[:, 0]
    ours = augment.affine(images, *tensors(flip, degrees, shift, scale), size, "constant")
    for i, image in enumerate(images):
        image = theirs.horizontal_flip(image) if flip[i] else image
        expected = theirs.affine(
            image,
            degrees[i],
            shift[i].tolist(),
            scale[i, 0],
            [0.0],
            theirs.InterpolationMode.BILINEAR,
        )
        assert torch.allclose(ours[i], expected, atol=0.02)


@pytest.mark.parametrize(
    ("fill", "mode"),
    [("constant", "grid-constant"), ("nearest", "nearest"), ("reflection", "reflect")],
)
@pytest.mark.parametrize("size", [(48, 48), (40, 44)])
def test_affine_equals_scipy(faces, fill, mode, size):
    images = faces.float()
    flip, degrees, shift, scale = parameters(len(images))
    ours = augment.affine(images, *tensors(flip, degrees, shift, scale), size, fill)
    for i, image in enumerate(images):
        angle = np.deg2rad(degrees[i])
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        forward = rotation @ np.diag(scale[i] * [-1 if flip[i] else 1, 1])
        inverse = np.linalg.inv(forward)[::-1, ::-1]  # scipy counts (y, x)
        offset = np.full(2, 23.5) - inverse @ ((np.array(size) - 1) / 2 + shift[i, ::-1])
        expected = scipy.ndimage.affine_transform(
            image[0].numpy(), inverse, offset, size, order=1, mode=mode
        )
        assert np.allclose(ours[i, 0], expected, atol=0.02)


def test_horizontal_flip_equals_torchvision(faces):
    flip = torch.arange(len(faces)) % 3 == 0
    expected = torch.stack(
        [theirs.horizontal_flip(x) if f else x for x, f in zip(faces, flip, strict=True)]
    )
    assert torch.equal(augment.horizontal_flip(faces, flip), expected)


def test_crop_equals_torchvision(faces):
    top, left = torch.randint(0, 9, (2, len(faces)))
    expected = [
        theirs.crop(x, t, s, 40, 40)
        for x, t, s in zip(faces, top.tolist(), left.tolist(), strict=True)
    ]
    assert torch.equal(augment.crop(faces, top, left, 40), torch.stack(expected))


@pytest.mark.parametrize("size", [48, 47, 45, 44, 43, 1])
def test_crops_for_evaluation_are_five_and_five_of_the_mirror_image(faces, size):
    crops = augment.ten_crops(faces, size)
    for image, views in ((faces, crops[:5]), (faces.flip(-1), crops[5:])):
        upper, lower = image[..., :size, :], image[..., -size:, :]
        corners = [upper[..., :size], upper[..., -size:], lower[..., :size], lower[..., -size:]]
        assert torch.equal(views, torch.stack([*corners, theirs.center_crop(image, [size])]))


def test_resized_crop_equals_torchvision(faces):
    boxes = draws(len(faces)).resized_crop_boxes(0.3, 1.2, 48, 48)
    ours = augment.resized_crop(faces, boxes)
    for i, (top, left, bottom, right) in enumerate(boxes.int().tolist()):
        expected = theirs.resized_crop(
            faces[i].float(), top, left, bottom - top, right - left, [48, 48]
        )
        assert torch.allclose(ours[i], expected, atol=0.02)


@pytest.mark.parametrize("area", [(0.8, 1.2), (0.1, 1.0), (1.9, 2.0)])
def test_resized_crops_are_drawn_as_torchvision_draws_them(area):
    """Also where no window of an image of this size is large enough."""
    top, left, bottom, right = draws(3000).resized_crop_boxes(*area, 48, 48).T
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(48, scale=area)
    drawn = [transform.make_params([torch.zeros(1, 48, 48)]) for _ in range(3000)]
    for name, values in (
        ("height", bottom - top),
        ("width", right - left),
        ("top", top),
        ("left", left),
    ):
        other = [parameters[name] for parameters in drawn]
        assert scipy.stats.ks_2samp(values.numpy(), other).pvalue > 1e-3, name


@pytest.mark.parametrize(("count", "cut"), [(5, theirs.five_crop), (10, theirs.ten_crop)])
def test_fixed_crops_equal_torchvision(faces, count, cut):
    ours = augment.fixed_crops(faces, 40, count).view(len(faces), count, 1, 40, 40)
    for image, crops in zip(faces, ours, strict=True):
        assert torch.equal(crops, torch.stack(cut(image, [40])))


# Color and mixing


def test_jitter_equals_torchvision_in_either_order(faces):
    bright, factor = torch.linspace(0.4, 1.6, len(faces)), torch.linspace(1.6, 0.4, len(faces))
    first = torch.arange(len(faces)) % 2 == 0
    ours = augment.jitter(faces.float(), bright, factor, first)
    for i, face in enumerate(faces.float() / 255):
        steps = [
            lambda image, i=i: theirs.adjust_brightness(image, bright[i].item()),
            lambda image, i=i: theirs.adjust_contrast(image, factor[i].item()),
        ]
        for step in reversed(steps) if first[i] else steps:
            face = step(face)
        assert torch.allclose(ours[i], face * 255, atol=1e-3)


def test_contrast_equals_torchvision(faces):
    images, factors = faces.float(), torch.linspace(0, 2, len(faces))
    expected = [
        theirs.adjust_contrast(x / 255, f) * 255
        for x, f in zip(images, factors.tolist(), strict=True)
    ]
    assert torch.allclose(augment.contrast(images, factors), torch.stack(expected), atol=1e-3)


def test_brightness_adds_and_stays_in_range(faces):
    delta = torch.linspace(-300, 300, len(faces))
    expected = np.clip(faces.numpy() + delta.numpy()[:, None, None, None], 0, 255)
    assert np.array_equal(augment.brightness(faces.float(), delta), expected)


def test_erase_equals_torchvision(faces):
    torch.manual_seed(0)
    images, boxes, value = (
        faces.float(),
        draws(len(faces)).boxes(1.0, 48, 48),
        torch.rand(faces.shape),
    )
    ours = augment.erase(images, boxes, value)
    for i, (top, left, bottom, right) in enumerate(boxes.int().tolist()):
        patch = value[i, :, top:bottom, left:right]
        assert torch.equal(
            ours[i], theirs.erase(images[i], top, left, bottom - top, right - left, patch)
        )


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_mixing_equals_torchvision(faces, name, monkeypatch):
    """With the parameters that torchvision drew; it takes the neighbor for the other image."""
    images, labels, drawn = faces.float(), torch.arange(len(faces)) % 7, {}
    transform = getattr(v2, name)(num_classes=7)
    draw = transform.make_params
    monkeypatch.setattr(
        transform, "make_params", lambda inputs: drawn.update(draw(inputs)) or drawn
    )
    torch.manual_seed(1)
    expected = transform(images, labels)
    targets, perm = torch.eye(7)[labels], torch.arange(len(faces)).roll(1)
    others = images[perm], targets[perm]
    if name == "MixUp":
        ours = augment.mixup(images, targets, torch.tensor(drawn["lam"]), *others)
    else:
        x1, y1, x2, y2 = drawn["box"]
        assert (x2 - x1) * (y2 - y1) > 0
        ours = augment.cutmix(images, targets, torch.tensor([y1, x1, y2, x2]), *others)
    for mine, reference in zip(ours, expected, strict=True):
        assert torch.allclose(mine, reference, atol=1e-4)


# What is drawn


def dots(count):
    """White on black: a square up and left of the center, on a picture with a margin for every
    move.
    """
    images = torch.zeros(count, 1, 96, 96)
    images[:, :, 34:42, 34:42] = 255
    return images


def moments(images):
    """Each picture's center of mass, (x, y) from its center."""
    side = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    mass = images[:, 0].double()
    return (
        torch.stack([(mass * side).sum((1, 2)), (mass * side[:, None]).sum((1, 2))], 1)
        / mass.sum((1, 2))[:, None]
    )


def uniform(values, low, high):
    return scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_flip_rate(faces):
    one = faces[:1].expand(4000, 1, 48, 48)
    flipped = (apply(one, flip=0.3)[0] == faces[0].flip(-1)).flatten(1).all(1)
    assert 0.27 < flipped.float().mean() < 0.33
    assert torch.equal(apply(one, flip=0.3)[0][~flipped], one[~flipped].float())


def test_rotations_are_even_from_both_sides():
    x, y = moments(apply(dots(1000), rotate=30.0)[0]).T
    degrees = torch.rad2deg(torch.atan2(y, x)) - (-135)
    degrees = (degrees + 180) % 360 - 180
    assert degrees.abs().max() < 30.3
    assert uniform(degrees, -30, 30)


def test_shifts_are_even_on_each_axis_by_itself():
    x, y = (moments(apply(dots(1000), shift=0.2)[0]) - moments(dots(1))).T
    assert uniform(x, -0.2 * 96, 0.2 * 96)
    assert uniform(y, -0.2 * 96, 0.2 * 96)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.1


@pytest.mark.parametrize("axes", ["together", "separate"])
def test_zooms_are_even(axes):
    x, y = (moments(apply(dots(1000), zoom=0.3, zoom_axes=axes)[0]) / moments(dots(1))).T
    assert uniform(x, 0.7, 1.3)
    assert uniform(y, 0.7, 1.3)
    if axes == "together":
        assert torch.allclose(x, y, atol=1e-4)
    else:
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["rotate", "shift"])
def test_images_that_the_probability_skips_stay_unchanged(name):
    moved = apply(
        dots(2000), **{name: 0.2 if name == "shift" else 30.0, f"{name}_probability": 0.3}
    )
    same = (moments(moved[0]) - moments(dots(1))).abs().amax(1) < 1e-3
    assert 0.66 < same.float().mean() < 0.74


def test_jitter_draws_factors_evenly_for_a_share_of_the_images():
    gray = torch.full((4000, 1, 8, 8), 100.0)
    gray[..., :4], gray[..., 4:] = 90, 110
    images, _ = apply(gray, jitter=0.5, jitter_probability=0.4)
    changed = (images != gray).flatten(1).any(1)
    assert 0.37 < changed.float().mean() < 0.43
    means = images[changed].mean((1, 2, 3)) / 100
    assert uniform(means, 0.5, 1.5)
    contrasts = (images[changed][:, 0, 0, 7] / 100 - means) / (0.1 * means)
    assert uniform(contrasts, 0.5, 1.5)


def test_jitter_draws_its_factors_and_their_order_independently():
    changes = make(jitter=0.5).draw(torch.zeros(4000, 1, 8, 8), {"jitter": 0.5}, draws(4000))
    drawn = torch.stack([changes["bright"], changes["factor"], changes["contrast_first"].float()])
    assert 0.47 < drawn[2].mean() < 0.53
    correlations = torch.corrcoef(drawn)
    assert correlations[~torch.eye(3, dtype=torch.bool)].abs().max() < 0.1


def test_crops_are_uniform_over_all_positions():
    ramp = (torch.arange(48)[:, None] * 48 + torch.arange(48.0)).expand(9000, 1, 48, 48)
    images, _ = apply(ramp, crop=46)
    counts = images[:, 0, 0, 0].unique(return_counts=True)
    assert counts[0].tolist() == [0, 1, 2, 48, 49, 50, 96, 97, 98]
    assert scipy.stats.chisquare(counts[1]).pvalue > 1e-3
    assert torch.equal(images, images[:, :, :1, :1] + ramp[:1, :, :46, :46])


def test_brightness_and_contrast_are_even():
    gray = torch.full((2000, 1, 8, 8), 128.0)
    assert uniform(apply(gray, brightness=0.2)[0][:, 0, 0, 0] - 128, -51, 51)
    gray[..., :4], gray[..., 4:] = 118, 138
    assert uniform((apply(gray, contrast=0.4)[0][:, 0, 0, 7] - 128) / 10, 0.6, 1.4)


def test_erased_boxes_are_as_published():
    top, left, bottom, right = draws(4000).boxes(0.4, 48, 48).T
    some = bottom > top
    assert 0.36 < some.float().mean() < 0.44
    h, w = (bottom - top)[some], (right - left)[some]
    assert 0.015 < (h * w / 48**2).min() < 0.03
    assert 0.38 < (h * w / 48**2).max() < 0.42
    assert uniform(h * w / 48**2 + torch.rand(len(h)) * 1e-3, 0.02, 0.4)
    assert 0.25 < (h / w).min() < 0.4
    assert 2.5 < (h / w).max() < 4
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 48


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0])
def test_beta_equals_scipy(alpha):
    batch = draws(1)
    drawn = torch.stack([batch.beta(alpha) for _ in range(1000)])
    assert not drawn.isnan().any()
    bins = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
    expected = np.diff(scipy.stats.beta(alpha, alpha).cdf(bins)) * len(drawn)
    counts = np.histogram(drawn.double(), bins)[0]
    busy = expected > 5
    assert (
        scipy.stats.chisquare(
            counts[busy], expected[busy] * counts[busy].sum() / expected[busy].sum()
        ).pvalue
        > 1e-3
    )


def test_cutmix_boxes_cover_the_share_of_lam_unless_cut_off(faces):
    batch = draws(len(faces))
    boxes = torch.stack([batch.cutmix_box(torch.tensor(0.75), 48, 48) for _ in range(500)])
    areas = augment.inside(boxes, 48, 48).sum((1, 2, 3))
    assert areas.max() == 24 * 24
    assert areas.min() < 24 * 24


def test_each_batch_is_mixed_one_way():
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    values = torch.arange(40.0)[:, None, None, None].expand(40, 1, 12, 12)
    for seed in range(200):
        images, targets = apply(values, seed=seed, strength={"cutmix": 0.5}, mixup=1.0, cutmix=1.0)
        assert torch.allclose(targets.sum(1), torch.ones(40))
        own = images == values
        kinds[
            "none" if own.all() else "cutmix" if own.flatten(1).any(1).sum() > 30 else "mixup"
        ] += 1
    assert 75 < kinds["mixup"] < 125
    assert 29 < kinds["cutmix"] < 71


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_strength_of_mixing_is_the_share_of_batches(name):
    values = torch.arange(40.0)[:, None, None, None].expand(40, 1, 12, 12)
    for share, low, high in ((0.25, 30, 72), (1, 180, 200)):
        mixed = [
            apply(values, seed=s, strength={name: share}, **{name: 1.0})[0] for s in range(200)
        ]
        assert low <= sum(not torch.equal(images, values) for images in mixed) <= high


def test_targets_follow_the_pictures(faces):
    """Pictures that are their own target: after any mixing, still so, whatever the target was
    before.
    """
    soft = torch.rand(len(faces), 7).softmax(1)
    images = torch.zeros(len(faces), 1, 7, 7) + soft[:, None, None, :]
    for seed in range(20):
        mixed, targets = apply(images, soft, seed, mixup=0.4)
        assert torch.allclose(mixed[:, 0, 0], targets, atol=1e-6)
        mixed, targets = apply(faces.float(), soft, seed, cutmix=0.4)
        assert torch.allclose(targets.sum(1), torch.ones(len(faces)))
        own = (
            (mixed == faces).float().mean((1, 2, 3)).median()
        )  # of two smooth pictures few pixels are equal
        assert (targets - own * soft).min() > -0.03


# Several crops of each image


def test_each_crop_is_erased_by_itself_and_keeps_its_target(faces):
    images, targets = apply(faces, crop=40, crops=5, erase=1.0, erase_value="black")
    assert images.shape == (200, 1, 40, 40)
    expected = torch.eye(7)[torch.arange(40) % 7].repeat_interleave(5, 0)
    assert torch.equal(targets, expected)
    plain = augment.fixed_crops(faces, 40, 5)
    erased = images != plain
    assert erased.flatten(1).any(1).all()
    assert not images[erased].any()
    shares = erased.float().mean((1, 2, 3))
    assert len(shares.view(40, 5).unique()) > 100  # not one box for all crops of a face
    smaller = apply(faces, crop=40, crops=5, erase=1.0, erase_value="black", erase_area=0.05)[0]
    assert (smaller != plain).float().mean((1, 2, 3)).max() < 0.06


def test_crops_of_one_image_are_mixed_by_themselves(faces):
    images, targets = apply(faces, crop=40, crops=10, mixup=0.4)
    assert images.shape == (400, 1, 40, 40)
    assert len(targets.view(40, 10, 7)[0].unique(dim=0)) > 1
    assert torch.allclose(targets.sum(1), torch.ones(400))


def test_wrong_crops_and_windows_are_refused():
    for changes, words in (
        ({"crops": 5}, "set augment.crop=40"),
        ({"resized_crop": [1.2, 0.8]}, "smallest and largest|smallest, largest"),
        ({"resized_crop": [1.1, 1.2]}, "the smallest at most 1"),
    ):
        with pytest.raises(UserError, match=words):
            make.__wrapped__(**changes)


# Augment as a whole


def test_without_augmentation_images_are_unchanged(faces):
    targets = torch.eye(7)[torch.arange(len(faces)) % 7]
    images, same = apply(faces, targets)
    assert images.dtype == torch.float32
    assert torch.equal(images, faces.float())
    assert torch.equal(same, targets)


def test_changes_are_made_in_the_documented_order(faces):
    settings = {name: ON[name] for name in ("flip", "rotate", "brightness", "contrast", "jitter")}
    augmented = make(**settings, resized_crop=(0.3, 1.0))
    changes = augmented.draw(faces, augmented.amounts(), draws(40))
    geometry = [changes[name] for name in ("flip", "degrees", "shift", "scale")]
    order = [changes[name] for name in ("bright", "factor", "contrast_first")]
    expected = augment.jitter(faces.float(), *order)
    expected = augment.resized_crop(expected, changes["window"])
    expected = augment.affine(expected, *geometry, (48, 48), OFF["fill"])
    expected = augment.brightness(expected, changes["brightness"])
    expected = augment.contrast(expected, changes["contrast"])
    torch.testing.assert_close(augmented.change(faces, changes), expected)


def test_windows_have_the_share_of_the_area_that_is_asked_for(faces):
    windows = make(resized_crop=(0.3, 0.4)).draw(faces, {}, draws(40))["window"]
    top, left, bottom, right = windows.T
    shares = (bottom - top) * (right - left) / 48**2
    assert shares.min() > 0.28 and shares.max() < 0.42  # sides are whole pixels


@pytest.mark.parametrize("value", ["noise", "black"])
def test_boxes_are_erased_after_all_other_changes(value):
    """What fills them is not changed: noise from 0 to 255, a value for each pixel, or black."""
    bright = torch.full((40, 1, 48, 48), 255, dtype=torch.uint8)
    images, _ = apply(bright, erase=1.0, erase_value=value, contrast=0.3, flip=1.0)
    erased = images != 255
    assert erased.flatten(1).any(1).all()
    if value == "black":
        assert not images[erased].any()
    else:
        assert uniform(images[erased][::7], 0, 255)


def test_flip_and_crop_alone_only_move_pixels(faces):
    assert torch.equal(apply(faces, flip=1.0)[0], faces.flip(-1).float())
    images, _ = apply(faces, flip=0.5, crop=44)
    for image, face in zip(images, faces, strict=True):
        windows = (
            torch.stack([face.float(), face.float().flip(-1)]).unfold(2, 44, 1).unfold(3, 44, 1)
        )
        assert (windows == image[:, None, None]).flatten(-2).all(-1).any()


def test_a_crop_within_the_resample_equals_a_plain_crop(faces):
    """A rotation too small to see: the resampled window is one of the exact windows, of the flipped
    picture.
    """
    images, _ = apply(faces, flip=1.0, crop=41, rotate=1e-5)
    assert images.shape == (40, 1, 41, 41)
    places = set()
    for image, face in zip(images, faces.flip(-1).float(), strict=True):
        far = (
            (face.unfold(1, 41, 1).unfold(2, 41, 1) - image[:, None, None])
            .abs()
            .flatten(-2)
            .amax(-1)[0]
        )
        assert far.min() < 0.02
        places.add(far.argmin().item())
    assert len(places) > 20


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes", [{}, ON, ON | {"crop": 40}, {"crop": 40}, ON | {"zoom_axes": "separate"}, MORE]
)
def test_shape_type_and_range_and_the_input_is_unchanged(faces, kind, changes):
    given, side = faces.to(kind), changes.get("crop", 48)
    images, targets = apply(given, **changes)
    count = 40 * changes.get("crops", 1)
    assert images.shape == (count, 1, side, side)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 255
    assert torch.allclose(targets.sum(1), torch.ones(count))
    assert torch.equal(given, faces.to(kind))


def test_values_never_exceed_255():
    assert (
        apply(torch.full((400, 1, 48, 48), 255, dtype=torch.uint8), rotate=180.0, fill="nearest")[
            0
        ].max()
        == 255
    )


def test_the_seed_determines_the_result(faces):
    first, again, other = (apply(faces, seed=seed, **ON) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    "name", [n for n in augment.STRENGTHS if n not in ("mixup", "cutmix", "crop")]
)
def test_each_picture_has_its_own_parameters(faces, name):
    images, _ = apply(
        faces[:1].expand(40, 1, 48, 48), **{name: 0.5 if name == "flip" else ON[name]}
    )
    assert len(images.flatten(1).unique(dim=0)) >= (2 if name == "flip" else 38)


@pytest.mark.parametrize("name", [n for n in augment.STRENGTHS if n != "crop"])
def test_strength_scales_and_zero_is_off(faces, name):
    off = apply(faces, strength={name: 0}, **{name: ON[name]})
    assert torch.equal(off[0], faces.float())
    assert not torch.equal(apply(faces, **{name: ON[name]})[0], off[0])
    if name not in ("mixup", "cutmix"):
        half = apply(faces, strength={name: 0.5}, **{name: ON[name]})[0]
        assert torch.equal(half, apply(faces, **{name: ON[name] / 2})[0])


def test_the_strength_of_crop_is_how_far_windows_lie_from_the_center(faces):
    center = theirs.center_crop(faces, [40]).float()
    assert torch.equal(apply(faces, crop=40, strength={"crop": 0})[0], center)
    batch = draws(4000)
    for share, reach in ((0.5, 2), (1, 4)):
        starts = batch.window(8, share)
        assert (starts.min(), starts.max()) == (4 - reach, 4 + reach)


@pytest.mark.parametrize(
    "strength", [{"zoom_axes": 1}, {"rotation": 0.5}, {"rotate": 1.5}, {"flip": -0.1}]
)
def test_a_wrong_strength_is_refused(faces, strength):
    with pytest.raises(UserError, match=next(iter(strength))):
        apply(faces, strength=strength)


def test_a_crop_larger_than_the_pictures_is_refused(faces):
    for call in (lambda: apply(faces, crop=49), lambda: augment.ten_crops(faces, 49)):
        with pytest.raises(UserError, match="crop=49"):
            call()


def test_the_host_never_reads_from_the_device(faces):
    """A meta tensor has no values: .item(), bool(), a mask as index all fail on it, as they would
    wait for a GPU.
    """
    for changes in (ON, ON | {"crop": 40}, {"crop": 40, "flip": 0.5}, MORE):
        images, targets = make(**changes)(faces.to("meta"), torch.zeros(40, 7, device="meta"))
        assert images.device.type == targets.device.type == "meta"


@pytest.mark.parametrize(
    "changes",
    [ON, ON | {"crop": 40, "cutmix": 0.0}, {"flip": 0.5}, MORE, {"crop": 40, "crops": 5}],
)
def test_processes_that_share_a_batch_augment_it_as_one_would(faces, changes):
    augmented, targets = make(**changes), torch.eye(7)[torch.arange(40) % 7]

    def apply_part(part):
        generator = torch.Generator().manual_seed(1)
        return augmented.apply(faces, targets, augmented.amounts(), generator, part)

    whole, whole_targets = apply_part(None)
    for rank in range(3):
        part = slice(rank, None, 3)
        images, mixed = apply_part(part)
        shape = (40, changes.get("crops", 1))
        assert torch.equal(images, whole.unflatten(0, shape)[part].flatten(0, 1))
        assert torch.equal(mixed, whole_targets.unflatten(0, shape)[part].flatten(0, 1))


def test_amounts_may_be_tensors(faces):
    augmented, targets = make(**ON), torch.eye(7)[torch.arange(40) % 7]
    numbers = augmented.amounts({"rotate": 0.3, "mixup": 0.5})
    tensors = {name: torch.tensor(amount) for name, amount in numbers.items()}
    ours, theirs = (
        augmented.apply(faces, targets, amounts, torch.Generator().manual_seed(1))
        for amounts in (tensors, numbers)
    )
    torch.testing.assert_close(ours, theirs)


# The catalogue


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_names_every_argument_and_runs(faces, path):
    node = values(path)
    assert list(node) == ["_target_", *inspect.signature(Augment).parameters]
    images, targets = config.build("augment", config.check_node("augment", node))(
        faces, torch.eye(7)[:1].repeat(40, 1)
    )
    assert images.isfinite().all()
    assert torch.equal(images, faces.float()) == (path.stem == "none")
    assert targets.shape == (40, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.1},
        {"rotate": 181},
        {"zoom": 1.0},
        {"crop": 0},
        {"fill": "wrap"},
        {"mixup": -1},
        {"shear": 1},
    ],
)
def test_a_wrong_value_is_refused_by_its_key(wrong):
    with pytest.raises(UserError, match=f"augment.{next(iter(wrong))}"):
        make(**wrong)
