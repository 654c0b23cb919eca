"""The machine: device, precision, randomness, and signals that end a training cleanly."""

import contextlib
import signal

import numpy as np
import torch

from fer import UserError


def pick_device(name: str) -> torch.device:
    """The device that `device=` names; auto takes CUDA, then Apple's MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"device={name}: torch {torch.__version__} finds none here; use device=auto or device=cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context for forward passes: bf16 where asked, or on CUDA for `auto`."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def seed_everything(*numbers: int) -> None:
    """Seed torch on every device from any tuple of numbers: (seed,) or (seed, epoch, step).

    A step's randomness thus depends on its place alone, and a resumed training draws what it would have drawn.
    """
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


class Signals:
    """Within the context the first SIGINT or SIGTERM is only noted in `caught`; a second one acts as usual."""

    def __enter__(self):
        self.caught: int | None = None
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.caught = number
        self._restore()

    def _restore(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(self, *_):
        self._restore()


class Interrupted(BaseException):
    """A signal ended the command after everything so far was saved; `number` is the signal's. It ends a sweep too."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
