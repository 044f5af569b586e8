"""One render: isolation of failures, windows, stopping, counters, timings, memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np
import pytest
import torch
from toy_engine import PACKED, Keeper, ListSource, draw, request, small_spec, system

from batchgen.engine.choose import choose_engine
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport
from batchgen.engine.engine import Engine
from batchgen.engine.rows.forwards import Forwards
from batchgen.errors import NonFiniteOutput, PromptTooLong
from batchgen.families.family import Item
from batchgen.records import Rendered, RowStats
from batchgen.request import Request


def load(overlap: bool = True, **changes: Any) -> Engine:
    return Engine.load(small_spec("random"), system(**changes), "cpu", overlap=overlap)


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Engine:
    return load()


def render(engine: Engine, rows: Sequence[Request]) -> tuple[Keeper, EngineReport]:
    keeper = Keeper()
    return keeper, engine.render(ListSource(rows), keeper)


def lane_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "batchgen-finish"]


# ---------------------------------------------------------------------------------------- counters
def test_every_row_is_delivered_once_with_frames_and_stats(engine: Engine) -> None:
    rows = [request(i, num_steps=2 + i % 3, guidance_scale=1.0 + i % 2) for i in range(11)]
    keeper, report = render(engine, rows)
    assert keeper.started_ids == [row.row_id for row in rows]
    assert (report.rows_finished, report.rows_failed, report.rows_abandoned) == (11, 0, 0)
    assert keeper.threads == {"batchgen-finish"}
    for row in rows:
        frames, stats = keeper.frames[row.row_id], keeper.stats[row.row_id]
        assert (frames.shape, frames.dtype) == ((5, 32, 32, 3), np.uint8)
        assert frames.flags.c_contiguous
        branches = 2 if row.guidance_scale != 1.0 else 1
        assert stats.steps_total == stats.steps_computed == row.num_steps * branches
        assert stats.prompt_tokens == len(row.prompt) + 1
        assert (stats.determinism, stats.device) == ("strict", "cpu")
        assert stats.attention_kernel == "sdpa-cpu-flash"
        assert 0 < stats.step_p50_s <= stats.step_p95_s
        assert stats.peak_mem_gib is None, "there is no device memory"
        assert stats.host_rss_gib > 0.05
    assert report.items == sum(int(s.steps_computed) for s in keeper.stats.values())


def test_the_device_is_waited_for_once_a_row_not_once_a_step(engine: Engine) -> None:
    for steps in (2, 9):
        _, report = render(engine, [request(i, num_steps=steps) for i in range(3)])
        assert report.device_syncs == 3


def test_each_unique_text_is_encoded_once(one_thread: None) -> None:
    """Over windows of three rows and a second render; 'neg' is the prompt of no guidance too."""
    engine = load(batch={"window": 3})
    rows = [request(i, prompt=f"p{i % 4}", negative_prompt="neg") for i in range(10)]
    rows.append(request(10, prompt="neg", guidance_scale=1.0, negative_prompt="unused"))
    _, report = render(engine, rows)
    assert (report.unique_texts_encoded, report.text_encoder_calls, report.windows) == (5, 5, 4)
    _, again = render(engine, rows)
    assert (again.unique_texts_encoded, again.text_encoder_calls) == (0, 0)


@pytest.mark.parametrize("overlap", [True, False])
def test_shares_of_rows_add_up_to_the_busy_time(one_thread: None, overlap: bool) -> None:
    """In one of three renders: a thread may lose its CPU between two looks at a clock."""

    def apart() -> float:
        """Of denoising, as a share of it."""
        keeper, report = render(load(overlap), [request(i, prompt=f"p{i % 3}") for i in range(12)])
        stages = [stats.stages for stats in keeper.stats.values()]
        assert sum(s.encode for s in stages) == pytest.approx(report.encode_s, rel=0.2, abs=0.01)
        assert sum(s.decode + s.d2h for s in stages) == pytest.approx(report.decode_s, rel=0.05)
        assert report.encode_s + report.denoise_s + report.idle_s <= report.wall_s * 1.001
        assert all(s.queue >= 0 and s.write == 0 for s in stages)
        return abs(sum(s.denoise for s in stages) / report.denoise_s - 1)

    assert any(apart() < 0.01 for _ in range(3))


@pytest.mark.parametrize("mode", ["model", "stream"])
def test_one_component_at_a_time_moves_each_once_per_window(one_thread: None, mode: str) -> None:
    engine = load(memory={"mode": mode}, batch={"window": 4})
    keeper, report = render(engine, [request(i) for i in range(10)])
    assert len(keeper.frames) == 10
    assert report.windows == 3
    assert report.component_moves == 3 * 3
    _, kept = render(engine, [request(i) for i in range(4)])
    assert kept.component_moves == 2  # the texts are known: the encoder stays out


def test_moves_of_components_are_no_rows_and_no_busy_seconds(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of windows that differ in size: what the rows share adds up to the busy time all the same."""
    engine = load(memory={"mode": "model"}, batch={"window": 3})
    use, slow_s, late_s = engine.replica.residency.use, 100.0, 0.0

    def slow(*names: str) -> None:
        nonlocal late_s
        late_s += slow_s  # as gigabytes over a bus
        use(*names)

    for name, module in sys.modules.items():
        if name.startswith("batchgen.engine.") and hasattr(module, "perf_counter"):
            monkeypatch.setattr(module, "perf_counter", lambda: process_time() + late_s)

    engine.replica.residency.use = slow  # type: ignore[method-assign]
    clock = Clock()
    keeper = Keeper()
    report = engine.render(ListSource([request(i) for i in range(4)]), keeper, clock=clock)
    assert report.component_moves == 6
    assert report.move_s >= 6 * slow_s
    stages = [stats.stages for stats in keeper.stats.values()]
    shares = sum(s.encode + s.denoise for s in stages)
    assert report.encode_s + report.denoise_s == pytest.approx(shares, rel=0.05, abs=0.01)
    spent = clock.read()
    assert (spent.move, spent.busy) == (report.move_s, report.encode_s + report.denoise_s)
    assert spent.busy < slow_s
    rest = report.wall_s - report.move_s - spent.busy
    assert report.idle_s == pytest.approx(rest, abs=0.01)


