"""Evaluations that a step cache leaves out are time that is not spent, at a real model's size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from forced_schedule import COMPUTED, STEPS, forced
from toy_engine import request, system

import batchgen.config
from batchgen.config.build import build
from batchgen.config.schema import ModelSpec
from batchgen.engine.engine import Engine

PRESET = Path(batchgen.config.__file__).parent / "conf" / "model" / "wan2.1-t2v-1.3b.yaml"
SIZE = {"width": 832, "height": 480, "num_frames": 33}  # 14,040 tokens
ROWS = 4  # decoding of all but the last lies behind the steps of the next
GOAL = 0.95  # of what the evaluations promise


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("in_flight", [1, ROWS])
def test_21_of_50_steps_take_21_fiftieths_of_the_time(
    cuda: str, in_flight: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first text to the last pixel, row after row and packed."""
    spec = replace(build(ModelSpec, yaml.safe_load(PRESET.read_text()), "model"), weights="random")
    batch = {"max_rows_in_flight": in_flight}
    engine = Engine.load(spec, system(determinism="throughput", batch=batch), cuda)
    found = forced(engine, [request(i, **SIZE) for i in range(ROWS)], turns=1)
    assert found.due == pytest.approx(STEPS / COMPUTED)
    with capsys.disabled():
        print(f"\n{in_flight} in flight: {found.speedup:.2f} times, {found.due:.2f} are due")
    assert found.speedup >= GOAL * found.due
