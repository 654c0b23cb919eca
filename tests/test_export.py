"""Exported files give the same results in ONNX Runtime and torch.export."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fer.checkpoint import Checkpoint

DATA = ["data=demo", "data.images=141", "device=cpu", "train.epochs=1", "run=r"]


def pytorch(faces):
    network = Checkpoint.open(Path("r/best.pt")).network(torch.device("cpu"))
    with torch.no_grad():
        return network(torch.from_numpy(faces)).numpy()


@pytest.mark.parametrize(
    "model",
    [
        ["model=bn_cnn_small", "model.features=[8,pool,norm,pool]"],
        ["model=vgg_4x2", "model.features=[8,pool,norm,pool]"],
        ["model=dnn"],
    ],
)
def test_onnxruntime_gives_pytorchs_logits_for_any_batch(fer, model):
    assert fer("train", *DATA, *model, "model.head=[8]")[0] == 0
    code, out, err = fer("export", "ckpt=r")
    assert (
        code == 0
        and err == ""
        and "onnxruntime" in out
        and "0 of 23 validation faces labeled differently" in out
    )
    assert (
        str(Path(__file__).parents[1]).encode() not in Path("r/model.onnx").read_bytes()
    )  # nor any path of ours
    session = onnxruntime.InferenceSession("r/model.onnx")
    for count in (1, 3, 17):
        faces = np.random.default_rng(count).integers(0, 256, (count, 1, 48, 48)).astype(np.float32)
        np.testing.assert_allclose(
            session.run(None, {"faces": faces})[0], pytorch(faces), atol=1e-4
        )
    notes = session.get_modelmeta().custom_metadata_map
    assert (
        json.loads(notes["classes"])[3] == "happy" and "0 (black) to 255 (white)" in notes["input"]
    )


def test_torch_export_gives_pytorchs_logits_too(fer):
    assert fer("train", *DATA, "model=dnn", "model.head=[8]")[0] == 0
    code, out, err = fer("export", "ckpt=r", "format=torch_export", "out=x.pt2")
    assert code == 0 and err == "" and "x.pt2: " in out
    notes = {"notes.json": ""}
    program = torch.export.load("x.pt2", extra_files=notes)
    steps = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    # Casts and slices that change nothing, which coremltools cannot convert.
    assert not {"aten.alias.default", "aten.slice.Tensor", "aten.to.dtype"} & steps
    module = program.module()
    faces = np.random.default_rng(0).integers(0, 256, (5, 1, 48, 48)).astype(np.float32)
    np.testing.assert_allclose(module(torch.from_numpy(faces)).detach(), pytorch(faces), atol=1e-5)
    assert json.loads(json.loads(notes["notes.json"])["classes"])[6] == "neutral"


@pytest.mark.parametrize("computed_in", ["bf16", "fp32"])
def test_the_speed_is_also_given_in_the_format_of_this_cpu(fer, tiny, monkeypatch, computed_in):
    for module in ("fer.commands.export", "fer.models.network"):
        monkeypatch.setattr(f"{module}.number_format", lambda device: computed_in)
    code, out, _ = fer("export", f"ckpt={tiny()}", "out=m.onnx")
    line = out.splitlines()[-1]
    assert code == 0 and line.startswith("images/s on this CPU, batches of ")
    assert line.count(" in fp32") == 2 and line.count(" in bf16") == (computed_in == "bf16")


def test_faces_that_an_export_labels_differently_are_counted(fer, tiny, tiny_contents, monkeypatch):
    """Its logits are all 0; a change that is small enough to pass turns all labels."""
    weights = {name: torch.zeros_like(value) for name, value in tiny_contents["model"].items()}
    path = tiny(model=weights)
    run = onnxruntime.InferenceSession.run

    def nudged(*args):
        (logits,) = run(*args)
        logits[:, 3] += 5e-4
        return [logits]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", nudged)
    code, out, err = fer("export", f"ckpt={path}")
    relabeled = re.search(r"(\d+) of (\d+) validation faces labeled differently", out)
    assert code == 0 and int(relabeled[1]) == int(relabeled[2]) > 0, err


def test_a_failed_export_is_refused_and_writes_nothing(fer, tmp_path, tiny, monkeypatch):
    path = tiny()
    run = onnxruntime.InferenceSession.run
    with monkeypatch.context() as patch:
        patch.setattr(
            onnxruntime.InferenceSession,
            "run",
            lambda *args: [logits + 0.002 for logits in run(*args)],
        )
        code, _, err = fer("export", f"ckpt={path}")
    assert code == 2 and "differs from PyTorch's by 0.002" in err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = fer("export", f"ckpt={path}")
    assert code == 2 and "pip install 'fer-trainer[export]'" in err
    (tmp_path / "no.pt").write_text("no")
    assert fer("export", "ckpt=no.pt")[0] == 2
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.pt", "no.pt"}
