"""The ranks of one replica and the groups they talk in.

Each replica is a torch.distributed world of its own, so that no collective can span two replicas
and a dead replica keeps nobody waiting; data parallelism is several such worlds. Rank of a replica:
(cfg x ring + r) x ulysses + u, so that neighbours exchange most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.wire import Axis, Wire


def place_in(degrees: Degrees, rank: int) -> tuple[int, int, int]:
    """(cfg, ring, ulysses) of a rank of a replica."""
    outer, ulysses = divmod(rank, degrees.ulysses)
    return *divmod(outer, degrees.ring), ulysses


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """This process's place in its replica."""

    degrees: Degrees  # of which the mesh has one replica
    rank: int  # in the replica; 0 leads
    cfg: Axis
    ring: Axis
    ulysses: Axis
    sequence: Axis  # ring x ulysses: whoever shares an item's tokens
    wire: Wire = field(default_factory=Wire)


def join(
    degrees: Degrees,
    rank: int,
    store: Store,
    device: torch.device,
    timeout: timedelta,
    backend: Literal["gloo", "nccl"] | None = None,
) -> Mesh:
    """Meet the other ranks of the replica in `store`, which is this replica's alone (a TCPStore of
    its leader, or a PrefixStore), and make the groups. Every rank of the replica calls this once,
    with its device current; a rank that does not come in time is a torch.distributed error, here
    and in each later collective. `leave` ends it.

    `backend`: NCCL on CUDA and gloo else, if not given; gloo for ranks that share a card."""
    backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    world = "gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        world, store=store, rank=rank, world_size=degrees.replica, timeout=timeout
    )
    return _groups(degrees, rank, backend, timeout)


def _groups(degrees: Degrees, rank: int, backend: str, timeout: timedelta) -> Mesh:
    places = [place_in(degrees, other) for other in range(degrees.replica)]
    own = places[rank]

    def axis(name: str, *free: int) -> Axis:
        """The ranks that differ from this one in the coordinates `free` alone."""
        found = None
        for members in _lines(places, free):
            group = dist.new_group(members, timeout, backend)  # every rank makes every group
            if rank in members:
                found = Axis(name, tuple(members), members.index(rank), group)
        assert found is not None, own
        return found

    return Mesh(
        degrees=degrees,
        rank=rank,
        cfg=axis("cfg", 0),
        ring=axis("ring", 1),
        ulysses=axis("ulysses", 2),
        sequence=axis("sequence", 1, 2),
    )


def leave() -> None:
    """Close this process's groups, after which it may join another replica."""
    dist.destroy_process_group()


def _lines(places: list[tuple[int, int, int]], free: tuple[int, ...]) -> list[list[int]]:
    """Ranks grouped by their coordinates outside `free`, in rising order."""
    lines: dict[tuple[int, ...], list[int]] = {}
    for rank, place in enumerate(places):
        fixed = tuple(at for axis, at in enumerate(place) if axis not in free)
        lines.setdefault(fixed, []).append(rank)
    return list(lines.values())
