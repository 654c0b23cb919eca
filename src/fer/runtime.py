"""The machine: device, number format, random seeds, memory, torchrun's processes, signals.

Knows torch, but no configs, data or networks.
"""

import contextlib
import enum
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from fer import Format, Precision, UserError, in_processes
from fer.files import write

OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|[A-Z]+_STATUS_ALLOC_FAILED|Invalid "
    r"buffer size"
)
DTYPES: dict[Format, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
WAIT = timedelta(minutes=10)  # for another process, which may be reading the data
UNTRACED_STEPS = 5  # before a trace begins
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


def pick_device(name: str) -> torch.device:
    """The device that `device=` names: cpu, cuda, cuda:N or mps. auto prefers CUDA, then MPS."""
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available() and not (reason := mps_lacks()):
            name = "mps"
        else:
            if torch.backends.mps.is_available():
                warn_once(f"{reason}; using the CPU")
            name = "cpu"
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                f"device=mps: torch {torch.__version__} finds no such device; "
                "use device=auto or device=cpu"
            )
        if reason := mps_lacks():
            raise UserError(f"device=mps: {reason}; upgrade torch or use device=cpu")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise UserError(
            f"device={name}: torch {torch.__version__} finds no such device; "
            "use device=auto or device=cpu"
        )
    if number and in_processes() and os.environ["WORLD_SIZE"] != "1":
        raise UserError(
            f"device={name}: all {os.environ['WORLD_SIZE']} processes would use this GPU; "
            "device=cuda gives each its own"
        )
    index = int(number or (os.environ["LOCAL_RANK"] if in_processes() else 0))
    count = torch.cuda.device_count()
    if index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UserError(f"device={name}: no such GPU; this machine has {there}")
    return torch.device("cuda", index)


def mps_lacks() -> str | None:
    """Why this version of torch cannot augment on MPS; None if it can."""
    if TorchVersion(torch.__version__) < "2.13":
        return f"torch {torch.__version__} cannot resample images on MPS (torch 2.13 can)"
    return None


@functools.cache
def warn_once(line: str) -> None:
    """Print a line on standard error, the first time only."""
    print(line, file=sys.stderr, flush=True)


def computes_in(device: torch.device, number_format: Format) -> bool:
    """Does the device have instructions for the format? Emulating it is many times slower."""
    if number_format == "fp32":
        return True
    if device.type == "cuda":
        # is_bf16_supported() counts emulation too, and cuDNN has no bf16 below 8.0.
        capability = torch.cuda.get_device_capability(device)
        if number_format == "bf16":
            return capability >= (8, 0)
        # The GTX 10xx cards, 6.1, compute fp16 at 1/64 of the speed of fp32.
        return capability >= (7, 0) or capability == (6, 0)
    if device.type == "cpu":
        # The environment's ATEN_CPU_CAPABILITY may hold torch to these too.
        if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
            return False
        instructions = ("avx512_bf16", "amx_tile") if number_format == "bf16" else ("amx_fp16",)
        # torch has no public function for them.
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in instructions)
    return device.type == "mps" and number_format == "fp16"


def number_format(device: torch.device) -> Format:
    """The format that the device computes in by default.

    CPU: bf16 with AVX512-BF16 or AMX, else fp32. CUDA: bf16 from capability 8.0 (Ampere) on, fp16
    below. MPS: fp32, since nothing else was measured there.
    """
    if device.type in ("cpu", "cuda") and computes_in(device, "bf16"):
        return "bf16"
    if device.type == "cuda" and computes_in(device, "fp16"):
        return "fp16"
    return "fp32"


def choose_format(device: torch.device, precision: Precision = "auto") -> Format:
    """The format that `precision` asks for; warns if the device only emulates it."""
    natural = number_format(device)
    if precision == "auto":
        return natural
    if not computes_in(device, precision):
        warn_once(
            f"train.precision={precision}: this {device.type} device only emulates {precision}, "
            f"which is slow; train.precision=auto uses {natural}"
        )
    return precision


def autocast(device: torch.device, number_format: Format) -> contextlib.AbstractContextManager:
    """The context for forward passes in that format."""
    if number_format == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[number_format])


def has_fused_kernels(device: torch.device) -> bool:
    """Does torch have fused optimizer kernels for the device?"""
    return device.type in _get_fused_kernels_supported_devices()


class Stream(enum.IntEnum):
    """The purposes of random numbers. Each has a stream of its own."""

    WEIGHTS = 1
    ORDER = 2
    AUGMENTATION = 3
    NETWORK = 4  # dropout


