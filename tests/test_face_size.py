"""A network gets all faces at the size of those that it was trained on."""

import csv
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fer import api
from fer.checkpoint import Checkpoint
from fer.data.faces import Faces
from fer.inference import Ensemble
from fer.models.convnet import ConvNet
from fer.models.network import Network, Normalize
from fer.photos.labeling import faces_in_photos

TRAINING = ["model=dnn", "model.head=[4]", "train.epochs=1", "augment=none", "device=cpu"]
RNG = np.random.default_rng(0)


def draw(side):
    return RNG.integers(0, 256, (side, side), dtype=np.uint8)


def write_faces(path, side):
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for i in range(28):
            usage = "Training" if i < 14 else "PublicTest"
            writer.writerow([i % 7, " ".join(map(str, draw(side).ravel())), usage])


@pytest.fixture
def of_64(fer):
    """A run on a CSV of faces of 64×64 pixels."""
    write_faces("large.csv", 64)
    code, _, err = fer("train", "data.path=large.csv", "model.size=64", *TRAINING, "run=large")
    assert (code, err) == (0, "")
    return Checkpoint.open(Path("large/best.pt"))


def test_the_checkpoint_knows_it_and_other_data_is_read_at_it(of_64, fer):
    assert of_64.face_size == 64
    assert of_64.network(torch.device("cpu")).face_size == 64
    Path("pictures").mkdir()
    for number in range(3):
        Image.fromarray(draw(100)).save(f"pictures/{number}.png")
    pictures = of_64.data({"path": "pictures"}, used_whole=True)
    assert pictures.split(pictures.unlabeled_split or pictures.only_split).images.shape == (
        3,
        1,
        64,
        64,
    )
    code, out, err = fer("predict", "ckpt=large", "data.path=pictures", "out=x.csv")
    assert (code, err) == (0, "") and "3 faces" in out


def test_faces_of_another_size_are_resized_before_the_model_crops_them():
    model = ConvNet(features=[4, "pool"], head=[], size=40)
    network = Network(model, Normalize("unit"), face_size=64).eval()
    faces = torch.randint(0, 256, (5, 1, 96, 96), dtype=torch.uint8)
    expected = F.interpolate(faces.float(), (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(network.at_face_size(faces), expected)
    assert network.at_face_size(faces[..., :64, :64]).dtype == torch.uint8  # as they are


def test_members_of_different_sizes_label_the_same_faces(of_64, fer):
    words = ["data.path=large.csv", "data.size=48", *TRAINING]
    assert fer("train", *words, "run=small")[0] == 0
    cpu = torch.device("cpu")
    ensemble = Ensemble.open(["small", "large"], cpu, 64, "none")
    assert ensemble.face_size == 64
    assert ensemble.data().splits["validation"].hash == of_64.data().splits["validation"].hash
    for typed in ([], ["data.path=large.csv"]):
        code, out, err = fer("evaluate", "ckpt=[small,large]", "select=uniform", *typed)
        assert code == 0 and ("ensemble without it" in out) is (not typed), err
        (row,) = re.findall(r"large/best.pt +(\S+) +\S+ to ", out)
        assert float(row) == pytest.approx(of_64.contents["val_accuracy"], abs=1e-4)
    code, out, _ = fer("evaluate", "ckpt=[small,large]", "split=train")
    assert "small/best.pt was trained on 14 of these 14 faces" in out
    assert "large/best.pt was trained on 14 of these 14 faces" in out
    images = torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8)
    smaller = F.interpolate(images.float(), (48, 48), mode="bilinear", antialias=True)
    small, large = (member.network(cpu) for member in ensemble.members)
    # In the number format of this processor, as label() computes.
    logits = [large.logits(images, batch_size=5), small.logits(smaller, batch_size=5)]
    expected = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    found = ensemble.label(Faces(images, torch.full((5,), -1), [*"abcde"]))
    torch.testing.assert_close(found.float(), expected)


def test_faces_of_photos_have_it(tmp_path):
    for side in (48, 64):
        Image.fromarray(draw(side)).save(tmp_path / f"{side}.png")
    faces = faces_in_photos(sorted(tmp_path.glob("*.png")), "face", 0.02, 64)
    assert [face.pixels.shape for face in faces] == [(1, 64, 64)] * 2
    assert all(face.whole for face in faces)


def test_exports_and_the_api_take_it(of_64, fer):
    code, _, err = fer("export", "ckpt=large")
    assert (code, err) == (0, "")
    session = onnxruntime.InferenceSession("large/model.onnx")
    assert session.get_inputs()[0].shape[1:] == [1, 64, 64]
    assert "N×1×64×64" in session.get_modelmeta().custom_metadata_map["input"]
    classifier = api.load("large")
    assert classifier.face_size == 64
    faces = draw(96)
    resized = F.interpolate(
        torch.from_numpy(faces)[None, None].float(), (64, 64), mode="bilinear", antialias=True
    )
    expected = classifier.probabilities(resized.numpy())
    assert np.allclose(classifier.probabilities(faces), expected)


@pytest.mark.parametrize("explain_by", ["image=3", "image=face.png"])
def test_explanations_have_it(of_64, fer, explain_by):
    Image.fromarray(draw(64)).save("face.png")
    code, _, err = fer("explain", "ckpt=large", explain_by, "show=[saliency]")
    assert (code, err) == (0, "")


def test_a_model_smaller_than_the_faces_is_told(fer):
    write_faces("large.csv", 64)
    code, out, err = fer("train", "data.path=large.csv", "data.size=96", *TRAINING, "run=r")
    words = " ".join((out + err).split())
    assert code == 0 and "only the center of the faces, 48×48 of 96×96 pixels" in words
    assert "model.size=96" in words and "data.size=48" in words
    assert "data.size=96: all faces are smaller and are enlarged, which takes time" in words
    code, out, _ = fer("train", "data.path=large.csv", "data.size=48", *TRAINING, "run=s")
    assert code == 0 and "center of the faces" not in out and "enlarged" not in out


def test_checkpoints_of_earlier_versions_tell_it_by_their_config(tiny, tiny_contents):
    tiny_contents = dict(tiny_contents)
    assert tiny_contents.pop("face_size") == 48
    path = tiny()
    torch.save(tiny_contents, path)
    assert Checkpoint.open(path).face_size == 48


def test_an_earlier_checkpoint_of_a_larger_model_does_not_shrink_its_faces(of_64):
    contents = dict(of_64.contents)
    del contents["face_size"]
    torch.save(contents, of_64.path)
    assert Checkpoint.open(of_64.path).face_size == 64


def test_inspection_draws_faces_of_any_size(fer):
    write_faces("large.csv", 64)
    code, _, err = fer("inspect", "data.path=large.csv", "near=null")
    assert (code, err) == (0, "")