@pytest.mark.parametrize("mode", ["resident", "model"])
def test_a_render_shows_that_it_moves_while_it_waits_for_its_rows(
    one_thread: None, mode: str
) -> None:
    """Between any two decodes, also when the main thread does nothing but wait for them."""
    engine = load(memory={"mode": mode})
    decode = type(engine.family).decode
    signs, seen = 0, list[int]()

    def counted(latents: torch.Tensor, bucket: Any) -> torch.Tensor:
        seen.append(signs)
        return decode(engine.family, latents, bucket)

    def moved() -> None:
        nonlocal signs
        signs += 1

    engine.family.decode = counted  # type: ignore[method-assign]
    engine.render(ListSource([request(i, num_steps=1) for i in range(9)]), Keeper(), moved=moved)
    assert len(seen) == 9 and all(before < after for before, after in pairwise(seen))


def test_rows_in_flight_and_windows_are_bounded(one_thread: None) -> None:
    engine = load(batch={"max_rows_in_flight": 2, "window": 5})
    source, keeper = ListSource([request(i) for i in range(9)]), Keeper()
    engine.render(source, keeper)
    assert set(source.asked) == {5}
    assert max(stats.batch_size_mean for stats in keeper.stats.values()) <= 4.0


# ---------------------------------------------------------------------------------------- failures
def break_forward(engine: Engine, breaks: Callable[[Sequence[Item]], bool]) -> None:
    forward = type(engine.family).forward

    def breaking(items: Sequence[Item]) -> list[torch.Tensor]:
        if breaks(items):
            raise RuntimeError("kernel refused")
        return forward(engine.family, items)

    engine.family.forward = breaking  # type: ignore[method-assign]


def test_a_row_that_breaks_the_shared_forward_fails_alone(engine: Engine) -> None:
    """The pack is run again item by item; mates end as they would without it."""
    rows = [request(i, num_steps=4) for i in range(5)]
    clean = draw(engine, rows)
    broken = load()
    break_forward(broken, lambda items: any(i.request.row_id == "row-2" for i in items))
    keeper = draw(broken, rows)
    assert str(keeper.errors["row-2"]) == "kernel refused"
    assert len(keeper.frames) == 4
    for name, frames in keeper.frames.items():
        assert np.array_equal(frames, clean.frames[name])


