"""Which components are on the device. Where a component is does not change what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.plan import MemoryPlan
from batchgen.engine.memory.sources import source_of
from batchgen.engine.memory.stream import Feed, tensors_of


class Residency:
    """Moves components between host and device, and counts."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        device: torch.device,
        plan: MemoryPlan,
        feeds: Mapping[str, Feed],
        gauge: Gauge,
    ) -> None:
        """`feeds`: of the components whose blocks stream; they count in the same gauge."""
        self.modules = modules
        self.device = device
        self.plan = plan
        self.feeds = feeds
        self.gauge = gauge
        self.moves = 0  # of a component onto the device
        self._inside: set[str] = set()
        self._homes: dict[str, list[tuple[Tensor, Tensor]]] = {}  # of those that can leave again
        for name in modules:
            if self._stays(name):
                self._enter(name)

    @property
    def expert(self) -> str:
        """One that is on the device."""
        inside = (name for name in self.plan.experts if name in self._inside)
        return next(inside, self.plan.experts[0])

    def use(self, *names: str) -> None:
        """Bring these components of one stage to the device, those that stream without the blocks
        that do; the others leave it first, but for those that are resident."""
        if self.plan.resident:
            return
        for name in sorted(self._inside - set(names)):
            if not self._stays(name):
                self._leave(name)
        self.gauge.begin(self.plan.stage(names[0]))
        for name in names:
            if name not in self._inside:
                self._enter(name)
                self.moves += 1

    def first_block(self, expert: str) -> AbstractContextManager[None]:
        """Inside, the first block of an expert is on the device if the expert is."""
        feed = self.feeds.get(expert)
        return nullcontext() if feed is None else feed.here(0, lambda block: True)

    def _stays(self, name: str) -> bool:
        return self.plan.places[name] == "resident"

    def _enter(self, name: str) -> None:
        self._inside.add(name)
        tensors = self._own_tensors(name)
        if not self._stays(name):
            self._homes[name] = [(tensor, tensor.data) for tensor in tensors]
        for tensor in tensors:
            tensor.data = source_of(tensor).to(self.device, tensor.dtype)
        self.gauge.add(sum(tensor.nbytes for tensor in tensors))
        if feed := self.feeds.get(name):
            feed.open()

    def _leave(self, name: str) -> None:
        """Weights do not change: what is at home is what was on the device."""
        if feed := self.feeds.get(name):
            feed.close()
        homes = self._homes.pop(name)
        for tensor, home in homes:
            tensor.data = home
        self.gauge.add(-sum(tensor.nbytes for tensor, _ in homes))
        self._inside.remove(name)

    def _own_tensors(self, name: str) -> list[Tensor]:
        """All of a component but the blocks that stream."""
        feed = self.feeds.get(name)
        streams = {id(t) for block in feed.modules for t in tensors_of(block)} if feed else set()
        return [t for t in tensors_of(self.modules[name]) if id(t) not in streams]
