"""Where components live, which of their blocks stream, and the bytes of all that; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.components import components_of
from batchgen.families.family import BYTES, Component, Stage, family_spec
from batchgen.families.recalled import TABLE_BYTES
from batchgen.records import MemoryMode, Precision

Places = Mapping[str, MemoryMode]  # of each component that has weights
STREAMING: tuple[MemoryMode, ...] = ("stream", "disk")  # blocks come around their forwards
# Texts that share the copies of an encoder whose blocks stream. Each keeps its states until the
# last layer: 40 MB in a T5 of 512 tokens, 100 MB where a model is told the states of all layers.
TEXTS_ABREAST = 8


def places_of(model: ModelSpec, memory: MemoryMode, own: Places) -> Places:
    """Where each component lives: as `own` says of it, else as `memory`. Without blocks there is
    nothing to stream: it is moved in for its stage."""
    found: dict[str, MemoryMode] = {}
    for part in weighty(model):
        place = own.get(part.name, memory)
        found[part.name] = "model" if place == "stream" and not part.blocks else place
    return found


def weighty(model: ModelSpec) -> tuple[Component, ...]:
    """The components of a model that have weights."""
    return tuple(part for part in components_of(model) if part.kind == "model")


def told(own: Places) -> str:
    """Places as a layout has them: `text_encoder=model vae=resident`."""
    return " ".join(f"{name}={place}" for name, place in own.items())


def read_places(text: str) -> Places:
    """The inverse of `told`."""
    pairs = (pair.partition("=") for pair in text.split())
    return {name: place for name, _, place in pairs}  # type: ignore[misc]


def staying(blocks: int, count: int) -> frozenset[int]:
    """The numbers of `count` blocks out of so many, spread evenly, so that each block that streams
    has as much as possible to be copied behind; the first streams, since it is copied behind the
    end of the forward before."""
    return frozenset(n for n in range(blocks) if (n + 1) * count // blocks > n * count // blocks)


@dataclass(frozen=True, slots=True)
class StreamBytes:
    """Bytes of one component whose blocks stream."""

    blocks: tuple[int, ...]  # of each
    rest: int  # of all that is no block
    shelves: int  # that are there for blocks that stream

    def streamed(self, count: int) -> tuple[int, ...]:
        """Of each block where `count` stay; 0 if it is one of those."""
        stay = staying(len(self.blocks), count)
        return tuple(0 if n in stay else size for n, size in enumerate(self.blocks))

    def held(self, count: int = 0) -> int:
        """On the device at once, where `count` blocks stay."""
        stay = sum(self.blocks) - sum(self.streamed(count))
        return self.rest + stay + self.moving(count)

    def moving(self, count: int) -> int:
        """Of that, the shelves for blocks that stream."""
        streamed = len(self.blocks) - count
        return max(self.streamed(count), default=0) * min(self.shelves, streamed)

    def most(self, room: float) -> int:
        """The most blocks that can stay in so many bytes; 0 if none can."""
        counts = range(len(self.blocks), 0, -1)
        return next((count for count in counts if self.held(count) <= room), 0)


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights, as a job keeps them."""

    model: ModelSpec
    precision: Precision  # that components run in, but for those that always run in float32
    system: SystemConfig

    @property
    def total(self) -> int:
        return sum(self.whole(part) for part in weighty(self.model))

    def of(self, stage: Stage) -> tuple[Component, ...]:
        """The components that work in a stage."""
        return tuple(part for part in weighty(self.model) if part.works_in(stage))

    def whole(self, part: Component) -> int:
        """All of a component."""
        count = family_spec(self.model.family).parameters(self.model, part.name)
        return self._size(part) * count - sum(self._saved(part))

    def streamed(self, part: Component) -> StreamBytes:
        """A component that has blocks."""
        counts, saved = block_weights(self.model, part), self._saved(part)
        away = self.away(part)
        each = zip(counts, saved, away, strict=True)
        blocks = tuple(self._size(part) * n - less - gone for n, less, gone in each)
        rest = self._moved(part) - sum(blocks)
        return StreamBytes(blocks, rest, 1 + self.system.memory.prefetch)

    def held(self, part: Component, place: MemoryMode, stay: int = 0) -> int:
        """On the device while the component works, where so many of its blocks stay."""
        if place in STREAMING and part.blocks:
            return self.streamed(part).held(stay)
        return self.whole(part) if place == "resident" else self._moved(part)

    def _moved(self, part: Component) -> int:
        """All of a component but what is away, and the tables in its place; of those that rows
        keep themselves what it takes to make them: one module at a time."""
        away = self.away(part)
        beside = max(away, default=0) if _combined(part) else min(sum(away), TABLE_BYTES)
        return self.whole(part) - sum(away) + beside

    def row_tables(self, part: Component) -> int:
        """Bytes of the tables of one evaluation, which a row keeps for each of its own as long as
        it is in flight: a number for each row of what is away, whose columns are the width."""
        if not _combined(part):
            return 0
        return sum(self.away(part)) // family_spec(self.model.family).width(self.model)

    def tables(self, places: Places) -> int:
        """The same of all that works in a row's steps, where components are in these places."""
        parts = [part for part in self.of("denoise") if places[part.name] != "resident"]
        return max(map(self.row_tables, parts), default=0)

    def away(self, part: Component) -> tuple[int, ...]:
        """Bytes of each block that wait on the host, with tables in their place: of its modulation,
        all that is not kept in 8 bits."""
        counts = block_weights(self.model, part)
        tables = any(one.like for one in part.recalled) and self.system.compile.mode == "off"
        if not tables:
            return (0,) * len(counts)
        kept = family_spec(self.model.family).fp8_parameters(self.model)
        return tuple(self._size(part) * (n - m) for n, m in zip(counts, kept, strict=True))

    def _saved(self, part: Component) -> tuple[int, ...]:
        """Bytes of each block that keeping weights in 8 bits saves."""
        if self.system.memory.store_dtype == "same" or not part.stacks:
            return (0,) * len(block_weights(self.model, part))
        family, less = family_spec(self.model.family), self._size(part) - 1
        return tuple(less * count for count in family.fp8_parameters(self.model))

    def _size(self, part: Component) -> int:
        own = self.system.components.get(part.name)
        if own is not None and own.dtype is not None:
            return BYTES[own.dtype]
        return 4 if part.float32 else BYTES[self.precision]


def _combined(part: Component) -> bool:
    """Whether tables in place of weights are of timestep, guidance and text combined."""
    return any(one.like and one.sees == "combined" for one in part.recalled)


def block_weights(model: ModelSpec, part: Component) -> tuple[int, ...]:
    """Number of weights of each block of a component."""
    if part.stacks:
        return family_spec(model.family).block_parameters(model)
    blocks: tuple[int, ...] = getattr(model.dims, part.dims).block_weights() if part.layers else ()
    return blocks