def test_a_pack_that_is_too_large_goes_on_smaller(one_thread: None) -> None:
    """Running out of memory with many items is nobody's fault: no row fails, packs shrink."""
    engine = load(determinism="throughput")
    forward, sizes = type(engine.family).forward, []

    def limited(items: Sequence[Item]) -> list[torch.Tensor]:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(engine.family, items)

    engine.family.forward = limited  # type: ignore[method-assign]
    keeper, report = render(engine, [request(i) for i in range(6)])
    assert (report.rows_finished, keeper.errors) == (6, {})
    assert sizes[-1] in (2, 3)


def test_each_kind_of_failure_fails_its_row_alone(one_thread: None) -> None:
    """Encoding, joining, the forward, infinite latents, decoding."""
    spec = small_spec("random", prompt_overflow="error")
    engine = Engine.load(spec, system(), "cpu")
    decode = type(engine.family).decode

    def decoding(latents: torch.Tensor, bucket: Any) -> torch.Tensor:
        if bucket.num_frames == 9:
            raise RuntimeError("decoder refused")
        return decode(engine.family, latents, bucket)

    engine.family.decode = decoding  # type: ignore[method-assign]
    rows = [
        request(0),
        request(1, prompt="a prompt of more than sixteen bytes"),
        request(2, solver="heun"),
        request(3, width=16 * 65, height=16, num_frames=1),
        request(4, guidance_scale=1e38, num_steps=5),
        request(5, num_frames=9),
        request(6),
    ]
    keeper, report = render(engine, rows)
    assert set(keeper.frames) == {"row-0", "row-6"}
    kinds = {name: type(error).__name__ for name, error in sorted(keeper.errors.items())}
    assert kinds == {
        "row-1": "PromptTooLong",
        "row-2": "ConfigError",
        "row-3": "RuntimeError",
        "row-4": "NonFiniteOutput",
        "row-5": "RuntimeError",
    }
    assert isinstance(keeper.errors["row-1"], PromptTooLong)
    assert isinstance(keeper.errors["row-4"], NonFiniteOutput)
    assert "guidance_scale 1e+38" in str(keeper.errors["row-4"])
    assert all(error.__traceback__ is not None for error in keeper.errors.values())
    assert (report.rows_finished, report.rows_failed) == (2, 5)
    assert sorted(keeper.started_ids) == [row.row_id for row in rows]
    assert keeper.stats["row-5"].stages.denoise > 0


class Failing(Keeper):
    """A sink that breaks in one of its methods."""

    broken = ""

    def started(self, request: Request) -> None:
        super().started(request)
        if self.broken == "started":
            raise OSError("started: disk full")

    def finished(self, rendered: Rendered) -> None:
        if self.broken == "finished":
            raise OSError("finished: disk full")
        super().finished(rendered)

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        if self.broken == "failed":
            raise OSError("failed: disk full")
        super().failed(request, error, stats)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("broken", ["started", "finished", "failed"])
def test_an_error_of_the_sink_ends_the_render(one_thread: None, broken: str, overlap: bool) -> None:
    engine, sink = load(overlap), Failing()
    sink.broken = broken
    rows = [request(0, num_steps=1, solver="heun"), *(request(i) for i in range(1, 40))]
    with pytest.raises(OSError, match=f"{broken}: disk full"):
        engine.render(ListSource(rows), sink)
    assert lane_threads() == []
    assert len(sink.started_ids) < 40
    keeper, _ = render(engine, rows[1:3])
    assert len(keeper.frames) == 2


def test_an_error_of_the_sink_does_not_wait_for_the_next_row(engine: Engine) -> None:
    """A full disk ends the render at the next tick, not when a long row has been drawn."""
    sink, ticks = Failing(), 0
    sink.broken = "finished"

    def counted() -> bool:
        nonlocal ticks
        ticks += 1
        return False

    rows = [request(0, num_steps=1), request(1, num_steps=900)]
    with pytest.raises(OSError, match="finished: disk full"):
        engine.render(ListSource(rows), sink, stop=counted)
    assert ticks < 900


def test_an_error_of_the_source_ends_the_render(engine: Engine) -> None:
    class Broken(ListSource):
        def take(self, room: int) -> list[Request]:
            raise ConnectionError("queue is gone")

    with pytest.raises(ConnectionError, match="queue is gone"):
        engine.render(Broken([]), Keeper())
    assert lane_threads() == []


def test_a_broken_accelerator_is_not_blamed_on_a_row(engine: Engine) -> None:
    broken = load()
    forward = type(broken.family).forward

    def sticky(items: Sequence[Item]) -> list[torch.Tensor]:
        if any(item.timestep < 900 for item in items):
            raise torch.AcceleratorError("device-side assert")
        return forward(broken.family, items)

    broken.family.forward = sticky  # type: ignore[method-assign]
    keeper = Keeper()
    with pytest.raises(torch.AcceleratorError):
        broken.render(ListSource([request(0), request(1)]), keeper)
    assert keeper.errors == {}


