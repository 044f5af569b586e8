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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, TypeVar

from batchgen.config.schema import VaeConfig
from batchgen.request import Bucket

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
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
    stride: int = 0  # pixels that a tile is there for, unless a job says so; 0: as usual

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
        usual = self.stride or (_STRIDE if self.reach else _STRIDE_IN_LAYERS)
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

    def within(self, factor: int) -> slice:
        """Pixels of these by their place in the tile; `factor`: pixels of a cell."""
        return slice(self.before * factor, (self.cells - self.after) * factor)

    def drawn(self, factor: int) -> slice:
        """And by their place in the frame."""
        return slice(self.own.start * factor, self.own.stop * factor)

    def near(self, cells: int) -> tuple[slice, bool, bool]:
        """Its own and one on each side, of an axis of so many; whether there is none in front, and
        none behind."""
        own = self.own
        first, last = own.start == 0, own.stop == cells
        return slice(own.start - (not first), own.stop + (not last)), first, last


class Ranks(Protocol):
    """Those that decode a row together, each some of its tiles."""

    @property
    def size(self) -> int: ...
    @property
    def place(self) -> int:
        """Of this one; all that is decoded comes to the first, 0."""

    def exchange(self, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """`pieces[n]` goes to rank n; comes back what each sent here, of the given shapes."""


class OneRank:
    """That has all tiles."""

    size, place = 1, 0

    def exchange(self, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return [*pieces]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Pixels of a tile at most, and those of them that it is there for."""

    tile: int
    stride: int
    ranks: Ranks = field(default=OneRank(), compare=False)

    def spans(self, cells: int, factor: int) -> list[Span]:
        """Tiles of one axis of so many cells, as few and as even as there can be; `factor`: pixels
        of a cell."""
        beside = (self.tile - self.stride) // (2 * factor)
        found = []
        for begin, end in _parts(cells, -(-cells * factor // self.stride)):
            before, after = min(beside, begin), min(beside, cells - end)
            found.append(Span(begin - before, end + after, before, after))
        return found

    def count(self, cells: Iterable[int], factor: int) -> int:
        """Tiles of axes of so many cells."""
        return math.prod(len(self.spans(each, factor)) for each in cells)

    def tiles_of(self, bucket: Bucket, factor: int) -> int:
        """Tiles of a row."""
        return self.count((bucket.height // factor, bucket.width // factor), factor)

    def tiles(self, rows: int, columns: int, factor: int) -> Iterator[tuple[Span, Span]]:
        """(rows, columns) of each tile of so many cells."""
        for vertical in self.spans(rows, factor):
            for horizontal in self.spans(columns, factor):
                yield vertical, horizontal

    def shares(self, tiles: Sequence[T]) -> list[Sequence[T]]:
        """Those of each rank, as even as they come out, in order; the first has no more than
        others."""
        return _shares(tiles, self.ranks.size)

    def largest(self, bucket: Bucket, factor: int) -> Bucket:
        """The shape of the largest tile of a row."""
        height, width = (
            factor * max(span.cells for span in self.spans(pixels // factor, factor))
            for pixels in (bucket.height, bucket.width)
        )
        return replace(bucket, width=width, height=height)

    def work(self, bucket: Bucket, factor: int, ranks: int = 1) -> float:
        """Pixels that the tiles of a row have together, of those that it has; over several ranks
        those of the one that has most."""
        cells = bucket.height // factor, bucket.width // factor
        tiles = [*self.tiles(*cells, factor)]
        most = max(sum(r.cells * c.cells for r, c in own) for own in _shares(tiles, ranks))
        return most / math.prod(cells)


def _parts(length: int, count: int) -> Iterator[tuple[int, int]]:
    """An axis in so many parts, as even as they come out: where each begins and ends."""
    return pairwise(length * n // count for n in range(count + 1))


def _shares(tiles: Sequence[T], ranks: int) -> list[Sequence[T]]:
    return [tiles[begin:end] for begin, end in _parts(len(tiles), ranks)]


def tiling_of(vae: VaeConfig) -> Tiling | None:
    """What a job asks for, once sizes are resolved; None: whole frames."""
    if vae.tiled is not True or vae.tile is None or vae.stride is None:
        return None
    return Tiling(vae.tile, vae.stride)


class DecodesTiles(Protocol):
    """A model that decodes tile by tile, over the ranks of its `tiling`."""

    tiling: Tiling | None  # into which frames are cut when they are decoded


M = TypeVar("M", bound=DecodesTiles)


def tiled(model: M, vae: VaeConfig) -> M:
    """The model, to decode as the job says."""
    model.tiling = tiling_of(vae)
    return model
