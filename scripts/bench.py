"""The figures of scripts/bench. Each line: ours against the rival, median and quartiles of the ratio over the pairs."""

import hashlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import FER2013
from torchvision.transforms import InterpolationMode, v2

from fer import config, config_dir
from fer.augment import ten_crops
from fer.data.readers import fer2013, read_csv
from fer.runtime import CPU_BF16, Signals, autocast
from fer.train import EVAL_BATCH, Trainer

BATCHES, BATCH = 50, 128
CUDA = torch.device("cuda") if torch.cuda.is_available() else None
CPU = torch.device("cpu")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(what: str, ours: Callable, rival: Callable, pairs: int) -> None:
    """Print how many times as long the rival takes."""
    ours(), rival()  # caches, allocator, lazy imports
    times = [(seconds(ours), seconds(rival)) for _ in range(pairs)]
    low, middle, high = statistics.quantiles([theirs / own for own, theirs in times], n=4)
    own, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    against = f"{own:.3f} s against {theirs:.3f} s, {pairs} pairs"
    print(f"{what}: {middle:.2f}× ({low:.2f} to {high:.2f}), {against}", flush=True)


def draw_csv(path: Path, rows: int) -> Path:
    """A fer2013.csv of noise with the real one's share of one, two and three digits."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for row in range(rows):
            pixels = " ".join(map(str, generator.integers(0, 256, 48 * 48).tolist()))
            file.write(f"{row % 7},{pixels},{'Training' if row < rows * 8 // 9 else 'PublicTest'}\n")
    return path


def pandas_loop(path: Path) -> np.ndarray:
    table = pd.read_csv(path)
    return np.stack([np.fromstring(text, dtype=np.uint8, sep=" ") for text in table["pixels"]])


def trainer(device: torch.device, *overrides: str) -> Trainer:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra.compose("train", ["data=demo", f"data.images={BATCHES * BATCH}", "name=bench", *overrides])
    return Trainer(config.check("train", OmegaConf.to_container(composed, resolve=True)), device)


def epoch(ours: Trainer) -> None:
    """The training part of a fer train epoch."""
    ours.start_epoch()
    with Signals() as signals:
        ours.train_epoch(signals)


def bare_steps(bare: Trainer) -> Callable[[], None]:
    """Forward, backward and step on one fixed batch, as often as an epoch has batches."""
    images, labels = bare.network.normalize(bare.images[:BATCH]), bare.targets[:BATCH].argmax(1)
    size = bare.network.model.size
    images = F.interpolate(images, size=(size, size), mode="bilinear")

    def steps():
        bare.network.train()
        for _ in range(BATCHES):
            bare.optimizer.zero_grad()
            with autocast(bare.device, bare.cfg.train.precision):
                loss = F.cross_entropy(bare.network.model(images), labels)
            loss.backward()
            bare.optimizer.step()

    return steps


def loader(folder: Path, workers: int) -> DataLoader:
    """What a user would write: torchvision's dataset and transforms, the augmentation of augment=standard."""
    digest = hashlib.md5((folder / "fer2013" / "fer2013.csv").read_bytes()).hexdigest()
    FER2013._RESOURCES["fer"] = ("fer2013.csv", digest)  # it expects the official file's, which a drawn one has not
    steps = [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.25]),
    ]
    faces = FER2013(folder, "train", transform=v2.Compose(steps))
    more = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    return DataLoader(faces, BATCH, shuffle=True, num_workers=workers, pin_memory=bool(CUDA), **more)


def best_loader(folder: Path, counts: list[int]) -> DataLoader:
    loaders = {count: loader(folder, count) for count in counts}
    for each in loaders.values():
        consume(each)  # starts its workers
    times = {count: seconds(partial(consume, each)) for count, each in loaders.items()}
    best = min(times, key=times.get)
    print(f"torchvision's pipeline alone: {', '.join(f'{s:.2f} s with {n} workers' for n, s in times.items())}")
    return loaders[best]


def consume(batches: DataLoader) -> None:
    for _ in islice(batches, BATCHES):
        pass


def pipeline_epoch(theirs: Trainer, batches: DataLoader) -> Callable[[], None]:
    """The loop that a user would write around them, in torch's default layout."""
    model = theirs.network.model.to(memory_format=torch.contiguous_format).train()
    size = model.size

    def steps():
        losses = right = 0.0
        for images, labels in islice(batches, BATCHES):
            images, labels = images.to(theirs.device), labels.to(theirs.device)
            if images.shape[-1] != size:
                images = F.interpolate(images, size=(size, size), mode="bilinear")
            theirs.optimizer.zero_grad()
            with autocast(theirs.device, theirs.cfg.train.precision):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            theirs.optimizer.step()
            losses += loss.item() * len(labels)
            right += (logits.argmax(1) == labels).sum().item()

    return steps


