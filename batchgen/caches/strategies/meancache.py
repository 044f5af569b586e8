"""meancache: fixed tables of computed steps, velocities carried on by their mean slope
(https://github.com/UnicomAI/MeanCache).

How far the average velocity of the last few steps lies from the one at their start (the published
JVP) says how the velocity changes:

    v = v_last - (v_start - average) / (sigma_end - sigma_start) * (sigma_next - sigma)

`v_last` and `v_start` may be predictions. Published, the average is the way of the latents by that
of sigma. Under Euler steps that is the mean of the velocities taken, which is what is used here:
under a multistep solver the latents' way holds its extrapolation too, which then feeds on itself.
Models of diffusion have slopes along the angle of their noise, which then stands for sigma.

The published tables are for 50 steps. For other numbers they are scaled: each computed step keeps
its place between the first and the last. Of those the largest is taken that the ratio allows, or
the smallest if none is small enough. `fresh_steps` names a table, `use_jvp` 0 reuses `v_last`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchgen.caches.knobs import whole
from batchgen.caches.memory import Recent
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Row, Tensor, computed_count
from batchgen.errors import ConfigError
from batchgen.request import Range


@dataclass(frozen=True, slots=True)
class Fresh:
    """Computed steps of 50, and over how many steps the average is taken in the gap behind one
    (one step where it is not said)."""

    steps: tuple[int, ...]
    spans: Mapping[int, int] = field(default_factory=dict)

    def scaled(self, count: int) -> Fresh:
        """For another number of steps."""
        place = {step: (step * (count - 1) * 2 + 49) // 98 for step in self.steps}
        spans = {place[step]: self.spans.get(step, 1) for step in self.steps}
        return Fresh(tuple(sorted(spans)), spans)

    def span(self, step: int) -> int:
        """Of the average at a step that is not computed."""
        return self.spans[max(fresh for fresh in self.steps if fresh < step)]


TABLES = {
    10: Fresh((0, 1, 3, 7, 14, 21, 28, 35, 42, 49), {1: 2, 42: 4}),
    17: Fresh((*range(9), 10, 17, 24, 31, 38, 45, 48, 49), {8: 2, 45: 4}),
    25: Fresh((*range(17), 24, 32, 40, 43, 45, 47, 48, 49), {40: 5, 43: 5, 45: 5}),
    30: Fresh(
        (*range(20), 24, 28, 32, 36, 40, 43, 45, 47, 48, 49),
        {40: 5, 43: 5, 45: 5},  # those of 25: none are published
    ),
}
FACTS = Facts(
    kind="adaptive",
    reuses="output",
    keeps=Keeps(latents=5),
    warmup=0,
    cooldown=0,
    params={"fresh_steps": Range(min(TABLES), max(TABLES)), "use_jvp": Range(0, 1)},
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    return _with_must(row, _fresh(row))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    branch(row, table)  # raises for knobs that it cannot use
    return float(len(computed(row, table)))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    if whole(row, "use_jvp", 1) == 0:
        return Recent(computed(row, table))
    return Carried(row, computed(row, table), _fresh(row))


class Carried(Recent):
    """A branch that carries its velocity on by the mean slope of the last steps."""

    def __init__(self, row: Row, steps: Collection[int], fresh: Fresh) -> None:
        super().__init__(steps, keep=max(fresh.spans.values()))
        self._ways = row.ways
        self._fresh = fresh

    def predict(self, step: int, latents: Tensor) -> Tensor:
        taken = [(at, value) for at, (value,) in self._past(step)][-self._fresh.span(step) :]
        (start, v_start), (_, v_last) = taken[0], taken[-1]
        shares = [self._way(at, at + 1) / self._way(start, step) for at, _ in taken]
        average = sum(share * value for share, (_, value) in zip(shares, taken, strict=True))
        ahead = self._way(step, step + 1) / self._way(start, step)
        predicted = v_last - ahead * (v_start - average)
        self._remember(step, predicted)
        return predicted

    def _way(self, start: int, end: int) -> float:
        """Of sigma between two steps, or of its angle."""
        return self._ways[end] - self._ways[start]


def _fresh(row: Row) -> Fresh:
    """The row's table, scaled to its steps."""
    if "fresh_steps" in row.params:
        named = whole(row, "fresh_steps", 25)
        if named not in TABLES:
            legal = ", ".join(map(str, TABLES))
            raise ConfigError(f"fresh_steps {named} is not one of {legal}")
        return TABLES[named].scaled(row.steps)
    tables = [table.scaled(row.steps) for table in TABLES.values()]
    tables.sort(key=lambda table: len(_with_must(row, table)))
    budget = computed_count(row.steps, row.ratio)
    return [tables[0], *(t for t in tables if len(_with_must(row, t)) <= budget)][-1]


def _with_must(row: Row, fresh: Fresh) -> tuple[int, ...]:
    must = (step for step in range(row.steps) if row.must(step))
    return tuple(sorted({*fresh.steps, *must}))
