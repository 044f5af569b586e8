"""Which components are on the device.

`resident`: all, from the start. `model`: one at a time, moved in when its stage begins and out when
another one's does; the engine then goes window by window, so each moves at most once per window.
Where a component is does not change what it computes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from batchgen.config.schema import MemoryConfig

RESERVE = 0.25  # share of an accelerator's memory left to activations

Mode = Literal["resident", "model"]


def plan_mode(memory: MemoryConfig, modules: dict[str, nn.Module], device: torch.device) -> Mode:
    """`auto` is resident on a CPU and where all weights leave the reserve free, else model."""
    if memory.mode != "auto":
        return "model" if memory.mode == "model" else "resident"
    if device.type == "cpu":
        return "resident"
    free, total = torch.cuda.mem_get_info(device)
    if memory.vram_limit is not None:
        free = min(free, int(memory.vram_limit * 1024**3))
    weights = sum(module_bytes(module) for module in modules.values())
    return "resident" if weights + RESERVE * total <= free else "model"


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


class Residency:
    """Moves components between host and device, and counts."""

    def __init__(self, modules: dict[str, nn.Module], device: torch.device, mode: Mode) -> None:
        self.modules = modules
        self.device = device
        self.mode = mode
        self.moves = 0  # of a component onto the device
        self._inside: set[str] = set()
        if mode == "resident":
            for module in modules.values():
                module.to(device)

    def use(self, *names: str) -> None:
        """Bring these components to the device; in mode `model` the others leave it first."""
        if self.mode == "resident":
            return
        for name in sorted(self._inside - set(names)):
            self.modules[name].to("cpu")
        for name in names:
            if name not in self._inside:
                self.modules[name].to(self.device)
                self.moves += 1
        self._inside = set(names)
