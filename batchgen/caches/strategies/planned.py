"""planned: which steps are computed is known before the row starts; here spread evenly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.caches.strategy import Facts, Row, computed_count

FACTS = Facts(kind="planned", reuses="path", table="used", warmup=0, cooldown=0)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    """As many steps as the ratio leaves, with those that must be computed."""
    must = {step for step in range(row.steps) if row.must(step)}
    free = [step for step in range(row.steps) if step not in must]
    wanted = max(0, computed_count(row.steps, row.ratio) - len(must))
    taken = {free[i * len(free) // wanted] for i in range(min(wanted, len(free)))}
    return tuple(sorted(must | taken))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    return float(len(computed(row, table)))
