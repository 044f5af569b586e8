"""One call of `Engine.render`: windows, admission, ticks.

Texts are encoded window by window. With all components resident the next window is encoded as soon
as the last row of this one has joined, so rows in flight are refilled without a pause; with one
component at a time a window is encoded, denoised and decoded to its end before the next begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

import torch

from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Source
from batchgen.engine.device import memory
from batchgen.engine.finish import Broken, Denoised, Finisher
from batchgen.engine.inflight import Flight, RowState
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.lane import Lane
from batchgen.engine.meter import RowMeter, Setting
from batchgen.engine.prompts import EncodedRow
from batchgen.engine.replica import Replica
from batchgen.engine.snapshot import pack
from batchgen.engine.solver import History
from batchgen.records import RankSeconds, Request

AUTO_WINDOW = {"resident": 8, "model": 64}  # small where encoding again is cheap: replicas share
AUTO_ROWS = 16  # most rows in flight: what a stopped worker loses


class Render:
    """The state of one render; `run` is called once."""

    def __init__(
        self,
        replica: Replica,
        source: Source,
        sink: Sink,
        stop: Callable[[], bool],
        moved: Callable[[], object],
        setting: Setting,
        clock: Clock,
    ) -> None:
        self.replica = replica
        self.source = source
        self.sink = sink
        self.stop = stop
        self.moved = moved
        self.clock = clock
        self.flight = Flight(replica.family, replica.packer, replica.device)
        self.finisher = Finisher(replica.family, sink, replica.device, setting)
        self.lane: Lane[Denoised | Broken] = Lane(
            self.finisher, overlap=replica.overlap, moved=moved
        )
        self.pending: deque[tuple[EncodedRow, RowMeter]] = deque()
        self.denoised: deque[Denoised] = deque()  # waits for the window's end in mode `model`
        self.exhausted = False
        self.stopping = False  # `stop` has said so
        self.windows = 0
        self.abandoned = 0
        self.saved = 0

    @property
    def resident(self) -> bool:
        return self.replica.residency.mode == "resident"

    def run(self) -> EngineReport:
        """Draw until the source is empty or `stop` is true."""
        before, spent = self._counters(), self.clock.read()
        begin = perf_counter()
        with self.lane:
            self._loop()
            self._decode_window()
        return self._report(before, spent, perf_counter() - begin)

    def _loop(self) -> None:
        while not self._stops():
            self.lane.check()
            if self._wants_window():
                self._open_window()
            self._admit()
            if self.flight.rows:
                self._tick()
            elif self.exhausted and not self.pending:
                return
        self.abandoned = len(self.flight.rows) + len(self.pending)
        self._save()

    def _stops(self) -> bool:
        self.stopping = self.stopping or self.stop()
        return self.stopping

    def _save(self) -> None:
        """Before anything slow: whoever stops a render may not wait for its end."""
        for state in [*self.flight.rows, *(job.state for job in self.denoised)]:
            if state.step > 0:
                history = History() if state.done else state.history  # of use to further steps
                snapshot = pack(state.step, state.latents, history, state.meter.busy)
                self.sink.saved(state.request, snapshot)
                self.saved += 1

    # ----------------------------------------------------------------------------------- windows
    def _wants_window(self) -> bool:
        if self.exhausted or self.pending:
            return False
        return self.resident or not self.flight.rows

    def _open_window(self) -> None:
        """Take and encode the next rows, when the window before is decoded."""
        self._decode_window()
        if self.stopping:
            return
        size = self.replica.system.batch.window
        room = AUTO_WINDOW[self.replica.residency.mode] if size == "auto" else size
        requests = self.source.take(room)
        if not requests:
            self.exhausted = True
            return
        self.windows += 1
        meters = [RowMeter() for _ in requests]
        if self.replica.prompts.needs_encoder(requests):
            self._use("text_encoder")
        with self.clock.on("encode"):
            rows = self.replica.prompts.encode(requests, self.moved)
        self.clock.share({row.request.row_index: row.seconds for row in rows})
        for row, meter in zip(rows, meters, strict=True):
            meter.note_texts(row)
            meter.waiting_since = perf_counter()
            self.pending.append((row, meter))
        self._use("transformer")

    def _use(self, component: str) -> None:
        """No row's seconds: it is moved for a window, however many rows that has."""
        with self.clock.on("move"):
            self.replica.residency.use(component)

    def _decode_window(self) -> None:
        """In mode `model`: bring the autoencoder in once and finish what the window denoised. It
        may take long: told to stop meanwhile, save what is not on its way to the decoder."""
        if not self.denoised:
            return
        self._use("vae")
        while self.denoised:
            if not self.stopping and self._stops():
                self._save()
            self.lane.put(self.denoised.popleft())
        self.lane.drain()

    # ----------------------------------------------------------------------------------- joining
    def _admit(self) -> None:
        """Let pending rows join while there is room, mates of a bucket in flight first."""
        while self.pending:
            index = self._next()
            row, meter = self.pending[index]
            if self.flight.rows and not self._fits(row.request):
                return
            del self.pending[index]
            meter.stop_waiting()
            self._join(row, meter)

    def _next(self) -> int:
        flying = {state.request.bucket for state in self.flight.rows}
        for index, (row, _) in enumerate(self.pending):
            if row.error is not None or row.request.bucket in flying:
                return index
        return 0

    def _fits(self, request: Request) -> bool:
        """By count where it is given, else while one tick of all rows is about one forward."""
        most = self.replica.system.batch.max_rows_in_flight
        if most != "auto":
            return len(self.flight.rows) < most
        branches = len(self.replica.family.texts(request))
        tokens = self.replica.packer.tokens(request.bucket) * branches
        room = self.replica.packer.token_budget - self.flight.tokens
        return len(self.flight.rows) < AUTO_ROWS and tokens <= room

    def _join(self, row: EncodedRow, meter: RowMeter) -> None:
        self.sink.started(row.request)
        if row.error is not None:
            self.lane.put(Broken(row.request, meter, row.error))
            return
        state = attempt(lambda: self._begin(row, meter))
        if isinstance(state, Failed):
            self.lane.put(Broken(row.request, meter, state.error))
        elif state.done:
            self._leave(state)
        else:
            self.flight.rows.append(state)

    def _begin(self, row: EncodedRow, meter: RowMeter) -> RowState:
        snapshot = self.source.restore(row.request)
        return self.flight.open(row.request, row.conditions, meter, snapshot)

    # --------------------------------------------------------------------------------------- tick
    def _tick(self) -> None:
        with self.clock.on("denoise"):
            flying = [*self.flight.rows]
            outcome = self.flight.tick()
        self.clock.share({row.request.row_index: row.meter.busy for row in flying})
        for state, error in outcome.failed:
            self.lane.put(Broken(state.request, state.meter, error))
        for state in outcome.done:
            self._leave(state)

    def _leave(self, state: RowState) -> None:
        state.meter.waiting_since = perf_counter()
        ready = None
        if self.replica.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        job = Denoised(state, ready)
        if self.resident:
            self.lane.put(job)
        else:
            self.denoised.append(job)

    # ------------------------------------------------------------------------------------- report
    def _counters(self) -> tuple[int, int, int]:
        prompts = self.replica.prompts
        return prompts.unique_texts, prompts.encoder_calls, self.replica.residency.moves

    def _report(
        self, before: tuple[int, int, int], spent: RankSeconds, wall: float
    ) -> EngineReport:
        unique, calls, moves = (a - b for a, b in zip(self._counters(), before, strict=True))
        done, flight, now = self.finisher, self.flight, self.clock.read()
        used = memory(self.replica.device)
        return EngineReport(
            rows_finished=done.finished,
            rows_failed=done.failed,
            rows_abandoned=self.abandoned,
            rows_saved=self.saved,
            windows=self.windows,
            wall_s=wall,
            encode_s=now.encode - spent.encode,
            denoise_s=now.denoise - spent.denoise,
            decode_s=done.decode_s,
            deliver_s=done.deliver_s,
            move_s=now.move - spent.move,
            idle_s=now.waiting - spent.waiting,
            ticks=flight.ticks,
            forwards=flight.forwards,
            items=flight.items,
            unique_texts_encoded=unique,
            text_encoder_calls=calls,
            component_moves=moves,
            device_syncs=flight.syncs + done.syncs,
            peak_mem_gib=used.peak_device_gib,
            host_rss_gib=used.host_rss_gib,
            self_test=self.replica.packer.self_test,
            pack_sizes=self.replica.packer.sizes,
        )
