"""fer export: a checkpoint in, a file for other programs out: ONNX or torch.export, normalization
included, checked against PyTorch before it is written. Knows the run folder and the network;
nothing else of the package needs it.
"""

import contextlib
import io
import json
import logging
import timeit
import warnings
from collections.abc import Callable, Iterator
from os.path import realpath  # unlike Path.resolve, it does not raise where links lead in a circle
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from fer import UserError, __version__, config, extra
from fer.checkpoint import Checkpoint, find_checkpoint
from fer.files import write
from fer.models.network import Network
from fer.run import output_folders, refuse_overwriting
from fer.runtime import number_format

TOLERANCE = 1e-3  # of logits, fp32 both
BATCH = 64
CPU = torch.device("cpu")
# A network and notes in; the file's bytes out, and what they compute.
Exporter = Callable[[Network, dict[str, str]], tuple[bytes, Callable[[Tensor], Tensor]]]
DYNAMIC = ({0: torch.export.Dim("batch")},)


def run(cfg: config.ExportConfig, given_keys: list[str]) -> None:
    checkpoint = Checkpoint.open(find_checkpoint(cfg.ckpt), cfg.trust)
    path = checkpoint.path
    if cfg.out and realpath(cfg.out) == realpath(path):
        raise UserError(f"out={cfg.out}: is the checkpoint itself; choose another name")
    refuse_overwriting(cfg.out)
    exporter, name = (onnx, "model.onnx") if cfg.format == "onnx" else (torch_export, "model.pt2")
    out = Path(cfg.out or checkpoint.folder / name)
    with output_folders(out.parent):
        export(checkpoint, exporter, out, speeds=cfg.format == "onnx")


def export(checkpoint: Checkpoint, exporter: Exporter, out: Path, speeds: bool) -> None:
    """Write the checkpoint's network to the file `out`; speeds: measure it beside PyTorch's."""
    network = (
        checkpoint.network(CPU).requires_grad_(False).to(memory_format=torch.contiguous_format)
    )
    size = checkpoint.face_size
    notes = {
        "classes": json.dumps(checkpoint.classes),
        "input": f"faces: float32, N×1×{size}×{size}, gray values 0 (black) to 255 (white), "
        "cropped as FER2013's faces",
        "output": "logits: float32, N×classes; softmax makes probabilities of them",
        "fer": __version__,
        "val_accuracy": str(checkpoint.contents.get("val_accuracy", "")),
    }
    faces, source = faces_to_compare(checkpoint)
    with quiet():
        exported, call = exporter(network, notes)

    parts = [(network(part), call(part)) for part in (faces[:1], *faces.split(BATCH))]
    difference = max((ours - theirs).abs().max().item() for ours, theirs in parts)
    relabeled = sum(int((ours.argmax(1) != theirs.argmax(1)).sum()) for ours, theirs in parts[1:])
    if not difference <= TOLERANCE:
        raise UserError(
            f"{checkpoint.name}: a logit of its export differs from PyTorch's by {difference:.2g}; "
            "try the other format="
        )
    write(out, lambda file: file.write(exported))
    print(
        f"{out}: {len(exported) / 1e6:.1f} MB; logits differ from PyTorch's by at most "
        f"{difference:.1g}, {relabeled} of {len(faces)} {source} labeled differently"
    )
    if speeds:
        print(speed_line(checkpoint, call, network, faces[:BATCH]))


def faces_to_compare(checkpoint: Checkpoint) -> tuple[Tensor, str]:
    """Images, float N×1×H×H from 0 to 255, and what they are: validation faces, or random ones if
    the data is not available.
    """
    count = 4 * BATCH
    try:
        faces = checkpoint.data().split("validation").images
        source = "validation faces"
    except UserError:
        generator = torch.Generator().manual_seed(0)
        size = checkpoint.face_size
        faces = torch.randint(0, 256, (count, 1, size, size), generator=generator)
        source = "random images"
    return faces[:count].float(), source


def example(network: Network) -> Tensor:
    """Two faces: with one, the exporter would treat the batch size as a constant."""
    return torch.zeros(2, 1, network.face_size, network.face_size)


def onnx(network: Network, notes: dict[str, str]) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """The file's bytes, and what onnxruntime makes of them."""
    with extra("export", "format=onnx"):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    program = torch.onnx.export(
        network,
        (example(network),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=DYNAMIC,
        input_names=["faces"],
        output_names=["logits"],
    )
    assert program  # None is of the older exporter
    program.model.metadata_props.update(notes)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where this machine keeps its sources
    made = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    return made, lambda faces: torch.from_numpy(
        session.run(None, {"faces": np.ascontiguousarray(faces)})[0]
    )


def torch_export(
    network: Network, notes: dict[str, str]
) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """The file's bytes, and what torch makes of them; the notes are its extra file notes.json."""
    program = torch.export.export(network, (example(network),), dynamic_shapes=DYNAMIC)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"notes.json": json.dumps(notes)})
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the context the exporters print and log nothing."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def speed_line(
    checkpoint: Checkpoint, call: Callable[[Tensor], Tensor], network: Network, faces: Tensor
) -> str:
    """The exported network beside PyTorch in fp32, and in the format that fer predict uses here."""
    line = (
        f"images/s on this CPU, batches of {len(faces)}: onnxruntime {speed(call, faces):,.0f} "
        f"in fp32, PyTorch {speed(network, faces):,.0f} in fp32"
    )
    computed_in = number_format(CPU)
    if computed_in != "fp32":
        predicting = checkpoint.network(CPU)
        images_per_second = speed(lambda part: predicting.logits(part, BATCH), faces)
        line += f", {images_per_second:,.0f} in {computed_in}"
    return line


def speed(call: Callable[[Tensor], Tensor], faces: Tensor) -> float:
    """Images a second, the median of seven calls after a first."""
    call(faces)
    return len(faces) / median(timeit.repeat(lambda: call(faces), number=1, repeat=7))
