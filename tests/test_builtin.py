"""The network that the package carries: an ordinary checkpoint, used where no run is there."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from fer import CLASSES, api
from fer.checkpoint import BUILTIN_FILE, Checkpoint
from fer.data.demo import demo


def test_it_is_a_small_checkpoint_without_paths_of_a_machine():
    checkpoint = Checkpoint.open(BUILTIN_FILE)
    network = checkpoint.network(torch.device("cpu"))
    assert BUILTIN_FILE.stat().st_size <= 3_000_000
    assert sum(p.numel() for p in network.parameters()) <= 1_500_000
    assert tuple(checkpoint.classes) == CLASSES
    saved = yaml.safe_load(checkpoint.contents["config"])
    assert saved["data"]["path"] == "data" and saved["run"] is None


def test_it_has_the_accuracy_of_the_card_and_nothing_of_the_faces_that_it_was_measured_on():
    contents = Checkpoint.open(BUILTIN_FILE).contents
    card = (Path(__file__).parents[1] / "docs" / "model-card.md").read_text(encoding="utf-8")
    assert f"| without test-time augmentation | {contents['val_accuracy']:.4f} |" in card
    assert "validation" not in contents and "training" not in contents


def test_it_labels_drawn_faces_far_better_than_chance():
    faces = demo(images=210, limit=None, seed=0, normalize="dataset").split("train")
    predicted = api.load("builtin", "cpu").probabilities(faces.images.numpy()).argmax(1)
    accuracy = np.mean(predicted == faces.labels.numpy())
    assert accuracy > 0.25  # chance is 1/7; measured: 0.31


def test_photos_are_labeled_where_no_run_is_there(fer, tmp_path):
    face = demo(images=70, limit=None, seed=0, normalize="dataset").split("train").images[0, 0]
    Image.fromarray(face.numpy()).save(tmp_path / "face.png")
    code, out, err = fer("predict", "input=face.png", "device=cpu")
    assert code == 0 and "using the built-in network" in out, err
    assert pd.read_csv("faces.csv")["label"].isin(CLASSES).all()
    code, _, err = fer("predict", "data=demo")
    assert code == 2 and "train one first" in err and "ckpt=builtin" in err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_commands_take_it_by_name_and_write_nothing_into_the_package(fer, command):
    before = sorted(BUILTIN_FILE.parent.iterdir())
    code, out, err = fer(
        command, "ckpt=builtin", "data=demo", "data.images=141", "split=validation", "device=cpu"
    )
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 111 and str(BUILTIN_FILE) not in out
    assert sorted(BUILTIN_FILE.parent.iterdir()) == before


def test_a_training_starts_from_it(fer):
    code, _, err = fer("train", "start=builtin", "model=dnn", "data=demo", "device=cpu")
    assert code == 2 and "that it was trained with: model=resnet_fast\n" in err
    args = ["start=builtin", "model=resnet_fast", "data=demo", "data.images=70", "run=r"]
    code, out, err = fer("train", *args, "train.epochs=1", "device=cpu")
    assert code == 0 and "best validation accuracy" in out, err


def test_it_was_not_trained_on_the_faces_that_happen_to_be_in_data(fer, tmp_path):
    """It looks for FER2013 in ./data, where users keep other sets too."""
    draw_set(tmp_path / "data", seed=0)
    code, out, err = fer("evaluate", "ckpt=builtin", "split=train", "device=cpu")
    assert code == 0, err
    assert "was trained on" not in out


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_faces_of_classes_that_it_lacks_are_counted(fer, tmp_path, command):
    draw_set(tmp_path / "mixed", seed=0, names=["bored", "Happy"])
    code, out, err = fer(command, "ckpt=builtin", "data.path=mixed/train", "device=cpu")
    assert code == 0, err
    assert "data: 2 faces of other classes left out (bored)\n" in out and "2 faces of all" in out

    draw_set(tmp_path / "none", seed=0, names=["bored", "calm"])
    code, _, err = fer(command, "ckpt=builtin", "data.path=none/train", "device=cpu")
    assert code == 2 and err.count("\n") == 1
    assert "4 faces of other classes left out (bored, calm), which leaves none" in err

    draw_set(tmp_path / "parts", seed=0, names=["Happy", "sad"])
    draw_set(tmp_path / "parts", seed=0, names=["bored", "calm"], split="test")
    words = ["ckpt=builtin", "data.path=parts", "split=test", "device=cpu"]
    code, _, err = fer(command, *words)
    assert code == 2 and "split=test: has no faces of the classes angry, disgust" in err


def draw_set(folder: Path, seed: int, names=CLASSES, split: str = "train") -> None:
    """Noise as pictures, two a class: SPLIT/CLASS/*.png."""
    generator = np.random.default_rng(seed)
    for name in names:
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            noise = generator.integers(0, 256, (48, 48), dtype=np.uint8)
            Image.fromarray(noise).save(folder / split / name / f"{i}.png")


def test_what_needs_a_run_says_that_it_has_none(fer):
    for args, words in (
        (["report", "run=builtin"], ["run=builtin: the built-in network has no", "ckpt=builtin"]),
        (["train", "data=demo", "resume=builtin"], ["resume=builtin: ", "start=builtin"]),
    ):
        code, _, err = fer(*args)
        assert code == 2 and all(word in err for word in words), err
        assert err.count("\n") == 1 and str(BUILTIN_FILE.parent) not in err
