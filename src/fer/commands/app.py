"""fer app: a page on this machine that labels faces in photos and in the camera's pictures."""

import os
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from fer import UserError, config, extra, photos
from fer.checkpoint import Checkpoint, find_checkpoints
from fer.data.faces import SIZE
from fer.explain import saliency
from fer.inference import probabilities
from fer.models.network import Network
from fer.photos.pictures import draw
from fer.runtime import pick_device

ADDRESS = "127.0.0.1"
SHOWN_SIDE = 192  # pixels of a face and its map


def run(cfg: config.AppConfig, typed: list[str]) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent anywhere
    os.environ["HF_HUB_OFFLINE"] = "1"
    with extra("app", "fer app"):
        import gradio
    detector = photos.FaceDetector()
    device = pick_device(cfg.device)
    members = [Checkpoint.open(path, cfg.trust) for path in find_checkpoints(cfg.ckpt)]
    networks = {str(member.path): member.network(device) for member in members}
    classes = {str(member.path): member.classes for member in members}

    def label(picture: np.ndarray | None, ckpt: str) -> tuple[Any, list, list[list]]:
        """The photo with boxes, each face with its saliency map, and the probabilities."""
        if picture is None:
            raise gradio.Error("Choose a photo first.")
        return label_photo(
            Image.fromarray(picture), detector, cfg.smallest, networks[ckpt], classes[ckpt]
        )

    with gradio.Blocks(title="fer", analytics_enabled=False) as page:
        gradio.Markdown("# Facial expressions\nDrop a photo, or take one with the camera.")
        ckpt = gradio.Dropdown([*networks], value=next(iter(networks)), label="Checkpoint")
        photo = gradio.Image(sources=["upload", "webcam"], label="Photo")
        button = gradio.Button("Label the faces", variant="primary", elem_id="label")
        drawing = gradio.Image(label="Faces", elem_id="drawing")
        maps = gradio.Gallery(label="Faces and what the network looks at", elem_id="maps")
        table = gradio.Dataframe(label="Probabilities", elem_id="table")
        button.click(label, [photo, ckpt], [drawing, maps, table])
    system_fonts = gradio.themes.Default(font=["sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=ADDRESS,
            server_port=cfg.port,
            share=False,
            theme=system_fonts,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError:
        raise UserError(f"port={cfg.port}: is in use; choose another") from None
    print(f"open http://{ADDRESS}:{cfg.port} in a browser; end with Ctrl-C", flush=True)
    page.block_thread()


def label_photo(
    photo: Image.Image,
    detector: photos.FaceDetector,
    smallest: float,
    network: Network,
    classes: list[str],
) -> tuple[Image.Image, list[tuple[Image.Image, str]], list[list]]:
    """The photo with boxes, each face beside its saliency map, and a table row per face."""
    faces = photos.find_faces(photo, detector, smallest)
    if not faces:
        return photo, [], []
    images = torch.stack([pixels for _, pixels in faces])
    rows = probabilities(network, images, 512, "none")
    device = next(network.parameters()).device
    maps = saliency(network, images.float().to(device), rows.argmax(1).to(device))
    boxes, gallery, table = [], [], []
    for ((x, y, side), pixels), row, heat in zip(faces, rows, maps.cpu(), strict=True):
        text = f"{classes[int(row.argmax())]} {row.max():.0%}"
        boxes.append(((x, y, side, side), text))
        gallery.append((beside(pixels[0].numpy(), heat[0].abs().numpy()), text))
        table.append([text, *(round(value, 3) for value in row.tolist())])
    return draw(photo, boxes), gallery, table


def beside(face: np.ndarray, heat: np.ndarray) -> Image.Image:
    """A face, uint8 48×48, beside its map, in color."""
    colored = matplotlib.colormaps["magma"](heat / max(heat.max(), 1e-12))[..., :3]
    gray = np.repeat(face[..., None], 3, 2)
    map_picture = Image.fromarray((255 * colored).astype(np.uint8)).resize((SIZE, SIZE))
    both = Image.fromarray(np.concatenate([gray, np.asarray(map_picture)], 1))
    return both.resize((2 * SHOWN_SIDE, SHOWN_SIDE))
