"""Engines that draw one row after the other: what they share. Needs no torch.

A background thread delivers finished rows. A row that fails is delivered as failed, and the others
go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Snapshot, Source
from batchgen.engine.rows.lane import Lane
from batchgen.records import Rendered, RowStats
from batchgen.request import Request


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What drawing a row came to: its frames, or where it was when it was stopped."""

    steps: int = 0  # taken over all attempts
    restored: int = 0  # of them by an earlier one
    frames: np.ndarray | None = None  # uint8 (frames, height, width, 3); None: it was stopped
    state: Mapping[str, np.ndarray] | None = None  # to go on from; None: it begins anew


class Drawer(Protocol):
    """An engine that draws one row at a time."""

    def draw(self, request: Request, snapshot: Snapshot | None, stop: Callable[[], bool]) -> Drawn:
        """Draw a row, from the snapshot if there is one. `stop` is asked between two steps; what is
        raised fails this row alone."""

    def stats(self, request: Request, drawn: Drawn, seconds: float) -> RowStats:
        """What is told of a row that took so many busy seconds here."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    request: Request
    drawn: Drawn
    seconds: float
    error: Exception | None


@dataclass(slots=True, eq=False)
class Singly:
    """One render."""

    engine: Drawer
    source: Source
    sink: Sink
    stop: Callable[[], bool]
    moved: Callable[[], object]
    clock: Clock
    finished: int = 0
    failed: int = 0
    saved: int = 0
    abandoned: int = 0
    steps: int = 0
    deliver_s: float = 0.0

    def run(self) -> EngineReport:
        """Draw every row of the source into the sink, as `Renderer.render` says."""
        begin, before = perf_counter(), self.clock.read()
        with Lane(self._deliver, overlap=True, moved=self.moved) as lane:
            while not self.stop():
                lane.check()
                requests = self.source.take(1)
                if not requests:
                    break
                ended = self._draw(requests[0])
                if ended is not None:
                    lane.put(ended)
        wall, now = perf_counter() - begin, self.clock.read()
        return EngineReport(
            rows_finished=self.finished,
            rows_failed=self.failed,
            rows_abandoned=self.abandoned,
            rows_saved=self.saved,
            wall_s=wall,
            denoise_s=now.denoise - before.denoise,
            deliver_s=self.deliver_s,
            idle_s=now.waiting - before.waiting,
            ticks=self.steps,
            forwards=self.steps,
            items=self.steps,
        )

    def _draw(self, request: Request) -> _Ended | None:
        """The row after its last step, or with its error; None if it was stopped before."""
        self.sink.started(request)
        drawn, error = Drawn(), None
        before = self.clock.read().busy
        with self.clock.on("denoise"):
            try:
                drawn = self.engine.draw(request, self.source.restore(request), self.stop)
            except Exception as caught:
                error = caught
        seconds = self.clock.read().busy - before
        self.clock.share({request.row_index: seconds})
        self.steps += drawn.steps - drawn.restored
        if error is not None or drawn.frames is not None:
            return _Ended(request, drawn, seconds, error)
        self.abandoned += 1
        if drawn.steps and drawn.state is not None:
            self.saved += 1
            self.sink.saved(request, Snapshot(drawn.steps, seconds, drawn.state))
        return None

    def _deliver(self, rows: Sequence[_Ended]) -> None:
        (row,) = rows
        begin = perf_counter()
        stats = self.engine.stats(row.request, row.drawn, row.seconds)
        if row.error is not None:
            self.failed += 1
            self.sink.failed(row.request, row.error, stats)
        else:
            assert row.drawn.frames is not None
            self.finished += 1
            self.sink.finished(Rendered(row.request, row.drawn.frames, stats))
        self.deliver_s += perf_counter() - begin
