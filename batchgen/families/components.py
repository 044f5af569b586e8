"""The components of a model, and the bytes of their weights; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from batchgen.config.schema import ModelSpec
from batchgen.families.family import BYTES, Component, Stage, family_spec


@runtime_checkable
class FindsComponents(Protocol):
    """A `spec.py` whose components are what its checkpoint has; its COMPONENTS are empty."""

    def components(self, model: ModelSpec) -> tuple[Component, ...]: ...


def components_of(model: ModelSpec) -> tuple[Component, ...]:
    """The folders that a model is loaded from."""
    spec = family_spec(model.family)
    return spec.components(model) if isinstance(spec, FindsComponents) else spec.COMPONENTS


@dataclass(frozen=True, slots=True)
class ComponentBytes:
    """Bytes of the loaded weights: (component, stage, bytes)."""

    parts: tuple[tuple[str, Stage, int], ...]

    @property
    def total(self) -> int:
        return sum(size for _, _, size in self.parts)

    @property
    def expert(self) -> int:
        """One transformer, the larger one of two."""
        return max((size for _, stage, size in self.parts if stage == "denoise"), default=0)

    def of(self, stage: Stage) -> int:
        """All components of a stage together."""
        return sum(size for _, at, size in self.parts if at == stage)


def component_bytes(model: ModelSpec) -> ComponentBytes:
    """Bytes of each component in the precision in which it runs on an accelerator."""
    spec = family_spec(model.family)
    return ComponentBytes(
        tuple(
            (
                part.name,
                part.stage,
                spec.parameters(model, part.name) * (4 if part.float32 else BYTES[model.dtype]),
            )
            for part in components_of(model)
            if part.kind == "model"
        )
    )
