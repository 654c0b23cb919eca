"""Devices, number formats, seeds and memory; hardware that this machine lacks is faked."""

import itertools

import pytest
import torch

from fer import UserError, runtime
from fer.runtime import Stream, seed_of

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """Fakes a machine: instructions of its CPU, the capability of its GPU, its number of GPUs, MPS,
    torch's version.
    """

    def make(cpu="AVX512", instructions=(), capability=None, gpus=1, mps=False, version="2.14.0"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
        for name in ("avx512_bf16", "amx_tile", "amx_fp16"):
            there = name in instructions
            monkeypatch.setattr(
                torch.cpu, f"_is_{name}_supported", lambda there=there: there, raising=False
            )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch, "__version__", version)
        runtime.warn_once.cache_clear()

    return make


@pytest.mark.parametrize(
    ("device", "fakes", "expected"),
    [
        (CPU, {"instructions": ["avx512_bf16"]}, "bf16"),
        (CPU, {"instructions": ["amx_tile"]}, "bf16"),
        (CPU, {}, "fp32"),
        (CPU, {"cpu": "AVX2", "instructions": ["avx512_bf16"]}, "fp32"),  # by ATEN_CPU_CAPABILITY
        (CUDA, {"capability": (6, 1)}, "fp32"),  # GTX 10xx: fp16 is slower than fp32 there
        (CUDA, {"capability": (6, 0)}, "fp16"),  # P100
        (CUDA, {"capability": (7, 0)}, "fp16"),  # V100
        (CUDA, {"capability": (7, 5)}, "fp16"),  # T4, RTX 20xx
        (CUDA, {"capability": (8, 0)}, "bf16"),  # A100
        (CUDA, {"capability": (9, 0)}, "bf16"),  # H100
        (MPS, {"mps": True}, "fp32"),
    ],
)
def test_a_device_computes_in_what_it_has_instructions_for(
    machine, device, fakes, expected, capsys
):
    machine(**fakes)
    assert runtime.number_format(device) == runtime.choose_format(device) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("device", "fakes", "precision"),
    [
        (CPU, {}, "bf16"),
        (CPU, {"instructions": ["avx512_bf16"]}, "fp16"),
        (CUDA, {"capability": (7, 5)}, "bf16"),
        (CUDA, {"capability": (6, 1)}, "fp16"),
        (MPS, {"mps": True}, "bf16"),
    ],
)
def test_a_format_that_is_only_emulated_is_told_once(machine, device, fakes, precision, capsys):
    machine(**fakes)
    assert runtime.choose_format(device, precision) == precision
    assert runtime.choose_format(device, precision) == precision
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"train.precision={precision}" in err and "emulates" in err


def test_fp32_is_never_emulated(machine, capsys):
    machine(capability=(6, 1))
    assert runtime.choose_format(CUDA, "fp32") == "fp32" and capsys.readouterr().err == ""


def test_auto_takes_cuda_then_mps_then_the_cpu(machine, capsys):
    machine(capability=(9, 0), mps=True)
    assert runtime.pick_device("auto") == CUDA
    machine(mps=True)
    assert runtime.pick_device("auto") == MPS
    machine()
    assert runtime.pick_device("auto") == CPU
    assert capsys.readouterr().err == ""


def test_mps_before_torch_213_cannot_resample_and_auto_says_why_it_takes_the_cpu(machine, capsys):
    machine(mps=True, version="2.12.1")
    assert runtime.pick_device("auto") == CPU
    assert "torch 2.12.1 cannot resample images on MPS" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"device=mps: torch 2\.12\.1 cannot resample"):
        runtime.pick_device("mps")


def test_one_of_several_gpus_is_named_by_its_number(machine):
    machine(capability=(9, 0), gpus=2)
    assert runtime.pick_device("cuda:1") == torch.device("cuda", 1)
    assert runtime.pick_device("cuda") == CUDA
    with pytest.raises(
        UserError, match=r"device=cuda:2: no such GPU; this machine has cuda:0 to cuda:1"
    ):
        runtime.pick_device("cuda:2")
    machine(capability=(9, 0), gpus=1)
    with pytest.raises(UserError, match=r"device=cuda:1: no such GPU; this machine has cuda:0$"):
        runtime.pick_device("cuda:1")
    machine()
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(UserError, match=f"device={name}: torch .* finds no such device"):
            runtime.pick_device(name)


def test_processes_do_not_share_a_gpu(machine, monkeypatch):
    machine(capability=(9, 0), gpus=2)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert runtime.pick_device("auto") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="device=cuda:0: all 2 processes would use this GPU"):
        runtime.pick_device("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert runtime.pick_device("cuda:0") == CUDA


def test_no_two_places_share_a_seed():
    places = [
        (stream, seed, epoch, step, rank)
        for stream, seed, epoch, step, rank in itertools.product(
            Stream, (0, 1, 2**32, 2**33), *[range(3)] * 3
        )
    ]
    assert len({seed_of(*place) for place in places}) == len(places)
    assert seed_of(Stream.ORDER, 5) == seed_of(Stream.ORDER, 5, 0, 0, 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("Invalid buffer size: 12.00 GB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_told_with_the_batch_size(error):
    named = runtime.reporting_out_of_memory(CPU, "train.batch_size=128")
    with (
        pytest.raises(UserError, match=r"out of memory on cpu at train\.batch_size=128; halve it"),
        named,
    ):
        raise error


def test_another_error_is_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="another"), runtime.reporting_out_of_memory(CPU, "x"):
        raise RuntimeError("another")


def test_a_device_has_room_for_half_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    gpu = torch.device("cuda", 0)
    assert runtime.has_room(gpu, 500) and not runtime.has_room(gpu, 501)
    assert runtime.has_room(torch.device("cpu"), 10**15)
