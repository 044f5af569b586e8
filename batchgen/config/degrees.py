"""The degrees of parallelism that a submission may have, and why it may not have the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from batchgen.config.schema import Auto, JobConfig, ParallelConfig
from batchgen.families.family import Capabilities

CFG = (1, 2)  # a row has one branch of guidance or two


@dataclass(frozen=True, slots=True)
class Degrees:
    """dp replicas; each row is drawn by cfg x ulysses x ring ranks."""

    dp: int = 1
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def replica(self) -> int:
        """Ranks that draw each row together."""
        return self.cfg * self.ulysses * self.ring

    @property
    def sequence(self) -> int:
        """Ranks that the tokens of an item are divided over."""
        return self.ulysses * self.ring

    @property
    def preference(self) -> tuple[int, int, int]:
        """Sorts the likeliest first: dp, then cfg, then ulysses, then the ring."""
        return -self.dp, -self.cfg, -self.ulysses

    def __str__(self) -> str:
        named = (("cfg", self.cfg), ("ulysses", self.ulysses), ("ring", self.ring))
        parts = [f"dp {self.dp}", *(f"{name} {degree}" for name, degree in named if degree > 1)]
        return " x ".join(parts)


@dataclass(frozen=True, slots=True)
class RuledOut:
    """Degrees that multiply to the ranks and may not be used all the same."""

    degrees: Degrees
    why: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What decides which degrees are legal, beside what the job asks for."""

    served: Capabilities
    heads: int
    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def degrees_of(parallel: ParallelConfig, bounds: Bounds) -> tuple[list[Degrees], list[RuledOut]]:
    """All degrees that multiply to the ranks and keep what the job gives by hand: the legal ones in
    the order of preference, and the others with the reason."""
    legal, out = [], []
    for degrees in sorted(_multiplying(parallel, bounds.ranks), key=lambda d: d.preference):
        why = _objection(degrees, parallel, bounds)
        if why is None:
            legal.append(degrees)
        else:
            out.append(RuledOut(degrees, why))
    return legal, out


def product_of(job: JobConfig) -> int:
    """Of the degrees that are given by hand."""
    parallel, found = job.system.parallel, 1
    for degree in (parallel.dp, parallel.cfg, parallel.ulysses, parallel.ring):
        found *= 1 if isinstance(degree, str) else degree
    return found


def _multiplying(parallel: ParallelConfig, ranks: int) -> Iterator[Degrees]:
    divisors = tuple(n for n in range(1, ranks + 1) if ranks % n == 0)
    asked = (
        _asked(parallel.cfg, tuple(n for n in CFG if n in divisors)),
        _asked(parallel.ulysses, divisors),
        _asked(parallel.ring, divisors),
    )
    for cfg, ulysses, ring in product(*asked):
        replica = cfg * ulysses * ring
        if ranks % replica == 0 and parallel.dp in ("auto", ranks // replica):
            yield Degrees(ranks // replica, cfg, ulysses, ring)


def _asked(degree: int | Auto, choices: tuple[int, ...]) -> tuple[int, ...]:
    return choices if isinstance(degree, str) else (degree,)


def _objection(degrees: Degrees, parallel: ParallelConfig, bounds: Bounds) -> str | None:
    for name in ("cfg", "ring"):
        served: tuple[int, ...] = getattr(bounds.served, name)
        if getattr(degrees, name) not in served:
            return f"of {name} the model has {', '.join(map(str, served))}"
    if not _may(degrees.ulysses, bounds):
        return f"of ulysses the model has up to {min(max(bounds.served.ulysses), bounds.heads)}"
    if parallel.attention_op == "xfuser" and bounds.heads % degrees.ulysses:
        return f"xfuser pads no heads, and {degrees.ulysses} does not divide {bounds.heads}"
    small, large = sorted((degrees.replica, bounds.ranks_per_node))
    if large % small:
        return (
            f"rows are drawn by whole nodes of {bounds.ranks_per_node} ranks or equal parts of one"
        )
    return _capped(degrees, parallel, bounds)


def _may(ulysses: int, bounds: Bounds) -> bool:
    """Whether `auto` may take it: heads that it does not divide are padded."""
    most = max(bounds.served.ulysses)
    return ulysses in bounds.served.ulysses or ulysses <= min(most, bounds.heads)


def _capped(degrees: Degrees, parallel: ParallelConfig, bounds: Bounds) -> str | None:
    """With `up_limit`, Ulysses has the most ranks that it may, and the ring has the rest."""
    cap = parallel.up_limit
    if cap is None:
        return None
    possible = [n for n in range(1, cap + 1) if degrees.sequence % n == 0]
    most = max(n for n in possible if _may(n, bounds))
    if degrees.ulysses == most:
        return None
    return f"system.parallel.up_limit={cap} makes it ulysses {most}"
