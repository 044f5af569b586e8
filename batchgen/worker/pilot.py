"""The renderer of a pilot: draws its rows uncached, in step with each other, fits the strategies of
other rows to them, and leaves the tables in the run folder before the first row is published.

So a pilot that was cut off leaves either no table and no row, and is drawn anew, or all tables;
what is then left of its rows is drawn as any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from batchgen.caches.audit import twin_index
from batchgen.caches.pilots import FEWEST, MEASURED, PSNR, Judged, Pilot
from batchgen.caches.strategies import planned
from batchgen.caches.tables import Entry, Key, dump
from batchgen.durable import write_bytes_atomic
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Renderer, Sink, Snapshot, Source
from batchgen.errors import BatchgenError, ConfigError
from batchgen.failpoints import failpoint
from batchgen.media.cut import cut_to
from batchgen.media.quality import psnr
from batchgen.records import Audit, Rendered, RowStats
from batchgen.request import Bucket, Request

log = logging.getLogger(__name__)
WINDOW = 64  # rows asked of the source at once


class _Told(BatchgenError):
    """The pilot is told to end."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the pilot has of a row, and spent on it."""

    snapshot: Snapshot  # behind its last step
    evaluations: float
    branches: int
    seconds: float  # its share of drawing
    fits: Audit  # its share of fitting


@dataclass(slots=True, eq=False)
class PilotRenderer:
    """In front of an engine: its first render is the pilot, which ends where the engine decodes the
    rows; any later one is the engine's own."""

    engine: Any  # batchgen.engine.engine.Engine, whose import is torch's
    pilots: Sequence[Pilot]
    model: str  # digest of the weights
    out: Path
    boundary: float | None = None  # where the second of two experts takes over
    done: bool = field(default=False, init=False)

    def render(
        self,
        source: Source,
        sink: Sink,
        *,
        stop: Callable[[], bool],
        moved: Callable[[], object],
        clock: Clock | None,
    ) -> EngineReport:
        """As `contract.Renderer`; `stop` during the pilot leaves its rows as they were."""
        clock = clock or Clock()
        if self.done:
            return self._engine(source, sink, stop, moved, clock)
        if not (rows := _all_of(source)):
            return EngineReport()
        drawn: dict[int, Drawn] = {}
        if not self.out.exists():  # an earlier start of this task may have come so far

            def step() -> None:
                moved()
                if stop():
                    raise _Told("")

            try:
                drawn = self._pilot(rows, step, clock)
            except _Told:
                return EngineReport(rows_abandoned=len(rows))
        self.done = True
        ready = _Ready(rows, source, sink, drawn, clock)
        return self._engine(ready, ready, stop, moved, clock)

    def _engine(
        self,
        source: Source,
        sink: Sink,
        stop: Callable[[], bool],
        moved: Callable[[], object],
        clock: Clock,
    ) -> EngineReport:
        engine: Renderer = self.engine
        return engine.render(source, sink, stop=stop, moved=moved, clock=clock)

    def _pilot(
        self, rows: Sequence[Request], step: Callable[[], object], clock: Clock
    ) -> dict[int, Drawn]:
        """By row_index. ConfigError where too few rows can be drawn."""
        drawn: dict[int, Drawn] = {}
        entries: list[Entry] = []
        there = {row.row_index: row for row in rows}
        for pilot in self.pilots:
            with clock.on("encode"):
                good = self._encodable([there[i] for i in pilot.rows if i in there])
            if len(good) < FEWEST:
                raise ConfigError(
                    f"a pilot of {pilot} needs {FEWEST} rows; {len(good)} can be drawn"
                )
            with clock.on("denoise"):
                made, more = FITS[pilot.strategy](self.engine, pilot, good, self.model, step)
            busy = {twin_index(i): each.seconds + each.fits.busy for i, each in more.items()}
            clock.share(busy)
            entries += [replace(e, key=replace(e.key, boundary=self.boundary)) for e in made]
            drawn |= more
            log.info("pilot of %s: %d tables from %d rows", pilot, len(made), len(good))
        failpoint("pilot.before_tables")
        self.out.parent.mkdir(exist_ok=True)
        write_bytes_atomic(self.out, dump(entries))
        failpoint("pilot.after_tables")
        return drawn

    def _encodable(self, rows: Sequence[Request]) -> list[Request]:
        """Those whose texts can be encoded; the others fail where all rows are drawn."""
        from batchgen.engine.fitting.lockstep import encoded

        return [row.request for row in encoded(self.engine.replica, rows) if row.error is None]


# ----------------------------------------------------------------------------------------- the fits
Fitted = tuple[Sequence[Entry], dict[int, Drawn]]  # rows that were not drawn whole are left out


def _fit_planned(
    engine: Any, pilot: Pilot, rows: Sequence[Request], model: str, step: Callable[[], object]
) -> Fitted:
    from batchgen.engine.fitting.calibrate import calibrate

    audited = max(0, pilot.audited - (len(pilot.rows) - len(rows)))
    ends = rows[len(rows) - audited :]
    begin = perf_counter()
    made = calibrate(
        engine.replica,
        rows,
        pilot.ratios,
        model=model,
        sized=pilot.sized,
        audited=audited,
        judge=lambda whole, near: _judged(engine.replica, ends, whole, near),
        moved=step,
    )
    return _fitted(pilot, rows, made, perf_counter() - begin)


