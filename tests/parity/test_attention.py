"""Attention kernels against torch's own, and which of them attends when."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from toy_cogvideox import COGVIDEOX
from toy_engine import Keeper, draw, request, small_spec, system
from toy_ltx import LTX
from toy_split import CPU, SPECS, experts, family_on

from batchgen.config.kernels import KERNELS, KernelPlan, in_key, kernel_plan
from batchgen.config.schema import AttentionSchedule, RadialConfig, SystemConfig
from batchgen.engine.attention.choice import Attention, require
from batchgen.engine.attention.ops import flex
from batchgen.engine.attention.radial import radial_mask, reach
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.devices.kernels import KernelWatch
from batchgen.engine.engine import Engine
from batchgen.errors import ConfigError
from batchgen.families.family import latent_frames
from batchgen.records import Layout
from batchgen.request import Bucket

IMAGE = Bucket(64, 64, 1)
BUCKETS = {
    "wan": Bucket(32, 32, 17),
    **dict.fromkeys(("flux", "flux2_klein", "qwen_image", "sd3", "hunyuan-dit"), IMAGE),
    "ltx": LTX.bucket,
    "cogvideox": COGVIDEOX.bucket,
}
CLIPS = {"wan": BUCKETS["wan"], "ltx": Bucket(64, 64, 49)}
# torch's own: to a text, of which some tokens are masked; in what makes one state of a text
ATTENDED = dict.fromkeys(("ltx", "hunyuan-dit"), "flex+sdpa-cpu-flash")
BETWEEN = AttentionSchedule(between="flex", first=1, last=1)


def attending(name: str, chosen: SystemConfig) -> tuple[Any, Attention]:
    """A family whose attentions are led as the configuration says."""
    family, attention = family_on(name), Attention(chosen, lone_layout(SPECS[name], chosen, CPU))
    attention.lead(family, experts(name), frames=partial(latent_frames, SPECS[name]))
    return family, attention


@pytest.fixture(autouse=True)
def _unled() -> Any:
    """Families of these tests share their modules."""
    yield
    for name in BUCKETS:
        for expert in experts(name):
            for module in family_on(name).modules[expert].modules():
                if hasattr(module, "processor"):
                    module.processor._attention_backend = None


# ------------------------------------------------------------------------------------------ kernels
@torch.no_grad()
@pytest.mark.parametrize("name", BUCKETS)
def test_flex_is_torchs_own_to_rounding(name: str, one_thread: None) -> None:
    plain = family_on(name)
    items = [plain.random_item(BUCKETS[name], seed, "transformer") for seed in range(2)]
    sdpa = torch.cat(plain.forward(items))
    family, _ = attending(name, system(attention="flex"))
    watch = KernelWatch(CPU)
    found = torch.cat(watch.run(name, lambda: family.forward(items)))
    assert watch.name(name) == ATTENDED.get(name, "flex")
    assert 0 < float((found - sdpa).abs().max()) <= 1e-5


@torch.no_grad()
def test_radial_attends_to_what_its_rule_says(one_thread: None) -> None:
    frames, per_frame, decay = 7, 6, 0.5
    q, k, v = (torch.randn(2, frames * per_frame, 2, 8) for _ in range(3))
    mask = torch.zeros(frames * per_frame, frames * per_frame, dtype=torch.bool)
    for a in range(frames * per_frame):
        for b in range(frames * per_frame):
            (fa, pa), (fb, pb) = divmod(a, per_frame), divmod(b, per_frame)
            mask[a, b] = fb == 0 or abs(pa - pb) <= reach(abs(fa - fb), per_frame, decay)
    assert 0.3 < mask.float().mean() < 0.9
    dense = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    found = flex(q, k, v, radial_mask(frames, per_frame, decay, CPU))
    torch.testing.assert_close(found, dense.transpose(1, 2), atol=1e-5, rtol=0)


def test_radial_sees_half_as_far_each_time_the_distance_doubles() -> None:
    assert [reach(d, 64, 1.0) for d in (0, 1, 2, 3, 4, 8, 16, 64)] == [64, 64, 32, 32, 16, 8, 4, 1]
    assert [reach(d, 64, 0.5) for d in (1, 2, 4)] == [64, 16, 8]
    # under one place: its own, in every second frame of these distances, then in every fourth
    assert [reach(d, 4, 1.0) for d in range(8, 12)] == [0, -1, 0, -1]
    assert [d for d in range(16, 32) if reach(d, 4, 1.0) == 0] == [16, 20, 24, 28]


@torch.no_grad()
@pytest.mark.parametrize("name", CLIPS)
def test_radial_leaves_first_blocks_and_other_attentions_whole(name: str, one_thread: None) -> None:
    plain = family_on(name)
    item = plain.random_item(CLIPS[name], 0, "transformer")
    [sdpa] = plain.forward([item])
    apart = {}
    for dense in (0, 1, 2):
        chosen = system(attention="radial", radial=RadialConfig(dense_layers=dense, decay=0.25))
        family, _ = attending(name, chosen)
        watch = KernelWatch(CPU)
        [found] = watch.run(dense, lambda family=family: family.forward([item]))
        apart[dense] = float((found - sdpa).abs().max())
        sparse = ["radial"] if dense < 2 else []  # of two blocks
        assert watch.name(dense) == "+".join([*sparse, "sdpa-cpu-flash"])
    assert apart[2] == 0 < apart[1] < apart[0]


# --------------------------------------------------------------------------------------- schedules
def test_a_plan_has_its_base_at_both_ends() -> None:
    plan = KernelPlan("sdpa", "flex", first=2, last=1)
    assert [plan.at(step, 5) for step in range(5)] == ["sdpa", "sdpa", "flex", "flex", "sdpa"]
    assert plan.at(0, 1) == "sdpa"
    radial = kernel_plan(system(attention="radial", radial=RadialConfig(dense_steps=3)))
    assert [radial.at(step, 5) for step in range(5)] == ["sdpa"] * 3 + ["radial"] * 2


@pytest.mark.parametrize("determinism", ["strict", "throughput"])
def test_rows_have_their_schedule_whoever_is_beside_them(
    small_folder: Path, determinism: str
) -> None:
    """Rows of different lengths: some are at their last step while others are between."""
    rows = [request(i, num_steps=3 + i % 3) for i in range(4)]
    drawn = _drawn(small_folder, rows, determinism, attention_schedule=BETWEEN)
    plain = _drawn(small_folder, rows, determinism)
    drawn.assert_packed()
    for row in rows:
        ours = drawn.latents[row.row_id]
        assert drawn.stats[row.row_id].attention_kernel == "flex+sdpa-cpu-flash"
        assert 0 < float((ours - plain.latents[row.row_id]).abs().max()) <= 1e-5
        if determinism == "strict" and row is rows[-1]:
            alone = _drawn(small_folder, [row], determinism, attention_schedule=BETWEEN)
            assert torch.equal(alone.latents[row.row_id], ours)


def test_a_schedule_that_leaves_no_step_between_is_the_base(small_folder: Path) -> None:
    row = request(0, num_steps=3)
    ends = replace(BETWEEN, first=2)
    drawn = _drawn(small_folder, [row], "strict", attention_schedule=ends)
    plain = _drawn(small_folder, [row], "strict")
    assert drawn.stats[row.row_id].attention_kernel == "sdpa-cpu-flash"
    assert torch.equal(drawn.latents[row.row_id], plain.latents[row.row_id])


def _drawn(folder: Path, rows: list[Any], determinism: str, **changes: Any) -> Keeper:
    engine = Engine.load(
        small_spec(str(folder)),
        system(determinism=determinism, batch={"max_rows_in_flight": 3}, **changes),
        "cpu",
    )
    return draw(engine, rows)


# -------------------------------------------------------------------------------- keys and refusals
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "exact"),
        ({"attention": "flash_attn_3"}, "exact"),
        ({"attention_schedule": BETWEEN}, "exact"),
        ({"attention": "sage"}, "sage"),
        ({"attention_schedule": replace(BETWEEN, between="sage", last=2)}, "exact..sage 1 2"),
        ({"attention": "radial"}, "exact..radial 10 0 dense_layers=1 decay=1"),
    ],
)
def test_what_changes_pixels_is_in_the_key(changes: dict[str, Any], said: str) -> None:
    assert in_key(system(**changes)) == said


@pytest.mark.parametrize("name", [name for name in KERNELS if KERNELS[name].package])
def test_a_kernel_that_is_not_there_is_refused_with_those_that_are(name: Any) -> None:
    card = Layout(memory="resident", precision="bfloat16", attention=name, device="h200")
    with pytest.raises(ConfigError) as refused:
        require(name, card)
    said = str(refused.value)
    assert said.startswith(f"system.attention: {name} is not installed (python package ")
    assert said.endswith("; legal here: auto, sdpa, cudnn, flex")


def test_a_kernel_that_does_not_load_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "spas_sage_attn.py").write_text("raise OSError('built for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    card = Layout(memory="resident", precision="bfloat16", attention="sparge", device="h200")
    with pytest.raises(ConfigError, match=r"sparge cannot be loaded \(OSError: built for another"):
        require("sparge", card)


@torch.no_grad()
def test_where_there_is_a_mask_torchs_own_attends() -> None:
    family, _ = attending("wan", system(attention="flex"))
    attention: Any = family.modules["transformer"].blocks[0].attn1
    hidden, mask = torch.randn(1, 4, 128), torch.ones(4, 4).bool().tril()
    watch = KernelWatch(CPU)
    found = {}
    for name, masked in ("masked", mask), ("whole", None):
        found[name] = watch.run(name, lambda m=masked: attention(hidden, attention_mask=m))
    assert watch.name("whole") == "flex" and watch.name("masked").startswith("sdpa-cpu-")
    assert not torch.equal(found["masked"], found["whole"])
