"""Where components live, as the layout says, by the stages that need them.

`resident`: on the device, from the start. `model`: there while its stage works, of the experts one;
the engine then goes window by window, so each moves at most once per window. `stream`: the same,
but for its blocks, which stay on the host and come for their forwards alone. `disk`: the same from
the checkpoint's files, of which the host keeps no copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Component, Stage, family_spec
from batchgen.families.streaming import (
    STREAMING,
    Places,
    places_of,
    read_places,
    staying,
    weighty,
)
from batchgen.records import MemoryMode

_TIGHT: tuple[MemoryMode, ...] = get_args(MemoryMode)  # each keeps less on the device


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where each component is, and which of them each stage needs."""

    parts: tuple[Component, ...]  # those that have weights
    places: Places
    stay: frozenset[int] = frozenset()  # blocks of an expert that do not stream

    @property
    def resident(self) -> bool:
        """Whether all are on the device from the start."""
        return all(place == "resident" for place in self.places.values())

    def components(self, stage: Stage) -> tuple[str, ...]:
        """Those that work in a stage."""
        return tuple(part.name for part in self.parts if part.works_in(stage))

    def stage(self, component: str) -> Stage:
        """Where a component works."""
        return self.part(component).stage

    def part(self, component: str) -> Component:
        return next(part for part in self.parts if part.name == component)

    @property
    def experts(self) -> tuple[str, ...]:
        """Transformers, in the order in which a row meets them."""
        return self.components("denoise")

    @property
    def on_disk(self) -> tuple[str, ...]:
        """Those whose weights stay in their files until they are needed."""
        return tuple(name for name, place in self.places.items() if place == "disk")

    @property
    def streaming(self) -> tuple[Component, ...]:
        """Those whose blocks stream."""
        return tuple(p for p in self.parts if p.blocks and self.places[p.name] in STREAMING)

    def tightened(self, memory: MemoryMode) -> MemoryPlan:
        """The plan in which no component keeps more on the device than this mode asks."""
        places = dict(self.places)
        for part in self.parts:
            own: MemoryMode = "model" if memory == "stream" and not part.blocks else memory
            places[part.name] = max(own, places[part.name], key=_TIGHT.index)
        return replace(self, places=places, stay=frozenset() if memory in STREAMING else self.stay)


def plan_memory(
    model: ModelSpec, mode: MemoryMode, resident_blocks: int = 0, places: str = ""
) -> MemoryPlan:
    """Where a model's components live; `resident_blocks` and `places` as in `Layout`."""
    stay = staying(family_spec(model.family).layers(model), resident_blocks)
    return MemoryPlan(weighty(model), places_of(model, mode, read_places(places)), stay)
