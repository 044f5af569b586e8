"""uniform: computed steps spread evenly, the last velocity reused.

The plain twin of every other strategy: what a share of skipped evaluations costs if nobody is
clever about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.caches.memory import Recent
from batchgen.caches.spread import spread
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Row, computed_count

FACTS = Facts(kind="adaptive", reuses="output", keeps=Keeps(latents=1), warmup=0, cooldown=1)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    return spread(row, computed_count(row.steps, row.ratio))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    return float(len(computed(row, table)))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Recent(computed(row, table))
