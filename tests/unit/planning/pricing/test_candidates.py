"""Layouts enumerated and priced: what is legal, what formulas say, what is taken for which rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from packaged_jobs import job_of

from batchgen.config.degrees import Degrees
from batchgen.config.schema import DeviceConfig, JobConfig
from batchgen.errors import ConfigError
from batchgen.families.sequence import sent_around_ring, sent_in_all_to_all
from batchgen.planning.plan import make_plan
from batchgen.planning.pricing.candidates import Candidate, all_candidates, makespan
from batchgen.planning.pricing.cost import cost_of
from batchgen.planning.pricing.layout import Survey, resolve_layout, survey
from batchgen.planning.pricing.timemodel import (
    ALL_TO_ALL_SHARE,
    PASS_SHARE,
    Shape,
    SharedForward,
    Wires,
    exchange_seconds,
    pieces_seconds,
    shape_of,
    streamed_seconds,
    wires_of,
)
from batchgen.planning.pricing.work import Work, planned_work, read_work
from batchgen.records import Layout
from batchgen.request import Bucket

HD, SD = Bucket(1280, 720, 81), Bucket(832, 480, 81)
SHAPE = Shape(tokens=32_760, width=1536, heads=12, blocks=30, element=2, attention=0.7)
NODE = Wires(link=400e9, nic=50e9, ranks_per_node=8)


def rows(bucket: Bucket, count: int, branches: int = 2) -> list[Work]:
    """So many rows of 50 steps."""
    return [Work(bucket, count, 50 * count, 50 * branches * count)]


def job(*overrides: str, name: str = "wan21_14b_720p") -> JobConfig:
    return job_of("slurm=h200x8", *overrides, name=name)


def degrees(layout: Layout) -> tuple[int, int, int, int]:
    return layout.dp, layout.cfg, layout.ulysses, layout.ring


def refusal(*overrides: str, name: str = "wan21_14b_720p") -> str:
    with pytest.raises(ConfigError) as caught:
        job(*overrides, name=name)
    return str(caught.value)


def taken(found: Survey) -> tuple[int, int, int, int]:
    return degrees(found.layout)


def test_ranks_of_a_replica_share_tiles_and_the_price_knows_it() -> None:
    """Of 8 tiles 2 ranks have 4 each, and half of the pixels come to the leader."""
    tiled = job("system.vae.tiled=true", "system.parallel.ulysses=2")
    alone, shared = (cost_of(tiled, ranks=n).bucket(HD).decode for n in (1, 2))
    assert shared == pytest.approx(alone / 2)
    work = [Work(HD, 8, 0, 0)]
    one, two = (all_candidates(tiled, work, [Degrees(4, 1, n, 1)])[0] for n in (1, 2))
    joined = pieces_seconds(3 * 1280 * 720 * 81, 2, NODE)
    assert 0.001 < joined < 0.01
    wires = wires_of(tiled.slurm.device, 8)
    joined = pieces_seconds(3 * 1280 * 720 * 81, 2, wires)
    assert one.last_row_s - two.last_row_s == pytest.approx(2 * (shared - joined))
    assert "its 2 ranks share the 8 tiles of a decode" in resolve_layout(tiled, rows(HD, 8)).reason
    small = resolve_layout(tiled, rows(Bucket(256, 256, 81), 8)).reason
    assert "the leader decodes, since all rows are of one tile" in small
    whole = job("system.parallel.ulysses=2")
    assert cost_of(whole, ranks=2).bucket(HD) == cost_of(whole).bucket(HD)
    assert "tile" not in resolve_layout(whole, rows(HD, 8)).reason


# ----------------------------------------------------------------------------------- the formulas
def test_a_shared_forward_takes_its_part_and_what_is_waited_for() -> None:
    def seconds(ulysses: int, ring: int = 1, wires: Wires = NODE, items: int = 1) -> float:
        return SharedForward(SHAPE, 3.0, ulysses, ring, wires).seconds(items)

    assert seconds(1) == pytest.approx(3.0)
    assert 3.0 / 4 < seconds(4) < 3.0 / 3.5
    slow = replace(NODE, link=4e9)
    assert seconds(4, wires=slow) > 2 * seconds(4)  # nothing hides an all-to-all
    hidden = replace(NODE, link=200e9)
    assert seconds(1, 4, wires=hidden) == seconds(1, 4)  # attention hides what the ring passes
    assert seconds(1, 4, wires=slow) > seconds(1, 4)
    assert seconds(4, items=8) < 8 * seconds(4)  # kernels start once
    few = replace(NODE, ranks_per_node=2)
    assert seconds(4, wires=few) > seconds(4)  # between nodes
    assert exchange_seconds(SHAPE, 1, 1, NODE) == 0 < exchange_seconds(SHAPE, 2, 2, NODE)


def test_padded_heads_cost_what_they_add() -> None:
    """8 ranks attend with 16 heads where there are 12: a third more of attention."""
    alone, free = 3.0, Wires(1e30, 1e30, 8)
    launch = SharedForward(SHAPE, alone, 1, 1, free).seconds(2) - 2 * alone
    padded = SharedForward(SHAPE, alone, 8, 1, free).seconds()
    even = SharedForward(replace(SHAPE, heads=16), alone, 8, 1, free).seconds()
    assert launch < 0  # shared by two items
    assert (padded + launch) / (even + launch) == pytest.approx(1 + 0.7 / 3)


def test_second_attentions_are_sent_too() -> None:
    """Stable Diffusion 3.5 medium has 13 of them in its 24 blocks, over 4096 of 4429 tokens."""
    model = job_of("model=sd3.5-medium").model
    shape = shape_of(model, Bucket(1024, 1024, 1), "bfloat16")
    assert (shape.blocks, shape.tokens) == (24, 4429)
    free, slow = (replace(NODE, link=rate) for rate in (1e30, 1e9))
    for ulysses, ring in (2, 1), (1, 2):
        sent = sent_in_all_to_all(24 * 4429 + 13 * 4096, 1536, ulysses)
        passed = sent_around_ring(24 * 4429 + 13 * 4096, 1536, ring)
        waited, hidden = (
            SharedForward(shape, 0.0, ulysses, ring, wires).seconds() for wires in (slow, free)
        )
        each = sent / ALL_TO_ALL_SHARE + passed / PASS_SHARE
        assert waited - hidden == pytest.approx(2 * each / 1e9)


@pytest.mark.parametrize(
    ("shapes", "replicas", "seconds"),
    [
        ([(2.0, 8)], 8, 2.0),
        ([(2.0, 9)], 8, 4.0),
        ([(1.0, 3), (3.0, 1)], 2, 3.0),
        ([(1.0, 10_000)], 8, 1250.0),
    ],
)
def test_the_last_row(shapes: Sequence[tuple[float, int]], replicas: int, seconds: float) -> None:
    assert makespan(shapes, replicas) == pytest.approx(seconds)


def test_copies_are_hidden_behind_what_computes_between_them() -> None:
    def seconds(*blocks: int, prefetch: int = 1) -> float:
        return streamed_seconds(8.0, blocks, rate=1.0, prefetch=prefetch)

    assert seconds(0, 0, 0, 0) == 8
    assert seconds(2, 2, 2, 2) == 8
    assert seconds(2, 2, 2, 2, prefetch=0) == 16
    assert seconds(6, 6, 6, 6) == 24
    assert seconds(6, 0, 6, 0) == 12
    assert seconds(4, 0, 4, 0) == 8
    assert seconds(8, 1, 1, 1) == 14  # a large block is not hidden by those further away


# --------------------------------------------------------------------------------- what is legal
def test_every_legal_layout_is_a_candidate() -> None:
    found = survey(job("slurm.nodes=2"), rows(HD, 10))
    powers = (1, 2, 4, 8, 16)
    legal = {
        (16 // (cfg * u * r), cfg, u, r)
        for cfg, u, r in product((1, 2), powers[:4], powers)
        if cfg * u * r <= 16
    }
    listed = [
        (c.degrees.dp, c.degrees.cfg, c.degrees.ulysses, c.degrees.ring) for c in found.candidates
    ]
    assert set(listed) == legal and len(listed) == 2 * len(legal)
    assert {c.memory for c in found.candidates} == {"resident", "model"}
    out = {str(each.degrees): each.why for each in found.ruled_out}
    assert out == {"dp 1 x ulysses 16": "of ulysses the model has up to 10"}


def test_what_a_model_has_not_is_ruled_out_by_name() -> None:
    found = survey(job("model=null-engine"), rows(Bucket(16, 16, 1), 5))
    out = {str(each.degrees): each.why for each in found.ruled_out}
    assert out["dp 4 x cfg 2"] == "of cfg the model has 1"
    assert out["dp 4 x ulysses 2"] == "of ulysses the model has up to 1"
    assert {c.degrees.dp for c in found.candidates} == {8} and taken(found) == (8, 1, 1, 1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("dp=1", "cfg=1", "up_limit=1"), (1, 1, 1, 8)),
        (("dp=1", "cfg=1", "up_limit=2"), (1, 1, 2, 4)),
        (("dp=1", "cfg=1", "up_limit=3"), (1, 1, 2, 4)),
        (("dp=1", "cfg=2", "up_limit=8"), (1, 2, 4, 1)),
        (("dp=1", "cfg=1", "up_limit=64"), (1, 1, 8, 1)),
        (("cfp=2", "ulysses_degree=2", "ring_degree=2"), (1, 2, 2, 2)),
    ],
)
def test_degrees_by_hand_and_the_cap_on_ulysses(
    overrides: Sequence[str], expected: tuple[int, ...]
) -> None:
    asked = job(*(f"system.parallel.{each}" for each in overrides))
    assert taken(survey(asked, rows(HD, 100))) == expected


def test_heads_that_do_not_divide() -> None:
    small = "wan21_1_3b_480p"
    said = refusal("system.parallel.ulysses=8", name=small)
    assert said.endswith(
        "8 does not divide the 12 attention heads of wan2.1-t2v-1.3b; legal: 1, 2, 3, 4, 6, 12"
    )
    alone = [f"system.parallel.{name}=1" for name in ("dp", "cfg", "ring")]
    found = survey(job(*alone, name=small), rows(SD, 1))
    assert taken(found) == (1, 1, 8, 1)
    assert "12 heads are padded to 16 for ulysses 8" in found.layout.reason
    found = survey(job(*alone[:2], name=small), rows(SD, 100))
    assert 12 % found.layout.ulysses == 0 and found.layout.ring > 1  # the rest is the ring's
    assert "padded" not in found.layout.reason


def test_xfuser_pads_no_heads() -> None:
    asked = ("system.parallel.attention_op=xfuser", "slurm.python=python3")  # of a container
    found = survey(job(*asked, name="wan21_1_3b_480p"), rows(SD, 1))
    out = {str(each.degrees): each.why for each in found.ruled_out}
    assert out == {"dp 1 x ulysses 8": "xfuser pads no heads, and 8 does not divide 12"}


def test_xfuser_divides_no_uneven_tokens() -> None:
    """32,760 tokens come out even over eight ranks, 3510 over two."""
    asked = ("system.parallel.attention_op=xfuser", "slurm.python=python3")
    odd = Bucket(720, 1248, 1)
    found = survey(job(*asked, name="wan21_1_3b_480p"), rows(SD, 1) + rows(odd, 1))
    out = {each.degrees.sequence: each.why for each in found.ruled_out if "even" in each.why}
    assert out.keys() == {4, 8}
    assert out[4] == f"xfuser wants even shares: {odd} has 3510 tokens"
    by_hand = (*asked, "system.parallel.ulysses=4", "system.parallel.cfg=1")
    with pytest.raises(ConfigError, match=r"has 3510 tokens, which 4 ranks do not divide; legal"):
        survey(job(*by_hand, name="wan21_1_3b_480p"), rows(odd, 1))


def test_degrees_that_cannot_be_are_refused() -> None:
    assert "two at most; legal: auto, 1, 2" in refusal("system.parallel.cfp=3")
    assert "is 16, but slurm.ranks_per_node is 8" in refusal(
        "system.parallel.cfg=2", "system.parallel.ulysses=8"
    )
    by_hand = [f"system.parallel.{each}" for each in ("cfg=1", "ulysses=4", "ring=1")]
    assert "whole nodes of 6 ranks" in refusal(*by_hand, "slurm.nodes=2", "slurm.ranks_per_node=6")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("pipeline", ("pipeline parallelism is not served", "cfg, ulysses and ring")),
        ("tensor", ("tensor parallelism is not served", "cfg, ulysses and ring")),
        ("pp", ("pipeline parallelism is not served", "cfg, ulysses and ring")),
        ("tp_degree", ("tensor parallelism is not served", "cfg, ulysses and ring")),
        ("dit_fsdp", ("weights sharded over ranks are not served", "system.memory.mode=model")),
    ],
)
def test_other_ways_to_use_ranks_are_refused_with_what_to_use(
    key: str, words: Sequence[str]
) -> None:
    said = refusal(f"system.parallel.{key}=2")
    assert all(part in said for part in words)


# ------------------------------------------------------------------------------------ the choice
def test_many_rows_are_drawn_apart_and_the_last_one_together() -> None:
    many, one = survey(job(), rows(HD, 800)), survey(job(), rows(HD, 1))
    assert taken(many) == (8, 1, 1, 1) and many.layout.speed == 1
    assert many.layout.reason.startswith("dp first")
    assert taken(one) == (1, 2, 4, 1)
    assert 6 < one.layout.speed < 8
    assert "of dp 8 (" in one.layout.reason  # what it is better than
    alone = next(c for c in one.candidates if c.degrees.dp == 8)
    assert one.chosen.last_row_s < alone.last_row_s / 5


def test_latency_is_the_shortest_time_for_the_last_row() -> None:
    """Eight rows keep one node busy; both nodes draw them sooner, at the price of a loss."""
    work = rows(HD, 8)
    fast = survey(job("slurm.nodes=2", "system.parallel.objective=latency"), work)
    cheap = survey(job("slurm.nodes=2"), work)
    shortest = min(c.last_row_s for c in fast.candidates if c.fits)
    most = max(c.samples_per_hour for c in cheap.candidates if c.fits)
    assert fast.chosen.last_row_s <= 1.16 * shortest
    assert cheap.chosen.samples_per_hour >= most / 1.16
    assert fast.chosen.last_row_s < cheap.chosen.last_row_s
    assert fast.chosen.samples_per_hour < cheap.chosen.samples_per_hour


def test_ranks_share_a_row_where_it_does_not_fit_one() -> None:
    asked = job("system.memory.mode=resident", "slurm.device.memory_gib=65")
    layout = resolve_layout(asked, rows(HD, 800))
    assert layout.ranks_of_a_replica > 1 and layout.vram_gib < 0.92 * 65
    with pytest.raises(ConfigError, match="a replica does not fit one rank"):
        resolve_layout(
            replace(
                asked, system=job("system.memory.mode=resident", "system.parallel.dp=8").system
            ),
            rows(HD, 8),
        )


def test_rows_without_guidance_have_one_branch_for_two_cfg_ranks() -> None:
    asked = job("system.parallel.dp=4", "system.parallel.cfg=2")
    speeds = [
        survey(asked, rows(HD, count, branches)).layout.speed
        for count, branches in ((1, 2), (1, 1), (8, 1))
    ]
    assert speeds[0] > 1.8 and speeds[1] < 1 and speeds[2] > 1.8


def test_small_shapes_are_packed() -> None:
    small = job(name="flux1_dev_1024")
    assert survey(small, rows(Bucket(256, 256, 1), 800, 1)).chosen.items > 4
    assert survey(small, rows(Bucket(256, 256, 1), 8, 1)).chosen.items == 1  # one a rank
    assert survey(job(), rows(HD, 800)).chosen.items == 1
    budget = replace(small.system.batch, token_budget=1)
    small = replace(small, system=replace(small.system, batch=budget))
    assert survey(small, rows(Bucket(256, 256, 1), 800, 1)).chosen.items == 1


def test_a_cpu_keeps_dp_first(tiny_job: JobConfig) -> None:
    ranks = replace(tiny_job, slurm=replace(tiny_job.slurm, ranks_per_node=4))
    assert taken(survey(ranks, rows(Bucket(64, 64, 9), 1))) == (4, 1, 1, 1)
    parallel = replace(tiny_job.system.parallel, cfg=2, ulysses=2)
    by_hand = replace(ranks, system=replace(ranks.system, parallel=parallel))
    assert taken(survey(by_hand, rows(Bucket(64, 64, 9), 1))) == (1, 2, 2, 1)


def test_rows_of_a_plan_are_summed_by_shape(
    tiny_job: JobConfig,
    job_over: Callable[..., JobConfig],
    write_rows: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """From the header for a whole plan, from its columns for some of its rows."""
    columns = {
        "prompt": list("abcd"),
        "num_frames": [9, 9, 1, 9],
        "num_steps": [4, 6, 5, 8],
        "guidance_scale": [3.0, 1.0, 3.0, 3.0],
    }
    plan = make_plan(job_over(write_rows(columns)), tmp_path / "plan.parquet")
    model = tiny_job.model
    clips, image = Bucket(64, 64, 9), Bucket(64, 64, 1)
    whole = {
        Work(clips, 3, 18, 30, most_steps=8),
        Work(image, 1, 5, 10, most_steps=5),
    }
    assert set(planned_work(plan)) == whole
    assert set(read_work(plan.path, np.arange(4), model)) == whole
    assert read_work(plan.path, np.array([1, 3]), model) == [Work(clips, 2, 14, 22, most_steps=8)]
    assert read_work(plan.path, np.array([], int), model) == []
    assert planned_work(plan)[0].branches == pytest.approx(30 / 18)


# -------------------------------------------------------------------------------------- streaming
def on_a_card(model: str, gib: float, *overrides: str, h2d_gbs: float = 25) -> JobConfig:
    """One card of 165 TFLOP/s."""
    device = DeviceConfig(name="card", memory_gib=gib, matmul_tflops=165, h2d_gbs=h2d_gbs)
    config = job("slurm.ranks_per_node=1", *overrides, name=model)
    return replace(config, slurm=replace(config.slurm, device=device))


def streamed(config: JobConfig, work: Sequence[Work]) -> dict[int, Candidate]:
    """The price of each number of items, all blocks streaming."""
    found = all_candidates(config, work, [Degrees(1, 1, 1, 1)])
    return {candidate.items: candidate for candidate in found if candidate.memory == "stream"}


def test_what_fits_no_other_way_streams_and_the_plan_says_what_that_costs() -> None:
    images = [Work(Bucket(1024, 1024, 1), 8, 8 * 28, 8 * 28)]
    layout = resolve_layout(on_a_card("flux1_dev_1024", 12, h2d_gbs=4), images)
    assert layout.memory == "stream" and 0 < layout.resident_blocks < 57
    assert layout.vram_gib < 12 * 0.92 and layout.fits
    assert (
        f"{layout.resident_blocks} stay and the others stream: {layout.slower:.2f} x"
        in layout.reason
    )
    assert layout.slower > 1.05 and layout.speed == pytest.approx(1 / layout.slower)
    roomy = resolve_layout(on_a_card("flux1_dev_1024", 80), images)
    assert roomy.memory == "resident" and roomy.slower == roomy.speed == 1


def test_copies_are_shared_by_the_items_of_a_forward() -> None:
    """Images do not hide them one by one; a clip does."""
    images = [Work(Bucket(512, 512, 1), 64, 64 * 28, 64 * 28)]
    asked = ("system.memory.mode=stream", "system.components.text_encoder_2.memory=model")
    found = streamed(on_a_card("flux1_dev_1024", 24, *asked), images)
    assert found[1].slower > 1.5
    slower = [found[items].slower for items in sorted(found)]
    assert all(after <= before + 1e-9 for before, after in pairwise(slower))
    assert slower[-1] == pytest.approx(1.0, abs=0.02)
    clip = streamed(on_a_card("wan21_14b_720p", 24, "system.memory.mode=stream"), rows(SD, 4))
    assert clip[1].slower <= 1.02


def test_without_prefetch_no_copy_is_hidden() -> None:
    asked = ("system.memory.mode=stream", "system.memory.prefetch=0")
    (ahead,), (none,) = (
        streamed(on_a_card("wan21_14b_720p", 24, *each), rows(HD, 4)).values()
        for each in (asked[:1], asked)
    )
    assert none.slower > ahead.slower
    assert none.peak_bytes <= ahead.peak_bytes


def test_what_the_host_cannot_hold_stays_on_disk(tmp_path: Path) -> None:
    """Where ranks of a node move weights to their devices, all of them wait in its memory."""
    images = [Work(Bucket(1024, 1024, 1), 8, 8 * 28, 8 * 28)]
    asked = ("slurm.ranks_per_node=4", f"model.weights={tmp_path}")
    small, large = (
        resolve_layout(on_a_card("flux1_dev_1024", 12, *asked, f"slurm.mem_gb={gb}"), images)
        for gb in (64, 256)
    )
    assert (small.memory, large.memory) == ("disk", "stream")
    assert small.slower > large.slower and "of a transformer's 57" in small.reason
    assert "others come from disk" in small.reason and "others stream" in large.reason
    config = on_a_card("flux1_dev_1024", 12, *asked, "slurm.mem_gb=64")
    fast = replace(config.slurm.device, disk_gbs=20.0)
    fast_layout = resolve_layout(replace(config, slurm=replace(config.slurm, device=fast)), images)
    assert fast_layout.slower < small.slower


def test_random_weights_have_no_files() -> None:
    said = refusal("system.memory.mode=disk", "model.weights=random", name="flux1_dev_1024")
    assert said.endswith("model.weights=random has no files; legal: resident, model, stream")
    said = refusal("system.components.vae.memory=disk", "model.weights=random")
    assert said.startswith("system.components.vae.memory: disk")
