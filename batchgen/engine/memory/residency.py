"""Which components are on the device. Where a component is does not change what it computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from batchgen.engine.memory.plan import MemoryPlan
from batchgen.records import MemoryMode


class Residency:
    """Moves components between host and device, and counts."""

    def __init__(
        self, modules: Mapping[str, nn.Module], device: torch.device, plan: MemoryPlan
    ) -> None:
        self.modules = modules
        self.device = device
        self.plan = plan
        self.moves = 0  # of a component onto the device
        self._inside: set[str] = set()
        if plan.mode == "resident":
            for module in modules.values():
                module.to(device)

    @property
    def mode(self) -> MemoryMode:
        return self.plan.mode

    @property
    def expert(self) -> str:
        """One that is on the device."""
        inside = (name for name in self.plan.experts if name in self._inside)
        return next(inside, self.plan.experts[0])

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
