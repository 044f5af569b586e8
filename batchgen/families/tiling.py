"""Into which tiles a decoder cuts frames; no torch.

What sees a whole frame comes before anything is enlarged, and is done whole: it takes little
memory. There are two ways behind it, and neither leaves anything to be blended.

Where there are convolutions and norms over the channels of one cell, what a cell becomes depends on
no more than a few cells around it, and a tile with so many beside it comes out as it does in the
whole frame. They are cut off. Where norms are over the whole frame, each layer is finished, tile
by tile, before the next one begins; then there is nothing beside a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeVar

from batchgen.config.schema import VaeConfig
from batchgen.request import Bucket

_STRIDE = 416  # pixels: half the width of 480p
_STRIDE_IN_LAYERS = 256  # smaller ones cost nothing there


@dataclass(frozen=True, slots=True)
class TiledDecoder:
    """How the decoder of a model may go tile by tile."""

    factor: int  # pixels of a cell of the latents
    frames: int = 1  # frames of a cell, but for the first one
    reach: int = 0  # cells that a cell depends on, in each direction; 0: layer by layer
    channels: int = 0  # that a cell has where tiles begin
    maps: int = 0  # layer by layer: channels of a pixel in the two maps that are held
    at_once: int | None = None  # frames there that are decoded at a time; None: all
    size: int = 4  # bytes of a value

    @property
    def beside(self) -> int:
        """Pixels of a tile that are there for the others' sake, on both sides together."""
        return 2 * self.factor * self.reach

    def kept_bytes(self, bucket: Bucket) -> int:
        """Of a row, beside what a tile takes: its frames in float32, its maps, and what all tiles
        begin with."""
        pixels, frames = bucket.width * bucket.height, bucket.num_frames
        cells = (1 + (frames - 1) // self.frames) * pixels // self.factor**2
        at_once = min(frames, self.at_once or frames)
        held = self.maps * pixels * at_once + self.channels * cells
        return 4 * 3 * pixels * frames + self.size * held

    def resolved(self, vae: VaeConfig) -> VaeConfig:
        """With the sizes that were left out."""
        usual = _STRIDE if self.reach else _STRIDE_IN_LAYERS
        stride = vae.stride or (vae.tile - self.beside if vae.tile else usual)
        return replace(vae, tile=vae.tile or stride + self.beside, stride=stride)


def reach_of(stages: int, convolutions: int) -> int:
    """Cells that a cell depends on in each direction, where each of so many stages has so many 3x3
    convolutions and is twice as large as the one before, with one more convolution behind each
    enlargement and at the end."""
    sizes = [2.0**stage for stage in range(stages)]
    in_stages = sum(convolutions / size for size in sizes)
    return math.ceil(in_stages + sum(1 / size for size in sizes[1:]) + 1 / sizes[-1])


@dataclass(frozen=True, slots=True)
class Span:
    """Cells of one axis of a tile."""

    begin: int
    end: int
    before: int  # of them those in front that are there for the others' sake
    after: int  # and behind

    @property
    def cells(self) -> int:
        return self.end - self.begin

    @property
    def own(self) -> slice:
        """Those that the tile is there for."""
        return slice(self.begin + self.before, self.end - self.after)

    def near(self, cells: int) -> tuple[slice, bool, bool]:
        """Its own and one on each side, of an axis of so many; whether there is none in front, and
        none behind."""
        own = self.own
        first, last = own.start == 0, own.stop == cells
        return slice(own.start - (not first), own.stop + (not last)), first, last


@dataclass(frozen=True, slots=True)
class Tiling:
    """Pixels of a tile at most, and those of them that it is there for."""

    tile: int
    stride: int

    def spans(self, cells: int, factor: int) -> list[Span]:
        """Tiles of one axis of so many cells, as few and as even as there can be; `factor`: pixels
        of a cell."""
        beside = (self.tile - self.stride) // (2 * factor)
        count = -(-cells * factor // self.stride)
        found = []
        for begin, end in pairwise(cells * n // count for n in range(count + 1)):
            before, after = min(beside, begin), min(beside, cells - end)
            found.append(Span(begin - before, end + after, before, after))
        return found

    def count(self, cells: Iterable[int], factor: int) -> int:
        """Tiles of axes of so many cells."""
        return math.prod(len(self.spans(each, factor)) for each in cells)

    def tiles(self, rows: int, columns: int, factor: int) -> Iterator[tuple[Span, Span]]:
        """(rows, columns) of each tile of so many cells."""
        for vertical in self.spans(rows, factor):
            for horizontal in self.spans(columns, factor):
                yield vertical, horizontal

    def largest(self, bucket: Bucket, factor: int) -> Bucket:
        """The shape of the largest tile of a row."""
        height, width = (
            factor * max(span.cells for span in self.spans(pixels // factor, factor))
            for pixels in (bucket.height, bucket.width)
        )
        return replace(bucket, width=width, height=height)

    def work(self, bucket: Bucket, factor: int) -> float:
        """Pixels that the tiles of a row have together, of those that it has."""
        height, width = (
            factor * sum(span.cells for span in self.spans(pixels // factor, factor))
            for pixels in (bucket.height, bucket.width)
        )
        return height * width / (bucket.height * bucket.width)


def tiling_of(vae: VaeConfig) -> Tiling | None:
    """What a job asks for, once sizes are resolved; None: whole frames."""
    if vae.tiled is not True or vae.tile is None or vae.stride is None:
        return None
    return Tiling(vae.tile, vae.stride)


class DecodesTiles(Protocol):
    """A model that decodes tile by tile."""

    tiling: Tiling | None  # into which frames are cut when they are decoded


M = TypeVar("M", bound=DecodesTiles)


def tiled(model: M, vae: VaeConfig) -> M:
    """The model, to decode as the job says."""
    model.tiling = tiling_of(vae)
    return model
