"""Decodes that the ranks of a replica do together, each some of a row's tiles."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import cast

import torch.distributed as dist
from torch import Tensor

from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.wire import Axis
from batchgen.families.family import FamilyModel
from batchgen.families.tiling import DecodesTiles, TiledDecoder
from batchgen.request import Request


class _Everyone:
    """All ranks of a replica (`tiling.Ranks`)."""

    def __init__(self, mesh: Mesh) -> None:
        ranks = tuple(range(mesh.degrees.replica))
        group = dist.group.WORLD
        assert group is not None
        self.axis, self.wire = Axis("tiles", ranks, mesh.rank, group), mesh.wire
        self.size, self.place = len(ranks), mesh.rank

    def exchange(self, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return self.wire.exchange(self.axis, pieces, shapes)


class DividedDecodes:
    """Those of a family, on this rank. All ranks of the replica do the same ones, in the same
    order, on the thread that ticks."""

    def __init__(self, mesh: Mesh, family: FamilyModel, tiles: TiledDecoder) -> None:
        """`family` goes on decoding by itself; it has a `tiling`."""
        self.tiles, divided = tiles, cast(DecodesTiles, copy(family))
        assert divided.tiling is not None
        divided.tiling = self.tiling = replace(divided.tiling, ranks=_Everyone(mesh))
        self.family = cast(FamilyModel, divided)

    def takes(self, request: Request) -> bool:
        """Whether there is something to divide."""
        several = self.tiling.tiles_of(request.bucket, self.tiles.factor) > 1
        return several and not request.undecoded
