"""planned: which steps are computed is known before the row starts, and a row crosses each gap
between them by an update that was fitted for it.

Nothing is decided on the way and nothing depends on the rows beside it: a row has fewer ticks. With
no fit for its settings it computes steps of a fixed density and goes from one to the next by the
solver's own update. How fits are made: `batchgen.caches.fitting`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp
from typing import Any, TypeAlias

from batchgen.caches.strategy import Facts, Keeps, Row, computed_count

NAME = __name__.rpartition(".")[2]
FACTS = Facts(
    kind="planned", reuses="path", keeps=Keeps(latents=4), table="used", warmup=0, cooldown=0
)

# Of the newest latents and of each difference to older ones; of each branch's velocity, by age.
Coefs: TypeAlias = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, slots=True)
class Path:
    """The steps that a row computes, and the fitted leap from each to the next one; no leaps where
    the solver's own update crosses the gaps."""

    steps: tuple[int, ...]
    leaps: tuple[Coefs, ...] = ()


def path(row: Row, table: Mapping[str, Any] | None) -> Path:
    """The row's way through its steps; a table that was fitted for others is not used."""
    count = max(computed_count(row.steps, row.ratio), len(_must(row)))
    if table is None or row.ratio == 0 or not _fitted(row, table, count):
        return Path(spread(row.steps, count, _must(row)))
    leaps = tuple(
        (tuple(states), tuple(tuple(age) for age in ages)) for states, ages in table["leaps"]
    )
    return Path(tuple(table["steps"]), leaps)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The steps of its path."""
    return path(row, table).steps


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    """Exactly as many evaluations as its path has steps."""
    return float(len(computed(row, table)))


def _must(row: Row) -> tuple[int, ...]:
    return tuple(step for step in range(row.steps) if row.must(step))


def _fitted(row: Row, table: Mapping[str, Any], count: int) -> bool:
    """Whether the fit is of as many steps, among them all that must be computed, and begins anew
    where the row does."""
    steps = table["steps"]
    return (
        len(steps) == count
        and steps[-1] < row.steps
        and set(_must(row)) <= set(steps)
        and tuple(table["starts"]) == row.starts
    )


@lru_cache(maxsize=1024)
def spread(steps: int, count: int, must: tuple[int, ...]) -> tuple[int, ...]:
    """`count` steps, those of `must` among them, the others at equal parts of `_density`."""
    free = [step for step in range(steps) if step not in set(must)]
    wanted = count - len(must)
    weights = [_density((step + 0.5) / steps) for step in free]
    taken: list[int] = []
    behind, whole = 0.0, sum(weights)
    for place, weight in enumerate(weights):
        behind += weight
        left = len(free) - place  # too few are left to pass one over
        due = behind / whole * wanted >= len(taken) + 1 - 1e-9
        if len(taken) < wanted and (due or left <= wanted - len(taken)):
            taken.append(free[place])
    return tuple(sorted((*must, *taken)))


def _density(u: float) -> float:
    """Of computed steps at the share `u` of the way: dense at the start and at the very end. On the
    embedded model within 3 dB of a searched schedule where half or more are computed; the power
    flattens it, without which few steps leave gaps that are too wide."""
    return float((1 + 9 * exp(-u / 0.2) + 6 * exp(-(1 - u) / 0.07)) ** 0.75)
