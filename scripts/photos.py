"""Measure how faces in photos are found and cropped; docs/predict.md has the results.

    python scripts/photos.py                             # found, missed, wrong; photos a second
    python scripts/photos.py margin CKPT FER2013.csv     # accuracy by the margin of the crop

`margin` pastes PublicTest faces into larger pictures, upright and tilted by 25°, finds them, crops
them at several margins and labels the crops.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter
from skimage import data as skimage_data
from sklearn.datasets import load_sample_images

from fer import api, photos
from fer.data.demo import demo
from fer.photos import detection

MARGINS = (0.9, 1.0, 1.1, 1.15, 1.2, 1.3, 1.4)
FACELESS = [
    "chelsea",
    "coffee",
    "coins",
    "brick",
    "grass",
    "gravel",
    "text",
    "page",
    "moon",
    "rocket",
]


def background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Smooth random colors."""
    small = rng.integers(40, 200, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def pasted(scene: Image.Image, face: Image.Image, x: int, y: int, angle: float) -> None:
    """Paste a face, tilted about its middle, with soft edges."""
    mask = Image.new("L", face.size)
    inner = (face.width // 24, face.height // 24)
    mask.paste(255, (*inner, face.width - inner[0], face.height - inner[1]))
    mask = mask.filter(ImageFilter.GaussianBlur(face.width / 48))
    turned = face.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    scene.paste(turned.convert("RGB"), (x, y), mask)


def scenes() -> Iterator[tuple[str, Image.Image, list[tuple[float, float]]]]:
    """Six drawn scenes for each pose, and the photographs of scikit-image and scikit-learn: name,
    photo, middles of the true faces.
    """
    rng = np.random.default_rng(0)
    faces = (
        demo(images=400, limit=None, seed=1, normalize="image").split("train").images[:, 0].numpy()
    )
    for name, size, angle in (
        ("drawn, 6 faces of 100 pixels in 4000×3000", 100, 0),
        ("drawn, 6 faces of 100 pixels in 4000×3000, tilted by 25°", 100, 25),
        ("drawn, 6 faces of 400 pixels in 4000×3000, tilted by 25°", 400, 25),
    ):
        for _ in range(6):
            scene = background(rng, (4000, 3000))
            middles = []
            for column, row in product(range(3), range(2)):
                pixels = faces[rng.integers(len(faces))]
                face = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
                x, y = 1300 * column + 300, 1400 * row + 300
                sign = rng.choice([-1, 1])
                turned_size = face.rotate(angle, expand=True).width
                pasted(scene, face, x, y, sign * angle)
                middles.append((x + turned_size / 2, y + turned_size / 2))
            yield name, scene, middles
    astronaut = Image.fromarray(skimage_data.astronaut())
    yield "scikit-image: astronaut", astronaut, [(225, 118)]
    for angle in (-25, 25):
        turned = astronaut.rotate(angle, Image.Resampling.BICUBIC, center=(225, 118))
        yield "astronaut, tilted by 25°", turned, [(225, 118)]
    cameraman = Image.fromarray(skimage_data.camera()).convert("RGB")
    yield "scikit-image: camera, a man in profile", cameraman, [(232, 110)]
    for name in FACELESS:
        picture = Image.fromarray(getattr(skimage_data, name)()).convert("RGB")
        yield "scikit-image: 10 photographs without a face", picture, []
    for picture in load_sample_images().images:
        yield "scikit-learn: 2 photographs without a face", Image.fromarray(picture), []


def is_hit(box: tuple[int, int, int], x: float, y: float) -> bool:
    """Is the middle of the box near the middle (x, y) of a face?"""
    left, top, side = box
    return max(abs(left + side / 2 - x), abs(top + side / 2 - y)) < side / 3


def measure(find: Callable[[Image.Image], list[detection.Box]]) -> pd.DataFrame:
    """A row for each kind of scene: faces found and missed, wrong boxes, seconds.

    find: a photo in, boxes (x, y, side) out. A face is found if a box's middle is within a third of
    the box's side of the face's middle.
    """
    counts: dict[str, dict[str, float]] = {}
    for name, photo, middles in scenes():
        row = counts.setdefault(
            name, {"photos": 0, "faces": 0, "found": 0, "missed": 0, "wrong": 0, "seconds": 0.0}
        )
        start = time.perf_counter()
        boxes = find(photo)
        row["seconds"] += time.perf_counter() - start
        left = list(boxes)
        for x, y in middles:
            hits = [box for box in left if is_hit(box, x, y)]
            if hits:
                left.remove(hits[0])
                row["found"] += 1
            else:
                row["missed"] += 1
        row["photos"] += 1
        row["faces"] += len(middles)
        row["wrong"] += len(left)
    return pd.DataFrame(counts).T


def measure_margins(ckpt: str, csv: str) -> pd.DataFrame:
    """Accuracy on the crops of PublicTest faces, for each tilt and margin, and on the faces
    themselves. Faces that the detector does not find are left out.
    """
    network = api.load(ckpt, device="cpu")
    table = pd.read_csv(csv)
    table = table[table["Usage"] == "PublicTest"]
    labels = table["emotion"].to_numpy()
    images = np.array([np.array(p.split(), np.uint8).reshape(48, 48) for p in table["pixels"]])
    detector, rng = photos.FaceDetector(), np.random.default_rng(0)
    rows = []
    for angle in (0, 25):
        scenes_found = []
        for number, image in enumerate(images):
            pixels = np.pad(np.asarray(Image.fromarray(image).resize((192, 192))), 96, mode="edge")
            scene = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3))
            scene.paste(Image.fromarray(pixels[96:288, 96:288]), (96, 96))
            scene = scene.rotate(angle * rng.choice([-1, 1]), Image.Resampling.BICUBIC)
            detections = detector.detect(scene, 0.2)
            if detections:
                largest = max(detections, key=lambda detection: detection.side)
                scenes_found.append((number, scene, largest))
        chosen = [number for number, _, _ in scenes_found]
        as_is = (network.probabilities(images[chosen]).argmax(1) == labels[chosen]).mean()
        rows.append([angle, len(chosen), "the faces as they are", "", f"{as_is:.4f}"])
        for how, margin in product(("upright", "turned"), MARGINS):
            crops = []
            for _, scene, face in scenes_found:
                side = round(face.side / detection.MARGIN * margin)
                box = (round(face.center_x - side / 2), round(face.center_y - side / 2), side)
                crops.append(detection.crop(scene, box, face.tilt if how == "turned" else 0.0))
            right = (network.probabilities(np.array(crops)).argmax(1) == labels[chosen]).mean()
            rows.append([angle, len(chosen), how, margin, f"{right:.4f}"])
    return pd.DataFrame(rows, columns=["tilt", "faces", "crop", "margin", "accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    margin = commands.add_parser("margin", help="accuracy by the margin of the crop")
    margin.add_argument("ckpt", metavar="CKPT")
    margin.add_argument("csv", metavar="FER2013.csv")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.command == "margin":
        print(measure_margins(args.ckpt, args.csv).to_string(index=False))
        return
    detector = photos.FaceDetector()
    table = measure(lambda photo: [box for box, _ in photos.find_faces(photo, detector)])
    print(table.to_string(float_format=lambda number: f"{number:.0f}"))
    print(f"{table['photos'].sum() / table['seconds'].sum():.2f} photos a second")


if __name__ == "__main__":
    main()
