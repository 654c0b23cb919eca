"""The drawn faces: shapes and classes, the same bytes on every machine, visible action units."""

import numpy as np
import pytest
import torch

from fer import CLASSES, FACE_SIZE
from fer.data import demo as drawing
from fer.data.demo import EXPRESSIONS, MIX, demo

HALF = FACE_SIZE // 2


@pytest.fixture(scope="module", autouse=True)
def drawn_anew():
    """Without the drawings that conftest.py keeps for other tests."""
    kept = drawing.draw
    drawing.draw = kept.__wrapped__
    yield
    drawing.draw = kept


@pytest.fixture(scope="module")
def data():
    return demo(images=700, limit=None, seed=0, normalize="unit")


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def mean_face(name, count=100):
    return drawing.draw(np.full(count, CLASSES.index(name)), rng(), count)[:, 0].mean(0)


def test_shapes_types_and_ids(data):
    assert {name: len(faces) for name, faces in data.splits.items()} == {
        "train": 700,
        "validation": 116,
        "test": 116,
    }
    assert data.normalize == "unit" and not data.sealed
    for faces in data.splits.values():
        assert (
            faces.images.shape == (len(faces), 1, FACE_SIZE, FACE_SIZE)
            and faces.images.dtype == torch.uint8
        )
        assert faces.labels.shape == (len(faces),) and faces.labels.dtype == torch.int64
        assert faces.ids == [str(i) for i in range(len(faces))]


def test_only_the_test_split_is_unlabeled(data):
    assert data.unlabeled_split == "test"
    assert (data.split("test").labels == -1).all()
    assert data.split("train").labeled and data.split("validation").labeled


def test_pictures_use_the_gray_range(data):
    gray = data.split("train").images.float()
    assert 90 < gray.mean() < 150
    assert (gray.std((1, 2, 3)) > 8).all(), "no picture is flat"
    assert ((gray == 0) | (gray == 255)).float().mean() < 0.05, "little is clipped"


def test_same_for_a_seed_and_different_for_another(data):
    again, other = (demo(images=700, limit=None, seed=seed, normalize="unit") for seed in (0, 1))
    for name, faces in data.splits.items():
        assert torch.equal(faces.images, again.split(name).images) and torch.equal(
            faces.labels, again.split(name).labels
        )
        assert not torch.equal(faces.images, other.split(name).images)


def test_splits_share_no_picture(data):
    pictures = [
        picture.numpy().tobytes() for faces in data.splits.values() for picture in faces.images
    ]
    assert len(set(pictures)) == len(pictures)


def test_limit_keeps_the_first_of_each_split(data):
    few = demo(images=700, limit=41, seed=0, normalize="unit")
    for name, faces in data.splits.items():
        assert len(few.split(name)) == 41
        assert torch.equal(few.split(name).images, faces.images[:41])
        assert torch.equal(few.split(name).labels, faces.labels[:41])
    assert len(demo(images=70, limit=10_000, seed=0, normalize="none").split("train")) == 70


@pytest.mark.parametrize("images", [70, 71, 200])
def test_every_class_is_there_however_few(images):
    for name in ("train", "validation"):
        labels = demo(images=images, limit=None, seed=3, normalize="none").split(name).labels
        assert len(labels.unique()) == len(CLASSES)


def test_class_mix():
    assert sum(MIX) == pytest.approx(1)
    shares = np.bincount(drawing.class_mix(6000, rng())) / 6000
    assert shares == pytest.approx(MIX, abs=0.002)
    assert CLASSES[shares.argmin()] == "disgust" and CLASSES[shares.argmax()] == "happy"


def test_one_label_in_twenty_is_wrong():
    shown = drawing.class_mix(20_000, rng())
    labels = drawing.mislabel(shown, rng(1))
    assert 0.04 < (labels != shown).mean() < 0.06
    assert (np.bincount(labels) == np.bincount(shown)).all()


def test_same_on_every_machine(data):
    """Means of 12×12 blocks of two pictures, drawn on x86-64 with numpy 2: a last bit may differ,
    half a gray not.
    """
    blocks = data.split("train").images[[0, 699], 0].double().reshape(2, 4, 12, 4, 12).mean((2, 4))
    assert torch.allclose(blocks, torch.tensor(BLOCKS, dtype=torch.float64), atol=0.5)


BLOCKS = [
    [
        [20.3, 83.7, 88.0, 30.8],
        [44.6, 82.9, 80.6, 53.6],
        [56.3, 88.1, 79.1, 43.9],
        [44.9, 74.6, 62.0, 24.5],
    ],
    [
        [48.2, 76.1, 72.5, 44.9],
        [103.6, 147.3, 122.7, 78.8],
        [127.2, 148.1, 175.8, 98.7],
        [85.2, 111.6, 139.7, 56.5],
    ],
]


def test_every_action_unit_belongs_to_an_expression():
    assert set(EXPRESSIONS) == set(CLASSES)
    used = {au for aus in EXPRESSIONS.values() for au in sum(aus, ())}
    assert used == set(drawing.AUS)


@pytest.mark.parametrize("au", drawing.AUS)
def test_every_action_unit_moves_the_face(au, monkeypatch):
    """The same faces with and without one unit: it shows, and mostly on the half of the face that
    it belongs to.
    """
    column = drawing.AUS.index(au)

    def only(strength):
        monkeypatch.setattr(
            drawing,
            "intensities",
            lambda shown, _: np.eye(len(drawing.AUS))[[column] * 16] * strength,
        )
        return drawing.draw(np.zeros(16, dtype=int), rng(), 16)[:, 0].astype(float)

    moved = np.abs(only(1) - only(0)).mean(0)
    assert moved.max() > 4
    upper, lower = moved[:HALF].sum(), moved[HALF:].sum()
    if au in (1, 2, 4, 5, 7):
        assert upper > 3 * lower
    if au in (10, 12, 15, 16, 20, 23, 25, 26):
        assert lower > 3 * upper


def test_expressions_differ_where_they_should():
    """Against neutral: smile, dropped jaw and frown change the mouth, anger and fear the brows."""
    neutral = mean_face("neutral")
    mouth, brows = np.s_[30:44, 12:36], np.s_[10:24, 8:40]
    for name, region in {
        "happy": mouth,
        "surprise": mouth,
        "sad": mouth,
        "angry": brows,
        "fear": brows,
    }.items():
        assert np.abs(mean_face(name) - neutral)[region].mean() > 1.5, name


def test_disgust_looks_more_like_anger_than_like_any_other():
    """The drawing makes it so, not the labels."""
    disgust = mean_face("disgust", 300)
    distance = {
        name: np.abs(mean_face(name, 300) - disgust).mean() for name in CLASSES if name != "disgust"
    }
    assert min(distance, key=distance.get) == "angry", distance
