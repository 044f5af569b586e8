"""One render on a card: packs, kernels, waits, and experts that take turns on it."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from toy_engine import Keeper, draw, request, small_spec, system, two_experts

from batchgen.config.schema import ModelSpec
from batchgen.engine.engine import Engine
from batchgen.request import Request

SPEC = small_spec("random")


def load(cuda: str, spec: ModelSpec = SPEC, **changes: Any) -> Engine:
    return Engine.load(spec, system(**changes), cuda)


def rows(count: int = 8, **changes: Any) -> list[Request]:
    """Mixed steps and guidances, 16 tokens each."""
    values = {"width": 64, "height": 64, "num_frames": 1} | changes
    return [
        request(i, **({"num_steps": 3 + i % 3, "guidance_scale": 1.0 + i % 2 * 3} | values))
        for i in range(count)
    ]


def assert_same(drawn: Keeper, other: Keeper) -> None:
    assert drawn.errors == other.errors == {}
    assert drawn.latents.keys() == other.latents.keys()
    for name, latents in drawn.latents.items():
        assert torch.equal(latents, other.latents[name]), name
        assert np.array_equal(drawn.frames[name], other.frames[name]), name


def test_device_kernel_and_memory_are_recorded(cuda: str) -> None:
    drawn = draw(load(cuda), rows())
    assert drawn.errors == {}
    for stats in drawn.stats.values():
        assert stats.device == torch.cuda.get_device_name(cuda)
        ran = stats.attention_kernel.split("+")
        assert ran != ["none"] and all(name.startswith("sdpa-") for name in ran)
        assert not stats.attention_kernel.startswith("sdpa-cpu")
        assert stats.peak_mem_gib is not None and stats.peak_mem_gib > 0


def test_a_pack_equals_each_row_alone(cuda: str) -> None:
    """To the bit in strict mode: by the card's kernels, or one by one where they fail the
    self-test."""
    alone = draw(load(cuda, batch={"token_budget": 1, "max_rows_in_flight": 1}), rows())
    drawn = draw(load(cuda, batch={"token_budget": 256}), rows())
    assert_same(drawn, alone)
    assert drawn.report.self_test in ("passed", "failed")
    largest = max(stats.batch_size_mean for stats in drawn.stats.values())
    assert (largest > 1) == (drawn.report.self_test == "passed")
    print(f"the self-test of {torch.cuda.get_device_name(cuda)} {drawn.report.self_test}")


def test_a_card_draws_what_a_cpu_draws(cuda: str) -> None:
    """But for rounding: noise comes from the seed alone, on the host."""
    ours = draw(load(cuda), rows())
    plain = draw(Engine.load(SPEC, system(), "cpu"), rows())
    for name, frames in plain.frames.items():
        apart = np.abs(frames.astype(int) - ours.frames[name].astype(int))
        assert apart.mean() < 1.0, name


def waits(engine: Engine, steps: int) -> tuple[int, int]:
    """Of a render of three rows: waits it counts, and waits that torch itself sees."""
    some = rows(3, num_steps=steps, guidance_scale=4.0)
    draw(engine, some)  # texts, kernels and sizes are known after it
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            drawn = draw(engine, some)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert drawn.errors == {}
    return drawn.report.device_syncs, sum("synchroniz" in str(each.message) for each in seen)


def test_the_card_is_waited_for_by_the_row_and_not_by_the_step(cuda: str) -> None:
    """Once whether its latents are finite, once for its pixels; a step costs no wait."""
    engine = load(cuda, batch={"token_budget": 256})
    counted, seen = waits(engine, 3)
    assert counted == 2 * 3
    assert waits(engine, 12) == (counted, seen)


@pytest.mark.parametrize("window", [4, 8])
def test_experts_take_turns_on_the_card(cuda: str, window: int) -> None:
    spec = two_experts(SPEC)
    resident = draw(load(cuda, spec), rows(num_steps=6))
    engine = load(cuda, spec, memory={"mode": "model"}, batch={"window": window})
    turns: list[str] = []
    forward, experts = engine.family.forward, engine.replica.residency.plan.experts

    def watched(items: Any) -> Any:
        turns.append(engine.family.expert(items[0].request, items[0].timestep))
        for name in experts:
            where = {p.device.type for p in engine.family.modules[name].parameters()}
            assert where == {"cuda" if name == turns[-1] else "cpu"}, name
        return forward(items)

    engine.family.forward = watched  # type: ignore[method-assign]
    drawn = draw(engine, rows(num_steps=6))
    assert_same(drawn, resident)
    windows = drawn.report.windows
    assert windows == 8 // window
    assert drawn.report.expert_swaps == windows
    assert sum(a != b for a, b in pairwise(turns)) == 2 * windows - 1


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_blocks_that_stream_to_the_card_change_no_pixel(
    cuda: str, prefetch: int, pin: bool
) -> None:
    """In each forward they compute on the card; behind the render they are at home."""
    spec = two_experts(SPEC)
    resident = draw(load(cuda, spec), rows(num_steps=6))
    engine = load(cuda, spec, memory={"mode": "stream", "prefetch": prefetch, "pin": pin})
    drawn = draw(engine, rows(num_steps=6))
    assert_same(drawn, resident)
    assert drawn.report.streamed_gib > 0
    for feed in engine.replica.residency.feeds.values():
        homes = {p.device.type for block in feed.modules for p in block.parameters()}
        assert homes == {"cpu"}
