"""Who holds which tokens: plain numbers, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

# Products of fewer rows than this take other kernels, and give other bits.
SAME_KERNEL_ROWS = 16


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's tokens of one stream: `own` from `start` on, and copies up to `held` in all, so that
    its products have as many rows as keep the bits of the whole."""

    start: int
    own: int
    held: int

    @property
    def tokens(self) -> list[int]:
        """Places in the stream of what the rank holds: its own, then the first again and again (of
        a stream with fewer tokens than ranks, the last)."""
        again = self.start if self.own else self.start - 1
        return [*range(self.start, self.start + self.own), *[again] * (self.held - self.own)]


@lru_cache(maxsize=512)
def shares(total: int, ranks: int) -> tuple[Share, ...]:
    """A stream of `total` tokens over the ranks: in order, the longer shares first."""
    base, longer = divmod(total, ranks)
    found, start = [], 0
    for rank in range(ranks):
        own = base + (rank < longer)
        found.append(Share(start, own, max(own, min(SAME_KERNEL_ROWS, total))))
        start += own
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Joint:
    """Streams that attend to each other, each divided over all the ranks."""

    lengths: tuple[int, ...]
    ranks: int

    def own(self, rank: int) -> int:
        """Tokens of a rank, without its copies."""
        return sum(shares(total, self.ranks)[rank].own for total in self.lengths)

    def kept(self, rank: int) -> list[int]:
        """Places of the rank's own tokens in the tensor it holds."""
        places: list[int] = []
        at = 0
        for total in self.lengths:
            share = shares(total, self.ranks)[rank]
            places += range(at, at + share.own)
            at += share.held
        return places

    def restored(self, rank: int) -> list[int]:
        """For each token that a rank holds, the place among its own tokens that it is a copy of."""
        places: list[int] = []
        at = 0
        for total in self.lengths:
            share = shares(total, self.ranks)[rank]
            places += range(at, at + share.own)
            places += [at if share.own else 0] * (share.held - share.own)
            at += share.own
        return places

    def positions(self, ranks: range) -> list[int]:
        """Places in the joint sequence of the own tokens of some ranks, one rank after the
        other."""
        found: list[int] = []
        for rank in ranks:
            before = 0
            for total in self.lengths:
                share = shares(total, self.ranks)[rank]
                found += range(before + share.start, before + share.start + share.own)
                before += total
        return found
