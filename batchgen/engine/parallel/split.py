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

from batchgen.caches.blocks import NO_BLOCKS, Blocks
from batchgen.config.schema import SystemConfig
from batchgen.engine.contract import SelfTest
from batchgen.engine.devices.selftest import split_equals_whole
from batchgen.engine.parallel.attention import AttentionOp, attention_op
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.sequence import SplitSequence
from batchgen.engine.parallel.shares import SAME_KERNEL_ROWS
from batchgen.engine.reuse.blocks import NOTHING, Kept, Stacks
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
        with self._blamed(items):
            axis = self.mesh.cfg
            mine = part(items, axis.size, axis.place)
            found = dict[int, Tensor]()
            for pack in self._packs(mine):
                drawn = self.family.forward([mine[at] for at in pack])
                found |= dict(zip(pack, drawn, strict=True))
            velocities = [found[at] for at in range(len(mine))]
            self._test(mine[0], velocities[0])
            places = (even(range(len(items)), axis.size, place) for place in range(axis.size))
            return self._shared(velocities, [*places])

    def partly(
        self,
        stacks: Stacks,
        items: Sequence[Item],
        homes: Sequence[int],
        blocks: Blocks,
        given: Sequence[Kept],
    ) -> tuple[list[Tensor], list[Kept]]:
        """The same with what `blocks` says. What an item keeps stays with the ranks that drew it:
        `homes` are their places along `cfg`, always the same for an item. Elsewhere nothing is
        given, and nothing kept."""
        with self._blamed(items):
            axis = self.mesh.cfg
            everyone = [
                [at for at, home in enumerate(homes) if home == place] for place in range(axis.size)
            ]
            mine, kept = everyone[axis.place], [NOTHING] * len(items)
            if mine:
                found = dict[int, Tensor]()
                for pack in self._packs([items[at] for at in mine]):
                    places = [mine[at] for at in pack]
                    drawn, own = stacks.forward(
                        self.family,
                        [items[at] for at in places],
                        blocks,
                        [given[at] for at in places],
                    )
                    for at, velocity, one in zip(places, drawn, own, strict=True):
                        found[at], kept[at] = velocity, one
                velocities = [found[at] for at in mine]
                if blocks.whole and all(everyone):  # else some ranks do not come here
                    self._test(items[mine[0]], velocities[0])
            else:  # what it sends has to have a shape
                velocities, _ = stacks.forward(self.family, items[:1], NO_BLOCKS, ())
            return self._shared(velocities, everyone), kept

    def _shared(self, velocities: list[Tensor], everyone: Sequence[Sequence[int]]) -> list[Tensor]:
        """Velocities of all items, in order. `everyone`: the items of each place along `cfg`."""
        axis = self.mesh.cfg
        if axis.size == 1:
            return velocities
        longest = max(map(len, everyone))  # a collective wants one size
        own = [*velocities, *[velocities[-1]] * (longest - len(velocities))]
        found = dict[int, Tensor]()
        for many, places in zip(self.mesh.wire.gather(axis, torch.cat(own)), everyone, strict=True):
            found |= dict(zip(places, many.split(1), strict=False))
        return [found[at] for at in sorted(found)]

    def _packs(self, items: Sequence[Item]) -> list[list[int]]:
        """The items that share a divided forward, by their places. Ranks hold shares of one length
        of text; of few tokens the products of several items have other bits than those of one."""
        place = self.family.sequence.text
        if self.sequence is None or place is None:
            return [[*range(len(items))]]
        packs = dict[tuple[int, int], list[int]]()
        for at, item in enumerate(items):
            length = item.condition[place].shape[-2]
            packs.setdefault((length, at if length < SAME_KERNEL_ROWS else -1), []).append(at)
        return [*packs.values()]

    def totals(self, sums: Tensor) -> Tensor:
        """The sum over all ranks, each of which has added up what is its own."""
        for axis in (self.mesh.sequence, self.mesh.cfg):
            sums = torch.stack(self.mesh.wire.gather(axis, sums)).sum(dim=0)
        return sums

    def own(self, x: Tensor) -> Tensor:
        """Of what a rank holds of the drawn tokens (items, tokens, width), what no other holds."""
        return self.sequence.own(x) if self.sequence else x

    @contextmanager
    def _blamed(self, items: Sequence[Item]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            rows = ", ".join(dict.fromkeys(item.request.row_id for item in items))
            raise DividedForwardFailed(
                f"rank {self.mesh.rank} of {self.mesh.degrees.replica} failed in a forward of rows "
                f"{rows}, after its {self.mesh.wire.at or 'start'}: {type(error).__name__}: {error}"
            ) from error

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
