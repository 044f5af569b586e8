"""first_block: computes when the first block adds something else than before
(https://github.com/chengzeyi/ParaAttention).

The first block runs at every step. While what it adds is within `threshold` of what it added at the
last computed step, relatively, the blocks behind it are left out, and what they added then is added
again. Such a step counts as one block.

Published thresholds are 0.05 to 0.12; a ratio is mapped onto the line that gives 0.1 at 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.caches.blocks import Blocks
from batchgen.caches.knobs import ratio, threshold
from batchgen.caches.residual import Residual
from batchgen.caches.spread import spread
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Look, Row, Tensor, computed_count
from batchgen.request import Range

PER_RATIO = 0.2
FACTS = Facts(
    kind="probe",
    reuses="blocks",
    keeps=Keeps(streams=4),
    table="used",
    warmup=1,
    cooldown=1,
    params={"threshold": Range(0, 10)},
)
REST = Blocks(start=1, since=1)  # behind the probe, if it does not do


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    return tuple(range(row.steps)) if row.ratio == 0 else None


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    """A guess: what the ratio promises, and one block for each step that is not computed."""
    full = len(spread(row, computed_count(row.steps, ratio(row, table, PER_RATIO))))
    return full + (row.steps - full) / row.layers


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Probed(row, threshold(row, table, PER_RATIO))


class Probed(Residual):
    """A branch that decides by its first block."""

    def __init__(self, row: Row, threshold: float) -> None:
        super().__init__()
        self._row, self._threshold = row, threshold

    def computes(self, look: Look) -> bool:
        return self._row.must(look.step) or not look.change < self._threshold

    def blocks(self, step: int, computed: bool) -> Blocks:
        return REST

    def against(self) -> Tensor | None:
        return self._tensors.get("first")

    def note_probe(self, added: Tensor) -> None:
        self._tensors["first"] = added
