"""teacache: computes when the timestep's embedding has moved far enough
(https://arxiv.org/abs/2411.19108).

The relative change of a signal from step to step goes through a polynomial that was fitted to the
change of the output, and is added up; at `threshold` the step is computed and the sum begins anew.
Until then what all blocks added at the last computed step is added again.

The table has the `polynomial`, highest power first, and the `signal` it was fitted to: `projected`,
`timestep`, or `embedded` (FLUX). Wan's are those that were published with the first five steps
computed, as they are here where nobody says how many ("ret steps"). Without a table the change
itself is added up, of `projected`.

A ratio gives the threshold by the table's `thresholds`; else between those of its `range`: Chitu's
are 0.08 to 0.35, for Wan 14B 0.04 to 0.20. Corrected: there a ratio of 0 still caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from batchgen.caches.knobs import ratio, threshold
from batchgen.caches.residual import Summing
from batchgen.caches.spread import spread
from batchgen.caches.strategy import (
    BranchCache,
    Facts,
    Keeps,
    Look,
    Row,
    SignalKind,
    Tensor,
    computed_count,
)
from batchgen.request import Range

RANGE = (0.08, 0.35)
FACTS = Facts(
    kind="adaptive",
    reuses="stack",
    keeps=Keeps(streams=1, vectors=6),
    signal="projected",
    table="needed",
    params={"threshold": Range(0, 10)},
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    return tuple(range(row.steps)) if row.ratio == 0 else None


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    """A guess: what the ratio promises, but no fewer than must be computed."""
    saved = ratio(row, _with_thresholds(table), RANGE[1])
    return float(len(spread(row, computed_count(row.steps, saved))))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    entry = table or {}
    return Embedded(
        row,
        threshold(row, _with_thresholds(table), RANGE[1]),
        entry.get("signal", "projected"),
        entry.get("polynomial", (1.0, 0.0)),
    )


class Embedded(Summing):
    """A branch that looks at the embedded timestep, or what the first block makes of it."""

    def __init__(
        self, row: Row, threshold: float, kind: SignalKind, polynomial: Sequence[float]
    ) -> None:
        super().__init__(row, threshold)
        self._kind, self._polynomial = kind, polynomial

    def signal(self, look: Look) -> Tensor:
        return look.signal(self._kind)

    def distance(self, change: float) -> float:
        return reduce(lambda sum, next: sum * change + next, self._polynomial, 0.0)


def _with_thresholds(table: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The table with a threshold for every ratio."""
    low, high = (table or {}).get("range", RANGE)
    return {"thresholds": [(1e-9, low), (1.0, high)]} | dict(table or {})
