"""The benchmark of scripts/bench. Each row runs ours and a baseline alternately and prints how many
times as long the baseline takes: median and quartiles of the ratios.
"""

import argparse
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
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from fer.data.faces import Data, Faces
from fer.data.readers import fer2013
from fer.data.readers.csv_faces import read_csv
from fer.models.network import crop_or_enlarge
from fer.runtime import Signals, autocast, number_format
from fer.training.trainer import EVAL_BATCH, Trainer

BATCH = 128
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0) if torch.cuda.is_available() else None
DEVICE = CUDA or CPU
BATCHES = 200 if CUDA else 8  # an epoch of FER2013 has 224
PIPELINE_BATCHES = 50 if CUDA else 8
PAIRS = 7 if CUDA else 5
NETWORKS = (
    {"vgg13": "sgd", "compact_cnn": "adam", "resnet_fast": "muon"}
    if CUDA
    else {"compact_cnn": "muon"}
)
OPTIMIZERS = ["sgd", "adam", "muon"]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(what: str, ours: Callable, baseline: Callable, pairs: int = PAIRS) -> None:
    """Print how many times as long the baseline takes."""
    for _ in range(3 if CUDA else 1):  # caches, allocator, lazy imports, captures
        ours()
        baseline()
    times = [(seconds(ours), seconds(baseline)) for _ in range(pairs)]
    ratios = [baseline_seconds / our_seconds for our_seconds, baseline_seconds in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    ours_median, baseline_median = (
        statistics.median(column) for column in zip(*times, strict=True)
    )
    medians = f"{ours_median:.3f} s against {baseline_median:.3f} s, {pairs} pairs"
    print(f"{what}: {middle:.2f}× ({low:.2f} to {high:.2f}), {medians}", flush=True)


@dataclass
class Files:
    """The data: the user's folder with fer2013.csv, or a synthetic file in `scratch`."""

    scratch: Path
    given: Path | None

    @cached_property
    def csv(self) -> Path:
        """A full-size fer2013.csv."""
        if self.given:
            return self.given / "fer2013.csv"
        return draw_csv(self.scratch / "fer2013.csv", 32_298)

    @cached_property
    def small(self) -> Path:
        """A small file for torchvision's FER2013, which reads slowly. Returns its folder."""
        draw_csv(self.scratch / "fer2013" / "fer2013.csv", PIPELINE_BATCHES * BATCH * 9 // 8)
        return self.scratch


def draw_csv(path: Path, rows: int) -> Path:
    """Write a fer2013.csv of noise. Its numbers have one to three digits, as in the real file."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for row in range(rows):
            pixels = " ".join(map(str, generator.integers(0, 256, 48 * 48).tolist()))
            usage = "Training" if row < rows * 8 // 9 else "PublicTest"
            file.write(f"{row % 7},{pixels},{usage}\n")
    return path


# Rows that need no network


def help_row(files: Files) -> None:
    start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    nothing = partial(start, [sys.executable, "-c", "pass"])
    helps = partial(start, [sys.executable, "-m", "fer", "--help"])
    compare("python -c pass, against fer --help", nothing, helps, 15)


def read_row(files: Files) -> None:
    what = "first read of fer2013.csv, against pandas and np.fromstring"
    compare(what, partial(read_csv, files.csv), partial(pandas_loop, files.csv), 5)


def pandas_loop(path: Path) -> np.ndarray:
    table = pd.read_csv(path)
    return np.stack([np.fromstring(text, dtype=np.uint8, sep=" ") for text in table["pixels"]])


def cache_row(files: Files) -> None:
    cached = partial(fer2013, str(files.csv), None, "auto", 0.1, 25_000, "auto", 0, "dataset")
    cached()
    print(f"cached data ready: {statistics.median(seconds(cached) for _ in range(5)):.3f} s")


def memory_row(files: Files) -> None:
    """Peak memory of fer train on a fer2013.csv that is not cached yet."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fer2013.csv").symlink_to(files.csv.absolute())
        command = [
            sys.executable,
            "-m",
            "fer",
            "train",
            f"data.path={folder}",
            f"run={folder}/run",
            "device=cpu",
        ]
        command += ["train.epochs=1", "train.batch_size=128", "data.limit=2000"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit("fer train failed")
        scale = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kB elsewhere
        print(
            "peak resident memory of fer train, first read included: "
            f"{usage.ru_maxrss / scale:.2f} GiB",
            flush=True,
        )


# Rows that train


def trainer(device: torch.device, *overrides: str, batches: int = BATCHES) -> Trainer:
    """A Trainer on `batches` batches of noise."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra.compose(
            "train", ["data=demo", "name=bench", "train.epochs=1000", *overrides]
        )
    generator = torch.Generator().manual_seed(0)
    faces = noise(batches * BATCH, generator)
    data = Data({"train": faces, "validation": noise(512, generator)}, "dataset")
    return Trainer(
        config.check("train", OmegaConf.to_container(composed, resolve=True)), device, data
    )


def noise(count: int, generator: torch.Generator) -> Faces:
    images = torch.randint(256, (count, 1, 48, 48), dtype=torch.uint8, generator=generator)
    labels = torch.randint(7, (count,), generator=generator)
    return Faces(images, labels, [str(i) for i in range(count)])


def epoch(ours: Trainer) -> None:
    """The training part of an epoch of fer train, with full batches only."""
    ours.reset_epoch()
    with Signals() as signals:
        ours.train_epoch(signals)


def one_step(bare: Trainer) -> Callable[[], None]:
    """Forward pass, backward pass and update on one fixed batch, and nothing else."""
    network, model = bare.network, bare.network.model
    inputs = network.normalize(crop_or_enlarge(bare.faces.images[:BATCH], model.size))
    labels = bare.faces.targets[:BATCH].argmax(1)

    def step():
        bare.optimizer.zero_grad()
        with autocast(bare.device, bare.computed_in):
            loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        bare.optimizer.step()

    network.train()
    return step


def bare_steps(bare: Trainer) -> Callable[[], None]:
    """One step per batch of an epoch; on CUDA replayed from a graph."""
    step = one_step(bare)
    if bare.device.type != "cuda":
        return lambda: [step() for _ in range(BATCHES)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return lambda: [graph.replay() for _ in range(BATCHES)]


def pairs_of(*overrides: str, batches: int = BATCHES) -> tuple[Trainer, Trainer]:
    """Two trainers alike: one for each side of a comparison."""
    one, other = (trainer(DEVICE, *overrides, batches=batches) for _ in range(2))
    return one, other


def named(model: str, optim: str, computed_in: str) -> str:
    return f"{model} with {optim} on {DEVICE.type} in {computed_in}"


def epoch_row(files: Files) -> None:
    for model, optim in NETWORKS.items():
        for other in [optim] if CUDA else OPTIMIZERS:
            ours, bare = pairs_of(f"model={model}", f"optim={other}")
            steps = "its bare steps in a CUDA graph" if CUDA else "its bare steps"
            network = named(model, other, ours.computed_in)
            what = f"epoch of {BATCHES} batches of {network}, against {steps}"
            compare(what, partial(epoch, ours), bare_steps(bare))
            if CUDA:
                print(f"  times the host waits in 20 steps: {host_waits(ours)}", flush=True)
    if DEVICE == CPU and number_format(CPU) != "fp32":
        ours, bare = pairs_of("model=compact_cnn", "train.precision=fp32")
        compare(
            "the same with muon in fp32, against its bare steps in fp32",
            partial(epoch, ours),
            bare_steps(bare),
        )


def host_waits(ours: Trainer) -> int:
    """How often the host waits for the GPU in the last 20 steps of an epoch, by the profiler."""
    ours.reset_epoch()
    ours.step = ours.steps - 20  # the profiler is slow for many steps
    with torch.profiler.profile() as profile, Signals() as signals:
        ours.train_epoch(signals)
    waits = (
        "aten::item",
        "aten::_local_scalar_dense",
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
    )
    # The profiler itself waits once, at its end.
    return sum(event.count for event in profile.key_averages() if event.key in waits) - 1


def optimizers_row(files: Files) -> None:
    """Bare steps with each optimizer, alternately, compared with SGD."""
    names = ["sgd", "adam", "adamw", "adadelta", "muon"]
    bare = {name: trainer(DEVICE, "model=compact_cnn", f"optim={name}") for name in names}
    steps = {name: bare_steps(each) for name, each in bare.items()}
    for call in steps.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(PAIRS):
        for name, call in steps.items():
            times[name].append(seconds(call))
    for name in names:
        rate = BATCHES * BATCH / statistics.median(times[name])
        pairs = zip(times[name], times["sgd"], strict=True)
        ratio = statistics.median(own / sgd for own, sgd in pairs)
        what = named("compact_cnn", name, bare[name].computed_in)
        print(
            f"{what}: {rate:,.0f} images/s, a step takes {ratio:.2f} times as long as with sgd",
            flush=True,
        )


def pipeline_row(files: Files) -> None:
    counts = [4, 8, 16] if CUDA else [0, 1, 2]
    batches = best_loader(files.small, [n for n in counts if n <= (os.cpu_count() or 1)])
    for model, optim in NETWORKS.items():
        for precision in ["auto"] if CUDA else dict.fromkeys(["auto", "fp32"]):
            overrides = [f"model={model}", f"optim={optim}", f"train.precision={precision}"]
            ours, theirs = pairs_of(*overrides, batches=PIPELINE_BATCHES)
            what = (
                f"epoch of {named(model, optim, ours.computed_in)}, against torchvision's pipeline"
            )
            compare(what, partial(epoch, ours), pipeline_epoch(theirs, batches), 3)
            if ours.computed_in == "fp32":
                break


def loader(folder: Path, workers: int) -> DataLoader:
    """What a user would write with torchvision: its dataset and the same transforms."""
    digest = hashlib.md5((folder / "fer2013" / "fer2013.csv").read_bytes()).hexdigest()
    # torchvision expects the checksum of the official file.
    FER2013._RESOURCES["fer"] = ("fer2013.csv", digest)
    steps = [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.25]),
    ]
    faces = FER2013(folder, "train", transform=v2.Compose(steps))
    more = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    return DataLoader(
        faces, BATCH, shuffle=True, num_workers=workers, pin_memory=bool(CUDA), **more
    )


def best_loader(folder: Path, counts: list[int]) -> DataLoader:
    loaders = {count: loader(folder, count) for count in counts}
    for each in loaders.values():
        consume(each)  # starts the workers
    times = {count: seconds(partial(consume, each)) for count, each in loaders.items()}
    best = min(times, key=times.__getitem__)
    each_time = [f"{took:.2f} s with {count} workers" for count, took in times.items()]
    print(f"torchvision's pipeline alone: {', '.join(each_time)}")
    return loaders[best]


def consume(batches: DataLoader) -> None:
    for _ in batches:
        pass


def pipeline_epoch(theirs: Trainer, batches: DataLoader) -> Callable[[], None]:
    """The training loop that a user would write, in torch's default memory layout."""
    model = theirs.network.model.to(memory_format=torch.contiguous_format).train()
    size = model.size

    def steps():
        losses = right = 0.0
        for images, labels in batches:
            images, labels = images.to(theirs.device), labels.to(theirs.device)
            if images.shape[-1] != size:
                images = F.interpolate(images, size=(size, size), mode="bilinear")
            theirs.optimizer.zero_grad()
            with autocast(theirs.device, theirs.computed_in):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            theirs.optimizer.step()
            losses += loss.item() * len(labels)
            right += (logits.argmax(1) == labels).sum().item()

    return steps


def augment_row(files: Files) -> None:
    ours = trainer(DEVICE, "model=compact_cnn", batches=PIPELINE_BATCHES)

    def augmented():
        for batch in ours.faces.images.split(BATCH):
            ours.network.normalize(ours.plan.augment(batch, ours.faces.targets[: len(batch)])[0])

    batches = best_loader(files.small, [0, min(os.cpu_count() or 1, 16)])
    compare(
        f"augmentation on {DEVICE.type} in fp32, against torchvision's",
        augmented,
        partial(consume, batches),
    )


def tencrop_row(files: Files) -> None:
    """Ten-crop evaluation, compared with PIL's crops and with the forward passes alone."""
    ours = trainer(CPU, "model=compact_cnn", "++model.size=40")
    ours.faces = replace(
        ours.faces,
        val_images=ours.faces.images[:256],
        val_labels=ours.faces.targets[:256].argmax(1),
    )
    size = ours.network.model.size
    pictures = [Image.fromarray(image[0].numpy()) for image in ours.faces.val_images]
    crop = v2.TenCrop(size)

    @torch.inference_mode()
    def by_pil():
        ours.network.eval()
        with autocast(CPU, ours.computed_in):
            for picture in pictures:
                views = torch.stack([v2.functional.pil_to_tensor(view) for view in crop(picture)])
                ours.network(views).softmax(1).mean(0).argmax().item()

    views = [view.contiguous() for view in ten_crops(ours.faces.val_images, size)]

    def forward():
        for view in views:
            ours.network.logits(view, EVAL_BATCH)

    what = f"ten-crop evaluation of compact_cnn in {ours.computed_in}"
    compare(f"{what}, against PIL's TenCrop, an image at a time", ours.tencrop_accuracy, by_pil, 5)
    compare(f"{what}, against its forward passes alone", ours.tencrop_accuracy, forward, 5)


def repeat(step: Callable[[], None]) -> None:
    for _ in range(BATCHES):
        step()


def compile_row(files: Files) -> None:
    """Bare steps compared with the same steps after torch.compile, and the time to compile."""
    for model, optim in NETWORKS.items():
        ours, compiled = pairs_of(f"model={model}", f"optim={optim}")
        compiled.network.model.compile()
        compiled_steps = bare_steps(compiled) if CUDA else one_step(compiled)
        start = time.perf_counter()
        compiled_steps()
        took = time.perf_counter() - start
        what = (
            f"bare steps of {named(model, optim, ours.computed_in)}, against torch.compile's "
            f"(first {took:.0f} s)"
        )
        compare(
            what,
            bare_steps(ours),
            compiled_steps if CUDA else partial(repeat, compiled_steps),
        )


ROWS: dict[str, Callable[[Files], None]] = {
    "help": help_row,
    "read": read_row,
    "cache": cache_row,
    "augment": augment_row,
    "epoch": epoch_row,
    "optimizers": optimizers_row,
    "pipeline": pipeline_row,
    "tencrop": tencrop_row,
    "memory": memory_row,
}
ON_REQUEST = {"compile": compile_row}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"{', '.join(ROWS)} (default: these); {', '.join(ON_REQUEST)}",
    )
    parser.add_argument(
        "--data", type=Path, help="folder with fer2013.csv (default: a synthetic file of that size)"
    )
    options = parser.parse_args()
    known = ROWS | ON_REQUEST
    for name in options.rows:
        if name not in known:
            parser.error(f"{name}: no such row; choose from {', '.join(known)}")
    warnings.simplefilter("ignore", DeprecationWarning)
    gpu = f", {torch.cuda.get_device_name()}" if CUDA else ""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs{gpu}, torch "
        f"{torch.__version__}, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"number format {number_format(DEVICE)}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = Files(Path(scratch), options.data)
        for name in options.rows or ROWS:
            known[name](files)


if __name__ == "__main__":
    main()