# ---------------------------------------------------------------------------------------- stopping
@pytest.mark.parametrize("mode", ["resident", "model"])
def test_stop_abandons_rows_in_flight_and_delivers_denoised_ones(
    one_thread: None, mode: str
) -> None:
    """After four ticks the rows of two steps are drawn; those of nine are not, and stay unsaid."""
    engine = load(memory={"mode": mode}, batch={"max_rows_in_flight": 4})
    rows = [request(i, num_steps=2 if i < 2 else 9) for i in range(8)]
    asked = iter(range(100))
    keeper = Keeper()
    report = engine.render(ListSource(rows), keeper, stop=lambda: next(asked) >= 4)
    assert set(keeper.frames) == {"row-0", "row-1"}
    assert keeper.errors == {}
    assert (report.rows_finished, report.rows_abandoned, report.ticks) == (2, 6, 4)
    assert lane_threads() == []
    whole, _ = render(engine, rows[2:4])
    assert set(whole.frames) == {"row-2", "row-3"}


def test_saved_rows_go_on_only_where_they_are_computed_alike() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"local_rank": 0, "host": "node1"}
    assert choose_engine(small_spec(), system(), **options).device_class == f"{kind} float32"  # type: ignore[arg-type]
    half = choose_engine(small_spec(dtype="bfloat16"), system(), **options)  # type: ignore[arg-type]
    assert half.device_class == {"cuda": "cuda bfloat16", "cpu": "cpu float32"}[kind]


def test_an_empty_source_is_no_work(engine: Engine) -> None:
    keeper, report = render(engine, [])
    assert (keeper.frames, report.ticks, report.windows) == ({}, 0, 0)


# ------------------------------------------------------------------------------------------ memory
def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Weighing(Keeper):
    """Forgets the frames and weighs the process after each row."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[float] = []

    def finished(self, rendered: Rendered) -> None:
        self.weights.append(resident_mib())


def kib_a_row(engine: Engine) -> float:
    """Slope of the resident set over 200 rows, after 40 to warm up."""
    sink = Weighing()
    rows = [
        request(i, width=64, height=64, num_frames=1, num_steps=1 + i % 3, prompt=f"p{i}")
        for i in range(240)
    ]
    engine.render(ListSource(rows), sink)
    weights = sink.weights[40:]
    assert len(weights) == 200
    return 1024 * float(np.polyfit(np.arange(len(weights)), weights, 1)[0])


@pytest.mark.slow
def test_host_memory_is_flat_over_200_rows(one_thread: None) -> None:
    """Different prompts, seeds and steps. A row's frames are 12 KiB, its latents and solver history
    16 KiB; the slope must be below either. A leak shows every time; what the allocator takes once
    on a busy machine does not."""
    engine = load()
    slopes: list[float] = []
    while len(slopes) < 3 and (not slopes or slopes[-1] >= 8):
        slopes.append(kib_a_row(engine))
    assert slopes[-1] < 8, f"{slopes} KiB a row"


@pytest.mark.parametrize(("name", "times"), [("teacache", 6), ("first_block", 6)])
def test_what_a_row_takes_to_decide_is_its_own(
    one_thread: None, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    """A strategy that looks at a signal, or at what a probe came to, which takes long: rows, clock
    and catalog know of it."""
    engine, slow_s = load(), 0.02
    owner, what = {  # of both branches at once
        "teacache": (engine.family, "signal"),
        "first_block": (Forwards, "changes"),
    }[name]
    inner, asked = getattr(owner, what), 0

    def slowly(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        sleep(slow_s)
        return inner(*args)

    monkeypatch.setattr(owner, what, slowly)
    cached = {"num_steps": 6, "cache_strategy": name}
    rows = [request(i, cache_ratio=0.5 * i, **cached, **PACKED) for i in range(2)]
    keeper, report = render(engine, rows)
    plain, deciding = (keeper.stats[row.row_id].stages.denoise for row in rows)
    assert asked == times
    assert deciding - plain > 0.5 * asked * slow_s
    assert report.denoise_s >= asked * slow_s
    assert plain + deciding == pytest.approx(report.denoise_s, rel=0.02)
