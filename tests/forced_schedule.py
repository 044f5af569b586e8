"""What a schedule of 21 computed steps of 50 gains on a model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from batchgen.bench.cache.draw import Drawn, draw
from batchgen.engine.engine import Engine
from batchgen.request import Request

STEPS, COMPUTED = 50, 21


@dataclass(frozen=True)
class Forced:
    """Rows drawn in one stream, under the schedule and without it, in turns."""

    plain: list[Drawn]
    cached: list[Drawn]

    @property
    def due(self) -> float:
        """Evaluations that are computed without the schedule, by those with it."""
        return self.plain[0].share / self.cached[0].share

    @property
    def speedup(self) -> float:
        """Of everything from the first text to the last pixel: a median of ratios of seconds."""
        return median(
            a.seconds.wall / b.seconds.wall for a, b in zip(self.plain, self.cached, strict=True)
        )


def forced(engine: Engine, rows: Sequence[Request], turns: int) -> Forced:
    """Draw the rows so often each way, after a first short time that is not counted."""
    plain = [replace(row, num_steps=STEPS) for row in rows]
    cached = [
        replace(row, cache_strategy="planned", cache_ratio=1 - COMPUTED / STEPS) for row in plain
    ]
    draw(engine, [replace(row, num_steps=2) for row in rows])
    found = Forced([], [])
    for _ in range(turns):
        found.plain.append(draw(engine, plain))
        found.cached.append(draw(engine, cached))
    return found
