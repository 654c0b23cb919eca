"""fer app: a page on this machine that labels faces in photos and in the camera's pictures."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fer import config, photos
from fer.checkpoint import BUILTIN_FILE, Checkpoint, find_checkpoints, name_of
from fer.explain import saliency
from fer.inference import probabilities
from fer.local_page import check_port, offline_gradio, serve
from fer.models.network import Network
from fer.photos.drawing import beside, draw
from fer.run import runs
from fer.runtime import pick_device
from fer.text import percent


def run(cfg: config.AppConfig, given_keys: list[str]) -> None:
    uploads = tempfile.TemporaryDirectory(prefix="fer_app_")  # deleted when the program ends
    gradio = offline_gradio(uploads.name)
    detector = photos.FaceDetector()
    paths = checkpoints(cfg.ckpt)

    @functools.cache
    def load(name: str) -> Network:
        return Checkpoint.open(paths[name], cfg.trust).network(pick_device(cfg.device))

    load(next(iter(paths)))  # refused before the page opens, if it cannot be read
    check_port(cfg.port)

    def label(pixels: np.ndarray | None, ckpt: str) -> tuple:
        """The photo with boxes, each face with its saliency map, and the probabilities."""
        if pixels is None:
            raise gradio.Error("Choose a photo first.", print_exception=False)
        result = label_photo(Image.fromarray(pixels), detector, cfg.smallest, load(ckpt))
        if result[1] is None:
            gradio.Info(f"No face of {percent(cfg.smallest)} of the photo's longer side or more.")
        return result

    with gradio.Blocks(title="fer", analytics_enabled=False) as page:
        gradio.Markdown("# Facial expressions\nDrop a photo, or take one with the camera.")
        ckpt = gradio.Dropdown([*paths], value=next(iter(paths)), label="Checkpoint")
        photo = gradio.Image(sources=["upload", "webcam"], label="Photo")
        button = gradio.Button("Label the faces", variant="primary", elem_id="label")
        # Their buttons leave out Gradio's own that shares a picture on the web.
        drawing = gradio.Image(label="Faces", elem_id="drawing", buttons=["download", "fullscreen"])
        maps = gradio.Image(label="Saliency", elem_id="maps", buttons=["download", "fullscreen"])
        table = gradio.Dataframe(label="Probabilities", elem_id="table")
        button.click(label, [photo, ckpt], [drawing, maps, table])
    serve(page, cfg.port)


def checkpoints(named: str | list[str] | None) -> dict[str, Path]:
    """By name; without `ckpt=` all runs, newest first, and the built-in network."""
    newest_first = sorted(runs(), key=lambda path: path.stat().st_mtime, reverse=True)
    found = [*newest_first, BUILTIN_FILE] if named is None else find_checkpoints(named)
    return {name_of(path): path for path in found}


def label_photo(
    photo: Image.Image, detector: photos.FaceDetector, smallest: float, network: Network
) -> tuple[Image.Image, np.ndarray | None, pd.DataFrame]:
    """The photo with boxes, each face beside its saliency map, and a table row per face."""
    classes = list(network.classes or ())  # never none: it is a checkpoint's
    header = ["face", *classes]
    faces = photos.find_faces(photo, detector, smallest, network.face_size)
    if not faces:
        return photo, None, pd.DataFrame(columns=header)
    images = torch.stack([pixels for _, pixels in faces])
    rows = probabilities(network, images, 512, "none")
    device = next(network.parameters()).device
    maps = saliency(network, images.float().to(device), rows.argmax(1).to(device))
    boxes, pictures, table = [], [], []
    for ((x, y, side), pixels), row, heat in zip(faces, rows, maps.cpu(), strict=True):
        text = f"{classes[int(row.argmax())]} {percent(row.max())}"
        boxes.append(((x, y, side, side), text))
        pictures.append(np.asarray(beside(pixels[0].numpy(), heat[0].abs().numpy())))
        table.append([text, *(round(value, 3) for value in row.tolist())])
    return draw(photo, boxes), np.concatenate(pictures), pd.DataFrame(table, columns=header)
