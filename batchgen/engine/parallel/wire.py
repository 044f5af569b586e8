"""What ranks send each other inside a forward: three collectives, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from batchgen.failpoints import failpoint


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Ranks that share one kind of work."""

    name: str
    ranks: tuple[int, ...]  # of the replica, in order
    place: int  # of this process among them
    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        return len(self.ranks)

    def neighbour(self, step: int) -> int:
        """The rank `step` places on, around the ring."""
        return self.ranks[(self.place + step) % self.size]


@dataclass(slots=True, eq=False)
class Wire:
    """The collectives of one rank. Of a group of one, each returns what it was given."""

    sent: Counter[str] = field(default_factory=Counter)  # bytes to other ranks, by collective
    at: str = ""  # the collective begun last, for who must say where a rank stood

    def exchange(
        self, axis: Axis, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """All-to-all: `pieces[j]` goes to the axis's rank j; comes back what each sent here, of the
        given shapes. Pieces may differ in size."""
        if axis.size == 1:
            return list(pieces)
        flat = _on_wire(axis, torch.cat([piece.reshape(-1) for piece in pieces]))
        counts = [piece.numel() for piece in pieces]
        sizes = [torch.Size(shape) for shape in shapes]
        received = flat.new_empty(sum(size.numel() for size in sizes))
        self._note("all-to-all", axis, flat.element_size() * (sum(counts) - counts[axis.place]))
        dist.all_to_all_single(
            received, flat, [size.numel() for size in sizes], counts, group=axis.group
        )
        parts = received.to(pieces[0].device).split([size.numel() for size in sizes])
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)]

    def gather(self, axis: Axis, x: Tensor) -> list[Tensor]:
        """The tensor of every rank, all of one shape."""
        if axis.size == 1:
            return [x]
        own = _on_wire(axis, x.contiguous())
        everyone = [torch.empty_like(own) for _ in axis.ranks]
        self._note("gather", axis, own.nbytes * (axis.size - 1))
        dist.all_gather(everyone, own, group=axis.group)
        return [one.to(x.device) for one in everyone]

    def shift(self, axis: Axis, x: Tensor, shape: Sequence[int]) -> Passing:
        """Pass `x` to the next rank of the ring and get the previous one's, of the given shape."""
        own = _on_wire(axis, x.contiguous())
        incoming = own.new_empty(shape)
        self._note("shift", axis, own.nbytes)
        ends = (
            dist.P2POp(dist.isend, own, axis.neighbour(1), axis.group),
            dist.P2POp(dist.irecv, incoming, axis.neighbour(-1), axis.group),
        )
        return Passing(own, incoming, x.device, dist.batch_isend_irecv(list(ends)))

    def _note(self, kind: str, axis: Axis, size: int) -> None:
        self.at = f"{kind} over {axis.name}"
        failpoint(f"collective.{dist.get_rank()}")
        self.sent[self.at] += size


@dataclass(frozen=True, slots=True, eq=False)
class Passing:
    """A tensor on its way around the ring, while others are at work."""

    sent: Tensor  # kept until it has left
    incoming: Tensor
    device: torch.device
    works: list[dist.Work]

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.incoming.to(self.device)


def _on_wire(axis: Axis, x: Tensor) -> Tensor:
    """gloo takes no tensor of an accelerator in every collective: such a one goes through the
    host."""
    return x.cpu() if x.device.type != "cpu" and dist.get_backend(axis.group) == "gloo" else x
