"""Draws every policy on the same rows, block by block, each block first without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from batchgen.bench.cache.draw import Drawn, draw
from batchgen.bench.cache.policies import UNCACHED, Policy, drawn_by
from batchgen.bench.cache.samples import Block, Pair, Sample, Samples, Speed
from batchgen.bench.cache.tune import threshold_for
from batchgen.engine.engine import Engine
from batchgen.errors import ConfigError
from batchgen.media.quality import psnr, ssim
from batchgen.request import Request
from batchgen.tiny.score import score

KNOB = "threshold"


@dataclass(frozen=True, slots=True)
class Cell:
    """A policy at a budget."""

    policy: Policy
    ratio: float

    def at(self, threshold: float) -> Cell:
        """With this threshold instead of one that the ratio gives."""
        knobs = dict(self.policy.knobs) | {KNOB: threshold}
        return replace(self, policy=replace(self.policy, knobs=knobs))


PLAIN = Cell(Policy(UNCACHED), 0.0)
AGAIN = Cell(Policy(f"{UNCACHED}, again"), 0.0)  # the floor: what a repetition alone changes


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """An engine, the name of its model in tables, and how many rows it has in flight."""

    engine: Engine
    model: str
    in_flight: int

    def request(self, cell: Cell, row: Request) -> Request:
        """The row as the cell draws it."""
        if cell in (PLAIN, AGAIN):
            return row
        return drawn_by(cell.policy, row, cell.ratio, self.engine.replica.tables, self.model)

    def knows(self, cell: Cell, row: Request) -> bool:
        """Whether a table says which threshold a ratio is for the cell."""
        digest = self.request(cell, row).cache_table
        tables = self.engine.replica.tables
        measured = bool(digest) and "thresholds" in tables.by_digest(digest).content
        return measured and cell.policy.ends is None  # it was measured with the usual ends

    def draw(self, cell: Cell, rows: Sequence[Request]) -> Drawn:
        return draw(self.engine, [self.request(cell, row) for row in rows])


def lacking(bench: Bench, policies: Sequence[Policy], row: Request) -> dict[str, str]:
    """Policies that cannot draw the row, and why."""
    found = {}
    for policy in policies:
        try:
            bench.request(Cell(policy, 0.5), row)
        except ConfigError as error:
            found[policy.name] = str(error)
    return found


# --------------------------------------------------------------------------------------- thresholds
def tuned(
    bench: Bench,
    policies: Sequence[Policy],
    ratios: Sequence[float],
    rows: Sequence[Request],
    kept: Samples,
) -> Iterator[Cell]:
    """Every policy at every ratio. An adaptive one of whose thresholds no table says anything gets
    that of its samples so far, or else the one that keeps to the budget on these rows."""
    for policy in policies:
        measure = _shares(bench, policy, rows)
        for ratio in ratios:
            cell = Cell(policy, ratio)
            if policy.tunable and not bench.knows(cell, rows[0]):
                known = kept.threshold(policy.name, ratio)
                cell = cell.at(known or threshold_for(1 - ratio, measure))
            yield cell


def _shares(bench: Bench, policy: Policy, rows: Sequence[Request]) -> Callable[[float], float]:
    """The share of evaluations by the threshold, beside which a ratio counts for nothing."""

    @cache
    def share(threshold: float) -> float:
        return bench.draw(Cell(policy, 0.5).at(threshold), rows).share

    return share


# ------------------------------------------------------------------------------------------- blocks
def measure(
    bench: Bench,
    cells: Sequence[Cell],
    rows: Sequence[Request],
    size: int,
    kept: Samples,
    told: Callable[[str], object],
) -> None:
    """Draw what is not in `kept` yet, `size` rows under every policy before the next ones."""
    for number, first in enumerate(range(0, len(rows), size)):
        missing = [
            cell
            for cell in (PLAIN, *cells, AGAIN)
            if not kept.has(cell.policy.name, cell.ratio, number)
        ]
        if not missing:
            continue
        uncached = _both_ways(bench, PLAIN, rows[first : first + size])
        for cell in missing:
            kept.add(_block(bench, cell, number, uncached))
            told(f"rows from {first + 1} on: {cell.policy.name} {cell.ratio:g}")


@dataclass(frozen=True, slots=True, eq=False)
class _Both:
    """Rows that were drawn packed, and the first of them alone."""

    rows: Sequence[Request]
    packed: Drawn
    alone: Drawn


def _both_ways(bench: Bench, cell: Cell, rows: Sequence[Request]) -> _Both:
    return _Both(rows, bench.draw(cell, rows), bench.draw(cell, rows[:1]))


def _block(bench: Bench, cell: Cell, number: int, plain: _Both) -> Block:
    drawn = plain if cell == PLAIN else _both_ways(bench, cell, plain.rows)
    in_flight = min(len(plain.rows), bench.in_flight)
    return Block(
        policy=cell.policy.name,
        ratio=cell.ratio,
        block=number,
        threshold=cell.policy.knobs.get(KNOB),
        alone=Pair(_speed(1, plain.alone), _speed(1, drawn.alone)),
        packed=Pair(_speed(in_flight, plain.packed), _speed(in_flight, drawn.packed)),
        same_alone=bool(np.array_equal(drawn.alone.frames[0], drawn.packed.frames[0])),
        samples=tuple(
            _sample(row, at, drawn.packed, plain.packed) for at, row in enumerate(plain.rows)
        ),
    )


def _speed(in_flight: int, drawn: Drawn) -> Speed:
    seconds, steps = drawn.seconds, sum(stats.steps_computed for stats in drawn.stats)
    return Speed(in_flight, seconds.denoise, seconds.wall, seconds.thread, steps)


def _sample(row: Request, at: int, drawn: Drawn, plain: Drawn) -> Sample:
    frames, reference, stats = drawn.frames[at], plain.frames[at], drawn.stats[at]
    return Sample(
        row=row.row_index,
        psnr=psnr(frames, reference),
        ssim=ssim(frames, reference),
        score=score(frames, row.prompt).fraction,
        computed=stats.steps_computed,
        total=plain.stats[at].steps_total,
        equal=bool(np.array_equal(frames, reference)),
    )
