"""What ranks that decode a row together send each other, each having drawn some of its tiles.

Every rank says the same of who has drawn what. Nothing is computed on the way, so what comes
together has the bits of what one rank draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from batchgen.families.tiling import Ranks, Span, Tiling

Area = tuple[slice, slice]  # rows and columns of a map
Areas = Sequence[Sequence[Area]]  # of each rank


@dataclass(frozen=True, slots=True)
class _Passed:
    """A part of a map that goes from one rank to another."""

    sender: int
    receiver: int
    area: Area


def draw_by_tiles(
    tiling: Tiling, video: Tensor, factor: int, draw: Callable[[Span, Span], Iterable[Tensor]]
) -> Tensor:
    """The video (..., frames, height, width), filled tile by tile, and whole on the first rank.
    `draw`: what a tile of such rows and columns of cells comes to, frames after frames, with what
    is beside it; `factor`: pixels of a cell."""
    height, width = (pixels // factor for pixels in video.shape[-2:])
    shares = tiling.shares([*tiling.tiles(height, width, factor)])
    for rows, columns in shares[tiling.ranks.place]:
        at = 0
        for pixels in draw(rows, columns):
            frames = video[
                ..., at : at + pixels.shape[-3], rows.drawn(factor), columns.drawn(factor)
            ]
            frames.copy_(pixels[..., rows.within(factor), columns.within(factor)])
            at += pixels.shape[-3]
            del pixels  # before the next are made
    areas = [[(rows.drawn(factor), columns.drawn(factor)) for rows, columns in s] for s in shares]
    bring_to_first(tiling.ranks, video, areas)
    return video


def bring_to_first(ranks: Ranks, x: Tensor, drawn: Areas) -> None:
    """Fill in on the first rank what the others have drawn of a map (..., rows, columns); a tile of
    each at a time, so that little is held twice."""
    for tiles in zip_longest(*drawn):
        _pass(ranks, x, [_Passed(n, 0, tile) for n, tile in enumerate(tiles) if n and tile])


def mend(ranks: Ranks, x: Tensor, drawn: Areas, needed: Areas) -> None:
    """Fill in on each rank what it needs of a map (..., rows, columns) and others have drawn."""
    passed = [
        _Passed(sender, receiver, area)
        for receiver, asks in enumerate(needed)
        for sender, has in enumerate(drawn)
        if sender != receiver
        for area in _common(asks, has)
    ]
    _pass(ranks, x, passed)


def from_all(ranks: Ranks, own: Tensor, counts: Sequence[int]) -> Tensor:
    """What every rank has found of each of its tiles, (tiles, ...), in the order of the ranks;
    `counts`: the tiles of each."""
    shapes = [(count, *own.shape[1:]) for count in counts]
    return torch.cat(ranks.exchange([own] * ranks.size, shapes))


def _common(some: Sequence[Area], others: Sequence[Area]) -> Iterator[Area]:
    """Where areas overlap."""
    for a in some:
        for b in others:
            rows, columns = (
                slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True)
            )
            if rows.start < rows.stop and columns.start < columns.stop:
                yield rows, columns


def _pass(ranks: Ranks, x: Tensor, passed: Sequence[_Passed]) -> None:
    if not passed:
        return

    def between(sender: int, receiver: int) -> list[Tensor]:
        ends = sender, receiver
        return [x[..., *p.area] for p in passed if (p.sender, p.receiver) == ends]

    everyone = range(ranks.size)
    own = [between(ranks.place, n) for n in everyone]
    sent = [torch.cat([x.new_empty(0), *(part.reshape(-1) for part in parts)]) for parts in own]
    asked = [between(n, ranks.place) for n in everyone]
    sizes = [[part.numel() for part in parts] for parts in asked]
    received = ranks.exchange(sent, [(sum(each),) for each in sizes])
    for flat, parts, each in zip(received, asked, sizes, strict=True):
        for part, values in zip(parts, flat.split(each), strict=True):
            part.copy_(values.view(part.shape))
