"""The Python API of docs/api.md gives the same results as the command line."""

import logging
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra import version as hydra_version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from skimage.data import astronaut

from fer import CLASSES, UserError, api
from fer.data.faces import Faces
from fer.runtime import SIGNALS

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_page_runs_as_it_stands_and_agrees_with_the_command_line(fer, capsys):
    Image.fromarray(astronaut()).save("photo.jpg")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        fast = block.replace(
            '"train.epochs=5"', '"train.epochs=2", "data.images=200", "model=dnn", "device=cpu"'
        )
        exec(fast.replace('"model=compact_cnn", ', ""), names)
    out = capsys.readouterr().out
    assert (
        names["run"] == Path("runs/first")
        and len(names["faces"]) == 33
        and names["maps"].shape == (4, 1, 48, 48)
    )
    assert any(line.endswith(CLASSES) for line in out.splitlines())  # the astronaut's

    fer("predict", "ckpt=runs/first", "split=validation", "tta=flip", "out=x.csv", "probs=p.csv")
    expected = pd.read_csv("p.csv")[list(names["network"].classes)].to_numpy()
    assert abs(names["probabilities"] - expected).max() < 2e-6
    assert list(api.history("runs/first")["epoch"]) == [1, 2]


def test_arrays_of_faces_are_accepted_and_others_refused(tiny):
    network, faces = (
        api.load(tiny()),
        np.random.default_rng(0).integers(0, 256, (3, 48, 48)).astype(np.uint8),
    )
    expected = network.probabilities(faces)
    assert expected.shape == (3, 7) and np.allclose(expected.sum(1), 1)
    for same in (
        faces[:, None],
        torch.tensor(faces).float(),
        faces.astype(float).tolist(),
        faces.astype(np.uint16),
    ):
        assert np.allclose(network.probabilities(same), expected, atol=1e-6)
    assert np.allclose(network.probabilities(faces[0]), expected[:1], atol=1e-6)
    assert network.probabilities(faces[:0]).shape == (0, 7)  # of a photo without a face
    for wrong, words in (
        (faces[:, :40], "3×40×48"),
        (faces[None, None], "shape"),
        (faces / 255, "0 to 255"),
        (faces * np.nan, "nan"),
    ):
        with pytest.raises(UserError, match=words):
            network.probabilities(wrong)


def test_smaller_faces_are_found_where_they_are_asked_for():
    photo = Image.fromarray(astronaut())
    assert len(api.find_faces(photo)) == len(api.find_faces(photo, smallest=0.1)) == 1
    assert not api.find_faces(photo, smallest=0.5)
    with pytest.raises(UserError, match="smallest=0"):
        api.find_faces(photo, smallest=0)


def test_errors_are_those_of_the_command_line(fer, tiny):
    with pytest.raises(UserError, match=r"did you mean train\.epochs"):
        api.train("runs/x", "data=demo", "train.epoch=3")
    network = api.load(tiny())
    for wrong, words in (
        ({"tta": "ten"}, "tta=ten"),
        ({"batch_size": 0}, "batch_size=0"),
        ({}, "not numbers"),
    ):
        with pytest.raises(UserError, match=words):
            network.probabilities(np.zeros((1, 48, 48)) if wrong else "face", **wrong)
    with pytest.raises(UserError, match="device=tpu"):
        api.load(tiny(), device="tpu")
    with pytest.raises(UserError, match="no such checkpoint"):
        api.load("runs/x/best.pt")
    assert not Path("runs").exists()


TINY = (
    "data=demo",
    "data.images=70",
    "model=dnn",
    "model.head=[4]",
    "train.epochs=1",
    "device=cpu",
)


def test_training_leaves_the_host_program_unchanged(fer, tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "app.yaml").write_text("a: 1\n")
    handler = logging.FileHandler("host.log", mode="w")
    logging.getLogger().addHandler(handler)
    try:
        with initialize_config_dir(str(tmp_path / "host"), version_base="1.2"):
            HydraConfig.instance().set_config(compose("app", return_hydra_config=True))
            before = host_state()
            torch.manual_seed(3)
            expected = torch.rand(3)
            torch.manual_seed(3)
            assert api.train("runs/x", *TINY, "deterministic=true") == Path("runs/x")
            assert torch.equal(torch.rand(3), expected)
            assert host_state() == before
            assert compose("app").a == 1
        logging.getLogger().critical("still written")
        assert "still written" in Path("host.log").read_text()
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
        HydraConfig.instance().cfg = None


def host_state():
    """What a library may not change behind its host's back; objects by identity."""
    return {
        "hydra": id(GlobalHydra.instance().hydra),
        "config": id(HydraConfig.instance().cfg),
        "version": hydra_version.getbase(),
        "home": OmegaConf.create({"home": "${oc.env:PATH}"}).home,
        "resolvers": [OmegaConf.has_resolver(name) for name in ("hydra", "now", "oc.env")],
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "environment": dict(os.environ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "argv": list(sys.argv),
    }


def test_a_refused_training_leaves_the_host_program_unchanged(fer):
    before = host_state()
    for wrong in (
        "optim.lrr=1",
        "optim.lr=${nothing}",
        "model=vgg31",
        "optim.lr=[",
        "optim.lr=${oc.env:HOME}",
    ):
        with pytest.raises(UserError):
            api.train("runs/x", *TINY, wrong)
    assert host_state() == before and not Path("runs").exists()


def test_a_training_runs_in_a_thread_and_a_second_one_waits(fer):
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(api.train, f"runs/{seed}", *TINY, f"seed={seed}") for seed in (0, 1)]
        assert [future.result() for future in futures] == [Path("runs/0"), Path("runs/1")]
    alone = [api.history(api.train(f"runs/alone{seed}", *TINY, f"seed={seed}")) for seed in (0, 1)]
    for seed in (0, 1):
        assert list(api.history(f"runs/{seed}")["val_loss"]) == list(alone[seed]["val_loss"])


def test_experiments_and_names_are_as_on_the_command_line(fer):
    api.train("runs/x", "experiment=compact_dnn", *TINY)
    assert fer("train", "experiment=compact_dnn", *TINY, "run=runs/y")[0] == 0
    ours, theirs = (
        Path(f"runs/{name}/config.yaml").read_text().replace(f"runs/{name}", "") for name in "xy"
    )
    assert ours == theirs


def test_a_notebook_shows_a_classifier_and_faces_in_a_line():
    network = api.load("builtin")
    shown = repr(network)
    assert "builtin.pt" in shown and "happy" in shown and "face_size=48" in shown
    assert len(shown) < 300
    pixels = torch.zeros(1200, 1, 48, 48, dtype=torch.uint8)
    labels = torch.zeros(1200, dtype=torch.int64)
    assert repr(Faces(pixels, labels, ["a.png"] * 1200)) == "Faces(1,200 of 48×48)"
