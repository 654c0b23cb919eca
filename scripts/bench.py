"""The figures of scripts/bench. Each line: ours against the rival, median and quartiles of the ratio over the pairs."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from fer import config, config_dir
from fer.data.readers import fer2013, read_csv
from fer.runtime import Signals
from fer.train import Trainer

BATCHES, BATCH = 50, 128


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(what: str, ours: Callable, rival: Callable, pairs: int) -> None:
    """Print how many times as long the rival takes."""
    ours(), rival()  # caches, allocator, lazy imports
    times = [(seconds(ours), seconds(rival)) for _ in range(pairs)]
    low, middle, high = statistics.quantiles([theirs / own for own, theirs in times], n=4)
    own, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{what}: {middle:.2f}× ({low:.2f} to {high:.2f}), {own:.3f} s against {theirs:.3f} s, {pairs} pairs",
        flush=True,
    )


def drawn_csv(folder: Path) -> Path:
    """A fer2013.csv as large as the real one, of noise with its share of one, two and three digits."""
    generator = np.random.default_rng(0)
    with (folder / "fer2013.csv").open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for row in range(32_298):
            pixels = " ".join(map(str, generator.integers(0, 256, 48 * 48).tolist()))
            file.write(f"{row % 7},{pixels},{'Training' if row < 28_709 else 'PublicTest'}\n")
    return folder / "fer2013.csv"


def pandas_loop(path: Path) -> np.ndarray:
    table = pd.read_csv(path)
    return np.stack([np.fromstring(text, dtype=np.uint8, sep=" ") for text in table["pixels"]])


def training() -> tuple[Callable, Callable]:
    """The training part of a fer train epoch, and the bare forward, backward and step on one fixed batch."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra.compose("train", ["data=demo", f"data.images={BATCHES * BATCH}", "name=bench", "device=cpu"])
    cfg = config.check("train", OmegaConf.to_container(composed, resolve=True))
    ours, bare = (Trainer(cfg, torch.device("cpu")) for _ in range(2))
    images = bare.network.normalize(bare.images[:BATCH])
    labels = bare.targets[:BATCH].argmax(1)

    def epoch():
        ours.start_epoch(0)
        with Signals() as signals:
            ours.train_epoch(signals)

    def steps():
        bare.network.train()
        for _ in range(BATCHES):
            bare.optimizer.zero_grad()
            F.cross_entropy(bare.network.model(images), labels).backward()
            bare.optimizer.step()

    return epoch, steps


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, Python {platform.python_version()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) / "fer2013.csv" if len(sys.argv) > 1 else drawn_csv(Path(folder))
        compare("first read of fer2013.csv, against pandas and np.fromstring", lambda: read_csv(path),
                lambda: pandas_loop(path), 5)  # fmt: skip
        cached = lambda: fer2013(str(path), None, "auto", 0.1, 25_000, "auto", 0, "dataset")  # noqa: E731
        cached()
        print(f"cached data ready: {statistics.median(seconds(cached) for _ in range(5)):.3f} s")

    def run(*args: str) -> Callable:
        return lambda: subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)

    compare("python -c pass, against fer --help", run("-c", "pass"), run("-m", "fer", "--help"), 15)
    epoch, steps = training()
    compare(f"epoch of {BATCHES} batches of compact_cnn, against its bare steps", epoch, steps, 7)


if __name__ == "__main__":
    main()
