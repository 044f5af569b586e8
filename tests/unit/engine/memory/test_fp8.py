"""Weights in 8 bits: what is lost, what it takes, what keeps its precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_engine import Keeper, draw, request, small_spec, system, tiny_wan_spec

from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import ModelSpec
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.memory.fp8 import FP8, from_fp8, to_fp8
from batchgen.engine.reuse.blocks import blocks_of
from batchgen.errors import ConfigError
from batchgen.planning.identity import key_context
from batchgen.planning.pricing.memory import need_of
from batchgen.request import Bucket

JOBS = Path(__file__).parents[4] / "jobs"
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_weight_is_within_its_bound(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-6, 2, 64)[:, None]
    weight[5], weight[6, 1:] = 0.0, 0.0
    weight[7, 0] = 1e-30
    weight = weight.to(dtype)
    stored, scale = to_fp8(weight)
    assert stored.dtype == FP8 and torch.equal(torch.exp2(torch.log2(scale).round()), scale)
    off = (from_fp8(stored, scale, torch.float32) - weight.float()).abs()
    assert (off <= torch.maximum(weight.float().abs() / 16, scale / 1024)).all()
    most = weight.float().abs().amax(dim=1, keepdim=True)
    assert (scale[most > 0] < most[most > 0] / 224 * 1.001).all()
    exact = from_fp8(stored, scale, torch.float32)
    assert torch.equal(from_fp8(stored, scale, torch.bfloat16).float(), exact)


def engine(spec: ModelSpec, mode: str, store_dtype: str) -> Engine:
    own = system(memory={"mode": mode, "store_dtype": store_dtype})
    return Engine.load(spec, own, "cpu", layout=lone_layout(spec, own, CPU))


def off(one: Keeper, other: Keeper) -> float:
    """Relative distance of latents."""
    pairs = [(one.latents[name], other.latents[name]) for name in one.latents]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize(("name", "most"), [("small", 0.001), ("tiny-wan", 0.1)])
def test_rows_are_near_and_the_same_wherever_weights_are(
    one_thread: None, name: str, most: float
) -> None:
    spec = small_spec() if name == "small" else tiny_wan_spec()
    rows = [request(i, num_steps=4) for i in range(2)]
    exact = draw(engine(spec, "resident", "same"), rows)
    made = engine(spec, "resident", "fp8")
    low = draw(made, rows)
    distance = off(low, exact)
    print(f"{name}: {distance:.4f}")
    assert 0 < distance < most
    streamed = engine(spec, "stream", "fp8")
    there = draw(streamed, rows)
    for row, frames in low.frames.items():
        assert np.array_equal(there.frames[row], frames)
        assert torch.equal(there.latents[row], low.latents[row])
    alone = draw(engine(spec, "resident", "fp8"), rows[:1])  # in no pack
    assert torch.equal(alone.latents["row-0"], low.latents["row-0"])
    transformer = made.family.modules["transformer"]
    kept = {p.dtype for block in blocks_of(transformer) for p in block.parameters() if p.ndim == 2}
    assert kept == {FP8}
    inside = {id(p) for block in blocks_of(transformer) for p in block.parameters()}
    assert all(p.dtype != FP8 for p in transformer.parameters() if id(p) not in inside)


def test_it_is_planned_in_bytes_and_is_in_the_row_key() -> None:
    name, bucket = JOBS / "wan21_14b_720p.yaml", Bucket(832, 480, 81)
    same, fp8 = (
        compose_job(name, ["slurm=h200x8", f"system.memory.store_dtype={value}"]).config
        for value in ("same", "fp8")
    )
    gib = [need_of(job, bucket, "model").peak_bytes / 1024**3 for job in (same, fp8)]
    assert gib[0] - gib[1] == pytest.approx(13.1, abs=0.3)  # half of the blocks' 26.2 GiB
    assert need_of(fp8, bucket, "stream").peak_bytes < need_of(same, bucket, "stream").peak_bytes
    assert key_context(same).differences(key_context(fp8)) == ["system.memory.store_dtype"]


def test_it_is_not_made_of_files() -> None:
    asked = ["system.memory.store_dtype=fp8", "system.memory.mode=disk"]
    with pytest.raises(ConfigError, match="fp8 is made once, in host memory, which a transformer"):
        compose_job(JOBS / "demo.yaml", asked)
