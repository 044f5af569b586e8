"""blockdance: the first blocks are left out at every other step of a window
(https://arxiv.org/abs/2503.15927).

A step of the window either computes everything and keeps the state behind block `boundary_block`,
or begins there from the state that was kept. The window is from `start` to `end` of the steps,
inside warm-up and cool-down: [20, 45) of 50 with 5 and 5. With `group_size` each so-many-th step of
it is whole. A ratio is the share of the window's steps that are not: 0.5 gives the published groups
of 2. What a row saves is therefore less than its ratio.

Published for block 20 of 30; a transformer of fewer blocks begins behind two thirds of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchgen.caches.blocks import Blocks
from batchgen.caches.knobs import whole
from batchgen.caches.residual import Planned
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Row
from batchgen.errors import ConfigError
from batchgen.request import Range

BOUNDARY, START, END = 20, 0.40, 0.95
FACTS = Facts(
    kind="partial",
    reuses="blocks",
    keeps=Keeps(streams=1),
    params={
        "boundary_block": Range(1, 1000),
        "group_size": Range(1, 1000),
        "start": Range(0, 1),
        "end": Range(0, 1),
    },
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The steps whose blocks all run."""
    first, behind = window(row)
    kept = [step for step in range(row.steps) if not first <= step < behind or row.must(step)]
    return tuple(sorted({*kept, *(first + at for at in _full(row, behind - first))}))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    full = len(computed(row, table))
    return full + (row.steps - full) * (1 - boundary(row) / row.layers)


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Begun(computed(row, table), boundary(row))


class Begun(Planned):
    """A branch whose forwards may begin behind a block."""

    def __init__(self, steps: Collection[int], boundary: int) -> None:
        super().__init__(steps)
        self._boundary = boundary

    def blocks(self, step: int, computed: bool) -> Blocks:
        return Blocks(state=self._boundary) if computed else Blocks(start=self._boundary)


def window(row: Row) -> tuple[int, int]:
    """Its first step, and the first one behind it."""
    first = max(row.warmup, round(row.steps * row.params.get("start", START)))
    behind = min(row.steps - row.cooldown, round(row.steps * row.params.get("end", END)))
    return first, max(first, behind)


def boundary(row: Row) -> int:
    """The block that shortened forwards begin with: there are blocks before and behind it."""
    found = whole(row, "boundary_block", min(BOUNDARY, max(1, row.layers * 2 // 3)))
    if row.layers > 1 and found >= row.layers:
        raise ConfigError(
            f"boundary_block {found} is not one of the model's {row.layers} blocks "
            f"that have others behind them; legal: 1 to {row.layers - 1}"
        )
    return found


def _full(row: Row, count: int) -> list[int]:
    """The places of whole steps in a window of so many."""
    if row.ratio == 0:
        return [*range(count)]
    if "group_size" in row.params:
        return [*range(0, count, whole(row, "group_size", 2))]
    passed = [int(at * (1 - row.ratio) + 1e-9) for at in range(count)]
    return [at for at in range(count) if at == 0 or passed[at] > passed[at - 1]]
