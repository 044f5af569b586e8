"""Wan2.2 with two experts: each row equals what diffusers' WanPipeline makes of it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_cases import first_quick
from toy_engine import (
    Keeper,
    ListSource,
    Twin,
    draw,
    request,
    spy_on,
    system,
    tiny_wan_spec,
    two_experts,
)

from batchgen.config.schema import ModelSpec, SamplerConfig
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.request import Request

COMPARED = ("wan22",)  # families

SHAPE = {"width": 64, "height": 32, "num_frames": 5}  # 16 tokens


def rows() -> list[Request]:
    """Mixed steps, solvers and guidances of both experts; of the unguided one the second scale
    does not count, a second scale of one is still guided."""
    scales = [(4.0, 2.0), (3.0, None), (1.0, 5.0), (5.0, 1.0), (2.0, 7.0), (4.0, 0.0)]
    return [
        request(
            i,
            prompt=f"a red circle {i}",
            num_steps=2 + i,
            solver=("unipc", "euler", "dpm++")[i % 3],
            guidance_scale=scales[i % 6][0],
            guidance_scale_2=scales[i % 6][1],
            sigma_shift=5.0,
            **SHAPE,
        )
        for i in range(9)
    ]


@pytest.fixture(scope="module")
def spec(two_expert_folder: Path) -> ModelSpec:
    return two_experts(tiny_wan_spec(), weights=str(two_expert_folder))


@pytest.fixture(scope="module")
def twin(spec: ModelSpec) -> Keeper:
    """What the pipeline draws."""
    pipeline, kept = Twin(spec), Keeper()
    for row in rows():
        kept.latents[row.row_id] = pipeline.latents(row)
        kept.frames[row.row_id] = pipeline.frames(row)
    return kept


@pytest.fixture(scope="module")
def load(spec: ModelSpec) -> Callable[..., Engine]:
    return lambda **changes: Engine.load(spec, system(**changes), "cpu")


# diffusers', wherever the pipeline first draws
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BRIEFLY = (("resident", 2), ("model", 4))  # a row on this side and on that


def assert_equal(drawn: Keeper, twin: Keeper) -> None:
    assert len(drawn.frames) == len(twin.frames)
    drawn.assert_as_pipeline(twin.latents, twin.frames)


def test_packs_of_mixed_steps_and_guidances_equal_the_pipeline(
    load: Callable[..., Engine], twin: Keeper
) -> None:
    drawn = draw(load(), rows())
    assert_equal(drawn, twin)
    drawn.assert_packed()
    assert (drawn.report.component_moves, drawn.report.expert_swaps) == (0, 0)


@pytest.mark.parametrize(
    "batch", first_quick([{"window": 5, "max_rows_in_flight": 2}, {"window": 4}, {}], 1)
)
def test_one_expert_at_a_time_is_swapped_once_a_window(
    load: Callable[..., Engine], twin: Keeper, batch: dict[str, Any]
) -> None:
    """All rows of a window pass the first expert before the second comes."""
    engine = load(memory={"mode": "model"}, batch=batch)
    turns: list[str] = []
    forward = engine.family.forward

    def watched(items: Any) -> Any:
        turns.append(engine.family.expert(items[0].request, items[0].timestep))
        return forward(items)

    engine.family.forward = watched  # type: ignore[method-assign]
    drawn = draw(engine, rows())
    assert_equal(drawn, twin)
    windows = drawn.report.windows
    assert windows == -(-9 // batch.get("window", 64))
    assert drawn.report.expert_swaps == windows
    assert drawn.report.component_moves == 4 * windows  # text encoder, experts, autoencoder
    changes = sum(a != b for a, b in pairwise(turns))
    assert changes == 2 * windows - 1


def test_rows_that_wait_for_an_expert_keep_no_more_than_there_is_room_for(
    spec: ModelSpec, twin: Keeper
) -> None:
    """Where it is for one row alone, each is drawn to its end before the next joins."""
    own = system(memory={"mode": "model"})
    layout = replace(lone_layout(spec, own, torch.device("cpu")), kept_gib=2.0**-30)
    drawn = draw(Engine.load(spec, own, "cpu", layout=layout), rows())
    assert_equal(drawn, twin)
    assert max(stats.batch_size_mean for stats in drawn.stats.values()) <= 2
    assert drawn.report.expert_swaps > drawn.report.windows == 1


@pytest.mark.parametrize(
    ("mode", "ticks"),
    [
        pytest.param(mode, ticks, marks=[pytest.mark.slow] * ((mode, ticks) not in BRIEFLY))
        for mode, ticks in product(("resident", "model"), (1, 2, 4, 6))
    ],
)
def test_rows_stopped_on_either_side_of_the_switch_go_on_bit_equal(
    load: Callable[..., Engine], twin: Keeper, mode: str, ticks: int
) -> None:
    engine, first, asked = load(memory={"mode": mode}), Keeper(), iter(range(10**6))
    spy_on(engine, first)
    engine.render(ListSource(rows()), first, stop=lambda: next(asked) > ticks)
    left = [row for row in rows() if row.row_id not in first.frames]
    assert left
    again = Keeper()
    spy_on(engine, again)
    engine.render(ListSource(reversed(left), first.states), again)
    first.frames |= again.frames
    first.latents |= again.latents
    assert_equal(first, twin)


def test_the_boundary_of_a_job_moves_the_switch(spec: ModelSpec) -> None:
    row, first = rows()[7], []
    for boundary in (None, 0.0, 0.5, 1.0):
        config = system(sampler=SamplerConfig(boundary=boundary))
        family = Engine.load(spec, config, "cpu").family
        steps = [float(t) for t in family.schedule(row).timesteps]
        experts = [family.expert(row, t) for t in steps]
        at = 1000 * (0.875 if boundary is None else boundary)
        assert experts == ["transformer" if t >= at else "transformer_2" for t in steps]
        first.append(experts.count("transformer"))
    assert first[1] == row.num_steps > first[2] > first[0] > first[3]
