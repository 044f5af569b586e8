"""From a pack of items to velocities, and what is kept of them: one forward, or item by item after
an error; divided over the ranks of a replica that has more than one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from batchgen.caches.blocks import WHOLE, Blocks
from batchgen.config.schema import Kernel
from batchgen.engine.isolation import Failed, is_short
from batchgen.engine.replica import Replica
from batchgen.engine.reuse.blocks import NOTHING, Kept
from batchgen.failpoints import failpoint
from batchgen.families.family import Item
from batchgen.records import Climb
from batchgen.request import Bucket


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A pack for one forward."""

    items: Sequence[Item]
    blocks: Blocks = WHOLE
    given: Sequence[Kept] = ()  # to each item, from forwards before
    homes: Sequence[int] = ()  # of each item (`Split.partly`)
    kernel: Kernel = "sdpa"

    def part(self, begin: int, end: int) -> Work:
        """Some of the items."""
        some = slice(begin, end)
        return replace(self, items=self.items[some], given=self.given[some], homes=self.homes[some])


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What one item comes to."""

    velocity: Tensor  # without meaning where blocks were left out and nothing stood in for them
    kept: Kept = NOTHING


class Forwards:
    """Runs packs on one device and counts."""

    def __init__(self, replica: Replica) -> None:
        self.family, self.stacks = replica.family, replica.stacks
        self.team, self.split = replica.team, replica.split
        self.packer, self.device = replica.packer, replica.device
        self.attention, self.compiled = replica.attention, replica.compiled
        self.residency, self.ladder = replica.residency, replica.ladder
        self.kernels = replica.kernels
        self.last: Work | None = None  # of a divided forward
        self.count = 0
        self.items = 0
        self.syncs = 0

    def run(self, work: Work) -> Sequence[Drawn | Failed]:
        """What each item comes to, or an error; an item that makes the forward raise fails alone,
        since the pack is run again one by one, or by halves where memory is short. In a divided
        forward others wait for this rank: any error is ReplicaFailed."""
        items = work.items
        if self.split is not None:
            self.last = work
            with self.team.together(lambda: _rows(items)):
                failpoint(f"forward.{self.team.rank}")
                return self._timed(work)
        if len(items) == 1:
            found = self.ladder.attempt(lambda: self._timed(work), "denoise")
            return [found] if isinstance(found, Failed) else found
        result = self.ladder.retry(lambda: self._timed(work))
        if not isinstance(result, Failed):
            return result
        each = len(items) // 2 if is_short(result) else 1
        if is_short(result):
            self._shrink(items[0].request.bucket, len(items))
        parts = (work.part(at, at + each) for at in range(0, len(items), each))
        return [drawn for part in parts for drawn in self.run(part)]

    def _shrink(self, bucket: Bucket, items: int) -> None:
        fitting = self.packer.shrink(bucket, items)
        self.ladder.reach(Climb("smaller", "denoise", str(bucket), fitting))

    def leave_word(self) -> bool:
        """A rank was out of memory in a divided forward: see `Ladder.leave_word`."""
        if self.last is None:
            return False
        each = -(-len(self.last.items) // self.packer.ranks)
        return self.ladder.leave_word("denoise", str(self.last.items[0].request.bucket), each)

    def _timed(self, work: Work) -> list[Drawn]:
        failpoint("memory.denoise")
        self.residency.ensure(self._expert(work))
        bucket = work.items[0].request.bucket
        each = -(-len(work.items) // self.packer.ranks)  # items of each rank's forward
        kind = bucket, work.kernel
        watched = self.kernels.name(kind) != "" and work.blocks.whole  # to watch takes time
        measuring = watched and self.team.leads and self.packer.measuring(bucket, each)
        if measuring:
            self.wait()
        begin = perf_counter()
        with self.attention.using(work.kernel):
            drawn = self.compiled.run(
                (*kind, each, work.items[0].request.lora),
                lambda: self.kernels.run(kind, lambda: self._forward(work)),
            )
        self.count += 1
        self.items += len(work.items)
        if measuring:
            self.wait()
            self.packer.observe(bucket, each, perf_counter() - begin)
        return drawn

    def _forward(self, work: Work) -> list[Drawn]:
        if work.blocks.plain:
            return [Drawn(velocity) for velocity in (self.split or self.family).forward(work.items)]
        if self.split is None:
            found = self.stacks.forward(self.family, work.items, work.blocks, work.given)
        else:
            found = self.split.partly(self.stacks, work.items, work.homes, work.blocks, work.given)
        return [Drawn(*each) for each in zip(*found, strict=True)]

    # --------------------------------------------------------------------- what is kept, and where
    def home(self, row: int, branch: int) -> int:
        """The place along `cfg` of the ranks that keep what forwards of a row's branch leave: the
        branches of a row are on different ones, as far as there are so many."""
        return (row + branch) % self.split.mesh.cfg.size if self.split else 0

    def keeps(self, home: int) -> bool:
        """Whether this is one of them."""
        return self.split is None or home == self.split.mesh.cfg.place

    def changes(self, pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> list[float]:
        """How far each first tensor lies from the second, relative to that; infinite where there
        are none. The same on all ranks, however the tensors are divided over them."""
        sums = torch.zeros(len(pairs), 2, dtype=torch.float64, device=self.device)
        for at, (new, old) in enumerate(pairs):
            if new is not None and old is not None:
                a, b = (self.split.own(x) if self.split else x for x in (new, old))
                sums[at] = torch.stack([(a - b).abs().double().sum(), b.abs().double().sum()])
        if self.split:
            sums = self.split.totals(sums)
        return [moved / size if size else math.inf for moved, size in sums.tolist()]

    def _expert(self, work: Work) -> str:
        return self.family.expert(work.items[0].request, work.items[0].timestep)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        self.syncs += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _rows(items: Sequence[Item]) -> str:
    """In words."""
    names = [*dict.fromkeys(item.request.row_id for item in items)]
    return f"row{'s' * (len(names) > 1)} {', '.join(names)}"
