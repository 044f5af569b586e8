"""The device a replica runs on: choice, name, precision, memory, kernels."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.errors import ConfigError

_GIB = 1024**3
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def pick_device(name: str) -> torch.device:
    """`auto` is the current CUDA device if there is one, else the CPU; raises ConfigError for a
    CUDA device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for, but torch sees no CUDA device")
    return device


def device_of_rank(local_rank: int) -> str:
    """The device of one rank of a node: its own CUDA device, or the CPU where there is none.
    Where a scheduler shows each rank just its own device, that one is `cuda:0`."""
    count = torch.cuda.device_count()
    return f"cuda:{local_rank % count}" if count else "cpu"


def require_devices(asked: str, ranks: int) -> None:
    """Raises ConfigError unless every rank of the node has a CUDA device. One alone does for any
    number of ranks: where a scheduler shows each rank just its own, all see one. `asked`: what the
    profile asks of a node, in words. The host is not named: the same error on all is the job's."""
    seen = torch.cuda.device_count()
    if seen == 0:
        raise ConfigError(f"torch sees no CUDA device, asked for were {asked}")
    if 1 < seen < ranks:
        raise ConfigError(
            f"torch sees {seen} CUDA devices for {ranks} ranks, asked for were {asked}"
        )


def device_name(device: torch.device) -> str:
    """What the catalog calls it: the card's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def run_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Precision of transformer and text encoder: the model's own; float32 on a CPU, where half
    precision is slow and parity is checked to the bit."""
    return torch.float32 if device.type == "cpu" else _DTYPES[spec.dtype]


def prepare(device: torch.device, system: SystemConfig) -> None:
    """Process-wide settings of strict mode: on a CPU one thread, since the split of a sum over
    threads would follow the machine's core count; on CUDA no convolution that adds in any order."""
    if system.determinism != "strict":
        return
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.backends.cudnn.deterministic = True


def memory_gib(device: torch.device) -> float:
    """Peak device memory since `reset_peak`; on a CPU the resident set of the process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if _HAS_STATM else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / _GIB if pages else peak_host_gib()


def peak_host_gib() -> float:
    """Largest resident set of this process so far (kilobytes on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


_HAS_STATM = Path("/proc/self/statm").exists()
