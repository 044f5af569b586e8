"""Each row equals what diffusers' WanPipeline makes of it alone, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_engine import Twin, draw, request, small_spec, system, tiny_wan_spec

from batchgen.config.schema import ModelSpec
from batchgen.engine.engine import Engine

COMPARED = ("wan",)  # families

ROWS = [
    request(0, num_steps=6),
    request(1, num_steps=1, prompt="one step"),
    request(2, solver="euler", num_steps=5, guidance_scale=7.5, sigma_shift=5.0),
    request(
        3,
        solver="dpm++",
        num_steps=7,
        prompt="  caf\u00e9 &amp; \u7ea2\u8272 \U0001f534 ",
        seed=2**63 - 1,
    ),
    request(4, guidance_scale=1.0, num_steps=4),
    request(5, width=48, height=80, num_frames=9, num_steps=3),
    request(6, num_frames=1, solver="dpm++", negative_prompt=""),
    request(7, prompt="long " * 60, num_steps=2),
]


@pytest.fixture(scope="module", params=["small", "tiny-wan"])
def spec(request: pytest.FixtureRequest, small_folder: Path) -> ModelSpec:
    return small_spec(str(small_folder)) if request.param == "small" else tiny_wan_spec()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
def test_rows_in_one_flight_equal_the_pipeline(spec: ModelSpec) -> None:
    """Mixed solvers, steps, guidances, shifts and buckets, all in flight together."""
    engine = Engine.load(spec, system(), "cpu")
    drawn = draw(engine, ROWS)
    twin = Twin(spec)
    drawn.assert_as_pipeline(
        {row.row_id: twin.latents(row) for row in ROWS},
        {row.row_id: twin.frames(row) for row in ROWS},
    )
    drawn.assert_packed()
