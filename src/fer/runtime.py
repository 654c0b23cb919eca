"""The machine: device, precision, randomness, memory, the processes that torchrun starts, and the signals that end a
training cleanly. Knows torch, and nothing of configs, data or networks.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fer import UserError

# Without these instructions a CPU is slower in bf16 than in fp32. torch tells of them in no public function.
CPU_BF16 = any(getattr(torch.cpu, f"_is_{kind}_supported", bool)() for kind in ("avx512_bf16", "amx_tile"))
WAIT = timedelta(minutes=10)  # for another process, which may be reading the data
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def pick_device(name: str) -> torch.device:
    """The device that `device=` names; auto takes CUDA, then Apple's MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name):
        raise UserError(f"device={name}: torch {torch.__version__} finds none here; use device=auto or device=cpu")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context for forward passes: bf16 where asked and, for `auto`, where the device computes in it."""
    computes = device.type == "cuda" or (device.type == "cpu" and CPU_BF16)
    bf16 = precision == "bf16" or (precision == "auto" and computes)
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def seed_everything(*numbers: int) -> None:
    """Seed torch on every device from any tuple of numbers: (seed,) or (seed, epoch, step).

    A step's randomness thus depends on its place alone, and a resumed training draws what it would have drawn.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def be_deterministic() -> None:
    """Only kernels that give the same result every time, from here on; a layer that has none raises RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def memory_named(device: torch.device, batch: str) -> Iterator[None]:
    """Within the context memory that runs out is a UserError that names `batch`, a key and its value."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory on {device.type} at {batch}; halve it, or take a smaller model or train.precision=bf16"
        ) from None


def join_processes(device: torch.device) -> tuple[int, int]:
    """The rank of this process and how many there are, joined where torchrun started several; 0, 1 otherwise."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():  # CPU tensors go by gloo: what all must agree on does not wait for a GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    return dist.get_rank(), dist.get_world_size()


def over_processes(values: Tensor, how: str) -> Tensor:
    """`values` joined element by element over the processes, in all of them: "sum", "min" or "max"."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values, getattr(dist.ReduceOp, how.upper()))
    return values


@contextlib.contextmanager
def others_named() -> Iterator[None]:
    """Within the context the end of another process is a UserError, as far as it can be told."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError and what gloo raises
        if not dist.is_initialized() or not re.search(r"gloo|NCCL|[Cc]onnection|peer|[Tt]imed out", str(error)):
            raise
        raise UserError(
            "another process of this training has ended; see what it said, then go on with resume="
        ) from None


class Signals:
    """Within the context the first SIGINT, SIGTERM or SIGUSR1 (a scheduler's warning) is only noted in `caught`, 0
    until then; a second one acts as usual."""

    caught = 0

    def __enter__(self) -> "Signals":
        self.previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Interrupted(BaseException):
    """A signal ended the command after everything so far was saved; `code` is the exit code. It ends a sweep too."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        requeue = number == getattr(signal, "SIGUSR1", None)
        self.code = 75 if requeue else 128 + number  # 75 is EX_TEMPFAIL: try again
