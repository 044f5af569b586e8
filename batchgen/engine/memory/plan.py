"""Where components live, decided from bytes before anything is loaded.

`resident`: all on the device, from the start. `model`: those of one stage at a time, and of the
experts one; the engine then goes window by window, so each moves at most once per window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from batchgen.config.schema import MemoryConfig, ModelSpec
from batchgen.families.family import Stage, component_bytes, family_spec

RESERVE = 0.25  # share of an accelerator's memory left to activations

Mode = Literal["resident", "model"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The mode, and which components each stage needs."""

    mode: Mode
    stages: tuple[tuple[str, Stage], ...]  # component, its stage

    def components(self, stage: Stage) -> tuple[str, ...]:
        """Those that work in a stage."""
        return tuple(name for name, of in self.stages if of == stage)

    @property
    def experts(self) -> tuple[str, ...]:
        """Transformers, in the order in which a row meets them."""
        return self.components("denoise")


def plan_memory(model: ModelSpec, memory: MemoryConfig, device: torch.device) -> MemoryPlan:
    """`auto` is resident on a CPU and where all weights leave the reserve free, else model."""
    stages = tuple(
        (part.name, part.stage)
        for part in family_spec(model.family).COMPONENTS
        if part.kind == "model"
    )
    return MemoryPlan(_mode(model, memory, device), stages)


def _mode(model: ModelSpec, memory: MemoryConfig, device: torch.device) -> Mode:
    if memory.mode != "auto":
        return "model" if memory.mode == "model" else "resident"
    if device.type == "cpu":
        return "resident"
    free, total = torch.cuda.mem_get_info(device)
    if memory.vram_limit is not None:
        free = min(free, int(memory.vram_limit * 1024**3))
    return "resident" if component_bytes(model).total + RESERVE * total <= free else "model"
