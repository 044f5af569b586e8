"""The engine of family `null`: every row takes its predicted time. Needs no torch.

A row hashes its seed once a step and turns the last digest into noise, so a row resumed from a
wrong state gives other pixels. `BATCHGEN_NULL_SLOW="node2=2.0,node3=1.5"` makes hosts slow (`*`:
all others; 0: rows take no time).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from batchgen.config.schema import SystemConfig
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Snapshot, Source, never, unheard
from batchgen.engine.lane import Lane
from batchgen.errors import ConfigError
from batchgen.records import Rendered, RowStats, StageSeconds
from batchgen.request import Request

SLOW = "BATCHGEN_NULL_SLOW"


@dataclass(slots=True, eq=False)
class _Row:
    """A row in flight."""

    request: Request
    step: int = 0
    restored: int = 0  # steps taken by an earlier attempt
    seconds: float = 0.0
    digest: bytes = b""
    error: Exception | None = None


def renderer(system: SystemConfig, host: str) -> NullEngine:
    """The family's engine for a rank on `host`."""
    return NullEngine(system, host)


class NullEngine:
    """An engine without a model (`batchgen.engine.contract.Renderer`); one row in flight."""

    def __init__(self, system: SystemConfig, host: str) -> None:
        """ConfigError if the variable that makes hosts slow cannot be read."""
        self.determinism = system.determinism
        self.pace = pace_of(host, os.environ.get(SLOW, ""))

    def render(
        self,
        source: Source,
        sink: Sink,
        *,
        stop: Callable[[], bool] = never,
        moved: Callable[[], object] = unheard,
        clock: Clock | None = None,
    ) -> EngineReport:
        """Render one row after the other; a background thread delivers finished rows."""
        return _Render(self, source, sink, stop, moved, clock or Clock()).run()


@dataclass(slots=True, eq=False)
class _Render:
    engine: NullEngine
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
        begin, before = perf_counter(), self.clock.read()
        with Lane(self._deliver, overlap=True, moved=self.moved) as lane:
            while not self.stop():
                lane.check()
                requests = self.source.take(1)
                if not requests:
                    break
                row = self._draw(requests[0])
                if row is not None:
                    lane.put(row)
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

    def _draw(self, request: Request) -> _Row | None:
        """The row after its last step, or with its error; None if it was stopped before."""
        self.sink.started(request)
        row = _Row(request, digest=request.seed.to_bytes(8, "big"))
        before = self.clock.read().busy
        with self.clock.on("denoise"):
            try:
                self._restore(row)
                done = self._walk(row)
            except Exception as error:
                row.error, done = error, True
        row.seconds = self.clock.read().busy - before
        self.clock.share({request.row_index: row.seconds})
        if done:
            return row
        self.abandoned += 1
        if row.step:
            self.saved += 1
            state = {"digest": np.frombuffer(row.digest, np.uint8)}
            self.sink.saved(request, Snapshot(row.step, row.seconds, state))
        return None

    def _restore(self, row: _Row) -> None:
        snapshot = self.source.restore(row.request)
        if snapshot is not None and "digest" in snapshot.arrays:
            row.step = row.restored = snapshot.step
            row.digest = snapshot.arrays["digest"].tobytes()

    def _walk(self, row: _Row) -> bool:
        """Take the remaining steps; False if stopped before the last."""
        step_s = row.request.cost_s / row.request.num_steps * self.engine.pace
        due = time.monotonic()
        while row.step < row.request.num_steps:
            if self.stop():
                return False
            due += step_s  # counted from the last due time, so late wake-ups do not add up
            time.sleep(max(0.0, due - time.monotonic()))
            row.digest = hashlib.sha256(row.digest).digest()
            row.step += 1
            self.steps += 1
        return True

    def _deliver(self, rows: Sequence[_Row]) -> None:
        (row,) = rows
        begin = perf_counter()
        if row.error is not None:
            self.failed += 1
            self.sink.failed(row.request, row.error, self._stats(row))
        else:
            self.finished += 1
            self.sink.finished(Rendered(row.request, _noise(row), self._stats(row)))
        self.deliver_s += perf_counter() - begin

    def _stats(self, row: _Row) -> RowStats:
        computed = row.step - row.restored
        step_s = row.seconds / computed if computed else 0.0
        branches = 1 + (row.request.guidance_scale > 1.0)
        return RowStats(
            stages=StageSeconds(denoise=row.seconds),
            steps_total=row.request.num_steps * branches,
            steps_computed=float(computed * branches),
            steps_restored=row.restored,
            step_p50_s=step_s,
            step_p95_s=step_s,
            batch_size_mean=1.0,
            determinism=self.engine.determinism,
            attention_kernel="none",
            device="cpu",
        )


def _noise(row: _Row) -> np.ndarray:
    request = row.request
    dice = np.random.default_rng(int.from_bytes(row.digest, "big"))
    shape = (request.num_frames, request.height, request.width, 3)
    return dice.integers(0, 256, shape, np.uint8)


def pace_of(host: str, text: str) -> float:
    """Factor by which rows on `host` take longer than predicted, from `host=factor,...`."""
    paces: dict[str, float] = {}
    for entry in filter(None, text.split(",")):
        name, _, factor = entry.partition("=")
        try:
            paces[name.strip()] = float(factor)
        except ValueError:
            paces[name.strip()] = -1.0
        if not 0 <= paces[name.strip()] < float("inf"):
            raise ConfigError(f"{SLOW}: {entry!r} is not HOST=FACTOR with a factor >= 0")
    return paces.get(host, paces.get("*", 1.0))
