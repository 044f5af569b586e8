"""meancache: fixed tables of computed steps, velocities carried on by their mean slope
(https://github.com/UnicomAI/MeanCache).

Over the last few steps the latents moved by an average velocity; how far it lies from the velocity
at their start (the published JVP) says how the velocity changes:

    v = v_last - (v_start - average) / (sigma_end - sigma_start) * (sigma_next - sigma)

`v_last` and `v_start` may be predictions. The average is that of the guided velocity. It enters
each branch alike, and as the weights of guidance sum to one, what comes out of the guidance is the
published prediction.

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
from batchgen.caches.strategy import BranchCache, Facts, Row, Tensor, computed_count
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
    warmup=0,
    cooldown=0,
    params={"fresh_steps": Range(min(TABLES), max(TABLES)), "use_jvp": Range(0, 1)},
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    return _with_must(row, _fresh(row))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    return float(len(computed(row, table)))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    if whole(row, "use_jvp", 1) == 0:
        return Recent(computed(row, table))
    return Carried(row, computed(row, table), _fresh(row))


class Carried(Recent):
    """A branch that carries its velocity on by the mean slope of the last steps."""

    def __init__(self, row: Row, steps: Collection[int], fresh: Fresh) -> None:
        super().__init__(steps, keep=max(fresh.spans.values()))
        self._sigmas = row.sigmas
        self._fresh = fresh

    def note(self, step: int, latents: Tensor, value: Tensor) -> None:
        self._remember(step, latents, value)

    def predict(self, step: int, latents: Tensor) -> Tensor:
        past = self._past(step)
        start, (at_start, v_start) = past[-self._fresh.span(step) :][0]
        _, (_, v_last) = past[-1]
        way = self._sigmas[step] - self._sigmas[start]
        average = (latents - at_start) * (1 / way)
        ahead = (self._sigmas[step + 1] - self._sigmas[step]) / way
        value = v_last - (v_start - average) * ahead
        self._remember(step, latents, value)
        return value


def _fresh(row: Row) -> Fresh:
    """The row's table, scaled to its steps."""
    if "fresh_steps" in row.params:
        named = whole(row, "fresh_steps", 25)
        if named not in TABLES:
            legal = ", ".join(map(str, TABLES))
            raise ConfigError(f"cache_params: fresh_steps {named} is not one of {legal}")
        return TABLES[named].scaled(row.steps)
    tables = sorted((each.scaled(row.steps) for each in TABLES.values()), key=lambda t: t.steps)
    tables = sorted(tables, key=lambda fresh: len(_with_must(row, fresh)))
    budget = computed_count(row.steps, row.ratio)
    return [tables[0], *(t for t in tables if len(_with_must(row, t)) <= budget)][-1]


def _with_must(row: Row, fresh: Fresh) -> tuple[int, ...]:
    must = (step for step in range(row.steps) if row.must(step))
    return tuple(sorted({*fresh.steps, *must}))