def augmentation(ours: Trainer) -> Callable[[], None]:
    def run():
        for batch in ours.images.split(BATCH):
            ours.network.normalize(ours.augment(batch, ours.targets[:BATCH])[0])

    return run


def ten_crop_rows(ours: Trainer) -> None:
    """How much of a ten-crop evaluation is the forward pass, and the same by PIL, an image at a time."""
    ours.val_images = ours.images[:512]
    ours.val_labels = ours.targets[:512].argmax(1)
    size = ours.network.model.size
    pictures = [Image.fromarray(image[0].numpy()) for image in ours.val_images.cpu()]
    crop = v2.TenCrop(size)

    @torch.inference_mode()
    def by_pil():
        ours.network.eval()
        for picture in pictures:
            views = torch.stack([v2.functional.pil_to_tensor(view) for view in crop(picture)])
            ours.network(views.to(ours.device)).softmax(1).mean(0).argmax().item()

    views = [view.contiguous() for view in ten_crops(ours.val_images, size)]

    def forward():
        for view in views:
            ours.network.logits(view, EVAL_BATCH)

    compare("ten-crop evaluation, against PIL's TenCrop, an image at a time", ours.tencrop_accuracy, by_pil, 5)
    compare("ten-crop evaluation, against its forward passes alone", ours.tencrop_accuracy, forward, 5)


def peak_memory(path: Path) -> None:
    """Of fer train, an epoch over all of a fer2013.csv that has not been read before."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fer2013.csv").symlink_to(path.absolute())
        command = [sys.executable, "-m", "fer", "train", f"data.path={folder}", f"run={folder}/run", "device=cpu"]
        child = subprocess.Popen([*command, "train.epochs=1", "train.batch_size=128"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit("fer train failed")
        scale = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kB elsewhere
        print(f"peak resident memory of fer train, first read included: {usage.ru_maxrss / scale:.2f} GiB", flush=True)


def host_syncs(ours: Trainer) -> int:
    """Waits of the host for the GPU inside the loop of an epoch, as the profiler sees them."""
    with torch.profiler.profile() as profile:
        epoch(ours)
    waits = ("aten::item", "aten::_local_scalar_dense", "cudaStreamSynchronize")
    return sum(event.count for event in profile.key_averages() if event.key in waits)


def training_rows(device: torch.device, model: str, folder: Path, counts: list[int], *overrides: str) -> None:
    usual = "fp32" if device == CPU else "bf16"
    theirs = trainer(device, f"model={model}", f"train.precision={usual}", *overrides)
    batches = best_loader(folder, counts)
    for precision in dict.fromkeys([usual, "bf16"] if CPU_BF16 else [usual]):
        ours, bare = (trainer(device, f"model={model}", f"train.precision={precision}", *overrides) for _ in range(2))
        what = f"epoch of {BATCHES} batches of {model} on {device.type} in {precision}"
        compare(f"{what}, against its bare steps", partial(epoch, ours), bare_steps(bare), 7)
        rival = f"torchvision's pipeline in {usual}"
        compare(f"{what}, against {rival}", partial(epoch, ours), pipeline_epoch(theirs, batches), 7)
    compare(f"augmentation on {device.type}, against torchvision's", augmentation(ours), partial(consume, batches), 5)
    if device == CUDA:
        print(f"waits for the GPU in an epoch of {BATCHES} batches: {host_syncs(ours)}")


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    name = f", {torch.cuda.get_device_name()}" if CUDA else ""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs{name}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, Python {platform.python_version()}")  # fmt: skip

    start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    nothing, helps = (partial(start, [sys.executable, *words]) for words in (["-c", "pass"], ["-m", "fer", "--help"]))
    compare("python -c pass, against fer --help", nothing, helps, 15)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = Path(sys.argv[1]) / "fer2013.csv" if len(sys.argv) > 1 else draw_csv(folder / "fer2013.csv", 32_298)
        what = "first read of fer2013.csv, against pandas and np.fromstring"
        compare(what, partial(read_csv, path), partial(pandas_loop, path), 5)
        cached = partial(fer2013, str(path), None, "auto", 0.1, 25_000, "auto", 0, "dataset")
        cached()
        print(f"cached data ready: {statistics.median(seconds(cached) for _ in range(5)):.3f} s")

        draw_csv(folder / "fer2013" / "fer2013.csv", BATCHES * BATCH * 9 // 8)
        training_rows(CPU, "compact_cnn", folder, [0, 1, 2, 4][: os.cpu_count() + 1])
        ten_crop_rows(trainer(CPU, "model=compact_cnn", "++model.size=40"))
        if CUDA:
            training_rows(CUDA, "vgg13", folder, [16], "optim=sgd")
        peak_memory(path)


if __name__ == "__main__":
    main()
