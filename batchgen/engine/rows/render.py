"""Orders, applied to the flight until they are over: the leader's part, where a director gives
them, and that of the ranks that follow it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Source
from batchgen.engine.devices.device import GIB, memory
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.replica import Replica
from batchgen.engine.rows.director import Director
from batchgen.engine.rows.finish import Broken, Denoised, Finisher
from batchgen.engine.rows.flight import Flight
from batchgen.engine.rows.lane import Lane
from batchgen.engine.rows.meter import Setting
from batchgen.errors import ReplicaFailed, ReplicaOutOfMemory
from batchgen.records import RankSeconds

log = logging.getLogger(__name__)


def render(
    replica: Replica,
    source: Source,
    sink: Sink,
    *,
    stop: Callable[[], bool],
    moved: Callable[[], object],
    setting: Setting,
    clock: Clock,
) -> EngineReport:
    """Draw until the source is empty or `stop` is true; see `contract.Renderer`."""
    before, spent, begin = _so_far(replica), clock.read(), perf_counter()
    flight = Flight(replica, clock, moved)
    finisher = Finisher(replica, sink, setting)
    lane: Lane[Denoised | Broken] = Lane(
        finisher, overlap=replica.overlap, moved=moved, together=finisher.together
    )
    director = Director(replica, flight, lane, source, sink, stop, finisher.postponed)
    replica.ladder.settled = lane.drain
    with lane, _broken_off(director):
        script = director.script()
        while not (orders := replica.team.share(next(script))).over:
            outcome = flight.apply(orders)
            director.note(outcome, replica.team.reports(outcome.lost))
    return _report(director, finisher, before, spent, perf_counter() - begin)


@contextmanager
def _broken_off(director: Director) -> Iterator[None]:
    """A rank that fails in what all do ends the attempt: rows with all their steps behind them are
    saved, and after a lack of memory the next attempt takes less, if it can."""
    try:
        yield
    except ReplicaFailed as error:
        saved = attempt(director.save_denoised)  # of a device that may be gone
        if isinstance(saved, Failed):
            log.warning("rows that were denoised are not saved: %s", saved.error)
        if error.out_of_memory and director.flight.leave_word():
            raise ReplicaOutOfMemory(str(error)) from error
        raise


def follow(replica: Replica, moved: Callable[[], object], clock: Clock) -> None:
    """Do what the leader of this replica does, render after render, but for what is its alone:
    rows, texts, and decoding where it is not divided. Ends by team.Dismissed, or ReplicaFailed."""
    while True:
        flight = Flight(replica, clock, moved)
        while not (orders := replica.team.share(None)).over:
            replica.team.reports(flight.apply(orders).lost)
            moved()


def _so_far(replica: Replica) -> tuple[int, ...]:
    """Counts of all renders of the engine."""
    prompts, residency, compiled = replica.prompts, replica.residency, replica.compiled
    moved = residency.moves, residency.gauge.streamed
    made = compiled.compiles, compiled.recompiles
    return prompts.unique_texts, prompts.encoder_calls, prompts.from_disk, *moved, *made


def _report(
    director: Director,
    finisher: Finisher,
    before: tuple[int, ...],
    spent: RankSeconds,
    wall: float,
) -> EngineReport:
    replica, flight = director.replica, director.flight
    after, now = _so_far(replica), flight.clock.read()
    counts = (a - b for a, b in zip(after, before, strict=True))
    unique, calls, recovered, moves, streamed, compiles, recompiles = counts
    used = memory(replica.device)
    return EngineReport(
        rows_finished=finisher.finished,
        rows_failed=finisher.failed,
        rows_abandoned=director.abandoned,
        rows_saved=director.saved,
        windows=director.windows,
        wall_s=wall,
        encode_s=now.encode - spent.encode,
        denoise_s=now.denoise - spent.denoise,
        decode_s=finisher.decode_s,
        deliver_s=finisher.deliver_s,
        move_s=now.move - spent.move,
        shared_decode_s=now.shared_decode - spent.shared_decode,
        idle_s=now.waiting - spent.waiting,
        ticks=flight.ticks,
        forwards=flight.forwards.count,
        items=flight.forwards.items,
        unique_texts_encoded=unique,
        text_encoder_calls=calls,
        texts_from_disk=recovered,
        component_moves=moves,
        expert_swaps=director.swaps,
        streamed_gib=streamed / GIB,
        compiles=compiles,
        recompiles=recompiles,
        peak_weights_gib=replica.residency.gauge.peak / GIB,
        device_syncs=flight.forwards.syncs + finisher.syncs,
        peak_mem_gib=used.peak_device_gib,
        host_rss_gib=used.host_rss_gib,
        memory_rung=replica.ladder.rung or "",
        self_test=replica.packer.self_test,
        split_test=replica.split.self_test if replica.split else "not needed",
        pack_sizes=replica.packer.sizes,
    )