def _fit_measured(
    engine: Any, pilot: Pilot, rows: Sequence[Request], model: str, step: Callable[[], object]
) -> Fitted:
    from batchgen.engine.fitting.calibrate_blocks import calibrate_blocks

    begin = perf_counter()
    first = rows[0]
    key = Key(
        strategy=pilot.strategy,
        model=model,
        solver=first.solver,
        sigma_shift=first.sigma_shift,
        num_steps=first.num_steps,
        bucket=str(first.bucket) if pilot.sized else None,
        branches=pilot.branches,
    )
    made = calibrate_blocks(engine.replica, rows, key, names=(pilot.strategy,), moved=step)
    return _fitted(pilot, rows, made, perf_counter() - begin)


def _fitted(pilot: Pilot, rows: Sequence[Request], made: Any, seconds: float) -> Fitted:
    """What a `Calibration` that took so long leaves."""
    from batchgen.engine.rows.snapshot import pack
    from batchgen.numerics.solver import History

    fits = (seconds - made.recorded_s) / len(rows)
    each = partial(
        Drawn,
        evaluations=pilot.num_steps * pilot.branches,
        branches=pilot.branches,
        seconds=made.recorded_s / len(rows),
        fits=Audit(busy=fits, seconds=fits, steps=made.evaluations / len(rows)),
    )
    return made.entries, {
        row.row_index: each(pack(row.num_steps, latents, History(), {}, 0.0))
        for row, latents in zip(rows, made.latents, strict=True)
    }


# By the name of the strategy: all of `caches.pilots.FITTED`.
FITS: Mapping[str, Callable[[Any, Pilot, Sequence[Request], str, Callable[[], object]], Fitted]] = {
    planned.NAME: _fit_planned,
    **dict.fromkeys(MEASURED, _fit_measured),
}


def _judged(
    replica: Any, rows: Sequence[Request], whole: Sequence[Any], near: Sequence[Any]
) -> Mapping[str, Any]:
    """What a table says of how far its rows are from themselves, in decoded frames."""
    if not rows:
        return {}
    pairs = zip(rows, whole, near, strict=True)
    found = [psnr(_frames(replica, row, b), _frames(replica, row, a)) for row, a, b in pairs]
    told = Judged(
        ratio=0.0,
        rows=len(found),
        p5=round(float(np.percentile(found, 5)), 2),
        mean=round(float(np.mean(found)), 2),
        worst=round(min(found), 2),
    )
    return {PSNR: {name: value for name, value in asdict(told).items() if name != "ratio"}}


def _frames(replica: Any, row: Request, latents: Any) -> np.ndarray:
    """As the media will have them."""
    from batchgen.engine.rows.flight import decoded_row

    replica.residency.use(*replica.residency.plan.components("decode"))
    pixels = decoded_row(replica.family, latents.to(replica.device), row)
    frames: np.ndarray = pixels.cpu().numpy()
    return frames if row.media_size is None else cut_to(frames, Bucket.parse(row.media_size))


# ------------------------------------------------------------------------------------- the delivery
def _all_of(source: Source) -> list[Request]:
    rows: list[Request] = []
    while taken := source.take(WINDOW):
        rows += taken
    return rows


@dataclass(slots=True, eq=False)
class _Ready:
    """Source and sink of the engine behind a pilot: rows come with their last step behind them, and
    are delivered with what the pilot spent on them."""

    rows: list[Request]
    source: Source
    sink: Sink
    drawn: Mapping[int, Drawn]
    clock: Clock

    def take(self, room: int) -> list[Request]:
        taken, self.rows = self.rows[:room], self.rows[room:]
        return taken

    def restore(self, request: Request) -> Snapshot | None:
        found = self.source.restore(request)  # a failpoint, or an earlier attempt's state
        mine = self.drawn.get(request.row_index)
        return found if mine is None else mine.snapshot

    def started(self, request: Request) -> None:
        self.sink.started(request)

    def finished(self, rendered: Rendered) -> None:
        stats = self._with_pilot(rendered.request, rendered.stats)
        self.sink.finished(replace(rendered, stats=stats))

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        self.sink.failed(request, error, self._with_pilot(request, stats))

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        self.sink.saved(request, snapshot)

    def _with_pilot(self, request: Request, stats: RowStats) -> RowStats:
        mine = self.drawn.get(request.row_index)
        if mine is None:
            return stats
        self.clock.merge(twin_index(request.row_index), request.row_index)
        each = mine.evaluations / mine.branches
        return replace(
            stats,
            stages=replace(stats.stages, denoise=stats.stages.denoise + mine.seconds),
            steps_computed=mine.evaluations,
            steps_computed_cond=each,
            steps_computed_uncond=mine.evaluations - each,
            steps_restored=0,
            audit=mine.fits,
        )
