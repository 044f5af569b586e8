"""Audited rows: drawn with their cache and without it, delivered once, compared."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from toy_engine import Keeper, ListSource, request, small_spec, system

from batchgen.caches.audit import audited
from batchgen.engine.clock import Clock
from batchgen.engine.contract import Snapshot
from batchgen.engine.engine import Engine
from batchgen.media.quality import psnr, ssim
from batchgen.records import Rendered, RowStats, StageSeconds
from batchgen.request import Request
from batchgen.worker.audit import Twins

STEPS = 6


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Engine:
    return Engine.load(small_spec("random"), system(), "cpu")


def key(index: int) -> str:
    return hashlib.sha256(f"row {index}".encode()).hexdigest()


def cached(index: int, ratio: float = 0.5, **changes: Any) -> Request:
    values = {"row_key": key(index), "num_steps": STEPS, "cache_strategy": "uniform"}
    return request(index, cache_ratio=ratio, **(values | changes))


def plain(index: int) -> Request:
    return request(index, row_key=key(index), num_steps=STEPS)


def draw(
    engine: Engine, rows: Sequence[Request], every: int = 1, clock: Clock | None = None
) -> Keeper:
    keeper, clock = Keeper(), clock or Clock()
    twins = Twins(ListSource(rows), keeper, every, clock)
    keeper.report = engine.render(twins, twins, clock=clock)
    twins.settle()
    return keeper


# ----------------------------------------------------------------------------------- whole renders
def test_rows_are_delivered_once_as_without_audits_and_compared(engine: Engine) -> None:
    rows = [cached(0), plain(1), cached(2)]
    keeper, alone = draw(engine, rows), draw(engine, rows, every=0)
    bare = draw(engine, [plain(0), plain(2)])
    assert keeper.started_ids == alone.started_ids == ["row-0", "row-1", "row-2"]
    assert keeper.frames.keys() == alone.frames.keys() and keeper.errors == {}
    for name, frames in keeper.frames.items():
        assert np.array_equal(frames, alone.frames[name]), name
        assert alone.stats[name].audit is None
    assert keeper.stats["row-1"].audit is None
    for name in ("row-0", "row-2"):
        audit = keeper.stats[name].audit
        assert audit is not None and audit.psnr is not None
        ours, theirs = keeper.frames[name], bare.frames[name]
        assert (audit.psnr, audit.ssim) == (psnr(ours, theirs), ssim(ours, theirs))
        assert 5 < audit.psnr < 100, "the cache changes pixels"
        assert (keeper.stats[name].steps_computed, audit.steps) == (STEPS, 2 * STEPS)
        assert 0 < audit.busy < audit.seconds


def test_ratio_zero_is_no_cache_to_the_bit(engine: Engine) -> None:
    audit = draw(engine, [cached(0, ratio=0.0)]).stats["row-0"].audit
    assert audit is not None and (audit.psnr, audit.ssim) == (100.0, 1.0)


def test_every_busy_second_is_told_of_a_row(engine: Engine) -> None:
    """Nothing stays open in the clock but what the sink closes by the row's line."""
    clock = Clock()
    stats = draw(engine, [cached(0), cached(1), plain(2)], clock=clock).stats
    assert [clock.close(index) for index in range(3)] == pytest.approx(
        [stats[f"row-{index}"].busy for index in range(3)]
    )
    assert clock.read().open == pytest.approx(0.0, abs=1e-9)


def test_the_same_rows_are_audited_however_they_are_spread() -> None:
    """About one of each three; the same in any shard and order, and none without a cache."""
    rows = [cached(index) for index in range(300)]
    chosen = {row.row_id for row in rows if audited(row.row_key, 3)}
    assert 60 < len(chosen) < 140

    def twins_of(shard: Sequence[Request]) -> set[str]:
        twins, taken = Twins(ListSource(shard), Keeper(), 3, Clock()), []
        while window := twins.take(8):
            assert len(window) <= 8
            taken += window
        assert [row for row in taken if row.row_index >= 0] == list(shard)
        return {row.row_id for row in taken if row.cache_strategy == "none"}

    assert twins_of(rows) == twins_of(rows[::-1]) == chosen
    assert set().union(*(twins_of(rows[shard::3]) for shard in range(3))) == chosen
    none = [plain(index) for index in range(9)]
    assert not any(
        row.row_index < 0 for row in Twins(ListSource(none), Keeper(), 1, Clock()).take(9)
    )


