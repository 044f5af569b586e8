"""Audited rows: each is drawn beside its twin, the same row without a cache, and compared with it.

Between the engine and the worker, for one render. The engine draws row and twin as any two rows;
the worker hears of the row alone, when both have come to their end. So a twin has no line in the
journal and no state: after a death or a drain it is drawn again with its row.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from batchgen.caches.audit import has_twin, twin_index, twin_of
from batchgen.engine.clock import Clock
from batchgen.engine.contract import Sink, Snapshot, Source
from batchgen.media.cut import cut_to
from batchgen.media.quality import psnr, ssim
from batchgen.records import Audit, Rendered, RowStats
from batchgen.request import Bucket, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Undrawn:
    """A row or a twin that failed."""

    error: Exception
    stats: RowStats


@dataclass(slots=True, eq=False)
class Pair:
    """A row and its twin on their way."""

    request: Request  # the row's
    begun: bool = False
    row: Rendered | Undrawn | None = None  # None: not at its end yet
    twin: Rendered | Undrawn | None = None


class Twins:
    """Source and sink of an engine, in front of a worker's own. Of every `every` rows with a cache
    one is audited."""

    def __init__(self, source: Source, sink: Sink, every: int, clock: Clock) -> None:
        self._source, self._sink, self._every, self._clock = source, sink, every, clock
        self._ahead: list[Request] = []  # taken from the source, not by the engine yet
        self._pairs: dict[int, Pair] = {}  # by the row's index

    # ----------------------------------------------------------------------- as the engine's source
    def take(self, room: int) -> list[Request]:
        """The next rows, each audited one behind its twin: the twin takes longer."""
        if not self._ahead:
            for request in self._source.take(room):
                if has_twin(request, self._every):
                    self._pairs[request.row_index] = Pair(request)
                    self._ahead.append(twin_of(request))
                self._ahead.append(request)
        taken, self._ahead = self._ahead[:room], self._ahead[room:]
        return taken

    def restore(self, request: Request) -> Snapshot | None:
        return None if _is_twin(request) else self._source.restore(request)

    # ------------------------------------------------------------------------- as the engine's sink
    def started(self, request: Request) -> None:
        """A pair has begun when its first has: the row answers for what its twin does."""
        pair = self._pair_of(request)
        if pair is None:
            self._sink.started(request)
        elif not pair.begun:
            pair.begun = True
            self._sink.started(pair.request)

    def finished(self, rendered: Rendered) -> None:
        if (pair := self._pair_of(rendered.request)) is None:
            self._sink.finished(rendered)
        else:
            self._ended(pair, rendered.request, rendered)

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        if (pair := self._pair_of(request)) is None:
            self._sink.failed(request, error, stats)
        else:
            self._ended(pair, request, Undrawn(error, stats))

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        """A twin is not kept: beside a row that goes on elsewhere another is drawn."""
        if not _is_twin(request):
            self._sink.saved(request, snapshot)

    def settle(self) -> None:
        """The render is over: deliver the rows whose twins were dropped in flight."""
        for pair in [*self._pairs.values()]:
            if pair.row is not None:
                self._deliver(pair)

    # ------------------------------------------------------------------------------------ the pairs
    def _pair_of(self, request: Request) -> Pair | None:
        index = request.row_index
        return self._pairs.get(twin_index(index) if _is_twin(request) else index)

    def _ended(self, pair: Pair, request: Request, end: Rendered | Undrawn) -> None:
        if _is_twin(request):
            pair.twin = end
        else:
            pair.row = end
        if pair.row is not None and pair.twin is not None:
            self._deliver(pair)

    def _deliver(self, pair: Pair) -> None:
        """Hand the row on as it ended, with its audit."""
        row, request = pair.row, pair.request
        del self._pairs[request.row_index]
        busy = self._clock.merge(twin_index(request.row_index), request.row_index)
        audit = _compare(pair, busy)
        if isinstance(row, Rendered):
            self._sink.finished(replace(row, stats=replace(row.stats, audit=audit)))
        elif row is not None:
            self._sink.failed(request, row.error, replace(row.stats, audit=audit))


def _is_twin(request: Request) -> bool:
    return request.row_index < 0


def _compare(pair: Pair, busy: float) -> Audit:
    """The audit of a row; without figures where one of the two was not drawn."""
    row, twin, name = pair.row, pair.twin, pair.request.row_id
    if twin is None:
        log.warning("row %s is not audited: stopped before it was drawn without its cache", name)
        return Audit(busy=busy, seconds=busy)
    stages, steps = twin.stats.stages, twin.stats.steps_computed
    seconds = busy + stages.decode + stages.d2h
    if isinstance(twin, Undrawn):
        log.warning("row %s is not audited: without its cache it fails: %r", name, twin.error)
    elif isinstance(row, Rendered):
        begin = perf_counter()
        ours, theirs = _delivered(row, pair.request), _delivered(twin, pair.request)
        near = psnr(ours, theirs), ssim(ours, theirs)
        log.info("row %s: %.1f dB, SSIM %.4f from itself without its cache", name, *near)
        return Audit(*near, busy, seconds + perf_counter() - begin, steps)
    return Audit(busy=busy, seconds=seconds, steps=steps)


def _delivered(rendered: Rendered, request: Request) -> np.ndarray:
    """The frames as the media will have them."""
    size = request.media_size
    return rendered.frames if size is None else cut_to(rendered.frames, Bucket.parse(size))