def seed_of(stream: Stream, seed: int, epoch: int = 0, step: int = 0, rank: int = 0) -> int:
    """The seed of a stream at a step of training, below 2^63. No two steps share one.

    It depends on these numbers alone, so a resumed run draws the same numbers. `seed`
    comes last, since SeedSequence splits a large number into several and pads with zeros.
    """
    place = (int(stream), epoch, step, rank, seed)
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def seed_device(device: torch.device, number: int) -> None:
    """Seed the generator that layers such as dropout draw from."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)
    else:
        torch.manual_seed(number)


@contextlib.contextmanager
def kernels(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Within the context torch uses the fastest kernels or, if `deterministic`, only those that
    give the same result every time.

    deterministic: a layer without such a kernel raises RuntimeError. Otherwise fp32 products on
    CUDA may use TF32. cuDNN does not benchmark its algorithms: on an H200 four networks were as
    fast without, and each new image size took it 5 seconds and more.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    matmul_precision = torch.get_float32_matmul_precision()
    try:
        if deterministic:
            # cuBLAS reads it when it starts.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        elif device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        if deterministic:  # a call imports torch._inductor, which takes a second
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(matmul_precision)


@contextlib.contextmanager
def profile(path: Path) -> Iterator[Callable[[], None]]:
    """Within the context ten steps are traced into `path`, for chrome://tracing or Perfetto. Call
    the yielded function after each step. The first five steps are left out, since they may
    compile or capture.
    """
    from torch.profiler import ProfilerActivity, schedule

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(
        activities=activities,
        schedule=schedule(wait=UNTRACED_STEPS - 1, warmup=1, active=10, repeat=1),
        on_trace_ready=lambda done: write(path, lambda file: file.write(trace_of(done))),
    ) as profiler:
        yield profiler.step


def trace_of(profiler: torch.profiler.profile) -> bytes:
    """Its trace in Chrome's format, which torch writes to a path only."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        return file.read_bytes()


def describe(device: torch.device, computed_in: Format) -> dict[str, object]:
    """What the results and the speed of a run depend on, for environment.yaml."""
    values: dict[str, object] = {
        "device": device.type,
        "number_format": computed_in,
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        values |= {
            "device": torch.cuda.get_device_name(device),
            "capability": f"{major}.{minor}",
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver_version(),
        }
    if device.type == "cpu":
        values["instructions"] = torch.backends.cpu.get_cpu_capability()
    return values


def driver_version() -> str | None:
    """The version of NVIDIA's driver, from nvidia-smi; None if that fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=10)
        return done.stdout.split("\n")[0].strip()
    return None


def has_room(device: torch.device, size: int) -> bool:
    """Do `size` bytes fit into half of the device's free memory? Always on a CPU, which reads files
    that are mapped into memory as it needs them.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    else:
        return True
    return size <= free / 2


def is_out_of_memory(error: BaseException) -> bool:
    """Did memory run out, on a GPU, on MPS or on the host? Only CUDA has an exception for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def reporting_out_of_memory(device: torch.device, batch: str) -> Iterator[None]:
    """Within the context running out of memory raises UserError, naming `batch`: a key and its
    value.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The command line prints what begins with "process", whatever the process.
        speaker = "" if is_first_process() else f"process {os.environ['RANK']}: "
        raise UserError(
            f"{speaker}out of memory on {device.type} at {batch}; halve it, use a smaller model, "
            "or free memory of the device"
        ) from None


def is_first_process() -> bool:
    """Is this the only process, or the first of those that torchrun started?"""
    return not in_processes() or os.environ["RANK"] == "0"


def refuse_processes(what: str) -> None:
    """Refuse a sweep in several processes, which would make its runs in step."""
    if in_processes() and os.environ["WORLD_SIZE"] != "1":
        raise UserError(
            f"{what}, whose runs train one after another in one process; leave torchrun out, or "
            "train each run by itself"
        )


def join_processes(device: torch.device) -> tuple[int, int]:
    """The rank of this process and the number of processes, connected if torchrun started several;
    0 and 1 otherwise.
    """
    if not in_processes():
        return 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # CPU tensors go through gloo: agreeing on something does not wait for a GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=WAIT)
        # One that is refused at once would otherwise break the connection of a slower one, which
        # could not print the refusal.
        all_reduce(torch.zeros(1), "sum")
    return dist.get_rank(), dist.get_world_size()


@contextlib.contextmanager
def closing_connections() -> Iterator[None]:
    """After the context the connections that join_processes opened are closed: once all processes
    are done, or at once if this one fails.
    """
    try:
        yield
        if dist.is_initialized():
            dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def all_reduce(values: Tensor, how: str) -> Tensor:
    """`values` reduced elementwise over all processes, by "sum", "min" or "max"."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values, getattr(dist.ReduceOp, how.upper()))
    return values


@contextlib.contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """Within the context a lost connection to another process raises UserError."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError and what gloo raises
        # The connections may be closed by now: closing_connections() does so.
        of_another = re.search(r"gloo|NCCL|[Cc]onnection|peer|[Tt]imed out", str(error))
        if not in_processes() or not of_another:
            raise
        raise UserError(
            "another process of this run has ended; see its message, then use resume="
        ) from None


class Signals:
    """Within the context the first SIGINT, SIGTERM, SIGHUP (a terminal that closes) or SIGUSR1 (a
    scheduler's warning) only sets `caught`, which is 0 until then. A second one acts as usual.
    """

    caught = 0

    def __enter__(self) -> "Signals":
        # No other thread may handle signals.
        in_main = threading.current_thread() is threading.main_thread()
        self.previous = {}
        for number in SIGNALS if in_main else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # the caller ignores it, as nohup does
                self.previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Interrupted(BaseException):
    """A signal ended the command, with everything saved; `code` is the exit code. A sweep ends
    too.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        requeue = number == getattr(signal, "SIGUSR1", None)
        self.code = 75 if requeue else 128 + number  # 75 is EX_TEMPFAIL: try again
