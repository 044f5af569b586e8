"""A forward of a pack, divided over the ranks of a replica.

The pack's items are divided over `cfg`, the tokens of each over `ring` x `ulysses`; every rank gets
every velocity. Items are divided, not branches, so that rows without guidance share the work as
well as others, and a family may have any number of branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from batchgen.config.schema import SystemConfig
from batchgen.engine.contract import SelfTest
from batchgen.engine.devices.selftest import split_equals_whole
from batchgen.engine.parallel.attention import AttentionOp, attention_op
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.sequence import SplitSequence
from batchgen.errors import DividedForwardFailed
from batchgen.families.family import FamilyModel, Item
from batchgen.request import Bucket

T = TypeVar("T")


class Split:
    """The family's forwards on this rank. All ranks of the replica run the same packs, in the same
    order; nothing else of the family is divided."""

    def __init__(
        self,
        mesh: Mesh,
        family: FamilyModel,
        experts: Sequence[str],
        op: AttentionOp,
        *,
        tests: bool,
    ) -> None:
        """`tests`: ask of each bucket's first pack whether the split keeps bits."""
        self.mesh = mesh
        self.family = family
        self.tests = tests and mesh.sequence.size > 1
        self.self_test: SelfTest = "not needed"
        transformers = [family.modules[expert] for expert in experts]
        self.sequence = (
            SplitSequence(mesh, family.sequence, transformers, op)
            if mesh.sequence.size > 1
            else None
        )
        self._tested: set[Bucket] = set()

    @property
    def leads(self) -> bool:
        return self.mesh.rank == 0

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Forwards of the family inside run on this rank alone, as in a replica of one rank."""
        with self.sequence.whole() if self.sequence else nullcontext():
            yield

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """Velocities of the items, on every rank. Raises DividedForwardFailed, after which the
        replica is lost: the other ranks wait in a collective."""
        try:
            return self._forward(items)
        except Exception as error:
            rows = ", ".join(dict.fromkeys(item.request.row_id for item in items))
            raise DividedForwardFailed(
                f"rank {self.mesh.rank} of {self.mesh.degrees.replica} failed in a forward of rows "
                f"{rows}, after its {self.mesh.wire.at or 'start'}: {type(error).__name__}: {error}"
            ) from error

    def _forward(self, items: Sequence[Item]) -> list[Tensor]:
        axis = self.mesh.cfg
        mine = part(items, axis.size, axis.place)
        velocities = self.family.forward(mine)
        self._test(mine[0], velocities[0])
        if axis.size == 1:
            return velocities
        everyone = self.mesh.wire.gather(axis, torch.cat(velocities))
        own = [len(even(items, axis.size, place)) for place in range(axis.size)]
        kept = torch.cat([many[:count] for many, count in zip(everyone, own, strict=True)])
        return list(kept.split(1))

    def _test(self, item: Item, velocity: Tensor) -> None:
        """Once a bucket; ranks agree on what they tell."""
        bucket = item.request.bucket
        if not self.tests or bucket in self._tested:
            return
        self._tested.add(bucket)
        with self.whole():
            equal = split_equals_whole(self.family, item, velocity)
        passed = torch.tensor([equal], device=velocity.device)
        for axis in (self.mesh.sequence, self.mesh.cfg):
            passed = torch.cat(self.mesh.wire.gather(axis, passed)).all(dim=0, keepdim=True)
        if self.self_test != "failed":
            self.self_test = "passed" if bool(passed) else "failed"


def divide(
    mesh: Mesh, family: FamilyModel, experts: Sequence[str], system: SystemConfig
) -> Split | None:
    """Set the experts up for the ranks of `mesh`; None where there is one rank alone. Every rank
    calls this, when weights are loaded and edges are set and before anything is compiled."""
    if mesh.degrees.replica == 1:
        return None
    op = attention_op(system.parallel.attention_op, mesh)
    return Split(mesh, family, experts, op, tests=system.determinism == "strict")


def even(items: Sequence[T], ranks: int, place: int) -> Sequence[T]:
    """The items of one rank; the first ranks get one more where they do not come out even."""
    cuts = [-(-len(items) * k // ranks) for k in range(ranks + 1)]
    return items[cuts[place] : cuts[place + 1]]


def part(items: Sequence[T], ranks: int, place: int) -> list[T]:
    """What one rank draws: as many on each rank, since a collective wants one size. A rank with
    fewer draws the pack's last item again; it would only wait."""
    own = [*even(items, ranks, place)]
    return own + [items[-1]] * (-(-len(items) // ranks) - len(own))
