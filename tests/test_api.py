"""The Python API, as docs/api.md shows it, against the command line."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from fer import CLASSES, UserError, api

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_page_runs_as_it_stands_and_agrees_with_the_command_line(fer, capsys):
    Image.fromarray(astronaut()).save("photo.jpg")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        fast = block.replace('"train.epochs=5"', '"train.epochs=2", "data.images=200", "model=dnn", "device=cpu"')
        exec(fast.replace('"model=compact_cnn", ', ""), names)
    out = capsys.readouterr().out
    assert names["run"] == Path("runs/first") and len(names["faces"]) == 33 and names["maps"].shape == (4, 1, 48, 48)
    assert any(line.endswith(CLASSES) for line in out.splitlines())  # the astronaut's

    fer("predict", "ckpt=runs/first", "split=validation", "tta=flip", "out=x.csv", "probs=p.csv")
    expected = pd.read_csv("p.csv")[list(names["network"].classes)].to_numpy()
    assert abs(names["probabilities"] - expected).max() < 2e-6
    assert list(api.history("runs/first")["epoch"]) == [1, 2]


def test_faces_of_any_shape_and_type_are_taken_and_others_refused(fer, tiny):
    network, faces = api.load(tiny()), np.random.default_rng(0).integers(0, 256, (3, 48, 48)).astype(np.uint8)
    expected = network.probabilities(faces)
    assert expected.shape == (3, 7) and np.allclose(expected.sum(1), 1)
    for same in (faces[:, None], torch.tensor(faces).float(), faces.astype(float).tolist(), faces.astype(np.uint16)):
        assert np.allclose(network.probabilities(same), expected, atol=1e-6)
    assert np.allclose(network.probabilities(faces[0]), expected[:1], atol=1e-6)
    for wrong, words in (
        (faces[:, :40], "3×40×48"),
        (faces[None, None], "shape"),
        (faces / 255, "0 to 255"),
        (faces * np.nan, "nan"),
    ):
        with pytest.raises(UserError, match=words):
            network.probabilities(wrong)


def test_mistakes_are_told_as_on_the_command_line(fer, tiny):
    with pytest.raises(UserError, match=r"did you mean train\.epochs"):
        api.train("runs/x", "data=demo", "train.epoch=3")
    network = api.load(tiny())
    for wrong, words in (({"tta": "ten"}, "tta=ten"), ({"batch_size": 0}, "batch_size=0"), ({}, "are no numbers")):
        with pytest.raises(UserError, match=words):
            network.probabilities(np.zeros((1, 48, 48)) if wrong else "face", **wrong)
    with pytest.raises(UserError, match="device=tpu"):
        api.load(tiny(), device="tpu")
    with pytest.raises(UserError, match="no such checkpoint"):
        api.load("runs/x/best.pt")
    assert not Path("runs").exists()
