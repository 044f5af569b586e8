"""The device a replica runs on: choice, name, precision, memory."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch

from batchgen.config.kernels import kernel_plan
from batchgen.config.schema import MemoryConfig, ModelSpec, SystemConfig
from batchgen.errors import ConfigError
from batchgen.families.streaming import told
from batchgen.records import DECODE_PIXELS, Layout, MemoryMode, Precision

GIB = 1024**3
DTYPES: dict[Precision, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def pick_device(name: str) -> torch.device:
    """`auto` is the current CUDA device if there is one, else the CPU; raises ConfigError for a
    CUDA device that is not there. One with a number is this thread's current one from now on: that
    is where events, pinned memory and groups of ranks belong, which name no device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for, but torch sees no CUDA device")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
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


def device_id(device: torch.device) -> str:
    """Tells a card from others of its host, whatever number it has for this process; empty for a
    CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def run_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Precision of an engine without a layout: the model's own; float32 on a CPU, where half
    precision is slow and parity is checked to the bit."""
    return torch.float32 if device.type == "cpu" else DTYPES[spec.dtype]


def lone_layout(model: ModelSpec, system: SystemConfig, device: torch.device) -> Layout:
    """What an engine obeys that was loaded for itself, outside any submission: all as asked, and
    `auto` keeps every component on the device."""
    dtype = run_dtype(model, device)
    return Layout(
        memory=_lone_memory(system.memory),
        places=told({n: c.memory for n, c in system.components.items() if c.memory is not None}),
        precision=next(name for name, kind in DTYPES.items() if kind == dtype),
        decode_pixels=0 if system.determinism == "strict" else DECODE_PIXELS,
        attention=str(kernel_plan(system)),
        device=device_name(device),
    )


def _lone_memory(memory: MemoryConfig) -> MemoryMode:
    if memory.mode == "auto":
        return "stream" if memory.vram_limit == 0 else "resident"
    return memory.mode


def require_room(device: torch.device, layout: Layout) -> None:
    """Raises ConfigError unless the device is of the kind that the layout was decided for and has
    the memory free that it predicts; a CPU has none of its own."""
    if device.type == "cpu":
        if layout.device != "cpu":
            raise ConfigError(
                f"the layout was decided for {layout.device} (slurm.device), "
                "but torch sees no CUDA device"
            )
        return
    free, total = torch.cuda.mem_get_info(device)
    refuse_less(layout, free, total)


def refuse_less(layout: Layout, free: int, total: int) -> None:
    """Raises ConfigError if fewer bytes are free of the device's total than the layout predicts."""
    if layout.vram_gib * GIB > free:
        raise ConfigError(
            f"the layout ({layout}) needs {layout.vram_gib:.1f} GiB, but {free / GIB:.0f} of the "
            f"device's {total / GIB:.0f} GiB are free: slurm.device.memory_gib promised more, or "
            "something else is on the device"
        )


def prepare(device: torch.device, system: SystemConfig) -> None:
    """Process-wide settings: the cap on memory, where one is asked for; in strict mode on a CPU one
    thread, since the split of a sum over threads would follow the machine's core count; on CUDA no
    convolution that adds in any order."""
    limit = system.memory.vram_limit
    if limit and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * GIB / total), device)
    if system.determinism != "strict":
        return
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.backends.cudnn.deterministic = True


@dataclass(frozen=True, slots=True)
class Memory:
    """What a replica uses."""

    peak_device_gib: float | None  # most that tensors held since `reset_peak`; None on a CPU
    host_rss_gib: float  # largest resident set of the process so far


def memory(device: torch.device) -> Memory:
    """As it is now."""
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(peak, kilobytes * 1024 / GIB)


def let_go(device: torch.device) -> None:
    """Give back what torch keeps of the device's memory for tensors to come, and holds in pieces
    that may be too small for them."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
