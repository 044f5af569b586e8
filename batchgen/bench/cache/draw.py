"""Draws rows by the engine, and says what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter, thread_time

import numpy as np

from batchgen.engine.clock import Clock
from batchgen.engine.contract import Renderer, Snapshot, never, unheard
from batchgen.records import Rendered, RowStats
from batchgen.request import Request


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one render."""

    wall: float  # of everything, decoding included
    denoise: float  # wall seconds of the steps
    thread: float  # CPU seconds of the thread that draws: without decoding, whatever else runs


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Rows in their order."""

    frames: list[np.ndarray]  # uint8
    stats: list[RowStats]
    seconds: Seconds

    @property
    def share(self) -> float:
        """Of the evaluations that were computed."""
        computed = sum(stats.steps_computed for stats in self.stats)
        return computed / sum(stats.steps_total for stats in self.stats)


def draw(engine: Renderer, rows: Sequence[Request]) -> Drawn:
    """All of them in one render; the error of the first that fails."""
    kept = _Kept(list(rows))
    wall, thread = perf_counter(), thread_time()
    report = engine.render(kept, kept, stop=never, moved=unheard, clock=Clock())
    seconds = Seconds(perf_counter() - wall, report.denoise_s, thread_time() - thread)
    done = [kept.done[row.row_id] for row in rows]
    return Drawn([one.frames for one in done], [one.stats for one in done], seconds)


@dataclass(slots=True, eq=False)
class _Kept:
    """Source and sink of a list."""

    left: list[Request]
    done: dict[str, Rendered] = field(default_factory=dict)

    def take(self, room: int) -> list[Request]:
        taken, self.left = self.left[:room], self.left[room:]
        return taken

    def restore(self, request: Request) -> Snapshot | None:
        return None

    def started(self, request: Request) -> None:
        """Nobody waits for it."""

    def finished(self, rendered: Rendered) -> None:
        self.done[rendered.request.row_id] = rendered

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        raise error

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        """A render that nothing stops saves nothing."""
