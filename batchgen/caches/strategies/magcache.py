"""magcache: skips while the blocks' contribution is known to stay nearly as large
(https://arxiv.org/abs/2506.09045).

The table has `ratios`: how large what all blocks add is at each step but the first, by how large it
was at the step before, measured once per model; of all branches alike, or a list of each. In a gap
they are multiplied, and what the product lies from 1 is added up; a step is skipped while the sum
is below `threshold` and the gap no longer than `k`. The first `retention` of the steps and the last
one are computed. Ratios for another number of steps are stretched to the nearest, as published.

All that is known before the row starts. A ratio gives the most computed steps up to the count it
names that some threshold and one of the gaps 4, 8, 16 or none come to; the published settings are
k 4, threshold 0.12, retention 0.2 for Wan 1.3B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from batchgen.caches.knobs import whole
from batchgen.caches.residual import Planned
from batchgen.caches.spread import spread
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Row, computed_count
from batchgen.errors import ConfigError
from batchgen.request import Range

RETENTION = 0.2
GAPS = (4, 8, 16, 1000)
THRESHOLDS = tuple(0.0005 * 1.06**place for place in range(180))  # up to about 17
FACTS = Facts(
    kind="adaptive",
    reuses="stack",
    keeps=Keeps(streams=1),
    table="needed",
    warmup=1,
    cooldown=1,
    params={"threshold": Range(0, 100), "k": Range(1, 1000), "retention": Range(0, 1)},
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    if row.ratio == 0:
        return tuple(range(row.steps))
    ratios = stretched(_ratios(row, table), row.steps)
    first = int(row.steps * row.params.get("retention", RETENTION))
    must = tuple(
        step <= first or step == row.steps - 1 or row.must(step) for step in range(row.steps)
    )
    gaps = (whole(row, "k", GAPS[0]),) if "k" in row.params else GAPS
    if "threshold" in row.params:
        return steps_by_rule(ratios, must, row.params["threshold"], gaps[0])
    return _within(ratios, must, gaps, computed_count(row.steps, row.ratio))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    """As they will be; without a table what the ratio promises."""
    if not table:
        return float(len(spread(row, computed_count(row.steps, row.ratio))))
    return float(len(computed(row, table)))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Planned(computed(row, table))


def steps_by_rule(
    ratios: Sequence[float], must: Sequence[bool], threshold: float, gap: int
) -> tuple[int, ...]:
    """The computed steps, by the published rule."""
    steps: list[int] = []
    product, error, skipped = 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        skipped += 1
        if must[step] or error >= threshold or skipped > gap:
            steps.append(step)
            product, error, skipped = 1.0, 0.0, 0
    return tuple(steps)


def stretched(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """For another number of steps: of each the nearest."""
    last = len(ratios) - 1
    return tuple(ratios[round(step * last / max(1, steps - 1))] for step in range(steps))


def _within(
    ratios: tuple[float, ...], must: tuple[bool, ...], gaps: tuple[int, ...], most: int
) -> tuple[int, ...]:
    """The most steps of those that thresholds come to, up to `most`; else the fewest."""
    found = _by_threshold(ratios, must, gaps)
    fitting = [steps for steps in found if len(steps) <= most]
    if not fitting:
        return min(found, key=lambda steps: (len(steps), steps))
    return max(fitting, key=lambda steps: (len(steps), steps))


@lru_cache(maxsize=64)
def _by_threshold(
    ratios: tuple[float, ...], must: tuple[bool, ...], gaps: tuple[int, ...]
) -> frozenset[tuple[int, ...]]:
    """All that thresholds come to, whatever the ratio asked for."""
    return frozenset(steps_by_rule(ratios, must, each, gap) for gap in gaps for each in THRESHOLDS)


def _ratios(row: Row, table: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Of the row's branch; of one without ratios of its own the first branch's. The first step
    has 1, as published."""
    if not table:
        raise ConfigError("cache_strategy: magcache needs the model's ratios, and there are none")
    found: Any = table["ratios"]
    if isinstance(found[0], (list, tuple)):
        found = found[row.branch] if row.branch < len(found) else found[0]
    return (1.0, *found)
