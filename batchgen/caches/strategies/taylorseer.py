"""taylorseer: velocities extrapolated over the step index (https://arxiv.org/abs/2503.06923).

Published per module of the network; here on the velocity, which needs no hook and 2 or 3 tensors a
branch. Order 1 is the published formula. The published order 2 takes the difference of two values
for the derivative at the newer one, which is wrong by half a gap; here it is the parabola through
the last three computed values, so that a polynomial up to the order is predicted exactly.

A ratio gives exactly the count of computed steps it names, spread evenly. `fresh_threshold` gives
the published rule instead: each so-many-th step is computed after the warm-up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchgen.caches.knobs import whole
from batchgen.caches.memory import Recent
from batchgen.caches.spread import spread
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Row, Tensor, computed_count
from batchgen.request import Range

FACTS = Facts(
    kind="adaptive",
    reuses="output",
    keeps=Keeps(latents=3),
    warmup=3,
    cooldown=1,
    params={
        "order": Range(1, 2),
        "first_enhance": Range(1, 1000),
        "fresh_threshold": Range(1, 1000),
    },
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    if "fresh_threshold" not in row.params or row.ratio == 0:
        return spread(row, computed_count(row.steps, row.ratio))
    return _each(row, whole(row, "fresh_threshold", 1), whole(row, "first_enhance", 1))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    branch(row, table)  # raises for knobs that it cannot use
    return float(len(computed(row, table)))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Extrapolated(computed(row, table), whole(row, "order", 1))


class Extrapolated(Recent):
    """A branch that predicts by the polynomial through its last computed values."""

    def __init__(self, steps: Collection[int], order: int) -> None:
        super().__init__(steps, keep=order + 1)

    def predict(self, step: int, latents: Tensor) -> Tensor:
        *older, (newest, (value,)) = self._past(step)
        predicted = value
        for i, (at, (earlier,)) in enumerate(older):
            others = [*(s for j, (s, _) in enumerate(older) if j != i), newest]
            weight = 1.0
            for other in others:  # Lagrange
                weight *= (step - other) / (at - other)
            predicted = predicted + weight * (earlier - value)
        return predicted


def _each(row: Row, interval: int, first: int) -> tuple[int, ...]:
    """The published rule: a step is computed when `interval` have passed since the last one."""
    steps: list[int] = []
    for step in range(row.steps):
        if row.must(step) or step < first or step - steps[-1] >= interval:
            steps.append(step)
    return tuple(steps)
