"""Where components live, as the layout says, by the stages that need them.

`resident`: all on the device, from the start. `model`: those of one stage at a time, and of the
experts one; the engine then goes window by window, so each moves at most once per window. `stream`:
the same, but for blocks of the experts, which stay on the host and come for their forwards alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Stage, family_spec
from batchgen.families.streaming import staying
from batchgen.records import MemoryMode


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The mode, and which components each stage needs."""

    mode: MemoryMode
    stages: tuple[tuple[str, Stage], ...]  # component, its stage
    also: tuple[tuple[str, Stage], ...] = ()  # component, a further stage that needs it
    stay: frozenset[int] = frozenset()  # blocks of an expert that do not stream, in mode `stream`

    def components(self, stage: Stage) -> tuple[str, ...]:
        """Those that work in a stage."""
        return tuple(name for name, of in (*self.stages, *self.also) if of == stage)

    def stage(self, component: str) -> Stage:
        """Where a component works."""
        return dict(self.stages)[component]

    @property
    def experts(self) -> tuple[str, ...]:
        """Transformers, in the order in which a row meets them."""
        return self.components("denoise")


def plan_memory(model: ModelSpec, mode: MemoryMode, resident_blocks: int = 0) -> MemoryPlan:
    """The stages of a model's components under a mode; `resident_blocks` as in `Layout`."""
    family = family_spec(model.family)
    parts = [part for part in family.COMPONENTS if part.kind == "model"]
    stages = tuple((part.name, part.stage) for part in parts)
    also = tuple((part.name, stage) for part in parts for stage in part.also)
    stay = staying(family.layers(model), resident_blocks)
    return MemoryPlan(mode, stages, also, stay)
