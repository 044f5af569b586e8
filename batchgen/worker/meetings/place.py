"""Which replica a rank belongs to, and who leads it."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import ConfigError
from batchgen.records import Layout, RankInfo


@dataclass(frozen=True, slots=True)
class RankPlace:
    """A rank in its replica, and the replica among those of its task."""

    replica: int
    rank: int  # in the replica; 0 leads it
    size: int  # ranks of a replica
    replicas: int  # of the task

    @property
    def leads(self) -> bool:
        return self.rank == 0


def place_of(layout: Layout | None, rank: RankInfo) -> RankPlace:
    """Ranks of a replica follow each other: they are on one node as far as possible. Without a
    layout each is a replica. ConfigError if the task was started with ranks that make no whole
    replicas."""
    size = layout.ranks_of_a_replica if layout else 1
    if rank.world_size % size:
        raise ConfigError(
            f"system.parallel: cfg x ulysses x ring is {size}, but the task has "
            f"{rank.world_size} ranks, which is no multiple of it"
        )
    replica, inside = divmod(rank.rank, size)
    return RankPlace(replica, inside, size, rank.world_size // size)
