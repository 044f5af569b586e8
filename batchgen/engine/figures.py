"""Figures of a device for planning: rate of a large matrix product, copies, memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_TRIALS = 10
_COPY_BYTES = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """As in a profile's `device:` block. TFLOP/s in the precision that models run in there
    (bfloat16 on CUDA, float32 on a CPU); GB/s from pinned host memory; GiB of one device, on a CPU
    of the machine."""

    name: str
    memory_gib: float
    matmul_tflops: float
    h2d_gbs: float


def measure(device: torch.device) -> DeviceFigures:
    """Takes about a second."""
    cuda = device.type == "cuda"
    return DeviceFigures(
        name=torch.cuda.get_device_name(device) if cuda else "cpu",
        memory_gib=_memory_gib(device),
        matmul_tflops=_matmul_tflops(device, 8192 if cuda else 512),
        h2d_gbs=_copy_gbs(device),
    )


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total / 1024**3
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3


def _matmul_tflops(device: torch.device, size: int) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _seconds(device, lambda: left @ left) / 1e12


def _copy_gbs(device: torch.device) -> float:
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    return _COPY_BYTES / _seconds(device, lambda: target.copy_(host)) / 1e9


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The best of a few trials, after one that is not counted: the others met somebody's work."""
    taken = []
    for _ in range(_TRIALS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])
