"""Which blocks of a transformer stay on the device and which stream, and their bytes; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.config.schema import ModelSpec
from batchgen.families.family import BYTES, family_spec


def staying(blocks: int, count: int) -> frozenset[int]:
    """The numbers of `count` blocks out of so many, spread evenly, so that each block that streams
    has as much as possible to be copied behind; the first streams, since it is copied behind the
    end of the forward before."""
    return frozenset(n for n in range(blocks) if (n + 1) * count // blocks > n * count // blocks)


@dataclass(frozen=True, slots=True)
class StreamBytes:
    """Bytes of one transformer in mode `stream`."""

    blocks: tuple[int, ...]  # of each
    rest: int  # of all that is no block
    shelves: int  # that are there for blocks that stream

    def streamed(self, count: int) -> tuple[int, ...]:
        """Of each block where `count` stay; 0 if it is one of those."""
        stay = staying(len(self.blocks), count)
        return tuple(0 if n in stay else size for n, size in enumerate(self.blocks))

    def held(self, count: int) -> int:
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


def stream_bytes(model: ModelSpec, prefetch: int) -> StreamBytes:
    """Of a transformer of a model; experts are alike."""
    family = family_spec(model.family)
    expert = next((part for part in family.COMPONENTS if part.stacks), None)
    if expert is None:
        return StreamBytes((), 0, 0)
    size = 4 if expert.float32 else BYTES[model.dtype]
    blocks = tuple(size * weights for weights in family.block_parameters(model))
    rest = size * family.parameters(model, expert.name) - sum(blocks)
    return StreamBytes(blocks, rest, 1 + prefetch)
