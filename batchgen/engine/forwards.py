"""From a pack of items to velocities: one forward, or item by item after an error; divided over the
ranks of a replica that has more than one."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.kernels import KernelWatch
from batchgen.engine.packs import Packer
from batchgen.engine.parallel.split import Split
from batchgen.engine.team import Team
from batchgen.failpoints import failpoint
from batchgen.families.family import FamilyModel, Item


class Forwards:
    """Runs packs on one device and counts."""

    def __init__(
        self,
        family: FamilyModel,
        packer: Packer,
        device: torch.device,
        team: Team,
        split: Split | None,
    ) -> None:
        self.family = family
        self.team = team
        self.split = split
        self.packer = packer
        self.device = device
        self.kernels = KernelWatch(device)
        self.count = 0
        self.items = 0
        self.syncs = 0

    def run(self, items: list[Item]) -> Sequence[Tensor | Failed]:
        """A velocity or an error for each item; an item that makes the forward raise fails alone,
        since the pack is run again one by one. In a divided forward others wait for this rank: any
        error is ReplicaFailed."""
        if self.split is not None:
            with self.team.together(lambda: _rows(items)):
                failpoint(f"forward.{self.team.rank}")
                return self._timed(items)
        result = attempt(lambda: self._timed(items))
        if not isinstance(result, Failed):
            return result
        if len(items) == 1:
            return [result]
        if isinstance(result.error, torch.OutOfMemoryError):
            self.packer.shrink(items[0].request.bucket, len(items))
        alone = [attempt(lambda item=item: self._timed([item])[0]) for item in items]  # type: ignore[misc]
        return alone

    def _timed(self, items: list[Item]) -> list[Tensor]:
        bucket = items[0].request.bucket
        each = -(-len(items) // self.packer.ranks)  # items of each rank's forward
        watched = self.kernels.name(bucket) != ""  # to watch takes time
        measuring = watched and self.team.leads and self.packer.measuring(bucket, each)
        if measuring:
            self._wait()
        begin = perf_counter()
        velocities = self.kernels.run(bucket, lambda: self._forward(items))
        self.count += 1
        self.items += len(items)
        if measuring:
            self._wait()
            self.packer.observe(bucket, each, perf_counter() - begin)
        return velocities

    def _forward(self, items: list[Item]) -> list[Tensor]:
        return (self.split or self.family).forward(items)

    def _wait(self) -> None:
        self.syncs += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _rows(items: Sequence[Item]) -> str:
    """In words."""
    names = [*dict.fromkeys(item.request.row_id for item in items)]
    return f"row{'s' * (len(names) > 1)} {', '.join(names)}"