# ---------------------------------------------------------------------------------- what can happen
def test_a_row_whose_twin_fails_is_delivered_and_the_log_says_why(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, twin = Keeper(), engine.family.initial_latents

    def initial_latents(request: Request) -> Any:
        if request.cache_strategy == "none":
            raise RuntimeError("no room for it")
        return twin(request)

    monkeypatch.setattr(engine.family, "initial_latents", initial_latents)
    with caplog.at_level(logging.WARNING, "batchgen"):
        keeper = draw(engine, [cached(0)])
    audit = keeper.stats["row-0"].audit
    assert keeper.frames.keys() == {"row-0"} and keeper.errors == {}
    assert audit is not None and (audit.psnr, audit.ssim) == (None, None)
    assert "row row-0 is not audited" in caplog.text and "no room for it" in caplog.text


def test_a_row_that_fails_fails_once_with_all_its_seconds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = engine.family.decode
    clips = iter(range(9))

    def second_fails(latents: Any, bucket: Any) -> Any:
        if next(clips) == 1:
            raise RuntimeError("no")
        return decode(latents, bucket)

    monkeypatch.setattr(engine.family, "decode", second_fails)
    clock = Clock()
    keeper = draw(engine, [cached(0, ratio=0.0)], clock=clock)  # behind its twin
    assert keeper.frames == {} and keeper.errors.keys() == {"row-0"}
    stats = keeper.stats["row-0"]
    assert stats.audit is not None and stats.audit.psnr is None and stats.audit.busy > 0
    assert clock.close(0) == pytest.approx(stats.busy)


def test_a_drain_drops_the_twin_and_the_row_is_audited_where_it_goes_on(engine: Engine) -> None:
    """Row and twin are in flight: the row is saved alone, its twin is drawn again."""
    row, keeper, asked = cached(0), Keeper(), iter(range(99))
    twins = Twins(ListSource([row]), keeper, 1, Clock())
    engine.render(twins, twins, stop=lambda: next(asked) == 3)
    twins.settle()
    assert keeper.frames == {} and keeper.states.keys() == {"row-0"}
    later = Keeper()
    twins = Twins(ListSource([row], keeper.states), later, 1, Clock())
    engine.render(twins, twins)
    assert later.stats["row-0"].steps_restored > 0
    audit, whole = later.stats["row-0"].audit, draw(engine, [row]).stats["row-0"].audit
    assert audit is not None and whole is not None
    assert (audit.psnr, audit.ssim, audit.steps) == (whole.psnr, whole.ssim, whole.steps)


def test_a_row_that_is_done_when_its_twin_is_dropped_is_delivered() -> None:
    """As the engine tells it; a snapshot of the twin is nobody's."""
    keeper, clock, row = Keeper(), Clock(), cached(0)
    twins = Twins(ListSource([row]), keeper, 1, clock)
    twin, taken = twins.take(2)
    assert taken == row
    twins.started(twin)
    twins.started(row)
    assert twins.restore(twin) is None
    clock.share({twin.row_index: 2.0, row.row_index: 1.0})
    stats = RowStats(stages=StageSeconds(denoise=1.0))
    twins.finished(Rendered(row, np.zeros((1, 4, 4, 3), np.uint8), stats))
    twins.saved(twin, Snapshot(1, 2.0, {}))
    assert keeper.frames == keeper.states == {}
    twins.settle()
    assert keeper.started_ids == ["row-0"] and keeper.frames.keys() == {"row-0"}
    assert keeper.stats["row-0"].busy == 3.0 == clock.close(0)
