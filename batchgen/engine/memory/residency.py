"""Which components are on the device. Where a component is does not change what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.plan import MemoryPlan
from batchgen.engine.memory.sources import source_of
from batchgen.engine.memory.stream import Feed, tensors_of
from batchgen.failpoints import failpoint
from batchgen.families.family import Component, Stage
from batchgen.records import MemoryMode


class Residency:
    """Moves components between host and device, and counts."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        device: torch.device,
        plan: MemoryPlan,
        feed: Callable[[Component, MemoryPlan], Feed],
        gauge: Gauge,
        apart: Mapping[nn.Module, str] | None = None,
    ) -> None:
        """Nothing is on the device before `settle`. `feed`: makes that of a component whose blocks
        stream, as a plan says; it counts in the same gauge. `apart`: modules, with their
        components, that come for themselves (`brought`) where these are not resident."""
        self.modules = modules
        self.device = device
        self.plan = plan
        self.feeds: dict[str, Feed] = {}
        self.gauge = gauge
        self.moves = 0  # of a component onto the device
        self._feed = feed
        self._apart = apart or {}
        self.inside: set[str] = set()  # components on the device
        self._homes: dict[str, list[tuple[Tensor, Tensor]]] = {}  # of those that can leave again
        self._make_feeds(plan.streaming)

    def settle(self) -> None:
        """Bring what stays on the device."""
        for name in self.modules:
            if self._stays(name) and name not in self.inside:
                self._enter(name)

    @property
    def expert(self) -> str:
        """One that is on the device."""
        inside = (name for name in self.plan.experts if name in self.inside)
        return next(inside, self.plan.experts[0])

    def of(self, stage: Stage) -> tuple[str, ...]:
        """The components of a stage that this rank has."""
        return tuple(name for name in self.plan.components(stage) if name in self.modules)

    def use(self, *names: str) -> None:
        """Bring these components of one stage to the device, those that stream without the blocks
        that do; the others leave it first, but for those that are resident."""
        if self.plan.resident:
            return
        for name in sorted(self.inside - set(names)):
            if not self._stays(name):
                self._leave(name)
        self.gauge.begin(self.plan.stage(names[0]))
        for name in names:
            if name not in self.inside:
                self._enter(name)
                self.moves += 1

    def ensure(self, *names: str) -> None:
        """As `use`, unless they are there. They are, where orders have said so, but for those that
        were given before the plan became tighter."""
        if not self.inside.issuperset(names):
            self.use(*names)

    def tighten(self, memory: MemoryMode) -> bool:
        """Keep no more on the device than this mode asks, from now on; all components leave it.
        False, and nothing is done, if no more is there as it is."""
        plan, before = self.plan.tightened(memory), self.plan
        if plan == before:
            return False
        for name in sorted(self.inside):
            self._leave(name)
        self.plan = plan
        self._make_feeds(
            part
            for part in plan.streaming
            if part not in before.streaming or (part.stacks and plan.stay != before.stay)
        )
        return True

    def first_block(self, expert: str) -> AbstractContextManager[None]:
        """Inside, the first block of an expert is on the device if the expert is."""
        feed = self.feeds.get(expert)
        return nullcontext() if feed is None else feed.here(0, lambda block: True)

    def is_away(self, module: nn.Module) -> bool:
        """Whether a module is none of those that are there with their component."""
        return module in self._apart and not self._stays(self._apart[module])

    @contextmanager
    def brought(self, module: nn.Module) -> Iterator[None]:
        """Inside, a module that is away is on the device."""
        if not self.is_away(module):
            yield
            return
        tensors = tensors_of(module)
        homes, size = [(tensor, tensor.data) for tensor in tensors], sum(t.nbytes for t in tensors)
        self.gauge.add(size)
        try:
            for tensor in tensors:
                tensor.data = source_of(tensor).to(self.device, tensor.dtype)
            self.gauge.streamed += size
            yield
        finally:
            _send_home(homes)
            self.gauge.add(-size)

    def _stays(self, name: str) -> bool:
        return self.plan.places[name] == "resident"

    def _enter(self, name: str) -> None:
        """All of it, or nothing if there is no room."""
        tensors = self._own_tensors(name)
        homes = [(tensor, tensor.data) for tensor in tensors]
        try:
            failpoint("memory.move")
            for tensor in tensors:
                tensor.data = source_of(tensor).to(self.device, tensor.dtype)
            if feed := self.feeds.get(name):
                feed.open()
        except Exception:
            _send_home(homes)
            raise
        self.gauge.add(sum(tensor.nbytes for tensor in tensors))
        self.inside.add(name)
        if not self._stays(name):
            self._homes[name] = homes

    def _leave(self, name: str) -> None:
        """Weights do not change: what is at home is what was on the device. What was to stay there
        has no home any more, and is copied."""
        if feed := self.feeds.get(name):
            feed.close()
        homes = self._homes.pop(name, None)
        if homes is None:
            homes = [(tensor, tensor.data.cpu()) for tensor in self._own_tensors(name)]
        _send_home(homes)
        self.gauge.add(-sum(tensor.nbytes for tensor, _ in homes))
        self.inside.remove(name)

    def _make_feeds(self, parts: Iterable[Component]) -> None:
        """Of components that are not on the device. A follower has those that denoise alone."""
        for part in parts:
            if part.name in self.modules:
                self.feeds[part.name] = self._feed(part, self.plan)

    def _own_tensors(self, name: str) -> list[Tensor]:
        """All of a component but the blocks that stream, and what is away."""
        feed = self.feeds.get(name)
        others = [*(feed.modules if feed else ()), *filter(self.is_away, self._apart)]
        elsewhere = {id(t) for module in others for t in tensors_of(module)}
        return [t for t in tensors_of(self.modules[name]) if id(t) not in elsewhere]


def _send_home(homes: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, home in homes:
        tensor.data = home
